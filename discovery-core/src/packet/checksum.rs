//! The Internet checksum (RFC 1071), and its change by what changed (RFC 1624).
//!
//! A packet that is altered gets an altered checksum, not a new one: a packet that came damaged stays damaged, so
//! that its receiver still refuses it.

use std::net::IpAddr;

/// A sum of big-endian words in ones' complement, folded at the end only: 2^48 words fit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds these octets; an odd last one is the high half of a word.
    #[must_use]
    pub(super) fn and(mut self, octets: &[u8]) -> Self {
        let (words, rest) = octets.as_chunks::<2>();
        for word in words {
            self.0 += u64::from(u16::from_be_bytes(*word));
        }
        if let [last] = rest {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    /// Adds one word.
    #[must_use]
    pub(super) fn and_word(mut self, word: u16) -> Self {
        self.0 += u64::from(word);
        self
    }

    /// Adds what TCP, UDP and ICMPv6 cover besides themselves (RFC 9293 §3.1, RFC 8200 §8.1): as words the two families'
    /// pseudo-headers sum alike.
    #[must_use]
    pub(super) fn and_pseudo_header(self, from: IpAddr, to: IpAddr, protocol: u8, octets: usize) -> Self {
        let with = |sum: Self, address: IpAddr| match address {
            IpAddr::V4(address) => sum.and(&address.octets()),
            IpAddr::V6(address) => sum.and(&address.octets()),
        };
        let octets = u16::try_from(octets).unwrap_or(u16::MAX);
        with(with(self, from), to).and_word(u16::from(protocol)).and_word(octets)
    }

    /// Takes these octets away again.
    #[must_use]
    pub(super) fn less(self, octets: &[u8]) -> Self {
        self.and_word(!Self::default().and(octets).folded())
    }

    /// Takes one word away again.
    #[must_use]
    pub(super) fn less_word(self, word: u16) -> Self {
        self.and_word(!word)
    }

    /// The sum itself.
    #[must_use]
    pub(super) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > u64::from(u16::MAX) {
            sum = (sum & u64::from(u16::MAX)) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// What stands in a header: the complement.
    #[must_use]
    pub(super) fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The sum behind a checksum, to be changed by what changes (RFC 1624 §3, equation 3).
    #[must_use]
    pub(super) fn behind(checksum: u16) -> Self {
        Self(u64::from(!checksum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::default().and(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    /// RFC 1624 §4: the case that RFC 1141 got wrong.
    #[test]
    fn rfc_1624_example() {
        let changed = Sum::behind(0xdd2f).less_word(0x5555).and_word(0x3285);
        assert_eq!(changed.checksum(), 0x0000);
    }

    #[test]
    fn an_odd_octet_is_a_high_half() {
        assert_eq!(Sum::default().and(&[0x12]).folded(), 0x1200);
    }
}
