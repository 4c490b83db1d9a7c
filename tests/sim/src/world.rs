//! The world of one run: servers, nodes, clients and the lines between them, and the heap of what happens next.

use crate::{
    checkers::{Broken, Canary, Checker, SeenWatch},
    client::{Client, Habit, Reached, Truth},
    mail::{BOXES, Mail, USERS, box_of},
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
    session::{self, Compress, Event as Learned, Side},
};
use node::{
    Arrival, ConnId, Count, Ended, Input, Limits, NoOrigin, Node, NodeConfig, Order, Output, ServerTerms,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
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
    /// The client has hung up.
    hung_up: bool,
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
            hung_up: false,
            lan: Road { delay_us: 100 + random.below(2000) as u64, octets_per_ms: rate },
            wan: Road {
                delay_us: 2000 + random.below(100_000) as u64,
                octets_per_ms: *random.pick(&[125, 1250, 12_500]),
            },
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
            Event::Fault(fault) => self.fault(fault),
            Event::Restarted(node) => {
                self.node_gone(node, "restart");
                self.sites[node].store.restart();
            }
        }
        Ok(())
    }

    // ---- connections -----------------------------------------------------------------------------------------

    fn connect(&mut self, slot: usize) {
        if self.lines[slot].connected {
            return;
        }
        let node = self.lines[slot].node;
        if self.resting {
            return;
        }
        if self.sites[node].draining {
            self.soon(1_000_000, Event::Reconnect(slot));
            return;
        }
        let line = &mut self.lines[slot];
        line.connected = true;
        let (conn, server) = (line.conn, server_id(line.server));
        let arrival = Arrival { conn, server, road: session::Road::Tls, nonce: [1, 2, 3, 4, 5, 6] };
        self.inputs.push_back((node, conn, Input::Accepted(arrival)));
        self.soon(200_000, Event::ClientTurn(slot, conn));
    }

    fn open(&mut self, slot: usize, anew: bool) {
        let line = &self.lines[slot];
        let (conn, rtt) = (line.conn, 4 * line.wan.delay_us);
        let parted = self.sites[line.node].parted_until[line.server] > self.now_us;
        let (node, server) = (line.node, line.server);
        if anew {
            self.lines[slot].origin = Origin::new(self.servers[server].manner);
            self.lines[slot].answer = Pipe::default();
            self.lines[slot].forward = Pipe::default();
            self.lines[slot].to_origin.clear();
            self.lines[slot].hung_up = false;
            self.totals.replaced += 1;
        }
        if !anew && self.random.once_in(3) {
            self.at(self.now_us + 1, Event::OriginReady(slot, conn, true));
        } else if parted {
            // Nothing comes back; the node has its own patience.
            self.lines[slot].excuse = Some("parted");
        } else if !self.resting && self.random.once_in(60) {
            self.lines[slot].excuse = Some("refused");
            let why = NoOrigin("refused");
            self.inputs.push_back((node, conn, Input::OriginFailed { conn, why }));
        } else {
            self.at(self.now_us + rtt, Event::OriginReady(slot, conn, false));
        }
    }

    fn origin_ready(&mut self, slot: usize, conn: ConnId, parked: bool) {
        let may_forget = parked && !self.resting && self.random.once_in(3);
        let Some(line) = self.line(slot, conn) else { return };
        line.opened = true;
        line.parked = parked;
        let greeting = format!("* OK [CAPABILITY {}] ready\r\n", line.origin.capabilities()).into();
        let node = line.node;
        self.inputs.push_back((node, conn, Input::OriginOpened { conn, greeting, parked }));
        if may_forget {
            // The server had ended it; the news comes now.
            self.inputs.push_back((node, conn, Input::Broken { conn, side: Side::Server }));
        }
        self.origin_soon(slot, 1000);
    }

    /// Ends a line from outside; what it had is lost.
    pub(crate) fn sever(&mut self, slot: usize, side: Side, why: &'static str, quietly: bool) {
        let line = &mut self.lines[slot];
        if !line.connected || line.closed {
            return;
        }
        line.excuse = Some(why);
        let (node, conn) = (line.node, line.conn);
        let input = if quietly { Input::Finished { conn, side } } else { Input::Broken { conn, side } };
        self.inputs.push_back((node, conn, input));
    }

    /// The process of a node is gone, and with it its connections.
    pub(crate) fn node_gone(&mut self, node: usize, why: &'static str) {
        self.inputs.retain(|(at, ..)| *at != node);
        for slot in 0..self.lines.len() {
            if self.lines[slot].node == node && self.lines[slot].connected {
                self.lines[slot].excuse = Some(why);
                self.lines[slot].errands.clear();
                self.renew(slot);
            }
        }
        let servers = self.servers.len();
        let random = &mut self.random;
        let window = *random.pick(&[16 * 1024, 64 * 1024]);
        let foresee = !random.once_in(4);
        let site = &mut self.sites[node];
        site.window = window;
        site.node = new_node(window, servers, foresee);
        site.draining = false;
        site.woken_at = None;
    }

    /// Another client takes the slot.
    fn renew(&mut self, slot: usize) {
        let node = self.lines[slot].node;
        let fresh = self.fresh_line(node);
        let line = std::mem::replace(&mut self.lines[slot], fresh);
        self.totals.replies += line.client.replies;
        self.totals.from_store += line.client.from_store;
        self.totals.ahead += line.client.told_ahead;
        self.totals.sessions += 1;
        self.soon(1_000_000, Event::Reconnect(slot));
    }

    /// The node has closed the connection, and the client has heard everything.
    fn line_ends(&mut self, slot: usize) -> Result<(), Broken> {
        let (node, now) = (self.lines[slot].node, self.now_us);
        let errands: Vec<_> = self.lines[slot].errands.drain(..).collect();
        for op in errands {
            self.sites[node].store.handle(now, op);
        }
        let line = &self.lines[slot];
        let mourned = line.client.logged_out || line.excuse.is_some() || line.deceived;
        if !mourned {
            let asked = line.client.outstanding();
            return Err(self.broken(slot, Checker::NothingLost, format!("ended by itself; asked {asked}")));
        }
        if let Some(number) = line.number {
            let store = &self.sites[node].store;
            if store.fills_of(number) > 0 || store.has_claim(number) {
                let lie = "a session is over, and still holds a body or a claim in the store".to_owned();
                return Err(self.broken(slot, Checker::Budget, lie));
            }
        }
        self.renew(slot);
        Ok(())
    }

    pub(crate) fn broken(&self, slot: usize, checker: Checker, what: String) -> Broken {
        Broken { checker, what: format!("line {slot} at {:.3} s: {what}", self.now_us as f64 / 1e6) }
    }

    // ---- actors ----------------------------------------------------------------------------------------------

    fn client_turn(&mut self, slot: usize, conn: ConnId) {
        let resting = self.resting;
        let clock = self.clock();
        let Some(line) = self.lines.get_mut(slot).filter(|line| line.conn == conn && line.connected) else {
            return;
        };
        if line.hung_up || line.closed || resting {
            return;
        }
        let think = line.think_us;
        if line.opened && !line.deceived {
            let server = &self.servers[line.server];
            let truth =
                truth(&line.origin, &line.reached, server, &line.client.user, clock, server.mail.tick);
            let mut uploads = Vec::new();
            if let Some(words) = line.client.follow(&mut line.habit, &mut self.random, &truth, &mut uploads) {
                line.seen.asked(&words);
                line.asked.extend(words.as_bytes());
            }
            line.origin.uploads.append(&mut uploads);
            self.ask_on(slot);
        }
        self.soon(think, Event::ClientTurn(slot, conn));
    }

    /// The origin does something within `max_us`, unless it does already.
    fn origin_soon(&mut self, slot: usize, max_us: usize) {
        let at = self.now_us + 1 + self.random.below(max_us) as u64;
        let line = &mut self.lines[slot];
        if at < line.origin_at {
            line.origin_at = at;
            let conn = line.conn;
            self.at(at, Event::OriginTurn(slot, conn));
        }
    }

    fn origin_turn(&mut self, slot: usize, conn: ConnId) {
        let (resting, now) = (self.resting, self.now_us);
        let Some(line) = self.line(slot, conn).filter(|line| line.origin_at == now) else { return };
        line.origin_at = u64::MAX;
        let line = &mut self.lines[slot];
        let server = &mut self.servers[line.server];
        line.origin.step(&mut server.mail, &mut self.random, resting);
        self.answer_on(slot);
        let line = &self.lines[slot];
        let quiet = line.origin.is_quiet();
        if !(line.hung_up || quiet && resting) {
            self.origin_soon(slot, if quiet { 2_000_000 } else { 3000 });
        }
    }

    fn store_turn(&mut self, slot: usize, conn: ConnId) {
        let now = self.now_us;
        let Some(line) = self.line(slot, conn) else { return };
        line.store_busy = false;
        let node = line.node;
        if let Some(op) = line.errands.pop_front()
            && let Some(reply) = self.sites[node].store.handle(now, op)
        {
            self.inputs.push_back((node, conn, Input::Store { conn, reply }));
        }
        self.store_on(slot);
    }

    fn store_on(&mut self, slot: usize) {
        let line = &mut self.lines[slot];
        if !line.store_busy && !line.errands.is_empty() {
            line.store_busy = true;
            let conn = line.conn;
            let slowness = if self.random.once_in(50) { 200_000 } else { 2000 };
            self.soon(slowness, Event::StoreTurn(slot, conn));
        }
    }

    /// Everybody else with an account on this server.
    fn others(&mut self, at: usize) {
        let user = *self.random.pick(&USERS);
        let name = *self.random.pick(&BOXES);
        let mut name = box_of(user, name);
        let slot = self.random.below(self.lines.len());
        // More where somebody looks.
        if let Some(open) = self.lines[slot].origin.selected.as_ref()
            && self.lines[slot].server == at
            && !self.random.once_in(3)
        {
            name = open.name.clone();
        }
        let clock = self.clock();
        let server = &mut self.servers[at];
        let uid = {
            let live = &server.mail.boxes[&name].live;
            let some = if self.random.once_in(2) { live.len() } else { live.len().min(4) };
            if some == 0 { 0 } else { self.random.pick(&live[..some]).uid }
        };
        match self.random.below(12) {
            0 | 1 => server.mail.arrive(&mut self.random),
            4..=6 if uid > 0 => server.mail.expunge(&name, uid),
            7 | 8 if uid > 0 => {
                let (flag, on) = (*self.random.pick(&["\\Seen", "\\Flagged"]), self.random.once_in(2));
                server.mail.set_flag(&name, uid, flag, on);
            }
            9 if self.random.once_in(3) => {
                // Made anew, with other mail under the same UIDs; nobody may have it open.
                let open = self.lines.iter().any(|line| {
                    line.server == at && line.origin.selected.as_ref().is_some_and(|s| s.name == name)
                });
                if !open {
                    server.mail.create(&name);
                    for _ in 0..8 {
                        server.mail.arrive_in(&name, &mut self.random);
                    }
                }
            }
            10 if server.manner == Manner::Cyrus && self.random.once_in(3) => {
                if server.revoked.remove(user).is_some() {
                    server.mail.revoked.remove(user);
                } else {
                    server.revoked.insert(user.to_owned(), clock);
                    server.mail.revoked.insert(user.to_owned(), server.mail.tick);
                }
            }
            _ => {}
        }
    }

    /// The server says something that is not so.
    pub(crate) fn lie(&mut self, slot: usize, line_said: &str) {
        let now = self.now_us;
        let line = &mut self.lines[slot];
        // Between two responses only: a lie within one is a lie about mail, which only its reader could notice.
        if !line.opened || line.closed || line.origin.has_output() {
            return;
        }
        line.deceived = true;
        let mark = (line.node, line.server, line.client.user.clone());
        let segment = Segment { octets: line_said.to_owned().into(), ..Segment::default() };
        let arrives = line.answer.send(now, line.wan, segment);
        let conn = line.conn;
        self.at(arrives, Event::Arrive(slot, conn, Way::Answer));
        // What this user's other sessions at the node are served from the store may be the lie.
        for other in &mut self.lines {
            if (other.node, other.server, &other.client.user) == (mark.0, mark.1, &mark.2) {
                other.deceived = true;
            }
        }
        if !self.deceived.contains(&mark) {
            self.deceived.push(mark);
        }
    }

    // ---- the roads -------------------------------------------------------------------------------------------

    fn arrive(&mut self, slot: usize, conn: ConnId, way: Way) -> Result<(), Broken> {
        let Some(line) = self.line(slot, conn) else { return Ok(()) };
        let pipe = match way {
            Way::Ask => &mut line.ask,
            Way::Tell => &mut line.tell,
            Way::Forward => &mut line.forward,
            Way::Answer => &mut line.answer,
        };
        pipe.arrive();
        match way {
            Way::Ask | Way::Answer => {}
            Way::Tell => return self.client_hears(slot),
            Way::Forward => {
                while let Some(segment) = self.lines[slot].forward.take() {
                    self.lines[slot].origin.receive(&segment.octets);
                }
                self.forward_on(slot);
                self.origin_soon(slot, 2000);
            }
        }
        // The node reads what has come when it wants to.
        self.offer(slot);
        Ok(())
    }

    /// Gives the node what has come, as far as it reads.
    fn offer(&mut self, slot: usize) {
        let line = &mut self.lines[slot];
        if !line.connected || line.closed {
            return;
        }
        let (node, conn) = (line.node, line.conn);
        let site = &self.sites[node];
        if !line.ask.inbox.is_empty()
            && site.node.reads(conn, Side::Client)
            && let Some(segment) = line.ask.take()
        {
            let input = Input::Octets { conn, side: Side::Client, octets: segment.octets };
            self.inputs.push_back((node, conn, input));
            return self.ask_on(slot);
        }
        let line = &mut self.lines[slot];
        if !line.answer.inbox.is_empty()
            && site_reads_origin(&self.sites[node], conn)
            && let Some(segment) = line.answer.take()
        {
            let clock = Duration::from_micros(self.now_us);
            let tick = self.servers[line.server].mail.tick;
            for mark in segment.marks {
                line.canary.proved(&mark, &self.servers[line.server].mail);
                line.reached.take(mark, clock, tick);
            }
            let input = if segment.octets.is_empty() && segment.last {
                Input::Finished { conn, side: Side::Server }
            } else {
                Input::Octets { conn, side: Side::Server, octets: segment.octets }
            };
            self.inputs.push_back((node, conn, input));
            self.answer_on(slot);
        }
    }

    fn put(&mut self, slot: usize, way: Way, segment: Segment) {
        let now = self.now_us;
        let line = &mut self.lines[slot];
        let (pipe, road) = match way {
            Way::Ask => (&mut line.ask, line.lan),
            Way::Tell => (&mut line.tell, line.lan),
            Way::Forward => (&mut line.forward, line.wan),
            Way::Answer => (&mut line.answer, line.wan),
        };
        if matches!(way, Way::Forward | Way::Answer) {
            pipe.blocked_until = self.sites[line.node].parted_until[line.server];
        }
        let arrives = pipe.send(now, road, segment);
        let conn = line.conn;
        self.at(arrives, Event::Arrive(slot, conn, way));
    }

    fn ask_on(&mut self, slot: usize) {
        while self.lines[slot].ask.room() > 0 && !self.lines[slot].asked.is_empty() {
            let n = some(&mut self.random);
            let line = &mut self.lines[slot];
            let octets: Vec<u8> = line.asked.drain(..n.min(line.asked.len())).collect();
            self.put(slot, Way::Ask, Segment { octets: octets.into(), ..Segment::default() });
        }
    }

    fn answer_on(&mut self, slot: usize) {
        while self.lines[slot].answer.room() > 0 && self.lines[slot].origin.has_output() {
            let n = some(&mut self.random);
            let (octets, marks) = self.lines[slot].origin.take_output(n);
            self.put(slot, Way::Answer, Segment { octets: octets.into(), marks, ..Segment::default() });
        }
        let line = &self.lines[slot];
        if (line.origin.said_bye || line.origin.is_gone) && !line.origin.has_output() && !line.hung_up {
            self.lines[slot].hung_up = true;
            self.put(slot, Way::Answer, Segment { last: true, ..Segment::default() });
        }
    }

    fn forward_on(&mut self, slot: usize) {
        while self.lines[slot].forward.room() > 0 && !self.lines[slot].to_origin.is_empty() {
            let n = some(&mut self.random);
            let line = &mut self.lines[slot];
            let Some(front) = line.to_origin.front_mut() else { return };
            let octets = front.split_to(n.min(front.len()));
            let done = front.is_empty();
            if done {
                line.to_origin.pop_front();
            }
            let (node, conn, n) = (line.node, line.conn, octets.len());
            let wrote = Input::Wrote { conn, side: Side::Server, octets: n, pieces: usize::from(done) };
            self.inputs.push_back((node, conn, wrote));
            self.put(slot, Way::Forward, Segment { octets, ..Segment::default() });
        }
    }

    fn tell_on(&mut self, slot: usize) {
        while self.lines[slot].tell.room() > 0 {
            let n = some(&mut self.random);
            let line = &mut self.lines[slot];
            let (node, conn) = (line.node, line.conn);
            let Some(front) = line.to_client.front_mut() else { break };
            let (octets, said, done, counted) = match front {
                Written::Octets(said, octets) => {
                    let piece = octets.split_to(n.min(octets.len()));
                    let n = piece.len();
                    (piece, *said, octets.is_empty(), n)
                }
                Written::From(said, reader, offset, left) => {
                    let mut buf = vec![0; usize::try_from(*left).unwrap().min(n)];
                    let n = reader.read_at(*offset, &mut buf).unwrap_or(0);
                    if n == 0 && reader.wait(*offset, Duration::ZERO).is_err() {
                        line.excuse = Some("body lost");
                        line.to_client.clear();
                        self.inputs.push_back((node, conn, Input::BodyLost { conn }));
                        return;
                    }
                    if n == 0 {
                        if !std::mem::replace(&mut line.pump_waits, true) {
                            self.soon(20_000, Event::PumpAgain(slot, conn));
                        }
                        return;
                    }
                    buf.truncate(n);
                    *offset += n as u64;
                    *left -= n as u64;
                    (buf.into(), *said, *left == 0, 0)
                }
            };
            if done {
                line.to_client.pop_front();
            }
            let wrote = Input::Wrote { conn, side: Side::Client, octets: counted, pieces: usize::from(done) };
            self.inputs.push_back((node, conn, wrote));
            self.put(slot, Way::Tell, Segment { octets, said, ..Segment::default() });
        }
    }

    fn client_hears(&mut self, slot: usize) -> Result<(), Broken> {
        let clock = self.clock();
        while let Some(segment) = self.lines[slot].tell.take() {
            if segment.last {
                return self.line_ends(slot);
            }
            let line = &mut self.lines[slot];
            let server = &self.servers[line.server];
            self.trace.note(self.now_us, slot, "C<-", &segment.octets);
            if let Err(lie) = line.canary.hear(&segment.octets, &line.client.user, &server.mail) {
                return Err(self.broken(slot, Checker::Canary, lie));
            }
            if line.deceived {
                continue;
            }
            let truth = truth(&line.origin, &line.reached, server, &line.client.user, clock, segment.said);
            match line.client.hear(&segment.octets, &truth) {
                Ok(says) => line.asked.extend(says),
                Err(lie) => {
                    let checker = Checker::of_lie(&lie);
                    return Err(self.broken(slot, checker, lie));
                }
            }
        }
        self.ask_on(slot);
        self.tell_on(slot);
        Ok(())
    }

    // ---- the nodes -------------------------------------------------------------------------------------------

    /// Lets the nodes do all that follows from what has happened.
    fn work(&mut self) -> Result<(), Broken> {
        while let Some((node, conn, input)) = self.inputs.pop_front() {
            let now = self.now(node);
            if let Input::Octets { side, octets, .. } = &input {
                let who = if *side == Side::Client { "C->" } else { "    <-S" };
                let slot = self.slot_of(conn).unwrap_or(usize::MAX);
                self.trace.note(self.now_us, slot, who, octets);
            }
            self.sites[node].node.handle(now, input);
            while let Some(output) = self.sites[node].node.poll_output() {
                self.obey(output)?;
            }
            if let Some(slot) = self.slot_of(conn) {
                self.check_budget(slot)?;
                self.offer(slot);
            }
            if self.inputs.is_empty() {
                self.wake(node);
            }
        }
        Ok(())
    }

    fn slot_of(&self, conn: ConnId) -> Option<usize> {
        self.lines.iter().position(|line| line.conn == conn)
    }

    fn wake(&mut self, node: usize) {
        let start = self.start;
        let site = &mut self.sites[node];
        let Some(due) = site.node.poll_timeout() else { return };
        let us = u64::try_from(due.saturating_duration_since(start).as_micros()).unwrap() + 1;
        if site.woken_at.is_none_or(|at| at > us) {
            site.woken_at = Some(us);
            self.at(us, Event::Tick(node));
        }
    }

    fn check_budget(&mut self, slot: usize) -> Result<(), Broken> {
        let line = &self.lines[slot];
        let site = &self.sites[line.node];
        let Some((client, origin)) = site.node.waiting(line.conn) else { return Ok(()) };
        let beyond = client.max(origin).saturating_sub(site.window);
        self.totals.waiting_max = self.totals.waiting_max.max(beyond);
        if beyond > BEYOND_WINDOW_MAX {
            let lie = format!("{beyond} octets wait beyond the window of {}", site.window);
            return Err(self.broken(slot, Checker::Budget, lie));
        }
        Ok(())
    }

    fn obey(&mut self, output: Output) -> Result<(), Broken> {
        let conn = match &output {
            Output::Open { conn, .. }
            | Output::Write { conn, .. }
            | Output::WriteFrom { conn, .. }
            | Output::Catalog { conn, .. }
            | Output::StartTls { conn }
            | Output::Deflate { conn, .. }
            | Output::Close { conn }
            | Output::Count { conn, .. } => *conn,
        };
        let Some(slot) = self.slot_of(conn) else { return Ok(()) };
        let tick = self.servers[self.lines[slot].server].mail.tick;
        match output {
            Output::Open { anew, .. } => self.open(slot, anew),
            Output::Write { side: Side::Client, octets, .. } => {
                self.lines[slot].seen.told(&octets);
                self.lines[slot].to_client.push_back(Written::Octets(tick, octets));
                self.tell_on(slot);
            }
            Output::Write { side: Side::Server, octets, .. } => {
                self.trace.note(self.now_us, slot, "    ->S", &octets);
                let line = &mut self.lines[slot];
                if !line.deceived
                    && let Err(lie) = line.seen.forwarded(&octets)
                {
                    return Err(self.broken(slot, Checker::Seen, lie));
                }
                line.to_origin.push_back(octets);
                self.forward_on(slot);
            }
            Output::WriteFrom { reader, offset, octets, .. } => {
                self.lines[slot].to_client.push_back(Written::From(tick, reader, offset, octets));
                self.tell_on(slot);
            }
            Output::Catalog { op, .. } => {
                if let CatalogOp::FillOpen { fill, .. } = &op {
                    self.lines[slot].number = Some(fill.session);
                }
                self.lines[slot].errands.push_back(op);
                self.store_on(slot);
            }
            Output::StartTls { .. } | Output::Deflate { .. } => {
                return Err(self.broken(slot, Checker::Transcript, "nobody wanted that".into()));
            }
            Output::Close { .. } => {
                self.lines[slot].closed = true;
                if self.lines[slot].tell.black_hole {
                    return self.line_ends(slot);
                }
                self.put(slot, Way::Tell, Segment { last: true, ..Segment::default() });
            }
            Output::Count { what, .. } => self.counted(slot, &what)?,
        }
        Ok(())
    }

    fn counted(&mut self, slot: usize, what: &Count) -> Result<(), Broken> {
        self.trace.event(self.now_us, slot, what);
        let line = &mut self.lines[slot];
        match what {
            Count::Ended(how) => {
                match how {
                    Ended::Done => {}
                    // The client must go because of others; the other words are for what nobody did.
                    Ended::Drained => drop(line.excuse.get_or_insert("drained")),
                    Ended::Full => drop(line.excuse.get_or_insert("full")),
                    Ended::IdleBeforeLogin => drop(line.excuse.get_or_insert("idle before login")),
                    Ended::NoOrigin
                    | Ended::OriginLost
                    | Ended::ClientGarbled
                    | Ended::OriginGarbled
                    | Ended::StartTlsSurplus
                    | Ended::StartTlsFailed
                    | Ended::StoreLost
                    | Ended::Stuck => {}
                }
                *self.totals.ended.entry(format!("{how:?}")).or_default() += 1;
            }
            Count::Event(Learned::Desync(why) | Learned::Tunnel(why)) if !line.deceived => {
                let lie = format!("gave up on an honest server: {why}");
                return Err(self.broken(slot, Checker::Transcript, lie));
            }
            Count::Event(Learned::Unread) if !line.deceived => {
                let lie = "a FETCH response was not understood".to_owned();
                return Err(self.broken(slot, Checker::Transcript, lie));
            }
            Count::Accepted
            | Count::OriginReplaced
            | Count::OpenFailed(_)
            | Count::NobodyThere
            | Count::Event(_) => {}
        }
        Ok(())
    }

    /// The operator lets a node come to rest.
    pub(crate) fn order(&mut self, node: usize, after: Duration) {
        let by = self.now(node).mono + after;
        self.sites[node].draining = true;
        self.inputs.push_back((node, ConnId(0), Input::Operator(Order::DrainBy(by))));
        let gone = self.now_us + u64::try_from(after.as_micros()).unwrap() + 6_000_000;
        self.at(gone, Event::Restarted(node));
    }

    /// The receiver of this line is there no more, and nobody says so.
    pub(crate) fn vanish(&mut self, slot: usize) {
        let line = &mut self.lines[slot];
        if line.connected && !line.closed {
            line.tell.black_hole = true;
            line.hung_up = true;
            line.excuse = Some("vanished");
        }
    }

    // ---- rest ------------------------------------------------------------------------------------------------

    /// Nothing new happens; everything that is owed must come, and everybody must then believe what is.
    pub(crate) fn rest(&mut self) -> Result<(), Broken> {
        self.resting = true;
        for slot in 0..self.lines.len() {
            if self.lines[slot].tell.black_hole {
                self.sever(slot, Side::Client, "vanished", false);
            }
        }
        self.work()?;
        self.end_idles();
        self.run_until(self.now_us + REST_US)?;
        for round in 0..4 {
            self.end_idles();
            self.run_until(self.now_us + REST_US / 4)?;
            for slot in 0..self.lines.len() {
                let line = &self.lines[slot];
                if line.is_watched() && (line.client.is_owed() || !line.tell.is_empty()) {
                    let lie = format!("nothing moves; asked {}", line.client.outstanding());
                    return Err(self.broken(slot, Checker::NoWedge, lie));
                }
                if round < 3 && line.is_watched() {
                    self.ask_at_rest(slot, round);
                }
            }
            self.work()?;
        }
        for slot in 0..self.lines.len() {
            let line = &self.lines[slot];
            if line.is_watched()
                && let Err(lie) = line.client.check_converged(&self.servers[line.server].mail)
            {
                return Err(self.broken(slot, Checker::Transcript, lie));
            }
        }
        self.finish();
        Ok(())
    }

    fn end_idles(&mut self) {
        for slot in 0..self.lines.len() {
            if let Some(done) = self.lines[slot].client.end_idle() {
                self.lines[slot].asked.extend(done.as_bytes());
                self.ask_on(slot);
            }
        }
    }

    fn ask_at_rest(&mut self, slot: usize, round: usize) {
        let clock = self.clock();
        let line = &mut self.lines[slot];
        let server = &self.servers[line.server];
        let truth = truth(&line.origin, &line.reached, server, &line.client.user, clock, server.mail.tick);
        let words = match round {
            0 | 1 => Some(line.client.noop(&truth)),
            _ => line.client.ask_everything(&truth),
        };
        line.asked.extend(words.unwrap_or_default().as_bytes());
        self.ask_on(slot);
    }

    fn finish(&mut self) {
        for line in &self.lines {
            self.totals.replies += line.client.replies;
            self.totals.from_store += line.client.from_store;
            self.totals.ahead += line.client.told_ahead;
            self.totals.sessions += 1;
        }
        for site in &self.sites {
            self.totals.damaged += site.store.damaged;
            self.totals.refused += site.store.refused;
        }
        self.totals.hash = self.trace.hash();
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
            node: new_node(window, servers, !random.once_in(4)),
            store: Store::new(),
            wall_ms: 1_700_000_000_000,
            window,
            draining: false,
            woken_at: None,
            parted_until: vec![0; servers],
        }
    }
}

fn new_node(window: usize, servers: usize, foresee: bool) -> Node {
    let limits = Limits { window_octets: window, stuck: Duration::from_secs(15), ..Limits::default() };
    let terms = ServerTerms {
        compress: Compress::Off,
        cache: true,
        re_proof: RE_PROOF,
        chunk_fill_max: 1 << 20,
        foresee,
        sessions_max: 20,
    };
    let servers = (0..servers).map(|at| (server_id(at), terms.clone())).collect();
    Node::new(NodeConfig { limits, servers, keying: Arc::new(PlainKeys) })
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
