//! Nodes in a row: each one in the middle is a server's node towards the client and a client's node towards the server,
//! each knows only its neighbours, and only the two at the ends are seen by nobody.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::Ground;

use crate::case::Case;
use crate::path::capture::{Capture, Packet};
use crate::path::ends::{CLOSED, Client, both, connect, noise};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::until;

/// How much each link of the row carried while something was done; the links that skip a neighbour stay unmade.
fn each_link_carries(nodes: &Nodes<'_>, row: &[&str], octets: u64, before: &[u64]) -> anyhow::Result<()> {
    for (at, pair) in row.windows(2).enumerate() {
        let &[near, far] = pair else { continue };
        let sent = nodes.sent_to(near, far)?.with_context(|| format!("no link from {near} to {far}"))?;
        let sent = sent.saturating_sub(before.get(at).copied().unwrap_or(0));
        ensure!(sent >= octets, "{near} sent {sent} octets to {far}, of {octets}");
    }
    for (at, near) in row.iter().enumerate() {
        for far in row.iter().skip(at + 2) {
            ensure!(nodes.sent_to(near, far)?.is_none(), "{near} has a link to {far}");
        }
    }
    Ok(())
}

fn sent(nodes: &Nodes<'_>, row: &[&str]) -> anyhow::Result<Vec<u64>> {
    row.windows(2)
        .map(|pair| match pair {
            &[near, far] => Ok(nodes.sent_to(near, far)?.unwrap_or(0)),
            _ => Ok(0),
        })
        .collect()
}

/// One node in the middle, then a second one that comes up between the two: it is found without anybody being told.
pub(crate) fn two(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "m", "n", "b", "s"])?;
    let chain = Line::row(&ground, 4, "a")?;
    // The control: nobody is there, and the client's own SYN passes without a query.
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (2, 0), "somebody asks before there is a node");
    let mut nodes = Nodes::of(case, &ground, &["a", "m", "n", "b"])?;
    let routed = Standing::routed;
    nodes.start(&[("a", routed()), ("m", routed()), ("b", routed())])?;
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (2, 2), "the first node did not ask");
    each_link_carries(&nodes, &["a", "m", "b"], 200_000, &[])?;
    ensure!(nodes.count("m", "middle")? == 2, "m is not in the middle");
    // The next ones need no query on the first line; a closed port is told through all of them.
    let row = ["a", "m", "b"];
    nodes.at_rest(&row)?;
    let before = sent(&nodes, &row)?;
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (0, 0), "a connection that the link carries was asked for");
    each_link_carries(&nodes, &row, 200_000, &before)?;
    for server in both(4, 2, CLOSED) {
        let (refused, took) = connect(&ground, "c", server)?;
        let kind = refused.err().map(|error| error.kind());
        ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "{server}: a closed port: {kind:?}");
        ensure!(took < Duration::from_secs(1), "{server}: refused after {took:?}");
    }
    // A second one in the middle.
    nodes.at_rest(&row)?;
    nodes.start(&[("n", routed())])?;
    let before = sent(&nodes, &["a", "m"])?;
    chain.connections()?;
    chain.seen_at_the_ends()?;
    each_link_carries(&nodes, &["a", "m"], 200_000, &before)?;
    for (near, far) in [("m", "n"), ("n", "b")] {
        let sent = nodes.sent_to(near, far)?;
        ensure!(sent.is_some_and(|sent| sent >= 200_000), "{near} sent {sent:?} octets to {far}");
    }
    ensure!(nodes.count("n", "middle")? == 2, "n is not in the middle");
    nodes.at_rest(&["a", "m", "n", "b"])
}

/// Three in the middle; then the middlemost is killed.
pub(crate) fn three(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "m", "n", "o", "b", "s"])?;
    let chain = Line::row(&ground, 5, "a")?;
    let row = ["a", "m", "n", "o", "b"];
    let mut nodes = Nodes::of(case, &ground, &row)?;
    let standings = row.map(|place| (place, Standing::routed()));
    nodes.start(&standings)?;
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (2, 2), "the first node did not ask");
    each_link_carries(&nodes, &row, 200_000, &[])?;
    nodes.at_rest(&row)?;
    // The middlemost dies under a live connection.
    let [server, _] = chain.servers;
    let mut live = Client::connect(&ground, "c", server)?;
    live.echoes(&noise(100_000))?;
    ensure!(nodes.count("n", "claimed")? == 3, "the live connection is not carried by n");
    nodes.node("n")?.kill()?;
    let next = Client::connect(&ground, "c", server)?;
    ensure!(next.connected < Duration::from_secs(3), "a new connection took {:?}", next.connected);
    case.note("connect-after-kill-ms", u64::try_from(next.connected.as_millis())?);
    next.sees_the_truth()?;
    next.ends()?;
    let told = live.told_dead()?;
    case.note("told-ms", u64::try_from(told.as_millis())?);
    ensure!(told < Duration::from_secs(4), "a dead connection was told after {told:?}");
    // And soon the others find each other past it.
    until("m and o carry without n", || {
        Client::whole(&ground, "c", server)?;
        Ok(nodes.sent_to("m", "o")?.is_some_and(|sent| sent >= 100_000))
    })?;
    drop(chain);
    // The control: without its rule the first node asks for nothing; the second is the first then.
    nodes.node("a")?.kill()?;
    nodes.start(&[("a", Standing::routed().passing())])?;
    let on_wan = Capture::begin(&ground, "a", "right")?;
    let before = nodes.sent_to("m", "o")?;
    Client::whole(&ground, "c", server)?;
    let syns: Vec<Packet> = on_wan.take().into_iter().filter(Packet::is_syn).collect();
    ensure!(syns.len() == 1 && syns.iter().all(|syn| !syn.probe), "without the rule: {syns:?}");
    let after = nodes.sent_to("m", "o")?;
    ensure!(nodes.count("a", "carried")? == 0, "the first node carries without its rule");
    ensure!(
        after.unwrap_or(0) >= before.unwrap_or(0) + 100_000,
        "the second does not: {before:?}, {after:?}"
    );
    Ok(())
}

/// The server's node has started anew: it knows nothing of what it was shown, the client's node still knows it, and the
/// next connection is the pair's again at once.
pub(crate) fn restarted(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let chain = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])?;
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (2, 2), "the first connection is not asked for");
    nodes.at_rest(&["a", "b"])?;
    nodes.node("b")?.kill()?;
    nodes.start(&[("b", Standing::routed())])?;
    nodes.wait_link("a", "b")?;
    // What was carried before belongs to the former process.
    until("the link to the new process stands", || Ok(nodes.sent_to("b", "a")?.is_some()))?;
    std::thread::sleep(Duration::from_millis(300));
    let before = nodes.count("a", "carried")?;
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (2, 2), "the new process is not shown what it may carry");
    ensure!(nodes.count("a", "table-hit")? == 2, "the table did not know the peer, so nothing is shown");
    ensure!(nodes.count("a", "shown-again")? == 2, "not shown again");
    ensure!(nodes.count("a", "carried")? == before + 2, "not carried");
    for server in chain.servers {
        let known = nodes.known("a", server)?;
        ensure!(known.as_deref() == Some("peer"), "{server} is {known:?}");
    }
    // What it has been shown it needs not be shown once more.
    nodes.at_rest(&["a", "b"])?;
    chain.connections()?;
    ensure!(chain.seen_at_the_ends()? == (0, 0), "shown twice");
    ensure!(nodes.count("b", "not-granted")? == 2, "not the refusal that this is about");
    Ok(())
}
