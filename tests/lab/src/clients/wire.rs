//! A client that is driven step by step: it says octets, and it waits for lines and responses. Nothing of the
//! product's is in it, so that it can judge. Everything received is kept, for whoever looks for what must not be
//! there.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::Account;
use crate::net::{Lab, Place};

/// How a [`Wire`] speaks at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// TLS before the greeting.
    Implicit,
    /// Plain, until [`Wire::start_tls`].
    Plain,
}

/// One connection.
pub struct Wire {
    stream: Stream,
    /// Received and not yet read.
    buffer: Vec<u8>,
    received: Vec<u8>,
    patience: Duration,
    number: u32,
    host: String,
    config: Arc<ClientConfig>,
}

/// A response: the lines with their literals between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// All octets, the last CRLF left out.
    pub octets: Vec<u8>,
    /// The contents of the literals, in order.
    pub literals: Vec<Vec<u8>>,
}

impl Response {
    /// The octets as text, for looking and for messages.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.octets).into_owned()
    }

    /// `(12, "EXISTS")` of `* 12 EXISTS`, in upper case.
    #[must_use]
    pub fn numbered(&self) -> Option<(u32, String)> {
        let text = self.text();
        let mut words = text.strip_prefix("* ")?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        Some((number, words.next()?.to_ascii_uppercase()))
    }
}

/// What came back for one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Everything before the tagged line.
    pub untagged: Vec<Response>,
    /// The tagged line without its tag: `OK done`.
    pub status: String,
}

impl Reply {
    /// Fails unless the command was done.
    ///
    /// # Errors
    /// With the server's own words.
    pub fn ok(self) -> anyhow::Result<Self> {
        ensure!(self.status.starts_with("OK"), "the server said {:?}", self.status);
        Ok(self)
    }

    /// The contents of all literals, in order.
    pub fn literals(&self) -> impl Iterator<Item = &[u8]> {
        self.untagged.iter().flat_map(|response| response.literals.iter().map(Vec::as_slice))
    }
}

impl Wire {
    /// Connects from `place` to the account's host, found by the place's own names, and reads the greeting.
    ///
    /// # Errors
    /// When nothing answers within `patience`, or the certificate is not trusted.
    pub fn connect(
        lab: &Lab,
        place: Place,
        account: &Account,
        tls: Tls,
        patience: Duration,
    ) -> anyhow::Result<(Self, Response)> {
        let address = lab.address_of(place, &account.host)?;
        let mut wire = Self::dial(lab, place, (address, account.port), &account.host, &account.ca, patience)?;
        if tls == Tls::Implicit {
            wire.secure()?;
        }
        let greeting = wire.response()?;
        Ok((wire, greeting))
    }

    /// [`Wire::connect`] with TLS, and the login, which must succeed.
    ///
    /// # Errors
    /// As [`Wire::connect`], or when the login is refused.
    pub fn log_in(lab: &Lab, place: Place, account: &Account, patience: Duration) -> anyhow::Result<Self> {
        let (mut wire, _) = Self::connect(lab, place, account, Tls::Implicit, patience)?;
        wire.command(&format!("LOGIN {} {}", account.user, account.password))?.ok()?;
        Ok(wire)
    }

    /// A TCP connection that has said nothing yet.
    ///
    /// # Errors
    /// When nothing answers within `patience`.
    pub fn dial(
        lab: &Lab,
        place: Place,
        (address, port): (IpAddr, u16),
        host: &str,
        ca: &Path,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::new(address, port);
        let plain = lab
            .inside(place, move || TcpStream::connect_timeout(&address, patience))?
            .with_context(|| format!("cannot connect to {address}"))?;
        plain.set_nodelay(true)?;
        plain.set_read_timeout(Some(patience))?;
        plain.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream: Stream::Plain(plain),
            buffer: Vec::new(),
            received: Vec::new(),
            patience,
            number: 0,
            host: host.to_owned(),
            config: client_config(ca)?,
        })
    }

    /// Starts TLS now, without a word before.
    ///
    /// # Errors
    /// When the handshake fails: the certificate is not trusted, say.
    pub fn secure(&mut self) -> anyhow::Result<()> {
        let Stream::Plain(plain) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            bail!("TLS is on already");
        };
        let name = ServerName::try_from(self.host.clone()).context("no name for a certificate")?;
        let mut tls = ClientConnection::new(Arc::clone(&self.config), name)?;
        let mut plain = plain;
        while tls.is_handshaking() {
            tls.complete_io(&mut plain).context("the TLS handshake failed")?;
        }
        self.stream = Stream::Tls(Box::new(StreamOwned::new(tls, plain)));
        Ok(())
    }

    /// `STARTTLS` and the handshake.
    ///
    /// # Errors
    /// When the server refuses, or the handshake fails.
    pub fn start_tls(&mut self) -> anyhow::Result<()> {
        self.command("STARTTLS")?.ok()?;
        self.secure()
    }

    /// From here on a silence of this length is a failure.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_patience(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.patience = patience;
        let plain = match &self.stream {
            Stream::Plain(plain) => plain,
            Stream::Tls(tls) => &tls.sock,
            Stream::Gone => bail!("the connection is gone"),
        };
        plain.set_read_timeout(Some(patience))?;
        Ok(plain.set_write_timeout(Some(patience))?)
    }

    /// Everything received so far, TLS taken off.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    /// When the connection breaks, or the other side takes nothing for as long as the patience.
    pub fn send(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(octets).and_then(|()| self.stream.flush()).context("cannot send")
    }

    /// Sends a command and returns its tag.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub fn begin(&mut self, command: &str) -> anyhow::Result<String> {
        self.number += 1;
        let tag = format!("w{}", self.number);
        self.send(format!("{tag} {command}\r\n").as_bytes())?;
        Ok(tag)
    }

    /// Reads to the tagged line of a command.
    ///
    /// # Errors
    /// When the connection breaks or falls silent first.
    pub fn finish(&mut self, tag: &str) -> anyhow::Result<Reply> {
        let mut untagged = Vec::new();
        loop {
            let response = self.response().with_context(|| format!("while waiting for {tag}"))?;
            let start = format!("{tag} ");
            if response.octets.starts_with(start.as_bytes()) {
                let status = response.text().split_off(start.len());
                return Ok(Reply { untagged, status });
            }
            untagged.push(response);
        }
    }

    /// Sends a command and waits for all of its reply.
    ///
    /// # Errors
    /// When the connection breaks or falls silent first; a refusal is no error.
    pub fn command(&mut self, command: &str) -> anyhow::Result<Reply> {
        let tag = self.begin(command)?;
        let shown = if command.starts_with("LOGIN") { "LOGIN" } else { command };
        self.finish(&tag).with_context(|| format!("command {shown}"))
    }

    /// The next response, literals included.
    ///
    /// # Errors
    /// When the connection breaks or falls silent first.
    pub fn response(&mut self) -> anyhow::Result<Response> {
        let (mut octets, mut literals) = (Vec::new(), Vec::new());
        loop {
            let line = self.line()?;
            octets.extend_from_slice(&line);
            let Some(length) = announced_literal(&line) else {
                let end = octets.len().saturating_sub(2);
                octets.truncate(end);
                return Ok(Response { octets, literals });
            };
            let literal = self.exactly(length)?;
            octets.extend_from_slice(&literal);
            literals.push(literal);
        }
    }

    /// The next line, CRLF included.
    ///
    /// # Errors
    /// When the connection breaks or falls silent first.
    pub fn line(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut looked = 0;
        loop {
            let rest = self.buffer.get(looked..).unwrap_or_default();
            if let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
                return Ok(self.buffer.drain(..looked + at + 2).collect());
            }
            looked = self.buffer.len().saturating_sub(1);
            self.fill()?;
        }
    }

    /// Exactly so many octets.
    ///
    /// # Errors
    /// When the connection breaks or falls silent first.
    pub fn exactly(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Whatever is there next, at least one octet; `None` when the other side has closed.
    ///
    /// # Errors
    /// When the connection breaks or falls silent first.
    pub fn some(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        if self.buffer.is_empty() && self.receive()? == 0 {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.buffer)))
    }

    /// Reads until the other side closes, and returns what came.
    ///
    /// # Errors
    /// When it does not close within `patience`, however busy it is until then.
    pub fn until_closed(&mut self, patience: Duration) -> anyhow::Result<Vec<u8>> {
        let start = Instant::now();
        loop {
            let Some(left) = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
                bail!("the connection was still open after {patience:?}");
            };
            self.set_patience(left)?;
            match self.receive() {
                Ok(0) => return Ok(std::mem::take(&mut self.buffer)),
                Ok(_) => {}
                Err(error) if error.is::<Stalled>() => {}
                // A reset is an end too.
                Err(_) => return Ok(std::mem::take(&mut self.buffer)),
            }
        }
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        ensure!(self.receive()? > 0, Closed);
        Ok(())
    }

    fn receive(&mut self) -> anyhow::Result<usize> {
        let mut chunk = [0; 1 << 15];
        let count = match self.stream.read(&mut chunk) {
            Ok(count) => count,
            // rustls: closed without close_notify. The octets so far were whole records.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!(Stalled(self.patience))
            }
            Err(error) => return Err(error).context("the connection broke"),
        };
        let octets = chunk.get(..count).unwrap_or_default();
        self.buffer.extend_from_slice(octets);
        self.received.extend_from_slice(octets);
        Ok(count)
    }
}

/// Nothing came for as long as the patience. Tests that expect a silence look for this value in the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled(pub Duration);

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nothing came for {:?}", self.0)
    }
}

impl std::error::Error for Stalled {}

/// The other side closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the other side closed the connection")
    }
}

impl std::error::Error for Closed {}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// A handshake failed.
    Gone,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(plain) => plain.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
            Self::Gone => Err(ErrorKind::NotConnected.into()),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(plain) => plain.write(octets),
            Self::Tls(tls) => tls.write(octets),
            Self::Gone => Err(ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(plain) => plain.flush(),
            Self::Tls(tls) => tls.flush(),
            Self::Gone => Err(ErrorKind::NotConnected.into()),
        }
    }
}

/// `{n}` or `~{n}` at the end of a line that can hold one: not in a status response, whose text may end in
/// anything.
fn announced_literal(line: &[u8]) -> Option<usize> {
    let text = line.strip_suffix(b"}\r\n")?;
    let at = text.iter().rposition(|octet| *octet == b'{')?;
    let digits = std::str::from_utf8(text.get(at + 1..)?).ok()?;
    if line.starts_with(b"*") {
        let word = line.split(|octet| *octet == b' ').nth(1)?.to_ascii_uppercase();
        if [b"OK".as_slice(), b"NO", b"BAD", b"BYE", b"PREAUTH"].contains(&word.as_slice()) {
            return None;
        }
    } else if line.starts_with(b"w") || line.starts_with(b"+") {
        return None;
    }
    digits.parse().ok()
}

fn client_config(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(|| format!("{}", ca.display()))? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_announced_only_where_one_can_stand() {
        assert_eq!(announced_literal(b"* 1 FETCH (BODY[] {12}\r\n"), Some(12));
        assert_eq!(announced_literal(b" RFC822.HEADER {0}\r\n"), Some(0));
        for line in ["* NO [X] mailbox {5}\r\n", "w1 NO {5}\r\n", "* 1 FETCH (UID 1)\r\n", "* OK {5}\r\n"] {
            assert_eq!(announced_literal(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn numbered_responses_are_told_apart() {
        let response = |text: &str| Response { octets: text.into(), literals: Vec::new() };
        assert_eq!(response("* 12 exists").numbered(), Some((12, "EXISTS".to_owned())));
        assert_eq!(response("* OK [UIDNEXT 3]").numbered(), None);
    }
}
