//! Waypost.

#[allow(dead_code, unused_imports, reason = "the command line that reads it comes with the next commits")]
mod config;

fn main() {}
