//! Packets made from nothing: what a server, or a router before it, would have said.
//!
//! They leave through a raw socket with their own mark and are never queued again. Sequence numbers are given by the
//! caller: a core has no dice.

use super::{
    OPTIONS_OCTETS_MAX, View,
    checksum::Sum,
    flags::{ACK, RST, SYN},
    rewrite::Area,
    tcp::SYN_ACK,
    view::{TCP, UDP},
};
use crate::flow::Flow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a forged SYN-ACK acknowledges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Acknowledged {
    /// The SYN's own number, which its sender does not accept: should the node that is to swallow the answer be gone,
    /// the client answers with a reset, sends its SYN again and reaches the server itself.
    #[default]
    Isn,
    /// The number after it, as a server would: where a firewall on the way lets nothing else pass.
    IsnPlusOne,
}

/// What an ICMP message says about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// No route to its network.
    Network,
    /// Nobody answers there.
    Host,
    /// Nobody listens there.
    Port,
    /// A filter forbids it.
    Prohibited,
}

/// Why a packet cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ForgeError {
    /// One end is IPv4, the other IPv6.
    #[error("{0} and {1} are of two families")]
    Families(IpAddr, IpAddr),
    /// More than one packet carries without asking how large it may be.
    #[error("{0} octets in a datagram, and {DATAGRAM_OCTETS_MAX} fit")]
    Datagram(usize),
    /// More options than a TCP header takes.
    #[error("{0} octets of options, and 40 fit")]
    Options(usize),
}

/// A SYN of our own with `option`, to ask whether there is still a peer; a [`reset`] follows whatever answers.
///
/// # Errors
/// [`ForgeError`].
pub fn syn(flow: &Flow, isn: u32, option: &[u8]) -> Result<Vec<u8>, ForgeError> {
    let mss: u16 = if flow.server.is_ipv4() { 1460 } else { 1440 };
    let [high, low] = mss.to_be_bytes();
    let options = [&[2, 4, high, low], option].concat();
    segment(flow.client, flow.server, [isn, 0], SYN, WINDOW, &options)
}

/// The answer to a SYN that asked: in the server's name, with `option`. `isn` is the SYN's number, `seq` any other.
///
/// # Errors
/// [`ForgeError`].
pub fn syn_ack(
    flow: &Flow,
    isn: u32,
    acknowledged: Acknowledged,
    seq: u32,
    option: &[u8],
) -> Result<Vec<u8>, ForgeError> {
    let ack = match acknowledged {
        Acknowledged::Isn => isn,
        Acknowledged::IsnPlusOne => isn.wrapping_add(1),
    };
    segment(flow.server, flow.client, [seq, ack], SYN_ACK, WINDOW, option)
}

/// 'Connection refused' in the server's name, to the SYN with this number (RFC 9293 §3.10.7.1).
///
/// # Errors
/// [`ForgeError`].
pub fn refused(flow: &Flow, isn: u32) -> Result<Vec<u8>, ForgeError> {
    segment(flow.server, flow.client, [0, isn.wrapping_add(1)], RST | ACK, 0, &[])
}

/// A reset from one end to the other; it counts when `seq` is exactly what the receiver expects next (RFC 5961 §3.2).
///
/// # Errors
/// [`ForgeError`].
pub fn reset(from: SocketAddr, to: SocketAddr, seq: u32) -> Result<Vec<u8>, ForgeError> {
    segment(from, to, [seq, 0], RST, 0, &[])
}

/// A datagram.
///
/// # Errors
/// [`ForgeError`].
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>, ForgeError> {
    let octets = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    if payload.len() > DATAGRAM_OCTETS_MAX {
        return Err(ForgeError::Datagram(payload.len()));
    }
    let mut out = ip_header(from.ip(), to.ip(), UDP, usize::from(octets))?;
    let ([s0, s1], [d0, d1], [l0, l1]) =
        (from.port().to_be_bytes(), to.port().to_be_bytes(), octets.to_be_bytes());
    let sum = Sum::default().and(&[s0, s1, d0, d1, l0, l1]).and(payload);
    // 0 would say that there is none (RFC 768); the other zero of ones' complement says the same sum.
    let checksum = match sum.and_pseudo_header(from.ip(), to.ip(), UDP, usize::from(octets)).checksum() {
        0 => u16::MAX,
        other => other,
    };
    let [c0, c1] = checksum.to_be_bytes();
    out.extend_from_slice(&[s0, s1, d0, d1, l0, l1, c0, c1]);
    out.extend_from_slice(payload);
    Ok(out)
}

/// An ICMP message to the sender of this packet. It comes from `router`, or without one from the destination itself,
/// as from a host whose own filter answers. The packet is to be as its sender sent it: a stack looks its own
/// sequence number up in what is quoted.
///
/// # Errors
/// [`ForgeError`].
pub fn unreachable(view: &View<'_>, why: Unreachable, router: Option<IpAddr>) -> Result<Vec<u8>, ForgeError> {
    let (from, to) = (router.unwrap_or(view.dst().ip()), view.src().ip());
    let v4 = to.is_ipv4();
    let (kind, code) = match (v4, why) {
        (true, Unreachable::Network) => (3, 0),
        (true, Unreachable::Host) => (3, 1),
        (true, Unreachable::Port) => (3, 3),
        (true, Unreachable::Prohibited) => (3, 13),
        (false, Unreachable::Network) => (1, 0),
        (false, Unreachable::Prohibited) => (1, 1),
        (false, Unreachable::Host) => (1, 3),
        (false, Unreachable::Port) => (1, 4),
    };
    // RFC 1812 §4.3.2.3 and RFC 4443 §2.4 (c): as much as fits into what passes everywhere.
    let quoted_max = if v4 { 576 - 20 - 8 } else { 1280 - 40 - 8 };
    let quoted = view.octets().get(..quoted_max).unwrap_or(view.octets());
    let protocol = if v4 { ICMP } else { ICMP_V6 };
    let mut out = ip_header(from, to, protocol, 8 + quoted.len())?;
    let checksum = Sum::default().and(&[kind, code]).and(quoted);
    let checksum =
        if v4 { checksum } else { checksum.and_pseudo_header(from, to, protocol, 8 + quoted.len()) };
    let [c0, c1] = checksum.checksum().to_be_bytes();
    out.extend_from_slice(&[kind, code, c0, c1, 0, 0, 0, 0]);
    out.extend_from_slice(quoted);
    Ok(out)
}

fn segment(
    from: SocketAddr,
    to: SocketAddr,
    [seq, ack]: [u32; 2],
    flags: u8,
    window: u16,
    options: &[u8],
) -> Result<Vec<u8>, ForgeError> {
    let mut area = Area::new();
    if !area.push(options) {
        return Err(ForgeError::Options(options.len()));
    }
    let options = area.words();
    let octets = 20 + options.len();
    let mut out = ip_header(from.ip(), to.ip(), TCP, octets)?;
    let words = u8::try_from(octets / 4).unwrap_or(15);
    let mut head = Vec::with_capacity(16);
    head.extend_from_slice(&from.port().to_be_bytes());
    head.extend_from_slice(&to.port().to_be_bytes());
    head.extend_from_slice(&seq.to_be_bytes());
    head.extend_from_slice(&ack.to_be_bytes());
    head.extend_from_slice(&[words << 4, flags]);
    head.extend_from_slice(&window.to_be_bytes());
    let sum = Sum::default().and(&head).and(options).and_pseudo_header(from.ip(), to.ip(), TCP, octets);
    out.extend_from_slice(&head);
    out.extend_from_slice(&sum.checksum().to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(options);
    Ok(out)
}

fn ip_header(from: IpAddr, to: IpAddr, protocol: u8, payload: usize) -> Result<Vec<u8>, ForgeError> {
    // All that is made here is far below 64 KiB.
    let length = |octets: usize| u16::try_from(octets).unwrap_or(u16::MAX);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length(20 + payload);
            let header = v4_header(from, to, protocol, total, 0);
            let checksum = Sum::default().and(&header).checksum();
            let mut out = Vec::with_capacity(usize::from(total));
            out.extend_from_slice(&v4_header(from, to, protocol, total, checksum));
            Ok(out)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut out = Vec::with_capacity(40 + payload);
            out.extend_from_slice(&[0x60, 0, 0, 0]);
            out.extend_from_slice(&length(payload).to_be_bytes());
            out.extend_from_slice(&[protocol, HOPS]);
            out.extend_from_slice(&Ipv6Addr::octets(&from));
            out.extend_from_slice(&Ipv6Addr::octets(&to));
            Ok(out)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            Err(ForgeError::Families(from, to))
        }
    }
}

/// Never to be fragmented, so its identification may be 0 (RFC 6864 §4.1).
fn v4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, total: u16, checksum: u16) -> [u8; 20] {
    let ([t0, t1], [c0, c1]) = (total.to_be_bytes(), checksum.to_be_bytes());
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (from.octets(), to.octets());
    [0x45, 0, t0, t1, 0, 0, 0x40, 0, HOPS, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3]
}

/// For a client that takes a forged SYN-ACK after all: its data goes to the server, which resets it at once; with a
/// window of 0 it would wait.
const WINDOW: u16 = 65_535;
/// Less than the smallest that every IPv6 link carries (RFC 8200 §5).
const DATAGRAM_OCTETS_MAX: usize = 1200;
const HOPS: u8 = 64;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

const _: () = assert!(OPTIONS_OCTETS_MAX == 40, "the message of ForgeError::Options says so");
