//! Which programs make up Fairlead, and for which machines they are built.

use std::fmt;
use std::str::FromStr;

/// The agent.
pub const AGENT: &str = "fairlead-agent";
/// The access server.
pub const ACCESS_SERVER: &str = "fairlead-access-server";
/// The controller.
pub const CONTROLLER: &str = "fairlead-controller";
/// The command line.
pub const CLI: &str = "fairlead";

/// All programs of a package.
pub const PROGRAMS: [&str; 4] = [CLI, ACCESS_SERVER, AGENT, CONTROLLER];

/// A kind of machine that programs are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// 64-bit Arm.
    LinuxAarch64,
    /// 64-bit x86.
    LinuxX86_64,
}

/// The name is not that of a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no target {0:?}; there are linux-x86_64 and linux-aarch64")]
pub struct UnknownTarget(String);

impl Target {
    /// All targets.
    pub const ALL: [Self; 2] = [Self::LinuxAarch64, Self::LinuxX86_64];

    /// As it stands in file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LinuxAarch64 => "linux-aarch64",
            Self::LinuxX86_64 => "linux-x86_64",
        }
    }

    /// As Debian calls it.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::LinuxAarch64 => "arm64",
            Self::LinuxX86_64 => "amd64",
        }
    }

    /// The file of a program for this target.
    #[must_use]
    pub fn file(self, program: &str) -> String {
        format!("{program}-{self}")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(text: &str) -> Result<Self, UnknownTarget> {
        Self::ALL
            .into_iter()
            .find(|target| target.name() == text)
            .ok_or_else(|| UnknownTarget(text.to_owned()))
    }
}
