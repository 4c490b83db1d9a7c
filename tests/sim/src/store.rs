//! A node's message store on a model disk: a log of records, an index in memory that is read from the log after a crash.
//! What cannot be verified is a miss, and counted.

use crate::{disk::Disk, random::Random};
use discovery_core::id::AccountKey;
use discovery_core::seam::blob::{BlobReader, Length, StoreError};
use imap_core::{
    catalog::{CatalogOp, CatalogReply, Claim, FillId, Held, MailboxKey, Row},
    item::ItemKey,
    mime::{Cut, SectionIndexer, header_fields},
    uid::Uid,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A body, perhaps not all of it yet.
#[derive(Default)]
struct Body {
    octets: Mutex<Vec<u8>>,
    ended: Mutex<Option<bool>>,
}

impl BlobReader for Body {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let octets = self.octets.lock().unwrap();
        let rest = octets.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn len(&self) -> Length {
        let octets = self.octets.lock().unwrap().len() as u64;
        if *self.ended.lock().unwrap() == Some(true) {
            Length::Known(octets)
        } else {
            Length::Growing(octets)
        }
    }

    fn wait(&self, _: u64, _: Duration) -> Result<Length, StoreError> {
        if *self.ended.lock().unwrap() == Some(false) { Err(StoreError::Abandoned) } else { Ok(self.len()) }
    }
}

struct Fill {
    mailbox: MailboxKey,
    uid: Option<Uid>,
    item: ItemKey,
    octets: u64,
    body: Arc<Body>,
}

type Place = (MailboxKey, Uid, ItemKey);

/// Where the log has the values of a mailbox.
type Rows = BTreeMap<Uid, BTreeMap<ItemKey, usize>>;

/// What a record on the disk was written for; stands beside it, since the encoding is not what is tested here.
#[derive(Clone)]
enum Entry {
    Value(Place),
    Selected(MailboxKey),
    Forgotten(MailboxKey),
    Expunged(MailboxKey, Vec<Uid>),
}

pub(crate) struct Store {
    disk: Disk,
    log: Vec<Entry>,
    rows: BTreeMap<MailboxKey, Rows>,
    fills: BTreeMap<FillId, Fill>,
    claims: BTreeMap<u64, Place>,
    /// Values that could not be verified, and were not served.
    pub(crate) damaged: u64,
    /// Values that did not fit.
    pub(crate) refused: u64,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            disk: Disk::new(),
            log: Vec::new(),
            rows: BTreeMap::new(),
            fills: BTreeMap::new(),
            claims: BTreeMap::new(),
            damaged: 0,
            refused: 0,
        }
    }

    pub(crate) fn disk(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// Bodies on their way from this session.
    pub(crate) fn fills_of(&self, session: u64) -> usize {
        self.fills.keys().filter(|fill| fill.session == session).count()
    }

    /// Whether this session still says that it fetches something.
    pub(crate) fn has_claim(&self, session: u64) -> bool {
        self.claims.contains_key(&session)
    }

    /// Whether it has all of a message.
    pub(crate) fn has_whole(&self, account: &AccountKey, name: &str, validity: u32, uid: u32) -> bool {
        let is = |key: &MailboxKey| {
            let named = key.account == *account && key.name == name.as_bytes();
            named && key.uid_validity.get() == validity
        };
        let mut rows = self.rows.iter().filter(|(key, _)| is(key)).map(|(_, rows)| rows);
        let uid = Uid::new(uid);
        rows.any(|rows| {
            uid.and_then(|uid| rows.get(&uid)).is_some_and(|row| row.contains_key(&ItemKey::whole()))
        })
    }

    /// The process ends without a word, and comes back.
    pub(crate) fn crash(&mut self, random: &mut Random, power: bool) {
        if power {
            self.disk.cut(random);
        }
        self.restart();
    }

    /// Another process opens what the disk holds.
    pub(crate) fn restart(&mut self) {
        self.fills.values().for_each(|fill| *fill.body.ended.lock().unwrap() = Some(false));
        self.fills.clear();
        self.claims.clear();
        self.log.truncate(self.disk.len());
        self.rows.clear();
        for at in 0..self.log.len() {
            if self.disk.read(at).is_some() {
                self.apply(at);
            } else {
                self.damaged += 1;
            }
        }
    }

    fn append(&mut self, now: u64, octets: Vec<u8>, entry: Entry) {
        match self.disk.write(now, octets) {
            Some(at) => {
                self.log.push(entry);
                self.apply(at);
            }
            None => {
                self.refused += 1;
                // What must not be served any more is not, whether that can be written or not.
                match &entry {
                    Entry::Value(_) => {}
                    Entry::Selected(_) | Entry::Forgotten(_) | Entry::Expunged(..) => self.retire(&entry),
                }
            }
        }
    }

    fn apply(&mut self, at: usize) {
        let entry = self.log[at].clone();
        match entry {
            Entry::Value((mailbox, uid, item)) => {
                self.rows.entry(mailbox).or_default().entry(uid).or_default().insert(item, at);
            }
            other => self.retire(&other),
        }
    }

    fn retire(&mut self, entry: &Entry) {
        let same = |a: &MailboxKey, b: &MailboxKey| a.account == b.account && a.name == b.name;
        match entry {
            Entry::Value(_) => {}
            Entry::Selected(mailbox) => {
                self.rows.retain(|key, _| !same(key, mailbox) || key.uid_validity == mailbox.uid_validity);
            }
            Entry::Forgotten(mailbox) => self.rows.retain(|key, _| !same(key, mailbox)),
            Entry::Expunged(mailbox, uids) => {
                if let Some(rows) = self.rows.get_mut(mailbox) {
                    uids.iter().for_each(|uid| drop(rows.remove(uid)));
                }
            }
        }
    }

    pub(crate) fn handle(&mut self, now: u64, op: CatalogOp) -> Option<CatalogReply> {
        match op {
            CatalogOp::Record { mailbox, uid, items, .. } => {
                for (key, value) in items {
                    self.append(now, value.to_vec(), Entry::Value((mailbox.clone(), uid, key)));
                }
            }
            CatalogOp::FillOpen { fill, mailbox, uid, item, octets } => {
                let fill_now = Fill { mailbox, uid, item, octets, body: Arc::default() };
                assert!(self.fills.insert(fill, fill_now).is_none(), "a fill was opened twice");
            }
            CatalogOp::FillData { fill, octets } => {
                let fill = self.fills.get(&fill).expect("data of a fill that was opened");
                let mut body = fill.body.octets.lock().unwrap();
                body.extend_from_slice(&octets);
                assert!(body.len() as u64 <= fill.octets, "more than was announced");
            }
            CatalogOp::FillCommit { fill, uid, .. } => {
                let fill = self.fills.remove(&fill).expect("a fill that was opened");
                *fill.body.ended.lock().unwrap() = Some(true);
                assert!(fill.uid.is_none_or(|opened| opened == uid), "it was opened for another message");
                let octets = fill.body.octets.lock().unwrap().clone();
                assert_eq!(octets.len() as u64, fill.octets, "committed before its end");
                self.append(now, octets, Entry::Value((fill.mailbox, uid, fill.item)));
            }
            CatalogOp::FillAbort { fill } => {
                let fill = self.fills.remove(&fill).expect("a fill that was opened");
                *fill.body.ended.lock().unwrap() = Some(false);
            }
            CatalogOp::Selected { mailbox } => self.append(now, vec![1], Entry::Selected(mailbox)),
            CatalogOp::Forget { account, name } => {
                let all: Vec<MailboxKey> = self
                    .rows
                    .keys()
                    .filter(|key| key.account == account && key.name == name)
                    .take(1)
                    .cloned()
                    .collect();
                for mailbox in all {
                    self.append(now, vec![2], Entry::Forgotten(mailbox));
                }
            }
            CatalogOp::Expunged { mailbox, uids } => {
                self.append(now, vec![3], Entry::Expunged(mailbox, uids));
            }
            CatalogOp::Resolve { request, mailbox, uids, items } => {
                let rows = uids.iter().map(|&uid| self.row(&mailbox, uid, &items)).collect();
                return Some(CatalogReply::Resolved { request, rows });
            }
            CatalogOp::Claim { request, session, mailbox, uid, item } => {
                let claim = self.claim(session, (mailbox, uid, item));
                return Some(CatalogReply::Claimed { request, claim });
            }
            CatalogOp::Release { session } => drop(self.claims.remove(&session)),
            CatalogOp::Account { .. }
            | CatalogOp::Count { .. }
            | CatalogOp::Used { .. }
            | CatalogOp::ShadowWanted { .. } => {}
        }
        None
    }

    fn claim(&mut self, session: u64, what: Place) -> Claim {
        if self.claims.iter().any(|(owner, claimed)| *owner != session && *claimed == what) {
            return Claim::Others;
        }
        if self.value(&what.0, what.1, &what.2).is_some() {
            return Claim::Held;
        }
        self.claims.insert(session, what);
        Claim::Yours
    }

    fn row(&mut self, mailbox: &MailboxKey, uid: Uid, items: &[ItemKey]) -> Row {
        Row { uid, values: items.iter().map(|item| self.value(mailbox, uid, item)).collect() }
    }

    fn value(&mut self, mailbox: &MailboxKey, uid: Uid, item: &ItemKey) -> Option<Held> {
        if let Some(value) = self.read(mailbox, uid, item) {
            return Some(held(value.to_vec()));
        }
        if let Some(whole) = self.read(mailbox, uid, &ItemKey::whole()) {
            return cut(whole, item).map(held);
        }
        let joins = |fill: &&Fill| fill.mailbox == *mailbox && fill.uid == Some(uid) && fill.item == *item;
        let fill = self.fills.values().find(joins)?;
        Some(Held::Filling { reader: fill.body.clone(), octets: fill.octets })
    }

    fn read(&mut self, mailbox: &MailboxKey, uid: Uid, item: &ItemKey) -> Option<&[u8]> {
        let rows = self.rows.get_mut(mailbox)?.get_mut(&uid)?;
        let octets = self.disk.read(*rows.get(item)?);
        if octets.is_none() {
            rows.remove(item);
            self.damaged += 1;
        }
        octets
    }
}

/// In memory or by reference: what is short comes in either way.
fn held(octets: Vec<u8>) -> Held {
    if octets.len() < 4096 && !octets.len().is_multiple_of(7) {
        return Held::Inline(octets.into());
    }
    let length = octets.len() as u64;
    // With something before and behind it, as in a larger body.
    let body = [b"before", octets.as_slice(), b"behind"].concat();
    let reader = Arc::new(Body { octets: Mutex::new(body), ended: Mutex::new(Some(true)) });
    Held::Stored { reader, offset: 6, octets: length }
}

fn cut(whole: &[u8], item: &ItemKey) -> Option<Vec<u8>> {
    let mut indexer = SectionIndexer::new();
    indexer.push(whole);
    let at = |n: u64| usize::try_from(n).unwrap();
    match indexer.finish().cut(item)? {
        Cut::Range { offset, octets } => Some(whole[at(offset)..at(offset + octets)].to_vec()),
        Cut::HeaderFields { header, names, not } => {
            Some(header_fields(&whole[at(header.start)..at(header.end)], &names, not))
        }
    }
}
