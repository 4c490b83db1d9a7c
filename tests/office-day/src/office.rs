//! Days of one office: messages that arrive and reads that follow, in the order of time.

use crate::{
    habits::{Kind, Office, User},
    rng::Rng,
};
use std::collections::HashMap;

/// A message in somebody's mailbox.
#[derive(Clone, Debug)]
pub struct Message {
    /// Whose: an index of the office's users.
    pub user: usize,
    /// In which of his mailboxes.
    pub mailbox: usize,
    /// Its UID there.
    pub uid: u32,
    /// Seconds from the first midnight; negative for what lay there before Waypost came.
    pub arrived: i64,
    /// Who wrote it; what its header says.
    pub source: u64,
    /// What belongs together: the first message's number.
    pub thread: u64,
    /// Octets of header and text.
    pub text_octets: u64,
    /// Octets of attachments; 0 for none.
    pub attachment_octets: u64,
    /// Already read when Waypost came.
    pub seen_before: bool,
    /// What kind of source it is. A policy is told as much of it as a header tells (`trial`).
    pub kind: Kind,
    /// The chance with which it was opened: for the bound of what can be known, and for no policy.
    pub chance: f64,
}

impl Message {
    /// All of it.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.text_octets + self.attachment_octets
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The message is in the mailbox.
    Arrives(usize),
    /// The user's program lists a mailbox: what he then sees is what had arrived.
    Looks {
        /// Who.
        user: usize,
        /// Where.
        mailbox: usize,
    },
    /// The user opens it.
    Opens {
        /// Which.
        message: usize,
        /// With its attachments, or the text alone.
        whole: bool,
    },
}

/// All that happens in some days.
#[derive(Debug)]
pub struct Days {
    /// How many users.
    pub users: usize,
    /// Every message.
    pub messages: Vec<Message>,
    /// What happens, by seconds from the first midnight.
    pub events: Vec<(i64, Event)>,
}

/// A day in seconds.
pub const DAY: i64 = 86_400;

impl Days {
    /// Makes `days` working days, back to back, of the office of this seed.
    #[must_use]
    pub fn make(seed: u64, days: u32) -> Self {
        let mut rng = Rng::new(seed);
        let office = Office::draw(&mut rng);
        let mut all = Self { users: office.users.len(), messages: Vec::new(), events: Vec::new() };
        let mut posts = Posts::default();
        for (nth, user) in office.users.iter().enumerate() {
            let mut rng = Rng::new(rng.bits());
            posts.archive(&mut rng, nth, user);
            for day in 0..days {
                posts.day(&mut rng, nth, user, i64::from(day) * DAY);
            }
            let mine = posts.take(&mut all.messages);
            let arrive = |id: usize| (all.arrival(id), Event::Arrives(id));
            let arrive: Vec<_> = mine.clone().map(arrive).filter(|&(at, _)| at >= 0).collect();
            all.events.extend(arrive);
            read(&mut rng, nth, user, days, mine, &mut all);
        }
        all.events.sort_by_key(|&(at, _)| at);
        all
    }

    fn arrival(&self, id: usize) -> i64 {
        self.messages.get(id).map_or(0, |message| message.arrived)
    }
}

/// Messages of one user while they are made.
#[derive(Default)]
struct Posts {
    made: Vec<Message>,
    threads: HashMap<u64, Vec<(u64, f64)>>,
    next_thread: u64,
}

impl Posts {
    /// What lay there before: a year's mail of which a part was read.
    fn archive(&mut self, rng: &mut Rng, nth: usize, user: &User) {
        self.threads.clear();
        for _ in 0..300 + rng.below(900) {
            let mut message = {
                let at = -1 - rng_seconds(rng, 200 * DAY);
                self.message(rng, nth, user, at)
            };
            message.seen_before = rng.chance(message.chance) || rng.chance(0.5);
            self.made.push(message);
        }
    }

    fn day(&mut self, rng: &mut Rng, nth: usize, user: &User, midnight: i64) {
        for source in 0..user.sources.len() {
            let Some(from) = user.sources.get(source) else { continue };
            for _ in 0..rng.poisson(from.a_day) {
                let at = midnight + time_of_day(rng, from.kind);
                let message = self.message_of(rng, nth, user, source, at);
                self.made.push(message);
            }
        }
    }

    fn message(&mut self, rng: &mut Rng, nth: usize, user: &User, at: i64) -> Message {
        let source = rng.below(user.sources.len());
        self.message_of(rng, nth, user, source, at)
    }

    fn message_of(&mut self, rng: &mut Rng, user: usize, of: &User, source: usize, arrived: i64) -> Message {
        let Some(from) = of.sources.get(source) else { unreachable!("sources are indexed by their number") };
        let (threaded, text, attached) = match from.kind {
            Kind::Colleague => (0.55, (21_000.0, 1.0), 0.34),
            Kind::Outsider => (0.45, (30_000.0, 1.1), 0.34),
            Kind::List => (0.6, (19_000.0, 0.9), 0.08),
            Kind::Newsletter => (0.0, (70_000.0, 0.6), 0.02),
            Kind::Machine => (0.2, (15_000.0, 0.7), 0.05),
            Kind::Stranger => (0.0, (20_000.0, 0.9), 0.05),
        };
        let known = self.threads.entry(from.id).or_default();
        let (thread, mut chance) = if !known.is_empty() && rng.chance(threaded) {
            // Mostly the one that moved last.
            let back = rng.below(3).min(known.len() - 1);
            known.get(known.len() - 1 - back).copied().unwrap_or((0, from.opened))
        } else {
            self.next_thread += 1;
            // A thread interests or it does not: half of a source's spread lies between threads.
            let tilt =
                if rng.chance(from.opened) { 1.0 - (1.0 - from.opened) * 0.5 } else { from.opened * 0.5 };
            known.push((self.next_thread, tilt));
            (self.next_thread, tilt)
        };
        chance = chance.clamp(0.0, 0.995);
        let text_octets = octets(rng.log_normal(text.0, text.1).clamp(1_500.0, 600_000.0));
        let attachment_octets = if rng.chance(attached) {
            octets(rng.log_normal(260_000.0, 1.4).clamp(4_000.0, 13_500_000.0))
        } else {
            0
        };
        let id = if from.kind == Kind::Stranger { (1 << 40) | rng.bits() >> 24 } else { from.id };
        Message {
            user,
            mailbox: from.mailbox,
            uid: 0,
            arrived,
            source: id,
            thread,
            text_octets,
            attachment_octets,
            seen_before: false,
            kind: from.kind,
            chance,
        }
    }

    /// Gives UIDs in the order of arrival and hands over.
    fn take(&mut self, to: &mut Vec<Message>) -> std::ops::Range<usize> {
        let first = to.len();
        self.made.sort_by_key(|message| message.arrived);
        let mut uids: HashMap<usize, u32> = HashMap::new();
        for mut message in self.made.drain(..) {
            let uid = uids.entry(message.mailbox).or_default();
            *uid += 1;
            message.uid = *uid;
            to.push(message);
        }
        first..to.len()
    }
}

/// What a user does on all days, given what arrives.
fn read(rng: &mut Rng, nth: usize, user: &User, days: u32, mine: std::ops::Range<usize>, all: &mut Days) {
    // Whether it will be opened when it is first seen; decided once.
    let mut waiting: Vec<usize> = Vec::new();
    let (archive, coming): (Vec<usize>, Vec<usize>) = mine.partition(|&id| all.arrival(id) < 0);
    let arrivals: Vec<(usize, i64)> = coming.into_iter().map(|id| (id, all.arrival(id))).collect();
    let mut coming = arrivals.into_iter().peekable();
    let mut opened: Vec<usize> = Vec::new();
    let mut passed: Vec<usize> = Vec::new();
    for day in 0..days {
        if rng.chance(user.away) {
            continue;
        }
        let midnight = i64::from(day) * DAY;
        let mut at = midnight + minutes(user.hours.0 + rng.range(-30.0, 30.0));
        let end = midnight + minutes(user.hours.1 + rng.range(-45.0, 45.0));
        let mut again: Vec<i64> =
            (0..rng.poisson(user.again_a_day)).map(|_| at + rng_seconds(rng, end - at)).collect();
        again.sort_unstable();
        let mut again = again.into_iter().peekable();
        while at < end {
            while let Some((id, _)) = coming.next_if(|&(_, arrived)| arrived <= at) {
                waiting.push(id);
            }
            for mailbox in 0..user.mailboxes {
                if !rng.chance(user.looks_into.get(mailbox).copied().unwrap_or(0.0)) {
                    continue;
                }
                all.events.push((at, Event::Looks { user: nth, mailbox }));
                at += 1 + rng_seconds(rng, 3);
                let here =
                    |id: &usize| all.messages.get(*id).is_some_and(|message| message.mailbox == mailbox);
                let mut seen: Vec<usize> = waiting.iter().copied().filter(here).collect();
                waiting.retain(|id| !seen.contains(id));
                if user.newest_first {
                    seen.reverse();
                }
                for id in seen {
                    let chance = all.messages.get(id).map_or(0.0, |message| message.chance);
                    if rng.chance(chance) {
                        at += open(rng, user, at, id, all);
                        opened.push(id);
                    } else {
                        passed.push(id);
                    }
                }
            }
            while again.next_if(|&when| when <= at).is_some() {
                let from_archive = rng.chance(user.again_from_archive);
                let id = if from_archive || opened.is_empty() {
                    archive.get(rng.below(archive.len())).copied()
                } else {
                    // Recent ones more often.
                    let back = rng.below(opened.len()).min(rng.below(opened.len()));
                    opened.get(opened.len() - 1 - back).copied()
                };
                if let Some(id) = id {
                    at += open(rng, user, at, id, all);
                }
            }
            if rng.chance(user.second_thought) && !passed.is_empty() {
                let id = passed.swap_remove(rng.below(passed.len()));
                at += open(rng, user, at, id, all);
                opened.push(id);
            }
            at += minutes(user.look_every * rng.range(0.5, 1.5)).max(20);
        }
    }
}

/// Opens a message and says how long he looks at it.
fn open(rng: &mut Rng, user: &User, at: i64, id: usize, all: &mut Days) -> i64 {
    let whole = !user.reads_parts || rng.chance(user.asks_for_attachment);
    all.events.push((at, Event::Opens { message: id, whole }));
    5 + rng_seconds(rng, 85)
}

fn time_of_day(rng: &mut Rng, kind: Kind) -> i64 {
    let office = |rng: &mut Rng| match rng.below(20) {
        0..9 => rng.range(8.0, 12.0),
        9..17 => rng.range(13.0, 17.5),
        17 => rng.range(12.0, 13.0),
        _ => rng.range(17.5, 23.0),
    };
    let hour = match kind {
        Kind::Colleague => office(rng),
        Kind::Outsider | Kind::List if rng.chance(0.7) => office(rng),
        Kind::Newsletter => rng.range(3.0, 10.0),
        Kind::Outsider | Kind::List | Kind::Machine | Kind::Stranger => rng.range(0.0, 24.0),
    };
    minutes(hour * 60.0)
}

#[expect(clippy::cast_possible_truncation, reason = "minutes of some days")]
fn minutes(minutes: f64) -> i64 {
    (minutes * 60.0) as i64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn octets(octets: f64) -> u64 {
    octets as u64
}

fn rng_seconds(rng: &mut Rng, end: i64) -> i64 {
    i64::try_from(rng.below(usize::try_from(end.max(1)).unwrap_or(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_an_office() {
        for seed in 1..=6 {
            let days = Days::make(seed, 1);
            let mut sizes: Vec<u64> =
                days.messages.iter().filter(|message| message.arrived >= 0).map(Message::octets).collect();
            sizes.sort_unstable();
            let at = |permille: usize| sizes[sizes.len() * permille / 1000];
            eprintln!(
                "{seed}: {} messages, median {}, p90 {}, largest {}",
                sizes.len(),
                at(500),
                at(900),
                at(999)
            );
            assert!((20_000..=33_000).contains(&at(500)), "seed {seed}: median {}", at(500));
            assert!((180_000..=340_000).contains(&at(900)), "seed {seed}: p90 {}", at(900));
            assert!(*sizes.last().unwrap() > 2_000_000);
        }
    }

    #[test]
    fn a_seed_gives_one_office_and_another_another() {
        let (a, b, c) = (Days::make(7, 2), Days::make(7, 2), Days::make(8, 2));
        assert_eq!(a.events, b.events);
        assert_ne!(a.events, c.events);
    }

    #[test]
    fn nothing_is_opened_before_it_is_there_and_looked_at() {
        let days = Days::make(3, 3);
        let mut looked: HashMap<(usize, usize), i64> = HashMap::new();
        let mut last = i64::MIN;
        for &(at, event) in &days.events {
            assert!(at >= last, "events stand in the order of time");
            last = at;
            match event {
                Event::Arrives(id) => assert_eq!(days.messages[id].arrived, at),
                Event::Looks { user, mailbox } => drop(looked.insert((user, mailbox), at)),
                Event::Opens { message, .. } => {
                    let message = &days.messages[message];
                    assert!(message.arrived <= at);
                    if message.arrived >= 0 {
                        assert!(looked[&(message.user, message.mailbox)] >= message.arrived);
                    }
                }
            }
        }
    }

    #[test]
    fn people_read_most_of_what_people_write_and_little_of_the_rest() {
        let (mut opened, mut all) = (HashMap::new(), HashMap::new());
        for seed in 1..=4 {
            let days = Days::make(seed, 5);
            let ids: std::collections::HashSet<usize> = days
                .events
                .iter()
                .filter_map(|(_, event)| match event {
                    Event::Opens { message, .. } => Some(*message),
                    Event::Arrives(_) | Event::Looks { .. } => None,
                })
                .collect();
            for (id, message) in days.messages.iter().enumerate().filter(|(_, message)| message.arrived >= 0)
            {
                let kind = format!("{:?}", message.kind);
                *all.entry(kind.clone()).or_insert(0_u32) += 1;
                *opened.entry(kind).or_insert(0_u32) += u32::from(ids.contains(&id));
            }
        }
        let percent = |kind: &str| opened[kind] * 100 / all[kind];
        eprintln!("{all:?} {opened:?}");
        assert!(percent("Colleague") > 65 && percent("Newsletter") < 35 && percent("Stranger") < 35);
    }
}
