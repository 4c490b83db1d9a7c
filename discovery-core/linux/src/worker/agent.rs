//! netd's end: hands the engine's orders to the worker, and hears what it says. No call here waits.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery_core::engine::{Event, Peer, Reason};
use discovery_core::flow::Flow;
use discovery_core::mutants;
use discovery_core::pmt::{Known, PmtRow};
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};

use super::channel::{Channel, Received};
use super::words::{Granted, Notice, Order, PART_OCTETS_MAX, Said, Stepped, Whose};
use crate::netd::{self, Agent, Claimed, Ready, Step, Tell, Ticket};
use crate::supervisor::Wish;

/// Carries orders to another process. Its clients' SYNs are kept until it has shown that it waits for them: one that
/// stands still would have them answered by the kernel, and say nothing.
pub struct RemoteAgent {
    channel: Arc<Channel>,
    waits: Waits,
    heard: Option<Instant>,
    notice: Box<dyn FnMut(Notice) + Send>,
}

/// What an agent has said, for the loop.
#[derive(Debug)]
pub enum Heard {
    /// These.
    Words(Vec<Word>),
    /// It is gone.
    Gone,
}

/// A word of an agent's.
pub enum Word {
    /// Something happened.
    Event(Event),
    /// A peer wants to carry a flow; answered by [`Agent::claimed`].
    Claim {
        /// By which the answer is known.
        id: u32,
        /// What the peer wants to carry.
        flow: Flow,
        /// Whether it may without a SYN that was seen here.
        granted: bool,
    },
    /// This SYN goes to the own stack now.
    Inject(Flow, Vec<u8>),
    /// A peer wants this node to take the server's end of a connection that stood before.
    AdoptForPeer(Flow, Tell),
    /// What was said about an adoption with a peer.
    Adoption(Ticket, netd::Word),
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => event.fmt(f),
            Self::Claim { id, flow, granted } => write!(f, "claim {id} {flow} {granted}"),
            Self::Inject(flow, packet) => write!(f, "inject {flow} {}", packet.len()),
            Self::AdoptForPeer(flow, _) => write!(f, "adopt for peer {flow}"),
            Self::Adoption(ticket, word) => write!(f, "{ticket:?} {word:?}"),
        }
    }
}

impl RemoteAgent {
    /// Over this end of a channel. `notice` hears what the worker says of itself, in the loop's thread.
    #[must_use]
    pub fn new(channel: OwnedFd, notice: impl FnMut(Notice) + Send + 'static) -> (Self, Wishes) {
        let channel = Arc::new(Channel::new(channel));
        let wishes = Wishes { channel: Arc::clone(&channel) };
        (Self { channel, waits: Waits::default(), heard: None, notice: Box::new(notice) }, wishes)
    }

    fn order(&self, order: Order) {
        self.channel.send(order.write(), Vec::new());
    }

    fn tell(&self, whose: Whose) -> Tell {
        let mut steps = Steps { channel: Arc::clone(&self.channel), whose, over: false };
        Box::new(move |step| {
            steps.tell(step);
            true
        })
    }

    fn words(&mut self, now: Instant) -> Heard {
        let mut words = Vec::new();
        while words.len() < WORDS_MAX {
            let message = match self.channel.receive() {
                Received::Message(message) => message,
                Received::Nothing => break,
                // Its last words count; that it is gone is heard again.
                Received::Gone if !words.is_empty() => break,
                Received::Gone => return Heard::Gone,
            };
            // Nobody has to give netd any descriptors.
            match Said::read(&message.octets) {
                Some(Said::Event(event)) => words.push(Word::Event(event)),
                Some(Said::Claim { id, flow, granted }) => words.push(Word::Claim { id, flow, granted }),
                Some(Said::Here { flow }) => {
                    words.extend(self.waits.here(flow).map(|packet| Word::Inject(flow, packet)))
                }
                Some(Said::AdoptForPeer { id, flow }) => {
                    words.push(Word::AdoptForPeer(flow, self.tell(Whose::Peers(id))));
                }
                Some(Said::Adoption(ticket, word)) => words.push(Word::Adoption(ticket, word)),
                Some(Said::Notice(notice)) => {
                    self.heard = Some(now);
                    (self.notice)(notice);
                }
                None if mutants::on("worker-nonsense-ignored") => {}
                None => {
                    tracing::error!("the worker says what no worker says: it is taken for gone");
                    return Heard::Gone;
                }
            }
        }
        Heard::Words(words)
    }
}

impl Agent for RemoteAgent {
    fn open(&mut self, flow: Flow, peer: Peer) {
        self.waits.ask(flow, Instant::now());
        self.order(Order::Open { flow, peer, at: moment() });
    }

    fn single(&mut self, flow: Flow) {
        self.waits.ask(flow, Instant::now());
        self.order(Order::Single { flow, at: moment() });
    }

    fn abort(&mut self, flow: Flow, why: Reason) {
        self.waits.forget(flow);
        self.order(Order::Abort { flow, why });
    }

    fn abandon(&mut self, flow: Flow, why: Reason) {
        self.order(Order::Abandon { flow, why });
    }

    fn claim_ready(&mut self, flow: Flow, ready: Ready) {
        let (onward, beside) = match ready {
            Ready::Here(connection) => (None, vec![connection]),
            Ready::Onward(peer) => (Some(peer), Vec::new()),
        };
        self.channel.send(Order::ClaimReady { flow, onward }.write(), beside);
    }

    fn claim_failed(&mut self, flow: Flow, why: Reason) {
        self.order(Order::ClaimFailed { flow, why });
    }

    fn abort_onward(&mut self, flow: Flow, next: Peer, isn: u32) {
        self.order(Order::AbortOnward { flow, next, isn });
    }

    fn learnt(&mut self, row: PmtRow) {
        tracing::debug!(?row, "learnt");
        if let Known::Peer(peer) | Known::Static(peer) = row.known {
            self.order(Order::Meet { peer });
        }
    }

    fn adopted(&mut self, flow: Flow, client: OwnedFd, server: OwnedFd) {
        self.channel.send(Order::Adopted { flow }.write(), vec![client, server]);
    }

    fn adopt(&mut self, ticket: Ticket, peer: Peer) -> Tell {
        self.order(Order::Adopt { ticket, peer });
        self.tell(Whose::Own(ticket.nth))
    }

    fn inject(&mut self, flow: Flow, packet: Vec<u8>) -> Option<Vec<u8>> {
        self.waits.keep(flow, packet)
    }

    fn claimed(&mut self, id: u32, claimed: Claimed) {
        let (answer, beside) = match claimed {
            Claimed::Ready(Ready::Here(connection)) => (Granted::Here, vec![connection]),
            Claimed::Ready(Ready::Onward(peer)) => (Granted::Onward(peer), Vec::new()),
            Claimed::Wait => (Granted::Wait, Vec::new()),
            Claimed::Refused(why) => (Granted::Refused(why), Vec::new()),
        };
        self.channel.send(Order::Claimed { id, answer }.write(), beside);
    }

    fn hear(&mut self) -> Heard {
        self.words(Instant::now())
    }

    fn turn(&mut self, now: Instant, all: bool) -> Vec<Word> {
        self.channel.flush();
        let late = if all { self.waits.all() } else { self.waits.late(now) };
        let mut words = Vec::new();
        for flow in late {
            // It may find both when it turns again, in this order.
            self.order(Order::Abort { flow, why: Reason::AgentDown });
            words.push(Word::Event(Event::Closed { flow }));
        }
        words
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now.saturating_duration_since(heard) > QUIET_AFTER)
    }
}

/// Steps of one adoption, on their way. Whoever has given it up at the other end says so.
struct Steps {
    channel: Arc<Channel>,
    whose: Whose,
    over: bool,
}

impl Steps {
    fn tell(&mut self, step: Step) {
        match step {
            Step::Begun(ticket) => self.send(Stepped::Begun(ticket), None),
            Step::Ready(ticket, ready) => self.send(Stepped::Ready(ticket, ready), None),
            Step::Cut(cut) => self.send(Stepped::Cut(cut), None),
            Step::Client(client) => self.last(Stepped::Client, Some(client)),
            Step::Server(server, ye, octets) => {
                for part in octets.chunks(PART_OCTETS_MAX) {
                    self.send(Stepped::Octets(part.to_vec()), None);
                }
                self.last(Stepped::Server(ye), Some(server));
            }
            Step::Refused(why) => self.last(Stepped::Refused(why), None),
        }
    }

    fn last(&mut self, step: Stepped, socket: Option<OwnedFd>) {
        self.over = true;
        // Lost on its way, it is a connection that is over, and not one that ended in order.
        if let Some(socket) = &socket
            && !mutants::on("worker-socket-in-order")
            && let Err(error) = sockopt::set_socket_linger(socket, Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a socket that would end in order");
        }
        self.send(step, socket);
    }

    fn send(&self, step: Stepped, socket: Option<OwnedFd>) {
        let order = Order::Stepped { whose: self.whose, step };
        self.channel.send(order.write(), socket.into_iter().collect());
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if !self.over {
            self.send(Stepped::Refused(Reason::AgentDown), None);
        }
    }
}

/// Tells the worker what others than the engine want of it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Wishes {
    channel: Arc<Channel>,
}

impl Wishes {
    /// The first word: where it asks for sockets, and where it asks anything else.
    pub fn begin(&self, broker: OwnedFd, questions: OwnedFd) {
        self.channel.send(Order::Begin.write(), vec![broker, questions]);
    }

    /// What the supervisor wishes.
    pub fn wish(&self, wish: Wish) {
        self.channel.send(Order::Wish(wish).write(), Vec::new());
    }

    /// A peer that was known before: a link to it is made.
    pub fn meet(&self, peer: Peer) {
        self.channel.send(Order::Meet { peer }.write(), Vec::new());
    }

    /// A descriptor for [`crate::netd::Netd::watch_agent`].
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn lifeline(&self) -> io::Result<OwnedFd> {
        self.channel.as_fd().try_clone_to_owned()
    }

    /// Answers for a loop that has ended, what has come since: nobody gives connections out or adopts any more. Whether the worker is
    /// still there.
    #[must_use]
    pub fn refuse(&self) -> bool {
        self.channel.flush();
        loop {
            match self.channel.receive() {
                Received::Message(message) => {
                    let why = Reason::AgentDown;
                    let answer = match Said::read(&message.octets) {
                        Some(Said::Claim { id, .. }) => Order::Claimed { id, answer: Granted::Refused(why) },
                        Some(Said::AdoptForPeer { id, .. }) => {
                            Order::Stepped { whose: Whose::Peers(id), step: Stepped::Refused(why) }
                        }
                        Some(Said::Event(_) | Said::Here { .. } | Said::Adoption(..) | Said::Notice(_))
                        | None => continue,
                    };
                    self.channel.send(answer.write(), Vec::new());
                }
                Received::Nothing => return true,
                Received::Gone => return false,
            }
        }
    }
}

/// Milliseconds of the clock that both processes see.
pub(super) fn moment() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// Flows that the worker was told to wait for, and has not said that it does.
#[derive(Debug, Default)]
struct Waits {
    asked: HashMap<Flow, Asked>,
}

#[derive(Debug)]
struct Asked {
    since: Instant,
    packet: Option<Vec<u8>>,
}

impl Waits {
    fn ask(&mut self, flow: Flow, now: Instant) {
        self.asked.insert(flow, Asked { since: now, packet: None });
    }

    /// The packet, if it need not wait.
    fn keep(&mut self, flow: Flow, packet: Vec<u8>) -> Option<Vec<u8>> {
        match self.asked.get_mut(&flow) {
            None => Some(packet),
            Some(_) if mutants::on("worker-syn-unasked") => Some(packet),
            Some(asked) => {
                asked.packet = Some(packet);
                None
            }
        }
    }

    /// It waits for the flow: the packet that was kept for it.
    fn here(&mut self, flow: Flow) -> Option<Vec<u8>> {
        self.asked.remove(&flow)?.packet
    }

    fn forget(&mut self, flow: Flow) {
        self.asked.remove(&flow);
    }

    /// Those for which nobody will wait any more.
    fn late(&mut self, now: Instant) -> Vec<Flow> {
        let late = |asked: &Asked| now.saturating_duration_since(asked.since) > LATE_AFTER;
        self.asked.extract_if(|_, asked| late(asked)).map(|(flow, _)| flow).collect()
    }

    fn all(&mut self) -> Vec<Flow> {
        self.asked.drain().map(|(flow, _)| flow).collect()
    }
}

/// What the loop hears in one turn.
const WORDS_MAX: usize = 1024;
/// It beats every tenth of a second. New connections wait for it, as long as it is not given up.
const QUIET_AFTER: Duration = Duration::from_millis(250);
/// A client whose SYN was kept for so long sends it again soon, and that one is to find nothing in its way. Longer than
/// the worker carries an order out that has waited.
const LATE_AFTER: Duration = Duration::from_millis(400);
/// See [`LATE_AFTER`].
pub(super) const ORDER_AGE_MAX: u64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    #[test]
    fn a_syn_is_kept_until_the_worker_waits_for_its_client() {
        let now = Instant::now();
        let mut waits = Waits::default();
        assert_eq!(waits.keep(flow(), vec![1]), Some(vec![1]), "nobody was asked to wait");
        waits.ask(flow(), now);
        assert_eq!(waits.keep(flow(), vec![1]), None);
        assert_eq!(waits.here(flow()), Some(vec![1]));
        assert_eq!(waits.keep(flow(), vec![2]), Some(vec![2]), "its repetition");
        waits.ask(flow(), now);
        assert_eq!(waits.here(flow()), None, "it waits before there is a packet");
        assert_eq!(waits.keep(flow(), vec![3]), Some(vec![3]));
    }

    #[test]
    fn what_is_kept_too_long_is_given_up() {
        let now = Instant::now();
        let mut waits = Waits::default();
        waits.ask(flow(), now);
        assert_eq!(waits.keep(flow(), vec![1]), None);
        assert!(waits.late(now + LATE_AFTER).is_empty());
        assert_eq!(waits.late(now + LATE_AFTER * 2), [flow()]);
        assert_eq!(waits.here(flow()), None, "given up is given up");
        waits.ask(flow(), now);
        waits.forget(flow());
        assert!(waits.all().is_empty());
    }
}
