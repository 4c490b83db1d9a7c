//! What the message store and the segment store share below themselves: the directory they live in, the lock that keeps
//! a second process out, and the two sealers (decisions/0006). With the feature `faults`, for tests, a disk in
//! memory that tears, loses and fills up. Knows nothing of messages or segments.

#[cfg(any(test, feature = "faults"))]
pub mod battery;
mod directory;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
mod lock_file;
mod seal;

pub use directory::DirectoryDisk;
pub use lock_file::{LockFile, Refused};
pub use seal::{AesGcm, CheckOnly, NoRandom, random};
