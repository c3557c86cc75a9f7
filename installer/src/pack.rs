//! From built programs to a package in a repository.
//!
//! The order, in which each step names what those before it made: stamp the programs → list of parts →
//! manifest → `install.sh` with the manifest's hash → Debian packages, the controller's with all that hosts
//! ask it for → checksums. Manifest, script and checksums are signed. Then: check it as a stranger would →
//! move it into place in one step → the channel, and the repository's `install.sh`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::package::{
    CHECKSUMS_NAME, CHECKSUMS_SIGNATURES_NAME, FileEntry, INSTALLER_NAME,
    INSTALLER_SIGNATURES_NAME, MANIFEST_NAME, Manifest, ManifestError, PublicKey, SIGNATURES_NAME,
    SigningKey, Timestamp, TrustedKeys, Version,
};

use crate::deb::{self, DebError, Origin, Units};
use crate::files::{self, FileError};
use crate::programs::{ACCESS_SERVER, AGENT, CLI, CONTROLLER, Target};
use crate::sbom::{self, SbomError};
use crate::stamp::{self, StampError};
use crate::verify::{self, VerifyError};

/// List of parts in a package.
pub const SBOM_NAME: &str = "sbom.cdx.json";
/// Folder of a repository with the channels.
pub const CHANNELS: &str = "channels";

/// What is to be packed.
pub struct Order {
    /// Folder with one folder for each target, which has all programs.
    pub programs: PathBuf,
    /// Which targets.
    pub targets: Vec<Target>,
    /// `install.sh` before it is filled in.
    pub installer: PathBuf,
    /// What `cargo metadata` says, for each target.
    pub metadata: Vec<PathBuf>,
    /// The version.
    pub version: Version,
    /// When.
    pub released: Timestamp,
    /// Until when.
    pub expires: Timestamp,
    /// The lowest version that an agent may come from.
    pub min_from: Version,
    /// What signs it; at least one.
    pub keys: Vec<SigningKey>,
    /// Further keys that `install.sh` is to believe.
    pub trust: Vec<PublicKey>,
    /// The channel that this version is now the newest of.
    pub channel: Option<String>,
    /// The repository.
    pub out: PathBuf,
}

/// Why nothing was packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program or `install.sh` that cannot be stamped.
    #[error("{path}: {source}")]
    Stamp {
        /// Which file.
        path: String,
        /// Why.
        source: StampError,
    },
    /// A Debian package.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// The list of parts.
    #[error(transparent)]
    Sbom(#[from] SbomError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// `install.sh` does not print its units.
    #[error("`sh {installer} print-unit {unit}` failed: {reason}")]
    Unit {
        /// The script.
        installer: String,
        /// Which unit.
        unit: &'static str,
        /// Why.
        reason: String,
    },
    /// Nothing to pack, or nothing to sign with.
    #[error("{0}")]
    Incomplete(&'static str),
    /// A version that is out is not changed any more: hosts may have it.
    #[error("{0} is there already; a version that is out is not packed again")]
    VersionThere(String),
    /// A channel goes forward only.
    #[error("channel {channel} is at {there}, which is newer; choose another channel, or none")]
    ChannelAhead {
        /// Which.
        channel: String,
        /// Its version.
        there: Version,
    },
    /// A name that a file may not have.
    #[error("{0:?} is no name for a channel")]
    ChannelName(String),
    /// What was made does not stand the check.
    #[error("the finished package does not stand the check: {0}")]
    Check(#[from] VerifyError),
}

/// Packs; gives what the package consists of.
///
/// # Errors
/// When something is missing or not as it should be. The repository is as before then.
pub fn pack(order: &Order) -> Result<Manifest, PackError> {
    if order.targets.is_empty() {
        return Err(PackError::Incomplete("no target was named"));
    }
    if order.keys.is_empty() {
        return Err(PackError::Incomplete("no key to sign with was named"));
    }
    check_channel(order)?;
    let place = order.out.join(order.version.to_string());
    if place.exists() {
        return Err(PackError::VersionThere(place.display().to_string()));
    }
    let package = assemble(order)?;
    let beside = order.out.join(format!(".{}.new", order.version));
    files::remove_dir(&beside)?;
    files::make_dir(&beside)?;
    for (name, mode, content) in &package.files {
        files::create(&beside.join(name), *mode, content)?;
    }
    let trusted = TrustedKeys::new(order.keys.iter().map(SigningKey::public).collect());
    verify::verify(&beside, &trusted, order.released)?;
    files::rename(&beside, &place)?;
    if let Some(channel) = &order.channel {
        publish(order, channel, &package)?;
    }
    Ok(package.manifest)
}

type PackedFile = (String, u32, Vec<u8>);

struct Package {
    manifest: Manifest,
    script: PackedFile,
    script_signatures: PackedFile,
    files: Vec<PackedFile>,
}

/// The programs of one target, stamped.
struct Programs {
    target: Target,
    agent: Vec<u8>,
    access_server: Vec<u8>,
    controller: Vec<u8>,
    cli: Vec<u8>,
}

impl Programs {
    fn files(&self) -> [PackedFile; 4] {
        [
            (AGENT, &self.agent),
            (ACCESS_SERVER, &self.access_server),
            (CONTROLLER, &self.controller),
            (CLI, &self.cli),
        ]
        .map(|(program, content)| (self.target.file(program), 0o755, content.clone()))
    }
}

fn assemble(order: &Order) -> Result<Package, PackError> {
    let units = units(&order.installer)?;
    let targets = order.targets.iter().map(|&target| stamped(order, target));
    let targets: Vec<_> = targets.collect::<Result<_, _>>()?;
    let mut files: Vec<_> = targets.iter().flat_map(Programs::files).collect();
    files.push((SBOM_NAME.to_owned(), 0o644, parts(order)?.into_bytes()));
    files.sort_by(|a, b| a.0.cmp(&b.0));

    let manifest = manifest(order, &files)?;
    let text = manifest.to_string().into_bytes();
    let signatures = signed(order, SIGNATURES_NAME, &text);
    let script = script(order, &text)?.into_bytes();
    let script_signatures = signed(order, INSTALLER_SIGNATURES_NAME, &script);
    let script = (INSTALLER_NAME.to_owned(), 0o755, script);
    files.extend([
        (MANIFEST_NAME.to_owned(), 0o644, text),
        signatures,
        script.clone(),
        script_signatures.clone(),
    ]);

    let for_hosts: Vec<_> = files
        .iter()
        .filter(|f| is_for_hosts(&f.0))
        .cloned()
        .collect();
    for programs in targets {
        files.extend(debs(order, programs, &for_hosts, &units)?);
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let checksums: String = files
        .iter()
        .map(|(name, _, content)| format!("{}  {name}\n", hex(&sha256(content))))
        .collect();
    let checksums = checksums.into_bytes();
    files.push(signed(order, CHECKSUMS_SIGNATURES_NAME, &checksums));
    files.push((CHECKSUMS_NAME.to_owned(), 0o644, checksums));
    Ok(Package {
        manifest,
        script,
        script_signatures,
        files,
    })
}

/// What a machine asks a controller for on its way to become a host.
fn is_for_hosts(name: &str) -> bool {
    let own = [
        MANIFEST_NAME,
        SIGNATURES_NAME,
        INSTALLER_NAME,
        INSTALLER_SIGNATURES_NAME,
    ];
    own.contains(&name) || Target::ALL.iter().any(|target| target.file(AGENT) == name)
}

fn stamped(order: &Order, target: Target) -> Result<Programs, PackError> {
    let stamped = |program: &str| {
        let path = order.programs.join(target.name()).join(program);
        let mut bytes = files::read(&path)?;
        stamp::stamp_program(&mut bytes, &order.version).map_err(at(&path))?;
        Ok::<_, PackError>(bytes)
    };
    Ok(Programs {
        target,
        agent: stamped(AGENT)?,
        access_server: stamped(ACCESS_SERVER)?,
        controller: stamped(CONTROLLER)?,
        cli: stamped(CLI)?,
    })
}

fn parts(order: &Order) -> Result<String, PackError> {
    let metadata: Vec<_> = order
        .metadata
        .iter()
        .map(|path| files::read(path))
        .collect::<Result<_, _>>()?;
    let metadata = metadata.iter().map(Vec::as_slice);
    Ok(sbom::document(metadata, &order.version, order.released)?)
}

fn manifest(order: &Order, files: &[PackedFile]) -> Result<Manifest, PackError> {
    let entries = files
        .iter()
        .map(|(name, _, content)| FileEntry {
            name: name.clone(),
            size: content.len() as u64,
            sha256: sha256(content),
        })
        .collect();
    Ok(Manifest::new(
        order.version.clone(),
        order.released,
        order.expires,
        order.min_from.clone(),
        entries,
    )?)
}

/// A file with each key's signature over these bytes.
fn signed(order: &Order, name: &str, content: &[u8]) -> PackedFile {
    let lines: String = order.keys.iter().map(|key| key.sign(content)).collect();
    (name.to_owned(), 0o644, lines.into_bytes())
}

fn debs(
    order: &Order,
    programs: Programs,
    for_hosts: &[PackedFile],
    units: &Units,
) -> Result<[PackedFile; 3], PackError> {
    let origin = Origin {
        version: &order.version,
        target: programs.target,
        mtime_s: u64::try_from(order.released.seconds()).unwrap_or(0),
    };
    let debs = [
        deb::agent(&origin, programs.agent, units)?,
        deb::access_server(&origin, programs.access_server, units)?,
        deb::controller(&origin, programs.controller, programs.cli, for_hosts, units)?,
    ];
    Ok(debs.map(|(name, content)| (name, 0o644, content)))
}

fn at(path: &Path) -> impl FnOnce(StampError) -> PackError {
    move |source| PackError::Stamp {
        path: path.display().to_string(),
        source,
    }
}

fn script(order: &Order, manifest: &[u8]) -> Result<String, PackError> {
    let mut keys: Vec<_> = order.keys.iter().map(SigningKey::public).collect();
    for key in &order.trust {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let hash = hex(&sha256(manifest));
    stamp::stamp_script(
        &files::read_text(&order.installer)?,
        &order.version,
        &hash,
        &keys,
    )
    .map_err(at(&order.installer))
}

/// What `install.sh` says the units are, so that there is one text of each.
fn units(installer: &Path) -> Result<Units, PackError> {
    let print = |unit: &'static str| {
        let failed = |reason: String| PackError::Unit {
            installer: installer.display().to_string(),
            unit,
            reason,
        };
        let output = Command::new("sh")
            .arg(installer)
            .args(["print-unit", unit])
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && text.contains("[Service]") {
            Ok(text)
        } else {
            Err(failed(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ))
        }
    };
    Ok(Units {
        agent: print("systemd")?,
        controller: print("controller")?,
        access_server: print("access-server")?,
    })
}

fn channel_file(order: &Order, channel: &str) -> PathBuf {
    order.out.join(CHANNELS).join(channel)
}

fn check_channel(order: &Order) -> Result<(), PackError> {
    let Some(channel) = &order.channel else {
        return Ok(());
    };
    let plain = channel
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if channel.is_empty() || channel.starts_with('-') || !plain {
        return Err(PackError::ChannelName(channel.clone()));
    }
    let path = channel_file(order, channel);
    if !path.exists() {
        return Ok(());
    }
    match files::read_text(&path)?.trim().parse::<Version>() {
        Ok(there) if there > order.version => Err(PackError::ChannelAhead {
            channel: channel.clone(),
            there,
        }),
        // What cannot be read as a version is replaced.
        _ => Ok(()),
    }
}

/// The package is in place: from here on it can be found.
fn publish(order: &Order, channel: &str, package: &Package) -> Result<(), PackError> {
    files::make_dir(&order.out.join(CHANNELS))?;
    let line = format!("{}\n", order.version);
    if channel == "stable" {
        for (name, mode, content) in [&package.script_signatures, &package.script] {
            files::replace(&order.out.join(name), *mode, content)?;
        }
    }
    files::replace(&channel_file(order, channel), 0o644, line.as_bytes())?;
    Ok(())
}
