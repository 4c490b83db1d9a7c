//! What the kernel knows about a TCP connection, for those who pace and schedule what goes through it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::sys;

/// Part of Linux's `struct tcp_info`. A field that this kernel does not report is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// The connection is over: nothing is sent on it any more.
    pub closed: bool,
    /// The smoothed round trip.
    pub rtt: Duration,
    /// How far round trips vary.
    pub rtt_variance: Duration,
    /// The smallest round trip of the last minutes; zero before the first sample.
    pub rtt_min: Option<Duration>,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Segments believed lost.
    pub lost: u32,
    /// Segments sent again, ever.
    pub retransmitted: u32,
    /// Octets a second of the last delivery sample.
    pub delivery_rate: u64,
    /// The sample was short of data to send: the path may carry more.
    pub delivery_limited_by_us: bool,
    /// Octets a second at which the kernel sends.
    pub pacing_rate: u64,
    /// Octets given to the kernel and not yet sent.
    pub unsent_octets: u32,
    /// The largest segment it sends.
    pub send_mss: u32,
}

/// Asks the kernel about a TCP socket.
///
/// # Errors
/// When it is no TCP socket.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut room = [0; 256];
    let octets = sys::tcp_info(socket, &mut room)?;
    Ok(read(octets))
}

/// Bounds the rate at which the kernel sends on a socket, in octets a second; `None` lifts the bound.
///
/// # Errors
/// When it is no socket.
pub fn set_pacing_rate_max(socket: impl AsFd, octets_per_second: Option<u64>) -> io::Result<()> {
    sys::set_max_pacing_rate(socket.as_fd(), octets_per_second.unwrap_or(u64::MAX))
}

/// Offsets are those of `include/uapi/linux/tcp.h`, which only ever grows at its end.
fn read(octets: &[u8]) -> TcpInfo {
    let micros = |offset| Duration::from_micros(u64::from(u32_at(octets, offset)));
    let rtt_min = u32_at(octets, 148);
    TcpInfo {
        closed: octets.first() == Some(&TCP_CLOSE),
        rtt: micros(68),
        rtt_variance: micros(72),
        // The kernel says all ones, or zero, before it has measured.
        rtt_min: (rtt_min != 0 && rtt_min != u32::MAX).then(|| micros(148)),
        unacked: u32_at(octets, 24),
        lost: u32_at(octets, 32),
        retransmitted: u32_at(octets, 100),
        delivery_rate: u64_at(octets, 160),
        delivery_limited_by_us: octets.get(7).is_some_and(|flags| flags & 1 != 0),
        pacing_rate: u64_at(octets, 104),
        unsent_octets: u32_at(octets, 144),
        send_mss: u32_at(octets, 16),
    }
}

/// `TCP_CLOSE` of `include/net/tcp_states.h`.
const TCP_CLOSE: u8 = 7;

fn u32_at(octets: &[u8], offset: usize) -> u32 {
    let field = octets.get(offset..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_ne_bytes(*field))
}

fn u64_at(octets: &[u8], offset: usize) -> u64 {
    let field = octets.get(offset..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_that_moved_data_has_a_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 4000]).unwrap();
        let mut got = [0; 4000];
        server.read_exact(&mut got).unwrap();
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let info = tcp_info(client.as_fd()).unwrap();
        assert!(info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1), "{info:?}");
        assert!(info.rtt_min.is_some_and(|min| min <= info.rtt + info.rtt_variance * 8), "{info:?}");
        assert!(info.send_mss > 500, "{info:?}");
        assert!(info.pacing_rate > 0, "{info:?}");
    }

    #[test]
    fn a_bound_on_pacing_holds() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_pacing_rate_max(&client, Some(125_000)).unwrap();
        let rate = tcp_info(client.as_fd()).unwrap().pacing_rate;
        assert!(rate <= 125_000, "{rate}");
        set_pacing_rate_max(&client, None).unwrap();
    }

    #[test]
    fn an_older_kernels_answer_is_short_and_read_as_zero() {
        assert_eq!(read(&[0; 104]), TcpInfo::default());
        assert_eq!(read(&[]), TcpInfo::default());
    }

    #[test]
    fn a_file_has_no_tcp_info() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(tcp_info(file.as_fd()).is_err());
    }
}
