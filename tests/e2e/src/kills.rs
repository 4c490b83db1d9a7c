//! What becomes of connections that begin around the death of a node: none may fail that begins after it, and those that
//! it catches between the client's SYN and its answer must reach the real server soon, or be told.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::{Lab, LabSpec, Place, sys};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::pair::{Pair, Stand};

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// Connections that begin after a kill, or while the packet loop hangs.
    pub after: usize,
    /// Connections caught between SYN and answer, of each variant of the answer.
    pub caught: usize,
    /// The most that one that begins afterwards may take.
    pub bound: Duration,
    /// The round trip of the line, in milliseconds.
    pub rtt_ms: f64,
    /// Over how long those that begin afterwards are spread.
    pub spread: Duration,
}

impl Campaign {
    /// The whole of it, with the bounds that are to be kept.
    #[must_use]
    pub fn whole(after: usize, caught: usize) -> Self {
        let rtt = Duration::from_secs_f64(RTT_MS / 1e3);
        Self { after, caught, bound: REPEATED + rtt, rtt_ms: RTT_MS, spread: Duration::from_millis(1300) }
    }
}

/// What was seen of one kind.
#[derive(Debug, Default)]
pub struct Tally {
    reached: Vec<Duration>,
    told: Vec<(Duration, String)>,
    hung: usize,
}

impl Tally {
    fn note(&mut self, shot: &Shot) {
        match &shot.outcome {
            Outcome::Reached => self.reached.push(shot.took),
            Outcome::Told(word) => self.told.push((shot.took, word.clone())),
            Outcome::Hung => self.hung += 1,
        }
    }

    /// How many there were.
    #[must_use]
    pub fn all(&self) -> usize {
        self.reached.len() + self.told.len() + self.hung
    }

    /// Those that were served by the real server within a time.
    #[must_use]
    pub fn within(&self, most: Duration) -> usize {
        self.reached.iter().filter(|took| **took <= most).count()
    }

    /// Those that had no outcome, good or bad, within a time.
    #[must_use]
    pub fn beyond(&self, most: Duration) -> usize {
        let told = self.told.iter().map(|(took, _)| took);
        self.hung + self.reached.iter().chain(told).filter(|took| **took > most).count()
    }

    fn quantile(&self, percent: usize) -> Duration {
        let mut sorted = self.reached.clone();
        sorted.sort();
        let at = sorted.len().saturating_sub(1) * percent / 100;
        sorted.get(at).copied().unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reached of {}; p50 {} ms, p95 {} ms, most {} ms; {} told otherwise, {} hung",
            self.reached.len(),
            self.all(),
            self.quantile(50).as_millis(),
            self.quantile(95).as_millis(),
            self.quantile(100).as_millis(),
            self.told.len(),
            self.hung
        )?;
        let mut words: Vec<&str> = self.told.iter().map(|(_, word)| word.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        if words.is_empty() { Ok(()) } else { write!(f, " ({})", words.join("; ")) }
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Begun after a node was killed.
    pub after_kill: Tally,
    /// Begun while the packet loop hung.
    pub while_hung: Tally,
    /// Caught by the death of the client's node, its answer acknowledging the client's number itself.
    pub caught: Tally,
    /// The same of the answer that acknowledges one more.
    pub caught_plus_one: Tally,
    /// Caught by the death of the server's node.
    pub caught_centre: Tally,
    /// What the surviving node counted where a connection hung.
    pub hints: Vec<String>,
}

impl Seen {
    /// What is not as it should be, a sentence each.
    #[must_use]
    pub fn broken(&self, campaign: &Campaign) -> Vec<String> {
        let mut broken = Vec::new();
        for (name, tally) in [("after a kill", &self.after_kill), ("while hung", &self.while_hung)] {
            let late = tally.all() - tally.within(campaign.bound);
            if late > 0 {
                broken.push(format!(
                    "{late} of {} connections begun {name} were not served within {:?}",
                    tally.all(),
                    campaign.bound
                ));
            }
        }
        // A round trip more than one that begins afterwards: the death is noticed by what comes back.
        let most = campaign.bound + Duration::from_secs_f64(campaign.rtt_ms / 1e3);
        let (served, all) = (self.caught.within(most), self.caught.all());
        // Of a few a share says nothing.
        if campaign.caught >= 100 && served * 100 < all * 95 {
            broken.push(format!(
                "{served} of {all} caught connections were served within {most:?}, 95 % should be"
            ));
        }
        // Of the other answer nobody promises the server; an outcome is promised of all.
        for (name, tally) in [
            ("", &self.caught),
            (", ack isn+1,", &self.caught_plus_one),
            (" by the server's node", &self.caught_centre),
        ] {
            if tally.beyond(most) > 0 {
                broken.push(format!(
                    "{} connections caught{name} had no outcome within {most:?}",
                    tally.beyond(most)
                ));
            }
        }
        broken
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "begun after a kill -9                     {}", self.after_kill)?;
        writeln!(f, "begun while the packet loop hangs         {}", self.while_hung)?;
        writeln!(f, "caught by the client's node, ack isn      {}", self.caught)?;
        writeln!(f, "caught by the client's node, ack isn+1    {}", self.caught_plus_one)?;
        write!(f, "caught by the server's node               {}", self.caught_centre)?;
        self.hints.iter().try_for_each(|hint| write!(f, "\n{hint}"))
    }
}

/// Runs it in a lab of its own.
///
/// # Errors
/// When the lab cannot be built, or a node does not start.
pub fn run(executable: &Path, prefix: &str, campaign: &Campaign, say: impl Fn(&str)) -> anyhow::Result<Seen> {
    let lab =
        Lab::build(LabSpec { prefix: Some(prefix.to_owned()), ..LabSpec::new(campaign.rtt_ms, 100.0) })?;
    let _server = serve(&lab)?;
    let pair = Pair::identify(executable, &lab, &[Place::Centre, Place::Branch])?;
    let mut ground = Ground { lab, pair, port: FIRST_PORT, spread: campaign.spread };
    let mut seen = Seen::default();
    // Of the ten thousand one in ten meets a loop that hangs.
    let (hung, killed) = (campaign.after.div_ceil(10), campaign.after - campaign.after.div_ceil(10));
    while seen.while_hung.all() < hung {
        ground.fresh("isn")?;
        for shot in ground.hang(hung.min(PER_ROUND))? {
            seen.while_hung.note(&shot);
        }
    }
    let mut round = 0_usize;
    while seen.caught.all() < campaign.caught
        || seen.caught_plus_one.all() < campaign.caught
        || seen.after_kill.all() < killed
    {
        // Every second one is the centre's; of the branch's, every second one answers the other way.
        let plus_one = seen.caught_plus_one.all() < campaign.caught && round % 4 == 2;
        let (victim, ack) = match (round.is_multiple_of(2), plus_one) {
            (false, _) => (Place::Centre, "isn"),
            (true, true) => (Place::Branch, "isn+1"),
            (true, false) => (Place::Branch, "isn"),
        };
        // A few begin while the node dies, and count for neither.
        let each = (killed.div_ceil(2) + 6).min(PER_ROUND);
        // What hung and goes on is as good as new, for the first kill.
        if round > 0 || hung == 0 {
            ground.fresh(ack)?;
        }
        let (before, after) = ground.kill(victim, each).with_context(|| format!("round {round}"))?;
        let caught = match (victim, ack) {
            (Place::Centre, _) => &mut seen.caught_centre,
            (_, "isn") => &mut seen.caught,
            (_, _) => &mut seen.caught_plus_one,
        };
        before.iter().for_each(|shot| caught.note(shot));
        if before.iter().any(|shot| shot.outcome == Outcome::Hung) {
            seen.hints.push(ground.hint(victim)?);
        }
        after.iter().for_each(|shot| seen.after_kill.note(shot));
        round += 1;
        if round.is_multiple_of(5) {
            say(&format!("{round} kills: after them {}", seen.after_kill));
        }
        ensure!(round < ROUNDS_MAX, "after {round} kills only {} were caught", seen.caught.all());
    }
    ground.control()?;
    Ok(seen)
}

/// A connection that is carried and says nothing costs no CPU worth a word: the busiest thread of each node, and
/// how long it ran or wanted to within a second.
///
/// # Errors
/// When it does, or the lab cannot be built.
pub(crate) fn rests(executable: &Path, prefix: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let lab = Lab::build(LabSpec { prefix: Some(prefix.to_owned()), ..LabSpec::new(20.0, 100.0) })?;
    let _server = serve(&lab)?;
    let pair = Pair::identify(executable, &lab, &[Place::Centre, Place::Branch])?;
    let mut ground = Ground { lab, pair, port: FIRST_PORT, spread: Duration::ZERO };
    ground.fresh("isn")?;
    let at = SocketAddr::new(Place::Server.v4(), FIRST_PORT);
    let held = ground.lab.inside(Place::Client, move || std::net::TcpStream::connect(at))??;
    thread::sleep(Duration::from_millis(500));
    let carried = ground.pair.status(Place::Branch)?;
    let carried = carried.get("carried").and_then(serde_json::Value::as_u64);
    ensure!(carried == Some(1), "the connection is not carried: {carried:?}");
    let mut used = Vec::new();
    for place in [Place::Branch, Place::Centre] {
        let before = ground.wanted(place)?;
        thread::sleep(Duration::from_secs(1));
        let after = ground.wanted(place)?;
        let spent = |(name, seconds): (&String, &f64)| Some((name.clone(), seconds - before.get(name)?));
        used.extend(after.iter().filter_map(spent).max_by(|one, other| one.1.total_cmp(&other.1)));
    }
    drop(held);
    Ok(used)
}

struct Ground {
    pair: Pair,
    port: u16,
    spread: Duration,
    lab: Lab,
}

impl Ground {
    /// A port of which no node knows anything, or has forgotten it.
    fn next_port(&mut self) -> u16 {
        self.port = if self.port + 1 < FIRST_PORT + PORTS { self.port + 1 } else { FIRST_PORT + 1 };
        self.port
    }

    /// Seconds that each thread of a node has run, or wanted to: on a busy machine one that turns all the time is seldom let.
    fn wanted(&self, place: Place) -> anyhow::Result<BTreeMap<String, f64>> {
        let mut wanted = BTreeMap::new();
        for pid in self.pair.processes(place) {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                // A thread may end meanwhile.
                let stat = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
                let nanos =
                    stat.split(' ').take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
                let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
                wanted.insert(format!("{} {}", name.trim(), task.display()), nanos / 1e9);
            }
        }
        Ok(wanted)
    }

    /// The reasons of the node that stayed.
    fn hint(&self, victim: Place) -> anyhow::Result<String> {
        let other = if victim == Place::Branch { Place::Centre } else { Place::Branch };
        let status = self.pair.status(other)?;
        let reasons = status.get("reasons").map(ToString::to_string).unwrap_or_default();
        Ok(format!("one hung when {} was killed; {} counted {reasons}", victim.name(), other.name()))
    }

    /// Both nodes anew, and a link between them that carries.
    fn fresh(&mut self, ack: &str) -> anyhow::Result<()> {
        for (place, wan) in [(Place::Centre, "wan9"), (Place::Branch, "wan0")] {
            self.pair.kill(place)?;
            let ports = format!("\"{FIRST_PORT}-{}\"", FIRST_PORT + PORTS - 1);
            let stand = Stand { mode: format!("ack = {ack:?}\n"), ..Stand::routed(&["lan0", wan], &ports) };
            self.pair.start(&self.lab, place, &stand)?;
        }
        self.carrying(0)
    }

    /// Waits until more than so many connections have been carried.
    fn carrying(&self, before: u64) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.pair.count(Place::Branch, "carried")? <= before {
            let late = start.elapsed() > Duration::from_secs(20);
            ensure!(!late, "nothing is carried:\n{}", self.pair.account(&[Place::Branch, Place::Centre]));
            let shots = shoot(&self.lab, vec![(Duration::ZERO, FIRST_PORT)], STALL)?;
            drop(shots.join());
        }
        Ok(())
    }

    /// Kills a node among connections that begin: those that it caught before their answer, and those begun afterwards.
    fn kill(&mut self, victim: Place, after: usize) -> anyhow::Result<(Vec<Shot>, Vec<Shot>)> {
        let window = Duration::from_millis(36);
        let lead = Duration::from_millis(100);
        let mut plan = Vec::new();
        for nth in 0..BEFORE {
            plan.push((lead + window * nth / BEFORE, self.next_port()));
        }
        let dies = lead + window;
        for nth in 0..u32::try_from(after)? {
            // One of them goes where the link was, the next asks anew.
            let port = if nth.is_multiple_of(2) { FIRST_PORT } else { self.next_port() };
            plan.push((dies + self.spread * nth / u32::try_from(after)?.max(1), port));
        }
        let pids = self.pair.processes(victim);
        let start = Instant::now();
        let shots = shoot(&self.lab, plan, STALL)?;
        thread::sleep(dies.saturating_sub(start.elapsed()));
        let killing = Instant::now();
        for pid in pids {
            sys::kill(i32::try_from(pid)?, libc::SIGKILL)?;
        }
        self.pair.kill(victim)?;
        let dead = Instant::now();
        let shots = shots.join().map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        let (mut caught, mut later) = (Vec::new(), Vec::new());
        for shot in shots {
            if shot.begun >= dead {
                later.push(shot);
            } else if shot.begun < killing && shot.connected.is_none_or(|connected| connected > dead) {
                caught.push(shot);
            }
        }
        Ok((caught, later))
    }

    /// Connections that begin while the branch's packet loop, or all of its node but the supervisor, stands still.
    fn hang(&mut self, n: usize) -> anyhow::Result<Vec<Shot>> {
        let processes = self.pair.processes(Place::Branch);
        let stopped = match processes.split_first() {
            Some((_, workers)) if !workers.is_empty() => Stopped::Processes(workers.to_vec()),
            Some((only, _)) => Stopped::Thread { _held: sys::stop_thread(thread_of(*only, "netd")?)? },
            None => bail!("the branch's node does not run"),
        };
        stopped.signal(libc::SIGSTOP)?;
        let mut plan = Vec::new();
        for nth in 0..u32::try_from(n)? {
            let port = if nth.is_multiple_of(2) { FIRST_PORT } else { self.next_port() };
            plan.push((self.spread * nth / u32::try_from(n)?.max(1), port));
        }
        let shots = shoot(&self.lab, plan, STALL)?.join();
        stopped.signal(libc::SIGCONT)?;
        drop(stopped);
        self.carrying(self.pair.count(Place::Branch, "carried")?)?;
        shots.map_err(|_| anyhow::anyhow!("the clients panicked"))?
    }
}

impl Ground {
    /// That a connection which nobody lets through would have been noticed: with a queue that has no reader and holds what
    /// it gets.
    fn control(&mut self) -> anyhow::Result<()> {
        self.pair.kill(Place::Branch)?;
        let mut rule = self.lab.command(Place::Branch, "iptables-nft");
        rule.args(["-t", "raw", "-I", "PREROUTING", "-p", "tcp", "--syn"]);
        ensure!(
            rule.args(["-j", "NFQUEUE", "--queue-num", "999"]).status()?.success(),
            "the rule is refused"
        );
        let shots = shoot(&self.lab, vec![(Duration::ZERO, FIRST_PORT)], Duration::from_millis(1200))?;
        let shots = shots.join().map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        let held = shots.iter().all(|shot| shot.outcome == Outcome::Hung);
        ensure!(held && !shots.is_empty(), "a held SYN was not noticed: {shots:?}");
        Ok(())
    }
}

enum Stopped {
    /// Goes on when it is dropped.
    Thread {
        _held: sys::StoppedThread,
    },
    Processes(Vec<u32>),
}

impl Stopped {
    fn signal(&self, signal: i32) -> anyhow::Result<()> {
        if let Self::Processes(pids) = self {
            for pid in pids {
                sys::kill(i32::try_from(*pid)?, signal)?;
            }
        }
        Ok(())
    }
}

fn thread_of(process: u32, name: &str) -> anyhow::Result<i32> {
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?;
        if std::fs::read_to_string(task.path().join("comm"))?.trim() == name {
            return Ok(task.file_name().to_string_lossy().parse()?);
        }
    }
    bail!("no thread {name}")
}

/// One connection of a client: connect, an octet, its echo.
#[derive(Debug)]
struct Shot {
    begun: Instant,
    connected: Option<Instant>,
    took: Duration,
    outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The server gave the octet back.
    Reached,
    /// An error, in the system's word.
    Told(String),
    /// Nothing, for as long as anybody waits.
    Hung,
}

type Shooting = thread::JoinHandle<anyhow::Result<Vec<Shot>>>;

/// Connections from the client's place, each begun at its time from now on.
fn shoot(lab: &Lab, plan: Vec<(Duration, u16)>, patience: Duration) -> anyhow::Result<Shooting> {
    let namespace = lab.namespace(Place::Client);
    let start = tokio::time::Instant::now();
    Ok(thread::Builder::new().name("clients".to_owned()).spawn(move || {
        sys::enter_netns(&namespace)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async move {
            let mut all = JoinSet::new();
            for (after, port) in plan {
                all.spawn(async move {
                    sleep_until(start + after).await;
                    shot(port, patience).await
                });
            }
            all.join_all().await
        }))
    })?)
}

async fn shot(port: u16, patience: Duration) -> Shot {
    let begun = Instant::now();
    let mut connected = None;
    let done = timeout(patience, async {
        let mut stream = TcpStream::connect(SocketAddr::new(Place::Server.v4(), port)).await?;
        connected = Some(Instant::now());
        stream.write_all(b"!").await?;
        stream.read_u8().await
    });
    let outcome = match done.await {
        Ok(Ok(_)) => Outcome::Reached,
        Ok(Err(error)) => Outcome::Told(error.kind().to_string()),
        Err(_) => Outcome::Hung,
    };
    Shot { begun, connected, took: begun.elapsed(), outcome }
}

/// Gives each octet back, on every port.
fn serve(lab: &Lab) -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let handle = runtime.handle().clone();
    let listeners = lab.inside(Place::Server, move || {
        let _entered = handle.enter();
        (FIRST_PORT..FIRST_PORT + PORTS)
            .map(|port| {
                let socket = std::net::TcpListener::bind(SocketAddr::new(Place::Server.v4(), port))?;
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket)
            })
            .collect::<std::io::Result<Vec<_>>>()
    })??;
    for listener in listeners {
        runtime.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // Who is gone is gone.
                    while let Ok(octet) = stream.read_u8().await {
                        if stream.write_u8(octet).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    }
    Ok(runtime)
}

const RTT_MS: f64 = 40.0;
/// A SYN that is lost comes again after a second.
const REPEATED: Duration = Duration::from_millis(1100);
/// Connections that begin within a round trip before the kill.
const BEFORE: u32 = 12;
/// Connections after a kill: more only load the machine.
const PER_ROUND: usize = 250;
const ROUNDS_MAX: usize = 1_000;
const FIRST_PORT: u16 = 9000;
const PORTS: u16 = 500;
/// Nobody waits longer.
const STALL: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(reached_ms: &[u64], told_ms: &[u64], hung: usize) -> Tally {
        let told = told_ms.iter().map(|ms| (Duration::from_millis(*ms), "reset".to_owned()));
        Tally {
            reached: reached_ms.iter().copied().map(Duration::from_millis).collect(),
            told: told.collect(),
            hung,
        }
    }

    #[test]
    fn each_kind_of_connection_that_has_no_outcome_is_missed() {
        let campaign = Campaign::whole(10, 100);
        let kinds: [fn(&mut Seen) -> &mut Tally; 5] = [
            |seen| &mut seen.after_kill,
            |seen| &mut seen.while_hung,
            |seen| &mut seen.caught,
            |seen| &mut seen.caught_plus_one,
            |seen| &mut seen.caught_centre,
        ];
        for (nth, kind) in kinds.into_iter().enumerate() {
            let mut seen = Seen::default();
            *kind(&mut seen) = tally(&[100; 200], &[], 0);
            assert!(seen.broken(&campaign).is_empty(), "{nth}: {:?}", seen.broken(&campaign));
            for bad in [tally(&[100; 200], &[], 1), tally(&[9000], &[], 0), tally(&[], &[9000], 0)] {
                *kind(&mut seen) = bad;
                assert!(!seen.broken(&campaign).is_empty(), "{nth}: {seen}");
            }
        }
    }

    #[test]
    fn who_is_told_is_served_by_nobody_and_only_the_other_answer_may_do_so() {
        let campaign = Campaign::whole(10, 100);
        let told = || tally(&[], &[200; 100], 0);
        let broken = |seen: Seen| seen.broken(&campaign).len();
        assert_eq!(broken(Seen { caught_plus_one: told(), ..Seen::default() }), 0);
        assert_eq!(broken(Seen { caught_centre: told(), ..Seen::default() }), 0);
        assert_eq!(broken(Seen { caught: told(), ..Seen::default() }), 1);
        assert_eq!(broken(Seen { after_kill: told(), ..Seen::default() }), 1);
    }
}
