//! `waypost report`: what came of what the node does unasked.

use crate::{
    api::{PreloadReport, PreloadRow},
    ask,
    cli::RunningNode,
    config::units::human_size,
    exit::{Exit, Failure},
    say,
    status::columns,
};

/// Prints who opened how much, what of it was there, and what was fetched in vain.
pub(crate) fn preload(node: &RunningNode, user: Option<&str>) -> Result<Exit, Failure> {
    let path = match user {
        Some(user) => format!("/api/v1/report/preload?user={}", ask::quoted(user)),
        None => "/api/v1/report/preload".to_owned(),
    };
    let (json, report): (_, PreloadReport) = ask::get(node, &path)?;
    if node.json {
        say::line(String::from_utf8_lossy(&json));
        return Ok(Exit::Fine);
    }
    if !report.on {
        say::line(
            "nothing is counted: [prefetch] is off (enabled = true turns it on), or its database could not be opened, which the log says",
        );
        return Ok(Exit::Fine);
    }
    let mut table =
        vec![["USER", "SITE", "OPENED", "HITS", "FETCHED", "USED", "WASTED", "WAITING"].map(str::to_owned)];
    table.extend(report.rows.iter().map(row));
    if report.rows.len() > 1 {
        table.push(row(&total(&report.rows)));
    }
    say::text(columns(&table));
    Ok(Exit::Fine)
}

fn row(row: &PreloadRow) -> [String; 8] {
    let of = |part, whole| percent(part, whole).map_or_else(String::new, |percent| format!(" ({percent})"));
    [
        row.user.clone(),
        row.site.clone(),
        row.opens.to_string(),
        format!("{}{}", row.hits, of(row.hits, row.opens)),
        human_size(row.fetched),
        format!("{}{}", human_size(row.used), of(row.used, row.fetched)),
        format!("{}{}", human_size(row.wasted), of(row.wasted, row.fetched)),
        human_size(row.waiting),
    ]
}

fn total(rows: &[PreloadRow]) -> PreloadRow {
    let sum = |of: fn(&PreloadRow) -> u64| rows.iter().map(of).fold(0, u64::saturating_add);
    PreloadRow {
        user: "all".to_owned(),
        site: String::new(),
        opens: sum(|row| row.opens),
        hits: sum(|row| row.hits),
        fetched: sum(|row| row.fetched),
        used: sum(|row| row.used),
        wasted: sum(|row| row.wasted),
        waiting: sum(|row| row.waiting),
    }
}

/// With one decimal; nothing of nothing.
fn percent(part: u64, whole: u64) -> Option<String> {
    let permille = u128::from(part) * 1000 / u128::from(std::num::NonZeroU64::new(whole)?.get());
    Some(format!("{}.{} %", permille / 10, permille % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_something() {
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent(2, 3).as_deref(), Some("66.6 %"));
        assert_eq!(percent(u64::MAX, u64::MAX).as_deref(), Some("100.0 %"));
    }
}
