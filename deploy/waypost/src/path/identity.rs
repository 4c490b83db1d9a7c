//! Who this node is, and who may be its peer, as the links want it.

use crate::{
    config::{
        Config,
        network::{Link, OWN},
    },
    exit::{Exit, Failure},
    identity::Place,
};
use discovery_core::probe::KeyHint;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};
use wan::{Authority, Identity, PeerSpec, Presented, Settings, Sockets, admit::Peers, key_hint};

/// What was read.
pub(super) struct Known {
    pub(super) settings: Settings,
    /// How probe responses name this node.
    pub(super) key: KeyHint,
}

/// `sockets`: where connections to peers get theirs.
pub(super) fn load(
    config: &Config,
    link: &Link,
    sockets: Option<Arc<dyn Sockets>>,
) -> Result<Known, Failure> {
    let place = Place(link.identity.clone());
    let chain = certificates(&place.cert())?;
    let presented = Presented::of(&chain)
        .map_err(|_| unusable(&place.cert(), "names no node; `waypost join` puts one here that does"))?;
    if presented.node != config.node.id {
        let what = format!(
            "is the identity of {}, and [node] id is {}: one of the two must change",
            presented.node, config.node.id
        );
        return Err(unusable(&place.cert(), &what));
    }
    let key = key(&place.key())?;
    let own = Authority { name: OWN.to_owned(), roots: certificates(&place.authority())?, prefixes: None };
    let others = link.authorities.iter().map(|other| {
        Ok(Authority {
            name: other.name.clone(),
            roots: certificates(&other.certificate)?,
            prefixes: Some(other.servers.clone()),
        })
    });
    let authorities = std::iter::once(Ok(own)).chain(others).collect::<Result<_, Failure>>()?;
    let peers = link.peers.iter().map(|peer| {
        let spec = PeerSpec {
            addresses: peer.address.into_iter().collect(),
            fallback: None,
            pin: peer.pin.map(|pin| pin.0),
        };
        (peer.id.clone(), spec)
    });
    let settings = Settings {
        identity: Identity { chain, key },
        authorities,
        peers: Peers { known: peers.collect(), revoked: link.revoked.clone() },
        sockets,
        link: wan_core::Config::default(),
        patience: PATIENCE,
        loopback: false,
    };
    Ok(Known { settings, key: key_hint(&presented.spki) })
}

/// A client waits for it: then it goes direct.
const PATIENCE: Duration = Duration::from_secs(2);

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = fs::read(path).map_err(|error| Failure::io(path.display().to_string(), error))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => Err(unusable(path, "holds no certificate in PEM")),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    let metadata = fs::metadata(path).map_err(|error| Failure::io(path.display().to_string(), error))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(unusable(path, "lets others read a secret; run chmod 600 on it"));
    }
    let pem = fs::read(path).map(zeroize::Zeroizing::new);
    let pem = pem.map_err(|error| Failure::io(path.display().to_string(), error))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable(path, "holds no private key in PEM"))
}

fn unusable(path: &Path, why: &str) -> Failure {
    Failure::say(Exit::Usage, format_args!("{} {why}", path.display()))
}
