//! Small files that must survive a power cut whole: written beside, synced, renamed, directory
//! synced. Private by default.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

/// The file in a data directory whose lock says that a process works there.
const LOCK_FILE: &str = "lock";

/// Why a process may not work in a data directory.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process works there.
    #[error(
        "another process works with {0} already (already_running): end it first, or give this one a \
         data directory of its own with --data-dir"
    )]
    Taken(String),
    /// The directory or its lock cannot be used.
    #[error("cannot use {path}: {reason}")]
    File {
        /// What.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Claims a data directory (made when it is not there) for the life of this process: the kernel gives
/// it free when the process is gone, however it ended.
///
/// # Errors
/// When another process has it, or it cannot be used. Nothing in it was touched then.
pub fn claim(dir: &Path) -> Result<(), ClaimError> {
    // Never dropped: whatever still writes there while the process leaves is this process too.
    std::mem::forget(locked(dir)?);
    Ok(())
}

fn locked(dir: &Path) -> Result<File, ClaimError> {
    let unusable = |path: &Path, error: &io::Error| ClaimError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    own_dir(dir).map_err(|error| unusable(dir, &error))?;
    let path = dir.join(LOCK_FILE);
    lock(&path).map_err(|error| match error {
        LockError::Taken => ClaimError::Taken(dir.display().to_string()),
        LockError::File(error) => unusable(&path, &error),
    })
}

/// Why a lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another process holds it")]
    Taken,
    /// Its file cannot be used.
    #[error(transparent)]
    File(io::Error),
}

/// Takes the lock that stands for a file (made when it is not there), without waiting. It is held until
/// the value is dropped; the kernel gives it free when the process is gone, however it ended.
///
/// # Errors
/// When another process holds it, or the file cannot be used.
pub fn lock(path: &Path) -> Result<File, LockError> {
    let mut make = OpenOptions::new();
    make.create(true).truncate(false).write(true).mode(0o600);
    make.custom_flags(no_link());
    let file = make
        .open(path)
        // A disk that takes nothing any more can still be read from.
        .or_else(|error| {
            let mut read = OpenOptions::new();
            read.read(true).custom_flags(no_link());
            read.open(path).map_err(|_| error)
        })
        .map_err(LockError::File)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Taken),
        Err(error) => Err(LockError::File(error.into())),
    }
}

/// From here on whatever this process makes is for its owner only. Called once, by `main`.
pub fn private_by_default() {
    let _ = rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Replaces (or makes) a file that only its owner can read. Either the old content or the new one
/// is there afterwards, never a mixture.
///
/// # Errors
/// When it cannot be written; the old content is untouched then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(no_link())
            .open(beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(beside, path)
    })();
    if written.is_err() {
        // The half-written file is of no use to anybody; the first error is what matters.
        let _ = std::fs::remove_file(beside);
        return written;
    }
    sync_parent(path)
}

/// Makes the directory's entry of a file durable.
///
/// # Errors
/// When the directory cannot be synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Makes a directory (and its parents) that only its owner can enter.
///
/// # Errors
/// When it cannot be made.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The same, and nobody else can write into it: what is read from it is believed, and what is written there
/// must not go elsewhere.
///
/// # Errors
/// When it cannot be made, or others may write there.
pub fn own_dir(path: &Path) -> io::Result<()> {
    private_dir(path)?;
    let found = std::fs::metadata(path)?;
    if found.mode() & 0o022 != 0 {
        return Err(io::Error::other(
            "others may write into it: chmod go-w, and look at what they have put there",
        ));
    }
    Ok(())
}

/// A file that is written is opened itself, never what somebody has let its name lead to.
fn no_link() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

/// The content of a file, or `None` when there is none.
///
/// # Errors
/// When it is there but cannot be read.
pub fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The content of a file, or `None` when there is none. It is not there any more afterwards, whatever was in it: it
/// was meant for one reader.
///
/// # Errors
/// When it cannot be read, or is larger than `bytes_max`.
pub fn take(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut open = OpenOptions::new();
    let mut file = match open.read(true).custom_flags(no_link()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
    };
    std::fs::remove_file(path)?;
    sync_parent(path)?;
    if file.metadata()?.len() > bytes_max {
        return Err(io::Error::other("it is too large"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let held = locked(&data).unwrap();
        let error = locked(&data).unwrap_err();
        assert!(matches!(error, ClaimError::Taken(_)), "{error}");
        assert!(error.to_string().contains(&data.display().to_string()));
        assert!(error.to_string().contains("already_running"));
        drop(held);
        locked(&data).unwrap();
    }

    #[test]
    fn a_lock_that_is_taken_is_told_from_one_that_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let _held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(LockError::Taken)));
        let nowhere = dir.path().join("none/a.lock");
        assert!(matches!(lock(&nowhere), Err(LockError::File(_))));
    }

    #[test]
    fn s30_no_link_is_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "mine").unwrap();
        for name in ["data.new", "data.lock"] {
            std::os::unix::fs::symlink(&precious, dir.path().join(name)).unwrap();
        }
        replace(&dir.path().join("data"), b"theirs").unwrap_err();
        let refused = lock(&dir.path().join("data.lock"));
        assert!(matches!(refused, Err(LockError::File(_))), "{refused:?}");
        assert_eq!(std::fs::read(&precious).unwrap(), b"mine");
        // What led elsewhere is gone, and nothing stands in the way any more.
        replace(&dir.path().join("data"), b"ours").unwrap();
        assert_eq!(std::fs::read(dir.path().join("data")).unwrap(), b"ours");
    }

    #[test]
    fn what_is_for_one_reader_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        assert_eq!(take(&path, 4).unwrap(), None);
        replace(&path, b"ours").unwrap();
        assert_eq!(take(&path, 4).unwrap(), Some(b"ours".to_vec()));
        assert_eq!(take(&path, 4).unwrap(), None);
        replace(&path, b"large").unwrap();
        take(&path, 4).unwrap_err();
        std::os::unix::fs::symlink(dir.path().join("lock"), &path).unwrap();
        take(&path, 4).unwrap_err();
        assert_eq!(take(&path, 4).unwrap(), None);
    }

    #[test]
    fn s30_a_directory_that_others_may_write_to_is_not_worked_in() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        own_dir(&data).unwrap();
        assert_eq!(std::fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
        for mode in [0o770, 0o702, 0o1777] {
            std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = own_dir(&data).unwrap_err();
            assert!(error.to_string().contains("chmod"), "{mode:o}: {error}");
            locked(&data).unwrap_err();
        }
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
        own_dir(&data).unwrap();
    }
}
