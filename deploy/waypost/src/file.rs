//! The configuration file as commands meet it: read, with everything that is wrong with it said.

use crate::{
    config::{self, Config, FileUse, Loaded, Surroundings},
    exit::{Exit, Failure},
    say,
};
use std::path::Path;

/// Reads `file` and says, on standard error, what is wrong with it.
pub(crate) fn load(file: &Path, files: FileUse) -> Result<Loaded, Failure> {
    let loaded = read(file, files)?;
    complain(&loaded, file);
    Ok(loaded)
}

/// Says, on standard error, what is wrong with what was read from `file`.
pub(crate) fn complain(loaded: &Loaded, file: &Path) {
    let name = file.to_string_lossy();
    loaded.problems.iter().for_each(|problem| say::note(problem.line(&name)));
}

/// Reads `file`.
pub(crate) fn read(file: &Path, files: FileUse) -> Result<Loaded, Failure> {
    config::load(file, &Surroundings::of_process(), files).map_err(|error| {
        let exit = Exit::of(&error, Exit::Usage);
        Failure::say(exit, format_args!("the configuration {} cannot be read: {error}", file.display()))
    })
}

/// The configuration, when nothing is wrong with it.
pub(crate) fn usable<'a>(loaded: &'a Loaded, file: &Path) -> Result<&'a Config, Failure> {
    loaded.usable().ok_or_else(|| {
        Failure::say(Exit::Usage, format_args!("{} cannot be used; each line above says why", file.display()))
    })
}
