//! What a lane knows of its streams.

use super::{Config, ConnId, ending::Remains};
use crate::{lane::Lane, mutants, stream::Stream, stream_id::StreamId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

#[derive(Debug)]
pub(super) struct Lanes {
    interactive: LaneState,
    bulk: LaneState,
    background: LaneState,
}

impl Lanes {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            interactive: LaneState::new(config),
            bulk: LaneState::new(config),
            background: LaneState::new(config),
        }
    }

    pub(super) fn get(&self, lane: Lane) -> &LaneState {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
            Lane::Background => &self.background,
        }
    }

    pub(super) fn get_mut(&mut self, lane: Lane) -> &mut LaneState {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
            Lane::Background => &mut self.background,
        }
    }

    pub(super) fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.get_mut(id.lane()).streams.get_mut(&id)
    }
}

#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) conn: Option<ConnId>,
    /// The peer has said on this connection how far it came.
    pub(super) resumed: bool,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    /// What is still to be read of streams that the peer has reset.
    pub(super) remains: BTreeMap<StreamId, Remains>,
    /// When to look for what lingers in vain, here or among the streams that we have reset.
    pub(super) linger_at: Option<Instant>,
    /// Streams with something to send, in turn.
    pub(super) ready: VecDeque<StreamId>,
    /// Writers that wait for room.
    pub(super) thirsty: VecDeque<StreamId>,
    /// Streams that the peer's RESUME has named so far.
    pub(super) mentioned: BTreeSet<StreamId>,
    /// The counter of the stream that we open next.
    pub(super) next: u64,
    /// The highest counter that the peer used.
    pub(super) seen: u64,
    /// Octets sent on this connection, and how many the peer allows.
    pub(super) sent: u64,
    pub(super) sent_max: u64,
    /// Octets received, those of them that were read or dropped, and how many we allow; counted from what was unread when
    /// the connection came, which is `base`.
    pub(super) base: u64,
    pub(super) received: u64,
    pub(super) consumed: u64,
    pub(super) limit: u64,
    /// Octets on their way.
    pub(super) flight: u64,
    /// Octets kept, with what keeping costs.
    pub(super) held: u64,
    /// Streams whose octets are not yet acknowledged, and when they will be.
    pub(super) acks: Vec<StreamId>,
    pub(super) acks_at: Option<Instant>,
    /// No connection since long: its streams end then.
    pub(super) given_up_at: Option<Instant>,
}

impl LaneState {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            conn: None,
            resumed: false,
            streams: BTreeMap::new(),
            remains: BTreeMap::new(),
            linger_at: None,
            ready: VecDeque::new(),
            thirsty: VecDeque::new(),
            mentioned: BTreeSet::new(),
            next: 1,
            seen: 0,
            sent: 0,
            sent_max: 0,
            base: 0,
            received: 0,
            consumed: 0,
            limit: config.lane_window,
            flight: 0,
            held: 0,
            acks: Vec::new(),
            acks_at: None,
            given_up_at: None,
        }
    }

    /// Credit begins anew: everything that is sent on a connection, repeated or not, is new to its receiver, and arrives
    /// or ends with the connection.
    pub(super) fn attach(&mut self, conn: ConnId, window: u64) {
        self.base = self.unread();
        (self.received, self.consumed, self.limit) = (self.base, 0, window);
        if !mutants::on("link-credit-kept-over-a-cut") {
            (self.sent, self.sent_max) = (0, 0);
        }
        self.conn = Some(conn);
        self.resumed = false;
        self.mentioned = BTreeSet::new();
        self.given_up_at = None;
        // RESUME acknowledges everything.
        self.acks_at = None;
        for id in std::mem::take(&mut self.acks) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.acking = false;
            }
        }
    }

    pub(super) fn detach(&mut self, now: Instant, outage_max: Duration) {
        self.conn = None;
        self.resumed = false;
        self.acks_at = None;
        self.given_up_at = Some(now + outage_max);
    }

    pub(super) fn unread(&self) -> u64 {
        self.received - self.consumed
    }

    /// How much more may be sent that never was.
    pub(super) fn credit(&self) -> u64 {
        self.sent_max.saturating_sub(self.sent)
    }

    /// Changes a stream and keeps the sums.
    pub(super) fn edit<R>(&mut self, id: StreamId, change: impl FnOnce(&mut Stream) -> R) -> Option<R> {
        let stream = self.streams.get_mut(&id)?;
        let (flight, held) = (stream.send.flight(), stream.send.held());
        let result = change(stream);
        self.flight = (self.flight + stream.send.flight()).saturating_sub(flight);
        self.held = (self.held + stream.send.held()).saturating_sub(held);
        Some(result)
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.flight = self.flight.saturating_sub(stream.send.flight());
        self.held = self.held.saturating_sub(stream.send.held());
        Some(stream)
    }

    /// Puts the stream in line, if it wants and does not stand there. Whether it stands there now.
    pub(super) fn queue(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.wants()) else { return false };
        if !std::mem::replace(&mut stream.ready, true) {
            self.ready.push_back(id);
        }
        true
    }

    /// The stream's writer waits for room.
    pub(super) fn thirst(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.thirsty, true)
        {
            self.thirsty.push_back(id);
        }
    }

    /// The limit to tell, when it is worth a frame.
    pub(super) fn grant(&mut self, window: u64) -> Option<u64> {
        let limit = (self.consumed + window).max(self.base);
        (limit >= self.limit + window / 4).then(|| {
            self.limit = limit;
            limit - self.base
        })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let given_up = self.given_up_at.filter(|_| !self.streams.is_empty());
        [self.acks_at, given_up, self.linger_at].into_iter().flatten().min()
    }
}
