//! Bodies of any size, by opaque id: written as a stream, readable while they grow, verified on every read.

use std::{fmt, io, sync::Arc, time::Duration};

/// The opaque name of a body. Made by the store; says nothing about the content to one without the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|o| write!(f, "{o:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the store could not do it. Everything here is survivable: the caller goes to the origin.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// No room: the size cap, or the disk.
    Full,
    /// The content is not what was written; it has been moved aside and counted.
    Corrupt(BlobId),
    /// The body's writer gave up before it was complete.
    Abandoned,
    /// The disk.
    Io(io::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the store is full"),
            Self::Corrupt(id) => write!(f, "blob {id} is damaged and was moved aside"),
            Self::Abandoned => f.write_str("the body was never completed"),
            Self::Io(error) => write!(f, "the store's disk: {error}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::Full;
        }
        Self::Io(error)
    }
}

/// When a commit returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the content is synced: for what was acknowledged to somebody.
    Synced,
    /// At once; the store syncs in batches. For what the origin can give again.
    Batched,
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Complete: this many octets.
    Known(u64),
    /// Still being written: this many so far.
    Growing(u64),
}

/// A body being written. Dropped without [`BlobWriter::commit`], it leaves nothing behind.
pub trait BlobWriter: Send {
    /// Appends.
    ///
    /// # Errors
    /// [`StoreError`]; the body is then lost, the writer useless.
    fn write(&mut self, octets: &[u8]) -> Result<(), StoreError>;
    /// Names the body and makes it findable. The same content twice is stored once.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is findable then.
    fn commit(self: Box<Self>, durability: Durability) -> Result<BlobId, StoreError>;
    /// A reader of what has been written so far and of what comes.
    fn reader(&self) -> Arc<dyn BlobReader>;
}

/// A body being read. Every octet handed out has been verified.
pub trait BlobReader: Send + Sync {
    /// Reads up to `buf.len()` octets at `offset`; 0 at the end of what is there now.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] counts as a miss.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError>;
    /// How long it is.
    fn len(&self) -> Length;
    /// Blocks until there is more than `beyond` octets, the body is complete, or `patience` is over.
    ///
    /// # Errors
    /// [`StoreError::Abandoned`] when no more will come.
    fn wait(&self, beyond: u64, patience: Duration) -> Result<Length, StoreError>;
    /// Whether it is complete and has no octets.
    fn is_empty(&self) -> bool {
        self.len() == Length::Known(0)
    }
}

/// What a verification found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bodies read.
    pub bodies: u64,
    /// Octets read.
    pub octets: u64,
    /// Bodies that were damaged and moved aside.
    pub corrupt: u64,
    /// Whether everything was read within the budget.
    pub complete: bool,
}

/// Keeps bodies.
pub trait BlobStore: Send + Sync {
    /// Starts a body; `expected` octets if known.
    ///
    /// # Errors
    /// [`StoreError::Full`] where it cannot fit.
    fn writer(&self, expected: Option<u64>) -> Result<Box<dyn BlobWriter>, StoreError>;
    /// The body of this name, or `None`.
    ///
    /// # Errors
    /// [`StoreError`] when the disk cannot be read.
    fn reader(&self, id: &BlobId) -> Result<Option<Arc<dyn BlobReader>>, StoreError>;
    /// Removes a body; fine if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] when the disk cannot be written.
    fn forget(&self, id: &BlobId) -> Result<(), StoreError>;
    /// Reads and checks bodies, at most `budget` octets.
    fn verify(&self, budget: u64) -> VerifyReport;
}
