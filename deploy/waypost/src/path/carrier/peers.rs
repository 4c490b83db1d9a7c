//! Which peers the engine can count on, and what they say of themselves and of each other.

mod lists;

use super::Carrier;
use crate::path::questions::{Answer, Key, Offered, Question};
use discovery_core::{
    engine::{self, Event},
    id::NodeId,
    mutants,
};
pub(super) use lists::Lists;
use std::{
    collections::HashMap,
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
    /// Nothing else leads to it.
    told: Option<ToldBy>,
    /// When the path led to it last.
    led: Option<Instant>,
    /// When it is looked for again, and how often it was in vain.
    again: Option<(Instant, u32)>,
}

/// Another one has told of it, and is believed.
struct ToldBy {
    teller: NodeId,
    /// When anybody named it last.
    last: Instant,
}

impl Carrier {
    /// Makes the link to a peer that was learnt, so that the next connection finds it warm.
    pub(in super::super) async fn meet(self: Arc<Self>, peer: engine::Peer) {
        let Some(links) = self.links.get() else { return };
        if !led_to(&mut self.lock().peers, Instant::now(), peer, |peer| self.is_named(peer)) {
            tracing::warn!(link = %peer.link, "too many peers on the path; connections go direct");
            return;
        }
        match links.connect(&self.at(peer)).await {
            Ok(node) => self.met(peer, node),
            Err(why) => {
                tracing::info!(link = %peer.link, %why, "a peer on the path has no link; connections go direct");
                self.set_up(peer, false);
            }
        }
    }

    fn is_named(&self, peer: &engine::Peer) -> bool {
        self.named.get().is_some_and(|named| named.contains_key(peer))
    }

    /// There is a link to `peer`, and now it is known who that is.
    pub(super) fn met(&self, peer: engine::Peer, node: NodeId) {
        self.lock().peers.entry(peer).or_default().node = Some(node);
        let sure = self.links.get().is_some_and(|links| links.is_sure(&self.at(peer)));
        self.set_up(peer, sure);
    }

    fn set_up(&self, peer: engine::Peer, up: bool) {
        let mut state = self.lock();
        let Some(met) = state.peers.get_mut(&peer) else { return };
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

    /// A peer tells who serves as well as itself.
    pub(in super::super) fn told(self: &Arc<Self>, from: &NodeId, list: &Candidates) {
        if self.lock().lists.heard(Instant::now(), from, list) {
            self.pass_on(from, list);
        }
    }

    /// Whether a list matters, the engine knows.
    fn pass_on(self: &Arc<Self>, from: &NodeId, list: &Candidates) {
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
        let (carrier, teller, questions) = (Arc::clone(self), from.clone(), Arc::clone(&upward.questions));
        tokio::spawn(async move {
            let told = Question::Told { tellers, networks, offers: offers.clone() };
            // No stranger makes this node dial.
            if let Some(Answer::Counts(true)) = questions.ask(&told).await {
                carrier.look_for(&teller, &offers);
            }
        });
    }

    /// Makes links to those that may be asked, so that they can be.
    fn look_for(self: &Arc<Self>, teller: &NodeId, offers: &[Offered]) {
        let fresh = named_by(&mut self.lock().peers, Instant::now(), teller, offers);
        for peer in fresh {
            tokio::spawn(Arc::clone(self).look_again(peer));
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
            let known = met.told.is_some() || met.node.is_some() || self.is_named(peer);
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
            // Nobody may name it any more.
            Ok(node) if self.lock().peers.contains_key(&peer) => self.met(peer, node),
            Ok(_) => {}
            Err(why) => tracing::debug!(link = %peer.link, %why, "a peer is still away"),
        }
    }
}

/// The path leads to `peer`, whoever tells of it; `false` when there is no room. Answers can be forged: one whose link stands,
/// or whom the operator named, makes room for nobody, and who was met goes after who was not.
fn led_to(
    peers: &mut HashMap<engine::Peer, Met>,
    now: Instant,
    peer: engine::Peer,
    is_named: impl Fn(&engine::Peer) -> bool,
) -> bool {
    let learnt = |peer: &engine::Peer| !is_named(peer) || mutants::on("path-named-evicted");
    if !peers.contains_key(&peer) && peers.keys().filter(|peer| learnt(peer)).count() >= PEERS_MAX {
        let away = peers.iter().filter(|(peer, met)| learnt(peer) && !met.up);
        let gone =
            away.min_by_key(|(peer, met)| (met.node.is_some(), met.led, **peer)).map(|(peer, _)| *peer);
        let Some(gone) = gone else { return false };
        peers.remove(&gone);
    }
    let met = peers.entry(peer).or_default();
    (met.told, met.led) = (None, Some(now));
    true
}

/// A list names nodes. Those of which nothing was known, to which links are to be made.
fn named_by(
    peers: &mut HashMap<engine::Peer, Met>,
    now: Instant,
    teller: &NodeId,
    offers: &[Offered],
) -> Vec<engine::Peer> {
    let by = |met: &&Met| met.told.as_ref().is_some_and(|told| told.teller == *teller);
    let mut of_teller = peers.values().filter(by).count();
    let mut fresh = Vec::new();
    for offer in offers.iter().filter(|offer| offer.able) {
        let peer = offer.peer();
        if let Some(met) = peers.get_mut(&peer) {
            met.told.iter_mut().for_each(|told| told.last = now);
        } else if of_teller < LOOKED_FOR_MAX && peers.len() < PEERS_MAX {
            let told = Some(ToldBy { teller: teller.clone(), last: now });
            let again = Some((now + AGAIN_MIN, 0));
            peers.insert(peer, Met { told, again, ..Met::default() });
            of_teller += 1;
            fresh.push(peer);
        }
    }
    fresh
}

/// Who is not there, and whom nobody names any more, is not looked for either.
fn forget_unnamed(peers: &mut HashMap<engine::Peer, Met>, now: Instant) {
    let named = |told: &ToldBy| now.saturating_duration_since(told.last) < TOLD_FOR;
    peers.retain(|_, met| met.up || met.told.as_ref().is_none_or(named));
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
        let now = Instant::now();
        forget_unnamed(&mut carrier.lock().peers, now);
        let due = carrier.lock().lists.due(now);
        for (from, list) in due {
            carrier.pass_on(&from, &list);
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
/// A list is told every second.
const TOLD_FOR: Duration = Duration::from_secs(10);
/// Of one teller.
const LOOKED_FOR_MAX: usize = 16;
/// As many as the engine remembers.
const PEERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn offer(n: u16) -> Offered {
        let [a, b] = n.to_be_bytes();
        let link = SocketAddr::from(([10, 9, a, b], 7777));
        Offered { link, key: [a, b, 0, 0, 0, 0, 0, 0], rank: 0, load: 0, able: true }
    }

    #[test]
    fn one_that_tells_of_many_leaves_room_for_others_and_who_is_no_longer_named_is_forgotten() {
        let (mut peers, start) = (HashMap::new(), Instant::now());
        let [greedy, honest] = ["greedy", "honest"].map(|name| NodeId::new(name).unwrap());
        let at = |seconds| start + Duration::from_secs(seconds);
        // The operator's, and one of the path: they stay.
        peers.insert(offer(9_999).peer(), Met::default());
        let mut dialled = 0;
        for second in 0..9_u16 {
            let many: Vec<Offered> = (64 * second..64 * (second + 1)).map(offer).collect();
            dialled += named_by(&mut peers, at(u64::from(second)), &greedy, &many).len();
            forget_unnamed(&mut peers, at(u64::from(second)));
        }
        assert_eq!(dialled, LOOKED_FOR_MAX, "others each second");
        assert_eq!(named_by(&mut peers, at(9), &honest, &[offer(5_000)]), [offer(5_000).peer()]);
        assert_eq!(named_by(&mut peers, at(9), &honest, &[offer(5_000), offer(1)]), [], "once is enough");
        // One has a link, one was named again by somebody else.
        peers.get_mut(&offer(0).peer()).unwrap().up = true;
        forget_unnamed(&mut peers, at(10));
        let mut left: Vec<engine::Peer> = peers.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [0, 1, 5_000, 9_999].map(|n| offer(n).peer()));
        // Who is not able there is not named.
        named_by(&mut peers, at(18), &honest, &[Offered { able: false, ..offer(5_000) }, offer(1)]);
        forget_unnamed(&mut peers, at(19));
        assert!(!peers.contains_key(&offer(5_000).peer()) && peers.contains_key(&offer(1).peer()));
    }

    #[test]
    fn whatever_is_forged_on_the_path_whom_the_operator_named_and_who_has_a_link_stay() {
        let (mut peers, start) = (HashMap::new(), Instant::now());
        let [named, linked, left] = [9_001, 9_002, 9_003].map(|n| offer(n).peer());
        let is_named = |peer: &engine::Peer| *peer == named;
        peers.insert(named, Met::default());
        assert!(led_to(&mut peers, start, linked, is_named) && led_to(&mut peers, start, left, is_named));
        peers.get_mut(&linked).unwrap().up = true;
        peers.get_mut(&left).unwrap().node = Some(NodeId::new("left").unwrap());
        for n in 0..2_000_u16 {
            let now = start + Duration::from_millis(u64::from(n));
            assert!(led_to(&mut peers, now, offer(n).peer(), is_named));
            assert!(peers.len() <= PEERS_MAX + 1, "{}", peers.len());
        }
        assert!([named, linked, left, offer(1_999).peer()].iter().all(|peer| peers.contains_key(peer)));
        assert!(!peers.contains_key(&offer(0).peer()));
        // Where all have links, nobody goes.
        peers.values_mut().for_each(|met| met.up = true);
        assert!(!led_to(&mut peers, start, offer(3_000).peer(), is_named));
        assert!(led_to(&mut peers, start, named, is_named));
    }
}
