//! What a lab leaves in the system while it stands, and how it is taken away: by the lab itself, or by `lab gc`
//! when its process died first.
//!
//! `/run/waypost-lab/PREFIX` holds the owner's process id and start time. Everything else carries the prefix in its
//! name: namespaces `PREFIX-*`, `/etc/netns/PREFIX-*`, the directory `TMP/waypost-lab-PREFIX`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::net::ip;
use crate::sys;

/// A lab's claim on its prefix.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The prefix.
    pub prefix: String,
}

impl Owner {
    /// The claim of this prefix.
    #[must_use]
    pub fn of(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Whether the process that made the claim still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let Ok(claim) = fs::read_to_string(claim_file(&self.prefix)) else { return false };
        let Some((pid, start)) = claim.trim().split_once(' ') else { return false };
        pid.parse().ok().and_then(start_time).is_some_and(|now| now == start)
    }
}

/// All claims, of living and dead owners.
#[must_use]
pub fn owners() -> Vec<Owner> {
    let Ok(entries) = fs::read_dir(CLAIMS) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| check_prefix(name).ok()).map(|prefix| Owner { prefix }).collect()
}

/// Takes away every lab whose owner is dead; returns their prefixes.
#[must_use]
pub fn collect() -> Vec<String> {
    let dead: Vec<Owner> = owners().into_iter().filter(|owner| !owner.is_alive()).collect();
    for owner in &dead {
        remove(owner);
    }
    dead.into_iter().map(|owner| owner.prefix).collect()
}

/// Takes a lab away: processes, mounts, namespaces, names, files. Goes on past what is already gone.
pub fn remove(owner: &Owner) {
    let prefix = &owner.prefix;
    end_all_processes(prefix);
    let directory = directory(prefix);
    unmount_below(&directory);
    for name in namespaces(prefix) {
        drop(ip(&format!("netns del {name}")));
        drop(fs::remove_dir_all(etc_directory(&name)));
    }
    drop(fs::remove_dir_all(directory));
    drop(fs::remove_file(claim_file(prefix)));
}

/// Ends all processes in all namespaces of a lab.
pub(crate) fn end_all_processes(prefix: &str) {
    end_processes_in(&namespaces(prefix));
}

/// The namespaces that carry a prefix.
fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let start = format!("{prefix}-");
    names.filter(|name| name.starts_with(&start)).collect()
}

/// Ends all processes in one namespace.
pub(crate) fn end_processes(namespace: &str) {
    end_processes_in(&[namespace.to_owned()]);
}

/// The namespaces are ours alone, so what runs in them was started by us. Asks first, insists after a second.
fn end_processes_in(namespaces: &[String]) {
    let start = Instant::now();
    let mut signal = libc::SIGTERM;
    loop {
        let running: Vec<i32> = namespaces.iter().flat_map(|name| processes(name)).collect();
        if running.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return;
        }
        for pid in running {
            drop(sys::kill(pid, signal));
        }
        std::thread::sleep(Duration::from_millis(20));
        signal = if start.elapsed() > Duration::from_secs(1) { libc::SIGKILL } else { 0 };
    }
}

pub(crate) fn processes(namespace: &str) -> Vec<i32> {
    if !Path::new("/run/netns").join(namespace).exists() {
        return Vec::new();
    }
    let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() else {
        return Vec::new();
    };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let text = String::from_utf8_lossy(&output.stdout);
    let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    // A zombie stays listed until its parent reads its end.
    pids.filter(|pid| *pid != own && state(*pid).is_some_and(|state| state != 'Z')).collect()
}

fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| Path::new(at).starts_with(directory));
    for mountpoint in below.collect::<Vec<_>>().into_iter().rev() {
        drop(Command::new("umount").args(["-l", mountpoint]).output());
    }
}

/// Claims a prefix for this process and makes the lab's directory.
pub(crate) fn claim(prefix: &str) -> anyhow::Result<PathBuf> {
    let claim = claim_file(prefix);
    fs::create_dir_all(CLAIMS).with_context(|| format!("cannot make {CLAIMS}"))?;
    if claim.exists() {
        let owner = Owner::of(prefix);
        ensure!(!owner.is_alive(), "a lab with the prefix {prefix} stands already: choose another --prefix");
        remove(&owner);
    }
    let pid = std::process::id();
    let start = i32::try_from(pid).ok().and_then(start_time).context("cannot read the own start time")?;
    fs::write(&claim, format!("{pid} {start}\n"))?;
    let directory = directory(prefix);
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // Servers drop root and must still reach their files below.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&directory, open)?;
    Ok(directory)
}

/// A prefix that no lab has.
pub(crate) fn free_prefix() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut rng = crate::rng::Rng::new(u64::from(since.subsec_nanos()) ^ u64::from(std::process::id()) << 32);
    loop {
        let prefix = format!("wp{:04x}", rng.bits() & 0xffff);
        if !claim_file(&prefix).exists() {
            return prefix;
        }
    }
}

/// Prefixes end up in paths and in arguments of `ip`.
pub(crate) fn check_prefix(prefix: String) -> anyhow::Result<String> {
    let fits = (1..=12).contains(&prefix.len()) && prefix.bytes().all(|octet| octet.is_ascii_alphanumeric());
    ensure!(fits, "a lab's prefix has 1 to 12 letters and digits, as in wp1: {prefix:?} does not fit");
    Ok(prefix)
}

pub(crate) fn etc_directory(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

fn claim_file(prefix: &str) -> PathBuf {
    Path::new(CLAIMS).join(prefix)
}

fn directory(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(format!("waypost-lab-{prefix}"))
}

const CLAIMS: &str = "/run/waypost-lab";

/// The process's state letter (proc(5), stat).
fn state(pid: i32) -> Option<char> {
    stat_field(pid, 0)?.chars().next()
}

/// When a process started, in ticks since boot: a recycled id has another one.
fn start_time(pid: i32) -> Option<String> {
    stat_field(pid, 19)
}

/// A field of /proc/PID/stat, counted from behind the name, which may hold spaces and brackets.
fn stat_field(pid: i32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(number).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_cannot_name_another_place() {
        for bad in ["", "../etc", "a b", "wp-1", "thirteenchars"] {
            assert!(check_prefix(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(check_prefix("wp12ab".to_owned()).is_ok());
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some_and(|ticks| ticks.parse::<u64>().is_ok()));
        assert_eq!(start_time(own), start_time(own));
        assert!(state(own).is_some_and(|state| state != 'Z'));
    }
}
