//! A stream that somebody else can end: whoever drops its [`Cut`] resets it, whatever it waits for.

use seams::AsyncIo;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// Cuts its stream, when dropped.
pub(super) struct Cut {
    _cut: oneshot::Sender<()>,
}

/// Learns of the cut.
pub(super) struct Uncut {
    /// None when it has been cut.
    waits: Option<oneshot::Receiver<()>>,
}

/// One of each.
pub(super) fn cut() -> (Cut, Uncut) {
    let (cut, waits) = oneshot::channel();
    (Cut { _cut: cut }, Uncut { waits: Some(waits) })
}

impl Uncut {
    /// The stream, from now on. `end` is dropped when it is gone.
    pub(super) fn around<Io, End>(self, io: Io, end: End) -> Cuttable<Io, End> {
        Cuttable { io, uncut: self, _end: end }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        if self.waits.as_mut().is_some_and(|waits| Pin::new(waits).poll(cx).is_ready()) {
            self.waits = None;
        }
        self.waits.is_none()
    }
}

/// See [`Uncut::around`].
pub(in super::super) struct Cuttable<Io, End> {
    // In this order: closed before anybody hears of its end.
    io: Io,
    uncut: Uncut,
    _end: End,
}

impl<Io: AsyncIo, End> Cuttable<Io, End> {
    fn whole(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut Io>> {
        if self.uncut.poll_cut(cx) {
            self.io.reset_on_close();
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.io))
    }
}

impl<Io: AsyncIo, End: Unpin> AsyncRead for Cuttable<Io, End> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole(cx)?.poll_read(cx, buf)
    }
}

impl<Io: AsyncIo, End: Unpin> AsyncWrite for Cuttable<Io, End> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        self.whole(cx)?.poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole(cx)?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.whole(cx)?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

seams::hand_down!(Cuttable, End);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_cut_neither_reads_nor_writes_nor_ends() {
        let aborted = io::ErrorKind::ConnectionAborted;
        for what in 0..3 {
            let (io, mut far) = tokio::io::duplex(64);
            let (cut, uncut) = cut();
            let mut stream = uncut.around(io, ());
            stream.write_all(b"before").await.unwrap();
            far.read_exact(&mut [0; 6]).await.unwrap();
            drop(cut);
            let ended = match what {
                0 => stream.read(&mut [0; 8]).await.map(drop),
                1 => stream.write_all(b"after").await,
                _ => stream.shutdown().await,
            };
            assert_eq!(ended.unwrap_err().kind(), aborted, "{what}");
        }
    }
}
