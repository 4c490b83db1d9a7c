//! A connection to a client or a server, as a stream that can be reset.

use seams::AsyncIo;
use socket2::SockRef;
use std::{
    fmt, io,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

/// See the module's documentation. Says that it has ended, once, when it is dropped.
pub(super) struct Tcp<Io = TcpStream> {
    io: Io,
    ended: Option<Box<dyn FnOnce() + Send>>,
}

impl Tcp {
    pub(super) fn new(io: TcpStream) -> io::Result<Self> {
        io.set_nodelay(true)?;
        Ok(Self { io, ended: None })
    }

    /// Of a socket that does not block.
    pub(super) fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        Self::new(TcpStream::from_std(socket.into())?)
    }

    pub(super) fn on_end(mut self, ended: impl FnOnce() + Send + 'static) -> Self {
        self.ended = Some(Box::new(ended));
        self
    }
}

impl<Io> Drop for Tcp<Io> {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

impl<Io> fmt::Debug for Tcp<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp").finish_non_exhaustive()
    }
}

impl AsyncIo for Tcp {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        SockRef::from(&self.io).set_recv_buffer_size(usize::try_from(octets).unwrap_or(usize::MAX))
    }

    fn reset_on_close(&mut self) {
        let _closed_already = SockRef::from(&self.io).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

seams::write_through!(Tcp);
