//! Two endpoints, one clock, and lines that break wherever they are told to. Every stream carries octets that follow
//! from its name and their place, so that each reader can tell a wrong one; what must hold is asserted at each step.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's reader: it reports by panicking")]

use crate::{
    Admission, Config, ConnId, Endpoint, Kind, Lane, LaneSet, Notice, OpenFrame, Output, Read, Reason, Side,
    StreamId,
    frame::Frame,
    hello::{Birth, Greeting, Hello},
};
use bytes::{Bytes, BytesMut};
use discovery_core::{
    flow::Flow,
    now::{Now, UnixMillis},
    value::Class,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What the user of a stream knows.
#[derive(Clone, Debug, Default)]
pub struct Use {
    /// Octets written.
    pub written: u64,
    /// Octets read.
    pub read: u64,
    /// Nothing more will be written.
    pub finished: bool,
    /// The end was read.
    pub ended: bool,
    /// Its user here reset it.
    pub reset: bool,
    /// It ended before its time.
    pub dead: Option<Reason>,
    /// The peer said that it stands, or we did.
    pub opened: bool,
}

/// One end.
#[derive(Debug)]
pub struct End {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its streams, the ended ones too.
    pub uses: BTreeMap<StreamId, Use>,
    /// Notices that came.
    pub notices: usize,
    /// Streams that are not answered yet, where that takes a while.
    pub offered: Option<Vec<StreamId>>,
    life: u64,
}

/// A connection: octets under way in each direction.
#[derive(Debug, Default)]
struct Line {
    /// From the first to the second, and back.
    wires: [BytesMut; 2],
    /// What arrived and is no whole frame.
    arrived: [BytesMut; 2],
    /// Which end still holds it.
    held: [bool; 2],
    lanes: LaneSet,
}

/// Two ends.
#[derive(Debug)]
pub struct Pair {
    /// The first and the second.
    pub ends: [End; 2],
    config: Config,
    lines: BTreeMap<ConnId, Line>,
    next: u64,
    began: Instant,
    passed: Duration,
}

const SIDES: [Side; 2] = [Side::First, Side::Second];

impl Pair {
    /// Two ends without a connection, at some moment.
    #[must_use]
    pub fn new(config: Config, began: Instant) -> Self {
        let end = |side: Side, life| End {
            endpoint: Endpoint::new(config, side, Birth::new(life)),
            uses: BTreeMap::new(),
            notices: 0,
            offered: None,
            life,
        };
        Self {
            ends: [end(Side::First, 1), end(Side::Second, 2)],
            config,
            lines: BTreeMap::new(),
            next: 0,
            began,
            passed: Duration::ZERO,
        }
    }

    /// The moment.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: self.began + self.passed, wall: UnixMillis(0) }
    }

    /// `who` dials; with `whole` the answer arrives too. The connection, if both took it.
    pub fn connect(&mut self, who: usize, lanes: LaneSet, whole: bool) -> Option<ConnId> {
        let (now, other) = (self.now(), 1 - who);
        self.next += 1;
        let conn = ConnId(self.next);
        let greetings = [0, 1].map(|end| greeting(&self.ends[end].endpoint, lanes));
        let taken = self.ends[other].endpoint.attach(now, conn, SIDES[who], &greetings[who]);
        self.drain(other);
        if taken != Admission::Taken {
            return None;
        }
        let mut line = Line { lanes, ..Line::default() };
        line.held[other] = true;
        if whole {
            let taken = self.ends[who].endpoint.attach(now, conn, SIDES[who], &greetings[other]);
            line.held[who] = taken == Admission::Taken;
        }
        let both = line.held == [true, true];
        self.lines.insert(conn, line);
        self.drain(who);
        both.then_some(conn)
    }

    /// All lanes, in one connection or in three.
    pub fn connect_all(&mut self, who: usize, three: bool) {
        let sets = if three { Lane::ALL.map(LaneSet::only).to_vec() } else { vec![LaneSet::ALL] };
        for lanes in sets {
            self.connect(who, lanes, true);
        }
    }

    /// The connections that exist.
    #[must_use]
    pub fn conns(&self) -> Vec<ConnId> {
        self.lines.keys().copied().collect()
    }

    /// Breaks a connection: what is under way is lost. `seen` says which ends notice now.
    pub fn cut(&mut self, conn: ConnId, seen: [bool; 2]) {
        let now = self.now();
        let Some(mut line) = self.lines.remove(&conn) else { return };
        line.wires = Default::default();
        for (end, seen) in seen.into_iter().enumerate() {
            if seen && line.held[end] {
                self.ends[end].endpoint.detach(now, conn);
                self.drain(end);
            }
        }
    }

    /// Breaks all.
    pub fn cut_all(&mut self) {
        self.conns().into_iter().for_each(|conn| self.cut(conn, [true, true]));
    }

    /// The process of `who` is another one.
    pub fn restart(&mut self, who: usize) {
        self.lines.values_mut().for_each(|line| line.held[who] = false);
        let conns = self.conns();
        let mut seen = [true, true];
        seen[who] = false;
        conns.into_iter().for_each(|conn| self.cut(conn, seen));
        let end = &mut self.ends[who];
        end.life += 2;
        end.endpoint = Endpoint::new(self.config, SIDES[who], Birth::new(end.life));
        end.uses.clear();
    }

    /// Opens a stream, if that can be.
    pub fn open(&mut self, who: usize, class: Class) -> Option<StreamId> {
        let now = self.now();
        let end = &mut self.ends[who];
        let port = u16::try_from(end.uses.len() % 50_000).unwrap();
        let flow = Flow { client: ([10, 0, 0, 1], 7000 + port).into(), server: ([10, 0, 0, 2], 143).into() };
        let open = OpenFrame { flow, class, kind: Kind::Carry, spoof: false, server: None };
        let id = end.endpoint.open(now, open).ok()?;
        end.uses.insert(id, Use::default());
        self.drain(who);
        Some(id)
    }

    /// Answers what was offered.
    pub fn accept_offered(&mut self, who: usize) {
        let end = &mut self.ends[who];
        for id in end.offered.take().unwrap_or_default() {
            end.uses.get_mut(&id).unwrap().opened = true;
            end.endpoint.accept(id, Bytes::from_static(b"info")).expect("it stands");
        }
        self.drain(who);
    }

    /// Writes up to `n` octets; how many were taken.
    pub fn write(&mut self, who: usize, id: StreamId, n: usize) -> usize {
        let end = &mut self.ends[who];
        let Some(used) = end.uses.get_mut(&id) else { return 0 };
        if used.finished || used.dead.is_some() {
            return 0;
        }
        let octets: Vec<u8> = (0..n as u64).map(|k| octet(id, who, used.written + k)).collect();
        let taken = end.endpoint.write(id, &octets).expect("it stands");
        used.written += taken as u64;
        self.drain(who);
        taken
    }

    /// Nothing more will be written.
    pub fn finish(&mut self, who: usize, id: StreamId) {
        let end = &mut self.ends[who];
        let Some(used) = end.uses.get_mut(&id).filter(|used| used.dead.is_none()) else { return };
        if !std::mem::replace(&mut used.finished, true) {
            end.endpoint.finish(id).expect("it stands");
        }
        self.drain(who);
    }

    /// Reads up to `n` octets and compares them; how many there were.
    pub fn read(&mut self, who: usize, id: StreamId, n: usize) -> usize {
        let now = self.now();
        let end = &mut self.ends[who];
        let Some(used) = end.uses.get_mut(&id) else { return 0 };
        if used.dead.is_some() || used.ended || n == 0 {
            return 0;
        }
        let n = match end.endpoint.read(now, id, n).expect("it stands") {
            Read::Octets(octets) => {
                for (k, seen) in octets.iter().enumerate() {
                    let at = used.read + k as u64;
                    assert_eq!(*seen, octet(id, 1 - who, at), "{id:?} at {at}");
                }
                used.read += octets.len() as u64;
                octets.len()
            }
            Read::Wait => 0,
            Read::End => {
                used.ended = true;
                0
            }
            Read::Reset(_) => 0,
        };
        self.drain(who);
        n
    }

    /// Ends a stream before its time.
    pub fn reset(&mut self, who: usize, id: StreamId) {
        let now = self.now();
        let end = &mut self.ends[who];
        let Some(used) = end.uses.get_mut(&id).filter(|used| used.dead.is_none()) else { return };
        if !(used.ended && used.finished) {
            used.dead = Some(Reason::ConnectionReset);
            used.reset = true;
        }
        end.endpoint.reset(now, id, Reason::ConnectionReset);
        self.drain(who);
    }

    /// Sends a notice.
    pub fn notify(&mut self, who: usize) {
        self.ends[who].endpoint.notify(Notice::Other { kind: 9, octets: Bytes::from_static(b"x") });
        self.drain(who);
    }

    /// Lets up to `n` octets of `conn` arrive from `from` at the other end; how many did.
    pub fn deliver(&mut self, conn: ConnId, from: usize, n: usize) -> usize {
        let now = self.now();
        let Some(line) = self.lines.get_mut(&conn) else { return 0 };
        if line.held[from] {
            let mut out = Vec::new();
            self.ends[from].endpoint.poll_transmit(conn, n, &mut out);
            out.iter().for_each(|octets| line.wires[from].extend_from_slice(octets));
        }
        let n = n.min(line.wires[from].len());
        let octets = line.wires[from].split_to(n);
        if line.held[1 - from] {
            line.arrived[1 - from].extend_from_slice(&octets);
            let to = &mut self.ends[1 - from].endpoint;
            to.handle_received(now, conn, &mut line.arrived[1 - from])
                .expect("the other end keeps the rules");
        }
        self.drain(from);
        self.drain(1 - from);
        n
    }

    /// Time passes.
    pub fn advance(&mut self, by: Duration) {
        self.passed += by;
        let now = self.now();
        for end in 0..2 {
            if self.ends[end].endpoint.poll_timeout().is_some_and(|at| at <= now.mono) {
                self.ends[end].endpoint.handle_timeout(now);
            }
            let again = self.ends[end].endpoint.poll_timeout();
            assert!(again.is_none_or(|at| at > now.mono), "a timer that has fired is over");
            self.drain(end);
        }
    }

    /// Everything under way arrives, and what is answered to it, until nobody has anything to say.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut moved = 0;
            for conn in self.conns() {
                moved += self.deliver(conn, 0, usize::MAX / 2) + self.deliver(conn, 1, usize::MAX / 2);
            }
            if moved == 0 {
                return;
            }
        }
        panic!("two ends that never come to rest");
    }

    /// Connects what is broken, and lets every stream come to its end. Nothing is lost, nothing is left over.
    pub fn come_to_rest(&mut self) {
        self.cut_all();
        self.connect_all(0, true);
        for _ in 0..3000 {
            self.settle();
            let mut busy = false;
            for who in 0..2 {
                for id in self.ends[who].uses.keys().copied().collect::<Vec<_>>() {
                    self.finish(who, id);
                    while self.read(who, id, 1 << 20) > 0 {
                        busy = true;
                    }
                    let used = &self.ends[who].uses[&id];
                    busy |= used.dead.is_none() && !used.ended;
                }
            }
            self.advance(Duration::from_millis(30));
            if !busy {
                break;
            }
        }
        self.settle();
        self.advance(Duration::from_millis(30));
        self.settle();
        self.check_rest();
    }

    fn check_rest(&self) {
        let names: BTreeSet<StreamId> = self.ends.iter().flat_map(|end| end.uses.keys().copied()).collect();
        for id in names {
            let uses = [0, 1].map(|end| self.ends[end].uses.get(&id));
            let (Some(first), Some(second)) = (uses[0], uses[1]) else {
                // One side has never heard of it, or no longer: then the other knows that it is over.
                let lonely = uses[0].or(uses[1]).unwrap();
                assert!(is_over(lonely), "{id:?} stands on one side: {lonely:?}");
                continue;
            };
            if first.dead.is_none() && second.dead.is_none() {
                assert!(first.ended && second.ended, "{id:?}: {first:?} {second:?}");
                assert_eq!((first.written, second.written), (second.read, first.read), "{id:?}");
            }
            for (resets, reads) in [(first, second), (second, first)] {
                // One that was reset before it was taken was never anybody's.
                let told = reads.dead == Some(Reason::ConnectionReset) && !reads.reset && reads.opened;
                if told && resets.reset {
                    assert_eq!(resets.written, reads.read, "{id:?}: the reset overtook {resets:?} {reads:?}");
                }
            }
        }
        for end in &self.ends {
            let counts = end.endpoint.counts();
            assert_eq!(
                (counts.streams, counts.held_octets, counts.unread_octets),
                (0, 0, 0),
                "{:?}",
                end.uses
            );
        }
        let credits = |end: usize| self.ends[end].endpoint.credits();
        for ((sent, _), (_, received)) in credits(0).into_iter().zip(credits(1)) {
            assert_eq!(sent, received, "both count the same octets");
        }
        for ((_, received), (sent, _)) in credits(0).into_iter().zip(credits(1)) {
            assert_eq!(sent, received, "both count the same octets");
        }
    }

    fn drain(&mut self, who: usize) {
        let config = self.config;
        let end = &mut self.ends[who];
        while let Some(output) = end.endpoint.poll_output() {
            match output {
                Output::Incoming(id, open) => {
                    // A peer that was started anew begins its names anew.
                    let former = end.uses.insert(id, Use::default());
                    assert!(former.as_ref().is_none_or(is_over), "{id:?} opened twice");
                    if let Some(offered) = &mut end.offered {
                        offered.push(id);
                    } else if open.flow.client.port() % 7 == 6 {
                        end.uses.get_mut(&id).unwrap().dead = Some(Reason::ServerRefused);
                        end.endpoint.refuse(id, Reason::ServerRefused);
                    } else {
                        // It may have been reset in the same breath.
                        let stands = end.endpoint.accept(id, Bytes::from_static(b"info")).is_ok();
                        end.uses.get_mut(&id).unwrap().opened = stands;
                    }
                }
                Output::Opened(id, info) => {
                    assert_eq!(&info[..], b"info");
                    assert!(!std::mem::replace(&mut end.uses.get_mut(&id).unwrap().opened, true));
                }
                Output::Refused(id, reason) | Output::Reset(id, reason) => {
                    let used = end.uses.get_mut(&id).unwrap();
                    assert!(reason != Reason::PeerForgot, "{id:?}: no side forgets what stands");
                    // One that was reset in the same breath may have been refused meanwhile.
                    let former = used.dead.replace(reason);
                    assert!(former.is_none_or(|r| r == Reason::ServerRefused), "{id:?} died twice");
                }
                Output::Readable(id) | Output::Writable(id) => assert!(end.uses.contains_key(&id)),
                Output::Drop(conn, _) => {
                    if let Some(line) = self.lines.get_mut(&conn) {
                        line.held[who] = false;
                    }
                }
                Output::Notice(_) => end.notices += 1,
                Output::Transmit(_) | Output::Ready(_) | Output::Candidates(_) | Output::Goaway(_) => {}
            }
        }
        let counts = end.endpoint.counts();
        let lanes = Lane::ALL.len() as u64;
        assert!(counts.unread_octets <= lanes * config.lane_window, "{counts:?}");
        assert!(counts.held_octets <= lanes * (config.lane_held_max + (64 << 10)), "{counts:?}");
    }

    /// Which lanes a connection carries.
    #[must_use]
    pub fn lanes(&self, conn: ConnId) -> LaneSet {
        self.lines.get(&conn).map(|line| line.lanes).unwrap_or_default()
    }
}

fn greeting(endpoint: &Endpoint, lanes: LaneSet) -> Greeting {
    let Frame::Hello(Hello::Known(greeting)) = endpoint.hello(lanes) else { panic!("a HELLO of ours") };
    greeting
}

fn is_over(used: &Use) -> bool {
    used.dead.is_some() || used.ended && used.finished
}

/// What `who` writes at `at`.
fn octet(id: StreamId, who: usize, at: u64) -> u8 {
    let mixed = (id.to_wire() * 2 + who as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ at.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed ^ mixed >> 29).to_le_bytes()[1]
}

/// Plays octets as a script, three a step, and lets everything come to rest.
pub fn play(script: &[u8], began: Instant) {
    // Small bounds, so that they are met.
    let config = Config {
        streams_max: 40,
        window: 20_000,
        window_max: 200_000,
        lane_window: 100_000,
        unsent_max: 30_000,
        stream_held_max: 80_000,
        lane_held_max: 150_000,
        // A script may stand still for longer; what that ends has a test of its own.
        remains_max: Duration::from_secs(24 * 3600),
        ..Config::default()
    };
    let mut pair = Pair::new(config, began);
    pair.connect_all(0, script.len().is_multiple_of(2));
    for step in script.chunks_exact(3).take(STEPS_MAX) {
        let (what, a, b) = (step[0], usize::from(step[1]), usize::from(step[2]));
        let who = a & 1;
        let pick = |pair: &Pair| {
            let uses = &pair.ends[who].uses;
            uses.keys().nth(if uses.is_empty() { 0 } else { (a >> 1) % uses.len() }).copied()
        };
        let conn = |pair: &Pair| {
            let conns = pair.conns();
            conns.get(if conns.is_empty() { 0 } else { (a >> 1) % conns.len() }).copied()
        };
        match what % 16 {
            0 | 1 => {
                let class = [Class::Interactive, Class::Bulk, Class::Background][b % 3];
                pair.open(who, class);
            }
            2 | 3 => drop(pick(&pair).map(|id| pair.write(who, id, 1 << (b % 18)))),
            4 => drop(pick(&pair).map(|id| pair.finish(who, id))),
            5 | 6 => drop(pick(&pair).map(|id| pair.read(who, id, 1 << (b % 18)))),
            7 if b % 4 == 0 => drop(pick(&pair).map(|id| pair.reset(who, id))),
            8..=11 => drop(conn(&pair).map(|conn| pair.deliver(conn, b & 1, 1 << (b >> 1 & 0xf)))),
            12 => drop(conn(&pair).map(|conn| pair.cut(conn, [b & 3 != 1, b & 3 != 2]))),
            13 => {
                let lanes = LaneSet::from_bits(u8::try_from(b % 8).unwrap()).unwrap_or(LaneSet::ALL);
                pair.connect(who, lanes, b < 200);
            }
            14 if b < 12 => pair.restart(who),
            14 => pair.notify(who),
            _ => pair.advance(Duration::from_millis(1 << (b % 13))),
        }
    }
    pair.come_to_rest();
}

/// Longer scripts find little more.
const STEPS_MAX: usize = 2000;
