//! As much of TCP as decides who ends up connected to whom: hand-shakes, repeated SYNs, refused answers, challenge
//! acknowledgements, resets, one octet of data and its echo. After RFC 9293 §3.10 and what Linux does beyond it: a
//! client that refuses a SYN-ACK repeats its first SYN at once.

use discovery_core::{flow::Flow, probe::Probe};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Syn,
    SynAck,
    /// A probe response beside TCP: nothing to a client's or a server's TCP.
    Datagram,
    Ack,
    Data,
    Rst,
    Fin,
    Unreachable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) flow: Flow,
    pub(crate) what: What,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) probe: Option<Probe>,
    /// Data that comes from the server itself.
    pub(crate) echo: bool,
}

impl Packet {
    pub(crate) fn new(flow: Flow, what: What, seq: u32, ack: u32) -> Self {
        Self { flow, what, seq, ack, probe: None, echo: false }
    }

    fn echo(self) -> Self {
        Self { echo: true, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server's echo came.
    Served,
    /// Refused while connecting.
    Refused,
    Unreachable,
    /// Reset or ended after connecting, before the echo.
    Broken,
    TimedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SynSent,
    Established { iss: u32 },
    Done(Outcome),
}

/// A socket that connects, says one thing and waits for its echo: a client, or a node's towards a server.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) flow: Flow,
    pub(crate) isn: u32,
    state: State,
    /// SYNs or data sent again.
    pub(crate) tries: u32,
    /// Says its thing as soon as it can.
    pub(crate) talks: bool,
}

impl Caller {
    pub(crate) fn new(flow: Flow, isn: u32, talks: bool) -> Self {
        Self { flow, isn, state: State::SynSent, tries: 0, talks }
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::Done(outcome) => Some(outcome),
            State::SynSent | State::Established { .. } => None,
        }
    }

    pub(crate) fn connected(&self) -> bool {
        matches!(self.state, State::Established { .. } | State::Done(Outcome::Served))
    }

    pub(crate) fn syn(&self) -> Packet {
        self.say(What::Syn, self.isn, 0)
    }

    /// What a close without any trace sends.
    pub(crate) fn abort(&self) -> Option<Packet> {
        match self.state {
            State::Established { .. } | State::Done(Outcome::Served) => {
                Some(self.say(What::Rst, self.isn.wrapping_add(1), 0))
            }
            State::SynSent | State::Done(_) => None,
        }
    }

    pub(crate) fn data(&self) -> Option<Packet> {
        match self.state {
            State::Established { iss } if self.talks => {
                Some(self.say(What::Data, self.isn.wrapping_add(1), iss.wrapping_add(1)))
            }
            State::Established { .. } | State::SynSent | State::Done(_) => None,
        }
    }

    /// The timer: what is sent again, and after how many milliseconds the next one is due.
    pub(crate) fn timer(&mut self) -> (Option<Packet>, Option<u64>) {
        self.tries += 1;
        match self.state {
            State::SynSent if self.tries > 6 => {
                self.state = State::Done(Outcome::TimedOut);
                (None, None)
            }
            State::SynSent => (Some(self.syn()), Some(1_000 << self.tries.min(3))),
            State::Established { .. } => (self.data(), Some(300)),
            State::Done(_) => (None, None),
        }
    }

    /// A packet for it: what it says to that, and whether its timer is to run anew (milliseconds).
    pub(crate) fn receive(&mut self, p: &Packet) -> (Vec<Packet>, Option<u64>) {
        let fits = p.ack == self.isn.wrapping_add(1);
        match (self.state, p.what) {
            (State::SynSent, What::SynAck) if fits => {
                self.state = State::Established { iss: p.seq };
                self.tries = 0;
                let ack = self.say(What::Ack, self.isn.wrapping_add(1), p.seq.wrapping_add(1));
                (std::iter::once(ack).chain(self.data()).collect(), Some(300))
            }
            (State::SynSent, What::SynAck | What::Ack) => {
                let again = (self.tries == 0).then_some(11);
                (vec![self.say(What::Rst, p.ack, 0)], again)
            }
            (State::SynSent, What::Rst) if fits => self.end(Outcome::Refused),
            (State::SynSent, What::Unreachable) => self.end(Outcome::Unreachable),
            (State::Established { iss }, What::Data)
                if p.seq == iss.wrapping_add(1) && p.echo && self.talks =>
            {
                self.state = State::Done(Outcome::Served);
                (vec![], None)
            }
            (State::Established { iss }, What::Rst | What::Fin) if p.seq == iss.wrapping_add(1) => {
                self.end(Outcome::Broken)
            }
            (State::Established { iss }, What::SynAck | What::Ack)
                if p.seq != iss || p.what == What::SynAck =>
            {
                (vec![self.say(What::Ack, self.isn.wrapping_add(1), iss.wrapping_add(1))], None)
            }
            _ => (vec![], None),
        }
    }

    fn end(&mut self, outcome: Outcome) -> (Vec<Packet>, Option<u64>) {
        self.state = State::Done(outcome);
        (vec![], None)
    }

    fn say(&self, what: What, seq: u32, ack: u32) -> Packet {
        Packet::new(self.flow, what, seq, ack)
    }
}

/// What one listening socket knows of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conn {
    pub(crate) irs: u32,
    pub(crate) iss: u32,
    pub(crate) established: bool,
}

/// A listening socket: the server, or a node's transparent one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listener {
    pub(crate) conns: BTreeMap<Flow, Conn>,
}

/// What arrived at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    Nothing,
    Data,
    Ended,
}

impl Listener {
    pub(crate) fn receive(&mut self, p: &Packet, iss: u32) -> (Vec<Packet>, Arrived) {
        let say = |what, seq, ack| Packet::new(p.flow, what, seq, ack);
        let Some(conn) = self.conns.get_mut(&p.flow) else {
            return match p.what {
                What::Syn => {
                    self.conns.insert(p.flow, Conn { irs: p.seq, iss, established: false });
                    (vec![say(What::SynAck, iss, p.seq.wrapping_add(1))], Arrived::Nothing)
                }
                What::Rst | What::Unreachable | What::SynAck | What::Datagram => (vec![], Arrived::Nothing),
                What::Ack | What::Data | What::Fin => (vec![say(What::Rst, p.ack, 0)], Arrived::Nothing),
            };
        };
        let in_order = p.seq == conn.irs.wrapping_add(1);
        let challenge = say(What::Ack, conn.iss.wrapping_add(1), conn.irs.wrapping_add(1));
        match p.what {
            What::Syn if p.seq == conn.irs && !conn.established => {
                (vec![say(What::SynAck, conn.iss, conn.irs.wrapping_add(1))], Arrived::Nothing)
            }
            What::Syn => (vec![challenge], Arrived::Nothing),
            What::Ack | What::Data if in_order && p.ack == conn.iss.wrapping_add(1) => {
                conn.established = true;
                (vec![], if p.what == What::Data { Arrived::Data } else { Arrived::Nothing })
            }
            // RFC 9293 §3.10.7.4, SYN-RECEIVED: an acknowledgement that is not acceptable is answered with a reset.
            What::Ack | What::Data if !conn.established => (vec![say(What::Rst, p.ack, 0)], Arrived::Nothing),
            What::Ack | What::Data => (vec![challenge], Arrived::Nothing),
            What::Rst | What::Fin if in_order => {
                self.conns.remove(&p.flow);
                (vec![], Arrived::Ended)
            }
            What::Rst | What::Fin | What::SynAck | What::Datagram | What::Unreachable => {
                (vec![], Arrived::Nothing)
            }
        }
    }

    /// The SYN-ACK again, for a connection that was not acknowledged.
    pub(crate) fn again(&self, flow: Flow) -> Option<Packet> {
        let conn = self.conns.get(&flow).filter(|conn| !conn.established)?;
        Some(Packet::new(flow, What::SynAck, conn.iss, conn.irs.wrapping_add(1)))
    }

    pub(crate) fn echo(&self, flow: Flow) -> Option<Packet> {
        let conn = self.conns.get(&flow)?;
        Some(Packet::new(flow, What::Data, conn.iss.wrapping_add(1), conn.irs.wrapping_add(1)).echo())
    }

    /// Ends a connection with a reset or a FIN. One that is not established was not accepted yet and cannot be ended.
    pub(crate) fn end(&mut self, flow: Flow, what: What) -> Option<Packet> {
        self.conns.get(&flow).filter(|conn| conn.established)?;
        let conn = self.conns.remove(&flow)?;
        Some(Packet::new(flow, what, conn.iss.wrapping_add(1), conn.irs.wrapping_add(1)))
    }
}
