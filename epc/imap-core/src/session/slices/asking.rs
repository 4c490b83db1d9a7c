//! What is asked next, of the store and of the origin.

use super::{
    super::{Idle, tee::Reading, underway::Own},
    Claiming, Doing, Fetch, UnderWay,
    idling::Line,
    piece::{Piece, SLICE_OCTETS_MAX},
};
use crate::{
    catalog::{self, CatalogOp, RESOLVE_UIDS_MAX, Row},
    item::{ItemClass, ItemKey, SectionClass},
    mutants,
    preload::{DESCRIBING, DESCRIPTION_OCTETS, Description, Order, Work, describing_items},
    sequence_set::SequenceSet,
    uid::{Msn, Uid},
    views::SlotId,
};
use bytes::{Bytes, BytesMut};
use discovery_core::seam::{
    advisor::Held,
    gate::{Grant, Why},
};
use std::time::{Duration, Instant};

impl super::super::Session {
    /// Tells what has changed, and goes on with what nobody asked for, as far as that goes now.
    pub(in crate::session) fn work_ahead(&mut self) {
        if self.synthetic.preload.is_none() {
            return;
        }
        self.tell_foreground(self.is_foreground());
        if self.is_selected() {
            self.tell_listed();
        }
        // Each turn asks somebody, ends an order or comes to rest.
        for _ in 0..TURNS_MAX {
            if !self.rests() || !self.move_ahead() {
                break;
            }
        }
        if self.rests() {
            self.return_to_idle();
        }
    }

    /// Whether the client wants nothing, the origin owes nothing, and an open mailbox may be stored of.
    pub(super) fn rests(&self) -> bool {
        let listening = matches!(self.idle, Idle::Listening(_));
        let in_idle = listening && self.synthetic.line.is_in_idle();
        let unspoken = self.client_input.is_empty() && self.client.is_between_lines() && !self.is_stalled();
        self.mailbox_key().is_some()
            && (listening || !self.idle.is_engaged())
            && self.underway.len() == usize::from(listening)
            && self.flights.len() == usize::from(in_idle)
            && self.waiting.is_none()
            && self.passing.is_none()
            && unspoken
            && !self.is_ahead()
            && self.claimed.is_none()
            && self.splices.is_empty()
            && matches!(self.reading, Reading::Nothing)
            && !self.client_finished
            && !self.bye_heard
    }

    /// When to go on although nothing happens.
    pub(in crate::session) fn slices_due(&self) -> Option<Instant> {
        self.synthetic.preload.as_ref()?;
        let idle = self.idle_due();
        let wait = self.synthetic.wait.max(self.synthetic.asleep).filter(|_| !self.synthetic.stopped);
        wait.into_iter().chain(idle).min().filter(|_| self.rests())
    }

    /// One thing; `false` when there is nothing to do before something happens.
    fn move_ahead(&mut self) -> bool {
        let Some(now) = self.mono() else { return false };
        if self.synthetic.asleep.is_some() && !self.newcomers().is_empty() {
            // Somebody has come since there was nothing to do.
            self.synthetic.asleep = None;
        }
        if self.synthetic.stopped || self.synthetic.wait.max(self.synthetic.asleep) > Some(now) {
            return false;
        }
        self.synthetic.wait = None;
        self.synthetic.asleep = None;
        match &mut self.synthetic.doing {
            Doing::Nothing => match self.newcomers() {
                newcomers if newcomers.is_empty() => self.next_order(),
                newcomers => self.ask_newcomers(newcomers),
            },
            Doing::Describe { request: Some(_), .. } => false,
            Doing::Describe { left, .. } if !left.is_empty() => {
                self.look_up_descriptions();
                false
            }
            Doing::Describe { missing, .. } if missing.is_empty() => {
                self.synthetic.doing = Doing::Nothing;
                true
            }
            Doing::Describe { missing, .. } => {
                let n = missing.len().min(BATCH_MAX);
                let octets = u32::try_from(n as u64 * DESCRIPTION_OCTETS).unwrap_or(SLICE_OCTETS_MAX);
                if !self.may_go(octets) {
                    return false;
                }
                self.ask_descriptions();
                true
            }
            Doing::Fetch(fetch)
                if fetch.asked.is_some_and(|asked| now.saturating_duration_since(asked) > HALF_MAX) =>
            {
                // The store no longer waits for the rest.
                self.bears_no_fruit();
                true
            }
            Doing::Fetch(fetch) => {
                let (uid, key, count) = (fetch.uid, fetch.key.clone(), fetch.piece.count());
                match self.synthetic.claim {
                    Claiming::No => {
                        if let Some(request) = self.ask_claim(uid, key) {
                            self.synthetic.claim = Claiming::Asked(request);
                        }
                        false
                    }
                    Claiming::Asked(_) => false,
                    Claiming::Ours => {
                        if !self.may_go(count) {
                            return false;
                        }
                        self.ask_slice();
                        true
                    }
                }
            }
        }
    }

    fn next_order(&mut self) -> bool {
        let Some((preload, open, now)) = self.preload() else { return false };
        let order = preload.next(&open, false, now);
        let Some(Order { mailbox, work }) = order.filter(|order| order.mailbox == open) else {
            self.synthetic.asleep = Some(now.mono + ASLEEP_MAX);
            return false;
        };
        drop(mailbox);
        self.synthetic.doing = match work {
            Work::Describe(uids) => {
                Doing::Describe { request: None, asked: Vec::new(), left: uids, missing: Vec::new() }
            }
            Work::Whole { uid, octets } => self.fetch(uid, [(ItemKey::whole(), octets)]),
            Work::Sections { uid, sections } => self.fetch(uid, sections),
        };
        if matches!(self.synthetic.doing, Doing::Nothing) {
            self.bears_no_fruit();
        }
        true
    }

    fn fetch(&self, uid: Uid, sections: impl IntoIterator<Item = (ItemKey, u64)>) -> Doing {
        let is_section = |key: &ItemKey| matches!(key.class(), ItemClass::Section(_));
        let mut rest = sections
            .into_iter()
            .filter(|(key, _)| is_section(key))
            .collect::<std::collections::VecDeque<_>>();
        let there = self.views.slot_of_uid(uid).filter(|slot| self.views.server_msn(*slot).is_some());
        let (Some(slot), Some((key, octets))) = (there, rest.pop_front()) else { return Doing::Nothing };
        let piece = Piece::new(octets, is_whole(&key));
        Doing::Fetch(Box::new(Fetch {
            slot,
            uid,
            key,
            piece,
            fill: None,
            asked: None,
            memory: BytesMut::new(),
            rest,
        }))
    }

    /// Whether so many octets may be asked for now. In IDLE that has to end first.
    fn may_go(&mut self, octets: u32) -> bool {
        let Some(now) = self.now else { return false };
        let granted = self.synthetic.granted.take().is_some_and(|granted| granted >= octets);
        if !granted && !mutants::on("session-slice-unasked") {
            let Some(preload) = &mut self.synthetic.preload else { return false };
            match preload.ask(octets, now) {
                Grant::Go => {}
                Grant::Wait(until) => {
                    // One that is due already would be asked again and again.
                    self.synthetic.wait = Some(until.max(now.mono + WAIT_MIN));
                    self.release_ours();
                    return false;
                }
                Grant::Never(Why::Budget) => {
                    // It comes back with the day.
                    self.synthetic.wait = Some(now.mono + BUDGET_PAUSE);
                    self.give_up();
                    return false;
                }
                Grant::Never(Why::Off) => {
                    self.synthetic.stopped = true;
                    self.give_up();
                    return false;
                }
            }
        }
        if matches!(self.idle, Idle::Listening(_)) && self.synthetic.line != Line::Left {
            self.synthetic.granted = Some(octets);
            self.leave_idle();
            return false;
        }
        true
    }

    fn ask_slice(&mut self) {
        let now = self.mono();
        let Doing::Fetch(fetch) = &mut self.synthetic.doing else { return };
        fetch.asked = now;
        let msn = self.views.server_msn(fetch.slot);
        let (Some(msn), Some(offset), Some(spec)) = (msn, fetch.piece.offset(), fetch.key.section_spec())
        else {
            // Gone meanwhile, or longer than IMAP can say.
            return self.bears_no_fruit();
        };
        let peek = if mutants::on("session-slice-sets-seen") { "" } else { ".PEEK" };
        let line = format!("FETCH {msn} (UID BODY{peek}[{spec}]<{offset}.{}>)\r\n", fetch.piece.count());
        let (slot, key) = (fetch.slot, fetch.key.clone());
        self.synthetic.under_way = Some(UnderWay::Slice { slot, key, offset, answer: None });
        self.send_slice(&line);
    }

    fn send_slice(&mut self, line: &str) {
        let tag = self.flights.own(Own::Slice);
        self.send(format!("{tag} {line}").into());
    }

    // ---- descriptions ------------------------------------------------------------------------------------

    fn look_up_descriptions(&mut self) {
        let Some(mailbox) = self.mailbox_key().cloned() else { return };
        let id = self.request();
        let Doing::Describe { request, asked, left, .. } = &mut self.synthetic.doing else { return };
        let at = left.len().min(RESOLVE_UIDS_MAX);
        let later = left.split_off(at);
        let uids = std::mem::replace(left, later);
        asked.clone_from(&uids);
        *request = Some(id);
        let items = describing_items().into_iter().chain([ItemKey::whole()]).collect();
        self.catalog(CatalogOp::Resolve { request: id, mailbox, uids, items });
    }

    /// What the store knows of them need not be asked.
    pub(super) fn describe_from_store(&mut self, asked: Vec<Uid>, rows: &[Row]) {
        let keys = describing_items();
        let mut rows = rows.iter();
        for uid in asked {
            let row = rows.next().filter(|row| row.uid == uid && row.values.len() == keys.len() + 1);
            let Some(slot) = self.views.slot_of_uid(uid) else { continue };
            let held = match row.and_then(|row| row.values.last()) {
                Some(Some(catalog::Held::Filling { .. })) => Held::Part,
                Some(Some(_)) => Held::Whole,
                Some(None) | None => Held::Nothing,
            };
            let items: Option<Vec<(ItemKey, Bytes)>> = row.and_then(|row| {
                let inline = |value: &Option<catalog::Held>| match value {
                    Some(catalog::Held::Inline(octets)) => Some(octets.clone()),
                    Some(catalog::Held::Stored { .. } | catalog::Held::Filling { .. }) | None => None,
                };
                keys.iter().zip(&row.values).map(|(key, value)| Some((key.clone(), inline(value)?))).collect()
            });
            let seen = self.views.seen(slot).unwrap_or_default();
            match items.and_then(|items| Description::of(&items, seen)) {
                Some(said) => self.described(uid, &said, held),
                None => {
                    if let Doing::Describe { missing, .. } = &mut self.synthetic.doing {
                        missing.push((uid, held));
                    }
                }
            }
        }
    }

    pub(super) fn described(&mut self, uid: Uid, said: &Description, held: Held) {
        self.synthetic.fruitless = 0;
        if let Some((preload, key, now)) = self.preload() {
            preload.described(&key, uid, said, now);
            preload.held(&key, uid, held);
            self.synthetic.wake();
        }
    }

    fn ask_descriptions(&mut self) {
        let Doing::Describe { missing, .. } = &mut self.synthetic.doing else { return };
        let later = missing.split_off(missing.len().min(BATCH_MAX));
        let now = std::mem::replace(missing, later);
        let batch: Vec<_> = now
            .into_iter()
            .filter_map(|(uid, held)| Some((self.views.slot_of_uid(uid)?, Some(uid), held)))
            .collect();
        self.send_descriptions(batch);
    }

    /// The newest messages whose UIDs nobody has asked for: a client in IDLE need not.
    fn newcomers(&self) -> Vec<SlotId> {
        if self.views.all_uids_known() {
            return Vec::new();
        }
        let len = self.views.server_len();
        let newest = (1..=len).rev().take(NEWCOMERS_AMONG).filter_map(Msn::new);
        let slots = newest.filter_map(|msn| self.views.slot_of_server(msn));
        let unknown = slots.filter(|slot| self.views.uid(*slot).is_none());
        // One that the origin did not describe is not asked again.
        unknown.filter(|slot| !self.synthetic.newcomers.contains(slot)).take(BATCH_MAX).collect()
    }

    fn ask_newcomers(&mut self, newcomers: Vec<SlotId>) -> bool {
        let octets = u32::try_from(newcomers.len() as u64 * DESCRIPTION_OCTETS).unwrap_or(SLICE_OCTETS_MAX);
        if !self.may_go(octets) {
            return false;
        }
        let views = &self.views;
        self.synthetic.newcomers.retain(|slot| views.uid(*slot).is_none());
        self.synthetic.newcomers.extend(&newcomers);
        self.send_descriptions(newcomers.into_iter().map(|slot| (slot, None, Held::Nothing)).collect());
        true
    }

    fn send_descriptions(&mut self, batch: Vec<(SlotId, Option<Uid>, Held)>) {
        let mut numbers: Vec<u32> =
            batch.iter().filter_map(|(slot, ..)| self.views.server_msn(*slot)).map(Msn::get).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() {
            return;
        }
        let set = SequenceSet::from_sorted(numbers);
        let flags = |(slot, ..): &(SlotId, Option<Uid>, Held)| Some((*slot, self.flags.last(*slot)?.clone()));
        let before = batch.iter().filter_map(flags).collect();
        self.synthetic.under_way = Some(UnderWay::Describe { batch, told: 0, before });
        self.send_slice(&format!("FETCH {set} ({DESCRIBING})\r\n"));
    }

    // ---- the end of an order -----------------------------------------------------------------------------

    /// Nothing came of it.
    pub(super) fn bears_no_fruit(&mut self) {
        self.give_up();
        self.synthetic.fruitless += 1;
        if self.synthetic.fruitless >= FRUITLESS_MAX {
            self.synthetic.fruitless = 0;
            self.synthetic.wait = self.mono().map(|now| now + FRUITLESS_PAUSE);
        }
    }

    /// The store has this section; on to the next one. `found`: it was there already.
    pub(super) fn section_done(&mut self, found: bool) {
        let Doing::Fetch(fetch) = &mut self.synthetic.doing else { return };
        let uid = fetch.uid;
        let held = if is_whole(&fetch.key) { Held::Whole } else { Held::Part };
        let unused = fetch.fill.take().filter(|_| found);
        if let Some(fill) = unused {
            self.catalog(CatalogOp::FillAbort { fill });
        }
        self.preload_held(uid, held);
        let Doing::Fetch(fetch) = &mut self.synthetic.doing else { return };
        match fetch.rest.pop_front() {
            Some((key, octets)) => {
                fetch.piece = Piece::new(octets, is_whole(&key));
                fetch.memory.clear();
                fetch.key = key;
            }
            None => self.synthetic.doing = Doing::Nothing,
        }
    }
}

fn is_whole(key: &ItemKey) -> bool {
    key.class() == ItemClass::Section(SectionClass::Whole)
}

/// Half a message is not waited for beyond this; the store forgets it after twice as long.
const HALF_MAX: Duration = Duration::from_secs(300);
/// Messages described at once: about a slice.
const BATCH_MAX: usize = 32;
/// Where messages without a known UID are looked for: those that came last.
const NEWCOMERS_AMONG: usize = 128;
/// After a budget was found spent.
const BUDGET_PAUSE: Duration = Duration::from_secs(600);
/// A gate that says 'now' when it means 'later' costs no more than this.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// What others see may be news for this mailbox, too.
const ASLEEP_MAX: Duration = Duration::from_secs(60);
/// So many orders of which nothing comes, and whoever gives them is out of date.
const FRUITLESS_MAX: u8 = 8;
const FRUITLESS_PAUSE: Duration = Duration::from_secs(5);
/// More than it ever takes to come to a question.
const TURNS_MAX: usize = 64;
