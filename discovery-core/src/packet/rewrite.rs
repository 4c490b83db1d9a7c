//! Other TCP options in the octets of a packet. Everything that does not follow from their length and their octets
//! stays as it came.

use crate::mutants;

use super::{
    OPTIONS_OCTETS_MAX, View,
    checksum::Sum,
    options::END,
    view::{HEADER_OCTETS, Tcp},
};

/// Options being put together, and their filling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    octets: [u8; OPTIONS_OCTETS_MAX],
    len: usize,
}

impl Area {
    pub(super) fn new() -> Self {
        Self { octets: [END; OPTIONS_OCTETS_MAX], len: 0 }
    }

    /// Adds these, or says that there is no room and adds nothing.
    pub(super) fn push(&mut self, octets: &[u8]) -> bool {
        let end = self.len + octets.len();
        let Some(place) = self.octets.get_mut(self.len..end) else { return false };
        place.copy_from_slice(octets);
        self.len = end;
        true
    }

    /// Adds so many octets of filling, as far as there is room.
    pub(super) fn fill(&mut self, filling: u8, octets: usize) {
        for _ in 0..octets {
            self.push(&[filling]);
        }
    }

    /// All of it, filled up to whole words with 'end of option list' (RFC 9293 §3.1), which needs no squeezing when
    /// it is taken out again.
    pub(super) fn words(&self) -> &[u8] {
        self.octets.get(..self.len.next_multiple_of(4)).unwrap_or(&self.octets)
    }
}

/// The packet with `options` in place of its own, in `out`: lengths, data offset and checksums follow, by what changed
/// only (RFC 1624). `options` are whole words. False when a length field cannot say how long it would be; then `out` is
/// empty.
pub(super) fn with_options(view: &View<'_>, tcp: &Tcp<'_>, options: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let (old, at) = (tcp.options_octets(), view.transport_at());
    let segment = HEADER_OCTETS + tcp.payload().len();
    let (Ok(old_segment), Ok(new_segment), Ok(total)) = (
        u16::try_from(segment + old.len()),
        u16::try_from(segment + options.len()),
        u16::try_from(at + segment + options.len()),
    ) else {
        return false;
    };
    let Some((head, _)) = view.octets().split_at_checked(at + HEADER_OCTETS) else { return false };
    out.reserve(usize::from(total));
    out.extend_from_slice(head);
    out.extend_from_slice(options);
    out.extend_from_slice(tcp.payload());

    let Some((ip, tcp_header)) = out.split_at_mut_checked(at) else { return false };
    if let Some([first, _, t0, t1, _, _, _, _, _, _, c0, c1, ..]) = ip.first_chunk_mut::<20>()
        && *first >> 4 == 4
    {
        let changed = Sum::behind(u16::from_be_bytes([*c0, *c1])).less(&[*t0, *t1]).and_word(total);
        [*t0, *t1] = total.to_be_bytes();
        [*c0, *c1] = changed.checksum().to_be_bytes();
    } else if let Some([_, _, _, _, l0, l1, ..]) = ip.first_chunk_mut::<40>() {
        // Extension headers count as payload.
        let payload = total - IPV6_HEADER_OCTETS;
        [*l0, *l1] = payload.to_be_bytes();
    }
    if let Some([_, _, _, _, _, _, _, _, _, _, _, _, offset, flags, _, _, c0, c1, ..]) =
        tcp_header.first_chunk_mut::<HEADER_OCTETS>()
    {
        let before = [*offset, *flags];
        let words = u8::try_from((HEADER_OCTETS + options.len()) / 4).unwrap_or(15);
        *offset = words << 4 | *offset & 15;
        // The pseudo-header holds the length of the segment. What it carries moves by whole words, which no sum sees.
        let changed = Sum::behind(u16::from_be_bytes([*c0, *c1]))
            .less(&before)
            .less(old)
            .less_word(old_segment)
            .and(&[*offset, *flags])
            .and(options)
            .and_word(if mutants::on("splice-pseudo-header") { old_segment } else { new_segment });
        [*c0, *c1] = changed.checksum().to_be_bytes();
    }
    true
}

const IPV6_HEADER_OCTETS: u16 = 40;
