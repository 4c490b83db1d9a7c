//! A disk in memory that fails on demand: at the N-th operation, for lack of room, by a flipped bit, or by a crash
//! that loses what was not synced and keeps any part of it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "compiled for tests only; a lock that is poisoned is a test that failed"
)]

use discovery_core::seam::disk::{Disk, DiskFile};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    sync::{Arc, Mutex},
};

/// The disk. Clones are the same one.
#[derive(Clone, Default)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and does nothing.
    Error(ErrorKind),
    /// An append writes some of it and fails; anything else fails.
    Torn,
}

#[derive(Clone, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    /// Changes of names since the last sync of their directory.
    pending: Vec<Change>,
    dirs: BTreeSet<String>,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    octets_max: Option<u64>,
}

#[derive(Clone, Default)]
struct Inode {
    octets: Vec<u8>,
    synced: usize,
    /// A sync failed: nobody knows what is on the disk, and a later sync that succeeds proves nothing.
    unknown: bool,
}

#[derive(Clone)]
enum Change {
    Set(String, u64),
    Unset(String),
    Move(String, String, u64),
}

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    /// A number below `below`.
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % (below.max(1) as u64)).unwrap()
    }
}

impl FaultDisk {
    /// Fails the operation that is `from_now` operations away.
    pub fn fail(&self, from_now: u64, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        let at = state.operations + from_now;
        state.faults.insert(at, fault);
    }

    /// Nothing fails any more.
    pub fn clear_faults(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.state.lock().unwrap().operations
    }

    /// How much has room in all files together.
    pub fn set_octets_max(&self, octets: Option<u64>) {
        self.state.lock().unwrap().octets_max = octets;
    }

    /// All names with their files' octets.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.names.iter().map(|(name, inode)| (name.clone(), state.inodes[inode].octets.clone())).collect()
    }

    /// Changes a file as a bad disk would.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock().unwrap();
        let inode = state.names[path];
        change(&mut state.inodes.get_mut(&inode).unwrap().octets);
    }

    /// What a new boot finds after the power failed: of each file what was synced and some of the rest, perhaps as
    /// zeros; of the changes of names any.
    pub fn crash(&self, dice: &mut Dice) -> Self {
        let mut state = self.state.lock().unwrap().clone();
        for inode in state.inodes.values_mut() {
            let unsynced = inode.octets.len() - inode.synced;
            inode.octets.truncate(inode.synced + dice.roll(unsynced + 1));
            if dice.roll(2) == 0 {
                inode.octets[inode.synced..].fill(0);
            }
            *inode = Inode {
                synced: inode.octets.len(),
                octets: std::mem::take(&mut inode.octets),
                unknown: false,
            };
        }
        for change in std::mem::take(&mut state.pending) {
            if dice.roll(2) == 0 {
                apply(&mut state.durable, &change);
            }
        }
        state.names = state.durable.clone();
        state.faults.clear();
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Set(name, inode) => drop(names.insert(name.clone(), *inode)),
        Change::Unset(name) => drop(names.remove(name)),
        Change::Move(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl State {
    /// Counts an operation; its fault, if it has one.
    fn begin(&mut self) -> Option<Fault> {
        self.operations += 1;
        let now = self.operations;
        self.faults.remove(&now)
    }

    fn begin_or_fail(&mut self) -> io::Result<()> {
        match self.begin() {
            None => Ok(()),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Torn) => Err(io::Error::other("fault")),
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.pending.push(change);
    }

    fn find(&self, path: &str) -> io::Result<u64> {
        check(path)?;
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

fn check(path: &str) -> io::Result<()> {
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain { Ok(()) } else { Err(ErrorKind::InvalidInput.into()) }
}

impl Disk for FaultDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        check(path)?;
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        if state.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !state.dirs.contains(parent(path)) {
            return Err(ErrorKind::NotFound.into());
        }
        let inode = state.next;
        state.next += 1;
        state.inodes.insert(inode, Inode::default());
        state.change(Change::Set(path.to_owned(), inode));
        Ok(Box::new(FaultFile { state: Arc::clone(&self.state), inode }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        let inode = state.find(path)?;
        Ok(Box::new(FaultFile { state: Arc::clone(&self.state), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check(to)?;
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        let inode = state.find(from)?;
        state.change(Change::Move(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        state.find(path)?;
        state.change(Change::Unset(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        let prefix = format!("{dir}/");
        let within = state.names.range(prefix.clone()..).map_while(|(name, _)| name.strip_prefix(&prefix));
        Ok(within.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        check(dir)?;
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        let mut path = String::new();
        for part in dir.split('/') {
            path = if path.is_empty() { part.to_owned() } else { format!("{path}/{part}") };
            state.dirs.insert(path.clone());
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        let touches = |change: &Change| match change {
            Change::Set(name, _) | Change::Unset(name) => parent(name) == dir,
            Change::Move(from, to, _) => parent(from) == dir || parent(to) == dir,
        };
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.pending).into_iter().partition(touches);
        now.iter().for_each(|change| apply(&mut state.durable, change));
        state.pending = later;
        Ok(())
    }
}

struct FaultFile {
    state: Arc<Mutex<State>>,
    inode: u64,
}

impl DiskFile for FaultFile {
    fn append(&self, octets: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let fault = state.begin();
        let used: usize = state.names.values().map(|inode| state.inodes[inode].octets.len()).sum();
        let room =
            state.octets_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap().saturating_sub(used));
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        match fault {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Torn) => {
                inode.octets.extend_from_slice(&octets[..octets.len() / 2]);
                Err(io::Error::other("torn"))
            }
            None if octets.len() > room => {
                inode.octets.extend_from_slice(&octets[..room]);
                Err(ErrorKind::StorageFull.into())
            }
            None => {
                inode.octets.extend_from_slice(octets);
                Ok(())
            }
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        let rest =
            state.inodes[&self.inode].octets.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let octets = rest.len().min(buf.len());
        buf[..octets].copy_from_slice(&rest[..octets]);
        Ok(octets)
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state.lock().unwrap();
        state.begin_or_fail()?;
        Ok(state.inodes[&self.inode].octets.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let fault = state.begin_or_fail();
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        inode.unknown |= fault.is_err();
        if !inode.unknown {
            inode.synced = inode.octets.len();
        }
        fault
    }
}

#[test]
fn a_disk_with_faults_keeps_what_the_seam_promises() {
    crate::battery::disk_battery(&FaultDisk::default());
}

#[test]
fn a_crash_keeps_what_was_synced_and_nothing_else_for_sure() {
    let (mut lost_name, mut lost_octets) = (0, 0);
    for seed in 0..200 {
        let disk = FaultDisk::default();
        disk.create_dir("d").unwrap();
        let file = disk.create("d/a").unwrap();
        file.append(b"synced").unwrap();
        file.sync().unwrap();
        disk.sync_dir("d").unwrap();
        file.append(b"not").unwrap();
        disk.create("d/b").unwrap();
        let after = disk.crash(&mut Dice(seed)).files();
        assert!(after["d/a"].starts_with(b"synced"));
        lost_octets += usize::from(after["d/a"] != b"syncednot");
        lost_name += usize::from(!after.contains_key("d/b"));
    }
    assert!((50..200).contains(&lost_octets) && (50..150).contains(&lost_name), "{lost_octets} {lost_name}");
}
