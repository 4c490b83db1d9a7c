//! A mail server by script, in the servers' place: constant texts where it is honest, and lies where a scenario
//! wants them. What it was asked is kept.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::pki::Identity;
use lab::{Lab, Place};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A running scripted server. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Liar {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    accepting: Option<JoinHandle<()>>,
}

/// One of its connections.
pub(crate) struct Talk {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

/// What a script does on each connection; an error ends the connection and nothing else.
pub(crate) type Script = dyn Fn(&mut Talk) -> std::io::Result<()> + Send + Sync;

impl Liar {
    /// Listens on a port of the server's first address, with TLS if there is an identity.
    pub(crate) fn start(
        lab: &Lab,
        port: u16,
        identity: Option<&Identity>,
        script: Arc<Script>,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::new(Place::Server.v4(), port);
        // A process that is being started elsewhere at this moment holds a copy of the last one's socket until exec.
        let start = Instant::now();
        let listener = loop {
            match lab.inside(Place::Server, move || TcpListener::bind(address))? {
                Ok(listener) => break listener,
                Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < COPIES_MAX => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).with_context(|| format!("cannot listen on {address}")),
            }
        };
        listener.set_nonblocking(true)?;
        let tls = identity.map(server_config).transpose()?;
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&asked));
        let accepting = std::thread::spawn(move || {
            let mut talks = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let (script, tls) = (Arc::clone(&script), tls.clone());
                let (asked, stop) = (Arc::clone(&noted), Arc::clone(&stopped));
                talks.push(std::thread::spawn(move || {
                    // The client of a liar may leave at any moment: that ends the talk, not the test.
                    drop(talk(stream, tls, asked, stop, &*script));
                }));
            }
            for talk in talks {
                drop(talk.join());
            }
        });
        Ok(Self { stop, asked, accepting: Some(accepting) })
    }

    /// Every line that any client has sent.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

/// Far longer than any exec takes.
const COPIES_MAX: Duration = Duration::from_secs(5);

fn talk(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    script: &Script,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    // Short, so that the end of the test is noticed.
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
            Box::new(StreamOwned::new(connection, stream))
        }
    };
    script(&mut Talk { stream, buffer: Vec::new(), asked, stop })
}

impl Talk {
    pub(crate) fn say(&mut self, octets: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(octets.as_ref())?;
        self.stream.flush()
    }

    /// The next line, CRLF left out.
    pub(crate) fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).take(at).collect();
                let line = String::from_utf8_lossy(&line).into_owned();
                self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
                return Ok(line);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return Err(ErrorKind::Interrupted.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the other side has gone or the test is over.
    pub(crate) fn linger(&mut self) -> std::io::Result<()> {
        loop {
            self.line()?;
        }
    }

    /// Greets and serves commands honestly, except those for which `lie` has an answer. The answer stands for all of
    /// the reply; `TAG` in it becomes the command's tag.
    pub(crate) fn serve(&mut self, mut lie: impl FnMut(&str) -> Option<Vec<u8>>) -> std::io::Result<()> {
        self.say("* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR] ready\r\n")?;
        loop {
            let line = self.line()?;
            let Some((tag, command)) = line.split_once(' ') else { continue };
            let reply = lie(command).unwrap_or_else(|| honest(command));
            self.say(with_tag(&reply, tag))?;
            if command.eq_ignore_ascii_case("LOGOUT") {
                return Ok(());
            }
            if command.eq_ignore_ascii_case("IDLE") {
                self.line()?;
                self.say(format!("{tag} OK idled\r\n"))?;
            }
        }
    }
}

fn with_tag(reply: &[u8], tag: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(reply.len()), reply);
    while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK) {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        out.extend_from_slice(tag.as_bytes());
        rest = after.get(MARK.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

const MARK: &[u8] = b"TAG";

/// Three messages in one mailbox.
const MESSAGES: u32 = 3;

/// The mailbox's message with this UID.
pub(crate) fn message(uid: u32) -> String {
    let text = format!("body of {uid}, always the same\r\n").repeat(20);
    format!(
        "From: constant@example.com\r\nSubject: constant {uid}\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n\r\n{text}"
    )
}

/// What an honest server with constant texts says.
pub(crate) fn honest(command: &str) -> Vec<u8> {
    let upper = command.to_ascii_uppercase();
    let words: Vec<&str> = upper.split(' ').collect();
    let reply = match words.as_slice() {
        ["CAPABILITY"] => "* CAPABILITY IMAP4rev1 LITERAL+ SASL-IR\r\nTAG OK listed\r\n".to_owned(),
        ["LOGIN" | "AUTHENTICATE", ..] => "TAG OK logged in\r\n".to_owned(),
        ["SELECT" | "EXAMINE", ..] => format!(
            "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n\
             * OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft \\*)] limited\r\n\
             * {MESSAGES} EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 77] valid\r\n* OK [UIDNEXT {}] next\r\n\
             TAG OK [READ-WRITE] selected\r\n",
            MESSAGES + 1
        ),
        ["UID", "FETCH", set, ..] | ["FETCH", set, ..] => {
            let mut reply: String = numbers(set).into_iter().map(|uid| fetch(uid, &upper)).collect();
            reply += "TAG OK fetched\r\n";
            reply
        }
        ["UID", "STORE", ..] | ["STORE", ..] => "TAG OK stored\r\n".to_owned(),
        ["IDLE"] => "+ idling\r\n".to_owned(),
        ["LOGOUT"] => "* BYE out\r\nTAG OK out\r\n".to_owned(),
        ["NOOP" | "CHECK" | "ID" | "NAMESPACE" | "ENABLE", ..] => "TAG OK done\r\n".to_owned(),
        _ => "TAG BAD unknown here\r\n".to_owned(),
    };
    reply.into_bytes()
}

fn fetch(uid: u32, command: &str) -> String {
    let body = message(uid);
    let mut items = vec![format!("UID {uid}")];
    if command.contains("FLAGS") {
        items.push("FLAGS (\\Seen)".to_owned());
    }
    if command.contains("RFC822.SIZE") {
        items.push(format!("RFC822.SIZE {}", body.len()));
    }
    if command.contains("INTERNALDATE") {
        items.push("INTERNALDATE \"01-Jan-2024 00:00:00 +0000\"".to_owned());
    }
    if command.contains("BODY[]") || command.contains("BODY.PEEK[]") {
        items.push(format!("BODY[] {{{}}}\r\n{body}", body.len()));
    }
    // UIDs and numbers are the same here.
    format!("* {uid} FETCH ({})\r\n", items.join(" "))
}

fn numbers(set: &str) -> Vec<u32> {
    let number = |text: &str| if text == "*" { MESSAGES } else { text.parse().unwrap_or(0) };
    let mut all: Vec<u32> = set
        .split(',')
        .flat_map(|part| {
            let (low, high) = part.split_once(':').unwrap_or((part, part));
            let (low, high) = (number(low), number(high));
            low.min(high)..=low.max(high)
        })
        .filter(|number| (1..=MESSAGES).contains(number))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn server_config(identity: &Identity) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(&identity.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_in_any_form() {
        assert_eq!(numbers("1:*"), [1, 2, 3]);
        assert_eq!(numbers("3,1,3:2"), [1, 2, 3]);
        assert_eq!(numbers("*,9"), [3]);
    }

    #[test]
    fn the_tag_is_put_in_wherever_it_stands() {
        assert_eq!(with_tag(b"* OK\r\nTAG OK TAG\r\n", "a1"), b"* OK\r\na1 OK a1\r\n");
    }

    #[test]
    fn literals_are_as_long_as_they_say() {
        let reply = String::from_utf8(honest("UID FETCH 2 (BODY.PEEK[])")).unwrap();
        let (head, rest) = reply.split_once("}\r\n").unwrap();
        let length: usize = head.rsplit_once('{').unwrap().1.parse().unwrap();
        assert_eq!(&rest[..length], message(2));
        assert!(rest[length..].starts_with(")\r\n"));
    }
}
