//! A deflector on the path and proxies off it, each box in a namespace of its own: two proxies behind a router, two
//! servers. Both ends see each other's true addresses; with the rule gone no proxy sees anything.
//!
//! ```text
//! client ─ br ═ WAN ═ dc (the deflector) ─┬─ server, lan (the second server)
//!                                         └─ router ─┬─ proxy 1
//!                                                    └─ proxy 2
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use lab::{Lab, Place};

use super::pair::{Capture, Client, ECHO, Nodes, STALL, echo, noise, text, wan_device};
use crate::case::Case;
use crate::waypost::{Waypost, tail};

/// The router and the proxies behind it. All of it goes with the value.
pub(super) struct Yard<'l> {
    lab: &'l Lab,
    case: &'l Case,
    v6: bool,
    pub(super) proxies: [Option<Waypost>; 2],
}

const ROUTER: &str = "dfr";
const PROXIES: [&str; 2] = ["dfp1", "dfp2"];

fn named(n: usize) -> &'static str {
    let [first, second] = PROXIES;
    if n == 0 { first } else { second }
}

fn proxy_address(n: usize, v6: bool) -> IpAddr {
    yard_address(if n == 0 { 21 } else { 22 }, 2, v6)
}

/// Host of a network behind the deflector.
fn yard_address(net: u8, host: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x81, 0, net.into(), 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(10, 81, net, host).into()
    }
}

/// The servers' network.
fn servers_network(v6: bool) -> &'static str {
    if v6 { "fd00:81:0:2::/64" } else { "10.81.2.0/24" }
}

impl<'l> Yard<'l> {
    fn build(case: &'l Case, lab: &'l Lab, nodes: &Nodes<'_>, v6: bool) -> anyhow::Result<Self> {
        let yard = Self { lab, case, v6, proxies: [None, None] };
        let (centre, router) = (lab.namespace(Place::Centre), yard.name(ROUTER));
        let proxies = PROXIES.map(|proxy| yard.name(proxy));
        for name in [&router].into_iter().chain(&proxies) {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        let join = |left: &str, inside: &str, right: &str, outside: &str, net: u8| {
            ip(&format!("-n {left} link add {inside} type veth peer name {outside} netns {right}"))?;
            for (name, device, host) in [(left, inside, 1), (right, outside, 2)] {
                ip(&format!("-n {name} addr add {}/24 dev {device}", yard_address(net, host, false)))?;
                ip(&format!("-n {name} addr add {}/64 dev {device} nodad", yard_address(net, host, true)))?;
                ip(&format!("-n {name} link set {device} up"))?;
            }
            Ok::<_, anyhow::Error>(())
        };
        join(&centre, "pr0", &router, "eth0", 20)?;
        let default = |name: &str, net: u8| {
            [false, true].into_iter().try_for_each(|v6| {
                let via = yard_address(net, 1, v6);
                ip(&format!("-n {name} {} route add default via {via}", if v6 { "-6" } else { "-4" }))
            })
        };
        default(&router, 20)?;
        for (proxy, net) in proxies.iter().zip([21, 22]) {
            join(&router, &format!("to{net}"), proxy, "eth0", net)?;
            default(proxy, net)?;
            let via = [false, true].map(|v6| yard_address(20, 2, v6));
            ip(&format!("-n {centre} route add 10.81.{net}.0/24 via {}", via[0]))?;
            ip(&format!("-n {centre} -6 route add fd00:81:0:{net:x}::/64 via {}", via[1]))?;
        }
        let mut sysctl = yard.command(ROUTER, "sysctl");
        done(sysctl.args(["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]))?;
        let authority = lab.directory().join("node-ca");
        for proxy in PROXIES {
            let directory = yard.directory(proxy);
            std::fs::create_dir_all(&directory)?;
            let token = nodes.run(&["token", "new", "--id", proxy, "--ca-dir", text(&authority)?])?;
            std::fs::write(directory.join("token"), token)?;
            nodes.run(&["join", text(&directory.join("token"))?, "--state-dir", text(&directory)?])?;
        }
        Ok(yard)
    }

    fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.lab.prefix())
    }

    fn directory(&self, proxy: &str) -> PathBuf {
        self.lab.directory().join(format!("node-{proxy}"))
    }

    fn command(&self, of: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(of), program]).env("LC_ALL", "C.UTF-8");
        command
    }

    fn start_proxy(&mut self, n: usize) -> anyhow::Result<()> {
        let proxy = named(n);
        let directory = self.directory(proxy);
        let (deflector, network) =
            (SocketAddr::new(yard_address(20, 1, self.v6), 7782), servers_network(self.v6));
        let config = format!(
            "version = 1\n[node]\nid = {proxy:?}\nstate_dir = {directory:?}\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
             [link]\nlisten = \"[::]:7782\"\n[off_path]\ndeflector = \"dc\"\n\
             [[peer]]\nid = \"dc\"\naddress = \"{deflector}\"\n[[peer]]\nid = \"br\"\nmay_open = [{network:?}]\n"
        );
        let command = self.command(proxy, text(&self.case.executable)?);
        let started = Some(run_node(self.case, command, &directory, &config)?);
        let [first, second] = &mut self.proxies;
        *(if n == 0 { first } else { second }) = started;
        Ok(())
    }

    /// Connections to the proxy, and from it to the deflector's doors, seen at the proxy's own wire.
    fn watch(&self, n: usize) -> anyhow::Result<Capture> {
        Capture::of(
            self.command(named(n), "tcpdump"),
            "eth0",
            "(tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn or (ip6 and ip6[6] == 6 and ip6[53] & 0x12 == 2)) and not port 7782",
        )
    }
}

impl Drop for Yard<'_> {
    fn drop(&mut self) {
        self.proxies = [None, None];
        for of in [ROUTER].into_iter().chain(PROXIES) {
            drop(ip(&format!("netns del {}", self.name(of))));
        }
    }
}

pub(super) fn run_node(
    case: &Case,
    mut command: Command,
    directory: &Path,
    config: &str,
) -> anyhow::Result<Waypost> {
    let file = directory.join("waypost.toml");
    std::fs::write(&file, config)?;
    command.arg("run").arg("-c").arg(file);
    let mut node = Waypost::spawn(case, command)?;
    let start = Instant::now();
    while !node.watch.text().contains("\"ready\"") {
        node.still_runs()?;
        ensure!(start.elapsed() < STALL, "not ready:\n{}", tail(&node.watch.text()));
        thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(node)
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    done(Command::new("ip").args(arguments.split(' ')))
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Both servers say whom they see.
pub(super) fn servers(lab: &Lab, v6: bool) -> anyhow::Result<[IpAddr; 2]> {
    let of = |place: Place| if v6 { place.v6() } else { place.v4() };
    for place in [Place::Server, Place::Lan] {
        let at = of(place);
        let listener = lab.inside(place, move || TcpListener::bind((at, ECHO)))??;
        thread::spawn(move || {
            while let Ok((stream, from)) = listener.accept() {
                thread::spawn(move || echo(stream, from));
            }
        });
    }
    Ok([of(Place::Server), of(Place::Lan)])
}

fn start_deflector(
    nodes: &mut Nodes<'_>,
    lab: &Lab,
    mode: &str,
    action: &str,
    v6: bool,
) -> anyhow::Result<()> {
    let wan = wan_device(lab, Place::Centre)?;
    let peers: String = PROXIES
        .iter()
        .enumerate()
        .map(|(n, proxy)| {
            let at = SocketAddr::new(proxy_address(n, v6), 7782);
            format!("[[peer]]\nid = {proxy:?}\naddress = \"{at}\"\n")
        })
        .collect();
    let network = servers_network(v6);
    let rest = format!(
        "[[rule]]\naction = {action:?}\nports = [{ECHO}]\nservers = [{network:?}]\n\
         [deflector]\nmode = {mode:?}\nproxies = [\"dfp1\", \"dfp2\"]\n{peers}"
    );
    nodes.start_with(Place::Centre, &format!("interfaces = [\"lan0\", {wan:?}, \"pr0\"]"), &rest)
}

pub(super) fn figure(nodes: &Nodes<'_>, key: &str) -> anyhow::Result<u64> {
    let status = nodes.status(Place::Centre)?;
    status
        .get("deflector")
        .and_then(|all| all.get(key)?.as_u64())
        .with_context(|| format!("no {key} in {status}"))
}

pub(super) fn wait_ready(nodes: &Nodes<'_>, ready: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    while figure(nodes, "ready")? != ready {
        ensure!(start.elapsed() < STALL, "{ready} proxies are not there: {}", figure(nodes, "ready")?);
        thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

/// A deflector of this kind, and both proxies at work.
pub(super) fn stand<'l>(
    case: &'l Case,
    lab: &'l Lab,
    mode: &str,
    v6: bool,
) -> anyhow::Result<(Nodes<'l>, Yard<'l>)> {
    let mut nodes = Nodes::of(case, lab)?;
    let mut yard = Yard::build(case, lab, &nodes, v6)?;
    start_deflector(&mut nodes, lab, mode, "intercept", v6)?;
    for n in [0, 1] {
        yard.start_proxy(n)?;
    }
    wait_ready(&nodes, 2)?;
    Ok((nodes, yard))
}

/// How many SYNs were seen.
fn syns(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains("Flags [S]")).count()
}

/// One connection to a server, through it and back; both ends see the truth.
fn served(lab: &Lab, server: IpAddr) -> anyhow::Result<()> {
    let mut client = Client::connect(lab, server)?;
    client.sees_the_truth(server)?;
    client.echoes(&noise(300_000))?;
    client.ends()
}

/// What a server's wire shows of other hosts than the client.
fn strangers(lines: &[String]) -> usize {
    lines
        .iter()
        .filter(|line| line.contains(&format!(".{ECHO}")))
        .filter(|line| {
            [Place::Client.v4(), Place::Client.v6()].iter().all(|ip| !line.contains(&format!("{ip}.")))
        })
        .count()
}

fn at_server(lab: &Lab) -> anyhow::Result<Capture> {
    Capture::of(lab.command(Place::Server, "tcpdump"), "eth0", &format!("tcp port {ECHO}"))
}

/// Clients' SYNs are turned to a proxy, which learns the server from an option, or by asking.
pub(crate) fn by_turning(case: &Case) -> anyhow::Result<()> {
    turning(case, false)
}

/// The same over IPv6, whose addresses do not fit into a SYN's options beside those that it has: the proxy asks.
pub(crate) fn by_turning_v6(case: &Case) -> anyhow::Result<()> {
    turning(case, true)
}

fn turning(case: &Case, v6: bool) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let servers = servers(&lab, v6)?;
    let (mut nodes, yard) = stand(case, &lab, "static", v6)?;
    let (first, second, wire) = (yard.watch(0)?, yard.watch(1)?, at_server(&lab)?);
    for server in servers {
        served(&lab, server)?;
    }
    // One that lives while new ones flow past, and while they are taken again.
    let mut live = Client::connect(&lab, servers[0])?;
    live.echoes(&noise(100_000))?;
    nodes.node(Place::Centre)?.watch.announce("bypass");
    for switch in ["on", "off"] {
        nodes.bypass(Place::Centre, switch)?;
        live.echoes(&noise(100_000))?;
    }
    live.ends()?;
    let (first, second, wire) = (first.lines()?, second.lines()?, wire.lines()?);
    let seen = syns(&first);
    // One in, one out, for each of three connections.
    ensure!(seen == 6, "the primary has seen {seen} SYNs: {first:?}");
    ensure!(syns(&second) == 0, "the other proxy: {second:?}");
    ensure!(strangers(&wire) == 0 && wire.len() > 4, "the server's wire: {} strangers", strangers(&wire));
    ensure!(
        figure(&nodes, "deflected")? == 3 && figure(&nodes, "past")? == 0,
        "{}",
        nodes.status(Place::Centre)?
    );
    let log = yard.proxies[0].as_ref().context("the primary")?.watch.text();
    let (by_option, asked) =
        (log.matches("\"by_option\":true").count(), log.matches("\"by_option\":false").count());
    let expected = if v6 { (0, 3) } else { (3, 0) };
    ensure!((by_option, asked) == expected, "the option told {by_option} servers, {asked} were asked for");
    control(&mut nodes, &lab, &yard, "static", servers)
}

/// Clients' nodes are told of a proxy, and carry connections to it over their link.
pub(crate) fn by_telling(case: &Case) -> anyhow::Result<()> {
    telling(case, false)
}

/// The same over IPv6.
pub(crate) fn by_telling_v6(case: &Case) -> anyhow::Result<()> {
    telling(case, true)
}

fn telling(case: &Case, v6: bool) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let servers = servers(&lab, v6)?;
    let (mut nodes, mut yard) = stand(case, &lab, "discovering", v6)?;
    nodes.start_for(Place::Branch, "intercept", &ECHO.to_string())?;
    let (first, wire) = (yard.watch(0)?, at_server(&lab)?);
    for server in servers {
        // The first one finds the proxy, the second one knows it.
        served(&lab, server)?;
        served(&lab, server)?;
    }
    let (first, wire) = (first.lines()?, wire.lines()?);
    let out = syns(&first);
    ensure!(out == 4, "the proxy has dialled {out} times: {first:?}");
    ensure!(strangers(&wire) == 0 && wire.len() > 4, "the server's wire: {} strangers", strangers(&wire));
    let carried = nodes.count(Place::Branch, "carried")?;
    ensure!(carried == 4, "the client's node carried {carried} of 4");
    ensure!(figure(&nodes, "servers")? > 0 && figure(&nodes, "clients")? == 0, "one kind of rule only");
    // A proxy that dies: its clients' node asks the path again and is told of the other one.
    yard.proxies[0].as_mut().context("the primary")?.kill()?;
    wait_ready(&nodes, 1)?;
    let second = yard.watch(1)?;
    let start = Instant::now();
    for server in servers {
        served(&lab, server)?;
    }
    case.note("after-the-primary-died-ms", u64::try_from(start.elapsed().as_millis())?);
    let second = second.lines()?;
    let out = syns(&second);
    ensure!(out >= 1, "the second proxy has dialled nobody");
    case.note("taken-by-the-second", out);
    let now = nodes.count(Place::Branch, "carried")?;
    ensure!(
        now == carried + u64::try_from(out)?,
        "the client's node carried {now} after {carried}, and the second proxy has dialled {out} times"
    );
    nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Branch)?.wait(STALL)?;
    control(&mut nodes, &lab, &yard, "discovering", servers)
}

/// The primary dies: new connections go to the other one, from the first on, before it is known that the primary is gone; and
/// without any to the servers themselves.
pub(crate) fn fails_over(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let servers = servers(&lab, false)?;
    let (nodes, mut yard) = stand(case, &lab, "static", false)?;
    served(&lab, servers[0])?;
    let second = yard.watch(1)?;
    yard.proxies[0].as_mut().context("the primary")?.kill()?;
    for server in servers {
        served(&lab, server)?;
    }
    wait_ready(&nodes, 1)?;
    let seen = syns(&second.lines()?);
    ensure!(seen == 4, "the second proxy has seen {seen} SYNs");
    yard.proxies[1].as_mut().context("the second")?.kill()?;
    wait_ready(&nodes, 0)?;
    for server in servers {
        served(&lab, server)?;
    }
    ensure!(
        figure(&nodes, "past")? == 2 && figure(&nodes, "deflected")? == 3,
        "{}",
        nodes.status(Place::Centre)?
    );
    yard.start_proxy(0)?;
    wait_ready(&nodes, 1)?;
    let first = yard.watch(0)?;
    served(&lab, servers[1])?;
    ensure!(
        first.lines()?.iter().any(|line| line.contains("Flags [S]")),
        "the primary is back and has nothing"
    );
    Ok(())
}

/// With the rule gone nothing comes to a proxy, and everything flows.
fn control(
    nodes: &mut Nodes<'_>,
    lab: &Lab,
    yard: &Yard<'_>,
    mode: &str,
    servers: [IpAddr; 2],
) -> anyhow::Result<()> {
    nodes.node(Place::Centre)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Centre)?.wait(STALL)?;
    start_deflector(nodes, lab, mode, "pass", yard.v6)?;
    let (first, second) = (yard.watch(0)?, yard.watch(1)?);
    for server in servers {
        served(lab, server)?;
    }
    let seen: Vec<String> = first.lines()?.into_iter().chain(second.lines()?).collect();
    ensure!(seen.iter().all(|line| !line.contains("Flags [S]")), "without the rule: {seen:?}");
    Ok(())
}

/// A node beside the servers, not on their path, that the operator named for them: transparent at the client's node only.
pub(crate) fn hybrid(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    let mut nodes = Nodes::of(case, &lab)?;
    let listener = lab.inside(Place::Server, || TcpListener::bind((Place::Server.v4(), ECHO)))??;
    thread::spawn(move || {
        while let Ok((stream, from)) = listener.accept() {
            thread::spawn(move || echo(stream, from));
        }
    });
    let (directory, authority) = (nodes.directory(Place::Lan), lab.directory().join("node-ca"));
    std::fs::create_dir_all(&directory)?;
    let token = nodes.run(&["token", "new", "--id", "lan", "--ca-dir", text(&authority)?])?;
    std::fs::write(directory.join("token"), token)?;
    nodes.run(&["join", text(&directory.join("token"))?, "--state-dir", text(&directory)?])?;
    let config = format!(
        "version = 1\n[node]\nid = \"lan\"\nstate_dir = {directory:?}\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [link]\nlisten = \"[::]:7782\"\n[[peer]]\nid = \"br\"\nmay_open = [\"10.81.2.0/24\"]\n"
    );
    let command = lab.command(Place::Lan, &case.executable);
    let _beside = run_node(case, command, &directory, &config)?;
    let far = Place::Lan.v4();
    for (action, seen_as) in [("intercept", far), ("pass", Place::Client.v4())] {
        let rules = format!(
            "[[rule]]\naction = {action:?}\nports = [{ECHO}]\n\
             [[peer]]\nid = \"lan\"\naddress = \"{far}:7782\"\nservers = [\"10.81.2.0/24\"]\n"
        );
        nodes.start_with(Place::Branch, "", &rules)?;
        let start = Instant::now();
        loop {
            let mut client = Client::connect(&lab, Place::Server.v4())?;
            client.echoes(&noise(100_000))?;
            let whom = client.seen_as().to_owned();
            ensure!(client.peer()? == (Place::Server.v4(), ECHO).into(), "the client sees another server");
            client.ends()?;
            if whom.starts_with(&format!("{seen_as}:")) {
                break;
            }
            // The first ones may come before the link stands.
            ensure!(start.elapsed() < STALL, "{action}: the server sees {whom} and not {seen_as}");
        }
        ensure!((nodes.count(Place::Branch, "static-hit")? > 0) == (action == "intercept"), "{action}");
        nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
        nodes.node(Place::Branch)?.wait(STALL)?;
    }
    Ok(())
}
