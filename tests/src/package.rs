//! A repository of packages with the programs under test, made once for all tests of a run: packed and
//! signed by the project's own packer, with a key that nobody keeps.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::programs::program;

/// What is in a package.
const PROGRAMS: [&str; 4] = [
    "fairlead-agent",
    "fairlead-access-server",
    "fairlead-controller",
    "fairlead",
];
/// The only target that the programs under test are built for.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "linux-aarch64"
} else {
    "linux-x86_64"
};

/// The version in the repository, and the next one.
const VERSION: &str = "0.9.0";
/// See [`VERSION`].
pub const NEWER: &str = "0.9.1";

static REPOSITORY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
static NEWER_REPOSITORY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();

/// The repository, with one version in its channel `stable`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn repository() -> &'static Path {
    let (_, path) = REPOSITORY.get_or_init(make);
    path
}

/// A repository with the same programs as the next version, signed with the same key.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn newer_repository() -> &'static Path {
    let (_, path) = NEWER_REPOSITORY.get_or_init(|| {
        let first = repository().parent().expect("it lies in a folder");
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("packages");
        pack(first, NEWER, &out);
        (dir, out)
    });
    path
}

fn make() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let programs = dir.path().join("programs").join(TARGET);
    std::fs::create_dir_all(&programs).expect("a directory");
    for name in PROGRAMS {
        std::fs::copy(program(name), programs.join(name)).expect("a copy of a program");
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let metadata = dir.path().join("metadata.json");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = done(
        Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--offline"])
            .current_dir(root),
    );
    std::fs::write(&metadata, said.stdout).expect("the metadata");
    let (key, out) = (dir.path().join("key.pem"), dir.path().join("packages"));
    let packer = program("fairlead-packer");
    done(Command::new(&packer).arg("keygen").arg("--out").arg(&key));
    pack(dir.path(), VERSION, &out);
    (dir, out)
}

/// Packs the programs that lie in a folder, with the key there.
fn pack(from: &Path, version: &str, out: &Path) {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    done(
        Command::new(program("fairlead-packer"))
            .args(["pack", "--version", version, "--targets", TARGET])
            .arg("--programs")
            .arg(from.join("programs"))
            .arg("--installer")
            .arg(root.join("installer/install.sh"))
            .arg("--metadata")
            .arg(from.join("metadata.json"))
            .arg("--key")
            .arg(from.join("key.pem"))
            .arg("--out")
            .arg(out),
    );
}

fn done(command: &mut Command) -> Output {
    let output = command.output().expect("it can be started");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
