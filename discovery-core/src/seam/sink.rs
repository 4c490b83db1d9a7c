//! Where observed values go: never blocks, never fails, may drop and then counts.

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Taken as it was.
    Taken,
    /// Merged into one that waits already.
    Coalesced,
    /// The sink is full; dropped and counted.
    Dropped,
}

/// Takes values of one kind.
pub trait Sink<T>: Send + Sync {
    /// Hands over `value`; returns at once.
    fn put(&self, value: T) -> Put;
}

/// Takes everything and keeps nothing: for a node without the room that would listen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl<T> Sink<T> for Nowhere {
    fn put(&self, _: T) -> Put {
        Put::Taken
    }
}
