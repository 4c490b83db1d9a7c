//! A connection to a client or a server. Whatever ends it before both directions have ended in order, be it the end of
//! the process, resets it: an end that looks orderly would make a mutilated file look whole. A reset drops what the kernel
//! has not delivered, so it waits for that first, for a while.

use discovery_core::mutants;
use discovery_linux::tcp_info::tcp_info;
use seams::AsyncIo;
use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    time::{Instant, sleep},
};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Tcp {
    io: TcpStream,
    read_ended: bool,
    write_ended: bool,
    reset: bool,
    /// What it says is this node's own: its end is one, whether or not the other end has had its say.
    speaks: bool,
}

impl Tcp {
    pub(super) fn new(io: TcpStream) -> io::Result<Self> {
        reset_when_closed(&io);
        io.set_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY).with_retries(ASK_TIMES);
        SockRef::from(&io).set_tcp_keepalive(&keepalive)?;
        Ok(Self { io, read_ended: false, write_ended: false, reset: false, speaks: false })
    }

    /// Of a socket that does not block.
    pub(super) fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        Self::new(TcpStream::from_std(socket.into())?)
    }

    /// Whether the other end hears this node itself, or somebody beyond it.
    pub(super) fn speaks(&mut self, speaks: bool) {
        self.speaks = speaks;
    }

    /// Both directions have ended in order: what the kernel has still to send goes out, and then the end.
    fn end_in_order(&self) {
        if (self.read_ended || self.speaks) && self.write_ended && !self.reset {
            let _closed_already = SockRef::from(&self.io).set_linger(None);
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        let resets = SockRef::from(&self.io).linger().is_ok_and(|linger| linger.is_some());
        if !resets || is_delivered(self.io.as_fd()) || mutants::on("tcp-reset-overtakes") {
            return;
        }
        if let (Ok(runtime), Ok(socket)) = (Handle::try_current(), self.io.as_fd().try_clone_to_owned()) {
            runtime.spawn(close_delivered(socket));
        }
    }
}

/// Closes the socket when the other end has what was written, or takes it no more.
async fn close_delivered(socket: OwnedFd) {
    let (begun, mut pause) = (Instant::now(), DELIVERY_LOOK_MIN);
    while begun.elapsed() < DELIVERY_MAX && !is_delivered(socket.as_fd()) {
        sleep(pause).await;
        pause = (pause * 2).min(DELIVERY_LOOK_MAX);
    }
}

fn is_delivered(socket: BorrowedFd<'_>) -> bool {
    tcp_info(socket).map_or(true, |info| info.closed || info.unacked == 0 && info.unsent_octets == 0)
}

/// From now on closing the socket resets the connection.
pub(super) fn reset_when_closed(socket: &impl AsFd) {
    let _closed_already = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

impl AsyncIo for Tcp {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        SockRef::from(&self.io).set_recv_buffer_size(usize::try_from(octets).unwrap_or(usize::MAX))
    }

    fn reset_on_close(&mut self) {
        self.reset = true;
        reset_when_closed(&self.io);
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() == before && buf.remaining() > 0 {
            self.read_ended = true;
            self.end_in_order();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        self.write_ended = true;
        self.end_in_order();
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// What was written before a reset is waited for so long: a client that reads slowly, on a slow line.
const DELIVERY_MAX: Duration = Duration::from_secs(15);
/// A look costs a system call.
const DELIVERY_LOOK_MIN: Duration = Duration::from_millis(2);
const DELIVERY_LOOK_MAX: Duration = Duration::from_millis(100);
/// A client or server that has vanished without a word is noticed after two minutes.
const ASK_AFTER: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_TIMES: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    async fn pair() -> (Tcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (other, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Tcp::new(accepted.unwrap().0).unwrap(), other.unwrap())
    }

    async fn read(other: &mut TcpStream) -> Result<usize, io::ErrorKind> {
        other.read(&mut [0; 8]).await.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn dropped_it_is_reset() {
        for half_closed in [false, true] {
            let (mut tcp, mut other) = pair().await;
            if half_closed {
                other.shutdown().await.unwrap();
                assert_eq!(tcp.read(&mut [0; 8]).await.unwrap(), 0);
            }
            drop(tcp);
            assert_eq!(read(&mut other).await, Err(io::ErrorKind::ConnectionReset), "{half_closed}");
        }
    }

    #[tokio::test]
    async fn a_reset_waits_for_what_was_written_before_it() {
        let (mut tcp, mut other) = pair().await;
        let mut written = 0;
        while let Ok(Ok(n)) = timeout(Duration::from_millis(100), tcp.write(&[7; 65_536])).await {
            written += n;
        }
        tcp.reset_on_close();
        drop(tcp);
        let (mut heard, mut room) = (0, vec![0; 65_536]);
        let end = loop {
            match other.read(&mut room).await {
                Ok(0) => break None,
                Ok(n) => heard += n,
                Err(error) => break Some(error.kind()),
            }
        };
        assert_eq!((heard, end), (written, Some(io::ErrorKind::ConnectionReset)));
    }

    #[tokio::test]
    async fn speaking_for_itself_it_ends_when_it_has_spoken() {
        let (mut tcp, mut other) = pair().await;
        tcp.speaks(true);
        tcp.write_all(b"bye").await.unwrap();
        tcp.shutdown().await.unwrap();
        drop(tcp);
        assert_eq!((read(&mut other).await, read(&mut other).await), (Ok(3), Ok(0)));
    }

    #[tokio::test]
    async fn ended_in_both_directions_it_ends() {
        for told in [false, true] {
            let (mut tcp, mut other) = pair().await;
            tcp.write_all(b"last").await.unwrap();
            tcp.shutdown().await.unwrap();
            other.shutdown().await.unwrap();
            assert_eq!(tcp.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(SockRef::from(&tcp.io).linger().unwrap(), None);
            if told {
                tcp.reset_on_close();
                assert_eq!(SockRef::from(&tcp.io).linger().unwrap(), Some(Duration::ZERO));
            }
            drop(tcp);
            if !told {
                assert_eq!((read(&mut other).await, read(&mut other).await), (Ok(4), Ok(0)));
            }
        }
    }
}
