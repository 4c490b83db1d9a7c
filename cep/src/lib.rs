//! The connection end point proxy of US 9,172,620: a session outlives its client, watches the mailbox, and has new
//! mail in the store before its reader is back.
//!
//! [`keeper`] is pure: octets and time in, octets and [`CatalogOp`](imap_core::catalog::CatalogOp)s out. What it fetches,
//! a [`Preload`](imap_core::preload::Preload) says: [`plan`] by the habits of its user, [`plain`] whatever is new.
//! [`house`] (feature `shell`) gives each kept session a small task. A kept session never dials: nobody here knows a
//! credential, so an outage of a server ends its kept sessions and nothing comes back until its users do.

#[cfg(feature = "shell")]
pub mod house;
pub mod keeper;
pub mod plain;
pub mod plan;
pub mod rules;
