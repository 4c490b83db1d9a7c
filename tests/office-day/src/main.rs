//! Prints the table: `cargo run -p office-day`. Arguments are seeds; without any, those that nobody tuned on.

use affinity_db::{advisor::AffinityAdvisor, database::Limits, policy::Policy};
use discovery_core::seam::advisor::Advisor;
use office_day::{
    office::{DAY, Days},
    rivals,
    trial::{Line, Outcome, run},
};
use std::{
    io::{self, Write},
    ops::Range,
};

/// The seeds 1 to 5 and 101 to 108 were looked at while the policy was tuned; these were not.
const SEEDS: [u64; 8] = [201, 202, 203, 204, 205, 206, 207, 208];

/// 10 Mbit/s, a quarter of it for what is fetched ahead.
const LINE: Line = Line { octets_per_second: 1_250_000, background_percent: 25 };

/// Days that the policy has seen before the one that counts, and days after it in which octets may still be used.
const BEFORE: u32 = 5;
const AFTER: u32 = 3;

fn main() -> io::Result<()> {
    let given: Vec<u64> = std::env::args().skip(1).filter_map(|seed| seed.parse().ok()).collect();
    let seeds = if given.is_empty() { SEEDS.to_vec() } else { given };
    let mut out = io::stdout().lock();
    let offices: Vec<(u64, Days)> =
        seeds.into_iter().map(|seed| (seed, Days::make(seed, BEFORE + 1 + AFTER))).collect();
    let known = i64::from(BEFORE) * DAY..i64::from(BEFORE + 1) * DAY;
    let spans = [known, 0..DAY];
    let [mut one, mut other] = [Vec::new(), Vec::new()];
    for name in ["affinity", "nothing", "fetch-all", "newest-20", "knows the habits", "oracle"] {
        let mut sums = [Outcome::default(); 2];
        for (seed, days) in &offices {
            let outcomes = trial(name, days, &spans);
            for ((outcome, sum), rows) in outcomes.into_iter().zip(&mut sums).zip([&mut one, &mut other]) {
                *sum = sum.plus(outcome);
                if name == "affinity" {
                    rows.push(row(name, &seed.to_string(), &outcome));
                }
            }
        }
        for (sum, rows) in sums.iter().zip([&mut one, &mut other]) {
            rows.push(row(name, "all", sum));
        }
    }
    writeln!(
        out,
        "a day of office mail, {BEFORE} days known before; 10 Mbit/s, 25 % of it for the background"
    )?;
    writeln!(out, "{HEAD}\n{}", one.join("\n"))?;
    writeln!(out, "\nthe very first day\n{HEAD}\n{}", other.join("\n"))
}

fn trial(name: &str, days: &Days, spans: &[Range<i64>]) -> Vec<Outcome> {
    let mut policy: Option<Box<dyn Advisor>> = match name {
        "affinity" => Some(Box::new(AffinityAdvisor::new(Policy::default(), Limits::default()))),
        "fetch-all" => Some(Box::new(rivals::fetch_all())),
        "newest-20" => Some(Box::new(rivals::newest_20())),
        "knows the habits" => Some(Box::new(rivals::knows_the_habits(days, Policy::default()))),
        "oracle" => Some(Box::new(rivals::oracle(days))),
        _ => None,
    };
    match &mut policy {
        Some(policy) => run(days, LINE, spans, Some(&mut **policy)),
        None => run(days, LINE, spans, None),
    }
}

const HEAD: &str = "policy               seed   opens    hits new: hits    fetched   unused";

fn row(name: &str, seed: &str, outcome: &Outcome) -> String {
    let percent = |part: u64, whole: u64| {
        let permille = (part * 1000).checked_div(whole).unwrap_or(0);
        format!("{}.{} %", permille / 10, permille % 10)
    };
    format!(
        "{name:<18} {seed:>6} {:>7} {:>7} {:>9} {:>7} MB {:>8}",
        outcome.opens,
        percent(outcome.hits, outcome.opens),
        percent(outcome.first_hits, outcome.first_opens),
        outcome.fetched / 1_000_000,
        percent(outcome.fetched - outcome.used, outcome.fetched),
    )
}
