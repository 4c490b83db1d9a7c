//! Every octet fetched without a client asking is later used or wasted; until then it waits.
//!
//! `fetched = used + wasted + waiting`, always, for each user and site. What the ledger cannot follow any longer
//! counts as wasted: it never flatters.

use crate::{mutants, record::Key};
use discovery_core::{
    id::{SiteId, UserKey},
    now::UnixMillis,
    value::{ObjectKey, Served},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What was fetched ahead for whom, and what came of it.
#[derive(Debug)]
pub struct Ledger {
    entries_max: usize,
    waiting: BTreeMap<Arc<Key>, Waiting>,
    by_age: BTreeSet<(UnixMillis, Arc<Key>)>,
    tallies: BTreeMap<(UserKey, SiteId), Tally>,
    changed: BTreeSet<Arc<Key>>,
    changed_tallies: BTreeSet<(UserKey, SiteId)>,
    forgotten: BTreeSet<UserKey>,
}

/// Octets of one object that wait for their use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Where they were fetched.
    pub site: SiteId,
    /// How many.
    pub octets: u64,
    /// When the last of them came.
    pub at: UnixMillis,
}

/// Totals of one user at one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Objects opened.
    pub opens: u64,
    /// Of these, from the store.
    pub hits: u64,
    /// Octets fetched ahead.
    pub fetched: u64,
    /// Of these, used.
    pub used: u64,
    /// Of these, never used: evicted, expired, or lost sight of.
    pub wasted: u64,
}

/// One row of `waypost report preload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Who.
    pub user: UserKey,
    /// Where.
    pub site: SiteId,
    /// What.
    pub tally: Tally,
}

impl Tally {
    /// Octets of which it is not decided yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.fetched.saturating_sub(self.used).saturating_sub(self.wasted)
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            opens: self.opens.saturating_add(other.opens),
            hits: self.hits.saturating_add(other.hits),
            fetched: self.fetched.saturating_add(other.fetched),
            used: self.used.saturating_add(other.used),
            wasted: self.wasted.saturating_add(other.wasted),
        }
    }
}

/// What to write down since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerChanges {
    /// What waits, or `None` where nothing does any longer.
    pub waiting: Vec<(Arc<Key>, Option<Waiting>)>,
    /// Totals as they are now.
    pub tallies: Vec<Row>,
    /// Of whom nothing may be left, whatever was written before.
    pub forgotten: BTreeSet<UserKey>,
}

impl Ledger {
    /// An empty one that follows at most so many objects; some 200 octets each.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries_max,
            waiting: BTreeMap::new(),
            by_age: BTreeSet::new(),
            tallies: BTreeMap::new(),
            changed: BTreeSet::new(),
            changed_tallies: BTreeSet::new(),
            forgotten: BTreeSet::new(),
        }
    }

    /// Takes what was written down before: totals first, then what waited.
    pub fn load_tally(&mut self, row: Row) {
        self.tallies.insert((row.user, row.site), row.tally);
    }

    /// Takes an object that waited. Its octets stand in the totals already.
    pub fn load_waiting(&mut self, key: Key, waiting: Waiting) {
        let key = Arc::new(key);
        self.by_age.insert((waiting.at, Arc::clone(&key)));
        self.waiting.insert(key, waiting);
    }

    /// After loading: octets that wait by the totals and of which no object is known (the last moments before a
    /// crash) count as wasted. Returns how many.
    pub fn reconcile(&mut self) -> u64 {
        let mut known: BTreeMap<(UserKey, SiteId), u64> = BTreeMap::new();
        for (key, waiting) in &self.waiting {
            let octets = known.entry((key.user, waiting.site.clone())).or_default();
            *octets = octets.saturating_add(waiting.octets);
        }
        let mut lost: u64 = 0;
        for (who, tally) in &mut self.tallies {
            let known = known.get(who).copied().unwrap_or(0);
            let astray = tally.waiting().saturating_sub(known);
            // More waits than was fetched: the totals are the older word.
            tally.fetched = tally.fetched.saturating_add(known.saturating_sub(tally.waiting()));
            tally.wasted = tally.wasted.saturating_add(astray);
            lost = lost.saturating_add(astray);
            self.changed_tallies.insert(who.clone());
        }
        lost
    }

    /// `octets` of `object` were fetched ahead.
    pub fn record_fetched(
        &mut self,
        user: UserKey,
        site: &SiteId,
        object: &ObjectKey,
        octets: u64,
        at: UnixMillis,
    ) {
        let key = Arc::new(Key { user, object: object.clone() });
        // What waited at another site stays that site's affair: it is judged there, now.
        if self.waiting.get(&key).is_some_and(|waiting| waiting.site != *site) {
            self.gone(user, object);
        }
        let before = self.remove(&key).map_or(0, |waiting| waiting.octets);
        self.by_age.insert((at, Arc::clone(&key)));
        self.waiting.insert(
            Arc::clone(&key),
            Waiting { site: site.clone(), octets: before.saturating_add(octets), at },
        );
        self.changed.insert(key);
        self.tally(user, site, |tally| tally.fetched = tally.fetched.saturating_add(octets));
        while self.waiting.len() > self.entries_max {
            let Some((_, oldest)) = self.by_age.first().cloned() else { break };
            self.gone(oldest.user, &oldest.object);
        }
    }

    /// The user read `octets` of `object` from the store. What waited of it is used, as far as it goes.
    pub fn used(&mut self, user: UserKey, object: &ObjectKey, octets: u64) {
        let key = Arc::new(Key { user, object: object.clone() });
        let Some(mut waiting) = self.remove(&key) else { return };
        let used = octets.min(waiting.octets);
        let site = waiting.site.clone();
        waiting.octets -= used;
        if waiting.octets > 0 {
            self.by_age.insert((waiting.at, Arc::clone(&key)));
            self.waiting.insert(Arc::clone(&key), waiting);
        }
        self.changed.insert(key);
        self.tally(user, &site, |tally| tally.used = tally.used.saturating_add(used));
    }

    /// The store has forgotten `object`, or its message is gone: what waited of it was wasted.
    pub fn gone(&mut self, user: UserKey, object: &ObjectKey) {
        let key = Arc::new(Key { user, object: object.clone() });
        let Some(waiting) = self.remove(&key) else { return };
        self.changed.insert(key);
        let wasted = if mutants::on("ledger-waste-unseen") { 0 } else { waiting.octets };
        self.tally(user, &waiting.site, |tally| tally.wasted = tally.wasted.saturating_add(wasted));
    }

    /// What waited for longer than `unused_max` was wasted.
    pub fn expire(&mut self, now: UnixMillis, unused_max: Duration) {
        while let Some((at, key)) = self.by_age.first().cloned() {
            if now.since(at) <= unused_max {
                break;
            }
            self.gone(key.user, &key.object);
        }
    }

    /// Forgets a user: what waits for him, and his totals.
    pub fn forget(&mut self, user: UserKey) {
        self.waiting.retain(|key, _| key.user != user);
        self.by_age.retain(|(_, key)| key.user != user);
        self.tallies.retain(|(of, _), _| *of != user);
        self.changed.retain(|key| key.user != user);
        self.changed_tallies.retain(|(of, _)| *of != user);
        self.forgotten.insert(user);
    }

    /// The user opened an object; was it there?
    pub fn opened(&mut self, user: UserKey, site: &SiteId, served: Served) {
        self.tally(user, site, |tally| {
            tally.opens = tally.opens.saturating_add(1);
            tally.hits = tally.hits.saturating_add(u64::from(served == Served::Store));
        });
    }

    /// Totals, by user and site.
    #[must_use]
    pub fn report(&self) -> Vec<Row> {
        let row = |((user, site), tally): (&(UserKey, SiteId), &Tally)| Row {
            user: *user,
            site: site.clone(),
            tally: *tally,
        };
        self.tallies.iter().map(row).collect()
    }

    /// What changed since it was last asked.
    pub fn take_changes(&mut self) -> LedgerChanges {
        let waiting = std::mem::take(&mut self.changed)
            .into_iter()
            .map(|key| (Arc::clone(&key), self.waiting.get(&key).cloned()))
            .collect();
        let tallies = std::mem::take(&mut self.changed_tallies)
            .into_iter()
            .filter_map(|(user, site)| {
                let tally = self.tallies.get(&(user, site.clone())).copied()?;
                Some(Row { user, site, tally })
            })
            .collect();
        LedgerChanges { waiting, tallies, forgotten: std::mem::take(&mut self.forgotten) }
    }

    fn remove(&mut self, key: &Arc<Key>) -> Option<Waiting> {
        let waiting = self.waiting.remove(key)?;
        self.by_age.remove(&(waiting.at, Arc::clone(key)));
        Some(waiting)
    }

    fn tally(&mut self, user: UserKey, site: &SiteId, change: impl FnOnce(&mut Tally)) {
        let who = (user, site.clone());
        change(self.tallies.entry(who.clone()).or_default());
        self.changed_tallies.insert(who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::id::ServerId;
    use proptest::prelude::*;

    fn user(n: u8) -> UserKey {
        UserKey { version: 1, hash: [n; 16] }
    }

    fn object(n: u8) -> ObjectKey {
        ObjectKey { server: ServerId::new("files.example").unwrap(), key: vec![n] }
    }

    fn site(n: u8) -> SiteId {
        SiteId::new(&format!("site-{n}")).unwrap()
    }

    #[test]
    fn an_octet_is_used_or_wasted_and_waits_until_then() {
        let mut ledger = Ledger::new(10);
        let tally = |ledger: &Ledger| ledger.report()[0].tally;
        ledger.record_fetched(user(1), &site(1), &object(1), 100, UnixMillis(1));
        assert_eq!(tally(&ledger).waiting(), 100);
        ledger.used(user(2), &object(1), 100);
        assert_eq!(tally(&ledger).used, 0, "another's use is not his");
        ledger.used(user(1), &object(1), 30);
        ledger.used(user(1), &object(1), 30);
        ledger.gone(user(1), &object(1));
        ledger.gone(user(1), &object(1));
        ledger.used(user(1), &object(1), 30);
        let end = tally(&ledger);
        assert_eq!((end.fetched, end.used, end.wasted, end.waiting()), (100, 60, 40, 0));
    }

    #[test]
    fn what_waits_too_long_or_finds_no_room_was_wasted() {
        let mut ledger = Ledger::new(2);
        for n in 1..=3 {
            ledger.record_fetched(user(1), &site(1), &object(n), 10, UnixMillis(i64::from(n)));
        }
        assert_eq!(ledger.report()[0].tally.wasted, 10);
        ledger.expire(UnixMillis(13), Duration::from_millis(10));
        assert_eq!(ledger.report()[0].tally.wasted, 20);
        ledger.opened(user(1), &site(1), Served::Store);
        ledger.opened(user(1), &site(1), Served::Origin);
        let tally = ledger.report()[0].tally;
        assert_eq!((tally.opens, tally.hits, tally.waiting()), (2, 1, 10));
    }

    #[test]
    fn what_a_crash_lost_sight_of_counts_as_wasted() {
        let mut ledger = Ledger::new(9);
        let tally = Tally { fetched: 100, used: 20, wasted: 10, ..Tally::default() };
        ledger.load_tally(Row { user: user(1), site: site(1), tally });
        let waiting = Waiting { site: site(1), octets: 50, at: UnixMillis(1) };
        ledger.load_waiting(Key { user: user(1), object: object(1) }, waiting);
        assert_eq!(ledger.reconcile(), 20);
        let tally = ledger.report()[0].tally;
        assert_eq!((tally.wasted, tally.waiting()), (30, 50));
    }

    proptest! {
        #[test]
        fn fetched_is_used_and_wasted_and_waiting(
            steps in proptest::collection::vec((0_u8..6, 0_u8..3, 0_u8..6, 0_u8..2, 0_u64..100), 1..150),
        ) {
            let mut ledger = Ledger::new(5);
            let mut fetched: BTreeMap<(UserKey, SiteId), u64> = BTreeMap::new();
            for (nth, (what, who, which, place, octets)) in steps.into_iter().enumerate() {
                let at = UnixMillis(i64::try_from(nth).unwrap());
                match what {
                    0 => ledger.used(user(who), &object(which), octets),
                    1 => ledger.gone(user(who), &object(which)),
                    2 => ledger.expire(at, Duration::from_millis(40)),
                    _ => {
                        ledger.record_fetched(user(who), &site(place), &object(which), octets, at);
                        *fetched.entry((user(who), site(place))).or_default() += octets;
                    }
                }
                prop_assert!(ledger.waiting.len() <= 5 && ledger.waiting.len() == ledger.by_age.len());
                for row in ledger.report() {
                    let waits: u64 = ledger
                        .waiting
                        .iter()
                        .filter(|(key, waiting)| key.user == row.user && waiting.site == row.site)
                        .map(|(_, waiting)| waiting.octets)
                        .sum();
                    let tally = row.tally;
                    prop_assert_eq!(tally.used + tally.wasted + waits, tally.fetched);
                    prop_assert_eq!(Some(&tally.fetched), fetched.get(&(row.user, row.site)));
                }
            }
        }
    }
}
