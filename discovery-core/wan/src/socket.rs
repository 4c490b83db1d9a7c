//! TCP as a link wants it.

use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use wan_core::{Lane, LaneSet, Reason};

/// Connects. `segment_max`: no larger ones are sent, nor asked for.
pub(crate) async fn dial(
    to: SocketAddr,
    mark: Option<u32>,
    segment_max: Option<u32>,
) -> Result<TcpStream, Reason> {
    let unreachable = |_: io::Error| Reason::PeerUnreachable;
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(unreachable)?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark).map_err(unreachable)?;
    }
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
