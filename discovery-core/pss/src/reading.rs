//! Octets from the disk, verified record by record.

use crate::{
    layout::{HEADER, Layout, Placed},
    mutants,
    place::{Generation, Place, Space},
    record::{HEAD, PART_FIXED, Part, Record},
    store::{Store, Unreadable, log_path},
};
use discovery_core::seam::{
    disk::{Disk, DiskFile},
    sealer::Sealer,
};
use std::{
    io::{self, ErrorKind},
    sync::Arc,
};

/// Where a part's record stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartRef {
    /// Content offset in the generation.
    pub(crate) offset: u32,
    pub(crate) octets: u32,
    /// Offset in the file.
    at: u32,
    /// Of the meta, behind the content.
    meta: u32,
}

impl PartRef {
    pub(crate) fn new(at: u32, part: &Part) -> Self {
        let meta = u32::try_from(PART_FIXED + 8 * part.anchors.len()).unwrap_or(u32::MAX);
        Self { offset: part.offset, octets: part.octets, at, meta }
    }
}

impl Store {
    /// Appends the octets of these addresses to `out`, all of them or none.
    ///
    /// # Errors
    /// [`Unreadable`]: the sender has to be asked for them.
    pub fn read(
        &mut self,
        space: Space,
        address: u64,
        octets: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Unreadable> {
        let runs = self
            .spaces
            .get(&space)
            .and_then(|log| log.locate(address, octets))
            .ok_or_else(Unreadable::default)?;
        let before = out.len();
        for run in runs {
            if let Err(unreadable) = self.read_place(run.place, run.octets, out) {
                out.truncate(before);
                return Err(unreadable);
            }
        }
        Ok(())
    }

    /// The same by place.
    ///
    /// # Errors
    /// [`Unreadable`]: there is no such place, or it is damaged.
    pub fn read_place(&mut self, place: Place, octets: u32, out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let before = out.len();
        let (mut at, end) = (place, place.offset.saturating_add(octets));
        while at.offset < end {
            let wanted = end - at.offset;
            let copied = self.piece(at, |piece, skip| copy(piece, skip, wanted, out));
            at = at.plus(copied.inspect_err(|_| out.truncate(before))?);
        }
        Ok(())
    }

    /// How many octets of `ahead` lie at a place, and how many of the end of `behind` lie before it: what a sender
    /// need not send. Nothing where the place cannot be read.
    pub fn compare(&mut self, place: Place, behind: &[u8], ahead: &[u8]) -> (usize, usize) {
        let (mut at, mut forward) = (place, 0);
        while let Some(rest) = ahead.get(forward..).filter(|rest| !rest.is_empty()) {
            let step = self.piece(at, |piece, skip| {
                let piece = piece.get(skip as usize..).unwrap_or_default();
                (common_start(piece, rest), piece.len())
            });
            let Ok((same, len)) = step else { break };
            forward += same;
            if same < len {
                break;
            }
            at = at.plus(u32::try_from(len).unwrap_or(0));
        }
        let (mut at, mut backward) = (place, 0);
        while let Some(rest) = behind.get(..behind.len() - backward).filter(|rest| !rest.is_empty())
            && let Some(last) = at.offset.checked_sub(1)
        {
            let step = self.piece(Place { offset: last, ..at }, |piece, skip| {
                let piece = piece.get(..=skip as usize).unwrap_or_default();
                (common_end(piece, rest), piece.len())
            });
            let Ok((same, len)) = step else { break };
            backward += same;
            if same < len {
                break;
            }
            at = Place { offset: at.offset.saturating_sub(u32::try_from(len).unwrap_or(0)), ..at };
        }
        (backward, forward)
    }

    /// Shows the octets that lie together around a place, verified, and where among them it is.
    fn piece<R>(&mut self, place: Place, show: impl FnOnce(&[u8], u32) -> R) -> Result<R, Unreadable> {
        if let Some((tail, skip)) = self.writing.as_ref().and_then(|writing| writing.unwritten(place)) {
            return Ok(show(tail, skip));
        }
        let files = self.generations.get(&place.generation).ok_or_else(Unreadable::default)?;
        let layout = files.layout;
        let nth = files.parts.partition_point(|part| part.offset <= place.offset);
        let part = nth.checked_sub(1).and_then(|nth| files.parts.get(nth)).copied();
        let (part, skip) = part
            .map(|part| (part, place.offset - part.offset))
            .filter(|(part, skip)| *skip < part.octets)
            .ok_or_else(Unreadable::default)?;
        if let Some(content) = self.cache.get(place.generation, part.at) {
            return Ok(show(&content, skip));
        }
        let Some(content) = read_record(&*self.disk, &*self.sealer, &layout, part) else {
            self.status.damaged += 1;
            if let Some(files) = self.generations.get_mut(&place.generation) {
                files.parts.retain(|other| other.offset != part.offset);
            }
            let lost = self.forget(Place { offset: part.offset, ..place }, part.octets);
            return Err(Unreadable { lost });
        };
        let shown = show(&content, skip);
        self.cache.insert(place.generation, part.at, Arc::new(content));
        Ok(shown)
    }
}

/// How long two begin alike: in strides that the processor compares at once, then octet by octet.
fn common_start(one: &[u8], other: &[u8]) -> usize {
    let strides =
        one.chunks_exact(STRIDE).zip(other.chunks_exact(STRIDE)).take_while(|(a, b)| a == b).count();
    let (one, other) = (one.get(strides * STRIDE..), other.get(strides * STRIDE..));
    let rest = one.unwrap_or_default().iter().zip(other.unwrap_or_default());
    strides * STRIDE + rest.take_while(|(a, b)| a == b).count()
}

/// How long two end alike.
fn common_end(one: &[u8], other: &[u8]) -> usize {
    let strides =
        one.rchunks_exact(STRIDE).zip(other.rchunks_exact(STRIDE)).take_while(|(a, b)| a == b).count();
    let left = |octets: &[u8]| octets.len() - strides * STRIDE;
    let (one, other) = (one.get(..left(one)), other.get(..left(other)));
    let rest = one.unwrap_or_default().iter().rev().zip(other.unwrap_or_default().iter().rev());
    strides * STRIDE + rest.take_while(|(a, b)| a == b).count()
}

const STRIDE: usize = 64;

/// Copies up to `wanted` octets behind `skip`; how many.
fn copy(from: &[u8], skip: u32, wanted: u32, out: &mut Vec<u8>) -> u32 {
    let rest = from.get(skip as usize..).unwrap_or_default();
    let octets = rest.get(..wanted as usize).unwrap_or(rest);
    out.extend_from_slice(octets);
    u32::try_from(octets.len()).unwrap_or(0)
}

/// The content of a record; none unless it is exactly what was written there.
fn read_record(disk: &dyn Disk, sealer: &dyn Sealer, layout: &Layout, part: PartRef) -> Option<Vec<u8>> {
    let file = disk.open(&log_path(layout.generation)).ok()?;
    let sealed = part.octets as usize + part.meta as usize + sealer.overhead();
    let mut octets = vec![0; sealed];
    read_all(&*file, u64::from(part.at) + u64::from(HEAD), &mut octets).ok()?;
    let (content, record) = layout.unseal(sealer, part.at, part.octets, octets).ok()?;
    match record {
        Record::Part(found) if found.offset == part.offset && found.octets == part.octets => Some(content),
        Record::Part(_) if mutants::on("pss-record-anywhere") => Some(content),
        Record::Part(_) | Record::Aliases(_) => None,
    }
}

/// All records of a file up to the first that is not one: there it was torn, or never written.
pub(crate) fn scan(disk: &dyn Disk, sealer: &dyn Sealer, layout: &Layout) -> Vec<Placed> {
    let mut records = Vec::new();
    let Ok(file) = disk.open(&log_path(layout.generation)) else { return records };
    let mut at = HEADER;
    let mut next = || -> Option<Placed> {
        let mut head = [0; HEAD as usize];
        read_all(&*file, at.into(), &mut head).ok()?;
        let (octets, content) = Layout::head(sealer, head)?;
        let mut sealed = vec![0; octets as usize];
        read_all(&*file, u64::from(at) + u64::from(HEAD), &mut sealed).ok()?;
        let (_, record) = layout.unseal(sealer, at, content, sealed).ok()?;
        let placed = Placed { at, record };
        at = at.checked_add(HEAD)?.checked_add(octets)?;
        Some(placed)
    };
    while let Some(placed) = next() {
        records.push(placed);
    }
    records
}

/// Fills `buf`, or fails.
pub(crate) fn read_all(file: &dyn DiskFile, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut read = 0;
    while let Some(rest) = buf.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(offset + read as u64, rest) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(octets) => read += octets,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Newer than any that was read.
pub(crate) fn after(generation: Generation) -> Generation {
    Generation(generation.0 + 1)
}
