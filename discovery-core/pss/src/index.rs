//! From a chunk's hash to where the chunk lies: 8 octets a chunk, two buckets of eight slots, a table that never grows.
//!
//! ```text
//! slot:  upper 24 bits of the hash (24) ‖ generation modulo 2^14 (14) ‖ offset (26)     0 is empty
//! ```
//!
//! What it says is a guess: the caller compares the octets. A slot of a generation that is gone is empty. Where both
//! buckets are full the oldest gives way, so the table ages as the log does.

use crate::place::{Generation, OFFSETS, Place};

/// The generations that are live: `oldest..=newest`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) oldest: Generation,
    pub(crate) newest: Generation,
}

pub(crate) struct AnchorIndex {
    /// Behind the first few, so that each bucket is one line of the processor's cache.
    slots: Vec<u64>,
    skipped: usize,
    buckets: usize,
    live: Live,
}

const SLOTS: usize = 8;
/// Reads that a processor has under way at a time, about.
const BATCH: usize = 16;
/// Buckets in a page of memory.
const PAGE: usize = 64;
const GENERATION_BITS: u32 = 14;
/// More generations than this cannot be told apart.
pub(crate) const GENERATIONS_MAX: u64 = 1 << GENERATION_BITS;
const OFFSET_BITS: u32 = OFFSETS.trailing_zeros();
const HALF: u64 = (1 << 24) - 1;
/// A bucket is chosen by 24 bits of the hash.
const BUCKETS_MAX: usize = 1 << 24;

impl AnchorIndex {
    /// A table of at most `octets`. Untouched pages of it cost nothing.
    pub(crate) fn new(octets: usize, live: Live) -> Self {
        let buckets = (octets / (SLOTS * size_of::<u64>())).clamp(1, BUCKETS_MAX);
        let buckets = if buckets < PAGE { buckets } else { buckets / PAGE * PAGE };
        let slots = vec![0u64; (buckets + 1) * SLOTS];
        let skipped = slots.as_ptr().align_offset(SLOTS * size_of::<u64>()).min(SLOTS);
        Self { slots, skipped, buckets, live }
    }

    pub(crate) fn set_live(&mut self, live: Live) {
        self.live = live;
    }

    pub(crate) fn octets(&self) -> usize {
        size_of_val(self.slots.as_slice())
    }

    /// Enters many chunks. Each is somewhere else in a large table: what they touch is read ahead together, so that
    /// the memory answers them at the same time and not one by one.
    pub(crate) fn insert_all(&mut self, chunks: &[(u64, Place)]) {
        for batch in chunks.chunks(BATCH) {
            let touched = batch.iter().flat_map(|(hash, _)| self.pair(*hash)).fold(0, |all, bucket| {
                let [first, ..] = self.bucket(bucket);
                all ^ first
            });
            std::hint::black_box(touched);
            batch.iter().for_each(|(hash, place)| self.insert(*hash, *place));
        }
    }

    /// Enters a chunk. Of two with one hash the newer stays; nothing newer gives way to anything older.
    pub(crate) fn insert(&mut self, hash: u64, place: Place) {
        let (tag, new) = (tag(hash), slot(hash, place));
        let (mut room, mut room_free) = (None, 0);
        let (mut oldest, mut oldest_age) = (None, 0);
        for bucket in self.pair(hash) {
            let first = self.skipped + bucket * SLOTS;
            let (mut free, mut empty) = (0, None);
            for (at, &old) in self.bucket(bucket).iter().enumerate().map(|(nth, old)| (first + nth, old)) {
                match self.age(old) {
                    Some(age) if old >> 40 == tag => {
                        if self.age(new).is_some_and(|ours| ours <= age) {
                            self.set(at, new);
                        }
                        return;
                    }
                    None => (free, empty) = (free + 1, Some(at)),
                    Some(age) if age > oldest_age => (oldest, oldest_age) = (Some(at), age),
                    Some(_) => {}
                }
            }
            if free > room_free {
                (room, room_free) = (empty, free);
            }
        }
        if let Some(at) = room {
            self.set(at, new);
        } else if let Some(at) = oldest
            && self.age(new).is_some_and(|ours| ours < oldest_age)
        {
            self.set(at, new);
        }
    }

    fn bucket(&self, bucket: usize) -> &[u64; SLOTS] {
        let first = self.skipped + bucket * SLOTS;
        self.slots.get(first..).and_then(|rest| rest.first_chunk()).unwrap_or(&[0; SLOTS])
    }

    fn set(&mut self, at: usize, slot: u64) {
        if let Some(old) = self.slots.get_mut(at) {
            *old = slot;
        }
    }

    /// Where a chunk with this hash may lie, newest first.
    pub(crate) fn find(&self, hash: u64) -> [Option<Place>; 2] {
        let tag = tag(hash);
        let mut found = [None, None];
        for (bucket, out) in self.pair(hash).into_iter().zip(&mut found) {
            *out = self
                .bucket(bucket)
                .iter()
                .filter(|slot| **slot >> 40 == tag)
                .find_map(|slot| self.place(*slot));
        }
        found.sort_by(|a, b| b.cmp(a));
        if found[0] == found[1] {
            found[1] = None;
        }
        found
    }

    /// Both buckets of a hash: two of one page of memory, so that the second costs no second look for its page.
    fn pair(&self, hash: u64) -> [usize; 2] {
        // Both factors are below 2^25, so the product's upper part is an index of the table.
        let first = usize::try_from(((hash & HALF) * self.buckets as u64) >> 24).unwrap_or(0);
        let page = PAGE.min(self.buckets);
        let step = usize::try_from(tag(hash).wrapping_mul(0x9E37_79B1) >> 20 & 0xFFF).unwrap_or(0);
        let second = first / page * page + (first % page + 1 + step % (page - 1).max(1)) % page;
        [first, second]
    }

    /// How many generations ago; none for a slot that is empty or whose generation is gone.
    fn age(&self, slot: u64) -> Option<u64> {
        if slot == 0 {
            return None;
        }
        let generation = (slot >> OFFSET_BITS) & (GENERATIONS_MAX - 1);
        let age = self.live.newest.0.wrapping_sub(generation) & (GENERATIONS_MAX - 1);
        (age <= self.live.newest.0.wrapping_sub(self.live.oldest.0)).then_some(age)
    }

    fn place(&self, slot: u64) -> Option<Place> {
        let generation = Generation(self.live.newest.0 - self.age(slot)?);
        Some(Place { generation, offset: u32::try_from(slot & u64::from(OFFSETS - 1)).ok()? })
    }
}

fn tag(hash: u64) -> u64 {
    (hash >> 24) & HALF
}

fn slot(hash: u64, place: Place) -> u64 {
    tag(hash) << 40
        | (place.generation.0 & (GENERATIONS_MAX - 1)) << OFFSET_BITS
        | u64::from(place.offset & (OFFSETS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(oldest: u64, newest: u64) -> Live {
        Live { oldest: Generation(oldest), newest: Generation(newest) }
    }

    fn place(generation: u64, offset: u32) -> Place {
        Place { generation: Generation(generation), offset }
    }

    fn hash(nth: u64) -> u64 {
        nth.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(32).wrapping_mul(0xD6E8_FEB8_6659_FD93)
    }

    #[test]
    fn what_was_entered_is_found_at_nine_tenths_full() {
        let mut index = AnchorIndex::new(64 * 1024, live(1, 1));
        let n = 64 * 1024 / 8 * 9 / 10;
        (0..n).for_each(|nth| index.insert(hash(nth), place(1, u32::try_from(nth).unwrap())));
        let found = (0..n)
            .filter(|&nth| index.find(hash(nth)).contains(&Some(place(1, u32::try_from(nth).unwrap()))));
        assert!(found.count() as u64 > n * 995 / 1000);
        assert!((n..2 * n).filter(|&nth| index.find(hash(nth)) != [None, None]).count() < 20);
    }

    #[test]
    fn what_is_gone_is_not_found_and_the_newer_stays() {
        let mut index = AnchorIndex::new(1024, live(1, 3));
        index.insert(7, place(2, 20));
        index.insert(7, place(1, 10));
        assert_eq!(index.find(7)[0], Some(place(2, 20)), "older than what is there");
        index.insert(7, place(3, 30));
        assert_eq!(index.find(7), [Some(place(3, 30)), None]);
        index.set_live(live(4, 5));
        assert_eq!(index.find(7), [None, None]);
        // A generation further on than the table can tell apart is another one.
        index.set_live(live(3 + GENERATIONS_MAX, 4 + GENERATIONS_MAX));
        assert_eq!(index.find(7)[0].map(|p| p.generation), Some(Generation(3 + GENERATIONS_MAX)));
    }

    #[test]
    fn a_full_table_keeps_the_newest() {
        let mut index = AnchorIndex::new(64, live(1, 40));
        (1..=40).for_each(|nth| index.insert(hash(nth), place(nth, 1)));
        let found: Vec<u64> = (1..=40).filter(|&n| index.find(hash(n))[0].is_some()).collect();
        assert_eq!(found, (33..=40).collect::<Vec<_>>());
        index.insert(hash(90), place(2, 1));
        assert_eq!(index.find(hash(90)), [None, None], "nothing newer gives way to it");
    }
}
