//! What must hold in every run, by name. `docs/SIMULATOR.md` says what each claims.

use crate::{
    mail::{Mail, MessageId},
    origin::Mark,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Checker {
    /// No octet of a message to one who may not have it, or to whom the origin has not shown it.
    Canary,
    /// What a client gets is what the server has.
    Transcript,
    /// OK is said only of what the origin said OK to, and no session ends by itself.
    NothingLost,
    /// What waits, and what is held for a session, is bounded.
    Budget,
    /// Once nothing goes wrong any more, everything that was asked is answered.
    NoWedge,
    /// `\Seen` is set when the client asked for it, and then before it hears OK.
    Seen,
    /// A connection without a client ends when it must, and does nothing that nobody may notice.
    Kept,
    /// The same seed gives the same run; no part of it panics.
    Replay,
}

impl Checker {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Transcript => "transcript",
            Self::NothingLost => "nothing-lost",
            Self::Budget => "budget",
            Self::NoWedge => "no-wedge",
            Self::Seen => "seen",
            Self::Kept => "kept",
            Self::Replay => "replay",
        }
    }

    /// Whose concern it is what a client of the session model complains of.
    pub(crate) fn of_lie(lie: &str) -> Self {
        let first = lie.lines().next().unwrap_or_default();
        let table: [(&str, Self); 6] = [
            ("has not set \\Seen", Self::Seen),
            ("and the origin said", Self::NothingLost),
            ("the origin did nothing", Self::NothingLost),
            ("was left out of", Self::NothingLost),
            ("did not come", Self::NothingLost),
            ("has not shown to this session", Self::Canary),
        ];
        table
            .iter()
            .find(|(words, _)| first.contains(words))
            .map_or(Self::Transcript, |(_, checker)| *checker)
    }
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) checker: Checker,
    pub(crate) what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker.word(), self.what)
    }
}

/// Reads the raw octets to a client for the marks that every piece of every message bears.
#[derive(Default)]
pub(crate) struct Canary {
    /// The messages whose place the origin has shown to this session.
    proved: BTreeSet<u64>,
    /// Those whom this client may have, as far as looked up.
    owned: BTreeMap<u64, bool>,
    tail: Vec<u8>,
    last: u64,
}

impl Canary {
    pub(crate) fn proved(&mut self, mark: &Mark, mail: &Mail) {
        let (Mark::Spoke { id, .. } | Mark::Named(id)) = mark else { return };
        self.proved
            .extend(mail.history.get(id).and_then(|message| number(message.content.canary.as_bytes())));
    }

    /// What a client gets, in any pieces.
    pub(crate) fn hear(&mut self, octets: &[u8], user: &str, mail: &Mail) -> Result<(), String> {
        self.tail.extend_from_slice(octets);
        let mut at = 0;
        while let Some(begin) = find(&self.tail[at..], WORD) {
            at += begin;
            if self.tail.len() < at + CANARY_OCTETS {
                break;
            }
            if let Some(n) = number(&self.tail[at..at + CANARY_OCTETS]).filter(|n| *n != self.last) {
                let owned = self.owned.entry(n).or_insert_with(|| may_have(mail, user, n));
                // Mail may have come to him since.
                if !*owned && !may_have(mail, user, n) {
                    return Err(format!("canary-{n:06} is not {user}'s, who got it"));
                }
                *owned = true;
                if !self.proved.contains(&n) {
                    return Err(format!("canary-{n:06} came to {user}, to whom the origin has not shown it"));
                }
                self.last = n;
            }
            at += CANARY_OCTETS;
        }
        let keep = self.tail.len().min(CANARY_OCTETS - 1).min(self.tail.len() - at.min(self.tail.len()));
        self.tail.drain(..self.tail.len() - keep);
        Ok(())
    }
}

fn may_have(mail: &Mail, user: &str, n: u64) -> bool {
    let is = |((owner, _), ..): &MessageId| owner == user || owner == "*";
    mail.history.iter().any(|(id, message)| is(id) && number(message.content.canary.as_bytes()) == Some(n))
}

fn number(canary: &[u8]) -> Option<u64> {
    std::str::from_utf8(canary.get(WORD.len()..)?).ok()?.parse().ok()
}

fn find(octets: &[u8], word: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = octets[from..].iter().position(|octet| *octet == word[0]) {
        if octets[from + at..].starts_with(word) || word.starts_with(&octets[from + at..]) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

const WORD: &[u8] = b"canary-";
const CANARY_OCTETS: usize = 13;

/// Who asked for `\Seen`, and what was sent to the origin about it.
#[derive(Default)]
pub(crate) struct SeenWatch {
    /// Tags of commands that may set it.
    tags: BTreeSet<String>,
}

impl SeenWatch {
    /// The client has said this.
    pub(crate) fn asked(&mut self, words: &str) {
        if let Some(tag) = words.split(' ').next().filter(|_| sets_seen(words) || words.contains(" APPEND "))
        {
            self.tags.insert(tag.to_owned());
        }
    }

    /// The client is told this; a line with a tag comes by itself.
    pub(crate) fn told(&mut self, octets: &[u8]) {
        if !self.tags.is_empty()
            && !octets.starts_with(b"*")
            && let Some(tag) = octets.split(|octet| *octet == b' ').next()
        {
            self.tags.remove(String::from_utf8_lossy(tag).as_ref());
        }
    }

    /// The origin is sent this.
    pub(crate) fn forwarded(&self, octets: &[u8]) -> Result<(), String> {
        let line = String::from_utf8_lossy(&octets[..octets.len().min(300)]);
        if self.tags.is_empty() && sets_seen(&line) {
            return Err(format!(
                "nobody asked that \\Seen be set, and the origin was sent {}",
                line.escape_debug()
            ));
        }
        Ok(())
    }
}

fn sets_seen(words: &str) -> bool {
    let words = words.to_ascii_uppercase();
    let fetches = words.contains(" FETCH ") && (words.contains("BODY[") || words.contains("RFC822)"));
    let fetches = fetches || words.contains(" FETCH ") && words.trim_end().ends_with("RFC822");
    let fetches = fetches || words.contains("RFC822 ") || words.contains("RFC822.TEXT");
    fetches || words.contains(" STORE ") && words.contains("\\SEEN")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_canary_is_seen_in_any_pieces() {
        let mail = Mail::numbered(&mut Random::new(1), 100_000);
        let (id, message) = mail.history.iter().find(|(id, _)| id.0.0 == "alice").expect("she has mail");
        let text = format!("before {} behind", message.content.canary);
        for cut in 0..text.len() {
            let mut canary = Canary::default();
            let mut hear = |octets: &str| canary.hear(octets.as_bytes(), "alice", &mail);
            let unproved = hear(&text[..cut]).is_err() || hear(&text[cut..]).is_err();
            assert!(unproved, "cut at {cut}");
            let mut canary = Canary::default();
            canary.proved(&Mark::Named(id.clone()), &mail);
            assert_eq!(canary.hear(&text.as_bytes()[..cut], "alice", &mail), Ok(()));
            assert_eq!(canary.hear(&text.as_bytes()[cut..], "alice", &mail), Ok(()));
        }
    }

    #[test]
    fn asking_without_peek_is_noticed() {
        let mut watch = SeenWatch::default();
        assert_eq!(watch.forwarded(b"x UID FETCH 3 BODY.PEEK[]\r\n"), Ok(()));
        assert!(watch.forwarded(b"x UID FETCH 3 BODY[]\r\n").is_err());
        watch.asked("t1 FETCH 1 (FLAGS BODY[TEXT])\r\n");
        assert_eq!(watch.forwarded(b"x UID STORE 3 +FLAGS.SILENT (\\Seen)\r\n"), Ok(()));
        watch.told(b"t1 OK done\r\n");
        assert!(watch.forwarded(b"x UID STORE 3 +FLAGS.SILENT (\\Seen)\r\n").is_err());
    }
}
