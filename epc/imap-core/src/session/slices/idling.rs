//! A client that listens in IDLE notices nothing: towards the origin its IDLE is ended, and taken up again later.
//!
//! ```text
//!  Theirs ── DONE ─► Leaving ── answered ─► Left ── IDLE ─► Returning ── + ─► Ours ── DONE ─► Leaving …
//! ```
//! The client's own DONE is answered at once wherever that stands.

use super::super::{
    Idle,
    underway::{Effect, Own},
};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// Where the origin stands with the IDLE of a client that listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Line {
    /// In the client's own, or nobody listens.
    #[default]
    Theirs,
    /// DONE was sent.
    Leaving,
    /// In none.
    Left,
    /// Ours was sent.
    Returning,
    /// In ours.
    Ours,
}

impl Line {
    pub(super) fn is_in_idle(self) -> bool {
        matches!(self, Self::Theirs | Self::Ours)
    }
}

impl super::super::Session {
    /// Ends the IDLE towards the origin only.
    pub(super) fn leave_idle(&mut self) {
        let Idle::Listening(tag) = &self.idle else { return };
        let tag = tag.clone();
        self.flights.disown_idle(&tag);
        self.flights.disown_idle_again();
        self.send(Bytes::from_static(b"DONE\r\n"));
        self.synthetic.line = Line::Leaving;
        self.synthetic.left = self.mono();
    }

    /// Back into IDLE, unless there is something to do before long.
    pub(super) fn return_to_idle(&mut self) {
        let Some(now) = self.mono() else { return };
        if self.synthetic.line != Line::Left || !matches!(self.idle, Idle::Listening(_)) {
            return;
        }
        let synthetic = &mut self.synthetic;
        let long = synthetic.left.is_some_and(|left| now.saturating_duration_since(left) >= INTERRUPTED_MAX);
        let wait = synthetic.wait.max(synthetic.asleep);
        let soon = wait.is_none_or(|wait| wait.saturating_duration_since(now) <= WORTH_WAITING);
        if soon && !long && !synthetic.stopped {
            return;
        }
        if long {
            // For the news of which the origin may speak only now.
            synthetic.wait = synthetic.wait.max(Some(now + LISTENED_MIN));
        }
        synthetic.granted = None;
        synthetic.line = Line::Returning;
        self.release_ours();
        let tag = self.flights.own(Own::IdleAgain);
        self.send(format!("{tag} IDLE\r\n").into());
    }

    /// When the client's IDLE has been interrupted for too long.
    pub(super) fn idle_due(&self) -> Option<Instant> {
        let left = self.synthetic.left.filter(|_| self.synthetic.line == Line::Left)?;
        Some(left + INTERRUPTED_MAX)
    }

    /// A `+` of the origin. `false`: it is none of ours.
    pub(in crate::session) fn returned_to_idle(&mut self) -> bool {
        if self.synthetic.line != Line::Returning {
            return false;
        }
        self.synthetic.line = Line::Ours;
        if self.owes_done() {
            self.done_to_ours();
        }
        self.tell();
        true
    }

    /// The client, no longer listening, waits for the origin to be in IDLE, so that it can be ended.
    pub(in crate::session) fn owes_done(&self) -> bool {
        !matches!(self.idle, Idle::Listening(_))
            && matches!(self.synthetic.line, Line::Returning | Line::Ours)
    }

    /// The tag of the IDLE that the origin is in.
    pub(in crate::session) fn origins_idle(&self) -> Option<Bytes> {
        let Idle::Listening(tag) = &self.idle else { return None };
        match self.synthetic.line {
            Line::Theirs => Some(tag.clone()),
            Line::Ours => self.flights.idle_again().cloned(),
            Line::Leaving | Line::Left | Line::Returning => None,
        }
    }

    /// Whether it is on its way out of an IDLE, or back into one, for what was asked for nobody.
    pub(in crate::session) fn is_idle_interrupted(&self) -> bool {
        let own = self.flights.owns(|own| matches!(own, Own::IdleEnd | Own::IdleAgain));
        own && self.flights.len() == 1
    }

    /// The client ends its IDLE while the origin is not in it any more: that is settled here. `false`: it is in it.
    pub(in crate::session) fn ends_interrupted_idle(&mut self) -> bool {
        self.synthetic.granted = None;
        match self.synthetic.line {
            Line::Theirs => return false,
            Line::Leaving | Line::Left => self.synthetic.line = Line::Theirs,
            // DONE follows the origin's `+`.
            Line::Returning => {}
            Line::Ours => self.done_to_ours(),
        }
        true
    }

    fn done_to_ours(&mut self) {
        self.flights.disown_idle_again();
        self.send(Bytes::from_static(b"DONE\r\n"));
        self.synthetic.line = Line::Theirs;
    }

    /// What was left of an IDLE has its answer.
    pub(in crate::session) fn idle_is_left(&mut self) {
        if self.synthetic.line == Line::Leaving {
            self.synthetic.line = Line::Left;
        }
    }

    /// The origin ended an IDLE of ours by itself, or refused it: the client hears that as the answer to its own.
    pub(in crate::session) fn idle_again_ended(&mut self, line: &[u8]) {
        self.synthetic.line = Line::Theirs;
        let Idle::Listening(tag) = &self.idle else { return };
        let rest = line.iter().position(|o| *o == b' ').and_then(|at| line.get(at..)).unwrap_or_default();
        let line = Bytes::from([tag, rest].concat());
        self.idle = Idle::Off;
        self.client.set_raw_lines(false);
        if let Some(underway) = self.underway.iter_mut().find(|u| matches!(u.effect, Effect::Idle)) {
            underway.completion = Some(line);
        }
    }
}

/// Without news for so long nobody is left.
const INTERRUPTED_MAX: Duration = Duration::from_secs(10);
/// Then the origin is listened to for so long at least.
const LISTENED_MIN: Duration = Duration::from_secs(2);
/// A pause that is not worth going back for.
const WORTH_WAITING: Duration = Duration::from_secs(2);
