//! Versions of the agent as the installer lays them out, and signed packages of more of them: good ones, and
//! programs that pretend.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fairlead_identity::digest::sha256;
use fairlead_identity::package::{
    FileEntry, MANIFEST_NAME, Manifest, SIGNATURES_NAME, SigningKey, Timestamp,
};
use fairlead_protocol::software::{MARK_BYTES, MARK_HEAD};
use tempfile::TempDir;

use crate::fleet::{Fleet, HostSide};
use crate::programs::{self, program};

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
        Self::signed_by(SigningKey::generate().expect("a key"))
    }

    fn signed_by(key: SigningKey) -> Self {
        let versions = Self {
            dir: tempfile::tempdir().expect("a directory"),
            key,
            program: std::fs::read(program("fairlead-agent")).expect("the agent"),
        };
        let folder = versions.prefix().join("versions").join(FIRST);
        std::fs::create_dir_all(&folder).expect("a directory");
        programs::write(&folder.join("fairlead-agent"), &versions.stamped(FIRST));
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
        stamped(&self.program, version)
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
        self.package_with(version, program, 3600, "0.0.1")
    }

    /// The same that expires in so many seconds (or did), and may follow on that version.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn package_with(
        &self,
        version: &str,
        program: &[u8],
        expires_in_s: i64,
        min_from: &str,
    ) -> PathBuf {
        let folder = self.dir.path().join("packages").join(version);
        let package = Package {
            version,
            name: PACKED,
            program,
            expires_in_s,
            min_from,
        };
        package.write(&folder, &self.key);
        folder
    }

    /// The key that signs them, as `--trust` takes it.
    #[must_use]
    pub fn trust(&self) -> String {
        self.key.public().to_string()
    }

    /// The packed program in a package.
    #[must_use]
    pub fn packed(package: &Path) -> PathBuf {
        package.join(PACKED)
    }

    /// A package as a controller has it: in its folder, under that version.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn publish(&self, fleet: &Fleet, version: &str, package: &Path) {
        let folder = fleet.dir().join("controller/packages").join(version);
        std::fs::create_dir_all(&folder).expect("a directory");
        for entry in std::fs::read_dir(package).expect("a package") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("a copy");
        }
    }

    /// The key that signs its packages, as agents are told it.
    #[must_use]
    pub fn trusted(&self) -> String {
        self.key.public().to_string()
    }

    /// Another prefix, whose packages are signed by the same key.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn beside(&self) -> Self {
        let key = self.key.to_pem().expect("the key");
        Self::signed_by(SigningKey::from_pem(key.as_bytes()).expect("the key"))
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
            .arg(self.trust())
            .stdin(Stdio::null());
        command
    }
}

/// That program as it is packed as that version.
///
/// # Panics
/// When it has no mark.
#[must_use]
pub fn stamped(program: &[u8], version: &str) -> Vec<u8> {
    let mut program = program.to_vec();
    let at = program
        .windows(MARK_HEAD.len())
        .position(|window| window == MARK_HEAD)
        .expect("a mark");
    let mark = &mut program[at + MARK_HEAD.len()..at + MARK_BYTES];
    mark.fill(b' ');
    mark[..version.len()].copy_from_slice(version.as_bytes());
    program
}

/// A program under test as that version, in a folder of the caller's.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn program_as(name: &str, version: &str, folder: &Path) -> PathBuf {
    let path = folder.join(format!("{name}-{version}"));
    let bytes = std::fs::read(program(name)).expect("the program");
    programs::write(&path, &stamped(&bytes, version));
    path
}

/// A package of one program.
#[derive(Debug)]
pub struct Package<'a> {
    /// Its version.
    pub version: &'a str,
    /// The program's name in it.
    pub name: &'a str,
    /// The program.
    pub program: &'a [u8],
    /// When it expires (or did).
    pub expires_in_s: i64,
    /// The version on which it may follow.
    pub min_from: &'a str,
}

impl Package<'_> {
    /// Writes it into that folder, signed by that key.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn write(&self, folder: &Path, key: &SigningKey) {
        std::fs::create_dir_all(folder).expect("a directory");
        programs::write(&folder.join(self.name), self.program);
        let entry = FileEntry {
            name: self.name.to_owned(),
            size: self.program.len() as u64,
            sha256: sha256(self.program),
        };
        let now = jiff::Timestamp::now().as_second();
        let at = |seconds| Timestamp::from_seconds(seconds).expect("a time");
        let manifest = Manifest::new(
            self.version.parse().expect("a version"),
            at(now + self.expires_in_s.min(0) - 1),
            at(now + self.expires_in_s),
            self.min_from.parse().expect("a version"),
            vec![entry],
        )
        .expect("a manifest")
        .to_string();
        let signature = key.sign(manifest.as_bytes());
        std::fs::write(folder.join(SIGNATURES_NAME), signature).expect("signatures");
        std::fs::write(folder.join(MANIFEST_NAME), manifest).expect("a manifest");
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
