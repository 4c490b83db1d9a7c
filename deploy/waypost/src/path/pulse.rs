//! What the packet loop shows its supervisor, ten times a second: that it turns, and the runtime with it, which carries
//! what the loop takes. When either stands still there is silence, and new connections flow past.

use discovery_linux::{
    rules::Listen,
    supervisor::{Supervised, Watched},
};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pulse {
    started: Instant,
    /// When the runtime turned last, in milliseconds since.
    runtime: AtomicU64,
    /// None until the node is ready.
    supervised: OnceLock<Supervised>,
}

impl Pulse {
    /// Of the runtime in which it is called. It goes on as long as somebody has it.
    pub(super) fn start() -> Arc<Self> {
        let pulse = Arc::new(Self {
            started: Instant::now(),
            runtime: AtomicU64::new(0),
            supervised: OnceLock::new(),
        });
        let turning = Arc::downgrade(&pulse);
        tokio::spawn(async move {
            while let Some(pulse) = turning.upgrade() {
                pulse.runtime.store(millis(pulse.started.elapsed()), Ordering::Relaxed);
                drop(pulse);
                tokio::time::sleep(EVERY).await;
            }
        });
        pulse
    }

    /// From now on it is shown, and the rules may come.
    pub(super) fn show(&self, supervised: Supervised, listen: Listen) -> Watched {
        let watched = supervised.ready(listen);
        let _once = self.supervised.set(supervised);
        watched
    }

    /// The packet loop turns. Never waits.
    pub(super) fn beat(&self) {
        let Some(supervised) = self.supervised.get() else { return };
        let turned = Duration::from_millis(self.runtime.load(Ordering::Relaxed));
        if turns(turned, self.started.elapsed()) {
            // Whoever waits for wishes learns of the supervisor's end, and does what is to be done.
            let _watched = supervised.beat();
        }
    }
}

fn turns(turned: Duration, now: Duration) -> bool {
    now.saturating_sub(turned) < STILL_MAX
}

fn millis(since: Duration) -> u64 {
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

const EVERY: Duration = Duration::from_millis(100);
/// A busy machine makes a task wait; its supervisor waits half a second more.
const STILL_MAX: Duration = Duration::from_millis(700);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_stands_still_is_not_shown_as_turning() {
        for (turned, now, shown) in
            [(0, 0, true), (1000, 1699, true), (1000, 1700, false), (1000, 60_000, false), (1100, 1000, true)]
        {
            let (turned, now) = (Duration::from_millis(turned), Duration::from_millis(now));
            assert_eq!(turns(turned, now), shown, "{turned:?} {now:?}");
        }
    }
}
