//! The process that carries connections and has no rights, and how the packet loop's process (netd) speaks with it.
//!
//! ```text
//!  netd, which has the rights                 worker, which has none
//!  Netd ─order─> RemoteAgent ═══seqpacket═══> ToNetd ─> Agent
//!       <─event, claim, beat─┘ <══════════════   └──── tell, claim, beat
//! ```
//! Orders and words are a message each, sockets beside them. What the worker says is untrusted: it may tell of flows what
//! an agent may tell, and nothing else.

mod agent;
mod channel;
mod upstream;
mod words;

pub use agent::{Heard, RemoteAgent, Wishes, Word};
pub use channel::pair;
pub use upstream::{Came, ToNetd};
pub use words::{Notice, decode_said};
