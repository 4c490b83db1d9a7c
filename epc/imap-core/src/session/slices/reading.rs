//! What the origin says of what was asked for nobody, and what a client opened.

use super::{
    super::{claim::is_body, tee::Reading, telling::Prepared},
    Answer, Doing, UnderWay,
    piece::SLICE_OCTETS_MAX,
    tells_description,
};
use crate::{
    catalog::{self, CatalogOp, FillId},
    command::Fetch,
    fetch_response::{FetchReader, FetchResponse, FetchedItem, FetchedValue, LiteralOf},
    item::ItemKey,
    mutants,
    preload::{Description, Read},
    uid::Uid,
    views::SlotId,
};
use bytes::Bytes;
use discovery_core::value::{Proof, Served};

/// Where the octets of a slice go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum Sink {
    Nowhere,
    Memory,
    Store(FillId),
}

impl super::super::Session {
    /// Whether a response that goes on with a literal was asked for nobody.
    pub(in crate::session) fn is_slice(&self, slot: SlotId, reader: &FetchReader) -> bool {
        self.flights.has_slice()
            && !mutants::on("session-slice-told")
            && reader.items().iter().any(|item| self.is_ours(slot, &item.key, item.origin))
    }

    fn is_ours(&self, slot: SlotId, key: &ItemKey, origin: Option<u32>) -> bool {
        match &self.synthetic.under_way {
            None => false,
            Some(UnderWay::Slice { slot: asked, key: wanted, offset, .. }) => {
                // Some servers forget to say which piece it is.
                let unclear = || origin.is_none() && !self.underway.iter().any(|u| u.fetches);
                slot == *asked && key == wanted && (origin == Some(*offset) || unclear())
            }
            Some(UnderWay::Describe { batch, .. }) => {
                tells_description(key) && batch.iter().any(|(asked, ..)| *asked == slot)
            }
        }
    }

    /// Whether what comes as all of a section may be our slice of it, from a server that forgets to say so.
    pub(in crate::session) fn may_be_a_slice(&self, slot: SlotId, key: &ItemKey, octets: u64) -> bool {
        let slice = matches!(&self.synthetic.under_way,
            Some(UnderWay::Slice { slot: asked, key: wanted, .. }) if *asked == slot && wanted == key);
        slice && octets <= u64::from(SLICE_OCTETS_MAX)
    }

    /// The literal of a slice begins.
    pub(in crate::session) fn begin_slice(&mut self, literal: &LiteralOf, octets: u64) -> Sink {
        let Some(UnderWay::Slice { key, offset, answer, .. }) = &mut self.synthetic.under_way else {
            return Sink::Nowhere;
        };
        if matches!(literal, LiteralOf::Section { origin: None, .. }) {
            // It is not told here which piece it is: no more of that.
            self.synthetic.stopped = true;
        }
        let fits = matches!(literal, LiteralOf::Section { key: said, origin, .. }
            if said == key && *origin == Some(*offset));
        let Doing::Fetch(fetch) = &mut self.synthetic.doing else { return Sink::Nowhere };
        let meant = if fits && answer.is_none() { fetch.piece.answer(octets) } else { Answer::Odd };
        *answer = Some(meant);
        let of = match meant {
            Answer::More { of } | Answer::Last { of } => of,
            Answer::Odd => return Sink::Nowhere,
        };
        fetch.piece.take(octets);
        if fetch.piece.is_in_memory() {
            return Sink::Memory;
        }
        let (opened, item) = (fetch.fill, fetch.key.clone());
        if let Some(fill) = opened {
            return Sink::Store(fill);
        }
        let Some(mailbox) = self.mailbox_key().cloned() else { return Sink::Nowhere };
        let fill = self.fill_id();
        // Nobody may join what comes at this pace.
        self.catalog(CatalogOp::FillOpen { fill, mailbox, uid: None, item, octets: of });
        if let Doing::Fetch(fetch) = &mut self.synthetic.doing {
            fetch.fill = Some(fill);
        }
        Sink::Store(fill)
    }

    pub(in crate::session) fn slice_octets(&mut self, sink: Sink, octets: &Bytes) {
        match sink {
            Sink::Nowhere => {}
            Sink::Store(fill) => self.catalog(CatalogOp::FillData { fill, octets: octets.clone() }),
            Sink::Memory => {
                if let Doing::Fetch(fetch) = &mut self.synthetic.doing {
                    fetch.memory.extend_from_slice(octets);
                }
            }
        }
    }

    /// Whether an answer about this message that nobody can read is to what was asked for nobody.
    pub(in crate::session) fn is_for_nobody(&self, slot: SlotId) -> bool {
        let of_it = |under_way: &UnderWay| under_way.slots().any(|asked| asked == slot);
        let asked = self.flights.has_slice() && self.synthetic.under_way.as_ref().is_some_and(of_it);
        asked && !self.underway.iter().any(|underway| underway.fetches)
    }

    /// A response that was asked for nobody could not be read.
    pub(in crate::session) fn slice_spoilt(&mut self) {
        if let Some(UnderWay::Slice { answer, .. }) = &mut self.synthetic.under_way {
            *answer = Some(Answer::Odd);
        }
    }

    /// A whole response, of which everything that is no section has been learned. `true`: it was asked for nobody, and
    /// all of it that the client may hear was said. `known`: the flags that the origin told before.
    pub(in crate::session) fn slice_said(
        &mut self,
        slot: SlotId,
        said: &FetchResponse,
        small: &[(ItemKey, Bytes)],
        known: Option<&Bytes>,
    ) -> bool {
        let Some(item) = said.items.iter().find(|item| self.is_ours(slot, &item.key, item.origin)) else {
            return false;
        };
        if !self.flights.has_slice() || mutants::on("session-slice-told") {
            return false;
        }
        let slice = matches!(self.synthetic.under_way, Some(UnderWay::Slice { .. }));
        if slice {
            self.slice_item_said(item, said.uid);
        } else {
            self.description_said(slot, said, small);
        }
        // What the client changes meanwhile is no longer known, and the answer may be older than that.
        let before = match &self.synthetic.under_way {
            Some(UnderWay::Describe { before, .. }) => before.get(&slot).cloned(),
            Some(UnderWay::Slice { .. }) | None => None,
        };
        let known = known.or(before.as_ref());
        let flags = said.flags.as_ref().filter(|flags| Some(flags.raw()) != known);
        if let Some(flags) = flags {
            let modseq = said.modseq.map(|modseq| format!(" MODSEQ ({modseq})")).unwrap_or_default();
            let payload = [b"(FLAGS ", &**flags.raw(), modseq.as_bytes(), b")\r\n"].concat();
            self.views.log_fetch(slot, payload.into());
            self.tell();
        }
        true
    }

    /// All octets of a slice are here.
    fn slice_item_said(&mut self, item: &FetchedItem, said_uid: Option<Uid>) {
        if let FetchedValue::Quoted(octets) = &item.value {
            let (key, origin, label) = (item.key.clone(), item.origin, item.label.clone());
            let sink = self.begin_slice(&LiteralOf::Section { key, origin, label }, octets.len() as u64);
            self.slice_octets(sink, octets);
        }
        let Some(UnderWay::Slice { answer: Some(answer @ Answer::Last { .. }), .. }) =
            self.synthetic.under_way
        else {
            return;
        };
        let Doing::Fetch(fetch) = &mut self.synthetic.doing else { return };
        let (uid, key, fill) = (fetch.uid, fetch.key.clone(), fetch.fill.take());
        let memory = std::mem::take(&mut fetch.memory).freeze();
        let Some(mailbox) = self.mailbox_key().cloned().filter(|_| said_uid.is_none_or(|said| said == uid))
        else {
            fill.into_iter().for_each(|fill| self.catalog(CatalogOp::FillAbort { fill }));
            return self.slice_spoilt();
        };
        match (fill, answer) {
            (Some(fill), Answer::Last { of }) => {
                self.catalog(CatalogOp::FillCommit { fill, uid, proof: Proof::Origin });
                self.event(super::super::Event::Filled(of));
            }
            _ => {
                let items = vec![(key, memory)];
                self.catalog(CatalogOp::Record { mailbox, uid, items, proof: Proof::Origin });
            }
        }
    }

    fn description_said(&mut self, slot: SlotId, said: &FetchResponse, small: &[(ItemKey, Bytes)]) {
        let mut items = small.to_vec();
        for item in &said.items {
            if let FetchedValue::Raw(octets) | FetchedValue::Quoted(octets) = &item.value {
                items.push((item.key.clone(), octets.clone()));
            }
        }
        let Some(UnderWay::Describe { batch, told, .. }) = &mut self.synthetic.under_way else { return };
        let Some((_, uid, held)) = batch.iter().find(|(asked, ..)| *asked == slot).copied() else { return };
        let Some(uid) = uid.or(said.uid) else { return };
        *told += 1;
        let seen = self.views.seen(slot).unwrap_or_default();
        if let Some(said) = Description::of(&items, seen) {
            self.described(uid, &said, held);
        }
    }

    /// The origin has completed a slice.
    pub(in crate::session) fn slice_completed(&mut self, ok: bool) {
        let under_way = self.synthetic.under_way.take();
        self.release_ours();
        match under_way {
            Some(UnderWay::Describe { told, .. }) if told == 0 || !ok => self.bears_no_fruit(),
            // The mailbox was left.
            Some(UnderWay::Describe { .. }) | None => {}
            Some(UnderWay::Slice { answer, offset, .. }) => {
                let came = self.count_fetched(offset, answer);
                match answer.filter(|_| ok) {
                    Some(Answer::More { .. }) if came => {}
                    Some(Answer::Last { .. }) => {
                        self.synthetic.fruitless = 0;
                        self.section_done(false);
                    }
                    Some(Answer::More { .. } | Answer::Odd) | None => self.bears_no_fruit(),
                }
            }
        }
    }

    /// Tells how many octets came. `false`: none.
    fn count_fetched(&mut self, offset: u32, answer: Option<Answer>) -> bool {
        let Doing::Fetch(fetch) = &self.synthetic.doing else { return false };
        let came = fetch.piece.came().saturating_sub(u64::from(offset));
        let uid = fetch.uid;
        if came == 0 || !matches!(answer, Some(Answer::More { .. } | Answer::Last { .. })) {
            return false;
        }
        if let Some((preload, key, now)) = self.preload() {
            preload.fetched(&key, uid, came, now);
        }
        true
    }

    /// Whether the origin is in the middle of a response of which the client hears nothing.
    pub(in crate::session) fn reads_a_slice(&self) -> bool {
        matches!(&self.reading, Reading::Fetch(fetching) if fetching.is_synthetic())
    }

    /// What is being read of a slice is no longer wanted.
    pub(super) fn skip_slice(&mut self) {
        self.synthetic.under_way = None;
        if self.reads_a_slice() {
            self.abort_fills();
            self.reading = Reading::Opaque { told: false };
        }
    }
}

/// What a client opened.
impl super::super::Session {
    /// The origin gave a client this.
    pub(in crate::session) fn opened_from_origin(&mut self, slot: SlotId, said: &FetchResponse) {
        if self.synthetic.preload.is_none() {
            return;
        }
        let octets = |item: &FetchedItem| match &item.value {
            FetchedValue::Literal { octets } => Some(*octets),
            FetchedValue::Quoted(octets) => Some(octets.len() as u64),
            FetchedValue::Raw(_) | FetchedValue::Nil | FetchedValue::Unheld => None,
        };
        let bodies = || said.items.iter().filter(|item| is_body(&item.key));
        let Some(octets) = bodies().filter_map(octets).reduce(u64::saturating_add) else { return };
        let goes_on = bodies().all(|item| item.origin.is_some_and(|origin| origin > 0));
        self.opened(slot, octets, goes_on, Served::Origin);
    }

    /// The store gave a client these. `again`: what the origin has just given for it.
    pub(in crate::session) fn opened_from_store(&mut self, fetch: &Fetch, rows: &[Prepared], again: bool) {
        if self.synthetic.preload.is_none() || !fetch.items.iter().any(|item| is_body(&item.key)) {
            return;
        }
        for row in rows {
            let (mut octets, mut goes_on, mut served) = (0_u64, true, Served::Store);
            for (told, held) in &row.items {
                let body = fetch.items.iter().any(|item| item.label == told.label && is_body(&item.key));
                if !body {
                    continue;
                }
                let (first, count) = told.partial.map_or((0, u64::MAX), |(first, n)| (first, u64::from(n)));
                octets = octets.saturating_add(held.octets().saturating_sub(u64::from(first)).min(count));
                goes_on &= first > 0;
                if again || matches!(held, catalog::Held::Filling { .. }) {
                    served = Served::Origin;
                }
            }
            self.opened(row.slot, octets, goes_on, served);
        }
    }

    /// Pieces behind the first of a message come from where that came from: it brought all of them.
    fn opened(&mut self, slot: SlotId, octets: u64, goes_on: bool, served: Served) {
        let served = match self.synthetic.opened {
            Some((last, first)) if goes_on && last == slot && first == Served::Origin => first,
            _ => served,
        };
        if !goes_on {
            self.synthetic.opened = Some((slot, served));
        }
        let uid = self.views.uid(slot);
        if let (Some(uid), Some((preload, key, now))) = (uid, self.preload()) {
            preload.read(&key, uid, Read { octets, served }, now);
            self.synthetic.wake();
        }
    }
}
