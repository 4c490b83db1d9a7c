//! Other ways to stand on the path than as a router: as a bridge between ports, and on an end's own machine.

use std::io::BufRead as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::Ground;
use lab::ground::Plan;

use crate::case::Case;
use crate::path::ends::{Client, ECHO, both};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::until;

/// `c` and `d` on two ports of the bridge `a`, whose third leads to the router `f`; behind it the bridge `b`, and `s`.
pub(super) fn ground(case: &Case) -> anyhow::Result<Ground> {
    let ground = Ground::build(case.prefix(), &["c", "d", "a", "f", "b", "s"])?;
    let mut plan = Plan::default();
    for (left, right) in [
        (("c", "right"), ("a", "left")),
        (("d", "right"), ("a", "third")),
        (("a", "right"), ("f", "left")),
        (("f", "right"), ("b", "left")),
        (("b", "right"), ("s", "left")),
    ] {
        ground.cable(&mut plan, left, right);
    }
    for (place, ports, network, gateway) in
        [("a", &["left", "right", "third"][..], 0, (0, 2)), ("b", &["left", "right"][..], 1, (1, 1))]
    {
        plan.ip(place, "link add br0 type bridge stp_state 0 mcast_snooping 0");
        for port in ports {
            plan.ip(place, format!("link set {port} master br0 up"));
        }
        plan.address(place, "br0", network, 9);
        plan.default_route(place, gateway);
    }
    for (place, device, network, host) in [
        ("c", "right", 0, 1),
        ("d", "right", 0, 3),
        ("f", "left", 0, 2),
        ("f", "right", 1, 1),
        ("s", "left", 1, 2),
    ] {
        plan.address(place, device, network, host);
    }
    for (place, gateway) in [("c", (0, 2)), ("d", (0, 2)), ("s", (1, 1))] {
        plan.default_route(place, gateway);
    }
    ground.carry_out(&plan)?;
    // A bridge is no router.
    for place in ["a", "b"] {
        for of in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            ground.set(place, of, "0")?;
        }
    }
    Ok(ground)
}

pub(super) fn bridge(ports: &str) -> Standing {
    Standing::on(&format!("mode = \"bridge\"\nbridge = \"br0\"\ninterfaces = [{ports}]"))
}

/// A pair of bridges: two ports each, then three.
pub(crate) fn pair(case: &Case) -> anyhow::Result<()> {
    let ground = ground(case)?;
    let servers = both(1, 2, ECHO);
    let line = Line::on(&ground, servers, [("c", "right"), ("s", "left"), ("f", "left")])?;
    ground.warm_up("d", &servers.map(|server| server.ip()))?;
    // The control: nobody is there.
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 0), "somebody asks before there is a node");
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    let two = "\"left\", \"right\"";
    nodes.start(&[("a", bridge(two)), ("b", bridge(two))])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 2), "the bridge did not ask");
    ensure!(nodes.count("a", "carried")? == 2, "not carried");
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 200_000), "not over the link");
    nodes.at_rest(&["a", "b"])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "asked for what the link carries");
    // A port that is not taken: past the node.
    let before = nodes.count("a", "carried")?;
    for server in servers {
        Client::whole(&ground, "d", server)?;
    }
    ensure!(nodes.count("a", "carried")? == before, "a port that is not taken is taken");
    frames_pass(&ground)?;
    nodes.end("a")?;
    nodes.start(&[("a", bridge("\"left\", \"right\", \"third\""))])?;
    for server in servers {
        for client in ["c", "d"] {
            Client::whole(&ground, client, server)?;
        }
    }
    ensure!(nodes.count("a", "carried")? == 4, "three ports: {} of 4", nodes.count("a", "carried")?);
    Ok(())
}

/// Whose frames are looked for.
const MAC: &str = "020000000077";

/// Frames that are none of the node's business arrive at the router as `c` has sent them.
fn frames_pass(ground: &Ground) -> anyhow::Result<()> {
    let arp = format!("08060001080006040001{MAC}0a5200370000000000000a520002");
    let neighbour = format!("8700000000000000fd0000820000000000000000000000020101{MAC}");
    let (v6, all_nodes) = ("fd000082000000000000000000000055", "ff0200000000000000000001ff000002");
    let datagram = "13881388000c0000deadbeef";
    let frames = [
        ("ARP", format!("ffffffffffff{MAC}{arp}")),
        ("ND", format!("3333ff000002{MAC}86dd6000000000203aff{v6}{all_nodes}{neighbour}")),
        ("STP", format!("0180c2000000{MAC}00264242030000000000{}", "00".repeat(30))),
        // Its header's checksum holds, or the bridge itself throws it away.
        ("multicast", format!("01005e010203{MAC}080045000020000000000111be760a520001ef010203{datagram}")),
        (
            "multicast of IPv6",
            format!("333300000123{MAC}86dd60000000000c1101{v6}ff050000000000000000000000000123{datagram}"),
        ),
        ("VLAN", format!("ffffffffffff{MAC}81000064{arp}")),
        ("two tags", format!("ffffffffffff{MAC}88a80064810000c8{arp}")),
        ("an unknown protocol", format!("ffffffffffff{MAC}88b5{}", "5a".repeat(46))),
    ];
    let mut listening = ground
        .command("f", "tcpdump")
        .args(["-i", "left", "-l", "-n", "-e", "-xx", "--immediate-mode", "ether src 02:00:00:00:00:77"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = listening.stderr.take().context("tcpdump's messages")?;
    let mut lines = std::io::BufReader::new(stderr).lines();
    while !lines.next().context("tcpdump does not begin")??.contains("listening on") {}
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let (into, stdout) = (seen.clone(), listening.stdout.take().context("tcpdump's output")?);
    let reading = std::thread::spawn(move || {
        for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
            let Ok(mut into) = into.lock() else { return };
            match line.trim_start().strip_prefix("0x") {
                Some(rest) => {
                    let hex: String =
                        rest.split_once(':').map_or("", |(_, hex)| hex).split_whitespace().collect();
                    if let Some(last) = into.last_mut() {
                        last.push_str(&hex);
                    }
                }
                None => into.push(String::new()),
            }
        }
    });
    let sender = "import socket,sys\ns=socket.socket(socket.AF_PACKET,socket.SOCK_RAW)\ns.bind(('right',0))\n\
                  [s.send(bytes.fromhex(f)) for f in sys.argv[1:]]";
    let mut command = ground.command("c", "python3");
    command.args(["-c", sender]).args(frames.iter().map(|(_, frame)| frame));
    ensure!(command.status()?.success(), "the frames cannot be sent");
    let arrived = until("every frame arrives as it was sent", || {
        let seen = seen.lock().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        Ok(frames.iter().all(|(_, frame)| seen.iter().any(|hex| hex.starts_with(frame))))
    });
    if let Ok(pid) = i32::try_from(listening.id()) {
        drop(lab::sys::kill(pid, libc::SIGTERM));
    }
    drop(listening.wait());
    drop(reading.join());
    let seen = seen.lock().map_err(|_| anyhow::anyhow!("the reader panicked"))?.clone();
    let missing = frames.iter().filter(|(_, frame)| !seen.iter().any(|hex| hex.starts_with(frame)));
    let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
    arrived.with_context(|| format!("missing or altered: {missing:?}; seen: {seen:?}"))?;
    let arrived = seen.iter().filter(|hex| !hex.is_empty()).count();
    ensure!(arrived == frames.len(), "{arrived} frames arrived of {}: {seen:?}", frames.len());
    Ok(())
}

/// The node on the client's machine, on the server's, and on both.
pub(crate) fn host(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["c", "a", "b", "s"])?;
    let on_client = || Standing::on("mode = \"host\"\nhost = \"client\"\ninterfaces = [\"right\"]");
    let on_server = || Standing::on("mode = \"host\"\nhost = \"server\"\ninterfaces = [\"left\"]");
    for (near, far) in [
        (("c", on_client()), ("b", Standing::routed())),
        (("a", Standing::routed()), ("s", on_server())),
        (("c", on_client()), ("s", on_server())),
    ] {
        // The control: nobody is there.
        line.connections()?;
        let (syns, asked) = line.seen_behind_the_first();
        ensure!((syns, asked) == (2, 0), "without nodes: {syns} SYNs, {asked} with a query");
        let places = [near.0, far.0];
        nodes.start(&[near, far])?;
        line.connections()?;
        let (_, asked) = line.seen_behind_the_first();
        ensure!(asked >= 2, "{places:?}: not asked");
        let [near, far] = places;
        ensure!(nodes.count(near, "carried")? == 2, "{places:?}: not carried");
        ensure!(nodes.count(far, "claimed")? >= 2, "{places:?}: not claimed");
        ensure!(
            nodes.sent_to(near, far)?.is_some_and(|sent| sent >= 200_000),
            "{places:?}: not over the link"
        );
        nodes.at_rest(&places)?;
        // Killed under a live connection: that one is told, and the next goes direct.
        let [server, _] = line.servers;
        let mut live = Client::connect(&ground, "c", server)?;
        live.echoes(b"before")?;
        nodes.node(near)?.kill()?;
        let connected = Client::whole(&ground, "c", server)?;
        ensure!(connected < Duration::from_secs(3), "{places:?}: a new connection took {connected:?}");
        let told = live.told_dead()?;
        ensure!(told < Duration::from_secs(2), "{places:?}: a dead connection was told after {told:?}");
        nodes.node(far)?.kill()?;
        // What the killed one left behind is taken away by its next start.
        if near == "c" {
            nodes.start(&[(near, on_client().passing())])?;
        } else {
            nodes.start(&[(near, Standing::routed().passing())])?;
        }
        nodes.end(near)?;
    }
    Ok(())
}
