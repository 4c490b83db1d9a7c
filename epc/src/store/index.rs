//! The index: one thread writes, in batches; readers have connections of their own.
//!
//! A reader that asks about a mailbox sees every change of that mailbox which this process was told before: if one
//! still waits, the batch is written at once.

use super::{
    SUSPECT,
    bodies::lock,
    counters::Counters,
    item_keys::ItemKeys,
    schema,
    scope::{NameScope, Scope},
    trust::Trust,
    write::{Write, Writing},
};
use discovery_core::seam::sealer::Sealer;
use imap_core::uid::Uid;
use rusqlite::{Connection, TransactionBehavior};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub(super) struct Index {
    pub(super) path: PathBuf,
    pub(super) sealer: Arc<dyn Sealer>,
    pub(super) keys: ItemKeys,
    pub(super) trust: Trust,
    pub(super) counters: Arc<Counters>,
    queue: Mutex<Queue>,
    /// Something to write, or room to put more.
    moved: Condvar,
    readers: Mutex<Vec<Connection>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Write>,
    octets: usize,
    /// How many changes were put, and how many of them are done.
    put: u64,
    done: u64,
    /// The last change of each mailbox that may still wait.
    touched: HashMap<NameScope, u64>,
    /// Mailboxes of which something had to go and could not: nothing of them is served.
    shunned: HashSet<NameScope>,
    hurry: bool,
    stopping: bool,
    /// The writer's thread has ended: nothing waits for it, and nothing is served.
    ended: bool,
}

/// A message whose sections can be compared with cuts of it.
pub(super) type Comparable = (Scope, Uid);

impl Index {
    pub(super) fn new(
        path: PathBuf,
        sealer: Arc<dyn Sealer>,
        keys: ItemKeys,
        trust: Trust,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            path,
            sealer,
            keys,
            trust,
            counters,
            queue: Mutex::default(),
            moved: Condvar::new(),
            readers: Mutex::default(),
        }
    }

    /// Hands over a change; waits only while too many wait already.
    pub(super) fn put(&self, write: Write) {
        let mut queue = lock(&self.queue);
        while (queue.waiting.len() >= WAITING_MAX || queue.octets >= WAITING_OCTETS_MAX) && !queue.ended {
            queue.hurry = true;
            self.moved.notify_all();
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.ended {
            return;
        }
        queue.put += 1;
        if let Some(mailbox) = write.mailbox() {
            let nth = queue.put;
            queue.touched.insert(mailbox.clone(), nth);
        }
        queue.octets += write.octets();
        let first = queue.waiting.is_empty();
        queue.waiting.push_back(write);
        drop(queue);
        if first {
            self.moved.notify_all();
        }
    }

    /// Returns when everything put before is done.
    pub(super) fn settle(&self) {
        let queue = lock(&self.queue);
        let target = queue.put;
        drop(self.wait_for(queue, target));
    }

    /// Returns when every change of this mailbox is done; `false` if nothing of it may be served.
    pub(super) fn settle_mailbox(&self, mailbox: &NameScope) -> bool {
        let queue = lock(&self.queue);
        let queue = match queue.touched.get(mailbox).copied() {
            Some(target) => self.wait_for(queue, target),
            None => queue,
        };
        !queue.ended && !queue.shunned.contains(mailbox)
    }

    fn wait_for<'a>(
        &'a self,
        mut queue: std::sync::MutexGuard<'a, Queue>,
        target: u64,
    ) -> std::sync::MutexGuard<'a, Queue> {
        while queue.done < target && !queue.ended {
            queue.hurry = true;
            self.moved.notify_all();
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue
    }

    /// The writer's thread ends when all that was put is done.
    pub(super) fn stop(&self) {
        lock(&self.queue).stopping = true;
        self.moved.notify_all();
    }

    /// Writes until [`Index::stop`]; `done` hears what can be compared after each batch.
    pub(super) fn run(&self, mut db: Connection, mut done: impl FnMut(Vec<Comparable>)) {
        let _ended = Ended(self);
        while let Some((batch, last)) = self.next_batch() {
            let mut lost = Vec::new();
            match self.write(&mut db, &batch) {
                // Before the batch counts as done, so that who waits for it finds this begun.
                Ok(comparable) => done(comparable),
                Err(error) => {
                    self.note(&error);
                    tracing::warn!(%error, writes = batch.len(), "the store's index cannot be written");
                    let gone = batch.iter().filter(|write| write.takes_away()).filter_map(Write::mailbox);
                    lost.extend(gone.cloned());
                }
            }
            // Bodies that were held for their rows may go from here on.
            drop(batch);
            let mut queue = lock(&self.queue);
            queue.shunned.extend(lost);
            queue.done = last;
            queue.touched.retain(|_, nth| *nth > last);
            drop(queue);
            self.moved.notify_all();
        }
        // Leaves one file without a tail for whoever opens next.
        let _ = db.pragma_update(None, "wal_checkpoint", "truncate");
    }

    /// Waits for changes, and a moment for more of them; `None` at the end.
    fn next_batch(&self) -> Option<(Vec<Write>, u64)> {
        let mut queue = lock(&self.queue);
        while queue.waiting.is_empty() {
            queue.hurry = false;
            if queue.stopping {
                return None;
            }
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let calm = |queue: &mut Queue| !queue.hurry && !queue.stopping && queue.waiting.len() < BATCH_MAX;
        let waited = self.moved.wait_timeout_while(queue, BATCH_WAIT, calm);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.octets = 0;
        queue.hurry = false;
        let batch = Vec::from(std::mem::take(&mut queue.waiting));
        let last = queue.put;
        drop(queue);
        self.moved.notify_all();
        Some((batch, last))
    }

    fn write(&self, db: &mut Connection, batch: &[Write]) -> rusqlite::Result<Vec<Comparable>> {
        let writing = Writing {
            sealer: &*self.sealer,
            keys: &self.keys,
            trust: &self.trust,
            counters: &self.counters,
            now: now(),
        };
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut comparable = Vec::new();
        let mut outcome = Ok(());
        for write in batch {
            match (writing.apply(&transaction, write), write) {
                (Ok(true), Write::Record { scope, uid, .. }) => comparable.push((scope.clone(), *uid)),
                (Ok(_), _) => {}
                (Err(error), _) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        match outcome.and_then(|()| transaction.commit()) {
            Ok(()) => Ok(comparable),
            Err(error) => {
                // The transaction is gone, and keys made in it.
                self.keys.load(db)?;
                Err(error)
            }
        }
    }

    /// Keeps the log of commits short.
    pub(super) fn checkpoint(&self) {
        if let Err(error) = schema::checkpoint(&self.path) {
            self.note(&error);
            tracing::warn!(%error, "the store's index cannot be checkpointed");
        }
    }

    /// Remembers damage for whoever opens the index next.
    fn note(&self, error: &rusqlite::Error) {
        self.counters.index_failures.one();
        if schema::is_damage(error) {
            let _ = std::fs::write(self.path.with_file_name(SUSPECT), b"");
        }
    }

    /// Runs `ask` on a reader's connection, in one snapshot. `None` when the index cannot be read: counted.
    pub(super) fn read<T>(&self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Option<T> {
        let pooled = lock(&self.readers).pop();
        let answer = pooled.map_or_else(|| schema::open_reader(&self.path), Ok).and_then(|mut db| {
            let snapshot = db.transaction()?;
            let answer = ask(&snapshot)?;
            snapshot.commit()?;
            let mut readers = lock(&self.readers);
            if readers.len() < READERS_KEPT_MAX {
                readers.push(db);
            }
            Ok(answer)
        });
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.note(&error);
                tracing::warn!(%error, "the store's index cannot be read");
                None
            }
        }
    }
}

/// However the writer ends, nobody may wait for it.
struct Ended<'a>(&'a Index);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).ended = true;
        self.0.moved.notify_all();
    }
}

/// Seconds since 1970, for what is evicted first.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// How long a change waits for company.
const BATCH_WAIT: Duration = Duration::from_millis(50);

/// A batch that large is written at once.
const BATCH_MAX: usize = 512;

/// More changes than this do not wait; who brings one then waits itself.
const WAITING_MAX: usize = 8192;

/// Nor more octets of values.
const WAITING_OCTETS_MAX: usize = 16 << 20;

/// Idle connections kept for readers; each holds some page cache.
const READERS_KEPT_MAX: usize = 4;
