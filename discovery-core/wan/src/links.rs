//! All links of a node.

use crate::{
    admit::{Asking, Expected, Peers, admit},
    carry::carry,
    facts::TcpFacts,
    gate::{Gate, is_fatal},
    handshake,
    identity::{Authority, BadIdentity, Identity, Presented, key_hint},
    link::{Link, Owner},
    narrow::{Narrow, Place},
    opener::{Grants, StreamOpener, covers, within},
    reachable::reachable,
    roster::Roster,
    socket::Sockets,
    splice::{Spliced, Unsaid, splice_until},
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
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use wan_core::{
    Candidates, Config, Kind, Lane, LaneSet, Notice, OpenFrame, Reason, StreamId, backoff, mutants,
};

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
    /// Where connections to peers get their sockets, if the system's own would not do: rules may have to leave them alone.
    pub sockets: Option<Arc<dyn Sockets>>,
    /// Bounds of each link.
    pub link: Config,
    /// How long a stream waits for a link before it is refused.
    pub patience: Duration,
    /// Whether a probe may name an address of this machine. False, but for tests: it would be this node, or worse.
    pub loopback: bool,
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
    sockets: Option<Arc<dyn Sockets>>,
    link: Config,
    patience: Duration,
    loopback: bool,
}

/// What comes of an attempt, for all who wait for it.
type Dial = watch::Receiver<Option<Result<Arc<Link>, Reason>>>;

pub(crate) struct Inner {
    setup: RwLock<Setup>,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// Locked before `links`, where both are.
    roster: Mutex<Roster>,
    /// One attempt at a time for each node that a probe told of.
    dialling: Mutex<HashMap<(SocketAddr, KeyHint), Dial>>,
    narrow: Mutex<Narrow>,
    opener: Arc<dyn StreamOpener>,
    grants: Arc<dyn Grants>,
    notices: Arc<dyn Sink<(NodeId, Notice)>>,
    candidates: Arc<dyn Sink<(NodeId, Candidates)>>,
    facts: Option<Arc<dyn TcpFacts>>,
    handshakes: Arc<Semaphore>,
    gate: Arc<Gate>,
    random: SystemRandom,
    /// No new links.
    leaving: watch::Sender<bool>,
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
        candidates: Arc<dyn Sink<(NodeId, Candidates)>>,
        facts: Option<Arc<dyn TcpFacts>>,
    ) -> Result<Self, BadIdentity> {
        let setup = setup(settings)?;
        let inner = Arc::new_cyclic(|myself| Inner {
            setup: RwLock::new(setup),
            links: Mutex::default(),
            roster: Mutex::default(),
            dialling: Mutex::default(),
            narrow: Mutex::default(),
            opener,
            grants,
            notices,
            candidates,
            facts,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            gate: Arc::default(),
            random: SystemRandom::new(),
            leaving: watch::Sender::new(false),
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

    /// Takes connections of peers on `listener`, until it fails, or this node leaves: the port is free then.
    ///
    /// # Errors
    /// The listener's, when it can accept nothing any more.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        let mut leaving = self.inner.leaving.subscribe();
        let mut failing = false;
        loop {
            let next = async {
                let permit = self.inner.handshakes.clone().acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(tcp, from)| (permit, tcp, from))
            };
            let accepted = tokio::select! {
                _ = leaving.wait_for(|leaving| *leaving) => return Ok(()),
                accepted = next => accepted,
            };
            let (permit, tcp, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_fatal(&error) => return Err(error),
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "a peer's connection could not be accepted");
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            failing = false;
            let Some(pass) = self.inner.gate.enter(from.ip(), HANDSHAKES_MAX / 4) else {
                tracing::debug!(%from, "too many handshakes from one address");
                continue;
            };
            let inner = self.inner.clone();
            tokio::spawn(async move {
                let met = handshake::accept(&inner, tcp, from).await;
                drop((permit, pass));
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
    pub fn tell_candidates(&self, list: &Candidates) {
        self.inner.all().into_iter().for_each(|link| link.tell_candidates(list.clone()));
    }

    /// How the key of a node begins that there is a link with.
    #[must_use]
    pub fn key_of(&self, node: &NodeId) -> Option<KeyHint> {
        self.inner.roster().key(node)
    }

    /// The node whose key begins so, if there is a link with it.
    #[must_use]
    pub fn whose(&self, key: KeyHint) -> Option<NodeId> {
        self.inner.roster().whose(key).cloned()
    }

    /// Whether a stream to `peer` could be opened without waiting for a link.
    #[must_use]
    pub fn is_up(&self, peer: &Peer) -> bool {
        self.ready(peer).is_some()
    }

    /// Whether a stream that this peer offers can be counted on before it has said so: there is a link, and nothing says
    /// that it may serve some servers only.
    #[must_use]
    pub fn is_sure(&self, peer: &Peer) -> bool {
        let authority = self.ready(peer).and_then(|link| link.authority());
        authority.is_some_and(|authority| authority.prefixes.is_none())
    }

    /// The link to `peer`, if it takes streams at once.
    fn ready(&self, peer: &Peer) -> Option<Arc<Link>> {
        let link = match peer {
            Peer::Node(node) => self.inner.lock().get(node).cloned(),
            Peer::At(address, key) => self.inner.at(*address, *key),
        };
        link.filter(|link| link.is_current() && link.is_ready(Lane::Interactive))
    }

    /// All peers that there is a link with, or that are configured.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        let mut all: Vec<_> = self.inner.all().iter().map(status).collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// Takes no more streams, connections or links; the streams that stand go on.
    pub fn leave(&self) {
        self.inner.leaving.send_replace(true);
        self.inner.all().into_iter().for_each(|link| link.leave());
    }

    /// Ends every link.
    pub fn stop(&self) {
        self.inner.leaving.send_replace(true);
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
        sockets: settings.sockets.clone(),
        link: settings.link,
        patience: settings.patience,
        loopback: settings.loopback,
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

    pub(crate) fn sockets(&self) -> Option<Arc<dyn Sockets>> {
        self.setup.read().unwrap_or_else(PoisonError::into_inner).sockets.clone()
    }

    /// A connection that stood where we dialled met silence.
    pub(crate) fn fell_silent(&self, place: Place) {
        tracing::debug!(place = %place.at, small = place.narrow, "silence; a connection there keeps its packets small");
        self.narrow.lock().unwrap_or_else(PoisonError::into_inner).note(place, Instant::now().into_std());
    }

    /// The largest segment of a connection to `place`, where the line's word is not enough.
    pub(crate) fn segment_max(&self, place: SocketAddr) -> Option<u32> {
        self.narrow
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .segment_max(place, Instant::now().into_std())
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

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link to `node`, made if there is none, and seen to from then on.
    ///
    /// # Errors
    /// There is none, and this node leaves.
    fn link_of(self: &Arc<Self>, node: &NodeId) -> Result<Arc<Link>, Reason> {
        let mut links = self.lock();
        if let Some(link) = links.get(node).filter(|link| link.is_current()) {
            return Ok(link.clone());
        }
        // With the lock: `leave` tells all that there are, after it has set this.
        if *self.leaving.borrow() {
            return Err(Reason::ShuttingDown);
        }
        let setup = self.setup();
        let owner: Arc<dyn Owner> = self.clone();
        let link = Arc::new(Link::new(setup.link, &setup.node, node.clone(), self.random(), owner));
        links.insert(node.clone(), link.clone());
        drop(links);
        tokio::spawn(self.clone().keep(link.clone()));
        Ok(link)
    }

    /// The link to who has proved to be `presented`, if it may be a peer.
    pub(crate) fn admit(
        self: &Arc<Self>,
        setup: &Setup,
        expected: &Expected,
        presented: &Presented,
        authority: &Authority,
    ) -> Result<Arc<Link>, Reason> {
        // Locked until the link stands, or two authorities could vouch for one node at once.
        let mut roster = self.roster();
        // What is trusted no more binds nobody.
        let bound = roster.authority(&presented.node).filter(|name| setup.tls.trusts(name));
        let asked = Asking { presented, authority: &authority.name, bound };
        if let Err(reason) = admit(&setup.node, &setup.peers, expected, &asked) {
            tracing::info!(node = %presented.node, authority = %authority.name, %reason, "a peer is not admitted");
            return Err(reason);
        }
        let link = self.link_of(&presented.node)?;
        roster.met(&presented.node, &authority.name, key_hint(&presented.spki));
        Ok(link)
    }

    /// The link to whom a probe told of: wherever it was found, its key says who it is.
    fn at(&self, address: SocketAddr, key: KeyHint) -> Option<Arc<Link>> {
        let roster = self.roster();
        let (whose, learnt) = (roster.whose(key).cloned(), roster.at(address, key).cloned());
        drop(roster);
        let links = self.lock();
        let current = |node: NodeId| links.get(&node).filter(|link| link.is_current());
        // One without connections is redialled where it was learnt only.
        let attached = whose.and_then(current).filter(|link| link.attached() != LaneSet::NONE);
        attached.or_else(|| learnt.and_then(current)).cloned()
    }

    fn meet_known(self: &Arc<Self>) {
        let peers = self.setup().peers;
        for (node, spec) in peers.known.iter().filter(|(node, _)| !peers.revoked.contains(node)) {
            if !spec.addresses.is_empty() || spec.fallback.is_some() {
                // Not when this node leaves.
                drop(self.link_of(node));
            }
        }
    }

    async fn find(self: &Arc<Self>, peer: &Peer) -> Result<Arc<Link>, Reason> {
        match peer {
            Peer::Node(node) => {
                let setup = self.setup();
                let known = setup.peers.known.get(node);
                if known.is_some_and(|spec| !spec.addresses.is_empty() || spec.fallback.is_some()) {
                    return self.link_of(node);
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
        if !reachable(address, self.setup().loopback) {
            return Err(Reason::PeerUnreachable);
        }
        let mut dial = self.dial_learnt(address, key)?;
        let done = dial.wait_for(Option::is_some).await.map_err(|_| Reason::Closed)?;
        done.clone().unwrap_or(Err(Reason::Closed))
    }

    /// The attempt that goes on, or a new one. Whoever waits may give up: the next one finds the link.
    fn dial_learnt(self: &Arc<Self>, address: SocketAddr, key: KeyHint) -> Result<Dial, Reason> {
        let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dial) = dialling.get(&(address, key)) {
            return Ok(dial.clone());
        }
        // One that has just ended.
        if let Some(link) = self.at(address, key) {
            return Ok(watch::channel(Some(Ok(link))).1);
        }
        // Whoever can forge a probe can name addresses and keys: not more than these are tried at once.
        let same = dialling.keys().filter(|(other, _)| *other == address).count();
        if dialling.len() >= DIALS_MAX || same >= DIALS_EACH_MAX {
            return Err(Reason::Busy);
        }
        let (told, dial) = watch::channel(None);
        dialling.insert((address, key), dial.clone());
        drop(dialling);
        let inner = self.clone();
        tokio::spawn(async move {
            let expected = Expected { node: None, key: Some(key) };
            let lanes = LaneSet::only(Lane::Interactive);
            let met = timeout(DIAL_MAX, handshake::dial(&inner, address, &expected, lanes)).await;
            let link = match met.unwrap_or(Err(Reason::PeerTimedOut)) {
                Ok(met) => {
                    let link = met.link.clone();
                    inner.roster().learn(address, key, &link.node);
                    inner.run(met);
                    link.changed.notify_waiters();
                    Ok(link)
                }
                // It has dialled us at the same time, and its connection is the one that stays.
                Err(Reason::Duplicate) => inner.of_key(key).ok_or(Reason::Duplicate),
                Err(reason) => Err(reason),
            };
            inner.dialling.lock().unwrap_or_else(PoisonError::into_inner).remove(&(address, key));
            told.send_replace(Some(link));
        });
        Ok(dial)
    }

    fn of_key(&self, key: KeyHint) -> Option<Arc<Link>> {
        let node = self.roster().whose(key).cloned()?;
        self.lock().get(&node).filter(|link| link.is_current()).cloned()
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
        (self.roster().places(node), None)
    }

    /// Sees to a link until it ends: dials what is missing, gives up what has been away for too long.
    async fn keep(self: Arc<Self>, link: Arc<Link>) {
        let mut failed = 0;
        let mut refused: Option<Instant> = None;
        let mut dialled = None;
        let mut alone = Instant::now();
        let tick = || {
            link.tick();
            if link.is_gone(self.setup().link.gone_max) && !mutants::on("link-gone-is-silent") {
                link.close(Reason::LinkLost);
            }
        };
        loop {
            tick();
            if link.is_closed() {
                break;
            }
            if !link.is_current() {
                // Its last streams end with its connections. Whoever comes in its place is met as another.
                self.forget(&link);
                self.meet_known();
                while !link.is_at_rest() && !link.is_closed() {
                    sleep(TICK).await;
                    tick();
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
                    Ok(()) if stood => (failed, refused) = (0, None),
                    Ok(()) | Err(Reason::Duplicate) => failed += 1,
                    Err(reason) if reason.is_final() && !link.is_at_rest() => link.close(reason),
                    Err(reason) => {
                        link.fail(reason);
                        failed += 1;
                        refused = refused
                            .filter(|_| reason == Reason::PeerRefused)
                            .or_else(|| (reason == Reason::PeerRefused).then(Instant::now));
                        // Nobody listens where the peer did, again and again: its process is gone, and what it held too.
                        let gone = refused.is_some_and(|since| since.elapsed() > REFUSED_MAX);
                        if gone && LaneSet::ALL.without(link.attached()) == LaneSet::ALL {
                            link.close(Reason::PeerRefused);
                        }
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
        self.meet_known();
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut roster = self.roster();
        let mut links = self.lock();
        // What is known of the node is its successor's, if there is one.
        if links.get(&link.node).is_some_and(|now| Arc::ptr_eq(now, link)) {
            links.remove(&link.node);
            roster.forget(&link.node);
        }
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
        let (server, unsaid) = (open.flow.server, unsaid(open.kind));
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
                    let Spliced { sent, received, cut } = splice_until(stream, &mut *opened.io, unsaid).await;
                    let cut = cut.map(Reason::word);
                    tracing::debug!(peer = %link.node, %server, sent, received, cut, "a peer's stream ended");
                } else {
                    opened.io.reset_on_close();
                    link.refuse(id, Reason::Cancelled);
                }
            }
            Err(reason) => link.refuse(id, reason),
        }
    }
}

/// Mail sessions know the end of a session by what was said; a server that hangs up behind its last word is common.
fn unsaid(kind: Kind) -> Unsaid {
    match kind {
        Kind::Origin => Unsaid::End,
        Kind::Carry | Kind::Claim | Kind::Adopt => Unsaid::Cut,
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

    /// What its authority may not serve, a peer cannot give to others either.
    fn candidates(&self, node: &NodeId, mut list: Candidates) {
        let authority = self.lock().get(node).and_then(|link| link.authority());
        let Some(authority) = authority else { return };
        list.networks.retain(|network| covers(authority.prefixes.as_deref(), network));
        self.candidates.put((node.clone(), list));
    }
}

/// Handshakes at once: each costs half a millisecond of a core, and whoever is let in costs more.
const HANDSHAKES_MAX: usize = 64;
/// Addresses that were learnt and are tried at once.
const DIALS_MAX: usize = 64;
/// Of those, at one address: more nodes are seldom behind one.
const DIALS_EACH_MAX: usize = 4;
/// One of those: five round trips of a satellite. A forged address holds its place for no longer.
const DIAL_MAX: Duration = Duration::from_secs(3);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that stood for so long is dialled again at once.
const STOOD_MIN: Duration = Duration::from_secs(2);
/// Refusals for so long, three or four in a row, are no accident of the way. A node that is only starting anew has lost its
/// streams all the same, and who waits for one of them is to hear of it within a second.
const REFUSED_MAX: Duration = Duration::from_millis(300);
/// How often a link at rest is looked after.
const TICK: Duration = Duration::from_secs(1);
/// A peer that only dials and has been away for so long is forgotten; its streams are long since.
const FORGET_AFTER: Duration = Duration::from_secs(300);
/// As after so many failures.
const REMEET_STEP: u32 = 4;
