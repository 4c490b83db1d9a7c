//! The client leaves and the connection to the origin stays: when that may be, and what is handed over.

use super::{
    Idle, Phase,
    exchange::{Closing, Output},
    tee::Reading,
};
use crate::{
    mutants,
    retained::{Facts, UidRanges, Watched},
};

impl super::Session {
    /// The client has said its last word. What it left half said is nobody's, and then nothing is kept.
    pub(super) fn client_gone(&mut self) {
        let said_whole = self.passing.is_none()
            && self.waiting.is_none()
            && self.client_input.is_empty()
            && (self.client.is_between_lines() || mutants::on("retain-half-a-command"));
        if said_whole && self.may_retain() && self.is_quiet() {
            self.retain();
        } else if said_whole && self.may_retain() && self.ends_by_itself() {
            // At the end of the slice.
            self.client_finished = true;
        } else {
            self.close(Closing::Done);
        }
    }

    /// Whether nothing is under way but what was asked for nobody.
    fn ends_by_itself(&self) -> bool {
        let listening = usize::from(matches!(self.idle, Idle::Listening(_)));
        self.underway.len() == listening
            && self.flight_is_over()
            && (self.flights.is_silent() || self.is_idle_interrupted())
            && !self.reading.is_told()
    }

    /// Whether the connection can outlive the client once nothing is under way: somebody certain is logged in, and
    /// what the origin says can be followed.
    pub(super) fn may_retain(&self) -> bool {
        self.config.retain
            && self.account.is_some()
            && self.authenticated.is_some()
            && !self.bye_heard
            && matches!(self.phase, Phase::Authenticated | Phase::Selected(_))
    }

    /// Whether the origin owes nobody an answer, an IDLE that can be ended aside.
    pub(super) fn is_quiet(&self) -> bool {
        let listening = usize::from(matches!(self.idle, Idle::Listening(_)));
        self.underway.len() == listening
            && self.flights.len() == usize::from(self.origins_idle().is_some())
            && !self.owes_done()
            && (self.flight_is_over() || mutants::on("retain-in-flight"))
            && matches!(self.reading, Reading::Nothing)
            && self.server.is_between_lines()
    }

    pub(super) fn retain(&mut self) {
        let (Some(account), Some((authenticated, token))) = (self.account.clone(), self.authenticated) else {
            return self.close(Closing::Done);
        };
        let mailbox = self.selection().and_then(|selection| {
            let key = selection.key.clone()?;
            let uids = self
                .views
                .all_uids_known()
                .then(|| UidRanges::of(self.views.known_uids().map(|(_, uid)| uid.get())));
            Some(Watched { key, written: selection.written.clone(), uids })
        });
        let idle = self.origins_idle();
        let facts = Facts {
            number: self.config.number,
            last_fill: self.last_fill,
            nonce: self.config.nonce,
            account,
            authenticated,
            token,
            capabilities: self.capabilities.clone(),
            utf8: self.utf8,
            mailbox,
            idle,
        };
        self.end_slices();
        self.recorded();
        self.drop_claim();
        self.phase = Phase::Closed;
        self.waiting = None;
        self.outputs.push_back(Output::Retain(Box::new(facts)));
    }
}
