//! How much mail may be on its way here that nobody waits for: about half of what the line holds. Then the queue before
//! the line stays empty, and a client's command behind it waits for nothing, while more than half of the line is used.

use std::time::Duration;

/// Of a line with so many bits a second, in octets.
pub(super) fn of(line_rate: u64, round_trip: Duration) -> u32 {
    let held = u128::from(line_rate / 8).saturating_mul(round_trip.as_micros()) / 1_000_000;
    u32::try_from(held / 2).unwrap_or(MAX).clamp(MIN, MAX)
}

/// A few segments: below that each round trip brings next to nothing.
const MIN: u32 = 16 * 1024;
/// Two thousand sessions with so much each are half a gigabyte of the kernel's memory.
const MAX: u32 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_the_line_holds() {
        for (line_rate, millis, octets) in [
            (10_000_000, 100, 62_500),
            (50_000_000, 40, 125_000),
            (2_000_000, 200, 25_000),
            (10_000_000, 1, MIN),
            (1_000_000_000, 200, MAX),
            (u64::MAX, u64::MAX, MAX),
            (0, 0, MIN),
        ] {
            assert_eq!(of(line_rate, Duration::from_millis(millis)), octets, "{line_rate} {millis}");
        }
    }
}
