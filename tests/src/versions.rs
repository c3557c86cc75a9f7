//! Versions of the agent as the installer lays them out, and signed packages of more of them: good ones, and
//! programs that pretend.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fairlead_identity::digest::sha256;
use fairlead_identity::package::{
    FileEntry, MANIFEST_NAME, Manifest, SIGNATURES_NAME, SigningKey, Timestamp,
};
use fairlead_protocol::software::{MARK_BYTES, MARK_HEAD};
use tempfile::TempDir;

use crate::fleet::HostSide;
use crate::programs::program;

/// The version that is installed at first.
pub const FIRST: &str = "1.0.0";
/// The program's name in packages for this kind of machine.
const PACKED: &str = if cfg!(target_arch = "aarch64") {
    "fairlead-agent-linux-aarch64"
} else {
    "fairlead-agent-linux-x86_64"
};

/// A prefix with versions, and a folder of packages.
pub struct Versions {
    dir: TempDir,
    key: SigningKey,
    program: Vec<u8>,
}

impl Default for Versions {
    fn default() -> Self {
        Self::new()
    }
}

impl Versions {
    /// With the first version installed.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let versions = Self {
            dir: tempfile::tempdir().expect("a directory"),
            key: SigningKey::generate().expect("a key"),
            program: std::fs::read(program("fairlead-agent")).expect("the agent"),
        };
        let folder = versions.prefix().join("versions").join(FIRST);
        std::fs::create_dir_all(&folder).expect("a directory");
        executable(&folder.join("fairlead-agent"), &versions.stamped(FIRST));
        for link in ["current", "supervisor"] {
            symlink(
                Path::new("versions").join(FIRST),
                versions.prefix().join(link),
            )
            .expect("a link");
        }
        versions
    }

    /// Where versions are installed.
    #[must_use]
    pub fn prefix(&self) -> PathBuf {
        self.dir.path().join("prefix")
    }

    /// What the system's service starts.
    #[must_use]
    pub fn supervisor(&self) -> PathBuf {
        self.prefix().join("supervisor/fairlead-agent")
    }

    /// The version that a link leads to.
    ///
    /// # Panics
    /// When there is no such link.
    #[must_use]
    pub fn linked(&self, link: &str) -> String {
        let target = std::fs::read_link(self.prefix().join(link)).expect("a link");
        let name = target.file_name().expect("a name");
        name.to_string_lossy().into_owned()
    }

    /// The agent under test as that version.
    ///
    /// # Panics
    /// When it has no mark.
    #[must_use]
    pub fn stamped(&self, version: &str) -> Vec<u8> {
        let mut program = self.program.clone();
        let at = program
            .windows(MARK_HEAD.len())
            .position(|window| window == MARK_HEAD)
            .expect("a mark");
        let mark = &mut program[at + MARK_HEAD.len()..at + MARK_BYTES];
        mark.fill(b' ');
        mark[..version.len()].copy_from_slice(version.as_bytes());
        program
    }

    /// A package of the agent under test as that version.
    #[must_use]
    pub fn package(&self, version: &str) -> PathBuf {
        self.package_of(version, &self.stamped(version))
    }

    /// A package of a program that answers what an upgrade asks, and does `run` instead of running.
    #[must_use]
    pub fn pretender(&self, version: &str, run: &str) -> PathBuf {
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in\ncheck) echo 'fairlead-agent {version}' ;;\nrun) {run} ;;\nesac\n"
        );
        self.package_of(version, script.as_bytes())
    }

    /// A package of any bytes.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn package_of(&self, version: &str, program: &[u8]) -> PathBuf {
        let folder = self.dir.path().join("packages").join(version);
        std::fs::create_dir_all(&folder).expect("a directory");
        executable(&folder.join(PACKED), program);
        let entry = FileEntry {
            name: PACKED.to_owned(),
            size: program.len() as u64,
            sha256: sha256(program),
        };
        let now = jiff::Timestamp::now().as_second();
        let at = |seconds| Timestamp::from_seconds(seconds).expect("a time");
        let manifest = Manifest::new(
            version.parse().expect("a version"),
            at(now),
            at(now + 3600),
            "0.0.1".parse().expect("a version"),
            vec![entry],
        )
        .expect("a manifest")
        .to_string();
        let signature = self.key.sign(manifest.as_bytes());
        std::fs::write(folder.join(SIGNATURES_NAME), signature).expect("signatures");
        std::fs::write(folder.join(MANIFEST_NAME), manifest).expect("a manifest");
        folder
    }

    /// The packed program in a package.
    #[must_use]
    pub fn packed(package: &Path) -> PathBuf {
        package.join(PACKED)
    }

    /// `fairlead-agent upgrade` on that host.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn upgrade(&self, host: &HostSide, package: &Path) -> Output {
        self.upgrade_command(host, package)
            .output()
            .expect("the agent's tool runs")
    }

    /// The same, to be started.
    #[must_use]
    pub fn upgrade_command(&self, host: &HostSide, package: &Path) -> Command {
        let mut command = Command::new(self.prefix().join("current/fairlead-agent"));
        command
            .args(["upgrade", "--allow-older", "--to"])
            .arg(package)
            .arg("--state-dir")
            .arg(&host.dir)
            .arg("--trust")
            .arg(self.key.public().to_string())
            .stdin(Stdio::null());
        command
    }
}

/// What a program said, both ways.
#[must_use]
pub fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn executable(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a program");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
}
