//! The segment store's files: what a record and a trailer say, and a whole store after somebody has been at its files.

use discovery_core::seam::disk::Disk;
use disk::{
    CheckOnly,
    faults::{Dice, FaultDisk},
};
use pss::{Alias, Anchor, Part, Record, Settings, Space, Store, decode_records, encode_records};
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

/// The text of a trailer, and of one record, against a reader that goes field by field.
pub fn run_records(data: &[u8]) {
    let read = decode_records(data);
    let plain = records(data);
    assert_eq!(
        read.as_ref().map(|records| records.iter().map(|r| (r.at, r.record.clone())).collect()),
        plain
    );
    if let Some(records) = read {
        assert_eq!(encode_records(&records), data);
    }
}

/// The plain reader.
fn records(mut data: &[u8]) -> Option<Vec<(u32, Record)>> {
    let mut out: Vec<(u32, Record)> = Vec::new();
    while !data.is_empty() {
        let (content, at, len) = (number(data, 0, 4)?, number(data, 4, 4)?, number(data, 8, 4)?);
        let end = usize::try_from(12 + len).unwrap();
        let record = record(data.get(12..end)?, content)?;
        if at < 96 || out.last().is_some_and(|last| u64::from(last.0) >= at) {
            return None;
        }
        out.push((u32::try_from(at).unwrap(), record));
        data = &data[end..];
    }
    Some(out)
}

fn record(meta: &[u8], content: u64) -> Option<Record> {
    match (*meta.first()?, content) {
        (1, 1..=65_536) => {
            let (address, offset) = (number(meta, 17, 8)?, number(meta, 25, 4)?);
            let first = offset % 65_536;
            let anchors: Vec<u64> =
                meta[29..].chunks(8).map(|chunk| number(chunk, 0, 8)).collect::<Option<_>>()?;
            let sound = first + content <= 65_536
                && offset < 1 << 26
                && u128::from(address) + u128::from(content) <= u128::from(u64::MAX)
                && anchors.len() <= 4096
                && anchors.iter().all(|anchor| (first..first + content).contains(&(anchor % 65_536)));
            sound.then(|| {
                Record::Part(Part {
                    space: Space(meta[1..17].try_into().unwrap()),
                    address,
                    offset: u32::try_from(offset).unwrap(),
                    octets: u32::try_from(content).unwrap(),
                    anchors,
                })
            })
        }
        (2, 0) => {
            let aliases: Vec<Alias> = meta[1..].chunks(48).map(alias).collect::<Option<_>>()?;
            (1..=1024).contains(&aliases.len()).then_some(Record::Aliases(aliases))
        }
        _ => None,
    }
}

fn alias(octets: &[u8]) -> Option<Alias> {
    let (address, offset, len) = (number(octets, 16, 8)?, number(octets, 40, 4)?, number(octets, 44, 4)?);
    let sound =
        len > 0 && offset + len <= 1 << 26 && u128::from(address) + u128::from(len) <= u128::from(u64::MAX);
    sound.then(|| Alias {
        space: Space(octets[..16].try_into().unwrap()),
        address,
        place: pss::Place {
            generation: pss::Generation(number(octets, 24, 8).unwrap()),
            offset: u32::try_from(offset).unwrap(),
        },
        tag: octets[32..40].try_into().unwrap(),
        octets: u32::try_from(len).unwrap(),
    })
}

fn number(octets: &[u8], at: usize, len: usize) -> Option<u64> {
    Some(octets.get(at..at + len)?.iter().fold(0, |all, octet| all << 8 | u64::from(*octet)))
}

/// Changes to the files of a small store, five octets each: what, which file, where (2), a value.
pub fn run_files(data: &[u8]) {
    static SAMPLE: OnceLock<(FaultDisk, Vec<String>)> = OnceLock::new();
    let (sample, names) = SAMPLE.get_or_init(|| {
        let disk = FaultDisk::default();
        for generation in 0..3 {
            let mut store = open(&disk);
            fill(&mut store, generation * 10);
            // The last one has no trailer.
            if generation < 2 {
                store.close(Instant::now()).unwrap()
            } else {
                store.sync(Instant::now()).unwrap()
            }
        }
        let names = disk.files().into_keys().collect();
        (disk, names)
    });
    let disk = sample.crash(&mut Dice(0));
    for change in data.chunks_exact(5).take(16) {
        let name = &names[usize::from(change[1]) % names.len()];
        let at = usize::from(change[2]) << 8 | usize::from(change[3]);
        let files = disk.files();
        let Some(octets) = files.get(name).filter(|octets| !octets.is_empty()) else { continue };
        let at = at % octets.len();
        match change[0] % 6 {
            0 => disk.change(name, |octets| octets[at] ^= 1 << (change[4] % 8)),
            1 => disk.change(name, |octets| octets[at] = change[4]),
            2 => disk.change(name, |octets| octets.truncate(at)),
            3 => drop(disk.remove(name)),
            4 => {
                let other = &names[usize::from(change[4]) % names.len()];
                if let Some(theirs) = files.get(other) {
                    disk.change(name, |octets| octets.clone_from(theirs));
                }
            }
            _ => disk.change(name, |octets| octets.extend_from_slice(&[change[4]; 40])),
        }
    }
    let mut store = open(&disk);
    for base in [0, 10, 20] {
        check(&mut store, base);
    }
    // It goes on whatever it found.
    fill(&mut store, 30);
    check(&mut store, 30);
    assert_eq!(read(&mut store, SENT, 30 << 16, 1500), Some(content(30)));
}

const SENT: Space = Space([1; 16]);
const NAMED: Space = Space([2; 16]);

fn open(disk: &FaultDisk) -> Store {
    let settings = Settings {
        octets_max: 1 << 20,
        index_octets_max: 4096,
        cache_octets_max: 8192,
        segment_octets: 2 * 65_536,
    };
    let mut store = Store::open(Arc::new(disk.clone()), Arc::new(CheckOnly), settings, [7; 16]).unwrap();
    while store.load_next().is_some() {}
    store
}

fn content(nth: u64) -> Vec<u8> {
    (0..1500).map(|at| (nth.wrapping_mul(77).wrapping_add(at * at / 7) % 251).to_le_bytes()[0]).collect()
}

fn hash(nth: u64) -> u64 {
    nth.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16
}

fn fill(store: &mut Store, base: u64) {
    let now = Instant::now();
    for nth in base..base + 3 {
        store.append(SENT, nth << 16, &content(nth), &[Anchor { hash: hash(nth), at: 7 }], now).unwrap();
        let place = store.find(hash(nth))[0].unwrap();
        store.alias(NAMED, nth << 16, place, 100, now).unwrap();
        store.sync(now).unwrap();
    }
}

fn check(store: &mut Store, base: u64) {
    for nth in base..base + 3 {
        if let Some(found) = read(store, SENT, nth << 16, 1500) {
            assert!(found == content(nth), "other octets under {nth}");
        }
        if let Some(found) = read(store, NAMED, nth << 16, 100) {
            assert!(found == content(nth)[7..107], "other octets under another name of {nth}");
        }
    }
}

fn read(store: &mut Store, space: Space, address: u64, octets: u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    store.read(space, address, octets, &mut out).ok().map(|()| out)
}
