//! Which certificates clients see: the operator's own, minted ones, or both.

use crate::{
    config::{self, Config, Server, value::Unlisted},
    exit::{Exit, Failure},
};
use epc::{
    intake::{FrontTls, Listed, MinTls},
    tls::{
        authority::Authority,
        mint::{MintNames, Minter},
        operator::OperatorCert,
    },
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// What a server's clients are shown, as it stands in the configuration.
pub(crate) struct Shown {
    certificates: Arc<dyn ResolvesServerCert>,
    listed: Listed,
}

impl Shown {
    /// Reads what `config` names for `server`.
    pub(crate) fn open(config: &Config, server: &Server) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::say(Exit::Usage, format_args!("the certificate for {}: {error}", server.name))
        };
        let mut names = vec![server.host.0.clone()];
        names.extend(server.aliases.iter().map(|alias| alias.0.clone()));
        // A name that leads elsewhere must be told apart; else the client checks the name itself.
        let tunnels = config
            .listeners
            .iter()
            .any(|listener| listener.server == server.name && listener.unlisted == Unlisted::Tunnel);
        let operator = match &config.tls.operator {
            Some(config::Operator { cert, key }) => {
                Some(OperatorCert::open(cert.clone(), key.clone()).map_err(|e| wrong(&e))?)
            }
            None => None,
        };
        let minter = match &config.tls.ca_dir {
            Some(dir) => {
                let authority = Authority::load(dir).map_err(|e| wrong(&e))?;
                let mint = MintNames { allowed: names.clone(), default: names.clone() };
                Some(Minter::new(authority, &mint, config.tls.rsa_key.as_deref()).map_err(|e| wrong(&e))?)
            }
            None => None,
        };
        let any = operator.is_some() && !tunnels;
        let certificates: Arc<dyn ResolvesServerCert> = match (operator, minter) {
            (Some(operator), Some(minter)) => Arc::new(Either { operator, minter }),
            (Some(operator), None) => Arc::new(operator),
            (None, Some(minter)) => Arc::new(minter),
            (None, None) => return Err(wrong(&"[tls] names neither a certificate nor a CA")),
        };
        let listed = if any { Listed::Any } else { Listed::Only(names) };
        Ok(Self { certificates, listed })
    }

    pub(crate) fn front(self) -> Result<Arc<FrontTls>, Failure> {
        FrontTls::new(self.certificates, &self.listed, MinTls::default())
            .map(Arc::new)
            .map_err(|error| Failure::new(Exit::Unavailable, error))
    }

    /// Shows these from the next handshake on.
    pub(crate) fn replace(self, front: &FrontTls) -> Result<(), Failure> {
        front.replace(self.certificates, &self.listed).map_err(|error| Failure::new(Exit::Unavailable, error))
    }
}

/// The operator's certificate for the names in it, minted ones for the server's other names.
#[derive(Debug)]
struct Either {
    operator: OperatorCert,
    minter: Minter,
}

impl ResolvesServerCert for Either {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) if !self.operator.is_for(name) => self.minter.resolve(hello),
            Some(_) | None => self.operator.resolve(hello),
        }
    }
}
