//! How connections end for the engine: by time, by the agent, and all at once when nobody is here any more.

use super::*;

impl Engine {
    /// The agent is done with a connection that it had.
    pub(super) fn closed(&mut self, now: Now, flow: Flow) {
        let Some(state) = self.table.get(&flow).map(|entry| entry.state) else { return };
        match state {
            // Not the agent's: what it closed was here before.
            State::Probing { .. } | State::Direct { .. } | State::Held { .. } => {}
            State::Opening { .. } => self.go_past(now, flow, Reason::PeerDown),
            State::Connecting(connecting) => {
                if connecting.claimed {
                    self.give_up(now, flow, Reason::Closed);
                }
            }
            State::Carried { .. } | State::Early { .. } | State::Middle { .. } | State::Claimed { .. } => {
                self.forget(now, flow, Reason::Closed);
            }
        }
    }

    pub(super) fn timed_out(&mut self, now: Now, flow: Flow) {
        let Some(state) = self.table.get(&flow).map(|entry| entry.state) else { return };
        match state {
            State::Probing { probes, .. } => {
                if let Some(isn) = self.table.remove(&flow).and_then(|entry| entry.isn) {
                    self.tried.insert(flow, (isn, probes));
                }
                self.journal.note(now.wall, flow, Reason::ProbeSilent);
                if probes == 1 {
                    let row = self.pmt.silent(now, flow.server);
                    self.outputs.extend(row.map(Output::Learnt));
                }
            }
            State::Direct { .. } => {
                if let Some(isn) = self.table.remove(&flow).and_then(|entry| entry.isn) {
                    self.tried.insert(flow, (isn, self.config.probes_max));
                }
            }
            State::Held { .. } => {
                // For all that wait for the same probe.
                self.probed(now, flow.server, None, Reason::ProbeTimedOut);
            }
            State::Opening { peer, .. } => {
                self.outputs.push_back(Output::Abort { flow, why: Reason::OpenTimedOut });
                self.refusals.insert((peer.key, flow.server), now.mono + self.config.pmt.failed_ttl);
                if self.ask_after_silence(now, flow) {
                    return;
                }
                self.peer_failed(now, flow);
                self.go_past(now, flow, Reason::OpenTimedOut);
            }
            State::Carried { .. } => {
                self.outputs.push_back(Output::Abort { flow, why: Reason::OpenTimedOut });
                self.peer_failed(now, flow);
                self.forget(now, flow, Reason::OpenTimedOut);
            }
            State::Connecting(_) => {
                // A server that is not there, or whose answers go round this node: past it is right for both.
                let row = self.pmt.silent(now, flow.server);
                self.outputs.extend(row.map(Output::Learnt));
                self.outputs.push_back(Output::Abandon { flow, why: Reason::ServerSilent });
                self.connect_failed(now, flow, ConnectFailure::TimedOut);
            }
            State::Early { .. } | State::Middle { .. } => self.orphaned(now, flow),
            // No longer young: its deadline is gone.
            State::Claimed { .. } => {}
        }
    }

    /// Nothing more is taken over: what was kept back goes on its way, what nobody relies on yet is given up. What a
    /// peer and a client rely on goes on, unless those who carry it are gone.
    pub(super) fn stand_aside(&mut self, now: Now, why: Reason) {
        let agent = self.agent;
        for flow in self.table.flows(|_| true) {
            let Some(state) = self.table.get(&flow).map(|entry| entry.state) else { continue };
            match state {
                State::Held { .. } => self.go_past(now, flow, why),
                State::Opening { .. } => {
                    self.outputs.push_back(Output::Abort { flow, why });
                    self.go_past(now, flow, why);
                }
                State::Probing { .. } => self.let_go(now, flow, false),
                State::Direct { .. } => {}
                // Its peer was told that it stands, and may have told its client: it is kept for who comes to claim it.
                State::Early { .. } | State::Middle { .. }
                    if agent && !crate::mutants::on("engine-bypass-breaks-word") => {}
                State::Connecting(_) | State::Early { .. } | State::Middle { .. } if state.unclaimed() => {
                    let packet = self.table.take_packet(&flow);
                    self.give_up(now, flow, why);
                    self.went_past(now, flow);
                    // Its client was told nothing yet.
                    self.outputs.extend(packet.map(|packet| Output::ReleaseSyn { flow, packet }));
                }
                State::Connecting(_) | State::Early { .. } | State::Middle { .. } | State::Claimed { .. }
                    if !agent =>
                {
                    self.outputs.push_back(Output::Abandon { flow, why });
                    self.forget(now, flow, why);
                }
                State::Carried { .. } if !agent => self.forget(now, flow, why),
                State::Connecting(_) | State::Early { .. } | State::Middle { .. } => {}
                State::Claimed { .. } | State::Carried { .. } => {}
            }
        }
    }

    pub(super) fn forget(&mut self, now: Now, flow: Flow, why: Reason) {
        self.table.remove(&flow);
        self.journal.note(now.wall, flow, why);
    }
}
