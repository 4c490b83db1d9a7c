//! Waiting for a body that another session of the same account fetches at this moment, instead of fetching it too.
//!
//! ```text
//!  not held ─► claim ─┬─ ours ─────────────────────────────► origin; released when its answer is complete
//!                     ├─ came meanwhile ───────────────────► look up
//!                     └─ another's ─► a pause ─► look up ─► claim … until patience ends, then ours without a claim
//! ```
//! Whoever waits depends on no other session: one that stands still loses its claim in the store
//! ([`CLAIM_IDLE`](crate::catalog::CLAIM_IDLE)), and patience ends in any case.

use super::fetch::Waiting;
use crate::{
    catalog::{CatalogOp, Claim, RequestId},
    command::{Command, Fetch},
    item::{ItemClass, ItemKey, SectionClass},
    mutants,
    uid::Uid,
};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// How far a FETCH has come with its claim.
#[derive(Clone, Copy, Default)]
pub(super) struct Patience {
    /// When it was first told that another session has it.
    since: Option<Instant>,
    /// It needs no claim any more: it has one, or goes without.
    settled: bool,
}

/// What to do after the store's answer to a claim.
pub(super) enum Next {
    /// On to the origin.
    Fetch,
    /// Ask the store for the body at once.
    LookAgain,
    /// The same, not before this moment.
    Pause(Instant),
}

impl Patience {
    fn take(&mut self, claim: Claim, now: Instant) -> Next {
        match claim {
            Claim::Yours => {
                self.settled = true;
                Next::Fetch
            }
            Claim::Held => {
                self.settled = true;
                Next::LookAgain
            }
            Claim::Others => {
                let since = *self.since.get_or_insert(now);
                if now.saturating_duration_since(since) < PATIENCE || mutants::on("session-claim-for-ever") {
                    return Next::Pause(now + PAUSE);
                }
                self.settled = true;
                Next::Fetch
            }
        }
    }
}

impl super::Session {
    /// The section that this FETCH would carry over the line and that others may want too.
    pub(super) fn claimable<'a>(&self, fetch: &'a Fetch, patience: Patience) -> Option<&'a ItemKey> {
        if patience.settled || self.claimed.is_some() {
            return None;
        }
        let mut bodies = fetch.items.iter().filter(|item| is_body(&item.key));
        let body = bodies.next()?;
        bodies.all(|other| other.key == body.key).then_some(&body.key)
    }

    pub(super) fn ask_claim(&mut self, uid: Uid, item: ItemKey) -> Option<RequestId> {
        let mailbox = self.mailbox_key().cloned()?;
        let session = self.config.number;
        // One that is refused does not take the place of the one before.
        if self.synthetic.lose_claim() {
            self.catalog(CatalogOp::Release { session });
        }
        let request = self.request();
        self.catalog(CatalogOp::Claim { request, session, mailbox, uid, item });
        Some(request)
    }

    /// The store's answer for `command`.
    pub(super) fn claimed(&mut self, command: &Command, patience: &mut Patience, claim: Claim) -> Next {
        if claim == Claim::Yours {
            self.claimed = Some(Bytes::copy_from_slice(&command.tag));
        }
        // Without a clock there is no pause.
        self.mono().map_or(Next::Fetch, |now| patience.take(claim, now))
    }

    /// Gives up the claim once nothing can come of it any more.
    pub(super) fn release_claim(&mut self) {
        let Some(tag) = &self.claimed else { return };
        let is_it = |waiting: &Waiting| *waiting.command.tag == **tag;
        let goes_on = self.waiting.as_ref().is_some_and(is_it)
            || self.flights.has_client(tag)
            || self.flights.whole().is_some();
        if !goes_on {
            self.drop_claim();
        }
    }

    pub(super) fn drop_claim(&mut self) {
        // One that was asked for may have been given.
        let asked = self.waiting.as_ref().is_some_and(Waiting::asks_claim);
        if self.claimed.take().is_some() || asked || self.synthetic.lose_claim() {
            let session = self.config.number;
            self.catalog(CatalogOp::Release { session });
        }
    }
}

/// Whether a section may be large.
pub(super) fn is_body(key: &ItemKey) -> bool {
    match key.class() {
        ItemClass::Section(SectionClass::Whole | SectionClass::Text | SectionClass::Part) => true,
        ItemClass::Section(
            SectionClass::Header | SectionClass::HeaderFields | SectionClass::Mime | SectionClass::Embedded,
        )
        | ItemClass::Uid
        | ItemClass::Fixed
        | ItemClass::Dynamic => false,
    }
}

/// Between two looks: a person does not notice it, and a store is not worn by it.
const PAUSE: Duration = Duration::from_millis(50);

/// What a client that hears nothing may be asked to bear: the shortest patience of mail readers is a minute.
const PATIENCE: Duration = Duration::from_secs(20);
