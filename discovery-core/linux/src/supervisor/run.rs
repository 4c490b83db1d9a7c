//! The process part of the supervisor: starts, hears, ends, and moves the rules.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::watch::{Order, Watch, WatchSettings};
use crate::rules::{Extent, Rules, RulesError};

#[derive(Clone, Copy, Debug)]
enum Told {
    Bypass(bool),
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

    /// New connections flow untouched, or no longer.
    pub fn bypass(&self, on: bool) {
        self.send(Told::Bypass(on));
    }

    /// Ends the worker, removes the rules, and lets [`supervise`] return.
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
    heart: OwnedFd,
}

impl Worker {
    fn start(command: &mut Command) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let mut child = command.stdin(Stdio::from(theirs)).spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match pidfd {
            Ok(pidfd) => Ok(Self { child, pidfd, heart: ours }),
            Err(error) => {
                // Not one that could not be watched.
                drop(child.kill());
                drop(child.wait());
                Err(error.into())
            }
        }
    }

    /// Whether it has written since.
    fn has_beaten(&self) -> bool {
        let mut beaten = false;
        let mut octets = [0; 256];
        while recv(&self.heart, &mut octets, RecvFlags::DONTWAIT).is_ok_and(|(read, _)| read > 0) {
            beaten = true;
        }
        beaten
    }
}

/// How often the rules are compared with what was installed.
const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// Starts workers and watches over them until [`Control::stop`]. `command` makes the worker's command each time; its
/// standard input is taken. Cleans up first what a predecessor left behind, and last everything.
///
/// # Errors
/// When the rules cannot be removed, at the beginning or at the end. Rules that cannot be moved meanwhile, and a worker
/// that cannot be started, are tried again and again: connections flow untouched as long.
pub fn supervise(
    mut rules: Rules,
    settings: WatchSettings,
    controlled: &Controlled,
    mut command: impl FnMut() -> Command,
) -> Result<(), RulesError> {
    rules.remove()?;
    let mut watch = Watch::new(settings, Instant::now());
    let mut worker: Option<Worker> = None;
    let mut verified = Instant::now();
    // What shall stand, what was put last, and whether it stands.
    let (mut wanted, mut put, mut stands) = (None, None, true);
    loop {
        let now = Instant::now();
        let due = watch.poll_timeout().map_or(VERIFY_EVERY, |at| at.saturating_duration_since(now));
        let wake = wait(worker.as_ref(), controlled, due.min(VERIFY_EVERY));
        for told in controlled.told.try_iter() {
            match told {
                Told::Bypass(on) => watch.handle_bypass(on),
                Told::Stop => watch.handle_stop(),
            }
        }
        // Beats before silence: moving rules takes a while, in which the worker did work.
        let now = Instant::now();
        if worker.as_ref().is_some_and(Worker::has_beaten) {
            watch.handle_beat(now);
        }
        if wake.ended
            && let Some(mut ended) = worker.take()
        {
            let status = ended.child.wait();
            tracing::warn!(?status, "the process that handles packets has ended");
            watch.handle_exit(now);
        }
        watch.handle_timeout(now);
        while let Some(order) = watch.poll_order() {
            match order {
                Order::Start => match Worker::start(&mut command()) {
                    Ok(started) => worker = Some(started),
                    Err(error) => {
                        tracing::error!(%error, "the process that handles packets cannot be started");
                        watch.handle_exit(now);
                    }
                },
                Order::Kill => {
                    if let Some(worker) = &worker {
                        // Gone already is as good.
                        let _ = pidfd_send_signal(&worker.pidfd, Signal::KILL);
                    }
                }
                Order::RulesIn => wanted = Some(Extent::Full),
                Order::RulesOut => wanted = Some(Extent::Drain),
                Order::Finish => return rules.remove(),
            }
        }
        if let Some(wanted) = wanted
            && (put != Some(wanted) || verified.elapsed() >= VERIFY_EVERY)
        {
            stands = settle(&mut rules, wanted, stands && put == Some(wanted));
            put = Some(wanted);
            verified = Instant::now();
        }
    }
}

/// Puts the rules in place, or looks after those that stand. Whether they stand then; if not, it is tried again.
fn settle(rules: &mut Rules, wanted: Extent, stands: bool) -> bool {
    let done = if stands { rules.verify() } else { rules.set(wanted).map(|()| 0) };
    match done {
        Ok(0) => true,
        Ok(repaired) => {
            tracing::warn!(repaired, "rules were changed by somebody else and are put back");
            true
        }
        Err(error) => {
            tracing::error!(%error, "rules cannot be put in place: connections flow untouched");
            // Half of them is worse than none.
            if let Err(error) = rules.remove() {
                tracing::error!(%error, "rules cannot be removed");
            }
            false
        }
    }
}

struct Wake {
    ended: bool,
}

fn wait(worker: Option<&Worker>, controlled: &Controlled, due: Duration) -> Wake {
    let timeout = Timespec { tv_sec: due.as_secs().cast_signed(), tv_nsec: due.subsec_nanos().into() };
    let wake = controlled.wake.as_fd();
    let Some(worker) = worker else {
        let _ = poll(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], Some(&timeout));
        let _ = rustix::io::read(wake, &mut [0; 8]);
        return Wake { ended: false };
    };
    let mut polled = [
        PollFd::new(&worker.pidfd, PollFlags::IN),
        PollFd::new(&worker.heart, PollFlags::IN),
        PollFd::from_borrowed_fd(wake, PollFlags::IN),
    ];
    if poll(&mut polled, Some(&timeout)).is_err() {
        return Wake { ended: false };
    }
    let [ended, ..] = polled.map(|fd| !fd.revents().is_empty());
    let _ = rustix::io::read(wake, &mut [0; 8]);
    Wake { ended }
}
