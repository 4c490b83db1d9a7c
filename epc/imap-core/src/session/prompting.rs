//! The prompt of a login, said here. A client that sends `AUTHENTICATE PLAIN` alone waits for `+`, which says nothing
//! that is not known before; where the origin takes the first message with the command (SASL-IR, RFC 4959), both then
//! go in one round trip. Whatever is not one plain message goes the long way, step by step: the origin's answer to it
//! is then the one that the client would hear without us.

use super::{
    Phase,
    login::{Login, Said},
    underway::{Effect, Underway},
};
use crate::{command::Command, mutants};
use bytes::Bytes;

impl super::Session {
    /// Whether the prompt of this login is known.
    pub(super) fn prompts(&self, login: &Login) -> bool {
        let Some(mechanism) = login.waits_for_first_message() else { return false };
        let offered = || {
            let name = String::from_utf8_lossy(mechanism).to_ascii_uppercase();
            self.capabilities.has(&format!("AUTH={name}"))
        };
        matches!(self.phase, Phase::NotAuthenticated) && self.capabilities.has("SASL-IR") && offered()
    }

    /// Says the prompt; the command stays here until the client has answered.
    pub(super) fn prompt(&mut self, command: &Command, octets: Bytes, mut login: Login) {
        login.hold(octets);
        let tag = Bytes::copy_from_slice(&command.tag);
        self.underway.push_back(Underway::new(tag, false, Effect::Login(login)));
        self.client.set_raw_lines(true);
        // RFC 9051 §6.2.2: a challenge of no octets.
        self.say(Bytes::from_static(b"+ \r\n"));
    }

    /// The client's answer to our prompt goes out, with its command. `false`: there was none.
    pub(super) fn answered_prompt(&mut self, line: &Bytes) -> bool {
        let takes_both = self.capabilities.has("SASL-IR");
        let held = self.underway.iter_mut().find_map(|u| {
            let Effect::Login(login) = &mut u.effect else { return None };
            login.release(line, takes_both).map(|said| (u.tag.clone(), said))
        });
        let Some((tag, said)) = held else { return false };
        self.flights.client(tag, false);
        match said {
            Said::Together(octets) => {
                self.send(octets);
                self.login_sent();
            }
            Said::Apart(command) => self.send(command),
        }
        true
    }

    /// The origin's own prompt, which the client has heard from us. `false`: it was none.
    pub(super) fn prompted_again(&mut self) -> bool {
        let owed = self
            .underway
            .iter_mut()
            .find_map(|u| if let Effect::Login(login) = &mut u.effect { login.take_owed() } else { None });
        let Some(line) = owed else { return false };
        if mutants::on("session-secret-sent-twice") {
            self.send(line.clone());
        }
        self.send(line);
        self.login_sent();
        true
    }

    /// Whether the client has answered a prompt that the origin has not yet said.
    pub(super) fn owes_answer(&self) -> bool {
        self.underway.iter().any(|u| matches!(&u.effect, Effect::Login(login) if login.owes()))
    }
}
