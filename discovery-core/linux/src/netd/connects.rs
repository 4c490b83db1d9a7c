//! Connections to servers on behalf of clients that were told nothing yet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use discovery_core::engine::{ConnectFailure, Event, Unreachable};
use discovery_core::flow::Flow;
use rustix::event::epoll;

use crate::broker::Early;
use crate::socket::{self, Connecting, Target};

/// Those on their way, and those that stand and wait to be claimed.
#[derive(Debug)]
pub(super) struct Connects {
    early: Early,
    numbers: HashMap<Flow, u64>,
    on_their_way: HashMap<u64, (Flow, Connecting)>,
    next: u64,
    here: Vec<IpAddr>,
}

impl Connects {
    pub(super) fn new(early: Early, first: u64, here: Vec<IpAddr>) -> Self {
        Self { early, numbers: HashMap::new(), on_their_way: HashMap::new(), next: first, here }
    }

    /// Begins to connect; an event when the outcome is known at once.
    pub(super) fn begin(&mut self, flow: Flow, poll: BorrowedFd<'_>) -> Option<Event> {
        let target = if self.here.contains(&flow.server.ip()) { Target::Here } else { Target::Away };
        let connecting = match Connecting::begin(flow, target) {
            Ok(connecting) => connecting,
            Err(failure) => return Some(Event::ConnectFailed { flow, why: told(failure) }),
        };
        let number = self.next;
        self.next += 1;
        let data = epoll::EventData::new_u64(number);
        if epoll::add(poll, &connecting, data, epoll::EventFlags::OUT).is_err() {
            return Some(Event::ConnectFailed { flow, why: ConnectFailure::Local });
        }
        self.numbers.insert(flow, number);
        self.on_their_way.insert(number, (flow, connecting));
        None
    }

    /// The outcome of a connect whose socket has one.
    pub(super) fn ready(&mut self, number: u64, poll: BorrowedFd<'_>) -> Option<Event> {
        let (flow, connecting) = self.on_their_way.remove(&number)?;
        match connecting.finish() {
            Ok(Ok(connected)) => {
                self.numbers.remove(&flow);
                // The poll forgets a socket only when its last descriptor is closed, and this one lives on elsewhere: as
                // long as it could be written to it would wake the loop.
                let _not_there = epoll::delete(poll, &connected);
                // One that was there before is reset: nobody claims it any more.
                drop(self.early.keep(flow, connected));
                Some(Event::Connected { flow })
            }
            Ok(Err(connecting)) => {
                self.on_their_way.insert(number, (flow, connecting));
                None
            }
            Err(failure) => {
                self.numbers.remove(&flow);
                Some(Event::ConnectFailed { flow, why: told(failure) })
            }
        }
    }

    /// A connection that stands, for the one who claimed it.
    pub(super) fn take(&mut self, flow: Flow) -> Option<OwnedFd> {
        self.early.take(flow)
    }

    /// Ends a connection, wherever it is; whether there was one.
    pub(super) fn abandon(&mut self, flow: Flow) -> bool {
        let on_its_way = self.numbers.remove(&flow).and_then(|number| self.on_their_way.remove(&number));
        let standing = self.early.take(flow);
        // Closing resets.
        on_its_way.is_some() || standing.is_some()
    }
}

fn told(failure: socket::ConnectFailure) -> ConnectFailure {
    match failure {
        socket::ConnectFailure::Refused => ConnectFailure::Refused,
        socket::ConnectFailure::NetworkUnreachable => ConnectFailure::Unreachable(Unreachable::Network),
        socket::ConnectFailure::HostUnreachable => ConnectFailure::Unreachable(Unreachable::Host),
        socket::ConnectFailure::Prohibited => ConnectFailure::Unreachable(Unreachable::Prohibited),
        socket::ConnectFailure::TimedOut => ConnectFailure::TimedOut,
        socket::ConnectFailure::AddressInUse
        | socket::ConnectFailure::NotPermitted
        | socket::ConnectFailure::Exhausted
        | socket::ConnectFailure::Other(_) => ConnectFailure::Local,
    }
}
