//! The server's side and the middle: queries, own connects, answers, the cure, and what peers claim.

use super::*;
use crate::{flow::Ingress, pmt::Known, probe::Response};
use table::{Connecting, Entry};

impl Engine {
    /// A SYN with a query.
    pub(super) fn query(
        &mut self,
        now: Now,
        flow: Flow,
        seen: &Seen,
        ingress: Ingress,
        action: Action,
        packet: &[u8],
    ) -> Decision {
        if let Some(entry) = self.table.get(&flow) {
            let (state, again) = (entry.state, entry.isn == Some(seen.seq));
            match state {
                State::Probing { .. } if again => return (Verdict::Pass, Reason::OwnQueryBack),
                // A node downstream has woken up and asks: the answer will be for it, and passes as its query does.
                State::Direct { .. } if again => {
                    self.table.remove(&flow);
                    self.went_past(now, flow);
                    return (Verdict::Pass, Reason::Direct);
                }
                State::Held { .. } | State::Opening { .. } if again => {
                    return (Verdict::Drop, Reason::Opening);
                }
                State::Carried { .. } => return (Verdict::Pass, Reason::Carried),
                State::Connecting(_) if again => return (Verdict::Drop, Reason::Connecting),
                State::Early { .. } if again => {
                    self.answer(now, flow, seen.seq, true);
                    return (Verdict::Drop, Reason::AnsweredAgain);
                }
                State::Middle { connected, .. } if again => {
                    self.answer(now, flow, seen.seq, connected);
                    return (Verdict::Drop, Reason::AnsweredAgain);
                }
                // Its node asks, so it lives: what a peer has is not given up for a SYN, which anybody can send.
                State::Claimed { .. } => return (Verdict::Drop, Reason::TupleInUse),
                State::Connecting(connecting) if connecting.claimed => {
                    return (Verdict::Drop, Reason::Connecting);
                }
                State::Connecting(_) | State::Early { .. } | State::Middle { .. } => {
                    self.give_up(now, flow, Reason::Superseded);
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
        match action {
            Action::Pass => return (Verdict::Pass, Reason::RulePass),
            Action::Drop => return (Verdict::Drop, Reason::RuleDrop),
            // Terminated here without a peer, or denied: the query changes nothing.
            Action::Deny | Action::InterceptSingle => {
                return self.plain(now, flow, seen, ingress, action, packet);
            }
            Action::Intercept | Action::DropIfNoPeer => {}
        }
        if !self.agent {
            return (Verdict::Pass, Reason::AgentDown);
        }
        if seen.room == Room::Untouchable || packet.len() > self.config.packet_octets_max {
            return (Verdict::Pass, Reason::Untouchable);
        }
        if flow.server.port() == self.config.probe_port {
            // A separate probe asks for this node, not for the server behind it.
            self.answer(now, flow, seen.seq, false);
            return (Verdict::Drop, Reason::AnsweredSeparate);
        }
        if self.pmt.lookup(now.mono, flow.server) == Lookup::Known(Known::Asymmetric) {
            return (Verdict::Pass, Reason::Asymmetric);
        }
        if !self.table.has_room(packet.len()) {
            return (Verdict::Pass, Reason::TableFull);
        }
        if self.goes_past(now, flow) {
            return (Verdict::Pass, Reason::Direct);
        }
        self.seen.insert(flow, SeenSyn { until: now.mono + self.config.seen_max, past: false });
        let network = self.client_network(&flow);
        if self.table.unclaimed() >= self.config.unclaimed_max || !self.places.take(now.mono, network) {
            self.went_past(now, flow);
            return (Verdict::Pass, Reason::ProbeLimit);
        }
        self.connect(now, flow, Some(seen.seq), Some(ingress), false, packet);
        (Verdict::Drop, Reason::EarlyConnect)
    }

    /// A plain SYN between the addresses and ports of a connection on the server's side.
    pub(super) fn plain_for_server_side(&mut self, now: Now, flow: Flow, state: State) -> Decision {
        if !state.unclaimed() && !self.is_young(&flow) {
            // The client's node is alive and holds the client's SYNs back; this one is a late one, or spoofed.
            return (Verdict::Drop, Reason::TupleInUse);
        }
        // The cure. The client's SYN comes without its node, which died or lost the answer. An early connection in
        // its way would hang it: the server would see a SYN of a connection that stands. Whether the SYN is the one
        // the query was on cannot be asked of a node behind a middle, whose query bore the middle's number; an
        // unclaimed connection is worth nothing, so the addresses and ports are enough. Nor is one that was claimed a
        // moment ago: a client's node that lives lets no SYN of it come here.
        if let State::Connecting(Connecting { probes: 1.., plain: false, claimed: false, .. }) = state {
            let row = self.pmt.option_suspect(now, flow.server);
            self.outputs.extend(row.map(Output::Learnt));
        }
        if matches!(state, State::Connecting(Connecting { claimed: true, .. })) {
            self.outputs.push_back(Output::ClaimFailed { flow, why: Reason::Cured });
        }
        self.give_up(now, flow, Reason::Cured);
        self.went_past(now, flow);
        (Verdict::Pass, Reason::Cured)
    }

    /// A SYN that nobody takes over. What was promised to a peer is in its way no longer.
    pub(super) fn bypassed(&mut self, now: Now, flow: Flow) -> Decision {
        match self.table.get(&flow).map(|entry| entry.state) {
            Some(state) if state.unclaimed() => self.plain_for_server_side(now, flow, state),
            Some(_) | None => (Verdict::Pass, Reason::Bypass),
        }
    }

    /// Whether a claimed connection is so new that its client may never have heard of it.
    fn is_young(&self, flow: &Flow) -> bool {
        !crate::mutants::on("engine-young-claim-kept")
            && self.table.get(flow).is_some_and(|entry| match entry.state {
                // The server has not answered: nobody has anything of it.
                State::Connecting(_) => true,
                // Its deadline is the end of its youth.
                State::Claimed { .. } => entry.deadline.is_some(),
                State::Probing { .. } | State::Direct { .. } | State::Held { .. } => false,
                State::Opening { .. } | State::Carried { .. } => false,
                State::Early { .. } | State::Middle { .. } => false,
            })
    }

    /// A SYN of an own connect leaves this node.
    pub(super) fn own_syn(&mut self, now: Now, flow: Flow, seen: &Seen) -> Decision {
        let Some(State::Connecting(mut connecting)) = self.table.get(&flow).map(|entry| entry.state) else {
            return (Verdict::Pass, Reason::OwnSynPlain);
        };
        connecting.own_isn = Some(seen.seq);
        let worth = match self.pmt.lookup(now.mono, flow.server) {
            Lookup::Known(Known::NoProxy | Known::Asymmetric | Known::OptionDropped) => false,
            Lookup::Known(Known::Peer(_) | Known::Static(_)) | Lookup::Probing | Lookup::Unknown => true,
        };
        let ask = worth && self.agent && seen.room == Room::Fits;
        let enough = connecting.probes >= self.config.probes_max;
        let decision = match (ask, enough) {
            (true, false) => (Verdict::PassWithQuery, Reason::OwnSynProbed),
            // The client's own SYN comes without a query by now, and one of the two only must reach the server.
            (true, true) if !connecting.claimed => (Verdict::Drop, Reason::OwnSynWithheld),
            (true, true) | (false, _) => (Verdict::Pass, Reason::OwnSynPlain),
        };
        match decision.0 {
            Verdict::PassWithQuery => connecting.probes = connecting.probes.saturating_add(1),
            Verdict::Pass => connecting.plain = true,
            Verdict::Drop => {}
        }
        self.table.set_state(&flow, State::Connecting(connecting));
        decision
    }

    /// The server accepted.
    pub(super) fn connected(&mut self, now: Now, flow: Flow) {
        let Some(entry) = self.table.get(&flow) else {
            // Given up meanwhile; its socket must not stay.
            self.outputs.push_back(Output::Abandon { flow, why: Reason::Closed });
            return;
        };
        let (state, isn) = (entry.state, entry.isn);
        let State::Connecting(connecting) = state else { return };
        let row = match connecting {
            Connecting { probes: 0, .. } => None,
            Connecting { plain: false, .. } => Some(self.nobody_there(now, flow.server)),
            Connecting { .. } => self.pmt.option_suspect(now, flow.server),
        };
        self.outputs.extend(row.map(Output::Learnt));
        drop(self.table.take_packet(&flow));
        let own_isn = connecting.own_isn;
        if connecting.claimed {
            self.table.set_state(&flow, State::Claimed { own_isn, next: None });
            self.table.set_deadline(&flow, Some(now.mono + self.config.claim_young_max));
            self.outputs.push_back(Output::ClaimReady { flow, onward: None });
            self.journal.note(now.wall, flow, Reason::Claimed);
            return;
        }
        self.table.set_state(&flow, State::Early { own_isn });
        self.table.set_deadline(&flow, Some(now.mono + self.config.orphan_after()));
        self.journal.note(now.wall, flow, Reason::AnsweredProbe);
        if let Some(isn) = isn {
            self.answer(now, flow, isn, true);
        }
    }

    /// The server did not accept. The client is told what the network told this node.
    pub(super) fn connect_failed(&mut self, now: Now, flow: Flow, why: ConnectFailure) {
        let Some(entry) = self.table.get(&flow) else { return };
        let (state, isn) = (entry.state, entry.isn.unwrap_or(0));
        let State::Connecting(connecting) = state else { return };
        let reason = match why {
            ConnectFailure::Refused => Reason::ServerRefused,
            ConnectFailure::Unreachable(_) => Reason::ServerUnreachable,
            ConnectFailure::TimedOut => Reason::ServerSilent,
            ConnectFailure::Local => Reason::LocalFailure,
        };
        let packet = self.table.take_packet(&flow);
        let network = self.client_network(&flow);
        if connecting.claimed {
            self.outputs.push_back(Output::ClaimFailed { flow, why: reason });
        } else {
            match (why, packet) {
                (ConnectFailure::Refused, _) => {
                    self.places.give_back(network);
                    self.outputs.push_back(Output::Reset { flow, seq: 0, ack: Some(isn.wrapping_add(1)) });
                }
                (ConnectFailure::Unreachable(what), Some(packet)) => {
                    self.outputs.push_back(Output::Unreachable { flow, what, packet });
                }
                // A want of this node's own is no reason to keep the client waiting.
                (ConnectFailure::Local, Some(packet)) => {
                    self.places.give_back(network);
                    self.outputs.push_back(Output::ReleaseSyn { flow, packet });
                    self.went_past(now, flow);
                }
                // Another try would fare no better; the client's own SYN may.
                (ConnectFailure::TimedOut, _) => self.went_past(now, flow),
                (ConnectFailure::Unreachable(_) | ConnectFailure::Local, None) => {}
            }
        }
        self.forget(now, flow, reason);
    }

    /// A further node answered this node's own SYN: this one is in the middle, and its socket is not needed.
    pub(super) fn further_node(&mut self, now: Now, flow: Flow, connecting: Connecting, response: Response) {
        let next = Peer::from(response);
        self.outputs.push_back(Output::Abandon { flow, why: Reason::Middle });
        drop(self.table.take_packet(&flow));
        let own_isn = connecting.own_isn;
        if connecting.claimed {
            self.table.set_state(&flow, State::Claimed { own_isn, next: Some(next) });
            self.table.set_deadline(&flow, Some(now.mono + self.config.claim_young_max));
            self.outputs.push_back(Output::ClaimReady { flow, onward: Some(next) });
            return;
        }
        // Downstream may only rely on what can be kept: the server has accepted, and the way to the next node stands.
        let connected = response.connected && self.peers.is_up(&next.key);
        self.table.set_state(&flow, State::Middle { next, connected, own_isn });
        self.table.set_deadline(&flow, Some(now.mono + self.config.orphan_after()));
        if let Some(isn) = self.table.get(&flow).and_then(|entry| entry.isn) {
            self.answer(now, flow, isn, connected);
        }
    }

    /// A peer wants to carry `flow`. `granted`: it may ask for this server even if its SYN was not seen here.
    pub fn claim(&mut self, now: Now, flow: Flow, granted: bool) -> Claim {
        let claim = self.claimed(now, flow, granted);
        let reason = match claim {
            Claim::Early | Claim::Onward(_) | Claim::Wait => Reason::Claimed,
            Claim::Refused(reason) => reason,
        };
        self.journal.note(now.wall, flow, reason);
        claim
    }

    fn claimed(&mut self, now: Now, flow: Flow, granted: bool) -> Claim {
        if !self.agent {
            return Claim::Refused(Reason::AgentDown);
        }
        let promised = |entry: &Entry| matches!(entry.state, State::Early { .. } | State::Middle { .. });
        if self.bypass && !self.table.get(&flow).is_some_and(promised) {
            return Claim::Refused(Reason::Bypass);
        }
        if let Some(state) = self.table.get(&flow).map(|entry| entry.state) {
            let network = self.client_network(&flow);
            let (state, claim) = match state {
                State::Early { own_isn } => (State::Claimed { own_isn, next: None }, Claim::Early),
                State::Middle { next, own_isn, .. } => {
                    (State::Claimed { own_isn, next: Some(next) }, Claim::Onward(next))
                }
                State::Connecting(connecting) if !connecting.claimed => {
                    (State::Connecting(Connecting { claimed: true, ..connecting }), Claim::Wait)
                }
                State::Connecting(_) | State::Claimed { .. } => {
                    return Claim::Refused(Reason::AlreadyClaimed);
                }
                // This node is the client's, or lets the connection go past.
                State::Direct { .. } => return Claim::Refused(Reason::Direct),
                State::Probing { .. }
                | State::Held { .. }
                | State::Opening { .. }
                | State::Carried { .. } => {
                    return Claim::Refused(Reason::TupleInUse);
                }
            };
            self.table.set_state(&flow, state);
            let patience = match claim {
                Claim::Wait => self.config.connect_max,
                Claim::Early | Claim::Onward(_) | Claim::Refused(_) => self.config.claim_young_max,
            };
            self.table.set_deadline(&flow, Some(now.mono + patience));
            self.places.give_back(network);
            return claim;
        }
        match self.seen.peek(&flow).filter(|seen| seen.until > now.mono) {
            Some(seen) if seen.past => return Claim::Refused(Reason::Direct),
            Some(_) => {}
            None if granted => {}
            None => return Claim::Refused(Reason::NotGranted),
        }
        if !self.table.has_room(0) {
            return Claim::Refused(Reason::TableFull);
        }
        self.connect(now, flow, None, None, true, &[]);
        Claim::Wait
    }

    /// The downstream node gives up what this one answered.
    pub(super) fn aborted(&mut self, now: Now, flow: Flow, isn: u32) {
        if self.table.get(&flow).is_some_and(|entry| entry.state.unclaimed() && entry.isn == Some(isn)) {
            self.give_up(now, flow, Reason::AbortedByPeer);
        }
    }

    /// Nobody claimed the early connection in time.
    pub(super) fn orphaned(&mut self, now: Now, flow: Flow) {
        let Some(entry) = self.table.get(&flow) else { return };
        let isn = entry.isn;
        self.give_up(now, flow, Reason::Orphan);
        if self.datagram_lost(now, flow) {
            // The client got no answer at all.
            return;
        }
        if let (AckVariant::IsnPlusOne, Some(isn)) = (self.config.ack, isn) {
            // A client that believed the answer waits for a server that knows nothing of it. One that never got it
            // is connecting still and must not take this for a refusal.
            let seq = self.forged_seq(isn).wrapping_add(1);
            self.outputs.push_back(Output::Reset { flow, seq, ack: None });
        }
    }

    /// Ends an unclaimed connection so that no trace of it stays at the server.
    pub(super) fn give_up(&mut self, now: Now, flow: Flow, why: Reason) {
        let state = self.table.get(&flow).map(|entry| entry.state);
        self.outputs.push_back(match state {
            // A middle has no socket; the next node has.
            Some(State::Middle { next, own_isn: Some(isn), .. }) => Output::AbortOnward { flow, next, isn },
            Some(_) | None => Output::Abandon { flow, why },
        });
        self.forget(now, flow, why);
    }

    fn connect(
        &mut self,
        now: Now,
        flow: Flow,
        isn: Option<u32>,
        ingress: Option<Ingress>,
        claimed: bool,
        packet: &[u8],
    ) {
        let state = State::Connecting(Connecting { own_isn: None, probes: 0, plain: false, claimed });
        let patience = if claimed { self.config.connect_max } else { self.config.early_connect_max };
        self.table.insert(flow, Entry::new(state, isn, ingress), Some(now.mono + patience), packet);
        self.outputs.push_back(Output::Connect { flow });
    }

    fn answer(&mut self, now: Now, flow: Flow, isn: u32, connected: bool) {
        if self.answers_by_datagram(now, flow) {
            self.outputs.push_back(Output::AnswerByDatagram { flow, isn, connected });
            return;
        }
        let ack = match self.config.ack {
            AckVariant::Isn => isn,
            AckVariant::IsnPlusOne => isn.wrapping_add(1),
        };
        self.outputs.push_back(Output::AnswerProbe { flow, seq: self.forged_seq(isn), ack, connected });
    }

    /// A forged SYN-ACK's sequence number: the same for the same SYN, so that a reset fits it later.
    fn forged_seq(&self, isn: u32) -> u32 {
        isn ^ self.config.cookie
    }

    /// The connection goes past this node, and so do its repeated SYNs: another own connect would meet the client's
    /// own SYN at the server.
    pub(super) fn went_past(&mut self, now: Now, flow: Flow) {
        self.seen.insert(flow, SeenSyn { until: now.mono + self.config.past_max, past: true });
    }

    /// Whether it does.
    pub(super) fn goes_past(&mut self, now: Now, flow: Flow) -> bool {
        let past = self.seen.peek(&flow).is_some_and(|seen| seen.past && seen.until > now.mono);
        if past {
            self.went_past(now, flow);
        }
        past
    }
}
