//! Short messages beside the streams. Nobody waits for one, none is repeated, and whoever does not know a kind
//! ignores it.

use bytes::Bytes;
use discovery_core::{flow::Flow, pmt::Prefix, probe::KeyHint};
use std::net::SocketAddr;

/// A message that may be ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The young flow of these addresses is given up at the sender; a middle passes it on.
    Abort {
        /// Whose.
        flow: Flow,
        /// The sequence number of the SYN that is meant: which attempt between these addresses.
        isn: u32,
    },
    /// Of a kind that this room does not know: the number and the octets, for whoever does.
    Other {
        /// From 1 on; 0 is [`Notice::Abort`].
        kind: u64,
        /// At most [`NOTICE_OCTETS_MAX`].
        octets: Bytes,
    },
}

/// Longer notices are not sent and break the rules.
pub const NOTICE_OCTETS_MAX: usize = 4096;

/// Which nodes serve some servers as well as the sender does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Which servers; at most [`CANDIDATE_NETWORKS_MAX`].
    pub networks: Vec<Prefix>,
    /// Which nodes, the sender among them if it likes; at most [`CANDIDATES_MAX`].
    pub nodes: Vec<Candidate>,
}

/// A node that could serve in the sender's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Where its link listens.
    pub link: SocketAddr,
    /// Which node it is.
    pub key: KeyHint,
    /// How it is preferred: lower first.
    pub rank: u8,
    /// It takes connections.
    pub able: bool,
    /// Parts of a thousand of what it can carry that are in use.
    pub load: u16,
}

/// Longer lists are cut by the sender and break the rules at the receiver.
pub const CANDIDATES_MAX: usize = 64;
/// The same for the networks of a list.
pub const CANDIDATE_NETWORKS_MAX: usize = 32;
