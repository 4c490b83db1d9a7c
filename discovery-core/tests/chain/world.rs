//! Clients, nodes and a server on one line, in one thread, from one seed. Packets go from hop to hop with delay,
//! jitter, loss and doubling; a node that is dead forwards; messages on links arrive in their order or not at all.

use crate::{
    node::{Link, Node},
    tcp::{Arrived, Caller, Listener, Outcome, Packet, What},
};
use discovery_core::{
    engine::{AckVariant, Config, Embodiment},
    flow::Flow,
    now::{Now, UnixMillis},
    rule::Action,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What the server does with a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Listens,
    Refuses,
    Silent,
    /// Answers so many milliseconds late.
    Late(u64),
}

/// What a box on a hop does with SYNs that carry the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wall {
    None,
    Drops,
    Strips,
}

/// What befalls a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Dead for so many milliseconds; then a new process that knows nothing.
    Kill(u64),
    /// Its agent alone.
    Agent(u64),
    /// Interception switched off for so long.
    Bypass(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// Milliseconds on each hop.
    pub(crate) delays: Vec<u64>,
    pub(crate) jitter: u64,
    /// So many packets are lost, and so many doubled, somewhere.
    pub(crate) losses: u32,
    pub(crate) doubles: u32,
    pub(crate) mood: Mood,
    pub(crate) wall: (usize, Wall),
    /// Packets towards the client go round this node.
    pub(crate) round: Option<usize>,
    /// When (ms), which node, what.
    pub(crate) faults: Vec<(u64, usize, Fault)>,
    /// When each client begins (ms), and its port.
    pub(crate) clients: Vec<(u64, u16)>,
    /// This node's agent refuses what is opened at it.
    pub(crate) refuses: Option<usize>,
    /// Resets go through the queues of nodes too.
    pub(crate) resets: bool,
    /// Links stand before the first SYN.
    pub(crate) warm: bool,
    /// Peers may ask for servers whose SYN was not seen.
    pub(crate) granted: bool,
    pub(crate) ack: AckVariant,
    pub(crate) embodiment: Embodiment,
    pub(crate) action: Action,
}

impl Plan {
    pub(crate) fn quiet(nodes: usize) -> Self {
        Self {
            seed: 1,
            nodes,
            delays: vec![1; nodes + 1],
            jitter: 0,
            losses: 0,
            doubles: 0,
            mood: Mood::Listens,
            wall: (0, Wall::None),
            round: None,
            faults: vec![],
            clients: vec![(10, 40_000)],
            refuses: None,
            resets: true,
            warm: true,
            granted: true,
            ack: AckVariant::Isn,
            embodiment: Embodiment::OnSyn,
            action: Action::Intercept,
        }
    }
}

/// Something that happens at its time.
#[derive(Clone, Debug)]
pub(crate) enum Due {
    /// A packet arrives at a place: 0 is the client's, then the nodes, then the server's.
    Packet {
        at: usize,
        up: bool,
        packet: Packet,
    },
    Link {
        to: usize,
        from: usize,
        flow: Flow,
        message: Link,
    },
    Begin(u16),
    /// A caller's timer; only the newest counts.
    Client {
        port: u16,
        run: u32,
    },
    Own {
        node: usize,
        flow: Flow,
        run: u32,
    },
    /// The server's or a node's SYN-ACK again.
    Again {
        at: usize,
        flow: Flow,
        tries: u32,
    },
    Wake {
        node: usize,
    },
    Fault {
        node: usize,
        fault: Fault,
    },
    Back {
        node: usize,
        fault: Fault,
    },
    /// A node learns that a peer's links are gone.
    Lost {
        node: usize,
        peer: usize,
    },
    /// What the server says at last.
    Late(Packet),
    /// The answer to a separate probe.
    Probed {
        node: usize,
        server: SocketAddr,
        by: Option<usize>,
    },
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    start: Instant,
    pub(crate) at: u64,
    due: BTreeMap<(u64, u64), Due>,
    order: u64,
    rng: u64,
    losses: u32,
    doubles: u32,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: BTreeMap<u16, (Caller, u32)>,
    pub(crate) server: Listener,
    /// When each client was served (ms).
    pub(crate) served: BTreeMap<u16, u64>,
    pub(crate) trace: Vec<String>,
}

pub(crate) fn server() -> SocketAddr {
    SocketAddr::from(([10, 2, 0, 2], 143))
}

pub(crate) fn flow_of(port: u16) -> Flow {
    Flow { client: SocketAddr::from(([10, 1, 0, 2], port)), server: server() }
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    pub(crate) fn new(plan: Plan) -> Self {
        let config = Config { ack: plan.ack, embodiment: plan.embodiment, ..Config::default() };
        let nodes = (1..=plan.nodes).map(|place| Node::new(place, config.clone())).collect();
        let mut world = Self {
            start: Instant::now(),
            at: 0,
            due: BTreeMap::new(),
            order: 0,
            rng: plan.seed | 1,
            losses: plan.losses,
            doubles: plan.doubles,
            nodes,
            clients: BTreeMap::new(),
            server: Listener::default(),
            served: BTreeMap::new(),
            trace: Vec::new(),
            plan,
        };
        for node in 1..=world.plan.nodes {
            world.wake_up(node);
        }
        for (at, port) in world.plan.clients.clone() {
            world.later(at, Due::Begin(port));
        }
        for (at, node, fault) in world.plan.faults.clone() {
            world.later(at, Due::Fault { node, fault });
        }
        world
    }

    pub(crate) fn now(&self) -> Now {
        let since = Duration::from_millis(self.at);
        Now { mono: self.start + since, wall: UnixMillis(1_800_000_000_000).plus(since) }
    }

    pub(crate) fn note(&mut self, text: String) {
        // What went wrong went wrong early.
        if self.trace.len() < 200 {
            self.trace.push(format!("{:6} {text}", self.at));
        }
    }

    pub(crate) fn random(&mut self) -> u64 {
        // splitmix64
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn number(&mut self) -> u32 {
        u32::try_from(self.random() >> 32).unwrap()
    }

    pub(crate) fn later(&mut self, by: u64, due: Due) {
        self.order += 1;
        self.due.insert((self.at + by, self.order), due);
    }

    /// From one place towards the server (`up`) or the client.
    pub(crate) fn send(&mut self, from: usize, up: bool, packet: Packet) {
        let (hop, mut at) = if up { (from, from + 1) } else { (from - 1, from - 1) };
        let mut delay = self.plan.delays[hop];
        if !up && Some(at) == self.plan.round && at > 0 {
            delay += self.plan.delays[at - 1];
            at -= 1;
        }
        let mut packet = packet;
        if up && packet.what == What::Syn && packet.probe.is_some() && self.plan.wall.0 == hop {
            match self.plan.wall.1 {
                Wall::None => {}
                Wall::Strips => packet.probe = None,
                Wall::Drops => {
                    self.note(format!("{from} the wall drops {packet:?}"));
                    return;
                }
            }
        }
        let jitter = if self.plan.jitter == 0 { 0 } else { self.random() % (self.plan.jitter + 1) };
        let fate = self.random() % 12;
        // A kernel repeats its FIN until it is heard, here at once; a reset it sends once.
        if fate == 0 && self.losses > 0 && packet.what != What::Fin {
            self.losses -= 1;
            self.note(format!("{from} lost {packet:?}"));
            return;
        }
        self.later(delay + jitter, Due::Packet { at, up, packet });
        if fate == 1 && self.doubles > 0 {
            self.doubles -= 1;
            self.later(delay + jitter + fate, Due::Packet { at, up, packet });
        }
    }

    /// The way of messages between two nodes.
    pub(crate) fn distance(&self, one: usize, other: usize) -> u64 {
        (one.min(other)..one.max(other)).map(|hop| self.plan.delays[hop]).sum()
    }

    /// Runs until nothing is left to happen, or for a minute and a half.
    pub(crate) fn run(&mut self) {
        while let Some(((at, _), due)) = self.due.pop_first() {
            if at > 90_000 {
                break;
            }
            self.at = at;
            self.happen(due);
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Packet { at: 0, packet, .. } => self.client_receives(&packet),
            Due::Packet { at, packet, .. } if at == self.plan.nodes + 1 => self.server_receives(&packet),
            Due::Packet { at, up, packet } => self.node_receives(at, up, packet),
            Due::Link { to, from, flow, message } => self.link_receives(to, from, flow, message),
            Due::Begin(port) => {
                let isn = self.number();
                let caller = Caller::new(flow_of(port), isn, true);
                let syn = caller.syn();
                let run = self.clients.get(&port).map_or(0, |(_, run)| run + 1);
                self.clients.insert(port, (caller, run));
                self.later(1_000, Due::Client { port, run });
                self.send(0, true, syn);
            }
            Due::Client { port, run } => {
                let Some((caller, newest)) = self.clients.get_mut(&port) else { return };
                if *newest != run {
                    return;
                }
                let (packet, again) = caller.timer();
                if let Some(packet) = packet {
                    self.send(0, true, packet);
                }
                if let Some(by) = again {
                    self.later(by, Due::Client { port, run });
                }
            }
            Due::Own { node, flow, run } => self.own_timer(node, flow, run),
            Due::Again { at, flow, tries } => {
                let place = self.plan.nodes + 1;
                let packet = if at == place {
                    self.server.again(flow)
                } else {
                    self.nodes[at - 1].listener.again(flow)
                };
                match packet {
                    Some(packet) if tries < 4 => {
                        self.send(at, false, packet);
                        self.later(1_000 << tries, Due::Again { at, flow, tries: tries + 1 });
                    }
                    Some(_) if at == place => drop(self.server.conns.remove(&flow)),
                    Some(_) => drop(self.nodes[at - 1].listener.conns.remove(&flow)),
                    None => {}
                }
            }
            Due::Late(packet) => self.send(self.plan.nodes + 1, false, packet),
            Due::Wake { node } => self.wake(node),
            Due::Fault { node, fault } => self.befall(node, fault),
            Due::Back { node, fault } => self.come_back(node, fault),
            Due::Lost { node, peer } => self.peer_lost(node, peer),
            Due::Probed { node, server, by } => self.probe_ends(node, server, by),
        }
    }

    fn client_receives(&mut self, packet: &Packet) {
        let port = packet.flow.client.port();
        let Some((caller, run)) = self.clients.get_mut(&port) else { return };
        let (says, timer) = caller.receive(packet);
        let before = *run;
        if timer.is_some() {
            *run += 1;
        }
        let (outcome, isn) = (caller.outcome(), caller.isn);
        let run = *run;
        self.note(format!("client gets {:?} seq {} ack {} {outcome:?}", packet.what, packet.seq, packet.ack));
        for says in says {
            self.send(0, true, says);
        }
        if let Some(by) = timer {
            debug_assert!(run > before);
            self.later(by, Due::Client { port, run });
        }
        if outcome == Some(Outcome::Served) && packet.what == What::Data {
            let at = self.at;
            self.served.entry(port).or_insert(at);
            // It closes: whoever has it may forget it.
            let fin = Packet::new(packet.flow, What::Fin, isn.wrapping_add(1), packet.seq);
            self.send(0, true, fin);
        }
    }

    fn server_receives(&mut self, packet: &Packet) {
        let at = self.plan.nodes + 1;
        let known = self.server.conns.contains_key(&packet.flow);
        let late = match (self.plan.mood, packet.what) {
            (Mood::Silent, _) => return,
            (Mood::Refuses, What::Syn) => {
                let rst = Packet::new(packet.flow, What::Rst, 0, packet.seq.wrapping_add(1));
                self.send(at, false, rst);
                return;
            }
            (Mood::Late(by), What::Syn) if !known => by,
            (Mood::Listens | Mood::Refuses | Mood::Late(_), _) => 0,
        };
        let iss = self.number();
        let (says, arrived) = self.server.receive(packet, iss);
        self.note(format!("server gets {:?} seq {} ack {} {arrived:?}", packet.what, packet.seq, packet.ack));
        if packet.what == What::Syn && !known {
            self.later(late + 1_000, Due::Again { at, flow: packet.flow, tries: 1 });
        }
        for says in says {
            if late > 0 {
                self.later(late, Due::Late(says));
            } else {
                self.send(at, false, says);
            }
        }
        if arrived == Arrived::Data
            && let Some(echo) = self.server.echo(packet.flow)
        {
            self.send(at, false, echo);
        }
    }
}
