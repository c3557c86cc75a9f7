//! What runs that were killed left behind in the engine, known by a label that says who made it. Swept
//! once by each process that has hosts.

use super::run::{docker, docker_says};

/// On everything that is made here; `./dev` looks for it too.
const LABEL: &str = "fairlead.test-host";

/// The label of what a process makes, `PID.START.NAMESPACE`; `None` when there is no such process. A pid
/// is used again, a start time with it is not; of another pid namespace nothing can be said.
#[must_use]
pub fn label_of(pid: u32) -> Option<String> {
    Some(format!("{LABEL}={}", owner_of(pid)?))
}

/// How a process is named on what it makes: `PID.START.NAMESPACE`.
pub(crate) fn owner_of(pid: u32) -> Option<String> {
    Some(format!("{pid}.{}.{}", started(pid)?, namespace()))
}

fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd field; the second, in parentheses, may hold blanks.
    let after_name = stat.rsplit(") ").next()?;
    after_name.split(' ').nth(19).map(str::to_owned)
}

fn namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let digits = |c: &char| c.is_ascii_digit();
    link.to_string_lossy().chars().filter(digits).collect()
}

/// Whether the process that a label names is gone for sure.
pub(crate) fn is_dead(owner: &str) -> bool {
    let mut parts = owner.split('.');
    let (Some(pid), Some(start), Some(space)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Ok(pid) = pid.parse() else { return false };
    space == namespace() && started(pid).as_deref() != Some(start)
}

/// Removes what dead processes made: containers first, they hold the rest.
///
/// # Panics
/// When the engine does not answer.
pub async fn sweep() {
    let filter = format!("label={LABEL}");
    let format = format!("{{{{.ID}}}} {{{{.Label \"{LABEL}\"}}}}");
    let kinds: [(&[&str], &[&str]); 2] = [
        (&["ps", "-a"], &["rm", "-f", "-v"]),
        (&["network", "ls"], &["network", "rm"]),
    ];
    for (list, remove) in kinds {
        let list = [list, &["--filter", &filter, "--format", &format]].concat();
        for line in docker_says(&list).await.lines() {
            if let Some((id, owner)) = line.split_once(' ')
                && is_dead(owner)
            {
                docker(&[remove, &[id]].concat()).await;
            }
        }
    }
    // The list of images has no labels in it.
    let listed = docker_says(&["image", "ls", "-q", "--filter", &filter]).await;
    let format = format!("{{{{index .Config.Labels \"{LABEL}\"}}}}");
    for id in listed.lines() {
        let owner = docker(&["image", "inspect", "--format", &format, id]).await;
        if owner.is_ok() && is_dead(owner.stdout.trim()) {
            docker(&["image", "rm", id]).await;
        }
    }
}
