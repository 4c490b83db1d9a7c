//! Damage on purpose: one octet, in the store or in what a client was given.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::ValueEnum;

/// Where the octet is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tamper {
    /// In the store: the node must notice, and serve the right mail.
    Store,
    /// In what the client behind Waypost was given: the comparison must notice.
    Client,
}

/// Flips one octet of a message on the node's disk; returns the file. The store of the demo is not sealed, so the
/// message's own octets can be found in it.
pub(crate) fn flip_stored(store: &Path, message: &[u8]) -> anyhow::Result<PathBuf> {
    let from = message.len() / 2;
    let needle = message.get(from..message.len().min(from + NEEDLE_OCTETS)).unwrap_or_default();
    ensure!(needle.len() >= 16, "the message is too short to be found again");
    for file in files_below(store)? {
        let octets = fs::read(&file)?;
        let Some(at) = octets.windows(needle.len()).position(|window| window == needle) else { continue };
        let octet = octets.get(at).context("found outside the file")? ^ 1;
        let file_handle = fs::File::options().write(true).open(&file)?;
        file_handle.write_all_at(&[octet], u64::try_from(at)?)?;
        file_handle.sync_all()?;
        return Ok(file);
    }
    anyhow::bail!("the store in {} does not hold the message whose octet was to be flipped", store.display())
}

const NEEDLE_OCTETS: usize = 200;

/// Bodies that the node found damaged and moved aside.
pub(crate) fn quarantined(store: &Path) -> usize {
    files_below(&store.join("quarantine")).map_or(0, |files| files.len())
}

/// Every file below a directory, in order of its name.
pub(crate) fn files_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = left.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}
