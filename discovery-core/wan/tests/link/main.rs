//! Two nodes on loopback.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]

mod admission;
mod meeting;
mod outage;
mod pacing;
mod streams;
#[allow(dead_code, reason = "what it does not use, the other tests do")]
mod support;
