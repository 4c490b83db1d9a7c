//! Which certificates clients see: the operator's own, minted ones, or both.

use crate::{
    config::{Config, Server, value::Unlisted},
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
use rustls::server::ResolvesServerCert;
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
        if let Some(operator) = &config.tls.operator {
            let certificates =
                OperatorCert::open(operator.cert.clone(), operator.key.clone()).map_err(|e| wrong(&e))?;
            // The client checks the name; a name that leads elsewhere must be told apart, though.
            let tunnels = config
                .listeners
                .iter()
                .any(|listener| listener.server == server.name && listener.unlisted == Unlisted::Tunnel);
            let listed = if tunnels { Listed::Only(names) } else { Listed::Any };
            return Ok(Self { certificates: Arc::new(certificates), listed });
        }
        let Some(dir) = &config.tls.ca_dir else {
            return Err(wrong(&"[tls] names neither a certificate nor a CA"));
        };
        let authority = Authority::load(dir).map_err(|e| wrong(&e))?;
        let mint = MintNames { allowed: names.clone(), default: names.clone() };
        let minter = Minter::new(authority, &mint, None).map_err(|e| wrong(&e))?;
        Ok(Self { certificates: Arc::new(minter), listed: Listed::Only(names) })
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
