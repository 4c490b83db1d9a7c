//! When to wait for more packets before taking them. Waking up costs more than a packet; but a lone SYN is never
//! delayed.

use std::time::Duration;

/// Decides after each batch whether to pause before the next.
#[derive(Clone, Copy, Debug)]
pub struct Coalesce {
    busy_at: usize,
    pause: Duration,
}

impl Coalesce {
    /// The pause behind a batch of `packets`, if any.
    #[must_use]
    pub fn after(&self, packets: usize) -> Option<Duration> {
        (packets >= self.busy_at && !self.pause.is_zero()).then_some(self.pause)
    }
}

impl Default for Coalesce {
    /// At 20,000 SYNs a second: 7.6 µs CPU each without a pause, 6.1 with one of 200 µs.
    fn default() -> Self {
        Self { busy_at: 3, pause: Duration::from_micros(200) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_packet_is_answered_at_once() {
        let coalesce = Coalesce::default();
        let waits = [0, 1, 2, 3, 64].map(|packets| coalesce.after(packets).is_some());
        assert_eq!(waits, [false, false, false, true, true]);
    }
}
