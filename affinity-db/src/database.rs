//! The records of all users: bounded, expiring, and telling what changed so that it can be written down.

use crate::{
    mutants,
    record::{Event, Key, Record},
};
use discovery_core::{id::UserKey, now::UnixMillis, value::ObjectKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records of one user; his least recently used goes first. Some 200 octets each.
    pub per_user_max: usize,
    /// Users; whoever was quiet longest goes first, wholly.
    pub users_max: usize,
    /// A record that was not touched for so long goes ('objects not accessed for some configurable amount of
    /// time can simply be discarded').
    pub unused_max: Duration,
}

impl Default for Limits {
    /// 4,096 records a user, 2,048 users, 90 days.
    fn default() -> Self {
        Self { per_user_max: 4096, users_max: 2048, unused_max: Duration::from_secs(90 * 86_400) }
    }
}

/// A change to write down: the record as it is now, or `None` for one that is gone.
pub type Change = (Arc<Key>, Option<Record>);

/// The user affinity database in memory.
#[derive(Debug)]
pub struct Database {
    limits: Limits,
    users: BTreeMap<UserKey, Records>,
    /// Who was active when, oldest first.
    active: BTreeSet<(UnixMillis, UserKey)>,
    changed: BTreeMap<Arc<Key>, Option<Record>>,
    evicted: u64,
}

#[derive(Debug, Default)]
struct Records {
    by_object: BTreeMap<ObjectKey, (Arc<Key>, Record)>,
    by_age: BTreeSet<(UnixMillis, Arc<Key>)>,
    active: UnixMillis,
}

impl Database {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, users: BTreeMap::new(), active: BTreeSet::new(), changed: BTreeMap::new(), evicted: 0 }
    }

    /// Takes a record that was written down before. The limits hold for these as well.
    pub fn load(&mut self, key: Key, record: Record) {
        let at = record.last;
        self.insert(Arc::new(key), record, at);
    }

    /// Applies an event to a user's record of an object and gives the record back.
    pub fn note(&mut self, user: UserKey, object: &ObjectKey, event: Event, at: UnixMillis) -> Record {
        let before = self.users.get(&user).and_then(|records| records.by_object.get(object));
        let key =
            before.map_or_else(|| Arc::new(Key { user, object: object.clone() }), |(key, _)| Arc::clone(key));
        let record = Record::after(before.map(|(_, record)| *record), event, at);
        self.changed.insert(Arc::clone(&key), Some(record));
        self.insert(key, record, at);
        record
    }

    /// What is known of a user and an object.
    #[must_use]
    pub fn get(&self, user: UserKey, object: &ObjectKey) -> Option<Record> {
        // One user's habits are nobody else's business.
        let records = if mutants::on("affinity-of-anyone") {
            self.users.values().find(|records| records.by_object.contains_key(object))
        } else {
            self.users.get(&user)
        };
        records?.by_object.get(object).map(|(_, record)| *record)
    }

    /// Forgets what was not touched for too long; at most `max` records, so that it can be called often.
    pub fn expire(&mut self, now: UnixMillis, max: usize) -> usize {
        let mut gone = 0;
        let users: Vec<UserKey> = self.users.keys().copied().collect();
        for user in users {
            while gone < max {
                let Some(records) = self.users.get_mut(&user) else { break };
                let Some((last, key)) = records.by_age.first().cloned() else { break };
                if now.since(last) <= self.limits.unused_max {
                    break;
                }
                records.remove(&key);
                self.changed.insert(key, None);
                gone += 1;
            }
            if self.users.get(&user).is_some_and(|records| records.by_object.is_empty()) {
                self.forget(user);
            }
        }
        gone
    }

    /// Forgets a user: all his records.
    pub fn forget(&mut self, user: UserKey) {
        if let Some(records) = self.users.remove(&user) {
            self.active.remove(&(records.active, user));
            self.changed.extend(records.by_object.into_values().map(|(key, _)| (key, None)));
        }
    }

    /// What changed since it was last asked; the last word on each record only.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changed).into_iter().collect()
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.values().map(|records| records.by_object.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// How many records went because there was no room.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn insert(&mut self, key: Arc<Key>, record: Record, at: UnixMillis) {
        let user = key.user;
        let records = self.users.entry(user).or_default();
        self.active.remove(&(records.active, user));
        records.active = records.active.max(at);
        self.active.insert((records.active, user));
        if let Some((_, before)) = records.by_object.get(&key.object) {
            records.by_age.remove(&(before.last, Arc::clone(&key)));
        }
        records.by_age.insert((record.last, Arc::clone(&key)));
        records.by_object.insert(key.object.clone(), (key, record));
        while records.by_object.len() > self.limits.per_user_max && !mutants::on("affinity-without-bound") {
            let Some((_, oldest)) = records.by_age.first().cloned() else { break };
            records.remove(&oldest);
            self.changed.insert(oldest, None);
            self.evicted += 1;
        }
        while self.users.len() > self.limits.users_max {
            let Some(&(_, quiet)) = self.active.first() else { break };
            self.evicted += self.users.get(&quiet).map_or(0, |records| records.by_object.len() as u64);
            self.forget(quiet);
        }
    }
}

impl Records {
    fn remove(&mut self, key: &Arc<Key>) {
        if let Some((_, record)) = self.by_object.remove(&key.object) {
            self.by_age.remove(&(record.last, Arc::clone(key)));
        }
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

    fn limits(per_user_max: usize, users_max: usize) -> Limits {
        Limits { per_user_max, users_max, unused_max: Duration::from_millis(100) }
    }

    #[test]
    fn a_user_sees_his_own_records_only() {
        let mut db = Database::new(limits(9, 9));
        db.note(user(1), &object(1), Event::Used, UnixMillis(5));
        assert_eq!(db.get(user(1), &object(1)).map(|record| record.count), Some(1));
        assert_eq!(db.get(user(2), &object(1)), None);
    }

    #[test]
    fn what_was_not_used_for_long_goes_and_is_told() {
        let mut db = Database::new(limits(9, 9));
        for n in 1..=4 {
            db.note(user(1), &object(n), Event::Used, UnixMillis(i64::from(n) * 50));
        }
        db.note(user(1), &object(1), Event::Used, UnixMillis(190));
        assert_eq!(db.take_changes().len(), 4);
        assert_eq!(db.expire(UnixMillis(200), 9), 0, "exactly the limit stays");
        assert_eq!(db.expire(UnixMillis(260), 9), 2);
        let changes = db.take_changes();
        assert_eq!(changes.iter().map(|(key, _)| key.object.key[0]).collect::<Vec<_>>(), [2, 3]);
        assert!(changes.iter().all(|(_, record)| record.is_none()));
        assert_eq!(db.expire(UnixMillis(9999), 1), 1, "no more at once than asked");
        db.expire(UnixMillis(9999), 9);
        assert!(db.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_least_used_goes() {
        let mut db = Database::new(limits(3, 2));
        for n in 1..=5 {
            db.note(user(1), &object(n), Event::Used, UnixMillis(i64::from(n)));
        }
        assert_eq!((db.len(), db.evicted()), (3, 2));
        assert!(db.get(user(1), &object(2)).is_none() && db.get(user(1), &object(3)).is_some());
        db.note(user(2), &object(1), Event::Used, UnixMillis(10));
        db.note(user(3), &object(1), Event::Used, UnixMillis(11));
        assert!(db.get(user(1), &object(5)).is_none(), "whoever was quiet longest");
        assert!(db.get(user(2), &object(1)).is_some() && db.get(user(3), &object(1)).is_some());
    }

    proptest! {
        #[test]
        fn changes_replayed_give_the_same_database(
            steps in proptest::collection::vec((0_u8..5, 0_u8..12, 0_u8..4, 0_i64..500), 1..120),
        ) {
            let limits = limits(6, 3);
            let (mut db, mut written) = (Database::new(limits), BTreeMap::new());
            for (nth, (who, what, how, when)) in steps.into_iter().enumerate() {
                let at = UnixMillis(when);
                match how {
                    0 => drop(db.note(user(who), &object(what), Event::Passed, at)),
                    1 => drop(db.expire(at, 3)),
                    2 if nth % 5 == 0 => db.forget(user(who)),
                    _ => drop(db.note(user(who), &object(what), Event::Used, at)),
                }
                if nth % 3 == 0 {
                    for (key, record) in db.take_changes() {
                        match record {
                            Some(record) => drop(written.insert(key, record)),
                            None => drop(written.remove(&key)),
                        }
                    }
                }
                prop_assert!(db.users.len() <= 3 && db.users.values().all(|r| r.by_object.len() <= 6));
                prop_assert!(db.users.values().all(|r| r.by_object.len() == r.by_age.len()));
                prop_assert_eq!(db.users.len(), db.active.len());
            }
            for (key, record) in db.take_changes() {
                match record {
                    Some(record) => drop(written.insert(key, record)),
                    None => drop(written.remove(&key)),
                }
            }
            let held: BTreeMap<_, _> =
                db.users.values().flat_map(|r| r.by_object.values().cloned()).collect();
            prop_assert_eq!(written, held);
        }
    }
}
