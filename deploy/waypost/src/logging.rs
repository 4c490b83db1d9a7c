//! The log: to standard error, as text or JSON. Users stand in it as keyed hashes, mail not at all.

use crate::config::{
    Log,
    value::{LogFormat, LogLevel},
};
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

const OURS: &[&str] = &["waypost", "epc", "imap_core", "seams", "discovery_core"];
