//! The place on the path: the packet loop in its thread, and what can be asked of it.

use super::{super::deflecting::Deflecting, persisted::Persisted};
use crate::{
    api::{DeflectorStatus, PathStatus},
    config::{Config, network::Interception},
    exit::Failure,
    path::{
        deflecting, identity, open_queue, plan,
        questions::{Answer, Key, Offered, Question},
        view,
    },
    supervisor::{rights, user},
};
use discovery_core::{
    deflector::control::Control,
    engine::{Engine, Event, Offer, Peer, Told},
    flow::{Flow, Ingress},
    id::NodeId,
    pmt::Prefix,
    probe::KeyHint,
    rule::RuleSet,
};
use discovery_linux::{
    deflect::DeflectCounters,
    netd::{Handle, Netd, NetdSettings},
    queue::PacketQueue,
    rules::{Instance, Listen},
    worker::{RemoteAgent, Wishes},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// See the module's documentation.
pub(super) struct Place {
    handle: Handle,
    /// Whether packets have stopped coming, as far as the engine was told.
    bypassed: AtomicBool,
    deflecting: Option<Arc<Deflecting>>,
    /// As they are in force, for `explain`.
    ruled: RuleSet,
    first_interface: Option<Ingress>,
    instance: Instance,
    /// What outlives the process.
    persisted: Arc<Persisted>,
    loop_ended: Mutex<Option<thread::JoinHandle<io::Result<()>>>>,
}

impl Place {
    /// Opens the queue, and begins to turn. Nothing comes before the rules do.
    pub(super) async fn take(
        config: &Config,
        interception: &Interception,
        listen: Listen,
        agent: RemoteAgent,
        node: &Wishes,
    ) -> Result<Self, Failure> {
        let needs = |what: &'static str| move |error| plan::needs_rights(what, error);
        let Some(link) = &config.link else {
            return Err(Failure::say(crate::exit::Exit::Bug, "a place on the path without a link"));
        };
        let key = identity::load(config, link, None)?.key;
        let instance = plan::plan(interception, config.deflector.as_ref(), listen)?.instance().clone();
        let mut settings = NetdSettings::new(plan::addresses(interception, link).await?, key);
        settings.v6 = listen.v6.is_some();
        settings.here = plan::here(interception).await?;
        settings.codec = plan::codec(interception);
        settings.ports = plan::ports(interception);
        let queued = plan::queue(interception, config.deflector.is_some());
        settings.batch = (queued.batch_packets, queued.copy_octets);
        let v6 = settings.v6;
        let queue = open_queue(interception, config.deflector.is_some())?;
        let engine = Engine::new(plan::engine(interception, link));
        let (mut netd, handle) = Netd::new(engine, queue, agent, settings).map_err(needs("raw sockets"))?;
        let lifeline = node.lifeline().map_err(needs("the channel to the node"))?;
        netd.watch_agent(lifeline).map_err(needs("the channel to the node"))?;
        let ruled = plan::rules(interception).await?;
        let first_interface = interception.interfaces.first().and_then(plan::number);
        handle.rules(ruled.clone());
        let deflecting = match &config.deflector {
            None => None,
            Some(deflector) => {
                let ingress = first_interface.unwrap_or(Ingress(0));
                let codec = plan::codec(interception);
                let deflecting = Deflecting::new(deflector, codec, v6, ruled.clone(), ingress);
                let deflecting = Arc::new(deflecting.map_err(needs("raw sockets"))?);
                netd.deflect(deflecting.deflect.clone());
                tokio::spawn(deflecting::watch(Arc::clone(&deflecting)));
                Some(deflecting)
            }
        };
        let loop_ended = begin(netd)?;
        let meets = node.clone();
        let keeps = user::netd_dir(&config.node);
        let persisted = Persisted::begin(&keeps, &handle, move |peer| meets.meet(peer)).await;
        Ok(Self {
            handle,
            bypassed: AtomicBool::new(false),
            deflecting,
            ruled,
            first_interface,
            instance,
            persisted,
            loop_ended: Mutex::new(Some(loop_ended)),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Packets stop coming, or come again. Waits until the loop has heard it, if it turns: it then orders nothing more that
    /// the rules would not deliver.
    pub(super) fn bypass(&self, on: bool) {
        self.bypassed.store(on, Ordering::Relaxed);
        self.handle.tell(Event::Bypass { on });
        let (heard, hears) = mpsc::channel();
        self.handle.with(move |_, _, _| {
            let _gone = heard.send(());
        });
        let _hangs = hears.recv_timeout(HEARS_WITHIN);
    }

    /// Gives up the packet queue, and keeps what was learnt. What is carried goes on.
    pub(super) async fn leave(&self) {
        let ended = self.lock().take();
        let Some(ended) = ended else { return };
        self.persisted.save().await;
        self.handle.stop();
        let ended = tokio::task::spawn_blocking(move || ended.join()).await;
        if let Ok(Ok(Err(error))) = ended {
            tracing::error!(%error, "the packet queue was lost");
        }
    }

    /// Gives up the packet queue without a runtime, and without waiting for a loop that hangs.
    pub(super) fn free_queue(&self) {
        self.handle.stop();
        let ended = self.lock().take();
        let until = std::time::Instant::now() + HEARS_WITHIN;
        while ended.as_ref().is_some_and(|ended| !ended.is_finished()) && std::time::Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the node asks.
    pub(super) async fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Status => {
                let (status, peers) = self.status().await;
                Answer::Status(Box::new(status), peers)
            }
            Question::Explain { client, server } => {
                let ingress = self.first_interface.unwrap_or(Ingress(0));
                let flow = Flow { client, server };
                let explained = view::explain(&self.handle, self.ruled.clone(), flow, ingress).await;
                Answer::Explained(explained.map(Box::new))
            }
            Question::Heard { from, octets } => Answer::Say(self.hear(&from, &octets)),
            Question::Proxies => {
                Answer::Proxies(self.deflecting.as_ref().map(|d| d.told()).unwrap_or_default())
            }
            Question::Told { tellers, networks, offers } => {
                Answer::Counts(self.told(&tellers, &networks, &offers).await)
            }
            Question::Unclaimed => {
                let unclaimed = view::ask(&self.handle, |engine, _| engine.unclaimed()).await;
                Answer::Unclaimed(unclaimed.unwrap_or_default())
            }
        }
    }

    fn hear(&self, from: &str, octets: &[u8]) -> Option<Vec<u8>> {
        let (from, control) = (NodeId::new(from).ok()?, Control::decode(octets)?);
        self.deflecting.as_ref()?.hear(&from, control).map(|answer| answer.encode())
    }

    /// Whether it matters whom a peer tells of; the engine has heard it. No stranger makes a node dial.
    async fn told(&self, tellers: &[Key], networks: &[(IpAddr, u8)], offers: &[Offered]) -> bool {
        let tellers: Vec<KeyHint> = tellers.iter().take(TELLERS_MAX).copied().map(KeyHint).collect();
        let networks: Vec<Prefix> =
            networks.iter().map(|(network, length)| Prefix::new(*network, *length)).collect();
        let offers: Vec<Offer> = offers
            .iter()
            .map(|offered| Offer {
                peer: Peer { link: offered.link, key: KeyHint(offered.key) },
                rank: offered.rank,
                load: offered.load,
                able: offered.able,
            })
            .collect();
        let told = view::ask(&self.handle, move |engine, now| {
            let until = now.mono + TOLD_FOR;
            for teller in &tellers {
                engine.told(*teller, Told { networks: networks.clone(), offers: offers.clone(), until });
            }
            tellers.iter().any(|teller| engine.counts(now, *teller, &networks))
        });
        told.await.unwrap_or(false)
    }

    async fn status(&self) -> (PathStatus, Vec<(SocketAddr, Key)>) {
        let bypassed = self.bypassed.load(Ordering::Relaxed);
        let (mut status, peers) = view::look(&self.handle, self.instance.clone(), bypassed).await;
        status.forgotten_files = self.persisted.forgotten();
        status.deflector = self.deflecting.as_ref().map(|deflecting| {
            let DeflectCounters { deflected, past, rules: (clients, servers), ready } =
                deflecting.deflect.counters();
            let n = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            DeflectorStatus { deflected, past, ready: n(ready), clients: n(clients), servers: n(servers) }
        });
        (status, peers)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<thread::JoinHandle<io::Result<()>>>> {
        self.loop_ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin<Q>(netd: Netd<Q, RemoteAgent>) -> Result<thread::JoinHandle<io::Result<()>>, Failure>
where
    Q: PacketQueue + Send + 'static,
{
    let turn = move || {
        rights::as_supervisor();
        let ended = netd.run();
        if let Err(error) = &ended {
            tracing::error!(%error, "the packet queue was lost; connections flow past this node until it is started anew");
        }
        ended
    };
    let turning = thread::Builder::new().name("netd".to_owned()).spawn(turn);
    turning.map_err(|error| Failure::io("the system gives no threads", error))
}

/// A loop that hangs hears nothing, and orders nothing either.
const HEARS_WITHIN: Duration = Duration::from_millis(150);
/// A list is told every second.
const TOLD_FOR: Duration = Duration::from_secs(10);
/// A node has few names.
const TELLERS_MAX: usize = 16;
