//! Moves octets between a connection and its link until either is done.

use crate::{
    handshake::{Met, part},
    links::Inner,
    socket,
};
use bytes::{Buf, Bytes};
use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    pin::pin,
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::{Instant, sleep_until},
};
use wan_core::{Lane, LaneSet, Reason, pace};

/// Until the end of the connection; why it ended.
pub(crate) async fn carry(inner: Arc<Inner>, met: Met) -> Reason {
    let Met { link, taken, tls, mut arrived, lanes, place } = met;
    socket::bound_unsent(tls.get_ref().0, lanes);
    let mut pacer = Pacer::new(&inner, lanes, &link);
    let (mut reader, mut writer) = split(tls);
    let mut pending: Vec<Bytes> = Vec::new();
    let mut unflushed = false;
    // One timer for the life of the connection, set back only when it must fire earlier: to set one costs a lock.
    let mut timer = pin!(sleep_until(far()));
    // The peer's system ended it, and the peer had said nothing.
    let mut cut = false;
    let reason = loop {
        let deadline = match link.turn(taken.conn, &mut arrived, TURN_OCTETS, &mut pending) {
            Ok(deadline) => deadline.map_or_else(far, Instant::from_std),
            Err(reason) => break reason,
        };
        let deadline = if pacer.is_on() { deadline.min(pacer.next) } else { deadline };
        if deadline < timer.deadline() || timer.is_elapsed() {
            timer.as_mut().reset(deadline);
        }
        unflushed |= !pending.is_empty();
        if arrived.capacity() - arrived.len() < READ_OCTETS / 4 {
            arrived.reserve(READ_OCTETS);
        }
        // Every branch can be given up without loss: what was not written stands in `pending` still.
        tokio::select! {
            pushed = push(&mut writer, &pending), if unflushed => match pushed {
                Ok(Pushed::Written(n)) => advance(&mut pending, n),
                Ok(Pushed::Flushed) => unflushed = false,
                Err(error) => {
                    cut = is_cut(&error);
                    break link.dropped(taken.conn).unwrap_or(Reason::Closed);
                }
            },
            read = reader.read_buf(&mut arrived) => match read {
                // The peer may have said why just before.
                Ok(0) => break link.dropped(taken.conn).unwrap_or(Reason::Closed),
                Err(error) => {
                    cut = is_cut(&error);
                    break link.dropped(taken.conn).unwrap_or(Reason::Closed);
                }
                Ok(_) => {}
            },
            () = taken.wake.notified() => {}
            () = &mut timer => link.tick(),
        }
        // Also beside octets that never stop.
        if pacer.is_on() && pacer.next <= Instant::now() {
            let tls = reader.unsplit(writer);
            pacer.sample(&link, taken.conn, tls.get_ref().0.as_fd());
            (reader, writer) = split(tls);
        }
    };
    if let (Some(place), Reason::Silent) = (place, reason) {
        inner.fell_silent(place);
    }
    link.detach(taken.conn, reason, cut && reason == Reason::Closed);
    if reason != Reason::Closed {
        part(&mut reader.unsplit(writer), reason).await;
    }
    reason
}

/// A process that ends leaves its connections to its system, which says so; a line that breaks says nothing.
fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

enum Pushed {
    Written(usize),
    Flushed,
}

async fn push(writer: &mut (impl AsyncWrite + Unpin), pending: &[Bytes]) -> io::Result<Pushed> {
    if pending.is_empty() {
        return writer.flush().await.map(|()| Pushed::Flushed);
    }
    match write(writer, pending).await {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => written.map(Pushed::Written),
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), pending: &[Bytes]) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut n = 0;
    for (slice, octets) in slices.iter_mut().zip(pending) {
        *slice = IoSlice::new(octets);
        n += 1;
    }
    writer.write_vectored(slices.get(..n).unwrap_or_default()).await
}

fn advance(pending: &mut Vec<Bytes>, mut n: usize) {
    let mut whole = 0;
    for octets in pending.iter_mut() {
        if n < octets.len() {
            octets.advance(n);
            break;
        }
        n -= octets.len();
        whole += 1;
    }
    pending.drain(..whole);
}

fn far() -> Instant {
    Instant::now() + pace::SAMPLE_EACH * 1000
}

/// Paces a connection for bulk, where somebody can tell how it is doing.
struct Pacer {
    facts: Option<Arc<dyn crate::TcpFacts>>,
    lane: Lane,
    controller: pace::Controller,
    next: Instant,
    set: Option<u64>,
}

impl Pacer {
    fn new(inner: &Arc<Inner>, lanes: LaneSet, link: &crate::link::Link) -> Self {
        let lane = lanes.iter().last().unwrap_or(Lane::Interactive);
        // One connection for everything is a person's too, and is kept short of a queue as bulk is.
        let target = if lane == Lane::Background && lanes != LaneSet::ALL {
            pace::TARGET_BACKGROUND
        } else {
            pace::TARGET_BULK
        };
        let facts = inner.facts().filter(|_| lane != Lane::Interactive);
        let controller = pace::Controller::new(target, link.learnt(lane));
        Self { facts, lane, controller, next: Instant::now(), set: None }
    }

    fn is_on(&self) -> bool {
        self.facts.is_some()
    }

    fn sample(
        &mut self,
        link: &Arc<crate::link::Link>,
        conn: wan_core::ConnId,
        socket: std::os::fd::BorrowedFd<'_>,
    ) {
        self.next = Instant::now() + pace::SAMPLE_EACH;
        let Some(facts) = &self.facts else { return };
        // The first cap goes in before the first octet.
        let rate = match facts.sample(socket) {
            Ok(sample) => self.controller.handle_sample(self.next.into_std(), &sample),
            Err(_) => self.controller.rate(),
        };
        if rate != self.set
            && let Some(octets) = rate
            && facts.set_pace(socket, octets).is_ok()
        {
            self.set = rate;
        }
        link.paced(conn, self.lane, &self.controller);
    }
}

/// What is ordered at a time, and the frame that passes it: what comes later and is more urgent waits behind no more,
/// and TLS takes it in one go.
const TURN_OCTETS: usize = 48 * 1024;
/// Four TLS records.
const READ_OCTETS: usize = 64 * 1024;
/// More pieces wait for the next call.
const SLICES_MAX: usize = 32;
