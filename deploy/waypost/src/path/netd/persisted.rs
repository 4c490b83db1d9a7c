//! What a node on the path knows, over a restart: its first connection then finds the peer without asking the path.
//!
//! Each file is octets of the core's and their BLAKE3 checksum. It is written whole, beside and then over the old one,
//! at most once a minute and at the end, and only when something has changed; what a crash costs is a minute of learning.
//! A file that is not what was written is no file: that is said and counted, and the node learns anew.

use crate::{
    durable::{self, Audience},
    path::view,
};
use discovery_core::{
    adopt,
    engine::Peer,
    now::UnixMillis,
    pmt::{Known, PmtConfig, PmtRow, kept},
};
use discovery_linux::netd::Handle;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

/// The files of a node, and what is in them.
pub(super) struct Persisted {
    handle: Handle,
    table: Kept,
    passed: Kept,
    forgotten: AtomicU64,
}

impl Persisted {
    /// Gives back what an earlier process kept, and keeps from now on what is learnt. Links to the peers that are known
    /// are made at once: only with them is a known peer of use.
    pub(super) async fn begin(dir: &Path, handle: &Handle, meet: impl Fn(Peer)) -> Arc<Self> {
        let persisted = Arc::new(Self {
            handle: handle.clone(),
            table: Kept::at(dir.join("mapping-table")),
            passed: Kept::at(dir.join("passed-flows")),
            forgotten: AtomicU64::new(0),
        });
        let rows = persisted.read(&persisted.table, |octets| kept::decode(octets, rows_max()));
        if let Some(rows) = rows {
            tracing::info!(entries = rows.len(), "the proxy mapping table of the last run is here");
            let peers: BTreeSet<_> = rows.iter().filter_map(peer).collect();
            peers.into_iter().take(PEERS_MAX).for_each(meet);
            handle.with(move |engine, now, _| engine.restore_pmt(now, &rows));
        }
        if let Some(rows) = persisted.read(&persisted.passed, adopt::decode) {
            handle.with_passed(move |passed, now| passed.restore(now.wall, &rows));
        }
        // It goes with the path: whoever stops that saves once more.
        let weak = Arc::downgrade(&persisted);
        tokio::spawn(async move {
            let mut ticks = interval(SAVE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let Some(persisted) = weak.upgrade() else { return };
                persisted.save().await;
            }
        });
        persisted
    }

    /// Writes what has changed.
    pub(super) async fn save(&self) {
        // A loop that hangs knows nothing new.
        let rows = view::ask(&self.handle, |engine, now| engine.pmt_rows(now)).await;
        if let Some(mut rows) = rows {
            let body = kept::encode(&rows, rows_max());
            // Two clocks never differ by quite the same: to the millisecond each moment would be news.
            for row in &mut rows {
                row.until = row.until.map(|until| UnixMillis(until.0 / 60_000));
            }
            rows.sort_by_key(|row| row.place);
            self.table.write(&kept::encode(&rows, rows_max()), body).await;
        }
        let (answer, answered) = oneshot::channel();
        self.handle.with_passed(move |passed, _| drop(answer.send(passed.rows())));
        let rows = timeout(PATIENCE, answered).await.ok().and_then(Result::ok);
        // Most nodes adopt nothing, and have no such file.
        if let Some(rows) = rows.filter(|rows| !rows.is_empty()) {
            let body = adopt::encode(&rows);
            self.passed.write(&body.clone(), body).await;
        }
    }

    /// How many files could not be read.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    fn read<T>(&self, file: &Kept, decode: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let read = match file.read() {
            Ok(None) => return None,
            Ok(Some(octets)) => decode(&octets).ok_or("its octets make no sense".to_owned()),
            Err(why) => Err(why),
        };
        read.map_err(|why| {
            self.forgotten.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(file = %file.path.display(), why, "cannot be read, so the node learns anew");
        })
        .ok()
    }
}

/// One file.
struct Kept {
    path: PathBuf,
    /// What stands there now, by what it says.
    written: std::sync::Mutex<Option<blake3::Hash>>,
}

impl Kept {
    fn at(path: PathBuf) -> Self {
        Self { path, written: std::sync::Mutex::default() }
    }

    /// Its octets; none when there is no file, which is how every node begins.
    fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let mut octets = Vec::new();
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| error.to_string())?,
        };
        file.take(FILE_OCTETS_MAX + 1).read_to_end(&mut octets).map_err(|error| error.to_string())?;
        if u64::try_from(octets.len()).is_ok_and(|octets| octets > FILE_OCTETS_MAX) {
            return Err(format!("it is longer than {FILE_OCTETS_MAX} octets"));
        }
        let checked = octets.split_last_chunk::<{ blake3::OUT_LEN }>();
        let Some((body, _)) = checked.filter(|(body, sum)| blake3::hash(body) == **sum) else {
            return Err("its checksum is wrong".to_owned());
        };
        Ok(Some(body.to_vec()))
    }

    /// Durably, unless something that says the same stands there already.
    async fn write(&self, says: &[u8], mut body: Vec<u8>) {
        let says = blake3::hash(says);
        if *self.written() == Some(says) {
            return;
        }
        let sum = blake3::hash(&body);
        body.extend_from_slice(sum.as_bytes());
        let path = self.path.clone();
        let written =
            tokio::task::spawn_blocking(move || durable::write(&path, &body, Audience::Owner)).await;
        match written.map_err(io::Error::other).and_then(|written| written) {
            Ok(()) => *self.written() = Some(says),
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "cannot be written; the next start knows less");
            }
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Option<blake3::Hash>> {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn peer(row: &PmtRow) -> Option<Peer> {
    match row.known {
        Known::Peer(peer) => Some(peer),
        Known::Static(_) | Known::NoProxy | Known::OptionDropped | Known::Asymmetric => None,
    }
}

/// As many as the table holds.
fn rows_max() -> usize {
    let config = PmtConfig::default();
    config.entries_max + config.networks_max
}

/// The longest row has 75 octets.
const FILE_OCTETS_MAX: u64 = 2 << 20;
/// What a crash may cost; a disk is written 1,440 times a day at most.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// As long as `status` waits for the loop.
const PATIENCE: Duration = Duration::from_millis(500);
/// Links that are made at once at the start.
const PEERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read_and_anything_else_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kept");
        assert_eq!(Kept::at(path.clone()).read(), Ok(None));
        Kept::at(path.clone()).write(b"1", b"body".to_vec()).await;
        assert_eq!(Kept::at(path.clone()).read(), Ok(Some(b"body".to_vec())));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Kept::at(path.clone()).read().is_err(), "{length} octets");
        }
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert!(Kept::at(path.clone()).read().is_err(), "octet {place}");
        }
        let long = vec![0; usize::try_from(FILE_OCTETS_MAX).unwrap() + 1];
        std::fs::write(&path, long).unwrap();
        assert!(Kept::at(path.clone()).read().unwrap_err().contains("longer"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(Kept::at(path).read().is_err());
    }

    #[tokio::test]
    async fn nothing_new_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::at(directory.path().join("kept"));
        kept.write(b"1", b"body".to_vec()).await;
        std::fs::remove_file(&kept.path).unwrap();
        kept.write(b"1", b"body a millisecond later".to_vec()).await;
        assert!(!kept.path.exists());
        kept.write(b"2", b"other".to_vec()).await;
        assert_eq!(kept.read(), Ok(Some(b"other".to_vec())));
    }
}
