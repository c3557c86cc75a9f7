//! Hosts, containers, events: what is out there.

use super::{Deserialize, Labels, Serialize, Timestamp, ToSchema};

/// The whole fleet in one glance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The controller's version.
    pub version: String,
    /// Regions known, and connected.
    pub regions: u64,
    /// Of these, connected.
    pub regions_online: u64,
    /// Hosts enrolled.
    pub hosts: u64,
    /// Of these, connected.
    pub hosts_online: u64,
    /// Containers known, stopped ones included.
    pub containers: u64,
    /// Of these, running.
    pub containers_running: u64,
    /// Of these, with a failing health check or in a restart loop.
    pub containers_unwell: u64,
    /// Commands that have no final state yet.
    pub commands_open: u64,
    /// What deserves attention, worst first, in words.
    pub attention: Vec<String>,
    /// The controller's https certificate, for who sees everything.
    #[serde(default)]
    pub https: Option<HttpsCertificate>,
}

/// The certificate that the controller's https shows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HttpsCertificate {
    /// `own-ca` (the installation's), `files`, or `acme`.
    pub source: String,
    /// The names that it was asked for, where known.
    pub names: Vec<String>,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// What keeps a certificate of a public CA from being had or renewed; absent when nothing does.
    pub trouble: Option<HttpsTrouble>,
}

/// Why a public CA has not certified the controller's https.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HttpsTrouble {
    /// Stable code, `acme_…`.
    pub code: String,
    /// In words.
    pub message: String,
    /// When it was found out.
    pub at: Option<Timestamp>,
    /// When it is tried again.
    pub next_try: Option<Timestamp>,
}

/// A host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Its id, 26 characters.
    pub id: String,
    /// Its name, unique in the tenant.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// Its region.
    pub region: String,
    /// Labels from its join token.
    pub labels: Labels,
    /// `online`, `suspect`, `offline`, `unknown` (its region is not connected), `held`, `revoked`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// Why, where there is a reason.
    pub reason: String,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
    /// When it joined.
    pub enrolled_at: Timestamp,
    /// Id of the join token that let it in.
    #[serde(default)]
    pub joined_with: String,
    /// Term of ownership: grows each time an agent instance starts.
    pub epoch: u64,
    /// What the agent told about the machine; absent until first heard.
    pub facts: Option<HostFacts>,
    /// Where its link comes from.
    pub address: String,
    /// How far the host's clock is off, milliseconds; positive: ahead.
    pub clock_offset_ms: i64,
    /// Newest measurements.
    pub metrics: Option<HostMetrics>,
    /// Containers, stopped ones included.
    pub containers: u64,
    /// Running ones.
    pub containers_running: u64,
    /// End of its certificate.
    pub certificate_expires_at: Option<Timestamp>,
}

/// What an agent tells about its machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct HostFacts {
    /// As the machine calls itself.
    pub hostname: String,
    /// Distribution and version.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// `x86_64`, `aarch64`, …
    pub arch: String,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// The container engine.
    pub engine: Engine,
    /// The agent's version.
    pub agent_version: String,
    /// What the host's owner forbids, in a sentence; empty: nothing.
    pub policy: String,
    /// Whether the host's owner allows shells on the host itself.
    #[serde(default)]
    pub host_shell: bool,
    /// Which versions of the agent are there; absent: it is not laid out in versions, and cannot be upgraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<AgentVersions>,
}

/// The versions of the agent on a host, as its supervisor says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentVersions {
    /// The one that is started.
    pub started: String,
    /// The one before it, to which it would go back; empty: none.
    pub previous: String,
    /// It has not lived long enough to be believed.
    pub on_trial: bool,
    /// No version can be kept running: nothing is changed on the host.
    pub safe_mode: bool,
    /// The last version that did not get, or not keep, the host; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_return: Option<LastReturn>,
}

/// A version that made room for another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastReturn {
    /// Which.
    pub from: String,
    /// Which has the host instead.
    pub to: String,
    /// Why.
    pub why: String,
}

/// A container engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Engine {
    /// `docker`, `podman`, `simulated`, `none`.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// The API version spoken with it.
    pub api_version: String,
    /// Why it does not answer; empty when it does.
    pub error: String,
    /// Stable code of that error.
    pub code: String,
    /// Whether containers go on while the engine is restarted.
    pub live_restore: bool,
    /// runc's (or containerd's) version, where known.
    pub runtime: String,
}

/// Measurements of a host.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct HostMetrics {
    /// When measured.
    pub at: Timestamp,
    /// Of all processors together, 0 to 100.
    pub cpu_percent: f64,
    /// One-minute load.
    pub load1: f64,
    /// Memory in use.
    pub memory_used: u64,
    /// Memory there is.
    pub memory_total: u64,
    /// Disk in use where the engine keeps its data.
    pub disk_used: u64,
    /// Disk there is.
    pub disk_total: u64,
    /// Bytes received since boot, without loopback.
    pub network_rx: u64,
    /// Bytes sent.
    pub network_tx: u64,
    /// Seconds since boot.
    pub uptime_s: u64,
}

/// A container on a host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Container {
    /// The engine's id, 64 digits.
    pub id: String,
    /// Its name, without a slash.
    pub name: String,
    /// The host's name.
    pub host: String,
    /// The host's id.
    pub host_id: String,
    /// The region's name.
    pub region: String,
    /// As given when it was made.
    pub image: String,
    /// The image's id (digest).
    pub image_id: String,
    /// What it runs.
    pub command: String,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
    pub state: String,
    /// `starting`, `healthy`, `unhealthy`; empty: it has no health check.
    pub health: String,
    /// When made.
    pub created_at: Timestamp,
    /// When last started.
    pub started_at: Option<Timestamp>,
    /// When last ended.
    pub finished_at: Option<Timestamp>,
    /// Code with which it last ended.
    pub exit_code: i32,
    /// Whether it was ended for want of memory.
    pub oom_killed: bool,
    /// How often the engine restarted it by itself.
    pub restarts: u32,
    /// Its restart policy.
    pub restart_policy: String,
    /// Its first address.
    pub ip: String,
    /// Published and exposed ports, as docker writes them: `0.0.0.0:8080->80/tcp`.
    pub ports: Vec<String>,
    /// Its networks.
    pub networks: Vec<String>,
    /// Compose's project; empty: none.
    pub project: String,
    /// Compose's service.
    pub service: String,
    /// The command that made it, where it was one of ours.
    pub made_by: String,
    /// Memory limit in bytes; 0: none.
    pub memory_limit: u64,
    /// Newest measurements; absent while it does not run.
    pub metrics: Option<ContainerMetrics>,
    /// How old this picture is.
    pub as_of: Timestamp,
    /// Whether the host is connected and its engine answers, so that the picture is live.
    pub live: bool,
}

/// Measurements of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ContainerMetrics {
    /// When measured.
    pub at: Timestamp,
    /// 100: one processor.
    pub cpu_percent: f64,
    /// Memory in use, without reclaimable page cache.
    pub memory_used: u64,
    /// Its limit (the host's memory where it has none).
    pub memory_limit: u64,
    /// Bytes received.
    pub network_rx: u64,
    /// Bytes sent.
    pub network_tx: u64,
    /// Processes.
    pub pids: u32,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows with each event; also the `id` of the server-sent event.
    pub seq: i64,
    /// When it happened, by the host's clock corrected to the server's.
    pub at: Timestamp,
    /// The host's name; empty for regions and the controller.
    pub host: String,
    /// The host's id.
    pub host_id: String,
    /// The region's name.
    pub region: String,
    /// For instance `container.start`, `container.die`, `image.pull`, `host.online`,
    /// `host.enrolled`, `engine.gone`, `region.offline`, `region.restarting`.
    pub action: String,
    /// The container's name.
    pub container: String,
    /// Its id.
    pub container_id: String,
    /// Its image.
    pub image: String,
    /// Our command that caused it.
    pub command: String,
    /// `command`, `by-hand`, `itself`, `engine`, or empty.
    pub cause: String,
    /// More, in words.
    pub detail: String,
}
