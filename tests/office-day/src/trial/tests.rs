//! The judge is judged: by what the outcome of the simplest policies must be.

use super::*;
use crate::{office::DAY, rivals};
use affinity_db::{advisor::AffinityAdvisor, database::Limits, policy::Policy as AffinityPolicy};

/// Fast enough that nobody waits for anything.
const FREE: Line = Line { octets_per_second: 1 << 40, background_percent: 100 };

const SLOW: Line = Line { octets_per_second: 20_000, background_percent: 25 };

fn one(days: &Days, line: Line, policy: Policy<'_>) -> Outcome {
    let all = 0..2 * DAY;
    run(days, line, std::slice::from_ref(&all), policy)[0]
}

#[test]
fn without_a_policy_only_what_was_opened_before_is_a_hit() {
    let days = Days::make(11, 2);
    let outcome = one(&days, FREE, None);
    assert!(outcome.opens > 1000 && outcome.first_opens < outcome.opens, "{outcome:?}");
    assert_eq!((outcome.first_hits, outcome.fetched), (0, 0));
    assert!(outcome.hits > 0 && outcome.hits < outcome.opens / 10);
}

#[test]
fn whoever_fetches_everything_misses_nothing_and_wastes_what_is_not_read() {
    let days = Days::make(11, 2);
    let outcome = one(&days, FREE, Some(&mut rivals::fetch_all()));
    assert_eq!(outcome.hits, outcome.opens);
    // No octet twice; what came after the last event is not fetched any more.
    let all: u64 = days.messages.iter().map(Message::octets).sum();
    assert!(outcome.fetched <= all && outcome.fetched > all * 95 / 100, "{outcome:?} of {all}");
    assert!(outcome.used < outcome.fetched / 2);
}

#[test]
fn the_oracle_wastes_nothing_and_a_slow_line_costs_even_it_hits() {
    let days = Days::make(11, 2);
    let outcome = one(&days, FREE, Some(&mut rivals::oracle(&days)));
    assert_eq!((outcome.hits, outcome.used), (outcome.opens, outcome.fetched));
    let slow = one(&days, SLOW, Some(&mut rivals::oracle(&days)));
    assert!(slow.hits < outcome.hits, "{slow:?}");
}

#[test]
fn the_policy_hits_more_than_the_newest_few_waste_for_it() {
    let days = Days::make(11, 2);
    let mut policy = AffinityAdvisor::new(AffinityPolicy::default(), Limits::default());
    let outcome = one(&days, FREE, Some(&mut policy));
    let newest = one(&days, FREE, Some(&mut rivals::newest_20()));
    assert!(outcome.hits * 100 > outcome.opens * 94, "{outcome:?}");
    assert!((outcome.fetched - outcome.used) * 2 < newest.fetched - newest.used, "{outcome:?} {newest:?}");
}
