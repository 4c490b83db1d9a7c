//! How this process reaches a mail server itself: resolve, connect, verify, read the greeting, and nothing more.
//!
//! ```text
//! open ── addresses ── TCP (both families, 250 ms apart) ─┬─ Implicit: TLS ── greeting ──────────────────────┐
//!                                                         ├─ StartTls: greeting ── STARTTLS ── OK ── TLS ────┤─ OriginStream
//!                                                         └─ Plain (only when configured): greeting ─────────┘
//! ```
//!
//! What must never happen here: a downgrade (a server that does not do STARTTLS is an error, not a plain session), an
//! octet from before TLS that anybody believes afterwards, and a certificate that is not the server's.

mod dial;
mod greeting;
mod line_records;
mod parked;
mod parking;
mod prefixed;

pub(crate) use dial::tune;

pub use line_records::LineRecords;
pub use parked::ParkCounts;
pub use parking::{ParkTerms, names_cyrus};
pub use prefixed::Prefixed;

use crate::tls::{
    self,
    roots::{Trust, TrustError, client_config},
    spki_sha256,
};
use discovery_core::{id::ServerId, value::Class};
use greeting::{Kind, Lines};
use imap_core::mutants;
use parked::Parked;
use rustls::{ClientConfig, pki_types::ServerName};
use seams::{
    AsyncIo, BoxFuture, Stream,
    origin::{
        OpenError, OriginConnector, OriginIdentity, OriginRequest, OriginStream, SourcePolicy, StreamCaps,
        VerifiedBy,
    },
};
use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::lookup_host, sync::Semaphore, time::timeout};
use tokio_rustls::TlsConnector;

/// How a server speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginTls {
    /// From the first octet (port 993, RFC 8314 §3.2).
    Implicit,
    /// After `STARTTLS` (port 143, RFC 9051 §6.2.1); without it there is no session.
    StartTls,
    /// Never. Only for a server on this very machine or a network that the operator vouches for.
    Plain,
}

/// One server as configured.
#[derive(Clone, Debug)]
pub struct OriginServer {
    /// Its canonical name; everything stored is keyed by it.
    pub id: ServerId,
    /// The DNS name or address that its certificate must bear (and, without `addresses`, that is resolved).
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where to connect, in order of preference; empty: whatever `host` resolves to, at each connect.
    pub addresses: Vec<SocketAddr>,
    /// How it speaks TLS.
    pub tls: OriginTls,
    /// What makes its certificate good.
    pub trust: Trust,
    /// A greeting of PREAUTH (nobody logs in) is acceptable. Never on a [`OriginTls::StartTls`] road, where it would
    /// forbid STARTTLS.
    pub allow_preauth: bool,
    /// How long one address may take to answer the SYN before it counts as dead.
    pub connect_timeout: Duration,
    /// Which connections are kept ready.
    pub park: ParkTerms,
    /// How many connections may be between the dial and the greeting at a time; whoever comes then waits his turn, within
    /// his patience. After an outage everybody comes at once, and a server that greets nobody for the crowd at its door
    /// is no better than one that is out.
    pub dials_max: usize,
}

/// A thousand come in about ten seconds over 100 ms; a third of what a Dovecot greets at a time by default.
pub const DIALS_MAX: usize = 32;

impl OriginServer {
    /// Implicit TLS verified against the system's roots, with the defaults for the rest.
    #[must_use]
    pub fn new(id: ServerId, host: &str, port: u16) -> Self {
        Self {
            id,
            host: host.to_owned(),
            port,
            addresses: Vec::new(),
            tls: OriginTls::Implicit,
            trust: Trust::System,
            allow_preauth: false,
            connect_timeout: Duration::from_secs(10),
            park: ParkTerms::OFF,
            dials_max: DIALS_MAX,
        }
    }
}

/// Why a server cannot be configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OriginSetupError {
    /// Its host is neither a name nor an address.
    #[error("server {id}: {host:?} is neither a DNS name nor an IP address")]
    BadHost {
        /// Which server.
        id: ServerId,
        /// What was given.
        host: String,
    },
    /// Two servers with one name.
    #[error("server {0} is configured twice")]
    Twice(ServerId),
    /// Its trust settings.
    #[error("server {id}: {source}")]
    Trust {
        /// Which server.
        id: ServerId,
        /// What is wrong.
        source: TrustError,
    },
}

/// The configured servers, dialled from this machine.
#[derive(Debug)]
pub struct DirectOrigins {
    roads: HashMap<ServerId, Arc<Road>>,
}

/// The authorities of this machine, read once for however many servers.
#[derive(Clone, Debug)]
pub struct SystemTrust(Arc<ClientConfig>);

impl SystemTrust {
    /// Reads them.
    ///
    /// # Errors
    /// When the machine has none.
    pub fn read() -> Result<Self, TrustError> {
        client_config(&Trust::System).map(Self)
    }
}

#[derive(Debug)]
struct Road {
    server: OriginServer,
    name: ServerName<'static>,
    /// `None` on a plain road. Kept as long as the road: it holds the TLS sessions to resume.
    config: Option<Arc<ClientConfig>>,
    parked: Arc<Parked>,
    /// First come, first served.
    dials: Semaphore,
}

impl Drop for Road {
    fn drop(&mut self) {
        self.parked.close();
    }
}

impl DirectOrigins {
    /// Reads every server's roots now, so that a wrong path is known at the start and not at the first login.
    ///
    /// # Errors
    /// [`OriginSetupError`] for the first server that cannot work.
    pub fn new(servers: impl IntoIterator<Item = OriginServer>) -> Result<Self, OriginSetupError> {
        let mut roads = HashMap::new();
        for server in servers {
            let id = server.id.clone();
            if roads.insert(id.clone(), Arc::new(Road::new(server)?)).is_some() {
                return Err(OriginSetupError::Twice(id));
            }
        }
        Ok(Self { roads })
    }

    /// One server, with authorities that have been read; its own trust is left aside.
    ///
    /// # Errors
    /// A host that is neither a name nor an address.
    pub fn one(server: OriginServer, trust: &SystemTrust) -> Result<Self, OriginSetupError> {
        let id = server.id.clone();
        let config = (server.tls != OriginTls::Plain).then(|| Arc::clone(&trust.0));
        Ok(Self { roads: HashMap::from([(id, Arc::new(Road::with(server, config)?))]) })
    }

    /// From a stream that is connected to `server` already, by whatever road, to a greeted one. `tls`: as the port wants it
    /// to which the stream goes. None: as the server is known for.
    ///
    /// # Errors
    /// As [`OriginConnector::open`].
    pub async fn greet_over(
        &self,
        server: &ServerId,
        tls: Option<OriginTls>,
        io: Box<dyn AsyncIo>,
    ) -> Result<OriginStream, OpenError> {
        match self.roads.get(server) {
            Some(road) => road.greet_as(tls.unwrap_or(road.server.tls), io).await,
            None => Err(OpenError::UnknownServer(server.clone())),
        }
    }

    /// What became of the connections kept ready, by server.
    #[must_use]
    pub fn parked(&self) -> Vec<(ServerId, ParkCounts)> {
        let mut counts: Vec<_> =
            self.roads.iter().map(|(id, road)| (id.clone(), road.parked.counts())).collect();
        counts.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        counts
    }

    /// `kept`: one that was kept ready will do.
    async fn open_one(&self, request: OriginRequest, kept: bool) -> Result<OriginStream, OpenError> {
        let Some(road) = self.roads.get(&request.server) else {
            return Err(OpenError::UnknownServer(request.server));
        };
        match request.source {
            SourcePolicy::Own => {}
            // Showing the server another address than asked for would be a lie to its logs and limits.
            SourcePolicy::Spoof => {
                return Err(OpenError::Network(
                    "this road cannot connect with the client's own address".into(),
                ));
            }
        }
        // They go to whatever address answered.
        let visit = request.purpose == Class::Interactive && request.addr.is_none();
        if kept
            && visit
            && let Some(stream) = road.parked.take().await
        {
            road.parked.client_served(road, &stream.greeting, true);
            return Ok(stream);
        }
        let stream = match timeout(request.patience, road.open(request.addr)).await {
            Ok(result) => result?,
            Err(_) => return Err(OpenError::TimedOut),
        };
        if visit {
            road.parked.client_served(road, &stream.greeting, false);
        }
        Ok(stream)
    }
}

impl OriginConnector for DirectOrigins {
    fn open(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        Box::pin(self.open_one(request, true))
    }

    fn open_anew(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        Box::pin(self.open_one(request, false))
    }

    fn park(&self, server: &ServerId, n: u8) {
        if let Some(road) = self.roads.get(server) {
            road.parked.set_max(n);
        }
    }
}

impl Road {
    fn new(server: OriginServer) -> Result<Self, OriginSetupError> {
        let config = match server.tls {
            OriginTls::Plain => None,
            OriginTls::Implicit | OriginTls::StartTls => match client_config(&server.trust) {
                Ok(config) => Some(config),
                Err(source) => return Err(OriginSetupError::Trust { id: server.id, source }),
            },
        };
        Self::with(server, config)
    }

    fn with(server: OriginServer, config: Option<Arc<ClientConfig>>) -> Result<Self, OriginSetupError> {
        let Some(name) = tls::server_name(&server.host) else {
            return Err(OriginSetupError::BadHost { id: server.id, host: server.host });
        };
        let parked = Arc::new(Parked::new(server.park));
        let dials = Semaphore::new(server.dials_max.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self { server, name, config, parked, dials })
    }

    async fn open(&self, addr: Option<SocketAddr>) -> Result<OriginStream, OpenError> {
        let all_at_once = mutants::on("origin-storm");
        let _turn = if all_at_once { None } else { self.dials.acquire().await.ok() };
        let addresses = match addr {
            Some(addr) => vec![addr],
            None => self.addresses().await?,
        };
        let stream = dial::dial(addresses, self.server.connect_timeout).await?;
        self.greet(Box::new(Stream::new(stream, dial::set_receive_window))).await
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, OpenError> {
        if !self.server.addresses.is_empty() {
            return Ok(self.server.addresses.clone());
        }
        let host = self.name.to_str();
        let failed = |why: String| OpenError::Resolve { host: host.clone().into_owned(), why };
        let found: Vec<_> = match lookup_host((host.as_ref(), self.server.port)).await {
            Ok(found) => found.collect(),
            Err(e) => return Err(failed(e.to_string())),
        };
        if found.is_empty() { Err(failed("the name has no address".into())) } else { Ok(found) }
    }

    /// From a connected stream to a greeted one.
    async fn greet(&self, io: Box<dyn AsyncIo>) -> Result<OriginStream, OpenError> {
        self.greet_as(self.server.tls, io).await
    }

    async fn greet_as(&self, tls: OriginTls, io: Box<dyn AsyncIo>) -> Result<OriginStream, OpenError> {
        match (tls, &self.config) {
            (OriginTls::Implicit, Some(config)) => {
                let (io, peer) = self.secure(io, config).await?;
                let mut lines = Lines::new(io);
                let greeting = lines.greeting().await?;
                self.judge(&greeting.kind, greeting.line.clone())?;
                Ok(stream(lines.into_io(), greeting.line, peer))
            }
            (OriginTls::StartTls, Some(config)) => {
                let mut lines = Lines::new(io);
                let greeting = lines.greeting().await?;
                match greeting.kind {
                    Kind::Ok => {}
                    Kind::Bye => return Err(OpenError::Bye(greeting.line)),
                    Kind::Preauth => {
                        return Err(OpenError::Greeting(
                            "PREAUTH before TLS: STARTTLS is no longer possible",
                        ));
                    }
                }
                lines.start_tls().await?;
                let (io, peer) = self.secure(lines.into_bare_io()?, config).await?;
                Ok(stream(io, greeting.without_code(), peer))
            }
            (OriginTls::Plain, _) => {
                let mut lines = Lines::new(io);
                let greeting = lines.greeting().await?;
                self.judge(&greeting.kind, greeting.line.clone())?;
                let peer = OriginIdentity { spki_sha256: [0; 32], verified_by: VerifiedBy::Plain };
                Ok(stream(lines.into_io(), greeting.line, peer))
            }
            (OriginTls::Implicit | OriginTls::StartTls, None) => {
                Err(OpenError::Tls("no TLS settings for this server".into()))
            }
        }
    }

    fn judge(&self, kind: &Kind, line: bytes::Bytes) -> Result<(), OpenError> {
        match kind {
            Kind::Ok => Ok(()),
            Kind::Preauth if self.server.allow_preauth => Ok(()),
            Kind::Preauth => Err(OpenError::Greeting("PREAUTH, which the configuration does not allow")),
            Kind::Bye => Err(OpenError::Bye(line)),
        }
    }

    async fn secure(
        &self,
        io: Box<dyn AsyncIo>,
        config: &Arc<ClientConfig>,
    ) -> Result<(Box<dyn AsyncIo>, OriginIdentity), OpenError> {
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(self.name.clone(), io).await.map_err(tls_error)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(spki_sha256) = leaf.and_then(spki_sha256) else {
            return Err(OpenError::Tls("the server's certificate has no readable key".into()));
        };
        let stream = Stream::new(stream, |tls, octets| tls.get_ref().0.set_receive_window(octets));
        Ok((Box::new(stream), OriginIdentity { spki_sha256, verified_by: VerifiedBy::Local }))
    }
}

fn stream(io: Box<dyn AsyncIo>, greeting: bytes::Bytes, peer: OriginIdentity) -> OriginStream {
    OriginStream { io, greeting, peer, caps: StreamCaps { half_close: true, parked_age: None } }
}

/// Tells a certificate that is wrong from a network that broke.
fn tls_error(error: io::Error) -> OpenError {
    if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return OpenError::Tls(tls.to_string());
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return OpenError::Tls("the server closed the connection during the handshake".into());
    }
    OpenError::Network(error.to_string())
}
