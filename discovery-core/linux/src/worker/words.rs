//! What the two processes say: a message each, its first octet a letter. Both are one executable, started one by the other.
//!
//! ```text
//! address  0 family (4, 6)  1..17 octets  17..19 port        flow  client, server
//! peer     0..19 address  19..27 key                         reason  u16, its place in the list of all
//! ```
//! Numbers are in network order. Sockets come beside a message: one with 'connection here', two with 'adopted'.

use std::net::SocketAddr;

use discovery_core::engine::{Event, Peer, Reason, Refusal, Unreachable};
use discovery_core::flow::Flow;
use discovery_core::probe::KeyHint;

use crate::broker::address::{put_address, read_address};
use crate::supervisor::Wish;

/// What netd wants of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What the worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
                let granted = match rest.octet()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                Self::Claim { id, flow, granted }
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

    fn reason(&mut self, why: Reason) -> &mut Self {
        let place = place(Reason::ALL, why).and_then(|place| u16::try_from(place).ok());
        self.octets(&place.unwrap_or(u16::MAX).to_be_bytes())
    }
}

struct In<'m>(&'m [u8]);

impl In<'_> {
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

    fn reason(&mut self) -> Option<Reason> {
        Reason::ALL.get(usize::from(u16::from_be_bytes(self.take()?))).copied()
    }
}

/// Longer than any of them.
pub(super) const MESSAGE_OCTETS_MAX: usize = 128;

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

    fn orders() -> Vec<Order> {
        let (four, flow, peer) = (flow(false), flow(true), peer());
        let mut all = vec![
            Order::Open { flow, peer, at: 1 << 40 },
            Order::Single { flow: four, at: 7 },
            Order::ClaimReady { flow, onward: None },
            Order::ClaimReady { flow, onward: Some(peer) },
            Order::AbortOnward { flow, next: peer, isn: u32::MAX },
            Order::Adopted { flow },
            Order::Meet { peer },
            Order::Begin,
            Order::Claimed { id: 9, answer: Granted::Here },
            Order::Claimed { id: 9, answer: Granted::Wait },
            Order::Claimed { id: 9, answer: Granted::Onward(peer) },
        ];
        all.extend(
            [Wish::Bypass(true), Wish::Leave, Wish::Hurry, Wish::Reload, Wish::HandOver].map(Order::Wish),
        );
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
        ];
        all.extend([Notice::Beat, Notice::Ready, Notice::Released].map(Said::Notice));
        all.extend(REFUSALS.map(|why| Said::Event(Event::Refused { flow, why })));
        all
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_or_longer() {
        for order in orders() {
            let mut written = order.write();
            assert!(written.len() < MESSAGE_OCTETS_MAX);
            assert_eq!(Order::read(&written), Some(order));
            assert_eq!(Order::read(written.split_last().unwrap().1), None, "{order:?}");
            written.push(0);
            assert_eq!(Order::read(&written), None, "{order:?}");
        }
        for said in said() {
            let mut written = said.write().unwrap();
            assert!(written.len() < MESSAGE_OCTETS_MAX);
            assert_eq!(Said::read(&written), Some(said));
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
                prop_assert_eq!(said.write().as_deref().and_then(Said::read), Some(said));
            }
            let _ = Order::read(&octets);
        }
    }
}
