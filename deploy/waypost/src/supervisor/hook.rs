//! The operator's command that is told when connections flow past this node and when they are led to it again: what works
//! the relay of a network card (US 9,172,620, the failover bypass). Run in a thread of its own, for it may take its time.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Hook {
    tell: Sender<bool>,
    thread: thread::JoinHandle<()>,
    told: Option<bool>,
}

impl Hook {
    /// Of a program and its arguments; `on` or `off` comes behind them.
    pub(super) fn start(command: Vec<String>) -> io::Result<Self> {
        let (tell, told) = channel();
        let thread =
            thread::Builder::new().name("bypass-command".to_owned()).spawn(move || serve(&command, &told))?;
        Ok(Self { tell, thread, told: None })
    }

    /// Whether connections flow past. Does not wait. Before they were led here for the first time there is nothing to say.
    pub(super) fn bypass(&mut self, on: bool) {
        if self.told == Some(on) || (self.told.is_none() && on) {
            return;
        }
        self.told = Some(on);
        let _thread_is_gone = self.tell.send(on);
    }

    /// Nobody is at work any more. Waits until it has been told.
    pub(super) fn end(mut self) {
        self.bypass(true);
        drop(self.tell);
        let _panicked = self.thread.join();
    }
}

fn serve(command: &[String], told: &Receiver<bool>) {
    let mut done = None;
    let mut owed = None;
    loop {
        let word = match owed {
            Some(_) => told.recv_timeout(PAUSE),
            None => told.recv().map_err(RecvTimeoutError::from),
        };
        let mut on = match (word, owed) {
            (Ok(on), _) | (Err(RecvTimeoutError::Timeout), Some(on)) => on,
            (Err(RecvTimeoutError::Timeout), None) => continue,
            (Err(RecvTimeoutError::Disconnected), _) => return,
        };
        // What is out of date is not run.
        while let Ok(newer) = told.try_recv() {
            on = newer;
        }
        owed = None;
        if done == Some(on) {
            continue;
        }
        if run_once(command, on, PATIENCE) {
            done = Some(on);
        } else {
            // Nobody knows what it has done.
            (done, owed) = (None, Some(on));
        }
    }
}

/// Runs it, waits for it, and says what went wrong. Whether it did.
pub(crate) fn run_once(command: &[String], on: bool, patience: Duration) -> bool {
    if command.is_empty() {
        return true;
    }
    let done = run(command, on, patience);
    match &done {
        Ok(()) => tracing::info!(on, "bypass_command has been run"),
        Err(why) => tracing::error!(on, why, "bypass_command"),
    }
    done.is_ok()
}

fn run(command: &[String], on: bool, patience: Duration) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .arg(if on { "on" } else { "off" })
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // What it starts is ended with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    match end_of(&mut child, patience) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("{program}: {status}")),
        Ok(None) => Err(format!("{program} took longer than {} s, and was ended", patience.as_secs_f32())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// Waits for the end of what leads a group of processes; none when all of them had to be ended.
pub(super) fn end_of(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() < until => thread::sleep(LOOK_EVERY),
            None => {
                let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(group) = group {
                    let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _reaped = child.wait();
                return Ok(None);
            }
        }
    }
}

/// A relay clicks within milliseconds; a card is asked over a slow bus at worst.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Until a command that failed is tried again.
const PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// A command that writes down what it is told.
    fn writes(file: &Path) -> Vec<String> {
        let script = "printf '%s ' \"$2\" >> \"$1\"";
        ["sh", "-c", script, "sh", &file.to_string_lossy()].map(str::to_owned).to_vec()
    }

    #[test]
    fn it_is_told_when_that_changes_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("told");
        let mut hook = Hook::start(writes(&file)).unwrap();
        // Nothing was ever led here: there is nothing to undo.
        hook.bypass(true);
        for on in [false, false] {
            hook.bypass(on);
        }
        let start = Instant::now();
        while !file.exists() {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
        hook.end();
        assert_eq!(fs::read_to_string(&file).unwrap(), "off on ");
        let idle = dir.path().join("idle");
        Hook::start(writes(&idle)).unwrap().end();
        assert!(!idle.exists());
    }

    #[test]
    fn one_that_failed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("told");
        let script = "printf '%s ' \"$2\" >> \"$1\"; [ \"$(wc -w < \"$1\")\" -ge 2 ]";
        let command = ["sh", "-c", script, "sh", &file.to_string_lossy()].map(str::to_owned).to_vec();
        let mut hook = Hook::start(command).unwrap();
        hook.bypass(false);
        let start = Instant::now();
        while fs::read_to_string(&file).unwrap_or_default() != "off off " {
            assert!(start.elapsed() < Duration::from_secs(20), "it is not tried again");
            thread::sleep(Duration::from_millis(20));
        }
        hook.end();
        assert_eq!(fs::read_to_string(&file).unwrap(), "off off on ");
    }

    #[test]
    fn a_name_with_blanks_is_no_second_word_and_failures_are_told() {
        let missing = run(&["no such program".to_owned()], true, PATIENCE).unwrap_err();
        assert!(missing.contains("no such program cannot be run"), "{missing}");
        let fails = ["sh", "-c", "exit 3"].map(str::to_owned);
        assert!(run(&fails, true, PATIENCE).unwrap_err().contains("exit status: 3"));
    }

    #[test]
    fn it_is_not_waited_for_for_ever_nor_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("late");
        let script = "(sleep 2; touch \"$1\") & sleep 60";
        let command = ["sh", "-c", script, "sh", &file.to_string_lossy()].map(str::to_owned);
        let start = Instant::now();
        assert!(run(&command, true, Duration::from_millis(200)).unwrap_err().contains("was ended"));
        assert!(start.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(2500));
        assert!(!file.exists(), "what it started goes on");
    }
}
