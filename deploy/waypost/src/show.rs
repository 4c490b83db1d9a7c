//! `waypost config show`.

use crate::{
    config::{self, FileUse},
    exit::{Exit, Failure},
    file, say,
};
use std::path::Path;

/// Prints what is in force; files that it names are not looked at, so that it works on another machine too.
pub(crate) fn show(file: &Path, changed: bool) -> Result<Exit, Failure> {
    let loaded = file::load(file, FileUse::Ignore)?;
    file::usable(&loaded, file)?;
    say::text(config::show(&loaded, changed));
    Ok(Exit::Fine)
}
