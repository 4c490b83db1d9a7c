//! Watches over the process that has the rights and the rules that lead traffic to it.
//!
//! A hung reader of a packet queue is not bypassed: a SYN waits for ever in front of it. So a process of its own, that
//! does nothing else, ends a worker whose work loop stays silent (the patent's watchdog of the network card), takes
//! the rules out when nobody is at work, and starts a new worker. [`Watch`] decides, [`supervise`] does.
//!
//! The worker has one end of a socket pair as its standard input: it writes an octet from its work loop
//! ([`Heartbeat::beat`]), and learns there that its supervisor is gone.

mod run;
mod watch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendFlags, send};

pub use run::{Control, Controlled, supervise};
pub use watch::{Order, Watch, WatchSettings};

/// The worker's end.
#[derive(Debug)]
pub struct Heartbeat {
    channel: OwnedFd,
}

/// Whether somebody watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Yes.
    Yes,
    /// The supervisor is gone: the worker takes the rules out and ends.
    Orphan,
}

impl Heartbeat {
    /// The channel that a supervised process was started with.
    ///
    /// # Errors
    /// When its standard input is closed.
    pub fn from_stdin() -> io::Result<Self> {
        Ok(Self { channel: io::stdin().as_fd().try_clone_to_owned()? })
    }

    /// Shows that the work loop turns. Never waits.
    #[must_use]
    pub fn beat(&self) -> Watched {
        match send(&self.channel, b".", SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // Full: it has not read for long, but it is there.
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Watched::Yes,
            Err(_) => Watched::Orphan,
        }
    }
}
