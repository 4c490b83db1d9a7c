//! The store when something is wrong: damage anywhere, files missing, cut or exchanged, failing operations, a full
//! disk, power cuts and kills at every operation. It may forget; it never says anything wrong.

use super::{
    store_tests::{BLOCK, OWNER, octets, open, open_with, read, sealers, settings, space},
    *,
};
use discovery_core::seam::sealer::Sealer;
use disk::faults::{Dice, Fault, FaultDisk};
use std::{
    io::ErrorKind,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// A store with some of everything: three generations, two spaces, an alias in each later one.
struct Sample {
    disk: FaultDisk,
    runs: Vec<(Space, u64, Vec<u8>)>,
}

fn sample(sealer: &Arc<dyn Sealer>, is_closed: bool) -> Sample {
    let disk = FaultDisk::default();
    let mut store = open_with(&disk, sealer, settings());
    let (now, mut runs) = (Instant::now(), Vec::new());
    for nth in 0..10u64 {
        let content = octets(nth, BLOCK + 3000);
        let anchors = [Anchor { hash: hash(nth), at: 5 }, Anchor { hash: hash(nth + 1000), at: 66_000 }];
        store.append(space(1), nth << 32, &content, &anchors, now).unwrap();
        let place = store.find(hash(nth))[0].unwrap();
        store.alias(space(2), nth << 20, place, 1000, now).unwrap();
        runs.push((space(2), nth << 20, content[5..1005].to_vec()));
        runs.push((space(1), nth << 32, content));
    }
    if is_closed {
        store.close(now).unwrap()
    } else {
        store.sync(now).unwrap()
    }
    Sample { disk, runs }
}

/// A chunk's, as different as hashes are.
fn hash(nth: u64) -> u64 {
    u64::from_le_bytes(*octets(nth + 7777, 8).first_chunk().unwrap())
}

/// How many runs are read; panics where one is not what was written.
fn check(store: &mut Store, runs: &[(Space, u64, Vec<u8>)], what: &str) -> usize {
    let mut whole = 0;
    for (space, address, content) in runs {
        if let Some(found) = read(store, *space, *address, content.len()) {
            assert!(found == *content, "{what}: wrong octets at {address:x}");
            whole += 1;
        }
        for nth in [address >> 32, (address >> 32) + 1000] {
            for place in store.find(hash(nth)).into_iter().flatten() {
                // An anchor is a guess, but what is read at a place is what was written there.
                let mut out = Vec::new();
                if store.read_place(place, 500, &mut out).is_ok()
                    && let Some((address, octets)) = store.address_of(Space([1; 16]), place)
                    && octets >= 500
                {
                    let expected =
                        runs.iter().find(|run| run.0 == Space([1; 16]) && run.1 == address >> 32 << 32);
                    let at = usize::try_from(address & 0xFFFF_FFFF).unwrap();
                    assert!(
                        expected.is_none_or(|run| run.2[at..at + 500] == out),
                        "{what}: wrong octets at {place:?}"
                    );
                }
            }
        }
    }
    // What was found damaged is not told of any more, and what is told of is there.
    for (space, ..) in runs {
        for Interval { from, to } in store.intervals(*space) {
            let len = usize::try_from(to - from).unwrap();
            assert!(
                read(store, *space, from, len).is_some(),
                "{what}: {from:x}..{to:x} is told of and not there"
            );
        }
    }
    whole
}

#[test]
fn a_flipped_octet_is_never_read() {
    for sealer in sealers() {
        for is_closed in [true, false] {
            let sample = sample(&sealer, is_closed);
            let names: Vec<_> = sample.disk.files().into_iter().map(|(name, f)| (name, f.len())).collect();
            let (mut dice, mut hurt) = (Dice(3), 0);
            for round in 0..300 {
                let (name, len) = &names[round % names.len()];
                let (at, bit) = (dice.roll(*len), dice.roll(8));
                // The beginnings of files are where formats are.
                let at = if round % 3 == 0 { at % 130 } else { at };
                let disk = sample.disk.crash(&mut dice);
                disk.change(name, |octets| octets[at] ^= 1 << bit);
                let what = format!("{name} octet {at} bit {bit}");
                let whole = check(&mut open_with(&disk, &sealer, settings()), &sample.runs, &what);
                hurt += usize::from(whole < sample.runs.len());
                if !name.ends_with("book") {
                    assert!(whole >= 8, "{what}: {whole} of {}", sample.runs.len());
                }
                if name.ends_with(".map") {
                    assert_eq!(whole, sample.runs.len(), "{what}: a trailer can be made again");
                }
            }
            assert!(hurt > 80, "{hurt}");
        }
    }
}

#[test]
fn a_damaged_record_costs_itself_and_is_reported_under_all_its_names() {
    let sealer = &sealers()[0];
    let sample = sample(sealer, true);
    let mut store = open_with(&sample.disk, sealer, settings());
    let name = sample.disk.files().keys().find(|name| name.ends_with(".seg")).unwrap().clone();
    sample.disk.change(&name, |octets| octets[500] ^= 1);
    let mut out = Vec::new();
    let Unreadable { lost } = store.read(space(1), 0, 10, &mut out).unwrap_err();
    let whole = Lost { space: space(1), interval: Interval { from: 0, to: BLOCK as u64 } };
    assert_eq!(lost, [whole, Lost { space: space(2), interval: Interval { from: 0, to: 1000 } }]);
    assert_eq!(store.read(space(1), 0, 10, &mut out), Err(Unreadable::default()), "it is forgotten");
    assert_eq!((store.status().damaged, read(&mut store, space(1), BLOCK as u64, 3000).is_some()), (1, true));
    // The sender gives it again, under another address; also under the same it would be the same octets.
    store.append(space(1), 0, &octets(0, BLOCK + 3000)[..BLOCK], &[], Instant::now()).unwrap();
    assert_eq!(check(&mut store, &sample.runs, "given again"), sample.runs.len() - 1);
}

#[test]
fn files_that_are_missing_cut_or_exchanged_are_forgotten() {
    for sealer in sealers() {
        let sample = sample(&sealer, true);
        let files = sample.disk.files();
        let names: Vec<_> = files.keys().cloned().collect();
        let mut dice = Dice(4);
        for one in &names {
            let disk = sample.disk.crash(&mut dice);
            disk.change(one, Vec::clear);
            check(&mut open_with(&disk, &sealer, settings()), &sample.runs, &format!("{one} emptied"));
            for _ in 0..10 {
                let disk = sample.disk.crash(&mut dice);
                let len = dice.roll(files[one].len());
                disk.change(one, |octets| octets.truncate(len));
                check(
                    &mut open_with(&disk, &sealer, settings()),
                    &sample.runs,
                    &format!("{one} cut at {len}"),
                );
            }
            let disk = sample.disk.crash(&mut dice);
            discovery_core::seam::disk::Disk::remove(&disk, one).unwrap();
            check(&mut open_with(&disk, &sealer, settings()), &sample.runs, &format!("{one} removed"));
            for other in &names {
                let disk = sample.disk.crash(&mut dice);
                disk.change(one, |octets| octets.clone_from(&files[other]));
                disk.change(other, |octets| octets.clone_from(&files[one]));
                check(
                    &mut open_with(&disk, &sealer, settings()),
                    &sample.runs,
                    &format!("{one} for {other}"),
                );
            }
        }
    }
}

#[test]
fn records_that_changed_places_are_never_read() {
    let sealer = &sealers()[1];
    let disk = FaultDisk::default();
    let mut store = open_with(&disk, sealer, settings());
    for nth in 0..3 {
        store.append(space(1), nth << 20, &octets(nth, BLOCK), &[], Instant::now()).unwrap();
    }
    store.close(Instant::now()).unwrap();
    let name = disk.files().keys().find(|name| name.ends_with(".seg")).unwrap().clone();
    disk.change(&name, |file| {
        // The three records are equally long, and an attacker knows where they are.
        let record = (file.len() - 96) / 3;
        let (one, two) = file[96..].split_at_mut(record);
        one.swap_with_slice(&mut two[..record]);
    });
    let mut store = open_with(&disk, sealer, settings());
    assert_eq!(read(&mut store, space(1), 0, BLOCK), None);
    assert_eq!(read(&mut store, space(1), 1 << 20, BLOCK), None);
    assert!(read(&mut store, space(1), 2 << 20, BLOCK) == Some(octets(2, BLOCK)));
    assert_eq!(store.status().damaged, 2);
}

#[test]
fn a_file_of_another_store_is_not_ours() {
    let sealer = &sealers()[0];
    let (ours, theirs) = (sample(sealer, true), FaultDisk::default());
    let mut other = open(&theirs);
    other.append(space(1), 0, &octets(77, 1000), &[], Instant::now()).unwrap();
    other.close(Instant::now()).unwrap();
    for (name, octets) in theirs.files().iter().filter(|(name, _)| !name.ends_with("book")) {
        ours.disk.change(name, |file| file.clone_from(octets));
    }
    let mut store = open_with(&ours.disk, sealer, settings());
    assert_eq!(read(&mut store, space(1), 0, 1000), None);
    assert_eq!(store.status().foreign, 1);
}

#[test]
fn a_number_that_came_again_is_not_the_file_an_alias_meant() {
    // The file with the octets is lost, a later one that names them is not.
    let sealer = &sealers()[0];
    let disk = FaultDisk::default();
    let mut store = open(&disk);
    let now = Instant::now();
    store.append(space(1), 0, &octets(1, 4 * BLOCK), &[], now).unwrap();
    store.append(space(1), 1 << 30, &octets(2, BLOCK), &[], now).unwrap();
    let place = store.spaces[&space(1)].locate(0, 1).unwrap()[0].place;
    store.alias(space(2), 0, place, 1000, now).unwrap();
    store.close(now).unwrap();
    // As another process of the same store would have made it, had it begun before.
    let twin = disk.crash(&mut Dice(1));
    let (first, second) = (Generation(1), Generation(2));
    let discard = |disk: &FaultDisk, generation| {
        for path in [store::log_path(generation), store::trailer_path(generation)] {
            discovery_core::seam::disk::Disk::remove(disk, &path).unwrap();
        }
    };
    discard(&twin, first);
    discard(&twin, second);
    let mut other = open(&twin);
    other.append(space(1), 1 << 50, &octets(3, 4 * BLOCK), &[], now).unwrap();
    other.close(now).unwrap();
    let files = twin.files();
    for path in [store::log_path(first), store::trailer_path(first)] {
        disk.change(&path, |file| file.clone_from(&files[&path]));
    }
    let mut store = open_with(&disk, sealer, settings());
    assert!(read(&mut store, space(1), 1 << 50, 4 * BLOCK) == Some(octets(3, 4 * BLOCK)));
    assert_eq!(read(&mut store, space(2), 0, 1000), None);
}

#[test]
fn a_full_disk_stops_the_growth_and_nothing_else() {
    for sealer in sealers() {
        let disk = FaultDisk::default();
        let mut store = open_with(&disk, &sealer, settings());
        let (mut now, mut runs, mut refused) = (Instant::now(), Vec::new(), 0);
        disk.set_octets_max(Some(800_000));
        for nth in 0..60u64 {
            let content = octets(nth, 30_000);
            now += Duration::from_secs(1);
            match store.append(space(1), nth << 32, &content, &[], now) {
                Ok(()) => runs.push((space(1), nth << 32, content)),
                Err(Refused::Full) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            let _ = store.handle_timeout(now);
        }
        assert!(refused > 20 && store.status().failed < 6, "{refused} {:?}", store.status());
        let whole = check(&mut store, &runs, "full");
        assert!(whole > 15, "reads go on: {whole}");
        let largest: usize = disk.files().values().map(Vec::len).sum();
        assert!(largest <= 800_000);
        // There is room again.
        disk.set_octets_max(None);
        now += Duration::from_secs(11);
        let content = octets(99, 30_000);
        store.append(space(1), 99 << 32, &content, &[], now).unwrap();
        runs.push((space(1), 99 << 32, content));
        store.close(now).unwrap();
        assert_eq!(check(&mut open_with(&disk, &sealer, settings()), &runs, "room again"), whole + 1);
    }
}

#[test]
fn a_disk_that_is_full_at_the_start_costs_the_oldest_generation_and_no_more() {
    let sealer = &sealers()[0];
    let sample = sample(sealer, true);
    let used: usize = sample.disk.files().values().map(Vec::len).sum();
    sample.disk.set_octets_max(Some(used as u64));
    let epoch = {
        let mut store = open_with(&sample.disk, sealer, settings());
        let oldest = check(&mut store, &sample.runs, "full at the start");
        assert!((8..sample.runs.len()).contains(&oldest), "{oldest}");
        store.mark().epoch
    };
    assert!(open_with(&sample.disk, sealer, settings()).mark().epoch > epoch);
    // No room at all, and nothing to give up: no store, and no harm.
    let disk = FaultDisk::default();
    disk.set_octets_max(Some(10));
    let opened = Store::open(Arc::new(disk), Arc::clone(sealer), settings(), OWNER);
    assert!(matches!(opened, Err(OpenError::Io(error)) if error.kind() == ErrorKind::StorageFull));
}

/// Does some of everything until it is done or something fails; what was synced comes back.
fn work(store: &mut Store, base: u64, runs: &mut Vec<(Space, u64, Vec<u8>)>, synced: &mut usize) {
    let now = Instant::now();
    for nth in base..base + 8 {
        let content = octets(nth, 50_000);
        let anchors = [Anchor { hash: hash(nth), at: 3 }];
        if store.append(space(1), nth << 32, &content, &anchors, now).is_ok() {
            runs.push((space(1), nth << 32, content.clone()));
            if let Some(place) = store.find(hash(nth))[0]
                && store.alias(space(2), nth << 20, place, 900, now).is_ok()
            {
                runs.push((space(2), nth << 20, content[3..903].to_vec()));
            }
        }
        if nth % 3 == 0 && store.sync(now).is_ok() && store.status().failed == 0 {
            *synced = runs.len();
        }
        if nth % 5 == 4
            && let Some(eviction) = store.begin_eviction()
        {
            store.finish_eviction(eviction.generation);
        }
    }
    if store.close(now).is_ok() && store.status().failed == 0 {
        *synced = runs.len();
    }
}

#[test]
fn an_operation_that_fails_costs_no_truth() {
    let sealer = &sealers()[0];
    let operations = {
        let disk = FaultDisk::default();
        work(&mut open(&disk), 0, &mut Vec::new(), &mut 0);
        disk.operations()
    };
    assert!(operations > 30, "{operations}");
    for at in 1..=operations {
        for fault in [Fault::Error(ErrorKind::Other), Fault::Error(ErrorKind::StorageFull), Fault::Torn] {
            let disk = FaultDisk::default();
            disk.fail(at, fault);
            let (mut runs, mut synced) = (Vec::new(), 0);
            let opened = Store::open(Arc::new(disk.clone()), Arc::clone(sealer), settings(), OWNER);
            if let Ok(mut store) = opened {
                work(&mut store, 0, &mut runs, &mut synced);
                check(&mut store, &runs, &format!("operation {at} {fault:?}"));
            }
            // Whoever starts again finds what was promised.
            disk.clear_faults();
            let after = disk.crash(&mut Dice(at));
            let what = format!("after operation {at} {fault:?}");
            assert!(check(&mut open(&after), &runs[..synced], &what) == synced, "{what}");
            check(&mut open(&after), &runs, &what);
        }
    }
}

#[test]
fn what_was_synced_survives_a_power_cut_at_any_operation() {
    let sealer = &sealers()[0];
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let disk = FaultDisk::default();
        let mut store = open(&disk);
        let (mut runs, mut synced) = (Vec::new(), 0);
        work(&mut store, 0, &mut runs, &mut synced);
        // From here on everything fails: the process is as good as dead.
        let before = (runs.len(), synced);
        assert_eq!(before.0, before.1);
        let mut store = open(&disk);
        let dies_at = disk.operations() + dice.roll(40) as u64;
        for nth in 1..400 {
            disk.fail(dies_at.saturating_sub(disk.operations()) + nth, Fault::Torn);
        }
        work(&mut store, 100, &mut runs, &mut synced);
        drop(store);
        let mut after = disk.crash(&mut dice);
        for round in 0..3 {
            let mut store = open_with(&after, sealer, settings());
            let what = format!("seed {seed} round {round}");
            assert_eq!(check(&mut store, &runs[..synced], &what), synced, "{what}");
            check(&mut store, &runs, &what);
            // Whatever the last one left, the next one goes on beside it.
            let (mut more, mut more_synced) = (Vec::new(), 0);
            work(&mut store, 200 + 100 * round, &mut more, &mut more_synced);
            assert_eq!(check(&mut store, &more, &what), more.len());
            runs.truncate(synced);
            runs.append(&mut more);
            synced = runs.len();
            after = after.crash(&mut dice);
        }
    }
}

#[test]
fn a_trailer_tells_of_nothing_that_a_power_cut_takes() {
    let sealer = &sealers()[0];
    for seed in 0..20 {
        let disk = FaultDisk::default();
        let mut store = open(&disk);
        // Two blocks are written, and nothing is synced.
        let run = (space(1), 0, octets(seed, 2 * BLOCK));
        store.append(run.0, run.1, &run.2, &[], Instant::now()).unwrap();
        // The process is killed; the next one finds what the kernel still has.
        drop(store);
        discovery_core::seam::disk::Disk::sync_dir(&disk, "log").unwrap();
        let runs = [run];
        assert_eq!(check(&mut open(&disk), &runs, "killed"), 1);
        let after = disk.crash(&mut Dice(seed));
        check(&mut open_with(&after, sealer, settings()), &runs, &format!("seed {seed}"));
    }
}

/// Not a test of its own: the process that the next test kills. It stores run after run, says which it has synced, and
/// ends when it is killed.
#[test]
fn a_process_that_is_killed() {
    let Ok(root) = std::env::var("PSS_KILLED") else { return };
    let base: u64 = std::env::var("PSS_BASE").unwrap().parse().unwrap();
    let mut store = open_real(&root);
    for nth in base..base + 5000 {
        let now = Instant::now();
        store.append(space(1), nth << 32, &octets(nth, 20_000), &[Anchor { hash: nth, at: 0 }], now).unwrap();
        if nth % 4 == 3 {
            store.sync(now).unwrap();
            println!("synced {nth}");
        }
        if let Some(eviction) = store.begin_eviction() {
            store.finish_eviction(eviction.generation);
        }
    }
}

fn open_real(root: &str) -> Store {
    let sealer = Arc::clone(&sealers()[1]);
    let mut store = Store::open_in(root.as_ref(), sealer, settings(), OWNER).unwrap();
    while store.load_next().is_some() {}
    store
}

#[test]
fn a_second_process_is_kept_out() {
    let root = tempfile::tempdir().unwrap();
    let first = open_real(root.path().to_str().unwrap());
    let second = Store::open_in(root.path(), Arc::clone(&sealers()[1]), settings(), OWNER);
    assert!(matches!(second, Err(OpenError::InUse(Some(holder))) if holder == std::process::id()));
    assert!(first.status().is_locked);
    drop(first);
    drop(open_real(root.path().to_str().unwrap()));
}

#[test]
fn kill_9_costs_nothing_that_was_written() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    let (mut base, mut promised) = (0, Vec::new());
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fault_tests::a_process_that_is_killed", "--nocapture", "--test-threads=1"])
            .env("PSS_KILLED", path)
            .env("PSS_BASE", base.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = None;
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        for line in lines.map_while(Result::ok) {
            if let Some(nth) = line.strip_prefix("synced ").and_then(|nth| nth.parse::<u64>().ok()) {
                last = Some(nth);
                if nth >= base + 7 + round * 9 {
                    // SIGKILL; what it says until it is dead is read to the end.
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let last = last.unwrap();
        promised.push(base..=last);
        let mut store = open_real(path);
        for nth in 0..=last + 200 {
            let content = octets(nth, 20_000);
            match read(&mut store, space(1), nth << 32, content.len()) {
                Some(found) => assert!(found == content, "round {round}: wrong octets in {nth}"),
                None => assert!(
                    !promised.iter().any(|p| p.contains(&nth)),
                    "round {round}: {nth} was synced and is gone"
                ),
            }
        }
        base = last + 201;
        drop(store);
    }
}
