//! What the node shows netd, ten times a second: that it runs, and the runtime with it, which carries what is taken. When
//! either stands still there is silence, and new connections flow past.

use crate::supervisor::rights;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// It beats as long as somebody has it.
#[derive(Debug)]
pub(super) struct Pulse {
    _turning: Arc<Turning>,
}

#[derive(Debug)]
struct Turning {
    started: Instant,
    /// When the runtime turned last, in milliseconds since.
    runtime: AtomicU64,
}

impl Pulse {
    /// Of the runtime in which it is called.
    pub(super) fn start(beat: impl Fn() + Send + 'static) -> io::Result<Self> {
        let turning = Arc::new(Turning { started: Instant::now(), runtime: AtomicU64::new(0) });
        let (runtime, beating) = (Arc::downgrade(&turning), Arc::downgrade(&turning));
        tokio::spawn(async move {
            while let Some(turning) = runtime.upgrade() {
                turning.runtime.store(millis(turning.started.elapsed()), Ordering::Relaxed);
                drop(turning);
                tokio::time::sleep(EVERY).await;
            }
        });
        // A thread that does nothing else gets a processor when it wants one, as the packet loop does.
        thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            rights::as_supervisor();
            while let Some(turning) = beating.upgrade() {
                let turned = Duration::from_millis(turning.runtime.load(Ordering::Relaxed));
                if turns(turned, turning.started.elapsed()) {
                    beat();
                }
                drop(turning);
                thread::sleep(EVERY);
            }
        })?;
        Ok(Self { _turning: turning })
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
