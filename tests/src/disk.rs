//! A small disk of a test's own, in memory, that can be filled to the last byte.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room for a database with its log, and little more; and for some hundred files.
const SIZE: &str = "size=12m,nr_inodes=400,mode=700";

/// A mounted disk; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Whether this machine lets us mount at all (root, with the right to).
    #[must_use]
    pub fn can_be_had() -> bool {
        let dir = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "none"])
            .arg(dir.path())
            .output();
        let can = mounted.is_ok_and(|output| output.status.success());
        if can {
            let _ = Command::new("umount").arg(dir.path()).output();
        } else {
            eprintln!("not looked at: no disk can be mounted here (it takes root)");
        }
        can
    }

    /// Mounts one.
    ///
    /// # Panics
    /// When it cannot be had; ask first.
    #[must_use]
    pub fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "none"])
            .arg(at)
            .output()
            .expect("mount can be started");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self { at: at.to_owned() }
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Takes all the room there is.
    ///
    /// # Panics
    /// When the filler cannot be made.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("a file");
        // Down to single bytes, so that not even a short record fits.
        for size in [64 * 1024, 4096, 64, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Takes all the files that there may be, and none of the room.
    ///
    /// # Panics
    /// When there is no end to them.
    pub fn take_files(&self) {
        let dir = self.files();
        std::fs::create_dir(&dir).expect("a directory");
        let taken = (0..100_000).find(|n| std::fs::File::create(dir.join(n.to_string())).is_err());
        assert!(taken.is_some(), "the disk has files without end");
    }

    /// Gives them back.
    ///
    /// # Panics
    /// When they were not taken.
    pub fn give_files(&self) {
        std::fs::remove_dir_all(self.files()).expect("they were taken");
    }

    fn files(&self) -> PathBuf {
        self.at.join("files")
    }

    /// Gives it back.
    ///
    /// # Panics
    /// When the filler is not there.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may still hold it for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}
