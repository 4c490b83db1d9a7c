//! A server process of the lab: started, waited for, ended with everything below it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::net::{Lab, Place};
use crate::sys;

/// A running server. Dropping it asks it to end, and insists after three seconds.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts the command, with its standard output and error appended to `log`, and waits until it accepts
    /// connections from the server's own place.
    ///
    /// # Errors
    /// When it ends or does not accept within `patience`; the error quotes the log.
    pub fn start(
        lab: &Lab,
        mut command: Command,
        log: PathBuf,
        accepts: &[(IpAddr, u16)],
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let file = fs::File::options().append(true).create(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Cyrus's master ends its whole process group, which must not be the test's or another server's.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut server = Self { child, log };
        for (address, port) in accepts {
            let address = SocketAddr::new(*address, *port);
            let start = Instant::now();
            while lab.wait_for_port(Place::Server, address, Duration::ZERO).is_err() {
                if let Some(status) = server.child.try_wait()? {
                    bail!("{command:?} ended at once ({status}); its log:\n{}", server.log_text());
                }
                if start.elapsed() > patience {
                    bail!("nothing accepts on {address} after {patience:?}; the log:\n{}", server.log_text());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(server)
    }

    /// What the server has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read(&self.log).map(|octets| String::from_utf8_lossy(&octets).into_owned()).unwrap_or_default()
    }

    /// The server's main process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the server and waits until it has.
    pub fn stop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        drop(sys::kill(pid, libc::SIGTERM));
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(3) {
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
