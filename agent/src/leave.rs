//! What the machine's owner does to end its being a host: give the identity up, or make a disk image of it
//! from which each copy becomes a host of its own. Containers are not touched.

use std::fs::File;
use std::path::Path;

use fairlead_link::proxy::Proxy;
use fairlead_link::socket::Socket;
use fairlead_protocol::version::paths;
use fairlead_protocol::{Leave, LinkDown, LinkUp, codes, limits, link_down, link_up};

use crate::config::Config;
use crate::identity::{Identity, IdentityError, IdentityFiles};
use crate::supervise::{self, LOCK, SuperviseError};

/// Why it was not done. Nothing was changed then, but for `File`, which may come when some of it is gone
/// already: the identity goes first, and what is left is removed by doing it again.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// The agent would go on with what is taken from it.
    #[error("the agent is running: stop it first (systemctl stop fairlead-agent)")]
    Running,
    /// What is there cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Nobody answered.
    #[error(
        "no access server could be told ({reason}), so the identity would go on being good; try again, \
         or have an admin revoke it (`fairlead host rm {name}`) and pass --forget"
    )]
    Unreachable {
        /// The host.
        name: String,
        /// Why.
        reason: String,
    },
    /// A server said no.
    #[error("the server refused: {message} ({code})")]
    Refused {
        /// Stable.
        code: String,
        /// In words.
        message: String,
    },
    /// The state directory cannot be used.
    #[error("{0}")]
    State(String),
    /// A file cannot be removed.
    #[error("cannot remove {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Gives the identity up, at the servers (unless it is only to be forgotten here) and here; the host's
/// name, or `None` when this machine is no host.
///
/// # Errors
/// When the agent runs, nobody can be told, or the files cannot be removed.
pub async fn leave(config: &Config, only_forget: bool) -> Result<Option<String>, LeaveError> {
    let Some(_lock) = alone(&config.state_dir)? else {
        return Ok(None);
    };
    let Some(identity) = IdentityFiles::new(&config.state_dir).load()? else {
        return Ok(None);
    };
    if !only_forget {
        tell(config, &identity).await?;
    }
    forget(&config.state_dir)?;
    Ok(Some(identity.enrolment.name))
}

/// Removes all that makes this machine that one host: its copies enrol anew, each with a join token of
/// its own or one that lets in several. Whether there was anything.
///
/// # Errors
/// When the agent runs, or the files cannot be removed.
pub fn prepare_image(config: &Config) -> Result<bool, LeaveError> {
    forget_alone(&config.state_dir)
}

/// Empties the state directory, with no supervisor beside; whether there was anything.
///
/// # Errors
/// When an agent runs, or something cannot be removed.
pub(crate) fn forget_alone(state_dir: &Path) -> Result<bool, LeaveError> {
    match alone(state_dir)? {
        Some(_lock) => forget(state_dir),
        None => Ok(false),
    }
}

/// Keeps supervisors away as long as the value lives; `None` when there is no state directory.
fn alone(state_dir: &Path) -> Result<Option<File>, LeaveError> {
    if !state_dir.exists() {
        return Ok(None);
    }
    match supervise::hold(state_dir) {
        Ok(lock) => Ok(Some(lock)),
        Err(SuperviseError::Taken(_)) => Err(LeaveError::Running),
        Err(error) => Err(LeaveError::State(error.to_string())),
    }
}

async fn tell(config: &Config, identity: &Identity) -> Result<(), LeaveError> {
    let unreachable = |reason: String| LeaveError::Unreachable {
        name: identity.enrolment.name.clone(),
        reason,
    };
    let proxy = Proxy::from_env().map_err(|error| unreachable(error.to_string()))?;
    let dialler = identity
        .dialler(proxy)
        .map_err(|error| unreachable(error.to_string()))?;
    let known = identity.enrolment.addresses.iter();
    let mut last = "no address is known".to_owned();
    for address in known.chain(&config.addresses) {
        let asked = async {
            let (mut socket, _): (Socket<LinkUp, LinkDown>, _) = dialler
                .messages(address, paths::RENEW, limits::LINK_MESSAGE_BYTES_MAX)
                .await
                .map_err(|error| error.to_string())?;
            let leave = link_up::Kind::Leave(Leave {});
            socket
                .send(&LinkUp { kind: Some(leave) })
                .await
                .map_err(|error| error.to_string())?;
            let answer = socket.hear_message(limits::HELLO_TIMEOUT).await;
            answer.map_err(|error| error.to_string())
        };
        match asked.await {
            Ok(LinkDown {
                kind: Some(link_down::Kind::Left(_)),
            }) => return Ok(()),
            Ok(LinkDown {
                kind: Some(link_down::Kind::Refused(refused)),
            }) if refused.code == codes::REVOKED => return Ok(()),
            Ok(LinkDown {
                kind: Some(link_down::Kind::Refused(refused)),
            }) => {
                return Err(LeaveError::Refused {
                    code: refused.code,
                    message: refused.message,
                });
            }
            Ok(_) => "it answered with something else".clone_into(&mut last),
            Err(reason) => last = format!("{address}: {reason}"),
        }
    }
    Err(unreachable(last))
}

/// Empties the state directory, but for the lock, which is held meanwhile. The identity goes first: a
/// machine that forgot only half is no host.
fn forget(dir: &Path) -> Result<bool, LeaveError> {
    let failed = |path: &Path, error: &std::io::Error| LeaveError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut removed = remove(&dir.join("identity")).map_err(|error| failed(dir, &error))?;
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(failed(dir, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| failed(dir, &error))?;
        if entry.file_name() == LOCK {
            continue;
        }
        removed |= remove(&entry.path()).map_err(|error| failed(&entry.path(), &error))?;
    }
    Ok(removed)
}

fn remove(path: &Path) -> std::io::Result<bool> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if kind.is_dir() {
        std::fs::remove_dir_all(path)?;
    } else {
        std::fs::remove_file(path)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_supervisor_works_with_is_not_taken_from_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("identity"), "x").unwrap();
        let supervisor = supervise::hold(dir.path()).unwrap();
        assert!(matches!(forget_alone(dir.path()), Err(LeaveError::Running)));
        assert!(dir.path().join("identity").exists());
        drop(supervisor);
        assert!(forget_alone(dir.path()).unwrap());
        // And while it is taken away, none begins.
        let _lock = alone(dir.path()).unwrap().unwrap();
        assert!(matches!(
            supervise::hold(dir.path()),
            Err(SuperviseError::Taken(_))
        ));
    }

    #[test]
    fn without_a_state_directory_there_is_nothing_to_give_up_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        assert!(!forget_alone(&none).unwrap());
        assert!(!none.exists());
    }

    #[test]
    fn an_image_keeps_nothing_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        assert!(!forget(&state.join("none")).unwrap());
        for file in ["identity", "next.key", "epoch", "owner.log", LOCK] {
            std::fs::write(state.join(file), "x").unwrap();
        }
        std::fs::create_dir(state.join("journal")).unwrap();
        std::fs::write(state.join("journal/a"), "x").unwrap();
        // What lies elsewhere is not ours, whatever points to it.
        let elsewhere = dir.path().join("../fairlead-elsewhere");
        std::os::unix::fs::symlink(&elsewhere, state.join("spool")).unwrap();
        assert!(forget(state).unwrap());
        let left: Vec<_> = std::fs::read_dir(state)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [LOCK]);
        assert!(!forget(state).unwrap());
    }
}
