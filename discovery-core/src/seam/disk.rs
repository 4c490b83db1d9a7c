//! The disk as stores see it, so that a simulator can tear writes, lose what was not synced, and fill up.
//!
//! Paths are relative to the store's root, use `/`, and never contain `..`. Implementations: the real one in
//! `epc`, a fault-injecting one in tests.

use std::io;

/// An append-only or read-only file.
pub trait DiskFile: Send + Sync {
    /// Appends all of `octets`; on error an unknown prefix may have been written.
    ///
    /// # Errors
    /// What the disk says; `StorageFull` where there is no room.
    fn append(&self, octets: &[u8]) -> io::Result<()>;
    /// Reads up to `buf.len()` octets at `offset`; 0 at the end.
    ///
    /// # Errors
    /// What the disk says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Length in octets.
    ///
    /// # Errors
    /// What the disk says.
    fn len(&self) -> io::Result<u64>;
    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// What the disk says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Durable on return. An error means that the file's content is unknown: drop the file, never retry.
    ///
    /// # Errors
    /// What the disk says.
    fn sync(&self) -> io::Result<()>;
}

/// A directory tree that belongs to one store.
pub trait Disk: Send + Sync {
    /// Makes a new, empty file (mode 0600); fails with `AlreadyExists` if there is one.
    ///
    /// # Errors
    /// What the disk says.
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading.
    ///
    /// # Errors
    /// `NotFound`, or what the disk says.
    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Moves a file over another, atomically.
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, or what the disk says.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Names of the files directly in a directory; a missing directory is empty.
    ///
    /// # Errors
    /// What the disk says.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents (mode 0700); fine if it is there.
    ///
    /// # Errors
    /// What the disk says.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Makes renames and removals in `dir` durable.
    ///
    /// # Errors
    /// What the disk says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}
