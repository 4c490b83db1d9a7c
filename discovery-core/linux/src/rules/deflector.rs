//! A deflector's connections in the kernel: what belongs to one is queued. Who belongs to one is told by primers, packets
//! of this machine's own that go nowhere.

use std::net::IpAddr;

use discovery_core::deflector::legs::PORTS;

use super::nft::{RAW, SYN, chain};
use super::plan::Plan;
use crate::marks::{PRIMER, TURNED};

/// What a deflector adds to a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deflecting {
    /// The proxies' addresses.
    pub proxies: Vec<IpAddr>,
    /// The port where they accept.
    pub proxy_port: u16,
}

/// What is kept when the rules are put in place anew: who is deflected is known to nobody else.
pub(super) const KEPT: &str = "deflected";

/// Sets and chains. They stand also while new connections flow past: those that were given to proxies go on.
pub(super) fn tables(plan: &Plan, deflecting: &Deflecting, from: &str) -> Vec<String> {
    let families: &[(&str, &str, &str)] =
        if plan.v6() { &[("4", "ip", "ipv4"), ("6", "ip6", "ipv6")] } else { &[("4", "ip", "ipv4")] };
    let (mut lines, mut pre, mut out, mut unturned) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mark = format!("meta mark set meta mark | {TURNED:#x}");
    let left = format!("meta mark & {TURNED:#x} == {TURNED:#x}");
    for (digit, ip, family) in families {
        lines.push(format!("  set {KEPT}{digit} {{"));
        lines.push(format!("    type {family}_addr . inet_service . {family}_addr . inet_service"));
        lines.push("    size 131072".to_owned());
        lines.push("    flags dynamic,timeout".to_owned());
        lines.push("    timeout 2h10m".to_owned());
        lines.push("  }".to_owned());
        let there = format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport");
        let back = format!("{ip} daddr . tcp dport . {ip} saddr . tcp sport");
        let set = format!("@deflected{digit}");
        pre.push(format!(
            "{from} meta nfproto {family} {there} {set} update {set} {{ {there} }} {mark} notrack accept"
        ));
        out.push(format!(
            "meta mark & {PRIMER:#x} == {PRIMER:#x} meta nfproto {family} update {set} {{ {there} }} update {set} {{ {back} }} drop"
        ));
        // Nobody has looked at it. A SYN begins a connection that flows past, whatever went between these ends before.
        unturned.push(format!(
            "{left} meta nfproto {family} {SYN} delete {set} {{ {there} }} delete {set} {{ {back} }} accept"
        ));
        let proxies = deflecting.proxies.iter().filter(|proxy| proxy.is_ipv4() == (*ip == "ip"));
        for proxy in proxies {
            let of = format!("{from} {ip} saddr {proxy}");
            pre.push(format!("{of} tcp sport {} {mark} notrack accept", deflecting.proxy_port));
            let (low, high) = (PORTS.start(), PORTS.end());
            pre.push(format!("{of} tcp dport {low}-{high} fib daddr type local {mark} notrack accept"));
        }
    }
    // Half of a deflected connection must not reach the other end as it is.
    unturned.push(format!("{left} meta l4proto tcp drop"));
    lines.extend(chain("deflected", "filter hook prerouting", RAW - 10, &pre));
    lines.extend(chain("unturned", "filter hook prerouting", RAW + 10, &unturned));
    lines.extend(chain("primers", "filter hook output", RAW - 10, &out));
    lines
}

/// What is queued, for nft.
pub(super) fn nft() -> String {
    format!("meta l4proto tcp meta mark & {TURNED:#x} == {TURNED:#x}")
}

/// The same for iptables.
pub(super) fn xtables() -> String {
    format!("-p tcp -m mark --mark {TURNED:#x}/{TURNED:#x}")
}
