//! COMPRESS=DEFLATE (RFC 4978) over any stream: raw deflate both ways, each flush a sync flush so that the peer can
//! decode all that was written.
//!
//! Memory is fixed: two zlib states (about 350 kB with the writer's window) and a buffer each way; a stream at rest
//! ([`AsyncIo::slim`]) has no compressor any more and writes stored blocks (RFC 1951 §3.2.4): a few words. What comes out of a
//! small input is handed to the reader as he asks for it, so a 'zip bomb' fills no buffer here; the reader's own
//! bounds on lines and literals count what comes out.

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use seams::AsyncIo;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Octets before and after compression, both ways; shared, because the stream itself is soon behind a trait object.
#[derive(Debug, Default)]
pub struct DeflateCounts {
    read_raw: AtomicU64,
    read_wire: AtomicU64,
    written_raw: AtomicU64,
    written_wire: AtomicU64,
}

impl DeflateCounts {
    /// What the reader got.
    #[must_use]
    pub fn read_raw(&self) -> u64 {
        self.read_raw.load(Ordering::Relaxed)
    }

    /// What of that came over the wire.
    #[must_use]
    pub fn read_wire(&self) -> u64 {
        self.read_wire.load(Ordering::Relaxed)
    }

    /// What the writer gave.
    #[must_use]
    pub fn written_raw(&self) -> u64 {
        self.written_raw.load(Ordering::Relaxed)
    }

    /// What of that went over the wire.
    #[must_use]
    pub fn written_wire(&self) -> u64 {
        self.written_wire.load(Ordering::Relaxed)
    }
}

fn add(counter: &AtomicU64, octets: usize) {
    counter.fetch_add(u64::try_from(octets).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Compressed octets read from the peer but not yet inflated.
const IN_OCTETS_MAX: usize = 16 * 1024;
/// The same of a stream at rest.
const SLIM_IN_OCTETS_MAX: usize = 2 * 1024;
/// Compressed octets that wait for the peer; the writer waits when they are more.
const OUT_OCTETS_MAX: usize = 16 * 1024;

/// A stream whose octets are deflated on the wire.
///
/// A writer flushes when its peer must see what was written, as with TLS. Forgotten flushes are made up for when the
/// reader would otherwise wait for an answer to what still lies here.
pub struct Deflated<Io> {
    io: Io,
    inflate: Decompress,
    /// `None`: what is written goes into stored blocks.
    deflate: Option<Compress>,
    /// Compressed and unread; first what the constructor was given.
    input: Bytes,
    scratch: Box<[u8]>,
    /// The inflater may hold more than it had room to give.
    more_inside: bool,
    peer_ended: bool,
    /// Compressed and unsent.
    output: Vec<u8>,
    sent: usize,
    /// Octets lie in the compressor that no flush has pushed out.
    dirty: bool,
    /// A writer was told to wait. Its waker stands in `io`, and a reader must not put its own there instead.
    writer_waits: bool,
    counts: Arc<DeflateCounts>,
}

impl<Io> std::fmt::Debug for Deflated<Io> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflated").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl<Io> Deflated<Io> {
    /// Starts both directions. `already_read` are octets behind the server's tagged OK that were read with it: they
    /// are compressed already (RFC 4978 §3).
    pub fn new(io: Io, already_read: Bytes) -> Self {
        let counts = Arc::new(DeflateCounts::default());
        add(&counts.read_wire, already_read.len());
        Self {
            io,
            inflate: Decompress::new(false),
            // Commands are short; a higher level only costs time.
            deflate: Some(Compress::new(Compression::fast(), false)),
            input: already_read,
            scratch: vec![0; IN_OCTETS_MAX].into_boxed_slice(),
            more_inside: true,
            peer_ended: false,
            output: Vec::with_capacity(OUT_OCTETS_MAX),
            sent: 0,
            dirty: false,
            writer_waits: false,
            counts,
        }
    }

    /// The counters.
    #[must_use]
    pub fn counts(&self) -> Arc<DeflateCounts> {
        Arc::clone(&self.counts)
    }

    /// Inflates into `buf`; how many octets came out.
    fn inflate_into(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        let room = buf.initialize_unfilled();
        let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(&self.input, room, FlushDecompress::None)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let room = room.len();
        let taken = delta(in_before, self.inflate.total_in());
        let made = delta(out_before, self.inflate.total_out());
        self.input.advance(taken.min(self.input.len()));
        buf.advance(made.min(room));
        add(&self.counts.read_raw, made);
        self.more_inside = made == room;
        match status {
            Status::StreamEnd => {
                self.peer_ended = true;
                self.more_inside = false;
            }
            Status::Ok | Status::BufError => {
                if taken == 0 && made == 0 && self.input.has_remaining() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the deflate stream does not go on",
                    ));
                }
            }
        }
        Ok(made)
    }

    /// Compresses some of `octets` (or flushes) into the output; how many were taken, and whether there is more to come.
    fn deflate_from(&mut self, octets: &[u8], flush: FlushCompress) -> io::Result<(usize, bool)> {
        let Some(deflate) = &mut self.deflate else {
            return Ok((stored(octets, &mut self.output), false));
        };
        self.output.reserve(OUT_OCTETS_MAX);
        let before = deflate.total_in();
        deflate
            .compress_vec(octets, &mut self.output, flush)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let full = self.output.len() == self.output.capacity();
        Ok((delta(before, deflate.total_in()), full))
    }

    fn waiting(&self) -> usize {
        self.output.len().saturating_sub(self.sent)
    }
}

/// Writes some of `octets` as a block of their own; the deflate stream stands between two octets. How many.
fn stored(octets: &[u8], output: &mut Vec<u8>) -> usize {
    let octets = octets.get(..STORED_OCTETS_MAX).unwrap_or(octets);
    let Ok(len) = u16::try_from(octets.len()) else { return 0 };
    if len > 0 {
        output.push(0);
        output.extend_from_slice(&len.to_le_bytes());
        output.extend_from_slice(&(!len).to_le_bytes());
        output.extend_from_slice(octets);
    }
    octets.len()
}

/// Commands are shorter.
const STORED_OCTETS_MAX: usize = 4096;

fn delta(before: u64, after: u64) -> usize {
    usize::try_from(after.saturating_sub(before)).unwrap_or(usize::MAX)
}

impl<Io: AsyncWrite + Unpin> Deflated<Io> {
    /// Sends what is compressed until no more than `rest` octets wait.
    fn poll_send(&mut self, cx: &mut Context<'_>, rest: usize) -> Poll<io::Result<()>> {
        while self.waiting() > rest {
            let octets = self.output.get(self.sent..).unwrap_or_default();
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, octets))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent = self.sent.saturating_add(n);
            add(&self.counts.written_wire, n);
        }
        if self.waiting() == 0 {
            self.output.clear();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.dirty {
            ready!(self.poll_send(cx, 0))?;
            let (_, more) = self.deflate_from(&[], FlushCompress::Sync)?;
            self.dirty = more;
        }
        ready!(self.poll_send(cx, 0))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// The deflate stream stays open, as servers leave theirs: the end of the connection is the end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_push(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        if octets.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(self.poll_send(cx, OUT_OCTETS_MAX))?;
            // Its buffer grows no further than what waits plus one reservation.
            self.output.drain(..self.sent);
            self.sent = 0;
            let (taken, _) = self.deflate_from(octets, FlushCompress::None)?;
            if taken > 0 {
                // A stored block is whole as it stands.
                self.dirty = self.deflate.is_some();
                add(&self.counts.written_raw, taken);
                return Poll::Ready(Ok(taken));
            }
            // The compressor wanted room before it takes more: what it gave waits now, and is sent first.
            ready!(self.poll_send(cx, 0))?;
        }
    }
}

impl<Io: AsyncIo> AsyncIo for Deflated<Io> {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        self.io.set_receive_window(octets)
    }

    fn slim(&mut self) {
        self.io.slim();
        if !self.dirty {
            // A flush has ended the last block at an octet's end.
            self.deflate = None;
            self.output.drain(..self.sent);
            self.sent = 0;
            self.output.shrink_to_fit();
            self.scratch = vec![0; SLIM_IN_OCTETS_MAX].into_boxed_slice();
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Deflated<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.peer_ended {
                return Poll::Ready(Ok(()));
            }
            if (this.input.has_remaining() || this.more_inside) && this.inflate_into(buf)? > 0 {
                return Poll::Ready(Ok(()));
            }
            if this.peer_ended || this.input.has_remaining() {
                continue;
            }
            let mut scratch = ReadBuf::new(&mut this.scratch);
            match Pin::new(&mut this.io).poll_read(cx, &mut scratch) {
                Poll::Ready(Ok(())) if scratch.filled().is_empty() => {
                    // Servers close without ending the deflate stream (RFC 4978 has no word for it).
                    this.peer_ended = true;
                }
                Poll::Ready(Ok(())) => {
                    add(&this.counts.read_wire, scratch.filled().len());
                    this.input = Bytes::copy_from_slice(scratch.filled());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if this.dirty && !this.writer_waits {
                        // An error shows again at the next write; the reader may still have an answer to read.
                        let _later = this.poll_push(cx);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Deflated<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.poll_take(cx, octets);
        self.writer_waits = result.is_pending();
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.poll_push(cx);
        self.writer_waits = result.is_pending();
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.poll_end(cx);
        self.writer_waits = result.is_pending();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// What a server sends: each part followed by a sync flush, and no end of stream.
    fn server_blocks(parts: &[&[u8]]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::default());
        for part in parts {
            encoder.write_all(part).expect("in memory");
            encoder.flush().expect("in memory");
        }
        encoder.get_ref().clone()
    }

    fn pair(size: usize) -> (Deflated<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(size);
        (Deflated::new(ours, Bytes::new()), theirs)
    }

    #[tokio::test]
    async fn a_stream_at_rest_goes_on_without_a_compressor() {
        let (mut ours, mut theirs) = pair(64 * 1024);
        ours.write_all(b"a1 EXAMINE INBOX\r\n").await.expect("room");
        ours.slim();
        assert!(ours.deflate.is_some(), "in the middle of a block it cannot");
        ours.flush().await.expect("room");
        ours.slim();
        assert!(ours.deflate.is_none() && ours.output.capacity() == 0);
        let long = "x".repeat(10_000);
        ours.write_all(format!("a2 NOOP\r\n{long}").as_bytes()).await.expect("room");
        ours.flush().await.expect("room");
        theirs.write_all(&server_blocks(&[b"a2 OK done\r\n"])).await.expect("room");
        let mut line = [0; 12];
        ours.read_exact(&mut line).await.expect("a line");
        assert_eq!(&line, b"a2 OK done\r\n");
        drop(ours);
        let mut wire = Vec::new();
        theirs.read_to_end(&mut wire).await.expect("all of it");
        let mut decoder = flate2::read::DeflateDecoder::new(&wire[..]);
        let mut text = vec![0; 18 + 9 + 10_000];
        decoder.read_exact(&mut text).expect("a deflate stream");
        assert_eq!(String::from_utf8_lossy(&text), format!("a1 EXAMINE INBOX\r\na2 NOOP\r\n{long}"));
    }

    #[tokio::test]
    async fn sync_flushed_blocks_are_readable_at_once() {
        let (mut ours, mut theirs) = pair(64 * 1024);
        for part in [&b"* OK ready\r\n"[..], b"", b"a1 OK done\r\n"] {
            let all = server_blocks(&[part]);
            // The second part alone is an empty flush: nothing to read, and no end.
            theirs.write_all(&all).await.expect("room");
            let mut got = vec![0; part.len()];
            ours.read_exact(&mut got).await.expect("sent");
            assert_eq!(got, part);
        }
        assert_eq!(ours.counts().read_raw(), 24);
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn octets_read_with_the_ok_are_part_of_the_stream() {
        let all = server_blocks(&[b"a2 OK [CAPABILITY IMAP4rev1]\r\n"]);
        for cut in 0..=all.len() {
            let (before, after) = all.split_at(cut);
            let (ours, mut theirs) = duplex(1024);
            let mut ours = Deflated::new(ours, Bytes::copy_from_slice(before));
            theirs.write_all(after).await.expect("room");
            drop(theirs);
            let mut got = Vec::new();
            ours.read_to_end(&mut got).await.expect("whole");
            assert_eq!(got, b"a2 OK [CAPABILITY IMAP4rev1]\r\n", "cut at {cut}");
            assert_eq!(ours.counts().read_wire(), u64::try_from(all.len()).expect("small"));
        }
    }

    #[tokio::test]
    async fn a_flush_makes_all_that_was_written_decodable() {
        let (mut ours, mut theirs) = pair(64 * 1024);
        let mut decoder = Decompress::new(false);
        for line in ["a1 NOOP\r\n", "a2 UID FETCH 1:* (FLAGS)\r\n"] {
            ours.write_all(line.as_bytes()).await.expect("room");
            ours.flush().await.expect("room");
            let mut wire = vec![0; 1024];
            let n = theirs.read(&mut wire).await.expect("flushed");
            assert!(wire[..n].ends_with(&[0, 0, 0xff, 0xff]), "a sync flush ends in an empty stored block");
            let mut plain = Vec::with_capacity(1024);
            decoder.decompress_vec(&wire[..n], &mut plain, FlushDecompress::Sync).expect("valid");
            assert_eq!(plain, line.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_reader_that_would_wait_pushes_out_a_forgotten_command() {
        let (mut ours, mut theirs) = pair(64 * 1024);
        ours.write_all(b"a1 NOOP\r\n").await.expect("room");
        let answer = server_blocks(&[b"a1 OK\r\n"]);
        let server = async {
            let mut wire = [0; 256];
            assert!(theirs.read(&mut wire).await.expect("the command came") > 0);
            theirs.write_all(&answer).await.expect("room");
        };
        let mut got = [0; 7];
        let ((), read) = tokio::join!(server, ours.read_exact(&mut got));
        read.expect("answered");
        assert_eq!(&got, b"a1 OK\r\n");
    }

    #[tokio::test]
    async fn a_bomb_comes_out_in_the_readers_portions() {
        let bomb = server_blocks(&[&vec![0; 64 << 20]]);
        assert!(bomb.len() < 100 << 10);
        let wire = bomb.len();
        let mut ours = Deflated::new(tokio::io::join(io::Cursor::new(bomb), tokio::io::sink()), Bytes::new());
        let (mut portion, mut total) = ([1; 4096], 0);
        loop {
            let n = ours.read(&mut portion).await.expect("valid");
            if n == 0 {
                break;
            }
            total += n;
            assert!(ours.input.len() <= IN_OCTETS_MAX && ours.output.capacity() <= 4 * OUT_OCTETS_MAX);
        }
        assert_eq!(total, 64 << 20);
        assert_eq!(ours.counts().read_wire(), u64::try_from(wire).expect("small"));
    }

    #[tokio::test]
    async fn octets_that_are_no_deflate_stream_are_an_error() {
        for noise in [&b"* OK not compressed at all\r\n"[..], &[0xff; 64], &[0x06]] {
            let mut ours = Deflated::new(
                tokio::io::join(io::Cursor::new(noise.to_vec()), tokio::io::sink()),
                Bytes::new(),
            );
            let mut got = Vec::new();
            let error = ours.read_to_end(&mut got).await.expect_err("noise");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn an_ended_deflate_stream_is_the_end() {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"* BYE\r\n").expect("in memory");
        let mut wire = encoder.finish().expect("in memory");
        wire.extend_from_slice(b"surplus");
        let mut ours = Deflated::new(tokio::io::join(io::Cursor::new(wire), tokio::io::sink()), Bytes::new());
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.expect("ended");
        assert_eq!(got, b"* BYE\r\n");
    }

    #[tokio::test]
    async fn a_slow_peer_stops_the_writer() {
        let (mut ours, theirs) = pair(1024);
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(1 << 20)
        .collect();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut given = 0;
        while let Poll::Ready(n) = Pin::new(&mut ours).poll_write(&mut cx, &noise[given..]) {
            given += n.expect("no error");
        }
        assert!(given < 512 << 10, "{given} octets were taken from the writer");
        assert!(ours.output.capacity() < 256 << 10);
        drop(theirs);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_split_gives_the_same_octets(
            parts in prop::collection::vec((prop::collection::vec(prop::sample::select(b"ab \r\n\0\xff*".to_vec()), 0..3000), any::<bool>()), 0..12),
            pipe in 1_usize..5000,
            portion in 1_usize..5000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let all: Vec<u8> = parts.iter().flat_map(|(p, _)| p.clone()).collect();
            let got = runtime.block_on(async {
                let (a, b) = duplex(pipe);
                let (mut a, mut b) = (Deflated::new(a, Bytes::new()), Deflated::new(b, Bytes::new()));
                let writer = async {
                    for (part, flush) in &parts {
                        a.write_all(part).await.expect("open");
                        if *flush {
                            a.flush().await.expect("open");
                        }
                    }
                    a.shutdown().await.expect("open");
                };
                let reader = async {
                    let (mut got, mut buf) = (Vec::new(), vec![0; portion]);
                    loop {
                        match b.read(&mut buf).await.expect("valid") {
                            0 => return got,
                            n => got.extend_from_slice(&buf[..n]),
                        }
                    }
                };
                tokio::join!(writer, reader).1
            });
            prop_assert_eq!(got, all);
        }

        #[test]
        fn another_inflater_reads_what_we_write(text in prop::collection::vec(any::<u8>(), 0..20_000)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let wire = runtime.block_on(async {
                let (mut ours, mut theirs) = pair(1 << 20);
                ours.write_all(&text).await.expect("room");
                ours.shutdown().await.expect("room");
                let mut wire = Vec::new();
                theirs.read_to_end(&mut wire).await.expect("ended");
                wire
            });
            let mut plain = vec![0; text.len()];
            flate2::read::DeflateDecoder::new(&wire[..]).read_exact(&mut plain).expect("valid");
            prop_assert_eq!(plain, text);
        }
    }
}
