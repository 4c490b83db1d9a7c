//! Sets of message numbers or UIDs as clients write them: `1:3,5,7:*` (RFC 9051 §9, `sequence-set`). The same
//! text means MSNs or UIDs by the command around it; this file does not know which.

use std::{fmt, iter, num::NonZeroU32, ops::RangeInclusive};
use thiserror::Error;

/// A parsed set. `*` stays symbolic until [`SequenceSet::resolve`], because what it means depends on whose view
/// it is read in. The order of the client is kept; each range runs upwards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SequenceSet(Vec<Range>);

/// One piece of a set; a single number is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Range {
    from: Bound,
    to: Bound,
}

/// Ordered so that `*`, the largest number in use, comes after every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Bound {
    Number(NonZeroU32),
    Largest,
}

/// Why octets are not a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SetError {
    /// Not `sequence-set`.
    #[error("octet {at} does not continue a sequence set")]
    Syntax {
        /// Where the first offending piece begins.
        at: usize,
    },
    /// More than [`RANGES_MAX`] pieces.
    #[error("more than {RANGES_MAX} ranges in a sequence set: ask in several commands")]
    TooManyRanges,
}

impl SequenceSet {
    /// Reads a whole set; nothing may follow it. `$` (RFC 5182) is no set.
    ///
    /// # Errors
    /// On anything but `sequence-set`, on 0, on numbers beyond 32 bits, on too many ranges.
    pub fn parse(octets: &[u8]) -> Result<Self, SetError> {
        let mut ranges = Vec::new();
        let mut at = 0;
        for piece in octets.split(|&o| o == b',') {
            if ranges.len() == RANGES_MAX {
                return Err(SetError::TooManyRanges);
            }
            ranges.push(Range::parse(piece).ok_or(SetError::Syntax { at })?);
            at += piece.len() + 1;
        }
        Ok(Self(ranges))
    }

    /// The set of these numbers, runs of neighbours compressed. Meant for ascending input; any other order gives
    /// a correct set with more ranges. Zeros are left out: IMAP gives them to nobody.
    pub fn from_sorted(numbers: impl IntoIterator<Item = u32>) -> Self {
        let mut ranges: Vec<Range> = Vec::new();
        for number in numbers.into_iter().filter_map(NonZeroU32::new) {
            let next = Bound::Number(number);
            match ranges.last_mut() {
                Some(last) if last.to == next => {}
                Some(last) if last.to.is_just_below(number) => last.to = next,
                _ => ranges.push(Range { from: next, to: next }),
            }
        }
        Self(ranges)
    }

    /// The ranges of numbers it means when `*` is `largest`: sorted, overlaps and neighbours merged. `largest`
    /// is 0 for an empty mailbox; then ranges with `*` mean nothing.
    pub fn resolve(&self, largest: u32) -> impl Iterator<Item = RangeInclusive<u32>> + use<> {
        let mut ranges: Vec<(u32, u32)> = self.0.iter().filter_map(|range| range.resolve(largest)).collect();
        ranges.sort_unstable();
        let mut ranges = ranges.into_iter().peekable();
        iter::from_fn(move || {
            let (from, mut to) = ranges.next()?;
            while let Some((_, further)) = ranges.next_if(|(next, _)| *next <= to.saturating_add(1)) {
                to = to.max(further);
            }
            Some(from..=to)
        })
    }

    /// Whether it means `number` when `*` is `largest`.
    #[must_use]
    pub fn contains(&self, number: u32, largest: u32) -> bool {
        self.0
            .iter()
            .filter_map(|range| range.resolve(largest))
            .any(|(from, to)| (from..=to).contains(&number))
    }

    /// Whether it is one number written out: not `*`, not a range, not a list.
    #[must_use]
    pub fn is_single_number(&self) -> bool {
        matches!(self.0.as_slice(), [Range { from: Bound::Number(from), to: Bound::Number(to) }] if from == to)
    }

    /// Whether its meaning depends on the largest number in use.
    #[must_use]
    pub fn has_star(&self) -> bool {
        self.0.iter().any(|range| range.to == Bound::Largest)
    }

    /// Whether it means nothing at all; parsed sets never are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Range {
    fn parse(piece: &[u8]) -> Option<Self> {
        let mut bounds = piece.splitn(2, |&o| o == b':');
        let first = Bound::parse(bounds.next()?)?;
        let second = bounds.next().map_or(Some(first), Bound::parse)?;
        // RFC 9051: `4:2` means `2:4`, and `*:4` is `4:*`.
        Some(Self { from: first.min(second), to: first.max(second) })
    }

    fn resolve(self, largest: u32) -> Option<(u32, u32)> {
        let number = |bound| match bound {
            Bound::Number(number) => Some(number.get()),
            Bound::Largest => Some(largest).filter(|&l| l != 0),
        };
        let (from, to) = (number(self.from)?, number(self.to)?);
        // `7:*` with 5 messages is `5:7`.
        Some((from.min(to), from.max(to)))
    }
}

impl Bound {
    fn parse(octets: &[u8]) -> Option<Self> {
        match octets {
            b"*" => Some(Self::Largest),
            [b'1'..=b'9', ..] => {
                let digits = octets.iter().all(u8::is_ascii_digit).then_some(octets)?;
                std::str::from_utf8(digits).ok()?.parse().ok().map(Self::Number)
            }
            _ => None,
        }
    }

    fn is_just_below(self, number: NonZeroU32) -> bool {
        matches!(self, Self::Number(own) if own.checked_add(1) == Some(number))
    }
}

impl fmt::Display for SequenceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match *range {
                Range { from, to } if from == to => write!(f, "{comma}{from}")?,
                Range { from, to } => write!(f, "{comma}{from}:{to}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Largest => f.write_str("*"),
        }
    }
}

/// A line of 64 KiB holds at most 32,768 ranges and real clients send a few hundred; a set is kept in memory for
/// as long as its command runs.
pub const RANGES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolved(set: &str, largest: u32) -> Vec<(u32, u32)> {
        let set = SequenceSet::parse(set.as_bytes()).unwrap();
        set.resolve(largest).map(RangeInclusive::into_inner).collect()
    }

    #[test]
    fn sets_mean_what_rfc_9051_says() {
        assert_eq!(resolved("2", 9), [(2, 2)]);
        assert_eq!(resolved("1:3,5,7:*", 9), [(1, 3), (5, 5), (7, 9)]);
        assert_eq!(resolved("4:2,*:8", 9), [(2, 4), (8, 9)]);
        assert_eq!(resolved("5,1:4,3:6,9", 9), [(1, 6), (9, 9)]);
        assert_eq!(resolved("7:*", 5), [(5, 7)]);
        assert_eq!(resolved("*", 5), [(5, 5)]);
        assert_eq!(resolved("*,1", 0), [(1, 1)]);
        assert_eq!(resolved("1:4294967295,4294967295", 5), [(1, u32::MAX)]);
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for odd in
            ["", ",", "1,", ",1", "0", "01", "1:", ":1", "1:2:3", "$", "1 ", "+1", "4294967296", "1:**", "a"]
        {
            assert!(SequenceSet::parse(odd.as_bytes()).is_err(), "{odd}");
        }
        assert_eq!(SequenceSet::parse(b"1,2,x"), Err(SetError::Syntax { at: 4 }));
    }

    #[test]
    fn ranges_are_bounded() {
        let text = |n: usize| vec!["7"; n].join(",").into_bytes();
        assert!(SequenceSet::parse(&text(RANGES_MAX)).is_ok());
        assert_eq!(SequenceSet::parse(&text(RANGES_MAX + 1)), Err(SetError::TooManyRanges));
    }

    #[test]
    fn printing_is_canonical() {
        let print = |set: &str| SequenceSet::parse(set.as_bytes()).unwrap().to_string();
        assert_eq!(print("3:3,*:*,*:2,9:4"), "3,*,2:*,4:9");
    }

    #[test]
    fn runs_are_compressed() {
        assert_eq!(SequenceSet::from_sorted([1, 2, 2, 3, 5, 7, 8]).to_string(), "1:3,5,7:8");
        assert_eq!(
            SequenceSet::from_sorted([0, u32::MAX - 1, u32::MAX]).to_string(),
            "4294967294:4294967295"
        );
        assert!(SequenceSet::from_sorted([]).is_empty());
    }

    #[test]
    fn only_one_written_number_is_single() {
        let single = |set: &str| SequenceSet::parse(set.as_bytes()).unwrap().is_single_number();
        assert!(single("7") && single("7:7"));
        assert!(!single("*") && !single("7:8") && !single("7,7"));
    }

    proptest! {
        #[test]
        fn any_octets_parse_or_fail_and_print_back(octets in "[0-9:,*$ ]{0,40}") {
            if let Ok(set) = SequenceSet::parse(octets.as_bytes()) {
                prop_assert_eq!(SequenceSet::parse(set.to_string().as_bytes()), Ok(set));
            }
        }

        #[test]
        fn foreign_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = SequenceSet::parse(&octets);
        }

        #[test]
        fn contains_and_resolve_agree(
            pieces in proptest::collection::vec((0u32..12, 0u32..12), 1..6), n in 1u32..16, largest in 0u32..16,
        ) {
            let bound = |n: u32| if n == 0 { "*".to_owned() } else { n.to_string() };
            let text: Vec<String> = pieces.iter().map(|&(a, b)| format!("{}:{}", bound(a), bound(b))).collect();
            let set = SequenceSet::parse(text.join(",").as_bytes()).unwrap();
            let ranges: Vec<_> = set.resolve(largest).collect();
            prop_assert_eq!(set.contains(n, largest), ranges.iter().any(|range| range.contains(&n)));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end() + 1 < *pair[1].start()), "sorted and apart");
        }

        #[test]
        fn a_set_of_numbers_means_those_numbers(numbers in proptest::collection::btree_set(1u32..200, 0..60)) {
            let set = SequenceSet::from_sorted(numbers.iter().copied());
            let back: Vec<u32> = set.resolve(0).flatten().collect();
            prop_assert_eq!(back, numbers.into_iter().collect::<Vec<_>>());
        }
    }
}
