//! Sockets that speak in somebody else's name: the transparent listener, connections with the client's address,
//! packets made by hand.

mod connect;
mod listen;
mod meant;
mod raw;

pub(crate) use connect::unbound;
pub use connect::{ConnectFailure, Connecting, Target, transparent};
pub use listen::{Family, Intercepted, TransparentListener};
pub use meant::{keep_syns, meant_server};
pub use raw::{RawSender, destination};

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

use crate::marks;

/// Marks a socket of this node's own, its link's above all: on a machine whose own connections are taken
/// ([`crate::rules::Mode::Host`]) nothing else keeps it from being intercepted. Before it connects.
///
/// # Errors
/// Without CAP_NET_ADMIN.
pub fn leave_alone(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_mark(marks::ALONE)
}
