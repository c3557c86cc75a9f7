//! Builds the controller from its configuration and runs it until shutdown.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use fairlead_api::server::web_certificate::WebCertificateError;
use fairlead_api::server::{Limits, Peer, serve};
use fairlead_api::{Options, router};
use fairlead_daemon::arrivals::ListenError;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files::{self, ClaimError};
use fairlead_daemon::service;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_daemon::telemetry::Chain;
use fairlead_identity::{random, tls};
use fairlead_link::accept::Acceptor;
use fairlead_protocol::HostId;
use fairlead_store::{Store, StoreError};
use fairlead_webssh::recording::file::Recordings;
use fairlead_webssh::{Frozen, Origins, page, socket};
use tokio_util::task::TaskTracker;

use crate::acme::AcmeError;
use crate::authority::CertificateAuthority;
use crate::backend::live::Live;
use crate::backend::terminals::Desk;
use crate::backend::terminals::freezing;
use crate::backend::{ControllerBackend, Parts};
use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::doors::Doors;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::https::Https;
use crate::installation::{self, InstallationError};
use crate::metrics::Metrics;
use crate::packages::{self, Packages, shipped};
use crate::regions::{self, Centre, Regions};
use crate::restart;
use crate::setup::{Setup, SetupError};
use crate::streams::Streams;

/// How often rollouts are looked at.
const ROLLOUTS_DRIVEN_EVERY: Duration = Duration::from_secs(1);
/// How often what is merely good to keep is kept.
const HOUSEKEEP_EVERY: Duration = Duration::from_secs(2);
/// While nothing can be written, every so many rounds it is tried.
const PROBE_EVERY_ROUNDS: u32 = 5;

/// Recordings of terminals, below the data directory.
const RECORDINGS_DIR: &str = "recordings";
/// How often it is looked whether somebody on this machine asks for another admin.
const LOOK_FOR_WISHES_EVERY: Duration = Duration::from_secs(2);
/// How often it is asked whether the command key needs its next certificate.
const LOOK_AT_COMMAND_KEY_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Command streams of clients at a time.
const STREAMS_MAX: usize = 2048;
/// Followers of events and commands at a time.
const FOLLOWERS_MAX: usize = 2048;
/// Event streams of one token at a time.
const EVENT_STREAMS_PER_TOKEN_MAX: usize = 32;
/// Commands that one token watches at a time: an act on many hosts watches each.
const WATCHES_PER_TOKEN_MAX: usize = 512;

/// Why the controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory is another process's.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The installation is not there, not whole, or another one.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first admin's door cannot be opened.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A port cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Keys and certificates do not fit.
    #[error("cannot use the certificates: {0}")]
    Tls(#[from] rustls::Error),
    /// Nor do those for https.
    #[error(transparent)]
    WebCertificate(#[from] WebCertificateError),
    /// Recordings have no place.
    #[error("cannot use the directory of recordings: {0}")]
    Recordings(#[source] std::io::Error),
    /// Nor ACME.
    #[error(transparent)]
    Acme(#[from] AcmeError),
    /// The public address makes no sense.
    #[error("--public-url {0} is not an https address")]
    PublicUrl(String),
}

/// A controller, built and listening.
pub struct App {
    centre: Arc<Centre>,
    backend: Arc<ControllerBackend>,
    doors: Doors,
    https: Https,
    packages: Arc<Packages>,
    setup: Arc<Setup>,
    public_url: String,
    acceptor: Acceptor,
    frozen: Frozen,
}

/// What terminals need.
fn desk(config: &Config, authority: &Arc<CertificateAuthority>) -> Result<Desk, AppError> {
    let signing = Arc::clone(authority);
    let addresses = std::iter::once(&config.public_url).chain(&config.browser_origins);
    let dir = config.data_dir.join(RECORDINGS_DIR);
    let max_bytes = config.recordings_max.saturating_mul(1 << 30);
    Ok(Desk::new(
        move || signing.signer(),
        Origins::new(addresses.map(String::as_str)),
        Recordings::open(&dir, max_bytes).map_err(AppError::Recordings)?,
    ))
}

impl App {
    /// Opens (or makes) the installation, listens.
    ///
    /// # Errors
    /// When any of that fails.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        if !config.public_url.starts_with("https://") {
            return Err(AppError::PublicUrl(config.public_url));
        }
        files::claim(&config.data_dir)?;
        let doors = Doors::open(&config).await?;
        let clock = Clock::system();
        let opened = installation::open(&config, clock.clone()).await?;
        opened.warn_if_new(&config.data_dir);
        let (authority, store) = (Arc::new(opened.authority), opened.store);
        let (fleet, homes) = fleet_as_kept(&store).await?;
        restart::expect_back(&store, &fleet, &homes, clock.now_us()).await?;
        let regions = Arc::new(Regions::default());
        let streams = Arc::new(Streams::default());
        let dispatch = Dispatch::new(
            store.clone(),
            Arc::clone(&authority),
            Arc::clone(&regions),
            Arc::clone(&streams),
            clock.clone(),
        );
        let feed = Feed::open(store.clone(), clock.clone()).await?;
        let metrics = Arc::new(Metrics::new());
        let setup = Setup::new(store.clone(), clock.clone(), &config.data_dir);
        if setup.open(&config.public_url).await?.is_some() {
            setup.say(config.web_certificate.is_none() && !config.acme.wanted);
        }
        let acceptor_tls = tls::server(
            authority.root.clone(),
            authority.own.clone(),
            Duration::ZERO,
        )?;
        let acceptor = Acceptor::new(
            Arc::new(acceptor_tls),
            authority.root.clone(),
            Duration::ZERO,
        );
        let https = Https::new(&config, &authority, clock.clone())?;
        let for_packages = clock.clone();
        let packages = config.data_dir.join(packages::DIR);
        if let Some(from) = config.packages_from.clone() {
            put_in_place(from, packages.clone()).await;
        }
        let packages = Packages::new(&packages, move || for_packages.now_us());
        let desk = desk(&config, &authority)?;
        let backend = ControllerBackend::new(Parts {
            store: store.clone(),
            fleet: Arc::clone(&fleet),
            dispatch: Arc::<Dispatch>::clone(&dispatch),
            feed: Arc::clone(&feed),
            live: Arc::new(Live::new()),
            desk,
            metrics: Arc::clone(&metrics),
            setup: Arc::clone(&setup),
            clock: clock.clone(),
            ca_hash: authority.root.hash(),
            uplink_addresses: vec![config.uplink_address.clone()],
            packages: Arc::clone(&packages),
            trusted: config.trust.clone(),
            public_url: config.public_url.clone(),
            web: Arc::clone(&https.status),
            version: fairlead_protocol::software::version().to_owned(),
        });
        let centre = Arc::new(Centre {
            store,
            authority,
            fleet,
            dispatch,
            feed,
            metrics,
            regions,
            streams,
            desk: Arc::<ControllerBackend>::clone(&backend),
            clock,
            homes: RwLock::new(homes),
            packages: Arc::clone(&packages),
            clones: config.clones,
        });
        Ok(Self {
            centre,
            backend,
            doors,
            https,
            packages,
            setup,
            public_url: config.public_url,
            acceptor,
            frozen: Frozen::new(&config.data_dir),
        })
    }

    /// Serves until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        tracing::info!("controller up");
        service::ready();
        let streams = TaskTracker::new();
        let options = Options {
            random: random::bytes::<16>,
            shutdown: shutdown.clone(),
            streams: streams.clone(),
            streams_max: STREAMS_MAX,
            followers_max: FOLLOWERS_MAX,
            event_streams_per_token_max: EVENT_STREAMS_PER_TOKEN_MAX,
            watches_per_token_max: WATCHES_PER_TOKEN_MAX,
        };
        let terminals = self.backend.terminals_of(shutdown.clone());
        let clock = self.centre.clock.clone();
        // Before anybody asks what is open here.
        freezing::thaw(&self.frozen, clock.now_us(), &terminals).await;
        let router = router(Arc::<ControllerBackend>::clone(&self.backend), options)
            .merge(self.packages.router())
            .merge(page::router(self.backend.terminal_servers()))
            .merge(socket::router(Arc::clone(&terminals), Peer::of));
        let (web, uplinks, taking) = self.doors.split(shutdown.clone());
        let dispatch = Arc::clone(&self.centre.dispatch);
        let store = self.centre.store.clone();
        let (fleet, clock) = (Arc::clone(&self.centre.fleet), self.centre.clock.clone());
        let kept = store.clone();
        let (served, ..) = tokio::join!(
            serve(
                web,
                Arc::clone(&self.https.config),
                router,
                shutdown.clone(),
                Limits::default()
            ),
            regions::run(uplinks, self.acceptor, self.centre, shutdown.clone()),
            drive_rollouts(Arc::clone(&self.backend), shutdown.clone()),
            housekeep(self.backend, store, shutdown.clone()),
            keep_command_key(dispatch, shutdown.clone()),
            async {
                let left = terminals.drained().await;
                freezing::keep(&self.frozen, clock.now_us(), left).await;
            },
            async {
                shutdown.cancelled().await;
                streams.close();
                streams.wait().await;
            },
            self.https.keep(shutdown.clone()),
            taking,
            grant_wishes(self.setup, self.public_url, shutdown.clone()),
        );
        if let Err(error) = served {
            tracing::error!(%error, "https ended");
        }
        restart::remember(&kept, &fleet, clock.now_us()).await;
    }
}

/// Machines go on getting what they got before when this fails: it is no reason not to start.
async fn put_in_place(from: PathBuf, packages: PathBuf) {
    let put = tokio::task::spawn_blocking(move || shipped::put_in_place(&from, &packages)).await;
    match put {
        Ok(Ok(Some(version))) => tracing::info!(%version, "machines get this version now"),
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "packages were not put in place"),
        Err(error) => tracing::warn!(error = %Chain(&error), "packages were not put in place"),
    }
}

/// The fleet as it was when the controller last ran, and which region each host is of.
async fn fleet_as_kept(store: &Store) -> Result<(Arc<Fleet>, HashMap<HostId, String>), StoreError> {
    let fleet = Arc::new(Fleet::new());
    let hosts = store.read(|tx| tx.hosts(None)).await?;
    let homes: HashMap<_, _> = hosts
        .into_iter()
        .filter_map(|host| Some((host.id?, host.region)))
        .collect();
    let pictures = store.read(|tx| tx.pictures()).await?;
    fleet.load_pictures(
        pictures
            .into_iter()
            .filter_map(|(host, part)| Some((host, homes.get(&host)?.clone(), part)))
            .collect(),
    );
    Ok((fleet, homes))
}

async fn keep_command_key(dispatch: Arc<Dispatch>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(LOOK_AT_COMMAND_KEY_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = dispatch.renew_command_key().await {
            tracing::error!(%error, "the command key's certificate was not renewed");
        }
    }
}

/// Looks whether somebody on this machine asks for another admin.
async fn grant_wishes(setup: Arc<Setup>, public_url: String, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(LOOK_FOR_WISHES_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = setup.look_for_wish(&public_url).await {
            tracing::error!(error = %Chain(&error), "no setup link for another admin could be written");
        }
    }
}

/// Moves rollouts of the agent's versions on.
async fn drive_rollouts(backend: Arc<ControllerBackend>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(ROLLOUTS_DRIVEN_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = backend.drive_rollouts().await {
            tracing::error!(%error, "rollouts were not moved on");
        }
    }
}

async fn housekeep(backend: Arc<ControllerBackend>, store: Store, shutdown: Shutdown) {
    let mut rounds = 0u32;
    let mut ticks = tokio::time::interval(HOUSEKEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = backend.housekeep().await {
            tracing::error!(%error, "housekeeping failed");
        }
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(PROBE_EVERY_ROUNDS) {
            store.probe().await;
        }
    }
}
