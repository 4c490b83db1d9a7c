//! The one configuration file: read whole, judged whole. [`load`] gives a [`Config`] of checked values, or every
//! problem at once, each with its line and column, what is allowed, and a value that works.

#[cfg(test)]
pub(crate) mod bad_files;
pub(crate) mod carry;
pub(crate) mod deflection;
mod keys;
pub(crate) mod network;
pub(crate) mod problem;
mod reader;
mod secrets;
mod sections;
mod show;
pub(crate) mod units;
pub(crate) mod value;

pub(crate) use secrets::FileUse;
pub(crate) use show::show;

use discovery_core::id::{NodeId, ServerId, SiteId};
use keys::{BUILT, RESERVED, VERSION};
use problem::{Kind, Place, Problem, Weight, did_you_mean};
use reader::{Found, Shown};
use sections::Around;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use toml::de::{DeTable, DeValue};
use units::{Rate, Size};
use value::{
    Encryption, Host, LogFormat, LogLevel, Mode, OnPath, Pin, Port, Prefix, Source, Unlisted, found,
};

/// A node, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) node: Node,
    pub(crate) admin: Admin,
    pub(crate) log: Log,
    pub(crate) tls: TlsFront,
    pub(crate) servers: Vec<Server>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) store: Store,
    pub(crate) sustain: Sustain,
    pub(crate) prefetch: Prefetch,
    /// Where it stands on the path, if it does.
    pub(crate) interception: Option<network::Interception>,
    /// To whom it speaks, if to anybody.
    pub(crate) link: Option<network::Link>,
    /// Whom it turns connections to, if it is a deflector.
    pub(crate) deflector: Option<deflection::Deflector>,
    /// Whose proxy it is, if it is one.
    pub(crate) off_path: Option<deflection::OffPath>,
    /// Servers that clients reach at an address of this node.
    pub(crate) carries: Vec<carry::Carry>,
}

/// What is fetched before anybody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefetch {
    pub(crate) enabled: bool,
    pub(crate) rate: Rate,
    pub(crate) user_day_max: Size,
    pub(crate) server_day_max: Size,
}

/// Sessions that outlive their client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sustain {
    pub(crate) enabled: bool,
    pub(crate) absolute: Duration,
    pub(crate) idle: Duration,
    pub(crate) per_server_max: u32,
    pub(crate) lane: bool,
    pub(crate) line_rate: Rate,
    pub(crate) user_connections_max: u32,
    pub(crate) size_max: Size,
}

/// Who this node is and where it keeps what it must not lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) site: SiteId,
    /// Whom the node becomes where root starts it.
    pub(crate) user: Option<String>,
    pub(crate) state_dir: PathBuf,
    pub(crate) user_key_file: PathBuf,
}

/// How it is administered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admin {
    pub(crate) socket: PathBuf,
    pub(crate) mode: Mode,
    pub(crate) group: Option<String>,
    pub(crate) listen: Option<SocketAddr>,
}

/// What it logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: LogLevel,
    pub(crate) format: LogFormat,
}

/// With which certificates it meets clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFront {
    /// Mint with the interception CA in this directory.
    pub(crate) ca_dir: Option<PathBuf>,
    /// With this key for clients that cannot use any other kind.
    pub(crate) rsa_key: Option<PathBuf>,
    /// Show this one for the names in it.
    pub(crate) operator: Option<Operator>,
}

/// The operator's own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operator {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A mail server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// Which `[[server]]` of the file it is, from 0.
    pub(crate) nth: usize,
    pub(crate) name: ServerId,
    pub(crate) host: Host,
    pub(crate) port: Port,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) aliases: Vec<Host>,
    pub(crate) tls: Encryption,
    pub(crate) trust: Trust,
    pub(crate) on_path: OnPath,
    pub(crate) source: Source,
    pub(crate) compress: bool,
    pub(crate) shadow: bool,
    pub(crate) allow_preauth: bool,
    pub(crate) parking: Parking,
    pub(crate) announce_client: bool,
    pub(crate) foresee: bool,
    pub(crate) limits: Limits,
}

impl Server {
    /// Whether intercepted clients of it are shown a certificate of this node.
    fn would_terminate(&self) -> bool {
        self.on_path == OnPath::Terminate && self.tls != Encryption::Plain
    }
}

impl Config {
    /// Whether intercepted clients of `server` are served here.
    pub(crate) fn terminates(&self, server: &Server) -> bool {
        let shows = self.tls.ca_dir.is_some() || self.tls.operator.is_some();
        self.interception.is_some()
            && server.on_path == OnPath::Terminate
            && (shows || server.tls == Encryption::Plain)
    }

    /// Whether any client's session ends here.
    pub(crate) fn serves_mail(&self) -> bool {
        !self.listeners.is_empty() || self.servers.iter().any(|server| self.terminates(server))
    }
}

/// How a server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// By a CA of this machine.
    System,
    /// By a CA in this file.
    Ca(PathBuf),
    /// By its public key.
    Pin(Pin),
}

/// Connections to a server that are kept ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parking {
    pub(crate) max: u8,
    /// After the last client.
    pub(crate) idle: Duration,
    pub(crate) on_cyrus: bool,
}

/// Bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) sessions_max: u32,
    pub(crate) dials_max: u32,
}

/// Where clients arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) server: ServerId,
    pub(crate) tls: Encryption,
    pub(crate) lan: Option<Prefix>,
    pub(crate) unlisted: Unlisted,
}

/// The message store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) path: PathBuf,
    pub(crate) size_max: Size,
    pub(crate) seal: Seal,
    pub(crate) re_proof: Duration,
}

/// Encryption at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// None.
    Off,
    /// With the key in this file.
    File(PathBuf),
    /// With the key that systemd hands over under this name.
    Credential(String),
}

/// What defaults depend on.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) id: NodeId,
    pub(crate) site: SiteId,
    pub(crate) state_dir: PathBuf,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) credentials_dir: Option<PathBuf>,
}

impl Surroundings {
    /// This process's: what systemd gives it, else the user's own directories.
    pub(crate) fn of_process() -> Self {
        let directory = |name: &str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            // systemd separates several with a colon; the first is ours.
            value.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let home = || directory("HOME").map(|home| home.join(".local/state/waypost"));
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let id = NodeId::new(&hostname).or_else(|_| NodeId::new("waypost"));
        let site = SiteId::new(&hostname).or_else(|_| SiteId::new("waypost"));
        Self {
            id: id.expect("`waypost` is a name"),
            site: site.expect("`waypost` is a name"),
            state_dir: directory("STATE_DIRECTORY")
                .or_else(home)
                .unwrap_or_else(|| "/var/lib/waypost".into()),
            runtime_dir: directory("RUNTIME_DIRECTORY"),
            credentials_dir: directory("CREDENTIALS_DIRECTORY"),
        }
    }
}

/// What came of a file.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Usable only if there is no error among the problems; see [`Loaded::usable`].
    config: Config,
    /// In the order of the file.
    pub(crate) problems: Vec<Problem>,
    shown: Vec<Shown>,
}

impl Loaded {
    /// The configuration, unless something is wrong with it.
    pub(crate) fn usable(&self) -> Option<&Config> {
        (!self.problems.iter().any(|problem| problem.weight == Weight::Error)).then_some(&self.config)
    }
}

/// Reads and judges the file at `path`.
///
/// # Errors
/// Only when the file itself cannot be read.
pub(crate) fn load(path: &Path, surroundings: &Surroundings, files: FileUse) -> io::Result<Loaded> {
    use io::Read;
    let mut octets = Vec::new();
    fs::File::open(path)?.take(FILE_OCTETS_MAX + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > FILE_OCTETS_MAX {
        return Err(io::Error::other(format!(
            "longer than {FILE_OCTETS_MAX} octets; this is no configuration"
        )));
    }
    let text = match String::from_utf8(octets) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or(&[])).into_owned();
            let place = Place::of(&before, before.len());
            let mut loaded = judge(&before, path, surroundings, files);
            loaded.problems = vec![Problem::error(place, "the file is not UTF-8 from here on")];
            return Ok(loaded);
        }
    };
    Ok(judge(&text, path, surroundings, files))
}

/// A thousand servers fit.
const FILE_OCTETS_MAX: u64 = 1 << 20;

/// Judges `text` as if it stood in the file at `path`.
pub(crate) fn judge(text: &str, path: &Path, surroundings: &Surroundings, files: FileUse) -> Loaded {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut found = Found::default();
    for error in errors {
        let place = error.span().map_or(Place::TOP, |span| Place::of(text, span.start));
        let what = format!("this is not TOML: {}", error.message().replace('\n', "; "));
        found.problems.push(Problem { kind: Kind::Syntax, ..Problem::error(place, what) });
    }
    let base = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
    top_level(text, document.get_ref(), &mut found);
    let config =
        sections::read(document.get_ref(), &Around { text, base: &base, surroundings, files }, &mut found);
    let mut problems = found.problems;
    forget_consequences(&mut problems);
    problems.sort_by_key(|problem| problem.place);
    Loaded { config, problems, shown: found.shown }
}

/// The version, and names of sections.
fn top_level(text: &str, document: &DeTable<'_>, found_so_far: &mut Found) {
    let problems = &mut found_so_far.problems;
    let mut versioned = false;
    for (name, value) in document {
        let place = Place::of(text, name.span().start);
        let name = name.get_ref().as_ref();
        if name == VERSION.name {
            versioned = true;
            let is_one =
                matches!(value.get_ref(), DeValue::Integer(number) if number.as_str() == VERSION.works);
            if !is_one {
                let place = Place::of(text, value.span().start);
                let found = found(value.get_ref());
                problems.push(Problem::error(
                    place,
                    format!("version: {found} is not a version that this build reads; allowed: version = 1"),
                ));
            }
            continue;
        }
        if BUILT.iter().any(|section| section.name == name) {
            continue;
        }
        if let Some((name, purpose)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            problems.push(Problem::error(
                place,
                format!(
                    "[{name}]: {purpose}: not in this build; remove the section, or use a build that has it"
                ),
            ));
            continue;
        }
        let headers = BUILT.iter().map(|section| section.name);
        let meant = did_you_mean(name, headers).and_then(|meant| BUILT.iter().find(|s| s.name == meant));
        problems.push(Problem::error(
            place,
            match meant {
                Some(section) => {
                    format!("{name}: there is no such section; did you mean {}?", section.header())
                }
                None => {
                    let all = BUILT.iter().map(|section| section.header()).collect::<Vec<_>>().join(" ");
                    format!("{name}: there is no such section; allowed: version = 1 and {all}")
                }
            },
        ));
    }
    if !versioned {
        problems
            .push(Problem::missing(Place::TOP, "version: it is missing; begin the file with: version = 1"));
    }
}

/// Where the file is not TOML, the reader has lost something; what follows from that is noise.
fn forget_consequences(problems: &mut Vec<Problem>) {
    let broken: Vec<usize> = problems
        .iter()
        .filter(|problem| problem.kind == Kind::Syntax)
        .map(|problem| problem.place.line)
        .collect();
    if !broken.is_empty() {
        problems.retain(|problem| match problem.kind {
            Kind::Syntax => true,
            Kind::Missing => false,
            Kind::Content => !broken.contains(&problem.place.line),
        });
    }
    problems.dedup();
}
