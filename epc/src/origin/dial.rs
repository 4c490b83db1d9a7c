//! Connecting to the first of several addresses that answers (RFC 8305, 'Happy Eyeballs': IPv6 first, the families
//! take turns, the next attempt starts when the last one failed or after a short head start).

use seams::origin::OpenError;
use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Head start of an address over the next one (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// A name with more addresses is not tried to its end: each one costs the server a connection.
const ADDRESSES_MAX: usize = 8;
/// How long a silent connection stays unprobed. Below the usual 5 minutes after which middleboxes forget a flow.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long the server may leave octets of ours unacknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// The first connection that stands; the others are given up.
pub(super) async fn dial(addresses: Vec<SocketAddr>, each: Duration) -> Result<TcpStream, OpenError> {
    let mut waiting = order(addresses).into_iter();
    let mut attempts = JoinSet::new();
    let mut last = OpenError::Network("no address to connect to".into());
    loop {
        match waiting.next() {
            Some(address) => {
                attempts.spawn(connect(address, each));
            }
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            done = attempts.join_next() => match done {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                Some(Err(error)) => last = OpenError::Network(error.to_string()),
                None => {}
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

async fn connect(address: SocketAddr, each: Duration) -> Result<TcpStream, OpenError> {
    let stream = match timeout(each, TcpStream::connect(address)).await {
        Err(_) => return Err(OpenError::TimedOut),
        Ok(Err(e)) => return Err(network(&e)),
        Ok(Ok(stream)) => stream,
    };
    tune(&stream).and_then(|()| give_up_on_silence(&stream)).map_err(|e| network(&e))?;
    Ok(stream)
}

/// What every TCP connection of a mail session wants: no waiting for a full segment, and news of a dead peer.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Linux gives a connection twice the `SO_RCVBUF` that it is asked, and lets it grow no more (tcp(7)). Of that, half is
/// window; newer kernels (6.6 and later) learn how much of the memory is payload, and 0.7 to 0.8 of it as
/// measured on 6.18. So seven eighths are asked, and the window is between 0.87 and 1.4 of `octets`. What is under way still comes.
pub(super) fn set_receive_window(stream: &TcpStream, octets: u32) -> io::Result<()> {
    let asked = u64::from(octets) * 7 / 8;
    SockRef::from(stream).set_recv_buffer_size(usize::try_from(asked).unwrap_or(usize::MAX))
}

/// A client whose command the server does not even acknowledge must hear so, before its reader gives up by itself (one to
/// two minutes).
fn give_up_on_silence(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

fn network(error: &io::Error) -> OpenError {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        OpenError::Refused
    } else if error.kind() == io::ErrorKind::TimedOut {
        OpenError::TimedOut
    } else {
        OpenError::Network(error.to_string())
    }
}

/// IPv6 first, then in turns, each family in the order given.
fn order(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut out = Vec::new();
    loop {
        let (six, four) = (v6.next(), v4.next());
        if six.is_none() && four.is_none() {
            out.truncate(ADDRESSES_MAX);
            return out;
        }
        out.extend(six);
        out.extend(four);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn families_take_turns_and_ipv6_comes_first() {
        let given = ["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1", "192.0.2.3:1"].map(address).to_vec();
        let wanted = ["[2001:db8::1]:1", "192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(address).to_vec();
        assert_eq!(order(given), wanted);
        let many = (1..=20).map(|n| SocketAddr::from(([192, 0, 2, n], 1))).collect();
        assert_eq!(order(many).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn a_refusing_address_does_not_hide_a_good_one() {
        let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let (good_at, gone_at) = (good.local_addr().expect("bound"), gone.local_addr().expect("bound"));
        drop(gone);
        let stream = dial(vec![gone_at, good_at], Duration::from_secs(5)).await.expect("the second answers");
        assert_eq!(stream.peer_addr().expect("connected"), good_at);
        assert_eq!(dial(vec![gone_at], Duration::from_secs(5)).await.err(), Some(OpenError::Refused));
        assert!(matches!(dial(vec![], Duration::from_secs(5)).await, Err(OpenError::Network(_))));
    }
}
