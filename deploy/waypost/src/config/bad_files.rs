//! Bad files and what is said about each; one row, one edit of a good file.

use super::{FileUse, Loaded, Surroundings, judge, show};
use discovery_core::id::{NodeId, SiteId};
use proptest::prelude::*;
use std::path::Path;

const GOOD: &str = r#"version = 1

[node]
id = "branch-1"
site = "lisbon"

[store]
size_max = "10 GiB"
seal_credential = "seal-key"

[[server]]
name = "mail.example.org"

[[listener]]
address = "0.0.0.0:993"

[[listener]]
address = "0.0.0.0:143"
"#;

pub(crate) fn surroundings() -> Surroundings {
    Surroundings {
        id: NodeId::new("here").unwrap(),
        site: SiteId::new("here").unwrap(),
        state_dir: "/state".into(),
        runtime_dir: None,
        credentials_dir: None,
    }
}

pub(crate) fn judged(text: &str) -> Loaded {
    judge(text, Path::new("/etc/waypost/waypost.toml"), &surroundings(), FileUse::Ignore)
}

fn lines(text: &str) -> Vec<String> {
    judged(text).problems.iter().map(|problem| problem.line("w.toml").to_string()).collect()
}

/// (what is replaced in the good file, by what, what is said)
const ROWS: &[(&str, &str, &[&str])] = &[
    (
        r#"version = 1
"#,
        r#""#,
        &[r#"w.toml:1:1: error: version: it is missing; begin the file with: version = 1"#],
    ),
    (
        r#"version = 1"#,
        r#"version = 2"#,
        &[r#"w.toml:1:11: error: version: 2 is not a version that this build reads; allowed: version = 1"#],
    ),
    (
        r#"version = 1"#,
        r#"version = "1""#,
        &[r#"w.toml:1:11: error: version: "1" is not a version that this build reads; allowed: version = 1"#],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
verbose = true"#,
        &[
            r#"w.toml:2:1: error: verbose: there is no such section; allowed: version = 1 and [node] [admin] [log] [tls] [[server]] [[listener]] [store] [sustain] [prefetch] [interception] [deflector] [off_path] [[rule]] [link] [[peer]] [[authority]] [[carry]]"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[link]
[[authority]]
name = "own"
certificate = "partner.pem"
servers = []
[[authority]]
name = "partner"
certificate = "partner.pem""#,
        &[
            r#"w.toml:4:8: error: [[authority]]: name: "own" is the name of another one; names must differ"#,
            r#"w.toml:6:11: error: [[authority]]: servers: it is empty; allowed: at least one; for example: servers = ["10.9.0.0/16"]"#,
            r#"w.toml:7:1: error: [[authority]]: servers is missing; allowed: a list of networks: its nodes serve, and ask for, nothing else; for example: servers = ["10.9.0.0/16"]"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[link]
[[peer]]
id = "dc-1"
address = "10.2.0.1:7782"
[[carry]]
listen = "10.1.0.1:8143"
server = "10.2.0.2:143"
peer = "dc-2"
[[carry]]
listen = "10.1.0.1:8143"
server = "mail"
peer = "dc-1""#,
        &[
            r#"w.toml:9:8: error: [[carry]]: peer: "dc-2" is no [[peer]] of this file"#,
            r#"w.toml:11:10: error: [[carry]]: listen: 10.1.0.1:8143 is taken by another [[carry]]"#,
            r#"w.toml:12:10: error: [[carry]]: server: "mail" is not an address with a port; allowed: an IP address with a port, as the peer reaches it; for example: server = "10.2.0.2:143""#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[[carry]]
listen = "10.1.0.1:8143"
server = "10.2.0.2:143"
peer = "dc-1""#,
        &[
            r#"w.toml:2:1: error: [[carry]]: it goes over the link, and there is neither [link] nor [interception]"#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[node]
user = "waypost""#,
        &[
            r#"w.toml:4:8: error: [node]: user: only a node with [interception], which must be started with rights, becomes somebody else; start this one as that user"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
interfaces = ["lan0", "wan0"]
refresh = "timer"
entry_ttl = "2h"
[[rule]]
action = "intercept""#,
        &[
            r#"w.toml:4:11: error: [interception]: refresh: "timer" is not known; did you mean "by-timer"? allowed: when-stale, by-connection, by-timer: by which probes it is learnt anew who stands before a server; for example: refresh = "by-timer""#,
            r#"w.toml:5:13: error: [interception]: entry_ttl: 2h is out of range; allowed: 1s to 1h; for example: entry_ttl = "1m""#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[deflector]
mode = "clever"
proxies = []
[off_path]
deflector = "edge-1"
option_kind = 30"#,
        &[
            r#"w.toml:3:8: error: [deflector]: it turns packets on the path, and there is no [interception]"#,
            r#"w.toml:3:8: error: [deflector]: mode: "clever" is not known; allowed: static, discovering: whether connections are turned to a proxy, or clients' nodes are told of one; for example: mode = "static""#,
            r#"w.toml:4:11: error: [deflector]: proxies: it is empty; allowed: at least one [[peer]] id"#,
            r#"w.toml:6:13: error: [off_path]: deflector: "edge-1" is no [[peer]] of this file"#,
            r#"w.toml:7:15: error: [off_path]: option_kind: 30 belongs to somebody else; allowed: 253, 254; for example: option_kind = 253"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
interfaces = ["lan0", "wan0"]
[[rule]]
action = "intercept"
[deflector]
policy = "best"
proxies = ["proxy-1", "proxy-2"]
port = 0
[[peer]]
id = "proxy-1"
[off_path]
deflector = "proxy-1""#,
        &[
            r#"w.toml:7:10: error: [deflector]: policy: "best" is not known; allowed: primary, load, hash: which of the proxies that are there; for example: policy = "primary""#,
            r#"w.toml:8:11: error: [deflector]: proxies: the [[peer]] "proxy-1" has no address"#,
            r#"w.toml:8:11: error: [deflector]: proxies: "proxy-2" is no [[peer]] of this file"#,
            r#"w.toml:9:8: error: [deflector]: port: 0 is not a port; allowed: 1 to 65535: where the proxies accept what is turned to them; for example: port = 7784"#,
            r#"w.toml:13:13: error: [off_path]: a node with [interception] stands on the path"#,
            r#"w.toml:13:13: error: [off_path]: deflector: the [[peer]] "proxy-1" has no address"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[prefetch]
enabled = 1
rate = "63 kbit/s"
user_day_max = "512 Mbit/s"
windows = 3"#,
        &[
            r#"w.toml:3:11: error: [prefetch]: enabled: 1 is not true or false; allowed: true, false: mail is fetched before anybody asks for it; for example: enabled = true"#,
            r#"w.toml:4:8: error: [prefetch]: rate: 63 kbit/s is too slow to be of use; allowed: 64 kbit/s or more; for example: rate = "2500 kbit/s""#,
            r#"w.toml:5:16: error: [prefetch]: user_day_max: "512 Mbit/s" is not a size; allowed: 0 B or more: octets for each user and day; for example: user_day_max = "512 MiB""#,
            r#"w.toml:6:1: error: [prefetch]: windows: there is no such key; allowed: enabled, rate, user_day_max, server_day_max"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[sustain]
enabled = "yes"
absolute = "8d"
idle = "1s"
per_server_max = 0
size_max = -1
lane = 1
user_connections_max = 0
line_rate = "0 bit/s""#,
        &[
            r#"w.toml:3:11: error: [sustain]: enabled: "yes" is not true or false; allowed: true, false: connections to the server outlive clients that leave; for example: enabled = true"#,
            r#"w.toml:4:12: error: [sustain]: absolute: 8d is out of range; allowed: 1m to 7d; for example: absolute = "24h""#,
            r#"w.toml:5:8: error: [sustain]: idle: 1s is out of range; allowed: 1m to 7d; for example: idle = "12h""#,
            r#"w.toml:6:18: error: [sustain]: per_server_max: 0 is out of range; allowed: 1 to 100000; for example: per_server_max = 500"#,
            r#"w.toml:7:12: error: [sustain]: size_max: -1 is not a size; allowed: 0 B or more: larger messages are left to their reader; for example: size_max = "8 MiB""#,
            r#"w.toml:8:8: error: [sustain]: lane: 1 is not true or false; allowed: true, false: a kept session stays beside its user and fetches ahead for him; for example: lane = true"#,
            r#"w.toml:9:24: error: [sustain]: user_connections_max: 0 is out of range; allowed: 1 to 100; for example: user_connections_max = 8"#,
            r#"w.toml:10:13: error: [sustain]: line_rate: 0 bit/s is too little; allowed: 1 kbit/s or more; for example: line_rate = "10 Mbit/s""#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
mode = "rooted"
interfaces = ["lan0", "../x"]
[[rule]]
action = "intercept""#,
        &[
            r#"w.toml:3:8: error: [interception]: mode: "rooted" is not known; did you mean "routed"? allowed: routed, bridge, host; for example: mode = "routed""#,
            r#"w.toml:4:14: error: [interception]: interfaces: "../x" is not the name of an interface; allowed: a list of names: those on the path, towards clients and towards servers; of a bridge, its ports; for example: interfaces = ["lan0", "wan0"]"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
mode = "bridge"
interfaces = []
host = "client"
option_kind = 8
watchdog_device = 1
bypass_command = "relay"
[[rule]]
action = "intercpt""#,
        &[
            r#"w.toml:2:1: error: [interception]: bridge is missing; allowed: the name of the bridge, which has an address and routes of its own; for example: bridge = "br0""#,
            r#"w.toml:4:14: error: [interception]: interfaces: it is empty; allowed: at least one; for example: interfaces = ["lan0", "wan0"]"#,
            r#"w.toml:5:8: warning: [interception]: host: has no effect, because mode is not "host""#,
            r#"w.toml:6:15: error: [interception]: option_kind: 8 belongs to somebody else; allowed: 253, 254; for example: option_kind = 253"#,
            r#"w.toml:7:19: error: [interception]: watchdog_device: 1 is not a text in quotes; allowed: the path of a device that starts the machine anew when the node neither works nor comes back; for example: watchdog_device = "/dev/watchdog""#,
            r#"w.toml:8:18: error: [interception]: bypass_command: "relay" is not a list; allowed: a list: a program and its arguments; on or off comes behind them when connections flow past, or no longer; for example: bypass_command = ["/usr/local/sbin/relay", "eth0"]"#,
            r#"w.toml:10:10: error: [[rule]]: action: "intercpt" is not an action; did you mean "intercept"? allowed: pass, intercept, intercept-single, drop, deny, drop-if-no-peer; the first rule that fits decides; for example: action = "intercept""#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
interfaces = ["lan0"]
[[rule]]
action = "intercept"
servers = ["10.2.0.7/16"]
ports = [0, "9-8", 143]
[[rule]]
action = "pass"
clients = ["10.0.0.0/8"]
servers = ["fd00::/8"]
interfaces = ["wan0"]
vlans = [4095]"#,
        &[
            r#"w.toml:6:11: error: [[rule]]: servers: 10.2.0.7/16 has bits behind the prefix: write 10.2.0.0/16 for the network or 10.2.0.7 for the host; allowed: a list of networks, as address/bits, or addresses; for example: servers = ["10.2.0.0/16"]"#,
            r#"w.toml:7:9: error: [[rule]]: ports: 0 is not a port; allowed: a list of ports and ranges, of the server; for example: ports = [143, 993, "8000-8100"]"#,
            r#"w.toml:11:11: error: [[rule]]: servers: rule 2 fits nothing: its clients are all of IPv4 and its servers all of IPv6"#,
            r#"w.toml:12:14: error: [[rule]]: interfaces: "wan0" is not among those of [interception], so this rule never fits"#,
            r#"w.toml:13:9: error: [[rule]]: vlans: VLAN 4095 cannot be: 0 to 4094 can; allowed: a list of VLAN ids, 0 to 4094; for example: vlans = [100]"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
interfaces = ["lan0"]
[[rule]]
action = "pass"
existing = "rest"
[[rule]]
action = "drop"
existing = "reset"
[[rule]]
action = "intercept"
existing = "adopt""#,
        &[
            r#"w.toml:6:12: error: [[rule]]: existing: "rest" is not known; did you mean "reset"? allowed: leave, reset, adopt: what becomes of connections that stood before the node, or come by another way; for example: existing = "reset""#,
            r#"w.toml:9:12: warning: [[rule]]: existing: has no effect, because action takes no connections"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
mode = "host"
interfaces = ["lan0"]
option_kind = 8
[[rule]]
action = "intercept"
existing = "reset""#,
        &[
            r#"w.toml:5:15: error: [interception]: option_kind: 8 belongs to somebody else; allowed: 253, 254; for example: option_kind = 253"#,
            r#"w.toml:8:12: warning: [[rule]]: existing: has no effect on a host, whose own connections cannot be taken over"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
interfaces = ["lan0"]
[[rule]]
action = "intercept"
protocol = "udp""#,
        &[
            r#"w.toml:5:10: error: [[rule]]: action: rule 1 is about udp, which is never intercepted: pass, drop or deny"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[[rule]]
clients = ["10.0.0.0/8"]
[[peer]]
id = "centre-1""#,
        &[
            r#"w.toml:2:1: error: [[rule]]: it rules on connections on the path, and there is no [interception]"#,
            r#"w.toml:2:1: error: [[rule]]: action is missing; allowed: pass, intercept, intercept-single, drop, deny, drop-if-no-peer; the first rule that fits decides; for example: action = "intercept""#,
            r#"w.toml:4:1: error: [[peer]]: it is reached over the link, and there is neither [link] nor [interception]"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[link]
revoked = ["centre-1"]
advertise = ["0.0.0.0:7782"]
[[peer]]
id = "branch-1"
[[peer]]
id = "centre-1"
[[peer]]
id = "branch-1"
servers = ["10.2.0.0/16"]
[[peer]]
id = "centre-2"
preference = 256
[[peer]]
id = "centre-3"
serves = ["10.2.0.0/16"]
[[peer]]
id = "centre-4"
address = "192.0.2.4:7782"
serves = ["10.3.0.0/16"]"#,
        &[
            r#"w.toml:3:11: error: [link]: revoked: "centre-1" is a [[peer]] of this file too"#,
            r#"w.toml:4:13: error: [link]: advertise: 0.0.0.0:7782 is no address that another node could reach"#,
            r#"w.toml:6:6: error: [[peer]]: id: "branch-1" is this node"#,
            r#"w.toml:10:6: error: [[peer]]: id: "branch-1" is the id of another [[peer]]; ids must differ"#,
            r#"w.toml:10:6: error: [[peer]]: id: "branch-1" is this node"#,
            r#"w.toml:11:11: error: [[peer]]: servers: they are reached through this peer without asking the path, so its address must be known; add: address = "192.0.2.1:7782""#,
            r#"w.toml:14:14: error: [[peer]]: preference: 256 is too much; allowed: 0 to 255; for example: preference = 1"#,
            r#"w.toml:14:14: warning: [[peer]]: preference: has no effect, because there are neither servers nor serves"#,
            r#"w.toml:17:10: error: [[peer]]: serves: clients' nodes are told where it is; add: address = "192.0.2.1:7782""#,
            r#"w.toml:21:10: error: [[peer]]: serves: another [[peer]] has others; a node tells of one list, so they must be the same"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[interception]
interfaces = ["lan0"]
[[rule]]
action = "pass""#,
        &[
            r#"w.toml:2:1: warning: [interception]: mode: no [[rule]] says anything but pass, so nothing is touched; for example: [[rule]] with action = "intercept""#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[segments]
[sightings]
[uldb]
[[site]]
[cda]
[[cda.source]]
[report]"#,
        &[
            r#"w.toml:2:2: error: [segments]: the segment store: not in this build; remove the section, or use a build that has it"#,
            r#"w.toml:3:2: error: [sightings]: location reports: not in this build; remove the section, or use a build that has it"#,
            r#"w.toml:4:2: error: [uldb]: the user location database: not in this build; remove the section, or use a build that has it"#,
            r#"w.toml:5:3: error: [site]: sites: not in this build; remove the section, or use a build that has it"#,
            r#"w.toml:6:2: error: [cda]: content delivery: not in this build; remove the section, or use a build that has it"#,
            r#"w.toml:8:2: error: [report]: scheduled reports: not in this build; remove the section, or use a build that has it"#,
        ],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[lisener]"#,
        &[r#"w.toml:2:2: error: lisener: there is no such section; did you mean [[listener]]?"#],
    ),
    (
        r#"version = 1"#,
        r#"version = 1
[accelerator]"#,
        &[
            r#"w.toml:2:2: error: accelerator: there is no such section; allowed: version = 1 and [node] [admin] [log] [tls] [[server]] [[listener]] [store] [sustain] [prefetch] [interception] [deflector] [off_path] [[rule]] [link] [[peer]] [[authority]] [[carry]]"#,
        ],
    ),
    (r#"[node]"#, r#"[[node]]"#, &[r#"w.toml:3:1: error: [node] stands once, as a table: [node]"#]),
    (
        r#"[node]"#,
        r#"node = 3
[admin]"#,
        &[
            r#"w.toml:3:8: error: [node] stands once, as a table: [node]"#,
            r#"w.toml:5:1: error: [admin]: id: there is no such key; allowed: socket, mode, group, listen"#,
            r#"w.toml:6:1: error: [admin]: site: there is no such key; allowed: socket, mode, group, listen"#,
        ],
    ),
    (
        r#"[[server]]"#,
        r#"[server]"#,
        &[r#"w.toml:11:1: error: [server] can stand many times and is written [[server]]"#],
    ),
    (
        r#"id = "branch-1""#,
        r#"id = "branch 1""#,
        &[
            r#"w.toml:4:6: error: [node]: id: a name is made of a-z A-Z 0-9 . _ - : [ ], not of octet 0x20; allowed: a name of a-z A-Z 0-9 . _ -, unique in the organisation; for example: id = "branch-1""#,
        ],
    ),
    (
        r#"id = "branch-1""#,
        r#"id = """#,
        &[
            r#"w.toml:4:6: error: [node]: id: a name must not be empty; allowed: a name of a-z A-Z 0-9 . _ -, unique in the organisation; for example: id = "branch-1""#,
        ],
    ),
    (
        r#"id = "branch-1""#,
        r#"id = 7"#,
        &[
            r#"w.toml:4:6: error: [node]: id: 7 is not a text in quotes; allowed: a name of a-z A-Z 0-9 . _ -, unique in the organisation; for example: id = "branch-1""#,
        ],
    ),
    (
        r#"id = "branch-1""#,
        r#"id = branch-1"#,
        &[r#"w.toml:4:6: error: this is not TOML: string values must be quoted, expected literal string"#],
    ),
    (
        r#"id = "branch-1""#,
        r#"id = "branch-1"#,
        &[r#"w.toml:4:15: error: this is not TOML: invalid basic string, expected `"`"#],
    ),
    (
        r#"id = "branch-1""#,
        r#"id = "branch-1"
id = "branch-2""#,
        &[r#"w.toml:5:1: error: this is not TOML: duplicate key"#],
    ),
    (
        r#"id = "branch-1""#,
        r#"ID = "branch-1""#,
        &[
            r#"w.toml:4:1: error: [node]: ID: there is no such key; did you mean id? for example: id = "branch-1""#,
        ],
    ),
    (
        r#"id = "branch-1""#,
        r#"state_dir = "~/waypost""#,
        &[
            r#"w.toml:4:13: error: [node]: state_dir: `~` is the shell's; "~/waypost" must be written out; allowed: a directory that only this node writes; for example: state_dir = "/var/lib/waypost""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[admin]
listen = "0.0.0.0:9143"
[node]"#,
        &[
            r#"w.toml:4:10: error: [admin]: listen: this would answer the whole network; only a loopback address is allowed; for example: listen = "127.0.0.1:9143""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[admin]
listen = "127.0.0.1:993"
[node]"#,
        &[
            r#"w.toml:4:10: error: [admin]: listen: 127.0.0.1:993 is taken by the [[listener]] on 0.0.0.0:993"#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[admin]
mode = "0666"
[node]"#,
        &[
            r#"w.toml:4:8: error: [admin]: mode: "0666" lets everybody on this machine in; allowed: a mode with no rights for others; for example: mode = "0660""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[admin]
mode = "rw-rw----"
[node]"#,
        &[
            r#"w.toml:4:8: error: [admin]: mode: "rw-rw----" is not a mode for a socket; allowed: a mode with no rights for others; for example: mode = "0660""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[admin]
socket = "/dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
[node]"#,
        &[r#"w.toml:4:10: error: [admin]: socket: the path has 109 octets; a socket's path has at most 107"#],
    ),
    (
        r#"[node]"#,
        r#"[log]
level = "inof"
[node]"#,
        &[
            r#"w.toml:4:9: error: [log]: level: "inof" is not known; did you mean "info"? allowed: error, warn, info, debug, trace; for example: level = "info""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[log]
level = "loud"
format = "xml"
[node]"#,
        &[
            r#"w.toml:4:9: error: [log]: level: "loud" is not known; allowed: error, warn, info, debug, trace; for example: level = "info""#,
            r#"w.toml:5:10: error: [log]: format: "xml" is not known; allowed: text, json; for example: format = "text""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[tls]
cert = "mail.pem"
[node]"#,
        &[
            r#"w.toml:4:8: error: [tls]: cert: a certificate without its private key; add: key = "/etc/waypost/mail.key""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[tls]
key = "mail.key"
[node]"#,
        &[
            r#"w.toml:4:7: error: [tls]: key: a private key without its certificate; add: cert = "/etc/waypost/mail.pem""#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[tls]
mint = false
[node]"#,
        &[
            r#"w.toml:4:8: error: [tls]: mint is false and there is no cert, but a [[listener]] speaks TLS; allowed: cert and key, or mint = true"#,
        ],
    ),
    (
        r#"[node]"#,
        r#"[tls]
mint = false
ca_dir = "ca"
cert = "a"
key = "b"
[node]"#,
        &[r#"w.toml:5:10: warning: [tls]: ca_dir: has no effect, because mint is false"#],
    ),
    (
        r#"[node]"#,
        r#"[tls]
mint = false
rsa_key = "r"
cert = "a"
key = "b"
[node]"#,
        &[r#"w.toml:5:11: warning: [tls]: rsa_key: has no effect, because mint is false"#],
    ),
    (
        r#""10 GiB""#,
        r#""10 Gigs""#,
        &[
            r#"w.toml:8:12: error: [store]: size_max: "10 Gigs" is not a size; allowed: 64 MiB or more, as a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB; for example: size_max = "10 GiB""#,
        ],
    ),
    (
        r#""10 GiB""#,
        r#""1 MiB""#,
        &[
            r#"w.toml:8:12: error: [store]: size_max: 1 MiB is too little to keep mail in; allowed: 64 MiB or more; for example: size_max = "10 GiB""#,
        ],
    ),
    (
        r#""10 GiB""#,
        r#"true"#,
        &[
            r#"w.toml:8:12: error: [store]: size_max: true is not a size; allowed: 64 MiB or more, as a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB; for example: size_max = "10 GiB""#,
        ],
    ),
    (
        r#"seal_credential = "seal-key""#,
        r#"seal_key_file = "seal.key"
seal_credential = "seal-key""#,
        &[
            r#"w.toml:10:19: error: [store]: seal_credential: there is a seal_key_file too; one of the two is allowed"#,
        ],
    ),
    (
        r#"seal_credential = "seal-key""#,
        r#"seal_credential = "../seal-key""#,
        &[
            r#"w.toml:9:19: error: [store]: seal_credential: the name of a credential has no `/` and no leading `.`; for example: seal_credential = "seal-key""#,
        ],
    ),
    (
        r#"seal_credential = "seal-key"
"#,
        r#""#,
        &[
            r#"w.toml:7:1: warning: [store]: seal_key_file: there is none: mail in the store is not encrypted on this disk; to encrypt it: (umask 077; head -c 32 /dev/urandom > /etc/waypost/seal.key) and seal_key_file = "/etc/waypost/seal.key""#,
        ],
    ),
    (
        r#"seal_credential = "seal-key""#,
        r#"seal_credential = "seal-key"
seal_key = "abc""#,
        &[
            r#"w.toml:10:1: error: [store]: seal_key: secrets never stand in this file; put 32 random octets into a file of mode 0600 and name it: seal_key_file = "/etc/waypost/seal.key""#,
        ],
    ),
    (
        r#"seal_credential = "seal-key""#,
        r#"seal_credential = "seal-key"
re_proof = "300""#,
        &[
            r#"w.toml:10:12: error: [store]: re_proof: "300" is not a time; allowed: 30s to 1d: how long a session's right to a mailbox is believed on servers that do not tell; for example: re_proof = "5m""#,
        ],
    ),
    (
        r#"seal_credential = "seal-key""#,
        r#"seal_credential = "seal-key"
re_proof = "2d""#,
        &[
            r#"w.toml:10:12: error: [store]: re_proof: 2d is out of range; allowed: 30s to 1d; for example: re_proof = "5m""#,
        ],
    ),
    (
        r#"name = "mail.example.org"
"#,
        r#""#,
        &[
            r#"w.toml:11:1: error: [[server]]: name is missing; allowed: a name of a-z A-Z 0-9 . _ -; the store is keyed by it, so keep it; for example: name = "mail.example.org""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
password = "x""#,
        &[
            r#"w.toml:13:1: error: [[server]]: password: secrets never stand in this file; and Waypost needs none: users log in to their server, through it"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
hots = "mail.example.org""#,
        &[
            r#"w.toml:13:1: error: [[server]]: hots: there is no such key; did you mean host? for example: host = "mail.example.org""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
host = "mail.example.org:993""#,
        &[
            r#"w.toml:13:8: error: [[server]]: host: "mail.example.org:993" is not a host name or IP address; allowed: the host name that stands in the server's certificate; for example: host = "mail.example.org""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
port = 70000"#,
        &[
            r#"w.toml:13:8: error: [[server]]: port: 70000 is not a port; allowed: 1 to 65535; for example: port = 993"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
port = "993""#,
        &[
            r#"w.toml:13:8: error: [[server]]: port: "993" is not a port; allowed: 1 to 65535; for example: port = 993"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
port = 143"#,
        &[r#"w.toml:13:8: warning: [[server]]: port: 143 is usually the port of tls = "starttls""#],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
addresses = ["192.0.2.1", "mail"]"#,
        &[
            r#"w.toml:13:13: error: [[server]]: addresses: "mail" is not an IP address; allowed: a list of IP addresses, if not those of DNS; for example: addresses = ["192.0.2.10", "2001:db8::10"]"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
addresses = "192.0.2.1""#,
        &[
            r#"w.toml:13:13: error: [[server]]: addresses: "192.0.2.1" is not a list; allowed: a list of IP addresses, if not those of DNS; for example: addresses = ["192.0.2.10", "2001:db8::10"]"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
tls = "implict""#,
        &[
            r#"w.toml:13:7: error: [[server]]: tls: "implict" is not known; did you mean "implicit"? allowed: implicit, starttls, plain; for example: tls = "implicit""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
tls = "plain""#,
        &[
            r#"w.toml:13:7: error: [[server]]: tls: plain text shows every password to the network between; allowed: a server on loopback, or one whose addresses lie in the private network that `lan` names; for example: tls = "starttls""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
tls = "plain"
addresses = ["10.1.1.1"]
lan = "10.0.0.0/8""#,
        &[],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
tls = "plain"
addresses = ["203.0.113.1"]
lan = "203.0.113.0/24""#,
        &[
            r#"w.toml:15:7: error: [[server]]: lan: this is no private network; plain text over a public one shows every password to it"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
lan = "10.0.0.0/8""#,
        &[r#"w.toml:13:7: warning: [[server]]: lan: has no effect, because tls is not "plain""#],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
ca = "a.pem"
pin = "00""#,
        &[
            r#"w.toml:14:7: error: [[server]]: pin: "00" is not a SHA-256 fingerprint in hexadecimal; allowed: SHA-256 of the server's public key, 64 hexadecimal digits, instead of a CA; for example: pin = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
            r#"w.toml:14:7: error: [[server]]: pin: there is a ca too; one of the two is allowed, or none for the system's CAs"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
protocol = "pop3""#,
        &[
            r#"w.toml:13:12: error: [[server]]: protocol: "pop3" is not in this build; allowed: imap; for example: protocol = "imap""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
protocol = "imao""#,
        &[
            r#"w.toml:13:12: error: [[server]]: protocol: "imao" is not known; did you mean "imap"? allowed: imap; for example: protocol = "imap""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
on_path = "octet""#,
        &[
            r#"w.toml:13:11: error: [[server]]: on_path: "octet" is not known; did you mean "octets"? allowed: terminate, octets: whether its intercepted clients are served here or only carried; for example: on_path = "octets""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
on_path = "octets""#,
        &[r#"w.toml:13:11: warning: [[server]]: on_path: has no effect, because there is no [interception]"#],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
source = "own-adress""#,
        &[
            r#"w.toml:13:10: error: [[server]]: source: "own-adress" is not known; did you mean "own-address"? allowed: spoof, own-address: whose address it sees of intercepted clients; for example: source = "own-address""#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
compress = "yes""#,
        &[
            r#"w.toml:13:12: error: [[server]]: compress: "yes" is not true or false; allowed: true, false: COMPRESS towards the server when it offers it; for example: compress = true"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
limits = 5"#,
        &[
            r#"w.toml:13:10: error: [[server]]: limits: 5 is not a table; allowed: a table with sessions_max, dials_max; for example: limits = { sessions_max = 2000 }"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
limits = { sesions_max = 5 }"#,
        &[
            r#"w.toml:13:12: error: [server.limits]: sesions_max: there is no such key; did you mean sessions_max? for example: sessions_max = 2000"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
limits = { sessions_max = 0 }"#,
        &[
            r#"w.toml:13:27: error: [server.limits]: sessions_max: 0 is not 1 to 100000; for example: sessions_max = 2000"#,
        ],
    ),
    (
        r#"name = "mail.example.org""#,
        r#"name = "mail"
limits = { dials_max = 0 }"#,
        &[
            r#"w.toml:13:24: error: [server.limits]: dials_max: 0 is not 1 to 10000; for example: dials_max = 32"#,
        ],
    ),
    (
        r#"[[server]]"#,
        r#"[[server]]
name = "Mail.example.org"
[[server]]"#,
        &[
            r#"w.toml:14:8: error: [[server]]: name: "mail.example.org" is the name of another [[server]]; names must differ"#,
            r#"w.toml:16:1: error: [[listener]]: server is missing; allowed: the name of a [[server]] in this file; for example: server = "mail.example.org""#,
            r#"w.toml:19:1: error: [[listener]]: server is missing; allowed: the name of a [[server]] in this file; for example: server = "mail.example.org""#,
        ],
    ),
    (
        r#"[[server]]"#,
        r#"[[server]]
name = "b"
aliases = ["mail.example.org"]
[[listener]]
address = "[::]:993"
server = "b"
[[server]]"#,
        &[
            r#"w.toml:17:1: error: [[server]]: host: "mail.example.org" is a host or alias of the [[server]] "b" too; a client that asks for it could get either"#,
            r#"w.toml:18:8: warning: [[server]]: no [[listener]] serves "mail.example.org""#,
            r#"w.toml:20:1: error: [[listener]]: server is missing; allowed: the name of a [[server]] in this file; for example: server = "mail.example.org""#,
            r#"w.toml:23:1: error: [[listener]]: server is missing; allowed: the name of a [[server]] in this file; for example: server = "mail.example.org""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "127.0.0.1:993""#,
        &[
            r#"w.toml:18:11: error: [[listener]]: address: 127.0.0.1:993 is taken by the [[listener]] on 0.0.0.0:993"#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "143""#,
        &[
            r#"w.toml:18:11: error: [[listener]]: address: "143" is not an address with a port; allowed: an IP address of this machine with a port; [::] and 0.0.0.0 mean all; for example: address = "0.0.0.0:993""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0""#,
        &[
            r#"w.toml:18:11: error: [[listener]]: address: "0.0.0.0" has no port; allowed: an IP address of this machine with a port; [::] and 0.0.0.0 mean all; for example: address = "0.0.0.0:993""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:0""#,
        &[
            r#"w.toml:18:11: error: [[listener]]: address: port 0 is no port that clients could be told; allowed: an IP address of this machine with a port; [::] and 0.0.0.0 mean all; for example: address = "0.0.0.0:993""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"server = "mail.example.org""#,
        &[
            r#"w.toml:17:1: error: [[listener]]: address is missing; allowed: an IP address of this machine with a port; [::] and 0.0.0.0 mean all; for example: address = "0.0.0.0:993""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
server = "mail.exmaple.org""#,
        &[
            r#"w.toml:19:10: error: [[listener]]: server: "mail.exmaple.org" is not the name of a [[server]] in this file; did you mean "mail.example.org"? allowed: "mail.example.org""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
tls = "plain""#,
        &[
            r#"w.toml:19:7: error: [[listener]]: tls: plain text shows every password to the network; allowed: on a loopback address, or with the private network of the clients named; for example: lan = "192.168.7.0/24""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
tls = "plain"
lan = "8.8.8.0/24""#,
        &[
            r#"w.toml:20:7: error: [[listener]]: lan: this is no private network; plain text over a public one shows every password to it"#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
tls = "plain"
lan = "192.168.7.0/33""#,
        &[
            r#"w.toml:20:7: error: [[listener]]: lan: "192.168.7.0/33" is not a network prefix; allowed: the private network, as address/bits, whose clients may come without TLS; for example: lan = "192.168.7.0/24""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
unlisted = "tunnel""#,
        &[
            r#"w.toml:19:12: error: [[listener]]: unlisted: "tunnel" looks at the first TLS record; allowed with tls = "implicit" only"#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
unlisted = "tunel""#,
        &[
            r#"w.toml:19:12: error: [[listener]]: unlisted: "tunel" is not known; did you mean "tunnel"? allowed: refuse, tunnel; for example: unlisted = "tunnel""#,
        ],
    ),
    (
        r#"address = "0.0.0.0:143""#,
        r#"address = "0.0.0.0:143"
tls = "implicit""#,
        &[r#"w.toml:19:7: warning: [[listener]]: tls: clients expect STARTTLS on port 143, not TLS at once"#],
    ),
    (
        r#"[[server]]
name = "mail.example.org"
"#,
        r#""#,
        &[
            r#"w.toml:1:1: error: [[server]]: there is none; for example: [[server]] with name = "mail.example.org""#,
        ],
    ),
    (
        r#"[[listener]]
address = "0.0.0.0:993"

[[listener]]
address = "0.0.0.0:143"
"#,
        r#""#,
        &[
            r#"w.toml:1:1: error: [[listener]]: there is none; for example: [[listener]] with address = "0.0.0.0:993""#,
        ],
    ),
];

#[test]
fn every_bad_file_gets_its_lines() {
    assert_eq!(lines(GOOD), [""; 0]);
    let mut wrong = String::new();
    for (from, to, expected) in ROWS {
        assert_eq!(GOOD.matches(from).count(), 1, "the row's first column stands once in the file: {from:?}");
        let got = lines(&GOOD.replacen(from, to, 1));
        if got != *expected {
            wrong.push_str(&format!("    (\n        r#\"{from}\"#,\n        r#\"{to}\"#,\n        &[\n"));
            got.iter().for_each(|line| wrong.push_str(&format!("            r#\"{line}\"#,\n")));
            wrong.push_str("        ],\n    ),\n");
        }
    }
    assert!(wrong.is_empty(), "these rows differ; as they are now:\n{wrong}");
}

#[test]
fn all_errors_of_a_file_come_at_once() {
    let file = "version = 2\n[nod]\n[log]\nlevel = \"inf\"\n[[server]]\nname = \"a b\"\nport = 0\n[[listener]]\naddress = \"x\"\nserver = 3\n[cda]\n";
    let problems = judged(file).problems;
    let places: Vec<usize> = problems.iter().map(|problem| problem.place.line).collect();
    assert_eq!(places, [1, 1, 2, 4, 5, 6, 7, 9, 10, 11], "{problems:#?}");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for edit in [
        "password = \"hunter2-canary\"",
        "seal_key = \"hunter2-canary\"",
        "tocken = \"hunter2-canary\"",
        "seal_kex = hunter2-canary",
    ] {
        let text = GOOD.replacen("size_max", &format!("{edit}\nsize_max"), 1);
        let said = lines(&text);
        assert!(!said.is_empty());
        assert!(!said.concat().contains("canary"), "{said:?}");
    }
}

#[test]
fn what_is_shown_reads_back_to_the_same() {
    let many = GOOD.replacen("[[server]]", "[[server]]\nname = \"b\"\nhost = \"b.example.org\"\nlimits = { sessions_max = 7 }\npin = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\n[[listener]]\naddress = \"[::1]:1143\"\nserver = \"b\"\ntls = \"plain\"\n[[server]]", 1)
        .replace("0.0.0.0:993\"", "0.0.0.0:993\"\nserver = \"mail.example.org\"")
        .replace("0.0.0.0:143\"", "0.0.0.0:143\"\nserver = \"mail.example.org\"");
    for text in [GOOD, &many] {
        let first = judged(text);
        assert_eq!(lines(text), [""; 0]);
        let shown = show(&first, false);
        let second = judged(&shown);
        assert_eq!(second.usable(), first.usable(), "{shown}\n{:#?}", second.problems);
        let changed = judged(&show(&first, true));
        assert_eq!(changed.usable(), first.usable(), "{}", show(&first, true));
        assert!(shown.contains("re_proof = \"5m\"  # default"), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done to a good file: no panic, and each problem points into the file.
    #[test]
    fn mutants_never_panic_and_always_point_somewhere(
        at in 0..GOOD.len(),
        cut in 0_usize..12,
        put in prop_oneof![
            Just(String::new()), "[\\[\\]\"'{}=,.\n #0-9a-z-]{1,8}", "\\PC{0,6}",
            Just("[[[[[[[[".repeat(40)), Just("9".repeat(400)), Just("\u{0}".to_owned()), Just("\r".to_owned()),
        ],
    ) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + cut).min(GOOD.len()), &put);
        let line_count = text.matches('\n').count() + 1;
        let loaded = judged(&text);
        for problem in &loaded.problems {
            prop_assert!((1..=line_count).contains(&problem.place.line), "{problem:?}");
            prop_assert!(problem.place.column >= 1);
            prop_assert!(!problem.line("f").to_string().contains('\n'), "{problem:?}");
        }
        if loaded.usable().is_some() {
            let shown = show(&loaded, false);
            let again = judged(&shown);
            prop_assert_eq!(again.usable(), loaded.usable());
        }
    }
}
