//! The node on the path and its supervisor: whatever stands still or dies, new connections reach their servers, and the
//! node is back by itself.

use std::io::Read as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::{Lab, Place};
use serde_json::Value;

use super::pair::{Client, Nodes, STALL, echo_server};
use crate::case::Case;

/// A SYN that is held is lost; its repetition comes after a second.
const HELD_MAX: Duration = Duration::from_millis(1120);
/// On a machine as busy as this one may be the repetition may come too early; the next comes two seconds later. Without a
/// supervisor it never ends.
const HELD_TWICE_MAX: Duration = Duration::from_millis(3500);

/// The node, or its packet loop alone, stands still for a moment: new connections flow past it, what is carried goes on
/// where it was, and no connection that went past is torn by what was held.
pub(crate) fn hung(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    nodes.node(Place::Branch)?.watch.announce("stands still");
    nodes.node(Place::Branch)?.watch.announce("bypass");
    let child = child(&mut nodes)?;
    let mut live = Client::connect(&lab, ip())?;
    live.echoes(b"before")?;
    // Control: it is taken, with nothing held.
    ensure!(live.connected < Duration::from_millis(700), "unheld: {:?}", live.connected);
    let mut quick = 0;
    let mut past = Vec::new();
    for name in ["hung-1-ms", "hung-2-ms", "hung-3-ms"] {
        stop(child)?;
        // What netd holds for it goes on when the node is given up.
        let next = past_it(&lab, Duration::from_millis(250))?;
        quick += usize::from(next.connected < HELD_MAX);
        case.note(name, millis(next.connected)?);
        // It says so when the rules are out, which a connection need not wait for.
        let start = Instant::now();
        while !desk(&nodes)?.contains("\"state\":\"hanging\"") {
            ensure!(start.elapsed() < Duration::from_secs(2), "the supervisor says {}", desk(&nodes)?);
            thread::sleep(Duration::from_millis(10));
        }
        lab::sys::kill(child, libc::SIGCONT)?;
        past.push(next);
        live.echoes(b"still carried")?;
        taken_again(&lab, &nodes)?;
    }
    ensure!(quick > 0, "no connection stood before its SYN was repeated twice");
    let loop_alone = lab::sys::stop_thread(thread_of(netd(&mut nodes)?, "netd")?)?;
    // Nobody lets this one go: it is its repetition that passes.
    past.push(past_it(&lab, Duration::from_millis(700))?);
    live.echoes(b"carried by a runtime whose packet loop stands")?;
    drop(loop_alone);
    taken_again(&lab, &nodes)?;
    // netd as a whole. To lead everything past it the operator needs the supervisor alone.
    let whole = netd(&mut nodes)?;
    stop(whole)?;
    past.push(past_it(&lab, Duration::from_millis(250))?);
    let start = Instant::now();
    nodes.bypass(Place::Branch, "on")?;
    let took = start.elapsed();
    ensure!(took < Duration::from_millis(1500), "bypass took {took:?}");
    let next = direct(&lab)?;
    ensure!(next.connected < Duration::from_millis(700), "held in bypass: {:?}", next.connected);
    past.push(next);
    lab::sys::kill(whole, libc::SIGCONT)?;
    live.echoes(b"carried by a netd that stood still")?;
    nodes.bypass(Place::Branch, "off")?;
    taken_again(&lab, &nodes)?;
    ensure!(nodes.node(Place::Branch)?.node() == Some(child), "the node was replaced");
    for mut client in past {
        client.echoes(b"nobody tore it")?;
        client.ends()?;
    }
    live.ends()
}

/// kill -9 of the node alone.
pub(crate) fn killed(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    nodes.node(Place::Branch)?.watch.announce("the node has ended");
    let mut live = Client::connect(&lab, ip())?;
    live.echoes(b"before")?;
    ensure!(nodes.count(Place::Branch, "carried")? == 1, "control: it is not carried");
    let first = child(&mut nodes)?;
    for process in [nodes.node(Place::Branch)?.pid(), netd(&mut nodes)?] {
        gave_up(process)?;
    }
    lab::sys::kill(first, libc::SIGKILL)?;
    let start = Instant::now();
    live.stream.set_read_timeout(Some(STALL))?;
    let told = live.stream.read(&mut [0]).map_err(|error| error.kind());
    let took = start.elapsed();
    ensure!(told == Err(std::io::ErrorKind::ConnectionReset), "the client is told {told:?}");
    ensure!(took < Duration::from_secs(1), "the client is told after {took:?}");
    case.note("told-ms", millis(took)?);
    // While it is away and while it comes back.
    let mut slowest = Duration::ZERO;
    while nodes.node(Place::Branch)?.node().is_none_or(|pid| pid == first) || word(&nodes)? != "working" {
        ensure!(start.elapsed() < STALL, "the node does not come back");
        slowest = slowest.max(direct(&lab)?.connected);
    }
    case.note("slowest-ms", millis(slowest)?);
    case.note("back-ms", millis(start.elapsed())?);
    ensure!(slowest < HELD_TWICE_MAX, "a new connection took {slowest:?}");
    let second = child(&mut nodes)?;
    ensure!(second != first, "the same process");
    let supervisor = nodes.supervisor(Place::Branch)?;
    ensure!(supervisor.get("restarts").and_then(Value::as_u64) == Some(1), "{supervisor}");
    let why = supervisor.get("why").and_then(Value::as_str).unwrap_or_default();
    ensure!(why.contains("signal: 9"), "why: {why}");
    taken_again(&lab, &nodes)
}

/// kill -9 of the supervisor alone: the node takes the rules out and ends.
pub(crate) fn orphaned(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let before = kernel(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    ensure!(kernel(&lab)? != before, "control: nothing was installed");
    nodes.node(Place::Branch)?.watch.announce("the supervisor is gone");
    let mut live = Client::connect(&lab, ip())?;
    live.echoes(b"before")?;
    let node = child(&mut nodes)?;
    nodes.node(Place::Branch)?.kill_supervisor()?;
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{node}")).exists() {
        direct(&lab)?.ends()?;
        ensure!(start.elapsed() < Duration::from_secs(5), "the node goes on without its supervisor");
    }
    case.note("gone-ms", millis(start.elapsed())?);
    ensure!(kernel(&lab)? == before, "left behind:\n{}", kernel(&lab)?);
    ensure!(live.stream.read(&mut [0]).is_err(), "a cut connection looks like one that ended");
    direct(&lab)?.ends()?;
    // A successor that is started at once finds the place free.
    nodes.start(Place::Branch, "intercept")?;
    taken_again(&lab, &nodes)
}

/// `bypass` and `status` while the node is stopped, and a node that is stopped for good.
pub(crate) fn bypassed(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    for words in ["stands still", "bypass", "does not answer", "the node has ended"] {
        nodes.node(Place::Branch)?.watch.announce(words);
    }
    let first = child(&mut nodes)?;
    stop(first)?;
    let start = Instant::now();
    nodes.bypass(Place::Branch, "on")?;
    let took = start.elapsed();
    case.note("bypass-while-stopped-ms", millis(took)?);
    // Whoever waits for the rules to move waits for tools of the system, and for nothing else.
    ensure!(took < Duration::from_secs(3), "bypass took {took:?}");
    let client = direct(&lab)?;
    ensure!(client.connected < Duration::from_millis(700), "bypassed, {:?}", client.connected);
    client.ends()?;
    while child(&mut nodes).is_ok_and(|pid| pid == first) || word(&nodes)? != "bypassed" {
        ensure!(
            start.elapsed() < STALL,
            "a node that is stopped for good is not replaced: {}",
            word(&nodes)?
        );
        thread::sleep(Duration::from_millis(20));
    }
    case.note("replaced-ms", millis(start.elapsed())?);
    direct(&lab)?.ends()?;
    ensure!(nodes.count(Place::Branch, "carried")? == 0, "a connection was taken while bypassed");
    nodes.bypass(Place::Branch, "off")?;
    ensure!(word(&nodes)? == "working", "{}", word(&nodes)?);
    taken_again(&lab, &nodes)
}

/// Another executable in the place of the one that runs: both nodes are replaced, one after the other, with connections on
/// their way. None is lost, and those that pass notice nothing.
pub(crate) fn upgraded(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    nodes.executable = lab.directory().join("waypost-installed");
    install(case, &nodes)?;
    nodes.start(Place::Centre, "intercept")?;
    nodes.start(Place::Branch, "intercept")?;
    nodes.node(Place::Branch)?.watch.announce("bypass");
    nodes.bypass(Place::Branch, "on")?;
    let mut passed = direct(&lab)?;
    nodes.bypass(Place::Branch, "off")?;
    let mut live = Client::connect(&lab, ip())?;
    live.echoes(b"before")?;
    ensure!(nodes.count(Place::Branch, "carried")? == 1, "control: it is not carried");
    // A broken executable changes nothing.
    let before = child(&mut nodes)?;
    std::fs::rename(&nodes.executable, lab.directory().join("set-aside"))?;
    std::fs::write(&nodes.executable, "#!/bin/sh\necho no such thing >&2; exit 1\n")?;
    std::fs::set_permissions(&nodes.executable, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    nodes.node(Place::Branch)?.watch.announce("no upgrade");
    let refused = nodes.upgrade(Place::Branch).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(refused.contains("no such thing"), "a broken executable: {refused:?}");
    ensure!(nodes.node(Place::Branch)?.node() == Some(before), "a broken executable has replaced the node");
    install(case, &nodes)?;
    for place in [Place::Branch, Place::Centre] {
        let old = nodes.node(place)?.node().context("no node")?;
        // New connections all the while, and octets on the two that stand.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let took = thread::scope(|scope| {
            let (lab, live, passed) = (&lab, &mut live, &mut passed);
            let coming = scope.spawn(move || {
                let (mut count, mut slowest) = (0_u64, Duration::ZERO);
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    let client = direct(lab)?;
                    slowest = slowest.max(client.connected);
                    client.ends()?;
                    live.echoes(&[7; 10_000])?;
                    passed.echoes(&[8; 10_000])?;
                    count += 1;
                }
                anyhow::Ok((count, slowest))
            });
            let start = Instant::now();
            let upgraded = nodes.upgrade(place);
            let took = start.elapsed();
            drop(stop);
            let (count, slowest) = match coming.join() {
                Ok(came) => came?,
                Err(_) => bail!("the clients' thread panicked"),
            };
            upgraded?;
            ensure!(count > 0, "no connection came meanwhile");
            Ok((took, count, slowest))
        })?;
        let names = if place == Place::Branch {
            ["branch-ms", "branch-came", "branch-slowest-ms"]
        } else {
            ["centre-ms", "centre-came", "centre-slowest-ms"]
        };
        let [took_name, came, slowest] = names;
        case.note(took_name, millis(took.0)?);
        case.note(came, took.1);
        case.note(slowest, millis(took.2)?);
        ensure!(took.2 < HELD_TWICE_MAX, "a new connection took {:?}", took.2);
        let new = nodes.node(place)?.node().context("no node")?;
        ensure!(new != old && runs(old), "the old node is gone, with what it carries");
        ensure!(!of_file(new)?.ends_with("(deleted)"), "the new node is of the old file: {}", of_file(new)?);
        live.echoes(b"the old one carries it")?;
    }
    ensure!(
        nodes.supervisor(Place::Branch)?.get("leaving").and_then(Value::as_u64) == Some(1),
        "nobody leaves"
    );
    // The new ones find each other. Of the other address it is known that nobody was there a moment ago.
    let fresh = Place::Server.v6();
    // The branch's may have carried some by what its predecessor had learnt, before the centre was replaced.
    let before = nodes.count(Place::Branch, "carried")?;
    let mut taken = Client::connect(&lab, fresh)?;
    taken.sees_the_truth(fresh)?;
    taken.echoes(&[9; 100_000])?;
    for place in [Place::Branch, Place::Centre] {
        let state = nodes.supervisor(place)?;
        ensure!(state.get("state").and_then(Value::as_str) == Some("working"), "{}: {state}", place.name());
    }
    ensure!(nodes.count(Place::Branch, "carried")? > before, "the new nodes carry nothing");
    taken.ends()?;
    live.ends()?;
    passed.ends()?;
    let start = Instant::now();
    while nodes.supervisor(Place::Branch)?.get("leaving").and_then(Value::as_u64) != Some(0) {
        ensure!(start.elapsed() < STALL, "the old node does not end when it carries nothing any more");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Puts the executable under test where the nodes run theirs from: another file than before.
fn install(case: &Case, nodes: &Nodes<'_>) -> anyhow::Result<()> {
    let beside = nodes.executable.with_extension("new");
    std::fs::copy(&case.executable, &beside)?;
    Ok(std::fs::rename(beside, &nodes.executable)?)
}

pub(super) fn runs(process: i32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

fn of_file(process: i32) -> anyhow::Result<String> {
    Ok(std::fs::read_link(format!("/proc/{process}/exe"))?.to_string_lossy().into_owned())
}

/// The machine's watchdog is fed while the node works and stopped at the end; a relay is told when traffic flows past, and
/// systemd by the supervisor alone. A node that cannot be ends its supervisor, with its own words and code.
pub(crate) fn relay(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let (device, told) = (lab.directory().join("watchdog"), lab.directory().join("relay"));
    std::fs::write(&device, "")?;
    let untouched = kernel(&lab)?;
    let notify = lab.directory().join("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&notify)?;
    systemd.set_read_timeout(Some(STALL))?;
    let mut nodes = Nodes::of(case, &lab)?;
    nodes.notify = Some(notify);
    nodes.interception = format!(
        "watchdog_device = {device:?}\nbypass_command = [\"sh\", \"-c\", \"printf '%s ' \\\"$2\\\" >> \\\"$1\\\"\", \"relay\", {told:?}]"
    );
    nodes.start(Place::Branch, "intercept")?;
    for words in ["the node has ended", "stands still", "does not answer"] {
        nodes.node(Place::Branch)?.watch.announce(words);
    }
    let told = |what: &str| -> anyhow::Result<()> {
        let start = Instant::now();
        while std::fs::read_to_string(&told).unwrap_or_default().trim_end() != what {
            ensure!(start.elapsed() < STALL, "the relay: {:?}", std::fs::read_to_string(&told));
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    told("off")?;
    let mut message = [0; 64];
    let mut hears = |what: &[u8]| -> anyhow::Result<()> {
        let heard = systemd.recv(&mut message)?;
        ensure!(
            message.get(..heard) == Some(what),
            "systemd is told {:?}",
            String::from_utf8_lossy(&message)
        );
        Ok(())
    };
    hears(b"READY=1")?;
    let environment = std::fs::read(format!("/proc/{}/environ", child(&mut nodes)?))?;
    ensure!(
        !environment.windows(13).any(|name| name == b"NOTIFY_SOCKET"),
        "the node could tell systemd, too"
    );
    let fed = || anyhow::Ok(std::fs::read(&device)?.len());
    let first = fed()?;
    thread::sleep(Duration::from_millis(2200));
    ensure!(fed()? > first, "the watchdog is not fed");
    let node = child(&mut nodes)?;
    stop(node)?;
    told("off on")?;
    let hungry = fed()?;
    thread::sleep(Duration::from_millis(1200));
    ensure!(fed()? == hungry, "the watchdog is fed for a node that stands still");
    lab::sys::kill(node, libc::SIGKILL)?;
    told("off on off")?;
    nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Branch)?.wait(STALL)?;
    told("off on off on")?;
    // Of the node's death in between it has heard nothing: the service went on.
    hears(b"STOPPING=1")?;
    let octets = std::fs::read(&device)?;
    ensure!(
        octets.ends_with(b"V") && octets.iter().filter(|octet| **octet == b'V').count() == 1,
        "no magic close"
    );
    let taken = lab.inside(Place::Branch, || std::net::TcpListener::bind("[::]:7782"))??;
    let file = lab.directory().join(format!("node-{}/waypost.toml", Place::Branch.name()));
    let failed = lab.command(Place::Branch, &nodes.executable).arg("run").arg("-c").arg(file).output()?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(failed.status.code() == Some(69), "a port is taken: {}", failed.status);
    ensure!(said.matches("the link cannot listen").count() == 1, "a port is taken: {said}");
    ensure!(kernel(&lab)? == untouched, "left behind:\n{}", kernel(&lab)?);
    drop(taken);
    if std::path::Path::new("/dev/watchdog").exists() {
        case.note("real-device", "skipped: it is another's, and starts this machine anew when it is not fed");
    } else {
        case.note("real-device", "skipped: this machine has no /dev/watchdog");
    }
    Ok(())
}

/// A process that can load no module, trace no process and mount nothing, whatever it runs; as one of root's could.
fn gave_up(process: i32) -> anyhow::Result<()> {
    let status = |process: &str| std::fs::read_to_string(format!("/proc/{process}/status"));
    let bounds = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let (own, its) = (status("self")?, status(&process.to_string())?);
    // CAP_SYS_MODULE, CAP_SYS_PTRACE, CAP_SYS_ADMIN; and CAP_NET_ADMIN.
    let (forbidden, needed) = (1 << 16 | 1 << 19 | 1 << 21, 1 << 12);
    let bound = bounds(&its).context("no CapBnd")?;
    ensure!(
        bounds(&own).is_some_and(|own| own & forbidden != 0),
        "control: this process has none of them either"
    );
    ensure!(bound & forbidden == 0 && bound & needed != 0, "it could have {bound:x}");
    ensure!(its.contains("NoNewPrivs:\t1"), "a set-user-id program could give it more");
    Ok(())
}

pub(super) fn ip() -> std::net::IpAddr {
    Place::Server.v4()
}

pub(super) fn netd(nodes: &mut Nodes<'_>) -> anyhow::Result<i32> {
    nodes.node(Place::Branch)?.netd().context("the supervisor has no netd")
}

pub(super) fn child(nodes: &mut Nodes<'_>) -> anyhow::Result<i32> {
    nodes.node(Place::Branch)?.node().context("the supervisor has no node")
}

/// What the supervisor alone answers: `waypost status` waits for a node that is not known to hang.
fn desk(nodes: &Nodes<'_>) -> anyhow::Result<String> {
    use std::io::Write as _;
    let socket = nodes.directory(Place::Branch).join("supervisor-admin.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(b"status\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// The supervisor's state, in its word.
fn word(nodes: &Nodes<'_>) -> anyhow::Result<String> {
    let supervisor = nodes.supervisor(Place::Branch)?;
    Ok(supervisor.get("state").and_then(Value::as_str).context("no state")?.to_owned())
}

/// A connection that reaches the server, whoever carries it.
pub(super) fn direct(lab: &Lab) -> anyhow::Result<Client> {
    let mut client = Client::connect(lab, ip())?;
    client.sees_the_truth(ip())?;
    client.echoes(b"direct")?;
    Ok(client)
}

/// A connection whose SYN is held, and which goes past the node all the same.
fn past_it(lab: &Lab, held: Duration) -> anyhow::Result<Client> {
    let client = direct(lab)?;
    ensure!(client.connected < HELD_TWICE_MAX, "a new connection took {:?}", client.connected);
    ensure!(client.connected > held, "control: its SYN was not held: {:?}", client.connected);
    Ok(client)
}

/// Waits until the node takes connections.
pub(super) fn taken_again(lab: &Lab, nodes: &Nodes<'_>) -> anyhow::Result<()> {
    let start = Instant::now();
    while word(nodes)? != "working" {
        ensure!(start.elapsed() < STALL, "it does not work again: {}", word(nodes)?);
        thread::sleep(Duration::from_millis(20));
    }
    let before = nodes.count(Place::Branch, "carried")?;
    while nodes.count(Place::Branch, "carried")? == before {
        ensure!(start.elapsed() < STALL, "nothing is taken again");
        direct(lab)?.ends()?;
    }
    Ok(())
}

/// What of ours could stand in the branch's kernel.
pub(super) fn kernel(lab: &Lab) -> anyhow::Result<String> {
    let mut all = String::new();
    for words in
        ["nft list ruleset", "ip rule show", "ip -6 rule show", "sysctl net.ipv4.conf.lan0.rp_filter"]
    {
        let (tool, arguments) = words.split_once(' ').context("no words")?;
        let output = lab.command(Place::Branch, tool).args(arguments.split(' ')).output()?;
        all.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    Ok(all)
}

/// Stops a process, and waits until none of its threads runs.
pub(super) fn stop(process: i32) -> anyhow::Result<()> {
    lab::sys::kill(process, libc::SIGSTOP)?;
    let start = Instant::now();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = task?.path().join("stat");
        // Behind the name in parentheses.
        while !std::fs::read_to_string(&stat)?.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
            ensure!(start.elapsed() < STALL, "it does not stop");
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn thread_of(process: i32, name: &str) -> anyhow::Result<i32> {
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?;
        if std::fs::read_to_string(task.path().join("comm"))?.trim() == name {
            return Ok(task.file_name().to_string_lossy().parse()?);
        }
    }
    bail!("no thread {name}")
}

fn millis(took: Duration) -> anyhow::Result<u64> {
    Ok(u64::try_from(took.as_millis())?)
}
