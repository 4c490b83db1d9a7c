//! Address prefixes of a rule.

use std::{fmt, net::IpAddr, str::FromStr};

/// A network: the address has no bit behind the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    network: IpAddr,
    length: u8,
}

/// What is wrong with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// Longer than an address of its family.
    #[error("a prefix of {family} has at most {max} bits, not {length}")]
    Length {
        /// IPv4 or IPv6.
        family: &'static str,
        /// Its bits.
        max: u8,
        /// As given.
        length: u8,
    },
    /// The network or the one host? Neither is guessed, for a rule that catches too much is not seen.
    #[error(
        "{address}/{length} has bits behind the prefix: write {network}/{length} for the network or {address} for the host"
    )]
    HostBits {
        /// As given.
        address: IpAddr,
        /// As given.
        length: u8,
        /// The network that it lies in.
        network: IpAddr,
    },
    /// Not an address, or not a number behind it.
    #[error("'{0}' is neither an address (such as 10.1.0.2 or fd01::2) nor a prefix (such as 10.1.0.0/16)")]
    Text(String),
}

impl Prefix {
    /// The network of this address and length.
    ///
    /// # Errors
    /// [`PrefixError::Length`]; [`PrefixError::HostBits`].
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        // Such a network has IPv4 addresses only.
        let (address, length) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(within)) if (96..=128).contains(&length) => {
                (within.into(), length - 96)
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => (address, length),
        };
        let (family, max) = if address.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
        if length > max {
            return Err(PrefixError::Length { family, max, length });
        }
        let network = network(address, length);
        if network != address {
            return Err(PrefixError::HostBits { address, length, network });
        }
        Ok(Self { network, length })
    }

    /// Its first address.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many bits its addresses share.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address lies in it. Addresses of the other family never do; an IPv4 address in IPv6's clothes
    /// (`::ffff:10.1.0.2`) is an IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        network(address, self.length) == self.network && address.is_ipv4() == self.network.is_ipv4()
    }

    /// Whether it is a prefix of IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }
}

/// The address without what stands behind so many bits.
fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl From<IpAddr> for Prefix {
    /// One host.
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { network: address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// `10.1.0.0/16`, `fd01::/64`, or an address alone.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let wrong = || PrefixError::Text(text.to_owned());
        let Some((address, length)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| wrong());
        };
        let address = address.parse().map_err(|_| wrong())?;
        if !length.bytes().all(|octet| octet.is_ascii_digit()) {
            return Err(wrong());
        }
        Self::new(address, length.parse().map_err(|_| wrong())?)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "10.1.0.2/32", "::/0", "fd01::/64", "fd01::2/128"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.0.2".parse::<Prefix>().unwrap().to_string(), "10.1.0.2/32");
        let host_bits = "10.1.2.3/8".parse::<Prefix>().unwrap_err().to_string();
        assert!(host_bits.ends_with("write 10.0.0.0/8 for the network or 10.1.2.3 for the host"));
        let length = "10.0.0.0/33".parse::<Prefix>().unwrap_err().to_string();
        assert_eq!(length, "a prefix of IPv4 has at most 32 bits, not 33");
        assert!(matches!("::/129".parse::<Prefix>(), Err(PrefixError::Length { .. })));
        for text in ["", "/", "10.0.0.0/", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/256", "host", "fe80::%1/64"] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Text(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn families_are_apart() {
        let all4: Prefix = "0.0.0.0/0".parse().unwrap();
        let all6: Prefix = "::/0".parse().unwrap();
        let (v4, v6): (IpAddr, IpAddr) = ([10, 1, 0, 2].into(), "::ffff:10.1.0.2".parse().unwrap());
        assert!(all4.contains(v4) && all4.contains(v6) && !all6.contains(v6) && !all6.contains(v4));
    }

    #[test]
    fn a_prefix_contains_what_begins_like_it() {
        let rows = [
            ("10.2.0.0/16", "10.2.255.1", true),
            ("10.2.0.0/16", "10.3.0.1", false),
            ("10.2.0.0/16", "::ffff:10.2.0.9", true),
            ("10.2.0.0/16", "::ffff:10.3.0.1", false),
            ("::ffff:10.2.0.0/112", "10.2.0.9", true),
            ("::ffff:10.2.0.0/112", "::ffff:10.2.0.9", true),
            ("::ffff:10.2.0.0/112", "::ffff:10.3.0.1", false),
            ("::ffff:10.2.0.1", "10.2.0.1", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db9::1", true),
            ("::/0", "::ffff:192.0.2.1", false),
            ("2001:db8::/32", "2001:db8:9::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("192.0.2.1/32", "192.0.2.0", false),
        ];
        for (prefix, address, contains) in rows {
            let parsed: Prefix = prefix.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), contains, "{prefix} {address}");
        }
    }

    proptest! {
        /// As bit after bit.
        #[test]
        fn contains_what_shares_its_bits(a: IpAddr, b: IpAddr, length in 0_u8..=128, near: bool, flip in 0_u8..128) {
            let bits = |address: IpAddr| -> Vec<bool> {
                let octets = match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
            };
            // An IPv4 address in IPv6's clothes is one.
            let (a, b) = (a.to_canonical(), b.to_canonical());
            let length = if a.is_ipv4() { length % 33 } else { length };
            let b = match (near, a) {
                (false, _) => b,
                (true, IpAddr::V4(a)) => IpAddr::V4((a.to_bits() ^ 1 << (flip % 32)).into()),
                (true, IpAddr::V6(a)) => IpAddr::V6((a.to_bits() ^ 1 << flip).into()),
            };
            let prefix = Prefix::new(network(a, length), length).unwrap();
            let shared = bits(a).iter().zip(bits(b)).take_while(|(a, b)| **a == *b).count();
            let expected = a.is_ipv4() == b.is_ipv4() && shared >= usize::from(length);
            prop_assert_eq!(prefix.contains(b), expected);
            prop_assert!(prefix.contains(a));
        }
    }
}
