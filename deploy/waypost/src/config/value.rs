//! Values: how each kind is read from the file and written back. What is allowed for a particular key, and a
//! value that works, stand in the table of keys.

use super::{
    problem::did_you_mean,
    units::{Rate, Size, parse_time, show_time},
};
use discovery_core::{
    id::{BadName, NodeId, ServerId, SiteId},
    packet::Protocol,
    rule,
};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use toml::de::DeValue;

/// What is wrong with a value, as a clause (`"x" is not a port`), and what was perhaps meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) meant: Option<String>,
}

impl Wrong {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), meant: None }
    }
}

/// A kind of value.
pub(crate) trait Value: Sized {
    /// Reads it.
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong>;
    /// Writes it as TOML; reading that gives the same value.
    fn show(&self) -> String;
}

impl Value for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_bool().ok_or_else(|| Wrong::new(format!("{} is not true or false", found(value))))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(format!("{} is not a whole number that is allowed here", found(value)));
        let number = value.as_integer().ok_or_else(wrong)?;
        Self::from_str_radix(number.as_str(), number.radix()).map_err(|_| wrong())
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

/// A TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) u16);

impl Value for Port {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(format!("{} is not a port", found(value)));
        match u32::read(value).ok().and_then(|number| u16::try_from(number).ok()) {
            Some(port) if port != 0 => Ok(Self(port)),
            Some(_) | None => Err(wrong()),
        }
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Value for String {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match text(value)? {
            "" => Err(Wrong::new("it is empty")),
            text => Ok(text.to_owned()),
        }
    }
    fn show(&self) -> String {
        quoted(self)
    }
}

impl Value for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match text(value)? {
            "" => Err(Wrong::new("it is empty")),
            text if text.contains('\0') => Err(Wrong::new("a path has no NUL in it")),
            text if text.starts_with('~') => {
                Err(Wrong::new(format!("`~` is the shell's; {} must be written out", excerpt(text))))
            }
            text => Ok(Self::from(text)),
        }
    }
    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Value for Size {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(format!("{} is not a size", found(value)));
        match value.as_integer() {
            Some(number) => {
                u64::from_str_radix(number.as_str(), number.radix()).map(Self).map_err(|_| wrong())
            }
            None => value.as_str().and_then(Self::parse).ok_or_else(wrong),
        }
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for Rate {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(format!("{} is not a rate", found(value)));
        value.as_str().and_then(Self::parse).ok_or_else(wrong)
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for Duration {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value
            .as_str()
            .and_then(parse_time)
            .ok_or_else(|| Wrong::new(format!("{} is not a time", found(value))))
    }
    fn show(&self) -> String {
        quoted(&show_time(*self))
    }
}

impl Value for SocketAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        match text.parse::<Self>() {
            Ok(address) if address.port() != 0 => Ok(address),
            Ok(_) => Err(Wrong::new("port 0 is no port that clients could be told")),
            Err(_) if text.parse::<IpAddr>().is_ok() => {
                Err(Wrong::new(format!("{} has no port", excerpt(text))))
            }
            Err(_) => Err(Wrong::new(format!("{} is not an address with a port", excerpt(text)))),
        }
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for IpAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        text.parse().map_err(|_| Wrong::new(format!("{} is not an IP address", excerpt(text))))
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// A list of one kind.
impl<T: Value> Value for Vec<T> {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let list = value.as_array().ok_or_else(|| Wrong::new(format!("{} is not a list", found(value))))?;
        if list.len() > LIST_MAX {
            return Err(Wrong::new(format!("{} entries are more than the {LIST_MAX} allowed", list.len())));
        }
        list.iter().map(|entry| T::read(entry.get_ref())).collect()
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}

/// Names and aliases: more would be a mistake, not a site.
const LIST_MAX: usize = 64;

macro_rules! name {
    ($kind:ident) => {
        impl Value for $kind {
            fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
                Self::new(text(value)?).map_err(|bad: BadName| Wrong::new(bad.to_string()))
            }
            fn show(&self) -> String {
                quoted(self.as_str())
            }
        }
    };
}
name!(NodeId);
name!(SiteId);
name!(ServerId);

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceName(pub(crate) String);

impl Value for InterfaceName {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"._-:".contains(&octet);
        let reserved = matches!(text, "." | ".." | "lo" | "all" | "default") || text.starts_with('-');
        if (1..=15).contains(&text.len()) && text.bytes().all(plain) && !reserved {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::new(format!("{} is not the name of an interface", excerpt(text))))
        }
    }
    fn show(&self) -> String {
        quoted(&self.0)
    }
}

/// Values that know their own text, and say themselves what is wrong with one.
macro_rules! from_text {
    ($kind:ty) => {
        impl Value for $kind {
            fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
                text(value)?
                    .parse()
                    .map_err(|wrong: <$kind as std::str::FromStr>::Err| Wrong::new(wrong.to_string()))
            }
            fn show(&self) -> String {
                quoted(&self.to_string())
            }
        }
    };
}
from_text!(rule::Prefix);

impl Value for rule::Ports {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value.as_integer() {
            Some(_) => Port::read(value).map(|port| Self::from(port.0)),
            None => text(value)?.parse().map_err(|wrong: rule::PortsError| Wrong::new(wrong.to_string())),
        }
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for rule::VlanId {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let id = u16::try_from(u32::read(value)?).unwrap_or(u16::MAX);
        Self::new(id).map_err(|wrong| Wrong::new(wrong.to_string()))
    }
    fn show(&self) -> String {
        self.get().to_string()
    }
}

impl Value for rule::Action {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        Self::from_word(text).ok_or_else(|| Wrong {
            what: format!("{} is not an action", excerpt(text)),
            meant: did_you_mean(text, Self::ALL.iter().map(|action| action.word())).map(quoted),
        })
    }
    fn show(&self) -> String {
        quoted(self.word())
    }
}

impl Value for rule::Existing {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        Self::from_word(text).ok_or_else(|| Wrong {
            what: format!("{} is not known", excerpt(text)),
            meant: did_you_mean(text, Self::ALL.iter().map(|existing| existing.word())).map(quoted),
        })
    }
    fn show(&self) -> String {
        quoted(self.word())
    }
}

impl Value for Protocol {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match text(value)? {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(Wrong::new(format!("{} is not known", excerpt(other)))),
        }
    }
    fn show(&self) -> String {
        let word = match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        };
        quoted(word)
    }
}

/// A prefix of a network, such as `192.168.7.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) base: IpAddr,
    pub(crate) bits: u8,
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let (base, bits) = (base.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
        let width = if base.is_ipv4() { 32 } else { 128 };
        (bits <= width).then_some(Self { base, bits })
    }

    /// Whether `address` lies in it; an IPv4 address mapped into IPv6 counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                base.to_bits().checked_shr(shift).unwrap_or(0)
                    == address.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.bits);
                base.to_bits().checked_shr(shift).unwrap_or(0)
                    == address.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether all of it is address space that no one reaches from outside: RFC 1918, RFC 4193, link-local,
    /// loopback, and the shared space of RFC 6598.
    pub(crate) fn is_private(&self) -> bool {
        PRIVATE
            .iter()
            .filter_map(|text| Self::parse(text))
            .any(|p| self.bits >= p.bits && p.contains(self.base))
    }
}

const PRIVATE: &[&str] = &[
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "fc00::/7",
    "fe80::/10",
    "::1/128",
];

impl Value for Prefix {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        Self::parse(text).ok_or_else(|| Wrong::new(format!("{} is not a network prefix", excerpt(text))))
    }
    fn show(&self) -> String {
        quoted(&format!("{}/{}", self.base, self.bits))
    }
}

/// The name or address by which a server is reached, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host(pub(crate) String);

impl Host {
    /// Checks `text`; an IPv6 address may stand in brackets.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if bare.parse::<IpAddr>().is_ok() {
            return Some(Self(bare.to_owned()));
        }
        let label_fits = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|o| o.is_ascii_alphanumeric() || o == b'-' || o == b'_')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        let all_digits = name.bytes().all(|o| o.is_ascii_digit() || o == b'.');
        (name.len() <= 253 && !all_digits && name.split('.').all(label_fits))
            .then(|| Self(name.to_ascii_lowercase()))
    }
}

impl Value for Host {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        Self::parse(text)
            .ok_or_else(|| Wrong::new(format!("{} is not a host name or IP address", excerpt(text))))
    }
    fn show(&self) -> String {
        quoted(&self.0)
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo, in hexadecimal digits (colons are fine).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pin(pub(crate) [u8; 32]);

impl Pin {
    /// Reads 64 hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|o| *o != b':').collect();
        let mut pin = [0; 32];
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (octet, pair) in pin.iter_mut().zip(digits.chunks_exact(2)) {
            *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(pin))
    }
}

impl Value for Pin {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        Self::parse(text).ok_or_else(|| {
            Wrong::new(format!("{} is not a SHA-256 fingerprint in hexadecimal", excerpt(text)))
        })
    }
    fn show(&self) -> String {
        quoted(&hex(&self.0))
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|o| format!("{o:02x}")).collect()
}

/// A file's mode, as `chmod` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode(pub(crate) u32);

impl Value for Mode {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = text(value)?;
        let mode = u32::from_str_radix(text, 8).ok().filter(|_| matches!(text.len(), 3 | 4));
        match mode {
            Some(mode) if mode & 0o7 != 0 => {
                Err(Wrong::new(format!("{} lets everybody on this machine in", excerpt(text))))
            }
            Some(mode) if mode & 0o600 == 0o600 && mode < 0o1000 => Ok(Self(mode)),
            Some(_) | None => Err(Wrong::new(format!("{} is not a mode for a socket", excerpt(text)))),
        }
    }
    fn show(&self) -> String {
        quoted(&format!("{:04o}", self.0))
    }
}

/// A closed set of words.
macro_rules! choice {
    ($(#[$doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $kind { $($(#[$variant_doc])* $variant),+ }

        impl $kind {
            /// The word in the file.
            pub(crate) fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Value for $kind {
            fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
                match text(value)? {
                    $($word => Ok(Self::$variant),)+
                    other => Err(Wrong {
                        what: format!("{} is not known", excerpt(other)),
                        meant: did_you_mean(other, [$($word),+]).map(quoted),
                    }),
                }
            }
            fn show(&self) -> String {
                quoted(self.word())
            }
        }
    };
}

choice! {
    /// How a stream begins, towards clients or a server.
    Encryption {
        /// TLS from the first octet.
        Implicit = "implicit",
        /// Plain until STARTTLS, and no credential before it.
        StartTls = "starttls",
        /// Never encrypted.
        Plain = "plain",
    }
}

choice! {
    /// What happens to a client that asks for a name which is not served here.
    Unlisted {
        /// The handshake is refused.
        Refuse = "refuse",
        /// Its octets go untouched to this listener's own server.
        Tunnel = "tunnel",
    }
}

choice! {
    /// How a node stands on the path.
    Standing {
        /// It routes.
        Routed = "routed",
        /// It bridges.
        Bridge = "bridge",
        /// It runs on the client's or the server's machine.
        Host = "host",
    }
}

choice! {
    /// Whose connections a node on a host takes.
    HostSide {
        /// Those that its programs open.
        Client = "client",
        /// Those that its servers accept.
        Server = "server",
        /// Both.
        Both = "both",
    }
}

choice! {
    /// How another node on the path is asked for.
    ProbeManner {
        /// By an option on the client's own SYN.
        OnSyn = "on-syn",
        /// Apart, while the SYN waits.
        Stalled = "stalled",
        /// Apart, while the SYN goes on.
        Parallel = "parallel",
    }
}

choice! {
    /// How what is known of a server's path becomes fresh.
    Refresh {
        /// It runs out, and the SYN of the connection after that asks.
        WhenStale = "when-stale",
        /// A probe beside a connection, before it runs out.
        ByConnection = "by-connection",
        /// A probe when it runs out, with no connection waiting.
        ByTimer = "by-timer",
    }
}

choice! {
    /// Whose address a mail server sees when its client was intercepted.
    Source {
        /// The client's.
        Spoof = "spoof",
        /// The node's.
        Own = "own-address",
    }
}

choice! {
    /// What becomes of an intercepted connection to a mail server.
    OnPath {
        /// Its TLS ends here, and it is served as at a listener.
        Terminate = "terminate",
        /// It is carried as octets, like any other.
        Octets = "octets",
    }
}

choice! {
    /// What a forged SYN-ACK acknowledges.
    Ack {
        /// The client's initial sequence number: a client that gets it by accident is not harmed.
        Isn = "isn",
        /// One more.
        IsnPlusOne = "isn+1",
    }
}

choice! {
    /// How connections come to a deflector's proxies.
    DeflectMode {
        /// Their SYNs are turned.
        Static = "static",
        /// Their clients' nodes are told of a proxy.
        Discovering = "discovering",
    }
}

choice! {
    /// Which proxy a deflector chooses.
    DeflectPolicy {
        /// The first one that is there.
        Primary = "primary",
        /// The one with the least load.
        Load = "load",
        /// By the client's and the server's address.
        Hash = "hash",
    }
}

choice! {
    /// By what a query is answered.
    Answer {
        /// By an option, and by a datagram where that is lost.
        Auto = "auto",
        /// By an option alone.
        Option = "option",
        /// By a datagram alone.
        Datagram = "datagram",
    }
}

choice! {
    /// How the log looks.
    LogFormat {
        /// For people.
        Text = "text",
        /// For machines: one object a line.
        Json = "json",
    }
}

choice! {
    /// How much is logged.
    LogLevel {
        /// A person must act.
        Error = "error",
        /// Unexpected, went on.
        Warn = "warn",
        /// State changes.
        Info = "info",
        /// Why each verdict.
        Debug = "debug",
        /// Each frame.
        Trace = "trace",
    }
}

/// A text, or what else it is.
pub(crate) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, Wrong> {
    value.as_str().ok_or_else(|| Wrong::new(format!("{} is not a text in quotes", found(value))))
}

/// What stands there, short enough for a message.
pub(crate) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => excerpt(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// As a TOML basic string on one line.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A text for a message: what would flood a terminal is cut.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        Some((cut, _)) => quoted(&format!("{}…", text.get(..cut).unwrap_or(""))),
        None => quoted(text),
    }
}

/// One line of a terminal.
const EXCERPT_CHARS_MAX: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_know_their_members() {
        for (prefix, inside, outside) in [
            ("192.168.7.0/24", "192.168.7.255", "192.168.8.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "11.0.0.0"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            ("fd00::/8", "fd12::1", "fe80::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
        ] {
            let prefix = Prefix::parse(prefix).unwrap();
            assert!(prefix.contains(inside.parse().unwrap()), "{prefix:?} {inside}");
            assert!(!prefix.contains(outside.parse().unwrap()), "{prefix:?} {outside}");
        }
        for (text, private) in
            [("10.0.0.0/8", true), ("10.0.0.0/7", false), ("192.168.7.0/24", true), ("8.8.8.0/24", false)]
        {
            assert_eq!(Prefix::parse(text).unwrap().is_private(), private, "{text}");
        }
        assert_eq!(Prefix::parse("10.0.0.0/33"), None);
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in
            ["mail.example.org", "mail", "192.0.2.1", "2001:db8::1", "[2001:db8::1]", "Mail.Example.ORG."]
        {
            assert!(Host::parse(good).is_some(), "{good}");
        }
        for bad in ["", "mail example", "-a.org", "a..b", "mail:993", "300.1.1.1", "ü.example"] {
            assert!(Host::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn pins_are_sixty_four_digits() {
        let pin = "AB:".repeat(31) + "cd";
        assert_eq!(Pin::parse(&pin).map(|p| p.0[31]), Some(0xcd));
        assert_eq!(Pin::parse("ab"), None);
        assert_eq!(Pin::parse(&"+1".repeat(32)), None, "a sign is no digit");
    }
}
