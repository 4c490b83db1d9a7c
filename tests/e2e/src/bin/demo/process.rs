//! What a process costs, from /proc.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

/// CPU seconds of a process so far, in user and kernel mode, all its threads, ended ones too. In steps of 10 ms.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    let behind = stat.rsplit_once(") ").context("no stat")?.1;
    let mut fields = behind.split(' ').skip(11).map(str::parse::<f64>);
    let (user, kernel) = (fields.next().context("no utime")??, fields.next().context("no stime")??);
    Ok((user + kernel) / TICKS)
}

/// Linux counts in USER_HZ to its users, which is 100 everywhere.
const TICKS: f64 = 100.0;

/// CPU seconds once the process rests: what it does behind its client's back is its work too.
pub(crate) fn rested_cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let start = Instant::now();
    let (mut last, mut since) = (cpu_seconds(pid)?, Instant::now());
    while since.elapsed() < Duration::from_millis(400) && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
        let now = cpu_seconds(pid)?;
        if now > last + 0.005 {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// The most memory that the process ever had resident, in octets.
pub(crate) fn peak_octets(pid: u32) -> anyhow::Result<u64> {
    Ok(Status::of(pid)?.figure("VmHWM:")? * 1_024)
}

/// What a process holds at a moment.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Holds {
    /// Memory that is resident, in octets.
    pub(crate) resident: u64,
    /// Of it what no file backs: heap and stacks.
    pub(crate) anonymous: u64,
    /// Threads.
    pub(crate) threads: u64,
}

impl Holds {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let status = Status::of(pid)?;
        Ok(Self {
            resident: status.figure("VmRSS:")? * 1_024,
            anonymous: status.figure("RssAnon:")? * 1_024,
            threads: status.figure("Threads:")?,
        })
    }
}

struct Status(String);

impl Status {
    fn of(pid: u32) -> anyhow::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/status")).map(Self).context("the process has ended")
    }

    fn figure(&self, name: &str) -> anyhow::Result<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in /proc"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_has_used_time_and_memory() {
        let pid = std::process::id();
        let before = cpu_seconds(pid).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(80) {}
        assert!(cpu_seconds(pid).unwrap() > before);
        assert!(peak_octets(pid).unwrap() > 1 << 20);
        let holds = Holds::of(pid).unwrap();
        assert!(holds.threads >= 1 && holds.anonymous <= holds.resident, "{holds:?}");
    }
}
