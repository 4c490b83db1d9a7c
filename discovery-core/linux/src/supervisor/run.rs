//! The process part of the supervisor: starts, hears, tells, ends, and moves the rules.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::watch::{Order, Phase, Watch, WatchSettings};
use super::words::{MESSAGE_OCTETS_MAX, Said, Wish};
use crate::rules::{Extent, Listen, Plan, Rules, RulesError};

/// What belongs to whoever has something supervised.
pub trait Care {
    /// The command of a worker. Its standard input is taken.
    fn command(&mut self) -> Command;
    /// The rules for a worker whose listeners are there.
    ///
    /// # Errors
    /// Says why there can be none; connections flow untouched then.
    fn plan(&mut self, listen: Listen) -> Result<Plan, String>;
    /// Whether another worker may do better than one that ended so. `worked`: whether one ever was at work.
    fn fate(&mut self, status: ExitStatus, worked: bool) -> Fate;
    /// How it stands, whenever that changes.
    fn report(&mut self, report: &Report);
    /// Called at least once a second. `missed`: whether a worker that does not work is missed: one was at work before, and
    /// the operator does not let everything flow past it.
    fn turn(&mut self, phase: Phase, missed: bool, now: Instant) {
        let (_, _, _) = (phase, missed, now);
    }
}

/// What follows from a worker's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Another one is started.
    Again,
    /// It would end as this one did: all is over.
    Final,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In a word.
    pub phase: Phase,
    /// Since when it is so.
    pub since: Instant,
    /// Whether new connections are led to the worker.
    pub taking: bool,
    /// Workers that were started after the first.
    pub restarts: u64,
    /// Why the last one was started, or why rules are not in place.
    pub why: Option<String>,
    /// The worker's process.
    pub worker: Option<u32>,
    /// How many others go on with what they carry.
    pub leaving: usize,
}

/// How it was over.
#[derive(Debug)]
pub struct Over {
    /// How the last worker ended, if one ran.
    pub status: Option<ExitStatus>,
    /// Whether it was to be over.
    pub asked: bool,
}

/// Why supervising ended, or could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuperviseError {
    /// The rules could not be put in place the first time, or not be removed.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// There can be no rules.
    #[error("{0}")]
    Plan(String),
}

#[derive(Debug)]
enum Told {
    Bypass(bool, Sender<Result<(), String>>),
    Upgrade(Sender<Result<(), String>>),
    Reload,
    Stop,
}

/// Tells a supervisor what the operator wants. Works while the worker hangs.
#[derive(Clone, Debug)]
pub struct Control {
    tell: Sender<Told>,
    wake: Arc<OwnedFd>,
}

impl Control {
    /// A control, and what it controls: for [`supervise`].
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new() -> io::Result<(Self, Controlled)> {
        let (tell, told) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok((Self { tell, wake: Arc::clone(&wake) }, Controlled { told, wake }))
    }

    /// New connections flow untouched, or no longer. Waits until it is so.
    ///
    /// # Errors
    /// Says why it is not.
    pub fn bypass(&self, on: bool) -> Result<(), String> {
        let (answer, answered) = channel();
        self.send(Told::Bypass(on, answer));
        match answered.recv_timeout(BYPASS_MAX) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout) => Err("the rules have not moved yet; it is tried on".to_owned()),
            Err(RecvTimeoutError::Disconnected) => Err(ENDS.to_owned()),
        }
    }

    /// Has a new worker take the place of the one at work, which goes on with what it carries. Waits until the new one is
    /// at work.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn upgrade(&self) -> Result<(), String> {
        let (answer, answered) = channel();
        self.send(Told::Upgrade(answer));
        match answered.recv_timeout(UPGRADE_MAX) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout) => {
                Err("no new node is at work yet; it is tried on, and connections flow past".to_owned())
            }
            Err(RecvTimeoutError::Disconnected) => Err(ENDS.to_owned()),
        }
    }

    /// Has the worker read its configuration again.
    pub fn reload(&self) {
        self.send(Told::Reload);
    }

    /// Has the worker leave, removes the rules, and lets [`supervise`] return; the second time at once.
    pub fn stop(&self) {
        self.send(Told::Stop);
    }

    fn send(&self, told: Told) {
        if self.tell.send(told).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        }
    }
}

/// The supervisor's end of a [`Control`].
#[derive(Debug)]
pub struct Controlled {
    told: Receiver<Told>,
    wake: Arc<OwnedFd>,
}

/// A worker and how it is heard.
struct Worker {
    child: Child,
    pidfd: OwnedFd,
    channel: OwnedFd,
}

impl Worker {
    fn start(command: &mut Command) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut child = command.stdin(Stdio::from(theirs)).spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match pidfd {
            Ok(pidfd) => Ok(Self { child, pidfd, channel: ours }),
            Err(error) => {
                // Not one that could not be watched.
                drop(child.kill());
                drop(child.wait());
                Err(error.into())
            }
        }
    }

    /// What it has said since.
    fn said(&self) -> Vec<Said> {
        let mut all = Vec::new();
        let mut message = [0; MESSAGE_OCTETS_MAX];
        while let Ok((read, _)) = recv(&self.channel, &mut message, RecvFlags::DONTWAIT) {
            if read == 0 {
                break;
            }
            all.extend(message.get(..read).and_then(Said::read));
        }
        all
    }

    /// One that does not read is not waited for.
    fn tell(&self, wish: Wish) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = send(&self.channel, &wish.write(), flags);
    }

    fn kill(&self) {
        // Gone already is as good.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// Starts workers and watches over them until [`Control::stop`], or until one ends for good. `rules` cleans up first what
/// a predecessor left behind; then each worker gets the rules that lead to it.
///
/// # Errors
/// When rules cannot be removed, at the beginning or at the end, or be put in place for the first worker. Rules that
/// cannot be moved later, and a worker that cannot be started, are tried again and again: connections flow untouched as
/// long.
pub fn supervise(
    mut rules: Rules,
    settings: WatchSettings,
    controlled: &Controlled,
    care: &mut impl Care,
) -> Result<Over, SuperviseError> {
    rules.remove()?;
    let now = Instant::now();
    let report = Report {
        phase: Phase::Starting,
        since: now,
        taking: false,
        restarts: 0,
        why: None,
        worker: None,
        leaving: 0,
    };
    let supervisor = Supervisor {
        rules,
        watch: Watch::new(settings, now),
        care,
        worker: None,
        leaving: Vec::new(),
        upgrading: None,
        worked: false,
        stopped: None,
        leave_max: settings.leave_max,
        reasons: Reasons::default(),
        wanted: None,
        put: None,
        stands: true,
        looked: now,
        status: None,
        report,
        starts: 0,
    };
    supervisor.run(controlled)
}

struct Supervisor<'c, C> {
    rules: Rules,
    watch: Watch,
    care: &'c mut C,
    worker: Option<Worker>,
    /// Those that go on with what they carry, while a successor is at work.
    leaving: Vec<Worker>,
    /// Who waits for a new one.
    upgrading: Option<Sender<Result<(), String>>>,
    /// Whether one ever was at work.
    worked: bool,
    /// Since when it is to end.
    stopped: Option<Instant>,
    leave_max: Duration,
    reasons: Reasons,
    /// What shall stand, what was put last, whether it stands, and when that was looked at.
    wanted: Option<Extent>,
    put: Option<Extent>,
    stands: bool,
    looked: Instant,
    status: Option<ExitStatus>,
    report: Report,
    starts: u64,
}

impl<C: Care> Supervisor<'_, C> {
    fn run(mut self, controlled: &Controlled) -> Result<Over, SuperviseError> {
        loop {
            let now = Instant::now();
            let look = if self.stands { LOOK_EVERY } else { TRY_EVERY };
            let due = self.watch.poll_timeout().map_or(look, |at| at.saturating_duration_since(now));
            let due = due.min(look).min(TURN_EVERY);
            let ended = wait(self.worker.as_ref(), controlled, due);
            // Beats before silence; and what was not heard because nobody listened is no silence.
            let woken = Instant::now();
            if woken.saturating_duration_since(now) > due + SLEPT {
                self.watch.handle_slept(woken);
            }
            self.hear(woken)?;
            self.leaving.retain_mut(|worker| !matches!(worker.child.try_wait(), Ok(Some(_))));
            if ended {
                self.bury(woken);
            }
            let mut answers = Vec::new();
            for told in controlled.told.try_iter() {
                match told {
                    Told::Bypass(on, answer) => {
                        self.watch.handle_bypass(on);
                        answers.push(answer);
                    }
                    Told::Upgrade(answer) => self.upgrade(woken, answer),
                    Told::Reload => self.tell(Wish::Reload),
                    Told::Stop => {
                        self.stop_the_leaving(woken);
                        self.watch.handle_stop(woken);
                    }
                }
            }
            self.watch.handle_timeout(woken);
            let over = self.obey(woken);
            if over {
                self.bury_the_leaving(controlled);
                self.rules.remove()?;
                self.note();
                return Ok(Over { status: self.status, asked: self.stopped.is_some() });
            }
            self.settle()?;
            self.note();
            self.care.turn(self.watch.phase(), self.worked && !self.watch.is_bypassed(), woken);
            for answer in answers {
                let done = if self.stands { Ok(()) } else { Err(self.reasons.told().unwrap_or_default()) };
                let _gone = answer.send(done);
            }
        }
    }

    fn hear(&mut self, now: Instant) -> Result<(), SuperviseError> {
        let said = self.worker.as_ref().map(Worker::said).unwrap_or_default();
        for said in said {
            match said {
                Said::Beat => self.watch.handle_beat(now),
                Said::Ready(listen) => match self.care.plan(listen) {
                    Ok(plan) => {
                        self.rules.renew(plan)?;
                        // Nothing of another worker's is left in place.
                        self.put = None;
                        self.watch.handle_beat(now);
                    }
                    Err(why) if !self.worked => return Err(SuperviseError::Plan(why)),
                    Err(why) => {
                        tracing::error!(why, "there are no rules for the node; connections flow past it");
                        self.reasons.node = Some(why);
                    }
                },
                Said::Released => {
                    if self.watch.handle_released(now)
                        && let Some(worker) = self.worker.take()
                    {
                        self.leaving.push(worker);
                    }
                }
                // Its answer came too late for whoever waited.
                Said::Heard => {}
            }
        }
        Ok(())
    }

    fn upgrade(&mut self, now: Instant, answer: Sender<Result<(), String>>) {
        let refused = if self.leaving.len() >= LEAVING_MAX {
            Some("too many nodes still go on with what they carry")
        } else if !self.watch.handle_upgrade(now) {
            Some("no node is at work that another one could follow")
        } else {
            None
        };
        match refused {
            Some(why) => drop(answer.send(Err(why.to_owned()))),
            None => self.upgrading = Some(answer),
        }
    }

    /// Has those that go on leave; the second time at once: a node takes a second word for a hurry.
    fn stop_the_leaving(&mut self, now: Instant) {
        let wish = if self.stopped.is_some() { Wish::Hurry } else { Wish::Leave };
        self.leaving.iter().for_each(|worker| worker.tell(wish));
        self.stopped.get_or_insert(now);
    }

    /// They have as long to leave as the one at work; what is left of them then must not outlive the rules.
    fn bury_the_leaving(&mut self, controlled: &Controlled) {
        if self.leaving.is_empty() {
            return;
        }
        if self.stopped.is_none() {
            // The one at work has ended for good; nobody has told these yet.
            self.leaving.iter().for_each(|worker| worker.tell(Wish::Leave));
        }
        let until = self.stopped.unwrap_or_else(Instant::now) + self.leave_max;
        loop {
            self.leaving.retain_mut(|worker| !matches!(worker.child.try_wait(), Ok(Some(_))));
            let now = Instant::now();
            if self.leaving.is_empty() || now >= until {
                break;
            }
            self.note();
            self.care.turn(Phase::Leaving, false, now);
            let due = until.saturating_duration_since(now).min(TURN_EVERY);
            wait(self.leaving.first(), controlled, due);
            // Whoever asks for something else hears that all ends here.
            for told in controlled.told.try_iter() {
                if matches!(told, Told::Stop) {
                    self.leaving.iter().for_each(|worker| worker.tell(Wish::Hurry));
                }
            }
        }
        for worker in &mut self.leaving {
            worker.kill();
            drop(worker.child.wait());
        }
    }

    fn bury(&mut self, now: Instant) {
        let Some(mut ended) = self.worker.take() else { return };
        let status = ended.child.wait();
        let leaving = self.watch.phase() == Phase::Leaving;
        let again = match &status {
            Ok(status) => leaving || self.care.fate(*status, self.worked) == Fate::Again,
            Err(_) => true,
        };
        if !leaving && again {
            let why = match &status {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::error!(why, "the node has ended; connections flow past it until it is there again");
            self.reasons.node = Some(format!("the node ended: {why}"));
        }
        if !self.watch.is_succeeding()
            && let Some(answer) = self.upgrading.take()
        {
            let why = "the node ended before it had made room, with what it carried; another one is started";
            let _gone = answer.send(Err(why.to_owned()));
        }
        self.status = status.ok();
        self.watch.handle_exit(now, again);
    }

    /// Whether it is over.
    fn obey(&mut self, now: Instant) -> bool {
        while let Some(order) = self.watch.poll_order() {
            match order {
                Order::Start => match Worker::start(&mut self.care.command()) {
                    Ok(started) => {
                        self.worker = Some(started);
                        self.starts += 1;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the node cannot be started");
                        self.reasons.node = Some(format!("it cannot be started: {error}"));
                        self.watch.handle_exit(now, true);
                    }
                },
                Order::Kill => {
                    if let Some(worker) = &self.worker {
                        match self.stopped.is_some() {
                            true => tracing::info!("the node is ended"),
                            false => tracing::error!("the node does not answer, and is ended"),
                        }
                        worker.kill();
                    }
                }
                Order::RulesIn => self.wanted = Some(Extent::Full),
                Order::RulesOut => {
                    self.wanted = Some(Extent::Drain);
                    if self.watch.phase() == Phase::Hanging {
                        tracing::error!(
                            "the node stands still; new connections flow past it until it turns again"
                        );
                    }
                    // Before packets stop coming, so that it orders nothing that would not be delivered.
                    self.tell(Wish::Bypass(true));
                    let phase = self.watch.phase();
                    if matches!(phase, Phase::Bypassed | Phase::Upgrading | Phase::Leaving) {
                        self.wait_until_heard();
                    }
                }
                Order::HandOver => self.tell(Wish::HandOver),
                Order::Leave => self.tell(Wish::Leave),
                Order::Hurry => self.tell(Wish::Hurry),
                Order::Finish => return true,
            }
        }
        false
    }

    fn tell(&self, wish: Wish) {
        if let Some(worker) = &self.worker {
            worker.tell(wish);
        }
    }

    /// One that hangs hears nothing, and orders nothing either.
    fn wait_until_heard(&mut self) {
        let Some(worker) = &self.worker else { return };
        let until = Instant::now() + HEARS_WITHIN;
        let mut beaten = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = poll(&mut [PollFd::new(&worker.channel, PollFlags::IN)], Some(&timespec(left)));
            let said = worker.said();
            beaten |= said.contains(&Said::Beat);
            if said.contains(&Said::Heard) || said.is_empty() {
                break;
            }
        }
        if beaten {
            self.watch.handle_beat(Instant::now());
        }
    }

    /// Puts the rules in place, or looks after those that stand.
    fn settle(&mut self) -> Result<(), SuperviseError> {
        let Some(wanted) = self.wanted else { return Ok(()) };
        let moves = self.put != Some(wanted);
        let look = if self.stands { LOOK_EVERY } else { TRY_EVERY };
        if !moves && self.looked.elapsed() < look {
            return Ok(());
        }
        let stood = self.stands;
        let done =
            if self.stands && !moves { self.rules.verify() } else { self.rules.set(wanted).map(|()| 0) };
        self.put = Some(wanted);
        self.stands = true;
        if done.is_ok() {
            self.reasons.settled();
        }
        match done {
            Ok(0) => {}
            Ok(parts) => tracing::warn!(parts, "rules or settings had been changed by somebody; mended"),
            Err(error) if !self.worked => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "rules cannot be put in place: connections flow untouched");
                // Half of them is worse than none.
                if let Err(error) = self.rules.remove() {
                    tracing::error!(%error, "rules cannot be removed");
                }
                self.stands = false;
                self.reasons.rules = Some(error.to_string());
            }
        }
        if wanted == Extent::Full && self.stands && (moves || !stood) {
            tracing::info!("connections are taken");
            self.worked = true;
            self.tell(Wish::Bypass(false));
            self.wait_until_heard();
        }
        self.looked = Instant::now();
        Ok(())
    }

    fn note(&mut self) {
        let phase = self.watch.phase();
        let since = if phase == self.report.phase { self.report.since } else { Instant::now() };
        let report = Report {
            phase,
            since,
            taking: self.wanted == Some(Extent::Full) && self.stands,
            restarts: self.starts.saturating_sub(1),
            why: self.reasons.told(),
            worker: self.worker.as_ref().map(|worker| worker.child.id()),
            leaving: self.leaving.len(),
        };
        if matches!(report.phase, Phase::Working | Phase::Bypassed)
            && let Some(answer) = self.upgrading.take()
        {
            let _gone = answer.send(Ok(()));
        }
        if report != self.report || self.starts == 0 {
            self.report = report;
            self.care.report(&self.report);
        }
    }
}

/// Why things are not as they were, or not as they should be.
#[derive(Debug, Default)]
struct Reasons {
    /// Why the last worker was started.
    node: Option<String>,
    /// Why rules are not in place. None when they are.
    rules: Option<String>,
}

impl Reasons {
    /// Rules are in place.
    fn settled(&mut self) {
        self.rules = None;
    }

    /// What goes on comes before what is over.
    fn told(&self) -> Option<String> {
        self.rules.clone().or_else(|| self.node.clone())
    }
}

/// Whether the worker has ended.
fn wait(worker: Option<&Worker>, controlled: &Controlled, due: Duration) -> bool {
    let timeout = timespec(due);
    let wake = controlled.wake.as_fd();
    let ended = match worker {
        None => {
            let _ = poll(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], Some(&timeout));
            false
        }
        Some(worker) => {
            let mut polled = [
                PollFd::new(&worker.pidfd, PollFlags::IN),
                PollFd::new(&worker.channel, PollFlags::IN),
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
            ];
            let woken = poll(&mut polled, Some(&timeout)).is_ok();
            let [ended, ..] = polled.map(|fd| !fd.revents().is_empty());
            woken && ended
        }
    };
    let _ = rustix::io::read(wake, &mut [0; 8]);
    ended
}

fn timespec(due: Duration) -> Timespec {
    Timespec { tv_sec: due.as_secs().cast_signed(), tv_nsec: due.subsec_nanos().into() }
}

/// How often the rules are compared with what was installed: somebody may load rules of his own over ours.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// What a hardware watchdog can rely on.
const TURN_EVERY: Duration = Duration::from_secs(1);
/// How often it is tried again when they could not be put in place.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// Later than it wanted to be woken by so much, the supervisor itself stood still.
const SLEPT: Duration = Duration::from_millis(300);
/// A worker at work hears within a turn or two of its loop.
const HEARS_WITHIN: Duration = Duration::from_millis(200);
/// Of them each is a process, and has what it carries in memory.
const LEAVING_MAX: usize = 4;
/// A node makes room and another one starts, each in its time.
const UPGRADE_MAX: Duration = Duration::from_secs(200);
/// Rules move in a tenth of a second, and in a few on a busy machine.
const BYPASS_MAX: Duration = Duration::from_secs(30);
/// To whoever asked for something.
const ENDS: &str = "the supervisor ends";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_told_before_what_is_over() {
        let mut reasons = Reasons::default();
        assert_eq!(reasons.told(), None);
        reasons.node = Some("the node ended".to_owned());
        reasons.rules = Some("refused".to_owned());
        assert_eq!(reasons.told().as_deref(), Some("refused"));
        reasons.settled();
        assert_eq!(reasons.told().as_deref(), Some("the node ended"));
    }
}
