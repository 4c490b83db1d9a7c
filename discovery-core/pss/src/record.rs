//! What a log file says, record by record. Numbers are big-endian.
//!
//! ```text
//! header (96), then records:
//!   head    octets of plain text (4) ‖ octets of content in it (4)
//!   sealed  content ‖ meta, then the sealer's overhead; bound to the file and to its offset in it
//! meta:
//!   1 part     space (16) ‖ first address (8) ‖ offset (4) ‖ anchors (8 each)
//!   2 aliases  { space (16) ‖ address (8) ‖ generation (8) ‖ its tag (8) ‖ offset (4) ‖ octets (4) } …
//! anchor:      lower 48 bits of the hash ‖ offset within its block of 64 KiB (16)
//! ```
//!
//! A record can be read alone, and says all there is to know about its octets: a file whose trailer is lost is read
//! from its records. The head is believed only if what follows unseals at that length.

use crate::place::{Generation, OFFSETS, Place, Space};

/// Content in one record, and the unit in which offsets are given to those who append.
pub(crate) const BLOCK: u32 = 64 * 1024;
pub(crate) const HEAD: u32 = 8;
/// A chunk is at least this long on average; a part with more anchors than one in 16 octets is none of ours.
pub(crate) const ANCHORS_MAX: usize = (BLOCK / 16) as usize;
pub(crate) const ALIASES_MAX: usize = 1024;
/// The most a record's plain text can be.
pub(crate) const PLAIN_MAX: u32 = 2 * BLOCK;

/// Octets of one space that lie together, in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Whose octets.
    pub space: Space,
    /// The address of the first.
    pub address: u64,
    /// Where the first lies in the generation.
    pub offset: u32,
    /// How many; at least one.
    pub octets: u32,
    /// As they stand in the file.
    pub anchors: Vec<u64>,
}

/// Octets of one space that lie where another's lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Who calls them so.
    pub space: Space,
    /// The address of the first.
    pub address: u64,
    /// Where it lies.
    pub place: Place,
    /// Which file that generation was: a number alone does not prove it.
    pub tag: FileTag,
    /// How many; at least one.
    pub octets: u32,
}

/// The beginning of a file's random id.
pub type FileTag = [u8; 8];

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Content.
    Part(Part),
    /// Other names of content.
    Aliases(Vec<Alias>),
}

const PART: u8 = 1;
const ALIASES: u8 = 2;
pub(crate) const PART_FIXED: usize = 1 + 16 + 8 + 4;

/// Packs an anchor that begins at `offset` of a generation.
pub(crate) fn anchor(hash: u64, offset: u32) -> u64 {
    hash << 16 | u64::from(offset % BLOCK)
}

/// The hash's 48 bits, and the offset in the generation for a part at `offset`.
pub(crate) fn unpack(anchor: u64, part_offset: u32) -> (u64, u32) {
    let within = u32::try_from(anchor & 0xFFFF).unwrap_or(0);
    (anchor >> 16, part_offset - part_offset % BLOCK + within)
}

impl Record {
    /// How much of the plain text is content.
    pub fn content(&self) -> u32 {
        match self {
            Self::Part(part) => part.octets,
            Self::Aliases(_) => 0,
        }
    }

    /// Appends the meta.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Part(part) => {
                out.push(PART);
                out.extend_from_slice(&part.space.0);
                out.extend_from_slice(&part.address.to_be_bytes());
                out.extend_from_slice(&part.offset.to_be_bytes());
                part.anchors.iter().for_each(|anchor| out.extend_from_slice(&anchor.to_be_bytes()));
            }
            Self::Aliases(aliases) => {
                out.push(ALIASES);
                for alias in aliases {
                    out.extend_from_slice(&alias.space.0);
                    out.extend_from_slice(&alias.address.to_be_bytes());
                    out.extend_from_slice(&alias.place.generation.0.to_be_bytes());
                    out.extend_from_slice(&alias.tag);
                    out.extend_from_slice(&alias.place.offset.to_be_bytes());
                    out.extend_from_slice(&alias.octets.to_be_bytes());
                }
            }
        }
    }

    /// Reads a meta that belongs to `content` octets; none if it is not exactly one.
    pub fn decode(meta: &[u8], content: u32) -> Option<Self> {
        let (&kind, mut rest) = meta.split_first()?;
        match kind {
            PART => {
                let part = Part {
                    space: Space(take(&mut rest)?),
                    address: u64::from_be_bytes(take(&mut rest)?),
                    offset: u32::from_be_bytes(take(&mut rest)?),
                    octets: content,
                    anchors: anchors(rest)?,
                };
                part.is_sound().then_some(Self::Part(part))
            }
            ALIASES if content == 0 => {
                let mut aliases = Vec::new();
                while !rest.is_empty() {
                    let alias = Alias {
                        space: Space(take(&mut rest)?),
                        address: u64::from_be_bytes(take(&mut rest)?),
                        place: Place {
                            generation: Generation(u64::from_be_bytes(take(&mut rest)?)),
                            offset: 0,
                        },
                        tag: take(&mut rest)?,
                        octets: 0,
                    };
                    let place = Place { offset: u32::from_be_bytes(take(&mut rest)?), ..alias.place };
                    aliases.push(Alias { place, octets: u32::from_be_bytes(take(&mut rest)?), ..alias });
                }
                let sound = !aliases.is_empty() && aliases.len() <= ALIASES_MAX;
                (sound && aliases.iter().all(Alias::is_sound)).then_some(Self::Aliases(aliases))
            }
            _ => None,
        }
    }
}

impl Part {
    /// Whether it fits its block, its generation and the addresses.
    fn is_sound(&self) -> bool {
        let within = u64::from(self.offset % BLOCK) + u64::from(self.octets);
        let from = self.offset % BLOCK;
        self.octets > 0
            && within <= u64::from(BLOCK)
            && self.offset < OFFSETS
            && self.address.checked_add(u64::from(self.octets)).is_some()
            && self.anchors.iter().all(|anchor| {
                let at = u32::try_from(anchor & 0xFFFF).unwrap_or(0);
                (from..from + self.octets).contains(&at)
            })
    }
}

impl Alias {
    fn is_sound(&self) -> bool {
        self.octets > 0
            && self.place.offset.checked_add(self.octets).is_some_and(|end| end <= OFFSETS)
            && self.address.checked_add(u64::from(self.octets)).is_some()
    }
}

fn anchors(octets: &[u8]) -> Option<Vec<u64>> {
    let (anchors, rest) = octets.as_chunks::<8>();
    let fits = rest.is_empty() && anchors.len() <= ANCHORS_MAX;
    fits.then(|| anchors.iter().map(|anchor| u64::from_be_bytes(*anchor)).collect())
}

pub(crate) fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*head)
}

const _: () = assert!(PLAIN_MAX as usize >= BLOCK as usize + PART_FIXED + 8 * ANCHORS_MAX);
const _: () = assert!(PLAIN_MAX as usize > 48 * ALIASES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u32, octets: u32, anchors: Vec<u64>) -> Record {
        Record::Part(Part { space: Space([3; 16]), address: 77, offset, octets, anchors })
    }

    fn alias(offset: u32, octets: u32) -> Alias {
        let place = Place { generation: Generation(9), offset };
        Alias { space: Space([4; 16]), address: 5, place, tag: [8; 8], octets }
    }

    #[test]
    fn what_is_written_is_read() {
        for record in [
            part(BLOCK, 1, vec![anchor(0xABCD_EF01_2345_6789, BLOCK)]),
            part(BLOCK + 7, BLOCK - 7, vec![]),
            Record::Aliases(vec![alias(0, 1), alias(OFFSETS - 4, 4)]),
        ] {
            let mut meta = Vec::new();
            record.encode(&mut meta);
            assert_eq!(Record::decode(&meta, record.content()), Some(record.clone()));
            assert_eq!(Record::decode(&meta[..meta.len() - 1], record.content()), None);
            assert_eq!(Record::decode(&[&meta[..], &[0]].concat(), record.content()), None);
        }
    }

    #[test]
    fn what_reaches_out_of_its_block_is_none() {
        for record in [
            part(0, 0, vec![]),
            part(1, BLOCK, vec![]),
            part(OFFSETS, 1, vec![]),
            part(10, 5, vec![anchor(1, 9)]),
            part(10, 5, vec![anchor(1, 15)]),
            Record::Aliases(vec![]),
            Record::Aliases(vec![alias(0, 0)]),
            Record::Aliases(vec![alias(OFFSETS, 1)]),
            Record::Aliases(vec![alias(1, u32::MAX)]),
        ] {
            let mut meta = Vec::new();
            record.encode(&mut meta);
            assert_eq!(Record::decode(&meta, record.content()), None, "{record:?}");
        }
    }

    #[test]
    fn an_anchor_keeps_its_place() {
        let packed = anchor(0xFFFF_0123_4567_89AB, 5 * BLOCK + 9);
        assert_eq!(unpack(packed, 5 * BLOCK + 2), (0x0123_4567_89AB, 5 * BLOCK + 9));
    }
}
