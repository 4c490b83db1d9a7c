//! One node's decisions: it owns the sessions of its clients and drives them, in values.
//!
//! ```text
//!  Input ─► Node ─► Conversation ─► imap_core::session::Session
//!             └──── Output ◄───────────────┘
//! ```
//! No socket, file, clock, thread or chance of its own: the shell says what happened ([`Input`]) and at what time, then
//! drains [`Node::poll_output`], and comes back at [`Node::poll_timeout`]. The simulator (`tests/sim`) is such a shell.
//!
//! The decisions are those of the handlers of `epc`: who is turned away, when a side is read, what ends a session, in
//! which order its ends are closed, what a drain does. `docs/SIMULATOR.md` says what the two do not share yet.

mod conversation;
mod exchange;
mod flow;
mod planted;
mod router;

pub use exchange::{
    Arrival, ConnId, Count, Ended, Input, Limits, NoOrigin, NodeConfig, Order, Output, Preloads, ServerTerms,
};
pub use router::Node;
