//! One space's extents: which of its addresses lie where. Many spaces may lie over the same octets: a node with many
//! branches stores what they all have once.

use crate::place::{Generation, Interval, OFFSETS, Place};
use std::collections::BTreeMap;

/// The extents, by address and by place.
#[derive(Clone, Debug, Default)]
pub(crate) struct VirtualLog {
    by_address: BTreeMap<u64, Extent>,
    /// A hint: of those that begin at one place the last; what it says is looked up above.
    by_place: BTreeMap<Packed, u64>,
}

/// Millions of them are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    place: Packed,
    octets: u32,
}

/// A place in one number, in the same order; generations that there are are below 2^38.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packed(u64);

impl Packed {
    fn new(place: Place) -> Self {
        // Of a generation that cannot be, anything: whoever looks compares.
        Self(place.generation.0.wrapping_mul(u64::from(OFFSETS)).wrapping_add(place.offset.into()))
    }

    fn place(self) -> Place {
        let offset = u32::try_from(self.0 % u64::from(OFFSETS)).unwrap_or(0);
        Place { generation: Generation(self.0 / u64::from(OFFSETS)), offset }
    }
}

impl Extent {
    fn new(place: Place, octets: u32) -> Self {
        Self { place: Packed::new(place), octets }
    }

    fn place(self) -> Place {
        self.place.place()
    }
}

/// Octets that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) place: Place,
    pub(crate) octets: u32,
}

impl VirtualLog {
    /// Whether any of the addresses is known.
    pub(crate) fn overlaps(&self, address: u64, octets: u32) -> bool {
        let end = address.saturating_add(octets.into());
        self.by_address
            .range(..end)
            .next_back()
            .is_some_and(|(from, extent)| from.saturating_add(extent.octets.into()) > address)
    }

    /// Enters what is not known yet; `false` if any of it is.
    pub(crate) fn insert(&mut self, address: u64, place: Place, octets: u32) -> bool {
        if octets == 0 || self.overlaps(address, octets) {
            return false;
        }
        let (mut from, mut run) = (address, Extent::new(place, octets));
        if let Some((&before, &extent)) = self.by_address.range(..address).next_back()
            && before + u64::from(extent.octets) == address
            && extent.place().plus(extent.octets) == place
        {
            (from, run) = (before, Extent { octets: extent.octets + octets, ..extent });
        }
        let end = address + u64::from(octets);
        if let Some(&after) = self.by_address.get(&end)
            && after.place() == place.plus(octets)
        {
            self.remove(end);
            run.octets += after.octets;
        }
        self.by_address.insert(from, run);
        self.by_place.insert(run.place, from);
        true
    }

    fn remove(&mut self, from: u64) -> Option<Extent> {
        let extent = self.by_address.remove(&from)?;
        if self.by_place.get(&extent.place) == Some(&from) {
            self.by_place.remove(&extent.place);
        }
        Some(extent)
    }

    /// Where addresses lie, in order; none unless all of them are known.
    pub(crate) fn locate(&self, address: u64, octets: u64) -> Option<Vec<Run>> {
        let mut out = Vec::new();
        let (mut at, end) = (address, address.checked_add(octets)?);
        while at < end {
            let (from, extent) = self.by_address.range(..=at).next_back()?;
            let skip = u32::try_from(at - from).ok().filter(|skip| *skip < extent.octets)?;
            let octets = (extent.octets - skip).min(u32::try_from(end - at).unwrap_or(u32::MAX));
            out.push(Run { place: extent.place().plus(skip), octets });
            at += u64::from(octets);
        }
        Some(out)
    }

    /// What a place is called here, and how many octets follow under that name.
    pub(crate) fn address_of(&self, place: Place) -> Option<(u64, u32)> {
        let (_, &from) = self.by_place.range(..=Packed::new(place)).next_back()?;
        let extent = self.by_address.get(&from)?;
        let first = extent.place();
        if first.generation != place.generation {
            return None;
        }
        let skip = place.offset.checked_sub(first.offset).filter(|skip| *skip < extent.octets)?;
        Some((from + u64::from(skip), extent.octets - skip))
    }

    /// Forgets what lies at these places, and says which addresses that were.
    pub(crate) fn forget(&mut self, generation: Generation, offset: u32, octets: u32) -> Vec<Interval> {
        let end = offset.saturating_add(octets);
        // By address, because the other order knows only one name of a place.
        let hit: Vec<u64> = self
            .by_address
            .iter()
            .filter(|(_, extent)| {
                let first = extent.place();
                first.generation == generation && first.offset < end && first.offset + extent.octets > offset
            })
            .map(|(from, _)| *from)
            .collect();
        let mut out = Vec::new();
        for from in hit {
            let Some(extent) = self.remove(from) else { continue };
            let whole = extent.place();
            let (first, last) = (whole.offset.max(offset), (whole.offset + extent.octets).min(end));
            let before = first - whole.offset;
            self.insert(from, whole, before);
            let behind_from = from + u64::from(last - whole.offset);
            self.insert(behind_from, Place { generation, offset: last }, whole.offset + extent.octets - last);
            out.push(Interval { from: from + u64::from(before), to: behind_from });
        }
        out
    }

    /// Forgets a whole generation.
    pub(crate) fn forget_generation(&mut self, generation: Generation) -> Vec<Interval> {
        self.forget(generation, 0, OFFSETS)
    }

    /// The addresses, joined, of the places that `counts`.
    pub(crate) fn intervals(&self, counts: impl Fn(Generation) -> bool) -> Vec<Interval> {
        let mut out: Vec<Interval> = Vec::new();
        for (&from, extent) in &self.by_address {
            if !counts(extent.place().generation) {
                continue;
            }
            let to = from + u64::from(extent.octets);
            match out.last_mut() {
                Some(last) if last.to == from => last.to = to,
                Some(_) | None => out.push(Interval { from, to }),
            }
        }
        out
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    pub(crate) fn extents(&self) -> usize {
        self.by_address.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(generation: u64, offset: u32) -> Place {
        Place { generation: Generation(generation), offset }
    }

    #[test]
    fn what_follows_joins_and_nothing_is_entered_twice() {
        let mut log = VirtualLog::default();
        assert!(log.insert(100, at(1, 50), 10));
        assert!(log.insert(120, at(1, 70), 5));
        assert_eq!(log.extents(), 2);
        assert!(log.insert(110, at(1, 60), 10), "joins both");
        assert_eq!(log.extents(), 1);
        assert!(!log.insert(99, at(2, 0), 2));
        assert!(!log.insert(124, at(2, 0), 2));
        assert!(log.insert(125, at(2, 75), 2), "another generation");
        assert_eq!(log.extents(), 2);
        assert_eq!(
            log.locate(118, 8),
            Some(vec![Run { place: at(1, 68), octets: 7 }, Run { place: at(2, 75), octets: 1 }])
        );
        assert_eq!(log.locate(126, 2), None);
        assert_eq!(log.address_of(at(1, 68)), Some((118, 7)));
        assert_eq!(log.address_of(at(1, 75)), None);
    }

    #[test]
    fn what_is_forgotten_leaves_the_rest() {
        let mut log = VirtualLog::default();
        log.insert(100, at(1, 50), 30);
        log.insert(500, at(1, 50), 30);
        assert_eq!(
            log.forget(Generation(1), 60, 10),
            [Interval { from: 110, to: 120 }, Interval { from: 510, to: 520 }]
        );
        assert_eq!(log.locate(100, 10).map(|runs| runs.len()), Some(1));
        assert_eq!(log.locate(100, 11), None);
        assert_eq!(log.locate(520, 10), Some(vec![Run { place: at(1, 70), octets: 10 }]));
        assert_eq!(log.intervals(|_| true).len(), 4);
        assert!(log.intervals(|generation| generation != Generation(1)).is_empty());
        log.forget_generation(Generation(1));
        assert!(log.is_empty());
    }
}
