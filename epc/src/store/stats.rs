//! What the store can say about itself.

use super::{Store, trust::TrustTally};
use discovery_core::id::ServerId;
use imap_core::item::SectionClass;
use std::collections::BTreeMap;

/// Figures of a store. Counts of events are since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Whether bodies and values are encrypted.
    pub sealed: bool,
    /// Bodies, each once, however many have it.
    pub bodies: u64,
    /// Octets of their content.
    pub octets: u64,
    /// Octets that bodies' files and the index take.
    pub disk_octets: u64,
    /// The cap of that.
    pub size_max: u64,
    /// Messages of which anything is known, counted for each account.
    pub messages: u64,
    /// Values of messages, bodies aside.
    pub values: u64,
    /// Accounts.
    pub accounts: u64,
    /// Mailboxes.
    pub mailboxes: u64,
    /// Values given.
    pub hits: u64,
    /// Values asked for and not given.
    pub misses: u64,
    /// Bodies and values that were not what had been written.
    pub corrupt: u64,
    /// Bodies whose file was not there.
    pub lost: u64,
    /// Bodies removed to make room.
    pub evicted: u64,
    /// Messages' rows removed to make room.
    pub evicted_rows: u64,
    /// Messages for which the origin sent other octets than before.
    pub changed: u64,
    /// Batches and questions that the index could not do.
    pub index_failures: u64,
    /// Reads, writes and syncs of bodies that failed.
    pub disk_failures: u64,
    /// What became of sections on their way in.
    pub fills: FillStats,
    /// Cuts that were what the origin said.
    pub compared_same: u64,
    /// Cuts that were not.
    pub compared_different: u64,
    /// What was found of each server's sections, by class.
    pub trust: BTreeMap<(ServerId, SectionClass), TrustTally>,
}

/// What became of sections on their way in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillStats {
    /// Came in full and were stored.
    pub stored: u64,
    /// Ended early by the session.
    pub aborted: u64,
    /// Ended with more or fewer octets than announced.
    pub wrong_length: u64,
    /// Not begun: no room, or too many at once.
    pub refused: u64,
    /// Begun, and not kept because the disk failed or was full.
    pub failed: u64,
    /// For a mailbox generation that had gone meanwhile.
    pub stale: u64,
}

impl Store {
    /// Figures of now.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let rows = self.index.read(|db| {
            let number = |sql: &str| -> rusqlite::Result<u64> {
                let n: i64 = db.query_row(sql, [], |row| row.get(0))?;
                Ok(u64::try_from(n).unwrap_or(0))
            };
            Ok(StoreStats {
                bodies: number("SELECT count(*) FROM blob")?,
                octets: number("SELECT CAST(total(octets) AS INTEGER) FROM blob")?,
                messages: number("SELECT count(*) FROM msg WHERE mailbox IN (SELECT id FROM mailbox)")?,
                values: number("SELECT count(*) FROM item WHERE mailbox IN (SELECT id FROM mailbox)")?,
                accounts: number("SELECT count(*) FROM account")?,
                mailboxes: number("SELECT count(*) FROM mailbox")?,
                ..StoreStats::default()
            })
        });
        let counters = &self.counters;
        StoreStats {
            sealed: self.index.sealer.seals(),
            disk_octets: self.room.all(),
            size_max: self.room.size_max,
            hits: counters.hits.get(),
            misses: counters.misses.get(),
            corrupt: counters.corrupt.get(),
            lost: counters.lost.get(),
            evicted: counters.evicted.get(),
            evicted_rows: counters.evicted_rows.get(),
            changed: counters.changed.get(),
            index_failures: counters.index_failures.get(),
            disk_failures: counters.disk_failures.get(),
            fills: FillStats {
                stored: counters.fills_stored.get(),
                aborted: counters.fills_aborted.get(),
                wrong_length: counters.fills_wrong_length.get(),
                refused: counters.fills_refused.get(),
                failed: counters.fills_failed.get(),
                stale: counters.fills_stale.get(),
            },
            compared_same: counters.compared_same.get(),
            compared_different: counters.compared_different.get(),
            trust: self.index.trust.all(),
            ..rows.unwrap_or_default()
        }
    }
}
