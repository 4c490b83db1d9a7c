//! The server's side and the middle.

use super::*;
use Verdict::{Drop, Pass, PassWithQuery};

fn connect() -> Output {
    Output::Connect { flow: flow() }
}

fn abandon(why: Reason) -> Output {
    Output::Abandon { flow: flow(), why }
}

fn answered(ack: u32, connected: bool) -> Output {
    Output::AnswerProbe { flow: flow(), seq: ISN ^ 0x5a5a_5a5a, ack, connected }
}

/// A query taken, the own SYN seen (number 9).
fn connecting(config: Config) -> Rig {
    let mut rig = Rig::with(config);
    assert_eq!(rig.see(&query(flow(), ISN)), (Drop, Reason::EarlyConnect));
    assert_eq!(rig.outputs(), [connect()]);
    assert_eq!(rig.see(&own(flow(), 9)), (PassWithQuery, Reason::OwnSynProbed));
    rig
}

fn early(config: Config) -> Rig {
    let mut rig = connecting(config);
    assert_eq!(rig.see(&answer(flow(), 10)), (Pass, Reason::ServerAnswered), "it is for an own socket");
    rig.tell(Event::Connected { flow: flow() });
    rig
}

#[test]
fn a_query_is_answered_when_the_server_has_accepted() {
    for (variant, ack) in [(AckVariant::Isn, ISN), (AckVariant::IsnPlusOne, ISN.wrapping_add(1))] {
        let mut rig = early(Config { ack: variant, ..Config::default() });
        assert_eq!(rig.outputs(), [answered(ack, true)]);
        assert_eq!(rig.known(), Lookup::Known(Known::NoProxy), "no further node answered");
        assert_eq!(rig.see(&query(flow(), ISN)), (Drop, Reason::AnsweredAgain));
        assert_eq!(rig.outputs(), [answered(ack, true)]);
        assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Early);
        assert_eq!(rig.engine.claim(rig.now(), flow(), true), Claim::Refused(Reason::AlreadyClaimed));
        rig.wait(ms(60_000));
        assert_eq!((rig.outputs(), rig.standing()), (vec![], Some(Reason::Claimed)));
    }
}

#[test]
fn a_repeated_query_waits_for_the_server_and_gets_one_answer() {
    let mut rig = connecting(Config::default());
    assert_eq!(rig.see(&query(flow(), ISN)), (Drop, Reason::Connecting));
    rig.tell(Event::Connected { flow: flow() });
    assert_eq!(rig.outputs(), [answered(ISN, true)]);
}

#[test]
fn what_the_network_said_is_told_to_the_client() {
    let reset = Output::Reset { flow: flow(), seq: 0, ack: Some(ISN.wrapping_add(1)) };
    let what = Unreachable::Prohibited;
    let icmp = Output::Unreachable { flow: flow(), what, packet: SYN.to_vec() };
    for (why, wanted, reason) in [
        (ConnectFailure::Refused, vec![reset], Reason::ServerRefused),
        (ConnectFailure::Unreachable(what), vec![icmp], Reason::ServerUnreachable),
        (ConnectFailure::TimedOut, vec![], Reason::ServerSilent),
        (ConnectFailure::Local, vec![release()], Reason::LocalFailure),
    ] {
        let mut rig = connecting(Config::default());
        rig.tell(Event::ConnectFailed { flow: flow(), why });
        assert_eq!((rig.outputs(), rig.standing(), rig.engine.count(reason)), (wanted, None, 1), "{why:?}");
        // The same for a connection that a peer waits for.
        let mut rig = connecting(Config::default());
        assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Wait);
        rig.tell(Event::ConnectFailed { flow: flow(), why });
        assert_eq!(rig.outputs(), [Output::ClaimFailed { flow: flow(), why: reason }], "{why:?}");
    }
}

#[test]
fn a_server_that_says_nothing_gives_its_place_back() {
    let mut rig = connecting(Config::default());
    rig.wait(ms(6_000));
    assert_eq!((rig.outputs(), rig.engine.load().unclaimed), (vec![abandon(Reason::ServerSilent)], 0));
}

#[test]
fn an_orphan_is_abandoned_in_time() {
    let mut rig = early(Config::default());
    rig.outputs();
    rig.wait(ms(1_499));
    assert_eq!(rig.outputs(), []);
    rig.wait(ms(1));
    assert_eq!(rig.outputs(), [abandon(Reason::Orphan)]);
    let mut rig = early(Config { ack: AckVariant::IsnPlusOne, ..Config::default() });
    rig.outputs();
    rig.wait(ms(150));
    let seq = (ISN ^ 0x5a5a_5a5a).wrapping_add(1);
    let reset = Output::Reset { flow: flow(), seq, ack: None };
    assert_eq!(rig.outputs(), [abandon(Reason::Orphan), reset], "its client may have believed the answer");
}

#[test]
fn the_cure_a_plain_syn_makes_an_unclaimed_connection_give_way() {
    for state in ["connecting", "early"] {
        let mut rig = if state == "early" { early(Config::default()) } else { connecting(Config::default()) };
        rig.outputs();
        assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Cured), "{state}");
        assert_eq!((rig.outputs(), rig.standing()), (vec![abandon(Reason::Cured)], None));
        assert_eq!(
            rig.engine.claim(rig.now(), flow(), true),
            Claim::Refused(Reason::Direct),
            "too late for a claim"
        );
        rig.tell(Event::Connected { flow: flow() });
        assert_eq!(rig.outputs(), [abandon(Reason::Closed)], "a socket that came up meanwhile");
    }
}

#[test]
fn a_young_claim_gives_way_to_the_clients_own_syn_and_an_old_one_to_none() {
    let claimed = || {
        let mut rig = early(Config::default());
        rig.engine.claim(rig.now(), flow(), false);
        rig.outputs();
        rig
    };
    // Its node died before the client heard of it: the SYN is repeated after 1 and after 3 s.
    for after in [1_000, 3_000] {
        let mut rig = claimed();
        rig.wait(ms(after));
        assert_eq!(rig.see(&query(flow(), 12)), (Drop, Reason::TupleInUse), "its node lives");
        assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Cured), "after {after}");
        assert_eq!((rig.outputs(), rig.standing()), (vec![abandon(Reason::Cured)], None));
        let late = rig.engine.claim(rig.now(), flow(), true);
        assert_eq!(late, Claim::Refused(Reason::Direct), "the SYN is on its way");
    }
    let mut rig = claimed();
    rig.wait(ms(5_100));
    assert_eq!(
        rig.see(&syn(flow(), ISN)),
        (Drop, Reason::TupleInUse),
        "what a peer has, for a SYN of anybody"
    );
    assert_eq!((rig.outputs(), rig.standing()), (vec![], Some(Reason::Claimed)));
    // The server has not even answered.
    let mut rig = connecting(Config::default());
    rig.engine.claim(rig.now(), flow(), false);
    rig.outputs();
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Cured));
    let failed = Output::ClaimFailed { flow: flow(), why: Reason::Cured };
    assert_eq!((rig.outputs(), rig.standing()), (vec![failed, abandon(Reason::Cured)], None));
}

#[test]
fn a_client_that_rejects_the_answer_frees_its_place_before_its_next_syn() {
    let mut rig = early(Config::default());
    rig.outputs();
    assert_eq!(rig.see(&rst(flow(), ISN.wrapping_add(1))), (Pass, Reason::Stray));
    assert_eq!(rig.see(&rst(flow(), ISN)), (Pass, Reason::ClientRejected));
    assert_eq!(rig.outputs(), [abandon(Reason::ClientRejected)]);
}

#[test]
fn a_server_whose_answers_go_round_this_node_is_not_asked_for_its_clients() {
    let mut rig = connecting(Config::default());
    assert_eq!(
        rig.see(&rst(flow(), 10)),
        (Pass, Reason::ClientReset),
        "the client got the answer to the own SYN"
    );
    assert_eq!(rig.outputs(), [abandon(Reason::Asymmetric)]);
    assert_eq!(rig.see(&query(flow(), ISN)), (Pass, Reason::Asymmetric));
    let mut rig = Rig::new();
    for port in 1..=3 {
        assert_eq!(rig.see(&query(flow_of(port), 1)), (Drop, Reason::EarlyConnect));
        rig.wait(ms(6_000));
    }
    assert_eq!(rig.see(&query(flow(), ISN)), (Pass, Reason::Asymmetric), "nor is one that is not there");
}

#[test]
fn where_an_option_was_lost_a_datagram_says_it_until_that_is_lost_too() {
    let by_datagram = |port| Output::AnswerByDatagram { flow: flow_of(port), isn: ISN, connected: true };
    let serve = |rig: &mut Rig, port| {
        assert_eq!(rig.see(&query(flow_of(port), ISN)), (Drop, Reason::EarlyConnect));
        rig.outputs();
        rig.tell(Event::Connected { flow: flow_of(port) });
        rig.outputs()
    };
    let by_option =
        |port| Output::AnswerProbe { flow: flow_of(port), seq: ISN ^ 0x5a5a_5a5a, ack: ISN, connected: true };
    let mut rig = Rig::new();
    assert_eq!(serve(&mut rig, 1), [by_option(1)]);
    assert_eq!(rig.see(&rst(flow_of(1), ISN)), (Pass, Reason::ClientRejected));
    rig.outputs();
    assert_eq!(serve(&mut rig, 2), [by_datagram(2)]);
    assert_eq!(rig.engine.claim(rig.now(), flow_of(2), false), Claim::Early);
    assert_eq!(serve(&mut rig, 3), [by_datagram(3)]);
    rig.wait(ms(2_000));
    assert_eq!(rig.outputs(), [Output::Abandon { flow: flow_of(3), why: Reason::Orphan }]);
    assert_eq!(serve(&mut rig, 4), [by_option(4)], "that does not arrive either");
    for (answering, ours) in [(Answering::Option, by_option(5)), (Answering::Datagram, by_datagram(5))] {
        let mut rig = Rig::with(Config { answering, ..Config::default() });
        serve(&mut rig, 6);
        rig.see(&rst(flow_of(6), ISN));
        rig.outputs();
        assert_eq!(serve(&mut rig, 5), [ours]);
    }
    let mut rig = Rig::new();
    serve(&mut rig, 1);
    rig.see(&rst(flow_of(1), ISN));
    rig.wait(ms(600_000));
    rig.outputs();
    assert_eq!(serve(&mut rig, 2), [by_option(2)], "after a while the option is tried again");
}

#[test]
fn datagrams_are_ruled_on_and_counted() {
    let mut rig = Rig::new();
    let mut see = |port, action| {
        let ruled = Ruled { action, rule: Some(1) };
        let verdict = rig.engine.handle_datagram(rig.now(), flow_of(port), ruled, SYN);
        (verdict, rig.engine.last_reason())
    };
    assert_eq!(see(1, Action::Pass), (Pass, Reason::DatagramBegins));
    assert_eq!(see(1, Action::Pass), (Pass, Reason::DatagramGoesOn));
    assert_eq!(see(2, Action::Drop), (Drop, Reason::RuleDrop));
    assert_eq!(see(3, Action::Deny), (Drop, Reason::RuleDeny));
    let what = Unreachable::Port;
    assert_eq!(rig.outputs(), [Output::Unreachable { flow: flow_of(3), what, packet: SYN.to_vec() }]);
    assert_eq!((rig.engine.datagram_flows(), rig.engine.count(Reason::RuleDeny)), (1, 1));
    rig.tell(Event::Bypass { on: true });
    let ruled = Ruled { action: Action::Drop, rule: Some(1) };
    assert_eq!(rig.engine.handle_datagram(rig.now(), flow_of(4), ruled, SYN), Pass);
}

#[test]
fn a_client_that_begins_anew_is_served_anew() {
    let mut rig = early(Config::default());
    rig.outputs();
    assert_eq!(rig.see(&query(flow(), 500)), (Drop, Reason::EarlyConnect));
    assert_eq!(rig.outputs(), [abandon(Reason::Superseded), connect()]);
}

#[test]
fn a_claim_needs_a_syn_that_was_seen_here_or_a_grant() {
    let mut rig = Rig::new();
    assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Refused(Reason::NotGranted));
    assert_eq!(rig.engine.claim(rig.now(), flow(), true), Claim::Wait);
    assert_eq!(rig.outputs(), [connect()]);
    assert_eq!(rig.see(&own(flow(), 9)), (PassWithQuery, Reason::OwnSynProbed));
    rig.tell(Event::Connected { flow: flow() });
    assert_eq!(rig.outputs(), [Output::ClaimReady { flow: flow(), onward: None }]);
    let mut rig = early(Config::default());
    rig.wait(ms(9_000));
    rig.outputs();
    assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Wait, "an orphan, but its SYN was seen");
    rig.tell(Event::Closed { flow: flow() });
    assert_eq!(rig.outputs(), [connect(), abandon(Reason::Closed)]);
    rig.wait(ms(1_000));
    assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Refused(Reason::NotGranted));
    rig.tell(Event::AgentDown);
    assert_eq!(rig.engine.claim(rig.now(), flow(), true), Claim::Refused(Reason::AgentDown));
}

#[test]
fn spoofed_queries_are_passed_unanswered_beyond_the_bounds() {
    let mut rig = Rig::with(Config { unclaimed_max: 5, unclaimed_network_max: 3, ..Config::default() });
    for port in 1..=3 {
        assert_eq!(rig.see(&query(flow_of(port), 1)), (Drop, Reason::EarlyConnect));
    }
    assert_eq!(rig.see(&query(flow_of(4), 1)), (Pass, Reason::ProbeLimit), "the network's own bound");
    let elsewhere = |n| Flow { client: SocketAddr::from(([10, 77, n, 1], 1)), ..flow() };
    assert_eq!(rig.see(&query(elsewhere(1), 1)), (Drop, Reason::EarlyConnect));
    assert_eq!(rig.see(&query(elsewhere(2), 1)), (Drop, Reason::EarlyConnect));
    assert_eq!(rig.see(&query(elsewhere(3), 1)), (Pass, Reason::ProbeLimit), "the bound of all");
    assert_eq!(rig.engine.load().unclaimed, 5);
    rig.engine.claim(rig.now(), flow_of(1), false);
    assert_eq!(rig.see(&query(flow_of(5), 1)), (Drop, Reason::EarlyConnect), "a claim makes room at once");
}

#[test]
fn a_separate_probe_is_answered_for_this_node_alone() {
    let mut rig = Rig::new();
    let probe = Flow { server: SocketAddr::new(flow().server.ip(), 7_783), ..flow() };
    assert_eq!(rig.see(&query(probe, ISN)), (Drop, Reason::AnsweredSeparate));
    let seq = ISN ^ 0x5a5a_5a5a;
    assert_eq!(rig.outputs(), [Output::AnswerProbe { flow: probe, seq, ack: ISN, connected: false }]);
    assert_eq!(rig.engine.load().flows, 0);
}

#[test]
fn a_further_nodes_answer_makes_this_one_the_middle() {
    for (up, connected) in [(false, true), (true, true), (true, false)] {
        let mut rig = connecting(Config::default());
        if up {
            rig.tell(Event::PeerUp { peer: peer(2) });
        }
        assert_eq!(rig.see(&response(flow(), 11, peer(2), connected)), (Drop, Reason::BadAnswer));
        assert_eq!(rig.see(&response(flow(), 9, peer(2), connected)), (Drop, Reason::Middle));
        assert_eq!(rig.outputs(), [abandon(Reason::Middle), answered(ISN, up && connected)]);
        assert_eq!(rig.see(&response(flow(), 9, peer(2), connected)), (Drop, Reason::SecondAnswer));
        assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Onward(peer(2)));
        rig.tell(Event::Opened { flow: flow() });
        assert_eq!(rig.known(), Lookup::Known(Known::Peer(peer(2))));
    }
}

#[test]
fn a_middle_that_a_peer_waits_for_hands_on() {
    let mut rig = connecting(Config::default());
    assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Wait);
    rig.see(&response(flow(), 9, peer(2), true));
    let ready = Output::ClaimReady { flow: flow(), onward: Some(peer(2)) };
    assert_eq!(rig.outputs(), [abandon(Reason::Middle), ready]);
}

#[test]
fn the_cure_of_a_middle_goes_on_to_the_next_node() {
    let onward = || vec![Output::AbortOnward { flow: flow(), next: peer(2), isn: 9 }];
    let middle = || {
        let mut rig = connecting(Config::default());
        rig.see(&response(flow(), 9, peer(2), true));
        rig.outputs();
        rig
    };
    let mut rig = middle();
    assert_eq!((rig.see(&syn(flow(), ISN)), rig.outputs()), ((Pass, Reason::Cured), onward()));
    let mut rig = middle();
    rig.tell(Event::Aborted { flow: flow(), isn: 500 });
    assert_eq!(rig.outputs(), [], "another attempt is meant");
    rig.tell(Event::Aborted { flow: flow(), isn: ISN });
    assert_eq!(rig.outputs(), onward());
    let mut rig = middle();
    rig.wait(ms(1_500));
    assert_eq!(rig.outputs(), onward());
    // The node behind the middle holds the middle's number, not the client's.
    let mut rig = early(Config::default());
    rig.outputs();
    assert_eq!(rig.see(&syn(flow(), 4_711)), (Pass, Reason::Cured));
    assert_eq!(rig.outputs(), [abandon(Reason::Cured)]);
    let mut rig = early(Config::default());
    rig.outputs();
    rig.tell(Event::Aborted { flow: flow(), isn: 500 });
    assert_eq!(rig.outputs(), [], "another attempt is meant");
    rig.tell(Event::Aborted { flow: flow(), isn: ISN });
    assert_eq!(rig.outputs(), [abandon(Reason::AbortedByPeer)]);
}

#[test]
fn the_own_syn_that_comes_back_goes_by() {
    let mut rig = connecting(Config::default());
    assert_eq!(rig.see(&query(flow(), 9)), (Pass, Reason::OwnSynBack));
    assert_eq!(rig.see(&syn(flow(), 9)), (Pass, Reason::OwnSynBack));
    assert_eq!((rig.outputs(), rig.standing()), (vec![], Some(Reason::Connecting)));
}

#[test]
fn own_syns_ask_as_often_as_a_clients_and_not_where_nobody_is() {
    let mut rig = connecting(Config::default());
    assert_eq!(rig.see(&own(flow(), 9)), (PassWithQuery, Reason::OwnSynProbed));
    assert_eq!(
        rig.see(&own(flow(), 9)),
        (Drop, Reason::OwnSynWithheld),
        "the client's own comes without a query now"
    );
    assert_eq!(rig.see(&syn(flow(), ISN)), (Pass, Reason::Cured));
    assert_eq!(rig.known(), Lookup::Unknown, "once may be chance");
    rig.see(&query(flow_of(1), 1));
    assert_eq!(rig.see(&own(flow_of(1), 9)), (PassWithQuery, Reason::OwnSynProbed));
    assert_eq!(rig.see(&own(flow_of(1), 9)), (PassWithQuery, Reason::OwnSynProbed));
    assert_eq!(rig.engine.claim(rig.now(), flow_of(1), false), Claim::Wait);
    assert_eq!(rig.see(&own(flow_of(1), 9)), (Pass, Reason::OwnSynPlain), "a peer holds the client's SYNs");
    let late = response(flow_of(1), 9, peer(2), true);
    assert_eq!(rig.see(&late), (Drop, Reason::LateAnswer), "who sent it has made way for the last SYN");
    rig.tell(Event::Connected { flow: flow_of(1) });
    assert_eq!(rig.known(), Lookup::Known(Known::OptionDropped));
    let mut rig = early(Config::default());
    rig.see(&query(flow_of(1), 1));
    assert_eq!(rig.see(&own(flow_of(1), 3)), (Pass, Reason::OwnSynPlain));
}

#[test]
fn when_nobody_is_here_any_more_nothing_early_stays() {
    let mut rig = connecting(Config::default());
    rig.tell(Event::AgentDown);
    assert_eq!(rig.outputs(), [abandon(Reason::AgentDown), release()]);
    let mut rig = early(Config::default());
    rig.engine.claim(rig.now(), flow(), false);
    rig.outputs();
    rig.tell(Event::Bypass { on: true });
    assert_eq!((rig.outputs(), rig.standing()), (vec![], Some(Reason::Claimed)), "bypass is for what is new");
    rig.tell(Event::AgentDown);
    assert_eq!((rig.outputs(), rig.standing()), (vec![abandon(Reason::AgentDown)], None));
}

/// The peer may have told its client that the server has accepted: to take that back is to reset it.
#[test]
fn what_a_peer_was_promised_outlives_bypass_until_it_is_claimed_or_in_the_way() {
    let bypassed = || {
        let mut rig = early(Config::default());
        rig.outputs();
        rig.tell(Event::Bypass { on: true });
        assert_eq!((rig.outputs(), rig.engine.unclaimed()), (vec![], 1));
        rig
    };
    let mut rig = bypassed();
    assert_eq!(rig.engine.claim(rig.now(), flow(), false), Claim::Early);
    assert_eq!(rig.engine.claim(rig.now(), flow_of(9), true), Claim::Refused(Reason::Bypass), "nothing new");
    let mut rig = bypassed();
    rig.wait(Config::default().orphan_after());
    assert_eq!((rig.outputs(), rig.standing()), (vec![abandon(Reason::Orphan)], None), "nobody came");
    for seen in [syn(flow(), ISN), query(flow(), ISN)] {
        let mut rig = bypassed();
        assert_eq!(rig.see(&seen), (Pass, Reason::Cured), "its client comes without its node");
        assert_eq!((rig.outputs(), rig.standing()), (vec![abandon(Reason::Cured)], None));
    }
}
