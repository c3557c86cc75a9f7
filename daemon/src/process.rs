//! What a daemon's process asks of the kernel at its start.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets this process open as many files as it may at all: each connection is one, and the usual limit of
/// 1,024 is a single address's. Called once, by `main`.
pub fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the number of open files stays as it was");
    }
}

/// How many files this process may have open.
#[must_use]
pub fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}
