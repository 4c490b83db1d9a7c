//! What the operator says of connections, and of how the path is asked: each action of a rule, each manner of probing, and
//! how what is known becomes fresh.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Ground;
use serde_json::Value;

use crate::case::Case;
use crate::path::ends::{Client, ECHO, both, serve};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::until;

/// Longer than a SYN and its first repetition, shorter than the second.
const NOBODY: Duration = Duration::from_millis(1600);
/// The server's networks on a row of a client, two nodes and a server.
const SERVERS: &str = "[\"10.82.2.0/24\", \"fd00:82:0:2::/64\"]";

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passes,
    Taken,
    Dropped,
    Denied,
}

impl End {
    /// The word under which the node counts it.
    fn counted(self) -> &'static str {
        match self {
            Self::Passes => "rule-pass",
            Self::Taken => "single",
            Self::Dropped => "rule-drop",
            Self::Denied => "rule-deny",
        }
    }
}

/// Rules, the first that fits decides; and for each port what its connections over IPv4 and over IPv6 come to.
const RULES: &str = "\
    [[rule]]\naction = \"pass\"\nports = [8002]\n\
    [[rule]]\naction = \"drop\"\nports = [\"8002-8003\"]\n\
    [[rule]]\naction = \"deny\"\nports = [8004]\n\
    [[rule]]\naction = \"drop\"\nbpf = \"tcp dst port 8005 and src net 10.82.0.0/24\"\n\
    [[rule]]\naction = \"deny\"\nbpf = \"ip6 and tcp dst port 8006\"\n\
    [[rule]]\naction = \"pass\"\nports = [8007]\nclients = [\"10.82.9.0/24\"]\n\
    [[rule]]\naction = \"intercept-single\"\nports = [\"8000-8009\"]\n";
const ENDS: [(u16, [End; 2]); 7] = [
    (ECHO, [End::Taken; 2]),
    (8002, [End::Passes; 2]),
    (8003, [End::Dropped; 2]),
    (8004, [End::Denied; 2]),
    (8005, [End::Dropped, End::Taken]),
    (8006, [End::Taken, End::Denied]),
    (8007, [End::Taken; 2]),
];

/// Every rule does what it says, to each family, in the order of the file; `explain` says the same of what was captured.
/// Without them all pass.
pub(crate) fn each(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "s"])?;
    let line = Line::row(&ground, 1, "a")?;
    let more: Vec<SocketAddr> =
        ENDS.iter().filter(|(port, _)| *port != ECHO).flat_map(|(port, _)| both(1, 2, *port)).collect();
    serve(&ground, "s", &more)?;
    let mut nodes = Nodes::of(case, &ground, &["a"])?;
    let interfaces = "interfaces = [\"left\", \"right\"]";
    let standing = Standing { interception: interfaces.to_owned(), rest: RULES.to_owned() };
    nodes.start(&[("a", standing)])?;
    let file = ground.directory().join("client.pcap");
    let kept = Kept::begin(&ground, &file)?;
    for (port, ends) in ENDS {
        for (server, end) in both(1, 2, port).into_iter().zip(ends) {
            let before = nodes.count("a", end.counted())?;
            line.forget();
            let came_to = connects(&ground, server)?;
            ensure!(came_to == end.is_served(), "{server} should be {end:?}: {came_to:?}");
            let at_server = line.at_the_server().iter().filter(|p| p.is_syn() && p.to == server).count();
            let reaches = matches!(end, End::Passes | End::Taken);
            ensure!((at_server > 0) == reaches, "{server}: {at_server} SYNs at the server, of {end:?}");
            ensure!(nodes.count("a", end.counted())? > before, "{server} is not counted as {end:?}");
        }
    }
    kept.end()?;
    explained(&nodes, &file)?;
    // The control: nothing but `pass`, and every server is reached.
    nodes.end("a")?;
    nodes.start(&[("a", Standing::on(interfaces).passing())])?;
    for (port, _) in ENDS {
        for server in both(1, 2, port) {
            Client::whole(&ground, "c", server).with_context(|| format!("{server} without rules"))?;
        }
    }
    Ok(())
}

impl End {
    fn is_served(self) -> Result<(), ErrorKind> {
        match self {
            Self::Passes | Self::Taken => Ok(()),
            Self::Dropped => Err(ErrorKind::TimedOut),
            Self::Denied => Err(ErrorKind::ConnectionRefused),
        }
    }
}

/// A connection for as long as a dropped one is given, whole if it comes about.
fn connects(ground: &Ground, server: SocketAddr) -> anyhow::Result<Result<(), ErrorKind>> {
    let start = Instant::now();
    match ground.inside("c", move || TcpStream::connect_timeout(&server, NOBODY))? {
        Err(error) => Ok(Err(error.kind())),
        Ok(stream) => {
            let client = Client::greeted(stream, start.elapsed(), server)?;
            client.sees_the_truth()?;
            client.ends()?;
            Ok(Ok(()))
        }
    }
}

/// The engine run dry over what the client's device saw.
fn explained(nodes: &Nodes<'_>, file: &std::path::Path) -> anyhow::Result<()> {
    let config = nodes.directory("a").join("waypost.toml");
    let (file, config) = (file.to_str().context("a path")?, config.to_str().context("a path")?);
    let said = nodes.waypost(&["explain", "--json", "--pcap", file, "-c", config])?;
    let report: Value = serde_json::from_slice(&said)?;
    let flows = report.get("flows").and_then(Value::as_array).context("no flows")?;
    for (port, ends) in ENDS {
        for (server, end) in both(1, 2, port).into_iter().zip(ends) {
            let is = |flow: &&Value| flow.get("server").and_then(Value::as_str) == Some(&server.to_string());
            let flow =
                flows.iter().find(is).with_context(|| format!("{server} is not explained: {report}"))?;
            let reason = flow.pointer("/steps/0/reason").and_then(Value::as_str);
            ensure!(reason == Some(end.counted()), "{server} is explained by {reason:?}, not as {end:?}");
        }
    }
    Ok(())
}

/// A file of all that passes the client's device.
struct Kept(std::process::Child);

impl Kept {
    fn begin(ground: &Ground, file: &std::path::Path) -> anyhow::Result<Self> {
        let mut command = ground.command("c", "tcpdump");
        command.args(["-i", "right", "-U", "-n", "--immediate-mode", "-w"]).arg(file).arg("tcp");
        let child = command.stderr(std::process::Stdio::null()).spawn().context("tcpdump")?;
        let kept = Self(child);
        // It writes the file's head when it listens.
        until("tcpdump listens", || Ok(std::fs::metadata(file).is_ok_and(|file| file.len() > 0)))?;
        Ok(kept)
    }

    fn end(mut self) -> anyhow::Result<()> {
        crate::path::capture::settle();
        lab::sys::kill(i32::try_from(self.0.id())?, libc::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The server's node, which takes connections whose SYN it has not seen.
fn granting() -> Standing {
    Standing::routed().and(&format!("[[peer]]\nid = \"a\"\nmay_open = {SERVERS}\n"))
}

/// Only through a peer: no SYN of the client leaves its node otherwise, neither before there is one nor after it has died.
pub(crate) fn only_with_a_peer(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    let strict = |action: &str| {
        let mut standing = Standing::routed().with("entry_ttl = \"1s\"");
        standing.rest = standing.rest.replace("\"intercept\"", action);
        standing
    };
    let nothing_leaves = |nodes: &Nodes<'_>, what: &str| -> anyhow::Result<()> {
        line.forget();
        let before = nodes.count("a", "no-peer")?;
        for server in line.servers {
            let came_to = connects(&ground, server)?;
            ensure!(came_to == Err(ErrorKind::TimedOut), "{what}: {server}: {came_to:?}");
        }
        let behind = line.seen_behind_the_first();
        ensure!(behind == (0, 0), "{what}: SYNs of the client have left: {behind:?}");
        let at_server = line.at_the_server();
        ensure!(at_server.is_empty(), "{what}: at the server: {at_server:?}");
        ensure!(nodes.count("a", "no-peer")? > before, "{what}: it is not said why");
        Ok(())
    };
    nodes.start(&[("a", strict("\"drop-if-no-peer\""))])?;
    nothing_leaves(&nodes, "nobody there")?;
    // A peer comes: connections go through it, and the client's SYN is seen on no line but its own.
    nodes.start(&[("b", granting())])?;
    for server in line.servers {
        until("carried by the peer", || Ok(connects(&ground, server)?.is_ok()))?;
    }
    let carried = nodes.count("a", "carried")?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "a SYN of the client has left");
    ensure!(nodes.count("a", "carried")? == carried + 2, "not carried");
    nodes.node("b")?.kill()?;
    until("a knows that b is gone", || Ok(nodes.sent_to("a", "b")?.is_none()))?;
    nothing_leaves(&nodes, "the peer is dead")?;
    // The control: who need not have a peer goes without one.
    nodes.end("a")?;
    nodes.start(&[("a", strict("\"intercept\""))])?;
    line.connections()?;
    let (syns, _) = line.seen_at_the_ends()?;
    ensure!(syns == 2, "{syns} SYNs behind the first node");
    Ok(())
}

/// The SYN waits while the path is asked apart: a peer, nobody, and silence up to a limit.
pub(crate) fn stalled(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    let asks = |manner: &str| Standing::routed().with(manner).with("entry_ttl = \"1s\"");
    nodes.start(&[("a", asks("probe = \"stalled\""))])?;
    // Nobody: the server refuses the probe, and the connection goes on as it came.
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 0), "nobody there: not the client's own SYN");
    ensure!(nodes.count("a", "probe-negative")? == 2, "the refusal is not taken for one");
    // Nothing at all comes back: it waits no longer than half a second.
    ground.nft(
        "s",
        "table inet fw {\nchain i { type filter hook input priority 0; tcp dport 7783 drop; }\n}\n",
    )?;
    let [server, _] = line.servers;
    thread::sleep(Duration::from_millis(1100));
    line.forget();
    let took = Client::whole(&ground, "c", server)?;
    ensure!((Duration::from_millis(450)..Duration::from_millis(950)).contains(&took), "in silence: {took:?}");
    ensure!(line.seen_of(&[server])? == (1, 0), "in silence: not the client's own SYN");
    case.note("silence-ms", u64::try_from(took.as_millis())?);
    ground.run("s", "nft delete table inet fw")?;
    // A peer: its answer takes the connection, and no SYN of the client goes on.
    nodes.start(&[("b", granting())])?;
    for server in line.servers {
        until("the peer is found", || {
            let carried = nodes.count("a", "carried")?;
            Client::whole(&ground, "c", server)?;
            Ok(nodes.count("a", "carried")? > carried)
        })?;
    }
    thread::sleep(Duration::from_millis(1100));
    let found = nodes.count("a", "probe-positive")?;
    ensure!(found >= 2, "{found} times a peer was found");
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "the client's SYN went on");
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 200_000), "not over the link");
    // The control: asked by the SYN itself, it goes on with the query.
    nodes.end("a")?;
    std::fs::remove_file(nodes.directory("a").join("mapping-table"))
        .context("the table of the first node")?;
    nodes.start(&[("a", asks("probe = \"on-syn\""))])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 2), "the control: no query on the SYN");
    Ok(())
}

/// The path is asked beside the first connection, which passes untouched; the next one is carried.
pub(crate) fn parallel(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("a", Standing::routed().with("probe = \"parallel\"")), ("b", granting())])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 0), "the first connections were touched");
    ensure!(nodes.count("a", "probed-beside")? == 2, "nobody was asked");
    ensure!(nodes.count("a", "carried")? == 0, "the first connections were carried");
    for server in line.servers {
        until("the peer is known", || Ok(nodes.known("a", server)?.as_deref() == Some("peer")))?;
        until("the next one is carried", || {
            let carried = nodes.count("a", "carried")?;
            Client::whole(&ground, "c", server)?;
            Ok(nodes.count("a", "carried")? > carried)
        })?;
    }
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (0, 0), "known, and still not carried at once");
    // The control: where nobody answers the next one passes as well.
    nodes.end("b")?;
    until("nobody is known", || {
        line.connections()?;
        Ok(line.seen_at_the_ends()? == (2, 0))
    })?;
    Ok(())
}

/// A route moves to another node while the first one is as well as before, and connections go on through that one: by
/// asking the path beside a connection, or by the clock, the new one is found, with no client waiting; without, it is not.
pub(crate) fn refreshed(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "f", "b", "s"])?;
    let line = Line::row(&ground, 3, "a")?;
    let [server, _] = line.servers;
    for (manner, finds) in
        [("by-connection", Some("by-connection-ms")), ("by-timer", Some("by-timer-ms")), ("when-stale", None)]
    {
        let mut nodes = Nodes::of(case, &ground, &["a", "f", "b"])?;
        let asks = Standing::routed().with(&format!("refresh = {manner:?}")).with("entry_ttl = \"2s\"");
        nodes.start(&[("a", asks), ("b", Standing::routed())])?;
        until("b is found", || {
            Client::whole(&ground, "c", server)?;
            Ok(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 100_000))
        })?;
        // Nearer to the client there is one now; b is asked over its link, and carries.
        nodes.start(&[("f", Standing::routed())])?;
        let start = Instant::now();
        let mut found = None;
        while start.elapsed() < Duration::from_secs(6) {
            let took = Client::whole(&ground, "c", server)?;
            ensure!(took < Duration::from_millis(900), "{manner}: a client waited for {took:?}");
            if nodes.sent_to("a", "f")?.is_some_and(|sent| sent >= 100_000) {
                found = Some(start.elapsed());
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        ensure!(found.is_some() == finds.is_some(), "{manner}: found {found:?}");
        if let (Some(found), Some(name)) = (found, finds) {
            case.note(name, u64::try_from(found.as_millis())?);
        }
    }
    Ok(())
}
