//! Fuzz targets for everything that decodes octets of a stranger. A target is a function of octets that panics
//! when what a decoder says is *wrong*, not only when it crashes: each compares with a second reader, written
//! here for simplicity alone, or with what must hold of any input.
//!
//! One function, three drivers: the tests replay the committed corpora and mutate them for a bounded number of
//! rounds; the executable `fuzz` mutates for as long as it is told; `libfuzzer/` wraps the same functions for
//! coverage-guided search. A corpus file is named by what it shows.
#![allow(
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_used,
    reason = "a target reports by panicking, and a second reader is to be plain; what it does not name, it does not check"
)]

pub mod capability;
pub mod capture;
pub mod cbpf;
pub mod command;
pub mod control;
pub mod engine;
pub mod fetch_response;
pub mod framer;
pub mod guard;
pub mod kept;
pub mod link;
mod mutator;
pub mod opened;
pub mod packet_view;
pub mod probe;
pub mod response;
pub mod said;
pub mod sasl;
pub mod search_criteria;
pub mod segment;
pub mod sequence_set;
pub mod session;
pub mod slicer;
pub mod splice;
pub mod together;
mod tokens;
pub mod tracked;
pub mod views;

pub use mutator::{Mutator, Random};

use std::{fs, io, path::PathBuf};

/// A target: its name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("capability", capability::run),
    ("capture", capture::run),
    ("cbpf", cbpf::run),
    ("command", command::run),
    ("control", control::run),
    ("engine", engine::run),
    ("fetch_response", fetch_response::run),
    ("framer_client", framer::run_client),
    ("framer_server", framer::run_server),
    ("guard", guard::run),
    ("kept", kept::run),
    ("link_endpoint", link::run_pair),
    ("link_frame", link::run_frame),
    ("link_peer", link::run_peer),
    ("opened", opened::run),
    ("packet_view", packet_view::run),
    ("probe", probe::run),
    ("response", response::run),
    ("said", said::run),
    ("sasl", sasl::run),
    ("search_criteria", search_criteria::run),
    ("segment_files", segment::run_files),
    ("segment_records", segment::run_records),
    ("sequence_set", sequence_set::run),
    ("session", session::run),
    ("slicer", slicer::run),
    ("splice", splice::run),
    ("together", together::run),
    ("tracked", tracked::run),
    ("views", views::run),
];

/// The committed corpus of a target: names and octets, by name.
///
/// # Errors
/// When its folder cannot be read.
pub fn corpus(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "corpus", target].iter().collect();
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, fs::read(path)?));
    }
    files.sort();
    Ok(files)
}
