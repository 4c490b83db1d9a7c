//! What the handlers count, for `/metrics` and `status`. Labels are closed sets of words; nothing here can name a user,
//! a mailbox or a message.

use imap_core::session::{Closing, Event, Outcome, Reason};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! words {
    ($(#[$doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$variant_doc])* $variant),+ }

        impl $kind {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in logs, metrics and `status`.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words! {
    /// How a session ended.
    Ended {
        /// In the ordinary way, by the client or the origin.
        Done = "done",
        /// No origin could be reached.
        NoOrigin = "no-origin",
        /// The server has as many sessions as it is allowed.
        Full = "full",
        /// The origin went away in the middle.
        OriginLost = "origin-lost",
        /// The client's octets cannot be framed.
        ClientGarbled = "client-garbled",
        /// The origin's octets cannot be framed.
        OriginGarbled = "origin-garbled",
        /// Octets waited behind STARTTLS.
        StartTlsSurplus = "starttls-surplus",
        /// The client's TLS handshake after STARTTLS failed.
        StartTlsFailed = "starttls-failed",
        /// A stored body was lost after its length had been announced.
        StoreLost = "store-lost",
        /// The client said nothing before logging in.
        IdleBeforeLogin = "idle-before-login",
        /// One side took nothing of what it was sent.
        Stuck = "stuck",
        /// The node shuts down.
        Drained = "drained",
        /// A bug of ours.
        Panicked = "panicked",
    }
}

impl From<Closing> for Ended {
    fn from(closing: Closing) -> Self {
        match closing {
            Closing::Done => Self::Done,
            Closing::OriginLost => Self::OriginLost,
            Closing::ClientGarbled => Self::ClientGarbled,
            Closing::OriginGarbled => Self::OriginGarbled,
            Closing::StartTlsSurplus => Self::StartTlsSurplus,
            Closing::StoreLost => Self::StoreLost,
        }
    }
}

/// Words of [`seams::origin::OpenError`], in the order of their counters.
pub const OPEN_ERRORS: &[&str] =
    &["unknown-server", "resolve", "refused", "timed-out", "network", "tls", "starttls", "greeting", "bye"];

/// Every outcome of a FETCH, in the order of their counters.
pub const OUTCOMES: &[Outcome] = &[
    Outcome::Store,
    Outcome::Mixed,
    Outcome::Origin(Reason::NotHeld),
    Outcome::Origin(Reason::OriginOnly),
    Outcome::Origin(Reason::NotProved),
    Outcome::Origin(Reason::CacheOff),
    Outcome::Origin(Reason::TooMany),
];

/// A counter that only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How much so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of the handlers since the start of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Clients taken on.
    pub sessions_opened: Counter,
    ended: [Counter; Ended::ALL.len()],
    open_failed: [Counter; OPEN_ERRORS.len()],
    fetches: [Counter; OUTCOMES.len()],
    fetched_messages: [Counter; OUTCOMES.len()],
    /// Parked connections that ended before anything was said on them, and were replaced.
    pub origins_replaced: Counter,
    /// Commands sent ahead of a client that it then asked.
    pub foreseen_told: Counter,
    /// Commands sent ahead of a client that it did not ask.
    pub foreseen_in_vain: Counter,
    /// Answers with all flags of a mailbox of which the origin said only the changes.
    pub flags_proved: Counter,
    /// Those that could not be put together, so that the origin was asked for all of it.
    pub flags_doubted: Counter,
    /// Logins that an origin accepted.
    pub logins_accepted: Counter,
    /// Logins that an origin refused.
    pub logins_refused: Counter,
    /// Octets of message data that came from the store.
    pub served_octets: Counter,
    /// Octets of message data that went into the store.
    pub filled_octets: Counter,
    /// Bodies given up because the store was slower than the wire.
    pub fills_abandoned: Counter,
    /// Batches of the store that failed outright.
    pub store_failures: Counter,
    /// FETCH responses that were forwarded without being understood.
    pub unread: Counter,
    /// Literals that an origin asked for although the client had not announced any.
    pub unexpected_continuations: Counter,
    /// Sessions whose origin speaks COMPRESS.
    pub compressed: Counter,
    /// Sessions that became a tunnel in which nothing is learned.
    pub tunnels: Counter,
    /// Sessions whose origin contradicted itself.
    pub desyncs: Counter,
    /// Octets read from clients.
    pub client_read_octets: Counter,
    /// Octets written to clients.
    pub client_written_octets: Counter,
    /// Octets read from origins.
    pub origin_read_octets: Counter,
    /// Octets written to origins.
    pub origin_written_octets: Counter,
}

impl Metrics {
    /// Sessions that ended so.
    #[must_use]
    pub fn ended(&self, how: Ended) -> u64 {
        self.ended.get(how as usize).map_or(0, Counter::get)
    }

    /// Sessions that ended, in whatever way.
    #[must_use]
    pub fn ended_total(&self) -> u64 {
        self.ended.iter().map(Counter::get).sum()
    }

    /// Failures to reach an origin, by [`OPEN_ERRORS`].
    pub fn open_failed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OPEN_ERRORS.iter().copied().zip(self.open_failed.iter().map(Counter::get))
    }

    /// FETCH commands and messages named in them, by [`OUTCOMES`].
    pub fn fetches(&self) -> impl Iterator<Item = (Outcome, u64, u64)> {
        let both = self.fetches.iter().zip(&self.fetched_messages);
        OUTCOMES
            .iter()
            .zip(both)
            .map(|(outcome, (commands, messages))| (*outcome, commands.get(), messages.get()))
    }

    pub(super) fn count_ended(&self, how: Ended) {
        if let Some(counter) = self.ended.get(how as usize) {
            counter.one();
        }
    }

    pub(super) fn count_open_failed(&self, word: &str) {
        let at = OPEN_ERRORS.iter().position(|known| *known == word);
        if let Some(counter) = at.and_then(|at| self.open_failed.get(at)) {
            counter.one();
        }
    }

    pub(super) fn count_event(&self, event: &Event) {
        match event {
            Event::LoggedIn(_) => self.logins_accepted.one(),
            Event::LoginRefused => self.logins_refused.one(),
            // The event before it has counted it.
            Event::LoginRefusedFor { .. } => {}
            Event::Fetched { outcome, messages, octets } => {
                let at = OUTCOMES.iter().position(|known| known == outcome).unwrap_or(OUTCOMES.len());
                if let (Some(commands), Some(named)) = (self.fetches.get(at), self.fetched_messages.get(at)) {
                    commands.one();
                    named.add(u64::from(*messages));
                }
                self.served_octets.add(*octets);
            }
            Event::Filled(octets) => self.filled_octets.add(*octets),
            Event::Foreseen { told, in_vain, .. } => {
                self.foreseen_told.add(u64::from(*told));
                self.foreseen_in_vain.add(u64::from(*in_vain));
            }
            Event::FlagsProved { .. } => self.flags_proved.one(),
            Event::FlagsDoubted(_) => self.flags_doubted.one(),
            Event::Unread => self.unread.one(),
            Event::UnexpectedContinuation => self.unexpected_continuations.one(),
            Event::Compressing => self.compressed.one(),
            Event::Tunnel(_) => self.tunnels.one(),
            Event::Desync(_) => self.desyncs.one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_counter() {
        let metrics = Metrics::default();
        for (n, outcome) in (0_u32..).zip(OUTCOMES) {
            metrics.count_event(&Event::Fetched { outcome: *outcome, messages: n, octets: 1 });
        }
        let counted: Vec<_> = metrics.fetches().collect();
        for (n, (outcome, commands, messages)) in counted.into_iter().enumerate() {
            assert_eq!((outcome, commands, messages), (OUTCOMES[n], 1, n as u64));
        }
        assert_eq!(metrics.served_octets.get(), OUTCOMES.len() as u64);
    }

    #[test]
    fn endings_are_counted_apart() {
        let metrics = Metrics::default();
        for how in Ended::ALL {
            metrics.count_ended(*how);
            assert_eq!(metrics.ended(*how), 1, "{}", how.word());
        }
        assert_eq!(metrics.ended_total(), Ended::ALL.len() as u64);
    }
}
