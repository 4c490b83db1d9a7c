//! Sockets that speak in somebody else's name: the transparent listener, connections with the client's address,
//! packets made by hand.

mod connect;
mod listen;
mod meant;
mod raw;

pub(crate) use connect::unbound;
pub use connect::{ConnectFailure, Connecting, Target};
pub use listen::{Family, Intercepted, TransparentListener};
pub use meant::{keep_syns, meant_server};
pub use raw::{RawSender, destination};

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::Socket;

/// Ends a connection with a reset instead of a FIN.
///
/// # Errors
/// When it is no socket. It is closed all the same.
pub fn reset(connection: OwnedFd) -> io::Result<()> {
    Socket::from(connection).set_linger(Some(Duration::ZERO))
}
