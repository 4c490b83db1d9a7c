//! The system calls that neither std, socket2 nor rustix offers. The only unsafe code of this package; every
//! function here is safe to call with any argument.
#![allow(unsafe_code, reason = "recvmmsg and some socket options have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn set(fd: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads `length` octets from `value`, which lives for the call; `fd` is open.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A full netlink buffer loses messages silently instead of failing the next read with ENOBUFS.
pub(crate) fn set_no_enobufs(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, &1_i32.to_ne_bytes())
}

/// A receive buffer beyond the system's limit. Needs CAP_NET_ADMIN.
pub(crate) fn force_receive_buffer(fd: BorrowedFd<'_>, octets: u32) -> io::Result<()> {
    let octets = i32::try_from(octets).unwrap_or(i32::MAX);
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &octets.to_ne_bytes())
}

/// A send buffer beyond the system's limit. Needs CAP_NET_ADMIN.
pub(crate) fn force_send_buffer(fd: BorrowedFd<'_>, octets: u32) -> io::Result<()> {
    let octets = i32::try_from(octets).unwrap_or(i32::MAX);
    set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &octets.to_ne_bytes())
}

/// An option of a TCP socket: those of TCP_REPAIR have no wrapper.
pub(crate) fn set_tcp(fd: BorrowedFd<'_>, option: i32, value: &[u8]) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, option, value)
}

/// The most octets a second that the socket may send; `u64::MAX` lifts the bound.
pub(crate) fn set_max_pacing_rate(fd: BorrowedFd<'_>, octets_per_second: u64) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &octets_per_second.to_ne_bytes())
}

/// `struct tcp_info` as far as this kernel fills it: returns the part of `room` that it wrote.
pub(crate) fn tcp_info<'a>(fd: BorrowedFd<'_>, room: &'a mut [u8; 256]) -> io::Result<&'a [u8]> {
    let mut length: libc::socklen_t = 256;
    // SAFETY: the kernel writes at most `length` octets to `room`, which has 256, and then sets `length`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            room.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(length).unwrap_or(0);
    Ok(room.get(..length).unwrap_or_default())
}

/// From now on the SYNs of connections that this listener accepts are kept with them.
pub(crate) fn save_syn(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, TCP_SAVE_SYN, &1_i32.to_ne_bytes())
}

/// The headers of an accepted connection's SYN, from the IP header on: returns the part of `room` that was written. The
/// kernel gives them once.
pub(crate) fn saved_syn<'a>(fd: BorrowedFd<'_>, room: &'a mut [u8; 256]) -> io::Result<&'a [u8]> {
    let mut length: libc::socklen_t = 256;
    // SAFETY: the kernel writes at most `length` octets to `room`, which has 256, and then sets `length`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            room.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(length).unwrap_or(0);
    Ok(room.get(..length).unwrap_or_default())
}

const TCP_SAVE_SYN: i32 = 27;
const TCP_SAVED_SYN: i32 = 28;

/// Takes up to `lengths.len()` waiting datagrams without blocking, each into its own `slot_octets` of `slots`, and
/// puts their true lengths into `lengths`: one that is longer than a slot was cut. Returns how many came.
pub(crate) fn receive_many(
    fd: BorrowedFd<'_>,
    slots: &mut [u8],
    slot_octets: usize,
    lengths: &mut [usize],
) -> io::Result<usize> {
    let mut vectors: Vec<libc::iovec> = slots
        .chunks_exact_mut(slot_octets.max(1))
        .take(lengths.len())
        .map(|slot| libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: mmsghdr is plain data for which all zeroes is a value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = u32::try_from(messages.len()).unwrap_or(0);
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: `messages` has `count` entries; each points at one vector of `vectors`, which points at a chunk of
    // `slots` of its own; all of them outlive the call, and nothing else refers to them meanwhile.
    let got =
        unsafe { libc::recvmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, flags, std::ptr::null_mut()) };
    let Ok(got) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
    for (length, message) in lengths.iter_mut().zip(&messages).take(got) {
        *length = usize::try_from(message.msg_len).unwrap_or(0);
    }
    Ok(got)
}
