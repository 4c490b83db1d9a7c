//! Ways to mail servers that outlive their clients. One that stands with a client's own address and port is in the way
//! of that client's next connection from there, and is cut when it comes.

use super::{
    Carrier,
    cut::{Cut, Cuttable, cut},
};
use discovery_core::flow::Flow;
use std::{collections::HashMap, sync::Arc};

/// Those that stand.
#[derive(Default)]
pub(super) struct Leashes {
    of: HashMap<Flow, Leash>,
    made: u64,
}

/// Cuts it, when dropped.
pub(super) struct Leash {
    id: u64,
    _cut: Cut,
}

impl Leashes {
    /// Takes out what is in the way of `flow`.
    pub(super) fn cut(&mut self, flow: Flow) -> Option<Leash> {
        self.of.remove(&flow)
    }
}

/// A way that can be cut.
pub(super) type Leashed<Io> = Cuttable<Io, End>;

/// A way that ends is no longer in the way.
pub(in super::super) struct End {
    carrier: Arc<Carrier>,
    flow: Flow,
    id: u64,
}

/// Puts `io` on a leash; an older one of the same client is cut.
pub(super) fn leashed<Io>(carrier: &Arc<Carrier>, flow: Flow, io: Io) -> Leashed<Io> {
    let (cut, uncut) = cut();
    let mut state = carrier.lock();
    state.leashes.made += 1;
    let id = state.leashes.made;
    let older = state.leashes.of.insert(flow, Leash { id, _cut: cut });
    drop(state);
    drop(older);
    uncut.around(io, End { carrier: Arc::clone(carrier), flow, id })
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.carrier.lock();
        let mine = state.leashes.of.get(&self.flow).is_some_and(|leash| leash.id == self.id);
        let leash = if mine { state.leashes.cut(self.flow) } else { None };
        drop(state);
        drop(leash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn the_next_connection_of_the_same_client_cuts_it() {
        let flow = Flow { client: "10.1.0.2:1000".parse().unwrap(), server: "10.2.0.2:993".parse().unwrap() };
        let carrier = Arc::new(Carrier::default());
        let leashes = || carrier.lock().leashes.of.len();
        let (io, _far) = tokio::io::duplex(64);
        let mut kept = leashed(&carrier, flow, io);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(10), kept.read(&mut [0; 8])).await;
        assert!(waits.is_err(), "cut before its time");
        let _attempt = carrier.begin(flow);
        assert_eq!(kept.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let (io, _far) = tokio::io::duplex(64);
        let next = leashed(&carrier, flow, io);
        drop(kept);
        assert_eq!(leashes(), 1, "an older one's end is not the newer one's");
        drop(next);
        assert_eq!(leashes(), 0);
    }
}
