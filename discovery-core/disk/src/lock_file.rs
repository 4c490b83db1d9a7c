//! One process at a time: a locked file that says who has the store.

use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process,
};

/// Holds the store until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum Refused {
    /// Another process has it; its number, when it can be read.
    Held(Option<u32>),
    /// What the disk says.
    Io(io::Error),
}

impl LockFile {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn take(path: &Path) -> Result<Self, Refused> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(Refused::Io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                let mut text = String::new();
                let holder =
                    file.take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(Refused::Held(holder));
            }
            Err(error) => return Err(Refused::Io(error.into())),
        }
        let note =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", process::id()));
        note.map_err(Refused::Io)?;
        Ok(Self { _file: file })
    }
}
