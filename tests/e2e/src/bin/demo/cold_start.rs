//! `cold-start-explicit`: from the TCP connection to the flags of INBOX, by a client that the branch knows.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::arm::{Arm, COLD, Ground, READER};
use crate::measure::{Act, LATE_MAX};
use crate::progress::Progress;
use crate::row::Row;
use crate::session::Session;
use crate::wire::Values;

/// The journey, so often in each arm.
pub(crate) fn explicit(ground: &Ground, n: usize, progress: &Progress) -> anyhow::Result<Row> {
    let mut row = Row::new("cold-start-explicit", "scripted", "known");
    progress.begin("cold-start-explicit: become known", KNOWN_AFTER);
    let mut first = None;
    for _ in 0..KNOWN_AFTER {
        let started = start(ground, Arm::Waypost, "INBOX")?;
        first.get_or_insert(started.act.seconds);
        progress.step();
    }
    progress.begin(&format!("cold-start-explicit: {n} times in each of three arms"), n);
    let mut nth = 0;
    while row.n() < n && nth < n * 2 {
        nth += 1;
        let mut acts = Vec::new();
        for turn in 0..Arm::ALL.len() {
            let arm = *Arm::ALL.get((nth + turn) % Arm::ALL.len()).context("three arms")?;
            let started = start(ground, arm, "INBOX")?;
            row.given.entry(arm).or_default().merge(started.given);
            acts.extend((!started.late).then_some((arm, started.act)));
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
    let mistaken = start(ground, Arm::Waypost, COLD)?.act.seconds;
    row.note = Some(format!(
        "the first start ever {:.2} s; one that opens another mailbox than foreseen {mistaken:.2} s; round trips and octets count the next connections that are made ready",
        first.unwrap_or_default(),
    ));
    Ok(row)
}

/// Three starts alike, and one more than is needed.
const KNOWN_AFTER: usize = 4;

struct Started {
    act: Act,
    late: bool,
    given: Values,
}

fn start(ground: &Ground, arm: Arm, mailbox: &str) -> anyhow::Result<Started> {
    let wan = ground.lab.wan()?;
    // What the last one left, and the connections that are made ready for the next.
    wan.wait_flat(Duration::from_secs(1), Duration::from_secs(60))?;
    let (address, user) = (arm.address(), ground.user(READER)?);
    let plain = ground.lab.inside(arm.place(), move || TcpStream::connect(address))?;
    let plain = plain.with_context(|| format!("{}: nothing accepts on {address}", arm.name()))?;
    wan.reset()?;
    let began = Instant::now();
    let mut session = Session::over(plain, &ground.roots)?;
    session.command(&format!("LOGIN {} {}", user.name, user.password))?;
    session.open_mailbox(mailbox)?;
    let seconds = session.command("UID FETCH 1:* (FLAGS)")?.end.duration_since(began).as_secs_f64();
    let counters = wan.read()?;
    let act = Act {
        seconds,
        literal_seconds: seconds,
        round_trips: counters.round_trips(),
        wan_octets: counters.octets(),
    };
    // UIDs and flags, so that there is something to compare.
    session.command("UID FETCH 1:20 (RFC822.SIZE INTERNALDATE)")?;
    Ok(Started { act, late: counters.late_max() > LATE_MAX, given: session.take_values() })
}
