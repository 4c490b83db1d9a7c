//! What the database does when something is wrong: a kill, a full disk, damage, a newer program, a second opener.

use super::*;
use crate::{record::Record, shell::file::VERSION};
use discovery_core::{
    id::{ServerId, SiteId},
    now::UnixMillis,
    value::Served,
};
use std::{fs, path::Path, process, thread};

fn user(n: u8) -> UserKey {
    UserKey { version: 1, hash: [n; 16] }
}

fn object(n: u32) -> ObjectKey {
    ObjectKey { server: ServerId::new("files.example").unwrap(), key: n.to_be_bytes().to_vec() }
}

fn site() -> SiteId {
    SiteId::new("lisbon").unwrap()
}
fn wall() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixMillis(i64::try_from(since.as_millis()).unwrap())
}

fn access(user: UserKey, n: u32) -> Access {
    Access { user, object: object(n), octets: 10, served: Served::Store, at: wall() }
}

fn open(path: &Path) -> AffinityDb {
    AffinityDb::open(&AffinityConfig::new(path.to_owned())).unwrap()
}

fn record(db: &AffinityDb, user: UserKey, n: u32) -> Option<Record> {
    db.shared.engine().advisor.database().get(user, &object(n))
}

#[test]
fn what_was_learned_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let db = open(root.path());
    for n in [1, 1, 2] {
        assert_eq!(db.accesses().put(access(user(1), n)), Put::Taken);
    }
    db.ledger(|ledger| {
        ledger.record_fetched(user(1), &site(), &object(1), 100, wall());
        ledger.record_fetched(user(1), &site(), &object(2), 50, wall());
        ledger.used(user(1), &object(1), 60);
        ledger.opened(user(1), &site(), Served::Store);
    });
    db.flush();
    let before = (record(&db, user(1), 1), record(&db, user(1), 2), db.ledger(|ledger| ledger.report()));
    assert_eq!(before.0.map(|record| record.count), Some(2));
    drop(db);
    let db = open(root.path());
    assert_eq!((record(&db, user(1), 1), record(&db, user(1), 2), db.ledger(|l| l.report())), before);
    db.ledger(|ledger| ledger.gone(user(1), &object(1)));
    let tally = db.ledger(|ledger| ledger.report())[0].tally;
    assert_eq!((tally.used, tally.wasted, tally.waiting()), (60, 40, 50));
    // A user who is forgotten is forgotten on disk too.
    db.forget(user(1));
    drop(db);
    assert_eq!(record(&open(root.path()), user(1), 1), None);
}

#[test]
fn a_sink_whose_writer_is_busy_drops_and_counts() {
    let root = tempfile::tempdir().unwrap();
    let db = open(root.path());
    let sink = db.accesses();
    // The writer cannot learn while the engine is held, and nobody waits for it.
    let held = db.shared.engine();
    let taken = (0..20_000).filter(|n| sink.put(access(user(1), *n)) == Put::Taken).count();
    drop(held);
    assert!((QUEUE_MAX..=QUEUE_MAX + 2).contains(&taken), "{taken}");
    db.flush();
    assert_eq!(db.stats().dropped, 20_000 - taken as u64);
}

#[test]
fn a_full_disk_is_a_counted_loss_and_the_habits_stay_in_memory() {
    let root = tempfile::tempdir().unwrap();
    let config = AffinityConfig::new(root.path().to_owned());
    let file = file::open(&config.path).unwrap();
    let pages: i64 = file.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    // SQLite answers a file that may not grow as it answers a disk that is full.
    file.db.pragma_update(None, "max_page_count", pages + 2).unwrap();
    let db = AffinityDb::start(&config, file).unwrap();
    db.accesses().put(access(user(1), 1));
    db.flush();
    let written = db.stats().written;
    assert!(written > 0 && db.stats().lost == 0);
    for n in 0..2000 {
        db.accesses().put(access(user(2), n));
    }
    db.flush();
    let stats = db.stats();
    assert!(stats.lost >= 1000, "{stats:?}");
    assert_eq!(record(&db, user(2), 7).map(|record| record.count), Some(1));
    drop(db);
    let db = open(root.path());
    assert!(record(&db, user(1), 1).is_some(), "what was written is there");
}

#[test]
fn nothing_is_left_of_a_user_who_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    for n in 1..=2 {
        db.accesses().put(access(user(n), 1));
        db.ledger(|ledger| {
            ledger.record_fetched(user(n), &site(), &object(1), 10, wall());
            ledger.record_fetched(user(n), &site(), &object(2), 10, wall());
            ledger.used(user(n), &object(2), 10);
        });
    }
    db.flush();
    db.forget(user(1));
    db.flush();
    drop(db);
    let db = open(dir.path());
    let known = |n| record(&db, user(n), 1).is_some();
    assert_eq!((known(1), known(2)), (false, true));
    let report = db.ledger(|ledger| ledger.report());
    let rows: Vec<_> = report.iter().map(|row| (row.user, row.tally.waiting(), row.tally.used)).collect();
    assert_eq!(rows, [(user(2), 10, 10)]);
}

#[test]
fn garbage_is_set_aside_and_habits_are_learned_anew() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(file::FILE);
    for n in 0..10 {
        let garbage = match n % 2 {
            0 => vec![0xa5_u8; 20_000 + n],
            _ => b"SQLite format 3\0 and then nothing of the kind".repeat(400 + n),
        };
        fs::write(&path, &garbage).unwrap();
        let db = open(root.path());
        assert_eq!(db.stats().records, 0);
        // Each under a name of its own, and not without end.
        let name = if n == 0 { file::FILE.to_owned() } else { format!("{}.{}", file::FILE, n.min(7)) };
        let kept = fs::read(root.path().join("quarantine").join(name)).unwrap();
        assert!(kept == garbage, "damaged file {n}");
        db.accesses().put(access(user(1), 1));
        drop(db);
        assert!(record(&open(root.path()), user(1), 1).is_some());
    }
    assert_eq!(fs::read_dir(root.path().join("quarantine")).unwrap().count(), 8);
}

#[test]
fn a_database_with_other_tables_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()));
    for sql in [
        "ALTER TABLE tally RENAME TO tallx",
        "ALTER TABLE access RENAME COLUMN passed TO passex",
        "PRAGMA application_id = 5",
        "PRAGMA user_version = 0",
    ] {
        let raw = rusqlite::Connection::open(root.path().join(file::FILE)).unwrap();
        raw.execute_batch(sql).unwrap();
        drop(raw);
        let db = open(root.path());
        let aside = root.path().join("quarantine");
        assert!(aside.join(file::FILE).exists(), "{sql}");
        fs::remove_dir_all(aside).unwrap();
        db.accesses().put(access(user(1), 1));
        drop(db);
        assert!(record(&open(root.path()), user(1), 1).is_some(), "{sql}");
    }
}

#[test]
fn a_newer_database_is_refused_and_one_process_has_it() {
    let root = tempfile::tempdir().unwrap();
    let db = open(root.path());
    let refused = AffinityDb::open(&AffinityConfig::new(root.path().to_owned())).err().unwrap();
    assert!(matches!(refused, AffinityOpenError::InUse { process: Some(id), .. } if id == process::id()));
    drop(db);
    let raw = rusqlite::Connection::open(root.path().join(file::FILE)).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    let refused = AffinityDb::open(&AffinityConfig::new(root.path().to_owned())).err().unwrap();
    assert!(matches!(refused, AffinityOpenError::Future { found: 99, known: VERSION, .. }), "{refused}");
}

/// Set in the process that is killed: where it writes.
const TO_BE_KILLED: &str = "WAYPOST_TEST_AFFINITY_KILLED";

/// Records in one flush of the process that is killed.
const FLUSH: u32 = 20;

fn learn_until_killed(path: &Path) -> ! {
    let db = open(path);
    let mut n = fs::read_to_string(path.with_extension("told")).map_or(0, |told| told.parse().unwrap());
    loop {
        for _ in 0..FLUSH {
            n += 1;
            db.accesses().put(access(user(1), n % 3000));
            db.ledger(|ledger| ledger.record_fetched(user(1), &site(), &object(n % 3000), 10, wall()));
        }
        db.flush();
        let told = path.with_extension("new");
        fs::write(&told, n.to_string()).unwrap();
        fs::rename(told, path.with_extension("told")).unwrap();
    }
}

#[test]
fn a_database_that_was_killed_opens_and_has_what_was_flushed() {
    if let Some(path) = std::env::var_os(TO_BE_KILLED) {
        learn_until_killed(Path::new(&path));
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("affinity");
    let told = || fs::read_to_string(path.with_extension("told")).map_or(0, |told| told.parse().unwrap());
    for round in 1..=6_u64 {
        let before: u32 = told();
        let this = thread::current().name().unwrap().to_owned();
        let mut learning = process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &this, "--nocapture"])
            .env(TO_BE_KILLED, &path)
            .stdout(process::Stdio::null())
            .spawn()
            .unwrap();
        while told() == before {
            assert!(learning.try_wait().unwrap().is_none(), "it learns until it is killed");
            thread::sleep(Duration::from_millis(1));
        }
        // Anywhere in what follows.
        thread::sleep(Duration::from_micros(round * 3_700 % 15_000));
        learning.kill().unwrap();
        let _ = learning.wait().unwrap();
        let flushed = told();
        let db = open(&path);
        for n in 1..=flushed {
            assert!(record(&db, user(1), n % 3000).is_some(), "{n} of {flushed} was flushed");
        }
        assert!(!path.join("quarantine").exists());
        let tally = db.ledger(|ledger| ledger.report())[0].tally;
        assert!(tally.fetched >= u64::from(flushed) * 10, "{tally:?} after {flushed}");
        assert_eq!(tally.used + tally.wasted + tally.waiting(), tally.fetched);
    }
}
