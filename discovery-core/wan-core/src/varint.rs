//! Numbers of one to eight octets: the two highest bits of the first say how long (RFC 9000 §16), and unlike there
//! only the shortest form is a number, so that there is one way to say a thing.

use bytes::{Buf, BufMut, Bytes};

/// The largest number that fits.
pub const MAX: u64 = (1 << 62) - 1;

/// Appends `value`; what is larger than [`MAX`] is written as [`MAX`].
pub fn put(out: &mut impl BufMut, value: u64) {
    let value = value.min(MAX);
    let octets = value.to_be_bytes();
    let width = width(value);
    let marked = octets.iter().skip(8 - width).enumerate();
    let mark = match width {
        1 => 0x00,
        2 => 0x40,
        4 => 0x80,
        _ => 0xc0,
    };
    marked.for_each(|(n, octet)| out.put_u8(if n == 0 { octet | mark } else { *octet }));
}

/// How many octets `value` takes.
#[must_use]
pub fn width(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// A number at the start of `octets` and how many it takes. `Ok(None)`: more octets are needed.
///
/// # Errors
/// [`Overlong`] when a shorter form exists.
pub fn peek(octets: &[u8]) -> Result<Option<(u64, usize)>, Overlong> {
    let Some(first) = octets.first() else { return Ok(None) };
    let wide = 1_usize << (first >> 6);
    let Some(taken) = octets.get(..wide) else { return Ok(None) };
    let value = taken.iter().fold(0_u64, |value, octet| value << 8 | u64::from(*octet));
    // The mark stands in the two highest bits of as many octets as there are.
    let value = if wide == 8 { value & MAX } else { value & ((1 << (8 * wide - 2)) - 1) };
    if width(value) == wide { Ok(Some((value, wide))) } else { Err(Overlong) }
}

/// Takes a number from the front; none when there is none.
#[must_use]
pub fn take(octets: &mut Bytes) -> Option<u64> {
    let (value, wide) = peek(octets).ok().flatten()?;
    octets.advance(wide);
    Some(value)
}

/// A number in more octets than it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlong;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_known_numbers_of_rfc_9000() {
        let rows: [(u64, &[u8]); 6] = [
            (0, &[0]),
            (37, &[0x25]),
            (15_293, &[0x7b, 0xbd]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (151_288_809_941_952_652, &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
            (MAX, &[0xff; 8]),
        ];
        for (value, octets) in rows {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out, octets);
            assert_eq!(peek(octets), Ok(Some((value, octets.len()))));
        }
    }

    #[test]
    fn a_longer_form_is_refused_and_a_cut_one_waits() {
        assert_eq!(peek(&[0x40, 0x25]), Err(Overlong));
        assert_eq!(peek(&[0x80, 0, 0x3b, 0xbd]), Err(Overlong));
        assert_eq!(peek(&[0xc0, 0, 0, 0, 0, 0, 0, 1]), Err(Overlong));
        assert_eq!(peek(&[]), Ok(None));
        assert_eq!(peek(&[0x7b]), Ok(None));
    }

    proptest! {
        #[test]
        fn written_and_read_again(value in 0..=MAX, behind in any::<[u8; 3]>()) {
            let mut out = Vec::new();
            put(&mut out, value);
            let wide = out.len();
            prop_assert_eq!(wide, width(value));
            out.extend(behind);
            prop_assert_eq!(peek(&out), Ok(Some((value, wide))));
        }
    }
}
