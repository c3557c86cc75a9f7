//! From built programs to a package in a repository.
//!
//! The order: stamp the programs → Debian packages, list of parts, checksums → manifest → signatures →
//! `install.sh` with the manifest's hash → check it as a stranger would → move it into place in one
//! step → the channel, and the repository's `install.sh`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::package::{
    FileEntry, INSTALLER_NAME, MANIFEST_NAME, Manifest, ManifestError, PublicKey, SIGNATURES_NAME,
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
/// Checksums in a package, for people.
pub const CHECKSUMS_NAME: &str = "SHA256SUMS";
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
        publish(order, channel, &package.script)?;
    }
    Ok(package.manifest)
}

struct Package {
    manifest: Manifest,
    script: String,
    files: Vec<(String, u32, Vec<u8>)>,
}

fn assemble(order: &Order) -> Result<Package, PackError> {
    let units = units(&order.installer)?;
    let mut files = Vec::new();
    for &target in &order.targets {
        pack_target(order, target, &units, &mut files)?;
    }
    let metadata: Vec<_> = order
        .metadata
        .iter()
        .map(|path| files::read(path))
        .collect::<Result<_, _>>()?;
    let parts = sbom::document(
        metadata.iter().map(Vec::as_slice),
        &order.version,
        order.released,
    )?;
    files.push((SBOM_NAME.to_owned(), 0o644, parts.into_bytes()));
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let checksums: String = files
        .iter()
        .map(|(name, _, content)| format!("{}  {name}\n", hex(&sha256(content))))
        .collect();
    files.push((CHECKSUMS_NAME.to_owned(), 0o644, checksums.into_bytes()));

    let entries = files
        .iter()
        .map(|(name, _, content)| FileEntry {
            name: name.clone(),
            size: content.len() as u64,
            sha256: sha256(content),
        })
        .collect();
    let manifest = Manifest::new(
        order.version.clone(),
        order.released,
        order.expires,
        order.min_from.clone(),
        entries,
    )?;
    let text = manifest.to_string();
    let signatures: String = order.keys.iter().map(|k| k.sign(text.as_bytes())).collect();
    let script = script(order, &text)?;
    files.push((MANIFEST_NAME.to_owned(), 0o644, text.into_bytes()));
    files.push((SIGNATURES_NAME.to_owned(), 0o644, signatures.into_bytes()));
    let installer = script.clone().into_bytes();
    files.push((INSTALLER_NAME.to_owned(), 0o755, installer));
    Ok(Package {
        manifest,
        script,
        files,
    })
}

fn pack_target(
    order: &Order,
    target: Target,
    units: &Units,
    files: &mut Vec<(String, u32, Vec<u8>)>,
) -> Result<(), PackError> {
    let stamped = |program: &str| {
        let path = order.programs.join(target.name()).join(program);
        let mut bytes = files::read(&path)?;
        stamp::stamp_program(&mut bytes, &order.version).map_err(at(&path))?;
        Ok::<_, PackError>(bytes)
    };
    let origin = Origin {
        version: &order.version,
        target,
        mtime_s: u64::try_from(order.released.seconds()).unwrap_or(0),
    };
    let (agent, access_server) = (stamped(AGENT)?, stamped(ACCESS_SERVER)?);
    let (controller, cli) = (stamped(CONTROLLER)?, stamped(CLI)?);
    let debs = [
        deb::agent(&origin, agent.clone(), units)?,
        deb::access_server(&origin, access_server.clone(), units)?,
        deb::controller(&origin, controller.clone(), cli.clone(), units)?,
    ];
    for (program, content) in [
        (AGENT, agent),
        (ACCESS_SERVER, access_server),
        (CONTROLLER, controller),
        (CLI, cli),
    ] {
        files.push((target.file(program), 0o755, content));
    }
    files.extend(debs.map(|(name, content)| (name, 0o644, content)));
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(StampError) -> PackError {
    move |source| PackError::Stamp {
        path: path.display().to_string(),
        source,
    }
}

fn script(order: &Order, manifest: &str) -> Result<String, PackError> {
    let mut keys: Vec<_> = order.keys.iter().map(SigningKey::public).collect();
    for key in &order.trust {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let hash = hex(&sha256(manifest.as_bytes()));
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
fn publish(order: &Order, channel: &str, script: &str) -> Result<(), PackError> {
    files::make_dir(&order.out.join(CHANNELS))?;
    let line = format!("{}\n", order.version);
    if channel == "stable" {
        files::replace(&order.out.join(INSTALLER_NAME), 0o755, script.as_bytes())?;
    }
    files::replace(&channel_file(order, channel), 0o644, line.as_bytes())?;
    Ok(())
}
