//! The store against a model of it, and against itself in several threads.

use super::{
    store_tests::{begin, config, data, fill, item, mailbox, message, one, text, try_octets, uid},
    *,
};
use bytes::Bytes;
use disk::faults::{Dice, FaultDisk};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};
use tempfile::TempDir;

/// What happens to one of few messages in one of few mailboxes.
#[derive(Clone, Debug)]
enum Step {
    Record(Place, u32, usize, u8),
    Push(Place, u32, usize),
    Fill(Place, u32, u8),
    Selected(Place),
    Expunged(Place, u32),
    Forget(Place),
    Used(Place, u32),
    Reopen,
}

/// User, name, UIDVALIDITY.
type Place = (u8, usize, u32);

const NAMES: [&str; 2] = ["INBOX", "Other"];
const ITEMS: [&str; 4] = ["ENVELOPE", "RFC822.SIZE", "BODY[HEADER]", "BODY[1.HEADER]"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (1..3_u8, 0..NAMES.len(), 1..3_u32);
    let message = || 1..4_u32;
    let step = prop_oneof![
        8 => (place(), message(), 0..ITEMS.len(), 0..2_u8).prop_map(|(p, n, i, v)| Step::Record(p, n, i, v)),
        2 => (place(), message(), 0..ITEMS.len()).prop_map(|(p, n, i)| Step::Push(p, n, i)),
        6 => (place(), message(), 0..2_u8).prop_map(|(p, n, v)| Step::Fill(p, n, v)),
        4 => place().prop_map(Step::Selected),
        2 => (place(), message()).prop_map(|(p, n)| Step::Expunged(p, n)),
        1 => place().prop_map(Step::Forget),
        1 => (place(), message()).prop_map(|(p, n)| Step::Used(p, n)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// One mailbox of one user: the generation that lives, and what the origin said in it.
#[derive(Default)]
struct Model {
    live: Option<u32>,
    said: BTreeMap<(u32, String), String>,
}

impl Model {
    fn accepts(&mut self, generation: u32) -> bool {
        *self.live.get_or_insert(generation) == generation
    }
}

fn model_of<'a>(models: &'a mut BTreeMap<(u8, usize), Model>, place: &Place) -> &'a mut Model {
    models.entry((place.0, place.1)).or_default()
}

struct Run {
    root: TempDir,
    disk: FaultDisk,
    store: Option<Store>,
    models: BTreeMap<(u8, usize), Model>,
}

impl Run {
    fn new() -> Self {
        let (root, disk) = (tempfile::tempdir().unwrap(), FaultDisk::default());
        let mut run = Self { root, disk, store: None, models: BTreeMap::new() };
        run.reopen();
        run
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open_on(Arc::new(self.disk.clone()), config(self.root.path())).unwrap());
    }

    fn step(&mut self, step: &Step) {
        let key = |(user, name, generation): &Place| mailbox(*user, NAMES[*name], *generation);
        if let Step::Reopen = step {
            return self.reopen();
        }
        let store = self.store.as_ref().unwrap();
        let models = &mut self.models;
        match step {
            Step::Record(place, n, nth, version) => {
                let value = format!("{place:?} {n} {nth} {version}");
                let items = vec![(item(ITEMS[*nth]), Bytes::from(value.clone()))];
                store.handle(CatalogOp::Record {
                    mailbox: key(place),
                    uid: uid(*n),
                    items,
                    proof: Proof::Origin,
                });
                let model = model_of(models, place);
                if model.accepts(place.2) {
                    model.said.insert((*n, ITEMS[*nth].to_owned()), value);
                }
            }
            Step::Push(place, n, nth) => {
                let items = vec![(item(ITEMS[*nth]), Bytes::from_static(b"pushed"))];
                store.handle(CatalogOp::Record {
                    mailbox: key(place),
                    uid: uid(*n),
                    items,
                    proof: Proof::Push,
                });
                model_of(models, place).accepts(place.2);
            }
            Step::Fill(place, n, version) => {
                // The same for every user and mailbox, so that bodies are shared.
                let body = message(n * 10 + u32::from(*version), 0);
                fill(store, &key(place), *n, "BODY[]", body.as_bytes());
                let model = model_of(models, place);
                if model.accepts(place.2) {
                    let whole = (*n, "BODY[]".to_owned());
                    if model.said.get(&whole).is_some_and(|before| *before != body) {
                        model.said.retain(|(of, _), _| of != n);
                    }
                    model.said.insert(whole, body);
                }
            }
            Step::Selected(place) => {
                store.handle(CatalogOp::Selected { mailbox: key(place) });
                let model = model_of(models, place);
                if model.live != Some(place.2) {
                    *model = Model { live: Some(place.2), ..Model::default() };
                }
            }
            Step::Expunged(place, n) => {
                store.handle(CatalogOp::Expunged { mailbox: key(place), uids: vec![uid(*n)] });
                let model = model_of(models, place);
                if model.live == Some(place.2) {
                    model.said.retain(|(of, _), _| of != n);
                }
            }
            Step::Forget(place) => {
                let mailbox = key(place);
                store.handle(CatalogOp::Forget { account: mailbox.account, name: mailbox.name });
                *model_of(models, place) = Model::default();
            }
            Step::Used(place, n) => {
                store.handle(CatalogOp::Used { mailbox: key(place), uids: vec![uid(*n)] });
            }
            Step::Reopen => {}
        }
    }

    fn check(&self, place: &Place) {
        let store = self.store.as_ref().unwrap();
        let model = self.models.get(&(place.0, place.1));
        for n in 1..4 {
            for name in ITEMS.iter().chain(&["BODY[]"]) {
                let lives = |model: &&Model| model.live == Some(place.2);
                let said = model.filter(lives).and_then(|model| model.said.get(&(n, (*name).to_owned())));
                let held = text(store, &mailbox(place.0, NAMES[place.1], place.2), n, name);
                assert_eq!(held.as_ref(), said, "{name} of {n} in {place:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_what_the_origin_said_and_nothing_else(steps in steps()) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
            if let Step::Record(place, ..) | Step::Fill(place, ..) | Step::Selected(place) = step {
                run.check(place);
            }
        }
        for user in 1..3 {
            for name in 0..NAMES.len() {
                for generation in 1..3 {
                    run.check(&(user, name, generation));
                }
            }
        }
        let store = run.store.as_ref().unwrap();
        store.gc().unwrap();
        let stats = store.stats();
        prop_assert_eq!((stats.corrupt, stats.lost, stats.index_failures, stats.disk_failures), (0, 0, 0, 0));
        let bodies: BTreeSet<&String> = run
            .models
            .values()
            .flat_map(|model| model.said.iter().filter(|((_, name), _)| name == "BODY[]").map(|(_, body)| body))
            .collect();
        prop_assert_eq!(stats.bodies, bodies.len() as u64, "each body once, and none that nobody has");
    }
}

#[test]
fn many_sessions_at_once_in_a_store_that_is_too_small() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { size_max: 2_500_000, ..config(root.path()) };
    let store = Store::open_on(Arc::new(FaultDisk::default()), config).unwrap();
    let body = |n: u32| message(n, 40_000 + usize::try_from(n).unwrap() * 9000);
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for user in 0..4_u8 {
            let (store, served) = (&store, &served);
            scope.spawn(move || {
                let mut dice = Dice(user.into());
                let inbox = mailbox(user % 3, "INBOX", 5);
                for _ in 0..600 {
                    let n = 1 + u32::try_from(dice.roll(20)).unwrap();
                    match dice.roll(10) {
                        0..4 => fill(store, &inbox, n, "BODY[]", body(n).as_bytes()),
                        4 => {
                            let all = body(n);
                            let id = begin(store, &inbox, Some(n), "BODY[]", all.len());
                            data(store, id, &all.as_bytes()[..all.len() / 2]);
                            store.handle(CatalogOp::FillAbort { fill: id });
                        }
                        5 => drop(
                            store.handle(CatalogOp::Expunged { mailbox: inbox.clone(), uids: vec![uid(n)] }),
                        ),
                        6 => {
                            drop(store.handle(CatalogOp::Used { mailbox: inbox.clone(), uids: vec![uid(n)] }))
                        }
                        _ => {
                            let Some(held) = one(store, &inbox, n, "BODY[]") else { continue };
                            match (try_octets(&held), held) {
                                (Ok(found), _) => {
                                    assert!(found == body(n).as_bytes(), "UID {n} of user {user}");
                                    served.fetch_add(1, Ordering::Relaxed);
                                }
                                // Whoever read it from the origin gave up.
                                (Err(_), Held::Filling { .. }) => {}
                                (Err(error), held) => panic!("{held:?}: {error}"),
                            }
                        }
                    }
                }
            });
        }
    });
    store.flush();
    let stats = store.stats();
    assert!(served.load(Ordering::Relaxed) > 50 && stats.evicted > 0, "{stats:?}");
    assert!(stats.disk_octets <= stats.size_max, "{stats:?}");
    assert_eq!((stats.corrupt, stats.index_failures, stats.disk_failures), (0, 0, 0), "{stats:?}");
}
