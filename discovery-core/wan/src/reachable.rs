//! Whether an address that a probe told may be dialled: whoever can forge an answer names any he likes.

use std::net::{IpAddr, SocketAddr};

/// Whether something beyond this machine can listen there. `loopback`: also on this very machine, where tests have their
/// peers.
#[must_use]
pub fn reachable(address: SocketAddr, loopback: bool) -> bool {
    let one = match address.ip().to_canonical() {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let ip = address.ip().to_canonical();
    one && !ip.is_unspecified()
        && !ip.is_multicast()
        && (loopback || !ip.is_loopback())
        && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_node_can_have() {
        let rows = [
            ("192.0.2.1:4430", true),
            ("10.0.0.1:1", true),
            ("[2001:db8::1]:4430", true),
            ("[fd01::1]:4430", true),
            ("[::ffff:192.0.2.1]:4430", true),
            ("192.0.2.1:0", false),
            ("[2001:db8::1]:0", false),
            ("0.0.0.0:4430", false),
            ("127.0.0.1:4430", false),
            ("127.9.9.9:4430", false),
            ("169.254.169.254:80", false),
            ("224.0.0.1:4430", false),
            ("239.255.255.250:4430", false),
            ("255.255.255.255:4430", false),
            ("[::]:4430", false),
            ("[::1]:4430", false),
            ("[fe80::1]:4430", false),
            ("[febf::1]:4430", false),
            ("[ff02::1]:4430", false),
            ("[::ffff:0.0.0.0]:4430", false),
            ("[::ffff:127.0.0.1]:4430", false),
            ("[::ffff:169.254.1.1]:4430", false),
            ("[::ffff:224.0.0.1]:4430", false),
            ("[::ffff:255.255.255.255]:4430", false),
        ];
        for (address, expected) in rows {
            assert_eq!(reachable(address.parse().unwrap(), false), expected, "{address}");
        }
    }

    #[test]
    fn the_setting_lets_in_loopback_and_nothing_else() {
        let rows = [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("127.0.0.1:0", false),
            ("0.0.0.0:1", false),
            ("169.254.1.1:1", false),
        ];
        for (address, expected) in rows {
            assert_eq!(reachable(address.parse().unwrap(), true), expected, "{address}");
        }
    }
}
