//! Segments of connections that stood before the node: which of them come to the queue.
//!
//! ```text
//!  from a client of such a rule, no SYN, RST or FIN ──known?──> on
//!     │                                             ──a socket of ours, or for this machine?──> on
//!     └──at most so many a second──marked EXISTING──> queue ──SETTLED──> known
//!                                                           └─WATCHED──> watched: each packet of it, both ways
//! ```
//! The sets are filled by the packets themselves, by the mark that the queue's verdict gives them: a connection costs no
//! call, and leaves the slow path with the packet that was decided. A SYN that passes makes its connection known. Rules
//! that are put in anew have empty sets: a packet that comes with the mark WATCHED shows that none was missed.
//!
//! Where a peer asks for a connection, its next packet may be long in coming, or its packets be known: a primer, a packet
//! of its addresses sent here, which never leaves, puts it into the set *asked*, which goes before *known*.

use std::net::IpAddr;

use super::nft::chain;
use super::plan::Plan;
use crate::marks::{ASKED, EXISTING, SETTLED, WATCHED};

/// What a rule about such connections names, as far as the kernel can look at it; the rest is asked in the queue. An
/// empty list is anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingFilter {
    /// Networks of clients.
    pub clients: Vec<(IpAddr, u8)>,
    /// Networks of servers.
    pub servers: Vec<(IpAddr, u8)>,
    /// First and last of some ports of clients.
    pub client_ports: Vec<(u16, u16)>,
    /// First and last of some ports of servers.
    pub server_ports: Vec<(u16, u16)>,
    /// All packets of some connections may have to be seen.
    pub watches: bool,
}

/// The sets and chains; nothing without filters.
pub(super) fn chains(plan: &Plan, from: &str) -> Vec<String> {
    if plan.existing.is_empty() {
        return Vec::new();
    }
    let families: &[Family] = if plan.v6() { &[V4, V6] } else { &[V4] };
    let watches = plan.existing.iter().any(|filter| filter.watches);
    let (mut lines, mut pre, mut post, mut out) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    lines.extend(families.iter().flat_map(|family| family.set("known", KNOWN_FOR)));
    if watches {
        lines.extend(families.iter().flat_map(|family| family.set("watched", WATCHED_FOR)));
        lines.extend(families.iter().flat_map(|family| family.set("asked", ASKED_FOR)));
        lines.push("  chain asked {".to_owned());
        lines.push("    socket transparent 1 return".to_owned());
        lines.push(format!("    meta mark set meta mark | {:#x}", EXISTING | WATCHED));
        lines.push("  }".to_owned());
        lines.push("  chain watched {".to_owned());
        for family @ Family { digit, .. } in families {
            let (is, tuple) = (family.is(), family.tuple());
            lines.push(format!("    {is} {tuple} @known{digit} return"));
            pre.push(format!("{from} {is} {tuple} @asked{digit} goto asked"));
            pre.push(format!("{from} {} {} @watched{digit} goto watched", family.is(), family.tuple()));
        }
        lines.push("    goto asked".to_owned());
        lines.push("  }".to_owned());
    }
    for family in families {
        for filter in plan.existing.iter().filter_map(|filter| family.matches(filter)) {
            let (digit, tuple, back) = (family.digit, family.tuple(), family.back());
            let fits = format!("{from} {filter}");
            pre.push(format!(
                "{fits} {SYN} update @known{digit} {{ {tuple} }} update @known{digit} {{ {back} }} return"
            ));
            // Each packet keeps its connection known.
            pre.push(format!("{fits} {tuple} @known{digit} update @known{digit} {{ {tuple} }} return"));
            pre.push(format!("{fits} socket transparent 1 return"));
            pre.push(format!(
                "{fits} {MIDDLE} {AWAY} limit rate {RATE} meta mark set meta mark | {EXISTING:#x} return"
            ));
        }
        let both = |name: &str, marked: String| {
            let (is, digit, tuple, back) = (family.is(), family.digit, family.tuple(), family.back());
            format!(
                "{is} meta l4proto tcp meta mark {marked} update @{name}{digit} {{ {tuple} }} update @{name}{digit} {{ {back} }}"
            )
        };
        let bit = |mark: u32| format!("& {mark:#x} == {mark:#x}");
        post.push(both("known", bit(SETTLED)));
        if watches {
            post.push(both("watched", bit(WATCHED)));
            // No other mark: the bits of others' own packets may mean anything.
            out.push(format!("{} drop", both("asked", format!("{ASKED:#x}"))));
        }
    }
    let all = EXISTING | SETTLED | WATCHED;
    post.push(format!("meta mark & {all:#x} != 0x0 meta mark set meta mark & {:#x}", !all));
    lines.extend(chain("existing", "filter hook prerouting", BEFORE_QUEUE, &pre));
    if watches {
        lines.extend(chain("asks", "filter hook output", BEFORE_QUEUE, &out));
    }
    lines.extend(chain("settled", "filter hook prerouting", BEHIND_QUEUE, &post));
    lines
}

struct Family {
    digit: u8,
    keyword: &'static str,
    name: &'static str,
}

const V4: Family = Family { digit: 4, keyword: "ip", name: "ipv4" };
const V6: Family = Family { digit: 6, keyword: "ip6", name: "ipv6" };

impl Family {
    fn is(&self) -> String {
        format!("meta nfproto {}", self.name)
    }

    fn tuple(&self) -> String {
        let keyword = self.keyword;
        format!("{keyword} saddr . tcp sport . {keyword} daddr . tcp dport")
    }

    fn back(&self) -> String {
        let keyword = self.keyword;
        format!("{keyword} daddr . tcp dport . {keyword} saddr . tcp sport")
    }

    fn set(&self, name: &str, timeout: &str) -> [String; 6] {
        let Self { digit, name: family, .. } = self;
        [
            format!("  set {name}{digit} {{"),
            format!("    type {family}_addr . inet_service . {family}_addr . inet_service"),
            "    size 131072".to_owned(),
            "    flags dynamic,timeout".to_owned(),
            format!("    timeout {timeout}"),
            "  }".to_owned(),
        ]
    }

    /// None when the filter names only networks of the other family.
    fn matches(&self, filter: &ExistingFilter) -> Option<String> {
        let mut text = format!("{} meta l4proto tcp", self.is());
        for (field, networks) in [("saddr", &filter.clients), ("daddr", &filter.servers)] {
            let own: Vec<String> = networks
                .iter()
                .filter(|(address, _)| address.is_ipv4() == (self.digit == 4))
                .map(|(address, bits)| format!("{address}/{bits}"))
                .collect();
            match own.as_slice() {
                [] if networks.is_empty() => {}
                [] => return None,
                own => text.push_str(&format!(" {} {field} {}", self.keyword, union(own))),
            }
        }
        for (field, ports) in [("sport", &filter.client_ports), ("dport", &filter.server_ports)] {
            let ports: Vec<String> = ports.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            if !ports.is_empty() {
                text.push_str(&format!(" tcp {field} {}", union(&ports)));
            }
        }
        Some(text)
    }
}

/// One value, or several that may overlap.
fn union(values: &[String]) -> String {
    match values {
        [one] => one.clone(),
        several => format!("{{ {} }}", several.join(", ")),
    }
}

const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// Neither a beginning nor an end.
const MIDDLE: &str = "tcp flags & (fin | syn | rst | ack) == ack";
/// This machine's own connections, its links among them, are never in its way.
const AWAY: &str = "fib daddr type != local";
const BEFORE_QUEUE: i32 = -320;
const BEHIND_QUEUE: i32 = -290;
/// A connection that says nothing for so long is asked about again.
const KNOWN_FOR: &str = "2h";
/// Longer than anybody watches.
const WATCHED_FOR: &str = "30s";
/// As long as somebody watches, and then as long as a straggler may come.
const ASKED_FOR: &str = "15s";
/// A node that is put onto a busy path sees thousands of connections at once. Those that are not asked about now are a
/// moment later.
const RATE: &str = "2000/second burst 200 packets";

#[cfg(test)]
mod tests {
    use super::super::plan::tests_support::routed;
    use super::*;

    #[test]
    fn without_a_rule_nobody_looks() {
        assert_eq!(chains(&routed(), "iifname \"lan0\""), Vec::<String>::new());
    }

    #[test]
    fn only_what_the_rules_name_is_looked_at() {
        let filter = ExistingFilter {
            clients: vec![([10, 1, 0, 0].into(), 16), ([10, 9, 0, 0].into(), 16)],
            server_ports: vec![(143, 143), (8000, 8100)],
            ..ExistingFilter::default()
        };
        let text = chains(&routed().with_existing(vec![filter]), "iifname \"lan0\"").join("\n");
        let fits = "    iifname \"lan0\" meta nfproto ipv4 meta l4proto tcp ip saddr { 10.1.0.0/16, 10.9.0.0/16 } tcp dport { 143-143, 8000-8100 } ";
        assert_eq!(text.matches(fits).count(), 4, "{text}");
        assert!(!text.contains("iifname \"lan0\" meta nfproto ipv6"), "{text}");
        assert!(!text.contains("watched"), "{text}");
        assert!(text.contains("meta mark & 0x3800 != 0x0 meta mark set meta mark & 0xffffc7ff"), "{text}");
    }

    #[test]
    fn what_is_watched_is_seen_both_ways_and_not_when_it_is_ours() {
        let filter = ExistingFilter { watches: true, ..ExistingFilter::default() };
        let text = chains(&routed().with_existing(vec![filter]), "iifname \"lan0\"").join("\n");
        assert!(text.contains("iifname \"lan0\" meta nfproto ipv6 ip6 saddr . tcp sport . ip6 daddr . tcp dport @watched6 goto watched"), "{text}");
        let watched = text.split("chain watched {").nth(1).unwrap();
        assert!(watched.find("@known4 return").unwrap() < watched.find("goto asked").unwrap(), "{text}");
    }

    #[test]
    fn what_a_peer_asks_for_is_seen_though_it_is_known_and_its_primer_never_leaves() {
        let filter = ExistingFilter { watches: true, ..ExistingFilter::default() };
        let text = chains(&routed().with_existing(vec![filter]), "iifname \"lan0\"").join("\n");
        let existing = text.split("chain existing {").nth(1).unwrap();
        assert!(
            existing.find("@asked4 goto asked").unwrap() < existing.find("@watched4 goto").unwrap(),
            "{text}"
        );
        assert!(existing.find("@asked4 goto asked").unwrap() < existing.find("@known4").unwrap(), "{text}");
        let asks = text.split("chain asks {").nth(1).unwrap();
        let primer = "meta nfproto ipv4 meta l4proto tcp meta mark 0x2001 update @asked4 { ip saddr . tcp sport . ip daddr . tcp dport } update @asked4 { ip daddr . tcp dport . ip saddr . tcp sport } drop";
        assert!(asks.contains(primer) && asks.contains("hook output"), "{text}");
        let text =
            chains(&routed().with_existing(vec![ExistingFilter::default()]), "iifname \"lan0\"").join("\n");
        assert!(!text.contains("asked"), "{text}");
    }

    #[test]
    fn what_is_for_this_machine_is_never_asked_about() {
        use super::super::plan::tests_support::bridge;
        for (plan, from) in [(routed(), "iifname \"lan0\""), (bridge(), "iifname \"br0\"")] {
            let filter = ExistingFilter { watches: true, ..ExistingFilter::default() };
            let lines = chains(&plan.with_existing(vec![filter]), from);
            let asked: Vec<_> = lines.iter().filter(|line| line.contains("meta mark | 0x800 ")).collect();
            assert_eq!(asked.len(), 2, "one for each family: {lines:?}");
            for line in asked {
                assert!(line.contains("== ack fib daddr type != local limit rate"), "{line}");
            }
        }
    }

    #[test]
    fn whoever_fills_the_queue_takes_what_is_marked_and_a_draining_node_nothing() {
        use super::super::plan::Extent;
        use super::super::{nft, xtables};
        let plan = routed().with_existing(vec![ExistingFilter::default()]);
        let text = nft::install(&plan, nft::Facts::default(), Extent::Full, true);
        assert!(text.contains("meta mark & 0x800 == 0x800 queue flags bypass to 10"), "{text}");
        let text = xtables::install(&plan, "");
        let rule = "-m mark --mark 0x800/0x800 -j NFQUEUE --queue-num 10 --queue-bypass";
        assert!(text.contains(rule), "{text}");
        let text = nft::install(&plan, nft::Facts::default(), Extent::Drain, true);
        assert!(!text.contains("known4"), "{text}");
    }
}
