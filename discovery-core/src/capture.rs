//! A file of captured packets, as octets: the form of libpcap (draft-ietf-opsawg-pcap) and its successor
//! (draft-ietf-opsawg-pcapng), as far as IP packets are concerned. A file is a stranger's: whatever it says of lengths is
//! checked against what is there, and a mistake is told with its place.

mod blocks;
mod classic;
mod frame;

use crate::rule::VlanId;
use std::time::Duration;

/// One captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// Since 1970; zero where the file does not tell.
    pub at: Duration,
    /// From its IP header on, as far as it was captured; empty when it is no IP packet.
    pub octets: &'a [u8],
    /// The tag it came with.
    pub vlan: Option<VlanId>,
}

/// The packets of a file, in its order; after a mistake there are no more.
#[derive(Clone, Debug)]
pub struct Capture<'a> {
    form: Form<'a>,
    failed: bool,
}

#[derive(Clone, Debug)]
enum Form<'a> {
    Classic(classic::Classic<'a>),
    Blocks(blocks::Blocks<'a>),
}

/// What is wrong with a file, and where: the octet counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// Neither of the two forms.
    #[error("no capture of packets: it begins with {0:#010x}, and neither pcap nor pcapng does")]
    Form(u32),
    /// It ends within something.
    #[error("octet {at}: the file ends within {what}")]
    Ends {
        /// Where that begins.
        at: usize,
        /// What it is.
        what: &'static str,
    },
    /// A length that cannot be.
    #[error("octet {at}: {what} says that it has {octets} octets, which cannot be")]
    Length {
        /// Where it begins.
        at: usize,
        /// What it is.
        what: &'static str,
        /// What it says.
        octets: u64,
    },
    /// A packet of an interface that was not described.
    #[error("octet {at}: a packet of interface {interface}, and {known} were described before it")]
    Interface {
        /// Where the packet begins.
        at: usize,
        /// Which one.
        interface: u32,
        /// How many there are.
        known: usize,
    },
    /// Frames of a kind that is not read here.
    #[error(
        "octet {at}: frames of link type {link}; known are Ethernet (1), raw IP (101, 228, 229) and Linux cooked \
         (113, 276)"
    )]
    Link {
        /// Where that is said.
        at: usize,
        /// Which type.
        link: u32,
    },
    /// More interfaces than any machine has.
    #[error("octet {at}: more than {INTERFACES_MAX} interfaces")]
    Interfaces {
        /// Where the one too many is described.
        at: usize,
    },
}

impl<'a> Capture<'a> {
    /// Reads the beginning of a file.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn open(file: &'a [u8]) -> Result<Self, CaptureError> {
        let magic = file.first_chunk::<4>().ok_or(CaptureError::Ends { at: 0, what: "its first word" })?;
        let magic = u32::from_be_bytes(*magic);
        let form = match magic {
            blocks::MAGIC => Form::Blocks(blocks::Blocks::new(file)),
            other => match classic::Order::of(other) {
                Some(order) => Form::Classic(classic::Classic::open(file, order)?),
                None => return Err(CaptureError::Form(other)),
            },
        };
        Ok(Self { form, failed: false })
    }
}

impl<'a> Iterator for Capture<'a> {
    type Item = Result<Captured<'a>, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = match &mut self.form {
            Form::Classic(classic) => classic.next(),
            Form::Blocks(blocks) => blocks.next(),
        };
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// Numbers in the order of whoever wrote the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endian {
    big: bool,
}

impl Endian {
    fn u16(self, octets: &[u8], at: usize) -> Option<u16> {
        let octets = *octets.get(at..)?.first_chunk::<2>()?;
        Some(if self.big { u16::from_be_bytes(octets) } else { u16::from_le_bytes(octets) })
    }

    fn u32(self, octets: &[u8], at: usize) -> Option<u32> {
        let octets = *octets.get(at..)?.first_chunk::<4>()?;
        Some(if self.big { u32::from_be_bytes(octets) } else { u32::from_le_bytes(octets) })
    }
}

/// Each costs a few octets of memory.
const INTERFACES_MAX: usize = 4096;
/// More than any link carries, and what tools allow at most.
const PACKET_OCTETS_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flow::Flow, packet::forge::syn};

    fn packet() -> Vec<u8> {
        let flow = Flow { client: "10.1.0.2:1".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() };
        syn(&flow, 7, &[]).unwrap()
    }

    fn ethernet(packet: &[u8], tags: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], tags, &[8, 0], packet].concat()
    }

    pub(super) fn classic(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = [0xa1b2_c3d4_u32.to_le_bytes(), [2, 0, 4, 0]].concat();
        file.extend([0; 8]);
        file.extend(65_535_u32.to_le_bytes());
        file.extend(link.to_le_bytes());
        for (frame, seconds) in frames.iter().zip(1_u32..) {
            let octets = u32::try_from(frame.len()).unwrap();
            for n in [seconds, 5, octets, octets] {
                file.extend(n.to_le_bytes());
            }
            file.extend(frame);
        }
        file
    }

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let total = u32::try_from(body.len() + 12).unwrap().to_be_bytes();
        [&kind.to_be_bytes()[..], &total, &body, &total].concat()
    }

    fn blocks(link: u16, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file =
            block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_be_bytes()[..], &[0, 1, 0, 0], &[255; 8]].concat());
        file.extend(block(1, &[&link.to_be_bytes()[..], &[0, 0], &[0, 0, 255, 255]].concat()));
        file.extend(block(0x0bad, b"of a later kind"));
        for frame in frames {
            let octets = u32::try_from(frame.len()).unwrap().to_be_bytes();
            let head = [&[0_u8; 4][..], &[0; 4], &3_000_000_u32.to_be_bytes(), &octets, &octets].concat();
            file.extend(block(6, &[head, frame.clone()].concat()));
        }
        file
    }

    fn read(file: &[u8]) -> Result<Vec<Captured<'_>>, CaptureError> {
        Capture::open(file)?.collect()
    }

    #[test]
    fn both_forms_and_every_kind_of_frame() {
        let packet = packet();
        let frames = [
            (1, ethernet(&packet, &[]), None),
            (1, ethernet(&packet, &[0x81, 0, 0xe0, 100]), Some(100)),
            (101, packet.clone(), None),
            (228, packet.clone(), None),
            (113, [&[0; 14][..], &[8, 0], &packet].concat(), None),
            (276, [&[8, 0][..], &[0; 18], &packet].concat(), None),
        ];
        for (link, frame, tag) in frames {
            let frames = [frame];
            for file in [classic(link, &frames), blocks(u16::try_from(link).unwrap(), &frames)] {
                let all = read(&file).unwrap();
                assert_eq!(all.len(), 1, "{link}");
                assert_eq!((all[0].octets, all[0].vlan.map(VlanId::get)), (&packet[..], tag), "{link}");
            }
        }
        assert_eq!(
            read(&classic(101, std::slice::from_ref(&packet))).unwrap()[0].at,
            Duration::new(1, 5_000)
        );
        assert_eq!(read(&blocks(101, &[packet])).unwrap()[0].at, Duration::from_secs(3));
        let arp = [&[0; 12][..], &[8, 6], &[1; 28]].concat();
        assert_eq!(read(&classic(1, &[arp])).unwrap()[0].octets, b"", "no IP packet");
        assert_eq!(read(&classic(1, &[vec![1, 2]])).unwrap()[0].octets, b"", "no whole header");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let whole = classic(101, &[packet(), packet()]);
        let first_ends = 24 + 16 + packet().len();
        for end in 0..whole.len() {
            let read = read(&whole[..end]);
            if end == 24 || end == first_ends {
                assert_eq!(read.map(|all| all.len()), Ok(usize::from(end != 24)), "a whole file");
            } else {
                assert!(matches!(read, Err(CaptureError::Ends { .. })), "{end}: {read:?}");
            }
        }
        let whole = blocks(101, &[packet()]);
        for end in 0..whole.len() {
            // Between blocks it may end.
            assert!(
                read(&whole[..end]).is_ok_and(|all| all.is_empty()) == [28, 48, 76].contains(&end),
                "{end}"
            );
        }
        let text = |file: &[u8]| read(file).unwrap_err().to_string();
        assert_eq!(
            text(b"<html>"),
            "no capture of packets: it begins with 0x3c68746d, and neither pcap nor pcapng does"
        );
        assert!(text(&classic(105, &[])).starts_with("octet 20: frames of link type 105; known are"));
        let mut long = classic(101, &[packet()]);
        long[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(text(&long), "octet 24: a packet says that it has 4294967295 octets, which cannot be");
        let mut other = blocks(101, &[packet()]);
        other[76 + 11] = 7;
        assert_eq!(text(&other), "octet 76: a packet of interface 7, and 1 were described before it");
        let mut other = blocks(101, &[]);
        other[28 + 7] = 0;
        assert_eq!(text(&other), "octet 28: a block says that it has 0 octets, which cannot be");
    }
}
