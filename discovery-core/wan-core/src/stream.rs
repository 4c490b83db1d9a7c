//! One stream, as one side sees it.

use crate::{
    buffer::{Receiving, Sending},
    open::OpenFrame,
    reason::Reason,
};
use bytes::Bytes;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The peer opened it, and we have not answered.
    Offered,
    /// We opened it, and the peer has not answered.
    Opening,
    /// Both know that it stands.
    Open,
    /// We ended it, and the peer has not said that it knows.
    Closing(Reason),
}

/// Reset here, and what was written before has the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: Reason,
    /// RST has been sent, on this connection.
    pub(crate) said: bool,
    /// The peer takes something until then, or the rest is dropped.
    pub(crate) until: Instant,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) phase: Phase,
    /// What we asked for, until it is answered: the question may have to be repeated.
    pub(crate) open: Option<Box<OpenFrame>>,
    /// What we answered, as long as the peer may not have heard it.
    pub(crate) info: Bytes,
    pub(crate) send: Sending,
    pub(crate) recv: Receiving,
    /// Stands in its lane's queue.
    pub(crate) ready: bool,
    /// Stands in its lane's list of acknowledgements.
    pub(crate) acking: bool,
    /// Its writer waits for room.
    pub(crate) thirsty: bool,
    /// Its user went away after the last octet was written.
    pub(crate) abandoned: bool,
    /// Its reader has been told of the end.
    pub(crate) ended: bool,
    pub(crate) ending: Option<Ending>,
}

impl Stream {
    pub(crate) fn new(phase: Phase, send: Sending, recv: Receiving) -> Self {
        Self {
            phase,
            open: None,
            info: Bytes::new(),
            send,
            recv,
            ready: false,
            acking: false,
            thirsty: false,
            abandoned: false,
            ended: false,
            ending: None,
        }
    }

    /// It has a user here.
    pub(crate) fn is_live(&self) -> bool {
        self.ending.is_none() && self.has_octets()
    }

    /// What was written still matters.
    pub(crate) fn has_octets(&self) -> bool {
        match self.phase {
            Phase::Offered | Phase::Opening | Phase::Open => true,
            Phase::Closing(_) => false,
        }
    }

    /// RST, if that is what comes next.
    pub(crate) fn reset_due(&self) -> Option<Reason> {
        let ending = self.ending.filter(|ending| !ending.said)?;
        (self.send.unsent() == 0 && !self.send.fin_due()).then_some(ending.reason)
    }

    /// A new connection: everything that was not acknowledged goes again, and so does the reset behind it. Returns how
    /// many octets that is.
    pub(crate) fn rewind(&mut self) -> u64 {
        if let Some(ending) = &mut self.ending {
            ending.said = false;
        }
        self.send.rewind()
    }

    /// Both directions ended, and both sides know it.
    pub(crate) fn is_complete(&self) -> bool {
        let told = self.ended || self.abandoned;
        self.phase == Phase::Open && self.send.fin_acked && self.recv.is_done() && told
    }

    /// Whether its queue has something for it. What was not offered may be sent early, what was not accepted may not.
    pub(crate) fn wants(&self) -> bool {
        match self.phase {
            Phase::Opening | Phase::Open => self.send.wants() || self.reset_due().is_some(),
            Phase::Offered | Phase::Closing(_) => false,
        }
    }
}
