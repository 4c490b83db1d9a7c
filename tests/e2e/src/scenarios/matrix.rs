//! The core journey in pairs of circumstances: family, the kind of node, connection tracking that drops what is invalid
//! wherever a packet passes. Each two values of different kinds meet in one of the rows.
//!
//! | | routed | bridge |
//! |---|---|---|
//! | IPv4 | plain | tracked |
//! | IPv6 | tracked | plain |

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::Ground;

use super::{bridge, odd};
use crate::case::Case;
use crate::path::ends::{Client, ECHO, both, noise};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Routed,
    Bridge,
}

struct Row {
    v6: bool,
    kind: Kind,
    tracked: bool,
}

pub(crate) fn v4_routed_plain(case: &Case) -> anyhow::Result<()> {
    journey(case, &Row { v6: false, kind: Kind::Routed, tracked: false })
}

pub(crate) fn v4_bridge_tracked(case: &Case) -> anyhow::Result<()> {
    journey(case, &Row { v6: false, kind: Kind::Bridge, tracked: true })
}

pub(crate) fn v6_routed_tracked(case: &Case) -> anyhow::Result<()> {
    journey(case, &Row { v6: true, kind: Kind::Routed, tracked: true })
}

pub(crate) fn v6_bridge_plain(case: &Case) -> anyhow::Result<()> {
    journey(case, &Row { v6: true, kind: Kind::Bridge, tracked: false })
}

/// Discovered, carried, true addresses, known, killed and come again; and before it all, without a node.
fn journey(case: &Case, row: &Row) -> anyhow::Result<()> {
    let (ground, network) = match row.kind {
        Kind::Routed => (Ground::row(case.prefix(), &["c", "a", "f", "b", "s"])?, 3),
        Kind::Bridge => (bridge::ground(case)?, 1),
    };
    let wan = if row.kind == Kind::Routed { ("a", "right") } else { ("f", "left") };
    let line = Line::on(&ground, both(network, 2, ECHO), [("c", "right"), ("s", "left"), wan])?;
    let [v4, v6] = line.servers;
    let server = if row.v6 { v6 } else { v4 };
    if row.tracked {
        tracked(&ground, &line, v4)?;
    }
    // The control: without nodes.
    ensure!(one(&ground, &line, server)? == (1, 0), "somebody asks before there is a node");
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", standing(row)), ("b", standing(row))])?;
    ensure!(one(&ground, &line, server)? == (1, 1), "it is not asked");
    ensure!(nodes.count("a", "carried")? == 1, "not carried");
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 100_000), "not over the link");
    nodes.at_rest(&["a", "b"])?;
    ensure!(one(&ground, &line, server)? == (0, 0), "asked for what the link carries");
    ensure!(nodes.count("a", "carried")? == 2, "the second is not carried");
    nodes.at_rest(&["a", "b"])?;
    for victim in ["a", "b"] {
        let mut live = Client::connect(&ground, "c", server)?;
        live.echoes(&noise(50_000))?;
        let carried = nodes.count("a", "carried")?;
        ensure!(carried > 0, "{victim}: what is to be cut is not carried");
        nodes.node(victim)?.kill()?;
        let took = Client::whole(&ground, "c", server)?;
        ensure!(took < Duration::from_millis(3900), "{victim} is dead: a new connection took {took:?}");
        let told = live.told_dead()?;
        ensure!(told < Duration::from_secs(2), "{victim}: a dead connection was told after {told:?}");
        case.note(if victim == "a" { "a-told-ms" } else { "b-told-ms" }, u64::try_from(told.as_millis())?);
        // Both anew, for the one that stayed has marked its peer as gone for a while.
        let other = if victim == "a" { "b" } else { "a" };
        nodes.node(other)?.kill()?;
        for place in ["a", "b"] {
            drop(std::fs::remove_file(nodes.directory(place).join("mapping-table")));
        }
        nodes.start(&[("a", standing(row)), ("b", standing(row))])?;
        one(&ground, &line, server).with_context(|| format!("after {victim} came back"))?;
        ensure!(nodes.count("a", "carried")? == 1, "{victim} is back, and nothing is carried");
    }
    Ok(())
}

fn standing(row: &Row) -> Standing {
    match row.kind {
        Kind::Routed => Standing::routed(),
        Kind::Bridge => bridge::bridge("\"left\", \"right\""),
    }
}

/// One connection, seen at both ends.
fn one(ground: &Ground, line: &Line<'_>, server: SocketAddr) -> anyhow::Result<(usize, usize)> {
    line.forget();
    Client::whole(ground, "c", server)?;
    line.seen_of(&[server])
}

/// Connection tracking everywhere; an answer that nobody asked for arrives without it, and does not with it.
fn tracked(ground: &Ground, line: &Line<'_>, v4: SocketAddr) -> anyhow::Result<()> {
    ensure!(odd::stray(ground, line, 8004, v4)? == 1, "control: no stray answer arrives");
    for place in ["c", "a", "f", "b", "s"] {
        odd::track(ground, place)?;
    }
    ensure!(odd::stray(ground, line, 8005, v4)? == 0, "connection tracking drops nothing");
    Ok(())
}
