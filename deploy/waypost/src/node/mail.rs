//! Mail servers as somebody on the path meets them: by the address that a client connects to. Names are looked up again
//! and again, and what they once led to is believed for a while: a name may take turns with its addresses.

use super::origins::Origins;
use crate::config::{
    self, Config,
    value::{Encryption, Port},
};
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
    /// The same at IMAP's other port.
    others: Vec<config::Server>,
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
        // Nobody but the path asks for them.
        let known = if config.link.is_some() { config.servers.clone() } else { Vec::new() };
        self.state.write().unwrap_or_else(PoisonError::into_inner).renew(known, servers);
    }

    /// Those that a client may mean which connects to `to`.
    pub(crate) fn at(&self, to: SocketAddr) -> Meant {
        self.state.read().unwrap_or_else(PoisonError::into_inner).at(to, Instant::now())
    }

    /// The server of this name and the port of `to`, whoever serves its clients.
    pub(crate) fn named(&self, host: &str, to: SocketAddr) -> Option<Named> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).named(host, to, Instant::now())
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
            let known = state.known.iter();
            known.filter(|server| server.addresses.is_empty()).flat_map(names).map(str::to_owned).collect()
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

/// The server at the other port that IMAP has: who serves one of them usually serves both.
fn at_other_port(server: &config::Server) -> Option<config::Server> {
    let (port, tls) = match (server.port.0, server.tls) {
        (993, Encryption::Implicit) => (143, Encryption::StartTls),
        (143, Encryption::StartTls) => (993, Encryption::Implicit),
        _ => return None,
    };
    Some(config::Server { port: Port(port), tls, ..server.clone() })
}

impl State {
    fn renew(&mut self, known: Vec<config::Server>, servers: Vec<MailServer>) {
        self.others = known.iter().filter_map(at_other_port).collect();
        self.known = known;
        let other = |server: &MailServer| {
            let config = at_other_port(&server.config)?;
            Some(MailServer { config, terms: Arc::clone(&server.terms), front: server.front.clone() })
        };
        let others: Vec<_> = servers.iter().filter_map(other).collect();
        self.servers = servers.into_iter().chain(others).map(Arc::new).collect();
    }

    fn at(&self, to: SocketAddr, now: Instant) -> Meant {
        let stand = |servers: &'_ [config::Server]| -> Vec<config::Server> {
            servers.iter().filter(|server| self.stands_at(server, to, now)).cloned().collect()
        };
        let mut there = stand(&self.known);
        // The file's own word about a port comes first.
        if there.is_empty() {
            there = stand(&self.others);
        }
        let several = there.len() > 1;
        // Nothing that such a client says tells them apart.
        if several && there.iter().any(|server| server.tls != Encryption::Implicit) {
            return Meant::default();
        }
        let is_there = |server: &&Arc<MailServer>| {
            there.iter().any(|there| there.name == server.config.name && there.port == server.config.port)
        };
        Meant { servers: self.servers.iter().filter(is_there).cloned().collect(), several }
    }

    fn named(&self, host: &str, to: SocketAddr, now: Instant) -> Option<Named> {
        let is_meant =
            |server: &&config::Server| server.port.0 == to.port() && names(server).any(|name| name == host);
        let config = self.known.iter().chain(&self.others).find(is_meant)?.clone();
        let stands_there = self.stands_at(&config, to, now);
        Some(Named { config, stands_there })
    }

    fn stands_at(&self, server: &config::Server, to: SocketAddr, now: Instant) -> bool {
        let leads_there = |name: &str| {
            let found = self.found.get(name).and_then(|found| found.get(&to.ip()));
            found.is_some_and(|until| *until > now) || name.parse() == Ok(to.ip())
        };
        server.port.0 == to.port() && (server.addresses.contains(&to.ip()) || names(server).any(leads_there))
    }
}

/// Whom a client may mean, by the address that it connects to.
#[derive(Default)]
pub(crate) struct Meant {
    /// Those that are served here.
    servers: Vec<Arc<MailServer>>,
    /// Whether it could be another one too, served here or not.
    several: bool,
}

impl Meant {
    /// Nobody who is served here.
    pub(crate) fn is_nobody(&self) -> bool {
        self.servers.is_empty()
    }

    /// How the configuration calls them.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().map(|server| server.config.name.as_str())
    }

    /// The only one that it can be.
    pub(crate) fn only(&self) -> Option<&Arc<MailServer>> {
        match self.servers.as_slice() {
            [server] if !self.several => Some(server),
            _ => None,
        }
    }

    /// Whom a client means that asks for `name`.
    pub(crate) fn called(&self, name: Option<&str>) -> Option<&Arc<MailServer>> {
        match self.only() {
            Some(server) => server.front.as_ref().is_some_and(|front| front.lists(name)).then_some(server),
            None => self.servers.iter().find(|server| name.is_some_and(|name| server.is_called(name))),
        }
    }
}

/// A server that was asked for by its name.
pub(crate) struct Named {
    pub(crate) config: config::Server,
    /// Whether the address that came with the name is one of its.
    pub(crate) stands_there: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FileUse, bad_files::surroundings};
    use std::path::Path;

    fn state(file: &str, served: &[&str]) -> State {
        let (path, around) = (Path::new("/etc/waypost/waypost.toml"), surroundings());
        let listeners: String = ["a", "b"]
            .iter()
            .enumerate()
            .map(|(n, name)| {
                format!(
                    "[[listener]]\naddress = \"127.0.0.1:{}\"\nserver = \"{name}\"\ntls = \"plain\"\n",
                    10993 + n
                )
            })
            .collect();
        let loaded =
            config::judge(&format!("version = 1\n{listeners}{file}"), path, &around, FileUse::Ignore);
        let config = loaded.usable().unwrap_or_else(|| panic!("{:?}", loaded.problems)).clone();
        let mut state = State::default();
        let serve = |server: config::Server| {
            let terms = Arc::new(ServerTerms::new(server.name.clone(), 1));
            MailServer { config: server, terms, front: None }
        };
        let chosen = config.servers.iter().filter(|server| served.contains(&server.name.as_str()));
        let servers = chosen.cloned().map(serve).collect();
        state.renew(config.servers, servers);
        state
    }

    const TWO: &str = r#"
        [[server]]
        name = "a"
        host = "a.example"
        addresses = ["10.2.0.2"]
        [[server]]
        name = "b"
        host = "b.example"
        addresses = ["10.2.0.2", "10.2.0.3"]
    "#;

    #[test]
    fn a_server_that_is_not_served_here_still_stands_at_its_address() {
        let (shared, own) = ("10.2.0.2:993".parse().unwrap(), "10.2.0.3:993".parse().unwrap());
        let state = state(TWO, &["b"]);
        let meant = state.at(shared, Instant::now());
        assert!(meant.only().is_none(), "it may be a");
        assert!(meant.called(None).is_none() && meant.called(Some("a.example")).is_none());
        assert!(meant.called(Some("b.example")).is_some());
        assert!(state.at(own, Instant::now()).only().is_some());
        assert!(state.at("10.2.0.3:144".parse().unwrap(), Instant::now()).is_nobody());
        let names = |at| state.at(at, Instant::now()).names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((names(own), names("10.2.0.3:22".parse().unwrap())), (vec!["b".to_owned()], vec![]));
    }

    #[test]
    fn servers_that_speak_first_are_not_told_apart() {
        let file = TWO.replace("[[server]]", "[[server]]\ntls = \"starttls\"\nport = 143");
        let state = state(&file, &["a", "b"]);
        assert!(state.at("10.2.0.2:143".parse().unwrap(), Instant::now()).is_nobody());
        assert!(state.at("10.2.0.3:143".parse().unwrap(), Instant::now()).only().is_some());
    }

    #[test]
    fn one_section_serves_both_of_imaps_ports_and_the_files_word_comes_first() {
        let now = Instant::now();
        let way = |state: &State, at: &str| {
            let meant = state.at(at.parse().unwrap(), now);
            meant
                .only()
                .map(|server| (server.config.name.to_string(), server.config.port.0, server.config.tls))
        };
        let b = |port, tls| Some(("b".to_owned(), port, tls));
        let state = state(TWO, &["a", "b"]);
        assert_eq!(way(&state, "10.2.0.3:993"), b(993, Encryption::Implicit));
        assert_eq!(way(&state, "10.2.0.3:143"), b(143, Encryption::StartTls));
        assert_eq!(way(&state, "10.2.0.2:143"), None, "who speaks first there?");
        let starttls = self::state(&TWO.replace("[[server]]", "[[server]]\ntls = \"starttls\""), &["b"]);
        assert_eq!(way(&starttls, "10.2.0.3:993"), b(993, Encryption::Implicit));
        let elsewhere = self::state(&TWO.replace("[[server]]", "[[server]]\nport = 1993"), &["b"]);
        assert_eq!(way(&elsewhere, "10.2.0.3:993"), None);
        assert_eq!(way(&elsewhere, "10.2.0.3:143"), None);
        let own = TWO.to_owned()
            + "[[server]]\nname = \"c\"\nhost = \"c.example\"\naddresses = [\"10.2.0.3\"]\ntls = \"starttls\"\n";
        let both = self::state(&own, &["b", "c"]);
        assert_eq!(way(&both, "10.2.0.3:143"), Some(("c".to_owned(), 143, Encryption::StartTls)));
        assert_eq!(way(&both, "10.2.0.3:993"), b(993, Encryption::Implicit));
    }

    #[test]
    fn a_name_stands_at_its_own_addresses_only() {
        let (state, now) = (state(TWO, &[]), Instant::now());
        let stands = |name: &str, at: &str| {
            state.named(name, at.parse().unwrap(), now).map(|named| named.stands_there)
        };
        assert_eq!(stands("b.example", "10.2.0.3:993"), Some(true));
        assert_eq!(stands("a.example", "10.2.0.3:993"), Some(false));
        assert_eq!(stands("a.example", "10.2.0.2:143"), Some(true));
        assert_eq!(stands("a.example", "10.2.0.2:144"), None);
        assert_eq!(stands("c.example", "10.2.0.2:993"), None);
    }
}
