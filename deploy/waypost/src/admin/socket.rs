//! The admin socket, and the supervisor's beside it: who may open them is who may ask.

use crate::{
    config,
    exit::{Exit, Failure},
};
use rustix::{fs::Mode, process::umask};
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, chown},
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

/// Binds `path` with the mode and group of `config`. What an ended node left is removed; a node that runs is not
/// disturbed.
pub(crate) fn bind(config: &config::Admin, path: &Path) -> Result<UnixListener, Failure> {
    let group = config.group.as_deref().map(group_id).transpose()?;
    make_way(path)?;
    // Nobody may connect before mode and group are right.
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let failed = |error| Failure::io(format!("the admin socket {}", path.display()), error);
    let listener = bound.map_err(failed)?;
    if group.is_some() {
        chown(path, None, group).map_err(failed)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(config.mode.0)).map_err(failed)?;
    Ok(listener)
}

fn make_way(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::io(format!("the admin socket {}", path.display()), error)),
        Ok(about) if about.file_type().is_socket() => {}
        Ok(_) => {
            return Err(Failure::say(
                Exit::Usage,
                format_args!("the admin socket {} is another kind of file; move it away", path.display()),
            ));
        }
    }
    if UnixStream::connect(path).is_ok() {
        return Err(Failure::say(
            Exit::Unavailable,
            format_args!(
                "another node answers at {}; end it first, or give this one another [admin] socket and state_dir",
                path.display()
            ),
        ));
    }
    fs::remove_file(path).map_err(|error| Failure::io(format!("the admin socket {}", path.display()), error))
}

/// A group of this machine, by name or number. Groups of a directory service must be given by number.
fn group_id(group: &str) -> Result<u32, Failure> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let file = fs::read_to_string("/etc/group").map_err(|error| Failure::io("/etc/group", error))?;
    let id = file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    });
    id.ok_or_else(|| {
        Failure::say(
            Exit::Usage,
            format_args!("[admin] group: there is no group {group} in /etc/group; a number works too"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::Mode as FileMode;

    fn admin(path: &Path) -> config::Admin {
        config::Admin { socket: path.to_owned(), mode: FileMode(0o660), group: None, listen: None }
    }

    #[test]
    fn what_an_ended_node_left_is_removed_and_a_running_one_is_not_disturbed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = bind(&admin(&path), &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let refused = bind(&admin(&path), &path).unwrap_err();
        assert_eq!(refused.exit, Exit::Unavailable);
        drop(first);
        bind(&admin(&path), &path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&admin(&path), &path).unwrap_err().exit, Exit::Usage);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn groups_go_by_name_and_number() {
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(group_id("7").unwrap(), 7);
        assert_eq!(group_id("no-such-group").unwrap_err().exit, Exit::Usage);
    }
}
