//! Nodes that were replaced and still carry: told once that all ends, and orphaned. And the tools that a node runs.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Place;

use super::pair::{Capture, Client, Nodes, STALL, echo_server, wan_device};
use super::supervised::{child, direct, ip, kernel, netd, runs, stop, taken_again};
use crate::case::Case;

/// The service is ended while a node that was replaced still carries: one word lets it finish, the second does not.
pub(crate) fn leaves_once(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let before = kernel(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    for hurried in [false, true] {
        for place in [Place::Centre, Place::Branch] {
            nodes.start(place, "intercept")?;
        }
        let mut live = Client::connect(&lab, ip())?;
        live.sees_the_truth(ip())?;
        live.echoes(b"before")?;
        ensure!(nodes.count(Place::Branch, "carried")? == 1, "control: it is not carried");
        let old = child(&mut nodes)?;
        nodes.upgrade(Place::Branch)?;
        ensure!(child(&mut nodes)? != old && runs(old), "nothing was replaced");
        nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1500) {
            live.echoes(b"it goes on").context("after one word")?;
            thread::sleep(Duration::from_millis(100));
        }
        ensure!(runs(old), "it has ended, with what it carried");
        // New ones go past it, to a server that sees the client.
        let on_wan = Capture::of(
            lab.command(Place::Centre, "tcpdump"),
            &wan_device(&lab, Place::Centre)?,
            "tcp port 8000",
        )?;
        direct(&lab)?.ends()?;
        let seen = on_wan.lines()?;
        ensure!(seen.iter().any(|line| line.contains("10.81.1.10.")), "not past it: {seen:?}");
        let start = Instant::now();
        if hurried {
            // The control: a second word ends it.
            nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
            let told = live.stream.read(&mut [0]);
            ensure!(told.is_err(), "the second word: {told:?}");
        } else {
            live.ends()?;
        }
        nodes.node(Place::Branch)?.wait(STALL)?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(5), "the service ends {took:?} after the last connection");
        case.note(if hurried { "hurried-ms" } else { "ended-ms" }, u64::try_from(took.as_millis())?);
        ensure!(kernel(&lab)? == before, "left behind:\n{}", kernel(&lab)?);
        nodes.node(Place::Centre)?.signal(libc::SIGTERM)?;
        nodes.node(Place::Centre)?.wait(STALL)?;
    }
    Ok(())
}

/// The supervisor is killed while a netd that was replaced stands still; a new service is at work when it goes on. It ends
/// with its node, and touches nothing of that service's.
pub(crate) fn orphaned(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let before = kernel(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    nodes.node(Place::Branch)?.watch.announce("the supervisor is gone");
    let mut live = Client::connect(&lab, ip())?;
    live.echoes(b"before")?;
    ensure!(nodes.count(Place::Branch, "carried")? == 1, "control: it is not carried");
    let (old, carries) = (netd(&mut nodes)?, child(&mut nodes)?);
    nodes.upgrade(Place::Branch)?;
    let new = netd(&mut nodes)?;
    ensure!(new != old && runs(old), "nothing was replaced");
    stop(old)?;
    nodes.node(Place::Branch)?.kill_supervisor()?;
    let start = Instant::now();
    while runs(new) {
        ensure!(start.elapsed() < Duration::from_secs(5), "the node goes on without its supervisor");
        thread::sleep(Duration::from_millis(10));
    }
    // The control: one that has the rules takes them out.
    ensure!(kernel(&lab)? == before, "left behind:\n{}", kernel(&lab)?);
    nodes.start(Place::Branch, "intercept")?;
    taken_again(&lab, &nodes)?;
    let stands = shape(&kernel(&lab)?);
    ensure!(stands != shape(&before), "control: the new service has installed nothing");
    lab::sys::kill(old, libc::SIGCONT)?;
    let start = Instant::now();
    while runs(old) || runs(carries) {
        ensure!(start.elapsed() < Duration::from_secs(5), "the old node goes on without its supervisor");
        thread::sleep(Duration::from_millis(10));
    }
    case.note("gone-ms", u64::try_from(start.elapsed().as_millis())?);
    let now = shape(&kernel(&lab)?);
    ensure!(now == stands, "the old node has touched what is not its own:\n{now}");
    ensure!(live.stream.read(&mut [0]).is_err(), "a cut connection looks like one that ended");
    let carried = nodes.count(Place::Branch, "carried")?;
    direct(&lab)?.ends()?;
    ensure!(nodes.count(Place::Branch, "carried")? == carried + 1, "nothing is taken any more");
    Ok(())
}

/// Without what is counted.
fn shape(kernel: &str) -> String {
    let mut before = "";
    let mut words = Vec::new();
    for word in kernel.split_whitespace() {
        words.push(if matches!(before, "packets" | "bytes") { "n" } else { word });
        before = word;
    }
    words.join(" ")
}

/// What a node runs never gets the channel to its supervisor, whose words it would swallow: none has the node's own standard
/// input.
pub(crate) fn tools(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let (wrappers, seen) = (lab.directory().join("wrappers"), lab.directory().join("tools"));
    std::fs::create_dir_all(&wrappers)?;
    let path = std::env::var("PATH")?;
    for tool in ["ip", "tcpdump", "nft", "iptables-nft", "ip6tables-nft", "conntrack", "timeout", "sysctl"] {
        let Some(real) = path.split(':').map(|at| std::path::Path::new(at).join(tool)).find(|at| at.exists())
        else {
            continue;
        };
        let script = format!(
            "#!/bin/sh\nset -- {tool:?} \"$@\"\nprintf '%s %s %s\\n' \"$(tr '\\0' ' ' </proc/$PPID/cmdline | cut -d' ' -f2)\" \
             {tool} \"$(readlink /proc/self/fd/0)\" >>{seen:?}\nshift\nexec {real:?} \"$@\"\n"
        );
        std::fs::write(wrappers.join(tool), script)?;
        std::fs::set_permissions(wrappers.join(tool), std::fs::Permissions::from_mode(0o755))?;
    }
    let mut nodes = Nodes::of(case, &lab)?;
    nodes.start(Place::Centre, "intercept")?;
    nodes.path = Some(format!("{}:{path}", wrappers.display()));
    let rule = "action = \"intercept\"\nports = [8000]\nbpf = \"tcp dst port 8000\"";
    nodes.start_ruled(Place::Branch, rule)?;
    let mut client = Client::connect(&lab, ip())?;
    client.sees_the_truth(ip())?;
    client.echoes(b"by a compiled rule")?;
    client.ends()?;
    ensure!(nodes.count(Place::Branch, "carried")? == 1, "control: the rule does not fit");
    // The control: there is a channel that they could get.
    let own = std::fs::read_link(format!("/proc/{}/fd/0", netd(&mut nodes)?))?;
    ensure!(own.to_string_lossy().starts_with("socket:"), "the node's own is {own:?}");
    let seen = std::fs::read_to_string(&seen)?;
    let of_node = |line: &&str| line.starts_with("netd ") || line.starts_with("node ");
    let of_node: Vec<&str> = seen.lines().filter(of_node).collect();
    for tool in ["ip", "tcpdump"] {
        let ran = of_node.iter().any(|line| line.contains(&format!(" {tool} ")));
        ensure!(ran, "the node has run no {tool}, so nothing is shown: {seen}");
    }
    let got: Vec<_> = of_node.iter().filter(|line| line.contains("socket:")).collect();
    ensure!(got.is_empty(), "they have got the node's own: {got:?}");
    case.note("tools", of_node.len());
    // It still hears what it is told.
    nodes.node(Place::Branch)?.watch.announce("bypass");
    nodes.bypass(Place::Branch, "on")?;
    let status = nodes.status(Place::Branch)?;
    ensure!(status.get("state").and_then(serde_json::Value::as_str) == Some("bypassed"), "{status}");
    Ok(())
}
