//! What tests of the house share: sessions that are left behind, and a server that keeps on listening.

use discovery_core::{
    id::{AccountKey, ServerId, UserKey},
    now::{Now, UnixMillis},
};
use imap_core::{capability::Capabilities, retained::Facts};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

pub(crate) fn account(user: u8) -> AccountKey {
    let server = ServerId::new("mail.example.org").expect("a name");
    AccountKey { server, user: UserKey { version: 1, hash: [user; 16] } }
}

#[expect(clippy::disallowed_methods, reason = "this is a test of the shell")]
pub(crate) fn facts(user: u8) -> Facts {
    Facts {
        number: u64::from(user),
        last_fill: 0,
        nonce: [user; 6],
        account: account(user),
        authenticated: Now { mono: Instant::now(), wall: UnixMillis(0) },
        token: false,
        capabilities: Capabilities::from_list(b"IMAP4rev1 IDLE"),
        utf8: false,
        mailbox: None,
        idle: None,
    }
}

/// A server, until the other side goes.
pub(crate) async fn serve(io: DuplexStream) -> std::io::Result<()> {
    let mut io = BufReader::new(io);
    let mut line = String::new();
    while io.read_line(&mut line).await? > 0 {
        let (tag, command) = line.trim_end().split_once(' ').unwrap_or_default();
        let said = match command {
            "EXAMINE INBOX" => format!("* 1 EXISTS\r\n* OK [UIDVALIDITY 7] it\r\n{tag} OK open\r\n"),
            "IDLE" => "+ go on\r\n".to_owned(),
            "LOGOUT" => format!("* BYE out\r\n{tag} OK out\r\n"),
            _ => format!("* SEARCH 1\r\n{tag} OK found\r\n"),
        };
        io.write_all(said.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
