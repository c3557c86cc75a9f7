//! What supervisor, instances and the tool on the host say to each other: a JSON object a line.

use serde::{Deserialize, Serialize};

use super::decide::Key;

/// Longest line. A peer that says a longer one is not understood.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// What an instance, or the tool, says to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// It is there. Whether its region's server lets another link in beside its own.
    Alive {
        /// `None`: there is no link.
        handoff: Option<bool>,
    },
    /// It can work here: link, executor, journal and engine.
    Proved,
    /// It begins nothing any more. What it has under way is in the file of its name.
    Yielded {
        /// The epoch that it was asked to yield to.
        epoch: u64,
    },
    /// All of its commands but streams have ended.
    CommandsDone {
        /// The epoch that it yielded to.
        epoch: u64,
    },
    /// For the instance that owns the host now.
    Peer(Peer),
    /// From the tool: let that version run.
    Upgrade {
        /// Its folder's name.
        version: String,
    },
    /// From the tool: how is it?
    Status,
}

/// What the supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromSupervisor {
    /// Begin nothing more.
    Yield {
        /// Of the one that gets the host; quoted in the answers.
        epoch: u64,
    },
    /// You own the host.
    Grant {
        /// The epoch, which is on disk.
        epoch: u64,
        /// Who had it before, and is still there.
        from: Option<Key>,
    },
    /// That instance is gone: settle what it had begun.
    Gone {
        /// Which.
        key: Key,
    },
    /// Your streams will be ended.
    Notice {
        /// In so many seconds.
        in_s: u64,
    },
    /// From the other instance.
    Peer(Peer),
    /// To the tool: no.
    Refused {
        /// Why.
        why: String,
        /// It may be otherwise in a moment.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        soon: bool,
    },
    /// To the tool: it has begun.
    Begun,
    /// To the tool.
    Status(Box<Status>),
}

/// What one instance says to the other, by way of the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A command that it had under way has ended.
    Released {
        /// Its id.
        id: String,
    },
    /// A stream was asked for whose command the other has under way.
    OpenStream {
        /// As it came, base16.
        stream: String,
    },
}

/// How the agent on this host is; also what `status.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor's pid.
    pub supervisor: u32,
    /// When it began (`status::start_of`): with the pid it names a process for good.
    #[serde(default)]
    pub supervisor_start: Option<u64>,
    /// The owner's pid.
    pub agent: Option<u32>,
    /// Its epoch.
    pub epoch: u64,
    /// In one word: steady, proving, draining, …
    #[serde(default)]
    pub phase: String,
    /// The version that is started.
    #[serde(default)]
    pub current: String,
    /// The one before it.
    #[serde(default)]
    pub previous: Option<String>,
    /// Starts that are left while the current version is on trial.
    #[serde(default)]
    pub tries_left: Option<u32>,
    /// No version can be kept running; commands are refused.
    #[serde(default)]
    pub safe: bool,
    /// The supervisor's own version.
    #[serde(default)]
    pub supervisor_version: String,
    /// The last version that did not get or not keep the host.
    #[serde(default)]
    pub returned: Option<super::decide::Returned>,
    /// All instances.
    #[serde(default)]
    pub instances: Vec<OneInstance>,
}

/// One instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneInstance {
    /// Its pid.
    pub pid: u32,
    /// When it began, as the supervisor's.
    #[serde(default)]
    pub start: Option<u64>,
    /// Its version.
    pub version: String,
    /// The last epoch that it owned the host in; 0: none.
    pub epoch: u64,
    /// In one word.
    pub role: String,
}

#[cfg(test)]
mod tests;
