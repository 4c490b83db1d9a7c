//! The table of everything that can stand in the file: sections, keys, what is allowed, a value that works.
//! The reader, the messages and the manual's reference are made from it.

/// A key of a section.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What is allowed, as a clause.
    pub(crate) allowed: &'static str,
    /// A value that works, as it would stand in the file.
    pub(crate) works: &'static str,
}

/// A section, or a table within one.
#[derive(Debug)]
pub(crate) struct Section {
    /// The word between the brackets.
    pub(crate) name: &'static str,
    /// Whether it stands once, `[name]`, or any number of times, `[[name]]`.
    pub(crate) many: bool,
    pub(crate) keys: &'static [Key],
}

impl Section {
    /// As it stands in the file.
    pub(crate) fn header(&self) -> String {
        if self.many { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, allowed: &'static str, works: &'static str) -> Key {
    Key { name, allowed, works }
}

pub(crate) const NODE: Section = Section {
    name: "node",
    many: false,
    keys: &[
        key("id", "a name of a-z A-Z 0-9 . _ -, unique in the organisation", r#""branch-1""#),
        key("site", "a name of a-z A-Z 0-9 . _ -: the office that this node serves", r#""lisbon""#),
        key(
            "user",
            "a user of this machine, or uid:gid: who reads what strangers send, on the path, where root starts the node",
            r#""waypost""#,
        ),
        key("state_dir", "a directory that only this node writes", r#""/var/lib/waypost""#),
        key(
            "user_key_file",
            "a file of 32 octets, mode 0600; made at first start",
            r#""/var/lib/waypost/user.key""#,
        ),
    ],
};

pub(crate) const ADMIN: Section = Section {
    name: "admin",
    many: false,
    keys: &[
        key("socket", "a path of at most 107 octets", r#""/run/waypost/admin.sock""#),
        key("mode", "a mode with no rights for others", r#""0660""#),
        key("group", "the name of a group on this machine", r#""adm""#),
        key(
            "listen",
            "a loopback address with a port; it serves /metrics, /livez and /readyz",
            r#""127.0.0.1:9143""#,
        ),
    ],
};

pub(crate) const LOG: Section = Section {
    name: "log",
    many: false,
    keys: &[
        key("level", "error, warn, info, debug, trace", r#""info""#),
        key("format", "text, json", r#""text""#),
    ],
};

pub(crate) const TLS: Section = Section {
    name: "tls",
    many: false,
    keys: &[
        key("ca_dir", "the directory that `waypost ca init --interception` made", r#""/var/lib/waypost/ca""#),
        key("mint", "true, false: make certificates for the servers' names with the CA of ca_dir", "true"),
        key(
            "rsa_key",
            "a file with an RSA key in PEM, mode 0600, for TLS 1.2 clients that know no other",
            r#""/etc/waypost/rsa.key""#,
        ),
        key("cert", "a file with a certificate chain in PEM", r#""/etc/waypost/mail.pem""#),
        key("key", "a file with the private key of cert in PEM, mode 0600", r#""/etc/waypost/mail.key""#),
    ],
};

pub(crate) const SERVER: Section = Section {
    name: "server",
    many: true,
    keys: &[
        key(
            "name",
            "a name of a-z A-Z 0-9 . _ -; the store is keyed by it, so keep it",
            r#""mail.example.org""#,
        ),
        key("host", "the host name that stands in the server's certificate", r#""mail.example.org""#),
        key("port", "1 to 65535", "993"),
        key("addresses", "a list of IP addresses, if not those of DNS", r#"["192.0.2.10", "2001:db8::10"]"#),
        key("aliases", "a list of other host names that clients use for it", r#"["imap.example.org"]"#),
        key("protocol", "imap", r#""imap""#),
        key("tls", "implicit, starttls, plain", r#""implicit""#),
        key(
            "lan",
            "the private network, as address/bits, in which plain text to this server is tolerated",
            r#""192.168.7.0/24""#,
        ),
        key(
            "ca",
            "a file with CA certificates in PEM, instead of the system's",
            r#""/etc/waypost/mail-ca.pem""#,
        ),
        key("pin", "SHA-256 of the server's public key, 64 hexadecimal digits, instead of a CA", PIN_WORKS),
        key(
            "on_path",
            "terminate, octets: whether its intercepted clients are served here or only carried",
            r#""terminate""#,
        ),
        key("source", "spoof, own-address: whose address it sees of intercepted clients", r#""spoof""#),
        key("compress", "true, false: COMPRESS towards the server when it offers it", "true"),
        key(
            "shadow",
            "true, false: compare cut messages with the server's own before trusting the cut",
            "true",
        ),
        key("allow_preauth", "true, false: accept a server that greets with PREAUTH", "false"),
        key("parked", "0 to 32 connections kept ready for clients to come", "2"),
        key("parked_for", "1m to 1d: how long after the last client connections are kept ready", r#""10m""#),
        key(
            "parked_on_cyrus",
            "true, false: keep connections ready also at Cyrus, of whose maxchild each takes one",
            "false",
        ),
        key(
            "announce_client",
            "true, false: begin with ID and the client's address, for a Dovecot whose login_trusted_networks has this node",
            "false",
        ),
        key("foresee", "true, false: send what a client always asks first right behind its login", "true"),
        key("limits", "a table with sessions_max, dials_max", "{ sessions_max = 2000 }"),
    ],
};

const PIN_WORKS: &str = r#""e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#;

pub(crate) const LIMITS: Section = Section {
    name: "server.limits",
    many: false,
    keys: &[
        key("sessions_max", "1 to 100000 sessions at a time", "2000"),
        key(
            "dials_max",
            "1 to 10000 connections being opened at a time; other clients wait their turn",
            "32",
        ),
    ],
};

pub(crate) const LISTENER: Section = Section {
    name: "listener",
    many: true,
    keys: &[
        key(
            "address",
            "an IP address of this machine with a port; [::] and 0.0.0.0 mean all",
            r#""0.0.0.0:993""#,
        ),
        key("server", "the name of a [[server]] in this file", r#""mail.example.org""#),
        key("tls", "implicit, starttls, plain", r#""implicit""#),
        key(
            "lan",
            "the private network, as address/bits, whose clients may come without TLS",
            r#""192.168.7.0/24""#,
        ),
        key("unlisted", "refuse, tunnel", r#""refuse""#),
    ],
};

pub(crate) const STORE: Section = Section {
    name: "store",
    many: false,
    keys: &[
        key("path", "a directory that only this node writes", r#""/var/lib/waypost/store""#),
        key(
            "size_max",
            "64 MiB or more, as a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB",
            r#""10 GiB""#,
        ),
        key("seal_key_file", "a file of 32 random octets, mode 0600", r#""/etc/waypost/seal.key""#),
        key("seal_credential", "the name of a systemd credential with 32 random octets", r#""seal-key""#),
        key(
            "re_proof",
            "30s to 1d: how long a session's right to a mailbox is believed on servers that do not tell",
            r#""5m""#,
        ),
    ],
};

pub(crate) const SUSTAIN: Section = Section {
    name: "sustain",
    many: false,
    keys: &[
        key("enabled", "true, false: connections to the server outlive clients that leave", "true"),
        key("absolute", "1m to 7d after the last login that the server accepted", r#""24h""#),
        key("idle", "1m to 7d after the client left", r#""12h""#),
        key("per_server_max", "1 to 100000 kept sessions at a time", "500"),
        key("size_max", "0 B or more: larger messages are left to their reader", r#""8 MiB""#),
        key("lane", "true, false: a kept session stays beside its user and fetches ahead for him", "true"),
        key(
            "user_connections_max",
            "1 to 100 connections of a user, ours with them; fewer than his server allows",
            "8",
        ),
        key("line_rate", "1 kbit/s or more: about what the line to the servers carries", r#""10 Mbit/s""#),
    ],
};

pub(crate) const PREFETCH: Section = Section {
    name: "prefetch",
    many: false,
    keys: &[
        key("enabled", "true, false: mail is fetched before anybody asks for it", "true"),
        key("rate", "64 kbit/s or more: how fast at most, over the way to each server", r#""2500 kbit/s""#),
        key("user_day_max", "0 B or more: octets for each user and day", r#""512 MiB""#),
        key("server_day_max", "0 B or more: octets from each server and day", r#""16 GiB""#),
    ],
};

pub(crate) const INTERCEPTION: Section = Section {
    name: "interception",
    many: false,
    keys: &[
        key("mode", "routed, bridge, host", r#""routed""#),
        key(
            "interfaces",
            "a list of names: those on the path, towards clients and towards servers; of a bridge, its ports",
            r#"["lan0", "wan0"]"#,
        ),
        key("bridge", "the name of the bridge, which has an address and routes of its own", r#""br0""#),
        key("tagged", "true, false: look at frames with an 802.1Q tag too", "false"),
        key("host", "client, server, both: whose connections are taken on this machine", r#""both""#),
        key("queue", "1 to 65535: the number of the packet queue, unused by others", "7782"),
        key("probe", "on-syn, stalled, parallel: how another node on the path is asked for", r#""on-syn""#),
        key(
            "refresh",
            "when-stale, by-connection, by-timer: by which probes it is learnt anew who stands before a server",
            r#""when-stale""#,
        ),
        key(
            "entry_ttl",
            "1s to 1h: how long a new answer is believed; confirmed, twice as long each time, an hour at most",
            r#""1m""#,
        ),
        key(
            "ack",
            "isn, isn+1: what an answer acknowledges; isn+1 only where a firewall between the nodes demands it",
            r#""isn""#,
        ),
        key(
            "answer",
            "auto, option, datagram: by what a query is answered; auto: a datagram where options are taken out",
            r#""auto""#,
        ),
        key("option_kind", "253, 254: the experimental TCP option (RFC 6994)", "253"),
        key(
            "watchdog_device",
            "the path of a device that starts the machine anew when the node neither works nor comes back",
            r#""/dev/watchdog""#,
        ),
        key(
            "bypass_command",
            "a list: a program and its arguments; on or off comes behind them when connections flow past, or no longer",
            r#"["/usr/local/sbin/relay", "eth0"]"#,
        ),
    ],
};

pub(crate) const DEFLECTOR: Section = Section {
    name: "deflector",
    many: false,
    keys: &[
        key(
            "mode",
            "static, discovering: whether connections are turned to a proxy, or clients' nodes are told of one",
            r#""static""#,
        ),
        key("proxies", "a list of [[peer]] ids, the preferred one first", r#"["proxy-1", "proxy-2"]"#),
        key("policy", "primary, load, hash: which of the proxies that are there", r#""primary""#),
        key("port", "1 to 65535: where the proxies accept what is turned to them", "7784"),
    ],
};

pub(crate) const OFF_PATH: Section = Section {
    name: "off_path",
    many: false,
    keys: &[
        key("deflector", "the [[peer]] id of the deflector through which servers are reached", r#""edge-1""#),
        key("port", "1 to 65535: where clients' connections are accepted, as the deflector has it", "7784"),
        key("option_kind", "253, 254: as the deflector's [interception] has it", "253"),
    ],
};

pub(crate) const RULE: Section = Section {
    name: "rule",
    many: true,
    keys: &[
        key(
            "action",
            "pass, intercept, intercept-single, drop, deny, drop-if-no-peer; the first rule that fits decides",
            r#""intercept""#,
        ),
        key(
            "existing",
            "leave, reset, adopt: what becomes of connections that stood before the node, or come by another way",
            r#""reset""#,
        ),
        key("clients", "a list of networks, as address/bits, or addresses", r#"["10.1.0.0/16"]"#),
        key("servers", "a list of networks, as address/bits, or addresses", r#"["10.2.0.0/16"]"#),
        key("client_ports", "a list of ports and ranges", r#"["1024-65535"]"#),
        key("ports", "a list of ports and ranges, of the server", r#"[143, 993, "8000-8100"]"#),
        key("interfaces", "a list of names from [interception]: where the SYN comes in", r#"["lan0"]"#),
        key("vlans", "a list of VLAN ids, 0 to 4094", "[100]"),
        key("protocol", "tcp, udp", r#""tcp""#),
        key("bpf", "an expression of tcpdump (pcap-filter(7)) that the SYN fits", r#""greater 60""#),
    ],
};

pub(crate) const LINK: Section = Section {
    name: "link",
    many: false,
    keys: &[
        key("listen", "an IP address of this machine with a port; [::] means all", r#""[::]:7782""#),
        key("identity", "the directory that `waypost join` filled", r#""/var/lib/waypost/node""#),
        key(
            "advertise",
            "a list of addresses with ports where other nodes reach this one, behind a NAT",
            r#"["198.51.100.1:7782"]"#,
        ),
        key("revoked", "a list of [node] ids that are not peers any more", r#"["branch-9"]"#),
    ],
};

pub(crate) const PEER: Section = Section {
    name: "peer",
    many: true,
    keys: &[
        key("id", "the [node] id of another node of this organisation", r#""centre-1""#),
        key("address", "an address with a port, if the path shall not tell it", r#""192.0.2.1:7782""#),
        key(
            "pin",
            "SHA-256 of its public key, 64 hexadecimal digits: no other certificate will do",
            PIN_WORKS,
        ),
        key(
            "servers",
            "a list of networks that are reached through it without asking the path",
            r#"["10.2.0.0/16"]"#,
        ),
        key(
            "preference",
            "0 to 255: of several peers for one server the lowest is asked; equal ones share by client and server",
            "1",
        ),
        key(
            "serves",
            "a list of networks that it serves as this node does: clients' nodes are told of it",
            r#"["10.2.0.0/16"]"#,
        ),
        key(
            "may_open",
            "a list of networks that it may ask for without a SYN that was seen here",
            r#"["10.2.0.0/16"]"#,
        ),
        key(
            "may_dial",
            "a list of networks that it may reach from this node's own address, as its [[carry]] does",
            r#"["10.2.0.0/16"]"#,
        ),
    ],
};

pub(crate) const AUTHORITY: Section = Section {
    name: "authority",
    many: true,
    keys: &[
        key("name", "what logs and status call it", r#""partner""#),
        key("certificate", "a file with its certificate in PEM", r#""/etc/waypost/partner-nodes.pem""#),
        key(
            "servers",
            "a list of networks: its nodes serve, and ask for, nothing else",
            r#"["10.9.0.0/16"]"#,
        ),
    ],
};

pub(crate) const CARRY: Section = Section {
    name: "carry",
    many: true,
    keys: &[
        key("listen", "an IP address of this machine with a port; [::] means all", r#""[::]:8143""#),
        key("server", "an IP address with a port, as the peer reaches it", r#""10.2.0.2:143""#),
        key("peer", "the [[peer]] id of the node that reaches the server", r#""centre-1""#),
    ],
};

/// What this build understands.
pub(crate) const BUILT: &[&Section] = &[
    &NODE,
    &ADMIN,
    &LOG,
    &TLS,
    &SERVER,
    &LISTENER,
    &STORE,
    &SUSTAIN,
    &PREFETCH,
    &INTERCEPTION,
    &DEFLECTOR,
    &OFF_PATH,
    &RULE,
    &LINK,
    &PEER,
    &AUTHORITY,
    &CARRY,
];

/// Names that later builds will understand: reserved, so that a file never changes its meaning.
pub(crate) const RESERVED: &[(&str, &str)] = &[
    ("segments", "the segment store"),
    ("sightings", "location reports"),
    ("uldb", "the user location database"),
    ("site", "sites"),
    ("cda", "content delivery"),
    ("report", "scheduled reports"),
];

/// The only version of the file's form so far.
pub(crate) const VERSION: Key = key("version", "1", "1");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_stands_twice_and_every_example_is_toml() {
        let mut names = BTreeSet::new();
        for section in BUILT {
            assert!(names.insert(section.name), "{}", section.name);
            let mut keys = BTreeSet::new();
            for key in section.keys {
                assert!(keys.insert(key.name), "{}.{}", section.name, key.name);
                toml::from_str::<toml::Table>(&format!("{} = {}", key.name, key.works)).unwrap();
            }
        }
        assert!(RESERVED.iter().all(|(name, _)| names.insert(name)));
    }
}
