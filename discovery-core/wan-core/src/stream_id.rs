//! Names of streams: `counter << 3 | lane << 1 | side`. The lane is in the name, so that no frame can move a stream
//! to another connection; the counter only grows, so that no name is used twice.

use crate::lane::Lane;
use std::fmt;

/// Which of the two nodes. It follows from their ids, not from who connected, so both know it without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The node whose id is smaller.
    First,
    /// The other.
    Second,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    const fn bit(self) -> u64 {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }
}

/// One stream of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

impl StreamId {
    /// The `counter`th stream, from 1, that `side` opens on `lane`. None when the counter is spent.
    #[must_use]
    pub fn new(side: Side, lane: Lane, counter: u64) -> Option<Self> {
        let fits = (1..=COUNTER_MAX).contains(&counter);
        fits.then(|| Self(counter << 3 | u64::from(lane.code()) << 1 | side.bit()))
    }

    /// As it stands in a frame; none for a number that names no stream.
    #[must_use]
    pub fn from_wire(wire: u64) -> Option<Self> {
        let lane = Lane::from_code(u8::try_from(wire >> 1 & 0b11).unwrap_or(u8::MAX));
        let fits = (1..=COUNTER_MAX).contains(&(wire >> 3));
        lane.filter(|_| fits).map(|_| Self(wire))
    }

    /// For a frame.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        self.0
    }

    /// The lane that carries it.
    #[must_use]
    pub fn lane(self) -> Lane {
        match self.0 >> 1 & 0b11 {
            0 => Lane::Interactive,
            1 => Lane::Bulk,
            _ => Lane::Background,
        }
    }

    /// Who opened it.
    #[must_use]
    pub const fn side(self) -> Side {
        if self.0 & 1 == 0 { Side::First } else { Side::Second }
    }

    /// Its place among those that its side opened on its lane.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.0 >> 3
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}/{}", self.side(), self.lane(), self.counter())
    }
}

/// What a frame can name.
const COUNTER_MAX: u64 = crate::varint::MAX >> 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_who_opened_it_and_where() {
        let id = StreamId::new(Side::Second, Lane::Background, 7).unwrap();
        assert_eq!((id.side(), id.lane(), id.counter()), (Side::Second, Lane::Background, 7));
        assert_eq!(StreamId::from_wire(id.to_wire()), Some(id));
    }

    #[test]
    fn zero_and_the_fourth_lane_are_no_streams() {
        for wire in [0, 1, 5, 0b110, 1 << 3 | 0b110, 1 << 62] {
            assert_eq!(StreamId::from_wire(wire), None, "{wire}");
        }
        assert_eq!(StreamId::new(Side::First, Lane::Bulk, 0), None);
        assert_eq!(StreamId::new(Side::First, Lane::Bulk, COUNTER_MAX + 1), None);
    }
}
