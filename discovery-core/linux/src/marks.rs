//! The bits of a packet's mark by which rules, routes and sockets recognise each other.

/// Deliver to a local socket: the policy route looks at this bit alone.
pub const DELIVER: u32 = 0x1;
/// Hand to the transparent listener. An original SYN that is given to the own stack carries both: see [`INJECTED`].
pub const TPROXY: u32 = 0x2;
/// An original SYN on its way to the own stack over the loopback device.
pub const INJECTED: u32 = DELIVER | TPROXY;
/// A packet made here in somebody else's name: a SYN-ACK that answers a probe, a reset. Not tracked by conntrack.
pub const FORGED: u32 = 0x10;
/// A connection of ours with the client's address. Its SYN is queued on the way out, to get the probe option.
pub const OWN_CONNECT: u32 = 0x20;
/// The same to a server on this very machine: bit 0 routes it over the loopback device.
pub const OWN_CONNECT_HERE: u32 = OWN_CONNECT | DELIVER;
/// A plain SYN of a connection that was opened early a moment ago; set and read by rules alone.
pub const YOUNG: u32 = 0x40;
/// A datagram of which no earlier one passed; set and read by rules alone.
pub const BEGINS: u32 = 0x100;
/// What the queue says of such a datagram: it passes, and what follows it does. One that came by the queue unseen, or too
/// late, goes on without it.
pub const PASSED: u32 = 0x4000;
/// A packet of a connection that a deflector has given to a proxy; set and read by rules alone.
pub const TURNED: u32 = 0x200;
/// A packet by which the kernel is told such a connection's addresses. It never leaves.
pub const PRIMER: u32 = 0x400;
/// A packet of a connection whose SYN was not seen here, on its way to the queue; set and read by rules alone.
pub const EXISTING: u32 = 0x800;
/// What the queue says of such a connection: it is known from now on, and its packets are of no interest.
pub const SETTLED: u32 = 0x1000;
/// The same: from now on every packet of it comes to the queue, in both directions, and with this mark.
pub const WATCHED: u32 = 0x2000;
/// A packet by which the kernel is told of such a connection before one of its own comes. It never leaves: where the rules
/// are out, its mark routes it to this machine itself, which has no use for it.
pub const ASKED: u32 = WATCHED | DELIVER;
/// Our own traffic that nobody may touch, the link's connections above all. Without it a node that takes the
/// machine's own connections would intercept its own link.
pub const ALONE: u32 = 0x80;
