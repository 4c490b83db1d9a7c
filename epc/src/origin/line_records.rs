//! Commands that come over another road, each in a TLS record of its own.
//!
//! Whoever writes a session's commands keeps those before and behind a login apart by records: Cyrus reads the rest of
//! a record again after AUTHENTICATE. Between two nodes there are no records, so the one that does the TLS makes them
//! again, at the ends of lines, for as long as a login may last.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module's documentation. Each write ends with a line's end at the latest, and is sent before the next.
#[derive(Debug)]
pub struct LineRecords<Io> {
    io: Io,
    /// Octets that are still told apart.
    left: usize,
    flushing: bool,
}

impl<Io> LineRecords<Io> {
    /// Around a stream that makes a record of each write.
    pub fn new(io: Io) -> Self {
        Self { io, left: APART_OCTETS, flushing: false }
    }
}

/// A login and what a client asks right behind it.
const APART_OCTETS: usize = 8 * 1024;

impl<Io: AsyncRead + Unpin> AsyncRead for LineRecords<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for LineRecords<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            return Pin::new(&mut self.io).poll_write(cx, octets);
        }
        if self.flushing {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushing = false;
        }
        let line = octets.split_inclusive(|octet| *octet == b'\n').next().unwrap_or_default();
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, line))?;
        self.left = self.left.saturating_sub(written);
        self.flushing = true;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.flushing = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

seams::hand_down!(LineRecords);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Remembers each write.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl AsyncWrite for Writes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            octets: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(octets.to_vec());
            Poll::Ready(Ok(octets.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn lines_share_no_write_while_a_login_may_last() {
        let mut io = LineRecords::new(Writes::default());
        io.write_all(b"1 AUTHENTICATE PLAIN AGEAYg==\r\n2 SELECT INBOX\r\n3 FET").await.expect("in memory");
        io.write_all(b"CH 1:* FLAGS\r\n").await.expect("in memory");
        let told: Vec<&[u8]> = io.io.0.iter().map(Vec::as_slice).collect();
        let wanted: [&[u8]; 4] =
            [b"1 AUTHENTICATE PLAIN AGEAYg==\r\n", b"2 SELECT INBOX\r\n", b"3 FET", b"CH 1:* FLAGS\r\n"];
        assert_eq!(told, wanted);
        let message = b"a line\r\n".repeat(10_000);
        io.write_all(&message).await.expect("in memory");
        assert_eq!(io.io.0.concat().get(wanted.concat().len()..), Some(message.as_slice()));
        assert!(io.io.0.len() < 1200, "{} writes: a message is not cut into lines to its end", io.io.0.len());
    }
}
