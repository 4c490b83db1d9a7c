//! The loop of the process that has the rights: packets from the queue to the engine, the engine's orders to sockets
//! and to whoever carries connections.
//!
//! ```text
//!  queue ─packet─> look ─Seen─> Engine ─Verdict──────────────> queue
//!                                 │ Output: inject, forge ───> raw sockets
//!                                 │         connect ─────────> early connects ─Event─┐
//!  Handle ─Event, claim──────────>│         open, abort ... ─> Agent                 │
//!                                 └<──────────────────────────────────────────────────┘
//! ```
//! One thread. Nothing in it waits but for all of these at once; an [`Agent`] must not wait either.

mod adoptions;
mod agent;
mod connects;
mod deflecting;
mod existing;
mod handle;
mod look;
mod orders;
mod ports;
mod probes;
mod split;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use discovery_core::engine::{self, Claim, Engine, Event, Existing, Reason};
use discovery_core::flow::Flow;
use discovery_core::now::{Now, UnixMillis};
use discovery_core::probe::{Codec, KeyHint, Probe};
use discovery_core::rule::{Action, RuleSet, Ruled};
use rustix::event::{Timespec, epoll};

use crate::marks::{BEGINS, EXISTING, PASSED};
use crate::queue::{Batch, Coalesce, PacketQueue, QueueCounters, QueuedPacket, Verdict};
pub use agent::{Agent, Claimed, Ready};
pub use handle::Handle;
pub use split::{Step, Tell, Ticket, Word};

use adoptions::Adoptions;
use connects::Connects;
use deflecting::Deflecting;
use handle::{Command, Commands};
use look::{Datagram, Looker};
use orders::Senders;
use ports::Ports;
use probes::Probes;

/// What the loop is told about this node.
#[derive(Clone, Debug)]
pub struct NetdSettings {
    /// How probes are written.
    pub codec: Codec,
    /// Where this node's link listens, for a probe response; of the flow's family when there are both.
    pub link: (Option<SocketAddr>, Option<SocketAddr>),
    /// Which node it is.
    pub key: KeyHint,
    /// The machine has IPv6.
    pub v6: bool,
    /// This machine's own addresses, when it takes connections to its own servers.
    pub here: Vec<IpAddr>,
    /// The port of separate probes, as the engine knows it. No rule of the operator's has to name it.
    pub probe_port: u16,
    /// The longest packet that may leave with a query among its options: the smallest MTU of the ways out.
    pub octets_max: usize,
    /// The ports of the bridge that are taken; empty where there is none. The kernel's rules see only the bridge.
    pub ports: Vec<String>,
    /// Packets that one call takes.
    pub batch: (usize, u32),
}

impl NetdSettings {
    /// For a node whose link listens there, with room for Ethernet's MTU.
    #[must_use]
    pub fn new(link: (Option<SocketAddr>, Option<SocketAddr>), key: KeyHint) -> Self {
        let codec = Codec::default();
        Self {
            codec,
            link,
            key,
            v6: true,
            here: Vec::new(),
            probe_port: 7783,
            octets_max: 1500,
            ports: Vec::new(),
            batch: (64, 2048),
        }
    }
}

/// What the loop did that the engine does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetdCounters {
    /// The queue's own.
    pub queue: QueueCounters,
    /// Packets that could not be read with certainty; they passed.
    pub unread: u64,
    /// Packets made here that could not be sent; their receivers ask again.
    pub unsent: u64,
    /// Packets that waited while the loop stood still. Their senders have given them up; they passed.
    pub stale: u64,
}

/// The loop.
pub struct Netd<Q, A> {
    engine: Engine,
    queue: Q,
    agent: A,
    rules: RuleSet,
    looker: Looker,
    ports: Ports,
    senders: Senders,
    connects: Connects,
    adoptions: Adoptions,
    /// The number of the last packet.
    last: u32,
    probes: Probes,
    commands: Commands,
    settings: NetdSettings,
    poll: OwnedFd,
    counters: NetdCounters,
    beat: Option<Box<dyn FnMut() + Send>>,
    deflecting: Option<Deflecting>,
    lifeline: Option<OwnedFd>,
    bypassed: bool,
    /// Since when packets wait for an agent that is silent.
    held: Option<Instant>,
}

const QUEUE: u64 = 0;
const COMMANDS: u64 = 1;
const AGENT: u64 = 2;
/// Sockets that connect have numbers from here on.
const CONNECTS: u64 = 3;
/// The work loop shows that it turns at least this often; its supervisor waits several times as long.
const BEAT_EVERY: Duration = Duration::from_millis(100);
/// Without a turn for so long, it stood still. Less than what its supervisor calls silence: packets flow past it from then
/// on, and what is older must be let go.
const STOOD_STILL: Duration = Duration::from_millis(400);

impl<Q: PacketQueue, A: Agent> Netd<Q, A> {
    /// Makes the loop ready in the thread's network namespace.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_NET_ADMIN, or descriptors.
    pub fn new(engine: Engine, queue: Q, agent: A, settings: NetdSettings) -> io::Result<(Self, Handle)> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (handle, commands) = handle::pair()?;
        epoll::add(&poll, &queue, epoll::EventData::new_u64(QUEUE), epoll::EventFlags::IN)?;
        epoll::add(&poll, commands.as_fd(), epoll::EventData::new_u64(COMMANDS), epoll::EventFlags::IN)?;
        let netd = Self {
            engine,
            queue,
            agent,
            rules: RuleSet::default(),
            looker: Looker::new(settings.codec, settings.octets_max),
            ports: Ports::open(settings.ports.clone())?,
            senders: Senders::open(&settings)?,
            connects: Connects::new(CONNECTS, settings.here.clone()),
            adoptions: Adoptions::default(),
            last: 0,
            probes: Probes::default(),
            commands,
            settings,
            poll,
            counters: NetdCounters::default(),
            beat: None,
            deflecting: None,
            lifeline: None,
            bypassed: false,
            held: None,
        };
        Ok((netd, handle))
    }

    /// Calls `beat` from the loop, ten times a second while it turns.
    pub fn on_beat(&mut self, beat: impl FnMut() + Send + 'static) {
        self.beat = Some(Box::new(beat));
    }

    /// Watches over whoever carries connections: `lifeline` becomes readable when it speaks, or is gone (a channel to it, or
    /// its pidfd); [`Agent::hear`] tells which. When it is gone, the engine stands aside at once.
    ///
    /// # Errors
    /// When the descriptor cannot be waited for.
    pub fn watch_agent(&mut self, lifeline: OwnedFd) -> io::Result<()> {
        let data = epoll::EventData::new_u64(AGENT);
        epoll::add(&self.poll, &lifeline, data, epoll::EventFlags::IN)?;
        // The former one, if any, is forgotten with its descriptor.
        self.lifeline = Some(lifeline);
        Ok(())
    }

    /// Turns until [`Handle::stop`], or until every handle is gone; then lets what waits in the queue go on. Take the
    /// rules out first.
    ///
    /// # Errors
    /// When the queue is lost. Its packets flow untouched then.
    pub fn run(mut self) -> io::Result<()> {
        let mut batch = Batch::new(self.settings.batch.0, self.settings.batch.1);
        let coalesce = Coalesce::default();
        let mut events = Vec::with_capacity(256);
        let mut last_beat = None;
        let mut turned = Instant::now();
        loop {
            let mono = Instant::now();
            if last_beat.is_none_or(|last| mono.saturating_duration_since(last) >= BEAT_EVERY) {
                last_beat = Some(mono);
                if let Some(beat) = &mut self.beat {
                    beat();
                }
            }
            self.wait(&mut events, mono)?;
            let stood_still = turned.elapsed() >= STOOD_STILL;
            turned = Instant::now();
            let (mut packets, mut commanded, mut heard, mut ready) = (false, false, false, Vec::new());
            for event in events.drain(..) {
                match event.data.u64() {
                    QUEUE => packets = true,
                    COMMANDS => commanded = true,
                    AGENT => heard = true,
                    connect => ready.push(connect),
                }
            }
            // First: packets that waited while the loop stood still came under rules that may no longer hold.
            if commanded && !self.command()? {
                return self.queue.close();
            }
            if heard {
                self.hear()?;
            }
            let words = self.agent.turn(Instant::now(), self.bypassed);
            self.understand(words)?;
            let waited = self.hold()?;
            if stood_still || waited {
                self.let_stale_go(&mut batch)?;
            }
            let mut pause = None;
            if packets {
                self.queue.receive(&mut batch)?;
                self.packets(&batch)?;
                pause = coalesce.after(batch.len());
            }
            for connect in ready {
                self.connect_ready(connect);
            }
            if !self.adoptions.is_empty() {
                self.adoptions_due(mono);
                self.queue.flush()?;
            }
            let now = now();
            // Whoever carries connections is silent: what peers have said waits behind him, and nobody is blamed meanwhile.
            if self.held.is_none() && self.engine.poll_timeout().is_some_and(|at| at <= now.mono) {
                self.engine.handle_timeout(now);
                self.obey();
            }
            if let Some(pause) = pause {
                std::thread::sleep(pause);
            }
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, mono: Instant) -> io::Result<()> {
        let due = self.engine.poll_timeout().filter(|_| self.held.is_none());
        let due = due.map_or(BEAT_EVERY, |at| at.saturating_duration_since(mono)).min(BEAT_EVERY);
        let timeout = Timespec { tv_sec: 0, tv_nsec: due.subsec_nanos().into() };
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What waited while the loop stood still (the process was stopped, the machine asleep) goes on untouched. Its sender
    /// has sent it again since, and that one has gone past this node: a query on the older one could make a peer open
    /// a connection between the same ends, and tear the one that stands.
    fn let_stale_go(&mut self, batch: &mut Batch) -> io::Result<()> {
        loop {
            self.queue.receive(batch)?;
            let before = self.counters.stale;
            for packet in batch.packets() {
                // What waited too long was not decided: what follows it is asked about again.
                self.queue.verdict(packet.id, Verdict::Accept);
                self.counters.stale += 1;
            }
            self.queue.flush()?;
            if self.counters.stale == before {
                return Ok(());
            }
        }
    }

    /// Each packet gets its verdict, and all of them leave in one call before the engine's orders are carried out:
    /// an answer must not overtake the packet that asked.
    fn packets(&mut self, batch: &Batch) -> io::Result<()> {
        let now = now();
        // The kernel numbers what it queues. Where its room was full, packets went on unseen.
        let (count, last) = batch.packets().fold((0_u32, self.last), |(count, last), packet| {
            (count.wrapping_add(1), if packet.id.0.wrapping_sub(last) < 1 << 31 { packet.id.0 } else { last })
        });
        if last.wrapping_sub(self.last) != count && !self.adoptions.is_empty() {
            self.adoptions_blind(now);
        }
        self.last = last;
        // Without such a rule the bit is somebody else's.
        let looks_at_existing = self.rules.looks_at_existing() || !self.adoptions.is_empty();
        for packet in batch.packets() {
            if !self.ports.takes(now.mono, packet.physindev) {
                self.queue.verdict(packet.id, Verdict::Accept);
                continue;
            }
            if let Some(done) = self.deflected(&packet)
                && let Some(deflecting) = &self.deflecting
            {
                self.queue.verdict(packet.id, deflecting.verdict(done));
                continue;
            }
            if packet.mark & EXISTING != 0 && looks_at_existing {
                self.midstream(now, &packet)?;
                continue;
            }
            let looked = self.looker.look(&packet);
            if let Some((verdict, event)) =
                looked.as_ref().and_then(|looked| self.probes.answered(&looked.seen))
            {
                self.queue.verdict(packet.id, verdict);
                self.engine.handle_event(now, event);
                continue;
            }
            let verdict = match looked {
                Some(looked) => {
                    let seen = &looked.seen;
                    let asked = matches!(seen.probe, Some(Probe::Query(_)));
                    let ruled = if asked && seen.dst.port() == self.settings.probe_port {
                        Ruled { action: Action::Intercept, rule: None }
                    } else {
                        self.rules.decide(&looked.facts, packet.payload)
                    };
                    let verdict = self.engine.handle_segment(now, &looked.seen, ruled, packet.payload);
                    if verdict != engine::Verdict::Drop && self.rules.existing(ruled) == Existing::Adopt {
                        self.note_passed(now, &looked);
                    }
                    tracing::debug!(
                        src = %looked.seen.src,
                        dst = %looked.seen.dst,
                        ?verdict,
                        reason = self.engine.last_reason().word(),
                        "decided"
                    );
                    self.looker.verdict(&looked, verdict)
                }
                None => self.datagram(now, &packet),
            };
            self.queue.verdict(packet.id, verdict);
        }
        self.queue.flush()?;
        self.obey();
        Ok(())
    }

    fn datagram(&mut self, now: Now, packet: &QueuedPacket<'_>) -> Verdict<'static> {
        let verdict = match self.looker.look_datagram(packet, self.settings.probe_port) {
            Some(Datagram::Answer(seen)) => {
                if let Some((verdict, event)) = self.probes.answered(&seen) {
                    self.engine.handle_event(now, event);
                    return verdict;
                }
                let ruled = Ruled { action: Action::Intercept, rule: None };
                self.engine.handle_segment(now, &seen, ruled, &[])
            }
            Some(Datagram::Other(facts)) => {
                let ruled = self.rules.decide(&facts, packet.payload);
                self.engine.handle_datagram(now, facts.flow, ruled, packet.payload)
            }
            None => {
                self.counters.unread += 1;
                // A first fragment, say: what follows it is to be asked about again.
                return Verdict::Mark(packet.mark & !BEGINS);
            }
        };
        match verdict {
            engine::Verdict::Drop => Verdict::Drop,
            engine::Verdict::Pass | engine::Verdict::PassWithQuery if packet.mark & BEGINS != 0 => {
                Verdict::Mark((packet.mark & !BEGINS) | PASSED)
            }
            engine::Verdict::Pass | engine::Verdict::PassWithQuery => Verdict::Accept,
        }
    }

    fn connect_ready(&mut self, number: u64) {
        if let Some(event) = self.connects.ready(number, self.poll.as_fd()) {
            self.engine.handle_event(now(), event);
            self.obey();
        }
    }

    /// Whether to go on.
    fn command(&mut self) -> io::Result<bool> {
        for command in self.commands.take() {
            match command {
                Command::Event(event) => {
                    if let Event::Bypass { on } = event {
                        self.bypassed = on;
                        // From now on packets go by unseen.
                        if on {
                            self.adoptions_until_later(now(), Reason::Bypass);
                            self.queue.flush()?;
                        }
                    }
                    self.engine.handle_event(now(), event);
                }
                Command::Claim { flow, granted, answer } => {
                    let claimed = self.claim(flow, granted);
                    answer(claimed);
                }
                Command::Rules(rules) => {
                    self.adoptions_until_later(now(), Reason::ExistingLater);
                    self.queue.flush()?;
                    self.rules = rules;
                }
                Command::Passed(ask) => ask(&mut self.adoptions.passed, now()),
                Command::With(ask) => {
                    self.counters.queue = self.queue.counters();
                    ask(&mut self.engine, now(), self.counters);
                }
                Command::AdoptForPeer { flow, tell } => self.adopt_for_peer(now(), flow, tell),
                Command::Adoption(ticket, word) => self.adoption_word(now(), ticket, word)?,
                Command::Stop => {
                    // What waits for them goes on.
                    self.adoptions_end(now());
                    self.queue.flush()?;
                    return Ok(false);
                }
            }
            self.obey();
        }
        Ok(true)
    }

    fn claim(&mut self, flow: Flow, granted: bool) -> Claimed {
        match self.engine.claim(now(), flow, granted) {
            Claim::Early => match self.connects.take(flow) {
                Some(connection) => Claimed::Ready(Ready::Here(connection)),
                None => {
                    // It is not there: nobody else would ever say that it is over.
                    self.engine.handle_event(now(), Event::Closed { flow });
                    Claimed::Refused(Reason::Closed)
                }
            },
            Claim::Onward(peer) => Claimed::Ready(Ready::Onward(peer)),
            Claim::Wait => Claimed::Wait,
            Claim::Refused(why) => Claimed::Refused(why),
        }
    }

    /// Carries the engine's orders out, and those that follow from them.
    fn obey(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            let outcome = orders::obey(
                output,
                &mut self.connects,
                &mut self.probes,
                &mut self.looker,
                &self.senders,
                &mut self.agent,
                &self.settings,
                self.poll.as_fd(),
            );
            self.counters.unsent += u64::from(outcome.unsent);
            if let Some(event) = outcome.event {
                self.engine.handle_event(now(), event);
            }
        }
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: UnixMillis(0).plus(wall) }
}
