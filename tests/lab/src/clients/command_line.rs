//! mbsync, mutt and curl.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Account, finish};
use crate::net::{Lab, Place};

/// What a synchronisation did.
#[derive(Debug, Clone, PartialEq)]
pub struct MbsyncRun {
    /// Wall time of the whole program.
    pub seconds: f64,
    /// Messages in the local Maildir afterwards.
    pub messages: usize,
    /// SHA-256 over the sorted digests of all messages and their flags, without mbsync's own UIDs.
    pub digest: String,
    /// The local Maildir.
    pub maildir: PathBuf,
}

/// Pulls a user's INBOX into a Maildir below `profile` (made if absent; the same profile again syncs the rest).
///
/// # Errors
/// When mbsync fails; the error quotes it.
pub fn mbsync(lab: &Lab, place: Place, account: &Account, profile: &Path) -> anyhow::Result<MbsyncRun> {
    mbsync_mailbox(lab, place, account, "INBOX", profile)
}

/// As [`mbsync`], with another mailbox.
///
/// # Errors
/// When mbsync fails; the error quotes it.
pub fn mbsync_mailbox(
    lab: &Lab,
    place: Place,
    account: &Account,
    mailbox: &str,
    profile: &Path,
) -> anyhow::Result<MbsyncRun> {
    let maildir = profile.join("mail");
    fs::create_dir_all(&maildir)?;
    let config = profile.join("mbsyncrc");
    fs::write(
        &config,
        format!(
            "IMAPStore far\nHost {}\nPort {}\nUser {}\nPass {}\nSSLType IMAPS\nCertificateFile {}\n\
             SystemCertificates no\n\nMaildirStore near\nPath {dir}/\nInbox {dir}/INBOX\n\n\
             Channel inbox\nFar :far:{mailbox}\nNear :near:INBOX\nCreate Near\nSync Pull\nSyncState *\n",
            account.host,
            account.port,
            account.user,
            account.password,
            account.ca.display(),
            dir = maildir.display(),
        ),
    )?;
    let mut command = lab.command(place, "mbsync");
    command.env("HOME", profile).arg("-c").arg(&config).arg("inbox");
    let finished = finish(command, b"", Duration::from_secs(900))?;
    let maildir = maildir.join("INBOX");
    let (messages, digest) = maildir_digest(&maildir)?;
    Ok(MbsyncRun { seconds: finished.took.as_secs_f64(), messages, digest, maildir })
}

fn maildir_digest(maildir: &Path) -> anyhow::Result<(usize, String)> {
    let mut messages = Vec::new();
    for part in ["cur", "new"] {
        for entry in fs::read_dir(maildir.join(part))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let flags = name.rsplit_once(":2,").map_or("", |(_, flags)| flags);
            let digest = hex(&Sha256::digest(without_own_header(&fs::read(entry.path())?)));
            messages.push(format!("{digest} {flags}"));
        }
    }
    messages.sort_unstable();
    Ok((messages.len(), hex(&Sha256::digest(messages.join("\n")))))
}

/// mbsync marks what it stores with a random `X-TUID` header.
fn without_own_header(message: &[u8]) -> Vec<u8> {
    message
        .split_inclusive(|octet| *octet == b'\n')
        .filter(|line| !line.starts_with(b"X-TUID: "))
        .flatten()
        .copied()
        .collect()
}

/// Opens message `number` of INBOX in mutt and saves what it got; caches are off. Returns the wall time of the
/// whole program (connect, login, header list, open) and the SHA-256 of the message as mutt piped it.
///
/// # Errors
/// When mutt fails or writes no message.
pub fn mutt(
    lab: &Lab,
    place: Place,
    account: &Account,
    number: usize,
    profile: &Path,
) -> anyhow::Result<(f64, String)> {
    fs::create_dir_all(profile)?;
    let (config, saved) = (profile.join("muttrc"), profile.join("opened"));
    drop(fs::remove_file(&saved));
    let Account { host, port, user, password, ca } = account;
    // pipe_decode off: the message's own octets. The digits jump, Enter opens, | pipes, q leaves.
    fs::write(
        &config,
        format!(
            "set folder=\"imaps://{user}@{host}:{port}/\"\nset spoolfile=\"imaps://{user}@{host}:{port}/INBOX\"\n\
             set imap_user=\"{user}\"\nset imap_pass=\"{password}\"\nset certificate_file=\"{ca}\"\n\
             set ssl_ca_certificates_file=\"{ca}\"\nset ssl_force_tls=yes\nset header_cache=\"\"\n\
             set message_cachedir=\"\"\nset quit=yes\nset wait_key=no\nset pager_stop\nset sort=mailbox-order\n\
             unset pipe_decode\nunset imap_peek\nunset mark_old\nset imap_idle=no\n\
             push \"{number}<enter><display-message><pipe-message>cat >{saved}<enter><exit><quit>\"\n",
            ca = ca.display(),
            saved = saved.display(),
        ),
    )?;
    // mutt wants a terminal: script(1) gives it one.
    let mut command = lab.command(place, "script");
    let run = format!("mutt -n -F {}", config.display());
    command.args(["-qec", &run, "/dev/null"]).env("TERM", "vt100").env("HOME", profile);
    let finished = finish(command, b"", Duration::from_secs(180))?;
    let octets = fs::read(&saved)?;
    anyhow::ensure!(!octets.is_empty(), "mutt wrote nothing for message {number}");
    Ok((finished.took.as_secs_f64(), hex(&Sha256::digest(octets))))
}

/// Fetches one message by UID with curl; returns wall time and the message's SHA-256.
///
/// # Errors
/// When curl fails; the error quotes it.
pub fn curl(
    lab: &Lab,
    place: Place,
    account: &Account,
    mailbox: &str,
    uid: u32,
) -> anyhow::Result<(f64, String)> {
    let mut command = lab.command(place, "curl");
    command.args(["-sS", "--cacert"]).arg(&account.ca).args(["-K", "-"]);
    command.arg(format!("imaps://{}:{}/{mailbox};UID={uid}", account.host, account.port));
    // On standard input: an argument shows in the process list.
    let secret = format!("user = \"{}:{}\"\n", account.user, account.password);
    let finished = finish(command, secret.as_bytes(), Duration::from_secs(300))?;
    Ok((finished.took.as_secs_f64(), hex(&Sha256::digest(&finished.stdout))))
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
