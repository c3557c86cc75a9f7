//! Builds the access server from its configuration and runs it until shutdown.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use fairlead_api::server::web_certificate::{WebCertificate, WebCertificateError};
use fairlead_api::server::{Limits, Peer, serve};
use fairlead_daemon::arrivals::{self, Arrivals, ListenError, listen};
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files::{self, ClaimError};
use fairlead_daemon::service;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::Root;
use fairlead_identity::chain::Usage;
use fairlead_identity::tls::{self, Expected, Trust};
use fairlead_link::accept::Acceptor;
use fairlead_link::dial::Dialler;
use fairlead_protocol::{UplinkUp, limits, version};
use fairlead_store::{Store, StoreError};
use fairlead_webssh::recording::file::Recordings;
use fairlead_webssh::{Frozen, origin, socket};
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::front::Front;
use crate::join::{JoinError, join};
use crate::packages::{self, Shelf};
use crate::region::{Region, RegionParts};
use crate::terminals::Desk;
use crate::terminals::freezing;
use crate::{listener, metrics, sweeper, terminals, uplink};

/// Recordings of terminals, below the data directory, until the controller has them.
const RECORDINGS_DIR: &str = "recordings";
/// How often the files of the https certificate are looked at.
const CERTIFICATE_LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// Why the access server does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory is another process's.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// It serves no region.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] StoreError),
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
    /// Pages find no way here.
    #[error("--public-url {0} is not an https address, and --terminals needs one")]
    PublicUrl(String),
    /// The own certificate is not one of ours.
    #[error("the own certificate cannot be used ({0}): is this machine's clock right?")]
    Identity(#[from] fairlead_identity::chain::ChainError),
}

/// An access server, built and listening.
pub struct App {
    region: Arc<Region>,
    agents: Arrivals,
    web: Arrivals,
    front: Option<(Arc<Front>, TcpListener)>,
    acceptor: Acceptor,
    web_tls: Arc<rustls::ServerConfig>,
    web_files: Option<Arc<WebCertificate>>,
    dialler: Dialler,
    controller: String,
    volatile: mpsc::Receiver<UplinkUp>,
    frozen: Frozen,
    shelf: Arc<Shelf>,
}

impl App {
    /// Joins (if need be), opens the ledger, listens.
    ///
    /// # Errors
    /// When any of that fails.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        files::claim(&config.data_dir)?;
        let mut agents = Arrivals::from(listen(config.agent_listen).await?);
        let mut web = Arrivals::from(listen(config.listen).await?);
        let mut front = None;
        if let Some(address) = config.front_listen {
            let listener = listen(address).await?;
            let (to_agents, handed) = mpsc::channel(arrivals::PASSED_WAITING_MAX);
            agents = agents.and(Some(handed));
            let (to_web, handed) = mpsc::channel(arrivals::PASSED_WAITING_MAX);
            web = web.and(Some(handed));
            let shared = Front::new(to_agents, to_web, config.front_socket.as_deref());
            front = Some((shared, listener));
        }
        let joined = join(&config).await?;
        let ledger = Store::open(&config.data_dir.join("ledger.db"))?;
        let own = joined
            .root
            .identify(&joined.server.chain, Usage::Server, UnixTime::now())?;
        let acceptor_tls = tls::server(
            joined.root.clone(),
            joined.server.clone(),
            limits::RENEW_GRACE,
        )?;
        let acceptor = Acceptor::new(
            Arc::new(acceptor_tls),
            joined.root.clone(),
            limits::RENEW_GRACE,
        );
        let dialler_tls = tls::client(
            Trust::Root(joined.root.clone()),
            Expected::Controller,
            Some(joined.server.clone()),
        )?;
        let dialler = Dialler::new(dialler_tls, Some(joined.root.clone()), version::sni::UPLINK);
        let web_files = match (&config.web_certificate, &config.web_key) {
            (Some(chain), Some(key)) => Some(WebCertificate::open(chain, key)?),
            _ => None,
        };
        let web_tls = match &web_files {
            Some(files) => tls::https_with(Arc::<WebCertificate>::clone(files))?,
            None => tls::https(joined.web)?,
        };
        let desk = desk(&config, &joined.root)?;
        let (region, volatile) = Region::new(RegionParts {
            name: joined.region,
            server: own.role,
            addresses: config.agent_addresses.clone(),
            root: joined.root,
            agents_ca: joined.agents_ca,
            ledger,
            desk,
            clock: Clock::system(),
            ping_interval_ms: config.ping_interval_ms,
        })
        .await?;
        let shelf = Shelf::new(
            config.data_dir.join(packages::DIR),
            dialler.clone(),
            config.controller.clone(),
        );
        Ok(Self {
            region: Arc::new(region),
            agents,
            web,
            front,
            acceptor,
            web_tls: Arc::new(web_tls),
            web_files,
            dialler,
            controller: config.controller,
            volatile,
            frozen: Frozen::new(&config.data_dir),
            shelf,
        })
    }

    /// Serves until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        tracing::info!(region = self.region.name, "access server up");
        service::ready();
        let region = self.region;
        let mut router = probes(Arc::clone(&region));
        let desk = region.desk.clone();
        let terminals = desk
            .as_ref()
            .map(|desk| Desk::open(&region, desk, shutdown.clone()));
        if let (Some(desk), Some(terminals)) = (&desk, &terminals) {
            // Before anybody asks what is open here.
            freezing::thaw(&self.frozen, &region, desk, terminals).await;
            router = router.merge(socket::router(Arc::clone(terminals), Peer::of));
        }
        let sessions = async {
            if let (Some(desk), Some(terminals)) = (desk, &terminals) {
                let run = terminals::run(Arc::clone(&region), Arc::clone(&desk), shutdown.clone());
                let ((), left) = tokio::join!(run, terminals.drained());
                freezing::keep(&self.frozen, &region, &desk, left).await;
            }
        };
        let files = async {
            if let Some(files) = self.web_files {
                keep_files(&files, &shutdown).await;
            }
        };
        let front = async {
            if let Some((front, listener)) = self.front {
                front.run(listener, shutdown.clone()).await;
            }
        };
        let streams = async {
            shutdown.cancelled().await;
            region.streams.drain().await;
        };
        let (.., served) = tokio::join!(
            front,
            sessions,
            streams,
            files,
            listener::run(
                self.agents,
                self.acceptor,
                Arc::clone(&region),
                Some(self.shelf),
                shutdown.clone()
            ),
            uplink::run(
                Arc::clone(&region),
                self.dialler,
                self.controller,
                self.volatile,
                shutdown.clone()
            ),
            sweeper::run(Arc::clone(&region), shutdown.clone()),
            serve(
                self.web,
                self.web_tls,
                router,
                shutdown.clone(),
                Limits::default()
            ),
        );
        if let Err(error) = served {
            tracing::error!(%error, "the region's https ended");
        }
    }
}

/// What terminals need, where they are to live here.
fn desk(config: &Config, root: &Root) -> Result<Option<Arc<Desk>>, AppError> {
    if !config.terminals {
        return Ok(None);
    }
    let address = origin::normal(&config.public_url)
        .filter(|address| address.starts_with("https://"))
        .ok_or_else(|| AppError::PublicUrl(config.public_url.clone()))?;
    let max_bytes = config.recordings_max.saturating_mul(1 << 30);
    let dir = config.data_dir.join(RECORDINGS_DIR);
    let recordings = Recordings::open(&dir, max_bytes).map_err(AppError::Recordings)?;
    Ok(Some(Arc::new(Desk::new(address, recordings, root.clone()))))
}

/// Takes the files of the https certificate up anew when they change.
async fn keep_files(files: &WebCertificate, shutdown: &Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CERTIFICATE_LOOKED_AT_EVERY) => {}
        }
        match files.refresh() {
            Ok(false) => {}
            Ok(true) => tracing::info!("https has a new certificate"),
            Err(error) => tracing::error!(%error, "the new https certificate cannot be used"),
        }
    }
}

fn readiness(region: &Region) -> (StatusCode, &'static str) {
    let no = StatusCode::SERVICE_UNAVAILABLE;
    if region.ledger.trouble().is_some() {
        (no, "the ledger cannot be written: make room on the disk\n")
    } else if region.is_attached() {
        (StatusCode::OK, "ok\n")
    } else {
        (no, "no uplink to the controller\n")
    }
}

/// What the region says about itself without asking who wants to know. Nothing of its hosts.
fn probes(region: Arc<Region>) -> Router {
    let ready = Arc::clone(&region);
    let counted = region;
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let state = readiness(&ready);
                async move { state }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                let text = metrics::render(&counted);
                async move { text }
            }),
        )
}
