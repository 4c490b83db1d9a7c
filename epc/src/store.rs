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
mod claims;
mod columns;
mod counters;
#[cfg(test)]
mod fault_tests;
mod fills;
mod head;
mod index;
mod item_keys;
#[cfg(test)]
mod model_tests;
mod opening;
mod resolve;
mod room;
mod schema;
mod scope;
mod shadow;
mod stats;
#[cfg(test)]
mod store_tests;
mod trust;
mod verify;
mod write;

pub use chores::GcReport;
pub use opening::{StoreConfig, StoreOpenError};
pub use stats::{FillStats, StoreStats};
pub use trust::TrustTally;
pub use verify::VerifyReport;

use bodies::Bodies;
use chores::Chores;
use claims::Claims;
use counters::Counters;
use discovery_core::{
    seam::{disk::Disk, sealer::Sealer},
    value::Proof,
};
use disk::{AesGcm, CheckOnly, DirectoryDisk, LockFile, NoRandom, Refused};
use fills::{Filled, Fills};
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, Claim, Held, MailboxKey, Row},
    item::{ItemClass, ItemKey, SectionClass},
    mutants,
    uid::Uid,
};
use index::Index;
use opening::{Opened, open_index};
use resolve::Resolver;
use room::Room;
use scope::{NameScope, Scope};
use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};
use write::{Value, Write};

/// See the module's documentation.
pub struct Store {
    index: Arc<Index>,
    bodies: Arc<Bodies>,
    fills: Fills,
    claims: Claims,
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
            claims: Claims::default(),
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
        let rows = self.held(mailbox, uids, items);
        let values = || rows.iter().flat_map(|row| &row.values);
        let held = values().flatten().count();
        self.counters.hits.add(held as u64);
        self.counters.misses.add((values().count() - held) as u64);
        rows
    }

    fn held(&self, mailbox: &MailboxKey, uids: Vec<Uid>, items: &[ItemKey]) -> Vec<Row> {
        let answers = self.resolver.resolve(&mailbox.account.server, &self.scope(mailbox), &uids, items);
        let mut rows: Vec<Row> =
            uids.into_iter().zip(answers).map(|(uid, values)| Row { uid, values }).collect();
        for Row { uid, values } in &mut rows {
            for (item, value) in items.iter().zip(values) {
                if value.is_none() {
                    let joined = self.fills.join(mailbox, *uid, item);
                    *value = joined.map(|(reader, octets)| Held::Filling { reader, octets });
                }
            }
        }
        rows
    }

    fn claim(&self, session: u64, mailbox: MailboxKey, uid: Uid, item: ItemKey) -> Claim {
        let what = (mailbox, uid, item);
        if !self.claims.take(session, what.clone(), Instant::now()) {
            return Claim::Others;
        }
        let (mailbox, uid, item) = what;
        // Whoever had it before may have ended between the question and the claim.
        let rows = self.held(&mailbox, vec![uid], &[item]);
        if rows.iter().flat_map(|row| &row.values).all(Option::is_none) {
            return Claim::Yours;
        }
        self.claims.release(session);
        Claim::Held
    }

    fn fill_commit(&self, fill: imap_core::catalog::FillId, uid: Uid, proof: Proof) {
        if let Some(Filled { mailbox, item, value }) = self.fills.commit(fill, uid, index::now()) {
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
            CatalogOp::Claim { request, session, mailbox, uid, item } => {
                return Some(CatalogReply::Claimed {
                    request,
                    claim: self.claim(session, mailbox, uid, item),
                });
            }
            CatalogOp::Release { session } => self.claims.release(session),
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
            CatalogOp::FillData { fill, octets } => {
                self.claims.touch(fill.session, Instant::now());
                self.fills.data(fill, &octets, index::now());
            }
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

const INDEX: &str = "index.sqlite";
const LOCK: &str = "lock";
/// Made when SQLite finds damage: whoever opens the store next checks the whole index first.
const SUSPECT: &str = "suspect";
