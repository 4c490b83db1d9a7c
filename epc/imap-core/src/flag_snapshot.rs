//! The flags of a whole mailbox as its origin told them, with the HIGHESTMODSEQ from which on a change would have a
//! higher one (RFC 7162 §3.1). At the next start the origin is asked only for what has changed since; whatever it then
//! does not mention is as it was. What is in here is never told by itself: only an answer of the origin makes it true of
//! another moment.
//!
//! For each message of a snapshot: these are its flags at some moment at which no change of them had a MODSEQ above the
//! snapshot's that the origin will not mention.

use crate::{
    catalog::MailboxKey,
    uid::{Uid, UidValidity},
};
use bytes::Bytes;
use discovery_core::id::AccountKey;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// One mailbox's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagSnapshot {
    /// Of which generation.
    pub uid_validity: UidValidity,
    /// HIGHESTMODSEQ, said no later than the flags.
    pub modseq: u64,
    /// Whether the origin writes the UID behind the flags.
    pub uid_last: bool,
    /// Neighbours with the same flags, ascending.
    runs: Vec<Run>,
    /// Each list of flags once, with parentheses, without `\Recent`: that is true of one session only.
    lists: Vec<Bytes>,
}

/// All UIDs from `first` to `last` are messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    last: u32,
    list: usize,
}

impl FlagSnapshot {
    /// From UIDs in ascending order with their flags as the origin wrote them. `None` if they are too many or too
    /// different to be worth keeping.
    pub fn new<'a>(
        uid_validity: UidValidity,
        modseq: u64,
        uid_last: bool,
        flags: impl IntoIterator<Item = (Uid, &'a [u8])>,
    ) -> Option<Self> {
        let mut this = Self { uid_validity, modseq, uid_last, runs: Vec::new(), lists: Vec::new() };
        let mut known: BTreeMap<Bytes, usize> = BTreeMap::new();
        for (uid, raw) in flags {
            let kept = without_recent(raw)?;
            let list = match known.get(&kept) {
                Some(list) => *list,
                None if this.lists.len() >= LISTS_MAX => return None,
                None => {
                    this.lists.push(kept.clone());
                    known.insert(kept, this.lists.len() - 1);
                    this.lists.len() - 1
                }
            };
            let uid = uid.get();
            let full = this.runs.len() >= RUNS_MAX;
            match this.runs.last_mut() {
                Some(run) if run.last >= uid => return None,
                Some(run) if run.list == list && run.last + 1 == uid => run.last = uid,
                _ if full => return None,
                _ => this.runs.push(Run { first: uid, last: uid, list }),
            }
        }
        Some(this)
    }

    /// The list of a message, with parentheses.
    #[must_use]
    pub fn flags(&self, uid: Uid) -> Option<&Bytes> {
        let uid = uid.get();
        let at = self.runs.partition_point(|run| run.last < uid);
        let run = self.runs.get(at).filter(|run| run.first <= uid)?;
        self.lists.get(run.list)
    }

    /// What it takes in memory, about.
    #[must_use]
    pub fn octets(&self) -> usize {
        let lists: usize = self.lists.iter().map(|list| list.len() + size_of::<Bytes>()).sum();
        self.runs.len() * size_of::<Run>() + lists + size_of::<Self>()
    }
}

/// A list as it is for every session; `None` for what is no list.
fn without_recent(raw: &[u8]) -> Option<Bytes> {
    let inside = raw.strip_prefix(b"(")?.strip_suffix(b")")?;
    let flags: Vec<&[u8]> = inside.split(|o| *o == b' ').filter(|flag| !is_recent(flag)).collect();
    Some([b"(", flags.join(&b' ').as_slice(), b")"].concat().into())
}

/// Whether a flag is the one that belongs to a session.
#[must_use]
pub fn is_recent(flag: &[u8]) -> bool {
    flag.eq_ignore_ascii_case(b"\\Recent")
}

/// What one session leaves of a mailbox to the next.
#[derive(Clone, Debug)]
pub struct Known {
    /// How many messages there are.
    pub messages: u32,
    /// The origin says HIGHESTMODSEQ, or that there is none, to whoever opens it, not only to those who ask (CONDSTORE).
    pub says_modseq: bool,
    /// Its flags, where a MODSEQ was said that lasts.
    pub snapshot: Option<Arc<FlagSnapshot>>,
}

/// Keeps what is known from one session to the next.
pub trait FlagMemory: Send + Sync {
    /// What is known of a mailbox, if asking for changes is better than asking for all.
    fn recall(&self, account: &AccountKey, name: &[u8]) -> Option<Known>;
    /// The newest of a mailbox of an origin that can be asked for changes; flags that are known stay known if there are
    /// none with it.
    fn remember(&self, mailbox: &MailboxKey, known: Known);
}

/// All that a process knows; what was not used for longest goes first.
#[derive(Debug, Default)]
pub struct FlagSnapshots {
    kept: BTreeMap<(AccountKey, Bytes), Kept>,
    octets: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    known: Known,
    used: u64,
}

impl FlagMemory for Mutex<FlagSnapshots> {
    fn recall(&self, account: &AccountKey, name: &[u8]) -> Option<Known> {
        self.lock().unwrap_or_else(PoisonError::into_inner).recall(account, name)
    }

    fn remember(&self, mailbox: &MailboxKey, known: Known) {
        self.lock().unwrap_or_else(PoisonError::into_inner).remember(mailbox, known);
    }
}

impl FlagSnapshots {
    fn recall(&mut self, account: &AccountKey, name: &[u8]) -> Option<Known> {
        self.clock += 1;
        let kept = self.kept.get_mut(&(account.clone(), Bytes::copy_from_slice(name)))?;
        kept.used = self.clock;
        Some(kept.known.clone())
    }

    fn remember(&mut self, mailbox: &MailboxKey, mut known: Known) {
        let key = (mailbox.account.clone(), mailbox.name.clone());
        let before = self.forget(&key);
        known.snapshot = known.snapshot.or_else(|| before?.snapshot);
        let octets = known.octets();
        // A smaller one is told as fast without.
        if known.messages < WORTH_MESSAGES || octets > OCTETS_MAX {
            return;
        }
        while self.octets + octets > OCTETS_MAX {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.forget(&oldest);
        }
        self.clock += 1;
        self.octets += octets;
        self.kept.insert(key, Kept { known, used: self.clock });
    }

    fn forget(&mut self, key: &(AccountKey, Bytes)) -> Option<Known> {
        let kept = self.kept.remove(key)?;
        self.octets -= kept.known.octets();
        Some(kept.known)
    }
}

impl Known {
    fn octets(&self) -> usize {
        KEY_OCTETS + self.snapshot.as_ref().map_or(0, |snapshot| snapshot.octets())
    }
}

/// What a mailbox's name, its account and its place take, about.
const KEY_OCTETS: usize = 256;
/// The flags of fewer messages fit into what a server sends at once: 10 segments of 1448 octets, some 42 octets a
/// message.
const WORTH_MESSAGES: u32 = 256;
/// Of all mailboxes together: 1,000 of 10,000 messages with few changes of flags between neighbours.
const OCTETS_MAX: usize = 32 * 1024 * 1024;
/// Different lists of flags in a mailbox; with more it is no longer cheap.
const LISTS_MAX: usize = 4_096;
/// Places in a mailbox at which flags change, or UIDs are missing.
const RUNS_MAX: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::id::{ServerId, UserKey};
    use proptest::prelude::*;

    fn snapshot(flags: &[(u32, &str)]) -> Option<FlagSnapshot> {
        let flags = flags.iter().map(|(uid, list)| (Uid::new(*uid).unwrap(), list.as_bytes()));
        FlagSnapshot::new(UidValidity::new(7).unwrap(), 5, false, flags)
    }

    fn text(snapshot: &FlagSnapshot, uid: u32) -> Option<&str> {
        snapshot.flags(Uid::new(uid).unwrap()).map(|list| std::str::from_utf8(list).unwrap())
    }

    #[test]
    fn neighbours_with_the_same_flags_are_kept_once() {
        let all = snapshot(&[(1, "(\\Seen)"), (2, "(\\Seen)"), (4, "(\\Seen)"), (5, "()"), (6, "(\\Seen)")]);
        let all = all.unwrap();
        assert_eq!((all.runs.len(), all.lists.len()), (4, 2));
        let known: Vec<_> = (1..=7).map(|uid| text(&all, uid)).collect();
        let seen = Some("(\\Seen)");
        assert_eq!(known, [seen, seen, None, seen, Some("()"), seen, None]);
    }

    #[test]
    fn recent_belongs_to_one_session() {
        let all = snapshot(&[
            (1, "(\\Recent)"),
            (2, "(\\Seen \\Recent $x)"),
            (3, "(\\recent \\Seen)"),
            (4, "(\\RecentX)"),
        ]);
        let all = all.unwrap();
        let known: Vec<_> = (1..=4).filter_map(|uid| text(&all, uid)).collect();
        assert_eq!(known, ["()", "(\\Seen $x)", "(\\Seen)", "(\\RecentX)"]);
    }

    #[test]
    fn what_cannot_be_is_not_kept() {
        for wrong in [&[(2, "()"), (1, "()")][..], &[(1, "()"), (1, "()")], &[(1, "NIL")]] {
            assert_eq!(snapshot(wrong), None, "{wrong:?}");
        }
        let many: Vec<(u32, String)> = (1..6_000).map(|n| (n, format!("(k{n})"))).collect();
        let many: Vec<(u32, &str)> = many.iter().map(|(n, list)| (*n, list.as_str())).collect();
        assert_eq!(snapshot(&many), None);
    }

    fn mailbox(user: u16) -> MailboxKey {
        let server = ServerId::new("mail.example.org").unwrap();
        let mut hash = [0; 16];
        hash[..2].copy_from_slice(&user.to_le_bytes());
        MailboxKey {
            account: AccountKey { server, user: UserKey { version: 1, hash } },
            name: Bytes::from_static(b"INBOX"),
            uid_validity: UidValidity::new(7).unwrap(),
            utf8: false,
        }
    }

    fn of_size(messages: u32) -> Known {
        // The worst: no two neighbours are alike.
        let flags =
            (1..=messages).map(|n| (Uid::new(n).unwrap(), [&b"()"[..], b"(\\Seen)"][(n % 2) as usize]));
        let snapshot = FlagSnapshot::new(UidValidity::new(7).unwrap(), 5, false, flags).map(Arc::new);
        Known { messages, says_modseq: false, snapshot }
    }

    fn without_flags(messages: u32) -> Known {
        Known { messages, says_modseq: false, snapshot: None }
    }

    #[test]
    fn memory_is_bounded_and_the_least_used_go_first() {
        let mut all = FlagSnapshots::default();
        for user in 0..100 {
            all.remember(&mailbox(user), of_size(40_000));
            assert!(all.recall(&mailbox(0).account, b"INBOX").is_some(), "{user}");
        }
        assert!(all.octets <= OCTETS_MAX && all.kept.len() > 20, "{} in {}", all.kept.len(), all.octets);
        assert!(all.recall(&mailbox(1).account, b"INBOX").is_none());
        assert!(all.recall(&mailbox(99).account, b"INBOX").is_some());
        // A mailbox that has become small is told as fast without.
        all.remember(&mailbox(99), of_size(10));
        assert!(all.recall(&mailbox(99).account, b"INBOX").is_none());
        (0..100).for_each(|user| all.remember(&mailbox(user), of_size(10)));
        assert_eq!((all.octets, all.kept.len()), (0, 0));
    }

    #[test]
    fn flags_stay_known_until_there_are_newer_ones() {
        let mut all = FlagSnapshots::default();
        let flags = |all: &mut FlagSnapshots| {
            all.recall(&mailbox(1).account, b"INBOX").map(|known| known.snapshot.is_some())
        };
        all.remember(&mailbox(1), without_flags(300));
        assert_eq!(flags(&mut all), Some(false));
        all.remember(&mailbox(1), of_size(300));
        all.remember(&mailbox(1), without_flags(301));
        assert_eq!(flags(&mut all), Some(true));
        assert_eq!(all.octets, all.kept.values().map(|kept| kept.known.octets()).sum::<usize>());
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(flags in proptest::collection::btree_map(1u32..200, 0usize..3, 0..80)) {
            let lists = ["()", "(\\Seen)", "(\\Seen $a)"];
            let said: Vec<(u32, &str)> = flags.iter().map(|(uid, list)| (*uid, lists[*list])).collect();
            let all = snapshot(&said).unwrap();
            for uid in 1..200 {
                prop_assert_eq!(text(&all, uid), flags.get(&uid).map(|list| lists[*list]));
            }
        }
    }
}
