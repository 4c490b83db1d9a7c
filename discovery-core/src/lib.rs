//! Ids, exchanged values and std-only seams: what the rooms of Waypost say to each other.
//!
//! Nothing here does I/O, and nothing here knows a protocol. Rooms never name each other; they meet in the
//! values of [`value`] and in the traits of [`seam`], and the binary wires them together. The interception
//! engine (US 9,172,620, from 'The proxies in a proxy pair can become aware') grows beside them: [`flow`], [`probe`]
//! and [`rule`] are its words.

pub mod adopt;
pub mod candidates;
pub mod capture;
pub mod datagram;
pub mod deflector;
pub mod dry;
pub mod engine;
pub mod flow;
pub mod id;
pub mod look;
mod lru;
pub mod mutants;
pub mod now;
mod octets;
pub mod packet;
pub mod pmt;
pub mod probe;
pub mod reason;
pub mod rule;
pub mod seam;
pub mod value;
