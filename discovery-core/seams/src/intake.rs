//! Where clients come from.

use crate::{AsyncIo, BoxFuture};
use std::{fmt, io, net::SocketAddr};

/// The client's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// Where the client believes it is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginalDst(pub SocketAddr);

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a connection reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// The client spoke to our own address.
    Listener,
    /// Its SYN was intercepted.
    Tproxy,
    /// A connection that existed before us was taken over.
    Adopted,
}

/// What the client sees of encryption at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientTls {
    /// TLS from the first octet; already terminated.
    Implicit,
    /// Plain now; `STARTTLS` must come before a credential.
    StartTls,
    /// Plain, because the configuration says so.
    Plain,
}

/// One accepted client.
pub struct Accepted {
    /// Its octets, TLS already removed when `tls` is `Implicit`.
    pub io: Box<dyn AsyncIo>,
    /// Who.
    pub client: ClientAddr,
    /// Where to.
    pub original_dst: OriginalDst,
    /// The name in its ClientHello, if any.
    pub server_name: Option<String>,
    /// The road.
    pub how: Arrival,
    /// What is left to do about encryption.
    pub tls: ClientTls,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("client", &self.client)
            .field("original_dst", &self.original_dst)
            .field("server_name", &self.server_name)
            .field("how", &self.how)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Hands out clients one by one.
pub trait Intake: Send {
    /// The next client; cancel-safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>>;
}

/// Turns a plain client stream into a TLS one after `STARTTLS`; the caller has checked that no octet waits.
pub trait ClientUpgrade: Send + Sync {
    /// Runs the server side of the handshake.
    fn upgrade(&self, io: Box<dyn AsyncIo>) -> BoxFuture<'_, io::Result<Box<dyn AsyncIo>>>;
}
