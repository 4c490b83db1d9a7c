//! The executable as its users meet it: what it says, with which code it ends, what signals do.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn waypost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waypost"));
    for name in ["STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

fn ran(arguments: &[&str]) -> Output {
    waypost().args(arguments).output().expect("it starts")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ends(arguments: &[&str], code: i32, says: &[&str]) -> Output {
    let output = ran(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{}{}", out(&output), err(&output));
    // What was asked for goes to standard output, what is wrong to standard error.
    let said = if code == 0 { out(&output) } else { err(&output) };
    for part in says {
        assert!(said.contains(part), "{arguments:?} does not say {part:?}:\n{said}");
    }
    output
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback").port()
}

/// A directory with a configuration: plain on both sides, on loopback.
struct Site {
    dir: TempDir,
    port: u16,
    origin: u16,
}

impl Site {
    fn new() -> Self {
        let site =
            Self { dir: tempfile::tempdir().expect("a directory"), port: free_port(), origin: free_port() };
        site.write("");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> String {
        self.path("waypost.toml").to_string_lossy().into_owned()
    }

    fn write(&self, more: &str) {
        let Self { port, origin, .. } = self;
        let text = format!(
            "version = 1\n[node]\nid = \"test\"\nstate_dir = \"state\"\n[tls]\nmint = false\n[[server]]\nname = \"localhost\"\nport = {origin}\naddresses = [\"127.0.0.1\"]\ntls = \"plain\"\n[[listener]]\naddress = \"127.0.0.1:{port}\"\ntls = \"plain\"\n{more}"
        );
        fs::write(self.path("waypost.toml"), text).expect("writable");
    }

    fn run(&self) -> Running {
        Running::start(waypost().args(["run", "-c", &self.file()]))
    }
}

/// A node in the foreground, and its log.
struct Running {
    child: Child,
    log: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = child.stderr.take().expect("piped");
        let (lines, log) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _test_has_ended = lines.send(line);
            }
        });
        let running = Self { child, log };
        running.logs("ready");
        running
    }

    /// Waits for a line with `part` in it.
    #[track_caller]
    fn logs(&self, part: &str) {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(part) => return,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no {part:?} in the log:\n{}", seen.join("\n")),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().expect("a child").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _has_ended = self.child.kill();
        let _has_ended = self.child.wait();
    }
}

#[test]
fn help_and_version_are_for_newcomers() {
    ends(&["--version"], 0, &[concat!("waypost ", env!("CARGO_PKG_VERSION"))]);
    ends(&["--help"], 0, &["First steps", "waypost branch --mail imaps://", "It stores no", "Exit codes"]);
    for command in
        ["branch", "run", "check", "config", "status", "sessions", "report", "trace", "store", "ca"]
    {
        ends(&[command, "--help"], 0, &["Usage: waypost"]);
    }
}

#[test]
fn a_wrong_command_line_is_64_and_says_what_is_right() {
    ends(&[], 64, &["Usage"]);
    ends(&["stauts"], 64, &["'status'"]);
    ends(&["run"], 64, &["--config <FILE>"]);
    // What `run` starts is nothing for people.
    ends(&["node", "-c", "/dev/null"], 64, &["only `waypost run` starts this"]);
    ends(&["netd", "-c", "/dev/null"], 64, &["only `waypost run` starts this"]);
    ends(&["branch", "--mail", "mail.example.org"], 64, &["imaps://", "for example"]);
    ends(&["branch", "--mail", "imaps://mia@mail.example.org"], 64, &["users log in through Waypost"]);
    ends(
        &["branch", "--mail", "imaps://mail.example.org", "--listen", "here"],
        64,
        &["--listen 192.168.7.1"],
    );
    ends(&["ca", "init", "--permit", "x.example.org"], 64, &["--interception"]);
}

#[test]
fn a_wrong_configuration_is_64_with_every_line_of_it() {
    let site = Site::new();
    ends(&["run", "-c", "/nonexistent/waypost.toml"], 64, &["cannot be read", "/nonexistent/waypost.toml"]);
    site.write("unlistd = \"refuse\"\n[stor]\n[cda]\n");
    for command in ["run", "check"] {
        ends(
            &[command, "-c", &site.file()],
            64,
            &[
                ":15:1: error: [[listener]]: unlistd: there is no such key; did you mean unlisted?",
                ":16:2: error: stor: there is no such section; did you mean [store]?",
                ":17:2: error: [cda]: content delivery: not in this build",
                "cannot be used",
            ],
        );
    }
}

#[test]
fn what_the_system_forbids_is_77() {
    let site = Site::new();
    let path = site.path("waypost.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("ours");
    let mut command = waypost();
    command.args(["check", "-c", &site.file()]);
    // To root nothing is forbidden.
    if fs::read(&path).is_ok() {
        fs::set_permissions(site.dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let copied = site.path("waypost");
        fs::copy(env!("CARGO_BIN_EXE_waypost"), &copied).expect("room");
        fs::set_permissions(&copied, fs::Permissions::from_mode(0o755)).expect("ours");
        command = Command::new(copied);
        command.args(["check", "-c", &site.file()]).uid(65534).gid(65534);
    }
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(77), "{}", err(&output));
    assert!(err(&output).contains("ermission denied"), "{}", err(&output));
}

#[test]
fn what_is_not_there_is_69() {
    let site = Site::new();
    let socket = site.path("state/admin.sock");
    ends(&["status", "--socket", &socket.to_string_lossy()], 69, &["no node answers", "is it running?"]);
    ends(&["trace", "mia", "-c", &site.file()], 69, &["no node answers"]);
    for order in [&["bypass", "on", "-c"][..], &["upgrade", "-c"]] {
        ends(&[order, &[&site.file()]].concat(), 69, &["no node stands on a path"]);
    }
    ends(&["check", "-c", &site.file(), "--online"], 69, &["1 of 1 servers cannot be used"]);
    let taken = TcpListener::bind(("127.0.0.1", site.port)).expect("free a moment ago");
    ends(&["run", "-c", &site.file()], 69, &["another program listens there"]);
    drop(taken);
}

#[test]
fn check_says_what_to_trust_and_that_nothing_is_encrypted() {
    let site = Site::new();
    let dir = site.path("ca");
    let dir = dir.to_string_lossy();
    let arguments = ["ca", "init", "--interception", "--permit", "mail.example.org", "--dir", &dir];
    let made = ends(&arguments, 0, &["root.pem", "SHA-256", "offline"]);
    ends(&arguments, 64, &["exists"]);
    for (name, mode) in [("root.key", 0o600), ("issuing.key", 0o600), ("root.pem", 0o644)] {
        let about = fs::metadata(Path::new(&*dir).join(name)).expect("made");
        assert_eq!(about.permissions().mode() & 0o777, mode, "{name}");
    }
    fs::write(
        site.path("waypost.toml"),
        "version = 1\n[node]\nstate_dir = \"state\"\n[tls]\nca_dir = \"ca\"\n[[server]]\nname = \"mail.example.org\"\n[[listener]]\naddress = \"127.0.0.1:1993\"\n",
    )
    .expect("writable");
    let out_made = out(&made);
    let fingerprint = out_made.split("there):").nth(1).and_then(|rest| rest.split_whitespace().next());
    ends(
        &["check", "-c", &site.file()],
        0,
        &["must trust", "root.pem", fingerprint.expect("printed"), "not encrypted", "mail.example.org"],
    );
}

#[test]
fn check_online_goes_step_by_step() {
    let site = Site::new();
    let server = TcpListener::bind(("127.0.0.1", site.origin)).expect("free a moment ago");
    let answering = thread::spawn(move || {
        for stream in server.incoming().take(2) {
            let _it_has_seen_enough = stream.and_then(|mut stream| stream.write_all(b"* OK hello there\r\n"));
        }
    });
    ends(&["check", "-c", &site.file(), "--online"], 0, &["tcp: 127.0.0.1:", "greeting: * OK hello there"]);
    answering.join().expect("no panic");
}

#[test]
fn config_show_writes_a_file_that_reads_back() {
    let site = Site::new();
    let shown = ends(&["config", "show", "-c", &site.file()], 0, &["re_proof = \"5m\"  # default"]);
    fs::write(site.path("again.toml"), out(&shown)).expect("writable");
    let again = site.path("again.toml");
    let changed = ends(&["config", "show", "--changed", "-c", &again.to_string_lossy()], 0, &["localhost"]);
    assert!(!out(&changed).contains("default"));
}

#[test]
fn every_example_is_a_good_file() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut examples = 0;
    for entry in fs::read_dir(dir).expect("it is in the tree") {
        let path = entry.expect("readable").path();
        let output = ends(&["config", "show", "-c", &path.to_string_lossy()], 0, &["version = 1"]);
        assert!(!err(&output).contains("error"), "{}", err(&output));
        examples += 1;
    }
    assert!(examples >= 3);
}

/// The answer to a GET through the admin socket.
fn admin(site: &Site, path: &str) -> String {
    let mut stream = UnixStream::connect(site.path("state/admin.sock")).expect("it is there");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_node_serves_tells_and_drains() {
    let site = Site::new();
    let origin = TcpListener::bind(("127.0.0.1", site.origin)).expect("free a moment ago");
    let node = site.run();
    let socket = fs::metadata(site.path("state/admin.sock")).expect("made");
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
    let key = fs::metadata(site.path("state/user.key")).expect("made");
    assert_eq!((key.permissions().mode() & 0o777, key.len()), (0o600, 32));

    let client = TcpStream::connect(("127.0.0.1", site.port)).expect("it listens");
    let (mut server, _) = origin.accept().expect("it connects");
    server.write_all(b"* OK [CAPABILITY IMAP4rev1] hello\r\n").expect("it reads");
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).expect("a greeting");
    assert!(line.starts_with("* OK"), "{line}");

    let status =
        ends(&["status", "--sessions", "-c", &site.file()], 0, &["serving", "1 now, 1 so far", "login"]);
    assert!(out(&status).contains("127.0.0.1"));
    let json = ends(&["status", "--json", "-c", &site.file()], 0, &[]);
    let json: serde_json::Value = serde_json::from_str(&out(&json)).expect("JSON");
    assert_eq!(json["sessions"], 1);
    assert_eq!(json["store"]["open"], true);
    ends(&["trace", "mia", "-c", &site.file()], 69, &["nothing is known"]);
    ends(&["store", "stats", "-c", &site.file()], 0, &["not encrypted"]);
    ends(&["store", "verify", "-c", &site.file()], 0, &["0 damaged"]);
    ends(&["store", "gc", "-c", &site.file()], 0, &["removed 0"]);
    assert!(admin(&site, "/livez").starts_with("HTTP/1.1 200"));
    assert!(admin(&site, "/readyz").contains("\"ready\":true"));
    let metrics = admin(&site, "/metrics");
    for line in metrics.split("\r\n\r\n").nth(1).expect("a body").lines() {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        assert!(name.starts_with("waypost_"), "{line}");
    }
    // A second node would share the store and the socket.
    ends(&["run", "-c", &site.file()], 64, &["in use by process"]);

    node.signal(Signal::TERM);
    line.clear();
    client.read_line(&mut line).expect("a last word");
    assert!(line.starts_with("* BYE"), "{line}");
    assert_eq!(node.code(), Some(0));
    assert!(!site.path("state/admin.sock").exists());
    // Without a node the store can still be asked.
    ends(&["store", "verify", "-c", &site.file()], 0, &["0 damaged"]);
}

#[test]
fn a_wrong_file_changes_nothing_and_a_right_one_is_taken_on() {
    let site = Site::new();
    let origin = TcpListener::bind(("127.0.0.1", site.origin)).expect("free a moment ago");
    let node = site.run();
    let client = TcpStream::connect(("127.0.0.1", site.port)).expect("it listens");
    let (mut server, _) = origin.accept().expect("it connects");
    server.write_all(b"* OK first\r\n").expect("it reads");

    site.write("[stor]\n");
    node.signal(Signal::HUP);
    node.logs("goes on as it was");
    TcpStream::connect(("127.0.0.1", site.port)).expect("it still listens");

    let second = free_port();
    site.write(&format!("[[listener]]\naddress = \"127.0.0.1:{second}\"\ntls = \"plain\"\n"));
    node.signal(Signal::HUP);
    node.logs("reloaded");
    TcpStream::connect(("127.0.0.1", second)).expect("it listens there too");

    site.write("");
    node.signal(Signal::HUP);
    node.logs("no longer listening");
    node.logs("reloaded");
    TcpStream::connect(("127.0.0.1", second)).expect_err("it listens there no more");

    // The session of before has seen nothing of all that.
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).expect("a greeting");
    assert!(line.contains("first"), "{line}");
    client.get_mut().write_all(b"a1 NOOP\r\n").expect("it reads");
    let mut server = BufReader::new(server);
    line.clear();
    server.read_line(&mut line).expect("a command");
    assert_eq!(line, "a1 NOOP\r\n");
}

#[test]
fn branch_makes_what_it_needs_and_serves() {
    let dir = tempfile::tempdir().expect("a directory");
    let (state, port) = (dir.path().join("state"), free_port());
    let mut command = waypost();
    command.args(["branch", "--mail", "imaps://mail.example.org", "--listen", &format!("127.0.0.1:{port}")]);
    command.arg("--state-dir").arg(&state);
    let node = Running::start(&mut command);
    TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    for name in ["ca/root.pem", "ca/issuing.key", "user.key", "store", "admin.sock"] {
        assert!(state.join(name).exists(), "{name}");
    }
    assert_eq!(fs::metadata(&state).expect("made").permissions().mode() & 0o777, 0o700);
    node.signal(Signal::INT);
    assert_eq!(node.code(), Some(0));
    // For another server the authority of the first one is no good, and is not overwritten.
    let mut other = waypost();
    other.args(["branch", "--mail", "imaps://mail.other.test", "--listen", &format!("127.0.0.1:{port}")]);
    let output = other.arg("--state-dir").arg(&state).output().expect("it starts");
    assert_eq!(output.status.code(), Some(64), "{}", err(&output));
    assert!(err(&output).contains("not among the names this CA may sign"), "{}", err(&output));
}

/// The engine over a file of captured packets: what each connection would have come to, and a mistake with its place.
#[test]
fn a_capture_is_explained() {
    let dir = TempDir::new().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let config = "version = 1\n[node]\nid = \"b\"\n[interception]\ninterfaces = [\"lan0\"]\n\
                  [[rule]]\naction = \"drop\"\nports = [25]\n[[rule]]\naction = \"intercept\"\n";
    fs::write(path("w.toml"), config).expect("written");
    let mut file = b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\x65\0\0\0".to_vec();
    for port in [143_u8, 25] {
        let mut syn = b"\x45\0\0\x28\0\0\0\0\x40\x06\0\0\x0a\x01\0\x02\x0a\x02\0\x02".to_vec();
        syn.extend([0x9c, 0x40, 0, port, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        file.extend([1_u32, 0, 40, 40].map(u32::to_le_bytes).concat());
        file.extend(syn);
    }
    fs::write(path("two.pcap"), &file).expect("written");
    let explain = |name: &str, code, says: &[&str]| {
        ends(&["explain", "--pcap", &path(name), "-c", &path("w.toml")], code, says)
    };
    let says = [
        "tcp 10.1.0.2:40000 -> 10.2.0.2:143\n  rules     intercept (rule 2)\n  SYN       passes with the query, because probing\n",
        "tcp 10.1.0.2:40000 -> 10.2.0.2:25\n  rules     drop (rule 1)\n  SYN       is taken off the way, because rule-drop\n",
        "2 packets, 2 connections and flows",
    ];
    explain("two.pcap", 0, &says);
    fs::write(path("cut.pcap"), &file[..file.len() - 1]).expect("written");
    explain("cut.pcap", 64, &["cut.pcap: octet 80: the file ends within a packet"]);
    fs::write(path("page.pcap"), "<html>").expect("written");
    explain("page.pcap", 64, &["no capture of packets: it begins with 0x3c68746d"]);
    ends(&["explain", "--pcap", &path("two.pcap")], 64, &["--config"]);
}
