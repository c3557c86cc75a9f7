//! Ending the processes of an exec, which no engine has a call for, and of a shell on the host.
//!
//! They are found in `/proc`: by an environment variable that only they inherit, and, where one has changed
//! its environment, by the session of the exec's first process. What is in neither is never touched, so an
//! agent that does not see the engine's processes (in a container of its own) ends nothing, and says so.
//!
//! In the moment in which a process takes up another program it has no environment: one that shows none is
//! looked at again before anybody believes that it is a stranger.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How long processes have to go by themselves once their terminal has hung up.
const GRACE: Duration = Duration::from_millis(700);
/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often those that fork while they are being killed are looked for again.
const ROUNDS_MAX: u32 = 100;
/// How long a process that shows no environment is looked at again.
const UNCLEAR_MAX: Duration = Duration::from_millis(500);
/// In the flags of `/proc/PID/stat`: a thread of the kernel, which never has an environment.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// One process, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    pid: u32,
    session: u32,
    namespace: Option<std::path::PathBuf>,
    marked: bool,
    /// It shows no environment now.
    unclear: bool,
}

/// The session that was begun with what is to end.
#[derive(Debug, Default)]
struct Session {
    leader: Option<u32>,
    /// The namespace of the leader's number, where that is known to be still its own.
    here: Option<std::path::PathBuf>,
}

/// Ends the processes that carry `marker`, and the session of `leader` if that is one of them. How many are
/// left.
pub(super) async fn end(leader: Option<u32>, marker: &str) -> usize {
    let marker = marker.to_owned();
    let session = Session { leader, here: None };
    let ended = tokio::task::spawn_blocking(move || end_now(Path::new("/proc"), &session, &marker));
    ended.await.unwrap_or(usize::MAX)
}

/// The same for processes on the host itself, whose session `leader` leads as long as nobody has waited for it.
pub(crate) async fn end_on_host(leader: Option<u32>, marker: &str) -> usize {
    let marker = marker.to_owned();
    let ended = tokio::task::spawn_blocking(move || {
        let here = leader.and_then(|_| std::fs::read_link("/proc/self/ns/pid").ok());
        let session = Session { leader, here };
        end_now(Path::new("/proc"), &session, &marker)
    });
    ended.await.unwrap_or(usize::MAX)
}

/// Returns how many are left. All of `/proc` is looked through when it matters: at first, when those that were
/// found have gone, and for those that fork while they are being killed; in between only at those.
fn end_now(proc: &Path, session: &Session, marker: &str) -> usize {
    let mut targets = targets(proc, session, marker);
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
        targets = self::targets(proc, session, marker);
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

fn targets(proc: &Path, session: &Session, marker: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let mut all: Vec<Found> = entries
        .flatten()
        .filter_map(|entry| look(&entry.path(), marker))
        .collect();
    let mut waited = Duration::ZERO;
    while all.iter().any(|found| found.unclear) && waited < UNCLEAR_MAX {
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
        for found in all.iter_mut().filter(|found| found.unclear) {
            let again = look(&proc.join(found.pid.to_string()), marker);
            found.unclear = false;
            if let Some(again) = again {
                *found = again;
            }
        }
    }
    chosen(&all, session)
}

/// The marked ones, and those of the leader's session in the same container as a marked one (or as the leader).
fn chosen(all: &[Found], session: &Session) -> Vec<u32> {
    let namespaces: Vec<_> = all
        .iter()
        .filter(|p| p.marked)
        .map(|p| &p.namespace)
        .chain([&session.here])
        .collect();
    all.iter()
        .filter(|process| {
            let in_session = session
                .leader
                .is_some_and(|leader| process.session == leader)
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
    let Stat {
        state,
        session,
        flags,
    } = Stat::parse(&stat)?;
    // A zombie has ended; only its parent can let it go.
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let environ = std::fs::read(dir.join("environ"));
    let unclear = flags & KERNEL_THREAD == 0 && environ.as_ref().is_ok_and(Vec::is_empty);
    let environ = environ.unwrap_or_default();
    let marked = environ
        .split(|byte| *byte == 0)
        .any(|variable| variable == marker.as_bytes());
    let namespace = std::fs::read_link(dir.join("ns/pid")).ok();
    Some(Found {
        pid,
        session,
        namespace,
        marked,
        unclear,
    })
}

/// What matters of `/proc/PID/stat`; the name before it may hold anything.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    session: u32,
    flags: u64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,
            session: fields.nth(2)?.parse().ok()?,
            flags: fields.nth(2)?.parse().ok()?,
        })
    }
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
            unclear: false,
        }
    }

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        let stat = "12 (a) b (c)) S 1 12 34 0 -1 4194560 0";
        let parsed = Stat {
            state: 'S',
            session: 34,
            flags: 4_194_560,
        };
        assert_eq!(Stat::parse(stat), Some(parsed));
        assert_eq!(Stat::parse("12 (x"), None);
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
        let led = |leader, here: Option<&str>| Session {
            leader,
            here: here.map(Into::into),
        };
        assert_eq!(chosen(&all, &led(Some(10), None)), [10, 11, 14]);
        assert_eq!(chosen(&all, &led(None, None)), [10, 14]);
        // A number that belongs to a stranger by now, and nothing marked: nobody is touched.
        assert!(chosen(&all[2..4], &led(Some(10), None)).is_empty());
        // One that is known to be the leader's still: those without a mark, too.
        assert_eq!(chosen(&all[1..4], &led(Some(10), Some("host"))), [12]);
    }

    #[test]
    fn one_that_shows_no_environment_is_looked_at_again() {
        let proc = tempfile::tempdir().unwrap();
        let dir = proc.path().join("40");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("stat"), "40 (sh) R 1 40 40 0 -1 4194560 0").unwrap();
        std::fs::write(dir.join("environ"), "").unwrap();
        let environ = dir.join("environ");
        let later = std::thread::spawn(move || {
            std::thread::sleep(3 * LOOK_EVERY);
            std::fs::write(environ, "A=1\0FAIRLEAD_TERMINAL=x\0").unwrap();
        });
        assert_eq!(
            targets(proc.path(), &Session::default(), "FAIRLEAD_TERMINAL=x"),
            [40]
        );
        later.join().unwrap();
        // One that has none for good, and threads of the kernel, hold nobody up.
        std::fs::write(dir.join("environ"), "").unwrap();
        assert!(targets(proc.path(), &Session::default(), "FAIRLEAD_TERMINAL=x").is_empty());
        std::fs::write(dir.join("stat"), "40 (kworker) I 2 0 0 0 -1 69238880 0").unwrap();
        assert!(!look(&dir, "x").unwrap().unclear);
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
        while targets(proc, &Session::default(), &marker).len() < 3 {
            std::thread::yield_now();
        }
        // A zombie until it is waited for here, and so not counted.
        assert_eq!(end_now(proc, &Session::default(), &marker), 0);
        assert!(!child.wait().unwrap().success());
    }
}
