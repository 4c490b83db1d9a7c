//! What passes a device: handshakes and resets to and from the test's ports, for as long as the value lives.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use lab::Ground;

use super::STALL;

/// Kept by tcpdump.
#[derive(Debug)]
pub(crate) struct Capture {
    child: Child,
    packets: Arc<Mutex<Vec<Packet>>>,
}

/// One that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// As tcpdump has them: `S`, `S.`, `S.E`, `R`, `R.`
    pub(crate) flags: String,
    /// Among its options is one of ours.
    pub(crate) probe: bool,
    /// The whole line.
    pub(crate) line: String,
}

impl Packet {
    /// The client's first.
    pub(crate) fn is_syn(&self) -> bool {
        self.flags.starts_with('S') && !self.flags.contains('.')
    }

    /// The server's answer.
    pub(crate) fn is_answer(&self) -> bool {
        self.flags.starts_with('S') && self.flags.contains('.')
    }
}

impl Capture {
    pub(crate) fn begin(ground: &Ground, place: &str, device: &str) -> anyhow::Result<Self> {
        Ok(Self::several(ground, &[(place, device)])?.remove(0))
    }

    /// Several at once: each takes a moment to begin.
    pub(crate) fn several(ground: &Ground, places: &[(&str, &str)]) -> anyhow::Result<Vec<Self>> {
        let mut begun = Vec::new();
        for (place, device) in places {
            let mut command = ground.command(place, "tcpdump");
            // In IPv6 libpcap looks for flags behind the fixed header only, which is where they are here.
            let shakes = "tcp[tcpflags] & (tcp-syn|tcp-rst) != 0 or (ip6 and ip6[53] & 6 != 0)";
            let filter = format!("tcp portrange 8000-8009 and ({shakes})");
            // Headers only: a packet takes as much of the kernel's buffer as it might be long.
            command.args(["-i", device, "-l", "-n", "--immediate-mode", "-s", "256", "-B", "8192", &filter]);
            let mut child =
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("tcpdump")?;
            let packets = Arc::new(Mutex::new(Vec::new()));
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            let (stdout, stderr) = (stdout.context("tcpdump's output")?, stderr.context("its messages")?);
            let into = Arc::clone(&packets);
            thread::spawn(move || {
                for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
                    let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
                    into.extend(parse(&line));
                }
            });
            let (ready, listens) = channel();
            thread::spawn(move || {
                for line in std::io::BufReader::new(stderr).lines().map_while(Result::ok) {
                    if line.contains("listening on") {
                        let _gone = ready.send(());
                    }
                }
            });
            begun.push((Self { child, packets }, listens));
        }
        let mut captures = Vec::new();
        for (capture, listens) in begun {
            listens.recv_timeout(STALL).context("tcpdump does not begin")?;
            captures.push(capture);
        }
        Ok(captures)
    }

    /// All that was seen so far and not yet taken.
    pub(crate) fn take(&self) -> Vec<Packet> {
        settle();
        self.now()
    }

    /// The same, for whoever has waited.
    pub(crate) fn now(&self) -> Vec<Packet> {
        std::mem::take(&mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What was sent a moment ago is on its way to us.
pub(crate) fn settle() {
    thread::sleep(Duration::from_millis(120));
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            drop(lab::sys::kill(pid, libc::SIGTERM));
        }
        drop(self.child.wait());
    }
}

/// `12:00:00.0 IP 10.82.0.1.40000 > 10.82.1.2.8000: Flags [S], seq 1, ... options [...], length 0`
fn parse(line: &str) -> Option<Packet> {
    let mut words = line.split(' ').skip_while(|word| *word != "IP" && *word != "IP6").skip(1);
    let (from, _, to) = (words.next()?, words.next()?, words.next()?);
    let flags = line.split_once("Flags [")?.1.split_once(']')?.0.to_owned();
    Some(Packet {
        from: address(from)?,
        to: address(to.trim_end_matches(':'))?,
        flags,
        probe: has_probe(line),
        line: line.to_owned(),
    })
}

/// Whether one of the options is ours. Timestamps, as all else in the line, may have any digits in them.
pub(crate) fn has_probe(line: &str) -> bool {
    let options = line.split_once("options [").and_then(|(_, rest)| rest.split_once(']'));
    let options = options.map_or("", |(options, _)| options);
    options.split(',').any(|option| !option.starts_with("TS ") && option.contains("5750"))
}

/// tcpdump puts the port behind a dot.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once('.')?;
    Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_read() {
        let v4 = "12:00:00.157509 IP 10.82.0.1.40000 > 10.82.1.2.8000: Flags [S], seq 1, win 2, options [mss 1460,exp-5750 0x1], length 0";
        let v6 = "12:00:00.1 IP6 fd00:82::1.40000 > fd00:82:0:1::2.8000: Flags [S.], seq 1, ack 2, win 2, length 0";
        let (v4, v6) = (parse(v4).unwrap(), parse(v6).unwrap());
        assert_eq!((v4.from, v4.to), ("10.82.0.1:40000".parse().unwrap(), "10.82.1.2:8000".parse().unwrap()));
        assert!(v4.is_syn() && v4.probe && !v4.is_answer());
        assert_eq!(v6.to, "[fd00:82:0:1::2]:8000".parse().unwrap());
        assert!(v6.is_answer() && !v6.probe);
        assert_eq!(parse("tcpdump: listening"), None);
        let digits = "12:00:00.575000 IP 10.82.0.1.5750 > 10.82.1.2.8000: Flags [S], seq 57501, options [TS val 15750 ecr 0,nop], length 0";
        assert!(!parse(digits).unwrap().probe);
    }
}
