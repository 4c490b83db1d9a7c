//! The lab's network: namespaces, the links between them, names, and how all of it goes away again.
//!
//! ```text
//! client ── br ══ WAN ══ dc ──┬── server   (Dovecot, Cyrus)
//! client2 ─ br2 ═ WAN ═══╝    └── lan      (a client beside the server)
//! ```
//! In a bridged lab ([`LabSpec::bridged`]) the second branch's cable and the server's are cut, and a bridge stands in each:
//!
//! ```text
//! client2 ─ cable2 ─ br2 ═ WAN ═ dc ─ cable ─ server
//! ```
//! `br` and `br2` route for their clients; a Waypost node runs there. A device of the WAN emulator stands directly
//! in the branch's and the data centre's router, so every octet between them passes it. All routes ask for cubic:
//! this machine's default may be BBR, which would flatter the direct arm on a lossy link.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::leftovers::{self, Owner};
use crate::sys;
use crate::wan::pipe::{Behaviour, LinkBehaviour};
use crate::wan::tun::{Emulator, Ends, WanHandle};

/// A place in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The first branch's client.
    Client,
    /// The first branch's router: where the Waypost node runs.
    Branch,
    /// The second branch's client.
    Client2,
    /// The second branch's router.
    Branch2,
    /// The data centre's router.
    Centre,
    /// The mail servers.
    Server,
    /// A client on the servers' own network.
    Lan,
    /// The bridge in the second branch's cable.
    Cable2,
    /// The bridge in the server's cable.
    Cable,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Client,
        Self::Branch,
        Self::Client2,
        Self::Branch2,
        Self::Centre,
        Self::Server,
        Self::Lan,
        Self::Cable2,
        Self::Cable,
    ];

    /// The short name that the namespace's name ends in.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Branch => "br",
            Self::Client2 => "client2",
            Self::Branch2 => "br2",
            Self::Centre => "dc",
            Self::Server => "server",
            Self::Lan => "lan",
            Self::Cable2 => "cable2",
            Self::Cable => "cable",
        }
    }

    /// The place with this short name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.name() == name)
    }

    /// The place's addresses on its own (not the WAN's) network.
    #[must_use]
    pub const fn addresses(self) -> (Ipv4Addr, Ipv6Addr) {
        let (net, host) = match self {
            Self::Branch => (1, 1),
            Self::Client => (1, 10),
            Self::Centre => (2, 1),
            Self::Server => (2, 10),
            Self::Lan => (2, 20),
            Self::Branch2 => (3, 1),
            Self::Client2 => (3, 10),
            Self::Cable2 => (3, 2),
            Self::Cable => (2, 2),
        };
        address(net, host)
    }

    /// The IPv4 address of [`Place::addresses`].
    #[must_use]
    pub const fn v4(self) -> IpAddr {
        IpAddr::V4(self.addresses().0)
    }

    /// The IPv6 address of [`Place::addresses`].
    #[must_use]
    pub const fn v6(self) -> IpAddr {
        IpAddr::V6(self.addresses().1)
    }
}

const fn address(net: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 81, net, host), Ipv6Addr::new(0xfd00, 0x81, 0, net as u16, 0, 0, 0, host as u16))
}

/// Dovecot's name: the server's first address.
pub const DOVECOT: &str = "mail.lab.test";
/// Cyrus's name: the server's second address.
pub const CYRUS: &str = "cyrus.lab.test";
/// The Waypost node's name: the own branch's router.
pub const BRANCH: &str = "branch.lab.test";

/// The addresses behind [`CYRUS`], in the server's namespace.
pub const CYRUS_ADDRESSES: (Ipv4Addr, Ipv6Addr) = address(2, 11);

/// What to build.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// Starts the namespaces' names; two labs at once need different ones. `None` makes one up.
    pub prefix: Option<String>,
    /// The first branch's link to the data centre.
    pub wan: LinkBehaviour,
    /// The second branch's link; `None` leaves the second branch out.
    pub wan2: Option<LinkBehaviour>,
    /// Bridges in the second branch's cable and in the server's.
    pub bridged: bool,
    /// Decides the links' accidents.
    pub seed: u64,
    /// Leave everything standing when the value is dropped; `lab gc` takes it away once this process has ended.
    pub keep: bool,
}

impl LabSpec {
    /// One branch behind a link with this round trip and rate.
    #[must_use]
    pub fn new(rtt_ms: f64, rate_mbit: f64) -> Self {
        let wan = LinkBehaviour::both(Behaviour::link(rtt_ms, rate_mbit));
        Self { prefix: None, wan, wan2: None, bridged: false, seed: 1, keep: false }
    }

    /// Adds a second branch with a link of the same kind.
    #[must_use]
    pub fn with_second_branch(mut self) -> Self {
        self.wan2 = Some(self.wan.clone());
        self
    }
}

/// A standing lab.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    places: Vec<Place>,
    emulators: Vec<(Emulator, WanHandle)>,
    keep: bool,
}

impl Lab {
    /// Builds namespaces, links and names. What stood half-way is taken down again on failure.
    ///
    /// # Errors
    /// When the caller is not root, a tool is missing, or the prefix is taken.
    pub fn build(spec: LabSpec) -> anyhow::Result<Self> {
        ensure!(sys::is_root(), "the lab makes network namespaces, which needs root: run it with sudo");
        let prefix = match spec.prefix {
            Some(prefix) => leftovers::check_prefix(prefix)?,
            None => leftovers::free_prefix(),
        };
        let directory = leftovers::claim(&prefix)?;
        let mut places: Vec<Place> = Place::ALL.into();
        if spec.wan2.is_none() {
            places.retain(|place| !matches!(place, Place::Client2 | Place::Branch2 | Place::Cable2));
        }
        if !spec.bridged {
            places.retain(|place| !matches!(place, Place::Cable | Place::Cable2));
        }
        // From here on `Drop` cleans up.
        let mut lab = Self { prefix, directory, places, emulators: Vec::new(), keep: false };
        for place in lab.places.clone() {
            lab.add_place(place)?;
        }
        lab.join(Place::Client, Place::Branch)?;
        lab.add_bridge()?;
        lab.connect_wan(Place::Branch, 9, spec.wan, spec.seed)?;
        if let Some(wan2) = spec.wan2 {
            lab.join(Place::Client2, Place::Branch2)?;
            lab.connect_wan(Place::Branch2, 10, wan2, spec.seed ^ 2)?;
        }
        for place in lab.places.clone() {
            lab.set_hosts(place, &[])?;
        }
        lab.warm_up();
        lab.keep = spec.keep;
        Ok(lab)
    }

    /// The prefix of all the lab's namespaces.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The lab's own directory: servers' state, certificates, clients' profiles. Goes away with the lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A namespace's full name.
    #[must_use]
    pub fn namespace(&self, place: Place) -> String {
        format!("{}-{}", self.prefix, place.name())
    }

    /// The first branch's link.
    ///
    /// # Errors
    /// Never on a lab that [`Lab::build`] returned.
    pub fn wan(&self) -> anyhow::Result<&WanHandle> {
        self.emulators.first().map(|(_, handle)| handle).context("this lab has no WAN")
    }

    /// The second branch's link.
    ///
    /// # Errors
    /// When the lab was built without a second branch.
    pub fn wan2(&self) -> anyhow::Result<&WanHandle> {
        self.emulators.get(1).map(|(_, handle)| handle).context("this lab has no second branch")
    }

    /// A command that will run in a place, with no input. The process keeps the id that `spawn` returns.
    #[must_use]
    pub fn command(&self, place: Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(place)]).arg(program);
        // LC_ALL: what clients print is parsed.
        command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs a closure on a thread of its own inside a place: sockets that it opens belong there for good.
    ///
    /// # Errors
    /// When the namespace is gone, or the closure panics.
    pub fn inside<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let namespace = self.namespace(place);
        let thread = std::thread::spawn(move || sys::enter_netns(&namespace).map(|()| work()));
        match thread.join() {
            Ok(done) => done.with_context(|| format!("cannot enter the namespace of {}", place.name())),
            Err(_) => bail!("the work inside {} panicked", place.name()),
        }
    }

    /// Waits until something in `place` (or behind it) accepts a TCP connection at `address`.
    ///
    /// # Errors
    /// When nothing has accepted within `patience`.
    pub fn wait_for_port(&self, place: Place, address: SocketAddr, patience: Duration) -> anyhow::Result<()> {
        self.inside(place, move || {
            let start = Instant::now();
            loop {
                match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
                    Ok(_) => return Ok(()),
                    Err(error) if start.elapsed() > patience => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        })?
        .with_context(|| format!("nothing accepts on {address} after {patience:?}"))
    }

    /// Makes names mean other addresses in one place, for running processes too: `mail.lab.test` at the branch, say.
    /// An empty list restores the lab's own names.
    ///
    /// # Errors
    /// When /etc/netns cannot be written.
    pub fn set_hosts(&self, place: Place, overrides: &[(&str, IpAddr)]) -> anyhow::Result<()> {
        let branch =
            if matches!(place, Place::Client2 | Place::Branch2) { Place::Branch2 } else { Place::Branch };
        let both = |(v4, v6): (Ipv4Addr, Ipv6Addr)| [IpAddr::V4(v4), IpAddr::V6(v6)];
        let own = [
            (DOVECOT, both(Place::Server.addresses())),
            (CYRUS, both(CYRUS_ADDRESSES)),
            (BRANCH, both(branch.addresses())),
        ];
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (name, addresses) in own {
            if overrides.iter().all(|(other, _)| *other != name) {
                for address in addresses {
                    text += &format!("{address} {name}\n");
                }
            }
        }
        for (name, address) in overrides {
            text += &format!("{address} {name}\n");
        }
        let directory = leftovers::etc_directory(&self.namespace(place));
        // Written in place: the file is bind-mounted over /etc/hosts of what already runs there.
        fs::write(directory.join("hosts"), text)
            .with_context(|| format!("cannot write the names of {}", place.name()))
    }

    /// What a name means in a place: the first of its addresses.
    ///
    /// # Errors
    /// When the place does not know the name.
    pub fn address_of(&self, place: Place, name: &str) -> anyhow::Result<IpAddr> {
        let file = leftovers::etc_directory(&self.namespace(place)).join("hosts");
        let hosts = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut lines = hosts.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(_, other)| *other == name).and_then(|(address, _)| address.parse().ok());
        found.with_context(|| format!("{} knows no {name}", place.name()))
    }

    /// The processes inside a place, zombies left out.
    #[must_use]
    pub fn processes(&self, place: Place) -> Vec<i32> {
        leftovers::processes(&self.namespace(place))
    }

    /// Ends every process inside a place: asks first, insists after a second.
    pub fn end_processes(&self, place: Place) {
        leftovers::end_processes(&self.namespace(place));
    }

    /// Lets every client find its neighbours once, so that the first act of a test does not pay for it. A link
    /// that is down or loses packets keeps nobody from going on.
    fn warm_up(&self) {
        for client in [Place::Client, Place::Client2, Place::Lan] {
            if self.places.contains(&client) {
                let addresses = [Place::Server.v4(), Place::Server.v6()];
                drop(self.inside(client, move || {
                    for address in addresses {
                        // Nothing listens: the refusal is the answer.
                        drop(TcpStream::connect_timeout(
                            &SocketAddr::new(address, 9),
                            Duration::from_secs(3),
                        ));
                    }
                }));
            }
        }
    }

    fn add_place(&self, place: Place) -> anyhow::Result<()> {
        let name = self.namespace(place);
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        let directory = leftovers::etc_directory(&name);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // No name is looked up outside: only the hosts file answers.
        fs::write(directory.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        let mut settings = vec!["net.ipv4.tcp_no_metrics_save=1"];
        // No wait for duplicate addresses that cannot be.
        settings.extend(["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]);
        if matches!(place, Place::Branch | Place::Branch2 | Place::Centre) {
            settings.extend(["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
            settings.extend(["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]);
            settings.push("net.ipv4.conf.all.send_redirects=0");
        }
        run(self.command(place, "sysctl").arg("-qw").args(settings))
    }

    /// A cable from a machine to its router, cut by a bridge where one of the lab's stands in it.
    fn cable(&self, near: (Place, &str), far: (Place, &str)) -> anyhow::Result<()> {
        let veth = |(near, device): (Place, &str), (far, other): (Place, &str)| {
            let (near, far) = (self.namespace(near), self.namespace(far));
            ip(&format!("-n {near} link add {device} type veth peer name {other} netns {far}"))
        };
        let cut = [(Place::Client2, Place::Cable2), (Place::Server, Place::Cable)];
        let cut = cut.into_iter().find(|(end, bridge)| *end == near.0 && self.places.contains(bridge));
        let Some((_, bridge)) = cut else {
            return veth(near, far);
        };
        let inside = self.namespace(bridge);
        veth(near, (bridge, "port0"))?;
        veth(far, (bridge, "port1"))?;
        ip(&format!("-n {inside} link add br0 type bridge stp_state 0 mcast_snooping 0"))?;
        for port in ["port0", "port1"] {
            ip(&format!("-n {inside} link set {port} master br0 up"))?;
            self.no_offload(bridge, port)?;
        }
        self.set_up(bridge, "br0", bridge)?;
        self.route_through(bridge, far.0)
    }

    /// A cable between a client and its router, and the client's routes.
    fn join(&self, client: Place, router: Place) -> anyhow::Result<()> {
        self.cable((client, "eth0"), (router, "lan0"))?;
        self.set_up(router, "lan0", router)?;
        self.set_up(client, "eth0", client)?;
        self.no_offload(router, "lan0")?;
        self.no_offload(client, "eth0")?;
        self.route_through(client, router)
    }

    /// The servers' network: a bridge in the data centre's router.
    fn add_bridge(&self) -> anyhow::Result<()> {
        let centre = self.namespace(Place::Centre);
        ip(&format!("-n {centre} link add lan0 type bridge mcast_snooping 0"))?;
        self.set_up(Place::Centre, "lan0", Place::Centre)?;
        for (place, port) in [(Place::Server, "port0"), (Place::Lan, "port1")] {
            self.cable((place, "eth0"), (Place::Centre, port))?;
            ip(&format!("-n {centre} link set {port} master lan0 up"))?;
            self.set_up(place, "eth0", place)?;
            self.no_offload(place, "eth0")?;
            self.no_offload(Place::Centre, port)?;
            self.route_through(place, Place::Centre)?;
        }
        let server = self.namespace(Place::Server);
        let (v4, v6) = CYRUS_ADDRESSES;
        ip(&format!("-n {server} addr add {v4}/24 dev eth0"))?;
        ip(&format!("-n {server} addr add {v6}/64 dev eth0 nodad"))
    }

    fn set_up(&self, place: Place, device: &str, owner: Place) -> anyhow::Result<()> {
        let name = self.namespace(place);
        let (v4, v6) = owner.addresses();
        ip(&format!("-n {name} addr add {v4}/24 dev {device}"))?;
        ip(&format!("-n {name} addr add {v6}/64 dev {device} nodad"))?;
        ip(&format!("-n {name} link set {device} up"))?;
        let net = Ipv4Addr::from(u32::from(v4) & 0xffff_ff00);
        ip(&format!("-n {name} route replace {net}/24 dev {device} src {v4} congctl cubic"))?;
        let net = Ipv6Addr::from(u128::from(v6) >> 64 << 64);
        ip(&format!("-n {name} -6 route replace {net}/64 dev {device} congctl cubic"))
    }

    /// Without it the kernel hands itself packets of 64 kB, which no wire carries and a tap would count as one.
    fn no_offload(&self, place: Place, device: &str) -> anyhow::Result<()> {
        let mut command = self.command(place, "ethtool");
        command.args(["-K", device, "tso", "off", "gso", "off", "gro", "off", "tx", "off"]);
        run(&mut command)
    }

    fn route_through(&self, place: Place, router: Place) -> anyhow::Result<()> {
        let name = self.namespace(place);
        let (v4, v6) = router.addresses();
        ip(&format!("-n {name} route add default via {v4} congctl cubic"))?;
        ip(&format!("-n {name} -6 route add default via {v6} congctl cubic"))
    }

    fn connect_wan(&mut self, branch: Place, net: u8, link: LinkBehaviour, seed: u64) -> anyhow::Result<()> {
        let (inside, centre) = (self.namespace(branch), self.namespace(Place::Centre));
        let far = format!("wan{net}");
        let control = self.directory.join(format!("{}.wan", branch.name()));
        let ends =
            Ends { branch: (inside.clone(), "wan0".to_owned()), centre: (centre.clone(), far.clone()) };
        let emulator = Emulator::start(&ends, link, seed, &control)?;
        self.emulators.push((emulator, WanHandle::new(control)));
        let ((near4, near6), (far4, far6)) = (address(net, 1), address(net, 2));
        for (name, device, v4, v6) in [(&inside, "wan0", near4, near6), (&centre, far.as_str(), far4, far6)] {
            ip(&format!("-n {name} addr add {v4}/24 dev {device}"))?;
            ip(&format!("-n {name} addr add {v6}/64 dev {device} nodad"))?;
            // The emulator's own queue is the bottleneck, never the device's.
            ip(&format!("-n {name} link set {device} mtu 1500 txqueuelen 10000 up"))?;
        }
        ip(&format!("-n {inside} route add default via {far4} congctl cubic"))?;
        ip(&format!("-n {inside} -6 route add default via {far6} congctl cubic"))?;
        let (lan4, lan6) = branch.addresses();
        let net4 = Ipv4Addr::from(u32::from(lan4) & 0xffff_ff00);
        let net6 = Ipv6Addr::from(u128::from(lan6) >> 64 << 64);
        ip(&format!("-n {centre} route add {net4}/24 via {near4} congctl cubic"))?;
        ip(&format!("-n {centre} -6 route add {net6}/64 via {near6} congctl cubic"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            // The devices live as long as the process: it must stay while somebody looks at the lab.
            std::mem::forget(std::mem::take(&mut self.emulators));
            return;
        }
        leftovers::end_all_processes(&self.prefix);
        self.emulators.clear();
        leftovers::remove(&Owner::of(&self.prefix));
    }
}

/// Runs `ip` with arguments that contain no spaces of their own.
pub(crate) fn ip(arguments: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}

/// Runs a command to its end; its complaint becomes the error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| {
        format!(
            "cannot run {}; deploy/lib/packages.sh installs what the lab needs",
            command.get_program().display()
        )
    })?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, complaint.trim());
    }
    Ok(())
}
