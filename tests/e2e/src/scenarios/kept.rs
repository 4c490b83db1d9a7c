//! Sessions that outlive their client: what is in the store when the reader comes back, and what nobody may notice.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::Corpus;
use lab::Place;
use lab::clients::{Response, Wire};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::mail::{append, noise, uid};
use crate::site::{STALL, Server, Site, Way};
use crate::waypost::{Settings, Waypost};

/// A body large enough to be seen on the line.
const BODY: usize = 300_000;

fn start(case: &Case, server: Server) -> anyhow::Result<(Site, Settings, Waypost)> {
    let mut corpus = Corpus::sized(51, 12, 50_000);
    corpus.users.retain(|user| user.name == "alice");
    let site = Site::build(case, corpus, &[server])?;
    let mut settings = site.settings();
    if let Some(last) = settings.listeners.last_mut() {
        // The file's last section but this one.
        last.lines = "[sustain]\nenabled = true".to_owned();
    }
    let waypost = site.waypost(case, &settings)?;
    Ok((site, settings, waypost))
}

pub(super) fn ask(case: &Case, settings: &Settings, arguments: &[&str]) -> anyhow::Result<Value> {
    let run = Command::new(&case.executable)
        .arg("sessions")
        .args(arguments)
        .args(["--json", "--socket"])
        .arg(settings.admin_socket())
        .output()?;
    serde_json::from_slice(&run.stdout).with_context(|| String::from_utf8_lossy(&run.stderr).into_owned())
}

/// Waits until what `sessions` says is as wanted.
pub(super) fn wait(
    case: &Case,
    settings: &Settings,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let said = ask(case, settings, &[])?;
        if wanted(&said) {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < STALL, "{what}: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn kept(said: &Value) -> usize {
    said.get("sessions").and_then(Value::as_array).map_or(0, Vec::len)
}

fn fetched(said: &Value) -> u64 {
    said.pointer("/sessions/0/messages").and_then(Value::as_u64).unwrap_or(0)
}

pub(super) fn ended(said: &Value, why: &str) -> u64 {
    let all = said.get("ended").and_then(Value::as_array).into_iter().flatten();
    let of_it = all.filter(|named| named.get("word").and_then(Value::as_str) == Some(why));
    of_it.filter_map(|named| named.get("n")?.as_u64()).sum()
}

fn leave(site: &Site, server: Server) -> anyhow::Result<()> {
    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
    // Nobody but its reader may expunge it.
    wire.command("UID STORE 1 +FLAGS (\\Deleted)")?.ok()?;
    wire.command("LOGOUT")?.ok()?;
    Ok(())
}

fn status(wire: &mut Wire) -> anyhow::Result<String> {
    let reply = wire.command("STATUS INBOX (MESSAGES RECENT UNSEEN)")?.ok()?;
    let texts = reply.untagged.iter().map(Response::text);
    texts.into_iter().find(|text| text.contains("STATUS")).context("no STATUS")
}

fn messages(status: &str) -> anyhow::Result<u32> {
    let rest = status.split_once("MESSAGES ").context("no MESSAGES")?.1;
    Ok(rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?)
}

/// The client logs out, mail comes, the client comes back: the body is in the branch, and nobody but the store has
/// noticed.
fn away(case: &Case, server: Server) -> anyhow::Result<()> {
    let (site, settings, waypost) = start(case, server)?;
    waypost.watch.announce(server.host());
    let mut beside = site.beside(server, "alice")?;
    let present = messages(&status(&mut beside)?)?;
    leave(&site, server)?;
    wait(case, &settings, "nothing was kept", |said| kept(said) == 1)?;
    let octets = noise("while you were away", BODY);
    // The keeper needs a moment to be in IDLE; delivery may come at any time, also before.
    append(&mut beside, "INBOX", &octets)?;
    let before = status(&mut beside)?;
    let took = wait(case, &settings, "the new mail was not fetched", |said| fetched(said) == 1)?;
    case.note("in_the_store_after_s", took.as_secs_f64());
    let after = status(&mut beside)?;
    ensure!(before == after, "somebody could notice: {before} became {after}");
    ensure!(messages(&after)? == present + 1, "there were {present} messages, and one came: {after}");

    site.lab.wan()?.wait_flat(Duration::from_millis(300), Duration::from_secs(10))?;
    site.lab.wan()?.reset()?;
    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    let reply = wire.command("UID FETCH * (UID BODY.PEEK[])")?.ok()?;
    let Some(response) = reply.untagged.iter().find(|r| !r.literals.is_empty()) else {
        bail!("no body came");
    };
    ensure!(uid(response).is_some(), "{}", response.text());
    let body = response.literals.first().context("a literal")?;
    ensure!(Sha256::digest(body) == Sha256::digest(&octets), "another message came");
    let crossed = site.lab.wan()?.read()?.octets();
    case.note("octets_over_the_line_at_the_open", crossed);
    ensure!(crossed < BODY as u64 / 4, "{crossed} octets crossed the line: the open was no hit");
    wait(case, &settings, "the old session did not end", |said| ended(said, "new-login") == 1)?;
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

/// Whoever names the user ends nothing; the operator does; half a LOGOUT keeps nothing; a dead server is counted.
pub(crate) fn ends(case: &Case) -> anyhow::Result<()> {
    let server = Server::Dovecot;
    let (mut site, settings, waypost) = start(case, server)?;
    waypost.watch.announce(server.host());
    leave(&site, server)?;
    wait(case, &settings, "nothing was kept", |said| kept(said) == 1)?;

    let mut stranger = site.account(server, Way::Waypost, "alice")?;
    stranger.password = "wrong".to_owned();
    ensure!(Wire::log_in(&site.lab, Place::Client, &stranger, STALL).is_err(), "a wrong password was right");
    let said = ask(case, &settings, &[])?;
    ensure!(kept(&said) == 1 && ended(&said, "new-login") == 0, "a stranger ended it: {said}");

    ask(case, &settings, &["end", "alice"])?;
    wait(case, &settings, "the operator's end", |said| kept(said) == 0 && ended(said, "operator") == 1)?;

    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    let so_far = |said: &Value| said.get("so_far").and_then(Value::as_u64);
    let before = so_far(&ask(case, &settings, &[])?);
    wire.send(b"z LOGO")?;
    drop(wire);
    std::thread::sleep(Duration::from_secs(1));
    let said = ask(case, &settings, &[])?;
    ensure!(so_far(&said) == before, "half a command was kept: {said}");

    leave(&site, server)?;
    wait(case, &settings, "nothing was kept", |said| kept(said) == 1)?;
    drop(site.dovecot.take());
    wait(case, &settings, "a dead server", |said| kept(said) == 0 && ended(said, "origin-lost") == 1)?;
    Ok(())
}
