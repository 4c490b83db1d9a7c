//! How the process ends, and what it says when it could not do what was asked.

use std::{fmt, io, process::ExitCode};

/// The codes of sysexits.h that administrators' tools know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was done.
    Fine = 0,
    /// The command line or the configuration is wrong (EX_USAGE).
    Usage = 64,
    /// Something outside is not there: a server, an address, a running node (EX_UNAVAILABLE).
    Unavailable = 69,
    /// A bug of ours (EX_SOFTWARE).
    Bug = 70,
    /// The system does not let us (EX_NOPERM).
    NoPermission = 77,
}

impl Exit {
    /// Whose code this is.
    pub(crate) fn of_code(code: i32) -> Option<Self> {
        [Self::Fine, Self::Usage, Self::Unavailable, Self::Bug, Self::NoPermission]
            .into_iter()
            .find(|exit| *exit as i32 == code)
    }

    /// The code of an error of the system: no right to it, or else `other`.
    pub(crate) fn of(error: &io::Error, other: Self) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied { Self::NoPermission } else { other }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What could not be done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// With its causes; the last says what to do.
    error: anyhow::Error,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    /// A failure in words.
    pub(crate) fn say(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{what}") }
    }

    /// The same, with another code.
    pub(crate) fn ending(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The error that it comes from, if it is a `T`.
    pub(crate) fn cause<T: std::error::Error + Send + Sync + 'static>(&self) -> Option<&T> {
        self.error.downcast_ref()
    }

    /// Something of the system: rights, or a thing that is not there.
    pub(crate) fn io(what: impl fmt::Display + Send + Sync + 'static, error: io::Error) -> Self {
        let exit = Exit::of(&error, Exit::Unavailable);
        Self { exit, error: anyhow::Error::new(error).context(what.to_string()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}
