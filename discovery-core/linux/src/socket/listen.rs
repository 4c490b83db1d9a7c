//! The listener to which the rules hand original SYNs. What it accepts has the server's address as its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use discovery_core::flow::Flow;
use socket2::{Domain, Protocol, Socket, Type};

/// IPv4 or IPv6; a transparent listener takes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// A connection that was taken over from its client.
#[derive(Debug)]
pub struct Intercepted {
    /// The connection; does not block.
    pub socket: OwnedFd,
    /// Who it is from, and where to. The server's address is the socket's own.
    pub flow: Flow,
}

/// A listener on the loopback address of its family. Its descriptor is readable when a connection waits.
#[derive(Debug)]
pub struct TransparentListener {
    socket: Socket,
}

impl TransparentListener {
    /// Listens on `port`; 0 lets the kernel choose, see [`TransparentListener::port`].
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN; when the port is taken.
    pub fn bind(family: Family, port: u16) -> io::Result<Self> {
        let socket = Socket::new(family.domain(), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        set_transparent(&socket, family)?;
        // Loopback, not the unspecified address, under which the listener would match as anybody's socket.
        let address: SocketAddr = match family {
            Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
        };
        // What it accepts inherits this: nobody's death looks like an orderly end.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// One that another process made, and handed over.
    #[must_use]
    pub fn from_fd(listener: OwnedFd) -> Self {
        Self { socket: listener.into() }
    }

    /// The port it listens on.
    ///
    /// # Errors
    /// When it is no socket.
    pub fn port(&self) -> io::Result<u16> {
        local(&self.socket).map(|address| address.port())
    }

    /// A connection that waits, or `None`.
    ///
    /// # Errors
    /// When descriptors or memory run out: the connection keeps waiting, and the caller should wait too.
    pub fn accept(&self) -> io::Result<Option<Intercepted>> {
        loop {
            let (socket, client) = match self.socket.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // Gone before it was accepted: the next one.
                    Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => continue,
                    _ => return Err(error),
                },
            };
            socket.set_nonblocking(true)?;
            let server = local(&socket)?;
            let Some(client) = client.as_socket() else { continue };
            return Ok(Some(Intercepted { socket: socket.into(), flow: Flow { client, server } }));
        }
    }
}

impl AsFd for TransparentListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<TransparentListener> for OwnedFd {
    fn from(listener: TransparentListener) -> Self {
        listener.socket.into()
    }
}

/// SYNs come only after the server has accepted, so that many at once are real clients, not a flood.
const BACKLOG: i32 = 4096;

pub(super) fn set_transparent(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true),
        Family::V6 => {
            socket.set_only_v6(true)?;
            socket.set_ip_transparent_v6(true)
        }
    }
}

fn local(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?.as_socket();
    address.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the socket has no internet address"))
}
