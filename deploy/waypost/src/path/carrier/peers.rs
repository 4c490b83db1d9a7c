//! Which peers the engine can count on, and what they say of themselves and of each other.

use super::Carrier;
use crate::path::questions::{Answer, Key, Offered, Question};
use discovery_core::{
    engine::{self, Event},
    id::NodeId,
    probe::KeyHint,
};
use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use wan_core::Candidates;

/// What is known of a peer of the engine's.
#[derive(Default)]
pub(super) struct Met {
    up: bool,
    pub(super) node: Option<NodeId>,
    /// Another one has told of it, and is believed.
    told: bool,
    /// When it is looked for again, and how often it was in vain.
    again: Option<(Instant, u32)>,
}

impl Carrier {
    /// Makes the link to a peer that was learnt, so that the next connection finds it warm.
    pub(in super::super) async fn meet(self: Arc<Self>, peer: engine::Peer) {
        let Some(links) = self.links.get() else { return };
        match links.connect(&self.at(peer)).await {
            Ok(node) => self.met(peer, node),
            Err(why) => {
                tracing::info!(link = %peer.link, %why, "a peer on the path has no link; connections go direct");
                self.set_up(peer, false);
            }
        }
    }

    /// There is a link to `peer`, and now it is known who that is.
    pub(super) fn met(&self, peer: engine::Peer, node: NodeId) {
        self.lock().peers.entry(peer).or_default().node = Some(node);
        let sure = self.links.get().is_some_and(|links| links.is_sure(&self.at(peer)));
        self.set_up(peer, sure);
    }

    fn set_up(&self, peer: engine::Peer, up: bool) {
        let mut state = self.lock();
        let met = state.peers.entry(peer).or_default();
        let changed = std::mem::replace(&mut met.up, up) != up;
        met.again = if up { None } else { met.again.or(Some((Instant::now() + AGAIN_MIN, 0))) };
        drop(state);
        if changed {
            self.tell(if up { Event::PeerUp { peer } } else { Event::PeerDown { peer } });
        }
    }

    /// A peer says that connections are to go past it, or no longer.
    pub(in super::super) fn aside(&self, from: &NodeId, aside: bool) {
        tracing::debug!(%from, aside, "a peer steps aside, or is back");
        for peer in self.of_node(from) {
            self.tell(Event::PeerAside { peer, aside });
        }
    }

    /// A peer tells who serves as well as itself. Whether that matters, the engine knows.
    pub(in super::super) fn told(self: &Arc<Self>, from: &NodeId, list: &Candidates) {
        let (Some(upward), Some(links)) = (self.upward.get(), self.links.get()) else { return };
        let offers: Vec<Offered> = list
            .nodes
            .iter()
            .map(|node| {
                let engine::Peer { link, key } =
                    self.as_known(engine::Peer { link: node.link, key: node.key });
                let load = u8::try_from(node.load / 10).unwrap_or(100).min(100);
                Offered { link, key: key.0, rank: node.rank, load, able: node.able }
            })
            .collect();
        let tellers: Vec<Key> = self
            .of_node(from)
            .into_iter()
            .map(|peer| peer.key)
            .chain(links.key_of(from))
            .map(|key| key.0)
            .collect();
        let networks: Vec<(IpAddr, u8)> =
            list.networks.iter().map(|network| (network.address(), network.bits())).collect();
        tracing::trace!(%from, nodes = offers.len(), networks = networks.len(), "told of candidates");
        let (carrier, questions) = (Arc::clone(self), Arc::clone(&upward.questions));
        tokio::spawn(async move {
            let told = Question::Told { tellers, networks, offers: offers.clone() };
            // No stranger makes this node dial.
            if let Some(Answer::Counts(true)) = questions.ask(&told).await {
                carrier.look_for(&offers);
            }
        });
    }

    /// Makes links to those that may be asked, so that they can be.
    fn look_for(self: &Arc<Self>, offers: &[Offered]) {
        for offer in offers.iter().filter(|offer| offer.able).take(LOOKED_FOR_MAX) {
            let peer = engine::Peer { link: offer.link, key: KeyHint(offer.key) };
            let mut state = self.lock();
            let full = state.peers.len() >= PEERS_MAX;
            let fresh = !state.peers.contains_key(&peer) && !full;
            if fresh {
                state.peers.insert(peer, Met { told: true, ..Met::default() });
            }
            drop(state);
            if fresh {
                tokio::spawn(Arc::clone(self).meet(peer));
            }
        }
    }

    /// Which node it is, as far as that is known.
    pub(in super::super) fn name(&self, peer: engine::Peer) -> Option<NodeId> {
        let named = self.named.get().and_then(|named| named.get(&peer)).cloned();
        named.or_else(|| self.lock().peers.get(&peer).and_then(|met| met.node.clone()))
    }

    /// The engine's names of a node.
    fn of_node(&self, node: &NodeId) -> Vec<engine::Peer> {
        let named = self.named.get().into_iter().flatten();
        let named = named.filter(|(_, of)| *of == node).map(|(peer, _)| *peer);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let met = state.peers.iter().filter(|(_, met)| met.node.as_ref() == Some(node));
        let mut all: Vec<engine::Peer> = met.map(|(peer, _)| *peer).chain(named).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// A node that the operator named is known by that name whoever tells of it.
    fn as_known(&self, peer: engine::Peer) -> engine::Peer {
        let node = self.links.get().and_then(|links| links.whose(peer.key));
        let known = node.map(|node| self.of_node(&node)).unwrap_or_default();
        known.first().copied().unwrap_or(peer)
    }

    /// Those whose turn it is to be looked for again.
    fn take_missed(&self) -> Vec<engine::Peer> {
        let now = Instant::now();
        let mut state = self.lock();
        let mut missed = Vec::new();
        for (peer, met) in &mut state.peers {
            let known = met.told
                || met.node.is_some()
                || self.named.get().is_some_and(|named| named.contains_key(peer));
            if let Some((at, tries)) = met.again
                && !met.up
                && known
                && at <= now
            {
                let wait = AGAIN_MIN.saturating_mul(1 << tries.min(6)).min(AGAIN_MAX);
                met.again = Some((now + wait, tries.saturating_add(1)));
                missed.push(*peer);
            }
        }
        missed
    }

    /// One that has left is met again as soon as it is back, and not when its next packet happens to be seen.
    async fn look_again(self: Arc<Self>, peer: engine::Peer) {
        let Some(links) = self.links.get() else { return };
        match links.connect(&self.at(peer)).await {
            Ok(node) => self.met(peer, node),
            Err(why) => tracing::debug!(link = %peer.link, %why, "a peer is still away"),
        }
    }
}

/// Tells the engine which links stand.
pub(in super::super) async fn watch_peers(carrier: Arc<Carrier>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(links) = carrier.links.get() else { continue };
        let peers: Vec<engine::Peer> = carrier.lock().peers.keys().copied().collect();
        for peer in peers {
            carrier.set_up(peer, links.is_sure(&carrier.at(peer)));
        }
        for peer in carrier.take_missed() {
            tokio::spawn(Arc::clone(&carrier).look_again(peer));
        }
    }
}

pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
/// As long as a node takes that is started anew.
const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Of one list.
const LOOKED_FOR_MAX: usize = 8;
/// As many as the engine remembers.
const PEERS_MAX: usize = 256;
