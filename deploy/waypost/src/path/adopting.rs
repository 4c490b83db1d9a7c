//! The server's end of a connection that stood before, which a peer asked for: on its stream comes the peer's CUT, then
//! YE goes back and what the server had said that may be lost, and from then on both carry the connection's octets.

use super::{
    carrier::{Carrier, Serving, steps},
    tcp::Tcp,
};
use bytes::{Buf, Bytes};
use discovery_core::{
    adopt::split::CutWord,
    engine::{Event, Reason},
    flow::Flow,
};
use discovery_linux::netd::{Step, Ticket, Word};
use seams::AsyncIo;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::UnboundedReceiver,
    time::timeout,
};
use wan::OpenedStream;
use wan_core::Reason as Why;

/// Observes the connection until it could be cut.
pub(super) async fn adopt(carrier: &Arc<Carrier>, flow: Flow) -> Result<OpenedStream, Why> {
    let (tell, mut steps) = steps();
    carrier.adopt_for_peer(flow, tell).ok_or(Why::Unsupported)?;
    // A loop that finds nobody here any more begins nothing.
    let ticket = match steps.recv().await {
        Some(Step::Begun(ticket)) => ticket,
        step => return Err(unready(step)),
    };
    // From here on the loop hears of it when the peer, who may give up at any time, is gone.
    let state = State::Asked { word: Vec::new() };
    let mut io = Adopting { carrier: Arc::clone(carrier), ticket, steps, state };
    match timeout(READY_MAX, io.steps.recv()).await {
        Ok(Some(Step::Ready(_, ready))) => Ok(OpenedStream { io: Box::new(io), info: ready.encode().into() }),
        Ok(step) => Err(unready(step)),
        Err(_) => Err(Why::UnknownFlow),
    }
}

fn unready(step: Option<Step>) -> Why {
    match step {
        Some(Step::Refused(why)) => refused(why),
        Some(Step::Begun(_) | Step::Ready(..) | Step::Cut(_) | Step::Client(_) | Step::Server(..)) | None => {
            Why::ShuttingDown
        }
    }
}

/// What the peer is told.
fn refused(why: Reason) -> Why {
    if why == Reason::AdoptUnpaired {
        Why::Unsupported
    } else if [Reason::ExistingLater, Reason::TableFull].contains(&why) {
        Why::Busy
    } else {
        // Somebody has it, it goes past, or there was no moment.
        Why::OtherWay
    }
}

struct Adopting {
    carrier: Arc<Carrier>,
    ticket: Ticket,
    steps: UnboundedReceiver<Step>,
    state: State,
}

enum State {
    /// CUT is still to come, or the rest of it.
    Asked { word: Vec<u8> },
    /// The loop is to make the socket.
    Cutting,
    /// `head` is to be told before anything that the server says.
    Carried { head: Bytes, server: Box<dyn AsyncIo> },
    /// Given up.
    Over,
}

impl Adopting {
    /// The server, once there is its socket.
    fn poll_server(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(&mut Bytes, Pin<&mut dyn AsyncIo>)>> {
        if let State::Asked { .. } | State::Cutting = self.state {
            match ready!(self.steps.poll_recv(cx)) {
                Some(Step::Server(socket, ye, octets)) => {
                    let serving = Serving::begin(&self.carrier, self.ticket.flow, None);
                    let head = [ye.encode(), octets].concat().into();
                    self.state =
                        State::Carried { head, server: Box::new(serving.around(Tcp::from_fd(socket)?)) };
                }
                Some(
                    Step::Refused(_) | Step::Begun(_) | Step::Ready(..) | Step::Cut(_) | Step::Client(_),
                )
                | None => {
                    self.state = State::Over;
                }
            }
        }
        match &mut self.state {
            State::Carried { head, server } => Poll::Ready(Ok((head, Pin::new(&mut **server)))),
            State::Asked { .. } | State::Cutting | State::Over => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }
}

impl AsyncRead for Adopting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (head, server) = ready!(self.poll_server(cx))?;
        if head.is_empty() {
            return server.poll_read(cx, buf);
        }
        let n = head.len().min(buf.remaining());
        buf.put_slice(&head.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Adopting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let ticket = this.ticket;
        if let State::Asked { word } = &mut this.state {
            let mut octets = octets;
            let n = octets.len().min(CutWord::OCTETS - word.len());
            word.extend_from_slice(&octets.copy_to_bytes(n));
            if word.len() == CutWord::OCTETS {
                let Some(cut) = CutWord::decode(word) else {
                    this.state = State::Over;
                    this.carrier.adoption(ticket, Word::Over(Reason::AdoptUnsteady));
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                };
                this.carrier.adoption(ticket, Word::Cut(cut));
                this.state = State::Cutting;
            }
            return Poll::Ready(Ok(n));
        }
        let (_, server) = ready!(this.poll_server(cx))?;
        server.poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Carried { server, .. } => Pin::new(&mut **server).poll_flush(cx),
            State::Asked { .. } | State::Cutting | State::Over => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Carried { server, .. } => Pin::new(&mut **server).poll_shutdown(cx),
            // The client's end comes behind CUT, and YE was not said.
            State::Asked { .. } | State::Cutting | State::Over => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }
}

impl AsyncIo for Adopting {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        match &self.state {
            State::Carried { server, .. } => server.set_receive_window(octets),
            State::Asked { .. } | State::Cutting | State::Over => Ok(()),
        }
    }

    fn reset_on_close(&mut self) {
        if let State::Carried { server, .. } = &mut self.state {
            server.reset_on_close();
        }
    }
}

impl Drop for Adopting {
    fn drop(&mut self) {
        // Its socket may be here already.
        self.steps.close();
        while let Ok(step) = self.steps.try_recv() {
            if let Step::Server(server, ..) = step {
                drop(server);
                self.carrier.tell(Event::Closed { flow: self.ticket.flow });
            }
        }
        // The server hears of its end before the client's packets may reach it again.
        self.state = State::Over;
        self.carrier.adoption(self.ticket, Word::Over(Reason::AbortedByPeer));
    }
}

/// Longer than the loop observes a connection.
const READY_MAX: Duration = Duration::from_secs(12);
