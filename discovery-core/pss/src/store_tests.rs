//! The store as its callers see it, where nothing is wrong.

use super::{book::Book, *};
use discovery_core::seam::{disk::Disk, sealer::Sealer};
use disk::{
    AesGcm, CheckOnly,
    faults::{Dice, FaultDisk},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) const BLOCK: usize = 64 * 1024;
pub(super) const OWNER: [u8; 16] = [0x0F; 16];

pub(super) fn settings() -> Settings {
    Settings {
        octets_max: 64 << 20,
        index_octets_max: 1 << 20,
        cache_octets_max: 256 * 1024,
        segment_octets: 4 * 65_536,
    }
}

pub(super) fn sealers() -> [Arc<dyn Sealer>; 2] {
    [Arc::new(CheckOnly), Arc::new(AesGcm::new(&[7; 32]).unwrap())]
}

pub(super) fn open_with(disk: &FaultDisk, sealer: &Arc<dyn Sealer>, settings: Settings) -> Store {
    let mut store = Store::open(Arc::new(disk.clone()), Arc::clone(sealer), settings, OWNER).unwrap();
    while store.load_next().is_some() {}
    store
}

pub(super) fn open(disk: &FaultDisk) -> Store {
    open_with(disk, &sealers()[0], settings())
}

pub(super) fn space(nth: u8) -> Space {
    Space([nth; 16])
}

/// Octets that no other seed has.
pub(super) fn octets(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed.wrapping_mul(0x1234_5678_9ABC_DEF1));
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&dice.roll(usize::MAX).to_le_bytes());
    }
    out.truncate(len);
    out
}

pub(super) fn read(store: &mut Store, space: Space, address: u64, len: usize) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let read = store.read(space, address, len as u64, &mut out);
    assert!(out.starts_with(b"before") && (read.is_ok() || out.len() == 6), "all or nothing");
    read.ok().map(|()| out.split_off(6))
}

fn now() -> Instant {
    Instant::now()
}

#[test]
fn what_is_appended_is_read_at_once_after_a_sync_and_after_a_start() {
    for sealer in sealers() {
        let disk = FaultDisk::default();
        let mut store = open_with(&disk, &sealer, settings());
        let content = octets(1, 5 * BLOCK + 77);
        let mut address = 1000;
        for chunk in content.chunks(30_001) {
            store.append(space(1), address, chunk, &[], now()).unwrap();
            address += chunk.len() as u64;
        }
        assert!(read(&mut store, space(1), 1000, content.len()).as_ref() == Some(&content));
        store.sync(now()).unwrap();
        assert_eq!(read(&mut store, space(1), 1003, 200_000).unwrap(), content[3..200_003]);
        assert_eq!(store.intervals(space(1)), [Interval { from: 1000, to: address }]);
        store.append(space(1), address, b"more", &[], now()).unwrap();
        store.close(now()).unwrap();
        let mut store = open_with(&disk, &sealer, settings());
        assert!(read(&mut store, space(1), 1000, content.len()).as_ref() == Some(&content));
        assert_eq!(read(&mut store, space(1), address, 4).unwrap(), b"more");
        assert_eq!(read(&mut store, space(1), 999, 2), None);
        assert_eq!(read(&mut store, space(1), address, 5), None);
        assert_eq!(read(&mut store, space(2), 1000, 1), None);
        assert_eq!(store.status().rebuilt, 0);
        assert_eq!(store.intervals(space(1)), [Interval { from: 1000, to: address + 4 }]);
    }
}

#[test]
fn runs_that_grow_together_lie_apart() {
    let disk = FaultDisk::default();
    let mut store = open(&disk);
    let (one, two) = (octets(1, 100_000), octets(2, 100_000));
    for (nth, (a, b)) in one.chunks(1000).zip(two.chunks(1000)).enumerate() {
        store.append(space(1), nth as u64 * 1000, a, &[], now()).unwrap();
        store.append(space(1), (1 << 40) + nth as u64 * 1000, b, &[], now()).unwrap();
    }
    assert_eq!(read(&mut store, space(1), 0, one.len()).as_ref(), Some(&one));
    assert_eq!(read(&mut store, space(1), 1 << 40, two.len()).as_ref(), Some(&two));
    assert!(store.status().extents <= 4, "{:?}", store.status());
}

#[test]
fn an_address_is_given_once() {
    let mut store = open(&FaultDisk::default());
    store.append(space(1), 10, b"abcd", &[], now()).unwrap();
    for (address, text) in [(10, "abcd"), (13, "x"), (9, "xy"), (8, "xxxxxxxxx")] {
        assert_eq!(store.append(space(1), address, text.as_bytes(), &[], now()), Err(Refused::Taken));
    }
    assert_eq!(store.append(space(1), u64::MAX, b"ab", &[], now()), Err(Refused::Taken));
    store.append(space(2), 10, b"efgh", &[], now()).unwrap();
    assert_eq!(read(&mut store, space(1), 10, 4).unwrap(), b"abcd");
    assert_eq!(read(&mut store, space(2), 10, 4).unwrap(), b"efgh");
}

#[test]
fn anchors_lead_to_their_octets_also_after_a_start() {
    let disk = FaultDisk::default();
    let mut store = open(&disk);
    let content = octets(3, 3 * BLOCK);
    let anchors: Vec<_> = (0..content.len())
        .step_by(1024)
        .map(|at| Anchor { hash: hash(&content[at..]), at: u32::try_from(at).unwrap() })
        .collect();
    store.append(space(1), 5000, &content, &anchors, now()).unwrap();
    let check = |store: &mut Store| {
        for anchor in &anchors {
            let place = store.find(anchor.hash)[0].unwrap();
            let mut out = Vec::new();
            store.read_place(place, 1024, &mut out).unwrap();
            assert_eq!(out, content[anchor.at as usize..][..1024]);
            let (address, _) = store.address_of(space(1), place).unwrap();
            assert_eq!(address, 5000 + u64::from(anchor.at));
            assert_eq!(store.address_of(space(2), place), None);
        }
    };
    check(&mut store);
    store.sync(now()).unwrap();
    drop(store);
    let mut store = open(&disk);
    assert_eq!(store.status().rebuilt, 1, "it was not closed");
    check(&mut store);
    drop(store);
    let mut store = open(&disk);
    assert_eq!(store.status().rebuilt, 0, "its trailer was written then");
    check(&mut store);
}

fn hash(octets: &[u8]) -> u64 {
    u64::from_le_bytes(*octets.first_chunk().unwrap())
}

#[test]
fn a_match_is_as_long_as_it_is() {
    let disk = FaultDisk::default();
    let mut store = open(&disk);
    let content = octets(6, 2 * BLOCK + 5000);
    store.append(space(1), 0, &content[..1000], &[], now()).unwrap();
    store.sync(now()).unwrap();
    store.append(space(1), 1000, &content[1000..], &[], now()).unwrap();
    // Over what was synced, over a block's end, into what is not written yet.
    let first = store.spaces[&space(1)].locate(0, 1).unwrap()[0].place;
    for (from, at, to) in
        [(0, 900, 5000), (900, 1000, 2 * BLOCK + 5000), (3, BLOCK + 1, 2 * BLOCK + 1), (0, 0, 1)]
    {
        let (behind, ahead) = (&content[from..at], &content[at..to]);
        let place = first.plus(u32::try_from(at).unwrap());
        assert_eq!(store.compare(place, behind, ahead), (behind.len(), ahead.len()), "{from} {at} {to}");
        let (mut other_behind, mut other_ahead) = (behind.to_vec(), ahead.to_vec());
        if let Some(octet) = other_behind.first_mut() {
            *octet ^= 1;
        }
        *other_ahead.last_mut().unwrap() ^= 1;
        let same = store.compare(place, &other_behind, &other_ahead);
        assert_eq!(same, (behind.len().saturating_sub(1), ahead.len() - 1), "{from} {at} {to}");
    }
    let (_, longer) = store.compare(first, b"before", &[&content[..], b"more"].concat());
    assert_eq!(longer, content.len());
    assert_eq!(store.compare(Place { generation: Generation(77), offset: 0 }, b"a", b"b"), (0, 0));
}

#[test]
fn many_branches_have_one_copy() {
    let disk = FaultDisk::default();
    let mut store = open(&disk);
    let content = octets(4, 100_000);
    store.append(space(1), 0, &content, &[], now()).unwrap();
    store.sync(now()).unwrap();
    let before = store.status().octets;
    for branch in 2..50 {
        let mut at = 0;
        while at < content.len() as u64 {
            let run = store.spaces[&space(1)].locate(at, content.len() as u64 - at).unwrap()[0];
            store.alias(space(branch), 7_000 + at, run.place, run.octets, now()).unwrap();
            at += u64::from(run.octets);
        }
    }
    store.sync(now()).unwrap();
    assert!(store.status().octets < before + 48 * 500);
    drop(store);
    let mut store = open(&disk);
    for branch in 2..50 {
        assert_eq!(read(&mut store, space(branch), 7_000, content.len()).as_ref(), Some(&content));
    }
    let place = store.spaces[&space(1)].locate(0, 1).unwrap()[0].place;
    assert_eq!(store.alias(space(1), 50, place, 1, now()), Err(Refused::Taken));
    assert_eq!(store.alias(space(60), 0, place.plus(200_000), 1, now()), Err(Refused::Gone));
    let elsewhere = Place { generation: Generation(99), offset: 0 };
    assert_eq!(store.alias(space(60), 0, elsewhere, 1, now()), Err(Refused::Gone));
}

#[test]
fn the_oldest_goes_in_two_phases_and_the_cap_holds() {
    let disk = FaultDisk::default();
    let sealer = &sealers()[0];
    let capped = Settings { octets_max: 1 << 20, ..settings() };
    let mut store = open_with(&disk, sealer, capped);
    let chunk = octets(5, 60_000);
    let at = |address: u64| {
        let skip = usize::try_from(address % 60_000).unwrap();
        [&chunk[skip..], &chunk[..skip]].concat()
    };
    let (mut address, mut evicted, mut full) = (0, 0, 0);
    for round in 0..200 {
        let going = store.begin_eviction();
        if let Some(Eviction { generation, going }) = &going {
            assert!(store.begin_eviction().is_none(), "one at a time");
            let Interval { from, to } = going[0].interval;
            assert_eq!((going.len(), from), (1, evicted), "{going:?}");
            assert_eq!(store.intervals(space(1))[0].from, to, "listed no more");
            let place = store.spaces[&space(1)].locate(from, 1).unwrap()[0].place;
            assert_eq!(store.address_of(space(1), place), None);
            assert_eq!(store.alias(space(3), 0, place, 1, now()), Err(Refused::Gone));
            assert!(read(&mut store, space(1), from, 60_000) == Some(at(from)), "still readable");
            if round % 3 == 0 {
                store.finish_eviction(*generation);
                assert_eq!(read(&mut store, space(1), from, 1), None);
                evicted = to;
            }
        }
        match store.append(space(1), address, &chunk, &[], now()) {
            Ok(()) => address += chunk.len() as u64,
            Err(refused) => {
                assert_eq!(refused, Refused::Full);
                full += 1;
            }
        }
        let used: usize = disk.files().values().map(Vec::len).sum();
        assert!(used as u64 <= capped.octets_max, "{used}");
        if let Some(Eviction { generation, going }) = going
            && round % 3 != 0
        {
            store.finish_eviction(generation);
            evicted = going[0].interval.to;
        }
    }
    assert!(evicted > 5 << 20 && full == 0, "{evicted} {full}");
    // Nobody confirms: what is there stays readable, and nothing grows.
    let first = store.intervals(space(1))[0].from;
    store.begin_eviction();
    for _ in 0..20 {
        full += u32::from(store.append(space(1), address, &chunk, &[], now()) == Err(Refused::Full));
        address += chunk.len() as u64;
    }
    let used: usize = disk.files().values().map(Vec::len).sum();
    assert!(full > 10 && used as u64 <= capped.octets_max, "{full} {used}");
    assert!(read(&mut store, space(1), first, 60_000) == Some(at(first)));
    assert_eq!(store.status().full, u64::from(full));
}

#[test]
fn old_octets_are_worth_a_second_copy() {
    let mut store = open(&FaultDisk::default());
    for nth in 0..8 {
        store.append(space(1), nth << 20, &octets(nth, 4 * BLOCK), &[], now()).unwrap();
    }
    let place = |store: &Store, address| store.spaces[&space(1)].locate(address, 1).unwrap()[0].place;
    assert!(store.is_old(place(&store, 0)));
    assert!(!store.is_old(place(&store, 1 << 20)));
}

#[test]
fn it_syncs_by_itself_after_two_seconds_or_eight_mebibytes() {
    let disk = FaultDisk::default();
    let large = Settings { segment_octets: 64 << 20, ..settings() };
    let mut store = open_with(&disk, &sealers()[0], large);
    let start = now();
    assert_eq!(store.poll_timeout(), None);
    store.append(space(1), 0, b"x", &[], start).unwrap();
    assert_eq!(store.poll_timeout(), Some(start + Duration::from_secs(2)));
    store.handle_timeout(start + Duration::from_secs(1)).unwrap();
    let cut = |disk: &FaultDisk| {
        read(&mut open_with(&disk.crash(&mut Dice(1)), &sealers()[0], large), space(1), 0, 1)
    };
    assert_eq!(cut(&disk), None);
    store.handle_timeout(start + Duration::from_secs(2)).unwrap();
    assert_eq!((store.poll_timeout(), cut(&disk)), (None, Some(b"x".to_vec())));
    for nth in 1..=8 {
        store.append(space(1), nth << 20, &octets(nth, 1 << 20), &[], start).unwrap();
    }
    assert_eq!(store.poll_timeout(), None);
    let mut after = open_with(&disk.crash(&mut Dice(2)), &sealers()[0], large);
    assert_eq!(read(&mut after, space(1), 8 << 20, 1 << 20), Some(octets(8, 1 << 20)));
}

#[test]
fn a_sealed_store_holds_nothing_readable() {
    for (sealer, readable) in sealers().into_iter().zip([true, false]) {
        let disk = FaultDisk::default();
        let mut store = open_with(&disk, &sealer, settings());
        store.append(Space(*b"space-of-branch1"), 0, &b"secret words ".repeat(9000), &[], now()).unwrap();
        store.close(now()).unwrap();
        let shows =
            |needle: &[u8]| disk.files().values().any(|f| f.windows(needle.len()).any(|w| w == needle));
        assert_eq!((shows(b"secret"), shows(b"space-of-branch1")), (readable, readable));
        // Another key opens nothing, and does not take the old one's octets for its own.
        let mut other =
            open_with(&disk, &(Arc::new(AesGcm::new(&[8; 32]).unwrap()) as Arc<dyn Sealer>), settings());
        assert_eq!(read(&mut other, Space(*b"space-of-branch1"), 0, 6), None);
    }
}

#[test]
fn a_copy_on_another_node_begins_empty_and_a_rolled_back_one_is_noticed() {
    let disk = FaultDisk::default();
    let mut store = open(&disk);
    store.append(space(1), 0, b"octets", &[], now()).unwrap();
    store.close(now()).unwrap();
    let copy = disk.crash(&mut Dice(1));
    let mut copied =
        Store::open(Arc::new(copy.clone()), Arc::new(CheckOnly), settings(), [0xEE; 16]).unwrap();
    while copied.load_next().is_some() {}
    assert_ne!(copied.mark().writer, store.mark().writer);
    assert_eq!(read(&mut copied, space(1), 0, 6), None);
    assert!(!copy.files().keys().any(|name| name.ends_with(".seg")));

    // The peer of a store that is put back from a copy.
    let backup = disk.crash(&mut Dice(2));
    let mut peer = open(&FaultDisk::default());
    let (meeting, first) = peer.meet([1; 16], store.mark()).unwrap();
    assert_eq!((meeting, peer.meet([1; 16], store.mark()).unwrap()), (Meeting::New, (Meeting::Same, first)));
    let (meeting, later) = peer.meet([1; 16], open(&disk).mark()).unwrap();
    assert_eq!((meeting, later), (Meeting::Later, first));
    let (meeting, other) = peer.meet([1; 16], open(&backup).mark()).unwrap();
    assert_eq!(meeting, Meeting::Repeated);
    assert_ne!(other, first);
    assert_ne!(peer.meet([2; 16], store.mark()).unwrap().1, other, "each peer has its own");
}

#[test]
fn a_peer_is_known_after_a_start() {
    let disk = FaultDisk::default();
    let writer = open(&FaultDisk::default());
    let (_, space) = open(&disk).meet([1; 16], writer.mark()).unwrap();
    let mut store = open(&disk.crash(&mut Dice(3)));
    assert_eq!(store.meet([1; 16], writer.mark()).unwrap(), (Meeting::Same, space));
}

#[test]
fn an_epoch_is_never_used_twice() {
    let mut disk = FaultDisk::default();
    let mut last = 0;
    for seed in 0..20 {
        let epoch = open(&disk).mark().epoch;
        assert!(epoch > last);
        last = epoch;
        disk = disk.crash(&mut Dice(seed));
    }
}

#[test]
fn a_book_is_read_as_it_was_written_or_not_at_all() {
    let sealer = CheckOnly;
    let mut book = Book { id: StoreId([1; 16]), owner: [2; 16], epoch: 3, peers: [].into() };
    let mark = open(&FaultDisk::default()).mark();
    (0..3).for_each(|n| book.remember([n; 16], book::Known { lineage: [n; 16], mark }));
    let text = book.encode(&sealer);
    assert_eq!(Book::decode(&sealer, &text), Some(book));
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] ^= 1;
        assert_eq!(Book::decode(&sealer, &changed), None);
        assert_eq!(Book::decode(&sealer, &text[..at]), None);
    }
}

#[test]
fn names_that_are_none_of_ours_stay() {
    let disk = FaultDisk::default();
    disk.create_dir("log").unwrap();
    for name in [
        "log/notes",
        "log/1.seg",
        "log/00000000000000AB.seg",
        "log/0000000000000000.seg",
        "log/ffffffffffffffff.seg",
    ] {
        disk.create(name).unwrap();
    }
    disk.create("log/0000000000000005.seg").unwrap();
    disk.create("log/0000000000000006.map").unwrap();
    let mut store = open(&disk);
    assert_eq!((store.status().foreign, disk.files().len()), (2, 6), "{:?}", disk.files().keys());
    store.append(space(1), 0, b"x", &[], now()).unwrap();
    store.sync(now()).unwrap();
    assert!(disk.files().contains_key("log/0000000000000007.seg"));
}
