//! What is fetched next, and for whom.

use super::*;
use discovery_core::value::Served;
use proptest::prelude::*;

fn user(n: u8) -> UserKey {
    UserKey { version: 1, hash: [n; 16] }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { server: ServerId::new("mail.example").unwrap(), key: name.as_bytes().to_vec() }
}

const DAY: i64 = 86_400_000;

struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn new() -> Self {
        Self(Instant::now())
    }

    fn at(&self, millis: i64) -> Now {
        let since = Duration::from_millis(u64::try_from(millis).unwrap());
        Now { mono: self.0 + since, wall: UnixMillis(millis) }
    }
}

fn item(collection: &str, nth: u32, octets: u64, arrived: i64) -> Item {
    Item {
        nth,
        object: key(&format!("{collection}/{nth}")),
        octets,
        main_octets: octets,
        arrived: UnixMillis(arrived),
        used: false,
        held: Held::Nothing,
        kin: [Kin::NONE; 3],
    }
}

fn access(user: UserKey, object: &ObjectKey, at: i64) -> Access {
    Access { user, object: object.clone(), octets: 1, served: Served::Origin, at: UnixMillis(at) }
}

/// Tells the advisor that this user opened, or passed over, so many items of these kin.
fn habit(advisor: &mut AffinityAdvisor, clock: &Clock, collection: &str, kin: Kin, opened: u32, passed: u32) {
    for n in 0..opened + passed {
        let nth = 1_000_000 + 1000 * u32::try_from(kin.0).unwrap() + n;
        let item = Item { kin: [kin, Kin::NONE, Kin::NONE], ..item(collection, nth, 10, 0) };
        advisor.listed(user(1), &key(collection), &item, clock.at(0));
        if n < opened {
            advisor.observe(&access(user(1), &item.object, 1), clock.at(1));
        }
    }
    // A day later he is still there: what he has not opened, he passed over.
    advisor.observe(&access(user(1), &key("anything"), DAY), clock.at(DAY));
}

/// All orders in turn; what was fetched is held from then on.
fn orders(
    advisor: &mut AffinityAdvisor,
    now: Now,
    mut boxes: Vec<(ObjectKey, Vec<Item>)>,
    reading: Option<u32>,
) -> Vec<(String, Reason, Amount)> {
    let mut out = Vec::new();
    loop {
        let collections: Vec<_> = boxes.iter().map(|(object, items)| Collection { object, items }).collect();
        let facts = SessionFacts { user: user(1), collections: &collections, reading };
        let Some(order) = advisor.next(&facts, now) else { return out };
        out.push((String::from_utf8(order.object.key.clone()).unwrap(), order.reason, order.amount));
        let items = boxes.iter_mut().flat_map(|(_, items)| items.iter_mut());
        for item in items.filter(|item| item.object == order.object) {
            item.held = if order.amount == Amount::Whole { Held::Whole } else { Held::Part };
        }
    }
}

fn names(orders: &[(String, Reason, Amount)]) -> Vec<&str> {
    orders.iter().map(|(name, ..)| name.as_str()).collect()
}

#[test]
fn new_first_then_beside_what_is_read_then_the_rest_then_elsewhere() {
    let clock = Clock::new();
    let mut advisor = AffinityAdvisor::new(
        Policy { again_permille: 500, again_beside_permille: 500, ..Policy::default() },
        Limits::default(),
    );
    habit(&mut advisor, &clock, "seldom", Kin::NONE, 2, 0);
    habit(&mut advisor, &clock, "often", Kin::NONE, 9, 0);
    let now = clock.at(10 * DAY);
    let thread = Kin(7);
    let old = |nth, kin| Item { used: true, kin: [Kin::NONE, Kin::NONE, kin], ..item("inbox", nth, 100, 0) };
    let inbox = vec![
        old(1, thread),
        old(2, Kin::NONE),
        old(3, thread),
        item("inbox", 8, 100, 10 * DAY - 2),
        item("inbox", 9, 100, 10 * DAY - 1),
    ];
    let boxes = vec![
        (key("inbox"), inbox),
        (key("seldom"), vec![item("seldom", 1, 100, 10 * DAY)]),
        (key("often"), vec![item("often", 1, 100, 10 * DAY)]),
    ];
    let orders = orders(&mut advisor, now, boxes, Some(3));
    use Reason::{Elsewhere, Neighbour, New, Rest};
    assert_eq!(
        orders.iter().map(|(name, reason, _)| (name.as_str(), *reason)).collect::<Vec<_>>(),
        [
            ("inbox/9", New),
            ("inbox/8", New),
            ("inbox/1", Neighbour),
            ("inbox/3", Rest),
            ("inbox/2", Rest),
            ("often/1", Elsewhere),
            ("seldom/1", Elsewhere),
        ]
    );
}

#[test]
fn what_a_user_never_opens_is_not_fetched_and_what_he_opens_is() {
    let clock = Clock::new();
    let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
    let (newsletter, colleague) = (Kin(1), Kin(2));
    habit(&mut advisor, &clock, "inbox", newsletter, 0, 12);
    habit(&mut advisor, &clock, "inbox", colleague, 12, 0);
    let now = clock.at(DAY + 5);
    let from = |nth, kin| Item { kin: [kin, Kin::NONE, Kin::NONE], ..item("inbox", nth, 900_000, DAY) };
    let boxes = || vec![(key("inbox"), vec![from(1, newsletter), from(2, colleague)])];
    assert_eq!(names(&orders(&mut advisor, now, boxes(), None)), ["inbox/2"]);
    // To another user nothing of this is known.
    let boxes = boxes();
    let collections = [Collection { object: &boxes[0].0, items: &boxes[0].1 }];
    let facts = SessionFacts { user: user(2), collections: &collections, reading: None };
    let theirs: Vec<u32> = (0..2).filter_map(|_| advisor.next(&facts, now).map(|order| order.nth)).collect();
    assert_eq!(theirs, [2, 1]);
}

#[test]
fn what_is_large_is_fetched_whole_only_when_it_is_as_good_as_certain() {
    let clock = Clock::new();
    let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
    let large = |nth, kin| Item {
        kin: [kin, Kin::NONE, Kin::NONE],
        main_octets: 3_000,
        ..item("inbox", nth, 9 << 20, DAY)
    };
    habit(&mut advisor, &clock, "inbox", Kin(1), 90, 0);
    for n in 0..20 {
        let read = Item { main_octets: 1, ..item("inbox", 500 + n, 10, 0) };
        advisor.listed(user(1), &key("inbox"), &read, clock.at(0));
        advisor.observe(&Access { octets: 10, ..access(user(1), &read.object, 2) }, clock.at(2));
    }
    let boxes = vec![(key("inbox"), vec![large(1, Kin(1)), large(2, Kin(2))])];
    let found = orders(&mut advisor, clock.at(DAY), boxes, None);
    assert_eq!(found[0].2, Amount::Whole, "of a kin that he always opens");
    let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
    let boxes = vec![(key("inbox"), vec![large(2, Kin(2))])];
    assert_eq!(orders(&mut advisor, clock.at(DAY), boxes, None)[0].2, Amount::Start(3_000));
}

#[test]
fn an_order_is_not_given_twice_for_some_minutes() {
    let clock = Clock::new();
    let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
    let (inbox, items) = (key("inbox"), [item("inbox", 1, 100, 0)]);
    let collections = [Collection { object: &inbox, items: &items }];
    let facts = SessionFacts { user: user(1), collections: &collections, reading: None };
    for (at, given) in [(0, true), (1, false), (599_999, false), (600_000, true), (600_001, false)] {
        assert_eq!(advisor.next(&facts, clock.at(at)).is_some(), given, "at {at} ms");
    }
}

#[test]
fn a_user_s_day_has_a_budget() {
    let clock = Clock::new();
    let policy = Policy { day_octets_max: 1_000, ..Policy::default() };
    let mut advisor = AffinityAdvisor::new(policy, Limits::default());
    let items = || (1..=9).map(|nth| item("inbox", nth, 300, 0)).collect::<Vec<_>>();
    let now = clock.at(0);
    assert_eq!(orders(&mut advisor, now, vec![(key("inbox"), items())], None).len(), 3);
    let later = clock.at(DAY);
    assert_eq!(orders(&mut advisor, later, vec![(key("inbox"), items())], None).len(), 3);
}

#[test]
fn nothing_to_fetch_from_is_nothing() {
    let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
    let facts = SessionFacts { user: user(1), collections: &[], reading: Some(5) };
    assert_eq!(advisor.next(&facts, Clock::new().at(0)), None);
}

proptest! {
    #[test]
    fn orders_name_what_is_there_and_not_held_and_end(
        items in proptest::collection::vec((0_u64..20_000_000, 0_u8..3, any::<bool>(), 0_u64..4), 0..40),
        used in proptest::collection::vec(0_usize..40, 0..20),
        reading: Option<u8>,
    ) {
        let clock = Clock::new();
        let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
        let mut inbox = Vec::new();
        for (nth, (octets, held, seen, kin)) in (1..).zip(items) {
            let item = Item {
                held: [Held::Nothing, Held::Part, Held::Whole][usize::from(held)],
                used: seen,
                main_octets: octets / 3,
                kin: [Kin(kin), Kin::NONE, Kin(kin * 2)],
                ..item("inbox", nth, octets, 0)
            };
            advisor.listed(user(1), &key("inbox"), &item, clock.at(0));
            inbox.push(item);
        }
        for nth in used.into_iter().filter(|nth| *nth < inbox.len()) {
            advisor.observe(&access(user(1), &inbox[nth].object, 5), clock.at(5));
        }
        let collection = key("inbox");
        let collections = [Collection { object: &collection, items: &inbox }];
        let facts = SessionFacts { user: user(1), collections: &collections, reading: reading.map(u32::from) };
        let mut given = std::collections::BTreeSet::new();
        while let Some(order) = advisor.next(&facts, clock.at(9)) {
            prop_assert!(given.insert(order.nth), "given once");
            let item = inbox.iter().find(|item| item.nth == order.nth).unwrap();
            prop_assert_eq!(&order.object, &item.object);
            prop_assert!(item.held != Held::Whole && order.octets <= item.octets);
        }
    }
}

#[test]
fn an_item_that_is_listed_again_and_again_is_passed_over_once() {
    let clock = Clock::new();
    let mut advisor = AffinityAdvisor::new(Policy::default(), Limits::default());
    let letter = Item { kin: [Kin(7), Kin::NONE, Kin::NONE], ..item("inbox", 5, 10, 0) };
    let passed = |advisor: &AffinityAdvisor| {
        let record = advisor.database().get(user(1), &Kin(7).object(&letter.object.server));
        record.map_or((0, 0), |record| (record.count, record.passed))
    };
    // Every client that starts, and every restart of ours, lists it again.
    for hour in 0..72 {
        let at = clock.at(hour * 3_600_000);
        advisor.listed(user(1), &key("inbox"), &letter, at);
        advisor.observe(&access(user(1), &key("anything"), at.wall.0), at);
        if hour == 36 {
            advisor.evidence = Evidence::default();
        }
        assert_eq!(passed(&advisor), (0, u32::from(hour >= 20)), "after {hour} hours");
    }
}
