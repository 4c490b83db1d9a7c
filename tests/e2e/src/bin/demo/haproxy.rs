//! haproxy, to measure by.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::{Authority, Lab, Place, sys};

/// A running haproxy.
pub(crate) struct Haproxy {
    child: Child,
}

impl Haproxy {
    /// Runs it with these sections until it accepts on `address`.
    pub(crate) fn start(
        lab: &Lab,
        place: Place,
        directory: &Path,
        sections: &str,
        address: SocketAddr,
    ) -> anyhow::Result<Self> {
        let config = directory.join("haproxy.cfg");
        let head =
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 120s\n  timeout server 120s\n";
        fs::write(&config, format!("{head}{sections}"))?;
        let log = fs::File::create(directory.join("log"))?;
        let mut command = lab.command(place, "haproxy");
        command.args(["-db", "-f"]).arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot run haproxy")?;
        let mut haproxy = Self { child };
        if let Err(error) = lab.wait_for_port(place, address, Duration::from_secs(5)) {
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            haproxy.end();
            bail!("{error:#}; haproxy said: {}", log.trim());
        }
        Ok(haproxy)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            drop(sys::kill(pid, libc::SIGTERM));
        }
        drop(self.child.wait());
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        self.end();
    }
}

/// Certificate and key for a name in one file, as haproxy wants them.
pub(crate) fn identity(authority: &Authority, name: &str, directory: &Path) -> anyhow::Result<PathBuf> {
    let identity = authority.issue(&[name])?;
    let both = [fs::read(&identity.certificate)?, fs::read(&identity.key)?].concat();
    let pem = directory.join("front.pem");
    fs::write(&pem, both)?;
    Ok(pem)
}
