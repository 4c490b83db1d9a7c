//! The log file that is being written. Octets of different connections come mixed; each run of addresses gets blocks of
//! its own, so that what belongs together lies together. A block's place is known at once; it is sealed and written
//! when it is full, or at the next sync.

use crate::{
    book::DIR,
    layout::{HEADER, Kind, Layout, Placed},
    mutants,
    place::{Anchor, Place, Space},
    reading::{PartRef, after},
    record::{ALIASES_MAX, ANCHORS_MAX, Alias, BLOCK, Part, Record, anchor, unpack},
    store::{Files, Refused, Store, is_no_room, log_path, random},
};
use discovery_core::seam::disk::DiskFile;
use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

pub(crate) struct Writing {
    pub(crate) layout: Layout,
    file: Box<dyn DiskFile>,
    /// Where the next record goes.
    at: u32,
    /// The next block's offset.
    reserved: u32,
    blocks: VecDeque<Block>,
    aliases: Vec<Alias>,
    records: Vec<Placed>,
    /// Octets since the last sync, and the time of the first of them.
    unsynced: u64,
    since: Option<Instant>,
    named: bool,
}

/// Octets that are not yet in the file.
struct Block {
    space: Space,
    address: u64,
    offset: u32,
    tail: Vec<u8>,
    anchors: Vec<u64>,
}

impl Block {
    fn next_address(&self) -> u64 {
        self.address + self.tail.len() as u64
    }

    fn next_offset(&self) -> u32 {
        self.offset + u32::try_from(self.tail.len()).unwrap_or(0)
    }

    /// Octets that still fit; the block ends where the next begins.
    fn room(&self) -> u32 {
        let within = self.offset % BLOCK + (self.next_offset() - self.offset);
        BLOCK - within
    }
}

/// Runs of addresses that grow at the same time: a few connections of each peer.
const BLOCKS_MAX: usize = 64;
/// What a power cut may cost, and how long.
const SYNC_OCTETS: u64 = 8 << 20;
const SYNC_AFTER: Duration = Duration::from_secs(2);
/// How long a disk that failed is left alone.
const REST: Duration = Duration::from_secs(10);

impl Writing {
    pub(crate) fn octets(&self) -> u64 {
        u64::from(self.at) + self.blocks.iter().map(|block| block.tail.len() as u64).sum::<u64>()
    }

    /// Octets that are not yet in the file, and where among them `place` is.
    pub(crate) fn unwritten(&self, place: Place) -> Option<(&[u8], u32)> {
        if place.generation != self.layout.generation {
            return None;
        }
        let block =
            self.blocks.iter().find(|block| (block.offset..block.next_offset()).contains(&place.offset))?;
        Some((&block.tail, place.offset - block.offset))
    }
}

impl Store {
    /// Stores octets under addresses of a space, with the anchors in them. They can be read at once, and are on the
    /// disk after the next sync.
    ///
    /// # Errors
    /// [`Refused`]; some of the octets may have been stored nevertheless, as [`Self::intervals`] tells.
    pub fn append(
        &mut self,
        space: Space,
        address: u64,
        octets: &[u8],
        anchors: &[Anchor],
        now: Instant,
    ) -> Result<(), Refused> {
        let total = u32::try_from(octets.len()).map_err(|_| Refused::Full)?;
        if address.checked_add(total.into()).is_none() || self.is_taken(space, address, total) {
            return Err(Refused::Taken);
        }
        self.make_room(total.into(), now)?;
        let (mut rest, mut at) = (octets, 0);
        while !rest.is_empty() {
            let taken = self.append_some(space, address + u64::from(at), rest, (at, anchors), now)?;
            rest = rest.get(taken as usize..).unwrap_or_default();
            at += taken;
        }
        if self.writing.as_ref().is_some_and(|writing| writing.unsynced >= SYNC_OCTETS) {
            self.sync(now)?;
        }
        Ok(())
    }

    fn is_taken(&self, space: Space, address: u64, octets: u32) -> bool {
        let log = self.spaces.get(&space);
        log.is_some_and(|log| log.overlaps(address, octets)) && !mutants::on("pss-taken-again")
    }

    fn make_room(&mut self, octets: u64, now: Instant) -> Result<(), Refused> {
        let full = self.octets() + octets + octets / 8 > self.settings.octets_max;
        if (full && !mutants::on("pss-uncapped")) || self.rests_until.is_some_and(|until| now < until) {
            self.status.full += 1;
            return Err(Refused::Full);
        }
        self.rests_until = None;
        Ok(())
    }

    /// As much as fits into one block; how much.
    fn append_some(
        &mut self,
        space: Space,
        address: u64,
        octets: &[u8],
        (done, anchors): (u32, &[Anchor]),
        now: Instant,
    ) -> Result<u32, Refused> {
        let nth = self.block(space, address, now)?;
        let Some(writing) = &mut self.writing else { return Err(Refused::Disk) };
        let generation = writing.layout.generation;
        let Some(block) = writing.blocks.get_mut(nth) else { return Err(Refused::Disk) };
        let offset = block.next_offset();
        let fitting = octets.get(..block.room() as usize).unwrap_or(octets);
        let count = u32::try_from(fitting.len()).unwrap_or(0);
        block.tail.extend_from_slice(fitting);
        let mut chunks = Vec::new();
        for found in anchors.iter().filter(|found| (done..done + count).contains(&found.at)) {
            if block.anchors.len() < ANCHORS_MAX {
                let packed = anchor(found.hash, offset + (found.at - done));
                block.anchors.push(packed);
                let (hash, offset) = unpack(packed, block.offset);
                chunks.push((hash, Place { generation, offset }));
            }
        }
        self.index.insert_all(&chunks);
        let is_full = block.room() == 0;
        writing.unsynced += u64::from(count);
        writing.since.get_or_insert(now);
        self.spaces.entry(space).or_default().insert(address, Place { generation, offset }, count);
        if is_full && let Some(block) = writing.blocks.remove(nth) {
            self.write_block(block, now)?;
        }
        Ok(count)
    }

    /// The block that `address` goes on in, or a new one.
    fn block(&mut self, space: Space, address: u64, now: Instant) -> Result<usize, Refused> {
        if let Some(writing) = &self.writing {
            let goes_on = |block: &Block| block.space == space && block.next_address() == address;
            if let Some(nth) = writing.blocks.iter().position(goes_on) {
                return Ok(nth);
            }
            let crowded = u64::from(writing.at) > u64::from(self.settings.segment_octets) * 5 / 4;
            if writing.reserved >= self.settings.segment_octets || crowded {
                self.close_log(now)?;
            }
        }
        if self.writing.is_none() {
            self.begin_log(now)?;
        }
        if let Some(writing) = &mut self.writing
            && writing.blocks.len() >= BLOCKS_MAX
            && let Some(block) = writing.blocks.pop_front()
        {
            self.write_block(block, now)?;
        }
        let writing = self.writing.as_mut().ok_or(Refused::Disk)?;
        let offset = writing.reserved;
        writing.reserved += BLOCK;
        writing.blocks.push_back(Block { space, address, offset, tail: Vec::new(), anchors: Vec::new() });
        Ok(writing.blocks.len() - 1)
    }

    fn begin_log(&mut self, now: Instant) -> Result<(), Refused> {
        let generation = after(self.newest);
        let Ok(file_id) = random() else { return Err(Refused::Disk) };
        let layout = Layout::new(generation, self.id(), file_id);
        let header = layout.header(Kind::Log, &*self.sealer);
        let made =
            self.disk.create(&log_path(generation)).and_then(|file| file.append(&header).map(|()| file));
        // Also one that could not be made may be there.
        self.newest = generation;
        let file = made.map_err(|error| self.failed(&error, now))?;
        self.generations.insert(generation, Files { layout, parts: Vec::new(), octets: 0 });
        self.writing = Some(Writing {
            layout,
            file,
            at: HEADER,
            reserved: 0,
            blocks: VecDeque::new(),
            aliases: Vec::new(),
            records: Vec::new(),
            unsynced: 0,
            since: None,
            named: false,
        });
        self.relive();
        Ok(())
    }

    /// Seals and writes what a block holds.
    fn write_block(&mut self, block: Block, now: Instant) -> Result<(), Refused> {
        let octets = u32::try_from(block.tail.len()).unwrap_or(0);
        if octets == 0 {
            return Ok(());
        }
        let Block { space, address, offset, tail, anchors } = block;
        let part = Part { space, address, offset, octets, anchors };
        self.write_record(Record::Part(part), tail, now).inspect_err(|_| {
            if let Some(generation) = self.generations.keys().next_back().copied()
                && !mutants::on("pss-unwritten-is-listed")
            {
                self.forget(Place { generation, offset }, octets);
            }
        })
    }

    /// Writes one record; if that fails the file is given up, with what is not in it yet.
    fn write_record(&mut self, record: Record, content: Vec<u8>, now: Instant) -> Result<(), Refused> {
        let Some(writing) = &mut self.writing else { return Err(Refused::Disk) };
        let (at, count) = (writing.at, record.content());
        let mut text = content;
        record.encode(&mut text);
        let sealed = writing.layout.seal(&*self.sealer, at, count, text);
        if let Err(error) = writing.file.append(&sealed) {
            let refused = self.failed(&error, now);
            self.end_log(0);
            return Err(refused);
        }
        writing.at += u32::try_from(sealed.len()).unwrap_or(0);
        if let Record::Part(part) = &record
            && let Some(files) = self.generations.get_mut(&writing.layout.generation)
        {
            let nth = files.parts.partition_point(|other| other.offset < part.offset);
            files.parts.insert(nth, PartRef::new(at, part));
        }
        writing.records.push(Placed { at, record });
        Ok(())
    }

    fn failed(&mut self, error: &io::Error, now: Instant) -> Refused {
        self.status.failed += 1;
        self.rests_until = Some(now + REST);
        if is_no_room(error) { Refused::Full } else { Refused::Disk }
    }

    /// Gives octets that are stored another name: a peer was sent what this node has of another.
    ///
    /// # Errors
    /// [`Refused`]; the name stands for nothing then.
    pub fn alias(
        &mut self,
        space: Space,
        address: u64,
        place: Place,
        octets: u32,
        now: Instant,
    ) -> Result<(), Refused> {
        if octets == 0
            || address.checked_add(octets.into()).is_none()
            || self.is_taken(space, address, octets)
        {
            return Err(Refused::Taken);
        }
        if !self.holds(place, octets) {
            return Err(Refused::Gone);
        }
        self.make_room(0, now)?;
        if self.writing.is_none() {
            self.begin_log(now)?;
        }
        let tag = self.generations.get(&place.generation).ok_or(Refused::Gone)?.layout.tag();
        let Some(writing) = &mut self.writing else { return Err(Refused::Disk) };
        writing.aliases.push(Alias { space, address, place, tag, octets });
        writing.since.get_or_insert(now);
        let crowded = writing.aliases.len() >= ALIASES_MAX;
        self.spaces.entry(space).or_default().insert(address, place, octets);
        if crowded {
            // If that fails, which is counted, the names go on until the next start.
            let _ = self.write_aliases(now);
        }
        Ok(())
    }

    /// Whether all of these octets are there, and stay.
    fn holds(&self, place: Place, octets: u32) -> bool {
        let Some(files) = self.generations.get(&place.generation) else { return false };
        let Some(end) = place.offset.checked_add(octets) else { return false };
        let mut at = place;
        while !self.is_going(place.generation) && at.offset < end {
            let unwritten = self.writing.as_ref().and_then(|writing| writing.unwritten(at));
            let octets = match unwritten {
                Some((tail, skip)) => u32::try_from(tail.len()).unwrap_or(0) - skip,
                None => {
                    let nth = files.parts.partition_point(|part| part.offset <= at.offset);
                    let part = nth.checked_sub(1).and_then(|nth| files.parts.get(nth));
                    part.map_or(0, |part| (part.offset + part.octets).saturating_sub(at.offset))
                }
            };
            if octets == 0 {
                return false;
            }
            at = at.plus(octets);
        }
        at.offset >= end
    }

    fn write_aliases(&mut self, now: Instant) -> Result<(), Refused> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let aliases = std::mem::take(&mut writing.aliases);
        if aliases.is_empty() {
            return Ok(());
        }
        self.write_record(Record::Aliases(aliases), Vec::new(), now)
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.writing.as_ref()?.since? + SYNC_AFTER)
    }

    /// Syncs what has waited for long enough.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Refused> {
        if self.poll_timeout().is_some_and(|due| due <= now) { self.sync(now) } else { Ok(()) }
    }

    /// Makes everything that was stored durable.
    ///
    /// # Errors
    /// [`Refused`]: the disk failed; what [`Self::intervals`] tells can be read nevertheless, as long as it lasts.
    pub fn sync(&mut self, now: Instant) -> Result<(), Refused> {
        for _ in 0..BLOCKS_MAX {
            let Some(writing) = &mut self.writing else { break };
            let Some(nth) = writing.blocks.iter().position(|block| !block.tail.is_empty()) else { break };
            let Some(mut block) = writing.blocks.remove(nth) else { break };
            if block.room() > 0 {
                // The run may go on in what is left of the block.
                let (address, offset) = (block.next_address(), block.next_offset());
                let (tail, anchors) = (std::mem::take(&mut block.tail), std::mem::take(&mut block.anchors));
                writing.blocks.push_back(Block {
                    address,
                    offset,
                    tail: Vec::new(),
                    anchors: Vec::new(),
                    ..block
                });
                block = Block { tail, anchors, ..block };
            }
            self.write_block(block, now)?;
        }
        self.write_aliases(now)?;
        let Some(writing) = &mut self.writing else { return Ok(()) };
        if writing.unsynced == 0 && writing.since.is_none() {
            return Ok(());
        }
        let named = writing.named;
        let file = if mutants::on("pss-unsynced") { Ok(()) } else { writing.file.sync() };
        let synced = file.and_then(|()| if named { Ok(()) } else { self.disk.sync_dir(DIR) });
        if let Err(error) = synced {
            let refused = self.failed(&error, now);
            self.end_log(0);
            return Err(refused);
        }
        (writing.unsynced, writing.since, writing.named) = (0, None, true);
        Ok(())
    }

    /// Writes what there is to write, and the trailer. For the end of a process.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn close(&mut self, now: Instant) -> Result<(), Refused> {
        self.close_log(now)
    }

    fn close_log(&mut self, now: Instant) -> Result<(), Refused> {
        self.sync(now)?;
        // A trailer tells of nothing that a power cut could take; a file without one is read record by record.
        let trailer = self
            .writing
            .as_ref()
            .and_then(|writing| self.write_trailer(&writing.layout, &writing.records).ok());
        self.end_log(trailer.unwrap_or(0));
        Ok(())
    }

    /// Ends the file as it is: what was written is read on, what was not is forgotten.
    fn end_log(&mut self, trailer: u64) {
        let Some(writing) = self.writing.take() else { return };
        let generation = writing.layout.generation;
        for block in &writing.blocks {
            let octets = u32::try_from(block.tail.len()).unwrap_or(0);
            if octets > 0 && !mutants::on("pss-unwritten-is-listed") {
                self.forget(Place { generation, offset: block.offset }, octets);
            }
        }
        if let Some(files) = self.generations.get_mut(&generation) {
            files.octets = u64::from(writing.at) + trailer;
            self.closed_octets += files.octets;
        }
    }
}
