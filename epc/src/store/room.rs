//! The room that a store may take, and who has it.

use super::body_file::BLOCK_OCTETS;
use discovery_core::seam::blob::StoreError;
use imap_core::mutants;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The size cap: octets of files that are there, and of those that are promised.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) size_max: u64,
    used: AtomicU64,
    promised: AtomicU64,
    index: AtomicU64,
}

impl Room {
    pub(super) fn new(size_max: u64) -> Self {
        Self { size_max, ..Self::default() }
    }

    /// Octets of files.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Octets of files and of the index.
    pub(super) fn all(&self) -> u64 {
        self.used().saturating_add(self.index.load(Ordering::Relaxed))
    }

    /// Whether it is time to make room: 95 % of the cap.
    pub(super) fn is_tight(&self) -> bool {
        self.all() > self.size_max - self.size_max / 20
    }

    pub(super) fn set_index(&self, octets: u64) {
        self.index.store(octets, Ordering::Relaxed);
    }

    /// Sets what the index says, unless bodies are on their way that it does not know yet.
    pub(super) fn correct_used(&self, octets: u64) {
        if self.promised.load(Ordering::Relaxed) == 0 {
            self.set_used(octets);
        }
    }

    pub(super) fn set_used(&self, octets: u64) {
        self.used.store(octets, Ordering::Relaxed);
    }

    pub(super) fn add_used(&self, octets: u64) {
        self.used.fetch_add(octets, Ordering::Relaxed);
    }

    pub(super) fn remove_used(&self, octets: u64) {
        let less = |used: u64| Some(used.saturating_sub(octets));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn promise(&self, octets: u64) -> Result<(), StoreError> {
        let before = self.promised.fetch_add(octets, Ordering::Relaxed);
        let all = self.all().checked_add(before).and_then(|sum| sum.checked_add(octets));
        if all.is_some_and(|all| all <= self.size_max) || mutants::on("store-size-uncapped") {
            return Ok(());
        }
        self.promised.fetch_sub(octets, Ordering::Relaxed);
        Err(StoreError::Full)
    }

    fn keep(&self, octets: u64) {
        self.promised.fetch_sub(octets, Ordering::Relaxed);
    }
}

/// Octets promised to a writer, given back when it ends.
pub(super) struct Promise {
    room: Arc<Room>,
    octets: u64,
}

impl Promise {
    pub(super) fn new(room: &Arc<Room>, octets: u64) -> Result<Self, StoreError> {
        room.promise(octets)?;
        Ok(Self { room: Arc::clone(room), octets })
    }

    /// Grows to `octets` in all.
    pub(super) fn cover(&mut self, octets: u64) -> Result<(), StoreError> {
        if octets > self.octets {
            let more = (octets - self.octets).max(BLOCK_OCTETS as u64);
            self.room.promise(more)?;
            self.octets += more;
        }
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.room.keep(self.octets);
    }
}
