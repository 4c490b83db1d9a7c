//! Mail servers opened for peers: TLS, STARTTLS and the greeting beside the server, by what this node trusts.
//!
//! Which server a peer may reach is decided before, as for octets (decisions/0028): whoever may have a connection carried
//! may do all of this through it by himself. So a server needs no `[[server]]` here, only an authority that this machine
//! trusts. What octets do not give is this node's own address, which a server may trust more than a client's: that
//! takes a `[[server]]` here that says so.

use crate::{
    config::value::{Encryption, Source},
    node::{
        mail::{Mail, Named},
        origins::Origins as Configured,
    },
};
use discovery_core::{id::ServerId, value::Class};
use epc::origin::{DirectOrigins, LineRecords, OriginServer, OriginTls};
use seams::{
    AsyncIo,
    intake::ClientAddr,
    origin::{OpenError, Opened, OriginConnector, OriginRequest, OriginStream, SourcePolicy},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;
use wan::OpenedStream;
use wan_core::{OpenFrame, Reason as Why};

/// See the module's documentation.
pub(super) struct Origins {
    mail: Arc<Mail>,
    /// Those that the configuration does not name, by what their certificate must bear.
    others: Mutex<HashMap<(ServerId, u16), Arc<DirectOrigins>>>,
}

/// How one is opened.
#[derive(Debug)]
pub(super) struct OriginRoad {
    name: ServerId,
    by: By,
}

enum By {
    Configured { origins: Arc<Configured>, from_here: bool },
    Other(Arc<DirectOrigins>),
}

impl std::fmt::Debug for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Configured { .. } => "Configured",
            Self::Other(_) => "Other",
        })
    }
}

impl Origins {
    pub(super) fn new(mail: Arc<Mail>) -> Self {
        Self { mail, others: Mutex::default() }
    }

    /// How to open what a peer asks for.
    pub(super) fn road(&self, open: &OpenFrame) -> Result<OriginRoad, Why> {
        let host = open.server.as_ref().ok_or(Why::UnknownServer)?;
        let port = open.flow.server.port();
        if let Some(server) = self.mail.named(host.as_str(), open.flow.server) {
            let Named { config: server, stands_there } = server;
            // Without TLS nothing would say that it is the server of that name.
            if server.tls == Encryption::Plain {
                return Err(Why::Unsupported);
            }
            // What is granted is an address, what is dialled is a name: they must be one server.
            let from_here = server.source == Source::Own && stands_there;
            let by = By::Configured { origins: Arc::clone(self.mail.origins()), from_here };
            return Ok(OriginRoad { name: server.name, by });
        }
        let tls = match port {
            993 => OriginTls::Implicit,
            143 => OriginTls::StartTls,
            _ => return Err(Why::UnknownServer),
        };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.clone(), port);
        let origins = match others.get(&key) {
            Some(origins) => Arc::clone(origins),
            None => {
                let mut server = OriginServer::new(host.clone(), host.as_str(), port);
                server.tls = tls;
                let origins = DirectOrigins::new([server]).map_err(|error| {
                    tracing::debug!(%error, "a peer's server cannot be opened here");
                    Why::UnknownServer
                })?;
                if others.len() >= OTHERS_MAX {
                    others.clear();
                }
                let origins = Arc::new(origins);
                others.insert(key, Arc::clone(&origins));
                origins
            }
        };
        Ok(OriginRoad { name: host.clone(), by: By::Other(origins) })
    }
}

impl OriginRoad {
    /// Over a connection that stands.
    pub(super) async fn greet(&self, io: Box<dyn AsyncIo>) -> Result<OpenedStream, Why> {
        let greeted = async {
            match &self.by {
                By::Configured { origins, .. } => origins.greet_over(&self.name, io).await,
                By::Other(origins) => origins.greet_over(&self.name, io).await,
            }
        };
        let greeted = timeout(GREET_MAX, greeted).await.unwrap_or(Err(OpenError::TimedOut));
        self.opened(greeted)
    }

    /// Whether the operator lets peers have this server see this node, at the address that they ask for.
    pub(super) fn is_from_here(&self) -> Result<&Configured, Why> {
        match &self.by {
            By::Configured { origins, from_here: true } => Ok(origins),
            By::Configured { .. } | By::Other(_) => Err(Why::UnknownServer),
        }
    }

    /// Over one of this node's own.
    pub(super) async fn open_from_here(&self, client: SocketAddr) -> Result<OpenedStream, Why> {
        let origins = self.is_from_here()?;
        let request = OriginRequest {
            server: self.name.clone(),
            addr: None,
            client: ClientAddr(client),
            source: SourcePolicy::Own,
            purpose: Class::Interactive,
            patience: GREET_MAX,
        };
        self.opened(origins.open(request).await)
    }

    fn opened(&self, greeted: Result<OriginStream, OpenError>) -> Result<OpenedStream, Why> {
        let stream = greeted.map_err(|error| {
            tracing::info!(server = %self.name, %error, "a peer's server is not opened here; the peer may do it");
            refused(&error)
        })?;
        let OriginStream { io, greeting, peer, caps } = stream;
        let told = Opened { spki_sha256: peer.spki_sha256, greeting, parked: caps.parked_age.is_some() };
        let info = told.encode().ok_or(Why::Unsupported)?;
        Ok(OpenedStream { io: Box::new(LineRecords::new(io)), info })
    }
}

/// All but the first: the server is there, and the peer may try by itself.
fn refused(error: &OpenError) -> Why {
    match error {
        OpenError::Refused => Why::ServerRefused,
        OpenError::UnknownServer(_) | OpenError::Resolve { .. } => Why::UnknownServer,
        OpenError::TimedOut | OpenError::Network(_) | OpenError::Tls(_) | OpenError::StartTls(_) => {
            Why::ServerTls
        }
        OpenError::Greeting(_) | OpenError::Bye(_) => Why::Unsupported,
    }
}

/// A peer's client waits, and is let go after two seconds; carrying its octets needs the rest.
const GREET_MAX: Duration = Duration::from_secs(1);
/// A peer may name as many as it likes.
const OTHERS_MAX: usize = 64;
