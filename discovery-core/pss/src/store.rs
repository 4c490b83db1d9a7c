//! The store: generations of log files, the virtual logs over them, the anchor index.

use crate::{
    book::{Book, DIR, Known},
    cache::Cache,
    index::{AnchorIndex, GENERATIONS_MAX, Live},
    layout::{HEADER, Kind, Layout, Placed, StoreId},
    lineage::{Mark, Meeting, judge},
    mutants,
    place::{Generation, Interval, OFFSETS, Place, Space},
    reading::{PartRef, read_all, scan},
    record::{BLOCK, Record, unpack},
    virtual_log::VirtualLog,
    writing::Writing,
};
use discovery_core::seam::{disk::Disk, sealer::Sealer};
use disk::{DirectoryDisk, LockFile, Refused as Refusal};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
    time::Instant,
};

/// How large what may become.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of all files together. One generation less is used, so that the next has room while the oldest is given up.
    pub octets_max: u64,
    /// Of the anchor index in memory; 7.5 octets for each KiB of the store keep all anchors.
    pub index_octets_max: usize,
    /// Of verified records kept in memory.
    pub cache_octets_max: usize,
    /// Content of one log file; at most 64 MiB, rounded down to blocks of 64 KiB.
    pub segment_octets: u32,
}

impl Settings {
    /// For a store of this size.
    pub fn sized(octets_max: u64) -> Self {
        let index = usize::try_from(octets_max / 1024 * 15 / 2).unwrap_or(usize::MAX);
        Self { octets_max, index_octets_max: index, cache_octets_max: 32 << 20, segment_octets: OFFSETS }
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk does not do what it is told.
    #[error("the segment store cannot be opened: {0}")]
    Io(#[from] io::Error),
    /// Another process has it.
    #[error("the segment store is in use{}", .0.map(|process| format!(" by process {process}")).unwrap_or_default())]
    InUse(Option<u32>),
    /// No ids can be made.
    #[error("the system gave no random octets")]
    NoRandom,
}

/// Why octets were not stored. They are nowhere in the store then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// No room, on the disk or under the cap.
    #[error("no room")]
    Full,
    /// The address stands for something already.
    #[error("the address is taken")]
    Taken,
    /// The octets that were to get another name are gone.
    #[error("the octets are gone")]
    Gone,
    /// The disk failed.
    #[error("the disk failed")]
    Disk,
}

/// Addresses of one space that mean nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Whose.
    pub space: Space,
    /// Which.
    pub interval: Interval,
}

/// Not all of it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// What was found damaged by this and is forgotten, under all its names; empty for what was not there.
    pub lost: Vec<Lost>,
}

/// The oldest generation, about to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// To be given to [`Store::finish_eviction`].
    pub generation: Generation,
    /// What goes with it: to be told to every peer that may still ask for it.
    pub going: Vec<Lost>,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of all files.
    pub octets: u64,
    /// Log files.
    pub generations: usize,
    /// Of them not yet entered since the start.
    pub unloaded: usize,
    /// Of all virtual logs.
    pub extents: usize,
    /// Of the index's table.
    pub index_octets: usize,
    /// Whether other processes are kept out.
    pub is_locked: bool,
    /// Records that did not verify or could not be read.
    pub damaged: u64,
    /// Files that belonged to no generation of this store, and were removed.
    pub foreign: u64,
    /// Generations read from their records because the trailer was missing or damaged.
    pub rebuilt: u64,
    /// Appends refused for lack of room.
    pub full: u64,
    /// Failures of the disk when writing.
    pub failed: u64,
}

/// The store. One thread at a time.
pub struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) sealer: Arc<dyn Sealer>,
    pub(crate) settings: Settings,
    book: Book,
    boot: [u8; 16],
    pub(crate) generations: BTreeMap<Generation, Files>,
    pub(crate) spaces: BTreeMap<Space, VirtualLog>,
    pub(crate) index: AnchorIndex,
    pub(crate) cache: Cache,
    pub(crate) writing: Option<Writing>,
    /// Ascending: the newest is entered next.
    unloaded: Vec<Generation>,
    pub(crate) newest: Generation,
    evicting: Option<Generation>,
    /// After a failure nothing is written before this.
    pub(crate) rests_until: Option<Instant>,
    /// Of the files that are not being written.
    pub(crate) closed_octets: u64,
    pub(crate) status: Status,
    lock: Option<LockFile>,
}

/// One generation's files, as known.
pub(crate) struct Files {
    pub(crate) layout: Layout,
    /// Ascending by offset.
    pub(crate) parts: Vec<PartRef>,
    /// Of both files.
    pub(crate) octets: u64,
}

impl Store {
    /// Opens the store in a directory of the file system, or makes one, and keeps other processes out.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_in(
        root: &Path,
        sealer: Arc<dyn Sealer>,
        settings: Settings,
        owner: [u8; 16],
    ) -> Result<Self, OpenError> {
        let disk = DirectoryDisk::new(root)?;
        let lock = LockFile::take(&root.join("lock")).map_err(|refused| match refused {
            Refusal::Held(process) => OpenError::InUse(process),
            Refusal::Io(error) => OpenError::Io(error),
        })?;
        let mut store = Self::open(Arc::new(disk), sealer, settings, owner)?;
        store.lock = Some(lock);
        Ok(store)
    }

    /// Opens the store on `disk`, or makes one. `owner` is who this node is: a store that was made by another is a
    /// copy, and begins empty. Nothing is found before [`Self::load_next`] was called, but for what is new.
    ///
    /// # Errors
    /// [`OpenError`]. Damage is none: the store begins colder.
    pub fn open(
        disk: Arc<dyn Disk>,
        sealer: Arc<dyn Sealer>,
        settings: Settings,
        owner: [u8; 16],
    ) -> Result<Self, OpenError> {
        let segment = settings.segment_octets.clamp(BLOCK, OFFSETS) / BLOCK * BLOCK;
        let settings = Settings { segment_octets: segment, ..settings };
        disk.create_dir(DIR)?;
        let known = Book::read(&*disk, &*sealer)?;
        let known = known.filter(|book| book.owner == owner || mutants::on("pss-copy-believed"));
        let mut book = match known {
            Some(book) => book,
            None => Book { id: StoreId(random()?), owner, epoch: 0, peers: BTreeMap::new() },
        };
        book.epoch += 1;
        let newest = Generation(0);
        let live = Live { oldest: newest, newest };
        let mut store = Self {
            index: AnchorIndex::new(settings.index_octets_max, live),
            cache: Cache::new(settings.cache_octets_max),
            disk,
            sealer,
            settings,
            book,
            boot: random()?,
            generations: BTreeMap::new(),
            spaces: BTreeMap::new(),
            writing: None,
            unloaded: Vec::new(),
            newest,
            evicting: None,
            rests_until: None,
            closed_octets: 0,
            status: Status::default(),
            lock: None,
        };
        store.find_generations()?;
        store.write_book()?;
        Ok(store)
    }

    /// Puts the epoch on the disk. Where there is no room for it the oldest generations make some: nobody has been
    /// told of them yet.
    fn write_book(&mut self) -> io::Result<()> {
        if mutants::on("pss-epoch-forgotten") {
            return Ok(());
        }
        loop {
            let error = match self.book.write(&*self.disk, &*self.sealer) {
                Err(error) if is_no_room(&error) => error,
                written => return written,
            };
            let Some(oldest) = self.generations.keys().next().copied() else { return Err(error) };
            self.evicting = Some(oldest);
            self.finish_eviction(oldest);
        }
    }

    /// Looks which log files are ours, and removes what can be nobody's.
    fn find_generations(&mut self) -> io::Result<()> {
        let names = self.disk.list(DIR)?;
        let numbered = |suffix: &str| -> BTreeSet<Generation> {
            names.iter().filter_map(|name| number(name.strip_suffix(suffix)?)).collect()
        };
        let (logs, trailers) = (numbered(".seg"), numbered(".map"));
        for generation in logs.union(&trailers).copied() {
            // A number that is taken by whatever is there is not used again.
            self.newest = self.newest.max(generation);
            match self.look_at(generation) {
                Some(files) => {
                    self.closed_octets += files.octets;
                    self.generations.insert(generation, files);
                }
                None => {
                    self.status.foreign += 1;
                    self.remove_files(generation);
                }
            }
        }
        self.unloaded = self.generations.keys().copied().collect();
        self.relive();
        Ok(())
    }

    fn look_at(&mut self, generation: Generation) -> Option<Files> {
        let mut header = vec![0; HEADER as usize];
        let file = self.disk.open(&log_path(generation)).ok()?;
        read_all(&*file, 0, &mut header).ok()?;
        let ours = (self.book.id, generation);
        let ours = if mutants::on("pss-other-stores-files") { theirs(&header, generation) } else { ours };
        let layout = Layout::from_header(Kind::Log, &*self.sealer, ours, &header).ok()?;
        let trailer = self.disk.open(&trailer_path(generation)).and_then(|file| file.len());
        let octets = file.len().ok()? + trailer.unwrap_or(0);
        Some(Files { layout, parts: Vec::new(), octets })
    }

    /// Enters the newest generation that was not yet; none when all are. Until then older octets are not found: a
    /// missed reference costs a round trip, a start that takes half a minute costs all of them.
    pub fn load_next(&mut self) -> Option<Generation> {
        let generation = self.unloaded.pop()?;
        let layout = self.generations.get(&generation)?.layout;
        let records = self.read_trailer(&layout).or_else(|| self.rebuild(&layout)).unwrap_or_default();
        self.enter(&layout, &records);
        Some(generation)
    }

    fn read_trailer(&self, layout: &Layout) -> Option<Vec<Placed>> {
        let file = self.disk.open(&trailer_path(layout.generation)).ok()?;
        let octets = usize::try_from(file.len().ok()?).ok().filter(|octets| *octets <= TRAILER_MAX)?;
        let mut text = vec![0; octets];
        read_all(&*file, 0, &mut text).ok()?;
        layout.read_trailer(&*self.sealer, &text).ok()
    }

    /// Reads the records themselves, up to the first that is not one, and writes the trailer that is missing.
    fn rebuild(&mut self, layout: &Layout) -> Option<Vec<Placed>> {
        self.status.rebuilt += 1;
        let records = scan(&*self.disk, &*self.sealer, layout);
        let written = self.sync_log(layout).and_then(|()| self.write_trailer(layout, &records));
        if let (Ok(octets), Some(files)) = (written, self.generations.get_mut(&layout.generation)) {
            files.octets += octets;
            self.closed_octets += octets;
        }
        Some(records)
    }

    /// What a killed process wrote is in the kernel's hands, perhaps; no trailer may tell of it before it is on the disk.
    fn sync_log(&self, layout: &Layout) -> io::Result<()> {
        if mutants::on("pss-trailer-first") {
            return Ok(());
        }
        self.disk.open(&log_path(layout.generation))?.sync()?;
        self.disk.sync_dir(DIR)
    }

    /// A trailer helps, and nothing depends on it.
    pub(crate) fn write_trailer(&self, layout: &Layout, records: &[Placed]) -> io::Result<u64> {
        let path = trailer_path(layout.generation);
        match self.disk.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let octets = layout.trailer(&*self.sealer, records);
        let file = self.disk.create(&path)?;
        file.append(&octets)?;
        file.sync()?;
        self.disk.sync_dir(DIR)?;
        Ok(octets.len() as u64)
    }

    fn enter(&mut self, layout: &Layout, records: &[Placed]) {
        let (mut parts, mut chunks) = (Vec::new(), Vec::new());
        for Placed { at, record } in records {
            match record {
                Record::Part(part) => {
                    let place = Place { generation: layout.generation, offset: part.offset };
                    self.spaces.entry(part.space).or_default().insert(part.address, place, part.octets);
                    chunks.clear();
                    chunks.extend(part.anchors.iter().map(|anchor| {
                        let (hash, offset) = unpack(*anchor, part.offset);
                        (hash, Place { offset, ..place })
                    }));
                    self.index.insert_all(&chunks);
                    parts.push(PartRef::new(*at, part));
                }
                Record::Aliases(aliases) => {
                    for alias in aliases {
                        // A lost generation's number may be another's by now.
                        let is_the_one = self.generations.get(&alias.place.generation).is_some_and(|files| {
                            files.layout.tag() == alias.tag || mutants::on("pss-alias-by-number")
                        });
                        if is_the_one {
                            let log = self.spaces.entry(alias.space).or_default();
                            log.insert(alias.address, alias.place, alias.octets);
                        }
                    }
                }
            }
        }
        parts.sort_unstable_by_key(|part: &PartRef| part.offset);
        if let Some(files) = self.generations.get_mut(&layout.generation) {
            files.parts = parts;
        }
    }

    /// Who this store is, for the peers: what they judge it by.
    pub fn mark(&self) -> Mark {
        Mark { writer: self.book.id.0, epoch: self.book.epoch, boot: self.boot }
    }

    /// A peer has connected and said who its store is. What comes back names its addresses from now on; it is another
    /// space whenever they may mean something else than before.
    ///
    /// # Errors
    /// What the disk says; the peer's octets must then not be stored.
    pub fn meet(&mut self, peer: [u8; 16], said: Mark) -> io::Result<(Meeting, Space)> {
        let known = self.book.peers.get(&peer).copied();
        let meeting = judge(known.map(|known| known.mark), said);
        let lineage = match known {
            Some(known) if meeting.continues() => known.lineage,
            Some(_) | None => random().map_err(|_| io::Error::other("no random octets"))?,
        };
        if meeting != Meeting::Same {
            let mut book = self.book.clone();
            book.remember(peer, Known { lineage, mark: said });
            book.write(&*self.disk, &*self.sealer)?;
            self.book = book;
        }
        Ok((meeting, Space(lineage)))
    }

    /// The addresses of a space that can be asked for: what a peer is told when it connects.
    pub fn intervals(&self, space: Space) -> Vec<Interval> {
        let evicting = self.evicting.filter(|_| !mutants::on("pss-going-is-listed"));
        let log = self.spaces.get(&space);
        log.map_or_else(Vec::new, |log| log.intervals(|generation| Some(generation) != evicting))
    }

    /// The same for one generation: what a peer is told when it has been entered.
    pub fn intervals_of(&self, space: Space, generation: Generation) -> Vec<Interval> {
        if self.evicting == Some(generation) {
            return Vec::new();
        }
        self.spaces.get(&space).map_or_else(Vec::new, |log| log.intervals(|other| other == generation))
    }

    /// Where a chunk with this hash may lie, newest first; whoever asks compares the octets.
    pub fn find(&self, hash: u64) -> [Option<Place>; 2] {
        self.index
            .find(hash)
            .map(|place| place.filter(|place| self.generations.contains_key(&place.generation)))
    }

    /// What a place is called in a space, and how many octets go on under that name.
    pub fn address_of(&self, space: Space, place: Place) -> Option<(u64, u32)> {
        if self.evicting == Some(place.generation) {
            return None;
        }
        self.spaces.get(&space)?.address_of(place)
    }

    /// Whether a place is in the oldest tenth: worth storing again when it is used.
    pub fn is_old(&self, place: Place) -> bool {
        let tenth = self.generations.len() / 10 + 1;
        self.generations.keys().take(tenth).any(|generation| *generation == place.generation)
    }

    /// The oldest generation, when room is needed and none is going yet. It stays readable, and is listed no more.
    pub fn begin_eviction(&mut self) -> Option<Eviction> {
        let crowded = self.generations.len() as u64 > GENERATIONS_MAX / 2;
        let segment = u64::from(self.settings.segment_octets);
        let due = crowded || self.octets() + segment + segment / 8 > self.settings.octets_max;
        if !due || self.evicting.is_some() {
            return None;
        }
        let writing = self.writing.as_ref().map(|writing| writing.layout.generation);
        let generation = self.generations.keys().copied().find(|oldest| Some(*oldest) != writing)?;
        self.evicting = Some(generation);
        let mut going = Vec::new();
        for (&space, log) in &self.spaces {
            going.extend(
                log.intervals(|other| other == generation)
                    .into_iter()
                    .map(|interval| Lost { space, interval }),
            );
        }
        Some(Eviction { generation, going })
    }

    /// Nobody asks for the generation any more: removes it.
    pub fn finish_eviction(&mut self, generation: Generation) {
        if self.evicting != Some(generation) {
            return;
        }
        self.evicting = None;
        self.unloaded.retain(|other| *other != generation);
        self.closed_octets -= self.generations.remove(&generation).map_or(0, |files| files.octets);
        self.cache.forget(generation);
        self.spaces.values_mut().for_each(|log| drop(log.forget_generation(generation)));
        self.spaces.retain(|_, log| !log.is_empty());
        self.remove_files(generation);
        // A file that comes back after a power cut is as good as it was.
        drop(self.disk.sync_dir(DIR));
        self.rests_until = None;
        self.relive();
    }

    fn remove_files(&self, generation: Generation) {
        for path in [log_path(generation), trailer_path(generation)] {
            drop(self.disk.remove(&path));
        }
    }

    /// Tells the index which generations there are.
    pub(crate) fn relive(&mut self) {
        let oldest = self.generations.keys().next().copied().unwrap_or(self.newest);
        self.index.set_live(Live { oldest, newest: self.newest });
    }

    /// Of all files, with what is about to be written.
    pub(crate) fn octets(&self) -> u64 {
        self.closed_octets + self.writing.as_ref().map_or(0, Writing::octets)
    }

    /// Forgets octets under all their names.
    pub(crate) fn forget(&mut self, place: Place, octets: u32) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (&space, log) in &mut self.spaces {
            let gone = log.forget(place.generation, place.offset, octets);
            lost.extend(gone.into_iter().map(|interval| Lost { space, interval }));
        }
        lost
    }

    /// Whether a generation is being given up.
    pub(crate) fn is_going(&self, generation: Generation) -> bool {
        self.evicting == Some(generation)
    }

    /// Which store this is.
    pub(crate) fn id(&self) -> StoreId {
        self.book.id
    }

    /// Figures.
    pub fn status(&self) -> Status {
        Status {
            octets: self.octets(),
            generations: self.generations.len(),
            unloaded: self.unloaded.len(),
            extents: self.spaces.values().map(VirtualLog::extents).sum(),
            index_octets: self.index.octets(),
            is_locked: self.lock.is_some(),
            ..self.status
        }
    }
}

/// Whether the disk is full, and not broken.
pub(crate) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

fn theirs(header: &[u8], generation: Generation) -> (StoreId, Generation) {
    let id = header.get(24..40).and_then(|id| id.first_chunk().copied()).unwrap_or_default();
    (StoreId(id), generation)
}

/// A trailer of a file full of the smallest chunks.
const TRAILER_MAX: usize = 64 << 20;

pub(crate) fn random<const N: usize>() -> Result<[u8; N], OpenError> {
    disk::random().map_err(|disk::NoRandom| OpenError::NoRandom)
}

pub(crate) fn log_path(generation: Generation) -> String {
    format!("{DIR}/{:016x}.seg", generation.0)
}

pub(crate) fn trailer_path(generation: Generation) -> String {
    format!("{DIR}/{:016x}.map", generation.0)
}

/// No store writes that many generations; a name with a higher number is somebody else's.
const NUMBER_MAX: u64 = 1 << 37;

/// The number in a name; only as this store writes it.
fn number(name: &str) -> Option<Generation> {
    let number = u64::from_str_radix(name, 16).ok().filter(|number| (1..NUMBER_MAX).contains(number))?;
    (format!("{number:016x}") == name).then_some(Generation(number))
}
