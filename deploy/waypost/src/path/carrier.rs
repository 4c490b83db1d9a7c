//! Brings the two halves of a connection together and carries octets between them: the client that the transparent
//! listener accepted, and the stream to its peer or the connection to its server, in whichever order they come.

use super::tcp::Tcp;
use discovery_core::{
    engine::{self, ConnectFailure, Event, Reason, Refusal},
    flow::Flow,
    id::NodeId,
    value::Class,
};
use discovery_linux::{
    netd::{Claimed, Handle, Ready},
    socket::{self, Connecting, Target},
};
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use wan::{LinkStream, Links, Peer};
use wan_core::{Kind, Notice, OpenFrame};

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Carrier {
    handle: OnceLock<Handle>,
    links: OnceLock<Links>,
    /// Peers that the operator named for servers, as the engine knows them.
    named: OnceLock<HashMap<engine::Peer, NodeId>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: HashMap<Flow, Tcp>,
    fars: HashMap<Flow, Far>,
    carried: HashMap<Flow, Arc<Notify>>,
    /// The servers' ends of what peers carry.
    served: HashMap<Flow, Arc<Notify>>,
    claims: HashMap<Flow, oneshot::Sender<Result<Ready, Reason>>>,
    /// Whether there is a link, as the engine was told.
    peers: HashMap<engine::Peer, Met>,
}

#[derive(Default)]
struct Met {
    up: bool,
    node: Option<NodeId>,
}

/// What a client's octets go to.
enum Far {
    Stream(LinkStream),
    Server(Tcp),
}

impl Carrier {
    pub(super) fn handle(&self, handle: Handle) {
        let _once = self.handle.set(handle);
    }

    pub(super) fn links(&self, links: Links) {
        let _once = self.links.set(links);
    }

    pub(super) fn named(&self, named: HashMap<engine::Peer, NodeId>) {
        let mut state = self.lock();
        for peer in named.keys() {
            state.peers.entry(*peer).or_default();
        }
        drop(state);
        let _once = self.named.set(named);
    }

    /// How many connections are carried for clients here, and for peers.
    pub(crate) fn carried(&self) -> usize {
        let state = self.lock();
        state.carried.len() + state.served.len()
    }

    pub(super) fn tell(&self, event: Event) {
        if let Some(handle) = self.handle.get() {
            handle.tell(event);
        }
    }

    fn at(&self, peer: engine::Peer) -> Peer {
        match self.named.get().and_then(|named| named.get(&peer)) {
            Some(node) => Peer::Node(node.clone()),
            None => Peer::At(peer.link, peer.key),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On the client's side.
impl Carrier {
    /// Opens a stream for `flow`. Its client may be here already, and need not wait for the answer.
    pub(super) async fn open(self: Arc<Self>, flow: Flow, peer: engine::Peer) {
        let Some(links) = self.links.get() else { return };
        let stream = match links.open(&self.at(peer), asks(flow)).await {
            Ok(stream) => stream,
            Err(why) => {
                tracing::debug!(%flow, %why, "no stream");
                return self.tell(Event::Refused { flow, why: refusal(why) });
            }
        };
        self.set_up(peer, true);
        let answer = stream.answer();
        self.far(flow, Far::Stream(stream));
        match answer.await {
            Ok(_) => self.tell(Event::Opened { flow }),
            Err(why) => {
                tracing::debug!(%flow, %why, "refused by the peer");
                drop(self.lock().fars.remove(&flow));
                self.tell(Event::Refused { flow, why: refusal(why) });
            }
        }
    }

    /// Reaches the server of `flow` from its client's address, without a peer.
    pub(super) async fn single(self: Arc<Self>, flow: Flow) {
        match timeout(CONNECT_MAX, connect(flow)).await {
            Ok(Ok(server)) => {
                self.far(flow, Far::Server(server));
                self.tell(Event::Opened { flow });
            }
            Ok(Err(failure)) => self.tell(Event::Refused { flow, why: unreached(failure) }),
            Err(_) => self.tell(Event::Refused { flow, why: Refusal::ServerSilent }),
        }
    }

    /// The client is here.
    pub(super) fn accepted(self: &Arc<Self>, flow: Flow, client: TcpStream) {
        let client = match Tcp::new(client) {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%flow, %error, "the client has gone"),
        };
        let far = {
            let mut state = self.lock();
            match state.fars.remove(&flow) {
                Some(far) => far,
                None => {
                    state.clients.insert(flow, client);
                    drop(state);
                    return self.give_up_later(flow);
                }
            }
        };
        self.carry(flow, client, far);
    }

    fn far(self: &Arc<Self>, flow: Flow, far: Far) {
        let client = {
            let mut state = self.lock();
            match state.clients.remove(&flow) {
                Some(client) => client,
                None => {
                    state.fars.insert(flow, far);
                    drop(state);
                    return self.give_up_later(flow);
                }
            }
        };
        self.carry(flow, client, far);
    }

    fn carry(self: &Arc<Self>, flow: Flow, mut client: Tcp, far: Far) {
        let aborted = Arc::new(Notify::new());
        self.lock().carried.insert(flow, Arc::clone(&aborted));
        let carrier = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = aborted.notified() => seams::AsyncIo::reset_on_close(&mut client),
                () = far.carry(&mut client) => carrier.tell(Event::Closed { flow }),
            }
            let mut state = carrier.lock();
            // A newer connection between the same ports has an entry of its own.
            if state.carried.get(&flow).is_some_and(|now| Arc::ptr_eq(now, &aborted)) {
                state.carried.remove(&flow);
            }
        });
    }

    /// A half whose other half does not come is let go.
    fn give_up_later(self: &Arc<Self>, flow: Flow) {
        let carrier = Arc::clone(self);
        tokio::spawn(async move {
            sleep(ALONE_MAX).await;
            let (client, far) = {
                let mut state = carrier.lock();
                (state.clients.remove(&flow), state.fars.remove(&flow))
            };
            if client.is_some() || far.is_some() {
                carrier.tell(Event::Closed { flow });
            }
        });
    }

    /// Ends what there is of `flow`, the client with a reset.
    pub(super) fn abort(&self, flow: Flow) {
        let (client, far, carried, served) = {
            let mut state = self.lock();
            let client = state.clients.remove(&flow);
            (client, state.fars.remove(&flow), state.carried.remove(&flow), state.served.remove(&flow))
        };
        if let Some(mut client) = client {
            seams::AsyncIo::reset_on_close(&mut client);
        }
        drop(far);
        [carried, served].into_iter().flatten().for_each(|end| end.notify_one());
    }
}

/// On the server's side.
impl Carrier {
    /// The connection that was opened early for `flow`, or the node that takes it on.
    pub(super) async fn claim(&self, flow: Flow, granted: bool) -> Result<Ready, Reason> {
        let Some(handle) = self.handle.get() else { return Err(Reason::NotGranted) };
        let (answer, answered) = oneshot::channel();
        // Before the question: the answer to a claim that waits may come at once.
        self.lock().claims.insert(flow, answer);
        let (first, firstly) = oneshot::channel();
        handle.claim(flow, granted, move |claimed| drop(first.send(claimed)));
        let claimed = match firstly.await {
            Ok(Claimed::Ready(ready)) => Ok(ready),
            Ok(Claimed::Refused(why)) => Err(why),
            Ok(Claimed::Wait) => return answered.await.unwrap_or(Err(Reason::Closed)),
            Err(_) => Err(Reason::AgentDown),
        };
        self.lock().claims.remove(&flow);
        claimed
    }

    pub(super) fn claimed(&self, flow: Flow, ready: Result<Ready, Reason>) {
        let waiting = self.lock().claims.remove(&flow);
        if let Some(waiting) = waiting {
            let _gone = waiting.send(ready);
        }
    }

    /// The connection of a claim, as a peer's stream is carried to it.
    pub(super) fn serve(self: &Arc<Self>, flow: Flow, connection: OwnedFd) -> std::io::Result<Tcp> {
        let carrier = Arc::clone(self);
        Ok(Tcp::from_fd(connection)?.on_end(move || carrier.tell(Event::Closed { flow })))
    }

    /// A stream that goes on to the next node.
    pub(super) async fn onward(
        &self,
        flow: Flow,
        next: engine::Peer,
    ) -> Result<LinkStream, wan_core::Reason> {
        let links = self.links.get().ok_or(wan_core::Reason::NoLink)?;
        let stream = links.open(&self.at(next), asks(flow)).await?;
        stream.answer().await?;
        Ok(stream)
    }

    /// Tells the next node that `flow` is given up.
    pub(super) fn abort_onward(&self, flow: Flow, next: engine::Peer, isn: u32) {
        let node = self.lock().peers.get(&next).and_then(|met| met.node.clone());
        if let (Some(links), Some(node)) = (self.links.get(), node) {
            links.notify(Some(&node), &Notice::Abort { flow, isn });
        }
    }
}

/// Peers.
impl Carrier {
    /// Makes the link to a peer that was learnt, so that the next connection finds it warm.
    pub(super) async fn meet(self: Arc<Self>, peer: engine::Peer) {
        let Some(links) = self.links.get() else { return };
        match links.connect(&self.at(peer)).await {
            Ok(node) => {
                self.lock().peers.entry(peer).or_default().node = Some(node);
                self.set_up(peer, true);
            }
            Err(why) => {
                tracing::info!(link = %peer.link, %why, "a peer on the path has no link; connections go direct");
                self.set_up(peer, false);
            }
        }
    }

    fn set_up(&self, peer: engine::Peer, up: bool) {
        let mut state = self.lock();
        let met = state.peers.entry(peer).or_default();
        let changed = std::mem::replace(&mut met.up, up) != up;
        drop(state);
        if changed {
            self.tell(if up { Event::PeerUp { peer } } else { Event::PeerDown { peer } });
        }
    }
}

/// Tells the engine which links stand.
pub(super) async fn watch_peers(carrier: Arc<Carrier>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(links) = carrier.links.get() else { continue };
        let peers: Vec<engine::Peer> = carrier.lock().peers.keys().copied().collect();
        for peer in peers {
            carrier.set_up(peer, links.is_up(&carrier.at(peer)));
        }
    }
}

impl Far {
    async fn carry(self, client: &mut Tcp) {
        match self {
            Self::Stream(stream) => {
                let wan::Spliced { sent, received, cut } = wan::splice(stream, client).await;
                tracing::debug!(sent, received, cut = cut.map(wan_core::Reason::word), "carried");
            }
            Self::Server(mut server) => {
                if copy_bidirectional(client, &mut server).await.is_err() {
                    seams::AsyncIo::reset_on_close(client);
                    seams::AsyncIo::reset_on_close(&mut server);
                }
            }
        }
    }
}

fn asks(flow: Flow) -> OpenFrame {
    let class = if INTERACTIVE.contains(&flow.server.port()) { Class::Interactive } else { Class::Bulk };
    OpenFrame { flow, class, kind: Kind::Carry, spoof: true, server: None }
}

async fn connect(flow: Flow) -> Result<Tcp, ConnectFailure> {
    let mut connecting = Connecting::begin(flow, Target::Away).map_err(failed)?;
    loop {
        // Its outcome is known as soon as it is writable.
        let waiting =
            TcpStream::from_std(OwnedFd::from(connecting).into()).map_err(|_| ConnectFailure::Local)?;
        waiting.writable().await.map_err(|_| ConnectFailure::Local)?;
        let socket = OwnedFd::from(waiting.into_std().map_err(|_| ConnectFailure::Local)?);
        match Connecting::from_fd(socket).finish().map_err(failed)? {
            Ok(connected) => return Tcp::from_fd(connected).map_err(|_| ConnectFailure::Local),
            Err(still) => connecting = still,
        }
    }
}

fn failed(failure: socket::ConnectFailure) -> ConnectFailure {
    match failure {
        socket::ConnectFailure::Refused => ConnectFailure::Refused,
        socket::ConnectFailure::TimedOut => ConnectFailure::TimedOut,
        socket::ConnectFailure::NetworkUnreachable => {
            ConnectFailure::Unreachable(engine::Unreachable::Network)
        }
        socket::ConnectFailure::HostUnreachable => ConnectFailure::Unreachable(engine::Unreachable::Host),
        socket::ConnectFailure::Prohibited => ConnectFailure::Unreachable(engine::Unreachable::Prohibited),
        socket::ConnectFailure::NotPermitted
        | socket::ConnectFailure::AddressInUse
        | socket::ConnectFailure::Exhausted
        | socket::ConnectFailure::Other(_) => ConnectFailure::Local,
    }
}

fn unreached(failure: ConnectFailure) -> Refusal {
    match failure {
        ConnectFailure::Refused => Refusal::ServerRefused,
        ConnectFailure::Unreachable(what) => Refusal::ServerUnreachable(what),
        ConnectFailure::TimedOut => Refusal::ServerSilent,
        ConnectFailure::Local => Refusal::Peer,
    }
}

fn refusal(why: wan_core::Reason) -> Refusal {
    use wan_core::Reason as Why;
    match why {
        Why::ServerRefused => Refusal::ServerRefused,
        Why::ServerUnreachable => Refusal::ServerUnreachable(engine::Unreachable::Host),
        Why::ServerTimedOut => Refusal::ServerSilent,
        Why::NoLink
        | Why::LinkLost
        | Why::PeerRestarted
        | Why::PeerRefused
        | Why::PeerUnreachable
        | Why::PeerTimedOut
        | Why::ShuttingDown
        | Why::Closed
        | Why::Silent
        | Why::Tls
        | Why::Revoked
        | Why::WrongPin
        | Why::WrongNode
        | Why::NoIdentity
        | Why::UnknownPeer
        | Why::OlderVersion
        | Why::NewerVersion
        | Why::Itself => Refusal::NoLink,
        Why::Unknown
        | Why::Cancelled
        | Why::ConnectionReset
        | Why::ServerTls
        | Why::UnknownServer
        | Why::UnknownFlow
        | Why::NotGranted
        | Why::Busy
        | Why::Unsupported
        | Why::PeerForgot
        | Why::Violation
        | Why::Duplicate
        | Why::Replaced => Refusal::Peer,
    }
}

/// What people wait for octet by octet: shells, mail, directories. Anything else may be large.
const INTERACTIVE: &[u16] = &[22, 23, 53, 88, 110, 143, 389, 587, 636, 993, 995];
/// A server that says nothing for so long is silent.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// The two halves of a connection come within a round trip of each other.
const ALONE_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);
