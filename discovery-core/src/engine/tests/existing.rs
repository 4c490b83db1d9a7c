//! Connections that stood before the node.

use super::*;

fn packet(up: bool, seq: u32, ack: u32) -> Midstream {
    let (src, dst) = (flow().client, flow().server);
    let (src, dst) = if up { (src, dst) } else { (dst, src) };
    Midstream { src, dst, seq, ack, either: !up }
}

fn see(rig: &mut Rig, seen: Midstream, existing: Existing) -> (Course, Reason) {
    let ruled = Ruled { action: rig.action, rule: Some(1) };
    let course = rig.engine.handle_midstream(rig.now(), &seen, existing, ruled);
    (course, rig.engine.last_reason())
}

/// A peer to the server is known, and its link stands.
fn known() -> Rig {
    let mut rig = Rig::new();
    rig.tell(Event::PeerUp { peer: peer(1) });
    let Peer { link, key } = peer(1);
    let answer = Some(Response { link, key, connected: false });
    rig.tell(Event::Probed { server: flow().server, answer });
    rig.outputs();
    rig
}

#[test]
fn both_ends_are_reset_at_the_numbers_they_expect() {
    for up in [true, false] {
        let mut rig = known();
        assert_eq!(see(&mut rig, packet(up, 10, 20), Existing::Reset), (Course::Drop, Reason::ExistingReset));
        let (to_client, to_server) = if up { (20, 10) } else { (10, 20) };
        let wanted = [
            Output::ResetServer { flow: flow(), seq: to_server },
            Output::Reset { flow: flow(), seq: to_client, ack: None },
        ];
        assert_eq!(rig.outputs(), wanted, "up {up}");
    }
}

#[test]
fn a_node_alone_needs_no_peer_for_what_it_terminates_itself() {
    let mut rig = Rig::new();
    rig.action = Action::InterceptSingle;
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Drop, Reason::ExistingReset));
    assert_eq!(rig.outputs().len(), 2);
    let observed = (Course::Observe { flow: flow(), peer: None }, Reason::ExistingObserved);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Adopt), observed);
    rig.engine.note_adoption(rig.now(), flow(), Adopter::Alone, Reason::AdoptUnscaled);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Adopt), observed, "another try");
    rig.engine.note_adoption(rig.now(), flow(), Adopter::Alone, Reason::ExistingAdopted);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Adopt), (Course::Open, Reason::Carried));
    rig.tell(Event::Closed { flow: flow() });
    assert_eq!(rig.engine.load().flows, 0);
    assert_eq!(
        see(&mut rig, packet(true, 1, 2), Existing::Adopt),
        (Course::Settled, Reason::ExistingLeft),
        "enough"
    );
    assert_eq!(rig.outputs(), []);
}

#[test]
fn what_the_operator_leaves_and_what_nobody_could_carry_goes_on() {
    let mut rig = known();
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Leave), (Course::Settled, Reason::ExistingLeft));
    for action in [Action::Pass, Action::Drop, Action::Deny] {
        rig.action = action;
        assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Settled, Reason::RulePass));
    }
    rig.action = Action::Intercept;
    rig.see(&syn(flow(), 1));
    assert_eq!(
        see(&mut rig, packet(true, 1, 2), Existing::Reset),
        (Course::Open, Reason::Carried),
        "it is ours"
    );
    let mut rig = known();
    rig.tell(Event::PeerDown { peer: peer(1) });
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Open, Reason::PeerDown));
    rig.engine.pmt.learn_none(rig.now(), flow().server);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Settled, Reason::NoProxy));
    rig.tell(Event::Bypass { on: true });
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Open, Reason::Bypass));
    rig.tell(Event::Bypass { on: false });
    rig.tell(Event::AgentDown);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Open, Reason::AgentDown));
    assert_eq!(rig.outputs(), []);
}

#[test]
fn an_unknown_server_is_asked_for_once_and_its_connection_waits() {
    let mut rig = Rig::new();
    let beside = (Course::Open, Reason::ProbedBeside);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), beside);
    let to = SocketAddr::new(flow().server.ip(), 7_783);
    assert_eq!(rig.outputs(), [Output::SendProbe { server: flow().server, to }]);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), beside);
    assert_eq!(rig.outputs(), [], "nobody asks the client, and nobody twice");
    rig.tell(Event::Probed { server: flow().server, answer: None });
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Settled, Reason::NoProxy));
    // Where either end may be the client, each may be the server.
    assert_eq!(see(&mut rig, packet(false, 1, 2), Existing::Reset), beside);
    assert!(matches!(rig.outputs().as_slice(), [Output::SendProbe { .. }]));
}

#[test]
fn resets_are_paced_and_end() {
    let mut rig = known();
    for n in 0..20_u16 {
        let seen = Midstream { src: flow_of(n).client, ..packet(true, 1, 2) };
        assert_eq!(see(&mut rig, seen, Existing::Reset), (Course::Drop, Reason::ExistingReset), "{n}");
    }
    let later = (Course::Open, Reason::ExistingLater);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), later);
    for _ in 0..3 {
        rig.wait(ms(1_000));
        assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Course::Drop, Reason::ExistingReset));
    }
    rig.wait(ms(1_000));
    assert_eq!(
        see(&mut rig, packet(true, 1, 2), Existing::Reset),
        (Course::Settled, Reason::ExistingLeft),
        "enough"
    );
}

/// The peer was found beside the path: it has seen no SYN, and takes no connection without one (decisions/0028).
#[test]
fn the_connection_after_a_reset_asks_on_its_syn_and_the_next_does_not() {
    let mut rig = known();
    see(&mut rig, packet(true, 1, 2), Existing::Reset);
    rig.outputs();
    assert_eq!(rig.see(&syn(flow(), 7)), (Verdict::PassWithQuery, Reason::Probing));
    rig.engine.pmt.learn_peer(rig.now(), flow().server, peer(1));
    rig.tell(Event::Probed {
        server: flow().server,
        answer: Some(Response { link: peer(1).link, key: peer(1).key, connected: false }),
    });
    assert_eq!(
        rig.see(&syn(flow_of(2), 7)),
        (Verdict::Drop, Reason::TableHit),
        "a refresh takes nothing back"
    );
}

fn observed(peer: Option<Peer>) -> Course {
    Course::Observe { flow: flow(), peer }
}

#[test]
fn with_a_peer_each_node_adopts_its_own_end() {
    for up in [true, false] {
        let mut rig = known();
        let course = see(&mut rig, packet(up, 1, 2), Existing::Adopt);
        assert_eq!(course, (observed(Some(peer(1))), Reason::ExistingObserved), "up {up}");
        for by in [Adopter::Client { peer: peer(1) }, Adopter::Server] {
            rig.engine.note_adoption(rig.now(), flow(), by, Reason::ExistingAdopted);
            assert_eq!(see(&mut rig, packet(up, 1, 2), Existing::Adopt), (Course::Open, Reason::Carried));
            assert_eq!(rig.engine.may_adopt_for_peer(&flow()), Err(Reason::TupleInUse));
            rig.tell(Event::Closed { flow: flow() });
            assert_eq!((rig.engine.load().flows, rig.outputs()), (0, Vec::new()), "{by:?}");
        }
    }
}

#[test]
fn whoever_stands_aside_adopts_for_no_peer() {
    let mut rig = Rig::new();
    assert_eq!(rig.engine.may_adopt_for_peer(&flow()), Ok(()));
    rig.see(&syn(flow(), 1));
    assert_eq!(rig.engine.may_adopt_for_peer(&flow()), Ok(()), "its SYN went past");
    rig.tell(Event::Bypass { on: true });
    assert_eq!(rig.engine.may_adopt_for_peer(&flow()), Err(Reason::Bypass));
    rig.tell(Event::AgentDown);
    assert_eq!(rig.engine.may_adopt_for_peer(&flow()), Err(Reason::AgentDown));
    let full = Rig::with(Config { flows_max: 0, ..Config::default() });
    assert_eq!(full.engine.may_adopt_for_peer(&flow()), Err(Reason::TableFull));
}

#[test]
fn what_the_table_has_no_room_for_is_not_adopted() {
    for (flows_max, course) in
        [(0, (Course::Open, Reason::ExistingLater)), (1, (observed(None), Reason::ExistingObserved))]
    {
        let mut rig = Rig::with(Config { flows_max, ..Config::default() });
        rig.action = Action::InterceptSingle;
        assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Adopt), course, "{flows_max}");
    }
}
