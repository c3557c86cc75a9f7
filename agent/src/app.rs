//! Builds the agent from its configuration and runs it until shutdown.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};

use fairlead_daemon::clock::{Clock, ServerTime};
use fairlead_daemon::files;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::random;
use fairlead_identity::signing::Verifier;
use fairlead_link::proxy::{Proxy, ProxyError};
use fairlead_protocol::{EngineFacts, HostFacts, InstanceId, RunId};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::clone;
use crate::config::{Config, EngineKind, Grant};
use crate::connection::Connection;
use crate::enrol::{EnrolError, enrol};
use crate::executor::{self, Executor, LaneLocks, Parts};
use crate::handoff::client::{self, LinkState};
use crate::handoff::part::{Part, Standing};
use crate::handoff::role::Role;
use crate::handoff::words::{FromSupervisor, ToSupervisor};
use crate::host_facts::host_facts;
use crate::identity::{Identity, IdentityError, IdentityFiles};
use crate::journal::{Journal, JournalError};
use crate::link_report::LinkReport;
use crate::observe::{Observer, Picture};
use crate::owner_log::OwnerLog;
use crate::policy::PolicyFile;
use crate::runtime::docker::{DockerRuntime, default_socket};
use crate::runtime::simulated::{SimulatedOptions, SimulatedRuntime};
use crate::runtime::{ContainerRuntime, RuntimeError};
use crate::status;
use crate::uninstall::Departure;
use crate::upgrade::ordered::Orders;

/// Requests that wait for the executor; the link waits beyond.
const REQUESTS_MAX: usize = 64;

/// A hung engine must not keep the host from saying hello.
const FACTS_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// Ask the session to renew the certificate now; it answers with the certificate's end.
#[derive(Debug)]
pub struct RenewNow {
    /// Where the answer goes.
    pub done: oneshot::Sender<Result<i64, String>>,
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The machine is not enrolled and could not be.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The journal cannot be used at all.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The engine cannot even be described.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The state directory cannot be used.
    #[error("cannot use {path}: {reason}")]
    State {
        /// What.
        path: String,
        /// Why.
        reason: String,
    },
    /// The environment names a proxy that cannot be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The supervisor's grant makes no sense.
    #[error("the run id {0:?} is not one")]
    Grant(String),
}

impl AppError {
    /// Whether starting again may help without anybody's doing.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Enrol(error) => error.may_pass(),
            Self::Journal(_) | Self::State { .. } => true,
            Self::Identity(_) | Self::Runtime(_) | Self::Proxy(_) | Self::Grant(_) => false,
        }
    }
}

/// Tells what the machine is, anew each time.
#[derive(Clone)]
pub struct Facts {
    runtime: Arc<dyn ContainerRuntime>,
    policy: Arc<PolicyFile>,
    host_name: Option<String>,
    state_dir: std::path::PathBuf,
}

impl Facts {
    /// The machine, its engine, its owner's policy.
    pub async fn gather(&self) -> HostFacts {
        let asked = tokio::time::timeout(FACTS_WITHIN, self.runtime.facts());
        let engine = asked.await.unwrap_or_else(|_| EngineFacts {
            error: "the container engine is there but does not answer".to_owned(),
            code: fairlead_protocol::codes::ENGINE_UNAVAILABLE.to_owned(),
            ..EngineFacts::default()
        });
        self.with(engine)
    }

    fn with(&self, engine: EngineFacts) -> HostFacts {
        let policy = self.policy.policy();
        let mut facts = host_facts(engine, policy.summary());
        facts.host_shell = policy.allows_host_shell();
        facts.versions = status::versions_of(&self.state_dir);
        if let Some(name) = &self.host_name {
            facts.hostname.clone_from(name);
        }
        facts
    }
}

/// The engine that the configuration names.
///
/// # Errors
/// When its state cannot be used.
pub fn runtime(config: &Config) -> Result<Arc<dyn ContainerRuntime>, RuntimeError> {
    Ok(match config.engine {
        EngineKind::Docker => {
            let docker_host = std::env::var("DOCKER_HOST").ok();
            let socket = config
                .engine_socket
                .clone()
                .unwrap_or_else(|| default_socket(docker_host.as_deref()));
            Arc::new(DockerRuntime::new(socket)?)
        }
        EngineKind::Simulated => Arc::new(SimulatedRuntime::new(SimulatedOptions {
            state_file: Some(config.state_dir.join("simulated-engine.json")),
            ..SimulatedOptions::default()
        })?),
    })
}

fn prepare_state(config: &Config, grant: &Grant) -> Result<(), AppError> {
    let spool = config.spool_dir();
    if !grant.among_others {
        // What is left in the spool belongs to copies that have ended.
        let _ = std::fs::remove_dir_all(&spool);
    }
    for dir in [config.state_dir.clone(), config.journal_dir(), spool] {
        files::private_dir(&dir).map_err(|error| AppError::State {
            path: dir.display().to_string(),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}

/// Waits until no instance of another supervisor acts for this host: one whose supervisor was killed may
/// take a moment to leave. Instances of one supervisor share the lock. It is the kernel's, so it ends with
/// the process.
async fn only_supervisors(config: &Config, among_others: bool) -> Result<std::fs::File, AppError> {
    let path = config.state_dir.join("agent.lock");
    let shown = path.display().to_string();
    let locked = tokio::task::spawn_blocking(move || {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        if !among_others {
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        }
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared)?;
        Ok::<_, std::io::Error>(file)
    });
    let failed = |reason: String| AppError::State {
        path: shown.clone(),
        reason,
    };
    match locked.await {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The highest time of issue of a verified command, kept so that a wrong clock cannot revive one.
fn read_floor(config: &Config) -> i64 {
    std::fs::read_to_string(config.state_dir.join("server-time-floor"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Writes the floor at most once a second of server time: it is a bound, not a clock.
fn floor_writer(config: &Config) -> Box<dyn Fn(i64) + Send> {
    let path = config.state_dir.join("server-time-floor");
    let newest_us = Arc::new(AtomicI64::new(0));
    let asked_us = AtomicI64::new(0);
    // One at a time, and the newest last: a backlog of commands raises the floor several times at once.
    let written_us = Arc::new(std::sync::Mutex::new(0));
    Box::new(move |floor_us| {
        newest_us.fetch_max(floor_us, Ordering::Relaxed);
        if floor_us - asked_us.load(Ordering::Relaxed) < 1_000_000 {
            return;
        }
        asked_us.store(floor_us, Ordering::Relaxed);
        let (path, newest_us) = (path.clone(), Arc::clone(&newest_us));
        let written_us = Arc::clone(&written_us);
        // Off the actor: a sync takes its time, and losing the last second of the bound is harmless.
        tokio::task::spawn_blocking(move || {
            let mut written_us = written_us.lock().unwrap_or_else(PoisonError::into_inner);
            let floor_us = newest_us.load(Ordering::Relaxed);
            if floor_us <= *written_us {
                return;
            }
            match files::replace(&path, floor_us.to_string().as_bytes()) {
                Ok(()) => *written_us = floor_us,
                Err(error) => {
                    tracing::warn!(%error, "the floor of server time could not be kept");
                }
            }
        });
    })
}

/// Why an instance ended, when nothing was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Shutdown,
    /// The agent is to be taken off this machine.
    Departs,
}

/// Who this machine is: what it was enrolled as, or is now.
async fn identity(
    config: &Config,
    among_others: bool,
    files: &IdentityFiles,
    facts: &Facts,
    owner_log: &OwnerLog,
    proxy: Option<Proxy>,
) -> Result<Identity, AppError> {
    if !among_others && clone::has_own(&config.state_dir) {
        // Its journals are this process's to remove only when no other instance writes there.
        let _only = only_supervisors(config, false).await?;
        clone::take_own(config, owner_log)?;
    }
    if let Some(identity) = files.load()? {
        return Ok(identity);
    }
    let identity = enrol(config, files, facts.gather().await, proxy).await?;
    LinkReport::forget(&config.state_dir);
    owner_log.agent(&format!(
        "this machine was enrolled as {} in region {}",
        identity.enrolment.name, identity.enrolment.region
    ));
    Ok(identity)
}

fn proxy() -> Result<Option<Proxy>, ProxyError> {
    let proxy = Proxy::from_env()?;
    if let Some(proxy) = &proxy {
        tracing::info!(
            proxy = proxy.address(),
            "access servers are dialled through a proxy"
        );
    }
    Ok(proxy)
}

/// What an instance has of its supervisor.
struct Supervised {
    role: Role,
    say: mpsc::Sender<ToSupervisor>,
    heard: mpsc::Receiver<FromSupervisor>,
    link_state: LinkState,
}

/// Connects to the supervisor. It says that this instance is there, also while that waits for others to leave.
fn supervised(grant: &Grant, shutdown: &Shutdown) -> Supervised {
    let (say, words) = mpsc::channel(client::WORDS_MAX);
    let (to_part, heard) = mpsc::channel(client::WORDS_MAX);
    let link_state = LinkState::default();
    if let Some(socket) = grant.handoff.clone() {
        let (link_state, shutdown) = (link_state.clone(), shutdown.clone());
        // Ends with shutdown.
        tokio::spawn(client::run(socket, link_state, words, to_part, shutdown));
    }
    Supervised {
        role: match grant.epoch {
            0 => Role::Standby,
            epoch => Role::Owner(epoch),
        },
        say,
        heard,
        link_state,
    }
}

fn verifier(identity: &Identity, time: &ServerTime) -> Verifier {
    let tenant = &identity.enrolment.tenant;
    let mut verifier = Verifier::new(identity.root.clone(), identity.host, tenant);
    if let Some(keys) = &identity.enrolment.command_keys {
        for error in verifier.learn(keys, executor::unix(time.now_us())) {
            tracing::error!(%error, "a stored command key cannot be used");
        }
    }
    verifier
}

/// Runs an agent instance until shutdown, or until it is to be taken off.
///
/// # Errors
/// When the machine is not a host and cannot become one, or its state cannot be used.
#[expect(
    clippy::too_many_lines,
    reason = "the one list of what an agent is made of, in the order in which it is made"
)]
pub async fn run(config: Config, grant: Grant, shutdown: Shutdown) -> Result<Ended, AppError> {
    prepare_state(&config, &grant)?;
    let proxy = proxy()?;
    let clock = Clock::system();
    let runtime = runtime(&config)?;
    let policy = Arc::new(PolicyFile::new(&config.policy));
    let facts = Facts {
        runtime: Arc::clone(&runtime),
        policy: Arc::clone(&policy),
        host_name: config.host_name.clone(),
        state_dir: config.state_dir.clone(),
    };
    let owner_log = OwnerLog::new(config.owner_log(), clock.clone());
    let files = IdentityFiles::new(&config.state_dir);
    let among_others = grant.among_others;
    let asked = proxy.clone();
    let identity = identity(&config, among_others, &files, &facts, &owner_log, asked).await?;
    let instance = InstanceId::from_bytes(random::bytes());
    let run: RunId = grant
        .run
        .parse()
        .map_err(|_| AppError::Grant(grant.run.clone()))?;
    let host = identity.host;
    let now_us = clock.now_us();
    let Supervised {
        role,
        say,
        heard,
        link_state,
    } = supervised(&grant, &shutdown);
    // Never closed: jobs go on until the process ends, and only then may another supervisor's act.
    std::mem::forget(only_supervisors(&config, grant.among_others).await?);
    let journal = Journal::open(&config.journal_dir(), instance, host, grant.epoch, now_us)?;
    let time = Arc::new(ServerTime::new(clock.clone(), read_floor(&config)));
    let verifier = verifier(&identity, &time);
    let (to_executor, requests) = mpsc::channel(REQUESTS_MAX);
    let (to_observer, watched) = mpsc::channel(REQUESTS_MAX);
    let (renew, renewals) = mpsc::channel(1);
    let picture = Picture::default();
    if !role.owns() {
        // Another tells; what is heard meanwhile is kept.
        let _ = picture.leave_events_to_another();
    }
    let (standing, stands) = watch::channel(Standing { role, turn: 0 });
    let part = Part {
        key: grant.key,
        role,
        instance,
        host,
        dir: config.state_dir.join("handoff"),
        journals: config.journal_dir(),
        executor: to_executor.clone(),
        say: say.clone(),
        standing,
        picture: picture.clone(),
        owner_log: owner_log.clone(),
    };
    let executor = Executor::new(Parts {
        host,
        instance,
        role,
        safe: grant.safe,
        say: grant.handoff.is_some().then(|| say.clone()),
        journal,
        runtime: Arc::clone(&runtime),
        policy,
        verifier,
        time: Arc::clone(&time),
        clock: clock.clone(),
        picture: picture.clone(),
        owner_log: owner_log.clone(),
        spool: config.spool_dir(),
        lane_locks: LaneLocks::new(&config.state_dir),
        renew,
        departure: Departure::new(&config.state_dir, host),
        terminals_held: config.terminals_held(),
        upgrades: Arc::new(Orders::new(&config, Arc::clone(&time))),
        floor: floor_writer(&config),
    });
    let observer = Observer::new(runtime, picture, Arc::clone(&time), config.metrics_every());
    let connection = Connection {
        state_dir: config.state_dir.clone(),
        files,
        identity: Mutex::new(identity),
        addresses: config.addresses.clone(),
        instance,
        run,
        stands,
        say,
        link_state,
        time,
        clock,
        executor: to_executor,
        observer: to_observer,
        owner_log,
        proxy,
        facts,
    };
    let parting = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = part.run(heard) => {}
        }
    };
    let (departs, (), (), ()) = tokio::join!(
        executor.run(requests, shutdown.clone()),
        observer.run(watched, shutdown.clone()),
        connection.run(renewals, shutdown.clone()),
        parting,
    );
    Ok(if departs {
        Ended::Departs
    } else {
        Ended::Shutdown
    })
}
