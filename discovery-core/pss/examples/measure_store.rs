//! How a large store starts, and what it costs in memory: `measure_store DIRECTORY [GB] [--sealed]`. The trailers are
//! real, with an anchor for each 1.25 KiB and a run of addresses for each block, as three connections leave them; the
//! log files are sparse but for the newest. What was written is forgotten by the page cache before the clock starts.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a command line tool that measures"
)]

use discovery_core::seam::sealer::Sealer;
use disk::{AesGcm, CheckOnly, DirectoryDisk};
use pss::{Anchor, Generation, Layout, Part, Placed, Record, Settings, Space, Store, StoreId};
use std::{
    env,
    fs::{self, File},
    io::Write,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

const BLOCK: u32 = 64 * 1024;
const SEGMENT: u32 = 64 << 20;
/// Anchors of a block at 1.25 KiB each.
const ANCHORS: u32 = 52;
const OWNER: [u8; 16] = [1; 16];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let sealed = arguments.iter().any(|argument| argument == "--sealed");
    arguments.retain(|argument| argument != "--sealed");
    let root = arguments.first().expect("usage: measure_store DIRECTORY [GB] [--sealed]").clone();
    let gigabytes: u64 = arguments.get(1).map_or(100, |text| text.parse().unwrap());
    let sealer: Arc<dyn Sealer> =
        if sealed { Arc::new(AesGcm::new(&[5; 32]).unwrap()) } else { Arc::new(CheckOnly) };
    let settings = Settings::sized(gigabytes * 1_000_000_000);
    let open = || {
        let disk = Arc::new(DirectoryDisk::new(root.as_ref()).unwrap());
        Store::open(disk, Arc::clone(&sealer), settings, OWNER).unwrap()
    };
    let begun = Instant::now();
    // Log and trailer are 1.5 % longer than the content, and the last ones are for what is stored below.
    let generations = gigabytes * 980_000_000 / u64::from(SEGMENT) - 8;
    make(&open(), &*sealer, Path::new(&root), generations);
    let content: Vec<u8> = (0..SEGMENT / 8).flat_map(|nth| mix(nth.into()).to_le_bytes()).collect();
    let anchors: Vec<Anchor> =
        (0..SEGMENT).step_by(1280).map(|at| Anchor { hash: mix(u64::from(at) << 32), at }).collect();
    let mut store = open();
    store.append(Space([9; 16]), 0, &content, &anchors, Instant::now()).unwrap();
    store.close(Instant::now()).unwrap();
    drop(store);
    forget(&Path::new(&root).join("log"));
    println!("made {} GB in {:.1} s", gigabytes, begun.elapsed().as_secs_f64());

    let before = resident();
    let begun = Instant::now();
    let mut store = open();
    store.load_next().unwrap();
    let mut out = Vec::new();
    store.read(Space([9; 16]), 1_000_000, 100_000, &mut out).unwrap();
    assert_eq!(out, content[1_000_000..1_100_000]);
    let place = store.find(anchors[5000].hash)[0].unwrap();
    assert_eq!(
        store.address_of(Space([9; 16]), place).map(|(address, _)| address),
        Some(anchors[5000].at.into())
    );
    let first = begun.elapsed();
    while store.load_next().is_some() {}
    let whole = begun.elapsed();
    let after = resident();
    let status = store.status();
    let found = (0..100_000u64)
        .filter(|nth| {
            let (generation, block) = (2 + nth % (generations - 1), nth % 1024);
            store.find(anchor_hash(generation, block as u32, (nth % u64::from(ANCHORS)) as u32))[0].is_some()
        })
        .count();
    println!("first reference resolved     {:>8.3} s   (gate 2 s)", first.as_secs_f64());
    println!("whole index and all extents  {:>8.3} s   (gate 30 s)", whole.as_secs_f64());
    println!(
        "resident memory              {:>8.1} MB  (gate 10 MB a GB: {} MB)",
        after - before,
        gigabytes * 10
    );
    println!("  of it the index's table    {:>8.1} MB", status.index_octets as f64 / 1e6);
    println!("anchors found again          {:>8.2} %", found as f64 / 1000.0);
    println!(
        "extents {}, generations {}, rebuilt {}, foreign {}",
        status.extents, status.generations, status.rebuilt, status.foreign
    );

    let kept = first.as_secs_f64() <= 2.0
        && whole.as_secs_f64() <= 30.0
        && after - before <= 10.0 * gigabytes as f64;

    // What one thread stores and reads again.
    let chunk = &content[..8 << 20];
    let begun = Instant::now();
    for nth in 0..16u64 {
        let anchors: Vec<Anchor> = (0..8 << 20)
            .step_by(1280)
            .map(|at| Anchor { hash: mix(nth << 40 | u64::from(at)), at })
            .collect();
        store.append(Space([8; 16]), nth << 23, chunk, &anchors, Instant::now()).unwrap();
    }
    store.sync(Instant::now()).unwrap();
    println!("append, seal, sync each 8 MiB {:>7.0} MB/s", 134.2 / begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    for nth in 0..16u64 {
        out.clear();
        store.read(Space([8; 16]), nth << 23, 8 << 20, &mut out).unwrap();
    }
    println!("read, verify (page cache)     {:>7.0} MB/s", 134.2 / begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    for nth in 0..16u32 {
        let place = store.find(mix(u64::from(nth) << 40)).into_iter().flatten().next().unwrap();
        assert_eq!(store.compare(place, &[], chunk).1, chunk.len());
    }
    println!("compare with what is stored   {:>7.0} MB/s", 134.2 / begun.elapsed().as_secs_f64());
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// SplitMix64.
fn mix(nth: u64) -> u64 {
    let mut z = nth.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn anchor_hash(generation: u64, block: u32, nth: u32) -> u64 {
    mix(generation << 32 | u64::from(block) << 8 | u64::from(nth)) & ((1 << 48) - 1)
}

fn make(store: &Store, sealer: &dyn Sealer, root: &Path, generations: u64) {
    let id = StoreId(store.mark().writer);
    for generation in 1..=generations {
        let mut file_id = [0; 24];
        file_id[..8].copy_from_slice(&mix(generation << 20).to_be_bytes());
        let layout = Layout::new(Generation(generation), id, file_id);
        let mut at = 96;
        let records: Vec<Placed> = (0..SEGMENT / BLOCK)
            .map(|block| {
                let lane = u64::from(block % 3);
                let address = lane << 50 | generation << 26 | u64::from(block) << 16;
                let anchors = (0..ANCHORS)
                    .map(|nth| anchor_hash(generation, block, nth) << 16 | u64::from(nth * 1260))
                    .collect();
                let part =
                    Part { space: Space([7; 16]), address, offset: block * BLOCK, octets: BLOCK, anchors };
                let placed = Placed { at, record: Record::Part(part) };
                at += 8 + BLOCK + 29 + 8 * ANCHORS + sealer.overhead() as u32;
                placed
            })
            .collect();
        let path = |suffix: &str| root.join(format!("log/{generation:016x}.{suffix}"));
        File::create(path("map")).unwrap().write_all(&layout.trailer(sealer, &records)).unwrap();
        let mut log = File::create(path("seg")).unwrap();
        log.write_all(&layout.log_header(sealer)).unwrap();
        log.set_len(at.into()).unwrap();
    }
}

fn forget(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let file = File::open(entry.unwrap().path()).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// Megabytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}
