//! A stream that remembers what was read from it, so that a ClientHello can be sent on as it came.

use bytes::{Bytes, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};

/// A ClientHello is at most 64 KiB (a handshake message that our TLS library accepts), in records of 16 KiB.
const RECORDED_OCTETS_MAX: usize = 72 * 1024;

/// Reads through; keeps a copy until told to stop.
#[derive(Debug)]
pub(super) struct Recorder<Io> {
    io: Io,
    /// `None` when nothing is kept.
    kept: Option<BytesMut>,
}

impl<Io> Recorder<Io> {
    pub(super) fn new(io: Io, keep: bool) -> Self {
        Self { io, kept: keep.then(BytesMut::new) }
    }

    /// Keeps nothing from now on.
    pub(super) fn stop(&mut self) {
        self.kept = None;
    }

    /// The stream and all that was read from it.
    pub(super) fn into_parts(self) -> (Io, Bytes) {
        (self.io, self.kept.unwrap_or_default().freeze())
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Recorder<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if let Some(kept) = &mut this.kept {
            let new = buf.filled().get(before..).unwrap_or_default();
            // Those that are too many, too: somebody may send them on.
            kept.extend_from_slice(new);
            if kept.len() > RECORDED_OCTETS_MAX {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "ClientHello too long")));
            }
        }
        Poll::Ready(Ok(()))
    }
}

seams::write_through!(Recorder);
