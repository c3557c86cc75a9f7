//! The log for the machine's owner: who did what here, in plain words, kept on this machine and
//! readable without the centre (`fairlead-agent log`). One JSON object a line; when the file is full
//! the older half goes to `owner.log.1`.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fairlead_daemon::clock::Clock;
use fairlead_protocol::{Command, CommandId};
use serde::{Deserialize, Serialize};

/// Size at which the file is set aside and a new one begun; two are kept.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since 1970, by this machine's clock.
    pub at_us: i64,
    /// Who asked.
    pub who: String,
    /// What happened, in words.
    pub what: String,
    /// The command's id; empty: none.
    #[serde(default)]
    pub command: String,
}

/// Writes the log. Cheap to clone.
#[derive(Clone)]
pub struct OwnerLog {
    path: Arc<PathBuf>,
    clock: Clock,
    lock: Arc<Mutex<()>>,
}

impl OwnerLog {
    /// The log in that file.
    #[must_use]
    pub fn new(path: PathBuf, clock: Clock) -> Self {
        Self {
            path: Arc::new(path),
            clock,
            lock: Arc::new(Mutex::new(())),
        }
    }

    /// A command with an effect begins: the engine is asked for it; `again`, when an instance before this one
    /// was at it and had not done it.
    pub fn begun(&self, id: CommandId, command: &Command, again: bool) {
        let began = if again { "began again" } else { "began" };
        self.write(
            &command.issuer,
            format!("{began}: {}", in_words(command)),
            &id.to_string(),
        );
    }

    /// It has ended.
    pub fn ended(&self, id: CommandId, command: &Command, how: &str, message: &str) {
        let mut what = format!("{how}: {}", in_words(command));
        if !message.is_empty() {
            what.push_str(" (");
            what.push_str(message);
            what.push(')');
        }
        self.write(&command.issuer, what, &id.to_string());
    }

    /// A command was refused because it was not the installation's.
    pub fn refused(&self, why: &str) {
        self.write("unknown", format!("a command was refused: {why}"), "");
    }

    /// Something about the agent itself.
    pub fn agent(&self, what: &str) {
        self.write("fairlead-agent", what.to_owned(), "");
    }

    fn write(&self, who: &str, what: String, command: &str) {
        let line = Line {
            at_us: self.clock.now_us(),
            who: printable(who),
            what: printable(&what),
            command: command.to_owned(),
        };
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = append(&self.path, &line) {
            // The owner's log never stops the work; the process log says that it is not written.
            tracing::warn!(path = %self.path.display(), %error, "owner's log could not be written");
        }
    }
}

fn append(path: &Path, line: &Line) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > FILE_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())
}

/// The lines that are kept, oldest first. Half a line (a power cut) is passed over.
///
/// # Errors
/// When a file is there but cannot be read.
pub fn read(path: &Path) -> std::io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for path in [path.with_extension("log.1"), path.to_owned()] {
        match std::fs::File::open(&path) {
            Ok(file) => {
                for text in BufReader::new(file).lines() {
                    lines.extend(serde_json::from_str::<Line>(&text?).ok());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

/// A line for people: time, who, what.
#[must_use]
pub fn in_one_line(line: &Line) -> String {
    let at = jiff::Timestamp::from_microsecond(line.at_us)
        .map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
        .unwrap_or_default();
    let command = line
        .command
        .get(..6)
        .map(|id| format!("  [{id}]"))
        .unwrap_or_default();
    format!("{at}  {}  {}{command}", line.who, line.what)
}

/// What a command does, as its machine's owner would say it.
fn in_words(command: &Command) -> String {
    use fairlead_protocol::command::Kind;
    let Some(kind) = command.kind.as_ref() else {
        return "something unknown".to_owned();
    };
    let target = kind.target();
    match kind {
        Kind::Run(k) => {
            let image = k.spec.as_ref().map_or("", |spec| &spec.image);
            format!("run a new container {target} from image {image}")
        }
        Kind::Create(k) => {
            let image = k.spec.as_ref().map_or("", |spec| &spec.image);
            format!("create a container {target} from image {image}")
        }
        Kind::Start(_) => format!("start container {target}"),
        Kind::Stop(_) => format!("stop container {target}"),
        Kind::Restart(_) => format!("restart container {target}"),
        Kind::Kill(k) if k.signal.is_empty() => format!("kill container {target}"),
        Kind::Kill(k) => format!("send {} to container {target}", k.signal),
        Kind::Remove(_) => format!("remove container {target}"),
        Kind::Pull(_) => format!("pull image {target}"),
        Kind::Inspect(_) => format!("look at {target}"),
        Kind::Exec(k) => format!("run `{}` in container {target}", k.command.join(" ")),
        Kind::Logs(_) => format!("read the log of container {target}"),
        Kind::CopyIn(k) => format!("copy files into container {target} at {}", k.path),
        Kind::CopyOut(k) => format!("copy {} out of container {target}", k.path),
        Kind::List(_) => "list the containers".to_owned(),
        Kind::PruneImages(_) => "remove unused images".to_owned(),
        Kind::RenewCertificate(_) => "renew this machine's certificate".to_owned(),
        Kind::Ping(_) => "ask for a sign of life".to_owned(),
        Kind::HostShell(_) => "open a shell on this machine itself".to_owned(),
        Kind::UpgradeAgent(k) => format!("upgrade Fairlead's agent to version {}", k.version),
        Kind::UninstallAgent(_) => "take Fairlead's agent off this machine".to_owned(),
    }
}

/// Without control characters, which could make a terminal show something else.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back_and_half_a_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owner.log");
        let log = OwnerLog::new(path.clone(), Clock::manual(5));
        log.agent("started \u{1b}[2J");
        log.refused("the signature does not fit the command");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"at_us\":1,\"who\"").unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines.len(), 2);
        assert!(!lines[0].what.contains('\u{1b}'));
        assert!(lines[1].what.contains("refused"));
    }
}
