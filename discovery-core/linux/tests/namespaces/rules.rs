//! Rules come, stay and go without a trace.

use std::path::PathBuf;

use discovery_linux::rules::{
    Backend, Extent, Host, Instance, Interface, Listen, Mode, Plan, PlanSpec, Rules,
};

use crate::ground::{self, Ground};

pub(crate) fn interfaces(names: &[&str]) -> Vec<Interface> {
    names.iter().map(|name| Interface::new(name).unwrap()).collect()
}

pub(crate) fn plan(instance: &str, mode: Mode, listen: Listen) -> Plan {
    let instance = Instance::new(instance).unwrap();
    Plan::new(PlanSpec {
        instance,
        mode,
        queue: 10,
        listen,
        route_table: 100,
        probe_kind: 253,
        probe_port: 7783,
        probing: true,
        datagrams: true,
        deflecting: None,
    })
    .unwrap()
}

pub(crate) fn routed(instance: &str) -> Plan {
    plan(instance, Mode::Routed { interfaces: interfaces(&["left", "right"]) }, LISTEN)
}

const LISTEN: Listen = Listen { v4: 12345, v6: Some(12345) };

pub(crate) fn saved(ground: &Ground, place: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{}.saved", ground.name(place)))
}

/// A bridge is between the ends instead of the router.
fn modes() -> Vec<(&'static str, Mode)> {
    let host = |host| Mode::Host { interfaces: interfaces(&["left", "right"]), host };
    let bridge = Mode::Bridge {
        bridge: Interface::new("br0").unwrap(),
        ports: interfaces(&["left", "right"]),
        tagged: true,
    };
    vec![
        ("routed", Mode::Routed { interfaces: interfaces(&["left", "right"]) }),
        ("bridge", bridge),
        ("client", host(Host::Client)),
        ("server", host(Host::Server)),
        ("both", host(Host::Both)),
    ]
}

#[test]
fn every_mode_is_installed_and_goes_without_a_trace() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    // A name that tables of others share with ours in part, and rules of others where ours go.
    ground.run("n", "iptables-nft -t raw -A PREROUTING -p udp -j ACCEPT");
    ground.run("n", "iptables-nft -t raw -A OUTPUT -p udp -j ACCEPT");
    ground.run("n", "nft add table inet waypost_other");
    ground.run("n", "ip link add br0 type bridge");
    for (name, mode) in modes() {
        let before = ground.state("n");
        let saved = saved(&ground, "n");
        let (backend, installed, again, repaired) = ground.inside("n", move || {
            let mut rules = Rules::new(plan("a", mode, LISTEN), saved);
            let backend = rules.install().unwrap();
            let installed = rules.extent();
            let again = rules.verify().unwrap();
            // A second process begins with the same name.
            let repaired = rules.install().map(|_| rules.verify().unwrap()).unwrap();
            (backend, installed, again, repaired)
        });
        let standing = ground.state("n");
        assert_ne!(standing, before, "{name}");
        assert!(standing.contains("table inet waypost_a"), "{name}");
        assert_eq!((installed, again, repaired), (Some(Extent::Full), 0, 0), "{name}");
        println!("{name}: filled by {backend:?}");
        if backend == Backend::IptablesNft {
            let jumps = ground.shown("n", "iptables-nft -t raw -S").matches("-j WAYPOST_a_IN").count();
            assert_eq!(jumps, 1, "{name}");
        }
        // Another process, which knows nothing of the first.
        let saved = self::saved(&ground, "n");
        let mode = modes().into_iter().find(|(other, _)| *other == name).map(|(_, mode)| mode).unwrap();
        ground.inside("n", move || Rules::new(plan("a", mode, LISTEN), saved).remove().unwrap());
        assert_eq!(ground.state("n"), before, "{name}");
    }
}

#[test]
fn what_was_changed_is_mended_and_counted() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    let before = ground.state("n");
    let saved = saved(&ground, "n");
    // The same thread goes on: rules belong to its namespace.
    let (asks, orders) = std::sync::mpsc::channel::<()>();
    let (tells, told) = std::sync::mpsc::channel();
    let node = ground.spawn("n", move || {
        let mut rules = Rules::new(routed("a"), saved);
        let backend = rules.install().unwrap();
        tells.send(0).unwrap();
        while orders.recv().is_ok() {
            tells.send(rules.verify().unwrap()).unwrap();
        }
        rules.remove().unwrap();
        backend
    });
    assert_eq!(told.recv().unwrap(), 0);
    let whole = ground.state("n");
    let mut damages = vec![
        "nft flush chain inet waypost_a divert",
        "nft delete table inet waypost_a",
        "nft add rule inet waypost_a divert drop",
        "ip rule del pref 100",
        "ip -6 route flush table 100",
        "sysctl -qw net.ipv4.conf.left.rp_filter=1",
    ];
    if whole.contains("WAYPOST_a_IN") {
        damages.push("iptables-nft -t raw -F");
        damages.push("ip6tables-nft -t raw -D WAYPOST_a_OUT 1");
    }
    for damage in damages {
        ground.run("n", damage);
        assert_ne!(ground.state("n"), whole, "{damage}");
        asks.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), 1, "{damage}");
        assert_eq!(ground.state("n"), whole, "{damage}");
        asks.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), 0, "{damage}");
    }
    drop(asks);
    node.join().unwrap();
    // What somebody else set meanwhile was found and changed, and is what is put back.
    let filter = |value| format!("net.ipv4.conf.left.rp_filter = {value}");
    assert_eq!(ground.state("n"), before.replace(&filter(0), &filter(1)));
}

#[test]
fn two_instances_share_a_namespace() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    let before = ground.state("n");
    let (one, two) = (saved(&ground, "n"), saved(&ground, "n").with_extension("two"));
    let steps = ground.inside("n", move || {
        let mut old = Rules::new(routed("a"), one);
        let spec = PlanSpec {
            instance: Instance::new("b").unwrap(),
            mode: Mode::Routed { interfaces: interfaces(&["left", "right"]) },
            queue: 11,
            listen: Listen { v4: 12346, v6: Some(12346) },
            route_table: 101,
            probe_kind: 253,
            probe_port: 7783,
            probing: true,
            datagrams: true,
            deflecting: None,
        };
        let mut new = Rules::new(Plan::new(spec).unwrap(), two);
        old.install().unwrap();
        new.install().unwrap();
        let both = (old.verify().unwrap(), new.verify().unwrap());
        old.set(Extent::Drain).unwrap();
        let drained = (old.verify().unwrap(), new.verify().unwrap());
        old.remove().unwrap();
        // The old one put settings back that the new one needs.
        let repaired = new.verify().unwrap();
        let settled = new.verify().unwrap();
        new.remove().unwrap();
        (both, drained, repaired, settled)
    });
    assert_eq!((steps.0, steps.1, steps.3), ((0, 0), (0, 0), 0), "{steps:?}");
    let after = ground.state("n");
    let rules = |state: &str| {
        state.lines().filter(|line| !line.starts_with("net.")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rules(&after), rules(&before));
}
