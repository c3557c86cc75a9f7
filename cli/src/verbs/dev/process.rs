//! One daemon as a child process: started, started again when it dies, stopped.

use std::ffi::OsString;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::exit::{Exit, Failure};
use crate::output::say;

/// First pause before a process is started again.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that lived so long was well: the next pause is short again.
const WELL_AFTER: Duration = Duration::from_secs(5);
/// How long a process may take to leave when it is asked to.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// A daemon and how to start it.
pub(crate) struct Process {
    name: &'static str,
    log: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    /// How often in a row it died soon after its start.
    pub(crate) fast_deaths: u32,
}

impl Process {
    /// Starts it. What it says is added to `log`.
    pub(crate) fn start(
        name: &'static str,
        log: PathBuf,
        program: PathBuf,
        arguments: Vec<OsString>,
    ) -> Result<Self, Failure> {
        let mut process = Self {
            name,
            log,
            program,
            arguments,
            child: None,
            started: Instant::now(),
            pause: PAUSE_FIRST,
            fast_deaths: 0,
        };
        process.spawn()?;
        Ok(process)
    }

    fn spawn(&mut self) -> Result<(), Failure> {
        let failed =
            |e: std::io::Error| Failure::local(&format!("cannot write {}", self.log.display()), &e);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(failed)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // They end themselves should this process be killed.
            .env("FAIRLEAD_DIE_WITH_PARENT", "1")
            // A Ctrl-C of the terminal is for us; we ask them to leave, in order.
            .process_group(0)
            .kill_on_drop(true);
        for not_theirs in [
            "FAIRLEAD_URL",
            "FAIRLEAD_TOKEN",
            "FAIRLEAD_CA",
            "FAIRLEAD_JOIN_TOKEN",
            // All of them are on this machine.
            "HTTPS_PROXY",
            "https_proxy",
        ] {
            command.env_remove(not_theirs);
        }
        let child = command.spawn().map_err(|e| {
            Failure::new(
                Exit::Failed,
                format!("cannot start {}: {e}", self.program.display()),
            )
            .hint("is it built? The daemons lie beside `fairlead`, or in PATH")
        })?;
        self.child = Some(child);
        self.started = Instant::now();
        Ok(())
    }

    /// Its pid, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Notices a death, and starts it again when its pause is over. Says whether it was replaced.
    pub(crate) fn tick(&mut self) -> Result<bool, Failure> {
        let Some(child) = &mut self.child else {
            if self.started.elapsed() < self.pause {
                return Ok(false);
            }
            self.spawn()?;
            return Ok(true);
        };
        let ended = child
            .try_wait()
            .map_err(|e| Failure::local(&format!("cannot watch the {}", self.name), &e))?;
        if let Some(status) = ended {
            let well = self.started.elapsed() >= WELL_AFTER;
            self.pause = if well {
                PAUSE_FIRST
            } else {
                (self.pause * 2).min(PAUSE_MAX)
            };
            self.fast_deaths = if well { 0 } else { self.fast_deaths + 1 };
            // Once is enough for one that cannot start.
            if self.fast_deaths <= 1 {
                say(&format!(
                    "{} ended ({status}); it is started again in {} ms",
                    self.name,
                    self.pause.as_millis()
                ));
            }
            self.child = None;
            self.started = Instant::now();
        }
        Ok(false)
    }

    /// Asks it to leave; ends it when it does not.
    pub(crate) async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Gone already: the wait below returns at once.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(LEAVE_WITHIN, child.wait())
            .await
            .is_err()
        {
            say(&format!("{} does not leave; it is killed", self.name));
            drop(child.kill().await);
        }
    }
}
