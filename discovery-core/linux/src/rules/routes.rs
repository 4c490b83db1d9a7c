//! The policy route: packets with the delivery bit go to a table in which every address is local.

use super::plan::Plan;
use crate::marks::DELIVER;

/// The families of a plan, as `ip` wants them.
pub(super) fn families(plan: &Plan) -> &'static [&'static str] {
    if plan.v6() { &["-4", "-6"] } else { &["-4"] }
}

/// The rule as `ip rule show` prints it behind its number.
fn rule(plan: &Plan) -> String {
    format!("from all fwmark {DELIVER:#x}/{DELIVER:#x} lookup {}", plan.spec.route_table)
}

/// How often the rule stands in what `ip rule show` prints.
pub(super) fn standing(plan: &Plan, listing: &str) -> usize {
    let number = plan.spec.route_table.to_string();
    let rule = rule(plan);
    listing
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(pref, what)| {
            *pref == number && what.split_whitespace().collect::<Vec<_>>().join(" ") == rule
        })
        .count()
}

/// Arguments of `ip` that add the rule.
pub(super) fn add_rule(plan: &Plan, family: &str) -> String {
    rule_command(plan, family, "add")
}

/// Arguments of `ip` that delete the rule once.
pub(super) fn delete_rule(plan: &Plan, family: &str) -> String {
    rule_command(plan, family, "del")
}

fn rule_command(plan: &Plan, family: &str, verb: &str) -> String {
    let table = plan.spec.route_table;
    format!("{family} rule {verb} fwmark {DELIVER:#x}/{DELIVER:#x} lookup {table} pref {table}")
}

/// Arguments of `ip` that put the route into the table, whether it stands or not.
pub(super) fn put_route(plan: &Plan, family: &str) -> String {
    format!("{family} route replace local {} dev lo table {}", everything(family), plan.spec.route_table)
}

/// Arguments of `ip` that take it out.
pub(super) fn delete_route(plan: &Plan, family: &str) -> String {
    format!("{family} route del local {} dev lo table {}", everything(family), plan.spec.route_table)
}

/// Whether the route stands in what `ip route show table N` prints.
pub(super) fn routed(listing: &str) -> bool {
    listing.lines().any(|line| line.starts_with("local default dev lo"))
}

fn everything(family: &str) -> &'static str {
    if family == "-6" { "::/0" } else { "0.0.0.0/0" }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests_support::routed as plan;
    use super::*;

    #[test]
    fn the_rule_is_known_from_others() {
        let listing = "0:\tfrom all lookup local\n100:\tfrom all fwmark 0x1/0x1 lookup 100\n\
                       100:\tfrom all fwmark 0x1/0x1 lookup 101\n99:\tfrom all fwmark 0x1/0x1 lookup 100\n\
                       32766:\tfrom all lookup main\n";
        assert_eq!(standing(&plan(), listing), 1);
        assert_eq!(standing(&plan(), ""), 0);
    }

    #[test]
    fn commands() {
        assert_eq!(add_rule(&plan(), "-4"), "-4 rule add fwmark 0x1/0x1 lookup 100 pref 100");
        assert_eq!(put_route(&plan(), "-6"), "-6 route replace local ::/0 dev lo table 100");
        assert!(routed("local default dev lo scope host \n"));
        assert!(!routed(""));
    }
}
