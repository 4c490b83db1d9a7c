//! The cold start of a client whose server is far: what it costs until the flags of INBOX are there, and what must not
//! come of connections that were made before it came.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::clients::Wire;
use lab::{Corpus, Place};

use crate::case::Case;
use crate::scenarios::commands::get;
use crate::site::{STALL, Server, Site, Way};

/// Round trip of the line, in milliseconds: large beside what the machine itself takes.
const ROUND_TRIP_MS: f64 = 200.0;

/// A start, step by step, in round trips of the line from the TCP connection to the flags of INBOX.
struct Start {
    /// Until it leaves.
    wire: Option<Wire>,
    greeted: f64,
    logged_in: f64,
    done: f64,
    answers: Vec<String>,
}

/// What a mail program says first.
pub(crate) const KNOWN: [&str; 3] =
    ["ID (\"name\" \"Thunderbird\")", "SELECT INBOX", "UID FETCH 1:* (FLAGS)"];

fn start(site: &Site, server: Server, user: &str, commands: &[&str]) -> anyhow::Result<Start> {
    site.send_clients(Way::Waypost)?;
    let account = site.account(server, Way::Waypost, user)?;
    let address = site.lab.address_of(Place::Client, &account.host)?;
    let at = (address, account.port);
    let mut wire = Wire::dial(&site.lab, Place::Client, at, &account.host, &account.ca, STALL)?;
    let began = Instant::now();
    let round_trips = || began.elapsed().as_secs_f64() * 1_000.0 / ROUND_TRIP_MS;
    wire.secure()?;
    wire.response()?;
    let greeted = round_trips();
    let status = authenticate(&mut wire, &account.user, &account.password)?;
    ensure!(status.starts_with("OK"), "the login: {status}");
    let logged_in = round_trips();
    let mut answers = Vec::new();
    for command in commands {
        let reply = wire.command(command)?;
        ensure!(reply.status.starts_with("OK"), "{command}: {}", reply.status);
        answers.extend(reply.untagged.iter().map(lab::clients::Response::text));
    }
    Ok(Start { wire: Some(wire), greeted, logged_in, done: round_trips(), answers })
}

/// As Thunderbird does it: the command, and the message when it is asked for.
pub(crate) fn authenticate(wire: &mut Wire, user: &str, password: &str) -> anyhow::Result<String> {
    let tag = wire.begin("AUTHENTICATE PLAIN")?;
    let prompt = wire.line()?;
    ensure!(prompt.starts_with(b"+"), "no prompt: {:?}", String::from_utf8_lossy(&prompt));
    wire.send(format!("{}\r\n", base64(format!("\0{user}\0{password}").as_bytes())).as_bytes())?;
    Ok(wire.finish(&tag)?.status)
}

fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |of: u32, at: u32| {
        let at = usize::try_from(of >> at & 63).unwrap_or_default();
        DIGITS.get(at).map_or('=', |digit| char::from(*digit))
    };
    let mut text = String::new();
    for three in octets.chunks(3) {
        let of = three.iter().fold(0, |of, octet| of << 8 | u32::from(*octet)) << (8 * (3 - three.len()));
        let digits = [18, 12, 6, 0].map(|at| digit(of, at));
        text.extend(digits.iter().take(three.len() + 1));
        text.extend(std::iter::repeat_n('=', 3 - three.len()));
    }
    text
}

fn site(case: &Case, server: Server, messages: usize, dovecot_lines: &str) -> anyhow::Result<Site> {
    let site = Site::build_with(case, Corpus::sized(41, messages, 200_000), &[server], dovecot_lines)?;
    slow(&site)?;
    Ok(site)
}

/// Makes the line long.
fn slow(site: &Site) -> anyhow::Result<()> {
    site.lab.wan()?.change(|link| *link = lab::LinkBehaviour::both(lab::Behaviour::link(ROUND_TRIP_MS, 10.0)))
}

/// A figure of `/metrics`, by the beginning of its line.
fn metric(site: &Site, start: &str) -> anyhow::Result<u64> {
    let page = get(site, "/metrics")?;
    let value = page.lines().find_map(|line| line.strip_prefix(start)?.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("no {start} in /metrics"))
}

fn until(site: &Site, figure: &str, fits: impl Fn(u64) -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !fits(metric(site, figure)?) {
        ensure!(began.elapsed() < STALL, "{figure} is {} after {STALL:?}", metric(site, figure)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

const READY: &str = "waypost_epc_parked_ready";

/// The first start ever, further ones until the client is known, a known one, and one that then asks something else.
pub(crate) fn known_dovecot(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Dovecot, 200, "")?;
    let _waypost = site.waypost(case, &site.settings())?;
    // `\Recent` is told to one session only.
    let mut before = site.beside(Server::Dovecot, "alice")?;
    for mailbox in ["INBOX", "Archive"] {
        before.command(&format!("SELECT {mailbox}"))?.ok()?;
    }
    let known = become_known(case, &site, Server::Dovecot, "alice")?;
    // By the clock, on a machine that may be busy: less than two round trips are one. The figures stand in the notes.
    ensure!(known.greeted < 0.9, "the greeting took {:.1} round trips", known.greeted);
    ensure!(known.logged_in < 1.9, "the login took {:.1} round trips", known.logged_in);
    ensure!(known.done < 1.9, "the flags took {:.1} round trips", known.done);
    let other = ["ID (\"name\" \"Thunderbird\")", "SELECT Archive", "UID FETCH 1:* (FLAGS)"];
    let mistaken = start(&site, Server::Dovecot, "alice", &other)?;
    case.note("mistaken_rtt", mistaken.done);
    let mut beside = site.beside(Server::Dovecot, "alice")?;
    let mut own = Vec::new();
    for command in &other[1..] {
        own.extend(beside.command(command)?.ok()?.untagged.iter().map(lab::clients::Response::text));
    }
    ensure!(mistaken.answers.ends_with(&own), "the mistaken client was told something else");
    wrong_behind_a_known_start(&site)
}

/// The flags of many messages do not fit into what a server sends at once; of what has changed they do.
pub(crate) fn large_dovecot(case: &Case) -> anyhow::Result<()> {
    let mut site = site(case, Server::Dovecot, 20, "")?;
    for (user, messages, _) in LARGE {
        let user = site.user(user)?.clone();
        for n in 0..messages {
            site.dovecot()?.deliver(&user, "INBOX", &small(), &format!("1700000000.M{n:06}P2.lab"))?;
        }
    }
    let _waypost = site.waypost(case, &site.settings())?;
    for (user, messages, note) in LARGE {
        let mut before = site.beside(Server::Dovecot, user)?;
        before.command("SELECT INBOX")?.ok()?;
        before.command("UID STORE 5:80,200:* +FLAGS.SILENT (\\Seen)")?.ok()?;
        before.command("LOGOUT")?;
        let known = become_known(case, &site, Server::Dovecot, user)?;
        ensure!(known.answers.len() > messages, "only {} answers", known.answers.len());
        let mut least = known.done;
        drop(known);
        // Thousands of lines take the machine itself a while, when it is busy a long one.
        for _ in 0..3 {
            until(&site, READY, |ready| ready == 2)?;
            least = least.min(start(&site, Server::Dovecot, user, &KNOWN)?.done);
        }
        ensure!(least < 1.9, "the flags of {messages} took {least:.1} round trips at least");
        case.note(if messages == 600 { "known_600_rtt" } else { "known_10000_rtt" }, least);
        changed_meanwhile(case, &mut site, user, note)?;
    }
    let (proved, doubted) = (metric(&site, PROVED)?, metric(&site, DOUBTED)?);
    ensure!(proved >= 4 && doubted == 0, "{proved} answers from what had changed, {doubted} doubted");
    Ok(())
}

fn small() -> lab::corpus::Message {
    let octets = b"From: a@lab.test\r\nSubject: one of many\r\n\r\n\r\n".to_vec();
    lab::corpus::Message { octets, seen: false, arrived: 0 }
}

const PROVED: &str = "waypost_epc_flags_ahead_total{result=\"proved\"}";
const DOUBTED: &str = "waypost_epc_flags_ahead_total{result=\"doubted\"}";

/// Whose INBOX gets how many.
const LARGE: [(&str, usize, &str); 2] =
    [("bob", 600, "changed_600_rtt"), ("alice", 10_000, "changed_10000_rtt")];

/// What others did between two starts is told at the second, and nothing else.
fn changed_meanwhile(case: &Case, site: &mut Site, user: &str, figure: &'static str) -> anyhow::Result<()> {
    let mut other = site.beside(Server::Dovecot, user)?;
    other.command("SELECT INBOX")?.ok()?;
    for change in ["+FLAGS (\\Flagged)", "-FLAGS (\\Seen)", "+FLAGS ($label)"] {
        other.command(&format!("UID STORE 7,30:40,300 {change}"))?.ok()?;
    }
    other.command("UID STORE 12:14,400 +FLAGS (\\Deleted)")?.ok()?;
    other.command("EXPUNGE")?.ok()?;
    let account = site.user(user)?.clone();
    site.dovecot()?.deliver(&account, "INBOX", &small(), "1800000000.M1P3.lab")?;
    other.command("NOOP")?.ok()?;
    until(site, READY, |ready| ready == 2)?;
    let known = start(site, Server::Dovecot, user, &KNOWN)?;
    case.note(figure, known.done);
    tells_the_same(&mut other, &known)
}

/// The flags as another session hears them directly.
fn tells_the_same(other: &mut Wire, known: &Start) -> anyhow::Result<()> {
    let mut own = Vec::new();
    for command in &KNOWN[1..] {
        own.extend(other.command(command)?.ok()?.untagged.iter().map(lab::clients::Response::text));
    }
    let own: Vec<_> = own.into_iter().filter(|line| line.contains(" FETCH (")).collect();
    let told: Vec<_> = known.answers.iter().filter(|line| line.contains(" FETCH (")).collect();
    let differs = own.iter().zip(&told).find(|(own, told)| own != *told);
    ensure!(differs.is_none() && own.len() == told.len(), "{} and {}: {differs:?}", own.len(), told.len());
    Ok(())
}

/// A known client with a wrong password hears the refusal and nothing else, and goes on.
fn wrong_behind_a_known_start(site: &Site) -> anyhow::Result<()> {
    for _ in 0..3 {
        drop(start(site, Server::Dovecot, "bob", &KNOWN)?);
        until(site, READY, |ready| ready == 2)?;
    }
    let account = site.account(Server::Dovecot, Way::Waypost, "bob")?;
    let at = (site.lab.address_of(Place::Client, &account.host)?, account.port);
    let mut bob = Wire::dial(&site.lab, Place::Client, at, &account.host, &account.ca, STALL)?;
    bob.secure()?;
    bob.response()?;
    let status = authenticate(&mut bob, "bob", "wrong")?;
    ensure!(status.starts_with("NO"), "a wrong password: {status}");
    let reply = bob.command("NOOP")?.ok()?;
    ensure!(reply.untagged.is_empty(), "after a refused login: {:?}", reply.untagged);
    let status = authenticate(&mut bob, "bob", &account.password)?;
    ensure!(status.starts_with("OK"), "the right password: {status}");
    bob.command("SELECT INBOX")?.ok()?;
    Ok(())
}

/// Starts until the client is known, and once more.
fn become_known(case: &Case, site: &Site, server: Server, user: &str) -> anyhow::Result<Start> {
    let mut first = start(site, server, user, &KNOWN)?;
    drop(first.wire.take());
    until(site, READY, |ready| ready == 2)?;
    let mut parked = start(site, server, user, &KNOWN)?;
    drop(parked.wire.take());
    // Three alike, and one that is foreseen: what it leaves to the next, nobody had asked for before.
    for _ in 0..3 {
        until(site, READY, |ready| ready == 2)?;
        drop(start(site, server, user, &KNOWN)?);
    }
    until(site, READY, |ready| ready == 2)?;
    let known = start(site, server, user, &KNOWN)?;
    note(case, &first, &parked, &known);
    ensure!(known.answers == parked.answers, "the known client was told something else");
    Ok(known)
}

fn note(case: &Case, first: &Start, parked: &Start, known: &Start) {
    case.note("parked_rtt", parked.done);
    case.note("first_greeted_rtt", first.greeted);
    case.note("first_login_rtt", first.logged_in);
    case.note("first_rtt", first.done);
    case.note("known_greeted_rtt", known.greeted);
    case.note("known_login_rtt", known.logged_in);
    case.note("known_rtt", known.done);
}

/// Nothing is kept ready at Cyrus unless the file says so; then the same holds.
pub(crate) fn known_cyrus(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Cyrus, 270, "")?;
    let mut settings = site.settings();
    {
        let mut waypost = site.waypost(case, &settings)?;
        drop(start(&site, Server::Cyrus, "alice", &KNOWN)?);
        let without = start(&site, Server::Cyrus, "alice", &KNOWN)?;
        ensure!(without.greeted > 1.5, "greeted after {:.1} round trips: from where?", without.greeted);
        ensure!(metric(&site, READY)? == 0, "a connection is kept ready at Cyrus");
        waypost.signal(libc::SIGTERM)?;
        waypost.wait(STALL)?;
    }
    for server in &mut settings.servers {
        server.lines += "parked_on_cyrus = true\n";
    }
    let _waypost = site.waypost(case, &settings)?;
    let known = become_known(case, &site, Server::Cyrus, "alice")?;
    ensure!(known.greeted < 0.9, "the greeting took {:.1} round trips", known.greeted);
    ensure!(known.done < 2.9, "the flags took {:.1} round trips", known.done);
    drop(known);
    let mut other = site.beside(Server::Cyrus, "alice")?;
    other.command("SELECT INBOX")?.ok()?;
    other.command("UID STORE 7,30:40,200 +FLAGS (\\Flagged $label)")?.ok()?;
    other.command("UID STORE 12:14,100 +FLAGS (\\Deleted)")?.ok()?;
    other.command("EXPUNGE")?.ok()?;
    until(&site, READY, |ready| ready == 2)?;
    let known = start(&site, Server::Cyrus, "alice", &KNOWN)?;
    tells_the_same(&mut other, &known)?;
    case.note("changed_rtt", known.done);
    let (proved, doubted) = (metric(&site, PROVED)?, metric(&site, DOUBTED)?);
    ensure!(proved >= 2 && doubted == 0, "{proved} answers from what had changed, {doubted} doubted");
    Ok(())
}

/// One user's wrong password does not slow the others, where the server is told whose client it is.
pub(crate) fn wrong_password(case: &Case) -> anyhow::Result<()> {
    // Whatever the branch's own address on the line is.
    let trusts = "login_trusted_networks = 10.0.0.0/8 fd00::/8\n";
    let site = site(case, Server::Dovecot, 20, trusts)?;
    let mut settings = site.settings();
    for server in &mut settings.servers {
        server.lines += "announce_client = true\n";
    }
    let _waypost = site.waypost(case, &settings)?;
    drop(start(&site, Server::Dovecot, "alice", &KNOWN)?);
    until(&site, READY, |ready| ready == 2)?;
    let account = site.account(Server::Dovecot, Way::Waypost, "bob")?;
    // From another machine of the branch: the address is what the server counts by.
    let branch = (Place::Branch.v4(), account.port);
    for _ in 0..2 {
        let mut bob = Wire::dial(&site.lab, Place::Branch, branch, &account.host, &account.ca, STALL)?;
        bob.secure()?;
        bob.response()?;
        let began = Instant::now();
        let status = authenticate(&mut bob, "bob", "wrong")?;
        ensure!(status.starts_with("NO"), "a wrong password: {status}");
        case.note("bob_refused_s", began.elapsed().as_secs_f64());
    }
    let carol = start(&site, Server::Dovecot, "carol", &KNOWN)?;
    case.note("carol_login_rtt", carol.logged_in);
    ensure!(carol.logged_in < 5.0, "carol waited {:.1} round trips for bob", carol.logged_in);
    Ok(())
}

/// A server that has too many connections cuts those that are kept ready: noticed, fewer are kept, nobody hears of it.
pub(crate) fn queue_full(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Dovecot, 20, "service imap-login {\n  process_limit = 4\n}\n")?;
    let _waypost = site.waypost(case, &site.settings())?;
    drop(start(&site, Server::Dovecot, "alice", &KNOWN)?);
    until(&site, READY, |ready| ready == 2)?;
    let server = std::net::SocketAddr::new(Place::Server.v4(), 143);
    let crowd = site.lab.inside(Place::Lan, move || {
        (0..6).map(|_| TcpStream::connect_timeout(&server, STALL)).collect::<Result<Vec<_>, _>>()
    })??;
    let cut = |what: &str| {
        format!("waypost_epc_parked_total{{server=\"{}\",result=\"{what}\"}}", Server::Dovecot.host())
    };
    until(&site, &cut("queue-full"), |n| n > 0)?;
    drop(crowd);
    for user in ["alice", "bob"] {
        drop(start(&site, Server::Dovecot, user, &KNOWN)?);
    }
    ensure!(metric(&site, READY)? <= 1, "as many are kept ready as before");
    Ok(())
}

/// What is kept ready is renewed before the server ends it.
pub(crate) fn renewed(case: &Case) -> anyhow::Result<()> {
    let site = site(case, Server::Dovecot, 20, "")?;
    let _waypost = site.waypost(case, &site.settings())?;
    drop(start(&site, Server::Dovecot, "alice", &KNOWN)?);
    let total = |what: &str| {
        format!("waypost_epc_parked_total{{server=\"{}\",result=\"{what}\"}}", Server::Dovecot.host())
    };
    until(&site, READY, |ready| ready == 2)?;
    // Dovecot ends them after 180 s.
    std::thread::sleep(Duration::from_secs(185));
    until(&site, READY, |ready| ready == 2)?;
    ensure!(metric(&site, &total("expired"))? >= 2, "none was renewed");
    ensure!(metric(&site, &total("ended"))? == 0, "the server ended some");
    let known = start(&site, Server::Dovecot, "alice", &KNOWN)?;
    ensure!(known.greeted < 0.5, "the greeting took {:.1} round trips", known.greeted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (octets, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\0a\0b", "AGEAYg=="),
        ] {
            assert_eq!(base64(octets.as_bytes()), text);
        }
    }
}
