//! A host's file tree at one moment, to compare what was before with what is after.

use std::collections::{BTreeMap, BTreeSet};

use super::host::TestHost;

/// Not looked at: what is no disk, what is meant to change by itself, and what its engine keeps.
const LEFT_OUT: [&str; 12] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/var/lib/docker",
    "/var/lib/containerd",
    // Of systemd itself: written at each shutdown, and whenever a timer has gone off.
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/timers",
    // Its address in it is the outer engine's to write.
    "/etc/hosts",
];

/// One file, folder, link or other thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `f`, `d`, `l`, and so on, as `find` says it.
    pub kind: char,
    /// Its permission bits.
    pub mode: u32,
    /// `UID:GID`
    pub owner: String,
    /// In bytes; 0 for a folder, whose size says nothing.
    pub size: u64,
    /// SHA-256 of a file's content, the target of a link, else nothing.
    pub content: String,
    /// When anything of its inode was last changed, in seconds since 1970, as `find` says it.
    pub changed: String,
}

impl Entry {
    fn is_same_as(&self, other: &Self) -> bool {
        let ours = (self.kind, self.mode, &self.owner, self.size, &self.content);
        ours == (
            other.kind,
            other.mode,
            &other.owner,
            other.size,
            &other.content,
        )
    }

    fn in_words(&self) -> String {
        let content = self.content.get(..12).unwrap_or(&self.content);
        format!(
            "{} {:04o} {} {} {content}",
            self.kind, self.mode, self.owner, self.size
        )
    }
}

/// A file tree: path and what is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files(pub BTreeMap<String, Entry>);

impl Files {
    /// What is not the same later, a line each: `added`, `removed`, `altered`. Times are not looked at.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        self.compare(later, Entry::is_same_as)
    }

    /// The same; and whatever was touched without being altered.
    #[must_use]
    pub fn touched(&self, later: &Self) -> Vec<String> {
        self.compare(later, Entry::eq)
    }

    fn compare(&self, later: &Self, same: impl Fn(&Entry, &Entry) -> bool) -> Vec<String> {
        let paths: BTreeSet<_> = self.0.keys().chain(later.0.keys()).collect();
        paths
            .into_iter()
            .filter_map(|path| match (self.0.get(path), later.0.get(path)) {
                (Some(before), Some(after)) if same(before, after) => None,
                (Some(before), Some(after)) => Some(format!(
                    "altered {path}: {} -> {}",
                    before.in_words(),
                    after.in_words()
                )),
                (Some(before), None) => Some(format!("removed {path}: {}", before.in_words())),
                (None, Some(after)) => Some(format!("added {path}: {}", after.in_words())),
                (None, None) => None,
            })
            .collect()
    }
}

impl TestHost {
    /// Its file tree as it is now, without what changes by itself (`/proc`, `/sys`, `/run`, `/tmp`,
    /// `/var/log`, the engine's own folder).
    ///
    /// # Panics
    /// When it cannot be read.
    pub async fn snapshot_files(&self) -> Files {
        let left_out: Vec<String> = LEFT_OUT
            .iter()
            .map(|path| format!("-path {path}"))
            .collect();
        let left_out = left_out.join(" -o ");
        let find = format!("find / -xdev \\( {left_out} \\) -prune -o");
        // Not every file can still be there when it is its turn.
        let listed = self
            .says(&format!(
                r"{find} -printf '%y\t%m\t%U:%G\t%s\t%C@\t%l\t%p\0'"
            ))
            .await;
        let hashed = self
            .says(&format!("{find} -type f -print0 | xargs -0 sha256sum -z"))
            .await;
        let hashes: BTreeMap<&str, &str> = hashed
            .split('\0')
            .filter_map(|line| line.split_once("  "))
            .map(|(hash, path)| (path, hash))
            .collect();
        let entry = |line: &str| {
            let mut fields = line.splitn(7, '\t');
            let mut next = || fields.next().unwrap_or_default();
            let kind = next().chars().next()?;
            let mode = u32::from_str_radix(next(), 8).ok()?;
            let owner = next().to_owned();
            let size = next().parse().ok()?;
            let changed = next().to_owned();
            let target = next();
            let path = next();
            let entry = Entry {
                kind,
                mode,
                owner,
                size: if kind == 'd' { 0 } else { size },
                content: hashes.get(path).copied().unwrap_or(target).to_owned(),
                changed,
            };
            Some((path.to_owned(), entry))
        };
        let lines = listed.split('\0').filter(|line| !line.is_empty());
        Files(
            lines
                .map(|line| entry(line).unwrap_or_else(|| panic!("find says {line:?}")))
                .collect(),
        )
    }
}
