//! What the access server is told on its command line (every flag is also `FAIRLEAD_…`).

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Where it listens, whom it dials, where its ledger is.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Directory for ledger, keys and certificates; only its owner can enter it.
    #[arg(
        long,
        env = "FAIRLEAD_DATA_DIR",
        default_value = "/var/lib/fairlead-access-server"
    )]
    pub data_dir: PathBuf,
    /// The controller's port for access servers, `host:port`.
    #[arg(long, env = "FAIRLEAD_CONTROLLER")]
    pub controller: String,
    /// File that holds the region's join token (from `fairlead region add`); needed once.
    #[arg(long, env = "FAIRLEAD_JOIN_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// What this server is called; unique in its region.
    #[arg(long, env = "FAIRLEAD_NAME", default_value = "a1")]
    pub name: String,
    /// Where agents are listened for.
    #[arg(long, env = "FAIRLEAD_AGENT_LISTEN", default_value = "[::]:7501")]
    pub agent_listen: SocketAddr,
    /// What agents dial to get there, `host:port`; several (commas between them) are tried in turn.
    #[arg(
        long = "agent-address",
        env = "FAIRLEAD_AGENT_ADDRESS",
        value_delimiter = ',',
        required = true
    )]
    pub agent_addresses: Vec<String>,
    /// One port for everybody, such as `0.0.0.0:443`: agents are let in by the name in their first TLS
    /// record (SNI), everybody else comes to the https of this region, or of the controller here.
    #[arg(long, env = "FAIRLEAD_FRONT_LISTEN")]
    pub front_listen: Option<SocketAddr>,
    /// Socket of a controller on this machine (its `--front-socket`), which then shares that port: people
    /// and access servers are passed on to it.
    #[arg(long, env = "FAIRLEAD_FRONT_SOCKET", requires = "front_listen")]
    pub front_socket: Option<PathBuf>,
    /// Where the region's own https is served.
    #[arg(long, env = "FAIRLEAD_LISTEN", default_value = "[::]:7500")]
    pub listen: SocketAddr,
    /// The https address that others use for it.
    #[arg(long, env = "FAIRLEAD_PUBLIC_URL")]
    pub public_url: String,
    /// Certificate chain for that https (PEM), of a CA that people's browsers trust; default: one of the
    /// installation's own CA. Taken up anew when the file changes.
    #[arg(long, env = "FAIRLEAD_WEB_CERTIFICATE", requires = "web_key")]
    pub web_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "FAIRLEAD_WEB_KEY", requires = "web_certificate")]
    pub web_key: Option<PathBuf>,
    /// Terminals of this region's hosts live here: pages and `fairlead shell` open them at --public-url, whose
    /// certificate they must trust, and no byte of them passes the controller. Without it the controller relays
    /// them.
    #[arg(long, env = "FAIRLEAD_TERMINALS")]
    pub terminals: bool,
    /// What recordings of terminals may take of this disk until the controller has them, in GiB; beyond it no
    /// terminal is opened here.
    #[arg(long, env = "FAIRLEAD_RECORDINGS_MAX", default_value_t = 5)]
    pub recordings_max: u64,
    /// Milliseconds between pings on a link.
    #[arg(long, env = "FAIRLEAD_PING_INTERVAL_MS", default_value = "15000",
          value_parser = clap::value_parser!(u32).range(100..=120_000))]
    pub ping_interval_ms: u32,
}
