//! The link between two nodes as sockets: mutual TLS 1.3, three TCP connections for each pair, and the streams of
//! [`wan_core`] on them. [`Links`] knows the peers, opens streams, and serves those that peers open.
//!
//! What arrives decides nothing here: who a peer may be stands in [`admit`], what a frame means in `wan_core`. Files,
//! rules and capabilities are somebody else's; identities, authorities and grants come as values.

pub mod admit;
mod carry;
mod facts;
mod gate;
mod handshake;
mod identity;
mod link;
mod links;
mod narrow;
mod opener;
mod reachable;
mod roster;
mod socket;
mod splice;
mod status;
mod stream;
mod trust;

pub use facts::TcpFacts;
pub use identity::{Authority, BadIdentity, Identity, Presented, key_hint};
pub use links::{Links, Peer, PeerSpec, Settings};
pub use opener::{AllGranted, Grants, OpenedStream, StreamOpener};
pub use reachable::reachable;
pub use socket::Sockets;
pub use splice::{Spliced, splice};
pub use status::{LaneStatus, LinkStatus};
pub use stream::LinkStream;
