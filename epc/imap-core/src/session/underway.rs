//! Commands that are not completed: the client's in their order, and which tags the origin owes us an answer for.

use super::{login::Login, telling::Prepared};
use crate::{
    command::{Command, MsnSpans, SetRef},
    item::ItemKey,
    uid::UidValidity,
    views::SlotId,
};
use bytes::Bytes;
use std::{collections::VecDeque, time::Instant};

/// A client's command from its arrival to its tagged reply. Replies leave in the order of arrival, so a command
/// that the store answers never overtakes one that the origin is still at.
pub(super) struct Underway {
    pub(super) tag: Bytes,
    /// Names messages by number: no EXPUNGE may be told while it is the oldest.
    pub(super) by_number: bool,
    /// The origin may answer it with data of messages.
    pub(super) fetches: bool,
    /// It changes no flags.
    pub(super) keeps_flags: bool,
    /// What its success changes.
    pub(super) effect: Effect,
    /// Message data that the store gives, told when it is the oldest.
    pub(super) prepared: Vec<Prepared>,
    /// Commands of ours that must be done before it may be completed.
    pub(super) awaits: usize,
    /// Its tagged reply, once known.
    pub(super) completion: Option<Bytes>,
}

/// What changes when the origin says OK.
pub(super) enum Effect {
    Nothing,
    Login(Login),
    Select(Selecting),
    Deselect,
    /// The mailbox's rows are history.
    Forget(Bytes),
    Idle,
    /// A SEARCH whose response has the origin's numbers where the client's must stand.
    Renumber,
    /// These may lose `\Seen` without a word of the origin.
    Store(Vec<SlotId>),
    /// Nothing can be followed afterwards.
    Tunnel(&'static str),
}

/// A mailbox being opened.
pub(super) struct Selecting {
    pub(super) mailbox: Bytes,
    /// As the client wrote it, quotes and all.
    pub(super) written: Bytes,
    pub(super) examine: bool,
    pub(super) uid_validity: Option<UidValidity>,
    /// When the origin was asked: what it shows is true of then, however long its answer takes.
    pub(super) asked: Option<Instant>,
}

impl Underway {
    /// A command that the origin completes.
    pub(super) fn new(tag: Bytes, by_number: bool, effect: Effect) -> Self {
        Self {
            tag,
            by_number,
            fetches: false,
            keeps_flags: false,
            effect,
            prepared: Vec::new(),
            awaits: 0,
            completion: None,
        }
    }
}

/// What a command of ours is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// ID with the client's address.
    ClientAddress,
    /// COMPRESS.
    Compress,
    /// Which UIDs there are.
    Uids,
    /// Whether this user may still read this mailbox.
    Rights,
    /// `\Seen`, for the client's command of this tag.
    Seen(Bytes),
    /// `\Seen`, for a client's command that is not yet under way.
    SeenAhead,
    /// What only the origin knows of messages that the store holds, for the client's command of this tag.
    Rest(Bytes),
    /// The size of a message, because the client reads it in pieces.
    Size(SlotId),
    /// A whole section, because the client reads it in pieces.
    Whole(SlotId, ItemKey),
    /// The end of an IDLE whose client has its answer already.
    IdleEnd,
    /// An IDLE in place of the client's, which was interrupted.
    IdleAgain,
    /// Mail that nobody asked for yet.
    Slice,
}

/// Whose command a tag is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Client,
    Own(Own),
}

struct Flight {
    tag: Bytes,
    owner: Owner,
    /// In a form during which the origin may tell EXPUNGE although the client's own command forbids it.
    may_expunge: bool,
}

/// What the origin has been sent and has not completed. Tags may come back in any order (Dovecot).
pub(super) struct Flights {
    prefix: String,
    counter: u64,
    flights: VecDeque<Flight>,
}

impl Flights {
    /// Tags of ours begin with `nonce`, which no client can know.
    pub(super) fn new(nonce: [u8; 6]) -> Self {
        let nonce: String = nonce.iter().map(|o| format!("{o:02X}")).collect();
        Self { prefix: format!("EPC{nonce}"), counter: 0, flights: VecDeque::new() }
    }

    /// A client's command was sent. `rewritten`: into a form that lets the origin tell EXPUNGE.
    pub(super) fn client(&mut self, tag: Bytes, rewritten: bool) {
        self.flights.push_back(Flight { tag, owner: Owner::Client, may_expunge: rewritten });
    }

    /// A tag of ours for a command whose answer is not looked for here.
    pub(super) fn reserve(&mut self) -> String {
        self.counter += 1;
        format!("{}{}", self.prefix, self.counter)
    }

    /// A tag for a command of ours that is sent now.
    pub(super) fn own(&mut self, own: Own) -> String {
        let tag = self.reserve();
        self.flights.push_back(Flight {
            tag: tag.clone().into(),
            // A slice names its message by number.
            may_expunge: !matches!(own, Own::Compress | Own::ClientAddress | Own::Slice),
            owner: Owner::Own(own),
        });
        tag
    }

    /// Our question for UIDs went out on a connection that is no more.
    pub(super) fn forget_uids(&mut self) {
        self.flights.retain(|f| f.owner != Owner::Own(Own::Uids));
    }

    /// The client has its answer to IDLE; what the origin still says to that tag is nobody's.
    pub(super) fn disown_idle(&mut self, tag: &[u8]) {
        if let Some(flight) = self.flights.iter_mut().find(|f| f.tag == tag) {
            flight.owner = Owner::Own(Own::IdleEnd);
            flight.may_expunge = true;
        }
    }

    /// Likewise, after the client's IDLE was taken up again.
    pub(super) fn disown_idle_again(&mut self) {
        if let Some(flight) = self.flights.iter_mut().find(|f| f.owner == Owner::Own(Own::IdleAgain)) {
            flight.owner = Owner::Own(Own::IdleEnd);
        }
    }

    /// The tag of the IDLE in place of the client's.
    pub(super) fn idle_again(&self) -> Option<&Bytes> {
        self.flights.iter().find(|f| f.owner == Owner::Own(Own::IdleAgain)).map(|f| &f.tag)
    }

    /// The origin completed a tag.
    pub(super) fn completed(&mut self, tag: &[u8]) -> Option<Owner> {
        let at = self.flights.iter().position(|f| f.tag == tag)?;
        self.flights.remove(at).map(|f| f.owner)
    }

    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether nothing is under way that a client waits for, or that changes what the origin's words mean.
    pub(super) fn is_silent(&self) -> bool {
        self.flights.iter().all(|f| f.owner == Owner::Own(Own::Slice))
    }

    /// Whether a client waits for something, its IDLE of the tag `idle` aside.
    pub(super) fn has_foreground(&self, idle: Option<&Bytes>) -> bool {
        self.flights.iter().any(|f| match &f.owner {
            Owner::Client => Some(&f.tag) != idle,
            Owner::Own(own) => match own {
                Own::Compress
                | Own::Uids
                | Own::Rights
                | Own::Seen(_)
                | Own::SeenAhead
                | Own::Rest(_)
                | Own::Whole(..) => true,
                Own::ClientAddress | Own::Size(_) | Own::IdleEnd | Own::IdleAgain | Own::Slice => false,
            },
        })
    }

    /// Whether a slice is under way.
    pub(super) fn has_slice(&self) -> bool {
        self.owns(|own| *own == Own::Slice)
    }

    /// Whether the origin may tell EXPUNGE in answer to something that the client did not ask.
    pub(super) fn may_expunge(&self) -> bool {
        self.flights.iter().any(|f| f.may_expunge)
    }

    /// Whether the origin owes the client an answer to this tag.
    pub(super) fn has_client(&self, tag: &[u8]) -> bool {
        self.flights.iter().any(|f| f.owner == Owner::Client && f.tag == tag)
    }

    pub(super) fn has_own(&self) -> bool {
        self.flights.iter().any(|f| f.owner != Owner::Client)
    }

    pub(super) fn owns(&self, what: impl Fn(&Own) -> bool) -> bool {
        self.flights.iter().any(|f| matches!(&f.owner, Owner::Own(own) if what(own)))
    }

    /// Whether we have asked for a change of flags, or may learn late of one that the origin told.
    pub(super) fn changes_flags(&self) -> bool {
        self.flights.iter().any(|f| matches!(f.owner, Owner::Own(Own::Seen(_) | Own::SeenAhead)))
    }

    /// The section that was asked whole.
    pub(super) fn whole(&self) -> Option<(SlotId, &ItemKey)> {
        self.flights.iter().find_map(|f| {
            if let Owner::Own(Own::Whole(slot, key)) = &f.owner { Some((*slot, key)) } else { None }
        })
    }

    /// The message of which we have asked something, and whose answer must not be another's: one at a time.
    pub(super) fn asked_about(&self) -> Option<SlotId> {
        self.flights.iter().find_map(|f| match &f.owner {
            Owner::Own(Own::Size(slot) | Own::Whole(slot, _)) => Some(*slot),
            Owner::Client | Owner::Own(_) => None,
        })
    }

    pub(super) fn asks_about(&self, slot: SlotId) -> bool {
        self.asked_about() == Some(slot)
    }

    /// The tag of our question for UIDs, as an ESEARCH response names it.
    pub(super) fn uids_tag(&self) -> Option<&Bytes> {
        self.flights.iter().find(|f| f.owner == Owner::Own(Own::Uids)).map(|f| &f.tag)
    }
}

/// Whether a command names messages by number, somewhere: then the numbers must be the client's until they are said in
/// the origin's. In the UID form, criteria of a search still do (RFC 9051 §6.4.4).
pub(super) fn is_by_number(command: &Command) -> bool {
    let searches = [&b"SEARCH"[..], b"SORT", b"THREAD"].contains(&&*command.verb);
    if !command.uid {
        return searches || [&b"FETCH"[..], b"STORE", b"COPY", b"MOVE"].contains(&&*command.verb);
    }
    command.kind.criteria().map_or(searches, |criteria| *criteria != MsnSpans::Known(Vec::new()))
}

/// Whether EXPUNGE must wait while it runs.
pub(super) fn forbids_expunge(uid: bool, verb: &[u8]) -> bool {
    !uid && [&b"FETCH"[..], b"STORE", b"SEARCH", b"SORT", b"THREAD"].contains(&verb)
}

/// The numbers of a set as the client wrote it, `*` being `largest`; `None` for `$`.
pub(super) fn numbers(set: &SetRef, largest: u32) -> Option<impl Iterator<Item = u32> + use<>> {
    Some(set.set.as_ref()?.resolve(largest).flatten())
}
