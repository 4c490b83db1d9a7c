//! Two nodes between a client and a server that know nothing of them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use discovery_linux::rules::Extent;

use crate::ground::{self, Ground, both};
use crate::node::{Node, NodeProcess, NodeSpec};

/// client – client's node – WAN – server's node – server.
pub(crate) const PLACES: [&str; 5] = ["c", "cp", "w", "sp", "s"];

/// Both server addresses.
pub(crate) fn servers(port: u16) -> [SocketAddr; 2] {
    both(3, 2, port)
}

/// Says who it thinks it talks to, then echoes.
pub(crate) fn serve(ground: &Ground) {
    for at in servers(143) {
        let (ready, is_ready) = std::sync::mpsc::channel();
        ground.spawn("s", move || {
            let listener = TcpListener::bind(at).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let peer = stream.peer_addr().unwrap();
                    if stream.write_all(format!("{peer}\n").as_bytes()).is_ok() {
                        let mut copy = stream.try_clone().unwrap();
                        drop(io::copy(&mut copy, &mut stream));
                    }
                });
            }
        });
        is_ready.recv().unwrap();
    }
}

/// What a client found: its own address, the server's as it sees it, who the server thinks it is, and the time.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) said: String,
    pub(crate) echoed: bool,
    pub(crate) connect: Duration,
}

pub(crate) fn ask(ground: &Ground, server: SocketAddr) -> io::Result<Found> {
    ground.inside("c", move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(8))?;
        let connect = start.elapsed();
        stream.set_read_timeout(Some(Duration::from_secs(8)))?;
        let mut said = Vec::new();
        let mut octet = [0];
        while !said.ends_with(b"\n") {
            stream.read_exact(&mut octet)?;
            said.extend(octet);
        }
        let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut writer = stream.try_clone()?;
        let copy = sent.clone();
        let write = std::thread::spawn(move || writer.write_all(&copy));
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got)?;
        write.join().unwrap()?;
        let said = String::from_utf8(said).unwrap().trim().to_owned();
        Ok(Found {
            local: stream.local_addr()?,
            remote: stream.peer_addr()?,
            said,
            echoed: got == sent,
            connect,
        })
    })
}

/// What passes an interface, in tcpdump's words.
struct Capture {
    child: Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(ground: &Ground, place: &str, interface: &str) -> Option<Self> {
        let file = std::env::temp_dir().join(format!("{}-{interface}.capture", ground.name(place)));
        let mut command = ground.command(place, "tcpdump");
        command.args(["-n", "-l", "-i", interface, "tcp"]);
        command.stdout(std::fs::File::create(&file).unwrap()).stderr(Stdio::piped());
        let mut child = command.spawn().ok()?;
        // It says so when it listens.
        let mut said = Vec::new();
        let mut octet = [0];
        let mut stderr = child.stderr.take().unwrap();
        while !said.ends_with(b"listening on") {
            stderr.read_exact(&mut octet).expect("tcpdump is installed");
            said.extend(octet);
        }
        std::thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        Some(Self { child, file })
    }

    /// The lines so far that say all of this.
    fn lines(&self, words: &[&str]) -> Vec<String> {
        // tcpdump writes a line when the packet's buffer is handed to it.
        std::thread::sleep(Duration::from_millis(1200));
        let text = std::fs::read_to_string(&self.file).unwrap();
        let fits = |line: &&str| words.iter().all(|word| line.contains(word));
        text.lines().filter(fits).map(str::to_owned).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.file));
    }
}

/// Every place drops what its connection tracking does not understand, and counts it.
fn drop_invalid(ground: &Ground) {
    for place in PLACES {
        for hook in ["input", "forward", "output"] {
            for line in [
                "add table inet strict".to_owned(),
                format!("add chain inet strict {hook} {{ type filter hook {hook} priority 0; }}"),
                format!("add rule inet strict {hook} ct state invalid counter drop"),
            ] {
                assert!(ground.command(place, "nft").arg(line).status().unwrap().success());
            }
        }
    }
}

fn dropped(ground: &Ground) -> u64 {
    let mut sum = 0;
    for place in PLACES {
        let table = ground.shown(place, "nft list table inet strict");
        for counted in table.split("counter packets ").skip(1) {
            sum += counted.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

fn nodes(ground: &Ground) -> (Node, Node) {
    (NodeSpec::routed(ground, "sp", 2, 2).start(), NodeSpec::routed(ground, "cp", 1, 1).start())
}

#[test]
fn a_pair_finds_itself_and_each_end_sees_the_others_address() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    let before = PLACES.map(|place| ground.state(place));
    serve(&ground);
    let wan = Capture::start(&ground, "w", "left").unwrap();
    let at_server = Capture::start(&ground, "s", "left").unwrap();
    let (sp, cp) = nodes(&ground);
    for server in servers(143) {
        let found = ask(&ground, server).unwrap();
        assert_eq!(found.remote, server);
        assert_eq!(found.said, found.local.to_string(), "the server sees the client");
        assert!(found.echoed);
        assert!(found.connect < Duration::from_millis(500), "{found:?}");
        // A port where nobody listens is as far away as the server.
        let start = Instant::now();
        let refused = ask(&ground, SocketAddr::new(server.ip(), 9)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(start.elapsed() < Duration::from_millis(900));
    }
    let (cp_counts, cp_loop) = cp.counts();
    let (sp_counts, sp_loop) = sp.counts();
    println!("client's node: {cp_counts:?} {cp_loop:?}\nserver's node: {sp_counts:?} {sp_loop:?}");
    // On the wire: queries on the client's SYNs, responses on forged answers; the server's own link is clean but for
    // the query of the next node that might have been.
    assert_eq!(wan.lines(&["Flags [S]", "unknown-253 0x57501100", ".143:"]).len(), 2);
    assert_eq!(wan.lines(&["Flags [S.]", "unknown-253 0x57501201"]).len(), 2);
    assert_eq!(at_server.lines(&["Flags [S]", ".143:", "unknown-253 0x57501100"]).len(), 2);
    // Octets of the connection went over the link, and not beside it.
    let beside = || [wan.lines(&["Flags [P.]", ".143: "]), wan.lines(&["Flags [P.]", ".143 > "])].concat();
    assert_eq!(beside(), [""; 0]);
    assert!(!wan.lines(&["Flags [P.]", ".7777: "]).is_empty());
    assert_eq!((cp_loop.unread, cp_loop.unsent, sp_loop.unread, sp_loop.unsent), (0, 0, 0, 0));
    // Control: without the rules of the client's node nothing of it is on the wire, and the connection is direct.
    cp.set(Extent::Drain);
    let queries = wan.lines(&["unknown-253"]).len();
    for server in servers(143) {
        let found = ask(&ground, server).unwrap();
        assert_eq!((found.said, found.echoed), (found.local.to_string(), true));
    }
    assert_eq!(wan.lines(&["unknown-253"]).len(), queries);
    assert!(!beside().is_empty());
    cp.set(Extent::Full);
    ask(&ground, servers(143)[0]).unwrap();
    assert!(wan.lines(&["unknown-253"]).len() > queries, "switched on again");
    drop((sp, cp));
    assert_eq!(PLACES.map(|place| ground.state(place)), before);
}

#[test]
fn strict_connection_tracking_on_the_whole_path_drops_nothing() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    drop_invalid(&ground);
    let (_sp, cp) = nodes(&ground);
    for server in servers(143) {
        let found = ask(&ground, server).unwrap();
        assert_eq!((found.said, found.echoed), (found.local.to_string(), true));
    }
    let (counts, _) = cp.counts();
    assert_eq!(counts.get("carried"), Some(&2), "{counts:?}");
    assert_eq!(dropped(&ground), 0);
}

#[test]
fn one_node_alone_leaves_every_connection_as_it_is() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    for (place, network, host) in [("cp", 1, 1), ("sp", 2, 2)] {
        let node = NodeSpec::routed(&ground, place, network, host).start();
        for server in servers(143) {
            let found = ask(&ground, server).unwrap();
            assert_eq!((found.said, found.echoed), (found.local.to_string(), true), "{place}");
            let refused = ask(&ground, SocketAddr::new(server.ip(), 9)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        drop(node);
    }
}

#[test]
fn an_engine_whose_agent_is_gone_stands_aside() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    serve(&ground);
    let sp = NodeSpec::routed(&ground, "sp", 2, 2).start();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut spec = NodeSpec::routed(&ground, "cp", 1, 1);
    spec.lifeline = Some(ours.into());
    let cp = spec.start();
    ask(&ground, servers(143)[0]).unwrap();
    assert_eq!(sp.counts().0.get("claimed"), Some(&1), "control: it takes connections");
    drop(theirs);
    for server in servers(143) {
        let found = ask(&ground, server).unwrap();
        assert_eq!((found.said, found.echoed), (found.local.to_string(), true));
    }
    assert_eq!(sp.counts().0.get("claimed"), Some(&1), "direct");
    assert!(cp.counts().0.get("agent-down").is_some_and(|count| *count >= 2), "{:?}", cp.counts());
}

#[test]
fn a_killed_node_is_not_missed() {
    if !ground::possible() {
        return;
    }
    let ground = Ground::row(&PLACES);
    let before = ground.state("cp");
    serve(&ground);
    let sp = NodeSpec::routed(&ground, "sp", 2, 2).start();
    let mut cp = NodeProcess::start(&ground, "cp", 1, 1);
    let carried = |sp: &Node| sp.counts().0.get("claimed").copied().unwrap_or(0);
    ask(&ground, servers(143)[0]).unwrap();
    assert_eq!(carried(&sp), 1);
    cp.kill();
    for server in [servers(143), servers(143)].concat() {
        let found = ask(&ground, server).unwrap();
        assert!(found.connect < Duration::from_millis(500), "{found:?}");
        assert_eq!((found.said, found.echoed), (found.local.to_string(), true));
    }
    assert_eq!(carried(&sp), 1, "direct");
    assert_ne!(ground.state("cp"), before, "control: it left its rules behind");
    // Its successor cleans up, works, and goes without a trace.
    let mut cp = NodeProcess::start(&ground, "cp", 1, 1);
    ask(&ground, servers(143)[0]).unwrap();
    assert_eq!(carried(&sp), 2);
    drop(cp.child.stdin.take());
    assert!(cp.child.wait().unwrap().success());
    assert_eq!(ground.state("cp"), before);
}
