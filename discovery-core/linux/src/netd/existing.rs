//! Packets of connections whose SYN was not seen here.

use std::io;
use std::time::Instant;

use discovery_core::adopt::Segment;
use discovery_core::engine::{Adopter, Course, Event, Existing, Kind, Midstream, Reason};
use discovery_core::flow::{Flow, Ingress};
use discovery_core::now::Now;
use discovery_core::packet::{Protocol, Tcp, View};
use discovery_core::rule::{Action, Facts, VlanId};

use super::adoptions::{Outcome, Seen};
use super::look::Looked;
use super::split::{Step, Tell, Ticket, Word};
use super::{Agent, Netd};
use crate::marks::{EXISTING, SETTLED, WATCHED};
use crate::queue::{PacketQueue, QueuedPacket, Verdict};

impl<Q: PacketQueue, A: Agent> Netd<Q, A> {
    /// Gives the packet its verdict, and does what follows from it.
    pub(super) fn midstream(&mut self, now: Now, packet: &QueuedPacket<'_>) -> io::Result<()> {
        let view = View::parse(packet.payload).ok();
        let Some((view, tcp)) = view.as_ref().and_then(|view| Some((view, view.tcp()?))) else {
            self.counters.unread += 1;
            self.queue.verdict(packet.id, Verdict::Accept);
            self.adoptions_blind(now);
            return Ok(());
        };
        if damaged(packet, view) {
            // Its receiver does not take it, so it has changed nothing: it will be sent again.
            self.counters.unread += 1;
            self.queue.verdict(packet.id, Verdict::Accept);
            return Ok(());
        }
        let up = Flow { client: view.src(), server: view.dst() };
        if let Some((flow, up)) = self.adoptions.of(up) {
            return self.observed(now, packet, flow, &Segment::of(&tcp, up));
        }
        let course = self.course(now, packet, up, &tcp);
        let mark = |bit| Verdict::Mark((packet.mark & !EXISTING) | bit);
        let verdict = match course {
            Course::Settled => mark(SETTLED),
            Course::Open => Verdict::Accept,
            Course::Drop => Verdict::Drop,
            Course::Observe { flow, peer: None } => {
                match self.adoptions.begin(now.mono, flow, self.mss(flow)) {
                    // This packet is not observed itself: what comes before the first that is shows by itself.
                    Ok(()) => mark(WATCHED),
                    Err(why) => {
                        self.note(now, flow, Adopter::Alone, why);
                        mark(SETTLED)
                    }
                }
            }
            Course::Observe { flow, peer: Some(peer) } => {
                let (mss, agent) = (self.mss(flow), &mut self.agent);
                self.adoptions.begin_near(now.mono, flow, mss, peer, |ticket| agent.adopt(ticket, peer));
                mark(WATCHED)
            }
        };
        self.queue.verdict(packet.id, verdict);
        Ok(())
    }

    fn course(&mut self, now: Now, packet: &QueuedPacket<'_>, up: Flow, tcp: &Tcp<'_>) -> Course {
        let (src, dst) = (up.client, up.server);
        let ruled = self.rules.decide(&facts(packet, up), packet.payload);
        let back = self.rules.decide(&facts(packet, Flow { client: dst, server: src }), packet.payload);
        let either = self.rules.existing(back) != Existing::Leave;
        let existing = self.rules.existing(ruled);
        if existing == Existing::Leave && either {
            // What its server sends: its client's next packet decides.
            return Course::Open;
        }
        if existing == Existing::Adopt && self.adoptions.is_full() {
            self.note(now, up, Adopter::Alone, Reason::ExistingLater);
            return Course::Open;
        }
        let seen = Midstream { src, dst, seq: tcp.seq(), ack: tcp.ack(), either };
        let course = self.engine.handle_midstream(now, &seen, existing, ruled);
        tracing::debug!(%src, %dst, ?course, reason = self.engine.last_reason().word(), "stood before");
        course
    }

    /// A packet of a connection that is observed, or was. It is perhaps the last that goes on.
    fn observed(
        &mut self,
        now: Now,
        packet: &QueuedPacket<'_>,
        flow: Flow,
        segment: &Segment<'_>,
    ) -> io::Result<()> {
        let watched = packet.mark & WATCHED != 0;
        let seen = if segment.up && self.adoptions.is_unruled(flow) && !self.adopts(packet, flow) {
            Seen::Settled(self.adoptions.refused(now.mono, flow, Reason::AdoptUnpaired))
        } else {
            self.adoptions.see(now.mono, flow, segment, watched, packet.id)
        };
        let settled = Verdict::Mark((packet.mark & !(EXISTING | WATCHED)) | SETTLED);
        match seen {
            Seen::Held => {}
            Seen::Drop => self.queue.verdict(packet.id, Verdict::Drop),
            Seen::Reset(seq) => {
                self.queue.verdict(packet.id, Verdict::Drop);
                self.reset_client(flow, &[seq]);
            }
            Seen::Pass => {
                self.queue.verdict(packet.id, Verdict::Accept);
                if watched {
                    self.adoption_goes_on(now, flow)?;
                }
            }
            Seen::Settled(outcome) => {
                let torn = matches!(outcome, Some(Outcome::Refused { reset: Some(_), .. }));
                self.queue.verdict(packet.id, if torn { Verdict::Drop } else { settled });
                if let Some(outcome) = outcome {
                    self.adopted(now, outcome);
                }
            }
        }
        Ok(())
    }

    /// Whether the rules have this node adopt such a connection with a peer.
    fn adopts(&self, packet: &QueuedPacket<'_>, flow: Flow) -> bool {
        let ruled = self.rules.decide(&facts(packet, flow), packet.payload);
        let taken = match ruled.action {
            Action::Intercept | Action::DropIfNoPeer => true,
            Action::InterceptSingle | Action::Pass | Action::Drop | Action::Deny => false,
        };
        taken && self.rules.existing(ruled) == Existing::Adopt
    }

    /// A peer wants this node to take the server's end of a connection.
    pub(super) fn adopt_for_peer(&mut self, now: Now, flow: Flow, tell: Tell) {
        let may = if self.rules.looks_at_existing() {
            self.engine.may_adopt_for_peer(&flow)
        } else {
            Err(Reason::AdoptUnpaired)
        };
        let begun = match may {
            Ok(()) => self.adoptions.begin_far(now.mono, flow, self.mss(flow), tell),
            Err(why) => Err((why, tell)),
        };
        match begun {
            Ok(given_way) => {
                self.note(now, flow, Adopter::Server, Reason::ExistingObserved);
                if let Some(outcome) = given_way {
                    self.adopted(now, outcome);
                }
                self.senders.ask_for(flow);
            }
            Err((why, mut told)) => {
                self.note(now, flow, Adopter::Server, why);
                told(Step::Refused(why));
            }
        }
    }

    /// What was said about an adoption with a peer.
    pub(super) fn adoption_word(&mut self, now: Now, ticket: Ticket, word: Word) -> io::Result<()> {
        tracing::debug!(flow = %ticket.flow, ?word, "told");
        if let Some(outcome) = self.adoptions.word(now.mono, ticket, word) {
            self.given_up(now, outcome);
        }
        self.adoption_goes_on(now, ticket.flow)?;
        self.queue.flush()
    }

    /// Something has changed about an observed connection: does what can be done now.
    fn adoption_goes_on(&mut self, now: Now, flow: Flow) -> io::Result<()> {
        if let Some(outcome) = self.adoptions.tell(now.mono, flow) {
            self.given_up(now, outcome);
        }
        if self.adoptions.is_moment(now.mono, flow) {
            self.adopt(now, flow)?;
        }
        Ok(())
    }

    /// What was shown must have left before there are sockets that take what comes. What comes meanwhile waits in the
    /// queue, and finds them.
    fn adopt(&mut self, now: Now, flow: Flow) -> io::Result<()> {
        self.queue.flush()?;
        if let Some(outcome) = self.adoptions.adopt(now.mono, flow) {
            self.adopted(now, outcome);
        }
        Ok(())
    }

    /// Without a packet of the connection at hand.
    fn given_up(&mut self, now: Now, outcome: Outcome) {
        if let Outcome::Refused { flow, why, .. } = &outcome {
            self.adoptions.settle_later(now.mono, *flow, *why);
        }
        self.adopted(now, outcome);
    }

    fn adopted(&mut self, now: Now, outcome: Outcome) {
        match outcome {
            Outcome::Alone { flow, client, server } => {
                self.note(now, flow, Adopter::Alone, Reason::ExistingAdopted);
                self.agent.adopted(flow, client, server);
            }
            Outcome::Near { flow, peer, client, mut tell, held } => {
                self.note(now, flow, Adopter::Client { peer }, Reason::ExistingAdopted);
                if !tell(Step::Client(client)) {
                    self.engine.handle_event(now, Event::Closed { flow });
                }
                // They find the socket.
                held.into_iter().for_each(|id| self.queue.verdict(id, Verdict::Accept));
            }
            Outcome::Far { flow, server, word, octets, mut tell } => {
                self.note(now, flow, Adopter::Server, Reason::ExistingAdopted);
                if !tell(Step::Server(server, word, octets)) {
                    self.engine.handle_event(now, Event::Closed { flow });
                }
            }
            Outcome::Refused { flow, by, why, tell, held, reset } => {
                self.note(now, flow, by, why);
                if let Some(mut tell) = tell {
                    tell(Step::Refused(why));
                }
                let verdict = if reset.is_some() { Verdict::Drop } else { Verdict::Accept };
                held.into_iter().for_each(|id| self.queue.verdict(id, verdict));
                self.reset_client(flow, reset.as_ref().map_or(&[], |at| at.as_slice()));
            }
            Outcome::Torn { flow, at } => self.reset_client(flow, &at),
        }
    }

    fn reset_client(&self, flow: Flow, at: &[u32]) {
        for seq in at {
            if let Err(error) = self.senders.reset_client(flow, *seq) {
                tracing::debug!(%flow, %error, "reset not sent");
            }
        }
    }

    fn note(&mut self, now: Now, flow: Flow, by: Adopter, outcome: Reason) {
        tracing::debug!(%flow, ?by, reason = outcome.word(), "adoption");
        self.engine.note_adoption(now, flow, by, outcome);
    }

    /// Lets go of what has been observed for too long. That a moment has come, only a packet says: without one nobody
    /// knows whether they still come here.
    pub(super) fn adoptions_due(&mut self, mono: Instant) {
        let now = Now { mono, ..super::now() };
        for outcome in self.adoptions.expired(mono) {
            self.given_up(now, outcome);
        }
    }

    /// A packet went on that could not be read, or did not come here.
    pub(super) fn adoptions_blind(&mut self, now: Now) {
        self.adoptions_until_later(now, Reason::AdoptUnsteady);
    }

    /// Packets will not come here, or other rules hold of them.
    pub(super) fn adoptions_until_later(&mut self, now: Now, why: Reason) {
        for outcome in self.adoptions.blind(now.mono, why) {
            self.given_up(now, outcome);
        }
    }

    /// Nobody goes on with any, not even with what cannot go back.
    pub(super) fn adoptions_end(&mut self, now: Now) {
        for outcome in self.adoptions.end(now.mono) {
            self.given_up(now, outcome);
        }
    }

    /// A handshake goes past: what it settles is needed when its connection is adopted later.
    pub(super) fn note_passed(&mut self, now: Now, looked: &Looked<'_>) {
        let Some(tcp) = looked.view.tcp() else { return };
        let (flow, seen) = (looked.facts.flow, &looked.seen);
        match seen.kind {
            Kind::Syn => self.adoptions.passed.syn(flow, seen.seq, tcp.syn_facts()),
            Kind::SynAck => self.adoptions.passed.syn_ack(now.wall, flow, seen.ack, &tcp.syn_facts()),
            Kind::Rst => {}
        }
    }

    /// What fits the ways out, where nobody knows what the ends agreed on.
    fn mss(&self, flow: Flow) -> u16 {
        let headers = if flow.client.is_ipv4() { 40 } else { 60 };
        u16::try_from(self.settings.octets_max.saturating_sub(headers)).unwrap_or(u16::MAX)
    }
}

fn facts(packet: &QueuedPacket<'_>, flow: Flow) -> Facts {
    let port = if packet.physindev == 0 { packet.indev } else { packet.physindev };
    Facts {
        flow,
        protocol: Protocol::Tcp,
        ingress: Some(Ingress(port)),
        vlan: packet.vlan.and_then(|vlan| VlanId::new(vlan.tci & 0x0fff).ok()),
    }
}

/// Whether octets got lost on its way. What is kept of it would be sent again under a good checksum.
fn damaged(packet: &QueuedPacket<'_>, view: &View<'_>) -> bool {
    packet.unverified && !view.checksums_hold()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Hook, PacketId};
    use discovery_core::packet::forge::syn;

    #[test]
    fn a_damaged_segment_is_told_and_one_whose_checksum_comes_later_is_none() {
        let flow =
            Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() };
        let sound = syn(&flow, 7, &[]).unwrap();
        let mut flipped = sound.clone();
        flipped[24] ^= 1;
        for (payload, unverified, expected) in
            [(&sound, true, false), (&flipped, true, true), (&flipped, false, false)]
        {
            let packet = QueuedPacket {
                id: PacketId(1),
                hook: Hook::Prerouting,
                mark: EXISTING,
                indev: 4,
                physindev: 0,
                outdev: 0,
                vlan: None,
                payload,
                whole: true,
                unverified,
            };
            assert_eq!(damaged(&packet, &View::parse(payload).unwrap()), expected);
        }
    }
}
