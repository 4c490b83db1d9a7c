//! What a node tells its peers of itself and of others, beside their streams: that connections are to go past it for now, and
//! which nodes serve as well as it does. Nothing is repeated by the link, so it is said once a second.

use super::{
    ASIDE,
    carrier::Carrier,
    questions::{Answer, Offered, Question, Questions},
};
use crate::config::network::Link;
use bytes::Bytes;
use discovery_core::{
    id::NodeId,
    pmt::Prefix,
    probe::KeyHint,
    seam::sink::{Put, Sink},
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;
use wan::{Links, Peer};
use wan_core::{Candidate, Candidates, Notice};

/// See the module's documentation.
pub(super) struct Telling {
    carrier: Arc<Carrier>,
    /// This node in its own lists.
    own: (SocketAddr, KeyHint),
    /// Those that serve as well, where they are, and how they are preferred.
    others: Vec<(NodeId, SocketAddr, u8)>,
    networks: Vec<Prefix>,
    /// Of whom lists are passed on.
    deflector: Option<NodeId>,
    links: OnceLock<Links>,
    /// Where a deflector's table is.
    deflecting: OnceLock<Arc<Questions>>,
    /// What others have said of themselves.
    heard: Mutex<HashMap<NodeId, (Candidate, Instant)>>,
    aside: AtomicBool,
    leaves: AtomicBool,
}

impl Telling {
    pub(super) fn new(carrier: Arc<Carrier>, link: &Link, key: KeyHint, deflector: Option<NodeId>) -> Self {
        let serving = link.peers.iter().filter(|peer| !peer.serves.is_empty());
        let networks = serving.clone().flat_map(|peer| &peer.serves);
        let mut networks: Vec<Prefix> =
            networks.map(|network| Prefix::new(network.network(), network.length())).collect();
        networks.sort_unstable();
        networks.dedup();
        let others = serving.filter_map(|peer| Some((peer.id.clone(), peer.address?, peer.preference)));
        let own = link.advertise.first().copied().unwrap_or(link.listen);
        Self {
            carrier,
            own: (own, key),
            others: others.collect(),
            networks,
            deflector,
            links: OnceLock::new(),
            deflecting: OnceLock::new(),
            heard: Mutex::default(),
            aside: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
        }
    }

    pub(super) fn start(self: &Arc<Self>, links: Links) {
        let _once = self.links.set(links);
        tokio::spawn(Arc::clone(self).go_on());
    }

    pub(super) fn deflecting(&self, deflecting: Arc<Questions>) {
        let _once = self.deflecting.set(deflecting);
    }

    /// Connections are to go past this node, or no longer; peers hear it before the rules change.
    pub(super) fn aside(&self, aside: bool) {
        self.aside.store(aside, Ordering::Relaxed);
        self.say_aside(aside);
    }

    /// From now on its successor speaks.
    pub(super) fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    fn say_aside(&self, aside: bool) {
        if let Some(links) = self.links.get() {
            let octets = Bytes::copy_from_slice(&[u8::from(aside)]);
            links.notify(None, &Notice::Other { kind: ASIDE, octets });
        }
    }

    async fn go_on(self: Arc<Self>) {
        loop {
            sleep(TELL_EVERY).await;
            if self.leaves.load(Ordering::Relaxed) {
                return;
            }
            let aside = self.aside.load(Ordering::Relaxed);
            if aside {
                self.say_aside(true);
            }
            let Some(links) = self.links.get() else { continue };
            let list = match self.deflecting.get() {
                Some(deflecting) => proxies(deflecting).await,
                None => self.list(links, aside),
            };
            if !list.nodes.is_empty() {
                links.tell_candidates(&list);
            }
        }
    }

    fn list(&self, links: &Links, aside: bool) -> Candidates {
        if self.others.is_empty() {
            return Candidates::default();
        }
        let (link, key) = self.own;
        let load = u16::try_from(self.carrier.carried().saturating_mul(1000) / CARRIED_MAX).unwrap_or(1000);
        let own = Candidate { link, key, rank: 0, able: !aside, load: load.min(1000) };
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.others.iter().filter_map(|(node, at, rank)| {
            // Whose key is not known yet cannot be told from another one there.
            let key = links.key_of(node)?;
            let said = heard.get(node).filter(|(_, at)| at.elapsed() < HEARD_MAX).map(|(said, _)| *said);
            let able = links.is_up(&Peer::Node(node.clone())) && said.is_none_or(|said| said.able);
            Some(Candidate { link: *at, key, rank: *rank, able, load: said.map_or(0, |said| said.load) })
        });
        Candidates { networks: self.networks.clone(), nodes: std::iter::once(own).chain(others).collect() }
    }
}

impl Sink<(NodeId, Candidates)> for Telling {
    fn put(&self, (from, list): (NodeId, Candidates)) -> Put {
        let Some(links) = self.links.get() else { return Put::Taken };
        if self.deflector.as_ref() == Some(&from) {
            // The deflector has no links with clients' nodes; its proxies have.
            links.tell_candidates(&list);
            return Put::Taken;
        }
        let key = links.key_of(&from);
        if let Some(own) = list.nodes.iter().find(|node| Some(node.key) == key)
            && self.others.iter().any(|(other, ..)| *other == from)
        {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.insert(from.clone(), (*own, Instant::now()));
        }
        self.carrier.told(&from, &list);
        Put::Taken
    }
}

/// A deflector's, for clients' nodes: those choose among them as it would.
async fn proxies(deflecting: &Questions) -> Candidates {
    match deflecting.ask(&Question::Proxies).await {
        Some(Answer::Proxies(offered)) => {
            let node = |offered: Offered| Candidate {
                link: offered.link,
                key: KeyHint(offered.key),
                rank: offered.rank,
                able: offered.able,
                load: u16::from(offered.load) * 10,
            };
            Candidates { networks: anywhere(), nodes: offered.into_iter().map(node).collect() }
        }
        Some(
            Answer::Status(..)
            | Answer::Explained(_)
            | Answer::Say(_)
            | Answer::Counts(_)
            | Answer::Unclaimed(_),
        )
        | None => Candidates::default(),
    }
}

/// Any server: of a deflector's proxies each reaches what it turns.
fn anywhere() -> Vec<Prefix> {
    let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    all.map(|address| Prefix::new(address, 0)).to_vec()
}

const TELL_EVERY: Duration = Duration::from_secs(1);
/// Several of them.
const HEARD_MAX: Duration = Duration::from_secs(5);
/// What counts as full.
const CARRIED_MAX: usize = 10_000;
