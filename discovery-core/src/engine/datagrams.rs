//! Datagrams: UDP flows, which are ruled on and counted, and the probe response where a SYN-ACK loses its options.

use super::*;

impl Engine {
    /// Decides about one datagram from `flow.client`. Drain [`Engine::poll_output`] afterwards.
    pub fn handle_datagram(&mut self, now: Now, flow: Flow, ruled: Ruled, packet: &[u8]) -> Verdict {
        let (verdict, reason) = if self.bypass {
            (Verdict::Pass, Reason::Bypass)
        } else {
            self.datagrams.see(now.mono, flow.client, flow.server, ruled)
        };
        if reason == Reason::RuleDeny {
            let packet = packet.to_vec();
            self.outputs.push_back(Output::Unreachable { flow, what: Unreachable::Port, packet });
        }
        self.last = reason;
        self.journal.note(now.wall, flow, reason);
        verdict
    }

    /// UDP flows that passed since the start.
    #[must_use]
    pub fn datagram_flows(&self) -> u64 {
        self.datagrams.begun()
    }

    /// A client refused a forged SYN-ACK that its own node should have taken: its option was lost on the way, or the
    /// node was. The next answers to this network say the same where no option is needed.
    pub(super) fn option_lost(&mut self, now: Now, flow: Flow) {
        if self.config.answering == Answering::Auto {
            let network = self.client_network(&flow);
            self.stripped.insert(network, now.mono + self.config.stripped_max);
        }
    }

    /// Nobody came after an answer. When that was a datagram, these do not arrive either; whether it was.
    pub(super) fn datagram_lost(&mut self, now: Now, flow: Flow) -> bool {
        let by_datagram = self.answers_by_datagram(now, flow);
        if let Some(until) = self.stripped.touch(&self.client_network(&flow)) {
            *until = now.mono;
        }
        by_datagram
    }

    pub(super) fn answers_by_datagram(&self, now: Now, flow: Flow) -> bool {
        match self.config.answering {
            Answering::Option => false,
            Answering::Datagram => true,
            Answering::Auto => {
                self.stripped.peek(&self.client_network(&flow)).is_some_and(|until| *until > now.mono)
            }
        }
    }
}
