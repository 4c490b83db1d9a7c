//! Waypost: mail in a branch office as if the server stood in the next room. This package reads the command line and the
//! configuration, puts the parts together and runs them; what the parts do stands in their own crates.

mod admin;
mod api;
mod ask;
mod branch;
mod ca;
mod check;
mod cli;
mod config;
mod dry;
mod durable;
mod exit;
mod file;
mod front;
mod identity;
mod interception;
mod keying;
mod logging;
mod node;
mod notify;
mod path;
mod prefetch;
mod report;
mod run;
mod say;
mod sessions;
mod show;
mod status;
mod storage;
mod store;
mod supervisor;
mod trust;

use clap::Parser;
use cli::{
    CaCommand, Cli, Command, ConfigCommand, ConfigFile, OnOff, ReportCommand, SessionsCommand, TokenCommand,
};
use exit::{Exit, Failure};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::complain(&error),
    };
    match std::panic::catch_unwind(|| obey(cli.command)) {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(failure)) => {
            say::error(&failure);
            failure.exit.into()
        }
        // What panicked has said where.
        Err(_) => {
            say::error("this is a bug of Waypost; please report the lines above");
            Exit::Bug.into()
        }
    }
}

fn obey(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Branch(wanted) => branch::branch(&wanted),
        Command::Run { config: ConfigFile { config } } => run::run(&config),
        Command::Netd { config: ConfigFile { config } } => path::netd::run(&config),
        Command::Node { config: ConfigFile { config }, user } => run::supervised(&config, user),
        Command::Check { config: ConfigFile { config }, online } => check::check(&config, online),
        Command::Config(ConfigCommand::Show { config: ConfigFile { config }, changed }) => {
            show::show(&config, changed)
        }
        Command::Status { node, sessions } => status::status(&node, sessions),
        Command::Sessions { command: None, node } => sessions::list(&node),
        Command::Sessions { command: Some(SessionsCommand::End { user, node }), .. } => {
            sessions::end(&node, &user)
        }
        Command::Report(ReportCommand::Preload { user, node }) => report::preload(&node, user.as_deref()),
        Command::Trace { user, node } => status::trace(&node, &user),
        Command::Store(command) => store::store(&command),
        Command::Ca(CaCommand::Init { node: true, dir, .. }) => identity::init(dir),
        Command::Ca(CaCommand::Init { permit, dir, .. }) => ca::init(&permit, dir),
        Command::Token(TokenCommand::New { id, ca_dir, user_key }) => {
            identity::new_token(&id, ca_dir, user_key.as_deref())
        }
        Command::Bypass { to, node } => interception::bypass(&node, to == OnOff::On),
        Command::Upgrade { node } => interception::upgrade(&node),
        Command::Explain { pcap: Some(file), node, .. } => dry::explain(&node, &file),
        Command::Explain { client: Some(client), server: Some(server), node, .. } => {
            interception::explain(&node, &client, server)
        }
        Command::Explain { .. } => {
            Err(Failure::say(Exit::Usage, "explain needs a client and a server, or --pcap"))
        }
        Command::Join { token, state_dir, replace } => identity::join(&token, state_dir, replace),
    }
}
