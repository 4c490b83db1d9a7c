//! Connections to a server with the client's own address and port. Nothing waits: the descriptor is writable when
//! the outcome is known.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use discovery_core::flow::Flow;
use socket2::{Protocol, Socket, Type};

use super::listen::{Family, set_transparent};
use crate::marks::{OWN_CONNECT, OWN_CONNECT_HERE};

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Beyond this machine.
    Away,
    /// On this machine: the connection goes over the loopback device.
    Here,
}

/// A connection on its way.
#[derive(Debug)]
pub struct Connecting {
    socket: Socket,
}

impl Connecting {
    /// Begins to connect to the flow's server from its client's address and port.
    ///
    /// # Errors
    /// [`ConnectFailure`], when it is known at once.
    pub fn begin(flow: Flow, target: Target) -> Result<Self, ConnectFailure> {
        let mark = match target {
            Target::Away => OWN_CONNECT,
            Target::Here => OWN_CONNECT_HERE,
        };
        let socket = transparent(flow.client).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES) => ConnectFailure::NotPermitted,
            _ => ConnectFailure::of(&error),
        })?;
        let socket = Socket::from(socket);
        let begun = socket.set_mark(mark).and_then(|()| socket.connect(&flow.server.into()));
        match begun {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(ConnectFailure::of(&error)),
            Ok(()) | Err(_) => Ok(Self { socket }),
        }
    }

    /// One that another process began.
    #[must_use]
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self { socket: socket.into() }
    }

    /// The outcome, once the descriptor is writable: the connection, which does not block, or why there is none.
    /// A connection that is still on its way comes back.
    ///
    /// # Errors
    /// [`ConnectFailure`].
    pub fn finish(self) -> Result<Result<OwnedFd, Self>, ConnectFailure> {
        match self.socket.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Err(ConnectFailure::of(&error)),
        }
        match self.socket.peer_addr() {
            Ok(_) => Ok(Ok(self.socket.into())),
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(Err(self)),
            Err(error) => Err(ConnectFailure::of(&error)),
        }
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Connecting> for OwnedFd {
    fn from(connecting: Connecting) -> Self {
        connecting.socket.into()
    }
}

/// A transparent TCP socket bound to any address; does not block. Its mark is 0: who connects it sets one. Closing it resets
/// the connection, until somebody says otherwise.
///
/// # Errors
/// Without CAP_NET_ADMIN; when this machine already has a socket with the address.
pub fn transparent(local: SocketAddr) -> io::Result<OwnedFd> {
    let socket = unbound(local)?;
    socket.bind(&local.into())?;
    Ok(socket.into())
}

/// The same, not bound yet.
pub(crate) fn unbound(local: SocketAddr) -> io::Result<Socket> {
    let family = Family::of(local);
    let socket = Socket::new(family.domain(), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    set_transparent(&socket, family)?;
    // From the beginning: of a process that dies between a connect's outcome and whatever it does then, the kernel would end
    // the connection in order, and for a minute keep for itself what the server says to the client who asks anew.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Why a connection with the client's address was not made. What an ICMP error or a reset said, said again to the
/// client by whoever answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ConnectFailure {
    /// The server's machine sent a reset.
    #[error("refused")]
    Refused,
    /// No way to the network.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// No way to the host, or it does not answer its neighbours.
    #[error("host unreachable")]
    HostUnreachable,
    /// Somebody on the way forbids it.
    #[error("administratively prohibited")]
    Prohibited,
    /// Nobody answered.
    #[error("timed out")]
    TimedOut,
    /// This machine has a connection with these addresses and ports, or had one a moment ago.
    #[error("address in use")]
    AddressInUse,
    /// A right is missing (CAP_NET_ADMIN, or CAP_NET_BIND_SERVICE for a client's reserved port).
    #[error("not permitted")]
    NotPermitted,
    /// Descriptors, memory or ports have run out.
    #[error("out of resources")]
    Exhausted,
    /// Anything else; the errno.
    #[error("error {0}")]
    Other(i32),
}

impl ConnectFailure {
    /// What an error of the system means.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().unwrap_or(0) {
            libc::ECONNREFUSED | libc::ECONNRESET => Self::Refused,
            libc::ENETUNREACH => Self::NetworkUnreachable,
            libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENONET | libc::EPROTO | libc::ENOPROTOOPT => {
                Self::HostUnreachable
            }
            // From the path; our own missing right is told apart where the socket is made.
            libc::EACCES => Self::Prohibited,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::EADDRINUSE | libc::EADDRNOTAVAIL => Self::AddressInUse,
            libc::EPERM => Self::NotPermitted,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => Self::Exhausted,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |code| ConnectFailure::of(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::ECONNREFUSED), ConnectFailure::Refused);
        assert_eq!(of(libc::EHOSTUNREACH), ConnectFailure::HostUnreachable);
        assert_eq!(of(libc::ENETUNREACH), ConnectFailure::NetworkUnreachable);
        assert_eq!(of(libc::EADDRINUSE), ConnectFailure::AddressInUse);
        assert_eq!(of(libc::EMFILE), ConnectFailure::Exhausted);
        assert_eq!(of(libc::EIO), ConnectFailure::Other(libc::EIO));
    }
}
