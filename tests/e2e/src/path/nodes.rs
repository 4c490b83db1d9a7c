//! The executable at any places of a ground: one authority, an identity each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Ground;
use serde_json::Value;

use super::{STALL, until};
use crate::case::Case;
use crate::waypost::{Waypost, tail};

/// Nodes of one ground.
pub(crate) struct Nodes<'g> {
    ground: &'g Ground,
    case: &'g Case,
    running: BTreeMap<String, Waypost>,
}

/// How a node stands there.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Lines of `[interception]`.
    pub(crate) interception: String,
    /// `[[rule]]`s, `[link]`, `[[peer]]`s.
    pub(crate) rest: String,
}

impl Standing {
    /// A router between `left` and `right` that takes what goes to [`super::ends::PORTS`].
    pub(crate) fn routed() -> Self {
        Self::on("interfaces = [\"left\", \"right\"]")
    }

    /// With these lines of `[interception]`.
    pub(crate) fn on(lines: &str) -> Self {
        let rule = format!("[[rule]]\naction = \"intercept\"\nports = [{}]\n", super::ends::PORTS);
        Self { interception: lines.to_owned(), rest: rule }
    }

    /// Where nothing is taken.
    pub(crate) fn passing(self) -> Self {
        Self { rest: self.rest.replace("\"intercept\"", "\"pass\""), ..self }
    }

    pub(crate) fn and(mut self, rest: &str) -> Self {
        self.rest.push_str(rest);
        self
    }

    pub(crate) fn with(mut self, line: &str) -> Self {
        self.interception = format!("{}\n{line}", self.interception);
        self
    }
}

impl<'g> Nodes<'g> {
    /// Makes an authority and identities of these places; starts nothing.
    pub(crate) fn of(case: &'g Case, ground: &'g Ground, places: &[&str]) -> anyhow::Result<Self> {
        let nodes = Self { ground, case, running: BTreeMap::new() };
        nodes.identify("node-ca", places)?;
        Ok(nodes)
    }

    /// Gives places identities of this authority, which is made if it is not there.
    pub(crate) fn identify(&self, authority: &str, places: &[&str]) -> anyhow::Result<()> {
        let authority = self.ground.directory().join(authority);
        if !authority.exists() {
            self.waypost(&["ca", "init", "--node", "--dir", text(&authority)?])?;
        }
        for place in places {
            let directory = self.directory(place);
            drop(std::fs::remove_dir_all(&directory));
            std::fs::create_dir_all(&directory)?;
            let token = self.waypost(&["token", "new", "--id", place, "--ca-dir", text(&authority)?])?;
            let file = directory.join("token");
            std::fs::write(&file, token)?;
            self.waypost(&["join", text(&file)?, "--state-dir", text(&directory)?])?;
        }
        Ok(())
    }

    pub(crate) fn directory(&self, place: &str) -> PathBuf {
        self.ground.directory().join(format!("node-{place}"))
    }

    /// Runs a command of the executable.
    pub(crate) fn waypost(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&self.case.executable).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "waypost {}: {said}", arguments.join(" "));
        Ok(output.stdout)
    }

    /// Starts several at once and waits until all of them are ready.
    pub(crate) fn start(&mut self, standings: &[(&str, Standing)]) -> anyhow::Result<()> {
        for (place, standing) in standings {
            let directory = self.directory(place);
            let text = format!(
                "version = 1\n[node]\nid = {place:?}\nstate_dir = {directory:?}\n\
                 [log]\nlevel = \"debug\"\nformat = \"json\"\n[interception]\n{}\n{}",
                standing.interception, standing.rest,
            );
            let file = directory.join("waypost.toml");
            std::fs::write(&file, text)?;
            let mut command = self.ground.command(place, &self.case.executable);
            command.arg("run").arg("-c").arg(file);
            let node = Waypost::spawn(self.case, command)?;
            if !standing.rest.contains("\"intercept") && !standing.rest.contains("\"drop") {
                node.watch.announce("so nothing is touched");
            }
            self.running.insert((*place).to_owned(), node);
        }
        for (place, _) in standings {
            let node = self.node(place)?;
            let start = Instant::now();
            while !node.watch.text().contains("\"ready\"") {
                node.still_runs()?;
                ensure!(start.elapsed() < STALL, "{place} is not ready:\n{}", tail(&node.watch.text()));
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    pub(crate) fn node(&mut self, place: &str) -> anyhow::Result<&mut Waypost> {
        self.running.get_mut(place).with_context(|| format!("no node runs at {place}"))
    }

    /// Ends it as an operator would.
    pub(crate) fn end(&mut self, place: &str) -> anyhow::Result<()> {
        let node = self.node(place)?;
        node.signal(libc::SIGTERM)?;
        node.wait(STALL)?;
        self.running.remove(place);
        Ok(())
    }

    /// What `waypost status` says of the path.
    pub(crate) fn status(&self, place: &str) -> anyhow::Result<Value> {
        let socket = self.directory(place).join("admin.sock");
        let said = self.waypost(&["status", "--json", "--socket", text(&socket)?])?;
        let status: Value = serde_json::from_slice(&said)?;
        status.get("path").cloned().context("no path in the status")
    }

    /// How often the node gave a reason.
    pub(crate) fn count(&self, place: &str, reason: &str) -> anyhow::Result<u64> {
        let status = self.status(place)?;
        let reasons = status.get("reasons").and_then(Value::as_array).context("no reasons")?;
        let named = reasons.iter().find(|named| named.get("word").and_then(Value::as_str) == Some(reason));
        Ok(named.and_then(|named| named.get("n")?.as_u64()).unwrap_or(0))
    }

    /// What its table says of a server: the word.
    pub(crate) fn known(&self, place: &str, server: std::net::SocketAddr) -> anyhow::Result<Option<String>> {
        let status = self.status(place)?;
        let rows = status.get("table").and_then(Value::as_array).context("no table")?;
        let word = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
        let row = rows.iter().find(|row| word(row, "server").as_deref() == Some(&server.to_string()));
        Ok(row.and_then(|row| word(row, "known")))
    }

    /// Octets sent on the link to a peer, if there is one that stands.
    pub(crate) fn sent_to(&self, place: &str, peer: &str) -> anyhow::Result<Option<u64>> {
        let status = self.status(place)?;
        let peers = status.get("peers").and_then(Value::as_array).context("no peers")?;
        let row = peers.iter().find(|row| row.get("node").and_then(Value::as_str) == Some(peer));
        let up = row.filter(|row| row.get("lanes").and_then(Value::as_array).is_some_and(|l| !l.is_empty()));
        Ok(up.and_then(|row| row.get("sent_octets")?.as_u64()))
    }

    /// Waits until the node has a link to the peer.
    pub(crate) fn wait_link(&self, place: &str, peer: &str) -> anyhow::Result<()> {
        until(&format!("a link from {place} to {peer}"), || Ok(self.sent_to(place, peer)?.is_some()))?;
        Ok(())
    }

    /// Waits until no node carries anything, and looks at what is left.
    pub(crate) fn at_rest(&self, places: &[&str]) -> anyhow::Result<()> {
        for place in places {
            until(&format!("{place} is at rest"), || {
                let status = self.status(place)?;
                let flows = status.get("flows").and_then(Value::as_array).map_or(0, |flows| {
                    let lasting = |flow: &&Value| {
                        let word = flow.get("reason").and_then(Value::as_str);
                        !matches!(word, Some("direct" | "probing"))
                    };
                    flows.iter().filter(lasting).count()
                });
                Ok(status.get("carried").and_then(Value::as_u64) == Some(0) && flows == 0)
            })?;
        }
        Ok(())
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}
