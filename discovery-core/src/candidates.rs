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
    /// Whether it takes connections, and why not.
    pub standing: Standing,
    /// How much of it is in use, in percent.
    pub load: u8,
}

/// What is known of one beside its place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// It takes connections.
    Ready,
    /// It has been away a moment ago: only when no other is ready, so that one that comes and goes takes nothing with it.
    HeldDown,
    /// It has refused this server a moment ago.
    Refused,
    /// It says that connections are to go past it: it leaves, or its operator has switched it off.
    Aside,
    /// Nothing is heard of it: there is no link, or silence on it.
    Away,
}

impl Standing {
    /// Every one there is.
    pub const ALL: &[Self] = &[Self::Ready, Self::HeldDown, Self::Refused, Self::Aside, Self::Away];

    /// Whether it can be given a connection at all.
    #[must_use]
    pub const fn is_able(self) -> bool {
        match self {
            Self::Ready | Self::HeldDown => true,
            Self::Refused | Self::Aside | Self::Away => false,
        }
    }

    /// The word that `status` and `explain` show.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::HeldDown => "held-down",
            Self::Refused => "refused",
            Self::Aside => "aside",
            Self::Away => "away",
        }
    }
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

/// The candidate for a connection; none when none is able.
#[must_use]
pub fn choose(candidates: &[Candidate], policy: Policy, flow: &Flow) -> Option<Peer> {
    let able = candidates.iter().filter(|candidate| candidate.standing.is_able());
    able.max_by_key(|candidate| worth(candidate, policy, flow)).map(|candidate| candidate.peer)
}

/// All of them as a connection prefers them: those that are able first, and each the one that [`choose`] gives without those
/// before it.
#[must_use]
pub fn order(candidates: &[Candidate], policy: Policy, flow: &Flow) -> Vec<Candidate> {
    let mut ordered = candidates.to_vec();
    ordered.sort_by_key(|candidate| Reverse((candidate.standing.is_able(), worth(candidate, policy, flow))));
    ordered
}

type Worth = (bool, bool, Reverse<u8>, u64, Peer);

fn worth(candidate: &Candidate, policy: Policy, flow: &Flow) -> Worth {
    let settled = candidate.standing != Standing::HeldDown || crate::mutants::on("candidates-no-hold-down");
    let spare = candidate.load < NEAR_CAPACITY;
    let wanted = match policy {
        Policy::Primary => Reverse(candidate.rank),
        Policy::Load => Reverse(candidate.load),
        Policy::Hash => Reverse(0),
    };
    (settled, spare, wanted, weight(candidate.peer, flow), candidate.peer)
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
    use proptest::prelude::*;
    use std::{collections::BTreeMap, net::SocketAddr};

    fn candidate(n: u8, rank: u8, load: u8) -> Candidate {
        let peer = Peer { link: SocketAddr::from(([10, 8, 0, n], 7777)), key: KeyHint([n; 8]) };
        Candidate { peer, rank, standing: Standing::Ready, load }
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
        let away = [Candidate { standing: Standing::Away, ..all[0] }, all[1], all[2]];
        assert_eq!(chosen(&away, Policy::Primary, 1), Some(2));
        let full = [candidate(1, 0, 90), all[1], all[2]];
        assert_eq!(chosen(&full, Policy::Primary, 1), Some(2));
        let all_full = [candidate(1, 0, 99), candidate(2, 1, 90)];
        assert_eq!(chosen(&all_full, Policy::Primary, 1), Some(1), "better a full one than none");
        assert_eq!(chosen(&[], Policy::Primary, 1), None);
        assert_eq!(chosen(&[Candidate { standing: Standing::Away, ..all[0] }], Policy::Hash, 1), None);
    }

    #[test]
    fn one_that_comes_and_goes_is_taken_only_for_want_of_another() {
        let held = Candidate { standing: Standing::HeldDown, ..candidate(1, 0, 0) };
        let (second, full) = (candidate(2, 9, 0), candidate(2, 9, 95));
        assert_eq!(chosen(&[held, second], Policy::Primary, 1), Some(2));
        assert_eq!(
            chosen(&[held, full], Policy::Primary, 1),
            Some(2),
            "better a full one than one that goes"
        );
        assert_eq!(chosen(&[held], Policy::Primary, 1), Some(1), "better one that goes than none");
        let away = Candidate { standing: Standing::Away, ..second };
        assert_eq!(chosen(&[held, away], Policy::Primary, 1), Some(1));
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

    proptest! {
        /// The order is what is chosen when those before are gone, whatever they are.
        #[test]
        fn the_order_is_one_choice_after_another(
            all in proptest::collection::vec((1..32_u8, 0..4_u8, 0..5_usize, 0..=100_u8), 0..12),
            client: u16,
        ) {
            let mut all: Vec<Candidate> = all
                .into_iter()
                .map(|(n, rank, standing, load)| Candidate {
                    standing: Standing::ALL[standing], ..candidate(n, rank, load)
                })
                .collect();
            all.sort_by_key(|candidate| candidate.peer);
            all.dedup_by_key(|candidate| candidate.peer);
            for policy in [Policy::Primary, Policy::Load, Policy::Hash] {
                let ordered = order(&all, policy, &flow(client));
                prop_assert_eq!(ordered.len(), all.len());
                for n in 0..=ordered.len() {
                    let able = ordered[n..].first().filter(|candidate| candidate.standing.is_able());
                    prop_assert_eq!(choose(&ordered[n..], policy, &flow(client)), able.map(|c| c.peer));
                }
            }
        }
    }

    const PINNED: &[u8] = &[3, 2, 1, 1, 1, 3, 3, 2];
}
