//! Streams that were reset. A reset overtakes nothing that was written before it: here what waits goes out first, there
//! what came is read first. Nobody waits for ever: without progress for [`Config::remains_max`] the rest is dropped.

use super::{Config, Endpoint, Gone, Lane, Now, Output, Phase, Read, Reason, Receiving, StreamId};
use crate::{
    mutants,
    stream::{Ending, Stream},
};
use std::time::{Duration, Instant};

/// What was not read of a stream that the peer has reset. The peer knows no more of it.
#[derive(Debug)]
pub(super) struct Remains {
    recv: Receiving,
    reason: Reason,
    until: Instant,
}

impl Endpoint {
    /// Ends a stream in both directions. What was written before goes out first; what comes is unwanted.
    pub fn reset(&mut self, now: Now, id: StreamId, reason: Reason) {
        let remains_max = self.config.remains_max;
        let lane = self.lanes.get_mut(id.lane());
        let Some(stream) = lane.streams.get_mut(&id).filter(|stream| stream.is_live()) else {
            self.drop_remains(id);
            return;
        };
        if stream.phase == Phase::Offered || mutants::on("link-reset-overtakes") {
            self.end(id, reason, false);
            return;
        }
        lane.consumed += stream.recv.unread();
        stream.recv.drop_octets();
        stream.ending = Some(Ending { reason, said: false, until: now.mono + remains_max });
        lane.linger(now.mono, remains_max);
        self.let_unwanted_come(now, id);
        self.serve_thirsty(id.lane());
        self.queue(id);
    }

    /// Of a stream that nobody reads any more. The peer's reset may stand behind more of it, as ours stands behind what the peer
    /// takes: neither waits for the other.
    pub(super) fn let_unwanted_come(&mut self, now: Now, id: StreamId) {
        let ends = self.lanes.stream_mut(id).is_some_and(|stream| stream.has_octets());
        if ends && !mutants::on("link-unwanted-stands-still") {
            self.grant(now, id);
        } else {
            self.grant_lane(id.lane());
        }
    }

    /// The peer has reset the stream, which is forgotten. Whether its reader has something to read before it is told.
    pub(super) fn keep_remains(&mut self, now: Now, id: StreamId, stream: Stream, reason: Reason) -> bool {
        let Config { remains_max, streams_max, .. } = self.config;
        let lane = self.lanes.get_mut(id.lane());
        let unread = stream.recv.unread();
        let kept = unread > 0
            && stream.phase == Phase::Open
            && stream.is_live()
            && !stream.abandoned
            && lane.remains.len() < streams_max
            && !mutants::on("link-reset-overtakes");
        if kept {
            let until = now.mono + remains_max;
            lane.remains.insert(id, Remains { recv: stream.recv, reason, until });
            lane.linger(now.mono, remains_max);
        } else {
            lane.consumed += unread;
        }
        kept
    }

    /// See [`Endpoint::read`].
    pub(super) fn read_remains(&mut self, now: Now, id: StreamId, most: usize) -> Result<Read, Gone> {
        let until = now.mono + self.config.remains_max;
        let lane = self.lanes.get_mut(id.lane());
        let rest = lane.remains.get_mut(&id).ok_or(Gone)?;
        let Some(octets) = rest.recv.read(most) else {
            let reason = rest.reason;
            lane.remains.remove(&id);
            self.outputs.push_back(Output::Reset(id, reason));
            return Ok(Read::Reset(reason));
        };
        rest.until = until;
        lane.consumed += octets.len() as u64;
        self.grant_lane(id.lane());
        Ok(Read::Octets(octets))
    }

    /// Its reader is gone, or waited for in vain.
    pub(super) fn drop_remains(&mut self, id: StreamId) -> Option<Reason> {
        let lane = self.lanes.get_mut(id.lane());
        let rest = lane.remains.remove(&id)?;
        lane.consumed += rest.recv.unread();
        self.grant_lane(id.lane());
        Some(rest.reason)
    }

    /// Drops what has waited in vain.
    pub(super) fn end_lingering(&mut self, now: Now, lane: Lane) {
        let remains_max = self.config.remains_max;
        let state = self.lanes.get_mut(lane);
        state.linger_at = None;
        if mutants::on("link-remains-kept") {
            return;
        }
        // Without a line nobody can make progress, and there is another limit for that.
        let over = |stream: &Stream| {
            stream.ending.filter(|ending| ending.until <= now.mono).map(|ending| ending.reason)
        };
        let ends: Vec<_> = if state.resumed {
            state.streams.iter().filter_map(|(id, stream)| Some((*id, over(stream)?))).collect()
        } else {
            Vec::new()
        };
        let unread = state.remains.iter().filter(|(_, rest)| rest.until <= now.mono).map(|(id, _)| *id);
        for id in unread.collect::<Vec<_>>() {
            let reason = self.drop_remains(id);
            self.outputs.extend(reason.map(|reason| Output::Reset(id, reason)));
        }
        for (id, reason) in ends {
            self.end(id, reason, false);
        }
        let state = self.lanes.get_mut(lane);
        if !state.remains.is_empty() || state.streams.values().any(|stream| stream.ending.is_some()) {
            state.linger(now.mono, remains_max);
        }
    }
}

impl super::lanes::LaneState {
    /// Looks from time to time, not for each stream at its own.
    fn linger(&mut self, now: Instant, remains_max: Duration) {
        self.linger_at.get_or_insert(now + (remains_max / 4).max(LOOK_MIN));
    }
}

/// A clock that is coarse still moves between two looks.
const LOOK_MIN: Duration = Duration::from_millis(1);
