//! Where the supervisor is asked, also while its node hangs: a Unix socket beside the node's own, for the same people. A
//! question is a line, and so is the answer, in JSON; what is not understood is answered with an error.

use crate::{
    admin::socket,
    api::{Done, Trouble},
    config,
    exit::Failure,
    supervisor::Program,
};
use discovery_linux::supervisor::{Control, Report};
use serde::Serialize;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// What a supervisor can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// How it stands.
    Status,
    /// New connections flow, or are taken again.
    Bypass(bool),
    /// A new node, of the executable that is there now.
    Upgrade,
}

impl Question {
    /// As it is asked.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Bypass(true) => "bypass on",
            Self::Bypass(false) => "bypass off",
            Self::Upgrade => "upgrade",
        }
    }

    fn read(line: &str) -> Option<Self> {
        [Self::Status, Self::Bypass(true), Self::Bypass(false), Self::Upgrade]
            .into_iter()
            .find(|question| question.line() == line)
    }
}

/// The socket of the supervisor of the node with this admin socket.
pub(crate) fn beside(admin: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from("supervisor-");
    name.push(admin.file_name().unwrap_or_default());
    admin.with_file_name(name)
}

/// How the supervisor stands, as it was seen last.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<Mutex<Option<Report>>>);

impl Seen {
    pub(super) fn set(&self, report: Report) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    fn get(&self) -> Option<Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// See the module's documentation.
pub(super) struct Desk {
    socket: PathBuf,
}

impl Desk {
    /// Answers from now on.
    pub(super) fn open(
        admin: &config::Admin,
        control: Control,
        seen: Seen,
        program: Program,
    ) -> Result<Self, Failure> {
        let socket = beside(&admin.socket);
        let listener = socket::bind(admin, &socket)?;
        thread::Builder::new()
            .name("desk".to_owned())
            .spawn(move || serve(&listener, &control, &seen, &program))
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        Ok(Self { socket })
    }

    /// Nobody finds it any more.
    pub(super) fn close(self) {
        let _somebody_removed_it = std::fs::remove_file(self.socket);
    }
}

fn serve(listener: &UnixListener, control: &Control, seen: &Seen, program: &Program) {
    let asking = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Descriptors may be scarce for a moment.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        if asking.fetch_add(1, Ordering::Relaxed) >= ASKING_MAX {
            asking.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (control, seen, done) = (control.clone(), seen.clone(), Arc::clone(&asking));
        let program = program.clone();
        let answering = thread::Builder::new().spawn(move || {
            // Who hangs up while it is asked asks nothing.
            let _gone = answer(&stream, &control, &seen, &program);
            done.fetch_sub(1, Ordering::Relaxed);
        });
        if answering.is_err() {
            asking.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(stream: &UnixStream, control: &Control, seen: &Seen, program: &Program) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_OCTETS_MAX)).read_line(&mut line)?;
    let answer = match Question::read(line.trim_end()) {
        Some(Question::Status) => match seen.get() {
            Some(report) => json(&super::describe(&report)),
            None => trouble("the supervisor is starting"),
        },
        Some(Question::Bypass(on)) => {
            tracing::warn!(on, "bypass");
            match control.bypass(on) {
                Ok(()) => json(&Done { done: true }),
                Err(why) => trouble(&why),
            }
        }
        Some(Question::Upgrade) => {
            tracing::info!("upgrade");
            match program.would_run().and_then(|()| control.upgrade()) {
                Ok(()) => json(&Done { done: true }),
                Err(why) => {
                    tracing::error!(why, "no upgrade");
                    trouble(&why)
                }
            }
        }
        None => trouble("this supervisor is of another version: it does not know the question"),
    };
    let mut stream = stream;
    stream.write_all(answer.as_bytes())
}

fn trouble(error: &str) -> String {
    json(&Trouble { error: error.to_owned() })
}

fn json(answer: &impl Serialize) -> String {
    let mut line = serde_json::to_string(answer).unwrap_or_default();
    line.push('\n');
    line
}

/// A question is a word or two.
const LINE_OCTETS_MAX: u64 = 64;
/// Who asks has written already.
const PATIENCE: Duration = Duration::from_secs(2);
/// People and their scripts.
const ASKING_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_beside_the_nodes() {
        let beside = beside(Path::new("/run/waypost/admin.sock"));
        assert_eq!(beside, Path::new("/run/waypost/supervisor-admin.sock"));
    }

    #[test]
    fn a_question_that_nobody_knows_is_answered_and_a_long_one_is_cut() {
        let (control, _controlled) = Control::new().unwrap();
        let program = Program { executable: "/nonexistent".into(), file: "/nonexistent".into() };
        for (asked, answered) in [
            ("status\n", "is starting"),
            ("dance\n", "another version"),
            (&"x".repeat(1000), "another version"),
        ] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(asked.as_bytes()).unwrap();
            answer(&theirs, &control, &Seen::default(), &program).unwrap();
            drop(theirs);
            let mut said = String::new();
            let _cut = ours.read_to_string(&mut said);
            assert!(said.contains(answered), "{asked:?}: {said:?}");
        }
    }
}
