//! A store as simple as can be. Whole messages are kept once for everybody; each account has rows of its own.

use crate::random::Random;
use discovery_core::seam::blob::{BlobReader, Length, StoreError};
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, Claim, FillId, Held, MailboxKey, Row},
    item::ItemKey,
    mime::{Cut, SectionIndexer, header_fields},
    uid::Uid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

/// A body, perhaps not all of it yet.
#[derive(Default)]
pub(crate) struct Body {
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

#[derive(Default)]
struct State {
    /// Content of sections and values of items.
    rows: BTreeMap<(MailboxKey, Uid, ItemKey), Arc<Vec<u8>>>,
    blobs: BTreeSet<Arc<Vec<u8>>>,
    fills: BTreeMap<FillId, Fill>,
    claims: BTreeMap<u64, (MailboxKey, Uid, ItemKey)>,
    lost: Option<Random>,
}

/// See the module's text.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<State>>);

impl Shelf {
    /// Loses a row now and then, as a store that is full or damaged does.
    pub(crate) fn forgetful(random: Random) -> Self {
        let shelf = Self::default();
        shelf.0.lock().unwrap().lost = Some(random);
        shelf
    }

    /// Loses all rows, as a store does that is small.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap().rows.clear();
    }

    /// Whether this session still says that it fetches something.
    pub(crate) fn has_claim(&self, session: u64) -> bool {
        self.0.lock().unwrap().claims.contains_key(&session)
    }

    /// Bodies on their way from this session.
    pub(crate) fn fills_of(&self, session: u64) -> usize {
        self.0.lock().unwrap().fills.keys().filter(|fill| fill.session == session).count()
    }
}

impl Catalog for Shelf {
    fn handle(&self, op: CatalogOp) -> Option<CatalogReply> {
        let mut state = self.0.lock().unwrap();
        match op {
            CatalogOp::Record { mailbox, uid, items, .. } => {
                for (key, value) in items {
                    state.rows.insert((mailbox.clone(), uid, key), Arc::new(value.to_vec()));
                }
            }
            CatalogOp::FillOpen { fill, mailbox, uid, item, octets } => {
                let fresh =
                    state.fills.insert(fill, Fill { mailbox, uid, item, octets, body: Arc::default() });
                assert!(fresh.is_none(), "a fill was opened twice");
            }
            CatalogOp::FillData { fill, octets } => {
                let fill = state.fills.get(&fill).expect("data of a fill that was opened");
                let mut body = fill.body.octets.lock().unwrap();
                body.extend_from_slice(&octets);
                assert!(body.len() as u64 <= fill.octets, "more than was announced");
            }
            CatalogOp::FillCommit { fill, uid, .. } => {
                let fill = state.fills.remove(&fill).expect("a fill that was opened");
                *fill.body.ended.lock().unwrap() = Some(true);
                assert!(fill.uid.is_none_or(|opened| opened == uid), "it was opened for another message");
                let octets = Arc::new(fill.body.octets.lock().unwrap().clone());
                assert_eq!(octets.len() as u64, fill.octets, "committed before its end");
                let blob = state.blobs.get(&octets).cloned().unwrap_or(octets);
                state.blobs.insert(blob.clone());
                state.rows.insert((fill.mailbox, uid, fill.item), blob);
            }
            CatalogOp::FillAbort { fill } => {
                let fill = state.fills.remove(&fill).expect("a fill that was opened");
                *fill.body.ended.lock().unwrap() = Some(false);
            }
            CatalogOp::Selected { mailbox } => {
                state.rows.retain(|(key, ..), _| {
                    key.account != mailbox.account
                        || key.name != mailbox.name
                        || key.uid_validity == mailbox.uid_validity
                });
            }
            CatalogOp::Forget { account, name } => {
                state.rows.retain(|(key, ..), _| key.account != account || key.name != name);
            }
            CatalogOp::Expunged { mailbox, uids } => {
                state.rows.retain(|(key, uid, _), _| *key != mailbox || !uids.contains(uid));
            }
            CatalogOp::Resolve { request, mailbox, uids, items } => {
                let rows = uids.iter().map(|&uid| state.row(&mailbox, uid, &items)).collect();
                return Some(CatalogReply::Resolved { request, rows });
            }
            CatalogOp::Claim { request, session, mailbox, uid, item } => {
                let claim = state.claim(session, (mailbox, uid, item));
                return Some(CatalogReply::Claimed { request, claim });
            }
            CatalogOp::Release { session } => {
                state.claims.remove(&session);
            }
            CatalogOp::Account { .. }
            | CatalogOp::Count { .. }
            | CatalogOp::Used { .. }
            | CatalogOp::ShadowWanted { .. } => {}
        }
        None
    }
}

impl State {
    fn claim(&mut self, session: u64, what: (MailboxKey, Uid, ItemKey)) -> Claim {
        // Of some, nothing has come for long.
        let void = self.lost.as_mut().is_some_and(|random| random.once_in(20));
        if !void && self.claims.iter().any(|(owner, claimed)| *owner != session && *claimed == what) {
            return Claim::Others;
        }
        if self.value(&what.0, what.1, &what.2).is_some() {
            return Claim::Held;
        }
        self.claims.insert(session, what);
        Claim::Yours
    }

    fn row(&mut self, mailbox: &MailboxKey, uid: Uid, items: &[ItemKey]) -> Row {
        if self.lost.as_mut().is_some_and(|random| random.once_in(30)) {
            self.rows.retain(|(key, of, _), _| key != mailbox || *of != uid);
        }
        Row { uid, values: items.iter().map(|item| self.value(mailbox, uid, item)).collect() }
    }

    fn value(&self, mailbox: &MailboxKey, uid: Uid, item: &ItemKey) -> Option<Held> {
        if let Some(value) = self.rows.get(&(mailbox.clone(), uid, item.clone())) {
            return Some(held(value.to_vec()));
        }
        if let Some(whole) = self.rows.get(&(mailbox.clone(), uid, ItemKey::whole())) {
            return cut(whole, item).map(held);
        }
        let joins = |fill: &&Fill| fill.mailbox == *mailbox && fill.uid == Some(uid) && fill.item == *item;
        let fill = self.fills.values().find(joins)?;
        Some(Held::Filling { reader: fill.body.clone(), octets: fill.octets })
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
