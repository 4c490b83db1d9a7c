//! What a supervisor does, decided without doing it.
//!
//! ```text
//!            started          first beat       silence           steady beats
//!  Waiting ───────────> Starting ──────────> Working ─────> Still ───────────> Working
//!     ^                    │ too long           │ exit        │ silence goes on
//!     │                    └────────> Ending <──┼─────────────┘
//!     └───────────── back-off ──────────┴───────┘
//!
//!            upgrade               released
//!  Working ───────────> Releasing ───────────> Starting, and the old one goes on unwatched with what it carries
//! ```
//! The rules stand while it is `Working`, and nobody wants them out. Silence takes them out first and ends the worker only
//! when it goes on: a machine that is busy for a moment must not cost what is carried.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use discovery_core::mutants;

/// Bounds of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// After this silence of a worker that was at work the rules go out. With the time that takes it stays below a
    /// second: a client repeats its SYN after one, and by then nothing may hold it.
    pub silence_max: Duration,
    /// After this silence it is ended.
    pub end_after: Duration,
    /// A worker that was silent beats for so long before the rules come back.
    pub steady_after: Duration,
    /// How long a worker may take until it is at work. New connections flow meanwhile, and a large store takes a while.
    pub start_max: Duration,
    /// How long a worker may take to leave.
    pub leave_max: Duration,
    /// How long it may take until a successor can have its place: what has no successor must end before.
    pub release_max: Duration,
    /// The pause before the first new start.
    pub pause_min: Duration,
    /// The longest pause: it doubles with each start that did not work out.
    pub pause_max: Duration,
    /// A worker that worked for so long has worked out.
    pub proven_after: Duration,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            silence_max: Duration::from_millis(500),
            end_after: Duration::from_secs(3),
            steady_after: Duration::from_millis(500),
            start_max: Duration::from_secs(90),
            leave_max: Duration::from_secs(60),
            release_max: Duration::from_secs(90),
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(5),
            proven_after: Duration::from_secs(30),
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start a worker.
    Start,
    /// End the worker at once.
    Kill,
    /// Take new connections.
    RulesIn,
    /// Let new connections flow.
    RulesOut,
    /// Tell the worker that a successor is to start.
    HandOver,
    /// Tell the worker to leave.
    Leave,
    /// Tell it to leave at once.
    Hurry,
    /// Remove everything: the watch is over.
    Finish,
}

/// How it stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is no worker at work, or not yet.
    Starting,
    /// There is, and new connections are taken.
    Working,
    /// There is, and the operator lets new connections flow.
    Bypassed,
    /// There is one that stands still; new connections flow.
    Hanging,
    /// It makes room for a successor, or has and the successor starts.
    Upgrading,
    /// It ends, because it shall.
    Leaving,
}

impl Phase {
    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting-anew",
            Self::Working => "working",
            Self::Bypassed => "bypassed",
            Self::Hanging => "hanging",
            Self::Upgrading => "upgrading",
            Self::Leaving => "leaving",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Starting { since: Instant },
    Working { since: Instant, beat: Instant },
    Still { since: Instant, beat: Instant, steady: Option<Instant> },
    Ending,
    Releasing { until: Instant },
    Leaving { until: Instant },
    Over,
}

/// The watch over one worker and its successors.
#[derive(Clone, Debug)]
pub struct Watch {
    settings: WatchSettings,
    state: State,
    pause: Duration,
    rules: bool,
    bypass: bool,
    stopping: bool,
    /// Whether the next worker takes the place of one that goes on: its start is no restart.
    succeeding: bool,
    orders: VecDeque<Order>,
}

impl Watch {
    /// A watch that begins with a start.
    #[must_use]
    pub fn new(settings: WatchSettings, now: Instant) -> Self {
        Self {
            settings,
            state: State::Waiting { until: now },
            pause: settings.pause_min,
            rules: false,
            bypass: false,
            stopping: false,
            succeeding: false,
            orders: VecDeque::new(),
        }
    }

    /// The worker shows that it works.
    pub fn handle_beat(&mut self, now: Instant) {
        let settings = self.settings;
        self.state = match self.state {
            State::Starting { .. } => State::Working { since: now, beat: now },
            State::Working { since, .. } => State::Working { since, beat: now },
            State::Still { since, beat, steady } => {
                let gap = now.saturating_duration_since(beat) >= settings.silence_max;
                let steady = steady.filter(|_| !gap).unwrap_or(now);
                let long = now.saturating_duration_since(steady) >= settings.steady_after;
                if long || mutants::on("watch-unsteady-trusted") {
                    State::Working { since, beat: now }
                } else {
                    State::Still { since, beat: now, steady: Some(steady) }
                }
            }
            // Written before it was ended, or while it leaves.
            other @ (State::Ending
            | State::Waiting { .. }
            | State::Releasing { .. }
            | State::Leaving { .. }
            | State::Over) => other,
        };
        self.succeeding &= !self.is_working();
        self.set_rules();
    }

    /// The supervisor itself stood still until now: what it did not hear says nothing.
    pub fn handle_slept(&mut self, now: Instant) {
        if mutants::on("watch-slept-accuses") {
            return;
        }
        match &mut self.state {
            State::Working { beat, .. } | State::Still { beat, .. } => *beat = now,
            State::Waiting { .. }
            | State::Starting { .. }
            | State::Ending
            | State::Releasing { .. }
            | State::Leaving { .. }
            | State::Over => {}
        }
    }

    /// A successor is to take the worker's place, while it goes on with what it carries. `false` when there is none at work.
    pub fn handle_upgrade(&mut self, now: Instant) -> bool {
        let State::Working { .. } = self.state else { return false };
        self.state = State::Releasing { until: now + self.settings.release_max };
        self.set_rules();
        self.orders.push_back(Order::HandOver);
        true
    }

    /// The worker has made room, and is watched no more. `false` when nobody had asked for that.
    pub fn handle_released(&mut self, now: Instant) -> bool {
        let State::Releasing { .. } = self.state else { return false };
        self.state = State::Waiting { until: now };
        self.pause = self.settings.pause_min;
        self.succeeding = !mutants::on("watch-successor-is-restart");
        true
    }

    /// The worker has ended, or could not be started. `again`: another one may do better.
    pub fn handle_exit(&mut self, now: Instant, again: bool) {
        match self.state {
            State::Working { since, .. } | State::Still { since, .. }
                if now.saturating_duration_since(since) >= self.settings.proven_after =>
            {
                self.pause = self.settings.pause_min;
            }
            State::Working { .. }
            | State::Still { .. }
            | State::Starting { .. }
            | State::Ending
            | State::Releasing { .. }
            | State::Leaving { .. } => {}
            State::Waiting { .. } | State::Over => return,
        }
        self.succeeding = false;
        if self.stopping || !again {
            self.state = State::Over;
            self.set_rules();
            self.orders.push_back(Order::Finish);
            return;
        }
        self.state = State::Waiting { until: now + self.pause };
        self.pause = (self.pause * 2).min(self.settings.pause_max);
        self.set_rules();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Starting { since: now };
                self.orders.push_back(Order::Start);
            }
            State::Working { since, beat } => {
                self.state = State::Still { since, beat, steady: None };
                self.set_rules();
            }
            State::Starting { .. } | State::Releasing { .. } | State::Leaving { .. } => self.end(),
            State::Still { since, .. } => {
                if now.saturating_duration_since(since) >= self.settings.proven_after {
                    self.pause = self.settings.pause_min;
                }
                self.end();
            }
            State::Ending | State::Over => {}
        }
    }

    /// The operator lets everything flow, or no longer.
    pub fn handle_bypass(&mut self, on: bool) {
        self.bypass = on;
        self.set_rules();
    }

    /// The operator ends it all; a second time, without waiting for what is carried.
    pub fn handle_stop(&mut self, now: Instant) {
        let again = std::mem::replace(&mut self.stopping, true);
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Over;
                self.set_rules();
                self.orders.push_back(Order::Finish);
            }
            // It carries nothing yet, and one that hangs hears nothing.
            State::Starting { .. } | State::Still { .. } => self.end(),
            State::Working { .. } | State::Releasing { .. } => {
                self.state = State::Leaving { until: now + self.settings.leave_max };
                self.set_rules();
                self.orders.push_back(Order::Leave);
            }
            State::Leaving { .. } if again => self.orders.push_back(Order::Hurry),
            State::Leaving { .. } | State::Ending | State::Over => {}
        }
    }

    /// The next thing to do.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// When to call [`Watch::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } | State::Releasing { until } | State::Leaving { until } => Some(until),
            State::Starting { since } => Some(since + self.settings.start_max),
            State::Working { beat, .. } => Some(beat + self.settings.silence_max),
            State::Still { beat, .. } => Some(beat + self.settings.end_after),
            State::Ending | State::Over => None,
        }
    }

    /// Whether a worker is at work.
    #[must_use]
    pub fn is_working(&self) -> bool {
        matches!(self.state, State::Working { .. })
    }

    /// Whether a worker has made room and no successor has worked, or ended, yet.
    #[must_use]
    pub fn is_succeeding(&self) -> bool {
        self.succeeding
    }

    /// Whether the operator lets new connections flow.
    #[must_use]
    pub fn is_bypassed(&self) -> bool {
        self.bypass
    }

    /// How it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Waiting { .. } | State::Starting { .. } if self.succeeding => Phase::Upgrading,
            State::Waiting { .. } | State::Starting { .. } | State::Ending => Phase::Starting,
            State::Working { .. } if self.bypass => Phase::Bypassed,
            State::Working { .. } => Phase::Working,
            State::Still { .. } => Phase::Hanging,
            State::Releasing { .. } => Phase::Upgrading,
            State::Leaving { .. } | State::Over => Phase::Leaving,
        }
    }

    fn end(&mut self) {
        self.state = State::Ending;
        // With it the queue is bypassed, should the rules not go out.
        self.orders.push_back(Order::Kill);
        self.set_rules();
    }

    fn set_rules(&mut self) {
        let still = matches!(self.state, State::Still { .. }) && mutants::on("watch-silence-unseen");
        let wanted = (self.is_working() || still) && !self.bypass;
        if wanted != self.rules {
            self.rules = wanted;
            self.orders.push_back(if wanted { Order::RulesIn } else { Order::RulesOut });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Rig {
        watch: Watch,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let now = Instant::now();
            Self { watch: Watch::new(WatchSettings::default(), now), now }
        }

        fn orders(&mut self) -> Vec<Order> {
            std::iter::from_fn(|| self.watch.poll_order()).collect()
        }

        /// Time passes, with every timer at its time.
        fn wait(&mut self, millis: u64) -> Vec<Order> {
            let until = self.now + Duration::from_millis(millis);
            while let Some(at) = self.watch.poll_timeout().filter(|at| *at <= until) {
                self.now = self.now.max(at);
                self.watch.handle_timeout(self.now);
            }
            self.now = until;
            self.orders()
        }

        fn beat(&mut self) -> Vec<Order> {
            self.watch.handle_beat(self.now);
            self.orders()
        }

        fn exit(&mut self) -> Vec<Order> {
            self.watch.handle_exit(self.now, true);
            self.orders()
        }

        fn working() -> Self {
            let mut rig = Self::new();
            assert_eq!(rig.wait(0), [Order::Start]);
            assert_eq!(rig.beat(), [Order::RulesIn]);
            rig
        }
    }

    #[test]
    fn rules_come_with_the_first_beat_and_go_with_the_worker() {
        let mut rig = Rig::working();
        for _ in 0..20 {
            assert_eq!(rig.wait(450), []);
            assert_eq!(rig.beat(), []);
        }
        assert_eq!(rig.exit(), [Order::RulesOut]);
        assert_eq!(rig.wait(49), []);
        assert_eq!(rig.wait(1), [Order::Start]);
        assert_eq!(rig.beat(), [Order::RulesIn]);
    }

    #[test]
    fn silence_takes_the_rules_out_and_ends_the_worker_only_when_it_goes_on() {
        let mut rig = Rig::working();
        assert_eq!(rig.wait(499), []);
        assert_eq!(rig.wait(1), [Order::RulesOut]);
        assert_eq!(rig.watch.phase(), Phase::Hanging);
        assert_eq!(rig.wait(2499), []);
        assert_eq!(rig.wait(1), [Order::Kill]);
        assert_eq!(rig.beat(), [], "a beat from before does not revive it");
        assert_eq!(rig.wait(10_000), [], "and nothing happens until it has ended");
        assert_eq!(rig.exit(), []);
        assert_eq!(rig.wait(50), [Order::Start]);
    }

    #[test]
    fn after_a_silence_the_rules_wait_for_steady_beats() {
        let mut rig = Rig::working();
        assert_eq!(rig.wait(2000), [Order::RulesOut]);
        assert_eq!(rig.beat(), []);
        // One that stumbles on is not let in.
        assert_eq!(rig.wait(600), []);
        assert_eq!(rig.beat(), []);
        for _ in 0..4 {
            assert_eq!(rig.wait(100), []);
            assert_eq!(rig.beat(), []);
        }
        assert_eq!(rig.wait(100), []);
        assert_eq!(rig.beat(), [Order::RulesIn]);
    }

    #[test]
    fn a_supervisor_that_slept_accuses_nobody() {
        let mut rig = Rig::working();
        rig.now += Duration::from_secs(60);
        rig.watch.handle_slept(rig.now);
        rig.watch.handle_timeout(rig.now);
        assert_eq!(rig.orders(), []);
        assert_eq!(rig.wait(500), [Order::RulesOut]);
    }

    #[test]
    fn a_worker_that_never_works_is_started_ever_more_rarely() {
        let mut rig = Rig::new();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let begun = rig.now;
            while rig.orders() != [Order::Start] {
                rig.now += Duration::from_millis(10);
                rig.watch.handle_timeout(rig.now);
            }
            pauses.push((rig.now - begun).as_millis());
            assert_eq!(rig.exit(), []);
        }
        assert_eq!(pauses, [10, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_worker_that_worked_for_long_is_started_soon() {
        let mut rig = Rig::working();
        for _ in 0..3 {
            rig.exit();
            rig.wait(1000);
            rig.beat();
        }
        for _ in 0..100 {
            rig.wait(500);
            rig.beat();
        }
        rig.exit();
        assert_eq!(rig.wait(50), [Order::Start]);
    }

    #[test]
    fn bypass_holds_across_workers() {
        let mut rig = Rig::working();
        rig.watch.handle_bypass(true);
        assert_eq!(rig.orders(), [Order::RulesOut]);
        assert_eq!(rig.exit(), []);
        assert_eq!(rig.wait(50), [Order::Start]);
        assert_eq!(rig.beat(), []);
        rig.watch.handle_bypass(false);
        assert_eq!(rig.orders(), [Order::RulesIn]);
    }

    #[test]
    fn a_stop_lets_the_worker_leave_and_then_removes_everything() {
        let mut rig = Rig::working();
        rig.watch.handle_stop(rig.now);
        assert_eq!(rig.orders(), [Order::RulesOut, Order::Leave]);
        assert_eq!(rig.wait(20_000), [], "it may be silent now");
        rig.watch.handle_stop(rig.now);
        assert_eq!(rig.orders(), [Order::Hurry]);
        assert_eq!(rig.exit(), [Order::Finish]);
        assert_eq!(rig.wait(100_000), []);
        let mut slow = Rig::working();
        slow.watch.handle_stop(slow.now);
        assert_eq!(slow.orders(), [Order::RulesOut, Order::Leave]);
        assert_eq!(slow.wait(59_999), []);
        assert_eq!(slow.wait(1), [Order::Kill]);
        assert_eq!(slow.exit(), [Order::Finish]);
        let mut idle = Rig::new();
        idle.watch.handle_stop(idle.now);
        assert_eq!(idle.orders(), [Order::Finish]);
    }

    #[test]
    fn one_that_hangs_or_starts_is_not_asked_to_leave() {
        let mut hangs = Rig::working();
        assert_eq!(hangs.wait(500), [Order::RulesOut]);
        hangs.watch.handle_stop(hangs.now);
        assert_eq!(hangs.orders(), [Order::Kill]);
        assert_eq!(hangs.exit(), [Order::Finish]);
        let mut starts = Rig::new();
        assert_eq!(starts.wait(0), [Order::Start]);
        starts.watch.handle_stop(starts.now);
        assert_eq!(starts.orders(), [Order::Kill]);
        assert_eq!(starts.exit(), [Order::Finish]);
    }

    #[test]
    fn an_upgrade_leads_past_it_until_the_successor_works() {
        let mut rig = Rig::working();
        assert!(rig.watch.handle_upgrade(rig.now));
        assert_eq!(rig.orders(), [Order::RulesOut, Order::HandOver]);
        assert_eq!((rig.watch.phase(), rig.beat()), (Phase::Upgrading, vec![]));
        assert_eq!(rig.wait(30_000), [], "sessions come to rest");
        assert!(rig.watch.handle_released(rig.now));
        assert_eq!(rig.watch.phase(), Phase::Upgrading);
        assert_eq!(rig.wait(0), [Order::Start]);
        assert_eq!(rig.wait(89_000), []);
        assert_eq!(rig.watch.phase(), Phase::Upgrading, "a healthy successor that takes its time");
        assert_eq!(rig.beat(), [Order::RulesIn]);
        assert!(!rig.watch.handle_released(rig.now), "twice");
        assert!(!rig.watch.is_succeeding());
        rig.exit();
        assert_eq!(rig.watch.phase(), Phase::Starting, "that is over");
        // One that does not make room is ended, one that dies meanwhile replaced.
        for dies in [false, true] {
            let mut rig = Rig::working();
            assert!(rig.watch.handle_upgrade(rig.now));
            assert_eq!(rig.orders(), [Order::RulesOut, Order::HandOver]);
            if !dies {
                assert_eq!(rig.wait(90_000), [Order::Kill]);
            }
            assert!(!rig.watch.is_succeeding(), "it made no room");
            assert_eq!(rig.exit(), []);
            assert_eq!(rig.wait(50), [Order::Start]);
        }
        // A successor that ends is started anew, as any other.
        let mut rig = Rig::working();
        assert!(rig.watch.handle_upgrade(rig.now));
        assert!(rig.watch.handle_released(rig.now));
        rig.wait(0);
        rig.exit();
        assert_eq!((rig.watch.phase(), rig.watch.is_succeeding()), (Phase::Starting, false));
        let mut starts = Rig::new();
        assert!(!starts.watch.handle_upgrade(starts.now));
    }

    #[test]
    fn what_no_start_can_mend_ends_it_all() {
        let mut rig = Rig::new();
        assert_eq!(rig.wait(0), [Order::Start]);
        rig.watch.handle_exit(rig.now, false);
        assert_eq!(rig.orders(), [Order::Finish]);
        let mut rig = Rig::working();
        rig.watch.handle_exit(rig.now, false);
        assert_eq!(rig.orders(), [Order::RulesOut, Order::Finish]);
        assert_eq!(rig.wait(100_000), []);
    }

    fn follow(orders: &[Order], rules: &mut bool, alive: &mut bool) -> Result<(), TestCaseError> {
        for order in orders {
            match order {
                Order::Start => {
                    prop_assert!(!*alive);
                    *alive = true;
                }
                Order::Kill => prop_assert!(*alive),
                Order::RulesIn => {
                    prop_assert!(!*rules);
                    *rules = true;
                }
                Order::RulesOut => {
                    prop_assert!(*rules);
                    *rules = false;
                }
                Order::HandOver => prop_assert!(*alive),
                Order::Leave | Order::Hurry | Order::Finish => {
                    prop_assert!(false, "nobody stopped it");
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn rules_stand_only_while_a_worker_works(
            script in proptest::collection::vec((0_u8..8, 0_u64..2000), 0..200)
        ) {
            let mut rig = Rig::new();
            let (mut rules, mut alive) = (false, false);
            for (what, millis) in script {
                let due = rig.wait(millis);
                follow(&due, &mut rules, &mut alive)?;
                let orders = match what {
                    0 | 1 if alive => rig.beat(),
                    2 if alive => {
                        alive = false;
                        rig.exit()
                    }
                    3 | 4 => {
                        rig.watch.handle_bypass(what == 3);
                        rig.orders()
                    }
                    5 => {
                        rig.watch.handle_upgrade(rig.now);
                        rig.orders()
                    }
                    6 => {
                        // It lives on, and is another's care.
                        alive &= !rig.watch.handle_released(rig.now);
                        rig.orders()
                    }
                    _ => Vec::new(),
                };
                follow(&orders, &mut rules, &mut alive)?;
                prop_assert!(!rules || rig.watch.is_working());
            }
        }
    }
}
