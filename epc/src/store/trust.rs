//! Which classes of section may be cut from a stored message, per server (docs/decisions/0007).

use super::{bodies::lock, columns};
use discovery_core::{
    id::ServerId,
    seam::sealer::{SealContext, Sealer},
};
use imap_core::{item::SectionClass, mutants};
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

/// So many equal comparisons, and none that differs, make a class trusted.
pub(super) const SAME_MIN: u64 = 200;

/// After so many cuts of a trusted class, one more is compared.
const SAMPLE_EVERY: u64 = 1000;

/// What was found for one server and class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrustTally {
    /// Comparisons that were equal.
    pub same: u64,
    /// Comparisons that were not. One is enough: the class is then cut for this server no more.
    pub different: u64,
    /// Cuts served since the last comparison.
    pub cut: u64,
}

impl TrustTally {
    /// Whether sections of the class are cut.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.different == 0 && self.same >= SAME_MIN
    }

    /// For a row: both numbers, sealed.
    pub(super) fn seal(&self, sealer: &dyn Sealer, server: &ServerId, class: SectionClass) -> Vec<u8> {
        let mut out = [self.same.to_be_bytes(), self.different.to_be_bytes()].concat();
        sealer.seal(context(server, class), &mut out);
        out
    }

    fn unseal(
        sealer: &dyn Sealer,
        server: &ServerId,
        class: SectionClass,
        mut sealed: Vec<u8>,
    ) -> Option<Self> {
        sealer.unseal(context(server, class), &mut sealed).ok()?;
        let (same, different) = sealed.split_first_chunk::<8>()?;
        let (same, different) = (*same, different.try_into().ok()?);
        Some(Self { same: u64::from_be_bytes(same), different: u64::from_be_bytes(different), cut: 0 })
    }
}

fn context(server: &ServerId, class: SectionClass) -> SealContext<'_> {
    SealContext { kind: "trust", place: server.as_str().as_bytes(), block: class_number(class).into() }
}

pub(super) struct Trust {
    shadow: BTreeMap<ServerId, bool>,
    tallies: Mutex<HashMap<(ServerId, SectionClass), TrustTally>>,
}

impl Trust {
    pub(super) fn new(shadow: BTreeMap<ServerId, bool>) -> Self {
        Self { shadow, tallies: Mutex::default() }
    }

    /// What the index has.
    pub(super) fn load(&self, db: &Connection, sealer: &dyn Sealer) -> rusqlite::Result<()> {
        let mut statement = db.prepare("SELECT server, class, tally FROM trust")?;
        let mut rows = statement.query([])?;
        let mut loaded = HashMap::new();
        while let Some(row) = rows.next()? {
            let server = row.get_ref(0)?.as_str().ok().and_then(|name| ServerId::new(name).ok());
            let class = columns::number(row, 1).and_then(class_of);
            if let (Some(server), Some(class)) = (server, class)
                && let Some(tally) = TrustTally::unseal(sealer, &server, class, columns::octets(row, 2))
            {
                loaded.insert((server, class), tally);
            }
        }
        *lock(&self.tallies) = loaded;
        Ok(())
    }

    /// Whether cuts are compared with what this server says.
    pub(super) fn compares(&self, server: &ServerId) -> bool {
        self.shadow.get(server).copied().unwrap_or(true)
    }

    /// Whether a section of this class may be cut for this server.
    pub(super) fn may_cut(&self, server: &ServerId, class: SectionClass) -> bool {
        match class {
            SectionClass::Whole => true,
            SectionClass::Embedded => false,
            SectionClass::Header
            | SectionClass::HeaderFields
            | SectionClass::Text
            | SectionClass::Part
            | SectionClass::Mime => {
                !self.compares(server) || self.is_earned(server, class) || mutants::on("store-trust-unearned")
            }
        }
    }

    pub(super) fn is_earned(&self, server: &ServerId, class: SectionClass) -> bool {
        self.tally(server, class).is_trusted()
    }

    fn tally(&self, server: &ServerId, class: SectionClass) -> TrustTally {
        lock(&self.tallies).get(&(server.clone(), class)).copied().unwrap_or_default()
    }

    /// Counts a comparison; what was found so far.
    pub(super) fn count(&self, server: &ServerId, class: SectionClass, same: bool) -> TrustTally {
        let mut tallies = lock(&self.tallies);
        let tally = tallies.entry((server.clone(), class)).or_default();
        tally.cut = 0;
        if same {
            tally.same += 1;
            return *tally;
        }
        let first = tally.different == 0;
        tally.different += 1;
        let found = *tally;
        drop(tallies);
        if first {
            tracing::warn!(%server, ?class, "the origin's section is not the one cut here; cut no more for this server");
        }
        found
    }

    pub(super) fn served(&self, server: &ServerId, class: SectionClass, cuts: u64) {
        lock(&self.tallies).entry((server.clone(), class)).or_default().cut += cuts;
    }

    /// Whether one more comparison is worth its octets.
    pub(super) fn wants(&self, server: &ServerId, class: SectionClass) -> bool {
        let tally = self.tally(server, class);
        let undecided = !tally.is_trusted() || tally.cut >= SAMPLE_EVERY;
        self.compares(server) && tally.different == 0 && undecided && class_number(class) != 0
    }

    pub(super) fn all(&self) -> BTreeMap<(ServerId, SectionClass), TrustTally> {
        lock(&self.tallies).iter().map(|(key, tally)| (key.clone(), *tally)).collect()
    }
}

/// As rows hold it; 0 for the whole, which needs no trust.
pub(super) fn class_number(class: SectionClass) -> u8 {
    match class {
        SectionClass::Whole => 0,
        SectionClass::Header => 1,
        SectionClass::HeaderFields => 2,
        SectionClass::Text => 3,
        SectionClass::Part => 4,
        SectionClass::Mime => 5,
        SectionClass::Embedded => 6,
    }
}

fn class_of(number: u8) -> Option<SectionClass> {
    let classes = [
        SectionClass::Whole,
        SectionClass::Header,
        SectionClass::HeaderFields,
        SectionClass::Text,
        SectionClass::Part,
        SectionClass::Mime,
        SectionClass::Embedded,
    ];
    classes.into_iter().find(|class| class_number(*class) == number)
}
