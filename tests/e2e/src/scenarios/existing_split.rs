//! Connections that stood before two nodes, which adopt them together: the branch's the client's end, the centre's the
//! server's.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Lab, Place};

use super::existing::{Bulk, carried_by, stop, watched_echo_server};
use super::pair::{Capture, Client, ECHO, Nodes, STALL, echo_server, noise, wan_device};
use crate::case::Case;

fn rule(existing: &str) -> String {
    format!("action = \"intercept\"\nports = [{ECHO}]\nexisting = {existing:?}")
}

/// 40 ms there and back.
fn slow(case: &Case) -> anyhow::Result<Lab> {
    let lab = case.lab()?;
    lab.wan()?.change(|link| (link.up.delay_ms, link.down.delay_ms) = (20.0, 20.0))?;
    Ok(lab)
}

/// What runs both ways at once meanwhile arrives whole, and nobody waits for long; from then on the link carries it, and
/// each end still sees the other's own address. Without the rule it stays beside the pair.
pub(crate) fn adopted(case: &Case) -> anyhow::Result<()> {
    let lab = slow(case)?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    // It sees what their SYNs say, and the branch's node does not.
    nodes.start_ruled(Place::Centre, &rule("adopt"))?;
    let mut clients = Vec::new();
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        clients.push((ip, Client::connect(&lab, ip)?));
    }
    nodes.start_ruled(Place::Branch, &rule("leave"))?;
    for (ip, client) in &mut clients {
        let direct = watched(&lab, client)?;
        ensure!(direct.iter().all(|packets| *packets > 0), "{ip}: without the rule: {direct:?}");
    }
    stop(&mut nodes, Place::Branch)?;

    nodes.start_ruled(Place::Branch, &rule("adopt"))?;
    let transfers = clients.iter().map(|(_, client)| {
        // Less than the line carries: else its queue would be what they wait for.
        Bulk::begin(client, 3_200_000, 16 << 10, Duration::from_millis(20))
    });
    let mut transfers = transfers.collect::<anyhow::Result<Vec<_>>>()?;
    adopt_all(&nodes, &mut transfers)?;
    let stalls = transfers.iter_mut().map(Bulk::end).collect::<anyhow::Result<Vec<_>>>()?;
    let longest = stalls.iter().copied().max().unwrap_or(0);
    case.note("longest-stall-ms", longest);
    // The design asks for a round trip, which the note shows; a busy machine takes several times as long. Whoever gave up
    // between would have waited longer than this.
    ensure!(longest < 1000, "the longest stall: {longest} ms");
    for (ip, client) in &mut clients {
        let [at_client, on_wan, at_server] = watched(&lab, client)?;
        ensure!(at_client > 0 && at_server > 0, "{ip}: {at_client} at the client, {at_server} at the server");
        ensure!(on_wan == 0, "{ip}: {on_wan} packets beside the link");
        client.sees_the_truth(*ip)?;
    }
    for (ip, client) in clients {
        client.ends().with_context(|| ip.to_string())?;
    }
    nodes.at_rest(&[Place::Branch, Place::Centre])
}

/// Waits until both nodes have adopted all of them.
fn adopt_all(nodes: &Nodes<'_>, transfers: &mut [Bulk]) -> anyhow::Result<()> {
    let (start, all) = (Instant::now(), u64::try_from(transfers.len())?);
    for place in [Place::Branch, Place::Centre] {
        while nodes.count(place, "existing-adopted")? < all || carried_by(nodes, place)? < all {
            ensure!(start.elapsed() < STALL, "{} adopts not: {}", place.name(), nodes.status(place)?);
            ensure!(!transfers.iter().all(Bulk::is_over), "over before they were adopted");
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// An exchange, and how many of its packets go by at the client, on the WAN and at the server; all of them between the
/// two ends' own addresses.
fn watched(lab: &Lab, client: &mut Client) -> anyhow::Result<[usize; 3]> {
    let ends = [client.stream.local_addr()?, client.stream.peer_addr()?];
    let wan = wan_device(lab, Place::Centre)?;
    let filter = format!("tcp port {ECHO} and tcp port {}", ends[0].port());
    let places = [(Place::Client, "eth0"), (Place::Centre, wan.as_str()), (Place::Server, "eth0")];
    let captures = places.map(|(place, device)| Capture::of(lab.command(place, "tcpdump"), device, &filter));
    client.echoes(&noise(50_000))?;
    let mut packets = [0; 3];
    for (n, capture) in packets.iter_mut().zip(captures) {
        let lines = capture?.lines()?;
        for line in lines.iter().filter(|line| line.contains(" > ")) {
            ensure!(ends.iter().all(|end| line.contains(&spoken(*end))), "between others: {line}");
            *n += 1;
        }
    }
    Ok(packets)
}

/// As tcpdump writes it.
fn spoken(address: SocketAddr) -> String {
    format!("{}.{}", address.ip(), address.port())
}

/// A peer without the rule answers as one that knows nothing of it; where nobody saw the SYNs, nobody guesses. Either way
/// the connection lives on, its transfer whole, and the reason is counted. With the rule it is adopted.
pub(crate) fn refused(case: &Case) -> anyhow::Result<()> {
    let lab = slow(case)?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let ip = Place::Server.v4();
    let mut unknown = Client::connect(&lab, ip)?;
    // It sees what the SYN says, and keeps it.
    nodes.start_ruled(Place::Centre, &rule("adopt"))?;
    let mut client = Client::connect(&lab, ip)?;
    stop(&mut nodes, Place::Centre)?;
    for (existing, speaks, reason, note) in [
        ("leave", &mut client, "adopt-unpaired", "unpaired-stall-ms"),
        ("adopt", &mut unknown, "adopt-unscaled", "unscaled-stall-ms"),
    ] {
        nodes.start_ruled(Place::Centre, &rule(existing))?;
        nodes.start_ruled(Place::Branch, &rule("adopt"))?;
        let mut bulk = Bulk::begin(speaks, 800_000, 16 << 10, Duration::from_millis(20))?;
        let start = Instant::now();
        while nodes.count(Place::Branch, reason)? == 0 {
            ensure!(start.elapsed() < STALL, "no {reason}: {}", nodes.status(Place::Branch)?);
            if bulk.is_over() {
                speaks.echoes(b"and on")?;
            }
            thread::sleep(Duration::from_millis(20));
        }
        case.note(note, bulk.end()?);
        speaks.echoes(&noise(100_000))?;
        for place in [Place::Branch, Place::Centre] {
            ensure!(nodes.count(place, "existing-adopted")? == 0, "{reason}: adopted by {}", place.name());
            ensure!(carried_by(&nodes, place)? == 0, "{reason}: carried by {}", place.name());
        }
        let [_, on_wan, _] = watched(&lab, speaks)?;
        ensure!(on_wan > 0, "{reason}: it does not go past");
        if existing == "leave" {
            stop(&mut nodes, Place::Branch)?;
            stop(&mut nodes, Place::Centre)?;
        }
    }
    // The control: the same connection, now that the peer has the rule.
    let mut bulk = [Bulk::begin(&client, 3_200_000, 16 << 10, Duration::from_millis(20))?];
    adopt_all(&nodes, &mut bulk)?;
    let [bulk] = &mut bulk;
    bulk.end()?;
    client.sees_the_truth(ip)?;
    client.ends()?;
    unknown.ends()
}

/// One dies while both observe a new connection; half a second is left then.
fn killed_while_observed(lab: &Lab, nodes: &mut Nodes<'_>, dies: Place) -> anyhow::Result<(Client, Bulk)> {
    // It sees what the SYN says, and keeps it.
    nodes.start_ruled(Place::Centre, &rule("adopt"))?;
    let client = Client::connect(lab, Place::Server.v4())?;
    stop(nodes, Place::Centre)?;
    nodes.start_ruled(Place::Centre, &rule("adopt"))?;
    nodes.start_ruled(Place::Branch, &rule("adopt"))?;
    let bulk = Bulk::begin(&client, 800_000, 16 << 10, Duration::from_millis(20))?;
    let start = Instant::now();
    while !nodes.node(Place::Centre)?.watch.text().contains("observed, to adopt it for a peer") {
        ensure!(start.elapsed() < STALL, "not observed: {}", nodes.status(Place::Centre)?);
        thread::sleep(Duration::from_millis(10));
    }
    nodes.node(dies)?.kill()?;
    Ok((client, bulk))
}

/// A node that dies before the cut leaves the connection alive, whole; one that dies after it resets it at both ends.
pub(crate) fn killed(case: &Case) -> anyhow::Result<()> {
    let lab = slow(case)?;
    let cut = watched_echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let ip = Place::Server.v4();
    for (dies, stays, before, after) in [
        (Place::Branch, Place::Centre, "branch-before-stall-ms", "branch-told-ms"),
        (Place::Centre, Place::Branch, "centre-before-stall-ms", "centre-told-ms"),
    ] {
        let mut tries = 0;
        let (mut client, mut bulk) = loop {
            let (client, bulk) = killed_while_observed(&lab, &mut nodes, dies)?;
            if nodes.count(stays, "existing-adopted")? == 0 {
                break (client, bulk);
            }
            // The machine was too slow to kill it in time: another connection.
            tries += 1;
            ensure!(tries < 3, "{}: cut before it died, {tries} times", dies.name());
            drop(bulk);
            // Its server may have been told already.
            drop(client);
            stop(&mut nodes, stays)?;
            while cut.recv_timeout(Duration::from_millis(200)).is_ok() {}
        };
        case.note(before, bulk.end()?);
        client.echoes(&noise(100_000))?;
        ensure!(carried_by(&nodes, stays)? == 0, "{}: carried without it", dies.name());

        // Both anew: it is adopted, and then one dies.
        stop(&mut nodes, stays)?;
        nodes.start_ruled(Place::Centre, &rule("adopt"))?;
        nodes.start_ruled(Place::Branch, &rule("adopt"))?;
        let mut bulk = [Bulk::begin(&client, 8_000_000, 16 << 10, Duration::from_millis(20))?];
        adopt_all(&nodes, &mut bulk)?;
        let start = Instant::now();
        nodes.node(dies)?.kill()?;
        let [bulk] = &mut bulk;
        let error = bulk.end().err().with_context(|| format!("{}: it lives on", dies.name()))?;
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        ensure!(
            matches!(kind, Some(ConnectionReset | BrokenPipe)),
            "{}: the client is told {error:?}",
            dies.name()
        );
        case.note(after, u64::try_from(start.elapsed().as_millis())?);
        if dies == Place::Branch {
            // What the centre's node carries for it is kept for as long as its line may be away; it comes back as another.
            nodes.start_ruled(Place::Branch, &rule("adopt"))?;
            Client::connect(&lab, ip)?.ends()?;
        }
        let at_server = cut.recv_timeout(STALL).context("the server is not told")?;
        ensure!(at_server == ConnectionReset, "{}: the server is told {at_server:?}", dies.name());
        stop(&mut nodes, Place::Branch)?;
        if dies == Place::Branch {
            stop(&mut nodes, Place::Centre)?;
        }
    }
    Ok(())
}
