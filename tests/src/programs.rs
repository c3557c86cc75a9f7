//! Where the programs under test are: built once per test run, in the target directory that this very
//! test was built in. And writing others, stand-ins and scripts, so that they can be started at once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// The path of a program, for instance `fairlead-agent`.
///
/// `FAIRLEAD_TEST_PROGRAMS` names a folder with programs that were built elsewhere; then nothing is
/// built here.
///
/// # Panics
/// When the programs do not build, or one is missing.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = FOLDER.get_or_init(folder).join(name);
    assert!(path.is_file(), "there is no program {}", path.display());
    path
}

/// Writes a program, or a script, that is started next.
///
/// Another process does the writing: with a file of ours open, a child that some other test of this process
/// begins at that moment has it open too until it becomes its own program, and the kernel starts nothing that
/// anybody has open for writing.
///
/// # Panics
/// When it cannot be written.
pub fn write(path: &Path, content: &[u8]) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh can be started");
    let mut input = writer.stdin.take().expect("its input");
    input.write_all(content).expect("it reads");
    drop(input);
    let status = writer.wait().expect("it ends");
    assert!(status.success(), "{}: {status}", path.display());
}

fn folder() -> PathBuf {
    if let Some(given) = std::env::var_os("FAIRLEAD_TEST_PROGRAMS") {
        return given.into();
    }
    // …/target/debug/deps/it-0123456789abcdef
    let own = std::env::current_exe().expect("the path of this test");
    let profile = own
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/PROFILE/deps/TEST");
    let target = profile.parent().expect("the target directory");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The same words as in `./dev test`, so that there is nothing left to build.
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--workspace", "--bins", "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let built = build.output().expect("cargo can be started");
    assert!(
        built.status.success(),
        "the programs do not build:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    profile.to_owned()
}
