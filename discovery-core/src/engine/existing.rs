//! Connections that stood before this node did, or that a change of routes brought (US 9,172,620, 'pre-existing
//! connections'): left alone; or reset at both ends when they would be served then, so that their clients connect anew;
//! or adopted in their middle.

use super::*;
use crate::pmt::Known;

pub use crate::rule::Existing;

/// A packet of an established connection whose SYN this node did not see. The rules are about connections from its
/// source to its destination.
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
    /// The rules say the same about the other direction, so that either end may be the client.
    pub either: bool,
}

/// What becomes of such a packet and of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Course {
    /// It goes on, and so does its connection: nobody need be asked again.
    Settled,
    /// It goes on; the next one may be asked about again.
    Open,
    /// It ends here.
    Drop,
    /// It goes on, and from now on every packet of the connection is to be seen, in order to adopt it.
    Observe {
        /// Which end is the client.
        flow: Flow,
        /// With whom; none: alone.
        peer: Option<Peer>,
    },
}

/// Who adopts a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Adopter {
    /// This node, both ends.
    Alone,
    /// This node the client's end, and a peer the server's.
    Client {
        /// Which.
        peer: Peer,
    },
    /// This node the server's end, for a peer.
    Server,
}

/// How fast connections are taken out of their course: their clients all connect at once.
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
    /// Decides about a packet of a connection that stood before. Drain [`Engine::poll_output`] afterwards.
    pub fn handle_midstream(
        &mut self,
        now: Now,
        seen: &Midstream,
        existing: Existing,
        ruled: Ruled,
    ) -> Course {
        let (flow, (course, reason)) = self.midstream(now, seen, existing, ruled.action);
        self.last = reason;
        self.journal.note(now.wall, flow, reason);
        course
    }

    /// What became of a connection that was to be adopted, or why nothing did.
    pub fn note_adoption(&mut self, now: Now, flow: Flow, by: Adopter, outcome: Reason) {
        if outcome == Reason::ExistingAdopted {
            let state = match by {
                Adopter::Alone => State::Carried { peer: None, opened: true },
                Adopter::Client { peer } => State::Carried { peer: Some(peer), opened: true },
                Adopter::Server => State::Claimed { own_isn: None, next: None },
            };
            self.table.insert(flow, table::Entry::new(state, None, None), None, &[]);
        }
        self.last = outcome;
        self.journal.note(now.wall, flow, outcome);
    }

    /// Whether a peer may ask for the server's half of a connection now. What the rules say of it shows when its packets
    /// come.
    ///
    /// # Errors
    /// Why not.
    pub fn may_adopt_for_peer(&self, flow: &Flow) -> Result<(), Reason> {
        let back = Flow { client: flow.server, server: flow.client };
        // What went past a moment ago is nobody's.
        let ours = |flow| {
            let state = self.table.get(flow).map(|entry| entry.state);
            !matches!(state, None | Some(State::Probing { .. } | State::Direct { .. }))
        };
        if !self.agent {
            return Err(Reason::AgentDown);
        }
        if self.bypass {
            return Err(Reason::Bypass);
        }
        if ours(flow) || ours(&back) {
            return Err(Reason::TupleInUse);
        }
        if self.table.has_room(0) { Ok(()) } else { Err(Reason::TableFull) }
    }

    fn midstream(
        &mut self,
        now: Now,
        seen: &Midstream,
        existing: Existing,
        action: Action,
    ) -> (Flow, (Course, Reason)) {
        let upwards = Flow { client: seen.src, server: seen.dst };
        let downwards = Flow { client: seen.dst, server: seen.src };
        let settled = |reason| (upwards, (Course::Settled, reason));
        let open = |reason| (upwards, (Course::Open, reason));
        if self.table.get(&upwards).or_else(|| self.table.get(&downwards)).is_some() {
            return open(Reason::Carried);
        }
        let alone = match action {
            Action::Intercept | Action::DropIfNoPeer => false,
            Action::InterceptSingle => true,
            Action::Pass | Action::Drop | Action::Deny => return settled(Reason::RulePass),
        };
        if existing == Existing::Leave {
            return settled(Reason::ExistingLeft);
        }
        if self.bypass {
            return open(Reason::Bypass);
        }
        if !self.agent {
            return open(Reason::AgentDown);
        }
        let (flow, peer) = if alone {
            (upwards, None)
        } else {
            match self.midstream_peer(now, upwards, downwards, seen.either) {
                Ok((flow, peer)) => (flow, Some(peer)),
                Err(decision) => return (upwards, decision),
            }
        };
        // Each end takes a reset only at the very number it expects (RFC 5961 §3.2), which data under way may have
        // moved; then the next packet is another chance, but not for ever.
        let tries = self.resets.peek(&flow).map_or(0, |tries| *tries);
        if tries >= self.config.existing_tries_max {
            return settled(Reason::ExistingLeft);
        }
        // What is adopted is remembered, as what is carried.
        if existing == Existing::Adopt && !self.table.has_room(0) {
            return open(Reason::ExistingLater);
        }
        if !self.pace.take(now.mono, self.config.existing_per_second_max) {
            return open(Reason::ExistingLater);
        }
        self.resets.insert(flow, tries + 1);
        if existing == Existing::Adopt {
            return (flow, (Course::Observe { flow, peer }, Reason::ExistingObserved));
        }
        let (to_client, to_server) =
            if flow == upwards { (seen.ack, seen.seq) } else { (seen.seq, seen.ack) };
        self.outputs.push_back(Output::ResetServer { flow, seq: to_server });
        self.outputs.push_back(Output::Reset { flow, seq: to_client, ack: None });
        // What it carries must not move the number that the reset hits.
        (flow, (Course::Drop, Reason::ExistingReset))
    }

    /// The flow to whose server a peer with a link is known, and that peer. Which end is the client cannot be seen where the rules fit
    /// either way: the server is then the end to which there is one.
    fn midstream_peer(
        &mut self,
        now: Now,
        upwards: Flow,
        downwards: Flow,
        either: bool,
    ) -> Result<(Flow, Peer), (Course, Reason)> {
        let (mut unknown, mut waits) = (None, None);
        for flow in [upwards, downwards].into_iter().take(if either { 2 } else { 1 }) {
            match self.pmt.lookup(now.mono, flow.server) {
                Lookup::Known(Known::Peer(_) | Known::Static(_)) => match self.best(now, &flow) {
                    Some((peer, _)) => return Ok((flow, peer)),
                    // A link may come.
                    None => waits = Some(Reason::PeerDown),
                },
                Lookup::Known(Known::NoProxy | Known::OptionDropped | Known::Asymmetric) => {}
                Lookup::Probing => waits = Some(Reason::ProbedBeside),
                Lookup::Unknown => unknown = unknown.or(Some(flow.server)),
            }
        }
        if let Some(server) = unknown {
            self.send_probe(now, server);
            waits = Some(Reason::ProbedBeside);
        }
        Err(waits.map_or((Course::Settled, Reason::NoProxy), |reason| (Course::Open, reason)))
    }
}
