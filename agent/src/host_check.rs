//! What a restart of the container engine would do to this host, and what could keep it from coming back:
//! facts of engine and kernel, each with a verdict in words. Reads only.

use std::path::{Path, PathBuf};

use fairlead_protocol::Container;
use serde::Serialize;

use crate::runtime::{ContainerRuntime, EngineState};

/// Where Docker keeps its data when it does not say.
const ENGINE_DATA_DIR: &str = "/var/lib/docker";
/// With less room than this an engine cannot write what it must write at its start.
const FREE_BYTES_BAD: u64 = 256 << 20;
/// Shares of a limit that are in use, in percent.
const USED_MIND: u64 = 85;
const USED_BAD: u64 = 97;
/// A clock that is this much off is worth a word, or makes certificates and logs wrong.
const CLOCK_MIND_MS: i64 = 2_000;
const CLOCK_BAD_MS: i64 = 60_000;
/// More names than this are counted.
const NAMES_MAX: usize = 8;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Worth knowing.
    Mind,
    /// A restart of the engine would do harm, or not succeed.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `engine`, `live-restore`, `disk`, `kernel`, `clock`.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What that means for a restart of the engine, and what to do.
    pub means: String,
}

/// How much of something is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// In use.
    pub used: u64,
    /// All there is; 0: not known.
    pub limit: u64,
}

impl Use {
    /// Rounded up, so that what is full says 100.
    fn percent(self) -> u64 {
        if self.limit == 0 {
            return 0;
        }
        self.used.saturating_mul(100).div_ceil(self.limit)
    }

    fn verdict(self) -> Verdict {
        match self.percent() {
            USED_BAD.. => Verdict::Bad,
            USED_MIND.. => Verdict::Mind,
            _ => Verdict::Good,
        }
    }
}

/// The file system that holds the engine's data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// The engine's folder.
    pub path: String,
    /// Bytes that are free for everybody.
    pub free: u64,
    /// Bytes.
    pub space: Use,
    /// Files.
    pub files: Use,
}

/// What the kernel says of its own limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Threads, of all processes.
    pub threads: Use,
    /// Open files, of all processes.
    pub files: Use,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The engine.
    pub engine: EngineState,
    /// Its containers; absent: it did not say.
    pub containers: Option<Vec<Container>>,
    /// Its disk; absent: nothing is known of it.
    pub disk: Option<Disk>,
    /// The kernel.
    pub kernel: Kernel,
    /// How far the host's clock is ahead of the region's.
    pub clock_ahead_us: i64,
}

/// Looks at everything.
pub async fn look(runtime: &dyn ContainerRuntime, clock_ahead_us: i64) -> Found {
    let engine = runtime.state().await;
    let containers = if engine.facts.error.is_empty() {
        runtime.list().await.ok()
    } else {
        None
    };
    let data_dir = PathBuf::from(match &engine.data_dir[..] {
        "" => ENGINE_DATA_DIR,
        path => path,
    });
    // A file system can hang.
    let read = tokio::task::spawn_blocking(move || (disk(&data_dir), kernel(Path::new("/"))));
    let (disk, kernel) = read.await.unwrap_or_default();
    Found {
        engine,
        containers,
        disk,
        kernel,
        clock_ahead_us,
    }
}

/// The body of the result: JSON.
#[must_use]
pub fn report(found: &Found) -> String {
    let checks = judge(found);
    let is_good = checks.iter().all(|check| check.verdict != Verdict::Bad);
    serde_json::json!({ "is_good": is_good, "checks": checks }).to_string()
}

/// A verdict on each.
#[must_use]
pub fn judge(found: &Found) -> Vec<Check> {
    [
        Some(engine(&found.engine)),
        live_restore(&found.engine, found.containers.as_deref()),
        found.disk.as_ref().map(on_disk),
        Some(limits(&found.kernel, &found.engine)),
        Some(clock(found.clock_ahead_us)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn engine(state: &EngineState) -> Check {
    let facts = &state.facts;
    if !facts.error.is_empty() {
        return Check {
            name: "engine",
            verdict: Verdict::Bad,
            found: facts.error.clone(),
            means:
                "it does not answer: commands wait for it, and what a restart would do is not known"
                    .to_owned(),
        };
    }
    let parts = [&facts.runtime, &state.storage, &state.cgroups];
    let parts: Vec<&str> = parts
        .into_iter()
        .map(|part| &part[..])
        .filter(|part| !part.is_empty())
        .collect();
    let more = if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join("; "))
    };
    Check {
        name: "engine",
        verdict: Verdict::Good,
        found: format!(
            "{} {}, API {}{more}",
            facts.kind, facts.version, facts.api_version
        ),
        means: "it answers; commands wait while it is restarted".to_owned(),
    }
}

/// What becomes of what runs. Nothing is said of it where the engine does not answer.
fn live_restore(state: &EngineState, containers: Option<&[Container]>) -> Option<Check> {
    let containers = containers?;
    let check = |verdict, found: String, means: String| {
        Some(Check {
            name: "live-restore",
            verdict,
            found,
            means,
        })
    };
    let running: Vec<&Container> = containers
        .iter()
        .filter(|container| matches!(&container.state[..], "running" | "paused" | "restarting"))
        .collect();
    let count = containers_in_words(running.len());
    if state.facts.kind == "podman" {
        let means = "Podman's containers do not depend on its service: they go on".to_owned();
        return check(Verdict::Good, format!("not needed, {count}"), means);
    }
    if state.facts.live_restore {
        let means = "containers go on while the engine is restarted, or replaced by a version that differs in \
                     its last number; what runs by exec is cut off from its command";
        return check(Verdict::Good, format!("on, {count}"), means.to_owned());
    }
    if running.is_empty() {
        let means = "nothing runs that a restart of the engine could stop".to_owned();
        return check(Verdict::Good, format!("off, {count}"), means);
    }
    let comes_back = |container: &&&Container| {
        matches!(&container.restart_policy[..], "always" | "unless-stopped")
    };
    let stay: Vec<&str> = running
        .iter()
        .filter(|container| !comes_back(container))
        .map(|container| &container.name[..])
        .collect();
    let after = if stay.is_empty() {
        "all are started again by it".to_owned()
    } else {
        format!("not started again by it: {}", names(&stay))
    };
    let advice = if state.swarm {
        "a host in a swarm cannot have live-restore"
    } else {
        "set \"live-restore\": true in /etc/docker/daemon.json, then: systemctl reload docker"
    };
    let means = format!("a restart of the engine stops {count}; {after}; {advice}");
    check(Verdict::Bad, format!("off, {count}"), means)
}

fn containers_in_words(count: usize) -> String {
    match count {
        1 => "1 running container".to_owned(),
        _ => format!("{count} running containers"),
    }
}

fn names(all: &[&str]) -> String {
    let shown = all.get(..NAMES_MAX).unwrap_or(all).join(", ");
    match all.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn on_disk(disk: &Disk) -> Check {
    let little = if disk.free < FREE_BYTES_BAD {
        Verdict::Bad
    } else {
        Verdict::Good
    };
    let verdict = disk.space.verdict().max(disk.files.verdict()).max(little);
    let means = match verdict {
        Verdict::Good => "there is room for what the engine writes at its start".to_owned(),
        _ => "an engine that cannot write does not start again: make room (docker image prune)"
            .to_owned(),
    };
    Check {
        name: "disk",
        verdict,
        found: format!(
            "{} MiB free, {} % used, {} % of its files ({})",
            disk.free >> 20,
            disk.space.percent(),
            disk.files.percent(),
            disk.path
        ),
        means,
    }
}

fn limits(kernel: &Kernel, engine: &EngineState) -> Check {
    let used = kernel.threads.verdict().max(kernel.files.verdict());
    let warned = if engine.warnings.is_empty() {
        Verdict::Good
    } else {
        Verdict::Mind
    };
    let mut means = match used {
        Verdict::Good => "room for the engine's own threads and files".to_owned(),
        _ => "the engine, and what it starts, may get no more threads or files: raise kernel.pid_max, \
              kernel.threads-max or fs.file-max"
            .to_owned(),
    };
    for warning in engine.warnings.iter().take(NAMES_MAX) {
        means.push_str("; the engine says: ");
        means.push_str(warning.trim_start_matches("WARNING: "));
    }
    Check {
        name: "kernel",
        verdict: used.max(warned),
        found: format!(
            "{} of {} threads, {} of {} open files",
            kernel.threads.used, kernel.threads.limit, kernel.files.used, kernel.files.limit
        ),
        means,
    }
}

fn clock(ahead_us: i64) -> Check {
    let ahead_ms = ahead_us / 1_000;
    let verdict = match ahead_ms.abs() {
        CLOCK_BAD_MS.. => Verdict::Bad,
        CLOCK_MIND_MS.. => Verdict::Mind,
        _ => Verdict::Good,
    };
    let way = if ahead_ms < 0 { "behind" } else { "ahead of" };
    Check {
        name: "clock",
        verdict,
        found: format!("{} ms {way} the region's", ahead_ms.abs()),
        means: match verdict {
            Verdict::Good => "times in logs and of restarts can be believed".to_owned(),
            _ => "times in logs and of restarts are wrong, commands are not: set the clock"
                .to_owned(),
        },
    }
}

fn disk(data_dir: &Path) -> Option<Disk> {
    let (path, about) = data_dir
        .ancestors()
        .find_map(|path| Some((path, rustix::fs::statvfs(path).ok()?)))?;
    let bytes = |blocks: u64| blocks.saturating_mul(about.f_frsize);
    Some(Disk {
        path: path.display().to_string(),
        free: bytes(about.f_bavail),
        space: Use {
            used: bytes(about.f_blocks.saturating_sub(about.f_bfree)),
            limit: bytes(about.f_blocks),
        },
        files: Use {
            used: about.f_files.saturating_sub(about.f_ffree),
            limit: about.f_files,
        },
    })
}

/// Of the machine whose files lie below `root`.
fn kernel(root: &Path) -> Kernel {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    // "0.10 0.20 0.30 2/345 6789": of 345 threads two run.
    let load = read("proc/loadavg");
    let threads = load
        .split_whitespace()
        .nth(3)
        .and_then(|both| both.split_once('/'))
        .map_or(0, |(_, all)| number(all));
    let (pids, most) = (
        number(&read("proc/sys/kernel/pid_max")),
        number(&read("proc/sys/kernel/threads-max")),
    );
    // Open, free (always 0), most.
    let files = read("proc/sys/fs/file-nr");
    let mut files = files.split_whitespace().map(number);
    Kernel {
        threads: Use {
            used: threads,
            limit: [pids, most]
                .into_iter()
                .filter(|n| *n > 0)
                .min()
                .unwrap_or(0),
        },
        files: Use {
            used: files.next().unwrap_or(0),
            limit: files.nth(1).unwrap_or(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use fairlead_protocol::EngineFacts;

    use super::*;
    use crate::runtime::simulated::{SimulatedOptions, SimulatedRuntime};

    fn container(name: &str, state: &str, policy: &str) -> Container {
        Container {
            name: name.to_owned(),
            state: state.to_owned(),
            restart_policy: policy.to_owned(),
            ..Container::default()
        }
    }

    fn found(live_restore: bool, containers: Vec<Container>) -> Found {
        Found {
            engine: EngineState {
                facts: EngineFacts {
                    kind: "docker".to_owned(),
                    version: "20.10.24".to_owned(),
                    api_version: "1.41".to_owned(),
                    live_restore,
                    ..EngineFacts::default()
                },
                ..EngineState::default()
            },
            containers: Some(containers),
            ..Found::default()
        }
    }

    fn verdict(found: &Found, name: &str) -> (Verdict, String) {
        let checks = judge(found);
        let check = checks.into_iter().find(|check| check.name == name);
        check.map(|check| (check.verdict, check.means)).unwrap()
    }

    #[test]
    fn what_a_restart_would_stop_is_said_by_name() {
        let containers = vec![
            container("web", "running", "always"),
            container("db", "running", "unless-stopped"),
            container("job", "running", "no"),
            container("once", "paused", "on-failure"),
            container("old", "exited", "always"),
        ];
        let (bad, means) = verdict(&found(false, containers.clone()), "live-restore");
        assert_eq!(bad, Verdict::Bad);
        assert!(means.contains("stops 4 running containers"), "{means}");
        assert!(
            means.contains("not started again by it: job, once;"),
            "{means}"
        );
        assert!(means.contains("systemctl reload docker"), "{means}");

        let (good, means) = verdict(&found(true, containers.clone()), "live-restore");
        assert_eq!(good, Verdict::Good, "{means}");
        let mut podman = found(false, containers);
        podman.engine.facts.kind = "podman".to_owned();
        assert_eq!(verdict(&podman, "live-restore").0, Verdict::Good);
        let still = found(false, vec![container("old", "exited", "always")]);
        assert_eq!(verdict(&still, "live-restore").0, Verdict::Good);

        let many: Vec<Container> = (0..20)
            .map(|n| container(&format!("c{n}"), "running", ""))
            .collect();
        let (_, means) = verdict(&found(false, many), "live-restore");
        assert!(means.contains("c7 and 12 more"), "{means}");
    }

    #[test]
    fn an_engine_that_is_away_is_bad_and_nothing_is_guessed_of_its_containers() {
        let mut away = found(false, Vec::new());
        away.engine.facts.error = "no such socket".to_owned();
        away.containers = None;
        assert_eq!(verdict(&away, "engine").0, Verdict::Bad);
        assert!(
            judge(&away)
                .iter()
                .all(|check| check.name != "live-restore")
        );
        let report: serde_json::Value = serde_json::from_str(&report(&away)).unwrap();
        assert_eq!(report["is_good"], false);
        assert_eq!(report["checks"][0]["verdict"], "bad");
    }

    #[test]
    fn what_is_nearly_used_up_is_said_before_it_is_used_up() {
        let mut small = found(true, Vec::new());
        let of = |used, limit| Use { used, limit };
        let mut disk = Disk {
            free: 10 << 30,
            space: of(10, 100),
            files: of(10, 100),
            ..Disk::default()
        };
        let mut disk_is = |change: fn(&mut Disk)| {
            let mut changed = disk.clone();
            change(&mut changed);
            small.disk = Some(changed);
            verdict(&small, "disk").0
        };
        assert_eq!(disk_is(|_| {}), Verdict::Good);
        assert_eq!(disk_is(|disk| disk.space.used = 90), Verdict::Mind);
        assert_eq!(disk_is(|disk| disk.files.used = 99), Verdict::Bad);
        assert_eq!(disk_is(|disk| disk.free = 1 << 20), Verdict::Bad);
        disk.files = of(0, 0);
        small.disk = Some(disk);
        assert_eq!(
            verdict(&small, "disk").0,
            Verdict::Good,
            "btrfs counts no files"
        );

        small.kernel.threads = of(99, 100);
        assert_eq!(verdict(&small, "kernel").0, Verdict::Bad);
        small.kernel.threads = of(1, 100);
        small.engine.warnings = vec!["WARNING: No swap limit support".to_owned()];
        let (mind, means) = verdict(&small, "kernel");
        assert_eq!(mind, Verdict::Mind);
        assert!(
            means.contains("the engine says: No swap limit support"),
            "{means}"
        );

        for (ahead_ms, expected) in [
            (0, Verdict::Good),
            (-1_999, Verdict::Good),
            (-2_000, Verdict::Mind),
            (60_000, Verdict::Bad),
        ] {
            small.clock_ahead_us = ahead_ms * 1_000;
            assert_eq!(verdict(&small, "clock").0, expected, "{ahead_ms}");
        }
    }

    #[tokio::test]
    async fn this_machine_can_be_looked_at() {
        let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
        let found = look(&runtime, 0).await;
        let kernel = found.kernel;
        assert!(kernel.threads.used > 1 && kernel.threads.limit > kernel.threads.used);
        assert!(kernel.files.used > 1 && kernel.files.limit > kernel.files.used);
        assert!(found.disk.is_some_and(|disk| disk.space.limit > disk.free));
        assert_eq!(super::kernel(Path::new("/no/such/root")), Kernel::default());
    }
}
