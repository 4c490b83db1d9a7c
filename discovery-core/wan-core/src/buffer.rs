//! The two ends of one direction of a stream: what was written and is not acknowledged, what arrived and is not
//! read. Both hold nothing at rest.

use crate::{frame::DATA_OCTETS_MAX, mutants, reason::Violation};
use bytes::{Buf, Bytes, BytesMut};
use std::{collections::VecDeque, mem, time::Instant};

/// What was written. `acked <= next <= high <= end`: acknowledged, where to go on, ever sent, ever written.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    pub(crate) acked: u64,
    pub(crate) next: u64,
    pub(crate) high: u64,
    pub(crate) end: u64,
    pub(crate) limit: u64,
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    /// Where `next` stands: how many chunks before it, and how far into the one after them.
    cursor: (usize, usize),
    /// The writer has said that nothing follows.
    pub(crate) finished: bool,
    /// FIN has been sent, on this connection.
    pub(crate) fin_sent: bool,
    /// FIN has been sent, on any.
    fin_high: bool,
    pub(crate) fin_acked: bool,
}

impl Sending {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Octets that are on their way.
    pub(crate) fn flight(&self) -> u64 {
        self.next - self.acked
    }

    /// Octets that wait to be sent for the first time.
    pub(crate) fn unsent(&self) -> u64 {
        self.end - self.next
    }

    /// Memory in use, about.
    pub(crate) fn held(&self) -> u64 {
        self.end - self.acked + self.chunks.len() as u64 * CHUNK_COST
    }

    /// Small pieces are gathered, large ones are cut as frames carry them.
    pub(crate) fn write(&mut self, octets: &[u8]) {
        self.end += octets.len() as u64;
        for piece in octets.chunks(DATA_OCTETS_MAX) {
            if self.tail.len() + piece.len() > DATA_OCTETS_MAX {
                self.settle();
            }
            if piece.len() >= SMALL_OCTETS && self.tail.is_empty() {
                self.chunks.push_back(Bytes::copy_from_slice(piece));
            } else {
                self.tail.extend_from_slice(piece);
            }
        }
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(mem::take(&mut self.tail).freeze());
        }
    }

    /// How many octets could be sent, of at most `lane`.
    pub(crate) fn sendable(&self, lane: u64) -> u64 {
        self.limit.min(self.end).min(self.next.saturating_add(lane)).saturating_sub(self.next)
    }

    /// Whether FIN is what comes next.
    pub(crate) fn fin_due(&self) -> bool {
        self.finished && !self.fin_sent && self.next == self.end
    }

    /// Whether there is anything to send, were the lane free.
    pub(crate) fn wants(&self) -> bool {
        self.fin_due() || self.sendable(u64::MAX) > 0
    }

    /// Moves on by at most `most` octets, handing out slices; returns how many were never sent before.
    pub(crate) fn take(&mut self, most: u64, mut out: impl FnMut(Bytes)) -> u64 {
        self.settle();
        let mut left = usize::try_from(most).unwrap_or(usize::MAX);
        while left > 0 {
            let (nth, from) = self.cursor;
            let Some(chunk) = self.chunks.get(nth) else { break };
            let n = left.min(chunk.len() - from);
            out(chunk.slice(from..from + n));
            self.cursor = if from + n == chunk.len() { (nth + 1, 0) } else { (nth, from + n) };
            self.next += n as u64;
            left -= n;
        }
        let fresh = self.next.saturating_sub(self.high);
        self.high = self.high.max(self.next);
        fresh
    }

    pub(crate) fn sent_fin(&mut self) {
        self.fin_sent = true;
        self.fin_high = true;
    }

    /// The peer has so many, one more for the FIN.
    pub(crate) fn ack(&mut self, received: u64) -> Result<(), Violation> {
        let fin = self.fin_high && received == self.end + 1;
        let received = if fin { self.end } else { received };
        if received < self.acked || received > self.high || self.fin_acked && !fin {
            return Err(Violation::AckOutOfRange);
        }
        self.fin_acked = fin;
        let mut gone = usize::try_from(received - self.acked).unwrap_or(usize::MAX);
        self.acked = received;
        while gone > 0 {
            let Some(chunk) = self.chunks.front_mut() else { break };
            if chunk.len() > gone {
                chunk.advance(gone);
                if self.cursor.0 == 0 {
                    self.cursor.1 = self.cursor.1.saturating_sub(gone);
                }
                break;
            }
            gone -= chunk.len();
            self.chunks.pop_front();
            self.cursor = if self.cursor.0 == 0 { (0, 0) } else { (self.cursor.0 - 1, self.cursor.1) };
        }
        self.next = self.next.max(self.acked);
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
        Ok(())
    }

    /// A new connection: everything that was not acknowledged goes again. Returns how much that is.
    pub(crate) fn rewind(&mut self) -> u64 {
        let again = self.next - self.acked;
        self.next = self.acked;
        self.cursor = (0, 0);
        if !mutants::on("link-end-not-repeated") {
            self.fin_sent = self.fin_acked;
        }
        again
    }

    /// Nothing more is sent; what was sent stays counted.
    pub(crate) fn drop_octets(&mut self) {
        self.end = self.high;
        self.next = self.high;
        self.acked = self.high;
        self.chunks = VecDeque::new();
        self.tail = BytesMut::new();
        self.cursor = (0, 0);
    }

    /// The peer has forgotten the stream: it did so because it had everything, or it did not have it.
    pub(crate) fn settled_by_silence(&mut self) -> bool {
        self.fin_high && self.ack(self.end + 1).is_ok()
    }
}

/// What arrived.
#[derive(Debug)]
pub(crate) struct Receiving {
    pub(crate) received: u64,
    pub(crate) consumed: u64,
    pub(crate) limit: u64,
    /// What the peer was last told of `received`.
    pub(crate) told: u64,
    /// How many octets there will be.
    pub(crate) end: Option<u64>,
    window: u64,
    /// Whoever reads wants no more than so many on their way.
    bound: u64,
    granted: Option<Instant>,
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Receiving {
    pub(crate) fn new(limit: u64, window: u64) -> Self {
        Self {
            received: 0,
            consumed: 0,
            limit,
            told: 0,
            end: None,
            window,
            bound: u64::MAX,
            granted: None,
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
        }
    }

    /// The number of WINDOW.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.received + u64::from(self.end.is_some())
    }

    pub(crate) fn unread(&self) -> u64 {
        self.received - self.consumed
    }

    /// Everything came and was read.
    pub(crate) fn is_done(&self) -> bool {
        self.end == Some(self.consumed)
    }

    /// May `n` octets come at `offset`?
    pub(crate) fn check(&self, offset: u64, n: u64) -> Result<(), Violation> {
        if self.end.is_some() {
            return Err(Violation::BehindEnd);
        }
        if offset != self.received && !mutants::on("link-order-unchecked") {
            return Err(Violation::OutOfOrder);
        }
        if offset.saturating_add(n) > self.limit && !mutants::on("link-credit-unchecked") {
            return Err(Violation::StreamCredit);
        }
        Ok(())
    }

    /// Takes them. A small piece of a large buffer would keep all of that alive: it is copied.
    pub(crate) fn push(&mut self, octets: Bytes) {
        self.received += octets.len() as u64;
        if octets.len() < SHARED_OCTETS_MIN {
            self.tail.extend_from_slice(&octets);
            if self.tail.len() < DATA_OCTETS_MAX {
                return;
            }
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(mem::take(&mut self.tail).freeze());
        }
        if octets.len() >= SHARED_OCTETS_MIN {
            self.chunks.push_back(octets);
        }
    }

    /// Counts octets that nobody will read.
    pub(crate) fn discard(&mut self, n: u64) {
        self.received += n;
        self.consumed = self.received;
    }

    /// Nobody will read what is here.
    pub(crate) fn drop_octets(&mut self) {
        self.consumed = self.received;
        self.chunks = VecDeque::new();
        self.tail = BytesMut::new();
    }

    pub(crate) fn read(&mut self, most: usize) -> Option<Bytes> {
        let octets = match self.chunks.front_mut() {
            Some(chunk) if chunk.len() > most => chunk.split_to(most),
            Some(_) => self.chunks.pop_front()?,
            None if self.tail.len() > most => self.tail.split_to(most).freeze(),
            None if !self.tail.is_empty() => mem::take(&mut self.tail).freeze(),
            None => return None,
        };
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
        self.consumed += octets.len() as u64;
        Some(octets)
    }

    /// From now on at most so many octets are asked for at a time. What the peer may send already still comes.
    pub(crate) fn bound(&mut self, octets: u64) {
        self.bound = octets.max(1);
        self.window = self.window.min(self.bound);
    }

    /// The limit to tell when it is worth a frame: half a window was read. A reader that keeps up with what a round trip
    /// brings is given more.
    pub(crate) fn grant(&mut self, now: Instant, pace: GrantPace) -> Option<u64> {
        if self.end.is_some() || self.consumed + self.window < self.limit + self.window / 2 {
            return None;
        }
        let quick = self.granted.is_none_or(|last| now.saturating_duration_since(last) < pace.quick);
        if quick && pace.room {
            self.window =
                self.window.saturating_mul(GROWTH).min(pace.window_max).max(self.window).min(self.bound);
        }
        self.granted = Some(now);
        self.limit = self.consumed + self.window;
        Some(self.limit)
    }
}

/// What decides how far a window may grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantPace {
    /// A reader that comes back within this keeps up.
    pub(crate) quick: std::time::Duration,
    /// The lane's memory is mostly free.
    pub(crate) room: bool,
    pub(crate) window_max: u64,
}

/// What a chunk costs beside its octets.
const CHUNK_COST: u64 = 64;
/// From here on a write is not gathered with others.
const SMALL_OCTETS: usize = 4 * 1024;
/// From here on an arriving piece shares the buffer that it came in: half of one, so that at most twice as much is kept.
const SHARED_OCTETS_MIN: usize = 8 * 1024;
/// Three grants from the first window to the largest.
const GROWTH: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
    fn a_bounded_reader_asks_for_no_more_and_takes_nothing_back() {
        let (mut receiving, now) = (Receiving::new(256, 256), Instant::now());
        let pace = GrantPace { quick: std::time::Duration::MAX, room: true, window_max: 4096 };
        receiving.push(Bytes::from(vec![0; 100]));
        assert_eq!(receiving.read(1000).map(|octets| octets.len()), Some(100));
        receiving.bound(16);
        assert_eq!(receiving.grant(now, pace), None, "the peer has more than that already");
        receiving.push(Bytes::from(vec![0; 150]));
        assert_eq!(receiving.read(1000).map(|octets| octets.len()), Some(150));
        assert_eq!(receiving.grant(now, pace), Some(266));
        receiving.push(Bytes::from(vec![0; 16]));
        assert_eq!(receiving.read(1000).map(|octets| octets.len()), Some(16));
        assert_eq!(receiving.grant(now, pace), Some(282), "and it does not grow");
    }

    proptest! {
        /// Whatever is written, sent, acknowledged and sent again in whatever pieces: the other end has the octets.
        #[test]
        fn repeated_octets_are_the_same_octets(steps in vec((0..4_u8, 0..40_000_usize), 1..60)) {
            let (mut sending, mut seen, mut written) = (Sending::new(u64::MAX), Vec::new(), Vec::new());
            for (what, n) in steps {
                match what {
                    0 => {
                        let octets: Vec<u8> = (0..n).map(|k| (written.len() + k).to_le_bytes()[0] ^ 0x5a).collect();
                        written.extend_from_slice(&octets);
                        sending.write(&octets);
                    }
                    1 => {
                        let at = usize::try_from(sending.next).unwrap();
                        let mut pieces = Vec::new();
                        sending.take(n as u64, |piece| pieces.extend_from_slice(&piece));
                        prop_assert_eq!(pieces.as_slice(), &written[at..at + pieces.len()]);
                        prop_assert_eq!(pieces.len(), n.min(written.len() - at));
                        seen.truncate(at);
                        seen.extend_from_slice(&pieces);
                    }
                    2 => {
                        let most = sending.high - sending.acked;
                        let received = sending.acked + (n as u64).min(most);
                        sending.ack(received).unwrap();
                    }
                    _ => drop(sending.rewind()),
                }
                prop_assert!(sending.acked <= sending.next && sending.next <= sending.high);
                prop_assert!(sending.high <= sending.end);
                prop_assert_eq!(sending.end, written.len() as u64);
            }
            sending.rewind();
            let from = usize::try_from(sending.acked).unwrap();
            let mut rest = Vec::new();
            sending.take(u64::MAX, |piece| rest.extend_from_slice(&piece));
            prop_assert_eq!(rest.as_slice(), &written[from..]);
        }

        #[test]
        fn what_arrives_in_any_pieces_is_read_in_any_pieces(
            pieces in vec(vec(any::<u8>(), 1..20_000), 0..12), most in 1..30_000_usize
        ) {
            let mut receiving = Receiving::new(u64::MAX, 1);
            pieces.iter().for_each(|piece| receiving.push(Bytes::from(piece.clone())));
            let mut seen = Vec::new();
            while let Some(octets) = receiving.read(most) {
                prop_assert!(octets.len() <= most);
                seen.extend_from_slice(&octets);
            }
            prop_assert_eq!(seen, pieces.concat());
            prop_assert_eq!(receiving.unread(), 0);
        }
    }

    #[test]
    fn an_acknowledgement_of_what_was_not_sent_is_a_violation() {
        let mut sending = Sending::new(u64::MAX);
        sending.write(b"abcdef");
        sending.take(4, drop);
        assert_eq!(sending.ack(5), Err(Violation::AckOutOfRange));
        assert_eq!(sending.ack(3), Ok(()));
        assert_eq!(sending.ack(2), Err(Violation::AckOutOfRange));
        sending.take(9, drop);
        assert_eq!(sending.ack(7), Err(Violation::AckOutOfRange), "no FIN was sent");
        sending.sent_fin();
        assert_eq!(sending.ack(7), Ok(()));
        assert!(sending.fin_acked && sending.held() == 0);
    }

    #[test]
    fn many_small_writes_cost_little_more_than_their_octets() {
        let mut sending = Sending::new(u64::MAX);
        (0..100_000).for_each(|_| sending.write(b"x"));
        assert!(sending.held() < 101_000, "{}", sending.held());
    }
}
