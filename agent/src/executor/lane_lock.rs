//! The kernel's word on who acts on a lane: a lock on one byte of one file, whose place is the lane's hash.
//!
//! Which command may begin `lanes` says, also across two instances (`handover`). This lock is for what should
//! not happen: should two instances believe that they may act on a lane, the second waits. The file is never
//! removed, so that all lock the same one; a lock ends with the process that holds it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// How often a lock is tried that another holds.
pub(super) const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Where the locks are.
#[derive(Debug, Clone)]
pub struct LaneLocks(PathBuf);

/// A lane that is held, until this is dropped.
#[derive(Debug)]
pub(super) struct LaneLock {
    _file: File,
}

impl LaneLocks {
    /// Locks in a file of that directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("lanes"))
    }

    /// Takes the lock, unless another instance (or another command of this one) has it.
    pub(super) fn try_lock(&self, lane: &str) -> io::Result<Option<LaneLock>> {
        // A description of its own for each lock: that is whose the lock is.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.0)?;
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: place_of(lane),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Ok(Some(LaneLock { _file: file })),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// FNV-1a, because two versions of the agent have to agree on it.
fn place_of(lane: &str) -> i64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in lane.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // A place in a file has a sign, and one byte behind it has to exist.
    i64::try_from(hash >> 2).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_one_holder_and_lanes_do_not_hold_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (LaneLocks::new(dir.path()), LaneLocks::new(dir.path()));
        let held = here.try_lock("container/web").unwrap().unwrap();
        assert!(there.try_lock("container/web").unwrap().is_none());
        assert!(here.try_lock("container/web").unwrap().is_none());
        let other = there.try_lock("container/db").unwrap();
        assert!(other.is_some());
        drop(held);
        assert!(there.try_lock("container/web").unwrap().is_some());
    }

    #[test]
    fn places_do_not_change_between_versions() {
        assert_eq!(place_of("host"), place_of("host"));
        assert_eq!(place_of(""), (0xcbf2_9ce4_8422_2325_u64 >> 2) as i64);
    }
}
