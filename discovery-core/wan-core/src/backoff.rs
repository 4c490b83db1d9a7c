//! When to try again: twice as long each time, up to a cap, and never at the moment at which everybody else does.

use std::time::Duration;

/// The wait before attempt `failed + 1` when `failed` have failed in a row. `random` is any number; the wait lies
/// between half and all of the step.
#[must_use]
pub fn wait(failed: u32, random: u64) -> Duration {
    if failed == 0 {
        return Duration::ZERO;
    }
    let step = STEP_FIRST.saturating_mul(1 << (failed - 1).min(10)).min(STEP_MAX);
    let half = step / 2;
    let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(random % span)
}

/// A connection that breaks is most often back at once.
const STEP_FIRST: Duration = Duration::from_millis(100);
/// Long outages are common and end without notice; a try costs a SYN.
const STEP_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_try_is_at_once_and_the_cap_holds() {
        assert_eq!(wait(0, 7), Duration::ZERO);
        for failed in 1..200 {
            for random in [0, 1, 49_999, u64::MAX] {
                let wait = wait(failed, random);
                assert!(wait >= STEP_FIRST / 2 && wait <= STEP_MAX, "{failed} {random} {wait:?}");
            }
        }
        assert!(wait(1, u64::MAX) < Duration::from_millis(100) && wait(9, 0) >= STEP_MAX / 2);
    }
}
