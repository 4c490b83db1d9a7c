//! Encryption at rest, for blob blocks, index values and log blocks alike.

use std::fmt;

/// What is sealed, bound into the seal so that a value cannot be moved to another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealContext<'a> {
    /// The kind of place: `blob`, `item`, `log`. Different kinds never open each other's seals.
    pub kind: &'static str,
    /// The place itself: a file's random id, a row's key.
    pub place: &'a [u8],
    /// The block's number in it.
    pub block: u64,
}

/// The octets are not what was sealed, or were sealed for another place or under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tampered;

impl fmt::Display for Tampered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sealed octets were changed, moved, or sealed under another key")
    }
}

impl std::error::Error for Tampered {}

/// Seals and unseals octets, and makes ids that tell a thief nothing.
pub trait Sealer: Send + Sync {
    /// Whether anything is encrypted at all; `false` for the sealer that only checks.
    fn seals(&self) -> bool;
    /// Seals `octets` in place; they grow by at most [`Sealer::overhead`].
    fn seal(&self, context: SealContext<'_>, octets: &mut Vec<u8>);
    /// Undoes [`Sealer::seal`] in place.
    ///
    /// # Errors
    /// [`Tampered`]; the octets are then worthless.
    fn unseal(&self, context: SealContext<'_>, octets: &mut Vec<u8>) -> Result<(), Tampered>;
    /// By how many octets a sealed block is longer than a plain one.
    fn overhead(&self) -> usize;
    /// The opaque id of content with this plain digest: keyed when sealed, so that a file name does not prove
    /// possession of a known message.
    fn id(&self, plain: [u8; 32]) -> [u8; 32];
}
