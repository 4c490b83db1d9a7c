//! Runs scenarios, each once, each in a lab of its own, a few side by side: most of their time is waiting.
#![allow(clippy::print_stdout, reason = "the runner's report is its output")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::registry::{SCENARIOS, Scenario, Skipped};

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only the scenarios marked quick.
    pub quick: bool,
    /// Where to write the report.
    pub json: Option<PathBuf>,
    /// Only scenarios whose name begins with one of these; empty means all.
    pub only: Vec<String>,
    /// How many at a time.
    pub jobs: usize,
    /// The executable; `None` means the one beside this program.
    pub waypost: Option<PathBuf>,
}

/// Prints all scenarios.
pub fn list() {
    for Scenario { name, says, quick, .. } in SCENARIOS {
        let mark = if *quick { "quick" } else { "" };
        println!("{name:<34} {mark:<6} {says}");
    }
}

/// Runs them; whether none failed.
///
/// # Errors
/// When nothing can be run at all: not root, no executable, no such scenario.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    ensure!(lab::sys::is_root(), "the scenarios need network namespaces, which needs root: run it with sudo");
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let beside = own.parent().context("this program has no directory")?;
    let executable = match &options.waypost {
        Some(path) => std::path::absolute(path)?,
        None => beside.join("waypost"),
    };
    ensure!(executable.is_file(), "no executable {}: cargo build -p waypost", executable.display());
    let wanted = select(options)?;
    let logs = beside.join("e2e-logs");
    let began = Instant::now();
    // The long ones first, or the last to begin would end alone.
    let queue = Mutex::new(wanted.into_iter());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some((row, scenario)) = next(&queue) {
                    let prefix = format!("e{row:02}x{:04x}", std::process::id() & 0xffff);
                    let start = Instant::now();
                    let (verdict, notes) = one(scenario, &executable, prefix, &logs.join(scenario.name));
                    let result =
                        Finished { row, scenario, verdict, notes, seconds: start.elapsed().as_secs_f64() };
                    result.print();
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|result| result.row);
    let count = |word| results.iter().filter(|result| result.word() == word).count();
    let (passed, failed, skipped) = (count("passed"), count("failed"), count("skipped"));
    let seconds = began.elapsed().as_secs_f64();
    if let Some(file) = &options.json {
        let report = json!({
            "version": 1, "quick": options.quick, "seconds": seconds,
            "passed": passed, "failed": failed, "skipped": skipped,
            "scenarios": results.iter().map(Finished::json).collect::<Vec<_>>(),
        });
        std::fs::write(file, format!("{report}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("ignored when two sessions are compared: {}", crate::arm::IGNORED.join("; "));
    println!("{seconds:.0} s; the executable's logs: {}", logs.display());
    // Once more, where the end of a long report is all that somebody reads.
    results.iter().filter(|result| result.word() == "failed").for_each(Finished::print);
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if options.only.is_empty() && !options.quick {
        let ran: BTreeSet<&str> = results.iter().map(|result| result.scenario.name).collect();
        ensure!(ran == meant(), "what ran is not what tests/e2e/scenarios.txt lists");
    }
    Ok(failed == 0)
}

/// The names of all scenarios, as they are committed: one that is lost on the way is missed.
fn meant() -> BTreeSet<&'static str> {
    include_str!("../scenarios.txt").lines().collect()
}

fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

struct Finished {
    row: usize,
    scenario: &'static Scenario,
    verdict: Verdict,
    notes: Value,
    seconds: f64,
}

impl Finished {
    fn word(&self) -> &'static str {
        match self.verdict {
            Verdict::Passed => "passed",
            Verdict::Skipped(_) => "skipped",
            Verdict::Failed(_) => "failed",
        }
    }

    fn why(&self) -> String {
        match &self.verdict {
            Verdict::Passed => String::new(),
            Verdict::Skipped(why) => format!("skipped: {why}"),
            Verdict::Failed(why) => why.clone(),
        }
    }

    /// In one piece, so that lines of several threads do not mix.
    fn print(&self) {
        let why = self.why().replace('\n', "\n            ");
        println!("{:<8}{:<34}{:>6.1} s  {why}", self.word(), self.scenario.name, self.seconds);
    }

    fn json(&self) -> Value {
        json!({
            "name": self.scenario.name, "seconds": self.seconds, "result": self.word(), "why": self.why(),
            "notes": self.notes,
        })
    }
}

fn select(options: &Options) -> anyhow::Result<Vec<(usize, &'static Scenario)>> {
    let rows = SCENARIOS.iter().enumerate().filter(|(_, scenario)| {
        let named = options.only.iter().any(|start| scenario.name.starts_with(start.as_str()));
        (options.only.is_empty() || named) && (!options.quick || scenario.quick)
    });
    let rows: Vec<_> = rows.collect();
    ensure!(!rows.is_empty(), "no scenario begins with {}; --list shows them", options.only.join(" or "));
    Ok(rows)
}

enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

fn one(scenario: &Scenario, executable: &Path, prefix: String, directory: &Path) -> (Verdict, Value) {
    let case = match Case::new(executable, prefix, directory.to_owned()) {
        Ok(case) => case,
        Err(error) => return (Verdict::Failed(format!("{error:#}")), Value::Null),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&case)));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", said(&*panic))));
    let outcome = outcome.and_then(|()| {
        let complaints = case.complaints();
        ensure!(complaints.is_empty(), "the executable complained unannounced:\n{}", complaints.join("\n"));
        Ok(())
    });
    let verdict = match outcome {
        Ok(()) => Verdict::Passed,
        Err(error) if error.is::<Skipped>() => Verdict::Skipped(error.to_string()),
        Err(error) => Verdict::Failed(format!("{error:#}\nlogs: {}", case.directory().display())),
    };
    let notes = case.notes();
    (verdict, json!(notes))
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(run: fn(&Case) -> anyhow::Result<()>) -> Verdict {
        let directory = std::env::temp_dir().join(format!("e2e-runner-{}-{:p}", std::process::id(), run));
        let scenario = Scenario { name: "x", says: "", quick: false, run };
        let (verdict, _) = one(&scenario, Path::new("/bin/true"), "p".to_owned(), &directory);
        drop(std::fs::remove_dir_all(directory));
        verdict
    }

    #[test]
    fn a_failure_a_panic_and_an_unannounced_complaint_fail() {
        assert!(matches!(verdict(|_| Ok(())), Verdict::Passed));
        assert!(matches!(verdict(|_| anyhow::bail!("no")), Verdict::Failed(_)));
        assert!(matches!(verdict(|_| panic!("no")), Verdict::Failed(why) if why.contains("no")));
        let complains = |case: &Case| Ok(std::fs::write(case.watch().log, "{\"level\":\"WARN\"}\n")?);
        assert!(matches!(verdict(complains), Verdict::Failed(why) if why.contains("complained")));
    }

    #[test]
    fn names_are_unique_and_select() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        assert_eq!(names, meant(), "a new scenario, or one that goes, changes tests/e2e/scenarios.txt");
        let none = Options { only: vec!["no-such".to_owned()], ..Options::default() };
        assert!(select(&none).is_err());
        assert_eq!(select(&Options::default()).unwrap().len(), SCENARIOS.len());
    }
}
