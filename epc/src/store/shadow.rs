//! Shadow comparison: our cut of a stored message against what the origin itself said (docs/decisions/0007). Runs
//! in the store's own thread, never while somebody waits.

use super::{
    body::BodyReader,
    head::{Head, Piece},
    resolve::{Resolver, Stored, StoredValue, header_key, number_list},
    scope::Scope,
    write::{Write, find_mailbox},
};
use bytes::Bytes;
use discovery_core::{
    id::ServerId,
    seam::blob::{BlobId, BlobReader},
};
use imap_core::{
    catalog::INLINE_OCTETS_MAX,
    item::{ItemClass, ItemKey, SectionClass},
    mime::header_fields,
    uid::Uid,
};
use rusqlite::params;

/// What a section is compared in.
enum Ours {
    Octets(Bytes),
    Range { id: BlobId, offset: u64, octets: u64 },
}

impl Resolver {
    /// Compares all recorded sections of a message with cuts of it.
    pub(super) fn compare(&self, scope: &Scope, uid: Uid) {
        let Ok(server) = ServerId::new(&scope.mailbox.server) else { return };
        if !self.index.trust.compares(&server) {
            return;
        }
        let Some(items) = self.index.read(|db| {
            let Some(mailbox) = find_mailbox(db, scope)? else { return Ok(Vec::new()) };
            let mut statement =
                db.prepare_cached("SELECT key FROM item WHERE mailbox = ? AND uid = ? LIMIT ?")?;
            let keys = statement.query_map(params![mailbox, uid.get(), SECTIONS_MAX], |row| row.get(0))?;
            let keys = keys.collect::<rusqlite::Result<Vec<i64>>>()?;
            Ok(keys.into_iter().filter_map(|key| self.index.keys.text(key)).collect())
        }) else {
            return;
        };
        let sections: Vec<(ItemKey, SectionClass)> = items
            .into_iter()
            .filter_map(|item: ItemKey| match item.class() {
                ItemClass::Section(class) => Some((item, class)),
                ItemClass::Uid | ItemClass::Dynamic | ItemClass::Fixed => None,
            })
            .collect();
        if sections.is_empty() {
            return;
        }
        // The whole is asked for as well, so that its place and head come along.
        let mut asked: Vec<ItemKey> = sections.iter().map(|(item, _)| item.clone()).collect();
        asked.push(ItemKey::whole());
        let Some(Some(mut found)) = self.index.read(|db| self.look_up(db, scope, &[uid], &asked)) else {
            return;
        };
        let Some(stored) = found.remove(&uid) else { return };
        for (item, class) in sections {
            if let Some((source, same)) = self.compare_one(&stored, &item) {
                let counters = &self.index.counters;
                if same {
                    counters.compared_same.one()
                } else {
                    counters.compared_different.one()
                }
                self.index.put(Write::Compared { server: server.clone(), class, source, key: item, same });
            }
        }
    }

    /// What the cut was made of, and whether it is what the origin said; `None` where there is nothing to compare.
    fn compare_one(&self, stored: &Stored, item: &ItemKey) -> Option<([u8; 32], bool)> {
        let theirs = stored.values.get(item)?;
        let (source, ours) = self.ours(stored, item)?;
        let same = match (theirs, ours) {
            (StoredValue::Octets(theirs), Ours::Octets(ours)) => *theirs == ours,
            (StoredValue::Octets(theirs), Ours::Range { id, offset, octets }) => {
                octets == theirs.len() as u64 && self.read(&id, offset, octets)? == *theirs
            }
            (StoredValue::Blob(theirs), Ours::Octets(ours)) => {
                let theirs = BodyReader::new(self.body(theirs)?);
                theirs.body_octets() == ours.len() as u64 && theirs.read_range(0, ours.len()).ok()? == ours
            }
            (StoredValue::Blob(theirs), Ours::Range { id, offset, octets }) => {
                let (theirs, ours) = (BodyReader::new(self.body(theirs)?), BodyReader::new(self.body(&id)?));
                theirs.body_octets() == octets && same_range(&theirs, &ours, offset, octets)?
            }
        };
        Some((source, same))
    }

    fn ours(&self, stored: &Stored, item: &ItemKey) -> Option<([u8; 32], Ours)> {
        if let Some(whole) = &stored.whole {
            let ours = match whole.head.as_ref()?.cut(item)? {
                Piece::Octets(octets) => Ours::Octets(octets),
                Piece::Range { offset, octets } => Ours::Range { id: whole.id, offset, octets },
                Piece::Fields { offset, octets, names, not } => {
                    let header = self.read(&whole.id, offset, octets)?;
                    Ours::Octets(header_fields(&header, &names, not).into())
                }
            };
            return Some((whole.id.0, ours));
        }
        match stored.values.get(&header_key())? {
            StoredValue::Octets(header) => {
                let fields = Head::of_header(header)?.cut_fields(item)?;
                Some((*blake3::hash(header).as_bytes(), Ours::Octets(fields)))
            }
            StoredValue::Blob(_) => None,
        }
    }

    /// A message of this mailbox and sections of it that are worth asking the origin for.
    pub(super) fn wanted(&self, server: &ServerId, scope: &Scope) -> Option<(Uid, Vec<ItemKey>)> {
        let classes = [
            SectionClass::Header,
            SectionClass::HeaderFields,
            SectionClass::Text,
            SectionClass::Part,
            SectionClass::Mime,
        ];
        let wanted: Vec<SectionClass> =
            classes.into_iter().filter(|class| self.index.trust.wants(server, *class)).collect();
        if wanted.is_empty() || !self.index.settle_mailbox(&scope.mailbox) {
            return None;
        }
        let specs: Vec<ItemKey> = SPECS.iter().map(|spec| ItemKey::from_normalised(spec)).collect();
        let of_class = |item: &&ItemKey| match item.class() {
            ItemClass::Section(class) => wanted.contains(&class),
            ItemClass::Uid | ItemClass::Dynamic | ItemClass::Fixed => false,
        };
        let specs: Vec<ItemKey> = specs.iter().filter(of_class).cloned().collect();
        let asked_before = number_list(specs.iter().filter_map(|item| self.index.keys.get(item)));
        let uids = self.index.read(|db| {
            let Some(mailbox) = find_mailbox(db, scope)? else { return Ok(Vec::new()) };
            let sql = "SELECT uid FROM msg WHERE mailbox = ? AND blob IS NOT NULL AND proof = 0
                AND NOT EXISTS(SELECT 1 FROM item i WHERE i.mailbox = msg.mailbox AND i.uid = msg.uid
                AND i.key IN (SELECT value FROM json_each(?))) ORDER BY uid DESC LIMIT ?";
            let mut statement = db.prepare_cached(sql)?;
            let uids =
                statement.query_map(params![mailbox, asked_before, CANDIDATES_MAX], |row| row.get(0))?;
            Ok(uids.collect::<rusqlite::Result<Vec<u32>>>()?.into_iter().filter_map(Uid::new).collect())
        })?;
        let found = self.index.read(|db| self.look_up(db, scope, &uids, &specs))??;
        uids.into_iter().find_map(|uid| {
            let stored = found.get(&uid)?;
            let head = stored.whole.as_ref()?.head.as_ref()?;
            let mut octets = 0;
            let sections: Vec<ItemKey> = specs
                .iter()
                .filter(|item| !stored.values.contains_key(*item))
                .filter(|item| {
                    let cost = match head.cut(item) {
                        Some(Piece::Octets(octets)) => octets.len() as u64,
                        Some(Piece::Range { octets, .. } | Piece::Fields { octets, .. }) => octets,
                        None => return false,
                    };
                    let fits = octets + cost <= WANTED_OCTETS_MAX;
                    octets += if fits { cost } else { 0 };
                    fits
                })
                .cloned()
                .collect();
            (!sections.is_empty()).then_some((uid, sections))
        })
    }
}

/// Whether all of `theirs` is the range of `ours`.
fn same_range(theirs: &BodyReader, ours: &BodyReader, offset: u64, octets: u64) -> Option<bool> {
    let mut done = 0;
    let (mut one, mut two) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    while done < octets {
        let read = theirs.read_at(done, &mut one).ok()?;
        let piece = one.get(..read).filter(|piece| !piece.is_empty())?;
        let mut same = 0;
        while same < read {
            let again = ours.read_at(offset + done + same as u64, two.get_mut(..read - same)?).ok()?;
            if again == 0 || piece.get(same..same + again) != two.get(..again) {
                return Some(false);
            }
            same += again;
        }
        done += read as u64;
    }
    Some(true)
}

/// What is asked for: each class, where messages usually have it.
const SPECS: [&str; 11] = [
    "BODY[HEADER]",
    "BODY[HEADER.FIELDS (CC DATE FROM MESSAGE-ID SUBJECT TO)]",
    "BODY[HEADER.FIELDS.NOT (RECEIVED)]",
    "BODY[TEXT]",
    "BODY[1]",
    "BODY[1.MIME]",
    "BODY[1.1]",
    "BODY[1.2.MIME]",
    "BODY[2]",
    "BODY[2.MIME]",
    "BODY[3]",
];

/// Messages looked at for one answer.
const CANDIDATES_MAX: i64 = 64;

/// Octets that one comparison may cost on the wide-area hop.
const WANTED_OCTETS_MAX: u64 = INLINE_OCTETS_MAX / 2;

/// Sections of one message that are compared; a message with more is no ordinary one.
const SECTIONS_MAX: i64 = 256;
