//! Debian's Cyrus with the lab's own configuration, state and mail. Unpacked beside the system by
//! `deploy/lib/packages.sh`, because the package conflicts with Dovecot's.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::corpus::{Contents, Corpus, User};
use crate::net::{CYRUS, CYRUS_ADDRESSES, Lab, Place};
use crate::pki::Authority;
use crate::server::Server;

/// A running Cyrus: port 143 with STARTTLS, port 993 with TLS, on the server's second address.
#[derive(Debug)]
pub struct Cyrus {
    server: Server,
    refused: Vec<String>,
}

impl Cyrus {
    /// Starts the server, makes the mailboxes and appends the messages.
    ///
    /// # Errors
    /// When Cyrus is not installed or does not come up; the error quotes its log.
    pub fn start(lab: &Lab, authority: &Authority, corpus: &Corpus) -> anyhow::Result<Self> {
        let root = std::env::var_os("WAYPOST_CYRUS_ROOT").map_or_else(|| PathBuf::from(ROOT), PathBuf::from);
        let programs = root.join("usr/lib/cyrus/bin");
        ensure!(
            programs.join("imapd").exists(),
            "Cyrus is not in {}: run deploy/lib/packages.sh, or set WAYPOST_CYRUS_ROOT",
            root.display()
        );
        let directory = lab.directory().join("cyrus");
        for part in ["conf/db", "conf/socket", "conf/proc", "conf/log", "spool", "run"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let identity = authority.issue(&[CYRUS])?;
        let paths = [
            ("@DIR@", &directory),
            ("@CERT@", &identity.certificate),
            ("@KEY@", &identity.key),
            ("@BIN@", &programs),
        ];
        let (v4, v6) = CYRUS_ADDRESSES;
        let fill = |text: &str| {
            let text = paths
                .iter()
                .fold(text.to_owned(), |text, (mark, path)| text.replace(mark, &path.display().to_string()));
            text.replace("@V4@", &v4.to_string()).replace("@V6@", &v6.to_string())
        };
        fs::write(directory.join("imapd.conf"), fill(IMAPD_CONF))?;
        fs::write(directory.join("cyrus.conf"), fill(CYRUS_CONF))?;
        for user in &corpus.users {
            set_password(&directory.join("sasldb2"), user)?;
        }
        own_all(&directory)?;
        let mut command = lab.command(Place::Server, programs.join("master"));
        command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu")).env("CYRUS_VERBOSE", "1");
        command.arg("-C").arg(directory.join("imapd.conf")).arg("-M").arg(directory.join("cyrus.conf"));
        command.arg("-p").arg(directory.join("run/master.pid"));
        let server = Server::start(
            lab,
            command,
            directory.join("log"),
            &[(v4.into(), 993), (v4.into(), 143)],
            PATIENCE,
        )?;
        let fed = Self::feed(lab, corpus);
        let refused =
            fed.with_context(|| format!("Cyrus did not take the mail; its log:\n{}", server.log_text()))?;
        Ok(Self { server, refused })
    }

    /// The awkward messages that Cyrus would not take, each with its reason; office mail is always taken.
    #[must_use]
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// What the server has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.server.log_text()
    }

    /// The server's process.
    pub const fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn feed(lab: &Lab, corpus: &Corpus) -> anyhow::Result<Vec<String>> {
        let corpus = corpus.clone();
        lab.inside(Place::Server, move || {
            let mut refused = Vec::new();
            for user in &corpus.users {
                append_all(&corpus, user, &mut refused)?;
            }
            Ok(refused)
        })?
    }
}

const ROOT: &str = "/opt/waypost-lab/cyrus";
const PATIENCE: Duration = Duration::from_secs(20);
/// Debian's `nobody` and `nogroup`; `cyrus_user` says the same by name.
const OWNER: (u32, u32) = (65_534, 65_534);

fn set_password(database: &Path, user: &User) -> anyhow::Result<()> {
    use std::process::Stdio;
    // The realm of an unqualified login is the server's name.
    let mut command = Command::new("saslpasswd2");
    command.args(["-p", "-c", "-u", CYRUS, "-f"]).arg(database).arg(&user.name);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run saslpasswd2; deploy/lib/packages.sh installs it")?;
    child.stdin.take().context("no standard input")?.write_all(user.password.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "saslpasswd2: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn own_all(path: &Path) -> anyhow::Result<()> {
    // sasldb2 is read by imapd after it has dropped root.
    chown(path, Some(OWNER.0), Some(OWNER.1))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Over the plain port, from the server's own place: `allowplaintext` stands for it in the configuration.
fn append_all(corpus: &Corpus, user: &User, refused: &mut Vec<String>) -> anyhow::Result<()> {
    let mut session = Session::open(user)?;
    for (mailbox, contents) in &user.mailboxes {
        if mailbox != "INBOX" {
            session.command(&format!("CREATE {mailbox}"))?;
        }
        for message in corpus.messages(user, mailbox) {
            // RFC 3501 forbids NUL only, yet Cyrus refuses bare line feeds and headers without end.
            let octets = canonical(&message.octets);
            let flags = if message.seen { "(\\Seen)" } else { "()" };
            let date = internal_date(message.arrived)?;
            match session.append(&format!("APPEND {mailbox} {flags} \"{date}\""), &octets) {
                Err(reason) if *contents == Contents::Awkward => refused.push(format!("{reason:#}")),
                appended => appended?,
            }
        }
    }
    session.command("LOGOUT")
}

fn canonical(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len() + 16);
    let mut before = 0;
    for &octet in octets {
        if octet == b'\n' && before != b'\r' {
            out.push(b'\r');
        }
        out.push(octet);
        before = octet;
    }
    if !out.windows(4).any(|window| window == b"\r\n\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn internal_date(seconds: u64) -> anyhow::Result<String> {
    let when = time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds)?)?;
    let month = when.month().to_string();
    let (date, clock) = (when.date(), when.time());
    Ok(format!(
        "{:02}-{}-{} {:02}:{:02}:{:02} +0000",
        date.day(),
        month.get(..3).unwrap_or("Jan"),
        date.year(),
        clock.hour(),
        clock.minute(),
        clock.second()
    ))
}

struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    fn open(user: &User) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((CYRUS_ADDRESSES.0, 143))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut session = Self { stream: BufReader::new(stream) };
        session.line()?;
        session.command(&format!("LOGIN {} {}", user.name, user.password))?;
        Ok(session)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        ensure!(self.stream.read_until(b'\n', &mut line)? > 0, "Cyrus closed the connection");
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        write!(self.stream.get_mut(), "a {command}\r\n")?;
        self.until_ok(command)
    }

    fn append(&mut self, command: &str, octets: &[u8]) -> anyhow::Result<()> {
        // LITERAL+ (RFC 7888), which Cyrus offers.
        write!(self.stream.get_mut(), "a {command} {{{}+}}\r\n", octets.len())?;
        self.stream.get_mut().write_all(octets)?;
        self.stream.get_mut().write_all(b"\r\n")?;
        self.until_ok(command)
    }

    fn until_ok(&mut self, command: &str) -> anyhow::Result<()> {
        loop {
            let line = self.line()?;
            if line.starts_with("a OK") {
                return Ok(());
            }
            if line.starts_with("a ") {
                bail!("{command}: {}", line.trim());
            }
        }
    }
}

const IMAPD_CONF: &str = "\
configdirectory: @DIR@/conf
partition-default: @DIR@/spool
defaultpartition: default
defaultdomain: lab.test
servername: cyrus.lab.test
cyrus_user: nobody
cyrus_group: nogroup
admins: cyrus
autocreate_quota: 0
autocreate_post: yes
autocreate_inbox_folders: Drafts | Sent | Trash
autocreate_subscribe_folders: Drafts | Sent | Trash
unixhierarchysep: yes
virtdomains: no
allowplaintext: yes
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: @DIR@/sasldb2
sasl_mech_list: PLAIN LOGIN
tls_server_cert: @CERT@
tls_server_key: @KEY@
tls_session_timeout: 0
idlesocket: @DIR@/conf/socket/idle
notifysocket: @DIR@/conf/socket/notify
lmtpsocket: @DIR@/conf/socket/lmtp
duplicatesuppression: no
proc_path: @DIR@/conf/proc
mboxname_lockpath: @DIR@/conf/lock
temp_path: /tmp
sievedir: @DIR@/conf/sieve
search_engine: none
";

const CYRUS_CONF: &str = "\
START {
  recover cmd=\"@BIN@/ctl_cyrusdb -C @DIR@/imapd.conf -r\"
}
SERVICES {
  imap4 cmd=\"@BIN@/imapd -C @DIR@/imapd.conf -U 30\" listen=\"@V4@:143\" prefork=0 maxchild=100
  imaps4 cmd=\"@BIN@/imapd -C @DIR@/imapd.conf -s -U 30\" listen=\"@V4@:993\" prefork=0 maxchild=100
  imap6 cmd=\"@BIN@/imapd -C @DIR@/imapd.conf -U 30\" listen=\"[@V6@]:143\" prefork=0 maxchild=100
  imaps6 cmd=\"@BIN@/imapd -C @DIR@/imapd.conf -s -U 30\" listen=\"[@V6@]:993\" prefork=0 maxchild=100
}
DAEMON {
  idled cmd=\"@BIN@/idled -C @DIR@/imapd.conf\"
}
EVENTS {
}
";
