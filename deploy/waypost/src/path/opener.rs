//! What peers ask of this node.

use super::{carrier::Carrier, shown::Shown, tcp::Tcp};
use crate::config::network::Link;
use bytes::Bytes;
use discovery_core::{
    engine::{Event, Reason},
    id::NodeId,
    rule::Prefix,
    seam::sink::{Put, Sink},
};
use discovery_linux::netd::Ready;
use seams::BoxFuture;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, time::timeout};
use wan::{OpenedStream, StreamOpener};
use wan_core::{Kind, Notice, OpenFrame, Reason as Why};

/// Opens the servers' ends of peers' streams.
pub(super) struct Opener {
    carrier: Arc<Carrier>,
    /// What each may ask for without a SYN that was seen here.
    may_open: HashMap<NodeId, Vec<Prefix>>,
    shown: Mutex<Shown>,
    /// Without a place on the path there are no SYNs to be seen, and servers see this node.
    stands: bool,
}

impl Opener {
    pub(super) fn new(carrier: Arc<Carrier>, link: &Link, stands: bool) -> Self {
        let may_open = link.peers.iter().map(|peer| (peer.id.clone(), peer.may_open.clone())).collect();
        Self { carrier, may_open, shown: Mutex::default(), stands }
    }

    fn granted(&self, peer: &NodeId, open: &OpenFrame) -> bool {
        let server = open.flow.server.ip();
        let prefixes = self.may_open.get(peer);
        prefixes.is_some_and(|prefixes| prefixes.iter().any(|prefix| prefix.contains(server)))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn carry(&self, peer: NodeId, open: OpenFrame) -> Result<OpenedStream, Why> {
        let flow = open.flow;
        let named = self.granted(&peer, &open);
        let granted = open.kind == Kind::Carry && (named || self.shown().covers(&peer, flow, Instant::now()));
        if !self.stands {
            return if named { dial(&open).await } else { Err(Why::NotGranted) };
        }
        let (ready, serving) = self.carrier.claim(flow, granted).await.map_err(|why| {
            tracing::debug!(%flow, %peer, why = why.word(), "a peer's stream is refused");
            refused(why)
        })?;
        let io: Box<dyn seams::AsyncIo> = match ready {
            Ready::Here(connection) => {
                let server = Tcp::from_fd(connection).map_err(|_| Why::ConnectionReset)?;
                Box::new(serving.around(server))
            }
            Ready::Onward(next) => Box::new(serving.around(self.carrier.onward(flow, next).await?)),
        };
        // Without a grant it was the client's own SYN that was seen here. A grant must not prolong itself.
        if !granted {
            self.shown().note(&peer, flow, Instant::now());
        }
        Ok(OpenedStream { io, info: Bytes::new() })
    }
}

impl StreamOpener for Opener {
    fn open(&self, peer: NodeId, open: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Why>> {
        Box::pin(async move {
            match open.kind {
                Kind::Carry | Kind::Claim => self.carry(peer, open).await,
                Kind::Origin | Kind::Adopt => Err(Why::Unsupported),
            }
        })
    }
}

async fn dial(open: &OpenFrame) -> Result<OpenedStream, Why> {
    let dialled = timeout(DIAL_MAX, TcpStream::connect(open.flow.server)).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Err(Why::ServerRefused);
        }
        Ok(Err(_)) => return Err(Why::ServerUnreachable),
        Err(_) => return Err(Why::ServerTimedOut),
    };
    let io = Tcp::new(stream).map_err(|_| Why::ConnectionReset)?;
    Ok(OpenedStream { io: Box::new(io), info: Bytes::new() })
}

const DIAL_MAX: Duration = Duration::from_secs(10);

/// What the peer is told, and through it the client.
fn refused(why: Reason) -> Why {
    const WORDS: &[(Reason, Why)] = &[
        (Reason::ServerRefused, Why::ServerRefused),
        (Reason::ServerUnreachable, Why::ServerUnreachable),
        (Reason::ServerSilent, Why::ServerTimedOut),
        // What this node has against the server is said before the engine is asked.
        (Reason::NotGranted, Why::UnknownFlow),
        (Reason::AgentDown, Why::ShuttingDown),
        (Reason::TableFull, Why::Busy),
        (Reason::LocalFailure, Why::Busy),
    ];
    WORDS.iter().find(|(reason, _)| *reason == why).map_or(Why::OtherWay, |(_, why)| *why)
}

/// Hears what peers say beside their streams.
pub(super) struct Asked(pub(super) Arc<Carrier>);

impl Sink<(NodeId, Notice)> for Asked {
    fn put(&self, (_, notice): (NodeId, Notice)) -> Put {
        match notice {
            Notice::Abort { flow, isn } => self.0.tell(Event::Aborted { flow, isn }),
            Notice::Other { .. } => {}
        }
        Put::Taken
    }
}
