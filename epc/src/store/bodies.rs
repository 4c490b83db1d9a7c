//! Bodies as files: content-addressed, written as a stream, readable while they grow, verified on every read.
//!
//! ```text
//!  writer ─► tmp/N ── commit ─► findable in this process ── synced ─► blobs/ab/ab… ─ damaged ─► quarantine/
//!                └─ dropped: removed at once, or when the store is opened again
//! ```
//! A file gets its final name only after its content is on the disk, so that a name stands for a whole body even
//! after a power cut.

use super::{
    body::{Body, BodyReader, Owner},
    body_file::{BodyDigest, FileId, HEADER_OCTETS, Layout},
    counters::Counters,
    room::{Promise, Room},
};
use discovery_core::seam::{
    blob::{BlobId, BlobReader, BlobStore, BlobWriter, Durability, StoreError, VerifyReport},
    disk::{Disk, DiskFile},
    sealer::{Sealer, Tampered},
};
use disk::{NoRandom, random};
use imap_core::mutants;
use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Keeps bodies on a [`Disk`].
pub(super) struct Bodies {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    sealer: Arc<dyn Sealer>,
    counters: Arc<Counters>,
    /// Bodies that somebody reads, or that have no final name yet.
    live: Mutex<HashMap<BlobId, Weak<Body>>>,
    /// Complete bodies that wait for their content to be synced and for their final name.
    unsynced: Mutex<Vec<Unsynced>>,
    /// Held while files get their names, so that who finds a body not waiting knows that it has its own.
    syncing: Mutex<()>,
    seed: [u8; 32],
    files: AtomicU64,
    room: Arc<Room>,
    /// Where [`Bodies::verify`] goes on.
    cursor: Mutex<Option<String>>,
}

struct Unsynced {
    id: BlobId,
    body: Arc<Body>,
}

impl Bodies {
    /// Opens the bodies on `disk`; what was never completed is removed.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        sealer: Arc<dyn Sealer>,
        counters: Arc<Counters>,
        room: Arc<Room>,
    ) -> io::Result<Self> {
        for dir in [TMP, BLOBS, QUARANTINE] {
            disk.create_dir(dir)?;
        }
        for name in disk.list(TMP)? {
            disk.remove(&format!("{TMP}/{name}"))?;
        }
        let seed = random().map_err(|NoRandom| io::Error::other("the system gives no random octets"))?;
        let inner = Inner {
            disk,
            sealer,
            counters,
            live: Mutex::default(),
            unsynced: Mutex::default(),
            syncing: Mutex::default(),
            seed,
            files: AtomicU64::new(0),
            room,
            cursor: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The body of this name as a whole, for callers who read it many times.
    pub(super) fn body(&self, id: &BlobId) -> Result<Option<Arc<Body>>, StoreError> {
        self.inner.body(id)
    }

    /// How many bodies wait for [`Bodies::sync`].
    pub(super) fn unsynced(&self) -> usize {
        lock(&self.inner.unsynced).len()
    }

    /// Syncs what was committed and gives it its final name. A body whose sync fails is lost: its content on the
    /// disk is unknown from then on.
    pub(super) fn sync(&self) {
        let _syncing = lock(&self.inner.syncing);
        let waiting = std::mem::take(&mut *lock(&self.inner.unsynced));
        // A file system commits for several who wait at once as fast as for one.
        let threads = if waiting.len() > SYNC_ALONE_MAX { SYNC_THREADS } else { 1 };
        let (waiting, dirs) = (Mutex::new(waiting.into_iter()), Mutex::new(BTreeSet::new()));
        let work = || {
            while let Some(Unsynced { id, body }) = { lock(&waiting).next() } {
                match self.inner.name(&id, &body) {
                    Ok(true) => drop(lock(&dirs).insert(dir_of(&id))),
                    Ok(false) => self.inner.drop_unnamed(&body),
                    Err(error) => self.inner.lose(&id, &body, &error),
                }
            }
        };
        thread::scope(|scope| {
            // One that cannot be started is not missed: this thread does all that is left.
            for _ in 1..threads {
                let _ = thread::Builder::new().name("store-sync".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        for dir in lock(&dirs).iter() {
            if let Err(error) = self.inner.disk.sync_dir(dir) {
                // The name may be gone after a power cut: a miss then, no wrong octet.
                self.inner.counters.disk_failures.one();
                tracing::warn!(%error, "the store cannot sync a directory");
            }
        }
    }

    /// Ids of all bodies that have their final name.
    pub(super) fn ids(&self) -> io::Result<Vec<BlobId>> {
        let mut ids = Vec::new();
        for first in 0..=u8::MAX {
            ids.append(&mut self.ids_in(first)?);
        }
        Ok(ids)
    }

    /// Of these the ones that begin so; what is no body's name there is removed.
    pub(super) fn ids_in(&self, first: u8) -> io::Result<Vec<BlobId>> {
        let mut ids = Vec::new();
        let dir = dir_named(first);
        for name in self.inner.disk.list(&dir)? {
            match parse_id(&name).filter(|id| dir_of(id) == dir) {
                Some(id) => ids.push(id),
                None => self.inner.disk.remove(&format!("{dir}/{name}"))?,
            }
        }
        Ok(ids)
    }

    /// Octets of this body's file, if it is there.
    #[cfg(test)]
    pub(super) fn file_octets(&self, id: &BlobId) -> Option<u64> {
        self.inner.disk.open(&path_of(id)).and_then(|file| file.len()).ok()
    }

    /// Octets of the file of a body with so much content.
    pub(super) fn file_octets_of(&self, content: u64) -> u64 {
        Layout::new(Arc::clone(&self.inner.sealer), FileId::default()).file_octets(content)
    }

    /// Removes the body unless somebody reads it or it has no final name yet; whether it is gone.
    pub(super) fn forget_unread(&self, id: &BlobId) -> Result<bool, StoreError> {
        let live = lock(&self.inner.live);
        if live.get(id).is_some_and(|body| body.strong_count() > 0) && !mutants::on("store-read-evicted") {
            return Ok(false);
        }
        self.inner.remove(id)?;
        drop(live);
        Ok(true)
    }

    /// Reads all of a body; `false` if it is damaged (and was moved aside).
    pub(super) fn verify_one(&self, id: &BlobId, report: &mut VerifyReport) -> bool {
        report.bodies += 1;
        let checked = self.inner.body(id).and_then(|body| {
            let Some(body) = body else { return Ok(0) };
            BodyReader::new(body).verify(0, u64::MAX)
        });
        match checked {
            Ok(octets) => report.octets += octets,
            Err(StoreError::Corrupt(_)) => {
                report.corrupt += 1;
                return false;
            }
            Err(_) => self.inner.counters.disk_failures.one(),
        }
        true
    }
}

impl BlobStore for Bodies {
    fn writer(&self, expected: Option<u64>) -> Result<Box<dyn BlobWriter>, StoreError> {
        let inner = &self.inner;
        if self.unsynced() >= UNSYNCED_MAX {
            // The disk does not keep up; it is no help to anybody then.
            return Err(StoreError::Full);
        }
        let layout = Layout::new(Arc::clone(&inner.sealer), inner.file_id());
        let promised = expected.map_or(0, |expected| layout.file_octets(expected));
        let promise = Promise::new(&inner.room, promised)?;
        let path = format!("{TMP}/{}", inner.files.fetch_add(1, Ordering::Relaxed));
        let file: Arc<dyn DiskFile> = Arc::from(inner.disk.create(&path)?);
        match Body::growing(Arc::clone(&inner.disk), layout.clone(), path.clone(), file) {
            Ok(body) => Ok(Box::new(Writer {
                inner: Arc::clone(inner),
                body: Arc::new(body),
                path,
                layout,
                digest: BodyDigest::default(),
                promise,
                complete: false,
            })),
            Err(error) => {
                inner.remove_unfinished(&path);
                Err(error)
            }
        }
    }

    fn reader(&self, id: &BlobId) -> Result<Option<Arc<dyn BlobReader>>, StoreError> {
        Ok(self.inner.body(id)?.map(|body| Arc::new(BodyReader::new(body)) as Arc<dyn BlobReader>))
    }

    fn forget(&self, id: &BlobId) -> Result<(), StoreError> {
        let mut live = lock(&self.inner.live);
        let body = live.remove(id).and_then(|body| body.upgrade());
        // Who reads it has the file open from here on, and reads on.
        let held = body.as_ref().map(|body| body.file());
        let waiting = self.inner.take_unsynced(id);
        let removed = self.inner.remove(id);
        // The end of a body locks the map.
        drop(live);
        if let Some(waiting) = waiting {
            self.inner.drop_unnamed(&waiting.body);
        }
        drop((body, held));
        removed
    }

    fn verify(&self, budget: u64) -> VerifyReport {
        let mut report = VerifyReport::default();
        let mut cursor = lock(&self.inner.cursor);
        let from = cursor.take();
        let mut last = None;
        let Ok(mut ids) = self.ids() else { return report };
        ids.sort_unstable();
        let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let start = names.partition_point(|name| from.as_ref().is_some_and(|from| name <= from));
        for nth in 0..ids.len() {
            let at = (start + nth) % ids.len();
            if report.octets >= budget {
                *cursor = last;
                return report;
            }
            let (Some(id), name) = (ids.get(at), names.get(at)) else { break };
            self.verify_one(id, &mut report);
            last = name.cloned();
        }
        report.complete = true;
        report
    }
}

impl Inner {
    /// Unique even between stores and after a backup was restored.
    fn file_id(&self) -> FileId {
        let mut out = FileId::default();
        let nth = self.files.fetch_add(1, Ordering::Relaxed);
        blake3::Hasher::new_keyed(&self.seed).update(&nth.to_be_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn body(self: &Arc<Self>, id: &BlobId) -> Result<Option<Arc<Body>>, StoreError> {
        let mut live = lock(&self.live);
        if let Some(body) = live.get(id).and_then(Weak::upgrade) {
            return Ok(Some(body));
        }
        // The map stays locked, so that nobody removes the file before we are in it.
        let path = path_of(id);
        match self.open(id, &path) {
            Ok(Some((layout, octets))) => {
                let body = Arc::new(Body::complete(Arc::clone(&self.disk), layout, path, octets));
                body.belongs(*id, self.owner());
                live.insert(*id, Arc::downgrade(&body));
                Ok(Some(body))
            }
            Ok(None) => Ok(None),
            Err(Unreadable::Disk(error)) => Err(error.into()),
            Err(Unreadable::Tampered) => {
                drop(live);
                self.damaged(id, &path);
                Err(StoreError::Corrupt(*id))
            }
        }
    }

    fn owner(self: &Arc<Self>) -> Weak<dyn Owner> {
        let weak: Weak<Self> = Arc::downgrade(self);
        weak
    }

    /// Header and footer of a file with its final name.
    fn open(&self, id: &BlobId, path: &str) -> Result<Option<(Layout, u64)>, Unreadable> {
        let file = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let octets = file.len()?;
        let mut header = vec![0; HEADER_OCTETS];
        let read = read_full(&*file, 0, &mut header)?;
        header.truncate(read);
        let layout = Layout::from_header(&self.sealer, &header)?;
        let mut footer = vec![0; layout.footer_octets()];
        let start = octets.checked_sub(footer.len() as u64).ok_or(Tampered)?;
        let read = read_full(&*file, start, &mut footer)?;
        footer.truncate(read);
        let content = layout.read_footer(footer, id, octets)?;
        Ok(Some((layout, content)))
    }

    fn take_unsynced(&self, id: &BlobId) -> Option<Unsynced> {
        let mut unsynced = lock(&self.unsynced);
        let at = unsynced.iter().position(|waiting| waiting.id == *id)?;
        Some(unsynced.swap_remove(at))
    }

    /// Removes the file of a complete body that will not get its final name; its readers read on.
    fn drop_unnamed(&self, body: &Body) {
        self.room.remove_used(body.file_octets());
        self.remove_unfinished(&body.path());
    }

    fn remove_unfinished(&self, path: &str) {
        if let Err(error) = self.disk.remove(path) {
            self.counters.disk_failures.one();
            tracing::debug!(%error, "an unfinished body's file stays until the store is opened again");
        }
    }

    fn remove(&self, id: &BlobId) -> Result<(), StoreError> {
        let path = path_of(id);
        let octets = self.disk.open(&path).and_then(|file| file.len()).unwrap_or(0);
        match self.disk.remove(&path) {
            Ok(()) => self.room.remove_used(octets),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Syncs and renames; the directory is the caller's to sync. `false`: it was forgotten meanwhile.
    fn name(&self, id: &BlobId, body: &Arc<Body>) -> io::Result<bool> {
        if !mutants::on("store-named-unsynced") {
            body.sync()?;
        }
        let live = lock(&self.live);
        let wanted = live.get(id).is_some_and(|there| std::ptr::eq(there.as_ptr(), Arc::as_ptr(body)));
        if wanted {
            let renamed = body.rename(&path_of(id));
            if renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                // The first one in its directory.
                self.disk.create_dir(&dir_of(id))?;
                body.rename(&path_of(id))?;
            } else {
                renamed?;
            }
        }
        Ok(wanted)
    }

    fn lose(&self, id: &BlobId, body: &Arc<Body>, error: &io::Error) {
        self.counters.disk_failures.one();
        tracing::warn!(%error, "the store cannot sync a body; it is dropped");
        let mut live = lock(&self.live);
        if live.get(id).is_some_and(|there| std::ptr::eq(there.as_ptr(), Arc::as_ptr(body))) {
            live.remove(id);
        }
        drop(live);
        self.drop_unnamed(body);
    }

    fn sync_one(&self, id: &BlobId) -> Result<(), StoreError> {
        let _syncing = lock(&self.syncing);
        let Some(Unsynced { body, .. }) = self.take_unsynced(id) else {
            // It has its name already, which need not be durable: a sync of the directory may have failed.
            return Ok(self.disk.sync_dir(&dir_of(id))?);
        };
        match self.name(id, &body).and_then(|named| self.disk.sync_dir(&dir_of(id)).map(|()| named)) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.drop_unnamed(&body);
                Ok(())
            }
            Err(error) => {
                self.lose(id, &body, &error);
                Err(error.into())
            }
        }
    }
}

impl Owner for Inner {
    fn damaged(&self, id: &BlobId, path: &str) {
        let mut live = lock(&self.live);
        live.remove(id);
        let octets = self.disk.open(path).and_then(|file| file.len());
        let kept = self.disk.list(QUARANTINE).map_or(usize::MAX, |names| names.len());
        let moved = if kept < QUARANTINED_MAX {
            self.disk.rename(path, &format!("{QUARANTINE}/{id}"))
        } else {
            self.disk.remove(path)
        };
        let waiting = self.take_unsynced(id);
        drop(live);
        drop(waiting);
        match moved {
            Ok(()) => {
                self.counters.corrupt.one();
                self.room.remove_used(octets.unwrap_or(0));
                tracing::warn!(blob = %id, "a stored body is damaged; it was taken away");
            }
            // Another reader was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.counters.corrupt.one();
                self.counters.disk_failures.one();
                tracing::warn!(blob = %id, %error, "a stored body is damaged and cannot be moved aside");
            }
        }
    }

    fn unread(&self, id: &BlobId) {
        let mut live = lock(&self.live);
        if live.get(id).is_some_and(|body| body.strong_count() == 0) {
            live.remove(id);
        }
    }
}

/// Why a file is no body.
enum Unreadable {
    Disk(io::Error),
    Tampered,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<Tampered> for Unreadable {
    fn from(_: Tampered) -> Self {
        Self::Tampered
    }
}

/// A body being written.
struct Writer {
    inner: Arc<Inner>,
    body: Arc<Body>,
    path: String,
    layout: Layout,
    digest: BodyDigest,
    promise: Promise,
    complete: bool,
}

impl BlobWriter for Writer {
    fn write(&mut self, octets: &[u8]) -> Result<(), StoreError> {
        self.promise.cover(self.layout.file_octets(self.body.octets() + octets.len() as u64))?;
        self.body.append(&mut self.digest, octets)
    }

    fn commit(mut self: Box<Self>, durability: Durability) -> Result<BlobId, StoreError> {
        let digest = std::mem::take(&mut self.digest);
        let id = self.body.finish(digest, &*self.inner.sealer)?;
        // Before the map: whoever finds it there reads a complete body.
        let known = self.inner.body(&id).unwrap_or(None);
        let mut live = lock(&self.inner.live);
        let known = known.or_else(|| live.get(&id).and_then(Weak::upgrade));
        if known.is_none() {
            live.insert(id, Arc::downgrade(&self.body));
            lock(&self.inner.unsynced).push(Unsynced { id, body: Arc::clone(&self.body) });
            self.inner.room.add_used(self.body.file_octets());
            self.complete = true;
            self.body.belongs(id, self.inner.owner());
            // Bodies that wait for their sync hold no file open.
            self.body.close();
        }
        drop(live);
        if durability == Durability::Synced {
            self.inner.sync_one(&id)?;
        }
        // If the content was here already, our file goes away with the drop; who reads it has it open.
        Ok(id)
    }

    fn reader(&self) -> Arc<dyn BlobReader> {
        Arc::new(BodyReader::new(Arc::clone(&self.body)))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.complete {
            self.body.abandon();
            self.inner.remove_unfinished(&self.path);
        }
    }
}

/// Reads until `buf` is full or the file ends.
pub(super) fn read_full(file: &dyn DiskFile, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(offset + done as u64, rest)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is whole before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const TMP: &str = "tmp";
const BLOBS: &str = "blobs";
const QUARANTINE: &str = "quarantine";

/// Bodies that may wait for their sync.
const UNSYNCED_MAX: usize = 4096;

/// So few are synced one by one.
const SYNC_ALONE_MAX: usize = 8;
const SYNC_THREADS: usize = 2;

/// Damaged files kept for somebody to look at; further ones are removed.
const QUARANTINED_MAX: usize = 32;

fn dir_of(id: &BlobId) -> String {
    let [first, ..] = id.0;
    dir_named(first)
}

fn dir_named(first: u8) -> String {
    format!("{BLOBS}/{first:02x}")
}

fn path_of(id: &BlobId) -> String {
    format!("{}/{id}", dir_of(id))
}

fn parse_id(name: &str) -> Option<BlobId> {
    let digits: &[u8; 64] = name.as_bytes().try_into().ok()?;
    let mut out = [0; 32];
    for (octet, pair) in out.iter_mut().zip(digits.chunks(2)) {
        *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(BlobId(out)).filter(|id| id.to_string() == name)
}
