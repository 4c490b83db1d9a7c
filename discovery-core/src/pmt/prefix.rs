//! A network of addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An address and how many of its bits count. The other bits are always zero, so equal networks are equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The network of `address` with `bits` bits; more bits than the address has mean all of them.
    #[must_use]
    pub fn new(address: IpAddr, bits: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let bits = bits.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Self { address: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), bits }
            }
            IpAddr::V6(v6) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Self { address: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), bits }
            }
        }
    }

    /// The network of `address` with so many bits as its family is given.
    #[must_use]
    pub fn around(address: IpAddr, v4_bits: u8, v6_bits: u8) -> Self {
        Self::new(address, if address.is_ipv4() { v4_bits } else { v6_bits })
    }

    /// Whether the address is one of the network's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.bits) == *self
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bits_that_count_count() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(Prefix::new(ip("10.1.2.3"), 24).to_string(), "10.1.2.0/24");
        assert_eq!(Prefix::new(ip("10.1.2.3"), 0).to_string(), "0.0.0.0/0");
        assert_eq!(Prefix::new(ip("10.1.2.3"), 99).to_string(), "10.1.2.3/32");
        assert_eq!(Prefix::new(ip("fd02:1::2"), 64).to_string(), "fd02:1::/64");
        assert_eq!(Prefix::new(ip("fd02:1::2"), 0).to_string(), "::/0");
        for (network, inside, outside) in [
            ("10.1.2.0/24", "10.1.2.255", "10.1.3.0"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("::1/128", "::1", "::2"),
        ] {
            let (address, bits) = network.split_once('/').unwrap();
            let prefix = Prefix::new(ip(address), bits.parse().unwrap());
            assert!(prefix.contains(ip(inside)) && !prefix.contains(ip(outside)), "{network}");
        }
    }
}
