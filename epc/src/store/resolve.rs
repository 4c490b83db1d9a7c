//! Answers questions: a value as the origin said it, or a section cut from the stored message where this server's
//! cuts have earned trust, or nothing.

use super::{
    bodies::{Bodies, lock},
    body::{Body, BodyReader},
    columns,
    head::{Head, Piece},
    index::Index,
    scope::{Place, Scope},
    write::{BINDING, ITEM, Write, find_mailbox, proof_number},
};
use bytes::Bytes;
use discovery_core::{
    id::ServerId,
    seam::{
        blob::{BlobId, StoreError},
        sealer::{SealContext, Tampered},
    },
    value::Proof,
};
use imap_core::{
    catalog::{Held, INLINE_OCTETS_MAX, RESOLVE_UIDS_MAX},
    item::{ItemClass, ItemKey, SectionClass},
    mime::header_fields,
    mutants,
    uid::Uid,
};
use rusqlite::{Connection, Row, params};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub(super) struct Resolver {
    pub(super) index: Arc<Index>,
    pub(super) bodies: Arc<Bodies>,
    /// Bodies that were read and verified whole a moment ago.
    verified: Mutex<HashMap<BlobId, Instant>>,
}

/// What the index says about one message.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) values: HashMap<ItemKey, StoredValue>,
    pub(super) whole: Option<Whole>,
    /// Something of it is not what was written for it.
    damaged: bool,
}

pub(super) enum StoredValue {
    Octets(Bytes),
    Blob(BlobId),
}

pub(super) struct Whole {
    pub(super) id: BlobId,
    pub(super) head: Option<Head>,
}

impl Resolver {
    pub(super) fn new(index: Arc<Index>, bodies: Arc<Bodies>) -> Self {
        Self { index, bodies, verified: Mutex::default() }
    }

    /// For each of `uids`, what is held of each of `items`.
    pub(super) fn resolve(
        &self,
        server: &ServerId,
        scope: &Scope,
        uids: &[Uid],
        items: &[ItemKey],
    ) -> Vec<Vec<Option<Held>>> {
        let nothing = || uids.iter().map(|_| vec![None; items.len()]).collect();
        if !self.index.settle_mailbox(&scope.mailbox) {
            return nothing();
        }
        let asked = uids.get(..RESOLVE_UIDS_MAX).unwrap_or(uids);
        let Some(Some(mut stored)) = self.index.read(|db| self.look_up(db, scope, asked, items)) else {
            return nothing();
        };
        let damaged: Vec<Uid> =
            stored.iter().filter(|(_, stored)| stored.damaged).map(|(uid, _)| *uid).collect();
        if !damaged.is_empty() {
            self.index.counters.corrupt.add(damaged.len() as u64);
            tracing::warn!(
                messages = damaged.len(),
                "rows of the store's index are damaged; they are removed"
            );
            self.index.put(Write::Expunged { scope: scope.clone(), uids: damaged });
        }
        let mut budget = Budget { inline: RESOLVE_INLINE_OCTETS_MAX };
        let mut cuts = HashMap::new();
        let answer = uids
            .iter()
            .map(|uid| match stored.get_mut(uid) {
                None => vec![None; items.len()],
                Some(stored) => {
                    items.iter().map(|item| self.held(server, stored, item, &mut budget, &mut cuts)).collect()
                }
            })
            .collect();
        for (class, cuts) in cuts {
            self.index.trust.served(server, class, cuts);
        }
        answer
    }

    /// How many of `uids` (all, if none are named) hold all of `items`, and how many messages the mailbox knows. A
    /// section that would be cut counts as held wherever the whole is, though the slicer may refuse that message.
    pub(super) fn count(
        &self,
        server: &ServerId,
        scope: &Scope,
        uids: &[Uid],
        items: &[ItemKey],
    ) -> (u64, u64) {
        if !self.index.settle_mailbox(&scope.mailbox) {
            return (0, 0);
        }
        let mut sql = String::from("SELECT count(*) FROM msg WHERE mailbox = ?1");
        let all_known = sql.clone();
        if !uids.is_empty() {
            sql.push_str(" AND uid IN (SELECT value FROM json_each(?2))");
        }
        for item in items.get(..COUNT_ITEMS_MAX).unwrap_or(items) {
            sql.push_str(" AND (0");
            let header = header_key();
            let fields = item.class() == ItemClass::Section(SectionClass::HeaderFields);
            let may_cut = match item.class() {
                ItemClass::Section(class) => self.index.trust.may_cut(server, class),
                ItemClass::Uid | ItemClass::Dynamic | ItemClass::Fixed => false,
            };
            for key in [Some(item), Some(&header).filter(|_| fields && may_cut)].into_iter().flatten() {
                if let Some(key) = self.index.keys.get(key) {
                    sql.push_str(&format!(
                        " OR EXISTS(SELECT 1 FROM item i WHERE i.mailbox = ?1 AND i.uid = msg.uid AND i.key = {key}
                        AND i.proof = 0)"
                    ));
                }
            }
            if may_cut {
                sql.push_str(" OR (blob IS NOT NULL AND proof = 0)");
            }
            sql.push(')');
        }
        let list = number_list(uids.iter().map(|uid| i64::from(uid.get())));
        let counted = self.index.read(|db| {
            let Some(mailbox) = find_mailbox(db, scope)? else { return Ok((0, 0)) };
            let mut statement = db.prepare_cached(&sql)?;
            let read = |row: &Row<'_>| row.get::<_, i64>(0);
            let messages = match uids.is_empty() {
                true => statement.query_row(params![mailbox], read)?,
                false => statement.query_row(params![mailbox, list], read)?,
            };
            Ok((messages, db.prepare_cached(&all_known)?.query_row(params![mailbox], read)?))
        });
        let (messages, known) = counted.unwrap_or_default();
        (u64::try_from(messages).unwrap_or(0), u64::try_from(known).unwrap_or(0))
    }

    fn held(
        &self,
        server: &ServerId,
        stored: &mut Stored,
        item: &ItemKey,
        budget: &mut Budget,
        cuts: &mut HashMap<SectionClass, u64>,
    ) -> Option<Held> {
        let class = match item.class() {
            ItemClass::Uid | ItemClass::Dynamic => return None,
            ItemClass::Fixed => None,
            ItemClass::Section(class) => Some(class),
        };
        match stored.values.get(item) {
            Some(StoredValue::Octets(octets)) => return Some(Held::Inline(octets.clone())),
            Some(StoredValue::Blob(id)) => {
                let id = *id;
                if let Some(body) = self.body(&id) {
                    let octets = body.octets();
                    return self.give(&id, body, 0, octets, budget);
                }
            }
            None => {}
        }
        let class = class?;
        if class != SectionClass::Whole {
            if !self.index.trust.may_cut(server, class) {
                return None;
            }
            *cuts.entry(class).or_default() += 1;
        }
        self.cut(stored, item, class, budget)
    }

    fn cut(&self, stored: &Stored, item: &ItemKey, class: SectionClass, budget: &mut Budget) -> Option<Held> {
        if class == SectionClass::HeaderFields
            && let Some(StoredValue::Octets(header)) = stored.values.get(&header_key())
            && let Some(fields) = Head::of_header(header).and_then(|head| head.cut_fields(item))
        {
            return Some(Held::Inline(fields));
        }
        let Whole { id, head } = stored.whole.as_ref()?;
        if class == SectionClass::Whole {
            let body = self.body(id)?;
            let octets = body.octets();
            return self.give(id, body, 0, octets, budget);
        }
        match head.as_ref()?.cut(item)? {
            Piece::Octets(octets) => Some(Held::Inline(octets)),
            Piece::Range { offset, octets } => {
                let body = self.body(id)?;
                self.give(id, body, offset, octets, budget)
            }
            Piece::Fields { offset, octets, names, not } => {
                let header = self.read(id, offset, octets)?;
                Some(Held::Inline(header_fields(&header, &names, not).into()))
            }
        }
    }

    /// Octets of a body: themselves where they are few, else a reader of what has just been verified.
    fn give(
        &self,
        id: &BlobId,
        body: Arc<Body>,
        offset: u64,
        octets: u64,
        budget: &mut Budget,
    ) -> Option<Held> {
        if offset.checked_add(octets)? > body.octets() {
            return None;
        }
        let reader = BodyReader::new(body);
        if octets <= INLINE_OCTETS_MAX.min(budget.inline) {
            budget.inline -= octets;
            let read = reader.read_range(offset, usize::try_from(octets).ok()?);
            return self.noted(id, read).map(|octets| Held::Inline(octets.into()));
        }
        if !self.is_fresh(id) {
            self.noted(id, reader.verify(offset, octets))?;
            if offset == 0 && octets == reader.body_octets() {
                self.remember(id);
            }
        }
        reader.rest();
        Some(Held::Stored { reader: Arc::new(reader), offset, octets })
    }

    fn is_fresh(&self, id: &BlobId) -> bool {
        lock(&self.verified).get(id).is_some_and(|then| then.elapsed() < FRESH)
    }

    fn remember(&self, id: &BlobId) {
        let mut verified = lock(&self.verified);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(*id, Instant::now());
    }

    #[cfg(test)]
    pub(super) fn forget_verified(&self) {
        lock(&self.verified).clear();
    }

    /// A stored body; one that is gone or damaged is forgotten, and a miss.
    pub(super) fn body(&self, id: &BlobId) -> Option<Arc<Body>> {
        match self.bodies.body(id) {
            Ok(Some(body)) => Some(body),
            Ok(None) => {
                self.index.counters.lost.one();
                self.index.put(Write::BlobGone { id: *id });
                None
            }
            Err(error) => self.noted(id, Err(error)),
        }
    }

    /// A range of a body, verified.
    pub(super) fn read(&self, id: &BlobId, offset: u64, octets: u64) -> Option<Vec<u8>> {
        let reader = BodyReader::new(self.body(id)?);
        self.noted(id, reader.read_range(offset, usize::try_from(octets).ok()?))
    }

    /// Turns an error into a miss.
    fn noted<T>(&self, id: &BlobId, outcome: Result<T, StoreError>) -> Option<T> {
        match outcome {
            Ok(value) => return Some(value),
            Err(StoreError::Corrupt(_)) => self.index.put(Write::BlobGone { id: *id }),
            Err(error) => {
                self.index.counters.disk_failures.one();
                tracing::warn!(%error, "a stored body cannot be read");
            }
        }
        None
    }

    /// What the index holds of `items` and of what they can be cut from; `None` without such a mailbox.
    pub(super) fn look_up(
        &self,
        db: &Connection,
        scope: &Scope,
        uids: &[Uid],
        items: &[ItemKey],
    ) -> rusqlite::Result<Option<HashMap<Uid, Stored>>> {
        let Some(mailbox) = find_mailbox(db, scope)? else { return Ok(None) };
        let place = scope.place();
        let list = number_list(uids.iter().map(|uid| i64::from(uid.get())));
        let mut all: HashMap<Uid, Stored> = HashMap::with_capacity(uids.len());

        let cuttable =
            items.iter().any(|item| item.class() == ItemClass::Section(SectionClass::HeaderFields));
        let header = cuttable.then(header_key);
        let keys: HashMap<i64, &ItemKey> = items
            .iter()
            .chain(header.as_ref())
            .filter_map(|item| Some((self.index.keys.get(item)?, item)))
            .collect();
        let key_list = number_list(keys.keys().copied());
        let sql = "SELECT uid, key, proof, blob IS NOT NULL, value FROM item WHERE mailbox = ?1
            AND uid IN (SELECT value FROM json_each(?2)) AND key IN (SELECT value FROM json_each(?3))";
        let mut statement = db.prepare_cached(sql)?;
        let mut rows = statement.query(params![mailbox, list, key_list])?;
        while let Some(row) = rows.next()? {
            let key = columns::number(row, 1).and_then(|key: i64| keys.get(&key));
            let (Some(uid), Some(item)) = (columns::number(row, 0).and_then(Uid::new), key) else { continue };
            let stored = all.entry(uid).or_default();
            let is_blob = columns::number(row, 3) == Some(1);
            match self.value(&place, uid, item, proof(row, 2), is_blob, columns::octets(row, 4)) {
                Ok(Some(value)) => drop(stored.values.insert((*item).clone(), value)),
                Ok(None) => {}
                Err(Tampered) => stored.damaged = true,
            }
        }

        if items.iter().any(|item| item.section_spec().is_some()) {
            let whole = ItemKey::whole();
            let heads = items.iter().any(|item| item.section_spec().is_some() && *item != whole);
            let sql = "SELECT m.uid, m.proof, m.seal, CASE WHEN ?3 THEN b.head END
                FROM msg m JOIN blob b ON b.id = m.blob
                WHERE m.mailbox = ?1 AND m.uid IN (SELECT value FROM json_each(?2)) AND m.blob IS NOT NULL";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query(params![mailbox, list, heads])?;
            while let Some(row) = rows.next()? {
                let Some(uid) = columns::number(row, 0).and_then(Uid::new) else { continue };
                let place = place.of(uid, &whole);
                let stored = all.entry(uid).or_default();
                match self.bound(&place, proof(row, 1), columns::octets(row, 2)) {
                    Ok(Some(id)) => {
                        let head = Head::unseal(&*self.index.sealer, &id, columns::octets(row, 3));
                        stored.whole = Some(Whole { id, head });
                    }
                    Ok(None) => {}
                    Err(Tampered) => stored.damaged = true,
                }
            }
        }
        Ok(Some(all))
    }

    /// A row's value, if the origin vouched for it.
    fn value(
        &self,
        place: &Place,
        uid: Uid,
        item: &ItemKey,
        proof: u8,
        is_blob: bool,
        mut value: Vec<u8>,
    ) -> Result<Option<StoredValue>, Tampered> {
        let place = place.of(uid, item);
        if is_blob {
            return Ok(self.bound(&place, proof, value)?.map(StoredValue::Blob));
        }
        if !is_servable(proof) {
            return Ok(None);
        }
        self.index
            .sealer
            .unseal(SealContext { kind: ITEM, place: &place, block: proof.into() }, &mut value)?;
        Ok(Some(StoredValue::Octets(value.into())))
    }

    /// The body that a row names, if the origin vouched for it.
    fn bound(&self, place: &[u8], proof: u8, mut seal: Vec<u8>) -> Result<Option<BlobId>, Tampered> {
        if !is_servable(proof) {
            return Ok(None);
        }
        self.index.sealer.unseal(SealContext { kind: BINDING, place, block: proof.into() }, &mut seal)?;
        seal.try_into().map(|id| Some(BlobId(id))).map_err(|_| Tampered)
    }
}

/// A proof's number; one that is none is nobody's word.
fn proof(row: &Row<'_>, nth: usize) -> u8 {
    columns::number(row, nth).unwrap_or(u8::MAX)
}

/// Whether a row with this proof may be answered from: the origin said it to a session of this very account.
fn is_servable(proof: u8) -> bool {
    proof == proof_number(Proof::Origin) || mutants::on("store-push-served")
}

struct Budget {
    inline: u64,
}

/// A list for `json_each`, so that one statement answers for all messages.
pub(super) fn number_list(numbers: impl Iterator<Item = i64>) -> String {
    let mut out = String::from("[");
    for (nth, number) in numbers.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        out.push_str(&number.to_string());
    }
    out.push(']');
    out
}

pub(super) fn header_key() -> ItemKey {
    ItemKey::from_normalised("BODY[HEADER]")
}

/// Octets that one answer holds in memory; what is beyond comes as readers.
const RESOLVE_INLINE_OCTETS_MAX: u64 = 4 << 20;

/// A large body that was verified whole is not read twice within this time, so that fetching it in chunks costs
/// what its chunks cost. Its reader verifies each octet again all the same.
const FRESH: Duration = Duration::from_secs(600);

const VERIFIED_MAX: usize = 4096;

/// Items of one count that are looked at; no mail program asks for more at once.
const COUNT_ITEMS_MAX: usize = 32;
