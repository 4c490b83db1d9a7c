//! The user affinity database of US 9,172,620 ('each CEP in a device maintains a user affinity database'): who used
//! which object, what to fetch ahead for him, when that may use the WAN, and what came of it.
//!
//! | module | what |
//! |---|---|
//! | [`record`], [`database`] | the records, the patent's update rule, expiry, bounds |
//! | [`policy`], [`advisor`] | what is worth its octets, in which order |
//! | [`ledger`] | every octet fetched ahead is used or wasted in the end |
//! | [`gate`] | when background work may use the WAN |
//! | [`shell`] | SQLite, and a sink that never waits (feature `shell`, on by default) |
//!
//! Without `shell` the crate is pure. It knows no protocol: rooms describe collections, items and kin
//! (`discovery_core::seam::advisor`).

pub mod advisor;
mod budget;
pub mod database;
mod evidence;
pub mod gate;
pub mod ledger;
pub mod policy;
pub mod record;
#[cfg(feature = "shell")]
pub mod shell;

use discovery_core::mutants;
