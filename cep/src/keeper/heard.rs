//! What the origin says.

use super::{Keeper, Phase, Why};
use bytes::Bytes;
use discovery_core::now::Now;
use imap_core::{
    framer::Frame,
    response::{Code, Response, Status, response},
    retained::UidRanges,
    sequence_set::SequenceSet,
    uid::UidValidity,
};

impl Keeper {
    pub(super) fn frame(&mut self, now: Now, frame: Frame) {
        if self.reading.is_some() {
            return self.read_on(now, frame);
        }
        let (piece, whole) = match &frame {
            Frame::End { piece } => (piece.clone(), true),
            Frame::Literal { piece, .. } | Frame::Overlong { piece } => (piece.clone(), false),
            Frame::Chunk(_) => return,
        };
        if std::mem::replace(&mut self.skipping, !whole) {
            return;
        }
        match response(&piece) {
            Ok(Response::Fetch { .. }) => {
                self.skipping = false;
                self.begin_reading(now, &piece, frame);
            }
            Ok(Response::Exists(_) | Response::Expunge(_) | Response::Vanished { earlier: false, .. }) => {
                self.changed(now);
            }
            Ok(Response::Status { status: Status::Bye, .. }) => {
                if !matches!(self.phase, Phase::Leaving(_)) {
                    self.over(now, Why::OriginLost);
                }
            }
            Ok(Response::Status { code: Some(Code { name, argument }), .. })
                if name.eq_ignore_ascii_case(b"UIDVALIDITY") =>
            {
                self.validity = number(argument).and_then(UidValidity::new);
            }
            Ok(Response::Status { code: Some(Code { name, .. }), .. })
                if name.eq_ignore_ascii_case(b"NOTIFICATIONOVERFLOW") =>
            {
                self.untold = true;
            }
            Ok(Response::StatusData) if whole => self.told_of(now, &piece),
            // What is not heard to its end is no list: the newest would be missing.
            Ok(Response::Esearch(said)) => self.found(esearch_all(said).filter(|_| whole)),
            Ok(Response::Search(said)) => {
                let uids = UidRanges::of(said.split(|o| *o == b' ').map_while(number));
                self.found(whole.then_some(uids));
            }
            Ok(Response::Tagged { tag, status, .. }) => self.completed(now, tag, status),
            Ok(_) | Err(_) => {}
        }
    }

    /// STATUS that nobody asked for: NOTIFY's word for news in another mailbox.
    fn told_of(&mut self, now: Now, piece: &Bytes) {
        let Some(name) = mailbox_of(piece) else { return };
        if name == self.here().name {
            return self.changed(now);
        }
        self.elsewhere(name);
        let at_once = self.visits_from().is_none_or(|from| from <= now.mono);
        if matches!(self.phase, Phase::Idle(_, false)) && at_once {
            self.leave_idle(now);
        }
    }

    fn found(&mut self, uids: Option<UidRanges>) {
        if matches!(self.phase, Phase::Opening { .. }) {
            self.misheard |= uids.is_none();
            self.listed = uids;
        }
    }

    /// New mail, or some is gone: looked at after what is under way.
    fn changed(&mut self, now: Now) {
        match self.phase {
            // What EXAMINE itself says.
            Phase::Opening { .. } | Phase::Leaving(_) | Phase::Over => {}
            Phase::Idle(_, false) => {
                self.stale = true;
                self.leave_idle(now);
            }
            Phase::Idle(_, true)
            | Phase::LeavingIdle(_)
            | Phase::Asking(_)
            | Phase::Fetching(_)
            | Phase::Waiting(_)
            | Phase::Pausing(_) => self.stale = true,
        }
    }

    fn completed(&mut self, now: Now, tag: &[u8], status: Status) {
        let ok = status == Status::Ok;
        if self.notified.as_deref() == Some(tag) {
            self.untold |= !ok;
            return;
        }
        match &self.phase {
            Phase::LeavingIdle(idle) | Phase::Idle(idle, true) if *idle == tag => self.open(now),
            // The origin will not idle.
            Phase::Idle(idle, false) if *idle == tag => self.pause(now),
            Phase::Opening { examine, .. } if *examine == tag => {
                if ok {
                    self.examined(now);
                } else if self.away.is_none() {
                    self.handle_end(now, Why::NoMailbox);
                }
                // Else the SEARCH behind it is waited for.
            }
            Phase::Opening { search, .. } if *search == tag => {
                if ok && self.opened && !self.misheard {
                    // Some servers say nothing of an empty mailbox.
                    self.listed.get_or_insert_with(UidRanges::default);
                    self.listed(now);
                } else if self.away.is_some() {
                    self.turned_away(now);
                } else {
                    self.watch(now);
                }
            }
            Phase::Fetching(fetch) if *fetch == tag => self.fetch_done(ok, now),
            Phase::Leaving(why) if tag.starts_with(b"CEP") => {
                let why = *why;
                if status == Status::Ok && self.tags > 0 && is_tag(tag, self.tags) {
                    self.over(now, why);
                }
            }
            Phase::LeavingIdle(_)
            | Phase::Opening { .. }
            | Phase::Asking(_)
            | Phase::Fetching(_)
            | Phase::Waiting(_)
            | Phase::Idle(..)
            | Phase::Pausing(_)
            | Phase::Leaving(_)
            | Phase::Over => {}
        }
    }
}

fn is_tag(tag: &[u8], n: u64) -> bool {
    // After `CEP` and the nonce's twelve digits.
    tag.get(15..) == Some(n.to_string().as_bytes())
}

/// Of `* STATUS mailbox (…)`, with INBOX in its one spelling.
fn mailbox_of(piece: &[u8]) -> Option<Bytes> {
    let said = piece.get(b"* STATUS ".len()..)?;
    let name: Bytes = match said.strip_prefix(b"\"") {
        None => Bytes::copy_from_slice(said.split(|o| *o == b' ').next()?),
        Some(quoted) => {
            let mut name = Vec::new();
            let mut octets = quoted.iter();
            loop {
                match octets.next()? {
                    b'"' => break name.into(),
                    b'\\' => name.push(*octets.next()?),
                    octet => name.push(*octet),
                }
            }
        }
    };
    Some(if name.eq_ignore_ascii_case(b"INBOX") { Bytes::from_static(b"INBOX") } else { name })
}

/// The set behind ALL in an ESEARCH response, which names none of an empty mailbox; `None`: it cannot be read.
fn esearch_all(said: &[u8]) -> Option<UidRanges> {
    let mut words = said.split(|o| *o == b' ');
    if !words.any(|word| word.eq_ignore_ascii_case(b"ALL")) {
        return Some(UidRanges::default());
    }
    let set = SequenceSet::parse(words.next()?).ok()?;
    if set.has_star() {
        return None;
    }
    Some(UidRanges::of_ranges(set.resolve(u32::MAX)))
}

pub(super) fn number(octets: &[u8]) -> Option<u32> {
    std::str::from_utf8(octets).ok()?.trim().parse().ok()
}
