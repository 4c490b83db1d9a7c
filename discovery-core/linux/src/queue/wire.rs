//! The messages of the kernel's packet queue (`linux/netfilter/nfnetlink_queue.h`), read and written. Pure.
//!
//! A message: netlink header (length, type, flags, sequence, port; 16 octets, native order), nfgenmsg (family,
//! version, queue number in network order; 4 octets), attributes (length, type in native order, value, padding to
//! 4). What the kernel sends is believed no more than a peer's octets: lengths that do not fit end the reading.

use std::io;

use super::Verdict;

/// The kernel's number of a queued packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub u32);

/// Where on its way the packet was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// It came in.
    Prerouting,
    /// It was made on this machine.
    Output,
    /// Elsewhere: no rule of ours does that.
    Other(u8),
}

/// An 802.1Q tag that the packet's frame carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vlan {
    /// The tag's protocol, `0x8100` mostly.
    pub protocol: u16,
    /// Priority and number.
    pub tci: u16,
}

/// One queued packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedPacket<'a> {
    /// What a verdict names.
    pub id: PacketId,
    /// Where it was taken.
    pub hook: Hook,
    /// Its mark.
    pub mark: u32,
    /// The interface it came in by; 0 for one made here.
    pub indev: u32,
    /// The port of the bridge it came in by; 0 when no bridge was involved.
    pub physindev: u32,
    /// The interface it would leave by, where that is known.
    pub outdev: u32,
    /// Its frame's tag.
    pub vlan: Option<Vlan>,
    /// From the network header on.
    pub payload: &'a [u8],
    /// The payload is all of it. A part must not be put in the place of the whole.
    pub whole: bool,
    /// Nobody has looked at its checksum yet. Else the kernel or the card has, or there is none to look at before it
    /// leaves.
    pub unverified: bool,
}

/// Room for what one call receives.
#[derive(Debug)]
pub struct Batch {
    pub(super) slots: Vec<u8>,
    pub(super) slot_octets: usize,
    pub(super) lengths: Vec<usize>,
    pub(super) filled: usize,
}

impl Batch {
    /// Room for `packets` packets of which at most `copy_octets` are copied.
    #[must_use]
    pub fn new(packets: usize, copy_octets: u32) -> Self {
        let packets = packets.clamp(1, PACKETS_MAX);
        let slot_octets = usize::try_from(copy_octets).unwrap_or(0xffff) + AROUND_PAYLOAD;
        Self { slots: vec![0; packets * slot_octets], slot_octets, lengths: vec![0; packets], filled: 0 }
    }

    /// How many messages it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The packets, in the order in which they were queued.
    pub fn packets(&self) -> impl Iterator<Item = QueuedPacket<'_>> {
        self.messages().filter_map(|message| match message {
            Message::Packet(packet) => Some(packet),
            Message::Error(_) | Message::Other | Message::Garbled => None,
        })
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        let datagrams = self.slots.chunks_exact(self.slot_octets).zip(&self.lengths).take(self.filled);
        datagrams.flat_map(|(slot, length)| {
            // Longer than its slot: cut, so that its last attribute does not fit and the reading ends there.
            Messages { rest: slot.get(..*length).unwrap_or(slot) }
        })
    }
}

/// A batch of 64 packets is 1.3 ms of SYNs at 50,000 a second.
const PACKETS_MAX: usize = 1024;
/// Headers and the attributes beside the payload, with room for those that newer kernels add.
const AROUND_PAYLOAD: usize = 512;

/// One message from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// A packet was queued.
    Packet(QueuedPacket<'a>),
    /// The answer to a request; zero when it was granted, else an errno.
    Error(i32),
    /// Something well-formed that this package did not ask for.
    Other,
    /// Not readable.
    Garbled,
}

/// The messages of one datagram.
#[derive(Clone, Debug)]
pub(super) struct Messages<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let length = native_u32(self.rest, 0).and_then(|length| usize::try_from(length).ok());
        let message = length.filter(|length| *length >= HEADER).and_then(|length| self.rest.get(..length));
        let Some(message) = message else {
            self.rest = &[];
            return Some(Message::Garbled);
        };
        self.rest = self.rest.get(padded(message.len())..).unwrap_or_default();
        Some(read_message(message))
    }
}

fn read_message(message: &[u8]) -> Message<'_> {
    match native_u16(message, 4) {
        Some(NLMSG_ERROR) => native_u32(message, HEADER)
            .map_or(Message::Garbled, |code| Message::Error(code.cast_signed().saturating_neg())),
        Some(kind) if kind == QUEUE_PACKET => {
            message.get(HEADER + NFGENMSG..).and_then(read_packet).map_or(Message::Garbled, Message::Packet)
        }
        Some(_) => Message::Other,
        None => Message::Garbled,
    }
}

fn read_packet(attributes: &[u8]) -> Option<QueuedPacket<'_>> {
    let mut header = None;
    let mut packet = QueuedPacket {
        id: PacketId(0),
        hook: Hook::Other(0xff),
        mark: 0,
        indev: 0,
        physindev: 0,
        outdev: 0,
        vlan: None,
        payload: &[],
        whole: true,
        unverified: false,
    };
    let mut copied_of = None;
    for attribute in (Attributes { rest: attributes }) {
        let (kind, value) = attribute?;
        match kind {
            NFQA_PACKET_HDR => header = Some((big_u32(value, 0)?, *value.get(6)?)),
            NFQA_MARK => packet.mark = big_u32(value, 0)?,
            NFQA_IFINDEX_INDEV => packet.indev = big_u32(value, 0)?,
            NFQA_IFINDEX_OUTDEV => packet.outdev = big_u32(value, 0)?,
            NFQA_IFINDEX_PHYSINDEV => packet.physindev = big_u32(value, 0)?,
            NFQA_PAYLOAD => packet.payload = value,
            NFQA_CAP_LEN => copied_of = Some(big_u32(value, 0)?),
            NFQA_SKB_INFO => packet.unverified = big_u32(value, 0)? & SKB_CSUM_NOTVERIFIED != 0,
            NFQA_VLAN => packet.vlan = read_vlan(value),
            _ => {}
        }
    }
    let (id, hook) = header?;
    packet.id = PacketId(id);
    packet.hook = match hook {
        0 => Hook::Prerouting,
        3 => Hook::Output,
        other => Hook::Other(other),
    };
    // The kernel tells the full length only of a packet that it cut.
    let copied = u32::try_from(packet.payload.len()).unwrap_or(u32::MAX);
    packet.whole = copied_of.is_none_or(|full| full <= copied);
    Some(packet)
}

fn read_vlan(nested: &[u8]) -> Option<Vlan> {
    let mut protocol = None;
    let mut tci = None;
    for attribute in (Attributes { rest: nested }) {
        let (kind, value) = attribute?;
        match kind {
            NFQA_VLAN_PROTO => protocol = big_u16(value, 0),
            NFQA_VLAN_TCI => tci = big_u16(value, 0),
            _ => {}
        }
    }
    Some(Vlan { protocol: protocol?, tci: tci? })
}

/// Type and value of each attribute; `None`, once and last, where the lengths do not fit.
struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let length = native_u16(self.rest, 0).map(usize::from);
        let whole = length.filter(|length| *length >= ATTRIBUTE).and_then(|length| self.rest.get(..length));
        let attribute = whole.and_then(|whole| {
            let kind = native_u16(whole, 2)? & ATTRIBUTE_TYPE;
            Some((kind, whole.get(ATTRIBUTE..)?, whole.len()))
        });
        let Some((kind, value, length)) = attribute else {
            self.rest = &[];
            return Some(None);
        };
        self.rest = self.rest.get(padded(length)..).unwrap_or_default();
        Some(Some((kind, value)))
    }
}

/// What is written to a queue's socket.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    octets: Vec<u8>,
}

impl Outgoing {
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    pub(super) fn clear(&mut self) {
        self.octets.clear();
    }

    /// Binds the socket to the queue.
    pub(super) fn bind(&mut self, queue: u16) {
        self.message(QUEUE_CONFIG, ACKNOWLEDGE, queue, |out| {
            out.attribute(NFQA_CFG_CMD, &[CFG_CMD_BIND, 0, 0, 0]);
        });
    }

    /// Gives the queue up. What it still holds, the kernel drops.
    pub(super) fn unbind(&mut self, queue: u16) {
        self.message(QUEUE_CONFIG, ACKNOWLEDGE, queue, |out| {
            out.attribute(NFQA_CFG_CMD, &[CFG_CMD_UNBIND, 0, 0, 0]);
        });
    }

    /// How much of each packet is copied.
    pub(super) fn copy(&mut self, queue: u16, octets: u32) {
        let [a, b, c, d] = octets.to_be_bytes();
        self.message(QUEUE_CONFIG, ACKNOWLEDGE, queue, |out| {
            out.attribute(NFQA_CFG_PARAMS, &[a, b, c, d, COPY_PACKET]);
        });
    }

    /// How many packets wait at most. Further ones flow untouched, and packets come with their checksums done.
    pub(super) fn bounds(&mut self, queue: u16, packets_max: u32) {
        self.message(QUEUE_CONFIG, ACKNOWLEDGE, queue, |out| {
            out.attribute(NFQA_CFG_QUEUE_MAXLEN, &packets_max.to_be_bytes());
            out.attribute(NFQA_CFG_MASK, &(CFG_F_FAIL_OPEN | CFG_F_GSO).to_be_bytes());
            out.attribute(NFQA_CFG_FLAGS, &CFG_F_FAIL_OPEN.to_be_bytes());
        });
    }

    /// A verdict on one packet.
    pub(super) fn verdict(&mut self, queue: u16, packet: PacketId, verdict: Verdict<'_>) {
        let (word, payload, mark) = match verdict {
            Verdict::Accept => (NF_ACCEPT, None, None),
            Verdict::Replace(payload) => (NF_ACCEPT, Some(payload), None),
            Verdict::Mark(mark) => (NF_ACCEPT, None, Some(mark)),
            Verdict::ReplaceAndMark(payload, mark) => (NF_ACCEPT, Some(payload), Some(mark)),
            Verdict::Drop => (NF_DROP, None, None),
        };
        self.message(QUEUE_VERDICT, REQUEST, queue, |out| {
            let mut header = [0; 8];
            let (of, id) = header.split_at_mut(4);
            of.copy_from_slice(&word.to_be_bytes());
            id.copy_from_slice(&packet.0.to_be_bytes());
            out.attribute(NFQA_VERDICT_HDR, &header);
            if let Some(mark) = mark {
                out.attribute(NFQA_MARK, &mark.to_be_bytes());
            }
            if let Some(payload) = payload {
                out.attribute(NFQA_PAYLOAD, payload);
            }
        });
    }

    fn message(&mut self, kind: u16, flags: u16, queue: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.octets.len();
        self.octets.extend([0; 4]);
        self.octets.extend(kind.to_ne_bytes());
        self.octets.extend(flags.to_ne_bytes());
        self.octets.extend([0; 8]);
        // Family and version, then the queue.
        self.octets.extend([0, 0]);
        self.octets.extend(queue.to_be_bytes());
        fill(self);
        let length = u32::try_from(self.octets.len() - start).unwrap_or(u32::MAX);
        if let Some(field) = self.octets.get_mut(start..start + 4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // A value comes from a packet, which has at most 65,535 octets; a longer one the kernel refuses.
        let length = u16::try_from(value.len() + ATTRIBUTE).unwrap_or(u16::MAX);
        self.octets.extend(length.to_ne_bytes());
        self.octets.extend(kind.to_ne_bytes());
        self.octets.extend(value);
        self.octets.resize(padded(self.octets.len()), 0);
    }
}

/// Whether the answer to a request has come among these octets: granted, or refused with an error.
pub(super) fn answer(datagram: &[u8]) -> Option<io::Result<()>> {
    Messages { rest: datagram }.find_map(|message| match message {
        Message::Error(0) => Some(Ok(())),
        Message::Error(code) => Some(Err(io::Error::from_raw_os_error(code))),
        Message::Packet(_) | Message::Other | Message::Garbled => None,
    })
}

fn padded(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn native_u16(octets: &[u8], offset: usize) -> Option<u16> {
    octets.get(offset..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

fn native_u32(octets: &[u8], offset: usize) -> Option<u32> {
    octets.get(offset..)?.first_chunk().map(|field| u32::from_ne_bytes(*field))
}

fn big_u16(octets: &[u8], offset: usize) -> Option<u16> {
    octets.get(offset..)?.first_chunk().map(|field| u16::from_be_bytes(*field))
}

fn big_u32(octets: &[u8], offset: usize) -> Option<u32> {
    octets.get(offset..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

const HEADER: usize = 16;
const NFGENMSG: usize = 4;
const ATTRIBUTE: usize = 4;
/// Without the bits for 'nested' and 'network order'.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

const NLMSG_ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = REQUEST | 4;

/// NFNL_SUBSYS_QUEUE in the upper half.
const QUEUE_PACKET: u16 = 0x300;
const QUEUE_VERDICT: u16 = 0x301;
const QUEUE_CONFIG: u16 = 0x302;

const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_MARK: u16 = 3;
const NFQA_IFINDEX_INDEV: u16 = 5;
const NFQA_IFINDEX_OUTDEV: u16 = 6;
const NFQA_IFINDEX_PHYSINDEV: u16 = 7;
const NFQA_PAYLOAD: u16 = 10;
const NFQA_CAP_LEN: u16 = 13;
const NFQA_SKB_INFO: u16 = 14;
const SKB_CSUM_NOTVERIFIED: u32 = 4;
const NFQA_VLAN: u16 = 19;
const NFQA_VLAN_PROTO: u16 = 1;
const NFQA_VLAN_TCI: u16 = 2;

const NFQA_CFG_CMD: u16 = 1;
const NFQA_CFG_PARAMS: u16 = 2;
const NFQA_CFG_QUEUE_MAXLEN: u16 = 3;
const NFQA_CFG_MASK: u16 = 4;
const NFQA_CFG_FLAGS: u16 = 5;
const CFG_CMD_BIND: u8 = 1;
const CFG_CMD_UNBIND: u8 = 2;
const COPY_PACKET: u8 = 2;
const CFG_F_FAIL_OPEN: u32 = 1;
const CFG_F_GSO: u32 = 4;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet message as the kernel writes it.
    fn packet_message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Outgoing::default();
        out.message(QUEUE_PACKET, 0, 7, |out| {
            for (kind, value) in attributes {
                out.attribute(*kind, value);
            }
        });
        out.octets
    }

    fn only(octets: &[u8]) -> Message<'_> {
        let mut messages = Messages { rest: octets };
        let first = messages.next().unwrap();
        assert_eq!(messages.next(), None);
        first
    }

    #[test]
    fn a_packet_is_read_with_everything_it_carries() {
        let vlan = [
            8_u16.to_ne_bytes(),
            1_u16.to_ne_bytes(),
            [0x81, 0],
            [0, 0],
            8_u16.to_ne_bytes(),
            2_u16.to_ne_bytes(),
            [0x20, 0x64],
            [0, 0],
        ]
        .concat();
        let message = packet_message(&[
            (NFQA_PACKET_HDR, &[0, 0, 0, 9, 8, 0, 3]),
            (NFQA_MARK, &[0, 0, 0, 0x20]),
            (NFQA_IFINDEX_INDEV, &[0, 0, 0, 4]),
            (NFQA_IFINDEX_PHYSINDEV, &[0, 0, 0, 5]),
            (NFQA_IFINDEX_OUTDEV, &[0, 0, 0, 6]),
            (NFQA_VLAN | 0x8000, &vlan),
            (999, b"of a newer kernel"),
            (NFQA_PAYLOAD, b"ipv4!"),
        ]);
        let expected = QueuedPacket {
            id: PacketId(9),
            hook: Hook::Output,
            mark: 0x20,
            indev: 4,
            physindev: 5,
            outdev: 6,
            vlan: Some(Vlan { protocol: 0x8100, tci: 0x2064 }),
            payload: b"ipv4!",
            whole: true,
            unverified: false,
        };
        assert_eq!(only(&message), Message::Packet(expected));
    }

    #[test]
    fn a_packet_that_was_cut_says_so() {
        let header: (u16, &[u8]) = (NFQA_PACKET_HDR, &[0, 0, 0, 9, 8, 0, 0]);
        for (full, whole) in [(4_u32, false), (3, true)] {
            let message =
                packet_message(&[header, (NFQA_PAYLOAD, b"abc"), (NFQA_CAP_LEN, &full.to_be_bytes())]);
            let Message::Packet(packet) = only(&message) else { panic!() };
            assert_eq!(packet.whole, whole);
        }
    }

    #[test]
    fn lengths_that_do_not_fit_end_the_reading() {
        let good = packet_message(&[(NFQA_PACKET_HDR, &[0, 0, 0, 9, 8, 0, 0]), (NFQA_PAYLOAD, b"abcd")]);
        for cut in 1..good.len() {
            assert_eq!(only(&good[..cut]), Message::Garbled, "{cut}");
        }
        for length in [0, 1, 3, 200] {
            let mut bad = good.clone();
            bad[20] = length;
            assert_eq!(only(&bad), Message::Garbled, "{length}");
        }
        let no_header = packet_message(&[(NFQA_PAYLOAD, b"abcd")]);
        assert_eq!(only(&no_header), Message::Garbled);
    }

    #[test]
    fn several_messages_in_one_datagram_are_read_in_turn() {
        let mut datagram = packet_message(&[(NFQA_PACKET_HDR, &[0, 0, 0, 1, 8, 0, 0])]);
        datagram.extend(20_u32.to_ne_bytes());
        datagram.extend(2_u16.to_ne_bytes());
        datagram.extend([0; 10]);
        datagram.extend((-libc::ENOENT).to_ne_bytes());
        let read: Vec<_> = Messages { rest: &datagram }.collect();
        assert!(matches!(read.as_slice(), [Message::Packet(_), Message::Error(libc::ENOENT)]), "{read:?}");
    }

    #[test]
    fn verdicts_have_the_form_the_kernel_wants() {
        let mut out = Outgoing::default();
        out.verdict(7, PacketId(0x0102_0304), Verdict::ReplaceAndMark(b"abcde", 3));
        let length = out.octets().len();
        assert_eq!(length, 16 + 4 + 12 + 8 + 12);
        assert_eq!(native_u32(out.octets(), 0), Some(52));
        assert_eq!(native_u16(out.octets(), 4), Some(QUEUE_VERDICT));
        assert_eq!(&out.octets()[18..20], [0, 7]);
        let attributes: Vec<_> = Attributes { rest: &out.octets()[20..] }.map(Option::unwrap).collect();
        let header: &[u8] = &[0, 0, 0, 1, 1, 2, 3, 4];
        let expected: [(u16, &[u8]); 3] = [(2, header), (3, &[0, 0, 0, 3]), (10, b"abcde")];
        assert_eq!(attributes, expected);
        out.verdict(7, PacketId(5), Verdict::Drop);
        let kinds = Messages { rest: out.octets() }.count();
        assert_eq!(kinds, 2, "a second verdict follows the first in the same octets");
    }

    #[test]
    fn an_answer_is_a_grant_or_an_errno() {
        let answer_of = |code: i32| {
            let mut octets = [36_u32.to_ne_bytes().as_slice(), &2_u16.to_ne_bytes(), &[0; 10]].concat();
            octets.extend(code.to_ne_bytes());
            octets.extend([0; 16]);
            answer(&octets)
        };
        assert!(matches!(answer_of(0), Some(Ok(()))));
        let refused = answer_of(-libc::EPERM).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(answer(b"").is_none());
    }

    proptest! {
        #[test]
        fn any_octets_are_read_to_an_end(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
            let count = Messages { rest: &octets }.count();
            prop_assert!(count <= octets.len() / HEADER + 1);
        }

        #[test]
        fn a_flipped_octet_never_reads_beyond_the_message(
            at in 0_usize..64, value in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..24),
        ) {
            let mut message = packet_message(&[(NFQA_PACKET_HDR, &[0, 0, 0, 9, 8, 0, 0]), (NFQA_PAYLOAD, &payload)]);
            if let Some(octet) = message.get_mut(at) { *octet = value; }
            for read in (Messages { rest: &message }) {
                if let Message::Packet(packet) = read {
                    prop_assert!(packet.payload.len() <= message.len());
                }
            }
        }
    }
}
