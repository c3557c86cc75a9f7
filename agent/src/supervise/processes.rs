//! The agents' processes: started, signalled, and noticed when they have ended.

use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::host::{Host, now};
use super::{EXIT_NEEDS_HELP, keep_epoch};
use crate::handoff::decide::{Event, Key};
use crate::uninstall;

impl Host<'_> {
    pub(super) fn start_owner(&mut self, key: Key, version: &str, epoch: u64) -> Option<Event> {
        let kept = keep_epoch(self.state_dir, epoch).map_err(|error| error.to_string());
        let kept = kept.and_then(|()| {
            let versions = self.decider.versions();
            let kept = self.layout.keep(self.state_dir, versions);
            kept.map_err(|error| error.to_string())
        });
        if let Err(error) = kept {
            // A full disk passes; a supervisor that gave up would be gone for good.
            tracing::error!(error, "the agent cannot be started; it is tried again");
            self.hear_of_epochs();
            return Some(Event::NotStarted(key, error));
        }
        self.handoff = None;
        self.spawn(key, version, Some(epoch))
    }

    pub(super) fn spawn(&mut self, key: Key, version: &str, epoch: Option<u64>) -> Option<Event> {
        let mut command = Command::new(self.layout.program(version));
        command
            .arg("run")
            .arg("--state-dir")
            .arg(self.state_dir)
            .args(self.arguments)
            .env("FAIRLEAD_EPOCH", epoch.unwrap_or(0).to_string())
            .env("FAIRLEAD_RUN", self.run.to_string())
            .env("FAIRLEAD_SUPERVISOR", std::process::id().to_string())
            .env("FAIRLEAD_INSTANCE_KEY", key.to_string())
            .env_remove("FAIRLEAD_SAFE")
            .env_remove("FAIRLEAD_AMONG_OTHERS");
        if self.socket.is_some() {
            command.env("FAIRLEAD_HANDOFF", &self.socket_path);
        }
        if !self.pids.is_empty() {
            command.env("FAIRLEAD_AMONG_OTHERS", "true");
        }
        if self.decider.versions().safe && epoch.is_some() {
            command.env("FAIRLEAD_SAFE", "true");
        }
        match command.spawn() {
            Ok(child) => {
                tracing::info!(pid = child.id(), key, version, epoch, "agent started");
                self.pids.insert(key, child.id());
                None
            }
            Err(error) => Some(Event::Ended {
                key,
                how: format!("it cannot be started: {error}"),
                needs_help: false,
            }),
        }
    }

    pub(super) fn signal(&self, key: Key, signal: Signal) {
        let pid = self.pids.get(&key).copied();
        if let Some(pid) = pid.and_then(raw) {
            // It may have gone already.
            let _ = kill_process(pid, signal);
        }
    }

    /// Notices which processes have ended.
    pub(super) fn reap(&mut self) {
        let pids: Vec<(Key, u32)> = self.pids.iter().map(|(key, pid)| (*key, *pid)).collect();
        for (key, pid) in pids {
            let Some(status) = ended(pid) else {
                continue;
            };
            self.pids.remove(&key);
            self.waiting.remove(&key);
            self.hear_of_epochs();
            let how = in_words(status);
            tracing::warn!(pid, key, how, "agent ended");
            let code = status.and_then(WaitStatus::exit_status);
            if code == Some(EXIT_NEEDS_HELP) {
                tracing::error!(
                    pid,
                    "the agent waits for a person to mend what it has said; it is tried again every 30 s"
                );
            }
            self.departs |= code == Some(uninstall::EXIT_DEPARTS);
            self.on(Event::Ended {
                key,
                how,
                needs_help: code == Some(EXIT_NEEDS_HELP),
            });
        }
    }

    /// Asks all agents to leave, and makes them.
    pub(super) fn stop(&mut self, within: Duration) {
        let keys: Vec<Key> = self.pids.keys().copied().collect();
        for key in &keys {
            self.signal(*key, Signal::TERM);
        }
        let until = now() + within;
        while now() < until && !self.pids.is_empty() {
            self.pids.retain(|_, pid| ended(*pid).is_none());
            std::thread::sleep(Duration::from_millis(20));
        }
        for key in keys {
            self.signal(key, Signal::KILL);
        }
        for pid in std::mem::take(&mut self.pids).into_values().filter_map(raw) {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// How a process ended, if it has. One that is not ours any more has ended too.
fn ended(pid: u32) -> Option<Option<WaitStatus>> {
    match waitpid(Some(raw(pid)?), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => Some(Some(status)),
        Ok(None) | Err(rustix::io::Errno::INTR) => None,
        Err(_) => Some(None),
    }
}

fn in_words(status: Option<WaitStatus>) -> String {
    let exited = status.and_then(WaitStatus::exit_status);
    let killed = status.and_then(WaitStatus::terminating_signal);
    match (exited, killed) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}
