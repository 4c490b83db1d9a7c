//! Message data from the store, told as responses of their own or together with what the origin says.

use super::exchange::Output;
use crate::{
    catalog::Held,
    mutants,
    uid::{Msn, Uid},
    views::SlotId,
};
use bytes::{Bytes, BytesMut};
use discovery_core::seam::blob::BlobReader;
use std::{collections::VecDeque, sync::Arc};

/// Message data of one message that the store gives.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) slot: SlotId,
    pub(super) uid: Uid,
    /// Items as they will be told, in the client's order.
    pub(super) items: Vec<(Told, Held)>,
}

/// How an item is told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) label: Bytes,
    pub(super) section: bool,
    pub(super) partial: Option<(u32, u32)>,
}

impl super::Session {
    /// Tells by themselves those of which the origin said something, only not what was asked.
    pub(super) fn tell_mentioned(&mut self, rows: Vec<Prepared>) {
        if !rows.is_empty() {
            self.tell_before_data();
        }
        for row in rows {
            self.tell_prepared(&row);
        }
    }

    /// Tells one message's data from the store, as a response of its own.
    pub(super) fn tell_prepared(&mut self, row: &Prepared) {
        let Some(msn) = self.views.client_msn(row.slot) else { return };
        if self.views.server_msn(row.slot).is_none() && !mutants::on("session-expunged-served") {
            return;
        }
        let mut out = Composer::new(format!("* {msn} FETCH ("));
        if !row.items.iter().any(|(told, _)| &*told.label == b"UID") {
            out.item(format!("UID {}", row.uid).as_bytes());
        }
        out.items(&row.items, &mut self.outputs);
        out.text.extend_from_slice(b")\r\n");
        out.flush(&mut self.outputs);
    }

    /// Tells a response of the origin with what the store adds to it; `payload` is what stands behind `FETCH `, a list
    /// without literals. The origin's items come first: Thunderbird gives a header to the message whose UID it read
    /// last, and the UID is among them.
    pub(super) fn tell_spliced(&mut self, msn: Msn, row: &Prepared, payload: &[u8]) {
        let list = payload.trim_ascii_end();
        let inside = list.strip_prefix(b"(").and_then(|l| l.strip_suffix(b")")).unwrap_or_default();
        let mut out = Composer::new(format!("* {msn} FETCH ("));
        if !inside.is_empty() {
            out.item(inside);
        }
        out.items(&row.items, &mut self.outputs);
        out.text.extend_from_slice(b")\r\n");
        out.flush(&mut self.outputs);
    }
}

/// Puts a response together: text in one piece, large bodies by reference.
struct Composer {
    text: BytesMut,
    first: bool,
}

impl Composer {
    fn new(start: String) -> Self {
        Self { text: BytesMut::from(start.as_bytes()), first: true }
    }

    fn item(&mut self, text: &[u8]) {
        if !self.first {
            self.text.extend_from_slice(b" ");
        }
        self.first = false;
        self.text.extend_from_slice(text);
    }

    fn items(&mut self, items: &[(Told, Held)], outputs: &mut VecDeque<Output>) {
        for (told, held) in items {
            self.item(&told.label);
            let total = held.octets();
            let (from, octets) = match told.partial {
                Some((first, count)) => {
                    self.text.extend_from_slice(format!("<{first}>").as_bytes());
                    let from = u64::from(first).min(total);
                    (from, (total - from).min(u64::from(count)))
                }
                None => (0, total),
            };
            self.text.extend_from_slice(b" ");
            if told.section {
                self.text.extend_from_slice(format!("{{{octets}}}\r\n").as_bytes());
            }
            match held {
                Held::Inline(value) => {
                    let from = usize::try_from(from).unwrap_or(usize::MAX);
                    let octets = usize::try_from(octets).unwrap_or(usize::MAX);
                    let end = from.saturating_add(octets);
                    self.text.extend_from_slice(value.get(from..end).unwrap_or_default());
                }
                Held::Stored { reader, offset, .. } => {
                    self.body(reader, offset + from, octets, outputs);
                }
                Held::Filling { reader, .. } => self.body(reader, from, octets, outputs),
            }
        }
    }

    fn body(
        &mut self,
        reader: &Arc<dyn BlobReader>,
        offset: u64,
        octets: u64,
        outputs: &mut VecDeque<Output>,
    ) {
        if octets > 0 {
            self.flush(outputs);
            outputs.push_back(Output::ToClientFrom { reader: reader.clone(), offset, octets });
        }
    }

    fn flush(&mut self, outputs: &mut VecDeque<Output>) {
        if !self.text.is_empty() {
            outputs.push_back(Output::ToClient(self.text.split().freeze()));
        }
    }
}
