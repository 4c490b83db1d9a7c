//! The scripted client: Python, raw sockets, no library of ours, so that it can judge us.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Account, finish};
use crate::net::{Lab, Place};

/// Commands that are timed together.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Act {
    /// Names the act in the report.
    pub name: String,
    /// Without tags and line ends; no literals.
    pub commands: Vec<String>,
    /// Send all before reading.
    pub pipeline: bool,
    /// Seconds of rest before the act, not timed.
    pub wait_s: f64,
}

impl Act {
    /// An act of commands that each wait for the reply to the one before.
    #[must_use]
    pub fn new(name: &str, commands: &[&str]) -> Self {
        let commands = commands.iter().map(|command| (*command).to_owned()).collect();
        Self { name: name.to_owned(), commands, ..Self::default() }
    }
}

/// How an act went.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ActReport {
    /// The act.
    pub name: String,
    /// First octet of its first command to last octet of its last tagged reply.
    pub seconds: f64,
    /// The same to the last octet of its last literal, if it got one.
    pub literal_seconds: Option<f64>,
    /// Octets received, without TLS.
    pub octets: u64,
    /// The tagged replies.
    pub status: Vec<String>,
}

/// How a session went.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ScriptReport {
    /// Every act in order.
    pub acts: Vec<ActReport>,
    /// SHA-256 of each value, by `mailbox/uid/label`.
    pub digest: BTreeMap<String, String>,
    /// The last flags seen, by `mailbox/uid`.
    pub flags: BTreeMap<String, Vec<String>>,
    /// Values that changed within the session: always a fault.
    pub conflicts: Vec<String>,
    /// The server's first line.
    pub greeting: String,
    /// The tagged reply to the login.
    pub login: String,
    /// TCP and TLS to the greeting.
    pub connect_seconds: f64,
    /// The login command.
    pub login_seconds: f64,
}

/// Runs one session.
///
/// # Errors
/// When the connection breaks, the certificate is not trusted, or a response cannot be read.
pub fn scripted(lab: &Lab, place: Place, account: &Account, acts: &[Act]) -> anyhow::Result<ScriptReport> {
    let program = lab.directory().join("imap_client.py");
    if !program.exists() {
        fs::write(&program, PROGRAM)?;
    }
    let script = json!({
        "host": account.host, "port": account.port, "ca": account.ca, "user": account.user,
        "password": account.password, "acts": acts,
    });
    let mut command = lab.command(place, "python3");
    command.arg(&program);
    let finished = finish(command, script.to_string().as_bytes(), PATIENCE)?;
    serde_json::from_slice(&finished.stdout).context("the scripted client's report cannot be read")
}

/// The scripted client's source; its `Reader` tells the items of FETCH responses apart.
pub const PROGRAM: &str = include_str!("../../py/imap_client.py");
const PATIENCE: Duration = Duration::from_secs(600);
