//! More of mail through nodes on the path: the other family, the other server, what is fetched ahead, and a client that comes
//! again from the very port that its kept session has.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::clients::{Account, Tls, Wire};
use lab::net::CYRUS_ADDRESSES;
use lab::{Corpus, Place};
use serde_json::Value;

use super::pair::{Capture, Nodes};
use super::pair_mail::{all_from, front_of, read};
use crate::case::Case;
use crate::site::{NO_PENALTY, STALL, Server, Site, Way};

const PORTS: &str = "993";

/// A server of the lab behind a pair.
struct Behind<'s> {
    site: &'s Site,
    server: Server,
    at: IpAddr,
    client: IpAddr,
}

fn site(case: &Case, server: Server) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(33, 12, 100_000);
    corpus.users.retain(|user| user.name == "alice");
    Site::build_with(case, corpus, &[server], NO_PENALTY)
}

impl<'s> Behind<'s> {
    /// Clients find it at one of its addresses only.
    fn new(site: &'s Site, server: Server, v6: bool) -> anyhow::Result<Self> {
        let at: IpAddr = match (server, v6) {
            (Server::Dovecot, false) => Place::Server.v4(),
            (Server::Dovecot, true) => Place::Server.v6(),
            (Server::Cyrus, false) => CYRUS_ADDRESSES.0.into(),
            (Server::Cyrus, true) => CYRUS_ADDRESSES.1.into(),
        };
        site.lab.set_hosts(Place::Client, &[(server.host(), at)])?;
        let client = if v6 { Place::Client.v6() } else { Place::Client.v4() };
        Ok(Self { site, server, at, client })
    }

    fn section(&self) -> String {
        let ca = self.site.authority.certificate();
        format!("[[server]]\nname = {:?}\nport = 993\ntls = \"implicit\"\nca = {ca:?}\n", self.server.host())
    }

    /// Both nodes; `lines` behind the branch's section.
    fn pair<'l>(&self, case: &'l Case, lines: &str) -> anyhow::Result<Nodes<'l>>
    where
        's: 'l,
    {
        let mut nodes = Nodes::of(case, &self.site.lab)?;
        self.stand(&mut nodes, lines)?;
        Ok(nodes)
    }

    /// The nodes at their places.
    fn stand(&self, nodes: &mut Nodes<'_>, lines: &str) -> anyhow::Result<()> {
        let branch = format!("{}{}{lines}\n", front_of(self.site, nodes)?, self.section());
        let centre = format!("{}on_path = \"octets\"\n", self.section());
        nodes.start_served(Place::Centre, "intercept", PORTS, &centre)?;
        nodes.start_served(Place::Branch, "intercept", PORTS, &branch)
    }

    fn log_in(&self, place: Place, here: bool) -> anyhow::Result<Wire> {
        let direct = self.site.account(self.server, Way::Direct, "alice")?;
        let ca = if here { self.site.front_ca() } else { direct.ca };
        let account = Account { ca, ..direct };
        let (mut wire, _) = Wire::connect(&self.site.lab, place, &account, Tls::Implicit, STALL)?;
        wire.command(&format!("LOGIN {} {}", account.user, account.password))?.ok()?;
        Ok(wire)
    }

    /// INBOX in a new session of the client: its digest, its octets, and those on the WAN.
    fn visit(&self) -> anyhow::Result<(String, u64, u64)> {
        let wan = self.site.lab.wan()?;
        wan.wait_flat(Duration::from_millis(300), STALL)?;
        wan.reset()?;
        let mut wire = self.log_in(Place::Client, true)?;
        let (digest, octets) = read(&mut wire)?;
        wire.command("LOGOUT")?;
        Ok((digest, octets, wan.read()?.octets()))
    }

    /// Beginnings of connections, where a place's device sees them.
    fn watch(&self, place: Place) -> anyhow::Result<Capture> {
        let begins = "tcp[tcpflags] & tcp-syn != 0 or (ip6 and ip6[53] & 2 != 0)";
        let filter = format!("tcp port 993 and host {} and ({begins})", self.at);
        Capture::of(self.site.lab.command(place, "tcpdump"), "eth0", &filter)
    }

    /// The ends of `n` connections or more saw each other, and nobody else.
    fn ends(&self, at_client: Capture, at_server: Capture, n: usize) -> anyhow::Result<()> {
        let (client, server) = (format!("{}.", self.client), format!("{}.993", self.at));
        let there = format!("{server}: Flags [S]");
        for (what, capture) in [("client", at_client), ("server", at_server)] {
            let lines = capture.lines()?;
            let syns: Vec<_> = lines.iter().filter(|line| line.contains("Flags [S]")).collect();
            let ours = |line: &&&String| line.contains(&client) && line.contains(&there);
            ensure!(syns.len() >= n && syns.iter().all(|line| ours(&line)), "the {what}'s device: {lines:?}");
            let answers = lines.iter().filter(|line| line.contains("Flags [S.]") && line.contains(&server));
            ensure!(answers.count() >= n, "the {what}'s device shows no answers: {lines:?}");
        }
        Ok(())
    }
}

/// Two visits, the second out of the store; both ends see each other; without the branch's section each visit crosses.
fn through(case: &Case, server: Server, v6: bool) -> anyhow::Result<()> {
    let site = site(case, server)?;
    let behind = Behind::new(&site, server, v6)?;
    let truth = read(&mut behind.log_in(Place::Lan, false)?)?.0;
    let mut nodes = behind.pair(case, "compress = false")?;
    let (at_client, at_server) = (behind.watch(Place::Client)?, behind.watch(Place::Server)?);
    let (first, octets, cold) = behind.visit()?;
    let (second, _, warm) = behind.visit()?;
    ensure!(first == truth && second == truth, "what is read is not what is there");
    ensure!(cold > octets / 2, "control: only {cold} octets on the WAN for {octets} of mail");
    ensure!(warm < cold / 4, "the second visit cost {warm} octets on the WAN, the first {cold}");
    behind.ends(at_client, at_server, 2)?;
    if server == Server::Dovecot {
        // One session beside the server came before.
        ensure!(all_from(&site, behind.client, 1)? == 2, "the server saw others than the two visits");
    }
    case.note("wan-first", cold);
    case.note("wan-second", warm);
    let word = format!("mail of {}", server.host());
    explained(&nodes, Place::Branch, &behind, 993, Some(&word))?;
    explained(&nodes, Place::Branch, &behind, 22, None)?;
    explained(&nodes, Place::Centre, &behind, 993, None)?;
    // The control: the branch does not know the server.
    nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Branch)?.wait(STALL)?;
    nodes.start_served(Place::Branch, "intercept", PORTS, "")?;
    explained(&nodes, Place::Branch, &behind, 993, None)?;
    for visit in 1..=2 {
        site.lab.wan()?.reset()?;
        let mut wire = behind.log_in(Place::Client, false)?;
        ensure!(read(&mut wire)?.0 == truth, "visit {visit} reads something else");
        let crossed = site.lab.wan()?.read()?.octets();
        ensure!(crossed > octets / 2, "visit {visit}: {crossed} octets on the WAN for {octets} of mail");
    }
    Ok(())
}

/// Whether `explain` says that a connection to this port is a session of mail.
fn explained(
    nodes: &Nodes<'_>,
    place: Place,
    behind: &Behind<'_>,
    port: u16,
    session: Option<&str>,
) -> anyhow::Result<()> {
    let socket = nodes.directory(place).join("admin.sock");
    let (client, server) =
        (behind.client.to_string(), std::net::SocketAddr::new(behind.at, port).to_string());
    let said = nodes.run(&["explain", &client, &server, "--socket", super::pair::text(&socket)?])?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = said.lines().find(|line| line.trim_start().starts_with("session"));
    match (line, session) {
        (Some(line), Some(word)) => ensure!(line.contains(word), "{}: {said}", place.name()),
        (line, session) => ensure!(line.is_some() == session.is_some(), "{}, {port}: {said}", place.name()),
    }
    Ok(())
}

/// One section serves both of IMAP's ports; the store is one. The control: a port that is not IMAP's is carried, and one for
/// which nobody serves is the server's own.
pub(crate) fn both_ports(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Dovecot)?;
    let behind = Behind::new(&site, Server::Dovecot, false)?;
    let mut nodes = Nodes::of(case, &site.lab)?;
    let branch = format!("{}{}compress = false\n", front_of(&site, &nodes)?, behind.section());
    for (served, section) in [(true, branch.as_str()), (false, "")] {
        let centre = format!("{}on_path = \"octets\"\n", behind.section());
        nodes.start_served(Place::Centre, "intercept", "143, 993", &centre)?;
        nodes.start_served(Place::Branch, "intercept", "143, 993", section)?;
        let mut digests = Vec::new();
        for (port, tls) in [(993, Tls::Implicit), (143, Tls::Plain)] {
            let wan = site.lab.wan()?;
            wan.wait_flat(Duration::from_millis(300), STALL)?;
            wan.reset()?;
            let direct = site.account(Server::Dovecot, Way::Direct, "alice")?;
            let ca = if served { site.front_ca() } else { direct.ca.clone() };
            let account = Account { port, ca, ..direct };
            let (mut wire, _) = Wire::connect(&site.lab, Place::Client, &account, tls, STALL)?;
            if tls == Tls::Plain {
                wire.start_tls()?;
            }
            wire.command(&format!("LOGIN {} {}", account.user, account.password))?.ok()?;
            let (digest, octets) = read(&mut wire)?;
            wire.command("LOGOUT")?;
            let crossed = wan.read()?.octets();
            let warm = served && port == 143;
            ensure!(
                (crossed < octets / 4) == warm,
                "{port}: {crossed} octets on the WAN for {octets} of mail"
            );
            digests.push(digest);
            explained(&nodes, Place::Branch, &behind, port, served.then_some("mail of mail.lab.test"))?;
        }
        ensure!(digests.windows(2).all(|two| two.first() == two.last()), "two ports, two mailboxes");
        for place in [Place::Branch, Place::Centre] {
            nodes.node(place)?.signal(libc::SIGTERM)?;
            nodes.node(place)?.wait(STALL * 2)?;
        }
    }
    all_from(&site, behind.client, 0).map(drop)
}

pub(crate) fn v6(case: &Case) -> anyhow::Result<()> {
    through(case, Server::Dovecot, true)
}

pub(crate) fn cyrus(case: &Case) -> anyhow::Result<()> {
    through(case, Server::Cyrus, false)
}

/// What `sessions` lists at the branch.
fn kept(nodes: &Nodes<'_>) -> anyhow::Result<usize> {
    let socket = nodes.directory(Place::Branch).join("admin.sock");
    let said = nodes.run(&["sessions", "--json", "--socket", super::pair::text(&socket)?])?;
    let said: Value = serde_json::from_slice(&said)?;
    Ok(said.get("sessions").and_then(Value::as_array).map_or(0, Vec::len))
}

fn until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = Instant::now();
    while !so()? {
        ensure!(began.elapsed() < STALL, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A column of `report preload`, all rows together.
fn reported(nodes: &Nodes<'_>, column: &str) -> anyhow::Result<u64> {
    let socket = nodes.directory(Place::Branch).join("admin.sock");
    let said = nodes.run(&["report", "preload", "--json", "--socket", super::pair::text(&socket)?])?;
    let said: Value = serde_json::from_slice(&said)?;
    let rows = said.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(rows.iter().filter_map(|row| row.get(column)?.as_u64()).sum())
}

/// Mail that comes while its reader is away is in the branch when he is back, and is a hit. With nothing fetched ahead it
/// crosses when he opens it.
pub(crate) fn ahead(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Dovecot)?;
    let behind = Behind::new(&site, Server::Dovecot, false)?;
    let lines =
        "compress = false\n[sustain]\nenabled = true\n[prefetch]\nenabled = true\nrate = \"100 Mbit/s\"";
    let mut nodes = Nodes::of(case, &site.lab)?;
    for (fetches, lines) in [(true, lines), (false, "compress = false")] {
        behind.stand(&mut nodes, lines)?;
        let mut wire = behind.log_in(Place::Client, true)?;
        let (before, _) = read(&mut wire)?;
        drop(wire);
        if fetches {
            until("no session is kept", || Ok(kept(&nodes)? == 1))?;
        }
        let (at_client, at_server) = (behind.watch(Place::Client)?, behind.watch(Place::Server)?);
        let mut beside = behind.log_in(Place::Lan, false)?;
        let letter = crate::mail::noise(if fetches { "first" } else { "second" }, 300_000);
        crate::mail::append(&mut beside, "INBOX", &letter)?;
        beside.command("LOGOUT")?;
        if fetches {
            until("the new mail is not fetched", || Ok(reported(&nodes, "waiting")? >= 300_000))?;
        }
        let (after, octets, crossed) = behind.visit()?;
        ensure!(after != before, "the new mail is not there");
        case.note(if fetches { "wan-ahead" } else { "wan-late" }, crossed);
        if fetches {
            ensure!(crossed < 150_000, "{crossed} octets on the WAN for {octets} of mail that is here");
            ensure!(reported(&nodes, "hits")? >= 1, "not opened as a hit");
        } else {
            ensure!(
                crossed > 300_000,
                "control: {crossed} octets on the WAN for a letter that nobody fetched"
            );
        }
        drop(at_server);
        drop(at_client);
        for place in [Place::Branch, Place::Centre] {
            nodes.node(place)?.signal(libc::SIGTERM)?;
            nodes.node(place)?.wait(STALL * 2)?;
        }
    }
    Ok(())
}

/// A client whose session is kept comes again from the same port: the server sees one connection of it at a time, the new
/// one, and the client reads its mail.
pub(crate) fn same_port(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Dovecot)?;
    let behind = Behind::new(&site, Server::Dovecot, false)?;
    let nodes = behind.pair(case, "compress = false\n[sustain]\nenabled = true")?;
    let mut sysctl = site.lab.command(Place::Client, "sysctl");
    let only = ["net.ipv4.ip_local_port_range=41000 41000", "net.ipv4.tcp_tw_reuse=1"];
    ensure!(sysctl.arg("-qw").args(only).status()?.success(), "one port");
    let (at_client, at_server) = (behind.watch(Place::Client)?, behind.watch(Place::Server)?);
    let mut digests = Vec::new();
    for round in 1..=3 {
        let mut wire = behind.log_in(Place::Client, true).with_context(|| format!("round {round}"))?;
        digests.push(read(&mut wire)?.0);
        let standing = standing_at(&site, "dst 10.81.1.10:41000")?;
        ensure!(standing == 1, "round {round}: {standing} connections of the client at the server");
        drop(wire);
        until("no session is kept", || Ok(kept(&nodes)? == 1))?;
        let standing = standing_at(&site, "dst 10.81.1.10:41000")?;
        ensure!(
            standing == 1,
            "round {round}: {standing} connections at the server of a session that is kept"
        );
        // Within a second the client's own system does not take the port again.
        std::thread::sleep(Duration::from_millis(1100));
    }
    ensure!(digests.windows(2).all(|two| two.first() == two.last()), "the visits read different mail");
    ensure!(nodes.count(Place::Branch, "carried")? >= 3, "not through the pair");
    let lines = at_server.lines()?;
    let syns = lines.iter().filter(|line| line.contains("10.81.1.10.41000 > ") && line.contains("Flags [S]"));
    ensure!(syns.count() >= 3, "the server has not seen three beginnings of that port: {lines:?}");
    let lines = at_client.lines()?;
    let syns = lines.iter().filter(|line| line.contains("10.81.1.10.41000 > ") && line.contains("Flags [S]"));
    ensure!(syns.count() >= 3, "the client did not come three times from that port: {lines:?}");
    all_from(&site, behind.client, 0)?;
    Ok(())
}

/// Connections of mail that stand at the server, of this kind.
fn standing_at(site: &Site, filter: &str) -> anyhow::Result<usize> {
    let mut command = site.lab.command(Place::Server, "ss");
    let output = command.args(["-Htn", "state", "established", filter]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}
