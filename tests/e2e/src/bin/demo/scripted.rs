//! The journeys of the scripted client. It is the precise one: no program of its own between the act and the clock.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::clients::Act;
use lab::rng::Rng;

use crate::arm::{Arm, COLD, Ground, LISTED, READER};
use crate::mail::{self, Mail, WHOLE_OCTETS_MAX};
use crate::measure::{self, Outcome};
use crate::progress::Progress;
use crate::relay::Relay;
use crate::row::Row;
use crate::session::{Reply, Session};
use crate::tamper::{self, Tamper};

/// How often each act is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) list: usize,
    pub(crate) hit: usize,
    pub(crate) unread: usize,
    pub(crate) miss: usize,
    pub(crate) chunked_miss: usize,
    pub(crate) attachment: usize,
}

impl Counts {
    /// For the full run, or for the quick one.
    pub(crate) const fn of(quick: bool) -> Self {
        if quick {
            Self { list: 5, hit: 20, unread: 10, miss: 10, chunked_miss: 3, attachment: 2 }
        } else {
            Self { list: 30, hit: 200, unread: 200, miss: 60, chunked_miss: 10, attachment: 8 }
        }
    }
}

/// All journeys of the scripted client.
pub(crate) fn all(
    ground: &Ground,
    counts: Counts,
    tamper: Option<Tamper>,
    progress: &Progress,
) -> anyhow::Result<Vec<Row>> {
    let inbox = mail::of(&ground.corpus, ground.user(READER)?, "INBOX");
    let cold = mail::of(&ground.corpus, ground.user(READER)?, COLD);
    let small = |mail: &&Mail| mail.octets <= WHOLE_OCTETS_MAX;
    let seen: Vec<Mail> = inbox.iter().filter(small).filter(|mail| mail.seen).copied().collect();
    let unread: Vec<Mail> = inbox.iter().filter(small).filter(|mail| !mail.seen).copied().collect();
    let cold_small: Vec<Mail> = cold.iter().filter(small).copied().collect();
    let chunked = |mail: &&Mail| (200_000..700_000).contains(&mail.octets);
    let cold_large: Vec<Mail> = cold.iter().filter(chunked).copied().collect();
    let attached = |mail: &&Mail| mail.attachment && (300_000..2_000_000).contains(&mail.octets);
    let attached: Vec<Mail> = inbox.iter().filter(attached).copied().collect();

    let mut rows = Vec::new();
    let list = Journey::new("list-500", "warm", "INBOX", counts.list);
    rows.push(list.warm(ground, progress, &[()], &mut List)?);
    let hit = Journey { tamper, ..Journey::new("open-hit", "warm", "INBOX", counts.hit) };
    rows.push(hit.warm(ground, progress, &mail::spread(&seen, counts.hit), &mut Open)?);
    let hit = Journey::new("open-hit-unread", "warm", "INBOX", counts.unread);
    let messages = mail::spread(&unread, counts.unread);
    let mut deed = OpenUnread { control: Session::open(ground, Arm::Lan, READER, "INBOX")?, filling: true };
    rows.push(hit.warm(ground, progress, &messages, &mut deed)?);
    let again = Journey::new("attachment-again", "warm", "INBOX", counts.attachment);
    rows.push(again.warm(ground, progress, &mail::spread(&attached, counts.attachment), &mut Attachment)?);
    let miss = Journey::new("open-miss", "cold", COLD, counts.miss);
    rows.push(miss.cold(ground, progress, &cold_small, &mut Open)?);
    let miss = Journey {
        client: "scripted, chunks",
        ..Journey::new("open-miss", "cold", COLD, counts.chunked_miss)
    };
    rows.push(miss.cold(ground, progress, &cold_large, &mut OpenInChunks)?);
    cross_check(ground, progress, &mut rows)?;
    Ok(rows)
}

/// Has another client, which shares no code with this one, fetch a few of the messages in every arm, and holds its
/// digests against ours.
fn cross_check(ground: &Ground, progress: &Progress, rows: &mut [Row]) -> anyhow::Result<()> {
    let Some(row) = rows.iter_mut().find(|row| row.name == "open-hit") else { return Ok(()) };
    let ours = row.given.get(&Arm::Direct).map(|values| values.digests()).unwrap_or_default();
    let keys: Vec<&String> = ours.keys().filter(|key| key.ends_with("/BODY[]")).collect();
    let mut rng = Rng::new(u64::from(std::process::id()));
    let keys: Vec<&String> = (0..CROSS_CHECKED).filter_map(|_| rng.pick(&keys).copied()).collect();
    progress.begin("open-hit: some of it again with a second client", Arm::ALL.len());
    for arm in Arm::ALL {
        let relay = Relay::start(ground, arm)?;
        let account = ground.account_at(READER, relay.port)?;
        let mut act = Act::new("cross-check", &["SELECT INBOX", "UID FETCH 1:* (FLAGS)"]);
        let uids = keys.iter().filter_map(|key| key.split('/').nth(1));
        act.commands.extend(uids.map(|uid| format!("UID FETCH {uid} (UID BODY.PEEK[])")));
        let report = lab::clients::scripted(&ground.lab, arm.place(), &account, &[act])?;
        for key in &keys {
            if report.digest.get(*key) != ours.get(*key) {
                row.faults
                    .push(format!("{}: a second client was given something else for {key}", arm.name()));
            }
        }
        progress.step();
    }
    Ok(())
}

const CROSS_CHECKED: usize = 3;

/// What is done to each item of a journey.
trait Deed<Item> {
    /// Called once, when the store is full.
    fn filled(&mut self) {}
    /// What a client must know of a message before it can do the act; also while the store is filled.
    fn acquaint(&mut self, _session: &mut Session, _item: &Item) -> anyhow::Result<()> {
        Ok(())
    }
    /// Before the clock starts.
    fn before(&mut self, _session: &mut Session, _item: &Item) -> anyhow::Result<()> {
        Ok(())
    }
    /// The act.
    fn perform(&mut self, session: &mut Session, item: &Item) -> anyhow::Result<Vec<Reply>>;
    /// Behind the clock; tells what is wrong.
    fn after(&mut self, _item: &Item) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
}

struct Journey {
    name: &'static str,
    client: &'static str,
    warmth: &'static str,
    mailbox: &'static str,
    n: usize,
    tamper: Option<Tamper>,
}

impl Journey {
    const fn new(name: &'static str, warmth: &'static str, mailbox: &'static str, n: usize) -> Self {
        Self { name, client: "scripted", warmth, mailbox, n, tamper: None }
    }

    /// Fills the store through the node, waits until nothing moves, then times.
    fn warm<Item>(
        &self,
        ground: &Ground,
        progress: &Progress,
        items: &[Item],
        deed: &mut impl Deed<Item>,
    ) -> anyhow::Result<Row> {
        progress.begin(&format!("{}: fill the store", self.name), items.len());
        let wan = ground.lab.wan()?;
        wan.reset()?;
        let mut session = Session::open(ground, Arm::Waypost, READER, self.mailbox)?;
        for item in items {
            deed.acquaint(&mut session, item)?;
            deed.perform(&mut session, item)?;
            progress.step();
        }
        drop(session);
        // Two seconds without payload: whatever the node still compares or fetches is done.
        wan.wait_flat(FLAT, PATIENCE)?;
        let filled_octets = wan.read()?.octets();
        if self.tamper == Some(Tamper::Store) {
            self.flip_stored(ground, progress)?;
        }
        deed.filled();
        let repeated: Vec<&Item> = items.iter().cycle().take(self.n * 2).collect();
        let mut row = self.time(ground, progress, &repeated, deed)?;
        row.filled_octets = filled_octets;
        if self.tamper == Some(Tamper::Store) {
            self.look_for_the_flip(ground, &mut row);
        }
        Ok(row)
    }

    fn flip_stored(&self, ground: &Ground, progress: &Progress) -> anyhow::Result<()> {
        let reader = ground.user(READER)?;
        let small = |octets: usize| octets > 1_000 && octets <= WHOLE_OCTETS_MAX;
        let mut filled = ground.corpus.messages(reader, self.mailbox).filter(|message| message.seen);
        let message = filled.find(|message| small(message.octets.len())).context("no message to damage")?;
        let file = tamper::flip_stored(&ground.waypost.store(), &message.octets)?;
        progress.say(&format!("one octet was flipped in {}", file.display()));
        Ok(())
    }

    fn look_for_the_flip(&self, ground: &Ground, row: &mut Row) {
        let refetched = row.acts(Arm::Waypost).0.iter().filter(|act| act.round_trips > 0).count();
        let aside = tamper::quarantined(&ground.waypost.store());
        if refetched == 0 || aside == 0 {
            row.faults.push(format!(
                "the flipped octet was not noticed: {refetched} acts asked the server again, {aside} bodies were moved aside"
            ));
        }
        row.flipped = true;
        row.note = Some(format!(
            "one stored octet was flipped: {aside} damaged bodies moved aside, {refetched} acts asked the server again"
        ));
    }

    /// Times at once: nobody has asked for these messages yet, and each can be asked for once.
    fn cold<Item>(
        &self,
        ground: &Ground,
        progress: &Progress,
        items: &[Item],
        deed: &mut impl Deed<Item>,
    ) -> anyhow::Result<Row> {
        self.time(ground, progress, &items.iter().collect::<Vec<_>>(), deed)
    }

    /// Interleaved: each item in each arm, in an order that turns. If the emulator was late in one arm, the item
    /// counts in none.
    fn time<Item>(
        &self,
        ground: &Ground,
        progress: &Progress,
        items: &[&Item],
        deed: &mut impl Deed<Item>,
    ) -> anyhow::Result<Row> {
        progress.begin(&format!("{}: {} acts in each of three arms", self.name, self.n), self.n);
        let mut row = Row::new(self.name, self.client, self.warmth);
        let mut sessions = BTreeMap::new();
        for arm in Arm::ALL {
            sessions.insert(arm, Session::open(ground, arm, READER, self.mailbox)?);
        }
        ground.lab.wan()?.wait_flat(FLAT, PATIENCE)?;
        let rtt = Duration::from_secs_f64(ground.link.rtt_ms / 1e3);
        for (nth, item) in items.iter().enumerate() {
            if row.n() == self.n {
                break;
            }
            let mut acts = BTreeMap::new();
            for turn in 0..Arm::ALL.len() {
                let arm = *Arm::ALL.get((nth + turn) % Arm::ALL.len()).context("three arms")?;
                let session = sessions.get_mut(&arm).context("three sessions")?;
                deed.acquaint(session, item)?;
                deed.before(session, item)?;
                if nth == 0 && arm == Arm::Waypost && self.tamper == Some(Tamper::Client) {
                    session.flip_next_literal();
                }
                if let Outcome::Done(act) = measure::act(&ground.lab, rtt, || deed.perform(session, item))? {
                    acts.insert(arm, act);
                }
                if let Some(fault) = deed.after(item)? {
                    row.faults.push(format!("{}: {fault}", arm.name()));
                }
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
            "{}: the emulator was late in every act; the machine is too busy to measure",
            self.name
        );
        for (arm, mut session) in sessions {
            // The last word on flags, after everybody's acts.
            session.command("NOOP")?;
            session.command("UID FETCH 1:* (FLAGS)")?;
            row.given.insert(arm, session.take_values());
        }
        Ok(row)
    }
}

const FLAT: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(120);

/// Flags and header lines of every message, as Thunderbird asks for them.
struct List;

impl Deed<()> for List {
    fn perform(&mut self, session: &mut Session, (): &()) -> anyhow::Result<Vec<Reply>> {
        let headers = format!(
            "UID FETCH 1:{LISTED} (UID RFC822.SIZE FLAGS BODY.PEEK[HEADER.FIELDS (From To Cc Bcc Subject Date \
             Message-ID Priority X-Priority References Newsgroups In-Reply-To Content-Type Reply-To Received)])"
        );
        Ok(vec![session.command(&format!("UID FETCH 1:{LISTED} (FLAGS)"))?, session.command(&headers)?])
    }
}

/// A whole message, without marking it as read.
struct Open;

impl Deed<Mail> for Open {
    fn perform(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<Vec<Reply>> {
        Ok(vec![session.command(&format!("UID FETCH {} (UID BODY.PEEK[])", mail.uid))?])
    }
}

/// A whole unread message, which the server marks as read before it says OK.
struct OpenUnread {
    /// On the server's own network: sets the mark back, and looks whether it was really set.
    control: Session,
    filling: bool,
}

impl Deed<Mail> for OpenUnread {
    fn filled(&mut self) {
        self.filling = false;
    }

    fn before(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<()> {
        self.control.command(&format!("UID STORE {} -FLAGS (\\Seen)", mail.uid))?;
        // The client hears that it is unread, as one does who sees it in bold.
        session.command("NOOP").map(drop)
    }

    fn perform(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<Vec<Reply>> {
        let body = if self.filling { "BODY.PEEK[]" } else { "BODY[]" };
        Ok(vec![session.command(&format!("UID FETCH {} (UID {body})", mail.uid))?])
    }

    fn after(&mut self, mail: &Mail) -> anyhow::Result<Option<String>> {
        drop(self.control.take_values());
        self.control.command("NOOP")?;
        self.control.command(&format!("UID FETCH {} (FLAGS)", mail.uid))?;
        let values = self.control.take_values();
        let flags = values.flags().get(&format!("INBOX/{}", mail.uid)).cloned().unwrap_or_default();
        let missing = !flags.split(' ').any(|flag| flag == "\\Seen");
        Ok(missing
            .then(|| format!("OK for message {} although the server has not marked it as read", mail.uid)))
    }
}

/// An attachment, chunk by chunk.
struct Attachment;

impl Deed<Mail> for Attachment {
    fn acquaint(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<()> {
        structure(session, mail)
    }

    fn perform(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<Vec<Reply>> {
        in_chunks(session, mail.uid, "BODY.PEEK[2]")
    }
}

/// A large message, chunk by chunk.
struct OpenInChunks;

impl Deed<Mail> for OpenInChunks {
    fn acquaint(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<()> {
        structure(session, mail)
    }

    fn perform(&mut self, session: &mut Session, mail: &Mail) -> anyhow::Result<Vec<Reply>> {
        in_chunks(session, mail.uid, "BODY.PEEK[]")
    }
}

/// Nobody asks for a part, or for chunks, of a message whose structure and size he does not know.
fn structure(session: &mut Session, mail: &Mail) -> anyhow::Result<()> {
    session.command(&format!("UID FETCH {} (UID RFC822.SIZE BODYSTRUCTURE)", mail.uid)).map(drop)
}

fn in_chunks(session: &mut Session, uid: u32, section: &str) -> anyhow::Result<Vec<Reply>> {
    let (mut replies, mut offset) = (Vec::new(), 0);
    loop {
        let reply = session.command(&format!("UID FETCH {uid} (UID {section}<{offset}.{CHUNK_OCTETS}>)"))?;
        let octets = reply.literal_octets;
        replies.push(reply);
        if octets < CHUNK_OCTETS {
            return Ok(replies);
        }
        offset += octets;
    }
}

/// As Thunderbird begins.
const CHUNK_OCTETS: usize = 65_536;
