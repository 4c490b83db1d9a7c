//! Sockets for a process without rights: the one that has them makes the socket and hands it over.
//!
//! Behind [`SocketBroker`] the caller does not see whether that is this process ([`LocalBroker`]) or another
//! ([`RemoteBroker`], answered there by [`serve`]). Marks are set by the one with the rights, never asked for.

pub(crate) mod address;
mod local;
mod remote;
mod wire;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use discovery_core::flow::Flow;

pub use local::LocalBroker;
pub use remote::{RemoteBroker, Served, pair, serve};

use crate::socket::{Family, Target};

/// Hands out sockets that need CAP_NET_ADMIN to make.
pub trait SocketBroker {
    /// The transparent listener of a family. Each call gives the same listener once more.
    ///
    /// # Errors
    /// [`BrokerError`].
    fn listener(&self, family: Family) -> Result<OwnedFd, BrokerError>;

    /// A TCP socket of a family that no rule touches, neither bound nor connected: for connections to peers.
    ///
    /// # Errors
    /// [`BrokerError`].
    fn untouched(&self, family: Family) -> Result<OwnedFd, BrokerError>;

    /// A TCP socket that listens there: for ports that are reserved. IPv6 alone, where the address is one.
    ///
    /// # Errors
    /// [`BrokerError`].
    fn listen(&self, at: SocketAddr) -> Result<OwnedFd, BrokerError>;

    /// A connection with the client's address, begun: writable when its outcome is known.
    ///
    /// # Errors
    /// [`BrokerError`].
    fn connect(&self, flow: Flow, target: Target) -> Result<OwnedFd, BrokerError>;
}

/// Why there is no socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The system refused; the errno.
    #[error("refused by the system: error {0}")]
    System(i32),
    /// No such listener.
    #[error("nothing is kept under this name")]
    Unknown,
    /// The other process is gone, does not answer, or talks differently.
    #[error("the process that makes sockets does not answer")]
    Closed,
}

impl From<BrokerError> for std::io::Error {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::System(errno) => Self::from_raw_os_error(errno),
            BrokerError::Unknown => Self::new(std::io::ErrorKind::NotFound, error),
            BrokerError::Closed => Self::new(std::io::ErrorKind::BrokenPipe, error),
        }
    }
}
