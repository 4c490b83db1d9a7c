//! What a line of 80 ms does to a new connection, and what lost packets do, with and without the nodes.

use lab::{Behaviour, LinkBehaviour, Place};

use super::talk::{self, Server, Way};
use super::{Figure, Gate, Ground, Task};

/// 1 MB from `connect` to its last octet.
pub(super) fn first_megabyte(task: &Task<'_>) -> anyhow::Result<Vec<Figure>> {
    let ground = task.beside(LinkBehaviour::both(Behaviour::link(RTT_MS, RATE_MBIT)), talk::PORTS)?;
    let _server = Server::start(&ground.lab)?;
    ground.meet()?;
    let n = task.n(40, 4);
    task.progress
        .begin(&format!("1 MB on a new connection over {RTT_MS} ms: {n} each way, beside direct"), 2 * n);
    let mut figures = Vec::new();
    for (way, name) in
        [(Way::Down, "1 MB on a new connection, down"), (Way::Up, "1 MB on a new connection, up")]
    {
        let (ours, theirs) = in_turn(task, &ground, n, way, MEGABYTE)?;
        figures.push(Figure { name: name.to_owned(), unit: "s", ours, theirs, gate: Gate::RatioMost(0.55) });
    }
    Ok(figures)
}

/// 20 MB where 1 % of the packets are lost, each way.
pub(super) fn loss(task: &Task<'_>) -> anyhow::Result<Vec<Figure>> {
    let lossy = Behaviour { loss_percent: 1.0, ..Behaviour::link(RTT_MS, RATE_MBIT) };
    let ground = task.beside(LinkBehaviour::both(lossy), talk::PORTS)?;
    let _server = Server::start(&ground.lab)?;
    ground.meet()?;
    let (n, octets) = (task.n(3, 1), if task.quick { 4 * MEGABYTE } else { 20 * MEGABYTE });
    task.progress.begin(&format!("{} MB at 1 % loss: {n}, beside direct", octets / MEGABYTE), n);
    let (ours, theirs) = in_turn(task, &ground, n, Way::Down, octets)?;
    let rate = |seconds: Vec<f64>| -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        seconds.into_iter().map(|seconds| octets as f64 * 8e-6 / seconds).collect()
    };
    let name = format!("{} MB at 1 % loss", octets / MEGABYTE);
    Ok(vec![Figure {
        name,
        unit: "Mbit/s",
        ours: rate(ours),
        theirs: rate(theirs),
        gate: Gate::RatioLeast(5.0),
    }])
}

/// Seconds through the pair and beside it.
fn in_turn(
    task: &Task<'_>,
    ground: &Ground,
    n: usize,
    way: Way,
    octets: u64,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let before = ground.carried()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let once = |from| talk::exchange(&ground.lab, from, way, octets).map(|took| took.as_secs_f64());
    for nth in 0..n {
        if nth.is_multiple_of(2) {
            ours.push(once(Place::Client2)?);
            theirs.push(once(Place::Client)?);
        } else {
            theirs.push(once(Place::Client)?);
            ours.push(once(Place::Client2)?);
        }
        task.progress.step();
    }
    let carried = ground.carried()? - before;
    anyhow::ensure!(carried >= u64::try_from(n)?, "only {carried} of {n} connections were carried");
    Ok((ours, theirs))
}

const RTT_MS: f64 = 80.0;
const RATE_MBIT: f64 = 100.0;
const MEGABYTE: u64 = 1_000_000;
