//! The store against what was said to it, over random operations, faults, power cuts, kills and damage.

use super::{
    store_tests::{octets, open_with, read, sealers, space},
    *,
};
use discovery_core::seam::sealer::Sealer;
use disk::faults::{Dice, Fault, FaultDisk};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Clone, Debug)]
enum Step {
    /// On one of four runs: octets, and a gap of addresses before them.
    Append {
        run: u8,
        octets: u32,
        gap: u32,
    },
    /// In another space, some of what an earlier append stored.
    Alias {
        nth: prop::sample::Index,
        space: u8,
        skip: u32,
        octets: u32,
    },
    Read {
        nth: prop::sample::Index,
    },
    Anchor {
        nth: prop::sample::Index,
    },
    Sync,
    Wait {
        millis: u16,
    },
    Evict,
    Begin,
    /// The process ends: as it should, by a kill, by a power cut.
    Close,
    Kill,
    Cut {
        seed: u64,
    },
    /// An operation to come fails.
    Fail {
        operations: u8,
        how: u8,
    },
    Fill {
        room: u32,
    },
    Flip {
        file: prop::sample::Index,
        at: prop::sample::Index,
        bit: u8,
    },
}

fn step(with_damage: bool) -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let quiet = prop_oneof![
        8 => (0..4u8, prop_oneof![1..200u32, 1..150_000u32], prop_oneof![9 => Just(0), 1 => 1..1000u32])
            .prop_map(|(run, octets, gap)| Step::Append { run, octets, gap }),
        2 => (index(), 4..7u8, 0..5000u32, 1..70_000u32)
            .prop_map(|(nth, space, skip, octets)| Step::Alias { nth, space, skip, octets }),
        3 => index().prop_map(|nth| Step::Read { nth }),
        2 => index().prop_map(|nth| Step::Anchor { nth }),
        2 => Just(Step::Sync),
        1 => (0..4000u16).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Evict),
        1 => Just(Step::Begin),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(|seed| Step::Cut { seed }),
    ];
    let loud = prop_oneof![
        (0..9u8, 0..3u8).prop_map(|(operations, how)| Step::Fail { operations, how }),
        prop_oneof![Just(u32::MAX), 0..300_000u32].prop_map(|room| Step::Fill { room }),
        (index(), index(), 0..8u8).prop_map(|(file, at, bit)| Step::Flip { file, at, bit }),
    ];
    if with_damage { prop_oneof![5 => quiet, 1 => loud].boxed() } else { quiet.boxed() }
}

struct World {
    disk: FaultDisk,
    sealer: Arc<dyn Sealer>,
    store: Store,
    now: Instant,
    /// What every address stands for, for ever.
    said: BTreeMap<(Space, u64), Vec<u8>>,
    /// Of them those that must be there: by generation of the promise.
    kept: BTreeMap<(Space, u64), Promise>,
    anchors: BTreeMap<u64, Vec<u8>>,
    next: [u64; 4],
    seeds: u64,
    going: Option<Eviction>,
    quiet: bool,
    wrong: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    Stored,
    Synced,
}

const SETTINGS: Settings = Settings {
    octets_max: 2 << 20,
    index_octets_max: 64 * 1024,
    cache_octets_max: 200_000,
    segment_octets: 3 * 65_536,
};

impl World {
    fn new(sealer: &Arc<dyn Sealer>, quiet: bool) -> Self {
        let disk = FaultDisk::default();
        Self {
            store: open_with(&disk, sealer, SETTINGS),
            disk,
            sealer: Arc::clone(sealer),
            now: Instant::now(),
            said: BTreeMap::new(),
            kept: BTreeMap::new(),
            anchors: BTreeMap::new(),
            next: std::array::from_fn(|run| (run as u64) << 40),
            seeds: 0,
            going: None,
            quiet,
            wrong: Vec::new(),
        }
    }

    fn nth(&self, nth: prop::sample::Index) -> Option<((Space, u64), Vec<u8>)> {
        let nth = nth.index(self.said.len().max(1));
        self.said.iter().nth(nth).map(|(key, octets)| (*key, octets.clone()))
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { run, octets: len, gap } => self.append(*run, *len as usize, *gap),
            Step::Alias { nth, space: other, skip, octets } => {
                let Some((key, content)) = self.nth(*nth) else { return };
                let (skip, octets) = (*skip as usize, *octets as usize);
                let end = content.len().min(skip + octets);
                let Some(content) = content.get(skip..end).filter(|content| !content.is_empty()) else {
                    return;
                };
                self.alias(key, skip, content.to_vec(), space(*other));
            }
            Step::Read { nth } => {
                if let Some((key, content)) = self.nth(*nth) {
                    self.read(key, &content);
                }
            }
            Step::Anchor { nth } => {
                let Some((hash, content)) = self.anchors.iter().nth(nth.index(self.anchors.len().max(1)))
                else {
                    return;
                };
                for place in self.store.find(*hash).into_iter().flatten() {
                    let mut out = Vec::new();
                    if self.store.read_place(place, 100, &mut out).is_ok() && out != content[..100] {
                        self.wrong.push(format!("at an anchor {place:?}"));
                    }
                }
            }
            Step::Sync => {
                if self.store.sync(self.now).is_ok() && self.quiet {
                    self.kept.values_mut().for_each(|promise| *promise = Promise::Synced);
                }
            }
            Step::Wait { millis } => {
                self.now += Duration::from_millis((*millis).into());
                let _ = self.store.handle_timeout(self.now);
            }
            Step::Begin => self.begin(),
            Step::Evict => {
                self.begin();
                if let Some(Eviction { generation, going }) = self.going.take() {
                    self.forget(&going);
                    self.store.finish_eviction(generation);
                }
            }
            Step::Close => {
                if self.store.close(self.now).is_ok() {
                    self.kept.values_mut().for_each(|promise| *promise = Promise::Synced);
                }
                self.restart(self.disk.clone());
            }
            Step::Kill => {
                self.kept.retain(|_, promise| *promise == Promise::Synced);
                self.restart(self.disk.clone());
            }
            Step::Cut { seed } => {
                self.kept.retain(|_, promise| *promise == Promise::Synced);
                self.restart(self.disk.crash(&mut Dice(*seed)));
            }
            Step::Fail { operations, how } => self.disk.fail(
                (*operations).into(),
                [Fault::Torn, Fault::Error(ErrorKind::StorageFull), Fault::Error(ErrorKind::Other)]
                    [usize::from(*how)],
            ),
            Step::Fill { room } => {
                let used: usize = self.disk.files().values().map(Vec::len).sum();
                self.disk.set_octets_max((*room != u32::MAX).then_some(used as u64 + u64::from(*room)));
            }
            Step::Flip { file, at, bit } => {
                let files = self.disk.files();
                let (name, octets) = files.iter().nth(file.index(files.len())).unwrap();
                if !octets.is_empty() {
                    let at = at.index(octets.len());
                    self.disk.change(name, |octets| octets[at] ^= 1 << bit);
                }
            }
        }
    }

    fn append(&mut self, run: u8, len: usize, gap: u32) {
        self.seeds += 1;
        let (content, space) = (octets(self.seeds, len), space(run));
        let address = self.next[usize::from(run)] + u64::from(gap);
        // Whatever comes of it, the addresses are used up.
        self.next[usize::from(run)] = address + len as u64;
        let mut anchors = Vec::new();
        for at in (0..len.saturating_sub(100)).step_by(3000) {
            let hash = u64::from_le_bytes(*content[at..].first_chunk().unwrap()) & ((1 << 48) - 1);
            anchors.push(Anchor { hash, at: u32::try_from(at).unwrap() });
            self.anchors.insert(hash, content[at..at + 100].to_vec());
        }
        let appended = self.store.append(space, address, &content, &anchors, self.now);
        self.said.insert((space, address), content);
        match appended {
            Ok(()) => drop(self.kept.insert((space, address), Promise::Stored)),
            Err(Refused::Full) => {}
            Err(refused) if self.quiet => self.wrong.push(format!("append: {refused}")),
            Err(_) => {}
        }
    }

    /// As a node does it that has found octets and sends their place to another peer.
    fn alias(&mut self, key: (Space, u64), skip: usize, content: Vec<u8>, other: Space) {
        let (from, address) = (key.0, key.1 + skip as u64);
        self.seeds += 1;
        let new = (self.seeds << 32, content);
        let Some(runs) = self.store.spaces.get(&from).and_then(|log| log.locate(address, new.1.len() as u64))
        else {
            return;
        };
        let mut at = new.0;
        let mut whole = true;
        for run in runs {
            whole &= self.store.alias(other, at, run.place, run.octets, self.now).is_ok();
            at += u64::from(run.octets);
        }
        self.said.insert((other, new.0), new.1);
        // It goes when what it names goes, as the eviction tells.
        if whole && self.kept.contains_key(&key) {
            self.kept.insert((other, new.0), Promise::Stored);
        }
    }

    fn read(&mut self, key: (Space, u64), content: &[u8]) {
        match read(&mut self.store, key.0, key.1, content.len()) {
            Some(found) if found != content => self.wrong.push(format!("{key:?}")),
            None if self.quiet && self.kept.contains_key(&key) => self.wrong.push(format!("{key:?} is gone")),
            Some(_) | None => {}
        }
    }

    fn begin(&mut self) {
        if let Some(eviction) = self.store.begin_eviction() {
            for Lost { space, interval } in &eviction.going {
                let listed = self.store.intervals(*space);
                if listed.iter().any(|other| other.from < interval.to && interval.from < other.to) {
                    self.wrong.push(format!("{interval:?} is going and listed"));
                }
            }
            self.going = Some(eviction);
        }
    }

    /// What goes is nobody's promise any more.
    fn forget(&mut self, going: &[Lost]) {
        let said = &self.said;
        self.kept.retain(|key, _| {
            let to = key.1 + said[key].len() as u64;
            !going.iter().any(|l| l.space == key.0 && l.interval.from < to && key.1 < l.interval.to)
        });
    }

    fn restart(&mut self, disk: FaultDisk) {
        self.going = None;
        self.disk = disk;
        self.disk.clear_faults();
        self.disk.set_octets_max(None);
        self.store = open_with(&self.disk, &self.sealer, SETTINGS);
        self.now += Duration::from_secs(20);
    }

    fn check(&mut self) {
        for (key, content) in self.said.clone() {
            self.read(key, &content);
        }
        let spaces: Vec<_> = self.store.spaces.keys().copied().collect();
        for space in spaces {
            for Interval { from, to } in self.store.intervals(space) {
                let len = usize::try_from(to - from).unwrap();
                if read(&mut self.store, space, from, len).is_none() && self.quiet {
                    self.wrong.push(format!("{from:x}..{to:x} is listed and not there"));
                }
            }
        }
        let used: usize = self.disk.files().values().map(Vec::len).sum();
        if used as u64 > SETTINGS.octets_max {
            self.wrong.push(format!("{used} octets"));
        }
    }
}

fn run(steps: &[Step], sealed: bool, quiet: bool) -> Vec<String> {
    let mut world = World::new(&sealers()[usize::from(sealed)], quiet);
    for step in steps {
        world.step(step);
    }
    world.check();
    world.step(&Step::Kill);
    world.check();
    world.wrong
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 3000, ..ProptestConfig::default() })]

    /// Kills and power cuts, but a disk that does what it says: what was synced and has not been given up is there,
    /// what is listed is there, and all that is there is right.
    #[test]
    fn a_sound_disk_keeps_all_promises(steps in prop::collection::vec(step(false), 1..60), sealed: bool) {
        prop_assert_eq!(run(&steps, sealed, true), Vec::<String>::new());
    }

    /// Whatever the disk does, nothing wrong is ever read.
    #[test]
    fn a_bad_disk_costs_no_truth(steps in prop::collection::vec(step(true), 1..60), sealed: bool) {
        prop_assert_eq!(run(&steps, sealed, false), Vec::<String>::new());
    }
}
