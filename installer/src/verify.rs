//! Whether a package is whole and genuine: what a host checks, and what only its maker can.

use std::collections::BTreeMap;
use std::path::Path;

use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::package::{
    self, CHECKSUMS_NAME, CHECKSUMS_SIGNATURES_NAME, FileEntry, FileRefused, INSTALLER_NAME,
    INSTALLER_SIGNATURES_NAME, MANIFEST_NAME, Manifest, Refusal, SIGNATURES_NAME, SignatureError,
    Timestamp, TrustedKeys, Verified,
};

use crate::files::{self, FileError};
use crate::programs::{PROGRAMS, Target};
use crate::stamp::{self, StampError};

/// Why a package is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file is missing or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The signature.
    #[error(transparent)]
    Signature(#[from] package::VerifyError),
    /// The signature of a file beside the manifest.
    #[error("{name}: {source}")]
    Signed {
        /// Which file.
        name: &'static str,
        /// What is wrong.
        source: SignatureError,
    },
    /// Not what the list of checksums says, or not in it.
    #[error("{0} is not what SHA256SUMS says")]
    Checksum(String),
    /// Genuine, and not to be used any more.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file is another than it was.
    #[error(transparent)]
    Content(#[from] FileRefused),
    /// What neither the manifest nor the list of checksums names does not belong there.
    #[error("{0} is named neither by the manifest nor by SHA256SUMS")]
    Stranger(String),
    /// Neither a link nor a folder belongs into a package.
    #[error("{0} is not a plain file")]
    NotPlain(String),
    /// The folder's name is the version.
    #[error("the folder is called {folder:?}, and the manifest is that of {version}")]
    Folder {
        /// Its name.
        folder: String,
        /// The manifest's version.
        version: String,
    },
    /// A file says that it is another version's.
    #[error("{name}: {source}")]
    Stamp {
        /// Which file.
        name: String,
        /// What is wrong.
        source: StampError,
    },
    /// A program says that it is another version.
    #[error("{name} says that it is version {says}")]
    Says {
        /// Which file.
        name: String,
        /// What it says.
        says: String,
    },
}

/// Checks a package folder: signatures, expiry, that its files are exactly those of the manifest and of the
/// list of checksums, and that each says it is of this version.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn verify(
    folder: &Path,
    trusted: &TrustedKeys,
    now: Timestamp,
) -> Result<Verified, VerifyError> {
    let names = files::names(folder)?;
    for name in &names {
        if !files::is_plain(&folder.join(name)) {
            return Err(VerifyError::NotPlain(name.clone()));
        }
    }
    let text = files::read(&folder.join(MANIFEST_NAME))?;
    let verified = trusted.verify(&text, &files::read(&folder.join(SIGNATURES_NAME))?)?;
    let manifest = &verified.manifest;
    manifest.check_not_expired(now)?;
    for file in manifest.files() {
        check_file(folder, manifest, file)?;
    }
    let script = signed(folder, trusted, INSTALLER_NAME, INSTALLER_SIGNATURES_NAME)?;
    let script = String::from_utf8_lossy(&script);
    stamp::check_script(&script, manifest.version(), &hex(&sha256(&text))).map_err(|source| {
        VerifyError::Stamp {
            name: INSTALLER_NAME.to_owned(),
            source,
        }
    })?;
    check_checksums(folder, trusted, &names)?;
    Ok(verified)
}

/// That a package lies in the folder that its version names, as in a repository.
///
/// # Errors
/// When it does not.
pub fn check_folder_name(folder: &Path, manifest: &Manifest) -> Result<(), VerifyError> {
    let name = folder
        .canonicalize()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default();
    let version = manifest.version().to_string();
    if name == version {
        Ok(())
    } else {
        Err(VerifyError::Folder {
            folder: name,
            version,
        })
    }
}

/// The content of a file whose signature is good.
fn signed(
    folder: &Path,
    trusted: &TrustedKeys,
    name: &'static str,
    signatures: &str,
) -> Result<Vec<u8>, VerifyError> {
    let content = files::read(&folder.join(name))?;
    trusted
        .signer(&content, &files::read(&folder.join(signatures))?)
        .map_err(|source| VerifyError::Signed { name, source })?;
    Ok(content)
}

/// Every file is in the list of checksums, as it is, but for the list itself; and nothing else is in it.
fn check_checksums(
    folder: &Path,
    trusted: &TrustedKeys,
    names: &[String],
) -> Result<(), VerifyError> {
    let list = signed(folder, trusted, CHECKSUMS_NAME, CHECKSUMS_SIGNATURES_NAME)?;
    let list = String::from_utf8_lossy(&list);
    let mut named = BTreeMap::new();
    for line in list.lines() {
        let (hash, name) = line.split_once("  ").unwrap_or(("", line));
        named.insert(name, hash);
    }
    for name in names {
        if [CHECKSUMS_NAME, CHECKSUMS_SIGNATURES_NAME].contains(&name.as_str()) {
            continue;
        }
        let Some(hash) = named.remove(name.as_str()) else {
            return Err(VerifyError::Stranger(name.clone()));
        };
        if hash != hex(&sha256(&files::read(&folder.join(name))?)) {
            return Err(VerifyError::Checksum(name.clone()));
        }
    }
    match named.into_keys().next() {
        // Read, so that the error names the file that is not there.
        Some(missing) => files::read(&folder.join(missing))
            .map(drop)
            .map_err(Into::into),
        None => Ok(()),
    }
}

fn check_file(folder: &Path, manifest: &Manifest, file: &FileEntry) -> Result<(), VerifyError> {
    let content = files::read(&folder.join(&file.name))?;
    file.check(content.len() as u64, &sha256(&content))?;
    let is_program = Target::ALL
        .iter()
        .any(|target| PROGRAMS.iter().any(|p| target.file(p) == file.name));
    if !is_program {
        return Ok(());
    }
    let says = stamp::version_of(&content).map_err(|source| VerifyError::Stamp {
        name: file.name.clone(),
        source,
    })?;
    if says == *manifest.version() {
        Ok(())
    } else {
        Err(VerifyError::Says {
            name: file.name.clone(),
            says: says.to_string(),
        })
    }
}
