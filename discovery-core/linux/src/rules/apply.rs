//! Runs the texts: installs, checks, repairs, removes. Works in the calling thread's network namespace.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::nft::{self, Facts};
use super::plan::{Extent, Instance, Mode, Plan};
use super::sysctl::{self, Saved, SysctlError};
use super::{datagrams, routes, xtables};

/// Who fills the queue on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nft's own `queue` statement.
    Nft,
    /// iptables' NFQUEUE target, through nf_tables' compatibility layer.
    IptablesNft,
}

/// One instance's rules in a namespace.
///
/// Nothing is removed when the value is dropped: a process that dies must not decide that its successor's rules go.
#[derive(Debug)]
pub struct Rules {
    plan: Plan,
    saved: Saved,
    standing: Option<Standing>,
}

/// What was installed, as the kernel printed it right afterwards.
#[derive(Debug)]
struct Standing {
    backend: Backend,
    extent: Extent,
    facts: Facts,
    tables: String,
    queue: Vec<String>,
}

impl Rules {
    /// The rules of a plan. `saved` is a file in a directory that outlives the process but not the machine's start
    /// (`/run/...`); it remembers kernel settings as they were.
    #[must_use]
    pub fn new(plan: Plan, saved: PathBuf) -> Self {
        Self { plan, saved: Saved::new(saved), standing: None }
    }

    /// From now on `plan` is what is wanted: of the same instance, by a worker that listens elsewhere, or after a change of
    /// the configuration. Takes effect with the next [`Rules::set`].
    ///
    /// # Errors
    /// When what stands cannot be removed, where that is needed.
    pub fn renew(&mut self, plan: Plan) -> Result<(), RulesError> {
        // What only depends on the listeners and the queue is replaced in one transaction.
        let other = plan.v6() != self.plan.v6()
            || plan.spec.mode != self.plan.spec.mode
            || plan.spec.instance != self.plan.spec.instance
            || plan.spec.route_table != self.plan.spec.route_table;
        if other {
            self.remove()?;
        }
        self.plan = plan;
        Ok(())
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Cleans up after a predecessor that was killed, then installs all of it: routes and settings first, then
    /// delivery, and the queue last, so that no packet is taken that cannot be delivered.
    ///
    /// # Errors
    /// When a tool is missing or refuses; then nothing of it stands.
    pub fn install(&mut self) -> Result<Backend, RulesError> {
        let installed = self.try_install();
        if installed.is_err() {
            // The first failure is the one to report.
            drop(self.remove());
        }
        installed
    }

    fn try_install(&mut self) -> Result<Backend, RulesError> {
        self.remove_queue()?;
        self.saved.apply(&sysctl::needed(&self.plan))?;
        self.put_routes()?;
        let facts = self.facts()?;
        let backend = match self.put_tables(facts, Extent::Full, true) {
            Ok(()) => Backend::Nft,
            // Which error a kernel without the statement gives has changed over time: the other way is simply tried.
            Err(RulesError::Refused { .. }) => {
                self.put_tables(facts, Extent::Full, false)?;
                self.put_queue()?;
                Backend::IptablesNft
            }
            Err(other) => return Err(other),
        };
        self.note(backend, Extent::Full, facts)?;
        Ok(backend)
    }

    /// How much of the rules stands; `None` when nothing was installed.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        self.standing.as_ref().map(|standing| standing.extent)
    }

    /// Takes new connections, or lets them flow while those that were taken go on.
    ///
    /// # Errors
    /// When a tool refuses. What stands is then found out by [`Rules::verify`].
    pub fn set(&mut self, extent: Extent) -> Result<(), RulesError> {
        let Some(standing) = &self.standing else {
            return match extent {
                Extent::Full => self.install().map(drop),
                Extent::Drain => Ok(()),
            };
        };
        let backend = standing.backend;
        let facts = self.facts()?;
        match (extent, backend) {
            (_, Backend::Nft) => self.renew_tables(facts, extent, true)?,
            (Extent::Full, Backend::IptablesNft) => {
                self.renew_tables(facts, extent, false)?;
                self.put_queue()?;
            }
            (Extent::Drain, Backend::IptablesNft) => {
                self.drain_queue()?;
                self.renew_tables(facts, extent, false)?;
            }
        }
        self.note(backend, extent, facts)
    }

    /// Looks whether everything stands as it was installed, and mends what does not; returns how many parts
    /// (settings, policy rules, tables, queue) it mended.
    ///
    /// # Errors
    /// When a tool refuses.
    pub fn verify(&mut self) -> Result<u32, RulesError> {
        let Some(standing) = &self.standing else { return Ok(0) };
        let (backend, extent, before) = (standing.backend, standing.extent, standing.facts);
        let (tables, queue) = (standing.tables.clone(), standing.queue.clone());
        let mut repaired = self.saved.apply(&sysctl::needed(&self.plan))?;
        repaired += self.put_routes()?;
        let facts = self.facts()?;
        let mut changed = false;
        if facts != before || self.list_tables()? != tables {
            self.renew_tables(facts, extent, backend == Backend::Nft)?;
            repaired += 1;
            changed = true;
        }
        if backend == Backend::IptablesNft && self.list_queue()? != queue {
            match extent {
                Extent::Full => self.put_queue()?,
                Extent::Drain => self.drain_queue()?,
            }
            repaired += 1;
            changed = true;
        }
        if changed {
            self.note(backend, extent, facts)?;
        }
        Ok(repaired)
    }

    /// Datagrams that passed, and their octets, since the rules were last put in place.
    ///
    /// # Errors
    /// When the tool is missing.
    pub fn datagrams(instance: &Instance) -> Result<Option<(u64, u64)>, RulesError> {
        let arguments = ["list", "counter", "inet", &nft::table(instance), datagrams::COUNTER];
        match run("nft", &arguments, "") {
            Ok(listing) => Ok(counted(&listing)),
            // No table, or none with the counter.
            Err(RulesError::Refused { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Takes everything of this instance out, whoever installed it, and puts the kernel's settings back.
    ///
    /// # Errors
    /// When a tool is missing or refuses. It goes as far as it gets; the first failure is reported.
    pub fn remove(&mut self) -> Result<(), RulesError> {
        self.standing = None;
        let queue = self.remove_queue();
        let tables = run("nft", &["-f", "-"], &nft::remove(self.plan.instance())).map(drop);
        let routes = self.remove_routes();
        let settings = self.saved.restore().map_err(RulesError::from);
        queue.and(tables).and(routes).and(settings)
    }

    fn facts(&self) -> Result<Facts, RulesError> {
        let Mode::Bridge { bridge, .. } = &self.plan.spec.mode else { return Ok(Facts::default()) };
        let path = format!("/sys/class/net/{bridge}/address");
        // Of the calling thread's namespace only when /sys was mounted there: `ip` knows in any case.
        let shown = run("ip", &["-o", "link", "show", "dev", bridge.as_str()], "")?;
        let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        match address.and_then(mac) {
            Some(mac) => Ok(Facts { bridge_mac: Some(mac) }),
            None => Err(RulesError::NoBridge { name: bridge.to_string(), path }),
        }
    }

    fn put_tables(&self, facts: Facts, extent: Extent, queue: bool) -> Result<(), RulesError> {
        run("nft", &["-f", "-"], &nft::install(&self.plan, facts, extent, queue)).map(drop)
    }

    /// In place of what stands: a deflector's live connections are known to its sets alone.
    fn renew_tables(&self, facts: Facts, extent: Extent, queue: bool) -> Result<(), RulesError> {
        let name = nft::table(self.plan.instance());
        let listing = run("nft", &["-t", "-s", "list", "table", "inet", &name], "").unwrap_or_default();
        if let Some(text) = nft::renew(&self.plan, facts, extent, queue, &listing) {
            match run("nft", &["-f", "-"], &text) {
                Ok(_) => return Ok(()),
                // Somebody was at it meanwhile, or it is of another making.
                Err(RulesError::Refused { said, .. }) => {
                    tracing::warn!(said, "the deflector's sets cannot be kept; its connections end");
                }
                Err(other) => return Err(other),
            }
        }
        self.put_tables(facts, extent, queue)
    }

    fn drain_queue(&self) -> Result<(), RulesError> {
        if self.plan.spec.deflecting.is_none() {
            return self.remove_queue();
        }
        for tools in self.iptables() {
            let listing = run(tools.list, &["-t", "raw", "-S"], "")?;
            if let Some(text) = xtables::drain(&self.plan, &listing) {
                run(tools.restore, &["--noflush"], &text)?;
            }
        }
        Ok(())
    }

    fn put_queue(&self) -> Result<(), RulesError> {
        for tools in self.iptables() {
            let listing = run(tools.list, &["-t", "raw", "-S"], "")?;
            run(tools.restore, &["--noflush"], &xtables::install(&self.plan, &listing))?;
        }
        Ok(())
    }

    /// Without the tools there are no rules of theirs, unless nothing else could have filled the queue.
    fn remove_queue(&self) -> Result<(), RulesError> {
        for tools in self.iptables() {
            let listing = match run(tools.list, &["-t", "raw", "-S"], "") {
                Ok(listing) => listing,
                Err(RulesError::Missing { .. }) => continue,
                Err(other) => return Err(other),
            };
            if let Some(text) = xtables::remove(self.plan.instance(), &listing) {
                run(tools.restore, &["--noflush"], &text)?;
                // Listing and restoring made the table where there was none; an empty one would stay behind.
                let left = run(tools.list, &["-t", "raw", "-S"], "")?;
                if xtables::is_bare(&left) {
                    drop(run("nft", &["delete", "table", tools.family, "raw"], ""));
                }
            }
        }
        Ok(())
    }

    fn iptables(&self) -> &'static [Iptables] {
        if self.plan.v6() { &[IPTABLES, IP6TABLES] } else { &[IPTABLES] }
    }

    fn put_routes(&self) -> Result<u32, RulesError> {
        let mut put = 0;
        for family in routes::families(&self.plan) {
            let rules = run("ip", &[family, "rule", "show"], "")?;
            if routes::standing(&self.plan, &rules) == 0 {
                ip(&routes::add_rule(&self.plan, family))?;
                put += 1;
            }
            if !routes::routed(&self.list_route(family)) {
                ip(&routes::put_route(&self.plan, family))?;
                put += 1;
            }
        }
        Ok(put)
    }

    fn remove_routes(&self) -> Result<(), RulesError> {
        for family in routes::families(&self.plan) {
            let rules = run("ip", &[family, "rule", "show"], "")?;
            for _ in 0..routes::standing(&self.plan, &rules) {
                ip(&routes::delete_rule(&self.plan, family))?;
            }
            if routes::routed(&self.list_route(family)) {
                ip(&routes::delete_route(&self.plan, family))?;
            }
        }
        Ok(())
    }

    /// A table that does not exist is an error of `ip`'s, and has no route.
    fn list_route(&self, family: &str) -> String {
        let table = self.plan.spec.route_table.to_string();
        run("ip", &[family, "route", "show", "table", &table], "").unwrap_or_default()
    }

    /// Without the elements of sets, which come and go. A table that is gone lists as nothing.
    fn list_tables(&self) -> Result<String, RulesError> {
        let name = nft::table(self.plan.instance());
        let mut families = vec!["inet"];
        if nft::has_bridge_table(&self.plan) {
            families.push("bridge");
        }
        let mut listing = String::new();
        for family in families {
            match run("nft", &["-t", "-s", "list", "table", family, &name], "") {
                Ok(table) => listing.push_str(&table),
                Err(RulesError::Refused { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(listing)
    }

    fn list_queue(&self) -> Result<Vec<String>, RulesError> {
        let mut listings = Vec::new();
        for tools in self.iptables() {
            let listing = run(tools.list, &["-t", "raw", "-S"], "")?;
            listings.push(xtables::ours(self.plan.instance(), &listing));
        }
        Ok(listings)
    }

    fn note(&mut self, backend: Backend, extent: Extent, facts: Facts) -> Result<(), RulesError> {
        let tables = self.list_tables()?;
        let queue = match backend {
            Backend::Nft => Vec::new(),
            Backend::IptablesNft => self.list_queue()?,
        };
        self.standing = Some(Standing { backend, extent, facts, tables, queue });
        Ok(())
    }
}

/// iptables' tools of one family. The variants are named: mixing them with the legacy ones in one namespace makes
/// every later call complain.
struct Iptables {
    family: &'static str,
    list: &'static str,
    restore: &'static str,
}

const IPTABLES: Iptables = Iptables { family: "ip", list: "iptables-nft", restore: "iptables-nft-restore" };
const IP6TABLES: Iptables =
    Iptables { family: "ip6", list: "ip6tables-nft", restore: "ip6tables-nft-restore" };

/// As nft prints a counter: `packets 5 bytes 300`.
fn counted(listing: &str) -> Option<(u64, u64)> {
    let mut words = listing.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let packets = words.next()?.parse().ok()?;
    let octets = words.nth(1)?.parse().ok()?;
    Some((packets, octets))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut octets = text.split(':');
    for octet in &mut mac {
        *octet = u8::from_str_radix(octets.next()?, 16).ok()?;
    }
    octets.next().is_none().then_some(mac)
}

fn ip(arguments: &str) -> Result<(), RulesError> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    run("ip", &arguments, "").map(drop)
}

/// Runs a tool with a text on its input, and hands out what it prints. A tool that does not end in time is ended.
fn run(tool: &'static str, arguments: &[&str], input: &str) -> Result<String, RulesError> {
    let output = spawn(tool, arguments, input).map_err(|error| RulesError::Run { tool, error })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // `timeout` answers 127 when there is no such tool, 124 when it took too long.
    if output.status.code() == Some(127) {
        return Err(RulesError::Missing { tool });
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let said =
        if output.status.code() == Some(124) { format!("no end after {TOOL_SECONDS_MAX} s") } else { said };
    Err(RulesError::Refused { tool, arguments: arguments.join(" "), said })
}

fn spawn(tool: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new("timeout")
        .args(["-k", "1", TOOL_SECONDS_MAX, tool])
        .args(arguments)
        // Daemons are often started without the directories in which these tools are.
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // A tool that refuses early does not read to the end; what it says comes with its status.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    child.wait_with_output()
}

/// A transaction takes milliseconds; a tool that waits for a lock longer than this must not hold the supervisor up.
const TOOL_SECONDS_MAX: &str = "10";

/// Why rules could not be put, checked or taken out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// A tool is not installed.
    #[error("{tool} is not installed (packages nftables, iptables and iproute2 have what is needed)")]
    Missing {
        /// Which.
        tool: &'static str,
    },
    /// A tool could not be run.
    #[error("cannot run {tool}: {error}")]
    Run {
        /// Which.
        tool: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A tool, or the kernel through it, said no.
    #[error("{tool} {arguments} refused: {said}")]
    Refused {
        /// Which.
        tool: &'static str,
        /// How it was called.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// The bridge has no Ethernet address.
    #[error("{name} is no bridge: it has no Ethernet address ({path})")]
    NoBridge {
        /// The interface.
        name: String,
        /// Where one would be.
        path: String,
    },
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}
