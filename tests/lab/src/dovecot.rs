//! Debian's Dovecot with the lab's own configuration, state and mail.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::corpus::{Corpus, Message, User};
use crate::net::{DOVECOT, Lab, Place};
use crate::pki::Authority;
use crate::server::Server;

/// A running Dovecot: port 143 with STARTTLS, port 993 with TLS, on the server's first address.
#[derive(Debug)]
pub struct Dovecot {
    server: Server,
    mail: PathBuf,
}

impl Dovecot {
    /// Writes the mailboxes, starts the server and waits until it accepts.
    ///
    /// # Errors
    /// When Dovecot is not installed or does not come up; the error quotes its log.
    pub fn start(lab: &Lab, authority: &Authority, corpus: &Corpus) -> anyhow::Result<Self> {
        Self::start_with(lab, authority, corpus, "")
    }

    /// As [`Dovecot::start`], with more lines for the configuration, which win over the lab's.
    ///
    /// # Errors
    /// As [`Dovecot::start`].
    pub fn start_with(lab: &Lab, authority: &Authority, corpus: &Corpus, more: &str) -> anyhow::Result<Self> {
        let directory = lab.directory().join("dovecot");
        let mail = directory.join("mail");
        fs::create_dir_all(&mail).with_context(|| format!("cannot make {}", mail.display()))?;
        chown(&mail, Some(MAIL_UID), Some(MAIL_GID))?;
        let mut passwords = String::new();
        for user in &corpus.users {
            passwords += &format!("{}:{{PLAIN}}{}\n", user.name, user.password);
            for (mailbox, _) in &user.mailboxes {
                write_maildir(&maildir(&mail, user, mailbox), corpus.messages(user, mailbox))?;
            }
            own_all(&mail.join(&user.name))?;
        }
        fs::write(directory.join("users"), passwords)?;
        let identity = authority.issue(&[DOVECOT])?;
        let (v4, v6) = Place::Server.addresses();
        let conf = CONF
            .replace("@DIR@", &directory.display().to_string())
            .replace("@LISTEN@", &format!("{v4}, {v6}"))
            .replace("@CERT@", &identity.certificate.display().to_string())
            .replace("@KEY@", &identity.key.display().to_string());
        let conf_file = directory.join("dovecot.conf");
        fs::write(&conf_file, conf + more)?;
        let mut command = lab.command(Place::Server, "/usr/sbin/dovecot");
        command.arg("-F").arg("-c").arg(&conf_file);
        let log = directory.join("log");
        let server = Server::start(lab, command, log, &[(v4.into(), 993), (v4.into(), 143)], PATIENCE)?;
        Ok(Self { server, mail })
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

    /// Where a user's mailbox lies, for tests that put mail there or take it away.
    #[must_use]
    pub fn maildir(&self, user: &User, mailbox: &str) -> PathBuf {
        maildir(&self.mail, user, mailbox)
    }

    /// Puts a new message into a mailbox, as a delivery does.
    ///
    /// # Errors
    /// When the mailbox cannot be written.
    pub fn deliver(&self, user: &User, mailbox: &str, message: &Message, name: &str) -> anyhow::Result<()> {
        let directory = self.maildir(user, mailbox);
        let temporary = directory.join("tmp").join(name);
        fs::write(&temporary, &message.octets)?;
        chown(&temporary, Some(MAIL_UID), Some(MAIL_GID))?;
        Ok(fs::rename(&temporary, directory.join("new").join(name))?)
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Debian's `nobody` and `nogroup`: the mail belongs to nobody who can log in.
const MAIL_UID: u32 = 65_534;
const MAIL_GID: u32 = 65_534;

fn maildir(mail: &Path, user: &User, mailbox: &str) -> PathBuf {
    let home = mail.join(&user.name);
    // Maildir++: mailboxes other than INBOX are directories that begin with a dot.
    if mailbox == "INBOX" { home } else { home.join(format!(".{mailbox}")) }
}

fn write_maildir(directory: &Path, messages: impl Iterator<Item = Message>) -> anyhow::Result<()> {
    for part in ["cur", "new", "tmp"] {
        fs::create_dir_all(directory.join(part))?;
    }
    for (number, message) in messages.enumerate() {
        // S and W save Dovecot from reading every message to answer RFC822.SIZE; W counts LF as CRLF.
        let size = message.octets.len();
        let bare = bare_line_feeds(&message.octets);
        let flags = if message.seen { "S" } else { "" };
        let name = format!("{}.M{number:06}P1.lab,S={size},W={}:2,{flags}", message.arrived, size + bare);
        let path = directory.join("cur").join(name);
        fs::write(&path, &message.octets)?;
        // The file's time is INTERNALDATE.
        let arrived = std::time::UNIX_EPOCH + Duration::from_secs(message.arrived);
        fs::File::options().write(true).open(&path)?.set_modified(arrived)?;
    }
    Ok(())
}

fn bare_line_feeds(octets: &[u8]) -> usize {
    let first = usize::from(octets.first() == Some(&b'\n'));
    first + octets.windows(2).filter(|pair| matches!(pair, [before, b'\n'] if *before != b'\r')).count()
}

fn own_all(path: &Path) -> anyhow::Result<()> {
    chown(path, Some(MAIL_UID), Some(MAIL_GID))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own_all(&entry?.path())?;
        }
    }
    Ok(())
}

const CONF: &str = "\
base_dir = @DIR@/run
state_dir = @DIR@/state
log_path = @DIR@/log
protocols = imap
listen = @LISTEN@
ssl = yes
ssl_cert = <@CERT@
ssl_key = <@KEY@
auth_mechanisms = plain login
mail_location = maildir:@DIR@/mail/%u
first_valid_uid = 1
mail_uid = nobody
mail_gid = nogroup
mail_max_userip_connections = 100
default_internal_user = dovecot
default_login_user = dovenull
passdb {
  driver = passwd-file
  args = @DIR@/users
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=@DIR@/mail/%u
}
service imap-login {
  inet_listener imap {
    port = 143
  }
  inet_listener imaps {
    port = 993
    ssl = yes
  }
}
mail_plugins = $mail_plugins acl
protocol imap {
  mail_plugins = $mail_plugins imap_acl imap_zlib
}
plugin {
  acl = vfile
  acl_shared_dict = file:@DIR@/mail/shared-mailboxes
}
namespace inbox {
  inbox = yes
  separator = /
  mailbox Drafts {
    special_use = \\Drafts
    auto = subscribe
  }
  mailbox Sent {
    special_use = \\Sent
    auto = subscribe
  }
  mailbox Trash {
    special_use = \\Trash
    auto = subscribe
  }
}
namespace shared {
  type = shared
  separator = /
  prefix = shared/%%u/
  location = maildir:@DIR@/mail/%%u:INDEXPVT=@DIR@/mail/%u/shared/%%u
  subscriptions = no
  list = children
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_line_feeds_are_counted_everywhere() {
        assert_eq!(bare_line_feeds(b"\na\r\nb\n\nc\r\n"), 3);
        assert_eq!(bare_line_feeds(b""), 0);
    }
}
