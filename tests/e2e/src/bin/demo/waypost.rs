//! The executable under test, a black box: its configuration, its process, what it costs.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::{Authority, Lab, Place, sys};

use crate::arm::IMAPS;

/// A store for a node.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    /// Names the state's directory.
    pub(crate) name: String,
    /// Sealed with a key on disk.
    pub(crate) sealed: bool,
    /// More lines for the file's `[[server]]`.
    pub(crate) server_lines: String,
    /// More lines for the file's `[store]`.
    pub(crate) store_lines: String,
    /// Where the node finds the server.
    pub(crate) origin: SocketAddr,
}

impl Store {
    /// As a new site has it: nothing sealed.
    pub(crate) fn plain(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            sealed: false,
            server_lines: String::new(),
            store_lines: String::new(),
            origin: SocketAddr::new(Place::Server.v4(), IMAPS),
        }
    }
}

/// A running node in the branch.
#[derive(Debug)]
pub(crate) struct Waypost {
    child: Child,
    directory: PathBuf,
}

impl Waypost {
    /// Writes a configuration and runs `waypost run -c` on it until it accepts clients.
    pub(crate) fn start(
        lab: &Lab,
        authority: &Authority,
        executable: &Path,
        store: &Store,
    ) -> anyhow::Result<Self> {
        let directory = lab.directory().join(format!("waypost-{}", store.name));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let identity = authority.issue(&[lab::net::DOVECOT])?;
        let (cert, key) = (directory.join("front.pem"), directory.join("front.key"));
        fs::copy(&identity.certificate, &cert)?;
        fs::copy(&identity.key, &key)?;
        private(&key)?;
        let mut seal = String::new();
        if store.sealed {
            let file = directory.join("seal.key");
            let mut octets = [0; 32];
            fs::File::open("/dev/urandom")?.read_exact(&mut octets)?;
            fs::write(&file, octets)?;
            private(&file)?;
            seal = format!("seal_key_file = \"{}\"\n", file.display());
        }
        let config = directory.join("waypost.toml");
        let text = format!(
            "version = 1\n\n[node]\nid = \"branch-1\"\nsite = \"lab\"\nstate_dir = \"{dir}\"\n\n\
             [admin]\nsocket = \"{dir}/admin.sock\"\nlisten = \"{ADMIN}\"\n\n\
             [tls]\nmint = false\ncert = \"{cert}\"\nkey = \"{key}\"\n\n\
             [[server]]\nname = \"{name}\"\naddresses = [\"{origin}\"]\nport = {port}\nca = \"{ca}\"\n{server}\n\
             [[listener]]\naddress = \"{branch}:{IMAPS}\"\nserver = \"{name}\"\n\n\
             [store]\npath = \"{dir}/store\"\n{seal}{more}",
            dir = directory.display(),
            cert = cert.display(),
            key = key.display(),
            name = lab::net::DOVECOT,
            origin = store.origin.ip(),
            port = store.origin.port(),
            ca = authority.certificate().display(),
            server = store.server_lines,
            branch = Place::Branch.v4(),
            more = store.store_lines,
        );
        fs::write(&config, text)?;
        let log = fs::File::options().append(true).create(true).open(directory.join("log"))?;
        let mut command = lab.command(Place::Branch, executable);
        command.args(["run", "-c"]).arg(&config).stdout(log.try_clone()?).stderr(log);
        // A group of its own: Ctrl-C ends it through us, in order.
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = child.with_context(|| format!("cannot run {}", executable.display()))?;
        let mut node = Self { child, directory };
        let address = SocketAddr::new(Place::Branch.v4(), IMAPS);
        let start = Instant::now();
        while lab.wait_for_port(Place::Client, address, Duration::ZERO).is_err() {
            if let Some(status) = node.child.try_wait()? {
                bail!("waypost ended at once ({status}); its log:\n{}", node.log_text());
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "waypost does not accept on {address} after {PATIENCE:?}; its log:\n{}",
                    node.log_text()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(node)
    }

    /// Its directory: configuration, log, state, store.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its store.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// What it has logged.
    pub(crate) fn log_text(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits until it has.
    pub(crate) fn stop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        drop(sys::kill(pid, libc::SIGTERM));
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(5) {
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Waypost {
    fn drop(&mut self) {
        self.stop();
    }
}

fn private(file: &Path) -> std::io::Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))
}

const ADMIN: &str = "127.0.0.1:9143";
const PATIENCE: Duration = Duration::from_secs(15);
