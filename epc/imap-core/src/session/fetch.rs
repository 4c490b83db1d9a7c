//! A client's FETCH against the store: which of its messages this session may be shown, what of them is held,
//! and what the origin must still say.
//!
//! ```text
//!  FETCH ─► cacheable? ─► whose UIDs? ─► proof fresh? ─► look up ─┬─ all held, nothing else asked ─► told at once
//!                │no          │unknown       │old                 ├─ all held, flags asked ──► origin: the rest only
//!                ▼            ▼              ▼ ask                ├─ some held ──► origin: whole for the others
//!             forward      forward        origin                 ├─ a piece of a large one ──► origin: all of it
//!                                                                 └─ nothing held ──► forward
//! ```

use super::{
    claim::{Next, Patience},
    exchange::{Event, Outcome, Reason},
    telling::{Prepared, Told},
    underway::{Effect, Own, Underway, numbers},
};
use crate::{
    catalog::{CatalogOp, CatalogReply, Claim, Held, RESOLVE_UIDS_MAX, RequestId, Row},
    command::{Command, Fetch, FetchItem, Kind},
    fetch_response::FetchResponse,
    item::{ItemClass, ItemKey, SectionClass},
    mutants,
    sequence_set::SequenceSet,
    uid::{Msn, Uid},
    views::SlotId,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// A command that cannot go on yet.
pub(super) struct Waiting {
    pub(super) command: Command,
    pub(super) octets: Bytes,
    stage: Stage,
    patience: Patience,
    /// The message of unknown size of which this asks a piece.
    sizeless: Option<(SlotId, Uid)>,
}

enum Stage {
    /// Not looked at.
    Fresh,
    /// Not to be answered by the store; goes to the origin when the origin's numbers stand still.
    Origin,
    /// The origin was asked whether this user may still read this mailbox.
    Rights,
    /// The store was asked.
    LookUp(LookUp),
    /// It is not held; the store was asked whether another session fetches it at this moment.
    Claim { look_up: LookUp, request: RequestId, said: Option<Claim> },
    /// Another does: to be looked at again then.
    Pause(Instant),
    /// The whole message was asked of the origin; when it begins to come, the store is asked again.
    Whole(SlotId),
}

/// A question to the store, in batches.
struct LookUp {
    /// The messages, in the order of the server's view.
    messages: Vec<(SlotId, Uid)>,
    /// The items that a store may hold; positions in the command's items.
    wanted: Vec<usize>,
    asked: usize,
    request: Option<RequestId>,
    held: Vec<Prepared>,
    missing: Vec<(SlotId, Uid)>,
    octets: u64,
    /// Octets of `held` that lie in memory.
    inline: u64,
    /// Sizes that the store knew, of messages that it does not wholly hold too.
    sizes: Vec<(SlotId, u64)>,
    /// Whether this is the second time, with the whole message on its way.
    again: bool,
}

/// Data of messages that will be told together with what the origin says of the same messages.
#[derive(Default)]
pub(super) struct Splices {
    /// The tag whose completion ends it.
    owner: Bytes,
    asked: Rest,
    /// Of which the origin said something else.
    mentioned: BTreeSet<SlotId>,
    rows: BTreeMap<SlotId, Prepared>,
}

impl Splices {
    fn begin(&mut self, owner: Bytes, asked: Rest, rows: Vec<Prepared>) {
        self.owner = owner;
        self.asked = asked;
        self.rows.extend(rows.into_iter().map(|row| (row.slot, row)));
    }

    /// The origin speaks of this message and says `said`, no more and no less than was asked; with anything else the
    /// response may be another command's, and the message is told by itself at the end.
    pub(super) fn take(&mut self, slot: SlotId, said: Option<&FetchResponse>) -> Option<Prepared> {
        let exact = said.is_some_and(|said| {
            said.items.is_empty()
                && said.flags.is_some() == self.asked.flags
                && said.modseq.is_some() >= self.asked.modseq
        });
        if exact {
            return self.rows.remove(&slot);
        }
        if self.rows.contains_key(&slot) {
            self.mentioned.insert(slot);
        }
        None
    }

    /// What the origin did not mention until here is gone, and is not told. Gives the rest.
    #[must_use]
    pub(super) fn end(&mut self, tag: &[u8]) -> Vec<Prepared> {
        if self.owner != tag {
            return Vec::new();
        }
        let mentioned = std::mem::take(&mut self.mentioned);
        let rows = std::mem::take(&mut self.rows);
        rows.into_values().filter(|row| mentioned.contains(&row.slot)).collect()
    }

    pub(super) fn clear(&mut self) {
        self.mentioned.clear();
        self.rows.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What is asked of the origin of messages that the store holds.
#[derive(Clone, Copy, Default)]
struct Rest {
    flags: bool,
    modseq: bool,
}

impl Waiting {
    pub(super) fn new(command: Command, octets: Bytes) -> Self {
        Self { command, octets, stage: Stage::Fresh, patience: Patience::default(), sizeless: None }
    }

    pub(super) fn for_origin(mut self) -> Self {
        self.stage = Stage::Origin;
        self
    }

    pub(super) fn asks_claim(&self) -> bool {
        matches!(self.stage, Stage::Claim { .. })
    }

    /// When to look at it again although nothing has happened.
    pub(super) fn pause(&self) -> Option<Instant> {
        if let Stage::Pause(until) = self.stage { Some(until) } else { None }
    }

    /// Whether the store or the origin owes an answer before anything can change.
    fn is_asking(&self) -> bool {
        match &self.stage {
            Stage::LookUp(look_up) => look_up.request.is_some(),
            Stage::Claim { said, .. } => said.is_none(),
            Stage::Fresh | Stage::Origin | Stage::Rights | Stage::Pause(_) | Stage::Whole(_) => false,
        }
    }
}

impl super::Session {
    /// Takes a waiting command as far as it can go now; gives it back if it must wait on.
    pub(super) fn advance(&mut self, mut waiting: Waiting) -> Option<Waiting> {
        if !matches!(waiting.command.kind, Kind::Fetch(_)) {
            return self.pass_on(waiting);
        }
        loop {
            if waiting.is_asking() {
                return Some(waiting);
            }
            let stage = std::mem::replace(&mut waiting.stage, Stage::Fresh);
            waiting.stage = match stage {
                Stage::Fresh => match self.look_at_fetch(&waiting.command) {
                    Ok(Look::Up(look_up)) => self.ask_store(look_up, &waiting.command),
                    Ok(Look::RightsFirst) => {
                        self.ask_rights();
                        Stage::Rights
                    }
                    Ok(Look::UidsFirst) => return Some(waiting),
                    Err(reason) => {
                        self.event(Event::Fetched {
                            outcome: Outcome::Origin(reason),
                            messages: 0,
                            octets: 0,
                        });
                        Stage::Origin
                    }
                },
                Stage::Rights => {
                    if self.flights.owns(|own| *own == Own::Rights) {
                        return Some(Waiting { stage, ..waiting });
                    }
                    // Proved again, or not to be proved: then the mailbox has no key any more.
                    Stage::Fresh
                }
                Stage::LookUp(look_up) if look_up.asked < look_up.messages.len() => {
                    self.ask_store(look_up, &waiting.command)
                }
                Stage::LookUp(look_up) => {
                    // What is told together with the origin's words is told one command at a time; and of a message
                    // of which we have asked something, no other answer may be asked.
                    let busy = !self.splices.is_empty() && has_rest(&waiting.command);
                    let asked = look_up.missing.iter().any(|(slot, _)| self.flights.asks_about(*slot));
                    let slice = !look_up.missing.is_empty() && self.fetches_a_slice(&waiting.command);
                    if busy || asked || slice {
                        return Some(Waiting { stage: Stage::LookUp(look_up), ..waiting });
                    }
                    if let (true, [message]) = (look_up.held.is_empty(), look_up.missing.as_slice()) {
                        waiting.sizeless =
                            Some(*message).filter(|(slot, _)| self.is_sizeless(&waiting.command, *slot));
                    }
                    self.settle(look_up, &waiting)?
                }
                Stage::Claim { look_up, said, .. } => {
                    let claim = said.unwrap_or(Claim::Yours);
                    match self.claimed(&waiting.command, &mut waiting.patience, claim) {
                        Next::Fetch => Stage::LookUp(look_up),
                        Next::LookAgain => Stage::Fresh,
                        Next::Pause(until) => Stage::Pause(until),
                    }
                }
                Stage::Pause(until) => {
                    if self.mono().is_some_and(|now| now < until) {
                        return Some(Waiting { stage, ..waiting });
                    }
                    Stage::Fresh
                }
                Stage::Whole(slot) => {
                    let owned = self.flights.whole().is_some_and(|(coming, _)| coming == slot);
                    match self.whole_begun.take_if(|begun| *begun == slot) {
                        Some(_) => self.look_again(&waiting.command, slot),
                        None if owned => return Some(Waiting { stage, ..waiting }),
                        None => Stage::Origin,
                    }
                }
                Stage::Origin => {
                    let sizeless = waiting.sizeless;
                    let waiting = self.pass_on(waiting.for_origin());
                    if let (None, Some((slot, uid))) = (&waiting, sizeless) {
                        self.ask_size(slot, uid);
                    }
                    return waiting;
                }
            };
        }
    }

    /// What the client's FETCH needs before the store can be asked.
    fn look_at_fetch(&self, command: &Command) -> Result<Look, Reason> {
        let Kind::Fetch(fetch) = &command.kind else { return Err(Reason::OriginOnly) };
        let Some(selection) = self.selection() else { return Err(Reason::CacheOff) };
        if selection.key.is_none() {
            return Err(Reason::CacheOff);
        }
        if fetch.changed.is_some() || fetch.items.len() > ITEMS_MAX {
            return Err(Reason::OriginOnly);
        }
        let wanted: Vec<usize> =
            fetch.items.iter().enumerate().filter(|(_, i)| is_held_kind(&i.key)).map(|(n, _)| n).collect();
        if wanted.is_empty() || !fetch.items.iter().all(is_separable) {
            return Err(Reason::OriginOnly);
        }
        let messages = match self.messages_of(command.uid, fetch) {
            Ok(messages) => messages,
            Err(Reason::NotProved) if self.flights.owns(|own| *own == Own::Uids) => {
                return Ok(Look::UidsFirst);
            }
            Err(reason) => return Err(reason),
        };
        if messages.is_empty() {
            return Err(Reason::NotProved);
        }
        if self.is_proof_old(selection.proved) {
            return if self.can_ask_rights() { Ok(Look::RightsFirst) } else { Err(Reason::NotProved) };
        }
        Ok(Look::Up(LookUp::new(messages, wanted, false)))
    }

    /// The messages meant, if the origin has shown every one of them, and every other that could be meant, to this
    /// session.
    fn messages_of(&self, uid_form: bool, fetch: &Fetch) -> Result<Vec<(SlotId, Uid)>, Reason> {
        let set = fetch.set.set.as_ref().ok_or(Reason::OriginOnly)?;
        let mut messages = Vec::new();
        if !uid_form {
            for number in numbers(&fetch.set, self.views.client_len()).into_iter().flatten() {
                if messages.len() == MESSAGES_MAX {
                    return Err(Reason::TooMany);
                }
                let slot = Msn::new(number).and_then(|msn| self.views.slot_of_client(msn));
                // Beyond the client's view the origin should say what it says to that.
                let slot = slot.ok_or(Reason::OriginOnly)?;
                self.views.server_msn(slot).ok_or(Reason::NotProved)?;
                messages.push((slot, self.views.uid(slot).ok_or(Reason::NotProved)?));
            }
            return Ok(messages);
        }
        if !self.views.all_uids_known() {
            // A message whose UID is unknown could be one of those asked for; only a single known one is certain.
            let single = set.is_single_number().then(|| set.resolve(0).next()).flatten();
            let known = single.and_then(|range| self.views.uids_between(range).next());
            return known.map(|found| vec![found]).ok_or(Reason::NotProved);
        }
        let largest = self.views.largest_uid().map_or(0, Uid::get);
        for range in set.resolve(largest) {
            for found in self.views.uids_between(range) {
                if messages.len() == MESSAGES_MAX {
                    return Err(Reason::TooMany);
                }
                messages.push(found);
            }
        }
        Ok(messages)
    }

    fn is_proof_old(&self, proved: Instant) -> bool {
        if mutants::on("session-proof-never-old") {
            return false;
        }
        self.mono().is_none_or(|now| now.saturating_duration_since(proved) > self.config.re_proof)
    }

    fn ask_store(&mut self, mut look_up: LookUp, command: &Command) -> Stage {
        let items = if let Kind::Fetch(fetch) = &command.kind { look_up.keys(fetch) } else { Vec::new() };
        let end = look_up.messages.len().min(look_up.asked + RESOLVE_UIDS_MAX);
        let batch = look_up.messages.get(look_up.asked..end).unwrap_or_default();
        let uids: Vec<Uid> = batch.iter().map(|(_, uid)| *uid).collect();
        look_up.asked = end;
        if let Some(mailbox) = self.mailbox_key().cloned() {
            let request = self.request();
            look_up.request = Some(request);
            self.catalog(CatalogOp::Resolve { request, mailbox, uids, items });
        } else {
            // Trust ended meanwhile; nothing may be shown.
            look_up.distrust();
        }
        Stage::LookUp(look_up)
    }

    /// The store's answer.
    pub(super) fn store_replied(&mut self, reply: CatalogReply) {
        let ours = match &reply {
            CatalogReply::Resolved { request, rows } => self.slices_resolved(*request, rows),
            CatalogReply::Claimed { request, claim } => self.slices_claimed(*request, *claim),
            CatalogReply::Counted { .. } | CatalogReply::ShadowWanted { .. } => false,
        };
        if ours {
            return;
        }
        let Some(Waiting { command, stage, .. }) = &mut self.waiting else { return };
        match (reply, stage) {
            (CatalogReply::Resolved { request, rows }, Stage::LookUp(look_up))
                if look_up.request == Some(request) =>
            {
                look_up.request = None;
                let Kind::Fetch(fetch) = &command.kind else { return };
                look_up.take(fetch, rows);
            }
            (CatalogReply::Claimed { request, claim }, Stage::Claim { request: asked, said, .. })
                if *asked == request =>
            {
                *said = Some(claim);
            }
            _ => {}
        }
    }

    /// Everything is known: tells, forwards, or both.
    fn settle(&mut self, mut look_up: LookUp, waiting: &Waiting) -> Option<Stage> {
        let Waiting { command, octets, patience, .. } = waiting;
        let Kind::Fetch(fetch) = &command.kind else { return None };
        for (slot, size) in std::mem::take(&mut look_up.sizes) {
            self.learn_size(slot, size);
        }
        if self.mailbox_key().is_none() {
            look_up.distrust();
        }
        // Gone since the question: the origin says what there is to say.
        let (held, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut look_up.held)
            .into_iter()
            .partition(|row| self.views.server_msn(row.slot).is_some());
        look_up.missing.extend(gone.into_iter().map(|row| (row.slot, row.uid)));
        let total = u32::try_from(look_up.messages.len()).unwrap_or(u32::MAX);
        if held.is_empty() {
            if !look_up.again
                && let [(slot, uid)] = *look_up.missing.as_slice()
            {
                let piece = self.piece_of_large(fetch, slot);
                // Of a preview nothing would come into the store for others.
                let comes = piece.is_some() || fetch.items.iter().all(|item| item.partial.is_none());
                if comes
                    && let Some(item) = self.claimable(fetch, *patience)
                    && let Some(request) = self.ask_claim(uid, item.clone())
                {
                    return Some(Stage::Claim { look_up, request, said: None });
                }
                if let Some(key) = piece {
                    if self.sets_seen(fetch) && self.views.seen(slot) != Some(true) {
                        self.ask_seen_ahead(uid);
                    }
                    self.ask_whole(slot, uid, key);
                    return Some(Stage::Whole(slot));
                }
            }
            let outcome = Outcome::Origin(Reason::NotHeld);
            self.event(Event::Fetched { outcome, messages: total, octets: 0 });
            return Some(Stage::Origin);
        }

        let mut held = held;
        let mut rest: Vec<&FetchItem> = rest_of(fetch).collect();
        if let [flags] = rest.as_slice()
            && flags.key.as_str() == "FLAGS"
            && self.repeat_flags(flags, &mut held)
        {
            rest.clear();
        }
        let sets_seen = self.sets_seen(fetch);
        let certain = !self.underway.iter().any(|u| matches!(u.effect, Effect::Store(_)));
        let unseen: Vec<Uid> = held
            .iter()
            .filter(|row| sets_seen && !(certain && self.views.seen(row.slot) == Some(true)))
            .map(|row| row.uid)
            .collect();
        let held_set = set_text(held.iter().map(|row| row.uid));
        let missing_set = set_text(look_up.missing.iter().map(|(_, uid)| *uid));
        if held_set.len().max(missing_set.len()) > SET_OCTETS_MAX {
            let outcome = Outcome::Origin(Reason::TooMany);
            self.event(Event::Fetched { outcome, messages: total, octets: 0 });
            return Some(Stage::Origin);
        }

        let all_store = rest.is_empty() && look_up.missing.is_empty();
        let outcome = if all_store { Outcome::Store } else { Outcome::Mixed };
        self.event(Event::Fetched { outcome, messages: total, octets: look_up.octets });
        if let Some(mailbox) = self.mailbox_key().cloned() {
            self.catalog(CatalogOp::Used { mailbox, uids: held.iter().map(|row| row.uid).collect() });
        }

        self.opened_from_store(fetch, &held, look_up.again);

        let tag = Bytes::copy_from_slice(&command.tag);
        let mut underway = Underway::new(tag.clone(), self.forbids(command), Effect::Nothing);
        underway.fetches = !look_up.missing.is_empty();
        underway.keeps_flags = !sets_seen;
        if !unseen.is_empty() && !mutants::on("session-seen-not-stored") {
            let own = self.flights.own(Own::Seen(tag.clone()));
            self.send(format!("{own} UID STORE {} +FLAGS (\\Seen)\r\n", set_text(unseen)).into());
            if !mutants::on("session-seen-not-awaited") {
                underway.awaits += 1;
            }
        }
        let rest_text = labels(&rest);
        let asks = |name: &str| rest.iter().any(|item| item.key.as_str() == name);
        let asked = Rest { flags: asks("FLAGS"), modseq: asks("MODSEQ") };
        match (rest.is_empty(), look_up.missing.is_empty()) {
            (true, true) => {
                underway.prepared = held;
                underway.completion = Some(completed(&tag, command));
            }
            (true, false) => {
                underway.prepared = held;
                self.flights.client(tag.clone(), true);
                self.send(rewritten(&tag, &missing_set, fetch, octets));
            }
            (false, true) => {
                self.splices.begin(tag.clone(), asked, held);
                self.flights.client(tag.clone(), true);
                self.send(
                    [&*tag, b" UID FETCH ", held_set.as_bytes(), b" ", &rest_text, b"\r\n"].concat().into(),
                );
            }
            (false, false) => {
                let own = self.flights.own(Own::Rest(tag.clone()));
                self.splices.begin(own.clone().into(), asked, held);
                underway.awaits += 1;
                self.send(
                    [own.as_bytes(), b" UID FETCH ", held_set.as_bytes(), b" ", &rest_text, b"\r\n"]
                        .concat()
                        .into(),
                );
                self.flights.client(tag.clone(), true);
                self.send(rewritten(&tag, &missing_set, fetch, octets));
            }
        }
        self.underway.push_back(underway);
        None
    }

    /// Whether nothing is under way that may change flags.
    pub(super) fn flags_stand_still(&self) -> bool {
        self.underway.iter().all(|u| u.keeps_flags) && !self.flights.changes_flags()
    }

    /// Puts the flags that the origin told a moment ago in front of the stored items; `false` if some are not known.
    fn repeat_flags(&self, flags: &FetchItem, held: &mut [Prepared]) -> bool {
        let Some(now) = self.mono().filter(|_| self.flags_stand_still()) else { return false };
        let Some(lists) =
            held.iter().map(|row| self.flags.get(row.slot, now).cloned()).collect::<Option<Vec<_>>>()
        else {
            return false;
        };
        for (row, list) in held.iter_mut().zip(lists) {
            let told = Told { label: flags.label.clone(), section: false, partial: None };
            row.items.insert(0, (told, Held::Inline(list)));
        }
        true
    }

    /// The section that a client reads in pieces, of which this is one, if it is worth fetching whole.
    fn piece_of_large(&self, fetch: &Fetch, slot: SlotId) -> Option<ItemKey> {
        let (key, count) = only_piece(fetch)?;
        let size = *self.sizes.get(&slot)?;
        let reads_all = count >= PIECE_OCTETS_MIN;
        // A part's length is not known; it is no longer than its message, and its preview is no preview of that.
        let whole = key.class() == ItemClass::Section(SectionClass::Whole);
        let worth = size <= self.config.chunk_fill_max
            && (reads_all || whole && size <= count.saturating_mul(PREVIEW));
        (worth && self.may_ask_of_a_message()).then(|| key.clone())
    }

    /// Whether this reads, in pieces, a message of which only the size is missing to know whether all of it should come.
    fn is_sizeless(&self, command: &Command, slot: SlotId) -> bool {
        let Kind::Fetch(fetch) = &command.kind else { return false };
        let asks_itself = fetch.items.iter().any(|item| item.key.as_str() == "RFC822.SIZE");
        let reads_all = only_piece(fetch).is_some_and(|(_, count)| count >= PIECE_OCTETS_MIN);
        reads_all && !asks_itself && !self.sizes.contains_key(&slot) && self.may_ask_of_a_message()
    }

    /// Whether no answer to a question of ours could be taken for another's, or the other way round.
    fn may_ask_of_a_message(&self) -> bool {
        self.flights.asked_about().is_none()
            && !self.underway.iter().any(|u| u.fetches && u.completion.is_none())
    }

    /// Whether a FETCH could be answered with what we have asked of a message, or ours with its answer.
    pub(super) fn fetches_what_we_ask(&self, command: &Command) -> bool {
        let asked = self.flights.asked_about();
        let (Some(slot), b"FETCH") = (asked, &*command.verb) else { return false };
        let Kind::Fetch(fetch) = &command.kind else { return true };
        let Some(set) = &fetch.set.set else { return true };
        if command.uid {
            let largest = self.views.largest_uid().map_or(u32::MAX, Uid::get);
            self.views.uid(slot).is_none_or(|uid| set.contains(uid.get(), largest))
        } else {
            self.views.client_msn(slot).is_none_or(|msn| set.contains(msn.get(), self.views.client_len()))
        }
    }

    /// Behind the first piece: before the client asks for the second, the size is known.
    fn ask_size(&mut self, slot: SlotId, uid: Uid) {
        if self.mailbox_key().is_some() {
            let tag = self.flights.own(Own::Size(slot));
            self.send(format!("{tag} UID FETCH {uid} (RFC822.SIZE)\r\n").into());
        }
    }

    /// Whether the origin would set `\Seen` on what it fetches.
    pub(super) fn sets_seen(&self, fetch: &Fetch) -> bool {
        let read_only = self.selection().is_none_or(|s| s.read_only);
        !read_only && fetch.items.iter().any(|i| !i.peek)
    }

    /// In the same flight as the whole message, so that the first piece's OK need not wait for a round trip more. The
    /// origin's word that the flag is set comes before the message; if it does not, the piece asks again.
    fn ask_seen_ahead(&mut self, uid: Uid) {
        let tag = self.flights.own(Own::SeenAhead);
        self.send(format!("{tag} UID STORE {uid} +FLAGS (\\Seen)\r\n").into());
    }

    fn ask_whole(&mut self, slot: SlotId, uid: Uid, key: ItemKey) {
        self.whole_begun = None;
        let Some(spec) = key.section_spec().map(str::to_owned) else { return };
        let tag = self.flights.own(Own::Whole(slot, key));
        self.send(format!("{tag} UID FETCH {uid} (BODY.PEEK[{spec}])\r\n").into());
    }

    fn look_again(&self, command: &Command, slot: SlotId) -> Stage {
        match (&command.kind, self.views.uid(slot)) {
            (Kind::Fetch(fetch), Some(uid)) => {
                let wanted = (0..fetch.items.len())
                    .filter(|n| fetch.items.get(*n).is_some_and(|i| is_held_kind(&i.key)))
                    .collect();
                Stage::LookUp(LookUp::new(vec![(slot, uid)], wanted, true))
            }
            _ => Stage::Origin,
        }
    }

    fn can_ask_rights(&self) -> bool {
        self.capabilities.has("ACL") && !self.idle.is_engaged()
    }

    /// RFC 4314: on servers that keep serving an open mailbox after its rights were withdrawn, only this tells.
    fn ask_rights(&mut self) {
        let Some(selection) = self.selection() else { return };
        let line = [b" MYRIGHTS ", &*selection.written, b"\r\n"].concat();
        let tag = self.flights.own(Own::Rights);
        self.rights_seen = false;
        self.rights_asked = self.mono();
        self.send([tag.as_bytes(), &line].concat().into());
    }
}

enum Look {
    Up(LookUp),
    RightsFirst,
    UidsFirst,
}

impl LookUp {
    fn new(messages: Vec<(SlotId, Uid)>, wanted: Vec<usize>, again: bool) -> Self {
        Self {
            messages,
            wanted,
            asked: 0,
            request: None,
            held: Vec::new(),
            missing: Vec::new(),
            octets: 0,
            inline: 0,
            sizes: Vec::new(),
            again,
        }
    }

    fn keys(&self, fetch: &Fetch) -> Vec<ItemKey> {
        self.wanted.iter().filter_map(|n| fetch.items.get(*n)).map(|i| i.key.clone()).collect()
    }

    /// One batch's rows.
    fn take(&mut self, fetch: &Fetch, rows: Vec<Row>) {
        let batch = self.held.len() + self.missing.len();
        let asked = self.messages.get(batch..self.asked).unwrap_or_default().to_vec();
        let mut rows = rows.into_iter();
        for (slot, uid) in asked {
            // An answer that does not fit the question is no answer.
            let row = rows.next().filter(|row| row.uid == uid && row.values.len() == self.wanted.len());
            if let Some(size) = row.as_ref().and_then(|row| self.size_in(fetch, row)) {
                self.sizes.push((slot, size));
            }
            let values: Option<Vec<Held>> = row.and_then(|row| row.values.into_iter().collect());
            let inline = values.iter().flatten().map(inline_octets).sum::<u64>();
            match values {
                Some(values) if self.inline + inline <= INLINE_TOTAL_MAX => {
                    self.inline += inline;
                    let row = self.prepare(fetch, slot, uid, values);
                    self.octets += row.items.iter().map(|(_, held)| held.octets()).sum::<u64>();
                    self.held.push(row);
                }
                Some(_) | None => self.missing.push((slot, uid)),
            }
        }
    }

    fn size_in(&self, fetch: &Fetch, row: &Row) -> Option<u64> {
        let is_size = |n: &usize| fetch.items.get(*n).is_some_and(|i| i.key.as_str() == "RFC822.SIZE");
        let at = self.wanted.iter().position(is_size)?;
        let Some(Some(Held::Inline(octets))) = row.values.get(at) else { return None };
        super::number(octets)
    }

    fn prepare(&self, fetch: &Fetch, slot: SlotId, uid: Uid, values: Vec<Held>) -> Prepared {
        let mut values = self.wanted.iter().zip(values).peekable();
        let mut items = Vec::with_capacity(fetch.items.len());
        for (n, item) in fetch.items.iter().enumerate() {
            let section = matches!(item.key.class(), ItemClass::Section(_));
            let told = Told { label: item.label.clone(), section, partial: item.partial };
            if let Some((_, value)) = values.next_if(|(wanted, _)| **wanted == n) {
                items.push((told, value));
            }
        }
        Prepared { slot, uid, items }
    }

    /// Nothing of what was found may be shown.
    fn distrust(&mut self) {
        self.request = None;
        self.asked = self.messages.len();
        self.held.clear();
        self.missing.clone_from(&self.messages);
        self.again = true;
    }
}

fn inline_octets(held: &Held) -> u64 {
    match held {
        Held::Inline(octets) => octets.len() as u64,
        Held::Stored { .. } | Held::Filling { .. } => 0,
    }
}

/// The one piece of a section that this asks for, and how many octets at most, if all else can come from a store.
fn only_piece(fetch: &Fetch) -> Option<(&ItemKey, u64)> {
    let mut pieces = fetch.items.iter().filter_map(|item| Some((&item.key, item.partial?.1)));
    let (key, count) = pieces.next()?;
    let only = pieces.next().is_none()
        && matches!(key.class(), ItemClass::Section(_))
        && fetch.items.iter().all(|i| is_held_kind(&i.key) || i.key.class() == ItemClass::Uid);
    only.then_some((key, u64::from(count)))
}

/// Whether a store may hold values of this item.
fn is_held_kind(key: &ItemKey) -> bool {
    matches!(key.class(), ItemClass::Fixed | ItemClass::Section(_))
}

/// Items of which only the origin knows the value now.
fn rest_of(fetch: &Fetch) -> impl Iterator<Item = &FetchItem> {
    fetch.items.iter().filter(|i| !is_held_kind(&i.key) && i.key.class() != ItemClass::Uid)
}

fn has_rest(command: &Command) -> bool {
    matches!(&command.kind, Kind::Fetch(fetch) if rest_of(fetch).next().is_some())
}

/// Whether an item can be asked of the origin apart from the others, and its answer told from any other.
fn is_separable(item: &FetchItem) -> bool {
    let simple = ["FLAGS", "MODSEQ"];
    item.key.class() != ItemClass::Dynamic || simple.contains(&item.key.as_str())
}

fn set_text(uids: impl IntoIterator<Item = Uid>) -> String {
    SequenceSet::from_sorted(uids.into_iter().map(Uid::get)).to_string()
}

/// Items that only the origin answers for, as the client wrote them.
fn labels(items: &[&FetchItem]) -> Vec<u8> {
    [b"(", items.iter().map(|i| &*i.label).collect::<Vec<_>>().join(&b' ').as_slice(), b")"].concat()
}

/// The client's FETCH for fewer messages, in the UID form, items as the client wrote them.
fn rewritten(tag: &[u8], set: &str, fetch: &Fetch, octets: &[u8]) -> Bytes {
    let items = octets.get(fetch.items_span.clone()).unwrap_or_default();
    [tag, b" UID FETCH ", set.as_bytes(), b" ", items, b"\r\n"].concat().into()
}

fn completed(tag: &[u8], command: &Command) -> Bytes {
    let uid: &[u8] = if command.uid { b"UID " } else { b"" };
    [tag, b" OK ", uid, b"FETCH completed\r\n"].concat().into()
}

/// A client that asks for pieces of this length reads all of them, one after the other (Thunderbird: 64 KiB).
const PIECE_OCTETS_MIN: u64 = 64 * 1024;

/// A shorter piece is a preview, unless the message is at most this many times as long.
const PREVIEW: u64 = 8;

/// A FETCH of more items goes to the origin: no client asks that many.
const ITEMS_MAX: usize = 32;

/// A FETCH of more messages goes to the origin: looking them up would hold the session longer than the wire does.
const MESSAGES_MAX: usize = 20_000;

/// Values that one FETCH may hold in memory until they are told; what is beyond comes from the origin.
const INLINE_TOTAL_MAX: u64 = 8 * 1024 * 1024;

/// A set of UIDs in a command of ours: half of what servers take in a line, with room for the items.
const SET_OCTETS_MAX: usize = 32 * 1024;
