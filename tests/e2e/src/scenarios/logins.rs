//! The server decides every login.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::clients::{Tls, Wire};
use lab::corpus::SHARED;
use lab::{Corpus, Place};

use crate::case::Case;
use crate::site::{STALL, Server, Site, Way};
use crate::waypost::{Found, find_all, scan_files};

/// With the user's mail already in the store, a wrong password gets the server's refusal, and then nothing.
pub(crate) fn refused(case: &Case) -> anyhow::Result<()> {
    let site = Site::build(case, Corpus::sized(22, 20, 100_000), &[Server::Dovecot])?;
    let _waypost = site.waypost(case, &site.settings())?;
    let mut fill = site.through(Server::Dovecot, "alice")?;
    fill.command("SELECT INBOX")?.ok()?;
    for _ in 0..2 {
        fill.command("UID FETCH 1:5 (UID RFC822.SIZE BODY.PEEK[])")?.ok()?;
    }
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let canary = site.corpus.canary("alice");
    ensure!(canary.is_in(fill.received()), "the fill itself shows no canary: the scan would find nothing");
    let mut logins = vec!["LOGIN alice wrong".to_owned(), "LOGIN alice \"\"".to_owned()];
    logins.push("LOGIN ALICE alice-secre".to_owned());
    // base64 of \0alice\0wrong, and of \0bob\0alice-secret.
    logins.push("AUTHENTICATE PLAIN AGFsaWNlAHdyb25n".to_owned());
    logins.push("AUTHENTICATE PLAIN AGJvYgBhbGljZS1zZWNyZXQ=".to_owned());
    for login in logins {
        let (mut wire, _) = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, STALL)?;
        let reply = wire.command(&login)?;
        ensure!(reply.status.starts_with("NO"), "{login}: {}", reply.status);
        let (mut direct, _) = Wire::connect(
            &site.lab,
            Place::Lan,
            &site.account(Server::Dovecot, Way::Direct, "alice")?,
            Tls::Implicit,
            STALL,
        )?;
        let own = direct.command(&login)?.status;
        ensure!(code(&reply.status) == code(&own), "{login}: {:?}, the server says {own:?}", reply.status);
        for command in ["SELECT INBOX", "UID FETCH 1:* (BODY.PEEK[])", "FETCH 1 (ENVELOPE)"] {
            // A server may also have had enough of us.
            let Ok(reply) = wire.command(command) else { break };
            ensure!(!reply.status.starts_with("OK"), "{command} after a refused login: {}", reply.status);
        }
        ensure!(
            !canary.is_in(wire.received()),
            "{login}: stored mail went to a session that is not logged in"
        );
    }
    Ok(())
}

/// `NO [AUTHENTICATIONFAILED]` of a status.
pub(crate) fn code(status: &str) -> &str {
    status.split_once(']').map_or_else(|| status.split(' ').next().unwrap_or_default(), |(code, _)| code)
}

/// A mailbox that belongs to somebody else is refused as the server refuses it, though its mail is in the store.
pub(crate) fn somebody_elses_mailbox(case: &Case) -> anyhow::Result<()> {
    let site = Site::build(case, Corpus::sized(23, 20, 100_000), &[Server::Dovecot])?;
    let _waypost = site.waypost(case, &site.settings())?;
    let mut alice = site.through(Server::Dovecot, "alice")?;
    for mailbox in ["INBOX", "Archive"] {
        alice.command(&format!("SELECT {mailbox}"))?.ok()?;
        for _ in 0..2 {
            alice.command("UID FETCH 1:* (BODY.PEEK[])")?.ok()?;
        }
    }
    let canary = site.corpus.canary("alice");
    ensure!(canary.is_in(alice.received()), "the scan would find nothing");
    let mut bob = site.through(Server::Dovecot, "bob")?;
    let mut direct = site.beside(Server::Dovecot, "bob")?;
    for mailbox in ["shared/alice/Archive", "shared/alice/INBOX", "shared/alice", "Archive", "/alice/Archive"]
    {
        let select = format!("SELECT \"{mailbox}\"");
        let (through, own) = (bob.command(&select)?.status, direct.command(&select)?.status);
        ensure!(code(&through) == code(&own), "{select}: {through:?}, the server says {own:?}");
        if !through.starts_with("OK") {
            let fetched = bob.command("UID FETCH 1:* (BODY.PEEK[])")?;
            ensure!(!fetched.status.starts_with("OK"), "{select} refused, yet FETCH says {}", fetched.status);
        }
    }
    bob.command("SELECT INBOX")?.ok()?;
    bob.command("UID FETCH 1:* (BODY.PEEK[])")?.ok()?;
    ensure!(!canary.is_in(bob.received()), "alice's mail in bob's stream");
    Ok(())
}

/// Everybody reads everything of theirs at once, twice; nobody's octets turn up with anybody else, nor in the log.
pub(crate) fn canaries(case: &Case) -> anyhow::Result<()> {
    let site = Site::build(case, Corpus::sized(24, 30, 200_000), &[Server::Dovecot])?;
    let _waypost = site.waypost(case, &site.settings())?;
    site.send_clients(Way::Waypost)?;
    let streams = everybody_reads(&site, 2)?;
    let mut own = 0;
    for (user, stream) in &streams {
        for owner in site.corpus.users.iter().map(|user| user.name.as_str()) {
            let found = site.corpus.canary(owner).is_in(stream);
            ensure!(found == (owner == user), "{owner}'s canary in {user}'s stream: {found}");
        }
        ensure!(site.corpus.canary(SHARED).is_in(stream), "{user} did not get what everybody has");
        own += stream.len();
    }
    case.note("octets_scanned", own);
    let needles = needles(&site);
    for log in case.logs() {
        let text = std::fs::read(&log)?;
        for needle in &needles {
            let needle_text = String::from_utf8_lossy(needle);
            ensure!(find_all(&text, needle).is_empty(), "{needle_text} stands in {}", log.display());
        }
        // As words: `erin` stands in `entering`.
        let words = text.split(|octet| !octet.is_ascii_alphanumeric());
        let users = || site.corpus.users.iter().map(|user| user.name.as_bytes());
        let named = words.filter(|word| users().any(|user| user == *word)).count();
        ensure!(named == 0, "users are named {named} times in {}", log.display());
    }
    Ok(())
}

/// As [`canaries`], and then the store's directory: sealed, it shows nobody's mail; what everybody has lies there once.
pub(crate) fn sealed_store(case: &Case) -> anyhow::Result<()> {
    let site = Site::build(case, Corpus::sized(24, 30, 200_000), &[Server::Dovecot])?;
    let mut settings = site.settings();
    for sealed in [false, true] {
        settings.sealed = sealed;
        settings.store = settings.directory.join(if sealed { "sealed" } else { "open" });
        let mut waypost = site.waypost(case, &settings)?;
        // Without a key it says so.
        waypost.watch.announce("not encrypted");
        site.send_clients(Way::Waypost)?;
        let streams = everybody_reads(&site, 2)?;
        waypost.signal(libc::SIGTERM)?;
        waypost.wait(STALL)?;
        let (files, shown) = scan_files(&settings.store, &needles(&site))?;
        case.note(if sealed { "files_sealed" } else { "files_open" }, files);
        if sealed {
            let shown = shown.first().map(|file| file.display().to_string()).unwrap_or_default();
            ensure!(shown.is_empty(), "a canary or password stands in {shown}");
            let octets = octets_below(&settings.store)?;
            let received: usize = streams.iter().map(|(_, stream)| stream.len()).sum();
            case.note("store_octets", octets);
            ensure!(files > 10, "the store holds {files} files: nothing was kept, so nothing was shown");
            ensure!(octets < u64::try_from(received)?, "{octets} octets for {received} received twice");
        } else {
            // The control: the scan does find what lies there in the clear.
            ensure!(!shown.is_empty(), "without a key, no canary in {files} files: the scan is blind");
        }
    }
    Ok(())
}

/// All users at once, each `rounds` times in a session of its own; what each was sent.
fn everybody_reads(site: &Site, rounds: usize) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut wires = Vec::new();
    for user in &site.corpus.users {
        for _ in 0..rounds {
            wires.push((user, site.through(Server::Dovecot, &user.name)?));
        }
    }
    let streams = std::thread::scope(|scope| {
        let reads = wires.into_iter().map(|(user, mut wire)| {
            scope.spawn(move || -> anyhow::Result<(String, Vec<u8>)> {
                for (mailbox, _) in &user.mailboxes {
                    wire.command(&format!("SELECT {mailbox}"))?.ok()?;
                    for items in ["BODY.PEEK[]", "BODY.PEEK[HEADER]", "BODY.PEEK[]<512.4096>", "BODY.PEEK[1]"]
                    {
                        wire.command(&format!("UID FETCH 1:* (UID {items})"))?.ok()?;
                    }
                }
                Ok((user.name.clone(), wire.received().to_vec()))
            })
        });
        let reads: Vec<_> = reads.collect();
        reads.into_iter().map(|read| read.join()).collect::<Vec<_>>()
    });
    let joined = streams.into_iter().map(|read| read.map_err(|_| anyhow::anyhow!("a reader panicked"))?);
    joined.collect()
}

/// All canaries and passwords.
fn needles(site: &Site) -> Vec<Vec<u8>> {
    let users = site.corpus.users.iter();
    let mut needles: Vec<Vec<u8>> = users.clone().map(|user| user.password.clone().into_bytes()).collect();
    for owner in users.map(|user| user.name.as_str()).chain([SHARED]) {
        let canary = site.corpus.canary(owner);
        needles.extend([canary.text.into_bytes(), canary.base64.into_bytes()]);
    }
    needles
}

fn octets_below(directory: &Path) -> anyhow::Result<u64> {
    let mut octets = 0;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        octets += if path.is_dir() { octets_below(&path)? } else { path.metadata()?.len() };
    }
    Ok(octets)
}

/// One second after the login the password is nowhere in the process's memory. A control shows that the scan finds
/// what is there.
pub(crate) fn secrets(case: &Case) -> anyhow::Result<()> {
    let mut corpus = Corpus::sized(25, 10, 50_000);
    for user in &mut corpus.users {
        // Long and random enough that no other memory can hold it by chance.
        let secret = lab::corpus::Canary::of(99, &user.name).text;
        user.password = format!("pw{}", secret.get(..20).unwrap_or_default());
    }
    let site = Site::build(case, corpus, &[Server::Dovecot])?;
    let waypost = site.waypost(case, &site.settings())?;
    site.send_clients(Way::Waypost)?;
    let (alice, bob) = (site.user("alice")?.clone(), site.user("bob")?.clone());
    let mut sessions = vec![site.through(Server::Dovecot, "alice")?];
    // SASL with an initial response, and one with a continuation.
    for initial in [true, false] {
        let account = site.account(Server::Dovecot, Way::Waypost, "bob")?;
        let (mut wire, _) = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, STALL)?;
        let secret = base64(format!("\0{}\0{}", bob.name, bob.password).as_bytes());
        if initial {
            wire.command(&format!("AUTHENTICATE PLAIN {secret}"))?.ok()?;
        } else {
            let tag = wire.begin("AUTHENTICATE PLAIN")?;
            let go_on = wire.line()?;
            ensure!(go_on.starts_with(b"+"), "{}", String::from_utf8_lossy(&go_on));
            wire.send(format!("{secret}\r\n").as_bytes())?;
            wire.finish(&tag)?.ok()?;
        }
        sessions.push(wire);
    }
    // One more, refused: its password is a secret too, a mistyped one of another service, say.
    let wrong = lab::corpus::Canary::of(98, "wrong").text;
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let (mut refused, _) = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, STALL)?;
    ensure!(refused.command(&format!("LOGIN alice {wrong}"))?.status.starts_with("NO"), "{wrong} is right");
    // The control: half a command in one session more. The others say nothing after their login, which might wash the
    // password away.
    let planted = b"e2e-control-8c1f5a0d27".as_slice();
    let mut control = site.through(Server::Dovecot, "carol")?;
    control.send(b"x SELECT \"e2e-control-8c1f5a0d27")?;
    std::thread::sleep(Duration::from_secs(1));
    let bob_sasl = base64(format!("\0{}\0{}", bob.name, bob.password).as_bytes());
    // What base64 leaves recognisable of the password alone.
    let bob_sasl = bob_sasl.get(8..24).unwrap_or_default().to_owned();
    let needles =
        [planted, alice.password.as_bytes(), bob.password.as_bytes(), bob_sasl.as_bytes(), wrong.as_bytes()];
    let found = waypost.scan_memory(&needles)?;
    let names = ["control", "LOGIN", "AUTHENTICATE", "base64", "refused"];
    for (name, places) in names.into_iter().zip(&found) {
        case.note(name, places.len());
    }
    let mut found = found.into_iter().zip(names);
    let (control, _) = found.next().context("no control")?;
    ensure!(!control.is_empty(), "the control was not found: the scan is blind");
    let mut kept = Vec::new();
    let mut in_records = 0;
    for (places, name) in found {
        let (library, own): (Vec<_>, Vec<_>) = places.into_iter().partition(Found::is_in_a_record);
        in_records += library.len();
        kept.extend(own.into_iter().map(|place| format!("{name}: {place}")));
    }
    case.note("kept_by_tls_library", in_records);
    drop(sessions);
    ensure!(kept.is_empty(), "passwords are in memory a second after the login\n{}", kept.join("\n"));
    Ok(())
}

fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in octets.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, octet| bits << 8 | u32::from(*octet)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap_or(0);
            let shown = DIGITS.get(value).copied().filter(|_| digit <= chunk.len()).unwrap_or(b'=');
            out.push(char::from(shown));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, encoded) in [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
