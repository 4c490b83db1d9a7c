//! What a session wants of the store, in values. The session says [`CatalogOp`]s, the store answers
//! [`CatalogReply`]s; neither knows the other.
//!
//! The store answers for a row only; whether this session may see that row is the session's own business
//! (authenticated, mailbox selected under this UIDVALIDITY, UID shown by the origin to this very session).

use crate::{
    item::ItemKey,
    uid::{Uid, UidValidity},
};
use bytes::Bytes;
use discovery_core::{id::AccountKey, seam::blob::BlobReader, value::Proof};
use std::{fmt, sync::Arc, time::Duration};

/// A mailbox generation of one account: the scope of a UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MailboxKey {
    /// Whose.
    pub account: AccountKey,
    /// The name, INBOX case-folded, otherwise the octets that the client sent (unquoted). Names that differ
    /// only in encoding are two mailboxes here: colder, never wrong.
    pub name: Bytes,
    /// Its generation.
    pub uid_validity: UidValidity,
    /// Whether the session had UTF8=ACCEPT on: servers may then send other octets (RFC 6855).
    pub utf8: bool,
}

/// Matches an answer to its question; unique within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A body on its way into the store; unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FillId {
    /// The session that reads it from the origin.
    pub session: u64,
    /// Counted within the session.
    pub n: u64,
}

/// A section's content that the store can give.
#[derive(Clone)]
pub enum Held {
    /// A value that is not a section, or a small section: for a section its content without `{n}`, for
    /// anything else the origin's own octets, possibly with literals in them.
    Inline(Bytes),
    /// Content of a large body, complete and verified a moment ago.
    Stored {
        /// Gives the octets; verifies each again.
        reader: Arc<dyn BlobReader>,
        /// Where the section begins in it.
        offset: u64,
        /// The section's length.
        octets: u64,
    },
    /// The whole message is on its way through another command; joins it instead of asking again.
    Filling {
        /// Gives octets as they come.
        reader: Arc<dyn BlobReader>,
        /// The announced length.
        octets: u64,
    },
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(octets) => write!(f, "Inline({} octets)", octets.len()),
            Self::Stored { offset, octets, .. } => write!(f, "Stored({octets} octets at {offset})"),
            Self::Filling { octets, .. } => write!(f, "Filling({octets} octets)"),
        }
    }
}

impl Held {
    /// Octets of the whole value.
    #[must_use]
    pub fn octets(&self) -> u64 {
        match self {
            Self::Inline(octets) => octets.len() as u64,
            Self::Stored { octets, .. } | Self::Filling { octets, .. } => *octets,
        }
    }
}

/// What becomes of a [`CatalogOp::Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// Fetch it: whoever asks from now on is told [`Claim::Others`], until [`CatalogOp::Release`], or until nothing
    /// of it has come for [`CLAIM_IDLE`].
    Yours,
    /// Another session fetches it at this moment. Ask again in a while.
    Others,
    /// It came meanwhile: ask for it.
    Held,
}

/// What a session asks of or tells the store.
#[derive(Clone, Debug)]
pub enum CatalogOp {
    /// The origin accepted `identity` as this account. The only place where a name is kept.
    Account {
        /// Its key.
        account: AccountKey,
        /// The exact authentication identity.
        identity: Bytes,
    },
    /// The origin opened this mailbox generation for this account: every other generation of the name is
    /// history and must never be served again.
    Selected {
        /// The generation that lives.
        mailbox: MailboxKey,
    },
    /// Which of `items` are held for each of `uids`? Answered by [`CatalogReply::Resolved`]. At most
    /// [`RESOLVE_UIDS_MAX`] UIDs.
    Resolve {
        /// Comes back with the answer.
        request: RequestId,
        /// Where.
        mailbox: MailboxKey,
        /// Which messages.
        uids: Vec<Uid>,
        /// Which items of each.
        items: Vec<ItemKey>,
    },
    /// A section is not held: may this session fetch it, or does another of this account do so at this moment?
    /// Answered by [`CatalogReply::Claimed`]. A session has one claim at most; a second takes the place of the first.
    Claim {
        /// Comes back with the answer.
        request: RequestId,
        /// Who asks: the number that its [`FillId`]s bear.
        session: u64,
        /// Where.
        mailbox: MailboxKey,
        /// Of which message.
        uid: Uid,
        /// Which section.
        item: ItemKey,
    },
    /// The session no longer fetches what it claimed, whether it came or not.
    Release {
        /// Whose claim.
        session: u64,
    },
    /// How many of `uids` hold all of `items`? Cheap; answered by [`CatalogReply::Counted`].
    Count {
        /// Comes back with the answer.
        request: RequestId,
        /// Where.
        mailbox: MailboxKey,
        /// Which messages; empty means all of the mailbox.
        uids: Vec<Uid>,
        /// Which items.
        items: Vec<ItemKey>,
    },
    /// The origin said these small values. Sections as content, the rest as the origin's own octets.
    Record {
        /// Where.
        mailbox: MailboxKey,
        /// Of which message.
        uid: Uid,
        /// What.
        items: Vec<(ItemKey, Bytes)>,
        /// By what evidence.
        proof: Proof,
    },
    /// A section of known length begins to arrive.
    FillOpen {
        /// Names the stream.
        fill: FillId,
        /// Where.
        mailbox: MailboxKey,
        /// Of which message, where others may join: its octets come at the origin's pace, and it must not be given up
        /// because the disk is slow, since clients may be waiting for it.
        uid: Option<Uid>,
        /// Which section.
        item: ItemKey,
        /// The announced length.
        octets: u64,
    },
    /// More of it.
    FillData {
        /// Which stream.
        fill: FillId,
        /// What came.
        octets: Bytes,
    },
    /// It is complete and belongs to this message.
    FillCommit {
        /// Which stream.
        fill: FillId,
        /// Of which message.
        uid: Uid,
        /// By what evidence.
        proof: Proof,
    },
    /// It will not be completed.
    FillAbort {
        /// Which stream.
        fill: FillId,
    },
    /// The origin no longer has these.
    Expunged {
        /// Where.
        mailbox: MailboxKey,
        /// Which.
        uids: Vec<Uid>,
    },
    /// The mailbox was deleted or renamed: forget every generation of it.
    Forget {
        /// Whose.
        account: AccountKey,
        /// Which, as in [`MailboxKey::name`].
        name: Bytes,
    },
    /// These values came from the store to the client.
    Used {
        /// Where.
        mailbox: MailboxKey,
        /// Which.
        uids: Vec<Uid>,
    },
    /// Which sections should be fetched to compare the origin's cut with ours? Answered by
    /// [`CatalogReply::ShadowWanted`].
    ShadowWanted {
        /// Comes back with the answer.
        request: RequestId,
        /// Where.
        mailbox: MailboxKey,
    },
}

/// One message's answers, in the order of the items asked.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which message.
    pub uid: Uid,
    /// What is held of each item.
    pub values: Vec<Option<Held>>,
}

/// What the store answers.
#[derive(Clone, Debug)]
pub enum CatalogReply {
    /// To [`CatalogOp::Resolve`]: one row for each UID asked, in that order.
    Resolved {
        /// The question.
        request: RequestId,
        /// The rows.
        rows: Vec<Row>,
    },
    /// To [`CatalogOp::Claim`].
    Claimed {
        /// The question.
        request: RequestId,
        /// The answer.
        claim: Claim,
    },
    /// To [`CatalogOp::Count`].
    Counted {
        /// The question.
        request: RequestId,
        /// How many messages hold all the items.
        messages: u64,
        /// How many messages of the mailbox have any row at all.
        known: u64,
    },
    /// To [`CatalogOp::ShadowWanted`]; at most one message.
    ShadowWanted {
        /// The question.
        request: RequestId,
        /// Which message and which of its sections, if any comparison is still needed.
        wanted: Option<(Uid, Vec<ItemKey>)>,
    },
}

/// Executes [`CatalogOp`]s. Blocking; the shell calls it where blocking is fine. Never fails: a store that
/// cannot answer says 'not held', counts, and the session goes to the origin.
pub trait Catalog: Send + Sync {
    /// Does `op`; the ops that are questions return their answer.
    fn handle(&self, op: CatalogOp) -> Option<CatalogReply>;
}

/// A claim of which nothing comes for so long counts for nothing: its session may stand still for as long as its client
/// likes, or have ended without a word. Longer than a round trip to the far end of the world and back.
pub const CLAIM_IDLE: Duration = Duration::from_secs(2);

/// A session asks in batches of at most this many messages, so that one question never holds a reader long.
pub const RESOLVE_UIDS_MAX: usize = 256;

/// Sections up to this length come as [`Held::Inline`]; longer ones are streamed.
pub const INLINE_OCTETS_MAX: u64 = 128 * 1024;
