//! Whole nodes with their servers, clients, lines and disks in one seeded thread.
//!
//! `sim --seed N [--trace]` plays one seed, `sim --seeds FROM..TO [--jobs N]` many. A failure prints its seed, the checker
//! that found it, and which of the run's faults it needs. Exit code 1 if a seed failed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "all of it is a test, and a test reports by panicking"
)]

mod checkers;
mod disk;
mod faults;
mod house;
mod ordering;
mod pipe;
mod store;
mod trace;
mod world;

// The mail, the server and the client with its oracles are those of the session model.
#[path = "../../../epc/imap-core/tests/session_model/client.rs"]
#[allow(dead_code, reason = "shared with the session model")]
mod client;
#[path = "../../../epc/imap-core/tests/session_model/mail.rs"]
#[allow(dead_code, reason = "shared with the session model")]
mod mail;
#[path = "../../../epc/imap-core/tests/session_model/origin.rs"]
#[allow(dead_code, reason = "shared with the session model")]
mod origin;
#[path = "../../../epc/imap-core/tests/session_model/random.rs"]
mod random;
#[path = "../../../epc/imap-core/tests/session_model/wire.rs"]
mod wire;

use checkers::{Broken, Checker};
use faults::Fault;
use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use trace::Trace;
use world::{Event, RUN_US, Totals, World};

/// One run: what happened in all, or what was wrong; and the lines of it if they were wanted.
fn play(seed: u64, faults: &[(u64, Fault)], readable: bool) -> (Result<Totals, Broken>, Vec<String>) {
    let mut world = World::new(seed, Trace::new(readable));
    for (us, fault) in faults {
        world.at(*us, Event::Fault(*fault));
    }
    let played = catch_unwind(AssertUnwindSafe(|| {
        world.run_until(RUN_US)?;
        world.rest()
    }));
    let lines = world.trace.lines().to_vec();
    match played {
        Ok(Ok(())) => (Ok(world.totals), lines),
        Ok(Err(broken)) => (Err(broken), lines),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = format!("panic at {} us: {}", world.now_us, text.unwrap_or_default());
            (Err(Broken { checker: Checker::Replay, what }), lines)
        }
    }
}

/// Plays a seed, every `twice`th one two times, since both must be the same.
fn check(seed: u64) -> Result<Totals, Broken> {
    let faults = faults::drawn(seed);
    let totals = play(seed, &faults, false).0?;
    if seed.is_multiple_of(REPLAY_EVERY) {
        let again = play(seed, &faults, false).0?;
        if again.hash != totals.hash || again.events != totals.events {
            let what = format!("{:x} and then {:x}", totals.hash, again.hash);
            return Err(Broken { checker: Checker::Replay, what });
        }
    }
    Ok(totals)
}

/// The faults without which the run does not fail any more, by leaving out one at a time.
fn shrunk(seed: u64, checker: Checker) -> Vec<(u64, Fault)> {
    let mut faults = faults::drawn(seed);
    let mut at = 0;
    while at < faults.len() {
        let mut fewer = faults.clone();
        fewer.remove(at);
        let still = play(seed, &fewer, false).0.is_err_and(|broken| broken.checker == checker);
        if still { faults = fewer } else { at += 1 }
    }
    faults
}

fn report(seed: u64, broken: &Broken, readable: bool) {
    let faults = shrunk(seed, broken.checker);
    let (again, lines) = play(seed, &faults, true);
    if readable {
        lines.iter().for_each(|line| println!("{line}"));
    }
    let broken = again.err().unwrap_or(Broken { checker: broken.checker, what: broken.what.clone() });
    println!("FAILED seed {seed} {broken}");
    for (us, fault) in faults {
        println!("  needs {:?} at {:.3} s", fault, us as f64 / 1e6);
    }
}

#[derive(Default)]
struct Sum {
    totals: Totals,
    failed: Vec<u64>,
}

fn play_many(from: u64, to: u64, jobs: usize, failures_max: usize) -> Sum {
    let sum = Mutex::new(Sum::default());
    let next = AtomicU64::new(from);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || sum.lock().unwrap().failed.len() >= failures_max {
                        return;
                    }
                    match check(seed) {
                        Ok(totals) => sum.lock().unwrap().totals.add(&totals),
                        Err(broken) => {
                            report(seed, &broken, false);
                            sum.lock().unwrap().failed.push(seed);
                        }
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.replies += other.replies;
        self.from_store += other.from_store;
        self.sessions += other.sessions;
        self.damaged += other.damaged;
        self.refused += other.refused;
        self.replaced += other.replaced;
        self.ahead += other.ahead;
        self.kept += other.kept;
        self.kept_messages += other.kept_messages;
        self.waiting_max = self.waiting_max.max(other.waiting_max);
        for (word, n) in &other.faults {
            *self.faults.entry(word).or_default() += n;
        }
        for (word, n) in &other.kept_ended {
            *self.kept_ended.entry(word).or_default() += n;
        }
        for (word, n) in &other.ended {
            *self.ended.entry(word.clone()).or_default() += n;
        }
    }
}

const REPLAY_EVERY: u64 = 16;

struct Options {
    from: u64,
    to: u64,
    jobs: usize,
    trace: bool,
    failures_max: usize,
    /// Only what this checker finds counts, and the first of it ends the search.
    find: Option<String>,
}

fn options() -> Option<Options> {
    let mut options = Options { from: 1, to: 1001, jobs: 1, trace: false, failures_max: 10, find: None };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--trace" {
            options.trace = true;
            continue;
        }
        let value = arguments.next()?;
        match argument.as_str() {
            "--seed" => {
                options.from = value.parse().ok()?;
                options.to = options.from + 1;
            }
            "--seeds" => {
                let (from, to) = value.split_once("..")?;
                (options.from, options.to) = (from.parse().ok()?, to.parse().ok()?);
            }
            "--jobs" => options.jobs = value.parse().ok()?,
            "--find" => options.find = Some(value),
            "--failures" => options.failures_max = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!(
            "usage: sim [--seed N | --seeds FROM..TO] [--trace] [--jobs N] [--failures MAX] [--find CHECKER]"
        );
        return ExitCode::from(64);
    };
    // A panic is a finding; it is reported with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if options.to == options.from + 1 {
        return one(options.from, options.trace);
    }
    if let Some(word) = &options.find {
        return find(word, options.from, options.to);
    }
    let sum = play_many(options.from, options.to, options.jobs, options.failures_max);
    let seconds = cpu_seconds().unwrap_or(f64::NAN);
    let t = &sum.totals;
    let seeds = options.to - options.from;
    println!(
        "{seeds} seeds, {} failed, {:.1} seeds a second of one core, {} events, {} sessions, {} tagged replies, {} sections from the store",
        sum.failed.len(),
        seeds as f64 / seconds,
        t.events,
        t.sessions,
        t.replies,
        t.from_store
    );
    println!(
        "{} values damaged and missed, {} not written, {} origins replaced, {} answers told ahead, at most {} octets beyond a window",
        t.damaged, t.refused, t.replaced, t.ahead, t.waiting_max
    );
    println!(
        "{} sessions outlived their client and fetched {} messages; ended {:?}",
        t.kept, t.kept_messages, t.kept_ended
    );
    println!("faults {:?}; ended {:?}", t.faults, t.ended);
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Looks for the first seed that the named checker objects to, whatever the others say.
fn find(word: &str, from: u64, to: u64) -> ExitCode {
    for seed in from..to {
        if let Err(broken) = check(seed)
            && broken.checker.word() == word
        {
            println!("found by {word} after {} seeds: {}", seed - from + 1, first_line(&broken.what));
            return ExitCode::SUCCESS;
        }
    }
    println!("not found by {word} in {} seeds", to - from);
    ExitCode::FAILURE
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

fn one(seed: u64, readable: bool) -> ExitCode {
    match check(seed) {
        Ok(totals) => {
            if readable {
                play(seed, &faults::drawn(seed), true).1.iter().for_each(|line| println!("{line}"));
            }
            println!("seed {seed}: {totals:?}");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            report(seed, &broken, readable);
            ExitCode::FAILURE
        }
    }
}

/// Seconds of processor time that this process has had: other processes' share must not count.
#[expect(clippy::disallowed_methods, reason = "how long the runs take is measured outside of them")]
fn cpu_seconds() -> Option<f64> {
    let stat = String::from_utf8(std::fs::read("/proc/self/stat").ok()?).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // Linux counts them in hundredths (`sysconf(_SC_CLK_TCK)`), everywhere that this runs.
    Some((user + system) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_clean(from: u64, to: u64) {
        for seed in from..to {
            if let Err(broken) = check(seed) {
                panic!("seed {seed}: {broken}");
            }
        }
    }

    #[test]
    fn seeds_are_clean() {
        all_clean(1, 60);
    }

    /// Seeds that once failed, each a file `tests/sim/seeds/N` with a line that says why.
    #[test]
    fn seeds_that_once_failed() {
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/seeds")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if let Ok(seed) = name.parse() {
                all_clean(seed, seed + 1);
            }
        }
    }
}
