//! The frame of a generation's two files: `log/GENERATION.seg` with the records, and `log/GENERATION.map`, its
//! trailer. The trailer has a file of its own because a file that a crash left open gets one too, and nothing is
//! ever written into a file of an earlier process.
//!
//! ```text
//! header of both, 96 octets:
//!       0       8  "waypsegm" or "waypsegt"
//!       8       1  version: 1
//!       9       1  format: 0 checked, 1 sealed
//!      10       6  0
//!      16       8  generation
//!      24      16  the store's id
//!      40      24  the file's random id
//!      64      16  0
//!      80      16  BLAKE3 of the 80 octets before, cut
//! trailer: header, then one sealed text: records of the file in their order, each
//!             octets of content (4) ‖ offset in the file (4) ‖ octets of meta (4) ‖ meta
//! ```
//!
//! Everything sealed is bound to the file's id, the store's id and the generation: a file that got another's name or
//! header does not open.

use crate::{
    mutants,
    place::Generation,
    record::{FileTag, HEAD, PLAIN_MAX, Record, take},
};
use discovery_core::seam::sealer::{SealContext, Sealer, Tampered};

pub(crate) const HEADER: u32 = 96;
const VERSION: u8 = 1;

/// The id of a store. A copy that lives elsewhere gets another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Log,
    Trailer,
}

/// One generation's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(crate) generation: Generation,
    pub(crate) store: StoreId,
    pub(crate) file: [u8; 24],
}

/// A record with the offset at which it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Offset of its head.
    pub at: u32,
    /// What it says.
    pub record: Record,
}

impl Layout {
    /// The files of `generation` of `store` with the random id `file`.
    pub fn new(generation: Generation, store: StoreId, file: [u8; 24]) -> Self {
        Self { generation, store, file }
    }

    pub(crate) fn tag(&self) -> FileTag {
        self.file.first_chunk().copied().unwrap_or_default()
    }

    pub(crate) fn header(&self, kind: Kind, sealer: &dyn Sealer) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER as usize);
        out.extend_from_slice(match kind {
            Kind::Log => b"waypsegm",
            Kind::Trailer => b"waypsegt",
        });
        out.extend_from_slice(&[VERSION, u8::from(sealer.seals()), 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.generation.0.to_be_bytes());
        out.extend_from_slice(&self.store.0);
        out.extend_from_slice(&self.file);
        out.extend_from_slice(&[0; 16]);
        let check = *blake3::hash(&out).as_bytes();
        out.extend_from_slice(check.first_chunk::<16>().unwrap_or(&[0; 16]));
        out
    }

    /// Reads a header of this store and generation.
    pub(crate) fn from_header(
        kind: Kind,
        sealer: &dyn Sealer,
        (store, generation): (StoreId, Generation),
        octets: &[u8],
    ) -> Result<Self, Tampered> {
        let file = octets.get(40..64).and_then(|id| id.first_chunk::<24>()).ok_or(Tampered)?;
        let layout = Self::new(generation, store, *file);
        if layout.header(kind, sealer) == octets { Ok(layout) } else { Err(Tampered) }
    }

    /// The log file's header.
    pub fn log_header(&self, sealer: &dyn Sealer) -> Vec<u8> {
        self.header(Kind::Log, sealer)
    }

    fn place(&self) -> [u8; 48] {
        let mut out = [0; 48];
        let (file, rest) = out.split_at_mut(24);
        let (store, generation) = rest.split_at_mut(16);
        file.copy_from_slice(&self.file);
        store.copy_from_slice(&self.store.0);
        generation.copy_from_slice(&self.generation.0.to_be_bytes());
        out
    }

    /// A record as it stands in the file at `at`: head and sealed text. `text` is content and meta.
    pub(crate) fn seal(&self, sealer: &dyn Sealer, at: u32, content: u32, text: Vec<u8>) -> Vec<u8> {
        let plain = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let mut sealed = text;
        sealer.seal(SealContext { kind: "segment", place: &self.place(), block: block(at) }, &mut sealed);
        let mut out = Vec::with_capacity(sealed.len() + HEAD as usize);
        out.extend_from_slice(&plain.to_be_bytes());
        out.extend_from_slice(&content.to_be_bytes());
        out.append(&mut sealed);
        out
    }

    /// How much follows a head, and how much of its plain text is content; none where it cannot be a head.
    pub(crate) fn head(sealer: &dyn Sealer, head: [u8; HEAD as usize]) -> Option<(u32, u32)> {
        let mut head = head.as_slice();
        let plain = u32::from_be_bytes(take(&mut head)?);
        let content = u32::from_be_bytes(take(&mut head)?);
        let overhead = u32::try_from(sealer.overhead()).ok()?;
        (plain <= PLAIN_MAX && content < plain).then(|| (plain + overhead, content))
    }

    /// Undoes [`Self::seal`] for what follows the head: the content, and what the record says of it.
    pub(crate) fn unseal(
        &self,
        sealer: &dyn Sealer,
        at: u32,
        content: u32,
        mut sealed: Vec<u8>,
    ) -> Result<(Vec<u8>, Record), Tampered> {
        sealer
            .unseal(SealContext { kind: "segment", place: &self.place(), block: block(at) }, &mut sealed)?;
        let meta = sealed.get(content as usize..).ok_or(Tampered)?;
        let record = Record::decode(meta, content).ok_or(Tampered)?;
        sealed.truncate(content as usize);
        Ok((sealed, record))
    }

    /// The trailer's file.
    pub fn trailer(&self, sealer: &dyn Sealer, records: &[Placed]) -> Vec<u8> {
        let mut text = encode_records(records);
        sealer.seal(self.trailer_context(&self.place()), &mut text);
        let mut out = self.header(Kind::Trailer, sealer);
        out.append(&mut text);
        out
    }

    fn trailer_context<'a>(&self, place: &'a [u8]) -> SealContext<'a> {
        SealContext { kind: "segment trailer", place, block: 0 }
    }

    /// Reads a trailer of this log file.
    ///
    /// # Errors
    /// [`Tampered`]: it is another file's, or not what was written.
    pub fn read_trailer(&self, sealer: &dyn Sealer, octets: &[u8]) -> Result<Vec<Placed>, Tampered> {
        let (header, text) = octets.split_at_checked(HEADER as usize).ok_or(Tampered)?;
        if self.header(Kind::Trailer, sealer) != header {
            return Err(Tampered);
        }
        let mut text = text.to_vec();
        sealer.unseal(self.trailer_context(&self.place()), &mut text)?;
        decode_records(&text).ok_or(Tampered)
    }
}

/// A record is bound to where it stands.
fn block(at: u32) -> u64 {
    if mutants::on("pss-record-anywhere") { 0 } else { at.into() }
}

/// A trailer's text.
pub fn encode_records(records: &[Placed]) -> Vec<u8> {
    let (mut text, mut meta) = (Vec::new(), Vec::new());
    for placed in records {
        meta.clear();
        placed.record.encode(&mut meta);
        text.extend_from_slice(&placed.record.content().to_be_bytes());
        text.extend_from_slice(&placed.at.to_be_bytes());
        text.extend_from_slice(&u32::try_from(meta.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(&meta);
    }
    text
}

/// The records of a trailer's text; none unless all of it is records, in the order of the file.
pub fn decode_records(mut text: &[u8]) -> Option<Vec<Placed>> {
    let mut records: Vec<Placed> = Vec::new();
    while !text.is_empty() {
        let content = u32::from_be_bytes(take(&mut text)?);
        let at = u32::from_be_bytes(take(&mut text)?);
        let octets = u32::from_be_bytes(take(&mut text)?);
        let (meta, rest) = text.split_at_checked(octets as usize)?;
        if at < HEADER || records.last().is_some_and(|last| last.at >= at) {
            return None;
        }
        records.push(Placed { at, record: Record::decode(meta, content)? });
        text = rest;
    }
    Some(records)
}
