//! Mail through nodes on the path: clients connect to the server's own address, the branch's node serves them, the
//! server sees each client's address, and where a node may not end a session nobody notices it.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::clients::{Account, Tls, Wire};
use lab::net::DOVECOT;
use lab::{Corpus, Lab, LabSpec, Place};
use sha2::{Digest as _, Sha256};

use crate::case::Case;
use crate::pair::{Pair, Stand};
use crate::path::ends;
use crate::scenarios::pair::{Client, ECHO, Nodes, echo_server};
use crate::scenarios::start::{KNOWN, authenticate};
use crate::site::{NO_PENALTY, STALL, Server, Site, Way};

const PORTS: &str = "143, 993";

pub(super) fn site(case: &Case) -> anyhow::Result<Site> {
    let site = Site::build_with(case, corpus(), &[Server::Dovecot], NO_PENALTY)?;
    site.send_clients(Way::Direct)?;
    Ok(site)
}

/// A dozen messages.
fn corpus() -> Corpus {
    let mut corpus = Corpus::sized(31, 12, 100_000);
    corpus.users.retain(|user| user.name == "alice");
    corpus
}

/// What the branch knows of the mail server. `lines` for its section.
pub(super) fn branch(site: &Site, nodes: &Nodes<'_>, port: u16, lines: &str) -> anyhow::Result<String> {
    Ok(format!("{}{}{lines}\n", front_of(site, nodes)?, section(site, port)))
}

/// What clients are shown at the branch, and where mail is kept.
pub(super) fn front_of(site: &Site, nodes: &Nodes<'_>) -> anyhow::Result<String> {
    front_in(site, &nodes.directory(Place::Branch))
}

fn front_in(site: &Site, directory: &Path) -> anyhow::Result<String> {
    let front = site.front();
    let seal = directory.join("seal.key");
    std::fs::write(&seal, [7; 32])?;
    for secret in [&seal, &front.key] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(secret, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(format!(
        "[tls]\nmint = false\ncert = {:?}\nkey = {:?}\n[store]\nseal_key_file = {seal:?}\n",
        front.certificate, front.key,
    ))
}

/// What a node knows of it that serves no client.
pub(super) fn centre(site: &Site, port: u16) -> String {
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
pub(super) enum Sees {
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
pub(super) fn read(wire: &mut Wire) -> anyhow::Result<(String, u64)> {
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
pub(super) fn visit(site: &Site, port: u16, sees: Sees) -> anyhow::Result<(String, u64, u64)> {
    visit_from(site, Place::Client, port, sees)
}

fn visit_from(site: &Site, place: Place, port: u16, sees: Sees) -> anyhow::Result<(String, u64, u64)> {
    let wan = if place == Place::Client2 { site.lab.wan2()? } else { site.lab.wan()? };
    wan.reset()?;
    let mut wire = log_in(site, place, port, sees)?;
    let (digest, octets) = read(&mut wire)?;
    wire.command("LOGOUT")?;
    Ok((digest, octets, wan.read()?.octets()))
}

/// Every login that the server has seen since `before` logins came from the client's own address; how many.
fn all_from_the_client(site: &Site, before: usize) -> anyhow::Result<usize> {
    all_from(site, Place::Client.v4(), before)
}

/// The same of a client at this address.
pub(super) fn all_from(site: &Site, client: std::net::IpAddr, before: usize) -> anyhow::Result<usize> {
    let client = format!("rip={client},");
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
fn wrong_password(site: &Site, place: Place, port: u16) -> anyhow::Result<()> {
    let mut wire = connect(site, place, port, Sees::Branch)?;
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
    visits_from(case, site, Place::Client, port)
}

fn visits_from(case: &Case, site: &Site, place: Place, port: u16) -> anyhow::Result<()> {
    let direct = {
        let mut beside = log_in(site, Place::Lan, port, Sees::Server)?;
        let (digest, _) = read(&mut beside)?;
        beside.command("LOGOUT")?;
        digest
    };
    let before = logins(site)?.len();
    let (first, octets, cold) = visit_from(site, place, port, Sees::Branch)?;
    ensure!(first == direct, "the first visit reads something else than is there");
    ensure!(cold > octets / 2, "only {cold} octets on the WAN for {octets} of mail: what was measured?");
    let (second, _, warm) = visit_from(site, place, port, Sees::Branch)?;
    ensure!(second == direct, "the second visit reads something else than is there");
    ensure!(warm < cold / 4, "the second visit cost {warm} octets on the WAN, the first {cold}");
    case.note("wan-first", cold);
    case.note("wan-second", warm);
    let seen = all_from(site, place.v4(), before)?;
    ensure!(seen == 2, "the server saw {seen} logins of 2 visits");
    wrong_password(site, place, port)
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
    let (carried, hits) = (nodes.count(Place::Branch, "carried")?, nodes.count(Place::Branch, "table-hit")?);
    // What comes behind the end of one counts as carried, too.
    ensure!(carried >= 3 && hits == 2, "{carried} connections carried, {hits} without a probe");
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
    ensure!(nodes.count(Place::Branch, "carried")? >= 2, "not carried");
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

/// The node is a bridge in the branch's own cable, without a partner: mail is served at its server's address, out of its
/// store the second time, and what is no mail passes.
pub(crate) fn bridged(case: &Case) -> anyhow::Result<()> {
    let spec = LabSpec { prefix: Some(case.prefix().to_owned()), bridged: true, ..LabSpec::new(20.0, 100.0) };
    let site =
        Site::on(case, Lab::build(spec.with_second_branch())?, corpus(), &[Server::Dovecot], NO_PENALTY)?;
    echo_server(&site.lab)?;
    // The control: without the node the same client meets the server itself, and the mail crosses each time.
    for round in 0..2 {
        let (_, octets, crossed) = visit_from(&site, Place::Client2, 993, Sees::Server)?;
        ensure!(crossed > octets / 2, "round {round}: {crossed} octets on the WAN for {octets} of mail");
    }
    let mut nodes = Pair::identify(&case.executable, &site.lab, &[Place::Cable2])?;
    let directory = site.lab.directory().join("node-bridge");
    std::fs::create_dir_all(&directory)?;
    let mut stand = Stand::bridged("br0", &["port0", "port1"], PORTS);
    stand.rules = stand.rules.replace("\"intercept\"", "\"intercept-single\"");
    stand.more = format!("{}{}compress = false\n", front_in(&site, &directory)?, section(&site, 993));
    nodes.start(&site.lab, Place::Cable2, &stand)?;
    visits_from(case, &site, Place::Client2, 993).with_context(|| nodes.account(&[Place::Cable2]))?;
    let server = SocketAddr::new(Place::Server.v4(), ECHO);
    let (stream, took) = site.lab.inside(Place::Client2, move || {
        let start = Instant::now();
        (TcpStream::connect_timeout(&server, STALL), start.elapsed())
    })?;
    let mut other = ends::Client::greeted(stream?, took, server)?;
    other.sees_the_truth()?;
    other.echoes(b"no mail")?;
    nodes.stop(Place::Cable2)
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
    let began = Instant::now();
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

/// Another executable takes over from the branch's, which holds a store: a session in course ends as at a listener, the
/// next one finds the store, and what is carried beside it goes on.
pub(crate) fn upgraded(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, 993, "compress = false")?;
    let ports = format!("{ECHO}, 993");
    nodes.start_served(Place::Centre, "intercept", &ports, &centre(&site, 993))?;
    nodes.start_served(Place::Branch, "intercept", &ports, &with_mail)?;
    echo_server(&site.lab)?;
    let (first, octets, cold) = visit(&site, 993, Sees::Branch)?;
    ensure!(cold > octets / 2, "control: only {cold} octets on the WAN for {octets} of mail");
    // Another port of the same server, of nobody's section: octets, which the old node carries on.
    let mut carried = Client::connect(&site.lab, Place::Server.v4())?;
    let mut served = log_in(&site, Place::Client, 993, Sees::Branch)?;
    ensure!(read(&mut served)?.0 == first, "a second session reads something else");
    let old = nodes.node(Place::Branch)?.node().context("no node")?;
    let began = Instant::now();
    nodes.upgrade(Place::Branch)?;
    case.note("upgrade-ms", u64::try_from(began.elapsed().as_millis())?);
    let new = nodes.node(Place::Branch)?.node().context("the service has ended")?;
    ensure!(new != old, "the same node");
    let alive = Path::new(&format!("/proc/{old}")).exists();
    ensure!(alive, "the old node is gone, with what it carries");
    carried.echoes(b"it goes on")?;
    ensure!(served.command("NOOP").is_err(), "a mail session goes on without its store");
    let (second, _, warm) = visit(&site, 993, Sees::Branch)?;
    ensure!(second == first, "after the upgrade it reads something else");
    ensure!(warm < cold / 4, "{warm} octets on the WAN for mail that the store has, {cold} at first");
    carried.echoes(b"and on")?;
    carried.ends()?;
    let supervisor = nodes.supervisor(Place::Branch)?;
    let state = supervisor.get("state").and_then(serde_json::Value::as_str);
    ensure!(state == Some("working"), "{supervisor}");
    Ok(())
}

/// What a node may not do is done by the other one, and what neither may is carried.
pub(crate) fn fallback(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, 993, "")?;
    // The centre trusts no authority of this server: TLS is the branch's own.
    nodes.start_for(Place::Centre, "intercept", PORTS)?;
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    let before = logins(&site)?.len();
    let (served, ..) = visit(&site, 993, Sees::Branch)?;
    ensure!(nodes.node(Place::Centre)?.watch.text().contains("is not opened here"), "the centre opened it");
    // Two names at one address: the client's word decides, and a third name is nobody's here.
    restart_branch(&mut nodes, &format!("{}{}", with_mail, other_name(&site)))?;
    ensure!(visit(&site, 993, Sees::Branch)?.0 == served, "by name it reads something else");
    let servers_own = certificate(&site, Place::Lan, DOVECOT)?;
    ensure!(certificate(&site, Place::Client, DOVECOT)? != servers_own, "not served here");
    let stranger = certificate(&site, Place::Client, "elsewhere.lab.test")?;
    ensure!(stranger == servers_own, "whoever asks for a name of nobody here sees another certificate");
    // The branch does not trust it either: nobody's session ends here.
    let distrusting = with_mail
        .replace(&format!("ca = {:?}", site.authority.certificate()), &format!("ca = {:?}", site.front_ca()));
    ensure!(distrusting != with_mail, "the section has no ca");
    restart_branch(&mut nodes, &distrusting)?;
    nodes.node(Place::Branch)?.watch.announce("carried as octets for a while");
    for round in 1..=2 {
        ensure!(visit(&site, 993, Sees::Server)?.0 == served, "round {round}: other octets");
    }
    all_from_the_client(&site, before)?;
    Ok(())
}

fn restart_branch(nodes: &mut Nodes<'_>, more: &str) -> anyhow::Result<()> {
    nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Branch)?.wait(STALL)?;
    nodes.start_served(Place::Branch, "intercept", PORTS, more)
}

/// A second server at the address of the first.
fn other_name(site: &Site) -> String {
    section(site, 993).replace(DOVECOT, "other.lab.test")
        + &format!("addresses = [\"{}\"]\n", Place::Server.v4())
}

/// The certificate that is seen from a place by whoever asks for `name`.
fn certificate(site: &Site, place: Place, name: &str) -> anyhow::Result<String> {
    let at = format!("{}:993", Place::Server.v4());
    let mut command = site.lab.command(place, "openssl");
    command.args(["s_client", "-connect", &at, "-servername", name]).stdin(std::process::Stdio::null());
    let said = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
    let (_, rest) = said.split_once("-----BEGIN CERTIFICATE-----").context("no certificate")?;
    Ok(rest.split("-----END").next().unwrap_or_default().to_owned())
}

/// A session outlives its client, and is in nobody's way.
pub(crate) fn kept(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, 993, "compress = false\n[sustain]\nenabled = true")?;
    nodes.start_served(Place::Centre, "intercept", PORTS, &centre(&site, 993))?;
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    let mut wire = log_in(&site, Place::Client, 993, Sees::Branch)?;
    read(&mut wire)?;
    drop(wire);
    let socket = nodes.directory(Place::Branch).join("admin.sock");
    let kept = || -> anyhow::Result<usize> {
        let socket = socket.to_str().context("a path that is no text")?;
        let said = nodes.run(&["sessions", "--json", "--socket", socket])?;
        let said: serde_json::Value = serde_json::from_slice(&said)?;
        Ok(said.get("sessions").and_then(serde_json::Value::as_array).map_or(0, Vec::len))
    };
    let began = Instant::now();
    while kept()? != 1 {
        ensure!(began.elapsed() < STALL, "no session is kept");
        std::thread::sleep(Duration::from_millis(50));
    }
    // New mail is in the store before its reader is back.
    let user = site.user("alice")?.clone();
    let message = lab::corpus::Message {
        octets: format!("From: a@lab.test\r\nSubject: new\r\n\r\n{}\r\n", "new mail ".repeat(20_000))
            .into_bytes(),
        seen: false,
        arrived: 1_800_000_000,
    };
    let wan = site.lab.wan()?;
    wan.reset()?;
    site.dovecot.as_ref().context("no Dovecot here")?.deliver(
        &user,
        "INBOX",
        &message,
        "1800000000.M1P3.lab",
    )?;
    let began = Instant::now();
    while wan.read()?.octets() < 100_000 {
        ensure!(began.elapsed() < STALL, "the new mail is not fetched");
        std::thread::sleep(Duration::from_millis(50));
    }
    wan.wait_flat(Duration::from_millis(500), STALL)?;
    let (_, octets, crossed) = visit(&site, 993, Sees::Branch)?;
    ensure!(crossed < octets / 4, "{crossed} octets on the WAN for {octets} of mail");
    all_from_the_client(&site, 0)?;
    Ok(())
}

/// With the centre's own address, and a connection that was ready before the client came.
pub(crate) fn own_address(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let own = format!("source = \"own-address\"\naddresses = [\"{}\"]\n", Place::Server.v4());
    let with_mail = branch(&site, &nodes, 993, &format!("compress = false\n{own}"))?;
    nodes.start_served(Place::Centre, "intercept", PORTS, &format!("{}{own}", centre(&site, 993)))?;
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    let (first, ..) = visit(&site, 993, Sees::Branch)?;
    let (second, ..) = visit(&site, 993, Sees::Branch)?;
    ensure!(first == second, "two visits read different mail");
    let node = format!("rip={},", Place::Centre.v4());
    let logins = logins(&site)?;
    ensure!(logins.len() == 2 && logins.iter().all(|login| login.contains(&node)), "{logins:?}");
    let text = site.dovecot.as_ref().context("no Dovecot here")?.log_text();
    let parked = || connections(&site, Place::Centre);
    let began = Instant::now();
    while parked()? == 0 {
        ensure!(began.elapsed() < STALL, "nothing is kept ready: {text}");
        std::thread::sleep(Duration::from_millis(50));
    }
    wrong_password(&site, Place::Client, 993)
}

/// How many connections to the server stand in a place.
fn connections(site: &Site, place: Place) -> anyhow::Result<usize> {
    let to = format!("dst {}", Place::Server.v4());
    let mut command = site.lab.command(place, "ss");
    let output = command.args(["-Htn", "state", "established", &to]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

/// Milliseconds of a client's start: to the TCP connection, and from there to the flags of INBOX.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// To the connection.
    pub connect: f64,
    /// From there to the last line of the flags.
    pub flags: f64,
}

/// Starts of a client that the branch knows, through a pair whose nodes know each other; `n` of them.
pub(crate) fn starts(case: &Case, round_trip_ms: f64, n: usize) -> anyhow::Result<Vec<Start>> {
    let site = site(case)?;
    let line = lab::LinkBehaviour::both(lab::Behaviour::link(round_trip_ms, 10.0));
    site.lab.wan()?.change(|link| *link = line)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let with_mail = branch(&site, &nodes, 993, "")?;
    nodes.start_served(Place::Centre, "intercept", PORTS, &centre(&site, 993))?;
    nodes.start_served(Place::Branch, "intercept", PORTS, &with_mail)?;
    for _ in 0..LEARNED {
        start(&site)?;
    }
    (0..n).map(|_| start(&site)).collect()
}

/// What is usual shows in a few times.
const LEARNED: usize = 4;

fn start(site: &Site) -> anyhow::Result<Start> {
    site.lab.wan()?.wait_flat(Duration::from_millis(500), STALL)?;
    let account = account(site, 993, Sees::Branch)?;
    let at = (site.lab.address_of(Place::Client, &account.host)?, account.port);
    let began = Instant::now();
    let mut wire = Wire::dial(&site.lab, Place::Client, at, &account.host, &account.ca, STALL)?;
    let connect = began.elapsed();
    wire.secure()?;
    wire.response()?;
    let status = authenticate(&mut wire, &account.user, &account.password)?;
    ensure!(status.starts_with("OK"), "the login: {status}");
    for command in KNOWN {
        wire.command(command)?.ok()?;
    }
    let flags = began.elapsed().saturating_sub(connect);
    wire.command("LOGOUT")?;
    Ok(Start { connect: connect.as_secs_f64() * 1e3, flags: flags.as_secs_f64() * 1e3 })
}
