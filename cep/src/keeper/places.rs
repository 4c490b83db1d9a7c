//! Mailboxes: the one at home, and those that are visited from there.

use super::Keeper;
use bytes::Bytes;
use discovery_core::now::Now;
use imap_core::{catalog::MailboxKey, retained::UidRanges};
use std::time::{Duration, Instant};

/// A mailbox that is looked at.
#[derive(Debug)]
pub(super) struct Place {
    /// As its name goes on the wire.
    pub(super) written: Bytes,
    pub(super) name: Bytes,
    pub(super) key: Option<MailboxKey>,
    /// As the origin listed it last.
    pub(super) known: Option<UidRanges>,
}

impl Place {
    pub(super) fn inbox() -> Self {
        let name = Bytes::from_static(b"INBOX");
        Self { written: name.clone(), name, key: None, known: None }
    }

    /// `None` where the name cannot be said in quotes.
    fn named(name: &Bytes, utf8: bool) -> Option<Self> {
        let sayable = |o: &u8| !matches!(o, 0 | b'\r' | b'\n') && (utf8 || o.is_ascii());
        if name.is_empty() || !name.iter().all(sayable) {
            return None;
        }
        let mut written = vec![b'"'];
        for octet in name {
            if matches!(octet, b'"' | b'\\') {
                written.push(b'\\');
            }
            written.push(*octet);
        }
        written.push(b'"');
        Some(Self { written: written.into(), name: name.clone(), key: None, known: None })
    }
}

impl Keeper {
    /// The mailbox that is open, or being opened.
    pub(super) fn here(&self) -> &Place {
        self.away.and_then(|at| self.others.get(at)).unwrap_or(&self.home)
    }

    pub(super) fn here_mut(&mut self) -> &mut Place {
        self.away.and_then(|at| self.others.get_mut(at)).unwrap_or(&mut self.home)
    }

    /// Whether the mailbox could be opened; it is under way then.
    pub(super) fn go(&mut self, name: &Bytes, now: Now) -> bool {
        if *name == self.home.name {
            self.go_home(now);
            return true;
        }
        let Some(place) = Place::named(name, self.facts.utf8) else { return false };
        if self.away.is_none() {
            self.left_home = now.mono;
        }
        let at = self.others.iter().position(|other| other.name == *name);
        let place = at.map_or(place, |at| self.others.remove(at));
        if self.others.len() >= OTHERS_MAX {
            self.others.remove(0);
        }
        self.away = Some(self.others.len());
        self.others.push(place);
        self.open(now);
        true
    }

    pub(super) fn go_home(&mut self, now: Now) {
        self.away = None;
        self.open(now);
    }

    /// Another mailbox may not be opened: there is nothing in it for anybody here.
    pub(super) fn turned_away(&mut self, now: Now) {
        if let Some(place) = self.away.take().map(|at| self.others.remove(at)) {
            let ordered = self.order.take().map(|order| order.mailbox).filter(|key| key.name == place.name);
            if let Some(key) = ordered.or(place.key) {
                self.preload.listed(&key, &UidRanges::default(), now);
            }
        }
        self.awaited = None;
        self.open(now);
    }

    /// Something came or went in a mailbox that is not open.
    pub(super) fn elsewhere(&mut self, name: Bytes) {
        if self.visits.len() < OTHERS_MAX && !self.visits.contains(&name) {
            self.visits.push_back(name);
        }
    }

    /// The next mailbox of which there is news, unless one was looked at a moment ago.
    pub(super) fn next_visit(&mut self, now: Now) -> Option<Bytes> {
        if self.visits_from().is_some_and(|from| from > now.mono) {
            return None;
        }
        let name = self.visits.pop_front()?;
        if self.visits.is_empty() {
            self.visited = Some(now.mono);
        }
        Some(name)
    }

    /// When mailboxes of which there is news may be looked at: people move mail in bursts.
    pub(super) fn visits_from(&self) -> Option<Instant> {
        self.visited.map(|visited| visited + VISITS_PAUSE)
    }

    /// Where the origin does not tell of other mailboxes, those of which something was fetched are visited in turn.
    pub(super) fn tour(&mut self, now: Now) {
        if self.is_notified() || self.toured + TOUR > now.mono {
            return;
        }
        self.toured = now.mono;
        let last: Vec<Bytes> =
            self.others.iter().rev().take(TOUR_MAX).map(|place| place.name.clone()).collect();
        for name in last {
            self.elsewhere(name);
        }
    }

    /// Whether the origin tells of other mailboxes.
    pub(super) fn is_notified(&self) -> bool {
        self.facts.capabilities.has("NOTIFY") && !self.untold
    }
}

/// What NOTIFY (RFC 5465) shall tell.
pub(super) const NOTIFY: &str = "NOTIFY SET (SELECTED (MessageNew (UID) MessageExpunge)) \
    (personal (MessageNew MessageExpunge))";
/// Mailboxes other than home whose listing is remembered; of one forgotten it is not noticed what went meanwhile.
const OTHERS_MAX: usize = 8;
/// Between one round of visits and the next.
const VISITS_PAUSE: Duration = Duration::from_secs(30);
/// Visited in a tour.
const TOUR_MAX: usize = 4;
/// Between tours.
pub(super) const TOUR: Duration = Duration::from_secs(180);
/// How long nobody listens at home, where new mail comes: then it is looked at first.
pub(super) const AWAY_MAX: Duration = Duration::from_secs(30);
