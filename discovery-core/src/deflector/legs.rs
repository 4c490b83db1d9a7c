//! The rewrite rules of a deflector, by which a proxy off the path gets the two halves of a connection. The proxy is any
//! host: it accepts what comes to its port, and reaches a server through a port of the deflector's that was given to it
//! for this one connection.
//!
//! ```text
//! rule 1 (static)  client ► server           becomes  client ► proxy's port       and back
//! rule 2           server ► client           becomes  deflector's port ► proxy    and back
//! ```

use crate::{flow::Flow, lru::Lru, mutants};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::{Bound, RangeInclusive},
    time::{Duration, Instant},
};

/// The rules that stand.
#[derive(Clone, Debug)]
pub struct Legs {
    proxy_port: u16,
    ports: RangeInclusive<u16>,
    next: u16,
    /// Rule 1: by the client's end and the proxy, whose port it comes to.
    clients: Lru<(SocketAddr, IpAddr), Half>,
    there: BTreeMap<Flow, IpAddr>,
    /// Rule 2, by the deflector's port.
    servers: Lru<u16, Leg>,
    back: BTreeMap<Flow, u16>,
    idle_max: Duration,
    closing_max: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Half {
    server: SocketAddr,
    /// Of the client's SYN: a refusal says that it has seen it.
    isn: u32,
    /// The proxy has said something to the client.
    answered: bool,
    life: Life,
}

#[derive(Clone, Copy, Debug)]
struct Leg {
    flow: Flow,
    proxy: IpAddr,
    /// The proxy's end and this one, once the proxy's first packet has come.
    at: Option<(SocketAddr, SocketAddr)>,
    life: Life,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    until: Instant,
    closing: bool,
}

/// What a client's SYN is to rule 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No rule is about it.
    Unknown,
    /// It goes to the proxy that has the connection.
    Stays,
    /// The connection that had its ports is over, or its proxy is gone and had not answered: the rule has ended.
    Anew,
}

/// Where a packet is to come from and go to instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
}

impl Legs {
    /// No rules yet. `proxy_port` is where proxies accept.
    #[must_use]
    pub fn new(proxy_port: u16) -> Self {
        let ports = PORTS;
        let legs = usize::from(ports.end() - ports.start()) + 1;
        Self {
            proxy_port,
            next: *ports.start(),
            ports,
            clients: Lru::new(legs),
            there: BTreeMap::new(),
            servers: Lru::new(legs),
            back: BTreeMap::new(),
            idle_max: Duration::from_secs(2 * 3_600 + 600),
            closing_max: Duration::from_secs(60),
        }
    }

    /// Rule 1 for a connection. False when this client's port leads to this proxy already, for another server: the
    /// proxy could not tell the two apart.
    pub fn deflect(&mut self, now: Instant, flow: Flow, isn: u32, proxy: IpAddr) -> bool {
        let key = (flow.client, proxy);
        if self.clients.peek(&key).is_some_and(|half| {
            half.life.until > now && half.server != flow.server && !mutants::on("deflector-servers-mixed")
        }) {
            return false;
        }
        // Another proxy had it: its late answers are nobody's.
        if self.there.get(&flow).is_some_and(|former| *former != proxy) {
            self.release(now, flow);
        }
        if let Some(old) = self.clients.peek(&key).copied() {
            self.forget_client(key, &old);
        }
        let half = Half { server: flow.server, isn, answered: false, life: self.life(now) };
        if let Some((key, half)) = self.clients.insert(key, half) {
            self.forget_client(key, &half);
        }
        self.there.insert(flow, proxy);
        true
    }

    /// Rule 1 ends: the connection is no proxy's any more.
    pub fn release(&mut self, now: Instant, flow: Flow) {
        if let Some(proxy) = self.there.get(&flow).copied()
            && let Some(half) = self.clients.touch(&(flow.client, proxy))
            && half.server == flow.server
        {
            half.life.until = now;
        }
    }

    /// A client's SYN, repeated or from ports that were used before. `takes`: whether a proxy takes connections. One that has
    /// answered keeps the connection: whoever forges a SYN must not move it.
    pub fn again(&mut self, now: Instant, flow: Flow, isn: u32, takes: impl FnOnce(IpAddr) -> bool) -> Again {
        let Some(proxy) = self.there.get(&flow).copied() else { return Again::Unknown };
        let half = self.clients.touch(&(flow.client, proxy));
        let Some(half) = half.filter(|half| half.life.until > now && half.server == flow.server) else {
            return Again::Unknown;
        };
        if half.life.closing || (!half.answered && !takes(proxy)) {
            half.life.until = now;
            return Again::Anew;
        }
        if !half.answered {
            half.isn = isn;
        }
        Again::Stays
    }

    /// Of a reset with this acknowledgement: whether a proxy refuses a client to whom it has said nothing, as the system of one
    /// does whose process is gone. The client is nobody's then, and its next SYN may go elsewhere.
    pub fn refuses(&mut self, now: Instant, src: SocketAddr, dst: SocketAddr, ack: u32) -> Option<IpAddr> {
        if src.port() != self.proxy_port {
            return None;
        }
        let half = self.clients.touch(&(dst, src.ip()))?;
        let seen = ack == half.isn.wrapping_add(1) || mutants::on("deflector-refused-blindly");
        if half.life.until <= now || half.answered || !seen {
            return None;
        }
        half.life.until = now;
        Some(src.ip())
    }

    /// Which server a client that comes to `proxy` meant.
    #[must_use]
    pub fn meant(&self, now: Instant, client: SocketAddr, proxy: IpAddr) -> Option<SocketAddr> {
        let half = self.clients.peek(&(client, proxy))?;
        (half.life.until > now).then_some(half.server)
    }

    /// Rule 2: the port of this node's through which `proxy` reaches the server of `flow` in its client's name. None
    /// without a free port, or when another proxy has the connection.
    pub fn reach(&mut self, now: Instant, flow: Flow, proxy: IpAddr) -> Option<u16> {
        if let Some(port) = self.back.get(&flow).copied()
            && let Some(leg) =
                self.servers.peek(&port).filter(|leg| leg.life.until > now && !leg.life.closing)
        {
            // Asked again before anything was sent: the same.
            return (leg.proxy == proxy && leg.at.is_none()).then_some(port);
        }
        let port = self.free(now)?;
        let leg = Leg { flow, proxy, at: None, life: self.life(now) };
        if let Some((port, leg)) = self.servers.insert(port, leg) {
            self.forget(port, &leg);
        }
        self.back.insert(flow, port);
        Some(port)
    }

    /// What becomes of a packet; none when no rule is about it. `closing`: a FIN or a reset.
    pub fn turn(&mut self, now: Instant, src: SocketAddr, dst: SocketAddr, closing: bool) -> Option<Turned> {
        // A door is known by its port alone, and takes the first that comes: whatever is known by both ends goes first.
        self.client_to_proxy(now, src, dst, closing)
            .or_else(|| self.server_to_proxy(now, src, dst, closing))
            .or_else(|| self.proxy_to_client(now, src, dst, closing))
            .or_else(|| self.proxy_to_server(now, src, dst, closing))
    }

    /// Connections that a rule is about, a few at a time and all of them in turn: those that come after `last`.
    pub fn some_after(&self, now: Instant, last: Option<Flow>, max: usize) -> Vec<Flow> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let there = self.there.range((from, Bound::Unbounded)).filter(|(flow, proxy)| {
            let half = self.clients.peek(&(flow.client, **proxy));
            half.is_some_and(|half| half.life.until > now)
        });
        let back = self.back.range((from, Bound::Unbounded)).filter(|(_, port)| {
            let leg = self.servers.peek(port);
            leg.is_some_and(|leg| leg.life.until > now)
        });
        let mut flows: Vec<Flow> = there.take(max).map(|(flow, _)| *flow).collect();
        flows.extend(back.take(max).map(|(flow, _)| *flow));
        flows.sort_unstable();
        flows.dedup();
        flows.truncate(max);
        flows
    }

    /// Rules that stand, of either kind.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.clients.len(), self.servers.len())
    }

    fn proxy_to_server(
        &mut self,
        now: Instant,
        src: SocketAddr,
        dst: SocketAddr,
        closing: bool,
    ) -> Option<Turned> {
        // What comes from where proxies accept is for a client, whose port may be that of a door.
        if src.port() == self.proxy_port && !mutants::on("deflector-answer-to-door") {
            return None;
        }
        let (idle, soon) = (self.idle_max, self.closing_max);
        let leg = self.servers.touch(&dst.port()).filter(|leg| {
            leg.life.until > now && (leg.proxy == src.ip() || mutants::on("deflector-door-for-anybody"))
        })?;
        // The first one to come has it.
        if *leg.at.get_or_insert((src, dst)) != (src, dst) {
            return None;
        }
        leg.life.seen(now, closing, idle, soon);
        Some(Turned { src: leg.flow.client, dst: leg.flow.server })
    }

    fn proxy_to_client(
        &mut self,
        now: Instant,
        src: SocketAddr,
        dst: SocketAddr,
        closing: bool,
    ) -> Option<Turned> {
        if src.port() != self.proxy_port {
            return None;
        }
        let (idle, soon) = (self.idle_max, self.closing_max);
        let half = self.clients.touch(&(dst, src.ip())).filter(|half| half.life.until > now)?;
        half.answered = true;
        half.life.seen(now, closing, idle, soon);
        Some(Turned { src: half.server, dst })
    }

    fn server_to_proxy(
        &mut self,
        now: Instant,
        src: SocketAddr,
        dst: SocketAddr,
        closing: bool,
    ) -> Option<Turned> {
        let port = *self.back.get(&Flow { client: dst, server: src })?;
        let (idle, soon) = (self.idle_max, self.closing_max);
        let leg = self.servers.touch(&port).filter(|leg| leg.life.until > now)?;
        let (at, door) = leg.at?;
        leg.life.seen(now, closing, idle, soon);
        Some(Turned { src: door, dst: at })
    }

    fn client_to_proxy(
        &mut self,
        now: Instant,
        src: SocketAddr,
        dst: SocketAddr,
        closing: bool,
    ) -> Option<Turned> {
        let proxy = *self.there.get(&Flow { client: src, server: dst })?;
        let (idle, soon) = (self.idle_max, self.closing_max);
        let half =
            self.clients.touch(&(src, proxy)).filter(|half| half.life.until > now && half.server == dst)?;
        half.life.seen(now, closing, idle, soon);
        Some(Turned { src, dst: SocketAddr::new(proxy, self.proxy_port) })
    }

    /// A port that nobody has, or whose connection is over.
    fn free(&mut self, now: Instant) -> Option<u16> {
        for _ in self.ports.clone() {
            let port = self.next;
            self.next = if port == *self.ports.end() { *self.ports.start() } else { port + 1 };
            match self.servers.peek(&port).copied() {
                None => return Some(port),
                Some(leg) if leg.life.until <= now => {
                    self.forget(port, &leg);
                    return Some(port);
                }
                Some(_) => {}
            }
        }
        None
    }

    fn forget(&mut self, port: u16, leg: &Leg) {
        if self.back.get(&leg.flow) == Some(&port) {
            self.back.remove(&leg.flow);
        }
    }

    fn forget_client(&mut self, (client, proxy): (SocketAddr, IpAddr), half: &Half) {
        let flow = Flow { client, server: half.server };
        if self.there.get(&flow) == Some(&proxy) {
            self.there.remove(&flow);
        }
    }

    fn life(&self, now: Instant) -> Life {
        Life { until: now + self.idle_max, closing: false }
    }
}

impl Life {
    fn seen(&mut self, now: Instant, closing: bool, idle: Duration, soon: Duration) {
        // What follows a FIN does not make the connection live for hours again.
        self.closing |= closing;
        self.until = now + if self.closing { soon } else { idle };
    }
}

/// Below those that systems give out by themselves.
pub const PORTS: RangeInclusive<u16> = 16_384..=32_767;

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn start() -> Instant {
        Instant::now()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flow() -> Flow {
        Flow { client: at("10.1.0.2:40000"), server: at("10.2.0.2:143") }
    }

    fn proxy(n: u8) -> IpAddr {
        [10, 3, 0, n].into()
    }

    const ISN: u32 = 1_000;

    fn legs() -> Legs {
        Legs::new(7784)
    }

    #[test]
    fn a_static_connection_has_two_rules_and_their_ways_back() {
        let (mut legs, now) = (legs(), start());
        let Flow { client, server } = flow();
        assert_eq!(legs.turn(now, client, server, false), None);
        assert!(legs.deflect(now, flow(), ISN, proxy(1)));
        let accepts = SocketAddr::new(proxy(1), 7784);
        assert_eq!(legs.turn(now, client, server, false), Some(Turned { src: client, dst: accepts }));
        assert_eq!(legs.turn(now, accepts, client, false), Some(Turned { src: server, dst: client }));
        assert_eq!(legs.meant(now, client, proxy(1)), Some(server));
        assert_eq!(legs.turn(now, server, client, false), None, "nobody has reached the server yet");
        let port = legs.reach(now, flow(), proxy(1)).unwrap();
        let door = SocketAddr::new([10, 9, 0, 1].into(), port);
        assert_eq!(legs.reach(now, flow(), proxy(1)), Some(port), "asked again");
        assert_eq!(legs.reach(now, flow(), proxy(2)), None, "somebody else's");
        let dials = at("10.3.0.1:50000");
        assert_eq!(legs.turn(now, at("10.3.0.2:50000"), door, false), None, "somebody else");
        assert_eq!(legs.turn(now, dials, door, false), Some(Turned { src: client, dst: server }));
        assert_eq!(legs.turn(now, at("10.3.0.1:50001"), door, false), None, "a second connection");
        assert_eq!(legs.turn(now, server, client, false), Some(Turned { src: door, dst: dials }));
        assert_eq!(legs.len(), (1, 1));
    }

    #[test]
    fn one_client_port_is_not_two_connections_of_one_proxy() {
        let (mut legs, now) = (legs(), start());
        let other = Flow { server: at("10.2.0.3:143"), ..flow() };
        assert!(legs.deflect(now, flow(), ISN, proxy(1)) && legs.deflect(now, flow(), ISN, proxy(1)));
        assert!(!legs.deflect(now, other, ISN, proxy(1)));
        assert!(legs.deflect(now, other, ISN, proxy(2)));
        assert_eq!(
            legs.turn(now, SocketAddr::new(proxy(2), 7784), other.client, false).unwrap().src,
            other.server
        );
    }

    #[test]
    fn an_answer_to_a_client_is_not_taken_for_a_way_to_a_server() {
        let (mut legs, now) = (legs(), start());
        let other = Flow { client: at("10.1.0.3:40001"), server: at("10.2.0.3:143") };
        let port = legs.reach(now, other, proxy(1)).unwrap();
        // A client's port may be that of a door which nobody has come to yet.
        let client = SocketAddr::new([10, 1, 0, 2].into(), port);
        let accepts = SocketAddr::new(proxy(1), 7784);
        let flow = Flow { client, ..flow() };
        assert!(legs.deflect(now, flow, ISN, proxy(1)));
        let answer = Turned { src: flow.server, dst: client };
        assert_eq!(legs.turn(now, accepts, client, false), Some(answer));
        // Nor once the rule for that client is over.
        let soon = now + Duration::from_secs(61);
        assert_eq!(legs.turn(now, client, flow.server, true).unwrap().dst, accepts);
        assert_eq!(legs.turn(soon, accepts, client, false), None);
        let (door, dials) = (SocketAddr::new([10, 9, 0, 1].into(), port), at("10.3.0.1:50000"));
        let there = Turned { src: other.client, dst: other.server };
        assert_eq!(legs.turn(soon, dials, door, false), Some(there), "its proxy still finds the door");
    }

    #[test]
    fn a_connection_that_goes_to_another_proxy_has_left_the_first() {
        let (mut legs, now) = (legs(), start());
        let Flow { client, .. } = flow();
        assert!(legs.deflect(now, flow(), ISN, proxy(1)) && legs.deflect(now, flow(), ISN, proxy(2)));
        let accepts = |n| SocketAddr::new(proxy(n), 7784);
        assert_eq!(legs.turn(now, accepts(1), client, false), None);
        assert_eq!(legs.turn(now, client, flow().server, false).unwrap().dst, accepts(2));
        // The first one's row, used anew for another server, does not take the second's with it.
        let other = Flow { server: at("10.2.0.3:143"), ..flow() };
        assert!(legs.deflect(now, other, ISN, proxy(1)));
        assert_eq!(legs.turn(now, client, flow().server, false).unwrap().dst, accepts(2));
    }

    #[test]
    fn a_proxy_that_refuses_has_let_go_and_one_that_has_answered_has_not() {
        let (mut legs, now) = (legs(), start());
        let Flow { client, server } = flow();
        let accepts = |n| SocketAddr::new(proxy(n), 7784);
        assert!(legs.deflect(now, flow(), ISN, proxy(1)));
        assert_eq!(legs.refuses(now, at("10.3.0.1:80"), client, ISN + 1), None, "from another port");
        assert_eq!(legs.refuses(now, accepts(2), client, ISN + 1), None, "from another proxy");
        assert_eq!(legs.refuses(now, accepts(1), client, ISN), None, "of somebody who has not seen the SYN");
        assert_eq!(legs.refuses(now, accepts(1), client, ISN + 1), Some(proxy(1)));
        assert_eq!(legs.refuses(now, accepts(1), client, ISN + 1), None, "once");
        assert_eq!(legs.turn(now, client, server, false), None);
        assert!(legs.deflect(now, flow(), ISN, proxy(2)));
        assert!(legs.turn(now, accepts(2), client, false).is_some());
        assert_eq!(legs.refuses(now, accepts(2), client, ISN + 1), None, "its reset is the client's");
        legs.release(now, flow());
        assert_eq!(legs.turn(now, client, server, false), None, "it goes past");
        // The same port again is a new connection.
        assert!(legs.deflect(now, flow(), 70, proxy(2)));
        assert_eq!(legs.refuses(now, accepts(2), client, 71), Some(proxy(2)));
    }

    #[test]
    fn a_syn_that_comes_again_moves_nothing_that_was_answered() {
        let (mut legs, now) = (legs(), start());
        let Flow { client, server } = flow();
        let accepts = SocketAddr::new(proxy(1), 7784);
        assert_eq!(legs.again(now, flow(), ISN, |_| true), Again::Unknown);
        assert!(legs.deflect(now, flow(), ISN, proxy(1)));
        assert_eq!(legs.again(now, flow(), 70, |_| true), Again::Stays, "repeated");
        assert_eq!(legs.refuses(now, accepts, client, 71), Some(proxy(1)), "as it was said last");
        assert!(legs.deflect(now, flow(), ISN, proxy(1)));
        assert_eq!(
            legs.again(now, flow(), ISN, |proxy| proxy != accepts.ip()),
            Again::Anew,
            "its proxy is gone"
        );
        assert_eq!(legs.again(now, flow(), ISN, |_| true), Again::Unknown);
        assert!(legs.deflect(now, flow(), ISN, proxy(1)));
        assert!(legs.turn(now, accepts, client, false).is_some());
        assert_eq!(legs.again(now, flow(), 70, |_| false), Again::Stays, "answered");
        assert!(legs.turn(now, client, server, true).is_some());
        assert_eq!(legs.again(now, flow(), 70, |_| true), Again::Anew, "that connection is over");
    }

    #[test]
    fn what_is_kept_by_connection_is_no_more_than_what_is_kept_by_client() {
        let (mut legs, mut now) = (legs(), start());
        for n in 0..200_u8 {
            now += Duration::from_secs(61);
            let flow = Flow { server: SocketAddr::new([10, 2, 0, n].into(), 143), ..flow() };
            assert!(legs.deflect(now, flow, ISN, proxy(1)), "the client's port is free again");
            assert!(legs.turn(now, flow.client, flow.server, true).is_some());
        }
        assert_eq!((legs.clients.len(), legs.there.len()), (1, 1));
    }

    #[test]
    fn all_connections_come_in_turn() {
        let (mut legs, now) = (legs(), start());
        let flows: Vec<Flow> =
            (1..=5).map(|n| Flow { client: SocketAddr::new([10, 1, 0, n].into(), 7), ..flow() }).collect();
        for (n, flow) in flows.iter().enumerate() {
            // Some by a rule of one kind, some of the other, some of both.
            assert!(n % 2 == 1 || legs.deflect(now, *flow, ISN, proxy(1)));
            assert!(n % 2 == 0 || n == 3 || legs.reach(now, *flow, proxy(1)).is_some());
        }
        let live: Vec<Flow> =
            flows.iter().copied().enumerate().filter(|(n, _)| *n != 3).map(|(_, f)| f).collect();
        let first = legs.some_after(now, None, 3);
        assert_eq!(first, live[..3]);
        assert_eq!(legs.some_after(now, first.last().copied(), 3), live[3..]);
        assert_eq!(legs.some_after(now + Duration::from_secs(9_000), None, 3), [], "over");
    }

    #[test]
    fn rules_end_soon_after_a_fin_and_ports_come_round() {
        let (mut legs, now) = (legs(), start());
        let port = legs.reach(now, flow(), proxy(1)).unwrap();
        let door = SocketAddr::new([10, 9, 0, 1].into(), port);
        let dials = at("10.3.0.1:50000");
        assert!(legs.turn(now, dials, door, true).is_some());
        let later = now + Duration::from_secs(59);
        assert!(
            legs.turn(later, flow().server, flow().client, false).is_some(),
            "the other one's last words"
        );
        let again = legs.reach(later, flow(), proxy(1)).unwrap();
        assert_ne!(again, port, "the client's port is used again");
        assert!(legs.turn(later + Duration::from_secs(120), dials, door, false).is_none());
        let later = later + Duration::from_secs(120);
        let mut given = 0;
        for n in 0..20_000_u16 {
            let client = SocketAddr::new([10, 1, 1, 1].into(), n);
            given += usize::from(legs.reach(later, Flow { client, ..flow() }, proxy(1)).is_some());
        }
        assert_eq!(given, PORTS.len() - 1, "all but the one that lives");
    }
}
