//! The supervisor: the unit's main process. Starts agents, watches them, grants epochs.
//!
//! Tiny on purpose: no async runtime, no TLS, no network. Who owns the host is its word alone: the
//! epoch is on disk before the instance that gets it is started, grows with each start, and is never
//! used again. When an agent dies it is started again, after a wait that grows while starts fail fast.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use fairlead_daemon::files::{self, LockError};
use fairlead_daemon::service;
use fairlead_protocol::RunId;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::uninstall;

/// The file in the state directory whose lock says that somebody works there.
pub(crate) const LOCK: &str = "supervisor.lock";
/// An agent that lived so long was healthy: the next wait is short again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// First wait before an agent is started again.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// Longest wait: the supervisor never gives up.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Wait after a start that did not even begin.
const WAIT_FAILED: Duration = Duration::from_secs(2);
/// Taking the agent off is tried again after this.
const DEPART_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long an agent may take to leave when it is asked to.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// Exit code of an agent that cannot run without somebody's doing (no token, refused).
pub const EXIT_NEEDS_HELP: i32 = 78;

/// Why the supervisor cannot work.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The state directory cannot be used.
    #[error("cannot use {path}: {reason}")]
    State {
        /// What.
        path: String,
        /// Why.
        reason: String,
    },
    /// Another supervisor serves this directory.
    #[error("another supervisor serves {0} already; one machine runs one agent")]
    Taken(String),
    /// The agent cannot be started.
    #[error("cannot start the agent: {0}")]
    Start(io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
}

/// Supervises until told to stop. `arguments` are passed on to `fairlead-agent run`.
///
/// # Errors
/// When the state directory cannot be used or another supervisor uses it.
pub fn supervise(state_dir: &Path, arguments: &[String]) -> Result<(), SuperviseError> {
    files::own_dir(state_dir).map_err(|error| state_error(state_dir, &error))?;
    let _lock = hold(state_dir)?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD]).map_err(SuperviseError::Signals)?;
    let run = RunId::from_bytes(fairlead_identity::random::bytes());
    let program = std::env::current_exe().map_err(SuperviseError::Start)?;
    // To the service manager this process is the agent, also while no instance can be started: it goes on.
    service::ready();
    let mut wait = WAIT_FIRST;
    loop {
        let started = Instant::now();
        let begun = next_epoch(state_dir)
            .and_then(|epoch| Ok((epoch, start(&program, arguments, state_dir, epoch, run)?)));
        let (epoch, mut child) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                // A full disk passes; a supervisor that gave up would be gone for good.
                tracing::error!(%error, "the agent cannot be started; it is tried again");
                if interrupted_while_waiting(WAIT_FAILED, &mut signals) {
                    return Ok(());
                }
                continue;
            }
        };
        write_status(state_dir, &child, epoch);
        tracing::info!(pid = child.id(), epoch, "agent started");
        let Some(status) = watch(&mut child, &mut signals) else {
            stop(&mut child);
            return Ok(());
        };
        if status.code() == Some(uninstall::EXIT_DEPARTS) {
            return depart(&program, state_dir, &mut signals);
        }
        wait = next_wait(wait, started.elapsed(), status);
        tracing::warn!(%status, epoch, wait_ms = wait.as_millis(), "agent ended, will be started again");
        if interrupted_while_waiting(wait, &mut signals) {
            return Ok(());
        }
    }
}

/// The agent is to be taken off: starts what does that, and waits to be stopped by it. When it does not
/// come to that, it is started again.
fn depart(program: &Path, state_dir: &Path, signals: &mut Signals) -> Result<(), SuperviseError> {
    loop {
        match uninstall::begin(program, state_dir) {
            Ok(()) => tracing::info!("the agent is being taken off this machine"),
            Err(error) => {
                tracing::error!(%error, "the agent cannot be taken off; it is tried again");
            }
        }
        if interrupted_while_waiting(DEPART_AGAIN_AFTER, signals) {
            return Ok(());
        }
    }
}

fn state_error(path: &Path, error: &io::Error) -> SuperviseError {
    SuperviseError::State {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

/// The right to be the only one that works with that directory: a supervisor has it as long as it runs,
/// and so has who takes away what a supervisor needs.
///
/// # Errors
/// When somebody has it, or the directory cannot be used.
pub(crate) fn hold(state_dir: &Path) -> Result<File, SuperviseError> {
    let path = state_dir.join(LOCK);
    files::lock(&path).map_err(|error| match error {
        LockError::Taken => SuperviseError::Taken(state_dir.display().to_string()),
        LockError::File(error) => state_error(&path, &error),
    })
}

/// The next term of ownership, on disk before anybody gets it.
fn next_epoch(state_dir: &Path) -> Result<u64, SuperviseError> {
    let path = epoch_path(state_dir);
    let last = read_epoch(&path)?;
    let next = last + 1;
    files::replace(&path, next.to_string().as_bytes())
        .map_err(|error| state_error(&path, &error))?;
    Ok(next)
}

fn epoch_path(state_dir: &Path) -> PathBuf {
    state_dir.join("epoch")
}

fn read_epoch(path: &Path) -> Result<u64, SuperviseError> {
    let read = files::read_if_there(path).map_err(|error| state_error(path, &error))?;
    let Some(bytes) = read else { return Ok(0) };
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().map_err(|_| {
        let reason = format!("it holds {text:?}, not a number; write the last epoch into it");
        state_error(path, &io::Error::new(io::ErrorKind::InvalidData, reason))
    })
}

/// A server told that it has seen a higher epoch (a restored disk): the next grant goes beyond it.
///
/// # Errors
/// When it cannot be written.
pub fn raise_epoch(state_dir: &Path, seen: u64) -> Result<bool, SuperviseError> {
    let path = epoch_path(state_dir);
    if read_epoch(&path)? >= seen {
        return Ok(false);
    }
    files::replace(&path, seen.to_string().as_bytes())
        .map_err(|error| state_error(&path, &error))?;
    Ok(true)
}

fn start(
    program: &Path,
    arguments: &[String],
    state_dir: &Path,
    epoch: u64,
    run: RunId,
) -> Result<Child, SuperviseError> {
    Command::new(program)
        .arg("run")
        .arg("--state-dir")
        .arg(state_dir)
        .args(arguments)
        .env("FAIRLEAD_EPOCH", epoch.to_string())
        .env("FAIRLEAD_RUN", run.to_string())
        .spawn()
        .map_err(SuperviseError::Start)
}

/// Waits for the agent's end; `None` when we were told to stop first.
fn watch(child: &mut Child, signals: &mut Signals) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if signals
            .wait()
            .any(|signal| signal == SIGTERM || signal == SIGINT)
        {
            return None;
        }
    }
}

/// The wait before the next start.
fn next_wait(last: Duration, lived: Duration, status: ExitStatus) -> Duration {
    if status.code() == Some(EXIT_NEEDS_HELP) {
        WAIT_MAX
    } else if lived > HEALTHY_AFTER {
        WAIT_FIRST
    } else {
        (last * 2).min(WAIT_MAX)
    }
}

/// Waits; whether we were told to stop meanwhile.
fn interrupted_while_waiting(wait: Duration, signals: &mut Signals) -> bool {
    let until = Instant::now() + wait;
    while Instant::now() < until {
        if signals
            .pending()
            .any(|signal| signal == SIGTERM || signal == SIGINT)
        {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20).min(wait));
    }
    false
}

/// Asks the agent to leave, and makes it.
fn stop(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have gone already.
        let _ = kill_process(pid, Signal::TERM);
    }
    let until = Instant::now() + LEAVE_WITHIN;
    while Instant::now() < until {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Tells other programs of this machine who runs.
fn write_status(state_dir: &Path, child: &Child, epoch: u64) {
    let status = serde_json::json!({
        "supervisor": std::process::id(), "agent": child.id(), "epoch": epoch,
    });
    if let Err(error) = files::replace(
        &state_dir.join("status.json"),
        status.to_string().as_bytes(),
    ) {
        tracing::warn!(%error, "status could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_and_go_on_from_what_a_server_has_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_epoch(dir.path()).unwrap(), 1);
        assert_eq!(next_epoch(dir.path()).unwrap(), 2);
        assert!(raise_epoch(dir.path(), 40).unwrap());
        assert!(!raise_epoch(dir.path(), 7).unwrap(), "never backwards");
        assert_eq!(next_epoch(dir.path()).unwrap(), 41);
        std::fs::write(epoch_path(dir.path()), "rubbish").unwrap();
        assert!(
            next_epoch(dir.path()).is_err(),
            "a damaged record is not guessed"
        );
    }

    #[test]
    fn one_machine_runs_one_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let held = hold(dir.path()).unwrap();
        assert!(matches!(hold(dir.path()), Err(SuperviseError::Taken(_))));
        drop(held);
        hold(dir.path()).unwrap();
    }
}
