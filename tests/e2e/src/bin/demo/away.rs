//! `new-mail-while-away`: the reader leaves, mail comes, the reader comes back and opens it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::arm::{Arm, Ground, READER};
use crate::measure::{self, Outcome};
use crate::progress::Progress;
use crate::row::Row;
use crate::session::Session;
use crate::stats;

/// So many messages, each opened in each arm.
pub(crate) fn new_mail(ground: &Ground, n: usize, progress: &Progress) -> anyhow::Result<Row> {
    let mut row = Row::new("new-mail-while-away", "scripted", "away");
    progress.begin(&format!("new-mail-while-away: {n} messages"), n);
    let rtt = Duration::from_secs_f64(ground.link.rtt_ms / 1e3);
    let mut postman = Session::open(ground, Arm::Lan, READER, "INBOX")?;
    let mut after = Vec::new();
    for nth in 0..n * 2 {
        if row.n() == n {
            break;
        }
        Session::open(ground, Arm::Waypost, READER, "INBOX")?.command("LOGOUT")?;
        let wan = ground.lab.wan()?;
        wan.wait_flat(FLAT, PATIENCE)?;
        wan.reset()?;
        postman.append("INBOX", &message(nth))?;
        after.push(settled(ground)?.as_secs_f64());
        row.filled_octets += wan.read()?.octets();
        let mut acts = BTreeMap::new();
        for arm in Arm::ALL {
            let mut session = Session::open(ground, arm, READER, "INBOX")?;
            drop(session.take_values());
            wan.wait_flat(FLAT, PATIENCE)?;
            let open = || Ok(vec![session.command("UID FETCH * (UID BODY.PEEK[])")?]);
            if let Outcome::Done(act) = measure::act(&ground.lab, rtt, open)? {
                acts.insert(arm, act);
            }
            row.given.entry(arm).or_default().merge(session.take_values());
            session.command("LOGOUT")?;
        }
        if acts.len() < Arm::ALL.len() {
            row.repeated += 1;
            continue;
        }
        for (arm, act) in acts {
            row.acts.entry(arm).or_default().0.push(act);
        }
        progress.step();
    }
    ensure!(
        row.n() > 0,
        "new-mail-while-away: the emulator was late in every act; the machine is too busy to measure"
    );
    row.note = Some(format!(
        "{} kB each; all of it was in the branch {:.2} s after the delivery in the median, {:.2} s at most",
        OCTETS / 1000,
        stats::median(&after),
        after.iter().copied().fold(0.0, f64::max),
    ));
    Ok(row)
}

/// When the last octet of what a delivery set off had crossed the line.
fn settled(ground: &Ground) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let wan = ground.lab.wan()?;
    let (mut octets, mut last) = (0, begun);
    loop {
        let now = wan.read()?.octets();
        if now != octets {
            (octets, last) = (now, Instant::now());
        }
        if octets > CROSSING_MIN && last.elapsed() > QUIET {
            return Ok(last - begun);
        }
        ensure!(begun.elapsed() < PATIENCE, "the new mail never came over the line: {octets} octets");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Noise in base64: compressed, three quarters of it.
fn message(nth: usize) -> Vec<u8> {
    let mut rng = lab::rng::Rng::new(u64::try_from(nth).unwrap_or_default() ^ 0xA3A7);
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = format!(
        "From: postman@lab.test\r\nTo: {READER}@lab.test\r\nSubject: while you were away {nth}\r\n\r\n"
    )
    .into_bytes();
    while body.len() < OCTETS {
        body.extend((0..76).filter_map(|_| rng.pick(alphabet)));
        body.extend_from_slice(b"\r\n");
    }
    body
}

/// Connections outlive their clients, and mail is fetched before anybody asks for it.
pub(crate) const LINES: &str =
    "\n[sustain]\nenabled = true\n\n[prefetch]\nenabled = true\nrate = \"10 Mbit/s\"\n";

const OCTETS: usize = 120_000;
/// Less than that is no message.
const CROSSING_MIN: u64 = 60_000;
/// Longer than a round trip and what a server takes to answer.
const QUIET: Duration = Duration::from_millis(500);
const FLAT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
