//! `waypost status` and `waypost trace`.

use crate::{
    api::{Named, SessionStatus, Status, SupervisorStatus, Trace},
    ask,
    cli::RunningNode,
    config::units::{human_size, human_time},
    exit::{Exit, Failure},
    interception, say, store,
    supervisor::desk::Question,
};
use bytes::Bytes;
use std::{fmt::Write, time::Duration};

/// Prints what the node does, and of one on the path what its supervisor says: it answers whatever the node does.
pub(crate) fn status(node: &RunningNode, sessions: bool) -> Result<Exit, Failure> {
    let supervisor: Option<SupervisorStatus> = ask::supervisor(node, Question::Status)?;
    let answer: Option<(Bytes, Status)> = match &supervisor {
        Some(supervisor) => {
            let answers = matches!(supervisor.state.as_str(), "working" | "bypassed" | "leaving");
            ask::get_supervised(node, STATUS, answers)?
        }
        None => Some(ask::get(node, STATUS)?),
    };
    let list = if sessions && answer.is_some() {
        Some(ask::get::<Vec<SessionStatus>>(node, "/api/v1/sessions")?)
    } else {
        None
    };
    if node.json {
        let json = answer.as_ref().map_or("{}".into(), |(json, _)| String::from_utf8_lossy(json));
        let json = with_supervisor(&json, supervisor.as_ref())?;
        match &list {
            Some((sessions, _)) => {
                let sessions = String::from_utf8_lossy(sessions);
                say::line(format_args!("{{\"status\":{json},\"sessions\":{sessions}}}"));
            }
            None => say::line(json),
        }
        return Ok(Exit::Fine);
    }
    match &answer {
        Some((_, status)) => say::text(describe(status)),
        None => say::line("the node does not answer"),
    }
    if let Some(supervisor) = &supervisor {
        say::text(interception::describe_supervisor(supervisor));
    }
    if let Some((_, sessions)) = list {
        say::text(table(&sessions));
    }
    Ok(Exit::Fine)
}

const STATUS: &str = "/api/v1/status";

/// The node's answer as it came, with the supervisor's as one more field.
fn with_supervisor(json: &str, supervisor: Option<&SupervisorStatus>) -> Result<String, Failure> {
    let Some(supervisor) = supervisor else { return Ok(json.to_owned()) };
    let bug = |error| Failure::new(Exit::Bug, error);
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).map_err(bug)?;
    fields.insert("supervisor".to_owned(), serde_json::to_value(supervisor).map_err(bug)?);
    serde_json::to_string(&fields).map_err(bug)
}

/// Prints what was decided for `user`.
pub(crate) fn trace(node: &RunningNode, user: &str) -> Result<Exit, Failure> {
    let (json, trace): (_, Trace) = ask::get(node, &format!("/api/v1/trace?user={}", ask::quoted(user)))?;
    if node.json {
        say::line(String::from_utf8_lossy(&json));
        return Ok(Exit::Fine);
    }
    let mut rows = vec![["TIME (UTC)", "SESSION", "WHAT", "OUTCOME", "MESSAGES", "SIZE"].map(str::to_owned)];
    for decision in &trace.decisions {
        rows.push([
            clock(decision.unix_ms),
            decision.session.to_string(),
            decision.what.clone(),
            decision.outcome.clone(),
            decision.messages.to_string(),
            human_size(decision.octets),
        ]);
    }
    say::line(format_args!("{}: the last {} decisions", trace.user, trace.decisions.len()));
    say::text(columns(&rows));
    Ok(Exit::Fine)
}

fn describe(status: &Status) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} at {}: {} for {}, waypost {}",
        status.node,
        status.site,
        status.state,
        human_time(Duration::from_secs(status.uptime_s)),
        status.version
    );
    let mut rows = vec![["LISTENER", "TLS", "SERVER", "CLIENTS", "FAILED", "REFUSED"].map(str::to_owned)];
    for listener in &status.listeners {
        rows.push([
            listener.address.clone(),
            listener.tls.clone(),
            listener.server.clone(),
            listener.accepted.to_string(),
            listener.handshakes_failed.to_string(),
            listener.refused.to_string(),
        ]);
    }
    out.push_str(&columns(&rows));
    let _ = writeln!(
        out,
        "sessions   {} now, {} so far{}",
        status.sessions,
        status.sessions_opened,
        list(&status.ended)
    );
    let _ =
        writeln!(out, "logins     {} accepted, {} refused", status.logins_accepted, status.logins_refused);
    for parked in &status.parked {
        let _ = writeln!(out, "ready      {} at {}{}", parked.ready, parked.server, list(&parked.became));
    }
    if !status.origin_failures.is_empty() {
        let _ = writeln!(out, "server not reached{}", list(&status.origin_failures));
    }
    let _ = writeln!(
        out,
        "fetches    {}{}; {} from the store, {} into it",
        status.fetches.iter().map(|named| named.n).sum::<u64>(),
        list(&status.fetches),
        human_size(status.served_octets),
        human_size(status.filled_octets)
    );
    if status.fills_abandoned > 0 {
        let _ =
            writeln!(out, "           {} messages not stored: the disk was too slow", status.fills_abandoned);
    }
    if let Some(path) = &status.path {
        out.push_str(&interception::describe(path));
    }
    out.push_str(&store::describe(&status.store));
    out
}

fn table(sessions: &[SessionStatus]) -> String {
    let mut rows =
        vec![["SESSION", "AGE", "STATE", "USER", "SERVER", "CLIENT", "FROM", "TO"].map(str::to_owned)];
    for session in sessions {
        rows.push([
            session.number.to_string(),
            human_time(Duration::from_secs(session.age_s)),
            session.state.clone(),
            session.user.clone().unwrap_or_else(|| "-".to_owned()),
            session.server.clone(),
            session.client.clone(),
            human_size(session.from_client_octets),
            human_size(session.to_client_octets),
        ]);
    }
    columns(&rows)
}

pub(crate) fn list(named: &[Named]) -> String {
    if named.is_empty() {
        return String::new();
    }
    let all: Vec<_> = named.iter().map(|named| format!("{} {}", named.n, named.word)).collect();
    format!(" ({})", all.join(", "))
}

/// Columns as wide as their widest cell, two spaces between.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The time of day.
pub(crate) fn clock(unix_ms: i64) -> String {
    let s = unix_ms.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}.{:03}", s / 3600, s / 60 % 60, s % 60, unix_ms.rem_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A".to_owned(), "B".to_owned()], ["long".to_owned(), "x".to_owned()]];
        assert_eq!(columns(&rows), "A     B\nlong  x\n");
    }

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(clock(1_700_000_000_123), "22:13:20.123");
        assert_eq!(clock(-1), "23:59:59.999");
    }
}
