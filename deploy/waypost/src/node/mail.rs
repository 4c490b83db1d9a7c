//! Mail servers as somebody on the path meets them: by the address that a client connects to. Names are looked up again
//! and again, and what they once led to is believed for a while: a name may take turns with its addresses.

use super::origins::Origins;
use crate::config::{self, Config, value::Encryption};
use epc::{
    handler::{Drain, Handler, ServerTerms, Upgrade, Visit, Way},
    intake::FrontTls,
};
use seams::{
    AsyncIo,
    intake::{Accepted, Arrival, ClientAddr, ClientTls, OriginalDst},
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    net::lookup_host,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// See the module's documentation.
pub(crate) struct Mail {
    /// None when a successor has its store: the path holds on to this for as long as it carries.
    handler: watch::Sender<Option<Arc<Handler>>>,
    drain: watch::Sender<Drain>,
    origins: Arc<Origins>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    servers: Vec<Arc<MailServer>>,
    /// As the file has them, those that are only carried too.
    known: Vec<config::Server>,
    /// What a name leads to, and until when that is believed.
    found: HashMap<String, HashMap<IpAddr, Instant>>,
}

/// A server whose intercepted clients are served here.
pub(crate) struct MailServer {
    pub(crate) config: config::Server,
    pub(crate) terms: Arc<ServerTerms>,
    /// None where clients speak no TLS.
    pub(crate) front: Option<Arc<FrontTls>>,
}

impl Mail {
    pub(crate) fn new(handler: Arc<Handler>, drain: watch::Sender<Drain>, origins: Arc<Origins>) -> Self {
        Self { handler: watch::Sender::new(Some(handler)), drain, origins, state: RwLock::default() }
    }

    /// Serves these from the next connection on.
    pub(crate) fn renew(&self, config: &Config, servers: Vec<MailServer>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.servers = servers.into_iter().map(Arc::new).collect();
        state.known.clone_from(&config.servers);
    }

    /// Those that a client may mean which connects to `to`.
    pub(crate) fn at(&self, to: SocketAddr) -> Vec<Arc<MailServer>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let leads_there = |name: &str| {
            let found = state.found.get(name).and_then(|found| found.get(&to.ip()));
            found.is_some_and(|until| *until > now) || name.parse() == Ok(to.ip())
        };
        let stands_there = |server: &config::Server| {
            server.port.0 == to.port()
                && (server.addresses.contains(&to.ip()) || names(server).any(leads_there))
        };
        state.servers.iter().filter(|server| stands_there(&server.config)).cloned().collect()
    }

    /// The server of this name and port, whoever serves its clients.
    pub(crate) fn named(&self, host: &str, port: u16) -> Option<config::Server> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut known = state.known.iter();
        known.find(|server| server.port.0 == port && names(server).any(|name| name == host)).cloned()
    }

    /// The way to servers from here.
    pub(crate) fn origins(&self) -> &Arc<Origins> {
        &self.origins
    }

    /// Serves a client to its end. Its TLS, if any, is terminated.
    pub(crate) async fn serve(&self, server: &MailServer, client: Intercepted, way: Option<Way>) {
        let Intercepted { io, client, server: original, server_name } = client;
        let (tls, upgrade) = match (server.config.tls, &server.front) {
            (Encryption::Implicit, _) => (ClientTls::Implicit, None),
            (Encryption::StartTls, Some(front)) => {
                (ClientTls::StartTls, Some(Upgrade(Arc::clone(front) as Arc<_>)))
            }
            (Encryption::StartTls, None) => return,
            (Encryption::Plain, _) => (ClientTls::Plain, None),
        };
        let accepted = Accepted {
            io,
            client: ClientAddr(client),
            original_dst: OriginalDst(original),
            server_name,
            how: Arrival::Tproxy,
            tls,
        };
        let visit = Visit { accepted, upgrade, server: Arc::clone(&server.terms), way };
        let mut serves = self.handler.subscribe();
        let handler = serves.borrow().clone();
        let Some(handler) = handler else { return };
        tokio::select! {
            _ended = handler.serve(visit, self.drain.subscribe()) => {}
            // It had the time that all have, as one at a listener.
            _ = serves.wait_for(Option::is_none) => {}
        }
    }

    /// Serves nobody any more, and lets go of all that serves. Sessions have drained by then; one that has not ends.
    pub(crate) fn let_go(&self) {
        self.handler.send_replace(None);
    }

    /// Looks all names up once.
    pub(crate) async fn look_up(&self) {
        let wanted: Vec<String> = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let servers = state.servers.iter().map(|server| &server.config);
            servers.filter(|server| server.addresses.is_empty()).flat_map(names).map(str::to_owned).collect()
        };
        let mut asked = JoinSet::new();
        for name in wanted {
            asked.spawn(async move {
                let answer = timeout(LOOK_UP_MAX, lookup_host((name.as_str(), 0))).await;
                let addresses = answer.map(|found| found.map(|found| found.map(|at| at.ip()).collect()));
                (name, addresses.unwrap_or_else(|late| Err(late.into())))
            });
        }
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((name, Ok(addresses))) => self.believe(name, addresses),
                Ok((name, Err(error))) => {
                    tracing::debug!(%name, %error, "a mail server's name leads nowhere");
                }
                Err(error) => tracing::debug!(%error, "a name was not looked up"),
            }
        }
    }

    fn believe(&self, name: String, addresses: Vec<IpAddr>) {
        let now = Instant::now();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let found = state.found.entry(name).or_default();
        found.retain(|_, until| *until > now);
        for address in addresses {
            if found.len() < ADDRESSES_MAX || found.contains_key(&address) {
                found.insert(address, now + BELIEVED);
            }
        }
    }
}

impl MailServer {
    /// Whether `name`, in small letters, is one of its.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        names(&self.config).any(|own| own == name)
    }
}

/// A client that was intercepted.
pub(crate) struct Intercepted {
    pub(crate) io: Box<dyn AsyncIo>,
    pub(crate) client: SocketAddr,
    /// Where it meant to go.
    pub(crate) server: SocketAddr,
    pub(crate) server_name: Option<String>,
}

/// By which clients ask for a server.
fn names(server: &config::Server) -> impl Iterator<Item = &str> {
    std::iter::once(&server.host).chain(&server.aliases).map(|host| host.0.as_str())
}

/// Looks names up for as long as anybody is there to ask.
pub(crate) async fn look_up_again_and_again(mail: std::sync::Weak<Mail>) {
    loop {
        sleep(LOOK_UP_EVERY).await;
        let Some(mail) = mail.upgrade() else { return };
        mail.look_up().await;
    }
}

/// A resolver that is slower would hold up the names behind it.
const LOOK_UP_MAX: Duration = Duration::from_secs(2);
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);
/// Clients have looked it up too, some of them a while ago.
const BELIEVED: Duration = Duration::from_secs(3600);
/// Of one name; more are nobody's mail server.
const ADDRESSES_MAX: usize = 64;
