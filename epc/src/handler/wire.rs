//! One end of a session: its stream, what was read ahead of the session, and what waits to be written.
//!
//! [`Wire::turn`] does whatever reading and writing is possible and returns at the first thing the session should know;
//! it can be dropped at any moment without losing an octet, so it stands in a `select!` beside the other end.

use super::{
    body::{Body, BodyLost},
    buffers::Buffers,
};
use bytes::{Buf, Bytes};
use seams::AsyncIo;
use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Whether octets are wanted of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Not now.
    No,
    /// Yes; `secret` ones are wiped after use.
    Yes {
        /// A credential may be among them.
        secret: bool,
    },
}

/// What a turn came to.
#[derive(Debug)]
pub(super) enum Happened {
    /// These came.
    Octets(Bytes),
    /// Some of the queue was written.
    Wrote,
    /// The peer will send nothing more, in an orderly way or not.
    Ended,
    /// Nothing can be written any more.
    Broken,
    /// A stored body that had been announced cannot be given to its end.
    BodyLost(BodyLost),
}

/// How writes are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// As many pieces as possible in one write.
    Together,
    /// Each piece its own write, so its own TLS record.
    Apart,
}

#[derive(Debug)]
enum Piece {
    Octets(Bytes),
    /// To be flushed before anything else is written.
    Flushed(Bytes),
    Body(Body),
}

/// See the module's documentation.
pub(super) struct Wire {
    io: Box<dyn AsyncIo>,
    buffers: Arc<Buffers>,
    cut: Cut,
    ahead: VecDeque<Bytes>,
    ended: bool,
    broken: bool,
    queue: VecDeque<Piece>,
    /// Of the queue, in memory, with what each piece costs beside its octets.
    waiting: usize,
    /// What the stream took and may still hold back.
    unflushed: bool,
    flush_first: bool,
    /// When the peer last took something, or nothing waited for it.
    moved: Instant,
    read: u64,
    written: u64,
}

/// Buffers read from a stream before the session sees the first of them: so much goes out in one write.
const AHEAD_MAX: usize = 4;
/// Pieces of one vectored write; more than fit into a socket's buffer gain nothing.
const SLICES_MAX: usize = 16;
/// What a queued piece costs beside its octets, so that a flood of tiny ones is bounded too.
const PIECE_COST: usize = 128;

impl Wire {
    pub(super) fn new(io: Box<dyn AsyncIo>, buffers: Arc<Buffers>, cut: Cut) -> Self {
        Self {
            io,
            buffers,
            cut,
            ahead: VecDeque::new(),
            ended: false,
            broken: false,
            queue: VecDeque::new(),
            waiting: 0,
            unflushed: false,
            flush_first: false,
            moved: Instant::now(),
            read: 0,
            written: 0,
        }
    }

    /// Queues octets.
    pub(super) fn push(&mut self, octets: Bytes) {
        self.put(octets.len(), Piece::Octets(octets));
    }

    /// Queues octets that must leave on their own.
    pub(super) fn push_flushed(&mut self, octets: Bytes) {
        self.put(octets.len(), Piece::Flushed(octets));
    }

    /// Queues a stored body.
    pub(super) fn push_body(&mut self, body: Body) {
        self.put(0, Piece::Body(body));
    }

    fn put(&mut self, octets: usize, piece: Piece) {
        if self.broken || matches!(&piece, Piece::Octets(none) | Piece::Flushed(none) if none.is_empty()) {
            return;
        }
        if self.is_drained() {
            self.moved = Instant::now();
        }
        self.waiting += octets + PIECE_COST;
        self.queue.push_back(piece);
    }

    /// Octets of memory that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether everything was handed to the network.
    pub(super) fn is_drained(&self) -> bool {
        self.broken || (self.queue.is_empty() && !self.unflushed)
    }

    /// Since when the peer has taken nothing of what waits; `None` when nothing waits.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        (!self.is_drained()).then_some(self.moved)
    }

    /// Octets read and written so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.read, self.written)
    }

    /// Does what can be done; ready at the first thing to tell. Cancel-safe.
    pub(super) async fn turn(&mut self, reading: Reading) -> Happened {
        poll_fn(|cx| self.poll_turn(cx, reading)).await
    }

    /// Writes until nothing waits, reading nothing.
    pub(super) async fn drain(&mut self) -> Result<(), Happened> {
        while !self.is_drained() {
            match self.turn(Reading::No).await {
                Happened::Wrote | Happened::Octets(_) | Happened::Ended => {}
                failed @ (Happened::Broken | Happened::BodyLost(_)) => return Err(failed),
            }
        }
        Ok(())
    }

    /// Whether octets came that the session has not seen.
    pub(super) fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Takes what came and the session has not seen.
    pub(super) fn take_ahead(&mut self) -> impl Iterator<Item = Bytes> {
        std::mem::take(&mut self.ahead).into_iter()
    }

    /// Exchanges the stream for what `wrap` makes of it; the queue must be drained.
    pub(super) async fn rewrap<F>(&mut self, wrap: impl FnOnce(Box<dyn AsyncIo>) -> F) -> io::Result<()>
    where
        F: Future<Output = io::Result<Box<dyn AsyncIo>>>,
    {
        let io = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        match wrap(io).await {
            Ok(io) => {
                self.io = io;
                Ok(())
            }
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    /// Gives the stream away, with what was read of it, if it is whole: nothing waits and nobody has closed it.
    pub(super) fn release(&mut self) -> Option<(Box<dyn AsyncIo>, Vec<Bytes>)> {
        if self.ended || self.broken || !self.is_drained() {
            return None;
        }
        let ahead = self.ahead.drain(..).map(|octets| Bytes::copy_from_slice(&octets)).collect();
        self.broken = true;
        Some((std::mem::replace(&mut self.io, Box::new(tokio::io::empty())), ahead))
    }

    /// Says that nothing more will be written.
    pub(super) async fn shut_down(&mut self) {
        if !self.broken {
            let _peer_may_be_gone = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
        }
    }

    /// Nothing can be written any more.
    fn give_up(&mut self) {
        self.broken = true;
        self.queue.clear();
        self.waiting = 0;
        self.unflushed = false;
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>, reading: Reading) -> Poll<Happened> {
        let before = self.written;
        let wrote = if self.broken { Poll::Pending } else { self.poll_write(cx) };
        if self.written != before {
            self.moved = Instant::now();
        }
        if let Poll::Ready(happened) = wrote {
            return Poll::Ready(happened);
        }
        if self.written != before {
            return Poll::Ready(Happened::Wrote);
        }
        match reading {
            Reading::No => Poll::Pending,
            Reading::Yes { secret } => self.poll_read(cx, secret),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, secret: bool) -> Poll<Happened> {
        if let Some(octets) = self.ahead.pop_front() {
            return Poll::Ready(Happened::Octets(octets));
        }
        while !self.ended && self.ahead.len() < AHEAD_MAX {
            let mut buffer = self.buffers.lend();
            let mut room = ReadBuf::new(buffer.room());
            let polled = Pin::new(&mut self.io).poll_read(cx, &mut room);
            let filled = room.filled().len();
            match polled {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if filled > 0 => {
                    self.read = self.read.saturating_add(filled as u64);
                    let whole = filled == buffer.room().len();
                    self.ahead.push_back(buffer.into_bytes(filled, secret));
                    // A short read empties the stream more often than not; asking again is a system call for nothing.
                    if !whole {
                        break;
                    }
                }
                Poll::Ready(Ok(()) | Err(_)) => self.ended = true,
            }
        }
        match self.ahead.pop_front() {
            Some(octets) => Poll::Ready(Happened::Octets(octets)),
            None if self.ended => Poll::Ready(Happened::Ended),
            None => Poll::Pending,
        }
    }

    /// Ready only when something went wrong; pending when the stream or a body makes us wait, or nothing is left.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        loop {
            let done = ready!(self.poll_write_front(cx));
            match done {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(happened) => {
                    self.give_up();
                    return Poll::Ready(happened);
                }
            }
        }
    }

    /// One step: `Ok(true)` when there may be more to do, `Ok(false)` when nothing is left.
    fn poll_write_front(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Happened>> {
        if self.flush_first {
            ready!(self.poll_flush(cx))?;
            self.flush_first = false;
        }
        let n = match self.queue.front_mut() {
            None => {
                if self.unflushed {
                    ready!(self.poll_flush(cx))?;
                }
                return Poll::Ready(Ok(false));
            }
            Some(Piece::Body(body)) => match body.poll_piece(cx) {
                Poll::Ready(Some(Ok(octets))) => {
                    self.waiting += octets.len() + PIECE_COST;
                    self.queue.push_front(Piece::Octets(octets));
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Some(Err(lost))) => return Poll::Ready(Err(Happened::BodyLost(lost))),
                Poll::Ready(None) => {
                    self.queue.pop_front();
                    self.waiting = self.waiting.saturating_sub(PIECE_COST);
                    return Poll::Ready(Ok(true));
                }
                Poll::Pending => {
                    // What came before the body must not wait for the disk.
                    if self.unflushed {
                        ready!(self.poll_flush(cx))?;
                    }
                    return Poll::Pending;
                }
            },
            Some(Piece::Flushed(octets)) => Pin::new(&mut self.io).poll_write(cx, octets),
            Some(Piece::Octets(octets)) if self.cut == Cut::Apart => {
                Pin::new(&mut self.io).poll_write(cx, octets)
            }
            Some(Piece::Octets(_)) => {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let together = self.queue.iter().map_while(|piece| match piece {
                    Piece::Octets(octets) => Some(octets),
                    Piece::Flushed(_) | Piece::Body(_) => None,
                });
                let mut used = 0;
                for (slice, octets) in slices.iter_mut().zip(together) {
                    *slice = IoSlice::new(octets);
                    used += 1;
                }
                Pin::new(&mut self.io).poll_write_vectored(cx, slices.get(..used).unwrap_or_default())
            }
        };
        match ready!(n) {
            Ok(0) => Poll::Ready(Err(Happened::Broken)),
            Ok(n) => {
                self.unflushed = true;
                self.written = self.written.saturating_add(n as u64);
                self.forget_written(n);
                Poll::Ready(Ok(true))
            }
            Err(_) => Poll::Ready(Err(Happened::Broken)),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Happened>> {
        let flushed = ready!(Pin::new(&mut self.io).poll_flush(cx));
        self.unflushed = false;
        self.moved = Instant::now();
        Poll::Ready(flushed.map_err(|_| Happened::Broken))
    }

    fn forget_written(&mut self, mut n: usize) {
        loop {
            let flushed = matches!(self.queue.front(), Some(Piece::Flushed(_)));
            let Some(Piece::Octets(octets) | Piece::Flushed(octets)) = self.queue.front_mut() else { return };
            if n < octets.len() {
                octets.advance(n);
                self.waiting = self.waiting.saturating_sub(n);
                return;
            }
            n -= octets.len();
            self.waiting = self.waiting.saturating_sub(octets.len() + PIECE_COST);
            self.queue.pop_front();
            if flushed {
                self.flush_first = true;
            }
            if n == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::seam::blob::{BlobReader, Length, StoreError};
    use std::{sync::Mutex, time::Duration};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn wire(cut: Cut, octets: usize) -> (Wire, DuplexStream) {
        let (near, far) = duplex(octets);
        (Wire::new(Box::new(near), Arc::new(Buffers::default()), cut), far)
    }

    /// A body of letters; grows when told.
    struct Letters {
        there: Mutex<(u64, bool)>,
    }

    impl Letters {
        fn new(octets: u64, complete: bool) -> Arc<Self> {
            Arc::new(Self { there: Mutex::new((octets, complete)) })
        }

        fn grow(&self, octets: u64, complete: bool) {
            *self.there.lock().unwrap() = (octets, complete);
        }

        fn letter(at: u64) -> u8 {
            b'a' + u8::try_from(at % 23).unwrap()
        }
    }

    impl BlobReader for Letters {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
            let (there, _) = *self.there.lock().unwrap();
            let n = usize::try_from(there.saturating_sub(offset)).unwrap().min(buf.len());
            for (at, octet) in (offset..).zip(&mut buf[..n]) {
                *octet = Self::letter(at);
            }
            Ok(n)
        }

        fn len(&self) -> Length {
            match *self.there.lock().unwrap() {
                (octets, true) => Length::Known(octets),
                (octets, false) => Length::Growing(octets),
            }
        }

        fn wait(&self, _: u64, _: Duration) -> Result<Length, StoreError> {
            Ok(self.len())
        }
    }

    fn letters(from: u64, octets: u64) -> Vec<u8> {
        (from..from + octets).map(Letters::letter).collect()
    }

    #[tokio::test]
    async fn a_body_goes_out_between_what_stands_around_it() {
        let (mut wire, mut far) = wire(Cut::Together, 1000);
        let body = Letters::new(300_000, true);
        wire.push(Bytes::from_static(b"before "));
        wire.push_body(Body::new(Arc::clone(&body) as Arc<_>, 5, 200_000, PATIENCE));
        wire.push(Bytes::from_static(b" between "));
        wire.push_body(Body::new(body, 0, 3, PATIENCE));
        wire.push(Bytes::from_static(b" after"));
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.expect("in memory");
            all
        });
        wire.drain().await.expect("the reader reads");
        assert_eq!(wire.waiting(), 0);
        drop(wire);
        let wanted =
            [b"before ", letters(5, 200_000).as_slice(), b" between ", &letters(0, 3), b" after"].concat();
        assert!(reader.await.expect("no panic") == wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_growing_body_is_followed_to_its_end() {
        let (mut wire, mut far) = wire(Cut::Together, 64 * 1024);
        let body = Letters::new(10, false);
        wire.push_body(Body::new(Arc::clone(&body) as Arc<_>, 0, 30, PATIENCE));
        let mut some = [0; 10];
        tokio::select! {
            read = far.read_exact(&mut some) => { read.expect("ten are there"); }
            _ = wire.drain() => panic!("it is not complete"),
        }
        assert_eq!(some.as_slice(), letters(0, 10));
        body.grow(30, true);
        wire.drain().await.expect("complete now");
        let mut rest = [0; 20];
        far.read_exact(&mut rest).await.expect("in memory");
        assert_eq!(rest.as_slice(), letters(10, 20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_growing_ends_after_its_patience() {
        let (mut wire, _far) = wire(Cut::Together, 64 * 1024);
        wire.push_body(Body::new(Letters::new(10, false), 0, 30, PATIENCE));
        let began = Instant::now();
        assert!(matches!(wire.drain().await, Err(Happened::BodyLost(BodyLost::Stalled))));
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_body_shorter_than_announced_is_lost_not_padded() {
        let (mut wire, mut far) = wire(Cut::Together, 64 * 1024);
        wire.push_body(Body::new(Letters::new(10, true), 0, 30, PATIENCE));
        assert!(matches!(wire.drain().await, Err(Happened::BodyLost(_))));
        drop(wire);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.expect("in memory");
        assert_eq!(all, letters(0, 10));
    }

    /// Notes every write.
    struct Noted(Arc<Mutex<Vec<String>>>);

    impl AsyncIo for Noted {}

    impl AsyncRead for Noted {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Noted {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(String::from_utf8_lossy(octets).into_owned());
            Poll::Ready(Ok(octets.len()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().push("flush".to_owned());
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn pieces_are_written_together_apart_or_flushed_each() {
        for (cut, flushed, wanted) in [
            (Cut::Together, false, &["onetwo", "flush"][..]),
            (Cut::Apart, false, &["one", "two", "flush"]),
            (Cut::Apart, true, &["one", "flush", "two", "flush"]),
        ] {
            let noted = Arc::new(Mutex::new(Vec::new()));
            let mut wire = Wire::new(Box::new(Noted(Arc::clone(&noted))), Arc::default(), cut);
            for piece in ["one", "", "two"] {
                let piece = Bytes::from_static(piece.as_bytes());
                if flushed { wire.push_flushed(piece) } else { wire.push(piece) }
            }
            wire.drain().await.expect("it takes everything");
            assert_eq!(*noted.lock().unwrap(), wanted);
        }
    }

    #[tokio::test]
    async fn what_was_read_before_the_end_comes_before_the_end() {
        let (mut wire, mut far) = wire(Cut::Together, 256 * 1024);
        far.write_all(&[b'x'; 3 * super::super::buffers::BUFFER_OCTETS + 5]).await.expect("in memory");
        drop(far);
        let mut octets = 0;
        loop {
            match wire.turn(Reading::Yes { secret: false }).await {
                Happened::Octets(some) => octets += some.len(),
                Happened::Ended => break,
                other @ (Happened::Wrote | Happened::Broken | Happened::BodyLost(_)) => panic!("{other:?}"),
            }
        }
        assert_eq!(octets, 3 * super::super::buffers::BUFFER_OCTETS + 5);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_breaks_the_wire_and_empties_the_queue() {
        let (mut wire, far) = wire(Cut::Together, 64);
        drop(far);
        wire.push(vec![0; 1000].into());
        assert!(matches!(wire.drain().await, Err(Happened::Broken)));
        wire.push(vec![0; 1000].into());
        assert_eq!(wire.waiting(), 0);
        assert!(wire.is_drained());
    }

    #[tokio::test]
    async fn tiny_pieces_count_for_more_than_their_octets() {
        let (mut wire, _far) = wire(Cut::Together, 64);
        for _ in 0..1000 {
            wire.push(Bytes::from_static(b"x"));
        }
        assert!(wire.waiting() > 100_000);
    }
}
