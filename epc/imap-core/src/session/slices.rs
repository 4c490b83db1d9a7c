//! Mail fetched over the client's own connection to the origin while it rests, before anybody asks for it (US 9,172,620,
//! 'synthetic transactions'). What is worth it and when it may go, a [`Preload`] says; here it is asked in slices that a
//! client's command never waits for, and kept out of what the client hears.
//!
//! ```text
//!  at rest ─► next? ─┬─ describe ─► store ─── not all there ───► may it go? ─► FETCH n,m (…)            ─┐
//!     ▲              └─ sections ─► claim ─── ours ────────────► may it go? ─► FETCH n (UID BODY.PEEK[…]<o.c>) ─┤
//!     └──────────────────────────────── answered: told, kept, or given up ◄──────────────────────────────────┘
//! ```
//! * One slice at a time, by number: the origin may not tell EXPUNGE meanwhile (RFC 9051 §7.5.1), so a client's numbers
//!   stay what they are and its command goes out at once behind the slice.
//! * Told from what the client asks by message, section and place in it; flags that come with it go to the client.
//! * A claim in the store lasts as long as a slice: whoever wants the same never waits for more of it.

mod asking;
mod idling;
mod piece;
mod reading;

#[cfg(test)]
mod tests;

use super::Idle;
use crate::{
    catalog::{CatalogOp, Claim, FillId, MailboxKey, RequestId, Row},
    command::{Command, FetchItem, Kind},
    item::ItemKey,
    mutants,
    preload::{Preload, describing_fields},
    retained::UidRanges,
    uid::Uid,
    views::SlotId,
};
use bytes::{Bytes, BytesMut};
use discovery_core::{now::Now, seam::advisor::Held, value::Served};
use idling::Line;
use piece::{Answer, Piece};
pub(super) use reading::Sink;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

/// What this session does for nobody yet.
#[derive(Default)]
pub(super) struct Synthetic {
    preload: Option<Box<dyn Preload>>,
    doing: Doing,
    /// What is with the origin.
    under_way: Option<UnderWay>,
    claim: Claiming,
    /// The gate has let so many octets go, which wait for the end of an IDLE.
    granted: Option<u32>,
    /// Nothing is asked for before this moment.
    wait: Option<Instant>,
    /// There was nothing worth fetching, and nothing has happened since: not asked before this moment.
    asleep: Option<Instant>,
    /// The gate wants to hear no more of this mailbox.
    stopped: bool,
    /// Orders in a row of which nothing came.
    fruitless: u8,
    line: Line,
    /// When the client's IDLE was interrupted.
    left: Option<Instant>,
    /// It was told that a client waits.
    foreground: bool,
    /// The largest UID of the list that it was told, if it was told one.
    listed: Option<Option<Uid>>,
    /// Messages that were described although their UID was not known, as long as it is not.
    newcomers: BTreeSet<SlotId>,
    /// The message that a client opened last, and where its first octets came from.
    opened: Option<(SlotId, Served)>,
}

/// An order, and how far it has come.
#[derive(Default)]
enum Doing {
    #[default]
    Nothing,
    /// Descriptions: of those `left`, the store is still to be asked; of those `missing`, the origin.
    Describe {
        request: Option<RequestId>,
        asked: Vec<Uid>,
        left: Vec<Uid>,
        missing: Vec<(Uid, Held)>,
    },
    Fetch(Box<Fetch>),
}

/// Sections of one message.
struct Fetch {
    slot: SlotId,
    uid: Uid,
    key: ItemKey,
    piece: Piece,
    fill: Option<FillId>,
    /// When the last slice was asked.
    asked: Option<Instant>,
    memory: BytesMut,
    /// Those behind `key`.
    rest: VecDeque<(ItemKey, u64)>,
}

enum UnderWay {
    Slice {
        slot: SlotId,
        key: ItemKey,
        offset: u32,
        answer: Option<Answer>,
    },
    /// Descriptions, and what the store has of each; without a UID: it came a moment ago.
    Describe {
        batch: Vec<(SlotId, Option<Uid>, Held)>,
        told: usize,
        /// The flags of each as the client knew them when it was asked.
        before: BTreeMap<SlotId, Bytes>,
    },
}

#[derive(Default)]
enum Claiming {
    #[default]
    No,
    Asked(RequestId),
    Ours,
}

impl Synthetic {
    /// Whether there was one, or may have been.
    pub(super) fn lose_claim(&mut self) -> bool {
        !matches!(std::mem::take(&mut self.claim), Claiming::No)
    }

    /// It may know more now.
    fn wake(&mut self) {
        self.asleep = None;
    }
}

/// What it is told.
impl super::Session {
    /// Who decides what is fetched ahead; without, nothing is.
    pub fn preload_by(&mut self, preload: Box<dyn Preload>) {
        self.synthetic.preload = Some(preload);
    }

    /// The one to tell about the open mailbox, with that and the time.
    fn preload(&mut self) -> Option<(&mut Box<dyn Preload>, MailboxKey, Now)> {
        let (now, key) = (self.now?, self.mailbox_key()?.clone());
        let preload = self.synthetic.preload.as_mut()?;
        Some((preload, key, now))
    }

    /// The origin no longer has these.
    pub(super) fn preload_gone(&mut self, uids: &[Uid]) {
        if let Some((preload, key, now)) = self.preload() {
            preload.gone(&key, uids, now);
            self.synthetic.wake();
        }
    }

    pub(super) fn preload_held(&mut self, uid: Uid, held: Held) {
        if let Some((preload, key, _)) = self.preload() {
            preload.held(&key, uid, held);
            self.synthetic.wake();
        }
    }

    /// Tells once that all messages are known, and again when there are new ones.
    fn tell_listed(&mut self) {
        let largest = self.views.largest_uid();
        let known = self.synthetic.listed == Some(largest);
        let untold = self.synthetic.preload.is_none() || self.mailbox_key().is_none();
        if untold || known || !self.views.all_uids_known() {
            return;
        }
        let before = self.synthetic.listed.replace(largest);
        if before.is_some_and(|before| before > largest) {
            // That some have gone was told as they went.
            return;
        }
        let uids = UidRanges::of(self.views.known_uids().map(|(_, uid)| uid.get()));
        if let Some((preload, key, now)) = self.preload() {
            preload.listed(&key, &uids, now);
            self.synthetic.wake();
        }
    }

    /// A client begins to wait, or waits no more.
    fn tell_foreground(&mut self, active: bool) {
        if active == self.synthetic.foreground {
            return;
        }
        self.synthetic.foreground = active;
        if let Some((preload, now)) = self.synthetic.preload.as_mut().zip(self.now) {
            preload.foreground(active, now);
        }
        self.synthetic.granted = None;
        if active && self.synthetic.under_way.is_none() {
            self.release_ours();
        }
        self.synthetic.wake();
    }

    fn is_foreground(&self) -> bool {
        let idle = match &self.idle {
            Idle::Asked(tag) | Idle::Listening(tag) => Some(tag),
            Idle::Off => None,
        };
        self.is_ahead() || self.flights.has_foreground(idle)
    }
}

/// What becomes of it when the client speaks, or leaves.
impl super::Session {
    /// Whether a client's FETCH could be answered by what is under way, or the other way round.
    pub(super) fn fetches_a_slice(&self, command: &Command) -> bool {
        let Some(under_way) = self.synthetic.under_way.as_ref().filter(|_| self.flights.has_slice()) else {
            return false;
        };
        if mutants::on("session-command-behind-slice") {
            return true;
        }
        let Kind::Fetch(fetch) = &command.kind else { return *command.verb == *b"FETCH" };
        if !fetch.items.iter().any(|item| under_way.could_be(item)) {
            return false;
        }
        let Some(set) = &fetch.set.set else { return true };
        let largest = self.views.largest_uid().map_or(u32::MAX, Uid::get);
        under_way.slots().any(|slot| {
            if command.uid {
                self.views.uid(slot).is_none_or(|uid| set.contains(uid.get(), largest))
            } else {
                let msn = self.views.client_msn(slot);
                msn.is_none_or(|msn| set.contains(msn.get(), self.views.client_len()))
            }
        })
    }

    /// Whether a slice of a section is under way, and no descriptions.
    pub(super) fn is_slicing(&self) -> bool {
        matches!(self.synthetic.under_way, Some(UnderWay::Slice { .. }))
    }

    /// The mailbox is left: what is half fetched is nobody's.
    pub(super) fn leave_slices(&mut self) {
        self.skip_slice();
        self.give_up();
        let Synthetic { preload, foreground, line, left, .. } = std::mem::take(&mut self.synthetic);
        self.synthetic = Synthetic { preload, foreground, line, left, ..Synthetic::default() };
    }

    /// The session is over.
    pub(super) fn end_slices(&mut self) {
        self.leave_slices();
        if !mutants::on("session-foreground-unpaired") {
            self.tell_foreground(false);
        }
        // Now, and not when the last octets have been written: whoever goes on with this connection asks the same one.
        self.synthetic.preload = None;
    }

    /// Gives the order up.
    fn give_up(&mut self) {
        if let Doing::Fetch(fetch) = std::mem::take(&mut self.synthetic.doing)
            && let Some(fill) = fetch.fill
        {
            self.catalog(CatalogOp::FillAbort { fill });
        }
        self.release_ours();
    }

    fn release_ours(&mut self) {
        if self.synthetic.lose_claim() {
            let session = self.config.number;
            self.catalog(CatalogOp::Release { session });
        }
    }

    /// The store's answer to a question of ours. `false`: it is none.
    pub(super) fn slices_claimed(&mut self, request: RequestId, claim: Claim) -> bool {
        if !matches!(self.synthetic.claim, Claiming::Asked(asked) if asked == request) {
            return false;
        }
        self.synthetic.claim = Claiming::No;
        match claim {
            Claim::Yours => {
                self.synthetic.claim = Claiming::Ours;
                if !self.rests() {
                    self.release_ours();
                }
            }
            Claim::Held => {
                self.synthetic.fruitless = 0;
                self.section_done(true);
            }
            Claim::Others => {
                let uid =
                    if let Doing::Fetch(fetch) = &self.synthetic.doing { Some(fetch.uid) } else { None };
                uid.into_iter().for_each(|uid| self.preload_held(uid, Held::Part));
                self.bears_no_fruit();
            }
        }
        true
    }

    /// Likewise.
    pub(super) fn slices_resolved(&mut self, request: RequestId, rows: &[Row]) -> bool {
        let Doing::Describe { request: waits, asked, .. } = &mut self.synthetic.doing else { return false };
        if *waits != Some(request) {
            return false;
        }
        *waits = None;
        let asked = std::mem::take(asked);
        self.describe_from_store(asked, rows);
        true
    }
}

impl UnderWay {
    fn slots(&self) -> impl Iterator<Item = SlotId> {
        let (one, many) = match self {
            Self::Slice { slot, .. } => (Some(*slot), [].as_slice()),
            Self::Describe { batch, .. } => (None, batch.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|(slot, ..)| *slot))
    }

    /// Whether the answer to this item could be taken for ours.
    fn could_be(&self, item: &FetchItem) -> bool {
        match self {
            Self::Slice { key, offset, .. } => {
                item.key == *key && item.partial.is_some_and(|(first, _)| first == *offset)
            }
            Self::Describe { .. } => tells_description(&item.key),
        }
    }
}

/// Whether this is among what describes a message and is not asked with every list: the one by which an answer is known.
fn tells_description(key: &ItemKey) -> bool {
    matches!(key.as_str(), "ENVELOPE" | "BODYSTRUCTURE") || *key == describing_fields()
}
