//! The broker in the process that has the rights.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use discovery_core::flow::Flow;
use socket2::{Protocol, Socket, Type};

use super::{BrokerError, SocketBroker};
use crate::marks::ALONE;
use crate::socket::{ConnectFailure, Connecting, Family, Target, TransparentListener};

/// Makes sockets itself.
#[derive(Debug)]
pub struct LocalBroker {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl LocalBroker {
    /// With the listeners that it hands out.
    #[must_use]
    pub fn new(v4: Option<TransparentListener>, v6: Option<TransparentListener>) -> Self {
        Self { v4: v4.map(OwnedFd::from), v6: v6.map(OwnedFd::from) }
    }
}

impl SocketBroker for LocalBroker {
    fn listener(&self, family: Family) -> Result<OwnedFd, BrokerError> {
        let listener = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        listener.as_ref().ok_or(BrokerError::Unknown)?.try_clone().map_err(|error| system(&error))
    }

    fn untouched(&self, family: Family) -> Result<OwnedFd, BrokerError> {
        untouched(family).map_err(|error| system(&error))
    }

    fn listen(&self, at: SocketAddr) -> Result<OwnedFd, BrokerError> {
        listening(at).map_err(|error| system(&error))
    }

    fn connect(&self, flow: Flow, target: Target) -> Result<OwnedFd, BrokerError> {
        Connecting::begin(flow, target)
            .map(OwnedFd::from)
            .map_err(|failure| BrokerError::System(errno(failure)))
    }
}

fn untouched(family: Family) -> io::Result<OwnedFd> {
    let socket = Socket::new(family.domain(), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(ALONE)?;
    // Whoever has no rights cannot load the module. Without it the machine's default must do.
    let _kept = socket.set_tcp_congestion(b"bbr");
    Ok(socket.into())
}

fn listening(at: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Family::of(at).domain(), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        // Else the order of binding 0.0.0.0 and [::] would decide who serves IPv4.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// As listeners without a broker have.
const BACKLOG: i32 = 1024;

fn system(error: &io::Error) -> BrokerError {
    BrokerError::System(error.raw_os_error().unwrap_or(libc::EIO))
}

/// One errno for each failure, so that the other side finds the same failure again.
fn errno(failure: ConnectFailure) -> i32 {
    match failure {
        ConnectFailure::Refused => libc::ECONNREFUSED,
        ConnectFailure::NetworkUnreachable => libc::ENETUNREACH,
        ConnectFailure::HostUnreachable => libc::EHOSTUNREACH,
        ConnectFailure::Prohibited => libc::EACCES,
        ConnectFailure::TimedOut => libc::ETIMEDOUT,
        ConnectFailure::AddressInUse => libc::EADDRINUSE,
        ConnectFailure::NotPermitted => libc::EPERM,
        ConnectFailure::Exhausted => libc::EMFILE,
        ConnectFailure::Other(errno) => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_its_errno() {
        let failures = [
            ConnectFailure::Refused,
            ConnectFailure::NetworkUnreachable,
            ConnectFailure::HostUnreachable,
            ConnectFailure::Prohibited,
            ConnectFailure::TimedOut,
            ConnectFailure::AddressInUse,
            ConnectFailure::NotPermitted,
            ConnectFailure::Exhausted,
            ConnectFailure::Other(libc::EIO),
        ];
        for failure in failures {
            assert_eq!(ConnectFailure::of(&io::Error::from_raw_os_error(errno(failure))), failure);
        }
    }
}
