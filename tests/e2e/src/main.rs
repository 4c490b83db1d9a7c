//! `e2e`: runs the scenarios.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks to its terminal")]

use std::path::PathBuf;
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
    /// Time connections: without a node, through a pair that has yet to find itself, through one that has, and past a
    /// node without a peer
    Connects {
        /// How many of each, 1 to 500
        #[arg(long, default_value_t = 200)]
        n: u16,
        /// Starts the namespaces' names
        #[arg(long, default_value = "wpc")]
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
        What::Connects { n, prefix, waypost } => e2e::connects(&waypost, &prefix, n).map(|()| true),
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
