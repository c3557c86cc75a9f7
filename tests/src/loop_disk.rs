//! A disk of a test's own whose power can be cut: ext4 in a file, mounted through a loop device.
//!
//! What was written and not synced lies in the kernel's memory of the mounted file system, and not in
//! the file. So a copy of the file is what a machine would find after its power was cut; who is killed
//! only, finds everything again. Files carry the name of the process that made them: what a run that
//! was killed left behind is swept by the next one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::hosts::leftovers;

const BYTES: u64 = 64 * 1024 * 1024;
const PREFIX: &str = "fairlead-loop-disk-";
/// The file system's own journal is committed so seldom, that nothing gets onto the disk without
/// having been synced.
const OPTIONS: &str = "loop,commit=300";

static NEXT: AtomicU32 = AtomicU32::new(1);
static SWEPT: Once = Once::new();

/// A mounted disk; unmounted and removed when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    at: PathBuf,
    file: PathBuf,
}

impl LoopDisk {
    /// Whether this machine has loop devices and lets us mount (root, with the right to).
    #[must_use]
    pub fn can_be_had() -> bool {
        let dir = tempfile::tempdir().expect("a directory");
        let can = Self::try_mount(dir.path()).map(drop);
        if let Err(why) = &can {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("of power cuts");
            eprintln!("SKIPPED test {test}: no loop device can be mounted here: {why}");
        }
        can.is_ok()
    }

    /// Makes one and mounts it.
    ///
    /// # Panics
    /// When it cannot be had; ask first.
    #[must_use]
    pub fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        Self::try_mount(at).unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_mount(at: &Path) -> Result<Self, String> {
        SWEPT.call_once(sweep);
        let file = new_file();
        let disk = Self {
            at: at.to_owned(),
            file,
        };
        let made = std::fs::File::create(&disk.file).and_then(|file| file.set_len(BYTES));
        made.map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", &disk.file.to_string_lossy()])?;
        disk.attach()?;
        Ok(disk)
    }

    /// The file system finds its disk broken: from now on it can only be read, also through files that are
    /// open for writing.
    ///
    /// # Panics
    /// When it cannot be told so.
    pub fn breaks(&self) {
        let at = self.at.to_string_lossy();
        run("mount", &["-o", "remount,abort", &at]).unwrap_or_else(|why| panic!("{why}"));
    }

    /// What a reboot does with a broken one: it is checked and mounted again. Everybody who works on the
    /// disk must have been killed before.
    ///
    /// # Panics
    /// When it cannot be repaired.
    pub fn repair(&self) {
        let (file, at) = (self.file.to_string_lossy(), self.at.to_string_lossy());
        run("umount", &[&at]).unwrap_or_else(|why| panic!("{why}"));
        // The device goes a moment later, and writes what it still has.
        while device_of(&self.file).is_some() {
            std::thread::yield_now();
        }
        // It tells by its exit code that there was something to repair.
        let checked = Command::new("e2fsck").args(["-p", &file]).output();
        let code = checked.expect("e2fsck can be started").status.code();
        assert!(code.is_some_and(|code| code <= 1), "{file}: {code:?}");
        self.attach().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Mounted for reading only, or for writing again. Nobody may have a file open for writing.
    ///
    /// # Panics
    /// When somebody has.
    pub fn read_only(&self, yes: bool) {
        let how = if yes { "remount,ro" } else { "remount,rw" };
        let at = self.at.to_string_lossy();
        run("mount", &["-o", how, &at]).unwrap_or_else(|why| panic!("{why}"));
    }

    fn attach(&self) -> Result<(), String> {
        let (file, at) = (self.file.to_string_lossy(), self.at.to_string_lossy());
        run("mount", &["-o", OPTIONS, &file, &at])
    }

    /// Puts all that was written so far onto the disk, as time would have done.
    ///
    /// # Panics
    /// When it cannot be synced.
    pub fn sync(&self) {
        let at = self.at.to_string_lossy();
        run("sync", &["-f", &at]).unwrap_or_else(|why| panic!("{why}"));
    }

    /// The power is cut: whatever was not synced is gone. Everybody who works on the disk must have
    /// been killed before.
    ///
    /// # Panics
    /// When what is left cannot be mounted.
    pub fn cut(&mut self) {
        let left = new_file();
        let (from, to) = (self.file.to_string_lossy(), left.to_string_lossy());
        run("cp", &["--sparse=always", &from, &to]).unwrap_or_else(|why| panic!("{why}"));
        detach(&self.at);
        let _ = std::fs::remove_file(&self.file);
        self.file = left;
        self.attach().unwrap_or_else(|why| panic!("{why}"));
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        detach(&self.at);
        let _ = std::fs::remove_file(&self.file);
    }
}

fn new_file() -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let owner = leftovers::owner_of(std::process::id()).unwrap_or_default();
    std::env::temp_dir().join(format!("{PREFIX}{owner}-{number}"))
}

/// Lazily: a process that was just killed may still hold it for a moment. The loop device goes with the
/// mount.
fn detach(at: &Path) {
    let _ = Command::new("umount").arg("-l").arg(at).output();
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", said.trim()))
}

/// Unmounts and removes the disks of processes that are dead.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for file in entries.flatten().map(|entry| entry.path()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.rsplit_once('-'));
        if owner.is_some_and(|(owner, _)| leftovers::is_dead(owner)) {
            if let Some(at) = mounted_at(&file) {
                detach(&at);
            }
            let _ = std::fs::remove_file(&file);
        }
    }
}

/// The loop device of that file.
fn device_of(file: &Path) -> Option<PathBuf> {
    let devices = std::fs::read_dir("/sys/block").ok()?.flatten();
    let device = devices.map(|entry| entry.path()).find(|device| {
        std::fs::read_to_string(device.join("loop/backing_file"))
            .is_ok_and(|backing| Path::new(backing.trim()) == file)
    })?;
    Some(Path::new("/dev").join(device.file_name()?))
}

/// Where the loop device of that file is mounted.
fn mounted_at(file: &Path) -> Option<PathBuf> {
    let device = device_of(file)?;
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (Path::new(fields.next()?) == device).then(|| fields.next().map(PathBuf::from))?
    })
}
