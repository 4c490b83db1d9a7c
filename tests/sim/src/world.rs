//! The world of one run: servers, nodes, clients and the lines between them, and the heap of what happens next.

mod actors;
mod connections;
mod kept;
mod nodes;
mod rest;
mod roads;

use crate::{
    checkers::{Broken, Canary, Checker, SeenWatch},
    client::{Client, Habit, Reached, Truth},
    house::House,
    mail::{BOXES, Mail, USERS, box_of},
    ordering::Ordering,
    origin::{Manner, Origin},
    pipe::{Pipe, Road, Segment, some},
    random::Random,
    store::Store,
    trace::Trace,
};
use bytes::Bytes;
use discovery_core::{
    id::{ServerId, UserKey, UserKeying},
    now::{Now, UnixMillis},
    seam::blob::BlobReader,
};
use imap_core::{
    catalog::CatalogOp,
    retained::Facts,
    session::{self, Compress, Event as Learned, Side},
};
use node::{
    Arrival, ConnId, Count, Ended, Input, Limits, NoOrigin, Node, NodeConfig, Order, Output, Preloads,
    ServerTerms,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub(crate) const RE_PROOF: Duration = Duration::from_secs(20);
/// How long the world goes on, in microseconds.
pub(crate) const RUN_US: u64 = 60_000_000;
/// How long everything may take to come to rest once nothing goes wrong any more.
pub(crate) const REST_US: u64 = 60_000_000;

pub(crate) enum Event {
    /// A segment arrives: on this line, if its connection is still this one.
    Arrive(usize, ConnId, Way),
    ClientTurn(usize, ConnId),
    OriginTurn(usize, ConnId),
    OriginReady(usize, ConnId, bool),
    StoreTurn(usize, ConnId),
    PumpAgain(usize, ConnId),
    Reconnect(usize),
    Others(usize),
    Sync(usize),
    Tick(usize),
    Fault(crate::faults::Fault),
    /// A node that was told to come to rest begins anew.
    Restarted(usize),
    /// The keeper of a connection without a client wants to be told the time.
    KeptTurn(ConnId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From the client to the node.
    Ask,
    /// From the node to the client.
    Tell,
    /// From the node to the origin.
    Forward,
    /// From the origin to the node.
    Answer,
}

pub(crate) struct Server {
    pub(crate) mail: Mail,
    pub(crate) manner: Manner,
    pub(crate) revoked: BTreeMap<String, Duration>,
}

pub(crate) struct Site {
    pub(crate) node: Node,
    pub(crate) store: Store,
    /// How far its wall clock is off, in milliseconds.
    pub(crate) wall_ms: i64,
    window: usize,
    draining: bool,
    woken_at: Option<u64>,
    /// Until when nothing passes between it and each server.
    pub(crate) parted_until: Vec<u64>,
    /// Connections whose client has left.
    pub(crate) house: House,
    limits: cep::keeper::Limits,
}

/// What the node wants written and has not been.
enum Written {
    Octets(u64, Bytes),
    From(u64, Arc<dyn BlobReader>, u64, u64),
}

/// A client, its connection to a node, and that node's to the origin.
pub(crate) struct Line {
    pub(crate) node: usize,
    pub(crate) server: usize,
    pub(crate) conn: ConnId,
    pub(crate) client: Client,
    habit: Habit,
    pub(crate) origin: Origin,
    reached: Reached,
    canary: Canary,
    seen: SeenWatch,
    pub(crate) connected: bool,
    pub(crate) opened: bool,
    parked: bool,
    ask: Pipe,
    tell: Pipe,
    forward: Pipe,
    answer: Pipe,
    asked: VecDeque<u8>,
    to_client: VecDeque<Written>,
    to_origin: VecDeque<Bytes>,
    pub(crate) errands: VecDeque<CatalogOp>,
    store_busy: bool,
    /// When the origin does something next.
    origin_at: u64,
    pump_waits: bool,
    /// The number under which the node's store knows the session.
    number: Option<u64>,
    /// Why it may end, or may have ended, without LOGOUT.
    pub(crate) excuse: Option<&'static str>,
    /// The node has closed it; what it said last may still be on its way.
    closed: bool,
    /// The node keeps its connection to the origin once the client has heard all.
    handing: Option<Box<Facts>>,
    /// What its keeper hears first.
    ahead: Vec<Bytes>,
    /// The client has hung up.
    hung_up: bool,
    /// Octets that reached the client.
    heard: usize,
    lan: Road,
    wan: Road,
    think_us: usize,
    /// Its server has lied to it: what it hears is wrong, and no fault of ours.
    pub(crate) deceived: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) events: u64,
    pub(crate) replies: u64,
    pub(crate) from_store: u64,
    pub(crate) sessions: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) ended: BTreeMap<String, u64>,
    pub(crate) damaged: u64,
    pub(crate) refused: u64,
    pub(crate) waiting_max: usize,
    pub(crate) replaced: u64,
    /// Answers that were there before they were asked.
    pub(crate) ahead: u64,
    /// Connections that outlived their clients, what was fetched on them, and why they ended.
    pub(crate) kept: u64,
    pub(crate) kept_messages: u64,
    pub(crate) kept_ended: BTreeMap<&'static str, u64>,
    pub(crate) hash: u64,
}

pub(crate) struct World {
    pub(crate) random: Random,
    start: Instant,
    pub(crate) now_us: u64,
    heap: BTreeMap<(u64, u64), Event>,
    serial: u64,
    conns: u64,
    pub(crate) sites: Vec<Site>,
    pub(crate) servers: Vec<Server>,
    pub(crate) lines: Vec<Line>,
    kept: Vec<kept::Kept>,
    inputs: VecDeque<(usize, ConnId, Input)>,
    pub(crate) resting: bool,
    /// Users whose server has lied in one of their sessions: what is stored for them is the lie.
    deceived: Vec<(usize, usize, String)>,
    pub(crate) trace: Trace,
    pub(crate) totals: Totals,
}

struct PlainKeys;

impl UserKeying for PlainKeys {
    fn user_key(&self, identity: &[u8]) -> UserKey {
        let mut hash = [0; 16];
        hash.iter_mut().zip(identity).for_each(|(to, from)| *to = *from);
        UserKey { version: 1, hash }
    }
}

fn server_id(server: usize) -> ServerId {
    ServerId::new(&format!("mail{server}.example.org")).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "std has no other way to any Instant")]
fn any_time() -> Instant {
    Instant::now()
}

impl World {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x5157);
        let servers = (0..1 + random.below(2))
            .map(|at| {
                let mail = Mail::numbered(&mut random, 100_000 * (at as u64 + 1));
                let manner = if random.once_in(2) { Manner::Dovecot } else { Manner::Cyrus };
                Server { mail, manner, revoked: BTreeMap::new() }
            })
            .collect::<Vec<_>>();
        let sites =
            (0..1 + random.below(3)).map(|_| Site::new(&mut random, servers.len())).collect::<Vec<_>>();
        let mut world = Self {
            random,
            start: any_time(),
            now_us: 0,
            heap: BTreeMap::new(),
            serial: 0,
            conns: 0,
            sites,
            servers,
            lines: Vec::new(),
            kept: Vec::new(),
            inputs: VecDeque::new(),
            resting: false,
            deceived: Vec::new(),
            trace,
            totals: Totals::default(),
        };
        for node in 0..world.sites.len() {
            for _ in 0..1 + world.random.below(3) {
                let slot = world.lines.len();
                let line = world.fresh_line(node);
                world.lines.push(line);
                world.at(1000 * slot as u64, Event::Reconnect(slot));
            }
            world.at(500_000, Event::Sync(node));
        }
        for server in 0..world.servers.len() {
            world.at(300_000, Event::Others(server));
        }
        world
    }

    pub(crate) fn at(&mut self, us: u64, event: Event) {
        self.serial += 1;
        self.heap.insert((us.max(self.now_us), self.serial), event);
    }

    pub(crate) fn soon(&mut self, max_us: usize, event: Event) {
        let after = 1 + self.random.below(max_us) as u64;
        self.at(self.now_us + after, event);
    }

    fn now(&self, node: usize) -> Now {
        let mono = self.start + Duration::from_micros(self.now_us);
        let wall = i64::try_from(self.now_us / 1000).unwrap() + self.sites[node].wall_ms;
        Now { mono, wall: UnixMillis(wall) }
    }

    fn clock(&self) -> Duration {
        Duration::from_micros(self.now_us)
    }

    /// A client at a node, not yet connected.
    fn fresh_line(&mut self, node: usize) -> Line {
        self.conns += 1;
        let random = &mut self.random;
        let server = random.below(self.servers.len());
        let user = *random.pick(&USERS);
        let slow = random.once_in(12);
        let rate = if slow { 30 } else { 10_000 };
        Line {
            node,
            server,
            conn: ConnId(self.conns),
            client: Client::new(user),
            habit: Habit::any(random),
            origin: Origin::new(self.servers[server].manner),
            reached: Reached::default(),
            canary: Canary::default(),
            seen: SeenWatch::default(),
            connected: false,
            opened: false,
            parked: false,
            ask: Pipe::default(),
            tell: Pipe::default(),
            forward: Pipe::default(),
            answer: Pipe::default(),
            asked: VecDeque::new(),
            to_client: VecDeque::new(),
            to_origin: VecDeque::new(),
            errands: VecDeque::new(),
            store_busy: false,
            origin_at: u64::MAX,
            pump_waits: false,
            number: None,
            excuse: None,
            closed: false,
            handing: None,
            ahead: Vec::new(),
            hung_up: false,
            lan: Road { delay_us: 100 + random.below(2000) as u64, octets_per_ms: rate },
            wan: Road {
                delay_us: 2000 + random.below(100_000) as u64,
                octets_per_ms: *random.pick(&[125, 1250, 12_500]),
            },
            heard: 0,
            think_us: *random.pick(&[400_000, 2_000_000, 6_000_000]),
            deceived: self.deceived.contains(&(node, server, user.to_owned())),
        }
    }

    /// The line at `slot`, if it is still that connection.
    fn line(&mut self, slot: usize, conn: ConnId) -> Option<&mut Line> {
        self.lines.get_mut(slot).filter(|line| line.conn == conn && line.connected)
    }

    /// Plays until `until_us`, or until something is wrong.
    pub(crate) fn run_until(&mut self, until_us: u64) -> Result<(), Broken> {
        while let Some(entry) = self.heap.first_entry().filter(|entry| entry.key().0 <= until_us) {
            let ((us, _), event) = entry.remove_entry();
            self.now_us = us;
            self.totals.events += 1;
            for server in &mut self.servers {
                server.mail.tick += 1;
            }
            self.happen(event)?;
            self.work()?;
        }
        self.now_us = self.now_us.max(until_us);
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Arrive(_, conn, way) if self.is_kept(conn) => self.kept_arrive(conn, way)?,
            Event::OriginTurn(_, conn) if self.is_kept(conn) => self.kept_origin_turn(conn)?,
            Event::KeptTurn(conn) => self.kept_turn(conn)?,
            Event::Arrive(slot, conn, way) => self.arrive(slot, conn, way)?,
            Event::ClientTurn(slot, conn) => self.client_turn(slot, conn),
            Event::OriginTurn(slot, conn) => self.origin_turn(slot, conn),
            Event::OriginReady(slot, conn, parked) => self.origin_ready(slot, conn, parked),
            Event::StoreTurn(slot, conn) => self.store_turn(slot, conn),
            Event::PumpAgain(slot, conn) => {
                if let Some(line) = self.line(slot, conn) {
                    line.pump_waits = false;
                    self.tell_on(slot);
                }
            }
            Event::Reconnect(slot) => self.connect(slot),
            Event::Others(server) => {
                if !self.resting {
                    self.others(server);
                    self.soon(1_500_000, Event::Others(server));
                }
            }
            Event::Sync(node) => {
                self.sites[node].store.disk().sync();
                if !self.resting {
                    self.soon(2_000_000, Event::Sync(node));
                }
            }
            Event::Tick(node) => {
                self.sites[node].woken_at = None;
                self.inputs.push_back((node, ConnId(0), Input::Tick));
            }
            Event::Fault(fault) => self.fault(fault)?,
            Event::Restarted(node) => {
                self.node_gone(node, "restart");
                self.sites[node].store.restart();
            }
        }
        Ok(())
    }
}

impl Line {
    /// Whether what it hears is held against what is.
    fn is_watched(&self) -> bool {
        let gone = self.client.logged_out || self.client.said_bye || self.closed || self.excuse.is_some();
        self.connected && self.opened && !self.deceived && !gone
    }
}

impl Site {
    fn new(random: &mut Random, servers: usize) -> Self {
        let window = *random.pick(&[16 * 1024, 64 * 1024]);
        Self {
            node: new_node(random, window, servers),
            store: Store::new(),
            wall_ms: 1_700_000_000_000,
            window,
            draining: false,
            woken_at: None,
            parted_until: vec![0; servers],
            house: House::new(*random.pick(&[1, 2, 20])),
            limits: cep::keeper::Limits {
                absolute: Duration::from_secs(*random.pick(&[25, 600])),
                idle: Duration::from_secs(*random.pick(&[8, 30, 600])),
                // Longer than any two partitions.
                patience: Duration::from_secs(40),
                ..cep::keeper::Limits::default()
            },
        }
    }
}

fn new_node(random: &mut Random, window: usize, servers: usize) -> Node {
    let limits = Limits { window_octets: window, stuck: Duration::from_secs(15), ..Limits::default() };
    let terms = ServerTerms {
        compress: Compress::Off,
        cache: true,
        re_proof: RE_PROOF,
        chunk_fill_max: 1 << 20,
        foresee: !random.once_in(4),
        retain: !random.once_in(4),
        sessions_max: 20,
    };
    let servers = (0..servers).map(|at| (server_id(at), terms.clone())).collect();
    let chances = Mutex::new(Random::new(random.below(1 << 30) as u64));
    let preloads: Preloads = Arc::new(move |_| {
        let seed = chances.lock().unwrap().below(1 << 30) as u64;
        Box::new(Ordering::all(Random::new(seed)))
    });
    let preloads = (!random.once_in(3)).then_some(preloads);
    Node::new(NodeConfig { limits, servers, keying: Arc::new(PlainKeys), preloads })
}

fn site_reads_origin(site: &Site, conn: ConnId) -> bool {
    site.node.reads(conn, Side::Server)
}

fn truth<'a>(
    origin: &'a Origin,
    reached: &'a Reached,
    server: &'a Server,
    user: &str,
    clock: Duration,
    said: u64,
) -> Truth<'a> {
    Truth {
        mail: &server.mail,
        origin,
        reached,
        clock,
        re_proof: RE_PROOF,
        revoked: server.revoked.get(user).copied(),
        said,
    }
}

/// One reading of an origin, what a question of one batch brings from the store at once, and news. Mail is smaller here
/// than elsewhere: no value that comes in memory is longer than 4 KiB.
const BEYOND_WINDOW_MAX: usize = 224 * 1024;
