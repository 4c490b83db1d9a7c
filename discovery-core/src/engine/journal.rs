//! What was decided, counted for ever and remembered for a while: for metrics, `status` and `explain`.

use crate::{flow::Flow, now::UnixMillis, reason::Reason};
use std::collections::VecDeque;

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// When.
    pub at: UnixMillis,
    /// About which connection.
    pub flow: Flow,
    /// What and why.
    pub reason: Reason,
}

#[derive(Clone, Debug)]
pub(super) struct Journal {
    counts: [u64; Reason::COUNT],
    recent: VecDeque<Decided>,
    recent_max: usize,
}

impl Journal {
    pub(super) fn new(recent_max: usize) -> Self {
        Self { counts: [0; Reason::COUNT], recent: VecDeque::new(), recent_max }
    }

    pub(super) fn note(&mut self, at: UnixMillis, flow: Flow, reason: Reason) {
        if let Some(count) = self.counts.get_mut(reason.index()) {
            *count = count.saturating_add(1);
        }
        if self.recent.len() >= self.recent_max {
            self.recent.pop_front();
        }
        if self.recent_max > 0 {
            self.recent.push_back(Decided { at, flow, reason });
        }
    }

    pub(super) fn count(&self, reason: Reason) -> u64 {
        self.counts.get(reason.index()).copied().unwrap_or(0)
    }

    pub(super) fn recent(&self) -> impl DoubleEndedIterator<Item = &Decided> {
        self.recent.iter()
    }
}
