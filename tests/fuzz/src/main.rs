//! Mutates the corpora for as long as it is told: `fuzz [--seconds N] [--seed S] [--target NAME] [--input FILE]`. Prints what it
//! ran; `--input FILE` runs that one instead. A failing input is written to a file and ends the run with exit code 1.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

use fuzz_targets::{Mutator, TARGETS, Target, corpus};
use std::{
    env, fs,
    panic::catch_unwind,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

fn main() -> ExitCode {
    let mut seconds = 60;
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let mut input = None;
    let mut chosen: Vec<Target> = TARGETS.to_vec();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let known = match argument.as_str() {
            "--seconds" => value.parse().map(|n| seconds = n).is_ok(),
            "--seed" => value.parse().map(|n| seed = n).is_ok(),
            "--input" => fs::read(&value).map(|octets| input = Some(octets)).is_ok(),
            "--target" => {
                chosen.retain(|(name, _)| *name == value);
                !chosen.is_empty()
            }
            _ => false,
        };
        if !known {
            eprintln!("usage: fuzz [--seconds N] [--seed S] [--target NAME] [--input FILE]");
            eprintln!("targets: {}", names());
            return ExitCode::from(64);
        }
    }
    if let Some(octets) = input {
        chosen.iter().for_each(|(_, run)| run(&octets));
        return ExitCode::SUCCESS;
    }
    let each = Duration::from_secs(seconds) / u32::try_from(chosen.len()).unwrap_or(1);
    println!("seed {seed}, {} targets, {:.1} s each", chosen.len(), each.as_secs_f64());
    let (mut total, mut failed) = (0_u64, 0);
    for (target, run) in chosen {
        let pool = match corpus(target) {
            Ok(files) => files.into_iter().map(|(_, octets)| octets).collect(),
            Err(error) => {
                eprintln!("the corpus of {target} cannot be read: {error}");
                return ExitCode::from(66);
            }
        };
        let mut mutator = Mutator::new(seed, pool);
        let (began, mut executions) = (Instant::now(), 0_u64);
        while began.elapsed() < each {
            let input = mutator.input();
            executions += 1;
            if catch_unwind(|| run(&input)).is_err() {
                let file = env::temp_dir().join(format!("fuzz-{target}-{seed}-{executions}"));
                let written = fs::write(&file, &input).is_ok();
                eprintln!("{target} fails: {} (written: {written})", file.display());
                failed += 1;
                break;
            }
        }
        println!("{target:<16} {executions:>10} executions");
        total += executions;
    }
    println!("{total} executions, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn names() -> String {
    TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}
