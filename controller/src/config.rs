//! What the controller is told on its command line (every flag is also `FAIRLEAD_…`).

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

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
    /// Where API and console are served (https).
    #[arg(long, env = "FAIRLEAD_LISTEN", default_value = "0.0.0.0:7400")]
    pub listen: SocketAddr,
    /// Where access servers are listened for.
    #[arg(long, env = "FAIRLEAD_UPLINK_LISTEN", default_value = "0.0.0.0:7401")]
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
    /// The installation's domain, in every certificate; fixed at the first start.
    #[arg(long, env = "FAIRLEAD_DOMAIN", default_value = "fairlead.internal")]
    pub domain: String,
}
