//! One child process: started, killed, stopped and continued, started again with the same words.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// How long a process may take to leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);

/// A signal for any process of ours. One that has gone already is no failure.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there and not only waiting to be noticed by its parent.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    // The first thread may have ended while another is in the middle of a sync.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            !stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('Z'))
        })
}

/// One daemon. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// What it is called in failures.
    pub name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts it; what it says goes to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(
        name: &str,
        program: PathBuf,
        arguments: Vec<OsString>,
        environment: Vec<(String, String)>,
        log: PathBuf,
    ) -> Self {
        let mut process = Self {
            name: name.to_owned(),
            program,
            arguments,
            environment,
            log,
            child: None,
        };
        process.start_again();
        process
    }

    /// Starts it with the same words; ends it first if it still runs.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_again(&mut self) {
        self.kill();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log");
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        // What is set for the person at the keyboard is not meant for the process under test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FAIRLEAD_") {
                command.env_remove(name);
            }
        }
        command
            .env("FAIRLEAD_DIE_WITH_PARENT", "1")
            .envs(self.environment.iter().cloned());
        self.child = Some(command.spawn().expect("the program can be started"));
    }

    /// Another program, for the next start.
    pub fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Replaces the value of a flag, for the next start.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.arguments.iter().position(|argument| argument == flag) {
            Some(at) => self.arguments[at + 1] = value.into(),
            None => self.arguments.extend([flag.into(), value.into()]),
        }
    }

    /// Sets a variable of its environment, or none, for the next start.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.environment.retain(|(known, _)| known != name);
        if let Some(value) = value {
            self.environment.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Its pid.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the process runs").id()
    }

    /// Whether it was started and not yet killed (it may have ended by itself).
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Its exit status, when it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
    }

    /// kill -9, and waits until it is gone. Nothing happens when it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP: it is there and silent.
    pub fn freeze(&self) {
        send(self.pid(), Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        send(self.pid(), Signal::CONT);
    }

    /// SIGTERM, and waits until it has left in order.
    ///
    /// # Panics
    /// When it does not leave.
    pub async fn leave(&mut self) -> ExitStatus {
        send(self.pid(), Signal::TERM);
        let status = wait_for(&format!("{} leaves", self.name), LEAVE_WITHIN, async || {
            self.ended().ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        self.child = None;
        status
    }

    /// All it has said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where that is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of what it has said, for failures.
    #[must_use]
    pub fn last_words(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Waits until it has said `words`.
    ///
    /// # Panics
    /// When it does not.
    pub async fn says(&self, words: &str, within: Duration) {
        wait_for(
            &format!("{} says {words:?}", self.name),
            within,
            async || {
                if self.said().contains(words) {
                    Ok(())
                } else {
                    Err(self.last_words())
                }
            },
        )
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
