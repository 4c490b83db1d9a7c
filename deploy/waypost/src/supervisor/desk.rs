//! Where the supervisor is asked, also while its node hangs: a Unix socket beside the node's own, for the same people. A
//! question is a line, and so is the answer, in JSON; what is not understood is answered with an error.

use crate::{
    admin::socket,
    api::{Done, Trouble},
    config,
    exit::Failure,
    supervisor::{Program, rights},
};
use discovery_linux::supervisor::{Control, Report};
use serde::Serialize;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
            .spawn(move || serve(&listener, &Asked::new(control, seen, program)))
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        Ok(Self { socket })
    }

    /// Nobody finds it any more.
    pub(super) fn close(self) {
        let _somebody_removed_it = std::fs::remove_file(self.socket);
    }
}

/// Who answers, and how busy they are.
#[derive(Clone)]
struct Asked {
    control: Control,
    seen: Seen,
    program: Program,
    /// Whether somebody waits for an upgrade.
    upgrading: Arc<AtomicBool>,
    /// Whether only what cannot wait has a place.
    full: bool,
}

impl Asked {
    fn new(control: Control, seen: Seen, program: Program) -> Self {
        Self { control, seen, program, upgrading: Arc::default(), full: false }
    }

    fn upgrade(&self) -> Result<(), String> {
        if self.upgrading.swap(true, Ordering::AcqRel) {
            return Err("busy: an upgrade is on its way already".to_owned());
        }
        // A check is in no hurry, and this thread does nothing else.
        rights::as_others();
        let done = self.program.would_run(CHECK_MAX).and_then(|()| self.control.upgrade());
        self.upgrading.store(false, Ordering::Release);
        done
    }
}

fn serve(listener: &UnixListener, asked: &Asked) {
    let asking = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Descriptors may be scarce for a moment.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        let before = asking.fetch_add(1, Ordering::Relaxed);
        let full = before >= ASKING_MAX;
        if before >= ASKING_MAX + BYPASSING_MAX {
            asking.fetch_sub(1, Ordering::Relaxed);
            let _gone =
                stream.set_nonblocking(true).and_then(|()| (&stream).write_all(trouble(BUSY).as_bytes()));
            continue;
        }
        let (asked, done) = (Asked { full, ..asked.clone() }, Arc::clone(&asking));
        let answering = thread::Builder::new().spawn(move || {
            // Who hangs up while it is asked asks nothing.
            let _gone = answer(&stream, &asked);
            done.fetch_sub(1, Ordering::Relaxed);
        });
        if answering.is_err() {
            asking.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(stream: &UnixStream, asked: &Asked) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_OCTETS_MAX)).read_line(&mut line)?;
    let answer = match Question::read(line.trim_end()) {
        Some(Question::Status | Question::Upgrade) if asked.full => trouble(BUSY),
        Some(Question::Status) => match asked.seen.get() {
            Some(report) => json(&super::describe(&report)),
            None => trouble("the supervisor is starting"),
        },
        Some(Question::Bypass(on)) => {
            tracing::warn!(on, "bypass");
            match asked.control.bypass(on) {
                Ok(()) => json(&Done { done: true }),
                Err(why) => trouble(&why),
            }
        }
        Some(Question::Upgrade) => {
            tracing::info!("upgrade");
            match asked.upgrade() {
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
/// Beyond these, of those who want connections to flow past.
const BYPASSING_MAX: usize = 16;
const BUSY: &str = "busy: too many ask at once; ask again in a moment";
/// A configuration is read in milliseconds; what it names may be on a slow disk.
const CHECK_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(control: &Control) -> Asked {
        let program = Program { executable: "/nonexistent".into(), file: "/nonexistent".into() };
        Asked::new(control.clone(), Seen::default(), program)
    }

    fn said(asked: &Asked, line: &str) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(line.as_bytes()).unwrap();
        answer(&theirs, asked).unwrap();
        drop(theirs);
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        said
    }

    #[test]
    fn one_upgrade_at_a_time_and_bypass_has_a_place() {
        let (control, controlled) = Control::new().unwrap();
        let asked = asked(&control);
        asked.upgrading.store(true, Ordering::Release);
        assert!(said(&asked, "upgrade\n").contains("busy: an upgrade"));
        asked.upgrading.store(false, Ordering::Release);
        assert!(said(&asked, "upgrade\n").contains("/nonexistent"), "and later it is tried again");
        assert!(said(&asked, "upgrade\n").contains("/nonexistent"));
        let full = Asked { full: true, ..asked };
        assert!(said(&full, "status\n").contains(BUSY));
        assert!(said(&full, "upgrade\n").contains(BUSY));
        // It is asked of the supervisor, which is gone here.
        drop(controlled);
        assert!(said(&full, "bypass on\n").contains("the supervisor ends"));
    }

    #[test]
    fn the_socket_is_beside_the_nodes() {
        let beside = beside(Path::new("/run/waypost/admin.sock"));
        assert_eq!(beside, Path::new("/run/waypost/supervisor-admin.sock"));
    }

    #[test]
    fn a_question_that_nobody_knows_is_answered_and_a_long_one_is_cut() {
        let (control, _controlled) = Control::new().unwrap();
        let asked = asked(&control);
        for (line, answered) in [
            ("status\n", "is starting"),
            ("dance\n", "another version"),
            (&"x".repeat(1000), "another version"),
        ] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(line.as_bytes()).unwrap();
            answer(&theirs, &asked).unwrap();
            drop(theirs);
            let mut said = String::new();
            let _cut = ours.read_to_string(&mut said);
            assert!(said.contains(answered), "{line:?}: {said:?}");
        }
    }
}
