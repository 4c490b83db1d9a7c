//! Between a peer that is known and a connection that it carries: the client's SYN is kept until the peer says yes, and
//! goes past it when it does not.

use super::*;
use crate::probe::Response;

impl Engine {
    /// A peer is on the path and took the query.
    pub(super) fn answered(&mut self, now: Now, flow: Flow, response: Response) {
        let peer = Peer::from(response);
        self.outputs.push_back(Output::Open { flow, peer });
        let deadline = Some(now.mono + self.config.open_max);
        if response.connected && self.peers.is_up(&peer.key) {
            // The server has accepted and the way to the peer is proven: the client need not wait for the peer's word.
            self.inject(flow, Some(peer), false);
        } else {
            self.table.set_state(&flow, State::Opening { peer, strict: false, unasked: None });
        }
        self.table.set_deadline(&flow, deadline);
    }

    /// The peer took the connection.
    pub(super) fn opened(&mut self, now: Now, flow: Flow) {
        let Some((state, asked)) =
            self.table.get(&flow).map(|entry| (entry.state, entry.asked.as_ref().map(|asked| asked.since)))
        else {
            return;
        };
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
        self.refusals.insert((peer.key, flow.server), now.mono);
        // Only now is it known who answers there: an option can be forged, a link cannot.
        if self.stands_in(now, flow.server, peer) {
            return;
        }
        let asked = asked.filter(|_| !crate::mutants::on("pmt-carried-is-asked"));
        let row = match asked {
            Some(since) => self.pmt.carried(now, flow.server, peer, since),
            None => Some(self.pmt.learn_peer(now, flow.server, peer)),
        };
        self.outputs.extend(row.map(Output::Learnt));
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
                Refusal::Unseen | Refusal::NotNow | Refusal::Peer | Refusal::NoLink
                    if self.refused_over_link(now, flow, why) => {}
                // What the table knows may be of a process that is gone. The path says who is there now.
                Refusal::Unseen | Refusal::NoLink if self.ask_after_all(now, flow) => {}
                Refusal::NotNow => self.go_past(now, flow, Reason::PeerRefused),
                Refusal::Unseen | Refusal::Peer => {
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
                    Refusal::Unseen | Refusal::NotNow | Refusal::Peer => Reason::PeerRefused,
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
            Some(peer) => self.pmt.learn_peer_beside(now, server, peer),
            None => self.nobody_there(now, server),
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
                    self.table.set_state(&flow, State::Opening { peer, strict, unasked: None });
                    self.table.set_deadline(&flow, Some(now.mono + self.config.open_max));
                    self.outputs.push_back(Output::Open { flow, peer });
                }
                (_, _) => self.go_past(now, flow, otherwise),
            }
        }
    }

    /// Gives the client's SYN to this node's own stack.
    pub(super) fn inject(&mut self, flow: Flow, peer: Option<Peer>, opened: bool) {
        let packet = self.table.take_packet(&flow);
        self.table.set_state(&flow, State::Carried { peer, opened });
        self.outputs.extend(packet.map(|packet| Output::InjectSyn { flow, packet }));
    }

    /// Puts a SYN that a known peer did not take out with the query, if it was not on the path before. Whether it did.
    pub(super) fn ask_after_all(&mut self, now: Now, flow: Flow) -> bool {
        let Some(State::Opening { unasked: Some(last), .. }) = self.table.get(&flow).map(|entry| entry.state)
        else {
            return false;
        };
        if crate::mutants::on("engine-unseen-given-up") {
            return false;
        }
        let Some(packet) = self.table.take_packet(&flow) else { return false };
        self.table.set_asked(&flow, None);
        // Counted from the client's own SYN: when it comes again is the client's timer, not this node's.
        self.table.set_state(&flow, State::Probing { probes: 1, last });
        self.table.set_deadline(&flow, Some(now.mono + self.config.probe_max));
        self.table.keep(&flow, &packet);
        self.outputs.push_back(Output::ProbeSyn { flow, packet });
        self.journal.note(now.wall, flow, Reason::ShownAgain);
        true
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
        // Who was named stays named, and what it has refused is remembered beside the table.
        if self.pmt.named(flow.server).next().is_some() {
            return;
        }
        let row = self.pmt.failed(now, flow.server);
        self.outputs.push_back(Output::Learnt(row));
    }
}
