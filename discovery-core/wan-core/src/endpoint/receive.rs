//! What arrives on a connection.

use super::{
    Conn, ConnId, EARLY_OCTETS, Endpoint, Output, Phase, Reason, Receiving, Reset, Sending, Stream, StreamId,
};
use crate::{
    frame::{self, Frame},
    mutants,
    open::OpenFrame,
    reason::Violation,
};
use bytes::{Bytes, BytesMut};
use discovery_core::now::Now;

impl Endpoint {
    /// Takes every whole frame from the front of `octets`. What arrives on a connection that is no longer attached is
    /// nothing.
    ///
    /// # Errors
    /// The peer broke a rule: the link is at its end, and [`Endpoint::close`] is due.
    pub fn handle_received(
        &mut self,
        now: Now,
        conn: ConnId,
        octets: &mut BytesMut,
    ) -> Result<(), Violation> {
        match self.conns.get_mut(&conn) {
            Some(state) => state.heard(now.mono, octets.len()),
            None => {
                octets.clear();
                return Ok(());
            }
        }
        while let Some(frame) = frame::decode(octets)? {
            self.handle_frame(now, conn, frame)?;
            let Some(state) = self.conns.get(&conn) else { break };
            if state.said.len() > SAID_OCTETS_MAX && !mutants::on("link-flood-unbounded") {
                return Err(Violation::Flood);
            }
        }
        if let Some(state) = self.conns.get_mut(&conn) {
            state.begun(octets.len());
        }
        Ok(())
    }

    fn handle_frame(&mut self, now: Now, conn: ConnId, frame: Frame) -> Result<(), Violation> {
        match frame {
            Frame::Hello(_) => Err(Violation::ResumeOutOfTurn),
            Frame::Resume { lane, last, opened, credit, entries } => {
                self.expect_lane(conn, lane)?;
                self.handle_resume(now, lane, last, opened, credit, entries)
            }
            Frame::Open { id, limit, open } => {
                self.expect_stream(conn, id)?;
                self.handle_open(id, limit, open)
            }
            Frame::Opened { id, limit, info } => {
                self.expect_stream(conn, id)?;
                self.handle_opened(id, limit, info)
            }
            Frame::Refused(reset) | Frame::Rst(reset) => {
                self.expect_stream(conn, reset.id)?;
                self.handle_rst(now, reset)
            }
            Frame::Data { id, offset, hints: _, octets } => {
                self.expect_stream(conn, id)?;
                self.handle_data(now, id, offset, octets)
            }
            Frame::Fin { id, offset } => {
                self.expect_stream(conn, id)?;
                self.handle_fin(id, offset)
            }
            Frame::Window { id, received, limit } => {
                self.expect_stream(conn, id)?;
                self.handle_window(now, id, received, limit)
            }
            Frame::Credit { lane, limit } => {
                self.expect_lane(conn, lane)?;
                let state = self.lanes.get_mut(lane);
                state.sent_max = state.sent_max.max(limit);
                if !state.ready.is_empty() {
                    self.wake_lane(lane);
                }
                Ok(())
            }
            Frame::Ping(token) => {
                if let Some(state) = self.conns.get_mut(&conn) {
                    Frame::Pong(token).encode(&mut state.said);
                    self.wake(conn);
                }
                Ok(())
            }
            Frame::Pong(token) => {
                if let Some(state) = self.conns.get_mut(&conn) {
                    state.answered(now.mono, token);
                }
                Ok(())
            }
            Frame::Goaway(reason) => {
                // Said of a connection only, it is followed by the connection's end.
                if reason == Reason::ShuttingDown || reason.is_final() {
                    self.peer_leaving = Some(reason);
                    self.outputs.push_back(Output::Goaway(reason));
                } else if reason == Reason::Silent {
                    // What was sent did not arrive there, which its sender may know nothing of.
                    self.outputs.push_back(Output::Drop(conn, reason));
                }
                Ok(())
            }
            Frame::Notice(notice) => {
                self.outputs.push_back(Output::Notice(notice));
                Ok(())
            }
            Frame::Candidates(list) => {
                self.outputs.push_back(Output::Candidates(list));
                Ok(())
            }
            Frame::Ignored => Ok(()),
        }
    }

    fn expect_lane(&self, conn: ConnId, lane: crate::Lane) -> Result<(), Violation> {
        if self.conns.get(&conn).is_some_and(|conn: &Conn| conn.lanes.has(lane)) {
            Ok(())
        } else {
            Err(Violation::WrongLane)
        }
    }

    /// A frame of a stream, behind RESUME and on its lane, of a name that was given out.
    fn expect_stream(&self, conn: ConnId, id: StreamId) -> Result<(), Violation> {
        self.expect_lane(conn, id.lane())?;
        let lane = self.lanes.get(id.lane());
        if !lane.resumed {
            return Err(Violation::ResumeOutOfTurn);
        }
        if id.side() == self.side && id.counter() >= lane.next {
            return Err(Violation::UnknownStream);
        }
        Ok(())
    }

    fn handle_open(&mut self, id: StreamId, limit: u64, open: OpenFrame) -> Result<(), Violation> {
        if id.side() == self.side {
            return Err(Violation::WrongSide);
        }
        let early = self.config.early.min(EARLY_OCTETS);
        let lane = self.lanes.get_mut(id.lane());
        if id.counter() <= lane.seen && !mutants::on("link-name-reused") {
            return Err(Violation::StreamReuse);
        }
        if self.guests >= self.config.streams_max.saturating_mul(2) {
            return Err(Violation::StreamsMax);
        }
        lane.seen = id.counter();
        let stream =
            Stream::new(Phase::Offered, Sending::new(limit), Receiving::new(early, self.config.window));
        lane.streams.insert(id, stream);
        self.guests += 1;
        self.counts.accepted += 1;
        if self.leaving {
            self.end(id, Reason::ShuttingDown, true);
        } else if self.guests > self.config.streams_max {
            self.end(id, Reason::Busy, true);
        } else {
            self.outputs.push_back(Output::Incoming(id, open));
        }
        Ok(())
    }

    fn handle_opened(&mut self, id: StreamId, limit: u64, info: Bytes) -> Result<(), Violation> {
        if id.side() != self.side {
            return Err(Violation::WrongSide);
        }
        let Some(stream) = self.lanes.stream_mut(id) else { return Ok(()) };
        match stream.phase {
            Phase::Opening => {
                stream.phase = Phase::Open;
                stream.open = None;
                stream.send.limit = stream.send.limit.max(limit);
                if stream.is_live() {
                    self.outputs.push_back(Output::Opened(id, info));
                }
                self.queue(id);
                Ok(())
            }
            // It crossed our RST.
            Phase::Closing(_) => Ok(()),
            Phase::Offered | Phase::Open => Err(Violation::AnsweredTwice),
        }
    }

    pub(super) fn handle_rst(&mut self, now: Now, reset: Reset) -> Result<(), Violation> {
        let Reset { id, reason, answer } = reset;
        let lane = self.lanes.get_mut(id.lane());
        if id.side() != self.side && id.counter() > lane.seen {
            return Err(Violation::UnknownStream);
        }
        let reply = Frame::Rst(Reset { id, reason, answer: true });
        let Some(stream) = self.remove(id) else {
            // We have forgotten what was complete; the peer has not heard yet.
            if !answer {
                self.say(id.lane(), &reply);
            }
            return Ok(());
        };
        let (phase, told) = (stream.phase, stream.abandoned || stream.ending.is_some());
        let kept = self.keep_remains(now, id, stream, reason);
        self.grant_lane(id.lane());
        self.serve_thirsty(id.lane());
        match phase {
            // Both ended it: each has said so, and neither says more about it.
            Phase::Closing(_) => return Ok(()),
            Phase::Opening | Phase::Offered | Phase::Open if told => {}
            Phase::Opening => self.outputs.push_back(Output::Refused(id, reason)),
            Phase::Offered | Phase::Open if kept => self.outputs.push_back(Output::Readable(id)),
            Phase::Offered | Phase::Open => self.outputs.push_back(Output::Reset(id, reason)),
        }
        if !answer {
            self.say(id.lane(), &reply);
        }
        Ok(())
    }

    fn handle_data(&mut self, now: Now, id: StreamId, offset: u64, octets: Bytes) -> Result<(), Violation> {
        let n = octets.len() as u64;
        let ack_octets = self.config.ack_octets;
        let lane = self.lanes.get_mut(id.lane());
        let stream = lane.streams.get_mut(&id).ok_or(Violation::UnknownStream)?;
        stream.recv.check(offset, n)?;
        if lane.received + n > lane.limit {
            return Err(Violation::LaneCredit);
        }
        lane.received += n;
        self.counts.received_octets += n;
        if !stream.is_live() {
            lane.consumed += n;
            stream.recv.discard(n);
            self.let_unwanted_come(now, id);
            return Ok(());
        }
        let was_empty = stream.recv.unread() == 0;
        stream.recv.push(octets);
        if stream.abandoned {
            self.end(id, Reason::Cancelled, false);
            return Ok(());
        }
        let (unread, due) = (stream.recv.unread(), stream.recv.received - stream.recv.told >= ack_octets);
        if !std::mem::replace(&mut stream.acking, true) {
            lane.acks.push(id);
            let delay = self.config.ack_delay;
            lane.acks_at.get_or_insert(now.mono + delay);
        }
        if due {
            // It stays in the list, where the timer finds it told.
            self.acknowledge_stream(id);
            if let Some(stream) = self.lanes.stream_mut(id) {
                stream.acking = true;
            }
        }
        if was_empty && unread > 0 {
            self.outputs.push_back(Output::Readable(id));
        }
        Ok(())
    }

    fn handle_fin(&mut self, id: StreamId, offset: u64) -> Result<(), Violation> {
        let stream = self.lanes.stream_mut(id).ok_or(Violation::UnknownStream)?;
        stream.recv.check(offset, 0)?;
        stream.recv.end = Some(offset);
        if !stream.is_live() {
            return Ok(());
        }
        self.acknowledge_stream(id);
        self.outputs.push_back(Output::Readable(id));
        if self.lanes.stream_mut(id).is_some_and(|stream| stream.abandoned) {
            self.retire(id);
        }
        Ok(())
    }

    fn handle_window(&mut self, now: Now, id: StreamId, received: u64, limit: u64) -> Result<(), Violation> {
        let lane = self.lanes.get_mut(id.lane());
        if id.side() != self.side && id.counter() > lane.seen {
            return Err(Violation::UnknownStream);
        }
        let until = now.mono + self.config.remains_max;
        if !lane.streams.get(&id).is_some_and(Stream::has_octets) {
            return Ok(());
        }
        lane.edit(id, |stream| {
            let before = stream.send.acked;
            stream.send.ack(received)?;
            if let Some(ending) = stream.ending.as_mut().filter(|_| stream.send.acked > before) {
                ending.until = until;
            }
            stream.send.limit = stream.send.limit.max(limit);
            Ok(())
        })
        .unwrap_or(Ok(()))?;
        self.queue(id);
        self.retire(id);
        self.serve_thirsty(id.lane());
        self.yield_over(id.lane());
        Ok(())
    }
}

/// Answers that a peer asks for and does not read. Resuming the most streams that may be takes a fifth of it.
const SAID_OCTETS_MAX: usize = 4 << 20;
