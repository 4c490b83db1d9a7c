//! The interception engine under a stranger's packets, in tiny tables: whatever comes, no SYN is kept for good, no
//! server connection stays that nobody claimed, no query is answered twice, and every bound holds. Beside it runs a
//! shell that does exactly what it is asked to, and remembers.

use discovery_core::{
    engine::{
        AckVariant, Claim, Config, ConnectFailure, Embodiment, Engine, Event, Hook, Kind, Offer, Output,
        Peer, Reason, Refusal, Room, Seen, Told, Unreachable, Verdict,
    },
    flow::{Flow, Ingress},
    now::{Now, UnixMillis},
    pmt::{PmtConfig, Prefix, StaticPeer},
    probe::{KeyHint, Probe, Query, Response},
    rule::{Action, Ruled},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// First octet: the settings; then three octets for each thing that happens.
pub fn run(data: &[u8]) {
    let Some((settings, script)) = data.split_first() else { return };
    let mut shell = Shell::new(*settings);
    for step in script.chunks_exact(3).take(400) {
        shell.step(step[0], step[1], step[2]);
    }
    shell.end();
}

struct Shell {
    engine: Engine,
    start: Instant,
    at: Duration,
    agent: bool,
    bypass: bool,
    /// SYNs seen for a flow: what comes back must be one of them.
    syns: BTreeMap<Flow, Vec<Vec<u8>>>,
    /// Those that went out with the query after they had been kept: once.
    shown: BTreeMap<Flow, Vec<Vec<u8>>>,
    queries: BTreeMap<Flow, u32>,
    answers: BTreeMap<Flow, u32>,
    /// Sockets towards servers: connected or not.
    sockets: BTreeMap<Flow, bool>,
    /// Flows that were asked for on the link; whether the peer said yes.
    opens: BTreeMap<Flow, bool>,
    single: BTreeSet<Flow>,
    /// Clients that have this node's answer, or will.
    injected: BTreeSet<Flow>,
    /// Claims that wait, and flows that a peer has.
    waiting: BTreeSet<Flow>,
    claimed: BTreeSet<Flow>,
    serial: u32,
}

const FLOWS_MAX: usize = 6;
const UNCLAIMED_MAX: usize = 3;
const HELD_MAX: usize = 2;
const OCTETS_MAX: usize = 64;
const PMT_MAX: usize = 4;

fn flow(n: u8) -> Flow {
    let client = SocketAddr::from(([10, 1, n & 1, 2], 40_000 + u16::from(n & 6)));
    let port = if n & 0x20 == 0 { 143 } else { 7_783 };
    Flow { client, server: SocketAddr::from(([10, 2, (n >> 3) & 1, (n >> 4) & 1], port)) }
}

fn peer(n: u8) -> Peer {
    let n = n & 3;
    Peer { link: SocketAddr::from(([10, 8, 0, n], 7_777)), key: KeyHint([n; 8]) }
}

impl Shell {
    fn new(settings: u8) -> Self {
        let named = |n: u8| StaticPeer {
            network: Prefix::new([10, 2, 0, 0].into(), 24),
            port: None,
            peer: peer(n),
            preference: n & settings >> 6,
        };
        let statics = if settings & 0x10 == 0 { vec![] } else { (0..4).map(named).collect() };
        let config = Config {
            embodiment: [Embodiment::OnSyn, Embodiment::Stalled, Embodiment::Parallel]
                [usize::from(settings & 3) % 3],
            ack: if settings & 4 == 0 { AckVariant::Isn } else { AckVariant::IsnPlusOne },
            flows_max: FLOWS_MAX,
            kept_octets_max: OCTETS_MAX,
            packet_octets_max: 24,
            held_max: HELD_MAX,
            unclaimed_max: UNCLAIMED_MAX,
            unclaimed_network_max: 2,
            seen_entries_max: 4,
            tried_entries_max: 4,
            networks_max: 2,
            peers_max: 2,
            recent_max: 5,
            refusals_max: 2,
            candidates_max: 3,
            pmt: PmtConfig { statics, entries_max: PMT_MAX, networks_max: 1, ..PmtConfig::default() },
            ..Config::default()
        };
        Self {
            engine: Engine::new(config),
            start: Instant::now(),
            at: Duration::ZERO,
            agent: false,
            bypass: false,
            syns: BTreeMap::new(),
            shown: BTreeMap::new(),
            queries: BTreeMap::new(),
            answers: BTreeMap::new(),
            sockets: BTreeMap::new(),
            opens: BTreeMap::new(),
            single: BTreeSet::new(),
            injected: BTreeSet::new(),
            waiting: BTreeSet::new(),
            claimed: BTreeSet::new(),
            serial: 0,
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.start + self.at, wall: UnixMillis(1_800_000_000_000).plus(self.at) }
    }

    fn step(&mut self, op: u8, a: u8, b: u8) {
        let flow = flow(a);
        match op % 20 {
            0..=5 => self.segment(op % 20, flow, b, op),
            6 => self.wait(Duration::from_millis(u64::from(a) * u64::from(b))),
            7 if self.sockets.get(&flow) == Some(&false) => {
                self.sockets.insert(flow, true);
                self.tell(Event::Connected { flow });
            }
            8 if self.sockets.get(&flow) == Some(&false) => {
                self.sockets.remove(&flow);
                let unreachable = ConnectFailure::Unreachable(Unreachable::Network);
                let all =
                    [ConnectFailure::Refused, unreachable, ConnectFailure::TimedOut, ConnectFailure::Local];
                self.tell(Event::ConnectFailed { flow, why: all[usize::from(b & 3)] });
            }
            9 if self.opens.get(&flow) == Some(&false) => {
                self.opens.insert(flow, true);
                self.tell(Event::Opened { flow });
            }
            10 if self.opens.contains_key(&flow) => {
                self.opens.remove(&flow);
                let unreachable = Refusal::ServerUnreachable(Unreachable::Host);
                let all = [
                    Refusal::ServerRefused,
                    unreachable,
                    Refusal::ServerSilent,
                    Refusal::Peer,
                    Refusal::NoLink,
                    Refusal::Unseen,
                    Refusal::NotNow,
                ];
                self.tell(Event::Refused { flow, why: all[usize::from(b) % 7] });
            }
            11 => self.close(flow),
            12 => self.tell(Event::Aborted { flow, isn: u32::from(b & 3) }),
            13 => self.tell(Event::PeerUp { peer: peer(a) }),
            14 => self.tell(Event::PeerDown { peer: peer(a) }),
            15 => {
                let Peer { link, key } = peer(a);
                let answer = (b & 1 == 0).then_some(Response { link, key, connected: false });
                self.tell(Event::Probed { server: flow.server, answer });
            }
            16 => self.claim(flow, b & 1 == 0),
            17 => {
                self.bypass = b & 1 == 0;
                self.tell(Event::Bypass { on: self.bypass });
            }
            19 if b & 0xc0 == 0x40 => self.tell(Event::PeerAside { peer: peer(a), aside: b & 1 == 0 }),
            19 if b & 0xc0 == 0x80 => self.told(a, b),
            18 if b & 3 == 0 => self.agent_down(),
            18 | 19 => {
                self.agent = true;
                self.tell(Event::AgentUp);
            }
            _ => {}
        }
    }

    fn told(&mut self, a: u8, b: u8) {
        let offer = |n| Offer { peer: peer(n), rank: b & 3, load: b & 0x3f, able: n & 1 == 0 };
        let told = Told {
            networks: vec![Prefix::new([10, 2, 0, 0].into(), 16 + (b & 0x0f))],
            offers: (a >> 2..).take(usize::from(b & 7)).map(offer).collect(),
            until: self.now().mono + Duration::from_secs(10),
        };
        self.engine.told(peer(a).key, told);
    }

    fn segment(&mut self, op: u8, flow: Flow, b: u8, more: u8) {
        let Peer { link, key } = peer(b >> 2);
        let response = Response { link, key, connected: b & 0x10 == 0 };
        let (kind, towards_server, probe) = match op {
            0 => (Kind::Syn, true, None),
            1 => (Kind::Syn, true, Some(Probe::Query(Query))),
            2 => (Kind::SynAck, false, None),
            3 => (Kind::SynAck, false, Some(Probe::Response(response))),
            4 => (Kind::Rst, b & 0x20 == 0, None),
            _ => (Kind::Syn, true, None),
        };
        let own = op == 5;
        if own && self.sockets.get(&flow) != Some(&false) {
            return;
        }
        let (src, dst) = if towards_server { (flow.client, flow.server) } else { (flow.server, flow.client) };
        let number = u32::from(b & 3);
        let seen = Seen {
            src,
            dst,
            hook: if own { Hook::Own } else { Hook::Forwarded(Ingress(u32::from(b >> 7))) },
            kind,
            seq: if kind == Kind::SynAck { 77 } else { number },
            ack: if kind == Kind::Syn { 0 } else { number },
            probe,
            room: if b & 0x0c != 0x0c || kind != Kind::Syn {
                Room::Fits
            } else if b & 0x40 == 0 {
                Room::Full
            } else {
                Room::Untouchable
            },
        };
        let actions = [
            Action::Intercept,
            Action::Intercept,
            Action::Intercept,
            Action::Pass,
            Action::InterceptSingle,
            Action::Drop,
            Action::Deny,
            Action::DropIfNoPeer,
        ];
        let action = actions[usize::from(more / 20) % actions.len()];
        self.serial += 1;
        let mut packet = self.serial.to_be_bytes().to_vec();
        packet.resize(4 + usize::from(b % 24), 0);
        let ruled = Ruled { action, rule: None };
        if kind == Kind::Syn && !own {
            self.syns.entry(flow).or_default().push(packet.clone());
            if probe.is_some() {
                *self.queries.entry(flow).or_default() += 1;
            }
        }
        let verdict = self.engine.handle_segment(self.now(), &seen, ruled, &packet);
        let reason = self.engine.last_reason();
        if kind != Kind::Syn {
            assert_ne!(verdict, Verdict::PassWithQuery, "a query on {kind:?}");
        }
        if kind == Kind::Rst || (own && reason != Reason::OwnSynWithheld) {
            assert_ne!(verdict, Verdict::Drop, "{reason}");
        }
        if seen.room != Room::Fits {
            assert_ne!(verdict, Verdict::PassWithQuery, "no room: {reason}");
        }
        let operator = matches!(action, Action::Drop | Action::Deny | Action::DropIfNoPeer);
        if kind == Kind::Syn && !operator && (!self.agent || self.bypass) && !self.claimed.contains(&flow) {
            let waiting = self.waiting.contains(&flow);
            assert!(waiting || verdict == Verdict::Pass, "nobody is here: {verdict:?} {reason}");
        }
        self.drain();
    }

    fn tell(&mut self, event: Event) {
        self.engine.handle_event(self.now(), event);
        self.drain();
    }

    fn claim(&mut self, flow: Flow, granted: bool) {
        let before = self.sockets.get(&flow).copied();
        match self.engine.claim(self.now(), flow, granted) {
            Claim::Early => {
                assert_eq!(before, Some(true), "an early connection is a connected socket");
                self.claimed.insert(flow);
            }
            Claim::Onward(_) => {
                assert_eq!(before, None, "a middle has no socket");
                self.claimed.insert(flow);
            }
            Claim::Wait => drop(self.waiting.insert(flow)),
            Claim::Refused(_) => {}
        }
        self.drain();
    }

    fn close(&mut self, flow: Flow) {
        let opened = self.opens.get(&flow) == Some(&true);
        if opened {
            self.opens.remove(&flow);
        }
        let had = self.claimed.remove(&flow) || self.single.remove(&flow) || opened;
        if had || self.waiting.remove(&flow) {
            if self.sockets.get(&flow) == Some(&true) {
                self.sockets.remove(&flow);
            }
            self.injected.remove(&flow);
            self.tell(Event::Closed { flow });
        }
    }

    fn agent_down(&mut self) {
        self.agent = false;
        self.tell(Event::AgentDown);
        assert!(self.sockets.is_empty(), "sockets stay: {:?}", self.sockets);
        for flows in [&mut self.waiting, &mut self.claimed, &mut self.single] {
            flows.clear();
        }
        self.opens.clear();
        self.injected.clear();
    }

    fn wait(&mut self, by: Duration) {
        let until = self.at + by;
        while let Some(at) = self.engine.poll_timeout().map(|at| at.saturating_duration_since(self.start)) {
            if at > until {
                break;
            }
            self.at = self.at.max(at);
            self.engine.handle_timeout(self.now());
            assert!(
                self.engine.poll_timeout().is_none_or(|next| next > self.now().mono),
                "a timer that does not go off"
            );
            self.drain();
        }
        self.at = until;
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::InjectSyn { flow, packet } => {
                    assert!(self.injected.insert(flow), "{flow} is injected twice");
                    self.given_back(flow, &packet);
                }
                Output::ProbeSyn { flow, packet } => self.shown(flow, packet),
                Output::ReleaseSyn { flow, packet } => self.given_back(flow, &packet),
                Output::Unreachable { flow, packet, .. } => self.given_back(flow, &packet),
                Output::Connect { flow } => {
                    assert_eq!(self.sockets.insert(flow, false), None, "a second socket for {flow}");
                }
                Output::Abandon { flow, .. } => {
                    self.sockets.remove(&flow);
                    // A young claim gives way to the client's own SYN.
                    self.claimed.remove(&flow);
                }
                Output::AnswerProbe { flow, .. } | Output::AnswerByDatagram { flow, .. } => {
                    let answers = self.answers.entry(flow).or_default();
                    *answers += 1;
                    assert!(
                        *answers <= self.queries.get(&flow).copied().unwrap_or(0),
                        "answers nobody asked for"
                    );
                }
                Output::Open { flow, .. } => {
                    let before = self.opens.insert(flow, false);
                    assert_eq!(before, None, "{flow} is opened twice");
                }
                Output::Single { flow } => assert!(self.single.insert(flow), "{flow} is single twice"),
                Output::Abort { flow, .. } => {
                    let opened = self.opens.remove(&flow).is_some();
                    assert!(self.injected.remove(&flow) || opened, "nothing to abort for {flow}");
                }
                Output::ClaimReady { flow, onward } => {
                    assert!(self.waiting.remove(&flow), "nobody waits for {flow}");
                    assert_eq!(self.sockets.get(&flow).copied(), onward.is_none().then_some(true));
                    self.claimed.insert(flow);
                }
                Output::ClaimFailed { flow, .. } => {
                    assert!(self.waiting.remove(&flow), "nobody waits for {flow}")
                }
                Output::Reset { .. }
                | Output::ResetServer { .. }
                | Output::AbortOnward { .. }
                | Output::SendProbe { .. }
                | Output::Learnt(_) => {}
            }
        }
        let load = self.engine.load();
        assert!(
            load.flows <= FLOWS_MAX && load.unclaimed <= UNCLAIMED_MAX && load.held <= HELD_MAX,
            "{load:?}"
        );
        assert!(load.kept_octets <= OCTETS_MAX && load.pmt <= PMT_MAX + 1, "{load:?}");
        assert!(self.engine.recent().count() <= 5);
    }

    /// What was kept goes out with the query, as others do when they are seen, and is kept for what becomes of it.
    fn shown(&mut self, flow: Flow, packet: Vec<u8>) {
        let syns = self.syns.get_mut(&flow).expect("a SYN of this flow was seen");
        let place = syns.iter().position(|syn| *syn == packet).expect("it is one that was seen");
        syns.remove(place);
        self.shown.entry(flow).or_default().push(packet);
    }

    fn given_back(&mut self, flow: Flow, packet: &[u8]) {
        let seen = [&mut self.syns, &mut self.shown].into_iter().filter_map(|syns| syns.get_mut(&flow));
        for syns in seen {
            if let Some(place) = syns.iter().position(|syn| syn == packet) {
                syns.remove(place);
                return;
            }
        }
        panic!("{flow}: it is none that was seen, or was given back before");
    }

    /// After two minutes without anything nothing is left but what a peer has.
    fn end(&mut self) {
        self.wait(Duration::from_secs(120));
        let load = self.engine.load();
        assert_eq!((load.held, load.kept_octets, load.unclaimed), (0, 0, 0), "{load:?}");
        assert!(self.waiting.is_empty(), "claims that wait for ever: {:?}", self.waiting);
        for flow in self.sockets.keys() {
            assert!(self.claimed.contains(flow), "a socket for {flow} that nobody claimed");
        }
        assert!(
            self.opens.values().all(|opened| *opened),
            "a peer that was asked and never left: {:?}",
            self.opens
        );
        let decided: u64 = Reason::ALL.iter().map(|reason| self.engine.count(*reason)).sum();
        assert!(decided >= u64::from(self.serial));
    }
}
