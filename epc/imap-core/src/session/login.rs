//! The login: which account it is, read from what passes, believed only when the origin says OK.

use crate::{
    command::{Command, Kind},
    sasl::{self, Identity},
};
use bytes::Bytes;
use zeroize::Zeroizing;

/// A login under way.
pub(super) struct Login {
    mechanism: Option<Bytes>,
    identity: Identity,
    step: usize,
    stage: Stage,
}

/// How far a login has come.
enum Stage {
    /// The origin has all that the client has said.
    Passing,
    /// The client's command, which waits for its first message.
    Held(Bytes),
    /// The client's first message, which waits for the origin's prompt.
    Owed(Bytes),
}

/// What goes to the origin when the client has answered our prompt.
pub(super) enum Said {
    /// Command and message in one line.
    Together(Bytes),
    /// The command; the message waits for the origin's own prompt.
    Apart(Bytes),
}

impl Login {
    /// `None` for a command that is no login.
    pub(super) fn of(command: &Command) -> Option<Self> {
        let kind = &command.kind;
        if let Kind::Login { user } = kind {
            let identity = Identity::Known(Zeroizing::new(user.to_vec()));
            return Some(Self { mechanism: None, identity, step: 0, stage: Stage::Passing });
        }
        if let Kind::Authenticate { mechanism, initial } = kind {
            let mut login = Self {
                mechanism: Some(Bytes::copy_from_slice(mechanism)),
                identity: Identity::NotYet,
                step: 0,
                stage: Stage::Passing,
            };
            if let Some(initial) = initial {
                login.message(initial);
            }
            return Some(login);
        }
        // One that could not be read: who it is stays unknown.
        let unread = matches!(&*command.verb, b"LOGIN" | b"AUTHENTICATE");
        let identity = Identity::Unknown;
        unread.then_some(Self { mechanism: None, identity, step: 0, stage: Stage::Passing })
    }

    /// The mechanism, if it begins with a message of the client's that no challenge precedes, is done with that one,
    /// and the client has not sent it with its command.
    pub(super) fn waits_for_first_message(&self) -> Option<&[u8]> {
        let mechanism = self.mechanism.as_deref()?;
        let single = [&b"PLAIN"[..], b"XOAUTH2", b"OAUTHBEARER"];
        let waits = self.step == 0 && single.iter().any(|name| mechanism.eq_ignore_ascii_case(name));
        waits.then_some(mechanism)
    }

    /// Keeps the command until its first message is there.
    pub(super) fn hold(&mut self, command: Bytes) {
        self.stage = Stage::Held(command);
    }

    /// The client's line for a command that was held. `None`: none was. A message is sent with its command where the
    /// origin `takes_both` and it is what it should be; anything else (`*`, nothing, no base64, too much) apart.
    pub(super) fn release(&mut self, line: &Bytes, takes_both: bool) -> Option<Said> {
        let Stage::Held(command) = &self.stage else { return None };
        let command = command.clone();
        let message = line.trim_ascii_end();
        self.message(message);
        if takes_both && message.len() <= INITIAL_OCTETS_MAX && self.identity().is_some() {
            self.stage = Stage::Passing;
            let parts = [command.trim_ascii_end(), b" ", message, b"\r\n"];
            // Room for all of it at once: a buffer that grew would leave an unwiped copy behind.
            let mut both = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
            parts.iter().for_each(|part| both.extend_from_slice(part));
            return Some(Said::Together(Bytes::from_owner(both)));
        }
        self.stage = Stage::Owed(line.clone());
        Some(Said::Apart(command))
    }

    /// Whether the client's first message waits for the origin's prompt.
    pub(super) fn owes(&self) -> bool {
        matches!(self.stage, Stage::Owed(_))
    }

    /// The client's first message, if it waits for the origin's prompt: once.
    pub(super) fn take_owed(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.stage, Stage::Passing) {
            Stage::Owed(line) => Some(line),
            stage @ (Stage::Passing | Stage::Held(_)) => {
                self.stage = stage;
                None
            }
        }
    }

    /// Whether the client answers continuation requests with raw lines.
    pub(super) fn is_dialogue(&self) -> bool {
        self.mechanism.is_some()
    }

    /// Whether the client has said all that it has to say, by a mechanism whose refusal asks for no answer.
    pub(super) fn is_complete(&self) -> bool {
        match &self.mechanism {
            None => matches!(self.identity, Identity::Known(_)),
            Some(mechanism) => {
                **mechanism == *b"PLAIN" && self.step == 1 && matches!(self.stage, Stage::Passing)
            }
        }
    }

    /// A line of the client in the dialogue, without its line end.
    pub(super) fn message(&mut self, base64: &[u8]) {
        let Some(mechanism) = &self.mechanism else { return };
        let said = sasl::identity(mechanism, base64, self.step);
        self.step += 1;
        self.identity = match (std::mem::replace(&mut self.identity, Identity::NotYet), said) {
            (Identity::NotYet, said) => said,
            (known, Identity::NotYet) => known,
            (Identity::Known(a), Identity::Known(b)) if a == b => Identity::Known(a),
            _ => Identity::Unknown,
        };
    }

    /// Whether what follows may be wrapped, so that nothing can be read any more.
    pub(super) fn may_wrap(&self) -> bool {
        self.mechanism.as_ref().is_some_and(|m| sasl::may_have_security_layer(m))
    }

    /// Whether the credential is a token, which expires.
    pub(super) fn is_token(&self) -> bool {
        self.mechanism.as_ref().is_some_and(|m| matches!(&**m, b"XOAUTH2" | b"OAUTHBEARER"))
    }

    /// Whose session it is, if that is certain.
    pub(super) fn identity(&self) -> Option<&[u8]> {
        match &self.identity {
            Identity::Known(name) => Some(name),
            Identity::NotYet | Identity::Unknown => None,
        }
    }
}

/// A message beyond this goes by itself: a server takes lines of 8,000 octets (RFC 2683 §3.2.1.5), but Dovecot's buffer
/// before a login is half of that.
const INITIAL_OCTETS_MAX: usize = 2 * 1024;
