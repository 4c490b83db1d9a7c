//! One link: its endpoint behind a lock, and whom to wake for what comes out of it.

use crate::{identity::Authority, status::LaneStatus, stream::LinkStream};
use bytes::{Bytes, BytesMut};
use discovery_core::{
    id::NodeId,
    now::{Now, UnixMillis},
};
use std::{
    collections::HashMap,
    fmt,
    future::{pending, poll_fn},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;
use wan_core::{
    Admission, Candidates, Config, ConnId, Counts, Endpoint, Gone, Lane, LaneSet, Notice, OpenFrame, Output,
    Read, Reason, Side, StreamId, Violation,
    hello::{Birth, Greeting},
    pace,
};

/// What a link hands to whoever owns the links.
pub(crate) trait Owner: Send + Sync {
    fn incoming(&self, link: &Arc<Link>, id: StreamId, open: OpenFrame);
    fn notice(&self, node: &NodeId, notice: Notice);
    fn candidates(&self, node: &NodeId, list: Candidates);
}

pub(crate) struct Link {
    pub(crate) node: NodeId,
    owner: Arc<dyn Owner>,
    state: Mutex<State>,
    /// A lane came or went.
    pub(crate) changed: Notify,
}

struct State {
    endpoint: Endpoint,
    waits: HashMap<StreamId, Wait>,
    conns: HashMap<ConnId, ConnState>,
    conns_made: u64,
    authority: Option<Authority>,
    learnt: HashMap<Lane, u64>,
    last: Option<Reason>,
    closed: bool,
    /// The peer takes no more streams; its successor is another link.
    peer_leaves: bool,
    absence: Absence,
}

/// How the peer went away.
#[derive(Clone, Copy, Debug, Default)]
struct Absence {
    /// A connection fell silent, or ended by this node, and no other has been made since: the line may be at fault.
    line: bool,
    /// Since when there is no connection, all having been ended by the peer's system, as when a process is killed.
    gone: Option<Instant>,
}

/// What the user of a stream waits for, and what it was told.
#[derive(Default)]
struct Wait {
    reader: Option<Waker>,
    writer: Option<Waker>,
    answer: Option<Waker>,
    answered: Option<Bytes>,
    dead: Option<Reason>,
}

struct ConnState {
    wake: Arc<Notify>,
    drop: Option<Reason>,
    remote: SocketAddr,
    congestion: String,
    pace: Option<u64>,
    lanes: LaneSet,
}

/// A connection that a link has taken.
pub(crate) struct Taken {
    pub(crate) conn: ConnId,
    pub(crate) wake: Arc<Notify>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(
        config: Config,
        own: &NodeId,
        node: NodeId,
        random: u64,
        owner: Arc<dyn Owner>,
    ) -> Self {
        let side = if *own < node { Side::First } else { Side::Second };
        let state = State {
            endpoint: Endpoint::new(config, side, Birth::new(random)),
            waits: HashMap::new(),
            conns: HashMap::new(),
            conns_made: 0,
            authority: None,
            learnt: HashMap::new(),
            last: None,
            closed: false,
            peer_leaves: false,
            absence: Absence::default(),
        };
        Self { node, owner, state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the state and sees to what comes out of it, with the lock released.
    fn with<R>(self: &Arc<Self>, change: impl FnOnce(&mut State, Now) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state, now());
        let after = state.drain();
        drop(state);
        if let Some(after) = after {
            self.see_to(after);
        }
        result
    }

    fn see_to(self: &Arc<Self>, after: After) {
        after.wakers.into_iter().for_each(Waker::wake);
        if after.changed {
            self.changed.notify_waiters();
        }
        after.incoming.into_iter().for_each(|(id, open)| self.owner.incoming(self, id, open));
        after.notices.into_iter().for_each(|notice| self.owner.notice(&self.node, notice));
        after.candidates.into_iter().for_each(|list| self.owner.candidates(&self.node, list));
        if let Some(reason) = after.expelled {
            tracing::warn!(peer = %self.node, %reason, "the peer ends the link");
            self.close(reason);
        }
    }

    pub(crate) fn hello(&self, lanes: LaneSet) -> wan_core::frame::Frame {
        self.lock().endpoint.hello(lanes)
    }

    pub(crate) fn side(own: &NodeId, node: &NodeId) -> Side {
        if own < node { Side::First } else { Side::Second }
    }

    /// Takes a connection on which the peer has said `greeting`; none when another one stays.
    pub(crate) fn attach(
        self: &Arc<Self>,
        dialled: Side,
        greeting: &Greeting,
        authority: Authority,
        remote: SocketAddr,
        congestion: String,
    ) -> Result<Taken, Reason> {
        self.with(|state, now| {
            if state.closed {
                return Err(Reason::Closed);
            }
            state.conns_made += 1;
            let conn = ConnId(state.conns_made);
            match state.endpoint.attach(now, conn, dialled, greeting) {
                Admission::Duplicate => Err(Reason::Duplicate),
                Admission::Leaving => Err(Reason::ShuttingDown),
                Admission::Taken => {
                    let wake = Arc::new(Notify::new());
                    // The endpoint has said that there is something to write before anybody could listen.
                    wake.notify_one();
                    let lanes = greeting.lanes;
                    let (drop, pace) = (None, None);
                    let taken = Taken { conn, wake: wake.clone() };
                    state.conns.insert(conn, ConnState { wake, drop, remote, congestion, pace, lanes });
                    state.authority = Some(authority);
                    state.absence = Absence::default();
                    Ok(taken)
                }
            }
        })
    }

    /// A connection has ended; `cut`: by the peer's system, without a word.
    pub(crate) fn detach(self: &Arc<Self>, conn: ConnId, reason: Reason, cut: bool) {
        self.with(|state, now| {
            state.endpoint.detach(now, conn);
            state.conns.remove(&conn);
            state.last = Some(reason);
            state.absence.line |= !cut;
            if state.conns.is_empty() && !state.absence.line {
                state.absence.gone = Some(now.mono);
            }
        });
        self.changed.notify_waiters();
    }

    /// Takes what arrived on a connection and gives, when nothing waits, what goes out; when to come again at the latest.
    ///
    /// # Errors
    /// Why the connection is to end.
    pub(crate) fn turn(
        self: &Arc<Self>,
        conn: ConnId,
        arrived: &mut BytesMut,
        most: usize,
        pending: &mut Vec<Bytes>,
    ) -> Result<Option<Instant>, Reason> {
        let result = self.with(|state, now| {
            if !arrived.is_empty() {
                state.endpoint.handle_received(now, conn, arrived)?;
            }
            if pending.is_empty() {
                state.endpoint.poll_transmit(conn, most, pending);
            }
            let dropped = state.conns.get(&conn).map_or(Some(Reason::Closed), |conn| conn.drop);
            Ok((state.endpoint.poll_timeout(), dropped))
        });
        match result {
            Ok((deadline, None)) => Ok(deadline),
            Ok((_, Some(reason))) => Err(reason),
            Err(violation) => {
                let violation: Violation = violation;
                tracing::warn!(peer = %self.node, why = violation.word(), "the peer breaks the rules of the link");
                self.close(Reason::Violation);
                Err(Reason::Violation)
            }
        }
    }

    /// Why a connection is to end, where that is known already.
    pub(crate) fn dropped(&self, conn: ConnId) -> Option<Reason> {
        self.lock().conns.get(&conn).and_then(|conn| conn.drop)
    }

    pub(crate) fn tick(self: &Arc<Self>) {
        self.with(|state, now| {
            if state.endpoint.poll_timeout().is_some_and(|at| at <= now.mono) {
                state.endpoint.handle_timeout(now);
            }
        });
    }

    pub(crate) fn attached(&self) -> LaneSet {
        self.lock().endpoint.attached()
    }

    pub(crate) fn is_ready(&self, lane: Lane) -> bool {
        self.lock().endpoint.is_ready(lane)
    }

    /// Whether new streams can be expected of it.
    pub(crate) fn is_current(&self) -> bool {
        let state = self.lock();
        !state.closed && !state.peer_leaves
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.conns.is_empty() && state.endpoint.counts().streams == 0
    }

    /// Whether its process has ended, and what that held with it.
    pub(crate) fn is_gone(&self, gone_max: Duration) -> bool {
        let gone = self.lock().absence.gone;
        gone.is_some_and(|since| now().mono.saturating_duration_since(since) >= gone_max)
    }

    pub(crate) fn fail(&self, reason: Reason) {
        self.lock().last = Some(reason);
    }

    pub(crate) fn last(&self) -> Option<Reason> {
        self.lock().last
    }

    pub(crate) fn authority(&self) -> Option<Authority> {
        self.lock().authority.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().endpoint.counts()
    }

    pub(crate) fn lanes(&self) -> Vec<LaneStatus> {
        let state = self.lock();
        let of = |lane: &Lane| {
            let (id, rtt) = state.endpoint.lane(*lane)?;
            let conn = state.conns.get(&id)?;
            Some(LaneStatus {
                lane: *lane,
                remote: conn.remote,
                rtt,
                congestion: conn.congestion.clone(),
                pace: conn.pace,
                shared: conn.lanes == LaneSet::ALL,
            })
        };
        Lane::ALL.iter().filter_map(of).collect()
    }

    /// What an earlier connection of the lane learnt of the line.
    pub(crate) fn learnt(&self, lane: Lane) -> Option<u64> {
        self.lock().learnt.get(&lane).copied()
    }

    pub(crate) fn paced(&self, conn: ConnId, lane: Lane, controller: &pace::Controller) {
        let mut state = self.lock();
        if let Some(conn) = state.conns.get_mut(&conn) {
            conn.pace = controller.rate();
        }
        if let Some(learnt) = controller.learnt() {
            state.learnt.insert(lane, learnt);
        }
    }

    /// Ends every stream and every connection.
    pub(crate) fn close(self: &Arc<Self>, reason: Reason) {
        self.with(|state, now| {
            state.closed = true;
            state.last = Some(reason);
            state.endpoint.close(now, reason);
        });
        self.changed.notify_waiters();
    }

    pub(crate) fn leave(self: &Arc<Self>) {
        self.with(|state, _| state.endpoint.leave(Reason::ShuttingDown));
    }

    pub(crate) fn notify(self: &Arc<Self>, notice: Notice) {
        self.with(|state, _| state.endpoint.notify(notice));
    }

    pub(crate) fn tell_candidates(self: &Arc<Self>, list: Candidates) {
        self.with(|state, _| state.endpoint.candidates(list));
    }

    pub(crate) fn open(self: &Arc<Self>, open: OpenFrame) -> Result<LinkStream, Reason> {
        let id = self.with(|state, now| {
            let id = state.endpoint.open(now, open)?;
            state.waits.insert(id, Wait::default());
            Ok(id)
        })?;
        Ok(LinkStream::new(self.clone(), id))
    }

    /// Answers a peer's OPEN.
    pub(crate) fn accept(self: &Arc<Self>, id: StreamId, info: Bytes) -> Result<LinkStream, Gone> {
        self.with(|state, _| state.endpoint.accept(id, info))?;
        Ok(LinkStream::new(self.clone(), id))
    }

    pub(crate) fn refuse(self: &Arc<Self>, id: StreamId, reason: Reason) {
        self.with(|state, _| {
            state.endpoint.refuse(id, reason);
            state.waits.remove(&id);
        });
    }

    pub(crate) fn poll_read(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        id: StreamId,
        most: usize,
    ) -> Poll<Result<Option<Bytes>, Reason>> {
        self.with(|state, now| match state.endpoint.read(now, id, most) {
            Ok(Read::Octets(octets)) => Poll::Ready(Ok(Some(octets))),
            Ok(Read::End) => Poll::Ready(Ok(None)),
            Ok(Read::Reset(reason)) => Poll::Ready(Err(reason)),
            Ok(Read::Wait) => {
                keep(&mut state.waits.entry(id).or_default().reader, cx);
                Poll::Pending
            }
            Err(Gone) => Poll::Ready(state.gone(id)),
        })
    }

    pub(crate) fn poll_write(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        id: StreamId,
        octets: &[u8],
    ) -> Poll<Result<usize, Reason>> {
        self.with(|state, _| match state.endpoint.write(id, octets) {
            Ok(0) if !octets.is_empty() => {
                keep(&mut state.waits.entry(id).or_default().writer, cx);
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok(n)),
            Err(Gone) => Poll::Ready(state.gone(id).map(|_| 0)),
        })
    }

    /// Room for writing, without writing.
    pub(crate) fn poll_room(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        id: StreamId,
    ) -> Poll<Result<usize, Reason>> {
        self.with(|state, _| match state.endpoint.room(id) {
            Ok(0) => {
                keep(&mut state.waits.entry(id).or_default().writer, cx);
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok(n)),
            Err(Gone) => Poll::Ready(state.gone(id).map(|_| 0)),
        })
    }

    pub(crate) fn finish(self: &Arc<Self>, id: StreamId) -> Result<(), Reason> {
        self.with(|state, _| match state.endpoint.finish(id) {
            Ok(()) => Ok(()),
            Err(Gone) => state.gone(id).map(|_| ()),
        })
    }

    pub(crate) fn bound(self: &Arc<Self>, id: StreamId, octets: u64) -> Result<(), Reason> {
        self.with(|state, _| match state.endpoint.bound(id, octets) {
            Ok(()) => Ok(()),
            Err(Gone) => state.gone(id).map(|_| ()),
        })
    }

    pub(crate) fn reset(self: &Arc<Self>, id: StreamId, reason: Reason) {
        self.with(|state, now| {
            state.endpoint.reset(now, id, reason);
            if let Some(wait) = state.waits.get_mut(&id) {
                wait.dead.get_or_insert(reason);
            }
        });
    }

    pub(crate) fn abandon(self: &Arc<Self>, id: StreamId) {
        self.with(|state, _| {
            state.endpoint.abandon(id);
            state.waits.remove(&id);
        });
    }

    pub(crate) fn poll_opened(&self, cx: &mut Context<'_>, id: StreamId) -> Poll<Result<Bytes, Reason>> {
        let mut state = self.lock();
        // Its user has gone: there is nobody left for whom to keep anything.
        let Some(wait) = state.waits.get_mut(&id) else { return Poll::Ready(Err(Reason::Cancelled)) };
        match (&wait.answered, wait.dead) {
            (Some(info), _) => Poll::Ready(Ok(info.clone())),
            (None, Some(reason)) => Poll::Ready(Err(reason)),
            (None, None) => {
                keep(&mut wait.answer, cx);
                Poll::Pending
            }
        }
    }

    /// Why a peer's stream that is not answered yet has ended.
    pub(crate) async fn given_up(&self, id: StreamId) -> Reason {
        match poll_fn(|cx| self.poll_opened(cx, id)).await {
            Err(reason) => reason,
            // Nobody answers a question that is his own to answer.
            Ok(_) => pending().await,
        }
    }

    pub(crate) fn dead(&self, id: StreamId) -> Option<Reason> {
        self.lock().waits.get(&id).and_then(|wait| wait.dead)
    }
}

impl State {
    /// The stream is over: with the peer's word for it, or because both directions had ended.
    fn gone(&self, id: StreamId) -> Result<Option<Bytes>, Reason> {
        match self.waits.get(&id).and_then(|wait| wait.dead) {
            Some(reason) => Err(reason),
            None => Ok(None),
        }
    }

    fn drain(&mut self) -> Option<After> {
        let mut output = self.endpoint.poll_output()?;
        let mut after = After::default();
        loop {
            match output {
                Output::Transmit(conn) => {
                    if let Some(conn) = self.conns.get(&conn) {
                        conn.wake.notify_one();
                    }
                }
                Output::Drop(conn, reason) => {
                    if let Some(conn) = self.conns.get_mut(&conn) {
                        conn.drop = Some(reason);
                        conn.wake.notify_one();
                    }
                    after.changed = true;
                }
                Output::Incoming(id, open) => {
                    self.waits.insert(id, Wait::default());
                    after.incoming.push((id, open));
                }
                Output::Opened(id, info) => {
                    if let Some(wait) = self.waits.get_mut(&id) {
                        wait.answered = Some(info);
                        after.wakers.extend(wait.answer.take());
                    }
                }
                Output::Refused(id, reason) | Output::Reset(id, reason) => {
                    if let Some(wait) = self.waits.get_mut(&id) {
                        wait.dead = Some(reason);
                        after.wakers.extend(
                            [wait.reader.take(), wait.writer.take(), wait.answer.take()]
                                .into_iter()
                                .flatten(),
                        );
                    }
                }
                Output::Readable(id) => {
                    after.wakers.extend(self.waits.get_mut(&id).and_then(|wait| wait.reader.take()));
                }
                Output::Writable(id) => {
                    after.wakers.extend(self.waits.get_mut(&id).and_then(|wait| wait.writer.take()));
                }
                Output::Ready(_) => after.changed = true,
                Output::Notice(notice) => after.notices.push(notice),
                Output::Candidates(list) => after.candidates.push(list),
                Output::Goaway(reason) => {
                    self.last = Some(reason);
                    self.peer_leaves = true;
                    after.changed = true;
                    after.expelled = Some(reason).filter(|reason| reason.is_final());
                }
            }
            match self.endpoint.poll_output() {
                Some(next) => output = next,
                None => return Some(after),
            }
        }
    }
}

/// What is done with the lock released.
#[derive(Default)]
struct After {
    wakers: Vec<Waker>,
    incoming: Vec<(StreamId, OpenFrame)>,
    notices: Vec<Notice>,
    candidates: Vec<Candidates>,
    changed: bool,
    expelled: Option<Reason>,
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

pub(crate) fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Now { mono: Instant::now(), wall: UnixMillis(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)) }
}
