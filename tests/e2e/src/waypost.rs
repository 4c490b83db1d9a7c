//! The executable's process in a branch of the lab: its file, its start, its signals, its log, its memory.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::pki::Identity;
use lab::{Lab, Place, sys};

use crate::case::{Case, Watch};
use crate::pair::all_gone;

/// A configuration, as the README has it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Everything of the node's own stands below.
    pub(crate) directory: PathBuf,
    /// The store, if not below `directory`.
    pub(crate) store: PathBuf,
    /// Lines for `[store]`.
    pub(crate) store_lines: String,
    /// Whether the store is sealed. Without a key the executable warns.
    pub(crate) sealed: bool,
    /// The certificate towards clients.
    pub(crate) front: Front,
    /// The origins.
    pub(crate) servers: Vec<ServerSettings>,
    /// Who listens.
    pub(crate) listeners: Vec<ListenerSettings>,
    /// `[log] level`.
    pub(crate) level: &'static str,
}

/// What clients are shown.
#[derive(Debug, Clone)]
pub(crate) enum Front {
    /// The operator's own files.
    Operator(Identity),
    /// Minted by the CA in this directory.
    Minted(PathBuf),
}

#[derive(Debug, Clone)]
pub(crate) struct ServerSettings {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) tls: &'static str,
    pub(crate) ca: Option<PathBuf>,
    /// More lines.
    pub(crate) lines: String,
}

#[derive(Debug, Clone)]
pub(crate) struct ListenerSettings {
    pub(crate) address: SocketAddr,
    pub(crate) server: String,
    pub(crate) tls: &'static str,
    /// More lines.
    pub(crate) lines: String,
}

impl Settings {
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub(crate) const METRICS: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9143);

    fn toml(&self) -> String {
        let mut text = format!(
            "version = 1\n[node]\nid = \"branch-1\"\nsite = \"lisbon\"\nstate_dir = {:?}\n\
             [admin]\nsocket = {:?}\nlisten = \"{}\"\n[log]\nlevel = {:?}\nformat = \"json\"\n",
            self.directory,
            self.admin_socket(),
            SocketAddr::from(Self::METRICS),
            self.level
        );
        match &self.front {
            Front::Operator(identity) => {
                let _ = writeln!(
                    text,
                    "[tls]\nmint = false\ncert = {:?}\nkey = {:?}",
                    identity.certificate, identity.key
                );
            }
            Front::Minted(directory) => {
                let _ = writeln!(text, "[tls]\nca_dir = {directory:?}\nmint = true");
            }
        }
        let _ = writeln!(text, "[store]\npath = {:?}\n{}", self.store, self.store_lines);
        if self.sealed {
            let _ = writeln!(text, "seal_key_file = {:?}", self.seal_key());
        }
        for ServerSettings { name, port, tls, ca, lines } in &self.servers {
            let _ = writeln!(
                text,
                "[[server]]\nname = {name:?}\nhost = {name:?}\nport = {port}\ntls = {tls:?}\n{lines}"
            );
            if let Some(ca) = ca {
                let _ = writeln!(text, "ca = {ca:?}");
            }
        }
        for ListenerSettings { address, server, tls, lines } in &self.listeners {
            let _ = writeln!(
                text,
                "[[listener]]\naddress = \"{address}\"\nserver = {server:?}\ntls = {tls:?}\n{lines}"
            );
        }
        text
    }

    fn seal_key(&self) -> PathBuf {
        self.directory.join("seal.key")
    }

    /// Writes the file and what it names.
    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(&self.directory)?;
        let key = self.seal_key();
        if self.sealed && !key.exists() {
            let mut octets = [0; 32];
            fs::File::open("/dev/urandom")?.read_exact(&mut octets)?;
            fs::write(&key, octets)?;
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        }
        if let Front::Operator(identity) = &self.front {
            fs::set_permissions(&identity.key, fs::Permissions::from_mode(0o600))?;
        }
        let file = self.directory.join("waypost.toml");
        fs::write(&file, self.toml())?;
        Ok(file)
    }
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Waypost {
    child: Child,
    /// Its log.
    pub(crate) watch: Watch,
}

impl Waypost {
    /// Starts it in a place and waits until all listeners accept.
    pub(crate) fn start(case: &Case, lab: &Lab, place: Place, settings: &Settings) -> anyhow::Result<Self> {
        let mut waypost = Self::launch(case, lab, place, settings)?;
        for listener in &settings.listeners {
            let start = Instant::now();
            while lab.wait_for_port(place, listener.address, Duration::ZERO).is_err() {
                if let Some(status) = waypost.child.try_wait()? {
                    bail!("the executable ended at once ({status}):\n{}", waypost.watch.text());
                }
                if start.elapsed() > START_MAX {
                    bail!(
                        "{} does not accept after {START_MAX:?}:\n{}",
                        listener.address,
                        waypost.watch.text()
                    );
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(waypost)
    }

    /// Starts it and does not wait.
    pub(crate) fn launch(case: &Case, lab: &Lab, place: Place, settings: &Settings) -> anyhow::Result<Self> {
        let file = settings.write()?;
        let mut command = lab.command(place, &case.executable);
        command.arg("run").arg("-c").arg(file);
        Self::spawn(case, command)
    }

    /// Starts it as a command says.
    pub(crate) fn spawn(case: &Case, mut command: Command) -> anyhow::Result<Self> {
        let watch = case.watch();
        let log = fs::File::options().create(true).append(true).open(&watch.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The scenario's environment is none of its business.
        for name in ["STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "RUST_LOG"] {
            command.env_remove(name);
        }
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self { child, watch })
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    /// SIGHUP, SIGTERM and the like.
    pub(crate) fn signal(&self, signal: i32) -> anyhow::Result<()> {
        sys::kill(self.pid(), signal).context("cannot signal the executable")
    }

    /// Fails if it has ended.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the executable has ended ({status}):\n{}", tail(&self.watch.text())),
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > patience {
                bail!("the executable still runs after {patience:?}:\n{}", tail(&self.watch.text()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL for all of its processes, and waits until they are gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        // At once: neither has time to notice the other's end.
        let (netds, nodes) = (self.netds(), self.nodes());
        if !netds.is_empty() {
            self.signal(libc::SIGSTOP)?;
        }
        for netd in &netds {
            // It may be ending by itself. Its node ends with it.
            drop(sys::kill(*netd, libc::SIGKILL));
        }
        self.child.kill()?;
        self.child.wait()?;
        // Nobody here is its parent. Whoever starts the next one wants its queue.
        let all = netds.iter().chain(&nodes).filter_map(|pid| u32::try_from(*pid).ok());
        all_gone(&all.collect::<Vec<u32>>())
    }

    /// SIGKILL for this process alone: where it is a supervisor, its node learns of it.
    pub(crate) fn kill_supervisor(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The process of the node, where this one is its supervisor and it is there; the newest one.
    pub(crate) fn node(&self) -> Option<i32> {
        self.nodes().last().copied()
    }

    /// All of them: those that were replaced go on for a while.
    pub(crate) fn nodes(&self) -> Vec<i32> {
        self.netds().into_iter().flat_map(|netd| children(netd, "node")).collect()
    }

    /// The process that has the rights, of the newest node.
    pub(crate) fn netd(&self) -> Option<i32> {
        self.netds().last().copied()
    }

    fn netds(&self) -> Vec<i32> {
        children(self.pid(), "netd")
    }

    /// A figure of /proc/PID/status in octets: `VmRSS`, `VmHWM`.
    pub(crate) fn memory(&self, figure: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
        let kibibytes: Option<u64> =
            line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        Ok(kibibytes.with_context(|| format!("no {figure} in /proc"))? * 1024)
    }

    /// How often each needle stands in the process's memory, and in which mapping first.
    pub(crate) fn scan_memory(&self, needles: &[&[u8]]) -> anyhow::Result<Vec<Vec<Found>>> {
        scan_memory(self.pid(), needles)
    }
}

/// Those whose first argument this is; the others are tools.
fn children(parent: i32, word: &str) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    let children = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        children.flat_map(|line| line.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect();
    let is_one = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|octet| *octet == 0).nth(1) == Some(word.as_bytes())
    };
    pids.into_iter().filter(is_one).collect()
}

impl Drop for Waypost {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.kill());
        }
    }
}

/// A debug build on a busy machine, with a store to open.
const START_MAX: Duration = Duration::from_secs(15);

/// Where in a process's memory something stands.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    mapping: String,
    /// The octets before it.
    before: Vec<u8>,
}

impl Found {
    /// Whether it stands in a TLS record, header and all, as rustls decrypts it in its own input buffer, where it lies
    /// until the next record overwrites it: no caller can reach it.
    pub(crate) fn is_in_a_record(&self) -> bool {
        let header = self.before.windows(3).rposition(|window| window == [0x17, 3, 3]);
        // What stands between is a short command's beginning, and nothing that ends a string.
        header.is_some_and(|at| self.before.len() - at < 80)
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} behind {:?}", self.mapping, String::from_utf8_lossy(&self.before))
    }
}

const BEFORE: usize = 96;

/// Reads every readable mapping of a process.
pub(crate) fn scan_memory(pid: i32, needles: &[&[u8]]) -> anyhow::Result<Vec<Vec<Found>>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut found = vec![Vec::new(); needles.len()];
    for map in maps.lines() {
        let mut words = map.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        if !rights.starts_with('r') || map.ends_with("[vvar]") || map.ends_with("[vsyscall]") {
            continue;
        }
        let Some((low, high)) = range.split_once('-') else { continue };
        let (low, high) = (u64::from_str_radix(low, 16)?, u64::from_str_radix(high, 16)?);
        let mut octets = vec![0; usize::try_from(high.saturating_sub(low))?];
        memory.seek(SeekFrom::Start(low))?;
        // What cannot be read was never there: a guard page, a file that shrank.
        if memory.read_exact(&mut octets).is_err() {
            continue;
        }
        for (needle, places) in needles.iter().zip(&mut found) {
            for at in find_all(&octets, needle) {
                let name = words.clone().nth(3).unwrap_or("anonymous");
                let before = octets.get(at.saturating_sub(BEFORE)..at).unwrap_or_default();
                let at = low + u64::try_from(at)?;
                places
                    .push(Found { mapping: format!("{name} {rights} at {at:#x}"), before: before.to_vec() });
            }
        }
    }
    Ok(found)
}

/// Where `needle` stands in `octets`.
pub(crate) fn find_all(octets: &[u8], needle: &[u8]) -> Vec<usize> {
    let Some(first) = needle.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = octets.get(from..).and_then(|rest| rest.iter().position(|octet| octet == first)) {
        let at = from + at;
        if octets.get(at..at + needle.len()) == Some(needle) {
            found.push(at);
        }
        from = at + 1;
    }
    found
}

/// The end of a log, for messages.
pub(crate) fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(3_000).map_or(0, |(at, _)| at);
    text.get(start..).unwrap_or_default()
}

/// All files below a directory that hold one of the needles.
pub(crate) fn scan_files(directory: &Path, needles: &[Vec<u8>]) -> anyhow::Result<(usize, Vec<PathBuf>)> {
    let (mut count, mut found) = (0, Vec::new());
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else if path.is_file() {
            count += 1;
            let octets = fs::read(&path)?;
            if needles.iter().any(|needle| !find_all(&octets, needle).is_empty()) {
                found.push(path);
            }
        }
    }
    Ok((count, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_finds_its_own_secret() {
        let secret: Vec<u8> = (0..24).map(|n| b'a' ^ (n * 7)).collect();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = scan_memory(pid, &[&secret]).unwrap();
        assert!(!found[0].is_empty());
    }

    #[test]
    fn a_needle_is_found_wherever_it_stands() {
        assert_eq!(find_all(b"aabaab", b"aab"), [0, 3]);
        assert!(find_all(b"abc", b"abcd").is_empty() && find_all(b"abc", b"").is_empty());
    }
}
