//! `waypost ca init --interception`.

use crate::{
    config::Surroundings,
    exit::{Exit, Failure},
    say, trust,
};
use epc::tls::authority::{Authority, AuthorityError, Created};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Makes an authority for `permit` in `dir` and says what to do with it.
pub(crate) fn init(permit: &[String], dir: Option<PathBuf>) -> Result<Exit, Failure> {
    let dir = dir.unwrap_or_else(|| Surroundings::of_process().state_dir.join("ca"));
    let made = create(&dir, permit)?;
    say::text(format_args!(
        "Made an interception authority for {}\n\n\
         Install in the mail programs:  {}\n\
         SHA-256 (compare it there):    {}\n\
         What the node signs with:      {}\n\
         Take this one offline:         {}\n\n\
         [tls] of the configuration:    ca_dir = {:?}\n",
        permit.join(" "),
        made.root_cert.display(),
        trust::colons(&made.root_sha256),
        made.issuing_key.display(),
        made.root_key.display(),
        dir.display().to_string(),
    ));
    Ok(Exit::Fine)
}

/// Makes an authority for `permit` in `dir`.
pub(crate) fn create(dir: &Path, permit: &[String]) -> Result<Created, Failure> {
    Authority::create(dir, permit).map_err(|error| {
        let exit = match &error {
            AuthorityError::File(epc::tls::files::FileError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::NoPermission
            }
            AuthorityError::File(_) | AuthorityError::Make(_) => Exit::Unavailable,
            AuthorityError::Exists(_)
            | AuthorityError::NoNames
            | AuthorityError::BadName(_)
            | AuthorityError::NotPermitted(_) => Exit::Usage,
            _ => Exit::Unavailable,
        };
        Failure::new(exit, error)
    })
}
