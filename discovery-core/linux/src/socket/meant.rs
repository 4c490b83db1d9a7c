//! Which server a client meant whom a deflector sent here: an option of the connection's own SYN says it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use discovery_core::packet::View;
use discovery_core::probe::{Codec, Found};

use crate::sys;

/// From now on the SYNs of connections that this listener accepts are kept.
///
/// # Errors
/// On a kernel before 4.3.
pub fn keep_syns(listener: &impl AsFd) -> io::Result<()> {
    sys::save_syn(listener.as_fd())
}

/// What the SYN of an accepted connection says; none when there was no room in it.
#[must_use]
pub fn meant_server(accepted: &impl AsFd, codec: &Codec) -> Option<SocketAddr> {
    let mut room = [0; 256];
    let syn = sys::saved_syn(accepted.as_fd(), &mut room).ok()?;
    match codec.find(View::parse(syn).ok()?.tcp()?.options()) {
        Found::Destination(server) => Some(server),
        Found::Probe(_) | Found::Nothing | Found::Unknown(_) | Found::Malformed => None,
    }
}
