//! Thousands of connections: at once, and at rest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::crowd::Clients;
use lab::{Behaviour, LinkBehaviour, Place};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::talk::{self, Server};
use super::{Figure, Gate, Ground, Task};
use crate::process::Holds;
use crate::stats;

/// Thousands begin at the same moment; each is given an octet. None may fail.
pub(super) fn burst(task: &Task<'_>) -> anyhow::Result<Vec<Figure>> {
    let ground = task.beside(LinkBehaviour::both(Behaviour::link(40.0, 100.0)), talk::PORTS)?;
    let _server = Server::start(&ground.lab)?;
    ground.meet()?;
    let n = task.n(10_000, 500);
    task.progress.begin(&format!("{n} connections at once, through the pair and beside it"), 2);
    let before = ground.carried()?;
    let ours = at_once(&ground, Place::Client2, n)?;
    task.progress.step();
    let carried = ground.carried()? - before;
    let theirs = at_once(&ground, Place::Client, n)?;
    task.progress.step();
    let failed = |all: &[Option<f64>]| {
        let failed = all.iter().filter(|took| took.is_none()).count();
        u32::try_from(failed).map(f64::from).unwrap_or(f64::MAX)
    };
    let took = |all: &[Option<f64>]| all.iter().copied().flatten().collect::<Vec<f64>>();
    let carried = u32::try_from(carried).map(f64::from)?;
    println!(
        "burst: {carried} of {n} through the pair; 95th percentiles {:.2} s and, direct, {:.2} s",
        stats::quantile(&took(&ours), 0.95),
        stats::quantile(&took(&theirs), 0.95)
    );
    let (mut ours_sorted, mut theirs_sorted) = (took(&ours), took(&theirs));
    // Rank beside rank: they were not made in turn.
    ours_sorted.sort_by(f64::total_cmp);
    theirs_sorted.sort_by(f64::total_cmp);
    Ok(vec![
        figure(
            &format!("{n} at once: failed"),
            "",
            vec![failed(&ours)],
            vec![failed(&theirs)],
            Gate::Most(0.0),
        ),
        figure("the same: carried", "", vec![carried], Vec::new(), Gate::None),
        figure("the same: to the octet", "s", ours_sorted, theirs_sorted, Gate::None),
    ])
}

fn figure(name: &str, unit: &'static str, ours: Vec<f64>, theirs: Vec<f64>, gate: Gate) -> Figure {
    Figure { name: name.to_owned(), unit, ours, theirs, gate }
}

/// Seconds from the beginning of each connection to its octet; none for one that failed.
fn at_once(ground: &Ground, from: Place, n: usize) -> anyhow::Result<Vec<Option<f64>>> {
    Clients::run(&ground.lab, from, move || async move {
        let mut all = JoinSet::new();
        for _ in 0..n {
            all.spawn(async {
                let start = Instant::now();
                let done = timeout(PATIENCE, talk_once()).await;
                matches!(done, Ok(Ok(_))).then(|| start.elapsed().as_secs_f64())
            });
        }
        all.join_all().await
    })
}

/// Connects and is given one octet; the connection lives as long as what is returned.
async fn talk_once() -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(SocketAddr::new(Place::Server.v4(), talk::PORT)).await?;
    let mut request = vec![b'd'];
    request.extend(1_u64.to_be_bytes());
    stream.write_all(&request).await?;
    stream.read_u8().await?;
    Ok(stream)
}

/// What both nodes hold more for each connection that is carried and rests.
pub(super) fn idle(task: &Task<'_>) -> anyhow::Result<Vec<Figure>> {
    let ground = task.beside(LinkBehaviour::default(), talk::PORTS)?;
    let _server = Server::start(&ground.lab)?;
    ground.meet()?;
    let step = task.n(2_000, 200);
    let points = 4;
    task.progress
        .begin(&format!("{step} to {} connections that are carried and rest", points * step), points);
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    // What a process has once belongs to no connection: as many as are held later come and go first.
    let (first, rest) = (step / 2, Duration::from_millis(1500));
    let mut seen = Vec::new();
    hold(&ground, &held, first)?;
    for _ in 0..points {
        hold(&ground, &held, step)?;
        std::thread::sleep(rest);
        let carried = ground.pair.status(Place::Branch2)?;
        let carried = carried.get("carried").and_then(serde_json::Value::as_u64).context("no count")?;
        seen.push((f64::from(u32::try_from(carried)?), resident(&ground)?));
        task.progress.step();
    }
    let all = f64::from(u32::try_from(points * step)?);
    ensure!(seen.last().is_some_and(|(carried, _)| *carried >= all), "not all are carried: {seen:?}");
    let slopes: Vec<f64> = seen
        .iter()
        .zip(seen.iter().skip(1))
        .map(|((n0, held0), (n1, held1))| (held1 - held0) / (n1 - n0).max(1.0) / 1024.0)
        .collect();
    println!(
        "idle: memory of both nodes by connections: {seen:?}; the line through them {:.2} KiB",
        stats::slope(&seen) / 1024.0
    );
    Ok(vec![figure("a connection at rest, both nodes", "KiB", slopes, Vec::new(), Gate::Most(24.0))])
}

fn hold(
    ground: &Ground,
    held: &Arc<std::sync::Mutex<Vec<std::net::TcpStream>>>,
    n: usize,
) -> anyhow::Result<()> {
    let more = Clients::run(&ground.lab, Place::Client2, move || async move {
        let mut made = Vec::new();
        for _ in 0..n {
            made.push(timeout(PATIENCE, talk_once()).await.map_err(std::io::Error::from)??.into_std()?);
        }
        std::io::Result::Ok(made)
    })??;
    held.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?.extend(more);
    Ok(())
}

/// Memory of both nodes, all their processes, that no file backs.
fn resident(ground: &Ground) -> anyhow::Result<f64> {
    let mut octets = 0;
    for pid in [Place::Branch2, Place::Centre].iter().flat_map(|place| ground.pair.processes(*place)) {
        octets += Holds::of(pid)?.anonymous / 1024;
    }
    Ok(f64::from(u32::try_from(octets)?) * 1024.0)
}

/// Longer than anything takes that does not fail.
const PATIENCE: Duration = Duration::from_secs(60);
