//! The engine over packets that went by some other time: what would have become of each connection, and why. Nothing is
//! sent; a stream on a link is taken to open at once, and what a server would have said to this node is not known.

use crate::{
    capture::Captured,
    engine::{Engine, Event, Hook, Kind, Output, Peer, Reason, Verdict},
    flow::{Flow, Ingress},
    look::look,
    now::{Now, UnixMillis},
    packet::{Protocol, View},
    probe::{Codec, Encoded, Probe, Query},
    rule::{Facts, RuleSet, Ruled},
};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// One run.
#[derive(Debug)]
pub struct Dry {
    engine: Engine,
    rules: RuleSet,
    codec: Codec,
    query: Encoded,
    ingress: Ingress,
    start: Instant,
    first: Option<Duration>,
    at: Duration,
    places: HashMap<(Protocol, Flow), usize>,
    told: Vec<Told>,
    counts: Counts,
    unread: BTreeMap<&'static str, u64>,
}

/// What would become of one connection or UDP flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Whose.
    pub flow: Flow,
    /// What the rules say.
    pub ruled: Ruled,
    /// What was decided, in order; the same again is counted.
    pub steps: Vec<Step>,
    /// Its packets, those included about which nothing is decided.
    pub packets: u64,
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// About what.
    pub what: &'static str,
    /// What is done with the packet.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// How often in a row.
    pub times: u64,
}

/// Packets that belong to no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that were given.
    pub packets: u64,
    /// Of connections that began before the capture did.
    pub begun_before: u64,
    /// No IP packets, or not readable as TCP or UDP with certainty.
    pub unread: u64,
    /// Of connections beyond those that are remembered.
    pub beyond: u64,
}

impl Dry {
    /// Ready for the first packet. `ingress` is where clients' packets come in; links to `peers` are taken to stand.
    #[must_use]
    pub fn new(
        mut engine: Engine,
        rules: RuleSet,
        codec: Codec,
        ingress: Ingress,
        peers: &[Peer],
        start: Instant,
    ) -> Self {
        let now = Now { mono: start, wall: UnixMillis(0) };
        engine.handle_event(now, Event::AgentUp);
        for peer in peers {
            engine.handle_event(now, Event::PeerUp { peer: *peer });
        }
        let query = codec.encode(&Probe::Query(Query));
        Self {
            engine,
            rules,
            codec,
            query,
            ingress,
            start,
            first: None,
            at: Duration::ZERO,
            places: HashMap::new(),
            told: Vec::new(),
            counts: Counts::default(),
            unread: BTreeMap::new(),
        }
    }

    /// One packet.
    pub fn handle_packet(&mut self, packet: &Captured<'_>) {
        self.counts.packets += 1;
        let first = *self.first.get_or_insert(packet.at);
        // A file may go back in time; the engine does not.
        self.at = self.at.max(packet.at.saturating_sub(first));
        let mono = self.start + self.at.min(FURTHEST);
        let now = Now { mono, wall: UnixMillis(0).plus(packet.at) };
        while self.engine.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.engine.handle_timeout(now);
            self.obey(now);
        }
        let view = match View::parse(packet.octets) {
            Ok(view) => view,
            Err(refused) => {
                self.counts.unread += 1;
                *self.unread.entry(refused.word()).or_default() += 1;
                return;
            }
        };
        match view.protocol() {
            Protocol::Udp => self.datagram(now, &view, packet),
            Protocol::Tcp => self.segment(now, &view, packet),
        }
        self.obey(now);
    }

    /// Those that began in the capture, in their order.
    #[must_use]
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// The rest.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why packets were not read.
    pub fn unread(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.unread.iter().map(|(why, n)| (*why, *n))
    }

    fn segment(&mut self, now: Now, view: &View<'_>, packet: &Captured<'_>) {
        let hook = Hook::Forwarded(self.ingress);
        let Some(seen) = look(view, hook, &self.codec, self.query.octets(), OCTETS_MAX) else {
            let known = [view.from_client(), view.from_server()]
                .into_iter()
                .find_map(|flow| self.places.get(&(Protocol::Tcp, flow)).copied());
            match known.and_then(|place| self.told.get_mut(place)) {
                Some(told) => told.packets += 1,
                None => self.counts.begun_before += 1,
            }
            return;
        };
        let (what, flow) = match seen.kind {
            Kind::Syn => ("SYN", view.from_client()),
            Kind::SynAck => ("SYN-ACK", view.from_server()),
            Kind::Rst if self.places.contains_key(&(Protocol::Tcp, view.from_server())) => {
                ("RST", view.from_server())
            }
            Kind::Rst => ("RST", view.from_client()),
        };
        let ruled = self.ruled(flow, Protocol::Tcp, packet);
        let verdict = self.engine.handle_segment(now, &seen, ruled, packet.octets);
        let step = Step { what, verdict, reason: self.engine.last_reason(), times: 1 };
        if seen.kind != Kind::Syn && !self.places.contains_key(&(Protocol::Tcp, flow)) {
            self.counts.begun_before += 1;
            return;
        }
        self.note(Protocol::Tcp, flow, ruled, step);
    }

    fn datagram(&mut self, now: Now, view: &View<'_>, packet: &Captured<'_>) {
        let (there, back) = (view.from_client(), view.from_server());
        let known = self.places.contains_key(&(Protocol::Udp, back));
        let ruled = self.ruled(there, Protocol::Udp, packet);
        let verdict = self.engine.handle_datagram(now, there, ruled, packet.octets);
        let reason = self.engine.last_reason();
        let flow = if known && reason == Reason::DatagramGoesOn { back } else { there };
        self.note(Protocol::Udp, flow, ruled, Step { what: "datagram", verdict, reason, times: 1 });
    }

    fn ruled(&self, flow: Flow, protocol: Protocol, packet: &Captured<'_>) -> Ruled {
        let facts = Facts { flow, protocol, ingress: Some(self.ingress), vlan: packet.vlan };
        self.rules.decide(&facts, packet.octets)
    }

    fn note(&mut self, protocol: Protocol, flow: Flow, ruled: Ruled, step: Step) {
        let next = self.told.len();
        let place = match self.places.get(&(protocol, flow)) {
            Some(place) => *place,
            None if next >= FLOWS_MAX => {
                self.counts.beyond += 1;
                return;
            }
            None => {
                self.places.insert((protocol, flow), next);
                self.told.push(Told { protocol, flow, ruled, steps: Vec::new(), packets: 0 });
                next
            }
        };
        let Some(told) = self.told.get_mut(place) else { return };
        told.packets += 1;
        let full = told.steps.len() >= STEPS_MAX;
        match told.steps.last_mut() {
            Some(last)
                if (last.what, last.verdict, last.reason) == (step.what, step.verdict, step.reason) =>
            {
                last.times += 1;
            }
            // Enough to see how it goes.
            Some(_) | None if full => {}
            Some(_) | None => told.steps.push(step),
        }
    }

    fn obey(&mut self, now: Now) {
        while let Some(output) = self.engine.poll_output() {
            if let Output::Open { flow, .. } = output {
                self.engine.handle_event(now, Event::Opened { flow });
            }
        }
    }
}

/// What a file says of time is a stranger's word, and a clock has an end. No capture lasts a century.
const FURTHEST: Duration = Duration::from_secs(100 * 366 * 86_400);
/// Rows of a report.
const FLOWS_MAX: usize = 100_000;
const STEPS_MAX: usize = 32;
/// Ethernet's.
const OCTETS_MAX: usize = 1500;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Config,
        packet::{
            Acknowledged,
            forge::{datagram, refused, syn, syn_ack},
        },
        probe::{KeyHint, Response},
        rule::{Action, Rule},
    };

    fn flow(port: u16) -> Flow {
        Flow { client: "10.1.0.2:4000".parse().unwrap(), server: ([10, 2, 0, 2], port).into() }
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn dry(rules: Vec<Rule>) -> Dry {
        let rules = RuleSet::new(rules).unwrap();
        Dry::new(Engine::new(Config::default()), rules, Codec::default(), Ingress(1), &[], Instant::now())
    }

    fn rules() -> Vec<Rule> {
        vec![Rule::new(Action::Drop).server_ports(25), Rule::new(Action::Intercept)]
    }

    fn give(dry: &mut Dry, seconds: u64, octets: &[u8]) {
        dry.handle_packet(&Captured { at: Duration::from_secs(1_800_000_000 + seconds), octets, vlan: None });
    }

    fn words(told: &Told) -> Vec<(&'static str, &'static str, u64)> {
        told.steps.iter().map(|step| (step.what, step.reason.word(), step.times)).collect()
    }

    #[test]
    fn each_connection_has_its_story() {
        let mut dry = dry(rules());
        give(&mut dry, 0, &syn(&flow(143), 7, &[]).unwrap());
        give(&mut dry, 0, &syn(&flow(25), 7, &[]).unwrap());
        give(&mut dry, 1, &syn_ack(&flow(143), 7, Acknowledged::IsnPlusOne, 9, &[]).unwrap());
        // The server has no other node before it, which is remembered.
        give(
            &mut dry,
            2,
            &syn(&Flow { client: "10.1.0.3:4000".parse().unwrap(), ..flow(143) }, 7, &[]).unwrap(),
        );
        give(&mut dry, 2, &syn(&flow(144), 7, &[]).unwrap());
        give(&mut dry, 3, &refused(&flow(144), 7).unwrap());
        give(&mut dry, 3, &datagram(flow(53).client, flow(53).server, b"?").unwrap());
        give(&mut dry, 3, &datagram(flow(53).server, flow(53).client, b"!").unwrap());
        give(&mut dry, 3, &syn_ack(&flow(999), 7, Acknowledged::IsnPlusOne, 9, &[]).unwrap());
        give(&mut dry, 3, &[0x45, 0]);
        let stories: Vec<_> = dry.told().iter().map(words).collect();
        assert_eq!(
            stories,
            [
                vec![("SYN", "probing", 1), ("SYN-ACK", "server-answered", 1)],
                vec![("SYN", "rule-drop", 1)],
                vec![("SYN", "no-proxy", 1)],
                vec![("SYN", "probing", 1), ("RST", "server-reset", 1)],
                vec![("datagram", "datagram-begins", 1), ("datagram", "datagram-goes-on", 1)],
            ]
        );
        assert_eq!(dry.told()[1].ruled, Ruled { action: Action::Drop, rule: Some(1) });
        assert_eq!(dry.counts(), Counts { packets: 10, begun_before: 1, unread: 1, beyond: 0 });
        assert_eq!(dry.unread().collect::<Vec<_>>(), [("truncated", 1)]);
    }

    #[test]
    fn a_file_may_say_anything_of_time() {
        let mut dry = dry(rules());
        let octets = syn(&flow(143), 7, &[]).unwrap();
        for at in [Duration::ZERO, Duration::from_secs(u64::MAX), Duration::MAX, Duration::ZERO] {
            dry.handle_packet(&Captured { at, octets: &octets, vlan: None });
        }
        assert_eq!(dry.counts().packets, 4);
    }

    #[test]
    fn a_peer_that_answered_carries_what_follows() {
        let mut dry = dry(rules());
        let response =
            Response { link: "10.8.0.2:7777".parse().unwrap(), key: KeyHint([2; 8]), connected: true };
        let option = Codec::default().encode(&Probe::Response(response));
        give(&mut dry, 0, &syn(&flow(143), 7, &[]).unwrap());
        give(&mut dry, 0, &syn_ack(&flow(143), 7, Acknowledged::Isn, 9, option.octets()).unwrap());
        assert_eq!(words(&dry.told()[0]), [("SYN", "probing", 1), ("SYN-ACK", "answered", 1)]);
        assert_eq!(dry.engine.flows().next().map(|row| row.standing), Some(Reason::Carried));
    }
}
