//! What a client gets through the executable is what it would have got: direct, with an empty store, with a warm one.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use lab::Corpus;
use lab::corpus::{Contents, User};
use sha2::{Digest, Sha256};

use crate::arm::{Arms, Client};
use crate::case::Case;
use crate::mail::{append, bodies, noise, same_bodies, uid};
use crate::site::{Server, Site};

pub(crate) fn curl_dovecot(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Dovecot, Client::Curl, "alice")
}

pub(crate) fn mbsync_dovecot(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Dovecot, Client::Mbsync, "carol")
}

pub(crate) fn mutt_dovecot(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Dovecot, Client::Mutt, "alice")
}

pub(crate) fn imaplib_dovecot(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Dovecot, Client::Imaplib, "carol")
}

pub(crate) fn items_dovecot(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Dovecot, Client::Scripted, "carol")
}

pub(crate) fn curl_cyrus(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Cyrus, Client::Curl, "alice")
}

pub(crate) fn mbsync_cyrus(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Cyrus, Client::Mbsync, "carol")
}

pub(crate) fn mutt_cyrus(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Cyrus, Client::Mutt, "alice")
}

pub(crate) fn imaplib_cyrus(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Cyrus, Client::Imaplib, "carol")
}

pub(crate) fn items_cyrus(case: &Case) -> anyhow::Result<()> {
    identical(case, Server::Cyrus, Client::Scripted, "carol")
}

pub(crate) fn thunderbird_dovecot(case: &Case) -> anyhow::Result<()> {
    thunderbird(case, Server::Dovecot)
}

pub(crate) fn thunderbird_cyrus(case: &Case) -> anyhow::Result<()> {
    thunderbird(case, Server::Cyrus)
}

/// Small messages: larger ones Thunderbird reads in chunks whose lengths follow its clock.
fn thunderbird(case: &Case, server: Server) -> anyhow::Result<()> {
    let mut corpus = corpus("alice");
    corpus.attachment_octets_max = 30_000;
    run(case, server, Client::Thunderbird, corpus, "alice").map(drop)
}

pub(crate) fn warm_mbsync_dovecot(case: &Case) -> anyhow::Result<()> {
    warm_mbsync(case, Server::Dovecot)
}

pub(crate) fn warm_mbsync_cyrus(case: &Case) -> anyhow::Result<()> {
    warm_mbsync(case, Server::Cyrus)
}

pub(crate) fn warm_open_dovecot(case: &Case) -> anyhow::Result<()> {
    warm_open(case, Server::Dovecot)
}

pub(crate) fn warm_open_cyrus(case: &Case) -> anyhow::Result<()> {
    warm_open(case, Server::Cyrus)
}

/// One user is enough for one client; the servers start faster.
fn corpus(user: &str) -> Corpus {
    let mut corpus = Corpus::sized(21, 24, 300_000);
    corpus.users.retain(|User { name, .. }| name == user);
    corpus
}

fn run(case: &Case, server: Server, client: Client, corpus: Corpus, user: &str) -> anyhow::Result<Arms> {
    let site = Site::build(case, corpus, &[server])?;
    let _waypost = site.waypost(case, &site.settings())?;
    let arms = Arms::run(&site, server, client, user)?;
    let figure =
        |what: fn(&crate::arm::Arm) -> u64| [&arms.direct, &arms.cold, &arms.warm].map(what).to_vec();
    case.note("items", arms.direct.given.digest.len());
    case.note("wan_down_octets", figure(|arm| arm.wan.down.in_octets));
    case.note("client_octets", figure(|arm| arm.given.octets));
    case.note("round_trips", figure(|arm| arm.wan.round_trips()));
    case.note("milliseconds", figure(|arm| u64::try_from(arm.took.as_millis()).unwrap_or(u64::MAX)));
    arms.are_identical()?;
    Ok(arms)
}

fn identical(case: &Case, server: Server, client: Client, user: &str) -> anyhow::Result<()> {
    run(case, server, client, corpus(user), user).map(drop)
}

/// mbsync asks for every body once; what is left on a warm line is TLS, the login, SELECT and the flags.
fn warm_mbsync(case: &Case, server: Server) -> anyhow::Result<()> {
    let arms = run(case, server, Client::Mbsync, corpus("alice"), "alice")?;
    let (direct, warm) = (arms.direct.wan.down.in_octets, arms.warm.wan.down.in_octets);
    ensure!(warm <= direct / 50, "the warm run took {warm} octets over the line, the direct one {direct}");
    Ok(())
}

/// curl selects, fetches one body and leaves: five messages a mailbox.
fn warm_open(case: &Case, server: Server) -> anyhow::Result<()> {
    let mut corpus = corpus("alice");
    // Large enough that ten sessions' handshakes are small beside them.
    corpus.attachment_octets_max = 1 << 20;
    for user in &mut corpus.users {
        user.mailboxes.retain(|(name, _)| name == "INBOX");
        for (_, contents) in &mut user.mailboxes {
            *contents = Contents::Office(30);
        }
    }
    let arms = run(case, server, Client::Curl, corpus, "alice")?;
    let (direct, warm) = (arms.direct.wan.down.in_octets, arms.warm.wan.down.in_octets);
    let bodies = arms.direct.given.octets;
    ensure!(
        warm <= direct.saturating_sub(bodies * 9 / 10),
        "the warm run took {warm} octets over the line, the direct one {direct}, of which {bodies} were the client's"
    );
    Ok(())
}

/// As mbsync asks: one FETCH a message, all sent before the first answer is read. Every body must come under its own
/// UID, whole, and every command must end.
pub(crate) fn pipelined(case: &Case) -> anyhow::Result<()> {
    for server in [Server::Dovecot, Server::Cyrus] {
        let site = Site::build(case, corpus("alice"), &[server])?;
        let _waypost = site.waypost(case, &site.settings())?;
        let truth = bodies(&mut site.beside(server, "alice")?, "INBOX")?;
        for run in ["cold", "warm", "warmer"] {
            let mut wire = site.through(server, "alice")?;
            wire.command("SELECT INBOX")?.ok()?;
            wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
            let commands = truth.keys().map(|uid| wire.begin(&format!("UID FETCH {uid} (BODY.PEEK[])")));
            let mut open: Vec<String> = commands.collect::<anyhow::Result<_>>()?;
            let mut got = BTreeMap::new();
            while !open.is_empty() {
                let response =
                    wire.response().with_context(|| format!("{server:?}, {run}, {} open", open.len()))?;
                let text = response.text();
                if let Some((tag, status)) = text.split_once(' ').filter(|(tag, _)| *tag != "*") {
                    let at = open.iter().position(|open| open == tag);
                    let at = at.with_context(|| format!("{server:?}, {run}: nobody waits for {text:?}"))?;
                    ensure!(status.starts_with("OK"), "{server:?}, {run}: {text}");
                    open.remove(at);
                } else if let ([body], Some(uid)) = (response.literals.as_slice(), uid(&response)) {
                    got.insert(uid, Sha256::digest(body).to_vec());
                }
            }
            same_bodies(&format!("{server:?}, {run}"), &truth, &got)?;
        }
    }
    Ok(())
}

pub(crate) fn pieces_dovecot(case: &Case) -> anyhow::Result<()> {
    pieces(case, Server::Dovecot)
}

pub(crate) fn pieces_cyrus(case: &Case) -> anyhow::Result<()> {
    pieces(case, Server::Cyrus)
}

/// A client that reads a large message in pieces and never asks how large it is: the first piece crosses twice, the rest
/// once, and for the next reader nothing.
fn pieces(case: &Case, server: Server) -> anyhow::Result<()> {
    const PIECE: usize = 65_536;
    let site = Site::build(case, corpus("alice"), &[server])?;
    let _waypost = site.waypost(case, &site.settings())?;
    let octets = noise("in pieces", 1 << 20);
    append(&mut site.beside(server, "alice")?, "INBOX", &octets)?;
    let truth = bodies(&mut site.beside(server, "alice")?, "INBOX")?;
    let (last, digest) = truth.last_key_value().context("no message")?;
    let readers = [("first_reader_octets", octets.len() + 3 * PIECE), ("second_reader_octets", PIECE)];
    for (reader, crosses_max) in readers {
        let mut wire = site.through(server, "alice")?;
        wire.command("SELECT INBOX")?.ok()?;
        wire.command("UID FETCH 1:* (UID FLAGS)")?.ok()?;
        site.lab.wan()?.reset()?;
        let mut all = Sha256::new();
        for first in (0..).step_by(PIECE) {
            let fetch = format!("UID FETCH {last} (UID BODY.PEEK[]<{first}.{PIECE}>)");
            let reply = wire.command(&fetch)?.ok()?;
            let piece = reply.literals().next().context("no piece")?;
            all.update(piece);
            if piece.len() < PIECE {
                break;
            }
        }
        ensure!(all.finalize().to_vec() == *digest, "{reader}: something else was read");
        let crossed = site.lab.wan()?.read()?.down.payload_octets;
        case.note(reader, crossed);
        ensure!(crossed < u64::try_from(crosses_max)?, "{reader}: {crossed} crossed");
    }
    Ok(())
}
