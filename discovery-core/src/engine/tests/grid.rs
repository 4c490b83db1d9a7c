//! Every state against everything that can happen: one cell each, none left out. A cell is what is done with the
//! packet (or `.` for an event), why, what is asked of the shell, and where the connection stands afterwards.

use super::*;
use std::fmt::Write as _;

/// How a connection is brought into a state. Its SYN's number is [`ISN`]; an own SYN's is 9.
const STATES: &[&str] = &[
    "unknown",
    "probing",
    "direct",
    "held",
    "opening",
    "opening-known",
    "opening-named",
    "injected",
    "carried",
    "single",
    "connecting",
    "connecting-claimed",
    "early",
    "middle",
    "claimed",
    "claimed-old",
    "past",
];

const HAPPENINGS: &[&str] = &[
    "syn",
    "syn-again",
    "syn-new",
    "query",
    "query-new",
    "own-syn",
    "own-syn-back",
    "response",
    "response-bad",
    "syn-ack",
    "client-rst",
    "server-rst",
    "connected",
    "refused-by-server",
    "connect-local",
    "opened",
    "refused",
    "refused-late",
    "refused-unseen",
    "refused-now",
    "aborted",
    "closed",
    "peer-down",
    "peer-aside",
    "probed-yes",
    "probed-no",
    "claim",
    "agent-down",
    "bypass",
    "time",
];

fn brought(state: &str) -> Rig {
    let mut config = Config {
        embodiment: if state == "held" { Embodiment::Stalled } else { Embodiment::OnSyn },
        ..Config::default()
    };
    if state == "opening-named" {
        let network = Prefix::new(flow().server.ip(), 32);
        let named = |n| crate::pmt::StaticPeer { network, port: None, peer: peer(n), preference: n };
        config.pmt.statics = vec![named(2), named(1)];
    }
    let mut rig = Rig::with(config);
    rig.tell(Event::PeerUp { peer: peer(1) });
    rig.tell(Event::PeerUp { peer: peer(2) });
    let client = |rig: &mut Rig| {
        rig.see(&syn(flow(), ISN));
    };
    let server = |rig: &mut Rig| {
        rig.see(&query(flow(), ISN));
        rig.see(&own(flow(), 9));
    };
    match state {
        "unknown" => {}
        "probing" | "held" | "opening-named" => client(&mut rig),
        "direct" => {
            client(&mut rig);
            rig.see(&answer(flow(), 1234));
        }
        "opening" => {
            client(&mut rig);
            rig.see(&response(flow(), ISN, peer(1), false));
        }
        "opening-known" => {
            rig.see(&syn(flow_of(1), 1));
            rig.see(&response(flow_of(1), 1, peer(1), false));
            rig.tell(Event::Opened { flow: flow_of(1) });
            rig.tell(Event::Closed { flow: flow_of(1) });
            client(&mut rig);
        }
        "injected" => {
            client(&mut rig);
            rig.see(&response(flow(), ISN, peer(1), true));
        }
        "carried" => {
            client(&mut rig);
            rig.see(&response(flow(), ISN, peer(1), true));
            rig.tell(Event::Opened { flow: flow() });
        }
        "single" => {
            rig.action = Action::InterceptSingle;
            client(&mut rig);
            rig.action = Action::Intercept;
        }
        "connecting" => server(&mut rig),
        "connecting-claimed" => {
            server(&mut rig);
            rig.engine.claim(rig.now(), flow(), false);
        }
        "early" => {
            server(&mut rig);
            rig.tell(Event::Connected { flow: flow() });
        }
        "middle" => {
            server(&mut rig);
            rig.see(&response(flow(), 9, peer(2), true));
        }
        "claimed" | "claimed-old" => {
            server(&mut rig);
            rig.tell(Event::Connected { flow: flow() });
            rig.engine.claim(rig.now(), flow(), false);
            if state == "claimed-old" {
                rig.wait(ms(6_000));
            }
        }
        "past" => {
            server(&mut rig);
            rig.see(&syn(flow(), ISN));
        }
        other => panic!("no state {other}"),
    }
    rig.outputs();
    rig
}

fn happens(rig: &mut Rig, what: &str) -> String {
    let said = |from: Peer| Some(Response { link: from.link, key: from.key, connected: false });
    let seen = match what {
        "syn" => syn(flow(), ISN),
        "syn-again" => {
            rig.at += ms(1_000);
            syn(flow(), ISN)
        }
        "syn-new" => syn(flow(), 500),
        "query" => query(flow(), ISN),
        "query-new" => query(flow(), 500),
        "own-syn" => own(flow(), 9),
        "own-syn-back" => query(flow(), 9),
        "response" => response(flow(), ISN, peer(1), true),
        "response-bad" => response(flow(), 77, peer(1), true),
        "syn-ack" => answer(flow(), ISN.wrapping_add(1)),
        "client-rst" => rst(flow(), ISN),
        "server-rst" => Seen { kind: Kind::Rst, ..answer(flow(), ISN.wrapping_add(1)) },
        event => {
            let flow = flow();
            let server = flow.server;
            let event = match event {
                "connected" => Event::Connected { flow },
                "refused-by-server" => Event::ConnectFailed { flow, why: ConnectFailure::Refused },
                "connect-local" => Event::ConnectFailed { flow, why: ConnectFailure::Local },
                "opened" => Event::Opened { flow },
                "refused" => Event::Refused { flow, why: Refusal::Peer },
                "refused-unseen" => Event::Refused { flow, why: Refusal::Unseen },
                "refused-now" => Event::Refused { flow, why: Refusal::NotNow },
                "refused-late" => Event::Refused { flow, why: Refusal::ServerRefused },
                "aborted" => Event::Aborted { flow, isn: ISN },
                "closed" => Event::Closed { flow },
                "peer-aside" => Event::PeerAside { peer: peer(1), aside: true },
                "peer-down" => Event::PeerDown { peer: peer(1) },
                "probed-yes" => Event::Probed { server, answer: said(peer(1)) },
                "probed-no" => Event::Probed { server, answer: None },
                "agent-down" => Event::AgentDown,
                "bypass" => Event::Bypass { on: true },
                "claim" => {
                    return match rig.engine.claim(rig.now(), flow, false) {
                        Claim::Early => "early".to_owned(),
                        Claim::Onward(_) => "onward".to_owned(),
                        Claim::Wait => "wait".to_owned(),
                        Claim::Refused(why) => format!("no: {why}"),
                    };
                }
                "time" => {
                    rig.wait(ms(40_000));
                    return ".".to_owned();
                }
                other => panic!("no event {other}"),
            };
            rig.tell(event);
            return ".".to_owned();
        }
    };
    let (verdict, reason) = rig.see(&seen);
    let verdict = match verdict {
        Verdict::Pass => "pass",
        Verdict::PassWithQuery => "query",
        Verdict::Drop => "drop",
    };
    format!("{verdict} {reason}")
}

fn short(output: &Output) -> String {
    match output {
        Output::InjectSyn { .. } => "inject".to_owned(),
        Output::ReleaseSyn { .. } => "release".to_owned(),
        Output::ProbeSyn { .. } => "probe-syn".to_owned(),
        Output::Connect { .. } => "connect".to_owned(),
        Output::Abandon { why, .. } => format!("abandon({why})"),
        Output::AnswerByDatagram { connected, .. } => format!("answer-by-datagram({connected})"),
        Output::AnswerProbe { connected, .. } => format!("answer({connected})"),
        Output::Reset { .. } => "reset".to_owned(),
        Output::ResetServer { .. } => "reset-server".to_owned(),
        Output::Unreachable { .. } => "unreachable".to_owned(),
        Output::Open { .. } => "open".to_owned(),
        Output::Single { .. } => "serve-single".to_owned(),
        Output::Abort { why, .. } => format!("abort({why})"),
        Output::ClaimReady { onward, .. } => format!("claim-ready({})", onward.is_some()),
        Output::ClaimFailed { why, .. } => format!("claim-failed({why})"),
        Output::AbortOnward { .. } => "abort-onward".to_owned(),
        Output::SendProbe { .. } => "send-probe".to_owned(),
        Output::Learnt(_) => "learnt".to_owned(),
    }
}

fn grid() -> String {
    let mut text = String::new();
    for state in STATES {
        for what in HAPPENINGS {
            let mut rig = brought(state);
            let done = happens(&mut rig, what);
            let asked: Vec<_> = rig.outputs().iter().map(short).collect();
            let asked = if asked.is_empty() { "-".to_owned() } else { asked.join("+") };
            let after = rig.standing().map_or("-", Reason::word);
            writeln!(text, "{state:<18} {what:<17} {done:<26} {asked:<40} {after}").unwrap();
        }
    }
    text
}

/// The grid as it is meant to be stands beside this file; each line was read by a person. To change the engine's mind,
/// change the line: `WAYPOST_WRITE_GRID=1 cargo test -p discovery-core grid` writes what it does now.
#[test]
fn every_state_against_everything_that_can_happen() {
    let now = grid();
    if std::env::var_os("WAYPOST_WRITE_GRID").is_some() {
        let path = [env!("CARGO_MANIFEST_DIR"), "src", "engine", "tests", "grid.txt"]
            .iter()
            .collect::<std::path::PathBuf>();
        #[expect(clippy::disallowed_methods, reason = "only when it is asked for")]
        std::fs::write(path, &now).unwrap();
    }
    let meant = include_str!("grid.txt");
    for (n, (meant, now)) in meant.lines().zip(now.lines()).enumerate() {
        assert_eq!(now, meant, "line {}", n + 1);
    }
    assert_eq!(meant.lines().count(), STATES.len() * HAPPENINGS.len());
}

/// What must never happen, over the whole grid.
#[test]
fn no_fault_of_ours_keeps_a_syn_back() {
    for state in STATES {
        for fault in ["agent-down", "bypass"] {
            let mut rig = brought(state);
            happens(&mut rig, fault);
            rig.outputs();
            // Bypass is for what is new: a connection that a peer has stays where it is.
            if fault == "bypass" && matches!(*state, "claimed" | "connecting-claimed") {
                continue;
            }
            for isn in [ISN, 500] {
                let (verdict, reason) = rig.see(&syn(flow(), isn));
                assert_eq!(verdict, Verdict::Pass, "{state} after {fault}: {reason}");
            }
        }
    }
}
