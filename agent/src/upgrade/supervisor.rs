//! The supervisor, as the tool on the host talks to it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::UpgradeError;
use crate::handoff::words::{FromSupervisor, Status, ToSupervisor};

/// How long the supervisor may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// So soon one that becomes another version of itself is back, and knows of its agent's link.
const BACK_WITHIN: Duration = Duration::from_secs(3);

/// The supervisor, as the tool on the host talks to it.
pub(super) struct Supervisor {
    stream: UnixStream,
    path: PathBuf,
}

impl Supervisor {
    pub(super) fn connect(state_dir: &Path) -> Result<Self, UpgradeError> {
        Self::connect_to(state_dir.join("handoff").join("socket"))
    }

    fn connect_to(path: PathBuf) -> Result<Self, UpgradeError> {
        let until = Instant::now() + BACK_WITHIN;
        loop {
            let dialled = UnixStream::connect(&path).and_then(|stream| {
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                Ok(stream)
            });
            match dialled {
                Ok(stream) => return Ok(Self { stream, path }),
                Err(_) if Instant::now() < until => std::thread::sleep(ASK_EVERY),
                Err(error) => {
                    let why = format!("{}: {error}", path.display());
                    return Err(UpgradeError::Supervisor(why));
                }
            }
        }
    }

    fn ask(&mut self, word: &ToSupervisor) -> Result<FromSupervisor, UpgradeError> {
        let asked = || -> io::Result<FromSupervisor> {
            let mut line = serde_json::to_vec(word)?;
            line.push(b'\n');
            (&self.stream).write_all(&line)?;
            let mut answer = Vec::new();
            let mut byte = [0];
            // One answer to one question: nothing comes behind the line.
            loop {
                (&self.stream).read_exact(&mut byte)?;
                if byte == *b"\n" {
                    return Ok(serde_json::from_slice(&answer)?);
                }
                answer.extend_from_slice(&byte);
            }
        };
        asked().map_err(|error| UpgradeError::Supervisor(error.to_string()))
    }

    pub(super) fn status(&mut self) -> Result<Status, UpgradeError> {
        match self.ask_again(&ToSupervisor::Status)? {
            FromSupervisor::Status(status) => Ok(*status),
            _ => Err(UpgradeError::Supervisor("an odd answer".to_owned())),
        }
    }

    /// As `ask`, also when the supervisor becomes another version of itself meanwhile. It does so only while no
    /// upgrade is under way: what it has not answered it has not begun.
    fn ask_again(&mut self, word: &ToSupervisor) -> Result<FromSupervisor, UpgradeError> {
        let until = Instant::now() + BACK_WITHIN;
        loop {
            match self.ask(word) {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= until => return Err(error),
                // The next dial may still reach the one that goes, which resets it.
                Err(_) => {
                    std::thread::sleep(ASK_EVERY);
                    *self = Self::connect_to(self.path.clone())?;
                }
            }
        }
    }

    pub(super) fn upgrade(
        &mut self,
        version: &str,
        say: impl Fn(&str),
    ) -> Result<(), UpgradeError> {
        let word = ToSupervisor::Upgrade {
            version: version.to_owned(),
        };
        let until = Instant::now() + BACK_WITHIN;
        loop {
            match self.ask_again(&word)? {
                FromSupervisor::Begun => break,
                FromSupervisor::Refused { soon: true, .. } if Instant::now() < until => {
                    std::thread::sleep(ASK_EVERY);
                }
                FromSupervisor::Refused { why, .. } => return Err(UpgradeError::No(why)),
                _ => return Err(UpgradeError::Supervisor("an odd answer".to_owned())),
            }
        }
        let mut phase = String::new();
        loop {
            let status = self.status()?;
            if status.phase != phase {
                say(&status.phase);
                phase.clone_from(&status.phase);
            }
            if status.current == version && status.phase == "steady" {
                return Ok(());
            }
            let settled = status.phase == "steady" || status.phase == "vacant";
            if settled && let Some(returned) = &status.returned {
                return Err(UpgradeError::Returned {
                    version: version.to_owned(),
                    why: returned.why.clone(),
                    instead: status.current,
                });
            }
            std::thread::sleep(ASK_EVERY);
        }
    }
}
