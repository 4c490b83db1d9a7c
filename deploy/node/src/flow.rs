//! What waits to be written to one side.

use std::time::{Duration, Instant};

/// What a queued piece costs beside its octets: many tiny ones must not cost more than they count.
pub(crate) const PIECE_COST: usize = 128;

/// One side's queue, as far as the node must know it.
#[derive(Debug)]
pub(crate) struct Flow {
    octets: usize,
    pieces: usize,
    /// When something was last taken, or the queue last began.
    moved: Instant,
    open: bool,
}

impl Flow {
    pub(crate) fn new(now: Instant) -> Self {
        Self { octets: 0, pieces: 0, moved: now, open: true }
    }

    /// What waits, tiny pieces counted for more than their octets.
    pub(crate) fn waiting(&self) -> usize {
        self.octets + self.pieces * PIECE_COST
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn is_drained(&self) -> bool {
        !self.open || self.pieces == 0
    }

    /// Whether the piece is to be written at all.
    pub(crate) fn push(&mut self, now: Instant, octets: usize) -> bool {
        if !self.open {
            return false;
        }
        if self.pieces == 0 {
            self.moved = now;
        }
        self.octets += octets;
        self.pieces += 1;
        true
    }

    pub(crate) fn wrote(&mut self, now: Instant, octets: usize, pieces: usize) {
        self.octets = self.octets.saturating_sub(octets);
        self.pieces = self.pieces.saturating_sub(pieces);
        self.moved = now;
    }

    /// Nothing can be written any more. Whether that is news.
    pub(crate) fn break_off(&mut self) -> bool {
        self.octets = 0;
        self.pieces = 0;
        std::mem::replace(&mut self.open, false)
    }

    /// A stream of another connection takes its place.
    pub(crate) fn reopen(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// When it will have stood still for `limit`, if it stands.
    pub(crate) fn stuck_at(&self, limit: Duration) -> Option<Instant> {
        (!self.is_drained()).then(|| self.moved + limit)
    }
}
