//! Who is there and who is not: nodes alone, sites that connect crosswise, peers that come, move and go, crowds.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Ground;
use lab::ground::Plan;
use serde_json::Value;

use crate::case::Case;
use crate::path::capture::{Capture, Packet};
use crate::path::ends::{Client, ECHO, both, connect, serve};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::{STALL, until};

/// One node without the other, and rules without their process: nobody is in the way. Then both.
pub(crate) fn alone(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    let quick = |line: &Line<'_>, what: &str| -> anyhow::Result<(usize, usize)> {
        line.forget();
        for server in line.servers {
            let took = Client::whole(&ground, "c", server)?;
            ensure!(took < Duration::from_millis(900), "{what}: {server} took {took:?}: a SYN was lost");
        }
        line.seen_at_the_ends()
    };
    // The server's node alone: nobody asks it.
    nodes.start(&[("b", Standing::routed())])?;
    ensure!(quick(&line, "server's node alone")? == (2, 0), "somebody asks");
    ensure!(nodes.count("b", "early-connect")? == 0, "b took what nobody asked for");
    // It is killed; its rules stay.
    nodes.node("b")?.kill()?;
    let rules = ground.command("b", "nft").args(["list", "tables"]).output()?;
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    ensure!(rules.contains("waypost"), "no rules were left, so nothing is shown: {rules}");
    // The client's node alone, in front of rules without a process: it asks, and the server answers.
    nodes.start(&[("a", Standing::routed())])?;
    ensure!(quick(&line, "client's node alone")? == (2, 2), "it does not ask");
    ensure!(nodes.count("a", "server-answered")? == 2, "it was not the server that answered");
    ensure!(quick(&line, "client's node, which knows")? == (2, 0), "it asks again");
    ensure!(nodes.count("a", "carried")? == 0, "carried by nobody");
    // Rules without a process at both.
    nodes.node("a")?.kill()?;
    ensure!(quick(&line, "rules alone")? == (2, 0), "who asks?");
    // The control: both are there.
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])?;
    ensure!(quick(&line, "both")? == (2, 2) && nodes.count("a", "carried")? == 2, "not carried");
    Ok(())
}

/// A peer appears, moves, and disappears; the office asks the path.
pub(crate) fn moves(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "f", "b", "s"])?;
    let line = Line::row(&ground, 3, "a")?;
    let [server, _] = line.servers;
    let later = SocketAddr::new(server.ip(), 8003);
    serve(&ground, "s", &[later])?;
    let mut nodes = Nodes::of(case, &ground, &["a", "f", "b"])?;
    nodes.start(&[("a", Standing::routed())])?;
    Client::whole(&ground, "c", server)?;
    ensure!(nodes.known("a", server)?.as_deref() == Some("no-proxy"), "somebody is there");
    // Appears: for what is not known to be without one.
    nodes.start(&[("b", Standing::routed())])?;
    Client::whole(&ground, "c", later)?;
    ensure!(nodes.count("a", "carried")? == 1, "it is not found");
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 100_000), "not by b");
    // Moves: another one on the way, and the first is gone.
    nodes.at_rest(&["a", "b"])?;
    nodes.end("b")?;
    nodes.start(&[("f", Standing::routed())])?;
    until("a knows that b is gone", || Ok(nodes.sent_to("a", "b")?.is_none()))?;
    line.forget();
    let took = Client::whole(&ground, "c", later)?;
    ensure!(took < Duration::from_millis(2900), "the connection after the move took {took:?}");
    ensure!(nodes.count("a", "carried")? == 2, "the new one is not found");
    ensure!(nodes.sent_to("a", "f")?.is_some_and(|sent| sent >= 100_000), "not by f");
    // Disappears, by being killed.
    nodes.at_rest(&["a", "f"])?;
    nodes.node("f")?.kill()?;
    for round in 0..2 {
        let took = Client::whole(&ground, "c", later)?;
        ensure!(took < Duration::from_millis(2900), "round {round} without a peer took {took:?}");
    }
    ensure!(nodes.count("a", "carried")? == 2, "carried by the dead");
    Ok(())
}

/// Four sites around a hub, each with clients and servers; one has no node. Every site connects to every other at once.
pub(crate) fn four(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::build(case.prefix(), &["w", "n1", "n2", "n3", "n4", "h1", "h2", "h3", "h4"])?;
    let mut plan = Plan::default();
    let sites = 1..=4_u8;
    for site in sites.clone() {
        let (node, host, port) = (format!("n{site}"), format!("h{site}"), format!("to{site}"));
        ground.cable(&mut plan, (&host, "right"), (&node, "left"));
        ground.cable(&mut plan, (&node, "right"), ("w", &port));
        plan.address(&host, "right", site, 1);
        plan.address(&node, "left", site, 2);
        plan.address(&node, "right", 10 + site, 1);
        plan.address("w", &port, 10 + site, 2);
        plan.default_route(&host, (site, 2));
        plan.default_route(&node, (10 + site, 2));
        plan.route("w", site, (10 + site, 1));
    }
    ground.carry_out(&plan)?;
    let mut ways = Vec::new();
    for site in sites.clone() {
        serve(&ground, &format!("h{site}"), &both(site, 1, ECHO))?;
        for other in sites.clone().filter(|other| *other != site) {
            ways.push((site, other));
        }
    }
    for (from, to) in &ways {
        ground.warm_up(&format!("h{from}"), &both(*to, 1, 9).map(|address| address.ip()))?;
    }
    let mut nodes = Nodes::of(case, &ground, &["n1", "n2", "n3", "n4"])?;
    let three = ["n1", "n2", "n3"];
    nodes.start(&three.map(|node| (node, Standing::routed())))?;
    let all = || -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let running: Vec<_> = ways
                .iter()
                .map(|(from, to)| {
                    let ground = &ground;
                    scope.spawn(move || {
                        for server in both(*to, 1, ECHO) {
                            Client::whole(ground, &format!("h{from}"), server)
                                .with_context(|| format!("from site {from} to {to}"))?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            for one in running {
                one.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            }
            Ok(())
        })
    };
    for round in 1..=2 {
        all()?;
        for node in three {
            // To the two other sites with a node, over both families; what goes to the fourth goes direct.
            let carried = nodes.count(node, "carried")?;
            ensure!(carried == 4 * round, "{node} has had {carried} carried, of {}", 4 * round);
            let claimed = nodes.count(node, "claimed")?;
            // One that had to wait for its server is counted twice.
            ensure!(claimed >= 4 * round, "{node} has carried {claimed} for others, of {}", 4 * round);
            for other in three.iter().filter(|other| **other != node) {
                ensure!(nodes.sent_to(node, other)?.is_some(), "no link from {node} to {other}");
            }
        }
        nodes.at_rest(&three)?;
    }
    // The control: with a node the fourth site is carried, too.
    nodes.start(&[("n4", Standing::routed())])?;
    for server in both(1, 1, ECHO) {
        Client::whole(&ground, "h4", server)?;
    }
    ensure!(nodes.count("n4", "carried")? == 2, "the fourth site's are not carried");
    Ok(())
}

/// A thousand connections as quickly as a machine can begin them: none fails, and what the nodes hold is bounded.
pub(crate) fn burst(case: &Case) -> anyhow::Result<()> {
    const THREADS: usize = 100;
    const EACH: usize = 10;
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let servers = both(2, 2, ECHO);
    serve(&ground, "s", &servers)?;
    ground.warm_up("c", &servers.map(|server| server.ip()))?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])?;
    let mut captures = Capture::several(&ground, &[("c", "right"), ("s", "left")])?;
    let (at_server, at_client) = (captures.pop().context("a capture")?, captures.pop().context("a capture")?);
    let namespace = ground.namespace("c");
    let (failed, slow) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Instant::now();
    let open: Vec<Client> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (namespace, failed, slow) = (&namespace, &failed, &slow);
                scope.spawn(move || {
                    let mut open = Vec::new();
                    if lab::sys::enter_netns(namespace).is_err() {
                        failed.fetch_add(EACH, Ordering::Relaxed);
                        return open;
                    }
                    for nth in 0..EACH {
                        let [v4, v6] = servers;
                        let server = if (thread + nth) % 2 == 0 { v4 } else { v6 };
                        let begun = Instant::now();
                        let client = TcpStream::connect_timeout(&server, STALL)
                            .map_err(anyhow::Error::from)
                            .and_then(|stream| Client::greeted(stream, begun.elapsed(), server))
                            .and_then(|client| client.sees_the_truth().map(|()| client));
                        match client {
                            Ok(client) => {
                                if client.connected > Duration::from_millis(900) {
                                    slow.fetch_add(1, Ordering::Relaxed);
                                }
                                open.push(client);
                            }
                            Err(_) => {
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    open
                })
            })
            .collect();
        running.into_iter().flat_map(|running| running.join().unwrap_or_default()).collect()
    });
    let (failed, slow) = (failed.into_inner(), slow.into_inner());
    case.note("open-ms", u64::try_from(start.elapsed().as_millis())?);
    case.note("slow", slow);
    ensure!(failed == 0 && open.len() == THREADS * EACH, "{failed} failed, {} are open", open.len());
    let carried = nodes.status("a")?.get("carried").and_then(Value::as_u64).unwrap_or(0);
    case.note("carried", carried);
    // Those before the first link stood may have gone direct; by far the most are carried.
    ensure!(carried >= 800, "{carried} of {} are carried", open.len());
    // Each was one of the client's own, to the client and to the server, with nothing of ours in it.
    let own: BTreeSet<SocketAddr> =
        open.iter().map(|client| client.stream.local_addr()).collect::<Result<_, _>>()?;
    let (mut client, mut server) = (at_client.take(), at_server.take());
    let syns =
        |seen: &[Packet]| -> BTreeSet<_> { seen.iter().filter(|p| p.is_syn()).map(|p| p.from).collect() };
    let answered = |seen: &[Packet]| -> BTreeSet<_> {
        seen.iter().filter(|p| p.is_answer() && !p.probe).map(|p| p.to).collect()
    };
    until("all of it is printed", || {
        client.extend(at_client.take());
        server.extend(at_server.now());
        Ok(answered(&client).len() >= own.len() && syns(&server).len() >= own.len())
    })?;
    ensure!(own.len() == THREADS * EACH, "{} addresses of {} clients", own.len(), THREADS * EACH);
    ensure!(syns(&client) == own && answered(&client) == own, "the client's device saw others");
    ensure!(client.iter().all(|p| !p.probe), "an option of ours at the client");
    ensure!(syns(&server) == own, "the server saw {} clients of {}", syns(&server).len(), own.len());
    for mut client in open {
        client.echoes(b"all of them live")?;
        client.ends()?;
    }
    nodes.at_rest(&["a", "b"])?;
    let (next, took) = connect(&ground, "c", servers[0])?;
    ensure!(next.is_ok() && took < Duration::from_millis(900), "the next one took {took:?}");
    // The control: without the rule none is carried.
    nodes.node("a")?.kill()?;
    nodes.start(&[("a", Standing::routed().passing())])?;
    for server in servers {
        Client::whole(&ground, "c", server)?;
    }
    ensure!(nodes.count("a", "carried")? == 0, "carried without the rule");
    Ok(())
}
