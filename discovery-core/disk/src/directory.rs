//! The store's directory on a real file system: files 0600, directories 0700, no link followed, no way out.

use discovery_core::seam::disk::{Disk, DiskFile};
use rustix::fs::OFlags;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

/// A directory of the file system.
#[derive(Debug)]
pub struct DirectoryDisk {
    root: PathBuf,
}

impl DirectoryDisk {
    /// Takes a directory, and makes it with its parents where it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(root: &Path) -> io::Result<Self> {
        make_dir(root)?;
        Ok(Self { root: root.to_owned() })
    }

    /// Where `path` lies; refuses everything but plain names below the root.
    fn locate(&self, path: &str) -> io::Result<PathBuf> {
        let plain =
            !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not a path inside: {path:?}")));
        }
        Ok(self.root.join(path))
    }
}

impl Disk for DirectoryDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(true).mode(0o600);
        Ok(Box::new(DirectoryFile(options.open(self.locate(path)?)?)))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        if let Ok(flags) = i32::try_from(OFlags::NOFOLLOW.bits()) {
            options.custom_flags(flags);
        }
        Ok(Box::new(DirectoryFile(options.open(self.locate(path)?)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.locate(from)?, self.locate(to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.locate(path)?)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.locate(dir)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours.
            if let (false, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        make_dir(&self.locate(dir)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.locate(dir)?)?.sync_all()
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

struct DirectoryFile(File);

impl DiskFile for DirectoryFile {
    fn append(&self, octets: &[u8]) -> io::Result<()> {
        (&self.0).write_all(octets)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::battery::disk_battery;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_directory_keeps_what_the_seam_promises() {
        let root = tempfile::tempdir().unwrap();
        disk_battery(&DirectoryDisk::new(&root.path().join("a/store")).unwrap());
    }

    #[test]
    fn files_are_the_owners_only_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let disk = DirectoryDisk::new(root.path()).unwrap();
        disk.create_dir("d/e").unwrap();
        disk.create("d/e/f").unwrap();
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("d"), mode("d/e"), mode("d/e/f")), (0o700, 0o700, 0o600));
        symlink("d/e/f", root.path().join("link")).unwrap();
        assert!(disk.open("link").is_err());
    }
}
