//! Files with signing keys: for their owner only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fairlead_identity::package::{KeyError, PublicKey, SigningKey};

use crate::files::{self, FileError};

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content.
    #[error("{path}: {source}")]
    Key {
        /// Which file.
        path: String,
        /// What is wrong.
        source: KeyError,
    },
    /// Others could sign too.
    #[error("{0} can be read by others than its owner: chmod 600 {0}, if nobody has")]
    Open(String),
}

/// Makes a key, writes it to a file that was not there, and returns what verifies it.
///
/// # Errors
/// When the file is there already or cannot be written.
pub fn generate(path: &Path) -> Result<PublicKey, KeyFileError> {
    let named = |source| KeyFileError::Key {
        path: path.display().to_string(),
        source,
    };
    let key = SigningKey::generate().map_err(named)?;
    let pem = key.to_pem().map_err(named)?;
    files::create(path, 0o600, pem.as_bytes())?;
    Ok(key.public())
}

/// The key in a file.
///
/// # Errors
/// When there is none, or others than its owner can read it.
pub fn read(path: &Path) -> Result<SigningKey, KeyFileError> {
    let pem = files::read(path)?;
    let open = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode()) & 0o077;
    if open != 0 {
        return Err(KeyFileError::Open(path.display().to_string()));
    }
    SigningKey::from_pem(&pem).map_err(|source| KeyFileError::Key {
        path: path.display().to_string(),
        source,
    })
}
