//! A stream of a link, as anybody uses one.

use crate::link::Link;
use bytes::Bytes;
use discovery_core::id::NodeId;
use seams::AsyncIo;
use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wan_core::{Reason, StreamId};

/// One stream. Shutting it down ends its own direction alone; dropped before both have ended, it is reset.
pub struct LinkStream {
    link: Arc<Link>,
    id: StreamId,
}

impl fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.link.node, self.id)
    }
}

impl LinkStream {
    pub(crate) fn new(link: Arc<Link>, id: StreamId) -> Self {
        Self { link, id }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &NodeId {
        &self.link.node
    }

    /// Waits for the peer's answer, and what it told. What is written before goes out with the question.
    ///
    /// # Errors
    /// The peer's refusal, or the end of the link.
    pub async fn opened(&self) -> Result<Bytes, Reason> {
        poll_fn(|cx| self.link.poll_opened(cx, self.id)).await
    }

    /// The same, apart from the stream, which may be in use meanwhile; [`Reason::Cancelled`] when it has been dropped.
    pub fn answer(&self) -> impl Future<Output = Result<Bytes, Reason>> + Send + 'static {
        let (link, id) = (self.link.clone(), self.id);
        poll_fn(move |cx| link.poll_opened(cx, id))
    }

    /// Why it ended, if it ended before its time.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.link.dead(self.id)
    }

    /// Ends it in both directions. What was written goes out first; what is on its way here is lost.
    pub fn reset(&self, reason: Reason) {
        self.link.reset(self.id, reason);
    }

    /// What has come, without a copy; none at the end.
    pub(crate) fn poll_octets(
        &self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<Option<Bytes>, Reason>> {
        self.link.poll_read(cx, self.id, most)
    }

    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<usize, Reason>> {
        self.link.poll_room(cx, self.id)
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        self.link.abandon(self.id);
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(octets) = ready!(self.link.poll_read(cx, self.id, buf.remaining())).map_err(error)? {
            buf.put_slice(&octets);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.link.poll_write(cx, self.id, octets)) {
            // Both directions had ended.
            Ok(0) if !octets.is_empty() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            written => Poll::Ready(written.map_err(error)),
        }
    }

    /// Nothing waits here that the link would not send by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.link.finish(self.id).map_err(error))
    }
}

impl AsyncIo for LinkStream {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        self.link.bound(self.id, u64::from(octets)).map_err(error)
    }

    fn reset_on_close(&mut self) {
        self.reset(Reason::ConnectionReset);
    }
}

/// The error that a socket would have given, with the reason inside.
fn error(reason: Reason) -> io::Error {
    let kind = match reason {
        Reason::ServerRefused | Reason::NotGranted | Reason::Unsupported | Reason::UnknownServer => {
            io::ErrorKind::ConnectionRefused
        }
        Reason::ServerUnreachable => io::ErrorKind::HostUnreachable,
        Reason::ServerTimedOut => io::ErrorKind::TimedOut,
        Reason::Unknown
        | Reason::Cancelled
        | Reason::ConnectionReset
        | Reason::ServerTls
        | Reason::OtherWay
        | Reason::UnknownFlow
        | Reason::Busy
        | Reason::ShuttingDown
        | Reason::NoLink
        | Reason::LinkLost
        | Reason::PeerRestarted
        | Reason::PeerForgot
        | Reason::Violation
        | Reason::Revoked
        | Reason::WrongPin
        | Reason::WrongNode
        | Reason::NoIdentity
        | Reason::UnknownPeer
        | Reason::OlderVersion
        | Reason::NewerVersion
        | Reason::Duplicate
        | Reason::Replaced
        | Reason::Silent
        | Reason::Itself
        | Reason::Tls
        | Reason::PeerRefused
        | Reason::PeerUnreachable
        | Reason::PeerTimedOut
        | Reason::Closed => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, reason)
}
