//! The handler between pipes in memory, in virtual time: what slow, absent and ill-behaved sides cost.

#[path = "../origin_support/mod.rs"]
#[allow(dead_code, reason = "the tests of TLS use more of it")]
mod origin_support;
mod support;
mod three_commands;

use bytes::Bytes;
use epc::{
    compress::Deflated,
    handler::{Drain, Upgrade, metrics::Ended},
};
use imap_core::catalog::{Catalog, CatalogOp, CatalogReply};
use seams::{
    AsyncIo, BoxFuture,
    intake::{ClientTls, ClientUpgrade},
    origin::OpenError,
};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::{GREETING, Office, Talk, server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

const WINDOW: usize = 256 * 1024;
/// Far more than any window.
const MUCH: usize = 4 << 20;

/// Writes a response with a literal of [`MUCH`], counting what the other side took.
fn pour(mut origin: Talk, tag: &str) -> (Arc<AtomicUsize>, tokio::task::JoinHandle<Talk>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let (count, last) = (Arc::clone(&taken), format!("\r\n{tag} OK done\r\n"));
    let task = tokio::spawn(async move {
        origin.say(&format!("* XMUCH {{{MUCH}}}\r\n")).await;
        for _ in 0..MUCH / 1024 {
            origin.0.write_all(&[b'm'; 1024]).await.expect("the session lives");
            count.fetch_add(1024, Ordering::Relaxed);
        }
        origin.say(&last).await;
        origin
    });
    (taken, task)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_costs_a_window() {
    let office = Office::new();
    let (mut client, mut origin, _ended) = office.logged_in().await;
    client.say("a2 XMUCH\r\n").await;
    origin.hears("a2 XMUCH\r\n").await;
    let (taken, pouring) = pour(origin, "a2");
    // Virtual time passes only when nothing can move any more.
    sleep(Duration::from_secs(60)).await;
    let held = taken.load(Ordering::Relaxed);
    // The window, what was read ahead when it filled, and both pipes.
    assert!((WINDOW..WINDOW + 5 * 16 * 1024 + 80 * 1024).contains(&held), "{held} octets were taken");
    // It gets all of it once it reads.
    client.hears(&format!("* XMUCH {{{MUCH}}}\r\n")).await;
    let mut body = vec![0; MUCH];
    client.0.read_exact(&mut body).await.expect("all of it");
    assert!(body.iter().all(|octet| *octet == b'm'));
    client.hears("\r\na2 OK done\r\n").await;
    pouring.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_for_half_an_hour_is_ended() {
    let office = Office::new();
    let (mut client, mut origin, ended) = office.logged_in().await;
    client.say("a2 XMUCH\r\n").await;
    origin.hears("a2 XMUCH\r\n").await;
    let (_, pouring) = pour(origin, "a2");
    let since = Instant::now();
    assert_eq!(ended.await.expect("no panic"), Ended::Stuck);
    let took = since.elapsed();
    assert!((Duration::from_secs(1800)..Duration::from_secs(1900)).contains(&took), "{took:?}");
    pouring.await.expect_err("the origin's stream is closed");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_takes_nothing_stops_the_client() {
    let office = Office::new();
    let (mut client, _origin, _ended) = office.logged_in().await;
    client.say(&format!("a2 APPEND INBOX {{{MUCH}+}}\r\n")).await;
    let mut taken = 0;
    while timeout(Duration::from_secs(60), client.0.write_all(&[b'm'; 1024])).await.is_ok() {
        taken += 1024;
        assert!(taken < MUCH, "the client was never stopped");
    }
    assert!((WINDOW..WINDOW + 5 * 16 * 1024 + 80 * 1024).contains(&taken), "{taken} octets were taken");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_origin_is_said_in_a_bye() {
    let failures = [
        (OpenError::UnknownServer(server()), "unknown-server"),
        (OpenError::Resolve { host: "mail.lab.test".into(), why: "secret detail".into() }, "resolve"),
        (OpenError::Refused, "refused"),
        (OpenError::TimedOut, "timed-out"),
        (OpenError::Network("secret detail".into()), "network"),
        (OpenError::Tls("secret detail".into()), "tls"),
        (OpenError::StartTls("secret detail"), "starttls"),
        (OpenError::Greeting("secret detail"), "greeting"),
        (OpenError::Bye(Bytes::from_static(b"* BYE secret detail\r\n")), "bye"),
    ];
    let office = Office::new();
    for (error, word) in failures {
        office.prepare_failure(error);
        let (mut client, ended) = office.arrive(ClientTls::Implicit, None);
        let said = client.rest().await;
        assert_eq!(
            said,
            format!("* BYE [UNAVAILABLE] Waypost: the mail server cannot be reached ({word})\r\n")
        );
        assert_eq!(ended.await.expect("no panic"), Ended::NoOrigin);
        let counted: Vec<_> = office.handler.metrics().open_failed().filter(|(w, _)| *w == word).collect();
        assert_eq!(counted, [(word, 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_never_answers_leaves_no_client_hanging() {
    let office = Office::new();
    let (mut client, _ended) = office.arrive(ClientTls::Implicit, None);
    let said = timeout(Duration::from_secs(30), client.rest()).await.expect("within the patience");
    assert!(said.ends_with("(timed-out)\r\n"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_full_server_turns_the_next_client_away_and_takes_one_when_one_left() {
    let office = Office::with(Arc::new(epc::handler::NoCatalog), 1);
    let (first, first_origin, first_ended) = office.logged_in().await;
    let (mut second, ended) = office.arrive(ClientTls::Implicit, None);
    assert!(second.rest().await.starts_with("* BYE [UNAVAILABLE]"));
    assert_eq!(ended.await.expect("no panic"), Ended::Full);
    drop((first, first_origin));
    first_ended.await.expect("no panic");
    office.logged_in().await;
}

#[tokio::test(start_paused = true)]
async fn silence_before_a_login_is_ended_after_a_minute_and_after_it_is_not() {
    let office = Office::new();
    let (mut client, _origin, ended) = office.visit();
    client.hears(GREETING).await;
    let since = Instant::now();
    assert!(client.rest().await.starts_with("* BYE "));
    assert_eq!(ended.await.expect("no panic"), Ended::IdleBeforeLogin);
    assert!((60..=61).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    let (mut client, mut origin, _ended) = office.logged_in().await;
    sleep(Duration::from_secs(3 * 3600)).await;
    client.say("a2 NOOP\r\n").await;
    origin.hears("a2 NOOP\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_resting_at_once_the_busy_when_done_and_all_in_time() {
    let office = Office::new();
    let (mut resting, _o1, resting_ended) = office.logged_in().await;
    let (mut busy, mut busy_origin, busy_ended) = office.logged_in().await;
    let (mut endless, mut endless_origin, endless_ended) = office.logged_in().await;
    for (client, origin) in [(&mut busy, &mut busy_origin), (&mut endless, &mut endless_origin)] {
        client.say("a2 NOOP\r\n").await;
        origin.hears("a2 NOOP\r\n").await;
    }
    let since = Instant::now();
    office.drain.send_replace(Drain::By(since + Duration::from_secs(30)));
    assert!(resting.rest().await.starts_with("* BYE "));
    assert_eq!(resting_ended.await.expect("no panic"), Ended::Drained);
    assert!(since.elapsed() < Duration::from_secs(2));

    sleep(Duration::from_secs(10)).await;
    busy_origin.say("a2 OK done\r\n").await;
    busy.hears("a2 OK done\r\n").await;
    assert!(busy.rest().await.starts_with("* BYE "));
    assert_eq!(busy_ended.await.expect("no panic"), Ended::Drained);

    assert!(endless.rest().await.starts_with("* BYE "));
    assert_eq!(endless_ended.await.expect("no panic"), Ended::Drained);
    assert!((30..33).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());

    let (mut late, late_ended) = office.arrive(ClientTls::Implicit, None);
    assert!(late.rest().await.starts_with("* BYE "));
    assert_eq!(late_ended.await.expect("no panic"), Ended::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_the_busy_too() {
    let office = Office::new();
    let (mut client, mut origin, ended) = office.logged_in().await;
    client.say("a2 NOOP\r\n").await;
    origin.hears("a2 NOOP\r\n").await;
    let since = Instant::now();
    office.drain.send_replace(Drain::By(since + Duration::from_secs(30)));
    sleep(Duration::from_secs(1)).await;
    office.drain.send_replace(Drain::Now);
    assert!(client.rest().await.starts_with("* BYE "));
    assert_eq!(ended.await.expect("no panic"), Ended::Drained);
    assert!(since.elapsed() < Duration::from_secs(3));
}

/// Takes a stream for encrypted without asking it.
struct Believing;

impl ClientUpgrade for Believing {
    fn upgrade(&self, io: Box<dyn AsyncIo>) -> BoxFuture<'_, io::Result<Box<dyn AsyncIo>>> {
        Box::pin(async move { Ok(io) })
    }
}

/// A handshake that fails.
struct Refusing;

impl ClientUpgrade for Refusing {
    fn upgrade(&self, _: Box<dyn AsyncIo>) -> BoxFuture<'_, io::Result<Box<dyn AsyncIo>>> {
        Box::pin(async { Err(io::Error::other("no common version")) })
    }
}

#[tokio::test(start_paused = true)]
async fn starttls_goes_on_with_the_upgraded_stream() {
    let office = Office::new();
    let mut origin = office.prepare();
    let (mut client, _ended) = office.arrive(ClientTls::StartTls, Some(Upgrade(Arc::new(Believing))));
    assert!(client.line().await.contains("STARTTLS"));
    client.say("a1 STARTTLS\r\n").await;
    assert!(client.line().await.starts_with("a1 OK"));
    client.say("a2 LOGIN mia secret\r\n").await;
    origin.hears("a2 LOGIN mia secret\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn octets_behind_starttls_end_the_session() {
    // In one piece, which the session sees; and cut so that the surplus is a piece of its own, which it does not. What
    // stands before is answered here, so that STARTTLS is reached within its piece.
    let refused = "a0 LOGIN a b\r\n";
    for padding in [0, 16 * 1024 - "a1 STARTTLS\r\n".len()] {
        let office = Office::new();
        let mut origin = office.prepare();
        let (mut client, ended) = office.arrive(ClientTls::StartTls, Some(Upgrade(Arc::new(Believing))));
        client.line().await;
        let mut said = refused.repeat(padding / refused.len());
        // What is left of the padding goes into a longer tag.
        said.insert_str(0, &"a".repeat(padding - said.len()));
        said.push_str("a1 STARTTLS\r\nx LOGIN evil stolen\r\n");
        client.say(&said).await;
        let heard_by_client = client.rest().await;
        assert_eq!(ended.await.expect("no panic"), Ended::StartTlsSurplus, "{padding}");
        assert!(!heard_by_client.contains("x "), "{heard_by_client}");
        assert_eq!(origin.rest().await, "", "{padding}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_fails_ends_the_session() {
    let office = Office::new();
    let _origin = office.prepare();
    let (mut client, ended) = office.arrive(ClientTls::StartTls, Some(Upgrade(Arc::new(Refusing))));
    client.line().await;
    client.say("a1 STARTTLS\r\n").await;
    client.rest().await;
    assert_eq!(ended.await.expect("no panic"), Ended::StartTlsFailed);
}

#[tokio::test(start_paused = true)]
async fn the_origin_is_spoken_to_compressed_once_it_agreed() {
    let office = Office::new();
    for known in [false, true] {
        let (mut client, mut origin, _ended) = office.visit();
        client.hears(GREETING).await;
        client.say("a1 LOGIN mia secret\r\n").await;
        origin.hears("a1 LOGIN mia secret\r\n").await;
        // An origin that had it before is asked right behind the login.
        let early = if known { Some(origin.line().await) } else { None };
        origin.say("a1 OK [CAPABILITY IMAP4rev1 COMPRESS=DEFLATE] in\r\n").await;
        let asked = match early {
            Some(line) => line,
            None => origin.line().await,
        };
        let (tag, command) = asked.split_once(' ').expect("a command");
        assert_eq!(command, "COMPRESS DEFLATE\r\n");
        assert!(!client.line().await.contains("COMPRESS"));
        // The first deflated octets travel with the OK.
        let ok = format!("{tag} OK\r\n");
        let mut deflated = Vec::new();
        {
            let mut far = Deflated::new(tokio::io::join(tokio::io::empty(), &mut deflated), Bytes::new());
            far.write_all(b"* OK hello from inside\r\n").await.expect("in memory");
            far.flush().await.expect("in memory");
        }
        origin.0.write_all(&[ok.as_bytes(), &deflated].concat()).await.expect("in memory");
        // What the origin deflated so far belongs to one stream with what follows, so only our side goes on here.
        client.say("a2 NOOP\r\n").await;
        let mut inside = Deflated::new(origin.0, Bytes::new());
        let mut heard = [0; 9];
        inside.read_exact(&mut heard).await.expect("in memory");
        assert_eq!(&heard, b"a2 NOOP\r\n");
        client.hears("* OK hello from inside\r\n").await;
    }
    assert_eq!(office.handler.metrics().compressed.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_one_session_and_no_other() {
    let office = Office::new();
    let (mut other, mut other_origin, _other_ended) = office.logged_in().await;
    let (mut client, _origin, ended) = office.visit();
    client.hears(GREETING).await;
    client.say("a1 LOGIN panics secret\r\n").await;
    assert!(ended.await.expect_err("the task panicked").is_panic());
    assert_eq!(office.handler.metrics().ended(Ended::Panicked), 1);
    assert_eq!(client.rest().await, "");
    assert_eq!(office.handler.roster().running(), 1);
    other.say("a2 NOOP\r\n").await;
    other_origin.hears("a2 NOOP\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_origin_that_ended_unused_is_replaced_before_anybody_hears_of_it() {
    let office = Office::new();
    let parked = office.prepare_parked();
    let mut fresh = office.prepare();
    let (mut client, _ended) = office.arrive(ClientTls::Implicit, None);
    client.hears(GREETING).await;
    drop(parked);
    client.say("a1 LOGIN mia secret\r\n").await;
    fresh.hears("a1 LOGIN mia secret\r\n").await;
    fresh.say("a1 OK in\r\n").await;
    client.hears("a1 OK in\r\n").await;
    assert_eq!(office.handler.metrics().origins_replaced.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_always_asks_first_is_asked_behind_its_login() {
    let office = Office::new();
    for times in 0..4 {
        let (mut client, mut origin, ended) = office.visit();
        client.hears(GREETING).await;
        client.say("a1 LOGIN mia secret\r\n").await;
        origin.hears("a1 LOGIN mia secret\r\n").await;
        if times < 3 {
            origin.say("a1 OK in\r\n").await;
            client.hears("a1 OK in\r\n").await;
            client.say("a2 NAMESPACE\r\n").await;
            origin.hears("a2 NAMESPACE\r\n").await;
            origin.say("a2 OK names\r\n").await;
        } else {
            let ahead = origin.line().await;
            let tag = ahead.strip_suffix(" NAMESPACE\r\n").expect("foreseen").to_owned();
            origin.say(&format!("a1 OK in\r\n{tag} OK names\r\n")).await;
            client.hears("a1 OK in\r\n").await;
            client.say("a2 NAMESPACE\r\n").await;
        }
        client.hears("a2 OK names\r\n").await;
        drop(client);
        ended.await.expect("no panic");
    }
    assert_eq!(office.handler.metrics().foreseen_told.get(), 1);
}

/// Writes down what it is told.
#[derive(Default)]
struct Recording(Mutex<Vec<String>>);

impl Catalog for Recording {
    fn handle(&self, op: CatalogOp) -> Option<CatalogReply> {
        let told = if let CatalogOp::Account { identity, .. } = &op {
            format!("account {}", String::from_utf8_lossy(identity))
        } else if let CatalogOp::Selected { .. } = &op {
            "selected".to_owned()
        } else if let CatalogOp::FillOpen { octets, .. } = &op {
            format!("open {octets}")
        } else if let CatalogOp::FillData { octets, .. } = &op {
            format!("data {}", String::from_utf8_lossy(octets))
        } else if let CatalogOp::FillCommit { uid, .. } = &op {
            format!("commit {}", uid.get())
        } else {
            return epc::handler::NoCatalog.handle(op);
        };
        self.0.lock().expect("not poisoned").push(told);
        None
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_is_told_in_the_order_of_the_wire() {
    let catalog = Arc::new(Recording::default());
    let office = Office::with(Arc::clone(&catalog) as Arc<_>, 10);
    let (mut client, mut origin, ended) = office.logged_in().await;
    client.say("a2 SELECT INBOX\r\n").await;
    origin.hears("a2 SELECT INBOX\r\n").await;
    let question = origin.line().await;
    let tag = question.split(' ').next().expect("a tag");
    let opening = "* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\na2 OK [READ-WRITE] open\r\n";
    origin.say(opening).await;
    client.hears(opening).await;
    origin.say(&format!("* ESEARCH (TAG \"{tag}\") UID ALL 11\r\n{tag} OK found\r\n")).await;
    client.say("a3 UID FETCH 11 (BODY.PEEK[])\r\n").await;
    origin.hears("a3 UID FETCH 11 (BODY.PEEK[])\r\n").await;
    let mut body = String::new();
    let length = 40 * 100_000;
    origin.say(&format!("* 1 FETCH (UID 11 BODY[] {{{length}}}\r\n")).await;
    let reading = tokio::spawn(async move {
        let mut all = vec![0; "* 1 FETCH (UID 11 BODY[] {4000000}\r\n".len() + length + ")\r\n".len()];
        client.0.read_exact(&mut all).await.expect("all of it");
        client.hears("a3 OK done\r\n").await;
        (client, all)
    });
    for n in 0..100_000 {
        let line = format!("{n:038}\r\n");
        origin.say(&line).await;
        body.push_str(&line);
    }
    origin.say(")\r\na3 OK done\r\n").await;
    let (client, heard) = reading.await.expect("no panic");
    assert!(String::from_utf8(heard).expect("text").contains(&body));
    drop(client);
    ended.await.expect("no panic");

    let told = catalog.0.lock().expect("not poisoned").clone();
    assert_eq!(told[..3], ["account mia", "selected", &format!("open {length}")]);
    assert_eq!(told.last().map(String::as_str), Some("commit 11"));
    let kept: String = told[3..told.len() - 1]
        .iter()
        .map(|line| line.strip_prefix("data ").expect("nothing else between"))
        .collect();
    assert!(kept == body);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_origin_with_it_and_the_other_way_round() {
    let office = Office::new();
    let (client, mut origin, ended) = office.logged_in().await;
    drop(client);
    origin.rest().await;
    assert_eq!(ended.await.expect("no panic"), Ended::Done);
    let (mut client, origin, ended) = office.logged_in().await;
    drop(origin);
    assert!(client.rest().await.starts_with("* BYE Waypost: "));
    assert_eq!(ended.await.expect("no panic"), Ended::OriginLost);
}
