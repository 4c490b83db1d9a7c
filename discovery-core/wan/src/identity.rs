//! Who a node is: a certificate of the node authority with its id as a URI, `waypost://node/<id>`, and the key that
//! goes with it.

use discovery_core::{id::NodeId, probe::KeyHint, rule::Prefix};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use wan_core::Reason;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

/// What this node proves its id with.
pub struct Identity {
    /// The leaf first, then what leads to the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node", &Presented::of(&self.chain).ok()).finish_non_exhaustive()
    }
}

/// Somebody whose certificates name nodes.
#[derive(Clone, Debug)]
pub struct Authority {
    /// For logs and status.
    pub name: String,
    /// Its roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// Nodes of it serve, and ask for, servers of these addresses only. None: it is this node's own, and all.
    pub prefixes: Option<Vec<Prefix>>,
}

/// Why nothing can be built on an identity or an authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// The certificate names no node.
    #[error("the node's certificate has no URI waypost://node/<id> among its subject alternative names")]
    NoNode,
    /// The key, the chain or the roots.
    #[error("the node's identity cannot be used: {0}")]
    Tls(String),
    /// No authority is this node's own.
    #[error("no node authority is given")]
    NoAuthority,
}

/// What a peer's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Its node id.
    pub node: NodeId,
    /// SHA-256 of its public key: what a pin names.
    pub spki: [u8; 32],
}

impl Presented {
    /// Reads the leaf of a chain whose signatures were checked.
    ///
    /// # Errors
    /// [`Reason::NoIdentity`] when it names no node, or more than one.
    pub fn of(chain: &[CertificateDer<'_>]) -> Result<Self, Reason> {
        let leaf = chain.first().ok_or(Reason::NoIdentity)?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| Reason::NoIdentity)?;
        let names = leaf.subject_alternative_name().ok().flatten().ok_or(Reason::NoIdentity)?;
        let uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(URI),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => None,
        });
        let mut nodes = uris.map(NodeId::new);
        let (Some(Ok(node)), None) = (nodes.next(), nodes.next()) else { return Err(Reason::NoIdentity) };
        let spki = digest(&SHA256, leaf.public_key().raw);
        let spki = spki.as_ref().try_into().map_err(|_| Reason::NoIdentity)?;
        Ok(Self { node, spki })
    }
}

/// What probes tell of a key.
#[must_use]
pub fn key_hint(spki: &[u8; 32]) -> KeyHint {
    let mut hint = [0; 8];
    hint.iter_mut().zip(spki).for_each(|(to, from)| *to = *from);
    KeyHint(hint)
}

const URI: &str = "waypost://node/";
