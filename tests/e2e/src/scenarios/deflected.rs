//! What the kernel knows of deflected connections: told again when it has forgotten them, and never let past unturned.

use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Lab, Place};

use super::deflector::{figure, servers, stand};
use super::pair::{Capture, Client, ECHO, STALL, noise};
use crate::case::Case;

/// Somebody clears the kernel's sets under a live connection: it is told again of it. While the node stands still it is not.
pub(crate) fn forgotten(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let servers = servers(&lab, false)?;
    let (mut nodes, _yard) = stand(case, &lab, "static", false)?;
    let mut live = Client::connect(&lab, servers[0])?;
    live.echoes(&noise(100_000))?;
    let port = live.stream.local_addr()?.port();
    let (table, known) = (table(&lab)?, format!("10.81.1.10 . {port} . "));
    let knows = || -> anyhow::Result<bool> {
        Ok(nft(&lab, &["list", "set", "inet", &table, "deflected4"])?.contains(&known))
    };
    ensure!(knows()?, "control: the kernel does not know of a deflected connection");
    // The control: with nobody to tell it again it stays forgotten. Shorter than the supervisor's patience, or nearly so.
    nodes.node(Place::Centre)?.watch.announce("stands still");
    let node = nodes.node(Place::Centre)?.netd().context("no netd")?;
    lab::sys::kill(node, libc::SIGSTOP)?;
    nft(&lab, &["flush", "set", "inet", &table, "deflected4"])?;
    thread::sleep(Duration::from_millis(400));
    let known = knows();
    lab::sys::kill(node, libc::SIGCONT)?;
    ensure!(!known?, "control: who has told it?");
    let start = Instant::now();
    while !knows()? {
        ensure!(start.elapsed() < STALL, "the kernel is not told again");
        thread::sleep(Duration::from_millis(20));
    }
    case.note("told-again-ms", u64::try_from(start.elapsed().as_millis())?);
    let at_server = at_server(&lab)?;
    live.echoes(&noise(100_000))?;
    live.sees_the_truth(servers[0])?;
    live.ends()?;
    let seen = at_server.lines()?;
    ensure!(seen.len() > 4, "the server's wire shows none of it: {seen:?}");
    ensure!(figure(&nodes, "deflected")? == 1 && figure(&nodes, "past")? == 0, "not deflected, or once more");
    Ok(())
}

/// The deflector dies, its rules stay: what it has turned reaches nobody unturned, and new connections go to the servers.
pub(crate) fn unturned(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let servers = servers(&lab, false)?;
    let (mut nodes, _yard) = stand(case, &lab, "static", false)?;
    let mut live = Client::connect(&lab, servers[0])?;
    live.echoes(&noise(100_000))?;
    ensure!(figure(&nodes, "deflected")? == 1, "control: it is not deflected");
    let table = table(&lab)?;
    nodes.node(Place::Centre)?.kill()?;
    let port = live.stream.local_addr()?.port().to_string();
    let live_end = format!("10.81.1.10.{port}");
    let of_live = |line: &&String| line.contains(&live_end);
    let (at_client, wire) = (at(&lab, Place::Client)?, at_server(&lab)?);
    live.stream.write_all(b"into the void")?;
    let direct = served(&lab, servers[0])?;
    let (said, seen) = (at_client.lines()?, wire.lines()?);
    ensure!(said.iter().filter(of_live).count() > 0, "the client has said nothing, so nothing is shown");
    ensure!(seen.iter().filter(of_live).count() == 0, "half a connection at the server: {seen:?}");
    ensure!(seen.iter().any(|line| line.contains(&direct)), "the server does not see the new one: {seen:?}");
    // The control: without that rule the server gets it, and resets what it never knew.
    nft(&lab, &["flush", "chain", "inet", &table, "unturned"])?;
    let wire = at_server(&lab)?;
    live.stream.write_all(b"and out of it")?;
    // What is under way is sent again, later each time.
    ensure!(wire.sees(&live_end, STALL), "control: nothing arrives without the rule either");
    Ok(())
}

/// One that goes to its server by itself; who it is there.
fn served(lab: &Lab, server: std::net::IpAddr) -> anyhow::Result<String> {
    let mut client = Client::connect(lab, server)?;
    client.sees_the_truth(server)?;
    client.echoes(b"past it")?;
    let own = client.stream.local_addr()?;
    client.ends()?;
    Ok(format!("{}.{}", own.ip(), own.port()))
}

fn at(lab: &Lab, place: Place) -> anyhow::Result<Capture> {
    Capture::of(lab.command(place, "tcpdump"), "eth0", &format!("tcp port {ECHO}"))
}

fn at_server(lab: &Lab) -> anyhow::Result<Capture> {
    at(lab, Place::Server)
}

/// The deflector's table in the kernel.
fn table(lab: &Lab) -> anyhow::Result<String> {
    let tables = nft(lab, &["list", "tables", "inet"])?;
    let name = tables.lines().find_map(|line| line.strip_prefix("table inet ")).map(str::to_owned);
    name.filter(|name| name.starts_with("waypost")).context("the deflector has no table")
}

fn nft(lab: &Lab, arguments: &[&str]) -> anyhow::Result<String> {
    let output = lab.command(Place::Centre, "nft").args(arguments).output()?;
    ensure!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
