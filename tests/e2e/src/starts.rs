//! How long a mail program takes from its connection to the flags of INBOX, through two nodes on its path.

#![allow(clippy::print_stdout, reason = "a command-line tool speaks to its terminal")]

use std::path::Path;

use anyhow::ensure;

use crate::case::Case;
use crate::scenarios::pair_mail;

pub use crate::scenarios::pair_mail::Start;

/// Starts of a known client over a line of `round_trip_ms` and 10 Mbit/s, in order; prints nothing.
///
/// # Errors
/// When the lab cannot be built, or a session fails.
pub fn starts(executable: &Path, prefix: &str, round_trip_ms: f64, n: usize) -> anyhow::Result<Vec<Start>> {
    ensure!((1..=200).contains(&n), "n is 1 to 200");
    let directory = std::env::temp_dir().join(format!("waypost-starts-{prefix}"));
    let case = Case::new(executable, prefix.to_owned(), directory)?;
    pair_mail::starts(&case, round_trip_ms, n)
}

/// The same, as a table.
///
/// # Errors
/// As [`starts`].
pub fn print_starts(executable: &Path, prefix: &str, round_trip_ms: f64, n: usize) -> anyhow::Result<()> {
    let starts = starts(executable, prefix, round_trip_ms, n)?;
    println!("{n} starts of a known client, {round_trip_ms} ms; in round trips");
    println!("{:>8} {:>24}", "connect", "connection to flags");
    for Start { connect, flags } in &starts {
        println!("{:>8.2} {:>24.2}", connect / round_trip_ms, flags / round_trip_ms);
    }
    let mut flags: Vec<f64> = starts.iter().map(|start| start.flags / round_trip_ms).collect();
    flags.sort_by(f64::total_cmp);
    let median = flags.get(flags.len() / 2).copied().unwrap_or(f64::NAN);
    println!("median {median:.2}");
    Ok(())
}
