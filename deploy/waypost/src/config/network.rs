//! `[interception]`, `[[rule]]`, `[link]`, `[[peer]]`, `[[authority]]`: how a node stands on the path, and to whom it speaks.

use super::{
    keys::{AUTHORITY, INTERCEPTION, LINK, PEER, RULE},
    problem::{Place, Problem},
    reader::{Found, TableReader},
    sections::{Around, Sections},
    units::show_time,
    value::{Ack, Answer, HostSide, InterfaceName, Pin, Port, ProbeManner, Refresh, Standing, quoted},
};
use discovery_core::{
    flow::Ingress,
    id::NodeId,
    packet::Protocol,
    rule::{Action, Existing, Ports, Prefix, Rule, RuleError, RuleSet, VlanId},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// How the node stands on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interception {
    pub(crate) mode: Standing,
    pub(crate) interfaces: Vec<InterfaceName>,
    pub(crate) bridge: Option<InterfaceName>,
    pub(crate) tagged: bool,
    pub(crate) host: HostSide,
    pub(crate) queue: u16,
    pub(crate) probe: ProbeManner,
    pub(crate) refresh: Refresh,
    /// How long a new answer about a server is believed.
    pub(crate) entry_ttl: Duration,
    pub(crate) ack: Ack,
    pub(crate) answer: Answer,
    pub(crate) option_kind: u8,
    /// What starts the machine anew when nobody feeds it.
    pub(crate) watchdog_device: Option<PathBuf>,
    /// A program with its arguments; empty: none.
    pub(crate) bypass_command: Vec<String>,
    pub(crate) rules: Vec<RuleConfig>,
}

/// A rule as the file has it; interfaces get their numbers, and expressions their programs, where the node runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleConfig {
    pub(crate) action: Action,
    pub(crate) existing: Existing,
    pub(crate) clients: Vec<Prefix>,
    pub(crate) servers: Vec<Prefix>,
    pub(crate) client_ports: Vec<Ports>,
    pub(crate) ports: Vec<Ports>,
    pub(crate) interfaces: Vec<InterfaceName>,
    pub(crate) vlans: Vec<VlanId>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) bpf: Option<String>,
}

/// The link to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) listen: SocketAddr,
    pub(crate) identity: PathBuf,
    /// Where other nodes reach this one, if not where the question came in.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Nodes that are none of ours any more, whatever their certificates say.
    pub(crate) revoked: Vec<NodeId>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) authorities: Vec<Authority>,
}

/// Another organisation, whose nodes may be peers for some servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) name: String,
    pub(crate) certificate: PathBuf,
    pub(crate) servers: Vec<Prefix>,
}

/// Another node, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) pin: Option<Pin>,
    /// Servers that stand behind it, whatever the path says.
    pub(crate) servers: Vec<Prefix>,
    /// Its place among those for the same servers: lower first.
    pub(crate) preference: u8,
    /// Servers for which it does as well as this node.
    pub(crate) serves: Vec<Prefix>,
    /// Servers that it may ask for without a SYN that was seen here.
    pub(crate) may_open: Vec<Prefix>,
    /// Servers that see this node's own address when it asks for them so.
    pub(crate) may_dial: Vec<Prefix>,
}

/// Reads `[interception]` and its rules; none without the section.
pub(super) fn interception(
    sections: &Sections<'_, '_>,
    around: &Around<'_>,
    found: &mut Found,
) -> Option<Interception> {
    let given = sections.value(INTERCEPTION.name).is_some();
    let mut rules = Vec::new();
    let mut unread = false;
    for (nth, table) in sections.many(&RULE, found).into_iter().enumerate() {
        if !given && nth == 0 {
            let what = "[[rule]]: it rules on connections on the path, and there is no [interception]";
            found.problems.push(Problem::error(table.1, what));
        }
        let reader = TableReader::new(around.text, &RULE, nth, Some(table), found);
        let read = rule(reader);
        unread |= read.is_none();
        rules.extend(read);
    }
    if !given {
        return None;
    }
    if !unread {
        judge(&rules, sections, found);
    }
    let idle = !unread && rules.iter().all(|rule| rule.action == Action::Pass);
    let mut t = sections.one(&INTERCEPTION, found);
    let device: Option<PathBuf> = t.maybe("watchdog_device");
    let device = device.map(|device| around.path(device));
    if around.files == super::FileUse::Look
        && let Some(device) = &device
        && !device.exists()
    {
        t.object(
            "watchdog_device",
            format!("there is no {}; the kernel module of the machine's watchdog makes it (softdog, if it has none)", device.display()),
        );
    }
    if idle {
        t.warn(
            "mode",
            "no [[rule]] says anything but pass, so nothing is touched; for example: [[rule]] with action = \"intercept\"",
        );
    }
    Some(Interception { watchdog_device: device, ..standing(t, rules) })
}

fn standing(mut t: TableReader<'_, '_>, rules: Vec<RuleConfig>) -> Interception {
    let mode = t.get("mode", Standing::Routed);
    let interfaces: Option<Vec<InterfaceName>> = t.need("interfaces");
    if interfaces.as_ref().is_some_and(Vec::is_empty) {
        t.object(
            "interfaces",
            "it is empty; allowed: at least one; for example: interfaces = [\"lan0\", \"wan0\"]",
        );
    }
    let bridge: Option<InterfaceName> = match mode {
        Standing::Bridge => t.need("bridge"),
        Standing::Routed | Standing::Host => t.maybe("bridge"),
    };
    let tagged = t.get("tagged", false);
    let host = t.get("host", HostSide::Both);
    for (key, of) in [("bridge", Standing::Bridge), ("tagged", Standing::Bridge), ("host", Standing::Host)] {
        if t.says(key) && mode != of {
            t.warn(key, format!("has no effect, because mode is not {}", quoted(of.word())));
        }
    }
    Interception {
        mode,
        interfaces: interfaces.unwrap_or_default(),
        bridge,
        tagged,
        host,
        queue: t.get("queue", Port(7782)).0,
        probe: t.get("probe", ProbeManner::OnSyn),
        refresh: t.get("refresh", Refresh::WhenStale),
        entry_ttl: entry_ttl(&mut t),
        ack: t.get("ack", Ack::Isn),
        answer: t.get("answer", Answer::Auto),
        option_kind: option_kind(&mut t),
        watchdog_device: None,
        bypass_command: t.get("bypass_command", Vec::new()),
        rules,
    }
}

fn entry_ttl(t: &mut TableReader<'_, '_>) -> Duration {
    let given = t.get("entry_ttl", Duration::from_secs(60));
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&given) {
        let given = show_time(given);
        t.object(
            "entry_ttl",
            format!("{given} is out of range; allowed: 1s to 1h; for example: entry_ttl = \"1m\""),
        );
    }
    given
}

fn rule(mut t: TableReader<'_, '_>) -> Option<RuleConfig> {
    let action: Option<Action> = t.need("action");
    let rule = RuleConfig {
        action: Action::Pass,
        existing: t.get("existing", Existing::Leave),
        clients: t.get("clients", Vec::new()),
        servers: t.get("servers", Vec::new()),
        client_ports: t.get("client_ports", Vec::new()),
        ports: t.get("ports", Vec::new()),
        interfaces: t.get("interfaces", Vec::new()),
        vlans: t.get("vlans", Vec::new()),
        protocol: t.maybe("protocol"),
        bpf: t.maybe("bpf"),
    };
    if rule.existing != Existing::Leave {
        match action {
            Some(Action::Pass | Action::Drop | Action::Deny) => {
                t.warn("existing", "has no effect, because action takes no connections");
            }
            Some(Action::Intercept | Action::InterceptSingle | Action::DropIfNoPeer) | None => {}
        }
    }
    action.map(|action| RuleConfig { action, ..rule })
}

/// What only a rule as a whole, or all of them, can have wrong.
fn judge(rules: &[RuleConfig], sections: &Sections<'_, '_>, found: &mut Found) {
    let built = rules.iter().map(|rule| rule.build(|_| Ingress(0), None)).collect();
    let Err(error) = RuleSet::new(built) else { return };
    let (nth, key) = match &error {
        RuleError::Families { rule, .. } => (rule.saturating_sub(1), "servers"),
        RuleError::UdpIntercepted { rule } => (rule.saturating_sub(1), "action"),
        RuleError::TooMany(_) | RuleError::Vlan(_) | _ => (0, "action"),
    };
    let place = sections.place(&RULE, nth, key);
    found.problems.push(Problem::error(place, format!("[[rule]]: {key}: {error}")));
}

impl RuleConfig {
    /// The rule, with `ingress` as the number of an interface.
    pub(crate) fn build(
        &self,
        ingress: impl Fn(&InterfaceName) -> Ingress,
        program: Option<discovery_core::rule::Program>,
    ) -> Rule {
        let mut rule = Rule::new(self.action).existing(self.existing);
        rule = self.clients.iter().fold(rule, |rule, prefix| rule.client(*prefix));
        rule = self.servers.iter().fold(rule, |rule, prefix| rule.server(*prefix));
        rule = self.client_ports.iter().fold(rule, |rule, ports| rule.client_ports(*ports));
        rule = self.ports.iter().fold(rule, |rule, ports| rule.server_ports(*ports));
        rule = self.vlans.iter().fold(rule, |rule, vlan| rule.vlan(*vlan));
        if !self.interfaces.is_empty() {
            rule = rule.ingress(self.interfaces.iter().map(ingress));
        }
        if let Some(protocol) = self.protocol {
            rule = rule.protocol(protocol);
        }
        match program {
            Some(program) => rule.program(program),
            None => rule,
        }
    }
}

/// Reads `[link]` and its peers. Without the section there is a link when the path is stood on.
pub(super) fn link(
    sections: &Sections<'_, '_>,
    around: &Around<'_>,
    state_dir: &Path,
    stands: bool,
    found: &mut Found,
) -> Option<Link> {
    let given = sections.value(LINK.name).is_some();
    let mut peers: Vec<Peer> = Vec::new();
    for (nth, table) in sections.many(&PEER, found).into_iter().enumerate() {
        if !given && !stands && nth == 0 {
            let what =
                "[[peer]]: it is reached over the link, and there is neither [link] nor [interception]";
            found.problems.push(Problem::error(table.1, what));
        }
        let reader = TableReader::new(around.text, &PEER, nth, Some(table), found);
        peers.extend(peer(reader, &peers));
    }
    let mut authorities: Vec<Authority> = Vec::new();
    for (nth, table) in sections.many(&AUTHORITY, found).into_iter().enumerate() {
        if !given && !stands && nth == 0 {
            let what = "[[authority]]: its nodes are met over the link, and there is neither [link] nor [interception]";
            found.problems.push(Problem::error(table.1, what));
        }
        let reader = TableReader::new(around.text, &AUTHORITY, nth, Some(table), found);
        authorities.extend(authority(reader, around, &authorities));
    }
    if !given && !stands {
        return None;
    }
    let mut t = sections.one(&LINK, found);
    let listen = t.get("listen", SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), LINK_PORT));
    let identity = around.path(t.get("identity", state_dir.join("node")));
    if around.files == super::FileUse::Look && !identity.join("cert.pem").exists() {
        t.object(
            "identity",
            format!(
                "there is none in {}; `waypost token new` on the machine of the node authority makes one, and `waypost join` puts it here",
                identity.display()
            ),
        );
    }
    let advertise: Vec<SocketAddr> = t.get("advertise", Vec::new());
    if let Some(nobody) = advertise.iter().find(|address| address.ip().is_unspecified()) {
        t.object("advertise", format!("{nobody} is no address that another node could reach"));
    }
    let revoked: Vec<NodeId> = t.get("revoked", Vec::new());
    if let Some(both) = peers.iter().find(|peer| revoked.contains(&peer.id)) {
        t.object("revoked", format!("{} is a [[peer]] of this file too", quoted(both.id.as_str())));
    }
    Some(Link { listen, identity, advertise, revoked, peers, authorities })
}

/// Of the dynamic range; nobody else's.
pub(crate) const LINK_PORT: u16 = 7782;

fn peer(mut t: TableReader<'_, '_>, others: &[Peer]) -> Option<Peer> {
    let id: Option<NodeId> = t.need("id");
    if let Some(id) = &id
        && others.iter().any(|other| other.id == *id)
    {
        t.object("id", format!("{} is the id of another [[peer]]; ids must differ", quoted(id.as_str())));
    }
    let address: Option<SocketAddr> = t.maybe("address");
    let servers: Vec<Prefix> = t.get("servers", Vec::new());
    if !servers.is_empty() && address.is_none() && !t.says("address") {
        t.object(
            "servers",
            "they are reached through this peer without asking the path, so its address must be known; add: address = \"192.0.2.1:7782\"",
        );
    }
    let given = t.get("preference", 0_u32);
    let preference = u8::try_from(given).unwrap_or_else(|_| {
        t.object(
            "preference",
            format!("{given} is too much; allowed: 0 to 255; for example: preference = 1"),
        );
        u8::MAX
    });
    let serves: Vec<Prefix> = t.get("serves", Vec::new());
    if !serves.is_empty() && address.is_none() && !t.says("address") {
        t.object("serves", "clients' nodes are told where it is; add: address = \"192.0.2.1:7782\"");
    }
    let others = others.iter().map(|other| &other.serves).find(|other| !other.is_empty());
    if !serves.is_empty() && others.is_some_and(|other| *other != serves) {
        t.object("serves", "another [[peer]] has others; a node tells of one list, so they must be the same");
    }
    if t.says("preference") && servers.is_empty() && serves.is_empty() {
        t.warn("preference", "has no effect, because there are neither servers nor serves");
    }
    let pin = t.maybe("pin");
    let may_open = t.get("may_open", Vec::new());
    let may_dial = t.get("may_dial", Vec::new());
    Some(Peer { id: id?, address, pin, servers, preference, serves, may_open, may_dial })
}

/// The TCP option in which probes travel.
pub(super) fn option_kind(t: &mut TableReader<'_, '_>) -> u8 {
    match t.get("option_kind", 253_u32) {
        254 => 254,
        253 => 253,
        other => {
            let what = format!(
                "{other} belongs to somebody else; allowed: 253, 254; for example: option_kind = 253"
            );
            t.object("option_kind", what);
            253
        }
    }
}

fn authority(mut t: TableReader<'_, '_>, around: &Around<'_>, others: &[Authority]) -> Option<Authority> {
    let name: Option<String> = t.need("name");
    if let Some(name) = &name
        && (name == OWN || others.iter().any(|other| other.name == *name))
    {
        t.object("name", format!("{} is the name of another one; names must differ", quoted(name)));
    }
    let certificate: Option<PathBuf> = t.need("certificate");
    let certificate = certificate.map(|certificate| around.path(certificate));
    if around.files == super::FileUse::Look
        && let Some(certificate) = &certificate
        && let Err(why) = holds_certificate(certificate)
    {
        t.object("certificate", format!("{} {why}", certificate.display()));
    }
    let servers: Option<Vec<Prefix>> = t.need("servers");
    if servers.as_ref().is_some_and(Vec::is_empty) {
        t.object("servers", "it is empty; allowed: at least one; for example: servers = [\"10.9.0.0/16\"]");
    }
    Some(Authority { name: name?, certificate: certificate?, servers: servers? })
}

fn holds_certificate(file: &Path) -> Result<(), String> {
    let pem = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    let mut all = CertificateDer::pem_slice_iter(&pem);
    let none =
        || "holds no certificate in PEM: it is the other organisation's ca.pem, of `waypost ca init --node`";
    all.next().and_then(Result::ok).map(drop).ok_or_else(|| none().to_owned())
}

/// What the authority of this node's own certificate is called.
pub(crate) const OWN: &str = "own";

/// What no section can see alone.
pub(super) fn across(
    interception: Option<&Interception>,
    link: Option<&Link>,
    node: &NodeId,
    sections: &Sections<'_, '_>,
    found: &mut Found,
) {
    for (nth, peer) in link.iter().flat_map(|link| link.peers.iter().enumerate()) {
        if peer.id == *node {
            let place: Place = sections.place(&PEER, nth, "id");
            let what = format!("[[peer]]: id: {} is this node", quoted(node.as_str()));
            found.problems.push(Problem::error(place, what));
        }
    }
    let Some(interception) = interception else { return };
    for (nth, rule) in interception.rules.iter().enumerate() {
        if interception.mode == Standing::Host && rule.existing != Existing::Leave {
            let what =
                "[[rule]]: existing: has no effect on a host, whose own connections cannot be taken over";
            found.problems.push(Problem::warning(sections.place(&RULE, nth, "existing"), what));
        }
        for name in &rule.interfaces {
            if !interception.interfaces.contains(name) {
                let place = sections.place(&RULE, nth, "interfaces");
                let what = format!(
                    "[[rule]]: interfaces: {} is not among those of [interception], so this rule never fits",
                    quoted(&name.0)
                );
                found.problems.push(Problem::error(place, what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partners_certificate_is_one() {
        let at = tempfile::tempdir().unwrap();
        let file = at.path().join("partner.pem");
        assert!(holds_certificate(&file).unwrap_err().starts_with("cannot be read"));
        std::fs::write(&file, "version = 1\n").unwrap();
        assert!(holds_certificate(&file).unwrap_err().starts_with("holds no certificate"));
        crate::identity::authority::NodeAuthority::create(at.path()).unwrap();
        assert_eq!(holds_certificate(&at.path().join("ca.pem")), Ok(()));
    }
}
