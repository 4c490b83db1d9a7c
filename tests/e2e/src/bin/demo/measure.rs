//! Acts, timed and counted: seconds on the client's interface, round trips and octets at the emulator.

use std::time::Duration;

use lab::{Lab, WanHandle};

use crate::session::Reply;
use crate::stats;

/// One act in one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Act {
    /// First octet of its first command to last octet of its last tagged OK.
    pub(crate) seconds: f64,
    /// The same to the last octet of its last literal.
    pub(crate) literal_seconds: f64,
    /// Round trips over the WAN until then.
    pub(crate) round_trips: u64,
    /// Octets of IP over the WAN, with what follows within a round trip.
    pub(crate) wan_octets: u64,
}

/// An act, or the emulator was late and it must be done again.
pub(crate) enum Outcome {
    /// As it should be.
    Done(Act),
    /// The emulator delivered a packet later than [`LATE_MAX`]: the figure would be the machine's, not the path's.
    Late,
}

/// Beyond it an act is repeated.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(20);

/// Performs an act between two looks at the emulator.
pub(crate) fn act(
    lab: &Lab,
    rtt: Duration,
    perform: impl FnOnce() -> anyhow::Result<Vec<Reply>>,
) -> anyhow::Result<Outcome> {
    act_over(lab.wan()?, rtt, perform)
}

/// The same on a line that is named.
pub(crate) fn act_over(
    wan: &WanHandle,
    rtt: Duration,
    perform: impl FnOnce() -> anyhow::Result<Vec<Reply>>,
) -> anyhow::Result<Outcome> {
    wan.reset()?;
    let replies = perform()?;
    let waited = wan.read()?;
    // Acknowledgements, and whatever the act set off behind its OK.
    if waited.octets() > 0 {
        std::thread::sleep(rtt + Duration::from_millis(10));
    } else {
        std::thread::sleep(Duration::from_millis(5));
    }
    let all = wan.read()?;
    if all.late_max() > LATE_MAX {
        return Ok(Outcome::Late);
    }
    let (Some(first), Some(last)) = (replies.first(), replies.last()) else { return Ok(Outcome::Late) };
    let literal = replies.iter().rev().find_map(|reply| reply.literal).unwrap_or(last.end);
    Ok(Outcome::Done(Act {
        seconds: (last.end - first.start).as_secs_f64(),
        literal_seconds: (literal - first.start).as_secs_f64(),
        round_trips: waited.round_trips(),
        wan_octets: all.octets(),
    }))
}

/// The acts of one arm, in the order in which they were done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acts(pub(crate) Vec<Act>);

impl Acts {
    /// Seconds to the tagged OK.
    pub(crate) fn seconds(&self) -> Vec<f64> {
        self.0.iter().map(|act| act.seconds).collect()
    }

    /// Seconds to the last literal octet.
    pub(crate) fn literal_seconds(&self) -> Vec<f64> {
        self.0.iter().map(|act| act.literal_seconds).collect()
    }

    /// The median of the round trips.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
    pub(crate) fn round_trips(&self) -> f64 {
        stats::median(&self.0.iter().map(|act| act.round_trips as f64).collect::<Vec<_>>())
    }

    /// The most round trips of any act.
    pub(crate) fn round_trips_max(&self) -> u64 {
        self.0.iter().map(|act| act.round_trips).max().unwrap_or(0)
    }

    /// Octets over the WAN for one act, in the mean.
    pub(crate) fn wan_octets(&self) -> u64 {
        let count = u64::try_from(self.0.len()).unwrap_or(u64::MAX).max(1);
        self.0.iter().map(|act| act.wan_octets).sum::<u64>() / count
    }
}
