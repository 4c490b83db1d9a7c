//! `deploy/bench`: the relay against haproxy, and memory beside the journeys. Everything runs in the branch's
//! namespace over loopback: neither the emulator nor a wire is measured.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use lab::{Authority, Lab, LabSpec, Place};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::arm::{Arm, IMAPS};
use crate::haproxy::{self, Haproxy};
use crate::origin::{ORIGIN, Origin, Sink};
use crate::process::{peak_octets, rested_cpu_seconds};
use crate::progress::Progress;
use crate::stats::{self, Paired};
use crate::tamper;
use crate::waypost::{Store, Waypost};

/// A lab without mail: the scripted server is in the branch.
pub(crate) struct Bench {
    pub(crate) authority: Authority,
    roots: Arc<RootCertStore>,
    pub(crate) lab: Lab,
}

impl Bench {
    pub(crate) fn build(prefix: String) -> anyhow::Result<Self> {
        Self::over(prefix, LabSpec::new(0.0, 0.0))
    }

    /// Where the line matters.
    pub(crate) fn over(prefix: String, line: LabSpec) -> anyhow::Result<Self> {
        let lab = Lab::build(LabSpec { prefix: Some(prefix), ..line })?;
        let authority = Authority::create(&lab.directory().join("ca"))?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.certificate())?)?;
        Ok(Self { authority, roots: Arc::new(roots), lab })
    }

    fn node(&self, executable: &Path, name: &str, sealed: bool, size_max: &str) -> anyhow::Result<Waypost> {
        let store = Store {
            sealed,
            origin: ORIGIN,
            store_lines: format!("size_max = \"{size_max}\"\n"),
            ..Store::plain(name)
        };
        Waypost::start(&self.lab, &self.authority, executable, &store)
    }
}

/// A row of `imap`.
pub(crate) struct Measured {
    /// For programs.
    pub(crate) json: Value,
    /// The gates that it broke, a sentence each.
    pub(crate) broken: Vec<String>,
}

/// What carries the literal.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Carrier {
    name: &'static str,
    /// The most that its CPU may be of haproxy's.
    target: Option<f64>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Haproxy,
    Waypost { sealed: bool, size_max: &'static str },
}

/// A store that is smaller than the message takes nothing of it: the relay alone.
const TOO_SMALL: &str = "64 MiB";
const ROOMY: &str = "20 GiB";

const CARRIERS: [Carrier; 5] = [
    Carrier { name: "haproxy", target: None, kind: Kind::Haproxy },
    Carrier {
        name: "waypost, without tee, plain",
        target: Some(1.25),
        kind: Kind::Waypost { sealed: false, size_max: TOO_SMALL },
    },
    Carrier {
        name: "waypost, without tee, sealed",
        target: Some(1.25),
        kind: Kind::Waypost { sealed: true, size_max: TOO_SMALL },
    },
    Carrier {
        name: "waypost, with tee, plain",
        target: Some(1.7),
        kind: Kind::Waypost { sealed: false, size_max: ROOMY },
    },
    Carrier {
        name: "waypost, with tee, sealed",
        target: None,
        kind: Kind::Waypost { sealed: true, size_max: ROOMY },
    },
];

/// One literal of so many octets through each carrier in turn, `rounds` times.
pub(crate) fn relay(executable: &Path, prefix: String, octets: u64, rounds: usize) -> anyhow::Result<Value> {
    let progress = Progress::new();
    let bench = Bench::build(prefix)?;
    let _origin = Origin::start(&bench.lab, &bench.authority, octets)?;
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); CARRIERS.len()];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); CARRIERS.len()];
    progress.begin("one literal through each carrier", rounds * CARRIERS.len());
    for round in 0..rounds {
        for turn in 0..CARRIERS.len() {
            let nth = (round + turn) % CARRIERS.len();
            let (Some(carrier), Some(cost), Some(rate)) =
                (CARRIERS.get(nth), costs.get_mut(nth), rates.get_mut(nth))
            else {
                continue;
            };
            let carried =
                carry(&bench, executable, carrier.kind, octets).with_context(|| carrier.name.to_owned())?;
            cost.push(carried.cpu_per_gb);
            rate.push(carried.octets_per_second / 1e6);
            progress.step();
        }
    }
    drop(progress);
    let haproxy = costs.first().cloned().unwrap_or_default();
    println!(
        "{:<30} {:>3} {:>16} {:>8} {:>24} {:>10}",
        "carrier", "n", "CPU-s per GB", "spread", "ratio to haproxy", "target"
    );
    let mut rows = Vec::new();
    for ((carrier, cost), rate) in CARRIERS.iter().zip(&costs).zip(&rates) {
        let ratios: Vec<f64> =
            cost.iter().zip(&haproxy).map(|(ours, theirs)| ours / theirs.max(1e-9)).collect();
        let Paired { median, lo, hi } = stats::paired(&ratios);
        println!(
            "{:<30} {:>3} {:>16.3} {:>8.3} {:>24} {:>10}",
            carrier.name,
            cost.len(),
            stats::median(cost),
            stats::spread(cost),
            format!("{median:.2} ({lo:.2} to {hi:.2})"),
            carrier.target.map_or_else(|| "-".to_owned(), |target| format!("<= {target}")),
        );
        rows.push(json!({
            "name": carrier.name, "n": cost.len(), "octets": octets,
            "cpu_s_per_gb": {"median": stats::median(cost), "spread": stats::spread(cost)},
            "ratio_haproxy": {"median": median, "lo": lo, "hi": hi},
            "target": carrier.target, "megabytes_per_s": stats::median(rate),
        }));
    }
    Ok(json!({"version": 1, "bench": "relay", "rows": rows}))
}

struct Carried {
    cpu_per_gb: f64,
    octets_per_second: f64,
}

fn carry(bench: &Bench, executable: &Path, kind: Kind, octets: u64) -> anyhow::Result<Carried> {
    match kind {
        Kind::Haproxy => {
            let haproxy = haproxy(bench)?;
            let address = SocketAddr::new(Place::Branch.v4(), HAPROXY_PORT);
            measure(bench, address, haproxy.pid(), octets)
        }
        Kind::Waypost { sealed, size_max } => {
            let node = bench.node(executable, "relay", sealed, size_max)?;
            let carried = measure(bench, Arm::Waypost.address(), node.pid(), octets)?;
            let stored_octets = octets_below(&node.store())?;
            let directory = node.directory().to_owned();
            drop(node);
            // A cold store each time, and the disk's room back.
            fs::remove_dir_all(directory)?;
            let tee = size_max == ROOMY;
            ensure!(
                tee == (stored_octets >= octets),
                "{stored_octets} of {octets} octets were stored: that is not the row that it should be"
            );
            Ok(carried)
        }
    }
}

fn octets_below(directory: &Path) -> anyhow::Result<u64> {
    let files = tamper::files_below(directory)?;
    Ok(files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum())
}

fn measure(bench: &Bench, address: SocketAddr, pid: u32, octets: u64) -> anyhow::Result<Carried> {
    let mut sink = Sink::open(&bench.lab, &bench.roots, address)?;
    let before = rested_cpu_seconds(pid)?;
    let start = Instant::now();
    let came = sink.command("UID FETCH 1 (UID BODY.PEEK[])")?;
    let took = start.elapsed().as_secs_f64();
    ensure!(came > octets, "{came} octets came of {octets}");
    let cpu = rested_cpu_seconds(pid)? - before;
    #[expect(clippy::cast_precision_loss, reason = "a gigabyte")]
    let octets = octets as f64;
    Ok(Carried { cpu_per_gb: cpu / (octets / 1e9), octets_per_second: octets / took })
}

const HAPROXY_PORT: u16 = 9_931;

/// With TLS on both sides.
fn haproxy(bench: &Bench) -> anyhow::Result<Haproxy> {
    let directory = bench.lab.directory().join("haproxy");
    fs::create_dir_all(&directory)?;
    let pem = haproxy::identity(&bench.authority, lab::net::DOVECOT, &directory)?;
    let address = SocketAddr::new(Place::Branch.v4(), HAPROXY_PORT);
    let config = format!(
        "frontend front\n  bind {address} ssl crt {pem}\n  default_backend back\n\
         backend back\n  server origin {ORIGIN} ssl verify required ca-file {ca} sni str({name}) verifyhost {name}\n",
        pem = pem.display(),
        ca = bench.authority.certificate().display(),
        name = lab::net::DOVECOT,
    );
    Haproxy::start(&bench.lab, Place::Branch, &directory, &config, address)
}

/// A message of 52 MB through a fresh node, one to eight at once: how its peak memory grows with each session.
pub(crate) fn memory(executable: &Path, prefix: String, rounds: usize) -> anyhow::Result<Value> {
    let progress = Progress::new();
    let bench = Bench::build(prefix)?;
    let _origin = Origin::start(&bench.lab, &bench.authority, LARGE_OCTETS)?;
    progress.begin("52 MB through the node, 1 to 8 at once", rounds * SESSIONS_MAX);
    let mut points = Vec::new();
    for _ in 0..rounds {
        for sessions in 1..=SESSIONS_MAX {
            let node = bench.node(executable, "memory", false, ROOMY)?;
            let peak = at_once(&bench, node.pid(), sessions)?;
            let directory = node.directory().to_owned();
            drop(node);
            fs::remove_dir_all(directory)?;
            points.push((sessions, peak));
            progress.step();
        }
    }
    drop(progress);
    #[expect(clippy::cast_precision_loss, reason = "memory of one process")]
    let fitted: Vec<(f64, f64)> =
        points.iter().map(|(sessions, peak)| (*sessions as f64, *peak as f64 / 1_048_576.0)).collect();
    let slope = stats::slope(&fitted);
    println!("\n{:<44} {:>3} {:>10}", "52 MB message, 1 to 8 at once", "n", "");
    for sessions in 1..=SESSIONS_MAX {
        #[expect(clippy::cast_precision_loss, reason = "1 to 8")]
        let at = sessions as f64;
        let peaks: Vec<f64> =
            fitted.iter().filter(|(x, _)| (x - at).abs() < 0.5).map(|(_, peak)| *peak).collect();
        println!(
            "{:<44} {:>3} {:>6.1} MiB",
            format!("  peak memory (VmHWM) at {sessions}"),
            peaks.len(),
            stats::median(&peaks)
        );
    }
    println!("{:<44} {:>3} {slope:>6.2} MiB (to reach: <= 2)", "  slope, each session more", fitted.len());
    Ok(json!({
        "name": "memory-52mb", "octets": LARGE_OCTETS, "n": fitted.len(), "slope_mib_per_session": slope, "target": 2.0,
        "points": fitted.iter().map(|(sessions, peak)| json!({"sessions": sessions, "peak_mib": peak})).collect::<Vec<_>>(),
    }))
}

const LARGE_OCTETS: u64 = 52_000_000;
const SESSIONS_MAX: usize = 8;

fn at_once(bench: &Bench, pid: u32, sessions: usize) -> anyhow::Result<u64> {
    // Warm: the first session pays for what a process has once.
    Sink::open(&bench.lab, &bench.roots, SocketAddr::new(Place::Branch.v4(), IMAPS))?.command("NOOP")?;
    let mut sinks = Vec::new();
    for _ in 0..sessions {
        sinks.push(Sink::open(&bench.lab, &bench.roots, SocketAddr::new(Place::Branch.v4(), IMAPS))?);
    }
    let start = Barrier::new(sessions);
    std::thread::scope(|scope| {
        let running: Vec<_> = sinks
            .iter_mut()
            .enumerate()
            .map(|(nth, sink)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    // Messages of their own: nobody waits for another's fetch.
                    sink.command(&format!("UID FETCH {} (UID BODY.PEEK[])", nth + 1))
                })
            })
            .collect();
        for one in running {
            match one.join() {
                Ok(came) => ensure!(came? > LARGE_OCTETS, "a message came short"),
                Err(_) => bail!("a client's thread panicked"),
            }
        }
        Ok(())
    })?;
    peak_octets(pid)
}

/// Writes a bench's result where it is wanted.
pub(crate) fn write(file: Option<&Path>, result: &Value) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let mut out = fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    serde_json::to_writer_pretty(&mut out, result)?;
    Ok(writeln!(out)?)
}
