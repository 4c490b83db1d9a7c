//! The store after kill -9, a power cut, a full disk and flipped bits: it may forget, it never lies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use lab::Corpus;
use lab::corpus::Message;
use lab::power_cut::CuttableDisk;

use crate::case::Case;
use crate::mail::{bodies, noise, same_bodies};
use crate::scenarios::commands::get;
use crate::site::{STALL, Server, Site};
use crate::waypost::{Settings, Waypost};

fn site(case: &Case) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(71, 60, 400_000);
    corpus.users.retain(|user| ["alice", "bob"].contains(&user.name.as_str()));
    Site::build(case, corpus, &[Server::Dovecot])
}

type Truth = BTreeMap<&'static str, BTreeMap<u32, Vec<u8>>>;

fn truth(site: &Site) -> anyhow::Result<Truth> {
    let mut truth = Truth::new();
    for user in USERS {
        truth.insert(user, bodies(&mut site.beside(Server::Dovecot, user)?, "INBOX")?);
    }
    Ok(truth)
}

const USERS: [&str; 2] = ["alice", "bob"];

/// Every user, twice, gets what the server has.
fn all_is_right(site: &Site, truth: &Truth, what: &str) -> anyhow::Result<()> {
    for run in ["first", "second"] {
        for (user, expected) in truth {
            let mut wire = site.through(Server::Dovecot, user)?;
            same_bodies(&format!("{what}, {run} time, {user}"), expected, &bodies(&mut wire, "INBOX")?)?;
            for other in USERS.iter().filter(|other| *other != user) {
                ensure!(!site.corpus.canary(other).is_in(wire.received()), "{other}'s mail went to {user}");
            }
        }
    }
    Ok(())
}

/// Starts to read everybody's mail and runs `cut` when so many octets have come.
fn in_the_middle_of_a_fill(
    site: &Site,
    octets: usize,
    cut: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut wires = Vec::new();
    for user in USERS {
        let mut wire = site.through(Server::Dovecot, user)?;
        wire.command("SELECT INBOX")?.ok()?;
        wire.begin("UID FETCH 1:* (UID BODY.PEEK[])")?;
        wires.push(wire);
    }
    for wire in &mut wires {
        while wire.received().len() < octets {
            ensure!(wire.some()?.is_some(), "closed before the cut");
        }
    }
    cut()
}

/// Killed in the middle of a fill, again and again, at other places each time.
pub(crate) fn killed(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let (truth, settings) = (truth(&site)?, site.settings());
    for octets in [50_000, 200_000, 500_000, 900_000] {
        let mut waypost = site.waypost(case, &settings)?;
        in_the_middle_of_a_fill(&site, octets, || waypost.kill())?;
    }
    let mut waypost = site.waypost(case, &settings)?;
    all_is_right(&site, &truth, "after four kills")?;
    waypost.still_runs()
}

/// The power goes in the middle of a fill, again and again.
pub(crate) fn power_cut(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let truth = truth(&site)?;
    let disk = CuttableDisk::create(&site.lab.directory().join("power"), 96)?;
    let mut settings = site.settings();
    settings.store = disk.mountpoint().join("store");
    for octets in [50_000, 300_000, 900_000] {
        let mut waypost = site.waypost(case, &settings)?;
        // Between the cut and the kill its disk is gone: it says so, and nobody is lied to.
        for words in DISK_WORDS {
            waypost.watch.announce(words);
        }
        in_the_middle_of_a_fill(&site, octets, || disk.cut())?;
        waypost.kill()?;
        disk.restore()?;
    }
    let mut waypost = site.waypost(case, &settings)?;
    all_is_right(&site, &truth, "after three power cuts")?;
    waypost.still_runs()?;
    // And with all of it written down.
    waypost.signal(libc::SIGTERM)?;
    waypost.wait(STALL)?;
    let mut waypost = site.waypost(case, &settings)?;
    all_is_right(&site, &truth, "after an ordinary stop")?;
    waypost.kill()
}

/// What a disk that fails is called in a complaint.
const DISK_WORDS: [&str; 4] = ["store", "disk", "space", "I/O"];

/// A disk with less room than the mail needs: clients notice nothing.
pub(crate) fn disk_full(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let dovecot = site.dovecot.as_ref().context("no Dovecot")?;
    for number in 0..6 {
        let octets = noise(&format!("ballast {number}"), 5 << 20);
        let message = Message { octets, seen: true, arrived: 1_700_800_000 + number };
        dovecot.deliver(site.user("alice")?, "INBOX", &message, &format!("170080000{number}.M1P9.lab"))?;
    }
    let truth = truth(&site)?;
    let small = SmallDisk::mount(&site.lab.directory().join("small"), 16)?;
    let mut settings = site.settings();
    settings.store = small.mountpoint.join("store");
    let mut waypost = site.waypost(case, &settings)?;
    for words in DISK_WORDS {
        waypost.watch.announce(words);
    }
    all_is_right(&site, &truth, "on a full disk")?;
    waypost.still_runs()?;
    waypost.kill()
}

/// As [`disk_full`], and the disk really was filled.
pub(crate) fn disk_was_full(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let small = SmallDisk::mount(&site.lab.directory().join("small"), 2)?;
    let mut settings = site.settings();
    settings.store = small.mountpoint.join("store");
    let mut waypost = site.waypost(case, &settings)?;
    for words in DISK_WORDS {
        waypost.watch.announce(words);
    }
    all_is_right(&site, &truth(&site)?, "on a full disk")?;
    waypost.kill()?;
    let octets = files_below(&settings.store)?
        .iter()
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum::<u64>();
    ensure!(octets > 1 << 20, "the store kept {octets} octets on a disk of 2 MiB: it was never full");
    Ok(())
}

/// A tmpfs of its own. Dropping it unmounts.
struct SmallDisk {
    mountpoint: PathBuf,
}

impl SmallDisk {
    fn mount(mountpoint: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        fs::create_dir_all(mountpoint)?;
        let size = format!("size={mebibytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "e2e"]).arg(mountpoint).status()?;
        ensure!(mounted.success(), "cannot mount a tmpfs on {}", mountpoint.display());
        Ok(Self { mountpoint: mountpoint.to_owned() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.mountpoint).status());
    }
}

/// A bit of every stored body flips on the disk: each is a miss, counted, and the server's octets are served.
pub(crate) fn flipped_bits(case: &Case) -> anyhow::Result<()> {
    for sealed in [false, true] {
        let site = site(case)?;
        let truth = truth(&site)?;
        let mut settings = site.settings();
        settings.sealed = sealed;
        let mut waypost = start(case, &site, &settings)?;
        all_is_right(&site, &truth, "before")?;
        waypost.signal(libc::SIGTERM)?;
        waypost.wait(STALL)?;
        let mut flipped = 0;
        for file in files_below(&settings.store)? {
            let mut octets = fs::read(&file)?;
            // The index is another test's affair.
            let index = octets.starts_with(b"SQLite format 3") || name_of(&file).contains("-wal");
            let middle = octets.len() / 2;
            match octets.get_mut(middle) {
                Some(octet) if !index => *octet ^= 0x10,
                _ => continue,
            }
            fs::write(&file, octets)?;
            flipped += 1;
        }
        case.note("flipped", flipped);
        ensure!(flipped > 20, "{flipped} stored bodies to damage");
        let mut waypost = start(case, &site, &settings)?;
        for words in ["damaged", "corrupt", "checksum", "store"] {
            waypost.watch.announce(words);
        }
        all_is_right(&site, &truth, "after the damage")?;
        let metrics = get(&site, "/metrics")?;
        let counted = metrics.lines().filter(|line| !line.starts_with('#')).any(|line| {
            let counts = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
            (line.contains("damaged") || line.contains("corrupt")) && counts > 0.0
        });
        ensure!(
            counted,
            "no metric of damaged or corrupt bodies above 0 among {} lines",
            metrics.lines().count()
        );
        waypost.still_runs()?;
    }
    Ok(())
}

/// The index itself is damaged: all may be forgotten, nothing may be wrong.
pub(crate) fn damaged_index(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let (truth, settings) = (truth(&site)?, site.settings());
    let mut waypost = site.waypost(case, &settings)?;
    all_is_right(&site, &truth, "before")?;
    waypost.signal(libc::SIGTERM)?;
    waypost.wait(STALL)?;
    let mut damaged = 0;
    for file in files_below(&settings.store)? {
        let mut octets = fs::read(&file)?;
        if !octets.starts_with(b"SQLite format 3") {
            continue;
        }
        // Every page but the first loses a few octets.
        for page in octets.chunks_mut(4096).skip(1) {
            for octet in page.iter_mut().skip(1_000).step_by(97) {
                *octet ^= 0x55;
            }
        }
        fs::write(&file, octets)?;
        damaged += 1;
    }
    ensure!(damaged > 0, "no index to damage");
    let mut waypost = site.waypost(case, &settings)?;
    for words in ["index", "store", "database", "damaged", "malformed"] {
        waypost.watch.announce(words);
    }
    all_is_right(&site, &truth, "with a damaged index")?;
    waypost.still_runs()
}

fn start(case: &Case, site: &Site, settings: &Settings) -> anyhow::Result<Waypost> {
    let waypost = site.waypost(case, settings)?;
    if !settings.sealed {
        waypost.watch.announce("not encrypted");
    }
    Ok(waypost)
}

fn name_of(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn files_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = left.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { left.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// A store that was sealed with another key: what it holds cannot be read, and nobody is given garbage for it.
pub(crate) fn another_key(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let (truth, settings) = (truth(&site)?, site.settings());
    let mut waypost = site.waypost(case, &settings)?;
    all_is_right(&site, &truth, "before")?;
    waypost.signal(libc::SIGTERM)?;
    waypost.wait(STALL)?;
    // The next start makes a new one.
    fs::remove_file(settings.directory.join("seal.key"))?;
    let mut waypost = Waypost::launch(case, &site.lab, lab::Place::Branch, &settings)?;
    for words in ["key", "seal", "store"] {
        waypost.watch.announce(words);
    }
    // To refuse the store by name is as good as to forget what is in it.
    let address = settings.listeners.first().context("no listener")?.address;
    let start = std::time::Instant::now();
    while site.lab.wait_for_port(lab::Place::Branch, address, std::time::Duration::ZERO).is_err() {
        if waypost.still_runs().is_err() {
            let status = waypost.wait(STALL)?;
            let said = waypost.watch.text();
            case.note("refuses_to_start", true);
            ensure!(status.code() == Some(69) || status.code() == Some(64), "ended with {status}: {said}");
            ensure!(said.contains("key") || said.contains("seal"), "it does not say why: {said}");
            return Ok(());
        }
        ensure!(start.elapsed() < STALL, "neither serves nor ends:\n{}", waypost.watch.text());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    all_is_right(&site, &truth, "with another key")?;
    waypost.still_runs()
}
