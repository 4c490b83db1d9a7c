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
use super::words::{Granted, Notice, Order, PART_OCTETS_MAX, Said, Stepped, Whose};
use crate::netd::{Agent, Claimed, Ready, Step, Tell, Ticket, Word};
use crate::supervisor::Wish;

/// See the module's documentation.
#[derive(Debug)]
pub struct ToNetd {
    channel: Channel,
    claims: Mutex<Claims>,
    adoptions: Mutex<Adoptions>,
}

/// Those that two nodes are at.
#[derive(Default)]
struct Adoptions {
    next: u32,
    going: HashMap<Whose, Going>,
}

struct Going {
    flow: Flow,
    tell: Tell,
    /// Of the step that follows.
    octets: Vec<u8>,
}

impl std::fmt::Debug for Adoptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adoptions").field("going", &self.going.len()).finish_non_exhaustive()
    }
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
        Self { channel: Channel::new(channel), claims: Mutex::default(), adoptions: Mutex::default() }
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
            | Order::Adopt { .. }
            | Order::Stepped { .. }
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

    /// A peer wants this node to take the server's end of a connection that stood before. `tell` is called where
    /// [`ToNetd::turn`] is.
    pub fn adopt_for_peer(&self, flow: Flow, tell: Tell) {
        let mut adoptions = self.adoptions();
        adoptions.next = adoptions.next.wrapping_add(1);
        let id = adoptions.next;
        adoptions.going.insert(Whose::Peers(id), Going { flow, tell, octets: Vec::new() });
        drop(adoptions);
        self.say(Said::AdoptForPeer { id, flow });
    }

    /// What was said about an adoption with a peer.
    pub fn adoption(&self, ticket: Ticket, word: Word) {
        match word {
            Word::Filled(octets) => {
                for part in octets.chunks(PART_OCTETS_MAX) {
                    self.say(Said::Adoption(ticket, Word::Filled(part.to_vec())));
                }
            }
            Word::Ready(_) | Word::Ye(_) | Word::Cut(_) | Word::Over(_) => {
                self.say(Said::Adoption(ticket, word));
            }
        }
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
            Order::Adopt { ticket, peer } => {
                let going = Going { flow: ticket.flow, tell: agent.adopt(ticket, peer), octets: Vec::new() };
                self.adoptions().going.insert(Whose::Own(ticket.nth), going);
            }
            Order::Stepped { whose, step } => self.step(whose, step, beside.next()),
            Order::Meet { peer } => return Some(Came::Meet(peer)),
            Order::Wish(wish) => return Some(Came::Wish(wish)),
            // Said already.
            Order::Begin => {}
        }
        None
    }

    /// Hands a step of an adoption on. Where nobody waits for it any more, the loop hears of it.
    fn step(&self, whose: Whose, step: Stepped, socket: Option<OwnedFd>) {
        let going = self.adoptions().going.remove(&whose);
        let Some(mut going) = going else { return };
        let flow = going.flow;
        let (step, given_up) = match (step, socket) {
            (Stepped::Octets(octets), _) => {
                going.octets.extend(octets);
                self.adoptions().going.insert(whose, going);
                return;
            }
            (Stepped::Begun(ticket), _) => (Step::Begun(ticket), Some(unsteady(ticket))),
            (Stepped::Ready(ticket, ready), _) => (Step::Ready(ticket, ready), Some(unsteady(ticket))),
            (Stepped::Cut(cut), _) => {
                let over = match whose {
                    Whose::Own(nth) => Some(unsteady(Ticket { flow, nth })),
                    Whose::Peers(_) => None,
                };
                (Step::Cut(cut), over)
            }
            (Stepped::Client, Some(client)) => (Step::Client(client), Some(closed(flow))),
            (Stepped::Server(ye), Some(server)) => {
                (Step::Server(server, ye, std::mem::take(&mut going.octets)), Some(closed(flow)))
            }
            (Stepped::Client | Stepped::Server(_), None) => {
                self.say(closed(flow));
                (Step::Refused(Reason::LocalFailure), None)
            }
            (Stepped::Refused(why), _) => (Step::Refused(why), None),
        };
        let goes_on = matches!(step, Step::Begun(_) | Step::Ready(..) | Step::Cut(_));
        if (going.tell)(step) {
            if goes_on {
                self.adoptions().going.insert(whose, going);
            }
        } else if let Some(said) = given_up
            && !mutants::on("worker-adoption-forgotten")
        {
            self.say(said);
        }
    }

    fn say(&self, said: Said) {
        if let Some(octets) = said.write() {
            self.channel.send(octets, Vec::new());
        }
    }

    fn adoptions(&self) -> MutexGuard<'_, Adoptions> {
        self.adoptions.lock().unwrap_or_else(PoisonError::into_inner)
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

fn unsteady(ticket: Ticket) -> Said {
    Said::Adoption(ticket, Word::Over(Reason::AdoptUnsteady))
}

fn closed(flow: Flow) -> Said {
    Said::Event(Event::Closed { flow })
}

/// netd gives a flow up that this process has let wait: its client goes past, and nothing may be begun for it any more.
fn is_timely(at: u64, now: u64) -> bool {
    now.saturating_sub(at) <= ORDER_AGE_MAX || mutants::on("worker-order-late")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{Heard, RemoteAgent, Word as Heards, channel};
    use discovery_core::adopt::Terms;
    use discovery_core::adopt::split::{CutWord, Ready as Readies, Ye};
    use discovery_core::probe::KeyHint;
    use std::sync::mpsc;

    /// Notes what it is told.
    #[derive(Default)]
    struct Noted(Vec<String>, Option<mpsc::Sender<Step>>);

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
        fn adopt(&mut self, ticket: Ticket, _: Peer) -> Tell {
            self.0.push(format!("adopt {}", ticket.nth));
            told(self.1.take().unwrap())
        }
    }

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    fn told(to: mpsc::Sender<Step>) -> Tell {
        Box::new(move |step| to.send(step).is_ok())
    }

    fn socket() -> OwnedFd {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    fn both() -> (RemoteAgent, ToNetd) {
        let (here, there) = channel::pair().unwrap();
        (RemoteAgent::new(here, |_| {}).0, ToNetd::new(there))
    }

    fn words(agent: &mut RemoteAgent) -> Vec<Heards> {
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
            matches!(&*words, [Heards::Inject(of, packet)] if *of == flow() && *packet == [1, 2]),
            "{words:?}"
        );
    }

    #[test]
    fn a_claim_is_answered_before_the_order_that_follows_it() {
        let (mut agent, worker) = both();
        let (told, answered) = mpsc::channel();
        worker.claim(flow(), true, move |claimed| told.send(claimed).unwrap());
        let words = words(&mut agent);
        let [Heards::Claim { id, flow: of, granted: true }] = &*words else { panic!("{words:?}") };
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
        assert!(matches!(&*words(&mut agent), [Heards::Event(Event::Closed { .. })]), "its last word");
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

    #[test]
    fn an_adoption_with_a_peer_goes_both_ways_with_its_octets_and_its_socket() {
        let (mut agent, worker) = both();
        let ticket = Ticket { flow: flow(), nth: 7 };
        let peer = Peer { link: "10.9.0.1:7780".parse().unwrap(), key: KeyHint([1; 8]) };
        let mut tell = agent.adopt(ticket, peer);
        let (steps, told) = mpsc::channel();
        let mut noted = Noted(Vec::new(), Some(steps));
        assert!(matches!(worker.turn(&mut noted), Came::Nothing));
        assert_eq!(noted.0, ["adopt 7"]);
        let cut = CutWord { expects: 5, terms: Terms { mss: 1460, scale: None, sack: true } };
        assert!(tell(Step::Cut(cut)));
        let long: Vec<u8> = (0..10_000_u32).map(|n| n.to_be_bytes()[3]).collect();
        worker.adoption(ticket, Word::Ye(Ye { from: 1, ye: 10_001 }));
        worker.adoption(ticket, Word::Filled(long.clone()));
        let words = words(&mut agent);
        let said = words.iter().filter_map(|word| match word {
            Heards::Adoption(of, Word::Filled(octets)) if *of == ticket => Some(octets.clone()),
            Heards::Adoption(..)
            | Heards::Event(_)
            | Heards::Claim { .. }
            | Heards::Inject(..)
            | Heards::AdoptForPeer(..) => None,
        });
        assert_eq!(said.collect::<Vec<_>>().concat(), long);
        assert!(tell(Step::Client(socket())));
        drop(tell);
        assert!(matches!(worker.turn(&mut noted), Came::Nothing));
        assert!(matches!(told.try_recv(), Ok(Step::Cut(of)) if of == cut));
        let Ok(Step::Client(socket)) = told.try_recv() else { panic!("no socket") };
        let linger = rustix::net::sockopt::socket_linger(&socket).unwrap();
        assert_eq!(linger, Some(std::time::Duration::ZERO), "lost on its way it would end in order");
        assert!(told.try_recv().is_err() && worker.adoptions().going.is_empty());
    }

    #[test]
    fn a_peers_adoption_is_told_by_its_number_and_gets_its_socket_with_the_octets() {
        let (mut agent, worker) = both();
        let (steps, was_told) = mpsc::channel();
        worker.adopt_for_peer(flow(), told(steps));
        let mut heard = words(&mut agent);
        let Some(Heards::AdoptForPeer(of, mut tell)) = heard.pop() else { panic!("{heard:?}") };
        assert_eq!(of, flow());
        let ticket = Ticket { flow: flow(), nth: 3 };
        assert!(tell(Step::Ready(ticket, Readies { terms: None })));
        let long = vec![7; 9000];
        assert!(tell(Step::Server(socket(), Ye { from: 0, ye: 9000 }, long.clone())));
        assert!(matches!(worker.turn(&mut Noted::default()), Came::Nothing));
        assert!(matches!(was_told.try_recv(), Ok(Step::Ready(of, _)) if of == ticket));
        let Ok(Step::Server(_, _, octets)) = was_told.try_recv() else { panic!("no socket") };
        assert_eq!(octets, long);
        assert!(worker.adoptions().going.is_empty());
    }

    #[test]
    fn what_nobody_takes_any_more_is_said_to_be_over() {
        let (mut agent, worker) = both();
        let ticket = Ticket { flow: flow(), nth: 3 };
        for (step, closed) in [
            (Step::Ready(ticket, Readies { terms: None }), false),
            (Step::Server(socket(), Ye { from: 0, ye: 0 }, Vec::new()), true),
        ] {
            let (steps, nobody) = mpsc::channel();
            drop(nobody);
            worker.adopt_for_peer(flow(), told(steps));
            let Some(Heards::AdoptForPeer(_, mut tell)) = words(&mut agent).pop() else {
                panic!("not asked")
            };
            assert!(tell(step));
            assert!(matches!(worker.turn(&mut Noted::default()), Came::Nothing));
            let said = words(&mut agent);
            let as_expected = match &*said {
                [Heards::Event(Event::Closed { .. })] => closed,
                [Heards::Adoption(of, Word::Over(_))] => *of == ticket && !closed,
                _ => false,
            };
            assert!(as_expected, "{said:?}");
        }
        assert!(worker.adoptions().going.is_empty());
    }

    #[test]
    fn a_loop_that_ends_refuses_what_it_was_at_and_what_comes_later() {
        let (here, there) = channel::pair().unwrap();
        let (mut agent, wishes) = RemoteAgent::new(here, |_| {});
        let worker = ToNetd::new(there);
        let (steps, was_told) = mpsc::channel();
        worker.adopt_for_peer(flow(), told(steps.clone()));
        drop(words(&mut agent));
        worker.adopt_for_peer(flow(), told(steps));
        drop(agent);
        assert!(wishes.refuse());
        assert!(matches!(worker.turn(&mut Noted::default()), Came::Nothing));
        for _ in 0..2 {
            assert!(matches!(was_told.try_recv(), Ok(Step::Refused(Reason::AgentDown))));
        }
    }
}
