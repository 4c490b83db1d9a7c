//! `cold-start-explicit`: from the connection to the flags of INBOX, command by command as Thunderbird begins.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::arm::{Arm, Ground, READER};
use crate::measure::{self, Outcome};
use crate::progress::Progress;
use crate::row::Row;
use crate::session::{Reply, Session};

/// How a start differs from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// The node has not seen this client before.
    First,
    /// The client does what it did the last times.
    Known,
    /// The client opens another mailbox than the last times.
    Other,
}

impl Habit {
    const fn client(self) -> &'static str {
        match self {
            Self::First => "scripted, first time",
            Self::Known => "scripted",
            Self::Other => "scripted, other mailbox",
        }
    }

    const fn mailbox(self) -> &'static str {
        match self {
            Self::First | Self::Known => "INBOX",
            Self::Other => crate::arm::COLD,
        }
    }
}

/// The first start there is, some of a known client, some that begin otherwise. Must run before any other client has
/// been at the node.
pub(crate) fn cold(ground: &Ground, n: usize, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let first = starts(ground, Habit::First, 1, progress)?;
    // What is usual shows in a few times.
    progress.begin("cold-start-explicit: the client becomes known", LEARNED);
    for _ in 0..LEARNED {
        perform(ground, Arm::Waypost, READER, Habit::Known)?;
        ground.lab.wan()?.wait_flat(FLAT, PATIENCE)?;
        progress.step();
    }
    let known = starts(ground, Habit::Known, n, progress)?;
    let other = starts(ground, Habit::Other, n.div_ceil(3), progress)?;
    let mut rows = vec![first, known, other];
    for (reader, messages) in ground.many() {
        for _ in 0..LEARNED {
            perform(ground, Arm::Waypost, reader, Habit::Known)?.1.command("LOGOUT")?;
            ground.lab.wan()?.wait_flat(FLAT, PATIENCE)?;
        }
        let client = format!("scripted, {messages} messages");
        rows.push(starts_of(ground, reader, client, Habit::Known, n.div_ceil(2), progress)?);
    }
    Ok(rows)
}

/// Interleaved, each in each arm.
fn starts(ground: &Ground, habit: Habit, n: usize, progress: &Progress) -> anyhow::Result<Row> {
    starts_of(ground, READER, habit.client().to_owned(), habit, n, progress)
}

fn starts_of(
    ground: &Ground,
    reader: &str,
    client: String,
    habit: Habit,
    n: usize,
    progress: &Progress,
) -> anyhow::Result<Row> {
    progress.begin(&format!("cold-start-explicit, {client}: {n} starts in each of three arms"), n);
    let mut row = Row::new("cold-start-explicit", &client, "cold");
    let rtt = Duration::from_secs_f64(ground.link.rtt_ms / 1e3);
    // The first is only once the first.
    let attempts = if habit == Habit::First { n } else { n * 2 };
    for nth in 0..attempts {
        if row.n() == n {
            break;
        }
        let mut acts = BTreeMap::new();
        for turn in 0..Arm::ALL.len() {
            let arm = *Arm::ALL.get((nth + turn) % Arm::ALL.len()).context("three arms")?;
            // What is kept ready for the next client is there again.
            ground.lab.wan()?.wait_flat(FLAT, PATIENCE)?;
            let mut given = None;
            let outcome = measure::act(&ground.lab, rtt, || {
                let (replies, session) = perform(ground, arm, reader, habit)?;
                given = Some(session);
                Ok(replies)
            })?;
            if let Outcome::Done(act) = outcome {
                acts.insert(arm, act);
            }
            let mut session = given.context("a start has a session")?;
            session.command("LOGOUT")?;
            row.given.entry(arm).or_default().merge(session.take_values());
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
        "cold-start-explicit: the emulator was late in every act; the machine is too busy to measure"
    );
    Ok(row)
}

fn perform(ground: &Ground, arm: Arm, reader: &str, habit: Habit) -> anyhow::Result<(Vec<Reply>, Session)> {
    let (address, user) = (arm.address(), ground.user(reader)?);
    let plain = ground.lab.inside(arm.place(), move || TcpStream::connect(address))?;
    let plain = plain.with_context(|| format!("{}: nothing accepts on {address}", arm.name()))?;
    let connected = Instant::now();
    let mut session = Session::over(plain, &ground.roots)?;
    let mut login = session.authenticate(&user.name, &user.password)?;
    // The clock starts with the connection.
    login.start = connected;
    let mut replies = vec![login, session.command("ID (\"name\" \"Thunderbird\" \"version\" \"153.7\")")?];
    replies.push(session.select(habit.mailbox())?);
    replies.push(session.command("UID FETCH 1:* (FLAGS)")?);
    Ok((replies, session))
}

/// More than enough to be known.
const LEARNED: usize = 4;
const FLAT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(120);
