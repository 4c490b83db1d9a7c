//! `demo`: the same mail clients directly, on the server's own network and through Waypost, compared; and the
//! benches that need the same ground. `deploy/demo` and `deploy/bench` run it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks to its terminal")]

mod arm;
mod away;
mod bench;
mod clients;
mod connects;
mod haproxy;
mod mail;
mod measure;
mod mutt;
mod origin;
mod path;
mod prefetching;
mod process;
mod progress;
mod recording;
mod relay;
mod report;
mod row;
mod scripted;
mod session;
mod start;
mod stats;
mod storm;
mod sustained;
mod sync;
mod tamper;
mod thunderbird;
mod waypost;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::leftovers::{self, Owner};
use lab::{Place, sys};
use serde_json::json;

use crate::arm::{Arm, Ground, Link};
use crate::mutt::Mutt;
use crate::progress::Progress;
use crate::report::Report;
use crate::scripted::Counts;
use crate::tamper::Tamper;
use crate::thunderbird::Thunderbird;

#[derive(Parser)]
#[command(
    about = "Shows what Waypost does for a branch office, with figures. Needs root; run it by deploy/demo."
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run the journeys in all three arms and compare
    Run(Run),
    /// The journeys in full, and how memory grows with each session
    Imap(Imap),
    /// One enormous literal through Waypost and through haproxy: CPU seconds per GB
    Relay(Relay),
    /// What two nodes on a path cost and bring
    Path(PathBench),
    /// Take away a lab of this prefix whose process is dead
    Clean {
        /// The lab's prefix
        #[arg(long)]
        prefix: String,
    },
}

#[derive(Args)]
struct Run {
    /// Fewer acts and less mail: at most four minutes
    #[arg(long)]
    quick: bool,
    /// Leave everything standing at the end, and the raw recordings of every arm
    #[arg(long)]
    keep: bool,
    /// Both nodes of the pair are bridges in a cable, not routers
    #[arg(long)]
    bridge: bool,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    link: LinkArgs,
    /// Damage an octet and see what happens: in the store, which must notice and serve the right mail, or in what
    /// a client was given, which the comparison must notice
    #[arg(long, num_args = 0..=1, default_missing_value = "store", require_equals = true)]
    tamper: Option<Tamper>,
    /// Only this client; may be said more than once
    #[arg(long, value_name = "CLIENT")]
    only: Vec<Client>,
    /// Where --keep puts the raw recordings
    #[arg(long)]
    recordings: PathBuf,
}

#[derive(Args)]
struct Imap {
    /// The journeys as in the quick demo, memory once: to see that the bench works
    #[arg(long)]
    quick: bool,
    /// Without the journeys
    #[arg(long)]
    memory: bool,
    /// Only this row, without the journeys; may be said more than once
    #[arg(long, value_name = "ROW")]
    row: Vec<Rows>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Relay {
    /// A tenth of the octets, twice: to see that the bench works
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct PathBench {
    /// A few of each: to see that the bench works
    #[arg(long)]
    quick: bool,
    /// Only this row; may be said more than once
    #[arg(long, value_name = "ROW")]
    row: Vec<path::Rows>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone)]
struct Common {
    /// Write the result here too
    #[arg(long)]
    json: Option<PathBuf>,
    /// The executable under test
    #[arg(long)]
    waypost: PathBuf,
    /// Starts the lab's names
    #[arg(long)]
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Client {
    Scripted,
    Mutt,
    Mbsync,
    Thunderbird,
    /// Connections and the start of mail with both nodes on the path
    Path,
}

/// What `imap` measures beside the journeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rows {
    /// Peak memory with 52 MB messages under way
    Memory,
    /// Memory of thousands of kept sessions
    Sustained,
    /// A thousand clients at once after an outage
    Storm,
    /// Commands and downloads while everything is fetched ahead
    Beside,
}

#[derive(Args)]
struct LinkArgs {
    /// Round trip over the WAN in milliseconds
    #[arg(long, default_value_t = 100.0)]
    rtt: f64,
    /// 10⁶ bit/s each way
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Packets lost, in percent
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !sys::is_root() {
        eprintln!("demo: network namespaces need root: run it with sudo");
        return ExitCode::from(77);
    }
    let done = match cli.what {
        What::Run(run) => run.run(),
        What::Imap(imap) => imap.run(),
        What::Relay(relay) => relay.run(),
        What::Path(path) => path.run(),
        What::Clean { prefix } => {
            clean(&prefix);
            Ok(true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(69)
        }
    }
}

/// A lab whose process lives is somebody's: it stays.
fn clean(prefix: &str) {
    let ours = leftovers::owners().into_iter().find(|owner| owner.prefix == prefix);
    if ours.is_some_and(|owner| !owner.is_alive()) {
        leftovers::remove(&Owner::of(prefix));
    }
}

impl Run {
    /// Returns whether everything was identical and every gate held.
    fn run(&self) -> anyhow::Result<bool> {
        let (ground, report) = self.measure()?;
        show(&report);
        if self.wants(Client::Scripted) {
            for subcommand in [&["sessions"][..], &["report", "preload"]] {
                println!("$ waypost {}\n{}", subcommand.join(" "), ground.ask(subcommand)?);
            }
        }
        if self.wants(Client::Path) {
            ground.show_pair()?;
        }
        bench::write(self.common.json.as_deref(), &report.json())?;
        if let Some(file) = &self.common.json {
            println!("The same for programs: {}", file.display());
        }
        println!("{NEXT}");
        if self.keep {
            self.hold(&ground)?;
        }
        Ok(report.broken().is_empty())
    }

    fn measure(&self) -> anyhow::Result<(Ground, Report)> {
        let link = Link { rtt_ms: self.link.rtt, rate_mbit: self.link.rate, loss: self.link.loss };
        ensure!(link.rtt_ms >= 0.0 && link.rate_mbit >= 0.0, "--rtt and --rate are 0 or more");
        ensure!((0.0..100.0).contains(&link.loss), "--loss is a percentage from 0 to below 100");
        let progress = Progress::new();
        let recordings = self.recordings()?;
        progress.begin("write the mailboxes, start Dovecot and Waypost", 1);
        let corpus = arm::corpus(self.quick);
        let prefix = self.common.prefix.clone();
        let mut ground = Ground::build(link, corpus, prefix, &self.common.waypost, recordings, self.bridge)?;
        let mut rows = Vec::new();
        if self.wants(Client::Scripted) {
            rows.extend(start::cold(&ground, if self.quick { 2 } else { 20 }, &progress)?);
            // A connection kept ready is renewed now and then, which would be taken for a round trip of an act.
            ground.exchange("warm", "parked = 0", "")?;
            rows.extend(scripted::all(&ground, Counts::of(self.quick), self.tamper, &progress)?);
            ground.exchange("demo", "", "")?;
        }
        if self.wants(Client::Mutt) {
            clients::all::<Mutt>(&ground, self.quick, &progress, &mut rows)?;
        }
        if self.wants(Client::Mbsync) {
            rows.push(sync::again(&ground, if self.quick { 1 } else { 3 }, &progress)?);
        }
        let mut left_out = Vec::new();
        // A graphical program can fail in ways of its own; its rows are then missing, and it is said.
        if self.wants(Client::Thunderbird)
            && let Err(error) = clients::all::<Thunderbird>(&ground, self.quick, &progress, &mut rows)
        {
            left_out.push(format!("Thunderbird, from here on: {error:#}"));
        }
        // Last: there are more messages afterwards.
        if self.wants(Client::Scripted) {
            ground.exchange("away", "parked = 0", away::LINES)?;
            rows.push(away::new_mail(&ground, if self.quick { 2 } else { 10 }, &progress)?);
        }
        let mut timed = Vec::new();
        if self.wants(Client::Path) {
            rows.push(start::on_path(&ground, if self.quick { 1 } else { 10 }, &progress)?);
            timed = ground.connections(if self.quick { 10 } else { 200 }, &progress)?;
        }
        Ok((ground, Report { link, rows, timed, quick: self.quick, left_out }))
    }

    fn wants(&self, client: Client) -> bool {
        self.only.is_empty() || self.only.contains(&client)
    }

    fn recordings(&self) -> anyhow::Result<Option<PathBuf>> {
        if !self.keep {
            return Ok(None);
        }
        for arm in Arm::ALL {
            let directory = self.recordings.join(arm.name());
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(Some(self.recordings.clone()))
    }

    /// Waits for Enter, or, with nobody at the terminal, for the end of the process.
    fn hold(&self, ground: &Ground) -> anyhow::Result<()> {
        println!("{}", usage(ground, &self.recordings));
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).context("cannot wait for Enter")? == 0 {
            println!("Nobody is at the terminal: kill {} takes it down.", std::process::id());
            loop {
                std::thread::park();
            }
        }
        Ok(())
    }
}

impl Imap {
    fn run(&self) -> anyhow::Result<bool> {
        let journeys = !self.memory && self.row.is_empty();
        let report = if journeys { Some(self.journeys()?) } else { None };
        let (waypost, prefix) = (&self.common.waypost, || self.common.prefix.clone());
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        if self.wants(Rows::Memory) {
            rows.push(bench::memory(waypost, prefix(), if self.quick { 1 } else { 3 })?);
        }
        if self.wants(Rows::Sustained) {
            let measured = sustained::run(waypost, prefix(), self.quick)?;
            rows.push(measured.json);
            broken.extend(measured.broken);
        }
        if self.wants(Rows::Storm) {
            let measured = storm::run(waypost, prefix(), self.quick)?;
            rows.push(measured.json);
            broken.extend(measured.broken);
        }
        if self.wants(Rows::Beside) {
            rows.extend(prefetching::run(waypost, prefix(), self.quick)?);
        }
        for line in &broken {
            println!("BROKEN: {line}");
        }
        let mut json = report.as_ref().map_or_else(|| json!({"version": 1}), Report::json);
        if let Some(all) = json.as_object_mut() {
            all.insert("bench".to_owned(), "imap".into());
            all.insert("rows".to_owned(), rows.into());
        }
        bench::write(self.common.json.as_deref(), &json)?;
        Ok(broken.is_empty() && report.is_none_or(|report| report.broken().is_empty()))
    }

    /// `--memory` is the row of that name alone.
    fn wants(&self, row: Rows) -> bool {
        let named = self.row.contains(&row) || (self.memory && row == Rows::Memory);
        named || (self.row.is_empty() && !self.memory)
    }

    fn journeys(&self) -> anyhow::Result<Report> {
        let run = Run {
            quick: self.quick,
            bridge: false,
            keep: false,
            common: self.common.clone(),
            link: LinkArgs { rtt: 100.0, rate: 10.0, loss: 0.0 },
            tamper: None,
            only: Vec::new(),
            recordings: PathBuf::new(),
        };
        let (_, report) = run.measure()?;
        show(&report);
        Ok(report)
    }
}

impl Relay {
    fn run(&self) -> anyhow::Result<bool> {
        let (octets, rounds) = if self.quick { (100_000_000, 2) } else { (1_000_000_000, 5) };
        let result = bench::relay(&self.common.waypost, self.common.prefix.clone(), octets, rounds)?;
        bench::write(self.common.json.as_deref(), &result)?;
        Ok(true)
    }
}

impl PathBench {
    fn run(&self) -> anyhow::Result<bool> {
        let common = &self.common;
        let (held, result) = path::run(&common.waypost, &common.prefix, &self.row, self.quick)?;
        bench::write(common.json.as_deref(), &result)?;
        Ok(held)
    }
}

fn show(report: &Report) {
    println!("\n{}", report.table());
    for line in report.broken() {
        println!("BROKEN: {line}");
    }
}

const NEXT: &str = "\
Where to look next: docs/JOURNEYS.md says where each clock starts and stops, docs/SESSION.md follows one connection,
deploy/demo --keep leaves all of it running, deploy/bench imap and deploy/bench relay measure more.";

fn usage(ground: &Ground, recordings: &Path) -> String {
    let (lab, ca) = (&ground.lab, ground.authority.certificate());
    let client = lab.namespace(Place::Client);
    format!(
        "Everything still runs. In another terminal, as root:\n\
         \x20 a client in the branch    ip netns exec {client} curl --cacert {ca} -u alice:alice-secret \\\n\
         \x20                             --resolve mail.lab.test:993:{branch} 'imaps://mail.lab.test/INBOX;UID=5'\n\
         \x20 the same, without Waypost ip netns exec {client} curl --cacert {ca} -u alice:alice-secret 'imaps://mail.lab.test/INBOX;UID=5'\n\
         \x20 the node's state          {node}\n\
         \x20 raw recordings            {recordings}\n\
         Enter takes it down.",
        ca = ca.display(),
        branch = Place::Branch.v4(),
        node = ground.waypost.directory().display(),
        recordings = recordings.display(),
    )
}
