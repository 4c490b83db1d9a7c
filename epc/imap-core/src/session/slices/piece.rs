//! A section that comes in slices: how much to ask for next, and what an answer means. A slice asks for one octet more
//! than there should be, so that the last one says that it is the last; servers may estimate sizes.

use crate::catalog::INLINE_OCTETS_MAX;

/// A slice. What a client asks behind it waits for no more than this on the line.
pub(super) const SLICE_OCTETS_MAX: u32 = 32 * 1024;

/// How far a section has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its length, as far as known.
    announced: u64,
    /// What has come.
    came: u64,
    /// It is gathered in memory, and may turn out to be longer than announced; else the store was told its length.
    in_memory: bool,
}

/// What an answer of some octets means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is more; all of it should have this length.
    More {
        /// Octets of the section.
        of: u64,
    },
    /// That was the end of it.
    Last {
        /// Octets of the section.
        of: u64,
    },
    /// Not the length that was announced, or too long.
    Odd,
}

impl Piece {
    pub(super) fn new(announced: u64, whole: bool) -> Self {
        Self { announced, came: 0, in_memory: !whole && announced <= INLINE_OCTETS_MAX }
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Where the next slice begins; `None` beyond what IMAP can name.
    pub(super) fn offset(&self) -> Option<u32> {
        u32::try_from(self.came).ok()
    }

    /// How many octets it asks for.
    pub(super) fn count(&self) -> u32 {
        match self.announced.checked_sub(self.came) {
            Some(left) => {
                u32::try_from(left.saturating_add(1)).map_or(SLICE_OCTETS_MAX, |n| n.min(SLICE_OCTETS_MAX))
            }
            // Longer than announced: there is no telling by how much.
            None => SLICE_OCTETS_MAX,
        }
    }

    /// The answer to the next slice has `octets`.
    pub(super) fn answer(&self, octets: u64) -> Answer {
        let count = u64::from(self.count());
        let came = self.came.saturating_add(octets);
        let last = octets < count;
        let fits = if self.in_memory { came <= INLINE_OCTETS_MAX } else { came <= self.announced };
        match (octets <= count, last) {
            (false, _) => Answer::Odd,
            // The first answer says the length, whatever was announced.
            (true, true) if self.came == 0 || self.in_memory && fits => Answer::Last { of: came },
            (true, true) if came == self.announced => Answer::Last { of: came },
            (true, false) if fits => Answer::More { of: self.announced },
            (true, _) => Answer::Odd,
        }
    }

    pub(super) fn came(&self) -> u64 {
        self.came
    }

    pub(super) fn take(&mut self, octets: u64) {
        self.came = self.came.saturating_add(octets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = SLICE_OCTETS_MAX as u64;

    #[test]
    fn answers_row_by_row() {
        for (announced, whole, came, octets, answer) in [
            // Small, and as long as announced; or shorter.
            (100, true, 0, 100, Answer::Last { of: 100 }),
            (100, true, 0, 90, Answer::Last { of: 90 }),
            (0, true, 0, 0, Answer::Last { of: 0 }),
            // Longer than announced.
            (100, true, 0, 101, Answer::Odd),
            (100, false, 0, 101, Answer::More { of: 100 }),
            // More than was asked for.
            (100, false, 0, 102, Answer::Odd),
            // In several slices.
            (MAX, true, 0, MAX, Answer::More { of: MAX }),
            (MAX, true, MAX, 0, Answer::Last { of: MAX }),
            (MAX, true, MAX, 1, Answer::Odd),
            (100_000, true, 0, MAX, Answer::More { of: 100_000 }),
            (100_000, true, 0, 99, Answer::Last { of: 99 }),
            (100_000, true, MAX, 99, Answer::Odd),
            (100_000, true, 3 * MAX, 100_000 - 3 * MAX, Answer::Last { of: 100_000 }),
            (100_000, true, 3 * MAX, 100_000 - 3 * MAX + 1, Answer::Odd),
            // In memory, its length does not matter.
            (100_000, false, MAX, 99, Answer::Last { of: MAX + 99 }),
            (INLINE_OCTETS_MAX, false, INLINE_OCTETS_MAX, 1, Answer::Odd),
            (INLINE_OCTETS_MAX + 1, false, MAX, 99, Answer::Odd),
        ] {
            let mut piece = Piece::new(announced, whole);
            piece.take(came);
            assert_eq!(piece.answer(octets), answer, "{announced} {whole} {came} {octets}");
        }
    }

    proptest! {
        #[test]
        fn a_section_comes_whole_or_is_given_up(announced in 0..200_000_u64, real in 0..200_000_u64, whole: bool) {
            let mut piece = Piece::new(announced, whole);
            for _ in 0..200_000 / MAX + 2 {
                let count = u64::from(piece.count());
                prop_assert!((1..=MAX).contains(&count));
                let octets = (real - u64::from(piece.offset().unwrap())).min(count);
                match piece.answer(octets) {
                    Answer::More { .. } => piece.take(octets),
                    Answer::Last { of } => {
                        prop_assert_eq!(of, real);
                        return Ok(());
                    }
                    Answer::Odd => {
                        prop_assert!(announced != real || real > INLINE_OCTETS_MAX && !whole);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it never ends");
        }
    }
}
