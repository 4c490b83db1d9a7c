//! A whole node for tests: rules, queue, engine, and an agent whose link is a bare TCP connection for each flow.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use discovery_core::engine::{self, Engine, Event, Peer, Reason, Refusal};
use discovery_core::flow::Flow;
use discovery_core::pmt::PmtRow;
use discovery_core::probe::KeyHint;
use discovery_core::rule::{Action, Ports, Rule, RuleSet};
use discovery_linux::broker::Early;
use discovery_linux::netd::{Agent, Claimed, Handle, Netd, NetdCounters, NetdSettings, Ready};
use discovery_linux::queue::{NfQueue, QueueSettings};
use discovery_linux::rules::{Extent, Instance, Listen, Mode, Plan, PlanSpec, Rules};
use discovery_linux::socket::{Family, TransparentListener};
use discovery_linux::supervisor::{
    Care, Control, Fate, Report, Supervised, WatchSettings, Watched, Wish, supervise,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::ground::{self, Ground};

/// Ports that the tests' nodes take.
pub(crate) const TAKEN: [u16; 2] = [143, 9];
/// And these: as many servers that no node knows yet.
pub(crate) const MANY: [u16; 2] = [20_000, 20_099];
const LINK_PORT: u16 = 7777;

#[derive(Default)]
struct Waiting {
    /// Streams on the link for flows whose client's connection is about to be accepted.
    opened: HashMap<Flow, TcpStream>,
    /// Clients' connections whose stream is about to be opened.
    accepted: HashMap<Flow, TcpStream>,
    /// Claims that wait for the server.
    claims: HashMap<Flow, Sender<Option<Ready>>>,
}

#[derive(Clone, Default)]
struct TestAgent {
    waiting: Arc<Mutex<Waiting>>,
    handle: Arc<OnceLock<Handle>>,
    granted: bool,
}

impl TestAgent {
    fn handle(&self) -> &Handle {
        self.handle.get().unwrap()
    }

    /// A thread in the node's namespace: a new one is in its parent's, which is the same.
    fn spawn(&self, work: impl FnOnce(Self) + Send + 'static) {
        let agent = self.clone();
        thread::spawn(move || work(agent));
    }

    fn opened(&self, flow: Flow, stream: TcpStream) {
        let mut waiting = self.waiting.lock().unwrap();
        match waiting.accepted.remove(&flow) {
            Some(client) => self.splice(flow, client, stream),
            None => drop(waiting.opened.insert(flow, stream)),
        }
    }

    fn accepted(&self, flow: Flow, client: TcpStream) {
        let mut waiting = self.waiting.lock().unwrap();
        match waiting.opened.remove(&flow) {
            Some(stream) => self.splice(flow, client, stream),
            None => drop(waiting.accepted.insert(flow, client)),
        }
    }

    fn splice(&self, flow: Flow, left: TcpStream, right: TcpStream) {
        self.spawn(move |agent| {
            splice(left, right);
            agent.handle().tell(Event::Closed { flow });
        });
    }

    /// A peer's stream: which flow, and then its octets.
    fn serve(self, mut stream: TcpStream) {
        let mut line = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        if reader.read_line(&mut line).is_err() {
            return;
        }
        let mut words = line.split_whitespace().map(|word| word.parse::<SocketAddr>());
        let (Some(Ok(client)), Some(Ok(server))) = (words.next(), words.next()) else { return };
        let flow = Flow { client, server };
        let (answer, answered) = channel();
        let waiting = Arc::clone(&self.waiting);
        self.handle().claim(flow, self.granted, move |claimed| match claimed {
            Claimed::Ready(ready) => drop(answer.send(Some(ready))),
            Claimed::Wait => drop(waiting.lock().unwrap().claims.insert(flow, answer)),
            Claimed::Refused(_) => drop(answer.send(None)),
        });
        let far = match answered.recv() {
            Ok(Some(Ready::Here(connection))) => {
                let far = TcpStream::from(connection);
                far.set_nonblocking(false).unwrap();
                Some(far)
            }
            Ok(Some(Ready::Onward(peer))) => open(flow, peer).ok(),
            Ok(None) | Err(_) => None,
        };
        let Some(far) = far else {
            drop(stream.write_all(b"F"));
            self.handle().tell(Event::Closed { flow });
            return;
        };
        stream.write_all(b"K").unwrap();
        splice(stream, far);
        self.handle().tell(Event::Closed { flow });
    }
}

fn open(flow: Flow, peer: Peer) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&peer.link, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{} {}\n", flow.client, flow.server).as_bytes())?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer == *b"K" { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

fn splice(left: TcpStream, right: TcpStream) {
    for stream in [&left, &right] {
        drop(stream.set_nodelay(true));
    }
    let (mut from, mut to) = (left.try_clone().unwrap(), right.try_clone().unwrap());
    let back = thread::spawn(move || {
        drop(io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Write));
    });
    let (mut from, mut to) = (right, left);
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
    drop(back.join());
}

impl Agent for TestAgent {
    fn open(&mut self, flow: Flow, peer: Peer) {
        self.spawn(move |agent| match open(flow, peer) {
            Ok(stream) => {
                agent.handle().tell(Event::Opened { flow });
                agent.opened(flow, stream);
            }
            Err(_) => agent.handle().tell(Event::Refused { flow, why: Refusal::Peer }),
        });
    }

    fn single(&mut self, flow: Flow) {
        self.spawn(move |agent| {
            let connecting =
                discovery_linux::socket::Connecting::begin(flow, discovery_linux::socket::Target::Away);
            let Ok(connecting) = connecting else { return };
            let _ = poll(&mut [PollFd::new(&connecting, PollFlags::OUT)], None);
            match connecting.finish() {
                Ok(Ok(connected)) => {
                    let stream = TcpStream::from(connected);
                    stream.set_nonblocking(false).unwrap();
                    agent.handle().tell(Event::Opened { flow });
                    agent.opened(flow, stream);
                }
                Ok(Err(_)) => {}
                Err(_) => agent.handle().tell(Event::Refused { flow, why: Refusal::ServerRefused }),
            }
        });
    }

    fn abort(&mut self, flow: Flow, _: Reason) {
        let mut waiting = self.waiting.lock().unwrap();
        drop(waiting.opened.remove(&flow));
        if let Some(client) = waiting.accepted.remove(&flow) {
            drop(client);
        }
    }

    fn abandon(&mut self, _: Flow, _: Reason) {}

    fn claim_ready(&mut self, flow: Flow, ready: Ready) {
        if let Some(answer) = self.waiting.lock().unwrap().claims.remove(&flow) {
            drop(answer.send(Some(ready)));
        }
    }

    fn claim_failed(&mut self, flow: Flow, _: Reason) {
        if let Some(answer) = self.waiting.lock().unwrap().claims.remove(&flow) {
            drop(answer.send(None));
        }
    }

    fn abort_onward(&mut self, _: Flow, _: Peer, _: u32) {}

    fn learnt(&mut self, _: PmtRow) {}
}

/// A running node. Dropped, it takes its rules out and ends.
pub(crate) struct Node {
    pub(crate) handle: Handle,
    orders: Option<Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
    netd: Option<thread::JoinHandle<io::Result<()>>>,
}

enum Order {
    Set(Extent, Sender<()>),
}

/// What makes a node: its mode, and where its link listens.
pub(crate) struct NodeSpec {
    pub(crate) namespace: String,
    pub(crate) mode: Mode,
    pub(crate) link: (SocketAddr, SocketAddr),
    pub(crate) action: Action,
    pub(crate) saved: PathBuf,
    pub(crate) here: Vec<std::net::IpAddr>,
    /// What is hung up when whoever carries connections is gone.
    pub(crate) lifeline: Option<OwnedFd>,
    /// Peers may ask for connections whose SYN was not seen here.
    pub(crate) granted: bool,
}

impl NodeSpec {
    /// Between two neighbours, with its link on its side towards `network`.
    pub(crate) fn routed(ground: &Ground, place: &str, network: u8, host: u8) -> Self {
        let [v4, v6] = ground::both(network, host, LINK_PORT);
        Self {
            namespace: ground.name(place),
            mode: Mode::Routed { interfaces: crate::rules::interfaces(&["left", "right"]) },
            link: (v4, v6),
            action: Action::Intercept,
            saved: crate::rules::saved(ground, place),
            here: Vec::new(),
            granted: false,
            lifeline: None,
        }
    }

    pub(crate) fn start(self) -> Node {
        let (started, starts) = channel();
        let (orders, taken) = channel();
        let thread = thread::spawn(move || {
            ground::enter(&self.namespace);
            let (mut rules, handle, netd) = self.run(None);
            rules.install().unwrap();
            started.send((handle.clone(), netd)).unwrap();
            obey(&mut rules, &taken);
            rules.remove().unwrap();
            handle.stop();
        });
        let (handle, netd) = starts.recv().unwrap();
        Node { handle, orders: Some(orders), thread: Some(thread), netd: Some(netd) }
    }

    /// Starts it in the thread's namespace.
    fn run(self, supervised: Option<Supervised>) -> (Rules, Handle, thread::JoinHandle<io::Result<()>>) {
        let (v4, v6) = (
            TransparentListener::bind(Family::V4, 0).unwrap(),
            TransparentListener::bind(Family::V6, 0).unwrap(),
        );
        let plan = self.plan(v4.port().unwrap(), v6.port().unwrap());
        let queue = QueueSettings::handshakes(10);
        let agent = TestAgent { granted: self.granted, ..TestAgent::default() };
        let mut settings = NetdSettings::new((Some(self.link.0), Some(self.link.1)), KeyHint([7; 8]));
        settings.here = self.here;
        let engine = Engine::new(engine::Config::default());
        let (mut netd, handle) =
            Netd::new(engine, NfQueue::open(queue).unwrap(), agent.clone(), Early::default(), settings)
                .unwrap();
        assert!(agent.handle.set(handle.clone()).is_ok());
        let ports = TAKEN.into_iter().fold(Rule::new(self.action), |rule, port| rule.server_ports(port));
        let ports = ports.server_ports(Ports::range(MANY[0], MANY[1]).unwrap());
        handle.rules(RuleSet::new(vec![ports]).unwrap());
        handle.tell(Event::AgentUp);
        for listener in [v4, v6] {
            agent.spawn(move |agent| accept(&agent, &listener));
        }
        for at in [self.link.0, self.link.1] {
            let listener = TcpListener::bind(at).unwrap();
            agent.spawn(move |agent| {
                for stream in listener.incoming().flatten() {
                    agent.spawn(move |agent| agent.serve(stream));
                }
            });
        }
        if let Some(lifeline) = self.lifeline {
            netd.watch_agent(lifeline).unwrap();
        }
        if let Some(supervised) = supervised {
            let (stops, wishes) = (handle.clone(), supervised.clone());
            thread::spawn(move || {
                while let Some(wish) = wishes.wish() {
                    match wish {
                        Wish::Bypass(on) => {
                            stops.tell(Event::Bypass { on });
                            let _ = wishes.heard();
                        }
                        Wish::Leave | Wish::Hurry => std::process::exit(0),
                        Wish::Reload | Wish::HandOver => {}
                    }
                }
                stops.stop();
            });
            assert_eq!(supervised.ready(*plan.listen()), Watched::Yes);
            netd.on_beat(move || {
                let _ = supervised.beat();
            });
        }
        let netd = thread::spawn(move || netd.run());
        (Rules::new(plan, self.saved), handle, netd)
    }

    fn plan(&self, v4: u16, v6: u16) -> Plan {
        let spec = PlanSpec {
            instance: Instance::new("t").unwrap(),
            mode: self.mode.clone(),
            queue: 10,
            listen: Listen { v4, v6: Some(v6) },
            route_table: 100,
            probe_kind: 253,
            probe_port: 7783,
            probing: true,
            datagrams: true,
            deflecting: None,
        };
        Plan::new(spec).unwrap()
    }
}

fn accept(agent: &TestAgent, listener: &TransparentListener) {
    loop {
        if poll(&mut [PollFd::new(listener, PollFlags::IN)], None).is_err() {
            return;
        }
        while let Some(intercepted) = listener.accept().unwrap() {
            let client = TcpStream::from(intercepted.socket);
            client.set_nonblocking(false).unwrap();
            agent.accepted(intercepted.flow, client);
        }
    }
}

fn obey(rules: &mut Rules, orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Set(extent, done) => {
                rules.set(extent).unwrap();
                done.send(()).unwrap();
            }
        }
    }
}

impl Node {
    pub(crate) fn set(&self, extent: Extent) {
        let (done, is_done) = channel();
        self.orders.as_ref().unwrap().send(Order::Set(extent, done)).unwrap();
        is_done.recv().unwrap();
    }

    /// The loop's thread, as the kernel numbers it.
    pub(crate) fn netd_thread(&self) -> i32 {
        let (tell, told) = channel();
        self.handle.with(move |_, _, _| tell.send(rustix::thread::gettid().as_raw_pid()).unwrap());
        told.recv().unwrap()
    }

    /// How often each reason was given, where it was, and what the loop counted.
    pub(crate) fn counts(&self) -> (HashMap<&'static str, u64>, NetdCounters) {
        let (tell, told) = channel();
        self.handle.with(move |engine, _, counters| {
            let counts = Reason::ALL.iter().map(|reason| (reason.word(), engine.count(*reason)));
            tell.send((counts.filter(|(_, count)| *count > 0).collect(), counters)).unwrap();
        });
        told.recv().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.orders.take());
        for thread in [self.thread.take()].into_iter().flatten() {
            thread.join().unwrap();
        }
        if let Some(netd) = self.netd.take() {
            netd.join().unwrap().unwrap();
        }
    }
}

/// A node in a process of its own, which can be killed.
pub(crate) struct NodeProcess {
    pub(crate) child: Child,
}

impl NodeProcess {
    pub(crate) fn start(ground: &Ground, place: &str, network: u8, host: u8) -> Self {
        Self::start_as("node", ground, place, network, host)
    }

    /// `supervisor`: a supervisor whose worker is the node.
    pub(crate) fn start_as(role: &str, ground: &Ground, place: &str, network: u8, host: u8) -> Self {
        let child = Self::command(role)
            .env("DISCOVERY_LINUX_NODE", format!("{} {network} {host}", ground.name(place)))
            .env("DISCOVERY_LINUX_SAVED", crate::rules::saved(ground, place))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Self { child };
        let stdout = process.child.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("READY")));
        // What it says later is read, too, lest it fail to say it.
        thread::spawn(move || lines.for_each(drop));
        process
    }

    fn command(role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "node::process_of_other_tests", "--nocapture"]);
        command.env("DISCOVERY_LINUX_ROLE", role);
        command
    }

    /// The worker of a supervisor, if it has one.
    pub(crate) fn worker(&self) -> Option<i32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let children =
            tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let pids: Vec<i32> = children
            .flat_map(|line| line.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
            .collect();
        // The others are tools that it runs.
        pids.into_iter().find(|pid| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.is_ok_and(|command| command.contains("process_of_other_tests"))
        })
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a supervisor needs to know of these nodes.
struct Cared(NodeSpec);

impl Care for Cared {
    fn command(&mut self) -> Command {
        NodeProcess::command("worker")
    }

    fn plan(&mut self, listen: Listen) -> Result<Plan, String> {
        Ok(self.0.plan(listen.v4, listen.v6.unwrap()))
    }

    fn fate(&mut self, _: std::process::ExitStatus, _: bool) -> Fate {
        Fate::Again
    }

    fn report(&mut self, _: &Report) {}
}

#[test]
#[ignore = "the process that other tests start"]
fn process_of_other_tests() {
    let Ok(role) = std::env::var("DISCOVERY_LINUX_ROLE") else { return };
    let node = std::env::var("DISCOVERY_LINUX_NODE").unwrap();
    let words: Vec<&str> = node.split(' ').collect();
    let [namespace, network, host] = words.as_slice() else { panic!("{node}") };
    ground::enter(namespace);
    let [v4, v6] = ground::both(network.parse().unwrap(), host.parse().unwrap(), LINK_PORT);
    let spec = NodeSpec {
        namespace: (*namespace).to_owned(),
        mode: Mode::Routed { interfaces: crate::rules::interfaces(&["left", "right"]) },
        link: (v4, v6),
        action: Action::Intercept,
        saved: std::env::var("DISCOVERY_LINUX_SAVED").unwrap().into(),
        here: Vec::new(),
        granted: false,
        lifeline: None,
    };
    match role.as_str() {
        "node" => {
            let (mut rules, handle, netd) = spec.run(None);
            rules.install().unwrap();
            println!("READY");
            // Ends with its parent, or when it is told to.
            drop(io::stdin().read_to_end(&mut Vec::new()));
            rules.remove().unwrap();
            handle.stop();
            netd.join().unwrap().unwrap();
        }
        "supervisor" => {
            let rules = Rules::new(spec.plan(1, 1), spec.saved.clone());
            let (control, controlled) = Control::new().unwrap();
            println!("READY");
            thread::spawn(move || {
                for line in io::stdin().lines().map_while(Result::ok) {
                    control.bypass(line == "bypass on").unwrap();
                }
                control.stop();
            });
            supervise(rules, WatchSettings::default(), &controlled, &mut Cared(spec)).unwrap();
        }
        "worker" => {
            let (mut rules, _handle, netd) = spec.run(Some(Supervised::from_stdin().unwrap()));
            netd.join().unwrap().unwrap();
            // Only an orphan comes here.
            rules.remove().unwrap();
        }
        other => panic!("{other}"),
    }
}
