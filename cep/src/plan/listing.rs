//! What is known of a mailbox: its newest messages, in few octets each.

use discovery_core::{
    now::UnixMillis,
    seam::advisor::{Held, Item, Kinship},
    value::ObjectKey,
};
use imap_core::{item::ItemKey, preload::Description, retained::UidRanges, uid::Uid};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Messages of a mailbox that are described at all, the newest.
pub(super) const DESCRIBED_MAX: usize = 512;

/// Of one order.
const BATCH: usize = 24;

/// A description that did not come is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Listing {
    uids: UidRanges,
    known: BTreeMap<Uid, Known>,
    asked: BTreeMap<Uid, Instant>,
    pub(super) told: Instant,
}

#[derive(Debug)]
struct Known {
    octets: u64,
    main_octets: u64,
    arrived: UnixMillis,
    used: bool,
    held: Held,
    kin: Kinship,
    /// Only where there is more than text.
    text: Box<[(ItemKey, u64)]>,
}

impl Listing {
    pub(super) fn new(told: Instant) -> Self {
        Self { uids: UidRanges::default(), known: BTreeMap::new(), asked: BTreeMap::new(), told }
    }

    pub(super) fn listed(&mut self, uids: &UidRanges) {
        self.uids = uids.clone();
        let mut newest: Vec<u32> = uids.newest_first().take(DESCRIBED_MAX).collect();
        newest.reverse();
        let stays = |uid: &Uid| newest.binary_search(&uid.get()).is_ok();
        self.known.retain(|uid, _| stays(uid));
        self.asked.retain(|uid, _| stays(uid));
    }

    pub(super) fn described(&mut self, uid: Uid, said: &Description, kin: Kinship) {
        self.asked.remove(&uid);
        let held = self.known.get(&uid).map_or(Held::Nothing, |known| known.held);
        let main_octets = said.main_octets();
        let text = if main_octets < said.octets {
            said.text.iter().map(|part| (part.key.clone(), part.octets)).collect()
        } else {
            Box::default()
        };
        let known = Known {
            octets: said.octets,
            main_octets,
            arrived: said.arrived,
            used: said.seen,
            held,
            kin,
            text,
        };
        self.known.insert(uid, known);
        while self.known.len() > DESCRIBED_MAX {
            self.known.pop_first();
        }
    }

    pub(super) fn held(&mut self, uid: Uid, held: Held) {
        if let Some(known) = self.known.get_mut(&uid) {
            known.held = held;
        }
    }

    pub(super) fn read(&mut self, uid: Uid) {
        if let Some(known) = self.known.get_mut(&uid) {
            known.used = true;
        }
    }

    pub(super) fn gone(&mut self, uids: &[Uid]) {
        for uid in uids {
            self.known.remove(uid);
            self.asked.remove(uid);
        }
        self.uids = self.uids.without(&UidRanges::of(uids.iter().map(|uid| uid.get())));
    }

    /// Of the `newest` messages those that were never described, newest first.
    pub(super) fn undescribed(&mut self, newest: usize, now: Instant) -> Option<Vec<Uid>> {
        self.asked.retain(|_, at| now.saturating_duration_since(*at) < ASK_AGAIN);
        let unknown = |uid: &Uid| !self.known.contains_key(uid) && !self.asked.contains_key(uid);
        let newest = self.uids.newest_first().take(newest).filter_map(Uid::new);
        let uids: Vec<Uid> = newest.filter(unknown).take(BATCH).collect();
        self.asked.extend(uids.iter().map(|uid| (*uid, now)));
        (!uids.is_empty()).then_some(uids)
    }

    /// Their descriptions will not come, unless asked for again.
    pub(super) fn unasked(&mut self, uids: &[Uid]) {
        for uid in uids {
            self.asked.remove(uid);
        }
    }

    /// `object` is its key in the user affinity database.
    pub(super) fn item(&self, uid: Uid, object: ObjectKey) -> Option<Item> {
        let known = self.known.get(&uid)?;
        Some(Item {
            nth: uid.get(),
            object,
            octets: known.octets,
            main_octets: known.main_octets,
            arrived: known.arrived,
            used: known.used,
            held: known.held,
            kin: known.kin,
        })
    }

    /// Ascending.
    pub(super) fn items(&self, object: impl Fn(Uid) -> ObjectKey) -> Vec<Item> {
        self.known.keys().filter_map(|uid| self.item(*uid, object(*uid))).collect()
    }

    pub(super) fn octets(&self, uid: Uid) -> u64 {
        self.known.get(&uid).map_or(0, |known| known.octets)
    }

    pub(super) fn text(&self, uid: Uid) -> &[(ItemKey, u64)] {
        self.known.get(&uid).map_or(&[], |known| &known.text)
    }
}
