//! The broker in the process that has the rights.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use discovery_core::flow::Flow;

use super::{BrokerError, SocketBroker};
use crate::socket::{ConnectFailure, Connecting, Family, Target, TransparentListener, transparent};

/// Connections to servers that were opened before anybody asked for them. Shared by the engine's loop, which puts
/// them in and takes back those that nobody claims, and the broker.
#[derive(Clone, Debug, Default)]
pub struct Early {
    kept: Arc<Mutex<HashMap<Flow, OwnedFd>>>,
}

impl Early {
    /// Keeps a connection until it is claimed or taken back. One that was kept under the same flow comes out.
    pub fn keep(&self, flow: Flow, connection: OwnedFd) -> Option<OwnedFd> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(flow, connection)
    }

    /// Takes a connection, to claim it or to end it.
    #[must_use]
    pub fn take(&self, flow: Flow) -> Option<OwnedFd> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&flow)
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Makes sockets itself.
#[derive(Debug)]
pub struct LocalBroker {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
    early: Early,
}

impl LocalBroker {
    /// With the listeners that it hands out and the connections that can be claimed.
    #[must_use]
    pub fn new(v4: Option<TransparentListener>, v6: Option<TransparentListener>, early: Early) -> Self {
        Self { v4: v4.map(OwnedFd::from), v6: v6.map(OwnedFd::from), early }
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

    fn transparent(&self, local: SocketAddr) -> Result<OwnedFd, BrokerError> {
        transparent(local).map_err(|error| system(&error))
    }

    fn connect(&self, flow: Flow, target: Target) -> Result<OwnedFd, BrokerError> {
        Connecting::begin(flow, target)
            .map(OwnedFd::from)
            .map_err(|failure| BrokerError::System(errno(failure)))
    }

    fn claim(&self, flow: Flow) -> Result<OwnedFd, BrokerError> {
        self.early.take(flow).ok_or(BrokerError::Unknown)
    }
}

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
