//! A scripted server with one enormous message under any UID, and a client that only counts: what the benches of the
//! relay need, where Dovecot and a real client would be what is measured.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Lab, Place, sys};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// Where it listens, in the branch's own namespace: neither the emulator nor a wire is in the way.
pub(crate) const ORIGIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9_930);

/// A running server. Dropping it ends it; sessions end with their clients.
pub(crate) struct Origin {
    stop: Arc<AtomicBool>,
    namespace: String,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Origin {
    /// Starts it; every message has so many octets.
    pub(crate) fn start(lab: &Lab, authority: &lab::Authority, octets: u64) -> anyhow::Result<Self> {
        let identity = authority.issue(&[lab::net::DOVECOT])?;
        let certificate = CertificateDer::from_pem_file(&identity.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&identity.key)?;
        let config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
        let config = Arc::new(config);
        let listener = lab.inside(Place::Branch, || TcpListener::bind(ORIGIN))??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let config = Arc::clone(&config);
                // A client that leaves in the middle is no fault of the server's.
                std::thread::spawn(move || drop(serve(connection, config, octets)));
            }
        });
        Ok(Self { stop, namespace: lab.namespace(Place::Branch), thread: Some(thread) })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let namespace = self.namespace.clone();
        // A knock ends its wait.
        let knock = std::thread::spawn(move || {
            if sys::enter_netns(&namespace).is_ok() {
                drop(TcpStream::connect_timeout(&ORIGIN, Duration::from_secs(1)));
            }
        });
        drop(knock.join());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(connection: TcpStream, config: Arc<ServerConfig>, octets: u64) -> anyhow::Result<()> {
    connection.set_nodelay(true)?;
    let stream = StreamOwned::new(ServerConnection::new(config)?, connection);
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"* OK [CAPABILITY IMAP4rev1 SASL-IR] ready\r\n")?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        let mut words = line.split_whitespace();
        let tag = words.next().unwrap_or_default().to_owned();
        let upper = line.to_ascii_uppercase();
        let out = stream.get_mut();
        if upper.contains(" FETCH ") && upper.contains("BODY") {
            let uid = words.find_map(|word| word.parse::<u32>().ok()).unwrap_or(1);
            send_message(out, uid, octets)?;
        } else if upper.contains(" FETCH ") {
            for uid in 1..=MESSAGES {
                out.write_all(format!("* {uid} FETCH (UID {uid} FLAGS (\\Seen))\r\n").as_bytes())?;
            }
        } else if upper.contains(" CAPABILITY") {
            out.write_all(b"* CAPABILITY IMAP4rev1 SASL-IR\r\n")?;
        } else if upper.contains(" SELECT ") || upper.contains(" EXAMINE ") {
            out.write_all(
                format!(
                    "* FLAGS (\\Seen)\r\n* {MESSAGES} EXISTS\r\n* 0 RECENT\r\n\
                     * OK [UIDVALIDITY 7] it\r\n* OK [UIDNEXT {}] it\r\n",
                    MESSAGES + 1
                )
                .as_bytes(),
            )?;
        } else if upper.contains(" LOGOUT") {
            out.write_all(b"* BYE\r\n")?;
        }
        out.write_all(format!("{tag} OK done\r\n").as_bytes())?;
        out.flush()?;
        line.clear();
    }
    Ok(())
}

const MESSAGES: u32 = 64;

/// The same line again and again behind a line that differs for each UID: no two messages are the same body.
fn send_message(out: &mut impl std::io::Write, uid: u32, octets: u64) -> anyhow::Result<()> {
    out.write_all(format!("* {uid} FETCH (UID {uid} BODY[] {{{octets}}}\r\n").as_bytes())?;
    let header = format!("From: bench@lab.test\r\nSubject: number {uid}\r\n\r\n");
    let line = format!("{uid:08}{}\r\n", "abcdefghij".repeat(7));
    let block = line.repeat(1_000);
    let mut left = octets;
    let mut send = |piece: &[u8]| -> anyhow::Result<bool> {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        out.write_all(piece.get(..take).unwrap_or_default())?;
        left -= u64::try_from(take)?;
        Ok(left > 0)
    };
    if send(header.as_bytes())? {
        while send(block.as_bytes())? {}
    }
    Ok(out.write_all(b")\r\n")?)
}

/// A client that reads as fast as it can and keeps nothing.
pub(crate) struct Sink {
    stream: StreamOwned<ClientConnection, TcpStream>,
    number: u32,
    tail: Vec<u8>,
}

impl Sink {
    /// Logs in and selects at an address in the branch.
    pub(crate) fn open(lab: &Lab, roots: &Arc<RootCertStore>, address: SocketAddr) -> anyhow::Result<Self> {
        let plain = lab.inside(Place::Branch, move || TcpStream::connect(address))?;
        let plain = plain.with_context(|| format!("nothing accepts on {address}"))?;
        plain.set_nodelay(true)?;
        plain.set_read_timeout(Some(Duration::from_secs(120)))?;
        let config = ClientConfig::builder().with_root_certificates(Arc::clone(roots)).with_no_client_auth();
        let name = ServerName::try_from(lab::net::DOVECOT)?;
        let tls = ClientConnection::new(Arc::new(config), name)?;
        let mut sink = Self { stream: StreamOwned::new(tls, plain), number: 0, tail: Vec::new() };
        sink.until(b"\r\n")?;
        for command in ["LOGIN alice secret", "SELECT INBOX", "UID FETCH 1:* (FLAGS)"] {
            sink.command(command)?;
        }
        Ok(sink)
    }

    /// Reads to the tagged OK; returns the octets that came.
    pub(crate) fn command(&mut self, text: &str) -> anyhow::Result<u64> {
        self.number += 1;
        let tag = format!("s{}", self.number);
        self.stream.write_all(format!("{tag} {text}\r\n").as_bytes())?;
        self.stream.flush()?;
        self.until(format!("\r\n{tag} OK done\r\n").as_bytes())
    }

    fn until(&mut self, end: &[u8]) -> anyhow::Result<u64> {
        let mut buffer = vec![0; 1 << 18];
        let mut total = 0;
        // A reply may be all that comes: let it begin a line.
        self.tail.clear();
        self.tail.extend_from_slice(b"\r\n");
        loop {
            let count = self.stream.read(&mut buffer)?;
            ensure!(count > 0, "the connection was closed");
            total += u64::try_from(count)?;
            let keep = self.tail.len().saturating_sub(end.len());
            self.tail.drain(..keep);
            let new = buffer.get(count.saturating_sub(end.len())..count).unwrap_or_default();
            self.tail.extend_from_slice(new);
            if self.tail.ends_with(end) {
                return Ok(total);
            }
        }
    }
}
