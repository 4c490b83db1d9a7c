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
                State::Opening { peer, strict, unasked } if again => {
                    let unasked = unasked.map(|_| now.mono);
                    self.table.set_state(&flow, State::Opening { peer, strict, unasked });
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
        let best = self.best(now, &flow);
        match known {
            Some(Known::Static(_)) => {
                return match best {
                    Some((peer, why)) => self.hit(now, flow, seen, ingress, peer, strict, packet, why),
                    None => without(Reason::StaticPeerDown),
                };
            }
            // A peer that has seen no connection to this server yet takes none without its SYN, and that costs nothing.
            Some(Known::Peer(_))
                if !strict
                    && self.config.embodiment == Embodiment::OnSyn
                    && self.pmt.is_beside(flow.server) => {}
            Some(Known::Peer(_)) if best.is_some() => {
                if let Some((peer, why)) = best {
                    return self.hit(now, flow, seen, ingress, peer, strict, packet, why);
                }
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
        seen: &Seen,
        ingress: Ingress,
        peer: Peer,
        strict: bool,
        packet: &[u8],
        reason: Reason,
    ) -> Decision {
        // One that only a peer may carry must not be seen beyond this node.
        let askable = !strict && seen.room == Room::Fits && self.config.embodiment == Embodiment::OnSyn;
        let state = State::Opening { peer, strict, unasked: askable.then_some(now.mono) };
        let entry = table::Entry::new(state, Some(seen.seq), Some(ingress));
        self.table.insert(flow, entry, Some(now.mono + self.config.open_max), packet);
        self.table.set_asked(&flow, Some(table::Asked { since: now.mono, keys: vec![peer.key] }));
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
            // The next node has seen a SYN without the query since, and made way for it.
            State::Connecting(c) if fits(c.own_isn) && c.plain => (Verdict::Drop, Reason::LateAnswer),
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

    /// The server's own SYN-ACK.
    pub(super) fn server_answer(&mut self, now: Now, flow: Flow, seen: &Seen) -> Decision {
        let Some(entry) = self.table.get(&flow) else { return (Verdict::Pass, Reason::Stray) };
        let (state, isn) = (entry.state, entry.isn);
        // A number that somebody on the way has changed proves nothing.
        let proven = isn.is_some_and(|isn| seen.ack == isn.wrapping_add(1));
        match state {
            State::Probing { .. } => {
                if proven {
                    let row = self.nobody_there(now, flow.server);
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
}
