//! What changes at the server while mail lies in the store: flags, messages, rights, whole mailboxes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::clients::{Response, Stalled, Wire};
use lab::rng::Rng;
use lab::{Corpus, Place, sys};
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::mail::{append, bodies, noise, same_bodies, uid};
use crate::site::{STALL, Server, Site, Way};

fn site(case: &Case, users: &[&str], servers: &[Server]) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(41, 24, 150_000);
    corpus.users.retain(|user| users.contains(&user.name.as_str()));
    Site::build(case, corpus, servers)
}

/// Puts alice's INBOX into the store, as far as there is one.
fn fill(site: &Site, server: Server) -> anyhow::Result<()> {
    let mut wire = site.through(server, "alice")?;
    for _ in 0..2 {
        bodies(&mut wire, "INBOX")?;
    }
    site.lab.wan()?.wait_flat(Duration::from_millis(300), Duration::from_secs(10))
}

fn is_seen(wire: &mut Wire, uid: u32) -> anyhow::Result<bool> {
    let reply = wire.command(&format!("UID FETCH {uid} (FLAGS)"))?.ok()?;
    let texts: Vec<String> = reply.untagged.iter().map(Response::text).collect();
    let line = texts.iter().rev().find(|text| text.contains("FETCH")).context("no FETCH response")?;
    Ok(line.contains("\\Seen"))
}

/// An unread message, opened as people open it: the OK comes when the server has the flag, and not before.
pub(crate) fn seen_dovecot(case: &Case) -> anyhow::Result<()> {
    filled(case, Server::Dovecot, seen_at)
}

/// As [`seen_dovecot`].
pub(crate) fn seen_cyrus(case: &Case) -> anyhow::Result<()> {
    filled(case, Server::Cyrus, seen_at)
}

/// With alice's INBOX in the store.
fn filled(case: &Case, server: Server, then: fn(&Site, Server) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let site = site(case, &["alice"], &[server])?;
    let waypost = site.waypost(case, &site.settings())?;
    waypost.watch.announce(server.host());
    fill(&site, server)?;
    then(&site, server)
}

fn seen_at(site: &Site, server: Server) -> anyhow::Result<()> {
    // The corpus leaves every eighth message unread, the first one too.
    let mut beside = site.beside(server, "alice")?;
    beside.command("EXAMINE INBOX")?.ok()?;
    let mut wire = site.through(server, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    wire.command("UID FETCH 1:* (FLAGS)")?.ok()?;

    ensure!(!is_seen(&mut beside, 1)?, "message 1 is read already");
    wire.command("UID FETCH 1 (BODY[])")?.ok()?;
    ensure!(is_seen(&mut beside, 1)?, "the OK came before the server had the flag");

    let stop =
        |signal| site.lab.processes(Place::Server).into_iter().try_for_each(|pid| sys::kill(pid, signal));
    let freeze = [(9, "a frozen server", true), (17, "a cut line", false)];
    for (message, what, by_signal) in freeze {
        ensure!(!is_seen(&mut beside, message)?, "message {message} is read already");
        let cut = |cut: bool| -> anyhow::Result<()> {
            if by_signal {
                return Ok(stop(if cut { libc::SIGSTOP } else { libc::SIGCONT })?);
            }
            site.lab.wan()?.change(|link| (link.up.outage, link.down.outage) = (cut, cut))
        };
        cut(true)?;
        let tag = wire.begin(&format!("UID FETCH {message} (BODY[])"))?;
        wire.set_patience(Duration::from_secs(3))?;
        let early = wire.finish(&tag);
        cut(false)?;
        match early {
            Ok(reply) => ensure!(!reply.status.starts_with("OK"), "{what}: OK although nobody set the flag"),
            Err(error) => {
                let stalled = error.chain().any(|cause| cause.is::<Stalled>());
                ensure!(stalled, "{what}: {error:#}");
                wire.set_patience(STALL)?;
                wire.finish(&tag).with_context(|| format!("after {what}"))?.ok()?;
                ensure!(is_seen(&mut beside, message)?, "after {what}: OK without the flag");
            }
        }
    }
    Ok(())
}

/// The octets of an unread message come at once out of the store, while the server is frozen; the OK does not.
pub(crate) fn unread_at_once(case: &Case) -> anyhow::Result<()> {
    let site = site(case, &["alice"], &[Server::Dovecot])?;
    let waypost = site.waypost(case, &site.settings())?;
    waypost.watch.announce(Server::Dovecot.host());
    fill(&site, Server::Dovecot)?;
    let mut wire = site.through(Server::Dovecot, "alice")?;
    wire.command("SELECT INBOX")?.ok()?;
    wire.command("UID FETCH 1:* (FLAGS)")?.ok()?;
    let stop =
        |signal| site.lab.processes(Place::Server).into_iter().try_for_each(|pid| sys::kill(pid, signal));
    stop(libc::SIGSTOP)?;
    let tag = wire.begin("UID FETCH 9 (BODY[])")?;
    wire.set_patience(Duration::from_secs(2))?;
    let first = wire.response();
    stop(libc::SIGCONT)?;
    let first = first.context("no octets while the server was frozen")?;
    ensure!(first.literals.len() == 1, "{}", first.text());
    wire.set_patience(STALL)?;
    wire.finish(&tag)?.ok()?;
    Ok(())
}

/// What a client knows of a mailbox: the UIDs in order, and what it may be told when.
struct Known {
    /// By message sequence number; `None` until told.
    uids: Vec<Option<u32>>,
}

impl Known {
    /// Takes a response in. While a FETCH, STORE or SEARCH without UID is under way nothing may vanish
    /// (RFC 9051 §7.5.1).
    fn take(&mut self, response: &Response, may_vanish: bool) -> anyhow::Result<()> {
        let Some((number, word)) = response.numbered() else { return Ok(()) };
        let text = response.text();
        let at = usize::try_from(number)?;
        match word.as_str() {
            "EXPUNGE" => {
                ensure!(may_vanish, "{text}: while message numbers are in use");
                ensure!((1..=self.uids.len()).contains(&at), "{text}: of {} messages", self.uids.len());
                self.uids.remove(at - 1);
            }
            "EXISTS" => {
                ensure!(at >= self.uids.len(), "{text}: {} messages, and none was expunged", self.uids.len());
                self.uids.resize(at, None);
            }
            "FETCH" => {
                let len = self.uids.len();
                let slot = at.checked_sub(1).and_then(|at| self.uids.get_mut(at));
                let slot = slot.with_context(|| format!("{text}: of {len} messages"))?;
                if let Some(uid) = uid(response) {
                    ensure!(slot.is_none_or(|known| known == uid), "{text}: was {slot:?}");
                    *slot = Some(uid);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A second client expunges and delivers while the first reads by message number, waits in NOOP and in IDLE.
pub(crate) fn expunge_dovecot(case: &Case) -> anyhow::Result<()> {
    filled(case, Server::Dovecot, expunges)
}

/// As [`expunge_dovecot`].
pub(crate) fn expunge_cyrus(case: &Case) -> anyhow::Result<()> {
    filled(case, Server::Cyrus, expunges)
}

fn expunges(site: &Site, server: Server) -> anyhow::Result<()> {
    let mut beside = site.beside(server, "alice")?;
    let mut truth = bodies(&mut beside, "INBOX")?;
    let mut wire = site.through(server, "alice")?;
    let mut known = Known { uids: Vec::new() };
    for response in &wire.command("SELECT INBOX")?.ok()?.untagged {
        known.take(response, false)?;
    }
    let mut rng = Rng::new(4_242);
    let (mut delivered, mut marks) = (0, 0);
    for round in 0..60_u32 {
        // The other client's act.
        if round % 4 == 0 {
            beside.command("UID STORE 1:* -FLAGS.SILENT (\\Seen)")?.ok()?;
        }
        if round % 3 == 0 {
            let victims: Vec<u32> = truth.keys().copied().collect();
            let victim = *rng.pick(&victims).context("nothing left to expunge")?;
            beside.command(&format!("UID STORE {victim} +FLAGS.SILENT (\\Deleted)"))?.ok()?;
            beside.command("EXPUNGE")?.ok()?;
        } else if round % 3 == 1 {
            delivered += 1;
            append(&mut beside, "INBOX", &noise(&format!("late {delivered}"), 9_000))?;
            beside.command("NOOP")?.ok()?;
            let reply = beside.command("UID FETCH 1:* (UID BODY.PEEK[])")?.ok()?;
            for response in &reply.untagged {
                if let ([body], Some(uid)) = (response.literals.as_slice(), uid(response)) {
                    truth.insert(uid, Sha256::digest(body).to_vec());
                }
            }
        }
        let before = known.uids.len();
        // The reader's act.
        let marked = 1 + rng.below(before);
        let (command, may_vanish) = match rng.below(12) {
            0 => ("NOOP".to_owned(), true),
            1 => ("IDLE".to_owned(), true),
            2 => (format!("FETCH 1:{before} (UID FLAGS)"), false),
            3 => (format!("UID FETCH {}:* (UID BODY.PEEK[])", 1 + rng.below(20)), true),
            4..7 => (format!("STORE {marked} +FLAGS.SILENT (mark{round})"), false),
            7 => (format!("FETCH {marked} (UID BODY.PEEK[])"), false),
            // Out of the store, with a \Seen that only the server can set: while that is under way it may tell of what
            // has vanished, and the reader may not be told yet.
            _ => (format!("FETCH {marked} (UID BODY[])"), false),
        };
        // What the reader means by the number, if it knows.
        let meant = known.uids.get(marked - 1).copied().flatten();
        let untagged = if command == "IDLE" { idle(&mut wire)? } else { wire.command(&command)?.untagged };
        for response in &untagged {
            known.take(response, may_vanish).with_context(|| format!("round {round}, {command}"))?;
            let (Some((_, word)), Some(uid)) = (response.numbered(), uid(response)) else { continue };
            if let ("FETCH", [body]) = (word.as_str(), response.literals.as_slice()) {
                let digest = Sha256::digest(body).to_vec();
                ensure!(
                    truth.get(&uid) == Some(&digest),
                    "round {round}, {command}: another body for UID {uid}"
                );
            }
        }
        if let (true, Some(meant)) = (command.starts_with("STORE"), meant) {
            beside.command("NOOP")?.ok()?;
            let marked = beside.command(&format!("UID SEARCH KEYWORD mark{round}"))?.ok()?;
            let texts: Vec<String> = marked.untagged.iter().map(Response::text).collect();
            let found =
                texts.iter().find_map(|text| text.strip_prefix("* SEARCH")).context("no SEARCH response")?;
            let hits: Vec<u32> = found.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            // It may be gone already.
            let wrong = hits.iter().any(|uid| *uid != meant);
            ensure!(!wrong, "round {round}, {command}: meant UID {meant}, the server marked {hits:?}");
            marks += hits.len();
        }
    }
    ensure!(marks > 2, "only {marks} marks were set: the test proves little");
    // In the end both know the same.
    for response in &wire.command("NOOP")?.ok()?.untagged {
        known.take(response, true)?;
    }
    for response in &wire.command(&format!("FETCH 1:{} (UID)", known.uids.len()))?.ok()?.untagged {
        known.take(response, false)?;
    }
    let own: Vec<Option<u32>> = bodies(&mut beside, "INBOX")?.into_keys().map(Some).collect();
    ensure!(known.uids == own, "the reader ends with {:?}, the server with {own:?}", known.uids);
    Ok(())
}

/// A moment in IDLE, and out of it.
fn idle(wire: &mut Wire) -> anyhow::Result<Vec<Response>> {
    let tag = wire.begin("IDLE")?;
    let mut untagged = Vec::new();
    loop {
        let response = wire.response()?;
        if response.octets.starts_with(b"+") {
            break;
        }
        untagged.push(response);
    }
    wire.set_patience(Duration::from_millis(700))?;
    loop {
        match wire.response() {
            Ok(response) => untagged.push(response),
            Err(error) if error.chain().any(|cause| cause.is::<Stalled>()) => break,
            Err(error) => return Err(error),
        }
    }
    wire.set_patience(STALL)?;
    wire.send(b"DONE\r\n")?;
    let reply = wire.finish(&tag)?.ok()?;
    untagged.extend(reply.untagged);
    Ok(untagged)
}

/// The full name under which a user sees another's mailbox.
fn seen_as(site: &Site, server: Server, user: &str, mailbox: &str) -> anyhow::Result<String> {
    let mut wire = site.beside(server, user)?;
    let reply = wire.command("LIST \"\" \"*\"")?.ok()?;
    let texts = reply.untagged.iter().map(Response::text);
    let found = texts.filter_map(|text| Some(text.rsplit_once('"')?.0.rsplit_once('"')?.1.to_owned()));
    let mut names: Vec<String> = found.collect();
    // Unquoted names stand after the separator.
    names.extend(
        reply.untagged.iter().filter_map(|response| Some(response.text().rsplit_once(' ')?.1.to_owned())),
    );
    let name = names.into_iter().find(|name| name.trim_matches('"').ends_with(mailbox));
    Ok(name.with_context(|| format!("{user} sees no {mailbox}"))?.trim_matches('"').to_owned())
}

/// Rights withdrawn and a mailbox deleted while sessions stand in them: a new session gets nothing, and an old one
/// nothing out of the store once the re-proof interval has passed.
pub(crate) fn withdrawn_cyrus(case: &Case) -> anyhow::Result<()> {
    withdrawn(case, Server::Cyrus)
}

/// As [`withdrawn_cyrus`].
pub(crate) fn withdrawn_dovecot(case: &Case) -> anyhow::Result<()> {
    withdrawn(case, Server::Dovecot)
}

fn withdrawn(case: &Case, server: Server) -> anyhow::Result<()> {
    let site = site(case, &["alice", "bob"], &[server])?;
    let mut settings = site.settings();
    settings.store_lines += "\nre_proof = \"30s\"";
    let waypost = site.waypost(case, &settings)?;
    waypost.watch.announce(server.host());
    let mut bob = site.beside(server, "bob")?;
    for mailbox in ["Team", "Doomed"] {
        bob.command(&format!("CREATE {mailbox}"))?.ok()?;
        for number in 0..3 {
            append(&mut bob, mailbox, &noise(&format!("{mailbox} {number}"), 30_000))?;
        }
        bob.command(&format!("SETACL {mailbox} alice lrs"))?.ok()?;
    }
    let names = [seen_as(&site, server, "alice", "Team")?, seen_as(&site, server, "alice", "Doomed")?];
    let mut old = Vec::new();
    for name in &names {
        let mut wire = site.through(server, "alice")?;
        for _ in 0..2 {
            let got = bodies(&mut wire, &format!("\"{name}\""))?;
            ensure!(got.len() == 3, "{name}: {} bodies before anything is withdrawn", got.len());
        }
        old.push((name, wire));
    }
    bob.command("DELETEACL Team alice")?.ok()?;
    bob.command("DELETE Doomed")?.ok()?;
    let withdrawn = Instant::now();

    for name in &names {
        let select = format!("SELECT \"{name}\"");
        let mut fresh = site.through(server, "alice")?;
        let own = site.beside(server, "alice")?.command(&select)?.status;
        let status = fresh.command(&select)?.status;
        ensure!(!own.starts_with("OK"), "the server itself still says {own} to {select}");
        ensure!(!status.starts_with("OK"), "{select}: {status}, the server says {own}");
        let reply = fresh.command("UID FETCH 1:* (BODY.PEEK[])");
        let got = reply.map(|reply| reply.literals().count()).unwrap_or_default();
        ensure!(got == 0, "{got} bodies of {name} in a session that was refused it");
    }
    // Clients keep their sessions alive like this; an end by the server or the executable is an honest answer.
    while withdrawn.elapsed() < Duration::from_secs(36) {
        std::thread::sleep(Duration::from_secs(4));
        for (_, wire) in &mut old {
            drop(wire.command("NOOP"));
        }
    }
    for (name, mut wire) in old {
        site.lab.wan()?.wait_flat(Duration::from_millis(300), Duration::from_secs(10))?;
        site.lab.wan()?.reset()?;
        let Ok(reply) = wire.command("UID FETCH 1:3 (BODY.PEEK[])") else { continue };
        let got: usize = reply.literals().map(<[u8]>::len).sum();
        let crossed = site.lab.wan()?.read()?.down.payload_octets;
        // The noise deflates to three quarters; what the origin itself shows is the origin's affair.
        ensure!(
            u64::try_from(got)? / 2 <= crossed,
            "{name}: {got} octets out of the store {:?} after they were withdrawn; {crossed} crossed the line",
            withdrawn.elapsed()
        );
    }
    Ok(())
}

/// A mailbox deleted and made anew, with other mail under the same name and the same UIDs.
pub(crate) fn recreated_dovecot(case: &Case) -> anyhow::Result<()> {
    filled(case, Server::Dovecot, again)
}

/// As [`recreated_dovecot`].
pub(crate) fn recreated_cyrus(case: &Case) -> anyhow::Result<()> {
    filled(case, Server::Cyrus, again)
}

fn again(site: &Site, server: Server) -> anyhow::Result<()> {
    let mut old = site.through(server, "alice")?;
    for _ in 0..2 {
        bodies(&mut old, "Archive")?;
    }
    let canary = site.corpus.canary("alice");
    ensure!(canary.is_in(old.received()), "the scan would find nothing");
    let mut beside = site.beside(server, "alice")?;
    for life in 1..=3 {
        delete(&mut beside, "Archive")?;
        beside.command("CREATE Archive")?.ok()?;
        for number in 0..5 {
            append(&mut beside, "Archive", &noise(&format!("life {life} number {number}"), 20_000))?;
        }
        let truth = bodies(&mut beside, "Archive")?;
        beside.command("CLOSE")?.ok()?;
        for run in ["cold", "warm"] {
            let mut fresh = site.through(server, "alice")?;
            let got = bodies(&mut fresh, "Archive")?;
            same_bodies(&format!("life {life}, {run}"), &truth, &got)?;
            ensure!(!canary.is_in(fresh.received()), "life {life}, {run}: mail of the first life");
        }
        // The session that was there before selects it again.
        let reselected = bodies(&mut old, "Archive");
        match reselected {
            Ok(got) => same_bodies(&format!("life {life}, the old session"), &truth, &got)?,
            // Its server may have ended it.
            Err(_) => old = site.through(server, "alice")?,
        }
    }
    Ok(())
}

/// Cyrus keeps what is deleted under a name with the second of its deletion, and refuses to delete a mailbox of the same
/// name twice in one second.
fn delete(wire: &mut Wire, mailbox: &str) -> anyhow::Result<()> {
    let command = format!("DELETE {mailbox}");
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        if wire.command(&command)?.ok().is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    wire.command(&command)?.ok().map(drop)
}

/// The server changes UIDVALIDITY in place, and the UIDs begin anew.
pub(crate) fn uid_validity(case: &Case) -> anyhow::Result<()> {
    let mut site = site(case, &["alice"], &[Server::Dovecot])?;
    let waypost = site.waypost(case, &site.settings())?;
    waypost.watch.announce(Server::Dovecot.host());
    fill(&site, Server::Dovecot)?;
    let mut beside = site.beside(Server::Dovecot, "alice")?;
    let before = bodies(&mut beside, "INBOX")?;
    let old = validity(&mut beside)?;
    drop(beside);
    let directory = {
        let alice = site.user("alice")?.clone();
        site.dovecot()?.maildir(&alice, "INBOX")
    };
    // Dovecot takes the clock for UIDVALIDITY, in seconds.
    std::thread::sleep(Duration::from_millis(1_100));
    // Without its lists Dovecot numbers the messages anew; with the first one gone, every UID is another message.
    for entry in std::fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("dovecot")) {
            std::fs::remove_file(path)?;
        }
    }
    let mut messages: Vec<_> = std::fs::read_dir(directory.join("cur"))?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|e| e.path())
        .collect();
    messages.sort();
    std::fs::remove_file(messages.first().context("no message")?)?;
    let mut beside = site.beside(Server::Dovecot, "alice")?;
    let truth = bodies(&mut beside, "INBOX")?;
    let new = validity(&mut beside)?;
    ensure!(old != new, "the server kept UIDVALIDITY {old}: the test proves nothing");
    let moved = truth.iter().filter(|(uid, body)| before.get(uid).is_some_and(|old| old != *body)).count();
    ensure!(moved > 10, "only {moved} UIDs became other messages: the test proves nothing");
    for run in ["first", "second"] {
        let got = bodies(&mut site.through(Server::Dovecot, "alice")?, "INBOX")?;
        same_bodies(run, &truth, &got)?;
    }
    Ok(())
}

/// INBOX's UIDVALIDITY, as the server has it.
fn validity(wire: &mut Wire) -> anyhow::Result<u32> {
    let reply = wire.command("STATUS INBOX (UIDVALIDITY)")?.ok()?;
    let text: String = reply.untagged.iter().map(Response::text).collect();
    let digits = text.split("UIDVALIDITY ").nth(1).and_then(|rest| rest.split([')', ' ']).next());
    digits.and_then(|digits| digits.parse().ok()).with_context(|| format!("no UIDVALIDITY in {text}"))
}

/// New mail is announced to a client in IDLE, and can be read.
pub(crate) fn new_mail(case: &Case) -> anyhow::Result<()> {
    let site = site(case, &["alice"], &[Server::Dovecot])?;
    let _waypost = site.waypost(case, &site.settings())?;
    let mut wire = site.through(Server::Dovecot, "alice")?;
    let before = bodies(&mut wire, "INBOX")?;
    let tag = wire.begin("IDLE")?;
    wire.response()?;
    let alice = site.user("alice")?;
    let octets = noise("new", 5_000);
    let digest = Sha256::digest(&octets).to_vec();
    let message = lab::corpus::Message { octets, seen: false, arrived: 1_700_600_000 };
    let dovecot = site.dovecot.as_ref().context("no Dovecot")?;
    dovecot.deliver(alice, "INBOX", &message, "1700600000.M1P9.lab")?;
    loop {
        let response = wire.response().context("in IDLE")?;
        if response.numbered().is_some_and(|(_, word)| word == "EXISTS") {
            break;
        }
    }
    wire.send(b"DONE\r\n")?;
    wire.finish(&tag)?.ok()?;
    let after = bodies(&mut wire, "INBOX")?;
    let new: BTreeMap<_, _> = after.iter().filter(|(uid, _)| !before.contains_key(uid)).collect();
    match new.into_values().collect::<Vec<_>>().as_slice() {
        [body] => ensure!(**body == digest, "the new message is another one"),
        other => bail!("{} new messages", other.len()),
    }
    site.send_clients(Way::Waypost)
}
