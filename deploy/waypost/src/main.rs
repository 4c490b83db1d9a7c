//! Waypost: mail in a branch office as if the server stood in the next room. This package reads the command line and the
//! configuration, puts the parts together and runs them; what the parts do stands in their own crates.

mod cli;
#[allow(dead_code, reason = "read by the commands that follow")]
mod config;
mod exit;
mod file;
#[allow(dead_code, reason = "reloading follows")]
mod front;
mod keying;
#[allow(dead_code, reason = "reloading follows")]
mod logging;
mod node;
mod run;
#[allow(dead_code, reason = "used by the commands that follow")]
mod say;
mod show;

use clap::Parser;
use cli::{Cli, Command, ConfigCommand};
use exit::{Exit, Failure};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::complain(&error),
    };
    match obey(cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            say::error(&failure);
            failure.exit.into()
        }
    }
}

fn obey(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run { config } => run::run(&config),
        Command::Config(ConfigCommand::Show { config, changed }) => show::show(&config, changed),
    }
}
