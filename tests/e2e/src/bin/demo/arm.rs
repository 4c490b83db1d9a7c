//! The three ways to the same mail, and the ground that they share.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use e2e::pair::{Pair, Stand};
use lab::clients::Account;
use lab::corpus::{Contents, Corpus, User};
use lab::{Authority, Behaviour, Dovecot, Lab, LabSpec, LinkBehaviour, Place, WanHandle};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::connects::{self, Stands, Timed};
use crate::progress::Progress;
use crate::waypost::{Store, Waypost};

/// A way to the mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Arm {
    /// From the branch over the WAN to the server.
    Direct,
    /// From the server's own network.
    Lan,
    /// From the branch to the Waypost node there.
    Waypost,
    /// From the second branch to the server, with a node on the path at each end of its line.
    Pair,
}

impl Arm {
    /// Those of most journeys, in the order of the table.
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::Lan, Self::Waypost];
    /// Those of a journey on a path.
    pub(crate) const ON_PATH: [Self; 3] = [Self::Direct, Self::Lan, Self::Pair];

    /// Its name in the JSON and in file names.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Lan => "lan",
            Self::Waypost => "waypost",
            Self::Pair => "pair",
        }
    }

    /// Where its client sits.
    pub(crate) const fn place(self) -> Place {
        match self {
            Self::Direct | Self::Waypost => Place::Client,
            Self::Lan => Place::Lan,
            Self::Pair => Place::Client2,
        }
    }

    /// What its client connects to.
    pub(crate) const fn address(self) -> SocketAddr {
        let ip: IpAddr = match self {
            Self::Direct | Self::Lan | Self::Pair => Place::Server.v4(),
            Self::Waypost => Place::Branch.v4(),
        };
        SocketAddr::new(ip, IMAPS)
    }
}

/// IMAP with TLS from the first octet.
pub(crate) const IMAPS: u16 = 993;

/// What the run is measured over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    /// Round trip in milliseconds.
    pub(crate) rtt_ms: f64,
    /// 10⁶ bit/s each way.
    pub(crate) rate_mbit: f64,
    /// Packets lost, in percent.
    pub(crate) loss: f64,
}

impl Link {
    fn behaviour(self) -> LinkBehaviour {
        let link = Behaviour::link(self.rtt_ms, self.rate_mbit);
        LinkBehaviour::both(Behaviour { loss_percent: self.loss, ..link })
    }
}

/// The standing lab with its server, its node and its mail. Fields go away in their order.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) waypost: Waypost,
    pub(crate) pair: Pair,
    /// How the two stand.
    pub(crate) stands: Stands,
    _dovecot: Dovecot,
    pub(crate) corpus: Corpus,
    pub(crate) roots: Arc<rustls::RootCertStore>,
    pub(crate) authority: Authority,
    pub(crate) link: Link,
    /// Raw recordings go here, when they are wanted.
    pub(crate) recordings: Option<PathBuf>,
    executable: PathBuf,
    pub(crate) lab: Lab,
}

impl Ground {
    /// Builds the lab, starts the server and the node.
    pub(crate) fn build(
        link: Link,
        corpus: Corpus,
        prefix: String,
        executable: &Path,
        recordings: Option<PathBuf>,
        bridged: bool,
    ) -> anyhow::Result<Self> {
        let spec = LabSpec { prefix: Some(prefix), wan: link.behaviour(), bridged, ..LabSpec::new(0.0, 0.0) };
        let lab = Lab::build(spec.with_second_branch())?;
        let authority = Authority::create(&lab.directory().join("ca"))?;
        let root = CertificateDer::from_pem_file(authority.certificate()).context("the lab's own CA")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root)?;
        let dovecot = Dovecot::start(&lab, &authority, &corpus)?;
        for (name, messages) in MANY {
            let Some(user) = corpus.user(name) else { continue };
            let octets = b"From: a@lab.test\r\nSubject: one of many\r\n\r\n\r\n".to_vec();
            let message = lab::corpus::Message { octets, seen: false, arrived: 0 };
            for n in 1..messages {
                dovecot.deliver(user, "INBOX", &message, &format!("1700000000.M{n:06}P2.lab"))?;
            }
        }
        let waypost = Waypost::start(&lab, &authority, executable, &Store::plain("demo"))?;
        let (centre, branch) = if bridged {
            let ports = Stand::bridged("br0", &["port0", "port1"], &ports());
            ((Place::Cable, ports.clone()), (Place::Cable2, ports))
        } else {
            let on = |devices: &[&str]| Stand::routed(devices, &ports());
            ((Place::Centre, on(&["lan0", "wan10"])), (Place::Branch2, on(&["lan0", "wan0"])))
        };
        let mut pair = Pair::identify(executable, &lab, &[centre.0, branch.0])?;
        let full = |(place, stand): (Place, Stand)| {
            Ok::<_, anyhow::Error>((place, Stand { more: sections(&lab, &authority, place)?, ..stand }))
        };
        let stands = Stands { centre: full(centre)?, branch: full(branch)? };
        for (place, stand) in stands.both() {
            pair.start(&lab, *place, stand)?;
        }
        let roots = Arc::new(roots);
        let executable = executable.to_owned();
        let _dovecot = dovecot;
        Ok(Self {
            waypost,
            pair,
            stands,
            _dovecot,
            corpus,
            roots,
            authority,
            link,
            recordings,
            executable,
            lab,
        })
    }

    /// Puts another node in the place of the one that runs: with a store of its own, and these lines more for its
    /// server and at the end of its file.
    pub(crate) fn exchange(&mut self, name: &str, server: &str, lines: &str) -> anyhow::Result<()> {
        self.waypost.stop();
        let store =
            Store { server_lines: server.to_owned(), store_lines: lines.to_owned(), ..Store::plain(name) };
        self.waypost = Waypost::start(&self.lab, &self.authority, &self.executable, &store)?;
        Ok(())
    }

    /// The journeys of connections, over lines of their own kind. Both nodes run again afterwards.
    pub(crate) fn connections(&mut self, n: usize, progress: &Progress) -> anyhow::Result<Vec<Timed>> {
        let lines = [self.lab.wan()?, self.lab.wan2()?];
        lines.iter().try_for_each(|line| line.set(&connects::line()))?;
        let timed = connects::all(&self.lab, &mut self.pair, &self.stands, n, progress)?;
        lines.iter().try_for_each(|line| line.set(&self.link.behaviour()))?;
        for (place, stand) in self.stands.both() {
            self.pair.stop(*place)?;
            self.pair.start(&self.lab, *place, stand)?;
        }
        Ok(timed)
    }

    /// What both nodes of the pair say of themselves while they carry a connection of a client that knows of neither.
    pub(crate) fn show_pair(&self) -> anyhow::Result<()> {
        let address = Arm::Pair.address();
        for _ in 0..2 {
            // Held until both have spoken, from the second time on through the link.
            let held = self.lab.inside(Arm::Pair.place(), move || TcpStream::connect(address))??;
            std::thread::sleep(Duration::from_millis(500));
            if self.carried()? > 0 {
                for place in [self.stands.branch.0, self.stands.centre.0] {
                    println!("$ waypost status      on the path, {}", place.name());
                    println!("{}", path_part(&self.pair.ask(place, &["status"])?));
                }
                return Ok(());
            }
            drop(held);
        }
        bail!("the pair carried nothing: {}", self.pair.log(self.stands.branch.0));
    }

    /// How many connections the branch's node of the pair has carried.
    pub(crate) fn carried(&self) -> anyhow::Result<u64> {
        self.pair.count(self.stands.branch.0, "carried")
    }

    /// The line that an arm's octets cross, or would cross.
    pub(crate) fn line_of(&self, arm: Arm) -> anyhow::Result<&WanHandle> {
        match arm {
            Arm::Direct | Arm::Lan | Arm::Waypost => self.lab.wan(),
            Arm::Pair => self.lab.wan2(),
        }
    }

    /// What a subcommand of `waypost` says of the node that runs.
    pub(crate) fn ask(&self, subcommand: &[&str]) -> anyhow::Result<String> {
        let mut command = self.lab.command(Place::Branch, &self.executable);
        command.args(subcommand).arg("--socket").arg(self.waypost.directory().join("admin.sock"));
        let output = command.stdin(Stdio::null()).output().context("cannot ask the node")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "waypost {}: {}", subcommand.join(" "), complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whose INBOX holds how many small messages.
    pub(crate) fn many(&self) -> impl Iterator<Item = (&'static str, usize)> {
        MANY.into_iter().filter(|(name, _)| self.corpus.user(name).is_some())
    }

    /// A user of the corpus.
    pub(crate) fn user(&self, name: &str) -> anyhow::Result<&User> {
        self.corpus.user(name).with_context(|| format!("the corpus has no {name}"))
    }

    /// How a user's client logs in through a relay on this port of its own machine.
    pub(crate) fn account_at(&self, name: &str, port: u16) -> anyhow::Result<Account> {
        let user = self.user(name)?;
        Ok(Account {
            host: "localhost".to_owned(),
            port,
            ca: self.authority.certificate(),
            user: user.name.clone(),
            password: user.password.clone(),
        })
    }
}

/// The lines of a status that are about the path.
fn path_part(status: &str) -> String {
    let lines = status.lines().skip_while(|line| !line.starts_with("path "));
    lines.take_while(|line| !line.starts_with("store ")).collect::<Vec<_>>().join("\n")
}

/// What both take: mail and the ports of the journeys of connections.
fn ports() -> String {
    format!("143, {IMAPS}, {}", connects::PORTS)
}

/// What a node of the pair is told beside where it stands: of no client, of no other node, and of the server what
/// `[[server]]` needs for a mail cache.
fn sections(lab: &Lab, authority: &Authority, place: Place) -> anyhow::Result<String> {
    let directory = lab.directory().join(format!("node-{}", place.name()));
    let identity = authority.issue(&[lab::net::DOVECOT])?;
    let (cert, key) = (directory.join("front.pem"), directory.join("front.key"));
    fs::copy(&identity.certificate, &cert)?;
    fs::copy(&identity.key, &key)?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    Ok(format!(
        "[tls]\nmint = false\ncert = {cert:?}\nkey = {key:?}\n\
         [[server]]\nname = \"{name}\"\naddresses = [\"{origin}\"]\nport = {IMAPS}\nca = {ca:?}\n\
         [store]\npath = {store:?}\n",
        name = lab::net::DOVECOT,
        origin = Place::Server.v4(),
        ca = authority.certificate(),
        store = directory.join("store"),
    ))
}

/// Whose mail it is.
pub(crate) const READER: &str = "alice";
/// Whose INBOX is synchronised.
pub(crate) const SYNCER: &str = "bob";
/// The reader's mailbox of which the store knows nothing when a miss is timed.
pub(crate) const COLD: &str = "Archive";

/// The mail of a run: 500 messages to list and open, some that nobody has opened, an INBOX to synchronise.
pub(crate) fn corpus(quick: bool) -> Corpus {
    let user = |name: &str, mailboxes: &[(&str, usize)]| User {
        name: name.to_owned(),
        password: format!("{name}-secret"),
        mailboxes: mailboxes
            .iter()
            .map(|(name, count)| ((*name).to_owned(), Contents::Office(*count)))
            .collect(),
    };
    let (cold, sync, attachment_octets_max) = if quick { (80, 60, 1 << 20) } else { (400, 300, 10 << 20) };
    let mut users = vec![user(READER, &[("INBOX", LISTED), (COLD, cold)]), user(SYNCER, &[("INBOX", sync)])];
    // One message to begin with; the others are all alike.
    users.extend(MANY.iter().take(if quick { 1 } else { 2 }).map(|(name, _)| user(name, &[("INBOX", 1)])));
    Corpus { seed: 9_172_620, users, attachment_octets_max, shared: 0 }
}

/// Whose INBOX holds how many.
pub(crate) const MANY: [(&str, usize); 2] = [("carol", 600), ("dave", 10_000)];
/// Messages of the journey `list-500`.
pub(crate) const LISTED: usize = 500;
