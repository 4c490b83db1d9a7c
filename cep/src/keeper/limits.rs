//! How long a session may be kept, and why one ended.

use std::time::Duration;

/// Bounds of a kept session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// After the last login that the origin accepted, whatever happens.
    pub absolute: Duration,
    /// After the client left.
    pub idle: Duration,
    /// After a login by a token.
    pub token: Duration,
    /// Larger messages are left to their reader.
    pub size_max: u64,
    /// Bits a second of the line to the origin, about: what nobody waits for fills less than that.
    pub line_rate: u64,
    /// How long the origin may owe an answer.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            absolute: Duration::from_secs(24 * 3600),
            idle: Duration::from_secs(12 * 3600),
            token: Duration::from_secs(3600),
            size_max: 8 << 20,
            line_rate: 10_000_000,
            patience: Duration::from_secs(120),
        }
    }
}

/// Why a kept session ended. Closed: the log field, the metric label and what `sessions` prints are the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Its user logged in again.
    NewLogin,
    /// Another session of the same user was left later.
    Replaced,
    /// The time since its login or its leaving.
    Limit,
    /// Its token may have expired.
    Token,
    /// The origin said that the user has too many connections.
    Connections,
    /// The operator.
    Operator,
    /// Its user may have no more connections.
    Budget,
    /// The node ends.
    Drain,
    /// The server has as many as it may.
    Full,
    /// The origin said BYE or closed.
    OriginLost,
    /// The origin said what cannot be understood, or nothing for too long.
    OriginGarbled,
    /// The mailbox may no longer be opened.
    NoMailbox,
    /// An error of ours.
    Failed,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NewLogin,
        Self::Replaced,
        Self::Limit,
        Self::Token,
        Self::Connections,
        Self::Operator,
        Self::Budget,
        Self::Drain,
        Self::Full,
        Self::OriginLost,
        Self::OriginGarbled,
        Self::NoMailbox,
        Self::Failed,
    ];

    /// One word for logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NewLogin => "new-login",
            Self::Replaced => "replaced",
            Self::Limit => "limit",
            Self::Token => "token",
            Self::Connections => "connections",
            Self::Operator => "operator",
            Self::Budget => "budget",
            Self::Drain => "drain",
            Self::Full => "full",
            Self::OriginLost => "origin-lost",
            Self::OriginGarbled => "origin-garbled",
            Self::NoMailbox => "no-mailbox",
            Self::Failed => "failed",
        }
    }
}
