//! What to fetch ahead of an account: what its sessions and its keeper told, put before the advisor.
//!
//! ```text
//!  listed ─► which of the newest are not described yet? ─► Describe
//!  described, held, read ─► items ─► advisor (user affinity database) ─► Whole, Sections
//!  fetched, read, gone ─► ledger: used or wasted
//! ```
//! One [`Plan`] an account, however many sessions it has: what one of them heard the others need not ask.

mod listing;
mod planner;
mod reading;
#[cfg(test)]
mod tests;

use discovery_core::{
    id::{AccountKey, UserKey, UserKeying},
    now::Now,
    seam::{
        advisor::{Advisor, Amount, Collection, FetchOrder, Held, Item, Kin, SessionFacts},
        preloaded::PreloadLedger,
    },
    value::{Access, ObjectKey, Served},
};
use imap_core::{
    catalog::MailboxKey,
    item::ItemKey,
    preload::{Description, Kindred, Order, Read, Work},
    retained::UidRanges,
    uid::Uid,
};
use listing::Listing;
pub use planner::{Plans, PlansAround};
use reading::Opened;
pub use reading::Reading;
use std::{collections::BTreeMap, sync::Arc};

/// Whom a plan asks, and whom it tells.
pub struct Around<'a> {
    /// What is worth its octets.
    pub advisor: &'a mut dyn Advisor,
    /// What came of them.
    pub ledger: &'a dyn PreloadLedger,
    /// Where the session that speaks is.
    pub reading: &'a mut Reading,
}

/// See the module's documentation.
pub struct Plan {
    account: AccountKey,
    keying: Arc<dyn UserKeying>,
    mailboxes: BTreeMap<MailboxKey, Listing>,
    /// Where its user is: the message that he read last.
    place: Option<(MailboxKey, Uid)>,
    /// Connections on which nobody waits: while there is one, it fetches for all sessions.
    lanes: u32,
    /// Nothing was told since nothing was found worth fetching, by mailbox in front of the question.
    fed: BTreeMap<MailboxKey, u64>,
    told: u64,
}

/// Mailboxes of an account that are remembered; the one that was told of least recently goes.
const MAILBOXES_MAX: usize = 8;

impl Plan {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(account: AccountKey, keying: Arc<dyn UserKeying>) -> Self {
        Self {
            account,
            keying,
            mailboxes: BTreeMap::new(),
            place: None,
            lanes: 0,
            fed: BTreeMap::new(),
            told: 1,
        }
    }

    /// The origin listed a mailbox.
    pub fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, now: Now) {
        self.told += 1;
        // Another generation of it; with UTF8=ACCEPT it is one of its own.
        let replaced =
            |other: &MailboxKey| other.name == mailbox.name && other.utf8 == mailbox.utf8 && other != mailbox;
        self.mailboxes.retain(|other, _| !replaced(other));
        self.listing(mailbox, now).listed(uids);
    }

    /// A message was described.
    pub fn described(
        &mut self,
        mailbox: &MailboxKey,
        uid: Uid,
        said: &Description,
        now: Now,
        around: &mut Around<'_>,
    ) {
        self.told += 1;
        let kin = self.kin(&said.kindred);
        let user = self.user();
        let (collection, object) = (self.collection_of(mailbox), self.object_of(mailbox, uid));
        let listing = self.listing(mailbox, now);
        listing.described(uid, said, kin);
        if let Some(item) = listing.item(uid, object) {
            around.advisor.listed(user, &collection, &item, now);
        }
    }

    /// The store has so much of a message.
    pub fn held(&mut self, mailbox: &MailboxKey, uid: Uid, held: Held, now: Now) {
        self.listing(mailbox, now).held(uid, held);
    }

    /// Some of a message came because of an order.
    pub fn fetched(
        &mut self,
        mailbox: &MailboxKey,
        uid: Uid,
        octets: u64,
        now: Now,
        around: &mut Around<'_>,
    ) {
        around.ledger.fetched(self.user(), &self.object_of(mailbox, uid), octets, now.wall);
    }

    /// A client read some of a message.
    pub fn read(&mut self, mailbox: &MailboxKey, uid: Uid, read: Read, now: Now, around: &mut Around<'_>) {
        self.told += 1;
        let user = self.user();
        let object = self.object_of(mailbox, uid);
        match read.served {
            Served::Store => around.ledger.used(user, &object, read.octets),
            // What had been fetched was of no use to him.
            Served::Origin => around.ledger.gone(user, &object),
        }
        self.listing(mailbox, now).read(uid);
        self.place = Some((mailbox.clone(), uid));
        let over = around.reading.read(mailbox, uid, read, now);
        self.opened(over, now, around);
    }

    /// Messages are gone.
    pub fn gone(&mut self, mailbox: &MailboxKey, uids: &[Uid], around: &mut Around<'_>) {
        for uid in uids {
            around.ledger.gone(self.user(), &self.object_of(mailbox, *uid));
        }
        if let Some(listing) = self.mailboxes.get_mut(mailbox) {
            listing.gone(uids);
        }
    }

    /// What to fetch next.
    pub fn next(
        &mut self,
        open: &MailboxKey,
        roams: bool,
        now: Now,
        around: &mut Around<'_>,
    ) -> Option<Order> {
        let over = around.reading.settle(now);
        self.opened(over, now, around);
        if !roams && self.lanes > 0 {
            return None;
        }
        // Where the user is comes first, also for those who work for him elsewhere.
        let place = self.place.as_ref().map(|(mailbox, _)| mailbox).filter(|place| place.utf8 == open.utf8);
        let open = place.filter(|place| roams && self.mailboxes.contains_key(*place)).unwrap_or(open).clone();
        let open = &open;
        // Asked at each rest of each session: found empty, it stays so until something is told.
        if self.fed.get(open) == Some(&self.told) {
            return None;
        }
        let order = self.choose(open, roams, now, around);
        if order.is_none() {
            self.fed.retain(|mailbox, _| self.mailboxes.contains_key(mailbox));
            self.fed.insert(open.clone(), self.told);
        }
        order
    }

    /// An order was not carried out: its session has ended, or left the mailbox.
    pub fn returned(&mut self, order: &Order, around: &mut Around<'_>) {
        self.told += 1;
        let user = self.user();
        match &order.work {
            Work::Describe(uids) => {
                if let Some(listing) = self.mailboxes.get_mut(&order.mailbox) {
                    listing.unasked(uids);
                }
            }
            Work::Whole { uid, .. } | Work::Sections { uid, .. } => {
                around.advisor.returned(user, &self.object_of(&order.mailbox, *uid));
            }
        }
    }

    /// A connection on which nobody waits is there, or is gone.
    pub fn lane(&mut self, there: bool) {
        self.told += 1;
        self.lanes = if there { self.lanes.saturating_add(1) } else { self.lanes.saturating_sub(1) };
    }

    /// The session that speaks ends.
    pub fn finish(&mut self, now: Now, around: &mut Around<'_>) {
        let over = around.reading.finish();
        self.opened(over, now, around);
    }

    fn choose(&mut self, open: &MailboxKey, roams: bool, now: Now, around: &mut Around<'_>) -> Option<Order> {
        let listing = self.mailboxes.get_mut(open)?;
        if let Some(uids) = listing.undescribed(NEWEST, now.mono) {
            return Some(Order { mailbox: open.clone(), work: Work::Describe(uids) });
        }
        if let Some(order) = self.body(open, roams, now, around) {
            return Some(order);
        }
        let listing = self.mailboxes.get_mut(open)?;
        if let Some(uids) = listing.undescribed(listing::DESCRIBED_MAX, now.mono) {
            return Some(Order { mailbox: open.clone(), work: Work::Describe(uids) });
        }
        // Others, whichever was looked at last first.
        let mut others: Vec<_> = self
            .mailboxes
            .iter_mut()
            .filter(|(key, _)| roams && *key != open && key.utf8 == open.utf8)
            .collect();
        others.sort_by_key(|(_, listing)| std::cmp::Reverse(listing.told));
        others.into_iter().find_map(|(key, listing)| {
            let uids = listing.undescribed(NEWEST, now.mono)?;
            Some(Order { mailbox: key.clone(), work: Work::Describe(uids) })
        })
    }

    fn body(&mut self, open: &MailboxKey, roams: bool, now: Now, around: &mut Around<'_>) -> Option<Order> {
        let others = self.mailboxes.iter().filter(|(key, _)| roams && *key != open && key.utf8 == open.utf8);
        let first = self.mailboxes.get_key_value(open);
        let told: Vec<(&MailboxKey, ObjectKey, Vec<Item>)> = first
            .into_iter()
            .chain(others)
            .map(|(key, listing)| {
                let name = self.name_of(key);
                (key, collection(key, name), listing.items(|uid| object(key, name, uid)))
            })
            .collect();
        let collections: Vec<Collection<'_>> =
            told.iter().map(|(_, object, items)| Collection { object, items }).collect();
        let reading = self.place.as_ref().filter(|(place, _)| place == open).map(|(_, uid)| uid.get());
        let facts = SessionFacts { user: self.user(), collections: &collections, reading };
        for _ in 0..ORDERS_REFUSED_MAX {
            let FetchOrder { collection, nth, amount, .. } = around.advisor.next(&facts, now)?;
            let found = told.iter().find(|(_, object, _)| *object == collection);
            let Some((mailbox, uid)) = found.map(|(key, ..)| *key).zip(Uid::new(nth)) else { continue };
            let listing = self.mailboxes.get(mailbox)?;
            let work = match amount {
                Amount::Whole => Some(Work::Whole { uid, octets: listing.octets(uid) }),
                Amount::Start(octets) => start(uid, listing.text(uid), octets),
            };
            if let Some(work) = work {
                return Some(Order { mailbox: mailbox.clone(), work });
            }
        }
        None
    }

    fn opened(&self, opened: Option<Opened>, now: Now, around: &mut Around<'_>) {
        let Some(Opened { mailbox, uid, octets, served, at }) = opened else { return };
        let user = self.user();
        around.ledger.opened(user, served);
        let access = Access { user, object: self.object_of(&mailbox, uid), octets, served, at };
        around.advisor.observe(&access, now);
    }

    fn listing(&mut self, mailbox: &MailboxKey, now: Now) -> &mut Listing {
        if !self.mailboxes.contains_key(mailbox) && self.mailboxes.len() >= MAILBOXES_MAX {
            let quiet = self.mailboxes.iter().min_by_key(|(_, listing)| listing.told);
            if let Some(quiet) = quiet.map(|(key, _)| key.clone()) {
                self.mailboxes.remove(&quiet);
            }
        }
        let listing = self.mailboxes.entry(mailbox.clone()).or_insert_with(|| Listing::new(now.mono));
        listing.told = now.mono;
        listing
    }

    fn collection_of(&self, mailbox: &MailboxKey) -> ObjectKey {
        collection(mailbox, self.name_of(mailbox))
    }

    fn object_of(&self, mailbox: &MailboxKey, uid: Uid) -> ObjectKey {
        object(mailbox, self.name_of(mailbox), uid)
    }

    /// Names of mailboxes stand in no database: under the organisation's key, with the user in it.
    fn name_of(&self, mailbox: &MailboxKey) -> [u8; 16] {
        let server = self.account.server.as_str().as_bytes();
        let said = [b"mailbox\0", &self.user().to_octets()[..], server, b"\0", &mailbox.name].concat();
        self.keying.user_key(&said).hash
    }

    fn user(&self) -> UserKey {
        self.account.user
    }

    /// Under the organisation's key: names of senders and threads stand nowhere. A thread is the user's own affair, and
    /// so is what he makes of a sender.
    fn kin(&self, kindred: &Kindred) -> [Kin; 3] {
        let hash = |kind: u8, words: &[u8]| {
            let server = self.account.server.as_str().as_bytes();
            let said = [b"kin\0", &[kind][..], &self.user().to_octets(), server, b"\0", words].concat();
            let octets = self.keying.user_key(&said).hash;
            let (first, _) = octets.split_at(8);
            Kin(first.iter().fold(0, |n, octet| n << 8 | u64::from(*octet)).max(1))
        };
        let class = [kindred.class as u8];
        let of = |kind, words: &Option<bytes::Bytes>| words.as_ref().map_or(Kin::NONE, |w| hash(kind, w));
        [hash(0, &class), of(1, &kindred.source), of(2, &kindred.thread)]
    }
}

/// Under which a mailbox stands in the user affinity database; the same in every generation of it.
fn collection(mailbox: &MailboxKey, name: [u8; 16]) -> ObjectKey {
    ObjectKey { server: mailbox.account.server.clone(), key: [b"c", &name[..]].concat() }
}

/// Under which a message stands there.
fn object(mailbox: &MailboxKey, name: [u8; 16], uid: Uid) -> ObjectKey {
    let (validity, uid) = (mailbox.uid_validity.get().to_be_bytes(), uid.get().to_be_bytes());
    let key = [&[b'm', u8::from(mailbox.utf8)][..], &validity, &uid, &name].concat();
    ObjectKey { server: mailbox.account.server.clone(), key }
}

/// The header and as much text as fits; `None` where nothing of the text is known.
fn start(uid: Uid, text: &[(ItemKey, u64)], octets_max: u64) -> Option<Work> {
    let mut left = octets_max;
    let mut sections = vec![(ItemKey::section(b"HEADER")?, 0)];
    for (key, octets) in text {
        if *octets <= left {
            left -= octets;
            sections.push((key.clone(), *octets));
        }
    }
    (sections.len() > 1).then_some(Work::Sections { uid, sections })
}

/// Described before the first body is fetched.
const NEWEST: usize = 48;

/// Orders in a row that cannot be followed.
const ORDERS_REFUSED_MAX: usize = 8;
