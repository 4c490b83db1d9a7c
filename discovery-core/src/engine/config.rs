//! What the engine may be told. Every bound stands here with its reason.

use super::peers::Bounds;
use crate::{pmt::PmtConfig, probe::KeyHint};
use std::{collections::BTreeSet, time::Duration};

/// How a client-side node asks whether another one is on the path (US 9,172,620, 'probe query').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embodiment {
    /// On the client's own SYN: no added round trip.
    OnSyn,
    /// The SYN waits for the outcome of a separate probe, at most for [`Config::stall_max`].
    Stalled,
    /// The SYN goes on untouched, beside a separate probe that serves later connections.
    Parallel,
}

/// The acknowledgement number of a forged SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckVariant {
    /// The client's initial sequence number. A client that gets it by accident refuses it and connects to the server
    /// itself.
    Isn,
    /// One more, as a server would say: where a strict firewall on the path wants it. A client that gets it by
    /// accident believes it.
    IsnPlusOne,
}

/// How a server-side node answers a query (US 9,172,620, 'probe response').
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answering {
    /// By an option on a forged SYN-ACK, and by a datagram where a client's reset showed that the option got lost.
    #[default]
    Auto,
    /// By the option alone.
    Option,
    /// By a datagram alone.
    Datagram,
}

/// Settings of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How to ask.
    pub embodiment: Embodiment,
    /// How to answer.
    pub ack: AckVariant,
    /// By what to answer.
    pub answering: Answering,
    /// How long a client's network is answered by datagrams, and the option not tried again.
    pub stripped_max: Duration,
    /// A number that the shell draws at start; forged sequence numbers come from it.
    pub cookie: u32,
    /// The port of separate probes.
    pub probe_port: u16,
    /// How many SYNs of one connection, a client's or an own one, carry the query before the next goes without: a
    /// firewall may drop options, and then the first SYN and one repeated one are lost. Fewer for own ones would make
    /// the next node give way to a SYN without a query while it waits for a late server.
    pub probes_max: u8,
    /// Two SYNs closer than this are one, doubled by the network.
    pub duplicate_max: Duration,
    /// A SYN repeated sooner than this was repeated because its sender refused an answer: timers start at a second.
    pub quick_max: Duration,
    /// After the last SYN a query waits this long for an answer or another SYN: longer than the third timer of a
    /// client that doubles it (1, 2, 4 s).
    pub probe_max: Duration,
    /// How long a SYN waits for a separate probe.
    pub stall_max: Duration,
    /// How long a peer may take to say yes or no; then the kept SYN goes past it.
    pub open_max: Duration,
    /// A timer that runs out so much before it is looked at tells of this node, not of who was silent.
    pub late_max: Duration,
    /// For so long then nothing is concluded from silence, and what came meanwhile is read.
    pub hear_out: Duration,
    /// How long an early connection waits to be claimed; none: 1.5 s, or 150 ms with [`AckVariant::IsnPlusOne`].
    pub orphan: Option<Duration>,
    /// How long an early connect waits for the server: long enough for a late one whose first SYN was lost, short
    /// enough that a server that is not there does not take the places of others for long.
    pub early_connect_max: Duration,
    /// How long the connect of a claimed connection may take.
    pub connect_max: Duration,
    /// For so long after its claim a connection gives way to the client's own SYN, when that comes without its node: longer
    /// than the second timer of a client that doubles it (1, 2 s).
    pub claim_young_max: Duration,
    /// How long a SYN that was seen entitles a peer to ask for its connection.
    pub seen_max: Duration,
    /// How long after its last SYN a connection that went past still does: longer than the fifth timer of a client that
    /// doubles it (32 s).
    pub past_max: Duration,
    /// Connections known at once. What is new beyond it is not touched.
    pub flows_max: usize,
    /// Octets of kept SYNs at once.
    pub kept_octets_max: usize,
    /// A longer SYN (with data) is not kept, so its connection is not touched.
    pub packet_octets_max: usize,
    /// SYNs that wait for separate probes at once.
    pub held_max: usize,
    /// Early connections that nobody claimed yet, in all: spoofed queries make a node open connections to servers.
    pub unclaimed_max: usize,
    /// The same for one client network. A claim gives the place back at once, an orphan only slowly.
    pub unclaimed_network_max: u32,
    /// After how long one place of an orphan is given back.
    pub orphan_penance: Duration,
    /// Client networks remembered at once.
    pub networks_max: usize,
    /// How many bits make a client's network, IPv4.
    pub network_v4_bits: u8,
    /// How many bits make a client's network, IPv6.
    pub network_v6_bits: u8,
    /// SYNs remembered for claims at once.
    pub seen_entries_max: usize,
    /// SYNs remembered whose queries nobody answered.
    pub tried_entries_max: usize,
    /// Connections from before that are reset, or begun to be adopted, within a second: their clients come back at once.
    pub existing_per_second_max: u32,
    /// How often one is reset that does not end, or observed that cannot be adopted.
    pub existing_tries_max: u8,
    /// Peers that the operator names, for servers or not; those of the table's static entries need not be repeated.
    pub named: BTreeSet<KeyHint>,
    /// Others remembered at once.
    pub peers_max: usize,
    /// How long a peer that was away stands behind the others once it is back: long enough for its rules to be in place, and
    /// twice as long each time.
    pub hold_down_min: Duration,
    /// The most of it; one that was well for so long begins anew.
    pub hold_down_max: Duration,
    /// How long a peer's word is believed that connections are to go past it: several times its interval.
    pub aside_max: Duration,
    /// How long a peer that is away is missed.
    pub missed_max: Duration,
    /// That a peer is away is known so long after it is: a silence, or a slow line.
    pub word_max: Duration,
    /// How long after its return a peer may not have its packets yet.
    pub back_max: Duration,
    /// Refusals remembered, each of one peer for one server.
    pub refusals_max: usize,
    /// Peers asked for one connection, one after another.
    pub candidates_max: usize,
    /// Decisions remembered for `status`.
    pub recent_max: usize,
    /// UDP flows at once.
    pub datagram_flows_max: usize,
    /// How long after its last datagram a UDP flow is one.
    pub datagram_idle_max: Duration,
    /// The proxy mapping table's own.
    pub pmt: PmtConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            embodiment: Embodiment::OnSyn,
            ack: AckVariant::Isn,
            answering: Answering::Auto,
            stripped_max: Duration::from_secs(600),
            cookie: 0x5a5a_5a5a,
            probe_port: 7_783,
            probes_max: 2,
            duplicate_max: Duration::from_millis(3),
            quick_max: Duration::from_millis(500),
            probe_max: Duration::from_secs(5),
            stall_max: Duration::from_millis(500),
            open_max: Duration::from_secs(2),
            late_max: Duration::from_millis(50),
            hear_out: Duration::from_millis(200),
            orphan: None,
            early_connect_max: Duration::from_secs(6),
            connect_max: Duration::from_secs(30),
            claim_young_max: Duration::from_secs(5),
            seen_max: Duration::from_secs(10),
            past_max: Duration::from_secs(40),
            flows_max: 65_536,
            kept_octets_max: 16 << 20,
            packet_octets_max: 2_048,
            held_max: 1_024,
            unclaimed_max: 256,
            unclaimed_network_max: 128,
            orphan_penance: Duration::from_millis(100),
            networks_max: 1_024,
            network_v4_bits: 24,
            network_v6_bits: 56,
            seen_entries_max: 16_384,
            tried_entries_max: 4_096,
            existing_per_second_max: 20,
            existing_tries_max: 3,
            named: BTreeSet::new(),
            peers_max: 256,
            hold_down_min: Duration::from_secs(3),
            hold_down_max: Duration::from_secs(300),
            aside_max: Duration::from_secs(5),
            missed_max: Duration::from_secs(600),
            word_max: Duration::from_secs(5),
            back_max: Duration::from_secs(5),
            refusals_max: 4_096,
            candidates_max: 16,
            recent_max: 1_024,
            datagram_flows_max: 65_536,
            datagram_idle_max: Duration::from_secs(60),
            pmt: PmtConfig::default(),
        }
    }
}

impl Config {
    pub(super) fn peers(&self) -> Bounds {
        Bounds {
            peers_max: self.peers_max,
            hold_min: self.hold_down_min.min(self.hold_down_max),
            hold_max: self.hold_down_max,
            aside_max: self.aside_max,
            missed_max: self.missed_max,
            back_max: self.back_max,
        }
    }

    pub(super) fn named(&self) -> BTreeSet<KeyHint> {
        self.named.iter().copied().chain(self.pmt.statics.iter().map(|named| named.peer.key)).collect()
    }

    /// How long an early connection waits to be claimed.
    #[must_use]
    pub fn orphan_after(&self) -> Duration {
        self.orphan.unwrap_or(match self.ack {
            AckVariant::Isn => Duration::from_millis(1500),
            AckVariant::IsnPlusOne => Duration::from_millis(150),
        })
    }
}
