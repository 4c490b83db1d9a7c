//! What a person reads on the terminal. A reader that has gone (`waypost status | head -1`) is no error.

use std::{
    fmt,
    io::{self, Write},
};

/// A line on standard output.
pub(crate) fn line(text: impl fmt::Display) {
    let _reader_may_be_gone = writeln!(io::stdout(), "{text}");
}

/// Text on standard output as it is.
pub(crate) fn text(text: impl fmt::Display) {
    let _reader_may_be_gone = write!(io::stdout(), "{text}");
}

/// A line on standard error.
pub(crate) fn note(text: impl fmt::Display) {
    let _reader_may_be_gone = writeln!(io::stderr(), "{text}");
}

/// What went wrong, on standard error.
pub(crate) fn error(what: impl fmt::Display) {
    note(format_args!("waypost: {what}"));
}
