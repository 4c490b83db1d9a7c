//! What a node decides about a client, row by row: known inputs in, known outputs out.

use bytes::Bytes;
use discovery_core::{
    id::{ServerId, UserKey, UserKeying},
    now::{Now, UnixMillis},
};
use imap_core::session::{Compress, Road, Side};
use node::{Arrival, ConnId, Count, Input, Limits, NoOrigin, Node, NodeConfig, Order, Output, ServerTerms};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

struct Keys;

impl UserKeying for Keys {
    fn user_key(&self, _: &[u8]) -> UserKey {
        UserKey { version: 1, hash: [0; 16] }
    }
}

const ONE: ConnId = ConnId(1);
const TWO: ConnId = ConnId(2);

struct Rig {
    node: Node,
    start: Instant,
    after: Duration,
}

#[expect(clippy::disallowed_methods, reason = "std has no other way to any Instant")]
fn rig() -> Rig {
    let terms = ServerTerms {
        compress: Compress::Off,
        cache: true,
        re_proof: Duration::from_secs(300),
        chunk_fill_max: 1 << 20,
        foresee: false,
        retain: true,
        sessions_max: 1,
    };
    let servers = BTreeMap::from([(ServerId::new("mail.example.org").expect("a name"), terms)]);
    let config = NodeConfig { limits: Limits::default(), servers, keying: Arc::new(Keys), preloads: None };
    Rig { node: Node::new(config), start: Instant::now(), after: Duration::ZERO }
}

impl Rig {
    /// What follows, in words; what is counted only as far as it says how a session ended.
    fn does(&mut self, input: Input) -> Vec<String> {
        let now = Now { mono: self.start + self.after, wall: UnixMillis(0) };
        self.node.handle(now, input);
        let mut all = Vec::new();
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Count { what: Count::Ended(how), .. } => all.push(format!("{how:?}")),
                Output::Count { .. } => {}
                Output::Write { side, octets, .. } => {
                    all.push(format!("{side:?} {}", String::from_utf8_lossy(&octets).trim_end()));
                }
                Output::Open { anew, .. } => all.push(format!("open, anew {anew}")),
                Output::Close { .. } => all.push("close".into()),
                Output::HandOver { facts, .. } => all.push(format!("hand over {}", facts.number)),
                other @ (Output::WriteFrom { .. }
                | Output::Catalog { .. }
                | Output::StartTls { .. }
                | Output::Deflate { .. }) => all.push(format!("{other:?}")),
            }
        }
        all
    }

    fn arrives(&mut self, conn: ConnId) -> Vec<String> {
        let server = ServerId::new("mail.example.org").expect("a name");
        self.does(Input::Accepted(Arrival { conn, server, road: Road::Tls, nonce: [0; 6] }))
    }

    fn opens(&mut self, parked: bool) -> Vec<String> {
        let greeting = Bytes::from_static(b"* OK [CAPABILITY IMAP4rev1] ready\r\n");
        self.does(Input::OriginOpened { conn: ONE, greeting, parked })
    }

    fn says(&mut self, side: Side, line: &'static str) -> Vec<String> {
        self.does(Input::Octets { conn: ONE, side, octets: Bytes::from_static(line.as_bytes()) })
    }

    fn wrote(&mut self, conn: ConnId, side: Side) -> Vec<String> {
        self.does(Input::Wrote { conn, side, octets: 1 << 20, pieces: 10 })
    }

    fn waits(&mut self, seconds: u64) -> Vec<String> {
        self.after += Duration::from_secs(seconds);
        self.does(Input::Tick)
    }
}

const GREETING: &str = "Client * OK [CAPABILITY IMAP4rev1] ready";

#[test]
fn a_client_is_not_read_before_its_origin_is_there() {
    let mut rig = rig();
    assert_eq!(rig.arrives(ONE), ["open, anew false"]);
    assert!(!rig.node.reads(ONE, Side::Client));
    assert_eq!(rig.opens(false), [GREETING]);
    assert!(rig.node.reads(ONE, Side::Client));
}

#[test]
fn an_origin_that_cannot_be_reached_is_said_and_then_closed() {
    for timed_out in [false, true] {
        let mut rig = rig();
        rig.arrives(ONE);
        let (said, why) = if timed_out {
            (rig.waits(20), "timed-out")
        } else {
            (rig.does(Input::OriginFailed { conn: ONE, why: NoOrigin("refused") }), "refused")
        };
        let bye = format!("Client * BYE [UNAVAILABLE] Waypost: the mail server cannot be reached ({why})");
        assert_eq!(said, [bye]);
        assert_eq!(rig.wrote(ONE, Side::Client), ["NoOrigin", "close"]);
        assert_eq!(rig.node.clients(), 0);
        assert_eq!(rig.node.poll_timeout(), None);
    }
}

#[test]
fn one_more_than_the_server_takes_is_turned_away_and_the_place_is_free_again() {
    let mut rig = rig();
    rig.arrives(ONE);
    let bye = "Client * BYE [UNAVAILABLE] Waypost: too many sessions (full)";
    assert_eq!(rig.arrives(TWO), [bye]);
    assert_eq!(rig.wrote(TWO, Side::Client), ["Full", "close"]);
    rig.does(Input::Broken { conn: ONE, side: Side::Client });
    assert_eq!(rig.node.clients(), 0);
    assert_eq!(rig.arrives(ConnId(3)), ["open, anew false"]);
}

#[test]
fn a_side_is_not_read_while_a_window_waits_for_the_other() {
    let mut rig = rig();
    rig.arrives(ONE);
    rig.opens(false);
    let line = Bytes::from(format!("* OK {}\r\n", "x".repeat(2000)));
    let mut read = 0;
    while rig.node.reads(ONE, Side::Server) {
        rig.does(Input::Octets { conn: ONE, side: Side::Server, octets: line.clone() });
        read += line.len();
        assert!(read < 2 * Limits::default().window_octets);
    }
    assert!(read > Limits::default().window_octets / 2);
    rig.does(Input::Wrote { conn: ONE, side: Side::Client, octets: read, pieces: 1000 });
    assert!(rig.node.reads(ONE, Side::Server));
}

#[test]
fn who_says_nothing_before_a_login_hears_why_and_is_closed_even_if_it_does_not_read() {
    let mut rig = rig();
    rig.arrives(ONE);
    rig.opens(false);
    rig.wrote(ONE, Side::Client);
    assert_eq!(rig.waits(59), [""; 0]);
    assert_eq!(rig.waits(1), ["Client * BYE Waypost: idle for too long before a login"]);
    assert_eq!(rig.waits(5), ["IdleBeforeLogin", "close"]);
}

#[test]
fn who_takes_nothing_is_stuck() {
    let mut rig = rig();
    rig.arrives(ONE);
    rig.opens(false);
    for _ in 0..31 {
        rig.after += Duration::from_secs(59);
        // It speaks, and never reads its greeting.
        let octets = Bytes::from_static(b"a NOOP\r\n");
        rig.does(Input::Octets { conn: ONE, side: Side::Client, octets });
        rig.wrote(ONE, Side::Server);
        if rig.node.clients() == 0 {
            break;
        }
        rig.does(Input::Tick);
    }
    assert_eq!(rig.waits(5), ["Stuck", "close"]);
}

#[test]
fn a_drain_ends_those_at_rest_now_and_all_by_its_moment() {
    let mut rig = rig();
    rig.arrives(ONE);
    rig.opens(false);
    rig.wrote(ONE, Side::Client);
    let octets = Bytes::from_static(b"a NOOP\r\n");
    rig.does(Input::Octets { conn: ONE, side: Side::Client, octets });
    rig.wrote(ONE, Side::Server);
    let by = rig.start + Duration::from_secs(10);
    assert_eq!(rig.does(Input::Operator(Order::DrainBy(by))), [""; 0], "a NOOP is under way");
    let turned_away = ["Client * BYE [UNAVAILABLE] Waypost: too many sessions (full)"];
    assert_eq!(rig.arrives(TWO), turned_away);
    rig.wrote(TWO, Side::Client);
    assert_eq!(rig.waits(10).first().map(String::as_str), Some("Client * BYE Waypost: shutting down"));
    assert_eq!(rig.wrote(ONE, Side::Client), ["Drained", "close"]);
}

#[test]
fn a_parked_origin_that_had_ended_is_exchanged_once_and_unseen() {
    let mut rig = rig();
    rig.arrives(ONE);
    assert_eq!(rig.opens(true), [GREETING]);
    assert_eq!(rig.does(Input::Broken { conn: ONE, side: Side::Server }), ["open, anew true"]);
    assert!(!rig.node.reads(ONE, Side::Client));
    assert_eq!(rig.opens(false), [""; 0]);
    assert!(rig.node.reads(ONE, Side::Client));
    let lost = "Client * BYE Waypost: the connection to the mail server was lost";
    assert_eq!(rig.does(Input::Broken { conn: ONE, side: Side::Server }), [lost]);
    assert_eq!(rig.wrote(ONE, Side::Client), ["OriginLost", "close"]);
}

#[test]
fn what_is_said_to_nobody_is_counted_and_dropped() {
    let mut rig = rig();
    let now = Now { mono: rig.start, wall: UnixMillis(0) };
    rig.node.handle(now, Input::Finished { conn: ONE, side: Side::Client });
    assert!(matches!(rig.node.poll_output(), Some(Output::Count { what: Count::NobodyThere, .. })));
}

#[test]
fn a_client_that_says_goodbye_leaves_its_connection_once_it_has_heard_so() {
    for lost in [false, true] {
        let mut rig = rig();
        rig.arrives(ONE);
        rig.opens(false);
        rig.wrote(ONE, Side::Client);
        rig.says(Side::Client, "a LOGIN alice secret\r\n");
        rig.wrote(ONE, Side::Server);
        rig.says(Side::Server, "a OK in\r\n");
        rig.wrote(ONE, Side::Client);
        let said = rig.says(Side::Client, "b LOGOUT\r\n");
        assert!(said.iter().all(|said| said.starts_with("Client")), "{said:?}");
        if lost {
            // The origin goes meanwhile: there is nothing to keep.
            assert!(rig.does(Input::Broken { conn: ONE, side: Side::Server }).is_empty());
        }
        let last = if lost { "close" } else { "hand over 1" };
        assert_eq!(rig.wrote(ONE, Side::Client), ["Done", last]);
        assert_eq!(rig.node.clients(), 0);
    }
}
