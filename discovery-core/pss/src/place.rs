//! Where octets lie: a generation, and an offset in its log file. And what the world calls them: a space, and an
//! address in it.

use std::fmt;

/// A log file's number. Higher is newer; none is used twice while anything still names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// A position in the store: content offset `offset` of `generation`. Offsets count octets as they were, not as they lie
/// sealed in the file, and may leave gaps between blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The log file.
    pub generation: Generation,
    /// Below 2^26.
    pub offset: u32,
}

/// Offsets of one generation.
pub(crate) const OFFSETS: u32 = 1 << 26;

impl Place {
    pub(crate) fn plus(self, octets: u32) -> Self {
        Self { offset: self.offset.saturating_add(octets), ..self }
    }
}

/// One numbering of octets, a virtual log: of one writer, towards one reader. The caller makes it of both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(pub [u8; 16]);

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Space({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

/// Addresses `from..to` of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// The first address.
    pub from: u64,
    /// The first one behind.
    pub to: u64,
}

/// Where a sender may find octets again: the hash of a chunk, and where in the octets it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Only the lower 48 bits count.
    pub hash: u64,
    /// Offset in what is appended.
    pub at: u32,
}
