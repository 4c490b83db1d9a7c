//! One body in this process: shared by its writer and all its readers, from its first octet on.

use super::{
    bodies::{lock, read_full},
    body_file::{BLOCK_OCTETS, BodyDigest, Layout},
};
use discovery_core::seam::{
    blob::{BlobId, BlobReader, Length, StoreError},
    disk::{Disk, DiskFile},
    sealer::Sealer,
};
use std::{
    io,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

/// What a body tells the store that keeps it.
pub(super) trait Owner: Send + Sync {
    /// The body's file, now at `path`, does not hold what was written.
    fn damaged(&self, id: &BlobId, path: &str);
    /// Nobody reads the body any longer.
    fn unread(&self, id: &BlobId);
}

/// A body.
pub(super) struct Body {
    disk: Arc<dyn Disk>,
    layout: Layout,
    /// Set once the body is complete and findable.
    owner: OnceLock<(BlobId, Weak<dyn Owner>)>,
    state: Mutex<State>,
    grown: Condvar,
}

struct State {
    path: String,
    /// Opened when first needed, unless it is being written.
    file: Option<Arc<dyn DiskFile>>,
    /// Content in blocks on the disk.
    written: u64,
    /// Content behind it.
    tail: Vec<u8>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Growing,
    Complete,
    Abandoned,
}

impl Body {
    /// An empty body whose file is there and empty.
    pub(super) fn growing(
        disk: Arc<dyn Disk>,
        layout: Layout,
        path: String,
        file: Arc<dyn DiskFile>,
    ) -> Result<Self, StoreError> {
        file.append(&layout.header())?;
        let state = State { path, file: Some(file), written: 0, tail: Vec::new(), phase: Phase::Growing };
        Ok(Self::new(disk, layout, state))
    }

    /// A body whose file is complete.
    pub(super) fn complete(disk: Arc<dyn Disk>, layout: Layout, path: String, octets: u64) -> Self {
        let state = State { path, file: None, written: octets, tail: Vec::new(), phase: Phase::Complete };
        Self::new(disk, layout, state)
    }

    fn new(disk: Arc<dyn Disk>, layout: Layout, state: State) -> Self {
        Self { disk, layout, owner: OnceLock::new(), state: Mutex::new(state), grown: Condvar::new() }
    }

    /// From here on the store hears of damage and of the last reader's end.
    pub(super) fn belongs(&self, id: BlobId, owner: Weak<dyn Owner>) {
        let _ = self.owner.set((id, owner));
    }

    /// Octets of content so far.
    pub(super) fn octets(&self) -> u64 {
        let state = lock(&self.state);
        state.written + state.tail.len() as u64
    }

    /// Octets of the complete file.
    pub(super) fn file_octets(&self) -> u64 {
        self.layout.file_octets(self.octets())
    }

    /// Appends content: whole blocks go to the disk, the rest waits.
    pub(super) fn append(&self, digest: &mut BodyDigest, mut octets: &[u8]) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        if state.phase != Phase::Growing {
            return Err(StoreError::Abandoned);
        }
        let mut outcome = Ok(());
        while !octets.is_empty() && outcome.is_ok() {
            let room = BLOCK_OCTETS.saturating_sub(state.tail.len()).min(octets.len());
            let (now, later) = octets.split_at(room);
            state.tail.extend_from_slice(now);
            octets = later;
            if state.tail.len() >= BLOCK_OCTETS {
                outcome = self.put_block(&mut state, digest);
            }
        }
        if outcome.is_err() {
            // A torn block may be on the disk; nothing may come behind it.
            state.phase = Phase::Abandoned;
        }
        drop(state);
        self.grown.notify_all();
        outcome
    }

    fn put_block(&self, state: &mut State, digest: &mut BodyDigest) -> Result<(), StoreError> {
        let Some(file) = state.file.clone() else { return Err(StoreError::Abandoned) };
        let content = state.tail.len() as u64;
        let nth = state.written / BLOCK_OCTETS as u64;
        let sum = digest.push(&state.tail);
        self.layout.seal_block(nth, &sum, &mut state.tail);
        file.append(&state.tail)?;
        state.written += content;
        state.tail.clear();
        Ok(())
    }

    /// Writes what is left and the footer; the body is complete then.
    pub(super) fn finish(&self, mut digest: BodyDigest, sealer: &dyn Sealer) -> Result<BlobId, StoreError> {
        let mut state = lock(&self.state);
        if state.phase != Phase::Growing {
            return Err(StoreError::Abandoned);
        }
        // Until it is complete, nothing can be read: a reader sees it grow by a block and end at once.
        let written = if state.tail.is_empty() { Ok(()) } else { self.put_block(&mut state, &mut digest) };
        let id = digest.finish(sealer);
        let footer = self.layout.footer(state.written, &id);
        let done = written.and_then(|()| match &state.file {
            Some(file) => Ok(file.append(&footer)?),
            None => Err(StoreError::Abandoned),
        });
        state.phase = if done.is_ok() { Phase::Complete } else { Phase::Abandoned };
        state.tail = Vec::new();
        drop(state);
        self.grown.notify_all();
        done.map(|()| id)
    }

    /// No more will come.
    pub(super) fn abandon(&self) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Growing {
            state.phase = Phase::Abandoned;
            state.tail = Vec::new();
        }
        drop(state);
        self.grown.notify_all();
    }

    /// Closes the file until somebody needs it again, unless it is still being written.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Complete {
            state.file = None;
        }
    }

    /// Makes the content durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file()?.sync()
    }

    /// Gives the file another name.
    pub(super) fn rename(&self, path: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        self.disk.rename(&state.path, path)?;
        path.clone_into(&mut state.path);
        Ok(())
    }

    /// Where the file is now.
    pub(super) fn path(&self) -> String {
        lock(&self.state).path.clone()
    }

    /// The file stays readable for us from here on, even when its name goes away.
    pub(super) fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = lock(&self.state);
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let file: Arc<dyn DiskFile> = Arc::from(self.disk.open(&state.path)?);
        state.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn length(&self, state: &State) -> Result<Length, StoreError> {
        match state.phase {
            Phase::Growing => Ok(Length::Growing(state.written + state.tail.len() as u64)),
            Phase::Complete => Ok(Length::Known(state.written)),
            Phase::Abandoned => Err(StoreError::Abandoned),
        }
    }

    /// Reads block `nth` into `block`, verified; `content` octets of the body are in blocks.
    fn read_block(&self, nth: u64, content: u64, block: &mut Vec<u8>) -> Result<(), StoreError> {
        let (offset, octets) = self.layout.record(nth, content);
        block.resize(octets, 0);
        let read = read_full(&*self.file()?, offset, block)?;
        block.truncate(read);
        self.layout.unseal_block(nth, block).map_err(|_| {
            block.clear();
            match self.owner.get() {
                Some((id, owner)) => {
                    if let Some(owner) = owner.upgrade() {
                        owner.damaged(id, &self.path());
                    }
                    StoreError::Corrupt(*id)
                }
                // Not complete yet: it never will be.
                None => {
                    self.abandon();
                    StoreError::Abandoned
                }
            }
        })
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some((id, owner)) = self.owner.get()
            && let Some(owner) = owner.upgrade()
        {
            owner.unread(id);
        }
    }
}

/// One reader; keeps the block it read last, so that small reads in order verify each block once.
pub(super) struct BodyReader {
    body: Arc<Body>,
    last: Mutex<LastBlock>,
}

#[derive(Default)]
struct LastBlock {
    nth: Option<u64>,
    content: Vec<u8>,
}

impl BodyReader {
    pub(super) fn new(body: Arc<Body>) -> Self {
        Self { body, last: Mutex::default() }
    }

    /// Octets of content so far.
    pub(super) fn body_octets(&self) -> u64 {
        self.body.octets()
    }

    /// Reads and verifies the blocks with these octets; how many were read.
    pub(super) fn verify(&self, offset: u64, octets: u64) -> Result<u64, StoreError> {
        let content = lock(&self.body.state).written;
        let end = offset.saturating_add(octets).min(content);
        let block = BLOCK_OCTETS as u64;
        let mut last = lock(&self.last);
        let mut read = 0;
        for nth in offset / block..end.div_ceil(block) {
            last.nth = None;
            self.body.read_block(nth, content, &mut last.content)?;
            last.nth = Some(nth);
            read += last.content.len() as u64;
        }
        Ok(read)
    }

    /// Holds neither a block nor an open file until the next read: an answer may have many readers.
    pub(super) fn rest(&self) {
        *lock(&self.last) = LastBlock::default();
        self.body.close();
    }

    /// Octets `offset..offset + octets`, all of them.
    pub(super) fn read_range(&self, offset: u64, octets: usize) -> Result<Vec<u8>, StoreError> {
        let mut out = vec![0; octets];
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(offset + done as u64, rest)? {
                0 => return Err(StoreError::Io(io::ErrorKind::UnexpectedEof.into())),
                read => done += read,
            }
        }
        Ok(out)
    }

    /// Part of one block, or of the tail; 0 at the end of what is there.
    fn read_some(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let written = {
            let state = lock(&self.body.state);
            if state.phase == Phase::Abandoned {
                return Err(StoreError::Abandoned);
            }
            if offset >= state.written {
                let start = usize::try_from(offset - state.written).unwrap_or(usize::MAX);
                return Ok(copy(state.tail.get(start..).unwrap_or_default(), buf));
            }
            state.written
        };
        let (nth, within) = (offset / BLOCK_OCTETS as u64, offset % BLOCK_OCTETS as u64);
        let mut last = lock(&self.last);
        if last.nth != Some(nth) {
            last.nth = None;
            self.body.read_block(nth, written, &mut last.content)?;
            last.nth = Some(nth);
        }
        let start = usize::try_from(within).unwrap_or(usize::MAX);
        Ok(copy(last.content.get(start..).unwrap_or_default(), buf))
    }
}

impl BlobReader for BodyReader {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_some(offset + done as u64, rest) {
                Ok(0) => break,
                Ok(read) => done += read,
                // What was read before it is good; the next call meets the error again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn len(&self) -> Length {
        let state = lock(&self.body.state);
        self.body.length(&state).unwrap_or(Length::Growing(0))
    }

    fn wait(&self, beyond: u64, patience: Duration) -> Result<Length, StoreError> {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.body.state);
        loop {
            let length = self.body.length(&state)?;
            let left = deadline.saturating_duration_since(Instant::now());
            match length {
                Length::Growing(octets) if octets <= beyond && !left.is_zero() => {
                    let waited = self.body.grown.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Length::Growing(_) | Length::Known(_) => return Ok(length),
            }
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let octets = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..octets), to.get_mut(..octets)) {
        to.copy_from_slice(from);
    }
    octets
}
