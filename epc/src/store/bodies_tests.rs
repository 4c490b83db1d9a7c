//! One battery for bodies, over the real disk and the one with faults; crashes, flips, a full disk.

use super::{
    bodies::Bodies,
    body_file::{BLOCK_OCTETS, HEADER_OCTETS},
    counters::Counters,
    room::Room,
};
use discovery_core::seam::{
    blob::{BlobId, BlobReader, BlobStore, Durability, Length, StoreError},
    disk::Disk,
    sealer::Sealer,
};
use disk::{
    AesGcm, CheckOnly, DirectoryDisk,
    faults::{Dice, Fault, FaultDisk},
};
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

fn sealers() -> [Arc<dyn Sealer>; 2] {
    [Arc::new(CheckOnly), Arc::new(AesGcm::new(&[7; 32]).unwrap())]
}

struct Kept {
    bodies: Bodies,
    counters: Arc<Counters>,
    room: Arc<Room>,
}

fn open(disk: impl Disk + 'static, sealer: &Arc<dyn Sealer>) -> Kept {
    open_sized(disk, sealer, 1 << 30)
}

fn open_sized(disk: impl Disk + 'static, sealer: &Arc<dyn Sealer>, size_max: u64) -> Kept {
    let (counters, room) = (Arc::<Counters>::default(), Arc::new(Room::new(size_max)));
    let bodies =
        Bodies::open(Arc::new(disk), Arc::clone(sealer), Arc::clone(&counters), Arc::clone(&room)).unwrap();
    Kept { bodies, counters, room }
}

fn content(octets: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; octets];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut out);
    out
}

fn put(bodies: &Bodies, octets: &[u8], durability: Durability) -> Result<BlobId, StoreError> {
    let mut writer = bodies.writer(Some(octets.len() as u64))?;
    for piece in octets.chunks(10_000) {
        writer.write(piece)?;
    }
    writer.commit(durability)
}

fn read_all(reader: &dyn BlobReader) -> Result<Vec<u8>, StoreError> {
    let mut out = Vec::new();
    let mut buf = vec![0; 7777];
    loop {
        match reader.read_at(out.len() as u64, &mut buf)? {
            0 => return Ok(out),
            read => out.extend_from_slice(&buf[..read]),
        }
    }
}

fn get(bodies: &Bodies, id: &BlobId) -> Result<Option<Vec<u8>>, StoreError> {
    bodies.reader(id)?.map(|reader| read_all(&*reader)).transpose()
}

const SIZES: [usize; 8] =
    [0, 1, 100, BLOCK_OCTETS - 1, BLOCK_OCTETS, BLOCK_OCTETS + 1, 2 * BLOCK_OCTETS, 300_000];

fn battery(Kept { bodies, counters, room }: &Kept) {
    let mut ids = BTreeMap::new();
    for octets in SIZES {
        for (durability, seed) in [(Durability::Synced, 1), (Durability::Batched, 2)] {
            let body = content(octets, seed);
            let id = put(bodies, &body, durability).unwrap();
            assert_eq!(get(bodies, &id).unwrap().as_ref(), Some(&body), "{octets}, {durability:?}");
            ids.insert(id, body);
        }
    }
    assert_eq!(ids.len(), 2 * SIZES.len() - 1, "the empty body has one name");
    bodies.sync();
    assert_eq!(bodies.unsynced(), 0);
    let mut found = bodies.ids().unwrap();
    found.sort();
    assert_eq!(found, ids.keys().copied().collect::<Vec<_>>());
    let sum: u64 = found.iter().map(|id| bodies.file_octets(id).unwrap()).sum();
    assert_eq!(room.used(), sum);

    for (id, body) in &ids {
        let reader = bodies.reader(id).unwrap().unwrap();
        assert_eq!(reader.len(), Length::Known(body.len() as u64));
        assert_eq!(reader.wait(u64::MAX, Duration::MAX / 4).unwrap(), Length::Known(body.len() as u64));
        for (offset, octets) in
            [(0, 1), (65_530, 20), (body.len() / 2, 70_000), (body.len(), 5), (1 << 40, 9)]
        {
            let mut buf = vec![0; octets];
            let read = reader.read_at(offset as u64, &mut buf).unwrap();
            let rest = body.get(offset..).unwrap_or_default();
            assert_eq!(buf[..read], rest[..octets.min(rest.len())], "{octets} at {offset} of {}", body.len());
        }
    }

    // The same content twice is stored once.
    let again = put(bodies, &content(300_000, 1), Durability::Synced).unwrap();
    assert!(ids.contains_key(&again));
    assert_eq!((bodies.ids().unwrap().len(), room.used()), (ids.len(), sum));

    // Forgotten is forgotten, but not under the eyes of a reader.
    let reader = bodies.reader(&again).unwrap().unwrap();
    assert!(!bodies.forget_unread(&again).unwrap());
    bodies.forget(&again).unwrap();
    assert!(bodies.reader(&again).unwrap().is_none());
    assert_eq!(read_all(&*reader).unwrap(), content(300_000, 1));
    drop(reader);
    bodies.forget(&again).unwrap();
    assert!(bodies.forget_unread(&again).unwrap());
    let unsynced = put(bodies, b"unsynced", Durability::Batched).unwrap();
    bodies.forget(&unsynced).unwrap();
    bodies.sync();
    assert!(bodies.reader(&unsynced).unwrap().is_none());
    assert_eq!(bodies.ids().unwrap().len(), ids.len() - 1);

    // An unfinished body is nowhere.
    let mut writer = bodies.writer(None).unwrap();
    writer.write(&content(100_000, 9)).unwrap();
    let reader = writer.reader();
    assert_eq!(reader.len(), Length::Growing(100_000));
    assert_eq!(read_all(&*reader).unwrap(), content(100_000, 9));
    drop(writer);
    assert!(matches!(reader.wait(100_000, Duration::ZERO), Err(StoreError::Abandoned)));
    assert!(matches!(reader.read_at(0, &mut [0]), Err(StoreError::Abandoned)));

    let report = bodies.verify(u64::MAX);
    assert_eq!((report.bodies, report.corrupt, report.complete), (ids.len() as u64 - 1, 0, true));
    let octets: u64 = ids.iter().filter(|(id, _)| **id != again).map(|(_, body)| body.len() as u64).sum();
    assert_eq!(report.octets, octets);
    // In slices, every body has its turn.
    let mut slices = 0;
    let mut bodies_seen = 0;
    while bodies_seen < report.bodies {
        bodies_seen += bodies.verify(1).bodies;
        slices += 1;
        assert!(slices <= report.bodies, "a slice without progress");
    }
    assert_eq!((counters.corrupt.get(), counters.disk_failures.get()), (0, 0));
}

#[test]
fn bodies_keep_what_the_seam_promises_on_a_real_disk() {
    for sealer in sealers() {
        let root = tempfile::tempdir().unwrap();
        battery(&open(DirectoryDisk::new(root.path()).unwrap(), &sealer));
    }
}

#[test]
fn bodies_keep_what_the_seam_promises_on_a_disk_with_faults() {
    for sealer in sealers() {
        battery(&open(FaultDisk::default(), &sealer));
    }
}

#[test]
fn a_reader_follows_a_body_as_it_grows() {
    let Kept { bodies, .. } = open(FaultDisk::default(), &sealers()[1]);
    let body = content(500_000, 4);
    let mut writer = bodies.writer(None).unwrap();
    let reader = writer.reader();
    let following = thread::spawn(move || {
        let mut out = Vec::new();
        loop {
            let length = reader.wait(out.len() as u64, Duration::from_secs(20)).unwrap();
            let mut buf = vec![0; 50_000];
            let read = reader.read_at(out.len() as u64, &mut buf).unwrap();
            out.extend_from_slice(&buf[..read]);
            if length == Length::Known(out.len() as u64) {
                return out;
            }
        }
    });
    for piece in body.chunks(3333) {
        writer.write(piece).unwrap();
    }
    writer.commit(Durability::Batched).unwrap();
    assert_eq!(following.join().unwrap(), body);
}

#[test]
fn a_wait_ends_when_patience_does() {
    let Kept { bodies, .. } = open(FaultDisk::default(), &sealers()[0]);
    let writer = bodies.writer(None).unwrap();
    let began = Instant::now();
    assert_eq!(writer.reader().wait(0, Duration::from_millis(20)).unwrap(), Length::Growing(0));
    assert!(began.elapsed() >= Duration::from_millis(20));
}

#[test]
fn flips_are_never_served() {
    for sealer in sealers() {
        let disk = FaultDisk::default();
        let Kept { bodies, counters, .. } = open(disk.clone(), &sealer);
        let body = content(BLOCK_OCTETS + 900, 5);
        let id = put(&bodies, &body, Durability::Synced).unwrap();
        let (path, file) = disk.files().into_iter().find(|(path, _)| path.starts_with("blobs/")).unwrap();
        let record = BLOCK_OCTETS + sealer.overhead();
        let footer = file.len() - 40 - sealer.overhead();
        let step = 97;
        // Every octet of header, the edges of blocks and the footer; a sample of the rest.
        let sampled = (0..file.len()).filter(|at| {
            let near = |edge: usize| at.abs_diff(edge) < 60;
            near(0)
                || near(HEADER_OCTETS)
                || near(HEADER_OCTETS + record)
                || *at + 60 >= footer
                || at % step == 0
        });
        for at in sampled {
            disk.change(&path, |octets| octets[at] ^= 1 << (at % 8));
            let before = counters.corrupt.get();
            assert!(
                matches!(get(&bodies, &id), Err(StoreError::Corrupt(found)) if found == id),
                "octet {at} of {} ({})",
                file.len(),
                sealer.seals()
            );
            assert_eq!(counters.corrupt.get(), before + 1);
            assert!(bodies.reader(&id).unwrap().is_none(), "moved aside");
            disk.rename(&format!("quarantine/{id}"), &path).unwrap();
            disk.change(&path, |octets| octets.clone_from(&file));
            if at % 50 == 0 {
                assert_eq!(get(&bodies, &id).unwrap().as_ref(), Some(&body));
            }
        }
    }
}

#[test]
fn a_cut_or_swapped_file_is_never_served() {
    for sealer in sealers() {
        let disk = FaultDisk::default();
        let Kept { bodies, .. } = open(disk.clone(), &sealer);
        // One is the beginning of the other.
        let long = content(3 * BLOCK_OCTETS, 6);
        let ids =
            [&long[..2 * BLOCK_OCTETS], &long].map(|body| put(&bodies, body, Durability::Synced).unwrap());
        let files = disk.files();
        let paths = ids.map(|id| files.keys().find(|path| path.ends_with(&id.to_string())).unwrap().clone());
        let mut variants = vec![files[&paths[0]].clone()];
        for cut in [0, 1, 55, 56, 57, 56 + BLOCK_OCTETS, files[&paths[1]].len() - 1] {
            variants.push(files[&paths[1]][..cut].to_vec());
        }
        let longer = [&files[&paths[1]][..], &[0]].concat();
        variants.push(longer);
        for variant in variants {
            disk.change(&paths[1], |octets| octets.clone_from(&variant));
            assert!(matches!(get(&bodies, &ids[1]), Err(StoreError::Corrupt(_))), "{} octets", variant.len());
            disk.rename(&format!("quarantine/{}", ids[1]), &paths[1]).unwrap();
        }
    }
}

/// Bodies are written, synced, forgotten; the disk fails here and there; the power fails. Afterwards a name stands
/// for whole content, always, and what was acknowledged as synced is there.
fn crash_rounds(rounds: u64, sealer: &Arc<dyn Sealer>) -> (u64, u64) {
    let (mut survived, mut failed) = (0, 0);
    for seed in 0..rounds {
        let mut dice = Dice(seed);
        let mut disk = FaultDisk::default();
        let mut all = BTreeMap::new();
        let mut synced = BTreeMap::new();
        for _ in 0..2 {
            let Kept { bodies, counters, .. } = open(disk.clone(), sealer);
            let fault = [Fault::Torn, Fault::Error(ErrorKind::StorageFull), Fault::Error(ErrorKind::Other)]
                [dice.roll(3)];
            if dice.roll(2) == 0 {
                disk.fail(1 + dice.roll(60) as u64, fault);
            }
            for _ in 0..1 + dice.roll(6) {
                let octets = if dice.roll(20) == 0 { 70_000 } else { dice.roll(3000) };
                // A few bodies only, so that the same content comes again.
                let body = content(octets / 500 * 500, dice.roll(3) as u64);
                let durability = [Durability::Synced, Durability::Batched][dice.roll(2)];
                match put(&bodies, &body, durability) {
                    Ok(id) => {
                        if durability == Durability::Synced {
                            synced.insert(id, body.clone());
                        }
                        all.insert(id, body);
                    }
                    Err(_) => failed += 1,
                }
                if dice.roll(4) == 0 {
                    bodies.sync();
                }
                if dice.roll(8) == 0
                    && let Some(id) = all.keys().nth(dice.roll(all.len())).copied()
                {
                    synced.remove(&id);
                    let _ = bodies.forget(&id);
                }
            }
            assert_eq!(counters.corrupt.get(), 0, "seed {seed}");
            let writer = bodies.writer(None);
            disk = disk.crash(&mut dice);
            drop(writer);
        }
        let Kept { bodies, counters, .. } = open(disk.clone(), sealer);
        for (id, body) in &all {
            match get(&bodies, id).unwrap() {
                Some(found) => assert!(found == *body, "seed {seed}: other octets"),
                None => assert!(!synced.contains_key(id), "seed {seed}: {id} was acknowledged and is lost"),
            }
            survived += u64::from(synced.contains_key(id));
        }
        assert_eq!(counters.corrupt.get(), 0, "seed {seed}: a name stood for half a body");
        assert!(disk.files().keys().all(|path| path.starts_with("blobs/")), "seed {seed}");
    }
    (survived, failed)
}

#[test]
fn crashes_leave_whole_bodies_or_none() {
    let [plain, sealed] = sealers();
    let rounds = std::env::var("WAYPOST_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    for (sealer, rounds) in [(plain, rounds), (sealed, rounds / 10)] {
        let (survived, failed) = crash_rounds(rounds, &sealer);
        assert!(survived > rounds && failed > rounds / 10, "{survived} survived, {failed} failed");
    }
}

#[test]
fn every_operation_may_fail_once() {
    let sealer = &sealers()[0];
    let body = content(BLOCK_OCTETS + 10, 8);
    let run = |disk: &FaultDisk| {
        let kept = open(disk.clone(), sealer);
        let id = put(&kept.bodies, &body, Durability::Synced)?;
        get(&kept.bodies, &id).map(|found| (id, found))
    };
    let clean = FaultDisk::default();
    run(&clean).unwrap();
    let setup = {
        let disk = FaultDisk::default();
        open(disk.clone(), sealer);
        disk.operations()
    };
    for nth in setup + 1..=clean.operations() {
        for fault in [Fault::Torn, Fault::Error(ErrorKind::StorageFull), Fault::Error(ErrorKind::Other)] {
            let disk = FaultDisk::default();
            disk.fail(nth, fault);
            if let Ok((_, Some(found))) = run(&disk) {
                assert!(found == body, "operation {nth}, {fault:?}");
            }
            disk.clear_faults();
            let (_, found) = run(&disk).unwrap();
            assert_eq!(found.as_ref(), Some(&body), "after operation {nth} failed by {fault:?}");
        }
    }
}

#[test]
fn a_full_disk_or_store_refuses_and_goes_on() {
    let sealer = &sealers()[0];
    let disk = FaultDisk::default();
    let Kept { bodies, .. } = open(disk.clone(), sealer);
    let kept = put(&bodies, b"kept", Durability::Synced).unwrap();
    disk.set_octets_max(Some(1000));
    assert!(matches!(put(&bodies, &content(5000, 1), Durability::Batched), Err(StoreError::Full)));
    assert_eq!(get(&bodies, &kept).unwrap().as_deref(), Some(&b"kept"[..]));
    disk.set_octets_max(None);
    put(&bodies, &content(5000, 1), Durability::Batched).unwrap();

    let Kept { bodies, room, .. } = open_sized(FaultDisk::default(), sealer, 10_000);
    assert!(matches!(bodies.writer(Some(10_000)), Err(StoreError::Full)));
    let promised = bodies.writer(Some(6000)).unwrap();
    assert!(matches!(bodies.writer(Some(6000)), Err(StoreError::Full)), "promised to another");
    drop(promised);
    let mut grows = bodies.writer(None).unwrap();
    assert!(matches!(grows.write(&content(20_000, 1)), Err(StoreError::Full)));
    drop(grows);
    let id = put(&bodies, &content(6000, 1), Durability::Synced).unwrap();
    assert!(room.used() > 6000);
    bodies.forget(&id).unwrap();
    assert_eq!(room.used(), 0);
    put(&bodies, &content(6000, 2), Durability::Synced).unwrap();
}

#[test]
fn nothing_readable_is_on_a_sealed_disk_and_another_key_finds_nothing() {
    let disk = FaultDisk::default();
    let canary = b"CANARY-4711".repeat(20_000);
    let [plain, sealed] = sealers();
    let Kept { bodies, .. } = open(disk.clone(), &sealed);
    let id = put(&bodies, &canary, Durability::Synced).unwrap();
    drop(bodies);
    let seen = |disk: &FaultDisk| {
        disk.files().values().any(|octets| octets.windows(11).any(|window| window == b"CANARY-4711"))
    };
    assert!(!seen(&disk));
    // The same scan sees it when nothing is sealed.
    let control = FaultDisk::default();
    let Kept { bodies, .. } = open(control.clone(), &plain);
    let plain_id = put(&bodies, &canary, Durability::Synced).unwrap();
    assert!(seen(&control) && plain_id != id);

    let other: Arc<dyn Sealer> = Arc::new(AesGcm::new(&[8; 32]).unwrap());
    assert!(matches!(get(&open(disk, &other).bodies, &id), Err(StoreError::Corrupt(_))));
}
