//! Mail through nodes on the path: clients connect to the server's own address, the branch's node serves them, the
//! server sees each client's address, and where a node may not end a session nobody notices it.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::clients::{Account, Tls, Wire};
use lab::net::DOVECOT;
use lab::{Corpus, Place};
use sha2::{Digest as _, Sha256};

use crate::case::Case;
use crate::scenarios::pair::Nodes;
use crate::site::{NO_PENALTY, STALL, Server, Site, Way};

const PORTS: &str = "143, 993";

fn site(case: &Case) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(31, 12, 100_000);
    corpus.users.retain(|user| user.name == "alice");
    let site = Site::build_with(case, corpus, &[Server::Dovecot], NO_PENALTY)?;
    site.send_clients(Way::Direct)?;
    Ok(site)
}

/// What the branch knows of the mail server. `lines` for its section.
fn branch(site: &Site, nodes: &Nodes<'_>, port: u16, lines: &str) -> anyhow::Result<String> {
    let (front, directory) = (site.front(), nodes.directory(Place::Branch));
    let seal = directory.join("seal.key");
    std::fs::write(&seal, [7; 32])?;
    for secret in [&seal, &front.key] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(secret, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(format!(
        "[tls]\nmint = false\ncert = {:?}\nkey = {:?}\n[store]\nseal_key_file = {seal:?}\n{}{lines}\n",
        front.certificate,
        front.key,
        section(site, port)
    ))
}

/// What a node knows of it that serves no client.
fn centre(site: &Site, port: u16) -> String {
    format!("{}on_path = \"octets\"\n", section(site, port))
}

fn section(site: &Site, port: u16) -> String {
    let tls = if port == 143 { "starttls" } else { "implicit" };
    format!(
        "[[server]]\nname = {DOVECOT:?}\nport = {port}\ntls = {tls:?}\nca = {:?}\n",
        site.authority.certificate()
    )
}

/// Whose certificate a client expects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sees {
    Server,
    Branch,
}

fn account(site: &Site, port: u16, sees: Sees) -> anyhow::Result<Account> {
    let direct = site.account(Server::Dovecot, Way::Direct, "alice")?;
    let ca = if sees == Sees::Server { direct.ca } else { site.front_ca() };
    Ok(Account { port, ca, ..direct })
}

fn connect(site: &Site, place: Place, port: u16, sees: Sees) -> anyhow::Result<Wire> {
    let account = account(site, port, sees)?;
    let tls = if port == 143 { Tls::Plain } else { Tls::Implicit };
    let (mut wire, _) = Wire::connect(&site.lab, place, &account, tls, STALL)?;
    if port == 143 {
        wire.start_tls()?;
    }
    Ok(wire)
}

fn log_in(site: &Site, place: Place, port: u16, sees: Sees) -> anyhow::Result<Wire> {
    let mut wire = connect(site, place, port, sees)?;
    let user = site.user("alice")?;
    wire.command(&format!("LOGIN {} {}", user.name, user.password))?.ok()?;
    Ok(wire)
}

/// A digest of all bodies of INBOX, and how many octets they have.
fn read(wire: &mut Wire) -> anyhow::Result<(String, u64)> {
    wire.command("SELECT INBOX")?.ok()?;
    let reply = wire.command("UID FETCH 1:* (BODY.PEEK[])")?.ok()?;
    let (mut digest, mut octets) = (Sha256::new(), 0);
    for body in reply.literals() {
        digest.update(body);
        octets += u64::try_from(body.len())?;
    }
    ensure!(octets > 0, "nothing in INBOX");
    Ok((format!("{:x}", digest.finalize()), octets))
}

/// Reads INBOX in a new session of the client, and leaves. The digest, its octets, and those on the WAN.
fn visit(site: &Site, port: u16, sees: Sees) -> anyhow::Result<(String, u64, u64)> {
    let wan = site.lab.wan()?;
    wan.reset()?;
    let mut wire = log_in(site, Place::Client, port, sees)?;
    let (digest, octets) = read(&mut wire)?;
    wire.command("LOGOUT")?;
    Ok((digest, octets, wan.read()?.octets()))
}

/// Every login that the server has seen since `before` logins came from the client's own address; how many.
fn all_from_the_client(site: &Site, before: usize) -> anyhow::Result<usize> {
    let client = format!("rip={},", Place::Client.v4());
    let logins = logins(site)?;
    let others: Vec<_> = logins.iter().skip(before).filter(|login| !login.contains(&client)).collect();
    ensure!(others.is_empty(), "the server sees somebody else: {others:?}");
    ensure!(logins.len() > before, "the server has seen no login");
    Ok(logins.len() - before)
}

fn logins(site: &Site) -> anyhow::Result<Vec<String>> {
    let log = site.dovecot.as_ref().context("no Dovecot here")?.log_text();
    Ok(log.lines().filter(|line| line.contains("Login: user=")).map(str::to_owned).collect())
}

/// A wrong password is the server's to refuse, and nothing of the store is told before a login of this session.
fn wrong_password(site: &Site, port: u16) -> anyhow::Result<()> {
    let mut wire = connect(site, Place::Client, port, Sees::Branch)?;
    let canary = site.corpus.canary("alice");
    // Dovecot ends a connection at the third such mistake.
    let reply = wire.command("UID FETCH 1:* (BODY.PEEK[])")?;
    ensure!(!reply.status.starts_with("OK"), "before a login: {}", reply.status);
    let reply = wire.command("LOGIN alice wrong")?;
    ensure!(reply.status.starts_with("NO [AUTHENTICATIONFAILED]"), "a wrong password: {}", reply.status);
    let reply = wire.command("SELECT INBOX")?;
    ensure!(!reply.status.starts_with("OK"), "without a login: {}", reply.status);
    ensure!(!canary.is_in(wire.received()), "mail was told to somebody who is not logged in");
    // The same connection, and the right one.
    let user = site.user("alice")?;
    wire.command(&format!("LOGIN {} {}", user.name, user.password))?.ok()?;
    read(&mut wire)?;
    ensure!(canary.is_in(wire.received()), "the canary is not in this mail, so its absence shows nothing");
    wire.command("LOGOUT")?;
    Ok(())
}

/// Two visits, the second out of the store.
fn visits(case: &Case, site: &Site, port: u16) -> anyhow::Result<()> {
    let direct = {
        let mut beside = log_in(site, Place::Lan, port, Sees::Server)?;
        let (digest, _) = read(&mut beside)?;
        beside.command("LOGOUT")?;
        digest
    };
    let before = logins(site)?.len();
    let (first, octets, cold) = visit(site, port, Sees::Branch)?;
    ensure!(first == direct, "the first visit reads something else than is there");
    ensure!(cold > octets / 2, "only {cold} octets on the WAN for {octets} of mail: what was measured?");
    let (second, _, warm) = visit(site, port, Sees::Branch)?;
    ensure!(second == direct, "the second visit reads something else than is there");
    ensure!(warm < cold / 4, "the second visit cost {warm} octets on the WAN, the first {cold}");
    case.note("wan-first", cold);
    case.note("wan-second", warm);
    let seen = all_from_the_client(site, before)?;
    ensure!(seen == 2, "the server saw {seen} logins of 2 visits");
    wrong_password(site, port)
}

fn through_a_pair(case: &Case, port: u16) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, port, "compress = false")?;
    nodes.start_served(Place::Centre, "intercept", PORTS, &centre(&site, port))?;
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    visits(case, &site, port)?;
    let text = nodes.node(Place::Centre)?.watch.text();
    ensure!(!text.contains("is not opened here"), "the centre has not opened the server");
    let (carried, hits) =
        (nodes.count(Place::Branch, "carried")?, nodes.count(Place::Branch, "table-hit")?);
    ensure!(carried == 3 && hits == 2, "{carried} connections carried, {hits} without a probe");
    nodes.at_rest(&[Place::Branch, Place::Centre])?;
    // A server that the branch does not know: its own certificate, and each visit crosses.
    nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Branch)?.wait(STALL)?;
    nodes.start_served(Place::Branch, "intercept", PORTS, "")?;
    let before = logins(&site)?.len();
    for round in 1..=2 {
        let (_, octets, crossed) = visit(&site, port, Sees::Server)?;
        ensure!(crossed > octets / 2, "visit {round}: {crossed} octets on the WAN for {octets} of mail");
    }
    ensure!(nodes.count(Place::Branch, "carried")? == 2, "not carried");
    all_from_the_client(&site, before)?;
    Ok(())
}

/// Two visits over TLS, the second out of the store; a wrong password; without the server's section, octets.
pub(crate) fn pair(case: &Case) -> anyhow::Result<()> {
    through_a_pair(case, 993)
}

/// The same behind STARTTLS.
pub(crate) fn starttls(case: &Case) -> anyhow::Result<()> {
    through_a_pair(case, 143)
}

/// A node alone does the same with a connection from the client's address.
pub(crate) fn single(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, 993, "compress = false")?;
    nodes.start_served(Place::Branch, "intercept-single", PORTS, &with_mail)?;
    visits(case, &site, 993)?;
    nodes.at_rest(&[Place::Branch])
}

/// The branch's node is killed amid a session: its client is told so, comes back, and reads on without it.
pub(crate) fn restart(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, 993, "")?;
    nodes.start_served(Place::Centre, "intercept", PORTS, &centre(&site, 993))?;
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    let mut wire = log_in(&site, Place::Client, 993, Sees::Branch)?;
    let (through, _) = read(&mut wire)?;
    nodes.node(Place::Branch)?.kill()?;
    let began = std::time::Instant::now();
    ensure!(wire.command("NOOP").is_err(), "a session lives on without its node");
    case.note("told-ms", u64::try_from(began.elapsed().as_millis())?);
    ensure!(began.elapsed() < Duration::from_secs(2), "told after {:?}", began.elapsed());
    let before = logins(&site)?.len();
    let mut again = log_in(&site, Place::Client, 993, Sees::Server)?;
    let (direct, _) = read(&mut again)?;
    ensure!(direct == through, "it reads something else than before");
    again.command("LOGOUT")?;
    all_from_the_client(&site, before)?;
    // And when the node is there again, with what its store has kept.
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    let (kept, octets, crossed) = visit(&site, 993, Sees::Branch)?;
    ensure!(kept == direct, "it reads something else than direct");
    ensure!(crossed < octets, "{crossed} octets on the WAN for {octets} of mail that the store had");
    Ok(())
}
