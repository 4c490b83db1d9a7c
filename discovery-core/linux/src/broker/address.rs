//! An address in messages between processes: its family (0 none, 4, 6), 16 octets, the port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(super) const ADDRESS_OCTETS: usize = 19;

pub(crate) fn put_address(octets: &mut Vec<u8>, address: Option<SocketAddr>) {
    let end = octets.len() + ADDRESS_OCTETS;
    match address.map(|address| address.ip()) {
        None => {}
        Some(IpAddr::V4(v4)) => {
            octets.push(4);
            octets.extend(v4.octets());
        }
        Some(IpAddr::V6(v6)) => {
            octets.push(6);
            octets.extend(v6.octets());
        }
    }
    octets.resize(end - 2, 0);
    octets.extend(address.map_or(0, |address| address.port()).to_be_bytes());
}

pub(crate) fn read_address(octets: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = octets.split_first()?;
    let (ip, port) = (rest.first_chunk::<16>()?, rest.last_chunk::<2>()?);
    let ip: IpAddr = match family {
        4 => Ipv4Addr::from(*ip.first_chunk::<4>()?).into(),
        6 => Ipv6Addr::from(*ip).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}
