//! The connection deflector (US 9,172,620, 'connection deflector'): a node on the path that only turns packets towards
//! proxies that are not. It keeps which proxy has which connection; how a packet is turned (its destination rewritten,
//! or its next hop) is the shell's.
//!
//! ```text
//! static:       client ─► deflector ═► proxy ─► server        two rules: the way there, and the way back
//!                            ▲═══════════════════╛
//! discovering:  client ─► CP ═link═► proxy ─► server          one rule: the way back from the server
//!                                      ▲═ deflector ◄╛
//! ```

pub mod control;
pub mod legs;

use crate::{
    candidates::{Candidate, Policy, choose},
    engine::Peer,
    flow::Flow,
    lru::Lru,
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How connections come to be deflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A client's SYN is turned to a proxy, and so is everything else of its connection in both directions.
    Static,
    /// The client's node was told the proxy; only what the server says to the client is turned.
    Discovering,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// It goes on.
    On,
    /// It is the client's, and goes to the proxy instead of the server.
    There(Peer),
    /// It is the server's, and goes to the proxy instead of the client.
    Back(Peer),
}

/// Bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflectorConfig {
    /// How connections come to be deflected.
    pub mode: Mode,
    /// How a proxy is chosen.
    pub policy: Policy,
    /// Connections at once; the one longest without a packet goes first.
    pub flows_max: usize,
    /// A connection without a packet for so long is forgotten: longer than a keep-alive of two hours.
    pub idle_max: Duration,
    /// The same after a FIN or a reset.
    pub closing_max: Duration,
}

impl Default for DeflectorConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Static,
            policy: Policy::Primary,
            flows_max: 65_536,
            idle_max: Duration::from_secs(2 * 3_600 + 600),
            closing_max: Duration::from_secs(60),
        }
    }
}

/// One packet as the deflector needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Passing {
    /// Source as on the wire.
    pub src: SocketAddr,
    /// Destination as on the wire.
    pub dst: SocketAddr,
    /// A SYN without ACK.
    pub syn: bool,
    /// A FIN or a reset.
    pub closing: bool,
    /// It comes from a proxy: such packets bear the client's or the server's address and are never turned.
    pub from_proxy: bool,
}

/// Which proxy has which connection.
#[derive(Clone, Debug)]
pub struct Deflector {
    config: DeflectorConfig,
    flows: Lru<Flow, Rule>,
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    proxy: Peer,
    until: Instant,
    closing: bool,
}

impl Deflector {
    /// One that has no connections.
    #[must_use]
    pub fn new(config: DeflectorConfig) -> Self {
        Self { flows: Lru::new(config.flows_max), config }
    }

    /// What becomes of a packet. `wanted`: the rules say that such connections are to be deflected.
    pub fn turn(&mut self, now: Instant, passing: &Passing, wanted: bool, candidates: &[Candidate]) -> Turn {
        if passing.from_proxy {
            return Turn::On;
        }
        let there = Flow { client: passing.src, server: passing.dst };
        let back = Flow { client: passing.dst, server: passing.src };
        if let Some(proxy) = self.rule(now, &back, passing.closing) {
            return Turn::Back(proxy);
        }
        if self.config.mode == Mode::Discovering {
            return Turn::On;
        }
        if passing.syn {
            // A repeated SYN finds its proxy again, unless that has gone meanwhile.
            let standing = self.rule(now, &there, false);
            let alive = |peer: &Peer| candidates.iter().any(|c| c.peer == *peer && c.available);
            let proxy = standing
                .filter(alive)
                .or_else(|| wanted.then(|| choose(candidates, self.config.policy, &there)).flatten());
            return proxy.map_or(Turn::On, |proxy| {
                self.put(now, there, proxy);
                Turn::There(proxy)
            });
        }
        self.rule(now, &there, passing.closing).map_or(Turn::On, Turn::There)
    }

    /// The proxy for a connection whose query this node answers on its behalf ([`Mode::Discovering`]); from then on
    /// what the server says to the client goes there.
    pub fn assign(&mut self, now: Instant, flow: Flow, candidates: &[Candidate]) -> Option<Peer> {
        let proxy = choose(candidates, self.config.policy, &flow)?;
        self.put(now, flow, proxy);
        Some(proxy)
    }

    /// A proxy chosen by somebody else (a client's node that was given the list) has the connection.
    pub fn assigned(&mut self, now: Instant, flow: Flow, proxy: Peer) {
        self.put(now, flow, proxy);
    }

    /// How many connections are deflected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.len() == 0
    }

    fn put(&mut self, now: Instant, flow: Flow, proxy: Peer) {
        self.flows.insert(flow, Rule { proxy, until: now + self.config.idle_max, closing: false });
    }

    fn rule(&mut self, now: Instant, flow: &Flow, closing: bool) -> Option<Peer> {
        let rule = self.flows.touch(flow).filter(|rule| rule.until > now)?;
        // What follows a FIN does not make the connection live for hours again.
        rule.closing |= closing;
        rule.until = now + if rule.closing { self.config.closing_max } else { self.config.idle_max };
        Some(rule.proxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::KeyHint;

    fn proxy(n: u8, available: bool) -> Candidate {
        let peer = Peer { link: SocketAddr::from(([10, 8, 0, n], 7777)), key: KeyHint([n; 8]) };
        Candidate { peer, rank: n, available, load: 0 }
    }

    fn up(port: u16) -> Passing {
        Passing {
            src: SocketAddr::from(([10, 1, 0, 2], port)),
            dst: SocketAddr::from(([10, 2, 0, 2], 143)),
            syn: false,
            closing: false,
            from_proxy: false,
        }
    }

    fn down(port: u16) -> Passing {
        Passing { src: up(port).dst, dst: up(port).src, ..up(port) }
    }

    fn syn(port: u16) -> Passing {
        Passing { syn: true, ..up(port) }
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_static_one_turns_both_ways_and_what_the_proxy_says_to_neither() {
        let (mut deflector, now) = (Deflector::new(DeflectorConfig::default()), start());
        let all = [proxy(1, true), proxy(2, true)];
        assert_eq!(deflector.turn(now, &up(1), true, &all), Turn::On, "its SYN was not seen");
        assert_eq!(deflector.turn(now, &syn(1), false, &all), Turn::On, "the rules leave it");
        assert_eq!(deflector.turn(now, &syn(1), true, &all), Turn::There(all[0].peer));
        assert_eq!(deflector.turn(now, &up(1), true, &all), Turn::There(all[0].peer));
        assert_eq!(deflector.turn(now, &down(1), true, &all), Turn::Back(all[0].peer));
        assert_eq!(deflector.turn(now, &Passing { from_proxy: true, ..up(1) }, true, &all), Turn::On);
        assert_eq!(deflector.turn(now, &down(2), true, &all), Turn::On);
    }

    #[test]
    fn a_repeated_syn_keeps_its_proxy_until_that_is_gone_and_none_is_no_obstacle() {
        let (mut deflector, now) = (Deflector::new(DeflectorConfig::default()), start());
        let [first, second] = [proxy(1, true), proxy(2, true)];
        deflector.turn(now, &syn(1), true, &[second]);
        assert_eq!(deflector.turn(now, &syn(1), true, &[first, second]), Turn::There(second.peer));
        assert_eq!(deflector.turn(now, &syn(1), true, &[first, proxy(2, false)]), Turn::There(first.peer));
        assert_eq!(
            deflector.turn(now, &syn(2), true, &[proxy(1, false)]),
            Turn::On,
            "past it, to the server"
        );
    }

    #[test]
    fn a_discovering_one_turns_only_the_way_back() {
        let config = DeflectorConfig { mode: Mode::Discovering, ..DeflectorConfig::default() };
        let (mut deflector, now) = (Deflector::new(config), start());
        let all = [proxy(1, true)];
        assert_eq!(deflector.turn(now, &syn(1), true, &all), Turn::On);
        let flow = Flow { client: up(1).src, server: up(1).dst };
        assert_eq!(deflector.assign(now, flow, &all), Some(all[0].peer));
        assert_eq!(deflector.turn(now, &up(1), true, &all), Turn::On);
        assert_eq!(deflector.turn(now, &down(1), true, &all), Turn::Back(all[0].peer));
        assert_eq!(deflector.assign(now, flow, &[]), None);
        deflector.assigned(now, flow, proxy(2, true).peer);
        assert_eq!(deflector.turn(now, &down(1), true, &all), Turn::Back(proxy(2, true).peer));
    }

    #[test]
    fn rules_end_when_nothing_comes_and_soon_after_a_fin() {
        let (mut deflector, mut now) = (Deflector::new(DeflectorConfig::default()), start());
        let all = [proxy(1, true)];
        let hour = Duration::from_secs(3_600);
        deflector.turn(now, &syn(1), true, &all);
        for _ in 0..3 {
            now += 2 * hour;
            assert_eq!(deflector.turn(now, &up(1), true, &all), Turn::There(all[0].peer), "kept alive");
        }
        assert_eq!(deflector.turn(now + 3 * hour, &down(1), true, &all), Turn::On);
        deflector.turn(now, &Passing { closing: true, ..down(1) }, true, &all);
        let soon = now + Duration::from_secs(59);
        assert_eq!(
            deflector.turn(soon, &up(1), true, &all),
            Turn::There(all[0].peer),
            "the other direction's FIN"
        );
        assert_eq!(deflector.turn(soon + Duration::from_secs(60), &up(1), true, &all), Turn::On);
    }

    #[test]
    fn the_longest_silent_makes_way() {
        let (mut deflector, now) =
            (Deflector::new(DeflectorConfig { flows_max: 2, ..DeflectorConfig::default() }), start());
        let all = [proxy(1, true)];
        for port in 1..=3 {
            deflector.turn(now, &syn(port), true, &all);
        }
        assert_eq!((deflector.len(), deflector.is_empty()), (2, false));
        assert_eq!(deflector.turn(now, &down(1), true, &all), Turn::On);
        assert_eq!(deflector.turn(now, &down(3), true, &all), Turn::Back(all[0].peer));
    }
}
