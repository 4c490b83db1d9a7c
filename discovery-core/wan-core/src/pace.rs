//! How fast a connection for bulk may speak, so that its octets do not queue on the line before those that a person
//! waits for. Nothing but the delay is asked: `srtt - min_rtt` is the queue, and it is kept near a target by the
//! kernel's pacing (`SO_MAX_PACING_RATE`). The rate of the line need not be known, and is learnt.

use std::time::{Duration, Instant};

/// What the kernel knows of a connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The smoothed round trip.
    pub srtt: Duration,
    /// The shortest one seen.
    pub min_rtt: Duration,
    /// Octets per second that arrive at the other end.
    pub delivered: u64,
    /// The sender had less to send than the line takes: what is delivered says nothing about the line.
    pub app_limited: bool,
    /// Octets are on their way.
    pub busy: bool,
}

/// Keeps the queue of one connection short.
#[derive(Clone, Debug)]
pub struct Controller {
    target: Duration,
    /// The cap in octets per second; none before enough was seen.
    rate: Option<f64>,
    busy_since: Option<Instant>,
    cut_at: Option<Instant>,
    /// What the line delivered while the cap was about the line's own rate.
    learnt: Option<u64>,
}

impl Controller {
    /// For a queue of about `target`. What an earlier connection learnt of the line spares this one's first seconds from
    /// filling its queue.
    #[must_use]
    pub fn new(target: Duration, learnt: Option<u64>) -> Self {
        let rate = learnt.map(|rate| as_float(rate).max(RATE_MIN));
        Self { target: target.max(Duration::from_millis(1)), rate, busy_since: None, cut_at: None, learnt }
    }

    /// Takes a sample, about every [`SAMPLE_EACH`]; the cap to set from now on, in octets per second.
    pub fn handle_sample(&mut self, now: Instant, sample: &Sample) -> Option<u64> {
        if !sample.busy {
            self.busy_since = None;
            return self.rate();
        }
        let since = *self.busy_since.get_or_insert(now);
        let Some(rate) = self.rate else {
            if now.saturating_duration_since(since) >= START_AFTER && sample.delivered > 0 {
                self.rate = Some((as_float(sample.delivered) * START_SHARE).max(RATE_MIN));
            }
            return self.rate();
        };
        let queue = sample.srtt.saturating_sub(sample.min_rtt).saturating_sub(ack_wait(rate));
        let share = queue.as_secs_f64() / self.target.as_secs_f64();
        let factor = if share <= 1.0 {
            // A sender that does not use what it may learns nothing by being allowed more.
            if sample.app_limited { 1.0 } else { 1.0 + GROWTH * (1.0 - share) }
        } else if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < sample.srtt) {
            // The last cut has not been felt yet.
            1.0
        } else {
            self.cut_at = Some(now);
            if share > 2.0 { CUT_HARD } else { CUT }
        };
        self.rate = Some((rate * factor).clamp(RATE_MIN, RATE_MAX));
        if !queue.is_zero() && !sample.app_limited {
            self.learnt = Some(sample.delivered);
        }
        self.rate()
    }

    /// The cap in octets per second; none: as fast as it goes.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between RATE_MIN and RATE_MAX, which a u64 holds"
        )]
        self.rate.map(|rate| rate as u64)
    }

    /// What the line was seen to deliver, for status and for the next connection.
    #[must_use]
    pub fn learnt(&self) -> Option<u64> {
        self.learnt
    }
}

/// How long an acknowledgement waits at the other end for a second segment when they come at this rate: no queue of the
/// line's. Taken for one, it would hold a cap that is low at the lowest for good.
fn ack_wait(rate: f64) -> Duration {
    Duration::from_secs_f64(ACKED_TOGETHER / rate.max(RATE_MIN))
}

#[allow(clippy::cast_precision_loss, reason = "a rate, of which three digits matter")]
fn as_float(rate: u64) -> f64 {
    rate as f64
}

/// How often to sample.
pub const SAMPLE_EACH: Duration = Duration::from_millis(50);
/// The queue to keep where nobody waits.
pub const TARGET_BACKGROUND: Duration = Duration::from_millis(8);
/// The queue to keep where somebody waits for bulk.
pub const TARGET_BULK: Duration = Duration::from_millis(12);

/// Congestion control has found the line's rate by then.
const START_AFTER: Duration = Duration::from_millis(1200);
const START_SHARE: f64 = 0.9;
const GROWTH: f64 = 0.01;
const CUT: f64 = 0.95;
const CUT_HARD: f64 = 0.85;
/// Half a megabit: a link that is slower than that is not made better by pacing.
const RATE_MIN: f64 = 62_500.0;
/// Two full segments (RFC 9293 §3.8.6.3).
const ACKED_TOGETHER: f64 = 2.0 * 1460.0;
/// A terabit.
const RATE_MAX: f64 = 125e9;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "a model of a line in round figures")]
mod tests {
    use super::*;

    /// A line of one queue: what comes faster than it sends waits.
    struct Line {
        rate: f64,
        queue: f64,
        rtt: f64,
    }

    impl Line {
        fn sample(&mut self, cap: Option<u64>) -> Sample {
            let offered = cap.map_or(self.rate * 1.5, |cap| cap as f64);
            let step = SAMPLE_EACH.as_secs_f64();
            self.queue = (self.queue + (offered - self.rate) * step).clamp(0.0, 1e6);
            let delivered = if self.queue > 0.0 { self.rate } else { offered.min(self.rate) };
            Sample {
                srtt: Duration::from_secs_f64(self.rtt + self.queue / self.rate),
                min_rtt: Duration::from_secs_f64(self.rtt),
                delivered: delivered as u64,
                app_limited: false,
                busy: true,
            }
        }
    }

    /// Runs for `seconds` behind `settle`; the mean queue in milliseconds and the mean share of the line in use.
    fn run(
        controller: &mut Controller,
        line: &mut Line,
        at: &mut Instant,
        settle: f64,
        seconds: f64,
    ) -> (f64, f64) {
        let steps = |seconds: f64| (seconds / SAMPLE_EACH.as_secs_f64()) as usize;
        let (mut queue, mut used) = (0.0, 0.0);
        for step in 0..steps(settle + seconds) {
            *at += SAMPLE_EACH;
            let sample = line.sample(controller.rate());
            controller.handle_sample(*at, &sample);
            if step >= steps(settle) {
                queue += (sample.srtt - sample.min_rtt).as_secs_f64() * 1e3;
                used += sample.delivered as f64 / line.rate;
            }
        }
        (queue / steps(seconds) as f64, used / steps(seconds) as f64)
    }

    #[test]
    fn the_queue_stays_near_its_target_and_the_line_full_also_when_it_halves() {
        let mut controller = Controller::new(TARGET_BACKGROUND, None);
        let mut line = Line { rate: 12.5e6, queue: 0.0, rtt: 0.08 };
        let mut at = Instant::now_for_tests();
        let (queue, used) = run(&mut controller, &mut line, &mut at, 10.0, 20.0);
        assert!(queue < 16.0 && used > 0.9, "queue {queue} ms, {used} of the line");
        line.rate /= 2.0;
        let (queue, used) = run(&mut controller, &mut line, &mut at, 10.0, 20.0);
        assert!(queue < 16.0 && used > 0.9, "queue {queue} ms, {used} of the line");
        let learnt = controller.learnt().unwrap() as f64;
        assert!((learnt / line.rate - 1.0).abs() < 0.05, "learnt {learnt}");
    }

    #[test]
    fn what_was_learnt_holds_from_the_first_octet() {
        assert_eq!(Controller::new(TARGET_BULK, Some(1_000_000)).rate(), Some(1_000_000));
        assert_eq!(Controller::new(TARGET_BULK, Some(0)).rate(), Some(62_500));
        assert_eq!(Controller::new(TARGET_BULK, None).rate(), None);
    }

    #[test]
    fn rest_and_a_sender_with_little_to_say_change_nothing() {
        let mut controller = Controller::new(TARGET_BULK, Some(1_000_000));
        let at = Instant::now_for_tests();
        let idle = Sample {
            srtt: Duration::from_millis(80),
            min_rtt: Duration::from_millis(80),
            delivered: 5,
            app_limited: false,
            busy: false,
        };
        assert_eq!(controller.handle_sample(at, &idle), Some(1_000_000));
        let little = Sample { busy: true, app_limited: true, ..idle };
        assert_eq!(controller.handle_sample(at, &little), Some(1_000_000));
        assert_eq!(controller.learnt(), Some(1_000_000));
    }

    #[test]
    fn one_cut_a_round_trip() {
        let mut controller = Controller::new(TARGET_BULK, Some(1_000_000));
        let at = Instant::now_for_tests();
        let late = Sample {
            srtt: Duration::from_millis(180),
            min_rtt: Duration::from_millis(80),
            delivered: 900_000,
            app_limited: false,
            busy: true,
        };
        assert_eq!(controller.handle_sample(at, &late), Some(850_000));
        assert_eq!(controller.handle_sample(at + SAMPLE_EACH, &late), Some(850_000));
        assert_eq!(controller.handle_sample(at + SAMPLE_EACH * 4, &late), Some(722_500));
    }

    trait ForTests {
        #[allow(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
        fn now_for_tests() -> Instant {
            Instant::now()
        }
    }

    impl ForTests for Instant {}

    /// A line on which congestion control saw little at first, because packets were lost.
    #[test]
    fn a_cap_far_below_the_line_finds_its_way_up() {
        let (rtt, line) = (Duration::from_millis(80), 12.5e6);
        let mut controller = Controller::new(TARGET_BULK, Some(1));
        let mut now = Instant::now_for_tests();
        let mut seconds = 0.0;
        while controller.rate().unwrap() < (line / 2.0) as u64 {
            let cap = controller.rate().unwrap();
            // Nothing queues; each acknowledgement waits for the second segment.
            let srtt = rtt + Duration::from_secs_f64(1460.0 / cap as f64);
            let sample = Sample { srtt, min_rtt: rtt, delivered: cap, app_limited: false, busy: true };
            controller.handle_sample(now, &sample);
            now += SAMPLE_EACH;
            seconds += SAMPLE_EACH.as_secs_f64();
            assert!(seconds < 60.0, "after a minute it is at {cap} octets a second");
        }
    }
}
