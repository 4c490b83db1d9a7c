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
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1_024)
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
    }
}
