//! The log: to standard error, as text or JSON. Users stand in it as keyed hashes, mail not at all.

use crate::config::{
    Log,
    value::{LogFormat, LogLevel},
};
use std::{any::Any, panic};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Registry,
    filter::Targets,
    fmt,
    layer::{Layer, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

/// Changes the level while the process runs.
pub(crate) struct Level(reload::Handle<Targets, Registry>);

/// Starts the log; later calls in one process (tests) change nothing.
pub(crate) fn start(log: &Log) -> Level {
    let (filter, handle) = reload::Layer::new(targets(log.level));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let _already_started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Level(handle)
}

/// Panics go to the log, with their place; with their words only where these are the program's own. Formatted ones may
/// quote what they stumbled over (`&str` does, where a cut falls into a character), and that may be mail.
pub(crate) fn keep_panics_quiet() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, what = words(panic.payload()), "a bug: this task panicked; please report it");
    }));
}

fn words(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(not logged, because it may hold mail)")
}

impl Level {
    pub(crate) fn set(&self, log: &Log) {
        let _log_is_gone = self.0.reload(targets(log.level));
    }
}

/// Our own crates at the configured level; libraries only when something is wrong.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    OURS.iter().fold(Targets::new().with_default(level.min(LevelFilter::WARN)), |all, ours| {
        all.with_target(*ours, level)
    })
}

const OURS: &[&str] = &[
    "waypost",
    "epc",
    "cep",
    "affinity_db",
    "imap_core",
    "seams",
    "discovery_core",
    "discovery_linux",
    "wan",
    "wan_core",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_of_the_program_itself_are_logged() {
        assert_eq!(words(&"a lock is poisoned"), "a lock is poisoned");
        assert!(!words(&String::from("not a character boundary in `Dear Mia`")).contains("Mia"));
    }
}
