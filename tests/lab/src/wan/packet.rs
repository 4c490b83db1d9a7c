//! What the emulator reads of a packet: whether it carries TCP payload. Acknowledgements alone do not make a
//! round trip.

/// Octets of TCP payload in an IP packet; 0 for anything else, a fragment or a cut packet.
#[must_use]
pub fn tcp_payload_octets(packet: &[u8]) -> usize {
    payload(packet).unwrap_or(0)
}

fn payload(packet: &[u8]) -> Option<usize> {
    let (tcp_at, end) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
            if *packet.get(9)? != TCP || fragment != 0 {
                return None;
            }
            (header, usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?])))
        }
        // Extension headers do not occur on the lab's own links.
        6 if *packet.get(6)? == TCP => {
            (40, 40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?])))
        }
        _ => return None,
    };
    let tcp_header = usize::from(packet.get(tcp_at + 12)? >> 4) * 4;
    end.min(packet.len()).checked_sub(tcp_at + tcp_header)
}

const TCP: u8 = 6;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An IPv4 TCP packet with so many octets of payload.
    pub(crate) fn tcp4(payload: usize) -> Vec<u8> {
        let total = u16::try_from(40 + payload).unwrap();
        let mut packet = vec![0; 40 + payload];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[9] = TCP;
        packet[32] = 5 << 4;
        packet
    }

    #[test]
    fn payload_is_told_from_a_bare_acknowledgement() {
        assert_eq!(tcp_payload_octets(&tcp4(0)), 0);
        assert_eq!(tcp_payload_octets(&tcp4(17)), 17);
    }

    #[test]
    fn ipv6_counts_too_and_udp_does_not() {
        let mut packet = vec![0; 40 + 20 + 5];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&25u16.to_be_bytes());
        packet[6] = TCP;
        packet[52] = 5 << 4;
        assert_eq!(tcp_payload_octets(&packet), 5);
        packet[6] = 17;
        assert_eq!(tcp_payload_octets(&packet), 0);
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_read_without_panic(packet in proptest::collection::vec(proptest::num::u8::ANY, 0..90)) {
            proptest::prop_assert!(tcp_payload_octets(&packet) <= packet.len());
        }
    }
}
