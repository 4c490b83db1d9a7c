//! A stream of a link and a connection, each the other's continuation. At rest neither holds a buffer: what the link
//! brings is written from where it lies, what the connection brings is read into the thread's own buffer.

use crate::stream::LinkStream;
use bytes::{Buf, Bytes};
use seams::AsyncIo;
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncWrite, ReadBuf};
use wan_core::Reason;

/// How it ended, and what went over.
#[derive(Debug)]
pub struct Spliced {
    /// Octets from the connection into the link.
    pub sent: u64,
    /// Octets from the link into the connection.
    pub received: u64,
    /// Why it ended before its time; the connection should then be reset too.
    pub cut: Option<Reason>,
}

/// What the end of a TLS stream is that came without TLS's word for it: somebody on the way can have made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsaid {
    /// A cut as any other.
    Cut,
    /// An end, so that no reset overtakes what was said before: for users who see by their own rules whether something is
    /// missing, and take an end for a cut. It is still told as [`Spliced::cut`].
    End,
}

/// Carries octets both ways until both directions have ended, or either side is cut.
pub async fn splice(stream: LinkStream, io: &mut (impl AsyncIo + ?Sized)) -> Spliced {
    splice_until(stream, io, Unsaid::Cut).await
}

pub(crate) async fn splice_until(
    mut stream: LinkStream,
    io: &mut (impl AsyncIo + ?Sized),
    unsaid: Unsaid,
) -> Spliced {
    let mut up = Up { done: false, octets: 0, unsaid, unannounced: false, cut: false };
    let mut down = Down { state: Downwards::Reading, octets: 0 };
    let cut = poll_fn(|cx| {
        let sent = up.poll(cx, &mut stream, io);
        let received = down.poll(cx, &stream, io);
        if matches!(received, Poll::Ready(Err(_))) && !up.done {
            // Writing found the connection reset: what had come before is read still, and its end is no end.
            up.cut = true;
            let _as_far_as_there_is_room = up.poll(cx, &mut stream, io);
        }
        match (sent, received) {
            (Poll::Ready(Err(reason)), _) | (_, Poll::Ready(Err(reason))) => Poll::Ready(Some(reason)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(None),
            (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
        }
    })
    .await;
    if cut.is_some() {
        stream.reset(Reason::ConnectionReset);
        io.reset_on_close();
    }
    let cut = cut.or(up.unannounced.then_some(Reason::ServerTls));
    Spliced { sent: up.octets, received: down.octets, cut }
}

struct Up {
    done: bool,
    octets: u64,
    unsaid: Unsaid,
    /// It has ended so.
    unannounced: bool,
    /// The connection is known to be reset.
    cut: bool,
}

impl Up {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut LinkStream,
        io: &mut (impl AsyncIo + ?Sized),
    ) -> Poll<Result<(), Reason>> {
        for _ in 0..TURNS_MAX {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            let room = ready!(stream.poll_room(cx))?;
            let read = SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(SCRATCH_OCTETS, 0);
                let mut buf = ReadBuf::new(scratch.get_mut(..room.min(SCRATCH_OCTETS)).unwrap_or_default());
                match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if buf.filled().is_empty() => Poll::Ready(Ok(0)),
                    Poll::Ready(Ok(())) => {
                        let n = buf.filled().len();
                        match Pin::new(&mut *stream).poll_write(cx, buf.filled()) {
                            Poll::Ready(Ok(written)) if written == n => Poll::Ready(Ok(n)),
                            // There was room a moment ago, and nobody else writes.
                            Poll::Ready(_) | Poll::Pending => {
                                Poll::Ready(Err(stream.reason().unwrap_or(Reason::Closed)))
                            }
                        }
                    }
                    Poll::Ready(Err(error))
                        if error.kind() == io::ErrorKind::UnexpectedEof && self.unsaid == Unsaid::End =>
                    {
                        self.unannounced = true;
                        Poll::Ready(Ok(0))
                    }
                    Poll::Ready(Err(_)) => Poll::Ready(Err(Reason::ConnectionReset)),
                    Poll::Pending => Poll::Pending,
                }
            });
            match ready!(read)? {
                0 if self.cut => return Poll::Ready(Err(Reason::ConnectionReset)),
                0 => {
                    self.done = true;
                    ready!(Pin::new(&mut *stream).poll_shutdown(cx)).map_err(|_| Reason::Closed)?;
                }
                n => self.octets += n as u64,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

enum Downwards {
    Reading,
    Writing(Bytes),
    Flushing,
    Closing,
    Done,
}

struct Down {
    state: Downwards,
    octets: u64,
}

impl Down {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &LinkStream,
        io: &mut (impl AsyncIo + ?Sized),
    ) -> Poll<Result<(), Reason>> {
        let lost = |_: io::Error| Reason::ConnectionReset;
        for _ in 0..TURNS_MAX {
            match &mut self.state {
                Downwards::Reading => match stream.poll_octets(cx, usize::MAX) {
                    Poll::Ready(Ok(Some(octets))) => self.state = Downwards::Writing(octets),
                    Poll::Ready(Ok(None)) => self.state = Downwards::Closing,
                    Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                    Poll::Pending => return Poll::Pending,
                },
                Downwards::Writing(octets) => {
                    let n = ready!(Pin::new(&mut *io).poll_write(cx, octets)).map_err(lost)?;
                    self.octets += n as u64;
                    octets.advance(n);
                    if n == 0 {
                        return Poll::Ready(Err(Reason::ConnectionReset));
                    }
                    if octets.is_empty() {
                        self.state = Downwards::Flushing;
                    }
                }
                Downwards::Flushing => {
                    ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(lost)?;
                    self.state = Downwards::Reading;
                }
                Downwards::Closing => {
                    ready!(Pin::new(&mut *io).poll_shutdown(cx)).map_err(lost)?;
                    self.state = Downwards::Done;
                }
                Downwards::Done => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One of these a thread.
const SCRATCH_OCTETS: usize = 64 * 1024;
/// Then others have their turn.
const TURNS_MAX: usize = 32;
