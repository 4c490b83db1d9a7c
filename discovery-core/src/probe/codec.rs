//! Probes as octets.
//!
//! ```text
//! octet  0      1       2 3    4                  5      6 7   8..16   16..20 or 16..32
//!        kind   length  ExID   version | type     flags  port  key     address
//!                              4 bits    4 bits   ------ only in a response ---------
//! ```
//! A destination, by which a deflector tells a proxy whom the client meant, is a response without the key: 12 or 24
//! octets. The longer one does not fit into most SYNs, and then the deflector tells it some other way.
//!
//! A query is the first six octets: it fits into the SYN of a client that opens fast (RFC 7413) with a cookie of eight
//! octets, where nothing longer does. A response is 20 octets or, with an IPv6 address, 32: a SYN-ACK that we make
//! has all 40 free. Which family it is, its length says.
//!
//! Flags that are not known are ignored, and written as 0; a type that is not known is not for us; another version may
//! mean anything by the rest, so it is not read at all.

use super::{KeyHint, Probe, Query, Response};
use crate::{
    mutants,
    packet::{Item, Options, TcpOption},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Reads and writes probes under one option kind and one experiment identifier (RFC 6994).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codec {
    kind: u8,
    experiment: u16,
}

/// A kind that means something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TCP option kind {0} has a meaning of its own; 253 and 254 are for experiments")]
pub struct KindTaken(pub u8);

/// What the options of a segment say to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A probe.
    Probe(Probe),
    /// Whom the client meant, on a SYN that was sent elsewhere. Anybody can write it, and who believes anybody connects
    /// strangers to what they name: it counts from a deflector that the operator has named, and from nobody else.
    Destination(SocketAddr),
    /// One of a version (or of a type within ours) that we do not speak, by that octet. As if nothing had been said.
    Unknown(u8),
    /// Ours by kind and identifier, and of a length or with an address that cannot be. As if nothing had been said.
    Malformed,
}

/// A probe as an option, kind and length first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    octets: [u8; RESPONSE_V6_OCTETS],
    len: usize,
}

impl Codec {
    /// Under this kind and identifier.
    ///
    /// # Errors
    /// [`KindTaken`] when the kind is one that stacks send and read already.
    pub fn new(kind: u8, experiment: u16) -> Result<Self, KindTaken> {
        if TAKEN.contains(&kind) { Err(KindTaken(kind)) } else { Ok(Self { kind, experiment }) }
    }

    /// The option's kind, for filters in the kernel.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    pub(super) fn experiment(&self) -> u16 {
        self.experiment
    }

    /// Whether an option is ours, whatever it says.
    #[must_use]
    pub fn owns(&self, option: &TcpOption<'_>) -> bool {
        let [high, low] = self.experiment.to_be_bytes();
        option.same_experiment(&[self.kind, 4, high, low])
    }

    /// The first of ours among these options.
    #[must_use]
    pub fn find(&self, options: Options<'_>) -> Found {
        for item in options {
            if let Item::Option(option) = item
                && self.owns(&option)
            {
                return decode(option.octets.get(4..).unwrap_or_default());
            }
        }
        Found::Nothing
    }

    /// As an option.
    #[must_use]
    pub fn encode(&self, probe: &Probe) -> Encoded {
        match probe {
            Probe::Query(Query) => self.begin(TYPE_QUERY, 0).end(),
            Probe::Response(response) => {
                let flags = if response.connected { FLAG_CONNECTED } else { 0 };
                self.begin(TYPE_RESPONSE, flags)
                    .and(&response.link.port().to_be_bytes())
                    .and(&response.key.0)
                    .and_address(response.link.ip())
                    .end()
            }
        }
    }

    /// Whom the client meant, as an option of the SYN that a deflector sends on.
    #[must_use]
    pub fn encode_destination(&self, server: SocketAddr) -> Encoded {
        self.begin(TYPE_DESTINATION, 0).and(&server.port().to_be_bytes()).and_address(server.ip()).end()
    }

    fn begin(&self, of_type: u8, flags: u8) -> Encoded {
        let [e0, e1] = self.experiment.to_be_bytes();
        Encoded { octets: [0; RESPONSE_V6_OCTETS], len: 0 }.and(&[
            self.kind,
            0,
            e0,
            e1,
            VERSION | of_type,
            flags,
        ])
    }
}

impl Default for Codec {
    /// Kind 253 with the identifier 0x5750, 'WP'.
    fn default() -> Self {
        Self { kind: 253, experiment: 0x5750 }
    }
}

impl Encoded {
    /// The whole option.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or(&self.octets)
    }

    fn and(mut self, octets: &[u8]) -> Self {
        if let Some(place) = self.octets.get_mut(self.len..self.len + octets.len()) {
            place.copy_from_slice(octets);
            self.len += octets.len();
        }
        self
    }

    fn and_address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.and(&address.octets()),
            IpAddr::V6(address) => self.and(&address.octets()),
        }
    }

    /// Its length, now that it is known.
    fn end(mut self) -> Self {
        let [_, length, ..] = &mut self.octets;
        *length = u8::try_from(self.len).unwrap_or(u8::MAX);
        self
    }
}

/// What follows the identifier.
fn decode(octets: &[u8]) -> Found {
    let Some((&version_and_type, rest)) = octets.split_first() else { return Found::Malformed };
    if version_and_type & VERSION_BITS != VERSION && !mutants::on("probe-any-version") {
        return Found::Unknown(version_and_type);
    }
    match version_and_type & TYPE_BITS {
        TYPE_QUERY => match rest {
            [_flags] => Found::Probe(Probe::Query(Query)),
            _ => Found::Malformed,
        },
        TYPE_RESPONSE => decode_response(rest).map_or(Found::Malformed, |r| Found::Probe(Probe::Response(r))),
        TYPE_DESTINATION => decode_destination(rest).map_or(Found::Malformed, Found::Destination),
        _ => Found::Unknown(version_and_type),
    }
}

fn decode_response(octets: &[u8]) -> Option<Response> {
    let (&[flags, p0, p1], rest) = octets.split_first_chunk::<3>()?;
    let (&key, address) = rest.split_first_chunk::<8>()?;
    let link = endpoint([p0, p1], address)?;
    Some(Response { link, key: KeyHint(key), connected: flags & FLAG_CONNECTED != 0 })
}

fn decode_destination(octets: &[u8]) -> Option<SocketAddr> {
    let (&[_flags, p0, p1], address) = octets.split_first_chunk::<3>()?;
    endpoint([p0, p1], address)
}

/// None where nobody can listen.
pub(super) fn endpoint(port: [u8; 2], address: &[u8]) -> Option<SocketAddr> {
    let address: IpAddr = match address.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
        _ => return None,
    };
    let port = u16::from_be_bytes(port);
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    let nobody = port == 0 || address.is_unspecified() || address.is_multicast() || broadcast;
    (!nobody).then_some(SocketAddr::new(address, port))
}

const RESPONSE_V6_OCTETS: usize = 32;
pub(super) const VERSION_BITS: u8 = 0xF0;
pub(super) const VERSION: u8 = 0x10;
pub(super) const TYPE_BITS: u8 = 0x0F;
const TYPE_QUERY: u8 = 1;
pub(super) const TYPE_RESPONSE: u8 = 2;
const TYPE_DESTINATION: u8 = 3;
pub(super) const FLAG_CONNECTED: u8 = 1;
/// IANA's registry as far as anything in use answers to it: to the filling, MSS, window scale, SACK, echoes,
/// timestamps, MD5, user time-out, AO, multipath, fast open, tcpcrypt's negotiation, accurate ECN.
const TAKEN: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 19, 28, 29, 30, 34, 69, 172, 174];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(link: &str, connected: bool) -> Probe {
        Probe::Response(Response { link: link.parse().unwrap(), key: KeyHint(*b"8 octets"), connected })
    }

    #[test]
    fn known_octets() {
        let rows: &[(Probe, &[u8])] = &[
            (Probe::Query(Query), &[253, 6, 0x57, 0x50, 0x11, 0]),
            (response("10.8.0.1:7777", true), b"\xfd\x14\x57\x50\x12\x01\x1e\x618 octets\x0a\x08\x00\x01"),
            (
                response("[fd08::1]:7777", false),
                b"\xfd\x20\x57\x50\x12\x00\x1e\x618 octets\xfd\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
            ),
        ];
        for (probe, octets) in rows {
            let codec = Codec::default();
            assert_eq!(codec.encode(probe).octets(), *octets);
            assert_eq!(codec.find(Options::new(octets)), Found::Probe(*probe));
        }
    }

    #[test]
    fn what_is_not_for_us_is_not_read() {
        let unknown = |octet| Found::Unknown(octet);
        let rows: &[(&[u8], Found)] = &[
            (&[], Found::Nothing),
            (&[253, 6, 0x57, 0x51, 0x11, 0], Found::Nothing),
            (&[254, 6, 0x57, 0x50, 0x11, 0], Found::Nothing),
            (&[0, 253, 6, 0x57, 0x50, 0x11, 0], Found::Nothing),
            (&[5, 1, 253, 6, 0x57, 0x50, 0x11, 0], Found::Nothing),
            (&[253, 4, 0x57, 0x50], Found::Malformed),
            (&[253, 5, 0x57, 0x50, 0x11], Found::Malformed),
            (&[253, 7, 0x57, 0x50, 0x11, 0, 0], Found::Malformed),
            (&[253, 6, 0x57, 0x50, 0x21, 0], unknown(0x21)),
            (&[253, 9, 0x57, 0x50, 0x01, 0, 1, 2, 3], unknown(0x01)),
            (&[253, 6, 0x57, 0x50, 0x14, 0], unknown(0x14)),
            (&[253, 6, 0x57, 0x50, 0x13, 0], Found::Malformed),
            (&[1, 1, 253, 6, 0x57, 0x50, 0x11, 0xFE], Found::Probe(Probe::Query(Query))),
        ];
        for (octets, found) in rows {
            assert_eq!(Codec::default().find(Options::new(octets)), *found, "{octets:?}");
        }
    }

    #[test]
    fn a_destination_is_read() {
        for (server, octets) in [("10.2.0.2:143", 12), ("[fd02::2]:993", 24)] {
            let server = server.parse().unwrap();
            let encoded = Codec::default().encode_destination(server);
            assert_eq!(encoded.octets().len(), octets);
            let found = Codec::default().find(Options::new(encoded.octets()));
            assert_eq!(found, Found::Destination(server));
        }
    }

    #[test]
    fn addresses_where_nobody_listens() {
        for link in ["0.0.0.0:1", "10.0.0.1:0", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1"] {
            let octets = Codec::default().encode(&response(link, true));
            assert_eq!(Codec::default().find(Options::new(octets.octets())), Found::Malformed, "{link}");
        }
    }

    #[test]
    fn kinds_with_a_meaning_are_refused() {
        for kind in 0..=u8::MAX {
            assert_eq!(Codec::new(kind, 0x5750).is_err(), TAKEN.contains(&kind));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in 200_u8.., experiment: u16, address: IpAddr, port: u16, key: [u8; 8], connected: bool, query: bool,
        ) {
            let response = Response { link: SocketAddr::new(address, port), key: KeyHint(key), connected };
            let probe = if query { Probe::Query(Query) } else { Probe::Response(response) };
            let codec = Codec::new(kind, experiment).unwrap();
            let encoded = codec.encode(&probe);
            prop_assert!(encoded.octets().len() <= 40);
            let found = codec.find(Options::new(encoded.octets()));
            let nobody = port == 0 || address.is_unspecified() || address.is_multicast()
                || address == IpAddr::V4(Ipv4Addr::BROADCAST);
            prop_assert_eq!(found, if !query && nobody { Found::Malformed } else { Found::Probe(probe) });
        }

        /// Whatever is read, written again gives the same octets, but for flags that are not known.
        #[test]
        fn what_is_read_is_written(mut octets in prop::collection::vec(any::<u8>(), 6..40), kind: bool) {
            let length = u8::try_from(octets.len()).unwrap();
            octets[..5].copy_from_slice(&[253, length, 0x57, 0x50, if kind { 0x11 } else { 0x12 }]);
            octets[5] &= 1;
            if let Found::Probe(probe) = Codec::default().find(Options::new(&octets)) {
                if kind { octets[5] = 0; }
                let encoded = Codec::default().encode(&probe);
                prop_assert_eq!(encoded.octets(), &octets[..]);
            }
        }
    }
}
