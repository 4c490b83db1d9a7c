//! What is handed over when a client leaves and its origin connection lives on (US 9,172,620, the CEP passages):
//! the stream, and just enough of what the session knew to watch the mailbox. No view of the client's, no
//! credential: whoever holds it can do only what the origin still lets this one connection do.

use crate::{capability::Capabilities, catalog::MailboxKey};
use bytes::Bytes;
use discovery_core::{
    id::{AccountKey, ServerId},
    now::Now,
};
use std::ops::RangeInclusive;

/// A live, authenticated origin connection without a client.
#[derive(Debug)]
pub struct Retained<Io> {
    /// The stream, with TLS and compression as they stand.
    pub io: Io,
    /// Octets of the origin that were read and belong to nobody yet.
    pub ahead: Vec<Bytes>,
    /// What the session knew.
    pub facts: Facts,
}

/// What a session knew when its client left.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The session's number; unique within the process, so fills may go on under it.
    pub number: u64,
    /// The last fill that the session named.
    pub last_fill: u64,
    /// Part of the tags of our own commands.
    pub nonce: [u8; 6],
    /// Whose.
    pub account: AccountKey,
    /// When the origin accepted the login.
    pub authenticated: Now,
    /// Whether the credential was a token, which may have expired without a word of the origin.
    pub token: bool,
    /// What the origin offers.
    pub capabilities: Capabilities,
    /// Whether UTF8=ACCEPT is on.
    pub utf8: bool,
    /// The open mailbox, if one was and may be stored.
    pub mailbox: Option<Watched>,
    /// The tag of an IDLE that the origin is still in.
    pub idle: Option<Bytes>,
}

/// An open mailbox.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Scope of what is stored.
    pub key: MailboxKey,
    /// The name as it goes on the wire, quotes and all.
    pub written: Bytes,
    /// Which messages there were, if all UIDs were known.
    pub uids: Option<UidRanges>,
}

/// Something a keeper of sessions must know of what happens with clients.
#[derive(Debug)]
pub enum Handed<Io> {
    /// A client left and its connection lives on.
    Left(Box<Retained<Io>>),
    /// The origin accepted a login of this account.
    LoggedIn(AccountKey),
    /// A client for which that was said has gone: said once for each, before [`Handed::Left`] if that follows.
    LoggedOut(AccountKey),
    /// The origin refused a login that named this account.
    Refused(AccountKey),
    /// The origin has too many connections of this account, it said to a login.
    Limited(AccountKey),
    /// Every session with this server shall end.
    ServerGone(ServerId),
}

/// UIDs as ascending, disjoint ranges: a mailbox of 5,000 messages with a gap after each tenth takes 4 KB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UidRanges(Vec<(u32, u32)>);

impl UidRanges {
    /// Of numbers in any order.
    #[must_use]
    pub fn of(uids: impl IntoIterator<Item = u32>) -> Self {
        Self::of_ranges(uids.into_iter().map(|uid| uid..=uid))
    }

    /// Of ranges in any order; empty ones and zero are left out.
    #[must_use]
    pub fn of_ranges(ranges: impl IntoIterator<Item = RangeInclusive<u32>>) -> Self {
        let mut sorted: Vec<(u32, u32)> = ranges
            .into_iter()
            .map(|range| ((*range.start()).max(1), *range.end()))
            .filter(|(from, to)| from <= to)
            .collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (from, to) in sorted {
            match joined.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        joined.shrink_to_fit();
        Self(joined)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| u64::from(to - from) + 1).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (from, to) in &self.0 {
            let mut from = u64::from(*from);
            let to = u64::from(*to);
            let at = other.0.partition_point(|(_, end)| u64::from(*end) < from);
            for (cut_from, cut_to) in other.0.iter().skip(at) {
                if u64::from(*cut_from) > to || from > to {
                    break;
                }
                if let Some(before) = u64::from(*cut_from).checked_sub(1).filter(|before| *before >= from) {
                    left.push((from, before));
                }
                from = from.max(u64::from(*cut_to) + 1);
            }
            if from <= to {
                left.push((from, to));
            }
        }
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self(left.into_iter().map(|(from, to)| (number(from), number(to))).collect())
    }

    /// One by one, the largest first.
    pub fn newest_first(&self) -> impl Iterator<Item = u32> {
        self.0.iter().rev().flat_map(|(from, to)| (*from..=*to).rev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_the_set(a in prop::collection::btree_set(1_u32..80, 0..60),
                              b in prop::collection::btree_set(1_u32..80, 0..60)) {
            let (ra, rb) = (UidRanges::of(a.iter().copied()), UidRanges::of(b.iter().copied()));
            prop_assert_eq!(ra.len(), a.len() as u64);
            let left: Vec<u32> = ra.without(&rb).newest_first().collect();
            let mut wanted: Vec<u32> = a.difference(&b).copied().collect();
            wanted.reverse();
            prop_assert_eq!(left, wanted);
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_no_trouble() {
        let all = UidRanges::of_ranges([0..=u32::MAX]);
        assert_eq!(all.len(), u64::from(u32::MAX));
        assert!(all.without(&all).is_empty());
        let most = all.without(&UidRanges::of([1, u32::MAX]));
        assert_eq!(most.len(), u64::from(u32::MAX) - 2);
        assert_eq!(UidRanges::of([]).newest_first().count(), 0);
    }
}
