//! Connections that stood before the node.

use super::*;

fn packet(up: bool, seq: u32, ack: u32) -> Midstream {
    let (src, dst) = (flow().client, flow().server);
    if up { Midstream { src, dst, seq, ack } } else { Midstream { src: dst, dst: src, seq, ack } }
}

fn see(rig: &mut Rig, seen: Midstream, existing: Existing) -> (Verdict, Reason) {
    let ruled = Ruled { action: rig.action, rule: Some(1) };
    let verdict = rig.engine.handle_midstream(rig.now(), &seen, existing, ruled);
    (verdict, rig.engine.last_reason())
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
        rig.engine.pmt.learn_none(rig.now(), flow().client);
        assert_eq!(
            see(&mut rig, packet(up, 10, 20), Existing::Reset),
            (Verdict::Drop, Reason::ExistingReset)
        );
        let (to_client, to_server) = if up { (20, 10) } else { (10, 20) };
        let wanted = [
            Output::ResetServer { flow: flow(), seq: to_server },
            Output::Reset { flow: flow(), seq: to_client, ack: None },
        ];
        assert_eq!(rig.outputs(), wanted, "up {up}");
    }
}

#[test]
fn what_the_operator_leaves_and_what_nobody_could_carry_goes_on() {
    let mut rig = known();
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Leave), (Verdict::Pass, Reason::ExistingLeft));
    rig.action = Action::Pass;
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::RulePass));
    rig.action = Action::Intercept;
    rig.see(&syn(flow(), 1));
    assert_eq!(
        see(&mut rig, packet(true, 1, 2), Existing::Reset),
        (Verdict::Pass, Reason::Carried),
        "it is ours"
    );
    let mut rig = known();
    rig.tell(Event::PeerDown { peer: peer(1) });
    rig.engine.pmt.learn_none(rig.now(), flow().client);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::NoProxy));
    rig.tell(Event::Bypass { on: true });
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::Bypass));
    rig.tell(Event::Bypass { on: false });
    rig.tell(Event::AgentDown);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::AgentDown));
    assert_eq!(rig.outputs(), []);
}

#[test]
fn an_unknown_server_is_asked_for_once_and_its_connection_waits() {
    let mut rig = Rig::new();
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::ProbedBeside));
    let to = SocketAddr::new(flow().server.ip(), 7_783);
    assert_eq!(rig.outputs(), [Output::SendProbe { server: flow().server, to }]);
    rig.engine.pmt.learn_none(rig.now(), flow().client);
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::NoProxy));
    assert_eq!(rig.outputs(), []);
}

#[test]
fn resets_are_paced_and_end() {
    let mut rig = known();
    for n in 0..20_u16 {
        let seen = Midstream { src: flow_of(n).client, ..packet(true, 1, 2) };
        rig.engine.pmt.learn_none(rig.now(), seen.src);
        assert_eq!(see(&mut rig, seen, Existing::Reset), (Verdict::Drop, Reason::ExistingReset), "{n}");
    }
    assert_eq!(see(&mut rig, packet(true, 1, 2), Existing::Reset), (Verdict::Pass, Reason::ExistingLater));
    for _ in 0..3 {
        rig.wait(ms(1_000));
        assert_eq!(
            see(&mut rig, packet(true, 1, 2), Existing::Reset),
            (Verdict::Drop, Reason::ExistingReset)
        );
    }
    rig.wait(ms(1_000));
    assert_eq!(
        see(&mut rig, packet(true, 1, 2), Existing::Reset),
        (Verdict::Pass, Reason::ExistingLeft),
        "enough"
    );
}
