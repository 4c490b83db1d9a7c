//! What the run ends with: one table, the JSON, and what was broken.

use serde_json::{Value, json};

use crate::arm::{Arm, Link};
use crate::connects::{self, Timed};
use crate::row::Row;
use crate::{start, stats};

/// The whole result.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) link: Link,
    pub(crate) rows: Vec<Row>,
    /// Connections through the pair.
    pub(crate) timed: Vec<Timed>,
    /// A quick run has too few of them for a verdict.
    pub(crate) quick: bool,
    /// Clients that are not in the table, each with its reason.
    pub(crate) left_out: Vec<String>,
}

impl Report {
    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "version": 1,
            "wan": {
                "rtt_ms": self.link.rtt_ms,
                "rate_mbit": self.link.rate_mbit,
                "loss": self.link.loss,
            },
            "journeys": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "connections": self.timed.iter().map(Timed::json).collect::<Vec<_>>(),
            "left_out": self.left_out,
            "broken": self.broken(),
        })
    }

    /// Gates that do not hold. Times and ratios of mail are not gates: they are printed as they are. What nodes on a path add
    /// to a connection is one, in a full run.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for row in &self.rows {
            let what = format!("{} ({})", row.name, row.client);
            let differing = row.comparison().differing;
            if let Some(first) = differing.first() {
                broken.push(format!(
                    "{what}: {} values are not identical; the first: {first}",
                    differing.len()
                ));
            }
            if let Some(allowed) = round_trips_allowed(row) {
                let most = row.acts(row.ours).round_trips_max();
                if most > allowed {
                    broken.push(format!(
                        "{what}: an act needed {most} WAN round trips through Waypost, {allowed} are allowed"
                    ));
                }
            }
        }
        for timed in self.timed.iter().filter(|timed| !self.quick && timed.holds() == Some(false)) {
            broken.push(format!(
                "{}: {:.2} ms more than direct in the median, {} are allowed",
                timed.name,
                timed.adds().median,
                timed.adds_max.unwrap_or_default()
            ));
        }
        for row in &self.rows {
            if let Some(late) = start::over_the_gate(row, self.link.rtt_ms).filter(|_| !self.quick) {
                broken.push(format!("{} ({}): {late}", row.name, row.client));
            }
        }
        broken
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![HEAD.map(str::to_owned)];
        for row in &self.rows {
            lines.push(cells(row));
        }
        let widths: Vec<usize> = (0..HEAD.len())
            .map(|column| {
                lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        let mut text = format!(
            "Mail over {} ms round trip, {} Mbit/s, {} % loss; medians; arrows go from direct to Waypost\n\n",
            self.link.rtt_ms, self.link.rate_mbit, self.link.loss
        );
        for (nth, line) in lines.iter().enumerate() {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Words to the left, figures to the right.
                let left = column < 2 || column + 1 == HEAD.len();
                text += &if left { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            }
            text = text.trim_end().to_owned() + "\n";
            if nth == 0 {
                text += &format!("{}\n", "-".repeat(widths.iter().sum::<usize>() + 2 * (HEAD.len() - 1)));
            }
        }
        text += "\n";
        for (name, meaning) in MEANINGS {
            if self.rows.iter().any(|row| row.name == name) {
                text += &format!("{name:<20} {meaning}\n");
            }
        }
        if self.rows.iter().any(|row| !row.client.starts_with("scripted")) {
            text += MEANWHILE;
        }
        for row in &self.rows {
            if let Some(note) = &row.note {
                text += &format!("{} ({}): {note}\n", row.name, row.client);
            }
        }
        for line in &self.left_out {
            text += &format!("not in the table: {line}\n");
        }
        if !self.timed.is_empty() {
            text += &format!("\n{}", connects::table(&self.timed));
        }
        text
    }
}

/// How many WAN round trips an act may need: what docs/JOURNEYS.md calls a hit is served from the store, and an
/// unread message waits for the server's word once. Only the scripted client does nothing else beside its act.
fn round_trips_allowed(row: &Row) -> Option<u64> {
    match (row.name, row.client.as_str()) {
        ("open-hit", "scripted") => Some(u64::from(row.flipped)),
        ("new-mail-while-away", "scripted") => Some(0),
        ("open-hit-unread", "scripted") => Some(1),
        _ => None,
    }
}

const HEAD: [&str; 9] =
    ["journey", "client", "n", "direct", "on a LAN", "Waypost", "round trips", "WAN octets", "identical"];

const MEANINGS: [(&str, &str); 9] = [
    (
        "cold-start",
        "the same begin of a client that is configured with the server's own address, both nodes on its path",
    ),
    ("new-mail-while-away", "open a message that came while its reader was away"),
    ("cold-start-explicit", "from the connection to the flags of a mailbox, as Thunderbird begins"),
    ("list-500", "the headers of 500 messages of a mailbox that the branch knows"),
    ("open-hit", "open a message that the branch holds"),
    ("open-hit-unread", "the same, unread: the server marks it as read before the OK"),
    ("open-miss", "open a message that nobody in the branch has opened"),
    ("attachment-again", "fetch an attachment that somebody in the branch has fetched"),
    ("sync-again", "synchronise a mailbox that the branch holds into an empty folder"),
];

const MEANWHILE: &str = "\
Round trips and octets of a real client are those of all that it does meanwhile: when it lists, of the whole start
with connection and login; Thunderbird also leaves and enters IDLE around each act.
";

fn cells(row: &Row) -> [String; 9] {
    let time = |arm| seconds(stats::median(&row.acts(arm).seconds()));
    let (direct, ours) = (row.acts(Arm::Direct), row.acts(row.ours));
    let comparison = row.comparison();
    let identical = if comparison.differing.is_empty() { "yes" } else { "NO" };
    [
        row.name.to_owned(),
        row.client.clone(),
        row.n().to_string(),
        time(Arm::Direct),
        time(Arm::Lan),
        time(row.ours),
        format!("{} -> {}", direct.round_trips(), ours.round_trips()),
        format!("{} -> {}", octets(direct.wan_octets()), octets(ours.wan_octets())),
        identical.to_owned(),
    ]
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn octets(octets: u64) -> String {
    match octets {
        0..10_000 => octets.to_string(),
        10_000..10_000_000 => format!("{:.0} kB", octets as f64 / 1e3),
        _ => format!("{:.1} MB", octets as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Act;
    use crate::wire::{self, Values};

    fn report(round_trips: u64) -> Report {
        let mut row = Row::new("open-hit", "scripted", "warm");
        for arm in Arm::ALL {
            let act = Act { seconds: 0.004, round_trips, ..Act::default() };
            row.acts.entry(arm).or_default().0.push(act);
            let mut values = Values::default();
            let response = wire::response(b"* 1 FETCH (UID 1 BODY[] \"a\")\r\n").unwrap();
            values.note("INBOX", &response).unwrap();
            row.given.insert(arm, values);
        }
        let link = Link { rtt_ms: 100.0, rate_mbit: 10.0, loss: 0.0 };
        Report { link, rows: vec![row], timed: Vec::new(), quick: false, left_out: Vec::new() }
    }

    #[test]
    fn a_hit_that_crosses_the_wan_breaks_a_gate() {
        assert_eq!(report(0).broken(), Vec::<String>::new());
        assert_eq!(report(1).broken().len(), 1);
    }

    #[test]
    fn the_json_has_the_keys_that_readers_rely_on() {
        let json = report(0).json();
        assert_eq!(json["version"], 1);
        assert_eq!(json["wan"]["rtt_ms"], 100.0);
        let row = &json["journeys"][0];
        for key in
            ["name", "n", "client", "warmth", "identical", "filled_bytes", "paired", "repeated", "digest"]
        {
            assert!(!row[key].is_null(), "{key}");
        }
        for arm in ["direct", "lan", "waypost"] {
            for key in ["median_s", "p95_s", "spread_s", "round_trips", "wan_bytes"] {
                assert!(row[arm][key].is_number(), "{arm}.{key}");
            }
        }
        for key in ["median", "lo", "hi"] {
            assert!(row["paired"][key].is_number(), "{key}");
        }
    }

    #[test]
    fn the_table_names_every_row_and_its_verdict() {
        let table = report(0).table();
        assert!(table.contains("open-hit") && table.contains("4.0 ms") && table.contains("yes"), "{table}");
    }
}
