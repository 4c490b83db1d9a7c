//! How a session reaches its server: dialled here, or by the node beside the server over the link.

use crate::{AsyncIo, BoxFuture, intake::ClientAddr};
use bytes::Bytes;
use discovery_core::{
    id::{NodeId, ServerId},
    mutants,
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

/// What the node beside a server tells the one beside the client when it has opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// SHA-256 of the SubjectPublicKeyInfo of the certificate that it has verified.
    pub spki_sha256: [u8; 32],
    /// The greeting line with its CRLF.
    pub greeting: Bytes,
    /// The connection had been made before anybody asked for it.
    pub parked: bool,
}

impl Opened {
    /// As octets: a version (1), 1 when it was parked, else 0, the key's 32, the greeting. `None` when the greeting is none, or too long to be told.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        let octets = [&[1, u8::from(self.parked)][..], &self.spki_sha256, &self.greeting].concat();
        let octets = Bytes::from(octets);
        (octets.len() <= OPENED_OCTETS_MAX && Self::decode(&octets).as_ref() == Some(self)).then_some(octets)
    }

    /// The inverse of [`Opened::encode`]; `None` for anything else.
    #[must_use]
    pub fn decode(octets: &Bytes) -> Option<Self> {
        let (head, text) = octets.split_at_checked(34)?;
        let (parked, key) = match head {
            [1, parked @ (0 | 1), key @ ..] => (*parked == 1, key),
            _ => return None,
        };
        let spki_sha256 = key.try_into().ok()?;
        let line = text.strip_suffix(b"\r\n")?;
        let welcome = [&b"* OK"[..], b"* PREAUTH"].iter().any(|word| {
            let (start, rest) = line.split_at_checked(word.len()).unwrap_or_default();
            start.eq_ignore_ascii_case(word) && rest.first().is_none_or(|octet| *octet == b' ')
        });
        // A second line would be heard as the server's answer.
        let clean =
            !line.iter().any(|octet| matches!(octet, 0 | b'\r' | b'\n')) || mutants::on("opened-two-lines");
        (welcome && clean).then(|| Self { spki_sha256, greeting: octets.slice(34..), parked })
    }
}

/// What a link hands on with an opened stream.
const OPENED_OCTETS_MAX: usize = 8 * 1024;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_is_told_or_nothing() {
        let opened = |greeting: &[u8]| Opened {
            spki_sha256: [7; 32],
            greeting: Bytes::copy_from_slice(greeting),
            parked: greeting.len().is_multiple_of(2),
        };
        for (greeting, told) in [
            (&b"* OK [CAPABILITY IMAP4rev1] ready\r\n"[..], true),
            (b"* ok\r\n", true),
            (b"* PREAUTH hi\r\n", true),
            (b"* OKAY hi\r\n", false),
            (b"* BYE hi\r\n", false),
            (b"* OK hi\n", false),
            (b"* OK hi\r\n* 1 EXISTS\r\n", false),
            (b"* OK \0\r\n", false),
            (b"", false),
        ] {
            let opened = opened(greeting);
            let octets = opened.encode();
            assert_eq!(octets.is_some(), told, "{}", greeting.escape_ascii());
            let Some(octets) = octets else { continue };
            assert_eq!(Opened::decode(&octets), Some(opened));
            assert_eq!(Opened::decode(&octets.slice(1..)), None, "another version");
            assert_eq!(Opened::decode(&octets.slice(..34)), None, "cut off");
        }
        let long = [b"* OK ", &[b'x'; 9000][..], b"\r\n"].concat();
        assert_eq!(opened(&long).encode(), None);
    }
}
