//! A row of the result: one journey with one client in all three arms.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::arm::Arm;
use crate::measure::Acts;
use crate::stats::{self, Paired};
use crate::wire::{self, Values};

/// One journey with one client.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The journey, as docs/JOURNEYS.md names it.
    pub(crate) name: &'static str,
    /// The client.
    pub(crate) client: String,
    /// The arm that goes through Waypost.
    pub(crate) ours: Arm,
    /// What the store held and knew.
    pub(crate) warmth: &'static str,
    /// What filling the store cost over the WAN beforehand.
    pub(crate) filled_octets: u64,
    /// Acts discarded and done again because the emulator was late.
    pub(crate) repeated: usize,
    /// The acts of each arm; the nth of each arm is the same act.
    pub(crate) acts: BTreeMap<Arm, Acts>,
    /// What each arm's client was given.
    pub(crate) given: BTreeMap<Arm, Values>,
    /// What was found wrong while the journey ran.
    pub(crate) faults: Vec<String>,
    /// A stored octet was flipped on purpose: one act has to ask the server again.
    pub(crate) flipped: bool,
    /// What the pair carried was the server's own TLS.
    pub(crate) as_octets: bool,
    /// What a reader must know beside the figures.
    pub(crate) note: Option<String>,
}

impl Row {
    /// A row without acts.
    pub(crate) fn new(name: &'static str, client: &str, warmth: &'static str) -> Self {
        Self::of(Arm::ALL, Arm::Waypost, name, client, warmth)
    }

    /// One of a journey on a path.
    pub(crate) fn on_path(name: &'static str, client: &str, warmth: &'static str) -> Self {
        Self::of(Arm::ON_PATH, Arm::Pair, name, client, warmth)
    }

    fn of(arms: [Arm; 3], ours: Arm, name: &'static str, client: &str, warmth: &'static str) -> Self {
        Self {
            name,
            client: client.to_owned(),
            ours,
            warmth,
            filled_octets: 0,
            repeated: 0,
            acts: arms.into_iter().map(|arm| (arm, Acts::default())).collect(),
            given: arms.into_iter().map(|arm| (arm, Values::default())).collect(),
            faults: Vec::new(),
            flipped: false,
            as_octets: false,
            note: None,
        }
    }

    /// Acts in each arm.
    pub(crate) fn n(&self) -> usize {
        self.acts.values().map(|acts| acts.0.len()).min().unwrap_or(0)
    }

    /// The acts of an arm.
    pub(crate) fn acts(&self, arm: Arm) -> Acts {
        self.acts.get(&arm).cloned().unwrap_or_default()
    }

    /// Compares what the arms were given.
    pub(crate) fn comparison(&self) -> Comparison {
        let mut differing: Vec<String> = self.faults.clone();
        let digests: Vec<(Arm, BTreeMap<String, String>)> =
            self.given.iter().map(|(arm, values)| (*arm, all_of(values))).collect();
        for (arm, values) in &self.given {
            differing.extend(values.conflicts().iter().map(|key| format!("{}: {key} changed", arm.name())));
        }
        let keys: BTreeSet<&String> = digests.iter().flat_map(|(_, values)| values.keys()).collect();
        let mut hash = Sha256::new();
        for key in &keys {
            let found: Vec<Option<&String>> = digests.iter().map(|(_, values)| values.get(*key)).collect();
            let first = found.first().copied().flatten();
            if found.iter().any(|value| *value != first || value.is_none()) {
                let shown: Vec<String> = digests
                    .iter()
                    .map(|(arm, values)| {
                        let value =
                            values.get(*key).map_or("nothing", |value| value.get(..12).unwrap_or(value));
                        format!("{} {value}", arm.name())
                    })
                    .collect();
                differing.push(format!("{key}: {}", shown.join(", ")));
            }
            hash.update(format!("{key} {}\n", first.map_or("", String::as_str)));
        }
        if keys.is_empty() {
            differing.push("no client was given anything to compare".to_owned());
        }
        Comparison { values: keys.len(), differing, digest: wire::hex(&hash.finalize()) }
    }

    /// Ratios of the Waypost arm to another, act by act.
    pub(crate) fn ratio_to(&self, other: Arm) -> Paired {
        let (ours, theirs) = (self.acts(self.ours).seconds(), self.acts(other).seconds());
        let ratios: Vec<f64> =
            ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs.max(1e-9)).collect();
        stats::paired(&ratios)
    }

    /// Differences of the Waypost arm and another in seconds, act by act.
    pub(crate) fn difference_to(&self, other: Arm) -> Paired {
        let (ours, theirs) = (self.acts(self.ours).seconds(), self.acts(other).seconds());
        let differences: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
        stats::paired(&differences)
    }

    /// The row as it stands in the JSON. `paired` is Waypost minus direct in seconds.
    pub(crate) fn json(&self) -> Value {
        let comparison = self.comparison();
        let arm = |arm: Arm| {
            let acts = self.acts(arm);
            let (seconds, literals) = (acts.seconds(), acts.literal_seconds());
            json!({
                "median_s": round(stats::median(&seconds)),
                "p95_s": round(stats::quantile(&seconds, 0.95)),
                "spread_s": round(stats::spread(&seconds)),
                "round_trips": acts.round_trips(),
                "wan_bytes": acts.wan_octets(),
                "round_trips_max": acts.round_trips_max(),
                "last_literal_median_s": round(stats::median(&literals)),
            })
        };
        json!({
            "name": self.name,
            "n": self.n(),
            "client": self.client,
            "warmth": self.warmth,
            "identical": comparison.differing.is_empty(),
            "filled_bytes": self.filled_octets,
            "direct": arm(Arm::Direct),
            "lan": arm(Arm::Lan),
            "through": self.ours.name(),
            "waypost": arm(self.ours),
            "paired": rounded(self.difference_to(Arm::Direct)),
            "paired_lan": rounded(self.difference_to(Arm::Lan)),
            "ratio_direct": rounded(self.ratio_to(Arm::Direct)),
            "ratio_lan": rounded(self.ratio_to(Arm::Lan)),
            "repeated": self.repeated,
            "digest": comparison.digest,
            "values_compared": comparison.values,
            "differing": comparison.differing,
            "carried_as_octets": self.as_octets,
            "note": self.note,
        })
    }
}

/// What a comparison of the arms gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Values that were compared.
    pub(crate) values: usize,
    /// Those that are not the same everywhere, or that one arm lacks.
    pub(crate) differing: Vec<String>,
    /// SHA-256 over all values' digests.
    pub(crate) digest: String,
}

fn all_of(values: &Values) -> BTreeMap<String, String> {
    let mut all = values.digests();
    all.extend(values.flags().iter().map(|(key, flags)| (format!("{key}/final flags"), flags.clone())));
    all
}

fn rounded(paired: Paired) -> Value {
    json!({"median": round(paired.median), "lo": round(paired.lo), "hi": round(paired.hi)})
}

/// To microseconds: more digits would be noise.
fn round(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(literal: &[u8], other: &[u8]) -> Row {
        let mut row = Row::new("open-hit", "scripted", "warm");
        for arm in Arm::ALL {
            let octets = if arm == Arm::Waypost { other } else { literal };
            let stream = [b"* 1 FETCH (UID 1 BODY[] {3}\r\n", octets, b")\r\n"].concat();
            let mut values = Values::default();
            values.note("INBOX", &wire::response(&stream).unwrap()).unwrap();
            row.given.insert(arm, values);
        }
        row
    }

    #[test]
    fn equal_octets_are_identical_and_one_other_octet_is_not() {
        assert_eq!(row(b"abc", b"abc").comparison().differing, Vec::<String>::new());
        let differing = row(b"abc", b"abd").comparison().differing;
        assert!(differing.len() == 1 && differing[0].starts_with("INBOX/1/BODY[]: direct "), "{differing:?}");
    }

    #[test]
    fn nothing_given_is_not_identical_nor_is_a_value_that_one_arm_lacks() {
        assert_eq!(Row::new("open-hit", "scripted", "warm").comparison().differing.len(), 1);
        let mut row = row(b"abc", b"abc");
        row.given.insert(Arm::Lan, Values::default());
        assert_eq!(row.comparison().differing.len(), 1);
    }

    #[test]
    fn a_fault_seen_on_the_way_spoils_the_row() {
        let mut row = row(b"abc", b"abc");
        row.faults.push("OK before the server knew".to_owned());
        assert_eq!(row.json()["identical"], false);
    }
}
