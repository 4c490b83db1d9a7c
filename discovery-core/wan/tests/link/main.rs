//! Two nodes on loopback.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]

mod admission;
mod figures;
mod outage;
mod streams;
mod support;
