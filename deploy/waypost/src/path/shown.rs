//! What a peer has shown: that connections from an office to a server pass here and are its own to carry. For a while it
//! may then ask for more of them without a SYN that was seen here, which saves the clients of that office the probe. An
//! office and not a client: the peer's table knows servers, so it asks for all clients without a probe once it has seen
//! one of them through, and a refusal would send all of them direct.

use discovery_core::{flow::Flow, id::NodeId};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Shown {
    until: HashMap<NodeId, HashMap<(IpAddr, SocketAddr), Instant>>,
}

impl Shown {
    /// A connection that was opened early for `flow`, for a SYN that was seen here, was claimed by `peer`.
    pub(super) fn note(&mut self, peer: &NodeId, flow: Flow, now: Instant) {
        let until = self.until.entry(peer.clone()).or_default();
        if until.len() >= SHOWN_MAX {
            until.retain(|_, until| *until > now);
        }
        let key = (network(flow.client.ip()), flow.server);
        if until.len() < SHOWN_MAX || until.contains_key(&key) {
            until.insert(key, now + SHOWN_FOR);
        }
    }

    /// Whether `peer` may ask for `flow`.
    pub(super) fn covers(&self, peer: &NodeId, flow: Flow, now: Instant) -> bool {
        let until =
            self.until.get(peer).and_then(|until| until.get(&(network(flow.client.ip()), flow.server)));
        until.is_some_and(|until| *until > now)
    }
}

/// The office of a client: its /24, or its /64.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// As long as a peer may believe its own table at most.
const SHOWN_FOR: Duration = Duration::from_secs(3600);
/// Of one peer: offices times servers. What one peer shows is no room that another one lacks.
const SHOWN_MAX: usize = 1024;

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
            ("a", "10.1.0.2:5", "10.2.0.2:993", 3599, true),
            ("a", "10.1.0.2:5", "10.2.0.2:993", 3600, false),
            ("a", "10.1.0.3:1000", "10.2.0.2:993", 0, true),
            ("a", "10.1.1.2:1000", "10.2.0.2:993", 0, false),
            ("b", "10.1.0.2:1000", "10.2.0.2:993", 0, false),
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
    fn each_peer_is_bounded_by_itself() {
        let (mut shown, now) = (Shown::default(), Instant::now());
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let flow = |port| Flow {
            client: SocketAddr::from(([10, 1, 0, 2], 1000)),
            server: SocketAddr::from(([10, 2, 0, 2], port)),
        };
        for port in 0..2000 {
            shown.note(&a, flow(port), now);
        }
        assert!(shown.covers(&a, flow(1023), now) && !shown.covers(&a, flow(1024), now));
        shown.note(&b, flow(1024), now);
        assert!(shown.covers(&b, flow(1024), now));
        let later = now + SHOWN_FOR;
        shown.note(&a, flow(1024), later);
        assert!(shown.covers(&a, flow(1024), later), "what has run out makes room");
    }
}
