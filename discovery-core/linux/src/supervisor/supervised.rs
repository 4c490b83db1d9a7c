//! The worker's end of the channel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::words::{MESSAGE_OCTETS_MAX, Said, Wish};
use crate::rules::Listen;

/// A worker's view of its supervisor. Clones are the same.
#[derive(Clone, Debug)]
pub struct Supervised {
    channel: Arc<OwnedFd>,
}

/// Whether somebody watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Yes.
    Yes,
    /// The supervisor is gone: the worker takes the rules out and ends.
    Orphan,
}

impl Supervised {
    /// The channel that a supervised process was started with.
    ///
    /// # Errors
    /// When its standard input is closed, or no such channel.
    pub fn from_stdin() -> io::Result<Self> {
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::net::getpeername(&channel)?;
        Ok(Self { channel: Arc::new(channel) })
    }

    /// It can carry what is taken: from now on it beats, and the rules lead to `listen`.
    #[must_use]
    pub fn ready(&self, listen: Listen) -> Watched {
        self.say(Said::Ready(listen))
    }

    /// Shows that the work loop turns. Never waits.
    #[must_use]
    pub fn beat(&self) -> Watched {
        self.say(Said::Beat)
    }

    /// What it was told is done, where the supervisor waits for that ([`Wish::Bypass`]).
    #[must_use]
    pub fn heard(&self) -> Watched {
        self.say(Said::Heard)
    }

    /// What only one can have is free for a successor ([`Wish::HandOver`]).
    #[must_use]
    pub fn released(&self) -> Watched {
        self.say(Said::Released)
    }

    fn say(&self, said: Said) -> Watched {
        match send(&self.channel, &said.write(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // Full: it has not read for long, but it is there.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Watched::Yes,
            Err(_) => Watched::Orphan,
        }
    }

    /// Waits for the next wish; `None` when the supervisor is gone.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        let mut message = [0; MESSAGE_OCTETS_MAX];
        loop {
            match recv(&self.channel, &mut message, RecvFlags::empty()) {
                Ok((0, _)) => return None,
                Ok((read, _)) => {
                    if let Some(wish) = message.get(..read).and_then(Wish::read) {
                        return Some(wish);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}
