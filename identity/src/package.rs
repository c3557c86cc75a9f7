//! What a packaged version of Fairlead's programs consists of, and who says so.
//!
//! A package is a folder: the programs, a **manifest** that names each of them with its size and
//! SHA-256, and signatures over the manifest's exact bytes. Beside them lie what is made of these and so
//! cannot be named there: `install.sh` and the list of checksums, each with signatures of its own, and the
//! Debian packages, which the list names. The manifest's format is a contract with
//! `installer/install.sh`, which reads it with `while read`, and with agents in the field; so there is
//! exactly one way to write a manifest, and whatever is not written that way is refused.
//!
//! Pure: no files, no clock. Whoever uses a package does it in this order, and persists nothing
//! before the last check: [`TrustedKeys::verify`] (nothing is parsed before its signature is good) →
//! [`Manifest::check_not_expired`], [`Manifest::check_version`], [`Manifest::check_from`],
//! [`Manifest::check_not_below`] → [`FileEntry::check`] on the very bytes that are then used.

mod keys;
mod manifest;
mod timestamp;
mod version;

pub use keys::{
    KeyError, KeyId, PublicKey, SignatureError, SigningKey, TrustedKeys, Verified, VerifyError,
};
pub use manifest::{FileEntry, FileRefused, Manifest, ManifestError, Refusal};
pub use timestamp::{Timestamp, TimestampError};
pub use version::{Version, VersionError};

/// Longest manifest. A longer one is not looked at, so that nobody can make a host read for ever.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// Longest file of signatures.
pub const SIGNATURES_BYTES_MAX: usize = 8 * 1024;
/// Most files in a package.
pub const FILES_MAX: usize = 256;
/// Largest file in a package.
pub const FILE_BYTES_MAX: u64 = 1 << 30;
/// Most signatures over one manifest.
pub const SIGNATURES_MAX: usize = 16;

/// Name of the manifest in a package.
pub const MANIFEST_NAME: &str = "manifest";
/// Name of the file with its signatures.
pub const SIGNATURES_NAME: &str = "manifest.sig";
/// Name of the installer. It names the manifest's hash, so the manifest cannot name its own.
pub const INSTALLER_NAME: &str = "install.sh";
/// Name of the file with the installer's own signatures, in the form of the manifest's.
pub const INSTALLER_SIGNATURES_NAME: &str = "install.sh.sig";
/// Name of the list of checksums of all files of a package, for people (`sha256sum -c`).
pub const CHECKSUMS_NAME: &str = "SHA256SUMS";
/// Name of the file with its signatures.
pub const CHECKSUMS_SIGNATURES_NAME: &str = "SHA256SUMS.sig";

/// What makes a folder a package, and so is never named by the manifest.
pub const OWN_NAMES: [&str; 6] = [
    MANIFEST_NAME,
    SIGNATURES_NAME,
    INSTALLER_NAME,
    INSTALLER_SIGNATURES_NAME,
    CHECKSUMS_NAME,
    CHECKSUMS_SIGNATURES_NAME,
];

#[cfg(test)]
mod tests;
