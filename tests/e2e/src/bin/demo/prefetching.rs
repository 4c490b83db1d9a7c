//! What fetching ahead costs those who wait: a reader's commands, and his downloads, while everything is fetched ahead
//! that can be, on a connection of its own (`lane`), on the reader's own (`shared`), and not at all (`off`).

use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::corpus::{Contents, Corpus, User};
use lab::{Authority, Dovecot, Lab, LabSpec, LinkBehaviour, Place};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::arm::Arm;
use crate::progress::Progress;
use crate::session::Session;
use crate::stats;
use crate::waypost::{Store, Waypost};

/// How mail is fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Off,
    Lane,
    Shared,
}

impl Way {
    const ALL: [Self; 3] = [Self::Off, Self::Lane, Self::Shared];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Lane => "lane",
            Self::Shared => "shared",
        }
    }

    /// Far faster than the line, so that nothing but the ways themselves holds it back.
    const fn lines(self) -> &'static str {
        match self {
            Self::Off => "",
            Self::Lane => {
                "\n[sustain]\nenabled = true\n\n[prefetch]\nenabled = true\nrate = \"100 Mbit/s\"\nuser_day_max = \"10 GiB\"\n"
            }
            Self::Shared => {
                "\n[prefetch]\nenabled = true\nrate = \"100 Mbit/s\"\nuser_day_max = \"10 GiB\"\n"
            }
        }
    }
}

/// What was measured in one way.
#[derive(Debug, Default)]
struct Sample {
    /// Seconds of a small command each.
    commands: Vec<f64>,
    /// Seconds of a download each.
    downloads: Vec<f64>,
    download_octets: u64,
    /// Octets fetched ahead in the time of the commands, and that time.
    ahead: u64,
    seconds: f64,
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
struct Amount {
    rounds: usize,
    commands: usize,
    downloads: usize,
    /// New messages that wait to be fetched ahead.
    ahead: usize,
}

impl Amount {
    const fn of(quick: bool) -> Self {
        if quick {
            Self { rounds: 1, commands: 8, downloads: 2, ahead: 10 }
        } else {
            Self { rounds: 2, commands: 60, downloads: 8, ahead: 40 }
        }
    }
}

struct Office {
    authority: Authority,
    _dovecot: Dovecot,
    roots: Arc<RootCertStore>,
    lab: Lab,
}

/// Runs all ways in turn, and prints what they cost.
pub(crate) fn run(executable: &Path, prefix: String, quick: bool) -> anyhow::Result<Vec<Value>> {
    let progress = Progress::new();
    let amount = Amount::of(quick);
    let users: Vec<User> = (0..amount.rounds * Way::ALL.len())
        .map(|nth| User {
            name: format!("reader{nth}"),
            password: "reader-secret".to_owned(),
            mailboxes: vec![("INBOX".to_owned(), Contents::Office(1))],
        })
        .collect();
    let corpus = Corpus { seed: 9_172_620, users, attachment_octets_max: 1 << 16, shared: 0 };
    let wan = LinkBehaviour::both(lab::Behaviour::link(RTT_MS, RATE_MBIT));
    let lab = Lab::build(LabSpec { prefix: Some(prefix), wan, ..LabSpec::new(0.0, 0.0) })?;
    let authority = Authority::create(&lab.directory().join("ca"))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate()).context("the lab's own CA")?)?;
    let dovecot = Dovecot::start(&lab, &authority, &corpus)?;
    let office = Office { authority, _dovecot: dovecot, roots: Arc::new(roots), lab };
    let mut samples = [Sample::default(), Sample::default(), Sample::default()];
    progress
        .begin("commands and downloads while everything is fetched ahead", amount.rounds * Way::ALL.len());
    for round in 0..amount.rounds {
        for turn in 0..Way::ALL.len() {
            let nth = (round + turn) % Way::ALL.len();
            let (Some(way), Some(sample)) = (Way::ALL.get(nth), samples.get_mut(nth)) else { continue };
            let reader = format!("reader{}", round * Way::ALL.len() + turn);
            let measured = office.measure(executable, *way, &reader, amount, sample);
            measured.with_context(|| format!("fetching ahead: {}", way.name()))?;
            progress.step();
        }
    }
    drop(progress);
    Ok(show(&samples))
}

impl Office {
    fn measure(
        &self,
        executable: &Path,
        way: Way,
        reader: &str,
        amount: Amount,
        sample: &mut Sample,
    ) -> anyhow::Result<()> {
        let mut postman = self.session(Arm::Lan, reader)?;
        for nth in 0..amount.commands {
            postman.append_as("INBOX", "(\\Seen) ", &letter(reader, nth, SMALL))?;
        }
        for nth in 0..amount.downloads {
            postman.append_as("INBOX", "(\\Seen) ", &letter(reader, 1000 + nth, LARGE))?;
        }
        let store = Store {
            store_lines: way.lines().to_owned(),
            ..Store::plain(&format!("{}-{reader}", way.name()))
        };
        let node = Waypost::start(&self.lab, &self.authority, executable, &store)?;
        // Somebody was here before: his connection has become the lane.
        self.session(Arm::Waypost, reader)?.command("LOGOUT")?;
        for nth in 0..amount.ahead {
            postman.append("INBOX", &letter(reader, 2000 + nth, AHEAD))?;
        }
        let mut session = self.session(Arm::Waypost, reader)?;
        let first = session.uids()?;
        let (small, large) = (first.get(1..).unwrap_or_default(), amount.commands);
        if way != Way::Off {
            self.wait_for_work(executable, &node)?;
        }
        let (start, before) = (Instant::now(), self.fetched(executable, &node, way)?);
        for uid in small.iter().take(amount.commands) {
            let reply = session.command(&format!("UID FETCH {uid} (UID BODY.PEEK[])"))?;
            sample.commands.push((reply.end - reply.start).as_secs_f64());
            std::thread::sleep(THINKING);
        }
        sample.ahead += self.fetched(executable, &node, way)? - before;
        sample.seconds += start.elapsed().as_secs_f64();
        for uid in small.iter().skip(large).take(amount.downloads) {
            let reply = session.command(&format!("UID FETCH {uid} (UID BODY.PEEK[])"))?;
            ensure!(reply.literal_octets >= LARGE, "a download of {} octets", reply.literal_octets);
            sample.downloads.push((reply.end - reply.start).as_secs_f64());
            sample.download_octets += u64::try_from(reply.literal_octets).unwrap_or_default();
        }
        session.command("LOGOUT").map(drop)
    }

    fn session(&self, arm: Arm, reader: &str) -> anyhow::Result<Session> {
        let address = arm.address();
        let plain = self.lab.inside(arm.place(), move || TcpStream::connect(address))?;
        let plain = plain.with_context(|| format!("{}: nothing accepts on {address}", arm.name()))?;
        let mut session = Session::over(plain, &self.roots)?;
        session.command(&format!("LOGIN {reader} reader-secret"))?;
        session.select("INBOX")?;
        session.command("UID FETCH 1:* (FLAGS)")?;
        Ok(session)
    }

    /// Until octets that nobody asked for have come.
    fn wait_for_work(&self, executable: &Path, node: &Waypost) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.fetched(executable, node, Way::Lane)? == 0 {
            ensure!(
                start.elapsed() < PATIENCE,
                "nothing is fetched ahead; the node's log:\n{}",
                node.log_text()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Octets fetched ahead so far, as the node reports them.
    fn fetched(&self, executable: &Path, node: &Waypost, way: Way) -> anyhow::Result<u64> {
        if way == Way::Off {
            return Ok(0);
        }
        let mut command = self.lab.command(Place::Branch, executable);
        command.args(["report", "preload", "--json", "--socket"]).arg(node.directory().join("admin.sock"));
        let output = command.stdin(Stdio::null()).output().context("waypost report preload")?;
        ensure!(
            output.status.success(),
            "waypost report preload: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let rows = report.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(rows.iter().filter_map(|row| row.get("fetched").and_then(Value::as_u64)).sum())
    }
}

fn show(samples: &[Sample; 3]) -> Vec<Value> {
    println!(
        "\n{:<34} {:>3} {:>10} {:>10} {:>12} {:>12} {:>18} {:>12}",
        "while everything is fetched ahead",
        "n",
        "p50",
        "p95",
        "added p50",
        "added p95",
        "downloads",
        "background"
    );
    let [off, ..] = samples;
    let at = |values: &[f64], fraction| stats::quantile(values, fraction) * 1e3;
    let rate = |sample: &Sample| megabits(sample.download_octets, sample.downloads.iter().sum());
    let mut rows = Vec::new();
    for (way, sample) in Way::ALL.iter().zip(samples) {
        let (p50, p95) = (at(&sample.commands, 0.5), at(&sample.commands, 0.95));
        let added = (p50 - at(&off.commands, 0.5), p95 - at(&off.commands, 0.95));
        let ratio = rate(sample) / rate(off).max(1e-9);
        let background = megabits(sample.ahead, sample.seconds);
        println!(
            "{:<34} {:>3} {:>7.0} ms {:>7.0} ms {:>+9.0} ms {:>+9.0} ms {:>10.2} Mbit/s {:>5.1} Mbit/s",
            format!("  {}", way.name()),
            sample.commands.len(),
            p50,
            p95,
            added.0,
            added.1,
            rate(sample),
            background,
        );
        rows.push(json!({
            "name": "prefetch-beside", "way": way.name(), "n": sample.commands.len(),
            "command_ms": {"p50": p50, "p95": p95, "spread": stats::spread(&sample.commands) * 1e3},
            "added_ms": {"p50": added.0, "p95": added.1},
            "downloads": sample.downloads.len(), "download_mbit_s": rate(sample), "ratio_off": ratio,
            "background_mbit_s": background,
        }));
    }
    println!(
        "  to reach: lane p95 at most +40 ms, shared p95 at most 1 RTT + 100 ms; downloads at least 0.95 of off: \
         lane {:.2}, shared {:.2}",
        samples.get(1).map_or(0.0, |lane| rate(lane) / rate(off).max(1e-9)),
        samples.get(2).map_or(0.0, |shared| rate(shared) / rate(off).max(1e-9)),
    );
    rows
}

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn megabits(octets: u64, seconds: f64) -> f64 {
    octets as f64 * 8e-6 / seconds.max(1e-9)
}

/// Noise in base64, from a sender and in a thread of its own.
fn letter(reader: &str, nth: usize, octets: usize) -> Vec<u8> {
    let mut rng = lab::rng::Rng::new(u64::try_from(nth).unwrap_or_default() ^ 0xBE51DE);
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = format!(
        "From: sender{nth}@lab.test\r\nTo: {reader}@lab.test\r\nMessage-ID: <{nth}.{reader}@lab.test>\r\n\
         Subject: letter {nth}\r\n\r\n"
    )
    .into_bytes();
    while body.len() < octets {
        body.extend((0..76).filter_map(|_| rng.pick(alphabet)));
        body.extend_from_slice(b"\r\n");
    }
    body
}

const RTT_MS: f64 = 100.0;
const RATE_MBIT: f64 = 10.0;
/// What a command fetches: read before, so that nobody fetches it ahead.
const SMALL: usize = 20_000;
const LARGE: usize = 2_000_000;
/// What is fetched ahead.
const AHEAD: usize = 2_000_000;
/// Between two commands of a person.
const THINKING: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);
