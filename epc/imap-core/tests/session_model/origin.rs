//! A small IMAP server that keeps RFC 9051, in the manner of Dovecot or of Cyrus where these differ. One value is one
//! connection. It tells news of others when it may, or later.

use crate::{
    client::OURS,
    mail::{BOXES, BoxName, Content, Mail, MessageId, USERS, box_of},
    random::Random,
    wire::{numbers, take_message, text, words},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Pipelined commands: all data, then all tags, in any order. An expunged message that was not told: NIL.
    Dovecot,
    /// One after the other. An expunged message that was not told is still there. Rights, and a question for them.
    Cyrus,
}

/// What is true once the session has got the octets before it.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    /// The origin spoke of this message by itself, with sections or without.
    Spoke {
        id: MessageId,
        sections: bool,
    },
    /// It named the UID.
    Named(MessageId),
    Expunged(MessageId),
    /// It told flags, with or without `\\Seen`.
    Flags {
        id: MessageId,
        seen: bool,
    },
    /// `asked`: the command without its tag.
    Completed {
        tag: String,
        ok: bool,
        asked: String,
    },
    Nothing,
}

pub(crate) struct Selected {
    pub(crate) name: BoxName,
    pub(crate) validity: u32,
    pub(crate) read_only: bool,
    /// The messages as told, by UID.
    pub(crate) view: Vec<u32>,
    /// Their flags as told.
    pub(crate) told: BTreeMap<u32, BTreeSet<String>>,
}

pub(crate) struct Origin {
    pub(crate) manner: Manner,
    pub(crate) user: Option<String>,
    pub(crate) selected: Option<Selected>,
    /// It says MODSEQ: somebody has asked (RFC 7162 §3.1).
    condstore: bool,
    input: Vec<u8>,
    queue: VecDeque<Vec<u8>>,
    idle: Option<String>,
    sasl: Option<String>,
    /// How much had come when leave was given for a literal.
    leave_given: usize,
    /// Whether all expunged messages are told.
    thorough: bool,
    output: VecDeque<u8>,
    emitted: u64,
    delivered: u64,
    marks: VecDeque<(u64, Mark)>,
    /// UIDs that a command with this tag changed, copied or moved.
    pub(crate) acted: BTreeMap<String, Vec<u32>>,
    /// UIDs that a SEARCH with this tag found.
    pub(crate) found: BTreeMap<String, Vec<u32>>,
    /// What clients are about to append.
    pub(crate) uploads: Vec<Rc<Content>>,
    pub(crate) said_bye: bool,
    /// What it is asked, by tag.
    asked: BTreeMap<String, String>,
    /// Commands that need a login, without one.
    strikes: usize,
    pub(crate) has_refused: bool,
    /// It has had enough and reads no more.
    pub(crate) is_gone: bool,
    /// What it was sent after that.
    unread: Vec<u8>,
}

impl Origin {
    pub(crate) fn new(manner: Manner) -> Self {
        Self {
            manner,
            user: None,
            selected: None,
            condstore: false,
            input: Vec::new(),
            queue: VecDeque::new(),
            idle: None,
            sasl: None,
            leave_given: 0,
            thorough: false,
            output: VecDeque::new(),
            emitted: 0,
            delivered: 0,
            marks: VecDeque::new(),
            acted: BTreeMap::new(),
            found: BTreeMap::new(),
            uploads: Vec::new(),
            said_bye: false,
            asked: BTreeMap::new(),
            strikes: 0,
            has_refused: false,
            is_gone: false,
            unread: Vec::new(),
        }
    }

    pub(crate) fn capabilities(&self) -> &'static str {
        match self.manner {
            Manner::Dovecot => {
                "IMAP4rev1 SASL-IR AUTH=PLAIN LITERAL+ IDLE ESEARCH UIDPLUS MOVE CONDSTORE COMPRESS=DEFLATE NOTIFY"
            }
            Manner::Cyrus => "IMAP4rev1 AUTH=PLAIN ACL LITERAL+ IDLE ESEARCH UIDPLUS MOVE CONDSTORE",
        }
    }

    /// Whether the session has sent anything.
    pub(crate) fn is_untouched(&self) -> bool {
        self.input.is_empty() && self.queue.is_empty() && self.emitted == 0
    }

    pub(crate) fn receive(&mut self, octets: &[u8]) {
        if self.is_gone {
            return self.unread.extend_from_slice(octets);
        }
        self.input.extend_from_slice(octets);
    }

    /// Everything that it was sent and has not answered.
    pub(crate) fn unanswered(&self) -> String {
        let queued = self.queue.iter().flatten().copied();
        text(&queued.chain(self.input.iter().copied()).chain(self.unread.iter().copied()).collect::<Vec<_>>())
    }

    /// The tag of the IDLE that it is in.
    pub(crate) fn idle_tag(&self) -> Option<&str> {
        self.idle.as_deref()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Nothing is half read or half done.
    pub(crate) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.queue.is_empty() && self.output.is_empty()
    }

    /// The next octets for the session, at most up to where something becomes true.
    pub(crate) fn take_output(&mut self, max: usize) -> (Vec<u8>, Vec<Mark>) {
        let boundary = self.marks.front().map_or(u64::MAX, |(at, _)| *at);
        let room = usize::try_from(boundary - self.delivered).unwrap_or(usize::MAX);
        let taken = max.min(room).min(self.output.len());
        let (front, back) = self.output.as_slices();
        let of_front = taken.min(front.len());
        let octets = [&front[..of_front], &back[..taken - of_front]].concat();
        self.output.drain(..taken);
        self.delivered += octets.len() as u64;
        let mut reached = Vec::new();
        while self.marks.front().is_some_and(|(at, _)| *at <= self.delivered) {
            reached.extend(self.marks.pop_front().map(|(_, mark)| mark));
        }
        (octets, reached)
    }

    fn emit(&mut self, octets: &[u8]) {
        self.output.extend(octets);
        self.emitted += octets.len() as u64;
    }

    fn mark(&mut self, mark: Mark) {
        self.marks.push_back((self.emitted, mark));
    }

    fn line(&mut self, line: &str) {
        self.emit(line.as_bytes());
        self.emit(b"\r\n");
    }

    fn completed(&mut self, line: &str) {
        self.line(line);
        let mut words = line.split(' ');
        let tag = words.next().unwrap().to_owned();
        let asked = self.asked.remove(&tag).unwrap_or_default();
        self.mark(Mark::Completed { tag, ok: words.next() == Some("OK"), asked });
        if self.strikes > 2 {
            self.line("* BYE Too many invalid IMAP commands.");
            self.is_gone = true;
        }
    }

    /// Does what is next, if anything is. `quiet`: says nothing that was not asked for.
    pub(crate) fn step(&mut self, mail: &mut Mail, random: &mut Random, quiet: bool) {
        if self.is_gone {
            self.unread.append(&mut self.input);
            self.queue.drain(..).for_each(|command| self.unread.extend(command));
            return;
        }
        if let Some(tag) = self.idle.clone() {
            if self.input.starts_with(b"DONE\r\n") {
                self.input.drain(..6);
                self.idle = None;
                if random.once_in(2) {
                    self.sync(mail, random, true);
                }
                self.completed(&format!("{tag} OK Idle completed"));
            } else {
                assert!(self.input.len() < 6, "in IDLE came {}", self.input.escape_ascii());
                self.sync(mail, random, true);
            }
            return;
        }
        if let Some(tag) = self.sasl.clone() {
            if let Some(at) = self.input.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.input.drain(..at + 2).collect();
                self.sasl = None;
                let line = self.log_in_by(&tag, text(&line).trim_end());
                self.completed(&line);
            }
            return;
        }
        self.read();
        if self.queue.is_empty() {
            // News that nobody waits for.
            if !quiet && self.input.is_empty() && random.once_in(4) {
                self.sync(mail, random, false);
            }
            return;
        }
        let batch = self.batch(random);
        let pauses = |command: &[u8]| !text(command).to_ascii_uppercase().contains(" UID ");
        let may_expunge = !batch.iter().any(|command| by_number(command));
        // What is asked for nobody is long, as a rule, and what is quick overtakes it.
        let is_quick = |command: &Vec<u8>| {
            let line = text(command).to_ascii_uppercase();
            line.contains(" STATUS ") || line.starts_with(OURS)
        };
        let quick = batch.iter().any(is_quick);
        let mut tags = Vec::new();
        for command in &batch {
            let tagged = self.execute(command, mail, random);
            tags.extend(tagged);
        }
        // The last words before a NOOP's tag are all there is to say; other commands may leave some for later.
        let all = batch.iter().any(|command| verb(command) == "NOOP") && pauses(&batch[0]);
        let searched = batch.iter().any(|command| verb(command) == "SEARCH");
        let may_expunge = may_expunge && !(searched && self.manner == Manner::Cyrus);
        if all || random.once_in(2) {
            self.sync(mail, random, may_expunge);
            if all {
                // At the end nothing may be left for later.
                self.thorough = quiet;
                self.sync(mail, random, may_expunge);
                self.thorough = false;
            }
        }
        if quick && self.manner == Manner::Dovecot {
            random.shuffle(&mut tags);
        }
        for line in tags {
            self.completed(&line);
        }
    }

    /// Cuts what came into commands, as far as they can be understood before the ones before are done.
    fn read(&mut self) {
        loop {
            let stops = |last: &Vec<u8>| {
                matches!(
                    verb(last).as_str(),
                    "IDLE" | "AUTHENTICATE" | "SELECT" | "EXAMINE" | "LOGIN" | "LOGOUT"
                )
            };
            if self.queue.back().is_some_and(stops) {
                return;
            }
            let mut asks = None;
            match take_message(&mut self.input, true, &mut asks) {
                Some(command) => {
                    self.leave_given = 0;
                    self.queue.push_back(command);
                }
                None => {
                    let given = std::mem::replace(&mut self.leave_given, self.input.len());
                    if asks.is_none() || !self.queue.is_empty() {
                        self.leave_given = 0;
                    } else if given != self.input.len() {
                        self.line("+ OK");
                    }
                    return;
                }
            }
        }
    }

    /// The commands that are done together.
    fn batch(&mut self, random: &mut Random) -> Vec<Vec<u8>> {
        let together = |command: &Vec<u8>| matches!(verb(command).as_str(), "FETCH" | "STATUS");
        let mut batch: Vec<_> = self.queue.pop_front().into_iter().collect();
        if self.manner == Manner::Dovecot && batch.iter().all(together) {
            while self.queue.front().is_some_and(together) && !random.once_in(4) {
                batch.extend(self.queue.pop_front());
            }
        }
        batch
    }

    /// Says what has changed and was not said, as far as it may be.
    fn sync(&mut self, mail: &mut Mail, random: &mut Random, may_expunge: bool) {
        let Some(mut open) = self.selected.take() else { return };
        let mailbox = mail.boxes.get(&open.name).filter(|mailbox| mailbox.validity == open.validity);
        if let Some(mailbox) = mailbox {
            let live: BTreeMap<u32, &BTreeSet<String>> =
                mailbox.live.iter().map(|message| (message.uid, &message.flags)).collect();
            if may_expunge {
                let gone: Vec<u32> =
                    open.view.iter().copied().filter(|uid| !live.contains_key(uid)).collect();
                for uid in gone {
                    if !self.thorough && random.once_in(8) {
                        continue;
                    }
                    self.tell_expunge(&mut open, uid);
                }
            }
            let last = open.view.last().copied().unwrap_or(0);
            let last = last.max(open.told.keys().max().copied().unwrap_or(0));
            let new: Vec<u32> = live.keys().copied().filter(|uid| *uid > last).collect();
            if !new.is_empty() || random.once_in(10) {
                for uid in &new {
                    open.told.insert(*uid, live[uid].clone());
                }
                open.view.extend(new);
                self.line(&format!("* {} EXISTS", open.view.len()));
                if random.once_in(2) {
                    self.line("* 0 RECENT");
                }
            }
            for (at, uid) in open.view.clone().iter().enumerate() {
                let Some(flags) = live.get(uid) else { continue };
                if open.told.get(uid) != Some(flags) && (!random.once_in(4) || self.thorough) {
                    open.told.insert(*uid, (*flags).clone());
                    let uid_item = if random.once_in(2) { format!("UID {uid} ") } else { String::new() };
                    self.flags_line(&open, at, &uid_item, flags, mail);
                }
            }
        }
        if !may_expunge && !open.view.is_empty() && random.once_in(8) {
            let at = random.below(open.view.len());
            let id = (open.name.clone(), open.validity, open.view[at]);
            let header = mail.history[&id].content.section("HEADER").unwrap();
            self.header_response(&open, at, &header);
        }
        self.selected = Some(open);
    }

    /// Data of a message may come unasked, with literals and all.
    fn header_response(&mut self, open: &Selected, at: usize, header: &[u8]) {
        let uid = open.view[at];
        let id = (open.name.clone(), open.validity, uid);
        self.mark(Mark::Spoke { id: id.clone(), sections: true });
        self.emit(format!("* {} FETCH (UID {uid} BODY[HEADER] {{{}}}\r\n", at + 1, header.len()).as_bytes());
        self.emit(header);
        self.line(")");
        self.mark(Mark::Spoke { id, sections: true });
    }

    fn flags_line(
        &mut self,
        open: &Selected,
        at: usize,
        uid_item: &str,
        flags: &BTreeSet<String>,
        mail: &Mail,
    ) {
        if !uid_item.is_empty() {
            self.mark(Mark::Named((open.name.clone(), open.validity, open.view[at])));
        }
        let modseq = self.modseq_item(open, at, mail);
        self.line(&format!("* {} FETCH ({uid_item}{modseq}FLAGS {})", at + 1, flag_list(flags)));
        let id = (open.name.clone(), open.validity, open.view[at]);
        self.mark(Mark::Flags { id, seen: flags.contains("\\Seen") });
    }

    /// With a space behind it, where it is to be said.
    fn modseq_item(&self, open: &Selected, at: usize, mail: &Mail) -> String {
        let live = mail.live(&open.name, open.view[at]).filter(|_| self.condstore);
        live.map(|message| format!("MODSEQ ({}) ", message.modseq)).unwrap_or_default()
    }

    fn tell_expunge(&mut self, open: &mut Selected, uid: u32) {
        let at = open.view.iter().position(|known| *known == uid).unwrap();
        open.view.remove(at);
        self.mark(Mark::Nothing);
        self.line(&format!("* {} EXPUNGE", at + 1));
        self.mark(Mark::Expunged((open.name.clone(), open.validity, uid)));
    }

    fn execute(&mut self, command: &[u8], mail: &mut Mail, random: &mut Random) -> Option<String> {
        let words = words(command);
        let word = |at: usize| words.get(at).map(|w| text(&w.raw)).unwrap_or_default();
        let argument = |at: usize| {
            words.get(at).map(|w| text(w.content.as_deref().unwrap_or_default())).unwrap_or_default()
        };
        let tag = word(0);
        let uid_form = word(1).eq_ignore_ascii_case("UID");
        let first = if uid_form { 3 } else { 2 };
        let verb = word(first - 1).to_ascii_uppercase();
        let selects = ["FETCH", "STORE", "SEARCH", "COPY", "MOVE", "EXPUNGE", "CLOSE", "UNSELECT"];
        let ok = |text: &str| Some(format!("{tag} OK {text}"));
        let line = text(command);
        let said = line.split_once(' ').map_or("", |(_, said)| said.trim_end());
        self.asked.insert(tag.clone(), said.to_owned());
        let without_login = ["NOOP", "CHECK", "CAPABILITY", "LOGIN", "AUTHENTICATE", "LOGOUT"];
        if self.user.is_none() && !without_login.contains(&verb.as_str()) {
            self.strikes += usize::from(self.manner == Manner::Dovecot);
            return Some(format!("{tag} BAD Please login first"));
        }
        if selects.contains(&verb.as_str()) && self.selected.is_none() {
            return Some(format!("{tag} BAD No mailbox selected"));
        }
        match verb.as_str() {
            "NOOP" | "CHECK" | "CAPABILITY" => ok("done"),
            "LOGIN" => Some(self.log_in(&tag, &argument(2), &argument(3))),
            "AUTHENTICATE" => {
                assert_eq!(word(2).to_ascii_uppercase(), "PLAIN");
                if words.len() > 3 {
                    return Some(self.log_in_by(&tag, &word(3)));
                }
                self.sasl = Some(tag);
                self.line("+ ");
                None
            }
            "SELECT" | "EXAMINE" => {
                let examine = verb == "EXAMINE";
                let asks = word(3).to_ascii_uppercase().contains("CONDSTORE");
                self.condstore |= asks;
                Some(self.select(&tag, &argument(2), examine, mail, random))
            }
            "CLOSE" | "UNSELECT" => {
                let open = self.selected.take().unwrap();
                if verb == "CLOSE" && !open.read_only {
                    for uid in deleted(mail, &open.name) {
                        mail.expunge(&open.name, uid);
                    }
                }
                ok("closed")
            }
            "STATUS" => {
                let name = box_of(self.user.as_deref().unwrap(), &argument(2));
                let count = mail.boxes[&name].live.len();
                self.line(&format!("* STATUS {} (MESSAGES {count})", word(2)));
                ok("done")
            }
            "MYRIGHTS" if self.is_revoked(mail, &argument(2)) => {
                Some(format!("{tag} NO Mailbox does not exist"))
            }
            "MYRIGHTS" => {
                self.line(&format!("* MYRIGHTS {} lrswi", word(2)));
                ok("done")
            }
            "IDLE" => {
                self.idle = Some(tag);
                self.line("+ idling");
                None
            }
            "LOGOUT" => {
                self.line("* BYE bye");
                self.said_bye = true;
                ok("bye")
            }
            "APPEND" => {
                let octets = words.last().unwrap().content.clone().unwrap();
                let at = self.uploads.iter().position(|upload| upload.octets == octets);
                let content = self.uploads.remove(at.expect("what was appended is what was sent"));
                let name = box_of(self.user.as_deref().unwrap(), &argument(2));
                let uid = mail.add(&name, content, random);
                ok(&format!("[APPENDUID {} {uid}] done", mail.boxes[&name].validity))
            }
            "FETCH" => {
                let modifier = word(first + 2).to_ascii_uppercase();
                let since = modifier.strip_prefix("(CHANGEDSINCE ").map(|n| n.trim_end_matches(')'));
                let since = since.map(|n| n.parse().unwrap());
                self.condstore |= since.is_some();
                if let Some(open) = &self.selected
                    && since.is_some()
                    && !mail.boxes[&open.name].has_modseq
                {
                    return Some(format!("{tag} BAD no MODSEQ here"));
                }
                Some(self.fetch(&tag, uid_form, &word(first), &words[first + 1].raw, since, mail))
            }
            "STORE" => {
                let flags: Vec<String> = inside(&word(first + 2)).split(' ').map(str::to_owned).collect();
                Some(self.store(&tag, uid_form, &word(first), &word(first + 1), &flags, mail))
            }
            "SEARCH" => Some(self.search(
                &tag,
                uid_form,
                &words[first..].iter().map(|w| text(&w.raw)).collect::<Vec<_>>(),
                mail,
            )),
            "COPY" | "MOVE" => {
                let to = argument(first + 1);
                Some(self.copy(&tag, uid_form, &word(first), &to, verb == "MOVE", mail, random))
            }
            "EXPUNGE" => {
                let mut open = self.selected.take().unwrap();
                let chosen = uid_form.then(|| numbers(&word(first), u32::MAX));
                for uid in deleted(mail, &open.name) {
                    if !open.read_only && chosen.as_ref().is_none_or(|chosen| chosen.contains(&uid)) {
                        mail.expunge(&open.name, uid);
                        if open.view.contains(&uid) {
                            self.tell_expunge(&mut open, uid);
                        }
                    }
                }
                self.selected = Some(open);
                ok("expunged")
            }
            _ => panic!("the origin was asked {}", command.escape_ascii()),
        }
    }

    fn log_in(&mut self, tag: &str, user: &str, password: &str) -> String {
        if !USERS.contains(&user) || password != "secret" || self.user.is_some() {
            self.has_refused = true;
            return format!("{tag} NO [AUTHENTICATIONFAILED] no");
        }
        self.user = Some(user.to_owned());
        format!("{tag} OK [CAPABILITY {}] in", self.capabilities())
    }

    /// `\0USER\0PASSWORD` in base64; the model's clients know only these.
    fn log_in_by(&mut self, tag: &str, base64: &str) -> String {
        if base64 == "*" {
            return format!("{tag} BAD Authentication aborted");
        }
        let user = match base64 {
            "AGFsaWNlAHNlY3JldA==" => "alice",
            "AGJvYgBzZWNyZXQ=" => "bob",
            "AGNhcm9sAHNlY3JldA==" => "carol",
            _ => "",
        };
        self.log_in(tag, user, "secret")
    }

    fn is_revoked(&self, mail: &Mail, name: &str) -> bool {
        name == "Shared" && self.user.as_ref().is_some_and(|user| mail.revoked.contains_key(user))
    }

    fn select(
        &mut self,
        tag: &str,
        name: &str,
        examine: bool,
        mail: &mut Mail,
        random: &mut Random,
    ) -> String {
        if self.selected.take().is_some() && random.once_in(2) {
            self.line("* OK [CLOSED] closed");
        }
        let Some(user) = &self.user else { return format!("{tag} NO log in first") };
        if !BOXES.contains(&name) || self.is_revoked(mail, name) {
            return format!("{tag} NO no such mailbox");
        }
        let name = box_of(user, name);
        let mailbox = &mail.boxes[&name];
        let view: Vec<u32> = mailbox.live.iter().map(|message| message.uid).collect();
        let told = mailbox.live.iter().map(|message| (message.uid, message.flags.clone())).collect();
        let mut lines = vec![
            "* FLAGS (\\Seen \\Flagged \\Deleted)".to_owned(),
            format!("* {} EXISTS", view.len()),
            "* 0 RECENT".to_owned(),
            format!("* OK [UIDVALIDITY {}] v", mailbox.validity),
            format!("* OK [UIDNEXT {}] n", mailbox.next_uid),
        ];
        if self.condstore || self.manner == Manner::Cyrus {
            let said = format!("HIGHESTMODSEQ {}", mailbox.modseq);
            let said = if mailbox.has_modseq { &*said } else { "NOMODSEQ" };
            lines.push(format!("* OK [{said}] m"));
        }
        random.shuffle(&mut lines);
        for line in lines {
            self.line(&line);
        }
        self.selected = Some(Selected { name, validity: mailbox.validity, read_only: examine, view, told });
        format!("{tag} OK [READ-{}] open", if examine { "ONLY" } else { "WRITE" })
    }

    /// The messages meant, as positions in the view; an error for numbers that are none.
    fn meant(&self, tag: &str, uid_form: bool, set: &str) -> Result<Vec<(usize, u32)>, String> {
        let view = &self.selected.as_ref().unwrap().view;
        let largest =
            if uid_form { view.last().copied().unwrap_or(0) } else { u32::try_from(view.len()).unwrap() };
        let numbers = numbers(set, largest);
        if uid_form {
            return Ok((0..).zip(view.iter().copied()).filter(|(_, uid)| numbers.contains(uid)).collect());
        }
        let known = |n: &u32| Some((*n as usize - 1, *view.get((*n).checked_sub(1)? as usize)?));
        let meant: Option<Vec<_>> = numbers.iter().map(known).collect();
        meant.ok_or_else(|| match self.manner {
            Manner::Dovecot => format!("{tag} BAD Invalid messageset"),
            Manner::Cyrus => format!("{tag} NO No matching messages"),
        })
    }

    fn fetch(
        &mut self,
        tag: &str,
        uid_form: bool,
        set: &str,
        items: &[u8],
        since: Option<u64>,
        mail: &mut Mail,
    ) -> String {
        let meant = match self.meant(tag, uid_form, set) {
            Ok(meant) => meant,
            Err(line) => return line,
        };
        let mut open = self.selected.take().unwrap();
        let mut asked: Vec<String> = match text(items).to_ascii_uppercase().as_str() {
            "FAST" => ["FLAGS", "INTERNALDATE", "RFC822.SIZE"].map(str::to_owned).into(),
            "ALL" => ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"].map(str::to_owned).into(),
            _ => words(inside(&text(items)).as_bytes()).iter().map(|w| text(&w.raw)).collect(),
        };
        let has = |asked: &[String], name: &str| asked.iter().any(|item| item.eq_ignore_ascii_case(name));
        if uid_form && !has(&asked, "UID") {
            let at = if self.manner == Manner::Dovecot { 0 } else { asked.len() };
            asked.insert(at, "UID".into());
        }
        if self.manner == Manner::Cyrus {
            asked.sort_by_key(|item| item.contains('['));
        }
        let peeks = !asked.iter().any(|item| sets_seen(item));
        assert!(peeks || !tag.starts_with(OURS), "\\Seen is set, and nobody asked for that");
        let mut issued = false;
        for (at, uid) in meant {
            let id = (open.name.clone(), open.validity, uid);
            let live = mail.live(&open.name, uid).is_some();
            let modseq = mail.live(&open.name, uid).map(|message| message.modseq);
            if since.is_some_and(|since| modseq.is_none_or(|modseq| modseq <= since)) {
                continue;
            }
            issued |= !live;
            let mut asked = asked.clone();
            let sets_seen = asked.iter().any(|item| sets_seen(item)) && live && !open.read_only;
            if sets_seen && !mail.live(&open.name, uid).unwrap().flags.contains("\\Seen") {
                mail.set_flag(&open.name, uid, "\\Seen", true);
                if !has(&asked, "FLAGS") {
                    asked.push("FLAGS".into());
                }
            }
            let mut response = format!("* {} FETCH (", at + 1).into_bytes();
            let mut sections = false;
            let mut first = true;
            for item in &asked {
                let gone = !live && self.manner == Manner::Dovecot;
                let message = &mail.history[&id];
                let value = match item.to_ascii_uppercase().as_str() {
                    "UID" => uid.to_string().into_bytes(),
                    _ if gone && item.contains('[') => b"NIL".to_vec(),
                    _ if gone => continue,
                    "FLAGS" => {
                        let told = &open.told[&uid];
                        let now = mail.live(&open.name, uid).map_or_else(
                            || told.iter().cloned().chain(["\\Deleted".to_owned()]).collect(),
                            |message| message.flags.clone(),
                        );
                        open.told.insert(uid, now.clone());
                        flag_list(&now).into_bytes()
                    }
                    "INTERNALDATE" => format!("\"{}\"", message.date).into_bytes(),
                    "RFC822.SIZE" => message.content.octets.len().to_string().into_bytes(),
                    "ENVELOPE" => message.content.envelope().into_bytes(),
                    "BODYSTRUCTURE" => message.content.structure().into_bytes(),
                    _ => section_value(item, &message.content, self.manner),
                };
                if !first {
                    response.push(b' ');
                }
                first = false;
                sections |= item.contains('[') || item.eq_ignore_ascii_case("RFC822");
                response.extend_from_slice(label(item).as_bytes());
                response.push(b' ');
                response.extend_from_slice(&value);
            }
            if first {
                continue;
            }
            if let Some(modseq) = mail.live(&open.name, uid).map(|message| message.modseq)
                && (since.is_some() || self.condstore && self.manner == Manner::Cyrus)
            {
                response.extend_from_slice(format!(" MODSEQ ({modseq})").as_bytes());
            }
            response.extend_from_slice(b")\r\n");
            // A boundary before, so that what is true by its first octet is so when that arrives.
            self.mark(Mark::Spoke { id: id.clone(), sections });
            self.emit(&response);
            self.mark(Mark::Spoke { id: id.clone(), sections });
            if has(&asked, "FLAGS") {
                self.mark(Mark::Flags { id, seen: open.told[&uid].contains("\\Seen") });
            }
        }
        self.selected = Some(open);
        let code = if issued && self.manner == Manner::Dovecot { "[EXPUNGEISSUED] " } else { "" };
        format!("{tag} OK {code}fetched")
    }

    fn store(
        &mut self,
        tag: &str,
        uid_form: bool,
        set: &str,
        how: &str,
        flags: &[String],
        mail: &mut Mail,
    ) -> String {
        let meant = match self.meant(tag, uid_form, set) {
            Ok(meant) => meant,
            Err(line) => return line,
        };
        let mut open = self.selected.take().unwrap();
        let silent = how.to_ascii_uppercase().contains("SILENT");
        let mut acted = Vec::new();
        if !open.read_only {
            for (at, uid) in meant {
                if mail.live(&open.name, uid).is_none() {
                    continue;
                }
                acted.push(uid);
                for flag in flags {
                    mail.set_flag(&open.name, uid, flag, how.starts_with('+'));
                }
                let now = mail.live(&open.name, uid).unwrap().flags.clone();
                if !silent {
                    let uid_item = if uid_form { format!("UID {uid} ") } else { String::new() };
                    self.flags_line(&open, at, &uid_item, &now, mail);
                } else if self.condstore {
                    let modseq = self.modseq_item(&open, at, mail);
                    self.line(&format!("* {} FETCH ({})", at + 1, modseq.trim_end()));
                }
                open.told.insert(uid, now);
            }
        }
        let read_only = open.read_only;
        self.acted.insert(tag.to_owned(), acted);
        self.selected = Some(open);
        if read_only { format!("{tag} NO read-only") } else { format!("{tag} OK stored") }
    }

    fn search(&mut self, tag: &str, uid_form: bool, keys: &[String], mail: &mut Mail) -> String {
        let returns = keys.first().is_some_and(|key| key.eq_ignore_ascii_case("RETURN"));
        let mut keys = keys.iter().skip(if returns { 2 } else { 0 });
        let open = self.selected.as_ref().unwrap();
        let mut found: Vec<(usize, u32)> = (0..).zip(open.view.iter().copied()).collect();
        // Cyrus no longer finds what is gone; Dovecot's view is what it told.
        if self.manner == Manner::Cyrus {
            found.retain(|(_, uid)| mail.live(&open.name, *uid).is_some());
        }
        let flags = |uid: u32| mail.live(&open.name, uid).map_or(&open.told[&uid], |message| &message.flags);
        while let Some(key) = keys.next() {
            let key = key.to_ascii_uppercase();
            let largest = u32::try_from(open.view.len()).unwrap();
            match key.as_str() {
                "ALL" => {}
                "SEEN" => found.retain(|(_, uid)| flags(*uid).contains("\\Seen")),
                "UNSEEN" => found.retain(|(_, uid)| !flags(*uid).contains("\\Seen")),
                "FLAGGED" => found.retain(|(_, uid)| flags(*uid).contains("\\Flagged")),
                "UID" => {
                    let set = numbers(keys.next().unwrap(), open.view.last().copied().unwrap_or(0));
                    found.retain(|(_, uid)| set.contains(uid));
                }
                _ => {
                    let set = numbers(&key, largest);
                    found.retain(|(at, _)| set.contains(&(u32::try_from(*at).unwrap() + 1)));
                }
            }
        }
        let uids: Vec<u32> = found.iter().map(|(_, uid)| *uid).collect();
        let id = |uid: u32| (open.name.clone(), open.validity, uid);
        let named: Vec<MessageId> = uids.iter().map(|uid| id(*uid)).collect();
        let numbers =
            found.iter().map(|(at, uid)| if uid_form { uid.to_string() } else { (at + 1).to_string() });
        if returns {
            let list = numbers.collect::<Vec<_>>().join(",");
            let all = if list.is_empty() { String::new() } else { format!(" ALL {list}") };
            self.line(&format!("* ESEARCH (TAG \"{tag}\") UID{all}"));
        } else {
            let list: String = numbers.map(|n| format!(" {n}")).collect();
            self.line(&format!("* SEARCH{list}"));
        }
        if uid_form {
            named.into_iter().for_each(|id| self.mark(Mark::Named(id)));
        }
        self.found.insert(tag.to_owned(), uids);
        format!("{tag} OK found")
    }

    #[expect(clippy::too_many_arguments, reason = "a command has as many")]
    fn copy(
        &mut self,
        tag: &str,
        uid_form: bool,
        set: &str,
        to: &str,
        moves: bool,
        mail: &mut Mail,
        random: &mut Random,
    ) -> String {
        let meant = match self.meant(tag, uid_form, set) {
            Ok(meant) => meant,
            Err(line) => return line,
        };
        let mut open = self.selected.take().unwrap();
        let to = box_of(self.user.as_deref().unwrap(), to);
        let mut acted = Vec::new();
        for (_, uid) in meant {
            if mail.live(&open.name, uid).is_none() {
                continue;
            }
            acted.push(uid);
            let content = mail.history[&(open.name.clone(), open.validity, uid)].content.clone();
            mail.add(&to, content, random);
            if moves && !open.read_only {
                mail.expunge(&open.name, uid);
                self.tell_expunge(&mut open, uid);
            }
        }
        self.acted.insert(tag.to_owned(), acted);
        self.selected = Some(open);
        format!("{tag} OK [COPYUID {} 1 1] copied", mail.boxes[&to].validity)
    }
}

fn deleted(mail: &Mail, name: &BoxName) -> Vec<u32> {
    let live = &mail.boxes[name].live;
    live.iter().filter(|message| message.flags.contains("\\Deleted")).map(|message| message.uid).collect()
}

fn verb(command: &[u8]) -> String {
    let line = text(command).to_ascii_uppercase();
    let mut words = line.split_whitespace().skip(1);
    match words.next() {
        Some("UID") => words.next().unwrap_or_default().to_owned(),
        verb => verb.unwrap_or_default().to_owned(),
    }
}

/// Whether EXPUNGE is forbidden while it runs (RFC 9051 §7.5.1).
fn by_number(command: &[u8]) -> bool {
    let line = text(command).to_ascii_uppercase();
    ["FETCH", "STORE", "SEARCH"].contains(&line.split_whitespace().nth(1).unwrap_or_default())
}

fn flag_list(flags: &BTreeSet<String>) -> String {
    format!("({})", flags.iter().cloned().collect::<Vec<_>>().join(" "))
}

fn inside(list: &str) -> String {
    list.strip_prefix('(').and_then(|l| l.strip_suffix(')')).unwrap_or(list).to_owned()
}

/// How a response names what was asked as `item`.
pub(crate) fn label(item: &str) -> String {
    let item = item.to_ascii_uppercase().replace(".PEEK[", "[");
    match item.split_once('<') {
        Some((section, partial)) => format!("{section}<{}>", partial.split('.').next().unwrap()),
        None => item,
    }
}

pub(crate) fn sets_seen(item: &str) -> bool {
    let item = item.to_ascii_uppercase();
    item.starts_with("BODY[") || item == "RFC822"
}

/// The octets that an item of a section names: the section, or the piece of it.
pub(crate) fn section_octets(item: &str, content: &Content) -> Option<Vec<u8>> {
    let item = item.to_ascii_uppercase();
    let (section, partial) = item.split_once('<').map_or((item.as_str(), None), |(s, p)| (s, Some(p)));
    let spec = match section {
        "RFC822" => "",
        _ => section.split_once('[')?.1.strip_suffix(']')?,
    };
    let octets = content.section(spec)?;
    let Some(partial) = partial else { return Some(octets) };
    let (first, count) = partial.strip_suffix('>')?.split_once('.')?;
    let first = first.parse::<usize>().ok()?.min(octets.len());
    let end = (first + count.parse::<usize>().ok()?).min(octets.len());
    Some(octets[first..end].to_vec())
}

fn section_value(item: &str, content: &Content, manner: Manner) -> Vec<u8> {
    let Some(octets) = section_octets(item, content) else { return b"NIL".to_vec() };
    let plain = !octets.is_empty() && octets.iter().all(|o| o.is_ascii_graphic() && !b"\"\\".contains(o));
    if plain && manner == Manner::Cyrus {
        return [b"\"", octets.as_slice(), b"\""].concat();
    }
    [format!("{{{}}}\r\n", octets.len()).as_bytes(), &octets].concat()
}
