//! The scripted client: one IMAP session whose every act is timed on its own interface.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::arm::{Arm, Ground};
use crate::wire::{self, Values};

/// A session of the scripted client.
pub(crate) struct Session {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
    number: u32,
    mailbox: String,
    values: Values,
    /// Raw octets from the server, where somebody wants them.
    recording: Option<File>,
    /// Flip one octet of the next literal: to see that the comparison notices.
    flip_next: bool,
}

/// A command's way: when its first octet left, and what came by when.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// First octet sent.
    pub(crate) start: Instant,
    /// Last octet of its last literal.
    pub(crate) literal: Option<Instant>,
    /// Last octet of its tagged reply.
    pub(crate) end: Instant,
    /// Octets of all literals.
    pub(crate) literal_octets: usize,
}

impl Session {
    /// Connects, logs in and selects; then asks for all flags, so that every UID is known in this session.
    pub(crate) fn open(ground: &Ground, arm: Arm, user: &str, mailbox: &str) -> anyhow::Result<Self> {
        let (address, user) = (arm.address(), ground.user(user)?);
        let plain = ground.lab.inside(arm.place(), move || TcpStream::connect(address))?;
        let plain = plain.with_context(|| format!("{}: nothing accepts on {address}", arm.name()))?;
        let mut session = Self::over(plain, &ground.roots)?;
        if let Some(directory) = &ground.recordings {
            let file = directory.join(arm.name()).join(format!("scripted-{}-{mailbox}.server", user.name));
            session.recording = Some(File::options().append(true).create(true).open(file)?);
        }
        session.command(&format!("LOGIN {} {}", user.name, user.password))?;
        session.select(mailbox)?;
        session.command("UID FETCH 1:* (FLAGS)")?;
        Ok(session)
    }

    /// TLS and the greeting over a connection.
    pub(crate) fn over(plain: TcpStream, roots: &Arc<rustls::RootCertStore>) -> anyhow::Result<Self> {
        plain.set_nodelay(true)?;
        plain.set_read_timeout(Some(PATIENCE))?;
        plain.set_write_timeout(Some(PATIENCE))?;
        let config = ClientConfig::builder().with_root_certificates(Arc::clone(roots)).with_no_client_auth();
        let name = ServerName::try_from(lab::net::DOVECOT)?;
        let tls = ClientConnection::new(Arc::new(config), name)?;
        let mut session = Self {
            stream: StreamOwned::new(tls, plain),
            buffer: Vec::new(),
            number: 0,
            mailbox: String::new(),
            values: Values::default(),
            recording: None,
            flip_next: false,
        };
        let greeting = session.line()?;
        ensure!(greeting.starts_with(b"* OK"), "no greeting: {}", String::from_utf8_lossy(&greeting));
        Ok(session)
    }

    /// The certificate that the client was shown.
    pub(crate) fn shown(&self) -> Option<Vec<u8>> {
        Some(self.stream.conn.peer_certificates()?.first()?.to_vec())
    }

    /// Opens a mailbox.
    pub(crate) fn select(&mut self, mailbox: &str) -> anyhow::Result<Reply> {
        let reply = self.command(&format!("SELECT {mailbox}"))?;
        mailbox.clone_into(&mut self.mailbox);
        Ok(reply)
    }

    /// Logs in as Thunderbird does: waits for the prompt, then says who it is.
    pub(crate) fn authenticate(&mut self, user: &str, password: &str) -> anyhow::Result<Reply> {
        let (start, tag) = (Instant::now(), self.send("AUTHENTICATE PLAIN")?);
        let prompt = self.line()?;
        ensure!(prompt.starts_with(b"+"), "no prompt: {}", String::from_utf8_lossy(&prompt));
        let message = BASE64.encode(format!("\0{user}\0{password}"));
        self.stream.write_all(format!("{message}\r\n").as_bytes())?;
        self.stream.flush()?;
        self.reply("AUTHENTICATE PLAIN", start, &tag)
    }

    /// Delivers a message.
    pub(crate) fn append(&mut self, mailbox: &str, message: &[u8]) -> anyhow::Result<Reply> {
        self.append_as(mailbox, "", message)
    }

    /// Puts a message into a mailbox, with these flags (`(\\Seen) `, or nothing).
    pub(crate) fn append_as(&mut self, mailbox: &str, flags: &str, message: &[u8]) -> anyhow::Result<Reply> {
        let append = format!("APPEND {mailbox} {flags}{{{}+}}", message.len());
        let (start, tag) = (Instant::now(), self.send(&append)?);
        self.stream.write_all(&[message, b"\r\n"].concat())?;
        self.stream.flush()?;
        self.reply("APPEND", start, &tag)
    }

    /// Sends a command and reads to its tagged OK.
    pub(crate) fn command(&mut self, text: &str) -> anyhow::Result<Reply> {
        let (start, tag) = (Instant::now(), self.send(text)?);
        self.reply(text, start, &tag)
    }

    /// The UIDs of the open mailbox, ascending.
    pub(crate) fn uids(&mut self) -> anyhow::Result<Vec<u32>> {
        let tag = self.send("UID SEARCH ALL")?;
        let mut uids = Vec::new();
        loop {
            let line = self.line()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(found) = line.strip_prefix("* SEARCH") {
                uids.extend(found.split_ascii_whitespace().filter_map(|uid| uid.parse::<u32>().ok()));
            } else if let Some(verdict) = line.strip_prefix(&tag) {
                ensure!(verdict.starts_with("OK"), "UID SEARCH ALL: {}", line.trim_end());
                uids.sort_unstable();
                return Ok(uids);
            }
        }
    }

    fn reply(&mut self, text: &str, start: Instant, tag: &str) -> anyhow::Result<Reply> {
        let (mut literal, mut literal_octets, mut at) = (None, 0, 0);
        // Noted behind the clock: hashing is not the server's doing.
        let (end, status) = loop {
            let Some(response) = wire::response(self.buffer.get(at..).unwrap_or_default()) else {
                self.fill()?;
                continue;
            };
            if response.literal_end.is_some() {
                literal = Some(Instant::now());
                literal_octets += response.literals().map(<[u8]>::len).sum::<usize>();
            }
            let line = response.line().to_vec();
            at += response.end;
            if line.starts_with(tag.as_bytes()) {
                break (Instant::now(), line);
            }
            if line.starts_with(b"* BYE") && text != "LOGOUT" {
                bail!("{text}: {}", String::from_utf8_lossy(&line).trim_end());
            }
        };
        let mut octets: Vec<u8> = self.buffer.drain(..at).collect();
        if let Some(file) = &mut self.recording {
            file.write_all(&octets)?;
        }
        self.note(&mut octets)?;
        let status = String::from_utf8_lossy(&status).into_owned();
        let verdict = status.strip_prefix(tag).unwrap_or_default();
        ensure!(verdict.starts_with("OK"), "{text}: {}", status.trim_end());
        Ok(Reply { start, literal, end, literal_octets })
    }

    fn note(&mut self, octets: &mut [u8]) -> anyhow::Result<()> {
        let mut at = 0;
        while let Some(response) = wire::response(octets.get(at..).unwrap_or_default()) {
            let (end, literal_end) = (response.end, response.literal_end);
            if self.flip_next
                && let Some(inside) = literal_end.filter(|octets| *octets > 300)
            {
                self.flip_next = false;
                if let Some(octet) = octets.get_mut(at + inside - 60) {
                    *octet ^= 1;
                }
                continue;
            }
            self.values.note(&self.mailbox, &response)?;
            at += end;
        }
        Ok(())
    }

    fn send(&mut self, text: &str) -> anyhow::Result<String> {
        self.number += 1;
        let tag = format!("c{} ", self.number);
        self.stream.write_all(format!("{tag}{text}\r\n").as_bytes())?;
        self.stream.flush()?;
        Ok(tag)
    }

    fn line(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                return Ok(self.buffer.drain(..at + 2).collect());
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        let mut chunk = [0; 1 << 16];
        let count = self.stream.read(&mut chunk).context("the connection broke, or nothing came")?;
        ensure!(count > 0, "the server closed the connection");
        self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Flips one octet of the next literal, behind the wire and before it is looked at.
    pub(crate) const fn flip_next_literal(&mut self) {
        self.flip_next = true;
    }

    /// The values that this session was given so far; forgets
    /// them.
    pub(crate) fn take_values(&mut self) -> Values {
        self.values.take()
    }
}

/// A 10 MB attachment takes ten seconds at 10 Mbit/s; nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
