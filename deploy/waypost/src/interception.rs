//! `waypost bypass` and `waypost explain`, and interception in `waypost status`.

use crate::{
    api::{CandidateStatus, DeflectorStatus, Done, Explained, PathStatus, SupervisorStatus},
    ask,
    cli::RunningNode,
    config::units::{human_size, human_time},
    exit::{Exit, Failure},
    say,
    status::{columns, list},
    supervisor::desk::Question,
};
use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Switches interception off, or on again.
pub(crate) fn bypass(node: &RunningNode, on: bool) -> Result<Exit, Failure> {
    let Some(Done { done }) = ask::supervisor(node, Question::Bypass(on))? else {
        let what = "no node stands on a path here, so nothing is intercepted";
        return Err(Failure::say(Exit::Unavailable, what));
    };
    if node.json {
        say::line(done);
    } else if on {
        say::line("bypassed: new connections flow past this node; `waypost bypass off` takes them again");
    } else {
        say::line("new connections are taken again, as the rules say");
    }
    Ok(Exit::Fine)
}

/// Has the node replaced.
pub(crate) fn upgrade(node: &RunningNode) -> Result<Exit, Failure> {
    let Some(Done { done }) = ask::supervisor(node, Question::Upgrade)? else {
        let what = "no node stands on a path here; end the one that runs and start it anew";
        return Err(Failure::say(Exit::Unavailable, what));
    };
    if node.json {
        say::line(done);
    } else {
        say::line("the new node is at work; the old one goes on with what it carries");
    }
    Ok(Exit::Fine)
}

/// The supervisor's part of `status`.
pub(crate) fn describe_supervisor(status: &SupervisorStatus) -> String {
    let times = match status.restarts {
        0 => String::new(),
        1 => ", node started anew once".to_owned(),
        n => format!(", node started anew {n} times"),
    };
    let leaving = match status.leaving {
        0 => String::new(),
        n => format!(", {n} replaced and still carrying"),
    };
    let why = status.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!(
        "supervisor {} for {}, new connections {}{times}{leaving}{why}\n",
        status.state,
        human_time(Duration::from_secs(status.since_s)),
        if status.taking { "are taken" } else { "flow past" },
    )
}

/// Says what would become of a connection.
pub(crate) fn explain(node: &RunningNode, client: &str, server: SocketAddr) -> Result<Exit, Failure> {
    // The port of a client says nothing, except to a rule that names it.
    let client: SocketAddr = match (client.parse(), client.parse::<IpAddr>()) {
        (Ok(client), _) => client,
        (Err(_), Ok(ip)) => SocketAddr::new(ip, ANY_PORT),
        (Err(_), Err(_)) => {
            let what =
                format_args!("{client:?} is no address; for example: waypost explain 10.1.0.2 10.2.0.2:993");
            return Err(Failure::say(Exit::Usage, what));
        }
    };
    if client.is_ipv4() != server.is_ipv4() {
        return Err(Failure::say(Exit::Usage, "the client and the server are of different families"));
    }
    let query =
        format!("client={}&server={}", ask::quoted(&client.to_string()), ask::quoted(&server.to_string()));
    let (json, explained): (_, Explained) = ask::get(node, &format!("/api/v1/path/explain?{query}"))?;
    if node.json {
        say::line(String::from_utf8_lossy(&json));
    } else {
        say::line(format_args!("{client} -> {server}"));
        say::line(format_args!("  rules    {}", explained.rule));
        say::line(format_args!("  SYN      {}", explained.verdict));
        say::line(format_args!("  because  {}", explained.reason));
        for (nth, candidate) in explained.candidates.iter().enumerate() {
            let CandidateStatus { peer, by, preference, standing, load_percent, .. } = candidate;
            let whom = candidate.node.as_deref().unwrap_or(peer);
            say::line(format_args!(
                "  peer {}   {whom} ({by}, preference {preference}): {standing}, load {load_percent} %",
                nth + 1
            ));
        }
        if !explained.mail.is_empty() {
            say::line(format_args!("  session  {}", mail(&explained.mail)));
        }
    }
    Ok(Exit::Fine)
}

/// What a client that is taken gets here.
fn mail(servers: &[String]) -> String {
    match servers {
        [server] => format!("mail of {server}, served here when it is taken"),
        several => {
            format!("mail of {}, by the name that the client asks for", several.join(" or "))
        }
    }
}

const ANY_PORT: u16 = 50_000;

/// The part of `status`.
pub(crate) fn describe(path: &PathStatus) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "path       {}, {} connections carried{}",
        path.state,
        path.carried,
        list(&path.reasons)
    );
    if let Some(udp) = &path.datagrams
        && udp.flows > 0
    {
        let (flows, n, size) = (udp.flows, udp.datagrams, human_size(udp.octets));
        let _ = writeln!(out, "udp        {flows} flows passed, {n} datagrams, {size}");
    }
    if let Some(deflector) = &path.deflector {
        let DeflectorStatus { deflected, past, ready, clients, servers } = deflector;
        let _ = writeln!(
            out,
            "deflector  {deflected} connections given to proxies, {past} past them; {ready} proxies there, {clients}+{servers} rules"
        );
    }
    if !path.peers.is_empty() {
        let mut rows =
            vec![["PEER", "AT", "LANES", "RTT", "STREAMS", "SENT", "RECEIVED", "LAST"].map(str::to_owned)];
        for peer in &path.peers {
            let first = peer.lanes.first();
            let rtt = first.and_then(|lane| lane.rtt_us);
            rows.push([
                peer.node.clone(),
                first.map_or_else(|| "-".to_owned(), |lane| lane.remote.clone()),
                format!("{} of 3", peer.lanes.len()),
                rtt.map_or_else(|| "-".to_owned(), |us| format!("{}.{} ms", us / 1000, us % 1000 / 100)),
                peer.streams.to_string(),
                human_size(peer.sent_octets),
                human_size(peer.received_octets),
                peer.last.clone().unwrap_or_default(),
            ]);
        }
        out.push_str(&columns(&rows));
    }
    if !path.table.is_empty() {
        let mut rows = vec![["SERVER", "KNOWN", "THROUGH", "LIVES"].map(str::to_owned)];
        for entry in path.table.iter().take(SHOWN_MAX) {
            rows.push([
                entry.server.clone(),
                entry.known.clone(),
                entry.peer.clone().unwrap_or_default(),
                format!("{} s", entry.ttl_s),
            ]);
        }
        out.push_str(&columns(&rows));
        more(&mut out, path.table.len());
    }
    if !path.candidates.is_empty() {
        let mut rows =
            vec![["SERVER", "CANDIDATE", "BY", "PREFERENCE", "STANDING", "LOAD"].map(str::to_owned)];
        for candidate in &path.candidates {
            rows.push([
                candidate.server.clone(),
                candidate.node.clone().unwrap_or_else(|| candidate.peer.clone()),
                candidate.by.clone(),
                candidate.preference.to_string(),
                candidate.standing.clone(),
                format!("{} %", candidate.load_percent),
            ]);
        }
        out.push_str(&columns(&rows));
    }
    if !path.flows.is_empty() {
        let mut rows = vec![["CLIENT", "SERVER", "PEER", "WHY"].map(str::to_owned)];
        for flow in path.flows.iter().take(SHOWN_MAX) {
            rows.push([
                flow.client.clone(),
                flow.server.clone(),
                flow.peer.clone().unwrap_or_else(|| "-".to_owned()),
                flow.reason.clone(),
            ]);
        }
        out.push_str(&columns(&rows));
        more(&mut out, path.flows.len());
    }
    out
}

/// What of a table is not shown.
fn more(out: &mut String, rows: usize) {
    if let Some(more) = rows.checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
        let _ = writeln!(out, "...        {more} more; --json has them");
    }
}

/// A screen is not filled by servers, nor by connections.
const SHOWN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TableStatus;

    #[test]
    fn a_long_table_is_cut_and_says_so() {
        let entry = |n: usize| TableStatus { server: format!("10.2.0.{n}:143"), ..TableStatus::default() };
        let table = |n| PathStatus { table: (0..n).map(entry).collect(), ..PathStatus::default() };
        let rows = |n| describe(&table(n)).lines().filter(|line| line.starts_with("10.2.0.")).count();
        assert_eq!((rows(20), rows(21)), (20, 20));
        assert!(!describe(&table(20)).contains("more;"));
        assert!(describe(&table(25)).contains("5 more; --json has them"));
    }

    #[test]
    fn a_session_of_mail_is_told_with_whom() {
        let told = |names: &[&str]| mail(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(told(&["a"]), "mail of a, served here when it is taken");
        assert_eq!(told(&["a", "b"]), "mail of a or b, by the name that the client asks for");
    }
}
