//! The file: its tables, how an older one becomes this one, how it is opened, read and written.
//!
//! Habits are kept under hashes (`UserKey`, the rooms' opaque keys): no name and no text stands here.

use crate::{
    database::Change,
    ledger::{LedgerChanges, Row, Tally, Waiting},
    record::{Key, Record},
};
use discovery_core::{
    id::{ServerId, SiteId, UserKey},
    now::UnixMillis,
    value::ObjectKey,
};
use disk::{LockFile, Refused};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Each entry leads from the version that is its position to the next. Never change one that was released.
const MIGRATIONS: [&str; 1] = ["
    -- US 9,172,620, the records of the UADB; `passed` and `modified` are its 'other fields'.
    CREATE TABLE access(
        user BLOB NOT NULL, server TEXT NOT NULL, object BLOB NOT NULL, first INTEGER NOT NULL,
        last INTEGER NOT NULL, count INTEGER NOT NULL, passed INTEGER NOT NULL, modified INTEGER,
        PRIMARY KEY(user, server, object)) WITHOUT ROWID;
    -- Octets fetched ahead of which it is not decided yet.
    CREATE TABLE waiting(
        user BLOB NOT NULL, server TEXT NOT NULL, object BLOB NOT NULL, site TEXT NOT NULL,
        octets INTEGER NOT NULL, at INTEGER NOT NULL, PRIMARY KEY(user, server, object)) WITHOUT ROWID;
    CREATE TABLE tally(
        user BLOB NOT NULL, site TEXT NOT NULL, opens INTEGER NOT NULL, hits INTEGER NOT NULL,
        fetched INTEGER NOT NULL, used INTEGER NOT NULL, wasted INTEGER NOT NULL,
        PRIMARY KEY(user, site)) WITHOUT ROWID;
"];

/// The version that this program reads and writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// 'wpaf'
const APPLICATION_ID: i32 = 0x7770_6166;

pub(super) const FILE: &str = "affinity.db";

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AffinityOpenError {
    /// Another process has it open.
    #[error("{path}: the affinity database is in use by {}; stop it first", holder(*.process))]
    InUse {
        /// Its directory.
        path: PathBuf,
        /// The other process, if it can be told.
        process: Option<u32>,
    },
    /// A newer program wrote it.
    #[error(
        "{path}: the affinity database has schema version {found}, this program knows up to {known}; use the newer \
         program, or give this one another directory"
    )]
    Future {
        /// Its directory.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The directory or a file in it cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite, for another reason than damage (a damaged file is set aside).
    #[error("{path}: the affinity database cannot be opened: {why}")]
    Sqlite {
        /// Its directory.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
}

fn holder(process: Option<u32>) -> String {
    process.map_or_else(|| "another process".to_owned(), |process| format!("process {process}"))
}

enum Failure {
    Future(i64),
    Damaged,
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        // How a statement of ours is answered by tables that are not ours.
        if matches!(error, rusqlite::Error::SqlInputError { .. }) {
            return Self::Damaged;
        }
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase | Unknown) => Self::Damaged,
            Some(_) | None => Self::Sqlite(error),
        }
    }
}

/// An open file and what stood in it.
pub(super) struct Opened {
    pub(super) db: Connection,
    pub(super) lock: LockFile,
    pub(super) rows: Rows,
}

#[derive(Default)]
pub(super) struct Rows {
    pub(super) records: Vec<(Key, Record)>,
    pub(super) waiting: Vec<(Key, Waiting)>,
    pub(super) tallies: Vec<Row>,
}

pub(super) fn open(dir: &Path) -> Result<Opened, AffinityOpenError> {
    let io_error = |source| AffinityOpenError::Io { path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error)?;
    let lock = LockFile::take(&dir.join("lock")).map_err(|refused| match refused {
        Refused::Held(process) => AffinityOpenError::InUse { path: dir.to_owned(), process },
        Refused::Io(source) => io_error(source),
    })?;
    let path = dir.join(FILE);
    make_private(&path).map_err(io_error)?;
    let opened = match read(&path) {
        Err(Failure::Damaged) => {
            tracing::warn!(
                "the affinity database is damaged; it was moved to quarantine/, and habits are learned anew"
            );
            set_aside(dir, &path).and_then(|()| make_private(&path)).map_err(io_error)?;
            read(&path)
        }
        opened => opened,
    };
    let sqlite = |why| AffinityOpenError::Sqlite { path: dir.to_owned(), why };
    match opened {
        Ok((db, rows)) => Ok(Opened { db, lock, rows }),
        Err(Failure::Future(found)) => {
            Err(AffinityOpenError::Future { path: dir.to_owned(), found, known: VERSION })
        }
        Err(Failure::Damaged) => Err(sqlite("damaged, and again after it was made anew".to_owned())),
        Err(Failure::Sqlite(error)) => Err(sqlite(error.to_string())),
    }
}

/// Opens or migrates, checks, and reads it all: what is bounded in memory is small on disk.
fn read(path: &Path) -> Result<(Connection, Rows), Failure> {
    let mut db = Connection::open(path)?;
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > VERSION {
        return Err(Failure::Future(found));
    }
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if found != 0 && application != APPLICATION_ID {
        return Err(Failure::Damaged);
    }
    if found != 0 {
        let verdict: Option<String> =
            db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).optional()?;
        if verdict.as_deref() != Some("ok") {
            return Err(Failure::Damaged);
        }
    }
    db.pragma_update(None, "journal_mode", "wal")?;
    // What was told to be on disk is there after a power cut. One thread writes, in batches; nobody waits.
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "journal_size_limit", 4 << 20)?;
    db.pragma_update(None, "temp_store", "memory")?;
    db.busy_timeout(BUSY)?;
    let transaction = db.transaction()?;
    let from = usize::try_from(found).map_err(|_| Failure::Damaged)?;
    MIGRATIONS.iter().skip(from).try_for_each(|step| transaction.execute_batch(step))?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()?;
    let rows = Rows { records: records(&db)?, waiting: waiting(&db)?, tallies: tallies(&db)? };
    Ok((db, rows))
}

/// A row that is no row of ours is left out: habits are advice, not truth.
fn all<T>(
    db: &Connection,
    sql: &str,
    read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
) -> Result<Vec<T>, Failure> {
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok(read(row).ok().flatten()))?;
    Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Key>> {
    let (user, server): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
    let key = row.get(2)?;
    let user = UserKey::from_octets(&user);
    let server = ServerId::new(&server).ok();
    Ok(user.zip(server).map(|(user, server)| Key { user, object: ObjectKey { server, key } }))
}

fn records(db: &Connection) -> Result<Vec<(Key, Record)>, Failure> {
    // The oldest first: the limits, if they shrank, keep the newest.
    let sql = "SELECT user, server, object, first, last, count, passed, modified FROM access ORDER BY last";
    all(db, sql, |row| {
        let record = Record {
            first: UnixMillis(row.get(3)?),
            last: UnixMillis(row.get(4)?),
            count: row.get(5)?,
            passed: row.get(6)?,
            modified: row.get::<_, Option<i64>>(7)?.map(UnixMillis),
        };
        Ok(key(row)?.map(|key| (key, record)))
    })
}

fn waiting(db: &Connection) -> Result<Vec<(Key, Waiting)>, Failure> {
    all(db, "SELECT user, server, object, site, octets, at FROM waiting", |row| {
        let site = SiteId::new(&row.get::<_, String>(3)?).ok();
        let (octets, at) = (number(row, 4)?, UnixMillis(row.get(5)?));
        Ok(key(row)?.zip(site).map(|(key, site)| (key, Waiting { site, octets, at })))
    })
}

fn tallies(db: &Connection) -> Result<Vec<Row>, Failure> {
    all(db, "SELECT user, site, opens, hits, fetched, used, wasted FROM tally", |row| {
        let user = UserKey::from_octets(&row.get::<_, Vec<u8>>(0)?);
        let site = SiteId::new(&row.get::<_, String>(1)?).ok();
        let tally = Tally {
            opens: number(row, 2)?,
            hits: number(row, 3)?,
            fetched: number(row, 4)?,
            used: number(row, 5)?,
            wasted: number(row, 6)?,
        };
        Ok(user.zip(site).map(|(user, site)| Row { user, site, tally }))
    })
}

fn number(row: &rusqlite::Row<'_>, nth: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(nth)?).unwrap_or(0))
}

/// Writes a batch: all of it or nothing.
pub(super) fn write(db: &mut Connection, records: &[Change], ledger: &LedgerChanges) -> rusqlite::Result<()> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        for user in &ledger.forgotten {
            for table in ["access", "waiting", "tally"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE user = ?"), [user.to_octets()])?;
            }
        }
        let mut put = transaction.prepare_cached("REPLACE INTO access VALUES(?, ?, ?, ?, ?, ?, ?, ?)")?;
        let mut delete =
            transaction.prepare_cached("DELETE FROM access WHERE user = ? AND server = ? AND object = ?")?;
        for (key, record) in records {
            let (user, server, object) = columns(key);
            match record {
                Some(r) => put.execute(params![
                    user,
                    server,
                    object,
                    r.first.0,
                    r.last.0,
                    r.count,
                    r.passed,
                    r.modified.map(|at| at.0)
                ])?,
                None => delete.execute(params![user, server, object])?,
            };
        }
        let mut put = transaction.prepare_cached("REPLACE INTO waiting VALUES(?, ?, ?, ?, ?, ?)")?;
        let mut delete =
            transaction.prepare_cached("DELETE FROM waiting WHERE user = ? AND server = ? AND object = ?")?;
        for (key, waiting) in &ledger.waiting {
            let (user, server, object) = columns(key);
            match waiting {
                Some(w) => {
                    put.execute(params![user, server, object, w.site.as_str(), signed(w.octets), w.at.0])?
                }
                None => delete.execute(params![user, server, object])?,
            };
        }
        let mut put = transaction.prepare_cached("REPLACE INTO tally VALUES(?, ?, ?, ?, ?, ?, ?)")?;
        for Row { user, site, tally: t } in &ledger.tallies {
            put.execute(params![
                user.to_octets(),
                site.as_str(),
                signed(t.opens),
                signed(t.hits),
                signed(t.fetched),
                signed(t.used),
                signed(t.wasted)
            ])?;
        }
    }
    transaction.commit()
}

fn columns(key: &Key) -> ([u8; 17], &str, &[u8]) {
    (key.user.to_octets(), key.object.server.as_str(), &key.object.key)
}

/// SQLite gives its other files the mode of the first, and would make that one as the umask says.
fn make_private(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

fn set_aside(dir: &Path, path: &Path) -> io::Result<()> {
    let quarantine = dir.join("quarantine");
    fs::create_dir_all(&quarantine)?;
    // The last of many is overwritten: a disk that damages each of them shall not be filled with them.
    let names = (0..QUARANTINED_MAX).map(|n| if n == 0 { FILE.to_owned() } else { format!("{FILE}.{n}") });
    let mut free = names.map(|name| quarantine.join(name)).skip_while(|path| path.exists());
    let last = || quarantine.join(format!("{FILE}.{}", QUARANTINED_MAX - 1));
    fs::rename(path, free.next().unwrap_or_else(last))?;
    for tail in ["-wal", "-shm"] {
        match fs::remove_file(dir.join(format!("{FILE}{tail}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Damaged files that are kept.
const QUARANTINED_MAX: usize = 8;

/// Nobody else opens it, but an operator's `sqlite3`.
const BUSY: std::time::Duration = std::time::Duration::from_secs(2);
