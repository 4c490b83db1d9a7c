//! What dies, stalls and fills up.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::clients::{Tls, Wire};
use lab::corpus::Message;
use lab::{Corpus, Place, sys};
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::mail::{append, bodies, noise, same_bodies, words};
use crate::scenarios::front::large_message;
use crate::site::{STALL, Server, Site, Way};

fn site(case: &Case) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(51, 12, 100_000);
    corpus.users.retain(|user| user.name == "alice");
    Site::build(case, corpus, &[Server::Dovecot])
}

/// The server dies: who waits is told, who reads a message is not told lies, who comes is told too.
pub(crate) fn origin_dies(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let large = large_message(&site, 8 << 20)?;
    let mut waypost = site.waypost(case, &site.settings())?;
    waypost.watch.announce(Server::Dovecot.host());
    let mut idle = site.through(Server::Dovecot, "alice")?;
    idle.command("SELECT INBOX")?.ok()?;
    idle.begin("IDLE")?;
    idle.response()?;
    let mut resting = site.through(Server::Dovecot, "alice")?;
    resting.command("SELECT INBOX")?.ok()?;
    let mut reading = site.through(Server::Dovecot, "alice")?;
    reading.command("SELECT INBOX")?.ok()?;
    reading.begin(&format!("UID FETCH {large} (BODY.PEEK[])"))?;
    reading.line()?;
    reading.exactly(100_000)?;
    for pid in site.lab.processes(Place::Server) {
        drop(sys::kill(pid, libc::SIGKILL));
    }
    let cut = reading.until_closed(Duration::from_secs(20))?;
    let end = cut.get(cut.len().saturating_sub(200)..).unwrap_or_default();
    ensure!(cut.len() < 8 << 20, "the message came whole: the server was too fast for this test");
    ensure!(
        !String::from_utf8_lossy(end).contains("BYE") && !String::from_utf8_lossy(end).contains("w3"),
        "words were put into a message that was cut: {}",
        String::from_utf8_lossy(end)
    );
    for (what, wire) in [("in IDLE", &mut idle), ("at rest", &mut resting)] {
        let said = wire.until_closed(Duration::from_secs(20)).with_context(|| what)?;
        ensure!(said.starts_with(b"* BYE"), "{what}: {:?}", String::from_utf8_lossy(&said));
    }
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    if let Ok((mut late, greeting)) = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, STALL)
    {
        ensure!(greeting.text().starts_with("* BYE"), "greeted without a server: {}", greeting.text());
        late.until_closed(Duration::from_secs(5))?;
    }
    waypost.still_runs()
}

/// The line falls silent: a waiting client is told within bounds, a new one too, and all is well when it is back.
pub(crate) fn wan_outage(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut waypost = site.waypost(case, &site.settings())?;
    waypost.watch.announce(Server::Dovecot.host());
    let mut waiting = site.through(Server::Dovecot, "alice")?;
    waiting.command("SELECT INBOX")?.ok()?;
    let cut = |cut: bool| site.lab.wan()?.change(|link| (link.up.outage, link.down.outage) = (cut, cut));
    cut(true)?;
    let start = Instant::now();
    waiting.begin("STATUS Archive (MESSAGES)")?;
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    // A new client: told, or refused; or greeted by a connection that was there before, and told when it logs in.
    if let Ok((mut late, greeting)) =
        Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, Duration::from_secs(45))
    {
        let mut said = greeting.octets.clone();
        if !said.starts_with(b"* BYE") {
            late.begin(&format!("LOGIN {} {}", account.user, account.password))?;
            said = late.until_closed(WEDGED_AFTER.saturating_sub(start.elapsed()))?;
        }
        ensure!(said.starts_with(b"* BYE"), "without a server: {:?}", String::from_utf8_lossy(&said));
    }
    case.note("new_client_told_s", start.elapsed().as_secs_f64());
    let said = waiting.until_closed(WEDGED_AFTER.saturating_sub(start.elapsed()));
    let said = said.context("a client that waits for its answer")?;
    case.note("waiting_client_told_s", start.elapsed().as_secs_f64());
    ensure!(said.is_empty() || said.starts_with(b"* BYE"), "{:?}", String::from_utf8_lossy(&said));
    cut(false)?;
    let mut wire = site.through(Server::Dovecot, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    wire.command("UID FETCH 1:3 (BODY.PEEK[])")?.ok()?;
    waypost.still_runs()
}

/// Mail readers give up after one to two minutes; before that they should be told.
const WEDGED_AFTER: Duration = Duration::from_secs(90);

/// A short outage ends nothing: what was asked is answered once the line is back.
pub(crate) fn short_outage(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let _waypost = site.waypost(case, &site.settings())?;
    let mut wire = site.through(Server::Dovecot, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    let cut = |cut: bool| site.lab.wan()?.change(|link| (link.up.outage, link.down.outage) = (cut, cut));
    cut(true)?;
    let tag = wire.begin("UID FETCH 1:3 (BODY.PEEK[])")?;
    std::thread::sleep(Duration::from_secs(2));
    cut(false)?;
    let reply = wire.finish(&tag)?.ok()?;
    ensure!(reply.literals().count() == 3, "{} bodies of 3", reply.literals().count());
    Ok(())
}

/// Clients that ask for much and read nothing cost a known amount of memory; the octets wait at the server.
pub(crate) fn slow_clients(case: &Case) -> anyhow::Result<()> {
    const CLIENTS: u32 = 8;
    const OCTETS: usize = 12 << 20;
    let site = site(case)?;
    let alice = site.user("alice")?;
    let dovecot = site.dovecot.as_ref().context("no Dovecot")?;
    let canary = site.corpus.canary("alice").text;
    // Different ones: the same message for all would rightly be read once.
    for number in 0..CLIENTS {
        let octets = words(&format!("large {number}"), &canary, OCTETS);
        let message = Message { octets, seen: true, arrived: 1_700_700_000 + u64::from(number) };
        dovecot.deliver(alice, "INBOX", &message, &format!("17007000{number:02}.M{number}P9.lab"))?;
    }
    let waypost = site.waypost(case, &site.settings())?;
    // What the first of its kind costs once is not what each costs.
    let mut first = site.through(Server::Dovecot, "alice")?;
    let reply = first.command("SELECT INBOX")?.ok()?;
    let exists =
        reply.untagged.iter().find_map(|response| response.numbered().filter(|(_, word)| word == "EXISTS"));
    let (exists, _) = exists.context("no EXISTS")?;
    first.command("FETCH 1:3 (BODY.PEEK[])")?.ok()?;
    let before = waypost.memory("VmHWM")?;
    let mut slow = Vec::new();
    for number in 0..CLIENTS {
        let mut wire = site.through(Server::Dovecot, "alice")?;
        wire.command("SELECT INBOX")?.ok()?;
        wire.begin(&format!("FETCH {} (BODY.PEEK[])", exists - number))?;
        slow.push(wire);
    }
    // Until nothing moves on the line any more: every buffer on the way is full.
    site.lab.wan()?.wait_flat(Duration::from_secs(2), Duration::from_secs(30))?;
    let growth = waypost.memory("VmHWM")?.saturating_sub(before);
    case.note("growth_octets_per_client", growth / u64::from(CLIENTS));
    ensure!(
        growth <= u64::from(CLIENTS) * (2 << 20),
        "{} octets for each of {CLIENTS} clients that read nothing",
        growth / u64::from(CLIENTS)
    );
    // Late is not never.
    let mut wire = slow.pop().context("no client")?;
    let response = wire.response()?;
    let [body] = response.literals.as_slice() else { anyhow::bail!("no body") };
    ensure!(*body == words("large 0", &canary, OCTETS), "another body of {} octets", body.len());
    Ok(())
}

/// Clients that leave in the middle of a message leave nothing half behind.
pub(crate) fn clients_leave(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let large = large_message(&site, 3 << 20)?;
    let mut waypost = site.waypost(case, &site.settings())?;
    let truth = bodies(&mut site.beside(Server::Dovecot, "alice")?, "INBOX")?;
    for octets in [1, 1_000, 100_000, 1_000_000, 2_900_000] {
        let mut wire = site.through(Server::Dovecot, "alice")?;
        wire.command("SELECT INBOX")?.ok()?;
        wire.begin(&format!("UID FETCH {large},1:* (UID BODY.PEEK[])"))?;
        while wire.received().len() < octets {
            ensure!(wire.some()?.is_some(), "closed by itself");
        }
        // Without LOGOUT, without close_notify: a laptop's lid.
        drop(wire);
        let got = bodies(&mut site.through(Server::Dovecot, "alice")?, "INBOX")?;
        same_bodies(&format!("after a client left behind {octets} octets"), &truth, &got)?;
    }
    waypost.still_runs()
}

/// Many sessions of one user at once, all asking for the same large message: each gets it whole, and the line carries
/// it about once.
pub(crate) fn same_message_at_once(case: &Case) -> anyhow::Result<()> {
    const SESSIONS: usize = 8;
    let site = site(case)?;
    let _waypost = site.waypost(case, &site.settings())?;
    let octets = noise("popular", 4 << 20);
    append(&mut site.beside(Server::Dovecot, "alice")?, "INBOX", &octets)?;
    let truth = bodies(&mut site.beside(Server::Dovecot, "alice")?, "INBOX")?;
    let (popular, digest) = truth.last_key_value().context("no message")?;
    let mut wires = Vec::new();
    for _ in 0..SESSIONS {
        let mut wire = site.through(Server::Dovecot, "alice")?;
        wire.command("SELECT INBOX")?.ok()?;
        wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
        wires.push(wire);
    }
    site.lab.wan()?.reset()?;
    let command = format!("UID FETCH {popular} (BODY.PEEK[])");
    let tags = wires.iter_mut().map(|wire| wire.begin(&command)).collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let reads = wires.iter_mut().zip(&tags).map(|(wire, tag)| scope.spawn(|| wire.finish(tag)?.ok()));
        let reads: Vec<_> = reads.collect();
        for read in reads {
            let reply = read.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
            let body = reply.literals().next().context("no body")?;
            ensure!(Sha256::digest(body).to_vec() == *digest, "another body of {} octets", body.len());
        }
        anyhow::Ok(())
    })?;
    let crossed = site.lab.wan()?.read()?.down.payload_octets;
    case.note("octets_over_the_line", crossed);
    ensure!(
        crossed < 2 * u64::try_from(octets.len())?,
        "{crossed} octets over the line for one message of {}",
        octets.len()
    );
    Ok(())
}
