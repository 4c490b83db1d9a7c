//! Sockets in somebody else's name.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use discovery_core::flow::Flow;
use discovery_linux::broker::{Early, LocalBroker, RemoteBroker, Served, SocketBroker, pair, serve};
use discovery_linux::marks;
use discovery_linux::queue::{NfQueue, PacketQueue, QueueSettings, Verdict};
use discovery_linux::rules::{Listen, Mode, Rules};
use discovery_linux::socket::{ConnectFailure, Connecting, Family, RawSender, Target, TransparentListener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ground::{self, Ground, any, both, v4, v6};
use crate::rules::{interfaces, plan, saved};

fn wait(fd: impl AsFd, flags: PollFlags, patience: Duration) -> bool {
    let nanos = patience.subsec_nanos().into();
    let wait = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: nanos };
    poll(&mut [PollFd::new(&fd, flags)], Some(&wait)).unwrap() > 0
}

fn connect(flow: Flow) -> Result<OwnedFd, ConnectFailure> {
    let mut connecting = Connecting::begin(flow, Target::Away)?;
    for _ in 0..20 {
        wait(&connecting, PollFlags::OUT, Duration::from_millis(500));
        match connecting.finish()? {
            Ok(connected) => return Ok(connected),
            Err(still) => connecting = still,
        }
    }
    Err(ConnectFailure::TimedOut)
}

/// The rules of a routed node with a listener of its own, without anybody at the queue.
fn ready(ground: &Ground, place: &'static str) -> (Rules, TransparentListener, TransparentListener) {
    let saved = saved(ground, place);
    ground.inside(place, move || {
        let four = TransparentListener::bind(Family::V4, 0).unwrap();
        let six = TransparentListener::bind(Family::V6, 0).unwrap();
        let listen = Listen { v4: four.port().unwrap(), v6: Some(six.port().unwrap()) };
        let mode = Mode::Routed { interfaces: interfaces(&["left", "right"]) };
        let mut rules = Rules::new(plan("a", mode, listen), saved);
        rules.install().unwrap();
        (rules, four, six)
    })
}

#[test]
fn the_server_sees_the_client_and_failures_are_told_apart() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    let (mut rules, ..) = ready(&ground, "n");
    let server = ground.spawn("s", || {
        let listeners = both(1, 2, 143).map(|at| TcpListener::bind(at).unwrap());
        listeners.map(|listener| {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            let mut end = [0; 1];
            (peer, stream.read(&mut end).map_err(|error| error.kind()))
        })
    });
    std::thread::sleep(Duration::from_millis(100));
    let clients = both(0, 1, 45_678);
    let (said, failures) = ground.inside("n", move || {
        let flows = [(clients[0], v4(1, 2, 143)), (clients[1], v6(1, 2, 143))];
        let said = flows.map(|(client, server)| {
            let connection = connect(Flow { client, server }).unwrap();
            let mut stream = TcpStream::from(connection);
            stream.set_nonblocking(false).unwrap();
            let mut said = [0; 5];
            stream.read_exact(&mut said).unwrap();
            // As the end of a process would.
            drop(stream);
            said
        });
        let failing = |client: SocketAddr, server| connect(Flow { client, server }).unwrap_err();
        let failures = [
            failing(clients[0], v4(1, 2, 9)),
            failing(clients[1], v6(1, 2, 9)),
            failing(clients[0], "10.99.0.1:9".parse().unwrap()),
            // Its neighbours do not know it.
            failing(clients[0], v4(1, 77, 9)),
        ];
        (said, failures)
    });
    assert_eq!(said, [*b"hello"; 2]);
    let seen = server.join().unwrap();
    assert_eq!(seen.map(|(peer, _)| peer), clients);
    assert_eq!(seen.map(|(_, end)| end), [Err(std::io::ErrorKind::ConnectionReset); 2]);
    use ConnectFailure::{HostUnreachable, NetworkUnreachable, Refused};
    assert_eq!(failures, [Refused, Refused, NetworkUnreachable, HostUnreachable]);
    ground.inside("n", move || rules.remove().unwrap());
}

#[test]
fn an_injected_syn_is_accepted_as_the_server() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    let (mut rules, four, six) = ready(&ground, "n");
    // Takes every SYN to port 143 over: what a node does once its peer has said yes.
    let node = ground.spawn("n", move || {
        let settings = QueueSettings::handshakes(10);
        let mut queue = NfQueue::open(settings).unwrap();
        let inject = RawSender::open(marks::INJECTED, true).unwrap();
        let mut batch = settings.batch();
        let mut accepted = Vec::new();
        let start = Instant::now();
        while accepted.len() < 2 && start.elapsed() < Duration::from_secs(10) {
            wait(&queue, PollFlags::IN, Duration::from_millis(10));
            queue.receive(&mut batch).unwrap();
            for packet in batch.packets() {
                inject.send(packet.payload).unwrap();
                queue.verdict(packet.id, Verdict::Drop);
            }
            queue.flush().unwrap();
            for listener in [&four, &six] {
                while let Some(intercepted) = listener.accept().unwrap() {
                    let mut stream = TcpStream::from(intercepted.socket);
                    stream.set_nonblocking(false).unwrap();
                    let mut asked = [0; 3];
                    stream.read_exact(&mut asked).unwrap();
                    stream.write_all(b"over").unwrap();
                    accepted.push((intercepted.flow, asked));
                }
            }
        }
        let counters = queue.counters();
        rules.remove().unwrap();
        queue.close().unwrap();
        (accepted, counters)
    });
    std::thread::sleep(Duration::from_millis(300));
    let servers = [v4(1, 2, 143), v6(1, 2, 143)];
    let clients = ground.inside("c", move || {
        servers.map(|server| {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), server);
            stream.write_all(b"who").unwrap();
            let mut said = [0; 4];
            stream.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"over");
            stream.local_addr().unwrap()
        })
    });
    let (accepted, counters) = node.join().unwrap();
    let expected = clients.into_iter().zip(servers);
    let expected: Vec<_> = expected.map(|(client, server)| (Flow { client, server }, *b"who")).collect();
    assert_eq!(accepted, expected);
    assert_eq!(counters.packets, 2, "the injected SYN is not queued again");
    // Control: with the rules out the same client is refused by the server itself.
    let direct = ground.inside("c", move || TcpStream::connect_timeout(&servers[0], Duration::from_secs(5)));
    assert_eq!(direct.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_process_without_rights_gets_its_sockets_from_one_that_has_them() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&["c", "n", "s"]);
    let (mut rules, four, six) = ready(&ground, "n");
    let port = four.port().unwrap();
    let (asks, answers) = pair().unwrap();
    let early = Early::default();
    let kept = early.clone();
    let broker = ground.spawn("n", move || {
        let broker = LocalBroker::new(Some(four), Some(six), early);
        while wait(&answers, PollFlags::IN, Duration::from_secs(10)) {
            if serve(answers.as_fd(), &broker).unwrap() == Served::Closed {
                break;
            }
        }
    });
    let server = ground.spawn("s", || {
        let listener = TcpListener::bind(any(v4(1, 2, 143))).unwrap();
        let mut peers = Vec::new();
        for _ in 0..2 {
            peers.push(listener.accept().unwrap().1);
        }
        peers
    });
    std::thread::sleep(Duration::from_millis(100));
    let flow = |port| Flow { client: v4(0, 1, port), server: v4(1, 2, 143) };
    let opened_early = ground.inside("n", move || connect(flow(40_001)).unwrap());
    assert!(kept.keep(flow(40_001), opened_early).is_none());
    let worker = ground.spawn("n", move || {
        // This thread, and only it, gives up what makes it root.
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none).unwrap();
        let alone = TransparentListener::bind(Family::V4, 0).unwrap_err().raw_os_error();
        let broker = RemoteBroker::new(asks).unwrap();
        let listener = TransparentListener::from_fd(broker.listener(Family::V4).unwrap());
        let claimed = TcpStream::from(broker.claim(flow(40_001)).unwrap());
        let begun = Connecting::from_fd(broker.connect(flow(40_002), Target::Away).unwrap());
        wait(&begun, PollFlags::OUT, Duration::from_secs(5));
        let connected = TcpStream::from(begun.finish().unwrap().unwrap());
        let bound = TcpStream::from(broker.transparent(v4(0, 1, 40_003)).unwrap());
        let refused = broker.connect(flow(40_001), Target::Away);
        (
            alone,
            listener.port().unwrap(),
            claimed.local_addr().unwrap(),
            connected.local_addr().unwrap(),
            bound.local_addr().unwrap(),
            refused.map(drop),
        )
    });
    let (alone, listening, claimed, connected, bound, refused) = worker.join().unwrap();
    assert_eq!(alone, Some(libc::EPERM), "control: without the broker it has no right");
    assert_eq!(listening, port);
    assert_eq!([claimed, connected, bound], [40_001, 40_002, 40_003].map(|port| v4(0, 1, port)));
    assert!(refused.is_err(), "the four numbers are in use");
    assert_eq!(server.join().unwrap(), [40_001, 40_002].map(|port| v4(0, 1, port)));
    broker.join().unwrap();
    ground.inside("n", move || rules.remove().unwrap());
}
