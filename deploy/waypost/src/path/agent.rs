//! What netd orders, handed on without waiting.

use super::carrier::{Carrier, steps};
use discovery_core::{
    engine::{Peer, Reason},
    flow::Flow,
    pmt::PmtRow,
};
use discovery_linux::netd::{Agent, Ready, Tell, Ticket};
use std::{os::fd::OwnedFd, sync::Arc};
use tokio::runtime::Handle;

pub(super) struct PathAgent {
    carrier: Arc<Carrier>,
    runtime: Handle,
}

impl PathAgent {
    pub(super) fn new(carrier: Arc<Carrier>, runtime: Handle) -> Self {
        Self { carrier, runtime }
    }
}

impl Agent for PathAgent {
    fn open(&mut self, flow: Flow, peer: Peer) {
        let attempt = self.carrier.begin(flow);
        self.runtime.spawn(Arc::clone(&self.carrier).open(attempt, peer));
    }

    fn single(&mut self, flow: Flow) {
        let attempt = self.carrier.begin(flow);
        self.runtime.spawn(Arc::clone(&self.carrier).single(attempt));
    }

    fn abort(&mut self, flow: Flow, why: Reason) {
        tracing::debug!(%flow, why = why.word(), "given up");
        self.carrier.abort(flow);
    }

    fn abandon(&mut self, flow: Flow, why: Reason) {
        tracing::debug!(%flow, why = why.word(), "the server's side is given up");
        self.carrier.abandon(flow);
    }

    fn claim_ready(&mut self, flow: Flow, ready: Ready) {
        self.carrier.claimed(flow, Ok(ready));
    }

    fn claim_failed(&mut self, flow: Flow, why: Reason) {
        self.carrier.claimed(flow, Err(why));
    }

    fn abort_onward(&mut self, flow: Flow, next: Peer, isn: u32) {
        self.carrier.abort_onward(flow, next, isn);
    }

    fn adopted(&mut self, flow: Flow, client: OwnedFd, server: OwnedFd) {
        let carrier = Arc::clone(&self.carrier);
        // Sockets are made known to the runtime inside it.
        self.runtime.spawn(async move { carrier.adopted(flow, client, server) });
    }

    fn adopt(&mut self, ticket: Ticket, peer: Peer) -> Tell {
        let (tell, steps) = steps();
        self.runtime.spawn(Arc::clone(&self.carrier).adopt(ticket, peer, steps));
        tell
    }

    /// netd says whom to meet.
    fn learnt(&mut self, _: PmtRow) {}
}
