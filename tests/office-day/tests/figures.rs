//! The figures of decisions/0012, held on offices that the policy was tuned on: a change that costs them shows here.
//! What a change is worth is judged by `cargo run -p office-day` on others.

use affinity_db::{advisor::AffinityAdvisor, database::Limits, policy::Policy};
use office_day::{
    office::{DAY, Days},
    rivals,
    trial::{Line, Outcome, run},
};

const LINE: Line = Line { octets_per_second: 1_250_000, background_percent: 25 };

#[test]
fn ninety_five_of_a_hundred_opens_are_hits_and_four_fifths_of_the_octets_are_used() {
    let [mut ours, mut newest] = [Outcome::default(); 2];
    for seed in [3, 5] {
        let days = Days::make(seed, 9);
        let day = std::iter::once(5 * DAY..6 * DAY).collect::<Vec<_>>();
        let mut affinity = AffinityAdvisor::new(Policy::default(), Limits::default());
        let sum = |sum: Outcome, outcomes: Vec<Outcome>| outcomes.into_iter().fold(sum, Outcome::plus);
        ours = sum(ours, run(&days, LINE, &day, Some(&mut affinity)));
        newest = sum(newest, run(&days, LINE, &day, Some(&mut rivals::newest_20())));
    }
    let unused = |outcome: &Outcome| (outcome.fetched - outcome.used) * 1000 / outcome.fetched.max(1);
    assert!(ours.opens > 1000, "{ours:?}");
    assert!(ours.hits * 100 >= ours.opens * 95, "{ours:?}");
    assert!(unused(&ours) <= 200, "{ours:?}");
    assert!(unused(&newest) > 250, "the rule of thumb does as well: {newest:?}");
}
