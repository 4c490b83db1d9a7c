//! A sample of the kills of `deploy/soak`.

use std::time::Duration;

use anyhow::ensure;

use crate::case::Case;
use crate::kills::{self, Campaign};

/// Both nodes are killed once and the packet loop hangs once among connections that begin. The bound is of a machine with
/// other work: two lost SYNs come again after three seconds.
pub(crate) fn sample(case: &Case) -> anyhow::Result<()> {
    let campaign = Campaign {
        bound: Duration::from_millis(3500),
        spread: Duration::from_millis(400),
        ..Campaign::whole(40, 0)
    };
    let seen = kills::run(&case.executable, case.prefix(), &campaign, |_| {})?;
    case.note("seen", seen.to_string());
    let broken = seen.broken(&campaign);
    ensure!(broken.is_empty(), "{}\n{seen}", broken.join("\n"));
    Ok(())
}

/// A connection at rest is one for the packet loop too, which once was woken by each that it had handed on.
pub(crate) fn rests(case: &Case) -> anyhow::Result<()> {
    let used = kills::rests(&case.executable, case.prefix())?;
    ensure!(used.len() == 2, "two nodes: {used:?}");
    for (thread, seconds) in &used {
        ensure!(*seconds < 0.6, "{thread} ran or wanted to for {seconds} s of a second of rest");
    }
    case.note("busiest-s-per-s", used.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max));
    Ok(())
}
