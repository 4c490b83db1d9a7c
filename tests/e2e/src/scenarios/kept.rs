//! Sessions that outlive their client: what is in the store when the reader comes back, and what nobody may notice.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::Place;
use lab::clients::{Response, Wire};
use lab::{Behaviour, Corpus, LinkBehaviour};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::mail::{append, noise, uid};
use crate::site::{NO_PENALTY, STALL, Server, Site, Way};
use crate::waypost::{Settings, Waypost};

/// A body large enough to be seen on the line.
const BODY: usize = 300_000;

fn start(case: &Case, server: Server) -> anyhow::Result<(Site, Settings, Waypost)> {
    start_with(case, server, NO_PENALTY, "")
}

/// With more lines for Dovecot and for `[sustain]`.
fn start_with(
    case: &Case,
    server: Server,
    dovecot: &str,
    sustain: &str,
) -> anyhow::Result<(Site, Settings, Waypost)> {
    let mut corpus = Corpus::sized(51, 12, 50_000);
    corpus.users.retain(|user| user.name == "alice");
    let site = Site::build_with(case, corpus, &[server], dovecot)?;
    let mut settings = site.settings();
    if let Some(last) = settings.listeners.last_mut() {
        // The file's last section but this one.
        last.lines = format!("[sustain]\nenabled = true\n{sustain}");
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
    wait_for(case, settings, STALL, what, wanted)
}

fn wait_for(
    case: &Case,
    settings: &Settings,
    patience: Duration,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let said = ask(case, settings, &[])?;
        if wanted(&said) {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < patience, "{what}: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn kept(said: &Value) -> usize {
    said.get("sessions").and_then(Value::as_array).map_or(0, Vec::len)
}

/// Those beside their user.
fn lanes(said: &Value) -> usize {
    let all = said.get("sessions").and_then(Value::as_array).into_iter().flatten();
    all.filter(|session| session.get("lane") == Some(&Value::Bool(true))).count()
}

/// None was lost without a word: all that were kept are kept, or ended for a reason.
fn all_accounted(said: &Value) -> anyhow::Result<()> {
    let all = said.get("ended").and_then(Value::as_array).into_iter().flatten();
    let ended: u64 = all.filter_map(|named| named.get("n")?.as_u64()).sum();
    let so_far = said.get("so_far").and_then(Value::as_u64);
    ensure!(so_far == Some(kept(said) as u64 + ended), "one is not accounted for: {said}");
    Ok(())
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
    wait(case, &settings, "the old session is no lane", |said| kept(said) == 1 && lanes(said) == 1)?;
    wire.command("LOGOUT")?.ok()?;
    wait(case, &settings, "the lane is not replaced", |said| {
        kept(said) == 1 && lanes(said) == 0 && ended(said, "replaced") == 1
    })?;
    all_accounted(&ask(case, &settings, &[])?)?;
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
    // Dovecot's processes outlive their master by some seconds.
    wait_for(case, &settings, 3 * STALL, "a dead server", |said| {
        kept(said) == 0 && ended(said, "origin-lost") == 1
    })?;
    all_accounted(&ask(case, &settings, &[])?)?;
    Ok(())
}

/// What Dovecot allows a user unless it is told otherwise.
const DOVECOT_ALLOWS: usize = 10;

/// A user opens as many connections as his server allows while one of his is kept: none of his logins is refused.
pub(crate) fn user_comes_first(case: &Case) -> anyhow::Result<()> {
    let server = Server::Dovecot;
    let limit = format!("{NO_PENALTY}mail_max_userip_connections = {DOVECOT_ALLOWS}\n");
    let (site, settings, _waypost) = start_with(case, server, &limit, "")?;
    leave(&site, server)?;
    wait(case, &settings, "nothing was kept", |said| kept(said) == 1)?;
    let mut wires = Vec::new();
    for nth in 1..=DOVECOT_ALLOWS {
        let mut wire = site.through(server, "alice").with_context(|| format!("login {nth}"))?;
        wire.command("SELECT INBOX")?.ok()?;
        wires.push(wire);
    }
    wait(case, &settings, "ours is in the way", |said| kept(said) == 0 && ended(said, "budget") == 1)?;
    all_accounted(&ask(case, &settings, &[])?)?;
    Ok(())
}

/// The operator allowed more than the server does: one login is refused, ours goes, the next is not, and it is remembered.
pub(crate) fn limit_is_learned(case: &Case) -> anyhow::Result<()> {
    let server = Server::Dovecot;
    let limit = format!("{NO_PENALTY}mail_max_userip_connections = {DOVECOT_ALLOWS}\n");
    let (site, settings, _waypost) = start_with(case, server, &limit, "user_connections_max = 50")?;
    leave(&site, server)?;
    wait(case, &settings, "nothing was kept", |said| kept(said) == 1)?;
    let mut wires = Vec::new();
    for nth in 1..DOVECOT_ALLOWS {
        wires.push(site.through(server, "alice").with_context(|| format!("login {nth}"))?);
    }
    ensure!(lanes(&ask(case, &settings, &[])?) == 1, "there is no lane beside {}", wires.len());
    ensure!(site.through(server, "alice").is_err(), "the server allows more than it says");
    wait(case, &settings, "ours is in the way", |said| kept(said) == 0 && ended(said, "connections") == 1)?;
    wires.push(site.through(server, "alice").context("the login after ours went")?);
    let mut last = wires.pop().context("a connection")?;
    last.command("LOGOUT")?.ok()?;
    wait(case, &settings, "the limit was forgotten", |said| {
        ended(said, "budget") == 1 && said.get("limited_accounts").and_then(Value::as_u64) == Some(1)
    })?;
    Ok(())
}

/// On a line of 100 ms and 10 Mbit/s a large message is fetched ahead at the rate that leaves the line's queue empty, if
/// the line's rate is known; and at the line's own, where it is said to be faster. Octets of packets are counted: the body
/// is compressed.
pub(crate) fn window(case: &Case) -> anyhow::Result<()> {
    let server = Server::Dovecot;
    for (note, line_rate, wanted) in
        [("mbit_per_s", "10 Mbit/s", 3.5..7.0), ("mbit_per_s_of_a_fast_line", "1 Gbit/s", 8.5..10.5)]
    {
        let lines = format!("line_rate = \"{line_rate}\"");
        let (site, settings, _waypost) = start_with(case, server, NO_PENALTY, &lines)?;
        site.lab.wan()?.set(&LinkBehaviour::both(Behaviour::link(100.0, 10.0)))?;
        leave(&site, server)?;
        wait(case, &settings, "nothing was kept", |said| kept(said) == 1)?;
        site.lab.wan()?.wait_flat(Duration::from_millis(500), Duration::from_secs(10))?;
        append(&mut site.beside(server, "alice")?, "INBOX", &noise("a large one", LARGE))?;
        let octets = |said: &Value| said.pointer("/sessions/0/octets").and_then(Value::as_u64).unwrap_or(0);
        let quarter = LARGE as u64 / 4;
        wait(case, &settings, "nothing came", |said| octets(said) > quarter)?;
        let (from, begun) = (site.lab.wan()?.read()?.octets(), Instant::now());
        wait(case, &settings, "the rest does not come", |said| octets(said) > 3 * quarter)?;
        let (to, took) = (site.lab.wan()?.read()?.octets(), begun.elapsed());
        let rate = (to - from) as f64 * 8.0 / took.as_secs_f64() / 1e6;
        case.note(note, rate);
        ensure!(wanted.contains(&rate), "{rate:.1} Mbit/s of a line said to have {line_rate}");
    }
    Ok(())
}

const LARGE: usize = 5_000_000;
