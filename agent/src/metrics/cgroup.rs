//! Where a container's counters are (cgroup v1, v2, or both side by side), and what they say.

use std::path::{Component, Path, PathBuf};

use super::read;
use crate::runtime::ContainerProcess;

/// What was read of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) cpu_ns: u64,
    /// Without file pages that the kernel can drop at once, as `docker stats` counts.
    pub(super) memory_used: u64,
    /// `u64::MAX`: none.
    pub(super) memory_limit: u64,
    pub(super) pids: u32,
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Which part of the hierarchy is mounted; `/` but inside containers.
    root: String,
    point: PathBuf,
    /// v1: its controllers; v2: none.
    controllers: Vec<String>,
    v2: bool,
}

/// The hierarchies of this machine.
#[derive(Debug)]
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    pub(super) fn read(root: &Path) -> Self {
        let text = read(&root.join("proc/self/mountinfo")).unwrap_or_default();
        Self(text.lines().filter_map(mount).collect())
    }

    /// The counters of the container that this process belongs to. `None` when they cannot be read,
    /// or when the process is not the container's (any more): numbers of processes come again.
    pub(super) fn counters(&self, root: &Path, process: &ContainerProcess) -> Option<Counters> {
        let groups = read(&root.join(format!("proc/{}/cgroup", process.pid)))?;
        let groups: Vec<(&str, &str)> = groups.lines().filter_map(group).collect();
        if !groups.iter().any(|(_, path)| path.contains(&process.id)) {
            return None;
        }
        let directory = |controller: &str| {
            self.v1(&groups, controller)
                .map(|path| (path, false))
                .or_else(|| self.v2(&groups).map(|path| (path, true)))
                .map(|(path, v2)| (below(root, &path), v2))
        };
        let (cpu, v2) = directory("cpuacct")?;
        let cpu_ns = if v2 {
            field(&read(&cpu.join("cpu.stat"))?, "usage_usec")?.saturating_mul(1000)
        } else {
            number(&cpu.join("cpuacct.usage"))?
        };
        let (memory, v2) = directory("memory")?;
        let (used, limit, cache) = if v2 {
            ("memory.current", "memory.max", "inactive_file")
        } else {
            (
                "memory.usage_in_bytes",
                "memory.limit_in_bytes",
                "total_inactive_file",
            )
        };
        let droppable = read(&memory.join("memory.stat")).and_then(|text| field(&text, cache));
        let memory_used = number(&memory.join(used))?.saturating_sub(droppable.unwrap_or(0));
        // `max`, or a hierarchy without the file: none.
        let memory_limit = number(&memory.join(limit)).unwrap_or(u64::MAX);
        let pids = directory("pids").and_then(|(pids, _)| number(&pids.join("pids.current")));
        let pids = pids.and_then(|pids| u32::try_from(pids).ok()).unwrap_or(0);
        Some(Counters {
            cpu_ns,
            memory_used,
            memory_limit,
            pids,
        })
    }

    fn v1(&self, groups: &[(&str, &str)], controller: &str) -> Option<PathBuf> {
        let has = |names: &str| names.split(',').any(|name| name == controller);
        let (_, path) = groups.iter().find(|(names, _)| has(names))?;
        let mounted = |m: &&Mount| !m.v2 && m.controllers.iter().any(|name| name == controller);
        self.0
            .iter()
            .filter(mounted)
            .find_map(|mount| mount.directory(path))
    }

    fn v2(&self, groups: &[(&str, &str)]) -> Option<PathBuf> {
        let (_, path) = groups.iter().find(|(names, _)| names.is_empty())?;
        self.0
            .iter()
            .filter(|mount| mount.v2)
            .find_map(|mount| mount.directory(path))
    }
}

impl Mount {
    /// The group's directory, if this mount shows it.
    fn directory(&self, path: &str) -> Option<PathBuf> {
        let inner = if self.root == "/" {
            path
        } else {
            let rest = path.strip_prefix(self.root.as_str())?;
            if !rest.is_empty() && !rest.starts_with('/') {
                return None;
            }
            rest
        };
        // A process in another cgroup namespace shows as `/../…`: that is not below this mount.
        let inner = Path::new(inner.trim_start_matches('/'));
        if inner.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        Some(self.point.join(inner))
    }
}

/// A line of mountinfo, if it is a cgroup's.
fn mount(line: &str) -> Option<Mount> {
    let (about, kind) = line.split_once(" - ")?;
    let mut about = about.split(' ').skip(3);
    let (root, point) = (about.next()?, about.next()?);
    let mut kind = kind.split(' ');
    let v2 = match kind.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let controllers = if v2 { "" } else { kind.nth(1)? };
    Some(Mount {
        root: root.to_owned(),
        point: PathBuf::from(point),
        controllers: controllers.split(',').map(str::to_owned).collect(),
        v2,
    })
}

/// A line of /proc/PID/cgroup: its controllers and path.
fn group(line: &str) -> Option<(&str, &str)> {
    line.split_once(':')?.1.split_once(':')
}

/// An absolute path below another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// The number beside a key of a flat file.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_groups_are_read() {
        let line = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct";
        let v1 = mount(line).unwrap();
        assert_eq!(v1.controllers, ["rw", "cpu", "cpuacct"]);
        let line = "41 31 0:38 /docker/1 /sys/fs/cgroup rw shared:4 master:1 - cgroup2 cgroup2 rw";
        let v2 = mount(line).unwrap();
        assert!(v2.v2);
        assert_eq!(
            v2.directory("/docker/1/a"),
            Some(PathBuf::from("/sys/fs/cgroup/a"))
        );
        assert_eq!(v2.directory("/docker/12"), None);
        assert_eq!(v1.directory("/../x"), None);
        assert_eq!(mount("22 1 259:1 / / rw - ext4 /dev/a rw"), None);
        assert_eq!(group("4:memory:/docker/1"), Some(("memory", "/docker/1")));
        assert_eq!(group("0::/a:b"), Some(("", "/a:b")));
    }
}
