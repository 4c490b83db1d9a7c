//! What a node and its shell exchange.

use bytes::Bytes;
use discovery_core::{
    id::{ServerId, UserKeying},
    seam::blob::BlobReader,
};
use imap_core::{
    catalog::{CatalogOp, CatalogReply},
    preload::Preload,
    retained::Facts,
    session::{Closing, Compress, Event, Road, Side},
};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration, time::Instant};

/// A client's connection, and the origin's that belongs to it. Given by the shell, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Bounds of every session; the defaults are those of `epc::handler::Limits`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets that may wait for one side before the other side is no longer read.
    pub window_octets: usize,
    /// How long to try to reach the origin before the client is told that it cannot be reached.
    pub origin_patience: Duration,
    /// How long both sides may be silent before the client has logged in.
    pub login_idle: Duration,
    /// How long a side may take nothing of what waits for it.
    pub stuck: Duration,
    /// How long an ending session may go on writing what is queued, as long as each write gets on.
    pub close_patience: Duration,
    /// All of an ending.
    pub close_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_octets: 256 * 1024,
            origin_patience: Duration::from_secs(20),
            login_idle: Duration::from_secs(60),
            stuck: Duration::from_secs(30 * 60),
            close_patience: Duration::from_secs(5),
            close_max: Duration::from_secs(60),
        }
    }
}

/// What holds for every session with one server.
#[derive(Clone, Debug)]
pub struct ServerTerms {
    /// What to do about COMPRESS.
    pub compress: Compress,
    /// Whether anything is stored or served from the store.
    pub cache: bool,
    /// For how long a session's right to a mailbox is believed.
    pub re_proof: Duration,
    /// Messages up to this length are fetched whole when a client asks for a chunk.
    pub chunk_fill_max: u64,
    /// Whether what a known client always asks first is asked behind its login; only where TLS keeps records apart.
    pub foresee: bool,
    /// Whether connections to the server outlive their clients.
    pub retain: bool,
    /// More sessions at a time are turned away.
    pub sessions_max: usize,
}

/// What a node is told at birth.
pub struct NodeConfig {
    /// Bounds.
    pub limits: Limits,
    /// The servers it serves.
    pub servers: BTreeMap<ServerId, ServerTerms>,
    /// Turns accepted identities into keys.
    pub keying: Arc<dyn UserKeying>,
    /// Who says what sessions fetch that nobody asked for; none: nothing.
    pub preloads: Option<Preloads>,
}

/// Makes the [`Preload`] of a session with this server.
pub type Preloads = Arc<dyn Fn(&ServerId) -> Box<dyn Preload> + Send + Sync>;

/// A client that has arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its connection.
    pub conn: ConnId,
    /// Where it is going.
    pub server: ServerId,
    /// How it came.
    pub road: Road,
    /// Unpredictable; part of the tags of our own commands.
    pub nonce: [u8; 6],
}

/// Why an origin could not be reached, as a word of `seams::origin::OpenError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoOrigin(pub &'static str);

/// The operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Sessions at rest end now, the others when they come to rest, all of them by this moment.
    DrainBy(Instant),
    /// All end now.
    DrainNow,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A client came.
    Accepted(Arrival),
    /// The origin's connection is there and has greeted.
    OriginOpened {
        /// Whose.
        conn: ConnId,
        /// Its greeting, CRLF included.
        greeting: Bytes,
        /// It was made before its client came.
        parked: bool,
    },
    /// It will not be there.
    OriginFailed {
        /// Whose.
        conn: ConnId,
        /// Why.
        why: NoOrigin,
    },
    /// Octets came. Only after [`Node::reads`](crate::Node::reads) said that they are wanted.
    Octets {
        /// On which connection.
        conn: ConnId,
        /// From whom.
        side: Side,
        /// What.
        octets: Bytes,
    },
    /// A side says nothing more, and may still listen.
    Finished {
        /// On which connection.
        conn: ConnId,
        /// Who.
        side: Side,
    },
    /// A side is gone: nothing can be read or written.
    Broken {
        /// On which connection.
        conn: ConnId,
        /// Who.
        side: Side,
    },
    /// Something of what was to be written has been.
    Wrote {
        /// On which connection.
        conn: ConnId,
        /// To whom.
        side: Side,
        /// Octets of [`Output::Write`].
        octets: usize,
        /// Outputs that are written to their end.
        pieces: usize,
    },
    /// A body that was to be written cannot be read any more.
    BodyLost {
        /// On which connection.
        conn: ConnId,
    },
    /// The client's TLS is up after [`Output::StartTls`].
    TlsUp {
        /// On which connection.
        conn: ConnId,
    },
    /// It is not, or octets had come that should have come in TLS.
    TlsFailed {
        /// On which connection.
        conn: ConnId,
        /// Whether that was the reason.
        surplus: bool,
    },
    /// The store's answer to a question.
    Store {
        /// Whose.
        conn: ConnId,
        /// The answer.
        reply: CatalogReply,
    },
    /// The moment of [`Node::poll_timeout`](crate::Node::poll_timeout) has come.
    Tick,
    /// The operator says something.
    Operator(Order),
}

/// How a session ended: the words of `epc::handler::metrics::Ended`, save the one for a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// In the ordinary way, by the client or the origin.
    Done,
    /// No origin could be reached.
    NoOrigin,
    /// The server has as many sessions as it is allowed.
    Full,
    /// The origin went away in the middle.
    OriginLost,
    /// The client's octets cannot be framed.
    ClientGarbled,
    /// The origin's octets cannot be framed.
    OriginGarbled,
    /// Octets waited behind STARTTLS.
    StartTlsSurplus,
    /// The client's TLS handshake after STARTTLS failed.
    StartTlsFailed,
    /// A stored body was lost after its length had been announced.
    StoreLost,
    /// The client said nothing before logging in.
    IdleBeforeLogin,
    /// One side took nothing of what it was sent.
    Stuck,
    /// The node shuts down.
    Drained,
}

impl From<Closing> for Ended {
    fn from(closing: Closing) -> Self {
        match closing {
            Closing::Done => Self::Done,
            Closing::OriginLost => Self::OriginLost,
            Closing::ClientGarbled => Self::ClientGarbled,
            Closing::OriginGarbled => Self::OriginGarbled,
            Closing::StartTlsSurplus => Self::StartTlsSurplus,
            Closing::StoreLost => Self::StoreLost,
        }
    }
}

/// Something to count, log or show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// A client came.
    Accepted,
    /// The origin's parked connection had ended, and another one took its place.
    OriginReplaced,
    /// The origin could not be reached.
    OpenFailed(&'static str),
    /// A session learned something.
    Event(Event),
    /// A session ended.
    Ended(Ended),
    /// The shell named a connection that is not there (any more): what it said is dropped.
    NobodyThere,
}

/// What the shell must do, in this order for each connection.
pub enum Output {
    /// Connect to the origin.
    Open {
        /// For whom.
        conn: ConnId,
        /// Where to.
        server: ServerId,
        /// Not one that was made before.
        anew: bool,
    },
    /// Write.
    Write {
        /// On which connection.
        conn: ConnId,
        /// To whom.
        side: Side,
        /// What.
        octets: Bytes,
        /// By itself, so that it shares no TLS record.
        apart: bool,
    },
    /// Write this range of a body to the client, waiting for it to grow where it does.
    WriteFrom {
        /// On which connection.
        conn: ConnId,
        /// The body.
        reader: Arc<dyn BlobReader>,
        /// Where to begin.
        offset: u64,
        /// How many octets.
        octets: u64,
    },
    /// Ask or tell the store; in the order of a connection.
    Catalog {
        /// Who asks.
        conn: ConnId,
        /// What.
        op: CatalogOp,
    },
    /// Once everything before is written, run the server side of TLS with the client.
    StartTls {
        /// On which connection.
        conn: ConnId,
    },
    /// The origin's stream is deflated from here on.
    Deflate {
        /// On which connection.
        conn: ConnId,
        /// What came already and is deflated.
        surplus: Bytes,
    },
    /// Close both sides; the connection's number means nothing any more. What was to be written has been, or had its
    /// time.
    Close {
        /// Which connection.
        conn: ConnId,
    },
    /// As [`Output::Close`] for the client. The connection to the origin lives on: what comes on it, and what is read
    /// there and was not given to the node yet, is its keeper's.
    HandOver {
        /// Which connection.
        conn: ConnId,
        /// What its session knew.
        facts: Box<Facts>,
        /// Octets of the origin that were given to the node and belong to nobody yet.
        ahead: Vec<Bytes>,
    },
    /// Something to count.
    Count {
        /// Where it happened.
        conn: ConnId,
        /// What.
        what: Count,
    },
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { conn, server, anew } => write!(f, "Open({}, {server}, anew {anew})", conn.0),
            Self::Write { conn, side, octets, .. } => write!(f, "Write({}, {side:?}, {octets:?})", conn.0),
            Self::WriteFrom { conn, offset, octets, .. } => {
                write!(f, "WriteFrom({}, {octets} at {offset})", conn.0)
            }
            Self::Catalog { conn, op } => write!(f, "Catalog({}, {op:?})", conn.0),
            Self::StartTls { conn } => write!(f, "StartTls({})", conn.0),
            Self::Deflate { conn, surplus } => write!(f, "Deflate({}, {} octets)", conn.0, surplus.len()),
            Self::Close { conn } => write!(f, "Close({})", conn.0),
            Self::HandOver { conn, .. } => write!(f, "HandOver({})", conn.0),
            Self::Count { conn, what } => write!(f, "Count({}, {what:?})", conn.0),
        }
    }
}
