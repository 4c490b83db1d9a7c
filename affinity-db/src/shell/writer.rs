//! The one thread that learns and writes, in batches.

use super::{Engine, Message, Shared, file};
use crate::{database::Change, ledger::LedgerChanges};
use discovery_core::{
    now::{Now, UnixMillis},
    seam::advisor::Advisor,
};
use rusqlite::Connection;
use std::{
    collections::BTreeSet,
    sync::{
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Runs until it is told to stop, or nobody is left who could.
pub(super) fn run(mut db: Connection, shared: &Shared, from: &Receiver<Message>, unused_max: Duration) {
    let mut deletions = Vec::new();
    let mut forgotten = BTreeSet::new();
    loop {
        let batch = Batch::receive(shared, from);
        let (changed, mut ledger) = changes(&mut shared.engine(), unused_max);
        ledger.forgotten.append(&mut forgotten);
        // First what had to go and could not: a record that came again since follows it.
        let mut records: Vec<Change> = std::mem::take(&mut deletions);
        records.extend(changed);
        if !write(&mut db, shared, &records, &ledger) {
            deletions =
                records.into_iter().filter(|(_, record)| record.is_none()).take(DELETIONS_MAX).collect();
            forgotten = ledger.forgotten;
        }
        for done in batch.flushed {
            let _ = done.try_send(());
        }
        if batch.last {
            break;
        }
    }
    // Leaves one file without a tail for whoever opens next.
    let _ = db.pragma_update(None, "wal_checkpoint", "truncate");
}

/// What was received, and learned.
#[derive(Default)]
struct Batch {
    flushed: Vec<SyncSender<()>>,
    last: bool,
}

impl Batch {
    /// Receives for a while, or until somebody is in a hurry.
    fn receive(shared: &Shared, from: &Receiver<Message>) -> Self {
        let end = now().mono + BATCH_WAIT;
        let mut batch = Self::default();
        for _ in 0..BATCH_MAX {
            match from.recv_timeout(end.saturating_duration_since(now().mono)) {
                Ok(Message::Access(access)) => shared.engine().advisor.observe(&access, now()),
                Ok(Message::Flush(done)) => batch.flushed.push(done),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => batch.last = true,
                Err(RecvTimeoutError::Timeout) => break,
            }
            if batch.last || !batch.flushed.is_empty() {
                break;
            }
        }
        batch
    }
}

fn changes(engine: &mut Engine, unused_max: Duration) -> (Vec<Change>, LedgerChanges) {
    let wall = now().wall;
    engine.advisor.expire(wall, EXPIRED_MAX);
    engine.ledger.expire(wall, unused_max);
    (engine.advisor.take_changes(), engine.ledger.take_changes())
}

fn write(db: &mut Connection, shared: &Shared, records: &[Change], ledger: &LedgerChanges) -> bool {
    let n = (records.len() + ledger.waiting.len() + ledger.tallies.len() + ledger.forgotten.len()) as u64;
    if n == 0 {
        return true;
    }
    match file::write(db, records, ledger) {
        Ok(()) => {
            shared.written.fetch_add(n, Ordering::Relaxed);
            true
        }
        // What is in memory stays: each record is written again when it next changes.
        Err(error) => {
            shared.lost.fetch_add(n, Ordering::Relaxed);
            tracing::warn!(%error, changes = n, "the affinity database cannot be written");
            false
        }
    }
}
fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)) }
}

/// What had to go and could not be written; a user who was forgotten stays forgotten.
const DELETIONS_MAX: usize = 65_536;

/// How long a change waits at most, and how often nothing is looked at.
const BATCH_WAIT: Duration = Duration::from_secs(1);

/// Accesses in one transaction.
const BATCH_MAX: usize = 1024;

/// Records that one batch forgets because of their age.
const EXPIRED_MAX: usize = 256;
