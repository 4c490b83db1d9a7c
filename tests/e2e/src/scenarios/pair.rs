//! Two nodes on the path, which nobody has told of each other: found on the client's own SYN, seen by nobody, and not
//! there when anything is wrong.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use lab::{Lab, Place};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::case::Case;
pub(crate) use crate::path::ends::noise;
use crate::path::ends::told_dead;
use crate::waypost::{Waypost, tail};

pub(crate) const ECHO: u16 = 8000;
const CLOSED: u16 = 8001;
/// Longer than anything here takes on a busy machine.
pub(crate) const STALL: Duration = Duration::from_secs(20);
/// Clients wait for so long; what a link keeps of its streams lives for twice as long.
const OUTAGE: Duration = Duration::from_secs(30);

/// Both nodes of a lab, or one of them.
pub(crate) struct Nodes<'l> {
    lab: &'l Lab,
    case: &'l Case,
    branch: Option<Waypost>,
    centre: Option<Waypost>,
    /// What runs; the scenario's own copy, where it is to be replaced.
    pub(crate) executable: PathBuf,
    /// Lines for `[interception]`.
    pub(crate) interception: String,
    /// Where systemd would listen.
    pub(crate) notify: Option<PathBuf>,
    /// Where tools are looked for.
    pub(crate) path: Option<String>,
    /// Whom the nodes become.
    pub(crate) user: Option<&'static str>,
}

impl<'l> Nodes<'l> {
    /// Makes an authority and gives both nodes an identity; starts nothing.
    pub(crate) fn of(case: &'l Case, lab: &'l Lab) -> anyhow::Result<Self> {
        let executable = case.executable.clone();
        let interception = String::new();
        let nodes = Self {
            lab,
            case,
            branch: None,
            centre: None,
            executable,
            interception,
            notify: None,
            path: None,
            user: None,
        };
        let authority = lab.directory().join("node-ca");
        nodes.run(&["ca", "init", "--node", "--dir", text(&authority)?])?;
        for place in [Place::Branch, Place::Centre] {
            let directory = nodes.directory(place);
            std::fs::create_dir_all(&directory)?;
            let token = nodes.run(&["token", "new", "--id", place.name(), "--ca-dir", text(&authority)?])?;
            let file = directory.join("token");
            std::fs::write(&file, token)?;
            nodes.run(&["join", text(&file)?, "--state-dir", text(&directory)?])?;
        }
        Ok(nodes)
    }

    /// Both, on a path that they take.
    pub(crate) fn pair(case: &'l Case, lab: &'l Lab) -> anyhow::Result<Self> {
        let mut nodes = Self::of(case, lab)?;
        nodes.start(Place::Centre, "intercept")?;
        nodes.start(Place::Branch, "intercept")?;
        Ok(nodes)
    }

    pub(crate) fn directory(&self, place: Place) -> PathBuf {
        self.lab.directory().join(format!("node-{}", place.name()))
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&self.case.executable).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "waypost {}: {said}", arguments.join(" "));
        Ok(output.stdout)
    }

    pub(crate) fn start(&mut self, place: Place, action: &str) -> anyhow::Result<()> {
        self.start_for(place, action, &format!("{ECHO}, {CLOSED}, 143, 993"))
    }

    /// With a rule for these ports.
    pub(crate) fn start_for(&mut self, place: Place, action: &str, ports: &str) -> anyhow::Result<()> {
        self.start_with(place, "", &format!("[[rule]]\naction = {action:?}\nports = [{ports}]\n"))
    }

    /// With this rule.
    pub(crate) fn start_ruled(&mut self, place: Place, rule: &str) -> anyhow::Result<()> {
        self.start_with(place, "", &format!("[[rule]]\n{rule}\n"))
    }

    /// With more sections in its file.
    pub(crate) fn start_served(
        &mut self,
        place: Place,
        action: &str,
        ports: &str,
        more: &str,
    ) -> anyhow::Result<()> {
        self.start_with(place, "", &format!("[[rule]]\naction = {action:?}\nports = [{ports}]\n{more}"))
    }

    /// With these lines in `[interception]`, and these rules.
    pub(crate) fn start_with(&mut self, place: Place, lines: &str, rules: &str) -> anyhow::Result<()> {
        let directory = self.directory(place);
        let wan = wan_device(self.lab, place)?;
        let named = lines.contains("interfaces");
        let interfaces = if named { String::new() } else { format!("interfaces = [\"lan0\", {wan:?}]\n") };
        let text = format!(
            "version = 1\n[node]\nid = {:?}\nstate_dir = {directory:?}\n{}[log]\nlevel = \"debug\"\nformat = \"json\"\n\
             [interception]\n{interfaces}{lines}\n{}\n{rules}",
            place.name(),
            self.user.map_or_else(String::new, |user| format!("user = {user:?}\n")),
            self.interception,
        );
        let file = directory.join("waypost.toml");
        std::fs::write(&file, text)?;
        let mut command = self.lab.command(place, &self.executable);
        command.arg("run").arg("-c").arg(file);
        if let Some(notify) = &self.notify {
            command.env("NOTIFY_SOCKET", notify);
        }
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut node = Waypost::spawn(self.case, command)?;
        if rules.contains("\"pass\"") && !rules.contains("\"intercept") && !rules.contains("drop") {
            node.watch.announce("so nothing is touched");
        }
        let start = Instant::now();
        while !node.watch.text().contains("\"ready\"") {
            node.still_runs()?;
            ensure!(start.elapsed() < STALL, "not ready:\n{}", tail(&node.watch.text()));
            thread::sleep(Duration::from_millis(20));
        }
        *self.slot(place) = Some(node);
        Ok(())
    }

    fn slot(&mut self, place: Place) -> &mut Option<Waypost> {
        if place == Place::Branch { &mut self.branch } else { &mut self.centre }
    }

    pub(crate) fn node(&mut self, place: Place) -> anyhow::Result<&mut Waypost> {
        self.slot(place).as_mut().context("this node does not run")
    }

    /// What `waypost status` says of the path.
    pub(crate) fn status(&self, place: Place) -> anyhow::Result<Value> {
        self.all_status(place)?.get("path").cloned().context("no path in the status")
    }

    /// What it says of the supervisor.
    pub(crate) fn supervisor(&self, place: Place) -> anyhow::Result<Value> {
        self.all_status(place)?.get("supervisor").cloned().context("no supervisor in the status")
    }

    fn all_status(&self, place: Place) -> anyhow::Result<Value> {
        let socket = self.directory(place).join("admin.sock");
        let said = self.run(&["status", "--json", "--socket", text(&socket)?])?;
        Ok(serde_json::from_slice(&said)?)
    }

    /// `waypost upgrade`.
    pub(crate) fn upgrade(&self, place: Place) -> anyhow::Result<()> {
        let socket = self.directory(place).join("admin.sock");
        self.run(&["upgrade", "--socket", text(&socket)?]).map(drop)
    }

    /// `waypost bypass`.
    pub(crate) fn bypass(&self, place: Place, to: &str) -> anyhow::Result<()> {
        let socket = self.directory(place).join("admin.sock");
        self.run(&["bypass", to, "--socket", text(&socket)?]).map(drop)
    }

    /// How often the node gave a reason.
    pub(crate) fn count(&self, place: Place, reason: &str) -> anyhow::Result<u64> {
        let status = self.status(place)?;
        let reasons = status.get("reasons").and_then(Value::as_array).context("no reasons")?;
        let named = reasons.iter().find(|named| named.get("word").and_then(Value::as_str) == Some(reason));
        Ok(named.and_then(|named| named.get("n")?.as_u64()).unwrap_or(0))
    }

    /// Waits until no node carries anything.
    pub(crate) fn at_rest(&self, places: &[Place]) -> anyhow::Result<()> {
        let start = Instant::now();
        for place in places {
            while self.status(*place)?.get("carried").and_then(Value::as_u64) != Some(0) {
                ensure!(start.elapsed() < STALL, "{} still carries something", place.name());
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

pub(crate) fn text(path: &std::path::Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}

pub(crate) fn wan_device(lab: &Lab, place: Place) -> anyhow::Result<String> {
    let output = lab.command(place, "ip").args(["-o", "link"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = said.lines().filter_map(|line| line.split(": ").nth(1));
    let device =
        names.map(|name| name.split('@').next().unwrap_or(name)).find(|name| name.starts_with("wan"));
    Ok(device.context("no way to the WAN")?.to_owned())
}

/// A server that says whom it sees, and then gives back what it gets.
pub(crate) fn echo_server(lab: &Lab) -> anyhow::Result<()> {
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        let listener = lab.inside(Place::Server, move || TcpListener::bind((ip, ECHO)))??;
        thread::spawn(move || {
            while let Ok((stream, from)) = listener.accept() {
                thread::spawn(move || echo(stream, from));
            }
        });
    }
    Ok(())
}

pub(crate) fn echo(mut stream: TcpStream, from: SocketAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{from}\n").as_bytes())?;
    let mut back = stream.try_clone()?;
    std::io::copy(&mut stream, &mut back)?;
    back.shutdown(Shutdown::Write)
}

/// A client in the branch; the server's word for who it is has been read.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) connected: Duration,
    seen_as: String,
}

impl Client {
    pub(crate) fn connect(lab: &Lab, ip: IpAddr) -> anyhow::Result<Self> {
        let (stream, connected) = lab.inside(Place::Client, move || {
            let start = Instant::now();
            let stream = TcpStream::connect_timeout(&(ip, ECHO).into(), STALL)?;
            Ok::<_, std::io::Error>((stream, start.elapsed()))
        })??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL))?;
        let mut client = Self { stream, connected, seen_as: String::new() };
        let mut octet = [0];
        while !client.seen_as.ends_with('\n') {
            client.stream.read_exact(&mut octet).context("the server's greeting")?;
            client.seen_as.push(char::from(octet[0]));
        }
        Ok(client)
    }

    /// The server and the client see each other and nobody else.
    pub(crate) fn sees_the_truth(&self, ip: IpAddr) -> anyhow::Result<()> {
        let own = self.stream.local_addr()?.to_string();
        ensure!(
            self.seen_as.trim_end() == own,
            "the server sees {} instead of {own}",
            self.seen_as.trim_end()
        );
        ensure!(self.stream.peer_addr()? == (ip, ECHO).into(), "{:?}", self.stream.peer_addr());
        Ok(())
    }

    /// The server's word for who this is.
    pub(crate) fn seen_as(&self) -> &str {
        self.seen_as.trim_end()
    }

    pub(crate) fn peer(&self) -> std::io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    pub(crate) fn echoes(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        let back = self.exchange(octets)?;
        ensure!(back == octets.len() as u64, "{back} octets of {} came back", octets.len());
        Ok(())
    }

    pub(crate) fn exchange(&mut self, octets: &[u8]) -> anyhow::Result<u64> {
        let (mut up, own) = (self.stream.try_clone()?, octets.to_vec());
        let writing = thread::spawn(move || up.write_all(&own));
        let mut back = vec![0; octets.len()];
        let read = self.stream.read_exact(&mut back);
        // A reset is told once, to whoever asks first, and that may be the writer: the reader then sees an end.
        let over = matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof);
        if over || read.is_ok() {
            writing.join().map_err(|_| anyhow!("the writer panicked"))??;
        }
        read.context("what was sent does not come back")?;
        ensure!(Sha256::digest(&back) == Sha256::digest(octets), "other octets came back");
        Ok(back.len() as u64)
    }

    /// Half-close, and the server's own end.
    pub(crate) fn ends(mut self) -> anyhow::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        ensure!(self.stream.read(&mut [0; 16])? == 0, "something after the end");
        Ok(())
    }
}

/// SYNs to the echo port, seen on a device.
pub(crate) struct Capture {
    child: Child,
    lines: Receiver<String>,
}

impl Capture {
    fn begin(lab: &Lab, place: Place, device: &str) -> anyhow::Result<Self> {
        // In IPv6 libpcap looks for flags behind the fixed header only, which is where they are here.
        let syn = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn or (ip6 and ip6[53] & 0x12 == 2)";
        Self::of(lab.command(place, "tcpdump"), device, &format!("tcp dst port {ECHO} and ({syn})"))
    }

    /// Of what fits, by a command that is to be tcpdump.
    pub(crate) fn of(mut command: Command, device: &str, filter: &str) -> anyhow::Result<Self> {
        // Headers only, and room for a burst: what a full buffer drops would look like what was never sent.
        command.args(["-i", device, "-l", "-n", "-v", "-s", "192", "-B", "8192", "--immediate-mode", filter]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("tcpdump")?;
        let (tell, lines) = channel();
        let stdout = child.stdout.take().context("tcpdump's output")?;
        let stderr = child.stderr.take().context("tcpdump's messages")?;
        thread::spawn(move || {
            use std::io::BufRead as _;
            for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(tell.send(line));
            }
        });
        let (ready, begun) = channel();
        thread::spawn(move || {
            use std::io::BufRead as _;
            for line in std::io::BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("listening on") {
                    let _gone = ready.send(());
                }
            }
        });
        begun.recv_timeout(STALL).context("tcpdump does not begin")?;
        Ok(Self { child, lines })
    }

    /// Waits until it has seen a line with `what`; whether it has.
    pub(crate) fn sees(&self, what: &str, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if line.contains(what) {
                return true;
            }
        }
        false
    }

    /// How many SYNs, and how many of them with the probe.
    fn end(self) -> anyhow::Result<(usize, usize)> {
        let text = self.lines()?;
        let syns = text.iter().filter(|line| line.contains("Flags [S]")).count();
        let probed = text
            .iter()
            .filter(|line| line.contains("Flags [S]") && crate::path::capture::has_probe(line))
            .count();
        Ok((syns, probed))
    }

    /// What it printed, packet by packet.
    pub(crate) fn lines(mut self) -> anyhow::Result<Vec<String>> {
        // What was sent a moment ago is on its way to us.
        thread::sleep(Duration::from_millis(300));
        lab::sys::kill(i32::try_from(self.child.id())?, libc::SIGTERM)?;
        self.child.wait()?;
        Ok(self.lines.iter().collect())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended in order.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two nodes find each other, over IPv4 and IPv6; neither end sees them; the next connection needs no probe.
pub(crate) fn carries(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    let wan = wan_device(&lab, Place::Centre)?;
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        let (on_wan, at_server) =
            (Capture::begin(&lab, Place::Centre, &wan)?, Capture::begin(&lab, Place::Server, "eth0")?);
        let mut client = Client::connect(&lab, ip)?;
        client.sees_the_truth(ip)?;
        client.echoes(&noise(3_000_000))?;
        client.ends()?;
        let ((wan_syns, probed), (server_syns, leaked)) = (on_wan.end()?, at_server.end()?);
        ensure!(wan_syns > 0 && probed > 0, "{ip}: {wan_syns} SYNs on the WAN, {probed} with the probe");
        // The far node asks on for a further one; the server ignores it.
        ensure!(server_syns == 1, "{ip}: {server_syns} SYNs at the server");
        case.note("query-at-server", leaked);
        nodes.at_rest(&[Place::Branch, Place::Centre])?;
        let before = nodes.count(Place::Branch, "table-hit")?;
        let on_wan = Capture::begin(&lab, Place::Centre, &wan)?;
        let mut again = Client::connect(&lab, ip)?;
        again.sees_the_truth(ip)?;
        again.echoes(&noise(100_000))?;
        again.ends()?;
        let (syns, _) = on_wan.end()?;
        ensure!(nodes.count(Place::Branch, "table-hit")? == before + 1, "{ip}: the peer is not known");
        ensure!(syns == 0, "{ip}: {syns} SYNs of a connection that the link carries");
    }
    let carried = nodes.count(Place::Branch, "carried")?;
    ensure!(carried == 4, "{carried} connections were carried, of 4");
    // Without the rule, nobody asks: the same capture would not have seen a probe.
    nodes.node(Place::Branch)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Branch)?.wait(STALL)?;
    nodes.start(Place::Branch, "pass")?;
    let on_wan = Capture::begin(&lab, Place::Centre, &wan)?;
    Client::connect(&lab, Place::Server.v4())?.ends()?;
    let (syns, probed) = on_wan.end()?;
    ensure!(syns == 1 && probed == 0, "without the rule: {syns} SYNs, {probed} with the probe");
    Ok(())
}

/// A closed port is refused to the client within a round trip or two, and a node alone is not in the way.
pub(crate) fn refused_and_alone(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::pair(case, &lab)?;
    let (refused, took) = lab.inside(Place::Client, || {
        let start = Instant::now();
        let closed = SocketAddr::new(Place::Server.v4(), CLOSED);
        (TcpStream::connect_timeout(&closed, STALL), start.elapsed())
    })?;
    let kind = refused.err().map(|error| error.kind());
    ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "a closed port: {kind:?}");
    ensure!(took < Duration::from_secs(1), "a closed port is refused after {took:?}");
    case.note("refused-ms", u64::try_from(took.as_millis())?);
    // Not past the pair: the far node asked the server, and it was refused.
    let (asked, told) =
        (nodes.count(Place::Branch, "probing")?, nodes.count(Place::Centre, "server-refused")?);
    ensure!((asked, told) == (1, 1), "asked {asked} times, and the far node was refused {told} times");
    nodes.node(Place::Centre)?.signal(libc::SIGTERM)?;
    nodes.node(Place::Centre)?.wait(STALL)?;
    nodes.node(Place::Branch)?.kill()?;
    nodes.start(Place::Branch, "intercept")?;
    for expected in ["server-answered", "no-proxy"] {
        let before = nodes.count(Place::Branch, expected)?;
        let mut client = Client::connect(&lab, Place::Server.v4())?;
        client.sees_the_truth(Place::Server.v4())?;
        client.echoes(&noise(100_000))?;
        client.ends()?;
        ensure!(nodes.count(Place::Branch, expected)? > before, "not {expected}");
    }
    ensure!(nodes.count(Place::Branch, "carried")? == 0, "carried without a peer");
    Ok(())
}

/// A node alone terminates connections: the server sees the client's address, and what the server refuses is reset.
pub(crate) fn single(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let mut nodes = Nodes::of(case, &lab)?;
    nodes.start(Place::Branch, "intercept-single")?;
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        let mut client = Client::connect(&lab, ip)?;
        client.sees_the_truth(ip)?;
        client.echoes(&noise(1_000_000))?;
        let status = nodes.status(Place::Branch)?;
        ensure!(status.get("carried").and_then(Value::as_u64) == Some(1), "it is not terminated: {status}");
        client.ends()?;
        // The client is answered before the server is asked: a reset right after is the most that it can be told.
        let (told, took) = lab.inside(Place::Client, move || {
            let start = Instant::now();
            let told =
                TcpStream::connect_timeout(&SocketAddr::new(ip, CLOSED), STALL).and_then(|mut stream| {
                    stream.set_read_timeout(Some(STALL))?;
                    stream.read(&mut [0])
                });
            (told.map_err(|error| error.kind()), start.elapsed())
        })?;
        // Past the node it would be a refusal.
        ensure!(told == Err(std::io::ErrorKind::ConnectionReset), "{ip}: a closed port: {told:?}");
        ensure!(took < Duration::from_secs(2), "{ip}: a closed port is told after {took:?}");
        case.note(
            if ip.is_ipv4() { "v4-closed-ms" } else { "v6-closed-ms" },
            u64::try_from(took.as_millis())?,
        );
        nodes.at_rest(&[Place::Branch])?;
    }
    ensure!(nodes.count(Place::Branch, "single")? >= 4, "not all were terminated here");
    let status = nodes.status(Place::Branch)?;
    let left = status.get("flows").and_then(Value::as_array).map(Vec::len);
    ensure!(left == Some(0), "flows are left over: {status}");
    Ok(())
}

/// A node that is killed takes what it carries with it, at once, and nothing else: new connections go direct.
pub(crate) fn killed(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let ip = Place::Server.v4();
    let mut nodes = Nodes::pair(case, &lab)?;
    for killed in [Place::Branch, Place::Centre] {
        let mut live = Client::connect(&lab, ip)?;
        live.echoes(b"before")?;
        let start = Instant::now();
        nodes.node(killed)?.kill()?;
        // Beside the new connection: a SYN that the dying queue still had is repeated after a second.
        let told = thread::spawn(move || told_dead(&mut live.stream, start));
        let next = Client::connect(&lab, ip)?;
        ensure!(next.connected < Duration::from_secs(3), "a new connection took {:?}", next.connected);
        next.sees_the_truth(ip)?;
        next.ends()?;
        let told = told.join().map_err(|_| anyhow!("whoever speaks panicked"))?;
        let told = told.with_context(|| killed.name())?;
        case.note(
            if killed == Place::Branch { "branch-told-ms" } else { "centre-told-ms" },
            u64::try_from(told.as_millis())?,
        );
        // The branch's node tells it by its death; that the centre's is dead its peer learns by asking again.
        let most = Duration::from_secs(if killed == Place::Branch { 1 } else { 2 });
        ensure!(told < most, "{}: a dead connection was told after {told:?}", killed.name());
        nodes.start(killed, "intercept")?;
        // The one that stayed has marked its peer as gone for a while.
        let survivor = if killed == Place::Branch { Place::Centre } else { Place::Branch };
        nodes.node(survivor)?.kill()?;
        nodes.start(survivor, "intercept")?;
    }
    Ok(())
}

/// `bypass on`: nothing new is taken, what is carried goes on; `off` takes again.
pub(crate) fn bypassed(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let ip = Place::Server.v4();
    let mut nodes = Nodes::pair(case, &lab)?;
    nodes.node(Place::Branch)?.watch.announce("bypass");
    let mut live = Client::connect(&lab, ip)?;
    live.echoes(b"before")?;
    let carried = |nodes: &Nodes<'_>| nodes.count(Place::Branch, "carried");
    ensure!(carried(&nodes)? == 1, "the first connection is not carried");
    nodes.bypass(Place::Branch, "on")?;
    let state = nodes.status(Place::Branch)?;
    ensure!(state.get("state").and_then(Value::as_str) == Some("bypassed"), "status says {state}");
    let on_wan = Capture::begin(&lab, Place::Centre, &wan_device(&lab, Place::Centre)?)?;
    let mut direct = Client::connect(&lab, ip)?;
    direct.echoes(b"direct")?;
    let seen = on_wan.end()?;
    ensure!(seen == (1, 0), "while bypassed: {seen:?} SYNs on the WAN, and with the probe");
    ensure!(carried(&nodes)? == 1, "a connection was taken while bypassed");
    direct.sees_the_truth(ip)?;
    live.echoes(b"still carried")?;
    nodes.bypass(Place::Branch, "off")?;
    let mut again = Client::connect(&lab, ip)?;
    again.echoes(b"again")?;
    ensure!(carried(&nodes)? == 2, "nothing is taken after the bypass");
    for client in [live, direct, again] {
        client.ends()?;
    }
    Ok(())
}

/// The line is dead for half a minute: what is carried goes on where it was, octet for octet.
pub(crate) fn outage(case: &Case) -> anyhow::Result<()> {
    let lab = case.lab()?;
    echo_server(&lab)?;
    let nodes = Nodes::pair(case, &lab)?;
    let servers = [Place::Server.v4(), Place::Server.v6(), Place::Server.v4()];
    let mut live = Vec::new();
    for ip in servers {
        let mut client = Client::connect(&lab, ip)?;
        client.sees_the_truth(ip)?;
        client.echoes(b"before")?;
        live.push(client);
    }
    let carried = nodes.count(Place::Branch, "carried")?;
    ensure!(carried == 3, "control: {carried} of three are carried");
    let cut = |cut: bool| lab.wan()?.change(|link| (link.up.outage, link.down.outage) = (cut, cut));
    // Two in full flow, and one that says nothing.
    let octets = noise(4_000_000);
    let mut writing = Vec::new();
    for client in live.iter().take(2) {
        let (mut up, octets) = (client.stream.try_clone()?, octets.clone());
        writing.push(thread::spawn(move || up.write_all(&octets)));
    }
    thread::sleep(Duration::from_millis(100));
    cut(true)?;
    thread::sleep(OUTAGE);
    // The control: a new connection does not get through meanwhile, whoever carries it.
    let dead = lab.inside(Place::Client, || {
        TcpStream::connect_timeout(&(Place::Server.v4(), CLOSED).into(), Duration::from_millis(500))
    })?;
    let kind = dead.err().map(|error| error.kind());
    ensure!(kind == Some(std::io::ErrorKind::TimedOut), "the line is not dead: {kind:?}");
    cut(false)?;
    for (nth, client) in live.iter_mut().enumerate() {
        client.stream.set_read_timeout(Some(STALL * 2))?;
        if nth < 2 {
            let mut back = vec![0; octets.len()];
            client.stream.read_exact(&mut back).with_context(|| format!("the {nth}th after the outage"))?;
            ensure!(Sha256::digest(&back) == Sha256::digest(&octets), "other octets came back");
        }
        client.echoes(b"after")?;
    }
    for written in writing {
        ensure!(written.join().is_ok_and(|written| written.is_ok()), "a writer failed");
    }
    for client in live {
        client.ends()?;
    }
    let status = nodes.status(Place::Branch)?;
    let peers = status.get("peers").and_then(Value::as_array).context("no peers")?;
    let resumes = peers.iter().filter_map(|peer| peer.get("resumes")?.as_u64()).sum::<u64>();
    ensure!(resumes > 0, "the link never broke, so nothing was shown");
    case.note("resumes", resumes);
    Ok(())
}
