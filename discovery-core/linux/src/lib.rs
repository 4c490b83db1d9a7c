//! The shell under the interception engine: what moves packets, rules and sockets on Linux, and decides nothing.
//!
//! ```text
//!   nftables / iptables-nft ──SYN, SYN-ACK──> queue ──> (engine) ──verdict──> queue
//!   rules: who is queued, what is delivered here       └──> socket: raw, transparent, listener
//!   broker: transparent sockets for a process without rights
//!   supervisor: rules out when nobody is at work
//! ```
//! Every failure here ends in traffic that flows as if nothing of this were installed: queues are bypassed when
//! nobody reads them, rules match only sockets that exist, and the supervisor removes what its dead left behind.
//!
//! The process that has these rights is not the one that carries connections: see `worker`.
//!
//! The only unsafe code is in `sys`.

pub mod broker;
pub mod conntrack;
pub mod deflect;
pub mod marks;
pub mod netd;
pub mod queue;
pub mod repair;
pub mod rules;
pub mod socket;
pub mod supervisor;
mod sys;
pub mod tcp_info;
pub mod worker;
