//! Ending the processes of an exec: no engine has a call for it.
//!
//! They are found in `/proc`: by an environment variable that only they inherit, and, where one has changed
//! its environment, by the session of the exec's first process. What is in neither is never touched, so an
//! agent that does not see the engine's processes (in a container of its own) ends nothing, and says so.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How long processes have to go by themselves once their terminal has hung up.
const GRACE: Duration = Duration::from_millis(700);
/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often those that fork while they are being killed are looked for again.
const ROUNDS_MAX: u32 = 100;

/// One process, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    pid: u32,
    session: u32,
    namespace: Option<std::path::PathBuf>,
    marked: bool,
}

/// Ends the processes that carry `marker`, and the session of `leader` if that is one of them.
pub(super) async fn end(leader: Option<u32>, marker: &str) {
    let marker = marker.to_owned();
    let ended = tokio::task::spawn_blocking(move || end_now(Path::new("/proc"), leader, &marker));
    match ended.await {
        Ok(0) => {}
        Ok(left) => tracing::error!(left, "processes of a terminal could not be ended"),
        Err(error) => tracing::error!(%error, "processes of a terminal were not looked for"),
    }
}

/// Returns how many are left. All of `/proc` is looked through when it matters: at first, when those that were
/// found have gone, and for those that fork while they are being killed; in between only at those.
fn end_now(proc: &Path, leader: Option<u32>, marker: &str) -> usize {
    let mut targets = targets(proc, leader, marker);
    for signal in [Signal::HUP, Signal::TERM] {
        send(&targets, signal);
    }
    let mut waited = Duration::ZERO;
    while !targets.is_empty() && waited < GRACE {
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
        targets.retain(|pid| look(&proc.join(pid.to_string()), marker).is_some());
    }
    for _ in 0..ROUNDS_MAX {
        targets = self::targets(proc, leader, marker);
        if targets.is_empty() {
            break;
        }
        send(&targets, Signal::KILL);
        std::thread::sleep(LOOK_EVERY);
    }
    targets.len()
}

fn send(targets: &[u32], signal: Signal) {
    for pid in targets {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        // One that has gone meanwhile is what was wanted.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

fn targets(proc: &Path, leader: Option<u32>, marker: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let all: Vec<Found> = entries
        .flatten()
        .filter_map(|entry| look(&entry.path(), marker))
        .collect();
    chosen(&all, leader)
}

/// The marked ones, and those of the leader's session in the same container as a marked one.
fn chosen(all: &[Found], leader: Option<u32>) -> Vec<u32> {
    let namespaces: Vec<_> = all
        .iter()
        .filter(|p| p.marked)
        .map(|p| &p.namespace)
        .collect();
    all.iter()
        .filter(|process| {
            let in_session = leader.is_some_and(|leader| process.session == leader)
                && process.namespace.is_some()
                && namespaces.contains(&&process.namespace);
            process.marked || in_session
        })
        .map(|process| process.pid)
        .collect()
}

fn look(dir: &Path, marker: &str) -> Option<Found> {
    let pid: u32 = dir.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
    let (state, session) = state_and_session(&stat)?;
    // A zombie has ended; only its parent can let it go.
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let environ = std::fs::read(dir.join("environ")).unwrap_or_default();
    let marked = environ
        .split(|byte| *byte == 0)
        .any(|variable| variable == marker.as_bytes());
    let namespace = std::fs::read_link(dir.join("ns/pid")).ok();
    Some(Found {
        pid,
        session,
        namespace,
        marked,
    })
}

/// State and session of `/proc/PID/stat`; the name before them may hold anything.
fn state_and_session(stat: &str) -> Option<(char, u32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some((state, session))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pid: u32, session: u32, namespace: &str, marked: bool) -> Found {
        Found {
            pid,
            session,
            namespace: Some(namespace.into()),
            marked,
        }
    }

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        let stat = "12 (a) b (c)) S 1 12 34 0 -1 0";
        assert_eq!(state_and_session(stat), Some(('S', 34)));
        assert_eq!(state_and_session("12 (x"), None);
    }

    #[test]
    fn only_what_is_marked_or_of_its_session_and_container_is_chosen() {
        let all = [
            found(10, 10, "a", true),
            found(11, 10, "a", false),
            found(12, 10, "host", false),
            found(13, 13, "a", false),
            found(14, 14, "a", true),
        ];
        assert_eq!(chosen(&all, Some(10)), [10, 11, 14]);
        assert_eq!(chosen(&all, None), [10, 14]);
        // A number that belongs to a stranger by now, and nothing marked: nobody is touched.
        assert!(chosen(&all[2..4], Some(10)).is_empty());
    }

    #[test]
    fn marked_processes_are_ended_even_if_they_ignore_the_hang_up() {
        let marker = format!("FAIRLEAD_TERMINAL=test-{}", std::process::id());
        let (name, value) = marker.split_once('=').unwrap();
        let script = "trap '' HUP TERM; sleep 60 & sleep 60; sleep 60";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .env(name, value)
            .spawn()
            .unwrap();
        let proc = Path::new("/proc");
        while targets(proc, None, &marker).len() < 3 {
            std::thread::yield_now();
        }
        // A zombie until it is waited for here, and so not counted.
        assert_eq!(end_now(proc, None, &marker), 0);
        assert!(!child.wait().unwrap().success());
    }
}
