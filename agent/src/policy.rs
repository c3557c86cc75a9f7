//! The host owner's policy file: what the centre may not ask of this host.
//!
//! Without the file everything is allowed that the engine allows, and no shell on the host itself. A file that cannot be read or
//! understood, has an unknown key, or could have been written by others than root refuses every
//! command that changes or reaches into something: an owner who wrote a rule must never find that
//! a typing error switched it off. The file is looked at before every command and read again when
//! it has changed.
//!
//! ```toml
//! forbid_privileged = true        # --privileged, for containers and exec
//! forbid_host_namespaces = true   # network, pid, ipc, uts, userns of the host
//! forbid_sensitive_binds = true   # binds of (or around, or below) `sensitive_paths`
//! sensitive_paths = ["/", "/etc"] # replaces the built-in list
//! forbid_devices = true
//! allowed_capabilities = ["NET_ADMIN"]  # cap_add of anything else is refused
//! forbid_unconfined = true        # security_opt beyond the engine's own profiles
//! forbid_host_tuning = true       # cgroup_parent, runtime, oom_kill_disable, oom_score_adj < 0
//! forbid_exec = true
//! forbid_shell = true             # exec with a terminal
//! allow_host_shell = true         # a shell on the host itself: forbidden unless it is allowed here
//! forbid_copy = true              # in and out
//! forbid_uninstall = true         # `fairlead host rm --uninstall`
//! forbid_upgrade = true           # other versions of the agent; on the host itself `fairlead-agent upgrade`
//! allowed_images = ["registry.example.com/*", "busybox"]
//! allowed_containers = ["app-*"]
//! denied_containers = ["db-*"]
//! ```
//!
//! What it cannot see: what a named volume is made of that exists already, and what is inside an
//! image. A symbolic link that changes between check and mount is not noticed either: do not let
//! containers write where links to sensitive places may be made and bound.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fairlead_protocol::command::Kind;
use fairlead_protocol::{Command, codes};

use rules::Rules;

mod rules;
mod paths;
mod names;

/// Where the file is unless the agent is told otherwise.
pub const DEFAULT_PATH: &str = "/etc/fairlead/policy.toml";
/// A policy is a page; a file beyond this is a mistake.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The command is not allowed on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// [`codes::FORBIDDEN_BY_HOST`].
    pub code: &'static str,
    /// Names the file and the key, for the operator to talk to the owner about.
    pub message: String,
}

/// A policy as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    /// There is no file.
    Absent,
    Rules(Box<Rules>),
    /// There is one, and this is wrong with it.
    Broken(String),
}

impl Policy {
    /// Reads the file. When this process runs as root, only root may have written it.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        Self::load_for(path, rustix::process::geteuid().is_root())
    }

    fn load_for(path: &Path, only_root: bool) -> Self {
        let content = match read(path, only_root) {
            Ok(None) => Content::Absent,
            Ok(Some(text)) => match toml::from_str::<Rules>(&text).map_err(|e| e.to_string()) {
                Ok(rules) => match rules.problem() {
                    None => Content::Rules(Box::new(rules)),
                    Some(problem) => Content::Broken(problem),
                },
                Err(error) => Content::Broken(one_line(&error)),
            },
            Err(problem) => Content::Broken(problem),
        };
        Self {
            path: path.to_owned(),
            content,
        }
    }

    /// Whether the command is allowed, as far as its own words tell. Where rules go by a
    /// container's name, a target that could be an id is refused here: once its container is
    /// known, ask [`Policy::check_named`].
    ///
    /// # Errors
    /// The refusal, when it is not.
    pub fn check(&self, command: &Command) -> Result<(), Refusal> {
        self.judge(command, None)
    }

    /// The same, for a command whose container has this name.
    ///
    /// # Errors
    /// The refusal, when it is not allowed.
    pub fn check_named(&self, command: &Command, container: &str) -> Result<(), Refusal> {
        self.judge(command, Some(container))
    }

    fn judge(&self, command: &Command, container: Option<&str>) -> Result<(), Refusal> {
        let Some(kind) = command.kind.as_ref() else {
            return Ok(());
        };
        let path = self.path.display();
        let message = match &self.content {
            Content::Absent if matches!(kind, Kind::HostShell(_)) => rules::no_host_shell(&path),
            Content::Absent => return Ok(()),
            Content::Broken(_) if !reaches_in(kind) => return Ok(()),
            Content::Broken(problem) => format!(
                "the host's policy file {path} cannot be used ({problem}), so every change is \
                 refused until its owner mends it"
            ),
            Content::Rules(rules)
                if !rules.allows_host_shell() && matches!(kind, Kind::HostShell(_)) =>
            {
                rules::no_host_shell(&path)
            }
            Content::Rules(rules) => match rules.forbids(kind, container) {
                None => return Ok(()),
                Some(found) => format!(
                    "the host's owner forbids it: {} ({} in {path})",
                    found.what, found.key
                ),
            },
        };
        Err(Refusal {
            code: codes::FORBIDDEN_BY_HOST,
            message,
        })
    }

    /// Whether it allows shells on the host itself, which nothing else does.
    #[must_use]
    pub fn allows_host_shell(&self) -> bool {
        matches!(&self.content, Content::Rules(rules) if rules.allows_host_shell())
    }

    /// What is forbidden, in one sentence; empty when nothing is.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.content {
            Content::Absent => String::new(),
            Content::Broken(problem) => {
                let path = self.path.display();
                format!("every change, because {path} cannot be used: {problem}")
            }
            Content::Rules(rules) => rules.summary(),
        }
    }
}

/// Commands that change something, run something, or carry files away.
fn reaches_in(kind: &Kind) -> bool {
    kind.changes() || matches!(kind, Kind::Exec(_) | Kind::HostShell(_) | Kind::CopyOut(_))
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The file's text; `None` when there is no file.
fn read(path: &Path, only_root: bool) -> Result<Option<String>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A link that leads nowhere is a policy that got lost, not the absence of one.
            return if path.is_symlink() {
                Err("it leads nowhere".to_owned())
            } else {
                Ok(None)
            };
        }
        Err(error) => return Err(error.to_string()),
    };
    let about = file.metadata().map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a file".to_owned());
    }
    if only_root && about.uid() != 0 {
        return Err(format!("it belongs to user {}, not to root", about.uid()));
    }
    if about.mode() & 0o022 != 0 {
        return Err("others than its owner may write it (chmod go-w)".to_owned());
    }
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    match read.map_err(|error| error.to_string())? {
        length if length as u64 > FILE_BYTES_MAX => Err("it is too long".to_owned()),
        _ => Ok(Some(text)),
    }
}

/// What tells one version of a file from another.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let about = std::fs::metadata(path).ok()?;
    // The time of change sees a chmod or chown too.
    Some((
        about.dev(),
        about.ino(),
        about.size(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec(),
    ))
}

/// The policy file, followed as it changes.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    read: Mutex<(Stamp, Arc<Policy>)>,
}

impl PolicyFile {
    /// Reads the file for the first time.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        // The stamp is taken first: a change in between is then seen as one.
        let stamp = stamp(&path);
        let policy = Arc::new(Policy::load(&path));
        Self {
            path,
            read: Mutex::new((stamp, policy)),
        }
    }

    /// The policy as the file is now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        // While there is no stamp the file is absent or out of reach, which only trying tells.
        if now.is_none() || now != read.0 {
            let policy = Policy::load(&self.path);
            if policy != *read.1 {
                tracing::info!(path = %self.path.display(), "policy file read again");
            }
            *read = (now, Arc::new(policy));
        }
        Arc::clone(&read.1)
    }

    /// See [`Policy::check`].
    ///
    /// # Errors
    /// The refusal, when it is not allowed.
    pub fn check(&self, command: &Command) -> Result<(), Refusal> {
        self.policy().check(command)
    }

    /// See [`Policy::check_named`].
    ///
    /// # Errors
    /// The refusal, when it is not allowed.
    pub fn check_named(&self, command: &Command, container: &str) -> Result<(), Refusal> {
        self.policy().check_named(command, container)
    }

    /// See [`Policy::summary`].
    #[must_use]
    pub fn summary(&self) -> String {
        self.policy().summary()
    }
}

#[cfg(test)]
mod tests;
