//! The node on the path between clients and servers: the packet loop, the links to other nodes, and what carries
//! connections between the two.
//!
//! ```text
//!  client ──SYN──► netd (thread) ──open, single──► Carrier ◄──stream── Links ◄── other nodes
//!     └──accepted by the transparent listener────────► │  ──claim──► netd: the connection opened early
//!                                                      └──splice: client ⇄ stream, stream ⇄ server
//! ```
//! Sessions with the mail servers of the configuration end here (`carrier::mail`); anything else is carried as octets.

mod adopting;
mod agent;
mod carrier;
mod carry;
mod deflecting;
mod facts;
mod identity;
mod off_path;
mod opener;
mod origin;
mod persisted;
mod plan;
mod pulse;
mod shown;
mod tcp;
mod telling;
mod view;

use crate::{
    api::{DeflectorStatus, Explained, PathStatus},
    config::{Config, network, value::InterfaceName},
    exit::{Exit, Failure},
    node::mail::Mail,
    supervisor::rights,
};
use agent::PathAgent;
use carrier::Carrier;
use carry::Carrying;
use deflecting::Deflecting;
use discovery_core::{
    deflector::control::Control,
    dry::Dry,
    engine,
    engine::Engine,
    flow::{Flow, Ingress},
    id::NodeId,
    probe::KeyHint,
    rule::RuleSet,
    seam::sink::Sink,
};
use discovery_linux::{
    broker::Early,
    deflect::DeflectCounters,
    marks::ALONE,
    netd::{Handle, Netd, NetdSettings},
    queue::{NfQueue, PacketQueue},
    rules::{Instance, Listen, Plan, Rules},
    socket::{Family, TransparentListener},
    supervisor::{Supervised, Watched},
};
use off_path::{CONTROL, OffPath};
use opener::{Asked, Opener};
use persisted::Persisted;
use pulse::Pulse;
use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use telling::Telling;
use tokio::net::TcpListener;
use wan::{AllGranted, Links};
use wan_core::{Candidates, Notice};

/// See the module's documentation.
pub(crate) struct Path {
    handle: Option<Handle>,
    links: Links,
    carrier: Arc<Carrier>,
    /// None without a place on the path.
    stands: Option<Stands>,
    /// Whether packets have stopped coming, as far as the engine was told.
    bypassed: AtomicBool,
    deflecting: Option<Arc<Deflecting>>,
    /// For clients that come to an address of this node.
    carrying: Carrying,
    telling: Arc<Telling>,
    /// As they are in force, for `explain`.
    ruled: RuleSet,
    first_interface: Option<Ingress>,
    instance: Option<Instance>,
    /// How probe responses name this node: it cannot change while it runs.
    key: KeyHint,
    /// What outlives the process; none without a place on the path.
    persisted: Option<Arc<Persisted>>,
    loop_ended: Mutex<Option<thread::JoinHandle<io::Result<()>>>>,
}

/// What a supervisor is shown.
struct Stands {
    listen: Listen,
    pulse: Arc<Pulse>,
}

impl Path {
    /// Opens what `config` names; none when the node neither stands on a path nor speaks to others. Inside a tokio
    /// runtime. The rules are the supervisor's and come last ([`Path::show`]): nothing is taken that could not be carried.
    pub(crate) async fn start(config: &Config, mail: &Arc<Mail>) -> Result<Option<Self>, Failure> {
        let Some(link) = &config.link else { return Ok(None) };
        let known = identity::load(config, link)?;
        let carrier = Arc::new(Carrier::default());
        let roles = Arc::new(Roles::default());
        let off_path = config.off_path.as_ref().map(|off_path| Arc::new(OffPath::new(off_path)));
        let stands = config.interception.is_some();
        let opener =
            Arc::new(Opener::new(Arc::clone(&carrier), link, stands, Arc::clone(mail), off_path.clone()));
        let deflector = config.off_path.as_ref().map(|off_path| off_path.deflector.clone());
        let telling = Arc::new(Telling::new(Arc::clone(&carrier), link, known.key, deflector));
        let links = Links::new(
            &known.settings,
            opener,
            Arc::new(AllGranted),
            Arc::new(Asked(Arc::clone(&carrier), Arc::clone(&roles))),
            Arc::clone(&telling) as Arc<dyn Sink<(NodeId, Candidates)>>,
            Some(Arc::new(facts::Kernel)),
        )
        .map_err(|error| Failure::new(Exit::Usage, error))?;
        carrier.links(links.clone());
        carrier.named(plan::names(link));
        carrier.mail(Arc::clone(mail));
        roles.links(links.clone());
        telling.start(links.clone());
        if let Some(off_path) = off_path {
            let _once = roles.off_path.set(Arc::clone(&off_path));
            off_path.start(links.clone(), known.key, link.listen.port()).await?;
        }
        let listener = listen(link.listen).await?;
        tracing::info!(address = %link.listen, node = %config.node.id, "the link listens");
        let serving = links.clone();
        tokio::spawn(async move {
            if let Err(error) = serving.serve(listener).await {
                tracing::error!(%error, "the link takes no more connections; restart the node");
            }
        });
        let carrying = Carrying::start(&config.carries, &links).await?;
        let mut path = Self {
            handle: None,
            links,
            carrier,
            stands: None,
            bypassed: AtomicBool::new(false),
            deflecting: None,
            carrying,
            telling,
            ruled: RuleSet::default(),
            first_interface: None,
            instance: None,
            key: known.key,
            persisted: None,
            loop_ended: Mutex::default(),
        };
        if let Some(interception) = &config.interception {
            path.stand(config, interception, link, known.key, &roles).await?;
        }
        Ok(Some(path))
    }

    async fn stand(
        &mut self,
        config: &Config,
        interception: &network::Interception,
        link: &network::Link,
        key: KeyHint,
        roles: &Roles,
    ) -> Result<(), Failure> {
        let needs = |what: &'static str| move |error| plan::needs_rights(what, error);
        let v4 = TransparentListener::bind(Family::V4, 0).map_err(needs("the transparent listener"))?;
        // A machine without IPv6 has none of its traffic either.
        let v6 = TransparentListener::bind(Family::V6, 0).ok();
        let port =
            |listener: &TransparentListener| listener.port().map_err(needs("the transparent listener"));
        let listen = Listen { v4: port(&v4)?, v6: v6.as_ref().map(port).transpose()? };
        self.instance = Some(plan::plan(interception, config.deflector.as_ref(), listen)?.instance().clone());
        let addresses = plan::addresses(interception, link).await?;
        let mut settings = NetdSettings::new(addresses, key);
        settings.v6 = v6.is_some();
        settings.here = plan::here(interception).await?;
        settings.codec = plan::codec(interception);
        settings.ports = plan::ports(interception);
        let queued = plan::queue(interception, config.deflector.is_some());
        settings.batch = (queued.batch_packets, queued.copy_octets);
        let queue = open_queue(interception, config.deflector.is_some())?;
        let engine = Engine::new(plan::engine(interception, link));
        let agent = PathAgent::new(Arc::clone(&self.carrier), tokio::runtime::Handle::current());
        let (mut netd, handle) =
            Netd::new(engine, queue, agent, Early::default(), settings).map_err(needs("raw sockets"))?;
        self.ruled = plan::rules(interception).await?;
        self.first_interface = interception.interfaces.first().and_then(plan::number);
        handle.rules(self.ruled.clone());
        if let Some(deflector) = &config.deflector {
            let (rules, ingress) = (self.ruled.clone(), self.first_interface.unwrap_or(Ingress(0)));
            let codec = plan::codec(interception);
            let deflecting = Deflecting::new(deflector, codec, v6.is_some(), rules, ingress);
            let deflecting = Arc::new(deflecting.map_err(needs("raw sockets"))?);
            netd.deflect(deflecting.deflect.clone());
            let _once = roles.deflecting.set(Arc::clone(&deflecting));
            self.deflecting = Some(Arc::clone(&deflecting));
            self.telling.deflecting(Arc::clone(&deflecting));
            tokio::spawn(deflecting::watch(deflecting));
        }
        let pulse = Pulse::start();
        let beating = Arc::clone(&pulse);
        netd.on_beat(move || beating.beat());
        self.carrier.handle(handle.clone());
        let ended = thread::Builder::new()
            .name("netd".to_owned())
            .spawn(move || {
                rights::as_supervisor();
                let ended = netd.run();
                if let Err(error) = &ended {
                    tracing::error!(%error, "the packet queue was lost; connections flow past this node until it is started anew");
                }
                ended
            })
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        for listener in [Some(v4), v6].into_iter().flatten() {
            let listener = std::net::TcpListener::from(OwnedFd::from(listener));
            let listener = TcpListener::from_std(listener).map_err(needs("the transparent listener"))?;
            tokio::spawn(accept(Arc::clone(&self.carrier), listener));
        }
        self.persisted = Some(Persisted::begin(&config.node.state_dir, &handle, &self.carrier).await);
        handle.tell(engine::Event::AgentUp);
        tokio::spawn(carrier::watch_peers(Arc::clone(&self.carrier)));
        self.stands = Some(Stands { listen, pulse });
        *lock(&self.loop_ended) = Some(ended);
        self.handle = Some(handle);
        Ok(())
    }

    /// It can carry what is taken: shows its supervisor where it listens, and from now on that it turns. `false` without a
    /// place on the path.
    pub(crate) fn show(&self, supervised: &Supervised) -> bool {
        let Some(Stands { listen, pulse }) = &self.stands else { return false };
        // Whoever waits for its wishes learns of its end.
        let (Watched::Yes | Watched::Orphan) = pulse.show(supervised.clone(), *listen);
        true
    }

    /// What can be asked of it.
    pub(crate) async fn status(&self) -> PathStatus {
        let bypassed = self.bypassed.load(Ordering::Relaxed);
        let (handle, instance) = (self.handle.as_ref(), self.instance.clone());
        let mut status = view::look(handle, instance, bypassed, &self.links, &self.carrier).await;
        status.forgotten_files = self.persisted.as_ref().map_or(0, |persisted| persisted.forgotten());
        status.deflector = self.deflecting.as_ref().map(|deflecting| {
            let DeflectCounters { deflected, past, rules: (clients, servers), ready } =
                deflecting.deflect.counters();
            let n = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            DeflectorStatus { deflected, past, ready: n(ready), clients: n(clients), servers: n(servers) }
        });
        status
    }

    /// What would become of a connection; none when nobody stands on the path, or the loop hangs.
    pub(crate) async fn explain(&self, flow: Flow) -> Option<Explained> {
        let handle = self.handle.as_ref()?;
        let ingress = self.first_interface.unwrap_or(Ingress(0));
        view::explain(handle, self.ruled.clone(), &self.carrier, flow, ingress).await
    }

    /// Packets stop coming, or come again. Waits until the loop has heard it, if it turns: it then orders nothing more that
    /// the rules would not deliver.
    pub(crate) fn bypass(&self, on: bool) {
        let Some(handle) = &self.handle else { return };
        self.bypassed.store(on, Ordering::Relaxed);
        self.telling.aside(on);
        handle.tell(engine::Event::Bypass { on });
        let (heard, hears) = mpsc::channel();
        handle.with(move |_, _, _| {
            let _gone = heard.send(());
        });
        let _hangs = hears.recv_timeout(HEARS_WITHIN);
    }

    /// Takes on who may be a peer, and a new certificate of the same key. The rest needs a restart.
    pub(crate) fn reload(&self, config: &Config) -> Result<(), Failure> {
        let Some(link) = &config.link else { return Ok(()) };
        let known = identity::load(config, link)?;
        if known.key != self.key {
            let what = "the identity of this node has another key, which it takes on at the next start only";
            return Err(Failure::say(Exit::Usage, what));
        }
        self.links.update(&known.settings).map_err(|error| Failure::new(Exit::Usage, error))
    }

    /// Takes no new connections of peers; those that are carried go on. The rules have gone by then. What peers were promised
    /// they may claim, until `by` at the longest.
    pub(crate) async fn leave(&self, by: tokio::time::Instant) {
        self.carrying.leave();
        self.telling.leave();
        self.promises_kept(by.min(tokio::time::Instant::now() + PROMISED_MAX)).await;
        self.links.leave();
    }

    /// Waits for peers to claim what they were promised.
    async fn promises_kept(&self, by: tokio::time::Instant) {
        let Some(handle) = &self.handle else { return };
        while view::ask(handle, |engine, _| engine.unclaimed()).await.is_some_and(|open| open > 0)
            && tokio::time::Instant::now() < by
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until nothing is carried, until `by` at the longest.
    pub(crate) async fn drained(&self, by: tokio::time::Instant) {
        while self.carried() > 0 && tokio::time::Instant::now() < by {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends what is carried.
    pub(crate) async fn stop(&self) {
        self.links.stop();
        self.stop_taking().await;
    }

    /// Gives up the packet queue; what is carried goes on.
    pub(crate) async fn stop_taking(&self) {
        if let Some(persisted) = &self.persisted {
            persisted.save().await;
        }
        if let Some(handle) = &self.handle {
            handle.stop();
        }
        let ended = lock(&self.loop_ended).take();
        if let Some(ended) = ended {
            let ended = tokio::task::spawn_blocking(move || ended.join()).await;
            if let Ok(Ok(Err(error))) = ended {
                tracing::error!(%error, "the packet queue was lost");
            }
        }
    }

    /// Gives up the packet queue without a runtime, and without waiting for a loop that hangs.
    pub(crate) fn free_queue(&self) {
        if let Some(handle) = &self.handle {
            handle.stop();
        }
        let ended = lock(&self.loop_ended).take();
        let until = std::time::Instant::now() + HEARS_WITHIN;
        while ended.as_ref().is_some_and(|ended| !ended.is_finished()) && std::time::Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many connections are carried.
    pub(crate) fn carried(&self) -> usize {
        self.carrier.carried() + self.carrying.carried()
    }
}

/// An engine, as this configuration would make it, for packets that went by some other time.
pub(crate) async fn dry(config: &Config) -> Result<Dry, Failure> {
    let (Some(interception), Some(link)) = (&config.interception, &config.link) else {
        let what = "the configuration has no [interception], so nothing would be looked at";
        return Err(Failure::say(Exit::Usage, what));
    };
    // The file says where packets were seen no more than the machine it is read on; the first interface is theirs.
    let number = |name: &InterfaceName| interception.interfaces.iter().position(|other| other == name);
    let ingress =
        |name: &InterfaceName| Ingress(number(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX));
    let rules = plan::rules_with(interception, |name, _| ingress(name)).await?;
    let engine = Engine::new(plan::engine(interception, link));
    let peers: Vec<engine::Peer> = plan::names(link).into_keys().collect();
    let start = std::time::Instant::now();
    Ok(Dry::new(engine, rules, plan::codec(interception), Ingress(0), &peers, start))
}

/// What a node is beside a place on the path: a deflector, or the proxy of one.
#[derive(Default)]
struct Roles {
    links: OnceLock<Links>,
    deflecting: OnceLock<Arc<Deflecting>>,
    off_path: OnceLock<Arc<OffPath>>,
}

impl Roles {
    fn links(&self, links: Links) {
        let _once = self.links.set(links);
    }

    /// A word from a peer, beside its streams.
    fn hear(&self, from: &NodeId, control: Control) {
        if let Some(off_path) = self.off_path.get() {
            off_path.hear(from, control);
        }
        if let (Some(deflecting), Some(links)) = (self.deflecting.get(), self.links.get())
            && let Some(answer) = deflecting.hear(from, control)
        {
            let notice = Notice::Other { kind: CONTROL, octets: answer.encode().into() };
            links.notify(Some(from), &notice);
        }
    }
}

/// The rules that lead to a node of `config` which listens there.
pub(crate) fn rules(
    config: &Config,
    interception: &network::Interception,
    listen: Listen,
) -> Result<Plan, Failure> {
    plan::plan(interception, config.deflector.as_ref(), listen)
}

/// What of rules is in the kernel for `config`, whoever put it there; `listen` tells nothing but whether there is IPv6.
pub(crate) fn standing_rules(
    config: &Config,
    interception: &network::Interception,
) -> Result<Rules, Failure> {
    // No rule is made of these ports: each node says its own before rules come.
    let nobody = Listen { v4: 1, v6: TransparentListener::bind(Family::V6, 0).is_ok().then_some(1) };
    Ok(Rules::new(rules(config, interception, nobody)?, plan::saved(config, interception.queue)))
}

/// Whether a node could stand on the path now: it has the rights, and nobody reads its queue.
pub(crate) fn could_stand(interception: &network::Interception) -> Result<(), Failure> {
    TransparentListener::bind(Family::V4, 0)
        .map_err(|error| plan::needs_rights("the transparent listener", error))?;
    let queue = open_queue(interception, false)?;
    // What waited in it goes on.
    queue.close().map_err(|error| Failure::io("the packet queue", error))
}

fn open_queue(interception: &network::Interception, deflects: bool) -> Result<NfQueue, Failure> {
    // The kernel says the same to who has no right and to who comes second.
    let what = format!("the packet queue {}, which one process can have at a time", interception.queue);
    NfQueue::open(plan::queue(interception, deflects)).map_err(|error| plan::needs_rights(what, error))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::io(
            format!("the link cannot listen on {address}; [link] listen names another address"),
            error,
        )
    })
}

/// The address that an intercepted connection was meant for is its own, here.
async fn accept(carrier: Arc<Carrier>, listener: TcpListener) {
    loop {
        let accepted = listener.accept().await.and_then(|(client, from)| {
            let flow = Flow { client: from, server: client.local_addr()? };
            Ok((flow, client))
        });
        match accepted {
            Ok((flow, client)) => carrier.accepted(flow, client),
            Err(error) => {
                tracing::warn!(%error, "an intercepted client could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The notice by which a node says that connections are to go past it (one octet, 1), or no longer (0). Beside
/// [`CONTROL`].
const ASIDE: u64 = 2;

/// An early connection waits no longer for its peer, and a loop that is busy is late.
const PROMISED_MAX: Duration = Duration::from_secs(2);
/// A loop that hangs hears nothing, and orders nothing either.
const HEARS_WITHIN: Duration = Duration::from_millis(150);
/// Descriptors may be scarce for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mark of connections that no rule may touch.
pub(crate) const UNTOUCHED: u32 = ALONE;
