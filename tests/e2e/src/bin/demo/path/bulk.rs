//! Bulk: past a node, and through two.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, ensure};
use e2e::pair::{Pair, Stand};
use lab::{Authority, Lab, LinkBehaviour, Place};

use super::talk::{self, Server, Way};
use super::{Figure, Gate, Task};
use crate::haproxy::{self, Haproxy};
use crate::process;

/// Bulk that no rule takes, past a node and past the same one when it is bypassed, which leaves no rule in the kernel. The
/// emulator would be the slowest on the way, so the server is on a network of the branch's router.
pub(super) fn passing(task: &Task<'_>) -> anyhow::Result<Vec<Figure>> {
    let lab = task.lab(LinkBehaviour::default())?;
    shortcut(&lab)?;
    let mut pair = Pair::identify(task.executable, &lab, &[Place::Branch])?;
    pair.start(&lab, Place::Branch, &Stand::routed(&["lan0", SHORT], "143"))?;
    let _server = Server::start(&lab)?;
    let to = SocketAddr::new(SERVER_SHORT.parse()?, talk::PORT);
    let (n, octets) = (task.n(40, 4), if task.quick { 50_000_000 } else { 400_000_000 });
    task.progress.begin(&format!("bulk past a node, rules in and out: {n} times"), n);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // Nobody's figure: caches and windows.
    talk::exchange_at(&lab, Place::Client, to, Way::Down, octets / 4)?;
    for nth in 0..n {
        let order = if nth.is_multiple_of(2) { ["off", "on"] } else { ["on", "off"] };
        for bypass in order {
            pair.ask(Place::Branch, &["bypass", bypass])?;
            let took = talk::exchange_at(&lab, Place::Client, to, Way::Down, octets)?.as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "megabytes")]
            let rate = octets as f64 * 8e-6 / took;
            if bypass == "on" { &mut without } else { &mut with }.push(rate);
        }
        task.progress.step();
    }
    // That the rules were there when they should be: the SYNs were seen, and passed as the rules say.
    let passed = pair.count(Place::Branch, "rule-pass")?;
    ensure!(
        passed >= u64::try_from(n)?,
        "the node saw {passed} of {n} connections: {}",
        pair.status(Place::Branch)?
    );
    Ok(vec![Figure {
        name: "bulk that is not taken, rules in / out".to_owned(),
        unit: "Mbit/s",
        ours: with,
        theirs: without,
        gate: Gate::LowLeast(0.95),
    }])
}

/// A cable from the branch's router to the server, and the way back over it.
fn shortcut(lab: &Lab) -> anyhow::Result<()> {
    let (branch, server) = (lab.namespace(Place::Branch), lab.namespace(Place::Server));
    for line in [
        format!("-n {branch} link add {SHORT} type veth peer name {SHORT} netns {server}"),
        format!("-n {branch} addr add {BRANCH_SHORT}/24 dev {SHORT}"),
        format!("-n {server} addr add {SERVER_SHORT}/24 dev {SHORT}"),
        format!("-n {branch} link set {SHORT} up"),
        format!("-n {server} link set {SHORT} up"),
        format!("-n {server} route add 10.81.1.0/24 via {BRANCH_SHORT}"),
    ] {
        let done = Command::new("ip").args(line.split(' ')).output()?;
        ensure!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

const SHORT: &str = "short0";
const BRANCH_SHORT: &str = "10.82.0.1";
const SERVER_SHORT: &str = "10.82.0.2";

/// CPU seconds per GB, both nodes' processes, and both of two haproxy that do the same with TLS between them.
pub(super) fn cpu(task: &Task<'_>) -> anyhow::Result<Vec<Figure>> {
    let lab = task.lab(LinkBehaviour::default())?;
    let _server = Server::start(&lab)?;
    let mut pair = Pair::identify(task.executable, &lab, &[Place::Centre, Place::Branch])?;
    pair.start(&lab, Place::Centre, &Stand::routed(&["lan0", "wan9"], talk::PORTS))?;
    pair.start(&lab, Place::Branch, &Stand::routed(&["lan0", "wan0"], talk::PORTS))?;
    let hops = Hops::start(&lab)?;
    let (n, octets) = (task.n(10, 2), if task.quick { 50_000_000 } else { 1_000_000_000 });
    task.progress.begin(&format!("bulk through the pair and through two haproxy: {n} times"), n);
    let nodes: Vec<u32> =
        [Place::Branch, Place::Centre].iter().flat_map(|place| pair.processes(*place)).collect();
    let server = SocketAddr::new(Place::Server.v4(), talk::PORT);
    // The two find each other.
    for _ in 0..3 {
        talk::exchange_at(&lab, Place::Client, server, Way::Down, 1_000_000)?;
        talk::exchange_at(&lab, Place::Client, hops.address, Way::Down, 1_000_000)?;
    }
    let carried = pair.count(Place::Branch, "carried")?;
    let mut figures = Vec::new();
    for (way, word) in [(Way::Down, "down"), (Way::Up, "up")] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..n {
            ours.push(cost(&lab, &nodes, server, way, octets)?);
            theirs.push(cost(&lab, &hops.processes(), hops.address, way, octets)?);
            task.progress.step();
        }
        let name = format!("bulk through the pair, {word}");
        figures.push(Figure { name, unit: "CPU-s/GB", ours, theirs, gate: Gate::RatioMost(1.4) });
    }
    let carried = pair.count(Place::Branch, "carried")? - carried;
    ensure!(carried >= 2 * u64::try_from(n)?, "only {carried} of {} connections were carried", 2 * n);
    Ok(figures)
}

fn cost(lab: &Lab, pids: &[u32], to: SocketAddr, way: Way, octets: u64) -> anyhow::Result<f64> {
    let rested = || pids.iter().map(|pid| process::rested_cpu_seconds(*pid)).sum::<anyhow::Result<f64>>();
    let before = rested()?;
    talk::exchange_at(lab, Place::Client, to, way, octets)?;
    #[expect(clippy::cast_precision_loss, reason = "a gigabyte")]
    let gigabytes = octets as f64 / 1e9;
    Ok((rested()? - before) / gigabytes)
}

/// A haproxy in the branch that clients are pointed at, TLS to one in the centre, and the server behind it.
struct Hops {
    branch: Haproxy,
    centre: Haproxy,
    address: SocketAddr,
}

impl Hops {
    fn start(lab: &Lab) -> anyhow::Result<Self> {
        let authority = Authority::create(&lab.directory().join("hop-ca"))?;
        let directory = |name: &str| {
            let directory = lab.directory().join(name);
            fs::create_dir_all(&directory).map(|()| directory)
        };
        let (near, far) = (directory("hop-branch")?, directory("hop-centre")?);
        let pem = haproxy::identity(&authority, NAME, &far)?;
        let (address, between) =
            (SocketAddr::new(Place::Branch.v4(), NEAR_PORT), SocketAddr::new(Place::Centre.v4(), FAR_PORT));
        let server = SocketAddr::new(Place::Server.v4(), talk::PORT);
        let config = format!(
            "frontend front\n  bind {between} ssl crt {}\n  default_backend back\nbackend back\n  server origin {server}\n",
            pem.display()
        );
        let centre = Haproxy::start(lab, Place::Centre, &far, &config, between).context("in the centre")?;
        let config = format!(
            "frontend front\n  bind {address}\n  default_backend back\n\
             backend back\n  server far {between} ssl verify required ca-file {} sni str({NAME}) verifyhost {NAME}\n",
            authority.certificate().display()
        );
        let branch = Haproxy::start(lab, Place::Branch, &near, &config, address).context("in the branch")?;
        Ok(Self { branch, centre, address })
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.branch.pid(), self.centre.pid()]
    }
}

const NAME: &str = "hop.lab.test";
const NEAR_PORT: u16 = 9_801;
const FAR_PORT: u16 = 9_802;
