//! One side of a link: streams over lanes over connections that come and go.
//!
//! The shell attaches connections that have exchanged HELLO, hands in what arrives on them ([`Endpoint::handle_received`]),
//! writes what [`Endpoint::poll_transmit`] gives, and drains [`Endpoint::poll_output`] after each call.
//!
//! A lane's first frame on a connection is RESUME: what its sender holds and how far it came. What the receiver holds
//! beyond that is sent again; what the sender does not mention is settled by what must then have happened. So no
//! state of a broken connection matters, and nothing but an unacknowledged octet is ever repeated.

mod config;
mod ending;
mod lanes;
mod live;
mod receive;
mod resume;
#[cfg(test)]
mod tests;
mod transmit;

pub use config::{Config, Counts};

use crate::{
    buffer::{GrantPace, Receiving, Sending},
    frame::{Entry, Frame, Reset},
    hello::{Birth, Greeting, Hello, VERSION},
    lane::{Lane, LaneSet},
    mutants,
    notice::{Candidates, Notice},
    open::OpenFrame,
    reason::Reason,
    stream::{Phase, Stream},
    stream_id::{Side, StreamId},
};
use bytes::Bytes;
use discovery_core::now::Now;
use lanes::{LaneState, Lanes};
use live::Conn;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// A connection, named by the shell; never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What the endpoint wants done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// There is something to write on this connection.
    Transmit(ConnId),
    /// This connection is of no more use: close it.
    Drop(ConnId, Reason),
    /// The peer asks for a stream: [`Endpoint::accept`] or [`Endpoint::refuse`] it.
    Incoming(StreamId, OpenFrame),
    /// The peer accepted.
    Opened(StreamId, Bytes),
    /// The peer refused; the stream is gone.
    Refused(StreamId, Reason),
    /// There is something to read, or the end.
    Readable(StreamId),
    /// There is room for writing again.
    Writable(StreamId),
    /// The stream ended before its time; it is gone, and everything that came before was read or has waited for too long.
    Reset(StreamId, Reason),
    /// A message beside the streams.
    Notice(Notice),
    /// Who could serve in the peer's place.
    Candidates(Candidates),
    /// The lane carries streams from now on.
    Ready(Lane),
    /// The peer takes no more streams; when the reason is final, [`Endpoint::close`] is due.
    Goaway(Reason),
}

/// What reading gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Octets.
    Octets(Bytes),
    /// Nothing yet.
    Wait,
    /// Nothing any more.
    End,
    /// Nothing any more: it was reset after what has been read. [`Output::Reset`] says so too.
    Reset(Reason),
}

/// The stream does not exist (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What became of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It carries its lanes from now on.
    Taken,
    /// Another one does, and stays.
    Duplicate,
    /// This side is about to end, and the peer's is not the life that its last streams are of.
    Leaving,
}

/// One side of a link.
#[derive(Debug)]
pub struct Endpoint {
    config: Config,
    side: Side,
    birth: Birth,
    peer: Option<Birth>,
    conns: BTreeMap<ConnId, Conn>,
    lanes: Lanes,
    outputs: VecDeque<Output>,
    notices: VecDeque<Frame>,
    /// We take no more streams.
    leaving: bool,
    /// The peer takes no more.
    peer_leaving: Option<Reason>,
    /// Streams that the peer opened.
    guests: usize,
    counts: Counts,
}

impl Endpoint {
    /// A link that nobody has connected yet.
    #[must_use]
    pub fn new(config: Config, side: Side, birth: Birth) -> Self {
        Self {
            config,
            side,
            birth,
            peer: None,
            conns: BTreeMap::new(),
            lanes: Lanes::new(&config),
            outputs: VecDeque::new(),
            notices: VecDeque::new(),
            leaving: false,
            peer_leaving: None,
            guests: 0,
            counts: Counts::default(),
        }
    }

    /// What this side says first on a connection for `lanes`.
    #[must_use]
    pub fn hello(&self, lanes: LaneSet) -> Frame {
        Frame::Hello(Hello::Known(Greeting { version: VERSION, lanes, birth: self.birth }))
    }

    /// A connection that `dialled` made and on which the peer said `greeting`.
    pub fn attach(&mut self, now: Now, conn: ConnId, dialled: Side, greeting: &Greeting) -> Admission {
        let rivals: Vec<ConnId> =
            self.conns.iter().filter(|(_, c)| c.lanes.meets(greeting.lanes)).map(|(id, _)| *id).collect();
        let same_peer = self.peer == Some(greeting.birth);
        // Who dials again has seen the old connection end. Of two that dialled at once, one must win on both sides.
        let stays = |rival: &Conn| {
            rival.dialled != dialled && dialled != Side::First && !mutants::on("link-both-dials-stay")
        };
        if self.leaving && !same_peer {
            return Admission::Leaving;
        }
        if same_peer && rivals.iter().filter_map(|id| self.conns.get(id)).any(stays) {
            return Admission::Duplicate;
        }
        // Streams that were opened before the first connection have met no peer: they are not of a former life.
        if self.peer.replace(greeting.birth).is_some_and(|former| former != greeting.birth)
            && !mutants::on("link-restart-unseen")
        {
            self.forget_peer(now, Reason::PeerRestarted);
        }
        for rival in rivals {
            self.drop_conn(now, rival, Reason::Replaced);
        }
        self.conns.insert(conn, Conn::new(now.mono, greeting.lanes, dialled));
        for lane in greeting.lanes.iter() {
            self.lanes.get_mut(lane).attach(conn, self.config.lane_window);
            self.say_resume(conn, lane);
        }
        self.wake(conn);
        Admission::Taken
    }

    /// A connection ended. Its streams wait for the next one.
    pub fn detach(&mut self, now: Now, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        for lane in gone.lanes.iter() {
            let lane = self.lanes.get_mut(lane);
            if lane.conn == Some(conn) {
                lane.detach(now.mono, self.config.outage_max);
            }
        }
        // Who said that it leaves, and is gone, does not come back: another process may, which knows none of these.
        if let Some(reason) = self.peer_leaving.filter(|_| self.conns.is_empty()) {
            Lane::ALL.iter().for_each(|lane| self.give_up(*lane, reason));
        }
    }

    fn drop_conn(&mut self, now: Now, conn: ConnId, reason: Reason) {
        self.detach(now, conn);
        self.outputs.push_back(Output::Drop(conn, reason));
    }

    /// What the peer's former life held is gone.
    fn forget_peer(&mut self, now: Now, reason: Reason) {
        self.peer_leaving = None;
        for conn in self.conns.keys().copied().collect::<Vec<_>>() {
            self.drop_conn(now, conn, reason);
        }
        for lane in Lane::ALL {
            let fresh = LaneState::new(&self.config);
            let old = std::mem::replace(self.lanes.get_mut(lane), fresh);
            self.outputs.extend(old.remains.into_keys().map(|id| Output::Reset(id, reason)));
            let ended = old.streams.into_iter().filter(|(_, stream)| stream.is_live());
            self.outputs.extend(ended.map(|(id, stream)| match stream.phase {
                Phase::Opening => Output::Refused(id, reason),
                Phase::Offered | Phase::Open | Phase::Closing(_) => Output::Reset(id, reason),
            }));
            // A name is not used again, whoever the peer is.
            self.lanes.get_mut(lane).next = old.next;
        }
        self.guests = 0;
    }

    /// The link is at its end: every stream is.
    pub fn close(&mut self, now: Now, reason: Reason) {
        self.forget_peer(now, reason);
        self.leaving = true;
        self.peer_leaving = Some(reason);
    }

    /// Opens a stream. It may be written to at once; a lane without a connection sends all of it with the next.
    ///
    /// # Errors
    /// The peer takes no more streams, or there are too many.
    pub fn open(&mut self, now: Now, open: OpenFrame) -> Result<StreamId, Reason> {
        if let Some(reason) = self.peer_leaving {
            return Err(reason);
        }
        let lane = Lane::from(open.class);
        let window = self.config.window;
        let state = self.lanes.get_mut(lane);
        if state.streams.len() >= self.config.streams_max {
            return Err(Reason::Busy);
        }
        let id = StreamId::new(self.side, lane, state.next).ok_or(Reason::Busy)?;
        state.next += 1;
        if state.conn.is_none() {
            state.given_up_at.get_or_insert(now.mono + self.config.outage_max);
        }
        let send = Sending::new(self.config.early.min(EARLY_OCTETS));
        let mut stream = Stream::new(Phase::Opening, send, Receiving::new(window, window));
        let frame = Frame::Open { id, limit: window, open: open.clone() };
        stream.open = Some(Box::new(open));
        state.streams.insert(id, stream);
        self.counts.opened += 1;
        // Before the peer has said which names it saw, it might be told of this one twice.
        if self.lanes.get_mut(lane).resumed {
            self.say(lane, &frame);
        }
        Ok(id)
    }

    /// Answers [`Output::Incoming`]: the stream stands, and the opener is told `info`.
    ///
    /// # Errors
    /// The stream is gone, or was answered.
    pub fn accept(&mut self, id: StreamId, info: Bytes) -> Result<(), Gone> {
        let window = self.config.window;
        let stream = self.lanes.stream_mut(id).ok_or(Gone)?;
        if stream.phase != Phase::Offered {
            return Err(Gone);
        }
        stream.phase = Phase::Open;
        stream.info = info.clone();
        stream.recv.limit = stream.recv.limit.max(window);
        let frame = Frame::Opened { id, limit: stream.recv.limit, info };
        let lane = self.lanes.get(id.lane());
        // Before the peer has said what it has heard it might hear this one twice: what it says then is answered.
        if lane.resumed || lane.mentioned.contains(&id) || mutants::on("link-answered-twice") {
            self.say(id.lane(), &frame);
        }
        self.queue(id);
        Ok(())
    }

    /// Answers [`Output::Incoming`]: there will be no stream.
    pub fn refuse(&mut self, id: StreamId, reason: Reason) {
        if self.lanes.stream_mut(id).is_some_and(|stream| stream.phase == Phase::Offered) {
            self.end(id, reason, true);
        }
    }

    /// Takes what fits of `octets`; 0 means that [`Output::Writable`] will say when to come again.
    ///
    /// # Errors
    /// The stream is gone, or finished.
    pub fn write(&mut self, id: StreamId, octets: &[u8]) -> Result<usize, Gone> {
        let room = self.room_of(id)?;
        let n = octets.len().min(room);
        if n == 0 && !octets.is_empty() {
            self.lanes.get_mut(id.lane()).thirst(id);
            return Ok(0);
        }
        let taken = octets.get(..n).unwrap_or_default();
        self.lanes.get_mut(id.lane()).edit(id, |stream| stream.send.write(taken));
        self.queue(id);
        Ok(n)
    }

    /// How much [`Endpoint::write`] would take; 0 means the same as there.
    ///
    /// # Errors
    /// The stream is gone, or finished.
    pub fn room(&mut self, id: StreamId) -> Result<usize, Gone> {
        let room = self.room_of(id)?;
        if room == 0 {
            self.lanes.get_mut(id.lane()).thirst(id);
        }
        Ok(room)
    }

    fn room_of(&self, id: StreamId) -> Result<usize, Gone> {
        let config = &self.config;
        let lane = self.lanes.get(id.lane());
        // Its reader comes first, and is told for both.
        if lane.remains.contains_key(&id) {
            return Ok(0);
        }
        let stream =
            lane.streams.get(&id).filter(|stream| stream.is_live() && !stream.send.finished).ok_or(Gone)?;
        let room = config
            .unsent_max
            .saturating_sub(stream.send.unsent())
            .min(config.stream_held_max.saturating_sub(stream.send.held()))
            .min(config.lane_held_max.saturating_sub(lane.held));
        Ok(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// Nothing more will be written; the other direction goes on.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn finish(&mut self, id: StreamId) -> Result<(), Gone> {
        if self.lanes.get(id.lane()).remains.contains_key(&id) {
            return Ok(());
        }
        let stream = self.lanes.stream_mut(id).filter(|stream| stream.is_live()).ok_or(Gone)?;
        stream.send.finished = true;
        self.queue(id);
        Ok(())
    }

    /// Bounds what the peer may have on its way to the reader of a stream.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn bound(&mut self, id: StreamId, octets: u64) -> Result<(), Gone> {
        if !self.lanes.get(id.lane()).remains.contains_key(&id) {
            self.lanes.stream_mut(id).ok_or(Gone)?.recv.bound(octets);
        }
        Ok(())
    }

    /// Everything that was written is with the peer, and so is the end if it was said.
    #[must_use]
    pub fn is_flushed(&self, id: StreamId) -> bool {
        self.lanes.get(id.lane()).streams.get(&id).is_none_or(|stream| stream.send.unsent() == 0)
    }

    /// At most `most` octets of what arrived.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn read(&mut self, now: Now, id: StreamId, most: usize) -> Result<Read, Gone> {
        let lane = self.lanes.get_mut(id.lane());
        let Some(stream) = lane.streams.get_mut(&id).filter(|stream| stream.is_live()) else {
            return self.read_remains(now, id, most);
        };
        if stream.recv.is_done() {
            stream.ended = true;
            self.retire(id);
            return Ok(Read::End);
        }
        let Some(octets) = stream.recv.read(most) else { return Ok(Read::Wait) };
        lane.consumed += octets.len() as u64;
        self.grant(now, id);
        self.retire(id);
        Ok(Read::Octets(octets))
    }

    /// The stream's user is gone. What it wrote and finished still goes out; whatever else comes is unwanted.
    pub fn abandon(&mut self, id: StreamId) {
        let Some(stream) = self.lanes.stream_mut(id).filter(|stream| stream.is_live()) else {
            self.drop_remains(id);
            return;
        };
        if stream.send.finished && stream.recv.unread() == 0 {
            stream.abandoned = true;
            self.retire(id);
        } else {
            self.end(id, Reason::Cancelled, false);
        }
    }

    /// Sends a message beside the streams, or with the next connection; dropped when too many wait.
    pub fn notify(&mut self, notice: Notice) {
        self.beside(Frame::Notice(notice));
    }

    /// Tells the peer who could serve in our place.
    pub fn candidates(&mut self, list: Candidates) {
        self.beside(Frame::Candidates(list));
    }

    fn beside(&mut self, frame: Frame) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push_back(frame);
            self.wake_lane(Lane::Interactive);
        }
    }

    /// From now on the peer's new streams are refused; those that stand go on.
    pub fn leave(&mut self, reason: Reason) {
        self.leaving = true;
        self.say(Lane::Interactive, &Frame::Goaway(reason));
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Figures.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        counts.streams = Lane::ALL.iter().map(|lane| self.lanes.get(*lane).streams.len()).sum();
        counts.held_octets = Lane::ALL.iter().map(|lane| self.lanes.get(*lane).held).sum();
        counts.unread_octets = Lane::ALL.iter().map(|lane| self.lanes.get(*lane).unread()).sum();
        counts
    }

    /// Octets sent and received on each lane's connection: what credit is about.
    #[cfg(any(test, feature = "pair"))]
    pub(crate) fn credits(&self) -> [(u64, u64); 3] {
        Lane::ALL.map(|lane| {
            let lane = self.lanes.get(lane);
            (lane.sent, lane.received - lane.base)
        })
    }

    /// The connection of a lane, and the round trip on it.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> Option<(ConnId, Option<Duration>)> {
        let id = self.lanes.get(lane).conn?;
        Some((id, self.conns.get(&id)?.rtt))
    }

    /// A connection carries the lane and the peer has said how far it came.
    #[must_use]
    pub fn is_ready(&self, lane: Lane) -> bool {
        self.lanes.get(lane).resumed
    }

    /// Which lanes have a connection.
    #[must_use]
    pub fn attached(&self) -> LaneSet {
        self.conns.values().fold(LaneSet::NONE, |set, conn| set.and(conn.lanes))
    }

    /// Whether foreground bulk has octets on their way: background then stands still.
    #[must_use]
    pub fn bulk_is_busy(&self) -> bool {
        let bulk = self.lanes.get(Lane::Bulk);
        bulk.conn.is_some() && bulk.flight > 0 && !mutants::on("link-background-greedy")
    }

    /// Puts a frame behind what the lane's connection already says; lost when there is none, for RESUME makes up for it.
    fn say(&mut self, lane: Lane, frame: &Frame) {
        let Some(id) = self.lanes.get(lane).conn else { return };
        if let Some(conn) = self.conns.get_mut(&id) {
            frame.encode(&mut conn.said);
            self.wake(id);
        }
    }

    fn wake_lane(&mut self, lane: Lane) {
        if let Some(id) = self.lanes.get(lane).conn {
            self.wake(id);
        }
    }

    fn wake(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && !std::mem::replace(&mut conn.woken, true)
        {
            self.outputs.push_back(Output::Transmit(id));
        }
    }

    /// Gives the stream its turn, if it has something to say.
    fn queue(&mut self, id: StreamId) {
        let lane = self.lanes.get_mut(id.lane());
        if lane.queue(id) && lane.resumed {
            self.wake_lane(id.lane());
        }
    }

    /// Ends a stream on our side: it stays, without octets, until the peer says that it knows.
    fn end(&mut self, id: StreamId, reason: Reason, refused: bool) {
        let lane = self.lanes.get_mut(id.lane());
        let unread = lane.streams.get(&id).map_or(0, |stream| stream.recv.unread());
        lane.consumed += unread;
        lane.edit(id, |stream| {
            stream.send.drop_octets();
            stream.recv.drop_octets();
            stream.phase = Phase::Closing(reason);
            stream.ending = None;
            stream.open = None;
            stream.info = Bytes::new();
        });
        let reset = Reset { id, reason, answer: false };
        // A peer that never saw the OPEN learns nothing from this; before it has said so we do not know.
        if lane.resumed || id.side() != self.side {
            self.say(id.lane(), &if refused { Frame::Refused(reset) } else { Frame::Rst(reset) });
        }
        self.grant_lane(id.lane());
        self.serve_thirsty(id.lane());
        self.yield_over(id.lane());
    }

    /// Forgets a stream.
    fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.lanes.get_mut(id.lane()).remove(id)?;
        if id.side() != self.side {
            self.guests = self.guests.saturating_sub(1);
        }
        self.yield_over(id.lane());
        Some(stream)
    }

    /// Forgets a stream that is complete.
    fn retire(&mut self, id: StreamId) {
        if self.lanes.stream_mut(id).is_some_and(|stream| stream.is_complete()) {
            self.remove(id);
            self.serve_thirsty(id.lane());
        }
    }

    /// Tells the peer that more may come, on the stream and on the lane, when it is worth a frame.
    fn grant(&mut self, now: Now, id: StreamId) {
        let lane = self.lanes.get(id.lane());
        let rtt = lane.conn.and_then(|conn| self.conns.get(&conn)?.rtt).unwrap_or_default();
        let pace = GrantPace {
            quick: (rtt * 2).max(QUICK_MIN),
            room: lane.unread() < self.config.lane_window / 4,
            window_max: self.config.window_max,
        };
        if let Some(stream) = self.lanes.stream_mut(id)
            && stream.phase != Phase::Offered
            && let Some(limit) = stream.recv.grant(now.mono, pace)
        {
            let received = stream.recv.acknowledged();
            stream.recv.told = received;
            self.say(id.lane(), &Frame::Window { id, received, limit });
        }
        self.grant_lane(id.lane());
    }

    fn grant_lane(&mut self, lane: Lane) {
        if let Some(limit) = self.lanes.get_mut(lane).grant(self.config.lane_window) {
            self.say(lane, &Frame::Credit { lane, limit });
        }
    }

    /// Wakes writers that waited for room and have some now.
    fn serve_thirsty(&mut self, lane: Lane) {
        let config = self.config;
        let state = self.lanes.get_mut(lane);
        if state.thirsty.is_empty() || state.held >= config.lane_held_max {
            return;
        }
        let mut still = VecDeque::new();
        while let Some(id) = state.thirsty.pop_front() {
            let Some(stream) = state.streams.get_mut(&id) else { continue };
            let room = stream.send.unsent() <= config.unsent_max / 2
                && stream.send.held() < config.stream_held_max.saturating_sub(config.unsent_max / 2);
            if room && stream.is_live() {
                stream.thirsty = false;
                self.outputs.push_back(Output::Writable(id));
            } else if stream.is_live() {
                still.push_back(id);
            }
        }
        state.thirsty = still;
    }

    /// Foreground bulk may have come to rest: then background goes on.
    fn yield_over(&mut self, lane: Lane) {
        if lane == Lane::Bulk && !self.bulk_is_busy() && !self.lanes.get(Lane::Background).ready.is_empty() {
            self.wake_lane(Lane::Background);
        }
    }

    /// When [`Endpoint::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let conns = self.conns.values().map(|conn| conn.deadline(&self.config));
        let lanes = Lane::ALL.iter().filter_map(|lane| self.lanes.get(*lane).deadline());
        conns.chain(lanes).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.keep_alive(now);
        for lane in Lane::ALL {
            let state = self.lanes.get_mut(lane);
            if state.acks_at.is_some_and(|at| at <= now.mono) {
                self.acknowledge(lane);
            }
            let state = self.lanes.get_mut(lane);
            if state.linger_at.is_some_and(|at| at <= now.mono) {
                self.end_lingering(now, lane);
            }
            let state = self.lanes.get_mut(lane);
            if state.given_up_at.is_some_and(|at| at <= now.mono) {
                state.given_up_at = None;
                self.give_up(lane, Reason::LinkLost);
            }
        }
    }

    /// The outage has lasted too long for what stood on this lane.
    fn give_up(&mut self, lane: Lane, reason: Reason) {
        let state = self.lanes.get_mut(lane);
        let stand = state.streams.iter().filter(|(_, stream)| stream.has_octets());
        let facts = |(id, s): (&StreamId, &Stream)| (*id, s.is_live(), s.phase == Phase::Opening);
        for (id, live, opening) in stand.map(facts).collect::<Vec<_>>() {
            self.end(id, reason, false);
            if live {
                self.outputs.push_back(if opening {
                    Output::Refused(id, reason)
                } else {
                    Output::Reset(id, reason)
                });
            }
        }
    }

    /// Tells the peer what arrived on the streams of the lane.
    fn acknowledge(&mut self, lane: Lane) {
        let state = self.lanes.get_mut(lane);
        state.acks_at = None;
        for id in std::mem::take(&mut state.acks) {
            self.acknowledge_stream(id);
        }
    }

    fn acknowledge_stream(&mut self, id: StreamId) {
        let Some(stream) = self.lanes.stream_mut(id) else { return };
        stream.acking = false;
        let (received, limit) = (stream.recv.acknowledged(), stream.recv.limit);
        if stream.is_live() && received > stream.recv.told {
            stream.recv.told = received;
            self.say(id.lane(), &Frame::Window { id, received, limit });
        }
    }
}

/// What both sides know may be sent before OPENED: the client's first request, most often whole.
pub(crate) const EARLY_OCTETS: u64 = 64 * 1024;
/// Beside the streams, at most so many wait; none is worth memory.
const NOTICES_MAX: usize = 256;
/// A reader on the same machine is not slow because the clock is coarse.
const QUICK_MIN: Duration = Duration::from_millis(20);

fn entry(id: StreamId, stream: &Stream) -> Entry {
    match stream.phase {
        Phase::Closing(reason) => Entry::Reset { id, reason },
        Phase::Offered | Phase::Opening | Phase::Open => Entry::Live {
            id,
            answered: stream.phase == Phase::Open,
            received: stream.recv.acknowledged(),
            limit: stream.recv.limit,
        },
    }
}
