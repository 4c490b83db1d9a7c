//! What systemd is told (sd_notify(3)); without systemd nothing happens.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// The node serves.
pub(crate) fn ready() {
    send("READY=1");
}

/// The node ends.
pub(crate) fn stopping() {
    send("STOPPING=1");
}

fn send(what: &str) {
    let Ok(path) = env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.send_to_addr(what.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd cannot be told about the state of this service");
    }
}
