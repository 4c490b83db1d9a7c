//! The client's side.

use super::*;
use crate::pmt::{PmtConfig, Refresh};
use Verdict::{Drop, Pass, PassWithQuery};

#[test]
fn a_query_goes_out_on_the_clients_syn_and_the_server_alone_answers() {
    let mut rig = Rig::new();
    assert_eq!(rig.see(&syn(flow(), ISN)), (PassWithQuery, Reason::Probing));
    assert_eq!(rig.see(&answer(flow(), ISN.wrapping_add(1))), (Pass, Reason::ServerAnswered));
    assert_eq!(rig.known(), Lookup::Known(Known::NoProxy));
    assert_eq!(rig.see(&syn(flow_of(40_001), 7)), (Pass, Reason::NoProxy), "until it is stale");
    rig.wait(ms(60_000));
    assert_eq!(rig.see(&syn(flow_of(40_002), 7)), (PassWithQuery, Reason::Probing));
    assert_eq!(rig.outputs(), []);
}

#[test]
fn the_first_answer_waits_for_the_link_and_later_ones_do_not() {
    for ack in [ISN, ISN.wrapping_add(1)] {
        let mut rig = Rig::new();
        rig.see(&syn(flow(), ISN));
        assert_eq!(rig.see(&response(flow(), ack, peer(1), true)), (Drop, Reason::Answered));
        assert_eq!(rig.outputs(), [open(1)], "an option can be forged: the client waits for the link");
        assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::Opening));
        assert_eq!(rig.see(&response(flow(), ack, peer(1), true)), (Drop, Reason::SecondAnswer));
        assert_eq!(rig.known(), Lookup::Unknown, "nothing is learnt from an option alone");
        rig.tell(Event::PeerUp { peer: peer(1) });
        rig.tell(Event::Opened { flow: flow() });
        assert_eq!(rig.outputs(), [inject()]);
        assert_eq!(rig.known(), Lookup::Known(Known::Peer(peer(1))));
        assert_eq!(
            rig.see(&syn(flow(), ISN)),
            (Pass, Reason::Carried),
            "the own socket knows what to do with it"
        );
        rig.wait(ms(61_000));
        rig.tell(Event::Closed { flow: flow() });
        assert_eq!(rig.see(&syn(flow(), 5)), (PassWithQuery, Reason::Probing), "stale: the next SYN probes");
        rig.see(&response(flow(), 5, peer(1), true));
        assert_eq!(
            rig.outputs(),
            [open(1), inject()],
            "the link stands and the server has accepted: at once"
        );
    }
}

#[test]
fn a_known_peer_is_asked_without_a_probe_and_the_syn_waits() {
    let mut rig = paired();
    assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::TableHit));
    assert_eq!(rig.outputs(), [open(1)]);
    assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::Opening));
    rig.tell(Event::Opened { flow: flow() });
    assert_eq!(rig.outputs(), [inject()]);
    rig.tell(Event::Closed { flow: flow() });
    rig.tell(Event::PeerDown { peer: peer(1) });
    assert_eq!(
        rig.see(&syn(flow(), ISN)),
        (PassWithQuery, Reason::Probing),
        "it may have moved: ask the path"
    );
}

#[test]
fn a_peer_that_refuses_is_passed_by_and_the_servers_refusal_is_told() {
    let rst = || Output::Reset { flow: flow(), seq: 0, ack: Some(ISN.wrapping_add(1)) };
    let host = Unreachable::Host;
    let icmp = || Output::Unreachable { flow: flow(), what: host, packet: SYN.to_vec() };
    for (why, wanted, reason) in [
        (Refusal::Peer, vec![release()], Reason::PeerRefused),
        (Refusal::NotNow, vec![release()], Reason::PeerRefused),
        (Refusal::NoLink, vec![probe()], Reason::ShownAgain),
        (Refusal::Unseen, vec![probe()], Reason::ShownAgain),
        (Refusal::ServerRefused, vec![rst()], Reason::ServerRefused),
        (Refusal::ServerUnreachable(host), vec![icmp()], Reason::ServerUnreachable),
        (Refusal::ServerSilent, vec![], Reason::ServerSilent),
    ] {
        let mut rig = paired();
        rig.see(&syn(flow(), ISN));
        rig.outputs();
        rig.tell(Event::Refused { flow: flow(), why });
        assert_eq!((rig.outputs(), rig.engine.count(reason)), (wanted, 1), "{why:?}");
        let refused = matches!(why, Refusal::Peer);
        let known = if refused { Known::NoProxy } else { Known::Peer(peer(1)) };
        assert_eq!(rig.known(), Lookup::Known(known), "only what it says of the server counts: {why:?}");
        // After the injection there is no way past any more.
        let reason = match why {
            Refusal::Unseen => Reason::PeerRefused,
            Refusal::NoLink => Reason::PeerDown,
            Refusal::ServerRefused | Refusal::ServerUnreachable(_) | Refusal::ServerSilent => reason,
            Refusal::NotNow | Refusal::Peer => reason,
        };
        rig.wait(ms(61_000));
        rig.tell(Event::PeerUp { peer: peer(1) });
        rig.see(&syn(flow(), 7));
        rig.see(&response(flow(), 7, peer(1), true));
        rig.outputs();
        rig.tell(Event::Refused { flow: flow(), why });
        let aborted = if rig.standing().is_none() { rig.outputs() } else { vec![] };
        assert_eq!(aborted, [Output::Abort { flow: flow(), why: reason }], "{why:?}");
    }
}

/// A peer that has started anew knows nothing of what the former process was shown.
#[test]
fn a_peer_that_saw_no_syn_is_shown_one_and_once() {
    for why in [Refusal::Unseen, Refusal::NoLink] {
        let mut rig = paired();
        rig.see(&syn(flow(), ISN));
        rig.outputs();
        rig.wait(ms(600));
        rig.tell(Event::Refused { flow: flow(), why });
        assert_eq!(rig.outputs(), [probe()], "{why:?}");
        rig.wait(ms(400));
        assert_eq!(
            rig.see(&syn(flow(), ISN)),
            (PassWithQuery, Reason::ProbedAgain),
            "a second after the client's own SYN its next one shows nothing of the way back"
        );
        assert_eq!(rig.see(&response(flow(), ISN, peer(2), false)), (Drop, Reason::Answered));
        assert_eq!(rig.outputs(), [open(2)], "whoever is there now");
        rig.tell(Event::Refused { flow: flow(), why });
        assert_eq!(rig.outputs(), [release()], "it saw the SYN by now: {why:?}");
        assert_eq!(rig.known(), Lookup::Known(Known::NoProxy));
    }
}

#[test]
fn what_cannot_be_asked_again_goes_past_and_what_must_not_stays() {
    for (room, action, wanted) in
        [(Room::Full, Action::Intercept, vec![release()]), (Room::Fits, Action::DropIfNoPeer, vec![])]
    {
        let mut rig = paired();
        rig.action = action;
        assert_eq!(rig.see(&Seen { room, ..syn(flow(), ISN) }), (Drop, Reason::TableHit));
        rig.outputs();
        rig.tell(Event::Refused { flow: flow(), why: Refusal::Unseen });
        assert_eq!(rig.outputs(), wanted, "{room:?}");
    }
}

#[test]
fn a_peer_that_says_nothing_is_passed_by() {
    let mut rig = paired();
    rig.see(&syn(flow(), ISN));
    rig.outputs();
    rig.wait(ms(2_000));
    assert_eq!(rig.outputs(), [Output::Abort { flow: flow(), why: Reason::OpenTimedOut }, release()]);
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Direct));
    assert_eq!(
        rig.see(&syn(flow_of(1), 1)),
        (Pass, Reason::NoProxy),
        "and so are the next ones, for a while"
    );
}

#[test]
fn a_node_that_stood_still_blames_nobody_for_its_own_silence() {
    for (answers, wanted) in [(true, Reason::TableHit), (false, Reason::NoProxy)] {
        let mut rig = paired();
        rig.see(&syn(flow(), ISN));
        rig.outputs();
        rig.at += ms(3_000);
        rig.engine.handle_timeout(rig.now());
        assert_eq!(rig.outputs(), [], "what came meanwhile is read first");
        if answers {
            rig.tell(Event::Opened { flow: flow() });
            assert_eq!(rig.outputs(), [inject()]);
        } else {
            rig.wait(ms(201));
            let gone = Output::Abort { flow: flow(), why: Reason::OpenTimedOut };
            assert_eq!(rig.outputs(), [gone, release()], "who is still silent then is silent");
        }
        assert_eq!(rig.see(&syn(flow_of(1), 1)).1, wanted);
    }
}

#[test]
fn on_a_machine_that_is_always_late_silence_ends_all_the_same() {
    let mut rig = paired();
    rig.see(&syn(flow(), ISN));
    rig.outputs();
    for _late in 0..3 {
        let due = rig.engine.poll_timeout().map(|at| at.saturating_duration_since(rig.now().mono));
        rig.at += due.unwrap_or_default() + ms(60);
        rig.engine.handle_timeout(rig.now());
    }
    assert_eq!(rig.outputs(), [Output::Abort { flow: flow(), why: Reason::OpenTimedOut }, release()]);
}

#[test]
fn repeated_syns_ask_again_once_and_then_go_without() {
    let mut rig = Rig::new();
    rig.see(&syn(flow(), ISN));
    rig.wait(ms(1_000));
    assert_eq!(rig.see(&syn(flow(), ISN)), (PassWithQuery, Reason::ProbedAgain));
    rig.wait(ms(2_000));
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::ProbesUnanswered));
    rig.wait(ms(4_000));
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Direct));
    assert_eq!(rig.see(&response(flow(), ISN, peer(1), true)), (Drop, Reason::LateAnswer));
    assert_eq!(rig.see(&answer(flow(), ISN.wrapping_add(1))), (Pass, Reason::Direct));
    assert_eq!(rig.known(), Lookup::Known(Known::OptionDropped), "a firewall drops what carries options");
    assert_eq!(rig.see(&syn(flow_of(1), 1)), (Pass, Reason::OptionDropped));
    assert_eq!(rig.outputs(), []);
}

#[test]
fn a_client_that_refuses_an_unseen_answer_shows_another_way_back() {
    for by_reset in [true, false] {
        let mut rig = Rig::new();
        rig.see(&syn(flow(), ISN));
        rig.wait(ms(90));
        if by_reset {
            assert_eq!(rig.see(&rst(flow(), ISN)), (Pass, Reason::ClientReset));
            assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Direct));
        } else {
            assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::QuickRetransmit));
        }
        assert_eq!(rig.see(&syn(flow_of(1), 1)), (Pass, Reason::Asymmetric));
        rig.wait(ms(600_000));
        assert_eq!(rig.see(&syn(flow_of(1), 1)), (PassWithQuery, Reason::Probing));
    }
    let mut rig = Rig::new();
    rig.see(&syn(flow(), ISN));
    assert_eq!(
        rig.see(&rst(flow(), ISN.wrapping_add(1))),
        (Pass, Reason::Stray),
        "any other reset says nothing"
    );
    rig.wait(ms(1));
    assert_eq!(rig.see(&syn(flow(), ISN)), (PassWithQuery, Reason::ProbedAgain), "doubled by the network");
}

#[test]
fn the_same_syn_through_another_ingress_goes_by() {
    let mut rig = Rig::new();
    rig.see(&syn(flow(), ISN));
    let back = Seen { hook: Hook::Forwarded(WAN), ..syn(flow(), ISN) };
    assert_eq!(rig.see(&back), (Pass, Reason::OtherIngress));
    assert_eq!(rig.see(&query(flow(), ISN)), (Pass, Reason::OwnQueryBack));
    assert_eq!(rig.standing(), Some(Reason::Probing));
}

#[test]
fn what_the_operator_says_is_done() {
    let ack = Some(ISN.wrapping_add(1));
    let reset = Output::Reset { flow: flow(), seq: 0, ack };
    for (action, decision, outputs) in [
        (Action::Pass, (Pass, Reason::RulePass), vec![]),
        (Action::Drop, (Drop, Reason::RuleDrop), vec![]),
        (Action::Deny, (Drop, Reason::RuleDeny), vec![reset]),
        (Action::InterceptSingle, (Drop, Reason::Single), vec![Output::Single { flow: flow() }, inject()]),
        (Action::Intercept, (PassWithQuery, Reason::Probing), vec![]),
    ] {
        let mut rig = Rig::new();
        rig.action = action;
        assert_eq!((rig.see(&syn(flow(), ISN)), rig.outputs()), (decision, outputs), "{action:?}");
    }
}

#[test]
fn single_reaches_its_server_from_the_clients_address_undisturbed() {
    let mut rig = Rig::new();
    rig.action = Action::InterceptSingle;
    rig.see(&syn(flow(), ISN));
    assert_eq!(rig.see(&own(flow(), 9)), (Pass, Reason::OwnSynPlain));
    assert_eq!(rig.see(&answer(flow(), 10)), (Pass, Reason::Single));
}

#[test]
fn only_through_a_peer_means_that_no_syn_leaves_before_one_is_known() {
    let mut rig = Rig::new();
    rig.action = Action::DropIfNoPeer;
    let to = SocketAddr::new(flow().server.ip(), 7_783);
    assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::Held));
    assert_eq!(rig.outputs(), [Output::SendProbe { server: flow().server, to }]);
    assert_eq!(rig.see(&syn(flow_of(1), 1)), (Drop, Reason::Held));
    assert_eq!(rig.outputs(), [], "one probe for all who wait");
    let from = peer(1);
    let answer = Some(Response { link: from.link, key: from.key, connected: false });
    rig.tell(Event::Probed { server: flow().server, answer });
    assert_eq!(rig.outputs(), [Output::Open { flow: flow_of(1), peer: from }, open(1)]);
    rig.tell(Event::Opened { flow: flow() });
    assert_eq!(rig.outputs(), [inject()], "no need to wait for the client's next SYN");
    rig.tell(Event::Refused { flow: flow_of(1), why: Refusal::Peer });
    assert_eq!((rig.outputs(), rig.engine.count(Reason::NoPeer)), (vec![], 1));
    assert_eq!(rig.see(&syn(flow_of(1), 1)), (Drop, Reason::NoPeer));
    rig.tell(Event::AgentDown);
    assert_eq!(rig.see(&syn(flow_of(2), 1)), (Drop, Reason::NoPeer));
    assert_eq!(rig.outputs(), []);
}

#[test]
fn a_stalled_syn_goes_on_when_the_probe_finds_nobody_or_nothing_comes() {
    for negative in [true, false] {
        let mut rig = Rig::with(Config { embodiment: Embodiment::Stalled, ..Config::default() });
        assert_eq!(rig.see(&syn(flow(), ISN)), (Drop, Reason::Held));
        rig.outputs();
        if negative {
            rig.tell(Event::Probed { server: flow().server, answer: None });
        } else {
            rig.wait(ms(500));
        }
        assert_eq!(rig.outputs(), [release()]);
        assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Direct));
        assert_eq!(rig.see(&syn(flow_of(1), 1)), (Pass, Reason::NoProxy));
    }
}

#[test]
fn a_parallel_probe_serves_the_next_connection() {
    let mut rig = Rig::with(Config { embodiment: Embodiment::Parallel, ..Config::default() });
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::ProbedBeside));
    assert_eq!(rig.outputs().len(), 1);
    assert_eq!(rig.see(&syn(flow_of(1), ISN)), (Pass, Reason::ProbedBeside));
    assert_eq!(rig.outputs(), [], "one at a time");
    let from = peer(1);
    rig.tell(Event::PeerUp { peer: from });
    let answer = Some(Response { link: from.link, key: from.key, connected: false });
    rig.tell(Event::Probed { server: flow().server, answer });
    assert_eq!(rig.see(&syn(flow_of(2), ISN)), (Drop, Reason::TableHit));
}

#[test]
fn a_known_path_is_asked_beside_a_connection_that_is_carried() {
    for (refresh, asked) in [(Refresh::Connection { interval: ms(100) }, true), (Refresh::NextSyn, false)] {
        let mut rig =
            Rig::with(Config { pmt: PmtConfig { refresh, ..PmtConfig::default() }, ..Config::default() });
        rig.tell(Event::PeerUp { peer: peer(1) });
        rig.see(&syn(flow(), ISN));
        rig.see(&response(flow(), ISN, peer(1), true));
        rig.tell(Event::Opened { flow: flow() });
        rig.outputs();
        // It carries all the time, which does not show that it still stands there.
        for nth in 1..=6 {
            rig.wait(ms(10_000));
            assert_eq!(rig.see(&syn(flow_of(nth), 1)), (Drop, Reason::TableHit));
            assert_eq!(rig.outputs(), [Output::Open { flow: flow_of(nth), peer: peer(1) }]);
            rig.tell(Event::Opened { flow: flow_of(nth) });
            rig.outputs();
        }
        rig.wait(ms(0));
        let probes = rig.outputs();
        let to = SocketAddr::new(flow().server.ip(), 7_783);
        let wanted = asked.then_some(Output::SendProbe { server: flow().server, to });
        assert_eq!(probes, Vec::from_iter(wanted), "{refresh:?}");
        if asked {
            let other = peer(2);
            let answer = Some(Response { link: other.link, key: other.key, connected: false });
            rig.tell(Event::Probed { server: flow().server, answer });
            assert_eq!(rig.known(), Lookup::Known(Known::Peer(other)), "another one stands there now");
        }
    }
}

#[test]
fn what_cannot_be_touched_is_not() {
    let mut rig = Rig::new();
    assert_eq!(rig.see(&Seen { room: Room::Full, ..syn(flow(), ISN) }), (Pass, Reason::OptionsFull));
    let mut rig = paired();
    assert_eq!(rig.see(&Seen { room: Room::Untouchable, ..syn(flow(), ISN) }), (Pass, Reason::Untouchable));
    assert_eq!(
        rig.see(&Seen { room: Room::Full, ..syn(flow(), ISN) }),
        (Drop, Reason::TableHit),
        "no room needed"
    );
}

#[test]
fn nobody_here_means_not_here() {
    let mut rig = paired();
    rig.see(&syn(flow(), ISN));
    rig.see(&syn(flow_of(1), 1));
    rig.tell(Event::Opened { flow: flow_of(1) });
    rig.outputs();
    rig.tell(Event::AgentDown);
    assert_eq!(rig.outputs(), [Output::Abort { flow: flow(), why: Reason::AgentDown }, release()]);
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Direct));
    assert_eq!(rig.see(&syn(flow_of(1), 1)), (Pass, Reason::AgentDown));
    assert_eq!(rig.see(&query(flow_of(2), 1)), (Pass, Reason::AgentDown));
    rig.tell(Event::AgentUp);
    rig.tell(Event::Bypass { on: true });
    assert_eq!(rig.see(&syn(flow_of(3), 1)), (Pass, Reason::Bypass));
    rig.tell(Event::Bypass { on: false });
    assert_eq!(
        rig.see(&syn(flow_of(3), 1)),
        (PassWithQuery, Reason::Probing),
        "the links have to come back first"
    );
}

#[test]
fn full_tables_pass() {
    for config in [
        Config { flows_max: 1, ..Config::default() },
        Config { kept_octets_max: SYN.len(), ..Config::default() },
    ] {
        let mut rig = Rig::with(config);
        assert_eq!(rig.see(&syn(flow(), ISN)), (PassWithQuery, Reason::Probing));
        assert_eq!(rig.see(&syn(flow_of(1), ISN)), (Pass, Reason::TableFull));
        assert_eq!(rig.see(&query(flow_of(2), ISN)), (Pass, Reason::TableFull));
        rig.see(&answer(flow(), ISN.wrapping_add(1)));
        rig.wait(ms(5_000));
        assert_eq!(rig.engine.load(), Load { pmt: 1, ..Load::default() });
        rig.wait(ms(60_000));
        assert_eq!(rig.see(&syn(flow_of(1), ISN)), (PassWithQuery, Reason::Probing));
    }
}

/// An engine that knows its peer, with a link to it.
fn paired() -> Rig {
    let mut rig = Rig::new();
    rig.tell(Event::PeerUp { peer: peer(1) });
    rig.see(&syn(flow(), 1));
    rig.see(&response(flow(), 1, peer(1), true));
    rig.tell(Event::Opened { flow: flow() });
    rig.tell(Event::Closed { flow: flow() });
    rig.outputs();
    rig
}

#[test]
fn a_peer_is_its_key_whatever_address_its_link_has() {
    let mut rig = Rig::new();
    let elsewhere = Peer { link: SocketAddr::from(([0xfd08, 0, 0, 0, 0, 0, 0, 1], 7777)), key: peer(1).key };
    rig.tell(Event::PeerUp { peer: elsewhere });
    rig.see(&syn(flow(), ISN));
    rig.see(&response(flow(), ISN, peer(1), true));
    assert_eq!(rig.outputs(), [open(1), inject()]);
    rig.see(&syn(flow_of(1), ISN));
    rig.see(&response(flow_of(1), ISN, peer(1), false));
    rig.outputs();
    rig.tell(Event::PeerDown { peer: elsewhere });
    assert_eq!(rig.outputs().len(), 2, "what waits for it goes past");
}

#[test]
fn the_answer_to_a_node_that_woke_up_downstream_is_not_kept_from_it() {
    let mut rig = Rig::new();
    rig.see(&syn(flow(), ISN));
    rig.wait(ms(90));
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::QuickRetransmit));
    assert_eq!(rig.see(&query(flow(), ISN)), (Pass, Reason::Direct));
    assert_eq!(rig.see(&response(flow(), ISN, peer(1), true)), (Pass, Reason::StrayAnswer));
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Direct), "and the rest goes past");
}
