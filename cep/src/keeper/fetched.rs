//! FETCH responses: what they bring goes into the store as it comes, and the [`Preload`](imap_core::preload::Preload)
//! hears of it.

use super::{Keeper, Phase};
use bytes::{Bytes, BytesMut};
use discovery_core::{now::Now, seam::advisor::Held, value::Proof};
use imap_core::{
    catalog::{CatalogOp, FillId},
    fetch_response::{FetchReader, FetchResponse, FetchedValue, LiteralOf},
    framer::Frame,
    item::{ItemClass, ItemKey},
    preload::{Description, Work, describing_fields},
    uid::Uid,
};

/// A FETCH response that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    /// `None`: it could not be understood.
    reader: Option<FetchReader>,
    /// What the octets of the literal under way are for.
    literal: Literal,
    /// Bodies and sections that have come.
    fills: Vec<FillId>,
    /// The header fields of a description.
    fields: Option<Bytes>,
    /// Octets of bodies and sections.
    octets: u64,
}

#[derive(Debug)]
enum Literal {
    /// Nothing.
    Passing,
    /// A section that was ordered.
    Fill(FillId),
    /// Header fields of a description.
    Fields(BytesMut),
}

impl Keeper {
    pub(super) fn begin_reading(&mut self, now: Now, piece: &[u8], frame: Frame) {
        let reader = FetchReader::start(piece).ok();
        let (literal, fills) = (Literal::Passing, Vec::new());
        self.reading = Some(Reading { reader, literal, fills, fields: None, octets: 0 });
        match frame {
            Frame::Literal { octets, binary, .. } => self.literal(octets, binary),
            Frame::End { .. } => self.end_reading(now),
            Frame::Chunk(_) | Frame::Overlong { .. } => {}
        }
    }

    pub(super) fn read_on(&mut self, now: Now, frame: Frame) {
        let Some(reading) = &mut self.reading else { return };
        match frame {
            Frame::Chunk(octets) => {
                if let Some(reader) = &mut reading.reader {
                    reader.literal_chunk(&octets);
                }
                match &mut reading.literal {
                    Literal::Passing => {}
                    Literal::Fields(fields) => fields.extend_from_slice(&octets),
                    Literal::Fill(fill) => {
                        let fill = *fill;
                        reading.octets += octets.len() as u64;
                        self.fetched.1 += octets.len() as u64;
                        self.catalog(CatalogOp::FillData { fill, octets });
                    }
                }
            }
            Frame::Literal { piece, octets, binary, .. } => {
                self.piece(&piece);
                self.literal(octets, binary);
            }
            Frame::Overlong { .. } => reading.reader = None,
            Frame::End { piece } => {
                self.piece(&piece);
                self.end_reading(now);
            }
        }
    }

    /// The piece after a literal.
    fn piece(&mut self, piece: &[u8]) {
        let Some(reading) = &mut self.reading else { return };
        reading.end_literal();
        if reading.reader.as_mut().is_some_and(|reader| reader.piece(piece).is_err()) {
            reading.reader = None;
        }
    }

    fn literal(&mut self, octets: u64, binary: bool) {
        let Some(reading) = &mut self.reading else { return };
        let Some(reader) = &mut reading.reader else { return };
        let literal = reader.literal_begins(octets, binary);
        let LiteralOf::Section { key: item, origin: None, .. } = literal else { return };
        if item == describing_fields() && octets <= FIELDS_OCTETS_MAX {
            reading.literal = Literal::Fields(BytesMut::new());
            return;
        }
        let Some(mailbox) = self.here().key.clone().filter(|_| self.is_ordered(&item)) else { return };
        let fill = self.next_fill();
        if let Some(reading) = &mut self.reading {
            reading.literal = Literal::Fill(fill);
        }
        // Nobody may join what comes at this pace, and stands still while others are served.
        self.catalog(CatalogOp::FillOpen { fill, mailbox, uid: None, item, octets });
    }

    /// Whether the order under way wants this section.
    fn is_ordered(&self, item: &ItemKey) -> bool {
        let Some(order) = self.order.as_ref().filter(|_| self.is_fetching()) else { return false };
        match &order.work {
            Work::Describe(_) => false,
            Work::Whole { .. } => *item == ItemKey::whole(),
            Work::Sections { sections, .. } => sections.iter().any(|(key, _)| key == item),
        }
    }

    fn end_reading(&mut self, now: Now) {
        let Some(mut reading) = self.reading.take() else { return };
        let said = reading.reader.take().and_then(|reader| reader.finish().ok());
        let Some((said, uid)) = said.and_then(|said| said.uid.map(|uid| (said, uid))) else {
            return self.give_up(now, reading);
        };
        let Reading { fills, fields, mut octets, .. } = reading;
        let mut any = !fills.is_empty();
        for fill in fills {
            self.catalog(CatalogOp::FillCommit { fill, uid, proof: Proof::Origin });
        }
        let seen = said.flags.as_ref().is_some_and(|flags| flags.contains("\\Seen"));
        let items = self.small_items(said, fields);
        for (_, short) in items.iter().filter(|(key, _)| self.is_ordered(key)) {
            any = true;
            octets += short.len() as u64;
        }
        if !items.is_empty() {
            self.described_by(now, uid, &items, seen);
            if let Some(mailbox) = self.here().key.clone() {
                self.catalog(CatalogOp::Record { mailbox, uid, items, proof: Proof::Origin });
            }
        }
        if any {
            self.fetched.0 += 1;
            self.brought(now, uid, octets);
        }
    }

    /// What is recorded: what cannot change, and short sections that were asked.
    fn small_items(&self, said: FetchResponse, fields: Option<Bytes>) -> Vec<(ItemKey, Bytes)> {
        let mut items = Vec::new();
        for item in said.items {
            let ordered = item.key == describing_fields() || self.is_ordered(&item.key);
            match (&item.value, item.key.class()) {
                (FetchedValue::Raw(octets), ItemClass::Fixed) => {
                    items.push((item.key, Bytes::copy_from_slice(octets)));
                }
                (FetchedValue::Quoted(octets), _) if ordered && item.origin.is_none() => {
                    items.push((item.key, Bytes::copy_from_slice(octets)));
                }
                (
                    FetchedValue::Raw(_)
                    | FetchedValue::Quoted(_)
                    | FetchedValue::Literal { .. }
                    | FetchedValue::Nil
                    | FetchedValue::Unheld,
                    _,
                ) => {}
            }
        }
        items.extend(fields.map(|fields| (describing_fields(), fields)));
        items
    }

    fn described_by(&mut self, now: Now, uid: Uid, items: &[(ItemKey, Bytes)], seen: bool) {
        if !matches!(self.phase, Phase::Fetching(_)) {
            return;
        }
        let (Some(said), Some(key)) = (Description::of(items, seen), self.here().key.clone()) else { return };
        let Some(held) = self.awaited.as_mut().and_then(|awaited| awaited.remove(&uid)) else { return };
        self.preload.described(&key, uid, &said, now);
        self.preload.held(&key, uid, held);
    }

    /// Octets of a message have come for the order under way.
    fn brought(&mut self, now: Now, uid: Uid, octets: u64) {
        let (Some(order), Some(key)) = (&self.order, self.here().key.clone()) else { return };
        let held = match &order.work {
            Work::Whole { .. } => Held::Whole,
            Work::Sections { .. } | Work::Describe(_) => Held::Part,
        };
        self.brought = true;
        self.preload.fetched(&key, uid, octets, now);
        self.preload.held(&key, uid, held);
    }

    /// No response can be read to its end any more.
    pub(super) fn give_up_reading(&mut self, now: Now) {
        if let Some(reading) = self.reading.take() {
            self.give_up(now, reading);
        }
    }

    fn give_up(&mut self, now: Now, mut reading: Reading) {
        reading.end_literal();
        for fill in reading.fills {
            self.catalog(CatalogOp::FillAbort { fill });
        }
        // They crossed the WAN.
        if let (Some(Work::Whole { uid, .. } | Work::Sections { uid, .. }), Some(key), true) =
            (self.order.as_ref().map(|order| &order.work), self.here().key.clone(), reading.octets > 0)
        {
            self.preload.fetched(&key, *uid, reading.octets, now);
        }
    }
}

impl Reading {
    fn end_literal(&mut self) {
        match std::mem::replace(&mut self.literal, Literal::Passing) {
            Literal::Passing => {}
            Literal::Fill(fill) => self.fills.push(fill),
            Literal::Fields(fields) => self.fields = Some(fields.freeze()),
        }
    }
}

/// Five header fields; a longer block is odd, and its message is described without it.
const FIELDS_OCTETS_MAX: u64 = 64 * 1024;
