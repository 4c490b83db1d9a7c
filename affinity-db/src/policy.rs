//! Whether an item is worth its octets: total functions over what is known. Integers only.

use discovery_core::seam::advisor::{Amount, Held};

/// What the operator may turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Of the octets fetched ahead, so many parts of a thousand may turn out unused. What is likelier to be used
    /// than the rest of the thousand is fetched whatever its size.
    pub wasted_permille_max: u64,
    /// What an open that hits may cost in octets beyond that.
    pub octets_for_a_hit: u64,
    /// Larger items are fetched whole only when they are as good as certain.
    pub whole_octets_max: u64,
    /// As good as certain, in parts of a thousand.
    pub certain_permille: u64,
    /// How much of a large item is fetched otherwise.
    pub start_octets: u64,
    /// What is expected of a user of whom nothing is known.
    pub unknown_permille: u64,
    /// For an item that was used before Waypost saw it: seldom again.
    pub again_permille: u64,
    /// The same beside what is being read, and of the same kin.
    pub again_beside_permille: u64,
    /// Octets for one user and day.
    pub day_octets_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            wasted_permille_max: 200,
            octets_for_a_hit: 260_000,
            whole_octets_max: 8 << 20,
            certain_permille: 900,
            start_octets: 256 << 10,
            unknown_permille: 750,
            again_permille: 15,
            again_beside_permille: 150,
            day_octets_max: 512 << 20,
        }
    }
}

/// What is asked about one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The chance that it is opened, in parts of a thousand.
    pub chance: u64,
    /// The chance that all of it is wanted when it is opened.
    pub whole: u64,
    /// All octets.
    pub octets: u64,
    /// Octets of its main part.
    pub main_octets: u64,
    /// What is there already.
    pub held: Held,
}

impl Policy {
    /// Whether `octets` that are used with this chance should be fetched.
    #[must_use]
    pub fn is_worth(&self, chance: u64, octets: u64) -> bool {
        let enough = 1000_u64.saturating_sub(self.wasted_permille_max);
        let short = enough.saturating_sub(chance);
        chance.saturating_mul(self.octets_for_a_hit) >= octets.saturating_mul(short)
    }

    /// How much of an item to fetch, if any.
    #[must_use]
    pub fn amount(&self, q: Question) -> Option<Amount> {
        let all = q.chance.saturating_mul(q.whole.min(1000)) / 1000;
        let large = q.octets > self.whole_octets_max;
        let main = q.main_octets.min(q.octets);
        match q.held {
            Held::Whole => None,
            _ if large && all >= self.certain_permille => Some(Amount::Whole),
            Held::Nothing | Held::Part if !large && self.is_worth(all, q.octets) => Some(Amount::Whole),
            Held::Nothing => {
                let start = main.min(self.start_octets);
                (start < q.octets && self.is_worth(q.chance, start)).then_some(Amount::Start(start))
            }
            Held::Part => None,
        }
    }
}

/// How much a user is drawn to a collection: uses, halved for every week since the last one ('more frequently
/// accessed objects ... more recently accessed objects').
#[must_use]
pub fn pull(count: u32, weeks_since: u64) -> u64 {
    u64::from(count)
        .saturating_mul(1 << 20)
        .checked_shr(u32::try_from(weeks_since).unwrap_or(64))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        wasted_permille_max: 200,
        octets_for_a_hit: 50_000,
        whole_octets_max: 8 << 20,
        certain_permille: 900,
        start_octets: 256 << 10,
        unknown_permille: 700,
        again_permille: 15,
        again_beside_permille: 150,
        day_octets_max: 1 << 30,
    };

    #[test]
    fn how_much_of_an_item_row_by_row() {
        use Held::{Nothing, Part, Whole};
        let large = 9 << 20;
        for (chance, whole, octets, main, held, amount) in [
            (900, 1000, 5_000_000, 10_000, Nothing, Some(Amount::Whole)),
            (800, 1000, 5_000_000, 10_000, Nothing, Some(Amount::Whole)),
            (799, 1000, 60_000_000, 10_000, Nothing, Some(Amount::Start(10_000))),
            (400, 1000, 50_000, 50_000, Nothing, Some(Amount::Whole)),
            (400, 1000, 50_001, 50_001, Nothing, None),
            (900, 400, 1_000_000, 10_000, Nothing, Some(Amount::Start(10_000))),
            (900, 400, 1_000_000, 10_000, Part, None),
            (900, 950, 1_000_000, 10_000, Part, Some(Amount::Whole)),
            (999, 1000, 1, 1, Whole, None),
            (0, 1000, 100, 100, Nothing, None),
            (950, 1000, large, 10_000, Nothing, Some(Amount::Whole)),
            (890, 1000, large, 10_000, Nothing, Some(Amount::Start(10_000))),
            (890, 1000, large, large, Nothing, Some(Amount::Start(256 << 10))),
            (890, 1000, large, 10_000, Part, None),
            (950, 1000, u64::MAX, u64::MAX, Nothing, Some(Amount::Whole)),
        ] {
            let q = Question { chance, whole, octets, main_octets: main, held };
            assert_eq!(POLICY.amount(q), amount, "{q:?}");
        }
    }

    #[test]
    fn a_collection_draws_by_frequency_and_recency() {
        assert!(pull(10, 0) > pull(9, 0) && pull(10, 0) > pull(10, 1) && pull(100, 1) > pull(10, 0));
        assert_eq!((pull(u32::MAX, 200), pull(0, 0)), (0, 0));
    }

    proptest! {
        #[test]
        fn likelier_and_smaller_is_never_worse(
            chance in 0_u64..=1000, more in 0_u64..=1000, octets: u64, fewer: u64,
        ) {
            if POLICY.is_worth(chance, octets) {
                prop_assert!(POLICY.is_worth(chance.max(more), octets.min(fewer)));
            }
        }

        #[test]
        fn nothing_is_fetched_twice_and_nothing_large_on_a_guess(
            chance in 0_u64..=1000, whole in 0_u64..=1000, octets: u64, main_octets: u64,
            held in prop_oneof![Just(Held::Nothing), Just(Held::Part), Just(Held::Whole)],
        ) {
            match POLICY.amount(Question { chance, whole, octets, main_octets, held }) {
                Some(Amount::Whole) => {
                    prop_assert!(held != Held::Whole);
                    prop_assert!(octets <= POLICY.whole_octets_max || chance * whole >= 900_000);
                }
                Some(Amount::Start(n)) => {
                    prop_assert!(held == Held::Nothing && n <= POLICY.start_octets && n < octets);
                }
                None => {}
            }
        }
    }
}
