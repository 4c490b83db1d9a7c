//! The message store: what the origin said to an account, kept for that account, until the origin says otherwise or
//! room is needed. A cache may forget and may never lie: whatever does not verify is a miss, counted and dropped.
//!
//! ```text
//!  CatalogOp ─► Store ─┬─ Fills ──────► Bodies (files; content-addressed, verified block by block)
//!                      ├─ Index ──────► SQLite (one writer in batches, readers beside it)
//!                      └─ Resolver ───► a row's value | a cut of the whole message, where trusted
//!                         Chores: sync, compare cuts with the origin's word, make room
//! ```
//! Bodies are shared by all who have the same message; rows are not: each account has its own, which the origin
//! confirmed to a session of that account. The store knows rows and no session: whether a session may see a row is
//! the session's own business (docs/decisions/0004).

mod bodies;
#[cfg(test)]
mod bodies_tests;
mod body;
mod body_file;
mod chores;
mod columns;
mod counters;
mod disk;
#[cfg(test)]
mod disk_battery;
#[cfg(test)]
mod fault_disk;
#[cfg(test)]
mod fault_tests;
mod fills;
mod head;
mod index;
mod item_keys;
mod lock_file;
#[cfg(test)]
mod model_tests;
mod resolve;
mod schema;
mod scope;
mod seal;
mod shadow;
mod stats;
#[cfg(test)]
mod store_tests;
mod trust;
mod verify;
mod write;

pub use chores::GcReport;
pub use stats::{FillStats, StoreStats};
pub use trust::TrustTally;
pub use verify::VerifyReport;

use bodies::{Bodies, Room};
use chores::Chores;
use counters::Counters;
use discovery_core::{
    id::ServerId,
    seam::{disk::Disk, sealer::Sealer},
    value::Proof,
};
use disk::DirectoryDisk;
use fills::{Filled, Fills};
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, Held, MailboxKey, Row},
    item::{ItemClass, ItemKey, SectionClass},
    mutants,
    uid::Uid,
};
use index::Index;
use item_keys::ItemKeys;
use lock_file::{LockFile, Refused};
use resolve::Resolver;
use schema::SchemaError;
use scope::{NameScope, Scope};
use seal::{AesGcm, CheckOnly, NoRandom};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};
use trust::Trust;
use write::{Value, Write};
use zeroize::Zeroizing;

/// How a store is opened.
pub struct StoreConfig {
    /// Its directory; made where it is missing. Nothing else may be in it.
    pub path: PathBuf,
    /// Octets that bodies and index may take, beside SQLite's log of some 10 MiB.
    pub size_max: u64,
    /// Seals bodies and index values. A store that was written under another key, or under none, begins empty.
    pub seal_key: Option<Zeroizing<[u8; 32]>>,
    /// `false` for a server whose sections are cut without comparison, at the operator's risk. Servers that are
    /// not here are compared.
    pub shadow: BTreeMap<ServerId, bool>,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("path", &self.path)
            .field("size_max", &self.size_max)
            .field("sealed", &self.seal_key.is_some())
            .field("shadow", &self.shadow)
            .finish()
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreOpenError {
    /// Another process has it open.
    #[error("{path}: the store is in use by {}; stop it first, or ask it by `waypost status`", holder(*.process))]
    InUse {
        /// The store.
        path: PathBuf,
        /// The other process, if it can be told.
        process: Option<u32>,
    },
    /// A newer program wrote it.
    #[error(
        "{path}: the store has schema version {found}, this program knows up to {known}; use the newer program, \
         or give this one another directory"
    )]
    Future {
        /// The store.
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
    /// The index cannot be opened for another reason than damage (a damaged one is moved aside).
    #[error("{path}: the index cannot be opened: {why}")]
    Index {
        /// Which.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
    /// The system gave no random octets, without which nothing can be sealed.
    #[error("the system gives no random octets")]
    NoRandom,
}

fn holder(process: Option<u32>) -> String {
    process.map_or_else(|| "another process".to_owned(), |process| format!("process {process}"))
}

/// See the module's documentation.
pub struct Store {
    index: Arc<Index>,
    bodies: Arc<Bodies>,
    fills: Fills,
    resolver: Arc<Resolver>,
    chores: Arc<Chores>,
    counters: Arc<Counters>,
    room: Arc<Room>,
    threads: Vec<JoinHandle<()>>,
    /// Last, so that it outlives the threads.
    _lock: LockFile,
}

impl Store {
    /// Opens a store, or makes one.
    ///
    /// # Errors
    /// [`StoreOpenError`]. Damage is none: what is damaged is moved aside, and the store begins colder.
    pub fn open(config: StoreConfig) -> Result<Self, StoreOpenError> {
        let io_error = |source| StoreOpenError::Io { path: config.path.clone(), source };
        let disk = DirectoryDisk::new(&config.path).map_err(io_error)?;
        Self::open_on(Arc::new(disk), config)
    }

    /// `disk` holds the bodies; the index and the lock are in the configured directory.
    fn open_on(disk: Arc<dyn Disk>, config: StoreConfig) -> Result<Self, StoreOpenError> {
        let StoreConfig { path, size_max, seal_key, shadow } = config;
        let io_error = |source| StoreOpenError::Io { path: path.clone(), source };
        let lock = LockFile::take(&path.join(LOCK)).map_err(|refused| match refused {
            Refused::Held(process) => StoreOpenError::InUse { path: path.clone(), process },
            Refused::Io(source) => StoreOpenError::Io { path: path.join(LOCK), source },
        })?;
        let sealer: Arc<dyn Sealer> = match &seal_key {
            None => Arc::new(CheckOnly),
            Some(_) if mutants::on("store-unsealed") => Arc::new(CheckOnly),
            Some(key) => Arc::new(AesGcm::new(key).map_err(|NoRandom| StoreOpenError::NoRandom)?),
        };
        let index_path = path.join(INDEX);
        let Opened { db, keys, trust, octets, index_octets, .. } =
            open_index(&path, &index_path, &*sealer, &shadow)?;

        let counters = Arc::new(Counters::default());
        let room = Arc::new(Room::new(size_max));
        room.set_used(octets);
        room.set_index(index_octets);
        let bodies = Bodies::open(disk, Arc::clone(&sealer), Arc::clone(&counters), Arc::clone(&room));
        let bodies = Arc::new(bodies.map_err(io_error)?);
        let index = Arc::new(Index::new(index_path, sealer, keys, trust, Arc::clone(&counters)));
        let resolver = Arc::new(Resolver::new(Arc::clone(&index), Arc::clone(&bodies)));
        let chores = Arc::new(Chores::new(
            Arc::clone(&index),
            Arc::clone(&bodies),
            Arc::clone(&resolver),
            Arc::clone(&room),
        ));
        let mut store = Self {
            fills: Fills::new(Arc::clone(&bodies), Arc::clone(&counters)),
            index,
            bodies,
            resolver,
            chores,
            counters,
            room,
            threads: Vec::new(),
            _lock: lock,
        };
        // If one cannot be started, the drop stops the other.
        let (index, chores) = (Arc::clone(&store.index), Arc::clone(&store.chores));
        let writer = move || index.run(db, |comparable| chores.compare(comparable));
        store.threads.push(start("store-index", writer).map_err(io_error)?);
        let chores = Arc::clone(&store.chores);
        store.threads.push(start("store-chores", move || chores.run()).map_err(io_error)?);
        Ok(store)
    }

    /// Brings files and rows together, and removes what is no more.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn gc(&self) -> io::Result<GcReport> {
        self.chores.collect()
    }

    /// Returns when everything told so far is written, synced and compared.
    pub fn flush(&self) {
        self.index.settle();
        self.chores.settle();
        self.index.settle();
    }

    fn scope(&self, mailbox: &MailboxKey) -> Scope {
        Scope::new(mailbox, &*self.index.sealer)
    }

    fn record(&self, mailbox: &MailboxKey, uid: Uid, items: Vec<(ItemKey, Value)>, proof: Proof) {
        let kept = |(key, value): (ItemKey, Value)| match (key.class(), value) {
            // Never the same tomorrow.
            (ItemClass::Uid | ItemClass::Dynamic, _) => None,
            // A whole message is a body, however small.
            (ItemClass::Section(SectionClass::Whole), Value::Octets(octets)) => {
                self.fills.keep_whole(octets, index::now()).map(|blob| (key, Value::Blob(blob)))
            }
            (ItemClass::Fixed | ItemClass::Section(_), value) => Some((key, value)),
        };
        let items: Vec<_> = items.into_iter().filter_map(kept).collect();
        if !items.is_empty() {
            self.index.put(Write::Record { scope: self.scope(mailbox), uid, items, proof });
        }
    }

    fn resolve(&self, mailbox: &MailboxKey, uids: Vec<Uid>, items: &[ItemKey]) -> Vec<Row> {
        let answers = self.resolver.resolve(&mailbox.account.server, &self.scope(mailbox), &uids, items);
        let mut held = 0;
        let mut asked = 0;
        let rows = uids
            .into_iter()
            .zip(answers)
            .map(|(uid, mut values)| {
                for (item, value) in items.iter().zip(&mut values) {
                    if value.is_none() {
                        let joined = self.fills.join(mailbox, uid, item);
                        *value = joined.map(|(reader, octets)| Held::Filling { reader, octets });
                    }
                    asked += 1;
                    held += u64::from(value.is_some());
                }
                Row { uid, values }
            })
            .collect();
        self.counters.hits.add(held);
        self.counters.misses.add(asked - held);
        rows
    }

    fn fill_commit(&self, fill: imap_core::catalog::FillId, uid: Uid, proof: Proof) {
        if let Some(Filled { mailbox, item, value }) = self.fills.commit(fill, index::now()) {
            self.record(&mailbox, uid, vec![(item, value)], proof);
        }
        self.fills.done(fill);
    }
}

impl Catalog for Store {
    fn handle(&self, op: CatalogOp) -> Option<CatalogReply> {
        match op {
            CatalogOp::Account { account, identity } => {
                let scope = NameScope::new(&account, b"", &*self.index.sealer);
                self.index.put(Write::Account { server: scope.server, user: scope.user, identity });
            }
            CatalogOp::Selected { mailbox } => {
                self.fills.part_mailbox(&mailbox.account, &mailbox.name, Some(&mailbox));
                self.index.put(Write::Selected { scope: self.scope(&mailbox) });
            }
            CatalogOp::Resolve { request, mailbox, uids, items } => {
                let rows = self.resolve(&mailbox, uids, &items);
                return Some(CatalogReply::Resolved { request, rows });
            }
            CatalogOp::Count { request, mailbox, uids, items } => {
                let server = &mailbox.account.server;
                let (messages, known) = self.resolver.count(server, &self.scope(&mailbox), &uids, &items);
                return Some(CatalogReply::Counted { request, messages, known });
            }
            CatalogOp::Record { mailbox, uid, items, proof } => {
                let items = items.into_iter().map(|(key, octets)| (key, Value::Octets(octets))).collect();
                self.record(&mailbox, uid, items, proof);
            }
            CatalogOp::FillOpen { fill, mailbox, uid, item, octets } => {
                if !self.fills.begin(fill, mailbox, uid, item, octets, index::now()) {
                    self.chores.press();
                }
            }
            CatalogOp::FillData { fill, octets } => self.fills.data(fill, &octets, index::now()),
            CatalogOp::FillCommit { fill, uid, proof } => self.fill_commit(fill, uid, proof),
            CatalogOp::FillAbort { fill } => self.fills.abort(fill),
            CatalogOp::Expunged { mailbox, uids } => {
                self.fills.part(|there, uid| *there == mailbox && uids.contains(&uid));
                self.index.put(Write::Expunged { scope: self.scope(&mailbox), uids });
            }
            CatalogOp::Forget { account, name } => {
                self.fills.part_mailbox(&account, &name, None);
                let mailbox = NameScope::new(&account, &name, &*self.index.sealer);
                self.index.put(Write::Forget { mailbox });
            }
            CatalogOp::Used { mailbox, uids } => {
                self.index.put(Write::Used { scope: self.scope(&mailbox), uids });
            }
            CatalogOp::ShadowWanted { request, mailbox } => {
                let wanted = self.resolver.wanted(&mailbox.account.server, &self.scope(&mailbox));
                return Some(CatalogReply::ShadowWanted { request, wanted });
            }
        }
        None
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Chores first: their last changes are still written.
        self.chores.stop();
        let mut threads = std::mem::take(&mut self.threads).into_iter();
        let writer = threads.next();
        for chores in threads {
            let _ = chores.join();
        }
        self.index.stop();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        // What the writer's last batch let go of.
        self.bodies.sync();
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// An index and what is read of it before anything else.
struct Opened {
    db: rusqlite::Connection,
    /// Written under this key.
    is_ours: bool,
    keys: ItemKeys,
    trust: Trust,
    /// Octets of all bodies' files.
    octets: u64,
    index_octets: u64,
}

impl Opened {
    fn open(
        path: &Path,
        suspect: bool,
        sealer: &dyn Sealer,
        shadow: &BTreeMap<ServerId, bool>,
    ) -> Result<Self, SchemaError> {
        let db = schema::open(path, suspect)?;
        let (keys, trust) = (ItemKeys::default(), Trust::new(shadow.clone()));
        keys.load(&db)?;
        trust.load(&db, sealer)?;
        Ok(Self {
            is_ours: schema::is_of_key(&db, &key_check(sealer))?,
            octets: chores::body_octets(&db)?,
            index_octets: chores::index_octets(&db)?,
            db,
            keys,
            trust,
        })
    }
}

/// Opens the index. A damaged one is moved aside; one of another key is removed with its bodies, of which nothing
/// can be read (or, if it was not sealed, nothing should stay readable).
fn open_index(
    store: &Path,
    path: &Path,
    sealer: &dyn Sealer,
    shadow: &BTreeMap<ServerId, bool>,
) -> Result<Opened, StoreOpenError> {
    let io_error = |source| StoreOpenError::Io { path: store.to_owned(), source };
    let open = |suspect| Opened::open(path, suspect, sealer, shadow);
    let suspect = store.join(SUSPECT).exists();
    make_private(path).map_err(io_error)?;
    let opened = match open(suspect) {
        Err(SchemaError::Damaged) => {
            tracing::warn!(
                "the store's index is damaged; it was moved to quarantine/, and the store begins empty"
            );
            set_aside(store, path).and_then(|()| make_private(path)).map_err(io_error)?;
            open(false)
        }
        Ok(opened) if !opened.is_ours => {
            drop(opened);
            tracing::warn!("the store was written under another key, or under none; it is emptied");
            empty(store).and_then(|()| make_private(path)).map_err(io_error)?;
            open(false)
        }
        opened => opened,
    };
    match opened {
        Ok(opened) => {
            remove_if_there(&store.join(SUSPECT)).map_err(io_error)?;
            Ok(opened)
        }
        Err(SchemaError::Future(found)) => {
            Err(StoreOpenError::Future { path: store.to_owned(), found, known: schema::VERSION })
        }
        Err(SchemaError::Damaged) => Err(StoreOpenError::Index {
            path: path.to_owned(),
            why: "damaged, and again after it was made anew".to_owned(),
        }),
        Err(SchemaError::Sqlite(error)) => {
            Err(StoreOpenError::Index { path: path.to_owned(), why: error.to_string() })
        }
    }
}

/// SQLite gives its other files the mode of the first, and would make that one as the umask says.
fn make_private(index: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(index)?;
    fs::set_permissions(index, fs::Permissions::from_mode(0o600))
}

/// Tells one key from another, and from none, and neither from the other.
fn key_check(sealer: &dyn Sealer) -> [u8; 32] {
    sealer.id(*blake3::hash(b"waypost store: which key").as_bytes())
}

fn set_aside(store: &Path, index: &Path) -> io::Result<()> {
    let quarantine = store.join("quarantine");
    fs::create_dir_all(&quarantine)?;
    fs::rename(index, quarantine.join(INDEX))?;
    for tail in ["-wal", "-shm"] {
        remove_if_there(&store.join(format!("{INDEX}{tail}")))?;
    }
    Ok(())
}

fn empty(store: &Path) -> io::Result<()> {
    for dir in ["blobs", "tmp", "quarantine"] {
        match fs::remove_dir_all(store.join(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    for tail in ["-wal", "-shm", ""] {
        remove_if_there(&store.join(format!("{INDEX}{tail}")))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

const INDEX: &str = "index.sqlite";
const LOCK: &str = "lock";
/// Made when SQLite finds damage: whoever opens the store next checks the whole index first.
const SUSPECT: &str = "suspect";
