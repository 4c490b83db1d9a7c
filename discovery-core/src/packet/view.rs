//! What one IP packet says, checked once: addresses, ports, the TCP header. Whatever cannot be read with certainty is
//! refused with the reason, and then passes untouched.

use super::{Options, SynFacts};
use crate::{flow::Flow, mutants};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// One whole TCP or UDP packet, from its IP header on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    octets: &'a [u8],
    transport_at: usize,
    src: SocketAddr,
    dst: SocketAddr,
    transport: Transport<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Transport<'a> {
    Tcp(Tcp<'a>),
    /// What the datagram carries.
    Udp(&'a [u8]),
}

/// The TCP header of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    header: &'a [u8; HEADER_OCTETS],
    options: &'a [u8],
    payload: &'a [u8],
}

/// What rules can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP: recognised and ruled on, never intercepted.
    Udp,
}

/// What a segment is for a connection's beginning and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// RST, with or without ACK.
    Rst,
    /// FIN, data, acknowledgements, and combinations that no stack sends.
    Other,
}

/// Why a packet is not read. It passes as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Neither version 4 nor 6, or nothing at all.
    #[error("no IP packet")]
    Version,
    /// The queue gave fewer octets than the packet has: what is cut off could not be put back.
    #[error("shorter than its headers say")]
    Truncated,
    /// An IP header length or a total length that cannot be.
    #[error("an IP length that cannot be")]
    IpLength,
    /// A fragment, the first one too: the rest of it is elsewhere.
    #[error("a fragment")]
    Fragment,
    /// The destination in the header is a stage on the way and not the server.
    #[error("source-routed")]
    SourceRoute,
    /// An authentication header covers what would be altered.
    #[error("authenticated by IPsec")]
    Authenticated,
    /// More extension headers than anybody sends.
    #[error("too many extension headers")]
    Extensions,
    /// Another protocol, by its number.
    #[error("protocol {0}")]
    Protocol(u8),
    /// A transport header that does not fit or a data offset below 5.
    #[error("a transport header that cannot be")]
    TransportLength,
}

impl Refused {
    /// As a log and a metric's label say it; which other protocol it is, they do not.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Version => "no-ip",
            Self::Truncated => "truncated",
            Self::IpLength => "ip-length",
            Self::Fragment => "fragment",
            Self::SourceRoute => "source-route",
            Self::Authenticated => "authenticated",
            Self::Extensions => "extensions",
            Self::Protocol(_) => "protocol",
            Self::TransportLength => "transport-length",
        }
    }
}

impl<'a> View<'a> {
    /// Reads one packet. Octets behind its end, such as a link's filling, are left out.
    ///
    /// # Errors
    /// [`Refused`]: let it pass.
    pub fn parse(octets: &'a [u8]) -> Result<Self, Refused> {
        match octets.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(octets),
            Some(6) => Self::parse_v6(octets),
            Some(_) | None => Err(Refused::Version),
        }
    }

    fn parse_v4(octets: &'a [u8]) -> Result<Self, Refused> {
        let header = octets.first_chunk::<20>().ok_or(Refused::Truncated)?;
        let [first, _, t0, t1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        let header_octets = usize::from(first & 15) * 4;
        let total = usize::from(u16::from_be_bytes([t0, t1]));
        if header_octets < 20 || total < header_octets {
            return Err(Refused::IpLength);
        }
        let octets = octets.get(..total).ok_or(Refused::Truncated)?;
        // More fragments, or an offset.
        if u16::from_be_bytes([f0, f1]) & 0x3FFF != 0 && !mutants::on("packet-fragment-read") {
            return Err(Refused::Fragment);
        }
        if source_route_pending(octets.get(20..header_octets).unwrap_or_default()) {
            return Err(Refused::SourceRoute);
        }
        let src = Ipv4Addr::new(s0, s1, s2, s3).into();
        let dst = Ipv4Addr::new(d0, d1, d2, d3).into();
        Self::with_transport(octets, header_octets, protocol, src, dst)
    }

    fn parse_v6(octets: &'a [u8]) -> Result<Self, Refused> {
        let header = octets.first_chunk::<40>().ok_or(Refused::Truncated)?;
        let [_, _, _, _, l0, l1, mut next, _, addresses @ ..] = *header;
        // A jumbogram says 0 here, and ends in IpLength by that.
        let payload = usize::from(u16::from_be_bytes([l0, l1]));
        let octets = octets.get(..40 + payload).ok_or(Refused::Truncated)?;
        let mut at = 40;
        for _ in 0..=EXTENSIONS_MAX {
            let Some(extension) = octets.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
                return Err(Refused::IpLength);
            };
            let [following, length, _, segments_left] = *extension;
            match next {
                HOP_BY_HOP | DESTINATION => {}
                // What a route still leads to is the true destination; with none left this one is.
                ROUTING if segments_left == 0 => {}
                ROUTING => return Err(Refused::SourceRoute),
                FRAGMENT => return Err(Refused::Fragment),
                AUTHENTICATION => return Err(Refused::Authenticated),
                _ => {
                    let (src, dst) = addresses.split_at(16);
                    let address = |octets: &[u8]| <[u8; 16]>::try_from(octets).map(Ipv6Addr::from);
                    let (Ok(src), Ok(dst)) = (address(src), address(dst)) else {
                        return Err(Refused::Truncated);
                    };
                    return Self::with_transport(octets, at, next, src.into(), dst.into());
                }
            }
            next = following;
            at += (usize::from(length) + 1) * 8;
        }
        Err(Refused::Extensions)
    }

    fn with_transport(
        octets: &'a [u8],
        transport_at: usize,
        protocol: u8,
        src: IpAddr,
        dst: IpAddr,
    ) -> Result<Self, Refused> {
        let transport = octets.get(transport_at..).unwrap_or_default();
        let parsed = match protocol {
            TCP => Tcp::parse(transport).map(Transport::Tcp),
            UDP => udp_payload(transport).map(Transport::Udp),
            AUTHENTICATION => return Err(Refused::Authenticated),
            _ => return Err(Refused::Protocol(protocol)),
        };
        let (Some(parsed), Some([s0, s1, d0, d1])) = (parsed, transport.first_chunk::<4>().copied()) else {
            return Err(Refused::TransportLength);
        };
        Ok(Self {
            octets,
            transport_at,
            src: SocketAddr::new(src, u16::from_be_bytes([s0, s1])),
            dst: SocketAddr::new(dst, u16::from_be_bytes([d0, d1])),
            transport: parsed,
        })
    }

    /// Who sent it.
    #[must_use]
    pub fn src(&self) -> SocketAddr {
        self.src
    }

    /// Where to.
    #[must_use]
    pub fn dst(&self) -> SocketAddr {
        self.dst
    }

    /// TCP or UDP.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp(_) => Protocol::Tcp,
            Transport::Udp(_) => Protocol::Udp,
        }
    }

    /// Its TCP header, when it is TCP.
    #[must_use]
    pub fn tcp(&self) -> Option<Tcp<'a>> {
        match self.transport {
            Transport::Tcp(tcp) => Some(tcp),
            Transport::Udp(_) => None,
        }
    }

    /// What it carries, when it is UDP.
    #[must_use]
    pub fn datagram(&self) -> Option<&'a [u8]> {
        match self.transport {
            Transport::Tcp(_) => None,
            Transport::Udp(payload) => Some(payload),
        }
    }

    /// Its connection, when the client sent it.
    #[must_use]
    pub fn from_client(&self) -> Flow {
        Flow { client: self.src, server: self.dst }
    }

    /// Its connection, when the server sent it.
    #[must_use]
    pub fn from_server(&self) -> Flow {
        Flow { client: self.dst, server: self.src }
    }

    /// The whole packet, without what followed its end.
    #[must_use]
    pub fn octets(&self) -> &'a [u8] {
        self.octets
    }

    /// Where the transport header begins.
    pub(super) fn transport_at(&self) -> usize {
        self.transport_at
    }
}

impl<'a> Tcp<'a> {
    fn parse(octets: &'a [u8]) -> Option<Self> {
        let header = octets.first_chunk::<HEADER_OCTETS>()?;
        let [_, _, _, _, _, _, _, _, _, _, _, _, offset, ..] = *header;
        let header_octets = usize::from(offset >> 4) * 4;
        let options = octets.get(HEADER_OCTETS..header_octets)?;
        let payload = octets.get(header_octets..)?;
        Some(Self { header, options, payload })
    }

    /// The sequence number; of a SYN the client's initial one.
    #[must_use]
    pub fn seq(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The acknowledgement number, meaningful with ACK only.
    #[must_use]
    pub fn ack(&self) -> u32 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }

    /// FIN, SYN, RST, PSH, ACK, URG, ECE, CWR from the lowest bit up.
    #[must_use]
    pub fn flags(&self) -> u8 {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, flags, ..] = *self.header;
        flags
    }

    /// The window as it stands there, not scaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, a, b, ..] = *self.header;
        u16::from_be_bytes([a, b])
    }

    /// What it is for a connection's beginning and end.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match (self.flags() & RST != 0, self.flags() & (SYN | ACK | FIN)) {
            (true, _) => Kind::Rst,
            (false, SYN) => Kind::Syn,
            (false, SYN_ACK) => Kind::SynAck,
            (false, _) => Kind::Other,
        }
    }

    /// Its options.
    #[must_use]
    pub fn options(&self) -> Options<'a> {
        Options::new(self.options)
    }

    /// The octets of its options, filling too: a multiple of four, at most 40.
    #[must_use]
    pub fn options_octets(&self) -> &'a [u8] {
        self.options
    }

    /// What a SYN or SYN-ACK says about the connection.
    #[must_use]
    pub fn syn_facts(&self) -> SynFacts {
        SynFacts::of(self.options())
    }

    /// What it carries; a SYN too may (RFC 7413).
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What stands behind a UDP header, as far as its length says (RFC 768).
fn udp_payload(octets: &[u8]) -> Option<&[u8]> {
    let [_, _, _, _, l0, l1, _, _] = *octets.first_chunk::<8>()?;
    octets.get(8..usize::from(u16::from_be_bytes([l0, l1])))
}

/// Whether IPv4 options say that the packet has stages to go (RFC 791 §3.1, loose and strict source route).
fn source_route_pending(mut options: &[u8]) -> bool {
    while let Some((&kind, behind)) = options.split_first() {
        match (kind, behind) {
            (0, _) => return false,
            (1, _) => options = behind,
            (131 | 137, [length, pointer, ..]) if pointer < length => return true,
            (_, [length, ..]) if *length >= 2 => {
                options = options.get(usize::from(*length)..).unwrap_or_default();
            }
            (_, _) => return false,
        }
    }
    false
}

/// The fixed part of a TCP header.
pub(super) const HEADER_OCTETS: usize = 20;
/// RFC 8200 §4.1 names four that come before TCP, one of them twice; each at most once or twice in practice.
const EXTENSIONS_MAX: usize = 8;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;
pub(super) const SYN_ACK: u8 = SYN | ACK;
