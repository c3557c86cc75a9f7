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

static REPOSITORY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();

/// The repository, with one version in its channel `stable`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn repository() -> &'static Path {
    let (_, path) = REPOSITORY.get_or_init(make);
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
    done(
        Command::new(&packer)
            .args(["pack", "--version", "0.9.0", "--targets", TARGET])
            .arg("--programs")
            .arg(dir.path().join("programs"))
            .arg("--installer")
            .arg(root.join("installer/install.sh"))
            .arg("--metadata")
            .arg(&metadata)
            .arg("--key")
            .arg(&key)
            .arg("--out")
            .arg(&out),
    );
    (dir, out)
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
