//! How the agent on this host is, for other programs of this machine.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::host::Host;
use crate::handoff::decide::{Key, Phase};
use crate::handoff::words::{OneInstance, Status};
use crate::status::start_of;

impl Host<'_> {
    pub(super) fn status(&self) -> Status {
        let owner = self.decider.owner();
        let versions = self.decider.versions();
        let instances = self.decider.instances();
        let phase = match self.decider.phase() {
            Phase::Vacant { .. } => "vacant",
            Phase::Steady { .. } => "steady",
            Phase::Proving { .. } | Phase::Reserving { .. } => "proving",
            Phase::Yielding { .. } => "yielding",
            Phase::Draining { .. } => "draining",
        };
        let role = |key: Key, epoch: u64| {
            if owner == Some(key) {
                "owner"
            } else if epoch == 0 {
                "candidate"
            } else {
                "finishing"
            }
        };
        Status {
            supervisor: std::process::id(),
            supervisor_start: start_of(std::process::id()),
            agent: owner.and_then(|owner| self.pids.get(&owner)).copied(),
            epoch: owner
                .and_then(|owner| instances.get(&owner))
                .map_or(0, |instance| instance.epoch),
            phase: phase.to_owned(),
            current: versions.current.clone(),
            previous: versions.previous.clone(),
            tries_left: versions.tries_left,
            safe: versions.safe,
            supervisor_version: self.layout.own_version(),
            returned: versions.returned.clone(),
            instances: instances
                .iter()
                .filter_map(|(key, instance)| {
                    let pid = *self.pids.get(key)?;
                    Some(OneInstance {
                        pid,
                        start: start_of(pid),
                        version: instance.version.clone(),
                        epoch: instance.epoch,
                        role: role(*key, instance.epoch).to_owned(),
                    })
                })
                .collect(),
        }
    }

    /// Tells other programs of this machine who runs, when that has changed.
    pub(super) fn say_status(&mut self) {
        // The host waits for its new owner: no time for a disk.
        if matches!(self.decider.phase(), Phase::Yielding { .. }) {
            return;
        }
        let status = self.status();
        if status.agent.is_none() || self.said.as_ref() == Some(&status) {
            return;
        }
        let written = serde_json::to_vec(&status)
            .map_err(io::Error::from)
            .and_then(|text| replace_quickly(&self.state_dir.join("status.json"), &text));
        match written {
            Ok(()) => self.said = Some(status),
            Err(error) => tracing::warn!(%error, "status could not be written"),
        }
    }
}

/// Whole, for whoever reads it while the machine runs. After that it says nothing to anybody, so no disk is
/// waited for: instances wait for this process.
fn replace_quickly(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text)?;
    std::fs::rename(beside, path)
}
