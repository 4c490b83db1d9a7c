//! One kept session, without its streams.
//!
//! ```text
//!            ┌────────────── EXISTS, EXPUNGE, or time ──────────────┐
//!  (DONE) ─► EXAMINE + UID SEARCH ─► what is worth fetching, one order at a time ─► IDLE or a pause
//! ```
//! Orders in other mailboxes are followed there, by EXAMINE too, and so is what NOTIFY tells of them; then it goes home.
//! Only EXAMINE, never SELECT or CLOSE; only BODY.PEEK, never BODY: `\Recent`, `\Seen` and `\Deleted` messages stay
//! as their reader left them. EXAMINE again before fetching and at least every 3 minutes, because a server with
//! ACLs (Cyrus) answers NOOP and IDLE long after the right to read has gone. What is worth fetching, a [`Preload`]
//! says; new mail is looked for between any two of its orders.

mod fetched;
mod heard;
mod limits;
mod orders;
mod places;
mod round;
mod window;

pub use limits::{Limits, Why};

use bytes::Bytes;
use discovery_core::{now::Now, seam::advisor::Held};
use fetched::Reading;
use imap_core::{
    catalog::{CatalogOp, CatalogReply, FillId, RequestId},
    framer::{Direction, Framer},
    mutants,
    preload::{Order, Preload},
    retained::{Facts, UidRanges},
    uid::{Uid, UidValidity},
};
use places::{Place, TOUR};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// What the shell must do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Write this to the origin.
    ToServer(Bytes),
    /// Tell the store; what it answers goes to [`Keeper::handle_store`].
    Catalog(CatalogOp),
    /// Let no more than about so many octets be on their way from the origin.
    Window(u32),
    /// It is over; close the stream.
    Ended(Why),
}

/// What is done at the moment.
#[derive(Debug)]
enum Phase {
    /// The client's IDLE is being ended.
    LeavingIdle(Bytes),
    /// EXAMINE and UID SEARCH are with the origin.
    Opening { search: Bytes, examine: Bytes },
    /// The store is asked what it has.
    Asking(RequestId),
    /// An order is with the origin.
    Fetching(Bytes),
    /// The order may go on then.
    Waiting(Instant),
    /// IDLE; `true` once DONE was said.
    Idle(Bytes, bool),
    /// Nothing until then.
    Pausing(Instant),
    /// LOGOUT is with the origin.
    Leaving(Why),
    /// Over.
    Over,
}

/// See the module's documentation.
pub struct Keeper {
    facts: Facts,
    limits: Limits,
    preload: Box<dyn Preload>,
    home: Place,
    others: Vec<Place>,
    /// Which of the others is open; `None`: home is.
    away: Option<usize>,
    left_home: Instant,
    /// Other mailboxes of which there is news.
    visits: VecDeque<Bytes>,
    toured: Instant,
    /// NOTIFY was said.
    /// The tag under which NOTIFY was said.
    notified: Option<Bytes>,
    /// The origin will not tell, or no longer tells, what happens elsewhere.
    untold: bool,
    /// When the last of the mailboxes with news was looked at.
    visited: Option<Instant>,
    /// What the EXAMINE and SEARCH under way have said.
    validity: Option<UidValidity>,
    listed: Option<UidRanges>,
    opened: bool,
    /// A list came that cannot be read.
    misheard: bool,
    examined_at: Instant,
    /// When EXAMINE was said, and the shortest time so far until it was answered.
    examine_said: Instant,
    round_trip: Option<Duration>,
    /// Something changed meanwhile.
    stale: bool,
    /// Under way, or waiting.
    order: Option<Order>,
    /// Messages whose description the order under way still awaits, and what the store has of them; `None`: the store
    /// was not asked yet.
    awaited: Option<BTreeMap<Uid, Held>>,
    /// Whether the order under way has brought anything.
    brought: bool,
    /// When an order that must wait for long may go on.
    resume: Option<Instant>,
    phase: Phase,
    framer: Framer,
    reading: Option<Reading>,
    skipping: bool,
    tags: u64,
    requests: u64,
    left: Instant,
    /// Its user is connected too, by other connections.
    beside: bool,
    /// When the preload was last asked for orders.
    looked: Instant,
    asked: Instant,
    /// Fetched so far: messages and octets.
    fetched: (u64, u64),
    outputs: VecDeque<Output>,
}

impl Keeper {
    /// Takes a session over.
    #[must_use]
    pub fn new(facts: Facts, limits: Limits, preload: Box<dyn Preload>, now: Now) -> Self {
        let home = match facts.mailbox.clone() {
            Some(watched) => Place {
                written: watched.written,
                name: watched.key.name.clone(),
                key: Some(watched.key),
                known: watched.uids,
            },
            None => Place::inbox(),
        };
        let mut keeper = Self {
            limits,
            preload,
            home,
            others: Vec::new(),
            away: None,
            left_home: now.mono,
            visits: VecDeque::new(),
            toured: now.mono,
            notified: None,
            untold: false,
            visited: None,
            validity: None,
            listed: None,
            opened: false,
            misheard: false,
            examined_at: now.mono,
            examine_said: now.mono,
            round_trip: None,
            stale: false,
            order: None,
            awaited: None,
            brought: false,
            resume: None,
            phase: Phase::Over,
            framer: Framer::new(Direction::FromServer),
            reading: None,
            skipping: false,
            tags: 0,
            requests: 0,
            left: now.mono,
            beside: false,
            looked: now.mono,
            asked: now.mono,
            fetched: (0, 0),
            outputs: VecDeque::new(),
            facts,
        };
        if let (Some(key), Some(uids)) = (&keeper.home.key, &keeper.home.known) {
            // What was there before the client left, so that what comes now is known to be new.
            keeper.preload.listed(key, uids, now);
        }
        match keeper.facts.idle.clone() {
            Some(tag) => {
                keeper.send("DONE\r\n".into());
                keeper.phase = Phase::LeavingIdle(tag);
            }
            None => keeper.open(now),
        }
        keeper
    }

    /// Octets of the origin.
    pub fn handle_server(&mut self, now: Now, mut octets: Bytes) {
        while !matches!(self.phase, Phase::Over) {
            match self.framer.next(&mut octets) {
                Ok(Some(frame)) => {
                    // An answer that gets on is no answer owed. In IDLE and in a goodbye nothing is: `* OK Still here`
                    // renews neither.
                    if !matches!(self.phase, Phase::Idle(_, false) | Phase::Leaving(_)) {
                        self.asked = now.mono;
                    }
                    self.frame(now, frame);
                }
                Ok(None) => return,
                Err(_) => return self.over(now, Why::OriginGarbled),
            }
        }
    }

    /// The store's answer to a [`CatalogOp`].
    pub fn handle_store(&mut self, now: Now, reply: CatalogReply) {
        if let (CatalogReply::Resolved { request, rows }, Phase::Asking(asked)) = (reply, &self.phase)
            && request == *asked
        {
            self.asked = now.mono;
            self.resolved(now, rows);
        }
    }

    /// The origin's stream has ended.
    pub fn handle_closed(&mut self, now: Now) {
        let why = if let Phase::Leaving(why) = self.phase { why } else { Why::OriginLost };
        self.over(now, why);
    }

    /// Leaves the origin in good order.
    pub fn handle_end(&mut self, now: Now, why: Why) {
        if matches!(self.phase, Phase::Leaving(_) | Phase::Over) {
            return;
        }
        if let Phase::Idle(_, false) = self.phase {
            self.send("DONE\r\n".into());
        }
        let tag = self.tag();
        self.send(format!("{tag} LOGOUT\r\n"));
        self.asked = now.mono;
        if mutants::on("keeper-goes-on") {
            return;
        }
        self.phase = Phase::Leaving(why);
    }

    /// Whether the user is connected beside this session, which is a lane then: what he reads may be a reason to fetch
    /// more, so orders are looked for while the mailbox is watched. The time since he left begins when he leaves.
    pub fn handle_beside(&mut self, now: Now, beside: bool) {
        if std::mem::replace(&mut self.beside, beside) != beside {
            (self.left, self.looked) = (now.mono, now.mono);
        }
    }

    /// The deadline of [`Keeper::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        if now.mono >= self.ends() && !mutants::on("keeper-outlives-its-limit") {
            let token = self.facts.token && now.mono >= self.facts.authenticated.mono + self.limits.token;
            self.handle_end(now, if token { Why::Token } else { Why::Limit });
        }
        if self.looks_at().is_some_and(|at| at <= now.mono) {
            self.look(now);
        }
        match self.phase {
            Phase::Waiting(until) if until <= now.mono => self.go_on(now),
            Phase::Pausing(until) if until <= now.mono => {
                self.tour(now);
                self.open(now);
            }
            Phase::Idle(_, false) if self.idles_until() <= now.mono => {
                self.tour(now);
                self.leave_idle(now);
            }
            Phase::Leaving(why) if self.asked + LEAVE <= now.mono => self.over(now, why),
            // A store that does not answer has nothing.
            Phase::Asking(_) if self.asked + self.limits.patience <= now.mono => {
                self.resolved(now, Vec::new())
            }
            Phase::LeavingIdle(_) | Phase::Opening { .. } | Phase::Fetching(_) | Phase::Idle(_, true)
                if self.asked + self.limits.patience <= now.mono =>
            {
                self.over(now, Why::OriginGarbled);
            }
            Phase::Waiting(_)
            | Phase::Pausing(_)
            | Phase::Idle(..)
            | Phase::Leaving(_)
            | Phase::LeavingIdle(_)
            | Phase::Opening { .. }
            | Phase::Asking(_)
            | Phase::Fetching(_)
            | Phase::Over => {}
        }
    }

    /// When to call [`Keeper::handle_timeout`]; `None` once it is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = match self.phase {
            Phase::Waiting(until) | Phase::Pausing(until) => until,
            Phase::Idle(_, false) => self.idles_until(),
            Phase::Leaving(_) => return Some(self.asked + LEAVE),
            Phase::LeavingIdle(_)
            | Phase::Opening { .. }
            | Phase::Asking(_)
            | Phase::Fetching(_)
            | Phase::Idle(_, true) => self.asked + self.limits.patience,
            Phase::Over => return None,
        };
        let look = self.looks_at().unwrap_or(due);
        Some(due.min(look).min(self.ends()))
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Messages and octets fetched so far.
    #[must_use]
    pub fn fetched(&self) -> (u64, u64) {
        self.fetched
    }

    /// Which mailbox, as its name stands in the store's keys.
    #[must_use]
    pub fn mailbox(&self) -> &Bytes {
        &self.home.name
    }

    /// Until when the octets of an order should not be read, because somebody waits for others.
    #[must_use]
    pub fn standstill(&mut self, now: Now) -> Option<Instant> {
        if self.is_fetching() { self.preload.standstill(now) } else { None }
    }

    /// Whether mail is expected.
    #[must_use]
    pub fn is_fetching(&self) -> bool {
        matches!(self.phase, Phase::Fetching(_))
    }

    /// Whether it has been told to end.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_) | Phase::Over)
    }

    /// How the mailbox is watched.
    #[must_use]
    pub fn way(&self) -> &'static str {
        if self.facts.capabilities.has("IDLE") { "idle" } else { "poll" }
    }

    fn ends(&self) -> Instant {
        let login = self.facts.authenticated.mono;
        let token = self.facts.token.then(|| login + self.limits.token);
        let idle = (!self.beside).then(|| self.left + self.limits.idle);
        let absolute = login + self.limits.absolute;
        [idle, token].into_iter().flatten().fold(absolute, Instant::min)
    }

    /// When the preload is asked again although nothing was said of the origin.
    fn looks_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle(_, false) | Phase::Pausing(_) if self.beside && self.order.is_none() => {
                Some(self.resume.map_or(self.looked + LOOK, |resume| resume.max(self.looked + LOOK)))
            }
            Phase::Idle(..)
            | Phase::Pausing(_)
            | Phase::LeavingIdle(_)
            | Phase::Opening { .. }
            | Phase::Asking(_)
            | Phase::Fetching(_)
            | Phase::Waiting(_)
            | Phase::Leaving(_)
            | Phase::Over => None,
        }
    }

    /// Servers end an IDLE after 29 to 30 minutes; two thousand sessions shall not all speak at once.
    fn idles_until(&self) -> Instant {
        let spread = Duration::from_secs(u64::from(self.facts.nonce.iter().fold(0_u8, |a, o| a ^ o)));
        let reissue = self.asked + REISSUE + spread;
        let tours = !self.is_notified() && !self.others.is_empty();
        let tour = tours.then(|| self.toured.max(self.asked) + TOUR);
        let visits = self.visits_from().filter(|_| !self.visits.is_empty());
        [self.resume, tour, visits].into_iter().flatten().fold(reissue, Instant::min)
    }

    fn tag(&mut self) -> String {
        self.tags += 1;
        let nonce: String = self.facts.nonce.iter().map(|o| format!("{o:02X}")).collect();
        format!("CEP{nonce}{}", self.tags)
    }

    fn send(&mut self, line: String) {
        self.outputs.push_back(Output::ToServer(line.into()));
    }

    fn catalog(&mut self, op: CatalogOp) {
        self.outputs.push_back(Output::Catalog(op));
    }

    fn next_fill(&mut self) -> FillId {
        self.facts.last_fill += 1;
        FillId { session: self.facts.number, n: self.facts.last_fill }
    }

    fn over(&mut self, now: Now, why: Why) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.give_up_reading(now);
        self.phase = Phase::Over;
        self.outputs.push_back(Output::Ended(why));
    }
}

/// RFC 2177: 'at least every 29 minutes'; up to 255 seconds are added.
const REISSUE: Duration = Duration::from_secs(24 * 60);
/// How long after its user's last reading a lane may not know of it; asking costs nothing on the line.
const LOOK: Duration = Duration::from_secs(2);
/// How long the origin may take to say goodbye.
const LEAVE: Duration = Duration::from_secs(5);
/// How long an EXAMINE counts: without IDLE the mailbox is opened again after so long, and amid fetching too.
const ROUND_MAX: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests;
