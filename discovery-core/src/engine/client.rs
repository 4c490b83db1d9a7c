//! The client's side: plain SYNs, what comes back for them, and what the peer says.

use super::*;
use crate::{flow::Ingress, pmt::Known, probe::Response};

impl Engine {
    /// A SYN without a query.
    pub(super) fn plain(
        &mut self,
        now: Now,
        flow: Flow,
        seen: &Seen,
        ingress: Ingress,
        action: Action,
        packet: &[u8],
    ) -> Decision {
        if let Some(entry) = self.table.get(&flow) {
            let (state, isn, first) = (entry.state, entry.isn, entry.ingress);
            let again = isn == Some(seen.seq);
            match state {
                State::Connecting(_) | State::Early { .. } | State::Middle { .. } | State::Claimed { .. } => {
                    return self.plain_for_server_side(now, flow, state);
                }
                // The kernel's own sockets know best what a SYN means for a connection that stands.
                State::Carried { .. } => return (Verdict::Pass, Reason::Carried),
                State::Probing { probes, last } if again => {
                    return self.repeated(now, flow, seen, first == Some(ingress), probes, last, packet);
                }
                State::Direct { .. } if again => {
                    self.table.set_deadline(&flow, Some(now.mono + self.config.probe_max));
                    return (Verdict::Pass, Reason::Direct);
                }
                State::Held { .. } if again => {
                    self.table.keep(&flow, packet);
                    return (Verdict::Drop, Reason::Held);
                }
                State::Opening { .. } if again => {
                    self.table.keep(&flow, packet);
                    return (Verdict::Drop, Reason::Opening);
                }
                State::Opening { .. } => {
                    self.outputs.push_back(Output::Abort { flow, why: Reason::Superseded });
                    self.forget(now, flow, Reason::Superseded);
                }
                State::Probing { .. } | State::Direct { .. } | State::Held { .. } => {
                    self.forget(now, flow, Reason::Superseded);
                }
            }
        }
        self.first(now, flow, seen, ingress, action, packet)
    }

    /// The first SYN of a connection. The first line that fits wins.
    fn first(
        &mut self,
        now: Now,
        flow: Flow,
        seen: &Seen,
        ingress: Ingress,
        action: Action,
        packet: &[u8],
    ) -> Decision {
        let strict = action == Action::DropIfNoPeer;
        // What becomes of it when no peer can be had: only the operator's own rule may keep it back.
        let without = |reason| if strict { (Verdict::Drop, Reason::NoPeer) } else { (Verdict::Pass, reason) };
        match action {
            Action::Pass => return (Verdict::Pass, Reason::RulePass),
            Action::Drop => return (Verdict::Drop, Reason::RuleDrop),
            Action::Deny => {
                let ack = Some(seen.seq.wrapping_add(1));
                self.outputs.push_back(Output::Reset { flow, seq: 0, ack });
                return (Verdict::Drop, Reason::RuleDeny);
            }
            Action::Intercept | Action::InterceptSingle | Action::DropIfNoPeer => {}
        }
        if !self.agent {
            return without(Reason::AgentDown);
        }
        if seen.room == Room::Untouchable || packet.len() > self.config.packet_octets_max {
            return without(Reason::Untouchable);
        }
        if self.goes_past(now, flow) {
            return without(Reason::Direct);
        }
        if !self.table.has_room(packet.len()) {
            return without(Reason::TableFull);
        }
        let isn = Some(seen.seq);
        if action == Action::InterceptSingle {
            let state = State::Carried { peer: None, opened: true };
            self.table.insert(flow, table::Entry::new(state, isn, Some(ingress)), None, &[]);
            self.outputs.push_back(Output::Single { flow });
            self.outputs.push_back(Output::InjectSyn { flow, packet: packet.to_vec() });
            return (Verdict::Drop, Reason::Single);
        }
        let (known, probing) = match self.pmt.lookup(now.mono, flow.server) {
            Lookup::Known(known) => (Some(known), false),
            Lookup::Probing => (None, true),
            Lookup::Unknown => (None, false),
        };
        match known {
            Some(Known::Static(peer)) if self.up.contains(&peer.key) => {
                return self.hit(now, flow, isn, ingress, peer, strict, packet, Reason::StaticHit);
            }
            Some(Known::Static(_)) => return without(Reason::StaticPeerDown),
            Some(Known::Peer(peer)) if self.up.contains(&peer.key) => {
                return self.hit(now, flow, isn, ingress, peer, strict, packet, Reason::TableHit);
            }
            Some(Known::NoProxy) => return without(Reason::NoProxy),
            Some(Known::Asymmetric) => return without(Reason::Asymmetric),
            Some(Known::OptionDropped) if !strict => return (Verdict::Pass, Reason::OptionDropped),
            // A peer without a link may have moved: ask the path.
            Some(Known::Peer(_) | Known::OptionDropped) | None => {}
        }
        let embodiment = if strict { Embodiment::Stalled } else { self.config.embodiment };
        match embodiment {
            Embodiment::OnSyn if seen.room == Room::Full => (Verdict::Pass, Reason::OptionsFull),
            Embodiment::OnSyn => {
                let before = self
                    .tried
                    .peek(&flow)
                    .filter(|(isn, _)| *isn == seen.seq)
                    .map_or(0, |(_, probes)| *probes);
                let deadline = Some(now.mono + self.config.probe_max);
                if before >= self.config.probes_max {
                    let state = State::Direct { withheld: true };
                    self.table.insert(flow, table::Entry::new(state, isn, Some(ingress)), deadline, &[]);
                    return (Verdict::Pass, Reason::ProbesUnanswered);
                }
                let state = State::Probing { probes: before + 1, last: now.mono };
                self.table.insert(flow, table::Entry::new(state, isn, Some(ingress)), deadline, packet);
                (Verdict::PassWithQuery, Reason::Probing)
            }
            Embodiment::Stalled if self.table.held() >= self.config.held_max => without(Reason::TableFull),
            Embodiment::Stalled => {
                let state = State::Held { strict };
                let deadline = Some(now.mono + self.config.stall_max);
                self.table.insert(flow, table::Entry::new(state, isn, Some(ingress)), deadline, packet);
                if !probing {
                    self.send_probe(now, flow.server);
                }
                (Verdict::Drop, Reason::Held)
            }
            Embodiment::Parallel => {
                if !probing {
                    self.send_probe(now, flow.server);
                }
                (Verdict::Pass, Reason::ProbedBeside)
            }
        }
    }

    /// The peer is known: ask it, and keep the SYN until it says yes.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call's worth of facts; a struct of them would have one user"
    )]
    fn hit(
        &mut self,
        now: Now,
        flow: Flow,
        isn: Option<u32>,
        ingress: Ingress,
        peer: Peer,
        strict: bool,
        packet: &[u8],
        reason: Reason,
    ) -> Decision {
        let entry = table::Entry::new(State::Opening { peer, strict }, isn, Some(ingress));
        self.table.insert(flow, entry, Some(now.mono + self.config.open_max), packet);
        self.outputs.push_back(Output::Open { flow, peer });
        (Verdict::Drop, reason)
    }

    /// The same SYN again, while its query is not answered.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call's worth of facts; a struct of them would have one user"
    )]
    fn repeated(
        &mut self,
        now: Now,
        flow: Flow,
        seen: &Seen,
        same_ingress: bool,
        probes: u8,
        last: Instant,
        packet: &[u8],
    ) -> Decision {
        if !same_ingress {
            return (Verdict::Pass, Reason::OtherIngress);
        }
        let gap = now.mono.saturating_duration_since(last);
        let doubled = gap <= self.config.duplicate_max;
        if !doubled && gap < self.config.quick_max {
            let reason = self.answer_went_round(now, flow, Reason::QuickRetransmit);
            return (Verdict::Pass, reason);
        }
        let fits = seen.room == Room::Fits && self.agent;
        if fits && (doubled || probes < self.config.probes_max) {
            let probes = if doubled { probes } else { probes + 1 };
            self.table.set_state(&flow, State::Probing { probes, last: now.mono });
            self.table.set_deadline(&flow, Some(now.mono + self.config.probe_max));
            self.table.keep(&flow, packet);
            return (Verdict::PassWithQuery, Reason::ProbedAgain);
        }
        self.let_go(now, flow, true);
        (Verdict::Pass, Reason::ProbesUnanswered)
    }

    /// The client refused an answer that did not come through this node: the way back is another.
    pub(super) fn answer_went_round(&mut self, now: Now, flow: Flow, why: Reason) -> Reason {
        let row = self.pmt.asymmetric(now, flow.server);
        self.outputs.push_back(Output::Learnt(row));
        self.let_go(now, flow, false);
        why
    }

    /// A probe response.
    pub(super) fn response(&mut self, now: Now, flow: Flow, seen: &Seen, response: Response) -> Decision {
        // Somebody downstream may have asked: what is not ours goes on. A client that gets it refuses it.
        let Some(entry) = self.table.get(&flow) else { return (Verdict::Pass, Reason::StrayAnswer) };
        let fits = |isn: Option<u32>| isn.is_some_and(|isn| seen.ack.wrapping_sub(isn) <= 1);
        let (state, isn) = (entry.state, entry.isn);
        match state {
            State::Probing { .. } if fits(isn) => {
                self.answered(now, flow, response);
                (Verdict::Drop, Reason::Answered)
            }
            State::Probing { .. } => (Verdict::Drop, Reason::BadAnswer),
            State::Direct { .. } => (Verdict::Drop, Reason::LateAnswer),
            State::Held { .. } | State::Opening { .. } | State::Carried { .. } => {
                (Verdict::Drop, Reason::SecondAnswer)
            }
            State::Connecting(connecting) if fits(connecting.own_isn) => {
                self.further_node(now, flow, connecting, response);
                (Verdict::Drop, Reason::Middle)
            }
            State::Connecting(_) => (Verdict::Drop, Reason::BadAnswer),
            State::Early { .. } | State::Middle { .. } | State::Claimed { .. } => {
                (Verdict::Drop, Reason::SecondAnswer)
            }
        }
    }

    /// A peer is on the path and took the query.
    fn answered(&mut self, now: Now, flow: Flow, response: Response) {
        let peer = Peer::from(response);
        self.outputs.push_back(Output::Open { flow, peer });
        let deadline = Some(now.mono + self.config.open_max);
        if response.connected && self.up.contains(&peer.key) {
            // The server has accepted and the way to the peer is proven: the client need not wait for the peer's word.
            self.inject(flow, Some(peer), false);
        } else {
            self.table.set_state(&flow, State::Opening { peer, strict: false });
        }
        self.table.set_deadline(&flow, deadline);
    }

    /// The server's own SYN-ACK.
    pub(super) fn server_answer(&mut self, now: Now, flow: Flow, seen: &Seen) -> Decision {
        let Some(entry) = self.table.get(&flow) else { return (Verdict::Pass, Reason::Stray) };
        let (state, isn) = (entry.state, entry.isn);
        // A number that somebody on the way has changed proves nothing.
        let proven = isn.is_some_and(|isn| seen.ack == isn.wrapping_add(1));
        match state {
            State::Probing { .. } => {
                if proven {
                    let row = self.pmt.learn_none(now, flow.server);
                    self.outputs.push_back(Output::Learnt(row));
                }
                self.let_go(now, flow, false);
                (Verdict::Pass, Reason::ServerAnswered)
            }
            State::Direct { withheld } => {
                self.withheld_answered(now, flow, proven && withheld);
                (Verdict::Pass, Reason::Direct)
            }
            // The answer to an own SYN is for an own socket.
            State::Carried { peer: None, .. } => (Verdict::Pass, Reason::Single),
            State::Connecting(_) | State::Early { .. } | State::Middle { .. } | State::Claimed { .. } => {
                (Verdict::Pass, Reason::ServerAnswered)
            }
            // This node answers the client, or will.
            State::Held { .. } | State::Opening { .. } | State::Carried { .. } => {
                (Verdict::Drop, Reason::Carried)
            }
        }
    }

    /// The server answered a SYN without the query after it had answered none with it.
    pub(super) fn withheld_answered(&mut self, now: Now, flow: Flow, withheld: bool) {
        if withheld {
            let row = self.pmt.option_dropped(now, flow.server);
            self.outputs.push_back(Output::Learnt(row));
            self.table.set_state(&flow, State::Direct { withheld: false });
        }
    }

    /// The peer took the connection.
    pub(super) fn opened(&mut self, now: Now, flow: Flow) {
        let Some(state) = self.table.get(&flow).map(|entry| entry.state) else { return };
        let peer = match state {
            State::Opening { peer, .. } => {
                self.inject(flow, Some(peer), true);
                peer
            }
            State::Carried { peer: Some(peer), opened: false } => {
                self.table.set_state(&flow, State::Carried { peer: Some(peer), opened: true });
                peer
            }
            State::Claimed { next: Some(next), .. } => next,
            State::Probing { .. } | State::Direct { .. } | State::Held { .. } | State::Carried { .. } => {
                return;
            }
            State::Connecting(_) | State::Early { .. } | State::Middle { .. } | State::Claimed { .. } => {
                return;
            }
        };
        self.table.set_deadline(&flow, None);
        self.journal.note(now.wall, flow, Reason::Carried);
        // Only now is it known who answers there: an option can be forged, a link cannot.
        let row = self.pmt.learn_peer(now, flow.server, peer);
        self.outputs.push_back(Output::Learnt(row));
    }

    /// The peer did not take the connection.
    pub(super) fn refused(&mut self, now: Now, flow: Flow, why: Refusal) {
        let Some(entry) = self.table.get(&flow) else { return };
        let (state, isn) = (entry.state, entry.isn.unwrap_or(0));
        match state {
            State::Opening { .. } => match why {
                Refusal::ServerRefused => {
                    self.outputs.push_back(Output::Reset { flow, seq: 0, ack: Some(isn.wrapping_add(1)) });
                    self.forget(now, flow, Reason::ServerRefused);
                }
                Refusal::ServerUnreachable(what) => {
                    let packet = self.table.take_packet(&flow).unwrap_or_default();
                    self.outputs.push_back(Output::Unreachable { flow, what, packet });
                    self.forget(now, flow, Reason::ServerUnreachable);
                }
                Refusal::ServerSilent => self.forget(now, flow, Reason::ServerSilent),
                Refusal::Peer => {
                    self.peer_failed(now, flow);
                    self.go_past(now, flow, Reason::PeerRefused);
                }
                Refusal::NoLink => {
                    self.peer_failed(now, flow);
                    self.go_past(now, flow, Reason::PeerDown);
                }
            },
            State::Carried { peer: Some(_), opened } => {
                let reason = match why {
                    Refusal::ServerRefused => Reason::ServerRefused,
                    Refusal::ServerUnreachable(_) => Reason::ServerUnreachable,
                    Refusal::ServerSilent => Reason::ServerSilent,
                    Refusal::Peer => Reason::PeerRefused,
                    Refusal::NoLink => Reason::PeerDown,
                };
                if !opened && matches!(why, Refusal::Peer | Refusal::NoLink) {
                    self.peer_failed(now, flow);
                }
                // Too late to go past: the client has this node's answer.
                self.outputs.push_back(Output::Abort { flow, why: reason });
                self.forget(now, flow, reason);
            }
            State::Probing { .. } | State::Direct { .. } | State::Held { .. } | State::Carried { .. } => {}
            State::Connecting(_) | State::Early { .. } | State::Middle { .. } | State::Claimed { .. } => {}
        }
    }

    /// A separate probe came to an end.
    pub(super) fn probed(&mut self, now: Now, server: SocketAddr, answer: Option<Peer>, otherwise: Reason) {
        let row = match answer {
            Some(peer) => self.pmt.learn_peer(now, server, peer),
            None => self.pmt.learn_none(now, server),
        };
        self.outputs.push_back(Output::Learnt(row));
        let waiting: Vec<Flow> = self
            .table
            .iter()
            .filter(|(flow, entry)| flow.server == server && matches!(entry.state, State::Held { .. }))
            .map(|(flow, _)| *flow)
            .collect();
        for flow in waiting {
            match (answer, self.table.get(&flow).map(|entry| entry.state)) {
                (Some(peer), Some(State::Held { strict })) => {
                    self.journal.note(now.wall, flow, Reason::ProbePositive);
                    self.table.set_state(&flow, State::Opening { peer, strict });
                    self.table.set_deadline(&flow, Some(now.mono + self.config.open_max));
                    self.outputs.push_back(Output::Open { flow, peer });
                }
                (_, _) => self.go_past(now, flow, otherwise),
            }
        }
    }

    /// Gives the client's SYN to this node's own stack.
    fn inject(&mut self, flow: Flow, peer: Option<Peer>, opened: bool) {
        let packet = self.table.take_packet(&flow);
        self.table.set_state(&flow, State::Carried { peer, opened });
        self.outputs.extend(packet.map(|packet| Output::InjectSyn { flow, packet }));
    }

    /// A connection whose SYN was kept back goes past this node after all; or nowhere, if the rule says so.
    pub(super) fn go_past(&mut self, now: Now, flow: Flow, why: Reason) {
        let strict = match self.table.get(&flow).map(|entry| entry.state) {
            Some(State::Held { strict } | State::Opening { strict, .. }) => strict,
            Some(_) | None => false,
        };
        self.journal.note(now.wall, flow, why);
        if strict {
            self.forget(now, flow, Reason::NoPeer);
            return;
        }
        let packet = self.table.take_packet(&flow);
        self.outputs.extend(packet.map(|packet| Output::ReleaseSyn { flow, packet }));
        self.let_go(now, flow, false);
    }

    /// From here on the connection's SYNs go past untouched.
    pub(super) fn let_go(&mut self, now: Now, flow: Flow, withheld: bool) {
        drop(self.table.take_packet(&flow));
        self.table.set_state(&flow, State::Direct { withheld });
        self.table.set_deadline(&flow, Some(now.mono + self.config.probe_max));
    }

    /// For a short time the server is reached without its peer.
    pub(super) fn peer_failed(&mut self, now: Now, flow: Flow) {
        let row = self.pmt.failed(now, flow.server);
        self.outputs.push_back(Output::Learnt(row));
    }
}
