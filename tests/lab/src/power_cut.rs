//! A disk that can lose power: ext4 on a loop device, shut down without flushing its journal. What was not synced
//! is gone afterwards, which a killed process alone never shows: the page cache survives it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::net::run;
use crate::sys;

/// A mounted disk. Dropping it unmounts.
#[derive(Debug)]
pub struct CuttableDisk {
    directory: PathBuf,
    image: PathBuf,
    mountpoint: PathBuf,
}

impl CuttableDisk {
    /// Makes and mounts a disk of so many MiB whose files stand in `directory`.
    ///
    /// # Errors
    /// When the caller is not root, no loop device is free, or mkfs.ext4 is missing.
    pub fn create(directory: &Path, mebibytes: u64) -> anyhow::Result<Self> {
        let (image, mountpoint) = (directory.join("disk.ext4"), directory.join("disk"));
        ensure!(!image.exists(), "{} holds a disk already", directory.display());
        fs::create_dir_all(&mountpoint).with_context(|| format!("cannot make {}", mountpoint.display()))?;
        // Every `ip netns exec` copies the table of mounts, and a copy keeps the dead file system alive: mounts below a
        // shared one come and go in the copies too.
        run(Command::new("mount").arg("--bind").arg(directory).arg(directory))?;
        run(Command::new("mount").arg("--make-shared").arg(directory))?;
        fs::File::create(&image)?.set_len(mebibytes << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let disk = Self { directory: directory.to_owned(), image, mountpoint };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Cuts the power: from here every access fails until [`CuttableDisk::restore`].
    ///
    /// # Errors
    /// When the disk is not mounted.
    pub fn cut(&self) -> anyhow::Result<()> {
        sys::shutdown_file_system(&self.mountpoint).context("cannot shut the file system down")
    }

    /// Mounts again, with the journal's recovery, as after the power came back. End what holds files open first.
    ///
    /// # Errors
    /// When something still uses the disk.
    pub fn restore(&self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.mountpoint))?;
        self.mount()
    }

    fn mount(&self) -> anyhow::Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mountpoint))
    }
}

impl Drop for CuttableDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still hold a file.
        drop(run(Command::new("umount").arg("-l").arg(&self.mountpoint)));
        drop(fs::remove_file(&self.image));
        drop(fs::remove_dir(&self.mountpoint));
        drop(run(Command::new("umount").arg("-l").arg(&self.directory)));
    }
}
