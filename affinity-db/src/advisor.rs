//! What to fetch next, by what users did before: the database asked by the policy.
//!
//! Order (decisions/0012): what is new where the user is, newest first; neighbours of what he reads; the rest of
//! that collection; then other collections, those that draw him most first. Within an order, only what is worth its
//! octets ([`crate::policy`]).

use crate::{
    budget::Budget,
    database::{Change, Database, Limits},
    evidence::{Evidence, Open},
    policy::{Policy, Question, pull},
    record::{Event, Key, Record},
};
use discovery_core::{
    id::{ServerId, UserKey},
    now::{Now, UnixMillis},
    seam::advisor::{Advisor, Amount, Collection, FetchOrder, Held, Item, Kin, Reason, SessionFacts},
    value::{Access, ObjectKey, Weight},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// The advisor that the user affinity database drives.
#[derive(Debug)]
pub struct AffinityAdvisor {
    policy: Policy,
    database: Database,
    evidence: Evidence,
    budget: Budget<UserKey>,
    given: Given,
}

impl AffinityAdvisor {
    /// One that knows nobody yet.
    #[must_use]
    pub fn new(policy: Policy, limits: Limits) -> Self {
        Self {
            policy,
            database: Database::new(limits),
            evidence: Evidence::default(),
            budget: Budget::new(policy.day_octets_max),
            given: Given::default(),
        }
    }

    /// Takes a record that was written down before.
    pub fn load(&mut self, key: Key, record: Record) {
        self.database.load(key, record);
    }

    /// What changed since it was last asked: to be written down.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.database.take_changes()
    }

    /// Forgets what was not used for too long; at most `max` records.
    pub fn expire(&mut self, now: UnixMillis, max: usize) -> usize {
        self.database.expire(now, max)
    }

    /// Forgets all that is known of a user.
    pub fn forget(&mut self, user: UserKey) {
        self.database.forget(user);
        self.evidence.forget(user);
    }

    /// The records themselves.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The chance in parts of a thousand that `user` opens `item` of `collection`.
    #[must_use]
    pub fn chance(&self, user: UserKey, collection: &ObjectKey, item: &Item, now: UnixMillis) -> u64 {
        self.chance_of(&self.expectations(user, collection), item, false, now)
    }

    /// What is expected of a collection's items before anything is known of one.
    fn expectations(&self, user: UserKey, collection: &ObjectKey) -> Expectations {
        let server = &collection.server;
        let unknown = self.policy.unknown_permille;
        let anything = self.of(user, &everything(server), unknown, WEIGHT_WIDE);
        Expectations {
            user,
            opened: self.of(user, collection, anything, WEIGHT_WIDE),
            whole: self.of(user, &whole_of(server), WHOLE_UNKNOWN, WEIGHT_WIDE),
        }
    }

    fn chance_of(&self, expected: &Expectations, item: &Item, beside: bool, now: UnixMillis) -> u64 {
        if item.used {
            // Nobody knows who used it, and once is mostly enough.
            return if beside { self.policy.again_beside_permille } else { self.policy.again_permille };
        }
        let kin = item.kin.iter().zip(KIN_WEIGHTS).filter(|(kin, _)| **kin != Kin::NONE);
        let chance = kin.fold(expected.opened, |chance, (kin, weight)| {
            self.of(expected.user, &kin.object(&item.object.server), chance, weight)
        });
        if is_stale(item, now) { chance * STALE_PERMILLE / 1000 } else { chance }
    }

    /// What a store should weigh before it forgets `item`.
    #[must_use]
    pub fn weight(&self, user: UserKey, collection: &ObjectKey, item: &Item, now: UnixMillis) -> Weight {
        let chance = self.chance(user, collection, item, now).min(1000);
        Weight { object: item.object.clone(), permille: u16::try_from(chance).unwrap_or(1000) }
    }

    fn of(&self, user: UserKey, object: &ObjectKey, prior: u64, weight: u64) -> u64 {
        self.database.get(user, object).map_or(prior, |record| record.chance(prior, weight))
    }

    fn learn(&mut self, user: UserKey, open: &Open, event: Event, at: UnixMillis) {
        let server = &open.object.server;
        self.database.note(user, &everything(server), event, at);
        self.database.note(user, &open.collection, event, at);
        for kin in open.kin.into_iter().filter(|kin| *kin != Kin::NONE) {
            self.database.note(user, &kin.object(server), event, at);
        }
    }

    fn settle(&mut self, user: UserKey, now: UnixMillis) {
        while let Some(open) = self.evidence.passed(user, now) {
            self.learn(user, &open, Event::Passed, now);
            // Decided, and stays so when it is listed again, after a restart too.
            self.database.note(user, &open.object, Event::Passed, now);
        }
    }

    fn first_of<'a>(
        &self,
        facts: &SessionFacts<'_>,
        collection: &Collection<'_>,
        items: impl Iterator<Item = &'a Item>,
        reason: Reason,
        now: Now,
    ) -> Option<FetchOrder> {
        let expected = self.expectations(facts.user, collection.object);
        let left = self.budget.left(&facts.user, now.wall);
        items.take(SCAN_MAX).filter(|item| item.held != Held::Whole).find_map(|item| {
            let question = |chance| Question {
                chance,
                whole: if item.main_octets < item.octets { expected.whole } else { 1000 },
                octets: item.octets,
                main_octets: item.main_octets,
                held: item.held,
            };
            // Most items of a scan are old: not worth it at the best they can be.
            if is_stale(item, now.wall) && !item.used {
                self.policy.amount(question(STALE_PERMILLE))?;
            }
            let beside = reason == Reason::Neighbour;
            let chance = self.chance_of(&expected, item, beside, now.wall);
            let amount = self.policy.amount(question(chance))?;
            if self.given.is_given(facts.user, &item.object, now.mono) {
                return None;
            }
            let octets = match amount {
                Amount::Whole => item.octets,
                Amount::Start(octets) => octets,
            };
            (octets <= left).then(|| FetchOrder {
                collection: collection.object.clone(),
                nth: item.nth,
                object: item.object.clone(),
                amount,
                octets,
                reason,
            })
        })
    }

    fn choose(&self, facts: &SessionFacts<'_>, now: Now) -> Option<FetchOrder> {
        let (open, others) = facts.collections.split_first()?;
        let newest = || open.items.iter().rev();
        let is_new = |item: &&Item| !item.used && !is_stale(item, now.wall);
        self.first_of(facts, open, newest().filter(is_new), Reason::New, now)
            .or_else(|| {
                let beside = neighbours(open.items, facts.reading?);
                self.first_of(facts, open, beside.into_iter(), Reason::Neighbour, now)
            })
            .or_else(|| self.first_of(facts, open, newest().filter(|item| !is_new(item)), Reason::Rest, now))
            .or_else(|| {
                let mut others: Vec<_> = others.iter().collect();
                others.sort_by_cached_key(|other| std::cmp::Reverse(self.pull_of(facts.user, other, now)));
                others.into_iter().find_map(|other| {
                    self.first_of(facts, other, other.items.iter().rev(), Reason::Elsewhere, now)
                })
            })
    }

    fn pull_of(&self, user: UserKey, collection: &Collection<'_>, now: Now) -> u64 {
        self.database
            .get(user, collection.object)
            .map_or(0, |record| pull(record.count, now.wall.since(record.last).as_secs() / (7 * 86_400)))
    }
}

/// What is expected of a user and a collection, in parts of a thousand.
#[derive(Debug)]
struct Expectations {
    user: UserKey,
    /// That an item is opened.
    opened: u64,
    /// That all of it is wanted then.
    whole: u64,
}

impl Advisor for AffinityAdvisor {
    fn listed(&mut self, user: UserKey, collection: &ObjectKey, item: &Item, now: Now) {
        // What is old or was read already says nothing about what is read when it comes.
        if !item.used && !is_stale(item, now.wall) && self.database.get(user, &item.object).is_none() {
            self.evidence.listed(user, collection, item, now.wall);
        }
    }

    fn observe(&mut self, access: &Access, _: Now) {
        let (user, at) = (access.user, access.at);
        if let Some(open) = self.evidence.used(user, &access.object, at) {
            self.learn(user, &open, Event::Used, at);
            if open.main_octets < open.octets {
                // More than the main part was wanted, or not.
                let half = open.main_octets.midpoint(open.octets);
                let event = if access.octets > half { Event::Used } else { Event::Passed };
                self.database.note(user, &whole_of(&open.object.server), event, at);
            }
        }
        self.database.note(user, &access.object, Event::Used, at);
        self.settle(user, at);
    }

    fn returned(&mut self, user: UserKey, object: &ObjectKey) {
        self.given.at.remove(&(user, object.clone()));
    }

    fn next(&mut self, facts: &SessionFacts<'_>, now: Now) -> Option<FetchOrder> {
        self.settle(facts.user, now.wall);
        let order = self.choose(facts, now)?;
        if !self.budget.spend(&facts.user, order.octets, now.wall) {
            return None;
        }
        self.given.give(facts.user, order.object.clone(), now.mono);
        Some(order)
    }
}

/// Items beside the one that is read: of the same kin first, then by distance.
fn neighbours(items: &[Item], reading: u32) -> Vec<&Item> {
    let Ok(at) = items.binary_search_by_key(&reading, |item| item.nth) else { return Vec::new() };
    let thread = items.get(at).and_then(|item| item.kin.last().copied()).unwrap_or_default();
    let (before, after) = (items.get(..at).unwrap_or_default(), items.get(at + 1..).unwrap_or_default());
    let near = before.iter().rev().take(KIN_REACH).chain(after.iter().take(KIN_REACH));
    let kin = near.filter(|item| thread != Kin::NONE && item.kin.last() == Some(&thread));
    let mut out: Vec<&Item> = kin.collect();
    let beside = before.iter().rev().take(BESIDE).chain(after.iter().take(BESIDE));
    // Only what nobody used: an old message is no likelier because it stands beside one.
    out.extend(beside.filter(|item| !item.used));
    out
}

fn is_stale(item: &Item, now: UnixMillis) -> bool {
    now.since(item.arrived) > STALE_AFTER
}

/// All that a user does at a server: what is expected before anything is known of an item.
fn everything(server: &ServerId) -> ObjectKey {
    ObjectKey { server: server.clone(), key: vec![0xff] }
}

/// Whether a user wants all of what he opens.
fn whole_of(server: &ServerId) -> ObjectKey {
    ObjectKey { server: server.clone(), key: vec![0xff, 0] }
}

/// Orders that were given and of which nothing was heard yet.
#[derive(Debug, Default)]
struct Given {
    at: BTreeMap<(UserKey, ObjectKey), Instant>,
    order: VecDeque<((UserKey, ObjectKey), Instant)>,
}

impl Given {
    fn is_given(&self, user: UserKey, object: &ObjectKey, now: Instant) -> bool {
        // The pair is made only where something was given: this is asked for every item of a scan.
        !self.at.is_empty()
            && self
                .at
                .get(&(user, object.clone()))
                .is_some_and(|at| now.saturating_duration_since(*at) < GIVEN_FOR)
    }

    fn give(&mut self, user: UserKey, object: ObjectKey, now: Instant) {
        let key = (user, object);
        self.at.insert(key.clone(), now);
        self.order.push_back((key, now));
        while self.order.len() > GIVEN_MAX
            || self.order.front().is_some_and(|(_, at)| now.saturating_duration_since(*at) >= GIVEN_FOR)
        {
            let Some((key, at)) = self.order.pop_front() else { break };
            if self.at.get(&key) == Some(&at) {
                self.at.remove(&key);
            }
        }
    }
}

/// Confidence in what is expected of a user, and of a collection, in observations.
const WEIGHT_WIDE: u64 = 8;

/// The same of kin: the last, a thread, tells most.
const KIN_WEIGHTS: [u64; 3] = [3, 3, 2];

/// Expected of a user of whom it is not known whether he opens attachments.
const WHOLE_UNKNOWN: u64 = 850;

/// Unread for longer than a long weekend: passed over.
const STALE_AFTER: Duration = Duration::from_secs(4 * 86_400);

/// What is left of the chance then.
const STALE_PERMILLE: u64 = 20;

/// Items of one collection that one question looks at: bounds its time.
const SCAN_MAX: usize = 512;

/// How far a thread is followed.
const KIN_REACH: usize = 200;

/// Neighbours on each side.
const BESIDE: usize = 3;

/// An order of which nothing was heard for so long may be given again.
const GIVEN_FOR: Duration = Duration::from_secs(600);

/// Orders remembered.
const GIVEN_MAX: usize = 65_536;

#[cfg(test)]
mod tests;
