//! From a packet's octets to what the engine is told about it.

use crate::{
    engine::{Hook, Kind, Room, Seen},
    packet::flags::ACK,
    packet::{self, Unprobed, View, room},
    probe::{Codec, Found},
};

/// A segment of a handshake; none when the engine has nothing to do with it. `query` is the option that may be added,
/// to a packet of at most `octets_max` then.
#[must_use]
pub fn look(view: &View<'_>, hook: Hook, codec: &Codec, query: &[u8], octets_max: usize) -> Option<Seen> {
    let tcp = view.tcp()?;
    let kind = match tcp.kind() {
        packet::Kind::Syn => Kind::Syn,
        packet::Kind::SynAck => Kind::SynAck,
        packet::Kind::Rst => Kind::Rst,
        packet::Kind::Other => return None,
    };
    let probe = match codec.find(tcp.options()) {
        Found::Probe(probe) => Some(probe),
        Found::Nothing | Found::Destination(_) | Found::Unknown(_) | Found::Malformed => None,
    };
    let room = match room(view, query, octets_max) {
        Ok(()) => Room::Fits,
        Err(Unprobed::Signed | Unprobed::Malformed) => Room::Untouchable,
        Err(_) => Room::Full,
    };
    let ack = if tcp.flags() & ACK == 0 { 0 } else { tcp.ack() };
    Some(Seen { src: view.src(), dst: view.dst(), hook, kind, seq: tcp.seq(), ack, probe, room })
}
