//! The interception engine (US 9,172,620, from 'The proxies in a proxy pair can become aware' on): what becomes of
//! every SYN, SYN-ACK and reset that a node sees, and what the node does about it.
//!
//! Facts come in ([`Engine::handle_segment`], [`Engine::handle_event`], [`Engine::claim`]), orders go out
//! ([`Engine::poll_output`]); the engine knows no packet formats, sockets or links. It keeps the original SYN of a
//! connection only to give it to this node's own stack, or to send it on when that turns out to be better. A role is
//! a property of a flow, never of a node:
//!
//! ```text
//! client's side                                        server's side
//!   SYN ─► Probing ─answer─► Opening ─opened─► Carried   SYN+query ─► Connecting ─► Early ─claim─► Claimed
//!             │                 │ refused                    own SYN answered by a node ─► Middle ─claim─┘
//!             └─► Direct ◄──────┘                        nobody claims, or a plain SYN: abandoned
//! ```
//!
//! What a shell does, for a client's SYN that a peer answers:
//!
//! ```
//! use discovery_core::{engine::*, flow::Ingress, now::*, probe::*, rule::*};
//! # use std::time::Instant;
//! # let now = Now { mono: Instant::now(), wall: UnixMillis(0) };
//! # let (client, server) = ("10.1.0.2:40000".parse().unwrap(), "10.2.0.2:143".parse().unwrap());
//! let mut engine = Engine::new(Config::default());
//! engine.handle_event(now, Event::AgentUp);
//! // A packet from the queue, parsed; what the rules say; its octets.
//! let syn = Seen {
//!     src: client, dst: server, hook: Hook::Forwarded(Ingress(1)), kind: Kind::Syn, seq: 7, ack: 0, probe: None, room: Room::Fits,
//! };
//! let ruled = Ruled { action: Action::Intercept, rule: Some(1) };
//! assert_eq!(engine.handle_segment(now, &syn, ruled, b"the SYN"), Verdict::PassWithQuery);
//! // The forged SYN-ACK of a server's node, which is kept from the client.
//! let response = Response { link: "10.8.0.2:7777".parse().unwrap(), key: KeyHint([2; 8]), connected: true };
//! let answer = Seen { src: server, dst: client, kind: Kind::SynAck, seq: 1, ack: 7, probe: Some(Probe::Response(response)), ..syn };
//! assert_eq!(engine.handle_segment(now, &answer, ruled, b"the SYN-ACK"), Verdict::Drop);
//! let Some(Output::Open { flow, peer }) = engine.poll_output() else { panic!() };
//! // The link stands, and the peer takes the flow.
//! engine.handle_event(now, Event::PeerUp { peer });
//! engine.handle_event(now, Event::Opened { flow });
//! assert_eq!(engine.poll_output(), Some(Output::InjectSyn { flow, packet: b"the SYN".to_vec() }));
//! ```
//!
//! Two promises shape everything: a fault of this node or of its peers never keeps a client from its server, and
//! every table is bounded, where 'full' means that what is new goes past untouched.

mod choice;
mod client;
mod config;
mod datagrams;
mod endings;
mod existing;
mod journal;
mod limits;
mod opening;
mod peers;
mod server;
mod table;
mod words;

pub use crate::reason::Reason;
pub use choice::{KnownBy, Offer, Ranked, Told};
pub use config::{AckVariant, Answering, Config, Embodiment};
pub use existing::{Adopter, Course, Existing, Midstream};
pub use journal::Decided;
pub use table::FlowRow;
pub use words::{
    Claim, ConnectFailure, Event, Hook, Kind, Output, Peer, Refusal, Room, Seen, Unreachable, Verdict,
};

use crate::{
    datagram::Datagrams,
    flow::Flow,
    lru::Lru,
    now::Now,
    pmt::{Lookup, Pmt, PmtRow, Prefix},
    probe::{KeyHint, Probe},
    rule::{Action, Ruled},
};
use journal::Journal;
use limits::Places;
use peers::Peers;
use std::{collections::VecDeque, net::SocketAddr, time::Instant};
use table::{State, Table};

/// One node's engine.
#[derive(Clone, Debug)]
pub struct Engine {
    config: Config,
    pmt: Pmt,
    table: Table,
    places: Places,
    /// SYNs with a query that were seen, until when they entitle a peer, and whether their connection went past us.
    seen: Lru<Flow, SeenSyn>,
    /// SYNs whose queries nobody answered: their numbers, and how many. A client that doubles its timer repeats its SYN
    /// long after its entry in the table is gone, and must not lose every one to a firewall that drops options.
    tried: Lru<Flow, (u32, u8)>,
    /// Peers to which an authenticated link stands or stood, by key: one node may be reached at several addresses.
    peers: Peers,
    /// Until when a peer is passed over for a server that it has refused.
    refusals: Lru<(KeyHint, SocketAddr), Instant>,
    /// Of whom each peer has told that they serve as well as itself.
    told: Lru<KeyHint, Told>,
    /// Connections from before that were reset, and how often.
    resets: Lru<Flow, u8>,
    pace: existing::Pace,
    /// Clients' networks whose way takes options out of what comes back, until when that is believed.
    stripped: Lru<Prefix, Instant>,
    datagrams: Datagrams,
    journal: Journal,
    outputs: VecDeque<Output>,
    agent: bool,
    bypass: bool,
    /// Until when what was missed while this node stood still may be heard.
    heard_out: Option<Instant>,
    last: Reason,
}

#[derive(Clone, Copy, Debug)]
struct SeenSyn {
    until: Instant,
    /// Its connection goes past this node: a claim comes too late.
    past: bool,
}

/// What is done with a packet, and why.
type Decision = (Verdict, Reason);

impl Engine {
    /// An engine that knows nothing and passes everything until [`Event::AgentUp`].
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            pmt: Pmt::new(config.pmt.clone()),
            table: Table::new(config.flows_max, config.kept_octets_max),
            places: Places::new(config.networks_max, config.unclaimed_network_max, config.orphan_penance),
            seen: Lru::new(config.seen_entries_max),
            tried: Lru::new(config.tried_entries_max),
            resets: Lru::new(config.tried_entries_max),
            pace: existing::Pace::new(),
            stripped: Lru::new(config.networks_max),
            datagrams: Datagrams::new(config.datagram_flows_max, config.datagram_idle_max),
            peers: Peers::new(config.peers(), config.named()),
            refusals: Lru::new(config.refusals_max),
            told: Lru::new(config.peers_max),
            journal: Journal::new(config.recent_max),
            outputs: VecDeque::new(),
            agent: false,
            bypass: false,
            heard_out: None,
            last: Reason::Stray,
            config,
        }
    }

    /// Decides about one packet. `ruled` is what the rules say about its flow; `packet` are its octets from the IP
    /// header on, as they came. Drain [`Engine::poll_output`] afterwards.
    pub fn handle_segment(&mut self, now: Now, seen: &Seen, ruled: Ruled, packet: &[u8]) -> Verdict {
        let (flow, (verdict, reason)) = match seen.kind {
            Kind::Syn => {
                let flow = Flow { client: seen.src, server: seen.dst };
                let decision = match seen.hook {
                    Hook::Own => self.own_syn(now, flow, seen),
                    Hook::Forwarded(_) if self.is_own_syn(&flow, seen.seq) => {
                        (Verdict::Pass, Reason::OwnSynBack)
                    }
                    Hook::Forwarded(_) if self.bypass => self.bypassed(now, flow),
                    Hook::Forwarded(ingress) => match seen.probe {
                        Some(Probe::Query(_)) => self.query(now, flow, seen, ingress, ruled.action, packet),
                        Some(Probe::Response(_)) | None => {
                            self.plain(now, flow, seen, ingress, ruled.action, packet)
                        }
                    },
                };
                (flow, decision)
            }
            Kind::SynAck => {
                let flow = Flow { client: seen.dst, server: seen.src };
                let decision = match seen.probe {
                    Some(Probe::Response(response)) => self.response(now, flow, seen, response),
                    Some(Probe::Query(_)) | None => self.server_answer(now, flow, seen),
                };
                (flow, decision)
            }
            Kind::Rst => self.reset_seen(now, seen),
        };
        self.last = reason;
        self.journal.note(now.wall, flow, reason);
        verdict
    }

    /// Takes note of what happened. Drain [`Engine::poll_output`] afterwards.
    pub fn handle_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Connected { flow } => self.connected(now, flow),
            Event::ConnectFailed { flow, why } => self.connect_failed(now, flow, why),
            Event::Opened { flow } => self.opened(now, flow),
            Event::Refused { flow, why } => self.refused(now, flow, why),
            Event::Aborted { flow, isn } => self.aborted(now, flow, isn),
            Event::Closed { flow } => self.closed(now, flow),
            Event::Probed { server, answer } => {
                self.probed(now, server, answer.map(Peer::from), Reason::ProbeNegative);
            }
            Event::PeerUp { peer } => {
                self.peers.linked(now.mono, peer.key, true);
            }
            Event::PeerAside { peer, aside } => {
                if self.peers.aside(now.mono, peer.key, aside) {
                    self.doubt(now);
                }
            }
            Event::PeerDown { peer } => {
                if self.peers.linked(now.mono, peer.key, false) {
                    self.doubt(now);
                }
                let waiting = self.table.flows(
                    |e| matches!(e.state, State::Opening { peer: asked, .. } if asked.key == peer.key),
                );
                for flow in waiting {
                    self.outputs.push_back(Output::Abort { flow, why: Reason::PeerDown });
                    if !self.ask_next(now, flow) && !self.ask_after_all(now, flow) {
                        self.go_past(now, flow, Reason::PeerDown);
                    }
                }
            }
            Event::AgentUp => self.agent = true,
            Event::AgentDown => {
                self.agent = false;
                self.peers.clear();
                self.stand_aside(now, Reason::AgentDown);
            }
            Event::Bypass { on } => {
                self.bypass = on;
                if on {
                    self.stand_aside(now, Reason::Bypass);
                }
            }
        }
    }

    /// How many connections peers were promised and have not claimed yet.
    #[must_use]
    pub fn unclaimed(&self) -> usize {
        self.table.unclaimed()
    }

    /// Does what is due. Drain [`Engine::poll_output`] afterwards.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.hears_out(now.mono) {
            return;
        }
        while let Some(flow) = self.table.take_due(now.mono) {
            self.timed_out(now, flow);
        }
        while let Some(server) = self.pmt.take_refresh(now.mono) {
            if self.agent && !self.bypass {
                self.send_probe(now, server);
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Engine::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.table.next_deadline(), self.pmt.next_refresh()].into_iter().flatten().min();
        due.map(|due| self.heard_out.map_or(due, |until| until.max(due)))
    }

    /// Why the last packet was treated as it was.
    #[must_use]
    pub fn last_reason(&self) -> Reason {
        self.last
    }

    /// What would become of a packet, without anything becoming of it.
    #[must_use]
    pub fn explain(&self, now: Now, seen: &Seen, ruled: Ruled) -> (Verdict, Reason) {
        let mut dry = self.clone();
        let verdict = dry.handle_segment(now, seen, ruled, &[0]);
        (verdict, dry.last)
    }

    /// How often something was decided for this reason.
    #[must_use]
    pub fn count(&self, reason: Reason) -> u64 {
        self.journal.count(reason)
    }

    /// The latest decisions, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Decided> {
        self.journal.recent()
    }

    /// The connections that the engine has something to do with.
    pub fn flows(&self) -> impl Iterator<Item = FlowRow> {
        self.table.iter().map(|(flow, entry)| FlowRow::of(*flow, &entry.state))
    }

    /// The proxy mapping table as rows.
    #[must_use]
    pub fn pmt_rows(&self, now: Now) -> Vec<PmtRow> {
        self.pmt.rows(now)
    }

    /// Takes back what an earlier process knew.
    pub fn restore_pmt(&mut self, now: Now, rows: &[PmtRow]) {
        self.pmt.restore(now, rows);
    }

    /// How much is held now.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            flows: self.table.len(),
            kept_octets: self.table.octets(),
            held: self.table.held(),
            unclaimed: self.table.unclaimed(),
            pmt: self.pmt.len(),
        }
    }

    /// Whether nothing is concluded from silence for now. A node that was stopped, or had no turn for long, finds its timers
    /// run out before it has read what came meanwhile: it was this node that was silent.
    fn hears_out(&mut self, now: Instant) -> bool {
        let missed = self.table.next_deadline().filter(|due| now > *due + self.config.late_max);
        // Once for each time that it stood still: on a machine that is always late everything still ends.
        if missed.is_some_and(|due| self.heard_out.is_none_or(|until| due > until))
            && !crate::mutants::on("engine-own-silence-blamed")
        {
            self.heard_out = Some(now + self.config.hear_out);
        }
        self.heard_out.is_some_and(|until| now < until)
    }

    fn reset_seen(&mut self, now: Now, seen: &Seen) -> (Flow, Decision) {
        let from_client = Flow { client: seen.src, server: seen.dst };
        if let Some(entry) = self.table.get(&from_client) {
            let refused_answer = entry.isn == Some(seen.seq);
            let reason = match entry.state {
                State::Probing { .. } if refused_answer => {
                    self.answer_went_round(now, from_client, Reason::ClientReset)
                }
                // It refuses the server's answer to this node's own SYN, which should have come here.
                State::Connecting(c)
                    if c.own_isn.is_some_and(|own| seen.seq == own.wrapping_add(1)) && !c.claimed =>
                {
                    let row = self.pmt.asymmetric(now, from_client.server);
                    self.outputs.push_back(Output::Learnt(row));
                    self.give_up(now, from_client, Reason::Asymmetric);
                    self.went_past(now, from_client);
                    Reason::ClientReset
                }
                State::Early { .. } | State::Middle { .. } if refused_answer => {
                    self.option_lost(now, from_client);
                    self.give_up(now, from_client, Reason::ClientRejected);
                    self.went_past(now, from_client);
                    Reason::ClientRejected
                }
                State::Probing { .. } | State::Direct { .. } | State::Held { .. } | State::Opening { .. } => {
                    Reason::Stray
                }
                State::Early { .. } | State::Middle { .. } | State::Connecting(_) => Reason::Stray,
                State::Carried { .. } | State::Claimed { .. } => Reason::Carried,
            };
            return (from_client, (Verdict::Pass, reason));
        }
        let from_server = Flow { client: seen.dst, server: seen.src };
        let reason = match self.table.get(&from_server) {
            Some(entry) if entry.isn.is_some_and(|isn| seen.ack == isn.wrapping_add(1)) => {
                match entry.state {
                    State::Probing { .. } => {
                        self.table.remove(&from_server);
                        Reason::ServerReset
                    }
                    State::Direct { withheld } => {
                        self.withheld_answered(now, from_server, withheld);
                        Reason::ServerReset
                    }
                    State::Held { .. } | State::Opening { .. } | State::Carried { .. } => Reason::Stray,
                    State::Connecting(_)
                    | State::Early { .. }
                    | State::Middle { .. }
                    | State::Claimed { .. } => Reason::Stray,
                }
            }
            Some(_) | None => Reason::Stray,
        };
        (from_server, (Verdict::Pass, reason))
    }

    fn is_own_syn(&self, flow: &Flow, seq: u32) -> bool {
        self.table.get(flow).is_some_and(|entry| entry.state.own_isn() == Some(seq))
    }

    fn client_network(&self, flow: &Flow) -> Prefix {
        Prefix::around(flow.client.ip(), self.config.network_v4_bits, self.config.network_v6_bits)
    }

    fn send_probe(&mut self, now: Now, server: SocketAddr) {
        self.pmt.probing(now.mono, server, now.mono + self.config.stall_max);
        let to = SocketAddr::new(server.ip(), self.config.probe_port);
        self.outputs.push_back(Output::SendProbe { server, to });
    }
}

/// How much an engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections.
    pub flows: usize,
    /// Octets of kept SYNs.
    pub kept_octets: usize,
    /// SYNs that wait for separate probes.
    pub held: usize,
    /// Early connections that nobody claimed.
    pub unclaimed: usize,
    /// Entries of the proxy mapping table.
    pub pmt: usize,
}

#[cfg(test)]
mod tests;
