//! A line with a hole: packets that are larger than it carries vanish, and nobody is told. What goes direct stalls there;
//! what a pair carries does not, once its link has met the silence.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Ground;

use crate::case::Case;
use crate::path::ends::{Client, noise};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::{STALL, until};

/// The hole is between `f` and `g`, whose complaints about it reach nobody. `c - a - f = g - b - s`
const ROW: [&str; 6] = ["c", "a", "f", "g", "b", "s"];
/// What no client can send that does not know of the hole, and far more than an initial window of small packets.
const BULK: usize = 400_000;

/// Direct, through an honest line, and through a pair.
pub(crate) fn hole(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &ROW)?;
    let line = Line::row(&ground, 4, "a")?;
    dig(&ground)?;
    // The control: small packets pass, large ones do not, in either family.
    let stalled = line.servers.map(|server| {
        let mut client = Client::connect(&ground, "c", server)?;
        client.sees_the_truth()?;
        client.echoes(b"small")?;
        client.stream.set_write_timeout(Some(Duration::from_millis(400)))?;
        client.stream.set_read_timeout(Some(Duration::from_millis(1000)))?;
        // The system holds as much of it as it likes.
        drop(client.stream.write_all(&noise(BULK)));
        anyhow::Ok((server, heard(&mut client.stream)))
    });
    for stalled in stalled {
        let (server, read) = stalled?;
        ensure!(read == Err(ErrorKind::WouldBlock), "{server}: no hole, {read:?} comes back");
    }
    let swallowed = complaints(&ground)?;
    ensure!(swallowed.iter().all(|n| *n > 0), "nobody complained in vain, v4 and v6: {swallowed:?}");
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])?;
    // The first connections may come before the link has learnt it, and go direct with what fits.
    let began = Instant::now();
    until("a connection is carried", || {
        let mut first = Client::connect(&ground, "c", line.servers[0])?;
        first.echoes(b"small")?;
        Ok(nodes.count("a", "carried")? > 0)
    })?;
    case.note("carried-after-ms", u64::try_from(began.elapsed().as_millis())?);
    for server in line.servers {
        let (before, began) = (nodes.count("a", "carried")?, Instant::now());
        let mut client = Client::connect(&ground, "c", server)?;
        client.sees_the_truth()?;
        client.stream.set_read_timeout(Some(STALL))?;
        client.echoes(&noise(BULK)).with_context(|| format!("{server}: through the pair"))?;
        client.ends()?;
        ensure!(nodes.count("a", "carried")? > before, "{server}: not carried");
        case.note(
            if server.is_ipv4() { "v4-ms" } else { "v6-ms" },
            u64::try_from(began.elapsed().as_millis())?,
        );
    }
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 2 * 400_000), "not over the link");
    line.forget();
    Client::whole(&ground, "c", line.servers[0])?;
    ensure!(line.at_the_server().iter().any(|packet| packet.is_syn()), "the server has seen no client");
    let at_client = line.at_the_client();
    ensure!(at_client.iter().any(|packet| packet.is_answer() && !packet.probe), "the client: {at_client:?}");
    // The control of the control: with complaints that arrive, direct goes too.
    for place in ["a", "b"] {
        nodes.end(place)?;
    }
    for place in ["f", "g"] {
        ground.nft(place, "delete table inet mute")?;
    }
    for server in line.servers {
        Client::whole(&ground, "c", server)?;
    }
    Ok(())
}

/// What comes within the time that it is given; an interrupted call is none.
fn heard(stream: &mut TcpStream) -> Result<usize, ErrorKind> {
    loop {
        match stream.read(&mut [0; 16]).map_err(|error| error.kind()) {
            Err(ErrorKind::Interrupted) => {}
            other => return other,
        }
    }
}

fn dig(ground: &Ground) -> anyhow::Result<()> {
    for (place, device) in [("f", "right"), ("g", "left")] {
        ground.run(place, &format!("ip link set {device} mtu 1300"))?;
        ground.nft(
            place,
            "table inet mute {\nchain o { type filter hook output priority 0; icmp type destination-unreachable counter drop; \
             icmpv6 type packet-too-big counter drop; }\n}\n",
        )?;
    }
    Ok(())
}

/// How many complaints of `f` were swallowed, of each family.
fn complaints(ground: &Ground) -> anyhow::Result<Vec<u64>> {
    let output = ground.command("f", "nft").args(["list", "table", "inet", "mute"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts = said.split("counter packets ").skip(1);
    counts.map(|rest| Ok(rest.split(' ').next().unwrap_or_default().parse()?)).collect()
}
