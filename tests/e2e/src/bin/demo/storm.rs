//! `storm`: the server was out, everybody was told so, and now everybody comes at once. What the server sees of it,
//! with the pacing of `dials_max` and without.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::crowd::{self, Client, Clients, Counts, Crowd, Mailbox, Manner};
use lab::{LabSpec, Place};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::task::JoinSet;

use crate::arm::{Arm, IMAPS};
use crate::bench::{Bench, Measured};
use crate::progress::Progress;
use crate::waypost::{Store, Waypost};

/// A thousand clients, once with the default and once with no bound that matters.
pub(crate) fn run(executable: &Path, prefix: String, quick: bool) -> anyhow::Result<Measured> {
    let all = if quick { 100 } else { 1_000 };
    let progress = Progress::new();
    let bench = Bench::over(prefix, LabSpec::new(RTT_MS, RATE_MBIT))?;
    progress.begin("everybody at once, paced and not", 2);
    let mut storms = Vec::new();
    for (name, lines) in [("paced", ""), ("unpaced", "dials_max = 10000, ")] {
        let lines = format!("parked = 0\nlimits = {{ {lines}sessions_max = 10000 }}\n");
        let storm = Storm::run(&bench, executable, name, lines, all).with_context(|| name)?;
        storms.push((name, storm));
        progress.step();
    }
    drop(progress);
    println!(
        "\n{:<44} {:>9} {:>14} {:>9} {:>9} {:>9}",
        format!("{all} clients at once after an outage"),
        "at door",
        "not logged in",
        "starts/s",
        "all in",
        "BYE"
    );
    for (name, storm) in &storms {
        println!(
            "{:<44} {:>9} {:>14} {:>9} {:>7.1} s {:>9}",
            format!("  {name}"),
            storm.counts.opening.peak,
            storm.counts.strangers.peak,
            storm.counts.busiest_second(),
            storm.all_in.as_secs_f64(),
            storm.turned_away
        );
    }
    let peak = |nth: usize| storms.get(nth).map_or(0, |(_, storm)| storm.counts.opening.peak);
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let ratio = peak(1) as f64 / peak(0).max(1) as f64;
    println!("{:<44} {ratio:>8.1}x (the default lets {DOOR} to the door)", "  unpaced to paced");
    let mut broken = Vec::new();
    if peak(0) > DOOR {
        broken.push(format!("storm: {} stood at the door at once, and {DOOR} may", peak(0)));
    }
    let json = json!({
        "name": "storm", "clients": all, "rtt_ms": RTT_MS, "rate_mbit": RATE_MBIT, "at_the_door_ratio": ratio,
        "storms": storms.iter().map(|(name, storm)| storm.json(name)).collect::<Vec<_>>(),
    });
    Ok(Measured { json, broken })
}

const RTT_MS: f64 = 100.0;
const RATE_MBIT: f64 = 10.0;
/// The default of `dials_max`.
const DOOR: usize = 32;
/// What a server does for each before it greets: a process, a look at its tables.
const GREETING: Duration = Duration::from_millis(20);
/// A listener takes 128 handshakes from one address at a time.
const PER_ADDRESS: usize = 100;

struct Storm {
    counts: Counts,
    all_in: Duration,
    turned_away: usize,
}

impl Storm {
    fn run(bench: &Bench, executable: &Path, name: &str, lines: String, all: usize) -> anyhow::Result<Self> {
        let origin = SocketAddr::new(Place::Server.v4(), IMAPS);
        let store = Store { server_lines: lines, origin, ..Store::plain(name) };
        let node = Waypost::start(&bench.lab, &bench.authority, executable, &store)?;
        let clients = Arc::new(Clients {
            to: Arm::Waypost.address(),
            name: lab::net::DOVECOT,
            tls: crowd::trusting(&bench.authority.certificate())?,
            per_address: PER_ADDRESS,
        });
        let told = Arc::clone(&clients);
        let turned_away = Clients::run(&bench.lab, Place::Branch, move || async move {
            let mut visits = JoinSet::new();
            for nth in 0..all {
                let clients = Arc::clone(&told);
                visits.spawn(async move { clients.connect(nth).await.is_err() });
            }
            visits.join_all().await.into_iter().filter(|told| *told).count()
        })?;
        ensure!(turned_away == all, "{turned_away} of {all} were told that there is no server");
        let manner = Manner {
            mailbox: Mailbox { messages: 1 },
            greeting: GREETING,
            greeted_at_once: usize::from(u16::MAX),
        };
        let identity = bench.authority.issue(&[lab::net::DOVECOT])?;
        let crowd = Crowd::start(&bench.lab, Place::Server, origin, &identity, manner)?;
        let begun = Instant::now();
        let turned_away = Clients::run(&bench.lab, Place::Branch, move || async move {
            let mut visits = JoinSet::new();
            for nth in 0..all {
                let clients = Arc::clone(&clients);
                visits.spawn(async move { Client::insist(&clients, nth).await });
            }
            // All of them stay until the last is in.
            let (mut there, mut turned_away) = (Vec::new(), 0);
            while let Some(visit) = visits.join_next().await {
                let (client, times) = visit.context("a client's task")??;
                there.push(client);
                turned_away += times;
            }
            anyhow::Ok(turned_away)
        })??;
        let all_in = begun.elapsed();
        let counts = crowd.counts();
        drop(node);
        ensure!(counts.logins >= u64::try_from(all)?, "{} logins of {all}", counts.logins);
        Ok(Self { counts, all_in, turned_away })
    }

    fn json(&self, name: &str) -> Value {
        json!({
            "name": name, "at_the_door_peak": self.counts.opening.peak,
            "not_logged_in_peak": self.counts.strangers.peak,
            "starts_in_the_busiest_second": self.counts.busiest_second(),
            "connections": self.counts.starts.len(),
            "all_in_s": self.all_in.as_secs_f64(), "turned_away": self.turned_away,
        })
    }
}
