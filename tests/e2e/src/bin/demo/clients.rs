//! The journeys of real clients, driven as a person drives them and timed by what passes the relay.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::arm::{Arm, COLD, Ground, READER};
use crate::mail::{self, Mail, WHOLE_OCTETS_MAX};
use crate::measure::{Act, LATE_MAX};
use crate::progress::Progress;
use crate::recording::{Command, Dialogue};
use crate::relay::Relay;
use crate::row::Row;
use crate::session::Session;
use crate::wire::Values;

/// A mail program at work.
pub(crate) trait Program: Sized {
    /// What the table calls it.
    const NAME: &'static str;
    /// Whether a start takes many seconds.
    const STARTS_SLOWLY: bool;
    /// Its place among the programs: each has misses of its own, which nobody before it has opened.
    const PLACE: usize;
    /// Starts it with an empty profile; its mail is behind this port of its own machine.
    fn start(ground: &Ground, arm: Arm, port: u16, mailbox: &str) -> anyhow::Result<Self>;
    /// What it shows in its list, by UID, where it can be asked.
    fn shown(&mut self) -> anyhow::Result<Vec<(u32, String)>> {
        Ok(Vec::new())
    }
    /// Makes it open a message.
    fn open(&mut self, mail: &Mail) -> anyhow::Result<()>;
    /// Ends it as a person does.
    fn end(self);
}

/// How often each act is done.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// Starts through the node before those that are timed.
    learned: usize,
    list: usize,
    hit: usize,
    unread: usize,
    miss: usize,
    attachment: usize,
}

impl Counts {
    /// For the full run, or for the quick one.
    const fn of(quick: bool, starts_slowly: bool) -> Self {
        if quick && starts_slowly {
            // Misses need three starts more.
            Self { learned: 0, list: 1, hit: 3, unread: 2, miss: 0, attachment: 1 }
        } else if quick {
            Self { learned: 0, list: 1, hit: 5, unread: 3, miss: 3, attachment: 1 }
        } else {
            Self { learned: 3, list: 3, hit: 20, unread: 10, miss: 10, attachment: 3 }
        }
    }
}

/// All journeys of one program, into `rows`; those that came to their end stay there if a later one fails.
pub(crate) fn all<P: Program>(
    ground: &Ground,
    quick: bool,
    progress: &Progress,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let counts = Counts::of(quick, P::STARTS_SLOWLY);
    let choice = Choice::of(ground, counts, P::PLACE)?;
    progress.begin(&format!("{}: fill the store", P::NAME), choice.inbox().count());
    let [list_cost, hit_cost, unread_cost, again_cost] = fill::<P>(ground, &choice, progress)?;

    let mut list = Row { filled_octets: list_cost, ..Row::new("list-500", P::NAME, "warm") };
    let mut control = Session::open(ground, Arm::Lan, READER, "INBOX")?;
    let mut desks = Vec::new();
    for round in 0..counts.learned {
        drop(Desk::<P>::start(ground, Arm::Waypost, "INBOX", format!("{}-known-{round}", P::NAME))?);
        ground.lab.wan()?.wait_flat(FLAT, PATIENCE)?;
    }
    let mut starts = Row::new("cold-start-explicit", P::NAME, "cold");
    starts.note = Some("round trips and WAN octets are those of the whole start".to_owned());
    progress.begin(&format!("{}: list, {} starts in each of three arms", P::NAME, counts.list), counts.list);
    for round in 0..counts.list {
        desks.clear();
        for mail in &choice.unread {
            control.command(&format!("UID STORE {} -FLAGS (\\Seen)", mail.uid))?;
        }
        desks = start_all::<P>(ground, "INBOX", &mut list, Some(&mut starts), round)?;
        progress.step();
    }
    if starts.n() > 0 {
        starts.given.clone_from(&list.given);
        rows.push(starts);
    }
    keep_row(rows, list);
    let parts = [
        ("open-hit", hit_cost, &choice.hits),
        ("open-hit-unread", unread_cost, &choice.unread),
        ("attachment-again", again_cost, &choice.attachments),
    ];
    for (name, filled_octets, messages) in parts {
        let mut row = Row { filled_octets, ..Row::new(name, P::NAME, "warm") };
        progress.begin(&format!("{}: {name}", P::NAME), messages.len());
        for (nth, mail) in messages.iter().enumerate() {
            let control = (name == "open-hit-unread").then_some(&mut control);
            open_in_all(ground, &mut desks, &mut row, mail, nth, control)?;
            progress.step();
        }
        keep_row(rows, row);
    }
    desks.clear();
    if choice.cold.is_empty() {
        return Ok(());
    }
    let mut miss = Row::new("open-miss", P::NAME, "cold");
    progress.begin(&format!("{}: open-miss", P::NAME), choice.cold.len());
    // The list of this mailbox is not timed.
    desks = start_all::<P>(ground, COLD, &mut Row::new("list-500", P::NAME, "cold"), None, 0)?;
    for (nth, mail) in choice.cold.iter().enumerate() {
        open_in_all(ground, &mut desks, &mut miss, mail, nth, None)?;
        progress.step();
    }
    keep_row(rows, miss);
    Ok(())
}

/// A row whose every act met a late emulator has nothing to say; what was not identical it does say.
fn keep_row(rows: &mut Vec<Row>, row: Row) {
    if row.n() > 0 || !row.comparison().differing.is_empty() {
        rows.push(row);
    }
}

/// Which messages are opened; none of them twice by the same process, whose own memory would answer.
struct Choice {
    hits: Vec<Mail>,
    unread: Vec<Mail>,
    attachments: Vec<Mail>,
    cold: Vec<Mail>,
}

impl Choice {
    fn of(ground: &Ground, counts: Counts, place: usize) -> anyhow::Result<Self> {
        let inbox = mail::of(&ground.corpus, ground.user(READER)?, "INBOX");
        let cold = mail::of(&ground.corpus, ground.user(READER)?, COLD);
        let small = |mail: &&Mail| mail.octets <= WHOLE_OCTETS_MAX;
        let pick = |keep: &dyn Fn(&Mail) -> bool, count| {
            let fitting: Vec<Mail> = inbox.iter().filter(|mail| keep(mail)).copied().collect();
            mail::spread(&fitting, count)
        };
        // From the end: the scripted client took its misses evenly, and these must still be missing.
        let mut missing: Vec<Mail> = cold.iter().filter(small).filter(|mail| mail.seen).copied().collect();
        missing.reverse();
        Ok(Self {
            hits: pick(&|mail| mail.seen && mail.octets <= WHOLE_OCTETS_MAX, counts.hit),
            unread: pick(&|mail| !mail.seen && mail.octets <= WHOLE_OCTETS_MAX, counts.unread),
            attachments: pick(
                &|mail| mail.seen && mail.attachment && (300_000..2_000_000).contains(&mail.octets),
                counts.attachment,
            ),
            cold: missing.into_iter().skip(place * counts.miss).take(counts.miss).collect(),
        })
    }

    fn inbox(&self) -> impl Iterator<Item = &Mail> {
        self.hits.iter().chain(&self.unread).chain(&self.attachments)
    }
}

/// A program with its relay, in one arm.
struct Desk<P: Program> {
    arm: Arm,
    relay: Relay,
    program: Option<P>,
    recordings: Option<std::path::PathBuf>,
    name: String,
}

impl<P: Program> Desk<P> {
    fn start(ground: &Ground, arm: Arm, mailbox: &str, name: String) -> anyhow::Result<(Self, Instant)> {
        let relay = Relay::start(ground, arm)?;
        let since = Instant::now();
        let program = P::start(ground, arm, relay.port, mailbox)?;
        let recordings = ground.recordings.as_ref().map(|directory| directory.join(arm.name()));
        let desk = Self { arm, relay, program: Some(program), recordings, name };
        desk.rest(ground, since)?;
        Ok((desk, since))
    }

    /// Waits until nothing has passed for longer than any answer takes.
    fn rest(&self, ground: &Ground, since: Instant) -> anyhow::Result<()> {
        let quiet = Duration::from_secs_f64(ground.link.rtt_ms * 2.0 / 1e3) + Duration::from_millis(150);
        let rested = self.relay.recording.wait_quiet(since, quiet, PATIENCE);
        rested.with_context(|| format!("{} {}", P::NAME, self.arm.name()))
    }

    /// What was said on all connections, together.
    fn dialogue(&self) -> anyhow::Result<Dialogue> {
        let mut all = Dialogue::default();
        for connection in self.relay.recording.connections() {
            let one = connection.read()?;
            all.commands.extend(one.commands);
            all.values.merge(one.values);
        }
        all.commands.sort_by_key(|command| command.reply.start);
        Ok(all)
    }

    /// From a connection to the flags of its mailbox, where the program asks for those: on the first that had them.
    fn start_act(&self) -> anyhow::Result<Option<Act>> {
        let mut first: Option<(Instant, f64)> = None;
        for connection in self.relay.recording.connections() {
            let flags = |command: &Command| {
                command.is("FETCH") && command.text.to_ascii_uppercase().ends_with("FETCH 1:* (FLAGS)")
            };
            let dialogue = connection.read()?;
            let asked = dialogue.commands.iter().find(|command| flags(command));
            let (Some(command), Some(began)) = (asked, connection.began()) else { continue };
            let end = command.reply.end;
            if first.is_none_or(|(before, _)| end < before) {
                first = Some((end, (end - began).as_secs_f64()));
            }
        }
        Ok(first.map(|(_, seconds)| Act { seconds, literal_seconds: seconds, ..Act::default() }))
    }

    /// Makes one act and finds its commands.
    fn act(
        &mut self,
        ground: &Ground,
        perform: impl FnOnce(&mut P) -> anyhow::Result<()>,
        part: impl Fn(&Command) -> bool,
    ) -> anyhow::Result<Option<Act>> {
        let wan = ground.lab.wan()?;
        wan.reset()?;
        let since = Instant::now();
        perform(self.program.as_mut().context("the program has ended")?)?;
        loop {
            self.rest(ground, since)?;
            let counters = wan.read()?;
            let mut commands = self.dialogue()?.commands;
            commands.retain(|command| command.reply.start >= since);
            let ours: Vec<&Command> = commands.iter().filter(|command| part(command)).collect();
            let unfinished = ours.last().is_some_and(|command| command.asks_for_more());
            if let Some(act) = act_of(&ours).filter(|_| !unfinished || since.elapsed() > ACT_PATIENCE) {
                let counted =
                    Act { round_trips: counters.round_trips(), wan_octets: counters.octets(), ..act };
                return Ok((counters.late_max() <= LATE_MAX).then_some(counted));
            }
            // It was busy with something else first.
            if since.elapsed() > ACT_PATIENCE {
                let said: Vec<&str> = commands.iter().map(|command| command.text.as_str()).collect();
                bail!("{} {}: the act did not come; it said {said:?}", P::NAME, self.arm.name());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl<P: Program> Drop for Desk<P> {
    fn drop(&mut self) {
        if let Some(program) = self.program.take() {
            program.end();
        }
        drop(self.relay.recording.finish(self.recordings.as_deref(), &self.name));
    }
}

/// From the first octet of the first command to the last of the last tagged OK.
fn act_of(commands: &[&Command]) -> Option<Act> {
    let start = commands.iter().map(|command| command.reply.start).min()?;
    let end = commands.iter().map(|command| command.reply.end).max()?;
    let literal = commands.iter().filter_map(|command| command.reply.literal).max().unwrap_or(end);
    let seconds = (end - start).as_secs_f64();
    Some(Act { seconds, literal_seconds: (literal - start).as_secs_f64(), ..Act::default() })
}

/// Fills the store through the node: the list, then each message. Returns what each part cost over the WAN.
fn fill<P: Program>(ground: &Ground, choice: &Choice, progress: &Progress) -> anyhow::Result<[u64; 4]> {
    let wan = ground.lab.wan()?;
    wan.reset()?;
    let (mut desk, _) = Desk::<P>::start(ground, Arm::Waypost, "INBOX", format!("{}-fill", P::NAME))?;
    wan.wait_flat(FLAT, PATIENCE)?;
    let mut costs = [wan.read()?.octets(), 0, 0, 0];
    for (cost, part) in costs.iter_mut().skip(1).zip([&choice.hits, &choice.unread, &choice.attachments]) {
        wan.reset()?;
        for mail in part {
            desk.act(ground, |program| program.open(mail), Command::opens)?;
            progress.step();
        }
        wan.wait_flat(FLAT, PATIENCE)?;
        *cost = wan.read()?.octets();
    }
    drop(desk);
    wan.wait_flat(FLAT, PATIENCE)?;
    Ok(costs)
}

/// Starts the program in every arm, one after the other, and notes how long each took to list.
fn start_all<P: Program>(
    ground: &Ground,
    mailbox: &str,
    row: &mut Row,
    starts: Option<&mut Row>,
    round: usize,
) -> anyhow::Result<Vec<Desk<P>>> {
    let wan = ground.lab.wan()?;
    let (mut desks, mut acts, mut began) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for turn in 0..Arm::ALL.len() {
        let arm = *Arm::ALL.get((round + turn) % Arm::ALL.len()).context("three arms")?;
        wan.reset()?;
        let name = format!("{}-{mailbox}-{round}", P::NAME);
        let (mut desk, since) = Desk::<P>::start(ground, arm, mailbox, name)?;
        let counters = wan.read()?;
        let dialogue = desk.dialogue()?;
        let lists =
            dialogue.commands.iter().filter(|command| command.reply.start >= since && command.lists());
        let mut commands: Vec<&Command> = lists.collect();
        // Up to the last header lines: later looks for new mail are not the list.
        let last = commands.iter().rposition(|command| command.reads_headers()).map_or(0, |nth| nth + 1);
        commands.truncate(last);
        let act = act_of(&commands).with_context(|| format!("{} listed nothing", P::NAME))?;
        if counters.late_max() <= LATE_MAX {
            let counted =
                |act| Act { round_trips: counters.round_trips(), wan_octets: counters.octets(), ..act };
            acts.insert(arm, counted(act));
            if let Some(start) = desk.start_act()? {
                began.insert(arm, counted(start));
            }
        }
        // It also fetches what nobody asked it for.
        let listed = |key: &str| key.contains("HEADER.FIELDS (") && key.contains("SUBJECT");
        row.given.entry(arm).or_default().merge(dialogue.values.only(&listed));
        // Right octets in an order that the program does not understand are no right list.
        let program = desk.program.as_mut().context("the program has ended")?;
        let mut shown = Values::default();
        for (uid, line) in program.shown()? {
            shown.insert(format!("{mailbox}/{uid}/shown"), line);
        }
        row.given.entry(arm).or_default().merge(shown);
        desks.push(desk);
    }
    keep(row, acts);
    if let Some(starts) = starts.filter(|_| !began.is_empty()) {
        keep(starts, began);
    }
    Ok(desks)
}

/// Opens one message in every arm, in an order that turns.
fn open_in_all<P: Program>(
    ground: &Ground,
    desks: &mut [Desk<P>],
    row: &mut Row,
    mail: &Mail,
    nth: usize,
    mut control: Option<&mut Session>,
) -> anyhow::Result<()> {
    let mut acts = BTreeMap::new();
    let count = desks.len();
    for turn in 0..count {
        let desk = desks.get_mut((nth + turn) % count.max(1)).context("three desks")?;
        if let Some(control) = control.as_deref_mut() {
            control.command(&format!("UID STORE {} -FLAGS (\\Seen)", mail.uid))?;
            // A client in IDLE hears of it now, not in its act.
            std::thread::sleep(Duration::from_secs_f64(ground.link.rtt_ms * 2.0 / 1e3));
        }
        let part = |command: &Command| command.opens() || command.is("STORE");
        if let Some(act) = desk.act(ground, |program| program.open(mail), part)? {
            acts.insert(desk.arm, act);
        }
        // In one piece or in chunks, as the program likes: it is the same message.
        let (mut opened, suffix) = (Values::default(), format!("/{}/BODY[]", mail.uid));
        for (key, digest) in desk.dialogue()?.values.digests() {
            let key = key.strip_suffix("<>").unwrap_or(&key);
            if key.ends_with(&suffix) {
                opened.insert(key.to_owned(), digest);
            }
        }
        row.given.entry(desk.arm).or_default().merge(opened);
    }
    keep(row, acts);
    Ok(())
}

/// The acts of one turn count together or not at all.
fn keep(row: &mut Row, acts: BTreeMap<Arm, Act>) {
    if acts.len() < Arm::ALL.len() {
        row.repeated += 1;
        return;
    }
    for (arm, act) in acts {
        row.acts.entry(arm).or_default().0.push(act);
    }
}

const FLAT: Duration = Duration::from_secs(2);
/// A person would have clicked again.
const ACT_PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(120);
