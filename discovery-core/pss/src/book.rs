//! What the store knows of itself and its peers, one small file that is replaced as a whole: `log/book`.
//!
//! ```text
//! "waypbook" ‖ version (1) ‖ sealed { store's id (16) ‖ owner (16) ‖ epoch (8) ‖
//!                                     { peer (16) ‖ lineage (16) ‖ writer (16) ‖ epoch (8) ‖ boot (16) } … }
//! ```
//!
//! Without it the log files are nobody's, and the store begins empty. Addresses are issued only after the epoch is on
//! the disk.

use crate::{layout::StoreId, lineage::Mark, record::take};
use discovery_core::seam::{
    disk::Disk,
    sealer::{SealContext, Sealer},
};
use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
};

pub(crate) const DIR: &str = "log";
const PATH: &str = "log/book";
const FRESH: &str = "log/book.new";
const MAGIC: &[u8; 9] = b"waypbook\x01";
const CONTEXT: SealContext<'static> = SealContext { kind: "segment book", place: b"", block: 0 };
/// Peers remembered; one more than that forgets the one with the lowest name, whose branch then starts anew.
const PEERS_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) id: StoreId,
    pub(crate) owner: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) peers: BTreeMap<[u8; 16], Known>,
}

/// What is known of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Random; new whenever the peer's addresses begin to mean something else.
    pub(crate) lineage: [u8; 16],
    pub(crate) mark: Mark,
}

impl Book {
    /// Reads it; none if there is none, or it is damaged or under another key.
    pub(crate) fn read(disk: &dyn Disk, sealer: &dyn Sealer) -> io::Result<Option<Self>> {
        let file = match disk.open(PATH) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let octets = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(OCTETS_MAX);
        let mut text = vec![0; octets];
        let mut read = 0;
        while let Some(rest) = text.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match file.read_at(read as u64, rest)? {
                0 => break,
                octets => read += octets,
            }
        }
        text.truncate(read);
        Ok(Self::decode(sealer, &text))
    }

    pub(crate) fn decode(sealer: &dyn Sealer, octets: &[u8]) -> Option<Self> {
        let mut text = octets.strip_prefix(MAGIC)?.to_vec();
        sealer.unseal(CONTEXT, &mut text).ok()?;
        let mut text = text.as_slice();
        let mut book = Self {
            id: StoreId(take(&mut text)?),
            owner: take(&mut text)?,
            epoch: u64::from_be_bytes(take(&mut text)?),
            peers: BTreeMap::new(),
        };
        while !text.is_empty() {
            let (peer, lineage) = (take(&mut text)?, take(&mut text)?);
            let mark = Mark {
                writer: take(&mut text)?,
                epoch: u64::from_be_bytes(take(&mut text)?),
                boot: take(&mut text)?,
            };
            book.peers.insert(peer, Known { lineage, mark });
        }
        Some(book)
    }

    pub(crate) fn encode(&self, sealer: &dyn Sealer) -> Vec<u8> {
        let mut text = Vec::new();
        text.extend_from_slice(&self.id.0);
        text.extend_from_slice(&self.owner);
        text.extend_from_slice(&self.epoch.to_be_bytes());
        for (peer, known) in &self.peers {
            text.extend_from_slice(peer);
            text.extend_from_slice(&known.lineage);
            text.extend_from_slice(&known.mark.writer);
            text.extend_from_slice(&known.mark.epoch.to_be_bytes());
            text.extend_from_slice(&known.mark.boot);
        }
        sealer.seal(CONTEXT, &mut text);
        [&MAGIC[..], &text].concat()
    }

    /// Durable on return.
    pub(crate) fn write(&self, disk: &dyn Disk, sealer: &dyn Sealer) -> io::Result<()> {
        match disk.remove(FRESH) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = disk.create(FRESH)?;
        file.append(&self.encode(sealer))?;
        file.sync()?;
        disk.rename(FRESH, PATH)?;
        disk.sync_dir(DIR)
    }

    pub(crate) fn remember(&mut self, peer: [u8; 16], known: Known) {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&peer) {
            self.peers.pop_first();
        }
        self.peers.insert(peer, known);
    }
}

const PEER_OCTETS: usize = 72;
const OCTETS_MAX: usize = 1024 + PEERS_MAX * PEER_OCTETS;
