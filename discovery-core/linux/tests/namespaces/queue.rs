//! Our own loop on the kernel's queue.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use discovery_linux::queue::{Hook, NfQueue, PacketQueue, QueueSettings, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ground::{self, Ground, v4, v6};

/// Only what has this port, so that nothing else of the namespace is met.
fn queue_port(ground: &Ground, place: &str, chain: &str, port: u16) {
    for tool in ["iptables-nft", "ip6tables-nft"] {
        let rule = format!(
            "{tool} -t raw -A {chain} -p tcp --dport {port} --syn -j NFQUEUE --queue-num 7 --queue-bypass"
        );
        ground.run(place, &rule);
    }
}

fn wait(queue: &NfQueue, patience: Duration) -> bool {
    let wait = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&wait)).unwrap() > 0
}

fn settings() -> QueueSettings {
    QueueSettings::handshakes(7)
}

#[test]
fn syns_come_with_what_the_engine_needs_and_go_on() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    queue_port(&ground, "n", "PREROUTING", 900);
    let _server = ground.spawn("s", || {
        let listeners = ["0.0.0.0:900", "[::]:900"].map(|at| {
            let at: std::net::SocketAddr = at.parse().unwrap();
            let v6 =
                socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None).unwrap();
            if at.is_ipv6() {
                v6.set_only_v6(true).unwrap();
            }
            v6.bind(&at.into()).unwrap();
            v6.listen(8).unwrap();
            TcpListener::from(v6)
        });
        std::thread::sleep(Duration::from_secs(20));
        drop(listeners);
    });
    let node = ground.spawn("n", move || {
        let mut queue = NfQueue::open(settings()).unwrap();
        let second = NfQueue::open(settings()).unwrap_err();
        let mut batch = settings().batch();
        let mut seen = Vec::new();
        let start = Instant::now();
        while seen.len() < 2 && start.elapsed() < Duration::from_secs(10) {
            wait(&queue, Duration::from_millis(100));
            queue.receive(&mut batch).unwrap();
            for packet in batch.packets() {
                let destination = discovery_linux::socket::destination(packet.payload);
                seen.push((
                    packet.hook,
                    packet.mark,
                    packet.indev,
                    packet.whole,
                    packet.payload.len(),
                    destination,
                ));
                queue.verdict(packet.id, Verdict::Accept);
            }
            queue.flush().unwrap();
        }
        let counters = queue.counters();
        queue.close().unwrap();
        (second.raw_os_error(), seen, counters)
    });
    let connected = ground.inside("c", || {
        std::thread::sleep(Duration::from_millis(200));
        [v4(1, 2, 900), v6(1, 2, 900)]
            .map(|to| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok())
    });
    let (second, seen, counters) = node.join().unwrap();
    assert_eq!(connected, [true, true]);
    assert_eq!(second, Some(libc::EPERM), "a queue has one reader");
    assert_eq!(seen.len(), 2, "{seen:?}");
    let indev = seen[0].2;
    assert_ne!(indev, 0);
    assert_eq!(seen[0], (Hook::Prerouting, 0, indev, true, 60, Some(v4(1, 2, 0).ip())));
    assert_eq!(seen[1], (Hook::Prerouting, 0, indev, true, 80, Some(v6(1, 2, 0).ip())));
    assert_eq!((counters.packets, counters.garbled, counters.refused), (2, 0, 0));
}

#[test]
fn verdicts_drop_mark_and_replace() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    queue_port(&ground, "n", "PREROUTING", 900);
    let script = "add table inet t; add chain inet t pre { type filter hook prerouting priority mangle; }; \
                  add rule inet t pre meta mark 0x2a counter; add rule inet t pre tcp dport 900 ip ttl 33 counter";
    assert!(ground.command("n", "nft").arg(script).output().unwrap().status.success());
    let node = ground.spawn("n", || {
        let mut queue = NfQueue::open(settings()).unwrap();
        let mut batch = settings().batch();
        let mut handled = 0;
        let start = Instant::now();
        while handled < 3 && start.elapsed() < Duration::from_secs(10) {
            wait(&queue, Duration::from_millis(100));
            queue.receive(&mut batch).unwrap();
            for packet in batch.packets() {
                handled += 1;
                if handled == 1 {
                    queue.verdict(packet.id, Verdict::Drop);
                    continue;
                }
                // Another TTL, and the header's checksum made anew.
                let mut octets = packet.payload.to_vec();
                octets[8] = 33;
                octets[10..12].fill(0);
                let sum: u32 =
                    octets[..20].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
                let sum = !((sum & 0xffff) + (sum >> 16));
                octets[10..12].copy_from_slice(&sum.to_be_bytes()[2..]);
                let verdict = if handled == 2 {
                    Verdict::Replace(&octets)
                } else {
                    Verdict::ReplaceAndMark(&octets, 0x2a)
                };
                queue.verdict(packet.id, verdict);
            }
            queue.flush().unwrap();
        }
        // A verdict on nothing is counted, and hurts nobody.
        queue.verdict(discovery_linux::queue::PacketId(4_000_000), Verdict::Accept);
        queue.flush().unwrap();
        wait(&queue, Duration::from_millis(200));
        queue.receive(&mut batch).unwrap();
        queue.counters()
    });
    let refused = ground.inside("c", || {
        std::thread::sleep(Duration::from_millis(200));
        // The first SYN is dropped: its repetition, after a second, is the second packet.
        [(); 2]
            .map(|()| TcpStream::connect_timeout(&v4(1, 2, 900), Duration::from_secs(5)).unwrap_err().kind())
    });
    let counters = node.join().unwrap();
    assert_eq!(refused, [io::ErrorKind::ConnectionRefused; 2]);
    assert_eq!((counters.packets, counters.refused), (3, 1), "{counters:?}");
    let counted = ground.shown("n", "nft list table inet t");
    assert!(counted.contains("mark 0x0000002a counter packets 1 "), "{counted}");
    assert!(counted.contains("ttl 33 counter packets 2 "), "{counted}");
}

#[test]
fn nothing_is_lost_when_the_queue_is_closed_or_its_reader_is_gone() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    queue_port(&ground, "n", "PREROUTING", 900);
    let connect = || {
        let start = Instant::now();
        let error = TcpStream::connect_timeout(&v4(1, 2, 900), Duration::from_secs(5)).unwrap_err();
        (error.kind(), start.elapsed() < Duration::from_millis(900))
    };
    // Nobody reads: bypassed.
    assert_eq!(ground.inside("c", connect), (io::ErrorKind::ConnectionRefused, true));
    // Three wait in the queue when it is closed.
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (close, is_to_close) = std::sync::mpsc::channel::<()>();
    let node = ground.spawn("n", move || {
        let queue = NfQueue::open(settings()).unwrap();
        ready.send(()).unwrap();
        is_to_close.recv().unwrap();
        assert!(wait(&queue, Duration::from_millis(900)));
        std::thread::sleep(Duration::from_millis(100));
        queue.close().unwrap();
    });
    is_ready.recv().unwrap();
    let clients = [(); 3].map(|()| ground.spawn("c", connect));
    close.send(()).unwrap();
    node.join().unwrap();
    for client in clients {
        assert_eq!(client.join().unwrap(), (io::ErrorKind::ConnectionRefused, true));
    }
    assert_eq!(ground.inside("c", connect), (io::ErrorKind::ConnectionRefused, true));
}

#[test]
fn the_descriptor_can_be_waited_for() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c"]);
    ground.inside("c", || {
        let queue = NfQueue::open(settings()).unwrap();
        assert!(!wait(&queue, Duration::from_millis(1)));
        let fd = queue.as_fd();
        assert!(rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    });
}

/// The same packets, queued twice on their way: once for us, once for the crate `nfq`.
#[test]
fn another_reader_reads_the_same() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    for tool in ["iptables-nft", "ip6tables-nft"] {
        for (table, queue) in [("raw", 7), ("mangle", 8)] {
            ground
                .run("n", &format!("{tool} -t {table} -A PREROUTING -p tcp -j NFQUEUE --queue-num {queue}"));
        }
    }
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let is_done = std::sync::Arc::clone(&done);
    let node = ground.spawn("n", move || {
        let mut ours = NfQueue::open(settings()).unwrap();
        let mut theirs = nfq::Queue::open().unwrap();
        theirs.bind(8).unwrap();
        theirs.set_nonblocking(true);
        ready.send(()).unwrap();
        let mut batch = settings().batch();
        let (mut read, mut read_by_them) = (Vec::new(), Vec::new());
        while !is_done.load(std::sync::atomic::Ordering::Relaxed) || wait(&ours, Duration::from_millis(50)) {
            ours.receive(&mut batch).unwrap();
            for packet in batch.packets() {
                read.push((packet.hook, packet.indev, packet.payload.to_vec(), packet.whole));
                ours.verdict(packet.id, Verdict::Mark(0x40));
            }
            ours.flush().unwrap();
            while let Ok(mut message) = theirs.recv() {
                assert_eq!(message.get_nfmark(), 0x40, "our mark");
                let hook = match message.get_hook() {
                    0 => Hook::Prerouting,
                    other => Hook::Other(other),
                };
                let whole = message.get_original_len() == message.get_payload().len();
                read_by_them.push((hook, message.get_indev(), message.get_payload().to_vec(), whole));
                message.set_verdict(nfq::Verdict::Accept);
                theirs.verdict(message).unwrap();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        (read, read_by_them)
    });
    is_ready.recv().unwrap();
    let server = ground.spawn("s", || {
        let listener = TcpListener::bind("0.0.0.0:900").unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        io::Read::read_to_end(&mut stream, &mut got).unwrap();
        got.len()
    });
    let sent = ground.inside("c", || {
        std::thread::sleep(Duration::from_millis(100));
        let mut stream = TcpStream::connect_timeout(&v4(1, 2, 900), Duration::from_secs(5)).unwrap();
        let sent = vec![7; 1000];
        for _ in 0..20 {
            io::Write::write_all(&mut stream, &sent).unwrap();
        }
        drop(TcpStream::connect_timeout(&v6(1, 2, 9), Duration::from_secs(5)));
        20 * sent.len()
    });
    assert_eq!(server.join().unwrap(), sent);
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let (read, read_by_them) = node.join().unwrap();
    assert!(read.len() > 8, "{}", read.len());
    assert_eq!(read, read_by_them);
}
