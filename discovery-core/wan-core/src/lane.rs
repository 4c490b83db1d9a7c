//! The three roads of a link. A lost segment of one connection holds everything behind it, so what a person waits for
//! does not share one with what is large.

use discovery_core::value::Class;
use std::fmt;

/// One road. The order is the priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small and waited for.
    Interactive,
    /// Large and waited for.
    Bulk,
    /// Nobody waits.
    Background,
}

impl Lane {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Bulk, Self::Background];

    /// Its number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Interactive => 0,
            Self::Bulk => 1,
            Self::Background => 2,
        }
    }

    /// The inverse of [`Lane::code`].
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Interactive),
            1 => Some(Self::Bulk),
            2 => Some(Self::Background),
            _ => None,
        }
    }

    /// One word for logs and labels.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
            Self::Background => "background",
        }
    }
}

impl From<Class> for Lane {
    fn from(class: Class) -> Self {
        match class {
            Class::Interactive => Self::Interactive,
            Class::Bulk => Self::Bulk,
            Class::Background => Self::Background,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Which lanes a connection carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LaneSet(u8);

impl LaneSet {
    /// None.
    pub const NONE: Self = Self(0);
    /// All: one connection for everything, where three cannot be had.
    pub const ALL: Self = Self(0b111);

    /// Just this one.
    #[must_use]
    pub const fn only(lane: Lane) -> Self {
        Self(1 << lane.code())
    }

    /// Whether `lane` is among them.
    #[must_use]
    pub const fn has(self, lane: Lane) -> bool {
        self.0 & Self::only(lane).0 != 0
    }

    /// Both sets' lanes.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether a lane is in both.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// One bit a lane.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The inverse of [`LaneSet::bits`]; none for an empty set or a lane that does not exist.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits == 0 || bits > Self::ALL.0 { None } else { Some(Self(bits)) }
    }

    /// Its lanes, the most urgent first.
    pub fn iter(self) -> impl Iterator<Item = Lane> {
        Lane::ALL.into_iter().filter(move |lane| self.has(*lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        let set = LaneSet::only(Lane::Bulk).and(LaneSet::only(Lane::Background));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Lane::Bulk, Lane::Background]);
        assert_eq!(LaneSet::from_bits(set.bits()), Some(set));
        assert!(set.meets(LaneSet::ALL) && !set.meets(LaneSet::only(Lane::Interactive)));
        assert_eq!(LaneSet::ALL.without(set), LaneSet::only(Lane::Interactive));
        assert_eq!((LaneSet::from_bits(0), LaneSet::from_bits(8)), (None, None));
    }

    #[test]
    fn every_lane_has_one_code() {
        for lane in Lane::ALL {
            assert_eq!(Lane::from_code(lane.code()), Some(lane));
        }
        assert_eq!(Lane::from_code(3), None);
    }
}
