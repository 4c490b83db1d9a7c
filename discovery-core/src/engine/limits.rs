//! What keeps spoofed queries from making this node open connections to servers without end: places, in all and for
//! each client network. A claim gives its place back at once, an orphan only with time, so that a network whose
//! queries come true is never held up.

use crate::{lru::Lru, pmt::Prefix};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub(super) struct Places {
    networks: Lru<Prefix, Debt>,
    debt_max: u32,
    penance: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Debt {
    places: u32,
    /// Since when nothing was given back.
    since: Instant,
}

impl Places {
    pub(super) fn new(networks_max: usize, debt_max: u32, penance: Duration) -> Self {
        Self { networks: Lru::new(networks_max), debt_max, penance: penance.max(Duration::from_micros(1)) }
    }

    /// One more place for the network, if it has one left.
    pub(super) fn take(&mut self, now: Instant, network: Prefix) -> bool {
        let debt = match self.networks.touch(&network) {
            Some(debt) => debt,
            None => {
                self.networks.insert(network, Debt { places: 0, since: now });
                let Some(debt) = self.networks.touch(&network) else { return false };
                debt
            }
        };
        let back = now.saturating_duration_since(debt.since).as_micros() / self.penance.as_micros();
        if back > 0 {
            debt.places = debt.places.saturating_sub(u32::try_from(back).unwrap_or(u32::MAX));
            debt.since = now;
        }
        let free = debt.places < self.debt_max;
        if free {
            debt.places += 1;
        }
        free
    }

    /// The place was used as it should be.
    pub(super) fn give_back(&mut self, network: Prefix) {
        if let Some(debt) = self.networks.touch(&network) {
            debt.places = debt.places.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    #[test]
    fn orphans_pay_and_claims_do_not() {
        let network = Prefix::new([10, 1, 0, 0].into(), 24);
        let mut places = Places::new(4, 3, Duration::from_millis(100));
        let start = Instant::now();
        assert!((0..3).all(|_| places.take(start, network)));
        assert!(!places.take(start, network), "three orphans and no more");
        assert!(places.take(start, Prefix::new([10, 2, 0, 0].into(), 24)), "another network is not held up");
        places.give_back(network);
        assert!(places.take(start, network), "a claim gives its place back");
        let later = start + Duration::from_millis(210);
        assert!(places.take(later, network) && places.take(later, network) && !places.take(later, network));
    }
}
