//! Moves real packets through a [`Link`]: a TUN device in each side's namespace, a thread for each direction, and
//! a control socket that speaks one JSON value a line, so that other processes can read and change the link too:
//!
//! ```text
//! > {"do":"read"}                                   < {"up":{..},"down":{..},"direction_changes":4}
//! > {"do":"reset"}                                  < {"ok":true}
//! > {"do":"get"}                                    < {"up":{"delay_ms":50.0,..},"down":{..}}
//! > {"do":"set","both":{"loss_percent":1}}          < {"ok":true}      also "up" and "down"
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::pipe::{Direction, Link, LinkBehaviour, LinkCounters};
use crate::sys;

/// Where the emulator puts its two ends.
#[derive(Debug, Clone)]
pub struct Ends {
    /// Namespace and device on the branch's side.
    pub branch: (String, String),
    /// Namespace and device on the data centre's side.
    pub centre: (String, String),
}

/// A running emulator. Dropping it takes both devices away.
#[derive(Debug)]
pub struct Emulator {
    stop: Arc<AtomicBool>,
    /// Ends the movers' waits: they watch the other half.
    wake: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
    control: PathBuf,
}

impl Emulator {
    /// Creates both devices and starts to move packets. The devices still lack addresses.
    ///
    /// # Errors
    /// When a namespace is missing, the caller is not root, or the control socket cannot be made.
    pub fn start(ends: &Ends, behaviour: LinkBehaviour, seed: u64, control: &Path) -> anyhow::Result<Self> {
        let branch = Arc::new(open_in(&ends.branch)?);
        let centre = Arc::new(open_in(&ends.centre)?);
        let link = Arc::new(Mutex::new(Link::new(behaviour, seed)));
        let stop = Arc::new(AtomicBool::new(false));
        let listener = UnixListener::bind(control)
            .with_context(|| format!("cannot make the emulator's control socket {}", control.display()))?;
        let mut emulator = Self {
            stop: Arc::clone(&stop),
            wake: Vec::new(),
            threads: Vec::new(),
            control: control.to_owned(),
        };
        let origin = Instant::now();
        for (direction, from, to) in [(Direction::Up, &branch, &centre), (Direction::Down, &centre, &branch)]
        {
            let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
            emulator.wake.push(ours);
            let mover = Mover {
                direction,
                from: Arc::clone(from),
                to: Arc::clone(to),
                link: Arc::clone(&link),
                stop: Arc::clone(&stop),
                wake: theirs,
                origin,
            };
            let thread = std::thread::Builder::new().name(format!("wan-{direction:?}"));
            emulator.threads.push(thread.spawn(move || mover.run()).context("cannot start a thread")?);
        }
        let thread = std::thread::Builder::new().name("wan-control".to_owned());
        let served = thread.spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // One question at a time: the next asker waits, and a silent one does not hold it for long.
                if let Ok(connection) = connection {
                    drop(serve(connection, &link));
                }
            }
        });
        emulator.threads.push(served.context("cannot start a thread")?);
        Ok(emulator)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.clear();
        drop(UnixStream::connect(&self.control));
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.control));
    }
}

/// Opens the device on a thread of its own: the thread that changes its namespace must not live on.
fn open_in((namespace, device): &(String, String)) -> anyhow::Result<File> {
    let (name, tun) = (namespace.clone(), device.clone());
    let opened = std::thread::spawn(move || {
        sys::enter_netns(&name)?;
        sys::open_tun(&tun)
    });
    match opened.join() {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => Err(error).with_context(|| {
            format!("cannot make the TUN device {device} in {namespace}; it needs root and /dev/net/tun")
        }),
        Err(_) => bail!("the thread that opens {device} in {namespace} panicked"),
    }
}

struct Mover {
    direction: Direction,
    from: Arc<File>,
    to: Arc<File>,
    link: Arc<Mutex<Link>>,
    stop: Arc<AtomicBool>,
    wake: UnixStream,
    origin: Instant,
}

impl Mover {
    fn run(&self) {
        sys::prefer_on_time();
        let mut packet = [0; PACKET_OCTETS_MAX];
        while !self.stop.load(Ordering::Relaxed) {
            // Bounded, so that a flood of packets in does not keep due ones from going out.
            for _ in 0..READS_MAX {
                let Ok(octets) = (&*self.from).read(&mut packet) else { break };
                let packet = packet.get(..octets).unwrap_or_default();
                locked(&self.link).push(self.direction, self.origin.elapsed(), packet);
            }
            let due = loop {
                let mut link = locked(&self.link);
                let Some(packet) = link.pop(self.direction, self.origin.elapsed()) else {
                    break link.due(self.direction);
                };
                drop(link);
                // A device that is down refuses: the packet is lost, as on a cut cable.
                drop((&*self.to).write(&packet));
            };
            let timeout = due.map(|due| due.saturating_sub(self.origin.elapsed()));
            if sys::wait_readable([self.from.as_fd(), self.wake.as_fd()], timeout).is_err() {
                return;
            }
        }
    }
}

const PACKET_OCTETS_MAX: usize = 65_536;
const READS_MAX: usize = 64;

fn locked(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    // A panic elsewhere cannot leave counters half-written that matter more than going on.
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(rename = "do")]
    action: Action,
    up: Option<Value>,
    down: Option<Value>,
    both: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Read,
    Reset,
    Get,
    Set,
}

fn serve(connection: UnixStream, link: &Mutex<Link>) -> anyhow::Result<()> {
    connection.set_read_timeout(Some(ASKER_TIMEOUT))?;
    connection.set_write_timeout(Some(ASKER_TIMEOUT))?;
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection.take(ASK_OCTETS_MAX));
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let answer = answer(&line, link).unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        writeln!(writer, "{answer}")?;
        line.clear();
    }
    Ok(())
}

const ASKER_TIMEOUT: Duration = Duration::from_secs(1);
const ASK_OCTETS_MAX: u64 = 1 << 16;

fn answer(line: &str, link: &Mutex<Link>) -> anyhow::Result<Value> {
    let request: Request = serde_json::from_str(line).context("not a request that the emulator knows")?;
    let mut link = locked(link);
    match request.action {
        Action::Read => Ok(serde_json::to_value(link.counters())?),
        Action::Reset => {
            link.reset();
            Ok(json!({"ok": true}))
        }
        Action::Get => Ok(serde_json::to_value(link.behaviour())?),
        Action::Set => {
            let mut behaviour = serde_json::to_value(link.behaviour())?;
            let patches = [
                ("up", &request.both),
                ("down", &request.both),
                ("up", &request.up),
                ("down", &request.down),
            ];
            for (side, patch) in patches {
                if let (Some(Value::Object(side)), Some(Value::Object(patch))) =
                    (behaviour.get_mut(side), patch)
                {
                    side.extend(patch.clone());
                }
            }
            link.set_behaviour(
                serde_json::from_value(behaviour).context("not a behaviour that the emulator knows")?,
            );
            Ok(json!({"ok": true}))
        }
    }
}

/// Reads and changes a running emulator, also one of another process.
#[derive(Debug, Clone)]
pub struct WanHandle {
    control: PathBuf,
}

impl WanHandle {
    /// The emulator that listens on this control socket.
    #[must_use]
    pub fn new(control: PathBuf) -> Self {
        Self { control }
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Sets all counters to nothing.
    ///
    /// # Errors
    /// When the emulator is gone.
    pub fn reset(&self) -> anyhow::Result<()> {
        self.ask(&json!({"do": "reset"})).map(drop)
    }

    /// The counters since the last reset.
    ///
    /// # Errors
    /// When the emulator is gone.
    pub fn read(&self) -> anyhow::Result<LinkCounters> {
        Ok(serde_json::from_value(self.ask(&json!({"do": "read"}))?)?)
    }

    /// How the link behaves now.
    ///
    /// # Errors
    /// When the emulator is gone.
    pub fn behaviour(&self) -> anyhow::Result<LinkBehaviour> {
        Ok(serde_json::from_value(self.ask(&json!({"do": "get"}))?)?)
    }

    /// Makes the link behave so from now on; packets under way keep their time.
    ///
    /// # Errors
    /// When the emulator is gone.
    pub fn set(&self, behaviour: &LinkBehaviour) -> anyhow::Result<()> {
        self.ask(&json!({"do": "set", "up": behaviour.up, "down": behaviour.down})).map(drop)
    }

    /// Changes one or a few knobs: `change(|link| link.down.outage = true)`.
    ///
    /// # Errors
    /// When the emulator is gone.
    pub fn change(&self, change: impl FnOnce(&mut LinkBehaviour)) -> anyhow::Result<()> {
        let mut behaviour = self.behaviour()?;
        change(&mut behaviour);
        self.set(&behaviour)
    }

    /// Waits until no TCP payload has crossed for `quiet`; bare acknowledgements and neighbour discovery do not
    /// count.
    ///
    /// # Errors
    /// When the emulator is gone, or the link has not been quiet within `patience`.
    pub fn wait_flat(&self, quiet: Duration, patience: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        let payload = |counters: &LinkCounters| (counters.up.payload_octets, counters.down.payload_octets);
        let (mut last, mut since) = (payload(&self.read()?), Instant::now());
        while since.elapsed() < quiet {
            if start.elapsed() > patience {
                bail!("the link was not quiet for {quiet:?} within {patience:?}");
            }
            std::thread::sleep(quiet / 20);
            let now = payload(&self.read()?);
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn ask(&self, request: &Value) -> anyhow::Result<Value> {
        let mut connection = UnixStream::connect(&self.control)
            .with_context(|| format!("no emulator listens on {}", self.control.display()))?;
        connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        writeln!(connection, "{request}")?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).context("the emulator did not answer")?;
        let answer: Value = serde_json::from_str(&line).context("the emulator's answer is not JSON")?;
        match answer.get("error") {
            Some(error) => bail!("the emulator refused: {error}"),
            None => Ok(answer),
        }
    }
}

/// The emulator serves one asker at a time, each for at most a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_touches_only_what_it_names() {
        let link = Mutex::new(Link::new(LinkBehaviour::default(), 1));
        answer(r#"{"do":"set","both":{"delay_ms":50},"down":{"outage":true}}"#, &link).unwrap();
        let behaviour = link.into_inner().unwrap().behaviour();
        assert_eq!((behaviour.up.delay_ms, behaviour.down.delay_ms), (50.0, 50.0));
        assert_eq!((behaviour.up.outage, behaviour.down.outage), (false, true));
        assert_eq!(behaviour.up.queue_octets, 1 << 20);
    }

    #[test]
    fn an_unknown_knob_is_an_error_and_changes_nothing() {
        let link = Mutex::new(Link::new(LinkBehaviour::default(), 1));
        assert!(answer(r#"{"do":"set","both":{"dealy_ms":50}}"#, &link).is_err());
        assert!(answer("{}", &link).is_err());
        assert_eq!(link.into_inner().unwrap().behaviour(), LinkBehaviour::default());
    }
}
