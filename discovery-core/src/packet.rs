//! IP packets as octets: what a queued packet says, and the few changes that interception makes to one.
//!
//! A packet is never rebuilt. [`splice`] and [`strip`] put other TCP options into the octets that came, so that
//! everything else, the identification, the IP options, unknown TCP options, a wrong checksum, leaves as it arrived.
//! [`forge`] makes the packets that stand for a server's own words. Nothing here decides, sends or reads a clock, and
//! no octets of a stranger can make it panic.

mod checksum;
pub mod flags;
pub mod forge;
mod options;
mod readdress;
mod rewrite;
mod splice;
mod strip;
mod syn_facts;
mod tcp;
mod view;

pub use forge::{Acknowledged, ForgeError, Unreachable};
pub use options::{Item, Options, TcpOption};
pub use readdress::readdress;
pub use splice::{LONGEST_MAX, Unprobed, room, splice};
pub use strip::strip;
pub use syn_facts::{SynFacts, Timestamps};
pub use tcp::{Kind, Tcp};
pub use view::{Protocol, Refused, View};

/// The octets that TCP options can take: a data offset of 15 words less the 20 octets that every header has.
pub const OPTIONS_OCTETS_MAX: usize = 40;
