//! What the store counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything counted since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) corrupt: Counter,
    pub(super) lost: Counter,
    pub(super) evicted: Counter,
    pub(super) evicted_rows: Counter,
    pub(super) changed: Counter,
    pub(super) index_failures: Counter,
    pub(super) disk_failures: Counter,
    pub(super) fills_stored: Counter,
    pub(super) fills_aborted: Counter,
    pub(super) fills_wrong_length: Counter,
    pub(super) fills_refused: Counter,
    pub(super) fills_failed: Counter,
    pub(super) fills_stale: Counter,
    pub(super) compared_same: Counter,
    pub(super) compared_different: Counter,
}
