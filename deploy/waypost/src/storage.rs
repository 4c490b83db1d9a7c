//! The message store as the node has it: opened as configured, described in values.

use crate::{
    api::{Collected, Named, StoreStatus, TrustStatus, Verified},
    config::{self, Config, Seal},
    exit::{Exit, Failure},
};
use epc::store::{GcReport, Store, StoreConfig, StoreOpenError, VerifyReport};
use imap_core::item::SectionClass;
use std::{
    env,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};
use zeroize::Zeroizing;

const KEY_OCTETS: usize = 32;

/// Opens the store of `config`; `None` when its disk does not let us, which must not keep people from their mail.
pub(crate) fn open(config: &Config) -> Result<Option<Arc<Store>>, Failure> {
    match open_strictly(config) {
        Ok(store) => Ok(Some(store)),
        Err(failure) if failure.exit != Exit::Unavailable => Err(failure),
        Err(failure) => {
            tracing::error!(
                error = %failure,
                "the store cannot be opened; all mail comes from the servers until the node is restarted"
            );
            Ok(None)
        }
    }
}

/// Opens the store of `config`.
pub(crate) fn open_strictly(config: &Config) -> Result<Arc<Store>, Failure> {
    let opened = Store::open(StoreConfig {
        path: config.store.path.clone(),
        size_max: config.store.size_max.0,
        seal_key: seal_key(&config.store)?,
        shadow: config.servers.iter().map(|server| (server.name.clone(), server.shadow)).collect(),
    });
    opened.map(Arc::new).map_err(|error| {
        // Two nodes on one store, or a file of the future: an administrator's mistake, not a bad disk.
        let exit = if matches!(error, StoreOpenError::InUse { .. } | StoreOpenError::Future { .. }) {
            Exit::Usage
        } else if let StoreOpenError::Io { source, .. } = &error {
            Exit::of(source, Exit::Unavailable)
        } else {
            Exit::Unavailable
        };
        Failure::new(exit, error)
    })
}

fn seal_key(store: &config::Store) -> Result<Option<Zeroizing<[u8; KEY_OCTETS]>>, Failure> {
    let path = match &store.seal {
        Seal::Off => return Ok(None),
        Seal::File(path) => path.clone(),
        Seal::Credential(name) => credential(name)?,
    };
    read_key(&path).map(Some).map_err(|error| {
        Failure::say(
            Exit::of(&error, Exit::Usage),
            format_args!("the key of the store, {}: {error}", path.display()),
        )
    })
}

fn credential(name: &str) -> Result<PathBuf, Failure> {
    let dir = env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Failure::say(
            Exit::Usage,
            format_args!(
                "[store] seal_credential: systemd hands {name:?} only to a service with LoadCredential={name}:FILE in its unit"
            ),
        )
    })?;
    Ok(Path::new(&dir).join(name))
}

fn read_key(path: &Path) -> io::Result<Zeroizing<[u8; KEY_OCTETS]>> {
    let mut key = Zeroizing::new([0; KEY_OCTETS]);
    let mut file = File::open(path)?;
    file.read_exact(&mut *key)?;
    if file.read(&mut [0])? != 0 {
        return Err(io::Error::other(format!("it has more than {KEY_OCTETS} octets")));
    }
    Ok(key)
}

/// What the store at `path` says about itself.
pub(crate) fn describe(path: &Path, store: Option<&Store>) -> StoreStatus {
    let path = path.display().to_string();
    let Some(store) = store else { return StoreStatus { path, ..StoreStatus::default() } };
    let stats = store.stats();
    let fills = [
        ("stored", stats.fills.stored),
        ("aborted", stats.fills.aborted),
        ("wrong-length", stats.fills.wrong_length),
        ("refused", stats.fills.refused),
        ("failed", stats.fills.failed),
        ("stale", stats.fills.stale),
    ];
    StoreStatus {
        path,
        open: true,
        sealed: stats.sealed,
        bodies: stats.bodies,
        octets: stats.octets,
        disk_octets: stats.disk_octets,
        size_max: stats.size_max,
        messages: stats.messages,
        values: stats.values,
        accounts: stats.accounts,
        mailboxes: stats.mailboxes,
        hits: stats.hits,
        misses: stats.misses,
        corrupt: stats.corrupt,
        lost: stats.lost,
        evicted: stats.evicted,
        evicted_rows: stats.evicted_rows,
        changed: stats.changed,
        index_failures: stats.index_failures,
        disk_failures: stats.disk_failures,
        fills: fills.iter().map(|(word, n)| Named { word: (*word).to_owned(), n: *n }).collect(),
        compared_same: stats.compared_same,
        compared_different: stats.compared_different,
        trust: stats
            .trust
            .iter()
            .map(|((server, class), tally)| TrustStatus {
                server: server.to_string(),
                class: class_word(*class).to_owned(),
                trusted: tally.is_trusted(),
                same: tally.same,
                different: tally.different,
            })
            .collect(),
    }
}

fn class_word(class: SectionClass) -> &'static str {
    match class {
        SectionClass::Whole => "whole",
        SectionClass::Header => "header",
        SectionClass::HeaderFields => "header-fields",
        SectionClass::Text => "text",
        SectionClass::Part => "part",
        SectionClass::Mime => "mime",
        SectionClass::Embedded => "embedded",
    }
}

impl From<VerifyReport> for Verified {
    fn from(report: VerifyReport) -> Self {
        let VerifyReport { bodies, octets, corrupt, rows, damaged_rows, complete } = report;
        Self { bodies, octets, corrupt, rows, damaged_rows, complete }
    }
}

impl From<GcReport> for Collected {
    fn from(report: GcReport) -> Self {
        let GcReport { bodies_removed, rows_without_body, retired_rows, evicted } = report;
        Self { bodies_removed, rows_without_body, retired_rows, evicted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_exactly_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        for (octets, good) in [(31, false), (32, true), (33, false)] {
            std::fs::write(&path, vec![7; octets]).unwrap();
            assert_eq!(read_key(&path).is_ok(), good, "{octets}");
        }
    }
}
