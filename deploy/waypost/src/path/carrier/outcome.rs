//! What a failure means to the engine.

use discovery_core::engine::{self, ConnectFailure, Refusal};
use discovery_linux::socket;

pub(super) fn failed(failure: socket::ConnectFailure) -> ConnectFailure {
    match failure {
        socket::ConnectFailure::Refused => ConnectFailure::Refused,
        socket::ConnectFailure::TimedOut => ConnectFailure::TimedOut,
        socket::ConnectFailure::NetworkUnreachable => {
            ConnectFailure::Unreachable(engine::Unreachable::Network)
        }
        socket::ConnectFailure::HostUnreachable => ConnectFailure::Unreachable(engine::Unreachable::Host),
        socket::ConnectFailure::Prohibited => ConnectFailure::Unreachable(engine::Unreachable::Prohibited),
        socket::ConnectFailure::NotPermitted
        | socket::ConnectFailure::AddressInUse
        | socket::ConnectFailure::Exhausted
        | socket::ConnectFailure::Other(_) => ConnectFailure::Local,
    }
}

/// The same of a socket that netd did not make.
pub(super) fn no_socket(error: std::io::Error) -> ConnectFailure {
    tracing::debug!(%error, "no socket to a server");
    failed(socket::ConnectFailure::of(&error))
}

pub(super) fn refusal(why: wan_core::Reason) -> Refusal {
    use wan_core::Reason as Why;
    match why {
        Why::ServerRefused => Refusal::ServerRefused,
        Why::ServerUnreachable => Refusal::ServerUnreachable(engine::Unreachable::Host),
        Why::ServerTimedOut => Refusal::ServerSilent,
        Why::UnknownFlow => Refusal::Unseen,
        Why::Busy | Why::OtherWay => Refusal::NotNow,
        Why::NoLink
        | Why::LinkLost
        | Why::PeerRestarted
        | Why::PeerRefused
        | Why::PeerUnreachable
        | Why::PeerTimedOut
        | Why::ShuttingDown
        | Why::Closed
        | Why::Silent
        | Why::Tls
        | Why::Revoked
        | Why::WrongPin
        | Why::WrongNode
        | Why::NoIdentity
        | Why::UnknownPeer
        | Why::OlderVersion
        | Why::NewerVersion
        | Why::Itself => Refusal::NoLink,
        Why::Unknown
        | Why::Cancelled
        | Why::ConnectionReset
        | Why::ServerTls
        | Why::UnknownServer
        | Why::NotGranted
        | Why::Unsupported
        | Why::PeerForgot
        | Why::Violation
        | Why::Duplicate
        | Why::Replaced => Refusal::Peer,
    }
}
