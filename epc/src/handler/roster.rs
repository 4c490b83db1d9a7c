//! Which sessions run, and what was last decided for each user: what `status`, `sessions` and `trace` print. Users are
//! keyed hashes; no mailbox, subject, octet of mail or credential can stand here.

use discovery_core::{
    id::{ServerId, UserKey},
    now::UnixMillis,
};
use imap_core::session::Event;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A session that runs.
#[derive(Debug)]
pub struct Card {
    /// Its number, unique within the process.
    pub number: u64,
    /// From where.
    pub client: SocketAddr,
    /// To which server.
    pub server: ServerId,
    /// Since when.
    pub since: UnixMillis,
    changing: Mutex<Changing>,
    to_client: AtomicU64,
    from_client: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Changing {
    user: Option<UserKey>,
    state: &'static str,
}

impl Card {
    /// Whose, once the origin accepted a login.
    #[must_use]
    pub fn user(&self) -> Option<UserKey> {
        lock(&self.changing).user
    }

    /// Its state in one word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        lock(&self.changing).state
    }

    /// Octets from and to the client.
    #[must_use]
    pub fn octets(&self) -> (u64, u64) {
        (self.from_client.load(Ordering::Relaxed), self.to_client.load(Ordering::Relaxed))
    }

    pub(super) fn update(&self, user: Option<UserKey>, state: &'static str, octets: (u64, u64)) {
        *lock(&self.changing) = Changing { user, state };
        self.from_client.store(octets.0, Ordering::Relaxed);
        self.to_client.store(octets.1, Ordering::Relaxed);
    }
}

/// Something that was decided for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: UnixMillis,
    /// In which session.
    pub session: u64,
    /// What it was about, in one word: `login`, `fetch`, `fill`, `command`, `compress`, `tunnel`, `desync`.
    pub what: &'static str,
    /// What was decided, in one word.
    pub outcome: &'static str,
    /// How many messages it named.
    pub messages: u32,
    /// How many octets.
    pub octets: u64,
}

/// Sessions and decisions of a process.
#[derive(Debug, Default)]
pub struct Roster {
    running: Mutex<BTreeMap<u64, Arc<Card>>>,
    traces: Mutex<Traces>,
}

#[derive(Debug, Default)]
struct Traces {
    /// With when each user was last seen here, counted in decisions.
    users: HashMap<UserKey, (u64, VecDeque<Decision>)>,
    clock: u64,
}

/// Decisions kept per user: some minutes of a busy mail reader.
pub const DECISIONS_MAX: usize = 200;
/// Users of whom decisions are kept; the one not seen for longest is forgotten. About 40 MB when full.
const USERS_MAX: u32 = 4096;

impl Roster {
    /// The sessions that run, in the order of their numbers.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<Card>> {
        lock(&self.running).values().cloned().collect()
    }

    /// How many run.
    #[must_use]
    pub fn running(&self) -> usize {
        lock(&self.running).len()
    }

    /// The last decisions for `user`, oldest first; `None` when nothing is known of him.
    #[must_use]
    pub fn trace(&self, user: &UserKey) -> Option<Vec<Decision>> {
        lock(&self.traces).users.get(user).map(|(_, decisions)| decisions.iter().copied().collect())
    }

    /// Who has a trace.
    #[must_use]
    pub fn traced(&self) -> Vec<UserKey> {
        let mut users: Vec<_> = lock(&self.traces).users.keys().copied().collect();
        users.sort_unstable();
        users
    }

    pub(super) fn enter(
        &self,
        number: u64,
        client: SocketAddr,
        server: ServerId,
        since: UnixMillis,
    ) -> Arc<Card> {
        let card = Arc::new(Card {
            number,
            client,
            server,
            since,
            changing: Mutex::new(Changing { user: None, state: "connecting" }),
            to_client: AtomicU64::new(0),
            from_client: AtomicU64::new(0),
        });
        lock(&self.running).insert(number, Arc::clone(&card));
        card
    }

    pub(super) fn leave(&self, number: u64) {
        lock(&self.running).remove(&number);
    }

    pub(super) fn decided(&self, user: UserKey, decision: Decision) {
        let mut traces = lock(&self.traces);
        traces.clock += 1;
        let clock = traces.clock;
        if traces.users.len() >= USERS_MAX as usize && !traces.users.contains_key(&user) {
            let oldest = traces.users.iter().min_by_key(|(_, (seen, _))| *seen).map(|(user, _)| *user);
            if let Some(oldest) = oldest {
                traces.users.remove(&oldest);
            }
        }
        let (seen, decisions) = traces.users.entry(user).or_default();
        *seen = clock;
        if decisions.len() == DECISIONS_MAX {
            decisions.pop_front();
        }
        decisions.push_back(decision);
    }
}

impl Decision {
    /// What `event` says, if it is worth a line.
    pub(super) fn of(event: &Event, session: u64, at: UnixMillis) -> Self {
        let (what, outcome, messages, octets) = match event {
            Event::LoggedIn(_) => ("login", "accepted", 0, 0),
            Event::LoginRefused | Event::LoginRefusedFor { .. } => ("login", "refused", 0, 0),
            Event::Fetched { outcome, messages, octets } => ("fetch", outcome.word(), *messages, *octets),
            Event::Filled(octets) => ("fill", "kept", 1, *octets),
            Event::Foreseen { refused: true, .. } => ("foreseen", "login-refused", 0, 0),
            Event::Foreseen { in_vain: 0, .. } => ("foreseen", "asked", 0, 0),
            Event::Foreseen { .. } => ("foreseen", "in-vain", 0, 0),
            Event::FlagsProved { messages, .. } => ("flags", "proved", *messages, 0),
            Event::FlagsDoubted(doubt) => ("flags", doubt.word(), 0, 0),
            Event::Unread => ("fetch", "not-understood", 1, 0),
            Event::UnexpectedContinuation => ("command", "unexpected-continuation", 0, 0),
            Event::Compressing => ("compress", "on", 0, 0),
            Event::Tunnel(why) => ("tunnel", *why, 0, 0),
            Event::Desync(why) => ("desync", *why, 0, 0),
        };
        Self { at, session, what, outcome, messages, octets }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: u32) -> UserKey {
        let mut hash = [0; 16];
        hash[..4].copy_from_slice(&n.to_be_bytes());
        UserKey { version: 1, hash }
    }

    fn decision(octets: u64) -> Decision {
        Decision { at: UnixMillis(0), session: 1, what: "fetch", outcome: "store", messages: 1, octets }
    }

    #[test]
    fn the_last_decisions_are_kept_in_order() {
        let roster = Roster::default();
        assert_eq!(roster.trace(&user(1)), None);
        for octets in 0..DECISIONS_MAX as u64 + 5 {
            roster.decided(user(1), decision(octets));
        }
        let octets: Vec<_> = roster.trace(&user(1)).expect("known").iter().map(|d| d.octets).collect();
        assert_eq!(octets, (5..DECISIONS_MAX as u64 + 5).collect::<Vec<_>>());
    }

    #[test]
    fn the_user_not_seen_for_longest_is_forgotten() {
        let roster = Roster::default();
        for n in 0..USERS_MAX {
            roster.decided(user(n), decision(0));
        }
        roster.decided(user(0), decision(1));
        roster.decided(user(u32::MAX), decision(0));
        assert_eq!(roster.trace(&user(1)), None);
        assert_eq!(roster.trace(&user(0)).map(|d| d.len()), Some(2));
        assert_eq!(roster.traced().len(), USERS_MAX as usize);
    }
}
