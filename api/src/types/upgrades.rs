//! Versions of the agent, and rollouts of them.

use super::{Deserialize, Serialize, Timestamp, ToSchema};

/// A version of the agent that hosts can be upgraded to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentVersion {
    /// Its name.
    pub version: String,
    /// Kinds of machines that it is for, such as `linux-x86_64`.
    pub targets: Vec<String>,
    /// Ids of the keys that signed it. Which of them is trusted each host decides.
    pub signed_by: Vec<String>,
    /// When it was made.
    pub released_at: Timestamp,
    /// From when on no host takes it any more.
    pub expires_at: Timestamp,
    /// The lowest version that a host may come from.
    pub min_from: String,
    /// SHA-256 of its manifest, hex.
    pub manifest: String,
    /// Hosts that run it.
    pub hosts: u64,
}

/// What came of a file of a version that is pushed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PushedFile {
    /// The version is whole, and listed from now on.
    pub listed: bool,
    /// Files that are still wanted.
    pub wanted: Vec<String>,
}

/// A rollout that is asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutRequest {
    /// Which version.
    pub version: String,
    /// Hosts by name, id or prefix; empty: all that the token sees.
    pub hosts: Vec<String>,
    /// Hosts that are first and alone; absent: 1.
    pub canary: Option<u32>,
    /// After each wave so many percent of all hosts have been asked, rising to 100; empty: 5, 25, 100.
    pub waves: Vec<u32>,
    /// Seconds between two waves; absent: 600.
    pub between_s: Option<u32>,
    /// Seconds after which a host that was asked and is not connected counts as silent; absent: 120.
    pub silent_s: Option<u32>,
    /// Also on hosts that had a higher version.
    pub allow_older: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// A rollout of a version over hosts.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// Its id; empty: it was only asked what would be done.
    pub id: String,
    /// Which version.
    pub version: String,
    /// `upgrading`, `between` (a wave is over and watched), `trailing` (hosts that were away are asked as they
    /// return), `paused`, `halted` (too many failed), `finished`, `aborted`, `expired` (its time was over).
    pub state: String,
    /// Why it halted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// When the next wave begins, where that is known; of the last wave, when it has been watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_wave_at: Option<Timestamp>,
    /// The wave that it is in, from 1.
    pub wave: u32,
    /// Hosts in each wave.
    pub waves: Vec<u32>,
    /// Who asked for it.
    pub asked_by: String,
    /// When.
    pub created_at: Timestamp,
    /// It ends by then in any case.
    pub ends_by: Timestamp,
    /// The hosts, in the order in which they are asked.
    pub hosts: Vec<RolloutHost>,
    /// Hosts that are not part of it, and why; only when it is made or asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A host of a rollout.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct RolloutHost {
    /// Its name.
    pub host: String,
    /// Its wave, from 1.
    pub wave: u32,
    /// `waiting`, `asked`, `done`, `failed`, `silent`, `missed`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// What is said about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The command that it was asked with at last; empty: it has not been asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
}

/// A host that is not part of a rollout.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct LeftOut {
    /// Its name.
    pub host: String,
    /// Why.
    pub why: String,
}
