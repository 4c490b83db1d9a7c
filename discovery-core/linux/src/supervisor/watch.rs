//! What a supervisor does, decided without doing it.
//!
//! ```text
//!            started          first beat                    exit
//!  Waiting ───────────> Starting ──────────> Working ───────────────┐
//!     ^                    │ silent too long    │ silent too long    │
//!     │                    └────> Ending <──────┘                    │
//!     └───────────── back-off ──────┴── exit ────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bounds of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// A worker that was at work is ended after this silence. Together with the next SYN of a client, which comes a
    /// second after the first, a hang costs a new connection little more than that second.
    pub silence_max: Duration,
    /// How long a worker may take until it is at work.
    pub start_max: Duration,
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
            silence_max: Duration::from_millis(750),
            start_max: Duration::from_secs(10),
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
    /// Remove everything: the watch is over.
    Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Starting { since: Instant },
    Working { since: Instant, beat: Instant },
    Ending,
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
            orders: VecDeque::new(),
        }
    }

    /// The worker shows that it works.
    pub fn handle_beat(&mut self, now: Instant) {
        match self.state {
            State::Starting { .. } => self.state = State::Working { since: now, beat: now },
            State::Working { since, .. } => self.state = State::Working { since, beat: now },
            // Written before it was ended.
            State::Ending | State::Waiting { .. } | State::Over => {}
        }
        self.set_rules();
    }

    /// The worker has ended, or could not be started.
    pub fn handle_exit(&mut self, now: Instant) {
        match self.state {
            State::Working { since, .. }
                if now.saturating_duration_since(since) >= self.settings.proven_after =>
            {
                self.pause = self.settings.pause_min;
            }
            State::Working { .. } | State::Starting { .. } | State::Ending => {}
            State::Waiting { .. } | State::Over => return,
        }
        if self.stopping {
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
            State::Starting { .. } => self.end(),
            State::Working { since, .. } => {
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

    /// The operator ends it all.
    pub fn handle_stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Over;
                self.set_rules();
                self.orders.push_back(Order::Finish);
            }
            State::Starting { .. } | State::Working { .. } => self.end(),
            State::Ending | State::Over => {}
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
            State::Waiting { until } => Some(until),
            State::Starting { since } => Some(since + self.settings.start_max),
            State::Working { beat, .. } => Some(beat + self.settings.silence_max),
            State::Ending | State::Over => None,
        }
    }

    /// Whether a worker is at work.
    #[must_use]
    pub fn is_working(&self) -> bool {
        matches!(self.state, State::Working { .. })
    }

    fn end(&mut self) {
        self.state = State::Ending;
        // First the end: with it the queue is bypassed, and that is what clients wait for.
        self.orders.push_back(Order::Kill);
        self.set_rules();
    }

    fn set_rules(&mut self) {
        let wanted = self.is_working() && !self.bypass;
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
            self.watch.handle_exit(self.now);
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
            assert_eq!(rig.wait(700), []);
            assert_eq!(rig.beat(), []);
        }
        assert_eq!(rig.exit(), [Order::RulesOut]);
        assert_eq!(rig.wait(49), []);
        assert_eq!(rig.wait(1), [Order::Start]);
        assert_eq!(rig.beat(), [Order::RulesIn]);
    }

    #[test]
    fn silence_ends_the_worker_before_the_rules_go() {
        let mut rig = Rig::working();
        assert_eq!(rig.wait(749), []);
        assert_eq!(rig.wait(1), [Order::Kill, Order::RulesOut]);
        assert_eq!(rig.beat(), [], "a beat from before does not revive it");
        assert_eq!(rig.wait(10_000), [], "and nothing happens until it has ended");
        assert_eq!(rig.exit(), []);
        assert_eq!(rig.wait(50), [Order::Start]);
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
    fn a_stop_removes_everything_once_the_worker_is_gone() {
        let mut rig = Rig::working();
        rig.watch.handle_stop();
        assert_eq!(rig.orders(), [Order::Kill, Order::RulesOut]);
        assert_eq!(rig.exit(), [Order::Finish]);
        assert_eq!(rig.wait(100_000), []);
        let mut idle = Rig::new();
        idle.watch.handle_stop();
        assert_eq!(idle.orders(), [Order::Finish]);
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
                Order::Finish => prop_assert!(false, "nobody stopped it"),
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn rules_stand_only_while_a_worker_works(
            script in proptest::collection::vec((0_u8..6, 0_u64..2000), 0..200)
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
                    _ => Vec::new(),
                };
                follow(&orders, &mut rules, &mut alive)?;
                prop_assert!(!rules || rig.watch.is_working());
            }
        }
    }
}
