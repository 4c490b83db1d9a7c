//! What a SYN costs. Measured by hand: `cargo test --release -p discovery-linux --test namespaces -- --ignored
//! --nocapture rate::`; the figure belongs to the machine, so no bound is asserted but that none is lost.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use discovery_core::flow::Flow;
use discovery_core::packet::forge::syn;
use discovery_linux::marks::ALONE;
use discovery_linux::socket::RawSender;

use crate::ground::{self, Ground, v4};
use crate::node::NodeSpec;

/// A Linux client's options: MSS, SACK, timestamps, window scale.
const OPTIONS: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];

/// SYNs from many ports, evenly at so many a second.
fn flood(per_second: u32, lasting: Duration, to: SocketAddr) -> u64 {
    let sender = RawSender::open(ALONE, false).unwrap();
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < lasting {
        let due = u64::try_from(start.elapsed().as_micros()).unwrap() * u64::from(per_second) / 1_000_000;
        while sent < due {
            let port = 1024 + u16::try_from(sent % 60_000).unwrap();
            let flow = Flow { client: v4(0, 1, port), server: to };
            sender.send(&syn(&flow, u32::try_from(sent).unwrap(), OPTIONS).unwrap()).unwrap();
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    sent
}

/// User and system time of a thread of this process, in microseconds.
fn thread_cpu(tid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse::<u64>().unwrap() / 1000
}

#[test]
#[ignore = "a measurement: takes a machine to itself"]
fn a_syn() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    // What arrives at the end is not answered: only the node's part counts.
    for line in [
        "add table inet t",
        "add chain inet t i { type filter hook prerouting priority raw; }",
        "add rule inet t i tcp dport 143 counter drop",
    ] {
        assert!(ground.command("s", "nft").arg(line).status().unwrap().success());
    }
    let spec = NodeSpec::routed(&ground, "n", 0, 2);
    let node = spec.start();
    let tid = node.netd_thread();
    for rate in [20_000, 20_000, 1_000] {
        let lasting = Duration::from_secs(5);
        let (before, cpu) = (node.counts().1.queue, thread_cpu(tid));
        let sent = ground.inside("c", move || flood(rate, lasting, v4(1, 2, 143)));
        std::thread::sleep(Duration::from_millis(300));
        let (after, cpu) = (node.counts().1.queue, thread_cpu(tid) - cpu);
        let packets = after.packets - before.packets;
        let of = |count: u64| {
            f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(packets).unwrap())
        };
        println!(
            "{rate}/s: {sent} sent, {packets} handled, {:.2} µs each, {:.3} receives and {:.3} sends each",
            of(cpu),
            of(after.receives - before.receives),
            of(after.sends - before.sends),
        );
        assert_eq!(packets, sent, "none flowed past the queue");
    }
    let queue =
        ground.inside("n", || std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue"));
    println!("queue, port, waiting, mode, range, dropped, dropped here, id: {}", queue.unwrap().trim());
    println!("{:?}", node.counts().0);
}
