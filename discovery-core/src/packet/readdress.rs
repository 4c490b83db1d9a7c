//! Other addresses and ports in a packet, as a deflector's rewrite rules put them in. Everything else stays.

use super::{View, checksum::Sum, view::Protocol};
use std::net::{IpAddr, SocketAddr};

/// The packet from `src` to `dst` instead, in `out`; checksums follow by what changed (RFC 1624). False when the families
/// differ; then `out` is empty.
pub fn readdress(view: &View<'_>, src: SocketAddr, dst: SocketAddr, out: &mut Vec<u8>) -> bool {
    out.clear();
    let (old_src, old_dst) = (view.src(), view.dst());
    if [src, dst].iter().any(|new| new.is_ipv4() != old_src.is_ipv4()) {
        return false;
    }
    out.extend_from_slice(view.octets());
    let old = changed(old_src, old_dst);
    let new = changed(src, dst);
    let again = |checksum: [u8; 2], old: &[u8], new: &[u8]| {
        Sum::behind(u16::from_be_bytes(checksum)).less(old).and(new).checksum().to_be_bytes()
    };
    // Addresses stand last but for the ports in what changes.
    let (Some((old_ips, _)), Some((new_ips, ports))) =
        (old.split_at_checked(old.len() - 4), new.split_at_checked(new.len() - 4))
    else {
        return false;
    };
    let at = view.transport_at();
    let Some((ip, transport)) = out.split_at_mut_checked(at) else { return false };
    let addresses_at = if src.is_ipv4() { 12 } else { 8 };
    if let Some(place) = ip.get_mut(addresses_at..addresses_at + new_ips.len()) {
        place.copy_from_slice(new_ips);
    }
    if src.is_ipv4()
        && let Some(place) = ip.get_mut(10..12)
        && let [c0, c1] = *place
    {
        place.copy_from_slice(&again([c0, c1], old_ips, new_ips));
    }
    let checksum_at = match view.protocol() {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
    };
    if let Some(place) = transport.get_mut(..4) {
        place.copy_from_slice(ports);
    }
    if let Some(place) = transport.get_mut(checksum_at..checksum_at + 2)
        && let [c0, c1] = *place
        // A datagram without a checksum (RFC 768) stays without.
        && (view.protocol() == Protocol::Tcp || (c0, c1) != (0, 0))
    {
        place.copy_from_slice(&again([c0, c1], &old, &new));
    }
    true
}

/// Addresses and ports, in the order in which they stand in a packet.
fn changed(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let mut octets = Vec::with_capacity(36);
    for at in [src, dst] {
        match at.ip() {
            IpAddr::V4(v4) => octets.extend(v4.octets()),
            IpAddr::V6(v6) => octets.extend(v6.octets()),
        }
    }
    octets.extend(src.port().to_be_bytes());
    octets.extend(dst.port().to_be_bytes());
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flow::Flow, packet::forge};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_readdressed_packet_is_the_one_that_would_have_been_made(
            old: (u32, u16, u32, u16), new: (u32, u16, u32, u16), isn: u32, v6: bool, udp: bool,
        ) {
            let at = |ip: u32, port: u16| {
                let ip: IpAddr = if v6 { std::net::Ipv6Addr::from(u128::from(ip) | 0xfd << 120).into() } else { std::net::Ipv4Addr::from(ip).into() };
                SocketAddr::new(ip, port)
            };
            let make = |(a, b, c, d)| {
                let flow = Flow { client: at(a, b), server: at(c, d) };
                if udp { forge::datagram(flow.client, flow.server, &isn.to_be_bytes()).unwrap() } else { forge::syn(&flow, isn, &[]).unwrap() }
            };
            let before = make(old);
            let mut out = Vec::new();
            prop_assert!(readdress(&View::parse(&before).unwrap(), at(new.0, new.1), at(new.2, new.3), &mut out));
            let view = View::parse(&out).unwrap();
            prop_assert!(view.checksums_hold());
            let made = make(new);
            // The identification is any.
            prop_assert_eq!(view.octets().len(), made.len());
            prop_assert_eq!((view.src(), view.dst()), (at(new.0, new.1), at(new.2, new.3)));
            let mut back = Vec::new();
            prop_assert!(readdress(&view, at(old.0, old.1), at(old.2, old.3), &mut back));
            prop_assert!(View::parse(&back).unwrap().checksums_hold());
        }
    }
}
