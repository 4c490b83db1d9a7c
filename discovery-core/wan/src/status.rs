//! What is known of the links, as values.

use discovery_core::id::NodeId;
use std::{net::SocketAddr, time::Duration};
use wan_core::{Counts, Lane, Reason};

/// One peer.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// Who.
    pub node: NodeId,
    /// The authority that vouches for it; none before the first connection.
    pub authority: Option<String>,
    /// Its connections.
    pub lanes: Vec<LaneStatus>,
    /// Figures of its streams.
    pub counts: Counts,
    /// Why the last attempt or connection ended.
    pub last: Option<Reason>,
}

/// One connection, as one of its lanes sees it.
#[derive(Clone, Debug)]
pub struct LaneStatus {
    /// Which lane.
    pub lane: Lane,
    /// The other end.
    pub remote: SocketAddr,
    /// The round trip, by the link's own question.
    pub rtt: Option<Duration>,
    /// The congestion control in use.
    pub congestion: String,
    /// The cap in octets per second; none when the connection is not paced.
    pub pace: Option<u64>,
    /// The connection carries every lane.
    pub shared: bool,
}
