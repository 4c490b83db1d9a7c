//! How a session reaches its server: dialled here, or by the node beside the server over the link.

use crate::{AsyncIo, BoxFuture, intake::ClientAddr};
use bytes::Bytes;
use discovery_core::{
    id::{NodeId, ServerId},
    value::Class,
};
use std::{fmt, net::SocketAddr, time::Duration};

/// Whose address the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourcePolicy {
    /// The node's own.
    Own,
    /// The client's.
    Spoof,
}

/// What a session asks for.
#[derive(Clone, Debug)]
pub struct OriginRequest {
    /// Which server, by its configured name.
    pub server: ServerId,
    /// A particular address of it (the client's original destination), else by the configuration.
    pub addr: Option<SocketAddr>,
    /// For whom.
    pub client: ClientAddr,
    /// With which source address.
    pub source: SourcePolicy,
    /// How urgent.
    pub purpose: Class,
    /// How long to try before giving up.
    pub patience: Duration,
}

/// Who checked the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifiedBy {
    /// This process.
    Local,
    /// The node beside the server.
    Peer(NodeId),
    /// Nobody: the configuration allows plain text on this road.
    Plain,
}

/// Who the server proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginIdentity {
    /// SHA-256 of the certificate's SubjectPublicKeyInfo; all zero on a plain road.
    pub spki_sha256: [u8; 32],
    /// Who checked it.
    pub verified_by: VerifiedBy,
}

/// What the road can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCaps {
    /// One direction can be closed alone.
    pub half_close: bool,
    /// How long the connection was parked before it was handed out.
    pub parked_age: Option<Duration>,
}

/// A server, connected, verified, with its greeting read and nothing else.
pub struct OriginStream {
    /// Its octets after the greeting, TLS already removed.
    pub io: Box<dyn AsyncIo>,
    /// The greeting line with its CRLF, exactly as sent.
    pub greeting: Bytes,
    /// Who it is.
    pub peer: OriginIdentity,
    /// What the road can do.
    pub caps: StreamCaps,
}

impl fmt::Debug for OriginStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginStream")
            .field("greeting", &self.greeting)
            .field("peer", &self.peer)
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}

/// Why no server could be reached. Closed: it is the log field, the metric label and what the client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No server of this name is configured.
    #[error("server {0} is not configured")]
    UnknownServer(ServerId),
    /// Its name has no address.
    #[error("no address for {host}: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The network.
    #[error("network: {0}")]
    Network(String),
    /// TLS, or the certificate is not the server's.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server does not offer STARTTLS, or answered it with more than its OK.
    #[error("STARTTLS: {0}")]
    StartTls(&'static str),
    /// The first line is not a greeting, or a PREAUTH that the operator did not allow.
    #[error("greeting: {0}")]
    Greeting(&'static str),
    /// The server said BYE.
    #[error("the server said BYE")]
    Bye(Bytes),
}

impl OpenError {
    /// One word for logs and metrics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::UnknownServer(_) => "unknown-server",
            Self::Resolve { .. } => "resolve",
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
            Self::Network(_) => "network",
            Self::Tls(_) => "tls",
            Self::StartTls(_) => "starttls",
            Self::Greeting(_) => "greeting",
            Self::Bye(_) => "bye",
        }
    }
}

/// Opens servers. Implemented by `epc::origin` (dials) and, later, by the link to another node.
pub trait OriginConnector: Send + Sync {
    /// Connects, verifies, reads the greeting.
    fn open(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>>;
    /// The same, and never with a connection that was made before: what a client gets instead of a parked one that
    /// ended before anything was asked of it.
    fn open_anew(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        self.open(request)
    }
    /// Keeps up to `n` greeted connections to `server` ready; 0 lets them go. May do nothing.
    fn park(&self, server: &ServerId, n: u8);
}
