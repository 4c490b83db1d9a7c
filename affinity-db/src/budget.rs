//! Octets for one key and day. A day begins at midnight UTC; a clock set back gives nothing back.

use discovery_core::now::UnixMillis;
use std::collections::BTreeMap;

/// What was spent today, by key.
#[derive(Debug)]
pub(crate) struct Budget<K> {
    day_octets_max: u64,
    day: i64,
    spent: BTreeMap<K, u64>,
}

impl<K: Ord + Clone> Budget<K> {
    /// `day_octets_max` for each key and day.
    #[must_use]
    pub(crate) fn new(day_octets_max: u64) -> Self {
        Self { day_octets_max, day: i64::MIN, spent: BTreeMap::new() }
    }

    /// What `key` may still spend today.
    #[must_use]
    pub(crate) fn left(&self, key: &K, now: UnixMillis) -> u64 {
        let spent = if day_of(now) > self.day { 0 } else { self.spent.get(key).copied().unwrap_or(0) };
        self.day_octets_max.saturating_sub(spent)
    }

    /// Spends, if that much is left.
    pub(crate) fn spend(&mut self, key: &K, octets: u64, now: UnixMillis) -> bool {
        let fits = octets <= self.left(key, now) || crate::mutants::on("affinity-budget-ignored");
        if fits {
            let today = day_of(now);
            if today > self.day {
                // Yesterday's keys go: the map is bounded by one day's users.
                self.spent.clear();
                self.day = today;
            }
            let spent = self.spent.entry(key.clone()).or_default();
            *spent = spent.saturating_add(octets);
        }
        fits
    }
}

fn day_of(now: UnixMillis) -> i64 {
    now.0.div_euclid(86_400_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_has_its_octets_and_the_next_has_them_again() {
        let mut budget = Budget::new(100);
        let at = |day: i64, second: i64| UnixMillis(day * 86_400_000 + second * 1000);
        assert!(budget.spend(&'a', 60, at(3, 1)));
        assert!(!budget.spend(&'a', 41, at(3, 2)), "more than is left is not begun");
        assert!(budget.spend(&'a', 40, at(3, 3)) && budget.spend(&'b', 100, at(3, 4)));
        assert_eq!(budget.left(&'a', at(2, 0)), 0, "a clock set back gives nothing back");
        assert_eq!(budget.left(&'a', at(4, 0)), 100);
        assert!(budget.spend(&'a', 100, at(4, 0)));
    }

    proptest! {
        #[test]
        fn no_day_costs_more_than_its_budget(
            spends in proptest::collection::vec((0_u8..3, 0_u64..50, 0_i64..4), 1..200),
        ) {
            let mut budget = Budget::new(100);
            let mut by_day = BTreeMap::new();
            for (key, octets, day) in spends {
                if budget.spend(&key, octets, UnixMillis(day * 86_400_000)) {
                    *by_day.entry((key, budget.day)).or_insert(0) += octets;
                }
            }
            prop_assert!(by_day.values().all(|&octets| octets <= 100));
        }
    }
}
