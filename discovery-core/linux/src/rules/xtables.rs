//! The queue rules for kernels without nft's `queue` statement: through `iptables-nft-restore`, which is one
//! transaction for each family. What stands already is read from `iptables-nft -t raw -S` first.

use std::fmt::Write as _;

use super::plan::{Instance, Mode, Plan};
use super::{datagrams, deflector};
use crate::marks::{EXISTING, OWN_CONNECT, YOUNG};

/// The chains of an instance, each with the built-in one that leads there.
fn chains(instance: &Instance) -> [(&'static str, String); 2] {
    [("PREROUTING", format!("WAYPOST_{instance}_IN")), ("OUTPUT", format!("WAYPOST_{instance}_OUT"))]
}

/// Puts the rules in place of whatever stood there. `listing` is what `-t raw -S` prints now.
pub(super) fn install(plan: &Plan, listing: &str) -> String {
    put(plan, listing, &rules_in(plan), &rules_out(plan))
}

/// The same while new connections flow past: what belongs to deflected ones. None when there is nothing such.
pub(super) fn drain(plan: &Plan, listing: &str) -> Option<String> {
    plan.spec.deflecting.as_ref()?;
    Some(put(plan, listing, &[format!("{} {}", deflector::xtables(), queue(plan))], &[]))
}

fn put(plan: &Plan, listing: &str, rules_in: &[String], rules_out: &[String]) -> String {
    let [(pre, chain_in), (out, chain_out)] = chains(&plan.spec.instance);
    let mut text = format!("*raw\n:{chain_in} - [0:0]\n:{chain_out} - [0:0]\n");
    for rule in rules_in {
        let _ = writeln!(text, "-A {chain_in} {rule}");
    }
    for rule in rules_out {
        let _ = writeln!(text, "-A {chain_out} {rule}");
    }
    for (from, to) in [(pre, &chain_in), (out, &chain_out)] {
        // Before what others have there: the newer of two instances takes the new connections.
        if jumps(listing, from, to) == 0 {
            let _ = writeln!(text, "-I {from} 1 -j {to}");
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// Removes the instance's chains, of which `listing` shows what is left; `None` when nothing is.
pub(super) fn remove(instance: &Instance, listing: &str) -> Option<String> {
    let mut text = String::new();
    for (from, to) in chains(instance) {
        for _ in 0..jumps(listing, from, &to) {
            let _ = writeln!(text, "-D {from} -j {to}");
        }
    }
    for (_, chain) in chains(instance) {
        if listing.lines().any(|line| line == format!("-N {chain}")) {
            let _ = writeln!(text, "-F {chain}\n-X {chain}");
        }
    }
    (!text.is_empty()).then(|| format!("*raw\n{text}COMMIT\n"))
}

/// The lines of a listing that are the instance's.
pub(super) fn ours(instance: &Instance, listing: &str) -> String {
    let chains = chains(instance);
    let own = |line: &&str| line.split(' ').any(|word| chains.iter().any(|(_, chain)| word == chain));
    listing.lines().filter(own).collect::<Vec<_>>().join("\n")
}

/// No built-in chain of the table has a rule or another's chain beside it: the table is as good as not there.
pub(super) fn is_bare(listing: &str) -> bool {
    listing.lines().all(|line| line.starts_with("-P ") && line.ends_with(" ACCEPT"))
}

fn jumps(listing: &str, from: &str, to: &str) -> usize {
    let jump = format!("-A {from} -j {to}");
    listing.lines().filter(|line| *line == jump).count()
}

const SYN: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
const SYN_ACK: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN,ACK";
const RST: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK RST";

fn rules_in(plan: &Plan) -> Vec<String> {
    let queue = queue(plan);
    let away = "-m addrtype ! --dst-type LOCAL";
    let mut rules = Vec::new();
    if plan.spec.deflecting.is_some() {
        rules.push(format!("{} {queue}", deflector::xtables()));
    }
    let from: Vec<String> = match &plan.spec.mode {
        Mode::Routed { interfaces } | Mode::Host { interfaces, .. } => {
            interfaces.iter().map(|interface| format!("-i {interface}")).collect()
        }
        Mode::Bridge { ports, .. } => {
            ports.iter().map(|port| format!("-m physdev --physdev-in {port}")).collect()
        }
    };
    if !plan.existing.is_empty() {
        rules.push(format!("-m mark --mark {EXISTING:#x}/{EXISTING:#x} {queue}"));
    }
    for from in from {
        if plan.spec.probing {
            let back = format!("-p tcp -m tcp --sport {}", plan.spec.probe_port);
            // An answer to a probe of our own, or the refusal of a port where nobody listens.
            for flags in ["SYN,ACK SYN,ACK", "RST RST"] {
                rules.push(format!("{from} {back} --tcp-flags {flags} -m addrtype --dst-type LOCAL {queue}"));
            }
        }
        match plan.spec.mode {
            Mode::Routed { .. } | Mode::Bridge { .. } => {
                rules.push(format!("{from} {SYN} {away} {queue}"));
                if plan.spec.probing {
                    rules.push(format!("{from} {SYN_ACK} {away} {queue}"));
                    rules.push(format!("{from} {RST} {away} {queue}"));
                }
            }
            Mode::Host { host, .. } if plan.spec.probing => {
                if host.takes_own_servers() {
                    rules.push(format!("{from} {SYN} --tcp-option {} {queue}", plan.spec.probe_kind));
                    rules.push(format!("{from} {SYN} -m mark --mark {YOUNG:#x}/{YOUNG:#x} {queue}"));
                }
                if host.takes_own_connects() {
                    rules.push(format!("{from} {SYN_ACK} {queue}"));
                }
            }
            Mode::Host { .. } => {}
        }
        rules.extend(datagrams::xtables(plan).into_iter().map(|rule| format!("{from} {rule} {queue}")));
    }
    rules
}

fn rules_out(plan: &Plan) -> Vec<String> {
    let queue = queue(plan);
    let mut rules = Vec::new();
    if plan.spec.probing {
        rules.push(format!("! -o lo {SYN} -m mark --mark {OWN_CONNECT:#x}/{OWN_CONNECT:#x} {queue}"));
    }
    if let Mode::Host { host, .. } = plan.spec.mode
        && host.takes_own_connects()
    {
        rules.push(format!("! -o lo {SYN} -m mark --mark 0x0 {queue}"));
    }
    rules
}

fn queue(plan: &Plan) -> String {
    format!("-j NFQUEUE --queue-num {} --queue-bypass", plan.spec.queue)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Host;
    use super::super::plan::tests_support::{alone, bridge, host, routed};
    use super::*;

    #[test]
    fn a_draining_deflector_keeps_what_was_deflected() {
        let mut plan = routed();
        assert_eq!(drain(&plan, BARE), None);
        plan.spec.deflecting = Some(super::super::Deflecting { proxies: Vec::new(), proxy_port: 7784 });
        let text = drain(&plan, BARE).unwrap();
        assert!(text.contains("-A WAYPOST_a_IN -p tcp -m mark --mark 0x200/0x200 -j NFQUEUE"), "{text}");
        assert_eq!(text.matches("-j NFQUEUE").count(), 1, "{text}");
    }

    const BARE: &str = "-P PREROUTING ACCEPT\n-P OUTPUT ACCEPT\n";

    #[test]
    fn routed_rules() {
        let expected = "\
*raw
:WAYPOST_a_IN - [0:0]
:WAYPOST_a_OUT - [0:0]
-A WAYPOST_a_IN -i lan0 -p tcp -m tcp --sport 7783 --tcp-flags SYN,ACK SYN,ACK -m addrtype --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i lan0 -p tcp -m tcp --sport 7783 --tcp-flags RST RST -m addrtype --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i lan0 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i lan0 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN,ACK -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i lan0 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK RST -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i lan0 -p udp -m udp --sport 7783 --dport 7783 -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i wan0 -p tcp -m tcp --sport 7783 --tcp-flags SYN,ACK SYN,ACK -m addrtype --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i wan0 -p tcp -m tcp --sport 7783 --tcp-flags RST RST -m addrtype --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i wan0 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i wan0 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN,ACK -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i wan0 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK RST -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_IN -i wan0 -p udp -m udp --sport 7783 --dport 7783 -j NFQUEUE --queue-num 10 --queue-bypass
-A WAYPOST_a_OUT ! -o lo -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m mark --mark 0x20/0x20 -j NFQUEUE --queue-num 10 --queue-bypass
-I PREROUTING 1 -j WAYPOST_a_IN
-I OUTPUT 1 -j WAYPOST_a_OUT
COMMIT
";
        assert_eq!(install(&routed(), BARE), expected);
    }

    #[test]
    fn every_queue_is_bypassed_when_nobody_reads_it() {
        for plan in [routed(), bridge(), alone(), host(Host::Both)] {
            let text = install(&plan, BARE);
            assert!(text.contains("NFQUEUE"), "{text}");
            for line in text.lines().filter(|line| line.contains("NFQUEUE")) {
                assert!(line.ends_with("--queue-bypass"), "{line}");
            }
        }
    }

    #[test]
    fn alone_only_syns_are_queued() {
        let text = install(&alone(), BARE);
        assert!(
            !text.contains("SYN,ACK -m addrtype") && !text.contains("ACK RST") && !text.contains("0x20"),
            "{text}"
        );
    }

    #[test]
    fn a_bridge_takes_the_ports_it_was_given() {
        let text = install(&bridge(), BARE);
        assert!(text.contains("-m physdev --physdev-in p0 -p tcp"), "{text}");
        assert!(!text.contains("-i p0"), "{text}");
    }

    #[test]
    fn host_rules() {
        let text = install(&host(Host::Server), BARE);
        assert!(text.contains("SYN --tcp-option 253 -j") && text.contains("--mark 0x40/0x40"), "{text}");
        assert!(!text.contains("! --dst-type LOCAL") && !text.contains("--mark 0x0 "), "{text}");
        let text = install(&host(Host::Client), BARE);
        assert!(text.contains("--mark 0x0 -j") && !text.contains("--tcp-option"), "{text}");
    }

    #[test]
    fn a_second_installation_does_not_jump_twice() {
        let standing = format!(
            "{BARE}-N WAYPOST_a_IN\n-N WAYPOST_a_OUT\n-A PREROUTING -j WAYPOST_a_IN\n-A OUTPUT -j WAYPOST_a_OUT\n"
        );
        assert!(!install(&routed(), &standing).contains("-I "));
    }

    #[test]
    fn removal_takes_what_is_there_and_nothing_else() {
        let instance = Instance::new("a").unwrap();
        let listing = format!(
            "{BARE}-N WAYPOST_a_IN\n-N WAYPOST_ab_IN\n-A PREROUTING -j WAYPOST_a_IN\n-A PREROUTING -j WAYPOST_a_IN\n-A PREROUTING -j WAYPOST_ab_IN\n-A WAYPOST_a_IN -i x\n"
        );
        let expected = "*raw\n-D PREROUTING -j WAYPOST_a_IN\n-D PREROUTING -j WAYPOST_a_IN\n-F WAYPOST_a_IN\n-X WAYPOST_a_IN\nCOMMIT\n";
        assert_eq!(remove(&instance, &listing).as_deref(), Some(expected));
        assert_eq!(remove(&instance, BARE), None);
        assert_eq!(ours(&instance, &listing).lines().count(), 4);
        assert!(is_bare(BARE) && !is_bare(&listing));
    }
}
