//! What is fetched ahead, as the node has it: the user affinity database, the gate, and a plan for each account.

use crate::{
    api::{Named, PreloadReport, PreloadRow},
    config::Config,
    keying::OrganisationKey,
};
use affinity_db::{
    gate::{Gate, GateSettings},
    ledger::Tally,
    policy::Policy,
    shell::{AffinityConfig, AffinityDb},
};
use cep::plan::{Plans, PlansAround};
use discovery_core::id::UserKey;
use std::{path::PathBuf, sync::Arc};

/// Everything that fetching ahead needs.
pub(crate) struct Prefetch {
    db: Arc<AffinityDb>,
    plans: Plans,
}

impl Prefetch {
    /// Opens it as configured; `None` where it is off, or its disk does not let us: people get their mail all the same.
    pub(crate) fn open(config: &Config, keying: &Arc<OrganisationKey>) -> Option<Self> {
        let set = config.prefetch;
        if !set.enabled {
            return None;
        }
        let mut affinity = AffinityConfig::new(directory(config));
        // Larger ones are left to their reader, whoever could fetch them.
        let whole = Policy::default().whole_octets_max.min(config.sustain.size_max.0);
        affinity.policy = Policy {
            day_octets_max: set.user_day_max.0,
            whole_octets_max: whole,
            certain_permille: NEVER,
            ..Policy::default()
        };
        let db = match AffinityDb::open(&affinity) {
            Ok(db) => Arc::new(db),
            Err(error) => {
                tracing::error!(%error, "habits are neither learned nor followed until the node is restarted");
                return None;
            }
        };
        let gate = Gate::new(GateSettings {
            rate: set.rate.octets(),
            server_day_octets_max: set.server_day_max.0,
            ..GateSettings::default()
        });
        let advisors = db.advisor();
        let plans = Plans::new(PlansAround {
            advisor: Arc::new(move || Box::new(advisors.clone())),
            ledger: Arc::new(db.ledger_of(config.node.site.clone())),
            gate: Arc::new(gate),
            keying: Arc::clone(keying) as Arc<_>,
        });
        Some(Self { db, plans })
    }

    /// The user affinity database.
    pub(crate) fn affinity(&self) -> Arc<AffinityDb> {
        Arc::clone(&self.db)
    }

    /// One for each session.
    pub(crate) fn plans(&self) -> &Plans {
        &self.plans
    }

    /// What came of it, of all users or of one.
    pub(crate) fn report(&self, of: Option<UserKey>) -> PreloadReport {
        let rows = self.db.ledger(|ledger| ledger.report());
        let rows = rows.into_iter().filter(|row| of.is_none_or(|user| row.user == user));
        let row = |row: affinity_db::ledger::Row| PreloadRow {
            user: row.user.to_string(),
            site: row.site.to_string(),
            opens: row.tally.opens,
            hits: row.tally.hits,
            fetched: row.tally.fetched,
            used: row.tally.used,
            wasted: row.tally.wasted,
            waiting: row.tally.waiting(),
        };
        PreloadReport { on: true, rows: rows.map(row).collect(), database: self.database() }
    }

    /// The same of everybody together.
    pub(crate) fn total(&self) -> Tally {
        let rows = self.db.ledger(|ledger| ledger.report());
        rows.iter().fold(Tally::default(), |sum, row| sum.plus(&row.tally))
    }

    /// Records of the user affinity database, and what became of changes since the start.
    pub(crate) fn database(&self) -> Vec<Named> {
        let stats = self.db.stats();
        let named = |word: &str, n| Named { word: word.to_owned(), n };
        vec![
            named("records", stats.records as u64),
            named("evicted", stats.evicted),
            named("dropped", stats.dropped),
            named("lost", stats.lost),
            named("written", stats.written),
        ]
    }
}

/// More than certain.
const NEVER: u64 = 1001;

/// Where the user affinity database is.
fn directory(config: &Config) -> PathBuf {
    config.node.state_dir.join("affinity")
}
