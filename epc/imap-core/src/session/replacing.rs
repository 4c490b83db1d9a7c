//! An origin that ended before anything was asked of it. A connection that was made before its client came may have
//! been ended by the server in the meantime, with the news of it still on the wire. As long as nothing was sent on it,
//! another one is the same to everybody; afterwards never: what was sent may have been heard.

use super::{
    Phase,
    exchange::{Closing, Output},
    tee::Reading,
};
use crate::{
    framer::{Direction, Framer},
    mutants,
    response::{self, Response, Status},
};
use bytes::Bytes;
use discovery_core::now::Now;

/// Whether the origin's connection may be exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replacing {
    /// It may not.
    Never,
    /// As long as nothing was sent on it.
    Untouched,
    /// It is being exchanged.
    UnderWay,
}

impl super::Session {
    /// The origin's connection was made before the client came: if it ends before anything is sent on it, the session
    /// asks for another one ([`Output::ReplaceOrigin`]), once.
    pub fn origin_was_parked(&mut self) {
        self.replacing = Replacing::Untouched;
    }

    /// Whether nothing was sent on a connection that may be exchanged.
    #[must_use]
    pub fn is_origin_untouched(&self) -> bool {
        self.replacing == Replacing::Untouched
    }

    /// The greeting of the connection that [`Output::ReplaceOrigin`] asked for. The client has heard one already.
    pub fn handle_replacement(&mut self, now: Now, line: &Bytes) {
        self.now = Some(now);
        self.replacing = Replacing::Never;
        self.server = Framer::new(Direction::FromServer);
        self.bye_heard = false;
        self.forget_flight();
        self.forget_flight();
        match response::response(line) {
            Ok(Response::Status { status: Status::Ok, .. }) => {
                self.learn_capabilities(line);
                self.pump();
            }
            Ok(Response::Status { status: Status::Bye, .. }) => {
                self.say(line.clone());
                self.close(Closing::Done);
            }
            // PREAUTH: whose session that would be, nobody has said.
            _ => self.bye(Closing::OriginLost, "the connection to the mail server was lost"),
        }
    }

    /// Asks for another connection, where that is the same to everybody.
    pub(super) fn replace_origin(&mut self) -> bool {
        // A server may have had enough of commands behind a refused login, which the client never said.
        let untouched = self.replacing == Replacing::Untouched
            || self.was_refused() && self.underway.is_empty()
            || mutants::on("session-replaced-after-asking");
        let early = matches!(self.phase, Phase::NotAuthenticated) && matches!(self.reading, Reading::Nothing);
        if !untouched || !early || self.replacing == Replacing::UnderWay {
            return false;
        }
        self.replacing = Replacing::UnderWay;
        self.outputs.push_back(Output::ReplaceOrigin);
        true
    }

    pub(super) fn is_replacing(&self) -> bool {
        self.replacing == Replacing::UnderWay
    }
}
