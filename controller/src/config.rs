//! What the controller is told on its command line (every flag is also `FAIRLEAD_…`).

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fairlead_identity::package::PublicKey;

/// What becomes of a machine that uses a copy of a living host's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Clones {
    /// It is refused, whenever it asks.
    Refuse,
    /// It gets an identity of its own, and is held until an admin approves it.
    ReEnrol,
}

/// The directory of Let's Encrypt.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Where it listens, what it is called, where its data is.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Directory for store, CA and keys; only its owner can enter it. Back it up.
    #[arg(
        long,
        env = "FAIRLEAD_DATA_DIR",
        default_value = "/var/lib/fairlead-controller"
    )]
    pub data_dir: PathBuf,
    /// SHA-256 of the root certificate of the installation that belongs in there, as `setup` prints it. With
    /// another one, or none (its disk is not mounted), nothing is made and nothing is served.
    #[arg(long, env = "FAIRLEAD_CA_SHA256", value_parser = crate::installation::ca_sha256)]
    pub ca_sha256: Option<String>,
    /// Where API and console are served (https).
    #[arg(long, env = "FAIRLEAD_LISTEN", default_value = "[::]:7400")]
    pub listen: SocketAddr,
    /// Where access servers are listened for.
    #[arg(long, env = "FAIRLEAD_UPLINK_LISTEN", default_value = "[::]:7401")]
    pub uplink_listen: SocketAddr,
    /// What access servers dial to get there, `host:port`.
    #[arg(long, env = "FAIRLEAD_UPLINK_ADDRESS")]
    pub uplink_address: String,
    /// A socket to make, through which an access server on this machine passes on connections that came to
    /// the one port it shares with this controller (its `--front-listen`).
    #[arg(long, env = "FAIRLEAD_FRONT_SOCKET")]
    pub front_socket: Option<PathBuf>,
    /// The https address that people use for this controller.
    #[arg(long, env = "FAIRLEAD_PUBLIC_URL")]
    pub public_url: String,
    /// Names and addresses in the https certificate.
    #[arg(long = "web-name", env = "FAIRLEAD_WEB_NAMES", value_delimiter = ',')]
    pub web_names: Vec<String>,
    /// Certificate chain for https (PEM), of a public CA; default: one of the installation's own CA. Taken
    /// up anew when the file changes.
    #[arg(long, env = "FAIRLEAD_WEB_CERTIFICATE", requires = "web_key")]
    pub web_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "FAIRLEAD_WEB_KEY", requires = "web_certificate")]
    pub web_key: Option<PathBuf>,
    /// Other origins (`https://HOST[:PORT]`) whose pages may open terminals; that of `--public-url` always may.
    #[arg(
        long = "browser-origin",
        env = "FAIRLEAD_BROWSER_ORIGINS",
        value_delimiter = ','
    )]
    pub browser_origins: Vec<String>,
    /// What recordings of terminals may take of the disk all together, in GiB; beyond it the oldest go.
    #[arg(long, env = "FAIRLEAD_RECORDINGS_MAX", default_value_t = 20)]
    pub recordings_max: u64,
    /// Folder with packages that came with this program, for instance by apt: put into the data directory,
    /// from which machines get them, when they are newer than what is there.
    #[arg(long, env = "FAIRLEAD_PACKAGES_FROM")]
    pub packages_from: Option<PathBuf>,
    /// A key whose versions of the agent may be pushed here, as `fairlead agent keygen` prints it; several with
    /// commas between them. What hosts believe is theirs to say.
    #[arg(
        long,
        value_name = "KEYID:BASE64",
        env = "FAIRLEAD_PACKAGE_KEYS",
        value_delimiter = ','
    )]
    pub trust: Vec<PublicKey>,
    /// What becomes of a machine that uses a copy of a living host's identity.
    #[arg(long, env = "FAIRLEAD_CLONES", value_enum, default_value = "re-enrol")]
    pub clones: Clones,
    /// Certificate for https from a public CA, by ACME.
    #[command(flatten)]
    pub acme: AcmeConfig,
    /// The installation's domain, in every certificate; fixed at the first start.
    #[arg(long, env = "FAIRLEAD_DOMAIN", default_value = "fairlead.internal")]
    pub domain: String,
}

/// How https gets its certificate by ACME.
#[derive(Debug, Clone, Default, Args)]
pub struct AcmeConfig {
    /// Have a public CA certify the name in --public-url for https, by ACME: it has to reach the people's port
    /// as port 443 of that name. Until it has, https shows a certificate of the installation's own CA.
    #[arg(long = "acme", env = "FAIRLEAD_ACME")]
    pub wanted: bool,
    /// The CA: the address of its ACME directory.
    #[arg(
        long = "acme-directory",
        env = "FAIRLEAD_ACME_DIRECTORY",
        default_value = LETS_ENCRYPT
    )]
    pub directory: String,
    /// Where the CA may write to, for instance mailto:ops@example.com.
    #[arg(
        long = "acme-contact",
        env = "FAIRLEAD_ACME_CONTACT",
        value_delimiter = ','
    )]
    pub contacts: Vec<String>,
    /// Roots (PEM) by which the CA's own https is believed, instead of those of the system: for a private CA.
    #[arg(long = "acme-ca", env = "FAIRLEAD_ACME_CA")]
    pub ca: Option<PathBuf>,
    /// The CA's terms of service have been read and are agreed to; without it nothing is asked of the CA.
    #[arg(long = "acme-agree-tos", env = "FAIRLEAD_ACME_AGREE_TOS")]
    pub agree_tos: bool,
}

impl AcmeConfig {
    /// What is asked for, as one text: when it changes, it is asked anew.
    #[must_use]
    pub fn wish(&self, name: &str) -> String {
        format!(
            "{name} of {} for {}",
            self.directory,
            self.contacts.join(",")
        )
    }
}
