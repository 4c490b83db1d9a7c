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
