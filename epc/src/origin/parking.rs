//! How many connections to keep ready for a server, and for how long: one decision from what became of the earlier
//! ones. No socket and no clock in here; `parked` dials, watches and hands out.
//!
//! | what happened | what it means |
//! |---|---|
//! | a client was here | keep `max` ready until `idle` after the last one |
//! | a dial failed, or a connection ended before it was of any use | wait, longer each time, by chance a bit less or more |
//! | the server ended one at age `a` | re-dial before that age from now on |
//! | `Connection queue full` | half as many, for an hour: it was in the way of somebody |
//! | the greeting names Cyrus | none: at its limit of processes it greets nobody any more |

use std::time::{Duration, Instant};

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkTerms {
    /// Connections kept ready at most; 0: none.
    pub max: u8,
    /// For how long after the last client.
    pub idle: Duration,
    /// Also where the greeting names Cyrus.
    pub on_cyrus: bool,
}

impl ParkTerms {
    /// Nothing is kept ready.
    pub const OFF: Self = Self { max: 0, idle: Duration::ZERO, on_cyrus: false };
}

/// What became of a connection that was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A client has it.
    HandedOut,
    /// We ended it at the age that was set.
    Expired,
    /// The server ended it.
    Ended,
    /// The server ended it because it had too many.
    QueueFull,
    /// The server said something that nobody had asked for.
    Spoke,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Make one more.
    Dial,
    /// Nothing before this moment, unless something happens.
    Wait(Instant),
    /// Nothing until a client comes.
    Rest,
}

/// What is known of one server. A share of chance is a number below 256.
#[derive(Debug)]
pub(super) struct Lot {
    terms: ParkTerms,
    cyrus: bool,
    lifetime: Duration,
    active_until: Option<Instant>,
    fewer: Option<Fewer>,
    failures: u32,
    not_before: Option<Instant>,
    ready: u8,
}

/// Less than the operator allows.
#[derive(Clone, Copy, Debug)]
struct Fewer {
    max: u8,
    until: Instant,
}

impl Lot {
    pub(super) fn new(terms: ParkTerms) -> Self {
        Self {
            terms,
            cyrus: false,
            lifetime: LIFETIME_MAX,
            active_until: None,
            fewer: None,
            failures: 0,
            not_before: None,
            ready: 0,
        }
    }

    /// Keeps up to `max` from now on.
    pub(super) fn set_max(&mut self, max: u8) {
        self.terms.max = max;
    }

    /// A client was here.
    pub(super) fn handle_client(&mut self, now: Instant) {
        self.active_until = Some(now + self.terms.idle);
    }

    /// The server's greeting, on whatever connection.
    pub(super) fn handle_greeting(&mut self, line: &[u8]) {
        let cyrus = names_cyrus(line);
        if cyrus != self.cyrus {
            self.cyrus = cyrus;
            self.lifetime = self.lifetime_max();
        }
    }

    /// One more is ready. For how long it may stay.
    pub(super) fn handle_ready(&mut self, chance: u8) -> Duration {
        self.ready = self.ready.saturating_add(1);
        // Not all at the same moment.
        self.lifetime - self.lifetime / 5 * u32::from(chance) / 256
    }

    /// None could be made.
    pub(super) fn handle_failed(&mut self, now: Instant, chance: u8) {
        self.back_off(now, chance);
    }

    /// One is no longer ready, `age` after it was made.
    pub(super) fn handle_fate(&mut self, now: Instant, fate: Fate, age: Duration, chance: u8) {
        self.ready = self.ready.saturating_sub(1);
        match fate {
            Fate::HandedOut => self.failures = 0,
            Fate::Expired => {
                self.failures = 0;
                self.lifetime = (self.lifetime * 5 / 4).min(self.lifetime_max());
            }
            Fate::QueueFull => {
                let max = self.max(now) / 2;
                self.fewer = Some(Fewer { max, until: now + FEWER });
                self.back_off(now, chance);
            }
            Fate::Ended if age >= LIFETIME_MIN * 2 => self.lifetime = self.lifetime.min(age / 6 * 5),
            Fate::Ended | Fate::Spoke => self.back_off(now, chance),
        }
    }

    /// What to do.
    pub(super) fn next(&self, now: Instant) -> Next {
        let max = self.max(now);
        let Some(until) = self.active_until.filter(|until| *until > now && self.terms.max > 0) else {
            return Next::Rest;
        };
        if self.cyrus && !self.terms.on_cyrus {
            return Next::Rest;
        }
        match self.not_before.filter(|moment| *moment > now) {
            _ if self.ready >= max => {
                let more = self.fewer.map(|fewer| fewer.until).filter(|moment| *moment > now);
                Next::Wait(more.map_or(until, |moment| moment.min(until)))
            }
            Some(moment) => Next::Wait(moment.min(until)),
            None => Next::Dial,
        }
    }

    fn max(&self, now: Instant) -> u8 {
        let fewer = self.fewer.filter(|fewer| fewer.until > now).map(|fewer| fewer.max);
        fewer.unwrap_or(self.terms.max).min(self.terms.max)
    }

    fn lifetime_max(&self) -> Duration {
        if self.cyrus { LIFETIME_MAX_CYRUS } else { LIFETIME_MAX }
    }

    fn back_off(&mut self, now: Instant, chance: u8) {
        let pause = PAUSE_MIN * 2_u32.saturating_pow(self.failures.min(16));
        let pause = pause.min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        // From half of it to one and a half: a thousand nodes must not come back in the same second.
        self.not_before = Some(now + pause / 2 + pause * u32::from(chance) / 256);
    }
}

/// Whether a greeting is one of Cyrus.
#[must_use]
pub fn names_cyrus(greeting: &[u8]) -> bool {
    greeting.windows(CYRUS.len()).any(|word| word.eq_ignore_ascii_case(CYRUS))
}

const CYRUS: &[u8] = b"cyrus";
/// Dovecot ends a connection without a login 180 s after it began, whatever is said on it.
const LIFETIME_MAX: Duration = Duration::from_secs(150);
/// Cyrus, 32 minutes after the last word.
const LIFETIME_MAX_CYRUS: Duration = Duration::from_secs(20 * 60);
/// A server that ends them sooner cannot be parked at.
const LIFETIME_MIN: Duration = Duration::from_secs(10);
const FEWER: Duration = Duration::from_secs(3600);
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO: ParkTerms = ParkTerms { max: 2, idle: Duration::from_secs(600), on_cyrus: false };

    fn active(terms: ParkTerms, now: Instant) -> Lot {
        let mut lot = Lot::new(terms);
        lot.handle_client(now);
        lot
    }

    #[test]
    fn as_many_as_allowed_are_made_while_clients_come() {
        let now = Instant::now();
        assert_eq!(Lot::new(TWO).next(now), Next::Rest, "nobody was here");
        assert_eq!(active(ParkTerms::OFF, now).next(now), Next::Rest);
        let mut lot = active(TWO, now);
        for _ in 0..2 {
            assert_eq!(lot.next(now), Next::Dial);
            lot.handle_ready(0);
        }
        assert_eq!(lot.next(now), Next::Wait(now + TWO.idle));
        lot.handle_fate(now, Fate::HandedOut, Duration::from_secs(1), 0);
        assert_eq!(lot.next(now), Next::Dial);
        assert_eq!(lot.next(now + TWO.idle), Next::Rest, "the last client was too long ago");
        lot.set_max(0);
        assert_eq!(lot.next(now), Next::Rest);
    }

    #[test]
    fn cyrus_is_left_alone_unless_allowed() {
        let now = Instant::now();
        for (greeting, on_cyrus, next) in [
            (&b"* OK [CAPABILITY IMAP4rev1] sp Cyrus IMAP 3.6.1 server ready\r\n"[..], false, Next::Rest),
            (b"* OK sp CYRUS ready\r\n", false, Next::Rest),
            (b"* OK sp Cyrus IMAP ready\r\n", true, Next::Dial),
            (b"* OK [CAPABILITY IMAP4rev1] Dovecot ready.\r\n", false, Next::Dial),
        ] {
            let mut lot = active(ParkTerms { on_cyrus, ..TWO }, now);
            lot.handle_greeting(greeting);
            assert_eq!(lot.next(now), next, "{}", greeting.escape_ascii());
        }
        let mut lot = active(ParkTerms { on_cyrus: true, ..TWO }, now);
        lot.handle_greeting(b"* OK Cyrus\r\n");
        assert_eq!(lot.handle_ready(0), LIFETIME_MAX_CYRUS);
    }

    #[test]
    fn a_server_that_ends_them_sooner_is_dialled_sooner() {
        let now = Instant::now();
        let mut lot = active(TWO, now);
        assert_eq!(lot.handle_ready(0), Duration::from_secs(150));
        lot.handle_fate(now, Fate::Ended, Duration::from_secs(60), 0);
        assert_eq!(lot.handle_ready(0), Duration::from_secs(50));
        assert_eq!(lot.next(now), Next::Dial, "it was of use: no pause");
        lot.handle_fate(now, Fate::Expired, Duration::from_secs(50), 0);
        assert!(lot.handle_ready(0) > Duration::from_secs(50), "a restart of the server is not for ever");
        assert!(lot.handle_ready(255) < lot.handle_ready(0));
    }

    #[test]
    fn a_full_queue_halves_them_for_an_hour() {
        let now = Instant::now();
        let terms = ParkTerms { max: 4, idle: Duration::from_secs(7200), ..TWO };
        let mut lot = active(terms, now);
        for _ in 0..4 {
            lot.handle_ready(0);
        }
        lot.handle_fate(now, Fate::QueueFull, Duration::from_secs(1), 0);
        assert_eq!(lot.next(now), Next::Wait(now + FEWER), "three are more than two");
        lot.handle_fate(now, Fate::QueueFull, Duration::from_secs(1), 0);
        lot.handle_fate(now, Fate::QueueFull, Duration::from_secs(1), 0);
        lot.handle_fate(now, Fate::HandedOut, Duration::from_secs(1), 0);
        assert_eq!(lot.next(now + Duration::from_secs(3599)), Next::Wait(now + FEWER), "none is left");
        assert_eq!(lot.next(now + FEWER), Next::Dial);
    }

    #[test]
    fn failures_are_paced() {
        let now = Instant::now();
        let mut lot = active(TWO, now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            lot.handle_failed(now, 128);
            match lot.next(now) {
                Next::Wait(until) => pauses.push((until - now).as_secs()),
                next @ (Next::Dial | Next::Rest) => panic!("{next:?}"),
            }
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        lot.handle_ready(0);
        lot.handle_fate(now, Fate::HandedOut, Duration::from_secs(1), 0);
        lot.handle_failed(now, 128);
        assert_eq!(lot.next(now), Next::Wait(now + PAUSE_MIN), "what worked begins anew");
    }

    proptest! {
        #[test]
        fn never_more_than_allowed_and_never_dialled_in_a_pause(
            steps in proptest::collection::vec((0u8..7, any::<u8>(), 0u64..400), 1..200),
            max in 0u8..5,
        ) {
            let mut now = Instant::now();
            let mut lot = active(ParkTerms { max, ..TWO }, now);
            for (what, chance, seconds) in steps {
                now += Duration::from_secs(seconds);
                let age = Duration::from_secs(seconds);
                match what {
                    0 => lot.handle_client(now),
                    1 => lot.handle_failed(now, chance),
                    fate if lot.ready > 0 => {
                        let fates = [Fate::HandedOut, Fate::Expired, Fate::Ended, Fate::QueueFull, Fate::Spoke];
                        lot.handle_fate(now, fates[usize::from(fate - 2)], age, chance);
                    }
                    _ => {}
                }
                if lot.next(now) == Next::Dial {
                    let life = lot.handle_ready(chance);
                    prop_assert!(life >= LIFETIME_MIN && life <= LIFETIME_MAX);
                    prop_assert!(lot.not_before.is_none_or(|moment| moment <= now));
                }
                prop_assert!(lot.ready <= max);
            }
        }
    }
}
