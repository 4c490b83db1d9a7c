//! The index's file: its tables, and how an older one becomes this one.
//!
//! Nothing in it is readable mail when a key is set: names are keyed hashes, values are sealed. Without a key every
//! value still carries a check that is bound to its row, because SQLite itself notices no flipped bit.

use super::columns;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::path::Path;

/// Each entry leads from the version that is its position to the next. Never change one that was released.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE meta(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    -- `user` is a keyed hash; the sealed identity stands nowhere else.
    CREATE TABLE account(
        id INTEGER PRIMARY KEY AUTOINCREMENT, server TEXT NOT NULL, user BLOB NOT NULL, identity BLOB,
        UNIQUE(server, user));
    -- Ids are never given twice: rows of a mailbox that is gone can be removed at leisure.
    CREATE TABLE mailbox(
        id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, name BLOB NOT NULL,
        uid_validity INTEGER NOT NULL, utf8 INTEGER NOT NULL, UNIQUE(account, name, uid_validity, utf8));
    CREATE TABLE retired(mailbox INTEGER PRIMARY KEY);
    -- `seal` binds `blob` to the row; `proof` is 0 origin, 1 push, 2 relay.
    CREATE TABLE msg(
        mailbox INTEGER NOT NULL, uid INTEGER NOT NULL, proof INTEGER NOT NULL, blob BLOB, seal BLOB,
        used INTEGER NOT NULL, hits INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(mailbox, uid)) WITHOUT ROWID;
    CREATE INDEX msg_blob ON msg(blob) WHERE blob IS NOT NULL;
    CREATE INDEX msg_used ON msg(used);
    CREATE TABLE item_key(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
    -- A large section is a blob; `value` is then what `seal` is in msg.
    CREATE TABLE item(
        mailbox INTEGER NOT NULL, uid INTEGER NOT NULL, key INTEGER NOT NULL, proof INTEGER NOT NULL,
        blob BLOB, value BLOB NOT NULL, PRIMARY KEY(mailbox, uid, key)) WITHOUT ROWID;
    CREATE INDEX item_blob ON item(blob) WHERE blob IS NOT NULL;
    -- `head`: where the sections lie, and the header, so that lists are answered without opening files.
    CREATE TABLE blob(
        nth INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, octets INTEGER NOT NULL, file_octets INTEGER NOT NULL,
        head BLOB, used INTEGER NOT NULL, hits INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX blob_used ON blob((hits > 0), used);
    -- `tally` is sealed like a value: a flipped bit must not earn trust.
    CREATE TABLE trust(
        server TEXT NOT NULL, class INTEGER NOT NULL, tally BLOB NOT NULL,
        PRIMARY KEY(server, class)) WITHOUT ROWID;
    -- What was compared already, until the class is trusted: the same message twice earns no trust.
    CREATE TABLE comparison(
        server TEXT NOT NULL, class INTEGER NOT NULL, source BLOB NOT NULL, key INTEGER NOT NULL,
        PRIMARY KEY(server, class, source, key)) WITHOUT ROWID;
"];

/// The version that this program reads and writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// 'wpst'
const APPLICATION_ID: i32 = 0x7770_7374;

/// Why the index cannot be used.
#[derive(Debug)]
pub(super) enum SchemaError {
    /// A newer program wrote it.
    Future(i64),
    /// It is damaged, or no index of ours.
    Damaged,
    /// SQLite.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for SchemaError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged } else { Self::Sqlite(error) }
    }
}

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

/// Opens the index for writing; makes or migrates it.
pub(super) fn open(path: &Path, suspect: bool) -> Result<Connection, SchemaError> {
    let mut connection = Connection::open(path)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > VERSION {
        return Err(SchemaError::Future(found));
    }
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if found != 0 && application != APPLICATION_ID {
        return Err(SchemaError::Damaged);
    }
    if found == 0 {
        // Values of some kilobytes stay on their pages.
        connection.pragma_update(None, "page_size", 8192)?;
    }
    if suspect && found != 0 {
        let verdict: Option<String> =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).optional()?;
        if verdict.as_deref() != Some("ok") {
            return Err(SchemaError::Damaged);
        }
    }
    settle(&connection)?;
    // Checkpoints sync; nobody who waits for a commit should wait for that as well.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let transaction = connection.transaction()?;
    migrate(&transaction, usize::try_from(found).map_err(|_| SchemaError::Damaged)?)?;
    // A flipped bit in a table's definition is a column that nobody finds.
    let reference = Connection::open_in_memory()?;
    migrate(&reference, 0)?;
    if definitions(&transaction)? != definitions(&reference)? {
        return Err(SchemaError::Damaged);
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()?;
    Ok(connection)
}

fn migrate(db: &Connection, from: usize) -> rusqlite::Result<()> {
    MIGRATIONS.iter().skip(from).try_for_each(|step| db.execute_batch(step))
}

/// All that is defined, as it is written down.
fn definitions(db: &Connection) -> rusqlite::Result<Vec<[Vec<u8>; 4]>> {
    let mut statement = db.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema")?;
    let rows = statement.query_map([], |row| Ok([0, 1, 2, 3].map(|nth| columns::octets(row, nth))))?;
    let mut all = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    all.sort();
    Ok(all)
}

/// Opens the index for reading; it was opened for writing before.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    settle(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Moves what was committed into the index's file, as far as no reader needs it where it is; if that is worth it.
pub(super) fn checkpoint(path: &Path) -> rusqlite::Result<()> {
    if log_octets(path) < LOG_OCTETS_MIN {
        return Ok(());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// Octets of what waits for a checkpoint.
fn log_octets(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |log| log.len())
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    // The index can be filled again; a power cut may take the last commits and nothing else.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "secure_delete", "fast")?;
    // Nothing of an index goes into anybody's /tmp.
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// A shorter log of commits is not worth a checkpoint; SQLite begins it anew once all of it was moved.
const LOG_OCTETS_MIN: u64 = 8 << 20;

/// Page cache of one connection.
const CACHE_KIB: i64 = 4096;

/// Readers and the writer never wait for each other in WAL mode, but for a checkpoint's moment.
const BUSY: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether the index was written under the key with this check; a new one is from now on.
pub(super) fn is_of_key(db: &Connection, check: &[u8; 32]) -> Result<bool, SchemaError> {
    let sql = "SELECT value FROM meta WHERE name = 'key_check'";
    let found = db.query_row(sql, [], |row| Ok(columns::octets(row, 0))).optional()?;
    if found.is_none() {
        db.execute("INSERT INTO meta(name, value) VALUES('key_check', ?)", [&check[..]])?;
    }
    Ok(found.is_none_or(|found| found == check))
}
