//! The round: open, list, watch.

use super::{Keeper, Output, Phase, ROUND_MAX, places::NOTIFY, window};
use discovery_core::now::Now;
use imap_core::{
    catalog::{CatalogOp, MailboxKey},
    mutants,
    uid::Uid,
};

impl Keeper {
    pub(super) fn open(&mut self, now: Now) {
        let (examine, search) = (self.tag(), self.tag());
        let verb = if mutants::on("keeper-selects") { "SELECT" } else { "EXAMINE" };
        let result = if self.facts.capabilities.has("ESEARCH") { "RETURN (ALL) " } else { "" };
        let line = [
            format!("{examine} {verb} ").as_bytes(),
            &self.here().written.clone(),
            format!("\r\n{search} UID SEARCH {result}ALL\r\n").as_bytes(),
        ]
        .concat();
        self.outputs.push_back(Output::ToServer(line.into()));
        (self.asked, self.examine_said) = (now.mono, now.mono);
        (self.validity, self.listed, self.opened, self.misheard) = (None, None, false, false);
        self.stale = false;
        self.resume = self.resume.filter(|resume| *resume > now.mono);
        self.phase = Phase::Opening { search: search.into(), examine: examine.into() };
    }

    pub(super) fn examined(&mut self, now: Now) {
        self.opened = true;
        self.examined_at = now.mono;
        self.measure(now);
        let Some(uid_validity) = self.validity else { return };
        let account = self.facts.account.clone();
        let name = self.here().name.clone();
        let key = MailboxKey { account, name, uid_validity, utf8: self.facts.utf8 };
        let here = self.here_mut();
        if here.key.as_ref().is_some_and(|old| *old != key) {
            // Every UID is other mail now.
            here.known = None;
        }
        here.key = Some(key.clone());
        self.catalog(CatalogOp::Selected { mailbox: key });
    }

    /// The shorter the answer to EXAMINE took, the less it was anything but the line.
    fn measure(&mut self, now: Now) {
        let took = now.mono.saturating_duration_since(self.examine_said);
        if self.round_trip.is_none_or(|shortest| took < shortest) {
            self.round_trip = Some(took);
            self.outputs.push_back(Output::Window(window::of(self.limits.line_rate, took)));
        }
    }

    pub(super) fn listed(&mut self, now: Now) {
        let (Some(listed), Some(key)) = (self.listed.take(), self.here().key.clone()) else {
            return self.watch(now);
        };
        let known = self.here_mut().known.replace(listed.clone());
        let gone: Vec<Uid> = known
            .map(|known| known.without(&listed).newest_first().take(GONE_MAX).filter_map(Uid::new).collect())
            .unwrap_or_default();
        if !gone.is_empty() {
            self.preload.gone(&key, &gone, now);
            self.catalog(CatalogOp::Expunged { mailbox: key.clone(), uids: gone });
        }
        self.preload.listed(&key, &listed, now);
        // Before anything is fetched: what comes elsewhere from here on is told.
        if self.is_notified() && self.notified.is_none() {
            let tag = self.tag();
            self.send(format!("{tag} {NOTIFY}\r\n"));
            self.notified = Some(tag.into());
        }
        self.go_on(now);
    }

    pub(super) fn watch(&mut self, now: Now) {
        self.asked = now.mono;
        if self.away.is_some() {
            return self.go_home(now);
        }
        if self.stale {
            return self.open(now);
        }
        if self.facts.capabilities.has("IDLE") {
            let tag = self.tag();
            self.send(format!("{tag} IDLE\r\n"));
            self.phase = Phase::Idle(tag.into(), false);
        } else {
            self.pause(now);
        }
    }

    pub(super) fn pause(&mut self, now: Now) {
        let until = now.mono + ROUND_MAX;
        self.phase = Phase::Pausing(self.resume.map_or(until, |resume| resume.min(until)));
    }

    pub(super) fn leave_idle(&mut self, now: Now) {
        if let Phase::Idle(_, done) = &mut self.phase {
            *done = true;
            self.asked = now.mono;
            self.send("DONE\r\n".into());
        }
    }
}

/// Vanished messages told the store in one round; the rest is found out by its reader.
const GONE_MAX: usize = 10_000;
