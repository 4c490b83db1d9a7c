//! TCP as a link wants it.

use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, io,
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::spawn_blocking,
    time::timeout,
};
use wan_core::{Lane, LaneSet, Reason};

/// Makes sockets for connections to peers: whoever runs the links may lack the right to what they need.
pub trait Sockets: fmt::Debug + Send + Sync {
    /// A TCP socket for addresses like this one, neither bound nor connected; does not block. May take a moment.
    ///
    /// # Errors
    /// What the system says.
    fn tcp(&self, to: SocketAddr) -> io::Result<OwnedFd>;
}

/// Connects. `segment_max`: no larger ones are sent, nor asked for.
pub(crate) async fn dial(
    to: SocketAddr,
    sockets: Option<Arc<dyn Sockets>>,
    segment_max: Option<u32>,
) -> Result<TcpStream, Reason> {
    let unreachable = |error: io::Error| {
        tracing::debug!(%to, %error, "no socket for a connection to a peer");
        Reason::PeerUnreachable
    };
    let socket = match sockets {
        Some(sockets) => spawn_blocking(move || sockets.tcp(to))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map(|socket| TcpSocket::from_std_stream(StdStream::from(socket))),
        None if to.is_ipv4() => TcpSocket::new_v4(),
        None => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(unreachable)?;
    if let Some(octets) = segment_max {
        SockRef::from(&socket).set_tcp_mss(octets).map_err(unreachable)?;
    }
    match timeout(CONNECT_MAX, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Reason::PeerRefused),
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(Reason::PeerTimedOut),
        Ok(Err(_)) => Err(Reason::PeerUnreachable),
        Err(_) => Err(Reason::PeerTimedOut),
    }
}

/// Sets what both ends want; the congestion control that is in use then.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<String> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // BBR is worth 5 to 25 times the rate where packets are lost; the machine's default may be another one.
    if socket.set_tcp_congestion(b"bbr").is_err() && !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!("this kernel has no BBR (module tcp_bbr): links are slow where packets are lost");
    }
    // The link asks for itself; this is for what a firewall forgets.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)?;
    let name = socket.tcp_congestion()?;
    let name = name.split(|octet| *octet == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Keeps what waits in the kernel short: it has been ordered already. A person's octets wait behind it where they share
/// the connection; where they do not, more of it costs fewer wake-ups.
pub(crate) fn bound_unsent(stream: &TcpStream, lanes: LaneSet) {
    let octets = if lanes.has(Lane::Interactive) { 32 * 1024 } else { 128 * 1024 };
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(octets) {
        tracing::debug!(%error, "no bound of what waits in the kernel");
    }
}

static WARNED: AtomicBool = AtomicBool::new(false);

/// Two retransmitted SYNs.
const CONNECT_MAX: Duration = Duration::from_millis(3500);
