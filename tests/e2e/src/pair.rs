//! Two nodes on a path, known by their command line alone: `ca init --node`, `token new`, `join`, a file with
//! `[interception]` and rules, `run`. Neither is told of the other, nor of clients and servers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::{Lab, Place, sys};
use serde_json::Value;

/// The nodes of a path. Those that run are killed when it is dropped.
#[derive(Debug)]
pub struct Pair {
    executable: PathBuf,
    nodes: BTreeMap<Place, Node>,
}

#[derive(Debug)]
struct Node {
    directory: PathBuf,
    child: Option<Child>,
}

/// How a node stands on the path, and what it takes.
#[derive(Debug, Clone)]
pub struct Stand {
    /// Of `[interception]`, without `interfaces`.
    pub mode: String,
    /// The devices.
    pub interfaces: Vec<String>,
    /// The rules, whole.
    pub rules: String,
    /// What else stands in the file.
    pub more: String,
}

impl Stand {
    /// A router that takes connections to these ports, as the file has them: `143, "8000-8100"`.
    #[must_use]
    pub fn routed(interfaces: &[&str], ports: &str) -> Self {
        Self {
            mode: String::new(),
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            rules: format!("[[rule]]\naction = \"intercept\"\nports = [{ports}]\n"),
            more: String::new(),
        }
    }

    /// The same between the ports of a bridge.
    #[must_use]
    pub fn bridged(bridge: &str, interfaces: &[&str], ports: &str) -> Self {
        let mode = format!("mode = \"bridge\"\nbridge = {bridge:?}\n");
        Self { mode, ..Self::routed(interfaces, ports) }
    }

    fn text(&self) -> String {
        let mut text = self.more.clone();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "[interception]\n{}interfaces = {:?}", self.mode, self.interfaces);
        text + &self.rules
    }
}

impl Pair {
    /// Makes an authority, and gives each place an identity; starts nothing.
    ///
    /// # Errors
    /// When the executable refuses.
    pub fn identify(executable: &Path, lab: &Lab, places: &[Place]) -> anyhow::Result<Self> {
        let mut pair = Self { executable: executable.to_owned(), nodes: BTreeMap::new() };
        let authority = lab.directory().join("node-ca");
        pair.run(&["ca", "init", "--node", "--dir", text(&authority)?])?;
        for place in places {
            let directory = lab.directory().join(format!("node-{}", place.name()));
            fs::create_dir_all(&directory)?;
            let token = pair.run(&["token", "new", "--id", place.name(), "--ca-dir", text(&authority)?])?;
            let file = directory.join("token");
            fs::write(&file, token)?;
            pair.run(&["join", text(&file)?, "--state-dir", text(&directory)?])?;
            fs::remove_file(file)?;
            pair.nodes.insert(*place, Node { directory, child: None });
        }
        Ok(pair)
    }

    /// Starts the node of a place and waits until it takes connections.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub fn start(&mut self, lab: &Lab, place: Place, stand: &Stand) -> anyhow::Result<()> {
        let before = self.readies(place);
        let executable = self.executable.clone();
        let node = self.nodes.get_mut(&place).context("this place has no node")?;
        let directory = &node.directory;
        let head = format!(
            "version = 1\n[node]\nid = {:?}\nsite = \"lab\"\nstate_dir = {directory:?}\n[log]\nlevel = \"info\"\n",
            place.name()
        );
        let file = directory.join("waypost.toml");
        fs::write(&file, head + &stand.text())?;
        let log = fs::File::options().append(true).create(true).open(directory.join("log"))?;
        let mut command = lab.command(place, executable);
        command.arg("run").arg("-c").arg(file).stdout(log.try_clone()?).stderr(log);
        // A group of its own: Ctrl-C ends it through us, in order.
        node.child = Some(command.process_group(0).spawn().context("cannot run the node")?);
        let start = Instant::now();
        // Ready is a node when its rules stand, a moment after its loop does.
        while self.state(place).as_deref() != Some("taking") || self.readies(place) == before {
            let node = self.nodes.get_mut(&place).context("a node")?;
            let ended = node.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                bail!("the node of {} is not ready ({ended:?}):\n{}", place.name(), self.log(place));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks a node to end, and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self, place: Place) -> anyhow::Result<()> {
        let Some(mut child) = self.nodes.get_mut(&place).and_then(|node| node.child.take()) else {
            return Ok(());
        };
        sys::kill(i32::try_from(child.id())?, libc::SIGTERM)?;
        // What it carries may come to rest; a second request does not wait for that.
        let start = Instant::now();
        let mut asked_twice = false;
        while child.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(1) && !asked_twice {
                sys::kill(i32::try_from(child.id())?, libc::SIGTERM)?;
                asked_twice = true;
            }
            if start.elapsed() > PATIENCE {
                child.kill()?;
                bail!("the node of {} does not end:\n{}", place.name(), self.log(place));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Kills a node, all its processes; one that does not run stays so.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self, place: Place) -> anyhow::Result<()> {
        let pids = self.processes(place);
        let Some(mut child) = self.nodes.get_mut(&place).and_then(|node| node.child.take()) else {
            return Ok(());
        };
        for pid in &pids {
            // Some have ended meanwhile.
            drop(i32::try_from(*pid).map(|pid| sys::kill(pid, libc::SIGKILL)));
        }
        child.kill()?;
        child.wait()?;
        all_gone(&pids)
    }

    /// All processes of a node: the one that was started, and its children.
    #[must_use]
    pub fn processes(&self, place: Place) -> Vec<u32> {
        let child = self.nodes.get(&place).and_then(|node| node.child.as_ref());
        child.map(|child| descent(child.id())).unwrap_or_default()
    }

    /// Where a node's file, log and state are.
    ///
    /// # Errors
    /// When the place has no node.
    pub fn directory(&self, place: Place) -> anyhow::Result<&Path> {
        self.nodes.get(&place).map(|node| node.directory.as_path()).context("this place has no node")
    }

    /// What a subcommand says of a node that runs.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, place: Place, subcommand: &[&str]) -> anyhow::Result<String> {
        let socket = self.directory(place)?.join("admin.sock");
        let said = self.run(&[subcommand, &["--socket", text(&socket)?]].concat())?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// What `status` says of the path.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn status(&self, place: Place) -> anyhow::Result<Value> {
        let status: Value = serde_json::from_str(&self.ask(place, &["status", "--json"])?)?;
        status.get("path").cloned().context("no path in the status")
    }

    /// How often a node gave a reason.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn count(&self, place: Place, reason: &str) -> anyhow::Result<u64> {
        let status = self.status(place)?;
        let reasons = status.get("reasons").and_then(Value::as_array).context("no reasons")?;
        let named = reasons.iter().find(|named| named.get("word").and_then(Value::as_str) == Some(reason));
        Ok(named.and_then(|named| named.get("n")?.as_u64()).unwrap_or(0))
    }

    /// The end of a node's log.
    #[must_use]
    pub fn log(&self, place: Place) -> String {
        let log = self.directory(place).and_then(|directory| Ok(fs::read(directory.join("log"))?));
        crate::waypost::tail(&String::from_utf8_lossy(&log.unwrap_or_default())).to_owned()
    }

    /// For whoever looks for an error: what nodes say of the path, and the ends of their logs.
    #[must_use]
    pub fn account(&self, places: &[Place]) -> String {
        let of = |place: &Place| {
            let said =
                self.status(*place).map_or_else(|error| error.to_string(), |status| status.to_string());
            format!("{} says {said}\n{}", place.name(), self.log(*place))
        };
        places.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// How often the node has said so, in all its lives.
    fn readies(&self, place: Place) -> usize {
        let log = self.directory(place).and_then(|directory| Ok(fs::read(directory.join("log"))?));
        String::from_utf8_lossy(&log.unwrap_or_default()).matches(" ready").count()
    }

    fn state(&self, place: Place) -> Option<String> {
        self.status(place).ok()?.get("state")?.as_str().map(str::to_owned)
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&self.executable).args(arguments).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "waypost {}: {}", arguments.join(" "), said.trim());
        Ok(output.stdout)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in self.nodes.values_mut().filter_map(|node| node.child.as_mut()) {
            // In order, so that what it had changed in the kernel is as before; the lab ends who does not.
            drop(i32::try_from(child.id()).map(|pid| sys::kill(pid, libc::SIGTERM)));
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > Duration::from_secs(1) {
                    drop(child.kill());
                    drop(child.wait());
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Waits until killed processes hold no files any more, of which nobody here is the parent: whoever starts the next one wants
/// their queue.
pub(crate) fn all_gone(pids: &[u32]) -> anyhow::Result<()> {
    let start = Instant::now();
    while pids.iter().any(|pid| holds_files(*pid)) {
        ensure!(start.elapsed() < PATIENCE, "a killed process does not end");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a process is there, and is more than a name for its parent to read. Its first thread may be just that while
/// another one still runs.
fn holds_files(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    })
}

/// A process and all that it has started.
fn descent(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut nth = 0;
    while let Some(pid) = all.get(nth).copied() {
        nth += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
