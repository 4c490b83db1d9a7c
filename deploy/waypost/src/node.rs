//! A running node: doors, the way to the servers, one handler for all sessions, and what of it an administrator can ask.

mod door;
pub(crate) mod mail;
pub(crate) mod origins;

use crate::{
    config::{self, Config, value::Encryption},
    exit::{Exit, Failure},
    front::Shown,
    keying::OrganisationKey,
    path::{Path, upward::Upward},
    prefetch::Prefetch,
    run::Ended,
    storage,
};
use cep::{house::House, keeper, plain::Plain, rules};
use discovery_core::{id::ServerId, seam::sink::Sink};
use door::Door;
use epc::{
    handler::{Drain, Handler, Limits, NoCatalog, ServerTerms, metrics::Metrics, roster::Roster},
    intake::{FrontTls, IntakeCounts},
    origin::{DirectOrigins, OriginServer, OriginTls, ParkCounts, ParkTerms},
    store::Store,
    tls::roots::Trust,
};
use imap_core::{catalog::Catalog, preload::Preload, retained::Handed};
use mail::{Mail, MailServer};
use origins::Origins;
use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::Path as FilePath,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// How long sessions get to come to rest when the node ends.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// What a session may take beyond that for its last octets.
const DRAIN_CLOSE: Duration = Duration::from_secs(5);

/// A node that runs.
pub(crate) struct Node {
    handler: Arc<Handler>,
    store: Option<Arc<Store>>,
    house: House,
    /// `None` when it is off, or could not be opened.
    prefetch: Option<Prefetch>,
    origins: Arc<Origins>,
    keying: Arc<OrganisationKey>,
    drain: watch::Sender<Drain>,
    started: Instant,
    served: Mutex<Served>,
    path: Option<Arc<Path>>,
    mail: Arc<Mail>,
}

/// What a reload exchanges.
struct Served {
    config: Config,
    /// Whether there is a store.
    cache: bool,
    terms: HashMap<ServerId, Arc<ServerTerms>>,
    fronts: HashMap<ServerId, Arc<FrontTls>>,
    doors: Vec<Door>,
    /// Who gives out reserved ports.
    upward: Option<Upward>,
}

/// A door as `status` shows it.
pub(crate) struct DoorFacts {
    pub(crate) address: SocketAddr,
    pub(crate) server: ServerId,
    pub(crate) tls: Encryption,
    pub(crate) counts: Arc<IntakeCounts>,
}

impl Node {
    /// Opens everything that `config` names; nothing is served before all of it is there. Inside a tokio runtime.
    /// `upward`: of a node without rights, on the path.
    pub(crate) async fn start(config: &Config, upward: Option<&Upward>) -> Result<Self, Failure> {
        make_dir(&config.node.state_dir)?;
        let keying = Arc::new(OrganisationKey::open(&config.node.user_key_file)?);
        let origins = Arc::new(Origins::new(parking(config)?));
        let store = if config.serves_mail() { storage::open(config)? } else { None };
        let catalog: Arc<dyn Catalog> = match &store {
            Some(store) => Arc::clone(store) as Arc<_>,
            None => Arc::new(NoCatalog),
        };
        let prefetch = Prefetch::open(config, &keying);
        let sustain = &config.sustain;
        let house = House::new(
            keeper::Limits {
                absolute: sustain.absolute,
                idle: sustain.idle,
                size_max: sustain.size_max.0,
                line_rate: sustain.line_rate.0,
                ..keeper::Limits::default()
            },
            rules::Terms {
                lane: sustain.lane,
                user_connections_max: usize::try_from(sustain.user_connections_max).unwrap_or(usize::MAX),
                per_server_max: usize::try_from(sustain.per_server_max).unwrap_or(usize::MAX),
            },
            Arc::clone(&catalog),
            match prefetch.as_ref().map(|prefetch| prefetch.plans().clone()) {
                Some(plans) => Arc::new(move |account| plans.for_session(account.server.clone())),
                None => Arc::new(|_| Box::new(Plain::default()) as Box<dyn Preload>),
            },
        );
        let handler = Handler::new(
            Arc::clone(&origins) as Arc<_>,
            catalog,
            Arc::clone(&keying) as Arc<_>,
            Limits::default(),
        );
        let handler = handler.with_keeper(Arc::new(house.clone()));
        let handler = match prefetch.as_ref().map(|prefetch| prefetch.plans().clone()) {
            Some(plans) => handler.with_preloads(Arc::new(move |server| plans.for_session(server.clone()))),
            None => handler,
        };
        let handler = Arc::new(handler);
        let (drain, draining) = watch::channel(Drain::Serving);
        let mut served = Served {
            config: config.clone(),
            cache: store.is_some(),
            terms: HashMap::new(),
            fronts: HashMap::new(),
            doors: Vec::new(),
            upward: upward.cloned(),
        };
        for (server, shown) in shown(config)? {
            served.fronts.insert(server, shown.front()?);
        }
        served.renew_terms(config);
        for listener in &config.listeners {
            served.open(config, listener, &handler, draining.clone())?;
        }
        let mail = Arc::new(Mail::new(Arc::clone(&handler), drain.clone(), Arc::clone(&origins)));
        served.renew_mail(&mail);
        mail.look_up().await;
        tokio::spawn(mail::look_up_again_and_again(Arc::downgrade(&mail)));
        let path = Path::start(config, &mail, upward).await?.map(Arc::new);
        Ok(Self {
            path,
            mail,
            handler,
            store,
            house,
            prefetch,
            origins,
            keying,
            drain,
            started: Instant::now(),
            served: Mutex::new(served),
        })
    }

    /// Takes on `config` where that is possible while sessions run: servers, certificates, listeners. Nothing is changed
    /// unless all that it names can be read; what needs a restart is said.
    pub(crate) async fn reload(&self, config: &Config) -> Result<(), Failure> {
        let origins = parking(config)?;
        let shown = shown(config)?;
        if let Some(path) = &self.path {
            path.reload(config)?;
        }
        let leaving = {
            let mut served = self.served();
            let old = std::mem::replace(&mut served.config, config.clone());
            say_what_needs_a_restart(&old, config);
            self.origins.replace(origins);
            for (server, shown) in shown {
                match served.fronts.get(&server) {
                    Some(front) => shown.replace(front)?,
                    None => {
                        served.fronts.insert(server, shown.front()?);
                    }
                }
            }
            served.renew_terms(config);
            served.renew_mail(&self.mail);
            self.let_go(&old, config);
            served.dismiss(config)
        };
        self.mail.look_up().await;
        for door in leaving {
            door.close().await;
        }
        let mut served = self.served();
        for listener in &config.listeners {
            if served.doors.iter().any(|door| door.config == *listener) {
                continue;
            }
            // One address that cannot be had must not take the others.
            if let Err(failure) = served.open(config, listener, &self.handler, self.drain.subscribe()) {
                tracing::error!(error = %failure, "after the reload");
            }
        }
        Ok(())
    }

    /// Ends what is kept of servers that are no longer there, or of all when nothing shall be kept any more.
    fn let_go(&self, old: &Config, new: &Config) {
        let none = old.sustain.enabled && !new.sustain.enabled;
        let stays = |name: &ServerId| !none && new.servers.iter().any(|server| server.name == *name);
        for server in old.servers.iter().filter(|server| !stays(&server.name)) {
            let _taken = self.house.put(Handed::ServerGone(server.name.clone()));
        }
    }

    /// Ends all sessions: those at rest now, the others until `by`. Returns when all have ended, or soon after `by`. What the
    /// path carries ends by then too, unless it is handed over.
    pub(crate) async fn drain(&self, by: Instant, ended: Ended) {
        self.drain.send_replace(Drain::By(by));
        tokio::join!(
            self.empty(by),
            async {
                let _late = timeout_at(by + DRAIN_CLOSE, self.house.drain()).await;
            },
            self.leave_path(by, ended)
        );
    }

    /// Ends all sessions now.
    pub(crate) async fn hurry(&self) {
        self.drain.send_replace(Drain::Now);
        let by = Instant::now();
        tokio::join!(
            self.empty(by),
            async {
                let _late = timeout_at(by + DRAIN_CLOSE, self.house.drain()).await;
            },
            self.leave_path(by, Ended::Ended)
        );
    }

    /// Takes no new connections; those that are carried have until `by`, or go on.
    async fn leave_path(&self, by: Instant, ended: Ended) {
        let Some(path) = &self.path else { return };
        path.leave(by).await;
        match ended {
            Ended::HandedOver => {}
            Ended::Ended => {
                path.drained(by).await;
                path.stop();
            }
        }
    }

    /// Lets go of what a successor needs and the path would keep.
    pub(crate) fn hand_over(&self) {
        self.mail.let_go();
    }

    /// The node on the path, and its links.
    pub(crate) fn path(&self) -> Option<&Arc<Path>> {
        self.path.as_ref()
    }

    /// Every door and session holds a receiver, and nobody else does.
    async fn empty(&self, by: Instant) {
        let _late = timeout_at(by + DRAIN_CLOSE, self.drain.closed()).await;
    }

    /// Whether it has been told to end.
    pub(crate) fn is_draining(&self) -> bool {
        *self.drain.borrow() != Drain::Serving
    }

    /// Since when it runs.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn config(&self) -> Config {
        self.served().config.clone()
    }

    pub(crate) fn doors(&self) -> Vec<DoorFacts> {
        let facts = |door: &Door| DoorFacts {
            address: door.address,
            server: door.config.server.clone(),
            tls: door.config.tls,
            counts: Arc::clone(&door.counts),
        };
        self.served().doors.iter().map(facts).collect()
    }

    pub(crate) fn metrics(&self) -> Arc<Metrics> {
        self.handler.metrics()
    }

    pub(crate) fn roster(&self) -> Arc<Roster> {
        self.handler.roster()
    }

    /// Sessions whose client has left.
    pub(crate) fn house(&self) -> &House {
        &self.house
    }

    /// What is fetched ahead.
    pub(crate) fn prefetch(&self) -> Option<&Prefetch> {
        self.prefetch.as_ref()
    }

    /// Connections kept ready, by server.
    pub(crate) fn parked(&self) -> Vec<(ServerId, ParkCounts)> {
        self.origins.parked()
    }

    /// `None` when it could not be opened.
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    pub(crate) fn keying(&self) -> &OrganisationKey {
        &self.keying
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served {
    fn open(
        &mut self,
        config: &Config,
        listener: &config::Listener,
        handler: &Arc<Handler>,
        draining: watch::Receiver<Drain>,
    ) -> Result<(), Failure> {
        let named = |name: &ServerId| config.servers.iter().find(|server| server.name == *name);
        let (Some(server), Some(terms)) = (named(&listener.server), self.terms.get(&listener.server)) else {
            return Err(Failure::say(Exit::Bug, format_args!("no server {}", listener.server)));
        };
        let tls = self.fronts.get(&listener.server);
        let reserved = self.upward.as_ref().and_then(|upward| upward.reserved(listener.address));
        let bound = reserved.transpose().map_err(|error| door::cannot_listen(listener.address, error))?;
        self.doors.push(Door::open(listener, bound, server, tls, Arc::clone(terms), handler, draining)?);
        Ok(())
    }

    /// Terms that did not change stay: they count the sessions that run.
    fn renew_terms(&mut self, config: &Config) {
        let mut terms = HashMap::new();
        for server in &config.servers {
            let mut new = ServerTerms::new(
                server.name.clone(),
                usize::try_from(server.limits.sessions_max).unwrap_or(usize::MAX),
            );
            new.compress = server.compress;
            new.re_proof = config.store.re_proof;
            new.cache = self.cache;
            new.retain = self.cache && config.sustain.enabled;
            new.announce_client = server.announce_client;
            new.foresee = server.foresee;
            let kept = self.terms.remove(&server.name).filter(|old| old.is_same(&new));
            terms.insert(server.name.clone(), kept.unwrap_or_else(|| Arc::new(new)));
        }
        for door in &self.doors {
            if let Some(terms) = terms.get(&door.config.server) {
                door.set_terms(Arc::clone(terms));
            }
        }
        self.terms = terms;
    }

    /// What is served on the path.
    fn renew_mail(&self, mail: &Mail) {
        let served = |server: &config::Server| {
            let terms = Arc::clone(self.terms.get(&server.name)?);
            let front = self.fronts.get(&server.name).cloned();
            Some(MailServer { config: server.clone(), terms, front })
        };
        let terminated = self.config.servers.iter().filter(|server| self.config.terminates(server));
        mail.renew(&self.config, terminated.filter_map(served).collect());
    }

    /// Takes out the doors that `config` does not have, or has otherwise.
    fn dismiss(&mut self, config: &Config) -> Vec<Door> {
        let stays = |door: &Door| {
            let server = config.servers.iter().find(|server| server.name == door.config.server);
            config.listeners.contains(&door.config)
                && server.is_some_and(|server| {
                    server.addresses == door.server.addresses
                        && server.host == door.server.host
                        && server.port == door.server.port
                })
        };
        let (staying, leaving) = std::mem::take(&mut self.doors).into_iter().partition(stays);
        self.doors = staying;
        leaving
    }
}

/// What clients of each server are shown; only servers whose clients speak TLS with this node.
fn shown(config: &Config) -> Result<Vec<(ServerId, Shown)>, Failure> {
    let encrypted = |server: &&config::Server| {
        config.listeners.iter().any(|l| l.server == server.name && l.tls != Encryption::Plain)
            || (config.terminates(server) && server.tls != Encryption::Plain)
    };
    let open = |server: &config::Server| Ok((server.name.clone(), Shown::open(config, server)?));
    config.servers.iter().filter(encrypted).map(open).collect()
}

/// The servers of `config`, dialled from here when they are needed.
pub(crate) fn direct(config: &Config) -> Result<DirectOrigins, Failure> {
    DirectOrigins::new(config.servers.iter().map(origin)).map_err(|error| Failure::new(Exit::Usage, error))
}

/// The same, with connections kept ready.
fn parking(config: &Config) -> Result<DirectOrigins, Failure> {
    let parking = |server: &config::Server| {
        let config::Parking { max, idle, on_cyrus } = server.parking;
        OriginServer { park: ParkTerms { max, idle, on_cyrus }, ..origin(server) }
    };
    DirectOrigins::new(config.servers.iter().map(parking)).map_err(|error| Failure::new(Exit::Usage, error))
}

/// As the way to servers calls it.
pub(crate) fn origin_tls(tls: Encryption) -> OriginTls {
    match tls {
        Encryption::Implicit => OriginTls::Implicit,
        Encryption::StartTls => OriginTls::StartTls,
        Encryption::Plain => OriginTls::Plain,
    }
}

fn origin(server: &config::Server) -> OriginServer {
    let mut origin = OriginServer::new(server.name.clone(), &server.host.0, server.port.0);
    origin.addresses = server.addresses.iter().map(|ip| SocketAddr::new(*ip, server.port.0)).collect();
    origin.tls = origin_tls(server.tls);
    origin.trust = match &server.trust {
        config::Trust::System => Trust::System,
        config::Trust::Ca(path) => Trust::CaFile(path.clone()),
        config::Trust::Pin(pin) => Trust::Pin(pin.0),
    };
    origin.allow_preauth = server.allow_preauth;
    origin.dials_max = usize::try_from(server.limits.dials_max).unwrap_or(usize::MAX);
    origin
}

fn say_what_needs_a_restart(old: &Config, new: &Config) {
    for part in needs_a_restart(old, new) {
        tracing::warn!(part, "this changed in the file, and takes effect at the next start");
    }
}

fn needs_a_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let parts = [
        ("[node]", old.node != new.node),
        ("[admin]", old.admin != new.admin),
        ("[sustain], its limits", Config::sustain_needs_restart(old, new)),
        ("[prefetch]", old.prefetch != new.prefetch),
        ("[store]", Config::store_needs_restart(old, new)),
        ("[log] format", old.log.format != new.log.format),
        ("[interception], [[rule]]", old.interception != new.interception),
        ("[link], [[peer]]", Config::link_needs_restart(old, new)),
        ("[[authority]], for links that stand", Config::authority_stays(old, new)),
        ("[deflector]", old.deflector != new.deflector),
        ("[off_path]", old.off_path != new.off_path),
        ("[[carry]]", old.carries != new.carries),
    ];
    parts.into_iter().filter(|(_, changed)| *changed).map(|(part, _)| part).collect()
}

impl Config {
    fn sustain_needs_restart(old: &Self, new: &Self) -> bool {
        let mut same = old.sustain;
        same.enabled = new.sustain.enabled;
        same != new.sustain
    }

    /// Who may be a peer is taken on at once.
    fn link_needs_restart(old: &Self, new: &Self) -> bool {
        match (&old.link, &new.link) {
            (Some(old), Some(new)) => {
                let same_peers = |peer: &config::network::Peer| {
                    new.peers.iter().all(|other| {
                        other.id != peer.id
                            || (&other.servers, &other.may_open, &other.may_dial)
                                == (&peer.servers, &peer.may_open, &peer.may_dial)
                    })
                };
                (old.listen, &old.identity, &old.advertise) != (new.listen, &new.identity, &new.advertise)
                    || !old.peers.iter().all(same_peers)
                    || new.peers.iter().any(|peer| {
                        let known = old.peers.iter().any(|other| other.id == peer.id);
                        let named = [&peer.servers, &peer.may_open, &peer.may_dial];
                        !known && named.iter().any(|named| !named.is_empty())
                    })
            }
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        }
    }

    /// Links that stand were let in by one that is there no longer, or for other servers.
    fn authority_stays(old: &Self, new: &Self) -> bool {
        let (Some(old), Some(new)) = (&old.link, &new.link) else { return false };
        !old.authorities.iter().all(|authority| new.authorities.contains(authority))
    }

    fn store_needs_restart(old: &Self, new: &Self) -> bool {
        let mut same = old.store.clone();
        same.re_proof = new.store.re_proof;
        same != new.store
    }
}

/// The state directory holds keys: for its owner alone.
pub(crate) fn make_dir(dir: &FilePath) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::io(format!("the state directory {}", dir.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{
        FileUse, Surroundings,
        deflection::OffPath,
        network::{Authority, Link},
    };

    #[test]
    fn what_a_reload_does_not_take_on_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("waypost.toml");
        let text = "version = 1\n[node]\nid = \"br\"\n[interception]\ninterfaces = [\"lan0\"]\n\
                    [[rule]]\naction = \"intercept\"\n";
        fs::write(&file, text).unwrap();
        let loaded = config::load(&file, &Surroundings::of_process(), FileUse::Ignore).unwrap();
        assert!(loaded.usable().is_some(), "{:?}", loaded.problems);
        let mut old = loaded.usable().unwrap().clone();
        let at: SocketAddr = "192.0.2.1:7782".parse().unwrap();
        let authority =
            Authority { name: "other".to_owned(), certificate: "/nonexistent".into(), servers: Vec::new() };
        old.link = Some(Link {
            listen: at,
            identity: "/nonexistent".into(),
            advertise: Vec::new(),
            revoked: Vec::new(),
            peers: Vec::new(),
            authorities: vec![authority.clone()],
        });
        assert_eq!(needs_a_restart(&old, &old), Vec::<&str>::new());
        let mut more = old.clone();
        more.link.as_mut().unwrap().authorities.push(Authority { name: "third".to_owned(), ..authority });
        assert_eq!(needs_a_restart(&old, &more), Vec::<&str>::new(), "a new one is met at once");
        assert_eq!(needs_a_restart(&more, &old), ["[[authority]], for links that stand"]);
        let mut off = old.clone();
        off.off_path = Some(OffPath { deflector: old.node.id.clone(), at, port: 1, option_kind: 253 });
        assert_eq!(needs_a_restart(&old, &off), ["[off_path]"]);
    }
}
