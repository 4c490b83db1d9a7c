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

/// The seeds 1 to 5 were looked at while the policy was tuned; these were not.
const SEEDS: [u64; 8] = [101, 102, 103, 104, 105, 106, 107, 108];

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
    let measured = i64::from(BEFORE) * DAY..i64::from(BEFORE + 1) * DAY;
    writeln!(out, "a day of office mail, {} days known before; 10 Mbit/s, 25 % for the background", BEFORE)?;
    table(&mut out, &offices, &measured)?;
    writeln!(out, "\nthe very first day")?;
    table(&mut out, &offices, &(0..DAY))
}

fn table(out: &mut impl Write, offices: &[(u64, Days)], span: &Range<i64>) -> io::Result<()> {
    writeln!(
        out,
        "{:<18} {:>6} {:>7} {:>7} {:>9} {:>10} {:>8}",
        "policy", "seed", "opens", "hits", "new: hits", "fetched", "unused"
    )?;
    let only = std::env::var("ONLY").ok();
    for name in ["affinity", "nothing", "fetch-all", "newest-20", "knows the habits", "oracle"] {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let mut all = Outcome::default();
        for (seed, days) in offices {
            let mut policy: Option<Box<dyn Advisor>> = match name {
                "affinity" => Some(Box::new(AffinityAdvisor::new(Policy::default(), Limits::default()))),
                "fetch-all" => Some(Box::new(rivals::fetch_all())),
                "newest-20" => Some(Box::new(rivals::newest_20())),
                "knows the habits" => Some(Box::new(rivals::knows_the_habits(days, Policy::default()))),
                "oracle" => Some(Box::new(rivals::oracle(days))),
                _ => None,
            };
            let outcome = match &mut policy {
                Some(policy) => run(days, LINE, span, Some(&mut **policy)),
                None => run(days, LINE, span, None),
            };
            if name == "affinity" {
                row(out, name, &seed.to_string(), &outcome)?;
            }
            all = all.plus(outcome);
        }
        row(out, name, "all", &all)?;
    }
    Ok(())
}

fn row(out: &mut impl Write, name: &str, seed: &str, outcome: &Outcome) -> io::Result<()> {
    let percent = |part: u64, whole: u64| {
        let permille = (part * 1000).checked_div(whole).unwrap_or(0);
        format!("{}.{} %", permille / 10, permille % 10)
    };
    writeln!(
        out,
        "{name:<18} {seed:>6} {:>7} {:>7} {:>9} {:>7} MB {:>8}",
        outcome.opens,
        percent(outcome.hits, outcome.opens),
        percent(outcome.first_hits, outcome.first_opens),
        outcome.fetched / 1_000_000,
        percent(outcome.fetched - outcome.used, outcome.fetched),
    )
}
