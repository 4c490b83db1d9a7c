//! What the two processes say: one request or reply a datagram of a Unix seqpacket pair, a descriptor beside it.
//!
//! ```text
//! request  0 version  1 what  2 family or target  3 zero  4..8 id  8..27 address  27..46 address
//! reply    0 version  1 status  2..4 zero  4..8 id  8..12 errno
//! address  0 family (0 none, 4, 6)  1..17 octets  17..19 port
//! ```
//! Numbers are in network order. The process that answers has rights that the asking one lacks, so a request is
//! untrusted.

use std::net::SocketAddr;

use discovery_core::flow::Flow;

use super::BrokerError;
use super::address::{ADDRESS_OCTETS, put_address, read_address};
use crate::socket::{Family, Target};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Listener(Family),
    Untouched(Family),
    Listen(SocketAddr),
    Connect(Flow, Target),
}

pub(super) const REQUEST_OCTETS: usize = 46;
pub(super) const REPLY_OCTETS: usize = 12;
const VERSION: u8 = 1;

pub(super) fn request(id: u32, wanted: Wanted) -> [u8; REQUEST_OCTETS] {
    let (what, detail, first, second) = match wanted {
        Wanted::Listener(Family::V4) => (1, 4, None, None),
        Wanted::Listener(Family::V6) => (1, 6, None, None),
        Wanted::Untouched(Family::V4) => (2, 4, None, None),
        Wanted::Untouched(Family::V6) => (2, 6, None, None),
        Wanted::Connect(flow, Target::Away) => (3, 0, Some(flow.client), Some(flow.server)),
        Wanted::Connect(flow, Target::Here) => (3, 1, Some(flow.client), Some(flow.server)),
        Wanted::Listen(at) => (4, 0, Some(at), None),
    };
    let mut octets = Vec::with_capacity(REQUEST_OCTETS);
    octets.extend([VERSION, what, detail, 0]);
    octets.extend(id.to_be_bytes());
    for address in [first, second] {
        put_address(&mut octets, address);
    }
    let mut fixed = [0; REQUEST_OCTETS];
    fixed.iter_mut().zip(octets).for_each(|(to, from)| *to = from);
    fixed
}

/// The id, and what is asked for when that can be understood.
pub(super) fn read_request(octets: &[u8]) -> Option<(u32, Option<Wanted>)> {
    let octets: &[u8; REQUEST_OCTETS] = octets.try_into().ok()?;
    let [version, what, detail, _, a, b, c, d, rest @ ..] = octets;
    if *version != VERSION {
        return None;
    }
    let (first, second) = rest.split_at(ADDRESS_OCTETS);
    let (first, second) = (read_address(first), read_address(second));
    let flow = first.zip(second).map(|(client, server)| Flow { client, server });
    // A flow of two families cannot be.
    let flow = flow.filter(|flow| flow.client.is_ipv4() == flow.server.is_ipv4());
    let wanted = match (what, detail) {
        (1, 4) => Some(Wanted::Listener(Family::V4)),
        (1, 6) => Some(Wanted::Listener(Family::V6)),
        (2, 4) => Some(Wanted::Untouched(Family::V4)),
        (2, 6) => Some(Wanted::Untouched(Family::V6)),
        (3, 0) => flow.map(|flow| Wanted::Connect(flow, Target::Away)),
        (3, 1) => flow.map(|flow| Wanted::Connect(flow, Target::Here)),
        (4, _) => first.map(Wanted::Listen),
        _ => None,
    };
    Some((u32::from_be_bytes([*a, *b, *c, *d]), wanted))
}

/// `Ok`: a descriptor comes with it.
pub(super) fn reply(id: u32, outcome: Result<(), BrokerError>) -> [u8; REPLY_OCTETS] {
    let (status, errno) = match outcome {
        Ok(()) => (0, 0),
        Err(BrokerError::System(errno)) => (1, errno),
        Err(BrokerError::Unknown) => (2, 0),
        Err(BrokerError::Closed) => (3, 0),
    };
    let [a, b, c, d] = id.to_be_bytes();
    let [e, f, g, h] = errno.to_be_bytes();
    [VERSION, status, 0, 0, a, b, c, d, e, f, g, h]
}

pub(super) fn read_reply(octets: &[u8]) -> Option<(u32, Result<(), BrokerError>)> {
    let octets: &[u8; REPLY_OCTETS] = octets.try_into().ok()?;
    let [VERSION, status, _, _, a, b, c, d, e, f, g, h] = *octets else { return None };
    let outcome = match status {
        0 => Ok(()),
        1 => Err(BrokerError::System(i32::from_be_bytes([e, f, g, h]))),
        2 => Err(BrokerError::Unknown),
        _ => Err(BrokerError::Closed),
    };
    Some((u32::from_be_bytes([a, b, c, d]), outcome))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        let ip = prop_oneof![
            any::<[u8; 4]>().prop_map(|ip| IpAddr::from(Ipv4Addr::from(ip))),
            any::<[u8; 16]>().prop_map(|ip| IpAddr::from(Ipv6Addr::from(ip)))
        ];
        (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        (address(), address(), 0..7_u8).prop_filter_map("one family", |(client, server, kind)| {
            let flow = Flow { client, server };
            match kind {
                0 => Some(Wanted::Listener(Family::V4)),
                1 => Some(Wanted::Listener(Family::V6)),
                2 => Some(Wanted::Untouched(Family::V4)),
                5 => Some(Wanted::Listen(client)),
                _ if client.is_ipv4() != server.is_ipv4() => None,
                3 => Some(Wanted::Connect(flow, Target::Away)),
                4 => Some(Wanted::Connect(flow, Target::Here)),
                _ => Some(Wanted::Untouched(Family::V6)),
            }
        })
    }

    proptest! {
        #[test]
        fn a_request_is_read_as_it_was_written(id in any::<u32>(), wanted in wanted()) {
            prop_assert_eq!(read_request(&request(id, wanted)), Some((id, Some(wanted))));
        }

        #[test]
        fn any_octets_are_a_request_or_none(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some((id, Some(wanted))) = read_request(&octets) {
                prop_assert_eq!(read_request(&request(id, wanted)), Some((id, Some(wanted))));
            }
            let _ = read_reply(&octets);
        }
    }

    #[test]
    fn replies() {
        for outcome in
            [Ok(()), Err(BrokerError::System(-3)), Err(BrokerError::Unknown), Err(BrokerError::Closed)]
        {
            assert_eq!(read_reply(&reply(9, outcome)), Some((9, outcome)));
        }
        assert_eq!(read_reply(&[0; 12]), None, "another version");
    }
}
