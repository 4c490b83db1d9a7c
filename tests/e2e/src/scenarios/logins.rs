//! The server decides every login.

use anyhow::ensure;
use lab::Corpus;
use lab::Place;
use lab::clients::{Tls, Wire};

use crate::case::Case;
use crate::site::{STALL, Server, Site, Way};

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
fn code(status: &str) -> &str {
    status.split_once(']').map_or_else(|| status.split(' ').next().unwrap_or_default(), |(code, _)| code)
}
