//! Changes of the index, as values, and what each does to the tables.

use super::{
    columns,
    counters::Counters,
    head::Head,
    item_keys::ItemKeys,
    scope::{NameScope, Scope},
    trust::{Trust, class_number},
};
use bytes::Bytes;
use discovery_core::{
    id::ServerId,
    seam::{
        blob::{BlobId, BlobReader},
        sealer::{SealContext, Sealer},
    },
    value::Proof,
};
use imap_core::{
    item::{ItemKey, SectionClass},
    mutants,
    uid::Uid,
};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// One change.
pub(super) enum Write {
    Account {
        server: Arc<str>,
        user: [u8; 17],
        identity: Bytes,
    },
    Selected {
        scope: Scope,
    },
    Record {
        scope: Scope,
        uid: Uid,
        items: Vec<(ItemKey, Value)>,
        proof: Proof,
    },
    Expunged {
        scope: Scope,
        uids: Vec<Uid>,
    },
    Forget {
        mailbox: NameScope,
    },
    Used {
        scope: Scope,
        uids: Vec<Uid>,
    },
    BlobGone {
        id: BlobId,
    },
    Compared {
        server: ServerId,
        class: SectionClass,
        source: [u8; 32],
        key: ItemKey,
        same: bool,
    },
    /// Some rows of a generation that is no more.
    ClearRetired {
        mailbox: i64,
        rows: i64,
    },
    /// The messages used longest ago.
    EvictRows {
        rows: i64,
    },
    /// Bodies' rows that no message names.
    ForgetUnnamed,
}

/// What a row holds.
pub(super) enum Value {
    Octets(Bytes),
    Blob(StoredBlob),
}

/// A body that was just committed.
pub(super) struct StoredBlob {
    pub(super) id: BlobId,
    pub(super) octets: u64,
    pub(super) file_octets: u64,
    pub(super) head: Option<Head>,
    /// Keeps the body from being collected before its row is there.
    pub(super) _pin: Arc<dyn BlobReader>,
}

impl Write {
    /// The mailbox whose readers must see it.
    pub(super) fn mailbox(&self) -> Option<&NameScope> {
        match self {
            Self::Selected { scope } | Self::Record { scope, .. } | Self::Expunged { scope, .. } => {
                Some(&scope.mailbox)
            }
            Self::Forget { mailbox } => Some(mailbox),
            Self::Account { .. }
            | Self::Used { .. }
            | Self::BlobGone { .. }
            | Self::Compared { .. }
            | Self::ClearRetired { .. }
            | Self::EvictRows { .. }
            | Self::ForgetUnnamed => None,
        }
    }

    /// Whether losing it could show what must not be shown.
    pub(super) fn takes_away(&self) -> bool {
        match self {
            Self::Selected { .. } | Self::Expunged { .. } | Self::Forget { .. } => true,
            Self::Account { .. }
            | Self::Record { .. }
            | Self::Used { .. }
            | Self::BlobGone { .. }
            | Self::Compared { .. }
            | Self::ClearRetired { .. }
            | Self::EvictRows { .. }
            | Self::ForgetUnnamed => false,
        }
    }

    /// Memory that it holds while it waits, about.
    pub(super) fn octets(&self) -> usize {
        let values = match self {
            Self::Record { items, .. } => items
                .iter()
                .map(|(_, value)| match value {
                    Value::Octets(octets) => octets.len() + 200,
                    Value::Blob(blob) => blob.head.as_ref().map_or(0, |head| head.header.len()) + 500,
                })
                .sum(),
            Self::Expunged { uids, .. } | Self::Used { uids, .. } => uids.len() * size_of::<Uid>(),
            Self::Account { .. }
            | Self::Selected { .. }
            | Self::Forget { .. }
            | Self::BlobGone { .. }
            | Self::Compared { .. }
            | Self::ClearRetired { .. }
            | Self::EvictRows { .. }
            | Self::ForgetUnnamed => 0,
        };
        values + 300
    }
}

/// What the writer knows besides the tables.
pub(super) struct Writing<'a> {
    pub(super) sealer: &'a dyn Sealer,
    pub(super) keys: &'a ItemKeys,
    pub(super) trust: &'a Trust,
    pub(super) counters: &'a Counters,
    /// Seconds since 1970.
    pub(super) now: i64,
}

impl Writing<'_> {
    /// Does one change; whether sections of the message can be compared now.
    pub(super) fn apply(&self, db: &Connection, write: &Write) -> rusqlite::Result<bool> {
        match write {
            Write::Account { server, user, identity } => self.account(db, server, user, identity)?,
            Write::Selected { scope } => self.selected(db, scope)?,
            Write::Record { scope, uid, items, proof } => return self.record(db, scope, *uid, items, *proof),
            Write::Expunged { scope, uids } => {
                if let Some(mailbox) = find_mailbox(db, scope)? {
                    let mut items = db.prepare_cached("DELETE FROM item WHERE mailbox = ? AND uid = ?")?;
                    let mut msg = db.prepare_cached("DELETE FROM msg WHERE mailbox = ? AND uid = ?")?;
                    for uid in uids {
                        items.execute(params![mailbox, uid.get()])?;
                        msg.execute(params![mailbox, uid.get()])?;
                    }
                }
            }
            Write::Forget { mailbox } => {
                if let Some(account) = find_account(db, &mailbox.server, &mailbox.user)? {
                    retire(db, account, mailbox, None)?;
                }
            }
            Write::Used { scope, uids } => self.used(db, scope, uids)?,
            Write::BlobGone { id } => {
                let id = &id.0[..];
                db.prepare_cached("UPDATE msg SET blob = NULL, seal = NULL WHERE blob = ?")?.execute([id])?;
                db.prepare_cached("DELETE FROM item WHERE blob = ?")?.execute([id])?;
                db.prepare_cached("DELETE FROM blob WHERE id = ?")?.execute([id])?;
            }
            Write::Compared { server, class, source, key, same } => {
                self.compared(db, server, *class, source, key, *same)?;
            }
            Write::ClearRetired { mailbox, rows } => clear_retired(db, *mailbox, *rows)?,
            Write::EvictRows { rows } => self.counters.evicted_rows.add(evict_rows(db, *rows)?),
            Write::ForgetUnnamed => {
                // With those whose id is damaged.
                let sql = "DELETE FROM blob WHERE length(id) <> 32 OR NOT EXISTS(SELECT 1 FROM msg WHERE msg.blob = blob.id)
                    AND NOT EXISTS(SELECT 1 FROM item WHERE item.blob = blob.id)";
                db.prepare_cached(sql)?.execute([])?;
            }
        }
        Ok(false)
    }

    fn account(
        &self,
        db: &Connection,
        server: &str,
        user: &[u8; 17],
        identity: &[u8],
    ) -> rusqlite::Result<()> {
        let place = [server.as_bytes(), user].concat();
        let mut sealed = identity.to_vec();
        self.sealer.seal(SealContext { kind: "account", place: &place, block: 0 }, &mut sealed);
        let sql = "INSERT INTO account(server, user, identity) VALUES(?, ?, ?)
            ON CONFLICT DO UPDATE SET identity = excluded.identity";
        db.prepare_cached(sql)?.execute(params![server, &user[..], sealed])?;
        Ok(())
    }

    fn selected(&self, db: &Connection, scope: &Scope) -> rusqlite::Result<()> {
        let account = make_account(db, scope)?;
        retire(db, account, &scope.mailbox, Some(scope.uid_validity))?;
        make_mailbox(db, account, scope)
    }

    fn record(
        &self,
        db: &Connection,
        scope: &Scope,
        uid: Uid,
        items: &[(ItemKey, Value)],
        proof: Proof,
    ) -> rusqlite::Result<bool> {
        let Some(mailbox) = self.mailbox_for(db, scope)? else {
            // A session that still has the old generation open says what is true there, for nobody.
            self.counters.fills_stale.one();
            for (_, value) in items {
                if let Value::Blob(blob) = value {
                    // Its row is what finds the file when it goes.
                    self.blob(db, blob)?;
                }
            }
            return Ok(false);
        };
        let sql = "INSERT INTO msg(mailbox, uid, proof, used) VALUES(?, ?, ?, ?) ON CONFLICT DO UPDATE
            SET proof = CASE WHEN blob IS NULL THEN min(proof, excluded.proof) ELSE proof END, used = excluded.used";
        db.prepare_cached(sql)?.execute(params![mailbox, uid.get(), proof_number(proof), self.now])?;
        let place = scope.place();
        let mut sections = false;
        for (key, value) in items {
            if let Value::Blob(blob) = value {
                self.blob(db, blob)?;
            }
            let place = place.of(uid, key);
            match value {
                Value::Blob(blob) if *key == ItemKey::whole() => {
                    self.bind(db, mailbox, uid, &place, blob.id, proof)?;
                }
                Value::Blob(blob) => {
                    self.item(
                        db,
                        mailbox,
                        uid,
                        key,
                        proof,
                        Some(blob.id),
                        self.binding(&place, blob.id, proof),
                    )?;
                }
                Value::Octets(octets) => {
                    let mut sealed = octets.to_vec();
                    let block = proof_number(proof).into();
                    self.sealer.seal(SealContext { kind: ITEM, place: &place, block }, &mut sealed);
                    self.item(db, mailbox, uid, key, proof, None, sealed)?;
                }
            }
            sections |= key.section_spec().is_some();
        }
        Ok(sections && proof == Proof::Origin)
    }

    /// The mailbox's row, made where it is missing; `None` when another generation of it lives.
    fn mailbox_for(&self, db: &Connection, scope: &Scope) -> rusqlite::Result<Option<i64>> {
        if let Some(found) = find_mailbox(db, scope)? {
            return Ok(Some(found));
        }
        let account = make_account(db, scope)?;
        let sql = "SELECT 1 FROM mailbox WHERE account = ? AND name = ? AND uid_validity <> ?";
        let other =
            db.prepare_cached(sql)?.exists(params![account, &scope.mailbox.name[..], scope.uid_validity])?;
        if other && !mutants::on("store-stale-refilled") {
            return Ok(None);
        }
        make_mailbox(db, account, scope)?;
        find_mailbox(db, scope)
    }

    fn blob(&self, db: &Connection, blob: &StoredBlob) -> rusqlite::Result<()> {
        let head = blob.head.as_ref().map(|head| head.seal(self.sealer, &blob.id));
        let sql = "INSERT INTO blob(id, octets, file_octets, head, used) VALUES(?, ?, ?, ?, ?)
            ON CONFLICT(id) DO UPDATE SET head = coalesce(excluded.head, head), used = excluded.used";
        let (octets, file_octets) = (signed(blob.octets), signed(blob.file_octets));
        db.prepare_cached(sql)?.execute(params![&blob.id.0[..], octets, file_octets, head, self.now])?;
        Ok(())
    }

    /// Says that the message is this body.
    fn bind(
        &self,
        db: &Connection,
        mailbox: i64,
        uid: Uid,
        place: &[u8],
        id: BlobId,
        proof: Proof,
    ) -> rusqlite::Result<()> {
        let sql = "SELECT proof, blob FROM msg WHERE mailbox = ? AND uid = ? AND blob IS NOT NULL";
        let before: Option<(Option<i64>, Vec<u8>)> = db
            .prepare_cached(sql)?
            .query_row(params![mailbox, uid.get()], |row| {
                Ok((columns::number(row, 0), columns::octets(row, 1)))
            })
            .optional()?;
        if let Some((before_proof, before)) = before {
            let from_origin = before_proof == Some(i64::from(proof_number(Proof::Origin)));
            if from_origin && proof != Proof::Origin {
                return Ok(());
            }
            if from_origin && before != id.0 {
                // A message never changes (RFC 3501 §2.3.1.1); this server's does, so nothing said before holds.
                self.counters.changed.one();
                tracing::warn!("the origin sent other octets for a UID than before");
                db.prepare_cached("DELETE FROM item WHERE mailbox = ? AND uid = ?")?
                    .execute(params![mailbox, uid.get()])?;
            }
        }
        let seal = self.binding(place, id, proof);
        db.prepare_cached("UPDATE msg SET blob = ?, seal = ?, proof = ? WHERE mailbox = ? AND uid = ?")?
            .execute(params![&id.0[..], seal, proof_number(proof), mailbox, uid.get()])?;
        Ok(())
    }

    fn binding(&self, place: &[u8], id: BlobId, proof: Proof) -> Vec<u8> {
        let mut sealed = id.0.to_vec();
        let block = proof_number(proof).into();
        self.sealer.seal(SealContext { kind: BINDING, place, block }, &mut sealed);
        sealed
    }

    #[allow(clippy::too_many_arguments, reason = "one row, column by column")]
    fn item(
        &self,
        db: &Connection,
        mailbox: i64,
        uid: Uid,
        key: &ItemKey,
        proof: Proof,
        blob: Option<BlobId>,
        value: Vec<u8>,
    ) -> rusqlite::Result<()> {
        let Some(key) = self.keys.make(db, key)? else { return Ok(()) };
        // What nobody has confirmed never takes the place of what the origin said.
        let sql = "INSERT INTO item(mailbox, uid, key, proof, blob, value) VALUES(?, ?, ?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET proof = excluded.proof, blob = excluded.blob, value = excluded.value
            WHERE excluded.proof = 0 OR item.proof <> 0";
        let blob = blob.as_ref().map(|id| &id.0[..]);
        db.prepare_cached(sql)?.execute(params![
            mailbox,
            uid.get(),
            key,
            proof_number(proof),
            blob,
            value
        ])?;
        Ok(())
    }

    fn used(&self, db: &Connection, scope: &Scope, uids: &[Uid]) -> rusqlite::Result<()> {
        let Some(mailbox) = find_mailbox(db, scope)? else { return Ok(()) };
        let msg = "UPDATE msg SET used = ?, hits = hits + 1 WHERE mailbox = ? AND uid = ?";
        let mut msg = db.prepare_cached(msg)?;
        let blob = "UPDATE blob SET used = ?1, hits = hits + 1 WHERE id IN (
            SELECT blob FROM msg WHERE mailbox = ?2 AND uid = ?3 AND blob IS NOT NULL
            UNION ALL SELECT blob FROM item WHERE mailbox = ?2 AND uid = ?3 AND blob IS NOT NULL)";
        let mut blob = db.prepare_cached(blob)?;
        for uid in uids {
            msg.execute(params![self.now, mailbox, uid.get()])?;
            blob.execute(params![self.now, mailbox, uid.get()])?;
        }
        Ok(())
    }

    fn compared(
        &self,
        db: &Connection,
        server: &ServerId,
        class: SectionClass,
        source: &[u8; 32],
        key: &ItemKey,
        same: bool,
    ) -> rusqlite::Result<()> {
        let number = class_number(class);
        if same && !self.trust.is_earned(server, class) {
            let Some(key) = self.keys.make(db, key)? else { return Ok(()) };
            let sql = "INSERT OR IGNORE INTO comparison(server, class, source, key) VALUES(?, ?, ?, ?)";
            let new = db.prepare_cached(sql)?.execute(params![server.as_str(), number, &source[..], key])?;
            if new == 0 {
                return Ok(());
            }
        }
        let tally = self.trust.count(server, class, same).seal(self.sealer, server, class);
        let sql = "INSERT INTO trust(server, class, tally) VALUES(?, ?, ?)
            ON CONFLICT DO UPDATE SET tally = excluded.tally";
        db.prepare_cached(sql)?.execute(params![server.as_str(), number, tally])?;
        Ok(())
    }
}

/// All generations of a mailbox but this one are no more.
fn retire(db: &Connection, account: i64, mailbox: &NameScope, but: Option<u32>) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO retired SELECT id FROM mailbox
        WHERE account = ? AND name = ? AND uid_validity IS NOT ?";
    let gone = db.prepare_cached(sql)?.execute(params![account, &mailbox.name[..], but])?;
    if gone > 0 {
        db.prepare_cached("DELETE FROM mailbox WHERE account = ? AND name = ? AND uid_validity IS NOT ?")?
            .execute(params![account, &mailbox.name[..], but])?;
    }
    Ok(())
}

fn clear_retired(db: &Connection, mailbox: i64, rows: i64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM item WHERE mailbox = ?1
        AND uid IN (SELECT uid FROM msg WHERE mailbox = ?1 ORDER BY uid LIMIT ?2)";
    db.prepare_cached(sql)?.execute(params![mailbox, rows])?;
    let sql = "DELETE FROM msg WHERE mailbox = ?1
        AND uid IN (SELECT uid FROM msg WHERE mailbox = ?1 ORDER BY uid LIMIT ?2)";
    db.prepare_cached(sql)?.execute(params![mailbox, rows])?;
    let sql = "DELETE FROM retired WHERE mailbox = ?1 AND NOT EXISTS(SELECT 1 FROM msg WHERE mailbox = ?1)";
    db.prepare_cached(sql)?.execute(params![mailbox])?;
    Ok(())
}

fn evict_rows(db: &Connection, rows: i64) -> rusqlite::Result<u64> {
    let sql = "SELECT mailbox, uid FROM msg ORDER BY used LIMIT ?";
    let oldest = db
        .prepare_cached(sql)?
        .query_map([rows], |row| Ok(columns::number(row, 0).zip(columns::number(row, 1))))?
        .filter_map(Result::transpose)
        .collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
    for (mailbox, uid) in &oldest {
        db.prepare_cached("DELETE FROM item WHERE mailbox = ? AND uid = ?")?.execute([mailbox, uid])?;
        db.prepare_cached("DELETE FROM msg WHERE mailbox = ? AND uid = ?")?.execute([mailbox, uid])?;
    }
    Ok(oldest.len() as u64)
}

fn find_account(db: &Connection, server: &str, user: &[u8; 17]) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM account WHERE server = ? AND user = ?")?
        .query_row(params![server, &user[..]], |row| row.get(0))
        .optional()
}

fn make_account(db: &Connection, scope: &Scope) -> rusqlite::Result<i64> {
    let NameScope { server, user, .. } = &scope.mailbox;
    if let Some(found) = find_account(db, server, user)? {
        return Ok(found);
    }
    db.prepare_cached("INSERT INTO account(server, user) VALUES(?, ?)")?.insert(params![server, &user[..]])
}

fn make_mailbox(db: &Connection, account: i64, scope: &Scope) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO mailbox(account, name, uid_validity, utf8) VALUES(?, ?, ?, ?)";
    let Scope { mailbox, uid_validity, utf8 } = scope;
    db.prepare_cached(sql)?.execute(params![account, &mailbox.name[..], uid_validity, utf8])?;
    Ok(())
}

/// The row of a generation that lives.
pub(super) fn find_mailbox(db: &Connection, scope: &Scope) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT m.id FROM mailbox m JOIN account a ON a.id = m.account
        WHERE a.server = ? AND a.user = ? AND m.name = ? AND m.uid_validity = ? AND m.utf8 = ?";
    let Scope { mailbox: NameScope { server, user, name }, uid_validity, utf8 } = scope;
    db.prepare_cached(sql)?
        .query_row(params![server, &user[..], &name[..], uid_validity, utf8], |row| row.get(0))
        .optional()
}

/// As rows hold it.
pub(super) fn proof_number(proof: Proof) -> u8 {
    match proof {
        Proof::Origin => 0,
        Proof::Push => 1,
        Proof::Relay => 2,
    }
}

/// SQLite's integers are signed; no length of ours comes near the end of them.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The kinds under which values and bindings are sealed.
pub(super) const ITEM: &str = "item";
pub(super) const BINDING: &str = "binding";
