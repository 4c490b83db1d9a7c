//! The table as plain values, and back: for whoever keeps it over a restart or shows it.

use super::*;

impl Pmt {
    /// Every entry that is still believed, the operator's first.
    #[must_use]
    pub fn rows(&self, now: Now) -> Vec<PmtRow> {
        let wall = |until: Instant| Some(now.wall.plus(until.saturating_duration_since(now.mono)));
        let statics = self.config.statics.iter().map(|s| PmtRow {
            place: Place::Network(s.network, s.port),
            known: Known::Static(s.peer),
            until: None,
            ttl: Duration::ZERO,
            flaps: 0,
        });
        let networks =
            self.networks.iter().filter(|(_, until)| **until > now.mono).map(|(network, until)| PmtRow {
                place: Place::Network(*network, None),
                known: Known::Asymmetric,
                until: wall(*until),
                ttl: self.config.obstacle_ttl,
                flaps: 0,
            });
        let servers = self.servers.iter().filter(|(_, e)| e.until > now.mono).filter_map(|(server, e)| {
            Some(PmtRow {
                place: Place::Server(*server),
                known: e.known?,
                until: wall(e.until),
                ttl: e.ttl,
                flaps: e.flaps,
            })
        });
        statics.chain(networks).chain(servers).collect()
    }

    /// Takes back rows that an earlier process kept. Those whose time is over are left out, and no row lives longer
    /// than it would have if it had just been learnt: a clock that was set back prolongs nothing. That nobody stands before
    /// a server is not believed of an earlier process, which may have been alone: the next SYN asks, and that costs nothing.
    pub fn restore(&mut self, now: Now, rows: &[PmtRow]) {
        for row in rows {
            let left = row.until.map_or(Duration::ZERO, |until| until.since(now.wall));
            if left.is_zero() {
                continue;
            }
            match (row.place, row.known) {
                (Place::Network(network, None), Known::Asymmetric) => {
                    self.networks.insert(network, now.mono + left.min(self.config.obstacle_ttl));
                }
                (
                    Place::Server(server),
                    Known::Peer(_) | Known::NoProxy | Known::OptionDropped | Known::Asymmetric,
                ) => {
                    let ttl = row.ttl.min(self.ttl_max(row.known)).max(Duration::from_millis(1));
                    let entry = self.entry(now.mono, server);
                    (entry.known, entry.ttl, entry.flaps) = (Some(row.known), ttl, row.flaps);
                    entry.until = now.mono + left.min(ttl);
                    if row.known == Known::NoProxy && !crate::mutants::on("pmt-absence-kept") {
                        entry.until = now.mono;
                    }
                }
                // What the operator names comes from the configuration only.
                (Place::Server(_) | Place::Network(..), _) => {}
            }
        }
    }
}
