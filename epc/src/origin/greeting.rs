//! The first lines of a server: its greeting, and on port 143 the answer to STARTTLS.
//!
//! Before TLS everything may come from somebody in between. So nothing that was read there counts afterwards: the
//! greeting loses its response code (a capability list, an ALERT), untagged lines are dropped, and an octet behind
//! the tagged OK ends the connection: it would be read as if it had come through TLS (CVE-2011-0411 and its many
//! relatives; RFC 3501 §6.2.1 and RFC 9051 §11.1).

use super::Prefixed;
use bytes::{Bytes, BytesMut};
use seams::{AsyncIo, origin::OpenError};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A greeting with a long capability list has a few hundred octets.
const LINE_OCTETS_MAX: usize = 8 * 1024;
/// Untagged lines between our STARTTLS and its answer; servers send none.
const LINES_BEFORE_OK_MAX: usize = 16;

/// What a greeting says (RFC 9051 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ok,
    Preauth,
    Bye,
}

/// A greeting, exactly as sent.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    pub(super) kind: Kind,
    pub(super) line: Bytes,
}

impl Greeting {
    /// The line as it may be handed on when it came before TLS: without its response code.
    pub(super) fn without_code(&self) -> Bytes {
        let text = self.line.strip_suffix(b"\r\n").unwrap_or(&self.line);
        let rest = text.get(b"* OK".len()..).unwrap_or_default().trim_ascii_start();
        let human = match rest.strip_prefix(b"[") {
            // A code without its end is no text either.
            Some(code) => {
                code.iter().position(|o| *o == b']').and_then(|end| code.get(end + 1..)).unwrap_or_default()
            }
            None => rest,
        };
        let human = human.trim_ascii();
        let human: &[u8] = if human.is_empty() { b"IMAP ready" } else { human };
        Bytes::from([b"* OK ", human, b"\r\n"].concat())
    }
}

/// Reads lines from a server and keeps what came behind them.
pub(super) struct Lines {
    io: Box<dyn AsyncIo>,
    read: BytesMut,
}

impl Lines {
    pub(super) fn new(io: Box<dyn AsyncIo>) -> Self {
        Self { io, read: BytesMut::new() }
    }

    pub(super) async fn greeting(&mut self) -> Result<Greeting, OpenError> {
        let line = self.line().await.map_err(|e| match e {
            LineError::Closed => OpenError::Greeting("the server closed the connection before its greeting"),
            LineError::TooLong => OpenError::Greeting("the first line has more than 8 KiB"),
            LineError::Io(e) => OpenError::Network(e.to_string()),
        })?;
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Err(OpenError::Greeting("the first line does not end in CRLF"));
        };
        if text.iter().any(|o| matches!(o, 0 | b'\r')) {
            return Err(OpenError::Greeting("a NUL or CR inside the first line"));
        }
        let word = text.strip_prefix(b"* ").and_then(|t| t.split(|o| *o == b' ').next()).unwrap_or_default();
        let kind = match word {
            w if w.eq_ignore_ascii_case(b"OK") => Kind::Ok,
            w if w.eq_ignore_ascii_case(b"PREAUTH") => Kind::Preauth,
            w if w.eq_ignore_ascii_case(b"BYE") => Kind::Bye,
            _ => return Err(OpenError::Greeting("the first line is not an IMAP greeting")),
        };
        Ok(Greeting { kind, line })
    }

    /// Sends STARTTLS and reads exactly through its tagged OK. Whether it is offered need not be asked first: a
    /// server that does not do it says so, and its list could not be believed anyway.
    pub(super) async fn start_tls(&mut self) -> Result<(), OpenError> {
        if !self.read.is_empty() {
            return Err(OpenError::StartTls("the server sent more than its greeting before any command"));
        }
        let sent = async {
            self.io.write_all(b"w1 STARTTLS\r\n").await?;
            self.io.flush().await
        };
        sent.await.map_err(|e: io::Error| OpenError::Network(e.to_string()))?;
        for _ in 0..LINES_BEFORE_OK_MAX {
            let line = self.line().await.map_err(|e| match e {
                LineError::Closed => OpenError::StartTls("the server closed the connection"),
                LineError::TooLong => OpenError::StartTls("a line of its answer has more than 8 KiB"),
                LineError::Io(e) => OpenError::Network(e.to_string()),
            })?;
            if line.starts_with(b"* ") {
                continue;
            }
            let mut words = line.trim_ascii_end().split(|o| *o == b' ');
            let (tag, answer) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if tag != b"w1" {
                return Err(OpenError::StartTls("its answer has another tag"));
            }
            return if answer.eq_ignore_ascii_case(b"OK") {
                Ok(())
            } else {
                Err(OpenError::StartTls("the server refused it; use implicit TLS or enable it on the server"))
            };
        }
        Err(OpenError::StartTls("too many lines before its answer"))
    }

    /// The stream for TLS: only when nothing was read beyond the last line.
    pub(super) fn into_bare_io(self) -> Result<Box<dyn AsyncIo>, OpenError> {
        if self.read.is_empty() {
            Ok(self.io)
        } else {
            Err(OpenError::StartTls("octets behind its OK: somebody may be injecting"))
        }
    }

    /// The stream with what was read beyond the last line put back in front.
    pub(super) fn into_io(self) -> Box<dyn AsyncIo> {
        if self.read.is_empty() { self.io } else { Box::new(Prefixed::new(self.read.freeze(), self.io)) }
    }

    async fn line(&mut self) -> Result<Bytes, LineError> {
        loop {
            if let Some(end) = self.read.iter().position(|o| *o == b'\n') {
                if end >= LINE_OCTETS_MAX {
                    return Err(LineError::TooLong);
                }
                return Ok(self.read.split_to(end + 1).freeze());
            }
            if self.read.len() >= LINE_OCTETS_MAX {
                return Err(LineError::TooLong);
            }
            let mut some = [0; 2048];
            match self.io.read(&mut some).await {
                Ok(0) => return Err(LineError::Closed),
                Ok(n) => self.read.extend_from_slice(some.get(..n).unwrap_or_default()),
                Err(e) => return Err(LineError::Io(e)),
            }
        }
    }
}

enum LineError {
    Closed,
    TooLong,
    Io(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(octets: &[u8]) -> Lines {
        let far = tokio::io::join(io::Cursor::new(octets.to_vec()), tokio::io::sink());
        Lines::new(Box::new(seams::Stream::bare(far)))
    }

    async fn refused(octets: &[u8]) -> &'static str {
        match lines(octets).greeting().await {
            Err(OpenError::Greeting(why)) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[tokio::test]
    async fn the_greeting_is_exact_and_what_follows_is_kept() {
        let mut lines = lines(b"* OK [CAPABILITY IMAP4rev1] Hi.\r\n* 1 EXISTS\r\n");
        let greeting = lines.greeting().await.expect("a greeting");
        assert_eq!(greeting.kind, Kind::Ok);
        assert_eq!(greeting.line, &b"* OK [CAPABILITY IMAP4rev1] Hi.\r\n"[..]);
        let mut rest = Vec::new();
        lines.into_io().read_to_end(&mut rest).await.expect("in memory");
        assert_eq!(rest, b"* 1 EXISTS\r\n");
    }

    #[tokio::test]
    async fn what_is_no_greeting_is_refused() {
        assert!(refused(b"").await.contains("closed"));
        assert!(refused(b"HTTP/1.1 400 Bad Request\r\n").await.contains("not an IMAP greeting"));
        assert!(refused(b"* OKAY\r\n").await.contains("not an IMAP greeting"));
        assert!(refused(b"* OK hi\n").await.contains("CRLF"));
        assert!(refused(b"* OK h\0i\r\n").await.contains("NUL"));
        assert!(refused(&[b'*'; LINE_OCTETS_MAX + 1]).await.contains("8 KiB"));
        let long = [vec![b'x'; LINE_OCTETS_MAX], b"\r\n".to_vec()].concat();
        assert!(refused(&long).await.contains("8 KiB"));
    }

    #[test]
    fn a_greeting_from_before_tls_loses_its_code() {
        let rows: [(&[u8], &[u8]); 6] = [
            (b"* OK [CAPABILITY IMAP4rev1 STARTTLS] Dovecot ready.\r\n", b"* OK Dovecot ready.\r\n"),
            (b"* ok [ALERT] call 555\r\n", b"* OK call 555\r\n"),
            (b"* OK plain text\r\n", b"* OK plain text\r\n"),
            (b"* OK [CAPABILITY IMAP4rev1]\r\n", b"* OK IMAP ready\r\n"),
            (b"* OK [CAPABILITY without end\r\n", b"* OK IMAP ready\r\n"),
            (b"* OK\r\n", b"* OK IMAP ready\r\n"),
        ];
        for (sent, handed_on) in rows {
            let greeting = Greeting { kind: Kind::Ok, line: Bytes::copy_from_slice(sent) };
            assert_eq!(greeting.without_code(), handed_on);
        }
    }

    #[tokio::test]
    async fn starttls_reads_exactly_through_its_ok() {
        for (answer, verdict) in [
            (&b"w1 OK go\r\n"[..], None),
            (b"* CAPABILITY IMAP4rev1 AUTH=EVIL\r\nw1 ok\r\n", None),
            (b"w1 NO not here\r\n", Some("refused")),
            (b"w1 BAD what\r\n", Some("refused")),
            (b"w2 OK go\r\n", Some("another tag")),
            (b"+ go\r\n", Some("another tag")),
            (b"w1 OK", Some("closed")),
            (b"", Some("closed")),
        ] {
            match (lines(answer).start_tls().await, verdict) {
                (Ok(()), None) => {}
                (Err(OpenError::StartTls(why)), Some(part)) => assert!(why.contains(part), "{why}"),
                (other, _) => panic!("{answer:?} gave {other:?}"),
            }
        }
        let flood = b"* x\r\n".repeat(LINES_BEFORE_OK_MAX + 1);
        assert!(matches!(
            lines(&flood).start_tls().await,
            Err(OpenError::StartTls("too many lines before its answer"))
        ));
    }

    #[tokio::test]
    async fn one_octet_behind_the_ok_is_an_injection() {
        let mut lines = lines(b"w1 OK go\r\n*");
        lines.start_tls().await.expect("an OK");
        assert!(matches!(lines.into_bare_io(), Err(OpenError::StartTls(_))));
    }
}
