//! Connections that stood before this node did (US 9,172,620, 'pre-existing connections'): left alone, or reset at
//! both ends when a peer could carry them, so that their clients connect anew and are served.

use super::*;
use crate::pmt::Known;

/// A packet of an established connection whose SYN this node did not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Midstream {
    /// Source as on the wire.
    pub src: SocketAddr,
    /// Destination as on the wire.
    pub dst: SocketAddr,
    /// Its sequence number.
    pub seq: u32,
    /// Its acknowledgement number.
    pub ack: u32,
}

/// What the operator wants done with such connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Existing {
    /// Nothing.
    #[default]
    Leave,
    /// Reset both ends where a peer is known.
    Reset,
}

/// How fast connections are reset: their clients all connect at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    since: Option<Instant>,
    done: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { since: None, done: 0 }
    }

    /// One more in this second, if there is one left.
    fn take(&mut self, now: Instant, per_second_max: u32) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since).as_secs() >= 1) {
            (self.since, self.done) = (Some(now), 0);
        }
        let free = self.done < per_second_max;
        if free {
            self.done += 1;
        }
        free
    }
}

impl Engine {
    /// Decides about a packet of a connection that stood before. Which end is the client cannot be seen: the server is
    /// the end to which a peer is known. Drain [`Engine::poll_output`] afterwards.
    pub fn handle_midstream(
        &mut self,
        now: Now,
        seen: &Midstream,
        existing: Existing,
        ruled: Ruled,
    ) -> Verdict {
        let upwards = Flow { client: seen.src, server: seen.dst };
        let downwards = Flow { client: seen.dst, server: seen.src };
        let (flow, (verdict, reason)) = self.midstream(now, seen, existing, ruled.action, upwards, downwards);
        self.last = reason;
        self.journal.note(now.wall, flow, reason);
        verdict
    }

    fn midstream(
        &mut self,
        now: Now,
        seen: &Midstream,
        existing: Existing,
        action: Action,
        upwards: Flow,
        downwards: Flow,
    ) -> (Flow, Decision) {
        let pass = |reason| (upwards, (Verdict::Pass, reason));
        if self.table.get(&upwards).or_else(|| self.table.get(&downwards)).is_some() {
            return pass(Reason::Carried);
        }
        match action {
            Action::Intercept | Action::DropIfNoPeer => {}
            Action::Pass | Action::InterceptSingle | Action::Drop | Action::Deny => {
                return pass(Reason::RulePass);
            }
        }
        if self.bypass {
            return pass(Reason::Bypass);
        }
        if !self.agent {
            return pass(Reason::AgentDown);
        }
        if existing == Existing::Leave {
            return pass(Reason::ExistingLeft);
        }
        let mut unknown = None;
        let flow =
            [upwards, downwards].into_iter().find(|flow| match self.pmt.lookup(now.mono, flow.server) {
                Lookup::Known(Known::Peer(peer) | Known::Static(peer)) => self.up.contains(&peer.key),
                Lookup::Known(Known::NoProxy | Known::OptionDropped | Known::Asymmetric)
                | Lookup::Probing => false,
                Lookup::Unknown => {
                    unknown = unknown.or(Some(flow.server));
                    false
                }
            });
        let Some(flow) = flow else {
            let Some(server) = unknown else { return pass(Reason::NoProxy) };
            self.send_probe(now, server);
            return pass(Reason::ProbedBeside);
        };
        // Each end takes a reset only at the very number it expects (RFC 5961 §3.2), which data under way may have
        // moved; then the next packet is another chance, but not for ever.
        let tries = self.resets.peek(&flow).map_or(0, |tries| *tries);
        if tries >= self.config.existing_tries_max {
            return pass(Reason::ExistingLeft);
        }
        if !self.pace.take(now.mono, self.config.existing_resets_per_second_max) {
            return pass(Reason::ExistingLater);
        }
        self.resets.insert(flow, tries + 1);
        let (to_client, to_server) =
            if flow == upwards { (seen.ack, seen.seq) } else { (seen.seq, seen.ack) };
        self.outputs.push_back(Output::ResetServer { flow, seq: to_server });
        self.outputs.push_back(Output::Reset { flow, seq: to_client, ack: None });
        // What it carries must not move the number that the reset hits.
        (flow, (Verdict::Drop, Reason::ExistingReset))
    }
}
