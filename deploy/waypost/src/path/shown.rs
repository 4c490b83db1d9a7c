//! What a peer has shown: that connections from a network to a server pass here and are its own to carry. For a while
//! it may then ask for more of them without a SYN that was seen here, which saves its clients the probe.

use discovery_core::{flow::Flow, id::NodeId};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Shown {
    until: HashMap<(NodeId, IpAddr, SocketAddr), Instant>,
}

impl Shown {
    /// A connection that was opened early for `flow` was claimed by `peer`.
    pub(super) fn note(&mut self, peer: &NodeId, flow: Flow, now: Instant) {
        if self.until.len() >= SHOWN_MAX {
            self.until.retain(|_, until| *until > now);
        }
        let key = (peer.clone(), network(flow.client.ip()), flow.server);
        if self.until.len() < SHOWN_MAX || self.until.contains_key(&key) {
            self.until.insert(key, now + SHOWN_FOR);
        }
    }

    /// Whether `peer` may ask for `flow`.
    pub(super) fn covers(&self, peer: &NodeId, flow: Flow, now: Instant) -> bool {
        let key = (peer.clone(), network(flow.client.ip()), flow.server);
        self.until.get(&key).is_some_and(|until| *until > now)
    }
}

/// The office of a client: its /24, or its /64.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Longer than a peer believes its own table.
const SHOWN_FOR: Duration = Duration::from_secs(2 * 3600);
/// Offices times servers of a large data centre.
const SHOWN_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_shown_and_only_for_a_while() {
        let now = Instant::now();
        let node = |id: &str| NodeId::new(id).unwrap();
        let flow = |client: &str, server: &str| Flow {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        };
        let mut shown = Shown::default();
        shown.note(&node("a"), flow("10.1.0.2:1000", "10.2.0.2:993"), now);
        for (peer, client, server, after, covered) in [
            ("a", "10.1.0.2:1000", "10.2.0.2:993", 0, true),
            ("a", "10.1.0.77:5", "10.2.0.2:993", 7199, true),
            ("a", "10.1.0.77:5", "10.2.0.2:993", 7200, false),
            ("b", "10.1.0.2:1000", "10.2.0.2:993", 0, false),
            ("a", "10.1.1.2:1000", "10.2.0.2:993", 0, false),
            ("a", "10.1.0.2:1000", "10.2.0.2:22", 0, false),
            ("a", "10.1.0.2:1000", "10.2.0.3:993", 0, false),
            ("a", "[fd00::1]:1000", "10.2.0.2:993", 0, false),
        ] {
            let at = now + Duration::from_secs(after);
            assert_eq!(
                shown.covers(&node(peer), flow(client, server), at),
                covered,
                "{peer} {client} {server}"
            );
        }
    }

    #[test]
    fn it_is_bounded() {
        let mut shown = Shown::default();
        let now = Instant::now();
        for port in 0..u16::MAX {
            let server = SocketAddr::from(([10, 2, 0, 2], port));
            let client = SocketAddr::from(([10, 1, 0, 2], 1000));
            shown.note(&NodeId::new("a").unwrap(), Flow { client, server }, now);
        }
        assert_eq!(shown.until.len(), SHOWN_MAX);
    }
}
