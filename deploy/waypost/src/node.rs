//! A running node: listeners, the way to the servers, one handler for all sessions.

use crate::{
    config::{self, Config, value::Encryption},
    exit::{Exit, Failure},
    front::Shown,
    keying::OrganisationKey,
};
use discovery_core::id::ServerId;
use epc::{
    handler::{Drain, Handler, Limits, NoCatalog, ServerTerms, Upgrade, Visit},
    intake::{Front, FrontTls, Listener, ListenerConfig, TunnelTo, Unlisted},
    origin::{DirectOrigins, OriginServer, OriginTls},
    tls::roots::Trust,
};
use seams::intake::Intake;
use std::{
    collections::HashMap, fs, io, net::SocketAddr, os::unix::fs::DirBuilderExt, path::Path, sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// A node that runs.
pub(crate) struct Node {
    drain: watch::Sender<Drain>,
    listeners: Vec<SocketAddr>,
    tasks: JoinSet<()>,
}

/// How long sessions get to come to rest.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);

impl Node {
    /// Opens everything that `config` names; nothing is served before all of it is there.
    pub(crate) fn start(config: &Config) -> Result<Self, Failure> {
        make_dir(&config.node.state_dir)?;
        let keying = Arc::new(OrganisationKey::open(&config.node.user_key_file)?);
        let origins = DirectOrigins::new(config.servers.iter().map(origin))
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        let handler =
            Arc::new(Handler::new(Arc::new(origins), Arc::new(NoCatalog), keying, Limits::default()));
        let mut terms: HashMap<ServerId, Arc<ServerTerms>> = HashMap::new();
        let mut fronts: HashMap<ServerId, Arc<FrontTls>> = HashMap::new();
        for server in &config.servers {
            let sessions_max = usize::try_from(server.limits.sessions_max).unwrap_or(usize::MAX);
            let mut its = ServerTerms::new(server.name.clone(), sessions_max);
            its.compress = server.compress;
            its.re_proof = config.store.re_proof;
            terms.insert(server.name.clone(), Arc::new(its));
            let encrypted = |l: &config::Listener| l.server == server.name && l.tls != Encryption::Plain;
            if config.listeners.iter().any(encrypted) {
                fronts.insert(server.name.clone(), Shown::open(config, server)?.front()?);
            }
        }
        let (drain, draining) = watch::channel(Drain::Serving);
        let mut tasks = JoinSet::new();
        let mut listeners = Vec::new();
        for listener in &config.listeners {
            let (Some(its), Some(server)) = (
                terms.get(&listener.server),
                config.servers.iter().find(|server| server.name == listener.server),
            ) else {
                continue;
            };
            let front = front(listener, server, fronts.get(&listener.server))?;
            let bound = Listener::bind(ListenerConfig::new(listener.address, front))
                .map_err(|error| cannot_listen(listener.address, error))?;
            tracing::info!(address = %bound.local_addr(), server = %listener.server, tls = listener.tls.word(), "listening");
            listeners.push(bound.local_addr());
            tasks.spawn(accept(bound, Arc::clone(&handler), Arc::clone(its), draining.clone()));
        }
        Ok(Self { drain, listeners, tasks })
    }

    /// Where it listens.
    pub(crate) fn listeners(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Ends all sessions: those at rest now, the others until `by`.
    pub(crate) async fn drain(&mut self, by: Instant) {
        let _ = self.drain.send(Drain::By(by));
        let _late = timeout_at(by + Duration::from_secs(5), async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
    }

    /// Ends all sessions now.
    pub(crate) fn hurry(&self) {
        let _ = self.drain.send(Drain::Now);
    }
}

async fn accept(
    mut listener: Listener,
    handler: Arc<Handler>,
    server: Arc<ServerTerms>,
    draining: watch::Receiver<Drain>,
) {
    let upgrade = listener.upgrade().map(Upgrade);
    let mut sessions = JoinSet::new();
    let mut drain = draining.clone();
    loop {
        while sessions.try_join_next().is_some() {}
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    let visit = Visit { accepted, upgrade: upgrade.clone(), server: Arc::clone(&server) };
                    let (handler, drain) = (Arc::clone(&handler), draining.clone());
                    sessions.spawn(async move { handler.serve(visit, drain).await });
                }
                Err(error) => {
                    tracing::error!(%error, address = %listener.local_addr(), "this address takes no more clients; restart the node");
                    break;
                }
            },
            () = epc::handler::ordered(&mut drain) => break,
        }
    }
    drop(listener);
    while sessions.join_next().await.is_some() {}
}

fn origin(server: &config::Server) -> OriginServer {
    let mut origin = OriginServer::new(server.name.clone(), &server.host.0, server.port.0);
    origin.addresses = server.addresses.iter().map(|ip| SocketAddr::new(*ip, server.port.0)).collect();
    origin.tls = match server.tls {
        Encryption::Implicit => OriginTls::Implicit,
        Encryption::StartTls => OriginTls::StartTls,
        Encryption::Plain => OriginTls::Plain,
    };
    origin.trust = match &server.trust {
        config::Trust::System => Trust::System,
        config::Trust::Ca(path) => Trust::CaFile(path.clone()),
        config::Trust::Pin(pin) => Trust::Pin(pin.0),
    };
    origin.allow_preauth = server.allow_preauth;
    origin
}

fn front(
    listener: &config::Listener,
    server: &config::Server,
    tls: Option<&Arc<FrontTls>>,
) -> Result<Front, Failure> {
    let tls = || {
        tls.cloned()
            .ok_or_else(|| Failure::say(Exit::Bug, format_args!("no certificate for {}", server.name)))
    };
    Ok(match listener.tls {
        Encryption::Implicit => Front::Implicit {
            tls: tls()?,
            unlisted: match listener.unlisted {
                config::value::Unlisted::Refuse => Unlisted::Refuse,
                config::value::Unlisted::Tunnel => Unlisted::Tunnel(TunnelTo {
                    host: server.addresses.first().map_or_else(|| server.host.0.clone(), ToString::to_string),
                    port: server.port.0,
                    connect_timeout: Duration::from_secs(10),
                }),
            },
        },
        Encryption::StartTls => Front::StartTls(tls()?),
        Encryption::Plain => Front::Plain(listener.lan.iter().map(|lan| (lan.base, lan.bits)).collect()),
    })
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> Failure {
    let advice = [
        (
            io::ErrorKind::PermissionDenied,
            "; ports below 1024 need the right to bind them (CAP_NET_BIND_SERVICE, as the systemd unit gives it)",
        ),
        (io::ErrorKind::AddrInUse, "; another program listens there: find it with ss -ltnp"),
        (io::ErrorKind::AddrNotAvailable, "; it is no address of this machine"),
    ];
    let advice = advice.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, advice)| advice);
    Failure::io(format!("cannot listen on {address}{advice}"), error)
}

/// The state directory holds keys: for its owner alone.
fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::io(format!("the state directory {}", dir.display()), error))
}
