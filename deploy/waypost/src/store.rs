//! `waypost store stats|verify|gc`: asks the node that runs, or, when none does, opens the store itself.

use crate::{
    api::{Collected, StoreStatus, Verified},
    ask::{self, Method},
    cli::{RunningNode, StoreCommand},
    config::{Config, FileUse, units::human_size},
    exit::{Exit, Failure},
    file, say, storage,
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Write;

/// Does it.
pub(crate) fn store(command: &StoreCommand) -> Result<Exit, Failure> {
    match command {
        StoreCommand::Stats { node } => {
            let stats: StoreStatus = answer(node, Method::Get, "stats", |config| {
                let store = storage::open_strictly(config)?;
                Ok(storage::describe(&config.store.path, Some(&store)))
            })?;
            print(node, &stats, describe)
        }
        StoreCommand::Verify { node } => {
            let verified: Verified = answer(node, Method::Post, "verify", |config| {
                Ok(storage::open_strictly(config)?.verify(u64::MAX).into())
            })?;
            print(node, &verified, |verified| {
                let Verified { bodies, octets, corrupt, rows, damaged_rows, complete } = verified;
                let part = if *complete { "" } else { " (not all: others are read by the next call)" };
                format!(
                    "{bodies} bodies, {} read{part}; {corrupt} damaged and moved aside\n\
                     {rows} values; {damaged_rows} damaged and forgotten\n",
                    human_size(*octets)
                )
            })
        }
        StoreCommand::Gc { node } => {
            let collected: Collected = answer(node, Method::Post, "gc", |config| {
                let store = storage::open_strictly(config)?;
                let failed = |error| Failure::io(format!("the store {}", config.store.path.display()), error);
                store.gc().map(Collected::from).map_err(failed)
            })?;
            print(node, &collected, |collected| {
                format!(
                    "removed {} bodies that nobody needs and {} to keep the size cap; {} rows of mailboxes that are no more, {} without their body\n",
                    collected.bodies_removed,
                    collected.evicted,
                    collected.retired_rows,
                    collected.rows_without_body
                )
            })
        }
    }
}

fn answer<T: DeserializeOwned>(
    node: &RunningNode,
    method: Method,
    what: &str,
    alone: impl FnOnce(&Config) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let Some((_, value)) = ask::if_running(node, method, &format!("/api/v1/store/{what}"))? {
        return Ok(value);
    }
    let Some(path) = &node.config else {
        return Err(Failure::say(
            Exit::Unavailable,
            "no node answers, and without -c FILE it is not known where the store is",
        ));
    };
    let loaded = file::load(path, FileUse::Look)?;
    alone(file::usable(&loaded, path)?)
}

fn print<T: Serialize>(
    node: &RunningNode,
    value: &T,
    words: impl FnOnce(&T) -> String,
) -> Result<Exit, Failure> {
    if node.json {
        let json = serde_json::to_string(value).map_err(|error| Failure::new(Exit::Bug, error))?;
        say::line(json);
    } else {
        say::text(words(value));
    }
    Ok(Exit::Fine)
}

/// The store in some lines.
pub(crate) fn describe(store: &StoreStatus) -> String {
    let mut out = String::new();
    if !store.open {
        let _ = writeln!(
            out,
            "store      {}: cannot be opened, all mail comes from the servers; the log says why",
            store.path
        );
        return out;
    }
    let sealed = if store.sealed { "encrypted" } else { "not encrypted" };
    let _ = writeln!(
        out,
        "store      {}, {sealed}; {} of {} used",
        store.path,
        human_size(store.disk_octets),
        human_size(store.size_max)
    );
    let _ = writeln!(
        out,
        "holds      {} bodies ({}), {} messages of {} mailboxes of {} accounts",
        store.bodies,
        human_size(store.octets),
        store.messages,
        store.mailboxes,
        store.accounts
    );
    let _ = writeln!(
        out,
        "values     {} given, {} not held; {} damaged, {} lost, {} evicted",
        store.hits,
        store.misses,
        store.corrupt,
        store.lost,
        store.evicted + store.evicted_rows
    );
    let came: Vec<_> = store
        .fills
        .iter()
        .filter(|fill| fill.n > 0)
        .map(|fill| format!("{} {}", fill.n, fill.word))
        .collect();
    if !came.is_empty() {
        let _ = writeln!(out, "bodies in  {}", came.join(", "));
    }
    for trust in &store.trust {
        let verdict = match (trust.trusted, trust.different) {
            (true, _) => "cut here",
            (false, 0) => "not cut yet: too few comparisons",
            (false, _) => "never cut: this server cuts otherwise",
        };
        let _ = writeln!(
            out,
            "sections   {} of {}: {verdict} ({} same, {} different)",
            trust.class, trust.server, trust.same, trust.different
        );
    }
    if store.index_failures + store.disk_failures > 0 {
        let _ = writeln!(
            out,
            "TROUBLE    {} failures of the index, {} of the disk; the log says which",
            store.index_failures, store.disk_failures
        );
    }
    out
}
