//! A thread that does nothing but see whether the packet loop and the runtime still turn. A queue that nobody empties
//! holds every SYN that comes: when one of the two stands still, the rules that lead packets there go out, and come back
//! when both turn again. What is carried stays.

use super::lock;
use discovery_linux::rules::{Extent, Rules};
use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    standing: bool,
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self { seen: [(0, now); 2], standing: false }
    }

    /// Whether something stands still now; `Some` when that has changed.
    fn look(&mut self, counts: [u64; 2], now: Instant) -> Option<bool> {
        let mut still = false;
        for ((count, since), seen) in self.seen.iter_mut().zip(counts) {
            if *count != seen {
                (*count, *since) = (seen, now);
            }
            // One that comes to itself again must show it for a while.
            still |= now.saturating_duration_since(*since) >= STILL_MAX;
        }
        let changed = std::mem::replace(&mut self.standing, still) != still;
        changed.then_some(still)
    }
}

/// Watches until the rules are gone. Whoever switched interception off by hand keeps it off.
pub(super) fn start(
    beats: Arc<Beats>,
    rules: Weak<Mutex<Option<Rules>>>,
    bypassed: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let runtime = Arc::clone(&beats);
    tokio::spawn(async move {
        loop {
            runtime.runtime.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(EVERY).await;
        }
    });
    let watching = thread::Builder::new().name("watchdog".to_owned());
    let watch = move || {
        let mut pulse = Pulse::new(Instant::now());
        loop {
            thread::sleep(EVERY);
            let Some(rules) = rules.upgrade() else { return };
            let counts = [beats.packets.load(Ordering::Relaxed), beats.runtime.load(Ordering::Relaxed)];
            let Some(still) = pulse.look(counts, Instant::now()) else { continue };
            if bypassed.load(Ordering::Relaxed) {
                continue;
            }
            let extent = if still { Extent::Drain } else { Extent::Full };
            let set = lock(&rules).as_mut().map(|rules| rules.set(extent));
            match set {
                Some(Ok(())) if still => {
                    tracing::error!(
                        "the node stands still; new connections flow past it until it turns again"
                    );
                }
                Some(Ok(())) => tracing::warn!("the node turns again; connections are taken again"),
                Some(Err(error)) => tracing::error!(%error, still, "the watchdog cannot change the rules"),
                None => {}
            }
        }
    };
    watching.spawn(watch).map(drop)
}

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
        let rows: [(u64, [u64; 2], Option<bool>); 8] = [
            (100, [1, 1], None),
            (700, [2, 2], None),
            (1400, [2, 9], None),
            (1500, [2, 10], Some(true)),
            (1600, [2, 11], None),
            (1700, [3, 12], Some(false)),
            (2400, [4, 12], None),
            (2500, [5, 12], Some(true)),
        ];
        for (at, counts, change) in rows {
            assert_eq!(pulse.look(counts, start + Duration::from_millis(at)), change, "at {at}");
        }
    }
}
