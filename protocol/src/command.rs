//! Rules about commands that every program must agree on: kinds, lanes, final states.

use crate::version;
pub use crate::wire::command::Kind;
use crate::wire::{Command, ContainerSpec, State};
use std::fmt;

/// Name of the kind whose success ends its host's identity.
pub const UNINSTALL_AGENT: &str = "uninstall-agent";
/// What an inspect names as its kind that is about the host itself.
pub const INSPECT_HOST: &str = "host";
/// Name of the kind that is a terminal on the host itself, and of the agent's feature.
pub const HOST_SHELL: &str = "host-shell";
/// What stands for the container where a terminal is on the host itself. No container can be called so.
pub const HOST_ITSELF: &str = "(host)";
/// Name of the kind with which another version of the agent takes its host over.
pub const UPGRADE_AGENT: &str = "upgrade-agent";

/// What a changing command has to itself while it acts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// One container, by name.
    Container(String),
    /// One image, by reference.
    Image(String),
    /// The whole host.
    Host,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(name) => write!(f, "container/{name}"),
            Self::Image(reference) => write!(f, "image/{reference}"),
            Self::Host => f.write_str("host"),
        }
    }
}

impl Kind {
    /// The kind's name in API, CLI, journal and audit.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::Stop(_) => "stop",
            Self::Restart(_) => "restart",
            Self::Kill(_) => "kill",
            Self::Remove(_) => "remove",
            Self::Pull(_) => "pull",
            Self::Inspect(_) => "inspect",
            Self::Exec(_) => "exec",
            Self::Logs(_) => "logs",
            Self::CopyIn(_) => "copy-in",
            Self::CopyOut(_) => "copy-out",
            Self::List(_) => "list",
            Self::PruneImages(_) => "prune-images",
            Self::RenewCertificate(_) => "renew-certificate",
            Self::Ping(_) => "ping",
            Self::UpgradeAgent(_) => UPGRADE_AGENT,
            Self::UninstallAgent(_) => UNINSTALL_AGENT,
            Self::HostShell(_) => HOST_SHELL,
        }
    }

    /// The container, image or object that the command names, for people; empty for the host.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Run(k) => k.spec.as_ref().map_or("", |s| &s.name),
            Self::Create(k) => k.spec.as_ref().map_or("", |s| &s.name),
            Self::Start(k) => &k.container,
            Self::Stop(k) => &k.container,
            Self::Restart(k) => &k.container,
            Self::Kill(k) => &k.container,
            Self::Remove(k) => &k.container,
            Self::Pull(k) => &k.image,
            Self::Inspect(k) => &k.object,
            Self::Exec(k) => &k.container,
            Self::Logs(k) => &k.container,
            Self::CopyIn(k) => &k.container,
            Self::CopyOut(k) => &k.container,
            Self::UpgradeAgent(k) => &k.version,
            Self::List(_)
            | Self::PruneImages(_)
            | Self::RenewCertificate(_)
            | Self::Ping(_)
            | Self::UninstallAgent(_)
            | Self::HostShell(_) => "",
        }
    }

    /// Whether the command changes something and so holds its lane while it acts. The others wait
    /// for changing ones accepted before them on the lane and never hold it.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Run(_)
            | Self::Create(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Kill(_)
            | Self::Remove(_)
            | Self::Pull(_)
            | Self::CopyIn(_)
            | Self::PruneImages(_)
            | Self::UninstallAgent(_) => true,
            Self::Inspect(_)
            | Self::Exec(_)
            | Self::Logs(_)
            | Self::CopyOut(_)
            | Self::List(_)
            | Self::RenewCertificate(_)
            // It would keep the host's lane while a program is downloaded, and the supervisor lets one upgrade
            // in at a time.
            | Self::UpgradeAgent(_)
            | Self::Ping(_)
            | Self::HostShell(_) => false,
        }
    }

    /// Whether a command of that name only looks: what became of it is never in doubt.
    #[must_use]
    pub fn only_looks(name: &str) -> bool {
        matches!(name, "inspect" | "logs" | "copy-out" | "list" | "ping")
    }

    /// Whether the command carries its work over a stream when its issuer attaches one.
    #[must_use]
    pub fn streams(&self) -> bool {
        matches!(
            self,
            Self::Exec(_) | Self::HostShell(_) | Self::Logs(_) | Self::CopyIn(_) | Self::CopyOut(_)
        )
    }

    /// The lane that the command holds or waits behind.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::Pull(k) => Lane::Image(k.image.clone()),
            Self::Inspect(k) if k.kind == "image" => Lane::Image(k.object.clone()),
            Self::Inspect(k) if !k.means_container() => Lane::Host,
            Self::List(_)
            | Self::PruneImages(_)
            | Self::RenewCertificate(_)
            | Self::Ping(_)
            | Self::UpgradeAgent(_)
            | Self::UninstallAgent(_)
            | Self::HostShell(_) => Lane::Host,
            other => Lane::Container(other.target().to_owned()),
        }
    }

    /// The agent feature that the kind needs.
    #[must_use]
    pub fn feature(&self) -> &'static str {
        match self {
            Self::Pull(_) | Self::PruneImages(_) => "image",
            Self::Exec(exec) if exec.tty => "terminal",
            Self::Exec(_) => "exec",
            Self::Logs(_) => "logs",
            Self::CopyIn(_) | Self::CopyOut(_) => "copy",
            Self::RenewCertificate(_) => "certificate",
            Self::UpgradeAgent(_) => "upgrade",
            Self::UninstallAgent(_) => "uninstall",
            Self::Inspect(k) if k.kind == INSPECT_HOST => version::HOST_CHECK,
            Self::HostShell(_) => HOST_SHELL,
            _ => "container",
        }
    }
}

impl crate::Inspect {
    /// Whether it is about a container.
    #[must_use]
    pub fn means_container(&self) -> bool {
        matches!(&self.kind[..], "" | "container")
    }
}

impl crate::Stamp {
    /// A station passed at that time.
    #[must_use]
    pub fn at(stage: crate::Stage, at_us: i64) -> Self {
        Self {
            stage: stage.into(),
            at_us,
            note: String::new(),
        }
    }
}

impl Command {
    /// The spec of a `run` or `create`.
    #[must_use]
    pub fn spec(&self) -> Option<&ContainerSpec> {
        match self.kind.as_ref()? {
            Kind::Run(k) => k.spec.as_ref(),
            Kind::Create(k) => k.spec.as_ref(),
            _ => None,
        }
    }
}

impl State {
    /// Whether nothing more happens to a command in this state.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Unspecified | Self::Queued | Self::Delivered | Self::Running => false,
            Self::Succeeded
            | Self::Failed
            | Self::Expired
            | Self::Cancelled
            | Self::Conflict
            | Self::Superseded
            | Self::Unknown => true,
        }
    }

    /// The state's name in API, CLI and store.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Conflict => "conflict",
            Self::Superseded => "superseded",
            Self::Unknown => "unknown",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        (0..=10)
            .filter_map(|n| Self::try_from(n).ok())
            .find(|state| state.name() == name)
    }
}

impl crate::wire::Stage {
    /// The stage's name in the API and in `command show`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Accepted => "accepted",
            Self::Stored => "stored",
            Self::RegionReceived => "region_received",
            Self::RegionStored => "region_stored",
            Self::DeliveredToHost => "delivered",
            Self::Verified => "verified",
            Self::IntentStored => "intent_stored",
            Self::EngineCalled => "engine_called",
            Self::EngineAnswered => "engine_answered",
            Self::ResultStored => "result_stored",
            Self::RegionResultReceived => "region_result_received",
            Self::Recorded => "recorded",
            Self::Settled => "settled",
            Self::Resent => "resent",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_names_round_trip() {
        for number in 0..=10 {
            let state = State::try_from(number).unwrap();
            assert_eq!(State::from_name(state.name()), Some(state));
        }
        assert_eq!(State::from_name("nonsense"), None);
    }
}
