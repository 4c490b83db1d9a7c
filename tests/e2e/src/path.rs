//! What scenarios about the path stand on: nodes by the name of their place, plain ends, captures.

pub(crate) mod capture;
pub(crate) mod ends;
pub(crate) mod line;
pub(crate) mod nodes;

use std::time::{Duration, Instant};

use anyhow::bail;

/// Longer than anything here takes on a busy machine.
pub(crate) const STALL: Duration = Duration::from_secs(20);

/// Waits until it is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    while !so()? {
        if start.elapsed() > STALL {
            bail!("not within {STALL:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(start.elapsed())
}
