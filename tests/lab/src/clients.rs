//! Real mail clients inside the lab's namespaces: what they did, how long it took, and digests of what they got.

mod command_line;
mod scripted;
mod thunderbird;
mod wire;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub use command_line::{MbsyncRun, curl, mbsync, mbsync_mailbox, mutt};
pub use scripted::{Act, ActReport, PROGRAM as SCRIPTED_CLIENT, ScriptReport, scripted};
pub use thunderbird::Thunderbird;
pub use wire::{Closed, Reply, Response, Stalled, Tls, Wire};

use crate::sys;

/// Which server a client logs in to, and as whom.
#[derive(Debug, Clone)]
pub struct Account {
    /// The server's name, which its certificate must carry.
    pub host: String,
    /// Its port, 993 unless the test says otherwise.
    pub port: u16,
    /// The certificate authority to trust, PEM.
    pub ca: PathBuf,
    /// Login name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) took: Duration,
}

/// Runs a client to its end with this input and returns its standard output. A client that hangs is ended.
///
/// # Errors
/// When it cannot be run, hangs for `patience`, or fails; the error quotes it.
pub fn run(command: Command, input: &[u8], patience: Duration) -> anyhow::Result<Vec<u8>> {
    Ok(finish(command, input, patience)?.stdout)
}

/// Runs a client to its end with this input. A client that hangs is ended.
pub(crate) fn finish(mut command: Command, input: &[u8], patience: Duration) -> anyhow::Result<Finished> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let (mut stdout, mut stderr) =
        (child.stdout.take().context("no output")?, child.stderr.take().context("no error")?);
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let reader = std::thread::spawn(move || {
        let mut octets = Vec::new();
        drop(stdout.read_to_end(&mut octets));
        octets
    });
    let complaints = std::thread::spawn(move || {
        let mut octets = Vec::new();
        drop(stderr.read_to_end(&mut octets));
        octets
    });
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > patience && !hung {
            hung = true;
            if let Ok(pid) = i32::try_from(child.id()) {
                drop(sys::kill(pid, libc::SIGKILL));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let took = start.elapsed();
    drop(writer.join());
    let stdout = reader.join().unwrap_or_default();
    let stderr = complaints.join().unwrap_or_default();
    if hung || !status.success() {
        let why = if hung { format!("hung for {patience:?}") } else { status.to_string() };
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        bail!("{command:?}: {why}\n{}\n{}", tail(&out), tail(&err));
    }
    Ok(Finished { stdout, took })
}

fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(2_000).map_or(0, |(at, _)| at);
    text.get(start..).unwrap_or_default()
}
