//! All links of a node.

use crate::{
    admit::{Expected, Peers},
    carry::carry,
    facts::TcpFacts,
    handshake,
    identity::{Authority, BadIdentity, Identity, Presented},
    link::{Link, Owner},
    opener::{Grants, StreamOpener, within},
    splice::splice,
    status::LinkStatus,
    stream::LinkStream,
    trust::Tls,
};
use discovery_core::{id::NodeId, probe::KeyHint, seam::sink::Sink};
use ring::rand::{SecureRandom, SystemRandom};
use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex as AsyncMutex, Semaphore},
    time::{Instant, sleep, timeout_at},
};
use wan_core::{Candidate, Config, Lane, LaneSet, Notice, OpenFrame, Reason, StreamId, backoff, mutants};

/// A configured peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSpec {
    /// Where it listens; tried in this order. Empty: it dials.
    pub addresses: Vec<SocketAddr>,
    /// Where it takes one connection for everything, when three cannot be had.
    pub fallback: Option<SocketAddr>,
    /// SHA-256 of its public key.
    pub pin: Option<[u8; 32]>,
}

/// Whom a stream is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A node by its id: a configured one, or one that has a link.
    Node(NodeId),
    /// What a probe told: where, and how its key begins.
    At(SocketAddr, KeyHint),
}

/// What a node's links are made from. Values that can change while it runs, by [`Links::update`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who this node is.
    pub identity: Identity,
    /// Who vouches for nodes: this node's own authority first.
    pub authorities: Vec<Authority>,
    /// Who may be a peer.
    pub peers: Peers,
    /// The mark of connections to peers, so that rules leave them alone.
    pub mark: Option<u32>,
    /// Bounds of each link.
    pub link: Config,
    /// How long a stream waits for a link before it is refused.
    pub patience: Duration,
}

/// All links of a node.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("node", &self.inner.setup().node).finish_non_exhaustive()
    }
}

/// What is derived from the settings.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) node: NodeId,
    pub(crate) tls: Tls,
    pub(crate) peers: Arc<Peers>,
    mark: Option<u32>,
    link: Config,
    patience: Duration,
}

pub(crate) struct Inner {
    setup: RwLock<Setup>,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// Whom an address that was learnt turned out to be.
    learnt: Mutex<HashMap<(SocketAddr, KeyHint), NodeId>>,
    /// One attempt at a time for each address that was learnt.
    dialling: Mutex<HashMap<SocketAddr, Arc<AsyncMutex<()>>>>,
    opener: Arc<dyn StreamOpener>,
    grants: Arc<dyn Grants>,
    notices: Arc<dyn Sink<(NodeId, Notice)>>,
    candidates: Arc<dyn Sink<(NodeId, Vec<Candidate>)>>,
    facts: Option<Arc<dyn TcpFacts>>,
    handshakes: Arc<Semaphore>,
    random: SystemRandom,
    stopped: AtomicBool,
    myself: std::sync::Weak<Inner>,
}

impl Links {
    /// Links for a node. Configured peers are dialled at once, and stay connected. Within a tokio runtime.
    ///
    /// # Errors
    /// The identity or an authority cannot be used.
    pub fn new(
        settings: &Settings,
        opener: Arc<dyn StreamOpener>,
        grants: Arc<dyn Grants>,
        notices: Arc<dyn Sink<(NodeId, Notice)>>,
        candidates: Arc<dyn Sink<(NodeId, Vec<Candidate>)>>,
        facts: Option<Arc<dyn TcpFacts>>,
    ) -> Result<Self, BadIdentity> {
        let setup = setup(settings)?;
        let inner = Arc::new_cyclic(|myself| Inner {
            setup: RwLock::new(setup),
            links: Mutex::default(),
            learnt: Mutex::default(),
            dialling: Mutex::default(),
            opener,
            grants,
            notices,
            candidates,
            facts,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            random: SystemRandom::new(),
            stopped: AtomicBool::new(false),
            myself: myself.clone(),
        });
        inner.meet_known();
        Ok(Self { inner })
    }

    /// Takes other settings. Links whose peers are no longer admitted end; new connections use the new identity.
    ///
    /// # Errors
    /// As [`Links::new`]; the old settings stay.
    pub fn update(&self, settings: &Settings) -> Result<(), BadIdentity> {
        let setup = setup(settings)?;
        let peers = setup.peers.clone();
        *self.inner.setup.write().unwrap_or_else(PoisonError::into_inner) = setup;
        for link in self.inner.all() {
            if peers.revoked.contains(&link.node) {
                link.close(Reason::Revoked);
            } else if !peers.known.is_empty() && !peers.known.contains_key(&link.node) {
                link.close(Reason::UnknownPeer);
            }
        }
        self.inner.meet_known();
        Ok(())
    }

    /// Takes connections of peers on `listener`, until it fails.
    ///
    /// # Errors
    /// The listener's.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        loop {
            let permit = self.inner.handshakes.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                // Too many open files: somebody will close one.
                Err(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let inner = self.inner.clone();
            tokio::spawn(async move {
                let met = handshake::accept(&inner, tcp, from).await;
                drop(permit);
                match met {
                    Ok(met) => inner.run(met),
                    Err(reason) => tracing::debug!(%from, %reason, "no link with who connected"),
                }
            });
        }
    }

    /// Opens a stream. It may be used at once: what is written goes out with the question, and
    /// [`LinkStream::opened`] tells the answer. A peer that has no link is connected first.
    ///
    /// # Errors
    /// Why there is no link in time, or the peer takes no streams.
    pub async fn open(&self, peer: &Peer, open: OpenFrame) -> Result<LinkStream, Reason> {
        let link = self.find_ready(peer, Lane::from(open.class)).await?;
        let authority = link.authority().ok_or(Reason::NoLink)?;
        within(authority.prefixes.as_deref(), &open)?;
        link.open(open)
    }

    /// Connects to a peer that a probe told of, and keeps the link warm. More than one call for an address is one attempt.
    ///
    /// # Errors
    /// Why there is no link.
    pub async fn connect(&self, peer: &Peer) -> Result<NodeId, Reason> {
        self.find_ready(peer, Lane::Interactive).await.map(|link| link.node.clone())
    }

    async fn find_ready(&self, peer: &Peer, lane: Lane) -> Result<Arc<Link>, Reason> {
        let deadline = Instant::now() + self.inner.setup().patience;
        let link = match timeout_at(deadline, self.inner.find(peer)).await {
            Ok(link) => link?,
            Err(_) => return Err(Reason::PeerTimedOut),
        };
        match timeout_at(deadline, ready(&link, lane)).await {
            Ok(()) if !link.is_closed() => Ok(link),
            Ok(()) | Err(_) => Err(link.last().unwrap_or(Reason::NoLink)),
        }
    }

    /// Sends a message beside the streams to every peer, or to one.
    pub fn notify(&self, to: Option<&NodeId>, notice: &Notice) {
        let meant = |link: &Arc<Link>| to.is_none_or(|to| *to == link.node);
        self.inner.all().into_iter().filter(meant).for_each(|link| link.notify(notice.clone()));
    }

    /// Tells every peer who could serve in this node's place.
    pub fn tell_candidates(&self, list: &[Candidate]) {
        self.inner.all().into_iter().for_each(|link| link.tell_candidates(list.to_vec()));
    }

    /// Whether a stream to `peer` could be opened without waiting for a link.
    #[must_use]
    pub fn is_up(&self, peer: &Peer) -> bool {
        let link = match peer {
            Peer::Node(node) => self.inner.lock().get(node).cloned(),
            Peer::At(address, key) => self.inner.at(*address, *key),
        };
        link.is_some_and(|link| link.is_ready(Lane::Interactive))
    }

    /// All peers that there is a link with, or that are configured.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        let mut all: Vec<_> = self.inner.all().iter().map(status).collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// Takes no more streams; those that stand go on.
    pub fn leave(&self) {
        self.inner.all().into_iter().for_each(|link| link.leave());
    }

    /// Ends every link.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
        self.inner.all().into_iter().for_each(|link| link.close(Reason::ShuttingDown));
    }
}

fn status(link: &Arc<Link>) -> LinkStatus {
    LinkStatus {
        node: link.node.clone(),
        authority: link.authority().map(|authority| authority.name),
        lanes: link.lanes(),
        counts: link.counts(),
        last: link.last(),
    }
}

fn setup(settings: &Settings) -> Result<Setup, BadIdentity> {
    let presented = Presented::of(&settings.identity.chain).map_err(|_| BadIdentity::NoNode)?;
    Ok(Setup {
        node: presented.node,
        tls: Tls::new(&settings.identity, &settings.authorities)?,
        peers: Arc::new(settings.peers.clone()),
        mark: settings.mark,
        link: settings.link,
        patience: settings.patience,
    })
}

/// Until the lane of a link carries streams, or the link is closed.
async fn ready(link: &Arc<Link>, lane: Lane) {
    loop {
        let mut changed = std::pin::pin!(link.changed.notified());
        // Before the look, so that nothing is missed between the two.
        changed.as_mut().enable();
        if link.is_ready(lane) || link.is_closed() {
            return;
        }
        changed.await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn setup(&self) -> Setup {
        self.setup.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn mark(&self) -> Option<u32> {
        self.setup.read().unwrap_or_else(PoisonError::into_inner).mark
    }

    pub(crate) fn facts(&self) -> Option<Arc<dyn TcpFacts>> {
        self.facts.clone()
    }

    fn random(&self) -> u64 {
        let mut octets = [0; 8];
        // Without randomness TLS does not work either.
        let _ = self.random.fill(&mut octets);
        u64::from_be_bytes(octets)
    }

    fn all(&self) -> Vec<Arc<Link>> {
        self.lock().values().cloned().collect()
    }

    /// The link to `node`, made if there is none, and seen to from then on.
    pub(crate) fn link_of(self: &Arc<Self>, node: &NodeId) -> Arc<Link> {
        let mut links = self.lock();
        if let Some(link) = links.get(node).filter(|link| link.is_current()) {
            return link.clone();
        }
        let setup = self.setup();
        let owner: Arc<dyn Owner> = self.clone();
        let link = Arc::new(Link::new(setup.link, &setup.node, node.clone(), self.random(), owner));
        links.insert(node.clone(), link.clone());
        drop(links);
        tokio::spawn(self.clone().keep(link.clone()));
        link
    }

    fn at(&self, address: SocketAddr, key: KeyHint) -> Option<Arc<Link>> {
        let learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        let node = learnt.get(&(address, key)).cloned()?;
        drop(learnt);
        self.lock().get(&node).filter(|link| link.is_current()).cloned()
    }

    fn meet_known(self: &Arc<Self>) {
        let peers = self.setup().peers;
        for (node, spec) in peers.known.iter().filter(|(node, _)| !peers.revoked.contains(node)) {
            if !spec.addresses.is_empty() || spec.fallback.is_some() {
                self.link_of(node);
            }
        }
    }

    async fn find(self: &Arc<Self>, peer: &Peer) -> Result<Arc<Link>, Reason> {
        match peer {
            Peer::Node(node) => {
                let setup = self.setup();
                let known = setup.peers.known.get(node);
                if known.is_some_and(|spec| !spec.addresses.is_empty() || spec.fallback.is_some()) {
                    return Ok(self.link_of(node));
                }
                self.lock().get(node).cloned().ok_or(Reason::NoLink)
            }
            Peer::At(address, key) => self.find_at(*address, *key).await,
        }
    }

    async fn find_at(self: &Arc<Self>, address: SocketAddr, key: KeyHint) -> Result<Arc<Link>, Reason> {
        if let Some(link) = self.at(address, key) {
            return Ok(link);
        }
        let turn = {
            let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever can forge a probe can name addresses: not more than these are tried at once.
            dialling.retain(|_, turn| Arc::strong_count(turn) > 1);
            if dialling.len() >= DIALS_MAX && !dialling.contains_key(&address) {
                return Err(Reason::Busy);
            }
            dialling.entry(address).or_default().clone()
        };
        let _turn = turn.lock().await;
        if let Some(link) = self.at(address, key) {
            return Ok(link);
        }
        let expected = Expected { node: None, key: Some(key) };
        let met = handshake::dial(self, address, &expected, LaneSet::only(Lane::Interactive)).await?;
        let link = met.link.clone();
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner).insert((address, key), link.node.clone());
        self.run(met);
        link.changed.notify_waiters();
        Ok(link)
    }

    /// Moves the octets of a connection, in a task of its own.
    pub(crate) fn run(self: &Arc<Self>, met: handshake::Met) {
        let inner = self.clone();
        tokio::spawn(async move {
            let (link, lanes) = (met.link.clone(), met.lanes);
            tracing::debug!(peer = %link.node, lanes = lanes.bits(), "connected");
            let reason = carry(inner, met).await;
            tracing::debug!(peer = %link.node, lanes = lanes.bits(), %reason, "a connection of a link ended");
        });
    }

    /// Where a peer is dialled, and where everything goes over one connection.
    fn places(&self, node: &NodeId) -> (Vec<SocketAddr>, Option<SocketAddr>) {
        let setup = self.setup();
        if let Some(spec) = setup.peers.known.get(node) {
            return (spec.addresses.clone(), spec.fallback);
        }
        let learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        (learnt.iter().filter(|(_, at)| *at == node).map(|((address, _), _)| *address).collect(), None)
    }

    /// Sees to a link until it ends: dials what is missing, gives up what has been away for too long.
    async fn keep(self: Arc<Self>, link: Arc<Link>) {
        let mut failed = 0;
        let mut dialled = None;
        let mut alone = Instant::now();
        loop {
            link.tick();
            if link.is_closed() {
                break;
            }
            if !link.is_current() {
                // Its last streams end with its connections. Whoever comes in its place is met as another.
                self.forget(&link);
                self.meet_known();
                while !link.is_at_rest() && !link.is_closed() {
                    sleep(TICK).await;
                    link.tick();
                }
                return;
            }
            let missing = LaneSet::ALL.without(link.attached());
            let (places, fallback) = self.places(&link.node);
            if !link.is_at_rest() || self.setup().peers.known.contains_key(&link.node) {
                alone = Instant::now();
            } else if alone.elapsed() > FORGET_AFTER {
                break;
            }
            let pause = if missing.is_empty() || places.is_empty() && fallback.is_none() {
                TICK
            } else {
                // One that breaks as soon as it stands is as good as none.
                let stood = dialled.is_none_or(|at: Instant| at.elapsed() > STOOD_MIN);
                dialled = Some(Instant::now());
                match self.dial_missing(&link, missing, &places, fallback, failed).await {
                    Ok(()) if stood => failed = 0,
                    Ok(()) | Err(Reason::Duplicate) => failed += 1,
                    Err(reason) if reason.is_final() && !link.is_at_rest() => link.close(reason),
                    // Nobody listens where the peer did, again and again: its process is gone, and what it held too.
                    Err(Reason::PeerRefused) if missing == LaneSet::ALL && failed >= REFUSED_MAX => {
                        link.close(Reason::PeerRefused);
                    }
                    Err(reason) => {
                        link.fail(reason);
                        failed += 1;
                    }
                }
                backoff::wait(failed.max(1), self.random())
            };
            tokio::select! {
                () = link.changed.notified(), if failed == 0 => {}
                () = sleep(pause) => {}
            }
        }
        self.forget(&link);
        // A configured peer that ended the link, or broke its rules, is met again: after a while, as a new link.
        sleep(backoff::wait(REMEET_STEP, self.random())).await;
        if !self.stopped.load(Ordering::Relaxed) {
            self.meet_known();
        }
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut links = self.lock();
        if links.get(&link.node).is_some_and(|now| Arc::ptr_eq(now, link)) {
            links.remove(&link.node);
        }
        drop(links);
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, node| *node != link.node);
    }

    async fn dial_missing(
        self: &Arc<Self>,
        link: &Arc<Link>,
        missing: LaneSet,
        places: &[SocketAddr],
        fallback: Option<SocketAddr>,
        failed: u32,
    ) -> Result<(), Reason> {
        let expected = Expected { node: Some(link.node.clone()), key: None };
        let mut last = Err(Reason::NoLink);
        // The next address at each failure.
        let turn = usize::try_from(failed).unwrap_or(0);
        if let Some(place) = places.get(turn % places.len().max(1)) {
            let mut dials = tokio::task::JoinSet::new();
            for lane in missing.iter() {
                let (inner, place, expected) = (self.clone(), *place, expected.clone());
                dials.spawn(async move {
                    let met = handshake::dial(&inner, place, &expected, LaneSet::only(lane)).await?;
                    inner.run(met);
                    Ok(())
                });
            }
            last = Ok(());
            while let Some(dialled) = dials.join_next().await {
                if let Err(reason) = dialled.unwrap_or(Err(Reason::Closed)) {
                    last = Err(reason);
                }
            }
        }
        let elsewhere = matches!(
            last,
            Err(Reason::NoLink | Reason::PeerRefused | Reason::PeerUnreachable | Reason::PeerTimedOut)
        );
        // Not at the first failure: a node that is just starting refuses too.
        if let Some(place) = fallback
            && elsewhere
            && missing == LaneSet::ALL
            && (failed > 0 || places.is_empty())
        {
            let met = handshake::dial(self, place, &expected, LaneSet::ALL).await?;
            self.run(met);
            return Ok(());
        }
        last
    }

    async fn serve_stream(self: Arc<Self>, link: Arc<Link>, id: StreamId, open: OpenFrame) {
        let allowed = link
            .authority()
            .ok_or(Reason::NotGranted)
            .and_then(|authority| within(authority.prefixes.as_deref(), &open))
            .and_then(|()| match mutants::on("link-grants-unasked") {
                true => Ok(()),
                false => self.grants.may_open(&link.node, &open),
            });
        let opened = match allowed {
            // Whoever asks may give up first; what was begun for him ends with it.
            Ok(()) => tokio::select! {
                opened = self.opener.open(link.node.clone(), open) => opened,
                reason = link.given_up(id) => Err(reason),
            },
            Err(reason) => Err(reason),
        };
        match opened {
            Ok(mut opened) => {
                if let Ok(stream) = link.accept(id, opened.info) {
                    splice(stream, &mut *opened.io).await;
                } else {
                    opened.io.reset_on_close();
                    link.refuse(id, Reason::Cancelled);
                }
            }
            Err(reason) => link.refuse(id, reason),
        }
    }
}

impl Owner for Inner {
    fn incoming(&self, link: &Arc<Link>, id: StreamId, open: OpenFrame) {
        let Some(inner) = self.myself.upgrade() else { return };
        tokio::spawn(inner.serve_stream(link.clone(), id, open));
    }

    fn notice(&self, node: &NodeId, notice: Notice) {
        self.notices.put((node.clone(), notice));
    }

    fn candidates(&self, node: &NodeId, list: Vec<Candidate>) {
        self.candidates.put((node.clone(), list));
    }
}

/// Handshakes at once: each costs half a millisecond of a core, and whoever is let in costs more.
const HANDSHAKES_MAX: usize = 64;
/// Addresses that were learnt and are tried at once.
const DIALS_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that stood for so long is dialled again at once.
const STOOD_MIN: Duration = Duration::from_secs(2);
/// So many refusals may be those of a node that starts.
const REFUSED_MAX: u32 = 2;
/// How often a link at rest is looked after.
const TICK: Duration = Duration::from_secs(1);
/// A peer that only dials and has been away for so long is forgotten; its streams are long since.
const FORGET_AFTER: Duration = Duration::from_secs(300);
/// As after so many failures.
const REMEET_STEP: u32 = 4;
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
