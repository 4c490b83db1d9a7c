//! What only the kernel knows of a connection.

use std::{io, os::fd::BorrowedFd};
use wan_core::pace::Sample;

/// `getsockopt(TCP_INFO)` and `setsockopt(SO_MAX_PACING_RATE)`, for which no safe call exists in the libraries that are
/// used here: the room that may write unsafe code implements it. Without one the link is not paced, and says so.
pub trait TcpFacts: Send + Sync {
    /// How the connection is doing.
    ///
    /// # Errors
    /// The kernel's.
    fn sample(&self, socket: BorrowedFd<'_>) -> io::Result<Sample>;

    /// Lets the connection send at most so many octets per second.
    ///
    /// # Errors
    /// The kernel's.
    fn set_pace(&self, socket: BorrowedFd<'_>, octets: u64) -> io::Result<()>;
}
