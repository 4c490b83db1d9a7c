//! The file of one body, version 1. Numbers are big-endian.
//!
//! ```text
//!  offset  octets
//!       0       8  "waypbody"
//!       8       1  version: 1
//!       9       1  format: 0 checked, 1 sealed (2 is kept for recipes)
//!      10       2  0
//!      12       4  octets of content in a block: 65,536
//!      16      24  the file's random id, which every check and seal below is bound to
//!      40      16  BLAKE3 of the 40 octets before, cut
//!      56          blocks: content, then the sealer's overhead; only the last one may be shorter
//!     end          footer: length of the content (8), the body's id (32), and the sealer's overhead
//! ```
//!
//! A block can be read and verified alone. A file that was cut, that got another's name, or whose blocks changed
//! places does not verify. What is digested for the id are the digests of the blocks, so that content is hashed
//! once; a checked block's check covers the digest instead of the content again.

use discovery_core::seam::{
    blob::BlobId,
    sealer::{SealContext, Sealer, Tampered},
};
use std::sync::Arc;

/// Small enough that a page of a large message costs little, large enough that a seal's overhead is nothing.
pub(super) const BLOCK_OCTETS: usize = 64 * 1024;
const BLOCK: u64 = BLOCK_OCTETS as u64;
/// As the header says it.
const BLOCK_FIELD: [u8; 4] = [0, 1, 0, 0];

pub(super) const HEADER_OCTETS: usize = 56;
const HEADER: u64 = HEADER_OCTETS as u64;
const MAGIC: &[u8; 8] = b"waypbody";
const VERSION: u8 = 1;
const FOOTER_OCTETS: usize = 40;
/// The footer's number, which no block has.
const FOOTER_BLOCK: u64 = u64::MAX;
const KIND: &str = "blob";

/// The random id of a file.
pub(super) type FileId = [u8; 24];

/// How one file's blocks are sealed, and where they lie.
#[derive(Clone)]
pub(super) struct Layout {
    sealer: Arc<dyn Sealer>,
    file_id: FileId,
}

impl Layout {
    pub(super) fn new(sealer: Arc<dyn Sealer>, file_id: FileId) -> Self {
        Self { sealer, file_id }
    }

    pub(super) fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_OCTETS);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, u8::from(self.sealer.seals()), 0, 0]);
        out.extend_from_slice(&BLOCK_FIELD);
        out.extend_from_slice(&self.file_id);
        let check = header_check(&out);
        out.extend_from_slice(&check);
        out
    }

    /// Reads a header; `Tampered` also for a version or a format that is not the sealer's.
    pub(super) fn from_header(sealer: &Arc<dyn Sealer>, octets: &[u8]) -> Result<Self, Tampered> {
        let (fields, check) = octets.split_last_chunk::<16>().ok_or(Tampered)?;
        let (_, file_id) = fields.split_last_chunk::<24>().ok_or(Tampered)?;
        let layout = Self::new(Arc::clone(sealer), *file_id);
        if header_check(fields) != *check || layout.header() != octets {
            return Err(Tampered);
        }
        Ok(layout)
    }

    /// Octets of a complete file with so much content.
    pub(super) fn file_octets(&self, content: u64) -> u64 {
        HEADER + content + (content.div_ceil(BLOCK) + 1) * self.overhead() + FOOTER_OCTETS as u64
    }

    /// Where block `nth` of a body of at least `content` octets lies: offset and length of its record.
    pub(super) fn record(&self, nth: u64, content: u64) -> (u64, usize) {
        let octets = content.saturating_sub(nth * BLOCK).min(BLOCK) + self.overhead();
        (HEADER + nth * (BLOCK + self.overhead()), usize::try_from(octets).unwrap_or(0))
    }

    /// Seals a block in place; its digest was computed already.
    pub(super) fn seal_block(&self, nth: u64, digest: &[u8; 32], octets: &mut Vec<u8>) {
        if self.sealer.seals() {
            let context = SealContext { kind: KIND, place: &self.file_id, block: nth };
            return self.sealer.seal(context, octets);
        }
        let mut check = Vec::with_capacity(self.sealer.overhead());
        self.sealer.seal(self.digest_context(nth, digest).context(), &mut check);
        octets.extend_from_slice(&check);
    }

    /// Verifies a block, leaves its content.
    pub(super) fn unseal_block(&self, nth: u64, octets: &mut Vec<u8>) -> Result<(), Tampered> {
        if self.sealer.seals() {
            let context = SealContext { kind: KIND, place: &self.file_id, block: nth };
            return self.sealer.unseal(context, octets);
        }
        let content = octets.len().checked_sub(self.sealer.overhead()).ok_or(Tampered)?;
        let mut check = octets.split_off(content);
        let digest = *blake3::hash(octets).as_bytes();
        self.sealer.unseal(self.digest_context(nth, &digest).context(), &mut check)
    }

    fn digest_context(&self, nth: u64, digest: &[u8; 32]) -> DigestContext {
        let mut place = [0; 56];
        let (id, rest) = place.split_at_mut(self.file_id.len());
        id.copy_from_slice(&self.file_id);
        rest.copy_from_slice(digest);
        DigestContext { place, nth }
    }

    pub(super) fn footer(&self, content: u64, id: &BlobId) -> Vec<u8> {
        let mut out = content.to_be_bytes().to_vec();
        out.extend_from_slice(&id.0);
        self.sealer.seal(self.footer_context(), &mut out);
        out
    }

    pub(super) fn footer_octets(&self) -> usize {
        FOOTER_OCTETS + self.sealer.overhead()
    }

    /// The content's length, if this is the footer of a file of `file_octets` with the body `id`.
    pub(super) fn read_footer(
        &self,
        mut footer: Vec<u8>,
        id: &BlobId,
        file_octets: u64,
    ) -> Result<u64, Tampered> {
        self.sealer.unseal(self.footer_context(), &mut footer)?;
        let (content, found) = footer.split_first_chunk::<8>().ok_or(Tampered)?;
        let content = u64::from_be_bytes(*content);
        // A length that only a flipped bit can give must not overflow below.
        let fits = content <= file_octets && self.file_octets(content) == file_octets;
        if fits && found == id.0 { Ok(content) } else { Err(Tampered) }
    }

    fn footer_context(&self) -> SealContext<'_> {
        SealContext { kind: KIND, place: &self.file_id, block: FOOTER_BLOCK }
    }

    fn overhead(&self) -> u64 {
        self.sealer.overhead() as u64
    }
}

struct DigestContext {
    place: [u8; 56],
    nth: u64,
}

impl DigestContext {
    fn context(&self) -> SealContext<'_> {
        SealContext { kind: KIND, place: &self.place, block: self.nth }
    }
}

fn header_check(fields: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    blake3::Hasher::new().update(fields).finalize_xof().fill(&mut out);
    out
}

/// Digests a body block by block.
#[derive(Default)]
pub(super) struct BodyDigest {
    blocks: blake3::Hasher,
    octets: u64,
}

impl BodyDigest {
    /// Takes a block, gives its digest.
    pub(super) fn push(&mut self, block: &[u8]) -> [u8; 32] {
        let digest = *blake3::hash(block).as_bytes();
        self.blocks.update(&digest);
        self.octets += block.len() as u64;
        digest
    }

    pub(super) fn finish(mut self, sealer: &dyn Sealer) -> BlobId {
        self.blocks.update(&self.octets.to_be_bytes());
        BlobId(sealer.id(*self.blocks.finalize().as_bytes()))
    }
}
