//! What a session and its shell exchange: settings in, things to do and things learned out.

use crate::{catalog::CatalogOp, retained::Facts};
use bytes::Bytes;
use discovery_core::{
    id::{AccountKey, ServerId, UserKeying},
    seam::blob::BlobReader,
};
use std::{fmt, sync::Arc, time::Duration};

/// Who answers a FETCH. Closed: the log field, the metric label and what `trace` prints are the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The store alone.
    Store,
    /// The store, and the origin for what only it knows (flags, `\\Seen`).
    Mixed,
    /// The origin alone.
    Origin(Reason),
}

/// Why the origin answers although there is a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The store does not hold all of it.
    NotHeld,
    /// An item of a kind that only the origin can answer for.
    OriginOnly,
    /// The origin has not shown these messages to this session.
    NotProved,
    /// Nothing may be stored or served: no certain identity, no UIDVALIDITY, or turned off.
    CacheOff,
    /// More messages or items at once than are worth asking the store about.
    TooMany,
}

impl Outcome {
    /// One word for logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Mixed => "mixed",
            Self::Origin(Reason::NotHeld) => "not-held",
            Self::Origin(Reason::OriginOnly) => "origin-only",
            Self::Origin(Reason::NotProved) => "not-proved",
            Self::Origin(Reason::CacheOff) => "cache-off",
            Self::Origin(Reason::TooMany) => "too-many",
        }
    }
}

/// What the client's road offers before a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Road {
    /// TLS is on.
    Tls,
    /// Plain; a login needs STARTTLS first.
    StartTlsRequired,
    /// Plain, and the operator allows it here.
    Plain,
}

/// What is known of the origin's COMPRESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compress {
    /// Never ask for it.
    Off,
    /// Ask once its capabilities offer it.
    WhenOffered,
    /// An earlier session had it: ask right behind the login, which costs no round trip.
    Known,
}

/// What a session is told at birth.
pub struct SessionConfig {
    /// Unique within the process.
    pub number: u64,
    /// Unpredictable; part of the tags of our own commands.
    pub nonce: [u8; 6],
    /// The origin, by its configured name.
    pub server: ServerId,
    /// Turns accepted identities into keys.
    pub keying: Arc<dyn UserKeying>,
    /// What the client's road offers.
    pub road: Road,
    /// What to do about COMPRESS towards the origin.
    pub compress: Compress,
    /// Whether anything is stored or served from the store at all.
    pub cache: bool,
    /// For how long the origin's word that this user may read this mailbox is taken without asking again.
    pub re_proof: Duration,
    /// Messages up to this length are fetched whole when a client asks for a chunk of them.
    pub chunk_fill_max: u64,
    /// Whether the connection to the origin outlives a client that leaves.
    pub retain: bool,
}

/// Why a session ends by our doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closing {
    /// The client or the origin ended it in the ordinary way.
    Done,
    /// The origin went away in the middle.
    OriginLost,
    /// The client's octets cannot be framed without guessing.
    ClientGarbled,
    /// The origin's octets cannot be framed or contradict what it said before.
    OriginGarbled,
    /// Octets waited behind STARTTLS that an attacker could have put there.
    StartTlsSurplus,
    /// A stored body was lost after its length had been announced.
    StoreLost,
}

/// Why flags that an earlier session left are not told although the origin was asked what has changed of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The mailbox is another one of the same name.
    Generation,
    /// The origin knows of fewer changes than it did, or of none.
    WentBack,
    /// The origin did not answer.
    Refused,
    /// It said something else of a message.
    Odd,
    /// A message is recent, and which one it did not say.
    Recent,
    /// Which messages there are it did not say.
    NotListed,
    /// A message that is neither among the changes nor known before.
    Unknown,
}

impl Doubt {
    /// One word for logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::WentBack => "went-back",
            Self::Refused => "refused",
            Self::Odd => "odd",
            Self::Recent => "recent",
            Self::NotListed => "not-listed",
            Self::Unknown => "unknown",
        }
    }
}

/// What the session learned, for counters, logs and other rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The origin accepted a login.
    LoggedIn(AccountKey),
    /// The origin refused one.
    LoginRefused,
    /// The one that it refused named this account; `limited`: because it has too many connections of it.
    LoginRefusedFor {
        /// Whose it would have been.
        account: AccountKey,
        /// `[LIMIT]`, or words to that effect.
        limited: bool,
    },
    /// A FETCH was decided.
    Fetched {
        /// By whom it is answered.
        outcome: Outcome,
        /// How many messages it named, as far as known.
        messages: u32,
        /// Octets of message data that the store gave.
        octets: u64,
    },
    /// Bodies of the origin went into the store: so many octets.
    Filled(u64),
    /// A FETCH response could not be understood: nothing was learned from it.
    Unread,
    /// The origin has COMPRESS, and it is on now.
    Compressing,
    /// What was asked ahead of a client has been dealt with.
    Foreseen {
        /// Commands that the client then asked.
        told: u32,
        /// Commands that it did not ask.
        in_vain: u32,
        /// The login in front of them was refused.
        refused: bool,
    },
    /// The flags of a mailbox were told from what an earlier session left and the origin said had changed since.
    FlagsProved {
        /// Of how many messages.
        messages: u32,
        /// Those that the origin said itself.
        changed: u32,
    },
    /// They could not be, and the origin was asked for all of them.
    FlagsDoubted(Doubt),
    /// The origin asked for something that the client did not announce.
    UnexpectedContinuation,
    /// From here on octets pass both ways and nothing is learned.
    Tunnel(&'static str),
    /// What the origin says and what it said before do not fit; nothing more is stored or served.
    Desync(&'static str),
}

/// What the shell must do, in this order.
pub enum Output {
    /// Write this to the client.
    ToClient(Bytes),
    /// Write this range of a body to the client, waiting for it to grow where it does.
    ToClientFrom {
        /// The body.
        reader: Arc<dyn BlobReader>,
        /// Where to begin.
        offset: u64,
        /// How many octets.
        octets: u64,
    },
    /// Write this to the origin, as a TLS record of its own.
    ToServer(Bytes),
    /// Ask or tell the store.
    Catalog(CatalogOp),
    /// Once everything before is written, run the server side of TLS with the client.
    StartTls,
    /// The origin's stream is deflated from here on; `surplus` came already and is.
    CompressServer {
        /// Octets that came behind the origin's OK.
        surplus: Bytes,
    },
    /// The origin's connection ended before anything was asked of it: drop it, connect anew, and say so with
    /// [`handle_replacement`](super::Session::handle_replacement); if that fails, with
    /// [`handle_closed`](super::Session::handle_closed).
    ReplaceOrigin,
    /// Something to count.
    Event(Event),
    /// Once everything before is written, close both sides.
    Close(Closing),
    /// Once everything before is written, close the client's side only and hand the origin's over.
    Retain(Box<Facts>),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ToClient(octets) => write!(f, "ToClient({octets:?})"),
            Self::ToClientFrom { offset, octets, .. } => write!(f, "ToClientFrom({octets} at {offset})"),
            Self::ToServer(octets) => write!(f, "ToServer({octets:?})"),
            Self::Catalog(op) => write!(f, "Catalog({op:?})"),
            Self::StartTls => f.write_str("StartTls"),
            Self::CompressServer { surplus } => write!(f, "CompressServer({} octets)", surplus.len()),
            Self::ReplaceOrigin => f.write_str("ReplaceOrigin"),
            Self::Event(event) => write!(f, "Event({event:?})"),
            Self::Close(why) => write!(f, "Close({why:?})"),
            Self::Retain(facts) => write!(f, "Retain({})", facts.account.user),
        }
    }
}

/// Whose octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The mail reader.
    Client,
    /// The mail server.
    Server,
}
