//! Brings the two halves of a connection together and carries octets between them: the client that the transparent
//! listener accepted, and the stream to its peer or the connection to its server, in whichever order they come.

mod attempts;
mod cut;
mod leash;
mod mail;
mod outcome;
mod peers;
mod serving;
mod together;

use super::{tcp::Tcp, upward::Upward};
use crate::node::mail::Mail;
use attempts::{Attempt, Attempts, Half};
use bytes::Bytes;
use discovery_core::{
    engine::{self, ConnectFailure, Event, Reason},
    flow::Flow,
    id::NodeId,
    value::Class,
};
use discovery_linux::{
    broker::SocketBroker,
    netd::{Claimed, Ready, Tell},
    socket::{Connecting, Target},
};
use outcome::{failed, no_socket, refusal};
pub(super) use peers::watch_peers;
use peers::{Lists, Met};
use seams::AsyncIo;
use serving::Served;
pub(super) use serving::Serving;
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
pub(super) use together::steps;
use tokio::{io::copy_bidirectional, net::TcpStream, sync::oneshot, time::timeout};
use wan::{LinkStream, Links, Peer};
use wan_core::{Kind, Notice, OpenFrame};

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Carrier {
    /// None without a place on the path.
    upward: OnceLock<Upward>,
    links: OnceLock<Links>,
    /// Peers that the operator named for servers, as the engine knows them.
    named: OnceLock<HashMap<engine::Peer, NodeId>>,
    mail: OnceLock<Arc<Mail>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attempts: Attempts<Tcp, Far>,
    /// What peers have claimed.
    served: HashMap<Flow, Served>,
    /// How many claims there were.
    claims: u64,
    /// Ways to mail servers, of clients here.
    leashes: leash::Leashes,
    /// What did not work, and need not be tried for each client.
    declined: mail::Declined,
    /// Whether there is a link whose peer may serve whatever it offers, as the engine was told: clients are answered on
    /// its account. What a peer of a bound authority offers has to be asked for first.
    peers: HashMap<engine::Peer, Met>,
    /// What peers have told last.
    lists: Lists,
}

/// What a client's octets go to.
enum Far {
    Stream(LinkStream),
    Server(Tcp),
    /// A session here.
    Mail(Box<mail::Bound>),
}

impl Carrier {
    pub(super) fn upward(&self, upward: Upward) {
        let _once = self.upward.set(upward);
    }

    pub(super) fn links(&self, links: Links) {
        let _once = self.links.set(links);
    }

    pub(super) fn mail(&self, mail: Arc<Mail>) {
        let _once = self.mail.set(mail);
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
        state.attempts.carried() + state.served.len()
    }

    pub(super) fn tell(&self, event: Event) {
        if let Some(upward) = self.upward.get() {
            upward.netd.tell(event);
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
    /// From now on a client of `flow` is waited for. What is left of an older attempt ends.
    pub(super) fn begin(&self, flow: Flow) -> Attempt {
        let mut state = self.lock();
        let (attempt, older) = state.attempts.begin(flow);
        let left = state.leashes.cut(flow);
        drop(state);
        drop((older, left));
        attempt
    }

    /// Opens a stream. Its client may be here already, and need not wait for the answer.
    pub(super) async fn open(self: Arc<Self>, attempt: Attempt, peer: engine::Peer) {
        tokio::select! {
            () = attempt.over() => {}
            () = self.ask(&attempt, peer) => {}
        }
    }

    async fn ask(self: &Arc<Self>, attempt: &Attempt, peer: engine::Peer) {
        let flow = attempt.flow;
        let Some(links) = self.links.get() else { return };
        let servers = self.mail_at(flow);
        if !servers.is_nobody() {
            return self.ask_mail(attempt, peer, servers).await;
        }
        let stream = match links.open(&self.at(peer), asks(flow)).await {
            Ok(stream) => stream,
            Err(why) => return self.ended(attempt, Some(why)),
        };
        self.met(peer, stream.peer().clone());
        let answer = stream.answer();
        self.far(attempt, Far::Stream(stream));
        match answer.await {
            Ok(_) => self.opened(attempt),
            Err(why) => self.ended(attempt, Some(why)),
        }
    }

    /// Reaches the server from the client's address, without a peer.
    pub(super) async fn single(self: Arc<Self>, attempt: Attempt) {
        let servers = self.mail_at(attempt.flow);
        if !servers.is_nobody() {
            return tokio::select! {
                () = attempt.over() => {}
                () = self.single_mail(&attempt, servers) => {}
            };
        }
        let connected = tokio::select! {
            () = attempt.over() => return,
            connected = timeout(CONNECT_MAX, self.connect(attempt.flow)) => connected,
        };
        match connected.unwrap_or(Err(ConnectFailure::TimedOut)) {
            Ok(server) => {
                self.opened(&attempt);
                self.far(&attempt, Far::Server(server));
            }
            Err(why) => {
                tracing::debug!(flow = %attempt.flow, ?why, "the server is not reached");
                // The client has been answered: a reset is all that is left to tell it.
                self.closed(&attempt);
            }
        }
    }

    /// A connection to the server, with the client's address.
    async fn connect(&self, flow: Flow) -> Result<Tcp, ConnectFailure> {
        let upward = self.upward.get().ok_or(ConnectFailure::Local)?;
        let begun = upward.socket(move |broker| broker.connect(flow, Target::Away)).await;
        let mut connecting = Connecting::from_fd(begun.map_err(no_socket)?);
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

    /// The client is here. One that nobody waits for is reset.
    pub(super) fn accepted(self: &Arc<Self>, flow: Flow, client: TcpStream) {
        let client = match Tcp::new(client) {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%flow, %error, "the client has gone"),
        };
        let half = self.lock().attempts.client(flow, client);
        self.go_on(half);
    }

    /// A connection that stood before goes on in these two.
    pub(super) fn adopted(self: &Arc<Self>, flow: Flow, client: OwnedFd, server: OwnedFd) {
        let attempt = self.begin(flow);
        self.lock().attempts.opened(&attempt);
        let made = Tcp::from_fd(client).and_then(|client| Ok((client, Tcp::from_fd(server)?)));
        match made {
            Ok((client, server)) => {
                let half = self.lock().attempts.client(flow, client);
                self.go_on(half);
                self.far(&attempt, Far::Server(server));
            }
            Err(error) => {
                tracing::warn!(%flow, %error, "an adopted connection is lost");
                self.closed(&attempt);
            }
        }
    }

    fn far(self: &Arc<Self>, attempt: &Attempt, far: Far) {
        let half = self.lock().attempts.far(attempt, far);
        self.go_on(half);
    }

    fn go_on(self: &Arc<Self>, half: Half<Tcp, Far>) {
        let carrier = Arc::clone(self);
        match half {
            Half::Both(attempt, client, far) => drop(tokio::spawn(carrier.carry(attempt, client, far))),
            Half::Waits(attempt) => drop(tokio::spawn(carrier.give_up_later(attempt))),
            Half::Unasked => {}
        }
    }

    async fn carry(self: Arc<Self>, attempt: Attempt, client: Tcp, far: Far) {
        let cut = tokio::select! {
            () = attempt.over() => return,
            cut = async {
                match far {
                    Far::Stream(stream) => splice(stream, client).await,
                    Far::Server(server) => copy(server, client).await,
                    Far::Mail(bound) => self.serve(attempt.flow, client, *bound).await,
                }
            } => cut,
        };
        // The client has been closed before the engine hears of it, and may take another one between the same ends.
        self.ended(&attempt, cut);
    }

    /// A half whose other half does not come is let go.
    async fn give_up_later(self: Arc<Self>, attempt: Attempt) {
        if timeout(ALONE_MAX, attempt.over()).await.is_err() {
            let ended = self.lock().attempts.end_alone(&attempt);
            if ended.is_some() {
                self.tell(Event::Closed { flow: attempt.flow });
            }
        }
    }

    fn opened(&self, attempt: &Attempt) {
        let mut state = self.lock();
        if state.attempts.opened(attempt) {
            // Under the lock: its end must not be told before.
            self.tell(Event::Opened { flow: attempt.flow });
        }
    }

    fn closed(&self, attempt: &Attempt) {
        let ended = self.lock().attempts.end(attempt);
        if ended.is_some() {
            drop(ended);
            self.tell(Event::Closed { flow: attempt.flow });
        }
    }

    /// It is over; `cut`: before its time.
    fn ended(&self, attempt: &Attempt, cut: Option<wan_core::Reason>) {
        let flow = attempt.flow;
        let Some(entry) = self.lock().attempts.end(attempt) else { return };
        let opened = entry.opened;
        // The client is reset, if it waits.
        drop(entry);
        match cut {
            // A reset before the answer is the client's doing, not the peer's word.
            Some(wan_core::Reason::ConnectionReset | wan_core::Reason::Cancelled) => {}
            Some(why) if !opened => {
                tracing::debug!(%flow, %why, "no stream");
                return self.tell(Event::Refused { flow, why: refusal(why) });
            }
            // It ran its course faster than its answer was noted.
            None if !opened => self.tell(Event::Opened { flow }),
            Some(_) | None => {}
        }
        self.tell(Event::Closed { flow });
    }

    /// Ends what there is for the client of `flow`, with a reset.
    pub(super) fn abort(&self, flow: Flow) {
        let ended = self.lock().attempts.abort(flow);
        drop(ended);
    }
}

/// On the server's side.
impl Carrier {
    /// The connection that was opened early for `flow`, or the node that takes it on. Whatever becomes of it, the
    /// engine hears of its end.
    pub(super) async fn claim(
        self: &Arc<Self>,
        flow: Flow,
        granted: bool,
    ) -> Result<(Ready, Serving), Reason> {
        let Some(upward) = self.upward.get() else { return Err(Reason::NotGranted) };
        let (answer, answered) = oneshot::channel();
        let carrier = Arc::clone(self);
        // Where orders are carried out: whoever waits is known before the next one can come.
        upward.netd.claim(flow, granted, move |claimed| {
            let first = match claimed {
                Claimed::Ready(ready) => Ok((Serving::begin(&carrier, flow, None), First::Ready(ready))),
                Claimed::Wait => {
                    let (waits, later) = oneshot::channel();
                    Ok((Serving::begin(&carrier, flow, Some(waits)), First::Wait(later)))
                }
                Claimed::Refused(why) => Err(why),
            };
            drop(answer.send(first));
        });
        let (serving, first) = answered.await.unwrap_or(Err(Reason::AgentDown))?;
        let ready = match first {
            First::Ready(ready) => ready,
            First::Wait(later) => match timeout(CLAIM_MAX, later).await {
                Ok(ready) => ready.unwrap_or(Err(Reason::Closed))?,
                Err(_) => return Err(Reason::ServerSilent),
            },
        };
        Ok((ready, serving))
    }

    /// The outcome of a claim that waits.
    pub(super) fn claimed(&self, flow: Flow, ready: Result<Ready, Reason>) {
        let waits = {
            let mut state = self.lock();
            match &ready {
                Ok(_) => state.served.get_mut(&flow).and_then(|served| served.waits.take()),
                // The engine has forgotten it already.
                Err(_) => state.served.remove(&flow).and_then(|served| served.waits),
            }
        };
        match waits {
            // Who has gone meanwhile tells it too.
            Some(waits) => drop(waits.send(ready)),
            None if ready.is_ok() => {
                drop(ready);
                self.tell(Event::Closed { flow });
            }
            None => {}
        }
    }

    /// The engine has given up what a peer was promised.
    pub(super) fn abandon(&self, flow: Flow) {
        let served = self.lock().served.remove(&flow);
        drop(served);
    }

    /// Asks for the server's end of a connection that stood before; none where nobody stands on the path.
    pub(super) fn adopt_for_peer(&self, flow: Flow, tell: Tell) -> Option<()> {
        self.upward.get().map(|upward| upward.netd.adopt_for_peer(flow, tell))
    }

    /// A stream that goes on to the next node.
    pub(super) async fn onward(
        &self,
        open: OpenFrame,
        next: engine::Peer,
    ) -> Result<(LinkStream, Bytes), wan_core::Reason> {
        let flow = open.flow;
        let asks = if open.kind == Kind::Origin { open } else { asks(flow) };
        let links = self.links.get().ok_or(wan_core::Reason::NoLink)?;
        let stream = links.open(&self.at(next), asks).await?;
        self.met(next, stream.peer().clone());
        let info = stream.opened().await?;
        self.tell(Event::Opened { flow });
        Ok((stream, info))
    }

    /// Tells the next node that `flow` is given up.
    pub(super) fn abort_onward(&self, flow: Flow, next: engine::Peer, isn: u32) {
        let node = self.lock().peers.get(&next).and_then(|met| met.node.clone());
        if let (Some(links), Some(node)) = (self.links.get(), node) {
            links.notify(Some(&node), &Notice::Abort { flow, isn });
        }
    }
}

/// Why it ended before its time.
async fn splice(stream: LinkStream, mut client: impl AsyncIo) -> Option<wan_core::Reason> {
    let wan::Spliced { sent, received, cut } = wan::splice(stream, &mut client).await;
    tracing::debug!(sent, received, cut = cut.map(wan_core::Reason::word), "carried");
    cut
}

/// The same, without a link.
async fn copy(mut server: Tcp, mut client: impl AsyncIo) -> Option<wan_core::Reason> {
    let copied = copy_bidirectional(&mut client, &mut server).await;
    copied.is_err().then_some(wan_core::Reason::ConnectionReset)
}

/// The answer to a claim.
enum First {
    Ready(Ready),
    Wait(oneshot::Receiver<Result<Ready, Reason>>),
}

fn asks(flow: Flow) -> OpenFrame {
    OpenFrame { flow, class: class(flow), kind: Kind::Carry, spoof: true, server: None }
}

/// How urgent its octets are, by its port.
pub(super) fn class(flow: Flow) -> Class {
    if INTERACTIVE.contains(&flow.server.port()) { Class::Interactive } else { Class::Bulk }
}

/// What people wait for octet by octet: shells, mail, directories. Anything else may be large.
const INTERACTIVE: &[u16] = &[22, 23, 53, 88, 110, 143, 389, 587, 636, 993, 995];
/// A server that says nothing for so long is silent.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// The two halves of a connection come within a round trip of each other.
const ALONE_MAX: Duration = Duration::from_secs(30);
/// Longer than the engine waits for a server.
const CLAIM_MAX: Duration = Duration::from_secs(35);
