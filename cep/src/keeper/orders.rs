//! Orders of the [`Preload`](imap_core::preload::Preload), carried out one at a time.

use super::{Keeper, Phase, ROUND_MAX, places::AWAY_MAX};
use bytes::Bytes;
use discovery_core::{
    now::Now,
    seam::{advisor::Held as HeldBy, gate::Grant},
};
use imap_core::{
    catalog::{CatalogOp, Held, MailboxKey, RESOLVE_UIDS_MAX, RequestId, Row},
    item::ItemKey,
    mutants,
    preload::{DESCRIBING, DESCRIPTION_OCTETS, Description, Order, Work, describing_items},
    uid::Uid,
};
use std::{collections::BTreeMap, time::Duration};

impl Keeper {
    /// The next command, or watching. Everything else of the round has been done.
    pub(super) fn go_on(&mut self, now: Now) {
        for _ in 0..REFUSED_MAX {
            if self.stale || self.examined_at + ROUND_MAX <= now.mono {
                return self.open(now);
            }
            let Some(open) = self.here().key.clone() else { return self.watch(now) };
            if self.away.is_some() && self.left_home + AWAY_MAX <= now.mono {
                return self.go_home(now);
            }
            if let Some(name) = self.next_visit(now) {
                if name != open.name && self.go(&name, now) {
                    return;
                }
                continue;
            }
            if self.resume.is_some_and(|resume| resume > now.mono) {
                // Nothing may go yet: not by going to and fro either.
                return self.watch(now);
            }
            let order = match self.order.take() {
                Some(order) => order,
                None => {
                    self.awaited = None;
                    match self.preload.next(&open, true, now) {
                        Some(order) => order,
                        None => return self.watch(now),
                    }
                }
            };
            if !self.is_ours(&order.mailbox) || (self.awaited.is_none() && !self.may(&order.work)) {
                continue;
            }
            if order.mailbox != open {
                let name = order.mailbox.name.clone();
                self.order = Some(order);
                // Of the same name, it is another generation and no longer there.
                if name != open.name && self.go(&name, now) {
                    return;
                }
                self.order = None;
                continue;
            }
            if let Work::Describe(uids) = &order.work
                && self.awaited.is_none()
            {
                let uids = uids.clone();
                return self.resolve(order, uids);
            }
            let octets = match &self.awaited {
                Some(awaited) => (awaited.len() as u64).saturating_mul(DESCRIPTION_OCTETS),
                None => order.work.octets(),
            };
            match self.preload.ask(u32::try_from(octets).unwrap_or(u32::MAX), now) {
                Grant::Go => return self.fetch(order, now),
                Grant::Wait(until) => {
                    self.order = Some(order);
                    if until <= now.mono + WAIT_MAX {
                        self.phase = Phase::Waiting(until);
                        return;
                    }
                    // Not without an ear for news.
                    self.resume = Some(until);
                    return self.watch(now);
                }
                Grant::Never(_) => {
                    // Asked for the next one at once, the plan would give them all in vain.
                    self.awaited = None;
                    self.resume = Some(now.mono + NEVER_PAUSE);
                    return self.watch(now);
                }
            }
        }
        self.watch(now);
    }

    /// Asks for an order while the mailbox is watched; one that comes begins a round.
    pub(super) fn look(&mut self, now: Now) {
        self.looked = now.mono;
        let Some(open) = self.home.key.clone() else { return };
        self.awaited = None;
        self.order = self.preload.next(&open, true, now).filter(|order| self.may(&order.work));
        if self.order.is_none() {
            return;
        }
        if matches!(self.phase, Phase::Idle(_, false)) { self.leave_idle(now) } else { self.open(now) }
    }

    /// Whether it is a mailbox of this account, as this session would name it.
    fn is_ours(&self, mailbox: &MailboxKey) -> bool {
        mailbox.account == self.facts.account && mailbox.utf8 == self.facts.utf8
    }

    /// Whether the limits allow it, whoever ordered it.
    fn may(&self, work: &Work) -> bool {
        match work {
            Work::Describe(uids) => !uids.is_empty(),
            Work::Whole { octets, .. } => *octets <= self.limits.size_max,
            Work::Sections { sections, .. } => {
                !sections.is_empty()
                    && sections.iter().all(|(key, _)| key.section_spec().is_some())
                    && work.octets() <= self.limits.size_max
            }
        }
    }

    /// Asks the store what it has of the first messages of an order; the rest comes after them.
    fn resolve(&mut self, mut order: Order, mut uids: Vec<Uid>) {
        let rest = uids.split_off(uids.len().min(RESOLVE_UIDS_MAX));
        let mailbox = order.mailbox.clone();
        order.work = Work::Describe(rest);
        self.order = Some(order);
        self.awaited = Some(uids.iter().map(|uid| (*uid, HeldBy::Nothing)).collect());
        self.requests += 1;
        let request = RequestId(self.requests);
        let items = describing_items().into_iter().chain([ItemKey::whole()]).collect();
        self.catalog(CatalogOp::Resolve { request, mailbox, uids, items });
        self.phase = Phase::Asking(request);
    }

    /// What the store remembers need not cross the WAN again. Whether the message was read since is not asked: a store
    /// remembers no flags, and what it has is seldom fetched again.
    pub(super) fn resolved(&mut self, now: Now, rows: Vec<Row>) {
        let (Some(mut awaited), Some(key)) = (self.awaited.take(), self.here().key.clone()) else {
            return self.go_on(now);
        };
        for Row { uid, values } in rows {
            let keys = describing_items();
            let body = values.get(keys.len()).cloned().flatten();
            let held = match body {
                Some(Held::Inline(_) | Held::Stored { .. }) => HeldBy::Whole,
                Some(Held::Filling { .. }) => HeldBy::Part,
                None => HeldBy::Nothing,
            };
            let Some(waiting) = awaited.get_mut(&uid) else { continue };
            *waiting = held;
            let small = |value: Option<Held>| match value? {
                Held::Inline(octets) => Some(octets),
                Held::Stored { .. } | Held::Filling { .. } => None,
            };
            let count = keys.len();
            let items = keys.into_iter().zip(values.into_iter().take(count));
            let items: Option<Vec<(ItemKey, Bytes)>> =
                items.map(|(key, value)| Some((key, small(value)?))).collect();
            if let Some(said) = items.and_then(|items| Description::of(&items, false)) {
                awaited.remove(&uid);
                self.preload.described(&key, uid, &said, now);
                self.preload.held(&key, uid, held);
            }
        }
        if awaited.is_empty() {
            return self.described(now);
        }
        self.awaited = Some(awaited);
        self.go_on(now);
    }

    /// All that an order asked to be described was, or is not there.
    fn described(&mut self, now: Now) {
        self.awaited = None;
        self.order = self.order.take().filter(|order| self.may(&order.work));
        self.go_on(now);
    }

    fn fetch(&mut self, order: Order, now: Now) {
        let peek = |key: &ItemKey| {
            let peek = if mutants::on("keeper-marks-seen") { "" } else { ".PEEK" };
            format!("BODY{peek}[{}]", key.section_spec().unwrap_or_default())
        };
        let (set, items) = match &order.work {
            Work::Describe(_) => {
                let uids = self.awaited.iter().flat_map(BTreeMap::keys);
                let set: Vec<String> = uids.map(|uid| uid.get().to_string()).collect();
                (set.join(","), DESCRIBING.to_owned())
            }
            Work::Whole { uid, .. } => (uid.get().to_string(), format!("UID {}", peek(&ItemKey::whole()))),
            Work::Sections { uid, sections } => {
                let items: Vec<String> = sections.iter().map(|(key, _)| peek(key)).collect();
                (uid.get().to_string(), format!("UID {}", items.join(" ")))
            }
        };
        let tag = self.tag();
        self.send(format!("{tag} UID FETCH {set} ({items})\r\n"));
        self.asked = now.mono;
        self.brought = false;
        self.order = Some(order);
        self.phase = Phase::Fetching(tag.into());
    }

    /// The origin has answered the order under way.
    pub(super) fn fetch_done(&mut self, ok: bool, now: Now) {
        let (Some(order), Some(key)) = (self.order.take(), self.here().key.clone()) else {
            return self.go_on(now);
        };
        if !ok {
            // Asking on would hear the same.
            self.awaited = None;
            return self.watch(now);
        }
        let missing: Vec<Uid> = match &order.work {
            Work::Describe(_) => self.awaited.take().unwrap_or_default().into_keys().collect(),
            Work::Whole { uid, .. } | Work::Sections { uid, .. } if !self.brought => vec![*uid],
            Work::Whole { .. } | Work::Sections { .. } => Vec::new(),
        };
        if !missing.is_empty() {
            self.preload.gone(&key, &missing, now);
        }
        if matches!(order.work, Work::Describe(_)) {
            self.order = Some(order);
            return self.described(now);
        }
        self.go_on(now);
    }
}

/// Orders that cannot be followed, in one go; then the mailbox is watched.
const REFUSED_MAX: usize = 256;
/// After a 'never': a day's budget comes back with the day.
const NEVER_PAUSE: Duration = Duration::from_secs(600);
/// A longer wait is spent in IDLE.
const WAIT_MAX: Duration = Duration::from_secs(3);
