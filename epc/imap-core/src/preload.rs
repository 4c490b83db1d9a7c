//! Mail that is fetched before anybody asks for it: what a session or a keeper tells whoever decides that, and what it
//! is told to do (US 9,172,620, 'synthetic transactions'). Who decides is a [`Preload`]; the octets are the session's.

mod describe;

pub use describe::{Description, Kindred, MailClass, Part};

use crate::{catalog::MailboxKey, item::ItemKey, retained::UidRanges, uid::Uid};
use discovery_core::{
    now::Now,
    seam::{advisor::Held, gate::Grant},
    value::Served,
};
use std::time::Instant;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// In which mailbox; its UIDVALIDITY must still be this one.
    pub mailbox: MailboxKey,
    /// What.
    pub work: Work,
}

/// What to fetch. All of it by PEEK, all of it into the store, none of it to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// [`DESCRIBING`] of these, and whether their bodies are held: [`Preload::described`] answers for each that exists.
    Describe(Vec<Uid>),
    /// `BODY[]`.
    Whole {
        /// Of which message.
        uid: Uid,
        /// Its length, as far as known.
        octets: u64,
    },
    /// Some sections only: the header and the text of a message whose attachments are not worth it.
    Sections {
        /// Of which message.
        uid: Uid,
        /// Which, and how long each is as far as known.
        sections: Vec<(ItemKey, u64)>,
    },
}

impl Work {
    /// About how many octets of message data that is.
    #[must_use]
    pub fn octets(&self) -> u64 {
        match self {
            Self::Describe(uids) => (uids.len() as u64).saturating_mul(DESCRIPTION_OCTETS),
            Self::Whole { octets, .. } => *octets,
            Self::Sections { sections, .. } => {
                sections.iter().fold(0, |sum, (_, octets)| sum.saturating_add(*octets))
            }
        }
    }
}

/// What a client read of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Octets that it was given.
    pub octets: u64,
    /// From where; [`Served::Store`] if all of them came from the store.
    pub served: Served,
}

/// Decides what is fetched that nobody asked for, and hears what it needs to know for that. One for each session or
/// keeper; all of a node's know the same. Called between octets: never blocks, never waits.
pub trait Preload: Send {
    /// The origin listed all messages of a mailbox.
    fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, now: Now);
    /// A message of it, as the origin describes it, or as the store remembers the origin's description.
    fn described(&mut self, mailbox: &MailboxKey, uid: Uid, said: &Description, now: Now);
    /// What the store has of a message now.
    fn held(&mut self, mailbox: &MailboxKey, uid: Uid, held: Held);
    /// A client opened a message: once for each FETCH of a body or of a part of it, not for lists of headers.
    fn read(&mut self, mailbox: &MailboxKey, uid: Uid, read: Read, now: Now);
    /// So many octets of a message came because of an [`Order`]; what is held is said apart.
    fn fetched(&mut self, mailbox: &MailboxKey, uid: Uid, octets: u64, now: Now);
    /// The origin no longer has these.
    fn gone(&mut self, mailbox: &MailboxKey, uids: &[Uid], now: Now);
    /// What to fetch next; `None`: nothing is worth it until something is told. `roams`: orders in other mailboxes than
    /// the open one can be followed.
    fn next(&mut self, open: &MailboxKey, roams: bool, now: Now) -> Option<Order>;
    /// May so many octets come from the origin now? Asked before each command; foreground goes first.
    fn ask(&mut self, octets: u32, now: Now) -> Grant;
    /// Until when octets of an order that are under way on a connection of their own should not be read, because
    /// somebody waits for others. Asked often.
    fn standstill(&mut self, _now: Now) -> Option<Instant> {
        None
    }
    /// A client's command is with the origin (`true`), or is done (`false`); the calls come in pairs.
    fn foreground(&mut self, active: bool, now: Now);
}

/// What is asked of a message that [`Work::Describe`] names, in the order in which it is written.
pub const DESCRIBING: &str = "UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE \
    BODY.PEEK[HEADER.FIELDS (AUTO-SUBMITTED LIST-ID LIST-POST LIST-UNSUBSCRIBE REFERENCES)]";

/// The header fields of [`DESCRIBING`], as a key of the store.
#[must_use]
pub fn describing_fields() -> ItemKey {
    ItemKey::from_normalised(
        "BODY[HEADER.FIELDS (AUTO-SUBMITTED LIST-ID LIST-POST LIST-UNSUBSCRIBE REFERENCES)]",
    )
}

/// Items that describe a message, as keys of the store: what [`Description::of`] wants.
#[must_use]
pub fn describing_items() -> Vec<ItemKey> {
    let fixed = ["INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODYSTRUCTURE"];
    fixed.into_iter().map(ItemKey::from_normalised).chain([describing_fields()]).collect()
}

/// A description on the wire, about.
pub const DESCRIPTION_OCTETS: u64 = 900;
