//! What was forwarded in one direction and not acknowledged.

use std::collections::{BTreeMap, VecDeque};

/// Octets without a gap from a first number on, and those behind a gap.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadow {
    /// The number of the first octet; none before any was seen.
    first: Option<u32>,
    octets: VecDeque<u8>,
    /// By their number.
    behind_gap: BTreeMap<u32, Vec<u8>>,
    kept_behind_gap: usize,
    confirmed: bool,
}

impl Shadow {
    /// Takes note of what was sent.
    pub(super) fn sent(&mut self, seq: u32, octets: &[u8]) {
        if octets.is_empty() {
            return;
        }
        self.first.get_or_insert(seq);
        if self.append(seq, octets) {
            self.close_gaps();
        } else {
            let more = octets.len();
            let held = self.behind_gap.entry(seq).or_default();
            if held.len() < more {
                self.kept_behind_gap = self.kept_behind_gap - held.len() + more;
                *held = octets.to_vec();
            }
        }
    }

    /// Takes note of how far it was acknowledged.
    pub(super) fn acked(&mut self, ack: u32) {
        let Some((first, end)) = self.ends() else { return };
        if behind(end, ack) {
            // More was sent than was seen: begin anew from what is certain.
            self.octets.clear();
            self.first = Some(ack);
            self.confirmed = false;
        } else if behind(first, ack) {
            let gone = usize::try_from(ack.wrapping_sub(first)).unwrap_or(usize::MAX);
            self.octets.drain(..gone.min(self.octets.len()));
            self.first = Some(ack);
            self.confirmed = true;
        }
        self.close_gaps();
    }

    /// The number of the first octet, and one past the last before a gap.
    pub(super) fn ends(&self) -> Option<(u32, u32)> {
        let first = self.first?;
        Some((first, first.wrapping_add(u32::try_from(self.octets.len()).unwrap_or(u32::MAX))))
    }

    /// Something that was kept has been acknowledged, and nothing that was not.
    pub(super) fn confirmed(&self) -> bool {
        self.confirmed
    }

    pub(super) fn octets(&self) -> usize {
        self.octets.len() + self.kept_behind_gap
    }

    pub(super) fn copy(&self) -> Vec<u8> {
        self.octets.iter().copied().collect()
    }

    /// Whether the octets begin where others end, or before.
    fn append(&mut self, seq: u32, octets: &[u8]) -> bool {
        let Some((_, end)) = self.ends() else { return false };
        if behind(end, seq) {
            return false;
        }
        let known = usize::try_from(end.wrapping_sub(seq)).unwrap_or(usize::MAX);
        self.octets.extend(octets.get(known..).unwrap_or_default());
        true
    }

    fn close_gaps(&mut self) {
        let Some((_, mut end)) = self.ends() else { return };
        while let Some(seq) = self.behind_gap.keys().copied().find(|seq| !behind(end, *seq)) {
            let Some(octets) = self.behind_gap.remove(&seq) else { return };
            self.kept_behind_gap -= octets.len();
            self.append(seq, &octets);
            let Some((_, further)) = self.ends() else { return };
            end = further;
        }
    }
}

/// Whether `seq` comes before `other` on the ring of sequence numbers.
pub(super) fn behind(seq: u32, other: u32) -> bool {
    let ahead = other.wrapping_sub(seq);
    ahead != 0 && ahead < 1 << 31
}
