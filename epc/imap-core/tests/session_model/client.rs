//! A mail reader that believes every number it hears, and holds each word against the mail as it is and against what
//! the origin has said to this very session. A lie is an error, in words.

use crate::{
    mail::{BoxName, Content, Mail, MessageId, box_of, identity_flag},
    origin::{Manner, Mark, Origin, label, section_octets, sets_seen},
    random::Random,
    wire::{Value, message_end, numbers, text, words},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

/// What the session can know of its origin: everything that has reached it.
#[derive(Default)]
pub(crate) struct Reached {
    named: BTreeSet<MessageId>,
    expunged: BTreeMap<MessageId, u64>,
    /// When the origin itself last gave sections of it.
    sections: BTreeMap<MessageId, Duration>,
    completed: BTreeMap<String, bool>,
    /// Answers to commands that the session sent ahead, by what they asked, oldest first.
    ahead: BTreeMap<String, VecDeque<bool>>,
    /// The messages that it said have `\\Seen`, and when it last took that back.
    seen: BTreeSet<MessageId>,
    unseen: BTreeMap<MessageId, u64>,
}

impl Reached {
    pub(crate) fn has_completed(&self, tag: &str) -> bool {
        self.completed.contains_key(tag)
    }

    pub(crate) fn take(&mut self, mark: Mark, clock: Duration, tick: u64) {
        match mark {
            Mark::Flags { id, seen: true } => drop(self.seen.insert(id)),
            Mark::Flags { id, seen: false } => {
                if self.seen.remove(&id) {
                    self.unseen.insert(id, tick);
                }
            }
            Mark::Spoke { id, sections } => {
                if sections {
                    self.sections.insert(id.clone(), clock);
                }
                self.named.insert(id);
            }
            Mark::Named(id) => drop(self.named.insert(id)),
            Mark::Expunged(id) => drop(self.expunged.insert(id, tick)),
            Mark::Completed { tag, ok, asked } => {
                if tag.starts_with(OURS) {
                    // Asked in other words, to the same end.
                    let words = [" (CONDSTORE)", " (CHANGEDSINCE "];
                    let end = words.iter().find_map(|words| asked.find(words)).unwrap_or(asked.len());
                    self.ahead.entry(asked[..end].to_owned()).or_default().push_back(ok);
                }
                self.completed.insert(tag, ok);
            }
            Mark::Nothing => {}
        }
    }
}

/// What a client's words are held against.
pub(crate) struct Truth<'a> {
    pub(crate) mail: &'a Mail,
    pub(crate) origin: &'a Origin,
    pub(crate) reached: &'a Reached,
    pub(crate) clock: Duration,
    pub(crate) re_proof: Duration,
    /// When this user lost the shared mailbox.
    pub(crate) revoked: Option<Duration>,
    /// When the session said what the client hears now: a body that comes slowly comes later.
    pub(crate) said: u64,
}

#[derive(Clone, Debug)]
struct Asked {
    tag: String,
    /// The command without its tag.
    line: String,
    what: What,
    issued: u64,
    at: Duration,
}

#[derive(Clone, Debug)]
enum What {
    /// `then`: what it says at each `+`.
    Login {
        user: String,
        then: VecDeque<String>,
    },
    Select {
        name: String,
        examine: bool,
        count: Option<usize>,
        validity: Option<u32>,
    },
    Fetch(Fetch),
    /// STORE, COPY, MOVE: which UIDs are meant, as far as known.
    Act {
        by_number: bool,
        meant: Option<Vec<u32>>,
    },
    /// `within`: the UIDs of the numbers it names, where they are all known.
    Search {
        by_number: bool,
        results: Option<Vec<u32>>,
        msns: bool,
        within: Option<Vec<u32>>,
    },
    Idle {
        listening: bool,
        done: bool,
    },
    /// Waits for `+`; then these octets.
    Append {
        octets: Vec<u8>,
    },
    Close,
    Logout,
    Other,
}

#[derive(Clone, Debug)]
struct Fetch {
    uid_form: bool,
    numbers: Vec<u32>,
    items: Vec<String>,
    /// UIDs that the client knew when it asked.
    known: Vec<u32>,
    got: BTreeMap<(u32, String), usize>,
    alone: bool,
}

pub(crate) struct Client {
    pub(crate) user: String,
    authenticated: bool,
    /// When it asked to be let in, and whether it has opened nothing since.
    came: (u64, bool),
    open: Option<Open>,
    asked: VecDeque<Asked>,
    tags: u64,
    input: Vec<u8>,
    pub(crate) said_bye: bool,
    pub(crate) logged_out: bool,
    pub(crate) replies: u64,
    pub(crate) from_store: u64,
    /// Answers to what was asked ahead of it, by the command.
    used: BTreeMap<String, usize>,
    pub(crate) told_ahead: u64,
    /// What it always says first.
    habit: VecDeque<&'static str>,
    /// Lines without a tag that it has said by mistake, and not been told off for.
    mistakes: usize,
}

struct Open {
    name: BoxName,
    validity: u32,
    read_only: bool,
    /// Which message each number means, once that is known.
    view: Vec<Option<u32>>,
    flags: BTreeMap<u32, BTreeSet<String>>,
    /// The earliest moment of which the origin may have spoken.
    since: u64,
}

#[path = "habits.rs"]
#[allow(dead_code, reason = "the simulator's clients have habits")]
mod habits;

#[allow(unused_imports, reason = "as above")]
pub(crate) use habits::Habit;

/// How tags of the session's own begin.
pub(crate) const OURS: &str = "EPC010203040506";

type Lie = String;

impl Client {
    pub(crate) fn new(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            authenticated: false,
            came: (0, true),
            open: None,
            asked: VecDeque::new(),
            tags: 0,
            input: Vec::new(),
            said_bye: false,
            logged_out: false,
            replies: 0,
            from_store: 0,
            used: BTreeMap::new(),
            told_ahead: 0,
            habit: VecDeque::new(),
            mistakes: 0,
        }
    }

    /// Begins with these.
    pub(crate) fn with_habit(mut self, habit: &[&'static str]) -> Self {
        self.habit = habit.iter().copied().collect();
        self
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.asked.is_empty() || self.mistakes > 0
    }

    /// Whether an answer is due; while it listens in IDLE none is.
    pub(crate) fn is_owed(&self) -> bool {
        self.asked.iter().any(|asked| !matches!(asked.what, What::Idle { listening: true, done: false }))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.asked.iter().any(|asked| matches!(asked.what, What::Idle { listening: true, done: false }))
    }

    pub(crate) fn end_idle(&mut self) -> Option<&'static str> {
        for asked in &mut self.asked {
            if let What::Idle { listening: true, done } = &mut asked.what {
                return (!std::mem::replace(done, true)).then_some("DONE\r\n");
            }
        }
        None
    }

    /// The tag of the only command that it waits for, if that is one which changes nothing.
    pub(crate) fn only_simple(&self) -> Option<&str> {
        let [asked] = self.asked.as_slices().0 else { return None };
        let simple = ["NOOP", "CHECK", "SEARCH UNSEEN", "STATUS \"Work Stuff\" (MESSAGES)"];
        (self.asked.len() == 1 && simple.contains(&asked.line.as_str())).then_some(asked.tag.as_str())
    }

    /// What it waits for, for the report.
    pub(crate) fn outstanding(&self) -> String {
        format!("{:?}", self.asked)
    }

    // ---- asking ------------------------------------------------------------------------------------------

    /// The next words of the client, if it has any now.
    pub(crate) fn speak(
        &mut self,
        random: &mut Random,
        truth: &Truth<'_>,
        uploads: &mut Vec<Rc<Content>>,
    ) -> Option<String> {
        if self.said_bye || self.logged_out {
            return None;
        }
        if let Some(Asked { what: What::Idle { listening, done }, .. }) =
            self.asked.iter_mut().find(|asked| matches!(asked.what, What::Idle { done: false, .. }))
        {
            if !*listening {
                return None;
            }
            *done = true;
            return Some("DONE\r\n".into());
        }
        let holds = |asked: &Asked| match asked.what {
            What::Append { .. } | What::Select { .. } | What::Login { .. } | What::Logout | What::Close => {
                true
            }
            What::Idle { .. } | What::Fetch(_) | What::Act { .. } | What::Search { .. } | What::Other => {
                false
            }
        };
        // Behind SELECT some clients ask at once for what is there.
        let opens = matches!(self.asked.back(), Some(Asked { what: What::Select { .. }, .. }));
        if opens && random.once_in(4) {
            let items: Vec<String> = ["UID", "FLAGS"].map(str::to_owned).into();
            let (items, set) = match random.below(3) {
                0 => (vec!["BODY.PEEK[]".to_owned()], format!("{}", random.below(20) + 1)),
                1 => (vec!["BODY[TEXT]".to_owned(), "FLAGS".to_owned()], "1:9".to_owned()),
                _ => (items, "1:*".to_owned()),
            };
            let written = items.join(" ");
            let numbers = numbers(&set, 1_000_000);
            let fetch = Fetch {
                uid_form: true,
                numbers,
                items,
                known: Vec::new(),
                got: BTreeMap::new(),
                alone: true,
            };
            return Some(self.ask(What::Fetch(fetch), truth, &format!("UID FETCH {set} ({written})")));
        }
        if self.asked.len() >= 5 || self.asked.iter().any(holds) {
            return None;
        }
        if self.authenticated && random.once_in(40) {
            self.mistakes += 1;
            return Some(random.pick(&["\r\n".to_owned(), "+ NOOP\r\n".to_owned()]).clone());
        }
        if !self.authenticated {
            let user = self.user.clone();
            let mut then = VecDeque::new();
            let line = match random.below(7) {
                4 | 6 => {
                    let good = base64_of(&user);
                    // A person who gives up, a client that is wrong.
                    let said = *random.pick(&[good, good, good, "*", "", "!", "AGFsaWNlAHdyb25n"]);
                    then.push_back(format!("{said}\r\n"));
                    "AUTHENTICATE PLAIN".to_owned()
                }
                5 => {
                    then.extend([format!("{user} {{6}}\r\n"), "secret\r\n".to_owned()]);
                    format!("LOGIN {{{}}}", user.len())
                }
                0 => format!("AUTHENTICATE PLAIN {}", base64_of(&user)),
                1 => format!("LOGIN \"{user}\" secret"),
                2 => format!("LOGIN {user} wrong"),
                _ => format!("LOGIN {user} secret"),
            };
            return Some(self.ask(What::Login { user, then }, truth, &line));
        }
        if !self.asked.is_empty() && !self.habit.is_empty() {
            return None;
        }
        if let Some(line) = self.habit.pop_front() {
            return Some(self.by_habit(line, truth));
        }
        if self.open.is_none() {
            return Some(match random.below(8) {
                0 => self.ask(What::Other, truth, "NOOP"),
                1 => self.append(random, truth, uploads),
                _ => self.select(random, truth),
            });
        }
        Some(match random.below(100) {
            0..=44 => self.fetch(random, truth)?,
            45..=56 => self.act(random, truth)?,
            57..=63 => self.search(random, truth)?,
            64..=77 => self.ask(What::Other, truth, "NOOP"),
            78..=84 if self.asked.is_empty() => {
                self.ask(What::Idle { listening: false, done: false }, truth, "IDLE")
            }
            85..=86 => self.ask(What::Other, truth, "STATUS \"Work Stuff\" (MESSAGES)"),
            87..=88 => self.ask(What::Other, truth, "EXPUNGE"),
            89..=90 => self.append(random, truth, uploads),
            91 => self.ask(What::Close, truth, if random.once_in(2) { "CLOSE" } else { "UNSELECT" }),
            93 if random.once_in(2) => self.ask(What::Logout, truth, "LOGOUT"),
            94 | 95 => self.select(random, truth),
            _ => self.ask(What::Other, truth, "CHECK"),
        })
    }

    fn by_habit(&mut self, line: &str, truth: &Truth<'_>) -> String {
        let what = if let Some(name) = line.strip_prefix("SELECT ") {
            What::Select { name: name.into(), examine: false, count: None, validity: None }
        } else if line.contains("FETCH") && self.open.is_some() {
            What::Fetch(Fetch {
                uid_form: true,
                numbers: Vec::new(),
                items: vec!["UID".into(), "FLAGS".into()],
                known: self.open.iter().flat_map(|open| open.view.iter().copied().flatten()).collect(),
                got: BTreeMap::new(),
                alone: true,
            })
        } else {
            What::Other
        };
        self.ask(what, truth, line)
    }

    /// Listens, if it has nothing else to do.
    pub(crate) fn listen(&mut self, truth: &Truth<'_>) -> Option<String> {
        let may = self.open.is_some() && !self.is_waiting() && !self.said_bye && self.habit.is_empty();
        may.then(|| self.ask(What::Idle { listening: false, done: false }, truth, "IDLE"))
    }

    /// Something that must be answered with all there is to say.
    pub(crate) fn noop(&mut self, truth: &Truth<'_>) -> String {
        self.ask(What::Other, truth, "NOOP")
    }

    fn ask(&mut self, what: What, truth: &Truth<'_>, line: &str) -> String {
        self.tags += 1;
        let tag = format!("t{}", self.tags);
        let line = format!("{tag} {line}\r\n");
        if let What::Fetch(_) = what {
            for asked in &mut self.asked {
                if let What::Fetch(other) = &mut asked.what {
                    other.alone = false;
                }
            }
        }
        let said = line.split_once(' ').map_or("", |(_, said)| said.trim_end()).to_owned();
        self.asked.push_back(Asked { tag, line: said, what, issued: truth.mail.tick, at: truth.clock });
        line
    }

    fn select(&mut self, random: &mut Random, truth: &Truth<'_>) -> String {
        let name = *random.pick(&["INBOX", "INBOX", "inbox", "Work Stuff", "Shared", "Shared", "Nowhere"]);
        let examine = random.once_in(4);
        let verb = if examine { "EXAMINE" } else { "SELECT" };
        let written =
            if name.contains(' ') || random.once_in(3) { format!("\"{name}\"") } else { name.into() };
        let name = if name == "inbox" { "INBOX" } else { name };
        let what = What::Select { name: name.into(), examine, count: None, validity: None };
        self.ask(what, truth, &format!("{verb} {written}"))
    }

    fn append(&mut self, random: &mut Random, truth: &Truth<'_>, uploads: &mut Vec<Rc<Content>>) -> String {
        let messages: Vec<_> =
            truth.mail.history.values().filter(|m| m.content.octets.len() < 20_000).collect();
        let content = random.pick(&messages).content.clone();
        let name = *random.pick(&["INBOX", "Trash"]);
        uploads.push(content.clone());
        let octets = [content.octets.as_slice(), b"\r\n"].concat();
        let line = |plus: &str| format!("APPEND {name} (\\Seen) {{{}{plus}}}", content.octets.len());
        if random.once_in(2) {
            let announced = self.ask(What::Other, truth, &line("+"));
            return announced + &text(&octets);
        }
        self.ask(What::Append { octets }, truth, &line(""))
    }

    /// Whether numbers mean now what they will mean to the server: nothing before may move them.
    fn may_say_numbers(&self) -> bool {
        self.asked.iter().all(forbids_expunge)
    }

    fn set(&self, random: &mut Random, uid_form: bool) -> Option<String> {
        let open = self.open.as_ref()?;
        let known: Vec<u32> = open.view.iter().copied().flatten().collect();
        let pool: Vec<u32> =
            if uid_form { known } else { (1..=u32::try_from(open.view.len()).unwrap()).collect() };
        if pool.is_empty() || (uid_form && random.once_in(6)) {
            let any = random.below(40) + 1;
            return uid_form
                .then(|| random.pick(&["1:*".to_owned(), format!("{any}"), format!("{any}:*")]).clone());
        }
        // People come back to the same few messages.
        let pool = if random.once_in(3) { pool } else { pool.into_iter().take(4).collect() };
        let one = *random.pick(&pool);
        Some(match random.below(6) {
            0 => format!("{one}:{}", random.pick(&pool)),
            1 => format!("{one},{}", random.pick(&pool)),
            2 if random.once_in(3) => "1:*".into(),
            2 if random.once_in(3) => "*".into(),
            _ => one.to_string(),
        })
    }

    fn fetch(&mut self, random: &mut Random, truth: &Truth<'_>) -> Option<String> {
        let uid_form = !self.may_say_numbers() || random.once_in(2);
        let set = self.set(random, uid_form)?;
        let mut items: Vec<String> = Vec::new();
        match random.below(22) {
            12..=16 => items.push("BODY.PEEK[]".into()),
            17..=21 => items.extend(["FLAGS", "BODY.PEEK[]"].map(str::to_owned)),
            0 => items.push("FLAGS".into()),
            1 => items.extend(["UID", "RFC822.SIZE", "BODY[]"].map(str::to_owned)),
            2 => items.extend(
                ["UID", "RFC822.SIZE", "FLAGS", "BODY.PEEK[HEADER.FIELDS (From Subject)]"].map(str::to_owned),
            ),
            3 => items.push(format!(
                "BODY.PEEK[]<{}.{}>",
                random.below(4) * 70_000,
                random.pick(&[10, 70_000])
            )),
            4 => {
                let section = random.pick(&["BODY[]", "BODY[]", "BODY.PEEK[TEXT]", "BODY[1]"]);
                items.push(format!("{section}<{}.65536>", random.below(4) * 65_536));
            }
            _ => {
                for _ in 0..=random.below(4) {
                    items.push((*random.pick(&ITEMS)).to_owned());
                }
            }
        }
        let mut labels = BTreeSet::new();
        items.retain(|item| labels.insert(label(item)));
        let open = self.open.as_ref()?;
        let unknown = |n: &u32| open.view.get((*n as usize).wrapping_sub(1)).is_some_and(Option::is_none);
        let unknown = |set: &str| set.contains('*') || numbers(set, 0).iter().any(unknown);
        if !uid_form && unknown(&set) {
            // So that the answer says which message it is.
            items.retain(|item| item != "UID");
            items.push("UID".into());
        }
        let written = match items.as_slice() {
            [item] if random.once_in(2) => item.clone(),
            _ => format!("({})", items.join(" ")),
        };
        let verb = if uid_form { "UID FETCH" } else { "FETCH" };
        // What `*` means may have changed when the server reads it: only what is meant in any case is expected.
        let largest = 1_000_000;
        let fetch = Fetch {
            uid_form,
            numbers: numbers(&set, largest)
                .into_iter()
                .filter(|n| uid_form || open.view.len() >= *n as usize)
                .collect(),
            items,
            known: open.view.iter().copied().flatten().collect(),
            got: BTreeMap::new(),
            alone: !self.asked.iter().any(|asked| matches!(asked.what, What::Fetch(_))),
        };
        Some(self.ask(What::Fetch(fetch), truth, &format!("{verb} {set} {written}")))
    }

    fn act(&mut self, random: &mut Random, truth: &Truth<'_>) -> Option<String> {
        let uid_form = !self.may_say_numbers() || random.once_in(2);
        let set = self.set(random, uid_form)?;
        let open = self.open.as_ref()?;
        // What `*` means may have changed when the server reads it.
        let meant = if set.contains('*') {
            None
        } else if uid_form {
            Some(numbers(&set, 0))
        } else {
            numbers(&set, 0).iter().map(|n| open.view[*n as usize - 1]).collect()
        };
        let uid = if uid_form { "UID " } else { "" };
        let (line, by_number) = match random.below(8) {
            0 => (format!("{uid}COPY {set} \"Work Stuff\""), false),
            1 => (format!("{uid}MOVE {set} Trash"), false),
            2 => (format!("{uid}STORE {set} +FLAGS (\\Deleted)"), !uid_form),
            3 => (format!("{uid}STORE {set} -FLAGS.SILENT (\\Seen)"), !uid_form),
            4 => (format!("{uid}STORE {set} -FLAGS (\\Seen \\Flagged)"), !uid_form),
            5 => (format!("{uid}STORE {set} +FLAGS.SILENT (\\Seen)"), !uid_form),
            _ => (format!("{uid}STORE {set} +FLAGS (\\Flagged)"), !uid_form),
        };
        Some(self.ask(What::Act { by_number, meant }, truth, &line))
    }

    fn search(&mut self, random: &mut Random, truth: &Truth<'_>) -> Option<String> {
        let uid_form = random.once_in(2);
        let pending = self.asked.iter().any(|asked| matches!(asked.what, What::Search { .. }));
        let numbers_meant = random.once_in(2);
        if pending || ((!uid_form || numbers_meant) && !self.may_say_numbers()) {
            return None;
        }
        let mut keys = vec![*random.pick(&["ALL", "SEEN", "UNSEEN", "FLAGGED", "UID 1:20"])];
        let set = self.set(random, false);
        if numbers_meant && set.is_some() {
            keys.push(set.as_deref()?);
        }
        let uid = if uid_form { "UID " } else { "" };
        let open = self.open.as_ref()?;
        let within = set.as_deref().filter(|set| numbers_meant && !set.contains('*')).and_then(|set| {
            numbers(set, 0).iter().map(|n| open.view[*n as usize - 1]).collect::<Option<Vec<u32>>>()
        });
        let what = What::Search { by_number: !uid_form, results: None, msns: !uid_form, within };
        let line = format!("{uid}SEARCH {}", keys.join(" "));
        Some(self.ask(what, truth, &line))
    }

    // ---- hearing -----------------------------------------------------------------------------------------

    /// Octets from the session. Gives what the client says at once: a literal it was asked for.
    pub(crate) fn hear(&mut self, octets: &[u8], truth: &Truth<'_>) -> Result<Vec<u8>, Lie> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(octets);
        let (mut says, mut at) = (Vec::new(), 0);
        while let Some(end) = message_end(&input[at..], false, &mut None) {
            let line = &input[at..at + end];
            self.response(line, truth, &mut says).map_err(|lie| {
                format!("{lie}\n  heard {}\n  asked {:?}", text(&line[..line.len().min(600)]), self.asked)
            })?;
            at += end;
        }
        input.drain(..at);
        self.input = input;
        Ok(says)
    }

    fn response(&mut self, line: &[u8], truth: &Truth<'_>, says: &mut Vec<u8>) -> Result<(), Lie> {
        if line.starts_with(b"+") {
            for asked in &mut self.asked {
                match &mut asked.what {
                    What::Append { octets } => {
                        says.append(octets);
                        asked.what = What::Other;
                        return Ok(());
                    }
                    What::Login { then, .. } if !then.is_empty() => {
                        says.extend(then.pop_front().unwrap_or_default().into_bytes());
                        return Ok(());
                    }
                    What::Idle { listening, .. } if !*listening => {
                        *listening = true;
                        return Ok(());
                    }
                    _ => {}
                }
            }
            return Err("a + that nobody waits for".into());
        }
        // Of a FETCH response the rest is octets, and long.
        let mut first = line.splitn(4, |o| *o == b' ');
        let is_fetch = first.nth(2).is_some_and(|word| word == b"FETCH");
        let head = text(if is_fetch { &line[..line.len().min(64)] } else { line });
        let mut words = head.split_ascii_whitespace();
        let (first, second, third) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        if first != "*" {
            return self.tagged(first, second, &head, truth);
        }
        if second == "BYE" {
            self.said_bye = true;
            return Ok(());
        }
        if let Ok(n) = second.parse::<u32>() {
            return match third {
                "EXISTS" => self.exists(n),
                "EXPUNGE" => self.expunge(n, truth),
                "FETCH" => self.fetched(n, line, truth),
                "RECENT" => Ok(()),
                _ => Err("a response that nobody knows".into()),
            };
        }
        match second {
            "SEARCH" => {
                let list = words_after(&head, 2);
                for asked in &mut self.asked {
                    if let What::Search { results, .. } = &mut asked.what {
                        if results.replace(list).is_some() {
                            return Err("two SEARCH responses".into());
                        }
                        return Ok(());
                    }
                }
                Err("a SEARCH response that nobody asked for".into())
            }
            "OK" => {
                let selects = matches!(self.asked.front(), Some(Asked { what: What::Select { .. }, .. }));
                let says = truth.origin.manner == Manner::Cyrus && selects;
                if head.contains("MODSEQ") && !says {
                    return Err("MODSEQ, which this client does not know of".into());
                }
                if third == "[UIDVALIDITY" {
                    let number = words.next().and_then(|n| n.trim_end_matches(']').parse().ok());
                    if let Some(Asked { what: What::Select { validity, .. }, .. }) = self.asked.front_mut() {
                        *validity = number;
                    }
                }
                if head.contains("COMPRESS") || head.contains("NOTIFY") {
                    return Err("a capability that must not be seen".into());
                }
                Ok(())
            }
            "BAD" => {
                self.mistakes = self.mistakes.checked_sub(1).ok_or("BAD, and nothing was wrong")?;
                Ok(())
            }
            "FLAGS" | "STATUS" => Ok(()),
            "MYRIGHTS" if self.asked.front().is_some_and(|asked| asked.line.starts_with("MYRIGHTS")) => {
                Ok(())
            }
            _ => Err("a response that this client never asked for".into()),
        }
    }

    fn exists(&mut self, n: u32) -> Result<(), Lie> {
        let n = n as usize;
        if let Some(Asked { what: What::Select { count, .. }, .. }) = self.asked.front_mut() {
            *count = Some(n);
            // Of the old mailbox still, or of the new one: the last one before the OK counts.
            if let Some(open) = self.open.as_mut().filter(|open| n > open.view.len()) {
                open.view.resize(n, None);
            }
            return Ok(());
        }
        let open = self.open.as_mut().ok_or("EXISTS and no mailbox")?;
        if n < open.view.len() {
            return Err(format!("EXISTS {n} of {}", open.view.len()));
        }
        open.view.resize(n, None);
        Ok(())
    }

    fn expunge(&mut self, n: u32, truth: &Truth<'_>) -> Result<(), Lie> {
        let allowed = match self.asked.front() {
            None => false,
            Some(asked) => !forbids_expunge(asked),
        };
        if !allowed || self.asked.iter().any(forbids_expunge) {
            return Err("EXPUNGE where RFC 9051 §7.5.1 forbids it".into());
        }
        let open = self.open.as_mut().ok_or("EXPUNGE and no mailbox")?;
        let at =
            (n as usize).checked_sub(1).filter(|at| *at < open.view.len()).ok_or("EXPUNGE of no message")?;
        let gone = open.view.remove(at);
        if let Some(uid) = gone
            && truth.mail.lives(&(open.name.clone(), open.validity, uid))
        {
            return Err(format!("UID {uid} was expunged and is there"));
        }
        for asked in &mut self.asked {
            if let What::Fetch(fetch) = &mut asked.what {
                fetch.known.retain(|known| Some(*known) != gone);
            }
        }
        Ok(())
    }

    fn fetched(&mut self, n: u32, line: &[u8], truth: &Truth<'_>) -> Result<(), Lie> {
        let open = self.open.as_mut().ok_or("FETCH and no mailbox")?;
        let at =
            (n as usize).checked_sub(1).filter(|at| *at < open.view.len()).ok_or("FETCH of no message")?;
        let start = line.iter().position(|o| *o == b'(').ok_or("FETCH without a list")?;
        let list = words(&line[start + 1..]);
        let items: Vec<(String, &Value)> = list
            .chunks(2)
            .map(|pair| (text(&pair[0].raw).to_ascii_uppercase(), pair.get(1).expect("a value")))
            .collect();
        let uid = which(open, at, &items)?;
        let before = open.view[..at].iter().rev().copied().flatten().next();
        let behind = open.view[at + 1..].iter().copied().flatten().next();
        if before.is_some_and(|b| b >= uid) || behind.is_some_and(|b| b <= uid) {
            return Err(format!("number {n} is UID {uid}, between {before:?} and {behind:?}"));
        }
        open.view[at] = Some(uid);
        let id = (open.name.clone(), open.validity, uid);
        let message = truth.mail.history.get(&id).ok_or_else(|| format!("there never was a UID {uid}"))?;
        let mut labels = BTreeSet::new();
        for (name, value) in &items {
            if !labels.insert(name.clone()) {
                return Err(format!("{name} twice in one response"));
            }
            if name == "FLAGS" {
                let flags: BTreeSet<String> =
                    text(&value.raw).trim_matches(['(', ')']).split(' ').map(str::to_owned).collect();
                if truth.mail.lives(&id) && !truth.mail.had_flags_since(&id, &flags, open.since) {
                    return Err(format!(
                        "flags {flags:?} of UID {uid}, which it has not had since it was opened"
                    ));
                }
                open.flags.insert(uid, flags);
            }
            if name == "MODSEQ" {
                return Err("MODSEQ, which this client does not know of".into());
            }
            if name == "UID" || name == "FLAGS" {
                for asked in &mut self.asked {
                    if let What::Fetch(fetch) = &mut asked.what {
                        *fetch.got.entry((uid, name.clone())).or_default() += 1;
                    }
                }
                continue;
            }
            if !truth.reached.named.contains(&id) {
                return Err(format!("{name} of UID {uid}, which the origin has not shown to this session"));
            }
            // What the origin said unasked behind a login is held with all else until the client opens the mailbox, and
            // told in its order: before the EXPUNGE that came behind it.
            let wants = |asked: &Asked| match &asked.what {
                What::Fetch(fetch) => fetch.items.iter().any(|item| label(item) == *name),
                _ => false,
            };
            let unasked = name == "BODY[HEADER]"
                && truth.reached.sections.contains_key(&id)
                && !self.asked.iter().any(wants);
            let expunged = truth.reached.expunged.get(&id).is_some_and(|at| *at < truth.said);
            if expunged && !unasked {
                return Err(format!("{name} of UID {uid}, which the origin said was expunged"));
            }
            let mut wanted = false;
            let mut since = truth.clock;
            let mut right = false;
            for asked in &mut self.asked {
                let What::Fetch(fetch) = &mut asked.what else { continue };
                for item in fetch.items.iter().filter(|item| label(item) == *name) {
                    wanted = true;
                    let is_right = match name.as_str() {
                        "RFC822.SIZE" => value.raw == message.content.octets.len().to_string().as_bytes(),
                        "INTERNALDATE" => value.raw == format!("\"{}\"", message.date).as_bytes(),
                        "ENVELOPE" => value.raw == message.content.envelope().as_bytes(),
                        "BODYSTRUCTURE" => value.raw == message.content.structure().as_bytes(),
                        _ => {
                            value.content == section_octets(item, &message.content)
                                || value.content.is_none() && truth.mail.live(&id.0, uid).is_none()
                        }
                    };
                    right |= is_right;
                    if is_right {
                        *fetch.got.entry((uid, name.clone())).or_default() += 1;
                    }
                    since = since.min(asked.at);
                }
            }
            // The origin has not said it since it was asked for.
            let last = truth.reached.sections.get(&id).copied();
            let from_store = name.contains('[') && wanted && last.is_none_or(|last| last < since);
            self.from_store += u64::from(from_store);
            let limit = truth.revoked.map(|at| at + truth.re_proof).filter(|_| id.0.1 == "Shared");
            if from_store && limit.is_some_and(|limit| since > limit) {
                return Err(format!(
                    "UID {uid} from the store, asked {since:?}, rights withdrawn {:?}",
                    truth.revoked
                ));
            }
            if !wanted && name == "BODY[HEADER]" && truth.reached.sections.contains_key(&id) {
                // The origin may say it unasked.
                right = value.content == message.content.section("HEADER");
            } else if !wanted {
                return Err(format!("{name}, which nobody asked for"));
            }
            if !right {
                let said = value.content.as_deref().unwrap_or(b"NIL");
                return Err(format!(
                    "{name} of UID {uid} is wrong: {} octets, {}",
                    said.len(),
                    said[..said.len().min(99)].escape_ascii()
                ));
            }
        }
        Ok(())
    }

    fn tagged(&mut self, tag: &str, status: &str, line: &str, truth: &Truth<'_>) -> Result<(), Lie> {
        let asked = self.asked.pop_front().ok_or("a tag and nothing was asked")?;
        let question = asked.clone();
        self.answered(asked, tag, status, line, truth)
            .map_err(|lie| format!("{lie}\n  in answer to {question:?}"))
    }

    fn answered(
        &mut self,
        asked: Asked,
        tag: &str,
        status: &str,
        line: &str,
        truth: &Truth<'_>,
    ) -> Result<(), Lie> {
        if asked.tag != tag {
            return Err(format!("{tag} is not {}", asked.tag));
        }
        self.replies += 1;
        let ok = status == "OK";
        let origins = truth.reached.completed.get(tag).copied();
        // Sent ahead: what was asked must be the same, and each answer is told once.
        let used = self.used.entry(asked.line.clone()).or_default();
        let origins = origins.or_else(|| {
            let answers = truth.reached.ahead.get(&asked.line)?;
            // Those behind a refused login are told to nobody.
            let at = (*used..answers.len()).find(|at| answers[*at] == ok)?;
            *used = at + 1;
            self.told_ahead += 1;
            Some(ok)
        });
        let by_itself = match &asked.what {
            What::Fetch(_) => true,
            What::Idle { done, .. } => *done,
            // The connection stays, and another has it.
            What::Logout => true,
            // RFC 5530: what is gone needs no origin to say so.
            _ => line.contains("[EXPUNGEISSUED]"),
        };
        if !by_itself && origins != Some(ok) {
            return Err(format!("{status}, and the origin said {origins:?}"));
        }
        match asked.what {
            What::Login { user, then } => {
                if !then.is_empty() && line.contains("aborted") {
                    return Err("aborted, and the client had not spoken".into());
                }
                self.authenticated = ok;
                self.came = (asked.issued, true);
                if ok && truth.origin.user.as_ref() != Some(&user) {
                    return Err("logged in as somebody else".into());
                }
            }
            What::Select { name, examine, count, validity } => {
                self.open = None;
                let first = std::mem::replace(&mut self.came.1, false);
                if ok {
                    let validity = validity.ok_or("SELECT without UIDVALIDITY")?;
                    self.open = Some(Open {
                        name: box_of(&self.user, &name),
                        validity,
                        read_only: examine,
                        view: vec![None; count.ok_or("SELECT without EXISTS")?],
                        flags: BTreeMap::new(),
                        // It may have been asked ahead.
                        since: if first { self.came.0 } else { asked.issued },
                    });
                }
            }
            What::Fetch(fetch) => self.fetch_completed(&fetch, ok, line, asked.issued, truth)?,
            What::Act { meant: Some(meant), .. } => {
                let Some(acted) = truth.origin.acted.get(tag) else {
                    return if ok { Err("OK, and the origin did nothing".into()) } else { Ok(()) };
                };
                if let Some(wrong) = acted.iter().find(|uid| !meant.contains(uid)) {
                    return Err(format!("the origin was made to change UID {wrong}, meant were {meant:?}"));
                }
                let open = self.open.as_ref().ok_or("no mailbox")?;
                let left_out =
                    |uid: &&u32| !acted.contains(uid) && truth.mail.live(&open.name, **uid).is_some();
                let known = |uid: &&u32| open.view.contains(&Some(**uid));
                if ok && let Some(uid) = meant.iter().filter(known).find(left_out) {
                    return Err(format!("UID {uid} was left out of {meant:?}, done was {acted:?}"));
                }
            }
            What::Search { results, msns, within, .. } => {
                let found = truth.origin.found.get(tag).filter(|_| ok);
                let outside = |uid: &&u32| within.as_ref().is_some_and(|within| !within.contains(uid));
                if let Some(uid) = found.into_iter().flatten().find(outside) {
                    return Err(format!("the origin was made to find UID {uid}, meant were {within:?}"));
                }
                self.searched(results, msns, ok, tag, truth)?;
            }
            What::Close if ok => self.open = None,
            What::Logout => self.logged_out = true,
            What::Act { .. } | What::Idle { .. } | What::Append { .. } | What::Close | What::Other => {}
        }
        Ok(())
    }

    fn fetch_completed(
        &self,
        fetch: &Fetch,
        ok: bool,
        line: &str,
        issued: u64,
        truth: &Truth<'_>,
    ) -> Result<(), Lie> {
        let Some(open) = &self.open else { return if ok { Err("OK and no mailbox".into()) } else { Ok(()) } };
        let meant: Vec<u32> = if fetch.uid_form {
            fetch.known.iter().copied().filter(|uid| fetch.numbers.contains(uid)).collect()
        } else {
            let at = |n: &u32| open.view.get((*n as usize).checked_sub(1)?).copied().flatten();
            fetch.numbers.iter().filter_map(at).collect()
        };
        let live = |uid: u32| truth.mail.live(&open.name, uid).is_some();
        if !ok {
            let unknown = fetch.numbers.is_empty() || meant.len() < fetch.numbers.len();
            let excuse = unknown || meant.iter().any(|uid| !live(*uid));
            return if excuse { Ok(()) } else { Err(format!("FETCH refused: {line}")) };
        }
        for uid in meant.into_iter().filter(|uid| live(*uid)) {
            for item in &fetch.items {
                let count = fetch.got.get(&(uid, label(item))).copied().unwrap_or(0);
                if count == 0 {
                    return Err(format!("{item} of UID {uid} did not come"));
                }
                let unasked_too = ["FLAGS", "UID", "BODY[HEADER]"].contains(&label(item).as_str());
                if count > 1 && fetch.alone && !unasked_too {
                    return Err(format!("{item} of UID {uid} came {count} times"));
                }
            }
            let id = (open.name.clone(), open.validity, uid);
            // What the origin itself said of it is all that a session can go by.
            let reached = truth.reached;
            let said = reached.seen.contains(&id) || reached.unseen.get(&id).is_some_and(|at| *at >= issued);
            let honest = said || truth.mail.was_seen_since(&id, issued);
            if !open.read_only && fetch.items.iter().any(|item| sets_seen(item)) && !honest {
                return Err(format!("OK, and the origin has not set \\Seen on UID {uid}"));
            }
        }
        Ok(())
    }

    fn searched(
        &self,
        results: Option<Vec<u32>>,
        msns: bool,
        ok: bool,
        tag: &str,
        truth: &Truth<'_>,
    ) -> Result<(), Lie> {
        let (true, Some(open)) = (ok, &self.open) else { return Ok(()) };
        let results = results.ok_or("OK and no SEARCH response")?;
        let found = truth.origin.found.get(tag).ok_or("OK and the origin did not search")?;
        let mut missing: BTreeSet<u32> = found.iter().copied().collect();
        for number in results {
            let uid = if msns {
                match open.view.get((number as usize).wrapping_sub(1)).ok_or("found what is not there")? {
                    Some(uid) => *uid,
                    None => {
                        missing.clear();
                        continue;
                    }
                }
            } else {
                number
            };
            if !found.contains(&uid) {
                return Err(format!("number {number} is UID {uid}, found were {found:?}"));
            }
            missing.remove(&uid);
        }
        let lost = missing.iter().find(|uid| open.view.contains(&Some(**uid)));
        lost.map_or(Ok(()), |uid| Err(format!("UID {uid} was found and not told")))
    }

    // ---- the end -----------------------------------------------------------------------------------------

    /// Asks for all flags: afterwards what the client believes must be what is.
    pub(crate) fn ask_everything(&mut self, truth: &Truth<'_>) -> Option<String> {
        let open = self.open.as_ref()?;
        let fetch = Fetch {
            uid_form: true,
            numbers: Vec::new(),
            items: vec!["UID".into(), "FLAGS".into(), "INTERNALDATE".into()],
            known: open.view.iter().copied().flatten().collect(),
            got: BTreeMap::new(),
            alone: true,
        };
        Some(self.ask(What::Fetch(fetch), truth, "UID FETCH 1:* (UID FLAGS INTERNALDATE)"))
    }

    /// After everything was told and nothing has happened since.
    pub(crate) fn check_converged(&self, mail: &Mail) -> Result<(), Lie> {
        let Some(open) = &self.open else { return Ok(()) };
        let mailbox = &mail.boxes[&open.name];
        if mailbox.validity != open.validity {
            return Ok(());
        }
        let live: Vec<_> = mailbox.live.iter().map(|message| Some(message.uid)).collect();
        if open.view != live {
            return Err(format!("the client believes {:?}, there are {live:?}", open.view));
        }
        for message in &mailbox.live {
            if open.flags.get(&message.uid) != Some(&message.flags) {
                return Err(format!("flags {:?} of {:?}", open.flags.get(&message.uid), message.flags));
            }
        }
        Ok(())
    }
}

/// Which message a response is about: by what it says, else by what the number meant so far.
fn which(open: &Open, at: usize, items: &[(String, &Value)]) -> Result<u32, Lie> {
    let value = |name: &str| items.iter().find(|(label, _)| label == name).map(|(_, value)| text(&value.raw));
    let bound = open.view[at];
    let mut said = value("UID").and_then(|uid| uid.parse::<u32>().ok());
    if let Some(flags) = value("FLAGS") {
        let prefix = identity_flag(&open.name, open.validity, 0);
        let prefix = prefix.trim_end_matches('0');
        let by_flags = flags
            .trim_matches(['(', ')'])
            .split(' ')
            .find_map(|flag| flag.strip_prefix(prefix)?.parse().ok());
        let by_flags: u32 = by_flags.ok_or("flags of a message of another mailbox")?;
        if said.is_some_and(|said| said != by_flags) {
            return Err(format!("UID {said:?} with the flags of {by_flags}"));
        }
        said = Some(by_flags);
    }
    match (said, bound) {
        (Some(said), Some(bound)) if said != bound => {
            Err(format!("number {} was UID {bound} and is UID {said}", at + 1))
        }
        (Some(uid), _) | (None, Some(uid)) => Ok(uid),
        (None, None) => Err("a response that does not say which message it is about".into()),
    }
}

fn forbids_expunge(asked: &Asked) -> bool {
    match &asked.what {
        What::Fetch(fetch) => !fetch.uid_form,
        What::Act { by_number, .. } | What::Search { by_number, .. } => *by_number,
        _ => false,
    }
}

fn words_after(line: &str, n: usize) -> Vec<u32> {
    line.split_ascii_whitespace().skip(n).filter_map(|word| word.parse().ok()).collect()
}

fn base64_of(user: &str) -> &'static str {
    match user {
        "alice" => "AGFsaWNlAHNlY3JldA==",
        "bob" => "AGJvYgBzZWNyZXQ=",
        _ => "AGNhcm9sAHNlY3JldA==",
    }
}

const ITEMS: [&str; 20] = [
    "UID",
    "FLAGS",
    "FLAGS",
    "INTERNALDATE",
    "RFC822.SIZE",
    "ENVELOPE",
    "BODYSTRUCTURE",
    "BODY.PEEK[]",
    "BODY[]",
    "BODY.PEEK[HEADER]",
    "BODY[TEXT]",
    "BODY.PEEK[TEXT]",
    "body.peek[header.fields (subject x-odd)]",
    "BODY.PEEK[HEADER.FIELDS (X-NONE)]",
    "BODY.PEEK[1]",
    "BODY[2]",
    "BODY.PEEK[2.MIME]",
    "BODY.PEEK[]<3.20>",
    "BODY.PEEK[TEXT]<0.9>",
    "RFC822",
];
