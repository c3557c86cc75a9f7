//! A wrong clock for one process: libfaketime, loaded before it. What counts time (the monotonic clock, the
//! time since boot) goes on as it is.

use std::path::{Path, PathBuf};

use crate::process::Process;

/// Where Debian and Ubuntu have it, by architecture.
fn library() -> Option<PathBuf> {
    ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .iter()
        .map(|tuple| {
            Path::new("/usr/lib")
                .join(tuple)
                .join("faketime/libfaketime.so.1")
        })
        .find(|path| path.exists())
}

/// Whether clocks can be made wrong here.
#[must_use]
pub fn can_be_had() -> bool {
    let can = library().is_some();
    if !can {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("of wrong clocks");
        eprintln!("SKIPPED test {test}: libfaketime is not installed (apt-get install faketime)");
    }
    can
}

/// From its next start on the process and its children are so far off, as libfaketime writes it (`+3600`
/// seconds, `-10y`); `None`: no more.
///
/// # Panics
/// When it cannot be had; ask first.
pub fn set(process: &mut Process, offset: Option<&str>) {
    let library = library().expect("ask first");
    let library = library.to_string_lossy().into_owned();
    let pairs = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME", offset.unwrap_or_default()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    for (name, value) in pairs {
        process.set_env(name, offset.map(|_| value));
    }
}
