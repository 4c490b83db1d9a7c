//! One record of the database, and the rule that updates it.
//!
//! US 9,172,620, 'Each record includes': user, object, first and last access, a count, 'and possibly other
//! fields'. Ours: how often the object was there to be used and was passed over, and its last change.

use discovery_core::{id::UserKey, now::UnixMillis, value::ObjectKey};

/// Which record: one user and one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Whose.
    pub user: UserKey,
    /// Of what.
    pub object: ObjectKey,
}

/// What is known of one user and one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was first used (or passed over).
    pub first: UnixMillis,
    /// When it was last used (or passed over).
    pub last: UnixMillis,
    /// How often it was used.
    pub count: u32,
    /// Other: how often it was there and was passed over.
    pub passed: u32,
    /// Other: when the object last changed, for protocols that ask (US 9,172,620, 'the last modified time').
    pub modified: Option<UnixMillis>,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The user used it.
    Used,
    /// It was there, the user was there, and he did not use it.
    Passed,
    /// It was last changed then.
    Modified(UnixMillis),
}

impl Record {
    /// The record after `event` at `at`. 'If the object record does not exist a new record is created ... with
    /// the timestamps set to the current time and the count initialized to 1. If the record already exists the
    /// count is incremented and the last access time is updated.' A clock set back never moves `last` back.
    #[must_use]
    pub fn after(before: Option<Self>, event: Event, at: UnixMillis) -> Self {
        let new = Self { first: at, last: at, count: 0, passed: 0, modified: None };
        let Self { first, last, count, passed, modified } = before.unwrap_or(new);
        let last = last.max(at);
        match event {
            Event::Used => Self { first, last, count: count.saturating_add(1), passed, modified },
            Event::Passed => Self { first, last, count, passed: passed.saturating_add(1), modified },
            // Not a use: neither counted nor a reason to be kept.
            Event::Modified(at) => {
                Self { first, last: before.map_or(last, |b| b.last), count, passed, modified: Some(at) }
            }
        }
    }

    /// The chance in parts of a thousand that it is used when it is there, for somebody who expected `prior`
    /// parts before with the confidence of `weight` observations.
    #[must_use]
    pub fn chance(&self, prior: u64, weight: u64) -> u64 {
        let (count, passed) = (u64::from(self.count), u64::from(self.passed));
        (count * 1000 + weight * prior).checked_div(count + passed + weight).unwrap_or(prior)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> UnixMillis {
        UnixMillis(millis)
    }

    #[test]
    fn the_rule_of_the_patent_row_by_row() {
        let record = |first, last, count, passed, modified: Option<i64>| Record {
            first: at(first),
            last: at(last),
            count,
            passed,
            modified: modified.map(UnixMillis),
        };
        let full = record(1, 5, u32::MAX, u32::MAX, Some(2));
        for (before, event, when, after) in [
            (None, Event::Used, 10, record(10, 10, 1, 0, None)),
            (Some(record(10, 10, 1, 0, None)), Event::Used, 20, record(10, 20, 2, 0, None)),
            (Some(record(10, 20, 2, 0, Some(3))), Event::Used, 15, record(10, 20, 3, 0, Some(3))),
            (None, Event::Passed, 10, record(10, 10, 0, 1, None)),
            (Some(record(10, 20, 2, 1, None)), Event::Passed, 30, record(10, 30, 2, 2, None)),
            (Some(record(10, 20, 2, 1, None)), Event::Modified(at(25)), 30, record(10, 20, 2, 1, Some(25))),
            (None, Event::Modified(at(25)), 30, record(30, 30, 0, 0, Some(25))),
            (Some(full), Event::Used, 6, record(1, 6, u32::MAX, u32::MAX, Some(2))),
        ] {
            assert_eq!(Record::after(before, event, at(when)), after, "{before:?} {event:?} {when}");
        }
    }

    #[test]
    fn a_chance_moves_from_the_prior_to_what_was_seen() {
        let record = |count, passed| Record { first: at(0), last: at(0), count, passed, modified: None };
        for (count, passed, prior, weight, chance) in [
            (0, 0, 600, 4, 600),
            (0, 0, 600, 0, 600),
            (4, 0, 600, 4, 800),
            (0, 4, 600, 4, 300),
            (50, 50, 900, 2, 507),
            (u32::MAX, 0, 0, 4, 999),
        ] {
            assert_eq!(record(count, passed).chance(prior, weight), chance, "{count}/{passed} from {prior}");
        }
    }
}
