//! Builds the controller from its configuration and runs it until shutdown.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use fairlead_api::server::{Limits, serve};
use fairlead_api::{Options, router};
use fairlead_daemon::arrivals::{self, Arrivals};
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files::{self, ClaimError};
use fairlead_daemon::passing;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::{random, tls};
use fairlead_link::accept::Acceptor;
use fairlead_protocol::HostId;
use fairlead_store::{Store, StoreError};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;

use crate::authority::{CaError, CertificateAuthority};
use crate::backend::live::Live;
use crate::backend::{ControllerBackend, Parts};
use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::packages::{self, Packages};
use crate::regions::{self, Centre, Regions};
use crate::setup::{Setup, SetupError};
use crate::streams::Streams;
use crate::web_certificate::{WebCertificate, WebCertificateError};

/// How often what is merely good to keep is kept.
const HOUSEKEEP_EVERY: Duration = Duration::from_secs(2);

/// How often the files of the https certificate are looked at.
const WEB_CERTIFICATE_LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// Command streams of clients at a time.
const STREAMS_MAX: usize = 2048;
/// Followers of events and commands at a time.
const FOLLOWERS_MAX: usize = 2048;

/// Why the controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory is another process's.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The CA cannot be used.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first admin's door cannot be opened.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A port cannot be had.
    #[error("cannot listen at {address}: {reason}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// Keys and certificates do not fit.
    #[error("cannot use the certificates: {0}")]
    Tls(#[from] rustls::Error),
    /// Nor do those for https.
    #[error(transparent)]
    WebCertificate(#[from] WebCertificateError),
    /// The public address makes no sense.
    #[error("--public-url {0} is not an https address")]
    PublicUrl(String),
}

/// A controller, built and listening.
pub struct App {
    centre: Arc<Centre>,
    backend: Arc<ControllerBackend>,
    web: Arrivals,
    web_tls: Arc<rustls::ServerConfig>,
    /// When it comes from files that somebody else renews.
    certificate: Option<Arc<WebCertificate>>,
    packages: Arc<Packages>,
    uplinks: Arrivals,
    front: Option<Front>,
    acceptor: Acceptor,
}

/// What another process passes on to us.
struct Front {
    listener: UnixListener,
    web: mpsc::Sender<TcpStream>,
    uplinks: mpsc::Sender<TcpStream>,
}

impl Front {
    fn listen(
        path: &Path,
    ) -> Result<(Self, mpsc::Receiver<TcpStream>, mpsc::Receiver<TcpStream>), AppError> {
        let listener = passing::listen(path).map_err(|error| AppError::Listen {
            address: path.display().to_string(),
            reason: error.to_string(),
        })?;
        let (web, to_web) = mpsc::channel(arrivals::PASSED_WAITING_MAX);
        let (uplinks, to_uplinks) = mpsc::channel(arrivals::PASSED_WAITING_MAX);
        let front = Self {
            listener,
            web,
            uplinks,
        };
        Ok((front, to_web, to_uplinks))
    }
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| AppError::Listen {
            address: address.to_string(),
            reason: error.to_string(),
        })
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
        let mut web = Arrivals::from(listen(config.listen).await?);
        let mut uplinks = Arrivals::from(listen(config.uplink_listen).await?);
        let mut front = None;
        if let Some(path) = &config.front_socket {
            let (made, to_web, to_uplinks) = Front::listen(path)?;
            web = web.and(Some(to_web));
            uplinks = uplinks.and(Some(to_uplinks));
            front = Some(made);
        }
        let clock = Clock::system();
        let authority = Arc::new(CertificateAuthority::open(
            &config.data_dir,
            &config.domain,
            &config.web_names,
            clock.clone(),
        )?);
        let store = Store::open(&config.data_dir.join("controller.db"))?;
        let (fleet, homes) = fleet_as_kept(&store).await?;
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
        if let Some(opening) = setup.open(&config.public_url).await? {
            // To the terminal of whoever started it, not to the log, which others may read.
            eprintln!(
                "first admin (one use, 15 min): fairlead login {}",
                opening.link
            );
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
        let (certificate, web_tls) = web_tls(&config, &authority)?;
        let for_packages = clock.clone();
        let packages = config.data_dir.join(packages::DIR);
        let packages = Packages::new(&packages, move || for_packages.now_us());
        let backend = ControllerBackend::new(Parts {
            store: store.clone(),
            fleet: Arc::clone(&fleet),
            dispatch: Arc::<Dispatch>::clone(&dispatch),
            feed: Arc::clone(&feed),
            live: Arc::new(Live::new()),
            metrics: Arc::clone(&metrics),
            setup,
            clock: clock.clone(),
            ca_hash: authority.root.hash(),
            uplink_addresses: vec![config.uplink_address.clone()],
            version: env!("CARGO_PKG_VERSION").to_owned(),
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
            clock,
            homes: RwLock::new(homes),
        });
        Ok(Self {
            centre,
            backend,
            web,
            web_tls,
            certificate,
            packages,
            uplinks,
            front,
            acceptor,
        })
    }

    /// Serves until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        tracing::info!("controller up");
        let options = Options {
            random: random::bytes::<16>,
            shutdown: shutdown.clone(),
            streams_max: STREAMS_MAX,
            followers_max: FOLLOWERS_MAX,
        };
        let router = router(Arc::<ControllerBackend>::clone(&self.backend), options)
            .merge(self.packages.router());
        let front = async {
            if let Some(front) = self.front {
                passing::receive(front.listener, front.web, front.uplinks, shutdown.clone()).await;
            }
        };
        let (served, ..) = tokio::join!(
            serve(
                self.web,
                self.web_tls,
                router,
                shutdown.clone(),
                Limits::default()
            ),
            regions::run(self.uplinks, self.acceptor, self.centre, shutdown.clone()),
            front,
            housekeep(self.backend, shutdown.clone()),
            renew_web_certificate(self.certificate, shutdown.clone()),
        );
        if let Err(error) = served {
            tracing::error!(%error, "https ended");
        }
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

type WebTls = (Option<Arc<WebCertificate>>, Arc<rustls::ServerConfig>);

fn web_tls(config: &Config, authority: &CertificateAuthority) -> Result<WebTls, AppError> {
    let (Some(chain), Some(key)) = (&config.web_certificate, &config.web_key) else {
        return Ok((None, Arc::new(tls::https(authority.web.clone())?)));
    };
    let certificate = WebCertificate::open(chain, key)?;
    let tls = tls::https_with(Arc::<WebCertificate>::clone(&certificate))?;
    Ok((Some(certificate), Arc::new(tls)))
}

/// Takes the https certificate up anew when its files change.
async fn renew_web_certificate(certificate: Option<Arc<WebCertificate>>, shutdown: Shutdown) {
    let Some(certificate) = certificate else {
        return;
    };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WEB_CERTIFICATE_LOOKED_AT_EVERY) => {}
        }
        match certificate.refresh() {
            Ok(false) => {}
            Ok(true) => tracing::info!("https has a new certificate"),
            Err(error) => tracing::error!(%error, "the new https certificate cannot be used"),
        }
    }
}

async fn housekeep(backend: Arc<ControllerBackend>, shutdown: Shutdown) {
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
    }
}
