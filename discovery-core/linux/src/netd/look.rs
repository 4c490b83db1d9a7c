//! What the engine is told about a queued packet, and what its verdict means for the packet's octets.

use discovery_core::engine::{self, Hook, Room, Seen};
use discovery_core::flow::{Flow, Ingress};
use discovery_core::look::look;
use discovery_core::packet::{Protocol, View, splice};
use discovery_core::probe::{Codec, Encoded, Probe, Query};
use discovery_core::rule::{Facts, VlanId};

use crate::marks::OWN_CONNECT;
use crate::queue::{self, QueuedPacket, Verdict};

/// Reads packets, and alters those that get the query.
#[derive(Debug)]
pub(super) struct Looker {
    codec: Codec,
    query: Encoded,
    octets_max: usize,
    altered: Vec<u8>,
}

/// A packet that the engine is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looked<'a> {
    pub(super) seen: Seen,
    pub(super) facts: Facts,
    pub(super) view: View<'a>,
}

/// What a queued datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datagram {
    /// The answer to a query.
    Answer(Seen),
    /// Anybody's.
    Other(Facts),
}

impl Looker {
    pub(super) fn new(codec: Codec, octets_max: usize) -> Self {
        let query = codec.encode(&Probe::Query(Query));
        Self { codec, query, octets_max, altered: Vec::with_capacity(2048) }
    }

    /// `None`: not for the engine. It passes.
    pub(super) fn look<'a>(&self, packet: &QueuedPacket<'a>) -> Option<Looked<'a>> {
        if !packet.whole {
            return None;
        }
        let view = View::parse(packet.payload).ok()?;
        let port = if packet.physindev == 0 { packet.indev } else { packet.physindev };
        let (hook, ingress) = match packet.hook {
            queue::Hook::Prerouting => (Hook::Forwarded(Ingress(port)), Some(Ingress(port))),
            queue::Hook::Output if packet.mark & OWN_CONNECT != 0 => (Hook::Own, None),
            // A connection of the machine's own programs is treated like one that comes in from nowhere.
            queue::Hook::Output => (Hook::Forwarded(Ingress(0)), None),
            queue::Hook::Other(_) => return None,
        };
        let seen = look(&view, hook, &self.codec, self.query.octets(), self.octets_max)?;
        let flow = match seen.kind {
            engine::Kind::SynAck => view.from_server(),
            engine::Kind::Syn | engine::Kind::Rst => view.from_client(),
        };
        let vlan = packet.vlan.and_then(|vlan| VlanId::new(vlan.tci & 0x0fff).ok());
        let facts = Facts { flow, protocol: Protocol::Tcp, ingress, vlan };
        Some(Looked { seen, facts, view })
    }

    /// A client's SYN with the query, or as it is where the query does not fit.
    pub(super) fn asking<'a>(&'a mut self, packet: &'a [u8]) -> &'a [u8] {
        let spliced = View::parse(packet)
            .map(|view| splice(&view, self.query.octets(), self.octets_max, &mut self.altered).is_ok());
        if spliced == Ok(true) { &self.altered } else { packet }
    }

    /// What a datagram is: somebody's, or an answer to a query, which is for the engine like the SYN-ACK it stands for.
    pub(super) fn look_datagram(&self, packet: &QueuedPacket<'_>, probe_port: u16) -> Option<Datagram> {
        if packet.hook != queue::Hook::Prerouting {
            return None;
        }
        let view = View::parse(packet.payload).ok()?;
        let payload = view.datagram()?;
        let port = if packet.physindev == 0 { packet.indev } else { packet.physindev };
        let ingress = Ingress(port);
        let (src, dst) = (view.src(), view.dst());
        if (src.port(), dst.port()) == (probe_port, probe_port)
            && let Some(answer) = self.codec.read_datagram(src.ip(), dst.ip(), payload)
        {
            let (hook, probe) = (Hook::Forwarded(ingress), Some(Probe::Response(answer.response)));
            let Flow { client, server } = answer.flow;
            let room = Room::Untouchable;
            let kind = engine::Kind::SynAck;
            let (seq, ack) = (0, answer.isn);
            return Some(Datagram::Answer(Seen {
                src: server,
                dst: client,
                hook,
                kind,
                seq,
                ack,
                probe,
                room,
            }));
        }
        let vlan = packet.vlan.and_then(|vlan| VlanId::new(vlan.tci & 0x0fff).ok());
        let flow = Flow { client: src, server: dst };
        Some(Datagram::Other(Facts { flow, protocol: Protocol::Udp, ingress: Some(ingress), vlan }))
    }

    /// The queue's verdict for the engine's. A query that does not fit after all is left out.
    pub(super) fn verdict(&mut self, looked: &Looked<'_>, verdict: engine::Verdict) -> Verdict<'_> {
        match verdict {
            engine::Verdict::Pass => Verdict::Accept,
            engine::Verdict::Drop => Verdict::Drop,
            engine::Verdict::PassWithQuery => {
                match splice(&looked.view, self.query.octets(), self.octets_max, &mut self.altered) {
                    Ok(()) => Verdict::Replace(&self.altered),
                    Err(_) => Verdict::Accept,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use discovery_core::packet::Acknowledged;
    use std::net::SocketAddr;

    use discovery_core::packet::forge::{self, syn, syn_ack};
    use discovery_core::probe::{KeyHint, Response};

    use super::*;
    use crate::queue::PacketId;

    fn queued(payload: &[u8]) -> QueuedPacket<'_> {
        QueuedPacket {
            id: PacketId(1),
            hook: queue::Hook::Prerouting,
            mark: 0,
            indev: 4,
            physindev: 0,
            outdev: 0,
            vlan: None,
            payload,
            whole: true,
            unverified: false,
        }
    }

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    #[test]
    fn a_plain_syn_gets_the_query_and_is_recognised_with_it() {
        let mut looker = Looker::new(Codec::default(), 1500);
        let plain = syn(&flow(), 77, &[]).unwrap();
        let packet = queued(&plain);
        let looked = looker.look(&packet).unwrap();
        assert_eq!(looked.seen.hook, Hook::Forwarded(Ingress(4)));
        assert_eq!((looked.seen.seq, looked.seen.ack, looked.seen.probe), (77, 0, None));
        assert_eq!(looked.facts.flow, flow());
        let Verdict::Replace(altered) = looker.verdict(&looked, engine::Verdict::PassWithQuery) else {
            panic!()
        };
        let altered = altered.to_vec();
        assert_eq!(looker.asking(&plain), altered, "the same by another way");
        assert_eq!(looker.asking(&altered), altered, "never twice");
        let packet = queued(&altered);
        let again = looker.look(&packet).unwrap();
        assert_eq!(again.seen.probe, Some(Probe::Query(Query)));
        assert_eq!(looker.verdict(&again, engine::Verdict::PassWithQuery), Verdict::Accept, "never twice");
    }

    #[test]
    fn the_flow_of_an_answer_is_the_askers() {
        let looker = Looker::new(Codec::default(), 1500);
        let link = "10.8.0.1:7777".parse().unwrap();
        let response = Response { link, key: KeyHint([7; 8]), connected: true };
        let option = Codec::default().encode(&Probe::Response(response));
        let answer = syn_ack(&flow(), 77, Acknowledged::Isn, 9, option.octets()).unwrap();
        let packet = queued(&answer);
        let looked = looker.look(&packet).unwrap();
        assert_eq!(looked.facts.flow, flow());
        assert_eq!((looked.seen.kind, looked.seen.ack), (engine::Kind::SynAck, 77));
        assert_eq!(looked.seen.probe, Some(Probe::Response(response)));
    }

    #[test]
    fn the_bridges_port_and_the_own_connect_are_told_apart() {
        let looker = Looker::new(Codec::default(), 1500);
        let plain = syn(&flow(), 77, &[]).unwrap();
        let bridged = QueuedPacket { physindev: 9, ..queued(&plain) };
        assert_eq!(looker.look(&bridged).unwrap().facts.ingress, Some(Ingress(9)));
        let own = QueuedPacket { hook: queue::Hook::Output, mark: OWN_CONNECT, indev: 0, ..queued(&plain) };
        assert_eq!(looker.look(&own).unwrap().seen.hook, Hook::Own);
        let machine = QueuedPacket { hook: queue::Hook::Output, indev: 0, ..queued(&plain) };
        assert_eq!(looker.look(&machine).unwrap().seen.hook, Hook::Forwarded(Ingress(0)));
    }

    #[test]
    fn a_datagram_is_an_answer_or_anybodys() {
        let looker = Looker::new(Codec::default(), 1500);
        let link = "10.8.0.1:7777".parse().unwrap();
        let response = Response { link, key: KeyHint([7; 8]), connected: true };
        let answer = discovery_core::probe::Answer { flow: flow(), isn: 77, response };
        let octets = Codec::default().encode_datagram(&answer);
        let at = |ip, port| SocketAddr::new(ip, port);
        let (from, to) = (flow().server.ip(), flow().client.ip());
        let made = forge::datagram(at(from, 7783), at(to, 7783), &octets).unwrap();
        let Some(Datagram::Answer(seen)) = looker.look_datagram(&queued(&made), 7783) else { panic!() };
        assert_eq!((seen.src, seen.dst, seen.ack), (flow().server, flow().client, 77));
        assert_eq!((seen.kind, seen.probe), (engine::Kind::SynAck, Some(Probe::Response(response))));
        for (from_port, to_port, octets) in [(7783, 53, &octets[..]), (7783, 7783, b"hello")] {
            let (from, to) = (at(from, from_port), at(to, to_port));
            let made = forge::datagram(from, to, octets).unwrap();
            let flow = Flow { client: from, server: to };
            let facts = Facts { flow, protocol: Protocol::Udp, ingress: Some(Ingress(4)), vlan: None };
            assert_eq!(looker.look_datagram(&queued(&made), 7783), Some(Datagram::Other(facts)));
        }
        assert_eq!(looker.look_datagram(&queued(&syn(&flow(), 77, &[]).unwrap()), 7783), None);
    }

    #[test]
    fn what_is_cut_or_no_handshake_is_not_for_the_engine() {
        let looker = Looker::new(Codec::default(), 1500);
        let plain = syn(&flow(), 77, &[]).unwrap();
        assert!(looker.look(&QueuedPacket { whole: false, ..queued(&plain) }).is_none());
        assert!(looker.look(&queued(&plain[..30])).is_none());
        assert!(looker.look(&queued(&[])).is_none());
    }
}
