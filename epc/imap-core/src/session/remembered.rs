//! What one session leaves to the next about the flags of a mailbox, and what the origin says only because a session
//! before knew: MODSEQ, which this session's client did not ask for.

use super::Phase;
use crate::{
    flag_snapshot::{FlagMemory, FlagSnapshot, Known},
    framer::Frame,
    mutants,
    response::{Code, Status},
};
use bytes::Bytes;
use discovery_core::id::AccountKey;
use std::sync::Arc;

/// Of a session, and of the mailbox that it has open.
#[derive(Default)]
pub(super) struct Remembered {
    memory: Option<Arc<dyn FlagMemory>>,
    /// The origin says MODSEQ because we asked it for changes, not the client.
    hides_modseq: bool,
    /// It would say HIGHESTMODSEQ to whoever opens the mailbox.
    says_modseq: bool,
    /// The lowest HIGHESTMODSEQ said since the mailbox is being opened.
    modseq: Option<u64>,
    /// It has none that lasts.
    no_modseq: bool,
    recent: u32,
    /// The origin writes the UID behind the flags.
    uid_last: bool,
    /// Flags of the open mailbox were left to the next session.
    left: bool,
}

impl Remembered {
    /// Another mailbox is opened, or none.
    pub(super) fn closed(&mut self) {
        (self.modseq, self.no_modseq, self.recent, self.left) = (None, false, 0, false);
    }

    pub(super) fn recall(&self, account: &AccountKey, mailbox: &[u8]) -> Option<Known> {
        self.memory.as_ref().filter(|_| mailbox == INBOX)?.recall(account, mailbox)
    }

    /// From which on changes have a higher one.
    pub(super) fn modseq(&self) -> Option<u64> {
        self.modseq.filter(|_| !self.no_modseq)
    }

    /// How many messages the origin says are recent.
    pub(super) fn recent(&self) -> u32 {
        self.recent
    }

    pub(super) fn saw_recent(&mut self, n: u32) {
        self.recent = n;
    }

    /// A FETCH response, from its list on.
    pub(super) fn saw_list(&mut self, list: &[u8]) {
        self.uid_last = list.starts_with(b"(FLAGS ");
    }

    /// The mailbox is opened in a way that makes the origin say MODSEQ.
    pub(super) fn hide_modseq(&mut self, known: &Known) {
        self.hides_modseq = true;
        self.says_modseq = known.says_modseq;
    }

    /// What went ahead was refused: nothing of it holds.
    pub(super) fn show_modseq(&mut self) {
        (self.hides_modseq, self.says_modseq) = (false, false);
    }

    /// The client has said this: if it knows of MODSEQ, it wants to hear of it (RFC 7162 §3.1: any such command turns it
    /// on). Of a command that only looks like one it hears more than it asked for, which every client must bear.
    pub(super) fn saw_command(&mut self, octets: &[u8]) {
        if self.hides_modseq {
            let said = octets.to_ascii_uppercase();
            let says = |word: &[u8]| said.windows(word.len()).any(|at| at == word);
            self.hides_modseq = !(says(b"MODSEQ") || says(b"CONDSTORE") || says(b"CHANGEDSINCE"));
        }
    }
}

impl super::Session {
    /// Leaves flags to the next session of the same account and asks it only for changes of what it finds.
    pub fn remember_flags(&mut self, memory: Arc<dyn FlagMemory>) {
        self.remembered.memory = Some(memory);
    }

    /// A response code of the mailbox that is open or being opened. Whether the client need not hear it.
    pub(super) fn saw_code(&mut self, status: Status, code: Option<Code<'_>>) -> bool {
        let Some(code) = code else { return false };
        let opening = matches!(self.phase, Phase::Selecting);
        let none = code.name.eq_ignore_ascii_case(b"NOMODSEQ");
        if !none && !code.name.eq_ignore_ascii_case(b"HIGHESTMODSEQ") {
            return false;
        }
        let remembered = &mut self.remembered;
        remembered.no_modseq |= none && opening;
        if opening && let Some(said) = super::number(code.argument).filter(|said| *said > 0) {
            let lowest = remembered.modseq.map_or(said, |before| before.min(said));
            remembered.modseq = Some(lowest);
        }
        // Cyrus says it also when CONDSTORE is turned on, which the client did not.
        let unasked = remembered.hides_modseq && !(opening && remembered.says_modseq);
        status == Status::Ok && unasked
    }

    /// A FETCH of the client was answered: perhaps all flags have now been said.
    pub(super) fn leave_flags(&mut self) {
        let Some(memory) = self.remembered.memory.clone().filter(|_| !self.remembered.left) else { return };
        let able = self.capabilities.has("CONDSTORE") && self.capabilities.has("ESEARCH");
        let key = self.mailbox_key().filter(|key| key.name == INBOX && !key.utf8 && able);
        let Some(key) = key.cloned() else { return };
        let told = u64::from(self.views.server_len()) <= self.flags.len() as u64;
        if !told || !self.views.all_uids_known() {
            return;
        }
        let said = |(msn, uid)| Some((uid, self.flags.last(self.views.slot_of_server(msn)?)?));
        let all: Option<Vec<_>> = self.views.known_uids().map(said).collect();
        let Some(all) = all else { return };
        let all = all.into_iter().map(|(uid, list)| (uid, &**list));
        let uid_last = self.remembered.uid_last;
        let of = |modseq| FlagSnapshot::new(key.uid_validity, modseq, uid_last, all);
        let snapshot = self.remembered.modseq().and_then(of).map(Arc::new);
        let said = self.remembered.modseq.is_some() || self.remembered.no_modseq;
        let says_modseq = if self.remembered.hides_modseq { self.remembered.says_modseq } else { said };
        self.remembered.left = true;
        memory.remember(&key, Known { messages: self.views.server_len(), says_modseq, snapshot });
    }

    /// A frame as a client hears it that did not ask for MODSEQ; `None`: there is nothing else in it.
    pub(super) fn without_modseq(&self, frame: Frame) -> Option<Frame> {
        if !self.remembered.hides_modseq || mutants::on("flags-modseq-told") {
            return Some(frame);
        }
        let begins = matches!(self.reading, super::tee::Reading::Nothing);
        let fits = |piece: &[u8]| !begins || is_fetch(piece);
        match frame {
            Frame::End { piece } if fits(&piece) => {
                let Some(rest) = cut_modseq(&piece) else { return Some(Frame::End { piece }) };
                let nothing = begins && !self.proves() && self.says_nothing(&rest);
                (!nothing).then_some(Frame::End { piece: rest })
            }
            Frame::Literal { piece, octets, binary, nonsync } if fits(&piece) => {
                let piece = cut_modseq(&piece).unwrap_or(piece);
                Some(Frame::Literal { piece, octets, binary, nonsync })
            }
            Frame::End { .. } | Frame::Literal { .. } | Frame::Chunk(_) | Frame::Overlong { .. } => {
                Some(frame)
            }
        }
    }

    /// Whether nothing is left that somebody may have asked for.
    fn says_nothing(&self, piece: &[u8]) -> bool {
        let list = piece.iter().position(|o| *o == b'(').and_then(|at| piece.get(at..)).unwrap_or_default();
        let list = list.trim_ascii_end();
        let asked = self.underway.iter().any(|u| u.fetches && u.completion.is_none());
        let uid_alone = list.starts_with(b"(UID ") && list.iter().filter(|o| **o == b' ').count() == 1;
        list == b"()" || uid_alone && !asked
    }
}

fn is_fetch(piece: &[u8]) -> bool {
    let mut words = piece.split(|o| *o == b' ');
    words.next() == Some(b"*") && words.nth(1).is_some_and(|word| word.eq_ignore_ascii_case(b"FETCH"))
}

/// A piece of a FETCH response without `MODSEQ (n)`; `None` if there is none. Outside of strings a name with a number
/// in parentheses can only be the item.
fn cut_modseq(piece: &[u8]) -> Option<Bytes> {
    let mut quoted = false;
    let mut at = 0;
    while let Some(octet) = piece.get(at) {
        match octet {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b' ' | b'(' if !quoted => {
                if let Some(octets) = piece.get(at + 1..).and_then(modseq_octets) {
                    // With the space before, or, at the beginning of a list, the one behind.
                    let (from, to) =
                        if *octet == b' ' { (at, at + 1 + octets) } else { (at + 1, at + 1 + octets) };
                    let behind = piece.get(to..)?;
                    let behind =
                        if *octet == b'(' { behind.strip_prefix(b" ").unwrap_or(behind) } else { behind };
                    return Some([piece.get(..from)?, behind].concat().into());
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// How long `MODSEQ (n)` is, if it stands here.
fn modseq_octets(rest: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"MODSEQ (";
    let name = rest.get(..NAME.len())?;
    let digits = rest.get(NAME.len()..)?.iter().take_while(|o| o.is_ascii_digit()).count();
    let ends = rest.get(NAME.len() + digits) == Some(&b')');
    (name.eq_ignore_ascii_case(NAME) && digits > 0 && ends).then_some(NAME.len() + digits + 1)
}

/// The one mailbox that is everybody's own. In others `\Seen` may be kept for each reader beside the mailbox, where no
/// MODSEQ tells of its changes.
const INBOX: &[u8] = b"INBOX";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modseq_is_cut_out_of_a_response_and_nothing_else() {
        for (piece, left) in [
            ("* 1 FETCH (UID 5 FLAGS (\\Seen) MODSEQ (9))\r\n", Some("* 1 FETCH (UID 5 FLAGS (\\Seen))\r\n")),
            ("* 1 FETCH (MODSEQ (9) FLAGS ())\r\n", Some("* 1 FETCH (FLAGS ())\r\n")),
            ("* 1 FETCH (UID 5 modseq (9) FLAGS ())\r\n", Some("* 1 FETCH (UID 5 FLAGS ())\r\n")),
            ("* 1 FETCH (MODSEQ (9))\r\n", Some("* 1 FETCH ()\r\n")),
            (
                "* 1 FETCH (FLAGS ($x) UID 5 MODSEQ (18446744073709551615))\r\n",
                Some("* 1 FETCH (FLAGS ($x) UID 5)\r\n"),
            ),
            (" MODSEQ (9))\r\n", Some(")\r\n")),
            ("* 1 FETCH (MODSEQ (9) BODY[] {4}\r\n", Some("* 1 FETCH (BODY[] {4}\r\n")),
            ("* 1 FETCH (ENVELOPE (NIL \"a MODSEQ (9)\"))\r\n", None),
            ("* 1 FETCH (ENVELOPE (NIL \"a \\\" MODSEQ (9)\"))\r\n", None),
            ("* 1 FETCH (FLAGS (MODSEQ) UID 5)\r\n", None),
            ("* 1 FETCH (UID 5 XMODSEQ (9))\r\n", None),
            ("* 1 FETCH (UID 5 MODSEQ ())\r\n", None),
        ] {
            let cut = cut_modseq(piece.as_bytes());
            assert_eq!(cut.as_deref(), left.map(str::as_bytes), "{piece}");
        }
    }

    #[test]
    fn only_a_client_that_knows_of_it_hears_of_it() {
        for (line, knows) in [
            ("a UID FETCH 1:* (FLAGS)\r\n", false),
            ("a NOOP\r\n", false),
            ("a UID FETCH 1:* (FLAGS MODSEQ)\r\n", true),
            ("a uid fetch 1:* (FLAGS) (changedsince 5)\r\n", true),
            ("a SELECT INBOX (CONDSTORE)\r\n", true),
            ("a ENABLE CONDSTORE\r\n", true),
            ("a STATUS INBOX (HIGHESTMODSEQ)\r\n", true),
            ("a STORE 1 (UNCHANGEDSINCE 5) +FLAGS (\\Seen)\r\n", true),
        ] {
            let mut remembered = Remembered { hides_modseq: true, ..Remembered::default() };
            remembered.saw_command(line.as_bytes());
            assert_eq!(remembered.hides_modseq, !knows, "{line}");
        }
    }
}
