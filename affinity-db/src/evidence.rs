//! Items that are there and whose fate is open: used in the end, or passed over.

use discovery_core::{
    id::UserKey,
    now::UnixMillis,
    seam::advisor::{Item, Kinship},
    value::ObjectKey,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// An item that its user may still open for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) object: ObjectKey,
    pub(crate) collection: ObjectKey,
    pub(crate) kin: Kinship,
    pub(crate) octets: u64,
    pub(crate) main_octets: u64,
    /// When it came: the same however often it is listed.
    came: UnixMillis,
}

/// Open items of all users.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    users: BTreeMap<UserKey, Mine>,
}

#[derive(Debug, Default)]
struct Mine {
    open: BTreeMap<ObjectKey, Open>,
    order: VecDeque<ObjectKey>,
    active: UnixMillis,
}

impl Evidence {
    /// An item is there. Said again, it is the same item.
    pub(crate) fn listed(&mut self, user: UserKey, collection: &ObjectKey, item: &Item, at: UnixMillis) {
        if !self.users.contains_key(&user) && self.users.len() >= USERS_MAX {
            let quiet = self.users.iter().min_by_key(|(_, mine)| mine.active).map(|(user, _)| *user);
            quiet.map(|quiet| self.users.remove(&quiet));
        }
        let mine = self.users.entry(user).or_default();
        let open = Open {
            object: item.object.clone(),
            collection: collection.clone(),
            kin: item.kin,
            octets: item.octets,
            main_octets: item.main_octets,
            came: item.arrived.min(at),
        };
        if mine.open.insert(item.object.clone(), open).is_none() {
            mine.order.push_back(item.object.clone());
        }
        while mine.order.len() > OPEN_MAX {
            // Too many to tell: no evidence either way.
            mine.order.pop_front().map(|object| mine.open.remove(&object));
        }
    }

    /// Nothing is known of the user any longer.
    pub(crate) fn forget(&mut self, user: UserKey) {
        self.users.remove(&user);
    }

    /// The user used `object`; gives what was open if this was the first time.
    pub(crate) fn used(&mut self, user: UserKey, object: &ObjectKey, at: UnixMillis) -> Option<Open> {
        let mine = self.users.get_mut(&user)?;
        mine.active = mine.active.max(at);
        mine.open.remove(object)
    }

    /// The next item that its user has passed over by now: it was there for long, and he was there after it.
    pub(crate) fn passed(&mut self, user: UserKey, now: UnixMillis) -> Option<Open> {
        let mine = self.users.get_mut(&user)?;
        while let Some(first) = mine.order.front() {
            match mine.open.get(first) {
                Some(open) if !is_passed(open.came, mine.active, now) => return None,
                Some(_) | None => {}
            }
            let gone = mine.order.pop_front()?;
            if let Some(open) = mine.open.remove(&gone) {
                return Some(open);
            }
        }
        None
    }
}

/// Whether an item that came then counts as passed over.
fn is_passed(came: UnixMillis, active: UnixMillis, now: UnixMillis) -> bool {
    now.since(came) >= PASSED_AFTER && active.since(came) >= STAYED
}

/// A working day: who has not opened it by then has decided.
const PASSED_AFTER: Duration = Duration::from_secs(20 * 3600);

/// He used something so long after the item came: he was not away.
const STAYED: Duration = Duration::from_secs(2 * 3600);

/// Open items of one user; some 300 octets each.
const OPEN_MAX: usize = 2048;

/// Users with open items.
const USERS_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_over_row_by_row() {
        let hours = |n: i64| UnixMillis(n * 3_600_000);
        for (came, active, now, passed) in
            [(0, 9, 19, false), (0, 9, 20, true), (0, 1, 90, false), (0, 2, 90, true), (50, 9, 20, false)]
        {
            assert_eq!(is_passed(hours(came), hours(active), hours(now)), passed, "{came} {active} {now}");
        }
    }
}
