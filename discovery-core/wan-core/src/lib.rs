//! The link between two Waypost nodes, without its sockets (US 9,172,620, 'the proxies in a proxy pair'): what is
//! said on it ([`frame`], [`hello`]), the streams that it carries ([`Endpoint`]), and how fast it may speak
//! ([`pace`]).
//!
//! A connection between two nodes may break at any octet. A stream does not: both sides keep what the other has not
//! acknowledged, tell each other at the next connection how far they came, and go on from there (decisions/0023).
//!
//! ```text
//!   stream ──write──▶ Endpoint ══ frames ══ one connection per lane, or one for all ══ Endpoint ──read──▶ stream
//! ```

pub mod backoff;
mod buffer;
mod endpoint;
pub mod frame;
pub mod hello;
mod lane;
mod notice;
mod open;
pub mod pace;
#[cfg(any(test, feature = "pair"))]
pub mod pair;
mod reason;
mod stream;
mod stream_id;
pub mod varint;

pub use discovery_core::mutants;

pub use endpoint::{Admission, Config, ConnId, Counts, Endpoint, Gone, Output, Read};
pub use lane::{Lane, LaneSet};
pub use notice::{CANDIDATE_NETWORKS_MAX, CANDIDATES_MAX, Candidate, Candidates, NOTICE_OCTETS_MAX, Notice};
pub use open::{Kind, OpenFrame};
pub use reason::{Reason, Violation};
pub use stream_id::{Side, StreamId};
