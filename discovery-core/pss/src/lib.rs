//! The persistent segment store (US 9,172,620, the PSS passages): the octets that crossed the WAN once, in log files of
//! 64 MiB, found again by address (what a peer calls them) and by anchor (what they look like).
//!
//! ```text
//!   space, address ──► virtual log ──► place ──► log file, record ──► octets, verified
//!                          ▲             ▲
//!   other space ───────────┘             └── anchor index (8 octets a chunk) ◄── hash of a chunk
//! ```
//!
//! It may forget and never lies: whatever is read is verified against what was written under that address, and what does
//! not verify is forgotten and reported. It knows nothing of connections, frames or chunking. The time comes as
//! an argument, the disk through [`discovery_core::seam::disk`]. Formats: `layout.rs`, `record.rs`, `book.rs`;
//! why they are so: decisions/0045 and 0046.

mod book;
mod cache;
mod index;
mod layout;
mod lineage;
mod place;
mod reading;
mod record;
mod store;
mod virtual_log;
mod writing;

pub use discovery_core::mutants;
pub use layout::{Layout, Placed, StoreId, decode_records, encode_records};
pub use lineage::{Mark, Meeting, judge};
pub use place::{Anchor, Generation, Interval, Place, Space};
pub use record::{Alias, FileTag, Part, Record};
pub use store::{Eviction, Lost, OpenError, Refused, Settings, Status, Store, Unreadable};

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod store_tests;
