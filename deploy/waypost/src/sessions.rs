//! `waypost sessions`: connections to servers whose clients have left.

use crate::{
    api::{EndedSessions, Kept, KeptSession},
    ask::{self, Method},
    cli::RunningNode,
    config::units::human_size,
    exit::{Exit, Failure},
    say,
    status::{clock, columns},
};

/// Prints who has one.
pub(crate) fn list(node: &RunningNode) -> Result<Exit, Failure> {
    let (json, kept): (_, Kept) = ask::get(node, "/api/v1/sustained")?;
    if node.json {
        say::line(String::from_utf8_lossy(&json));
        return Ok(Exit::Fine);
    }
    let mut rows =
        vec![["USER", "SERVER", "MAILBOX", "SINCE (UTC)", "AS", "BY", "MESSAGES", "SIZE"].map(str::to_owned)];
    for session in &kept.sessions {
        rows.push([
            session.user.clone(),
            session.server.clone(),
            session.mailbox.escape_debug().to_string(),
            clock(session.since_unix_ms),
            role(session).to_owned(),
            session.way.clone(),
            session.messages.to_string(),
            human_size(session.octets),
        ]);
    }
    let ended: Vec<String> = kept.ended.iter().map(|named| format!("{} {}", named.word, named.n)).collect();
    say::line(format_args!(
        "{} kept now, {} so far; ended: {}",
        kept.sessions.iter().filter(|session| !session.leaving).count(),
        kept.so_far,
        if ended.is_empty() { "none".to_owned() } else { ended.join(", ") }
    ));
    say::text(columns(&rows));
    Ok(Exit::Fine)
}

fn role(session: &KeptSession) -> &'static str {
    match (session.leaving, session.lane) {
        (true, _) => "leaving",
        (false, true) => "lane",
        (false, false) => "kept",
    }
}

/// Ends those of `user`.
pub(crate) fn end(node: &RunningNode, user: &str) -> Result<Exit, Failure> {
    let path = format!("/api/v1/sustained/end?user={}", ask::quoted(user));
    let Some((json, ended)) = ask::if_running::<EndedSessions>(node, Method::Post, &path)? else {
        return Err(Failure::say(Exit::Unavailable, "no node runs here"));
    };
    if node.json {
        say::line(String::from_utf8_lossy(&json));
    } else {
        say::line(format_args!("{} ended", ended.ended));
    }
    Ok(if ended.ended == 0 { Exit::Unavailable } else { Exit::Fine })
}
