//! The machine's hardware watchdog (`/dev/watchdog`), which starts the machine anew when nobody feeds it: fed once a
//! second while the node is at work, so that one that neither works nor comes back does not leave an office without
//! acceleration, or a card's relay open, until somebody looks.

use discovery_linux::supervisor::Phase;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Watchdog {
    device: File,
    fed: Option<Instant>,
    failing: bool,
}

impl Watchdog {
    /// From now on it wants to be fed.
    pub(super) fn open(device: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().write(true).open(device)?;
        Ok(Self { device, fed: None, failing: false })
    }

    /// Feeds it when that is due and deserved. `missed`: whether a node that does not work is missed.
    pub(super) fn turn(&mut self, phase: Phase, missed: bool, now: Instant) {
        let due = self.fed.is_none_or(|fed| now.saturating_duration_since(fed) >= EVERY);
        if !due || !deserves(phase, missed) {
            return;
        }
        self.fed = Some(now);
        let fed = self.device.write_all(b".");
        if let Err(error) = &fed
            && !self.failing
        {
            tracing::error!(%error, "watchdog_device cannot be fed");
        }
        self.failing = fed.is_err();
    }

    /// An end in order: it stops, where the kernel allows that (the 'magic close').
    pub(super) fn end(mut self) {
        if let Err(error) = self.device.write_all(b"V") {
            tracing::error!(%error, "watchdog_device cannot be stopped: this machine may start anew");
        }
    }
}

/// A first start may take its time, as may one that the operator lets everything flow past; and a mistake in a configuration
/// is no reason to start a machine anew.
fn deserves(phase: Phase, missed: bool) -> bool {
    match phase {
        Phase::Working | Phase::Bypassed | Phase::Upgrading | Phase::Leaving => true,
        Phase::Starting => !missed,
        Phase::Hanging => false,
    }
}

const EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_once_a_second_by_a_node_at_work_and_stopped_at_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut watchdog = Watchdog::open(file.path()).unwrap();
        let start = Instant::now();
        for (millis, phase, missed, octets) in [
            (0, Phase::Starting, false, 1),
            (900, Phase::Working, true, 1),
            (1000, Phase::Working, true, 2),
            (2500, Phase::Hanging, true, 2),
            (9000, Phase::Starting, true, 2),
            (9900, Phase::Bypassed, true, 3),
            (11_000, Phase::Leaving, true, 4),
            (12_000, Phase::Upgrading, true, 5),
            // Started anew under `bypass on`.
            (13_000, Phase::Starting, false, 6),
        ] {
            watchdog.turn(phase, missed, start + Duration::from_millis(millis));
            let written = std::fs::read(file.path()).unwrap();
            assert_eq!(written.len(), octets, "at {millis}: {phase:?}");
        }
        watchdog.end();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"......V");
    }

    #[test]
    fn one_that_is_not_there_is_an_error_at_once() {
        assert!(Watchdog::open(Path::new("/nonexistent/watchdog")).is_err());
    }
}
