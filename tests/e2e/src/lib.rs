//! End-to-end scenarios: real servers and clients in the lab, the executable as a black box.
//!
//! `registry` has one row for each scenario; `runner` runs them, each in a lab of its own; `site` is what most of
//! them stand on: a lab with servers; `waypost` is the executable's process. Nothing of the product is linked.

mod arm;
mod case;
mod liar;
mod mail;
mod registry;
mod runner;
mod scenarios;
mod site;
mod waypost;

pub use runner::{Options, list, run};
