//! The supervisor becomes another version of itself, in the same process: its children notice nothing.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use fairlead_daemon::files;
use fairlead_protocol::RunId;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::handoff::decide::{Instance, Key};

/// What the next program goes on with.
const RESUME: &str = "FAIRLEAD_SUPERVISOR_RESUME";
/// The version that was tried last, on disk: one that does not live is not tried again.
const TRIED: &str = "supervisor-tried";

/// What a supervisor leaves to the version that it becomes.
pub(super) struct Resumed {
    pub(super) run: RunId,
    pub(super) epoch: u64,
    pub(super) owner: Key,
    pub(super) instances: Vec<(Key, u32, Instance)>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    pid: u32,
    run: String,
    epoch: u64,
    owner: Key,
    instances: Vec<(Key, u32, Instance)>,
}

/// What the program that this process was before has left.
pub(super) fn resumed() -> Option<Resumed> {
    let written: Written = serde_json::from_str(&std::env::var(RESUME).ok()?).ok()?;
    // Of another process it would be: the variable has been passed on.
    if written.pid != std::process::id() {
        return None;
    }
    Some(Resumed {
        run: written.run.parse().ok()?,
        epoch: written.epoch,
        owner: written.owner,
        instances: written.instances,
    })
}

/// Becomes that version. Returns only when it cannot.
pub(super) fn replace(
    state_dir: &Path,
    layout: &Layout,
    version: &str,
    resumed: &Resumed,
) -> io::Error {
    let become_it = || -> io::Result<io::Error> {
        let tried = state_dir.join(TRIED);
        if files::read_if_there(&tried)?.as_deref() == Some(version.as_bytes()) {
            return Err(io::Error::other("it was tried and did not live"));
        }
        files::replace(&tried, version.as_bytes())?;
        let written = serde_json::to_string(&Written {
            pid: std::process::id(),
            run: resumed.run.to_string(),
            epoch: resumed.epoch,
            owner: resumed.owner,
            instances: resumed.instances.clone(),
        })?;
        tracing::info!(version, "the supervisor becomes a new version");
        Ok(Command::new(layout.program(version))
            .args(std::env::args_os().skip(1))
            .env(RESUME, written)
            .exec())
    };
    become_it().unwrap_or_else(|error| error)
}
