//! What the index keeps of a whole message: where its sections lie, and its header, so that a list of headers is
//! answered without opening a file. And how a section is made of it.

use bytes::Bytes;
use discovery_core::seam::{
    blob::BlobId,
    sealer::{SealContext, Sealer},
};
use imap_core::{
    item::{ItemClass, ItemKey, SectionClass},
    mime::{Cut, SectionIndex, SectionIndexer, header_fields},
};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) index: SectionIndex,
    /// The first octets of the message, up to the end of its header; empty when that is too long to keep.
    pub(super) header: Bytes,
}

/// A longer header stays in the body's file only.
pub(super) const HEADER_OCTETS_MAX: usize = 16 * 1024;

/// A section of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// These octets.
    Octets(Bytes),
    /// This range of the whole.
    Range { offset: u64, octets: u64 },
    /// The field list of the header, which is this range of the whole.
    Fields { offset: u64, octets: u64, names: Vec<String>, not: bool },
}

impl Head {
    /// Of a whole message, whose first octets are `beginning`.
    pub(super) fn new(index: SectionIndex, beginning: &Bytes) -> Self {
        let header = match index.cut(&header_key()) {
            Some(Cut::Range { offset: 0, octets }) => {
                usize::try_from(octets).ok().filter(|octets| *octets <= beginning.len())
            }
            Some(Cut::Range { .. } | Cut::HeaderFields { .. }) | None => None,
        };
        let header = header.map_or_else(Bytes::new, |octets| {
            Bytes::copy_from_slice(beginning.get(..octets).unwrap_or_default())
        });
        Self { index, header }
    }

    /// Of a header that the origin gave alone: good for lists of its fields and nothing else.
    pub(super) fn of_header(header: &Bytes) -> Option<Self> {
        let mut indexer = SectionIndexer::new();
        indexer.push(header);
        let index = indexer.finish();
        let all = Cut::Range { offset: 0, octets: header.len() as u64 };
        (index.cut(&header_key())? == all).then(|| Self { index, header: header.clone() })
    }

    /// How to make the section; `None` where the slicer refuses.
    pub(super) fn cut(&self, key: &ItemKey) -> Option<Piece> {
        match self.index.cut(key)? {
            Cut::Range { offset, octets } => Some(match self.header_range(offset, octets) {
                Some(within) => Piece::Octets(within),
                None => Piece::Range { offset, octets },
            }),
            Cut::HeaderFields { header, names, not } => {
                let (offset, octets) = (header.start, header.end.checked_sub(header.start)?);
                Some(match self.header_range(offset, octets) {
                    Some(header) => Piece::Octets(header_fields(&header, &names, not).into()),
                    None => Piece::Fields { offset, octets, names, not },
                })
            }
        }
    }

    /// `cut`, for a header alone.
    pub(super) fn cut_fields(&self, key: &ItemKey) -> Option<Bytes> {
        if key.class() != ItemClass::Section(SectionClass::HeaderFields) {
            return None;
        }
        match self.cut(key)? {
            Piece::Octets(octets) => Some(octets),
            Piece::Range { .. } | Piece::Fields { .. } => None,
        }
    }

    fn header_range(&self, offset: u64, octets: u64) -> Option<Bytes> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(octets).ok()?)?;
        (end <= self.header.len()).then(|| self.header.slice(start..end))
    }

    pub(super) fn seal(&self, sealer: &dyn Sealer, id: &BlobId) -> Vec<u8> {
        let index = self.index.to_octets();
        let mut out = Vec::with_capacity(4 + index.len() + self.header.len() + sealer.overhead());
        out.extend_from_slice(&u32::try_from(index.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&index);
        out.extend_from_slice(&self.header);
        sealer.seal(SealContext { kind: HEAD, place: &id.0, block: 0 }, &mut out);
        out
    }

    /// `None` where it is damaged, or of another version of the slicer.
    pub(super) fn unseal(sealer: &dyn Sealer, id: &BlobId, mut sealed: Vec<u8>) -> Option<Self> {
        sealer.unseal(SealContext { kind: HEAD, place: &id.0, block: 0 }, &mut sealed).ok()?;
        let all = Bytes::from(sealed);
        let octets = u32::from_be_bytes(*all.first_chunk::<4>()?);
        let end = usize::try_from(octets).ok()?.checked_add(4).filter(|end| *end <= all.len())?;
        Some(Self { index: SectionIndex::from_octets(all.get(4..end)?)?, header: all.slice(end..) })
    }
}

fn header_key() -> ItemKey {
    ItemKey::from_normalised("BODY[HEADER]")
}

const HEAD: &str = "head";
