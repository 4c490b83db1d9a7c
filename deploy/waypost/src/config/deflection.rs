//! `[deflector]` and `[off_path]`: a node on the path that only turns packets, and the proxies to which it turns them.

use super::{
    keys::{DEFLECTOR, OFF_PATH},
    network::{Interception, Link, Peer, option_kind},
    problem::Problem,
    reader::Found,
    sections::Sections,
    value::{DeflectMode, DeflectPolicy, Port, quoted},
};
use discovery_core::id::NodeId;
use std::net::SocketAddr;

/// A node that turns packets to proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deflector {
    pub(crate) mode: DeflectMode,
    pub(crate) policy: DeflectPolicy,
    /// In the order in which they are preferred, and where their links are.
    pub(crate) proxies: Vec<(NodeId, SocketAddr)>,
    pub(crate) port: u16,
}

/// A proxy off the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffPath {
    pub(crate) deflector: NodeId,
    /// Where its link is; its doors to servers are at the same IP address.
    pub(crate) at: SocketAddr,
    pub(crate) port: u16,
    /// The TCP option in which the deflector says whom a client meant.
    pub(crate) option_kind: u8,
}

/// Reads `[deflector]`; none without the section.
pub(super) fn deflector(
    sections: &Sections<'_, '_>,
    interception: Option<&Interception>,
    link: Option<&Link>,
    found: &mut Found,
) -> Option<Deflector> {
    let (_, place) = sections.value(DEFLECTOR.name).map(|_| ((), sections.place(&DEFLECTOR, 0, "mode")))?;
    if interception.is_none() {
        let what = "[deflector]: it turns packets on the path, and there is no [interception]";
        found.problems.push(Problem::error(place, what));
    }
    let mut t = sections.one(&DEFLECTOR, found);
    let names: Vec<NodeId> = t.need("proxies").unwrap_or_default();
    let mut proxies = Vec::new();
    for name in &names {
        match address(link, name) {
            Ok(at) => proxies.push((name.clone(), at)),
            Err(what) => t.object("proxies", what),
        }
    }
    if names.is_empty() && t.says("proxies") {
        t.object("proxies", "it is empty; allowed: at least one [[peer]] id");
    }
    Some(Deflector {
        mode: t.get("mode", DeflectMode::Static),
        policy: t.get("policy", DeflectPolicy::Primary),
        proxies,
        port: t.get("port", Port(PROXY_PORT)).0,
    })
}

/// Reads `[off_path]`; none without the section.
pub(super) fn off_path(
    sections: &Sections<'_, '_>,
    interception: Option<&Interception>,
    link: Option<&Link>,
    found: &mut Found,
) -> Option<OffPath> {
    sections.value(OFF_PATH.name)?;
    let place = sections.place(&OFF_PATH, 0, "deflector");
    if interception.is_some() {
        let what = "[off_path]: a node with [interception] stands on the path";
        found.problems.push(Problem::error(place, what));
    }
    let mut t = sections.one(&OFF_PATH, found);
    let deflector: NodeId = t.need("deflector")?;
    let port = t.get("port", Port(PROXY_PORT)).0;
    let option_kind = option_kind(&mut t);
    match address(link, &deflector) {
        Ok(at) => Some(OffPath { deflector, at, port, option_kind }),
        Err(what) => {
            t.object("deflector", what);
            None
        }
    }
}

fn address(link: Option<&Link>, name: &NodeId) -> Result<SocketAddr, String> {
    let peer: Option<&Peer> = link.and_then(|link| link.peers.iter().find(|peer| peer.id == *name));
    let named = quoted(name.as_str());
    match peer {
        None => Err(format!("{named} is no [[peer]] of this file")),
        Some(Peer { address: None, .. }) => Err(format!("the [[peer]] {named} has no address")),
        Some(Peer { address: Some(at), .. }) => Ok(*at),
    }
}

/// Beside the link's and the probes'.
const PROXY_PORT: u16 = 7784;
