//! What every disk must do, run over the real one and the one with faults.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "it reports by panicking")]

use discovery_core::seam::disk::Disk;
use std::io::ErrorKind;

/// Panics where `disk`, which is empty, does not keep what the seam promises.
pub fn disk_battery(disk: &dyn Disk) {
    assert_eq!(disk.list("d").unwrap(), Vec::<String>::new());
    disk.create_dir("d/e").unwrap();
    disk.create_dir("d/e").unwrap();

    let file = disk.create("d/one").unwrap();
    assert!(file.is_empty().unwrap());
    file.append(b"abc").unwrap();
    file.append(b"def").unwrap();
    file.sync().unwrap();
    let mut buf = [0; 4];
    assert_eq!((file.len().unwrap(), file.read_at(1, &mut buf).unwrap(), &buf), (6, 4, b"bcde"));
    assert_eq!(file.read_at(6, &mut buf).unwrap(), 0);
    assert_eq!(disk.create("d/one").err().map(|e| e.kind()), Some(ErrorKind::AlreadyExists));
    assert_eq!(disk.open("d/two").err().map(|e| e.kind()), Some(ErrorKind::NotFound));
    assert_eq!(disk.remove("d/two").err().map(|e| e.kind()), Some(ErrorKind::NotFound));

    disk.create("d/two").unwrap().append(b"old").unwrap();
    let old = disk.open("d/two").unwrap();
    disk.rename("d/one", "d/two").unwrap();
    disk.sync_dir("d").unwrap();
    assert_eq!(disk.list("d").unwrap(), ["two"], "directories are not listed");
    assert_eq!(disk.open("d/two").unwrap().len().unwrap(), 6);
    assert_eq!(old.len().unwrap(), 3, "an open file outlives its name");
    disk.remove("d/two").unwrap();
    assert_eq!(old.read_at(0, &mut buf).unwrap(), 3);

    for outside in ["", "/etc/passwd", "../x", "d/../../x", "."] {
        assert!(disk.open(outside).is_err(), "{outside:?}");
        assert!(disk.create(outside).is_err(), "{outside:?}");
    }
}
