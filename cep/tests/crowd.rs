//! Many kept sessions in one house, over streams in memory.

use bytes::Bytes;
use cep::{
    house::{House, TURNS},
    keeper::Limits,
    plain::Plain,
    rules::Terms,
};
use discovery_core::{
    id::{AccountKey, ServerId, UserKey},
    now::{Now, UnixMillis},
    seam::sink::Sink,
};
use imap_core::{
    capability::Capabilities,
    catalog::{Catalog, CatalogOp, CatalogReply},
    preload::Preload,
    retained::{Facts, Handed, Retained},
};
use seams::AsyncIo;
use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

/// Who is inside meets up to `TURNS + 1`; nobody waits for more than a moment for one more to come.
#[derive(Default)]
struct Meeting {
    /// Inside now, at most so far, in all.
    inside: Mutex<(usize, usize, usize)>,
    changed: Condvar,
}

impl Catalog for Meeting {
    fn handle(&self, _: CatalogOp) -> Option<CatalogReply> {
        let mut inside = self.inside.lock().expect("nobody panics in here");
        inside.0 += 1;
        inside.1 = inside.1.max(inside.0);
        inside.2 += 1;
        self.changed.notify_all();
        let first = |inside: &mut (usize, usize, usize)| inside.1 <= TURNS && inside.2 <= TURNS;
        inside =
            self.changed.wait_timeout_while(inside, Duration::from_millis(300), first).expect("as above").0;
        inside.0 -= 1;
        None
    }
}

#[expect(clippy::disallowed_methods, reason = "this is a test of the shell")]
fn facts(user: u8) -> Facts {
    let server = ServerId::new("mail.example.org").expect("a name");
    Facts {
        number: u64::from(user),
        last_fill: 0,
        nonce: [user; 6],
        account: AccountKey { server, user: UserKey { version: 1, hash: [user; 16] } },
        authenticated: Now { mono: Instant::now(), wall: UnixMillis(0) },
        token: false,
        capabilities: Capabilities::from_list(b"IMAP4rev1 IDLE"),
        utf8: false,
        mailbox: None,
        idle: None,
    }
}

/// Until the other side goes.
async fn serve(io: DuplexStream) -> std::io::Result<()> {
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

#[tokio::test]
async fn many_that_hear_of_mail_at_once_take_few_threads() {
    let catalog = Arc::new(Meeting::default());
    let house = House::new(
        Limits::default(),
        Terms { lane: true, user_connections_max: 8, per_server_max: 100 },
        Arc::clone(&catalog) as Arc<_>,
        Arc::new(|_| Box::new(Plain::default()) as Box<dyn Preload>),
    );
    for user in 0..40 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(far));
        let io: Box<dyn AsyncIo> = Box::new(near);
        let retained = Retained { io, ahead: vec![Bytes::new()], facts: facts(user) };
        let _taken = house.put(Handed::Left(Box::new(retained)));
    }
    assert_eq!(house.list().len(), 40);
    // Each of them tells the store which mailbox it has opened.
    while catalog.inside.lock().unwrap().2 < 40 {
        tokio::task::yield_now().await;
    }
    assert_eq!(catalog.inside.lock().unwrap().1, TURNS);
    house.drain().await;
    assert!(house.list().is_empty());
}
