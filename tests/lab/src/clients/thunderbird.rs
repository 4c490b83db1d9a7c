//! Thunderbird without a screen, driven through Marionette: an empty profile for each start, its offline store off.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::Account;
use crate::net::{Lab, Place};
use crate::sys;

/// A running Thunderbird. Dropping it ends it.
pub struct Thunderbird {
    child: Child,
    remote: Marionette,
}

impl Thunderbird {
    /// Starts it with an empty profile in the directory `profile`, which is made anew. `control` is the port of its
    /// remote control: two in one place need different ones.
    ///
    /// # Errors
    /// When it is not installed, or cannot be driven within a minute; the error quotes what it said.
    pub fn start(
        lab: &Lab,
        place: Place,
        account: &Account,
        profile: &Path,
        control: u16,
    ) -> anyhow::Result<Self> {
        drop(fs::remove_dir_all(profile));
        fs::create_dir_all(profile)?;
        fs::write(profile.join("user.js"), preferences(account, control))?;
        trust(&account.ca, profile)?;
        let mut command = lab.command(place, "thunderbird");
        command.args([
            "--headless",
            "--no-remote",
            "--marionette",
            "--remote-allow-system-access",
            "--profile",
        ]);
        command
            .arg(profile)
            .env("HOME", profile)
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .env_remove("DISPLAY");
        command.env("MOZ_CRASHREPORTER_DISABLE", "1").env("LIBGL_ALWAYS_SOFTWARE", "1");
        // Inside a namespace that root has made there is nothing left to be shut in by.
        command.env("MOZ_DISABLE_CONTENT_SANDBOX", "1");
        let output = fs::File::create(profile.join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let mut child = command.spawn().context("cannot run thunderbird")?;
        match connect(lab, place, control) {
            Ok(remote) => Ok(Self { child, remote }),
            Err(error) => {
                end(&mut child);
                let said = fs::read_to_string(profile.join("output")).unwrap_or_default();
                Err(error.context(format!("Thunderbird said: {}", said.trim())))
            }
        }
    }

    /// Logs in, shows the mailbox and waits until its list has so many messages.
    ///
    /// # Errors
    /// When the list is not complete within a minute.
    pub fn show(&mut self, password: &str, mailbox: &str, messages: usize) -> anyhow::Result<()> {
        // Asked again and again: while the window comes up, it may put another mailbox in front.
        let show = "\
            if (!pane) return 0; \
            let server = MailServices.accounts.accounts.find(one => one.incomingServer.type == 'imap').incomingServer; \
            server.password = arguments[0]; \
            let folder = server.rootFolder.descendants.find(one => one.name.toUpperCase() == arguments[1].toUpperCase()); \
            let now_and_then = arguments[2] % 25 == 0; \
            if (!folder) { if (now_and_then) server.performExpand(null); return -1; } \
            if (pane.gFolder != folder) { pane.displayFolder(folder); return -2; } \
            if (now_and_then && arguments[2] > 0) folder.updateFolder(null); \
            return pane.gDBView ? folder.getTotalMessages(false) : -3;";
        let (start, messages) = (Instant::now(), i64::try_from(messages)?);
        for attempt in 0u32.. {
            let got = self.remote.run(show, json!([password, mailbox, attempt]))?;
            if got.as_i64().is_some_and(|got| got >= messages) {
                break;
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "Thunderbird came to {got} instead of {messages} messages of {mailbox} within {PATIENCE:?}"
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
    /// The list as it stands there: UID and what its columns show.
    ///
    /// # Errors
    /// When the application answers in another way than expected.
    pub fn list(&mut self) -> anyhow::Result<Vec<(u32, String)>> {
        let script = "\
            let lines = []; \
            for (let header of pane.gFolder.messages) { \
                lines.push([header.messageKey, [header.mime2DecodedSubject, header.mime2DecodedAuthor, \
                    header.messageSize, header.dateInSeconds, header.messageId].join(' | ')]); \
            } \
            return lines;";
        serde_json::from_value(self.remote.run(script, json!([]))?)
            .context("Thunderbird's list cannot be read")
    }

    /// Opens a message of the list, as a click does.
    ///
    /// # Errors
    /// When it is not in the list.
    pub fn open(&mut self, uid: u32) -> anyhow::Result<()> {
        let script = "\
            let header = pane.gFolder.msgDatabase.getMsgHdrForKey(arguments[0]); \
            let row = pane.gDBView.findIndexOfMsgHdr(header, true); \
            pane.threadTree.selectedIndex = row; return row;";
        let row = self.remote.run(script, json!([uid]))?;
        ensure!(row.as_u64().is_some(), "message {} is not in Thunderbird's list: {row}", uid);
        Ok(())
    }
}

impl Drop for Thunderbird {
    fn drop(&mut self) {
        drop(self.remote.send("Marionette:Quit", json!({"flags": ["eForceQuit"]})));
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let start = Instant::now();
    let pid = i32::try_from(child.id()).unwrap_or(0);
    while !matches!(child.try_wait(), Ok(Some(_))) {
        if start.elapsed() > Duration::from_secs(10) {
            drop(child.kill());
            drop(child.wait());
            return;
        }
        if start.elapsed() > Duration::from_secs(5) {
            drop(sys::kill(pid, libc::SIGTERM));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes a certificate database in the profile that trusts the lab's authority.
fn trust(ca: &Path, profile: &Path) -> anyhow::Result<()> {
    let database = format!("sql:{}", profile.display());
    let certutil = |arguments: &[&str]| -> anyhow::Result<()> {
        let output = Command::new("certutil").args(arguments).args(["-d", &database]).output();
        let output = output.context("cannot run certutil (Debian: libnss3-tools)")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "certutil {arguments:?}: {}", complaint.trim());
        Ok(())
    };
    certutil(&["-N", "--empty-password"])?;
    certutil(&["-A", "-n", "lab", "-t", "C,,", "-i", &ca.display().to_string()])
}

fn preferences(account: &Account, control: u16) -> String {
    let server = "mail.server.server1";
    let words = [
        (format!("{server}.type"), "imap".to_owned()),
        (format!("{server}.hostname"), account.host.clone()),
        (format!("{server}.userName"), account.user.clone()),
        (format!("{server}.name"), account.user.clone()),
        (format!("{server}.storeContractID"), "@mozilla.org/msgstore/berkeleystore;1".to_owned()),
        (format!("{server}.directory-rel"), "[ProfD]ImapMail/localhost".to_owned()),
        ("mail.account.account1.server".to_owned(), "server1".to_owned()),
        ("mail.account.account1.identities".to_owned(), "id1".to_owned()),
        ("mail.accountmanager.accounts".to_owned(), "account1".to_owned()),
        ("mail.accountmanager.defaultaccount".to_owned(), "account1".to_owned()),
        ("mail.identity.id1.fullName".to_owned(), "Alice".to_owned()),
        ("mail.identity.id1.useremail".to_owned(), "alice@lab.test".to_owned()),
        ("mailnews.start_page_override.mstone".to_owned(), "ignore".to_owned()),
        ("services.settings.server".to_owned(), "data:,#/v1".to_owned()),
        ("app.normandy.api_url".to_owned(), String::new()),
    ];
    let numbers = [
        (format!("{server}.port"), u32::from(account.port)),
        // TLS from the first octet, a password that TLS protects.
        (format!("{server}.socketType"), 3),
        (format!("{server}.authMethod"), 3),
        ("marionette.port".to_owned(), u32::from(control)),
        // One row for each message: no threads.
        ("mailnews.default_view_flags".to_owned(), 0),
        ("mail.rights.version".to_owned(), 1),
        ("mail.ui-rdf.version".to_owned(), 61),
        ("toolkit.startup.max_resumed_crashes".to_owned(), 10_000),
    ];
    // Nothing is fetched, checked or reported that nobody asked for.
    let off = [
        // All mailboxes, not only those that the user has subscribed to.
        "mail.server.server1.using_subscription",
        "mail.server.server1.login_at_startup",
        "mail.server.server1.check_new_mail",
        "mail.server.server1.download_on_biff",
        "mail.server.server1.offline_download",
        "mail.server.server1.autosync_offline_stores",
        "mail.server.default.offline_download",
        "mail.server.default.autosync_offline_stores",
        "mailnews.start_page.enabled",
        "mail.spotlight.firstRunDone.show",
        "datareporting.policy.dataSubmissionEnabled",
        "datareporting.healthreport.uploadEnabled",
        "app.update.enabled",
        "extensions.update.enabled",
        "network.connectivity-service.enabled",
        "network.captive-portal-service.enabled",
        "browser.safebrowsing.malware.enabled",
        "browser.safebrowsing.phishing.enabled",
        "calendar.registry.enabled",
        "mail.chat.enabled",
        "mail.cloud_files.enabled",
        "mailnews.database.global.indexer.enabled",
        "signon.rememberSignons",
    ];
    let on = [
        "mail.provider.suppress_dialog_on_startup",
        "mail.spotlight.firstRunDone",
        "app.update.disabledForTesting",
        "datareporting.policy.dataSubmissionPolicyBypassNotification",
        "termsofuse.bypassNotification",
    ];
    let mut text = String::new();
    for (key, value) in words {
        text += &format!("user_pref({}, {});\n", json!(key), json!(value));
    }
    for (key, value) in numbers {
        text += &format!("user_pref({}, {value});\n", json!(key));
    }
    for (keys, value) in [(&off[..], false), (&on[..], true)] {
        for key in keys {
            text += &format!("user_pref({}, {value});\n", json!(key));
        }
    }
    text
}

fn connect(lab: &Lab, place: Place, port: u16) -> anyhow::Result<Marionette> {
    let start = Instant::now();
    loop {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        if let Ok(stream) = lab.inside(place, move || TcpStream::connect(address))? {
            let mut remote = Marionette { stream, number: 0 };
            remote.stream.set_read_timeout(Some(PATIENCE))?;
            remote.message()?;
            remote.call("WebDriver:NewSession", json!({"capabilities": {"alwaysMatch": {}}}))?;
            remote.call("Marionette:SetContext", json!({"value": "chrome"}))?;
            return Ok(remote);
        }
        ensure!(start.elapsed() < PATIENCE, "Thunderbird cannot be driven: nothing on its port {port}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Thunderbird's remote control: JSON with its length before it.
struct Marionette {
    stream: TcpStream,
    number: u64,
}

impl Marionette {
    /// Runs a script in the application; `pane` is its mail window's list, or null.
    fn run(&mut self, script: &str, arguments: Value) -> anyhow::Result<Value> {
        let script = format!(
            "let {{MailServices}} = ChromeUtils.importESModule('resource:///modules/MailServices.sys.mjs'); \
             let main = Services.wm.getMostRecentWindow('mail:3pane'); \
             let tabs = main ? main.document.getElementById('tabmail') : null; \
             let pane = tabs && tabs.currentAbout3Pane && tabs.currentAbout3Pane.displayFolder ? tabs.currentAbout3Pane : null; \
             {script}"
        );
        let result = self.call("WebDriver:ExecuteScript", json!({"script": script, "args": arguments}))?;
        Ok(result.get("value").cloned().unwrap_or(Value::Null))
    }

    fn call(&mut self, name: &str, parameters: Value) -> anyhow::Result<Value> {
        self.send(name, parameters)?;
        let answer = self.message()?;
        let error = answer.get(2).cloned().unwrap_or(Value::Null);
        ensure!(error.is_null(), "{name}: {}", error.get("message").unwrap_or(&error));
        Ok(answer.get(3).cloned().unwrap_or(Value::Null))
    }

    fn send(&mut self, name: &str, parameters: Value) -> anyhow::Result<()> {
        self.number += 1;
        let text = json!([0, self.number, name, parameters]).to_string();
        Ok(self.stream.write_all(format!("{}:{text}", text.len()).as_bytes())?)
    }

    fn message(&mut self) -> anyhow::Result<Value> {
        let (mut length, mut octet) = (0usize, [0; 1]);
        loop {
            self.stream.read_exact(&mut octet).context("Thunderbird's remote control closed")?;
            match octet {
                [digit @ b'0'..=b'9'] if length < MESSAGE_OCTETS_MAX => {
                    length = length * 10 + usize::from(digit - b'0');
                }
                [b':'] => break,
                _ => bail!("Thunderbird's remote control sent no length"),
            }
        }
        let mut text = vec![0; length.min(MESSAGE_OCTETS_MAX)];
        self.stream.read_exact(&mut text)?;
        serde_json::from_slice(&text).context("Thunderbird's remote control sent no JSON")
    }
}

/// Answers here are a few hundred octets.
const MESSAGE_OCTETS_MAX: usize = 1 << 20;
