//! What this node has promised a peer: a flow of which the engine must hear when it ends, whatever ends it.

use super::Carrier;
use discovery_core::{
    engine::{Event, Reason},
    flow::Flow,
};
use discovery_linux::netd::Ready;
use seams::AsyncIo;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::oneshot,
};

/// A claim that succeeded, or waits for its server. Tells the engine, once, when it is dropped; unless the engine gave
/// the flow up first.
pub(in super::super) struct Serving {
    carrier: Arc<Carrier>,
    flow: Flow,
    id: u64,
    /// None when it has been given up.
    given_up: Option<oneshot::Receiver<()>>,
}

/// The carrier's side of a [`Serving`], which is given up when this is dropped.
pub(super) struct Served {
    id: u64,
    _given_up: oneshot::Sender<()>,
    /// Who waits for the connection.
    pub(super) waits: Option<oneshot::Sender<Result<Ready, Reason>>>,
}

impl Serving {
    pub(super) fn begin(
        carrier: &Arc<Carrier>,
        flow: Flow,
        waits: Option<oneshot::Sender<Result<Ready, Reason>>>,
    ) -> Self {
        let (sender, given_up) = oneshot::channel();
        let mut state = carrier.lock();
        state.claims += 1;
        let id = state.claims;
        state.served.insert(flow, Served { id, _given_up: sender, waits });
        drop(state);
        Self { carrier: Arc::clone(carrier), flow, id, given_up: Some(given_up) }
    }

    /// The far side of the flow, which is done when this is dropped.
    pub(in super::super) fn around<Io>(self, io: Io) -> ServedIo<Io> {
        ServedIo { io, serving: self }
    }

    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        if self.given_up.as_mut().is_some_and(|given_up| Pin::new(given_up).poll(cx).is_ready()) {
            self.given_up = None;
        }
        self.given_up.is_none()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = self.carrier.lock();
        if state.served.get(&self.flow).is_some_and(|served| served.id == self.id) {
            state.served.remove(&self.flow);
            drop(state);
            self.carrier.tell(Event::Closed { flow: self.flow });
        }
    }
}

/// See [`Serving::around`].
pub(in super::super) struct ServedIo<Io> {
    // Closed before the engine hears of it.
    io: Io,
    serving: Serving,
}

impl<Io: AsyncIo> AsyncRead for ServedIo<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.serving.poll_given_up(cx) {
            self.io.reset_on_close();
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

seams::write_through!(ServedIo);

seams::hand_down!(ServedIo);
