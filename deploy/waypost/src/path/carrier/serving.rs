//! What this node has promised a peer: a flow of which the engine must hear when it ends, whatever ends it.

use super::{
    Carrier,
    cut::{Cut, Cuttable, Uncut, cut},
};
use discovery_core::{
    engine::{Event, Reason},
    flow::Flow,
};
use discovery_linux::netd::Ready;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A claim that succeeded, or waits for its server. Tells the engine, once, when it is dropped; unless the engine gave
/// the flow up first.
pub(in super::super) struct Serving {
    kept: Uncut,
    promise: Promise,
}

pub(in super::super) struct Promise {
    carrier: Arc<Carrier>,
    flow: Flow,
    id: u64,
}

/// The carrier's side of a [`Serving`], which is given up when this is dropped.
pub(super) struct Served {
    id: u64,
    _cut: Cut,
    /// Who waits for the connection.
    pub(super) waits: Option<oneshot::Sender<Result<Ready, Reason>>>,
}

impl Serving {
    pub(in super::super) fn begin(
        carrier: &Arc<Carrier>,
        flow: Flow,
        waits: Option<oneshot::Sender<Result<Ready, Reason>>>,
    ) -> Self {
        let (cut, kept) = cut();
        let mut state = carrier.lock();
        state.claims += 1;
        let id = state.claims;
        state.served.insert(flow, Served { id, _cut: cut, waits });
        drop(state);
        Self { kept, promise: Promise { carrier: Arc::clone(carrier), flow, id } }
    }

    /// The far side of the flow, which is done when this is dropped.
    pub(in super::super) fn around<Io>(self, io: Io) -> Cuttable<Io, Promise> {
        self.kept.around(io, self.promise)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut state = self.carrier.lock();
        if state.served.get(&self.flow).is_some_and(|served| served.id == self.id) {
            state.served.remove(&self.flow);
            drop(state);
            self.carrier.tell(Event::Closed { flow: self.flow });
        }
    }
}
