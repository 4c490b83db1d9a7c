//! One node: an engine, the sockets that a kernel would hold, and an agent as simple as can be. What the shell has to
//! do for each output stands here in a few lines each.

use crate::{
    tcp::{Arrived, Caller, Listener, Outcome, Packet, What},
    world::{Due, World},
};
use discovery_core::{
    engine::{
        Claim, Config, ConnectFailure, Engine, Event, Hook, Kind, Output, Peer, Reason, Refusal, Room, Seen,
        Unreachable, Verdict,
    },
    flow::{Flow, Ingress},
    probe::{KeyHint, Probe, Query, Response},
    rule::Ruled,
};
use std::{collections::BTreeMap, net::SocketAddr};

/// What nodes say to each other about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Open,
    Opened,
    Refused(Refusal),
    Data,
    Echo,
    Closed,
    Abort(u32),
}

/// A flow as the agent carries it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stream {
    pub(crate) down: Option<usize>,
    pub(crate) up: Option<usize>,
    pub(crate) opened: bool,
    data: bool,
    echo: bool,
    single: bool,
}

pub(crate) struct Node {
    pub(crate) place: usize,
    pub(crate) config: Config,
    pub(crate) engine: Engine,
    pub(crate) alive: bool,
    pub(crate) agent: bool,
    /// Sockets towards clients.
    pub(crate) listener: Listener,
    /// Sockets towards servers, and the number of their newest timer.
    pub(crate) callers: BTreeMap<Flow, (Caller, u32)>,
    pub(crate) streams: BTreeMap<Flow, Stream>,
    /// Queries seen and answers forged, for each flow.
    pub(crate) queries: BTreeMap<Flow, u32>,
    pub(crate) answers: BTreeMap<Flow, u32>,
    /// When an unclaimed server connection came up (ms).
    pub(crate) early: BTreeMap<Flow, u64>,
    pub(crate) up: Vec<usize>,
}

impl Node {
    pub(crate) fn new(place: usize, config: Config) -> Self {
        Self {
            place,
            engine: Engine::new(config.clone()),
            config,
            alive: true,
            agent: true,
            listener: Listener::default(),
            callers: BTreeMap::new(),
            streams: BTreeMap::new(),
            queries: BTreeMap::new(),
            answers: BTreeMap::new(),
            early: BTreeMap::new(),
            up: Vec::new(),
        }
    }
}

pub(crate) fn peer(place: usize) -> Peer {
    let n = u8::try_from(place).unwrap();
    Peer { link: SocketAddr::from(([10, 8, 0, n], 7777)), key: KeyHint([n; 8]) }
}

fn place(peer: Peer) -> usize {
    usize::from(peer.key.0[0])
}

/// A kept SYN, as octets.
fn octets(packet: &Packet) -> Vec<u8> {
    let mut out = packet.seq.to_be_bytes().to_vec();
    out.push(u8::from(packet.probe.is_some()));
    out
}

fn of_octets(flow: Flow, octets: &[u8]) -> Packet {
    let seq = u32::from_be_bytes(octets[..4].try_into().unwrap());
    let probe = (octets[4] == 1).then_some(Probe::Query(Query));
    Packet { probe, ..Packet::new(flow, What::Syn, seq, 0) }
}

impl World {
    pub(crate) fn node(&mut self, place: usize) -> &mut Node {
        &mut self.nodes[place - 1]
    }

    pub(crate) fn wake_up(&mut self, place: usize) {
        let (now, warm, nodes) = (self.now(), self.plan.warm, self.plan.nodes);
        let alive: Vec<usize> = (1..=nodes).filter(|p| *p != place && self.nodes[p - 1].alive).collect();
        let node = self.node(place);
        (node.alive, node.agent) = (true, true);
        node.engine.handle_event(now, Event::AgentUp);
        if warm {
            for other in alive {
                self.link_stands(place, other);
                self.link_stands(other, place);
            }
        }
        self.drain(place);
    }

    pub(crate) fn link_stands(&mut self, place: usize, other: usize) {
        let now = self.now();
        let node = self.node(place);
        if node.alive && node.agent && !node.up.contains(&other) {
            node.up.push(other);
            node.engine.handle_event(now, Event::PeerUp { peer: peer(other) });
        }
    }

    pub(crate) fn event(&mut self, place: usize, event: Event) {
        let now = self.now();
        if self.node(place).alive {
            self.node(place).engine.handle_event(now, event);
            self.drain(place);
        }
    }

    pub(crate) fn wake(&mut self, place: usize) {
        let now = self.now();
        if self.node(place).alive && self.node(place).engine.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.node(place).engine.handle_timeout(now);
            let next = self.node(place).engine.poll_timeout();
            assert!(next.is_none_or(|next| next > now.mono), "a timer that does not go off");
            self.drain(place);
        }
    }

    /// A packet in the queue of a node.
    fn queued(&mut self, at: usize, hook: Hook, packet: &Packet) -> Verdict {
        let kind = match packet.what {
            What::Syn => Kind::Syn,
            What::SynAck | What::Datagram => Kind::SynAck,
            What::Rst if self.plan.resets => Kind::Rst,
            What::Ack | What::Data | What::Fin | What::Unreachable | What::Rst => return Verdict::Pass,
        };
        let from_client = match (hook, kind) {
            (Hook::Own, _) => true,
            (Hook::Forwarded(ingress), _) => ingress == Ingress(0),
        };
        let (src, dst) = if from_client {
            (packet.flow.client, packet.flow.server)
        } else {
            (packet.flow.server, packet.flow.client)
        };
        let seen = Seen {
            src,
            dst,
            hook,
            kind,
            seq: packet.seq,
            ack: packet.ack,
            probe: packet.probe,
            room: Room::Fits,
        };
        let ruled = Ruled { action: self.plan.action, rule: Some(1) };
        let now = self.now();
        let node = self.node(at);
        if kind == Kind::Syn && packet.probe.is_some() && hook != Hook::Own {
            *node.queries.entry(packet.flow).or_default() += 1;
        }
        let verdict = node.engine.handle_segment(now, &seen, ruled, &octets(packet));
        let reason = node.engine.last_reason();
        self.note(format!(
            "{at} {hook:?} {kind:?} probe {} seq {}: {reason}",
            packet.probe.is_some(),
            packet.seq
        ));
        self.drain(at);
        verdict
    }

    pub(crate) fn node_receives(&mut self, at: usize, up: bool, mut packet: Packet) {
        if self.node(at).alive {
            let ingress = Ingress(u32::from(!up));
            match self.queued(at, Hook::Forwarded(ingress), &packet) {
                Verdict::Drop => return,
                Verdict::Pass => {}
                Verdict::PassWithQuery => packet.probe = Some(Probe::Query(Query)),
            }
        }
        let flow = packet.flow;
        if up && self.node(at).listener.conns.contains_key(&flow) {
            let (says, arrived) = self.node(at).listener.receive(&packet, 0);
            says.into_iter().for_each(|says| self.send(at, false, says));
            if !self.node(at).streams.contains_key(&flow)
                && let Some(rst) = self.node(at).listener.end(flow, What::Rst)
            {
                // Accepted, and nobody knows what for.
                self.send(at, false, rst);
                return;
            }
            match arrived {
                Arrived::Nothing => {}
                Arrived::Data => self.data_from_below(at, flow),
                Arrived::Ended => self.close(at, flow, None),
            }
        } else if !up && self.node(at).callers.contains_key(&flow) {
            self.caller_receives(at, flow, &packet);
        } else {
            self.send(at, up, packet);
        }
    }

    fn caller_receives(&mut self, at: usize, flow: Flow, packet: &Packet) {
        let Some((caller, run)) = self.node(at).callers.get_mut(&flow) else { return };
        let before = (caller.connected(), caller.outcome());
        let (says, timer) = caller.receive(packet);
        let after = (caller.connected(), caller.outcome());
        if timer.is_some() {
            *run += 1;
        }
        let run = *run;
        for says in says {
            self.send(at, true, says);
        }
        if let Some(by) = timer {
            self.later(by, Due::Own { node: at, flow, run });
        }
        if !before.0 && after.0 {
            if !self.node(at).streams.contains_key(&flow) {
                let now = self.at;
                self.node(at).early.insert(flow, now);
            }
            self.event(at, Event::Connected { flow });
        }
        match after.1 {
            Some(outcome) if before.1.is_none() => self.caller_ends(at, flow, outcome),
            Some(_) | None => {}
        }
    }

    fn caller_ends(&mut self, at: usize, flow: Flow, outcome: Outcome) {
        let why = match outcome {
            Outcome::Served => {
                if let Some(stream) = self.node(at).streams.get_mut(&flow) {
                    stream.echo = true;
                    let down = stream.down;
                    self.echo_goes_down(at, flow, down);
                }
                return;
            }
            Outcome::Broken => {
                self.node(at).callers.remove(&flow);
                self.node(at).early.remove(&flow);
                self.close(at, flow, None);
                return;
            }
            Outcome::Refused => ConnectFailure::Refused,
            Outcome::Unreachable => ConnectFailure::Unreachable(Unreachable::Host),
            Outcome::TimedOut => ConnectFailure::TimedOut,
        };
        self.node(at).callers.remove(&flow);
        if self.node(at).streams.get(&flow).is_some_and(|stream| stream.single) {
            self.close(at, flow, None);
        }
        self.event(at, Event::ConnectFailed { flow, why });
    }

    pub(crate) fn own_timer(&mut self, at: usize, flow: Flow, run: u32) {
        let Some((caller, newest)) = self.node(at).callers.get_mut(&flow) else { return };
        if *newest != run {
            return;
        }
        let (packet, again) = caller.timer();
        let outcome = caller.outcome();
        if let Some(packet) = packet {
            self.own_packet(at, packet);
        }
        if let Some(by) = again {
            self.later(by, Due::Own { node: at, flow, run });
        }
        if outcome == Some(Outcome::TimedOut) {
            self.caller_ends(at, flow, Outcome::TimedOut);
        }
    }

    fn own_packet(&mut self, at: usize, mut packet: Packet) {
        if packet.what == What::Syn {
            match self.queued(at, Hook::Own, &packet) {
                Verdict::Drop => return,
                Verdict::Pass => {}
                Verdict::PassWithQuery => packet.probe = Some(Probe::Query(Query)),
            }
        }
        self.send(at, true, packet);
    }

    fn connect(&mut self, at: usize, flow: Flow, talks: bool) {
        if self.node(at).callers.contains_key(&flow) {
            self.event(at, Event::ConnectFailed { flow, why: ConnectFailure::Local });
            return;
        }
        let isn = self.number();
        let caller = Caller::new(flow, isn, talks);
        let syn = caller.syn();
        self.node(at).callers.insert(flow, (caller, 0));
        self.later(1_000, Due::Own { node: at, flow, run: 0 });
        self.own_packet(at, syn);
    }

    pub(crate) fn drain(&mut self, at: usize) {
        while let Some(output) = self.node(at).engine.poll_output() {
            if !matches!(output, Output::Learnt(_)) {
                self.note(format!("{at} {output:?}"));
            }
            self.execute(at, output);
        }
        let now = self.now();
        if let Some(next) = self.node(at).engine.poll_timeout() {
            let by = u64::try_from(next.saturating_duration_since(now.mono).as_millis()).unwrap();
            self.later(by, Due::Wake { node: at });
        }
        let load = self.node(at).engine.load();
        assert!(
            load.unclaimed <= self.node(at).config.unclaimed_max
                && load.flows <= self.node(at).config.flows_max
        );
    }

    fn execute(&mut self, at: usize, output: Output) {
        match output {
            Output::InjectSyn { flow, packet } => {
                let iss = self.number();
                let (says, _) = self.node(at).listener.receive(&of_octets(flow, &packet), iss);
                says.into_iter().for_each(|says| self.send(at, false, says));
                self.later(1_000, Due::Again { at, flow, tries: 1 });
            }
            Output::ProbeSyn { flow, packet } => {
                self.send(at, true, Packet { probe: Some(Probe::Query(Query)), ..of_octets(flow, &packet) });
            }
            Output::ReleaseSyn { flow, packet } => self.send(at, true, of_octets(flow, &packet)),
            Output::Connect { flow } => self.connect(at, flow, false),
            Output::Abandon { flow, why } => {
                self.node(at).early.remove(&flow);
                if let Some((caller, _)) = self.node(at).callers.remove(&flow)
                    && let Some(rst) = caller.abort()
                {
                    // This one reset is only lost where the client connects still. Where it is connected already to a
                    // node that died before its claim, a lost one would leave it with nobody: the decision page says so.
                    let what = if why == Reason::Cured { What::Rst } else { What::Fin };
                    self.send(at, true, Packet { what, ..rst });
                }
            }
            Output::AnswerProbe { flow, seq, ack, connected } => {
                let node = self.node(at);
                *node.answers.entry(flow).or_default() += 1;
                let (answers, queries) = (node.answers[&flow], node.queries.get(&flow).copied().unwrap_or(0));
                assert!(answers <= queries, "{answers} answers to {queries} queries of {flow}");
                let Peer { link, key } = peer(at);
                let probe = Some(Probe::Response(Response { link, key, connected }));
                self.send(at, false, Packet { probe, ..Packet::new(flow, What::SynAck, seq, ack) });
            }
            Output::AnswerByDatagram { flow, isn, connected } => {
                let Peer { link, key } = peer(at);
                let probe = Some(Probe::Response(Response { link, key, connected }));
                self.send(at, false, Packet { probe, ..Packet::new(flow, What::Datagram, 0, isn) });
            }
            Output::Reset { flow, seq, ack } => {
                self.send(at, false, Packet::new(flow, What::Rst, seq, ack.unwrap_or(0)))
            }
            Output::ResetServer { flow, seq } => self.send(at, true, Packet::new(flow, What::Rst, seq, 0)),
            Output::Unreachable { flow, .. } => {
                self.send(at, false, Packet::new(flow, What::Unreachable, 0, 0))
            }
            Output::Open { flow, peer } => {
                let stream = Stream { up: Some(place(peer)), ..Stream::default() };
                self.node(at).streams.insert(flow, stream);
                self.say(at, place(peer), flow, Link::Open);
            }
            Output::Single { flow } => {
                self.node(at)
                    .streams
                    .insert(flow, Stream { opened: true, single: true, ..Stream::default() });
                self.connect(at, flow, true);
            }
            Output::Abort { flow, .. } => {
                let stream = self.node(at).streams.remove(&flow);
                if let Some(up) = stream.and_then(|stream| stream.up) {
                    self.say(at, up, flow, Link::Closed);
                }
                if let Some(rst) = self.node(at).listener.end(flow, What::Rst) {
                    self.send(at, false, rst);
                }
            }
            Output::ClaimReady { flow, onward } => self.claim_ready(at, flow, onward),
            Output::ClaimFailed { flow, why } => {
                let why = match why {
                    Reason::ServerRefused => Refusal::ServerRefused,
                    Reason::ServerUnreachable => Refusal::ServerUnreachable(Unreachable::Host),
                    Reason::ServerSilent => Refusal::ServerSilent,
                    _ => Refusal::Peer,
                };
                if let Some(down) = self.node(at).streams.remove(&flow).and_then(|stream| stream.down) {
                    self.say(at, down, flow, Link::Refused(why));
                }
            }
            Output::AbortOnward { flow, next, isn } => self.say(at, place(next), flow, Link::Abort(isn)),
            Output::SendProbe { server, .. } => {
                let by =
                    (at + 1..=self.plan.nodes).find(|p| self.nodes[p - 1].alive && self.nodes[p - 1].agent);
                let far = by.unwrap_or(self.plan.nodes + 1);
                let delay = 2 * self.distance(at, far);
                self.later(delay, Due::Probed { node: at, server, by });
            }
            Output::Learnt(_) => {}
        }
    }

    fn claim_ready(&mut self, at: usize, flow: Flow, onward: Option<Peer>) {
        match onward {
            Some(next) => {
                if let Some(stream) = self.node(at).streams.get_mut(&flow) {
                    stream.up = Some(place(next));
                }
                self.say(at, place(next), flow, Link::Open);
            }
            None => self.serve(at, flow),
        }
    }

    fn serve(&mut self, at: usize, flow: Flow) {
        self.node(at).early.remove(&flow);
        let Some(stream) = self.node(at).streams.get_mut(&flow) else { return };
        stream.opened = true;
        let (down, data) = (stream.down, stream.data);
        if let Some(down) = down {
            self.say(at, down, flow, Link::Opened);
        }
        if data {
            self.talk(at, flow);
        }
    }

    fn say(&mut self, from: usize, to: usize, flow: Flow, message: Link) {
        let delay = self.distance(from, to);
        self.later(delay, Due::Link { to, from, flow, message });
    }

    pub(crate) fn link_receives(&mut self, to: usize, from: usize, flow: Flow, message: Link) {
        if !self.node(to).alive || !self.node(to).agent {
            if message == Link::Open {
                self.say(to, from, flow, Link::Refused(Refusal::NoLink));
            }
            return;
        }
        if !self.nodes[from - 1].alive {
            return;
        }
        self.note(format!("{to} link from {from}: {message:?} {flow}"));
        if message != Link::Refused(Refusal::NoLink) {
            self.link_stands(to, from);
            self.link_stands(from, to);
        }
        match message {
            Link::Open => self.open_asked(to, from, flow),
            Link::Opened => {
                let Some(stream) = self.node(to).streams.get_mut(&flow).filter(|s| s.up == Some(from)) else {
                    // Given up meanwhile: the peer must not keep it.
                    self.say(to, from, flow, Link::Closed);
                    return;
                };
                stream.opened = true;
                let (down, data) = (stream.down, stream.data);
                self.event(to, Event::Opened { flow });
                if let Some(down) = down {
                    self.say(to, down, flow, Link::Opened);
                }
                if data {
                    self.say(to, from, flow, Link::Data);
                }
            }
            Link::Refused(why) => {
                let Some(stream) = self.node(to).streams.get(&flow).copied().filter(|s| s.up == Some(from))
                else {
                    return;
                };
                self.node(to).streams.remove(&flow);
                match stream.down {
                    Some(down) => {
                        self.say(to, down, flow, Link::Refused(why));
                        self.event(to, Event::Closed { flow });
                    }
                    None => self.event(to, Event::Refused { flow, why }),
                }
            }
            Link::Data => self.data_from_below(to, flow),
            Link::Echo => {
                let Some(stream) = self.node(to).streams.get_mut(&flow) else { return };
                stream.echo = true;
                let down = stream.down;
                self.echo_goes_down(to, flow, down);
            }
            Link::Closed => self.close(to, flow, Some(from)),
            Link::Abort(isn) => self.event(to, Event::Aborted { flow, isn }),
        }
    }

    fn open_asked(&mut self, at: usize, from: usize, flow: Flow) {
        if self.plan.refuses == Some(at) {
            self.say(at, from, flow, Link::Refused(Refusal::Peer));
            return;
        }
        let (now, granted) = (self.now(), self.plan.granted);
        let claim = self.node(at).engine.claim(now, flow, granted);
        self.note(format!("{at} {claim:?}"));
        if let Claim::Refused(_) = claim {
            self.say(at, from, flow, Link::Refused(Refusal::Peer));
        } else {
            self.node(at).early.remove(&flow);
            self.node(at).streams.insert(flow, Stream { down: Some(from), ..Stream::default() });
            match claim {
                Claim::Early => self.serve(at, flow),
                Claim::Onward(next) => self.claim_ready(at, flow, Some(next)),
                Claim::Wait | Claim::Refused(_) => {}
            }
        }
        self.drain(at);
    }

    fn data_from_below(&mut self, at: usize, flow: Flow) {
        let Some(stream) = self.node(at).streams.get_mut(&flow) else { return };
        stream.data = true;
        let (opened, echo, up, down) = (stream.opened, stream.echo, stream.up, stream.down);
        if echo {
            self.echo_goes_down(at, flow, down);
        } else if opened {
            match up {
                Some(up) => self.say(at, up, flow, Link::Data),
                None => self.talk(at, flow),
            }
        }
    }

    fn talk(&mut self, at: usize, flow: Flow) {
        let Some((caller, run)) = self.node(at).callers.get_mut(&flow) else { return };
        caller.talks = true;
        *run += 1;
        let (data, run) = (caller.data(), *run);
        if let Some(data) = data {
            self.send(at, true, data);
        }
        self.later(300, Due::Own { node: at, flow, run });
    }

    fn echo_goes_down(&mut self, at: usize, flow: Flow, down: Option<usize>) {
        match down {
            Some(down) => self.say(at, down, flow, Link::Echo),
            None => {
                if let Some(echo) = self.node(at).listener.echo(flow) {
                    self.send(at, false, echo);
                }
            }
        }
    }

    /// The flow ends here: every side of it that is not where the end came from is told.
    pub(crate) fn close(&mut self, at: usize, flow: Flow, from: Option<usize>) {
        let stream = self.node(at).streams.remove(&flow).unwrap_or_default();
        for other in [stream.up, stream.down].into_iter().flatten().filter(|other| Some(*other) != from) {
            self.say(at, other, flow, Link::Closed);
        }
        self.node(at).early.remove(&flow);
        if let Some((caller, _)) = self.node(at).callers.remove(&flow)
            && let Some(rst) = caller.abort()
        {
            // With a FIN, which is repeated: nobody would answer for a transparent socket whose one reset was lost.
            self.send(at, true, Packet { what: What::Fin, ..rst });
        }
        if let Some(rst) = self.node(at).listener.end(flow, What::Rst) {
            self.send(at, false, rst);
        }
        self.event(at, Event::Closed { flow });
    }

    pub(crate) fn probe_ends(&mut self, at: usize, server: SocketAddr, by: Option<usize>) {
        let answer = by.map(|by| {
            let Peer { link, key } = peer(by);
            Response { link, key, connected: false }
        });
        self.event(at, Event::Probed { server, answer });
    }
}
