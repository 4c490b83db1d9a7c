//! The worker's end: tells netd what happened, asks it, and carries its orders out.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use discovery_core::engine::{Event, Peer, Reason};
use discovery_core::flow::Flow;
use discovery_core::mutants;
use rustix::net::SocketType;

use super::agent::{ORDER_AGE_MAX, moment};
use super::channel::{Channel, Message, Received};
use super::words::{Granted, Notice, Order, Said};
use crate::netd::{Agent, Claimed, Ready};
use crate::supervisor::Wish;

/// See the module's documentation.
#[derive(Debug)]
pub struct ToNetd {
    channel: Channel,
    claims: Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    next: u32,
    waiting: HashMap<u32, Answer>,
}

type Answer = Box<dyn FnOnce(Claimed) + Send>;

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// What came that is no order to an [`Agent`].
#[derive(Debug)]
pub enum Came {
    /// Nothing more now.
    Nothing,
    /// What its supervisor wishes.
    Wish(Wish),
    /// A peer that is known: a link to it is to be made.
    Meet(Peer),
    /// netd is gone: so must this process be.
    Gone,
}

impl ToNetd {
    /// Over the channel that a worker was started with.
    ///
    /// # Errors
    /// When its standard input is no such channel.
    pub fn from_stdin() -> io::Result<Self> {
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        if rustix::net::sockopt::socket_type(&channel)? != SocketType::SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::net::getpeername(&channel)?;
        Ok(Self::new(channel))
    }

    /// Over this end of a channel.
    #[must_use]
    pub fn new(channel: OwnedFd) -> Self {
        Self { channel: Channel::new(channel), claims: Mutex::default() }
    }

    /// The first word: the channels to the broker and for questions. None when something else came, or nothing yet.
    #[must_use]
    pub fn begin(&self) -> Option<(OwnedFd, OwnedFd)> {
        let Received::Message(message) = self.channel.receive() else { return None };
        let mut beside = message.beside.into_iter();
        match Order::read(&message.octets)? {
            Order::Begin => beside.next().zip(beside.next()),
            Order::Open { .. }
            | Order::Single { .. }
            | Order::Abort { .. }
            | Order::Abandon { .. }
            | Order::Claimed { .. }
            | Order::ClaimReady { .. }
            | Order::ClaimFailed { .. }
            | Order::AbortOnward { .. }
            | Order::Adopted { .. }
            | Order::Meet { .. }
            | Order::Wish(_) => None,
        }
    }

    /// Something happened. What is not an agent's to tell is not told.
    pub fn tell(&self, event: Event) {
        self.say(Said::Event(event));
    }

    /// A peer wants to carry a flow. `answer` is called where [`ToNetd::turn`] is, before any later order.
    pub fn claim(&self, flow: Flow, granted: bool, answer: impl FnOnce(Claimed) + Send + 'static) {
        let mut claims = self.claims();
        claims.next = claims.next.wrapping_add(1);
        let id = claims.next;
        claims.waiting.insert(id, Box::new(answer));
        // Under the lock, so that claims leave in their order.
        self.say(Said::Claim { id, flow, granted });
    }

    /// What this process has to say of itself.
    pub fn notice(&self, notice: Notice) {
        self.say(Said::Notice(notice));
    }

    /// Carries out what was ordered, until something comes that is no order.
    pub fn turn(&self, agent: &mut impl Agent) -> Came {
        self.channel.flush();
        loop {
            let message = match self.channel.receive() {
                Received::Message(message) => message,
                Received::Nothing => return Came::Nothing,
                Received::Gone => return Came::Gone,
            };
            if let Some(came) = self.obey(message, agent) {
                return came;
            }
        }
    }

    fn obey(&self, message: Message, agent: &mut impl Agent) -> Option<Came> {
        let mut beside = message.beside.into_iter();
        match Order::read(&message.octets)? {
            Order::Open { flow, peer, at } => {
                if is_timely(at, moment()) {
                    agent.open(flow, peer);
                    self.say(Said::Here { flow });
                }
            }
            Order::Single { flow, at } => {
                if is_timely(at, moment()) {
                    agent.single(flow);
                    self.say(Said::Here { flow });
                }
            }
            Order::Abort { flow, why } => agent.abort(flow, why),
            Order::Abandon { flow, why } => agent.abandon(flow, why),
            Order::Claimed { id, answer } => {
                let waiting = self.claims().waiting.remove(&id);
                let claimed = match answer {
                    Granted::Here => match beside.next() {
                        Some(connection) => Claimed::Ready(Ready::Here(connection)),
                        None => Claimed::Refused(Reason::LocalFailure),
                    },
                    Granted::Onward(peer) => Claimed::Ready(Ready::Onward(peer)),
                    Granted::Wait => Claimed::Wait,
                    Granted::Refused(why) => Claimed::Refused(why),
                };
                if let Some(answer) = waiting {
                    answer(claimed);
                }
            }
            Order::ClaimReady { flow, onward: Some(peer) } => agent.claim_ready(flow, Ready::Onward(peer)),
            Order::ClaimReady { flow, onward: None } => match beside.next() {
                Some(connection) => agent.claim_ready(flow, Ready::Here(connection)),
                None => {
                    agent.claim_failed(flow, Reason::LocalFailure);
                    self.tell(Event::Closed { flow });
                }
            },
            Order::ClaimFailed { flow, why } => agent.claim_failed(flow, why),
            Order::AbortOnward { flow, next, isn } => agent.abort_onward(flow, next, isn),
            Order::Adopted { flow } => match (beside.next(), beside.next()) {
                (Some(client), Some(server)) => agent.adopted(flow, client, server),
                (Some(_) | None, _) => self.tell(Event::Closed { flow }),
            },
            Order::Meet { peer } => return Some(Came::Meet(peer)),
            Order::Wish(wish) => return Some(Came::Wish(wish)),
            // Said already.
            Order::Begin => {}
        }
        None
    }

    fn say(&self, said: Said) {
        if let Some(octets) = said.write() {
            self.channel.send(octets, Vec::new());
        }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for ToNetd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// netd gives a flow up that this process has let wait: its client goes past, and nothing may be begun for it any more.
fn is_timely(at: u64, now: u64) -> bool {
    now.saturating_sub(at) <= ORDER_AGE_MAX || mutants::on("worker-order-late")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{Heard, RemoteAgent, Word, channel};

    /// Notes what it is told.
    #[derive(Default)]
    struct Noted(Vec<String>);

    impl Agent for Noted {
        fn open(&mut self, flow: Flow, _: Peer) {
            self.0.push(format!("open {flow}"));
        }
        fn single(&mut self, flow: Flow) {
            self.0.push(format!("single {flow}"));
        }
        fn abort(&mut self, flow: Flow, _: Reason) {
            self.0.push(format!("abort {flow}"));
        }
        fn abandon(&mut self, flow: Flow, _: Reason) {
            self.0.push(format!("abandon {flow}"));
        }
        fn claim_ready(&mut self, flow: Flow, ready: Ready) {
            self.0.push(format!("ready {flow} {}", matches!(ready, Ready::Here(_))));
        }
        fn claim_failed(&mut self, flow: Flow, _: Reason) {
            self.0.push(format!("failed {flow}"));
        }
        fn abort_onward(&mut self, flow: Flow, _: Peer, isn: u32) {
            self.0.push(format!("onward {flow} {isn}"));
        }
        fn learnt(&mut self, _: discovery_core::pmt::PmtRow) {}
        fn adopted(&mut self, flow: Flow, _: OwnedFd, _: OwnedFd) {
            self.0.push(format!("adopted {flow}"));
        }
    }

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    fn both() -> (RemoteAgent, ToNetd) {
        let (here, there) = channel::pair().unwrap();
        (RemoteAgent::new(here, |_| {}).0, ToNetd::new(there))
    }

    fn words(agent: &mut RemoteAgent) -> Vec<Word> {
        match agent.hear() {
            Heard::Words(words) => words,
            Heard::Gone => panic!("gone"),
        }
    }

    #[test]
    fn a_client_is_let_in_when_the_worker_waits_for_it() {
        let (mut agent, worker) = both();
        agent.single(flow());
        assert_eq!(agent.inject(flow(), vec![1, 2]), None);
        assert!(words(&mut agent).is_empty(), "the worker has not turned");
        let mut noted = Noted::default();
        assert!(matches!(worker.turn(&mut noted), Came::Nothing));
        assert_eq!(noted.0, [format!("single {}", flow())]);
        let words = words(&mut agent);
        assert!(
            matches!(&*words, [Word::Inject(of, packet)] if *of == flow() && *packet == [1, 2]),
            "{words:?}"
        );
    }

    #[test]
    fn a_claim_is_answered_before_the_order_that_follows_it() {
        let (mut agent, worker) = both();
        let (told, answered) = std::sync::mpsc::channel();
        worker.claim(flow(), true, move |claimed| told.send(claimed).unwrap());
        let words = words(&mut agent);
        let [Word::Claim { id, flow: of, granted: true }] = &*words else { panic!("{words:?}") };
        assert_eq!(*of, flow());
        agent.claimed(*id, Claimed::Wait);
        let (connection, _) = channel::pair().unwrap();
        agent.claim_ready(flow(), Ready::Here(connection));
        let mut noted = Noted::default();
        assert!(matches!(worker.turn(&mut noted), Came::Nothing));
        assert!(matches!(answered.try_recv(), Ok(Claimed::Wait)));
        assert_eq!(noted.0, [format!("ready {} true", flow())]);
    }

    #[test]
    fn one_that_stood_still_begins_nothing_that_was_given_up() {
        for (at, now, timely) in [(0, 0, true), (5, 305, true), (5, 306, false), (9, 5, true)] {
            assert_eq!(is_timely(at, now), timely, "{at} {now}");
        }
    }

    #[test]
    fn the_end_of_either_is_noticed_by_the_other() {
        let (mut agent, worker) = both();
        worker.tell(Event::Closed { flow: flow() });
        drop(worker);
        assert!(matches!(&*words(&mut agent), [Word::Event(Event::Closed { .. })]), "its last word");
        assert!(matches!(agent.hear(), Heard::Gone));
        let (agent, worker) = both();
        drop(agent);
        assert!(matches!(worker.turn(&mut Noted::default()), Came::Gone));
    }

    #[test]
    fn what_is_no_word_is_the_end_of_the_worker() {
        let (here, there) = channel::pair().unwrap();
        let mut agent = RemoteAgent::new(here, |_| {}).0;
        rustix::net::send(&there, b"nonsense", rustix::net::SendFlags::empty()).unwrap();
        assert!(matches!(agent.hear(), Heard::Gone));
    }
}
