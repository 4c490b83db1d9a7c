//! What a node wants of its network namespace. Names are checked here: they become part of texts that root's tools
//! read.

use std::fmt;

use super::deflector::Deflecting;
use super::existing::ExistingFilter;

/// Tells one node's rules from another's in the same namespace: 1 to 10 of `a-z 0-9 _`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance(String);

impl Instance {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadPlan::Instance`].
    pub fn new(name: &str) -> Result<Self, BadPlan> {
        let plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'_';
        if (1..=10).contains(&name.len()) && name.bytes().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadPlan::Instance(name.to_owned()))
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An interface's name: 1 to 15 octets, no white space, quotes or slashes; a trailing `+` would be a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interface(String);

impl Interface {
    /// Checks a name. The interface need not exist yet.
    ///
    /// # Errors
    /// [`BadPlan::Interface`].
    pub fn new(name: &str) -> Result<Self, BadPlan> {
        let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"._-:".contains(&octet);
        let reserved = matches!(name, "." | ".." | "lo" | "all" | "default") || name.starts_with('-');
        if (1..=15).contains(&name.len()) && name.bytes().all(plain) && !reserved {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadPlan::Interface(name.to_owned()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose connections are taken on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Those that its programs open.
    Client,
    /// Those that its servers accept.
    Server,
    /// Both.
    Both,
}

impl Host {
    pub(super) fn takes_own_connects(self) -> bool {
        match self {
            Self::Client | Self::Both => true,
            Self::Server => false,
        }
    }

    pub(super) fn takes_own_servers(self) -> bool {
        match self {
            Self::Server | Self::Both => true,
            Self::Client => false,
        }
    }
}

/// How the node stands on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It routes. Every node has the same rules; which side of a pair it is, each flow decides.
    Routed {
        /// Where traffic comes in, towards clients and towards servers alike.
        interfaces: Vec<Interface>,
    },
    /// It bridges between ports.
    Bridge {
        /// The bridge, which needs an address and routes of its own.
        bridge: Interface,
        /// Ports whose traffic is taken; others pass unchanged.
        ports: Vec<Interface>,
        /// Frames with one 802.1Q tag, too. They can be probed but not terminated.
        tagged: bool,
    },
    /// It runs on the client's or the server's own machine.
    Host {
        /// Where the machine is reached.
        interfaces: Vec<Interface>,
        /// Whose connections.
        host: Host,
    },
}

/// Ports of the transparent listener on the loopback addresses. Never the unspecified address: the listener itself
/// would then match as a transparent socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// On 127.0.0.1.
    pub v4: u16,
    /// On ::1; none where the machine has no IPv6.
    pub v6: Option<u16>,
}

/// What the plan is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanSpec {
    /// Whose rules these are.
    pub instance: Instance,
    /// How the node stands on the path.
    pub mode: Mode,
    /// The packet queue's number.
    pub queue: u16,
    /// Where terminated connections go.
    pub listen: Listen,
    /// The routing table 'everything is local' and, at the same number, the rule that leads there: unused by others.
    pub route_table: u32,
    /// The TCP option kind of the probe.
    pub probe_kind: u8,
    /// The port of separate probes, as the engine knows it: answers to ours come back from it.
    pub probe_port: u16,
    /// Talk to other nodes. Without it only SYNs from clients are queued, which is enough to terminate alone.
    pub probing: bool,
    /// Rule on UDP flows too: the first datagram of each is queued.
    pub datagrams: bool,
    /// Connections are given to proxies off the path.
    pub deflecting: Option<Deflecting>,
}

/// A checked plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) spec: PlanSpec,
    pub(super) existing: Vec<ExistingFilter>,
}

impl Plan {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`BadPlan`] says what does not.
    pub fn new(spec: PlanSpec) -> Result<Self, BadPlan> {
        let interfaces = match &spec.mode {
            Mode::Routed { interfaces } | Mode::Host { interfaces, .. } => interfaces,
            Mode::Bridge { ports, .. } => ports,
        };
        if interfaces.is_empty() || interfaces.len() > INTERFACES_MAX {
            return Err(BadPlan::Interfaces(interfaces.len()));
        }
        // 253 to 255 are the kernel's own tables, 0 is unspecified.
        if matches!(spec.route_table, 0 | 253..=255) || spec.route_table > 0x7fff {
            return Err(BadPlan::RouteTable(spec.route_table));
        }
        if spec.listen.v4 == 0 || spec.listen.v6 == Some(0) {
            return Err(BadPlan::ListenPort);
        }
        Ok(Self { spec, existing: Vec::new() })
    }

    /// Also segments of connections that stood before, of these. Only of what passes: on a host they are its own.
    #[must_use]
    pub fn with_existing(mut self, existing: Vec<ExistingFilter>) -> Self {
        if !matches!(self.spec.mode, Mode::Host { .. }) {
            self.existing = existing;
        }
        self
    }

    /// Whose rules these are.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.spec.instance
    }

    /// Where what is taken goes.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.spec.listen
    }

    /// The queue that they fill.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.spec.queue
    }

    pub(super) fn v6(&self) -> bool {
        self.spec.listen.v6.is_some()
    }
}

/// Each interface costs each packet a rule.
const INTERFACES_MAX: usize = 64;

/// How much of the rules stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// New connections are taken.
    Full,
    /// New connections flow untouched; those that were taken go on. What `bypass on` and a draining node want.
    Drain,
}

/// Why a plan is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadPlan {
    /// A name of an instance.
    #[error("an instance's name is 1 to 10 of a-z, 0-9 and _, not {0:?}")]
    Instance(String),
    /// A name of an interface.
    #[error(
        "{0:?} cannot be an interface whose traffic is taken: 1 to 15 of A-Z a-z 0-9 . _ - :, not lo, all or default"
    )]
    Interface(String),
    /// None, or too many.
    #[error("1 to {INTERFACES_MAX} interfaces can be taken, not {0}")]
    Interfaces(usize),
    /// A routing table that others use.
    #[error(
        "routing table {0} cannot be used: choose one of 1 to 252 or 256 to 32767 that nothing else uses, 100 for example"
    )]
    RouteTable(u32),
    /// Port 0.
    #[error("the transparent listener's port must be known before the rules are made")]
    ListenPort,
}

/// Plans that the tests of several modules share.
#[cfg(test)]
pub(super) mod tests_support {
    use super::*;

    fn interfaces(names: &[&str]) -> Vec<Interface> {
        names.iter().map(|name| Interface::new(name).unwrap()).collect()
    }

    fn plan(mode: Mode) -> Plan {
        let listen = Listen { v4: 12345, v6: Some(12346) };
        let instance = Instance::new("a").unwrap();
        let spec = PlanSpec {
            instance,
            mode,
            queue: 10,
            listen,
            route_table: 100,
            probe_kind: 253,
            probe_port: 7783,
            probing: true,
            datagrams: false,
            deflecting: None,
        };
        Plan::new(spec).unwrap()
    }

    pub(in super::super) fn routed() -> Plan {
        plan(Mode::Routed { interfaces: interfaces(&["lan0", "wan0"]) })
    }

    pub(in super::super) fn datagrams() -> Plan {
        let mut plan = routed();
        plan.spec.datagrams = true;
        plan
    }

    pub(in super::super) fn bridge() -> Plan {
        let ports = interfaces(&["p0", "p1"]);
        plan(Mode::Bridge { bridge: Interface::new("br0").unwrap(), ports, tagged: false })
    }

    pub(in super::super) fn host(host: Host) -> Plan {
        plan(Mode::Host { interfaces: interfaces(&["eth0"]), host })
    }

    pub(in super::super) fn alone() -> Plan {
        let mut plan = routed();
        plan.spec.probing = false;
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_carry_a_second_rule() {
        for bad in
            ["", "a b", "a\nadd", "eth0;", "\"", "lo", "all", "a/b", "-i", "eth+", "sixteen-letters-", "a@b"]
        {
            assert!(Interface::new(bad).is_err(), "{bad:?}");
        }
        for good in ["eth0", "br-lan", "eth0.100", "wg_0"] {
            assert!(Interface::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "A", "a-b", "elevenchars", "a b"] {
            assert!(Instance::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_plan_must_hold_together() {
        let spec = PlanSpec {
            instance: Instance::new("a").unwrap(),
            mode: Mode::Routed { interfaces: vec![Interface::new("lan0").unwrap()] },
            queue: 10,
            listen: Listen { v4: 12345, v6: None },
            route_table: 100,
            probe_kind: 253,
            probe_port: 7783,
            probing: true,
            datagrams: false,
            deflecting: None,
        };
        assert!(Plan::new(spec.clone()).is_ok());
        for table in [0, 253, 254, 255, 40_000] {
            assert_eq!(
                Plan::new(PlanSpec { route_table: table, ..spec.clone() }),
                Err(BadPlan::RouteTable(table))
            );
        }
        let none = PlanSpec { mode: Mode::Routed { interfaces: vec![] }, ..spec.clone() };
        assert_eq!(Plan::new(none), Err(BadPlan::Interfaces(0)));
        let port = PlanSpec { listen: Listen { v4: 1, v6: Some(0) }, ..spec };
        assert_eq!(Plan::new(port), Err(BadPlan::ListenPort));
    }
}
