//! What the two processes say: a message each, its first octet a letter. Both are one executable, started one by the other.
//!
//! ```text
//! address  0 family (4, 6)  1..17 octets  17..19 port        flow  client, server
//! peer     0..19 address  19..27 key                         reason  u16, its place in the list of all
//! ```
//! Numbers are in network order. Sockets come beside a message: one with 'connection here' and with the end of an adoption
//! by two nodes, two with 'adopted'. Octets of such a connection come in parts, the last thing of their message.

use std::net::SocketAddr;

use discovery_core::adopt::split::{CutWord, Ready, Ye};
use discovery_core::engine::{Event, Peer, Reason, Refusal, Unreachable};
use discovery_core::flow::Flow;
use discovery_core::probe::KeyHint;

use crate::broker::address::{put_address, read_address};
use crate::netd::{Ticket, Word};
use crate::supervisor::Wish;

/// What netd wants of the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Of when it is, in milliseconds of the machine's monotonic clock: one that waited for long is not carried out.
    Open {
        flow: Flow,
        peer: Peer,
        at: u64,
    },
    Single {
        flow: Flow,
        at: u64,
    },
    Abort {
        flow: Flow,
        why: Reason,
    },
    Abandon {
        flow: Flow,
        why: Reason,
    },
    Claimed {
        id: u32,
        answer: Granted,
    },
    /// None: the connection is beside it.
    ClaimReady {
        flow: Flow,
        onward: Option<Peer>,
    },
    ClaimFailed {
        flow: Flow,
        why: Reason,
    },
    AbortOnward {
        flow: Flow,
        next: Peer,
        isn: u32,
    },
    Adopted {
        flow: Flow,
    },
    /// Ask a peer to take the server's end.
    Adopt {
        ticket: Ticket,
        peer: Peer,
    },
    /// What comes of an adoption with a peer.
    Stepped {
        whose: Whose,
        step: Stepped,
    },
    Meet {
        peer: Peer,
    },
    Wish(Wish),
    /// Two channels beside it: to the broker, and for questions.
    Begin,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// The connection is beside it.
    Here,
    Onward(Peer),
    Wait,
    Refused(Reason),
}

/// Of which adoption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// The one that the ticket of this number is for.
    Own(u64),
    /// The one that the worker asked for under this number.
    Peers(u32),
}

/// [`crate::netd::Step`], without its socket.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Stepped {
    Begun(Ticket),
    Ready(Ticket, Ready),
    Cut(CutWord),
    /// The socket is beside it.
    Client,
    /// The next of the octets that belong to the step that follows.
    Octets(Vec<u8>),
    /// The socket is beside it.
    Server(Ye),
    Refused(Reason),
}

/// What people say to each other is nobody's business.
impl std::fmt::Debug for Stepped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begun(ticket) => f.debug_tuple("Begun").field(ticket).finish(),
            Self::Ready(ticket, ready) => f.debug_tuple("Ready").field(ticket).field(ready).finish(),
            Self::Cut(cut) => cut.fmt(f),
            Self::Client => f.write_str("Client"),
            Self::Octets(octets) => f.debug_tuple("Octets").field(&octets.len()).finish(),
            Self::Server(ye) => f.debug_tuple("Server").field(ye).finish(),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Event(Event),
    Claim {
        id: u32,
        flow: Flow,
        granted: bool,
    },
    /// A client of the flow is waited for.
    Here {
        flow: Flow,
    },
    /// A peer wants this node to take the server's end.
    AdoptForPeer {
        id: u32,
        flow: Flow,
    },
    /// What a peer said of an adoption, or what became of it here.
    Adoption(Ticket, Word),
    Notice(Notice),
}

/// What it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It turns.
    Beat,
    /// It can carry what is taken.
    Ready,
    /// What only one can have is free for a successor.
    Released,
}

impl Order {
    pub(super) fn write(self) -> Vec<u8> {
        let mut out = Out::default();
        match self {
            Self::Open { flow, peer, at } => out.letter(b'o').flow(flow).peer(peer).long(at),
            Self::Single { flow, at } => out.letter(b's').flow(flow).long(at),
            Self::Abort { flow, why } => out.letter(b'a').flow(flow).reason(why),
            Self::Abandon { flow, why } => out.letter(b'b').flow(flow).reason(why),
            Self::Claimed { id, answer } => match answer {
                Granted::Here => out.letter(b'h').number(id),
                Granted::Onward(peer) => out.letter(b'n').number(id).peer(peer),
                Granted::Wait => out.letter(b'w').number(id),
                Granted::Refused(why) => out.letter(b'r').number(id).reason(why),
            },
            Self::ClaimReady { flow, onward: None } => out.letter(b'c').flow(flow),
            Self::ClaimReady { flow, onward: Some(peer) } => out.letter(b'd').flow(flow).peer(peer),
            Self::ClaimFailed { flow, why } => out.letter(b'f').flow(flow).reason(why),
            Self::AbortOnward { flow, next, isn } => out.letter(b'x').flow(flow).peer(next).number(isn),
            Self::Adopted { flow } => out.letter(b't').flow(flow),
            Self::Adopt { ticket, peer } => out.letter(b'j').ticket(ticket).peer(peer),
            Self::Stepped { whose, step } => {
                let letter = match &step {
                    Stepped::Begun(_) => b'0',
                    Stepped::Ready(..) => b'1',
                    Stepped::Cut(_) => b'2',
                    Stepped::Client => b'3',
                    Stepped::Octets(_) => b'4',
                    Stepped::Server(_) => b'5',
                    Stepped::Refused(_) => b'6',
                };
                out.letter(letter).whose(whose);
                match step {
                    Stepped::Begun(ticket) => out.ticket(ticket),
                    Stepped::Ready(ticket, ready) => out.ticket(ticket).octets(&ready.encode()),
                    Stepped::Cut(cut) => out.octets(&cut.encode()),
                    Stepped::Client => &mut out,
                    Stepped::Octets(octets) => out.octets(&octets),
                    Stepped::Server(ye) => out.octets(&ye.encode()),
                    Stepped::Refused(why) => out.reason(why),
                }
            }
            Self::Meet { peer } => out.letter(b'm').peer(peer),
            Self::Wish(wish) => out.letter(b'i').octets(&wish.write()),
            Self::Begin => out.letter(b'B'),
        };
        out.0
    }

    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let (letter, rest) = message.split_first()?;
        let mut rest = In(rest);
        let order = match letter {
            b'o' => Self::Open { flow: rest.flow()?, peer: rest.peer()?, at: rest.long()? },
            b's' => Self::Single { flow: rest.flow()?, at: rest.long()? },
            b'a' => Self::Abort { flow: rest.flow()?, why: rest.reason()? },
            b'b' => Self::Abandon { flow: rest.flow()?, why: rest.reason()? },
            b'h' => Self::Claimed { id: rest.number()?, answer: Granted::Here },
            b'n' => Self::Claimed { id: rest.number()?, answer: Granted::Onward(rest.peer()?) },
            b'w' => Self::Claimed { id: rest.number()?, answer: Granted::Wait },
            b'r' => Self::Claimed { id: rest.number()?, answer: Granted::Refused(rest.reason()?) },
            b'c' => Self::ClaimReady { flow: rest.flow()?, onward: None },
            b'd' => Self::ClaimReady { flow: rest.flow()?, onward: Some(rest.peer()?) },
            b'f' => Self::ClaimFailed { flow: rest.flow()?, why: rest.reason()? },
            b'x' => Self::AbortOnward { flow: rest.flow()?, next: rest.peer()?, isn: rest.number()? },
            b't' => Self::Adopted { flow: rest.flow()? },
            b'j' => Self::Adopt { ticket: rest.ticket()?, peer: rest.peer()? },
            b'0'..=b'6' => {
                let whose = rest.whose()?;
                let step = match letter {
                    b'0' => Stepped::Begun(rest.ticket()?),
                    b'1' => Stepped::Ready(rest.ticket()?, Ready::decode(rest.all())?),
                    b'2' => Stepped::Cut(CutWord::decode(rest.all())?),
                    b'3' => Stepped::Client,
                    b'4' => Stepped::Octets(rest.part()?),
                    b'5' => Stepped::Server(Ye::decode(rest.all())?),
                    _ => Stepped::Refused(rest.reason()?),
                };
                Self::Stepped { whose, step }
            }
            b'm' => Self::Meet { peer: rest.peer()? },
            b'i' => Self::Wish(Wish::read(&[rest.octet()?])?),
            b'B' => Self::Begin,
            _ => return None,
        };
        rest.0.is_empty().then_some(order)
    }
}

impl Said {
    /// None: it is not the worker's to say.
    pub(super) fn write(self) -> Option<Vec<u8>> {
        let mut out = Out::default();
        match self {
            Self::Event(Event::Opened { flow }) => out.letter(b'O').flow(flow),
            Self::Event(Event::Refused { flow, why }) => out.letter(b'R').flow(flow).octets(&[refusal(why)]),
            Self::Event(Event::Aborted { flow, isn }) => out.letter(b'A').flow(flow).number(isn),
            Self::Event(Event::Closed { flow }) => out.letter(b'C').flow(flow),
            Self::Event(Event::PeerUp { peer }) => out.letter(b'U').peer(peer),
            Self::Event(Event::PeerDown { peer }) => out.letter(b'D').peer(peer),
            Self::Event(Event::PeerAside { peer, aside }) => {
                out.letter(b'V').peer(peer).octets(&[u8::from(aside)])
            }
            Self::Event(
                Event::Connected { .. }
                | Event::ConnectFailed { .. }
                | Event::Probed { .. }
                | Event::AgentUp
                | Event::AgentDown
                | Event::Bypass { .. },
            ) => return None,
            Self::Claim { id, flow, granted } => {
                out.letter(b'L').number(id).flow(flow).octets(&[u8::from(granted)])
            }
            Self::Here { flow } => out.letter(b'H').flow(flow),
            Self::AdoptForPeer { id, flow } => out.letter(b'P').number(id).flow(flow),
            Self::Adoption(ticket, word) => {
                let letter = match &word {
                    Word::Ready(_) => b'1',
                    Word::Cut(_) => b'2',
                    Word::Ye(_) => b'3',
                    Word::Filled(_) => b'4',
                    Word::Over(_) => b'5',
                };
                out.letter(letter).ticket(ticket);
                match word {
                    Word::Ready(ready) => out.octets(&ready.encode()),
                    Word::Cut(cut) => out.octets(&cut.encode()),
                    Word::Ye(ye) => out.octets(&ye.encode()),
                    Word::Filled(octets) => out.octets(&octets),
                    Word::Over(why) => out.reason(why),
                }
            }
            Self::Notice(Notice::Beat) => out.letter(b'.'),
            Self::Notice(Notice::Ready) => out.letter(b'!'),
            Self::Notice(Notice::Released) => out.letter(b'F'),
        };
        Some(out.0)
    }

    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let (letter, rest) = message.split_first()?;
        let mut rest = In(rest);
        let said = match letter {
            b'O' => Self::Event(Event::Opened { flow: rest.flow()? }),
            b'R' => Self::Event(Event::Refused { flow: rest.flow()?, why: refusal_of(rest.octet()?)? }),
            b'A' => Self::Event(Event::Aborted { flow: rest.flow()?, isn: rest.number()? }),
            b'C' => Self::Event(Event::Closed { flow: rest.flow()? }),
            b'U' => Self::Event(Event::PeerUp { peer: rest.peer()? }),
            b'D' => Self::Event(Event::PeerDown { peer: rest.peer()? }),
            b'L' => {
                let (id, flow) = (rest.number()?, rest.flow()?);
                Self::Claim { id, flow, granted: rest.truth()? }
            }
            b'V' => Self::Event(Event::PeerAside { peer: rest.peer()?, aside: rest.truth()? }),
            b'P' => Self::AdoptForPeer { id: rest.number()?, flow: rest.flow()? },
            b'1'..=b'5' => {
                let ticket = rest.ticket()?;
                let word = match letter {
                    b'1' => Word::Ready(Ready::decode(rest.all())?),
                    b'2' => Word::Cut(CutWord::decode(rest.all())?),
                    b'3' => Word::Ye(Ye::decode(rest.all())?),
                    b'4' => Word::Filled(rest.part()?),
                    _ => Word::Over(rest.reason()?),
                };
                Self::Adoption(ticket, word)
            }
            b'H' => Self::Here { flow: rest.flow()? },
            b'.' => Self::Notice(Notice::Beat),
            b'!' => Self::Notice(Notice::Ready),
            b'F' => Self::Notice(Notice::Released),
            _ => return None,
        };
        rest.0.is_empty().then_some(said)
    }
}

/// For a fuzzer: what any octets mean, written again, if they mean anything.
#[must_use]
pub fn decode_said(message: &[u8]) -> Option<Vec<u8>> {
    Said::read(message).and_then(Said::write)
}

const REFUSALS: [Refusal; 10] = [
    Refusal::ServerRefused,
    Refusal::ServerUnreachable(Unreachable::Network),
    Refusal::ServerUnreachable(Unreachable::Host),
    Refusal::ServerUnreachable(Unreachable::Port),
    Refusal::ServerUnreachable(Unreachable::Prohibited),
    Refusal::ServerSilent,
    Refusal::Unseen,
    Refusal::NotNow,
    Refusal::Peer,
    Refusal::NoLink,
];

fn refusal(why: Refusal) -> u8 {
    place(&REFUSALS, why).and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

fn refusal_of(place: u8) -> Option<Refusal> {
    REFUSALS.get(usize::from(place)).copied()
}

fn place<T: PartialEq>(all: &[T], one: T) -> Option<usize> {
    all.iter().position(|other| *other == one)
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn octets(&mut self, octets: &[u8]) -> &mut Self {
        self.0.extend_from_slice(octets);
        self
    }

    fn letter(&mut self, letter: u8) -> &mut Self {
        self.octets(&[letter])
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.octets(&number.to_be_bytes())
    }

    fn long(&mut self, number: u64) -> &mut Self {
        self.octets(&number.to_be_bytes())
    }

    fn address(&mut self, address: SocketAddr) -> &mut Self {
        put_address(&mut self.0, Some(address));
        self
    }

    fn flow(&mut self, flow: Flow) -> &mut Self {
        self.address(flow.client).address(flow.server)
    }

    fn peer(&mut self, peer: Peer) -> &mut Self {
        self.address(peer.link).octets(&peer.key.0)
    }

    fn ticket(&mut self, ticket: Ticket) -> &mut Self {
        self.flow(ticket.flow).long(ticket.nth)
    }

    fn whose(&mut self, whose: Whose) -> &mut Self {
        match whose {
            Whose::Own(nth) => self.octets(&[0]).long(nth),
            Whose::Peers(id) => self.octets(&[1]).long(id.into()),
        }
    }

    fn reason(&mut self, why: Reason) -> &mut Self {
        let place = place(Reason::ALL, why).and_then(|place| u16::try_from(place).ok());
        self.octets(&place.unwrap_or(u16::MAX).to_be_bytes())
    }
}

struct In<'m>(&'m [u8]);

impl<'m> In<'m> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn octet(&mut self) -> Option<u8> {
        self.take().map(|[octet]| octet)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn address(&mut self) -> Option<SocketAddr> {
        read_address(&self.take::<19>()?)
    }

    fn flow(&mut self) -> Option<Flow> {
        let flow = Flow { client: self.address()?, server: self.address()? };
        // One of two families cannot be.
        (flow.client.is_ipv4() == flow.server.is_ipv4()).then_some(flow)
    }

    fn peer(&mut self) -> Option<Peer> {
        Some(Peer { link: self.address()?, key: KeyHint(self.take()?) })
    }

    fn truth(&mut self) -> Option<bool> {
        match self.octet()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn ticket(&mut self) -> Option<Ticket> {
        Some(Ticket { flow: self.flow()?, nth: self.long()? })
    }

    fn whose(&mut self) -> Option<Whose> {
        match (self.octet()?, self.long()?) {
            (0, nth) => Some(Whose::Own(nth)),
            (1, id) => u32::try_from(id).ok().map(Whose::Peers),
            (_, _) => None,
        }
    }

    /// What is left, for whoever takes all of it or none.
    fn all(&mut self) -> &'m [u8] {
        std::mem::take(&mut self.0)
    }

    /// A part of what somebody says: one that was cut short is longer than any.
    fn part(&mut self) -> Option<Vec<u8>> {
        let part = self.all();
        (part.len() <= PART_OCTETS_MAX).then(|| part.to_vec())
    }

    fn reason(&mut self) -> Option<Reason> {
        Reason::ALL.get(usize::from(u16::from_be_bytes(self.take()?))).copied()
    }
}

/// Of what people say, in one message.
pub(super) const PART_OCTETS_MAX: usize = 4096;
/// Longer than any of them.
pub(super) const MESSAGE_OCTETS_MAX: usize = PART_OCTETS_MAX + 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(v6: bool) -> Flow {
        if v6 {
            Flow {
                client: "[2001:db8::1]:40000".parse().unwrap(),
                server: "[2001:db8::2]:143".parse().unwrap(),
            }
        } else {
            Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
        }
    }

    fn peer() -> Peer {
        Peer { link: "10.9.0.1:7780".parse().unwrap(), key: KeyHint([1, 2, 3, 4, 5, 6, 7, 8]) }
    }

    fn ticket() -> Ticket {
        Ticket { flow: flow(true), nth: 1 << 40 }
    }

    fn terms() -> discovery_core::adopt::Terms {
        discovery_core::adopt::Terms { mss: 1460, scale: Some((7, 8)), sack: true }
    }

    fn steps() -> Vec<Order> {
        let all = [
            Stepped::Begun(ticket()),
            Stepped::Ready(ticket(), Ready { terms: None }),
            Stepped::Cut(CutWord { expects: 7, terms: terms() }),
            Stepped::Client,
            Stepped::Octets(vec![9; PART_OCTETS_MAX]),
            Stepped::Server(Ye { from: 1, ye: 9 }),
            Stepped::Refused(Reason::AdoptUnsteady),
        ];
        let own = all.iter().map(|step| (Whose::Own(u64::MAX), step.clone()));
        let peers = all.iter().map(|step| (Whose::Peers(u32::MAX), step.clone()));
        own.chain(peers).map(|(whose, step)| Order::Stepped { whose, step }).collect()
    }

    fn orders() -> Vec<Order> {
        let (four, flow, peer) = (flow(false), flow(true), peer());
        let mut all = vec![
            Order::Open { flow, peer, at: 1 << 40 },
            Order::Single { flow: four, at: 7 },
            Order::ClaimReady { flow, onward: None },
            Order::ClaimReady { flow, onward: Some(peer) },
            Order::AbortOnward { flow, next: peer, isn: u32::MAX },
            Order::Adopted { flow },
            Order::Adopt { ticket: ticket(), peer },
            Order::Meet { peer },
            Order::Begin,
            Order::Claimed { id: 9, answer: Granted::Here },
            Order::Claimed { id: 9, answer: Granted::Wait },
            Order::Claimed { id: 9, answer: Granted::Onward(peer) },
        ];
        all.extend(
            [Wish::Bypass(true), Wish::Leave, Wish::Hurry, Wish::Reload, Wish::HandOver].map(Order::Wish),
        );
        all.extend(steps());
        for why in Reason::ALL.iter().copied() {
            all.extend([Order::Abort { flow, why }, Order::Abandon { flow, why }]);
            all.extend([
                Order::ClaimFailed { flow, why },
                Order::Claimed { id: 1, answer: Granted::Refused(why) },
            ]);
        }
        all
    }

    fn said() -> Vec<Said> {
        let (flow, peer) = (flow(false), peer());
        let mut all = vec![
            Said::Event(Event::Opened { flow }),
            Said::Event(Event::Aborted { flow, isn: 77 }),
            Said::Event(Event::Closed { flow }),
            Said::Event(Event::PeerUp { peer }),
            Said::Event(Event::PeerDown { peer }),
            Said::Claim { id: 3, flow, granted: true },
            Said::Claim { id: 3, flow, granted: false },
            Said::Here { flow },
            Said::Event(Event::PeerAside { peer, aside: true }),
            Said::Event(Event::PeerAside { peer, aside: false }),
            Said::AdoptForPeer { id: 9, flow },
            Said::Adoption(ticket(), Word::Ready(Ready { terms: Some(terms()) })),
            Said::Adoption(ticket(), Word::Cut(CutWord { expects: 7, terms: terms() })),
            Said::Adoption(ticket(), Word::Ye(Ye { from: u32::MAX, ye: 5 })),
            Said::Adoption(ticket(), Word::Filled(vec![9; PART_OCTETS_MAX])),
            Said::Adoption(ticket(), Word::Over(Reason::PeerDown)),
        ];
        all.extend([Notice::Beat, Notice::Ready, Notice::Released].map(Said::Notice));
        all.extend(REFUSALS.map(|why| Said::Event(Event::Refused { flow, why })));
        all
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_or_longer() {
        for order in orders() {
            let mut written = order.clone().write();
            assert!(written.len() < MESSAGE_OCTETS_MAX);
            assert_eq!(Order::read(&written).as_ref(), Some(&order));
            if !matches!(order, Order::Stepped { step: Stepped::Octets(_), .. }) {
                assert_eq!(Order::read(written.split_last().unwrap().1), None, "{order:?}");
            }
            written.push(0);
            assert_eq!(Order::read(&written), None, "{order:?}");
        }
        for said in said() {
            let mut written = said.clone().write().unwrap();
            assert!(written.len() < MESSAGE_OCTETS_MAX);
            assert_eq!(Said::read(&written).as_ref(), Some(&said));
            written.push(0);
            assert_eq!(Said::read(&written), None, "{said:?}");
        }
    }

    #[test]
    fn the_worker_says_nothing_that_is_the_packet_loops() {
        let flow = flow(false);
        for event in [
            Event::AgentUp,
            Event::AgentDown,
            Event::Bypass { on: true },
            Event::Connected { flow },
            Event::Probed { server: flow.server, answer: None },
        ] {
            assert_eq!(Said::Event(event).write(), None);
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_a_word_or_none(octets in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(said) = Said::read(&octets) {
                prop_assert_eq!(said.clone().write().as_deref().and_then(Said::read), Some(said));
            }
            let _ = Order::read(&octets);
        }
    }
}
