//! A shell on the host itself: only where its owner's policy file allows it. Like every terminal it lives no
//! longer than its stream and leaves nothing behind.
//!
//! Where systemd runs the agent, the shell becomes a unit of its own (`systemd-run`), because the agent's service
//! is shut in: it could neither write nor gain anything. It ends with its unit, so nothing of it can leave.
//! Elsewhere it is a child of the agent with a session and a controlling terminal of its own; its processes are
//! found by that session and by the variable that they inherit.
//!
//! May use: a pseudo-terminal, `/etc/passwd`, `systemd-run`, `systemctl`, this very program. Never the engine.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use fairlead_link::socket::StreamSocket;
use fairlead_protocol::{CommandId, HostShell, codes};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};

use super::attached::send_output;
use super::outcome::Outcome;
use super::settle::exited;
use super::terminal;
use super::terminal::line::{Again, Line, Sink, Source};
use crate::pty::Pty;
use crate::runtime::docker::processes;
use crate::runtime::{Output, RuntimeError};
use crate::uninstall::{has, under_systemd};

/// Hidden verb of this program: take the terminal on standard input, and become what follows.
pub const LEADER_VERB: &str = "lead-terminal";
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long what is in a unit has to go by itself.
const UNIT_STOPS_WITHIN_S: u32 = 2;
/// A child's end is looked for this often, should its signal get lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Users with these have none.
const NO_SHELLS: [&str; 2] = ["nologin", "false"];

/// Whose shell it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    home: PathBuf,
    shell: PathBuf,
}

/// The line of that user, where its shell is there; else what every system has.
fn account(passwd: &str, uid: u32, is_there: impl Fn(&Path) -> bool) -> Account {
    let line = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 7 && fields[2] == uid.to_string());
    let shell = line
        .as_ref()
        .map(|fields| PathBuf::from(fields[6]))
        .filter(|shell| {
            let name = shell.file_name().and_then(|name| name.to_str());
            shell.is_absolute() && name.is_some_and(|n| !NO_SHELLS.contains(&n)) && is_there(shell)
        });
    Account {
        name: line.as_ref().map_or("root", |fields| fields[0]).to_owned(),
        home: line.map_or_else(|| PathBuf::from("/"), |fields| PathBuf::from(fields[5])),
        shell: shell.unwrap_or_else(|| PathBuf::from("/bin/sh")),
    }
}

fn unit(id: CommandId) -> String {
    format!("fairlead-host-shell-{id}")
}

/// All that its processes inherit: nothing of the agent's.
fn env(account: &Account, id: CommandId) -> Vec<(String, String)> {
    let marker = terminal::marker(id);
    let (name, value) = marker.split_once('=').unwrap_or((&marker, ""));
    let text = |path: &Path| path.display().to_string();
    [
        ("HOME", text(&account.home)),
        ("USER", account.name.clone()),
        ("LOGNAME", account.name.clone()),
        ("SHELL", text(&account.shell)),
        ("PATH", PATH.to_owned()),
        ("TERM", "xterm-256color".to_owned()),
        ("COLORTERM", "truecolor".to_owned()),
        (name, value.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// A child of ours that leads a session on that terminal.
fn child(pty: &Pty, account: &Account, id: CommandId) -> io::Result<Command> {
    // The very program that runs here, also when another version has its place on the disk by now.
    let mut command = Command::new("/proc/self/exe");
    command
        .args([LEADER_VERB, "--"])
        .arg(&account.shell)
        .arg("-l")
        .env_clear()
        .envs(env(account, id))
        .current_dir(if account.home.is_dir() {
            &account.home
        } else {
            Path::new("/")
        })
        .stdin(pty.far()?)
        .stdout(pty.far()?)
        .stderr(pty.far()?);
    Ok(command)
}

/// A unit of its own on that terminal. What waits for it here ends with it, and with its exit code.
fn in_unit(pty: &Pty, account: &Account, id: CommandId) -> Command {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--collect", "--wait", "--service-type=exec"]);
    command.arg(format!("--unit={}", unit(id)));
    command.arg("--description=Fairlead: a shell on this host, recorded");
    for property in [
        "StandardInput=tty",
        "StandardOutput=tty",
        "StandardError=tty",
        "KillMode=control-group",
        "PartOf=fairlead-agent.service",
        "SendSIGHUP=yes",
    ] {
        command.arg(format!("--property={property}"));
    }
    command.arg(format!("--property=TTYPath={}", pty.path().display()));
    command.arg(format!("--property=TimeoutStopSec={UNIT_STOPS_WITHIN_S}"));
    command.arg(format!(
        "--property=WorkingDirectory=-{}",
        account.home.display()
    ));
    for (name, value) in env(account, id) {
        command.arg(format!("--setenv={name}={value}"));
    }
    command.arg("--").arg(&account.shell).arg("-l");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// What this process becomes when it is to lead a session: the terminal on its standard input is its own.
///
/// # Errors
/// When it cannot; else it does not return.
pub fn lead(words: &[String]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else {
        return io::Error::other("no program is named");
    };
    if let Err(error) = rustix::process::setsid() {
        return error.into();
    }
    if let Err(error) = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()) {
        return error.into();
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // The agent is spared when memory is short; what somebody starts in a shell is not.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    Command::new(program).args(arguments).exec()
}

/// Starts it, and sees it and its processes to their end.
pub(super) async fn run(
    wanted: &HostShell,
    stream: Option<StreamSocket>,
    again: Again<'_>,
    forbidden: impl Future<Output = Outcome>,
) -> Result<Outcome, RuntimeError> {
    let id = again.id;
    let Some(stream) = stream else {
        return Ok(Outcome::failed(
            codes::STREAM_NOT_ATTACHED,
            "a terminal needs a stream, and none was attached; nothing was run",
        ));
    };
    let (pty, mut child) = match start(id, wanted) {
        Ok(started) => started,
        Err(error) => {
            let message = format!("no shell can be started on this host: {error}");
            return Ok(Outcome::failed(codes::NO_SHELL, message));
        }
    };
    let (mut sender, mut receiver) = stream.split();
    let seen = {
        let mut line = Line::new(Source::Own(&pty), Sink::Own(&pty), 0);
        tokio::select! {
            seen = terminal::see(&mut line, (&mut sender, &mut receiver), &again, forbidden) => match seen {
                terminal::Seen::Left(outcome) => Seen::Left(outcome),
                // The terminal cannot be read any more.
                terminal::Seen::Ended => Seen::Left(terminal::closed()),
                terminal::Seen::Failed(error) => return Err(error),
            },
            ended = ended(&child) => Seen::Ended(ended),
        }
    };
    // Until it is waited for, its number is nobody else's.
    end(id, Some(child.id())).await;
    let status = tokio::task::spawn_blocking(move || finish(&mut child)).await;
    let outcome = match seen {
        Seen::Left(outcome) => outcome,
        Seen::Ended(Err(error)) => return Err(RuntimeError::Engine(error.to_string())),
        Seen::Ended(Ok(())) => {
            while let Some(piece) = pty.rest() {
                if !send_output(&mut sender, Output::Stdout(piece.into())).await {
                    break;
                }
            }
            match status {
                Ok(Ok((status, said))) => how(status, &said),
                Ok(Err(error)) => return Err(RuntimeError::Engine(error.to_string())),
                Err(error) => return Err(RuntimeError::Engine(error.to_string())),
            }
        }
    };
    super::attached::end((sender, receiver), &outcome).await;
    Ok(outcome)
}

/// How its time came to an end.
enum Seen {
    Left(Outcome),
    Ended(io::Result<()>),
}

fn start(id: CommandId, wanted: &HostShell) -> io::Result<(Pty, Child)> {
    let size = |number| u16::try_from(number).unwrap_or(0);
    let pty = Pty::open(size(wanted.columns), size(wanted.rows))?;
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = rustix::process::geteuid().as_raw();
    let account = account(&passwd, uid, Path::is_file);
    let mut command = if !under_systemd() {
        child(&pty, &account, id)?
    } else if has("systemd-run") {
        in_unit(&pty, &account, id)
    } else {
        let message = "there is no systemd-run here, and the agent's own service is shut in";
        return Err(io::Error::other(message));
    };
    let child = command.spawn()?;
    Ok((pty, child))
}

/// Until the child has ended; it is left to be waited for.
async fn ended(child: &Child) -> io::Result<()> {
    let mut ends = signal(SignalKind::child())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the child has no number"))?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    loop {
        if waitid(WaitId::Pid(pid), options)?.is_some() {
            return Ok(());
        }
        // A timeout is a look more.
        let _ = tokio::time::timeout(LOOK_EVERY, ends.recv()).await;
    }
}

/// Waits for the child, which has ended or is ending; what `systemd-run` had to say.
fn finish(child: &mut Child) -> io::Result<(ExitStatus, String)> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What is no text is no reason.
        let _ = io::Read::read_to_string(&mut stderr, &mut said);
    }
    Ok((child.wait()?, said))
}

fn how(status: ExitStatus, said: &str) -> Outcome {
    let said = said.lines().map(str::trim).find(|line| !line.is_empty());
    if let (Some(said), false) = (said, status.success()) {
        let message =
            format!("the shell could not be started outside of the agent's service: {said}");
        return Outcome::failed(codes::NO_SHELL, message);
    }
    let signalled = status.signal().map(|number| 128 + number);
    exited(i64::from(status.code().or(signalled).unwrap_or(-1)))
}

/// Ends all that a host shell has left; `child`, if it is still to be waited for, leads its session.
pub(super) async fn end(id: CommandId, child: Option<u32>) {
    if under_systemd() {
        let stop = tokio::process::Command::new("systemctl")
            .args(["stop", &format!("{}.service", unit(id))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // One that has gone already cannot be stopped, and need not be.
        let _ = stop.await;
    }
    let left = processes::end_on_host(child, &terminal::marker(id)).await;
    if left > 0 {
        tracing::warn!(command = %id, left, "processes of a shell on this host could not be ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n";

    #[test]
    fn the_shell_is_the_users_own_where_there_is_one() {
        let root = account(PASSWD, 0, |_| true);
        assert_eq!(
            (root.name.as_str(), root.shell.as_path()),
            ("root", Path::new("/bin/bash"))
        );
        assert_eq!(root.home, Path::new("/root"));
        assert_eq!(account(PASSWD, 0, |_| false).shell, Path::new("/bin/sh"));
        assert_eq!(account(PASSWD, 1, |_| true).shell, Path::new("/bin/sh"));
        assert_eq!(account("", 7, |_| true).shell, Path::new("/bin/sh"));
    }

    #[tokio::test]
    async fn nothing_of_the_agent_is_inherited_and_a_unit_says_whose_it_is() {
        let id = CommandId::from_bytes([5; 16]);
        let account = account(PASSWD, 0, |_| true);
        let pty = Pty::open(80, 25).unwrap();
        let unit = in_unit(&pty, &account, id);
        let words: Vec<_> = unit
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        assert!(
            words.contains(&format!("--setenv={}", terminal::marker(id))),
            "{words:?}"
        );
        assert!(words.contains(&format!("--unit=fairlead-host-shell-{id}")));
        let at = words.iter().position(|word| word == "--").unwrap();
        assert_eq!(words[at + 1..], ["/bin/bash", "-l"]);
        let inherited: Vec<_> = env(&account, id)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(
            !inherited
                .iter()
                .any(|name| name.starts_with("FAIRLEAD_") && name != "FAIRLEAD_TERMINAL")
        );
    }

    #[test]
    fn what_systemd_says_is_told_and_a_failing_shell_is_not_mistaken_for_it() {
        let failed = ExitStatus::from_raw(1 << 8);
        assert_eq!(
            how(failed, "Failed to connect to bus\n").code,
            codes::NO_SHELL
        );
        assert_eq!(how(failed, "").exit_code, 1);
        assert_eq!(how(ExitStatus::from_raw(0), "").exit_code, 0);
    }
}
