//! What the store does by itself, in a thread of its own: sync bodies, compare cuts, make room, forget.

use super::{
    bodies::{Bodies, lock},
    columns,
    index::{Comparable, Index, now},
    resolve::Resolver,
    room::Room,
    write::Write,
};
use discovery_core::seam::blob::BlobId;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::{
    collections::{HashSet, VecDeque},
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

pub(super) struct Chores {
    pub(super) index: Arc<Index>,
    pub(super) bodies: Arc<Bodies>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) room: Arc<Room>,
    todo: Mutex<Todo>,
    changed: Condvar,
}

#[derive(Default)]
struct Todo {
    compare: VecDeque<Comparable>,
    /// Rounds that were asked for, and how many of them are done.
    asked: u64,
    done: u64,
    /// Room is wanted now.
    pressed: bool,
    stopping: bool,
    ended: bool,
}

/// However the thread ends, nobody may wait for it.
struct Ended<'a>(&'a Chores);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.0.todo).ended = true;
        self.0.changed.notify_all();
    }
}

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Bodies that no row named.
    pub bodies_removed: u64,
    /// Rows whose body was not there.
    pub rows_without_body: u64,
    /// Rows of mailbox generations that are no more.
    pub retired_rows: u64,
    /// Bodies removed to keep the size cap.
    pub evicted: u64,
}

impl Chores {
    pub(super) fn new(
        index: Arc<Index>,
        bodies: Arc<Bodies>,
        resolver: Arc<Resolver>,
        room: Arc<Room>,
    ) -> Self {
        Self { index, bodies, resolver, room, todo: Mutex::default(), changed: Condvar::new() }
    }

    /// Sections that can be compared now; too many at once are left for later fills.
    pub(super) fn compare(&self, comparable: Vec<Comparable>) {
        if comparable.is_empty() {
            return;
        }
        let mut todo = lock(&self.todo);
        let room = COMPARE_MAX.saturating_sub(todo.compare.len());
        todo.compare.extend(comparable.into_iter().take(room));
        drop(todo);
        self.changed.notify_all();
    }

    /// Returns after everything that can be done now is done.
    pub(super) fn settle(&self) {
        let mut todo = lock(&self.todo);
        todo.asked += 1;
        let target = todo.asked;
        self.changed.notify_all();
        while todo.done < target && !todo.stopping && !todo.ended {
            todo = self.changed.wait(todo).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn stop(&self) {
        lock(&self.todo).stopping = true;
        self.changed.notify_all();
    }

    /// Something was refused for want of room.
    pub(super) fn press(&self) {
        lock(&self.todo).pressed = true;
        self.changed.notify_all();
    }

    /// Works until [`Chores::stop`].
    pub(super) fn run(&self) {
        let _ended = Ended(self);
        for tick in 0_u64.. {
            let idle = |todo: &mut Todo| {
                todo.compare.is_empty() && todo.asked == todo.done && !todo.pressed && !todo.stopping
            };
            let waited = self.changed.wait_timeout_while(lock(&self.todo), TICK, idle);
            let (mut todo, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let (compare, asked, stopping) = (std::mem::take(&mut todo.compare), todo.asked, todo.stopping);
            let wanted = std::mem::take(&mut todo.pressed) || asked != todo.done;
            drop(todo);
            if self.bodies.unsynced() > 0 {
                self.bodies.sync();
            }
            self.index.checkpoint();
            for (scope, uid) in compare {
                self.resolver.compare(&scope, uid);
            }
            if !stopping && (wanted || tick % TIDY_TICKS == 0 || self.room.is_tight()) {
                self.clear_retired(RETIRED_SLICE);
                self.forget_unnamed();
                self.correct_used();
                self.make_room();
            }
            if !stopping {
                self.sweep(tick);
            }
            lock(&self.todo).done = asked;
            self.changed.notify_all();
            if stopping {
                return;
            }
        }
    }

    /// Removes some bodies that no row has named for a while: a message that was moved comes back soon.
    fn forget_unnamed(&self) {
        let before = now() - UNNAMED_SECONDS;
        let sql =
            "SELECT id FROM blob WHERE used < ? AND NOT EXISTS(SELECT 1 FROM msg WHERE msg.blob = blob.id)
            AND NOT EXISTS(SELECT 1 FROM item WHERE item.blob = blob.id) LIMIT ?";
        let ids = self.index.read(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let ids = statement.query_map(params![before, EVICT_SLICE], |row| Ok(blob_id(row)))?;
            ids.filter_map(Result::transpose).collect::<rusqlite::Result<Vec<BlobId>>>()
        });
        for id in ids.unwrap_or_default() {
            if self.bodies.forget_unread(&id).unwrap_or(false) {
                self.index.put(Write::BlobGone { id });
            }
        }
    }

    /// Removes bodies, those first that nobody ever used, until there is room; and old rows likewise.
    pub(super) fn make_room(&self) -> u64 {
        let Some(index_octets) = self.index.read(index_octets) else { return 0 };
        self.room.set_index(index_octets);
        if index_octets > self.room.size_max / INDEX_SHARE {
            self.index.put(Write::EvictRows { rows: ROWS_SLICE });
        }
        if !self.room.is_tight() {
            return 0;
        }
        let low = self.room.size_max - self.room.size_max / 10;
        let mut evicted = 0;
        let mut passed = 0;
        while self.room.all() > low {
            let sql = "SELECT id FROM blob ORDER BY (hits > 0), used LIMIT ? OFFSET ?";
            let ids = self.index.read(|db| {
                let mut statement = db.prepare_cached(sql)?;
                let ids = statement.query_map(params![EVICT_SLICE, passed], |row| Ok(blob_id(row)))?;
                ids.collect::<rusqlite::Result<Vec<Option<BlobId>>>>()
            });
            let Some(ids) = ids.filter(|ids| !ids.is_empty()) else { break };
            for id in ids {
                if self.room.all() <= low {
                    break;
                }
                let Some(id) = id else {
                    passed += 1;
                    continue;
                };
                match self.bodies.forget_unread(&id) {
                    Ok(true) => {
                        self.index.put(Write::BlobGone { id });
                        evicted += 1;
                    }
                    Ok(false) => passed += 1,
                    Err(error) => {
                        self.index.counters.disk_failures.one();
                        tracing::warn!(%error, "a body cannot be removed");
                        passed += 1;
                    }
                }
            }
            self.index.settle();
        }
        self.index.counters.evicted.add(evicted);
        evicted
    }

    /// Removes rows of generations that are no more.
    fn clear_retired(&self, rows: i64) -> u64 {
        let some = self.index.read(|db| {
            db.prepare_cached("SELECT mailbox FROM retired LIMIT 1")?
                .query_row([], |row| row.get(0))
                .optional()
        });
        let Some(Some(mailbox)) = some else { return 0 };
        self.index.put(Write::ClearRetired { mailbox, rows });
        1
    }

    /// Brings files and rows together: what one has and the other has not goes away.
    pub(super) fn collect(&self) -> io::Result<GcReport> {
        self.index.settle();
        self.settle();
        let mut report = GcReport::default();
        let rows_before = self.index.read(count_rows).unwrap_or(0);
        while self.clear_retired(i64::MAX) > 0 {
            self.index.settle();
        }
        report.retired_rows = rows_before.saturating_sub(self.index.read(count_rows).unwrap_or(0));

        self.index.put(Write::ForgetUnnamed);
        self.index.settle();
        for first in 0..=u8::MAX {
            self.reconcile(first, &mut report)?;
        }
        self.index.settle();
        report.evicted = self.make_room();
        Ok(report)
    }

    /// Of the bodies whose ids begin so: removes files that no row names, and rows without a file.
    fn reconcile(&self, first: u8, report: &mut GcReport) -> io::Result<()> {
        let files: HashSet<BlobId> = self.bodies.ids_in(first)?.into_iter().collect();
        let rows = self.index.read(|db| {
            let mut statement = db.prepare_cached("SELECT id FROM blob WHERE id BETWEEN ? AND ?")?;
            let (mut low, mut high) = ([0; 32], [u8::MAX; 32]);
            (low[0], high[0]) = (first, first);
            let ids = statement.query_map([low, high], |row| Ok(blob_id(row)))?;
            ids.filter_map(Result::transpose).collect::<rusqlite::Result<HashSet<BlobId>>>()
        });
        let Some(rows) = rows else { return Ok(()) };
        for id in files.difference(&rows) {
            // What is just being stored is held by its writer.
            if self.bodies.forget_unread(id).unwrap_or(false) {
                report.bodies_removed += 1;
            }
        }
        for id in rows.difference(&files) {
            // A body without its final name is there all the same.
            if matches!(self.bodies.body(id), Ok(None)) {
                self.index.put(Write::BlobGone { id: *id });
                report.rows_without_body += 1;
            }
        }
        Ok(())
    }

    /// After a crash there may be files without rows. They are looked for at leisure, long after the start.
    pub(super) fn sweep(&self, tick: u64) {
        let Some(first) = tick.checked_sub(SWEEP_AFTER_TICKS).and_then(|nth| u8::try_from(nth).ok()) else {
            return;
        };
        if let Err(error) = self.reconcile(first, &mut GcReport::default()) {
            self.index.counters.disk_failures.one();
            tracing::warn!(%error, "the store's directory cannot be read");
        }
    }

    /// What is lost and found by and by makes the sum wrong by and by.
    fn correct_used(&self) {
        if self.bodies.unsynced() == 0
            && let Some(octets) = self.index.read(body_octets)
        {
            self.room.correct_used(octets);
        }
    }
}

/// The first column; `None` where it is damaged.
fn blob_id(row: &Row<'_>) -> Option<BlobId> {
    columns::exact(row, 0).map(BlobId)
}

/// Octets of all bodies' files.
pub(super) fn body_octets(db: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT CAST(total(file_octets) AS INTEGER) FROM blob";
    let octets: i64 = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(octets).unwrap_or(0))
}

/// Octets of the index that are in use.
pub(super) fn index_octets(db: &Connection) -> rusqlite::Result<u64> {
    let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = number("page_count")? - number("freelist_count")?;
    Ok(u64::try_from(pages.saturating_mul(number("page_size")?)).unwrap_or(0))
}

fn count_rows(db: &Connection) -> rusqlite::Result<u64> {
    let rows: i64 = db.query_row("SELECT count(*) FROM msg", [], |row| row.get(0))?;
    Ok(u64::try_from(rows).unwrap_or(0))
}

/// How long a body waits for its sync.
const TICK: Duration = Duration::from_millis(500);

/// So often there is a look at everything else.
const TIDY_TICKS: u64 = 20;

/// A tick that comes a minute after the start at the earliest, unless there is much to do.
const SWEEP_AFTER_TICKS: u64 = 120;

/// How long a body that no row names is kept.
const UNNAMED_SECONDS: i64 = 3600;

/// Messages that wait for a comparison.
const COMPARE_MAX: usize = 4096;

/// Bodies looked at in one go.
const EVICT_SLICE: i64 = 64;

/// Rows removed in one go; the writer does nothing else meanwhile.
const ROWS_SLICE: i64 = 2000;
const RETIRED_SLICE: i64 = 2000;

/// The index may take so much of the cap: one part in four.
const INDEX_SHARE: u64 = 4;
