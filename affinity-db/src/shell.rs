//! The database on disk, and the sink that feeds it: one thread learns and writes, nobody waits for it.
//!
//! [`AffinityDb::open`] reads what was written and starts the writer. Sessions put accesses into
//! [`AffinityDb::accesses`] (never blocks; what finds no room is counted and lost) and hold an
//! [`AffinityDb::advisor`] each; whoever fetches ahead tells [`AffinityDb::ledger`]. Records are batched: a crash
//! loses the last moments of habits, and nothing else.

#![expect(clippy::disallowed_methods, reason = "the shell is where files, threads and clocks are")]

mod file;
mod writer;

#[cfg(test)]
mod fault_tests;

use crate::{advisor::AffinityAdvisor, database::Limits, ledger::Ledger, policy::Policy};
use discovery_core::{
    id::{SiteId, UserKey},
    now::{Now, UnixMillis},
    seam::{
        advisor::{Advisor, FetchOrder, Item, SessionFacts},
        preloaded::PreloadLedger,
        sink::{Put, Sink},
    },
    value::{Access, ObjectKey, Served},
};
pub use file::AffinityOpenError;
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

/// How the database is opened.
#[derive(Clone, Debug)]
pub struct AffinityConfig {
    /// Its directory; made where it is missing. Nothing else may be in it.
    pub path: PathBuf,
    /// What is worth fetching.
    pub policy: Policy,
    /// How much is remembered.
    pub limits: Limits,
    /// Objects whose octets the ledger follows.
    pub ledger_entries_max: usize,
    /// Octets fetched ahead and not used for so long were wasted.
    pub preload_unused_max: Duration,
}

impl AffinityConfig {
    /// The defaults, in `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            policy: Policy::default(),
            limits: Limits::default(),
            ledger_entries_max: 200_000,
            preload_unused_max: Duration::from_secs(30 * 86_400),
        }
    }
}

/// What was counted since the database was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityStats {
    /// Records now.
    pub records: usize,
    /// Records that went for want of room.
    pub evicted: u64,
    /// Accesses that found the sink full.
    pub dropped: u64,
    /// Changes that could not be written down: a full or broken disk.
    pub lost: u64,
    /// Changes that were written down.
    pub written: u64,
}

/// The open database. Dropping it writes what is left.
#[derive(Debug)]
pub struct AffinityDb {
    shared: Arc<Shared>,
    sink: AccessSink,
    writer: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    engine: Mutex<Engine>,
    dropped: AtomicU64,
    lost: AtomicU64,
    written: AtomicU64,
}

/// What is locked for moments, never while the disk is waited for.
#[derive(Debug)]
struct Engine {
    advisor: AffinityAdvisor,
    ledger: Ledger,
}

enum Message {
    Access(Access),
    Flush(SyncSender<()>),
    Stop,
}

impl AffinityDb {
    /// Opens or makes the database. A damaged one is set aside and the new one begins empty.
    ///
    /// # Errors
    /// [`AffinityOpenError`]: in use, of a newer program, or not readable.
    pub fn open(config: &AffinityConfig) -> Result<Self, AffinityOpenError> {
        Self::start(config, file::open(&config.path)?)
    }

    fn start(config: &AffinityConfig, file: file::Opened) -> Result<Self, AffinityOpenError> {
        let mut engine = Engine {
            advisor: AffinityAdvisor::new(config.policy, config.limits),
            ledger: Ledger::new(config.ledger_entries_max),
        };
        file.rows.records.into_iter().for_each(|(key, record)| engine.advisor.load(key, record));
        file.rows.tallies.into_iter().for_each(|row| engine.ledger.load_tally(row));
        file.rows.waiting.into_iter().for_each(|(key, waiting)| engine.ledger.load_waiting(key, waiting));
        engine.ledger.reconcile();
        let shared = Arc::new(Shared {
            engine: Mutex::new(engine),
            dropped: AtomicU64::default(),
            lost: AtomicU64::default(),
            written: AtomicU64::default(),
        });
        let (to, from) = mpsc::sync_channel(QUEUE_MAX);
        let of_writer = Arc::clone(&shared);
        let unused_max = config.preload_unused_max;
        let (db, lock) = (file.db, file.lock);
        let writer = thread::Builder::new()
            .name("affinity".to_owned())
            .spawn(move || {
                writer::run(db, &of_writer, &from, unused_max);
                drop(lock);
            })
            .map_err(|source| AffinityOpenError::Io { path: config.path.clone(), source })?;
        Ok(Self { sink: AccessSink { shared: Arc::clone(&shared), to }, shared, writer: Some(writer) })
    }

    /// Where accesses go. Never blocks.
    #[must_use]
    pub fn accesses(&self) -> AccessSink {
        self.sink.clone()
    }

    /// An advisor for a session; all of them know the same.
    #[must_use]
    pub fn advisor(&self) -> SharedAdvisor {
        SharedAdvisor { shared: Arc::clone(&self.shared), sink: self.sink.clone() }
    }

    /// Tells or asks the ledger: `db.ledger(|ledger| ledger.report())`. Held for a moment only.
    pub fn ledger<T>(&self, tell: impl FnOnce(&mut Ledger) -> T) -> T {
        tell(&mut self.shared.engine().ledger)
    }

    /// The ledger of what is fetched and read at `site`.
    #[must_use]
    pub fn ledger_of(&self, site: SiteId) -> SiteLedger {
        SiteLedger { shared: Arc::clone(&self.shared), site }
    }

    /// Forgets all that is known of a user.
    pub fn forget(&self, user: UserKey) {
        let mut engine = self.shared.engine();
        engine.advisor.forget(user);
        engine.ledger.forget(user);
    }

    /// Returns when what was put before is on disk, or counted as lost.
    pub fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.sink.to.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> AffinityStats {
        let (records, evicted) = {
            let engine = self.shared.engine();
            (engine.advisor.database().len(), engine.advisor.database().evicted())
        };
        AffinityStats {
            records,
            evicted,
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
            written: self.shared.written.load(Ordering::Relaxed),
        }
    }
}

impl Drop for AffinityDb {
    fn drop(&mut self) {
        let _ = self.sink.to.send(Message::Stop);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes accesses without ever waiting.
#[derive(Clone, Debug)]
pub struct AccessSink {
    shared: Arc<Shared>,
    to: SyncSender<Message>,
}

impl Sink<Access> for AccessSink {
    fn put(&self, access: Access) -> Put {
        match self.to.try_send(Message::Access(access)) {
            Ok(()) => Put::Taken,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                Put::Dropped
            }
        }
    }
}

/// The shared advisor as a session holds it.
#[derive(Clone, Debug)]
pub struct SharedAdvisor {
    shared: Arc<Shared>,
    sink: AccessSink,
}

impl Advisor for SharedAdvisor {
    fn listed(&mut self, user: UserKey, collection: &ObjectKey, item: &Item, now: Now) {
        self.shared.engine().advisor.listed(user, collection, item, now);
    }

    /// Through the sink: the writer learns it, in the order in which accesses were put.
    fn observe(&mut self, access: &Access, _: Now) {
        self.sink.put(access.clone());
    }

    fn returned(&mut self, user: UserKey, object: &ObjectKey) {
        self.shared.engine().advisor.returned(user, object);
    }

    fn next(&mut self, facts: &SessionFacts<'_>, now: Now) -> Option<FetchOrder> {
        self.shared.engine().advisor.next(facts, now)
    }
}

/// The ledger as a site's sessions hold it.
#[derive(Clone, Debug)]
pub struct SiteLedger {
    shared: Arc<Shared>,
    site: SiteId,
}

impl PreloadLedger for SiteLedger {
    fn fetched(&self, user: UserKey, object: &ObjectKey, octets: u64, at: UnixMillis) {
        self.shared.engine().ledger.record_fetched(user, &self.site, object, octets, at);
    }

    fn used(&self, user: UserKey, object: &ObjectKey, octets: u64) {
        self.shared.engine().ledger.used(user, object, octets);
    }

    fn gone(&self, user: UserKey, object: &ObjectKey) {
        self.shared.engine().ledger.gone(user, object);
    }

    fn opened(&self, user: UserKey, served: Served) {
        self.shared.engine().ledger.opened(user, &self.site, served);
    }
}

/// Accesses that wait for the writer; some 150 octets each.
const QUEUE_MAX: usize = 8192;
