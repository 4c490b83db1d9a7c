//! A TCP connection as the path sees it.

use std::{fmt, net::SocketAddr};

/// Whose SYN it was, and where it went. The same value on every node of a path: nobody translates addresses here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who sent the SYN.
    pub client: SocketAddr,
    /// Where to.
    pub server: SocketAddr,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.client, self.server)
    }
}

/// The interface, or the port of a bridge, through which a packet came in. Numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ingress(pub u32);
