//! What stood before a node did: what it knew, and connections.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Lab, Place};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::pair::{Client, ECHO, Nodes, STALL, echo, echo_server, noise};
use crate::case::Case;

/// A node that starts again knows its peers: its first connection asks nobody. Of a file that is not what was written
/// nothing is believed.
pub(crate) fn restarted(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let ip = Place::Server.v4();
    let mut nodes = Nodes::pair(case, &lab)?;
    Client::connect(&lab, ip)?.ends()?;
    nodes.at_rest(&[Place::Branch, Place::Centre])?;
    ensure!(nodes.count(Place::Branch, "answered")? == 1, "the path was not asked");
    stop(&mut nodes, Place::Branch)?;
    let file = nodes.directory(Place::Branch).join("mapping-table");
    let kept = std::fs::read(&file).context("nothing is kept")?;

    nodes.start(Place::Branch, "intercept")?;
    linked(&nodes)?;
    let mut client = Client::connect(&lab, ip)?;
    client.sees_the_truth(ip)?;
    client.echoes(&noise(100_000))?;
    client.ends()?;
    for (reason, times) in [("table-hit", 1), ("carried", 1), ("probing", 0)] {
        let told = nodes.count(Place::Branch, reason)?;
        ensure!(told == times, "after the restart: {reason} {told} times");
    }
    stop(&mut nodes, Place::Branch)?;

    // One octet is another: the node says so, and asks the path as it did on its first day.
    let mut damaged = kept.clone();
    let middle = damaged.get_mut(kept.len() / 2).context("an empty file")?;
    *middle ^= 1;
    std::fs::write(&file, damaged)?;
    nodes.start(Place::Branch, "intercept")?;
    nodes.node(Place::Branch)?.watch.announce("so the node learns anew");
    let status = nodes.status(Place::Branch)?;
    ensure!(status.get("forgotten_files").and_then(Value::as_u64) == Some(1), "not counted: {status}");
    ensure!(status.get("table").and_then(Value::as_array).is_some_and(Vec::is_empty), "believed: {status}");
    Client::connect(&lab, ip)?.ends()?;
    ensure!(nodes.count(Place::Branch, "answered")? == 1, "the path was not asked anew");
    Ok(())
}

pub(super) fn stop(nodes: &mut Nodes<'_>, place: Place) -> anyhow::Result<()> {
    nodes.node(place)?.signal(libc::SIGTERM)?;
    nodes.node(place)?.wait(STALL)?;
    Ok(())
}

/// Waits for the link from the branch.
fn linked(nodes: &Nodes<'_>) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let status = nodes.status(Place::Branch)?;
        let up =
            |peer: &Value| peer.get("lanes").and_then(Value::as_array).is_some_and(|lanes| !lanes.is_empty());
        if status.get("peers").and_then(Value::as_array).is_some_and(|peers| peers.iter().any(up)) {
            return Ok(());
        }
        ensure!(start.elapsed() < STALL, "no link: {status}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A connection that stood before the nodes is reset at both ends, at once, and its client's next one is carried.
pub(crate) fn reset(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let ended = watched_echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    nodes.start(Place::Centre, "intercept")?;
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        let mut before = Client::connect(&lab, ip)?;
        before.echoes(b"before")?;
        let rule = format!("action = \"intercept\"\nports = [{ECHO}]\nexisting = \"reset\"");
        nodes.start_ruled(Place::Branch, &rule)?;
        told(&mut before).with_context(|| ip.to_string())?;
        let at_server = ended.recv_timeout(STALL).context("the server is not told")?;
        ensure!(at_server == std::io::ErrorKind::ConnectionReset, "{ip}: the server is told {at_server:?}");
        ensure!(nodes.count(Place::Branch, "existing-reset")? >= 1, "{ip}: not counted");
        let mut again = Client::connect(&lab, ip)?;
        again.sees_the_truth(ip)?;
        again.echoes(&noise(100_000))?;
        ensure!(nodes.count(Place::Branch, "carried")? >= 1, "{ip}: the new one is not carried");
        let resets = nodes.count(Place::Branch, "existing-reset")?;
        again.echoes(&noise(1_000_000))?;
        ensure!(
            nodes.count(Place::Branch, "existing-reset")? == resets,
            "{ip}: what is carried was taken for old"
        );
        again.ends()?;
        nodes.at_rest(&[Place::Branch])?;
        stop(&mut nodes, Place::Branch)?;
    }
    own(&lab, &mut nodes, &ended)
}

/// A rule without ports, which says the same of every connection: those of the node's own machine are in nobody's way,
/// its link among them, even those that its rules have never seen the SYN of.
fn own(lab: &Lab, nodes: &mut Nodes<'_>, ended: &Receiver<std::io::ErrorKind>) -> anyhow::Result<()> {
    let ip = Place::Server.v4();
    let mut before = Client::connect(lab, ip)?;
    let mut own = lab.inside(Place::Branch, move || TcpStream::connect((ip, ECHO)))??;
    own.set_read_timeout(Some(STALL))?;
    let mut greeting = [0];
    while greeting != *b"\n" {
        own.read_exact(&mut greeting).context("the server's greeting")?;
    }
    let mut whole = || {
        let mut back = [0; 5];
        own.write_all(b"to me")
            .and_then(|()| own.read_exact(&mut back))
            .context("the machine's own connection")?;
        ensure!(&back == b"to me", "{back:?}");
        Ok(())
    };
    whole()?;
    nodes.start_ruled(Place::Branch, "action = \"intercept-single\"\nexisting = \"reset\"")?;
    // The control: what runs through the node is reset.
    told(&mut before)?;
    ended.recv_timeout(STALL).context("the server is not told")?;
    let resets = nodes.count(Place::Branch, "existing-reset")?;
    for _ in 0..20 {
        whole()?;
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(nodes.count(Place::Branch, "existing-reset")? == resets, "it resets its own connections");
    ensure!(ended.try_recv().is_err(), "the server is told of one more end");
    Ok(())
}

/// What stood before is left alone where the rule does not say otherwise, and is not even looked at; what nobody could
/// carry is left alone too, and soon is looked at no more.
pub(crate) fn left(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let ip = Place::Server.v4();
    let mut nodes = Nodes::of(case, &lab)?;
    let mut before = Client::connect(&lab, ip)?;
    nodes.start(Place::Centre, "intercept")?;
    nodes.start(Place::Branch, "intercept")?;
    before.echoes(&noise(300_000))?;
    let reasons = |nodes: &Nodes<'_>| {
        Ok::<_, anyhow::Error>((
            nodes.count(Place::Branch, "existing-left")?,
            nodes.count(Place::Branch, "no-proxy")?,
        ))
    };
    ensure!(reasons(&nodes)? == (0, 0), "it was looked at");
    stop(&mut nodes, Place::Branch)?;
    stop(&mut nodes, Place::Centre)?;
    // Nobody is there who could carry it.
    let rule = format!("action = \"intercept\"\nports = [{ECHO}]\nexisting = \"reset\"");
    nodes.start_ruled(Place::Branch, &rule)?;
    let start = Instant::now();
    while nodes.count(Place::Branch, "no-proxy")? == 0 {
        ensure!(start.elapsed() < STALL, "it was not looked at");
        before.echoes(b"and on")?;
    }
    before.echoes(&noise(300_000))?;
    let settled = nodes.count(Place::Branch, "no-proxy")?;
    before.echoes(&noise(3_000_000))?;
    let looked = nodes.count(Place::Branch, "no-proxy")?;
    ensure!(looked == settled, "it stays on the slow path: {settled}, then {looked}");
    ensure!(nodes.count(Place::Branch, "existing-reset")? == 0, "it was reset");
    before.sees_the_truth(ip)?;
    before.ends()
}

/// A change of routes brings a live connection onto the path: it is one that stood before.
pub(crate) fn rerouted(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let ended = watched_echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let rule = format!("action = \"intercept\"\nports = [{ECHO}]\nexisting = \"reset\"");
    nodes.start(Place::Centre, "intercept")?;
    nodes.start_ruled(Place::Branch, &rule)?;
    let ip = Place::Server.v4();
    let (client, server) = (Place::Client.v4(), ip);
    let run = |place: Place, arguments: &str| {
        let output = lab.command(place, "ip").args(arguments.split(' ')).output()?;
        ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    // Another way, beside the branch and its line.
    let centre = lab.namespace(Place::Centre);
    run(Place::Client, &format!("link add other type veth peer name other netns {centre}"))?;
    for (place, address) in [(Place::Client, "192.0.2.1/30"), (Place::Centre, "192.0.2.2/30")] {
        run(place, &format!("addr add {address} dev other"))?;
        run(place, "link set other up")?;
    }
    let there = format!("{server}/32 via 192.0.2.2 src {client}");
    let back = format!("{client}/32 via 192.0.2.1");
    run(Place::Client, &format!("route add {there}"))?;
    run(Place::Centre, &format!("route add {back}"))?;
    let mut live = Client::connect(&lab, ip)?;
    live.sees_the_truth(ip)?;
    live.echoes(&noise(100_000))?;
    let seen = |nodes: &Nodes<'_>| {
        let reasons = ["probing", "existing-reset", "probed-beside"];
        reasons.iter().map(|reason| nodes.count(Place::Branch, reason)).sum::<anyhow::Result<u64>>()
    };
    ensure!(seen(&nodes)? == 0, "it came by the branch");

    run(Place::Client, &format!("route del {there}"))?;
    run(Place::Centre, &format!("route del {back}"))?;
    told(&mut live)?;
    ended.recv_timeout(STALL).context("the server is not told")?;
    ensure!(nodes.count(Place::Branch, "existing-reset")? >= 1, "not counted");
    let mut again = Client::connect(&lab, ip)?;
    again.sees_the_truth(ip)?;
    again.echoes(&noise(100_000))?;
    ensure!(carried_now(&nodes)? == 1, "the new one is not carried");
    again.ends()
}

/// Speaks on, as clients do, until the connection is reset: the path may have to be asked first.
fn told(client: &mut Client) -> anyhow::Result<()> {
    let start = Instant::now();
    let error = loop {
        match client.exchange(b"after") {
            Ok(_) => ensure!(start.elapsed() < STALL, "it lives on beside the pair"),
            Err(error) => break error,
        }
        thread::sleep(Duration::from_millis(20));
    };
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    ensure!(matches!(kind, Some(ConnectionReset | BrokenPipe)), "the client is told {error:?}");
    Ok(())
}

/// An echo server that tells how its connections were cut.
pub(super) fn watched_echo_server(lab: &Lab) -> anyhow::Result<Receiver<std::io::ErrorKind>> {
    let (tell, cut) = channel();
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        let listener = lab.inside(Place::Server, move || TcpListener::bind((ip, ECHO)))??;
        let tell = tell.clone();
        thread::spawn(move || {
            while let Ok((stream, from)) = listener.accept() {
                let tell = tell.clone();
                thread::spawn(move || {
                    if let Err(error) = echo(stream, from) {
                        let _gone = tell.send(error.kind());
                    }
                });
            }
        });
    }
    Ok(cut)
}

/// A node alone takes over connections in their middle, in both directions and both families: of a bulk transfer no
/// octet is lost or doubled, and nobody waits. What its windows are scaled by, the node has seen in an earlier life, or
/// connection tracking has; where nobody has, it says so and lets go. That they run through the node then, its death
/// shows at both ends: what it let go lives on.
pub(crate) fn adopted(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let cut = watched_echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let rule = |action: &str| format!("action = {action:?}\nports = [{ECHO}]\nexisting = \"adopt\"");
    let mut unknown = Client::connect(&lab, Place::Server.v4())?;
    // Without a peer these go past; the node remembers what their SYNs said.
    nodes.start_ruled(Place::Branch, &rule("intercept"))?;
    let mut known = Vec::new();
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        known.push((ip, Client::connect(&lab, ip)?));
    }
    ensure!(nodes.count(Place::Branch, "existing-observed")? == 0, "what is known was looked at");
    stop(&mut nodes, Place::Branch)?;
    // A rule of somebody else's has the kernel track connections: the next one from its SYN on, the first in its middle.
    let tracking =
        "table inet other { chain c { type filter hook forward priority 0; ct state invalid counter; }; }";
    let nft = lab.command(Place::Branch, "nft").arg(tracking).output()?;
    ensure!(nft.status.success(), "nft: {}", String::from_utf8_lossy(&nft.stderr));
    known.push((Place::Server.v4(), Client::connect(&lab, Place::Server.v4())?));
    unknown.echoes(b"picked up")?;

    nodes.start_ruled(Place::Branch, &rule("intercept-single"))?;
    let mut stalls = Vec::new();
    for (n, (ip, client)) in (1..).zip(&mut known) {
        let mut bulk = Bulk::begin(client, 16_000_000, 64 << 10, Duration::from_millis(2))?;
        let start = Instant::now();
        while nodes.count(Place::Branch, "existing-adopted")? < n {
            ensure!(start.elapsed() < STALL, "{ip}: not adopted: {}", nodes.status(Place::Branch)?);
            ensure!(!bulk.is_over(), "{ip}: it was over before it was adopted");
            thread::sleep(Duration::from_millis(50));
        }
        stalls.push(bulk.end()?);
        client.echoes(b"and on")?;
        ensure!(carried_now(&nodes)? == n, "{ip}: it is not terminated here");
        client.sees_the_truth(*ip)?;
    }
    case.note("longest-stall-ms", stalls.iter().copied().max().unwrap_or(0));

    let start = Instant::now();
    while nodes.count(Place::Branch, "adopt-unscaled")? == 0 {
        ensure!(start.elapsed() < STALL, "it is not refused: {}", nodes.status(Place::Branch)?);
        unknown.echoes(b"hello")?;
    }
    unknown.echoes(&noise(1_000_000))?;
    ensure!(carried_now(&nodes)? == 3, "it was adopted by guess");
    let (_, ends) = known.remove(0);
    ends.ends()?;
    while carried_now(&nodes)? != 2 {
        ensure!(start.elapsed() < STALL, "an orderly end is not noticed");
        thread::sleep(Duration::from_millis(20));
    }

    nodes.node(Place::Branch)?.kill()?;
    for (ip, client) in &mut known {
        told(client).with_context(|| ip.to_string())?;
        cut.recv_timeout(STALL).with_context(|| format!("{ip}: the server is not told"))?;
    }
    unknown.echoes(b"as if nobody had been there")?;
    unknown.ends()
}

fn carried_now(nodes: &Nodes<'_>) -> anyhow::Result<u64> {
    carried_by(nodes, Place::Branch)
}

pub(super) fn carried_by(nodes: &Nodes<'_>, place: Place) -> anyhow::Result<u64> {
    let status = nodes.status(place)?;
    status.get("carried").and_then(Value::as_u64).context("no number of carried connections")
}

/// Octets that go to the echo server and come back, with the longest time in which none came.
pub(super) struct Bulk {
    reading: Option<thread::JoinHandle<anyhow::Result<u64>>>,
    writing: Option<thread::JoinHandle<std::io::Result<()>>>,
}

impl Bulk {
    /// A piece after each pause.
    pub(super) fn begin(
        client: &Client,
        octets: usize,
        piece: usize,
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let (mut up, mut down) = (client.stream.try_clone()?, client.stream.try_clone()?);
        let data = noise(octets);
        let expected = Sha256::digest(&data);
        let writing = thread::spawn(move || {
            for piece in data.chunks(piece) {
                up.write_all(piece)?;
                thread::sleep(pause);
            }
            Ok(())
        });
        let reading = thread::spawn(move || {
            let (mut hash, mut left, mut piece) = (Sha256::new(), octets, vec![0; 64 << 10]);
            let (mut last, mut stall) = (Instant::now(), Duration::ZERO);
            while left > 0 {
                let most = left.min(piece.len());
                let got = down.read(piece.get_mut(..most).context("a piece")?)?;
                ensure!(got > 0, "{left} octets are missing");
                hash.update(piece.get(..got).context("a piece")?);
                left -= got;
                stall = stall.max(last.elapsed());
                last = Instant::now();
            }
            ensure!(hash.finalize() == expected, "other octets came back");
            Ok(u64::try_from(stall.as_millis())?)
        });
        Ok(Self { reading: Some(reading), writing: Some(writing) })
    }

    pub(super) fn is_over(&self) -> bool {
        self.reading.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }

    /// The longest stall, in milliseconds, when all has come back as it went.
    pub(super) fn end(&mut self) -> anyhow::Result<u64> {
        let (reading, writing) = (self.reading.take(), self.writing.take());
        if let Some(writing) = writing {
            writing.join().ok().context("the writer panicked")??;
        }
        reading.context("it has ended")?.join().ok().context("the reader panicked")?
    }
}

/// Twenty bulk transfers at once at 40 ms, adopted while they run: how long the longest pause of each is.
pub(crate) fn adopted_many(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    lab.wan()?.change(|link| (link.up.delay_ms, link.down.delay_ms) = (20.0, 20.0))?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let rule = |action: &str| format!("action = {action:?}\nports = [{ECHO}]\nexisting = \"adopt\"");
    nodes.start_ruled(Place::Branch, &rule("intercept"))?;
    let clients =
        (0..20).map(|_| Client::connect(&lab, Place::Server.v4())).collect::<anyhow::Result<Vec<_>>>()?;
    stop(&mut nodes, Place::Branch)?;
    let mut transfers = clients
        .iter()
        // Less than the line carries: else its queue would be what they wait for.
        .map(|client| Bulk::begin(client, 1_600_000, 16 << 10, Duration::from_millis(40)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    nodes.start_ruled(Place::Branch, &rule("intercept-single"))?;
    let mut stalls = transfers.iter_mut().map(Bulk::end).collect::<anyhow::Result<Vec<_>>>()?;
    stalls.sort_unstable();
    let adopted = nodes.count(Place::Branch, "existing-adopted")?;
    let at = |n: usize| stalls.get(n).copied().unwrap_or(0);
    case.note("adopted-of-20", adopted);
    case.note("stall-p50-ms", at(10));
    case.note("stall-max-ms", at(19));
    ensure!(adopted >= 18, "{adopted} of 20 were adopted: {}", nodes.status(Place::Branch)?);
    // On a quiet machine 60; nobody waits for a timer of TCP's.
    ensure!(
        at(10) <= 150 && at(19) <= 400,
        "the longest stalls: {} ms, {} ms the middle one",
        at(19),
        at(10)
    );
    for client in clients {
        client.ends()?;
    }
    Ok(())
}
