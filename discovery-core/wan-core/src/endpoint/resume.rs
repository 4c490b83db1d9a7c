//! How two sides agree on where they were.

use super::{ConnId, Endpoint, Entry, Frame, Lane, Now, Output, Phase, Reason, Reset, StreamId, entry};
use crate::{frame::ENTRIES_MAX, mutants, reason::Violation};

impl Endpoint {
    /// The first thing said for a lane on a connection.
    pub(super) fn say_resume(&mut self, conn: ConnId, lane: Lane) {
        let state = self.lanes.get_mut(lane);
        let entries: Vec<Entry> = state.streams.iter().map(|(id, stream)| entry(*id, stream)).collect();
        for stream in state.streams.values_mut() {
            stream.recv.told = stream.recv.acknowledged();
        }
        let (opened, credit) = (state.seen, state.limit - state.base);
        let Some(conn) = self.conns.get_mut(&conn) else { return };
        let lists = entries.len().div_ceil(ENTRIES_MAX).max(1);
        let mut rest = entries.into_iter();
        for nth in 1..=lists {
            let entries = rest.by_ref().take(ENTRIES_MAX).collect();
            Frame::Resume { lane, last: nth == lists, opened, credit, entries }.encode(&mut conn.said);
        }
    }

    pub(super) fn handle_resume(
        &mut self,
        now: Now,
        lane: Lane,
        last: bool,
        opened: u64,
        credit: u64,
        entries: Vec<Entry>,
    ) -> Result<(), Violation> {
        let state = self.lanes.get_mut(lane);
        if state.resumed {
            return Err(Violation::ResumeOutOfTurn);
        }
        if opened >= state.next {
            return Err(Violation::UnknownStream);
        }
        state.sent_max = state.sent_max.max(credit);
        for entry in entries {
            self.handle_entry(now, lane, entry)?;
        }
        if last {
            self.resumed(lane, opened);
        }
        Ok(())
    }

    fn handle_entry(&mut self, now: Now, lane: Lane, entry: Entry) -> Result<(), Violation> {
        let id = match entry {
            Entry::Live { id, .. } | Entry::Reset { id, .. } => id,
        };
        let remains_max = self.config.remains_max;
        let state = self.lanes.get_mut(lane);
        if id.lane() != lane {
            return Err(Violation::WrongLane);
        }
        if id.side() == self.side && id.counter() >= state.next {
            return Err(Violation::UnknownStream);
        }
        // What is not here is complete, or its OPEN is still to come: what we list tells the peer which.
        let Some(stream) = state.streams.get_mut(&id) else { return Ok(()) };
        if !state.mentioned.insert(id) {
            return Err(Violation::ResumeOutOfTurn);
        }
        match entry {
            Entry::Reset { reason, .. } => self.handle_rst(now, Reset { id, reason, answer: false }),
            Entry::Live { answered, received, limit, .. } => {
                if let Phase::Closing(reason) = stream.phase {
                    // Ended since we said otherwise.
                    let reset = Reset { id, reason, answer: false };
                    self.say(lane, &Frame::Rst(reset));
                    return Ok(());
                }
                let again = state
                    .edit(id, |stream| {
                        stream.send.ack(received)?;
                        stream.send.limit = stream.send.limit.max(limit);
                        if let Some(ending) = &mut stream.ending {
                            ending.until = now.mono + remains_max;
                        }
                        Ok(if mutants::on("link-not-repeated") { 0 } else { stream.rewind() })
                    })
                    .unwrap_or(Ok(0))?;
                self.counts.repeated_octets += again;
                if let Some(stream) = self.lanes.stream_mut(id)
                    && id.side() != self.side
                    && stream.phase == Phase::Open
                    && !answered
                    && !mutants::on("link-answer-not-repeated")
                {
                    let frame = Frame::Opened { id, limit: stream.recv.limit, info: stream.info.clone() };
                    self.say(lane, &frame);
                }
                Ok(())
            }
        }
    }

    /// The peer's list is whole: what it does not mention is settled, and the lane goes on.
    fn resumed(&mut self, lane: Lane, opened: u64) {
        let state = self.lanes.get_mut(lane);
        let mentioned = std::mem::take(&mut state.mentioned);
        state.resumed = true;
        if !mentioned.is_empty() {
            self.counts.resumes += 1;
        }
        let state = self.lanes.get_mut(lane);
        let ids: Vec<StreamId> = state.streams.keys().copied().collect();
        for id in ids {
            if mentioned.contains(&id) {
                self.retire(id);
            } else if id.side() == self.side
                && id.counter() > opened
                && !mutants::on("link-open-not-repeated")
            {
                self.open_again(id);
            } else {
                self.settle_silence(id);
            }
            self.queue(id);
        }
        self.serve_thirsty(lane);
        self.yield_over(lane);
        self.wake_lane(lane);
        self.outputs.push_back(Output::Ready(lane));
    }

    /// The peer never saw our OPEN.
    fn open_again(&mut self, id: StreamId) {
        let lane = self.lanes.get_mut(id.lane());
        let Some(stream) = lane.streams.get(&id) else { return };
        let Some(open) = stream.open.clone() else {
            // We ended it meanwhile.
            self.remove(id);
            return;
        };
        let limit = stream.recv.limit;
        let again = lane.edit(id, |stream| stream.rewind()).unwrap_or(0);
        self.counts.repeated_octets += again;
        self.say(id.lane(), &Frame::Open { id, limit, open: *open });
    }

    /// The peer knew this stream and does not mention it: it was complete there, or ended there.
    fn settle_silence(&mut self, id: StreamId) {
        let state = self.lanes.get_mut(id.lane());
        let Some(stream) = state.streams.get(&id) else { return };
        if !stream.is_live() {
            self.remove(id);
            return;
        }
        let complete = stream.recv.end.is_some()
            && state.edit(id, |stream| stream.send.settled_by_silence()).unwrap_or(false);
        if complete {
            self.retire(id);
            return;
        }
        let opening = state.streams.get(&id).is_some_and(|stream| stream.phase == Phase::Opening);
        let unread = state.streams.get(&id).map_or(0, |stream| stream.recv.unread());
        state.consumed += unread;
        self.remove(id);
        self.outputs.push_back(if opening {
            Output::Refused(id, Reason::PeerForgot)
        } else {
            Output::Reset(id, Reason::PeerForgot)
        });
    }
}
