//! What peers ask of this node.

use super::{
    ASIDE, Roles, adopting,
    carrier::Carrier,
    off_path::{CONTROL, OffPath},
    origin::{OriginRoad, Origins},
    shown::Shown,
    tcp::Tcp,
};
use crate::{config::network::Link, node::mail::Mail};
use bytes::Bytes;
use discovery_core::{
    engine::{Event, Reason},
    id::NodeId,
    rule::Prefix,
    seam::sink::{Put, Sink},
};
use discovery_linux::netd::Ready;
use seams::{AsyncIo, BoxFuture};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, time::timeout};
use wan::{OpenedStream, StreamOpener, reachable};
use wan_core::{Kind, Notice, OpenFrame, Reason as Why};

/// Opens the servers' ends of peers' streams.
pub(super) struct Opener {
    carrier: Arc<Carrier>,
    /// What each may ask for without a SYN that was seen here.
    may_open: HashMap<NodeId, Vec<Prefix>>,
    /// What each may reach from this node's own address.
    may_dial: HashMap<NodeId, Vec<Prefix>>,
    shown: Mutex<Shown>,
    origins: Origins,
    /// Without a place on the path there are no SYNs to be seen, and servers see this node.
    stands: bool,
    off_path: Option<Arc<OffPath>>,
}

impl Opener {
    pub(super) fn new(
        carrier: Arc<Carrier>,
        link: &Link,
        stands: bool,
        mail: Arc<Mail>,
        off_path: Option<Arc<OffPath>>,
    ) -> Self {
        let may_open = link.peers.iter().map(|peer| (peer.id.clone(), peer.may_open.clone())).collect();
        let may_dial = link.peers.iter().map(|peer| (peer.id.clone(), peer.may_dial.clone())).collect();
        Self {
            carrier,
            may_open,
            may_dial,
            shown: Mutex::default(),
            origins: Origins::new(mail),
            stands,
            off_path,
        }
    }

    fn granted(&self, peer: &NodeId, open: &OpenFrame) -> bool {
        named(&self.may_open, peer, open)
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's end, or the next node's with what that one told.
    async fn reach(&self, peer: &NodeId, open: &OpenFrame) -> Result<(Box<dyn AsyncIo>, Bytes), Why> {
        let flow = open.flow;
        let named = self.granted(peer, open);
        let own = (open.kind == Kind::Carry && !open.spoof).then(|| self::named(&self.may_dial, peer, open));
        let granted = open.kind != Kind::Claim && (named || self.shown().covers(peer, flow, Instant::now()));
        match by(self.off_path.is_some(), self.stands, named, own) {
            By::Nothing => return Err(Why::NotGranted),
            By::Dial => return dial(open).await,
            By::Deflector => {
                let off_path = self.off_path.as_ref().ok_or(Why::NotGranted)?;
                return Ok((off_path.serve(flow).await?, Bytes::new()));
            }
            By::Claim => {}
        }
        let (ready, serving) = self.carrier.claim(flow, granted).await.map_err(|why| {
            tracing::debug!(%flow, %peer, why = why.word(), "a peer's stream is refused");
            refused(why)
        })?;
        let reached: (Box<dyn AsyncIo>, Bytes) = match ready {
            Ready::Here(connection) => {
                let server = Tcp::from_fd(connection).map_err(|_| Why::ConnectionReset)?;
                (Box::new(serving.around(server)), Bytes::new())
            }
            Ready::Onward(next) => {
                let (stream, info) = self.carrier.onward(open.clone(), next).await?;
                (Box::new(serving.around(stream)), info)
            }
        };
        // Without a grant it was the client's own SYN that was seen here. A grant must not prolong itself.
        if !granted {
            self.shown().note(peer, flow, Instant::now());
        }
        Ok(reached)
    }

    async fn carry(&self, peer: NodeId, open: OpenFrame) -> Result<OpenedStream, Why> {
        let (io, info) = self.reach(&peer, &open).await?;
        Ok(OpenedStream { io, info })
    }

    /// With everything that belongs to its protocol.
    async fn origin(&self, peer: NodeId, open: OpenFrame) -> Result<OpenedStream, Why> {
        let road = self.origins.road(&open)?;
        if !open.spoof {
            return self.origin_from_here(&peer, &open, &road).await;
        }
        let (io, info) = self.reach(&peer, &open).await?;
        // The last node of a chain does it.
        if !info.is_empty() {
            return Ok(OpenedStream { io, info });
        }
        self.origins.greet(&road, io).await
    }

    /// From this node's own address, with a connection that is ready if there is one.
    async fn origin_from_here(
        &self,
        peer: &NodeId,
        open: &OpenFrame,
        road: &OriginRoad,
    ) -> Result<OpenedStream, Why> {
        let flow = open.flow;
        // Before anything is taken that was opened for the client's SYN.
        road.is_from_here()?;
        let granted = self.granted(peer, open) || self.shown().covers(peer, flow, Instant::now());
        if !self.stands {
            return if granted { road.open_from_here(flow.client).await } else { Err(Why::NotGranted) };
        }
        match self.carrier.claim(flow, false).await {
            // It is not what the client gets, and shows that it may.
            Ok((Ready::Here(_), _)) => self.shown().note(peer, flow, Instant::now()),
            Ok((Ready::Onward(next), serving)) => {
                let (stream, info) = self.carrier.onward(open.clone(), next).await?;
                self.shown().note(peer, flow, Instant::now());
                return Ok(OpenedStream { io: Box::new(serving.around(stream)), info });
            }
            Err(_) if granted => {}
            Err(why) => return Err(refused(why)),
        }
        road.open_from_here(flow.client).await
    }
}

/// By what a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Nothing,
    /// With this node's own address, which is what was asked for, or all it has.
    Dial,
    Deflector,
    /// What the engine has, or makes; it asks for a grant itself.
    Claim,
}

/// Without a place on the path there is no SYN to be seen: the operator's word is all there is, `named`. The rules of a
/// deflector say what its proxies may reach, and not for whom. A client that came to the peer's own address has no SYN
/// anywhere, and the server is to see this node (`own`: whether that is granted): more than any client is shown, unless this
/// node has nothing else to show.
fn by(off_path: bool, stands: bool, named: bool, own: Option<bool>) -> By {
    match (own, off_path, stands, named) {
        (Some(true), ..) | (_, false, false, true) => By::Dial,
        (None, true, _, true) => By::Deflector,
        (None, false, true, _) => By::Claim,
        (Some(false), true, ..) | (Some(false), _, true, _) | (_, _, _, false) => By::Nothing,
    }
}

/// Whether the operator named the server for this peer. An address written in the other family's way is none that he named.
fn named(grants: &HashMap<NodeId, Vec<Prefix>>, peer: &NodeId, open: &OpenFrame) -> bool {
    let server = open.flow.server.ip();
    let prefixes = grants.get(peer).filter(|_| server.to_canonical() == server);
    prefixes.is_some_and(|prefixes| prefixes.iter().any(|prefix| prefix.contains(server)))
}

impl StreamOpener for Opener {
    fn open(&self, peer: NodeId, open: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Why>> {
        Box::pin(async move {
            match open.kind {
                Kind::Carry | Kind::Claim => self.carry(peer, open).await,
                Kind::Origin => self.origin(peer, open).await,
                // That the peer sees the connection, the number shows that it has to say: no SYN does.
                Kind::Adopt if self.stands => adopting::adopt(&self.carrier, open.flow).await,
                Kind::Adopt => Err(Why::Unsupported),
            }
        })
    }
}

async fn dial(open: &OpenFrame) -> Result<(Box<dyn AsyncIo>, Bytes), Why> {
    // However wide the grant is: not what this machine says to itself, nor to its neighbours only.
    if !reachable(open.flow.server, false) {
        return Err(Why::NotGranted);
    }
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
    Ok((Box::new(io), Bytes::new()))
}

const DIAL_MAX: Duration = Duration::from_secs(10);

/// What the peer is told, and through it the client.
pub(super) fn refused(why: Reason) -> Why {
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
pub(super) struct Asked(pub(super) Arc<Carrier>, pub(super) Arc<Roles>);

impl Sink<(NodeId, Notice)> for Asked {
    fn put(&self, (from, notice): (NodeId, Notice)) -> Put {
        match notice {
            Notice::Abort { flow, isn } => self.0.tell(Event::Aborted { flow, isn }),
            Notice::Other { kind: CONTROL, octets } => self.1.hear(from, octets),
            Notice::Other { kind: ASIDE, octets } => match octets.as_ref() {
                [0] => self.0.aside(&from, false),
                [1] => self.0.aside(&from, true),
                _ => {}
            },
            Notice::Other { .. } => {}
        }
        Put::Taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_the_path_nothing_is_reached_that_the_operator_did_not_name() {
        for (off_path, stands, named, reached) in [
            (false, true, false, By::Claim),
            (false, true, true, By::Claim),
            (false, false, true, By::Dial),
            (false, false, false, By::Nothing),
            (true, false, true, By::Deflector),
            (true, false, false, By::Nothing),
            (true, true, true, By::Deflector),
            (true, true, false, By::Nothing),
        ] {
            assert_eq!(by(off_path, stands, named, None), reached, "{off_path} {stands} {named}");
            // Where a client's address, or a deflector's rules, would be the way, only for who may have this node's own.
            assert_eq!(by(off_path, stands, named, Some(true)), By::Dial, "{off_path} {stands} {named}");
            let own = if named && !off_path && !stands { By::Dial } else { By::Nothing };
            assert_eq!(by(off_path, stands, named, Some(false)), own, "{off_path} {stands} {named}");
        }
    }
}
