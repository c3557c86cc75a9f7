//! A package as one tar file (`VERSION/…`), for hosts without a network. Only what is whole and
//! genuine is bundled.

use std::io;
use std::path::Path;

use fairlead_identity::package::{Manifest, Timestamp, TrustedKeys};

use crate::archive::{self, Entry};
use crate::files::{self, FileError};
use crate::verify::{self, VerifyError};

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The package is not to be used.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The archive.
    #[error("cannot make the archive: {0}")]
    Archive(#[from] io::Error),
}

/// Writes a package folder to a tar file that was not there.
///
/// # Errors
/// When the package is not to be used, or the file cannot be written.
pub fn bundle(
    folder: &Path,
    trusted: &TrustedKeys,
    now: Timestamp,
    out: &Path,
) -> Result<Manifest, BundleError> {
    let manifest = verify::verify(folder, trusted, now)?.manifest;
    let version = manifest.version();
    let mut entries = vec![(format!("{version}/"), Entry::Folder)];
    for name in files::names(folder)? {
        let content = files::read(&folder.join(&name))?;
        let mode = if content.starts_with(b"\x7fELF") || content.starts_with(b"#!") {
            0o755
        } else {
            0o644
        };
        entries.push((format!("{version}/{name}"), Entry::File(mode, content)));
    }
    let mtime_s = u64::try_from(manifest.released().seconds()).unwrap_or(0);
    let bytes = archive::tar(entries.iter().map(|(path, e)| (path.as_str(), e)), mtime_s)?;
    files::create(out, 0o644, &bytes)?;
    Ok(manifest)
}
