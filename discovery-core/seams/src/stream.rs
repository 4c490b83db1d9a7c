//! Streams whose type is somebody else's, as an [`AsyncIo`].

use crate::AsyncIo;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream, and the way down to its socket.
pub struct Stream<T> {
    io: T,
    set_receive_window: fn(&T, u32) -> io::Result<()>,
}

impl<T> Stream<T> {
    /// `set_receive_window` does for a `T` what [`AsyncIo::set_receive_window`] says.
    pub fn new(io: T, set_receive_window: fn(&T, u32) -> io::Result<()>) -> Self {
        Self { io, set_receive_window }
    }

    /// Without a way down.
    pub fn bare(io: T) -> Self {
        Self { io, set_receive_window: |_, _| Err(io::ErrorKind::Unsupported.into()) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.io).finish()
    }
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AsyncIo for Stream<T> {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        (self.set_receive_window)(&self.io, octets)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

crate::write_through!(Stream);
