//! What the kernel's connection tracking knows of one connection (`linux/netfilter/nfnetlink_conntrack.h`): by how much
//! its windows are scaled, if it saw the SYNs. The request and the answer as octets.
//!
//! A message: netlink header (length, type, flags, sequence, port; 16 octets, native order), nfgenmsg (4 octets),
//! attributes (length, type in native order, value, padding to 4).

use super::Terms;
use crate::flow::Flow;
use std::net::{IpAddr, SocketAddr};

/// The request.
#[must_use]
pub fn request(flow: Flow) -> Vec<u8> {
    let mut body = vec![if flow.client.is_ipv6() { INET6 } else { INET }, 0, 0, 0];
    attribute(&mut body, NESTED | 1, &tuple(flow));
    let length = u32::try_from(HEADER_OCTETS + body.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    // Get, of connection tracking; a request that wants no acknowledgement beside its answer.
    message.extend_from_slice(&0x0101_u16.to_ne_bytes());
    message.extend_from_slice(&1_u16.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);
    message
}

fn tuple(flow: Flow) -> Vec<u8> {
    let mut addresses = Vec::new();
    let [from, to] = if flow.client.is_ipv4() { [1, 2] } else { [3, 4] };
    for (kind, socket) in [(from, flow.client), (to, flow.server)] {
        match socket.ip() {
            IpAddr::V4(v4) => attribute(&mut addresses, kind, &v4.octets()),
            IpAddr::V6(v6) => attribute(&mut addresses, kind, &v6.octets()),
        }
    }
    let mut ports = Vec::new();
    attribute(&mut ports, 1, &[TCP]);
    let port = |socket: SocketAddr| socket.port().to_be_bytes();
    attribute(&mut ports, 2, &port(flow.client));
    attribute(&mut ports, 3, &port(flow.server));
    let mut tuple = Vec::new();
    attribute(&mut tuple, NESTED | 1, &addresses);
    attribute(&mut tuple, NESTED | 2, &ports);
    tuple
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(4);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Reads the kernel's answer, which is believed no more than a peer's octets.
#[must_use]
pub fn answer(message: &[u8], flow: Flow, mss: u16) -> Option<Terms> {
    let [l0, l1, l2, l3, k0, k1, ..] = *message.first_chunk::<HEADER_OCTETS>()?;
    // New, of connection tracking: what a get is answered with. Anything else is an error.
    if u16::from_ne_bytes([k0, k1]) != 0x0100 {
        return None;
    }
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = message.get(HEADER_OCTETS + 4..length)?;
    let tcp = find(find(body, 4)?, 1)?;
    let octet = |kind| find(tcp, kind).and_then(|value| value.first().copied());
    let (state, client, server) = (octet(1)?, octet(2)?, octet(3)?);
    let (client_flags, server_flags) = (octet(4)?, octet(5)?);
    // Whoever came in the middle of a connection believes anything, and knows nothing of its beginning.
    let saw_syns = (client_flags | server_flags) & BE_LIBERAL == 0;
    if state != ESTABLISHED || !saw_syns || client > 14 || server > 14 {
        return None;
    }
    let scale = match (client_flags & SCALED != 0, server_flags & SCALED != 0) {
        (true, true) => Some((client, server)),
        (false, false) => None,
        // Not what RFC 7323 §1.3 allows to come about.
        (true, false) | (false, true) => return None,
    };
    let terms = Terms { mss, scale, sack: client_flags & server_flags & SACK != 0 };
    // Either end's tuple finds the connection; `original` is who sent the SYN.
    match source(find(body, 1)?)? {
        original if original == flow.client => Some(terms),
        original if original == flow.server => Some(terms.turned()),
        _ => None,
    }
}

/// The source in a tuple.
fn source(tuple: &[u8]) -> Option<SocketAddr> {
    let addresses = find(tuple, 1)?;
    let v4 = find(addresses, 1).and_then(|v4| <[u8; 4]>::try_from(v4).ok()).map(IpAddr::from);
    let v6 = || find(addresses, 3).and_then(|v6| <[u8; 16]>::try_from(v6).ok()).map(IpAddr::from);
    let port = find(find(tuple, 2)?, 2)?;
    Some(SocketAddr::new(v4.or_else(v6)?, u16::from_be_bytes(<[u8; 2]>::try_from(port).ok()?)))
}

/// The first attribute of this kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & KIND_BITS == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// As Linux numbers them.
const INET: u8 = 2;
const INET6: u8 = 10;
const HEADER_OCTETS: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_BITS: u16 = 0x3fff;
const TCP: u8 = 6;
const ESTABLISHED: u8 = 3;
const SCALED: u8 = 1;
const SACK: u8 = 2;
const BE_LIBERAL: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    fn message(state: u8, scales: [u8; 2], flags: [u8; 2]) -> Vec<u8> {
        let (mut tcp, mut info, mut body) = (Vec::new(), Vec::new(), vec![2, 0, 0, 0]);
        attribute(&mut tcp, 1, &[state]);
        for (kind, value) in [(2, scales[0]), (3, scales[1])] {
            attribute(&mut tcp, kind, &[value]);
        }
        for (kind, value) in [(4, flags[0]), (5, flags[1])] {
            attribute(&mut tcp, kind, &[value, 0]);
        }
        attribute(&mut info, NESTED | 1, &tcp);
        attribute(&mut body, NESTED | 1, &tuple(flow()));
        attribute(&mut body, 3, &[0; 4]);
        attribute(&mut body, NESTED | 4, &info);
        let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend(body);
        message
    }

    #[test]
    fn only_who_saw_the_syns_is_believed() {
        let scaled = |client, server| Some(Terms { mss: 1460, scale: Some((client, server)), sack: true });
        let unscaled = Some(Terms { mss: 1460, scale: None, sack: true });
        for (state, scales, flags, expected) in [
            (3, [10, 7], [0x23, 0x23], scaled(10, 7)),
            (3, [0, 10], [0x23, 0x23], scaled(0, 10)),
            (3, [0, 0], [0x22, 0x22], unscaled),
            (3, [0, 0], [0x2a, 0x2a], None),
            (3, [7, 7], [0x2b, 0x23], None),
            (3, [7, 0], [0x23, 0x22], None),
            (3, [15, 0], [0x23, 0x23], None),
            (5, [7, 7], [0x23, 0x23], None),
        ] {
            assert_eq!(
                answer(&message(state, scales, flags), flow(), 1460),
                expected,
                "{state} {scales:?} {flags:x?}"
            );
        }
    }

    #[test]
    fn who_sent_the_syn_is_the_client() {
        let said = message(3, [10, 7], [0x23, 0x23]);
        let turned = Flow { client: flow().server, server: flow().client };
        assert_eq!(answer(&said, turned, 1460).unwrap().scale, Some((7, 10)));
        let other = Flow { client: "10.1.0.3:40000".parse().unwrap(), ..flow() };
        assert_eq!(answer(&said, other, 1460), None);
    }

    #[test]
    fn what_is_cut_says_nothing() {
        let whole = message(3, [7, 7], [0x23, 0x23]);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], flow(), 1460), None, "{length}");
        }
        assert_eq!(answer(&[], flow(), 1460), None);
    }
}
