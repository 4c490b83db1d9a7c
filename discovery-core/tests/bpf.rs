//! The BPF interpreter against libpcap: programs that tcpdump made out of expressions, kept in `bpf.txt` with what each
//! matches, and where tcpdump is installed its own answers over the same and many damaged packets.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that writes files for another program to read"
)]

use discovery_core::{
    flow::Flow,
    packet::{
        Acknowledged, Unreachable, View,
        forge::{refused, reset, syn, syn_ack, unreachable},
    },
    rule::{BpfInsn, Program},
};
use std::{fs, path::Path, process::Command};

#[test]
fn programs_match_what_they_matched() {
    let packets = packets();
    let (mut matched, mut programs) = (0, 0);
    for Row { expression, program, names } in rows() {
        let program = Program::new(&program).unwrap();
        let found: Vec<&str> =
            packets.iter().filter(|(_, octets)| program.matches(octets)).map(|(name, _)| *name).collect();
        assert_eq!(found, names, "{expression}");
        matched += found.len();
        programs += 1;
    }
    assert!(programs >= 30 && matched >= 60, "{programs} programs, {matched} matches");
}

#[test]
fn tcpdump_says_the_same() {
    let Ok(version) = Command::new("tcpdump").arg("--version").output() else {
        eprintln!("skipped: tcpdump is not installed");
        return;
    };
    assert!(version.status.success(), "tcpdump --version: {version:?}");
    let mut octets: Vec<Vec<u8>> = packets().into_iter().map(|(_, octets)| octets).collect();
    let mut random = Random(0x5EED);
    for _ in 0..DAMAGED {
        octets.push(random.damaged(&octets));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("bpf-{}.pcap", std::process::id()));
    fs::write(&file, pcap(&octets)).unwrap();
    let (mut compared, mut matched) = (0, 0);
    for Row { expression, .. } in rows() {
        let program = Program::new(&compiled(&file, &expression)).unwrap();
        let ours: Vec<&Vec<u8>> = octets.iter().filter(|octets| program.matches(octets)).collect();
        let theirs = filtered(&file, &expression);
        assert_eq!(ours.len(), theirs.len(), "{expression}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(*ours, theirs, "{expression}");
        }
        compared += octets.len();
        matched += ours.len();
    }
    fs::remove_file(&file).unwrap();
    println!("{compared} answers of tcpdump, {matched} of them yes");
}

/// Makes `bpf.txt` anew: `cargo test -p discovery-core --test bpf -- --ignored`. Read what changed before it is kept.
#[test]
#[ignore = "writes the file that the others read"]
fn write_programs() {
    let packets = packets();
    let octets: Vec<Vec<u8>> = packets.iter().map(|(_, octets)| octets.clone()).collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bpf-write.pcap");
    fs::write(&file, pcap(&octets)).unwrap();
    let mut text = String::from(COMMENT);
    for Row { expression, .. } in rows() {
        let program = compiled(&file, &expression);
        let program: Vec<String> =
            program.iter().map(|i| format!("{} {} {} {}", i.code, i.jt, i.jf, i.k)).collect();
        let names: Vec<&str> = filtered(&file, &expression)
            .iter()
            .map(|theirs| packets.iter().find(|(_, octets)| octets == theirs).unwrap().0)
            .collect();
        text.push_str(&format!("{expression}\n  {}\n  {}\n", program.join(", "), names.join(" ")));
    }
    fs::write(FILE, text).unwrap();
}

struct Row {
    expression: String,
    program: Vec<BpfInsn>,
    names: Vec<String>,
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(FILE).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let row = |lines: &[&str]| Row {
        expression: lines[0].to_owned(),
        program: lines[1].split(", ").map(instruction).collect(),
        names: lines[2].split_whitespace().map(str::to_owned).collect(),
    };
    assert!(lines.len().is_multiple_of(3));
    lines.chunks(3).map(row).collect()
}

fn instruction(line: &str) -> BpfInsn {
    let numbers: Vec<u32> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [code, jt, jf, k] = numbers[..] else { panic!("{line}") };
    let small = |number: u32| u8::try_from(number).unwrap();
    BpfInsn { code: u16::try_from(code).unwrap(), jt: small(jt), jf: small(jf), k }
}

/// What libpcap makes of an expression for packets as in `file`.
fn compiled(file: &Path, expression: &str) -> Vec<BpfInsn> {
    let output =
        Command::new("tcpdump").arg("-r").arg(file).args(["-ddd", "--", expression]).output().unwrap();
    assert!(output.status.success(), "{expression}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().skip(1).map(instruction).collect()
}

/// What libpcap lets through.
fn filtered(file: &Path, expression: &str) -> Vec<Vec<u8>> {
    let output = Command::new("tcpdump")
        .arg("-r")
        .arg(file)
        .args(["-U", "-w", "-", "--", expression])
        .output()
        .unwrap();
    assert!(output.status.success(), "{expression}: {}", String::from_utf8_lossy(&output.stderr));
    let mut rest = &output.stdout[24..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = usize::try_from(u32::from_le_bytes(rest[8..12].try_into().unwrap())).unwrap();
        found.push(rest[16..16 + length].to_vec());
        rest = &rest[16 + length..];
    }
    found
}

/// A capture file of packets that begin with IP (LINKTYPE_RAW, 101).
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xA1B2_C3D4_u32, 0x0004_0002, 0, 0, 65_535, 101] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for octets in packets {
        let length = u32::try_from(octets.len()).unwrap();
        for word in [1, 0, length, length] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(octets);
    }
    file
}

fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let flow = |client: &str, server: &str| Flow {
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
    };
    let (v4, v6) = (flow("10.1.0.2:34312", "10.2.0.2:143"), flow("[fd01::2]:34312", "[fd02::2]:993"));
    let web = flow("10.1.7.9:50000", "192.0.2.80:8080");
    let query = [253, 6, 0x57, 0x50, 0x11, 0];
    let syn4 = syn(&v4, 7, &query).unwrap();
    let syn6 = syn(&v6, 7, &query).unwrap();
    // An IPv4 header of 24 octets.
    let mut options = [&syn4[..20], &[1, 1, 1, 0], &syn4[20..]].concat();
    options[0] = 0x46;
    options[3] += 4;
    let mut fragment = syn4.clone();
    fragment[7] = 3;
    let mut udp = syn(&flow("10.1.0.2:5353", "10.2.0.2:53"), 0x0014_0000, &[]).unwrap();
    udp[9] = 17;
    let mut udp6 = syn(&flow("[fd01::2]:5353", "[fd02::2]:53"), 0x0014_0000, &[]).unwrap();
    udp6[6] = 17;
    let unreachable = |packet: &[u8], why| unreachable(&View::parse(packet).unwrap(), why, None).unwrap();
    let mut data = reset(web.client, web.server, 9).unwrap();
    data[33] = 0x18;
    data.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    data[3] += 27;
    vec![
        ("syn-ack4", syn_ack(&v4, 7, Acknowledged::Isn, 9, &[]).unwrap()),
        ("refused4", refused(&v4, 7).unwrap()),
        ("reset6", reset(v6.server, v6.client, 9).unwrap()),
        ("web-syn", syn(&web, 5, &[]).unwrap()),
        ("web-get", data),
        ("icmp4", unreachable(&syn4, Unreachable::Port)),
        ("icmp6", unreachable(&syn6, Unreachable::Host)),
        ("syn4", syn4),
        ("syn6", syn6),
        ("syn4-options", options),
        ("syn4-fragment", fragment),
        ("udp4", udp),
        ("udp6", udp6),
        ("empty", vec![]),
        ("one-octet", vec![0x45]),
    ]
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    fn damaged(&mut self, of: &[Vec<u8>]) -> Vec<u8> {
        let mut octets = of[self.below(of.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(octets.len());
            match self.below(4) {
                0 => octets.truncate(at),
                1 if at < octets.len() => octets.insert(at, 0),
                _ if at < octets.len() => octets[at] ^= 1 << self.below(8),
                _ => octets.push(0x45),
            }
        }
        octets
    }
}

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf.txt");
const DAMAGED: usize = 3000;
const COMMENT: &str = "\
# Three lines each: an expression, its program for LINKTYPE_RAW as `tcpdump -ddd` prints it (code jt jf k), and the
# packets of tests/bpf.rs that tcpdump lets through. Made by the ignored test there.
";
