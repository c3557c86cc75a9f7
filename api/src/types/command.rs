//! Commands: what is asked of a host, and what became of it.

use super::{Deserialize, Labels, Serialize, Timestamp, ToSchema};

/// Asks for a command.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// The client's own id (26 characters of base32): sending the same again changes nothing and
    /// answers with the command as it is. Absent: the server makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Host by name, id or unique prefix of its id. May be absent when the container's name (or
    /// id) says it, or when there is one host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What to do.
    pub action: Action,
    /// Seconds from now after which it is not begun any more; absent: 300. At most 7 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
    /// Milliseconds that the act itself may take; absent: what fits the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// What must hold when it begins, else it ends as `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precondition: Option<Precondition>,
    /// A client will open the command's stream; the host waits up to 10 s for it before it acts.
    #[serde(default)]
    pub attach: bool,
}

/// Conditions for a command to begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Precondition {
    /// The container still has this id (a prefix of at least 12 digits).
    pub container_id: String,
    /// The container still has this image id.
    pub image_digest: String,
}

/// One act. Containers are named by name, id or unique prefix of the id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Make a container (pulling its image where it is missing) and start it.
    Run {
        /// The container.
        spec: Box<ContainerSpec>,
    },
    /// Make a container.
    Create {
        /// The container.
        spec: Box<ContainerSpec>,
    },
    /// Start a container.
    Start {
        /// Which.
        container: String,
    },
    /// Stop a container.
    Stop {
        /// Which.
        container: String,
        /// Seconds before it is killed; absent: the container's own, else 10.
        #[serde(default)]
        grace_s: Option<u32>,
        /// First signal; empty: the container's own, else TERM.
        #[serde(default)]
        signal: String,
    },
    /// Stop and start a container.
    Restart {
        /// Which.
        container: String,
        /// As for stop.
        #[serde(default)]
        grace_s: Option<u32>,
        /// As for stop.
        #[serde(default)]
        signal: String,
    },
    /// Send a signal to a container.
    Kill {
        /// Which.
        container: String,
        /// Empty: KILL.
        #[serde(default)]
        signal: String,
    },
    /// Remove a container.
    Remove {
        /// Which.
        container: String,
        /// Also when it runs.
        #[serde(default)]
        force: bool,
        /// Its anonymous volumes too.
        #[serde(default)]
        volumes: bool,
    },
    /// Pull an image.
    Pull {
        /// Reference.
        image: String,
        /// `os/arch[/variant]`; empty: the host's.
        #[serde(default)]
        platform: String,
    },
    /// The engine's own description of a container or image; of a host, what a restart of its engine would do
    /// (`HostCheck`).
    Inspect {
        /// Name or id; empty for the host.
        #[serde(default)]
        object: String,
        /// `container` (also when empty), `image` or `host`.
        #[serde(default)]
        object_kind: String,
    },
    /// Run a process in a container.
    Exec {
        /// Which.
        container: String,
        /// Program and arguments; never passed through a shell.
        command: Vec<String>,
        /// `KEY=VALUE`.
        #[serde(default)]
        env: Vec<String>,
        /// `USER[:GROUP]`.
        #[serde(default)]
        user: String,
        /// Absolute.
        #[serde(default)]
        workdir: String,
        /// Attach standard input.
        #[serde(default)]
        stdin: bool,
        /// Extended privileges.
        #[serde(default)]
        privileged: bool,
    },
    /// Read a container's log.
    Logs {
        /// Which.
        container: String,
        /// Go on as lines appear.
        #[serde(default)]
        follow: bool,
        /// The last so many lines; absent: all.
        #[serde(default)]
        tail: Option<u64>,
        /// Not before.
        #[serde(default)]
        since: Option<Timestamp>,
        /// Not after.
        #[serde(default)]
        until: Option<Timestamp>,
        /// Each line begins with its time.
        #[serde(default)]
        timestamps: bool,
    },
    /// Unpack a tar archive (sent over the stream) into a directory of a container.
    CopyIn {
        /// Which.
        container: String,
        /// Absolute directory.
        path: String,
        /// Bytes of the archive.
        size: u64,
        /// Its SHA-256, hex.
        sha256: String,
    },
    /// Read a path of a container as a tar archive over the stream.
    CopyOut {
        /// Which.
        container: String,
        /// Absolute path.
        path: String,
    },
    /// The containers as the engine lists them now.
    List {
        /// Stopped ones too.
        #[serde(default)]
        all: bool,
    },
    /// Remove unused images.
    PruneImages {
        /// Not only untagged ones.
        #[serde(default)]
        all: bool,
    },
    /// Renew the agent's certificate now.
    RenewCertificate {},
    /// Ask the agent for a sign of life.
    Ping {},
    /// Another version of the agent takes the host over, without interruption. Its package must be here. It has
    /// succeeded when the version is the one that is started from now on.
    UpgradeAgent {
        /// Which.
        version: String,
        /// SHA-256 of its manifest, hex; empty: that of the package that is here under this version.
        #[serde(default)]
        manifest: String,
        /// Also a version below one that the host had before.
        #[serde(default)]
        allow_older: bool,
    },
    /// The agent takes itself off its host, and the host's identity ends. Containers are not touched.
    UninstallAgent {},
}

/// A container to be made; the words are those of `docker run`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerSpec {
    /// Its name; empty: the API makes one.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Arguments (or command).
    pub command: Vec<String>,
    /// Replaces the image's entrypoint; absent: the image's.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Labels.
    pub labels: Labels,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Publish all exposed ports on free ones.
    pub publish_all: bool,
    /// `PORT[/PROTO]`.
    pub expose: Vec<String>,
    /// Binds, volumes, tmpfs.
    pub mounts: Vec<Mount>,
    /// `PATH[:OPTIONS]`.
    pub tmpfs: Vec<String>,
    /// `bridge`, `host`, `none`, `container:NAME` or a network's name; empty: the engine's default.
    pub network: String,
    /// Names in that network.
    pub network_aliases: Vec<String>,
    /// Fixed address in that network.
    pub ip: String,
    /// Fixed MAC address.
    pub mac_address: String,
    /// `no`, `always`, `unless-stopped`, `on-failure`; empty: `no`.
    pub restart_policy: String,
    /// For `on-failure`; 0: without limit.
    pub restart_max: u32,
    /// Memory limit; 0: none.
    pub memory_bytes: i64,
    /// Soft limit.
    pub memory_reservation_bytes: i64,
    /// Memory and swap together; -1: unlimited swap.
    pub memory_swap_bytes: i64,
    /// Billionths of a processor; 0: no limit.
    pub nano_cpus: i64,
    /// Relative weight.
    pub cpu_shares: i64,
    /// For instance `0-1`.
    pub cpuset_cpus: String,
    /// Processes; 0: no limit of its own.
    pub pids_limit: i64,
    /// `USER[:GROUP]`.
    pub user: String,
    /// Extra groups.
    pub group_add: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// Host name inside.
    pub hostname: String,
    /// Domain name inside.
    pub domainname: String,
    /// With a terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub stdin_open: bool,
    /// Read-only root file system.
    pub read_only: bool,
    /// An init that forwards signals and reaps.
    pub init: bool,
    /// All capabilities and devices.
    pub privileged: bool,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// `HOST[:CONTAINER[:rwm]]`.
    pub devices: Vec<String>,
    /// As docker's.
    pub security_opt: Vec<String>,
    /// `host` or `container:NAME`.
    pub pid_mode: String,
    /// `host`, `private`, `shareable`, `none`, `container:NAME`.
    pub ipc_mode: String,
    /// `host`.
    pub uts_mode: String,
    /// `host`.
    pub userns_mode: String,
    /// Kernel parameters of its namespaces.
    pub sysctls: Labels,
    /// `NAME:ADDRESS`.
    pub extra_hosts: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Signal of `stop`.
    pub stop_signal: String,
    /// Grace of `stop`, seconds; 0: the engine's.
    pub stop_timeout_s: u32,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// Health check; absent: the image's.
    pub health: Option<Health>,
    /// Log driver; empty: the engine's.
    pub log_driver: String,
    /// Its options.
    pub log_options: Labels,
    /// `NAME=SOFT[:HARD]`.
    pub ulimits: Vec<String>,
    /// Size of /dev/shm; 0: the engine's.
    pub shm_bytes: i64,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// `missing` (also when empty), `always`, `never`.
    pub pull: String,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// Never kill for want of memory.
    pub oom_kill_disable: bool,
    /// Parent cgroup.
    pub cgroup_parent: String,
    /// OCI runtime.
    pub runtime: String,
}

/// A published port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Port {
    /// Address on the host; empty: all.
    pub host_ip: String,
    /// Port on the host; 0: a free one.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// `tcp` (also when empty), `udp`, `sctp`.
    pub proto: String,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`.
    pub kind: String,
    /// Host path or volume name; empty: an anonymous volume.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Bind propagation.
    pub propagation: String,
}

/// A health check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Switches the image's off.
    pub disabled: bool,
    /// Run by the container's shell.
    pub command: String,
    /// 0: docker's default, 30 s.
    pub interval_ms: u32,
    /// 0: 30 s.
    pub timeout_ms: u32,
    /// 0: none.
    pub start_period_ms: u32,
    /// 0: 3.
    pub retries: u32,
}

/// A command, as far as it has come.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Command {
    /// Its id.
    pub id: String,
    /// Kind, as in [`Action`].
    pub kind: String,
    /// Container, image or object; empty for the host.
    pub target: String,
    /// Host by name.
    pub host: String,
    /// Host by id.
    pub host_id: String,
    /// Region.
    pub region: String,
    /// Who asked.
    pub issuer: String,
    /// `queued`, `delivered`, `running`, `succeeded`, `failed`, `expired`, `cancelled`,
    /// `conflict`, `superseded` or `unknown`.
    pub state: String,
    /// Whether nothing more happens to it.
    pub is_final: bool,
    /// Why it has not begun, where it has not: host offline since …, lane held by …
    pub waiting_for: String,
    /// Stable error code; empty when there is nothing to say.
    pub code: String,
    /// What happened, in words; on failure with what to do next.
    pub message: String,
    /// Exit code of an exec.
    pub exit_code: Option<i32>,
    /// The container acted upon or made.
    pub container_id: String,
    /// What it gave: an object for inspect, list, pull, prune; text for exec without a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<serde_json::Value>,
    /// Whether the output was cut.
    #[serde(default)]
    pub output_truncated: bool,
    /// When it was asked for.
    pub issued_at: Timestamp,
    /// After this it is not begun any more.
    pub not_after: Timestamp,
    /// When it got its final state.
    pub finished_at: Option<Timestamp>,
    /// Milliseconds from acceptance to record that were not spent in the engine; absent while
    /// open or when the engine was not called.
    pub overhead_ms: Option<f64>,
    /// Milliseconds that the engine took.
    pub engine_ms: Option<f64>,
    /// Its way, station by station.
    pub timeline: Vec<Stamp>,
}

/// One station of a command's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stamp {
    /// `accepted`, `stored`, `region_received`, `region_stored`, `delivered`, `verified`,
    /// `intent_stored`, `engine_called`, `engine_answered`, `result_stored`,
    /// `region_result_received`, `recorded`, `settled`, `resent`.
    pub stage: String,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// Milliseconds since `accepted`.
    pub after_ms: f64,
    /// More, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What a command `inspect` gives for `object_kind` `host`: what a restart of the host's engine would do, and what
/// could keep it from coming back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostCheck {
    /// Whether no verdict is `bad`.
    pub is_good: bool,
    /// One by one.
    pub checks: Vec<HostCheckRow>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostCheckRow {
    /// `engine`, `live-restore`, `disk`, `kernel`, `clock`; there may be more.
    pub name: String,
    /// `good`, `mind` (worth knowing) or `bad` (a restart of the engine would do harm, or not succeed).
    pub verdict: String,
    /// What was found.
    pub found: String,
    /// What that means for a restart of the engine, and what to do.
    pub means: String,
}
