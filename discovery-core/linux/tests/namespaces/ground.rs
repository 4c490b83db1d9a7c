//! Namespaces in a row, each joined to the next, and what a test does inside them. All goes away when the value is
//! dropped; what a killed test left is taken away by the next one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A row of namespaces. Place `i`'s interface towards `i + 1` is `right`, the other end `left`; the network between
/// them is 10.77.`i`.0/24 and fd77:`i`::/64, the left end `.1`, the right end `.2`. All but the ends forward.
pub(crate) struct Ground {
    prefix: String,
    places: Vec<&'static str>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether namespaces can be made; else prints the line that the runner counts.
pub(crate) fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return false;
    }
    for tool in ["ip", "nft", "iptables-nft", "ip6tables-nft"] {
        if !["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|at| Path::new(at).join(tool).exists()) {
            println!("skipped: {tool} is not installed (deploy/lib/packages.sh)");
            return false;
        }
    }
    true
}

impl Ground {
    pub(crate) fn row(places: &[&'static str]) -> Self {
        sweep();
        let prefix = format!("ln-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ground = Self { prefix, places: places.to_vec() };
        for place in places {
            let name = ground.name(place);
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            // No wait for duplicate addresses that cannot be: routers ask for neighbours with their link-local ones.
            for of in ["net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad"] {
                ground.set(place, of, "0");
            }
        }
        for (i, pair) in places.windows(2).enumerate() {
            ground.join(i, pair[0], pair[1]);
        }
        let last = places.len() - 1;
        for (i, place) in places.iter().enumerate() {
            if i != 0 && i != last {
                ground.set(place, "net/ipv4/ip_forward", "1");
                ground.set(place, "net/ipv6/conf/all/forwarding", "1");
            }
            // What lies beyond a neighbour is reached through it.
            for network in 0..last {
                let name = ground.name(place);
                if network > i {
                    ip(&format!("-n {name} route add 10.77.{network}.0/24 via 10.77.{i}.2"));
                    ip(&format!("-n {name} -6 route add fd77:{network}::/64 via fd77:{i}::2"));
                } else if network + 1 < i {
                    let left = i - 1;
                    ip(&format!("-n {name} route add 10.77.{network}.0/24 via 10.77.{left}.1"));
                    ip(&format!("-n {name} -6 route add fd77:{network}::/64 via fd77:{left}::1"));
                }
            }
        }
        // Every neighbour is found once, so that no test pays for it: the refusal is the answer.
        let network = u8::try_from(last).unwrap().wrapping_sub(1);
        if last > 0 {
            ground.inside(places[0], move || {
                for far in both(network, 2, 1) {
                    drop(TcpStream::connect_timeout(&far, Duration::from_secs(5)));
                }
            });
        }
        ground
    }

    fn join(&self, network: usize, left: &str, right: &str) {
        let (l, r) = (self.name(left), self.name(right));
        ip(&format!("-n {l} link add right type veth peer name left netns {r}"));
        for (name, device, host) in [(&l, "right", 1), (&r, "left", 2)] {
            ip(&format!("-n {name} addr add 10.77.{network}.{host}/24 dev {device}"));
            ip(&format!("-n {name} addr add fd77:{network}::{host}/64 dev {device} nodad"));
            ip(&format!("-n {name} link set {device} up"));
        }
    }

    pub(crate) fn name(&self, place: &str) -> String {
        assert!(self.places.contains(&place), "{place}");
        format!("{}-{place}", self.prefix)
    }

    /// Runs a closure on a thread of its own inside a place.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        place: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.spawn(place, work).join().unwrap()
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        place: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let name = self.name(place);
        thread::spawn(move || {
            enter(&name);
            work()
        })
    }

    pub(crate) fn command(&self, place: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(place), program]).env("LC_ALL", "C");
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        command
    }

    pub(crate) fn run(&self, place: &str, line: &str) -> Output {
        let mut words = line.split(' ');
        let output = self.command(place, words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        output
    }

    pub(crate) fn shown(&self, place: &str, line: &str) -> String {
        String::from_utf8(self.run(place, line).stdout).unwrap()
    }

    pub(crate) fn set(&self, place: &str, path: &'static str, value: &'static str) {
        self.inside(place, move || std::fs::write(Path::new("/proc/sys").join(path), value).unwrap());
    }

    /// Everything that rules of ours could leave in a place.
    pub(crate) fn state(&self, place: &str) -> String {
        let mut state = String::new();
        for line in ["nft list ruleset", "ip rule", "ip -6 rule"] {
            state += &self.shown(place, line);
        }
        for table in ["100", "101"] {
            for family in ["-4", "-6"] {
                let shown =
                    self.command(place, "ip").args([family, "route", "show", "table", table]).output();
                state += &String::from_utf8(shown.unwrap().stdout).unwrap();
            }
        }
        let pattern = "rp_filter|tcp_syncookies|fwmark|send_redirects|bridge-nf";
        state += &self.shown(place, &format!("sysctl -a --pattern {pattern}"));
        let mut lines: Vec<String> = state.lines().map(without_counters).collect();
        lines.sort();
        lines.join(
            "
",
        )
    }
}

fn without_counters(line: &str) -> String {
    let mut words = line.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "packets" || word == "bytes" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

impl Drop for Ground {
    fn drop(&mut self) {
        for place in &self.places {
            drop(Command::new("ip").args(["netns", "del", &self.name(place)]).output());
        }
    }
}

pub(crate) fn enter(namespace: &str) {
    let file = std::fs::File::open(Path::new("/run/netns").join(namespace)).unwrap();
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
}

/// The address of place `i`'s right end (`host` 1) or of its right neighbour (2).
pub(crate) fn v4(network: u8, host: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(10, 77, network, host), port).into()
}

pub(crate) fn v6(network: u16, host: u16, port: u16) -> SocketAddr {
    (Ipv6Addr::new(0xfd77, network, 0, 0, 0, 0, 0, host), port).into()
}

pub(crate) fn both(network: u8, host: u8, port: u16) -> [SocketAddr; 2] {
    [v4(network, host, port), v6(network.into(), host.into(), port)]
}

pub(crate) fn any(like: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, like.port())
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Namespaces of tests that are dead.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner =
            name.strip_prefix("ln-").and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid.to_owned());
        let dead = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if dead {
            drop(Command::new("ip").args(["netns", "del", &name]).output());
        }
    }
}
