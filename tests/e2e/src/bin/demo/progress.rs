//! What the run is doing: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells a person how far the run is.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
}

impl Progress {
    /// A bar if somebody watches.
    pub(crate) fn new() -> Self {
        let watched = std::io::stderr().is_terminal();
        let bar = watched.then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg} {wide_bar} {pos}/{len}");
            let bar = ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, start: Instant::now() }
    }

    /// Begins a part of the run with so many steps.
    pub(crate) fn begin(&self, what: &str, steps: usize) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(u64::try_from(steps).unwrap_or(u64::MAX));
                bar.set_position(0);
                bar.set_message(what.to_owned());
            }
            None => eprintln!("{:>5} s  {what}", self.start.elapsed().as_secs()),
        }
    }

    /// One step is done.
    pub(crate) fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// A line that stays.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
