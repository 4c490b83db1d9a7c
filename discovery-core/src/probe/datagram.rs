//! A response as a datagram: where a firewall lets a SYN's option through and takes a SYN-ACK's out.
//!
//! It goes from the server's address to the client's, like the SYN-ACK, so that it comes by the node that asked, which
//! takes it off the way. It names the connection and the SYN's number; one that does not know the number has not seen
//! the SYN.
//!
//! ```text
//! octet  0 1   2                3      4 5    6..14  14..18  18 19        20 21        22..26 or 22..38
//!        ExID  version | type   flags  port   key    ISN     client port  server port  address of the link
//! ```

use super::{
    Codec, KeyHint, Response,
    codec::{FLAG_CONNECTED, TYPE_BITS, TYPE_RESPONSE, VERSION, VERSION_BITS, endpoint},
};
use crate::flow::Flow;
use std::net::{IpAddr, SocketAddr};

/// A response, and what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The connection.
    pub flow: Flow,
    /// The number of its SYN.
    pub isn: u32,
    /// Who answers.
    pub response: Response,
}

impl Codec {
    /// As what a datagram from the server's address to the client's carries.
    #[must_use]
    pub fn encode_datagram(&self, answer: &Answer) -> Vec<u8> {
        let Answer { flow, isn, response } = answer;
        let flags = if response.connected { FLAG_CONNECTED } else { 0 };
        let mut octets = Vec::with_capacity(DATAGRAM_OCTETS_MAX);
        octets.extend_from_slice(&self.experiment().to_be_bytes());
        octets.extend_from_slice(&[VERSION | TYPE_RESPONSE, flags]);
        octets.extend_from_slice(&response.link.port().to_be_bytes());
        octets.extend_from_slice(&response.key.0);
        octets.extend_from_slice(&isn.to_be_bytes());
        octets.extend_from_slice(&flow.client.port().to_be_bytes());
        octets.extend_from_slice(&flow.server.port().to_be_bytes());
        match response.link.ip() {
            IpAddr::V4(address) => octets.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => octets.extend_from_slice(&address.octets()),
        }
        octets
    }

    /// What a datagram between these addresses carries; none when it is not for us in every octet.
    #[must_use]
    pub fn read_datagram(&self, server: IpAddr, client: IpAddr, octets: &[u8]) -> Option<Answer> {
        let (&[e0, e1, version_and_type, flags, p0, p1], rest) = octets.split_first_chunk::<6>()?;
        let (&key, rest) = rest.split_first_chunk::<8>()?;
        let (&isn, rest) = rest.split_first_chunk::<4>()?;
        let (&[c0, c1, s0, s1], address) = rest.split_first_chunk::<4>()?;
        let ours = u16::from_be_bytes([e0, e1]) == self.experiment()
            && version_and_type & VERSION_BITS == VERSION
            && version_and_type & TYPE_BITS == TYPE_RESPONSE;
        if !ours {
            return None;
        }
        Some(Answer {
            flow: Flow {
                client: SocketAddr::new(client, u16::from_be_bytes([c0, c1])),
                server: SocketAddr::new(server, u16::from_be_bytes([s0, s1])),
            },
            isn: u32::from_be_bytes(isn),
            response: Response {
                link: endpoint([p0, p1], address)?,
                key: KeyHint(key),
                connected: flags & FLAG_CONNECTED != 0,
            },
        })
    }
}

const DATAGRAM_OCTETS_MAX: usize = 38;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_octets() {
        let answer = Answer {
            flow: Flow { client: "10.1.0.2:34312".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() },
            isn: 0x0102_0304,
            response: Response {
                link: "10.8.0.1:7777".parse().unwrap(),
                key: KeyHint(*b"8 octets"),
                connected: true,
            },
        };
        let octets = b"\x57\x50\x12\x01\x1e\x618 octets\x01\x02\x03\x04\x86\x08\x00\x8f\x0a\x08\x00\x01";
        assert_eq!(Codec::default().encode_datagram(&answer), octets);
        let (server, client) = (answer.flow.server.ip(), answer.flow.client.ip());
        let read = |octets: &[u8]| Codec::default().read_datagram(server, client, octets);
        assert_eq!(read(octets), Some(answer));
        for end in 0..octets.len() {
            assert_eq!(read(&octets[..end]), None, "{end}");
        }
        for (at, to) in [(0, 0), (1, 0), (2, 0x22), (2, 0x11), (22, 224)] {
            let mut other = octets.to_vec();
            other[at] = to;
            assert_eq!(read(&other), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            link: IpAddr, port in 1_u16.., key: [u8; 8], isn: u32, connected: bool, client: IpAddr, server: IpAddr,
            ports: (u16, u16),
        ) {
            prop_assume!(!link.is_unspecified() && !link.is_multicast());
            let response = Response { link: SocketAddr::new(link, port), key: KeyHint(key), connected };
            let flow = Flow { client: SocketAddr::new(client, ports.0), server: SocketAddr::new(server, ports.1) };
            let answer = Answer { flow, isn, response };
            let octets = Codec::default().encode_datagram(&answer);
            prop_assert!(octets.len() <= DATAGRAM_OCTETS_MAX);
            prop_assert_eq!(Codec::default().read_datagram(server, client, &octets), Some(answer));
        }
    }
}
