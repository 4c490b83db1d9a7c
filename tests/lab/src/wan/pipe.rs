//! A WAN link as arithmetic: packets go in at a time, come out at a later one, or never. Pure: the caller brings
//! the clock, the seed decides every accident.
//!
//! A direction is a transmitter with a drop-tail queue, then a wire:
//! `push → outage, MTU hole, loss → queue (full: drop) → rate → delay + jitter (+ reorder) → pop`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::packet::tcp_payload_octets;
use crate::rng::Rng;

/// The side a packet leaves from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Branch to data centre.
    Up,
    /// Data centre to branch.
    Down,
}

/// One direction's behaviour. Percentages are per packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// One-way delay in milliseconds.
    pub delay_ms: f64,
    /// Octets of IP per second, in 10⁶ bit/s; 0 is no limit.
    pub rate_mbit: f64,
    /// Octets that may wait for the transmitter; more are dropped at the tail.
    pub queue_octets: u64,
    /// Packets lost singly.
    pub loss_percent: f64,
    /// Chance that a packet starts a burst in which all packets are lost.
    pub burst_percent: f64,
    /// Packets in such a burst.
    pub burst_packets: u32,
    /// At most so much more delay, evenly spread, without changing the order.
    pub jitter_ms: f64,
    /// Packets that are overtaken by later ones.
    pub reorder_percent: f64,
    /// How long an overtaken packet is held back.
    pub reorder_ms: f64,
    /// Packets delivered twice.
    pub duplicate_percent: f64,
    /// Packets in which one bit behind the IP header is flipped.
    pub corrupt_percent: f64,
    /// Packets longer than this vanish without a word; 0 is none.
    pub mtu_hole_octets: u64,
    /// The direction is dead: all is swallowed.
    pub outage: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay_ms: 0.0,
            rate_mbit: 0.0,
            queue_octets: 1 << 20,
            loss_percent: 0.0,
            burst_percent: 0.0,
            burst_packets: 10,
            jitter_ms: 0.0,
            reorder_percent: 0.0,
            reorder_ms: 5.0,
            duplicate_percent: 0.0,
            corrupt_percent: 0.0,
            mtu_hole_octets: 0,
            outage: false,
        }
    }
}

impl Behaviour {
    /// Half of a round trip, a rate, and a queue of one bandwidth-delay product (at least 64 KiB).
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float saturates at the ends"
    )]
    pub fn link(rtt_ms: f64, rate_mbit: f64) -> Self {
        let product = (rate_mbit * 1e6 / 8.0 * rtt_ms / 1e3) as u64;
        let queue_octets = if rate_mbit > 0.0 { product.max(64 << 10) } else { 1 << 20 };
        Self { delay_ms: rtt_ms / 2.0, rate_mbit, queue_octets, ..Self::default() }
    }
}

/// What one direction has done since the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets that came in.
    pub in_packets: u64,
    /// Octets of IP that came in.
    pub in_octets: u64,
    /// Packets that went out, duplicates included.
    pub out_packets: u64,
    /// Octets of IP that went out.
    pub out_octets: u64,
    /// Octets of TCP payload that came in.
    pub payload_octets: u64,
    /// Lost by chance, singly or in bursts.
    pub lost_packets: u64,
    /// Dropped because the queue was full, or because too many were under way.
    pub queue_drops: u64,
    /// Swallowed by an MTU hole.
    pub mtu_drops: u64,
    /// Swallowed by an outage.
    pub outage_drops: u64,
    /// Delivered a second time.
    pub duplicates: u64,
    /// Delivered with a flipped bit.
    pub corrupted: u64,
    /// The worst delay of a packet behind its due time, in microseconds: the emulator's own error.
    pub late_max_us: u64,
}

/// One direction.
#[derive(Debug)]
pub struct Pipe {
    behaviour: Behaviour,
    counters: Counters,
    rng: Rng,
    burst_left: u32,
    /// When the transmitter has sent all that it was given.
    free_at: Duration,
    /// What waits for the transmitter or is in it: (end of sending, octets).
    backlog: VecDeque<(Duration, u64)>,
    backlog_octets: u64,
    /// No packet arrives before the one ahead of it, except by `reorder`.
    last_due: Duration,
    wire: BTreeMap<(Duration, u64), Vec<u8>>,
    sequence: u64,
}

impl Pipe {
    /// A direction that behaves so, with its accidents drawn from `seed`.
    #[must_use]
    pub fn new(behaviour: Behaviour, seed: u64) -> Self {
        Self {
            behaviour,
            counters: Counters::default(),
            rng: Rng::new(seed),
            burst_left: 0,
            free_at: Duration::ZERO,
            backlog: VecDeque::new(),
            backlog_octets: 0,
            last_due: Duration::ZERO,
            wire: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Takes a packet; returns whether it is on its way.
    pub fn push(&mut self, now: Duration, packet: &[u8]) -> bool {
        let octets = u64::try_from(packet.len()).unwrap_or(u64::MAX);
        self.counters.in_packets += 1;
        self.counters.in_octets += octets;
        self.counters.payload_octets += u64::try_from(tcp_payload_octets(packet)).unwrap_or(0);
        if self.behaviour.outage {
            self.counters.outage_drops += 1;
            return false;
        }
        if self.behaviour.mtu_hole_octets > 0 && octets > self.behaviour.mtu_hole_octets {
            self.counters.mtu_drops += 1;
            return false;
        }
        if self.lose() {
            self.counters.lost_packets += 1;
            return false;
        }
        while let Some(&(end, sent)) = self.backlog.front()
            && end <= now
        {
            self.backlog.pop_front();
            self.backlog_octets -= sent;
        }
        // An empty queue takes any packet: a queue shorter than one packet would be an outage by mistake.
        let full = self.backlog_octets > 0 && self.backlog_octets + octets > self.behaviour.queue_octets;
        if full || self.wire.len() >= WIRE_PACKETS_MAX {
            self.counters.queue_drops += 1;
            return false;
        }
        let start = self.free_at.max(now);
        let end = start + self.sending_time(packet.len());
        self.free_at = end;
        if end > now {
            self.backlog.push_back((end, octets));
            self.backlog_octets += octets;
        }
        let jitter = self.behaviour.jitter_ms * self.rng.unit();
        let mut due = (end + milliseconds(self.behaviour.delay_ms + jitter)).max(self.last_due);
        if self.rng.percent(self.behaviour.reorder_percent) {
            due += milliseconds(self.behaviour.reorder_ms);
        } else {
            self.last_due = due;
        }
        let mut packet = packet.to_vec();
        if self.rng.percent(self.behaviour.corrupt_percent) {
            self.flip_a_bit(&mut packet);
        }
        if self.rng.percent(self.behaviour.duplicate_percent) {
            self.counters.duplicates += 1;
            self.send(due, packet.clone());
        }
        self.send(due, packet);
        true
    }

    /// The next packet whose time has come.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        let entry = self.wire.first_entry()?;
        let due = entry.key().0;
        if due > now {
            return None;
        }
        let packet = entry.remove();
        self.counters.out_packets += 1;
        self.counters.out_octets += u64::try_from(packet.len()).unwrap_or(u64::MAX);
        let late = u64::try_from((now - due).as_micros()).unwrap_or(u64::MAX);
        self.counters.late_max_us = self.counters.late_max_us.max(late);
        Some(packet)
    }

    /// When the next packet is due.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.wire.first_key_value().map(|((due, _), _)| *due)
    }

    /// Packets that are on their way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.wire.len()
    }

    fn lose(&mut self) -> bool {
        if self.burst_left > 0 {
            self.burst_left -= 1;
            return true;
        }
        if self.rng.percent(self.behaviour.burst_percent) && self.behaviour.burst_packets > 0 {
            self.burst_left = self.behaviour.burst_packets - 1;
            return true;
        }
        self.rng.percent(self.behaviour.loss_percent)
    }

    #[expect(clippy::cast_precision_loss, reason = "a packet's length fits a float")]
    fn sending_time(&self, octets: usize) -> Duration {
        if self.behaviour.rate_mbit <= 0.0 {
            return Duration::ZERO;
        }
        milliseconds(octets as f64 * 8.0 / (self.behaviour.rate_mbit * 1e3))
    }

    fn flip_a_bit(&mut self, packet: &mut [u8]) {
        let at = IP_HEADER_OCTETS + self.rng.below(packet.len().saturating_sub(IP_HEADER_OCTETS));
        let bit = self.rng.below(8);
        if let Some(octet) = packet.get_mut(at) {
            *octet ^= 1 << bit;
            self.counters.corrupted += 1;
        }
    }

    fn send(&mut self, due: Duration, packet: Vec<u8>) {
        self.wire.insert((due, self.sequence), packet);
        self.sequence += 1;
    }
}

/// More than 10 s of full packets at 100 Mbit/s: beyond it the emulator's memory would be the queue.
const WIRE_PACKETS_MAX: usize = 100_000;

/// The longer of the two IP headers: a flip behind it is the transport's to find.
const IP_HEADER_OCTETS: usize = 40;

/// A duration from a float that a person typed: negative and absurd values become 0 and an hour.
fn milliseconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.clamp(0.0, 3_600_000.0) / 1e3).unwrap_or(Duration::ZERO)
}

/// Both directions' behaviour.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkBehaviour {
    /// Branch to data centre.
    pub up: Behaviour,
    /// Data centre to branch.
    pub down: Behaviour,
}

impl LinkBehaviour {
    /// The same both ways.
    #[must_use]
    pub fn both(behaviour: Behaviour) -> Self {
        Self { up: behaviour.clone(), down: behaviour }
    }
}

/// What the link has done since the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// Branch to data centre.
    pub up: Counters,
    /// Data centre to branch.
    pub down: Counters,
    /// How often the direction of TCP payload changed; the first packet with payload counts as a change.
    pub direction_changes: u64,
}

impl LinkCounters {
    /// Round trips over the link: one for each question and answer.
    #[must_use]
    pub const fn round_trips(&self) -> u64 {
        self.direction_changes.div_ceil(2)
    }

    /// Octets of IP offered to the link, both ways.
    #[must_use]
    pub const fn octets(&self) -> u64 {
        self.up.in_octets + self.down.in_octets
    }

    /// How late the emulator itself was at worst.
    #[must_use]
    pub fn late_max(&self) -> Duration {
        Duration::from_micros(self.up.late_max_us.max(self.down.late_max_us))
    }
}

/// Both directions and what only both together can tell.
#[derive(Debug)]
pub struct Link {
    up: Pipe,
    down: Pipe,
    direction_changes: u64,
    last: Option<Direction>,
}

impl Link {
    /// A link that behaves so.
    #[must_use]
    pub fn new(behaviour: LinkBehaviour, seed: u64) -> Self {
        let up = Pipe::new(behaviour.up, seed);
        let down = Pipe::new(behaviour.down, !seed);
        Self { up, down, direction_changes: 0, last: None }
    }

    /// Takes a packet from one side.
    pub fn push(&mut self, direction: Direction, now: Duration, packet: &[u8]) {
        let sent = self.pipe(direction).push(now, packet);
        if sent && tcp_payload_octets(packet) > 0 && self.last != Some(direction) {
            self.last = Some(direction);
            self.direction_changes += 1;
        }
    }

    /// The next packet that is due in this direction.
    pub fn pop(&mut self, direction: Direction, now: Duration) -> Option<Vec<u8>> {
        self.pipe(direction).pop(now)
    }

    /// When the next packet of this direction is due.
    pub fn due(&mut self, direction: Direction) -> Option<Duration> {
        self.pipe(direction).due()
    }

    /// Sets the counters to nothing; packets under way stay.
    pub fn reset(&mut self) {
        self.up.counters = Counters::default();
        self.down.counters = Counters::default();
        self.direction_changes = 0;
        self.last = None;
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> LinkCounters {
        LinkCounters {
            up: self.up.counters.clone(),
            down: self.down.counters.clone(),
            direction_changes: self.direction_changes,
        }
    }

    /// The behaviour.
    #[must_use]
    pub fn behaviour(&self) -> LinkBehaviour {
        LinkBehaviour { up: self.up.behaviour.clone(), down: self.down.behaviour.clone() }
    }

    /// Changes the behaviour for packets that come from now on.
    pub fn set_behaviour(&mut self, behaviour: LinkBehaviour) {
        self.up.behaviour = behaviour.up;
        self.down.behaviour = behaviour.down;
    }

    const fn pipe(&mut self, direction: Direction) -> &mut Pipe {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

#[cfg(test)]
mod tests;
