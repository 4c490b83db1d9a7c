//! The loop of a deflector: packets of connections that were given to a proxy are turned, and new ones are given to one.

use discovery_core::engine::{Hook, Kind};
use discovery_core::packet::flags::{ACK, SYN};
use discovery_core::packet::forge::syn_ack;
use discovery_core::packet::{Acknowledged, Tcp, View};
use discovery_core::probe::Probe;
use discovery_core::rule::Action;

use super::{Agent, Netd};
use crate::deflect::{Deflect, Turning};
use crate::marks::TURNED;
use crate::queue::{PacketQueue, QueuedPacket, Verdict};

/// What the loop needs of it.
#[derive(Debug)]
pub(super) struct Deflecting {
    deflect: Deflect,
    out: Vec<u8>,
}

/// What was done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It goes on, turned, under this mark.
    Turned(u32),
    /// It goes on as it is, under this mark: behind the queue, what still has the other one was seen by nobody.
    Passed(u32),
    /// It goes no further: it was for this node, or no proxy is there where the rules want one.
    Taken,
}

impl Deflecting {
    pub(super) fn verdict(&self, done: Done) -> Verdict<'_> {
        match done {
            Done::Turned(mark) => Verdict::ReplaceAndMark(&self.out, mark),
            Done::Passed(mark) => Verdict::Mark(mark),
            Done::Taken => Verdict::Drop,
        }
    }
}

impl<Q: PacketQueue, A: Agent> Netd<Q, A> {
    /// From now on this node is a deflector: connections that the rules would intercept go to its proxies, and none is
    /// terminated here.
    pub fn deflect(&mut self, deflect: Deflect) {
        self.deflecting = Some(Deflecting { deflect, out: Vec::with_capacity(2048) });
    }

    /// None: it is not the deflector's.
    pub(super) fn deflected(&mut self, packet: &QueuedPacket<'_>) -> Option<Done> {
        let Deflecting { deflect, out } = self.deflecting.as_mut()?;
        let mark = packet.mark & !TURNED;
        let known = packet.mark & TURNED != 0;
        if known {
            // What cannot be read is what cannot be turned, and half a connection goes nowhere as it is.
            let Some((view, tcp)) =
                View::parse(packet.payload).ok().filter(|_| packet.whole).and_then(with_tcp)
            else {
                return Some(Done::Taken);
            };
            match deflect.turn(&view, &tcp, out) {
                Turning::Turned => return Some(Done::Turned(mark)),
                Turning::Refused => return Some(Done::Taken),
                // Of a connection that flows past, between ends that were deflected before.
                Turning::Nobodys if tcp.flags() & (SYN | ACK) != SYN => return Some(Done::Passed(mark)),
                Turning::Nobodys => {}
            }
        }
        let looked = self.looker.look(packet)?;
        let seen = looked.seen;
        if seen.kind != Kind::Syn || !matches!(seen.hook, Hook::Forwarded(_)) {
            return None;
        }
        // What a rule drops or passes is dropped and passed here too.
        let without = without_proxy(self.rules.decide(&looked.facts, packet.payload).action, mark)?;
        let flow = looked.facts.flow;
        if let (Some(Probe::Query(_)), true) = (seen.probe, deflect.discovers()) {
            // A further query for this node is nothing that a proxy could answer.
            let Some(response) = deflect.answer(flow) else { return Some(without) };
            let option = self.settings.codec.encode(&Probe::Response(response));
            let sent = syn_ack(&flow, seen.seq, Acknowledged::Isn, !seen.seq, option.octets())
                .map_err(std::io::Error::other)
                .and_then(|answer| self.senders.forge(&answer));
            tracing::debug!(%flow, proxy = %response.link, sent = sent.is_ok(), "a proxy is named");
            return Some(if sent.is_ok() { Done::Taken } else { without });
        }
        let view = View::parse(packet.payload).ok()?;
        if deflect.syn(&view, self.settings.octets_max, out) {
            tracing::debug!(%flow, "deflected");
            return Some(Done::Turned(mark));
        }
        Some(without)
    }
}

/// What becomes of a SYN that no proxy takes: it goes past, to the server, unless the operator wants it to go nowhere.
/// None: proxies are not asked at all.
fn without_proxy(action: Action, mark: u32) -> Option<Done> {
    match action {
        Action::Intercept | Action::InterceptSingle => Some(Done::Passed(mark)),
        Action::DropIfNoPeer => Some(Done::Taken),
        Action::Pass | Action::Drop | Action::Deny => None,
    }
}

fn with_tcp(view: View<'_>) -> Option<(View<'_>, Tcp<'_>)> {
    view.tcp().map(|tcp| (view, tcp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_proxy() {
        for (action, expected) in [
            (Action::Intercept, Some(Done::Passed(4))),
            (Action::InterceptSingle, Some(Done::Passed(4))),
            (Action::DropIfNoPeer, Some(Done::Taken)),
            (Action::Pass, None),
            (Action::Drop, None),
            (Action::Deny, None),
        ] {
            assert_eq!(without_proxy(action, 4), expected, "{action:?}");
        }
    }
}
