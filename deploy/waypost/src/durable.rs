//! Small files that must not be half there.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Who may read a new file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Audience {
    /// Only its owner: a secret.
    Owner,
    /// Everybody.
    All,
}

/// Writes `octets` beside `path`, syncs, renames over it: a crash leaves what was there, or all of it.
pub(crate) fn write(path: &Path, octets: &[u8], audience: Audience) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What a crash left here may have a wrong mode, which counts only when a file is made.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mode = match audience {
        Audience::Owner => 0o600,
        Audience::All => 0o644,
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(octets)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => fs::File::open(dir)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}
