//! `sustained`: thousands of sessions whose clients have left, in one process: what each costs while it watches a
//! mailbox of 5,000 messages, and after it has fetched one that came.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::crowd::{self, Clients, Crowd, Mailbox, Manner};
use lab::Place;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::arm::Arm;
use crate::bench::{Bench, Measured};
use crate::origin::ORIGIN;
use crate::process::{Holds, rested_cpu_seconds};
use crate::progress::Progress;
use crate::stats;
use crate::waypost::{Store, Waypost};

/// Waypost's memory at 0, 500, 1,000 and 2,000 kept sessions, then once each of them has fetched a message.
pub(crate) fn run(executable: &Path, prefix: String, quick: bool) -> anyhow::Result<Measured> {
    let points = if quick { [0, 50, 100, 200] } else { [0, 500, 1_000, 2_000] };
    let all = points.into_iter().max().unwrap_or_default();
    let progress = Progress::new();
    let bench = Bench::build(prefix)?;
    let identity = bench.authority.issue(&[lab::net::DOVECOT])?;
    let manner = Manner {
        mailbox: Mailbox { messages: MESSAGES },
        greeting: Duration::ZERO,
        greeted_at_once: usize::from(u16::MAX),
    };
    let crowd = Crowd::start(&bench.lab, Place::Branch, ORIGIN, &identity, manner)?;
    let store = Store {
        origin: ORIGIN,
        server_lines: "parked = 0\nlimits = { sessions_max = 10000 }\n".to_owned(),
        store_lines: "size_max = \"2 GiB\"\n\n[sustain]\nenabled = true\nper_server_max = 10000\n".to_owned(),
        ..Store::plain("sustained")
    };
    let node = Waypost::start(&bench.lab, &bench.authority, executable, &store)?;
    let office = Office { bench: &bench, crowd: &crowd, node: &node, executable, peak_threads: 0.into() };
    progress.begin("sessions that outlive their client", all);
    // What a process has once is no session's.
    office.visit(0..AT_ONCE * 2, Leaving::HalfACommand)?;
    let mut seen = Vec::new();
    let mut so_far = 0;
    for point in points {
        office.visit(so_far..point, Leaving::InOrder)?;
        (so_far..point).for_each(|_| progress.step());
        so_far = point;
        office.settle(point, 0)?;
        seen.push((point, Holds::of(node.pid())?));
    }
    let begun = Instant::now();
    crowd.deliver();
    office.settle(all, u64::try_from(all)?)?;
    let (took, after) = (begun.elapsed(), Holds::of(node.pid())?);
    let counts = crowd.counts();
    ensure!(counts.bodies == u64::try_from(all)?, "{} bodies were fetched of {all}", counts.bodies);
    drop(progress);
    let row = Row { points: seen, after, took, idles: counts.idles, peak_threads: office.peak_threads.get() };
    row.print(all);
    Ok(Measured { json: row.json(), broken: row.broken() })
}

const MESSAGES: u32 = 5_000;
/// Clients that are there at a time.
const AT_ONCE: usize = 16;
const TO_REACH: f64 = 64.0;
/// What the runtime's own pool may come to, whatever the number of sessions.
const THREADS_MORE: u64 = 64;

/// How a client goes.
#[derive(Clone, Copy)]
enum Leaving {
    InOrder,
    /// Then nothing of it is kept.
    HalfACommand,
}

struct Office<'a> {
    bench: &'a Bench,
    crowd: &'a Crowd,
    node: &'a Waypost,
    executable: &'a Path,
    peak_threads: std::cell::Cell<u64>,
}

impl Office<'_> {
    /// Clients of these numbers log in, list their INBOX and go.
    fn visit(&self, numbers: std::ops::Range<usize>, leaving: Leaving) -> anyhow::Result<()> {
        let clients = Clients {
            to: Arm::Waypost.address(),
            name: lab::net::DOVECOT,
            tls: crowd::trusting(&self.bench.authority.certificate())?,
            per_address: 0,
        };
        Clients::run(&self.bench.lab, Place::Branch, move || async move {
            let (clients, turns) = (Arc::new(clients), Arc::new(Semaphore::new(AT_ONCE)));
            let mut visits = JoinSet::new();
            for nth in numbers {
                let (clients, turns) = (Arc::clone(&clients), Arc::clone(&turns));
                visits.spawn(async move {
                    let _turn = turns.acquire().await?;
                    let mut client = clients.connect(nth).await?;
                    client.command(&format!("LOGIN user{nth} secret")).await?;
                    client.command("SELECT INBOX").await?;
                    client.command("UID FETCH 1:* (FLAGS)").await?;
                    match leaving {
                        Leaving::InOrder => client.command("LOGOUT").await?,
                        Leaving::HalfACommand => client.begin("LOGO").await?,
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(visit) = visits.join_next().await {
                visit.context("a client's task")??;
            }
            anyhow::Ok(())
        })?
    }

    /// Waits until so many sessions are kept and watch, each with so many messages in all, and the process rests.
    fn settle(&self, kept: usize, fetched: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let threads = Holds::of(self.node.pid())?.threads;
            self.peak_threads.set(self.peak_threads.get().max(threads));
            if self.crowd.counts().idling.now == kept && self.crowd.counts().bodies == fetched {
                let said = self.sessions()?;
                let list = said.get("sessions").and_then(Value::as_array).context("no sessions")?;
                let messages: u64 = list.iter().filter_map(|one| one.get("messages")?.as_u64()).sum();
                if list.len() == kept && messages == fetched {
                    break;
                }
            }
            let counts = self.crowd.counts();
            ensure!(
                begun.elapsed() < PATIENCE,
                "{} of {kept} sessions watch, {} of {fetched} bodies were fetched; the node says {}",
                counts.idling.now,
                counts.bodies,
                self.sessions()?.get("ended").cloned().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        rested_cpu_seconds(self.node.pid())?;
        Ok(())
    }

    fn sessions(&self) -> anyhow::Result<Value> {
        let mut command = self.bench.lab.command(Place::Branch, self.executable);
        command.args(["sessions", "--json", "--socket"]).arg(self.node.directory().join("admin.sock"));
        let output = command.output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

const PATIENCE: Duration = Duration::from_secs(120);

struct Row {
    points: Vec<(usize, Holds)>,
    after: Holds,
    took: Duration,
    idles: u64,
    peak_threads: u64,
}

impl Row {
    #[expect(clippy::cast_precision_loss, reason = "memory of one process in KiB")]
    fn slope(&self) -> f64 {
        let points: Vec<(f64, f64)> =
            self.points.iter().map(|(n, holds)| (*n as f64, holds.resident as f64 / 1_024.0)).collect();
        stats::slope(&points)
    }

    /// From nothing kept to everybody's message fetched, over all sessions.
    #[expect(clippy::cast_precision_loss, reason = "memory of one process in KiB")]
    fn after_fetch(&self) -> f64 {
        let (Some((_, none)), Some((all, _))) = (self.points.first(), self.points.last()) else { return 0.0 };
        self.after.resident.saturating_sub(none.resident) as f64 / 1_024.0 / *all as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "memory of one process in MiB")]
    fn print(&self, all: usize) {
        let mib = |octets: u64| octets as f64 / 1_048_576.0;
        println!(
            "\n{:<48} {:>9} {:>9} {:>8}",
            "kept sessions, 5,000 messages each", "VmRSS", "RssAnon", "threads"
        );
        let line = |name: String, holds: &Holds| {
            let (resident, anonymous) = (mib(holds.resident), mib(holds.anonymous));
            println!("{name:<48} {resident:>5.1} MiB {anonymous:>5.1} MiB {:>8}", holds.threads);
        };
        for (n, holds) in &self.points {
            line(format!("  {n}"), holds);
        }
        line(format!("  {all}, one message fetched by each ({:.1} s)", self.took.as_secs_f64()), &self.after);
        println!(
            "{:<48} {:>5.1} KiB (to reach: <= {TO_REACH:.0}); {:.1} KiB with the message fetched",
            "  slope, each session more",
            self.slope(),
            self.after_fetch()
        );
        println!(
            "{:<48} {:>5} at most, {} times IDLE",
            "  threads while they fetched", self.peak_threads, self.idles
        );
    }

    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.slope() > TO_REACH {
            broken.push(format!("sustained: {:.1} KiB a session are more than {TO_REACH:.0}", self.slope()));
        }
        let base = self.points.first().map_or(0, |(_, holds)| holds.threads);
        if self.peak_threads > base + THREADS_MORE {
            broken.push(format!("sustained: {base} threads became {}", self.peak_threads));
        }
        broken
    }

    fn json(&self) -> Value {
        json!({
            "name": "sustained", "messages": MESSAGES, "n": self.points.len(),
            "slope_kib_per_session": self.slope(), "target": TO_REACH,
            "kib_per_session_after_fetch": self.after_fetch(),
            "seconds_until_all_had_fetched": self.took.as_secs_f64(),
            "threads_peak": self.peak_threads, "idles": self.idles, "after_fetch": self.after,
            "points": self.points.iter().map(|(n, holds)| json!({"kept": n, "holds": holds})).collect::<Vec<_>>(),
        })
    }
}
