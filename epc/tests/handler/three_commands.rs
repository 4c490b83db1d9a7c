//! Three commands through the handler, the client beside it, the server 50 ms away at the far end of a pipe in memory and
//! behind STARTTLS. No socket is involved: that the pieces fit is what keeps the door open for other roads to a server,
//! such as a link to a node beside it.

use crate::{
    origin_support::Lab,
    support::{Keys, Talk, server},
};
use discovery_core::id::ServerId;
use epc::{
    handler::{Drain, Handler, Limits, NoCatalog, ServerTerms, Visit, metrics::Ended},
    origin::{DirectOrigins, OriginServer, OriginTls},
};
use rustls::ServerConfig;
use seams::{
    BoxFuture,
    intake::{Accepted, Arrival, ClientAddr, ClientTls, OriginalDst},
    origin::{OpenError, OriginConnector, OriginRequest, OriginStream},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream, DuplexStream, duplex, split},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;

const ONE_WAY: Duration = Duration::from_millis(50);

/// A pipe whose octets arrive [`ONE_WAY`] after they were written, whatever else is on the way.
fn distance() -> (DuplexStream, DuplexStream) {
    let ((here, near), (far, there)) = (duplex(64 * 1024), duplex(64 * 1024));
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    tokio::spawn(carry(near_read, far_write));
    tokio::spawn(carry(far_read, near_write));
    (here, there)
}

async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin + Send + 'static) {
    let (send, mut on_the_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((arrival, octets)) = on_the_way.recv().await {
            sleep_until(arrival).await;
            if to.write_all(&octets).await.is_err() {
                return;
            }
        }
        let _nobody_listens = to.shutdown().await;
    });
    let mut some = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut some).await {
        let _nobody_listens = send.send((Instant::now() + ONE_WAY, some.iter().copied().take(n).collect()));
    }
}

/// A mail server with one message: STARTTLS first, then what three commands need.
async fn serve(io: DuplexStream, tls: Arc<ServerConfig>) {
    let mut io = io;
    io.write_all(b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready\r\n").await.expect("open");
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(io.read_u8().await.expect("open"));
    }
    assert_eq!(line, b"w1 STARTTLS\r\n");
    io.write_all(b"w1 OK begin\r\n").await.expect("open");
    let mut io = BufStream::new(TlsAcceptor::from(tls).accept(io).await.expect("a handshake"));
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).await.expect("open") == 0 {
            return;
        }
        let (tag, command) = line.trim_end().split_once(' ').expect("a command");
        let answer = match command {
            "LOGIN mia secret" => format!("{tag} OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n"),
            "SELECT INBOX" => {
                format!("* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\n{tag} OK [READ-WRITE] open\r\n")
            }
            "UID SEARCH RETURN (ALL) ALL" => {
                format!("* ESEARCH (TAG \"{tag}\") UID ALL 11\r\n{tag} OK found\r\n")
            }
            "UID FETCH 11 (UID BODY.PEEK[])" => {
                format!("* 1 FETCH (UID 11 BODY[] {{5}}\r\nhello)\r\n{tag} OK done\r\n")
            }
            other => panic!("not expected: {other}"),
        };
        io.write_all(answer.as_bytes()).await.expect("open");
        io.flush().await.expect("open");
    }
}

/// Reaches the server over [`distance`]; verification and STARTTLS are those of the real thing.
struct Far {
    origins: DirectOrigins,
    tls: Arc<ServerConfig>,
}

impl OriginConnector for Far {
    fn open(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        Box::pin(async move {
            let (here, there) = distance();
            tokio::spawn(serve(there, Arc::clone(&self.tls)));
            self.origins.greet_over(&request.server, None, Box::new(here)).await
        })
    }

    fn park(&self, _: &ServerId, _: u8) {}
}

#[tokio::test(start_paused = true)]
async fn three_commands_reach_a_server_behind_starttls_50_ms_away() {
    let lab = Lab::new();
    let mut origin = OriginServer::new(server(), "mail.lab.test", 143);
    (origin.tls, origin.trust) = (OriginTls::StartTls, lab.trust());
    let far = Far {
        origins: DirectOrigins::new([origin]).expect("good settings"),
        tls: lab.server(rustls::ALL_VERSIONS),
    };
    let handler = Handler::new(Arc::new(far), Arc::new(NoCatalog), Arc::new(Keys), Limits::default());
    let (near, client) = duplex(64 * 1024);
    let address: SocketAddr = "192.0.2.1:40000".parse().expect("an address");
    let visit = Visit {
        accepted: Accepted {
            io: Box::new(near),
            client: ClientAddr(address),
            original_dst: OriginalDst(address),
            server_name: None,
            how: Arrival::Listener,
            tls: ClientTls::Implicit,
        },
        upgrade: None,
        server: Arc::new(ServerTerms::new(server(), 1)),
        way: None,
    };
    let (_drain, draining) = watch::channel(Drain::Serving);
    let mut since = Instant::now();
    let session = tokio::spawn(async move { handler.serve(visit, draining).await });
    let mut client = Talk(client);

    // The greeting, STARTTLS and its OK, the handshake: one way and two times there and back.
    client.hears("* OK ready\r\n").await;
    took(&mut since, 250);
    client.say("a1 LOGIN mia secret\r\n").await;
    client.hears("a1 OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n").await;
    took(&mut since, 100);
    client.say("a2 SELECT INBOX\r\n").await;
    client.hears("* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\na2 OK [READ-WRITE] open\r\n").await;
    took(&mut since, 100);
    client.say("a3 UID FETCH 11 (UID BODY.PEEK[])\r\n").await;
    client.hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\na3 OK done\r\n").await;
    took(&mut since, 100);

    drop(client);
    assert_eq!(session.await.expect("no panic"), Ended::Done);
}

/// Virtual time counts whole milliseconds.
#[track_caller]
fn took(since: &mut Instant, wanted: u64) {
    let millis = since.elapsed().as_millis();
    let wanted = u128::from(wanted);
    assert!((wanted..=wanted + 5).contains(&millis), "{millis} ms, not {wanted}");
    *since = Instant::now();
}
