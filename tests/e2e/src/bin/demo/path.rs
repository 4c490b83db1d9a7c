//! `deploy/bench path`: what two nodes on a path cost and bring, beside the same without them.

mod bulk;
mod line;
mod many;
mod talk;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use e2e::pair::{Pair, Stand};
use lab::{Lab, LabSpec, LinkBehaviour, Place};
use serde_json::{Value, json};

use crate::connects::{self, Stands};
use crate::progress::Progress;
use crate::stats::{self, Paired};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rows {
    /// The demo's journeys of connections
    Connects,
    /// Bulk that no rule takes, past a node and past a node that is bypassed
    Passing,
    /// CPU seconds per GB of bulk through the pair, and through two haproxy with TLS between them
    Cpu,
    /// 1 MB on a new connection over 80 ms
    FirstMegabyte,
    /// 20 MB over 80 ms with 1 % of the packets lost
    Loss,
    /// Thousands of connections at once
    Burst,
    /// Memory of both nodes for a connection that is carried and says nothing
    Idle,
}

/// One figure: ours beside what it is measured by, in turn.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Vec<f64>,
    /// The nth was measured beside the nth of ours; empty where a figure stands alone.
    pub(crate) theirs: Vec<f64>,
    pub(crate) gate: Gate,
}

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate {
    /// The median of ours over theirs, at most.
    RatioMost(f64),
    /// The same, at least.
    RatioLeast(f64),
    /// The lower end of that ratio's interval, at least.
    LowLeast(f64),
    /// The median, at most.
    Most(f64),
    /// Only shown.
    None,
}

impl Figure {
    fn ratio(&self) -> Option<Paired> {
        let ratios: Vec<f64> =
            self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs.max(1e-9)).collect();
        (!ratios.is_empty()).then(|| stats::paired(&ratios))
    }

    fn holds(&self) -> Option<bool> {
        let ratio = self.ratio();
        match self.gate {
            Gate::RatioMost(most) => ratio.map(|ratio| ratio.median <= most),
            Gate::RatioLeast(least) => ratio.map(|ratio| ratio.median >= least),
            Gate::LowLeast(least) => ratio.map(|ratio| ratio.lo >= least),
            Gate::Most(most) => Some(!self.ours.is_empty() && stats::median(&self.ours) <= most),
            Gate::None => None,
        }
    }

    fn gate_text(&self) -> String {
        match self.gate {
            Gate::RatioMost(most) => format!("ratio <= {most}"),
            Gate::RatioLeast(least) => format!("ratio >= {least}"),
            Gate::LowLeast(least) => format!("lower end >= {least}"),
            Gate::Most(most) => format!("<= {most}"),
            Gate::None => "-".to_owned(),
        }
    }

    fn line(&self) -> String {
        let column = |samples: &[f64]| {
            if samples.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.3} ({:.3})", stats::median(samples), stats::spread(samples))
            }
        };
        let ratio = self
            .ratio()
            .map_or_else(|| "-".to_owned(), |r| format!("{:.3} ({:.3} to {:.3})", r.median, r.lo, r.hi));
        let verdict = if self.holds() == Some(false) { "  NOT REACHED" } else { "" };
        format!(
            "{:<36} {:>4} {:>8} {:>20} {:>20} {:>24} {:>18}{verdict}",
            self.name,
            self.ours.len(),
            self.unit,
            column(&self.ours),
            column(&self.theirs),
            ratio,
            self.gate_text()
        )
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "n": self.ours.len(),
            "ours": {"median": stats::median(&self.ours), "spread": stats::spread(&self.ours)},
            "theirs": {"median": stats::median(&self.theirs), "spread": stats::spread(&self.theirs)},
            "ratio": self.ratio(), "gate": self.gate_text(), "holds": self.holds(),
        })
    }
}

/// Runs the rows that are wanted, each on a ground of its own; whether all gates hold, and all figures.
pub(crate) fn run(
    executable: &Path,
    prefix: &str,
    rows: &[Rows],
    quick: bool,
) -> anyhow::Result<(bool, Value)> {
    let progress = Progress::new();
    let mut figures = Vec::new();
    let mut timed = Vec::new();
    let task = Task { executable, prefix, quick, progress: &progress };
    for row in Rows::value_variants() {
        if !rows.is_empty() && !rows.contains(row) {
            continue;
        }
        let measured = match row {
            Rows::Connects => {
                timed = task.connects()?;
                continue;
            }
            Rows::Passing => bulk::passing(&task),
            Rows::Cpu => bulk::cpu(&task),
            Rows::FirstMegabyte => line::first_megabyte(&task),
            Rows::Loss => line::loss(&task),
            Rows::Burst => many::burst(&task),
            Rows::Idle => many::idle(&task),
        };
        let name = row.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        figures.extend(measured.with_context(|| format!("row {name}"))?);
    }
    drop(progress);
    if !timed.is_empty() {
        println!("\n{}", connects::table(&timed));
    }
    if !figures.is_empty() {
        println!(
            "\n{:<36} {:>4} {:>8} {:>20} {:>20} {:>24} {:>18}",
            "medians (interquartile range)",
            "n",
            "unit",
            "through the nodes",
            "beside it",
            "ratio",
            "to reach"
        );
        figures.iter().for_each(|figure| println!("{}", figure.line()));
    }
    // A quick run shows that the bench works: it has too few of each for a verdict.
    let mut held =
        figures.iter().filter_map(Figure::holds).chain(timed.iter().filter_map(connects::Timed::holds));
    let all = quick || held.all(|one| one);
    let json = json!({
        "version": 1, "bench": "path", "quick": quick,
        "rows": figures.iter().map(Figure::json).collect::<Vec<_>>(),
        "connections": timed.iter().map(connects::Timed::json).collect::<Vec<_>>(),
    });
    Ok((all, json))
}

/// What each row is given.
struct Task<'t> {
    executable: &'t Path,
    prefix: &'t str,
    quick: bool,
    progress: &'t Progress,
}

impl Task<'_> {
    /// So many in a full run, so many in a quick one.
    const fn n(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    fn lab(&self, line: LinkBehaviour) -> anyhow::Result<Lab> {
        Lab::build(LabSpec { prefix: Some(self.prefix.to_owned()), wan: line, ..LabSpec::new(0.0, 0.0) })
    }

    fn connects(&self) -> anyhow::Result<Vec<connects::Timed>> {
        let mut ground = self.beside(connects::line(), connects::PORTS)?;
        let stands = ground.stands.clone();
        connects::all(&ground.lab, &mut ground.pair, &stands, self.n(200, 10), self.progress)
    }

    /// Two branches with lines of the same kind: the second one's has a node at each end.
    fn beside(&self, line: LinkBehaviour, ports: &str) -> anyhow::Result<Ground> {
        let spec = LabSpec { prefix: Some(self.prefix.to_owned()), wan: line, ..LabSpec::new(0.0, 0.0) };
        let lab = Lab::build(spec.with_second_branch())?;
        let stands = Stands {
            centre: (Place::Centre, Stand::routed(&["lan0", "wan10"], ports)),
            branch: (Place::Branch2, Stand::routed(&["lan0", "wan0"], ports)),
        };
        let mut pair = Pair::identify(self.executable, &lab, &[Place::Centre, Place::Branch2])?;
        for (place, stand) in stands.both() {
            pair.start(&lab, *place, stand)?;
        }
        Ok(Ground { pair, stands, lab })
    }
}

/// A line with a node at each end, and one without. Fields go away in their order.
struct Ground {
    pair: Pair,
    stands: Stands,
    lab: Lab,
}

impl Ground {
    /// How many connections the branch's node has carried so far.
    fn carried(&self) -> anyhow::Result<u64> {
        self.pair.count(Place::Branch2, "carried")
    }

    /// Until a connection is carried: the two have found each other, and their link stands.
    fn meet(&self) -> anyhow::Result<()> {
        for _ in 0..50 {
            talk::exchange(&self.lab, Place::Client2, talk::Way::Down, 1)?;
            if self.carried()? > 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        ensure!(false, "the two nodes do not find each other: {}", self.pair.log(Place::Branch2));
        Ok(())
    }
}
