//! When background work may use the WAN: a token bucket for each server, and people in front.
//!
//! A slice goes only while no person's command to that server is under way, nor was a moment ago. On his session a
//! person therefore waits for one slice at most, the one that had gone before his command came; what all sessions
//! together may have sent at one moment is the burst, and the end of the slice that emptied it.

use crate::{budget::Budget, mutants};
use discovery_core::{
    id::{AccountKey, ServerId},
    now::Now,
    seam::gate::{BackgroundGate, Grant, Why},
    value::Class,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What the operator may turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateSettings {
    /// `false`: no background work at all.
    pub on: bool,
    /// Octets a second for each server; 0 is as good as off.
    pub rate: u64,
    /// Octets that may go at once after a pause.
    pub burst: u64,
    /// How long after a person's command nothing goes: programs send several in a row.
    pub linger: Duration,
    /// Octets for each server and day.
    pub server_day_octets_max: u64,
    /// Octets for each account and day.
    pub account_day_octets_max: u64,
}

impl Default for GateSettings {
    /// A quarter of 10 Mbit/s, 64 KiB at once, 150 ms after a command, 16 GiB a server, 512 MiB an account.
    fn default() -> Self {
        Self {
            on: true,
            rate: 312_500,
            burst: 64 << 10,
            linger: Duration::from_millis(150),
            server_day_octets_max: 16 << 30,
            account_day_octets_max: 512 << 20,
        }
    }
}

/// The gate of a node; shared by all its sessions.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: GateSettings,
    servers: BTreeMap<ServerId, Line>,
    server_day: Budget<ServerId>,
    account_day: Budget<AccountKey>,
}

/// What is known of the way to one server.
#[derive(Debug)]
struct Line {
    /// Commands of people under way.
    people: u32,
    /// Since when that number was last changed.
    changed: Instant,
    bucket: Bucket,
}

/// Tokens are octets. A slice larger than the burst leaves a debt.
#[derive(Debug)]
struct Bucket {
    tokens: i64,
    filled: Instant,
}

/// What bears on one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    class: Class,
    on: bool,
    /// Octets fit what is left of the day: of the server's, and of the account's.
    affordable: bool,
    /// A person's command is under way, or was until a moment ago: ask again after so long.
    people: Option<Duration>,
    /// The bucket is short: ask again after so long. `None`: enough in it.
    short: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Go,
    Wait(Duration),
    Never(Why),
}

/// The first row that fits wins.
fn decide(facts: Facts) -> Verdict {
    match facts {
        Facts { class: Class::Interactive | Class::Bulk, .. } => Verdict::Go,
        Facts { on: false, .. } => Verdict::Never(Why::Off),
        Facts { affordable: false, .. } => Verdict::Never(Why::Budget),
        Facts { people: Some(wait), .. } if !mutants::on("gate-people-ignored") => Verdict::Wait(wait),
        Facts { short: Some(wait), .. } => Verdict::Wait(wait),
        Facts { .. } => Verdict::Go,
    }
}

impl Gate {
    /// A gate with these settings.
    #[must_use]
    pub fn new(settings: GateSettings) -> Self {
        Self {
            state: Mutex::new(State {
                settings,
                servers: BTreeMap::new(),
                server_day: Budget::new(settings.server_day_octets_max),
                account_day: Budget::new(settings.account_day_octets_max),
            }),
        }
    }

    /// Turns background work on or off; slices that have gone are not called back.
    pub fn switch(&self, on: bool) {
        self.state().settings.on = on;
    }

    /// The gate as one account sees it: with the account's own budget too.
    #[must_use]
    pub fn of(self: &Arc<Self>, account: AccountKey) -> AccountGate {
        AccountGate { gate: Arc::clone(self), account }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ask(
        &mut self,
        class: Class,
        server: &ServerId,
        account: Option<&AccountKey>,
        octets: u32,
        now: Now,
    ) -> Grant {
        let settings = self.settings;
        let octets = u64::from(octets);
        let affordable = octets <= self.server_day.left(server, now.wall)
            && account.is_none_or(|account| octets <= self.account_day.left(account, now.wall));
        let line = line(&mut self.servers, server, settings.burst, now.mono);
        line.bucket.fill(settings.rate, settings.burst, now.mono);
        let facts = Facts {
            class,
            on: settings.on && settings.rate > 0,
            affordable,
            people: line.people_for(settings.linger, now.mono),
            short: line.bucket.short_for(octets, settings.rate, settings.burst),
        };
        match decide(facts) {
            Verdict::Wait(wait) => Grant::Wait(now.mono + wait),
            Verdict::Never(why) => Grant::Never(why),
            Verdict::Go if class != Class::Background => Grant::Go,
            Verdict::Go => {
                line.bucket.take(octets);
                self.server_day.spend(server, octets, now.wall);
                account.map(|account| self.account_day.spend(account, octets, now.wall));
                Grant::Go
            }
        }
    }
}

impl BackgroundGate for Gate {
    fn ask(&self, class: Class, server: &ServerId, octets: u32, now: Now) -> Grant {
        self.state().ask(class, server, None, octets, now)
    }

    fn foreground(&self, server: &ServerId, active: bool, now: Now) {
        let mut state = self.state();
        let burst = state.settings.burst;
        let line = line(&mut state.servers, server, burst, now.mono);
        line.people = if active { line.people.saturating_add(1) } else { line.people.saturating_sub(1) };
        line.changed = now.mono;
    }

    fn standstill(&self, server: &ServerId, now: Now) -> Option<Instant> {
        let state = self.state();
        let wait = state.servers.get(server)?.people_for(state.settings.linger, now.mono)?;
        Some(now.mono + wait)
    }
}

/// [`Gate::of`] one account.
#[derive(Clone, Debug)]
pub struct AccountGate {
    gate: Arc<Gate>,
    account: AccountKey,
}

impl BackgroundGate for AccountGate {
    fn ask(&self, class: Class, server: &ServerId, octets: u32, now: Now) -> Grant {
        self.gate.state().ask(class, server, Some(&self.account), octets, now)
    }

    fn foreground(&self, server: &ServerId, active: bool, now: Now) {
        self.gate.foreground(server, active, now);
    }

    fn standstill(&self, server: &ServerId, now: Now) -> Option<Instant> {
        self.gate.standstill(server, now)
    }
}

fn line<'a>(
    servers: &'a mut BTreeMap<ServerId, Line>,
    server: &ServerId,
    burst: u64,
    now: Instant,
) -> &'a mut Line {
    // As many as are configured.
    servers.entry(server.clone()).or_insert_with(|| Line {
        people: 0,
        changed: now.checked_sub(PEOPLE_MAX).unwrap_or(now),
        bucket: Bucket { tokens: i64::try_from(burst).unwrap_or(i64::MAX), filled: now },
    })
}

impl Line {
    /// How long people are in front yet, as far as is known.
    fn people_for(&self, linger: Duration, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.changed);
        if self.people > 0 && since < PEOPLE_MAX {
            return Some(linger.max(ASK_AGAIN_MIN));
        }
        linger.checked_sub(since).filter(|left| !left.is_zero())
    }
}

impl Bucket {
    fn fill(&mut self, rate: u64, burst: u64, now: Instant) {
        let (full, rate) = (i128::from(burst), i128::from(rate.max(1)));
        let nanos =
            i128::try_from(now.saturating_duration_since(self.filled).as_nanos()).unwrap_or(i128::MAX);
        let gained = nanos.saturating_mul(rate) / NANOS;
        let tokens = i128::from(self.tokens).saturating_add(gained).min(full);
        if tokens >= full {
            self.filled = now;
        } else {
            // Only the time that made whole octets has passed.
            let used = u64::try_from(gained.saturating_mul(NANOS) / rate).unwrap_or(u64::MAX);
            self.filled += Duration::from_nanos(used);
        }
        self.tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
    }

    /// How long until a slice may go; a large one needs a full bucket.
    fn short_for(&self, octets: u64, rate: u64, burst: u64) -> Option<Duration> {
        let needed = i64::try_from(octets.min(burst)).unwrap_or(i64::MAX);
        let missing =
            u64::try_from(needed.saturating_sub(self.tokens)).ok().filter(|missing| *missing > 0)?;
        let nanos = u128::from(missing) * 1_000_000_000 / u128::from(rate.max(1));
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(wait.clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX))
    }

    fn take(&mut self, octets: u64) {
        self.tokens = self.tokens.saturating_sub(i64::try_from(octets).unwrap_or(i64::MAX));
    }
}

const NANOS: i128 = 1_000_000_000;

/// Nobody asks more often than that.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(5);

/// Settings may change while somebody waits.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// A command whose end was never told must not stop background work for ever; the longest ordinary one is shorter.
const PEOPLE_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::{id::UserKey, now::UnixMillis};
    use proptest::prelude::*;

    fn server(n: u8) -> ServerId {
        ServerId::new(&format!("s{n}")).unwrap()
    }

    struct Clock(Instant);

    impl Clock {
        fn at(&self, millis: u64) -> Now {
            let wall = UnixMillis(i64::try_from(millis).unwrap());
            Now { mono: self.0 + Duration::from_millis(millis), wall }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn clock() -> Clock {
        Clock(Instant::now())
    }

    fn settings() -> GateSettings {
        GateSettings {
            on: true,
            rate: 1_000_000,
            burst: 50_000,
            linger: Duration::from_millis(100),
            server_day_octets_max: 1_000_000,
            account_day_octets_max: 200_000,
        }
    }

    #[test]
    fn every_row_of_the_decision() {
        let wait = Some(Duration::from_millis(7));
        let all = [Class::Interactive, Class::Bulk, Class::Background];
        for (classes, on, affordable, people, short, verdict) in [
            (&all[..2], false, false, wait, wait, Verdict::Go),
            (&all[2..], false, true, None, None, Verdict::Never(Why::Off)),
            (&all[2..], false, false, wait, wait, Verdict::Never(Why::Off)),
            (&all[2..], true, false, None, None, Verdict::Never(Why::Budget)),
            (&all[2..], true, true, wait, None, Verdict::Wait(Duration::from_millis(7))),
            (&all[2..], true, true, None, wait, Verdict::Wait(Duration::from_millis(7))),
            (&all[2..], true, true, None, None, Verdict::Go),
        ] {
            for &class in classes {
                let facts = Facts { class, on, affordable, people, short };
                assert_eq!(decide(facts), verdict, "{facts:?}");
            }
        }
    }

    #[test]
    fn the_bucket_keeps_the_rate_and_large_slices_leave_a_debt() {
        let (clock, gate) = (clock(), Gate::new(settings()));
        let ask = |octets, at| gate.ask(Class::Background, &server(1), octets, clock.at(at));
        assert_eq!(ask(80_000, 0), Grant::Go, "more than a burst, from a full bucket");
        assert_eq!(ask(1_000, 0), Grant::Wait(clock.at(31).mono));
        assert_eq!(ask(1_000, 31), Grant::Go);
        assert_eq!(gate.ask(Class::Background, &server(2), 50_000, clock.at(31)), Grant::Go, "a bucket each");
        let gone: u64 = (32..532).map(|at| u64::from(ask(10_000, at) == Grant::Go) * 10_000).sum();
        assert!((490_000..=510_000).contains(&gone), "{gone} octets in half a second at 1 MB/s");
    }

    #[test]
    fn many_sessions_at_one_moment_send_a_burst_together() {
        let (clock, gate) = (clock(), Gate::new(settings()));
        let ask = |_| gate.ask(Class::Background, &server(1), 32_768, clock.at(0));
        let gone = (0..100).filter(|nth| ask(*nth) == Grant::Go).count();
        assert_eq!(gone, 1, "a second one does not fit a burst of 50,000");
    }

    #[test]
    fn people_are_in_front_and_for_a_moment_after() {
        let (clock, gate) = (clock(), Gate::new(settings()));
        let ask = |at| gate.ask(Class::Background, &server(1), 10, clock.at(at));
        gate.foreground(&server(1), true, clock.at(0));
        gate.foreground(&server(1), true, clock.at(10));
        gate.foreground(&server(1), false, clock.at(20));
        assert!(matches!(ask(5_000), Grant::Wait(_)), "one is still under way");
        let stands = |nth, at| gate.standstill(&server(nth), clock.at(at)).is_some();
        assert!(stands(1, 5_000) && !stands(2, 5_000) && !stands(3, 5_000));
        assert_eq!(gate.ask(Class::Background, &server(2), 10, clock.at(5_000)), Grant::Go);
        assert_eq!(gate.ask(Class::Interactive, &server(1), 10, clock.at(5_000)), Grant::Go);
        gate.foreground(&server(1), false, clock.at(5_010));
        assert_eq!(ask(5_050), Grant::Wait(clock.at(5_110).mono));
        assert!(stands(1, 5_109) && !stands(1, 5_110));
        assert_eq!(ask(5_110), Grant::Go);
        gate.foreground(&server(1), false, clock.at(5_120));
        gate.foreground(&server(1), true, clock.at(5_130));
        assert!(matches!(ask(5_140), Grant::Wait(_)), "one end too many is not minus one");
        assert_eq!(ask(5_130 + 300_000), Grant::Go, "an end that was never told");
    }

    #[test]
    fn off_is_off_and_a_day_has_its_budget() {
        let (clock, gate) = (clock(), Arc::new(Gate::new(settings())));
        let account = AccountKey { server: server(1), user: UserKey { version: 1, hash: [1; 16] } };
        let mine = gate.of(account);
        gate.switch(false);
        assert_eq!(mine.ask(Class::Background, &server(1), 1, clock.at(0)), Grant::Never(Why::Off));
        gate.switch(true);
        for nth in 0..4 {
            assert_eq!(mine.ask(Class::Background, &server(1), 50_000, clock.at(nth * 100)), Grant::Go);
        }
        assert_eq!(mine.ask(Class::Background, &server(1), 1, clock.at(500)), Grant::Never(Why::Budget));
        assert_eq!(
            gate.ask(Class::Background, &server(1), 1, clock.at(500)),
            Grant::Go,
            "the server has more"
        );
        assert_eq!(mine.ask(Class::Background, &server(1), 1, clock.at(86_400_000)), Grant::Go);
    }

    proptest! {
        /// A link that sends one thing after another; background work asks before each slice. A person's command
        /// finds at most the slice on the link that had gone before.
        #[test]
        fn a_person_waits_for_one_slice_at_most(
            steps in proptest::collection::vec((0_u64..40, 0_u8..4, 1_u32..40_000), 1..300),
        ) {
            let (clock, gate) = (clock(), Gate::new(GateSettings { server_day_octets_max: u64::MAX, ..settings() }));
            let (mut at, mut people, mut slices_since) = (0, 0_u32, 0_u32);
            let mut link_free = 0;
            for (millis, what, octets) in steps {
                at += millis;
                match what {
                    0 => {
                        gate.foreground(&server(1), true, clock.at(at));
                        people += 1;
                        // One slice at most is on the link; the command is behind it.
                        prop_assert!(link_free <= at + u64::from(40_000_u32) / 1_000 + 1);
                    }
                    1 if people > 0 => {
                        gate.foreground(&server(1), false, clock.at(at));
                        people -= 1;
                    }
                    _ => {
                        if link_free > at {
                            continue;
                        }
                        let grant = gate.ask(Class::Background, &server(1), octets, clock.at(at));
                        if let Grant::Wait(until) = grant {
                            prop_assert!(until > clock.at(at).mono);
                        }
                        slices_since = if people > 0 { slices_since + u32::from(grant == Grant::Go) } else { 0 };
                        if grant == Grant::Go {
                            link_free = at + u64::from(octets) / 1_000 + 1;
                        }
                    }
                }
                prop_assert_eq!(slices_since, 0, "no new slice while a command is under way");
            }
        }
    }
}
