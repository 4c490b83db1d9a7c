//! `sync-again`: mbsync pulls a whole mailbox into an empty folder. On the LAN it runs with COMPRESS and without, and
//! the better of the two is what Waypost is compared with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use sha2::{Digest as _, Sha256};

use crate::arm::{Arm, Ground, SYNCER};
use crate::measure::{Act, Acts, LATE_MAX};
use crate::progress::Progress;
use crate::relay::Relay;
use crate::row::Row;
use crate::stats;
use crate::wire::{self, Values};

/// The journey, so often in each arm.
pub(crate) fn again(ground: &Ground, n: usize, progress: &Progress) -> anyhow::Result<Row> {
    let mut row = Row::new("sync-again", "mbsync", "warm");
    progress.begin("sync-again: fill the store, and let the client become known", STARTS_TO_BE_KNOWN);
    for nth in 0..STARTS_TO_BE_KNOWN {
        row.filled_octets +=
            sync(ground, Arm::Waypost, Compress::AsOffered, &format!("fill-{nth}"))?.act.wan_octets;
        progress.step();
    }
    ground.lab.wan()?.wait_flat(Duration::from_secs(2), Duration::from_secs(300))?;
    progress.begin(&format!("sync-again: {n} times in each of three arms"), n);
    let (mut plain_lan, mut late) = (Acts::default(), false);
    for nth in 0..n + SPARE {
        if row.n() == n {
            break;
        }
        let mut acts = BTreeMap::new();
        for turn in 0..Arm::ALL.len() {
            let arm = *Arm::ALL.get((nth + turn) % Arm::ALL.len()).context("three arms")?;
            let done = sync(ground, arm, Compress::AsOffered, &nth.to_string())?;
            if arm == Arm::Lan {
                let plain = sync(ground, arm, Compress::Never, &format!("{nth}-plain"))?;
                plain_lan.0.push(plain.act);
            }
            // The last chance counts as it is, and says so.
            if !done.late || nth + 1 == n + SPARE {
                late |= done.late;
                acts.insert(arm, done.act);
            }
            row.given.entry(arm).or_default().merge(done.given);
        }
        if acts.len() < Arm::ALL.len() {
            row.repeated += 1;
            continue;
        }
        for (arm, act) in acts {
            row.acts.entry(arm).or_default().0.push(act);
        }
        progress.step();
    }
    ensure!(
        row.n() > 0,
        "sync-again: the emulator was late in every act; the machine is too busy to measure"
    );
    let with = stats::median(&row.acts(Arm::Lan).seconds());
    let without = stats::median(&plain_lan.seconds());
    if without < with {
        plain_lan.0.truncate(row.n());
        row.acts.insert(Arm::Lan, plain_lan);
    }
    let user = ground.user(SYNCER)?;
    let messages = ground.corpus.messages(user, "INBOX").count();
    row.note = Some(format!(
        "{messages} messages; on the LAN {with:.2} s with COMPRESS, {without:.2} s without: the better one stands in the table{}",
        if late {
            "; the emulator was late by more than 20 ms: the machine is too busy to trust this row"
        } else {
            ""
        },
    ));
    Ok(row)
}

/// The node foresees what it has seen so often.
const STARTS_TO_BE_KNOWN: usize = 3;

/// Rounds that may be discarded.
const SPARE: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compress {
    AsOffered,
    Never,
}

struct Synced {
    act: Act,
    late: bool,
    given: Values,
}

fn sync(ground: &Ground, arm: Arm, compress: Compress, name: &str) -> anyhow::Result<Synced> {
    let profile = ground.lab.directory().join(format!("mbsync-{}", arm.name()));
    drop(fs::remove_dir_all(&profile));
    let mail = profile.join("mail");
    fs::create_dir_all(&mail)?;
    let relay = Relay::start(ground, arm)?;
    let account = ground.account_at(SYNCER, relay.port)?;
    let config = profile.join("mbsyncrc");
    let never = if compress == Compress::Never { "DisableExtension COMPRESS=DEFLATE\n" } else { "" };
    fs::write(
        &config,
        format!(
            "IMAPStore far\nHost localhost\nPort {}\nUser {}\nPass {}\nSSLType IMAPS\nCertificateFile {}\n\
             SystemCertificates no\n{never}\nMaildirStore near\nPath {dir}/\nInbox {dir}/INBOX\n\n\
             Channel inbox\nFar :far:INBOX\nNear :near:INBOX\nCreate Near\nSync Pull\nSyncState *\n",
            account.port,
            account.user,
            account.password,
            account.ca.display(),
            dir = mail.display(),
        ),
    )?;
    let wan = ground.lab.wan()?;
    wan.reset()?;
    let mut command = ground.lab.command(arm.place(), "mbsync");
    command.env("HOME", &profile).arg("-c").arg(&config).arg("inbox").stdin(Stdio::null());
    let output = command.output().context("cannot run mbsync")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mbsync {}: {}: {}", arm.name(), output.status, complaint.trim());
    std::thread::sleep(Duration::from_secs_f64(ground.link.rtt_ms / 1e3));
    let counters = wan.read()?;
    let recordings = ground.recordings.as_ref().map(|directory| directory.join(arm.name()));
    let connections = relay.recording.finish(recordings.as_deref(), &format!("mbsync-{name}"))?;
    let (start, end) = connections.iter().find_map(|one| one.ends()).context("mbsync said nothing")?;
    let seconds = (end - start).as_secs_f64();
    let act = Act {
        seconds,
        literal_seconds: seconds,
        round_trips: counters.round_trips(),
        wan_octets: counters.octets(),
    };
    let given = synced(&mail.join("INBOX"))?;
    fs::remove_dir_all(&profile)?;
    Ok(Synced { act, late: counters.late_max() > LATE_MAX, given })
}

/// Messages and flags as they lie in the folder, in an order that does not depend on mbsync's own names.
fn synced(maildir: &Path) -> anyhow::Result<Values> {
    let mut messages = Vec::new();
    for part in ["cur", "new"] {
        for entry in fs::read_dir(maildir.join(part))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let flags = name.rsplit_once(":2,").map_or("", |(_, flags)| flags);
            let digest = wire::hex(&Sha256::digest(without_own_header(&fs::read(entry.path())?)));
            messages.push(format!("{digest} {flags}"));
        }
    }
    messages.sort_unstable();
    let mut values = Values::default();
    for (nth, message) in messages.into_iter().enumerate() {
        values.insert(format!("folder/{nth}"), message);
    }
    Ok(values)
}

/// mbsync marks what it stores with a random `X-TUID` header.
fn without_own_header(message: &[u8]) -> Vec<u8> {
    let lines = message.split_inclusive(|octet| *octet == b'\n');
    lines.filter(|line| !line.starts_with(b"X-TUID: ")).flatten().copied().collect()
}
