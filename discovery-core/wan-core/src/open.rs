//! What one node asks of the other when it opens a stream.

use discovery_core::{flow::Flow, id::ServerId, value::Class};

/// What the far side is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Carry octets to the server: to the connection that was opened early for this flow, or to a new one.
    Carry,
    /// Carry octets to a connection that was opened early for this flow, or refuse.
    Claim,
    /// Open the named server with everything that belongs to its protocol: TLS, `STARTTLS`, the greeting.
    Origin,
    /// Take over the far half of a connection that existed before both nodes.
    Adopt,
}

impl Kind {
    /// Its octet on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Carry => 0,
            Self::Claim => 1,
            Self::Origin => 2,
            Self::Adopt => 3,
        }
    }

    /// The inverse of [`Kind::code`].
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Carry),
            1 => Some(Self::Claim),
            2 => Some(Self::Origin),
            3 => Some(Self::Adopt),
            _ => None,
        }
    }
}

/// Asks for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFrame {
    /// Whose connection, and where to: the addresses of the client's SYN.
    pub flow: Flow,
    /// How urgent its octets are; decides the lane.
    pub class: Class,
    /// What is asked for.
    pub kind: Kind,
    /// The server is to see the client's own address.
    pub spoof: bool,
    /// The server's configured name, when it has one.
    pub server: Option<ServerId>,
}
