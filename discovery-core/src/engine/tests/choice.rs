//! Several peers for one server.

use super::*;
use crate::{candidates::Standing, pmt::StaticPeer};
use Verdict::{Drop, Pass, PassWithQuery};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Peers of these preferences, named for all servers, with links.
fn named(preferences: &[u8]) -> Rig {
    let mut config = Config::default();
    config.pmt.statics = (1..).zip(preferences).map(|(n, preference)| static_peer(n, *preference)).collect();
    let mut rig = Rig::with(config);
    for n in (1..).take(preferences.len()) {
        rig.tell(Event::PeerUp { peer: peer(n) });
    }
    rig
}

fn static_peer(n: u8, preference: u8) -> StaticPeer {
    StaticPeer { network: Prefix::new([10, 2, 0, 0].into(), 24), port: None, peer: peer(n), preference }
}

/// Whom the engine has asked since.
fn opened(rig: &mut Rig) -> Vec<Peer> {
    let opens = |output| if let Output::Open { peer, .. } = output { Some(peer) } else { None };
    rig.outputs().into_iter().filter_map(opens).collect()
}

/// Whom a new connection asks; none when it goes past.
fn asks(rig: &mut Rig, flow: Flow) -> (Option<u8>, Reason) {
    let (verdict, why) = rig.see(&syn(flow, 7));
    let asked = opened(rig).first().map(|peer| peer.key.0[0]);
    assert_eq!(verdict == Drop, asked.is_some(), "{why}");
    rig.tell(Event::Refused { flow, why: Refusal::ServerRefused });
    rig.outputs();
    (asked, why)
}

#[test]
fn the_preferred_one_is_asked_wherever_it_stands_in_the_file() {
    for (preferences, first) in [(&[0, 1][..], 1), (&[1, 0], 2), (&[7, 9, 3], 3), (&[5], 1)] {
        let mut rig = named(preferences);
        assert_eq!(asks(&mut rig, flow()), (Some(first), Reason::StaticHit), "{preferences:?}");
    }
}

#[test]
fn who_does_not_take_it_is_passed_over_for_the_next() {
    // What it did, and whether its link stands or it has said anything about the server.
    for (why, again) in
        [(Refusal::Peer, false), (Refusal::Unseen, false), (Refusal::NoLink, false), (Refusal::NotNow, true)]
    {
        let mut rig = named(&[0, 1, 2]);
        assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::StaticHit));
        assert_eq!(rig.outputs(), [open(1)]);
        for next in [2, 3] {
            rig.tell(Event::Refused { flow: flow(), why });
            assert_eq!(rig.outputs(), [open(next)], "{why:?}");
            assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::Opening), "it is kept for the next one");
        }
        rig.tell(Event::Opened { flow: flow() });
        assert_eq!(rig.outputs(), [inject()], "{why:?}");
        assert_eq!(rig.engine.count(Reason::NextPeer), 2);
        let (asked, _) = asks(&mut rig, flow_of(2));
        assert_eq!(
            asked,
            Some(if again { 1 } else { 3 }),
            "what was said of the server is remembered: {why:?}"
        );
        rig.wait(ms(30_000));
        assert_eq!(asks(&mut rig, flow_of(3)), (Some(1), Reason::StaticHit), "for a while: {why:?}");
    }
}

#[test]
fn a_link_that_breaks_and_a_peer_that_says_nothing_are_passed_over_too() {
    for silent in [false, true] {
        let mut rig = named(&[0, 1]);
        rig.see(&syn(flow(), ISN));
        rig.outputs();
        let why = if silent {
            rig.wait(ms(2_000));
            Reason::OpenTimedOut
        } else {
            rig.tell(Event::PeerDown { peer: peer(1) });
            Reason::PeerDown
        };
        assert_eq!(rig.outputs(), [Output::Abort { flow: flow(), why }, open(2)]);
        assert_eq!(asks(&mut rig, flow_of(2)), (Some(2), Reason::StandIn));
    }
}

/// Only when none is left, and after the path has been asked, if it can be.
#[test]
fn it_goes_direct_when_none_is_left() {
    let mut rig = named(&[0, 1]);
    rig.see(&syn(flow(), ISN));
    rig.tell(Event::Refused { flow: flow(), why: Refusal::Peer });
    rig.tell(Event::Refused { flow: flow(), why: Refusal::Peer });
    assert_eq!(rig.outputs(), [open(1), open(2), release()]);
    assert_eq!(rig.see(&syn(flow_of(2), 7)), (Pass, Reason::StaticPeerDown));
    // Both silent: the client waits for no third.
    let mut rig = named(&[0, 1, 2]);
    rig.see(&syn(flow(), ISN));
    rig.wait(ms(3_999));
    assert_eq!(rig.outputs().len(), 3, "one silence, and another one begun");
    rig.wait(ms(2));
    assert_eq!(rig.outputs(), [Output::Abort { flow: flow(), why: Reason::OpenTimedOut }, release()]);
    // Nobody there at all.
    let mut rig = named(&[0, 1]);
    for n in [1, 2] {
        rig.tell(Event::PeerDown { peer: peer(n) });
    }
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::StaticPeerDown));
}

#[test]
fn the_preferred_one_is_returned_to_when_it_has_stood_for_a_while() {
    let mut rig = named(&[0, 1]);
    for (hold, n) in [(3_000, 2), (6_000, 3)] {
        rig.tell(Event::PeerDown { peer: peer(1) });
        assert_eq!(asks(&mut rig, flow_of(10 * n)), (Some(2), Reason::StandIn));
        rig.tell(Event::PeerUp { peer: peer(1) });
        rig.wait(ms(hold - 1));
        assert_eq!(asks(&mut rig, flow_of(10 * n + 1)), (Some(2), Reason::StandIn), "it may go again");
        // Better than none.
        rig.tell(Event::PeerAside { peer: peer(2), aside: true });
        assert_eq!(asks(&mut rig, flow_of(10 * n + 2)), (Some(1), Reason::StaticHit));
        rig.tell(Event::PeerAside { peer: peer(2), aside: false });
        rig.wait(ms(1));
        assert_eq!(asks(&mut rig, flow_of(10 * n + 3)), (Some(1), Reason::StaticHit));
    }
}

#[test]
fn equal_ones_share_and_the_same_two_ends_always_meet_at_the_same() {
    let mut rig = named(&[4, 4]);
    let mut shares = [0, 0];
    for client in 0..200_u8 {
        let at = |port| Flow { client: SocketAddr::from(([10, 1, 0, client], port)), ..flow() };
        let (first, why) = asks(&mut rig, at(1_000));
        assert_eq!(why, Reason::StaticHit);
        assert_eq!(asks(&mut rig, at(2_000)).0, first, "another port of the same client");
        shares[usize::from(first.unwrap() - 1)] += 1;
    }
    assert!(shares.iter().all(|share| *share > 60), "{shares:?}");
}

#[test]
fn one_that_steps_aside_is_not_asked_and_its_link_stands() {
    let mut rig = named(&[0, 1]);
    rig.tell(Event::PeerAside { peer: peer(1), aside: true });
    assert_eq!(asks(&mut rig, flow()), (Some(2), Reason::StandIn));
    let all = rig.engine.candidates(rig.now(), &flow());
    let standings: Vec<_> = all.iter().map(|r| (r.candidate.peer.key.0[0], r.candidate.standing)).collect();
    assert_eq!(standings, [(2, Standing::Ready), (1, Standing::Aside)]);
}

fn told(rig: &Rig, offers: &[(u8, u8, u8, bool)]) -> Told {
    let offer = |(n, rank, load, able): &(u8, u8, u8, bool)| Offer {
        peer: peer(*n),
        rank: *rank,
        load: *load,
        able: *able,
    };
    Told {
        networks: vec![Prefix::new([10, 2, 0, 0].into(), 24)],
        offers: offers.iter().map(offer).collect(),
        until: rig.now().mono + ms(5_000),
    }
}

/// One that is known by the path, and two that have links.
fn learnt() -> Rig {
    let mut rig = Rig::new();
    for n in [1, 2, 3] {
        rig.tell(Event::PeerUp { peer: peer(n) });
    }
    rig.see(&syn(flow_of(1), 1));
    rig.see(&response(flow_of(1), 1, peer(1), false));
    rig.tell(Event::Opened { flow: flow_of(1) });
    rig.tell(Event::Closed { flow: flow_of(1) });
    rig.outputs();
    rig
}

#[test]
fn a_peer_that_is_asked_may_tell_of_others_and_the_node_chooses_itself() {
    for (offers, asked, why) in [
        (&[][..], 1, Reason::TableHit),
        (&[(1, 1, 0, true), (2, 0, 0, true)][..], 2, Reason::ToldHit),
        (&[(1, 0, 0, true), (2, 1, 0, true)], 1, Reason::TableHit),
        (&[(1, 0, 95, true), (2, 1, 0, true)], 2, Reason::StandIn),
        (&[(1, 1, 0, true), (2, 0, 0, false)], 1, Reason::StandIn),
        (&[(1, 1, 0, true), (9, 0, 0, true)], 1, Reason::StandIn),
    ] {
        let mut rig = learnt();
        let list = told(&rig, offers);
        rig.engine.told(peer(1).key, list);
        assert_eq!(asks(&mut rig, flow()), (Some(asked), why), "{offers:?}");
        rig.wait(ms(5_000));
        assert_eq!(asks(&mut rig, flow_of(2)), (Some(1), Reason::TableHit), "an old list: {offers:?}");
    }
}

/// Of its place and its load everybody speaks for himself.
#[test]
fn nobody_displaces_another_by_what_he_tells_of_him() {
    for (teller, asked, why) in [(2, 1, Reason::StaticHit), (1, 2, Reason::StandIn)] {
        let mut rig = named(&[0, 1]);
        let list = told(&rig, &[(1, 9, 95, true), (2, 0, 0, true)]);
        rig.engine.told(peer(teller).key, list);
        assert_eq!(asks(&mut rig, flow()), (Some(asked), why), "told by {teller}");
    }
    // Nor is one that was told of moved by a second word.
    let mut rig = learnt();
    let list = told(&rig, &[(1, 1, 0, true), (2, 0, 0, true), (2, 9, 99, true)]);
    rig.engine.told(peer(1).key, list);
    assert_eq!(asks(&mut rig, flow()), (Some(2), Reason::ToldHit));
}

#[test]
fn who_carries_in_the_place_of_another_is_not_learnt_and_the_teller_is_asked_next() {
    let mut rig = learnt();
    let list = told(&rig, &[(1, 1, 0, true), (2, 0, 0, true)]);
    rig.engine.told(peer(1).key, list);
    rig.see(&syn(flow(), ISN));
    rig.tell(Event::Opened { flow: flow() });
    assert_eq!(rig.outputs(), [open(2), inject()]);
    assert_eq!(rig.known(), Lookup::Known(Known::Peer(peer(1))), "the path leads to the same as before");
    rig.see(&syn(flow_of(5), ISN));
    rig.tell(Event::Refused { flow: flow_of(5), why: Refusal::Unseen });
    assert_eq!(opened(&mut rig), [peer(2), peer(1)]);
}

#[test]
fn a_strangers_list_leads_nobody_astray() {
    let mut rig = learnt();
    // It has a link, and is asked for nothing.
    let list = told(&rig, &[(3, 0, 0, true), (1, 0, 99, false)]);
    rig.engine.told(peer(3).key, list.clone());
    let known = |rig: &Rig| {
        let candidates = rig.engine.candidates(rig.now(), &flow());
        candidates.iter().map(|ranked| ranked.candidate.peer).collect::<Vec<_>>()
    };
    assert_eq!(known(&rig), [peer(1)]);
    for port in 0..64 {
        assert_eq!(asks(&mut rig, flow_of(port)), (Some(1), Reason::TableHit));
    }
    // Nor is one that is asked believed of servers that are none of its own.
    let elsewhere = Told { networks: vec![Prefix::new([10, 9, 0, 0].into(), 16)], ..list };
    rig.engine.told(peer(1).key, elsewhere);
    assert_eq!(asks(&mut rig, flow_of(100)), (Some(1), Reason::TableHit));
    // Nor does a list make a way where there was none.
    let mut rig = Rig::new();
    rig.tell(Event::PeerUp { peer: peer(3) });
    let list = told(&rig, &[(3, 0, 0, true)]);
    rig.engine.told(peer(3).key, list);
    assert_eq!(rig.see(&syn(flow(), ISN)), (PassWithQuery, Reason::Probing));
}

#[test]
fn lists_are_bounded() {
    let mut rig = learnt();
    let many: Vec<_> = (10..200).map(|n| (n, 0, 0, true)).collect();
    let list = told(&rig, &many);
    rig.engine.told(peer(1).key, list);
    assert!(rig.engine.candidates(rig.now(), &flow()).len() <= Config::default().candidates_max);
}

/// A peer that is being upgraded answers no query; a moment later it does again.
#[test]
fn while_a_peer_is_missed_nobody_there_is_not_believed_for_long() {
    let server_answers = |rig: &mut Rig, port| {
        assert_eq!(rig.see(&syn(flow_of(port), ISN)), (PassWithQuery, Reason::Probing), "{port}");
        rig.see(&answer(flow_of(port), ISN.wrapping_add(1)));
        assert_eq!(rig.see(&syn(flow_of(port + 1), ISN)), (Pass, Reason::NoProxy));
    };
    for gone in [Event::PeerDown { peer: peer(1) }, Event::PeerAside { peer: peer(1), aside: true }] {
        let mut rig = learnt();
        rig.tell(gone);
        server_answers(&mut rig, 100);
        rig.wait(ms(2_000));
        server_answers(&mut rig, 110);
        rig.tell(Event::PeerUp { peer: peer(1) });
        rig.tell(Event::PeerAside { peer: peer(1), aside: false });
        rig.wait(ms(2_000));
        // Back, and its packets are not.
        server_answers(&mut rig, 120);
        rig.wait(ms(2_000));
        assert_eq!(rig.see(&syn(flow_of(130), ISN)), (PassWithQuery, Reason::Probing));
        // Nobody is missed: then nobody is there.
        rig.wait(ms(1_000));
        server_answers(&mut rig, 140);
        rig.wait(ms(59_000));
        assert_eq!(rig.see(&syn(flow_of(150), ISN)), (Pass, Reason::NoProxy), "{gone:?}");
    }
}

proptest! {
    /// Whatever the peers do, a client's SYN is kept no longer than two answers may take, each peer is asked once for a
    /// connection, and none goes past while one that is ready has not been asked.
    #[test]
    fn nobody_waits_for_long_and_nobody_ready_is_left_out(
        preferences in proptest::collection::vec(0..3_u8, 1..5),
        script in proptest::collection::vec((0..6_u8, 0..5_u8, 0..1_500_u64), 1..24),
    ) {
        let mut rig = named(&preferences);
        let began = rig.at;
        let (verdict, _) = rig.see(&syn(flow(), ISN));
        prop_assert_eq!(verdict, Drop);
        let (mut asked, mut current, mut past) = (BTreeSet::new(), None, false);
        for (what, who, later) in script {
            for output in rig.outputs() {
                if let Output::Open { peer, .. } = output {
                    prop_assert!(asked.insert(peer), "asked twice");
                    current = Some(peer);
                } else if matches!(output, Output::ReleaseSyn { .. } | Output::ProbeSyn { .. }) {
                    past = true;
                }
            }
            if past {
                let soon = rig.at - began <= ms(2_000) || asked.len() == 1;
                let all = rig.engine.candidates(rig.now(), &flow());
                let left = all.iter().find(|r| r.candidate.standing.is_able() && !asked.contains(&r.candidate.peer));
                prop_assert!(!soon || left.is_none(), "{:?} was not asked", left);
                break;
            }
            let peer = peer(1 + who % u8::try_from(preferences.len()).unwrap());
            match what {
                0 => rig.tell(Event::PeerDown { peer }),
                1 => rig.tell(Event::PeerUp { peer }),
                2 => rig.tell(Event::PeerAside { peer, aside: true }),
                3 => rig.tell(Event::Refused { flow: flow(), why: Refusal::Peer }),
                4 => rig.tell(Event::Refused { flow: flow(), why: Refusal::NotNow }),
                _ => rig.wait(ms(later)),
            }
        }
        rig.wait(ms(10_000));
        let kept = rig.engine.load().kept_octets;
        prop_assert_eq!(if past || current.is_none() { 0 } else { kept }, 0, "a SYN is kept for ever");
    }
}

#[test]
fn however_many_strangers_tell_the_list_of_whom_the_operator_named_stays() {
    let mut rig = named(&[0]);
    let list = told(&rig, &[(2, 1, 0, true)]);
    rig.engine.told(peer(1).key, list.clone());
    for n in 0..1_000_u64 {
        rig.engine.told(KeyHint((n + (1 << 32)).to_be_bytes()), list.clone());
    }
    let known = |key| rig.engine.told.peek(&key).is_some();
    assert!(known(peer(1).key) && !known(KeyHint((1_u64 << 32).to_be_bytes())));
    assert_eq!(rig.engine.told.len(), Config::default().peers_max + 1);
}

/// The word that a peer steps aside comes after what its absence has shown, and what it showed is doubted too.
#[test]
fn what_was_learnt_just_before_the_word_is_not_believed_for_long_either() {
    for gone in [Event::PeerDown { peer: peer(1) }, Event::PeerAside { peer: peer(1), aside: true }] {
        let mut rig = learnt();
        let elsewhere = |port| Flow { server: ([10, 7, 7, 7], 143).into(), ..flow_of(port) };
        let asks = |rig: &mut Rig, port| rig.see(&syn(elsewhere(port), ISN));
        assert_eq!(asks(&mut rig, 1), (PassWithQuery, Reason::Probing));
        rig.see(&answer(elsewhere(1), ISN.wrapping_add(1)));
        rig.wait(ms(4_000));
        assert_eq!(asks(&mut rig, 2), (Pass, Reason::NoProxy));
        rig.tell(gone);
        rig.wait(ms(1_999));
        assert_eq!(asks(&mut rig, 3), (Pass, Reason::NoProxy));
        rig.wait(ms(1));
        assert_eq!(asks(&mut rig, 4), (PassWithQuery, Reason::Probing), "{gone:?}");
        // What was learnt long before stays.
        let mut rig = learnt();
        asks(&mut rig, 1);
        rig.see(&answer(elsewhere(1), ISN.wrapping_add(1)));
        rig.wait(ms(6_000));
        rig.tell(gone);
        rig.wait(ms(10_000));
        assert_eq!(asks(&mut rig, 4), (Pass, Reason::NoProxy), "{gone:?}");
    }
}
