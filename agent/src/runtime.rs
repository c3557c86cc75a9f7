//! The container engine as the agent sees it: one trait, two engines.
//!
//! `docker` speaks to Docker (or Podman's compatible socket) through bollard; `simulated` keeps its
//! containers in memory and is shipped, for demos without an engine, simulation and benchmarks.
//! Nothing above this module knows which one it has. No call here retries, journals or decides
//! about lanes: that is the executor's work.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fairlead_protocol::{Container, ContainerSample, ContainerSpec, EngineFacts};
use futures_util::stream::BoxStream;
use tokio::io::AsyncWrite;

pub mod docker;
pub mod simulated;

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No engine answers at all. The executor waits and tries again until the deadline.
    #[error("the container engine does not answer: {0}")]
    Unavailable(String),
    /// There is no such container.
    #[error("no such container: {0}")]
    NoSuchContainer(String),
    /// There is no such image on the host, and it was not (or could not be) pulled.
    #[error("no such image: {0}")]
    NoSuchImage(String),
    /// The container's name is taken.
    #[error("the name {0} is in use")]
    NameInUse(String),
    /// The container must run for this, and does not.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The engine knows no such exec: it forgets them all when it is restarted.
    #[error("no such exec: {0}")]
    NoSuchExec(String),
    /// The engine refused or failed, in its own words.
    #[error("{0}")]
    Engine(String),
    /// The connection broke before the engine answered: it may have acted or not.
    #[error("the connection to the engine broke before it answered: {0}")]
    Interrupted(String),
}

/// What `inspect` of a container tells the executor; `raw` is the engine's own JSON.
#[derive(Debug, Clone)]
pub struct ContainerDetail {
    /// As in the inventory, every field filled.
    pub container: Container,
    /// When the container last started, microseconds since 1970; 0 never.
    pub started_us: i64,
    /// When it last finished; 0 never.
    pub finished_us: i64,
    /// All labels.
    pub labels: Vec<(String, String)>,
    /// The container's own stop timeout in seconds, where it has one.
    pub stop_timeout_s: Option<u32>,
    /// The engine's JSON, unchanged.
    pub raw: String,
}

/// What to run inside a container.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// Program and arguments, never through a shell.
    pub command: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// `USER[:GROUP]`, empty for the container's own.
    pub user: String,
    /// Empty for the container's own.
    pub workdir: String,
    /// Whether standard input is attached.
    pub stdin: bool,
    /// Whether a terminal is made.
    pub tty: bool,
    /// Extended privileges.
    pub privileged: bool,
}

/// Where an exec stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecState {
    /// Made, not started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended with this code.
    Exited(i64),
    /// The engine does not know it (any more).
    Forgotten,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output (everything, with a terminal).
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
}

/// A started exec: read `output` to its end, then ask for the exit code.
pub struct ExecIo {
    /// What the process writes. Ends when it has ended.
    pub output: BoxStream<'static, Result<Output, RuntimeError>>,
    /// What the process reads. Shut it down to end its input.
    pub input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
}

/// Which log lines.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on as lines appear, until the container ends.
    pub follow: bool,
    /// The last so many lines; `None` all.
    pub tail: Option<u64>,
    /// Microseconds since 1970; 0 from the beginning.
    pub since_us: i64,
    /// Microseconds since 1970; 0 to the end.
    pub until_us: i64,
    /// Each line begins with its time.
    pub timestamps: bool,
}

/// An event of the engine, as far as it concerns us. Only a hint: the truth is in `list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    /// Microseconds since 1970, by the engine's clock.
    pub at_us: i64,
    /// `container` or `image`.
    pub object: String,
    /// The engine's word: create, start, die, kill, stop, restart, destroy, oom, pause, unpause,
    /// rename, `health_status: healthy`, `exec_create: …`, pull, delete, tag, …
    pub action: String,
    /// Container or image id.
    pub id: String,
    /// Container name or image reference.
    pub name: String,
    /// The container's image.
    pub image: String,
    /// The exit code of a `die`; the signal of a `kill`.
    pub detail: String,
    /// The value of the label `fairlead.command`, where there is one.
    pub command_label: String,
}

/// A running container's main process, for the sampler to find its cgroup and network by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerProcess {
    /// Full id of the container.
    pub id: String,
    /// Its process, as the host numbers it.
    pub pid: u32,
    /// Whether it shares the host's network, so that the numbers there are not its own.
    pub host_network: bool,
}

/// Where the numbers of the running containers come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// From the kernel's files of these processes.
    Processes(Vec<ContainerProcess>),
    /// From the engine itself (the simulated one makes them up).
    Samples(Vec<ContainerSample>),
}

/// What a check of the host wants to know of the engine, beside its facts.
#[derive(Debug, Clone, Default)]
pub struct EngineState {
    /// What it is, and whether it answers.
    pub facts: EngineFacts,
    /// Where it keeps its data; empty: it does not say.
    pub data_dir: String,
    /// What it keeps images and layers with.
    pub storage: String,
    /// Which control groups the kernel has, and by what it sets them.
    pub cgroups: String,
    /// Whether it is part of a swarm.
    pub swarm: bool,
    /// What it warns of itself.
    pub warnings: Vec<String>,
}

/// One container engine. All names may be names, ids or unique prefixes of ids.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// What this engine is and whether it answers; never fails: an engine that is not there is a
    /// fact, with `error` and `code` set.
    async fn facts(&self) -> EngineFacts;
    /// The same with what a check of the host wants to know; never fails either.
    async fn state(&self) -> EngineState;
    /// All containers, stopped ones too, with every field of the inventory that a list call gives;
    /// restarts, exit code, health and started time may take an inspect for each changed one.
    async fn list(&self) -> Result<Vec<Container>, RuntimeError>;
    /// One container in full.
    async fn inspect(&self, container: &str) -> Result<ContainerDetail, RuntimeError>;
    /// One image as the engine's own JSON.
    async fn inspect_image(&self, image: &str) -> Result<String, RuntimeError>;
    /// Makes a container; `labels` are added to those of the spec. Returns its full id.
    /// Does not pull.
    async fn create(
        &self,
        spec: &ContainerSpec,
        labels: &[(String, String)],
    ) -> Result<String, RuntimeError>;
    /// Starts it; already running is success.
    async fn start(&self, container: &str) -> Result<(), RuntimeError>;
    /// Stops it: signal, then kill after the grace. Not running is success.
    async fn stop(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError>;
    /// Stops and starts it.
    async fn restart(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError>;
    /// Sends a signal (empty: KILL).
    async fn kill(&self, container: &str, signal: &str) -> Result<(), RuntimeError>;
    /// Removes it.
    async fn remove(&self, container: &str, force: bool, volumes: bool)
    -> Result<(), RuntimeError>;
    /// Pulls an image; returns its id.
    async fn pull(&self, image: &str, platform: &str) -> Result<String, RuntimeError>;
    /// Removes unused images (`all`: not only dangling ones); returns (images, bytes reclaimed).
    async fn prune_images(&self, all: bool) -> Result<(Vec<String>, u64), RuntimeError>;
    /// Makes an exec and returns its id; nothing runs yet.
    async fn exec_create(&self, container: &str, spec: &ExecSpec) -> Result<String, RuntimeError>;
    /// Starts it, attached. A second start of one exec is an engine error.
    async fn exec_start(&self, exec: &str, tty: bool) -> Result<ExecIo, RuntimeError>;
    /// Where it stands.
    async fn exec_state(&self, exec: &str) -> Result<ExecState, RuntimeError>;
    /// Ends all that a started exec has left: its processes, and theirs, told apart by the environment
    /// variable that it was made with (`KEY=VALUE`). They get time to go by themselves first.
    async fn exec_end(&self, exec: &str, marker: &str) -> Result<(), RuntimeError>;
    /// Resizes its terminal.
    async fn exec_resize(&self, exec: &str, columns: u16, rows: u16) -> Result<(), RuntimeError>;
    /// Log lines, oldest first.
    async fn logs(
        &self,
        container: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Output, RuntimeError>>, RuntimeError>;
    /// Unpacks a tar archive into a directory of the container.
    async fn copy_in(
        &self,
        container: &str,
        path: &str,
        archive: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), RuntimeError>;
    /// A path of the container as a tar archive.
    async fn copy_out(
        &self,
        container: &str,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError>;
    /// What to measure the running containers by; asks the engine nothing, so it is as fresh as
    /// the last `list`.
    async fn load(&self) -> Load;
    /// Events from `since_us` (0: from now) on; ends with an error when the engine goes away.
    async fn events(&self, since_us: i64) -> BoxStream<'static, Result<EngineEvent, RuntimeError>>;
    /// All events from `since_us` until `listening` after now, oldest first, as far back as the engine
    /// remembers.
    async fn past_events(
        &self,
        since_us: i64,
        listening: Duration,
    ) -> Result<Vec<EngineEvent>, RuntimeError>;
}

/// How long the engine may take to answer a question that changes nothing.
pub const ENGINE_QUESTION_TIMEOUT: Duration = Duration::from_secs(20);
