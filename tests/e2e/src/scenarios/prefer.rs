//! Two nodes on the servers' side: one that is preferred and one that stands in, two that share, one that tells of the other;
//! and a peer that is away for a moment only.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::Ground;
use lab::ground::v4;
use serde_json::Value;

use crate::case::Case;
use crate::path::ends::{Client, ECHO, serve};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::until;

/// Client, its node, two nodes of the servers, the servers: both on the path, so that each can be the client to them.
const PLACES: &[&str] = &["c", "a", "b1", "b2", "s"];
/// The servers' networks.
const SERVERS: &str = "[\"10.82.3.0/24\", \"fd00:82:0:3::/64\"]";
/// Of a connection; with it go 100,000 octets each way.
const CARRIED_MIN: u64 = 100_000;
/// What a client waits at most, as is promised: two silences.
const FAILS_OVER_MAX: Duration = Duration::from_secs(4);
/// So long is one of them.
const SILENCE: Duration = Duration::from_secs(2);
/// A peer is looked for every half second at first, its rules are put in place, and 'nobody' is believed for 2 s; twice
/// that, for the machine may have other work.
const BACK_MAX: Duration = Duration::from_secs(12);
/// How often one is killed to be seen while it is held down.
const RETURNS_MAX: usize = 3;

fn link_of(node: &str) -> String {
    let network = if node == "b1" { 1 } else { 2 };
    format!("{}:7782", v4(network, 2))
}

/// A peer of the client's node that was named for the servers.
fn named(node: &str, preference: u8) -> String {
    let address = link_of(node);
    format!(
        "[[peer]]\nid = {node:?}\naddress = {address:?}\nservers = {SERVERS}\npreference = {preference}\n"
    )
}

/// A server's node that takes no client's query of its own accord, and what the client's node asks it for.
fn granting(other: &str) -> Standing {
    let rest = format!(
        "[[rule]]\naction = \"intercept\"\nports = [9999]\n\
         [[peer]]\nid = \"a\"\nmay_open = {SERVERS}\n[[peer]]\nid = {other:?}\n"
    );
    Standing { rest, ..Standing::routed() }
}

struct Shares {
    before: [u64; 2],
}

impl Shares {
    fn of(nodes: &Nodes<'_>) -> anyhow::Result<Self> {
        let sent = |node| anyhow::Ok(nodes.sent_to("a", node)?.unwrap_or(0));
        Ok(Self { before: [sent("b1")?, sent("b2")?] })
    }

    /// Which of the two has carried since then; a link that was made anew counts from nothing.
    fn carried_since(&mut self, nodes: &Nodes<'_>) -> anyhow::Result<[bool; 2]> {
        let now = Self::of(nodes)?;
        let ([first, second], [first_now, second_now]) = (self.before, now.before);
        let more =
            |before: u64, now: u64| now.saturating_sub(if now < before { 0 } else { before }) >= CARRIED_MIN;
        let carried = [more(first, first_now), more(second, second_now)];
        *self = now;
        Ok(carried)
    }
}

/// How a candidate stands, as `waypost explain` says.
fn standing(nodes: &Nodes<'_>, server: SocketAddr, node: &str) -> anyhow::Result<String> {
    let socket = nodes.directory("a").join("admin.sock");
    let socket = socket.to_str().context("a path that is no text")?;
    let client = v4(0, 1).to_string();
    let said = nodes.waypost(&["explain", "--json", "--socket", socket, &client, &server.to_string()])?;
    let said: Value = serde_json::from_slice(&said)?;
    let all = said.get("candidates").and_then(Value::as_array).context("no candidates are explained")?;
    let of = |candidate: &&Value| candidate.get("node").and_then(Value::as_str) == Some(node);
    let standing = all.iter().find(of).and_then(|candidate| candidate.get("standing")?.as_str());
    standing.map(str::to_owned).with_context(|| format!("{node} is no candidate: {said}"))
}

fn both_ready(nodes: &Nodes<'_>, server: SocketAddr) -> anyhow::Result<()> {
    until("both are ready", || {
        Ok(standing(nodes, server, "b1")? == "ready" && standing(nodes, server, "b2")? == "ready")
    })?;
    Ok(())
}

/// The one that is preferred carries; when it is killed the other one does, and the first again when it is well.
pub(crate) fn preferred(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), PLACES)?;
    let line = Line::row(&ground, 3, "a")?;
    let [server, _] = line.servers;
    let mut nodes = Nodes::of(case, &ground, &["a", "b1", "b2"])?;
    let asking = Standing::routed().and(&named("b1", 1)).and(&named("b2", 0));
    nodes.start(&[("b1", granting("b2")), ("b2", granting("b1")), ("a", asking)])?;
    nodes.wait_link("a", "b1")?;
    nodes.wait_link("a", "b2")?;
    both_ready(&nodes, server)?;
    let mut shares = Shares::of(&nodes)?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "a SYN has left the client's side");
    ensure!(shares.carried_since(&nodes)? == [false, true], "not through the one that is preferred");
    ensure!(nodes.count("a", "static-hit")? == 2, "not by what was named");
    nodes.at_rest(&["a", "b1", "b2"])?;
    // Killed: the very next one, before anybody can have noticed.
    line.forget();
    nodes.node("b2")?.kill()?;
    let mut slowest = Duration::ZERO;
    for server in line.servers {
        slowest = slowest.max(Client::whole(&ground, "c", server)?);
    }
    case.note("failed-over-ms", u64::try_from(slowest.as_millis())?);
    ensure!(slowest < FAILS_OVER_MAX, "the next one took {slowest:?}");
    ensure!(line.seen_at_the_ends()? == (0, 0), "it went direct and not through the other node");
    ensure!(shares.carried_since(&nodes)? == [true, false], "not through the one that stands in");
    let stood_in = nodes.count("a", "stand-in")? + nodes.count("a", "next-peer")?;
    ensure!(stood_in >= 2, "it is not said why: {stood_in}");
    // Back: not at once, for it may go again, and then for good.
    for nth in 1.. {
        nodes.at_rest(&["a", "b1"])?;
        nodes.start(&[("b2", granting("b1"))])?;
        until("it is held down", || Ok(standing(&nodes, server, "b2")? == "held-down"))?;
        shares = Shares::of(&nodes)?;
        line.connections()?;
        ensure!(line.seen_at_the_ends()? == (0, 0), "direct while one stands in");
        let carried = shares.carried_since(&nodes)?;
        if standing(&nodes, server, "b2")? == "held-down" {
            ensure!(carried == [true, false], "it flaps");
            break;
        }
        // That took longer than it is held down: nothing is shown. The next time it is for longer.
        ensure!(nth < RETURNS_MAX, "never seen while it is held down");
        nodes.node("b2")?.kill()?;
        until("its death is noticed", || Ok(nodes.sent_to("a", "b2")?.is_none()))?;
    }
    until("it is well again", || Ok(standing(&nodes, server, "b2")? == "ready"))?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "direct");
    ensure!(shares.carried_since(&nodes)? == [false, true], "it is not returned to");
    silent(&ground, &line, &nodes)?;
    // The control: nobody else is named, so that the next one after its death goes direct.
    nodes.at_rest(&["a", "b1", "b2"])?;
    nodes.end("a")?;
    nodes.start(&[("a", Standing::routed().and(&named("b2", 0)).and("[[peer]]\nid = \"b1\"\n"))])?;
    nodes.wait_link("a", "b2")?;
    nodes.node("b2")?.kill()?;
    until("its death is noticed", || Ok(nodes.sent_to("a", "b2")?.is_none()))?;
    line.connections()?;
    ensure!(line.seen_behind_the_first().0 == 2, "without another one it does not go direct");
    Ok(())
}

/// The one that is preferred says nothing, and its link stands: the next one is asked when that has lasted.
fn silent(ground: &Ground, line: &Line<'_>, nodes: &Nodes<'_>) -> anyhow::Result<()> {
    let [server, _] = line.servers;
    nodes.at_rest(&["a", "b1", "b2"])?;
    let (mut shares, before) = (Shares::of(nodes)?, nodes.count("a", "next-peer")?);
    ground.nft(
        "b2",
        "table inet silent { chain in { type filter hook input priority 0; tcp dport 7782 drop; tcp sport 7782 drop; }; }",
    )?;
    let waited = Client::whole(ground, "c", server)?;
    ground.nft("b2", "delete table inet silent")?;
    ensure!((SILENCE..FAILS_OVER_MAX).contains(&waited), "the next one took {waited:?} after a silence");
    // The client has said its SYN again meanwhile.
    ensure!(line.seen_behind_the_first().0 == 0, "a silence, and it went direct");
    ensure!(shares.carried_since(nodes)?[0], "a silence, and the next one did not carry");
    let next = nodes.count("a", "next-peer")? - before;
    ensure!(next == 1, "{next} were asked next");
    Ok(())
}

/// More servers beside the first, for as many pairs of a client and a server.
fn many(ground: &Ground) -> anyhow::Result<Vec<SocketAddr>> {
    let hosts = 20..36_u8;
    for host in hosts.clone() {
        ground.run("s", &format!("ip addr add {}/24 dev left", v4(3, host)))?;
    }
    let at = |host| SocketAddr::new(IpAddr::V4(v4(3, host)), ECHO);
    let servers: Vec<SocketAddr> = hosts.map(at).collect();
    serve(ground, "s", &servers)?;
    ground.warm_up("c", &servers.iter().map(SocketAddr::ip).collect::<Vec<_>>())?;
    Ok(servers)
}

/// Who carries to each of them.
fn carriers(ground: &Ground, nodes: &Nodes<'_>, servers: &[SocketAddr]) -> anyhow::Result<Vec<usize>> {
    let mut shares = Shares::of(nodes)?;
    let mut all = Vec::new();
    for server in servers {
        Client::whole(ground, "c", *server)?;
        all.push(match shares.carried_since(nodes)? {
            [true, false] => 0,
            [false, true] => 1,
            other => bail!("{server}: carried by {other:?}"),
        });
    }
    Ok(all)
}

/// Equal ones: each carries for some, and always for the same.
pub(crate) fn shared(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), PLACES)?;
    let line = Line::row(&ground, 3, "a")?;
    let ([first_server, _], servers) = (line.servers, many(&ground)?);
    let mut nodes = Nodes::of(case, &ground, &["a", "b1", "b2"])?;
    let asking = |first, second| Standing::routed().and(&named("b1", first)).and(&named("b2", second));
    nodes.start(&[("b1", granting("b2")), ("b2", granting("b1")), ("a", asking(5, 5))])?;
    nodes.wait_link("a", "b1")?;
    nodes.wait_link("a", "b2")?;
    both_ready(&nodes, first_server)?;
    let first = carriers(&ground, &nodes, &servers)?;
    let second = carriers(&ground, &nodes, &servers)?;
    ensure!(first == second, "the same two ends have met elsewhere: {first:?}, then {second:?}");
    let through_the_second: usize = first.iter().sum();
    case.note("through-the-second-of-16", through_the_second);
    ensure!((1..first.len()).contains(&through_the_second), "one of them carries everything: {first:?}");
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "a SYN has left the client's side");
    // One goes: what was the other's stays where it was.
    nodes.at_rest(&["a", "b1", "b2"])?;
    nodes.node("b1")?.kill()?;
    let alone = carriers(&ground, &nodes, &servers)?;
    ensure!(alone.iter().all(|carrier| *carrier == 1), "through a dead one: {alone:?}");
    // The control: with a preference, no share.
    nodes.start(&[("b1", granting("b2"))])?;
    nodes.end("a")?;
    nodes.start(&[("a", asking(0, 1))])?;
    nodes.wait_link("a", "b1")?;
    nodes.wait_link("a", "b2")?;
    both_ready(&nodes, first_server)?;
    let preferred = carriers(&ground, &nodes, &servers)?;
    ensure!(preferred.iter().all(|carrier| *carrier == 0), "control: {preferred:?}");
    Ok(())
}

/// The node that is found on the path tells of another one, and the client's node chooses between them.
pub(crate) fn told(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), PLACES)?;
    let line = Line::row(&ground, 3, "a")?;
    let servers = many(&ground)?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b1", "b2"])?;
    // On the path it is the one that answers; nobody has configured anything at the client's.
    let telling = |serves: &str| {
        let address = link_of("b2");
        let other = format!("[[peer]]\nid = \"b2\"\naddress = {address:?}\n{serves}");
        Standing::routed().and(&other).and("[[peer]]\nid = \"a\"\n")
    };
    nodes.start(&[("b2", granting("b1")), ("b1", telling("")), ("a", Standing::routed())])?;
    nodes.wait_link("b1", "b2")?;
    // The control first: it tells of nobody.
    carriers_of_the_path(&ground, &nodes, &servers)?;
    let untold = carriers(&ground, &nodes, &servers)?;
    ensure!(untold.iter().all(|carrier| *carrier == 0), "control: {untold:?}");
    nodes.at_rest(&["a", "b1", "b2"])?;
    nodes.end("b1")?;
    nodes.start(&[("b1", telling(&format!("serves = {SERVERS}\n")))])?;
    nodes.wait_link("b1", "b2")?;
    nodes.wait_link("a", "b1")?;
    carriers_of_the_path(&ground, &nodes, &servers)?;
    // And the one that tells has been back for long enough.
    until("both are ready", || {
        let status = nodes.status("a")?;
        let all = status.get("candidates").and_then(Value::as_array).context("no candidates")?;
        let ready = |node, by| {
            all.iter().any(|row| {
                let word = |key| row.get(key).and_then(Value::as_str);
                [word("node"), word("by"), word("standing")] == [Some(node), Some(by), Some("ready")]
            })
        };
        Ok(ready("b1", "learnt") && ready("b2", "told"))
    })?;
    let first = carriers(&ground, &nodes, &servers)?;
    let second = carriers(&ground, &nodes, &servers)?;
    ensure!(first == second, "the same two ends have met elsewhere: {first:?}, then {second:?}");
    let through_the_second: usize = first.iter().sum();
    case.note("through-the-second-of-16", through_the_second);
    ensure!((1..first.len()).contains(&through_the_second), "it does not choose: {first:?}");
    ensure!(nodes.count("a", "told-hit")? >= 1, "not because it was told");
    // The teller dies: the other one is known, and no SYN need ask for it.
    nodes.at_rest(&["a", "b1", "b2"])?;
    nodes.node("b1")?.kill()?;
    until("its death is noticed", || Ok(nodes.sent_to("a", "b1")?.is_none()))?;
    line.forget();
    let alone = carriers(&ground, &nodes, &servers)?;
    ensure!(alone.iter().all(|carrier| *carrier == 1), "through a dead one: {alone:?}");
    ensure!(line.seen_behind_the_first().0 == 0, "the path was asked for what was told");
    Ok(())
}

/// One connection each, by which the path is learnt. Whoever carries.
fn carriers_of_the_path(ground: &Ground, nodes: &Nodes<'_>, servers: &[SocketAddr]) -> anyhow::Result<()> {
    for server in servers {
        Client::whole(ground, "c", *server)?;
        let known = nodes.known("a", *server)?;
        ensure!(known.as_deref() == Some("peer"), "{server} is {known:?}");
    }
    Ok(())
}

/// A peer's upgrade, and its bypass, cost what comes meanwhile its pair, and nothing that comes afterwards.
pub(crate) fn upgraded_peer(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let [server, _] = line.servers;
    let unknown = SocketAddr::new(server.ip(), 8003);
    serve(&ground, "s", &[unknown])?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 2), "not a pair");
    nodes.at_rest(&["a", "b"])?;
    let socket = nodes.directory("b").join("admin.sock");
    let socket = socket.to_str().context("a path that is no text")?.to_owned();
    nodes.node("b")?.watch.announce("bypass");
    for (of, what) in [("upgrade", &["upgrade"][..]), ("bypass", &["bypass", "on"])] {
        let mut command = what.to_vec();
        command.extend(["--socket", &socket]);
        // Connections all the while, to a server that is known and to one that is not.
        let mut asked = Command::new(&case.executable).args(&command).stdout(Stdio::null()).spawn()?;
        let mut doubted = 0;
        loop {
            let over = asked.try_wait()?;
            for server in [server, unknown] {
                Client::whole(&ground, "c", server)?;
                doubted += usize::from(nodes.known("a", server)?.as_deref() == Some("no-proxy"));
            }
            if let Some(ended) = over {
                ensure!(ended.success(), "{what:?}: {ended}");
                break;
            }
        }
        let back = Instant::now();
        if of == "bypass" {
            nodes.waypost(&["bypass", "off", "--socket", &socket])?;
        }
        // The control: it was away, and that was noticed.
        ensure!(doubted > 0, "{of}: nothing ever went direct, so nothing is shown");
        for server in [server, unknown] {
            let mut before = nodes.count("a", "carried")?;
            until("it is carried again", || {
                Client::whole(&ground, "c", server)?;
                let now = nodes.count("a", "carried")?;
                let carried = now > before;
                before = now;
                Ok(carried)
            })?;
        }
        let back = back.elapsed();
        case.note(
            if of == "bypass" { "after-bypass-ms" } else { "after-upgrade-ms" },
            u64::try_from(back.as_millis())?,
        );
        ensure!(back < BACK_MAX, "{of}: direct for {back:?} after the peer was back");
        line.connections()?;
        let (syns, asking) = line.seen_at_the_ends()?;
        ensure!(syns == asking, "{of}: {syns} SYNs behind the first node, {asking} of them ask");
        nodes.at_rest(&["a", "b"])?;
    }
    Ok(())
}
