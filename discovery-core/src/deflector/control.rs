//! What a deflector and its proxies say to each other, beside the streams of their link. Nothing is repeated by the link:
//! who asks asks again.
//!
//! ```text
//! octet 0   1 ask for who came to the port | 2 given | 3 ready | 4 ask for a peer's stream
//! ask       client, server, or none where only the client's end is known
//! given     client, server, port of the deflector's, 0 for no
//! ready     load in percent (1) | key (8) | address of the link
//! address   4 or 6, 0 for none (1) | port (2) | IP (4 or 16)
//! ```

use crate::{flow::Flow, probe::KeyHint};
use std::net::{IpAddr, SocketAddr};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// A proxy wants to reach the server of this client; the deflector knows it, if the proxy does not.
    Ask {
        /// Whose.
        client: SocketAddr,
        /// Where to.
        server: Option<SocketAddr>,
        /// How it came.
        by: By,
    },
    /// It may, through this port of the deflector's; none: no.
    Given {
        /// Whose.
        client: SocketAddr,
        /// Where to, as far as it is known.
        server: Option<SocketAddr>,
        /// Through which.
        port: Option<u16>,
    },
    /// A proxy is there, and this much of it is in use.
    Ready {
        /// In percent.
        load: u8,
        /// Which node it is.
        key: KeyHint,
        /// Where its link listens.
        link: SocketAddr,
    },
}

/// How a client's connection came to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// To the port where it accepts. Only who was turned there has business there.
    Port,
    /// As a stream of a peer's.
    Stream,
}

impl Control {
    /// As octets.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        match self {
            Self::Ask { client, server, by } => {
                out.push(match by {
                    By::Port => 1,
                    By::Stream => 4,
                });
                put(&mut out, Some(*client));
                put(&mut out, *server);
            }
            Self::Given { client, server, port } => {
                out.push(2);
                put(&mut out, Some(*client));
                put(&mut out, *server);
                out.extend(port.unwrap_or(0).to_be_bytes());
            }
            Self::Ready { load, key, link } => {
                out.extend([3, *load]);
                out.extend(key.0);
                put(&mut out, Some(*link));
            }
        }
        out
    }

    /// Out of octets; none when they are not one of these, whole.
    #[must_use]
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let (&kind, rest) = octets.split_first()?;
        let (control, rest) = match kind {
            1 | 4 => {
                let by = if kind == 1 { By::Port } else { By::Stream };
                let (client, rest) = take(rest)?;
                let (server, rest) = take(rest)?;
                (Self::Ask { client: client?, server, by }, rest)
            }
            2 => {
                let (client, rest) = take(rest)?;
                let (server, rest) = take(rest)?;
                let (port, rest) = rest.split_first_chunk::<2>()?;
                let port = Some(u16::from_be_bytes(*port)).filter(|port| *port != 0);
                (Self::Given { client: client?, server, port }, rest)
            }
            3 => {
                let (&load, rest) = rest.split_first()?;
                let (key, rest) = rest.split_first_chunk::<8>()?;
                let (link, rest) = take(rest)?;
                (Self::Ready { load, key: KeyHint(*key), link: link? }, rest)
            }
            _ => return None,
        };
        let families = |flow: &Flow| flow.client.is_ipv4() == flow.server.is_ipv4();
        let sound = match control {
            Self::Ask { client, server, .. } | Self::Given { client, server, .. } => {
                server.is_none_or(|server| families(&Flow { client, server }))
            }
            Self::Ready { load, .. } => load <= 100,
        };
        (sound && rest.is_empty()).then_some(control)
    }
}

fn put(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    let Some(address) = address else { return out.push(0) };
    out.push(if address.is_ipv4() { 4 } else { 6 });
    out.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(v4) => out.extend(v4.octets()),
        IpAddr::V6(v6) => out.extend(v6.octets()),
    }
}

fn take(octets: &[u8]) -> Option<(Option<SocketAddr>, &[u8])> {
    let (&family, rest) = octets.split_first()?;
    if family == 0 {
        return Some((None, rest));
    }
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (ip, rest): (IpAddr, _) = match family {
        4 => rest.split_first_chunk::<4>().map(|(ip, rest)| ((*ip).into(), rest))?,
        6 => rest.split_first_chunk::<16>().map(|(ip, rest)| ((*ip).into(), rest))?,
        _ => return None,
    };
    Some((Some(SocketAddr::new(ip, u16::from_be_bytes(*port))), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(client in address(), server in prop::option::of(address()), port: Option<u16>, load in 0..=100_u8, key: [u8; 8], v6: u128) {
            let six = SocketAddr::new(std::net::Ipv6Addr::from(v6).into(), 7);
            for control in [
                Control::Ask { client, server, by: By::Port },
                Control::Ask { client: six, server: Some(six), by: By::Stream },
                Control::Given { client, server, port: port.filter(|port| *port != 0) },
                Control::Ready { load, key: KeyHint(key), link: client },
            ] {
                let octets = control.encode();
                prop_assert_eq!(Control::decode(&octets), Some(control));
                for end in 0..octets.len() {
                    prop_assert_eq!(Control::decode(&octets[..end]), None);
                }
                prop_assert_eq!(Control::decode(&[&octets[..], &[0]].concat()), None);
            }
        }

        #[test]
        fn what_is_read_is_written(octets in prop::collection::vec(any::<u8>(), 0..48), kind in 0..5_u8) {
            let octets = [&[kind][..], &octets].concat();
            if let Some(control) = Control::decode(&octets) {
                prop_assert_eq!(control.encode(), octets);
            }
        }
    }

    #[test]
    fn nonsense() {
        let four =
            Control::Ask { client: "10.0.0.1:5".parse().unwrap(), server: None, by: By::Port }.encode();
        let six = [6, 0, 5].into_iter().chain([0; 16]).collect::<Vec<u8>>();
        let mixed = [&four[..8], &six].concat();
        assert_eq!(Control::decode(&mixed), None, "two families");
        let link = "10.0.0.1:5".parse().unwrap();
        assert_eq!(Control::decode(&Control::Ready { load: 101, key: KeyHint([0; 8]), link }.encode()), None);
    }
}
