//! The node on the path between clients and servers: the packet loop in a process of its own ([`netd`]), the links to other
//! nodes, and what carries connections between the two.
//!
//! ```text
//!  client ──SYN──► netd (process) ──open, single──► Carrier ◄──stream── Links ◄── other nodes
//!     └──accepted by the transparent listener────────► │  ──claim──► netd: the connection opened early
//!                                                      └──splice: client ⇄ stream, stream ⇄ server
//! ```
//! What carries them has no right to any of the sockets it uses: it is given them ([`upward`]).
//!
//! Sessions with the mail servers of the configuration end here (`carrier::mail`); anything else is carried as octets.

mod adopting;
mod agent;
mod carrier;
mod carry;
mod deflecting;
mod facts;
mod identity;
pub(crate) mod netd;
mod off_path;
mod opener;
mod origin;
mod plan;
mod pulse;
mod questions;
mod shown;
mod tcp;
mod telling;
pub(crate) mod upward;
mod view;

use crate::{
    api::{Explained, PathStatus},
    config::{Config, network, value::InterfaceName},
    exit::{Exit, Failure},
    node::mail::Mail,
};
use bytes::Bytes;
use carrier::Carrier;
use carry::Carrying;
use discovery_core::{
    deflector::control::Control,
    dry::Dry,
    engine,
    engine::Engine,
    flow::{Flow, Ingress},
    id::NodeId,
    probe::KeyHint,
    seam::sink::Sink,
};
use discovery_linux::{
    broker::SocketBroker,
    queue::{NfQueue, PacketQueue},
    rules::{Listen, Plan, Rules},
    socket::{Family, TransparentListener},
    worker,
};
use off_path::{CONTROL, OffPath};
use opener::{Asked, Opener};
use pulse::Pulse;
use questions::{Answer, LoopExplained, Question, Questions};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use telling::Telling;
use tokio::net::TcpListener;
use upward::Upward;
use wan::{AllGranted, Links};
use wan_core::{Candidates, Notice};

/// See the module's documentation.
pub(crate) struct Path {
    links: Links,
    carrier: Arc<Carrier>,
    /// None without a place on the path.
    upward: Option<Upward>,
    pulse: OnceLock<Pulse>,
    /// For clients that come to an address of this node.
    carrying: Carrying,
    telling: Arc<Telling>,
    /// How probe responses name this node: it cannot change while it runs.
    key: KeyHint,
}

impl Path {
    /// Opens what `config` names; none when the node neither stands on a path nor speaks to others. Inside a tokio
    /// runtime. The rules are the supervisor's and come last ([`Path::show`]): nothing is taken that could not be carried.
    pub(crate) async fn start(
        config: &Config,
        mail: &Arc<Mail>,
        upward: Option<&Upward>,
    ) -> Result<Option<Self>, Failure> {
        let Some(link) = &config.link else { return Ok(None) };
        let known = identity::load(config, link, sockets(upward))?;
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
        let listener = listen(link.listen, upward).await?;
        tracing::info!(address = %link.listen, node = %config.node.id, "the link listens");
        let serving = links.clone();
        tokio::spawn(async move {
            if let Err(error) = serving.serve(listener).await {
                tracing::error!(%error, "the link takes no more connections; restart the node");
            }
        });
        let carrying = Carrying::start(&config.carries, &links, upward).await?;
        let path = Self {
            links,
            carrier,
            upward: upward.cloned(),
            pulse: OnceLock::new(),
            carrying,
            telling: Arc::clone(&telling),
            key: known.key,
        };
        if let Some(upward) = upward {
            if config.deflector.is_some() {
                let _once = roles.deflector.set(Arc::clone(&upward.questions));
                telling.deflecting(Arc::clone(&upward.questions));
            }
            path.stand(upward).await?;
        }
        Ok(Some(path))
    }

    async fn stand(&self, upward: &Upward) -> Result<(), Failure> {
        let failed = |error| Failure::io("the transparent listener", error);
        for family in [Family::V4, Family::V6] {
            let listener = match upward.socket(move |broker| broker.listener(family)).await {
                Ok(listener) => std::net::TcpListener::from(listener),
                // A machine without IPv6 has none of its traffic either.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            let listener = TcpListener::from_std(listener).map_err(failed)?;
            tokio::spawn(accept(Arc::clone(&self.carrier), listener));
        }
        self.carrier.upward(upward.clone());
        upward.obey(&self.carrier, &self.telling).map_err(|error| Failure::io("netd", error))?;
        tokio::spawn(carrier::watch_peers(Arc::clone(&self.carrier)));
        Ok(())
    }

    /// It can carry what is taken: says so, and shows from now on that it turns.
    pub(crate) fn show(&self) -> Result<(), Failure> {
        let Some(upward) = &self.upward else { return Ok(()) };
        upward.ready();
        let netd = Arc::clone(&upward.netd);
        let pulse = Pulse::start(move || netd.notice(worker::Notice::Beat));
        let _once = self.pulse.set(pulse.map_err(|error| Failure::io("the system gives no threads", error))?);
        Ok(())
    }

    /// What can be asked of it.
    pub(crate) async fn status(&self) -> PathStatus {
        let mut status = match &self.upward {
            None => PathStatus { state: "link-only".to_owned(), ..PathStatus::default() },
            Some(upward) => match upward.questions.ask(&Question::Status).await {
                Some(Answer::Status(mut status, peers)) => {
                    view::named(&mut status.candidates, &peers, &self.carrier);
                    *status
                }
                Some(
                    Answer::Explained(_)
                    | Answer::Say(_)
                    | Answer::Proxies(_)
                    | Answer::Counts(_)
                    | Answer::Unclaimed(_),
                )
                | None => PathStatus { state: view::HANGING.to_owned(), ..PathStatus::default() },
            },
        };
        status.carried = u64::try_from(self.carried()).unwrap_or(u64::MAX);
        status.peers = self.links.status().into_iter().map(view::peer).collect();
        status
    }

    /// What would become of a connection; none when nobody stands on the path, or the loop hangs.
    pub(crate) async fn explain(&self, flow: Flow) -> Option<Explained> {
        let Flow { client, server } = flow;
        match self.upward.as_ref()?.questions.ask(&Question::Explain { client, server }).await? {
            Answer::Explained(explained) => Some(named(*explained?, &self.carrier, flow)),
            Answer::Status(..)
            | Answer::Say(_)
            | Answer::Proxies(_)
            | Answer::Counts(_)
            | Answer::Unclaimed(_) => None,
        }
    }

    /// Takes on who may be a peer, and a new certificate of the same key. The rest needs a restart.
    pub(crate) fn reload(&self, config: &Config) -> Result<(), Failure> {
        let Some(link) = &config.link else { return Ok(()) };
        let known = identity::load(config, link, sockets(self.upward.as_ref()))?;
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
        let Some(upward) = &self.upward else { return };
        while let Some(Answer::Unclaimed(1..)) = upward.questions.ask(&Question::Unclaimed).await
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
    pub(crate) fn stop(&self) {
        self.links.stop();
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

/// With what the node knows of it beside the packet loop.
fn named(explained: LoopExplained, carrier: &Carrier, flow: Flow) -> Explained {
    let LoopExplained { mut explained, peers, ends_here } = explained;
    view::named(&mut explained.candidates, &peers, carrier);
    if ends_here {
        explained.mail = carrier.mail_names(flow);
    }
    explained
}

/// What a node is beside a place on the path: a deflector, or the proxy of one.
#[derive(Default)]
struct Roles {
    links: OnceLock<Links>,
    /// Where a deflector's table is.
    deflector: OnceLock<Arc<Questions>>,
    off_path: OnceLock<Arc<OffPath>>,
}

impl Roles {
    fn links(&self, links: Links) {
        let _once = self.links.set(links);
    }

    /// A word from a peer, beside its streams.
    fn hear(&self, from: NodeId, octets: Bytes) {
        if let Some(off_path) = self.off_path.get()
            && let Some(control) = Control::decode(&octets)
        {
            off_path.hear(&from, control);
        }
        if let (Some(deflector), Some(links)) = (self.deflector.get(), self.links.get()) {
            let (deflector, links) = (Arc::clone(deflector), links.clone());
            let heard = Question::Heard { from: from.to_string(), octets: octets.to_vec() };
            tokio::spawn(async move {
                if let Some(Answer::Say(Some(octets))) = deflector.ask(&heard).await {
                    links.notify(Some(&from), &Notice::Other { kind: CONTROL, octets: octets.into() });
                }
            });
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

fn sockets(upward: Option<&Upward>) -> Option<Arc<dyn wan::Sockets>> {
    upward.map(|upward| Arc::new(upward.clone()) as Arc<_>)
}

async fn listen(address: SocketAddr, upward: Option<&Upward>) -> Result<TcpListener, Failure> {
    upward::listener(upward, address).await.map_err(|error| {
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
/// Descriptors may be scarce for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
