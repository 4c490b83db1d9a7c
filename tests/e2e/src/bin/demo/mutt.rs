//! mutt with its caches off, at a terminal of its own.

use std::fs;
use std::io::Write as _;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::arm::{Arm, Ground, READER};
use crate::clients::Program;
use crate::mail::Mail;

/// A running mutt.
pub(crate) struct Mutt {
    child: Child,
    keys: ChildStdin,
    /// It stands in the pager, not in the list.
    reading: bool,
}

impl Program for Mutt {
    const NAME: &'static str = "mutt";
    const PLACE: usize = 0;
    const STARTS_SLOWLY: bool = false;

    fn start(ground: &Ground, arm: Arm, port: u16, mailbox: &str) -> anyhow::Result<Self> {
        let profile = ground.lab.directory().join(format!("mutt-{}", arm.name()));
        drop(fs::remove_dir_all(&profile));
        fs::create_dir_all(&profile)?;
        let account = ground.account_at(READER, port)?;
        let config = profile.join("muttrc");
        let url = format!("imaps://{}@localhost:{port}", account.user);
        // Opening marks as read on the server; nothing is asked for that nobody asked for.
        fs::write(
            &config,
            format!(
                "set folder=\"{url}/\"\nset spoolfile=\"{url}/{mailbox}\"\nset imap_user=\"{}\"\n\
                 set imap_pass=\"{}\"\nset ssl_ca_certificates_file=\"{ca}\"\nset certificate_file=\"{ca}\"\n\
                 set ssl_force_tls=yes\nset header_cache=\"\"\nset message_cachedir=\"\"\nset quit=yes\n\
                 set wait_key=no\nset pager_stop\nset sort=mailbox-order\nunset imap_peek\nunset mark_old\n\
                 set imap_idle=no\nset mail_check=3600\nset timeout=3600\nset imap_keepalive=3600\n\
                 unset imap_check_subscribed\nset delete=no\nset sleep_time=0\nunset move\nunset confirmappend\n",
                account.user,
                account.password,
                ca = account.ca.display(),
            ),
        )?;
        // mutt wants a terminal: script(1) gives it one.
        let mut command = ground.lab.command(arm.place(), "script");
        command.args(["-qec", &format!("mutt -n -F {}", config.display()), "/dev/null"]);
        command.env("TERM", "vt100").env("HOME", &profile).env("COLUMNS", "100").env("LINES", "30");
        let output = fs::File::create(profile.join("screen"))?;
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let mut child = command.spawn().context("cannot run script(1)")?;
        let keys = child.stdin.take().context("no keyboard")?;
        Ok(Self { child, keys, reading: false })
    }

    fn open(&mut self, mail: &Mail) -> anyhow::Result<()> {
        // Back to the list, the message's number, Enter to go there, Enter to open.
        let back = if self.reading { "q" } else { "" };
        self.keys.write_all(format!("{back}{}\r\r", mail.uid).as_bytes())?;
        self.keys.flush()?;
        self.reading = true;
        Ok(())
    }

    fn end(mut self) {
        drop(self.keys.write_all(if self.reading { b"qq" } else { b"q" }));
        drop(self.keys.flush());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
