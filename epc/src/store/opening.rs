//! How a store is opened, and why it may not be.

use super::{
    INDEX, SUSPECT, chores,
    item_keys::ItemKeys,
    schema::{self, SchemaError},
    trust::Trust,
};
use discovery_core::{id::ServerId, seam::sealer::Sealer};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
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

/// An index and what is read of it before anything else.
pub(super) struct Opened {
    pub(super) db: rusqlite::Connection,
    /// Written under this key.
    is_ours: bool,
    pub(super) keys: ItemKeys,
    pub(super) trust: Trust,
    /// Octets of all bodies' files.
    pub(super) octets: u64,
    pub(super) index_octets: u64,
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
pub(super) fn open_index(
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
