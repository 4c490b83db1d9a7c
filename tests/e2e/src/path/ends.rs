//! Plain ends of connections: a server that says whom it sees and gives back what it gets, and its client.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::Ground;
use sha2::{Digest as _, Sha256};

use super::STALL;

/// The echo server's port.
pub(crate) const ECHO: u16 = 8000;
/// Nobody listens there.
pub(crate) const CLOSED: u16 = 8001;
/// What rules are about.
pub(crate) const PORTS: &str = "\"8000-8009\"";

/// Serves on a port of each of these addresses for as long as the process runs.
pub(crate) fn serve(ground: &Ground, place: &str, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    for address in addresses.iter().copied() {
        let listener = ground
            .inside(place, move || TcpListener::bind(address))?
            .with_context(|| format!("{address} in {place}"))?;
        thread::spawn(move || {
            while let Ok((stream, from)) = listener.accept() {
                thread::spawn(move || echo(stream, from));
            }
        });
    }
    Ok(())
}

fn echo(mut stream: TcpStream, from: SocketAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{from}\n").as_bytes())?;
    let mut back = stream.try_clone()?;
    std::io::copy(&mut stream, &mut back)?;
    back.shutdown(Shutdown::Write)
}

/// A client; the server's word for who it is has been read.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) connected: Duration,
    server: SocketAddr,
    seen_as: String,
}

impl Client {
    pub(crate) fn connect(ground: &Ground, place: &str, server: SocketAddr) -> anyhow::Result<Self> {
        let (stream, connected) = connect(ground, place, server)?;
        let stream = stream.with_context(|| format!("from {place} to {server}"))?;
        Self::greeted(stream, connected, server)
    }

    pub(crate) fn greeted(
        stream: TcpStream,
        connected: Duration,
        server: SocketAddr,
    ) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL))?;
        let mut client = Self { stream, connected, server, seen_as: String::new() };
        let mut octet = [0];
        while !client.seen_as.ends_with('\n') {
            client.stream.read_exact(&mut octet).context("the server's greeting")?;
            client.seen_as.extend(octet.map(char::from));
        }
        Ok(client)
    }

    /// Connects, finds that both ends see the truth, exchanges octets, and ends.
    pub(crate) fn whole(ground: &Ground, place: &str, server: SocketAddr) -> anyhow::Result<Duration> {
        let mut client = Self::connect(ground, place, server)?;
        client.sees_the_truth()?;
        client.echoes(&noise(100_000))?;
        let connected = client.connected;
        client.ends()?;
        Ok(connected)
    }

    /// The server and the client see each other and nobody else.
    pub(crate) fn sees_the_truth(&self) -> anyhow::Result<()> {
        let (own, seen) = (self.stream.local_addr()?.to_string(), self.seen_as.trim_end());
        ensure!(seen == own, "the server sees {seen} instead of {own}");
        ensure!(self.stream.peer_addr()? == self.server, "{:?}", self.stream.peer_addr());
        Ok(())
    }

    pub(crate) fn echoes(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        let (mut up, own) = (self.stream.try_clone()?, octets.to_vec());
        let writing = thread::spawn(move || up.write_all(&own));
        let mut back = vec![0; octets.len()];
        self.stream.read_exact(&mut back).context("what was sent does not come back")?;
        ensure!(Sha256::digest(&back) == Sha256::digest(octets), "other octets came back");
        match writing.join() {
            Ok(written) => Ok(written?),
            Err(_) => bail!("the writer panicked"),
        }
    }

    /// Half-close, and the server's own end.
    pub(crate) fn ends(mut self) -> anyhow::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        ensure!(self.stream.read(&mut [0; 16])? == 0, "something after the end");
        Ok(())
    }

    /// How long until the client learns that its connection is dead.
    pub(crate) fn told_dead(&mut self) -> anyhow::Result<Duration> {
        told_dead(&mut self.stream, Instant::now())
    }
}

/// How long after `since` whoever holds this end learns that the connection is dead: it speaks until then. One that only
/// waits learns it when the link has given up.
pub(crate) fn told_dead(stream: &mut TcpStream, since: Instant) -> anyhow::Result<Duration> {
    loop {
        match stream.write_all(b"after").and_then(|()| stream.read(&mut [0; 5])) {
            Err(_) => return Ok(since.elapsed()),
            Ok(0) => bail!("a cut connection looks like one that ended"),
            Ok(_) => ensure!(since.elapsed() < STALL, "a connection lives on without its node"),
        }
    }
}

/// A connect, how it ended, and how long it took.
pub(crate) fn connect(
    ground: &Ground,
    place: &str,
    server: SocketAddr,
) -> anyhow::Result<(std::io::Result<TcpStream>, Duration)> {
    ground.inside(place, move || {
        let start = Instant::now();
        let connected = TcpStream::connect_timeout(&server, STALL);
        (connected, start.elapsed())
    })
}

/// The same port of both families.
pub(crate) fn both(network: u8, host: u8, port: u16) -> [SocketAddr; 2] {
    let (v4, v6) = (lab::ground::v4(network, host), lab::ground::v6(network, host));
    [SocketAddr::new(IpAddr::V4(v4), port), SocketAddr::new(IpAddr::V6(v6), port)]
}

/// Octets that compress to nothing less.
pub(crate) fn noise(octets: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(octets + 8);
    while out.len() < octets {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(octets);
    out
}
