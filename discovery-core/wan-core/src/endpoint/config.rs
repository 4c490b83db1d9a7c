//! Bounds, each with its reason, and figures.

use std::time::Duration;

/// What one link may hold.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Streams that the peer may open at once, and streams of ours on one lane. Ten thousand clients of a branch come
    /// back at once.
    pub streams_max: usize,
    /// What a stream takes unread at first: a client that reads slowly holds no more.
    pub window: u64,
    /// What it may grow to: two round trips of 160 ms at 100 Mbit/s.
    pub window_max: u64,
    /// What may come before a stream was accepted; the smaller of both sides' is what both know: 64 KiB.
    pub early: u64,
    /// What all streams of a lane take unread.
    pub lane_window: u64,
    /// What one stream takes from its writer before it is sent: more only waits in line here.
    pub unsent_max: u64,
    /// What one stream keeps until it is acknowledged.
    pub stream_held_max: u64,
    /// What all streams of a lane keep.
    pub lane_held_max: u64,
    /// How long streams outlive their connection.
    pub outage_max: Duration,
    /// How long they outlive a peer whose system has ended all their connections: one that is there comes back at once.
    pub gone_max: Duration,
    /// How long what was written before a reset waits for a peer that takes none of it, and what came before one for a
    /// reader that reads none.
    pub remains_max: Duration,
    /// Acknowledgements of small things wait so long for company.
    pub ack_delay: Duration,
    /// So much is acknowledged at once.
    pub ack_octets: u64,
    /// After so much silence the peer is asked.
    pub ping_after: Duration,
    /// After so much silence the connection is given up: with what the timers add, 3 s.
    pub silence_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            streams_max: 16_384,
            window: 256 << 10,
            window_max: 4 << 20,
            early: super::EARLY_OCTETS,
            lane_window: 16 << 20,
            unsent_max: 256 << 10,
            stream_held_max: 4 << 20,
            lane_held_max: 16 << 20,
            outage_max: Duration::from_secs(60),
            gone_max: Duration::from_secs(5),
            remains_max: Duration::from_secs(15),
            ack_delay: Duration::from_millis(25),
            ack_octets: 256 << 10,
            ping_after: Duration::from_secs(1),
            silence_max: Duration::from_millis(2750),
        }
    }
}

/// What happened on a link so far, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Streams that we opened.
    pub opened: u64,
    /// Streams that the peer opened.
    pub accepted: u64,
    /// Octets of streams sent, each counted once.
    pub sent_octets: u64,
    /// Octets of streams received.
    pub received_octets: u64,
    /// Octets that a broken connection made us send again.
    pub repeated_octets: u64,
    /// Lanes that went on, on another connection, with streams on them.
    pub resumes: u64,
    /// Streams that exist now.
    pub streams: usize,
    /// What is kept for the peer, now.
    pub held_octets: u64,
    /// What waits to be read here, now.
    pub unread_octets: u64,
}
