//! Dialogues in which something is fetched for nobody.

use super::super::tests::{Dialogue, Shelf, dialogue};
use crate::{
    catalog::{Held as Value, MailboxKey},
    item::ItemKey,
    preload::{Description, Order, Preload, Read, Work},
    retained::UidRanges,
    uid::Uid,
};
use discovery_core::{
    now::Now,
    seam::{
        advisor::Held,
        gate::{Grant, Why},
    },
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Orders as they are written down here, and everything it was told.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Scripted>>);

#[derive(Default)]
struct Scripted {
    orders: VecDeque<Work>,
    /// `Go`, where nothing stands.
    grants: VecDeque<Grant>,
    told: Vec<String>,
}

impl Script {
    fn order(&self, work: Work) {
        self.0.lock().unwrap().orders.push_back(work);
    }

    fn grant(&self, grant: Grant) {
        self.0.lock().unwrap().grants.push_back(grant);
    }

    /// What it was told since the last look.
    #[track_caller]
    fn heard(&self, told: &[&str]) {
        assert_eq!(std::mem::take(&mut self.0.lock().unwrap().told), told);
    }

    fn tell(&self, told: String) {
        self.0.lock().unwrap().told.push(told);
    }
}

impl Preload for Script {
    fn listed(&mut self, _: &MailboxKey, uids: &UidRanges, _: Now) {
        self.tell(format!("listed {:?}", uids.newest_first().collect::<Vec<_>>()));
    }
    fn described(&mut self, _: &MailboxKey, uid: Uid, said: &Description, _: Now) {
        self.tell(format!("described {uid}: {} octets, seen {}", said.octets, said.seen));
    }
    fn held(&mut self, _: &MailboxKey, uid: Uid, held: Held) {
        self.tell(format!("held {uid}: {held:?}"));
    }
    fn read(&mut self, _: &MailboxKey, uid: Uid, read: Read, _: Now) {
        self.tell(format!("read {uid}: {} octets, {:?}", read.octets, read.served));
    }
    fn fetched(&mut self, _: &MailboxKey, uid: Uid, octets: u64, _: Now) {
        self.tell(format!("fetched {uid}: {octets}"));
    }
    fn gone(&mut self, _: &MailboxKey, uids: &[Uid], _: Now) {
        self.tell(format!("gone {uids:?}"));
    }
    fn next(&mut self, open: &MailboxKey, roams: bool, _: Now) -> Option<Order> {
        assert!(!roams);
        let work = self.0.lock().unwrap().orders.pop_front()?;
        Some(Order { mailbox: open.clone(), work })
    }
    fn ask(&mut self, octets: u32, _: Now) -> Grant {
        self.tell(format!("ask {octets}"));
        self.0.lock().unwrap().grants.pop_front().unwrap_or(Grant::Go)
    }
    fn foreground(&mut self, active: bool, _: Now) {
        self.tell(format!("foreground {active}"));
    }
}

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn whole(n: u32, octets: u64) -> Work {
    Work::Whole { uid: uid(n), octets }
}

/// A session of alice with INBOX open.
fn opened(shelf: &Shelf, script: &Script, retain: bool) -> Dialogue {
    let mut d = dialogue(shelf, |config| config.retain = retain);
    d.session.preload_by(Box::new(script.clone()));
    d.log_in("alice").select();
    script.0.lock().unwrap().told.clear();
    d
}

/// Something happens that wakes whoever had nothing to do.
fn wakes(d: &mut Dialogue) {
    d.client("w NOOP\r\n").gets("w NOOP\r\n").server("w OK done\r\n").hears("w OK done\r\n");
}

fn body(octets: usize) -> String {
    "0123456789abcdef".chars().cycle().take(octets).collect()
}

/// The answer to a slice.
fn slice(tag: u32, msn: u32, of: u32, offset: u32, octets: &str) -> String {
    let n = octets.len();
    format!(
        "* {msn} FETCH (UID {of} BODY[]<{offset}> {{{n}}}\r\n{octets})\r\nEPC010203040506{tag} OK done\r\n"
    )
}

fn stored(d: &Dialogue, n: u32) -> Option<String> {
    let reply = d.shelf.handle(crate::catalog::CatalogOp::Resolve {
        request: crate::catalog::RequestId(0),
        mailbox: d.session.mailbox_key()?.clone(),
        uids: vec![uid(n)],
        items: vec![ItemKey::whole()],
    });
    match reply {
        Some(crate::catalog::CatalogReply::Resolved { rows, .. }) => match rows[0].values[0].clone()? {
            Value::Inline(octets) => Some(String::from_utf8_lossy(&octets).into_owned()),
            Value::Stored { .. } | Value::Filling { .. } => None,
        },
        _ => None,
    }
}

/// After so long it is asked again what there is to do.
const MINUTE: Duration = Duration::from_secs(60);

const SECOND_TAG: &str = "EPC0102030405062";

#[test]
fn a_message_comes_into_the_store_before_anybody_asks_for_it() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 5));
    wakes(&mut d);
    d.gets(&format!("{SECOND_TAG} FETCH 2 (UID BODY.PEEK[]<0.6>)\r\n"));
    d.server(&slice(2, 2, 12, 0, "hello")).hears("");
    script.heard(&["foreground true", "foreground false", "ask 6", "fetched 12: 5", "held 12: Whole"]);
    d.client("b UID FETCH 12 (BODY.PEEK[])\r\n")
        .gets("")
        .hears("* 2 FETCH (UID 12 BODY[] {5}\r\nhello)\r\nb OK UID FETCH completed\r\n");
    script.heard(&["read 12: 5 octets, Store"]);
}

#[test]
fn a_long_message_comes_in_slices_and_each_is_asked_for() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    let all = body(70_000);
    script.order(whole(11, 70_000));
    wakes(&mut d);
    d.gets("EPC0102030405062 FETCH 1 (UID BODY.PEEK[]<0.32768>)\r\n");
    d.server(&slice(2, 1, 11, 0, &all[..32_768]));
    d.gets("EPC0102030405063 FETCH 1 (UID BODY.PEEK[]<32768.32768>)\r\n");
    assert_eq!(stored(&d, 11), None, "half of it is nothing");
    d.server(&slice(3, 1, 11, 32_768, &all[32_768..65_536]));
    d.gets("EPC0102030405064 FETCH 1 (UID BODY.PEEK[]<65536.4465>)\r\n");
    d.server(&slice(4, 1, 11, 65_536, &all[65_536..])).hears("").gets("");
    assert_eq!(stored(&d, 11), Some(all));
    script.heard(&[
        "foreground true",
        "foreground false",
        "ask 32768",
        "fetched 11: 32768",
        "ask 32768",
        "fetched 11: 32768",
        "ask 4465",
        "fetched 11: 4464",
        "held 11: Whole",
    ]);
}

#[test]
fn nothing_goes_before_the_gate_lets_it() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    let until = d.clock + Duration::from_secs(3);
    script.order(whole(12, 5));
    script.grant(Grant::Wait(until));
    wakes(&mut d);
    d.gets("");
    assert_eq!(d.session.poll_timeout(), Some(until));
    d.later(Duration::from_secs(2)).gets("");
    d.later(Duration::from_secs(1)).gets(&format!("{SECOND_TAG} FETCH 2 (UID BODY.PEEK[]<0.6>)\r\n"));
    script.grant(Grant::Never(Why::Off));
    script.order(whole(13, 5));
    d.server(&slice(2, 2, 12, 0, "hello")).gets("");
    script.order(whole(11, 5));
    wakes(&mut d);
    d.gets("");
}

#[test]
fn nobody_waits_for_a_slice() {
    let (shelf, script) = (Shelf::default(), Script::default());
    for command in [
        "FETCH 2 (FLAGS)",
        "UID FETCH 1:* (FLAGS)",
        "UID FETCH 12 (BODY.PEEK[])",
        "FETCH 1:3 (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (FROM TO)])",
        "UID STORE 12 +FLAGS (\\Seen)",
        "SEARCH UNSEEN",
        "NOOP",
        "EXPUNGE",
        "IDLE",
        "CLOSE",
        "UNSELECT",
        "STATUS Other (MESSAGES)",
        "XUNKNOWN 1 2",
        "LOGOUT",
    ] {
        let mut d = opened(&shelf, &script, false);
        script.order(whole(12, 70_000));
        wakes(&mut d);
        d.gets("EPC0102030405062 FETCH 2 (UID BODY.PEEK[]<0.32768>)\r\n");
        let line = format!("b {command}\r\n");
        d.client(&line).gets(&line);
        // And only one slice is in front of it.
        d.server(&slice(2, 2, 12, 0, &body(32_768))).gets("").hears("");
        assert_eq!(d.closed, None);
    }
}

#[test]
fn another_mailbox_is_opened_at_once_and_the_slice_is_nobodys() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 70_000));
    wakes(&mut d);
    d.server.clear();
    let slice = slice(2, 2, 12, 0, &body(32_768));
    let (first, second) = slice.split_at(1000);
    d.server(first).client("b SELECT Other\r\n");
    d.gets("b SELECT Other\r\nEPC0102030405063 UID SEARCH RETURN (ALL) ALL\r\n");
    d.server(second).hears("");
    let opening = "* 2 EXISTS\r\n* OK [UIDVALIDITY 9] v\r\nb OK [READ-WRITE] open\r\n";
    d.server(opening).hears(opening);
    d.server("* ESEARCH (TAG \"EPC0102030405063\") UID ALL 1:2\r\nEPC0102030405063 OK found\r\n").gets("");
    assert_eq!(d.closed, None);
    let told = script.0.lock().unwrap().told.clone();
    assert_eq!(told.iter().filter(|told| told.starts_with("foreground")).count() % 2, 0);
    assert!(told.contains(&"listed [2, 1]".to_owned()), "{told:?}");
}

#[test]
fn the_same_piece_of_the_same_message_is_asked_behind_the_slice() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 70_000));
    wakes(&mut d);
    d.server.clear();
    d.client("b UID FETCH 12 (BODY.PEEK[]<0.100>)\r\n").gets("").hears("");
    d.server(&slice(2, 2, 12, 0, &body(32_768))).hears("");
    d.gets("b UID FETCH 12 (BODY.PEEK[]<0.100>)\r\n");
    let answer = "* 2 FETCH (UID 12 BODY[]<0> {2}\r\nhi)\r\nb OK done\r\n";
    d.server(answer).hears(answer);
}

#[test]
fn tags_come_in_any_order() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 5));
    wakes(&mut d);
    d.server.clear();
    d.client("b UID FETCH 12 (BODY.PEEK[])\r\n").gets("b UID FETCH 12 (BODY.PEEK[])\r\n");
    let theirs = "* 2 FETCH (UID 12 BODY[] {5}\r\nhello)\r\nb OK done\r\n";
    d.server("* 2 FETCH (UID 12 BODY[]<0> {5}\r\nhello)\r\n").hears("");
    d.server(theirs).hears(theirs);
    d.server("EPC0102030405062 OK done\r\n").hears("");
    assert_eq!(stored(&d, 12).as_deref(), Some("hello"));
}

#[test]
fn flags_that_come_with_a_slice_are_the_clients() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 5));
    wakes(&mut d);
    d.server.clear();
    d.client("b NOOP\r\n");
    d.server("* 2 FETCH (UID 12 BODY[]<0> {5}\r\nhello FLAGS (\\Seen $X))\r\n");
    d.hears("* 2 FETCH (FLAGS (\\Seen $X))\r\n");
    d.server("EPC0102030405062 OK done\r\nb OK done\r\n").hears("b OK done\r\n");
    assert_eq!(stored(&d, 12).as_deref(), Some("hello"));
}

#[test]
fn what_cannot_be_had_is_given_up() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let tag = SECOND_TAG;
    for answer in [
        format!("{tag} NO not now\r\n"),
        format!("{tag} OK nothing\r\n"),
        format!("* 2 FETCH (UID 12 BODY[]<0> NIL)\r\n{tag} OK done\r\n"),
        // Another piece, no piece, a longer one, a shorter one than there should be.
        format!("* 2 FETCH (UID 12 BODY[] {{5}}\r\nhello)\r\n{tag} OK done\r\n"),
        format!("* 2 FETCH (UID 12 BODY[]<0> {{7}}\r\nhellooo)\r\n{tag} OK done\r\n"),
        format!("* 2 FETCH (UID 12 BODY[]<0> {{6}}\r\nhelloo)\r\n{tag} OK done\r\n"),
        format!("* 2 FETCH (UID 12 BODY[]<0> {{5}}\r\nhello) x\r\n{tag} OK done\r\n"),
    ] {
        let mut d = opened(&shelf, &script, false);
        script.order(whole(12, 5));
        wakes(&mut d);
        d.gets(&format!("{tag} FETCH 2 (UID BODY.PEEK[]<0.6>)\r\n"));
        d.server(&answer).hears("").gets("");
        assert_eq!((stored(&d, 12), d.closed), (None, None), "{answer}");
        wakes(&mut d);
    }
}

#[test]
fn an_estimate_that_is_too_large_does_no_harm() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 70_000));
    wakes(&mut d);
    d.server.clear();
    d.server(&slice(2, 2, 12, 0, "hello")).gets("");
    assert_eq!(stored(&d, 12).as_deref(), Some("hello"));
}

#[test]
fn what_another_session_fetches_is_left_to_it() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut other = dialogue(&shelf, |config| config.number = 2);
    other.log_in("alice").select();
    other.client("b UID FETCH 12 (BODY.PEEK[])\r\n").gets("b UID FETCH 12 (BODY.PEEK[])\r\n");
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 70_000));
    wakes(&mut d);
    d.gets("");
    other.server("* 2 FETCH (UID 12 BODY[] {5}\r\nhello)\r\nb OK done\r\n");
    script.order(whole(12, 70_000));
    wakes(&mut d);
    d.gets("");
    let told = script.0.lock().unwrap().told.clone();
    let held: Vec<_> = told.iter().filter(|told| told.starts_with("held")).collect();
    assert_eq!(held, ["held 12: Part", "held 12: Whole"]);
    // Nobody is kept waiting by what is fetched for nobody: the claim lasts as long as a slice.
    script.order(whole(13, 70_000));
    script.grant(Grant::Wait(d.clock + Duration::from_secs(9)));
    wakes(&mut d);
    other.server.clear();
    other.client("c UID FETCH 13 (BODY.PEEK[])\r\n").gets("c UID FETCH 13 (BODY.PEEK[])\r\n");
}

#[test]
fn a_description_does_not_undo_what_the_client_has_just_changed() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    let flags = "* 1 FETCH (UID 11 FLAGS ())\r\nf OK done\r\n";
    d.client("f UID FETCH 11 (FLAGS)\r\n").gets("f UID FETCH 11 (FLAGS)\r\n").server(flags).hears(flags);
    script.order(Work::Describe(vec![uid(11)]));
    wakes(&mut d);
    d.gets(&format!("{SECOND_TAG} FETCH 1 ({})\r\n", crate::preload::DESCRIBING));
    let store = "b UID STORE 11 +FLAGS.SILENT (\\Deleted)\r\n";
    d.client(store).gets(store);
    // The origin looked before it heard of that.
    d.server("* 1 FETCH (UID 11 FLAGS () RFC822.SIZE 9 ENVELOPE NIL)\r\n").hears("");
    d.server("EPC0102030405062 OK done\r\nb OK done\r\n").hears("b OK done\r\n");
}

#[test]
fn what_cannot_be_read_of_a_description_is_not_told() {
    for odd in ["ENVELOPE (((", "ENVELOPE \"a"] {
        let (shelf, script) = (Shelf::default(), Script::default());
        let mut d = opened(&shelf, &script, false);
        script.order(Work::Describe(vec![uid(11)]));
        wakes(&mut d);
        d.server.clear();
        d.server(&format!("* 1 FETCH (UID 11 FLAGS () {odd})\r\n")).hears("");
        d.server("EPC0102030405062 OK done\r\n").hears("");
    }
}

#[test]
fn a_server_that_forgets_which_piece_it_sends_is_asked_for_no_more_and_nothing_is_kept() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(12, 100_000));
    script.order(whole(13, 5));
    wakes(&mut d);
    d.gets(&format!("{SECOND_TAG} FETCH 2 (UID BODY.PEEK[]<0.32768>)\r\n"));
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("b UID FETCH 11 (BODY.PEEK[])\r\n");
    let cut = format!("* 2 FETCH (UID 12 BODY[] {{32768}}\r\n{})\r\n", body(32_768));
    d.server(&cut);
    d.server("EPC0102030405062 OK done\r\n* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nb OK done\r\n");
    assert_eq!((stored(&d, 12), stored(&d, 11).as_deref()), (None, Some("hello")));
}

#[test]
fn messages_are_described_and_the_client_hears_only_flags_that_are_new() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    let flags = "* 1 FETCH (UID 11 FLAGS (\\Seen))\r\nf OK done\r\n";
    d.client("f UID FETCH 11 (FLAGS)\r\n").gets("f UID FETCH 11 (FLAGS)\r\n").server(flags).hears(flags);
    script.0.lock().unwrap().told.clear();
    script.order(Work::Describe(vec![uid(12), uid(11), uid(77)]));
    wakes(&mut d);
    d.gets(&format!("{SECOND_TAG} FETCH 1:2 ({})\r\n", crate::preload::DESCRIBING));
    d.client("b NOOP\r\n").gets("b NOOP\r\n");
    let fields = "BODY[HEADER.FIELDS (AUTO-SUBMITTED LIST-ID LIST-POST LIST-UNSUBSCRIBE REFERENCES)]";
    for (msn, flags) in [(1, "(\\Seen)"), (2, "(\\Flagged)")] {
        let uid = msn + 10;
        d.server(&format!(
            "* {msn} FETCH (UID {uid} FLAGS {flags} INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" RFC822.SIZE 9{msn} \
             ENVELOPE ({{2}}\r\nhi NIL NIL NIL NIL NIL NIL NIL NIL NIL) BODYSTRUCTURE (\"text\" \"plain\" NIL NIL NIL \
             \"7bit\" 5 1) {fields} {{2}}\r\n\r\n)\r\n"
        ));
    }
    d.hears("* 2 FETCH (FLAGS (\\Flagged))\r\n");
    d.server("b OK done\r\nEPC0102030405062 OK done\r\n").hears("b OK done\r\n").gets("");
    script.heard(&[
        "foreground true",
        "foreground false",
        "ask 1800",
        "foreground true",
        "described 11: 91 octets, seen true",
        "held 11: Nothing",
        "described 12: 92 octets, seen false",
        "held 12: Nothing",
        "foreground false",
    ]);
    // The second time the store knows.
    script.order(Work::Describe(vec![uid(11), uid(12)]));
    wakes(&mut d);
    d.gets("");
    script.heard(&[
        "foreground true",
        "foreground false",
        "described 11: 91 octets, seen true",
        "held 11: Nothing",
        "described 12: 92 octets, seen false",
        "held 12: Nothing",
    ]);
}

#[test]
fn sections_are_kept_as_the_origin_cuts_them() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    let key = |spec: &[u8]| ItemKey::section(spec).unwrap();
    script.order(Work::Sections { uid: uid(12), sections: vec![(key(b"HEADER"), 3), (key(b"1.2"), 40_000)] });
    wakes(&mut d);
    d.gets("EPC0102030405062 FETCH 2 (UID BODY.PEEK[HEADER]<0.4>)\r\n");
    // Longer than announced.
    d.server("* 2 FETCH (UID 12 BODY[HEADER]<0> {4}\r\nA: b)\r\nEPC0102030405062 OK done\r\n");
    d.gets("EPC0102030405063 FETCH 2 (UID BODY.PEEK[HEADER]<4.32768>)\r\n");
    d.server("* 2 FETCH (UID 12 BODY[HEADER]<4> \"\")\r\nEPC0102030405063 OK done\r\n");
    d.gets("EPC0102030405064 FETCH 2 (UID BODY.PEEK[1.2]<0.32768>)\r\n");
    d.server("* 2 FETCH (UID 12 BODY[1.2]<0> {2}\r\nhi)\r\nEPC0102030405064 OK done\r\n").gets("").hears("");
    d.client("b UID FETCH 12 (BODY.PEEK[HEADER] BODY.PEEK[1.2])\r\n").gets("").hears(
        "* 2 FETCH (UID 12 BODY[HEADER] {4}\r\nA: b BODY[1.2] {2}\r\nhi)\r\nb OK UID FETCH completed\r\n",
    );
}

#[test]
fn a_client_in_idle_notices_nothing() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    d.client("i IDLE\r\n").gets("i IDLE\r\n");
    d.server("+ idling\r\n").hears("+ idling\r\n").gets("");
    script.order(whole(12, 5));
    script.order(whole(13, 2));
    d.later(MINUTE).gets("DONE\r\n");
    d.server("* 4 EXISTS\r\ni OK done\r\n").hears("* 4 EXISTS\r\n");
    d.gets("EPC0102030405062 FETCH 2 (UID BODY.PEEK[]<0.6>)\r\n");
    d.server(&slice(2, 2, 12, 0, "hello")).hears("");
    // What came meanwhile is looked at, and its UID with it; the client need not ask.
    d.gets(&format!("EPC0102030405063 FETCH 4 ({})\r\n", crate::preload::DESCRIBING));
    d.server("* 4 FETCH (UID 17 FLAGS () RFC822.SIZE 9 ENVELOPE NIL)\r\nEPC0102030405063 OK done\r\n")
        .hears("* 4 FETCH (FLAGS ())\r\n");
    d.gets("EPC0102030405064 FETCH 3 (UID BODY.PEEK[]<0.3>)\r\n");
    d.server("* 3 FETCH (UID 13 BODY[]<0> {2}\r\nhi FLAGS (\\Seen))\r\nEPC0102030405064 OK done\r\n");
    d.hears("* 3 FETCH (FLAGS (\\Seen))\r\n").gets("EPC0102030405065 IDLE\r\n");
    let told = script.0.lock().unwrap().told.clone();
    assert!(told.contains(&"described 17: 9 octets, seen false".to_owned()), "{told:?}");
    assert!(told.iter().any(|told| told.starts_with("listed") && told.contains("17")), "{told:?}");
    d.server("+ idling\r\n* 1 EXPUNGE\r\n").hears("* 1 EXPUNGE\r\n");
    d.client("DONE\r\n").gets("DONE\r\n").hears("i OK Idle completed\r\n");
    d.client("b FETCH 1 (FLAGS)\r\n").gets("");
    d.server("EPC0102030405065 OK done\r\n").hears("").gets("b FETCH 1 (FLAGS)\r\n");
    assert_eq!((stored(&d, 12).as_deref(), stored(&d, 13).as_deref()), (Some("hello"), Some("hi")));
}

#[test]
fn what_comes_in_idle_is_looked_at_at_once() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    d.client("i IDLE\r\n").server("+ idling\r\n").hears("+ idling\r\n");
    d.server.clear();
    d.server("* 4 EXISTS\r\n").hears("* 4 EXISTS\r\n").gets("DONE\r\n");
    d.server("i OK done\r\n").hears("");
    d.gets(&format!("EPC0102030405062 FETCH 4 ({})\r\n", crate::preload::DESCRIBING));
}

#[test]
fn a_client_leaves_idle_whenever_it_likes() {
    // How far the origin has come when the client says DONE, and what it then still gets and says.
    let steps = ["* OK still here\r\n", "i OK done\r\n", &slice(2, 2, 12, 0, "hello"), "+ idling\r\n"];
    for stop in 0..=4 {
        let (shelf, script) = (Shelf::default(), Script::default());
        let mut d = opened(&shelf, &script, false);
        d.client("i IDLE\r\n").server("+ idling\r\n").hears("+ idling\r\n");
        script.order(whole(12, 5));
        d.later(MINUTE);
        for said in steps.iter().take(stop) {
            d.server(said);
        }
        d.server.clear();
        d.client.clear();
        d.client("DONE\r\n").hears("i OK Idle completed\r\n");
        d.client("b NOOP\r\n");
        match stop {
            0..=2 => drop(d.gets("b NOOP\r\n")),
            // The origin's `+` first: DONE would be a command to a server that refuses.
            3 => drop(d.gets("").server("+ idling\r\n").hears("").gets("DONE\r\nb NOOP\r\n")),
            _ => drop(d.gets("DONE\r\nb NOOP\r\n")),
        }
        let rest = ["i OK done\r\n", &slice(2, 2, 12, 0, "hello"), "EPC0102030405063 OK done\r\n"];
        for said in match stop {
            0 | 1 => rest[..1].to_vec(),
            2 => rest[1..2].to_vec(),
            _ => rest[2..].to_vec(),
        } {
            d.server(said).hears("");
        }
        d.server("b OK done\r\n").hears("b OK done\r\n");
        assert_eq!(d.closed, None, "{stop}");
    }
}

#[test]
fn an_idle_that_the_origin_ends_is_ended_for_the_client() {
    for end in ["EPC0102030405063 BAD no more\r\n", "+ idling\r\nEPC0102030405063 BAD no more\r\n"] {
        let (shelf, script) = (Shelf::default(), Script::default());
        let mut d = opened(&shelf, &script, false);
        d.client("i IDLE\r\n").server("+ idling\r\n").hears("+ idling\r\n");
        script.order(whole(12, 5));
        d.later(MINUTE).server("i OK done\r\n").server(&slice(2, 2, 12, 0, "hello")).hears("");
        d.server.clear();
        d.server(end).hears("i BAD no more\r\n");
        d.client("b NOOP\r\n").gets("b NOOP\r\n");
    }
}

#[test]
fn new_mail_that_the_origin_does_not_describe_is_asked_once() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    let asks = |tag: u32, set: &str| {
        format!("EPC010203040506{tag} FETCH {set} ({})\r\n", crate::preload::DESCRIBING)
    };
    d.server("* 4 EXISTS\r\n").gets(&asks(2, "4"));
    d.server("EPC0102030405062 OK nothing\r\n").gets("");
    d.client("w NOOP\r\n")
        .gets("w NOOP\r\n")
        .server("w OK done\r\n")
        .hears("* 4 EXISTS\r\nw OK done\r\n")
        .gets("");
    d.server("* 5 EXISTS\r\n").gets(&asks(3, "5"));
    // Flags that the client may have been told by number.
    d.client("b FETCH 5 (FLAGS)\r\n").gets("b FETCH 5 (FLAGS)\r\n");
    d.client.clear();
    d.server("* 5 FETCH (FLAGS ())\r\n").hears("* 5 FETCH (FLAGS ())\r\n");
    d.server("* 5 FETCH (UID 19 FLAGS (\\Seen) RFC822.SIZE 9 ENVELOPE NIL)\r\n");
    d.hears("* 5 FETCH (FLAGS (\\Seen))\r\n");
}

#[test]
fn half_a_message_is_not_kept_for_ever() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    script.order(whole(11, 70_000));
    wakes(&mut d);
    d.server.clear();
    script.grant(Grant::Wait(d.clock + Duration::from_secs(301)));
    d.server(&slice(2, 1, 11, 0, &body(32_768))).gets("");
    d.later(Duration::from_secs(301)).gets("");
    assert_eq!(d.session.poll_timeout(), Some(d.clock + MINUTE), "there is nothing to do");
}

#[test]
fn idle_is_not_left_for_long() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    d.client("i IDLE\r\n").server("+ idling\r\n");
    script.order(whole(12, 5));
    script.order(whole(13, 5));
    d.later(MINUTE).server("i OK done\r\n");
    script.grant(Grant::Wait(d.clock + Duration::from_secs(3)));
    d.server.clear();
    d.server(&slice(2, 2, 12, 0, "hello")).gets("EPC0102030405063 IDLE\r\n").server("+ idling\r\n").gets("");
    d.later(Duration::from_secs(3)).gets("DONE\r\n").server("EPC0102030405063 OK done\r\n");
    d.gets("EPC0102030405064 FETCH 3 (UID BODY.PEEK[]<0.6>)\r\n");
    // With enough to do, for ten seconds at most.
    d.clock += Duration::from_secs(11);
    script.order(whole(11, 5));
    d.server(&slice(4, 3, 13, 0, "hello")).gets("EPC0102030405065 IDLE\r\n").server("+ idling\r\n");
    d.later(Duration::from_secs(1)).gets("");
    d.later(Duration::from_secs(1)).gets("DONE\r\n");
}

#[test]
fn a_connection_is_handed_over_behind_the_slice() {
    let (shelf, script) = (Shelf::default(), Script::default());
    for logout in [true, false] {
        let mut d = opened(&shelf, &script, true);
        script.order(whole(12, 70_000));
        wakes(&mut d);
        d.server.clear();
        if logout {
            d.client("z LOGOUT\r\n").gets("");
        } else {
            let now = d.now();
            d.session.handle_closed(now, super::super::Side::Client);
            d.drain();
        }
        assert!(d.retained.is_none() && d.closed.is_none());
        d.server(&slice(2, 2, 12, 0, &body(32_768))).gets("");
        assert!(d.retained.is_some() && d.closed.is_none());
        assert_eq!(d.retained.as_ref().unwrap().idle, None);
    }
}

#[test]
fn a_session_that_is_abandoned_in_the_middle_of_a_slice_gives_back_what_it_holds() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, true);
    script.order(whole(12, 100_000));
    wakes(&mut d);
    d.server(&slice(2, 2, 12, 0, &body(32_768)));
    let now = d.now();
    // Kept until the slice's end, which never comes.
    d.session.handle_closed(now, super::super::Side::Client);
    d.session.handle_abandoned(now);
    let mut given_back = Vec::new();
    while let Some(output) = d.session.poll_output() {
        if let super::super::Output::Catalog(op) = output {
            given_back.push(format!("{op:?}"));
        }
    }
    let gave = |what: &str| given_back.iter().any(|op| op.starts_with(what));
    assert!(gave("FillAbort") && gave("Release"), "{given_back:?}");
}

#[test]
fn foreground_is_told_in_pairs_whatever_ends_it() {
    for ends in ["b OK done\r\n", "* BYE bye\r\n", ""] {
        let (shelf, script) = (Shelf::default(), Script::default());
        let mut d = opened(&shelf, &script, false);
        d.client("b NOOP\r\n").server(ends);
        if d.closed.is_none() {
            let now = d.now();
            d.session.handle_closed(now, super::super::Side::Server);
            d.drain();
        }
        assert!(d.closed.is_some());
        script.heard(&["foreground true", "foreground false"]);
    }
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    d.client("i IDLE\r\n").server("+ idling\r\n");
    script.heard(&[]);
    drop(d);
}

#[test]
fn what_a_client_opens_is_told() {
    let (shelf, script) = (Shelf::default(), Script::default());
    let mut d = opened(&shelf, &script, false);
    d.fill();
    d.client("b UID FETCH 11 (FLAGS BODY.PEEK[HEADER.FIELDS (FROM)])\r\n");
    d.server("* 1 FETCH (UID 11 FLAGS () BODY[HEADER.FIELDS (FROM)] {2}\r\n\r\n)\r\nb OK done\r\n");
    d.client("c UID FETCH 11 (BODY.PEEK[]<1.3>)\r\n");
    d.client("d UID FETCH 13 (BODY.PEEK[1])\r\n");
    d.server("* 3 FETCH (UID 13 BODY[1] \"hi\")\r\nd OK done\r\n* 1 EXPUNGE\r\n");
    let told = script.0.lock().unwrap().told.clone();
    let told: Vec<_> = told.iter().filter(|told| !told.starts_with("foreground")).collect();
    // A piece of what came from the origin a moment ago is no hit.
    assert_eq!(
        told,
        [
            "read 11: 5 octets, Origin",
            "held 11: Whole",
            "read 11: 3 octets, Origin",
            "read 13: 2 octets, Origin",
            "gone [11]"
        ]
    );
}

#[test]
fn without_anybody_who_decides_nothing_is_asked() {
    let mut d = dialogue(&Shelf::default(), |_| ());
    d.log_in("alice").select().gets("");
    assert_eq!(d.session.poll_timeout(), None);
    d.client("i IDLE\r\n").gets("i IDLE\r\n").server("+ idling\r\n").gets("");
}
