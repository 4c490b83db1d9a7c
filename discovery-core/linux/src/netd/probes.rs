//! Probes of this node's own: a SYN with the query from its own address to a port on which servers do not listen. A
//! node on the path answers in the server's name; without one the server refuses.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{SocketAddr, UdpSocket};

use discovery_core::engine::{Event, Kind, Seen};
use discovery_core::flow::Flow;
use discovery_core::packet::forge::syn;
use discovery_core::probe::{Codec, Probe, Query};

use crate::queue::Verdict;

/// Those that were sent, by who sent them and where to.
#[derive(Debug, Default)]
pub(super) struct Probes {
    asked: HashMap<Flow, (SocketAddr, u32)>,
    order: VecDeque<Flow>,
    count: u64,
    dice: RandomState,
}

/// The engine asks about a server at most once at a time and waits half a second: what is older was given up.
const ASKED_MAX: usize = 1024;

impl Probes {
    /// A probe to `to` on behalf of connections to `server`.
    pub(super) fn make(
        &mut self,
        server: SocketAddr,
        to: SocketAddr,
        codec: &Codec,
    ) -> io::Result<(Flow, Vec<u8>)> {
        // From a port and with a number that cannot be guessed: an answer is known by both.
        self.count += 1;
        let dice = self.dice.hash_one(self.count);
        let isn = u32::try_from(dice & 0xffff_ffff).unwrap_or(0);
        let port = u16::try_from(dice >> 32 & 0x3fff).unwrap_or(0) + 0xc000;
        let flow = Flow { client: SocketAddr::new(source(to)?, port), server: to };
        let option = codec.encode(&Probe::Query(Query));
        let packet = syn(&flow, isn, option.octets()).map_err(io::Error::other)?;
        if self.order.len() >= ASKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.asked.remove(&oldest);
        }
        self.asked.insert(flow, (server, isn));
        self.order.push_back(flow);
        Ok((flow, packet))
    }

    /// What a packet says about a probe of ours, if it is about one.
    pub(super) fn answered(&mut self, seen: &Seen) -> Option<(Verdict<'static>, Event)> {
        let flow = Flow { client: seen.dst, server: seen.src };
        let (server, isn) = *self.asked.get(&flow)?;
        if seen.ack.wrapping_sub(isn) > 1 {
            return None;
        }
        let (verdict, answer) = match (seen.kind, seen.probe) {
            // Made by a node: this machine's stack never asked, and must not refuse it.
            (Kind::SynAck, Some(Probe::Response(response))) => (Verdict::Drop, Some(response)),
            // The stack resets what it never asked for.
            (Kind::SynAck | Kind::Rst, _) => (Verdict::Accept, None),
            (Kind::Syn, _) => return None,
        };
        self.asked.remove(&flow);
        self.order.retain(|other| *other != flow);
        Some((verdict, Event::Probed { server, answer }))
    }
}

/// The address from which this machine would speak to `to`.
fn source(to: SocketAddr) -> io::Result<std::net::IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing.
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use discovery_core::engine::{Hook, Room};
    use discovery_core::flow::Ingress;
    use discovery_core::probe::{KeyHint, Response};

    use super::*;

    fn back(flow: Flow, kind: Kind, ack: u32, probe: Option<Probe>) -> Seen {
        let hook = Hook::Forwarded(Ingress(1));
        Seen { src: flow.server, dst: flow.client, hook, kind, seq: 5, ack, probe, room: Room::Full }
    }

    #[test]
    fn an_answer_counts_once_and_only_with_the_right_number() {
        let mut probes = Probes::default();
        let (server, to) = ("127.0.0.1:143".parse().unwrap(), "127.0.0.1:7783".parse().unwrap());
        let (flow, packet) = probes.make(server, to, &Codec::default()).unwrap();
        let isn = u32::from_be_bytes(packet[24..28].try_into().unwrap());
        let link = "10.8.0.1:7777".parse().unwrap();
        let response = Response { link, key: KeyHint([7; 8]), connected: false };
        let answer = |ack| back(flow, Kind::SynAck, ack, Some(Probe::Response(response)));
        assert_eq!(probes.answered(&answer(isn.wrapping_add(9))), None);
        let expected = (Verdict::Drop, Event::Probed { server, answer: Some(response) });
        assert_eq!(probes.answered(&answer(isn)), Some(expected));
        assert_eq!(probes.answered(&answer(isn)), None);
    }

    #[test]
    fn a_refusal_is_nobody() {
        let mut probes = Probes::default();
        let (server, to) = ("127.0.0.1:143".parse().unwrap(), "127.0.0.1:7783".parse().unwrap());
        let (flow, packet) = probes.make(server, to, &Codec::default()).unwrap();
        let isn = u32::from_be_bytes(packet[24..28].try_into().unwrap());
        let expected = (Verdict::Accept, Event::Probed { server, answer: None });
        assert_eq!(probes.answered(&back(flow, Kind::Rst, isn.wrapping_add(1), None)), Some(expected));
    }

    #[test]
    fn old_ones_make_room() {
        let mut probes = Probes::default();
        let to = "127.0.0.1:7783".parse().unwrap();
        for _ in 0..3000 {
            probes.make(to, to, &Codec::default()).unwrap();
        }
        assert!(probes.asked.len() <= ASKED_MAX && probes.order.len() <= ASKED_MAX);
    }
}
