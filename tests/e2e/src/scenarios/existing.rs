//! What stood before a node did: what it knew, and connections.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Place;
use serde_json::Value;

use super::pair::{Client, Nodes, STALL, echo_server, noise};
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

fn stop(nodes: &mut Nodes<'_>, place: Place) -> anyhow::Result<()> {
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
