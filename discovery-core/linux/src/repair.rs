//! Sockets that go on in the middle of a connection (TCP_REPAIR, Linux 3.5; needs CAP_NET_ADMIN).
//!
//! The order is the kernel's: sequence numbers while the socket is closed, then connect (which sends nothing), then what
//! the SYNs had settled, the windows, and what is to be sent again if it is not acknowledged.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use discovery_core::adopt::{Cut, Half};
use socket2::Socket;

use crate::marks::OWN_CONNECT;
use crate::{socket, sys};

/// Both sockets of a cut: the one to the client, the one to the server. Until both stand nothing is sent, and one that
/// is closed before leaves no trace. They do not block.
///
/// # Errors
/// What the system says; then the connection is as it was.
pub fn adopt(cut: &Cut) -> io::Result<(OwnedFd, OwnedFd)> {
    let (client, server) = (make(&cut.to_client, TO_CLIENT)?, make(&cut.to_server, TO_SERVER)?);
    for socket in [&client, &server] {
        begin(socket)?;
    }
    Ok((client.into(), server.into()))
}

/// One socket, where the other is another node's. `mark`: [`TO_CLIENT`] or [`TO_SERVER`].
///
/// # Errors
/// What the system says; then the connection is as it was.
pub fn adopt_half(half: &Half, mark: u32) -> io::Result<OwnedFd> {
    let socket = make(half, mark)?;
    begin(&socket)?;
    Ok(socket.into())
}

/// Leaves the mode, and not with the window probe that 0 would mean: the ends speak by themselves.
fn begin(socket: &Socket) -> io::Result<()> {
    sys::set_tcp(socket.as_fd(), libc::TCP_REPAIR, &REPAIR_OFF_QUIETLY.to_ne_bytes())?;
    // Leaving the mode has taken it back.
    socket.set_reuse_address(true)
}

/// The mark of a socket that speaks to a client.
pub const TO_CLIENT: u32 = 0;
/// Of one that speaks to a server.
pub const TO_SERVER: u32 = OWN_CONNECT;

fn make(half: &Half, mark: u32) -> io::Result<Socket> {
    let made = socket::unbound(half.local)?;
    made.set_mark(mark)?;
    let set = |option, value: &[u8]| sys::set_tcp(made.as_fd(), option, value);
    set(libc::TCP_REPAIR, &1_i32.to_ne_bytes())?;
    // Only now: others may have the server's address already, and in repair mode that is no obstacle.
    made.bind(&half.local.into())?;
    for (queue, number) in [(SEND_QUEUE, half.first), (RECEIVE_QUEUE, half.expects)] {
        set(libc::TCP_REPAIR_QUEUE, &queue.to_ne_bytes())?;
        set(libc::TCP_QUEUE_SEQ, &number.to_ne_bytes())?;
    }
    // Before it connects: else its segments stay as small as RFC 879's.
    set(libc::TCP_MAXSEG, &i32::from(half.mss).to_ne_bytes())?;
    made.connect(&half.remote.into())?;
    set(libc::TCP_REPAIR_OPTIONS, &options(half))?;
    if let Some(clock) = half.clock {
        // The lowest bit would mean microseconds.
        set(libc::TCP_TIMESTAMP, &(clock & !1).to_ne_bytes())?;
    }
    let window = [half.expects, half.their_window, half.their_window.max(1), half.our_window, half.expects];
    let window: Vec<u8> = window.into_iter().flat_map(u32::to_ne_bytes).collect();
    set(libc::TCP_REPAIR_WINDOW, &window)?;
    put(&made, &half.unacknowledged)?;
    Ok(made)
}

/// `struct tcp_repair_opt`: an option's kind and its value.
fn options(half: &Half) -> Vec<u8> {
    let mut options = vec![(MSS, u32::from(half.mss))];
    if let Some((theirs, ours)) = half.scale {
        options.push((WINDOW_SCALE, u32::from(theirs) | u32::from(ours) << 16));
    }
    if half.sack {
        options.push((SACK_PERMITTED, 0));
    }
    if half.clock.is_some() {
        options.push((TIMESTAMPS, 0));
    }
    options.into_iter().flat_map(|(kind, value)| [kind, value]).flat_map(u32::to_ne_bytes).collect()
}

/// Into the queue of what was sent.
fn put(made: &Socket, octets: &[u8]) -> io::Result<()> {
    if octets.is_empty() {
        return Ok(());
    }
    // The system counts what surrounds the octets, too.
    let room = u32::try_from(octets.len()).unwrap_or(u32::MAX / 4).saturating_mul(2).saturating_add(1 << 20);
    sys::force_send_buffer(made.as_fd(), room)?;
    sys::set_tcp(made.as_fd(), libc::TCP_REPAIR_QUEUE, &SEND_QUEUE.to_ne_bytes())?;
    let mut rest = octets;
    while !rest.is_empty() {
        let put = made.send(rest)?;
        rest = rest.get(put..).unwrap_or_default();
        if put == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

const REPAIR_OFF_QUIETLY: i32 = -1;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
const MSS: u32 = 2;
const WINDOW_SCALE: u32 = 3;
const SACK_PERMITTED: u32 = 4;
const TIMESTAMPS: u32 = 8;
