//! The supervisor: the unit's main process. Starts agents, watches them, grants epochs.
//!
//! Tiny on purpose: no async runtime, no TLS, no network, one thread. Who owns the host is its word alone: the
//! epoch is on disk before the instance that gets it hears of it, grows with each grant, and is never used
//! again. What is to be done `handoff::decide` says; here it is done. When an agent dies it is started again,
//! after a wait that grows while starts fail fast. A new version is started beside the one that runs, and gets
//! the host when it has proved itself (`handoff`).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fairlead_daemon::files::{self, LockError};
use fairlead_daemon::service;
use fairlead_protocol::RunId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};

use crate::handoff::decide::{Decider, Phase, Times};
use crate::uninstall;

mod host;
mod layout;
mod processes;
mod replace;
mod socket;
mod telling;

pub use layout::{Layout, PROGRAM};

use host::Host;

/// The file in the state directory whose lock says that somebody works there.
pub(crate) const LOCK: &str = "supervisor.lock";
/// Taking the agent off is tried again after this.
const DEPART_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long an agent may take to leave when it is asked to.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked at what time has brought, while something is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The same while nothing is.
const LOOK_SELDOM: Duration = Duration::from_secs(1);
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
pub fn supervise(
    state_dir: &Path,
    arguments: &[String],
    times: Times,
) -> Result<(), SuperviseError> {
    files::own_dir(state_dir).map_err(|error| state_error(state_dir, &error))?;
    let _lock = hold(state_dir)?;
    let signals = Wakeups::new().map_err(SuperviseError::Signals)?;
    let layout = Layout::of_this_program().map_err(SuperviseError::Start)?;
    let mut host = match replace::resumed() {
        Some(resumed) => Host::resume(state_dir, arguments, layout, times, resumed),
        None => {
            let run = RunId::from_bytes(fairlead_identity::random::bytes());
            let versions = layout.versions(state_dir);
            // An epoch that cannot be read is found out again, and said, with each start.
            let epoch = read_epoch(&epoch_path(state_dir)).unwrap_or(0);
            let decider = Decider::new(times, epoch, versions);
            Host::new(state_dir, arguments, layout, run, decider)
        }
    };
    // To the service manager this process is the agent, also while no instance can be started: it goes on.
    service::ready();
    loop {
        host.tick();
        host.say_status();
        host.replace_if_due();
        wait(&host, &signals).map_err(SuperviseError::Signals)?;
        if signals.asked_to_leave() {
            host.stop(LEAVE_WITHIN);
            return Ok(());
        }
        host.listen();
        host.reap();
        if host.departs {
            host.stop(LEAVE_WITHIN);
            return depart(state_dir, &signals);
        }
    }
}

/// The agent is to be taken off: starts what does that, and waits to be stopped by it. When it does not
/// come to that, it is started again.
fn depart(state_dir: &Path, signals: &Wakeups) -> Result<(), SuperviseError> {
    let program = std::env::current_exe().map_err(SuperviseError::Start)?;
    loop {
        match uninstall::begin(&program, state_dir) {
            Ok(()) => tracing::info!("the agent is being taken off this machine"),
            Err(error) => {
                tracing::error!(%error, "the agent cannot be taken off; it is tried again");
            }
        }
        let again = host::now() + DEPART_AGAIN_AFTER;
        while host::now() < again {
            wait_for(None, signals, LOOK_SELDOM).map_err(SuperviseError::Signals)?;
            if signals.asked_to_leave() {
                return Ok(());
            }
        }
    }
}

/// Signals, as something that can be waited for together with sockets.
struct Wakeups {
    wake: UnixStream,
    leave: Arc<AtomicBool>,
}

impl Wakeups {
    fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let leave = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&leave))?;
            signal_hook::low_level::pipe::register(signal, woken.try_clone()?)?;
        }
        signal_hook::low_level::pipe::register(SIGCHLD, woken)?;
        Ok(Self { wake, leave })
    }

    fn asked_to_leave(&self) -> bool {
        self.leave.load(Ordering::SeqCst)
    }

    fn drain(&self) {
        let mut buffer = [0; 64];
        while matches!(io::Read::read(&mut &self.wake, &mut buffer), Ok(read) if read > 0) {}
    }
}

/// Waits for a signal, a word, or until it is time to look again.
fn wait(host: &Host<'_>, signals: &Wakeups) -> io::Result<()> {
    let quiet = matches!(host.decider.phase(), Phase::Steady { .. })
        && host.decider.versions().tries_left.is_none()
        && host.decider.instances().len() == 1;
    let time = if quiet { LOOK_SELDOM } else { LOOK_EVERY };
    wait_for(host.socket.as_ref(), signals, time)
}

fn wait_for(socket: Option<&socket::Socket>, signals: &Wakeups, time: Duration) -> io::Result<()> {
    let mut watched = vec![PollFd::from_borrowed_fd(
        signals.wake.as_fd(),
        PollFlags::IN,
    )];
    for (fd, sends) in socket.into_iter().flat_map(socket::Socket::watched) {
        let flags = if sends {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        watched.push(PollFd::from_borrowed_fd(fd, flags));
    }
    let timeout = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut watched, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    signals.drain();
    Ok(())
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

/// Puts an epoch on disk, before anybody gets it; it must be beyond the one that is there.
fn keep_epoch(state_dir: &Path, epoch: u64) -> Result<(), SuperviseError> {
    let path = epoch_path(state_dir);
    let last = read_epoch(&path)?;
    if last >= epoch {
        let reason =
            format!("it holds {last}, which is not below {epoch}: it was raised meanwhile");
        return Err(state_error(&path, &io::Error::other(reason)));
    }
    files::replace(&path, epoch.to_string().as_bytes()).map_err(|error| state_error(&path, &error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_and_go_on_from_what_a_server_has_seen() {
        let dir = tempfile::tempdir().unwrap();
        keep_epoch(dir.path(), 1).unwrap();
        keep_epoch(dir.path(), 3).unwrap();
        assert!(keep_epoch(dir.path(), 3).is_err(), "granted once");
        assert!(raise_epoch(dir.path(), 40).unwrap());
        assert!(!raise_epoch(dir.path(), 7).unwrap(), "never backwards");
        assert!(keep_epoch(dir.path(), 5).is_err());
        keep_epoch(dir.path(), 41).unwrap();
        std::fs::write(epoch_path(dir.path()), "rubbish").unwrap();
        assert!(
            keep_epoch(dir.path(), 42).is_err(),
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
