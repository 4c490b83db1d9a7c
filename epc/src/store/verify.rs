//! Reads everything and checks it, so that damage is found before somebody asks.

use super::{
    Store, columns,
    index::Index,
    scope::{NameScope, Place, Scope},
    write::{BINDING, ITEM, Write},
};
use discovery_core::seam::{
    blob::BlobStore,
    sealer::{SealContext, Tampered},
};
use imap_core::{item::ItemKey, uid::Uid};
use rusqlite::{Connection, Row, params};
use std::{collections::BTreeMap, sync::Arc};

/// What a verification found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bodies read.
    pub bodies: u64,
    /// Octets of bodies read.
    pub octets: u64,
    /// Bodies that were damaged and taken away.
    pub corrupt: u64,
    /// Values and bindings of the index read.
    pub rows: u64,
    /// Of these damaged; everything known of their messages was removed.
    pub damaged_rows: u64,
    /// Whether everything was read within the budget.
    pub complete: bool,
}

impl Store {
    /// Reads and checks bodies, at most about `budget` octets, and then the index; the next call goes on where this
    /// one ended. What is damaged is taken away.
    #[must_use]
    pub fn verify(&self, budget: u64) -> VerifyReport {
        self.flush();
        let bodies = self.bodies.verify(budget);
        if bodies.corrupt > 0 {
            // Rows of what was taken away.
            let _ = self.gc();
        }
        let mut report = VerifyReport {
            bodies: bodies.bodies,
            octets: bodies.octets,
            corrupt: bodies.corrupt,
            complete: bodies.complete,
            ..VerifyReport::default()
        };
        if bodies.complete {
            report.complete = verify_rows(&self.index, &mut report);
        }
        report
    }
}

/// Where a row stands: mailbox, UID, item key.
type Position = (i64, i64, i64);

/// Goes through all values and bindings; `false` when the index cannot be read.
fn verify_rows(index: &Index, report: &mut VerifyReport) -> bool {
    let mut damaged: BTreeMap<Scope, Vec<Uid>> = BTreeMap::new();
    for sql in [ITEMS, BINDINGS] {
        let mut at: Position = (0, 0, -1);
        loop {
            let Some(found) = index.read(|db| slice(index, db, sql, at)) else { return false };
            let Some((last, _, _)) = found.last() else { break };
            at = *last;
            report.rows += found.len() as u64;
            for (_, place, outcome) in found {
                if let (Err(Tampered), Some((scope, uid))) = (outcome, place) {
                    report.damaged_rows += 1;
                    damaged.entry(scope).or_default().push(uid);
                }
            }
        }
    }
    index.counters.corrupt.add(report.damaged_rows);
    for (scope, uids) in damaged {
        index.put(Write::Expunged { scope, uids });
    }
    index.settle();
    true
}

type Checked = (Position, Option<(Scope, Uid)>, Result<(), Tampered>);

fn slice(index: &Index, db: &Connection, sql: &str, after: Position) -> rusqlite::Result<Vec<Checked>> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(params![after.0, after.1, after.2, SLICE], |row| check(index, row))?;
    rows.collect()
}

fn check(index: &Index, row: &Row<'_>) -> rusqlite::Result<Checked> {
    let position = (row.get(0)?, row.get(1)?, row.get(2)?);
    let damaged = Ok((position, None, Err(Tampered)));
    let server = row.get_ref(6)?.as_str().ok().map(Arc::from);
    let (Some(server), Some(user), Some(name)) = (server, columns::exact(row, 7), columns::exact(row, 8))
    else {
        return damaged;
    };
    let mailbox = NameScope { server, user, name };
    let Some(uid_validity) = columns::number(row, 9) else { return damaged };
    let scope = Scope { mailbox, uid_validity, utf8: columns::number(row, 10) == Some(1) };
    let uid = u32::try_from(position.1).ok().and_then(Uid::new);
    let key = if position.2 < 0 { Some(ItemKey::whole()) } else { index.keys.text(position.2) };
    let (Some(uid), Some(key)) = (uid, key) else { return damaged };
    let place = Place::of(&scope.place(), uid, &key);
    let kind = if columns::number(row, 4) == Some(1) { BINDING } else { ITEM };
    let block = columns::number(row, 3).unwrap_or(u64::MAX);
    let mut value = columns::octets(row, 5);
    let outcome = index.sealer.unseal(SealContext { kind, place: &place, block }, &mut value);
    Ok((position, Some((scope, uid)), outcome))
}

const ITEMS: &str = "SELECT i.mailbox, i.uid, i.key, i.proof, i.blob IS NOT NULL, i.value,
        a.server, a.user, m.name, m.uid_validity, m.utf8
    FROM item i JOIN mailbox m ON m.id = i.mailbox JOIN account a ON a.id = m.account
    WHERE (i.mailbox, i.uid, i.key) > (?1, ?2, ?3) ORDER BY i.mailbox, i.uid, i.key LIMIT ?4";

const BINDINGS: &str = "SELECT s.mailbox, s.uid, -1, s.proof, 1, coalesce(s.seal, x''),
        a.server, a.user, m.name, m.uid_validity, m.utf8
    FROM msg s JOIN mailbox m ON m.id = s.mailbox JOIN account a ON a.id = m.account
    WHERE s.blob IS NOT NULL AND (s.mailbox, s.uid, -1) > (?1, ?2, ?3) ORDER BY s.mailbox, s.uid LIMIT ?4";

/// Rows read in one snapshot, so that checkpoints are not held up for long.
const SLICE: i64 = 1000;
