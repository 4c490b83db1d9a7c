//! `[[carry]]`: an address of this machine at which clients reach a server through a peer, of any protocol on TCP. Nobody
//! stands in anybody's way: the client speaks to this node, and the server to the peer.

use super::{
    keys::CARRY,
    network::Link,
    problem::Problem,
    reader::{Found, TableReader},
    sections::{Around, Sections},
    value::quoted,
};
use discovery_core::id::NodeId;
use std::net::SocketAddr;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Carry {
    pub(crate) listen: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) peer: NodeId,
}

/// Reads them all.
pub(super) fn carries(
    sections: &Sections<'_, '_>,
    around: &Around<'_>,
    link: Option<&Link>,
    found: &mut Found,
) -> Vec<Carry> {
    let mut carries: Vec<Carry> = Vec::new();
    for (nth, table) in sections.many(&CARRY, found).into_iter().enumerate() {
        if link.is_none() && nth == 0 {
            let what = "[[carry]]: it goes over the link, and there is neither [link] nor [interception]";
            found.problems.push(Problem::error(table.1, what));
        }
        let mut t = TableReader::new(around.text, &CARRY, nth, Some(table), found);
        let (listen, server, peer) = (t.need("listen"), t.need("server"), t.need::<NodeId>("peer"));
        if let Some(peer) = &peer
            && link.is_some_and(|link| link.peers.iter().all(|other| other.id != *peer))
        {
            t.object("peer", format!("{} is no [[peer]] of this file", quoted(peer.as_str())));
        }
        if let Some(listen) = listen
            && carries.iter().any(|other| other.listen == listen)
        {
            t.object("listen", format!("{listen} is taken by another [[carry]]"));
        }
        if let (Some(listen), Some(server), Some(peer)) = (listen, server, peer) {
            carries.push(Carry { listen, server, peer });
        }
    }
    carries
}
