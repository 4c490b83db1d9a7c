//! Namespaces in any arrangement, for scenarios about the path itself: places, cables, bridges, routes. No delay and no
//! servers. Goes away with the value, and with `lab gc` when its process died first.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::leftovers::{self, Owner};
use crate::net::run;
use crate::sys;

/// A standing arrangement.
#[derive(Debug)]
pub struct Ground {
    prefix: String,
    directory: PathBuf,
}

/// What is to be done in each place, in order; one call of `ip` each.
#[derive(Debug, Default)]
pub struct Plan {
    lines: BTreeMap<String, String>,
}

impl Plan {
    /// A line as `ip` takes it, without the word `ip`.
    pub fn ip(&mut self, place: &str, line: impl AsRef<str>) {
        let lines = self.lines.entry(place.to_owned()).or_default();
        lines.push_str(line.as_ref());
        lines.push('\n');
    }

    /// Addresses of a device: host `host` of network `network`, see [`v4`] and [`v6`].
    pub fn address(&mut self, place: &str, device: &str, network: u8, host: u8) {
        self.ip(place, format!("addr add {}/24 dev {device}", v4(network, host)));
        self.ip(place, format!("addr add {}/64 dev {device} nodad", v6(network, host)));
        self.ip(place, format!("link set {device} up"));
    }

    /// The way to a network.
    pub fn route(&mut self, place: &str, network: u8, via: (u8, u8)) {
        let (v4_via, v6_via) = (v4(via.0, via.1), v6(via.0, via.1));
        self.ip(place, format!("route replace {}/24 via {v4_via}", v4(network, 0)));
        self.ip(place, format!("route replace {}/64 via {v6_via}", v6(network, 0)));
    }

    /// The way to everything else.
    pub fn default_route(&mut self, place: &str, via: (u8, u8)) {
        self.ip(place, format!("route replace default via {}", v4(via.0, via.1)));
        self.ip(place, format!("route replace ::/0 via {}", v6(via.0, via.1)));
    }
}

/// An address of a ground.
#[must_use]
pub fn v4(network: u8, host: u8) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(10, 82, network, host)
}

/// An address of a ground.
#[must_use]
pub fn v6(network: u8, host: u8) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::new(0xfd00, 0x82, 0, network.into(), 0, 0, 0, host.into())
}

impl Ground {
    /// Namespaces of these names, with nothing in them. All of them forward.
    ///
    /// # Errors
    /// When the caller is not root, or the prefix is taken.
    pub fn build(prefix: &str, places: &[&str]) -> anyhow::Result<Self> {
        ensure!(sys::is_root(), "network namespaces need root: run it with sudo");
        let prefix = leftovers::check_prefix(prefix.to_owned())?;
        let directory = leftovers::claim(&prefix)?;
        // From here on `Drop` cleans up.
        let ground = Self { prefix, directory };
        let mut made = String::new();
        for place in places {
            made += &format!("netns add {}\n", ground.namespace(place));
        }
        ip_batch(None, &made)?;
        for place in places {
            ip_batch(Some(&ground.namespace(place)), "link set lo up\n")?;
            for of in ["ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"] {
                ground.set(place, of, "0")?;
            }
            for of in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                ground.set(place, of, "1")?;
            }
            for of in ["ipv4/conf/all/send_redirects", "ipv4/conf/default/send_redirects"] {
                ground.set(place, of, "0")?;
            }
        }
        Ok(ground)
    }

    /// Places in a row, each joined to the next: place `i`'s device towards `i + 1` is `right`, the other end `left`;
    /// between them lies network `i`, host 1 on its left end and 2 on its right.
    ///
    /// # Errors
    /// As [`Ground::build`].
    pub fn row(prefix: &str, places: &[&str]) -> anyhow::Result<Self> {
        let ground = Self::build(prefix, places)?;
        let mut plan = Plan::default();
        for (network, pair) in places.windows(2).enumerate() {
            let &[left, right] = pair else { bail!("a pair") };
            let network = u8::try_from(network)?;
            ground.cable(&mut plan, (left, "right"), (right, "left"));
            plan.address(left, "right", network, 1);
            plan.address(right, "left", network, 2);
        }
        let networks = u8::try_from(places.len().saturating_sub(1))?;
        for (at, place) in places.iter().enumerate() {
            let at = u8::try_from(at)?;
            for network in 0..networks {
                if network > at {
                    plan.route(place, network, (at, 2));
                } else if network + 1 < at {
                    plan.route(place, network, (at - 1, 1));
                }
            }
        }
        ground.carry_out(&plan)?;
        Ok(ground)
    }

    /// A cable between two places, whose far end is made in the second. Its ends are not up yet.
    pub fn cable(&self, plan: &mut Plan, left: (&str, &str), right: (&str, &str)) {
        let far = self.namespace(right.0);
        plan.ip(left.0, format!("link add {} type veth peer name {} netns {far}", left.1, right.1));
    }

    /// Does what is planned: first every cable, then the rest.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn carry_out(&self, plan: &Plan) -> anyhow::Result<()> {
        for cables in [true, false] {
            for (place, lines) in &plan.lines {
                let chosen = lines.lines().filter(|line| line.contains("type veth") == cables);
                let text: String = chosen.flat_map(|line| [line, "\n"]).collect();
                if !text.is_empty() {
                    ip_batch(Some(&self.namespace(place)), &text).with_context(|| format!("in {place}"))?;
                }
            }
        }
        Ok(())
    }

    /// The ground's own directory; goes away with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A namespace's full name.
    #[must_use]
    pub fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    /// A command that will run in a place, with no input.
    #[must_use]
    pub fn command(&self, place: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(place)]).arg(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs a command of words without spaces of their own to its end.
    ///
    /// # Errors
    /// What it says.
    pub fn run(&self, place: &str, line: &str) -> anyhow::Result<()> {
        let mut words = line.split(' ');
        let program = words.next().context("an empty command")?;
        run(self.command(place, program).args(words))
    }

    /// Loads rules of nft's own language.
    ///
    /// # Errors
    /// What nft says.
    pub fn nft(&self, place: &str, rules: &str) -> anyhow::Result<()> {
        with_input(self.command(place, "nft").args(["-f", "-"]), rules)
    }

    /// Sets a value below /proc/sys/net of a place.
    ///
    /// # Errors
    /// When there is none.
    pub fn set(&self, place: &str, of: &str, value: &str) -> anyhow::Result<()> {
        let (file, value) = (format!("/proc/sys/net/{of}"), value.to_owned());
        let told = file.clone();
        self.inside(place, move || std::fs::write(file, value))?.with_context(|| told)
    }

    /// Lets all on the way to these addresses find their neighbours, so that no test pays for it.
    ///
    /// # Errors
    /// When one of them is not reached.
    pub fn warm_up(&self, place: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        for address in addresses.iter().copied() {
            let reached = self.inside(place, move || {
                let start = Instant::now();
                loop {
                    // Nothing listens: the refusal is the answer. A new SYN every time, for the kernel repeats one late.
                    let tried = TcpStream::connect_timeout(&(address, 9).into(), Duration::from_millis(100));
                    match tried.map_err(|error| error.kind()) {
                        Err(ErrorKind::ConnectionRefused) | Ok(_) => return true,
                        Err(_) if start.elapsed() > Duration::from_secs(10) => return false,
                        Err(_) => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
            })?;
            ensure!(reached, "{address} is not reached from {place}");
        }
        Ok(())
    }

    /// Runs a closure on a thread of its own inside a place: sockets that it opens belong there for good.
    ///
    /// # Errors
    /// When the namespace is gone, or the closure panics.
    pub fn inside<T: Send + 'static>(
        &self,
        place: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let namespace = self.namespace(place);
        let thread = std::thread::spawn(move || sys::enter_netns(&namespace).map(|()| work()));
        match thread.join() {
            Ok(done) => done.with_context(|| format!("cannot enter the namespace of {place}")),
            Err(_) => bail!("the work inside {place} panicked"),
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        leftovers::remove(&Owner::of(&self.prefix));
    }
}

fn ip_batch(namespace: Option<&str>, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    with_input(command.args(["-batch", "-"]), lines)
}

fn with_input(command: &mut Command, text: &str) -> anyhow::Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{text}", said.trim());
    Ok(())
}
