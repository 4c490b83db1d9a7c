//! What goes out, in which order: what was said about streams first, then the lanes by their urgency, the streams of a
//! lane in turn.

use super::{ConnId, Endpoint, Frame};
use crate::{
    frame::{DATA_OCTETS_MAX, Reset, put_data_head},
    lane::{Lane, LaneSet},
    mutants,
};
use bytes::{Bytes, BytesMut};

impl Endpoint {
    /// Appends what is to be written on `conn` now, about `most` octets of it; nothing when there is nothing. Taken
    /// octets count as sent.
    pub fn poll_transmit(&mut self, conn: ConnId, most: usize, out: &mut Vec<Bytes>) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.woken = false;
        let lanes = state.lanes;
        let mut heads = state.said.split();
        state.said = BytesMut::new();
        if lanes.has(Lane::Interactive) && self.lanes.get(Lane::Interactive).resumed {
            self.notices.drain(..).for_each(|frame| frame.encode(&mut heads));
        }
        let mut written = heads.len();
        while written < most {
            let Some(n) = self.next_frame(lanes, &mut heads, out) else { break };
            written += n;
        }
        if !heads.is_empty() {
            out.push(heads.freeze());
        }
    }

    /// Puts the next frame behind `heads`; its octets when there was one.
    fn next_frame(&mut self, lanes: LaneSet, heads: &mut BytesMut, out: &mut Vec<Bytes>) -> Option<usize> {
        for lane in lanes.iter() {
            if lane == Lane::Background && self.bulk_is_busy() {
                continue;
            }
            if let Some(n) = self.lane_frame(lane, heads, out) {
                return Some(n);
            }
        }
        None
    }

    fn lane_frame(&mut self, lane: Lane, heads: &mut BytesMut, out: &mut Vec<Bytes>) -> Option<usize> {
        let state = self.lanes.get_mut(lane);
        if !state.resumed {
            return None;
        }
        // Each stands in line once; one that waits for the lane's credit stays there.
        for _ in 0..state.ready.len() {
            let id = state.ready.pop_front()?;
            let credit = if mutants::on("link-lane-credit-ignored") { u64::MAX } else { state.credit() };
            let Some(stream) = state.streams.get_mut(&id) else { continue };
            if !stream.wants() {
                stream.ready = false;
                continue;
            }
            let n = stream.send.sendable(credit).min(DATA_OCTETS_MAX as u64);
            if n > 0 {
                let before = heads.len();
                let offset = stream.send.next;
                let octets = usize::try_from(n).unwrap_or(DATA_OCTETS_MAX);
                put_data_head(heads, id, offset, octets);
                let head = heads.len() - before;
                let fresh = state.edit(id, |stream| {
                    stream.send.take(n, |slice| {
                        // A small piece is cheaper copied than written by itself.
                        if slice.len() <= COPIED_OCTETS {
                            heads.extend_from_slice(&slice);
                        } else {
                            out.push(heads.split().freeze());
                            out.push(slice);
                        }
                    })
                });
                let fresh = fresh.unwrap_or(0);
                state.sent += n;
                self.counts.sent_octets += fresh;
                self.go_round(id, heads);
                return Some(head + octets);
            }
            if stream.send.fin_due() || stream.reset_due().is_some() {
                let before = heads.len();
                self.go_round(id, heads);
                return Some(heads.len() - before);
            }
            // No credit on the lane.
            state.ready.push_back(id);
        }
        None
    }

    /// The end, or the reset, if it is there; else the stream's next turn, if it has more.
    fn go_round(&mut self, id: crate::StreamId, heads: &mut BytesMut) {
        let state = self.lanes.get_mut(id.lane());
        if let Some(stream) = state.streams.get_mut(&id) {
            stream.ready = false;
            if stream.send.fin_due() {
                stream.send.sent_fin();
                Frame::Fin { id, offset: stream.send.end }.encode(heads);
            }
            if let (Some(reason), Some(ending)) = (stream.reset_due(), &mut stream.ending) {
                ending.said = true;
                Frame::Rst(Reset { id, reason, answer: false }).encode(heads);
            }
        }
        state.queue(id);
        self.serve_thirsty(id.lane());
    }
}

/// From here on a piece is handed out as it is.
const COPIED_OCTETS: usize = 1024;
