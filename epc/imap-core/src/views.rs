//! The two views of a selected mailbox and the log between them.
//!
//! A message sequence number means something only in one connection at one moment (RFC 9051 §2.3.1.2). Waypost
//! has two connections: the *server's view* is what the origin has told us, the *client's view* is what we have
//! told the client. Both are lists of slots, opaque names of messages; the log holds, in order, what the client
//! has yet to hear. Numbers are computed in the client's view at the moment of telling, so an EXPUNGE that must
//! wait (RFC 9051 §7.5.1 forbids it while FETCH, STORE or SEARCH by number runs, and while no command runs) holds
//! nothing else back.
//!
//! Slots are counted upwards as messages are appended and removal keeps order, so both views are sorted by slot
//! and every lookup is a binary search. Not known here: what a command is, what the client asked, the time.

use crate::{
    mutants,
    uid::{Msn, Uid},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    ops::RangeInclusive,
};

/// A message of this selection, independent of its number. Never reused, not even after [`Views::reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u64);

/// The server said what cannot be, or we misread it: numbers can no longer be trusted in this selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Desync {
    /// EXISTS may only grow; messages leave by EXPUNGE (RFC 9051 §7.5.1).
    #[error("the server has {had} messages and says EXISTS {said} without EXPUNGE")]
    ExistsShrank {
        /// What we hold.
        had: u32,
        /// What it said.
        said: u32,
    },
    /// More than [`MESSAGES_MAX`], with what is withheld.
    #[error("the server says EXISTS {said}; at most {MESSAGES_MAX} are tracked")]
    TooManyMessages {
        /// What it said.
        said: u32,
    },
    /// A number beyond the mailbox's end.
    #[error("the server speaks of message {msn} of {had}")]
    NoSuchMessage {
        /// The number.
        msn: Msn,
        /// What we hold.
        had: u32,
    },
    /// A message's UID never changes (RFC 9051 §2.3.1.1).
    #[error("message {msn} had UID {had} and now has {said}")]
    UidChanged {
        /// The number in the server's view.
        msn: Msn,
        /// What we held.
        had: Uid,
        /// What it said.
        said: Uid,
    },
    /// UIDs ascend with message sequence numbers (RFC 9051 §2.3.1.1).
    #[error("message {msn} has UID {said}, against the order of its neighbours")]
    UidOrder {
        /// The number in the server's view.
        msn: Msn,
        /// What it said.
        said: Uid,
    },
}

/// What the client may hear at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// FETCH, STORE or SEARCH by number is in progress, or no command at all: everything but EXPUNGE.
    NoExpunge,
    /// Any other command, or IDLE.
    All,
}

/// What to tell the client, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// `* n EXISTS`
    Exists(u32),
    /// `* n EXPUNGE`
    Expunge(Msn),
    /// `* n RECENT`
    Recent(u32),
    /// `* n FETCH ` and the payload.
    Fetch {
        /// The number in the client's view now.
        msn: Msn,
        /// What stands behind `FETCH `, CRLF included.
        payload: Bytes,
    },
    /// A whole untagged line.
    Line(Bytes),
}

/// The server's view, the client's view, and the log between.
#[derive(Debug, Default)]
pub struct Views {
    server: VecDeque<Slot>,
    /// Known UIDs of `server`; ascends in slots as well.
    uids: BTreeMap<Uid, SlotId>,
    client: VecDeque<SlotId>,
    /// Slots the server has expunged and the client still counts: exactly `client` minus `server`.
    gone: BTreeMap<SlotId, Slot>,
    /// The next slot to be appended to `server`.
    next: u64,
    /// The first slot whose EXISTS the client has not heard; every older one is in `client` or was expunged there.
    untold: u64,
    /// EXPUNGEs that a window without them has left behind; all older than `log`.
    withheld: Vec<SlotId>,
    log: Vec<Event>,
    /// Where in `log` the flags of a slot stand that newer ones may replace.
    replaceable: BTreeMap<SlotId, usize>,
    recent: Option<u32>,
    /// Octets of payloads and lines in `log`.
    log_octets: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: SlotId,
    uid: Option<Uid>,
    seen: Option<bool>,
}

#[derive(Debug)]
enum Event {
    /// Slots below `end` exist. `repeated`: the server also said so without anything new.
    Exists {
        end: u64,
        repeated: bool,
    },
    Expunge(SlotId),
    Fetch {
        slot: SlotId,
        payload: Bytes,
    },
    Line(Bytes),
}

/// What the server says.
impl Views {
    /// Nothing selected.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets both views and what was not told: the selection has ended or a new one begins.
    pub fn reset(&mut self) {
        *self = Self { next: self.next, untold: self.next, ..Self::default() };
    }

    /// `* n EXISTS`
    ///
    /// # Errors
    /// If it shrinks or exceeds [`MESSAGES_MAX`]; nothing is changed then.
    pub fn handle_exists(&mut self, n: u32) -> Result<(), Desync> {
        let had = self.server_len();
        if n < had {
            return Err(Desync::ExistsShrank { had, said: n });
        }
        // EXPUNGE moves messages from `server` to `gone`, so this bounds both.
        let gone = u32::try_from(self.gone.len()).unwrap_or(u32::MAX);
        if n > MESSAGES_MAX.saturating_sub(gone) {
            return Err(Desync::TooManyMessages { said: n });
        }
        for _ in had..n {
            self.server.push_back(Slot { id: SlotId(self.next), uid: None, seen: None });
            self.next += 1;
        }
        let said_again = n == had;
        if let Some(Event::Exists { end, repeated }) = self.log.last_mut() {
            *end = self.next;
            *repeated |= said_again;
        } else {
            self.log.push(Event::Exists { end: self.next, repeated: said_again });
        }
        Ok(())
    }

    /// `* n EXPUNGE`: gives the UID if it was known.
    ///
    /// # Errors
    /// If there is no such message.
    pub fn handle_expunge(&mut self, msn: Msn) -> Result<Option<Uid>, Desync> {
        let had = self.server_len();
        let slot = self.server.remove(index_of(msn)).ok_or(Desync::NoSuchMessage { msn, had })?;
        self.forget(slot);
        Ok(slot.uid)
    }

    /// `VANISHED` without `EARLIER`: drops every message whose known UID is `gone` and gives those UIDs,
    /// ascending. A UID that is not known here is ignored, so learn them all before the server may say VANISHED.
    pub fn handle_vanished(&mut self, gone: impl Fn(Uid) -> bool) -> Vec<Uid> {
        let mut vanished = Vec::new();
        self.server.retain(|slot| {
            let is_gone = slot.uid.is_some_and(&gone);
            if is_gone {
                vanished.push(*slot);
            }
            !is_gone
        });
        for slot in &vanished {
            self.forget(*slot);
        }
        vanished.iter().filter_map(|slot| slot.uid).collect()
    }

    /// `* n FETCH`: learns the UID and whether `\Seen` is set, as far as said; gives the slot meant.
    ///
    /// # Errors
    /// If there is no such message, or the UID cannot be true; nothing is learned then.
    pub fn handle_fetch(&mut self, msn: Msn, uid: Option<Uid>, seen: Option<bool>) -> Result<SlotId, Desync> {
        let had = self.server_len();
        let slot = self.server.get_mut(index_of(msn)).ok_or(Desync::NoSuchMessage { msn, had })?;
        if let Some(said) = uid {
            match slot.uid {
                Some(had) if had == said => {}
                Some(had) => return Err(Desync::UidChanged { msn, had, said }),
                None => {
                    // The known UIDs ascend, so the nearest on either side stand for all.
                    let below = self.uids.range(..said).next_back().is_none_or(|(_, below)| *below < slot.id);
                    let above = self
                        .uids
                        .range(said..)
                        .next()
                        .is_none_or(|(uid, above)| *uid != said && *above > slot.id);
                    let in_order = below && above;
                    if !in_order && !mutants::on("views-uid-order-unchecked") {
                        return Err(Desync::UidOrder { msn, said });
                    }
                    self.uids.insert(said, slot.id);
                    slot.uid = uid;
                }
            }
        }
        slot.seen = seen.or(slot.seen);
        Ok(slot.id)
    }

    /// An unsolicited FETCH to tell later; `payload` is what stands behind `* n FETCH `, CRLF included. Flags that
    /// wait for the same message are replaced if nothing they say is lost.
    pub fn log_fetch(&mut self, slot: SlotId, payload: Bytes) {
        if self.slot(slot).is_none() {
            return;
        }
        self.log_octets += payload.len();
        let items = Items::of(&payload);
        let older = self.replaceable.get(&slot).and_then(|at| self.log.get_mut(*at));
        if let (Some(items), Some(Event::Fetch { payload: waiting, .. })) = (items, older)
            && Items::of(waiting).is_some_and(|waiting| items.cover(waiting))
        {
            self.log_octets -= waiting.len();
            *waiting = payload;
            return;
        }
        // With two waiting, only the newer may be replaced: else the older would come last and win.
        if items.is_some() {
            self.replaceable.insert(slot, self.log.len());
        } else {
            self.replaceable.remove(&slot);
        }
        self.log.push(Event::Fetch { slot, payload });
    }

    /// `* n RECENT`, told behind everything else; the last value wins.
    pub fn log_recent(&mut self, n: u32) {
        self.recent = Some(n);
    }

    /// Any other untagged line, to be told in order. Flags behind it stay behind it: it may be the `* FLAGS` that
    /// introduces their keywords.
    pub fn log_line(&mut self, line: Bytes) {
        self.log_octets += line.len();
        self.replaceable.clear();
        self.log.push(Event::Line(line));
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(uid) = slot.uid {
            self.uids.remove(&uid);
        }
        // A message that came and went before the client heard of it never was: its EXISTS skips it too.
        if slot.id.0 < self.untold {
            self.gone.insert(slot.id, slot);
            self.log.push(Event::Expunge(slot.id));
        }
    }
}

/// What we may tell the client now.
impl Views {
    /// Tells all that `window` allows, in order; the rest waits.
    pub fn deliver(&mut self, window: Window, out: &mut impl FnMut(Told)) {
        let expunge = window == Window::All || mutants::on("views-expunge-in-any-window");
        if expunge {
            for slot in mem::take(&mut self.withheld) {
                self.tell_expunge(slot, out);
            }
        }
        self.replaceable.clear();
        self.log_octets = 0;
        for event in mem::take(&mut self.log) {
            match event {
                Event::Exists { end, repeated } => self.tell_exists(end, repeated, out),
                Event::Expunge(slot) if expunge => self.tell_expunge(slot, out),
                Event::Expunge(slot) => self.withheld.push(slot),
                Event::Fetch { slot, payload } => {
                    let msn = if mutants::on("views-msn-from-sview") {
                        self.server_msn(slot)
                    } else {
                        self.client_msn(slot)
                    };
                    // Not in the client's view: expunged there, or gone before its EXISTS.
                    if let Some(msn) = msn {
                        out(Told::Fetch { msn, payload });
                    }
                }
                Event::Line(line) => out(Told::Line(line)),
            }
        }
        if let Some(n) = self.recent.take() {
            out(Told::Recent(n));
        }
    }

    fn tell_exists(&mut self, end: u64, repeated: bool, out: &mut impl FnMut(Told)) {
        let before = self.client.len();
        if mutants::on("views-no-cancel") {
            self.client.extend((self.untold..end).map(SlotId));
        } else {
            let first = self.server.partition_point(|slot| slot.id.0 < self.untold);
            let new = self.server.range(first..).map(|slot| slot.id).take_while(|slot| slot.0 < end);
            self.client.extend(new);
        }
        self.untold = self.untold.max(end);
        if repeated || self.client.len() > before {
            out(Told::Exists(self.client_len()));
        }
    }

    fn tell_expunge(&mut self, slot: SlotId, out: &mut impl FnMut(Told)) {
        let Some(msn) = self.client_msn(slot) else { return };
        self.client.remove(index_of(msn));
        self.gone.remove(&slot);
        out(Told::Expunge(msn));
    }

    /// Nothing is left to tell, and both views are the same.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.has_log() && self.agree()
    }

    /// Something is left to tell.
    #[must_use]
    pub fn has_log(&self) -> bool {
        !self.log.is_empty() || !self.withheld.is_empty() || self.recent.is_some()
    }

    /// Every number means the same message to the server and to the client, whatever flags are left to tell.
    #[must_use]
    pub fn agree(&self) -> bool {
        self.gone.is_empty() && self.server.back().is_none_or(|slot| slot.id.0 < self.untold)
    }

    /// The log has reached its bound: read no more from the server until some of it is told. Either window empties
    /// it, so a client whose command waits for the server is never blocked by this. EXPUNGEs that a window has
    /// withheld do not count here; [`MESSAGES_MAX`] bounds them.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.log.len() >= LOG_EVENTS_MAX || self.log_octets >= LOG_OCTETS_MAX
    }
}

/// Lookups.
impl Views {
    /// Messages in the server's view.
    #[must_use]
    pub fn server_len(&self) -> u32 {
        u32::try_from(self.server.len()).unwrap_or(u32::MAX)
    }

    /// Messages in the client's view.
    #[must_use]
    pub fn client_len(&self) -> u32 {
        u32::try_from(self.client.len()).unwrap_or(u32::MAX)
    }

    /// What the client means by this number.
    #[must_use]
    pub fn slot_of_client(&self, msn: Msn) -> Option<SlotId> {
        self.client.get(index_of(msn)).copied()
    }

    /// What the server means by this number.
    #[must_use]
    pub fn slot_of_server(&self, msn: Msn) -> Option<SlotId> {
        self.server.get(index_of(msn)).map(|slot| slot.id)
    }

    /// The message with this UID, if the server still has it and has told its UID.
    #[must_use]
    pub fn slot_of_uid(&self, uid: Uid) -> Option<SlotId> {
        self.uids.get(&uid).copied()
    }

    /// Its number in the client's view.
    #[must_use]
    pub fn client_msn(&self, slot: SlotId) -> Option<Msn> {
        msn_at(self.client.binary_search(&slot).ok()?)
    }

    /// Its number in the server's view.
    #[must_use]
    pub fn server_msn(&self, slot: SlotId) -> Option<Msn> {
        msn_at(self.server_index(slot)?)
    }

    /// Its UID, if the server has told it; also for a message that only the client still counts.
    #[must_use]
    pub fn uid(&self, slot: SlotId) -> Option<Uid> {
        self.slot(slot)?.uid
    }

    /// Whether it has `\Seen`, if the server has told.
    #[must_use]
    pub fn seen(&self, slot: SlotId) -> Option<bool> {
        self.slot(slot)?.seen
    }

    /// Learns `\Seen` by other means than [`Views::handle_fetch`].
    pub fn set_seen(&mut self, slot: SlotId, seen: bool) {
        let found = match self.server_index(slot) {
            Some(at) => self.server.get_mut(at),
            None => self.gone.get_mut(&slot),
        };
        if let Some(found) = found {
            found.seen = Some(seen);
        }
    }

    /// The known UIDs of the server's view with their numbers there, ascending.
    pub fn known_uids(&self) -> impl Iterator<Item = (Msn, Uid)> {
        self.server.iter().enumerate().filter_map(|(at, slot)| Some((msn_at(at)?, slot.uid?)))
    }

    /// Every message of the server's view has a known UID.
    #[must_use]
    pub fn all_uids_known(&self) -> bool {
        self.uids.len() == self.server.len()
    }

    /// What `*` means in a UID set: the UID of the server's last message, if known.
    #[must_use]
    pub fn largest_uid(&self) -> Option<Uid> {
        self.server.back()?.uid
    }

    /// The messages that the server has with known UIDs in `range`, ascending.
    pub fn uids_between(&self, range: RangeInclusive<u32>) -> impl Iterator<Item = (SlotId, Uid)> {
        let ends = Uid::new((*range.start()).max(1)).zip(Uid::new(*range.end()));
        let ends = ends.filter(|(start, end)| start <= end);
        ends.into_iter()
            .flat_map(|(start, end)| self.uids.range(start..=end))
            .map(|(uid, slot)| (*slot, *uid))
    }

    fn server_index(&self, slot: SlotId) -> Option<usize> {
        self.server.binary_search_by_key(&slot, |known| known.id).ok()
    }

    fn slot(&self, slot: SlotId) -> Option<&Slot> {
        match self.server_index(slot) {
            Some(at) => self.server.get(at),
            None => self.gone.get(&slot),
        }
    }
}

/// Which of the usual items of an unsolicited FETCH a payload has.
#[derive(Clone, Copy)]
struct Items(u8);

impl Items {
    /// `None` if it has any other item, or a value that is neither an atom nor a plain list.
    fn of(payload: &[u8]) -> Option<Self> {
        let mut rest = payload.strip_suffix(b"\r\n")?.strip_prefix(b"(")?.strip_suffix(b")")?;
        let mut items = 0;
        while !rest.is_empty() {
            let (name, behind) = rest.split_at(rest.iter().position(|octet| *octet == b' ')?);
            items |= match name.to_ascii_uppercase().as_slice() {
                b"FLAGS" => 1,
                b"UID" => 2,
                b"MODSEQ" => 4,
                _ => return None,
            };
            let value = behind.strip_prefix(b" ")?;
            let octets = match value.first()? {
                b'(' => value.iter().position(|octet| *octet == b')')? + 1,
                _ => value.iter().position(|octet| *octet == b' ').unwrap_or(value.len()),
            };
            let (value, behind) = value.split_at(octets);
            if value.iter().any(|octet| b"\"{".contains(octet)) {
                return None;
            }
            rest = behind.strip_prefix(b" ").unwrap_or(behind);
        }
        Some(Self(items))
    }

    fn cover(self, older: Self) -> bool {
        older.0 & !self.0 == 0
    }
}

fn index_of(msn: Msn) -> usize {
    // On a machine with 16-bit addresses no list is that long either.
    usize::try_from(msn.get() - 1).unwrap_or(usize::MAX)
}

fn msn_at(index: usize) -> Option<Msn> {
    Msn::new(u32::try_from(index).ok()?.checked_add(1)?)
}

/// The largest mailbox that is tracked, messages included whose EXPUNGE is withheld; about 60 octets each. Without
/// a bound, one line of a server could make us allocate for four thousand million.
pub const MESSAGES_MAX: u32 = 2_000_000;

/// Events that may wait before [`Views::is_full`]: a client that sends no command for long must not cost memory
/// without end.
pub const LOG_EVENTS_MAX: usize = 10_000;

/// Octets of payloads and lines that may wait before [`Views::is_full`].
pub const LOG_OCTETS_MAX: usize = 1024 * 1024;

#[cfg(test)]
mod model;
