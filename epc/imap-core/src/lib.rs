//! IMAP as the e-mail proxy cache sees it (RFC 9051, RFC 3501): pure cores, no I/O, no clock.
//!
//! Octets of the server are forwarded verbatim; what is learned on the way is learned from literal-free
//! *skeletons*. The heart is [`views`]: what the server has told us, what we have told the client, and the
//! ordered log between the two. [`session`] drives it all; [`catalog`] says in values what it wants of a store.

mod arguments;
pub mod capability;
pub mod catalog;
pub mod command;
pub mod fetch_response;
pub mod flag_snapshot;
pub mod framer;
pub mod guard;
pub mod item;
pub mod mime;
pub mod preload;
pub mod response;
pub mod retained;
pub mod sasl;
pub mod search_criteria;
pub mod sequence_set;
pub mod session;
pub mod start_profile;
pub mod uid;
pub mod views;

pub use discovery_core::mutants;
