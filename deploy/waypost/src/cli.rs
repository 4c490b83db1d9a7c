//! The command line.

use crate::{exit::Exit, say};
use clap::{Parser, Subcommand, error::ErrorKind};
use std::{path::PathBuf, process::ExitCode};

/// An IMAP caching proxy for branch offices.
#[derive(Debug, Parser)]
#[command(name = "waypost", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node that a configuration file describes
    Run {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show the configuration in force
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every value in force, defaults too, as a file that could be used
    Show {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Leave out what is a default
        #[arg(long)]
        changed: bool,
    },
}

/// Prints what is wrong with the command line, or the help that was asked for.
pub(crate) fn complain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        say::text(error.render());
        return Exit::Fine.into();
    }
    say::note(error.render().to_string().trim_end());
    Exit::Usage.into()
}
