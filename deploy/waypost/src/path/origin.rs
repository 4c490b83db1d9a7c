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
        origin_tls,
        origins::Origins as Configured,
    },
};
use discovery_core::{id::ServerId, value::Class};
use epc::origin::{DirectOrigins, LineRecords, OriginServer, OriginTls, SystemTrust};
use seams::{
    AsyncIo,
    intake::ClientAddr,
    origin::{OpenError, Opened, OriginConnector, OriginRequest, OriginStream, SourcePolicy},
};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::timeout;
use wan::OpenedStream;
use wan_core::{OpenFrame, Reason as Why};

/// See the module's documentation.
pub(super) struct Origins {
    mail: Arc<Mail>,
    /// For those that the configuration does not name. Read when the first is reached.
    authorities: OnceLock<SystemTrust>,
}

/// How one is opened.
#[derive(Debug)]
pub(super) struct OriginRoad {
    name: ServerId,
    by: By,
}

enum By {
    Configured {
        origins: Arc<Configured>,
        /// Of the port that the peer asks for.
        tls: OriginTls,
        from_here: bool,
    },
    /// By this machine's authorities.
    Other { port: u16, tls: OriginTls },
}

impl std::fmt::Debug for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Configured { .. } => "Configured",
            Self::Other { .. } => "Other",
        })
    }
}

impl Origins {
    pub(super) fn new(mail: Arc<Mail>) -> Self {
        Self { mail, authorities: OnceLock::new() }
    }

    /// How to open what a peer asks for. It has no grant yet: nothing is read or kept for it.
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
            let tls = origin_tls(server.tls);
            let by = By::Configured { origins: Arc::clone(self.mail.origins()), tls, from_here };
            return Ok(OriginRoad { name: server.name, by });
        }
        let tls = match port {
            993 => OriginTls::Implicit,
            143 => OriginTls::StartTls,
            _ => return Err(Why::UnknownServer),
        };
        Ok(OriginRoad { name: host.clone(), by: By::Other { port, tls } })
    }

    /// Over a connection that stands.
    pub(super) async fn greet(&self, road: &OriginRoad, io: Box<dyn AsyncIo>) -> Result<OpenedStream, Why> {
        let greeted = async {
            match &road.by {
                By::Configured { origins, tls, .. } => origins.greet_over(&road.name, Some(*tls), io).await,
                By::Other { port, tls } => {
                    let mut server = OriginServer::new(road.name.clone(), road.name.as_str(), *port);
                    server.tls = *tls;
                    let origins = self.other(server).ok_or(OpenError::UnknownServer(road.name.clone()))?;
                    origins.greet_over(&road.name, None, io).await
                }
            }
        };
        let greeted = timeout(GREET_MAX, greeted).await.unwrap_or(Err(OpenError::TimedOut));
        road.opened(greeted)
    }

    fn other(&self, server: OriginServer) -> Option<DirectOrigins> {
        let failed = |error: &dyn std::error::Error| {
            tracing::warn!(%error, "a peer's server cannot be opened here");
        };
        let authorities = match self.authorities.get() {
            Some(authorities) => authorities.clone(),
            None => {
                let read = SystemTrust::read().map_err(|error| failed(&error)).ok()?;
                self.authorities.get_or_init(|| read).clone()
            }
        };
        DirectOrigins::one(server, &authorities).map_err(|error| failed(&error)).ok()
    }
}

impl OriginRoad {
    /// Whether the operator lets peers have this server see this node, at the address that they ask for.
    pub(super) fn is_from_here(&self) -> Result<&Configured, Why> {
        match &self.by {
            By::Configured { origins, from_here: true, .. } => Ok(origins),
            By::Configured { .. } | By::Other { .. } => Err(Why::UnknownServer),
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
        OpenError::Tls(_) | OpenError::StartTls(_) => Why::ServerTls,
        OpenError::Greeting(_) => Why::Unsupported,
        // Of this connection, and nothing about the next.
        OpenError::TimedOut | OpenError::Network(_) | OpenError::Bye(_) => Why::Unknown,
    }
}

/// A peer's client waits, and is let go after two seconds; carrying its octets needs the rest.
const GREET_MAX: Duration = Duration::from_secs(1);
