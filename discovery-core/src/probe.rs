//! What two nodes on a path say to each other inside a SYN and its SYN-ACK (US 9,172,620, 'probe query' and 'probe
//! response'): a TCP option of the experimental kind with an identifier of its own (RFC 6994).
//!
//! Nothing here is believed: it is a hint where to open a link, and mutual TLS decides who answers there.

mod codec;
mod datagram;

pub use codec::{Codec, Encoded, Found, KindTaken};
pub use datagram::Answer;

use std::net::SocketAddr;

/// The first octets of another node's key identifier: which of several peers behind one address is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHint(pub [u8; 8]);

/// 'Is there a node behind you?', on a SYN. It names nobody: the answerer learns its peer from the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query;

/// 'Yes, here', on a SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    /// Where the answerer's link listens.
    pub link: SocketAddr,
    /// Which node it is.
    pub key: KeyHint,
    /// The server has accepted already: the client can be answered at once.
    pub connected: bool,
}

/// One probe option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// On a SYN.
    Query(Query),
    /// On a SYN-ACK.
    Response(Response),
}
