//! What the store does when something is wrong: damage, a full disk, a crash, another key, a second opener.

use super::{
    counters::Counters,
    item_keys::ItemKeys,
    store_tests::{
        begin, config, data, fill, fresh, item, mailbox, message, octets, one, record, resolve, text,
        try_octets, uid,
    },
    trust::Trust,
    *,
};
use disk::faults::{Dice, Fault, FaultDisk};
use imap_core::catalog::RequestId;
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use zeroize::Zeroizing;

const CANARY: &str = "CANARY-0815";

fn sealed(path: &Path, key: u8) -> StoreConfig {
    StoreConfig { seal_key: Some(Zeroizing::new([key; 32])), ..config(path) }
}

/// All files below a directory.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            out.extend(files(&entry.path()));
        } else {
            match fs::read(entry.path()) {
                Ok(octets) => drop(out.insert(entry.path(), octets)),
                // A store at work has just given it its name.
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            }
        }
    }
    out
}

fn find(path: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let hit = |octets: &[u8]| octets.windows(needle.len()).any(|window| window == needle);
    files(path).into_iter().filter(|(_, octets)| hit(octets)).map(|(path, _)| path).collect()
}

fn fill_with_canaries(store: &Store) -> MailboxKey {
    let inbox = mailbox(1, CANARY, 5);
    store.handle(CatalogOp::Account {
        account: inbox.account.clone(),
        identity: bytes::Bytes::from_static(CANARY.as_bytes()),
    });
    record(store, &inbox, 1, &[("ENVELOPE", CANARY), ("BODY[HEADER.FIELDS (SUBJECT)]", CANARY)]);
    fill(
        store,
        &inbox,
        1,
        "BODY[]",
        format!("Subject: {CANARY}\r\n\r\n{}", CANARY.repeat(20_000)).as_bytes(),
    );
    fill(store, &inbox, 2, "BODY[TEXT]", CANARY.repeat(20_000).as_bytes());
    fill(store, &inbox, 3, "BODY[HEADER]", format!("Subject: {CANARY}\r\n\r\n").as_bytes());
    store.flush();
    inbox
}

#[test]
fn a_sealed_store_holds_nothing_readable() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("sealed");
    let store = Store::open(sealed(&path, 1)).unwrap();
    let inbox = fill_with_canaries(&store);
    assert_eq!(find(&path, CANARY.as_bytes()), Vec::<PathBuf>::new(), "while it is open");
    assert_eq!(text(&store, &inbox, 1, "ENVELOPE").as_deref(), Some(CANARY));
    drop(store);
    assert_eq!(find(&path, CANARY.as_bytes()), Vec::<PathBuf>::new(), "when it is closed");
    // The same scan finds it where nothing is sealed.
    let plain = root.path().join("plain");
    fill_with_canaries(&Store::open(config(&plain)).unwrap());
    assert!(find(&plain, CANARY.as_bytes()).len() >= 3);
}

#[test]
fn another_key_is_a_cold_store() {
    let root = tempfile::tempdir().unwrap();
    let inbox = fill_with_canaries(&Store::open(sealed(root.path(), 1)).unwrap());
    let store = Store::open(sealed(root.path(), 1)).unwrap();
    assert!(text(&store, &inbox, 1, "ENVELOPE").is_some(), "the same key finds it");
    drop(store);
    let store = Store::open(sealed(root.path(), 2)).unwrap();
    for n in 1..=3 {
        for name in ["ENVELOPE", "BODY[]", "BODY[TEXT]", "BODY[HEADER]"] {
            assert!(one(&store, &inbox, n, name).is_none());
        }
    }
    assert_eq!((store.stats().bodies, store.stats().corrupt, store.stats().disk_octets > 0), (0, 0, true));
    record(&store, &inbox, 1, &[("ENVELOPE", "anew")]);
    assert_eq!(text(&store, &inbox, 1, "ENVELOPE").as_deref(), Some("anew"));
    drop(store);
    // From none to one: nothing stays readable.
    let plain = root.path().join("plain");
    fill_with_canaries(&Store::open(config(&plain)).unwrap());
    drop(Store::open(sealed(&plain, 1)).unwrap());
    assert_eq!(find(&plain, CANARY.as_bytes()), Vec::<PathBuf>::new());
}

#[test]
fn one_process_has_the_store() {
    let (root, store) = fresh();
    let path = root.path().join("store");
    let refused = Store::open(config(&path)).err().unwrap();
    assert!(matches!(refused, StoreOpenError::InUse { process: Some(id), .. } if id == std::process::id()));
    assert!(refused.to_string().contains("in use by process"), "{refused}");
    drop(store);
    Store::open(config(&path)).unwrap();
}

#[test]
fn a_newer_store_is_refused_and_left_as_it_is() {
    let (root, store) = fresh();
    let path = root.path().join("store");
    record(&store, &mailbox(1, "INBOX", 5), 1, &[("ENVELOPE", "(e)")]);
    drop(store);
    let db = rusqlite::Connection::open(path.join(INDEX)).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let refused = Store::open(config(&path)).err().unwrap();
    assert!(matches!(refused, StoreOpenError::Future { found: 99, known: schema::VERSION, .. }), "{refused}");
    let db = rusqlite::Connection::open(path.join(INDEX)).unwrap();
    db.pragma_update(None, "user_version", schema::VERSION).unwrap();
    drop(db);
    let store = Store::open(config(&path)).unwrap();
    assert!(one(&store, &mailbox(1, "INBOX", 5), 1, "ENVELOPE").is_some());
}

#[test]
fn a_body_that_is_gone_or_damaged_is_a_miss_and_comes_again() {
    let (root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    let body = message(1, 300_000);
    let small = message(2, 0);
    let the_file = || {
        store.flush();
        let all = files(&root.path().join("store/blobs"));
        assert_eq!(all.len(), 1);
        all.into_iter().next().unwrap()
    };
    fill(&store, &inbox, 1, "BODY[]", body.as_bytes());
    let (path, good) = the_file();
    // A large body is checked before its length is announced, a little later or not.
    for at in [100, good.len() / 2, good.len() - 60] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        let before = store.stats().corrupt;
        assert!(one(&store, &inbox, 1, "BODY[]").is_none(), "octet {at}");
        assert_eq!(store.stats().corrupt, before + 1);
        assert!(
            !path.exists() && root.path().join("store/quarantine").join(path.file_name().unwrap()).exists()
        );
        fill(&store, &inbox, 1, "BODY[]", body.as_bytes());
        store.flush();
        assert_eq!(octets(&one(&store, &inbox, 1, "BODY[]").unwrap()), body.as_bytes());
        // What was just read whole is believed for a while: begin anew.
        store.resolver.forget_verified();
    }
    fs::remove_file(&path).unwrap();
    assert!(one(&store, &inbox, 1, "BODY[]").is_none());
    assert_eq!(store.stats().lost, 1);
    fill(&store, &inbox, 2, "BODY[]", small.as_bytes());
    let (path, good) = the_file();
    let mut bad = good;
    bad[60] ^= 0x20;
    fs::write(&path, &bad).unwrap();
    assert!(one(&store, &inbox, 2, "BODY[]").is_none());
}

#[test]
fn verify_finds_damage_and_gc_brings_files_and_rows_together() {
    let (root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    for n in 1..=5 {
        fill(&store, &inbox, n, "BODY[]", message(n, 1000).as_bytes());
    }
    store.flush();
    let blobs = root.path().join("store/blobs");
    let all: Vec<PathBuf> = files(&blobs).into_keys().collect();
    let mut bad = fs::read(&all[0]).unwrap();
    bad[70] ^= 1;
    fs::write(&all[0], bad).unwrap();
    let report = store.verify(u64::MAX);
    assert_eq!((report.bodies, report.corrupt, report.complete), (5, 1, true));
    assert_eq!(store.stats().bodies, 4);
    let report = store.verify(u64::MAX);
    assert_eq!((report.bodies, report.corrupt, report.complete), (4, 0, true));

    fs::remove_file(&all[1]).unwrap();
    let stray = blobs.join(format!("00/{}", "00".repeat(32)));
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, b"stray").unwrap();
    fs::write(blobs.join("00/what"), b"stray").unwrap();
    store.handle(CatalogOp::Expunged {
        mailbox: inbox.clone(),
        uids: vec![uid(1), uid(2), uid(3), uid(4), uid(5)],
    });
    fill(&store, &inbox, 6, "BODY[]", message(6, 1000).as_bytes());
    let report = store.gc().unwrap();
    assert_eq!((report.bodies_removed, report.rows_without_body), (3 + 1, 0));
    assert_eq!((files(&blobs).len(), store.stats().bodies), (1, 1));
    fs::remove_file(files(&blobs).into_keys().next().unwrap()).unwrap();
    assert_eq!(store.gc().unwrap().rows_without_body, 1);
    assert_eq!(store.gc().unwrap(), GcReport::default());
    assert!(one(&store, &inbox, 6, "BODY[]").is_none());
}

#[test]
fn room_is_made_by_what_nobody_used_and_not_under_a_reader() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig { size_max: 3_000_000, ..config(root.path()) }).unwrap();
    let inbox = mailbox(1, "INBOX", 5);
    let body = |n| message(n, 200_000);
    for n in 1..=10 {
        fill(&store, &inbox, n, "BODY[]", body(n).as_bytes());
        if n == 2 {
            store.handle(CatalogOp::Used { mailbox: inbox.clone(), uids: vec![uid(2)] });
        }
    }
    store.flush();
    let reading = one(&store, &inbox, 1, "BODY[]").unwrap();
    for n in 11..=40 {
        fill(&store, &inbox, n, "BODY[]", body(n).as_bytes());
        store.flush();
        assert!(store.stats().disk_octets <= 3_000_000, "at {n}: {}", store.stats().disk_octets);
    }
    let stats = store.stats();
    assert!(stats.evicted >= 20 && stats.fills.refused == 0, "{stats:?}");
    assert!(octets(&reading) == body(1).as_bytes(), "read to its end");
    assert!(one(&store, &inbox, 2, "BODY[]").is_some(), "used once");
    assert!(one(&store, &inbox, 3, "BODY[]").is_none(), "never used, oldest");
    assert!(one(&store, &inbox, 40, "BODY[]").is_some(), "newest");
    // What can never fit is refused, and hurts nothing.
    begin(&store, &inbox, Some(50), "BODY[]", 4_000_000);
    assert_eq!(store.stats().fills.refused, 1);
    fill(&store, &inbox, 51, "BODY[]", b"small");
    assert!(one(&store, &inbox, 51, "BODY[]").is_some());
}

#[test]
fn a_full_disk_refuses_fills_and_serves_on() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultDisk::default();
    let store = Store::open_on(Arc::new(disk.clone()), config(root.path())).unwrap();
    let inbox = mailbox(1, "INBOX", 5);
    fill(&store, &inbox, 1, "BODY[]", message(1, 0).as_bytes());
    store.flush();
    disk.set_octets_max(Some(2000));
    fill(&store, &inbox, 2, "BODY[]", message(2, 300_000).as_bytes());
    assert!(one(&store, &inbox, 2, "BODY[]").is_none());
    let stats = store.stats();
    assert_eq!((stats.fills.failed, stats.fills.stored), (1, 1));
    assert_eq!(text(&store, &inbox, 1, "BODY[]"), Some(message(1, 0)));
    // Not every FillOpen tries the full disk again; rows go on.
    fill(&store, &inbox, 3, "BODY[]", b"small");
    assert_eq!(store.stats().fills.refused, 1);
    record(&store, &inbox, 3, &[("ENVELOPE", "(e)")]);
    assert!(one(&store, &inbox, 3, "ENVELOPE").is_some());
}

#[test]
fn every_disk_operation_of_a_fill_may_fail() {
    let inbox = mailbox(1, "INBOX", 5);
    let body = message(1, 150_000);
    let run = |disk: &FaultDisk, nth: Option<(u64, Fault)>| {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open_on(Arc::new(disk.clone()), config(root.path())).unwrap();
        let before = disk.operations();
        if let Some((nth, fault)) = nth {
            disk.fail(nth, fault);
        }
        fill(&store, &inbox, 1, "BODY[]", body.as_bytes());
        store.flush();
        // A disk may also fail after the length was announced; what was read before is right all the same.
        if let Some(Ok(found)) = one(&store, &inbox, 1, "BODY[]").map(|held| try_octets(&held)) {
            assert!(found == body.as_bytes(), "{nth:?}");
        }
        let operations = disk.operations() - before;
        disk.clear_faults();
        fill(&store, &inbox, 2, "BODY[]", message(2, 0).as_bytes());
        operations
    };
    let operations = run(&FaultDisk::default(), None);
    assert!(operations > 10);
    for nth in 1..=operations {
        for fault in [Fault::Torn, Fault::Error(ErrorKind::Other), Fault::Error(ErrorKind::StorageFull)] {
            run(&FaultDisk::default(), Some((nth, fault)));
        }
    }
}

/// A small store, closed, with what each value should be.
fn small_store(root: &TempDir) -> (MailboxKey, BTreeMap<(u32, &'static str), String>) {
    let store = Store::open(config(&root.path().join("store"))).unwrap();
    let inbox = mailbox(1, "INBOX", 5);
    let mut truth = BTreeMap::new();
    for n in 1..=12 {
        record(
            &store,
            &inbox,
            n,
            &[("ENVELOPE", &format!("(envelope {n})")), ("RFC822.SIZE", &n.to_string())],
        );
        fill(&store, &inbox, n, "BODY[]", message(n, 0).as_bytes());
        truth.insert((n, "ENVELOPE"), format!("(envelope {n})"));
        truth.insert((n, "RFC822.SIZE"), n.to_string());
        truth.insert((n, "BODY[]"), message(n, 0));
        truth.insert((n, "BODY[HEADER.FIELDS (X-ID)]"), format!("X-Id: {n}\r\n\r\n"));
    }
    (inbox, truth)
}

#[test]
fn flips_in_the_index_are_never_served() {
    let root = tempfile::tempdir().unwrap();
    let (inbox, truth) = small_store(&root);
    let path = root.path().join("store");
    let index = fs::read(path.join(INDEX)).unwrap();
    let mut dice = Dice(11);
    let (mut served, mut missed) = (0, 0);
    let rounds = std::env::var("WAYPOST_FLIP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for round in 0..rounds {
        let copy = root.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir_all(copy.join("blobs")).unwrap();
        for from in files(&path.join("blobs")).into_keys() {
            let to = copy.join(from.strip_prefix(&path).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::hard_link(from, to).unwrap();
        }
        let mut changed = index.clone();
        // One bit, a few octets, or a page of zeros.
        let at = dice.roll(changed.len());
        match round % 4 {
            0 | 1 => changed[at] ^= 1 << dice.roll(8),
            2 => changed[at..].iter_mut().take(8).for_each(|octet| *octet = 0xA5),
            _ => changed[at / 8192 * 8192..].iter_mut().take(8192).for_each(|octet| *octet = 0),
        }
        fs::write(copy.join(INDEX), &changed).unwrap();
        let open = Store::open(StoreConfig {
            shadow: BTreeMap::from([(inbox.account.server.clone(), false)]),
            ..config(&copy)
        });
        let store = match open {
            Ok(store) => store,
            // A version that only a flipped bit can give.
            Err(StoreOpenError::Future { .. }) => continue,
            Err(error) => panic!("round {round}, octet {at}: {error}"),
        };
        for ((n, name), value) in &truth {
            match text(&store, &inbox, *n, name) {
                Some(found) => {
                    assert!(found == *value, "round {round}, octet {at}: {name} of {n}");
                    served += 1;
                }
                None => missed += 1,
            }
        }
        record(&store, &inbox, 1, &[("ENVELOPE", "(again)")]);
        let _ = store.stats();
    }
    assert!(served > rounds && missed > rounds, "{served} {missed}");
}

#[test]
fn rows_that_changed_places_are_never_served() {
    let root = tempfile::tempdir().unwrap();
    let (inbox, _) = small_store(&root);
    let path = root.path().join("store");
    let db = rusqlite::Connection::open(path.join(INDEX)).unwrap();
    db.execute_batch(
        "UPDATE msg SET (blob, seal) = (SELECT blob, seal FROM msg m WHERE m.uid = 2) WHERE uid = 1;
         UPDATE item SET value = (SELECT value FROM item i WHERE i.uid = 2 AND i.key = item.key) WHERE uid = 1;
         UPDATE msg SET proof = 0; UPDATE msg SET seal = NULL WHERE uid = 3;",
    )
    .unwrap();
    drop(db);
    let store = Store::open(config(&path)).unwrap();
    for row in resolve(&store, &inbox, &[1, 3], &["BODY[]"]) {
        assert!(row.values[0].is_none(), "{}", row.uid);
    }
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_none() && one(&store, &inbox, 1, "RFC822.SIZE").is_none());
    assert_eq!(text(&store, &inbox, 2, "ENVELOPE").as_deref(), Some("(envelope 2)"));
    // Counted once and dropped.
    let corrupt = store.stats().corrupt;
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_none());
    assert_eq!((corrupt, store.stats().corrupt, store.stats().messages), (2, 2, 10));
}

#[test]
fn verify_finds_damaged_rows_of_every_proof() {
    let root = tempfile::tempdir().unwrap();
    let (inbox, _) = small_store(&root);
    let path = root.path().join("store");
    let store = Store::open(config(&path)).unwrap();
    let items = vec![(item("ENVELOPE"), bytes::Bytes::from_static(b"(pushed)"))];
    store.handle(CatalogOp::Record { mailbox: inbox.clone(), uid: uid(50), items, proof: Proof::Push });
    let report = store.verify(u64::MAX);
    assert_eq!((report.rows, report.damaged_rows, report.complete), (12 * 3 + 1, 0, true));
    drop(store);
    let db = rusqlite::Connection::open(path.join(INDEX)).unwrap();
    db.execute_batch(
        "UPDATE item SET proof = 0 WHERE uid = 50;
         UPDATE item SET value = x'00' || substr(value, 2) WHERE uid = 3;
         UPDATE msg SET seal = NULL WHERE uid = 4;",
    )
    .unwrap();
    drop(db);
    let store = Store::open(config(&path)).unwrap();
    let report = store.verify(u64::MAX);
    assert_eq!((report.rows, report.damaged_rows, report.complete), (12 * 3 + 1, 1 + 2 + 1, true));
    let report = store.verify(u64::MAX);
    assert_eq!((report.rows, report.damaged_rows, report.complete), (10 * 3, 0, true));
}

#[test]
fn an_index_that_cannot_grow_forgets_and_shows_nothing_that_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(INDEX);
    let db = schema::open(&path, false).unwrap();
    let sealer: Arc<dyn Sealer> = Arc::new(CheckOnly);
    let counters = Arc::<Counters>::default();
    let trust = Trust::new(BTreeMap::new());
    let index = Index::new(path, Arc::clone(&sealer), ItemKeys::default(), trust, Arc::clone(&counters));
    let inbox = Scope::new(&mailbox(1, "INBOX", 5), &*sealer);
    let put = |n, octets| {
        let value = Value::Octets(vec![b'x'; octets].into());
        let items = vec![(item("ENVELOPE"), value)];
        index.put(Write::Record { scope: inbox.clone(), uid: uid(n), items, proof: Proof::Origin });
        index.settle();
    };
    let known =
        || index.read(|db| db.query_row("SELECT count(*) FROM msg", [], |row| row.get::<_, i64>(0))).unwrap();
    thread::scope(|scope| {
        let pages: i64 = db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        db.pragma_update(None, "max_page_count", pages + 8).unwrap();
        let run = scope.spawn(|| index.run(db, |_| {}));
        put(1, 10);
        assert!(index.settle_mailbox(&inbox.mailbox));
        put(2, 200_000);
        assert_eq!((counters.index_failures.get(), known()), (1, 1));
        put(3, 10);
        assert_eq!((counters.index_failures.get(), known()), (1, 2), "room for a small one");
        assert!(index.settle_mailbox(&inbox.mailbox), "what was not kept is only a miss");
        // The batch that cannot be written holds an EXPUNGE.
        let value = Value::Octets(vec![b'x'; 200_000].into());
        let items = vec![(item("ENVELOPE"), value)];
        index.put(Write::Expunged { scope: inbox.clone(), uids: vec![uid(1)] });
        index.put(Write::Record { scope: inbox.clone(), uid: uid(4), items, proof: Proof::Origin });
        assert!(!index.settle_mailbox(&inbox.mailbox), "nothing of this mailbox is served");
        assert!(index.settle_mailbox(&Scope::new(&mailbox(2, "INBOX", 5), &*sealer).mailbox));
        index.stop();
        run.join().unwrap();
    });
}

#[test]
fn what_a_crash_left_behind_is_swept_up_later() {
    let (root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    fill(&store, &inbox, 1, "BODY[]", message(1, 0).as_bytes());
    store.flush();
    let blobs = root.path().join("store/blobs");
    for first in ["00", "7f", "ff"] {
        fs::create_dir_all(blobs.join(first)).unwrap();
        fs::write(blobs.join(first).join(first.repeat(32)), b"nobody's").unwrap();
    }
    (0..1000).for_each(|tick| store.chores.sweep(tick));
    assert_eq!(files(&blobs).len(), 1);
    assert_eq!(text(&store, &inbox, 1, "BODY[]"), Some(message(1, 0)));
}

/// What is in the directory while a store works is what kill -9 leaves.
/// Where a process of this test finds the store that it fills until it is killed, and where it begins.
const TO_BE_KILLED: &str = "WAYPOST_TEST_STORE_TO_BE_KILLED";

/// Fills a store without an end. Each dozen that was flushed is told in a file beside the store.
fn fill_until_killed(path: &Path) -> ! {
    let store = Store::open(config(path)).unwrap();
    let inbox = mailbox(1, "INBOX", 5);
    let told = path.with_extension("told");
    let mut n = fs::read_to_string(&told).map_or(0, |told| told.parse().unwrap());
    loop {
        for _ in 0..12 {
            n += 1;
            fill(&store, &inbox, n, "BODY[]", message(n, 2000).as_bytes());
            record(&store, &inbox, n, &[("ENVELOPE", &format!("(envelope {n})"))]);
        }
        begin(&store, &inbox, None, "BODY[]", 100);
        store.flush();
        fs::write(path.with_extension("new"), n.to_string()).unwrap();
        fs::rename(path.with_extension("new"), &told).unwrap();
    }
}

#[test]
fn a_store_that_was_killed_opens_and_holds_only_what_is_true() {
    if let Some(path) = std::env::var_os(TO_BE_KILLED) {
        fill_until_killed(Path::new(&path));
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("store");
    let told = || fs::read_to_string(path.with_extension("told")).map_or(0, |told| told.parse().unwrap());
    let inbox = mailbox(1, "INBOX", 5);
    let mut dice = Dice(7);
    for round in 0..6 {
        let before: u32 = told();
        let this = thread::current().name().unwrap().to_owned();
        let mut filling = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &this, "--nocapture"])
            .env(TO_BE_KILLED, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while told() == before {
            assert!(filling.try_wait().unwrap().is_none(), "it fills until it is killed");
            thread::sleep(Duration::from_millis(1));
        }
        // Anywhere in the dozens that follow.
        thread::sleep(Duration::from_micros(dice.roll(20_000) as u64));
        filling.kill().unwrap();
        let _ = filling.wait().unwrap();
        let flushed = told();
        let killed = Store::open(config(&path)).unwrap();
        for n in 1..=flushed + 24 {
            let body = text(&killed, &inbox, n, "BODY[]");
            let envelope = text(&killed, &inbox, n, "ENVELOPE");
            assert!(n > flushed || body.is_some() && envelope.is_some(), "UID {n} was flushed");
            assert!(body.is_none_or(|body| body == message(n, 2000)), "UID {n}");
            assert!(envelope.is_none_or(|envelope| envelope == format!("(envelope {n})")), "UID {n}");
        }
        assert!(files(&path.join("tmp")).is_empty());
        assert_eq!((killed.stats().corrupt, killed.stats().index_failures), (0, 0));
        let _ = killed.gc().unwrap();
        assert_eq!(files(&path.join("blobs")).len() as u64, killed.stats().bodies);
        fill(&killed, &inbox, 1_000_000 + round, "BODY[]", message(round, 0).as_bytes());
        assert_eq!(text(&killed, &inbox, 1_000_000 + round, "BODY[]"), Some(message(round, 0)));
    }
}

#[test]
fn rows_make_room_too() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig { size_max: 8 << 20, ..config(root.path()) }).unwrap();
    let inbox = mailbox(1, "INBOX", 5);
    let value = "v".repeat(1000);
    for n in 1..=5000 {
        record(&store, &inbox, n, &[("ENVELOPE", &value)]);
        if n % 500 == 0 {
            store.flush();
        }
    }
    store.flush();
    store.flush();
    let stats = store.stats();
    assert!(stats.evicted_rows >= 2000 && stats.messages + stats.evicted_rows == 5000, "{stats:?}");
    assert!(stats.disk_octets < 3 << 20, "{stats:?}");
    assert!(one(&store, &inbox, 5000, "ENVELOPE").is_some());
}

#[test]
fn fills_that_nobody_ends_do_not_stop_others() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    let header = item("BODY[HEADER]");
    let fill_id = |n| imap_core::catalog::FillId { session: 9, n };
    for n in 0..5000 {
        store.fills.begin(fill_id(n), inbox.clone(), None, header.clone(), 10, 1000);
    }
    assert_eq!(store.stats().fills.refused, 5000 - 4096);
    store.fills.data(fill_id(7), &bytes::Bytes::from_static(b"01234"), 1500);
    store.fills.begin(fill_id(9000), inbox.clone(), None, header, 10, 1700);
    store.fills.data(fill_id(9000), &bytes::Bytes::from_static(b"0123456789"), 1700);
    assert!(store.fills.commit(fill_id(9000), uid(1), 1700).is_some());
    assert_eq!(store.stats().fills.aborted, 4095, "all but the one that moved");
}

#[test]
fn the_log_of_commits_stays_short() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(config(root.path())).unwrap();
    let value = "v".repeat(100_000);
    for n in 1..=400 {
        record(&store, &mailbox(1, "INBOX", 5), n, &[("ENVELOPE", &value)]);
        if n % 50 == 0 {
            store.flush();
        }
    }
    let octets = |name: &str| fs::metadata(root.path().join(name)).unwrap().len();
    assert!(octets(INDEX) > 30 << 20, "{}", octets(INDEX));
    assert!(octets("index.sqlite-wal") < 24 << 20, "{}", octets("index.sqlite-wal"));
}

#[test]
fn files_are_the_owners_only() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(config(root.path())).unwrap();
    fill_with_canaries(&store);
    for (path, _) in files(root.path()) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    assert!(files(root.path()).keys().any(|path| path.ends_with("index.sqlite-wal")));
}

#[test]
fn a_store_whose_writer_is_gone_answers_nothing_and_holds_nobody_up() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    record(&store, &inbox, 1, &[("ENVELOPE", "(e)")]);
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_some());
    store.index.stop();
    while !store.threads[0].is_finished() {
        thread::yield_now();
    }
    for _ in 0..10_000 {
        record(&store, &inbox, 1, &[("ENVELOPE", "(e)")]);
    }
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_none());
    store.flush();
}

#[test]
fn flips_in_a_tables_definition_are_damage() {
    let root = tempfile::tempdir().unwrap();
    let (inbox, _) = small_store(&root);
    let path = root.path().join("store");
    let good = fs::read(path.join(INDEX)).unwrap();
    for word in
        ["text TEXT NOT NULL", "file_octets INTEGER", "tally BLOB", "hits INTEGER", "item_blob", "retired"]
    {
        let at = good.windows(word.len()).position(|window| window == word.as_bytes()).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 0x02;
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(INDEX), bad).unwrap();
        let store = Store::open(config(&path)).unwrap();
        assert!(path.join("quarantine").join(INDEX).exists(), "{word}");
        record(&store, &inbox, 1, &[("ENVELOPE", "(anew)")]);
        assert_eq!(text(&store, &inbox, 1, "ENVELOPE").as_deref(), Some("(anew)"), "{word}");
    }
}

#[test]
fn an_index_that_is_none_is_moved_aside() {
    let root = tempfile::tempdir().unwrap();
    let (inbox, _) = small_store(&root);
    let path = root.path().join("store");
    fs::write(path.join(INDEX), b"not a database, but long enough to be looked at as one".repeat(300))
        .unwrap();
    let store = Store::open(config(&path)).unwrap();
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_none());
    assert!(path.join("quarantine").join(INDEX).exists());
    record(&store, &inbox, 1, &[("ENVELOPE", "(anew)")]);
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_some());
    assert_eq!(store.gc().unwrap().bodies_removed, 12);
}

#[test]
fn after_a_crash_the_store_is_colder_and_never_wrong() {
    let inbox = mailbox(1, "INBOX", 5);
    let mut found = 0;
    for seed in 0..30 {
        let mut dice = Dice(seed);
        let root = tempfile::tempdir().unwrap();
        let mut disk = FaultDisk::default();
        for life in 0..3 {
            let store = Store::open_on(Arc::new(disk.clone()), config(root.path())).unwrap();
            for n in 1..=20 {
                if let Some(held) = one(&store, &inbox, n, "BODY[]") {
                    assert!(octets(&held) == message(n, 0).as_bytes(), "seed {seed}, life {life}, UID {n}");
                    found += 1;
                }
            }
            for _ in 0..8 {
                let n = 1 + u32::try_from(dice.roll(20)).unwrap();
                match dice.roll(5) {
                    0 => {
                        let cut = begin(&store, &inbox, Some(n), "BODY[]", 4000);
                        data(&store, cut, &[b'x'; 2000]);
                    }
                    1 => {
                        drop(store.handle(CatalogOp::Expunged { mailbox: inbox.clone(), uids: vec![uid(n)] }))
                    }
                    2 => store.flush(),
                    _ => fill(&store, &inbox, n, "BODY[]", message(n, 0).as_bytes()),
                }
            }
            // The index's rows are written at most this far; the bodies' disk loses what was not synced.
            store.index.settle();
            let after = disk.crash(&mut dice);
            assert_eq!(store.stats().corrupt, 0, "seed {seed}");
            drop(store);
            disk = after;
        }
    }
    assert!(found > 100, "{found}");
}

#[test]
fn a_question_for_too_many_messages_is_answered_for_as_many_as_promised() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    for n in 1..=300 {
        record(&store, &inbox, n, &[("ENVELOPE", "(e)")]);
    }
    let op = CatalogOp::Resolve {
        request: RequestId(1),
        mailbox: inbox,
        uids: (1..=300).map(uid).collect(),
        items: vec![item("ENVELOPE")],
    };
    let Some(CatalogReply::Resolved { rows, .. }) = store.handle(op) else { panic!() };
    let held: Vec<bool> = rows.iter().map(|row| row.values[0].is_some()).collect();
    assert_eq!((held.len(), held.iter().filter(|held| **held).count()), (300, 256));
}
