//! The broker in the process that has the rights.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use discovery_core::flow::Flow;
use discovery_core::mutants;
use socket2::{Protocol, Socket, Type};

use super::{BrokerError, SocketBroker};
use crate::marks::ALONE;
use crate::socket::{ConnectFailure, Connecting, Family, Target, TransparentListener};

/// Makes sockets itself.
pub struct LocalBroker {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
    may_listen: Box<dyn Fn(SocketAddr) -> bool + Send + Sync>,
}

impl fmt::Debug for LocalBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBroker").field("v4", &self.v4).field("v6", &self.v6).finish_non_exhaustive()
    }
}

impl LocalBroker {
    /// With the listeners that it hands out, and whether the operator has named an address to listen at.
    #[must_use]
    pub fn new(
        v4: Option<TransparentListener>,
        v6: Option<TransparentListener>,
        may_listen: impl Fn(SocketAddr) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { v4: v4.map(OwnedFd::from), v6: v6.map(OwnedFd::from), may_listen: Box::new(may_listen) }
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
        if !(self.may_listen)(at) && !mutants::on("broker-listens-anywhere") {
            return Err(BrokerError::System(libc::EACCES));
        }
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
    fn nobody_listens_where_the_operator_named_nothing() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let broker = LocalBroker::new(None, None, move |asked| asked.ip() == at("127.0.0.1:0").ip());
        assert!(broker.listen(at("127.0.0.1:0")).is_ok());
        assert_eq!(broker.listen(at("127.0.0.2:0")).unwrap_err(), BrokerError::System(libc::EACCES));
    }

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
