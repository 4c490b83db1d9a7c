//! The node on the path between clients and servers: the packet loop, the links to other nodes, and what carries
//! connections between the two.
//!
//! ```text
//!  client ──SYN──► netd (thread) ──open, single──► Carrier ◄──stream── Links ◄── other nodes
//!     └──accepted by the transparent listener────────► │  ──claim──► netd: the connection opened early
//!                                                      └──splice: client ⇄ stream, stream ⇄ server
//! ```
//! Everything is carried as octets.

mod agent;
mod carrier;
mod deflecting;
mod facts;
mod identity;
mod off_path;
mod opener;
mod plan;
mod shown;
mod switch;
mod tcp;
mod view;
mod watchdog;

use crate::{
    api::{DeflectorStatus, Explained, PathStatus},
    config::{Config, network, value::InterfaceName},
    exit::{Exit, Failure},
};
use agent::PathAgent;
use carrier::Carrier;
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
    seam::sink::Nowhere,
};
use discovery_linux::{
    broker::Early,
    deflect::DeflectCounters,
    marks::ALONE,
    netd::{Handle, Netd, NetdSettings},
    queue::{NfQueue, QueueSettings},
    rules::{Instance, Rules, RulesError, forwarding_off},
    socket::{Family, TransparentListener},
};
use off_path::{CONTROL, OffPath};
use opener::{Asked, Opener};
use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering},
    thread,
};
use switch::Switch;
use tokio::net::TcpListener;
use wan::{AllGranted, Links};
use wan_core::Notice;
use watchdog::Beats;

/// See the module's documentation.
pub(crate) struct Path {
    handle: Option<Handle>,
    links: Links,
    carrier: Arc<Carrier>,
    /// None without a place on the path.
    switch: Option<Arc<Switch>>,
    deflecting: Option<Arc<Deflecting>>,
    /// As they are in force, for `explain`.
    ruled: RuleSet,
    first_interface: Option<Ingress>,
    instance: Option<Instance>,
    /// How probe responses name this node: it cannot change while it runs.
    key: KeyHint,
    loop_ended: Mutex<Option<thread::JoinHandle<io::Result<()>>>>,
}

impl Path {
    /// Opens what `config` names; none when the node neither stands on a path nor speaks to others. Inside a tokio
    /// runtime. The rules come last: nothing is taken that could not be carried.
    pub(crate) async fn start(config: &Config) -> Result<Option<Self>, Failure> {
        let Some(link) = &config.link else { return Ok(None) };
        let known = identity::load(config, link)?;
        let carrier = Arc::new(Carrier::default());
        let roles = Arc::new(Roles::default());
        let off_path = config.off_path.as_ref().map(|off_path| Arc::new(OffPath::new(off_path)));
        let stands = config.interception.is_some();
        let opener = Arc::new(Opener::new(Arc::clone(&carrier), link, stands, off_path.clone()));
        let links = Links::new(
            &known.settings,
            opener,
            Arc::new(AllGranted),
            Arc::new(Asked(Arc::clone(&carrier), Arc::clone(&roles))),
            Arc::new(Nowhere),
            Some(Arc::new(facts::Kernel)),
        )
        .map_err(|error| Failure::new(Exit::Usage, error))?;
        carrier.links(links.clone());
        carrier.named(plan::names(link));
        roles.links(links.clone());
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
        let mut path = Self {
            handle: None,
            links,
            carrier,
            switch: None,
            deflecting: None,
            ruled: RuleSet::default(),
            first_interface: None,
            instance: None,
            key: known.key,
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
        let v6_port = v6.as_ref().map(port).transpose()?;
        let plan = plan::plan(interception, config.deflector.as_ref(), port(&v4)?, v6_port)?;
        let addresses = plan::addresses(interception, link).await?;
        let mut settings = NetdSettings::new(addresses, key);
        settings.v6 = v6.is_some();
        settings.here = plan::here(interception).await?;
        settings.codec = plan::codec(interception);
        let queue = NfQueue::open(QueueSettings::handshakes(interception.queue))
            .map_err(|error| plan::needs_rights(format!("the packet queue {}", interception.queue), error))?;
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
            tokio::spawn(deflecting::watch(deflecting));
        }
        let beats = Arc::new(Beats::default());
        let beating = Arc::clone(&beats);
        netd.on_beat(move || {
            beating.packets.fetch_add(1, Ordering::Relaxed);
        });
        self.carrier.handle(handle.clone());
        let ended = thread::Builder::new()
            .name("netd".to_owned())
            .spawn(move || {
                let ended = netd.run();
                if let Err(error) = &ended {
                    tracing::error!(%error, "the packet queue was lost; connections flow past this node: restart it");
                }
                ended
            })
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        for listener in [Some(v4), v6].into_iter().flatten() {
            let listener = std::net::TcpListener::from(OwnedFd::from(listener));
            let listener = TcpListener::from_std(listener).map_err(needs("the transparent listener"))?;
            tokio::spawn(accept(Arc::clone(&self.carrier), listener));
        }
        handle.tell(engine::Event::AgentUp);
        tokio::spawn(carrier::watch_peers(Arc::clone(&self.carrier)));
        for setting in forwarding_off(&plan) {
            tracing::warn!(setting, "is 0: this machine does not forward what it is to stand in the path of");
        }
        self.instance = Some(plan.instance().clone());
        let saved = plan::saved(config, interception.queue);
        let mut rules = Rules::new(plan, saved);
        let installed = tokio::task::spawn_blocking(move || rules.install().map(|backend| (rules, backend)))
            .await
            .map_err(|error| Failure::say(Exit::Bug, error))?;
        let (rules, backend) = installed.map_err(|error| {
            handle.stop();
            Failure::new(Exit::Unavailable, error)
        })?;
        tracing::info!(?backend, rules = interception.rules.len(), "on the path");
        let switch = Arc::new(Switch::new(handle.clone(), rules));
        self.switch = Some(Arc::clone(&switch));
        *lock(&self.loop_ended) = Some(ended);
        self.handle = Some(handle);
        // Who cannot be watched does not stand in the way.
        if let Err(error) = watchdog::start(&beats, &switch) {
            self.stop().await;
            return Err(Failure::io("the system gives no threads", error));
        }
        Ok(())
    }

    /// What can be asked of it.
    pub(crate) async fn status(&self) -> PathStatus {
        let bypassed = self.switch.as_ref().is_some_and(|switch| switch.is_bypassed());
        let mut status =
            view::look(self.handle.as_ref(), self.instance.clone(), bypassed, &self.links, &self.carrier)
                .await;
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
        view::explain(handle, self.ruled.clone(), flow, ingress).await
    }

    /// Takes the rules out of the kernel, or puts them in again: at once, whatever the loop does. What is carried goes on.
    /// `false` where there are none.
    pub(crate) async fn bypass(&self, on: bool) -> Result<bool, Failure> {
        let Some(switch) = self.switch.clone() else { return Ok(false) };
        let done = tokio::task::spawn_blocking(move || switch.bypass(on)).await;
        let done = done.map_err(|error| Failure::say(Exit::Bug, error))?;
        let done = done.map_err(|error| Failure::new(Exit::Unavailable, error))?;
        tracing::warn!(on, "bypass");
        Ok(done)
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

    /// Takes no new connections; those that are carried go on.
    pub(crate) async fn leave(&self) {
        self.switch(Switch::leave).await;
        self.links.leave();
    }

    async fn switch(&self, change: impl FnOnce(&Switch) -> Result<(), RulesError> + Send + 'static) {
        let Some(switch) = self.switch.clone() else { return };
        let changed = tokio::task::spawn_blocking(move || change(&switch)).await;
        if let Ok(Err(error)) = changed {
            tracing::error!(%error, "rules are left behind; the next start removes them");
        }
    }

    /// Ends what is carried.
    pub(crate) async fn stop(&self) {
        self.links.stop();
        self.switch(Switch::remove).await;
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

    /// How many connections are carried.
    pub(crate) fn carried(&self) -> usize {
        self.carrier.carried()
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

/// Descriptors may be scarce for a moment.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mark of connections that no rule may touch.
pub(crate) const UNTOUCHED: u32 = ALONE;
