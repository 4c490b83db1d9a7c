//! `cold-start-explicit`: from the connection to the flags of INBOX, command by command as Thunderbird begins; and
//! `cold-start`, the same with both nodes on the path of a client that knows of none.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::arm::{Arm, Ground, READER};
use crate::measure::{self, Outcome};
use crate::progress::Progress;
use crate::row::Row;
use crate::session::{Reply, Session};
use crate::stats;

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
    let row = Row::new("cold-start-explicit", &client, "cold");
    fill(ground, row, reader, habit, n, progress)
}

/// `cold-start`: the client is configured with the server's own address, and both nodes are on its path.
pub(crate) fn on_path(ground: &Ground, n: usize, progress: &Progress) -> anyhow::Result<Row> {
    // The two find each other, and the client becomes known where somebody remembers clients.
    for _ in 0..LEARNED {
        perform(ground, Arm::Pair, READER, Habit::Known)?.1.command("LOGOUT")?;
        ground.line_of(Arm::Pair)?.wait_flat(FLAT_LINK, PATIENCE)?;
    }
    let carried = ground.carried()?;
    let row =
        fill(ground, Row::on_path("cold-start", "scripted", "cold"), READER, Habit::Known, n, progress)?;
    let carried = ground.carried()? - carried;
    ensure!(carried >= u64::try_from(n)?, "only {carried} of {n} starts went through the pair");
    // Who ends TLS is seen in the certificate.
    let shown = |arm| Ok::<_, anyhow::Error>(perform(ground, arm, READER, Habit::Known)?.1.shown());
    let as_octets = shown(Arm::Pair)? == shown(Arm::Direct)?;
    let note = if as_octets {
        AS_OCTETS.to_owned()
    } else {
        format!("to reach: the time of {ROUND_TRIPS_MAX} round trips behind the connection")
    };
    Ok(Row { as_octets, note: Some(note), ..row })
}

/// Why a `cold-start` that the branch's node serves is too slow. By the clock: what the two nodes say to each other
/// beside it would count as a round trip.
pub(crate) fn over_the_gate(row: &Row, rtt_ms: f64) -> Option<String> {
    if row.name != "cold-start" || row.as_octets {
        return None;
    }
    let took = stats::median(&row.acts(row.ours).seconds()) * 1e3 / rtt_ms.max(1.0);
    (took > ROUND_TRIPS_MAX).then(|| {
        format!("{took:.2} round trips of time behind the connection, {ROUND_TRIPS_MAX} are allowed")
    })
}

/// Behind the connection; the server's word about the login is one.
const ROUND_TRIPS_MAX: f64 = 1.5;
const AS_OCTETS: &str = "the pair carried the mail as octets, for the client was shown the server's own certificate: \
    no mail cache was on this path, and nothing was to be reached";

fn fill(
    ground: &Ground,
    mut row: Row,
    reader: &str,
    habit: Habit,
    n: usize,
    progress: &Progress,
) -> anyhow::Result<Row> {
    progress.begin(&format!("{}, {}: {n} starts in each of three arms", row.name, row.client), n);
    let arms = if row.ours == Arm::Pair { Arm::ON_PATH } else { Arm::ALL };
    let rtt = Duration::from_secs_f64(ground.link.rtt_ms / 1e3);
    // The first is only once the first.
    let attempts = if habit == Habit::First { n } else { n * 2 };
    for nth in 0..attempts {
        if row.n() == n {
            break;
        }
        let mut acts = BTreeMap::new();
        for turn in 0..arms.len() {
            let arm = *arms.get((nth + turn) % arms.len()).context("three arms")?;
            // What is kept ready for the next client is there again.
            let line = ground.line_of(arm)?;
            line.wait_flat(if arm == Arm::Pair { FLAT_LINK } else { FLAT }, PATIENCE)?;
            let mut given = None;
            let outcome = measure::act_over(line, rtt, || {
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
        if acts.len() < arms.len() {
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
        "{}: the emulator was late in every act; the machine is too busy to measure",
        row.name
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
/// Two nodes ask each other each second whether they live.
const FLAT_LINK: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(120);
