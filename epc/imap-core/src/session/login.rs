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
}

impl Login {
    /// `None` for a command that is no login.
    pub(super) fn of(command: &Command) -> Option<Self> {
        let kind = &command.kind;
        if let Kind::Login { user } = kind {
            let identity = Identity::Known(Zeroizing::new(user.to_vec()));
            return Some(Self { mechanism: None, identity, step: 0 });
        }
        if let Kind::Authenticate { mechanism, initial } = kind {
            let mut login = Self {
                mechanism: Some(Bytes::copy_from_slice(mechanism)),
                identity: Identity::NotYet,
                step: 0,
            };
            if let Some(initial) = initial {
                login.message(initial);
            }
            return Some(login);
        }
        // One that could not be read: who it is stays unknown.
        let unread = matches!(&*command.verb, b"LOGIN" | b"AUTHENTICATE");
        unread.then_some(Self { mechanism: None, identity: Identity::Unknown, step: 0 })
    }

    /// Whether the client answers continuation requests with raw lines.
    pub(super) fn is_dialogue(&self) -> bool {
        self.mechanism.is_some()
    }

    /// Whether the client has said all that it has to say, by a mechanism whose refusal asks for no answer.
    pub(super) fn is_complete(&self) -> bool {
        match &self.mechanism {
            None => matches!(self.identity, Identity::Known(_)),
            Some(mechanism) => **mechanism == *b"PLAIN" && self.step == 1,
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

    /// Whose session it is, if that is certain.
    pub(super) fn identity(&self) -> Option<&[u8]> {
        match &self.identity {
            Identity::Known(name) => Some(name),
            Identity::NotYet | Identity::Unknown => None,
        }
    }
}
