//! Whether a connection is alive, and how far away its other end is.

use super::{Config, ConnId, Endpoint, Output};
use crate::{frame::Frame, lane::LaneSet, mutants, reason::Reason, stream_id::Side};
use bytes::BytesMut;
use discovery_core::now::Now;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) lanes: LaneSet,
    pub(super) dialled: Side,
    /// Frames that go before any data.
    pub(super) said: BytesMut,
    /// The shell has been told to come for what there is.
    pub(super) woken: bool,
    pub(super) rtt: Option<Duration>,
    heard: Instant,
    /// Of a frame that is not whole: shown again each time, and heard once.
    begun: usize,
    /// The last question, and when.
    token: u64,
    asked: Instant,
    waiting: bool,
}

impl Conn {
    pub(super) fn new(now: Instant, lanes: LaneSet, dialled: Side) -> Self {
        Self {
            lanes,
            dialled,
            said: BytesMut::new(),
            woken: false,
            rtt: None,
            heard: now,
            begun: 0,
            token: 0,
            asked: now,
            waiting: false,
        }
    }

    /// What has arrived and was not taken yet.
    pub(super) fn heard(&mut self, now: Instant, octets: usize) {
        if octets != self.begun || mutants::on("link-half-heard") {
            self.heard = now;
        }
    }

    /// What of it is still not taken.
    pub(super) fn begun(&mut self, octets: usize) {
        self.begun = octets;
    }

    /// The answer to a question; those that were not asked are nothing.
    pub(super) fn answered(&mut self, now: Instant, token: u64) {
        if self.waiting && token == self.token {
            self.waiting = false;
            let rtt = now.saturating_duration_since(self.asked);
            self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        }
    }

    fn ask_at(&self, config: &Config) -> Instant {
        // In silence, or now and then for the round trip; the first at once.
        let silent = self.heard.max(self.asked) + config.ping_after;
        let soon = if self.token == 0 { self.asked } else { self.asked + MEASURE_EACH };
        silent.min(soon)
    }

    pub(super) fn deadline(&self, config: &Config) -> Instant {
        let silent = self.heard + config.silence_max;
        if mutants::on("link-silence-unseen") { self.ask_at(config) } else { self.ask_at(config).min(silent) }
    }
}

impl Endpoint {
    /// Asks connections that are silent, and gives up those that do not answer.
    pub(super) fn keep_alive(&mut self, now: Now) {
        for id in self.conns.keys().copied().collect::<Vec<ConnId>>() {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            let silent = conn.heard + self.config.silence_max <= now.mono;
            if silent && !mutants::on("link-silence-unseen") {
                self.detach(now, id);
                self.outputs.push_back(Output::Drop(id, Reason::Silent));
                continue;
            }
            if conn.ask_at(&self.config) <= now.mono {
                conn.token += 1;
                conn.asked = now.mono;
                conn.waiting = true;
                Frame::Ping(conn.token).encode(&mut conn.said);
                self.wake(id);
            }
        }
    }
}

/// A round trip changes with the path, not with each packet.
const MEASURE_EACH: Duration = Duration::from_secs(5);
