//! Mail that is fetched before anybody asks for it: it is there, nobody but the store has noticed, and the report says
//! what came of it.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::Corpus;
use lab::clients::{Response, Wire};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::mail::{append, noise, uid};
use crate::site::{STALL, Server, Site};
use crate::waypost::{Settings, Waypost};

/// Large enough to be seen on the line.
const BODY: usize = 100_000;
const LETTERS: usize = 6;

const PREFETCH: &str = "[prefetch]\nenabled = true\nrate = \"100 Mbit/s\"";

fn start(case: &Case, server: Server, lines: &str) -> anyhow::Result<(Site, Settings, Waypost)> {
    let mut corpus = Corpus::sized(52, 4, 20_000);
    corpus.users.retain(|user| user.name == "alice");
    let site = Site::build(case, corpus, &[server])?;
    let mut settings = site.settings();
    if let Some(last) = settings.listeners.last_mut() {
        // The file's last sections but this one.
        last.lines = format!("{lines}\n{PREFETCH}");
    }
    let waypost = site.waypost(case, &settings)?;
    waypost.watch.announce(server.host());
    Ok((site, settings, waypost))
}

/// A row of `report preload`, all users together.
#[derive(Debug, Default, Clone, Copy)]
struct Report {
    opens: u64,
    hits: u64,
    fetched: u64,
    used: u64,
    wasted: u64,
    waiting: u64,
}

fn report(case: &Case, settings: &Settings) -> anyhow::Result<Report> {
    let mut command = Command::new(&case.executable);
    command.args(["report", "preload", "--json", "--socket"]).arg(settings.admin_socket());
    let run = command.output()?;
    let said: Value = serde_json::from_slice(&run.stdout)
        .with_context(|| String::from_utf8_lossy(&run.stderr).into_owned())?;
    let rows = said.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
    let sum = |key: &str| rows.iter().filter_map(|row| row.get(key)?.as_u64()).sum();
    Ok(Report {
        opens: sum("opens"),
        hits: sum("hits"),
        fetched: sum("fetched"),
        used: sum("used"),
        wasted: sum("wasted"),
        waiting: sum("waiting"),
    })
}

fn wait(
    case: &Case,
    settings: &Settings,
    what: &str,
    wanted: impl Fn(Report) -> bool,
) -> anyhow::Result<Report> {
    let begun = Instant::now();
    loop {
        let said = report(case, settings)?;
        if wanted(said) {
            return Ok(said);
        }
        ensure!(begun.elapsed() < STALL, "{what}: {said:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// New letters in INBOX; SHA-256 of each by UID.
fn deliver(beside: &mut Wire, first: usize, n: usize) -> anyhow::Result<BTreeMap<u32, Vec<u8>>> {
    deliver_to(beside, "INBOX", first, n)
}

fn deliver_to(
    beside: &mut Wire,
    mailbox: &str,
    first: usize,
    n: usize,
) -> anyhow::Result<BTreeMap<u32, Vec<u8>>> {
    let mut digests = Vec::new();
    for nth in first..first + n {
        let octets = noise(&format!("letter {nth}"), BODY);
        digests.push(Sha256::digest(&octets).to_vec());
        append(beside, mailbox, &octets)?;
    }
    beside.command(&format!("EXAMINE {mailbox}"))?.ok()?;
    let mut uids: Vec<u32> = Vec::new();
    for response in &beside.command("UID FETCH 1:* (UID)")?.ok()?.untagged {
        uids.extend(uid(response));
    }
    uids.sort_unstable();
    let newest = uids.get(uids.len().saturating_sub(n)..).unwrap_or_default();
    beside.command("UNSELECT")?.ok()?;
    Ok(newest.iter().copied().zip(digests).collect())
}

fn status(wire: &mut Wire) -> anyhow::Result<String> {
    let reply = wire.command("STATUS INBOX (MESSAGES RECENT UNSEEN)")?.ok()?;
    reply.untagged.iter().map(Response::text).find(|text| text.contains("STATUS")).context("no STATUS")
}

/// Opens each and looks whether it is the right one; what crossed the line meanwhile.
fn open_all(site: &Site, wire: &mut Wire, letters: &BTreeMap<u32, Vec<u8>>) -> anyhow::Result<u64> {
    site.lab.wan()?.wait_flat(Duration::from_millis(300), Duration::from_secs(10))?;
    site.lab.wan()?.reset()?;
    for (letter, digest) in letters {
        let reply = wire.command(&format!("UID FETCH {letter} (UID BODY.PEEK[])"))?.ok()?;
        let bodies = reply.untagged.iter().filter(|response| !response.literals.is_empty());
        let [response] = bodies.collect::<Vec<_>>()[..] else { bail!("not one body came for {letter}") };
        ensure!(uid(response) == Some(*letter), "{}", response.text());
        let body = response.literals.first().context("a literal")?;
        ensure!(Sha256::digest(body).as_slice() == digest.as_slice(), "another message came for {letter}");
    }
    Ok(site.lab.wan()?.read()?.octets())
}

/// Mail that was there before its reader left is fetched while he is away; what is deleted unread was wasted.
fn away(case: &Case, server: Server) -> anyhow::Result<()> {
    let (site, settings, _waypost) = start(case, server, "[sustain]\nenabled = true")?;
    let mut beside = site.beside(server, "alice")?;
    let letters = deliver(&mut beside, 0, LETTERS)?;
    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
    wire.command("LOGOUT")?.ok()?;
    let before = status(&mut beside)?;
    let all = (LETTERS * BODY) as u64;
    wait(case, &settings, "the letters were not fetched ahead", |said| said.fetched >= all)?;
    let after = status(&mut beside)?;
    ensure!(before == after, "somebody could notice: {before} became {after}");

    let more = deliver(&mut beside, LETTERS, 1)?;
    wait(case, &settings, "the new letter was not fetched ahead", |said| said.fetched >= all + BODY as u64)?;
    let unread = more.keys().next().context("a letter")?;
    beside.command("SELECT INBOX")?.ok()?;
    beside.command(&format!("UID STORE {unread} +FLAGS.SILENT (\\Deleted)"))?.ok()?;
    beside.command("EXPUNGE")?.ok()?;
    wait(case, &settings, "deleted unread, and not wasted", |said| said.wasted >= BODY as u64)?;

    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    let crossed = open_all(&site, &mut wire, &letters)?;
    case.note("octets_over_the_line_at_the_opens", crossed);
    ensure!(crossed < BODY as u64 / 2, "{crossed} octets crossed the line: not all opens were hits");
    drop(wire);
    let said = wait(case, &settings, "opened, and not used", |said| {
        said.used >= all && said.hits >= LETTERS as u64
    })?;
    ensure!(said.opens == said.hits, "all of them were hits: {said:?}");
    ensure!(said.fetched == said.used + said.wasted + said.waiting, "{said:?}");
    Ok(())
}

/// As [`away`].
pub(crate) fn away_dovecot(case: &Case) -> anyhow::Result<()> {
    away(case, Server::Dovecot)
}

/// As [`away`].
pub(crate) fn away_cyrus(case: &Case) -> anyhow::Result<()> {
    away(case, Server::Cyrus)
}

/// On the client's own session, while it rests and while it is in IDLE: it is told nothing but what it would have been.
fn beside(case: &Case, server: Server) -> anyhow::Result<()> {
    let (site, settings, _waypost) = start(case, server, "")?;
    let mut beside = site.beside(server, "alice")?;
    let mut letters = deliver(&mut beside, 0, LETTERS)?;
    let before = status(&mut beside)?;
    let mut wire = site.through(server, "alice")?;
    // Opened read-only, so that \Recent tells whether anybody else has.
    wire.command("EXAMINE INBOX")?.ok()?;
    let listed = wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?.untagged;
    let all = (LETTERS * BODY) as u64;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while report(case, &settings)?.fetched < all {
        ensure!(begun.elapsed() < STALL, "not fetched ahead: {:?}", report(case, &settings)?);
        let asked = Instant::now();
        let told = wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?.untagged;
        slowest = slowest.max(asked.elapsed());
        ensure!(told.len() == listed.len(), "a client was told what it did not ask: {told:?}");
        ensure!(
            told.iter().all(|response| response.literals.is_empty()),
            "a body nobody asked for: {told:?}"
        );
        std::thread::sleep(Duration::from_millis(400));
    }
    case.note("slowest_command_meanwhile_s", slowest.as_secs_f64());
    let after = status(&mut beside)?;
    ensure!(before == after, "somebody could notice: {before} became {after}");

    let tag = wire.begin("IDLE")?;
    while !wire.response()?.octets.starts_with(b"+") {}
    letters.extend(deliver(&mut beside, LETTERS, 1)?);
    let told = wire.response()?.text();
    ensure!(told.contains("EXISTS"), "IDLE told {told}");
    wait(case, &settings, "new in IDLE, and not fetched ahead", |said| said.fetched >= all + BODY as u64)?;
    wire.send(b"DONE\r\n")?;
    for response in &wire.finish(&tag)?.ok()?.untagged {
        ensure!(response.literals.is_empty(), "a body nobody asked for: {}", response.text());
    }
    let crossed = open_all(&site, &mut wire, &letters)?;
    case.note("octets_over_the_line_at_the_opens", crossed);
    ensure!(crossed < BODY as u64 / 2, "{crossed} octets crossed the line: not all opens were hits");
    Ok(())
}

/// As [`beside`].
pub(crate) fn beside_dovecot(case: &Case) -> anyhow::Result<()> {
    beside(case, Server::Dovecot)
}

/// As [`beside`].
pub(crate) fn beside_cyrus(case: &Case) -> anyhow::Result<()> {
    beside(case, Server::Cyrus)
}

/// Mail in a mailbox that is not the one its reader left, and what comes into it later where the server tells of that.
fn elsewhere(case: &Case, server: Server) -> anyhow::Result<()> {
    let (site, settings, _waypost) = start(case, server, "[sustain]\nenabled = true")?;
    let mut beside = site.beside(server, "alice")?;
    let work = if server == Server::Cyrus { "INBOX.Work" } else { "Work" };
    beside.command(&format!("CREATE {work}"))?.ok()?;
    let mut letters = deliver_to(&mut beside, work, 0, LETTERS)?;
    let mut wire = site.through(server, "alice")?;
    for mailbox in [work, "INBOX"] {
        wire.command(&format!("SELECT {mailbox}"))?.ok()?;
        wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
    }
    wire.command("LOGOUT")?.ok()?;
    drop(wire);
    let all = (LETTERS * BODY) as u64;
    wait(case, &settings, "the letters elsewhere were not fetched", |said| said.fetched >= all)?;
    if server == Server::Dovecot {
        letters.extend(deliver_to(&mut beside, work, LETTERS, 1)?);
        wait(case, &settings, "NOTIFY told, and nobody went", |said| said.fetched >= all + BODY as u64)?;
    }
    let mut wire = site.through(server, "alice")?;
    wire.command(&format!("SELECT {work}"))?.ok()?;
    let crossed = open_all(&site, &mut wire, &letters)?;
    ensure!(crossed < BODY as u64 / 2, "{crossed} octets crossed the line: not all opens were hits");
    Ok(())
}

/// As [`elsewhere`].
pub(crate) fn elsewhere_dovecot(case: &Case) -> anyhow::Result<()> {
    elsewhere(case, Server::Dovecot)
}

/// As [`elsewhere`].
pub(crate) fn elsewhere_cyrus(case: &Case) -> anyhow::Result<()> {
    elsewhere(case, Server::Cyrus)
}

/// Killed in the middle of fetching ahead: what it then serves is right, and the ledger still adds up.
pub(crate) fn killed(case: &Case) -> anyhow::Result<()> {
    let server = Server::Dovecot;
    let (site, settings, waypost) = start(case, server, "[sustain]\nenabled = true")?;
    let mut beside = site.beside(server, "alice")?;
    let letters = deliver(&mut beside, 0, LETTERS)?;
    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
    wire.command("LOGOUT")?.ok()?;
    drop(wire);
    let body = BODY as u64;
    wait(case, &settings, "nothing was fetched ahead", |said| said.fetched >= body)?;
    waypost.signal(libc::SIGKILL)?;
    drop(waypost);
    let _waypost = site.waypost(case, &settings)?;
    let said = report(case, &settings)?;
    ensure!(said.fetched == said.used + said.wasted + said.waiting, "after the kill: {said:?}");
    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    open_all(&site, &mut wire, &letters)?;
    drop(wire);
    let opened = LETTERS as u64;
    let said = wait(case, &settings, "what was opened is not counted", |said| said.opens >= opened)?;
    ensure!(said.fetched == said.used + said.wasted + said.waiting, "after the opens: {said:?}");
    Ok(())
}
