//! Builds the access server from its configuration and runs it until shutdown.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use fairlead_api::server::{Limits, serve};
use fairlead_daemon::arrivals::{self, Arrivals, ListenError, listen};
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files::{self, ClaimError};
use fairlead_daemon::service;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::chain::Usage;
use fairlead_identity::tls::{self, Expected, Trust};
use fairlead_link::accept::Acceptor;
use fairlead_link::dial::Dialler;
use fairlead_protocol::{UplinkUp, limits, version};
use fairlead_store::{Store, StoreError};
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::front::Front;
use crate::join::{JoinError, join};
use crate::region::{Region, RegionParts};
use crate::{listener, metrics, sweeper, uplink};

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
    dialler: Dialler,
    controller: String,
    volatile: mpsc::Receiver<UplinkUp>,
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
        let web_tls = Arc::new(tls::https(joined.web)?);
        let (region, volatile) = Region::new(RegionParts {
            name: joined.region,
            server: own.role,
            addresses: config.agent_addresses.clone(),
            root: joined.root,
            agents_ca: joined.agents_ca,
            ledger,
            clock: Clock::system(),
            ping_interval_ms: config.ping_interval_ms,
        })
        .await?;
        Ok(Self {
            region: Arc::new(region),
            agents,
            web,
            front,
            acceptor,
            web_tls,
            dialler,
            controller: config.controller,
            volatile,
        })
    }

    /// Serves until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        tracing::info!(region = self.region.name, "access server up");
        service::ready();
        let region = self.region;
        let router = probes(Arc::clone(&region));
        let front = async {
            if let Some((front, listener)) = self.front {
                front.run(listener, shutdown.clone()).await;
            }
        };
        let (.., served) = tokio::join!(
            front,
            listener::run(
                self.agents,
                self.acceptor,
                Arc::clone(&region),
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
