//! What the shell tells the engine and what the engine asks of it: facts and orders, never octets to be parsed.

use crate::{
    flow::{Flow, Ingress},
    pmt::PmtRow,
    probe::{KeyHint, Probe, Response},
    reason::Reason,
};
use std::net::SocketAddr;

/// Another node as the engine knows it: where its link listens, and which of several nodes behind that address. The key is who it is; the address is only where to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Where its link listens.
    pub link: SocketAddr,
    /// Which node.
    pub key: KeyHint,
}

impl From<Response> for Peer {
    fn from(response: Response) -> Self {
        Self { link: response.link, key: response.key }
    }
}

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// On its way through this node.
    Forwarded(Ingress),
    /// Leaving this node, sent by a socket that an [`Output::Connect`] asked for.
    Own,
}

/// Which of the three packets that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A SYN without ACK.
    Syn,
    /// A SYN with ACK.
    SynAck,
    /// A reset.
    Rst,
}

/// Whether the query can be put on this SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Room {
    /// It fits.
    Fits,
    /// The options are full.
    Full,
    /// The packet is signed or cannot be altered safely: its connection must not be taken over either.
    Untouchable,
}

/// One packet, parsed by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Source as on the wire.
    pub src: SocketAddr,
    /// Destination as on the wire.
    pub dst: SocketAddr,
    /// Where.
    pub hook: Hook,
    /// Which packet.
    pub kind: Kind,
    /// Its sequence number.
    pub seq: u32,
    /// Its acknowledgement number; 0 without ACK.
    pub ack: u32,
    /// The probe option it carries.
    pub probe: Option<Probe>,
    /// Room for the query; matters on a SYN only.
    pub room: Room,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes on unchanged.
    Pass,
    /// It goes on with the query among its options.
    PassWithQuery,
    /// It ends here.
    Drop,
}

/// What the engine wants done. To be executed in the order in which they are polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Give the client's SYN to this node's own stack, where the transparent listener takes it.
    InjectSyn {
        /// Whose.
        flow: Flow,
        /// The SYN as the client sent it.
        packet: Vec<u8>,
    },
    /// Send a SYN that was kept back on its way to the server, past the queue and without the query. Connection
    /// tracking must see it: it is the client's, not a forged one.
    ReleaseSyn {
        /// Whose.
        flow: Flow,
        /// The SYN as it came in.
        packet: Vec<u8>,
    },
    /// The same with the query among its options, if there is still room.
    ProbeSyn {
        /// Whose.
        flow: Flow,
        /// The SYN as it came in.
        packet: Vec<u8>,
    },
    /// Connect to the flow's server from the client's own address and port, with the mark of own connects. The
    /// outcome comes back as [`Event::Connected`] or [`Event::ConnectFailed`].
    Connect {
        /// For whom.
        flow: Flow,
    },
    /// Close the server's socket of the flow so that no trace stays (linger 0). Also while it is connecting.
    Abandon {
        /// Whose.
        flow: Flow,
        /// Why.
        why: Reason,
    },
    /// Forge the SYN-ACK that carries this node's probe response, from the server to the client.
    AnswerProbe {
        /// Whose.
        flow: Flow,
        /// The sequence number to forge.
        seq: u32,
        /// The acknowledgement number to forge.
        ack: u32,
        /// What the response says: the server has accepted already.
        connected: bool,
    },
    /// Say the same in a datagram from the server's address to the client's: the way back takes options out.
    AnswerByDatagram {
        /// Whose.
        flow: Flow,
        /// The number of its SYN.
        isn: u32,
        /// What the response says: the server has accepted already.
        connected: bool,
    },
    /// Forge a reset from the server to the client.
    Reset {
        /// Whose.
        flow: Flow,
        /// The sequence number to forge.
        seq: u32,
        /// The acknowledgement number to forge; none: without ACK, which ends an established connection and is
        /// nothing to a client that is still connecting (RFC 9293 §3.10.7.3).
        ack: Option<u32>,
    },
    /// Forge a reset without ACK from the client to the server.
    ResetServer {
        /// Whose.
        flow: Flow,
        /// The sequence number to forge.
        seq: u32,
    },
    /// Tell the client that the server cannot be reached (ICMP), as the network told this node.
    Unreachable {
        /// Whose.
        flow: Flow,
        /// What the network said.
        what: Unreachable,
        /// The client's SYN, which the message quotes.
        packet: Vec<u8>,
    },
    /// Open a stream for the flow on the link to `peer`. The outcome comes back as [`Event::Opened`] or
    /// [`Event::Refused`].
    Open {
        /// For whom.
        flow: Flow,
        /// Where.
        peer: Peer,
    },
    /// The flow is terminated here without a peer: reach its server from the client's address.
    Single {
        /// Whose.
        flow: Flow,
    },
    /// Give up what [`Output::Open`] began for the flow, and reset the client's connection if it stands.
    Abort {
        /// Whose.
        flow: Flow,
        /// Why.
        why: Reason,
    },
    /// A claim that had to wait ([`super::Claim::Wait`]) can go on.
    ClaimReady {
        /// Whose.
        flow: Flow,
        /// The next node, which takes the stream on; none: the server's socket is here.
        onward: Option<Peer>,
    },
    /// A claim that had to wait failed: refuse the stream for this reason.
    ClaimFailed {
        /// Whose.
        flow: Flow,
        /// Why.
        why: Reason,
    },
    /// Tell the next node over the link that the flow is given up (its [`Event::Aborted`]).
    AbortOnward {
        /// Whose.
        flow: Flow,
        /// Whom to tell.
        next: Peer,
        /// The sequence number of this node's own SYN: which attempt is meant.
        isn: u32,
    },
    /// Send a probe of this node's own to the server's address, on the port for separate probes. The outcome comes
    /// back as [`Event::Probed`].
    SendProbe {
        /// For connections to this server.
        server: SocketAddr,
        /// Where the probe goes.
        to: SocketAddr,
    },
    /// The proxy mapping table has changed; for whoever keeps or shows it.
    Learnt(PmtRow),
}

/// What the network said about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// No route to its network.
    Network,
    /// Nobody answers for its address.
    Host,
    /// Nobody listens there: what a rule says of a datagram.
    Port,
    /// Forbidden by somebody on the way.
    Prohibited,
}

/// Why a connect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectFailure {
    /// A reset came.
    Refused,
    /// The network said no.
    Unreachable(Unreachable),
    /// Nothing came.
    TimedOut,
    /// This node lacked something: a descriptor, the address, a permission.
    Local,
}

/// Why a peer did not open a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The server refused, and the client is to know.
    ServerRefused,
    /// The server cannot be reached, and the client is to know.
    ServerUnreachable(Unreachable),
    /// The server says nothing.
    ServerSilent,
    /// The peer has not seen the flow's SYN, and may carry it once it has.
    Unseen,
    /// The peer does not carry this flow now; that says nothing of its server.
    NotNow,
    /// The peer does not carry connections to this server.
    Peer,
    /// There is no link to the peer.
    NoLink,
}

/// What happened since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The socket of [`Output::Connect`] is connected.
    Connected {
        /// Whose.
        flow: Flow,
    },
    /// The socket of [`Output::Connect`] is not connected, and is closed.
    ConnectFailed {
        /// Whose.
        flow: Flow,
        /// Why.
        why: ConnectFailure,
    },
    /// The peer took the flow.
    Opened {
        /// Whose.
        flow: Flow,
    },
    /// The peer did not take the flow.
    Refused {
        /// Whose.
        flow: Flow,
        /// Why.
        why: Refusal,
    },
    /// A peer gives up a flow that this node answered.
    Aborted {
        /// Whose.
        flow: Flow,
        /// The number on the SYN that is meant, as [`Output::AbortOnward`] gave it.
        isn: u32,
    },
    /// The agent is done with the flow, in whichever role. Not to be said of one that was aborted, nor is anything else.
    Closed {
        /// Whose.
        flow: Flow,
    },
    /// A separate probe was answered (the answer's option), or refused (none).
    Probed {
        /// The server of [`Output::SendProbe`].
        server: SocketAddr,
        /// The answer.
        answer: Option<Response>,
    },
    /// An authenticated link to the peer stands.
    PeerUp {
        /// Who.
        peer: Peer,
    },
    /// No link to the peer stands any more.
    PeerDown {
        /// Who.
        peer: Peer,
    },
    /// The peer says that connections are to go past it, or no longer; its link stands.
    PeerAside {
        /// Who.
        peer: Peer,
        /// Past it.
        aside: bool,
    },
    /// Somebody is here who can carry connections.
    AgentUp,
    /// Nobody is here who could carry connections.
    AgentDown,
    /// The operator switches interception off, or on again.
    Bypass {
        /// Off.
        on: bool,
    },
}

/// The answer to a peer's wish to carry a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// The early connection is the peer's: its socket can be used.
    Early,
    /// This node is in the middle: open the flow on the link to that node and splice.
    Onward(Peer),
    /// The server is being asked; [`Output::ClaimReady`] or [`Output::ClaimFailed`] follows.
    Wait,
    /// No.
    Refused(Reason),
}
