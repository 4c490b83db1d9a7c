//! The nftables side: delivery of what is ours, and, where the kernel can, the queue.
//!
//! One transaction each: a table is made if it is missing, deleted, and made anew, so that no packet meets half of it.

use std::fmt::Write as _;

use super::existing;
use super::plan::{Extent, Instance, Interface, Mode, Plan};
use super::{datagrams, deflector};
use crate::marks::{DELIVER, EXISTING, FORGED, INJECTED, OWN_CONNECT, YOUNG};

/// What only the machine knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The bridge's own address.
    pub(super) bridge_mac: Option<[u8; 6]>,
}

/// The name of an instance's tables.
pub(super) fn table(instance: &Instance) -> String {
    format!("waypost_{instance}")
}

/// Whether the instance has a table in the family `bridge`, too.
pub(super) fn has_bridge_table(plan: &Plan) -> bool {
    matches!(plan.spec.mode, Mode::Bridge { .. })
}

/// Puts the tables in place of whatever stood there. `queue`: with the queue rules.
pub(super) fn install(plan: &Plan, facts: Facts, extent: Extent, queue: bool) -> String {
    format!("{}{}", remove(&plan.spec.instance), tables(plan, facts, extent, queue))
}

/// The same, but what stands in the table `inet`, as listed, goes piece by piece: a deflector's sets are kept. None
/// without such.
pub(super) fn renew(plan: &Plan, facts: Facts, extent: Extent, queue: bool, listing: &str) -> Option<String> {
    let kept = |name: &str| name.starts_with(deflector::KEPT);
    let pieces: Vec<(&str, &str)> = listing.lines().filter_map(piece).collect();
    if plan.spec.deflecting.is_none() || !pieces.iter().any(|(kind, name)| *kind == "set" && kept(name)) {
        return None;
    }
    let name = table(&plan.spec.instance);
    let mut text = format!("flush table inet {name}\n");
    for (kind, piece) in pieces {
        if !(kind == "set" && kept(piece)) {
            let _ = writeln!(text, "delete {kind} inet {name} {piece}");
        }
    }
    let _ = writeln!(text, "add table bridge {name}\ndelete table bridge {name}");
    text.push_str(&tables(plan, facts, extent, queue));
    Some(text)
}

/// A line with which a part of a table begins: `\tset name {`.
fn piece(line: &str) -> Option<(&str, &str)> {
    let (kind, rest) = line.strip_prefix('\t')?.strip_suffix(" {")?.split_once(' ')?;
    let known = matches!(kind, "chain" | "set" | "map" | "counter");
    (known && !rest.contains(' ')).then_some((kind, rest))
}

fn tables(plan: &Plan, facts: Facts, extent: Extent, queue: bool) -> String {
    let mut text = String::new();
    let name = table(&plan.spec.instance);
    let mut put = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    put(&format!("table inet {name} {{"));
    let queueing = queue && extent == Extent::Full;
    if let Mode::Host { host, .. } = &plan.spec.mode
        && host.takes_own_servers()
        && plan.spec.probing
    {
        young(plan).iter().for_each(|line| put(line));
    }
    if extent == Extent::Full && datagrams::ruled(plan) {
        datagrams::tables(plan, &from(plan)).iter().for_each(|line| put(line));
    }
    if let Some(deflecting) = &plan.spec.deflecting {
        deflector::tables(plan, deflecting, &from(plan)).iter().for_each(|line| put(line));
    }
    divert(plan, extent).iter().for_each(|line| put(line));
    if extent == Extent::Full {
        existing::chains(plan, &from(plan)).iter().for_each(|line| put(line));
    }
    if queueing {
        queue_in(plan).iter().for_each(|line| put(line));
    } else if queue && plan.spec.deflecting.is_some() {
        let rule = format!("{} queue flags bypass to {}", deflector::nft(), plan.spec.queue);
        chain("queue_in", "filter hook prerouting", RAW, &[rule]).iter().for_each(|line| put(line));
    }
    output(plan, queueing).iter().for_each(|line| put(line));
    own_errors().iter().for_each(|line| put(line));
    if let Mode::Host { host, .. } = plan.spec.mode
        && host.takes_own_connects()
    {
        own_packets().iter().for_each(|line| put(line));
    }
    put("}");
    if let (Mode::Bridge { ports, .. }, Some(mac)) = (&plan.spec.mode, facts.bridge_mac) {
        put(&format!("table bridge {name} {{"));
        up_from_ports(ports, mac).iter().for_each(|line| put(line));
        put("}");
    }
    text
}

/// Removes the instance's tables, whether they stand or not.
pub(super) fn remove(instance: &Instance) -> String {
    let name = table(instance);
    let mut text = String::new();
    for family in ["inet", "bridge"] {
        // Making a table that stands is no error, deleting one that does not is.
        let _ = writeln!(text, "add table {family} {name}\ndelete table {family} {name}");
    }
    text
}

pub(super) fn chain(name: &str, hook: &str, priority: i32, rules: &[String]) -> Vec<String> {
    let mut lines =
        vec![format!("  chain {name} {{"), format!("    type {hook} priority {priority}; policy accept;")];
    lines.extend(rules.iter().map(|rule| format!("    {rule}")));
    lines.push("  }".to_owned());
    lines
}

/// Hands injected SYNs to the listener and a transparent socket's packets to the own stack.
///
/// `socket transparent` alone: with a further key (`wildcard`) it does not match a connection whose last handshake
/// packet is still missing. ICMP too: else path MTU discovery of a transparent connection fails.
fn divert(plan: &Plan, extent: Extent) -> Vec<String> {
    let mut rules = Vec::new();
    if extent == Extent::Full {
        let injected = format!("iifname \"lo\" meta mark & {INJECTED:#x} == {INJECTED:#x}");
        let v4 = plan.spec.listen.v4;
        rules.push(format!(
            "{injected} meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:{v4} accept"
        ));
        if let Some(v6) = plan.spec.listen.v6 {
            rules.push(format!(
                "{injected} meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:{v6} accept"
            ));
        }
    }
    rules.push(format!(
        "meta l4proto {{ tcp, icmp, ipv6-icmp }} socket transparent 1 meta mark set meta mark | {DELIVER:#x} accept"
    ));
    chain("divert", "filter hook prerouting", MANGLE, &rules)
}

pub(super) const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
const SYN_ACK: &str = "tcp flags & (fin | syn | rst | ack) == (syn | ack)";
/// A reset that acknowledges nothing: how a client answers a SYN-ACK that it did not ask for.
const RST: &str = "tcp flags & (fin | syn | rst | ack) == rst";
/// What comes back to a probe of our own: an answer, or the refusal of a port where nobody listens.
const BACK: &str = "tcp flags & (syn | rst) != 0 fib daddr type local";

/// Where traffic comes in.
fn from(plan: &Plan) -> String {
    let from = match &plan.spec.mode {
        // Behind br_netfilter the input interface is the bridge; the port travels with the packet.
        Mode::Bridge { bridge, .. } => names(std::slice::from_ref(bridge)),
        Mode::Routed { interfaces } | Mode::Host { interfaces, .. } => names(interfaces),
    };
    format!("iifname {from}")
}

fn queue_in(plan: &Plan) -> Vec<String> {
    let queue = format!("queue flags bypass to {}", plan.spec.queue);
    let routed = match &plan.spec.mode {
        Mode::Routed { .. } | Mode::Bridge { .. } => true,
        Mode::Host { .. } => false,
    };
    let from = from(plan);
    let mut rules = Vec::new();
    if plan.spec.deflecting.is_some() {
        rules.push(format!("{} {queue}", deflector::nft()));
    }
    if !plan.existing.is_empty() {
        rules.push(format!("meta mark & {EXISTING:#x} == {EXISTING:#x} {queue}"));
    }
    if plan.spec.probing {
        rules.push(format!("{from} tcp sport {} {BACK} {queue}", plan.spec.probe_port));
    }
    if routed {
        let away = "fib daddr type != local";
        rules.push(format!("{from} {SYN} {away} {queue}"));
        if plan.spec.probing {
            rules.push(format!("{from} {SYN_ACK} {away} {queue}"));
            rules.push(format!("{from} {RST} {away} {queue}"));
        }
    }
    if let Mode::Host { host, .. } = plan.spec.mode
        && plan.spec.probing
    {
        if host.takes_own_servers() {
            rules.push(format!("{from} {SYN} tcp option {} exists {queue}", plan.spec.probe_kind));
            rules.push(format!("{from} {SYN} meta mark & {YOUNG:#x} == {YOUNG:#x} {queue}"));
        }
        if host.takes_own_connects() {
            rules.push(format!("{from} {SYN_ACK} {queue}"));
        }
    }
    rules.extend(datagrams::nft(plan).into_iter().map(|rule| format!("{from} {rule} {queue}")));
    chain("queue_in", "filter hook prerouting", RAW, &rules)
}

fn output(plan: &Plan, queueing: bool) -> Vec<String> {
    let mut rules = vec![format!("meta mark & {FORGED:#x} == {FORGED:#x} notrack accept")];
    if queueing {
        let queue = format!("queue flags bypass to {}", plan.spec.queue);
        let away = "oifname != \"lo\"";
        if plan.spec.probing {
            rules.push(format!("{away} meta mark & {OWN_CONNECT:#x} == {OWN_CONNECT:#x} {SYN} {queue}"));
        }
        if let Mode::Host { host, .. } = plan.spec.mode
            && host.takes_own_connects()
        {
            rules.push(format!("{away} meta mark 0x0 {SYN} {queue}"));
        }
    }
    chain("out", "filter hook output", RAW, &rules)
}

/// What this machine's own stack says about a connection of ours ('nobody answers for that address') is addressed to
/// the client. It carries the connection's mark (`fwmark_reflect`), and so comes back to our socket.
fn own_errors() -> Vec<String> {
    let rule = format!(
        "meta l4proto {{ icmp, ipv6-icmp }} meta mark & {OWN_CONNECT:#x} == {OWN_CONNECT:#x} meta mark set meta mark | {DELIVER:#x} accept"
    );
    chain("own_errors", "route hook output", MANGLE, &[rule])
}

/// A client's own packets of a connection that was taken: its socket is not transparent, so its packets are known
/// by the connection's mark, which the injected SYN set.
fn own_packets() -> Vec<String> {
    let rules = [
        format!("meta mark & {INJECTED:#x} == {INJECTED:#x} meta l4proto tcp ct mark set {TAKEN:#x} accept"),
        format!(
            "ct mark {TAKEN:#x} ct direction original meta l4proto tcp meta mark set meta mark | {DELIVER:#x} accept"
        ),
    ];
    chain("own", "route hook output", MANGLE, &rules)
}

/// Tuples of connections opened early a moment ago, filled by their own SYNs: only their plain SYNs are of interest.
fn young(plan: &Plan) -> Vec<String> {
    let families: &[(&str, &str, &str)] =
        if plan.v6() { &[("4", "ip", "ipv4"), ("6", "ip6", "ipv6")] } else { &[("4", "ip", "ipv4")] };
    let mut lines = Vec::new();
    let (mut out, mut pre) = (Vec::new(), Vec::new());
    for (digit, keyword, family) in families {
        let tuple = format!("{keyword} saddr . tcp sport . {keyword} daddr . tcp dport");
        lines.push(format!("  set young{digit} {{"));
        lines.push(format!("    type {family}_addr . inet_service . {family}_addr . inet_service"));
        lines.push("    size 65536".to_owned());
        lines.push("    flags dynamic,timeout".to_owned());
        lines.push("    timeout 10s".to_owned());
        lines.push("  }".to_owned());
        let own = format!("meta mark & {OWN_CONNECT:#x} == {OWN_CONNECT:#x}");
        out.push(format!("{own} meta nfproto {family} {SYN} update @young{digit} {{ {tuple} }}"));
        pre.push(format!(
            "meta nfproto {family} {SYN} {tuple} @young{digit} meta mark set meta mark | {YOUNG:#x}"
        ));
    }
    lines.extend(chain("young_out", "filter hook output", RAW - 10, &out));
    lines.extend(chain("young_in", "filter hook prerouting", RAW - 10, &pre));
    lines
}

/// Frames whose packet was marked for delivery go up to the own stack instead of on to the other port. Behind
/// br_netfilter, which runs the inet chains at priority 0.
fn up_from_ports(ports: &[Interface], mac: [u8; 6]) -> Vec<String> {
    let mac: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
    let rule = format!(
        "iifname {} meta mark & {DELIVER:#x} == {DELIVER:#x} meta pkttype set host ether daddr set {} accept",
        names(ports),
        mac.join(":")
    );
    chain("up", "filter hook prerouting", 10, &[rule])
}

fn names(interfaces: &[Interface]) -> String {
    let quoted: Vec<String> = interfaces.iter().map(|interface| format!("\"{interface}\"")).collect();
    match quoted.as_slice() {
        [one] => one.clone(),
        several => format!("{{ {} }}", several.join(", ")),
    }
}

pub(super) const RAW: i32 = -300;
const MANGLE: i32 = -150;
/// A value of our own, so that nobody else's connection mark is taken for it.
const TAKEN: u32 = 0x5750_0001;

#[cfg(test)]
mod tests {
    use super::super::plan::Host;
    use super::super::plan::tests_support::{bridge, host, routed};
    use super::*;

    #[test]
    fn routed_with_the_queue() {
        let expected = r#"add table inet waypost_a
delete table inet waypost_a
add table bridge waypost_a
delete table bridge waypost_a
table inet waypost_a {
  chain divert {
    type filter hook prerouting priority -150; policy accept;
    iifname "lo" meta mark & 0x3 == 0x3 meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:12345 accept
    iifname "lo" meta mark & 0x3 == 0x3 meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:12346 accept
    meta l4proto { tcp, icmp, ipv6-icmp } socket transparent 1 meta mark set meta mark | 0x1 accept
  }
  chain queue_in {
    type filter hook prerouting priority -300; policy accept;
    iifname { "lan0", "wan0" } tcp sport 7783 tcp flags & (syn | rst) != 0 fib daddr type local queue flags bypass to 10
    iifname { "lan0", "wan0" } tcp flags & (fin | syn | rst | ack) == syn fib daddr type != local queue flags bypass to 10
    iifname { "lan0", "wan0" } tcp flags & (fin | syn | rst | ack) == (syn | ack) fib daddr type != local queue flags bypass to 10
    iifname { "lan0", "wan0" } tcp flags & (fin | syn | rst | ack) == rst fib daddr type != local queue flags bypass to 10
    iifname { "lan0", "wan0" } udp sport 7783 udp dport 7783 queue flags bypass to 10
  }
  chain out {
    type filter hook output priority -300; policy accept;
    meta mark & 0x10 == 0x10 notrack accept
    oifname != "lo" meta mark & 0x20 == 0x20 tcp flags & (fin | syn | rst | ack) == syn queue flags bypass to 10
  }
  chain own_errors {
    type route hook output priority -150; policy accept;
    meta l4proto { icmp, ipv6-icmp } meta mark & 0x20 == 0x20 meta mark set meta mark | 0x1 accept
  }
}
"#;
        assert_eq!(install(&routed(), Facts::default(), Extent::Full, true), expected);
    }

    #[test]
    fn a_deflector_keeps_who_is_deflected() {
        let mut plan = routed();
        let proxies = vec![[10, 3, 0, 1].into()];
        plan.spec.deflecting = Some(super::super::Deflecting { proxies, proxy_port: 7784 });
        let listing = "table inet waypost_a {\n\tset deflected4 {\n\t\ttype ipv4_addr\n\t}\n\n\tset young4 {\n\t}\n\tchain out {\n\t\tct mark { 1 }\n\t}\n}\n";
        let text = renew(&plan, Facts::default(), Extent::Drain, true, listing).unwrap();
        let gone = "flush table inet waypost_a\ndelete set inet waypost_a young4\ndelete chain inet waypost_a out\nadd table bridge waypost_a\ndelete table bridge waypost_a\ntable inet waypost_a {\n";
        assert!(text.starts_with(gone), "{text}");
        for kept in ["chain deflected {", "chain primers {", "chain unturned {"] {
            assert!(text.contains(kept), "{text}");
        }
        assert_eq!(text.matches("queue flags bypass").count(), 1, "no new ones: {text}");
        assert!(text.contains("meta mark & 0x200 == 0x200 queue flags bypass to 10"), "{text}");
        assert_eq!(renew(&plan, Facts::default(), Extent::Full, true, ""), None, "nothing stands");
        assert_eq!(renew(&routed(), Facts::default(), Extent::Full, true, listing), None, "no deflector");
    }

    #[test]
    fn a_draining_node_keeps_only_what_its_connections_need() {
        let text = install(&routed(), Facts::default(), Extent::Drain, true);
        assert!(text.contains("socket transparent 1"), "{text}");
        assert!(!text.contains("tproxy") && !text.contains("queue"), "{text}");
    }

    #[test]
    fn a_bridge_sends_its_own_frames_up() {
        let facts = Facts { bridge_mac: Some([2, 0, 0, 0, 0, 0xab]) };
        let text = install(&bridge(), facts, Extent::Full, false);
        let rule = r#"    iifname { "p0", "p1" } meta mark & 0x1 == 0x1 meta pkttype set host ether daddr set 02:00:00:00:00:ab accept"#;
        assert!(text.contains(
            "table bridge waypost_a {\n  chain up {\n    type filter hook prerouting priority 10;"
        ));
        assert!(text.contains(rule), "{text}");
        assert!(!text.contains("queue"), "{text}");
        let queued = install(&bridge(), facts, Extent::Full, true);
        assert!(queued.contains(r#"iifname "br0" tcp flags"#), "{queued}");
        assert!(queued.contains(r#"iifname "br0" tcp sport 7783"#), "{queued}");
    }

    #[test]
    fn a_host_takes_its_own_connections_by_their_mark() {
        let text = install(&host(Host::Client), Facts::default(), Extent::Full, true);
        assert!(text.contains("ct mark set 0x57500001"), "{text}");
        assert!(text.contains("oifname != \"lo\" meta mark 0x0 tcp flags"), "{text}");
        assert!(!text.contains("young"), "{text}");
        let text = install(&host(Host::Server), Facts::default(), Extent::Full, true);
        assert!(text.contains("tcp option 253 exists") && text.contains("@young6"), "{text}");
        assert!(!text.contains("ct mark") && !text.contains("meta mark 0x0"), "{text}");
        let text = install(&host(Host::Both), Facts::default(), Extent::Full, true);
        assert!(text.contains("young") && text.contains("ct mark"), "{text}");
    }
}
