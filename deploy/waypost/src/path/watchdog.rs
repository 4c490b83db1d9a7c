//! A thread that does nothing but see whether the packet loop and the runtime still turn. A queue that nobody empties
//! holds every SYN that comes: when one of the two stands still, the rules that lead packets there go out, and come back
//! when both turn again. What is carried stays.

use super::switch::Switch;
use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How often each has turned.
#[derive(Debug, Default)]
pub(super) struct Beats {
    pub(super) packets: AtomicU64,
    pub(super) runtime: AtomicU64,
}

/// What the rules are to be, by what was seen.
#[derive(Debug)]
struct Pulse {
    seen: [(u64, Instant); 2],
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self { seen: [(0, now); 2] }
    }

    /// Whether something stands still now.
    fn is_still(&mut self, counts: [u64; 2], now: Instant) -> bool {
        let mut still = false;
        for ((count, since), seen) in self.seen.iter_mut().zip(counts) {
            if *count != seen {
                (*count, *since) = (seen, now);
            }
            still |= now.saturating_duration_since(*since) >= STILL_MAX;
        }
        still
    }
}

/// Watches as long as there is something to switch.
pub(super) fn start(beats: &Arc<Beats>, switch: &Arc<Switch>) -> std::io::Result<()> {
    let runtime = Arc::clone(beats);
    tokio::spawn(async move {
        loop {
            runtime.runtime.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(EVERY).await;
        }
    });
    let (watched, mended) = (Arc::downgrade(switch), Arc::downgrade(switch));
    let beats = Arc::clone(beats);
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || watch(&beats, &watched))?;
    thread::Builder::new().name("mender".to_owned()).spawn(move || mend(&mended)).map(drop)
}

fn watch(beats: &Beats, switch: &Weak<Switch>) {
    let mut pulse = Pulse::new(Instant::now());
    loop {
        thread::sleep(EVERY);
        let Some(switch) = switch.upgrade() else { return };
        let counts = [beats.packets.load(Ordering::Relaxed), beats.runtime.load(Ordering::Relaxed)];
        let still = pulse.is_still(counts, Instant::now());
        match switch.stands_still(still) {
            Ok(true) if still => {
                tracing::error!("the node stands still; new connections flow past it until it turns again");
            }
            Ok(true) => tracing::info!("the node turns; connections are taken"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, still, "the rules cannot be changed; tried again"),
        }
    }
}

/// Somebody may load rules of his own over ours.
fn mend(switch: &Weak<Switch>) {
    loop {
        thread::sleep(VERIFY_EVERY);
        let Some(switch) = switch.upgrade() else { return };
        match switch.mend() {
            Ok(0) => {}
            Ok(parts) => tracing::warn!(parts, "rules or settings had been changed by somebody; mended"),
            Err(error) => tracing::error!(%error, "the rules cannot be looked at"),
        }
    }
}

const VERIFY_EVERY: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(100);
/// A client repeats its SYN after a second; by then nothing may hold it.
const STILL_MAX: Duration = Duration::from_millis(750);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_of_the_two_standing_still_is_noticed_and_its_return_too() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let rows = [
            (100, [1, 1], false),
            (700, [2, 2], false),
            (1400, [2, 9], false),
            (1500, [2, 10], true),
            (1600, [2, 11], true),
            (1700, [3, 12], false),
            (2400, [4, 12], false),
            (2500, [5, 12], true),
        ];
        for (at, counts, still) in rows {
            assert_eq!(pulse.is_still(counts, start + Duration::from_millis(at)), still, "at {at}");
        }
    }
}
