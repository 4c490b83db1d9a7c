//! Dialogues with what is asked ahead of the client.

use super::{
    tests::{Dialogue, Shelf, dialogue},
    *,
};
use crate::start_profile::{StartHabits, StartKey};
use discovery_core::id::AccountKey;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Foresees always the same, and keeps what was observed.
struct Always(&'static [&'static str], Mutex<Vec<String>>);

impl StartHabits for Always {
    fn begin(&self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>) {
        let commands = self.0.iter().map(|c| format!("{c}\r\n").into()).collect();
        (StartKey { account: account.clone(), opening, nth: 0 }, commands)
    }

    fn opens(&self, _: &StartKey, _: &Bytes) -> Vec<Bytes> {
        Vec::new()
    }

    fn observe(&self, key: &StartKey, commands: Vec<Bytes>) {
        let said = commands.iter().map(|c| String::from_utf8_lossy(c).trim_end().to_owned());
        let opening = String::from_utf8_lossy(&key.opening).replace('\n', " ");
        self.1.lock().unwrap().push(format!("{opening}: {}", said.collect::<Vec<_>>().join(", ")));
    }

    fn end(&self, _: &StartKey) {}
}

const ID: &str = "ID (\"name\" \"T\")";
const STATUS: &str = "STATUS Archive (MESSAGES)";
const SELECT: &str = "SELECT INBOX";
const FLAGS: &str = "UID FETCH 1:* (FLAGS)";
const OK: &str = "a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT COMPRESS=DEFLATE] in\r\n";
/// As the client hears it.
const TOLD: &str = "a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT] in\r\n";
const OPENING: &str = "* 2 EXISTS\r\n* 2 RECENT\r\n* OK [UIDVALIDITY 7] v\r\n";
const FLAGS_OF_TWO: &str = "* 1 FETCH (UID 11 FLAGS ())\r\n* 2 FETCH (UID 12 FLAGS (\\Seen))\r\n";

fn tag(n: u8) -> String {
    format!("EPC010203040506{n}")
}

/// A client that has logged in, with `foreseen` sent behind its login.
fn launched(foreseen: &'static [&'static str]) -> (Dialogue, Arc<Always>) {
    let habits = Arc::new(Always(foreseen, Mutex::default()));
    let mut d = dialogue(&Shelf::default(), |config| config.compress = Compress::WhenOffered);
    d.session.foresee(Arc::clone(&habits) as Arc<_>);
    let behind: String = (1..).zip(foreseen).map(|(n, c)| format!("{} {c}\r\n", tag(n))).collect();
    d.client("a LOGIN alice secret\r\n").gets(&format!("a LOGIN alice secret\r\n{behind}"));
    (d, habits)
}

fn answer_all(d: &mut Dialogue) {
    d.server(&format!("{OK}* ID NIL\r\n{} OK id\r\n", tag(1))).hears(TOLD);
    d.server(&format!("{OPENING}{} OK [READ-WRITE] open\r\n", tag(2)));
    d.server(&format!("{FLAGS_OF_TWO}{} OK fetched\r\n", tag(3))).hears("");
}

#[test]
fn what_was_foreseen_is_told_when_it_is_asked() {
    let (mut d, habits) = launched(&[ID, SELECT, FLAGS]);
    answer_all(&mut d);
    d.client(&format!("b {ID}\r\n")).gets("").hears("* ID NIL\r\nb OK id\r\n");
    d.client(&format!("c {SELECT}\r\n")).gets("").hears(&format!("{OPENING}c OK [READ-WRITE] open\r\n"));
    d.client(&format!("d {FLAGS}\r\n"));
    d.hears(&format!("{FLAGS_OF_TWO}d OK fetched\r\n"));
    assert!(d.events.contains(&Event::Foreseen { told: 3, in_vain: 0, refused: false }), "{:?}", d.events);
    assert_eq!(*habits.1.lock().unwrap(), [format!("LOGIN : {ID}, {SELECT}, {FLAGS}")]);
    d.gets("");
    d.client("e NOOP\r\n").gets("e NOOP\r\n").server("e OK\r\n").hears("e OK\r\n");
}

/// A client whose program is known to ask this in any mailbox, and nothing before.
struct Inside(&'static [&'static str]);

impl StartHabits for Inside {
    fn begin(&self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>) {
        (StartKey { account: account.clone(), opening, nth: 0 }, Vec::new())
    }

    fn opens(&self, _: &StartKey, select: &Bytes) -> Vec<Bytes> {
        assert_eq!(*select, format!("{SELECT}\r\n"));
        self.0.iter().map(|c| format!("{c}\r\n").into()).collect()
    }

    fn observe(&self, _: &StartKey, _: Vec<Bytes>) {}

    fn end(&self, _: &StartKey) {}
}

#[test]
fn what_is_said_in_a_mailbox_goes_with_its_opening() {
    let open = || {
        let mut d = dialogue(&Shelf::default(), |config| config.compress = Compress::Off);
        d.session.foresee(Arc::new(Inside(&["MYRIGHTS INBOX", FLAGS])));
        d.client("a LOGIN alice secret\r\n").server("a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT] in\r\n");
        d.hears("a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT] in\r\n").gets("a LOGIN alice secret\r\n");
        d.client(&format!("b {SELECT}\r\n"));
        let [select, rights, flags] = [tag(1), tag(2), tag(3)];
        d.gets(&format!("{select} {SELECT}\r\n{rights} MYRIGHTS INBOX\r\n{flags} {FLAGS}\r\n"));
        d.server(&format!("{OPENING}{select} OK [READ-WRITE] open\r\n"));
        d.hears(&format!("{OPENING}b OK [READ-WRITE] open\r\n"));
        d.server(&format!("* MYRIGHTS INBOX lrs\r\n{rights} OK\r\n")).hears("");
        d.server(&format!("{FLAGS_OF_TWO}{flags} OK fetched\r\n")).hears("");
        d
    };
    let mut d = open();
    d.client("c MYRIGHTS INBOX\r\n").gets("").hears("* MYRIGHTS INBOX lrs\r\nc OK\r\n");
    d.client(&format!("d {FLAGS}\r\n")).gets("").hears(&format!("{FLAGS_OF_TWO}d OK fetched\r\n"));
    // A client that asks something else does not hear what it has not asked.
    let mut d = open();
    d.client("c CHECK\r\n").gets("c CHECK\r\n").server("c OK\r\n");
    d.hears("c OK\r\n");
    assert!(d.events.contains(&Event::Foreseen { told: 1, in_vain: 2, refused: false }), "{:?}", d.events);
}

#[test]
fn a_mailbox_that_cannot_be_opened_costs_nothing_more() {
    let mut d = dialogue(&Shelf::default(), |config| config.compress = Compress::Off);
    d.session.foresee(Arc::new(Inside(&[FLAGS])));
    d.client("a LOGIN alice secret\r\n").server("a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT] in\r\n");
    d.client(&format!("b {SELECT}\r\n"));
    d.server(&format!("{} NO [NONEXISTENT] none\r\n{} BAD no mailbox\r\n", tag(1), tag(2)));
    d.hears("a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT] in\r\nb NO [NONEXISTENT] none\r\n");
    d.client("c LIST \"\" *\r\n").server("c OK\r\n").hears("c OK\r\n");
}

#[test]
fn an_answer_may_come_after_the_question() {
    let (mut d, _) = launched(&[SELECT, FLAGS]);
    d.server(OK).hears(TOLD);
    d.client(&format!("c {SELECT}\r\nd {FLAGS}\r\n")).gets("").hears("");
    d.server(&format!("{OPENING}{} OK open\r\n{FLAGS_OF_TWO}", tag(1)));
    d.hears(&format!("{OPENING}c OK open\r\n{FLAGS_OF_TWO}"));
    d.server(&format!("{} OK fetched\r\n", tag(2))).hears("d OK fetched\r\n");
}

#[test]
fn another_mailbox_is_opened_in_vain_and_left() {
    let (mut d, _) = launched(&[ID, SELECT, FLAGS]);
    answer_all(&mut d);
    d.client(&format!("b {ID}\r\n")).hears("* ID NIL\r\nb OK id\r\n");
    d.client("c SELECT Archive\r\n").gets(&format!("{} UNSELECT\r\n", tag(4))).hears("");
    d.server("* 3 EXISTS\r\n* OK [ALERT] tea is ready\r\n").hears("* OK [ALERT] tea is ready\r\n");
    d.server(&format!("{} OK left\r\n", tag(4))).hears("");
    assert!(d.events.contains(&Event::Foreseen { told: 1, in_vain: 3, refused: false }), "{:?}", d.events);
    d.gets(&format!("c SELECT Archive\r\n{} UID SEARCH RETURN (ALL) ALL\r\n", tag(5)));
    d.server(&format!("* 0 EXISTS\r\n* 0 RECENT\r\nc OK open\r\n{} OK\r\n", tag(5)));
    d.hears("* 0 EXISTS\r\n* 0 RECENT\r\nc OK open\r\n");
    // What INBOX said of \Recent the first time is not lost.
    d.client("e SELECT INBOX\r\n").server("* 3 EXISTS\r\n* 1 RECENT\r\n");
    d.hears("* 3 EXISTS\r\n* 3 RECENT\r\n");
}

#[test]
fn other_arguments_are_another_question() {
    let (mut d, _) = launched(&[ID, SELECT, FLAGS]);
    answer_all(&mut d);
    d.client(&format!("b {ID}\r\nc {SELECT}\r\n"));
    d.hears(&format!("* ID NIL\r\nb OK id\r\n{OPENING}c OK [READ-WRITE] open\r\n"));
    d.client("d UID FETCH 12 (FLAGS)\r\n").hears("");
    // Nothing may stand behind COMPRESS, so it was not asked before.
    d.gets(&format!("{} COMPRESS DEFLATE\r\n", tag(4))).server(&format!("{} NO no\r\n", tag(4)));
    d.gets("d UID FETCH 12 (FLAGS)\r\n");
    d.server("* 2 FETCH (UID 12 FLAGS (\\Seen))\r\nd OK fetched\r\n");
    d.hears("* 2 FETCH (UID 12 FLAGS (\\Seen))\r\nd OK fetched\r\n");
}

#[test]
fn a_command_with_a_literal_waits_for_its_turn() {
    let (mut d, habits) = launched(&[ID, SELECT]);
    d.server(OK).hears(TOLD);
    d.client("b LIST {0}\r\n").gets(&format!("{} UNSELECT\r\n", tag(3))).hears("");
    d.server(&format!("* ID NIL\r\n{} OK\r\n{OPENING}{} OK\r\n{} OK\r\n", tag(1), tag(2), tag(3))).hears("");
    d.gets("b LIST {0}\r\n").server("+ go\r\n").hears("+ go\r\n");
    d.client(" \"*\"\r\n").gets(" \"*\"\r\n").server("b OK\r\n").hears("b OK\r\n");
    assert_eq!(*habits.1.lock().unwrap(), ["LOGIN : "]);
}

#[test]
fn behind_a_refused_login_nothing_is_told() {
    let (mut d, habits) = launched(&[ID, SELECT, FLAGS]);
    d.server("a NO [AUTHENTICATIONFAILED] no\r\n").hears("a NO [AUTHENTICATIONFAILED] no\r\n");
    d.client(&format!("b {ID}\r\n")).gets("").hears("");
    d.server(&format!("* ID NIL\r\n{} OK id\r\n{} BAD what\r\n", tag(1), tag(2))).hears("");
    // A server that takes it for true all the same.
    d.server(&format!("{FLAGS_OF_TWO}{} OK fetched\r\n", tag(3))).hears("");
    d.gets(&format!("b {ID}\r\n")).server("b OK again\r\n").hears("b OK again\r\n");
    d.client("c LOGIN alice secret\r\n").server("c OK in\r\n").hears("c OK in\r\n");
    assert_eq!(*habits.1.lock().unwrap(), [""; 0]);
}

#[test]
fn a_server_that_has_had_enough_of_us_is_replaced() {
    for bye in ["* BYE Too many invalid IMAP commands.\r\n", ""] {
        let (mut d, _) = launched(&[ID, SELECT, FLAGS]);
        d.server("a NO no\r\n").hears("a NO no\r\n");
        d.server(&format!("{} OK id\r\n{} BAD what\r\n{bye}", tag(1), tag(2))).hears("");
        if bye.is_empty() {
            let now = d.now();
            d.session.handle_closed(now, Side::Server);
            d.drain();
        }
        assert_eq!((d.replaced, d.closed), (1, None));
        d.server.clear();
        d.client("b LOGIN alice secret\r\n").gets("");
        let now = d.now();
        d.session.handle_replacement(now, &Bytes::from_static(b"* OK again\r\n"));
        d.drain();
        // One refusal is enough to be careful.
        d.gets("b LOGIN alice secret\r\n").server("b OK in\r\n").hears("b OK in\r\n");
    }
}

#[test]
fn more_than_a_server_forgives_is_not_waited_for() {
    let (mut d, _) = launched(&[STATUS, SELECT, FLAGS]);
    d.server("a NO no\r\n").hears("a NO no\r\n");
    assert_eq!((d.replaced, d.closed), (1, None));
}

#[test]
fn what_is_old_is_not_told() {
    let (mut d, _) = launched(&[ID, SELECT, FLAGS]);
    answer_all(&mut d);
    let until = d.session.poll_timeout().expect("held back");
    assert_eq!(until, d.clock + Duration::from_secs(2));
    d.clock = until;
    let now = d.now();
    d.session.handle_timeout(now);
    d.drain();
    d.gets(&format!("{} UNSELECT\r\n", tag(4))).hears("");
    d.client(&format!("c {SELECT}\r\n")).hears("");
    d.server(&format!("{} OK left\r\n", tag(4)));
    d.gets(&format!("c {SELECT}\r\n{} UID SEARCH RETURN (ALL) ALL\r\n", tag(5)));
    assert_eq!(d.session.poll_timeout(), None);
}

#[test]
fn only_what_changes_nothing_is_sent_ahead() {
    for never in [
        "EXAMINE INBOX",
        "SELECT INBOX (QRESYNC (7 1))",
        "CREATE x",
        "UID FETCH 1:* (FLAGS BODY[])",
        "FETCH 1:* (FLAGS)",
        "UID STORE 1 +FLAGS (\\Seen)",
        "LOGIN alice secret",
        "ENABLE QRESYNC",
        "IDLE",
        "LOGOUT",
        "CLOSE",
        "UID EXPUNGE 1",
        "LIST \"\" {1}",
    ] {
        let foreseen: &'static [&'static str] = Box::leak(Box::new([never]));
        let habits = Arc::new(Always(foreseen, Mutex::default()));
        let mut d = dialogue(&Shelf::default(), |_| ());
        d.session.foresee(Arc::clone(&habits) as Arc<_>);
        d.client("a LOGIN alice secret\r\n").gets("a LOGIN alice secret\r\n");
    }
}

#[test]
fn a_client_that_does_not_wait_for_its_login_is_not_overtaken() {
    let habits = Arc::new(Always(&[SELECT], Mutex::default()));
    let mut d = dialogue(&Shelf::default(), |_| ());
    d.session.foresee(habits as Arc<_>);
    d.client("a LOGIN alice secret\r\nb NOOP\r\n").gets("a LOGIN alice secret\r\nb NOOP\r\n");
}
