//! Other ways to stand on a path: as a bridge, on the client's or the server's own machine, alone.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use discovery_core::rule::Action;
use discovery_linux::rules::{Host, Interface, Mode};

use crate::ground::{self, Ground, any, both, v4, v6};
use crate::node::{Node, NodeSpec};
use crate::pair::{PLACES, ask, serve, servers};
use crate::rules::interfaces;

fn count(node: &Node, word: &str) -> u64 {
    node.counts().0.get(word).copied().unwrap_or(0)
}

/// Each end sees the other's true address, and a closed port says so.
fn works(ground: &Ground, what: &str) {
    for server in servers(143) {
        let found = ask(ground, server).unwrap_or_else(|error| panic!("{what} {server}: {error}"));
        assert_eq!((found.remote, found.echoed), (server, true), "{what}");
        assert_eq!(found.said, found.local.to_string(), "{what}");
        let refused = ask(ground, SocketAddr::new(server.ip(), 9)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{what}");
    }
}

#[test]
fn a_host_takes_its_own_connections_at_either_end_and_at_both() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    let before = PLACES.map(|place| ground.state(place));
    serve(&ground);
    let on_client = |ground: &Ground, port| {
        let mut spec = NodeSpec::routed(ground, "c", 0, 1);
        spec.link = (v4(0, 1, port), v6(0, 1, port));
        spec.mode = Mode::Host { interfaces: interfaces(&["right"]), host: Host::Client };
        spec.start()
    };
    let on_server = |ground: &Ground, port| {
        let mut spec = NodeSpec::routed(ground, "s", 3, 2);
        spec.link = (v4(3, 2, port), v6(3, 2, port));
        spec.mode = Mode::Host { interfaces: interfaces(&["left"]), host: Host::Server };
        spec.here = both(3, 2, 0).map(|address| address.ip()).to_vec();
        spec.start()
    };
    let (c, sp) = (on_client(&ground, 7771), NodeSpec::routed(&ground, "sp", 2, 2).start());
    works(&ground, "client's machine");
    assert_eq!(count(&sp, "claimed"), 2, "{:?} {:?}", c.counts(), sp.counts());
    drop((c, sp));
    let (cp, s) = (NodeSpec::routed(&ground, "cp", 1, 1).start(), on_server(&ground, 7772));
    works(&ground, "server's machine");
    assert_eq!(count(&s, "claimed"), 2, "{:?} {:?}", cp.counts(), s.counts());
    drop((cp, s));
    let (c, s) = (on_client(&ground, 7773), on_server(&ground, 7774));
    works(&ground, "both machines");
    assert_eq!(count(&s, "claimed"), 2, "{:?} {:?}", c.counts(), s.counts());
    drop((c, s));
    assert_eq!(PLACES.map(|place| ground.state(place)), before);
}

#[test]
fn a_bridge_takes_connections_and_passes_the_rest() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    // The client's router becomes a bridge with three ports: the client and the WAN are now neighbours, and a third
    // host hangs on a port that is not taken.
    for line in [
        "ip addr del 10.77.0.2/24 dev left",
        "ip addr del fd77::2/64 dev left",
        "ip addr del 10.77.1.1/24 dev right",
        "ip addr del fd77:1::1/64 dev right",
        "ip link add br0 type bridge",
        "ip link set left master br0",
        "ip link set right master br0",
        "ip addr add 10.77.0.9/24 dev br0",
        "ip addr add fd77::9/64 dev br0 nodad",
        "ip link set br0 up",
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        "ip route replace default via 10.77.0.2",
        "ip -6 route replace default via fd77::2",
    ] {
        ground.run("cp", line);
    }
    for line in [
        "ip addr del 10.77.1.2/24 dev left",
        "ip addr del fd77:1::2/64 dev left",
        "ip addr add 10.77.0.2/24 dev left",
        "ip addr add fd77::2/64 dev left nodad",
    ] {
        ground.run("w", line);
    }
    for place in ["sp", "s"] {
        let via = if place == "sp" { ("10.77.2.1", "fd77:2::1") } else { ("10.77.3.1", "fd77:3::1") };
        ground.run(place, &format!("ip route replace 10.77.0.0/24 via {}", via.0));
        ground.run(place, &format!("ip -6 route replace fd77::/64 via {}", via.1));
    }
    // Neighbours find each other anew.
    ground.run("c", "ip neigh flush dev right");
    ground.run("w", "ip neigh flush dev left");
    for server in servers(143) {
        assert!(ask(&ground, server).unwrap().echoed);
    }
    let before = ground.state("cp");
    let sp = NodeSpec::routed(&ground, "sp", 2, 2).start();
    let bridge = Interface::new("br0").unwrap();
    let mut spec = NodeSpec::routed(&ground, "cp", 0, 9);
    spec.mode = Mode::Bridge { bridge, ports: interfaces(&["left", "right"]), tagged: false };
    let cp = spec.start();
    works(&ground, "bridge");
    assert_eq!(count(&sp, "claimed"), 2, "{:?} {:?}", cp.counts(), sp.counts());
    // ARP, ND and datagrams pass a bridge with rules.
    ground.run("c", "ip neigh flush dev right");
    ground.run("w", "ip neigh flush dev left");
    for to in both(0, 2, 5000) {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let receiver = ground.spawn("w", move || {
            let socket = UdpSocket::bind(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            ready.send(()).unwrap();
            socket.recv_from(&mut [0; 8]).map(|(octets, _)| octets).unwrap()
        });
        is_ready.recv().unwrap();
        let sent =
            ground.inside("c", move || UdpSocket::bind(any(to)).unwrap().send_to(b"datagram", to).unwrap());
        assert_eq!(receiver.join().unwrap(), sent);
    }
    drop(cp);
    assert_eq!(ground.state("cp"), before);
    for server in servers(143) {
        assert!(ask(&ground, server).unwrap().echoed);
    }
}

#[test]
fn alone_a_node_terminates_and_reaches_the_server_as_the_client() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    let mut spec = NodeSpec::routed(&ground, "cp", 1, 1);
    spec.action = Action::InterceptSingle;
    let cp = spec.start();
    for server in servers(143) {
        let found = ask(&ground, server).unwrap();
        assert_eq!((found.remote, found.echoed), (server, true));
        assert_eq!(found.said, found.local.to_string());
    }
    assert!(count(&cp, "single") >= 2, "{:?}", cp.counts());
}

#[test]
fn a_node_that_must_find_a_peer_first_asks_by_itself() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    let mut spec = NodeSpec::routed(&ground, "cp", 1, 1);
    spec.action = Action::DropIfNoPeer;
    let cp = spec.start();
    // Nobody is there: the SYN does not leave, and is dropped or refused.
    assert!(ask(&ground, servers(143)[1]).is_err(), "{:?}", cp.counts());
    assert!(count(&cp, "probe-negative") >= 1, "{:?}", cp.counts());
    // A peer that is asked for a connection whose SYN it never saw must allow that.
    let mut spec = NodeSpec::routed(&ground, "sp", 2, 2);
    spec.granted = true;
    let sp = spec.start();
    let found = ask(&ground, servers(143)[0]);
    let found = found.unwrap_or_else(|error| panic!("{error}: {:?} {:?}", cp.counts(), sp.counts()));
    assert_eq!((found.said, found.echoed), (found.local.to_string(), true));
    assert!(count(&cp, "probe-positive") >= 1, "{:?}", cp.counts());
    assert!(count(&sp, "claimed") >= 1, "{:?}", sp.counts());
}
