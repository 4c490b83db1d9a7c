//! Dialogues with a mailbox whose flags an earlier session has left.

use super::{
    tests::{Dialogue, Shelf, dialogue},
    *,
};
use crate::{
    flag_snapshot::{FlagMemory, Known},
    start_profile::{StartHabits, StartKey},
};
use std::sync::{Arc, Mutex};

/// Foresees the same for everybody, and remembers one mailbox.
#[derive(Default)]
struct Branch(Mutex<Option<(Bytes, Known)>>);

impl StartHabits for Branch {
    fn begin(&self, account: &AccountKey, opening: Bytes) -> (StartKey, Vec<Bytes>) {
        let commands = [SELECT, FLAGS].map(|c| format!("{c}\r\n").into()).into();
        (StartKey { account: account.clone(), opening, nth: 0 }, commands)
    }

    fn opens(&self, _: &StartKey, _: &Bytes) -> Vec<Bytes> {
        Vec::new()
    }

    fn observe(&self, _: &StartKey, _: Vec<Bytes>) {}

    fn end(&self, _: &StartKey) {}
}

impl FlagMemory for Branch {
    fn recall(&self, _: &AccountKey, name: &[u8]) -> Option<Known> {
        let kept = self.0.lock().unwrap();
        kept.as_ref().filter(|(mailbox, _)| mailbox == name).map(|(_, known)| known.clone())
    }

    fn remember(&self, mailbox: &MailboxKey, known: Known) {
        *self.0.lock().unwrap() = Some((mailbox.name.clone(), known));
    }
}

impl Branch {
    fn modseq(&self) -> Option<u64> {
        self.0.lock().unwrap().as_ref()?.1.snapshot.as_ref().map(|snapshot| snapshot.modseq)
    }
}

const SELECT: &str = "SELECT INBOX";
const FLAGS: &str = "UID FETCH 1:* (FLAGS)";
const OK: &str = "a OK [CAPABILITY IMAP4rev1 ESEARCH UNSELECT CONDSTORE] in\r\n";
const THREE: &str = "* 1 FETCH (UID 11 FLAGS ())\r\n* 2 FETCH (UID 12 FLAGS (\\Seen))\r\n\
                     * 3 FETCH (UID 13 FLAGS (\\Seen \\Recent))\r\n";

fn tag(n: u8) -> String {
    format!("EPC010203040506{n}")
}

fn opening(exists: u32, recent: u32, validity: u32, modseq: &str) -> String {
    format!(
        "* {exists} EXISTS\r\n* {recent} RECENT\r\n* OK [UIDVALIDITY {validity}] v\r\n* OK [{modseq}] m\r\n"
    )
}

fn begun(branch: &Arc<Branch>) -> Dialogue {
    let mut d = dialogue(&Shelf::default(), |_| ());
    d.session.foresee(Arc::clone(branch) as Arc<_>);
    d.session.remember_flags(Arc::clone(branch) as Arc<_>);
    d.client("a LOGIN alice secret\r\n");
    d
}

/// The first session, in which the client asks everything, and `opening` is said.
fn first(branch: &Arc<Branch>, opening: &str) -> Dialogue {
    let mut d = begun(branch);
    d.gets(&format!("a LOGIN alice secret\r\n{} {SELECT}\r\n{} {FLAGS}\r\n", tag(1), tag(2)));
    d.server(OK).hears(OK);
    d.client(&format!("b {SELECT}\r\nc {FLAGS}\r\n"));
    d.server(&format!("{opening}{} OK [READ-WRITE] open\r\n{THREE}{} OK done\r\n", tag(1), tag(2)));
    d.hears(&format!("{opening}b OK [READ-WRITE] open\r\n{THREE}c OK done\r\n")).gets("");
    d
}

/// A later one, up to the client's FETCH: the origin opens the mailbox, lists `uids` and says `changes`.
fn later(branch: &Arc<Branch>, opening: &str, uids: &str, changes: &str) -> Dialogue {
    let mut d = begun(branch);
    d.gets(&format!(
        "a LOGIN alice secret\r\n{} {SELECT} (CONDSTORE)\r\n{} UID SEARCH RETURN (ALL) ALL\r\n\
         {} UID FETCH 1:* (FLAGS) (CHANGEDSINCE 50)\r\n",
        tag(1),
        tag(3),
        tag(2)
    ));
    d.server(OK).hears(OK);
    d.server(&format!("{opening}{} OK [READ-WRITE] open\r\n", tag(1)));
    d.server(&format!("* ESEARCH (TAG \"{}\") UID{uids}\r\n{} OK found\r\n", tag(3), tag(3)));
    d.server(&format!("{changes}{} OK done\r\n", tag(2))).hears("");
    d.client(&format!("b {SELECT}\r\n")).gets("").hears(&format!("{opening}b OK [READ-WRITE] open\r\n"));
    d.client(&format!("c {FLAGS}\r\n"));
    d
}

fn known() -> Arc<Branch> {
    let branch = Arc::new(Branch::default());
    first(&branch, &opening(3, 1, 7, "HIGHESTMODSEQ 50"));
    assert_eq!(branch.modseq(), Some(50));
    branch
}

#[test]
fn what_has_not_changed_is_told_from_before() {
    let branch = known();
    // 11 is gone, 13 is read by somebody else's hand, 15 is new.
    let mut d = later(
        &branch,
        &opening(3, 1, 7, "HIGHESTMODSEQ 60"),
        " ALL 12:13,15",
        "* 2 FETCH (UID 13 FLAGS (\\Flagged) MODSEQ (58))\r\n* 3 FETCH (UID 15 FLAGS (\\Recent) MODSEQ (60))\r\n",
    );
    d.gets("");
    d.hears(
        "* 1 FETCH (UID 12 FLAGS (\\Seen))\r\n* 2 FETCH (UID 13 FLAGS (\\Flagged))\r\n\
         * 3 FETCH (UID 15 FLAGS (\\Recent))\r\nc OK done\r\n",
    );
    assert!(d.events.contains(&Event::FlagsProved { messages: 3, changed: 2 }), "{:?}", d.events);
    assert!(d.events.contains(&Event::Foreseen { told: 2, in_vain: 0, refused: false }), "{:?}", d.events);
    // The next one asks from there on.
    assert_eq!(branch.modseq(), Some(60));
    // The client knows of no MODSEQ.
    d.client("e NOOP\r\n").gets("e NOOP\r\n");
    d.server("* 1 FETCH (MODSEQ (61) FLAGS ())\r\n* OK [HIGHESTMODSEQ 61] m\r\n* 2 FETCH (MODSEQ (62))\r\ne OK\r\n");
    d.hears("* 1 FETCH (FLAGS ())\r\ne OK\r\n");
    d.client("f UID FETCH 12 (FLAGS MODSEQ)\r\n").gets("f UID FETCH 12 (FLAGS MODSEQ)\r\n");
    d.server("* 1 FETCH (UID 12 FLAGS () MODSEQ (61))\r\nf OK\r\n");
    d.hears("* 1 FETCH (UID 12 FLAGS () MODSEQ (61))\r\nf OK\r\n");
}

#[test]
fn a_server_that_says_modseq_only_when_asked_is_asked() {
    let branch = Arc::new(Branch::default());
    let plain = "* 3 EXISTS\r\n* 1 RECENT\r\n* OK [UIDVALIDITY 7] v\r\n";
    first(&branch, plain);
    assert_eq!(branch.modseq(), None);
    let mut d = begun(&branch);
    d.gets(&format!("a LOGIN alice secret\r\n{} {SELECT} (CONDSTORE)\r\n{} {FLAGS}\r\n", tag(1), tag(2)));
    d.server(&format!("{OK}{plain}* OK [HIGHESTMODSEQ 50] m\r\n{} OK open\r\n", tag(1)));
    d.server(&format!("{}{} OK done\r\n", THREE.replace("FLAGS", "MODSEQ (4) FLAGS"), tag(2))).hears(OK);
    d.client(&format!("b {SELECT}\r\nc {FLAGS}\r\n")).gets("");
    d.hears(&format!("{plain}b OK open\r\n{THREE}c OK done\r\n"));
    assert_eq!(branch.modseq(), Some(50));
    let mut d = begun(&branch);
    d.server.clear();
    d.server(&format!("{OK}{plain}* OK [HIGHESTMODSEQ 50] m\r\n{} OK open\r\n", tag(1))).hears(OK);
    d.server(&format!("* ESEARCH (TAG \"{}\") UID ALL 11:13\r\n{} OK found\r\n", tag(3), tag(3)));
    d.server(&format!("* 3 FETCH (UID 13 FLAGS (\\Recent) MODSEQ (50))\r\n{} OK done\r\n", tag(2)));
    d.client(&format!("b {SELECT}\r\nc {FLAGS}\r\n")).gets("");
    let rows = THREE.replace("(\\Seen \\Recent)", "(\\Recent)");
    d.hears(&format!("{plain}b OK open\r\n{rows}c OK done\r\n"));
}

#[test]
fn a_server_that_does_not_understand_is_asked_in_the_clients_words() {
    let branch = known();
    let mut d = begun(&branch);
    d.server(OK).hears(OK).server.clear();
    d.client(&format!("b {SELECT}\r\n"));
    d.server(&format!("{} BAD what\r\n{} BAD what\r\n{} BAD what\r\n", tag(1), tag(3), tag(2))).hears("");
    d.gets(&format!("b {SELECT}\r\n"));
    let opening = opening(3, 1, 7, "HIGHESTMODSEQ 60");
    d.server(&format!("{opening}b OK open\r\n")).hears(&format!("{opening}b OK open\r\n"));
    d.client(&format!("c {FLAGS}\r\n")).gets(&format!("c {FLAGS}\r\n"));
    d.server(&format!("{THREE}c OK done\r\n")).hears(&format!("{THREE}c OK done\r\n"));
}

#[test]
fn what_proves_nothing_is_asked_again() {
    let good = opening(3, 0, 7, "HIGHESTMODSEQ 60");
    let listed = " ALL 11:13";
    for (opening, uids, changes, doubt) in [
        (opening(3, 0, 8, "HIGHESTMODSEQ 60"), listed, "", Doubt::Generation),
        (opening(3, 0, 7, "HIGHESTMODSEQ 49"), listed, "", Doubt::WentBack),
        (opening(3, 0, 7, "NOMODSEQ"), listed, "", Doubt::WentBack),
        (opening(3, 1, 7, "HIGHESTMODSEQ 60"), listed, "", Doubt::Recent),
        (good.clone(), listed, "* 2 FETCH (UID 12 MODSEQ (59))\r\n", Doubt::Odd),
        (good.clone(), " ALL 11:12", "", Doubt::NotListed),
        (good.clone(), "", "", Doubt::NotListed),
        (good, " ALL 11:12,14", "", Doubt::Unknown),
    ] {
        let branch = known();
        let mut d = later(&branch, &opening, uids, changes);
        assert!(d.events.contains(&Event::FlagsDoubted(doubt)), "{doubt:?}: {:?}", d.events);
        d.gets(&format!("c {FLAGS}\r\n")).hears("");
        let rows = THREE.replace("13", if uids.contains("14") { "14" } else { "13" });
        d.server(&format!("{rows}c OK done\r\n")).hears(&format!("{rows}c OK done\r\n"));
    }
}

#[test]
fn a_server_that_does_not_answer_is_asked_again() {
    let branch = known();
    let mut d = begun(&branch);
    let opening = opening(3, 0, 7, "HIGHESTMODSEQ 60");
    d.server(&format!("{OK}{opening}{} OK open\r\n{} BAD what\r\n{} BAD what\r\n", tag(1), tag(3), tag(2)));
    d.client(&format!("b {SELECT}\r\n"));
    d.server.clear();
    d.client(&format!("c {FLAGS}\r\n")).gets(&format!("c {FLAGS}\r\n"));
    assert!(d.events.contains(&Event::FlagsDoubted(Doubt::Refused)), "{:?}", d.events);
}

#[test]
fn changes_that_nobody_asks_for_are_not_told() {
    let branch = known();
    let mut d = begun(&branch);
    let opening = opening(3, 0, 7, "HIGHESTMODSEQ 60");
    d.server(&format!("{OK}{opening}{} OK open\r\n* ESEARCH (TAG \"{}\") UID ALL 11:13\r\n", tag(1), tag(3)));
    d.server(&format!("{} OK\r\n* 2 FETCH (UID 12 FLAGS () MODSEQ (55))\r\n{} OK\r\n", tag(3), tag(2)));
    d.hears(OK);
    d.client(&format!("b {SELECT}\r\n")).hears(&format!("{opening}b OK open\r\n"));
    d.server.clear();
    d.client("c UID FETCH 12 (INTERNALDATE)\r\n").hears("").gets("c UID FETCH 12 (INTERNALDATE)\r\n");
}

#[test]
fn nothing_is_left_where_it_could_not_be_proved() {
    for (what, opening) in [
        ("no lasting MODSEQ", opening(3, 1, 7, "NOMODSEQ")),
        ("both said", format!("* OK [HIGHESTMODSEQ 9] m\r\n{}", opening(3, 1, 7, "NOMODSEQ"))),
        ("a message without flags", opening(4, 1, 7, "HIGHESTMODSEQ 50")),
        ("no generation", opening(3, 1, 0, "HIGHESTMODSEQ 50")),
    ] {
        let branch = Arc::new(Branch::default());
        first(&branch, &opening);
        assert_eq!(branch.modseq(), None, "{what}");
    }
    // Said twice: the lower one is true of both.
    let branch = Arc::new(Branch::default());
    first(&branch, &format!("* OK [HIGHESTMODSEQ 9] m\r\n{}", opening(3, 1, 7, "HIGHESTMODSEQ 50")));
    assert_eq!(branch.modseq(), Some(9));
}

#[test]
fn a_refused_login_forgives_one_question_more() {
    let branch = known();
    let mut d = begun(&branch);
    d.server("a NO no\r\n").hears("a NO no\r\n");
    assert_eq!((d.replaced, d.closed), (1, None));
    d.server.clear();
    let now = d.now();
    d.session.handle_replacement(now, &Bytes::from_static(b"* OK again\r\n"));
    d.drain();
    d.client("b LOGIN alice secret\r\n")
        .gets("b LOGIN alice secret\r\n")
        .server("b OK in\r\n")
        .hears("b OK in\r\n");
    d.client("c IDLE\r\n").gets("c IDLE\r\n");
}
