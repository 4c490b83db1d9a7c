//! What a SYN costs, how long a connection takes to stand, and what a kill within that time does. Measured by hand: `cargo test --release -p discovery-linux --test namespaces -- --ignored
//! --nocapture rate::`; the figure belongs to the machine, so no bound is asserted but that none is lost.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use discovery_core::engine::{Event, Peer};
use discovery_core::flow::Flow;
use discovery_core::packet::forge::syn;
use discovery_core::packet::{View, splice};
use discovery_core::probe::{Codec, KeyHint, Probe, Query};
use discovery_linux::marks::ALONE;
use discovery_linux::queue::{Coalesce, NfQueue, PacketQueue, QueueSettings, Verdict};
use discovery_linux::rules::Extent;
use discovery_linux::socket::RawSender;
use rustix::event::{PollFd, PollFlags, poll};

use crate::ground::{self, Ground, v4, v6};
use crate::node::{MANY, NodeProcess, NodeSpec};
use crate::pair::{PLACES, serve, servers};

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
        let lasting = Duration::from_secs(10);
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
    drop(node);
    beside(&ground);
}

/// The crate `nfq` with the same splice and no engine, for comparison.
fn beside(ground: &Ground) {
    let rule =
        "iptables-nft -t raw -A PREROUTING -i left -p tcp --syn -j NFQUEUE --queue-num 11 --queue-bypass";
    ground.run("n", rule);
    let (tell, told) = std::sync::mpsc::channel();
    ground.spawn("n", move || {
        let mut queue = nfq::Queue::open().unwrap();
        queue.bind(11).unwrap();
        queue.set_queue_max_len(11, 8192).unwrap();
        tell.send(rustix::thread::gettid().as_raw_pid()).unwrap();
        let query = Codec::default().encode(&Probe::Query(Query));
        let mut altered = Vec::new();
        while let Ok(mut message) = queue.recv() {
            let view = View::parse(message.get_payload()).unwrap();
            if splice(&view, query.octets(), 1500, &mut altered).is_ok() {
                message.set_payload(altered.clone());
            }
            message.set_verdict(nfq::Verdict::Accept);
            queue.verdict(message).unwrap();
        }
    });
    let tid = told.recv().unwrap();
    let cpu = thread_cpu(tid);
    let sent = ground.inside("c", || flood(20_000, Duration::from_secs(5), v4(1, 2, 143)));
    std::thread::sleep(Duration::from_millis(300));
    let each =
        f64::from(u32::try_from(thread_cpu(tid) - cpu).unwrap()) / f64::from(u32::try_from(sent).unwrap());
    println!("nfq with a splice alone, 20000/s: {sent} sent, {each:.2} µs each");
    ground.run("n", &rule.replace("-A", "-D"));
    bare(ground);
}

/// Our queue with the same.
fn bare(ground: &Ground) {
    let rule =
        "iptables-nft -t raw -A PREROUTING -i left -p tcp --syn -j NFQUEUE --queue-num 12 --queue-bypass";
    ground.run("n", rule);
    let (tell, told) = std::sync::mpsc::channel();
    ground.spawn("n", move || {
        let settings = QueueSettings::handshakes(12);
        let mut queue = NfQueue::open(settings).unwrap();
        let mut batch = settings.batch();
        tell.send(rustix::thread::gettid().as_raw_pid()).unwrap();
        let query = Codec::default().encode(&Probe::Query(Query));
        let mut altered = Vec::new();
        loop {
            poll(&mut [PollFd::new(&queue, PollFlags::IN)], None).unwrap();
            queue.receive(&mut batch).unwrap();
            for packet in batch.packets() {
                let view = View::parse(packet.payload).unwrap();
                splice(&view, query.octets(), 1500, &mut altered).unwrap();
                queue.verdict(packet.id, Verdict::Replace(&altered));
            }
            queue.flush().unwrap();
            if let Some(pause) = Coalesce::default().after(batch.len()) {
                std::thread::sleep(pause);
            }
        }
    });
    let tid = told.recv().unwrap();
    let cpu = thread_cpu(tid);
    let sent = ground.inside("c", || flood(20_000, Duration::from_secs(5), v4(1, 2, 143)));
    std::thread::sleep(Duration::from_millis(300));
    let each =
        f64::from(u32::try_from(thread_cpu(tid) - cpu).unwrap()) / f64::from(u32::try_from(sent).unwrap());
    println!("our queue with a splice alone, 20000/s: {sent} sent, {each:.2} µs each");
}

/// Holds everything that a place forwards for `each_way`, in order, by the queue itself.
fn delay(ground: &Ground, place: &str, each_way: Duration) {
    for tool in ["iptables-nft", "ip6tables-nft"] {
        ground.run(place, &format!("{tool} -t mangle -A FORWARD -j NFQUEUE --queue-num 30 --queue-bypass"));
    }
    let (ready, is_ready) = std::sync::mpsc::channel();
    ground.spawn(place, move || {
        let settings =
            QueueSettings { packets_max: 65_536, buffer_octets: 64 << 20, ..QueueSettings::handshakes(30) };
        let mut queue = NfQueue::open(settings).unwrap();
        ready.send(()).unwrap();
        let mut batch = settings.batch();
        let mut held = VecDeque::new();
        loop {
            queue.receive(&mut batch).unwrap();
            let due = Instant::now() + each_way;
            held.extend(batch.packets().map(|packet| (due, packet.id)));
            while held.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                queue.verdict(held.pop_front().unwrap().1, Verdict::Accept);
            }
            queue.flush().unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    is_ready.recv().unwrap();
}

const EACH_WAY: Duration = Duration::from_millis(20);

fn connect(ground: &Ground, to: SocketAddr) -> Duration {
    ground.inside("c", move || {
        let start = Instant::now();
        let stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(8)).unwrap();
        let took = start.elapsed();
        drop(stream);
        took
    })
}

/// Median and 95th percentile, in milliseconds.
fn spread(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 95 / 100])
}

#[test]
#[ignore = "a measurement: takes a machine to itself"]
fn a_connect_at_40_ms() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    delay(&ground, "w", EACH_WAY);
    let to = servers(143)[0];
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    // Servers that the node does not know yet: each connection is a first one.
    let (ready, is_ready) = std::sync::mpsc::channel();
    ground.spawn("s", move || {
        let at = |port| SocketAddr::new(to.ip(), port);
        let servers: Vec<_> = (MANY[0]..=MANY[1]).map(|port| TcpListener::bind(at(port)).unwrap()).collect();
        ready.send(()).unwrap();
        // The backlog accepts.
        std::thread::park();
        drop(servers);
    });
    is_ready.recv().unwrap();
    for with_peer in [false, true] {
        let sp_spec = NodeSpec::routed(&ground, "sp", 2, 2);
        let peer = Peer { link: sp_spec.link.0, key: KeyHint([7; 8]) };
        let sp = with_peer.then(|| sp_spec.start());
        let mut spec = NodeSpec::routed(&ground, "cp", 1, 1);
        spec.link = (v4(1, 1, 7770 + u16::from(with_peer)), v6(1, 1, 7770 + u16::from(with_peer)));
        let cp = spec.start();
        // As if a link stood: then the client is answered as soon as the peer says that the server has accepted.
        cp.handle.tell(Event::PeerUp { peer });
        let (mut direct, mut through, mut added) = (Vec::new(), Vec::new(), Vec::new());
        for port in MANY[0]..=MANY[1] {
            let to = SocketAddr::new(to.ip(), port);
            let with = ms(connect(&ground, to));
            cp.set(Extent::Drain);
            let without = ms(connect(&ground, to));
            cp.set(Extent::Full);
            direct.push(without);
            through.push(with);
            added.push(with - without);
        }
        println!(
            "peer {with_peer}: direct {:.2?}, through {:.2?}, added {:.2?} (median, p95 of {} pairs, ms)",
            spread(direct),
            spread(through),
            spread(added.clone()),
            added.len()
        );
        println!("{:?}", cp.counts().0);
        drop((cp, sp));
    }
}

#[test]
#[ignore = "a measurement: takes a machine to itself"]
fn a_kill_within_the_handshake() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    delay(&ground, "w", EACH_WAY);
    let _sp = NodeSpec::routed(&ground, "sp", 2, 2).start();
    let to = servers(143)[0];
    let (mut outcomes, mut times) = (std::collections::BTreeMap::<String, u32>::new(), Vec::new());
    for round in 0..40_u64 {
        let mut cp = NodeProcess::start(&ground, "cp", 1, 1);
        let client = ground.spawn("c", move || {
            let start = Instant::now();
            let asked =
                std::net::TcpStream::connect_timeout(&to, Duration::from_secs(8)).and_then(|mut stream| {
                    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
                    std::io::Read::read_exact(&mut stream, &mut [0; 4])
                });
            (asked.map_err(|error| error.kind()), start.elapsed())
        });
        std::thread::sleep(Duration::from_micros(round * 37 % 40 * 1000 + 1500));
        cp.kill();
        let (outcome, took) = client.join().unwrap();
        *outcomes.entry(format!("{outcome:?}")).or_default() += 1;
        times.push(took.as_secs_f64() * 1000.0);
    }
    println!(
        "killed 1.5 to 40 ms into a handshake of 40 ms: {outcomes:?}, {:.1?} (median, p95, ms)",
        spread(times)
    );
    assert!(!outcomes.keys().any(|outcome| outcome.contains("TimedOut") || outcome.contains("WouldBlock")));
}
