//! Sections on their way from the origin into the store.

use super::{
    bodies::{Bodies, lock},
    counters::Counters,
    head::{HEADER_OCTETS_MAX, Head},
    write::{StoredBlob, Value},
};
use bytes::Bytes;
use discovery_core::{
    id::AccountKey,
    seam::blob::{BlobReader, BlobStore, BlobWriter, Durability, StoreError},
};
use imap_core::{
    catalog::{FillId, INLINE_OCTETS_MAX, MailboxKey},
    item::ItemKey,
    mime::SectionIndexer,
    mutants,
    uid::Uid,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

pub(super) struct Fills {
    bodies: Arc<Bodies>,
    counters: Arc<Counters>,
    open: Mutex<Open>,
    /// After the disk was full, nothing is begun before this time (seconds since 1970).
    not_before: AtomicI64,
}

#[derive(Default)]
struct Open {
    fills: HashMap<FillId, Arc<Mutex<Fill>>>,
    /// Bodies that others can join.
    joinable: HashMap<(MailboxKey, Uid, ItemKey), Joinable>,
}

struct Joinable {
    fill: FillId,
    reader: Arc<dyn BlobReader>,
    octets: u64,
}

struct Fill {
    mailbox: MailboxKey,
    /// As it was announced; others may have joined under it.
    uid: Option<Uid>,
    item: ItemKey,
    announced: u64,
    came: u64,
    /// When octets came last (seconds since 1970).
    touched: i64,
    into: Destination,
}

enum Destination {
    /// A small section, for a row.
    Row(Vec<u8>),
    Body {
        writer: Box<dyn BlobWriter>,
        /// Of a whole message only.
        message: Option<Message>,
    },
    /// It cannot be kept; the rest is let go.
    Nothing,
}

struct Message {
    indexer: SectionIndexer,
    beginning: Vec<u8>,
}

/// A section that came in full.
pub(super) struct Filled {
    pub(super) mailbox: MailboxKey,
    pub(super) item: ItemKey,
    pub(super) value: Value,
}

impl Fills {
    pub(super) fn new(bodies: Arc<Bodies>, counters: Arc<Counters>) -> Self {
        Self { bodies, counters, open: Mutex::default(), not_before: AtomicI64::new(0) }
    }

    /// Begins; what cannot be kept is counted and let go by. `false` where there was no room.
    pub(super) fn begin(
        &self,
        id: FillId,
        mailbox: MailboxKey,
        uid: Option<Uid>,
        item: ItemKey,
        octets: u64,
        now: i64,
    ) -> bool {
        let whole = item == ItemKey::whole();
        let into = if item.section_spec().is_none() || self.is_crowded(now) {
            Err(StoreError::Full)
        } else if !whole && octets <= INLINE_OCTETS_MAX {
            Ok(Destination::Row(Vec::new()))
        } else if now < self.not_before.load(Ordering::Relaxed) {
            Err(StoreError::Full)
        } else {
            let message = whole.then(|| Message { indexer: SectionIndexer::new(), beginning: Vec::new() });
            self.bodies.writer(Some(octets)).map(|writer| Destination::Body { writer, message })
        };
        let into = match into {
            Ok(into) => into,
            Err(error) => {
                self.counters.fills_refused.one();
                self.report(&error);
                return !matches!(error, StoreError::Full);
            }
        };
        let mut open = lock(&self.open);
        if let (Destination::Body { writer, .. }, Some(uid)) = (&into, uid) {
            let joinable = Joinable { fill: id, reader: writer.reader(), octets };
            open.joinable.entry((mailbox.clone(), uid, item.clone())).or_insert(joinable);
        }
        let fill = Fill { mailbox, uid, item, announced: octets, came: 0, touched: now, into };
        let before = open.fills.insert(id, Arc::new(Mutex::new(fill)));
        drop(open);
        if before.is_some() {
            self.counters.fills_aborted.one();
        }
        true
    }

    /// Whether there are too many; those of which nothing came for long are given up first.
    fn is_crowded(&self, now: i64) -> bool {
        let open = lock(&self.open);
        if open.fills.len() < FILLS_MAX {
            return false;
        }
        let all: Vec<_> = open.fills.iter().map(|(id, fill)| (*id, Arc::clone(fill))).collect();
        drop(open);
        for (id, fill) in all {
            let idle = lock(&fill).touched < now - FILL_IDLE_SECONDS;
            if idle {
                self.abort(id);
            }
        }
        lock(&self.open).fills.len() >= FILLS_MAX
    }

    fn report(&self, error: &StoreError) {
        if !matches!(error, StoreError::Full) {
            self.counters.disk_failures.one();
            tracing::warn!(%error, "a body cannot be stored");
        }
    }

    fn failed(&self, error: &StoreError, now: i64) {
        self.counters.fills_failed.one();
        self.report(error);
        if matches!(error, StoreError::Full) {
            self.not_before.store(now + FULL_PAUSE_SECONDS, Ordering::Relaxed);
        }
    }

    pub(super) fn data(&self, id: FillId, octets: &Bytes, now: i64) {
        let Some(fill) = lock(&self.open).fills.get(&id).cloned() else { return };
        let mut fill = lock(&fill);
        fill.came = fill.came.saturating_add(octets.len() as u64);
        fill.touched = now;
        if fill.came > fill.announced {
            // The origin cannot send more than it announced; whoever says so is mistaken about the stream.
            self.let_go(&mut fill, id);
            return;
        }
        let outcome = match &mut fill.into {
            Destination::Nothing => Ok(()),
            Destination::Row(row) => {
                row.extend_from_slice(octets);
                Ok(())
            }
            Destination::Body { writer, message } => {
                if let Some(message) = message {
                    message.indexer.push(octets);
                    let room = BEGINNING_OCTETS_MAX.saturating_sub(message.beginning.len());
                    message.beginning.extend_from_slice(octets.get(..room).unwrap_or(octets));
                }
                writer.write(octets)
            }
        };
        if let Err(error) = outcome {
            self.failed(&error, now);
            self.let_go(&mut fill, id);
        }
    }

    /// Drops what there is and takes no more.
    fn let_go(&self, fill: &mut Fill, id: FillId) {
        fill.into = Destination::Nothing;
        self.done(id);
    }

    /// Ends it; `None` when it did not come in full or could not be kept.
    pub(super) fn commit(&self, id: FillId, uid: Uid, now: i64) -> Option<Filled> {
        let fill = lock(&self.open).fills.remove(&id)?;
        let mut fill = lock(&fill);
        if fill.uid.is_some_and(|announced| announced != uid) && !mutants::on("store-uid-mistaken") {
            // Whoever joined waits for another message: he must not get this one to its end.
            self.counters.fills_aborted.one();
            self.let_go(&mut fill, id);
            return None;
        }
        if fill.came != fill.announced && !mutants::on("store-partial-findable") {
            self.counters.fills_wrong_length.one();
            self.let_go(&mut fill, id);
            return None;
        }
        let value = match std::mem::replace(&mut fill.into, Destination::Nothing) {
            Destination::Nothing => None,
            Destination::Row(row) => Some(Value::Octets(row.into())),
            Destination::Body { writer, message } => match self.keep(writer, message, fill.came) {
                Ok(blob) => Some(Value::Blob(blob)),
                Err(error) => {
                    self.failed(&error, now);
                    None
                }
            },
        };
        if value.is_none() {
            self.done(id);
        }
        let value = value?;
        self.counters.fills_stored.one();
        Some(Filled { mailbox: fill.mailbox.clone(), item: fill.item.clone(), value })
    }

    /// After the row is on its way: who asks from here on finds it, and joins no more.
    pub(super) fn done(&self, id: FillId) {
        lock(&self.open).joinable.retain(|_, joinable| joinable.fill != id);
    }

    fn keep(
        &self,
        writer: Box<dyn BlobWriter>,
        message: Option<Message>,
        octets: u64,
    ) -> Result<StoredBlob, StoreError> {
        let pin = writer.reader();
        let id = writer.commit(Durability::Batched)?;
        // If the content was there before, ours goes away, and its own reader keeps it.
        let pin = self.bodies.reader(&id)?.unwrap_or(pin);
        let file_octets = self.bodies.file_octets_of(octets);
        let head = message.map(|message| Head::new(message.indexer.finish(), &message.beginning.into()));
        Ok(StoredBlob { id, octets, file_octets, head, _pin: pin })
    }

    /// A whole message in one piece.
    pub(super) fn keep_whole(&self, octets: Bytes, now: i64) -> Option<StoredBlob> {
        let length = octets.len() as u64;
        let kept = self.bodies.writer(Some(length)).and_then(|mut writer| {
            writer.write(&octets)?;
            let mut indexer = SectionIndexer::new();
            indexer.push(&octets);
            let beginning = octets.get(..BEGINNING_OCTETS_MAX).unwrap_or(&octets).to_vec();
            self.keep(writer, Some(Message { indexer, beginning }), length)
        });
        match kept {
            Ok(blob) => {
                self.counters.fills_stored.one();
                Some(blob)
            }
            Err(error) => {
                self.failed(&error, now);
                None
            }
        }
    }

    pub(super) fn abort(&self, id: FillId) {
        let Some(fill) = lock(&self.open).fills.remove(&id) else { return };
        self.counters.fills_aborted.one();
        self.let_go(&mut lock(&fill), id);
    }

    /// A large section that is on its way; its announced length.
    pub(super) fn join(
        &self,
        mailbox: &MailboxKey,
        uid: Uid,
        item: &ItemKey,
    ) -> Option<(Arc<dyn BlobReader>, u64)> {
        let open = lock(&self.open);
        if open.joinable.is_empty() {
            return None;
        }
        let joinable = open.joinable.get(&(mailbox.clone(), uid, item.clone()))?;
        Some((Arc::clone(&joinable.reader), joinable.octets))
    }

    /// Nobody joins these from here on.
    pub(super) fn part(&self, gone: impl Fn(&MailboxKey, Uid) -> bool) {
        lock(&self.open).joinable.retain(|(mailbox, uid, _), _| !gone(mailbox, *uid));
    }

    pub(super) fn part_mailbox(&self, account: &AccountKey, name: &[u8], but: Option<&MailboxKey>) {
        self.part(|mailbox, _| {
            let other = but.is_none_or(|but| but.uid_validity != mailbox.uid_validity);
            mailbox.account == *account && mailbox.name == name && other
        });
    }
}

/// Sections on their way at once; each holds at most a block of content.
const FILLS_MAX: usize = 4096;

/// A session that ends says so; this is for one that could not.
const FILL_IDLE_SECONDS: i64 = 600;

/// The header is in here, if it is kept at all.
const BEGINNING_OCTETS_MAX: usize = HEADER_OCTETS_MAX;

/// How long nothing is begun after the disk was full.
const FULL_PAUSE_SECONDS: i64 = 5;
