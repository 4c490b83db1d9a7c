//! What the operator wants done with a connection: rules, the first that fits wins, and without one it passes.
//!
//! Rules are values here. The shell reads their text, numbers the interfaces and has libpcap compile the expressions.

mod bpf;
mod ports;
mod prefix;
mod rules;

pub use bpf::{BpfInsn, INSTRUCTIONS_MAX, Program, ProgramError};
pub use ports::{Ports, PortsError};
pub use prefix::{Prefix, PrefixError};
pub use rules::{Facts, Rule, RuleError, RuleSet, VlanId};

use crate::packet::Protocol;
use std::fmt;

/// What a rule says. The words of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Never touched.
    Pass,
    /// Through a peer when there is one, else untouched.
    Intercept,
    /// Terminated here; the server is reached with the client's own address, without a peer.
    InterceptSingle,
    /// Silently not forwarded.
    Drop,
    /// Refused: with a reset, or for UDP with 'port unreachable'.
    Deny,
    /// Through a peer or not at all: the first SYN does not leave before a peer is known.
    DropIfNoPeer,
}

/// What the rules said about one SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ruled {
    /// What to do.
    pub action: Action,
    /// The rule's place in the file, from 1; none when no rule matched (pass).
    pub rule: Option<u16>,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pass, Self::Intercept, Self::InterceptSingle, Self::Drop, Self::Deny, Self::DropIfNoPeer];

    /// The word of the configuration, which is also what a log and `explain` say.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Intercept => "intercept",
            Self::InterceptSingle => "intercept-single",
            Self::Drop => "drop",
            Self::Deny => "deny",
            Self::DropIfNoPeer => "drop-if-no-peer",
        }
    }

    /// The action of this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.word() == word)
    }

    /// What is left of it for a protocol: datagrams are never carried, so what would be intercepted passes, and what
    /// must not leave without a peer does not leave.
    #[must_use]
    pub const fn on(self, protocol: Protocol) -> Self {
        match (protocol, self) {
            (Protocol::Udp, Self::Intercept | Self::InterceptSingle) => Self::Pass,
            (Protocol::Udp, Self::DropIfNoPeer) => Self::Drop,
            (Protocol::Udp, Self::Pass | Self::Drop | Self::Deny) | (Protocol::Tcp, _) => self,
        }
    }
}

/// What a rule says about connections that stood before this node did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Existing {
    /// Never touched.
    #[default]
    Leave,
    /// Reset at both ends, so that the client connects anew.
    Reset,
    /// Terminated in their middle, unnoticed.
    Adopt,
}

impl Existing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Leave, Self::Reset, Self::Adopt];

    /// The word of the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Reset => "reset",
            Self::Adopt => "adopt",
        }
    }

    /// The one of this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|existing| existing.word() == word)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl fmt::Display for Ruled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "{} (rule {rule})", self.action),
            None => write!(f, "{} (no rule matches)", self.action),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for action in Action::ALL {
            assert_eq!(Action::from_word(action.word()), Some(action));
        }
        assert_eq!(Action::from_word("Pass"), None);
        let ruled = Ruled { action: Action::DropIfNoPeer, rule: Some(3) };
        assert_eq!(ruled.to_string(), "drop-if-no-peer (rule 3)");
        assert_eq!(Ruled { action: Action::Pass, rule: None }.to_string(), "pass (no rule matches)");
        assert_eq!(format!("{:>7}", Action::Deny), "   deny");
    }

    #[test]
    fn what_is_said_about_connections_from_before_is_the_deciding_rules() {
        for existing in Existing::ALL {
            assert_eq!(Existing::from_word(existing.word()), Some(existing));
        }
        let rules = RuleSet::new(vec![
            Rule::new(Action::Pass).server_ports(22),
            Rule::new(Action::Intercept).existing(Existing::Reset),
        ])
        .unwrap();
        let rows = [(Some(1), Existing::Leave), (Some(2), Existing::Reset), (Some(3), Existing::Leave)];
        for (rule, existing) in rows.into_iter().chain([(None, Existing::Leave), (Some(0), Existing::Leave)])
        {
            assert_eq!(rules.existing(Ruled { action: Action::Intercept, rule }), existing, "{rule:?}");
        }
    }

    #[test]
    fn datagrams_are_never_carried_and_never_leak() {
        let rows = [
            (Action::Pass, Action::Pass),
            (Action::Intercept, Action::Pass),
            (Action::InterceptSingle, Action::Pass),
            (Action::Drop, Action::Drop),
            (Action::Deny, Action::Deny),
            (Action::DropIfNoPeer, Action::Drop),
        ];
        for (action, udp) in rows {
            assert_eq!(action.on(Protocol::Udp), udp);
            assert_eq!(action.on(Protocol::Tcp), action);
        }
    }
}
