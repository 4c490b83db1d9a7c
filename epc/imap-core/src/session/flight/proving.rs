//! The flags of a mailbox that is known, asked ahead as what has changed of them: a whole list does not fit into what
//! a server sends at once.
//!
//! ```text
//!  foreseen              sent instead                                      the client's own FETCH is answered with
//!  SELECT INBOX          SELECT INBOX (CONDSTORE)
//!  UID FETCH 1:* (FLAGS) UID SEARCH RETURN (ALL) ALL                       for each message that there is: what the
//!                        UID FETCH 1:* (FLAGS) (CHANGEDSINCE m)            origin said, else what it said up to m
//! ```
//! A message that is listed, was known at `m` and is not mentioned has the flags that it had (RFC 7162 §3.1.4.1). Where
//! that cannot be said of every message, nothing was told yet, and the client's command goes to the origin as it came.

use super::{
    super::{Phase, exchange::Event},
    Flight,
};
use crate::{
    command::{Command, Fetch, Kind},
    fetch_response::{FetchReader, FetchResponse},
    flag_snapshot::{FlagSnapshot, is_recent},
    framer::Frame,
    mutants,
    session::exchange::Doubt,
    uid::{Msn, UidValidity},
    views::SlotId,
};
use bytes::Bytes;
use discovery_core::id::AccountKey;
use std::{collections::BTreeMap, sync::Arc};

/// What has come of the answer.
pub(super) struct Proving {
    snapshot: Arc<FlagSnapshot>,
    /// Flags that the origin has said, as it wrote them.
    said: BTreeMap<SlotId, Bytes>,
    said_octets: usize,
    /// It also said something of messages that is no flags: what it means for them is not known.
    odd: bool,
}

/// Changes that are kept until they can be told; more are asked as the client asked.
const SAID_OCTETS_MAX: usize = 8 << 20;
/// What an entry takes beside its flags.
const ENTRY_OCTETS: usize = 64;

/// What an answer is judged by.
struct Facts {
    completed: bool,
    odd: bool,
    /// The generation and HIGHESTMODSEQ that are open.
    uid_validity: Option<UidValidity>,
    modseq: Option<u64>,
    /// How many messages have `\Recent`, and of how many the flags that were said show it.
    recent: u32,
    recent_shown: u32,
}

/// Whether what the origin did not mention is as it was. The first row that fits is the answer.
fn judge(snapshot: &FlagSnapshot, facts: &Facts) -> Result<(), Doubt> {
    let generation = facts.uid_validity == Some(snapshot.uid_validity);
    let since = facts.modseq.is_some_and(|modseq| modseq >= snapshot.modseq);
    match facts {
        _ if !generation && !mutants::on("flags-of-another-generation") => Err(Doubt::Generation),
        _ if !since && !mutants::on("flags-modseq-went-back") => Err(Doubt::WentBack),
        Facts { completed: false, .. } => Err(Doubt::Refused),
        Facts { odd: true, .. } => Err(Doubt::Odd),
        // One of those that it did not mention is recent, and which one it did not say.
        Facts { recent, recent_shown, .. }
            if recent != recent_shown && !mutants::on("flags-recent-not-counted") =>
        {
            Err(Doubt::Recent)
        }
        _ => Ok(()),
    }
}

impl Proving {
    fn new(snapshot: Arc<FlagSnapshot>) -> Self {
        Self { snapshot, said: BTreeMap::new(), said_octets: 0, odd: false }
    }

    /// The origin's flags for a message, or those that have not changed.
    fn flags(&self, slot: SlotId, uid: crate::uid::Uid) -> Option<&Bytes> {
        let said = self.said.get(&slot).filter(|_| !mutants::on("flags-changes-not-applied"));
        said.or_else(|| self.snapshot.flags(uid))
    }
}

/// Asking.
impl super::super::Session {
    /// Opens a mailbox of which flags are known, or may be next time, in a way that makes the origin say HIGHESTMODSEQ.
    /// `false`: it is to be opened as the client has it.
    pub(super) fn open_with_modseq(
        &mut self,
        mailbox: Option<&Bytes>,
        account: &AccountKey,
        tag: &str,
        octets: &[u8],
    ) -> bool {
        let known = mailbox.and_then(|mailbox| self.remembered.recall(account, mailbox));
        let plain = octets.strip_suffix(b"\r\n").filter(|line| !line.ends_with(b")"));
        let (Some(known), Some(line)) = (known, plain) else { return false };
        self.send([tag.as_bytes(), b" ", line, b" (CONDSTORE)\r\n"].concat().into());
        self.remembered.hide_modseq(&known);
        true
    }

    /// Sends another question for `octets`, if the answer to the client's own can be put together from it.
    pub(super) fn ask_changes(
        &mut self,
        flight: &Flight,
        account: &AccountKey,
        command: &Command,
        tag: &str,
        octets: &[u8],
    ) -> Option<Proving> {
        let Kind::Fetch(fetch) = &command.kind else { return None };
        // The last one that opens a mailbox is what the flags are of.
        let mailbox = flight.commands.iter().rev().find_map(|sent| sent.mailbox.as_ref())?;
        let line = octets.strip_suffix(b"\r\n").filter(|_| command.uid && asks_all_flags(fetch))?;
        let snapshot = self.remembered.recall(account, mailbox)?.snapshot?;
        let search = self.flights.own(super::super::underway::Own::Uids);
        self.send(format!("{search} UID SEARCH RETURN (ALL) ALL\r\n").into());
        let since = format!(" (CHANGEDSINCE {})\r\n", snapshot.modseq);
        self.send([tag.as_bytes(), b" ", line, since.as_bytes()].concat().into());
        Some(Proving::new(snapshot))
    }
}

/// What the origin says.
impl super::super::Session {
    /// The answer that the client waits for and that is being put together.
    fn proving(&mut self) -> Option<&mut Proving> {
        let flight = self.ahead.flight.as_mut()?;
        flight.commands.iter_mut().filter(|sent| sent.asked.is_some()).find_map(|sent| sent.proving.as_mut())
    }

    /// Whether what the origin says of messages is kept until it can be told together.
    pub(in super::super) fn proves(&self) -> bool {
        let flight = self.ahead.flight.as_ref();
        let asked = |sent: &super::Sent| sent.asked.is_some() && sent.proving.is_some();
        matches!(self.phase, Phase::Selected(_)) && flight.is_some_and(|f| f.commands.iter().any(asked))
    }

    /// A FETCH response meanwhile.
    pub(in super::super) fn keep_said(&mut self, frame: Frame, piece: &[u8], msn: Msn) {
        let Some(slot) = self.views.slot_of_server(msn) else {
            return self.desync("FETCH of a message that is not there", frame);
        };
        let read = || FetchReader::start(piece).and_then(FetchReader::finish).ok();
        let said = if matches!(frame, Frame::End { .. }) { read() } else { None };
        if let Some(said) = &said
            && self.views.handle_fetch(msn, said.uid, None).is_err()
        {
            return self.desync("a UID that cannot be", frame);
        }
        if let Some(proving) = self.proving() {
            match said {
                Some(FetchResponse { flags: Some(flags), items, .. })
                    if items.is_empty() && proving.said_octets < SAID_OCTETS_MAX =>
                {
                    proving.said_octets =
                        proving.said_octets.saturating_add(flags.raw().len() + ENTRY_OCTETS);
                    proving.said.insert(slot, Bytes::copy_from_slice(flags.raw()));
                }
                _ => proving.odd = true,
            }
        }
        self.skip_rest(&frame);
    }

    /// The answer is complete: tells it, as the origin would have said it. `false`: it proves nothing.
    pub(super) fn tell_proved(&mut self, proving: &Proving, completed: bool) -> bool {
        let rows = match self.proved(proving, completed) {
            Ok(rows) => rows,
            Err(doubt) => {
                self.event(Event::FlagsDoubted(doubt));
                return false;
            }
        };
        let messages = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let changed = u32::try_from(proving.said.len()).unwrap_or(u32::MAX);
        self.event(Event::FlagsProved { messages, changed });
        for piece in rows {
            self.server_frame(Frame::End { piece });
        }
        true
    }

    fn proved(&self, proving: &Proving, completed: bool) -> Result<Vec<Bytes>, Doubt> {
        let shown = |flags: &Bytes| {
            let inside = flags.strip_prefix(b"(").and_then(|o| o.strip_suffix(b")")).unwrap_or_default();
            inside.split(|o| *o == b' ').any(is_recent)
        };
        let there = proving.said.iter().filter(|(slot, _)| self.views.server_msn(**slot).is_some());
        let facts = Facts {
            completed,
            odd: proving.odd,
            uid_validity: self.mailbox_key().map(|key| key.uid_validity),
            modseq: self.remembered.modseq(),
            recent: self.remembered.recent(),
            recent_shown: u32::try_from(there.filter(|(_, flags)| shown(flags)).count()).unwrap_or(u32::MAX),
        };
        judge(&proving.snapshot, &facts)?;
        if !self.views.all_uids_known() {
            return Err(Doubt::NotListed);
        }
        let row = |(msn, uid)| {
            let slot = self.views.slot_of_server(msn)?;
            let flags = proving.flags(slot, uid)?;
            let (before, behind) = if proving.snapshot.uid_last {
                (format!("* {msn} FETCH (FLAGS "), format!(" UID {uid})\r\n"))
            } else {
                (format!("* {msn} FETCH (UID {uid} FLAGS "), ")\r\n".to_owned())
            };
            Some(Bytes::from([before.as_bytes(), flags, behind.as_bytes()].concat()))
        };
        self.views.known_uids().map(row).collect::<Option<_>>().ok_or(Doubt::Unknown)
    }
}

/// `UID FETCH 1:* (FLAGS)`, with UID or without.
fn asks_all_flags(fetch: &Fetch) -> bool {
    let all = fetch.set.set.as_ref().is_some_and(|set| {
        set.has_star() && set.resolve(u32::MAX).eq(std::iter::once(1..=u32::MAX)) && fetch.changed.is_none()
    });
    let plain = |label: &[u8]| label == b"FLAGS" || label == b"UID";
    all && fetch.items.iter().all(|item| plain(&item.label))
        && fetch.items.iter().any(|item| &*item.label == b"FLAGS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command, uid::Uid};

    fn snapshot() -> FlagSnapshot {
        let flags = [(Uid::new(1).unwrap(), &b"()"[..])];
        FlagSnapshot::new(UidValidity::new(7).unwrap(), 50, false, flags).unwrap()
    }

    #[test]
    fn what_is_not_mentioned_is_judged_row_by_row() {
        let good = || Facts {
            completed: true,
            odd: false,
            uid_validity: UidValidity::new(7),
            modseq: Some(50),
            recent: 2,
            recent_shown: 2,
        };
        for (facts, verdict) in [
            (good(), Ok(())),
            (Facts { modseq: Some(51), ..good() }, Ok(())),
            (Facts { modseq: Some(49), ..good() }, Err(Doubt::WentBack)),
            (Facts { modseq: None, ..good() }, Err(Doubt::WentBack)),
            (Facts { uid_validity: UidValidity::new(8), ..good() }, Err(Doubt::Generation)),
            (Facts { uid_validity: None, ..good() }, Err(Doubt::Generation)),
            (Facts { completed: false, ..good() }, Err(Doubt::Refused)),
            (Facts { odd: true, ..good() }, Err(Doubt::Odd)),
            (Facts { recent_shown: 1, ..good() }, Err(Doubt::Recent)),
            (Facts { recent: 0, recent_shown: 0, ..good() }, Ok(())),
        ] {
            assert_eq!(judge(&snapshot(), &facts), verdict);
        }
    }

    #[test]
    fn only_all_flags_and_nothing_else_are_asked_otherwise() {
        for (line, fits) in [
            ("a UID FETCH 1:* (FLAGS)\r\n", true),
            ("a UID FETCH *:1 (FLAGS UID)\r\n", true),
            ("a UID FETCH 1:* FLAGS\r\n", true),
            ("a UID FETCH 1:* (UID)\r\n", false),
            ("a UID FETCH 2:* (FLAGS)\r\n", false),
            ("a UID FETCH 1:4294967295 (FLAGS)\r\n", false),
            ("a UID FETCH 1,3:* (FLAGS)\r\n", false),
            ("a UID FETCH 1:* (FLAGS INTERNALDATE)\r\n", false),
            ("a UID FETCH 1:* (FLAGS) (CHANGEDSINCE 4)\r\n", false),
        ] {
            let command = command::parse(&Bytes::copy_from_slice(line.as_bytes())).unwrap();
            let Kind::Fetch(fetch) = &command.kind else { panic!("{line}") };
            assert_eq!(asks_all_flags(fetch), fits, "{line}");
        }
    }
}
