//! Several nodes that could serve one server (US 9,172,620, 'N SPs'): which of them a connection goes to. Asked by a
//! deflector, or by a client's node that was given the list; both come to the same answer, now and after a restart.

use crate::{engine::Peer, flow::Flow};
use std::cmp::Reverse;

/// One of them, as last heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Who.
    pub peer: Peer,
    /// 0 is the primary; higher ones stand in.
    pub rank: u8,
    /// It takes connections.
    pub available: bool,
    /// How much of it is in use, in percent.
    pub load: u8,
}

/// How one is chosen among those that can take a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The lowest rank, and among equals as [`Policy::Hash`]: pairs stay pairs, and what they know stays useful.
    #[default]
    Primary,
    /// The least load.
    Load,
    /// By client and server address, so that the same two always meet at the same node; when a node comes or goes, only
    /// the connections that were or will be its own move (rendezvous hashing).
    Hash,
}

/// From this load on a candidate is near its capacity: only when all are.
pub const NEAR_CAPACITY: u8 = 90;

/// The candidate for a connection; none when none is available.
#[must_use]
pub fn choose(candidates: &[Candidate], policy: Policy, flow: &Flow) -> Option<Peer> {
    candidates
        .iter()
        .filter(|candidate| candidate.available)
        .max_by_key(|candidate| {
            let weight = weight(candidate.peer, flow);
            let spare = candidate.load < NEAR_CAPACITY;
            let wanted = match policy {
                Policy::Primary => Reverse(candidate.rank),
                Policy::Load => Reverse(candidate.load),
                Policy::Hash => Reverse(0),
            };
            (spare, wanted, weight, candidate.peer)
        })
        .map(|candidate| candidate.peer)
}

/// How well a node and a pair of addresses fit. Ports do not count: one user's connections to one server meet.
fn weight(peer: Peer, flow: &Flow) -> u64 {
    let mut hash = mixed(0, &peer.key.0);
    for address in [flow.client.ip(), flow.server.ip()] {
        hash = match address {
            std::net::IpAddr::V4(v4) => mixed(hash, &v4.octets()),
            std::net::IpAddr::V6(v6) => mixed(hash, &v6.octets()),
        };
    }
    hash
}

/// FNV-1a, then the finalizer of MurmurHash3 so that close addresses end far apart. Part of what nodes agree on.
fn mixed(seed: u64, octets: &[u8]) -> u64 {
    let start = seed ^ 0xcbf2_9ce4_8422_2325;
    let hash =
        octets.iter().fold(start, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::KeyHint;
    use std::{collections::BTreeMap, net::SocketAddr};

    fn candidate(n: u8, rank: u8, load: u8) -> Candidate {
        let peer = Peer { link: SocketAddr::from(([10, 8, 0, n], 7777)), key: KeyHint([n; 8]) };
        Candidate { peer, rank, available: true, load }
    }

    fn flow(client: u16) -> Flow {
        let [a, b] = client.to_be_bytes();
        Flow { client: SocketAddr::from(([10, 1, a, b], 5)), server: SocketAddr::from(([10, 2, 0, 2], 143)) }
    }

    fn chosen(candidates: &[Candidate], policy: Policy, client: u16) -> Option<u8> {
        choose(candidates, policy, &flow(client)).map(|peer| peer.key.0[0])
    }

    #[test]
    fn the_primary_is_left_only_when_it_is_away_or_near_its_capacity() {
        let all = [candidate(1, 0, 50), candidate(2, 1, 0), candidate(3, 2, 0)];
        assert_eq!(chosen(&all, Policy::Primary, 1), Some(1));
        let away = [Candidate { available: false, ..all[0] }, all[1], all[2]];
        assert_eq!(chosen(&away, Policy::Primary, 1), Some(2));
        let full = [candidate(1, 0, 90), all[1], all[2]];
        assert_eq!(chosen(&full, Policy::Primary, 1), Some(2));
        let all_full = [candidate(1, 0, 99), candidate(2, 1, 90)];
        assert_eq!(chosen(&all_full, Policy::Primary, 1), Some(1), "better a full one than none");
        assert_eq!(chosen(&[], Policy::Primary, 1), None);
        assert_eq!(chosen(&[Candidate { available: false, ..all[0] }], Policy::Hash, 1), None);
    }

    #[test]
    fn load_goes_to_the_least_loaded() {
        assert_eq!(chosen(&[candidate(1, 0, 50), candidate(2, 9, 49)], Policy::Load, 1), Some(2));
    }

    #[test]
    fn hashing_spreads_evenly_and_moves_only_what_it_must() {
        let three = [candidate(1, 0, 0), candidate(2, 0, 0), candidate(3, 0, 0)];
        let two = [three[0], three[2]];
        let mut shares: BTreeMap<u8, u32> = BTreeMap::new();
        for client in 0..3_000 {
            let before = chosen(&three, Policy::Hash, client).unwrap();
            let after = chosen(&two, Policy::Hash, client).unwrap();
            assert!(before == after || before == 2, "client {client} moved from {before} to {after}");
            *shares.entry(before).or_default() += 1;
        }
        assert!(shares.values().all(|share| (900..=1_100).contains(share)), "{shares:?}");
        let other_port = Flow { client: SocketAddr::from(([10, 1, 0, 1], 9)), ..flow(1) };
        assert_eq!(choose(&three, Policy::Hash, &other_port), choose(&three, Policy::Hash, &flow(1)));
    }

    #[test]
    fn the_same_answer_for_ever() {
        let three = [candidate(1, 0, 0), candidate(2, 0, 0), candidate(3, 0, 0)];
        let answers: Vec<_> = (0..8).map(|client| chosen(&three, Policy::Hash, client).unwrap()).collect();
        assert_eq!(answers, PINNED, "nodes of different versions must agree");
    }

    const PINNED: &[u8] = &[3, 2, 1, 1, 1, 3, 3, 2];
}
