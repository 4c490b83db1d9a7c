//! A policy lives through the days of an office, behind one line, and is judged.
//!
//! What is on the line is simulated in order: people first (a miss takes the whole line), then what is fetched
//! ahead, at its share of the line, one thing after another, users in turn. The store keeps everything. What the
//! policy is told is what a proxy can know: what arrives, its sizes and kin, what is opened. What a session is
//! looking at comes first in its facts.

use crate::habits::Kind;
use crate::office::{Days, Event, Message};
use discovery_core::{
    id::{ServerId, UserKey},
    now::{Now, UnixMillis},
    seam::advisor::{Advisor, Amount, Collection, Held, Item, Kin, SessionFacts},
    value::{Access, ObjectKey, Served},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

/// The line of the branch.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Octets a second.
    pub octets_per_second: u64,
    /// Of which what is fetched ahead may use so many of a hundred.
    pub background_percent: u64,
}

/// What came of it, in a span of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Messages opened.
    pub opens: u64,
    /// Of these, all that was read was there.
    pub hits: u64,
    /// Opened for the first time.
    pub first_opens: u64,
    /// Of these, all that was read was there.
    pub first_hits: u64,
    /// Octets fetched ahead within the span.
    pub fetched: u64,
    /// Of these, read by the end of all days.
    pub used: u64,
}

impl Outcome {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            opens: self.opens + other.opens,
            hits: self.hits + other.hits,
            first_opens: self.first_opens + other.first_opens,
            first_hits: self.first_hits + other.first_hits,
            fetched: self.fetched + other.fetched,
            used: self.used + other.used,
        }
    }
}

/// The advisor of each trial. `None` fetches nothing.
pub type Policy<'a> = Option<&'a mut dyn Advisor>;

/// Lives through all `days` once and judges what happens within each of `spans` (seconds from the first midnight).
pub fn run(days: &Days, line: Line, spans: &[Range<i64>], policy: Policy<'_>) -> Vec<Outcome> {
    let mut trial = Trial::new(days, line, spans.to_vec());
    match policy {
        Some(policy) => {
            trial.list_archives(policy);
            for &(at, event) in &days.events {
                trial.fetch_until(at, policy);
                trial.happens(at, event, Some(policy));
            }
        }
        None => days.events.iter().for_each(|&(at, event)| trial.happens(at, event, None)),
    }
    trial.judge()
}

/// The key of a message.
#[must_use]
pub fn object(id: usize) -> ObjectKey {
    ObjectKey { server: server(), key: id.to_be_bytes().to_vec() }
}

/// The message of a key.
#[must_use]
pub fn message_of(key: &ObjectKey) -> Option<usize> {
    Some(usize::from_be_bytes(key.key.as_slice().try_into().ok()?))
}

/// The key of a user.
#[must_use]
pub fn user_key(user: usize) -> UserKey {
    let mut hash = [0; 16];
    hash.iter_mut().zip(user.to_be_bytes()).for_each(|(to, from)| *to = from);
    UserKey { version: 1, hash }
}

#[expect(clippy::expect_used, reason = "the name is a constant")]
fn server() -> ServerId {
    ServerId::new("mail.example").expect("a good name")
}

/// What the store has of a message, and what of it was fetched ahead.
#[derive(Clone, Copy, Default)]
struct Copy {
    held: Held,
    ahead: u64,
    used: u64,
    fetched_at: i64,
    opened: bool,
}

struct Mailbox {
    object: ObjectKey,
    items: Vec<Item>,
}

struct Trial<'a> {
    days: &'a Days,
    line: Line,
    judged: Vec<(Range<i64>, Outcome)>,
    start: Instant,
    copies: Vec<Copy>,
    mailboxes: Vec<Vec<Mailbox>>,
    /// Where each user looks, and what he reads.
    open: Vec<(usize, Option<u32>)>,
    /// Users for whom something may be worth fetching.
    hungry: BTreeSet<usize>,
    /// Milliseconds until which the line is taken.
    free_at: i64,
    turn: usize,
}

impl<'a> Trial<'a> {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn new(days: &'a Days, line: Line, spans: Vec<Range<i64>>) -> Self {
        let mut boxes: Vec<BTreeMap<usize, Mailbox>> = (0..days.users).map(|_| BTreeMap::new()).collect();
        for message in &days.messages {
            if let Some(mine) = boxes.get_mut(message.user) {
                mine.entry(message.mailbox).or_insert_with(|| Mailbox {
                    object: ObjectKey {
                        server: server(),
                        key: format!("{}/{}", message.user, message.mailbox).into_bytes(),
                    },
                    items: Vec::new(),
                });
            }
        }
        let mailboxes = boxes.into_iter().map(fill_gaps).collect();
        Self {
            days,
            line,
            judged: spans.into_iter().map(|span| (span, Outcome::default())).collect(),
            start: Instant::now(),
            copies: vec![Copy::default(); days.messages.len()],
            mailboxes,
            open: vec![(0, None); days.users],
            hungry: BTreeSet::new(),
            free_at: 0,
            turn: 0,
        }
    }

    fn now(&self, millis: i64) -> Now {
        let since = u64::try_from(millis + DAYS_BEFORE_MILLIS).unwrap_or(0);
        Now { mono: self.start + Duration::from_millis(since), wall: UnixMillis(millis) }
    }

    fn list_archives(&mut self, policy: &mut dyn Advisor) {
        for (id, message) in self.days.messages.iter().enumerate() {
            if message.arrived < 0 {
                self.list(0, id, message, policy);
            }
        }
    }

    fn list(&mut self, at: i64, id: usize, message: &Message, policy: &mut dyn Advisor) {
        let now = self.now(at * 1000);
        let item = Item {
            nth: message.uid,
            object: object(id),
            octets: message.octets(),
            main_octets: message.text_octets,
            arrived: UnixMillis(message.arrived * 1000),
            used: message.seen_before,
            held: self.copies.get(id).map_or(Held::Nothing, |copy| copy.held),
            kin: kin(message),
        };
        let Some(mailbox) = self.mailboxes.get_mut(message.user).and_then(|all| all.get_mut(message.mailbox))
        else {
            return;
        };
        policy.listed(user_key(message.user), &mailbox.object, &item, now);
        mailbox.items.push(item);
        self.hungry.insert(message.user);
    }

    fn happens(&mut self, at: i64, event: Event, policy: Option<&mut dyn Advisor>) {
        match event {
            Event::Arrives(id) => {
                let days = self.days;
                if let (Some(message), Some(policy)) = (days.messages.get(id), policy) {
                    self.list(at, id, message, policy);
                }
            }
            Event::Looks { user, mailbox } => {
                if let Some(open) = self.open.get_mut(user) {
                    *open = (mailbox, None);
                }
                self.hungry.insert(user);
            }
            Event::Opens { message, whole } => self.opens(at, message, whole, policy),
        }
    }

    fn opens(&mut self, at: i64, id: usize, whole: bool, policy: Option<&mut dyn Advisor>) {
        let days = self.days;
        let (Some(message), Some(copy)) = (days.messages.get(id), self.copies.get_mut(id)) else { return };
        let whole = whole || message.attachment_octets == 0;
        let wanted = if whole { message.octets() } else { message.text_octets };
        let needed = if whole { Held::Whole } else { Held::Part };
        let hit = copy.held >= needed;
        let first = !copy.opened && !message.seen_before && message.arrived >= 0;
        for (_, outcome) in self.judged.iter_mut().filter(|(span, _)| span.contains(&at)) {
            outcome.opens += 1;
            outcome.hits += u64::from(hit);
            outcome.first_opens += u64::from(first);
            outcome.first_hits += u64::from(first && hit);
        }
        copy.opened = true;
        copy.used = copy.used.max(wanted.min(copy.ahead));
        if !hit {
            let missing = wanted - if copy.held == Held::Part { message.text_octets } else { 0 };
            copy.held = copy.held.max(needed);
            let millis = missing * 1000 / self.line.octets_per_second;
            self.free_at = self.free_at.max(at * 1000) + i64::try_from(millis).unwrap_or(i64::MAX);
        }
        let held = copy.held;
        self.set_item(message, |item| (item.held, item.used) = (held, true));
        if let Some(open) = self.open.get_mut(message.user) {
            *open = (message.mailbox, Some(message.uid));
        }
        self.hungry.insert(message.user);
        if let Some(policy) = policy {
            let access = Access {
                user: user_key(message.user),
                object: object(id),
                octets: wanted,
                served: if hit { Served::Store } else { Served::Origin },
                at: UnixMillis(at * 1000),
            };
            policy.observe(&access, self.now(at * 1000));
        }
    }

    fn set_item(&mut self, message: &Message, set: impl FnOnce(&mut Item)) {
        let items = self
            .mailboxes
            .get_mut(message.user)
            .and_then(|all| all.get_mut(message.mailbox))
            .map(|mailbox| &mut mailbox.items);
        if let Some(items) = items
            && let Ok(at) = items.binary_search_by_key(&message.uid, |item| item.nth)
            && let Some(item) = items.get_mut(at)
        {
            set(item);
        }
    }

    /// Fetches ahead until `until`, as far as the line goes.
    fn fetch_until(&mut self, until: i64, policy: &mut dyn Advisor) {
        while self.free_at < until * 1000 {
            // Users in turn.
            let next = self.hungry.range(self.turn..).next().or_else(|| self.hungry.first()).copied();
            let Some(user) = next else {
                self.free_at = until * 1000;
                return;
            };
            self.turn = user + 1;
            let now = self.now(self.free_at);
            let Some((id, amount)) = self.ask(user, now, policy) else {
                self.hungry.remove(&user);
                continue;
            };
            self.fetched(id, amount);
        }
    }

    fn ask(&self, user: usize, now: Now, policy: &mut dyn Advisor) -> Option<(usize, Amount)> {
        let (open, reading) = self.open.get(user).copied()?;
        let all = self.mailboxes.get(user)?;
        let mut collections: Vec<Collection<'_>> =
            all.iter().map(|mailbox| Collection { object: &mailbox.object, items: &mailbox.items }).collect();
        if open < collections.len() {
            collections.swap(0, open);
        }
        let facts = SessionFacts { user: user_key(user), collections: &collections, reading };
        let order = policy.next(&facts, now)?;
        Some((message_of(&order.object)?, order.amount))
    }

    fn fetched(&mut self, id: usize, amount: Amount) {
        let days = self.days;
        let (Some(message), Some(copy)) = (days.messages.get(id), self.copies.get_mut(id)) else { return };
        let had = if copy.held == Held::Part { message.text_octets } else { 0 };
        let (held, octets) = match amount {
            Amount::Whole => (Held::Whole, message.octets() - had),
            Amount::Start(octets) if octets >= message.octets() => (Held::Whole, message.octets() - had),
            // Less than the text is no help.
            Amount::Start(octets) if octets >= message.text_octets => (Held::Part, message.text_octets - had),
            Amount::Start(octets) => (copy.held, octets),
        };
        copy.held = copy.held.max(held);
        copy.ahead += octets;
        copy.fetched_at = self.free_at / 1000;
        // What is fetched is not asked for again, even if it turned out too little.
        let held = copy.held.max(Held::Part);
        let rate = self.line.octets_per_second * self.line.background_percent / 100;
        self.free_at += i64::try_from(octets * 1000 / rate.max(1) + 1).unwrap_or(i64::MAX);
        self.set_item(message, |item| item.held = held);
    }

    fn judge(mut self) -> Vec<Outcome> {
        for (span, outcome) in &mut self.judged {
            for copy in self.copies.iter().filter(|copy| span.contains(&copy.fetched_at)) {
                outcome.fetched += copy.ahead;
                outcome.used += copy.used;
            }
        }
        self.judged.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

/// What a proxy reads from a header: the class of mail (own domain, another one, `List-Id`, `List-Unsubscribe`,
/// `Auto-Submitted`), who or which list, and the thread. A stranger looks like anybody of another domain.
fn kin(message: &Message) -> [Kin; 3] {
    let class = match message.kind {
        Kind::Colleague => 1,
        Kind::Outsider | Kind::Stranger => 2,
        Kind::List => 3,
        Kind::Newsletter => 4,
        Kind::Machine => 5,
    };
    // Threads are counted for each user anew.
    let thread = message.thread * 1000 + u64::try_from(message.user).unwrap_or(0);
    [Kin(u64::MAX - class), Kin(message.source + 1), Kin(1 << 62 | thread)]
}

/// Mailboxes by their number; one that never holds anything is empty.
fn fill_gaps(mut boxes: BTreeMap<usize, Mailbox>) -> Vec<Mailbox> {
    let n = boxes.last_key_value().map_or(0, |(nth, _)| nth + 1);
    (0..n)
        .map(|nth| {
            boxes.remove(&nth).unwrap_or_else(|| Mailbox {
                object: ObjectKey { server: server(), key: format!("empty/{nth}").into_bytes() },
                items: Vec::new(),
            })
        })
        .collect()
}

/// The oldest mail of an archive; the monotonic clock begins before it.
const DAYS_BEFORE_MILLIS: i64 = 400 * 86_400_000;

#[cfg(test)]
mod tests;
