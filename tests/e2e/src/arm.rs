//! The same work by the same client, direct and through the executable, and what the client was given each time.
//!
//! A recorder stands beside the client in every arm and tells the items apart; see decisions/0002 for what counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::clients::{self, Account};
use lab::{Lab, LinkCounters, Place, sys};
use serde::Deserialize;
use serde_json::json;

use crate::site::{Server, Site, Way};

/// What two arms may differ in. The list is closed.
pub(crate) const IGNORED: [&str; 6] = [
    "tags",
    "the text after a status response's code",
    "the greeting",
    "CAPABILITY",
    "the arrival order of unsolicited data",
    "the order of FETCH responses within one command",
];

/// A mail client of Debian's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Mbsync,
    Mutt,
    Curl,
    Imaplib,
    Thunderbird,
    /// The lab's own, with all kinds of items.
    Scripted,
}

/// What a client was given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Given {
    /// SHA-256 of each value, by `mailbox/uid/label`.
    pub(crate) digest: BTreeMap<String, String>,
    flags: BTreeMap<String, Vec<String>>,
    conflicts: Vec<String>,
    /// How often each command was said.
    commands: BTreeMap<String, u32>,
    /// Octets from the server's side.
    pub(crate) octets: u64,
    connections: u32,
    trouble: Vec<String>,
}

/// One arm.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    pub(crate) given: Given,
    /// What the client itself made of it.
    result: String,
    /// The flags at the server afterwards, by `mailbox/uid`.
    flags: BTreeMap<String, Vec<String>>,
    /// What crossed the wide-area line.
    pub(crate) wan: LinkCounters,
    pub(crate) took: Duration,
}

/// The three arms of one client's work.
#[derive(Debug)]
pub(crate) struct Arms {
    pub(crate) direct: Arm,
    pub(crate) cold: Arm,
    pub(crate) warm: Arm,
}

impl Arms {
    /// Direct; through the executable with an empty store; and once more.
    pub(crate) fn run(site: &Site, server: Server, client: Client, user: &str) -> anyhow::Result<Self> {
        let before = flags_at_server(site, server, user)?;
        let arm = |way, name: &str| {
            restore_flags(site, server, user, &before)?;
            one(site, server, client, user, way, name).with_context(|| format!("{client:?}, arm {name}"))
        };
        let direct = arm(Way::Direct, "direct")?;
        let cold = arm(Way::Waypost, "cold")?;
        // What the first client fetched may still be on its way to the disk.
        site.lab.wan()?.wait_flat(Duration::from_millis(500), Duration::from_secs(10))?;
        Ok(Self { direct, cold, warm: arm(Way::Waypost, "warm")? })
    }

    /// Fails unless the client was given the same in all arms.
    pub(crate) fn are_identical(&self) -> anyhow::Result<()> {
        ensure!(!self.direct.given.digest.is_empty(), "the client was given nothing at all");
        for (name, arm) in [("direct", &self.direct), ("cold", &self.cold), ("warm", &self.warm)] {
            let Given { conflicts, trouble, .. } = &arm.given;
            ensure!(trouble.is_empty(), "{name}: {}", trouble.join("; "));
            ensure!(conflicts.is_empty(), "{name}: values changed within the arm: {}", conflicts.join(", "));
        }
        for (name, arm) in [("cold", &self.cold), ("warm", &self.warm)] {
            same(name, "item", &self.direct.given.digest, &arm.given.digest)?;
            same(name, "flags at the server of", &self.direct.flags, &arm.flags)?;
            ensure!(
                self.direct.result == arm.result,
                "{name}: the client itself got something else: {} and not {}",
                arm.result,
                self.direct.result
            );
        }
        Ok(())
    }
}

fn same<V: PartialEq>(
    arm: &str,
    what: &str,
    direct: &BTreeMap<String, V>,
    other: &BTreeMap<String, V>,
) -> anyhow::Result<()> {
    let keys = direct.keys().chain(other.keys().filter(|key| !direct.contains_key(*key)));
    let different: Vec<String> = keys
        .filter(|key| direct.get(*key) != other.get(*key))
        .map(|key| match (direct.get(key), other.get(key)) {
            (Some(_), None) => format!("{key} (direct only)"),
            (None, Some(_)) => format!("{key} (not direct)"),
            (_, _) => key.clone(),
        })
        .collect();
    let shown = different.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    ensure!(different.is_empty(), "{arm}: {} differ: {what} {shown}", different.len());
    Ok(())
}

fn one(site: &Site, server: Server, client: Client, user: &str, way: Way, name: &str) -> anyhow::Result<Arm> {
    let profile = site.lab.directory().join(format!("{client:?}-{user}-{name}"));
    fs::create_dir_all(&profile)?;
    let recorder = Recorder::start(site, server, way, &profile, &site.kept.join(name))?;
    site.lab.set_hosts(Place::Client, &[(server.host(), LOOPBACK)])?;
    let account = Account { port: RECORDER_PORT, ca: site.front_ca(), ..site.account(server, way, user)? };
    site.lab.wan()?.reset()?;
    let start = Instant::now();
    let result = work(site, &account, client, &profile)?;
    let took = start.elapsed();
    let wan = site.lab.wan()?.read()?;
    let given = recorder.stop()?;
    Ok(Arm { given, result, flags: flags_at_server(site, server, user)?, wan, took })
}

fn work(site: &Site, account: &Account, client: Client, profile: &Path) -> anyhow::Result<String> {
    let (lab, place) = (&site.lab, Place::Client);
    let mailboxes: Vec<&str> =
        site.user(&account.user)?.mailboxes.iter().map(|(name, _)| name.as_str()).collect();
    let mut results = Vec::new();
    match client {
        Client::Mbsync => {
            for mailbox in mailboxes {
                let run = clients::mbsync_mailbox(lab, place, account, mailbox, &profile.join(mailbox))?;
                ensure!(run.messages > 0, "mbsync got no message of {mailbox}");
                results.push(format!("{mailbox} {} {}", run.messages, run.digest));
            }
        }
        Client::Mutt => {
            for number in [1, 2, 5] {
                results.push(clients::mutt(lab, place, account, number, profile)?.1);
            }
        }
        Client::Curl => {
            for mailbox in mailboxes {
                for uid in 1..=5 {
                    results.push(clients::curl(lab, place, account, mailbox, uid)?.1);
                }
            }
        }
        Client::Imaplib => results.push(imaplib(lab, account, &mailboxes, profile)?),
        Client::Thunderbird => {
            let home = profile.join("home");
            let mut program = clients::Thunderbird::start(lab, place, account, &home, MARIONETTE_PORT)?;
            let count = site.corpus.messages(site.user(&account.user)?, "INBOX").count();
            program.show(&account.password, "INBOX", count)?;
            for uid in [1, 2, 5, 6, 9, 2] {
                program.open(uid)?;
                // Nobody says when it is done; what comes out of the store does not cross the line, and is quicker.
                lab.wan()?.wait_flat(Duration::from_secs(1), Duration::from_secs(30))?;
            }
            results.extend(program.list()?.into_iter().map(|(uid, shown)| format!("{uid} {shown}")));
        }
        Client::Scripted => {
            let mut acts = Vec::new();
            for mailbox in mailboxes {
                let mut commands = vec![format!("SELECT {mailbox}")];
                commands.extend(ITEMS.iter().map(|items| format!("UID FETCH 1:* ({items})")));
                commands.extend(ITEMS.iter().map(|items| format!("FETCH 2:4,1 (UID {items})")));
                commands.push("UID FETCH 3:5 (BODY[] FLAGS)".to_owned());
                acts.push(clients::Act { name: mailbox.to_owned(), commands, ..clients::Act::default() });
            }
            let report = clients::scripted(lab, place, account, &acts)?;
            ensure!(report.conflicts.is_empty(), "values changed: {}", report.conflicts.join(", "));
            results.extend(report.digest.values().cloned());
        }
    }
    Ok(results.join(" "))
}

const MARIONETTE_PORT: u16 = 2828;

/// What mail readers ask for, and what slicers get wrong.
const ITEMS: [&str; 14] = [
    "FLAGS INTERNALDATE RFC822.SIZE",
    "ENVELOPE",
    "BODYSTRUCTURE",
    "BODY.PEEK[]",
    "BODY.PEEK[HEADER]",
    "BODY.PEEK[TEXT]",
    "BODY.PEEK[HEADER.FIELDS (From To Cc Subject Date Message-ID References)]",
    "BODY.PEEK[HEADER.FIELDS.NOT (Received From)]",
    "BODY.PEEK[1]",
    "BODY.PEEK[1.MIME]",
    "BODY.PEEK[2]",
    "BODY.PEEK[1.1]",
    "BODY.PEEK[]<0.2048>",
    "BODY.PEEK[]<1000.100000>",
];

fn imaplib(lab: &Lab, account: &Account, mailboxes: &[&str], profile: &Path) -> anyhow::Result<String> {
    let program = profile.join("imaplib_reader.py");
    fs::write(&program, include_str!("../py/imaplib_reader.py"))?;
    let mut command = lab.command(Place::Client, "python3");
    command.arg(&program);
    let script = json!({
        "host": account.host, "port": account.port, "ca": account.ca, "user": account.user,
        "password": account.password, "mailboxes": mailboxes,
    });
    let output = clients::run(command, script.to_string().as_bytes(), Duration::from_secs(120))?;
    Ok(String::from_utf8(output)?)
}

/// The flags of all messages of a user, without \Recent, asked beside the server.
pub(crate) fn flags_at_server(
    site: &Site,
    server: Server,
    user: &str,
) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut wire = site.beside(server, user)?;
    let mut flags = BTreeMap::new();
    for (mailbox, _) in &site.user(user)?.mailboxes {
        wire.command(&format!("EXAMINE {mailbox}"))?.ok()?;
        let reply = wire.command("UID FETCH 1:* (FLAGS)")?.ok()?;
        for response in reply.untagged.iter().filter_map(|response| uid_and_flags(&response.text())) {
            flags.insert(format!("{mailbox}/{}", response.0), response.1);
        }
    }
    Ok(flags)
}

fn uid_and_flags(text: &str) -> Option<(u32, Vec<String>)> {
    let uid = text.split("UID ").nth(1)?.split([' ', ')']).next()?.parse().ok()?;
    let list = text.split("FLAGS (").nth(1)?.split(')').next()?;
    let mut flags: Vec<String> =
        list.split_whitespace().filter(|flag| *flag != "\\Recent").map(str::to_owned).collect();
    flags.sort_unstable();
    Some((uid, flags))
}

fn restore_flags(
    site: &Site,
    server: Server,
    user: &str,
    before: &BTreeMap<String, Vec<String>>,
) -> anyhow::Result<()> {
    let mut wire = site.beside(server, user)?;
    let mut selected = "";
    for (key, flags) in before {
        let (mailbox, uid) = key.rsplit_once('/').context("a key without a mailbox")?;
        if mailbox != selected {
            wire.command(&format!("SELECT {mailbox}"))?.ok()?;
            selected = mailbox;
        }
        wire.command(&format!("UID STORE {uid} FLAGS.SILENT ({})", flags.join(" ")))?.ok()?;
    }
    wire.command("LOGOUT")?;
    Ok(())
}

struct Recorder {
    child: Child,
    out: PathBuf,
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const RECORDER_PORT: u16 = 9993;

impl Recorder {
    fn start(site: &Site, server: Server, way: Way, profile: &Path, raw: &Path) -> anyhow::Result<Self> {
        let program = profile.join("recorder.py");
        let client = profile.join("imap_client.py");
        fs::write(&program, include_str!("../py/recorder.py"))?;
        fs::write(&client, clients::SCRIPTED_CLIENT)?;
        let out = profile.join("given.json");
        site.send_clients(way)?;
        let port = if way == Way::Direct { 993 } else { server.ports().0 };
        let ca = if way == Way::Direct { site.authority.certificate() } else { site.front_ca() };
        let identity = site.front();
        let script = json!({
            "listen": [LOOPBACK, RECORDER_PORT],
            "to": [site.lab.address_of(Place::Client, server.host())?, port],
            "name": server.host(), "cert": identity.certificate, "key": identity.key, "ca": ca, "out": out, "raw": raw,
        });
        let log = fs::File::create(profile.join("recorder.log"))?;
        let mut command = site.lab.command(Place::Client, "python3");
        command.arg(&program).arg(&client).stdin(Stdio::piped()).stderr(log);
        let mut child = command.spawn()?;
        child.stdin.take().context("no standard input")?.write_all(script.to_string().as_bytes())?;
        let recorder = Self { child, out };
        let address = SocketAddr::new(LOOPBACK, RECORDER_PORT);
        site.lab.wait_for_port(Place::Client, address, Duration::from_secs(10))?;
        Ok(recorder)
    }

    fn stop(mut self) -> anyhow::Result<Given> {
        sys::kill(i32::try_from(self.child.id())?, libc::SIGTERM)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(10) {
                bail!("the recorder does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let text = fs::read(&self.out).context("the recorder wrote nothing")?;
        serde_json::from_slice(&text).context("the recorder's report cannot be read")
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_in_either_order() {
        let expected = Some((7, vec!["$x".to_owned(), "\\Seen".to_owned()]));
        assert_eq!(uid_and_flags("* 3 FETCH (UID 7 FLAGS (\\Seen \\Recent $x))"), expected);
        assert_eq!(uid_and_flags("* 3 FETCH (FLAGS (\\Seen $x) UID 7)"), expected);
        assert_eq!(uid_and_flags("* 3 EXISTS"), None);
    }

    #[test]
    fn one_changed_missing_or_added_item_is_a_difference() {
        let map = |pairs: &[(&str, u8)]| pairs.iter().map(|(key, v)| ((*key).to_owned(), *v)).collect();
        let direct: BTreeMap<String, u8> = map(&[("a", 1), ("b", 2)]);
        assert!(same("cold", "item", &direct, &direct).is_ok());
        for other in [map(&[("a", 1), ("b", 3)]), map(&[("a", 1)]), map(&[("a", 1), ("b", 2), ("c", 3)])] {
            assert!(same("cold", "item", &direct, &other).is_err());
        }
    }
}
