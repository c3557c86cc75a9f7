//! An upgrade: a package folder is verified, its program put beside the others and tried, and the supervisor is
//! asked to let it run. Begun by the tool on the host, or by a command (`ordered`), which fetches the folder and
//! then starts that tool.
//!
//! Nothing of a package is executed before its signature, its expiry, its version, its size and its digest are
//! good, and nothing is remembered of it before that either.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fairlead_daemon::clock::Clock;
use fairlead_daemon::files;
use fairlead_identity::digest;
use fairlead_identity::package::{
    FileEntry, FileRefused, MANIFEST_BYTES_MAX, MANIFEST_NAME, PublicKey, Refusal,
    SIGNATURES_BYTES_MAX, SIGNATURES_NAME, Timestamp, TrustedKeys, Verified, VerifyError, Version,
};
use fairlead_protocol::codes;

use crate::config::Config;
use crate::identity::IdentityFiles;
use crate::journal;
use crate::supervise::{Layout, PROGRAM};

pub mod ordered;
mod supervisor;

use supervisor::Supervisor;

/// The kind of machine that this program was built for, as packages name it.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "linux-aarch64"
} else {
    "linux-x86_64"
};
/// Room that is left on the disk beside a new program.
const ROOM_LEFT_BYTES: u64 = 64 << 20;
/// How long a new program may take to say that it could work here.
const CHECK_WITHIN: Duration = Duration::from_secs(20);
/// The highest version that was accepted with each key.
const FLOORS: &str = "package-floors";

/// Why there was no upgrade. Before the supervisor was asked nothing has changed that runs.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// A file cannot be used.
    #[error("{path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No key is trusted.
    #[error(
        "no key is trusted: name the one that signs your packages with --trust KEYID:BASE64 or \
         FAIRLEAD_PACKAGE_KEYS (fairlead-packer keygen prints it)"
    )]
    NoKeys,
    /// The signature.
    #[error("the package is not to be believed")]
    Signature(#[from] VerifyError),
    /// Genuine, and not to be used here and now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The program is another than it was.
    #[error("the package is damaged")]
    Content(#[from] FileRefused),
    /// The machine's clock tells no time.
    #[error("the machine's clock is at a time that no package can be judged by: set it")]
    Clock,
    /// Not installed as the installer does.
    #[error(
        "this program does not lie in a folder of versions (PREFIX/versions/V), as the installer lays \
         it out: install with install.sh"
    )]
    NoLayout,
    /// The disk.
    #[error("{path} has {free} bytes free, and {needed} are needed: make room")]
    NoRoom {
        /// Where.
        path: String,
        /// How much there is.
        free: u64,
        /// How much is needed.
        needed: u64,
    },
    /// Other bytes under the same version.
    #[error("version {0} is here already, with another program in it: nothing is changed")]
    Different(String),
    /// It says itself that it could not work here.
    #[error("the new program cannot work here: {0}")]
    Check(String),
    /// No supervisor.
    #[error("the supervisor cannot be asked ({0}): does the agent run?")]
    Supervisor(String),
    /// It said no.
    #[error("the supervisor refused: {0}")]
    No(String),
    /// It did not get, or not keep, the host.
    #[error("version {version} does not have the host: {why}; {instead} goes on")]
    Returned {
        /// Which.
        version: String,
        /// Why.
        why: String,
        /// Which has it.
        instead: String,
    },
}

impl UpgradeError {
    /// The stable code of it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Signature(_) | Self::Refused(_) | Self::Content(_) => codes::PACKAGE_REFUSED,
            Self::Check(_) | Self::Returned { .. } => codes::UPGRADE_RETURNED,
            Self::File { .. }
            | Self::NoKeys
            | Self::Clock
            | Self::NoLayout
            | Self::NoRoom { .. }
            | Self::Different(_)
            | Self::Supervisor(_)
            | Self::No(_) => codes::CANNOT_UPGRADE,
        }
    }
}

/// What is wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The package's folder.
    pub package: &'a Path,
    /// Keys whose packages are believed.
    pub trusted: Vec<PublicKey>,
    /// A version below one that was accepted before is wanted all the same.
    pub allow_older: bool,
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> UpgradeError + use<> {
    let path = path.display().to_string();
    move |source| UpgradeError::File {
        path: path.clone(),
        source,
    }
}

/// Upgrades the agent on this host; its new version. `say` is told how far it is.
///
/// # Errors
/// When it was not done; what ran before goes on then.
pub fn upgrade(
    config: &Config,
    wanted: Wanted<'_>,
    say: impl Fn(&str),
) -> Result<String, UpgradeError> {
    let layout = Layout::of_this_program().map_err(file_error(Path::new(PROGRAM)))?;
    let prefix = layout.prefix().ok_or(UpgradeError::NoLayout)?.to_owned();
    let mut supervisor = Supervisor::connect(&config.state_dir)?;
    let status = supervisor.status()?;
    let now = Timestamp::from_seconds(Clock::system().now_s()).ok_or(UpgradeError::Clock)?;
    let rules = Rules {
        state_dir: &config.state_dir,
        trusted: &wanted.trusted,
        allow_older: wanted.allow_older,
        current: &status.current,
        now,
    };
    let verified = rules.verified(wanted.package)?;
    let version = verified.manifest.version().to_string();
    let entry = verified
        .manifest
        .file(&format!("{PROGRAM}-{TARGET}"))?
        .clone();
    say(&format!("version {version}, signed by {}", verified.key));
    if status.current == version && status.phase == "steady" {
        say("it runs here already");
        return Ok(version);
    }
    place(&wanted, &layout, &prefix, &version, &entry)?;
    check(config, &layout.program(&version), &version)?;
    remember(&config.state_dir, &verified)?;
    say(
        "it could work here; it is started beside the one that runs (Ctrl-C ends this output, not the upgrade)",
    );
    supervisor.upgrade(&version, say)?;
    Ok(version)
}

fn read_bounded(path: &Path, max: usize) -> Result<Vec<u8>, UpgradeError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max as u64 + 1).read_to_end(&mut bytes))
        .map_err(file_error(path))?;
    Ok(bytes)
}

/// What decides whether a package may be used on this host now.
struct Rules<'a> {
    state_dir: &'a Path,
    trusted: &'a [PublicKey],
    allow_older: bool,
    /// The version that is started now.
    current: &'a str,
    now: Timestamp,
}

impl Rules<'_> {
    /// The manifest in that folder, if all that is asked of it before its files holds.
    fn verified(&self, package: &Path) -> Result<Verified, UpgradeError> {
        if self.trusted.is_empty() {
            return Err(UpgradeError::NoKeys);
        }
        let manifest = read_bounded(&package.join(MANIFEST_NAME), MANIFEST_BYTES_MAX)?;
        let signatures = read_bounded(&package.join(SIGNATURES_NAME), SIGNATURES_BYTES_MAX)?;
        let verified = TrustedKeys::new(self.trusted.to_vec()).verify(&manifest, &signatures)?;
        verified.manifest.check_not_expired(self.now)?;
        if let Ok(current) = self.current.parse::<Version>() {
            verified.manifest.check_from(&current)?;
        }
        let floor = floors(self.state_dir)?.remove(&verified.key.to_string());
        if let Some(floor) = floor.and_then(|text| text.parse::<Version>().ok())
            && !self.allow_older
        {
            verified.manifest.check_not_below(&floor)?;
        }
        Ok(verified)
    }
}

fn floors(state_dir: &Path) -> Result<BTreeMap<String, String>, UpgradeError> {
    let path = state_dir.join(FLOORS);
    let bytes = files::read_if_there(&path).map_err(file_error(&path))?;
    match bytes {
        // What cannot be read is not taken for nothing: it would allow every old version.
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(io::Error::from)
            .map_err(file_error(&path)),
        None => Ok(BTreeMap::new()),
    }
}

fn remember(state_dir: &Path, verified: &Verified) -> Result<(), UpgradeError> {
    let path = state_dir.join(FLOORS);
    let mut floors = floors(state_dir)?;
    let floor = floors.entry(verified.key.to_string()).or_default();
    let version = verified.manifest.version();
    let is_higher = floor
        .parse::<Version>()
        .is_ok_and(|floor| verified.manifest.check_not_below(&floor).is_err());
    if is_higher {
        return Ok(());
    }
    *floor = version.to_string();
    let text = serde_json::to_vec(&floors).map_err(io::Error::from);
    text.and_then(|text| files::replace(&path, &text))
        .map_err(file_error(&path))
}

/// Whether so many bytes more leave room on that disk.
fn check_room(on: &Path, coming: u64) -> Result<(), UpgradeError> {
    let free = rustix::fs::statvfs(on)
        .map_err(|error| file_error(on)(error.into()))
        .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))?;
    let needed = coming.saturating_add(ROOM_LEFT_BYTES);
    if free < needed {
        return Err(UpgradeError::NoRoom {
            path: on.display().to_string(),
            free,
            needed,
        });
    }
    Ok(())
}

/// The program in its folder: whole, or not there at all.
fn place(
    wanted: &Wanted<'_>,
    layout: &Layout,
    prefix: &Path,
    version: &str,
    entry: &FileEntry,
) -> Result<(), UpgradeError> {
    let folder = layout.folder(version).ok_or(UpgradeError::NoLayout)?;
    if folder.exists() {
        let there = folder.join(PROGRAM);
        let (size, digest) = digest::of_file(&there).map_err(file_error(&there))?;
        return entry
            .check(size, &digest)
            .map_err(|_| UpgradeError::Different(version.to_owned()));
    }
    check_room(prefix, entry.size)?;
    let source = wanted.package.join(&entry.name);
    let incoming = prefix
        .join("versions")
        .join(format!(".incoming.{}", std::process::id()));
    let placed = place_in(&incoming, &source, entry).and_then(|()| {
        std::fs::rename(&incoming, &folder)
            .and_then(|()| files::sync_parent(&folder))
            .map_err(file_error(&folder))
    });
    if placed.is_err() {
        // What is left of it is of no use to anybody; the first error is what matters.
        let _ = std::fs::remove_dir_all(&incoming);
    }
    placed
}

fn place_in(incoming: &Path, source: &Path, entry: &FileEntry) -> Result<(), UpgradeError> {
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(incoming)
        .map_err(file_error(incoming))?;
    let path = incoming.join(PROGRAM);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&path)
        .map_err(file_error(&path))?;
    let (size, digest) = File::open(source)
        .and_then(|mut source| digest::copy(&mut source, &mut file))
        .map_err(file_error(source))?;
    entry.check(size, &digest)?;
    // The umask may have taken away what others need to start it.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o755))
        .map_err(|error| file_error(&path)(error.into()))?;
    file.sync_all()
        .and_then(|()| File::open(incoming)?.sync_all())
        .map_err(file_error(&path))
}

/// Starts the program once, to hear from itself whether it could work here.
fn check(config: &Config, program: &Path, version: &str) -> Result<(), UpgradeError> {
    let no = |why: String| UpgradeError::Check(why);
    let mut child = Command::new(program)
        .arg("check")
        .arg("--state-dir")
        .arg(&config.state_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| no(format!("it cannot be started: {error}")))?;
    let until = Instant::now() + CHECK_WITHIN;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(no(format!("no answer within {} s", CHECK_WITHIN.as_secs())));
            }
            Err(error) => return Err(no(error.to_string())),
        }
    };
    let mut said = String::new();
    let mut complaint = String::new();
    // What it says is a line; more of it is not read.
    if let Some(stdout) = child.stdout.take() {
        let _ = stdout.take(4096).read_to_string(&mut said);
    }
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut complaint);
    }
    if !status.success() {
        return Err(no(format!("{status}: {}", complaint.trim())));
    }
    let says = said.trim();
    if says == format!("{PROGRAM} {version}") {
        Ok(())
    } else {
        Err(no(format!(
            "it says that it is {says:?}, and not version {version}"
        )))
    }
}

/// What `check` looks at: identity and journals of this host, as this program reads them.
///
/// # Errors
/// In words, when it could not work with them.
pub fn check_here(config: &Config) -> Result<(), String> {
    IdentityFiles::new(&config.state_dir)
        .load()
        .map_err(|error| error.to_string())?;
    journal::check(&config.journal_dir()).map_err(|error| error.to_string())
}
