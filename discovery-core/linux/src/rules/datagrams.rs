//! UDP flows in the kernel: the first datagram of a flow is queued, and what follows one that passed is not. A table of
//! our own and not conntrack's, which would begin to track everything that passes for the sake of this.

use super::nft::{RAW, chain};
use super::plan::{Mode, Plan};
use crate::marks::{BEGINS, PASSED};

/// The counter of datagrams that passed.
pub(super) const COUNTER: &str = "datagrams";

/// Whether UDP flows are ruled on. A machine's own are not on the path.
pub(super) fn ruled(plan: &Plan) -> bool {
    plan.spec.datagrams
        && match plan.spec.mode {
            Mode::Routed { .. } | Mode::Bridge { .. } => true,
            Mode::Host { .. } => false,
        }
}

/// Sets and chains: who has passed is remembered behind the queue, where only what passed comes by.
pub(super) fn tables(plan: &Plan, from: &str) -> Vec<String> {
    let families: &[(&str, &str, &str)] =
        if plan.v6() { &[("4", "ip", "ipv4"), ("6", "ip6", "ipv6")] } else { &[("4", "ip", "ipv4")] };
    let mut lines = vec![format!("  counter {COUNTER} {{"), "  }".to_owned()];
    let port = plan.spec.probe_port;
    let (mut known, mut passed) =
        (vec![format!("udp sport {port} udp dport {port} accept")], Vec::<String>::new());
    for (digit, ip, family) in families {
        lines.push(format!("  set datagrams{digit} {{"));
        lines.push(format!("    type {family}_addr . inet_service . {family}_addr . inet_service"));
        lines.push("    size 131072".to_owned());
        lines.push("    flags dynamic,timeout".to_owned());
        lines.push("    timeout 60s".to_owned());
        lines.push("  }".to_owned());
        let there = format!("{ip} saddr . udp sport . {ip} daddr . udp dport");
        let back = format!("{ip} daddr . udp dport . {ip} saddr . udp sport");
        let set = format!("@datagrams{digit}");
        // Either direction keeps the flow.
        let noted =
            format!("update {set} {{ {there} }} update {set} {{ {back} }} counter name \"{COUNTER}\"");
        known.push(format!("{from} meta nfproto {family} {there} {set} {noted} accept"));
        passed.push(format!(
            "meta mark & {PASSED:#x} == {PASSED:#x} meta nfproto {family} udp length >= 8 {noted}"
        ));
    }
    known
        .push(format!("{from} udp length >= 8 fib daddr type unicast meta mark set meta mark | {BEGINS:#x}"));
    let both = BEGINS | PASSED;
    passed.push(format!("meta mark & {both:#x} != 0x0 meta mark set meta mark & {:#x}", !both));
    lines.extend(chain("datagrams_known", "filter hook prerouting", RAW - 10, &known));
    lines.extend(chain("datagrams_passed", "filter hook prerouting", RAW + 10, &passed));
    lines
}

/// What nft's own queue statement stands behind.
pub(super) fn nft(plan: &Plan) -> Vec<String> {
    let port = plan.spec.probe_port;
    let mut rules = Vec::new();
    if plan.spec.probing {
        rules.push(format!("udp sport {port} udp dport {port}"));
    }
    if ruled(plan) {
        rules.push(format!("meta l4proto udp meta mark & {BEGINS:#x} == {BEGINS:#x}"));
    }
    rules
}

/// The same for iptables.
pub(super) fn xtables(plan: &Plan) -> Vec<String> {
    let port = plan.spec.probe_port;
    let mut rules = Vec::new();
    if plan.spec.probing {
        rules.push(format!("-p udp -m udp --sport {port} --dport {port}"));
    }
    if ruled(plan) {
        rules.push(format!("-p udp -m mark --mark {BEGINS:#x}/{BEGINS:#x}"));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests_support::{bridge, datagrams, routed};
    use super::*;

    #[test]
    fn only_what_begins_is_queued_and_only_what_passed_is_remembered() {
        let plan = datagrams();
        let text = tables(&plan, "iifname { \"lan0\", \"wan0\" }").join("\n");
        let known = "meta nfproto ipv4 ip saddr . udp sport . ip daddr . udp dport @datagrams4 update";
        assert!(text.contains(known), "{text}");
        assert!(text.contains("priority -310") && text.contains("priority -290"), "{text}");
        assert!(text.contains("mark & 0xffffbeff"), "{text}");
        // Never by what only the rules before the queue say: what overflows it has that too.
        let noted: Vec<_> = text.lines().filter(|line| line.contains("udp length >= 8 update")).collect();
        assert!(
            noted.len() == 2 && noted.iter().all(|line| line.contains("mark & 0x4000 == 0x4000 meta")),
            "{text}"
        );
        assert!(nft(&plan).iter().all(|rule| rule.contains("udp")) && nft(&plan).len() == 2);
        assert_eq!(
            xtables(&plan),
            ["-p udp -m udp --sport 7783 --dport 7783", "-p udp -m mark --mark 0x100/0x100"]
        );
        assert_eq!(xtables(&routed()).len(), 1);
        assert!(!ruled(&bridge()));
    }
}
