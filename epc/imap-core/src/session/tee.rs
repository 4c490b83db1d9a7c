//! FETCH responses on their way to the client: what they teach, and what of them goes into the store.

use super::{
    claim::is_body,
    exchange::{Event, Output},
    number,
    slices::Sink,
    telling::Prepared,
    underway::Own,
};
use crate::{
    catalog::{CatalogOp, FillId, INLINE_OCTETS_MAX},
    fetch_response::{FetchReader, FetchResponse, FetchedValue, LiteralOf},
    framer::Frame,
    item::{ItemClass, ItemKey, SectionClass},
    uid::{Msn, Uid},
    views::SlotId,
};
use bytes::{Bytes, BytesMut};
use discovery_core::{seam::advisor::Held, value::Proof};

/// A response of several frames that is being read.
pub(super) enum Reading {
    Nothing,
    /// Nothing is learned from it. `told`: it goes to the client.
    Opaque {
        told: bool,
    },
    Fetch(Box<Fetching>),
}

impl Reading {
    /// Whether the client is getting it.
    pub(super) fn is_told(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Opaque { told } => *told,
            Self::Fetch(fetching) => fetching.told,
        }
    }
}

/// A FETCH response that is being read.
pub(super) struct Fetching {
    reader: FetchReader,
    msn: Msn,
    slot: SlotId,
    /// Whether the client gets it; else it was asked by us.
    told: bool,
    /// Whether it answers our question for a whole section.
    ours: bool,
    /// Whether it was asked for nobody.
    synthetic: bool,
    /// How much of the message the store has afterwards.
    kept: Held,
    /// Whether something could not be understood: nothing is kept.
    spoilt: bool,
    literal: Keep,
    /// Streams into the store that wait for the response's end.
    fills: Vec<FillId>,
    /// Small sections with their content.
    small: Vec<(ItemKey, Bytes)>,
    filled: u64,
}

/// What becomes of the octets of the literal that passes.
enum Keep {
    No,
    /// Into the store.
    Fill(FillId),
    /// Into memory.
    Small(ItemKey, BytesMut),
    /// Where its slices go.
    Slice(Sink),
}

impl super::Session {
    /// The first frame of a FETCH response in a selected mailbox.
    pub(super) fn begin_fetch(&mut self, frame: Frame, piece: &Bytes, msn: Msn, payload_at: usize) {
        let Some(slot) = self.views.slot_of_server(msn) else {
            return self.desync("FETCH of a message that is not there", frame);
        };
        let reader = FetchReader::start(piece);
        let payload = piece.slice(payload_at.min(piece.len())..);
        if let Frame::End { .. } = frame {
            self.remembered.saw_list(&payload);
            let said = reader.and_then(FetchReader::finish).ok();
            let known = self.flags.last(slot).cloned();
            match &said {
                Some(said) if !self.learn(msn, said, &[]) => {
                    return self.desync("a UID that cannot be", frame);
                }
                Some(_) => {}
                None => {
                    self.count_unread();
                    if self.is_for_nobody(slot) {
                        return self.flags.forget(slot);
                    }
                }
            }
            let wanted = self.flights.whole().filter(|(coming, _)| *coming == slot).map(|(_, key)| key);
            let items = || said.iter().flat_map(|said| &said.items);
            if wanted.is_some_and(|key| items().any(|item| item.key == *key)) {
                // Ours, although it is no literal: NIL, or a string. The client's own command will say it.
                return;
            }
            if said.as_ref().is_some_and(|said| self.slice_said(slot, said, &[], known.as_ref())) {
                return;
            }
            if self.absorbs() {
                // The client did not ask for it, and knows no flags yet that it could correct.
                return;
            }
            let only_size = said.as_ref().is_some_and(|said| said.flags.is_none() && said.items.len() == 1)
                && items().all(|item| item.key.as_str() == "RFC822.SIZE");
            if only_size && self.flights.owns(|own| *own == Own::Size(slot)) {
                return;
            }
            if let Some(said) = &said {
                self.opened_from_origin(slot, said);
            }
            if let Some(row) = self.splices.take(slot, said.as_ref()) {
                self.splice(slot, &row, &payload);
            } else {
                self.views.log_fetch(slot, copied(&payload));
                self.tell();
            }
            return;
        }
        let Frame::Literal { octets, binary, .. } = frame else {
            // Too long to be understood: it passes if its number is right for the client.
            return self.pass_unread(slot, &payload);
        };
        let Ok(reader) = reader else {
            self.count_unread();
            return self.pass_unread(slot, &payload);
        };
        if self.views.handle_fetch(msn, reader.uid(), None).is_err() {
            return self.desync("a UID that cannot be", frame);
        }
        let mut reader = reader;
        let literal = reader.literal_begins(octets, binary);
        let synthetic = self.is_slice(slot, &reader);
        let ours = !synthetic
            && self.flights.whole().is_some_and(|(coming, wanted)| {
                coming == slot
                    && matches!(&literal, LiteralOf::Section { key, origin: None, .. } if key == wanted)
            });
        let told = !ours && !synthetic && {
            // It says more than flags: nothing is put into it.
            let _none = self.splices.take(slot, None);
            self.tell_before_data();
            self.tell_start(slot, &payload)
        };
        let mut fetching = Box::new(Fetching {
            reader,
            msn,
            slot,
            told,
            ours,
            synthetic,
            kept: Held::Nothing,
            spoilt: false,
            literal: Keep::No,
            fills: Vec::new(),
            small: Vec::new(),
            filled: 0,
        });
        self.begin_literal(&mut fetching, literal, octets);
        self.reading = Reading::Fetch(fetching);
    }

    /// A response that goes on and cannot be read.
    fn pass_unread(&mut self, slot: SlotId, payload: &Bytes) {
        let told = if self.is_for_nobody(slot) {
            self.flags.forget(slot);
            false
        } else {
            self.tell_before_data();
            self.tell_start(slot, payload)
        };
        self.reading = Reading::Opaque { told };
    }

    /// Another frame of the response that is being read.
    pub(super) fn continue_response(&mut self, frame: Frame) {
        match std::mem::replace(&mut self.reading, Reading::Nothing) {
            Reading::Nothing => {}
            Reading::Opaque { told } => {
                let (octets, more) = match frame {
                    Frame::Literal { piece, .. } | Frame::Overlong { piece } => (piece, true),
                    Frame::Chunk(octets) => (octets, true),
                    Frame::End { piece } => (piece, false),
                };
                if more {
                    self.reading = Reading::Opaque { told };
                }
                if told {
                    self.say(octets);
                }
            }
            Reading::Fetch(fetching) => self.continue_fetch(fetching, frame),
        }
    }

    fn continue_fetch(&mut self, mut fetching: Box<Fetching>, frame: Frame) {
        match frame {
            Frame::Chunk(octets) => {
                fetching.reader.literal_chunk(&octets);
                match &mut fetching.literal {
                    Keep::No => {}
                    Keep::Fill(fill) => {
                        let fill = *fill;
                        self.catalog(CatalogOp::FillData { fill, octets: octets.clone() });
                    }
                    Keep::Small(_, kept) => kept.extend_from_slice(&octets),
                    Keep::Slice(sink) => self.slice_octets(*sink, &octets),
                }
                if fetching.told {
                    self.say(octets);
                }
            }
            Frame::Literal { piece, octets, binary, .. } => {
                fetching.end_literal();
                fetching.spoilt |= fetching.reader.piece(&piece).is_err();
                if fetching.told {
                    self.say(piece);
                }
                let literal = fetching.reader.literal_begins(octets, binary);
                self.begin_literal(&mut fetching, literal, octets);
            }
            Frame::End { piece } => {
                fetching.end_literal();
                fetching.spoilt |= fetching.reader.piece(&piece).is_err();
                if fetching.told {
                    self.say(piece);
                }
                return self.end_fetch(*fetching);
            }
            Frame::Overlong { piece } => {
                self.count_unread();
                self.abort(std::mem::take(&mut fetching.fills));
                if fetching.synthetic {
                    self.slice_spoilt();
                }
                if fetching.told {
                    self.say(piece);
                }
                self.reading = Reading::Opaque { told: fetching.told };
                return;
            }
        }
        self.reading = Reading::Fetch(fetching);
    }

    /// A literal of a FETCH response begins: is it worth keeping?
    fn begin_literal(&mut self, fetching: &mut Fetching, literal: LiteralOf, octets: u64) {
        fetching.literal = Keep::No;
        let ours = fetching.ours;
        if fetching.synthetic && self.is_slicing() {
            fetching.literal = Keep::Slice(self.begin_slice(&literal, octets));
            return;
        }
        let LiteralOf::Section { key, origin: None, .. } = literal else { return };
        if self.may_be_a_slice(fetching.slot, &key, octets) {
            return;
        }
        let Some(mailbox) = self.mailbox_key().cloned() else { return };
        let whole = key.class() == ItemClass::Section(SectionClass::Whole);
        if is_body(&key) {
            fetching.kept = fetching.kept.max(if whole { Held::Whole } else { Held::Part });
        }
        if !whole && octets <= INLINE_OCTETS_MAX {
            let room = usize::try_from(octets).unwrap_or_default();
            fetching.literal = Keep::Small(key, BytesMut::with_capacity(room));
            return;
        }
        let fill = self.fill_id();
        // Nobody may join what comes at the pace of a client: it may stand still for as long as that client likes.
        let uid = self.views.uid(fetching.slot).filter(|_| ours);
        self.catalog(CatalogOp::FillOpen { fill, mailbox, uid, item: key, octets });
        fetching.literal = Keep::Fill(fill);
        fetching.fills.push(fill);
        fetching.filled += octets;
        if ours {
            self.whole_begun = Some(fetching.slot);
        }
    }

    fn end_fetch(&mut self, fetching: Fetching) {
        let Fetching { reader, msn, slot, told, ours, synthetic, kept, spoilt, fills, small, filled, .. } =
            fetching;
        let said = match reader.finish() {
            Ok(said) if !spoilt => said,
            Ok(_) | Err(_) => {
                self.count_unread();
                if synthetic {
                    self.slice_spoilt();
                }
                return self.abort(fills);
            }
        };
        let known = self.flags.last(slot).cloned();
        if !self.learn(msn, &said, &small) {
            self.abort(fills);
            return self.desync("a UID that cannot be", Frame::End { piece: Bytes::new() });
        }
        if ours && !small.is_empty() {
            // Too small to be joined while it came; now the store has it.
            self.whole_begun = Some(slot);
        }
        if synthetic {
            self.slice_said(slot, &said, &small, known.as_ref());
        }
        if told {
            self.opened_from_origin(slot, &said);
        }
        match (self.views.uid(slot), self.mailbox_key().is_some()) {
            (Some(uid), true) => {
                for fill in fills {
                    self.catalog(CatalogOp::FillCommit { fill, uid, proof: Proof::Origin });
                }
                if kept > Held::Nothing {
                    self.preload_held(uid, kept);
                }
                if filled > 0 {
                    self.event(Event::Filled(filled));
                }
            }
            _ => self.abort(fills),
        }
    }

    /// Takes over what a response said; `false` if it cannot be true.
    fn learn(&mut self, msn: Msn, said: &FetchResponse, small: &[(ItemKey, Bytes)]) -> bool {
        let seen = said.flags.as_ref().map(|flags| flags.contains("\\Seen"));
        let Ok(slot) = self.views.handle_fetch(msn, said.uid, seen) else { return false };
        match (&said.flags, self.mono()) {
            // Said before something that may change them, perhaps: not to be repeated behind it.
            (Some(_), _) if !self.flags_stand_still() => self.flags.forget(slot),
            (Some(flags), Some(now)) => self.flags.told(slot, flags.raw(), now),
            _ => {}
        }
        let mut items: Vec<(ItemKey, Bytes)> = small.to_vec();
        for item in &said.items {
            match (&item.value, item.key.class()) {
                (FetchedValue::Raw(octets), ItemClass::Fixed) => {
                    if item.key.as_str() == "RFC822.SIZE"
                        && let Some(size) = number(octets)
                    {
                        self.learn_size(slot, size);
                    }
                    items.push((item.key.clone(), octets.clone()));
                }
                (FetchedValue::Quoted(octets), ItemClass::Section(_)) if item.origin.is_none() => {
                    items.push((item.key.clone(), octets.clone()));
                }
                _ => {}
            }
        }
        self.record(slot, items);
        true
    }

    fn record(&mut self, slot: SlotId, items: Vec<(ItemKey, Bytes)>) {
        let uid: Option<Uid> = self.views.uid(slot);
        if let (false, Some(uid), Some(mailbox)) = (items.is_empty(), uid, self.mailbox_key().cloned()) {
            self.catalog(CatalogOp::Record { mailbox, uid, items, proof: Proof::Origin });
        }
    }

    pub(super) fn learn_size(&mut self, slot: SlotId, size: u64) {
        if self.sizes.len() < SIZES_MAX {
            self.sizes.insert(slot, size);
        }
    }

    fn abort(&mut self, fills: Vec<FillId>) {
        for fill in fills {
            self.catalog(CatalogOp::FillAbort { fill });
        }
    }

    /// What is on its way into the store will not arrive.
    pub(super) fn abort_fills(&mut self) {
        if let Reading::Fetch(fetching) = &mut self.reading {
            let fills = std::mem::take(&mut fetching.fills);
            fetching.literal = Keep::No;
            fetching.spoilt = true;
            self.abort(fills);
        }
    }

    /// Tells the beginning of a response in the client's number; `false` if the client knows no such message.
    fn tell_start(&mut self, slot: SlotId, payload: &[u8]) -> bool {
        let Some(msn) = self.views.client_msn(slot) else { return false };
        self.say([format!("* {msn} FETCH ").as_bytes(), payload].concat().into());
        true
    }

    fn splice(&mut self, slot: SlotId, row: &Prepared, payload: &[u8]) -> bool {
        self.tell_before_data();
        let Some(msn) = self.views.client_msn(slot) else { return false };
        self.tell_spliced(msn, row, payload);
        true
    }

    fn count_unread(&mut self) {
        self.outputs.push_back(Output::Event(Event::Unread));
    }
}

impl Fetching {
    pub(super) fn is_synthetic(&self) -> bool {
        self.synthetic
    }

    fn end_literal(&mut self) {
        if let Keep::Small(key, octets) = std::mem::replace(&mut self.literal, Keep::No) {
            self.small.push((key, octets.freeze()));
        }
    }
}

/// A copy that does not keep the whole read buffer alive while it waits.
fn copied(octets: &Bytes) -> Bytes {
    Bytes::copy_from_slice(octets)
}

/// Sizes remembered in a selection; they only decide what is worth fetching whole.
const SIZES_MAX: usize = 100_000;
