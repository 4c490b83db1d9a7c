//! How long a connection takes to stand, and how long until the server's first octet, beside one that no node touches:
//! another branch's, over a line of the same kind. Each is measured in turn with the others.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::pair::{Pair, Stand};
use lab::{Behaviour, Lab, LinkBehaviour, Place};
use serde_json::{Value, json};

use crate::progress::Progress;
use crate::stats::{self, Paired};

/// Milliseconds to the connection, and to the server's first octet.
#[derive(Debug, Clone, Copy)]
struct Times {
    connected: f64,
    first: f64,
}

/// Where the two nodes of the pair stand, and how.
#[derive(Debug, Clone)]
pub(crate) struct Stands {
    pub(crate) centre: (Place, Stand),
    pub(crate) branch: (Place, Stand),
}

impl Stands {
    /// In the order in which they start.
    pub(crate) fn both(&self) -> [&(Place, Stand); 2] {
        [&self.centre, &self.branch]
    }
}

/// One journey of connections: the nth of both were made one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Timed {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    /// Milliseconds that a node may add in the median.
    pub(crate) adds_max: Option<f64>,
    pub(crate) direct: Vec<f64>,
    pub(crate) through: Vec<f64>,
}

impl Timed {
    fn new(
        name: &'static str,
        meaning: &'static str,
        adds_max: Option<f64>,
        pairs: &[(Times, Times)],
        pick: fn(&Times) -> f64,
    ) -> Self {
        Self {
            name,
            meaning,
            adds_max,
            direct: pairs.iter().map(|(direct, _)| pick(direct)).collect(),
            through: pairs.iter().map(|(_, through)| pick(through)).collect(),
        }
    }

    /// What the nodes add: the median of the paired differences.
    pub(crate) fn adds(&self) -> Paired {
        let differences: Vec<f64> =
            self.direct.iter().zip(&self.through).map(|(direct, through)| through - direct).collect();
        stats::paired(&differences)
    }

    /// Whether it is as it should be, where something is to be reached.
    pub(crate) fn holds(&self) -> Option<bool> {
        self.adds_max.map(|most| self.adds().median <= most)
    }

    pub(crate) fn json(&self) -> Value {
        let column = |samples: &[f64]| {
            json!({
                "median_ms": stats::median(samples),
                "p95_ms": stats::quantile(samples, 0.95),
                "spread_ms": stats::spread(samples),
            })
        };
        json!({
            "name": self.name, "n": self.direct.len(), "rtt_ms": RTT_MS,
            "direct": column(&self.direct), "through": column(&self.through),
            "adds_ms": self.adds(), "adds_max_ms": self.adds_max, "holds": self.holds(),
        })
    }
}

/// All journeys of connections. Both branches' lines are as `line` has them; both nodes run, and take [`PORTS`].
/// Afterwards the centre's node has been stopped, and the branch's has been started anew.
pub(crate) fn all(
    lab: &Lab,
    pair: &mut Pair,
    stands: &Stands,
    n: usize,
    progress: &Progress,
) -> anyhow::Result<Vec<Timed>> {
    let n = n.min(usize::from(PORTS_MAX / 2) - 1);
    let ((centre, _), (branch, stand)) = (&stands.centre, &stands.branch);
    let (centre, branch) = (*centre, *branch);
    progress.begin(&format!("connections: {n} of each kind, beside one that no node touches"), n * 3);
    let _server = serve(lab, u16::try_from(2 * n + 1)?)?;
    // The link stands before the first is timed.
    let last = FIRST_PORT + u16::try_from(2 * n)?;
    connect(lab, Place::Client2, last)?;
    let start = Instant::now();
    while pair.count(branch, "carried")? == 0 {
        ensure!(start.elapsed() < STALL, "the two nodes do not find each other");
        thread::sleep(Duration::from_millis(50));
        connect(lab, Place::Client2, last)?;
    }
    let before = pair.count(branch, "carried")?;
    let (mut probed, mut known, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for nth in 0..n {
        // Of this port nothing is known yet; the second time it is.
        let port = FIRST_PORT + u16::try_from(nth)?;
        for times in [&mut probed, &mut known] {
            times.push(both(lab, port, nth)?);
            progress.step();
        }
    }
    let carried = pair.count(branch, "carried")? - before;
    ensure!(carried >= 2 * u64::try_from(n)?, "only {carried} of {} connections were carried", 2 * n);
    pair.stop(centre)?;
    pair.stop(branch)?;
    pair.start(lab, branch, stand)?;
    for nth in 0..n {
        alone.push(both(lab, FIRST_PORT + u16::try_from(n + nth)?, nth)?);
        progress.step();
    }
    let answered = pair.count(branch, "server-answered")?;
    ensure!(answered >= u64::try_from(n)?, "only {answered} of {n} SYNs were answered by the server alone");
    let connected = |times: &Times| times.connected;
    let first = |times: &Times| times.first;
    Ok(vec![
        Timed::new("connect-pair", PAIR_MEANS, Some(2.0), &probed, connected),
        Timed::new("connect-pmt-hit", HIT_MEANS, Some(2.0), &known, connected),
        Timed::new("connect-no-peer", ALONE_MEANS, Some(1.0), &alone, connected),
        Timed::new("first-byte-pair", FIRST_MEANS, Some(2.0), &probed, first),
        Timed::new("first-byte-hit", FIRST_HIT_MEANS, Some(2.0), &known, first),
    ])
}

/// The table.
pub(crate) fn table(all: &[Timed]) -> String {
    let mut text = format!(
        "Connections over {RTT_MS} ms; medians (95th percentiles); what the nodes add is the median of paired differences\n\n\
         {:<18} {:>4}  {:>18}  {:>18}  {:>24}  {:>9}\n{}\n",
        "journey",
        "n",
        "direct",
        "through the nodes",
        "they add",
        "to reach",
        "-".repeat(101)
    );
    for timed in all {
        let column = |samples: &[f64]| {
            format!("{:.1} ms ({:.1})", stats::median(samples), stats::quantile(samples, 0.95))
        };
        let Paired { median, lo, hi } = timed.adds();
        let adds = format!("{median:+.2} ms ({lo:+.2} to {hi:+.2})");
        let most = timed.adds_max.map_or_else(|| "-".to_owned(), |most| format!("<= +{most}"));
        let verdict = if timed.holds() == Some(false) { "  NOT REACHED" } else { "" };
        text += &format!(
            "{:<18} {:>4}  {:>18}  {:>18}  {adds:>24}  {most:>9}{verdict}\n",
            timed.name,
            timed.direct.len(),
            column(&timed.direct),
            column(&timed.through)
        );
    }
    text += "\n";
    for timed in all {
        text += &format!("{:<20} {}\n", timed.name, timed.meaning);
    }
    text
}

/// What both branches' lines are like meanwhile.
pub(crate) fn line() -> LinkBehaviour {
    LinkBehaviour::both(Behaviour::link(RTT_MS, 100.0))
}

/// One in each arm; the other first each time, for what the first one warms.
fn both(lab: &Lab, port: u16, nth: usize) -> anyhow::Result<(Times, Times)> {
    if nth.is_multiple_of(2) {
        let direct = connect(lab, Place::Client, port)?;
        Ok((direct, connect(lab, Place::Client2, port)?))
    } else {
        let through = connect(lab, Place::Client2, port)?;
        Ok((connect(lab, Place::Client, port)?, through))
    }
}

/// Each port says at once whom it sees.
struct Server {
    _runtime: tokio::runtime::Runtime,
}

fn serve(lab: &Lab, ports: u16) -> anyhow::Result<Server> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listeners = lab.inside(Place::Server, move || {
        (FIRST_PORT..FIRST_PORT + ports)
            .map(|port| TcpListener::bind(SocketAddr::new(Place::Server.v4(), port)))
            .collect::<Result<Vec<_>, _>>()
    })??;
    let _inside = runtime.enter();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            while let Ok((mut stream, from)) = listener.accept().await {
                // Who is gone is gone.
                drop(stream.write_all(format!("{from}\n").as_bytes()).await);
            }
        });
    }
    drop(_inside);
    Ok(Server { _runtime: runtime })
}

fn connect(lab: &Lab, place: Place, port: u16) -> anyhow::Result<Times> {
    let at = SocketAddr::new(Place::Server.v4(), port);
    let timed = lab.inside(place, move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&at, STALL)?;
        let connected = start.elapsed();
        stream.set_read_timeout(Some(STALL))?;
        let mut octet = [0];
        stream.read_exact(&mut octet)?;
        let first = start.elapsed();
        let mut seen = String::from_utf8_lossy(&octet).into_owned();
        let own = stream.local_addr()?.to_string();
        BufReader::new(stream).read_line(&mut seen)?;
        Ok::<_, std::io::Error>((connected, first, own, seen))
    })?;
    let (connected, first, own, seen) = timed.with_context(|| format!("{} to port {port}", place.name()))?;
    ensure!(seen.trim_end() == own, "the server sees {} and not {own}", seen.trim_end());
    Ok(Times { connected: connected.as_secs_f64() * 1e3, first: first.as_secs_f64() * 1e3 })
}

const RTT_MS: f64 = 40.0;
const FIRST_PORT: u16 = 9000;
/// Each connection through the pair goes to a port of which nothing is known yet, and then to it again.
const PORTS_MAX: u16 = 1000;
/// As a rule has them.
pub(crate) const PORTS: &str = "\"9000-9999\"";
const STALL: Duration = Duration::from_secs(20);

const PAIR_MEANS: &str = "a connection through two nodes that have yet to find each other for this server";
const HIT_MEANS: &str =
    "the same when they have: the client is answered once the server has been reached over the link";
const ALONE_MEANS: &str = "a connection past a node without a peer";
const FIRST_MEANS: &str =
    "from the beginning of connect-pair to the first octet of a server that speaks first";
const FIRST_HIT_MEANS: &str = "the same of connect-pmt-hit";
