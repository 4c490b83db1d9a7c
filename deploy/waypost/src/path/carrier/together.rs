//! Connections that stood before and that two nodes adopt together: what this one says to the other, on the stream that
//! then carries the connection's octets.

use super::{Carrier, Far, asks};
use crate::path::tcp::{self, Tcp};
use discovery_core::{
    adopt::split::{Ready, Ye},
    engine::{self, Event, Reason},
    flow::Flow,
};
use discovery_linux::netd::{Step, Tell, Ticket, Word};
use std::{os::fd::OwnedFd, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use wan::LinkStream;
use wan_core::{Kind, OpenFrame, Reason as Why};

/// What the loop says comes out at the other end, in order.
pub(in super::super) fn steps() -> (Tell, UnboundedReceiver<Step>) {
    let (send, receive) = unbounded_channel();
    let tell = move |step: Step| {
        // Whoever goes before it takes the socket leaves a connection that is over, and not one that ended in order.
        if let Step::Client(socket) | Step::Server(socket, ..) = &step {
            tcp::reset_when_closed(socket);
        }
        send.send(step).is_ok()
    };
    (Box::new(tell), receive)
}

/// On the client's side.
impl Carrier {
    /// Asks a peer to take the server's end.
    pub(in super::super) async fn adopt(
        self: Arc<Self>,
        ticket: Ticket,
        peer: engine::Peer,
        mut steps: UnboundedReceiver<Step>,
    ) {
        let flow = ticket.flow;
        match self.together(ticket, peer, &mut steps).await {
            Ok((stream, client)) => self.adopted_together(flow, client, stream),
            Err(why) => {
                tracing::debug!(%flow, why = why.word(), "not adopted with the peer");
                self.adoption(ticket, Word::Over(why));
                // Its socket may be on its way.
                steps.close();
                while let Some(step) = steps.recv().await {
                    if let Step::Client(client) = step {
                        drop(client);
                        self.tell(Event::Closed { flow });
                    }
                }
            }
        }
    }

    async fn together(
        &self,
        ticket: Ticket,
        peer: engine::Peer,
        steps: &mut UnboundedReceiver<Step>,
    ) -> Result<(LinkStream, OwnedFd), Reason> {
        let links = self.links.get().ok_or(Reason::PeerDown)?;
        let open = OpenFrame { kind: Kind::Adopt, ..asks(ticket.flow) };
        let mut stream = links.open(&self.at(peer), open).await.map_err(refused)?;
        self.met(peer, stream.peer().clone());
        let info = tokio::select! {
            info = stream.opened() => info.map_err(refused)?,
            step = steps.recv() => return Err(unexpected(step)),
        };
        // What cannot be read was said by another version.
        self.adoption(ticket, Word::Ready(Ready::decode(&info).ok_or(Reason::AdoptUnpaired)?));
        let cut = tokio::select! {
            step = steps.recv() => match step {
                Some(Step::Cut(cut)) => cut,
                step => return Err(unexpected(step)),
            },
            _ = stream.read_u8() => return Err(gone(&stream)),
        };
        let cut = cut.encode();
        tokio::select! {
            written = stream.write_all(&cut) => written.map_err(|_| gone(&stream))?,
            step = steps.recv() => return Err(unexpected(step)),
        }
        let mut word = [0; Ye::OCTETS];
        tokio::select! {
            read = stream.read_exact(&mut word) => drop(read.map_err(|_| gone(&stream))?),
            step = steps.recv() => return Err(unexpected(step)),
        }
        let ye = Ye::decode(&word).ok_or(Reason::AdoptUnpaired)?;
        self.adoption(ticket, Word::Ye(ye));
        let mut client = None;
        let (mut left, mut piece) = (ye.again(), vec![0; PIECE_MAX.min(ye.again())]);
        while left > 0 {
            let most = left.min(piece.len());
            let into = piece.get_mut(..most).unwrap_or_default();
            let read = tokio::select! {
                read = stream.read(into) => read.unwrap_or(0),
                // It may have everything without these, which are still to be taken off the stream.
                step = steps.recv(), if client.is_none() => match step {
                    Some(Step::Client(socket)) => {
                        client = Some(socket);
                        continue;
                    }
                    step => return Err(unexpected(step)),
                },
            };
            if read == 0 {
                if client.take().is_some() {
                    self.tell(Event::Closed { flow: ticket.flow });
                }
                return Err(gone(&stream));
            }
            left -= read;
            self.adoption(ticket, Word::Filled(piece.iter().take(read).copied().collect()));
        }
        if let Some(client) = client {
            return Ok((stream, client));
        }
        let last = tokio::select! {
            step = steps.recv() => step,
            () = broken(&stream) => return Err(gone(&stream)),
        };
        match last {
            Some(Step::Client(client)) => Ok((stream, client)),
            step => Err(unexpected(step)),
        }
    }

    /// The client's end is here, and the stream is where the server's next octet is.
    fn adopted_together(self: &Arc<Self>, flow: Flow, client: OwnedFd, stream: LinkStream) {
        let attempt = self.begin(flow);
        self.lock().attempts.opened(&attempt);
        match Tcp::from_fd(client) {
            Ok(client) => {
                let half = self.lock().attempts.client(flow, client);
                self.go_on(half);
                self.far(&attempt, Far::Stream(stream));
            }
            Err(error) => {
                tracing::warn!(%flow, %error, "an adopted connection is lost");
                self.closed(&attempt);
            }
        }
    }

    pub(in super::super) fn adoption(&self, ticket: Ticket, word: Word) {
        if let Some(upward) = self.upward.get() {
            upward.netd.adoption(ticket, word);
        }
    }
}

/// Of what follows YE.
const PIECE_MAX: usize = 64 << 10;

/// Returns when the stream is over.
async fn broken(stream: &LinkStream) {
    let mut pause = tokio::time::interval(super::peers::LOOK_EVERY);
    while stream.reason().is_none() {
        pause.tick().await;
    }
}

fn gone(stream: &LinkStream) -> Reason {
    refused(stream.reason().unwrap_or(Why::Closed))
}

/// The loop has given it up, or is gone.
fn unexpected(step: Option<Step>) -> Reason {
    match step {
        Some(Step::Refused(why)) => why,
        Some(Step::Begun(_) | Step::Ready(..) | Step::Cut(_) | Step::Client(_) | Step::Server(..)) | None => {
            Reason::AgentDown
        }
    }
}

/// What a refusal means: whoever does not adopt now may later, and whoever cannot will not.
fn refused(why: Why) -> Reason {
    match why {
        Why::Unsupported | Why::NotGranted | Why::UnknownFlow | Why::OlderVersion | Why::NewerVersion => {
            Reason::AdoptUnpaired
        }
        Why::Busy => Reason::ExistingLater,
        Why::NoLink
        | Why::LinkLost
        | Why::PeerRestarted
        | Why::PeerForgot
        | Why::PeerRefused
        | Why::PeerUnreachable
        | Why::PeerTimedOut
        | Why::ShuttingDown => Reason::PeerDown,
        Why::Unknown
        | Why::Cancelled
        | Why::ConnectionReset
        | Why::ServerRefused
        | Why::ServerUnreachable
        | Why::ServerTimedOut
        | Why::ServerTls
        | Why::UnknownServer
        | Why::Violation
        | Why::Revoked
        | Why::WrongPin
        | Why::WrongNode
        | Why::NoIdentity
        | Why::UnknownPeer
        | Why::Duplicate
        | Why::Replaced
        | Why::Silent
        | Why::Itself
        | Why::Tls
        | Why::Closed
        | Why::OtherWay => Reason::AdoptUnsteady,
    }
}
