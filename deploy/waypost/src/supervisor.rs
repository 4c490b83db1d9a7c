//! `waypost run` of a node on the path is two processes. This one owns the rules and does nothing else; the node is its
//! child, of the same executable. When the node stands still, is killed or is started anew, the rules are out, and new
//! connections flow past it; when this one is killed, the node takes them out and ends.
//!
//! ```text
//!  signals ──► supervise ──starts, tells──► node (`waypost node`)
//!  desk ─────►    │     ◄──beats, ready──────┘
//!  (bypass,       └──► rules in the kernel
//!   status)
//! ```

pub(crate) mod desk;
pub(crate) mod hook;
pub(crate) mod rights;
pub(crate) mod user;
mod watchdog;

use crate::{
    api::SupervisorStatus,
    config::{Config, Surroundings, network::Interception},
    exit::{Exit, Failure},
    logging, notify, path,
};
use desk::{Desk, Seen};
use discovery_linux::{
    rules::{Listen, Plan, forwarding_off},
    supervisor::{Care, Control, Fate, Phase, Report, WatchSettings, supervise},
};
use hook::Hook;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};
use user::User;
use watchdog::Watchdog;

/// Runs the node of `config`, which stands at `file`, under supervision.
pub(crate) fn run(config: &Config, interception: &Interception, file: &Path) -> Result<Exit, Failure> {
    let _level = logging::start(&config.log);
    logging::keep_panics_quiet();
    rights::go_first();
    let user = User::of(config.node.user.as_deref())?;
    if let Some(user) = user {
        share(config, file, user)?;
    }
    rights::give_up(user.is_some());
    free_path(interception)?;
    let rules = path::standing_rules(config, interception)?;
    for setting in forwarding_off(rules.plan()) {
        tracing::warn!(setting, "is 0: this machine does not forward what it is to stand in the path of");
    }
    let failed = |what: &'static str| move |error| Failure::io(what, error);
    let (control, controlled) = Control::new().map_err(failed("the supervisor"))?;
    let seen = Seen::default();
    let executable = std::env::current_exe().map_err(failed("this executable"))?;
    let program = Program { executable, file: file.to_owned() };
    let desk = Desk::open(&config.admin, control.clone(), seen.clone(), program.clone())?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed("signals"))?;
    let told = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => control.reload(),
                _ => {
                    notify::stopping();
                    control.stop();
                }
            }
        }
    });
    told.map_err(failed("the system gives no threads"))?;
    let watchdog = interception.watchdog_device.as_deref().map(open_watchdog).transpose()?;
    let hook = match interception.bypass_command.as_slice() {
        [] => None,
        command => Some(Hook::start(command.to_vec()).map_err(failed("the system gives no threads"))?),
    };
    let mut node = NodeCare { program, config, interception, seen, ready: false, watchdog, hook };
    let over = supervise(rules, WatchSettings::default(), &controlled, &mut node);
    desk.close();
    let NodeCare { watchdog, hook, .. } = node;
    if let Some(watchdog) = watchdog {
        watchdog.end();
    }
    if let Some(hook) = hook {
        hook.end();
    }
    let over = over.map_err(|error| Failure::new(Exit::Unavailable, error))?;
    let code = over.status.and_then(|status| status.code());
    match code.and_then(Exit::of_code) {
        // It has said why.
        Some(exit) => Ok(exit),
        // Ended by a signal before it was ready, as its supervisor would have been.
        None if over.asked => Ok(Exit::Fine),
        None => Ok(Exit::Bug),
    }
}

/// What the node and those above it both use.
fn share(config: &Config, file: &Path, user: User) -> Result<(), Failure> {
    let state_dir = &config.node.state_dir;
    user.share(state_dir)?;
    User::keep_out(&user::netd_dir(&config.node))?;
    // Elsewhere it is for the operator to say who may make files.
    let runtime_dir = Surroundings::of_process().runtime_dir;
    if let Some(dir) = runtime_dir.filter(|dir| config.admin.socket.parent() == Some(dir)) {
        user.share(&dir)?;
    }
    let left = User::left_behind(state_dir, file);
    if !left.is_empty() {
        let (dir, left) = (state_dir.display(), left.join(" "));
        tracing::warn!(
            "in {dir} these are root's, and the node is {user}; those that it needs become its own by: (cd {dir} && chown -Rh {user} {left})"
        );
    }
    Ok(())
}

fn open_watchdog(device: &Path) -> Result<Watchdog, Failure> {
    Watchdog::open(device).map_err(|error| {
        let what = format!(
            "[interception] watchdog_device: {} (systemd may have it: RuntimeWatchdogSec= in system.conf)",
            device.display()
        );
        Failure::io(what, error)
    })
}

/// A node whose supervisor was killed a moment ago may still be about to end.
fn free_path(interception: &Interception) -> Result<(), Failure> {
    let since = Instant::now();
    once_free(|| path::could_stand(interception), || since.elapsed(), || thread::sleep(FREE_STEP))
}

/// Asks until it is free, or no more patience is left. The kernel denies a taken queue in the words in which it denies who has
/// no right: that is waited for too, but not for long.
fn once_free(
    mut ask: impl FnMut() -> Result<(), Failure>,
    mut waited: impl FnMut() -> Duration,
    mut wait: impl FnMut(),
) -> Result<(), Failure> {
    loop {
        match ask() {
            Err(failure)
                if waited() < if failure.exit == Exit::NoPermission { DENIED_MAX } else { FREE_MAX } =>
            {
                wait();
            }
            done => return done,
        }
    }
}

/// What is started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// By its name: another file may stand there at the next start.
    executable: PathBuf,
    /// The configuration.
    file: PathBuf,
}

impl Program {
    /// Whether the executable that is there now finds nothing wrong with the configuration that is there now: a node that
    /// works is not given up for one that does not start.
    fn would_run(&self, patience: Duration) -> Result<(), String> {
        let mut check = Command::new(&self.executable);
        check.arg("check").arg("-c").arg(&self.file);
        check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let failed = |error: io::Error| format!("{}: {error}", self.executable.display());
        let mut check = check.spawn().map_err(failed)?;
        let stderr = check.stderr.take();
        let reading = thread::spawn(move || {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                let _what_came = stderr.take(SAID_OCTETS_MAX).read_to_end(&mut said);
            }
            said
        });
        let said = || String::from_utf8_lossy(&reading.join().unwrap_or_default()).trim_end().to_owned();
        let why = match hook::end_of(&mut check, patience).map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => format!("says: {}", said()),
            None => format!("took longer than {} s", patience.as_secs_f32()),
        };
        Err(format!("the node stays as it is, for {} check {why}", self.executable.display()))
    }
}

/// What supervising the node needs to know of it.
struct NodeCare<'c> {
    program: Program,
    config: &'c Config,
    interception: &'c Interception,
    seen: Seen,
    ready: bool,
    watchdog: Option<Watchdog>,
    hook: Option<Hook>,
}

impl Care for NodeCare<'_> {
    fn command(&mut self) -> Command {
        let mut command = Command::new(&self.program.executable);
        // The supervisor alone speaks to systemd.
        command.arg("netd").arg("-c").arg(&self.program.file).env_remove("NOTIFY_SOCKET");
        command
    }

    fn plan(&mut self, listen: Listen) -> Result<Plan, String> {
        path::rules(self.config, self.interception, listen).map_err(|failure| failure.to_string())
    }

    fn fate(&mut self, status: ExitStatus, worked: bool) -> Fate {
        fate(status.code(), worked)
    }

    fn report(&mut self, report: &Report) {
        if report.taking && !self.ready {
            self.ready = true;
            notify::ready();
            tracing::info!("ready");
        }
        if let Some(hook) = &mut self.hook {
            hook.bypass(!report.taking);
        }
        self.seen.set(report.clone());
    }

    fn turn(&mut self, phase: Phase, missed: bool, now: Instant) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.turn(phase, missed, now);
        }
    }
}

/// A mistake in the configuration does not go away by another start; nor, at the very first one, does anything that the
/// node had words for. A crash may.
fn fate(code: Option<i32>, worked: bool) -> Fate {
    match (code.and_then(Exit::of_code), worked) {
        (Some(Exit::Usage | Exit::NoPermission), _) => Fate::Final,
        (Some(Exit::Fine | Exit::Unavailable | Exit::Bug), false) => Fate::Final,
        (Some(Exit::Fine | Exit::Unavailable | Exit::Bug), true) | (None, _) => Fate::Again,
    }
}

/// A report as `status` has it.
fn describe(report: &Report) -> SupervisorStatus {
    let state = match (report.phase, report.restarts) {
        (Phase::Starting, 0) => "starting",
        (phase, _) => phase.word(),
    };
    SupervisorStatus {
        state: state.to_owned(),
        since_s: report.since.elapsed().as_secs(),
        taking: report.taking,
        restarts: report.restarts,
        why: report.why.clone(),
        node_pid: report.worker,
        leaving: report.leaving as u64,
        pid: std::process::id(),
    }
}

/// Far more than a file has mistakes that are worth reading.
const SAID_OCTETS_MAX: u64 = 64 << 10;
const FREE_STEP: Duration = Duration::from_millis(50);
/// The kernel's own end of a queue whose process was killed.
const DENIED_MAX: Duration = Duration::from_secs(2);
/// The end of a node that is busy: it removes its rules, gives up the queue, and has its command told.
const FREE_MAX: Duration = hook::PATIENCE.saturating_add(Duration::from_secs(15));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_does_not_end_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let executable = dir.path().join("check");
        let checks = |script: &str, patience| {
            std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&executable, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
            let program = Program { executable: executable.clone(), file: "/nonexistent".into() };
            program.would_run(patience)
        };
        let long = Duration::from_secs(20);
        assert_eq!(checks("exit 0", long), Ok(()));
        assert!(checks("echo no such thing >&2; exit 1", long).unwrap_err().ends_with("says: no such thing"));
        let slow = checks("sleep 60", Duration::from_millis(200)).unwrap_err();
        assert!(slow.ends_with("took longer than 0.2 s"), "{slow}");
    }

    #[test]
    fn a_path_that_is_taken_is_waited_for_and_a_denied_one_not_for_long() {
        let waits = |exit: Exit, frees_after: u32| {
            let (asked, waited) = (std::cell::Cell::new(0), std::cell::Cell::new(Duration::ZERO));
            let ask = || {
                asked.set(asked.get() + 1);
                if asked.get() > frees_after { Ok(()) } else { Err(Failure::say(exit, "taken")) }
            };
            let done = once_free(ask, || waited.get(), || waited.set(waited.get() + FREE_STEP));
            (done.map_err(|failure| failure.exit), waited.get())
        };
        assert_eq!(waits(Exit::NoPermission, 0), (Ok(()), Duration::ZERO));
        assert_eq!(waits(Exit::NoPermission, 10), (Ok(()), FREE_STEP * 10));
        assert_eq!(waits(Exit::NoPermission, u32::MAX), (Err(Exit::NoPermission), DENIED_MAX));
        assert_eq!(waits(Exit::Unavailable, 60), (Ok(()), FREE_STEP * 60));
        assert_eq!(waits(Exit::Unavailable, u32::MAX), (Err(Exit::Unavailable), FREE_MAX));
    }

    #[test]
    fn only_what_may_get_better_is_tried_again() {
        use Fate::{Again, Final};
        for (code, first, later) in [
            (Some(0), Final, Again),
            (Some(64), Final, Final),
            (Some(69), Final, Again),
            (Some(70), Final, Again),
            (Some(77), Final, Final),
            // Ended by a signal, and a code of nobody's: `abort`, a linker that finds no library.
            (None, Again, Again),
            (Some(127), Again, Again),
        ] {
            assert_eq!((fate(code, false), fate(code, true)), (first, later), "{code:?}");
        }
    }
}
