//! Nobody on anybody's path: a client speaks to an address of the branch's node, the node to its peer, and the peer to
//! the server.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Lab, Place};

use super::deflector::run_node;
use super::pair::{Capture, Client, ECHO, Nodes, STALL, echo_server, noise, wan_device};
use crate::case::Case;
use crate::path::ends::told_dead;
use crate::waypost::{Waypost, tail};

/// Each end sees the node that it speaks to, and the WAN the link alone; a server that nobody granted is reached by nobody,
/// and one that does not answer is no end of the node.
pub(crate) fn non_transparent(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let branch = start_branch(case, &lab, &nodes)?;
    // Off the path, and on it: what was asked for by address is not taken for a connection on the path.
    let off_path = start_centre(case, &lab, &nodes, "may_open = [\"10.81.2.0/24\", \"fd00:81:0:2::/64\"]")?;
    both(&lab)?;
    drop(off_path);
    let servers = "[\"10.81.2.0/24\", \"fd00:81:0:2::/64\"]";
    let on_path = |grant: &str| {
        format!(
            "[[rule]]\naction = \"intercept\"\nports = [{ECHO}]\n[[peer]]\nid = \"br\"\n{grant} = {servers}\n"
        )
    };
    nodes.start_with(Place::Centre, "", &on_path("may_dial"))?;
    both(&lab)?;
    let stop = |nodes: &mut Nodes<'_>| {
        nodes.node(Place::Centre)?.signal(libc::SIGTERM)?;
        nodes.node(Place::Centre)?.wait(STALL)
    };
    stop(&mut nodes)?;
    // What clients' addresses may be used for is not what this node's own may be.
    nodes.start_with(Place::Centre, "", &on_path("may_open"))?;
    refused(&lab, &branch)?;
    stop(&mut nodes)?;
    let _without = start_centre(case, &lab, &nodes, "")?;
    refused(&lab, &branch)
}

/// The branch's node is replaced while it carries: what stands goes on, and its successor has the addresses. Killed, it takes
/// what it carries with it, and is back.
pub(crate) fn replaced(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    let _centre = start_centre(case, &lab, &nodes, "may_open = [\"10.81.2.0/24\"]")?;
    let rule = format!("[[rule]]\naction = \"intercept\"\nports = [{ECHO}]\n");
    nodes.start_with(
        Place::Branch,
        "",
        &format!("{rule}{}", carries(&[(Place::Branch.v4(), Place::Server.v4())])),
    )?;
    nodes.node(Place::Branch)?.watch.announce("not carried");
    let mut live = vec![until_connected(&lab, Place::Branch.v4())?];
    for nth in 0..3 {
        let before = nodes.node(Place::Branch)?.node();
        nodes.upgrade(Place::Branch)?;
        live.push(until_connected(&lab, Place::Branch.v4())?);
        ensure!(nodes.node(Place::Branch)?.node() != before, "the {nth}th time: it was not replaced");
        for client in &mut live {
            client.echoes(&noise(100_000)).with_context(|| format!("after the {nth}th time"))?;
        }
    }
    nodes.node(Place::Branch)?.watch.announce("the node has ended");
    let newest = nodes.node(Place::Branch)?.node().context("no node")?;
    let mut last = live.pop().context("a client")?;
    let start = Instant::now();
    lab::sys::kill(newest, libc::SIGKILL)?;
    let told = told_dead(&mut last.stream, start)?;
    ensure!(told < Duration::from_secs(1), "a dead connection was told after {told:?}");
    until_connected(&lab, Place::Branch.v4())?.echoes(&noise(100_000))?;
    // Those of its predecessors never noticed.
    live.into_iter().try_for_each(Client::ends)
}

/// In both families, and because the peer says so.
fn refused(lab: &Lab, branch: &Waypost) -> anyhow::Result<()> {
    for (near, server) in [(Place::Branch.v4(), Place::Server.v4()), (Place::Branch.v6(), Place::Server.v6())]
    {
        let told = |text: &str| {
            let server = SocketAddr::new(server, ECHO).to_string();
            let says = |line: &&str| line.contains(&server) && line.contains("\"not-granted\"");
            text.lines().filter(says).count()
        };
        let before = told(&branch.watch.text());
        let start = Instant::now();
        // The link comes back first.
        while told(&branch.watch.text()) == before {
            ensure!(Client::connect(lab, near).is_err(), "{near}: a server was reached that nobody granted");
            ensure!(start.elapsed() < STALL, "{near}: nobody says why:\n{}", tail(&branch.watch.text()));
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn both(lab: &Lab) -> anyhow::Result<()> {
    let wan = wan_device(lab, Place::Centre)?;
    for (near, far) in [(Place::Branch.v4(), Place::Centre), (Place::Branch.v6(), Place::Centre)] {
        let capture = |place, device: &str| {
            Capture::of(lab.command(place, "tcpdump"), device, &format!("tcp port {ECHO}"))
        };
        let (at_client, on_wan, at_server) =
            (capture(Place::Client, "eth0")?, capture(Place::Centre, &wan)?, capture(Place::Server, "eth0")?);
        let mut client = until_connected(lab, near)?;
        let seen: SocketAddr = client.seen_as().parse()?;
        let dialled = if near.is_ipv4() { far.v4() } else { far.v6() };
        ensure!(
            seen.ip() == dialled || lab_address(lab, far, seen.ip())?,
            "the server sees {seen}, and not the peer"
        );
        ensure!(client.peer()? == (near, ECHO).into(), "the client sees another node");
        client.echoes(&noise(500_000))?;
        client.ends()?;
        let (at_client, on_wan, at_server) = (at_client.lines()?, on_wan.lines()?, at_server.lines()?);
        let names = |lines: &[String], ip: IpAddr| lines.iter().any(|line| line.contains(&format!("{ip}.")));
        let (own, server) = if near.is_ipv4() {
            (Place::Client.v4(), Place::Server.v4())
        } else {
            (Place::Client.v6(), Place::Server.v6())
        };
        ensure!(
            names(&at_client, near) && !names(&at_client, server),
            "{near}: at the client: {at_client:?}"
        );
        ensure!(
            names(&at_server, seen.ip()) && !names(&at_server, own),
            "{near}: at the server: {at_server:?}"
        );
        ensure!(on_wan.iter().all(|line| line.is_empty()), "{near}: on the WAN beside the link: {on_wan:?}");
    }
    Ok(())
}

/// Whether a place has this address at any of its devices.
fn lab_address(lab: &Lab, place: Place, ip: IpAddr) -> anyhow::Result<bool> {
    let output = lab.command(place, "ip").args(["-o", "addr"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).contains(&format!(" {ip}/")))
}

/// The first ones may come before the link stands.
fn until_connected(lab: &Lab, near: IpAddr) -> anyhow::Result<Client> {
    let start = Instant::now();
    loop {
        match Client::connect(lab, near) {
            Err(error) if start.elapsed() > STALL => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
            Ok(client) => return Ok(client),
        }
    }
}

fn start_branch(case: &Case, lab: &Lab, nodes: &Nodes<'_>) -> anyhow::Result<Waypost> {
    let text = carries(&[(Place::Branch.v4(), Place::Server.v4()), (Place::Branch.v6(), Place::Server.v6())]);
    let branch = start(case, lab, nodes, Place::Branch, &text)?;
    // Until the peer is there.
    branch.watch.announce("not carried");
    Ok(branch)
}

/// The branch's peer, and where clients reach which server through it.
fn carries(ends: &[(IpAddr, IpAddr)]) -> String {
    let mut text = format!("[[peer]]\nid = \"dc\"\naddress = \"{}:7782\"\n", Place::Centre.v4());
    for (listen, server) in ends {
        let (listen, server) = (SocketAddr::new(*listen, ECHO), SocketAddr::new(*server, ECHO));
        text += &format!("[[carry]]\nlisten = \"{listen}\"\nserver = \"{server}\"\npeer = \"dc\"\n");
    }
    text
}

fn start_centre(case: &Case, lab: &Lab, nodes: &Nodes<'_>, grants: &str) -> anyhow::Result<Waypost> {
    start(case, lab, nodes, Place::Centre, &format!("[[peer]]\nid = \"br\"\n{grants}\n"))
}

fn start(case: &Case, lab: &Lab, nodes: &Nodes<'_>, place: Place, rest: &str) -> anyhow::Result<Waypost> {
    let directory = nodes.directory(place);
    let config = format!(
        "version = 1\n[node]\nid = {:?}\nstate_dir = {directory:?}\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [link]\nlisten = \"[::]:7782\"\n{rest}",
        place.name()
    );
    run_node(case, lab.command(place, &nodes.executable), &directory, &config)
}
