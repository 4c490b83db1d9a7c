//! Flags as the origin told them a moment ago. Clients ask for the flags of all messages and, with the next command,
//! for headers and flags of the same messages: the second time nothing can have changed that the origin would have
//! told in between.

use crate::views::SlotId;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Flag lists with the moment at which they came.
#[derive(Default)]
pub(super) struct FreshFlags(BTreeMap<SlotId, (Bytes, Instant)>);

impl FreshFlags {
    /// The origin said `list`, parentheses included.
    pub(super) fn told(&mut self, slot: SlotId, list: &[u8], now: Instant) {
        if self.0.len() >= MESSAGES_MAX {
            self.0.clear();
        }
        self.0.insert(slot, (Bytes::copy_from_slice(list), now));
    }

    /// They may have changed without a word.
    pub(super) fn forget(&mut self, slot: SlotId) {
        self.0.remove(&slot);
    }

    /// Any may have changed without a word.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// How many messages they are known of.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What the origin said last, however long ago.
    pub(super) fn last(&self, slot: SlotId) -> Option<&Bytes> {
        self.0.get(&slot).map(|(list, _)| list)
    }

    /// What the origin said at most [`FRESH`] ago.
    pub(super) fn get(&self, slot: SlotId, now: Instant) -> Option<&Bytes> {
        let (list, told) = self.0.get(&slot)?;
        (now.saturating_duration_since(*told) <= FRESH).then_some(list)
    }
}

/// For so long the origin's word about flags is repeated. A person sees no difference; two programs that change and
/// read flags within it meet the same race at the server itself.
const FRESH: Duration = Duration::from_secs(2);

/// Lists kept; one is some fifty octets.
const MESSAGES_MAX: usize = 50_000;
