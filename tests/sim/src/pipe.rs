//! One direction of a connection: what is written arrives later, cut anew, in order.

use crate::{origin::Mark, random::Random};
use bytes::Bytes;
use std::collections::VecDeque;

/// What arrives at once.
#[derive(Default)]
pub(crate) struct Segment {
    pub(crate) octets: Bytes,
    /// What is true once they have come.
    pub(crate) marks: Vec<Mark>,
    /// When the node said them.
    pub(crate) said: u64,
    /// Nothing comes behind them.
    pub(crate) last: bool,
}

/// How a road is: one-way delay and rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Road {
    pub(crate) delay_us: u64,
    pub(crate) octets_per_ms: u64,
}

#[derive(Default)]
pub(crate) struct Pipe {
    flying: VecDeque<Segment>,
    /// What has come and was not taken.
    pub(crate) inbox: VecDeque<Segment>,
    pending: usize,
    /// When the last one arrives.
    last_us: u64,
    /// Nothing arrives before.
    pub(crate) blocked_until: u64,
    /// The receiver has vanished without a word.
    pub(crate) black_hole: bool,
}

impl Pipe {
    /// Octets that may still be put in.
    pub(crate) fn room(&self) -> usize {
        SOCKET_OCTETS.saturating_sub(self.pending)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending == 0 && self.flying.is_empty() && self.inbox.is_empty()
    }

    /// Puts a segment in; when it arrives.
    pub(crate) fn send(&mut self, now_us: u64, road: Road, segment: Segment) -> u64 {
        let octets = segment.octets.len();
        self.pending += octets;
        let takes = octets as u64 * 1000 / road.octets_per_ms;
        self.last_us =
            (self.last_us.max(now_us + road.delay_us).max(self.blocked_until) + takes).max(now_us + 1);
        self.flying.push_back(segment);
        self.last_us
    }

    /// The oldest segment on its way arrives.
    pub(crate) fn arrive(&mut self) {
        let arrived = self.flying.pop_front();
        if !self.black_hole {
            self.inbox.extend(arrived);
        }
    }

    pub(crate) fn take(&mut self) -> Option<Segment> {
        let segment = self.inbox.pop_front()?;
        self.pending -= segment.octets.len();
        Some(segment)
    }
}

/// A size to cut by: one octet, a few, or up to a whole window.
pub(crate) fn some(random: &mut Random) -> usize {
    match random.below(12) {
        0 => 1,
        1 => 1 + random.below(16),
        2..=4 => 1 + random.below(300),
        5..=8 => 1460,
        _ => 1 + random.below(64 * 1024),
    }
}

/// What the two ends' sockets hold of one direction.
const SOCKET_OCTETS: usize = 64 * 1024;
