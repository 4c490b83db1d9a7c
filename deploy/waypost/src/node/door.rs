//! A listening address with the clients that came through it.

use crate::{
    config::{self, value::Encryption},
    exit::{Exit, Failure},
};
use epc::{
    handler::{Drain, Handler, ServerTerms, Upgrade, Visit, ordered},
    intake::{Front, FrontTls, IntakeCounts, Listener, ListenerConfig, TunnelTo, Unlisted},
};
use seams::intake::Intake;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};

/// See the module's documentation.
pub(crate) struct Door {
    pub(crate) config: config::Listener,
    /// As it was when the door opened: a tunnel leads there.
    pub(crate) server: config::Server,
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<IntakeCounts>,
    terms: Arc<Mutex<Arc<ServerTerms>>>,
    closing: watch::Sender<bool>,
}

impl Door {
    /// Binds, unless `bound` is, and accepts; the task ends when the door is closed or the node drains, and its last session with it.
    pub(crate) fn open(
        config: &config::Listener,
        bound: Option<std::net::TcpListener>,
        server: &config::Server,
        tls: Option<&Arc<FrontTls>>,
        terms: Arc<ServerTerms>,
        handler: &Arc<Handler>,
        draining: watch::Receiver<Drain>,
    ) -> Result<Self, Failure> {
        let front = front(config, server, tls)?;
        let listening = ListenerConfig::new(config.address, front);
        let listener = match bound {
            Some(bound) => Listener::from_std(bound, listening),
            None => Listener::bind(listening),
        };
        let listener = listener.map_err(|error| cannot_listen(config.address, error))?;
        let (address, counts) = (listener.local_addr(), listener.counts());
        tracing::info!(%address, server = %server.name, tls = config.tls.word(), "listening");
        let terms = Arc::new(Mutex::new(terms));
        let (closing, closed) = watch::channel(false);
        tokio::spawn(accept(listener, Arc::clone(handler), Arc::clone(&terms), draining, closed));
        Ok(Self { config: config.clone(), server: server.clone(), address, counts, terms, closing })
    }

    /// What holds for the clients that come from now on.
    pub(crate) fn set_terms(&self, terms: Arc<ServerTerms>) {
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
    }

    /// Takes no more clients; those inside stay.
    pub(crate) async fn close(self) {
        self.closing.send_replace(true);
        self.closing.closed().await;
        tracing::info!(address = %self.address, "no longer listening");
    }
}

async fn accept(
    mut listener: Listener,
    handler: Arc<Handler>,
    terms: Arc<Mutex<Arc<ServerTerms>>>,
    draining: watch::Receiver<Drain>,
    mut closed: watch::Receiver<bool>,
) {
    let upgrade = listener.upgrade().map(Upgrade);
    let mut sessions = JoinSet::new();
    let mut drain = draining.clone();
    loop {
        while sessions.try_join_next().is_some() {}
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    let server = Arc::clone(&terms.lock().unwrap_or_else(PoisonError::into_inner));
                    let visit = Visit { accepted, upgrade: upgrade.clone(), server, way: None };
                    let (handler, drain) = (Arc::clone(&handler), draining.clone());
                    sessions.spawn(async move { handler.serve(visit, drain).await });
                }
                Err(error) => {
                    let address = listener.local_addr();
                    tracing::error!(%error, %address, "this address takes no more clients; restart the node");
                    break;
                }
            },
            () = ordered(&mut drain) => break,
            _ = closed.changed() => break,
        }
    }
    listener.close().await;
    // Whoever closes the door waits for this before it binds the address again.
    drop(closed);
    while sessions.join_next().await.is_some() {}
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

pub(super) fn cannot_listen(address: SocketAddr, error: io::Error) -> Failure {
    let advice = ADVICE.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, advice)| advice);
    Failure::io(format!("cannot listen on {address}{advice}"), error)
}

const ADVICE: &[(io::ErrorKind, &str)] = &[
    (
        io::ErrorKind::PermissionDenied,
        "; ports below 1024 need the right to bind them (CAP_NET_BIND_SERVICE, as the systemd unit gives it)",
    ),
    (io::ErrorKind::AddrInUse, "; another program listens there: find it with ss -ltnp"),
    (io::ErrorKind::AddrNotAvailable, "; it is no address of this machine"),
];
