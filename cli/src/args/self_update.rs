//! What may be typed behind `fairlead self-update`.

use clap::Args;
use fairlead_identity::package::{PublicKey, Version};

/// `fairlead self-update`
#[derive(Debug, Args)]
#[command(
    after_help = "The version comes from the server that you are logged in to, or from a folder or URL with packages \
    as ./dev package makes them. It is believed by the keys that are named here, whoever serves it."
)]
pub(crate) struct SelfUpdate {
    /// A folder of packages, or the URL of one [default: the server's, URL/packages]
    #[arg(long, value_name = "FOLDER|URL")]
    pub(crate) from: Option<String>,
    /// The version [default: the newest one there]
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<Version>,
    /// A key whose packages are believed, as fairlead agent keygen prints it; several with commas between them
    #[arg(
        long,
        value_name = "KEYID:BASE64",
        env = "FAIRLEAD_PACKAGE_KEYS",
        value_delimiter = ','
    )]
    pub(crate) key: Vec<PublicKey>,
    /// Also a version below this one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
}
