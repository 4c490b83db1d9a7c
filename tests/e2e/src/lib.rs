//! End-to-end scenarios: real servers and clients in the lab, the executable as a black box.
//!
//! `registry` has one row for each scenario; `runner` runs them, each in a lab of its own; `site` is what most of
//! them stand on: a lab with servers; `waypost` is the executable's process; `crowd` is a server and clients by script
//! for thousands at once, for the benches too; `pair` is two nodes on a path, for the benches too. Nothing of the product is linked.

mod arm;
mod case;
pub mod crowd;
pub mod kills;
mod liar;
mod mail;
pub mod pair;
mod path;
mod registry;
mod runner;
mod scenarios;
mod site;
mod starts;
mod waypost;

pub use runner::{Options, list, run};
pub use starts::{Start, print_starts, starts};
