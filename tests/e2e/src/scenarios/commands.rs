//! The other commands: the one-line branch, check, status, trace, and what a monitor asks.

use std::fs;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::clients::{Account, Tls, Wire};
use lab::net::DOVECOT;
use lab::{Corpus, Place};
use serde_json::Value;

use crate::case::Case;
use crate::mail::bodies;
use crate::scenarios::front::eventually;
use crate::site::{STALL, Server, Site, Way};
use crate::waypost::{Settings, Waypost};

fn site(case: &Case) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(81, 10, 60_000);
    corpus.users.retain(|user| ["alice", "bob"].contains(&user.name.as_str()));
    Site::build(case, corpus, &[Server::Dovecot])
}

fn ask(case: &Case, site: &Site, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = site.lab.command(Place::Branch, &case.executable);
    command.args(arguments).env("HOME", site.lab.directory());
    Ok(command.output()?)
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// `waypost branch --mail imaps://HOST` and nothing else: serves TLS and STARTTLS to who trusts the root that it made.
pub(crate) fn branch(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let state = site.lab.directory().join("one-line");
    let mut command = site.lab.command(Place::Branch, &case.executable);
    command.args(["branch", "--mail", &format!("imaps://{DOVECOT}"), "--state-dir"]).arg(&state);
    command.arg("--origin-ca").arg(site.authority.certificate());
    let mut waypost = Waypost::spawn(case, command)?;
    // It has no key, and says so.
    waypost.watch.announce("encrypted");
    site.send_clients(Way::Waypost)?;
    let root = state.join("ca/root.pem");
    let account = Account { ca: root.clone(), ..site.account(Server::Dovecot, Way::Waypost, "alice")? };
    let mut wire = eventually("a session", || {
        waypost.still_runs()?;
        Wire::log_in(&site.lab, Place::Client, &account, STALL)
    })?;
    ensure!(bodies(&mut wire, "INBOX")?.len() == 10, "not all of the mail");
    let account = Account { port: 143, ..account };
    let (mut wire, _) = Wire::connect(&site.lab, Place::Client, &account, Tls::Plain, STALL)?;
    wire.start_tls()?;
    wire.command("LOGIN alice alice-secret")?.ok()?;
    ensure!(bodies(&mut wire, "INBOX")?.len() == 10, "not all of the mail after STARTTLS");
    let said = waypost.watch.text();
    ensure!(said.contains("root.pem"), "it does not say what clients must trust:\n{said}");
    drop(wire);
    // Ctrl-C.
    waypost.signal(libc::SIGINT)?;
    let status = waypost.wait(Duration::from_secs(40))?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

/// Every mistake of a file at once, with its line; a good file, and the server really asked.
pub(crate) fn check(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let settings = site.settings();
    let file = settings.write()?;
    let name = file.display().to_string();
    let good = ask(case, &site, &["check", "-c", &name])?;
    ensure!(good.status.success(), "a good file: {} {}", good.status, text(&good.stderr));
    let online = ask(case, &site, &["check", "-c", &name, "--online"])?;
    ensure!(
        online.status.success(),
        "online: {}\n{}{}",
        online.status,
        text(&online.stdout),
        text(&online.stderr)
    );

    let bad = file.with_file_name("bad.toml");
    let lines = fs::read_to_string(&file)?;
    let mistakes = lines
        .replace("format = \"json\"", "format = \"jsn\"")
        .replace("size_max = \"1 GiB\"", "size_max = \"1 KiB\"")
        .replace("[tls]", "[tsl]");
    fs::write(&bad, &mistakes)?;
    let answer = ask(case, &site, &["check", "-c", &bad.display().to_string()])?;
    let said = text(&answer.stdout) + &text(&answer.stderr);
    ensure!(answer.status.code() == Some(64), "a bad file: {}\n{said}", answer.status);
    for (mistake, advice) in [("jsn", "json"), ("1 KiB", "MiB"), ("tsl", "tls")] {
        let line =
            mistakes.lines().position(|line| line.contains(mistake)).context("the mistake is gone")? + 1;
        ensure!(said.contains(&format!(":{line}:")), "{mistake}: line {line} is not named:\n{said}");
        ensure!(said.contains(advice), "{mistake}: {advice} is not offered:\n{said}");
    }

    for pid in site.lab.processes(Place::Server) {
        drop(lab::sys::kill(pid, libc::SIGKILL));
    }
    let dead = ask(case, &site, &["check", "-c", &name, "--online"])?;
    ensure!(dead.status.code() == Some(69), "a dead server: {}\n{}", dead.status, text(&dead.stderr));
    Ok(())
}

/// `status`, `trace` and the monitor's pages tell how things are, and never whose they are.
pub(crate) fn status(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let settings = site.settings();
    let mut waypost = site.waypost(case, &settings)?;
    let name = settings.write()?.display().to_string();
    let mut sessions = Vec::new();
    for user in ["alice", "alice", "bob"] {
        let mut wire = site.through(Server::Dovecot, user)?;
        bodies(&mut wire, "INBOX")?;
        sessions.push(wire);
    }
    let answer = ask(case, &site, &["status", "--json", "--sessions", "-c", &name])?;
    ensure!(answer.status.success(), "status: {} {}", answer.status, text(&answer.stderr));
    let shown: Value = serde_json::from_slice(&answer.stdout).context("status --json is no JSON")?;
    let shown = shown.to_string();
    ensure!(shown.contains(DOVECOT), "status names no server: {shown}");
    let plain = ask(case, &site, &["status", "-c", &name])?;
    ensure!(plain.status.success() && !plain.stdout.is_empty(), "status for people: {}", text(&plain.stderr));
    let trace = ask(case, &site, &["trace", "alice", "-c", &name])?;
    ensure!(trace.status.success() && !trace.stdout.is_empty(), "trace: {}", text(&trace.stderr));
    let mut pages = String::new();
    for page in ["/livez", "/readyz", "/metrics"] {
        let answer = get(&site, page)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{page}: {answer}");
        pages += &answer;
    }
    ensure!(pages.contains("waypost_"), "no metric of ours: {pages}");
    for (what, shown) in [("status", &shown), ("the monitor's pages", &pages)] {
        for user in &site.corpus.users {
            ensure!(!shown.contains(&user.name), "{what} names {}", user.name);
            ensure!(!site.corpus.canary(&user.name).is_in(shown.as_bytes()), "{what} shows mail");
        }
    }
    waypost.signal(libc::SIGTERM)?;
    waypost.wait(Duration::from_secs(40))?;
    let gone = ask(case, &site, &["status", "-c", &name])?;
    ensure!(gone.status.code() == Some(69), "status of a node that is not there: {}", gone.status);
    Ok(())
}

/// A page of the monitor's listener inside the branch.
pub(crate) fn get(site: &Site, page: &str) -> anyhow::Result<String> {
    let ca = site.front_ca();
    let mut wire = Wire::dial(&site.lab, Place::Branch, Settings::METRICS, "localhost", &ca, STALL)?;
    let host = "Host: localhost\r\nConnection: close\r\n\r\n";
    wire.send(format!("GET {page} HTTP/1.1\r\n{host}").as_bytes())?;
    Ok(text(&wire.until_closed(Duration::from_secs(5))?))
}
