//! What machines install from here.

use super::{Deserialize, Serialize, Timestamp, ToSchema};

/// The packages that this controller serves.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Packages {
    /// The version that new machines get; absent when no package is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<String>,
    /// All versions that are here.
    pub versions: Vec<String>,
    /// Where the installer's script is.
    pub script_url: String,
    /// Where the packages are (the script's `--from`).
    pub packages_url: String,
    /// What `curl --pinnedpubkey` takes, when https shows a certificate of the installation's own CA;
    /// empty when it shows one of a public CA.
    pub pin: String,
    /// Agents that were fetched lately, oldest first (at most 256); only for tokens without a scope.
    pub downloads: Vec<Download>,
}

/// One agent that was fetched.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Download {
    /// When.
    pub at: Timestamp,
    /// Which version.
    pub version: String,
    /// Which file.
    pub file: String,
    /// From which address.
    pub from: String,
}
