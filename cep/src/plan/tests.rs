//! Plans with an advisor and a ledger that write down what they hear.

use super::*;
use discovery_core::{
    id::ServerId,
    now::UnixMillis,
    seam::{
        advisor::Reason,
        gate::{BackgroundGate, Grant},
    },
    value::{Class, Served},
};
use imap_core::preload::{MailClass, Part};
use imap_core::uid::UidValidity;
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

type Said = Arc<Mutex<Vec<String>>>;

fn say(said: &Said, what: String) {
    said.lock().unwrap().push(what);
}

/// Wants every item that is not held, the newest first, and of those with more than text the text.
struct Wants(Said);

impl Advisor for Wants {
    fn listed(&mut self, _: UserKey, _: &ObjectKey, item: &Item, _: Now) {
        say(&self.0, format!("listed {} {}", item.nth, item.octets));
    }

    fn observe(&mut self, access: &Access, _: Now) {
        say(&self.0, format!("opened {} octets, {:?}", access.octets, access.served));
    }

    fn returned(&mut self, _: UserKey, _: &ObjectKey) {
        say(&self.0, "returned".to_owned());
    }

    fn next(&mut self, facts: &SessionFacts<'_>, _: Now) -> Option<FetchOrder> {
        let (collection, item) = facts.collections.iter().find_map(|collection| {
            let item = collection.items.iter().rev().find(|item| item.held == Held::Nothing)?;
            Some((collection.object.clone(), item.clone()))
        })?;
        let amount = match item.main_octets < item.octets {
            true => Amount::Start(item.main_octets),
            false => Amount::Whole,
        };
        let Item { nth, object, octets, .. } = item;
        Some(FetchOrder { collection, nth, object, amount, octets, reason: Reason::Rest })
    }
}

struct Book(Said);

impl PreloadLedger for Book {
    fn fetched(&self, _: UserKey, _: &ObjectKey, octets: u64, _: UnixMillis) {
        say(&self.0, format!("fetched {octets}"));
    }

    fn used(&self, _: UserKey, _: &ObjectKey, octets: u64) {
        say(&self.0, format!("used {octets}"));
    }

    fn gone(&self, _: UserKey, _: &ObjectKey) {
        say(&self.0, "gone".to_owned());
    }

    fn opened(&self, _: UserKey, served: Served) {
        say(&self.0, format!("opened from {served:?}"));
    }
}

struct Door(Said);

impl BackgroundGate for Door {
    fn ask(&self, _: Class, _: &ServerId, _: u32, _: Now) -> Grant {
        Grant::Go
    }

    fn foreground(&self, _: &ServerId, active: bool, _: Now) {
        say(&self.0, format!("foreground {active}"));
    }
}

struct Keying;

impl UserKeying for Keying {
    fn user_key(&self, identity: &[u8]) -> UserKey {
        let mut hash = [0; 16];
        for (at, octet) in identity.iter().enumerate() {
            hash[at % 16] = u8::wrapping_mul(hash[at % 16] ^ octet, 31).wrapping_add(7);
        }
        UserKey { version: 1, hash }
    }
}

fn plans() -> (Plans, Said) {
    let said = Said::default();
    let (advisor, ledger, gate) = (Arc::clone(&said), Arc::clone(&said), Arc::clone(&said));
    let around = PlansAround {
        advisor: Arc::new(move || Box::new(Wants(Arc::clone(&advisor)))),
        ledger: Arc::new(Book(ledger)),
        gate: Arc::new(Door(gate)),
        keying: Arc::new(Keying),
    };
    (Plans::new(around), said)
}

fn server() -> ServerId {
    ServerId::new("mail.test").unwrap()
}

fn mailbox(name: &'static str, validity: u32) -> MailboxKey {
    MailboxKey {
        account: AccountKey { server: server(), user: UserKey { version: 1, hash: [7; 16] } },
        name: name.into(),
        uid_validity: UidValidity::new(validity).unwrap(),
        utf8: false,
    }
}

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn letter(octets: u64) -> Description {
    Description { octets, arrived: UnixMillis(5), ..Description::default() }
}

#[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
fn clock() -> impl Fn(u64) -> Now {
    let start = Instant::now();
    move |seconds| Now {
        mono: start + Duration::from_secs(seconds),
        wall: UnixMillis(i64::try_from(seconds * 1000).unwrap()),
    }
}

fn uids(order: Option<Order>) -> Vec<u32> {
    match order.map(|order| order.work) {
        Some(Work::Describe(uids)) => uids.into_iter().map(Uid::get).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_are_described_then_fetched_and_the_rest_after_them() {
    let (plans, _) = plans();
    let mut session = plans.for_session(server());
    let (inbox, at) = (mailbox("INBOX", 1), clock());
    session.listed(&inbox, &UidRanges::of(1..=60), at(0));
    assert_eq!(uids(session.next(&inbox, false, at(0))), (37..=60).rev().collect::<Vec<_>>());
    assert_eq!(uids(session.next(&inbox, false, at(0))), (13..=36).rev().collect::<Vec<_>>());
    for n in 13..=60 {
        session.described(&inbox, uid(n), &letter(100), at(1));
    }
    for n in (13..=60).rev() {
        let order = session.next(&inbox, false, at(1)).unwrap();
        assert_eq!(order.work, Work::Whole { uid: uid(n), octets: 100 });
        session.held(&inbox, uid(n), Held::Whole);
    }
    assert_eq!(uids(session.next(&inbox, false, at(1))), (1..=12).rev().collect::<Vec<_>>());
    // Nothing is asked twice, and another session of the account knows it all.
    let mut other = plans.for_session(server());
    assert_eq!((session.next(&inbox, false, at(2)), other.next(&inbox, false, at(2))), (None, None));
    // What did not come within ten minutes is asked for again, once something is told.
    other.gone(&inbox, &[uid(12)], at(700));
    other.listed(&inbox, &UidRanges::of(1..=11), at(700));
    assert_eq!(uids(other.next(&inbox, false, at(700))), (1..=11).rev().collect::<Vec<_>>());
}

#[test]
fn of_a_message_with_attachments_the_text_can_be_fetched_alone() {
    let (plans, _) = plans();
    let mut session = plans.for_session(server());
    let (inbox, at) = (mailbox("INBOX", 1), clock());
    let key = |spec: &[u8]| ItemKey::section(spec).unwrap();
    let text = vec![Part { key: key(b"1.1"), octets: 500 }, Part { key: key(b"1.2"), octets: 900_000 }];
    session.listed(&inbox, &UidRanges::of([9]), at(0));
    drop(session.next(&inbox, false, at(0)));
    let mut said = Description { text, ..letter(9_000_000) };
    session.described(&inbox, uid(9), &said, at(1));
    let whole = vec![(key(b"HEADER"), 0), (key(b"1.1"), 500), (key(b"1.2"), 900_000)];
    let work = session.next(&inbox, false, at(1)).map(|order| order.work);
    assert_eq!(work, Some(Work::Sections { uid: uid(9), sections: whole }));
    assert_eq!(start(uid(9), &[(key(b"1.1"), 500), (key(b"1.2"), 900_000)], 600), {
        Some(Work::Sections { uid: uid(9), sections: vec![(key(b"HEADER"), 0), (key(b"1.1"), 500)] })
    });
    said.text.clear();
    assert_eq!(start(uid(9), &[], 600), None, "nothing is known of its text");
}

#[test]
fn pieces_of_a_message_are_one_opening_and_its_first_piece_says_whether_it_was_a_hit() {
    let (plans, said) = plans();
    let mut session = plans.for_session(server());
    let (inbox, at) = (mailbox("INBOX", 1), clock());
    let read = |octets, served| Read { octets, served };
    session.read(&inbox, uid(1), read(64, Served::Store), at(0));
    session.read(&inbox, uid(1), read(36, Served::Origin), at(10));
    session.read(&inbox, uid(2), read(5, Served::Origin), at(11));
    session.read(&inbox, uid(2), read(5, Served::Store), at(60));
    drop(session);
    let said = said.lock().unwrap().join("; ");
    assert_eq!(
        said,
        "used 64; gone; gone; opened from Store; opened 100 octets, Store; \
         used 5; opened from Origin; opened 5 octets, Origin; opened from Store; opened 5 octets, Store"
    );
}

#[test]
fn only_a_roaming_session_is_sent_elsewhere_and_a_new_generation_replaces_the_old() {
    let (plans, said) = plans();
    let mut session = plans.for_session(server());
    let (inbox, sent, at) = (mailbox("INBOX", 1), mailbox("Sent", 1), clock());
    for (mailbox, n) in [(&inbox, 3), (&sent, 4)] {
        session.listed(mailbox, &UidRanges::of([n]), at(0));
        assert_eq!(uids(session.next(mailbox, false, at(0))), [n]);
        session.described(mailbox, uid(n), &letter(10), at(0));
    }
    session.held(&inbox, uid(3), Held::Whole);
    assert_eq!(session.next(&inbox, false, at(1)), None);
    session.read(&inbox, uid(3), Read { octets: 10, served: Served::Store }, at(1));
    let order = session.next(&inbox, true, at(1)).unwrap();
    assert_eq!((order.mailbox, order.work), (sent.clone(), Work::Whole { uid: uid(4), octets: 10 }));
    let again = mailbox("Sent", 2);
    session.listed(&again, &UidRanges::of([4]), at(2));
    session.read(&inbox, uid(3), Read { octets: 10, served: Served::Store }, at(2));
    let order = session.next(&inbox, true, at(2)).unwrap();
    let anew = Work::Describe(vec![uid(4)]);
    assert_eq!((order.mailbox, order.work), (again, anew), "the old generation is history");
    session.gone(&inbox, &[uid(3)], at(3));
    assert!(said.lock().unwrap().contains(&"gone".to_owned()));
}

#[test]
fn what_a_session_left_undone_is_given_to_the_next() {
    let (plans, said) = plans();
    let (inbox, at) = (mailbox("INBOX", 1), clock());
    let session = || plans.for_session(server());
    let mut first = session();
    first.listed(&inbox, &UidRanges::of([1, 2]), at(0));
    assert_eq!(uids(first.next(&inbox, false, at(0))), [2, 1]);
    first.described(&inbox, uid(2), &letter(10), at(0));
    drop(first);
    let mut second = session();
    assert_eq!(uids(second.next(&inbox, false, at(1))), [1], "the other was described");
    second.described(&inbox, uid(1), &letter(10), at(1));
    let whole = |n| Some(Work::Whole { uid: uid(n), octets: 10 });
    assert_eq!(second.next(&inbox, false, at(1)).map(|order| order.work), whole(2));
    drop(second);
    let mut third = session();
    assert_eq!(third.next(&inbox, false, at(2)).map(|order| order.work), whole(2));
    third.fetched(&inbox, uid(2), 10, at(2));
    third.held(&inbox, uid(2), Held::Whole);
    drop(third);
    let returned = said.lock().unwrap().iter().filter(|what| *what == "returned").count();
    assert_eq!(returned, 1, "what was fetched is not");
}

#[test]
fn while_there_is_a_lane_it_fetches_for_all_and_where_the_user_is_first() {
    let (plans, _) = plans();
    let (mut session, mut lane) = (plans.for_session(server()), plans.for_session(server()));
    let (inbox, sent, at) = (mailbox("INBOX", 1), mailbox("Sent", 1), clock());
    for mailbox in [&inbox, &sent] {
        session.listed(mailbox, &UidRanges::of([1, 2]), at(0));
        assert_eq!(uids(session.next(mailbox, false, at(0))), [2, 1]);
        (1..=2).for_each(|n| session.described(mailbox, uid(n), &letter(10), at(0)));
    }
    session.read(&sent, uid(1), Read { octets: 10, served: Served::Origin }, at(1));
    let order = lane.next(&inbox, true, at(1)).unwrap();
    assert_eq!((order.mailbox, order.work), (sent.clone(), Work::Whole { uid: uid(2), octets: 10 }));
    assert_eq!(session.next(&sent, false, at(1)), None);
    drop(lane);
    assert!(session.next(&sent, false, at(1)).is_some(), "nobody else does it now");
}

#[test]
fn who_roams_looks_at_other_mailboxes_too() {
    let (plans, _) = plans();
    let (mut session, mut keeper) = (plans.for_session(server()), plans.for_session(server()));
    let (inbox, sent, at) = (mailbox("INBOX", 1), mailbox("Sent", 1), clock());
    session.listed(&sent, &UidRanges::of([7]), at(0));
    session.listed(&inbox, &UidRanges::default(), at(1));
    assert_eq!(session.next(&inbox, false, at(1)), None, "it cannot go there");
    let order = keeper.next(&inbox, true, at(2)).unwrap();
    assert_eq!((order.mailbox, order.work), (sent.clone(), Work::Describe(vec![uid(7)])));
    keeper.described(&sent, uid(7), &letter(10), at(2));
    let order = keeper.next(&inbox, true, at(2)).unwrap();
    assert_eq!((order.mailbox, order.work), (sent, Work::Whole { uid: uid(7), octets: 10 }));
}

#[test]
fn foreground_ends_with_the_session() {
    let (plans, said) = plans();
    let mut session = plans.for_session(server());
    let at = clock();
    for active in [false, true, true, false] {
        session.foreground(active, at(0));
    }
    drop(session);
    let said = said.lock().unwrap().join(" ");
    assert_eq!(said, "foreground true foreground true foreground false foreground false");
}

#[test]
fn kin_are_the_same_for_one_user_and_nobody_else() {
    let kin = |hash: u8, class, source: &'static [u8]| {
        let account = AccountKey { server: server(), user: UserKey { version: 1, hash: [hash; 16] } };
        let plan = Plan::new(account, Arc::new(Keying));
        plan.kin(&Kindred { class, source: Some(source.into()), thread: None })
    };
    let (a, b) = (kin(1, MailClass::List, b"x"), kin(1, MailClass::List, b"y"));
    assert_eq!(a, kin(1, MailClass::List, b"x"));
    assert!(a[0] == b[0] && a[1] != b[1] && a[2] == Kin::NONE);
    let other = kin(2, MailClass::List, b"x");
    assert!(a[0] != other[0] && a[1] != other[1]);
}
