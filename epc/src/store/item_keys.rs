//! Numbers for item keys: `BODY[HEADER.FIELDS (…)]` of a mail program is longer than many a value.

use super::{bodies::lock, columns};
use imap_core::item::ItemKey;
use rusqlite::{Connection, OptionalExtension, params};
use std::{collections::HashMap, sync::Mutex};

/// Clients name the header fields they like; beyond this many different lists, new ones are not kept.
const KEYS_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct ItemKeys {
    numbers: Mutex<HashMap<ItemKey, i64>>,
}

impl ItemKeys {
    /// What the index has.
    pub(super) fn load(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut rows = db.prepare("SELECT text, id FROM item_key")?;
        let rows = rows.query_map([], |row| {
            let text = row.get_ref(0)?.as_str().ok();
            Ok(text.map(ItemKey::from_normalised).zip(columns::number(row, 1)))
        })?;
        // A damaged one is nobody's any more.
        let loaded = rows.filter_map(Result::transpose).collect::<rusqlite::Result<HashMap<_, _>>>()?;
        *lock(&self.numbers) = loaded;
        Ok(())
    }

    /// The key's number, if anybody ever recorded such an item.
    pub(super) fn get(&self, key: &ItemKey) -> Option<i64> {
        lock(&self.numbers).get(key).copied()
    }

    pub(super) fn text(&self, number: i64) -> Option<ItemKey> {
        let numbers = lock(&self.numbers);
        numbers.iter().find(|(_, n)| **n == number).map(|(key, _)| key.clone())
    }

    /// The key's number, made where it is missing; `None` when there are too many. After a rollback: `load`.
    pub(super) fn make(&self, db: &Connection, key: &ItemKey) -> rusqlite::Result<Option<i64>> {
        if let Some(found) = self.get(key) {
            return Ok(Some(found));
        }
        let mut numbers = lock(&self.numbers);
        if numbers.len() >= KEYS_MAX {
            return Ok(None);
        }
        let sql = "INSERT INTO item_key(text) VALUES(?) ON CONFLICT DO NOTHING RETURNING id";
        let made = db.prepare_cached(sql)?.query_row(params![key.as_str()], |row| row.get(0)).optional()?;
        if let Some(made) = made {
            numbers.insert(key.clone(), made);
        }
        Ok(made)
    }
}
