//! Rules in their order.

use super::{Action, Existing, Ports, Prefix, Program, Ruled};
use crate::{
    flow::{Flow, Ingress},
    mutants,
    packet::{Protocol, View},
};

/// What is known of a packet besides its octets. For UDP the flow's client is who sent the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Whose, and where to.
    pub flow: Flow,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it came in; none for the machine's own.
    pub ingress: Option<Ingress>,
    /// The tag it came in with; none without one.
    pub vlan: Option<VlanId>,
}

/// A VLAN identifier (IEEE 802.1Q): 0, a priority alone, to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

/// One rule: it fits when everything that it names does. What it does not name may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    action: Action,
    existing: Existing,
    client: Vec<Prefix>,
    server: Vec<Prefix>,
    client_ports: Vec<Ports>,
    server_ports: Vec<Ports>,
    ingress: Option<Vec<Ingress>>,
    vlan: Vec<VlanId>,
    protocol: Option<Protocol>,
    program: Option<Program>,
}

/// The rules of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

/// What is wrong with a rule, or with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// No such VLAN.
    #[error("VLAN {0} cannot be: 0 to 4094 can")]
    Vlan(u16),
    /// Clients of one family, servers of the other.
    #[error("rule {rule} fits nothing: its clients are all of {clients} and its servers all of {servers}")]
    Families {
        /// Its place, from 1.
        rule: usize,
        /// Family of all its clients.
        clients: &'static str,
        /// Family of all its servers.
        servers: &'static str,
    },
    /// UDP passes or does not, but it is not carried.
    #[error("rule {rule} is about udp, which is never intercepted: pass, drop or deny")]
    UdpIntercepted {
        /// Its place, from 1.
        rule: usize,
    },
    /// More rules than have a number.
    #[error("{0} rules, and at most {RULES_MAX} are allowed")]
    TooMany(usize),
}

impl Facts {
    /// Of a packet that the client sent.
    #[must_use]
    pub fn of(view: &View<'_>, ingress: Option<Ingress>, vlan: Option<VlanId>) -> Self {
        Self { flow: view.from_client(), protocol: view.protocol(), ingress, vlan }
    }
}

impl VlanId {
    /// This one.
    ///
    /// # Errors
    /// [`RuleError::Vlan`].
    pub fn new(id: u16) -> Result<Self, RuleError> {
        if id <= 4094 { Ok(Self(id)) } else { Err(RuleError::Vlan(id)) }
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Rule {
    /// A rule that fits everything.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self {
            action,
            existing: Existing::Leave,
            client: Vec::new(),
            server: Vec::new(),
            client_ports: Vec::new(),
            server_ports: Vec::new(),
            ingress: None,
            vlan: Vec::new(),
            protocol: None,
            program: None,
        }
    }

    /// And this about connections that stood before.
    #[must_use]
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// Also clients in this network.
    #[must_use]
    pub fn client(mut self, prefix: Prefix) -> Self {
        self.client.push(prefix);
        self
    }

    /// Also servers in this network.
    #[must_use]
    pub fn server(mut self, prefix: Prefix) -> Self {
        self.server.push(prefix);
        self
    }

    /// Also these ports of clients.
    #[must_use]
    pub fn client_ports(mut self, ports: impl Into<Ports>) -> Self {
        self.client_ports.push(ports.into());
        self
    }

    /// Also these ports of servers.
    #[must_use]
    pub fn server_ports(mut self, ports: impl Into<Ports>) -> Self {
        self.server_ports.push(ports.into());
        self
    }

    /// Only what comes in through these. None of them, when no interface of the given name is there, means nothing at
    /// all: a rule for a port that is missing must not grow into a rule for every port.
    #[must_use]
    pub fn ingress(mut self, interfaces: impl IntoIterator<Item = Ingress>) -> Self {
        self.ingress.get_or_insert_default().extend(interfaces);
        self
    }

    /// Also this VLAN.
    #[must_use]
    pub fn vlan(mut self, vlan: VlanId) -> Self {
        self.vlan.push(vlan);
        self
    }

    /// Only this protocol. Without it datagrams too fit, see [`Action::on`].
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Only packets for which this program, compiled for packets that begin with IP, returns other than 0.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.program = Some(program);
        self
    }

    /// Whether it fits; cheap questions first.
    fn fits(&self, facts: &Facts, packet: &[u8]) -> bool {
        let Facts { flow, protocol, ingress, vlan } = facts;
        self.protocol.is_none_or(|named| named == *protocol)
            && any_or_none(&self.server_ports, |ports| ports.contains(flow.server.port()))
            && any_or_none(&self.client_ports, |ports| ports.contains(flow.client.port()))
            && any_or_none(&self.vlan, |named| Some(*named) == *vlan)
            && self.fits_ingress(*ingress)
            && any_or_none(&self.server, |prefix| prefix.contains(flow.server.ip()))
            && any_or_none(&self.client, |prefix| prefix.contains(flow.client.ip()))
            && self.program.as_ref().is_none_or(|program| program.matches(packet))
    }

    fn fits_ingress(&self, ingress: Option<Ingress>) -> bool {
        let Some(named) = &self.ingress else { return true };
        if named.is_empty() && mutants::on("rule-missing-interface-is-any") {
            return true;
        }
        ingress.is_some_and(|ingress| named.contains(&ingress))
    }

    fn check(&self, rule: usize) -> Result<(), RuleError> {
        let carried = self.action != self.action.on(Protocol::Udp);
        if self.protocol == Some(Protocol::Udp) && carried {
            return Err(RuleError::UdpIntercepted { rule });
        }
        match (family(&self.client), family(&self.server)) {
            (Some(clients), Some(servers)) if clients != servers => {
                Err(RuleError::Families { rule, clients, servers })
            }
            (_, _) => Ok(()),
        }
    }
}

impl RuleSet {
    /// These rules, in this order.
    ///
    /// # Errors
    /// [`RuleError`] of the first that is wrong.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RuleError> {
        if rules.len() > RULES_MAX {
            return Err(RuleError::TooMany(rules.len()));
        }
        for (rule, place) in rules.iter().zip(1..) {
            rule.check(place)?;
        }
        Ok(Self { rules })
    }

    /// What the first rule that fits says, for this protocol; to pass without one. `packet` begins with its IP header.
    #[must_use]
    pub fn decide(&self, facts: &Facts, packet: &[u8]) -> Ruled {
        for (rule, place) in self.rules.iter().zip(1..) {
            if rule.fits(facts, packet) {
                return Ruled { action: rule.action.on(facts.protocol), rule: Some(place) };
            }
        }
        Ruled { action: Action::Pass, rule: None }
    }
}

impl RuleSet {
    /// Whether any rule says that connections that stood before are to be looked at.
    #[must_use]
    pub fn looks_at_existing(&self) -> bool {
        self.rules.iter().any(|rule| rule.existing != Existing::Leave)
    }

    /// What the rule that decided says about connections that stood before; nothing without one.
    #[must_use]
    pub fn existing(&self, ruled: Ruled) -> Existing {
        let place = ruled.rule.and_then(|place| usize::from(place).checked_sub(1));
        place.and_then(|place| self.rules.get(place)).map_or(Existing::Leave, |rule| rule.existing)
    }
}

/// A list that is empty names nothing, so everything fits.
fn any_or_none<T>(named: &[T], fits: impl Fn(&T) -> bool) -> bool {
    named.is_empty() || named.iter().any(fits)
}

/// The one family of these prefixes; none when there are both, or no prefixes.
fn family(prefixes: &[Prefix]) -> Option<&'static str> {
    let (first, rest) = prefixes.split_first()?;
    let all = rest.iter().all(|prefix| prefix.is_ipv4() == first.is_ipv4());
    all.then_some(if first.is_ipv4() { "IPv4" } else { "IPv6" })
}

/// A rule's place is a `u16`; nobody writes so many, and each is asked in turn for every SYN.
const RULES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::BpfInsn;
    use proptest::prelude::*;

    fn facts(client: &str, server: &str) -> Facts {
        Facts {
            flow: Flow { client: client.parse().unwrap(), server: server.parse().unwrap() },
            protocol: Protocol::Tcp,
            ingress: Some(Ingress(2)),
            vlan: None,
        }
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn returns(k: u32) -> Program {
        Program::new(&[BpfInsn { code: 6, jt: 0, jf: 0, k }]).unwrap()
    }

    #[test]
    fn what_a_rule_names_must_fit() {
        let imap = facts("10.1.0.2:40000", "10.2.0.2:143");
        let vlan = |id| VlanId::new(id).unwrap();
        let new = || Rule::new(Action::Drop);
        let rows = [
            ("anything", new(), true),
            ("client", new().client(prefix("10.1.0.0/24")), true),
            ("other client", new().client(prefix("10.2.0.0/24")), false),
            ("one of two clients", new().client(prefix("10.2.0.0/24")).client(prefix("10.1.0.2")), true),
            ("both families", new().client(prefix("::/0")).client(prefix("0.0.0.0/0")), true),
            ("server", new().server(prefix("10.2.0.2/32")), true),
            ("other server", new().server(prefix("10.1.0.0/16")), false),
            ("server port", new().server_ports(143), true),
            ("other server port", new().server_ports(993), false),
            ("one of two ports", new().server_ports(993).server_ports(143), true),
            ("range", new().server_ports(Ports::range(1, 1023).unwrap()), true),
            ("client port", new().client_ports(40_000), true),
            ("other client port", new().client_ports(143), false),
            ("interface", new().ingress([Ingress(1), Ingress(2)]), true),
            ("other interface", new().ingress([Ingress(1)]), false),
            ("no such interface", new().ingress([]), false),
            ("vlan", new().vlan(vlan(0)), false),
            ("tcp", new().protocol(Protocol::Tcp), true),
            ("udp", new().protocol(Protocol::Udp), false),
            ("program", new().program(returns(1)), true),
            ("other program", new().program(returns(0)), false),
            ("all but one", new().server_ports(143).client(prefix("10.1.0.0/16")).vlan(vlan(7)), false),
        ];
        for (name, rule, fits) in rows {
            let ruled = RuleSet::new(vec![rule]).unwrap().decide(&imap, &[0x45]);
            let expected = if fits { (Action::Drop, Some(1)) } else { (Action::Pass, None) };
            assert_eq!((ruled.action, ruled.rule), expected, "{name}");
        }
        let tagged = Facts { vlan: Some(vlan(7)), ingress: None, ..imap };
        let decide = |rule| RuleSet::new(vec![rule]).unwrap().decide(&tagged, &[]).rule;
        assert_eq!(decide(new().vlan(vlan(9)).vlan(vlan(7))), Some(1));
        assert_eq!(decide(new().vlan(vlan(9))), None);
        assert_eq!(decide(new().ingress([Ingress(0)])), None, "the machine's own came in nowhere");
    }

    #[test]
    fn the_first_that_fits_wins() {
        let rules = RuleSet::new(vec![
            Rule::new(Action::Deny).server_ports(25),
            Rule::new(Action::Intercept).server(prefix("10.2.0.0/16")),
            Rule::new(Action::DropIfNoPeer).server(prefix("10.0.0.0/8")),
            Rule::new(Action::Drop).protocol(Protocol::Udp),
        ])
        .unwrap();
        let rows = [
            ("10.1.0.2:4", "10.2.0.2:25", Protocol::Tcp, Action::Deny, Some(1)),
            ("10.1.0.2:4", "10.2.0.2:25", Protocol::Udp, Action::Deny, Some(1)),
            ("10.1.0.2:4", "10.2.0.2:26", Protocol::Tcp, Action::Intercept, Some(2)),
            ("10.1.0.2:4", "10.2.0.2:26", Protocol::Udp, Action::Pass, Some(2)),
            ("10.1.0.2:4", "10.3.0.2:26", Protocol::Tcp, Action::DropIfNoPeer, Some(3)),
            ("10.1.0.2:4", "10.3.0.2:26", Protocol::Udp, Action::Drop, Some(3)),
            ("[::1]:4", "[::2]:26", Protocol::Udp, Action::Drop, Some(4)),
            ("[::1]:4", "[::2]:26", Protocol::Tcp, Action::Pass, None),
        ];
        for (client, server, protocol, action, rule) in rows {
            let facts = Facts { protocol, ..facts(client, server) };
            assert_eq!(rules.decide(&facts, &[]), Ruled { action, rule }, "{facts:?}");
        }
        let none = RuleSet::default().decide(&facts("10.1.0.2:4", "10.2.0.2:25"), &[]);
        assert_eq!(none, Ruled { action: Action::Pass, rule: None });
    }

    #[test]
    fn rules_that_cannot_be_meant() {
        let four_six = Rule::new(Action::Drop).client(prefix("10.0.0.0/8")).server(prefix("::/0"));
        let fine = Rule::new(Action::Drop);
        let error = RuleSet::new(vec![fine.clone(), four_six.clone()]).unwrap_err();
        assert_eq!(error, RuleError::Families { rule: 2, clients: "IPv4", servers: "IPv6" });
        assert!(RuleSet::new(vec![four_six.client(prefix("::1"))]).is_ok());
        for action in Action::ALL {
            let done = RuleSet::new(vec![Rule::new(action).protocol(Protocol::Udp)]);
            let carried = [Action::Intercept, Action::InterceptSingle, Action::DropIfNoPeer];
            let expected = carried.contains(&action).then_some(RuleError::UdpIntercepted { rule: 1 });
            assert_eq!(done.err(), expected, "{action}");
        }
        assert_eq!(VlanId::new(4095), Err(RuleError::Vlan(4095)));
        assert_eq!(VlanId::new(4094).map(VlanId::get), Ok(4094));
        assert_eq!(RuleSet::new(vec![fine; 4097]), Err(RuleError::TooMany(4097)));
    }

    proptest! {
        /// What stands behind a rule that fits changes nothing; one before it that does not fit moves its place only.
        #[test]
        fn order_is_all(ports in prop::collection::vec(0_u16..4, 0..12), port in 0_u16..4) {
            let rules = |ports: &[u16]| {
                RuleSet::new(ports.iter().map(|port| Rule::new(Action::Drop).server_ports(*port)).collect()).unwrap()
            };
            let facts = facts("10.1.0.2:4", &format!("10.2.0.2:{port}"));
            let expected = ports.iter().position(|named| *named == port).map(|at| u16::try_from(at + 1).unwrap());
            prop_assert_eq!(rules(&ports).decide(&facts, &[]).rule, expected);
        }
    }
}
