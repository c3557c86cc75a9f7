//! Taking the agent off this machine: because its owner says so (`fairlead-agent uninstall`), or because a
//! command said so.
//!
//! What runs is the uninstaller that is part of this program since it was installed (`install.sh
//! --uninstall`); nothing is downloaded. Ordered by a command, it goes step by step, and a crash in between
//! only delays the next one:
//!
//! 1. the executor looks whether it can be done, and keeps the order on disk ([`Departure::keep`]);
//! 2. the command's result is on disk, sent, and acknowledged (or the identity is refused as revoked, which
//!    says the same: the controller ends it with that result);
//! 3. the agent ends with [`EXIT_DEPARTS`], and the supervisor starts the uninstaller outside of the
//!    service ([`begin`]), which is about to be stopped.
//!
//! May use: the agent's own files, `systemd-run`, `systemctl`, `/bin/sh`. Never the engine.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fairlead_daemon::files;
use fairlead_protocol::{CommandId, HostId, codes};

use crate::leave::{self, LeaveError};

/// Exit code of an agent that is to be taken off: its supervisor starts no other one.
pub const EXIT_DEPARTS: i32 = 79;
/// The script, as it was when this program was built.
const SCRIPT: &str = include_str!("../../installer/install.sh");
/// Order on disk, in the state directory.
const ORDER: &str = "uninstall";
/// What the uninstaller is called by systemd while it runs: no two at a time.
const UNIT: &str = "fairlead-uninstall";
/// Our service.
const SERVICE: &str = "fairlead-agent";
/// Where packages of the system put our service's file; the script looks there, too.
const PACKAGED: [&str; 2] = [
    "lib/systemd/system/fairlead-agent.service",
    "usr/lib/systemd/system/fairlead-agent.service",
];

/// How the agent came here, and so how it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By the script, below this folder.
    Script(PathBuf),
    /// As a package of the system, which alone removes its files.
    Package,
}

/// Why the agent cannot be taken off.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// It was not installed by the script.
    #[error(
        "this agent ({0}) was not installed by install.sh, so there is nothing that it could take away; \
         stop it by whatever started it"
    )]
    NotInstalled(String),
    /// It is a package's.
    #[error(
        "fairlead-agent came as a package of the system: remove it with `apt-get purge fairlead-agent` ({})",
        codes::INSTALLER_PACKAGED
    )]
    Packaged,
    /// It is not root.
    #[error("the agent does not run as root, and what install.sh made is root's")]
    NotRoot,
    /// The program could be somebody else's by now.
    #[error("{0} belongs to others than root, or may be written by others: it is not run as root")]
    NotOurs(String),
    /// systemd is there and the way out of the service is not.
    #[error("there is no systemd-run here, and nothing that this service starts outlives it")]
    NoWayOut,
    /// A program cannot be started, or failed.
    #[error("{what} failed: {reason}")]
    Failed {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// The state cannot be removed.
    #[error(transparent)]
    State(#[from] LeaveError),
}

/// How this agent came here.
///
/// # Errors
/// When it did not come by script or package.
pub fn way() -> Result<Way, UninstallError> {
    let program =
        std::env::current_exe().map_err(|error| failed("finding this program", &error))?;
    way_of(&program, Path::new("/"))
}

fn way_of(program: &Path, root: &Path) -> Result<Way, UninstallError> {
    if PACKAGED.iter().any(|unit| root.join(unit).exists()) {
        return Ok(Way::Package);
    }
    // PREFIX/versions/VERSION/fairlead-agent, and what the script remembers of its doing.
    let versions = program.parent().and_then(Path::parent);
    let prefix = versions
        .filter(|versions| versions.file_name().is_some_and(|name| name == "versions"))
        .and_then(Path::parent)
        .filter(|prefix| prefix.join("made").is_file());
    prefix.map_or_else(
        || Err(UninstallError::NotInstalled(program.display().to_string())),
        |prefix| Ok(Way::Script(prefix.to_owned())),
    )
}

/// Whether it could be done from within the service; how.
fn possible() -> Result<Way, UninstallError> {
    let way = way()?;
    if !rustix::process::geteuid().is_root() {
        return Err(UninstallError::NotRoot);
    }
    let program =
        std::env::current_exe().map_err(|error| failed("finding this program", &error))?;
    let about = std::fs::metadata(&program).map_err(|error| failed("looking at it", &error))?;
    if about.uid() != 0 || about.mode() & 0o022 != 0 {
        return Err(UninstallError::NotOurs(program.display().to_string()));
    }
    if under_systemd() && !has("systemd-run") {
        return Err(UninstallError::NoWayOut);
    }
    Ok(way)
}

fn failed(what: &str, reason: &dyn std::fmt::Display) -> UninstallError {
    UninstallError::Failed {
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

/// Whether systemd runs this machine and started us.
pub(crate) fn under_systemd() -> bool {
    std::env::var_os("INVOCATION_ID").is_some() && Path::new("/run/systemd/system").is_dir()
}

pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The order to take the agent off, as it is kept on this machine's disk.
#[derive(Debug, Clone)]
pub struct Departure {
    path: PathBuf,
    host: HostId,
}

impl Departure {
    /// Of this host, in this state directory.
    #[must_use]
    pub fn new(state_dir: &Path, host: HostId) -> Self {
        Self {
            path: state_dir.join(ORDER),
            host,
        }
    }

    /// Looks whether the agent can be taken off, and keeps that this command asked for it.
    ///
    /// # Errors
    /// When it cannot be done. Nothing was changed then.
    pub fn keep(&self, command: CommandId) -> Result<Way, UninstallError> {
        let way = possible()?;
        self.write(command)
            .map_err(|error| failed(&format!("writing {}", self.path.display()), &error))?;
        Ok(way)
    }

    fn write(&self, command: CommandId) -> io::Result<()> {
        files::replace(&self.path, format!("{} {command}\n", self.host).as_bytes())
    }

    /// The command that asked for it; `None` when none did, or it was another host's.
    #[must_use]
    pub fn kept(&self) -> Option<CommandId> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let (host, command) = text.trim().split_once(' ')?;
        (host == self.host.to_string())
            .then(|| command.parse().ok())
            .flatten()
    }

    /// The command did not succeed after all.
    pub fn forget(&self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %self.path.display(), %error, "an order to leave that does not hold cannot be removed");
        }
    }
}

/// Starts the uninstaller where the end of the service does not reach it.
///
/// # Errors
/// When it cannot be started, or goes on already.
pub(crate) fn begin(program: &Path, state_dir: &Path) -> Result<(), UninstallError> {
    let outside = under_systemd();
    let mut command = if outside {
        let mut run = Command::new("systemd-run");
        run.args(["--no-block", "--collect", "--quiet", "--unit", UNIT])
            .args([
                "--description",
                "Takes Fairlead's agent off this host",
                "--",
            ])
            .arg(program);
        run
    } else {
        Command::new(program)
    };
    command
        .args(["uninstall", "--ordered", "--state-dir"])
        .arg(state_dir)
        .stdin(Stdio::null());
    if !outside {
        // It starts itself once more and ends: what is left belongs to nobody.
        command.arg("--detach");
    }
    done("starting the uninstaller", &mut command)
}

/// What was asked for at the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The owner's policy and settings, too.
    #[arg(long)]
    pub purge: bool,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// A command asked for it: the identity has ended, so the state goes also when nobody can be told.
    #[arg(long, hide = true)]
    pub ordered: bool,
    /// Go on by oneself.
    #[arg(long, hide = true)]
    pub detach: bool,
}

/// Takes the agent off this machine.
///
/// # Errors
/// When it cannot be done, or fails half-way; again goes on from there.
pub fn uninstall(state_dir: &Path, options: &Options) -> Result<(), UninstallError> {
    let way = way()?;
    if options.detach {
        return detach(state_dir);
    }
    match way {
        Way::Script(prefix) => run_script(&prefix, options)?,
        Way::Package if options.ordered => {
            let mut stop = Command::new("systemctl");
            stop.args(["--quiet", "disable", "--now", SERVICE]);
            done("systemctl disable --now fairlead-agent", &mut stop)?;
        }
        Way::Package => return Err(UninstallError::Packaged),
    }
    if options.ordered && !options.dry_run {
        // The script removes what it made; the package's files and a state elsewhere are left.
        leave::forget_alone(state_dir)?;
    }
    Ok(())
}

fn detach(state_dir: &Path) -> Result<(), UninstallError> {
    let program =
        std::env::current_exe().map_err(|error| failed("finding this program", &error))?;
    let mut again = Command::new(program);
    again
        .args(["uninstall", "--ordered", "--state-dir"])
        .arg(state_dir)
        // Whoever ends our group, or reads what we say, has nothing to do with it.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = again.spawn();
    started
        .map(|_| ())
        .map_err(|error| failed("starting the uninstaller", &error))
}

fn run_script(prefix: &Path, options: &Options) -> Result<(), UninstallError> {
    let what = "the uninstaller";
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-s", "--", "--uninstall"])
        .env("FAIRLEAD_PREFIX", prefix)
        .current_dir("/")
        .stdin(Stdio::piped());
    for (asked, option) in [
        (options.purge, "--purge"),
        (options.dry_run, "--dry-run"),
        (options.ordered, "--forget"),
    ] {
        if asked {
            shell.arg(option);
        }
    }
    let mut child = shell.spawn().map_err(|error| failed(what, &error))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A shell that ends before it has read everything says why by its own end.
        let _ = pipe.write_all(SCRIPT.as_bytes());
    }
    let status = child.wait().map_err(|error| failed(what, &error))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(failed(
            what,
            &format!("it ended with {code} and said why above"),
        )),
        None => Err(failed(what, &status)),
    }
}

fn done(what: &str, command: &mut Command) -> Result<(), UninstallError> {
    let status = command.status().map_err(|error| failed(what, &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(what, &status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_how_the_agent_came_here() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("opt/fairlead");
        let program = prefix.join("versions/0.9.0/fairlead-agent");
        let not_installed = || way_of(&program, dir.path()).unwrap_err();
        assert!(matches!(not_installed(), UninstallError::NotInstalled(_)));
        std::fs::create_dir_all(&prefix).unwrap();
        std::fs::write(prefix.join("made"), "/opt/fairlead\n").unwrap();
        assert_eq!(
            way_of(&program, dir.path()).unwrap(),
            Way::Script(prefix.clone())
        );
        // A program that lies elsewhere is not what the script made.
        assert!(way_of(&prefix.join("fairlead-agent"), dir.path()).is_err());
        let unit = dir.path().join(PACKAGED[1]);
        std::fs::create_dir_all(unit.parent().unwrap()).unwrap();
        std::fs::write(unit, "").unwrap();
        assert_eq!(way_of(&program, dir.path()).unwrap(), Way::Package);
    }

    #[test]
    fn an_order_is_one_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let command = CommandId::from_bytes([7; 16]);
        let departure = Departure::new(dir.path(), HostId::from_bytes([1; 16]));
        assert_eq!(departure.kept(), None);
        departure.write(command).unwrap();
        assert_eq!(departure.kept(), Some(command));
        // This machine was enrolled anew since.
        let other = Departure::new(dir.path(), HostId::from_bytes([2; 16]));
        assert_eq!(other.kept(), None);
        departure.forget();
        assert_eq!(departure.kept(), None);
    }

    #[test]
    fn the_script_in_it_is_whole() {
        assert!(SCRIPT.starts_with("#!/bin/sh\n"));
        assert!(SCRIPT.trim_end().ends_with('}'));
        assert!(SCRIPT.contains("--forget) forget=yes"));
    }
}
