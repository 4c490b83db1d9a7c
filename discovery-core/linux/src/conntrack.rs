//! Asks the kernel's connection tracking what it knows of one connection. The answer comes at once.

use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::time::Duration;

use discovery_core::adopt::{Terms, tracked};
use discovery_core::flow::Flow;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

/// What was settled between the two ends; none when nobody tracks the connection, or whoever does came too late.
///
/// # Errors
/// When the system has no connection tracking, or does not answer.
pub fn ask(flow: Flow, mss: u16) -> io::Result<Option<Terms>> {
    let netlink = Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(netlink, Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
    socket.send(&tracked::request(flow))?;
    let wait = Timespec { tv_sec: 0, tv_nsec: PATIENCE.subsec_nanos().into() };
    if poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&wait))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut room = [0; 8192];
    let length = socket.read(&mut room)?;
    Ok(tracked::answer(room.get(..length).unwrap_or_default(), flow, mss))
}

/// The kernel answers before the request returns.
const PATIENCE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_tracks_what_does_not_exist() {
        let flow = Flow { client: "127.0.0.1:1".parse().unwrap(), server: "127.0.0.1:2".parse().unwrap() };
        // Without rights, or without connection tracking, it is an error.
        assert!(matches!(ask(flow, 1460), Ok(None) | Err(_)));
    }
}
