//! `e2e`: runs the scenarios.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks to its terminal")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    about = "End-to-end scenarios: the executable as a black box between real servers and clients. Needs root."
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run scenarios, each once; exit 1 if one failed
    Run {
        /// Only those marked quick, about a minute in all
        #[arg(long)]
        quick: bool,
        /// Where to write names, results and durations
        #[arg(long)]
        json: Option<PathBuf>,
        /// Run the scenarios whose name begins so; may stand several times
        #[arg(long)]
        only: Vec<String>,
        /// Print the scenarios and run none
        #[arg(long)]
        list: bool,
        /// How many scenarios at a time
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// The executable to look at; the one beside this program unless said
        #[arg(long)]
        waypost: Option<PathBuf>,
    },
    /// Kill nodes, and let their packet loop hang, among connections that begin
    Kills {
        /// Connections that begin after a kill or while the loop hangs
        #[arg(long, default_value_t = 10_000)]
        after: usize,
        /// Connections caught between SYN and answer, of each variant of the answer
        #[arg(long, default_value_t = 100)]
        caught: usize,
        /// Starts the namespaces' names
        #[arg(long, default_value = "wpk")]
        prefix: String,
        /// The executable to look at
        #[arg(long)]
        waypost: PathBuf,
    },
    /// Time a known mail program's start through a pair: to the connection, and from there to the flags of INBOX
    Starts {
        /// How many, 1 to 200
        #[arg(long, default_value_t = 10)]
        n: usize,
        /// The line's round trip, in milliseconds
        #[arg(long, default_value_t = 100.0)]
        rtt: f64,
        /// Starts the namespaces' names
        #[arg(long, default_value = "wps")]
        prefix: String,
        /// The executable to look at
        #[arg(long)]
        waypost: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Run { list: true, .. } => {
            e2e::list();
            return ExitCode::SUCCESS;
        }
        What::Run { quick, json, only, jobs, waypost, .. } => {
            e2e::run(&e2e::Options { quick, json, only, jobs, waypost })
        }
        What::Kills { after, caught, prefix, waypost } => kills(after, caught, &prefix, &waypost),
        What::Starts { n, rtt, prefix, waypost } => {
            e2e::print_starts(&waypost, &prefix, rtt, n).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn kills(after: usize, caught: usize, prefix: &str, waypost: &Path) -> anyhow::Result<bool> {
    let campaign = e2e::kills::Campaign::whole(after, caught);
    let seen = e2e::kills::run(waypost, prefix, &campaign, |line| eprintln!("{line}"))?;
    println!("{seen}");
    let broken = seen.broken(&campaign);
    broken.iter().for_each(|line| println!("BROKEN: {line}"));
    Ok(broken.is_empty())
}
