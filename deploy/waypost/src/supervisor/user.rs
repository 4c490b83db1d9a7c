//! The node's own user: who the process is that reads what strangers send, where supervisor and netd are root.
//!
//! The state directory stays root's, with the sticky bit, and its group is the user's: the node makes files in it, and
//! cannot put another one in the place of the supervisor's socket. What netd keeps is in a directory within, which is
//! root's alone.

use crate::{
    config,
    exit::{Exit, Failure},
};
use rustix::{
    fs::{Gid, Uid},
    process::geteuid,
};
use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    str::FromStr,
};

/// A user with his group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
}

impl User {
    /// A user of this machine, by name or number. Users of a directory service must be given by number with their group:
    /// `997:997`.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let passwd = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
        Self::found(name, &passwd)
    }

    fn found(name: &str, passwd: &str) -> Result<Self, String> {
        let given = name.parse().ok();
        let user = given.or_else(|| {
            passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                let (login, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
                (login == name || uid == name).then(|| format!("{uid}:{gid}").parse().ok())?
            })
        });
        match user {
            // Root's group owns files that it may write.
            Some(Self { uid, gid }) if uid.is_root() || gid.is_root() => {
                Err("root is whom this is to keep the node from being".to_owned())
            }
            Some(user) => Ok(user),
            None => Err(format!("there is no user {name} in /etc/passwd; uid:gid works too")),
        }
    }

    /// The user that a node of this configuration gets here: none where it is not root that starts it, for then it stays who
    /// it is.
    ///
    /// # Errors
    /// When there is no such user.
    pub(crate) fn of(name: Option<&str>) -> Result<Option<Self>, Failure> {
        let Some(name) = name.filter(|_| geteuid().is_root()) else { return Ok(None) };
        let user =
            Self::named(name).map_err(|why| Failure::say(Exit::Usage, format_args!("[node] user: {why}")))?;
        Ok(Some(user))
    }

    /// Has a directory that both use be so that neither harms the other. Needs root's rights.
    ///
    /// # Errors
    /// When it is somebody else's, or cannot be made.
    pub(crate) fn share(self, dir: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::io(format!("the directory {}", dir.display()), error);
        if let Some(above) = dir.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(above).map_err(failed)?;
        }
        make(dir).map_err(failed)?;
        let about = fs::symlink_metadata(dir).map_err(failed)?;
        if !about.is_dir() || about.uid() != 0 {
            let what = format_args!(
                "{0} is not root's, so whoever it belongs to could put other files in the place of those that root reads and \
                 writes there; with [node] user only what is in it is the node's: chown root {0}",
                dir.display()
            );
            return Err(Failure::say(Exit::Usage, what));
        }
        let whole = fs::canonicalize(dir).map_err(failed)?;
        for above in whole.ancestors().skip(1) {
            let about = fs::metadata(above).map_err(failed)?;
            if !only_root_moves(about.uid(), about.mode()) {
                let what = format_args!(
                    "{}: somebody else than root may move what is in {}, and so put another directory in its place; with \
                     [node] user all above it must be root's, and not be written by others",
                    dir.display(),
                    above.display()
                );
                return Err(Failure::say(Exit::Usage, what));
            }
        }
        if about.gid() != self.gid.as_raw() {
            chown(dir, None, Some(self.gid.as_raw())).map_err(failed)?;
        }
        let mode = about.permissions().mode();
        if mode & SHARED != SHARED {
            fs::set_permissions(dir, fs::Permissions::from_mode((mode | SHARED) & 0o7777)).map_err(failed)?;
        }
        Ok(())
    }

    /// Has a directory, in one that is shared, be root's alone.
    ///
    /// # Errors
    /// When it is somebody else's, or cannot be made.
    pub(crate) fn keep_out(dir: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::io(format!("the directory {}", dir.display()), error);
        make(dir).map_err(failed)?;
        let about = fs::symlink_metadata(dir).map_err(failed)?;
        if about.is_dir() && about.uid() == 0 && about.mode() & 0o077 == 0 {
            return Ok(());
        }
        let what = format_args!(
            "{0} is to be root's alone, for netd keeps there what it has learnt; remove it, or: chown -R root:root {0}; chmod 700 {0}",
            dir.display()
        );
        Err(Failure::say(Exit::Usage, what))
    }

    /// What lies in the state directory and is root's, though the node needs it: of a node that was root until now. `file`: the
    /// configuration, which may stay so.
    pub(crate) fn left_behind(state_dir: &Path, file: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(state_dir) else { return Vec::new() };
        let roots = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|about| about.uid() == 0);
        let names =
            entries.flatten().filter(roots).map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| !of_root(name)).collect();
        names.retain(|name| Some(name.as_ref()) != file.file_name());
        names.sort();
        names
    }
}

/// Files of supervisor and netd.
fn of_root(name: &str) -> bool {
    name == NETD || name.starts_with("supervisor-")
}

/// Where netd keeps what it has learnt.
pub(crate) fn netd_dir(node: &config::Node) -> PathBuf {
    let apart = node.user.is_some() && geteuid().is_root();
    if apart { node.state_dir.join(NETD) } else { node.state_dir.clone() }
}

const NETD: &str = "netd";

fn make(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether nobody else renames what is in a directory.
fn only_root_moves(uid: u32, mode: u32) -> bool {
    let open = mode & 0o022 != 0 && mode & 0o1000 == 0;
    uid == 0 && !open || discovery_core::mutants::on("user-anywhere")
}

/// The node makes files; only whose they are takes them away.
const SHARED: u32 = 0o1770;

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid.as_raw(), self.gid.as_raw())
    }
}

impl FromStr for User {
    type Err = &'static str;

    /// As it is written: `uid:gid`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
        let ids = text.split_once(':').and_then(|(uid, gid)| Some((number(uid)?, number(gid)?)));
        let (uid, gid) = ids.ok_or("expected: uid:gid")?;
        Ok(Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nmail:x:8:12:mail:/var/mail:/usr/sbin/nologin\nbroken\n";

    #[test]
    fn users_go_by_name_and_number_and_root_is_none() {
        let found = |name| User::found(name, PASSWD).map(|user| user.to_string());
        assert_eq!(found("mail").as_deref(), Ok("8:12"));
        assert_eq!(found("8").as_deref(), Ok("8:12"));
        assert_eq!(found("997:996").as_deref(), Ok("997:996"), "of a directory service");
        for nobody in ["broken", "997", "", "x", "4294967295:1", "-1:1", "1:2:3"] {
            assert!(found(nobody).unwrap_err().contains("there is no user"), "{nobody}");
        }
        for root in ["root", "0", "0:7", "997:0"] {
            assert!(found(root).unwrap_err().starts_with("root is whom"), "{root}");
        }
    }

    #[test]
    fn only_where_root_alone_renames_is_a_directory_shared() {
        for (uid, mode, safe) in [
            (0, 0o755, true),
            (0, 0o700, true),
            (0, 0o1777, true),
            (0, 0o777, false),
            (0, 0o775, false),
            (990, 0o755, false),
            (990, 0o1777, false),
        ] {
            assert_eq!(only_root_moves(uid, 0o40_000 | mode), safe, "{uid} {mode:o}");
        }
    }

    #[test]
    fn what_is_roots_own_is_not_left_behind() {
        for (name, own) in [
            ("netd", true),
            ("supervisor-admin.sock", true),
            ("user.key", false),
            ("store", false),
            ("admin.sock", false),
        ] {
            assert_eq!(of_root(name), own, "{name}");
        }
    }
}
