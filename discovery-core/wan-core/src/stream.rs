//! One stream, as one side sees it.

use crate::{
    buffer::{Receiving, Sending},
    open::OpenFrame,
    reason::Reason,
};
use bytes::Bytes;

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
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        match self.phase {
            Phase::Offered | Phase::Opening | Phase::Open => true,
            Phase::Closing(_) => false,
        }
    }

    /// Both directions ended, and both sides know it.
    pub(crate) fn is_complete(&self) -> bool {
        let told = self.ended || self.abandoned;
        self.phase == Phase::Open && self.send.fin_acked && self.recv.is_done() && told
    }

    /// Whether its queue has something for it. What was not offered may be sent early, what was not accepted may not.
    pub(crate) fn wants(&self) -> bool {
        match self.phase {
            Phase::Opening | Phase::Open => self.send.wants(),
            Phase::Offered | Phase::Closing(_) => false,
        }
    }
}
