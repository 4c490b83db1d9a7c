//! A node under its supervisor: hung, killed, bypassed, orphaned.

use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::ground::{self, Ground};
use crate::node::{Node, NodeProcess, NodeSpec};
use crate::pair::{PLACES, ask, serve, servers};

/// Waits until it is so, and says how long that took.
fn until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(15), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Connections that the server's node handed to the client's.
fn carried(sp: &Node) -> u64 {
    sp.counts().0.get("claimed").copied().unwrap_or(0)
}

/// Whether new connections of both families are taken; `None` while that is changing.
fn queued(ground: &Ground) -> Option<bool> {
    let both = ["ip", "ip6"].map(|family| {
        let table = ground.command("cp", "nft").args(["list", "table", family, "raw"]).output().unwrap();
        String::from_utf8_lossy(&table.stdout).contains("queue num 10")
    });
    (both[0] == both[1]).then_some(both[0])
}

#[test]
fn a_worker_that_hangs_or_dies_costs_a_new_connection_a_second_at_most() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    let before = ground.state("cp");
    serve(&ground);
    let sp = NodeSpec::routed(&ground, "sp", 2, 2).start();
    let mut supervisor = NodeProcess::start_as("supervisor", &ground, "cp", 1, 1);
    until("rules", || queued(&ground) == Some(true));
    let [v4, v6] = servers(143);
    assert!(ask(&ground, v4).unwrap().echoed);
    assert_eq!(carried(&sp), 1, "control: it takes connections");

    // Hung for a moment: the SYN waits, the next one, a second later, passes, and the worker stays.
    let first = supervisor.worker().unwrap();
    signal(first, Signal::STOP);
    let found = ask(&ground, v4).unwrap();
    assert!(found.connect < Duration::from_millis(2200), "{found:?}");
    assert!(found.connect > Duration::from_millis(300), "control: the worker did hang: {found:?}");
    signal(first, Signal::CONT);
    until("rules again", || queued(&ground) == Some(true));
    assert_eq!(supervisor.worker(), Some(first));
    let claims = carried(&sp);
    // The engine hears of it a moment after the rules are in place.
    until("a connection is taken again", || {
        ask(&ground, v4).is_ok_and(|found| found.echoed) && carried(&sp) > claims
    });

    // For good: another one takes its place.
    signal(first, Signal::STOP);
    until("another worker", || {
        supervisor.worker().is_some_and(|pid| pid != first) && queued(&ground) == Some(true)
    });

    // Killed: bypassed at once, but for a SYN that it still had.
    let second = supervisor.worker().unwrap();
    signal(second, Signal::KILL);
    for server in [v4, v6] {
        let found = ask(&ground, server).unwrap();
        assert!(found.echoed && found.connect < Duration::from_millis(1300), "{found:?}");
    }
    let back = until("a third worker", || {
        supervisor.worker().is_some_and(|pid| pid != second) && queued(&ground) == Some(true)
    });
    println!("at work again after {back:?}");
    let claims = carried(&sp);
    assert!(ask(&ground, v6).unwrap().echoed);
    assert_eq!(carried(&sp), claims + 1, "{:?}", sp.counts());

    // Bypassed, while the worker hangs.
    let third = supervisor.worker().unwrap();
    signal(third, Signal::STOP);
    let mut stdin = supervisor.child.stdin.take().unwrap();
    stdin.write_all(b"bypass on\n").unwrap();
    let out = until("rules out", || queued(&ground) == Some(false));
    assert!(out < Duration::from_millis(900), "{out:?}");
    let claims = carried(&sp);
    assert!(ask(&ground, v4).unwrap().echoed);
    assert_eq!(carried(&sp), claims);
    until("a fourth worker", || supervisor.worker().is_some_and(|pid| pid != third));
    stdin.write_all(b"bypass off\n").unwrap();
    until("rules in", || queued(&ground) == Some(true));
    assert!(ask(&ground, v4).unwrap().echoed);
    assert_eq!(carried(&sp), claims + 1, "{:?}", sp.counts());

    // Stopped: nothing stays.
    drop(stdin);
    assert!(supervisor.child.wait().unwrap().success());
    assert_eq!(ground.state("cp"), before);
}

#[test]
fn an_orphan_takes_the_rules_out_and_ends() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    let before = ground.state("cp");
    serve(&ground);
    let mut supervisor = NodeProcess::start_as("supervisor", &ground, "cp", 1, 1);
    until("rules", || queued(&ground) == Some(true));
    let worker = supervisor.worker().unwrap();
    supervisor.kill();
    let gone = until("the worker's end", || !std::path::Path::new(&format!("/proc/{worker}")).exists());
    assert!(gone < Duration::from_secs(3), "{gone:?}");
    assert_eq!(ground.state("cp"), before);
    assert!(ask(&ground, servers(143)[0]).unwrap().echoed);
}
