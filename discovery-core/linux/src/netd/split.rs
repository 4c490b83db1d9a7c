//! What the loop and whoever carries connections say to each other about one that two nodes adopt together.

use std::fmt;
use std::os::fd::OwnedFd;

use discovery_core::adopt::split::{CutWord, Ready, Ye};
use discovery_core::engine::Reason;
use discovery_core::flow::Flow;

/// One attempt to adopt a connection together with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Of which connection.
    pub flow: Flow,
    /// Which of several.
    pub nth: u64,
}

/// What the loop says.
pub enum Step {
    /// Server's node: it is observed. Nobody else hears more of it than its ticket.
    Begun(Ticket),
    /// Server's node: it can cut; tell the peer.
    Ready(Ticket, Ready),
    /// Client's node: what the client says is held; tell the peer.
    Cut(CutWord),
    /// Client's node: the socket to the client. What follows YE is the client's.
    Client(OwnedFd),
    /// Server's node: the socket to the server, and what to tell before anything that it says.
    Server(OwnedFd, Ye, Vec<u8>),
    /// It is given up here.
    Refused(Reason),
}

/// What the loop is told.
#[derive(Clone, PartialEq, Eq)]
pub enum Word {
    /// Client's node: the peer is ready.
    Ready(Ready),
    /// Client's node: the peer has cut.
    Ye(Ye),
    /// Client's node: the octets that follow, or the next of them.
    Filled(Vec<u8>),
    /// Server's node: the peer holds what the client says.
    Cut(CutWord),
    /// The peer, or the link to it, has given up.
    Over(Reason),
}

/// Takes steps of one attempt, in the loop's thread; false when nobody is there any more. It must not wait.
pub type Tell = Box<dyn FnMut(Step) -> bool + Send>;

/// What people say to each other is nobody's business.
impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(ready) => ready.fmt(f),
            Self::Ye(ye) => ye.fmt(f),
            Self::Filled(octets) => f.debug_tuple("Filled").field(&octets.len()).finish(),
            Self::Cut(cut) => cut.fmt(f),
            Self::Over(why) => f.debug_tuple("Over").field(why).finish(),
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun(ticket) => f.debug_tuple("Begun").field(ticket).finish(),
            Self::Ready(ticket, ready) => f.debug_tuple("Ready").field(ticket).field(ready).finish(),
            Self::Cut(word) => f.debug_tuple("Cut").field(word).finish(),
            Self::Client(_) => f.write_str("Client"),
            Self::Server(_, word, octets) => {
                f.debug_tuple("Server").field(word).field(&octets.len()).finish()
            }
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_say_is_not_in_the_log() {
        assert_eq!(format!("{:?}", Word::Filled(b"secret".to_vec())), "Filled(6)");
    }
}
