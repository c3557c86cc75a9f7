//! Whether this machine has a link, in a file for `fairlead-agent status` and the installer. Written by the
//! agent only, read by anybody who may enter its state directory; no promise depends on it.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The file in the state directory.
const FILE: &str = "link.json";

/// What an agent last said of its link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The agent's process: what another one has said is old.
    pub agent: u32,
    /// Whether it has a link.
    pub up: bool,
    /// Since when that is so, microseconds since 1970.
    pub since_us: i64,
    /// Of an access server: where the link leads, or what was dialled last.
    pub address: String,
    /// Why there is none; empty while there is one.
    pub why: String,
    /// The stable code of that; empty where there is none.
    pub code: String,
}

impl LinkReport {
    /// There is a link now.
    #[must_use]
    pub fn up(address: &str, now_us: i64) -> Self {
        Self {
            agent: std::process::id(),
            up: true,
            since_us: now_us,
            address: address.to_owned(),
            why: String::new(),
            code: String::new(),
        }
    }

    /// There is none, for that reason.
    #[must_use]
    pub fn down(address: &str, why: String, code: &str, now_us: i64) -> Self {
        Self {
            agent: std::process::id(),
            up: false,
            since_us: now_us,
            address: address.to_owned(),
            why,
            code: code.to_owned(),
        }
    }

    /// Keeps it. One that is down stays so since it first was. Not synced: after a crash of the machine it
    /// would be of an older process anyway.
    pub fn keep(mut self, state_dir: &Path) {
        if let Some(before) = Self::read(state_dir)
            && before.agent == self.agent
            && !before.up
            && !self.up
        {
            self.since_us = before.since_us;
        }
        let path = state_dir.join(FILE);
        let beside = state_dir.join("link.json.new");
        let written = serde_json::to_vec(&self)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&beside, text))
            .and_then(|()| std::fs::rename(&beside, &path));
        if let Err(error) = written {
            tracing::debug!(%error, "the state of the link could not be written");
        }
    }

    /// What was said as another host is not said of this one.
    pub fn forget(state_dir: &Path) {
        // It is not there, most likely; and one of another agent's is not believed while an agent lives.
        let _ = std::fs::remove_file(state_dir.join(FILE));
    }

    /// What was kept last.
    #[must_use]
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(FILE)).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_down_since_it_first_was() {
        let dir = tempfile::tempdir().unwrap();
        let read = || LinkReport::read(dir.path()).unwrap();
        LinkReport::up("a:1", 10).keep(dir.path());
        assert!(read().up && read().since_us == 10);
        LinkReport::down("a:1", "refused".to_owned(), "revoked", 20).keep(dir.path());
        LinkReport::down("b:1", "nobody".to_owned(), "", 30).keep(dir.path());
        assert_eq!((read().since_us, &read().why[..]), (20, "nobody"));
        LinkReport::up("b:1", 40).keep(dir.path());
        assert_eq!(read().since_us, 40);
    }
}
