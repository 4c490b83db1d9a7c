//! How other threads talk to the loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use discovery_core::adopt::Passed;
use discovery_core::engine::{Engine, Event};
use discovery_core::flow::Flow;
use discovery_core::now::Now;
use discovery_core::rule::RuleSet;
use rustix::event::{EventfdFlags, eventfd};

use super::split::{Tell, Ticket, Word};
use super::{Claimed, NetdCounters};

type Ask = Box<dyn FnOnce(&mut Engine, Now, NetdCounters) + Send>;

type AskPassed = Box<dyn FnOnce(&mut Passed, Now) + Send>;

pub(super) enum Command {
    Event(Event),
    Claim { flow: Flow, granted: bool, answer: Box<dyn FnOnce(Claimed) + Send> },
    Rules(RuleSet),
    With(Ask),
    Passed(AskPassed),
    AdoptForPeer { flow: Flow, tell: Tell },
    Adoption(Ticket, Word),
    Stop,
}

/// Tells the loop what happened, and asks it. Any thread may; nothing here waits.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Handle {
    /// Something happened.
    pub fn tell(&self, event: Event) {
        self.send(Command::Event(event));
    }

    /// A peer wants to carry a flow; see `Engine::claim`. `answer` is called in the loop's thread. A loop that has
    /// ended drops it uncalled.
    pub fn claim(&self, flow: Flow, granted: bool, answer: impl FnOnce(Claimed) + Send + 'static) {
        self.send(Command::Claim { flow, granted, answer: Box::new(answer) });
    }

    /// From now on these rules hold, for new connections.
    pub fn rules(&self, rules: RuleSet) {
        self.send(Command::Rules(rules));
    }

    /// Runs a closure with the engine in the loop's thread: for `status` and `explain`.
    pub fn with(&self, ask: impl FnOnce(&mut Engine, Now, NetdCounters) + Send + 'static) {
        self.send(Command::With(Box::new(ask)));
    }

    /// Runs a closure with the connections that went past, in the loop's thread: for whoever keeps them over a restart.
    pub fn with_passed(&self, ask: impl FnOnce(&mut Passed, Now) + Send + 'static) {
        self.send(Command::Passed(Box::new(ask)));
    }

    /// A peer wants this node to take the server's end of a connection that stood before. `tell` hears what comes of it; a
    /// loop that has ended drops it uncalled.
    pub fn adopt_for_peer(&self, flow: Flow, tell: Tell) {
        self.send(Command::AdoptForPeer { flow, tell });
    }

    /// What was said about an adoption with a peer.
    pub fn adoption(&self, ticket: Ticket, word: Word) {
        self.send(Command::Adoption(ticket, word));
    }

    /// Ends the loop.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        // To a loop that has ended nothing matters.
        if self.commands.send(command).is_ok() {
            // Full only when it was not emptied, and then it wakes the loop all the same.
            let _ = rustix::io::write(self.wake.as_fd(), &1_u64.to_ne_bytes());
        }
    }
}

/// The loop's end.
pub(super) struct Commands {
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
}

impl Commands {
    /// What has come since the last call.
    pub(super) fn take(&self) -> Vec<Command> {
        let _ = rustix::io::read(self.wake.as_fd(), &mut [0; 8]);
        self.commands.try_iter().collect()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

pub(super) fn pair() -> io::Result<(Handle, Commands)> {
    let (send, receive) = channel();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((Handle { commands: send, wake: Arc::clone(&wake) }, Commands { commands: receive, wake }))
}
