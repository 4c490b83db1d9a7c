//! A stream with octets in front that were read too early.

use bytes::{Buf, Bytes};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};

/// Reads `before` first, then the stream; writes go straight through.
#[derive(Debug)]
pub struct Prefixed<Io> {
    before: Bytes,
    io: Io,
}

impl<Io> Prefixed<Io> {
    /// `before` is what the reader shall see before anything else of `io`.
    pub fn new(before: Bytes, io: Io) -> Self {
        Self { before, io }
    }
}

seams::hand_down!(Prefixed);

impl<Io: AsyncRead + Unpin> AsyncRead for Prefixed<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.has_remaining() && buf.remaining() > 0 {
            let n = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before.split_to(n));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

seams::write_through!(Prefixed);
