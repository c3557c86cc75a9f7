//! What the agent is told on its command line (every flag is also `FAIRLEAD_…` in the environment).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fairlead_identity::package::PublicKey;

use crate::handoff::decide::Times;

/// Which container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Docker, or Podman's compatible socket.
    Docker,
    /// The agent's own simulated engine: containers in memory, for demos without an engine.
    Simulated,
}

/// Where the agent keeps what must survive it, and whom it serves.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Directory for identity, journal and logs; only its owner can enter it.
    #[arg(
        long,
        env = "FAIRLEAD_STATE_DIR",
        default_value = "/var/lib/fairlead-agent"
    )]
    pub state_dir: PathBuf,
    /// Access servers of the region, `host:port`; needed to enrol, learnt from then on.
    #[arg(long = "address", env = "FAIRLEAD_ADDRESS", value_delimiter = ',')]
    pub addresses: Vec<String>,
    /// File that holds the join token (FL1…); `FAIRLEAD_JOIN_TOKEN` works too. Never an argument,
    /// because arguments show in `ps`.
    #[arg(long, env = "FAIRLEAD_JOIN_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// What the host is called; default: the machine's own name.
    #[arg(long, env = "FAIRLEAD_HOST_NAME")]
    pub host_name: Option<String>,
    /// The container engine.
    #[arg(long, env = "FAIRLEAD_ENGINE", value_enum, default_value = "docker")]
    pub engine: EngineKind,
    /// The engine's socket; default: `DOCKER_HOST` if it is a unix socket, else Docker's, else
    /// Podman's.
    #[arg(long, env = "FAIRLEAD_ENGINE_SOCKET")]
    pub engine_socket: Option<PathBuf>,
    /// A key whose packages of the agent are believed, as `fairlead-packer keygen` prints it; several with
    /// commas between them. Without one no version is upgraded to.
    #[arg(
        long,
        value_name = "KEYID:BASE64",
        env = "FAIRLEAD_PACKAGE_KEYS",
        value_delimiter = ','
    )]
    pub trust: Vec<PublicKey>,
    /// The host owner's policy.
    #[arg(
        long,
        env = "FAIRLEAD_POLICY",
        default_value = crate::policy::DEFAULT_PATH
    )]
    pub policy: PathBuf,
    /// Seconds between two measurements.
    #[arg(long, env = "FAIRLEAD_METRICS_EVERY_S", default_value = "15",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub metrics_every_s: u64,
    /// Seconds for which a terminal is held for an access server that restarts.
    #[arg(long, env = "FAIRLEAD_TERMINALS_HELD_S", default_value = "60", hide = true,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    pub terminals_held_s: u64,
}

/// What the supervisor tells an instance at its start.
#[derive(Debug, Clone, Args)]
pub struct Grant {
    /// Term of ownership; 0: another instance owns the host.
    #[arg(long, env = "FAIRLEAD_EPOCH", hide = true)]
    pub epoch: u64,
    /// Which instance it is to its supervisor.
    #[arg(long, env = "FAIRLEAD_INSTANCE_KEY", hide = true, default_value = "0")]
    pub key: u32,
    /// Where the supervisor listens.
    #[arg(long, env = "FAIRLEAD_HANDOFF", hide = true)]
    pub handoff: Option<PathBuf>,
    /// The supervisor has started others that live.
    #[arg(long, env = "FAIRLEAD_AMONG_OTHERS", hide = true)]
    pub among_others: bool,
    /// No version can be kept running: nothing is changed.
    #[arg(long, env = "FAIRLEAD_SAFE", hide = true)]
    pub safe: bool,
    /// The supervisor's pid; 0: it is of a version that does not tell.
    #[arg(long, env = "FAIRLEAD_SUPERVISOR", hide = true, default_value = "0")]
    pub supervisor: u32,
    /// The supervisor's run id.
    #[arg(long, env = "FAIRLEAD_RUN", hide = true)]
    pub run: String,
}

/// How long each step of an upgrade may take.
#[derive(Debug, Clone, Args)]
pub struct UpgradeTimes {
    /// Milliseconds that a new version has, from its start, to prove that it works here.
    #[arg(
        long,
        env = "FAIRLEAD_UPGRADE_PROVE_MS",
        default_value = "60000",
        hide = true
    )]
    pub prove_ms: u64,
    /// Milliseconds that the old one has to yield.
    #[arg(
        long,
        env = "FAIRLEAD_UPGRADE_YIELD_MS",
        default_value = "2000",
        hide = true
    )]
    pub yield_ms: u64,
    /// Milliseconds that a version on trial may be silent.
    #[arg(
        long,
        env = "FAIRLEAD_UPGRADE_SILENT_MS",
        default_value = "5000",
        hide = true
    )]
    pub silent_ms: u64,
    /// Milliseconds that a version has to live until it is believed.
    #[arg(
        long,
        env = "FAIRLEAD_UPGRADE_TRIAL_MS",
        default_value = "600000",
        hide = true
    )]
    pub trial_ms: u64,
    /// Milliseconds that streams of a version before may go on.
    #[arg(
        long,
        env = "FAIRLEAD_UPGRADE_STREAMS_MS",
        default_value = "86400000",
        hide = true
    )]
    pub streams_ms: u64,
    /// Milliseconds of notice for the oldest of too many.
    #[arg(
        long,
        env = "FAIRLEAD_UPGRADE_NOTICE_MS",
        default_value = "600000",
        hide = true
    )]
    pub notice_ms: u64,
}

impl UpgradeTimes {
    /// As the supervisor's machine takes them.
    #[must_use]
    pub fn times(&self) -> Times {
        Times {
            prove: Duration::from_millis(self.prove_ms),
            yields: Duration::from_millis(self.yield_ms),
            silent: Duration::from_millis(self.silent_ms),
            trial: Duration::from_millis(self.trial_ms),
            streams: Duration::from_millis(self.streams_ms),
            notice: Duration::from_millis(self.notice_ms),
            ..Times::default()
        }
    }
}

impl Config {
    /// The journals of all instances.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.state_dir.join("journal")
    }

    /// Archives that wait for their digest.
    #[must_use]
    pub fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// The log for the host's owner.
    #[must_use]
    pub fn owner_log(&self) -> PathBuf {
        self.state_dir.join("owner.log")
    }

    /// How long a terminal is held for an access server that restarts.
    #[must_use]
    pub fn terminals_held(&self) -> Duration {
        Duration::from_secs(self.terminals_held_s)
    }

    /// Time between two measurements.
    #[must_use]
    pub fn metrics_every(&self) -> Duration {
        Duration::from_secs(self.metrics_every_s)
    }
}
