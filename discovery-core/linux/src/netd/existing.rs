//! Packets of connections whose SYN was not seen here.

use std::io;
use std::time::Instant;

use discovery_core::adopt::Segment;
use discovery_core::engine::{Course, Existing, Kind, Midstream, Reason};
use discovery_core::flow::{Flow, Ingress};
use discovery_core::now::Now;
use discovery_core::packet::{Protocol, Tcp, View};
use discovery_core::rule::{Facts, VlanId};

use super::adoptions::Outcome;
use super::look::Looked;
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
            Course::Observe => match self.adoptions.begin(now.mono, up, self.mss(up)) {
                // This packet is not observed itself: what comes before the first that is shows by itself.
                Ok(()) => mark(WATCHED),
                Err(why) => {
                    self.note(now, up, why);
                    mark(SETTLED)
                }
            },
        };
        self.queue.verdict(packet.id, verdict);
        Ok(())
    }

    fn course(&mut self, now: Now, packet: &QueuedPacket<'_>, up: Flow, tcp: &Tcp<'_>) -> Course {
        let port = if packet.physindev == 0 { packet.indev } else { packet.physindev };
        let facts = |flow| Facts {
            flow,
            protocol: Protocol::Tcp,
            ingress: Some(Ingress(port)),
            vlan: packet.vlan.and_then(|vlan| VlanId::new(vlan.tci & 0x0fff).ok()),
        };
        let (src, dst) = (up.client, up.server);
        let ruled = self.rules.decide(&facts(up), packet.payload);
        let back = self.rules.decide(&facts(Flow { client: dst, server: src }), packet.payload);
        let either = self.rules.existing(back) != Existing::Leave;
        let existing = self.rules.existing(ruled);
        if existing == Existing::Leave && either {
            // What its server sends: its client's next packet decides.
            return Course::Open;
        }
        if existing == Existing::Adopt && self.adoptions.is_full() {
            self.note(now, up, Reason::ExistingLater);
            return Course::Open;
        }
        let seen = Midstream { src, dst, seq: tcp.seq(), ack: tcp.ack(), either };
        let course = self.engine.handle_midstream(now, &seen, existing, ruled);
        tracing::debug!(%src, %dst, ?course, reason = self.engine.last_reason().word(), "stood before");
        course
    }

    /// A packet of a connection that is observed goes on, and is perhaps the last that does.
    fn observed(
        &mut self,
        now: Now,
        packet: &QueuedPacket<'_>,
        flow: Flow,
        segment: &Segment<'_>,
    ) -> io::Result<()> {
        let watched = packet.mark & WATCHED != 0;
        let outcome = self.adoptions.see(now.mono, flow, segment, watched);
        let verdict = match outcome {
            Some(_) => Verdict::Mark((packet.mark & !(EXISTING | WATCHED)) | SETTLED),
            None => Verdict::Accept,
        };
        self.queue.verdict(packet.id, verdict);
        match outcome {
            Some(outcome) => self.adopted(now, outcome),
            None if watched && self.adoptions.is_moment(now.mono, flow) => self.adopt(now, flow)?,
            None => {}
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

    fn adopted(&mut self, now: Now, outcome: Outcome) {
        match outcome {
            Outcome::Adopted { flow, client, server } => {
                self.note(now, flow, Reason::ExistingAdopted);
                self.agent.adopted(flow, client, server);
            }
            Outcome::Refused { flow, why } => self.note(now, flow, why),
        }
    }

    fn note(&mut self, now: Now, flow: Flow, outcome: Reason) {
        tracing::debug!(%flow, reason = outcome.word(), "adoption");
        self.engine.note_adoption(now, flow, outcome);
    }

    /// Lets go of what has been observed for too long. That a moment has come, only a packet says: without one nobody
    /// knows whether they still come here.
    pub(super) fn adoptions_due(&mut self, mono: Instant) {
        let now = Now { mono, ..super::now() };
        for outcome in self.adoptions.expired(mono) {
            self.adopted(now, outcome);
        }
    }

    /// A packet went on that could not be read, or did not come here.
    pub(super) fn adoptions_blind(&mut self, now: Now) {
        for outcome in self.adoptions.blind() {
            self.adopted(now, outcome);
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
