//! How long a connection takes to stand, and how long until the server's first octet, beside one that no node touches:
//! the second branch's, over a line of the same kind. Each is measured in turn with the others.

#![allow(clippy::print_stdout, reason = "a command-line tool speaks to its terminal")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Lab, LabSpec, Place};

use crate::case::Case;
use crate::scenarios::pair::Nodes;

const STALL: Duration = Duration::from_secs(20);
const FIRST_PORT: u16 = 9000;
/// Each connection through the pair goes to a port of which nothing is known yet, and then to it again.
const PORTS_MAX: u16 = 1000;

/// Milliseconds to the connection, and to the server's first octet.
type Times = (f64, f64);

/// Prints the table: `n` of each.
///
/// # Errors
/// When the lab cannot be built, or a connection fails.
pub fn connects(executable: &Path, prefix: &str, n: u16) -> anyhow::Result<()> {
    ensure!((1..=PORTS_MAX / 2).contains(&n), "n is 1 to {}", PORTS_MAX / 2);
    let directory = std::env::temp_dir().join(format!("waypost-connects-{prefix}"));
    let case = Case::new(executable, prefix.to_owned(), directory)?;
    let spec = LabSpec { prefix: Some(prefix.to_owned()), ..LabSpec::new(40.0, 100.0) };
    let lab = Lab::build(spec.with_second_branch())?;
    serve(&lab)?;
    let ports = format!("\"{FIRST_PORT}-{}\"", FIRST_PORT + PORTS_MAX - 1);
    let mut nodes = Nodes::of(&case, &lab)?;
    nodes.start_for(Place::Centre, "intercept", &ports)?;
    nodes.start_for(Place::Branch, "intercept", &ports)?;
    // The link stands before the first is timed.
    connect(&lab, Place::Client, FIRST_PORT + PORTS_MAX - 1)?;
    thread::sleep(Duration::from_secs(1));
    let mut all: BTreeMap<&str, Vec<(Times, Times)>> = BTreeMap::new();
    for nth in 0..n {
        let port = FIRST_PORT + nth;
        for arm in ["pair, probe", "pair, known"] {
            let direct = connect(&lab, Place::Client2, port)?;
            let through = connect(&lab, Place::Client, port)?;
            all.entry(arm).or_default().push((direct, through));
        }
    }
    let carried = nodes.count(Place::Branch, "carried")?;
    ensure!(carried > 2 * u64::from(n), "only {carried} of {} were carried", 2 * n + 1);
    nodes.node(Place::Centre)?.kill()?;
    nodes.node(Place::Branch)?.kill()?;
    nodes.start_for(Place::Branch, "intercept", &ports)?;
    for nth in 0..n {
        let port = FIRST_PORT + PORTS_MAX / 2 - 1 + nth;
        let direct = connect(&lab, Place::Client2, port)?;
        let through = connect(&lab, Place::Client, port)?;
        all.entry("no peer").or_default().push((direct, through));
    }
    println!("{n} of each, 40 ms; milliseconds; what a node adds is the median of the paired differences");
    println!(
        "{:<12} {:>22} {:>22} {:>8} {:>8}",
        "", "connect direct/node", "first octet direct/node", "adds", "adds"
    );
    for (arm, times) in &all {
        let column = |pick: fn(&(Times, Times)) -> f64| quantiles(times.iter().map(pick).collect());
        let (direct, direct95) = column(|t| t.0.0);
        let (node, node95) = column(|t| t.1.0);
        let (first, _) = column(|t| t.0.1);
        let (first_node, first95) = column(|t| t.1.1);
        let (added, _) = column(|t| t.1.0 - t.0.0);
        let (added_first, _) = column(|t| t.1.1 - t.0.1);
        println!(
            "{arm:<12} {direct:>6.1} ({direct95:.1})/{node:.1} ({node95:.1}) {first:>10.1}/{first_node:.1} ({first95:.1}) {added:>8.2} {added_first:>8.2}"
        );
    }
    Ok(())
}

/// Each port says a word at once.
fn serve(lab: &Lab) -> anyhow::Result<()> {
    for port in FIRST_PORT..FIRST_PORT + PORTS_MAX {
        let at = SocketAddr::new(Place::Server.v4(), port);
        let listener = lab.inside(Place::Server, move || TcpListener::bind(at))??;
        thread::Builder::new().stack_size(64 << 10).spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                // Who is gone is gone.
                let _ = stream.write_all(b"!");
            }
        })?;
    }
    Ok(())
}

fn connect(lab: &Lab, place: Place, port: u16) -> anyhow::Result<Times> {
    let at = SocketAddr::new(Place::Server.v4(), port);
    let timed = lab.inside(place, move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&at, STALL)?;
        let connected = start.elapsed();
        stream.set_read_timeout(Some(STALL))?;
        stream.read_exact(&mut [0])?;
        Ok::<_, std::io::Error>((connected, start.elapsed()))
    })?;
    let (connected, first) = timed.with_context(|| format!("{} to port {port}", place.name()))?;
    Ok((connected.as_secs_f64() * 1e3, first.as_secs_f64() * 1e3))
}

/// The median and the 95th percentile.
fn quantiles(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |part: usize| samples.get(samples.len() * part / 100).copied().unwrap_or(f64::NAN);
    (at(50), at(95))
}
