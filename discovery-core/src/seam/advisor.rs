//! What to fetch ahead: rooms that hold sessions tell what they see, and are told what to fetch next.
//!
//! Nothing here says 'mail'. A *collection* holds *items*, the later one with the higher number: a mailbox and its
//! UIDs, a directory and its files in the order of change. *Kin* is what items have in common beyond their
//! collection, as a hash that only the room that made it can read: a sender, a mailing list, a thread.

use crate::{
    id::{ServerId, UserKey},
    now::{Now, UnixMillis},
    value::{Access, ObjectKey},
};

/// What some items have in common. The room hashes it; [`Kin::NONE`] where there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kin(pub u64);

impl Kin {
    /// Nothing in common with anything.
    pub const NONE: Self = Self(0);

    /// The object under which accesses to kin are recorded. Protocols do not begin keys of their own with
    /// octet 0xff.
    #[must_use]
    pub fn object(self, server: &ServerId) -> ObjectKey {
        let mut key = vec![0xff];
        key.extend_from_slice(&self.0.to_be_bytes());
        ObjectKey { server: server.clone(), key }
    }
}

/// Kin of one item, the most telling last (IMAP: class of mail by its header, sender or list, thread).
pub type Kinship = [Kin; 3];

/// How much of an item the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Held {
    /// None of it, or only what is listed.
    #[default]
    Nothing,
    /// Its beginning or its main part, or what is on its way.
    Part,
    /// All of it.
    Whole,
}

/// One item of a collection, as a session listed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Grows with each arrival (IMAP: the UID).
    pub nth: u32,
    /// The key under which its accesses are recorded.
    pub object: ObjectKey,
    /// All its octets, as far as the server says so; servers may estimate.
    pub octets: u64,
    /// Octets of what is shown first (IMAP: header and text without attachments); `octets` when that is not known.
    pub main_octets: u64,
    /// When it came.
    pub arrived: UnixMillis,
    /// Somebody used it before (IMAP: `\Seen`).
    pub used: bool,
    /// What the store has.
    pub held: Held,
    /// What it has in common with others.
    pub kin: Kinship,
}

/// A collection that a session may fetch from.
#[derive(Clone, Copy, Debug)]
pub struct Collection<'a> {
    /// Its key.
    pub object: &'a ObjectKey,
    /// Its items, ascending by number.
    pub items: &'a [Item],
}

/// What a session can fetch from, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts<'a> {
    /// Whose session it is.
    pub user: UserKey,
    /// What is open, first; then others in any order.
    pub collections: &'a [Collection<'a>],
    /// The item of the first collection that is being read.
    pub reading: Option<u32>,
}

/// How much of an item to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// All of it.
    Whole,
    /// Its main part and at most so many octets (IMAP: the text leaves, then the beginning).
    Start(u64),
}

/// Why an item is fetched: in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is new where the user is.
    New,
    /// It stands beside what is being read.
    Neighbour,
    /// It is in the collection that is open.
    Rest,
    /// It is in another collection that this user opens.
    Elsewhere,
}

/// One thing to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOrder {
    /// From which collection.
    pub collection: ObjectKey,
    /// Which item.
    pub nth: u32,
    /// Its key: the ledger wants it.
    pub object: ObjectKey,
    /// How much.
    pub amount: Amount,
    /// At most so many octets are taken from the user's budget.
    pub octets: u64,
    /// Why.
    pub reason: Reason,
}

/// Says what to fetch ahead. Cheap enough to be asked between two slices; never waits.
pub trait Advisor: Send {
    /// An item is there for `user` to use: once for each item, when a session first lists it.
    fn listed(&mut self, user: UserKey, collection: &ObjectKey, item: &Item, now: Now);
    /// A user used an object.
    fn observe(&mut self, access: &Access, now: Now);
    /// An order was not carried out, and may be given again at once.
    fn returned(&mut self, _user: UserKey, _object: &ObjectKey) {}
    /// What to fetch next; `None` when nothing is worth it now. An order that was given is not given again for
    /// some minutes: say in the next facts what is held.
    fn next(&mut self, facts: &SessionFacts<'_>, now: Now) -> Option<FetchOrder>;
}
