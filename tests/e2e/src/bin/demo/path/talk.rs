//! A server that gives and takes as many octets as it is asked, and its client.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Lab, Place};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Which way the octets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Server to client.
    Down,
    /// Client to server, which says when it has them all.
    Up,
}

/// The server, on a thread of its own. It ends with this value.
pub(super) struct Server {
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(super) fn start(lab: &Lab) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let handle = runtime.handle().clone();
        let listener = lab.inside(Place::Server, move || {
            let _entered = handle.enter();
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([0, 0, 0, 0], PORT)))?;
            // Thousands may come at once.
            socket.listen(16_384)
        })??;
        runtime.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        Ok(Self { _runtime: runtime })
    }
}

/// One request after the other: which way, and how many. Who breaks off is gone.
async fn serve(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let way = stream.read_u8().await?;
        let mut left = stream.read_u64().await?;
        buffer.resize(CHUNK, 0x5a);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let chunk = buffer.get_mut(..most).unwrap_or_default();
            let n = if way == b'd' { stream.write(chunk).await? } else { stream.read(chunk).await? };
            if n == 0 {
                return Ok(());
            }
            left -= u64::try_from(n).unwrap_or(left);
        }
        if way == b'u' {
            stream.write_u8(b'k').await?;
        }
        // At rest a connection holds nothing.
        buffer = Vec::new();
    }
}

/// Connects, moves the octets, and says how long it took from the beginning of the connection to the last octet, or to
/// the server's word that it has them.
pub(super) fn exchange(lab: &Lab, from: Place, way: Way, octets: u64) -> anyhow::Result<Duration> {
    exchange_at(lab, from, SocketAddr::new(Place::Server.v4(), PORT), way, octets)
}

/// The same with another address.
pub(super) fn exchange_at(
    lab: &Lab,
    from: Place,
    to: SocketAddr,
    way: Way,
    octets: u64,
) -> anyhow::Result<Duration> {
    let took = lab.inside(from, move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&to, STALL)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
        let mut buffer = vec![0x5a; CHUNK];
        let mut request = vec![if way == Way::Down { b'd' } else { b'u' }];
        request.extend(octets.to_be_bytes());
        stream.write_all(&request)?;
        let mut left = octets;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let chunk = buffer.get_mut(..most).unwrap_or_default();
            let n = if way == Way::Down { stream.read(chunk)? } else { stream.write(chunk)? };
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            left -= u64::try_from(n).unwrap_or(left);
        }
        if way == Way::Up {
            stream.read_exact(&mut [0])?;
        }
        Ok::<_, std::io::Error>(start.elapsed())
    })?;
    let took = took.with_context(|| format!("{octets} octets from {}", from.name()))?;
    ensure!(!took.is_zero(), "no time went by");
    Ok(took)
}

/// Where the server is.
pub(super) const PORT: u16 = 8_000;
/// As a rule has it.
pub(super) const PORTS: &str = "8000";
const CHUNK: usize = 256 << 10;
/// A silence of this length is a failure. At 1 % loss nothing comes for seconds.
const STALL: Duration = Duration::from_secs(60);
