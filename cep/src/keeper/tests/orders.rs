//! What a scripted [`Preload`] orders, and what it hears.

use super::*;
use discovery_core::seam::gate::Grant;
use imap_core::preload::{Description, Read, Work};
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
pub(super) struct Script(Arc<Mutex<Scripted>>);

#[derive(Default)]
pub(super) struct Scripted {
    orders: VecDeque<Order>,
    heard: Vec<String>,
    asked: Vec<u32>,
    grant: Option<Grant>,
}

impl Script {
    pub(super) fn orders(works: impl IntoIterator<Item = Work>) -> Self {
        let script = Self::default();
        script.order(works);
        script
    }

    fn order(&self, works: impl IntoIterator<Item = Work>) {
        self.order_in(facts(b"").mailbox.unwrap().key, works);
    }

    pub(super) fn order_in(&self, mailbox: MailboxKey, works: impl IntoIterator<Item = Work>) {
        let orders = works.into_iter().map(|work| Order { mailbox: mailbox.clone(), work });
        self.0.lock().unwrap().orders.extend(orders);
    }

    pub(super) fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().heard)
    }

    fn hear(&self, what: String) {
        self.0.lock().unwrap().heard.push(what);
    }
}

impl Preload for Script {
    fn listed(&mut self, _: &MailboxKey, uids: &UidRanges, _: Now) {
        self.hear(format!("listed {}", uids.len()));
    }
    fn described(&mut self, _: &MailboxKey, uid: Uid, said: &Description, _: Now) {
        let seen = if said.seen { " seen" } else { "" };
        let class = said.kindred.class;
        self.hear(format!("described {} {}{seen} {class:?}", uid.get(), said.octets));
    }
    fn held(&mut self, _: &MailboxKey, uid: Uid, held: Held) {
        self.hear(format!("held {} {held:?}", uid.get()));
    }
    fn read(&mut self, _: &MailboxKey, _: Uid, _: Read, _: Now) {}
    fn fetched(&mut self, _: &MailboxKey, uid: Uid, octets: u64, _: Now) {
        self.hear(format!("fetched {} {octets}", uid.get()));
    }
    fn gone(&mut self, _: &MailboxKey, uids: &[Uid], _: Now) {
        let uids: Vec<u32> = uids.iter().map(|uid| uid.get()).collect();
        self.hear(format!("gone {uids:?}"));
    }
    fn next(&mut self, _: &MailboxKey, _: bool, _: Now) -> Option<Order> {
        self.0.lock().unwrap().orders.pop_front()
    }
    fn ask(&mut self, octets: u32, _: Now) -> Grant {
        let mut script = self.0.lock().unwrap();
        script.asked.push(octets);
        script.grant.unwrap_or(Grant::Go)
    }
    fn foreground(&mut self, _: bool, _: Now) {}
}

fn uids(uids: &[u32]) -> Vec<Uid> {
    uids.iter().map(|uid| Uid::new(*uid).unwrap()).collect()
}

fn describe(of: &[u32]) -> Work {
    Work::Describe(uids(of))
}

pub(super) fn whole(uid: u32) -> Work {
    Work::Whole { uid: Uid::new(uid).unwrap(), octets: 5 }
}

fn opened(script: &Script) -> Dialogue {
    let mut d = ordered(facts(b"IDLE ESEARCH"), Box::new(script.clone()));
    d.says("t1 EXAMINE INBOX\nt2 UID SEARCH RETURN (ALL) ALL\n");
    d
}

#[test]
fn what_the_store_remembers_is_not_asked_of_the_origin() {
    let script = Script::orders([describe(&[1, 2])]);
    let mut d = opened(&script);
    for key in describing_items() {
        let octets = if key.as_str() == "RFC822.SIZE" { "70" } else { "" };
        d.store.insert((1, key.as_str().to_owned()), octets.into());
    }
    d.store.insert((1, "BODY[]".to_owned()), "x".into());
    d.server(OPENED).says("t3 UID FETCH 2 (D)\n");
    let fields = describing_fields();
    let fields = fields.as_str();
    d.server(&format!(
        "* 2 FETCH (FLAGS (\\Seen) UID 2 RFC822.SIZE 80 {fields} {{21}}\nList-Unsubscribe: x\n)\n<t3 OK x\n"
    ));
    d.tells(&["Selected", "Resolve", "Record"]).says("t4 IDLE\n");
    let heard = [
        "listed 3",
        "listed 3",
        "described 1 70 Outsider",
        "held 1 Whole",
        "described 2 80 seen Newsletter",
        "held 2 Nothing",
    ];
    assert_eq!(script.heard(), heard);
}

#[test]
fn sections_come_in_one_command_and_each_is_a_fill() {
    let section = |spec: &str| (ItemKey::section(spec.as_bytes()).unwrap(), 5);
    let sections = vec![section("HEADER"), section("1.1"), section("1.2")];
    let script = Script::orders([Work::Sections { uid: Uid::new(3).unwrap(), sections }]);
    let mut d = opened(&script);
    d.server(OPENED).says("t3 UID FETCH 3 (UID BODY.PEEK[HEADER] BODY.PEEK[1.1] BODY.PEEK[1.2])\n");
    d.server("* 3 FETCH (UID 3 BODY[HEADER] {5}\na\n\n BODY[1.1] {5}\nhello BODY[1.2] \"hi\")\n<t3 OK x\n");
    let fill = ["FillOpen", "FillData"];
    d.tells(&["Selected", fill[0], fill[1], fill[0], fill[1], "FillCommit", "FillCommit", "Record"]);
    assert_eq!(script.heard()[2..], ["fetched 3 12", "held 3 Part"]);
}

#[test]
fn what_does_not_come_is_gone() {
    let script = Script::orders([describe(&[1, 2]), whole(3)]);
    let mut d = opened(&script);
    d.server(OPENED).says("t3 UID FETCH 1,2 (D)\n");
    d.server("* 2 FETCH (UID 2 FLAGS () RFC822.SIZE 8)\n<t3 OK x\n")
        .says("t4 UID FETCH 3 (UID BODY.PEEK[])\n");
    d.server("* 3 FETCH (UID 3 BODY[] NIL)\n<t4 OK [EXPUNGEISSUED] x\n").says("t5 IDLE\n");
    assert_eq!(script.heard()[2..], ["described 2 8 Outsider", "held 2 Nothing", "gone [1]", "gone [3]"]);
}

#[test]
fn news_come_before_the_next_order() {
    let script = Script::orders([whole(1), whole(2)]);
    let mut d = opened(&script);
    d.server(OPENED).says("t3 UID FETCH 1 (UID BODY.PEEK[])\n");
    d.server("* 1 FETCH (UID 1 BODY[] {5}\nhello)\n* 4 EXISTS\n<t3 OK x\n");
    d.says("t4 EXAMINE INBOX\nt5 UID SEARCH RETURN (ALL) ALL\n");
    d.server("* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1:4\n<t5 OK x\n");
    d.says("t6 UID FETCH 2 (UID BODY.PEEK[])\n");
    assert_eq!(script.heard(), ["listed 3", "listed 3", "fetched 1 5", "held 1 Whole", "listed 4"]);
}

#[test]
fn the_right_to_read_is_asked_again_amid_fetching() {
    let script = Script::orders([whole(1), whole(2)]);
    let mut d = opened(&script);
    d.server(OPENED).says("t3 UID FETCH 1 (UID BODY.PEEK[])\n");
    d.now.mono += ROUND_MAX;
    d.server("* 1 FETCH (UID 1 BODY[] {5}\nhello)\n<t3 OK x\n");
    d.says("t4 EXAMINE INBOX\nt5 UID SEARCH RETURN (ALL) ALL\n");
    d.server("<t4 NO gone\n").says("t6 LOGOUT\n").server("* BYE x\n<t6 OK x\n");
    assert_eq!(d.ended, Some(Why::NoMailbox));
}

#[test]
fn a_long_wait_is_spent_watching() {
    let script = Script::orders([whole(1)]);
    let mut d = opened(&script);
    let wait = Duration::from_secs(60);
    script.0.lock().unwrap().grant = Some(Grant::Wait(d.now.mono + wait));
    d.server(OPENED).says("t3 IDLE\n").server("+ idling\n");
    script.0.lock().unwrap().grant = None;
    d.after(wait)
        .says("DONE\n")
        .server("<t3 OK x\n")
        .says("t4 EXAMINE INBOX\nt5 UID SEARCH RETURN (ALL) ALL\n");
    d.server("* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1:3\n<t5 OK x\n");
    d.says("t6 UID FETCH 1 (UID BODY.PEEK[])\n");
    assert_eq!(script.0.lock().unwrap().asked, [5, 5]);
}

#[test]
fn a_short_wait_is_waited() {
    let script = Script::orders([whole(1)]);
    let mut d = opened(&script);
    let wait = Duration::from_millis(300);
    script.0.lock().unwrap().grant = Some(Grant::Wait(d.now.mono + wait));
    d.server(OPENED).says("");
    script.0.lock().unwrap().grant = None;
    d.after(wait).says("t3 UID FETCH 1 (UID BODY.PEEK[])\n");
}

#[test]
fn what_the_limits_forbid_is_ordered_in_vain() {
    let large = Work::Whole { uid: Uid::new(1).unwrap(), octets: Limits::default().size_max + 1 };
    let script = Script::orders([large, describe(&[]), whole(2)]);
    let mut d = opened(&script);
    d.server(OPENED).says("t3 UID FETCH 2 (UID BODY.PEEK[])\n");
}

#[test]
fn a_refused_fetch_is_not_said_again_and_again() {
    let script = Script::orders([whole(1), whole(1)]);
    let mut d = opened(&script);
    d.server(OPENED).says("t3 UID FETCH 1 (UID BODY.PEEK[])\n").server("<t3 NO x\n").says("t4 IDLE\n");
}

#[test]
fn a_store_that_does_not_answer_has_nothing() {
    let script = Script::orders([describe(&[1])]);
    let mut keeper =
        Keeper::new(facts(b"ESEARCH"), Limits::default(), Box::new(script), facts(b"").authenticated);
    let now = facts(b"").authenticated;
    keeper.handle_server(now, OPENED.replace('\n', "\r\n").replace("<t", "CEP000000000000").into());
    while keeper.poll_output().is_some() {}
    keeper
        .handle_timeout(Now { mono: now.mono + Limits::default().patience + Duration::from_secs(1), ..now });
    let said = keeper.poll_output();
    assert!(
        matches!(&said, Some(Output::ToServer(line)) if line.starts_with(b"CEP0000000000003 UID FETCH 1 ")),
        "{said:?}"
    );
}

#[test]
fn many_are_described_in_batches() {
    let all: Vec<u32> = (1..=300).collect();
    let script = Script::orders([describe(&all)]);
    let mut d = opened(&script);
    d.server(OPENED);
    assert_eq!(d.said.split(',').count(), 256);
    d.said.clear();
    d.server("<t3 OK x\n");
    assert_eq!(d.said.split(',').count(), 44);
}
