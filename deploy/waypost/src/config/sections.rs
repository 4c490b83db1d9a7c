//! From the file's sections to checked values, one function a section.

use super::{
    Admin, Config, Limits, Listener, Log, Node, Operator, Parking, Prefetch, Seal, Server, Store,
    Surroundings, Sustain, TlsFront, Trust, carry, deflection,
    keys::{
        ADMIN, INTERCEPTION, LIMITS, LINK, LISTENER, LOG, NODE, PREFETCH, SERVER, STORE, SUSTAIN, Section,
        TLS,
    },
    network,
    problem::{Place, Problem, did_you_mean},
    reader::{Found, TableReader},
    secrets::{self, FileUse},
    units::{Rate, Size, show_time},
    value::{
        Encryption, Host, LogFormat, LogLevel, Mode, OnPath, Pin, Port, Prefix, Source, Unlisted, quoted,
    },
};
use crate::supervisor::user::User;
use discovery_core::id::{NodeId, ServerId, SiteId};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use toml::de::{DeTable, DeValue};

/// Reads all sections of a document. What was wrong is replaced by its default or left out, so the caller looks
/// at the problems before it uses the result.
pub(crate) fn read(document: &DeTable<'_>, around: &Around<'_>, found: &mut Found) -> Config {
    let sections = Sections { document, around };
    let node = node(sections.one(&NODE, found), around);
    let admin = admin(sections.one(&ADMIN, found), around, &node.state_dir);
    let log = log(sections.one(&LOG, found));
    // A node that only carries has no mail program to convince, and keeps no mail.
    let mail = !standing(&sections) || sections.serve_mail();
    let tls = tls(sections.one(&TLS, found), around, &node.state_dir, mail);
    let store = store(sections.one(&STORE, found), around, &node.state_dir, mail);

    let sustain = sustain(sections.one(&SUSTAIN, found));
    let prefetch = prefetch(sections.one(&PREFETCH, found));

    let mut servers = Vec::new();
    let mut server_names = Vec::new();
    for (nth, table) in sections.many(&SERVER, found).into_iter().enumerate() {
        let reader = TableReader::new(around.text, &SERVER, nth, Some(table), found);
        let (name, read) = server(reader, nth, around, &server_names);
        server_names.extend(name);
        servers.extend(read);
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (nth, table) in sections.many(&LISTENER, found).into_iter().enumerate() {
        let reader = TableReader::new(around.text, &LISTENER, nth, Some(table), found);
        listeners.extend(listener(reader, &server_names, &servers, &listeners));
    }
    let interception = network::interception(&sections, around, found);
    let link = network::link(&sections, around, &node.state_dir, interception.is_some(), found);
    let deflector = deflection::deflector(&sections, interception.as_ref(), link.as_ref(), found);
    let off_path = deflection::off_path(&sections, interception.as_ref(), link.as_ref(), found);
    let carries = carry::carries(&sections, around, link.as_ref(), found);
    network::across(interception.as_ref(), link.as_ref(), &node.id, &sections, found);
    let config = Config {
        node,
        admin,
        log,
        tls,
        servers,
        listeners,
        store,
        sustain,
        prefetch,
        interception,
        link,
        deflector,
        off_path,
        carries,
    };
    across(&config, &sections, found);
    config
}

/// Whether the node does anything without mail.
fn standing(sections: &Sections<'_, '_>) -> bool {
    [&INTERCEPTION, &LINK].iter().any(|section| sections.value(section.name).is_some())
}

/// What the functions here look things up in.
pub(crate) struct Around<'a> {
    pub(crate) text: &'a str,
    /// Relative paths begin at the file's own directory.
    pub(crate) base: &'a Path,
    pub(crate) surroundings: &'a Surroundings,
    /// Whether named files are looked at.
    pub(crate) files: FileUse,
}

impl Around<'_> {
    pub(super) fn path(&self, path: PathBuf) -> PathBuf {
        self.base.join(path)
    }
}

pub(super) struct Sections<'a, 'i> {
    document: &'a DeTable<'i>,
    around: &'a Around<'a>,
}

impl<'a, 'i> Sections<'a, 'i> {
    pub(super) fn value(&self, name: &str) -> Option<(&'a DeValue<'i>, Place)> {
        let (_, value) = self.document.iter().find(|(key, _)| key.get_ref() == name)?;
        Some((value.get_ref(), Place::of(self.around.text, value.span().start)))
    }

    /// Whether any client's session would end here, of those that the file says anything about.
    fn serve_mail(&self) -> bool {
        let carried = |table: &DeTable<'_>| {
            let mut keys = table.iter();
            keys.any(|(key, value)| {
                key.get_ref() == "on_path" && value.get_ref().as_str() == Some(OnPath::Octets.word())
            })
        };
        let intercepted = match self.value(SERVER.name) {
            Some((DeValue::Array(servers), _)) => {
                servers.iter().any(|server| server.get_ref().as_table().is_none_or(|table| !carried(table)))
            }
            Some(_) => true,
            None => false,
        };
        intercepted || self.value(LISTENER.name).is_some()
    }

    /// Where a key of the `nth` section of a kind has its value, else where that section begins.
    pub(super) fn place(&self, section: &Section, nth: usize, key: &str) -> Place {
        let (table, whole) = match self.value(section.name) {
            Some((DeValue::Table(table), place)) => (Some(table), place),
            Some((DeValue::Array(array), place)) => match array.get(nth) {
                Some(entry) => (entry.get_ref().as_table(), Place::of(self.around.text, entry.span().start)),
                None => (None, place),
            },
            Some((_, place)) => (None, place),
            None => (None, Place::TOP),
        };
        let value = table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
        value.map_or(whole, |(_, value)| Place::of(self.around.text, value.span().start))
    }

    pub(super) fn one<'f>(&self, section: &'static Section, found: &'f mut Found) -> TableReader<'f, 'i>
    where
        'a: 'f,
    {
        let table = match self.value(section.name) {
            Some((DeValue::Table(table), place)) => Some((table, place)),
            Some((_, place)) => {
                let header = section.header();
                found
                    .problems
                    .push(Problem::error(place, format!("{header} stands once, as a table: {header}")));
                None
            }
            None => None,
        };
        TableReader::new(self.around.text, section, 0, table, found)
    }

    pub(super) fn many(&self, section: &'static Section, found: &mut Found) -> Vec<(&'a DeTable<'i>, Place)> {
        let wrong = |place| {
            let header = section.header();
            Problem::error(place, format!("[{}] can stand many times and is written {header}", section.name))
        };
        let mut tables = Vec::new();
        match self.value(section.name) {
            Some((DeValue::Array(array), _)) => {
                for entry in array.iter() {
                    let place = Place::of(self.around.text, entry.span().start);
                    if let DeValue::Table(table) = entry.get_ref() {
                        tables.push((table, place));
                    } else {
                        found.problems.push(wrong(place));
                    }
                }
            }
            Some((_, place)) => found.problems.push(wrong(place)),
            None => {}
        }
        if tables.len() > SECTIONS_MAX {
            let place = tables.get(SECTIONS_MAX).map_or(Place::TOP, |(_, place)| *place);
            let what = format!("{}: more than the {SECTIONS_MAX} allowed", section.header());
            found.problems.push(Problem::error(place, what));
            tables.truncate(SECTIONS_MAX);
        }
        tables
    }
}

/// Servers or listeners of one node; the checks between them are quadratic.
const SECTIONS_MAX: usize = 500;

fn node(mut t: TableReader<'_, '_>, around: &Around<'_>) -> Node {
    let id: NodeId = t.get("id", around.surroundings.id.clone());
    let site: SiteId = t.get("site", around.surroundings.site.clone());
    let user: Option<String> = t.maybe("user");
    if around.files == FileUse::Look
        && let Some(Err(why)) = user.as_deref().map(User::named)
    {
        t.object("user", why);
    }
    let state_dir = around.path(t.get("state_dir", around.surroundings.state_dir.clone()));
    let user_key_file = around.path(t.get("user_key_file", state_dir.join("user.key")));
    if let Err(why) = secrets::look_at_key(&user_key_file, around.files, secrets::Absence::WillBeMade) {
        t.object("user_key_file", why);
    }
    Node { id, site, user, state_dir, user_key_file }
}

fn admin(mut t: TableReader<'_, '_>, around: &Around<'_>, state_dir: &Path) -> Admin {
    let home = around.surroundings.runtime_dir.as_deref().unwrap_or(state_dir);
    let socket = around.path(t.get("socket", home.join("admin.sock")));
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        let octets = socket.as_os_str().len();
        t.object(
            "socket",
            format!("the path has {octets} octets; a socket's path has at most {SOCKET_PATH_MAX}"),
        );
    }
    let mode = t.get("mode", Mode(0o660));
    let group = t.maybe("group");
    let listen: Option<SocketAddr> = t.maybe("listen");
    if listen.is_some_and(|address| !address.ip().is_loopback()) {
        t.object(
            "listen",
            "this would answer the whole network; only a loopback address is allowed; for example: listen = \"127.0.0.1:9143\"",
        );
    }
    Admin { socket, mode, group, listen }
}

/// `sun_path` is 108 octets with its NUL.
const SOCKET_PATH_MAX: usize = 107;

fn log(mut t: TableReader<'_, '_>) -> Log {
    Log { level: t.get("level", LogLevel::Info), format: t.get("format", LogFormat::Text) }
}

fn tls(mut t: TableReader<'_, '_>, around: &Around<'_>, state_dir: &Path, mail: bool) -> TlsFront {
    let (has_cert, has_key) = (t.says("cert"), t.says("key"));
    let mint = t.get("mint", mail && !(has_cert && has_key));
    let ca_dir = around.path(t.get("ca_dir", state_dir.join("ca")));
    let rsa_key: Option<PathBuf> = t.maybe("rsa_key").map(|path| around.path(path));
    let cert: Option<PathBuf> = t.maybe("cert").map(|path| around.path(path));
    let key: Option<PathBuf> = t.maybe("key").map(|path| around.path(path));
    if has_cert && !has_key {
        t.object("cert", "a certificate without its private key; add: key = \"/etc/waypost/mail.key\"");
    }
    if has_key && !has_cert {
        t.object("key", "a private key without its certificate; add: cert = \"/etc/waypost/mail.pem\"");
    }
    if !mint && t.says("ca_dir") {
        t.warn("ca_dir", "has no effect, because mint is false");
    }
    if mint && let Err(why) = secrets::look_at_authority(&ca_dir, around.files) {
        t.object("ca_dir", why);
    }
    if !mint && rsa_key.is_some() {
        t.warn("rsa_key", "has no effect, because mint is false");
    }
    if let Some(path) = &rsa_key
        && let Err(why) = secrets::look_at_rsa_key(path, around.files)
    {
        t.object("rsa_key", why);
    }
    let operator = match (cert, key) {
        (Some(cert), Some(key)) => {
            if let Err(secrets::PairTrouble { key: at_key, why }) =
                secrets::look_at_pair(&cert, &key, around.files)
            {
                t.object(if at_key { "key" } else { "cert" }, why);
            }
            Some(Operator { cert, key })
        }
        (Some(_), None) | (None, Some(_)) | (None, None) => None,
    };
    TlsFront { ca_dir: mint.then_some(ca_dir), rsa_key, operator }
}

fn sustain(mut t: TableReader<'_, '_>) -> Sustain {
    let mut time = |key: &'static str, default: u64, works: &str| {
        let given = t.get(key, Duration::from_secs(default));
        if !(Duration::from_secs(60)..=Duration::from_secs(7 * 86_400)).contains(&given) {
            let given = show_time(given);
            t.object(
                key,
                format!("{given} is out of range; allowed: 1m to 7d; for example: {key} = \"{works}\""),
            );
        }
        given
    };
    let absolute = time("absolute", 24 * 3600, "24h");
    let idle = time("idle", 12 * 3600, "12h");
    let per_server_max = t.get("per_server_max", 500_u32);
    if !(1..=100_000).contains(&per_server_max) {
        t.object(
            "per_server_max",
            format!(
                "{per_server_max} is out of range; allowed: 1 to 100000; for example: per_server_max = 500"
            ),
        );
    }
    let user_connections_max = t.get("user_connections_max", 8_u32);
    if !(1..=100).contains(&user_connections_max) {
        t.object(
            "user_connections_max",
            format!(
                "{user_connections_max} is out of range; allowed: 1 to 100; for example: user_connections_max = 8"
            ),
        );
    }
    let line_rate = t.get("line_rate", Rate(10_000_000));
    if line_rate < LINE_RATE_MIN {
        t.object(
            "line_rate",
            format!("{line_rate} is too little; allowed: {LINE_RATE_MIN} or more; for example: line_rate = \"10 Mbit/s\""),
        );
    }
    Sustain {
        enabled: t.get("enabled", false),
        line_rate,
        lane: t.get("lane", true),
        user_connections_max,
        absolute,
        idle,
        per_server_max,
        size_max: t.get("size_max", Size(8 << 20)),
    }
}

fn prefetch(mut t: TableReader<'_, '_>) -> Prefetch {
    let rate = t.get("rate", Rate(2_500_000));
    if rate < PREFETCH_RATE_MIN {
        t.object(
            "rate",
            format!(
                "{rate} is too slow to be of use; allowed: {PREFETCH_RATE_MIN} or more; for example: \
                 rate = \"2500 kbit/s\""
            ),
        );
    }
    Prefetch {
        enabled: t.get("enabled", false),
        rate,
        user_day_max: t.get("user_day_max", Size(512 << 20)),
        server_day_max: t.get("server_day_max", Size(16 << 30)),
    }
}

fn store(mut t: TableReader<'_, '_>, around: &Around<'_>, state_dir: &Path, mail: bool) -> Store {
    let path = around.path(t.get("path", state_dir.join("store")));
    let size_max = t.get("size_max", Size(10 << 30));
    if size_max < STORE_SIZE_MIN {
        t.object("size_max", format!("{size_max} is too little to keep mail in; allowed: {STORE_SIZE_MIN} or more; for example: size_max = \"10 GiB\""));
    }
    let file: Option<PathBuf> = t.maybe("seal_key_file").map(|path| around.path(path));
    let credential: Option<String> = t.maybe("seal_credential");
    let re_proof = t.get("re_proof", Duration::from_secs(300));
    if !(Duration::from_secs(30)..=Duration::from_secs(86_400)).contains(&re_proof) {
        let given = show_time(re_proof);
        t.object(
            "re_proof",
            format!("{given} is out of range; allowed: 30s to 1d; for example: re_proof = \"5m\""),
        );
    }
    let seal = match (file, credential) {
        (Some(_), Some(_)) => {
            t.object("seal_credential", "there is a seal_key_file too; one of the two is allowed");
            Seal::Off
        }
        (Some(file), None) => {
            if let Err(why) = secrets::look_at_key(&file, around.files, secrets::Absence::IsWrong) {
                t.object("seal_key_file", why);
            }
            Seal::File(file)
        }
        (None, Some(name)) if name.contains('/') || name.starts_with('.') => {
            t.object("seal_credential", "the name of a credential has no `/` and no leading `.`; for example: seal_credential = \"seal-key\"");
            Seal::Off
        }
        (None, Some(name)) => {
            let file = around.surroundings.credentials_dir.as_ref().map(|dir| dir.join(&name));
            match file {
                Some(file) => {
                    if let Err(why) = secrets::look_at_key(&file, around.files, secrets::Absence::IsWrong) {
                        t.object("seal_credential", why);
                    }
                }
                None if around.files == FileUse::Look => t.warn(
                    "seal_credential",
                    "not checked: systemd hands credentials only to the running service (LoadCredential= in its unit)",
                ),
                None => {}
            }
            Seal::Credential(name)
        }
        (None, None) => {
            if mail && !t.says("seal_key_file") && !t.says("seal_credential") {
                t.warn(
                    "seal_key_file",
                    "there is none: mail in the store is not encrypted on this disk; to encrypt it: (umask 077; head -c 32 /dev/urandom > /etc/waypost/seal.key) and seal_key_file = \"/etc/waypost/seal.key\"",
                );
            }
            Seal::Off
        }
    };
    Store { path, size_max, seal, re_proof }
}

/// One mailbox with attachments does not fit into less.
const LINE_RATE_MIN: Rate = Rate(1000);
const STORE_SIZE_MIN: Size = Size(64 << 20);
const PREFETCH_RATE_MIN: Rate = Rate(64_000);

/// The name comes back even if the rest is wrong, so that listeners of it are not called wrong too.
fn server(
    mut t: TableReader<'_, '_>,
    nth: usize,
    around: &Around<'_>,
    others: &[ServerId],
) -> (Option<ServerId>, Option<Server>) {
    let name: Option<ServerId> = t.need("name");
    if let Some(name) = &name
        && others.iter().any(|other| other.as_str().eq_ignore_ascii_case(name.as_str()))
    {
        t.object(
            "name",
            format!("{} is the name of another [[server]]; names must differ", quoted(name.as_str())),
        );
    }
    let host = match name.as_ref().and_then(|name| Host::parse(name.as_str())) {
        Some(host) => Some(t.get("host", host)),
        // The name that will be put there may do for the host; a wrong one says that none did.
        None if !t.says("name") => t.maybe("host"),
        None => t.need("host"),
    };
    let tls = t.get("tls", Encryption::Implicit);
    let usual = match tls {
        Encryption::Implicit => Port(993),
        Encryption::StartTls | Encryption::Plain => Port(143),
    };
    let port = t.get("port", usual);
    match (tls, port) {
        (Encryption::Implicit, Port(143)) => t.warn("port", "143 is usually the port of tls = \"starttls\""),
        (Encryption::StartTls | Encryption::Plain, Port(993)) => {
            t.warn("port", "993 is usually the port of tls = \"implicit\"")
        }
        _ => {}
    }
    let addresses: Vec<IpAddr> = t.get("addresses", Vec::new());
    let aliases: Vec<Host> = t.get("aliases", Vec::new());
    match t.maybe::<String>("protocol").as_deref() {
        None | Some("imap") => {}
        Some(other) => {
            let what = if ["nfs", "smb", "http", "pop3", "jmap"].contains(&other) {
                format!(
                    "{} is not in this build; allowed: imap; for example: protocol = \"imap\"",
                    quoted(other)
                )
            } else {
                let meant = did_you_mean(other, ["imap"]).map_or(";", |_| "; did you mean \"imap\"?");
                format!(
                    "{} is not known{meant} allowed: imap; for example: protocol = \"imap\"",
                    quoted(other)
                )
            };
            t.object("protocol", what);
        }
    }
    let lan: Option<Prefix> = t.maybe("lan");
    if let Some(host) = &host {
        plain_server(&mut t, tls, lan, host, &addresses);
    }
    let ca: Option<PathBuf> = t.maybe("ca").map(|path| around.path(path));
    let pin: Option<Pin> = t.maybe("pin");
    if t.says("ca") && t.says("pin") {
        t.object("pin", "there is a ca too; one of the two is allowed, or none for the system's CAs");
    }
    let trust = match (ca, pin) {
        (_, Some(pin)) => Trust::Pin(pin),
        (Some(ca), None) => {
            if let Err(why) = secrets::look_at_roots(&ca, around.files) {
                t.object("ca", why);
            }
            Trust::Ca(ca)
        }
        (None, None) => Trust::System,
    };
    let on_path = t.get("on_path", OnPath::Terminate);
    let source = t.get("source", Source::Spoof);
    let compress = t.get("compress", true);
    let shadow = t.get("shadow", true);
    let allow_preauth = t.get("allow_preauth", false);
    let parking = parking(&mut t);
    let announce_client = t.get("announce_client", false);
    let foresee = t.get("foresee", true);
    let limits = limits(t.inner("limits", &LIMITS));
    let server = match (name.clone(), host) {
        (Some(name), Some(host)) => Some(Server {
            nth,
            name,
            host,
            port,
            addresses,
            aliases,
            tls,
            trust,
            on_path,
            source,
            compress,
            shadow,
            allow_preauth,
            parking,
            announce_client,
            foresee,
            limits,
        }),
        (None, _) | (_, None) => None,
    };
    (name, server)
}

fn parking(t: &mut TableReader<'_, '_>) -> Parking {
    let max: u32 = t.get("parked", 2);
    let connections = u8::try_from(max).ok().filter(|max| *max <= 32);
    if connections.is_none() {
        t.object("parked", format!("{max} is not 0 to 32; for example: parked = 2"));
    }
    let idle = t.get("parked_for", Duration::from_secs(600));
    if !(Duration::from_secs(60)..=Duration::from_secs(86_400)).contains(&idle) {
        let given = show_time(idle);
        t.object(
            "parked_for",
            format!("{given} is out of range; allowed: 1m to 1d; for example: parked_for = \"10m\""),
        );
    }
    Parking { max: connections.unwrap_or_default(), idle, on_cyrus: t.get("parked_on_cyrus", false) }
}

fn limits(mut t: TableReader<'_, '_>) -> Limits {
    let sessions_max: u32 = t.get("sessions_max", 2000);
    if !(1..=100_000).contains(&sessions_max) {
        t.object(
            "sessions_max",
            format!("{sessions_max} is not 1 to 100000; for example: sessions_max = 2000"),
        );
    }
    let dials_max: u32 = t.get("dials_max", 32);
    if !(1..=10_000).contains(&dials_max) {
        t.object("dials_max", format!("{dials_max} is not 1 to 10000; for example: dials_max = 32"));
    }
    Limits { sessions_max, dials_max }
}

/// Plain text towards a server is only for where nobody listens in.
fn plain_server(
    t: &mut TableReader<'_, '_>,
    tls: Encryption,
    lan: Option<Prefix>,
    host: &Host,
    addresses: &[IpAddr],
) {
    match (tls, lan) {
        (Encryption::Implicit | Encryption::StartTls, Some(_)) => {
            t.warn("lan", "has no effect, because tls is not \"plain\"")
        }
        (Encryption::Implicit | Encryption::StartTls, None) => {}
        (Encryption::Plain, Some(lan)) if !lan.is_private() => {
            t.object(
                "lan",
                "this is no private network; plain text over a public one shows every password to it",
            );
        }
        (Encryption::Plain, None) if t.says("lan") => {}
        (Encryption::Plain, lan) => {
            let mut all = addresses.to_vec();
            if all.is_empty() {
                all.extend(host.0.parse::<IpAddr>());
            }
            let near =
                |address: &IpAddr| address.is_loopback() || lan.is_some_and(|lan| lan.contains(*address));
            let named_near = all.is_empty() && host.0 == "localhost";
            if !named_near && (all.is_empty() || !all.iter().all(near)) {
                t.object(
                    "tls",
                    "plain text shows every password to the network between; allowed: a server on loopback, or one whose addresses lie in the private network that `lan` names; for example: tls = \"starttls\"",
                );
            }
        }
    }
}

fn listener(
    mut t: TableReader<'_, '_>,
    names: &[ServerId],
    servers: &[Server],
    others: &[Listener],
) -> Option<Listener> {
    let address: Option<SocketAddr> = t.need("address");
    let server = match names {
        // With one server there is nothing to choose.
        [only] if !t.says("server") => Some(t.get("server", only.clone())),
        // There is no name to give; that has been said.
        [] => t.maybe("server"),
        _ => t.need("server"),
    };
    if let Some(server) = &server
        && !names.contains(server)
        && !names.is_empty()
    {
        let known = names.iter().map(ServerId::as_str);
        let meant = did_you_mean(server.as_str(), known.clone());
        let meant = meant.map_or(";".to_owned(), |meant| format!("; did you mean {}?", quoted(meant)));
        let known = known.map(quoted).collect::<Vec<_>>().join(", ");
        t.object(
            "server",
            format!(
                "{} is not the name of a [[server]] in this file{meant} allowed: {known}",
                quoted(server.as_str())
            ),
        );
    }
    let usual = match address.map(|address| address.port()) {
        Some(143 | 1143) => Encryption::StartTls,
        Some(_) | None => Encryption::Implicit,
    };
    let tls = t.get("tls", usual);
    match (tls, address.map(|address| address.port())) {
        (Encryption::Implicit, Some(143)) => {
            t.warn("tls", "clients expect STARTTLS on port 143, not TLS at once")
        }
        (Encryption::StartTls | Encryption::Plain, Some(993)) => {
            t.warn("tls", "clients expect TLS at once on port 993")
        }
        _ => {}
    }
    let lan: Option<Prefix> = t.maybe("lan");
    match (tls, lan) {
        (Encryption::Implicit | Encryption::StartTls, Some(_)) => {
            t.warn("lan", "has no effect, because tls is not \"plain\"")
        }
        (Encryption::Implicit | Encryption::StartTls, None) => {}
        (Encryption::Plain, Some(lan)) if !lan.is_private() => {
            t.object(
                "lan",
                "this is no private network; plain text over a public one shows every password to it",
            );
        }
        (Encryption::Plain, Some(_)) => {}
        // It is there and wrong; that has been said.
        (Encryption::Plain, None) if t.says("lan") => {}
        (Encryption::Plain, None) => {
            if address.is_some_and(|address| !address.ip().is_loopback()) {
                t.object(
                    "tls",
                    "plain text shows every password to the network; allowed: on a loopback address, or with the private network of the clients named; for example: lan = \"192.168.7.0/24\"",
                );
            }
        }
    }
    let unlisted = t.get("unlisted", Unlisted::Refuse);
    if unlisted == Unlisted::Tunnel {
        let own = server.as_ref().and_then(|name| servers.iter().find(|server| server.name == *name));
        if tls != Encryption::Implicit {
            t.object(
                "unlisted",
                "\"tunnel\" looks at the first TLS record; allowed with tls = \"implicit\" only",
            );
        } else if own.is_some_and(|own| own.tls != Encryption::Implicit) {
            t.object("unlisted", "\"tunnel\" hands TLS through to the server, whose tls is not \"implicit\"");
        }
    }
    let address = address?;
    if let Some(other) = others.iter().find(|other| overlap(other.address, address)) {
        t.object("address", format!("{address} is taken by the [[listener]] on {}", other.address));
    }
    Some(Listener { address, server: server?, tls, lan, unlisted })
}

/// Whether two sockets would want the same port of the same address.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let one_is_all = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (one_is_all || a.ip() == b.ip())
}

/// What no section can see alone.
fn across(config: &Config, sections: &Sections<'_, '_>, found: &mut Found) {
    // A node beside the servers, or one that only carries, has no mail of its own.
    let stands = config.interception.is_some() || config.link.is_some();
    if sections.value(SERVER.name).is_none() && !(stands && config.listeners.is_empty()) {
        let what = "[[server]]: there is none; for example: [[server]] with name = \"mail.example.org\"";
        found.problems.push(Problem::missing(Place::TOP, what));
    }
    if sections.value(LISTENER.name).is_none() && !stands {
        let what = "[[listener]]: there is none; for example: [[listener]] with address = \"0.0.0.0:993\"";
        found.problems.push(Problem::missing(Place::TOP, what));
    }
    if config.node.user.is_some() && config.interception.is_none() {
        let what = "[node]: user: only a node with [interception], which must be started with rights, becomes somebody else; start this one as that user";
        found.problems.push(Problem::error(sections.place(&NODE, 0, "user"), what));
    }
    let bare = config.tls.ca_dir.is_none() && config.tls.operator.is_none();
    if bare && config.interception.is_some() {
        for server in config.servers.iter().filter(|server| server.would_terminate()) {
            let what = format!(
                "[[server]]: on_path: without a certificate to show its intercepted clients, {} is carried as octets; give [tls] one, or say so: on_path = \"octets\"",
                quoted(server.name.as_str())
            );
            found.problems.push(Problem::warning(sections.place(&SERVER, server.nth, "on_path"), what));
        }
    }
    let encrypted = config.listeners.iter().any(|listener| listener.tls != Encryption::Plain);
    if encrypted && bare {
        let what = "[tls]: mint is false and there is no cert, but a [[listener]] speaks TLS; allowed: cert and key, or mint = true";
        found.problems.push(Problem::error(sections.place(&TLS, 0, "mint"), what));
    }
    if let Some(listen) = config.admin.listen
        && let Some(other) = config.listeners.iter().find(|listener| overlap(listener.address, listen))
    {
        let what = format!("[admin]: listen: {listen} is taken by the [[listener]] on {}", other.address);
        found.problems.push(Problem::error(sections.place(&ADMIN, 0, "listen"), what));
    }
    let mut hosts: Vec<(&str, &Server)> = Vec::new();
    for server in &config.servers {
        let own = std::iter::once(("host", &server.host));
        for (key, host) in own.chain(server.aliases.iter().map(|alias| ("aliases", alias))) {
            let taken = hosts.iter().find(|(known, other)| {
                *known == host.0 && !other.name.as_str().eq_ignore_ascii_case(server.name.as_str())
            });
            if let Some((_, other)) = taken {
                let what = format!(
                    "[[server]]: {key}: {} is a host or alias of the [[server]] {} too; a client that asks for it could get either",
                    quoted(&host.0),
                    quoted(other.name.as_str())
                );
                found.problems.push(Problem::error(sections.place(&SERVER, server.nth, key), what));
            }
            hosts.push((&host.0, server));
        }
        if config.interception.is_none() && server.on_path == OnPath::Octets && config.link.is_none() {
            let what = "[[server]]: on_path: has no effect, because there is no [interception]";
            found.problems.push(Problem::warning(sections.place(&SERVER, server.nth, "on_path"), what));
        }
        if !config.listeners.is_empty()
            && config.interception.is_none()
            && !config.listeners.iter().any(|listener| listener.server == server.name)
        {
            let what = format!("[[server]]: no [[listener]] serves {}", quoted(server.name.as_str()));
            found.problems.push(Problem::warning(sections.place(&SERVER, server.nth, "name"), what));
        }
    }
}
