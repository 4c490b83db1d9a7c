//! The mail as it is, whoever asks: mailboxes, their generations, every message that ever was in one. What a
//! message's items must be is computed here and nowhere else, from what the message was made of.

use crate::random::Random;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// A message's octets and where its pieces lie, known because it was made so.
pub(crate) struct Content {
    pub(crate) octets: Vec<u8>,
    /// Stands in every piece of it.
    pub(crate) canary: String,
    header: usize,
    /// Part number, where its header begins, where its body begins, where it ends.
    parts: Vec<(usize, usize, usize)>,
}

/// What a UID means in one generation of one mailbox, for ever.
pub(crate) struct Message {
    pub(crate) content: Rc<Content>,
    pub(crate) date: String,
}

pub(crate) struct Live {
    pub(crate) uid: u32,
    pub(crate) flags: BTreeSet<String>,
    /// When it last changed (RFC 7162).
    pub(crate) modseq: u64,
}

/// One generation of a mailbox.
pub(crate) struct Mailbox {
    pub(crate) validity: u32,
    pub(crate) next_uid: u32,
    /// The highest; goes back when a backup is put in its place.
    pub(crate) modseq: u64,
    /// Whether it has any that lasts.
    pub(crate) has_modseq: bool,
    pub(crate) live: Vec<Live>,
}

/// A mailbox: its owner and its name; everybody's has the owner `*`.
pub(crate) type BoxName = (String, String);

/// A mailbox's generation and a UID in it.
pub(crate) type MessageId = (BoxName, u32, u32);

pub(crate) struct Mail {
    pub(crate) boxes: BTreeMap<BoxName, Mailbox>,
    pub(crate) history: BTreeMap<MessageId, Message>,
    /// The last moment at which a message was seen to have `\Seen`.
    pub(crate) last_seen: BTreeMap<MessageId, u64>,
    /// The flags that a message had, and up to when.
    earlier: BTreeMap<MessageId, Vec<(u64, BTreeSet<String>)>>,
    /// When a user lost the right to read the shared mailbox.
    pub(crate) revoked: BTreeMap<String, u64>,
    contents: u64,
    /// Counts everything that happens.
    pub(crate) tick: u64,
}

/// So high that it can be halved now and then.
const FIRST_MODSEQ: u64 = 1 << 20;

pub(crate) const USERS: [&str; 3] = ["alice", "bob", "carol"];
pub(crate) const BOXES: [&str; 4] = ["INBOX", "Work Stuff", "Trash", "Shared"];

impl Mail {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self::numbered(random, 0)
    }

    /// Its messages are numbered from `contents` on, so that two servers' can be told apart.
    pub(crate) fn numbered(random: &mut Random, contents: u64) -> Self {
        let mut mail = Self {
            boxes: BTreeMap::new(),
            history: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            earlier: BTreeMap::new(),
            revoked: BTreeMap::new(),
            contents,
            tick: 0,
        };
        for user in USERS {
            for name in BOXES {
                mail.create(&box_of(user, name));
            }
        }
        for _ in 0..30 {
            mail.arrive(random);
        }
        mail
    }

    /// A mailbox, empty, in a new generation.
    pub(crate) fn create(&mut self, name: &BoxName) {
        // Servers that take the time for it give many mailboxes the same.
        let validity = self.boxes.get(name).map_or(1, |before| before.validity + 1);
        let mailbox =
            Mailbox { validity, next_uid: 1, modseq: FIRST_MODSEQ, has_modseq: true, live: Vec::new() };
        self.boxes.insert(name.clone(), mailbox);
    }

    /// New mail, the same for one user or for several.
    pub(crate) fn arrive(&mut self, random: &mut Random) {
        self.contents += 1;
        let content = Rc::new(Content::new(random, self.contents));
        for user in USERS {
            if random.once_in(2) {
                let name = *random.pick(&["INBOX", "INBOX", "INBOX", "Work Stuff", "Shared"]);
                self.add(&box_of(user, name), content.clone(), random);
            }
        }
    }

    /// New mail for one mailbox.
    pub(crate) fn arrive_in(&mut self, name: &BoxName, random: &mut Random) {
        self.contents += 1;
        let content = Rc::new(Content::new(random, self.contents));
        self.add(name, content, random);
    }

    pub(crate) fn add(&mut self, name: &BoxName, content: Rc<Content>, random: &mut Random) -> u32 {
        let mailbox = self.boxes.get_mut(name).unwrap();
        // UIDs have gaps.
        let uid = mailbox.next_uid + u32::try_from(random.below(3)).unwrap();
        mailbox.next_uid = uid + 1;
        let mut flags = BTreeSet::from([identity_flag(name, mailbox.validity, uid)]);
        if random.once_in(3) {
            flags.insert("\\Seen".into());
        }
        mailbox.modseq += 1;
        mailbox.live.push(Live { uid, flags, modseq: mailbox.modseq });
        let date = format!(
            "{:02}-Jul-{:04} 02:44:25 -0700",
            uid % 28 + 1,
            1000 + place_of(name) * 100 + mailbox.validity % 100
        );
        self.history.insert((name.clone(), mailbox.validity, uid), Message { content, date });
        uid
    }

    pub(crate) fn expunge(&mut self, name: &BoxName, uid: u32) {
        self.note_seen(name, uid);
        let mailbox = self.boxes.get_mut(name).unwrap();
        mailbox.modseq += 1;
        mailbox.live.retain(|message| message.uid != uid);
    }

    pub(crate) fn live(&self, name: &BoxName, uid: u32) -> Option<&Live> {
        self.boxes.get(name)?.live.iter().find(|message| message.uid == uid)
    }

    /// Whether this very message is there: another generation of its mailbox may have one of the same UID.
    pub(crate) fn lives(&self, (name, validity, uid): &MessageId) -> bool {
        let now = self.boxes.get(name).filter(|mailbox| mailbox.validity == *validity);
        now.is_some_and(|mailbox| mailbox.live.iter().any(|message| message.uid == *uid))
    }

    pub(crate) fn set_flag(&mut self, name: &BoxName, uid: u32, flag: &str, on: bool) {
        self.note_seen(name, uid);
        let mailbox = self.boxes.get_mut(name).unwrap();
        if let Some(message) = mailbox.live.iter_mut().find(|message| message.uid == uid) {
            let before = message.flags.clone();
            let changed = if on { message.flags.insert(flag.to_owned()) } else { message.flags.remove(flag) };
            if changed {
                mailbox.modseq += 1;
                message.modseq = mailbox.modseq;
                let id = (name.clone(), mailbox.validity, uid);
                self.earlier.entry(id).or_default().push((self.tick, before));
            }
        }
        self.note_seen(name, uid);
    }

    /// As after a repair: what is left counts as never changed, in a mailbox that has seen much.
    pub(crate) fn rebuild(&mut self, name: &BoxName) {
        let mailbox = self.boxes.get_mut(name).unwrap();
        mailbox.modseq = 2 * FIRST_MODSEQ;
        mailbox.live.truncate(1);
        mailbox.live.iter_mut().for_each(|message| message.modseq = 1);
    }

    /// A backup takes its place that is older than what was said of it, and has lived on since.
    pub(crate) fn restore(&mut self, name: &BoxName) {
        let mailbox = self.boxes.get_mut(name).unwrap();
        if mailbox.modseq < FIRST_MODSEQ / 64 {
            return;
        }
        // So far that it never comes to where it was.
        mailbox.modseq /= 2;
        let modseq = mailbox.modseq;
        let uids: Vec<u32> = mailbox
            .live
            .iter_mut()
            .map(|message| {
                message.modseq = modseq;
                message.uid
            })
            .collect();
        for uid in uids.into_iter().step_by(2) {
            let on = !self.live(name, uid).is_some_and(|message| message.flags.contains("\\Flagged"));
            self.set_flag(name, uid, "\\Flagged", on);
        }
    }

    /// Whether a message has these flags, or had them at some moment since `since`.
    pub(crate) fn had_flags_since(&self, id: &MessageId, flags: &BTreeSet<String>, since: u64) -> bool {
        let now = self.live(&id.0, id.2).is_some_and(|message| message.flags == *flags);
        let had = |(until, had): &(u64, BTreeSet<String>)| *until >= since && had == flags;
        now || self.earlier.get(id).is_some_and(|earlier| earlier.iter().rev().any(had))
    }

    fn note_seen(&mut self, name: &BoxName, uid: u32) {
        let validity = self.boxes[name].validity;
        if self.live(name, uid).is_some_and(|message| message.flags.contains("\\Seen")) {
            self.last_seen.insert((name.clone(), validity, uid), self.tick);
        }
    }

    /// Whether the message has `\Seen`, or had it at some moment since `since`.
    pub(crate) fn was_seen_since(&self, id: &MessageId, since: u64) -> bool {
        let now = self.live(&id.0, id.2).is_some_and(|message| message.flags.contains("\\Seen"));
        now || self.last_seen.get(id).is_some_and(|at| *at >= since)
    }
}

/// A keyword that says which message the flags belong to.
pub(crate) fn identity_flag(name: &BoxName, validity: u32, uid: u32) -> String {
    format!("$m{}-{validity}-{uid}", place_of(name))
}

/// A number for a mailbox.
fn place_of((owner, name): &BoxName) -> u32 {
    let place = |known: &[&str], text: &str| known.iter().position(|k| *k == text).map_or(9, |at| at + 1);
    u32::try_from(place(&USERS, owner) * 10 + place(&BOXES, name)).unwrap()
}

pub(crate) fn box_of(user: &str, name: &str) -> BoxName {
    let owner = if name == "Shared" { "*" } else { user };
    (owner.to_owned(), name.to_owned())
}

impl Content {
    fn new(random: &mut Random, n: u64) -> Self {
        let canary = format!("canary-{n:06}");
        let lines = match random.below(40) {
            0 => 9_000,
            1..=4 => 400,
            _ => random.below(20),
        };
        let text = |lines: usize| format!("{canary} text of it {{5}}\r\n").repeat(lines);
        let odd = *random.pick(&["plain", "with {20}", "a \\\" quote", "(parens"]);
        let mut message = format!("From: <{canary}@x>\r\nSubject: {canary} {odd}\r\nX-Odd: 1\r\n");
        let mut parts = Vec::new();
        let header;
        if random.once_in(3) {
            message += "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b1\"\r\n\r\n";
            header = message.len();
            for part in 0..2 {
                message += "--b1\r\n";
                let start = message.len();
                message += &format!("Content-Type: text/plain; name=\"{canary}-{part}\"\r\n\r\n");
                let body = message.len();
                message += &text(lines / 2);
                parts.push((start, body, message.len()));
                message += "\r\n";
            }
            message += "--b1--\r\n";
        } else {
            message += "\r\n";
            header = message.len();
            message += &text(lines);
        }
        Self { octets: message.into_bytes(), canary, header, parts }
    }

    /// A section's octets; `None` if there is no such section.
    pub(crate) fn section(&self, spec: &str) -> Option<Vec<u8>> {
        let spec = spec.to_ascii_uppercase();
        let part = |n: usize| self.parts.get(n);
        Some(match spec.as_str() {
            "" => self.octets.clone(),
            "HEADER" => self.octets[..self.header].to_vec(),
            "TEXT" => self.octets[self.header..].to_vec(),
            "1" if self.parts.is_empty() => self.octets[self.header..].to_vec(),
            "1" => part(0).map(|(_, body, end)| self.octets[*body..*end].to_vec())?,
            "2" => part(1).map(|(_, body, end)| self.octets[*body..*end].to_vec())?,
            "2.MIME" => part(1).map(|(start, body, _)| self.octets[*start..*body].to_vec())?,
            _ => {
                let names = spec.strip_prefix("HEADER.FIELDS (")?.strip_suffix(')')?;
                let header = String::from_utf8(self.octets[..self.header].to_vec()).unwrap();
                let named = |line: &&str| {
                    let name = line.split(':').next().unwrap().to_ascii_uppercase();
                    names.split(' ').any(|wanted| wanted == name)
                };
                let lines: String = header.split_inclusive("\r\n").filter(named).collect();
                (lines + "\r\n").into_bytes()
            }
        })
    }

    pub(crate) fn envelope(&self) -> String {
        let name = &self.canary;
        let nil = "NIL NIL NIL NIL NIL NIL";
        if self.octets.len().is_multiple_of(5) {
            let subject = format!("{name} a {{3}} \"b");
            format!("(NIL {{{}}}\r\n{subject} {nil} NIL \"<{name}>\")", subject.len())
        } else {
            format!("(NIL \"{name} {{20}} (\" {nil} NIL \"<{name}>\")")
        }
    }

    pub(crate) fn structure(&self) -> String {
        format!(
            "(\"TEXT\" \"PLAIN\" (\"NAME\" \"{}\") NIL NIL \"7BIT\" {} 1)",
            self.canary,
            self.octets.len()
        )
    }
}
